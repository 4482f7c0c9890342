"""What `dcil explain` prints for a code, a word, a setting or a statement.

In:   a name.
Out:  text as wide as the page; InputError for an unknown name, with the nearest.
Not:  no layer (plan/explain.py); no torch.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from textwrap import fill, wrap

from dcil_dsl.diagnostics import InputError
from dcil_dsl.diagnostics.codes import CODES
from dcil_dsl.diagnostics.codes import explain as explain_code
from dcil_dsl.diagnostics.suggest import did_you_mean
from dcil_dsl.lang.describe import (
    SETTINGS,
    SettingHelp,
    WordHelp,
    blocks_with,
    help_of_word,
    words_named,
)
from dcil_dsl.lang.statements import CLAUSES, PARTS_SAY, STATEMENTS
from dcil_dsl.words.metrics import METRICS
from dcil_dsl.words.registry import own_words

WIDTH = 88
CODE = re.compile(r"[EW]\d+", re.IGNORECASE)


def explain_name(name: str) -> str:
    """Everything that is called so, one after the other."""
    wanted = name.strip()
    if CODE.fullmatch(wanted):
        return explain_code(wanted)
    parts = [*_statement(wanted), *map(_word, words_named(wanted)), *_setting(wanted)]
    if not parts:
        near = did_you_mean(wanted, names()) or (
            "codes look like E301, words are those of a recipe, such as magnitude or refresh; a "
            "layer is explained with its RECIPE and --model SPEC"
        )
        raise InputError(f"there is no code, word or setting `{name}`", near)
    return "\n\n\n".join(parts)


def names() -> list[str]:
    """Every name that can be explained."""
    words = [word for table in own_words().values() for word in table]
    settings = [one.name for b, cls in SETTINGS.items() for one in help_of_word(cls, b).settings]
    known = [*STATEMENTS, *CLAUSES, *PARTS_SAY, *words, *settings, *METRICS, *CODES]
    return list(dict.fromkeys(known))


def _statement(name: str) -> Iterator[str]:
    if name in STATEMENTS:
        found = STATEMENTS[name]
        parts = [f"{name}: a statement", f"    {found.form}", fill(found.says, WIDTH)]
        if name in SETTINGS:
            told = help_of_word(SETTINGS[name], name)
            parts += [*_paragraphs(told), _table(told.settings)]
        yield "\n\n".join(parts)
    said = CLAUSES.get(name) or PARTS_SAY.get(name)
    if said is not None:
        kind = "a clause" if name in CLAUSES else "a part of the weights, in `update`"
        yield f"{name}: {kind}\n\n{fill(said, WIDTH)}"
    if name in METRICS:
        yield f"{name}: a metric, in `expect`\n\n    expect {{ {name} >= ... }}"


def _word(told: WordHelp) -> str:
    parts = [f"{told.name}: {told.place}"]
    if told.written:
        parts.append(f"    {told.written.replace('WORD', told.usage)}")
    parts += _paragraphs(told)
    if told.settings:
        parts.append(_table(told.settings))
    return "\n\n".join(parts)


def _setting(name: str) -> Iterator[str]:
    for block, one in blocks_with(name):
        if block == "prune":
            continue  # the same settings as `pruning`
        where = "pruning` and `prune" if block == "pruning" else block
        parts = [f"{name}: a setting of `{where}`", f"    {name} = ...  # {one.facts}"]
        if one.meaning:
            parts.append(fill(one.meaning, WIDTH))
        yield "\n\n".join(parts)


def _paragraphs(told: WordHelp) -> list[str]:
    return [text if text.startswith("    ") else fill(text, WIDTH) for text in told.text]


def _table(settings: tuple[SettingHelp, ...]) -> str:
    width = max(len(one.name) for one in settings)
    lines = ["settings"]
    for one in settings:
        said = one.facts + (f": {one.meaning}" if one.meaning else "")
        first, *more = wrap(said, WIDTH - width - 4)
        lines.append(f"  {one.name:<{width}}  {first}")
        lines += [" " * (width + 4) + line for line in more]
    return "\n".join(lines)
