"""A closed file to a checked recipe: everything that needs no model.

In:   Linked (link.py).
Out:  recipe.Recipe; E2xx and W2xx in a Diagnostics.
Not:  single words (read.py), rules (check_rules.py), `mix` (check_mix.py), selectors
      (selectors.py); nothing that needs layers or the number of steps.
"""

from __future__ import annotations

from dcil_dsl.diagnostics import Diagnostics, Label, Span
from dcil_dsl.diagnostics.suggest import did_you_mean
from dcil_dsl.lang import ast
from dcil_dsl.lang import recipe as r
from dcil_dsl.lang.ast import BROKEN
from dcil_dsl.lang.check_mix import Mixed, check_mix
from dcil_dsl.lang.check_rules import check_rules, read_rules
from dcil_dsl.lang.check_teachers import refuse_copies
from dcil_dsl.lang.link import Linked
from dcil_dsl.lang.read import WordReader, keyword, read_uses
from dcil_dsl.lang.read_values import Broken
from dcil_dsl.lang.selectors import Selectors
from dcil_dsl.lang.syntax_errors import listed
from dcil_dsl.words.blocks import AboutBlock, DataBlock, ModelBlock, Train
from dcil_dsl.words.metrics import METRICS
from dcil_dsl.words.optimizers import SGD
from dcil_dsl.words.registry import words_at
from dcil_dsl.words.step import Balance
from dcil_dsl.words.units import Percent, Time, written

# Settings that say how a step is made from its gradients: one batch, one process, no loss scale.
OWN_STEPS = ("integrator", "balance")


def check(linked: Linked, found: Diagnostics) -> r.Recipe:
    """The recipe that a closed file means; RecipeError with all that is wrong in it."""
    file = linked.file
    blocks = {item.kind: item for item in file.items if isinstance(item, ast.BlockNode)}
    uses = read_uses(blocks.get("recipe"), found)
    reader = WordReader(found, linked.lets, _epochs(blocks.get("train")), uses)
    selectors = Selectors(linked.layers, found)

    about = _about(blocks.get("recipe"), reader)
    model = _model(blocks.get("model"), reader)
    data = _data(blocks.get("data"), reader)
    train = _train(blocks.get("train"), _end(file), reader)
    rules = read_rules(file, blocks.get("pruning"), reader, selectors)
    mix = next((item for item in file.items if isinstance(item, ast.Mix)), None)
    mixed = check_mix(mix, file, reader, selectors, rules)
    check_rules(rules, mixed, found)
    _players(train, blocks.get("train"), rules, found)
    _balance(train, blocks.get("train"), mixed, found)
    refuse_copies(mixed.teachers if mixed else (), train, found)
    average = _average(train, blocks.get("train"), selectors)
    groups = _groups(train, blocks.get("train"), selectors)
    penalties = _penalties(train, blocks.get("train"), selectors, found)
    expect = _expect(file, reader)
    selectors.warn_unused()
    _clashes(linked, mixed, [*uses.words], found)
    found.stop_if_wrong()
    assert train and mixed and mix, "a wrong recipe without an error"
    return r.Recipe(
        about=about,
        model=model,
        data=data,
        rules=tuple(rules),
        paths=mixed.paths,
        updates=mixed.updates,
        privates=mixed.privates,
        losses=mixed.losses,
        deploy=mixed.deploy,
        train=train,
        teachers=mixed.teachers,
        average=average,
        groups=groups,
        penalties=penalties,
        expect=expect,
        mix_span=keyword(mix),
        train_span=keyword(blocks["train"]),
        balance_span=_span_of(blocks["train"], "balance"),
        rate_span=_span_of(blocks["train"], "lr"),
    )


# -- blocks --------------------------------------------------------------------------------


def _about(block: ast.BlockNode | None, reader: WordReader) -> r.RecipeAbout:
    if block is None:
        return r.RecipeAbout()
    word = reader.block(AboutBlock, "recipe", block.settings, keyword(block)).word
    return r.RecipeAbout(name=block.name, **({} if word is None else word.model_dump()))


def _model(block: ast.BlockNode | None, reader: WordReader) -> r.RecipeModel:
    if block is None:
        return r.RecipeModel()
    ours = tuple(s for s in block.settings if s.name.name in ModelBlock.model_fields)
    word = reader.block(ModelBlock, "model", ours, keyword(block)).word
    options: list[tuple[str, r.Option]] = []
    for setting in block.settings:
        if setting in ours:
            continue
        value = setting.value
        plain = value.value if isinstance(value, ast.Literal) else value
        if isinstance(plain, (bool, int, float, str, type(None))):
            options.append((setting.name.name, plain))
        elif plain is not BROKEN:
            reader.found.add(
                "E206",
                "an option of a model is a number, a string, `true`, `false` or `none`",
                value.span,
            )
    return r.RecipeModel(
        name=block.name,
        classes=word.classes if word else None,
        options=tuple(options),
        span=block.span,
    )


def _data(block: ast.BlockNode | None, reader: WordReader) -> r.RecipeData:
    if block is None:
        return r.RecipeData()
    read = reader.block(DataBlock, "data", block.settings, keyword(block))
    word = read.word
    if word is None:
        return r.RecipeData(name=block.name)
    return r.RecipeData(
        name=block.name,
        batch_size=word.batch_size,
        image_size=word.image_size,
        length=word.length,
        channels=word.channels,
        augment=word.augment,
        span=block.span,
    )


def _epochs(block: ast.BlockNode | None) -> float | None:
    """The length of the run in epochs; None where it is missing or wrong, which _train reports."""
    for setting in block.settings if block else ():
        value = getattr(setting.value, "value", None)
        if setting.name.name == "epochs" and isinstance(value, Time) and value.unit == "epochs":
            return value.value if value.value > 0 else None
    return None


# -- expectations ----------------------------------------------------------------------------------


def _expect(file: ast.File, reader: WordReader) -> tuple[r.ExpectRule, ...]:
    expected = []
    for block in file.items:
        for condition in block.conditions if isinstance(block, ast.Expect) else ():
            expectation = _expectation(condition, reader)
            expected += [] if expectation is None else [expectation]
    return tuple(expected)


def _expectation(condition: ast.Condition, reader: WordReader) -> r.ExpectRule | None:
    metric = condition.name.name
    if metric not in METRICS:
        reader.found.add(
            "E224",
            f"unknown metric `{metric}`",
            condition.name.span,
            help=did_you_mean(metric, tuple(METRICS))
            or f"a recipe can expect {listed(f'`{m}`' for m in METRICS)}",
        )
        return None
    try:
        value = reader.value(condition.value)
    except Broken:
        return None
    wants_share, fraction, share = METRICS[metric].is_share, None, None
    if isinstance(value, Percent):
        fraction = value.fraction if wants_share else None
    elif isinstance(value, (int, float)) and not isinstance(value, bool):
        fraction = None if wants_share else float(value)
        share = Percent(value if value < 1 else value / 100) if wants_share else None
    if fraction is None:
        reader.found.add(
            "E206",
            f"`{metric}` is compared with a {'percentage' if wants_share else 'number'}",
            condition.value.span,
            help=f"did you mean `{written(share)}`?" if share else None,
        )
        return None
    return r.ExpectRule(
        metric=metric, compare=condition.compare, value=fraction, span=condition.span
    )


# -- names ---------------------------------------------------------------------------------------


def _clashes(linked: Linked, mixed: Mixed | None, words: list[str], found: Diagnostics) -> None:
    """A `let` replaces its name wherever a value stands, so it must not hide another meaning."""
    taken = {
        "fp32",
        "bf16",
        "fp16",
        "copy",
        "fresh",
        *words_at("a view"),
        *words_at("a score"),
        *words_at("a granularity"),
        *words_at("a loss"),
        *words,
        "weights",
        "units",
        "flops",
    }
    paths = {path.name for path in mixed.paths} if mixed else set()
    paths |= {teacher.name for teacher in mixed.teachers} if mixed else set()
    for name, span in linked.lets.items():
        if name in paths:
            found.add("E225", f"`{name}` names both a `let` and a path", span)
        elif name in taken:
            found.add(
                "E225",
                f"`{name}` is a word of the vocabulary",
                span,
                help="give the `let` another name",
            )


def _end(file: ast.File) -> Span:
    stop = len(file.source.text.rstrip())
    return Span(file.source, stop, stop)


# -- train -----------------------------------------------------------------------------------------


def _train(block: ast.BlockNode | None, end: Span, reader: WordReader) -> Train | None:
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
            "E205",
            "the length of a run is a whole number of epochs, at least 1",
            read.spans["epochs"],
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
            _refuse(name, "accumulate", "makes a step from one batch", spans, found)
        if train.precision == "fp16":
            _refuse(
                name,
                "precision",
                "needs unscaled gradients, and fp16 scales them",
                spans,
                found,
                help="`precision = bf16` scales nothing",
            )
    scaled = any(group.scale not in (None, 1) for group in train.groups)
    if train.integrator is not None and scaled:
        _refuse("integrator", "groups", "moves all weights at one rate", spans, found)
    if train.mirror is not None and train.precision == "fp16":
        _refuse(
            "mirror",
            "precision",
            "needs unscaled gradients, and fp16 scales them",
            spans,
            found,
            help="`precision = bf16` scales nothing",
        )
    if train.average is None:
        return
    if train.mirror is not None:
        _refuse("average", "mirror", "updates weights once in several steps", spans, found)
    if train.reset:
        _refuse("average", "reset", "has a momentum for each copy", spans, found)
    if train.precision == "fp16":
        _refuse(
            "average",
            "precision",
            "sums the gradients of several steps, and fp16 scales them",
            spans,
            found,
            help="`precision = bf16` scales nothing",
        )
    if train.ema is not None:
        _refuse("average", "ema", "is an average of its own", spans, found)
    if train.integrator is not None:
        _refuse("average", "integrator", "updates most weights once in several steps", spans, found)
    if train.clip is not None:
        _refuse(
            "average",
            "clip",
            "sums the gradients of several steps, none of which updates all weights",
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
        others=(Label(spans[other], f"`{other}` cannot be combined with it"),),
    )


def _players(
    train: Train | None,
    block: ast.BlockNode | None,
    rules: list[r.PruneRule | r.KeepRule],
    found: Diagnostics,
) -> None:
    """E236 if pruned weights are updated separately and no rule prunes."""
    each = getattr(train and train.integrator, "players", "joint") == "each"
    if each and not any(isinstance(rule, r.PruneRule) for rule in rules):
        found.add(
            "E236",
            "`players=each` updates kept and pruned weights in turn, and no rule prunes",
            _span_of(block, "integrator"),
            help="`players=joint` updates all together",
        )


def _balance(
    train: Train | None, block: ast.BlockNode | None, mixed: Mixed | None, found: Diagnostics
) -> None:
    """E236 where no path has two loss terms, whose gradients could be compared."""
    if train is None or train.balance is None or mixed is None or not mixed.losses:
        return
    firsts = [loss.term.paths[0] for loss in mixed.losses]
    if len(firsts) == len(set(firsts)):
        found.add(
            "E236",
            "`balance` weighs the losses of a path against each other, and no path has two",
            _span_of(block, "balance"),
        )


def _average(
    train: Train | None, block: ast.BlockNode | None, selectors: Selectors
) -> r.AverageRule | None:
    """`average` with its layers; E223 where none are named so."""
    if train is None or train.average is None:
        return None
    node = _setting(block, "average")
    assert isinstance(node, ast.Call)
    selector = _layers_of(node, str(train.average.layers), selectors)
    return r.AverageRule(word=train.average, selector=selector, span=node.span)


def _groups(
    train: Train | None, block: ast.BlockNode | None, selectors: Selectors
) -> tuple[r.GroupRule, ...]:
    """`groups`, each with its layers; E223 where none are named so."""
    nodes = _setting(block, "groups")
    if train is None or not isinstance(nodes, ast.List):
        return ()
    found = []
    for word, node in zip(train.groups, nodes.items, strict=True):
        assert isinstance(node, ast.Call)
        named = word.layers_named
        selector = None if named is None else _layers_of(node, named, selectors)
        found.append(r.GroupRule(word=word, selector=selector, span=node.span))
    return tuple(found)


def _penalties(
    train: Train | None, block: ast.BlockNode | None, selectors: Selectors, found: Diagnostics
) -> tuple[r.PenaltyRule, ...]:
    """`penalty` of `train`, each with its layers; E236 for one on weights that a rule prunes."""
    nodes = _setting(block, "penalty")
    if train is None or not isinstance(nodes, ast.List):
        return ()
    penalties = []
    for word, node in zip(train.penalty, nodes.items, strict=True):
        assert isinstance(node, ast.Call)
        if word.part != "rest":
            found.add(
                "E236",
                f"`penalty` of `train` is on weights that no rule prunes, not on {word.part} ones",
                node.span,
                help=f"`{word.called}(rest, ...)`, or `penalty` of the rule or of `pruning`",
            )
            continue
        selector = None if word.of is None else _layers_of(node, word.of, selectors)
        penalties.append(r.PenaltyRule(word=word, selector=selector, span=node.span))
    return tuple(penalties)


def _layers_of(node: ast.Call, name: str, selectors: Selectors) -> ast.Selector:
    """The selector of a call whose setting `of`, or else its first, names such a definition."""
    named = (a for a in node.arguments if a.name is not None and a.name.name == "of")
    place = next(named, node.arguments[0]).value.span
    return selectors.closed(ast.ByName(span=place, name=name))


def _setting(block: ast.BlockNode | None, name: str) -> ast.Value | None:
    """The value of a setting; None if it is not given."""
    return next((s.value for s in block.settings if s.name.name == name), None) if block else None


def _span_of(block: ast.BlockNode | None, name: str) -> Span | None:
    value = _setting(block, name)
    return None if value is None else value.span
