"""The teachers of `mix`: `path big = network(...)` and `path slow = ema(...)`.

In:   the statement of a path, whose word is that of a teacher.
Out:  the word; E211, E212, E251 in a Diagnostics.
Not:  no network is built or read (jobs/teachers.py); who may name a teacher is in check_mix.py.
"""

from __future__ import annotations

from collections.abc import Sequence

from dcil_dsl.diagnostics import Diagnostics, Span
from dcil_dsl.lang import ast
from dcil_dsl.lang.read import WordReader
from dcil_dsl.lang.read_values import Broken
from dcil_dsl.lang.recipe import TeacherRule
from dcil_dsl.lang.syntax_errors import listed
from dcil_dsl.words.blocks import Train
from dcil_dsl.words.registry import words_at
from dcil_dsl.words.views import SOURCES, Teacher, TrainedNetwork


def called(view: ast.Name | ast.Call) -> str:
    """The word of a path."""
    return view.name.name if isinstance(view, ast.Call) else view.name


def is_teacher(item: ast.PathNode) -> bool:
    return called(item.view) in words_at("a teacher")


def place_of_path(item: ast.PathNode) -> Span:
    """Where `ema` names its path."""
    arguments = item.view.arguments if isinstance(item.view, ast.Call) else ()
    named = (one.value.span for one in arguments if one.name is None or one.name.name == "path")
    return next(named, item.span)


def read_teacher(item: ast.PathNode, reader: WordReader) -> Teacher | None:
    """The word of a teacher; None if something in it is wrong."""
    for setting in item.settings:
        name = setting.name
        reader.found.add(
            "E212",
            f"a teacher has no setting `{name.name}`",
            name.span,
            help="it runs on the whole batch, as the model is given it",
        )
    try:
        word = reader.word(item.view, Teacher)
    except Broken:
        return None
    good = not isinstance(word, TrainedNetwork) or _can_be_built(word, item, reader)
    return word if good and not item.settings else None


def _can_be_built(word: TrainedNetwork, item: ast.PathNode, reader: WordReader) -> bool:
    """Whether a recipe may name the network, and names its weights."""
    name, span = item.name.name, item.view.span
    given = f"`network()` takes the network that the caller gives, `teachers={{{name!r}: net}}`"
    if word.source is None:
        if word.weights is not None:
            reader.found.add("E251", "`weights` of which network?", span, help=given)
        return word.weights is None
    source = word.source.rpartition(":")[0]
    if source not in SOURCES:
        known = listed(f"`{one}:`" for one in SOURCES)
        reader.found.add(
            "E251",
            f"`{word.source}` is not a network of {known}",
            span,
            label="a recipe runs nobody's own code",
            help=given,
        )
        return False
    if word.weights is None and source != "hf":
        reader.found.add(
            "E211",
            f"`network` requires `weights`: {word.source} has random ones",
            span,
            help='for example `weights="big.safetensors"`',
        )
        return False
    return True


def refuse_copies(teachers: Sequence[TeacherRule], train: Train | None, found: Diagnostics) -> None:
    """E251 for an average of a path whose weights are copies that take turns."""
    for teacher in teachers:
        if train is not None and train.average is not None and teacher.word.follows is not None:
            found.add(
                "E251",
                f"`{train.average.called}` takes turns between copies of the weights, which "
                f"`{teacher.word.called}` cannot average",
                teacher.span,
                help="leave one of the two out",
            )
