"""The `train` block, and whether its settings go together.

In:   the block as written; the checked rules.
Out:  the checked word; E205, E206, E215, E236 in a Diagnostics.
Not:  single words (words.py).
"""

from __future__ import annotations

from dcil_dsl.diagnostics import Diagnostics, Label, Span
from dcil_dsl.lang import ast
from dcil_dsl.lang import recipe as r
from dcil_dsl.lang.check_mix import Mixed
from dcil_dsl.lang.check_selectors import Selectors
from dcil_dsl.lang.words import Reader
from dcil_dsl.words.balances import Balance
from dcil_dsl.words.blocks import Train
from dcil_dsl.words.optimizers import SGD
from dcil_dsl.words.units import Time

# Settings that say how one step is made of its gradients: one batch, one process, no loss scale.
OWN_STEPS = ("integrator", "balance")


def check_train(block: ast.Block | None, end: Span, reader: Reader) -> Train | None:
    """The block's word; None where it is missing, said at `end`, or wrong."""
    if block is None:
        reader.found.add(
            "E215",
            "the recipe has no `train` block",
            end,
            help="for example `train { epochs = 100ep optimizer = sgd(lr=0.1) }`",
        )
        return None
    read = reader.block(Train, "train", block.settings, keyword(block))
    epochs = read.values.get("epochs")
    if isinstance(epochs, Time) and epochs.unit != "epochs":
        reader.found.add(
            "E206",
            "the length of the run is given in epochs",
            read.spans["epochs"],
            help="for example `epochs = 100ep`",
        )
    elif isinstance(epochs, Time) and (epochs.value != int(epochs.value) or epochs.value < 1):
        reader.found.add(
            "E205", "a run has a whole number of epochs, from 1 on", read.spans["epochs"]
        )
    sgd = read.values.get("optimizer")
    if isinstance(sgd, SGD) and sgd.nesterov and not sgd.momentum:
        reader.found.add(
            "E205",
            "`nesterov` needs a momentum",
            read.spans["optimizer"],
            help="for example `momentum=0.9`",
        )
    balance = read.values.get("balance")
    if isinstance(balance, Balance) and balance.every.value <= 0:
        reader.found.add(
            "E205",
            "losses cannot be balanced every 0 steps",
            read.spans["balance"],
            help="for example `every=5ep`",
        )
    if read.word is not None:
        _check_together(read.word, read.spans, reader.found)
    return read.word


def _check_together(train: Train, spans: dict[str, Span], found: Diagnostics) -> None:
    own = [name for name in OWN_STEPS if getattr(train, name) is not None]
    for name in own:
        if train.accumulate > 1:
            _refuse(name, "accumulate", "makes a step of one batch", spans, found)
        if train.precision == "fp16":
            _refuse(
                name,
                "precision",
                "takes gradients as they are, and fp16 scales them",
                spans,
                found,
                help="`precision = bf16` scales nothing",
            )
    if train.average is None:
        return
    if train.precision == "fp16":
        _refuse(
            "average",
            "precision",
            "adds up gradients of several steps, and fp16 scales them",
            spans,
            found,
            help="`precision = bf16` scales nothing",
        )
    if train.ema is not None:
        _refuse("average", "ema", "is an average of its own", spans, found)
    if train.integrator is not None:
        _refuse("average", "integrator", "moves most weights once in several steps", spans, found)
    if train.clip is not None:
        _refuse(
            "average",
            "clip",
            "adds up gradients of several steps, none of which moves all weights",
            spans,
            found,
        )


def _refuse(
    name: str,
    other: str,
    why: str,
    spans: dict[str, Span],
    found: Diagnostics,
    help: str | None = None,
) -> None:
    found.add(
        "E236",
        f"`{name}` {why}",
        spans[name],
        help=help,
        others=(Label(spans[other], f"`{other}` does not go with it"),),
    )


def check_players(
    train: Train | None,
    block: ast.Block | None,
    rules: list[r.Prune | r.Keep],
    found: Diagnostics,
) -> None:
    """E236 where pruned weights are to move by themselves and no rule prunes."""
    each = getattr(train and train.integrator, "players", "joint") == "each"
    if each and not any(isinstance(rule, r.Prune) for rule in rules):
        found.add(
            "E236",
            "`players=each` moves kept and pruned weights in turns, and no rule prunes",
            span_of(block, "integrator"),
            help="`players=joint` moves all together",
        )


def check_balance(
    train: Train | None, block: ast.Block | None, mixed: Mixed | None, found: Diagnostics
) -> None:
    """E236 where no path has two loss terms, whose gradients could be compared."""
    if train is None or train.balance is None or mixed is None or not mixed.losses:
        return
    firsts = [loss.term.paths[0] for loss in mixed.losses]
    if len(firsts) == len(set(firsts)):
        found.add(
            "E236",
            "`balance` weighs the losses of a path against each other, and no path has two",
            span_of(block, "balance"),
        )


def check_average(
    train: Train | None, block: ast.Block | None, selectors: Selectors
) -> r.Average | None:
    """`average` with its layers; E223 where none are named so."""
    if train is None or train.average is None:
        return None
    node = next(s.value for s in block.settings if s.name.name == "average")
    place = next(a.value.span for a in node.arguments if a.name is None or a.name.name == "layers")
    named = ast.ByName(span=place, name=str(train.average.layers))
    return r.Average(word=train.average, selector=selectors.closed(named), span=node.span)


def span_of(block: ast.Block, name: str) -> Span | None:
    """The value of a setting; None where it is not given."""
    return next((s.value.span for s in block.settings if s.name.name == name), None)


def keyword(item: ast.Block | ast.Mix) -> Span:
    """The first word of a block, where what is missing in it is shown."""
    if item.span.source.name == "--set":
        return item.span
    word = item.kind if isinstance(item, ast.Block) else "mix"
    return Span(item.span.source, item.span.start, item.span.start + len(word))
