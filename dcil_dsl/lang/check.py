"""A closed file to a checked recipe: everything that needs no model.

In:   Linked (link.py).
Out:  recipe.Recipe; E2xx and W2xx in a Diagnostics.
Not:  single words (words.py), the statements of `mix` (check_mix.py), selectors
      (check_selectors.py); nothing that needs layers or the number of steps.
"""

from __future__ import annotations

from dcil_dsl.diagnostics import Diagnostics, Label, Span
from dcil_dsl.diagnostics.suggest import did_you_mean
from dcil_dsl.lang import ast
from dcil_dsl.lang import recipe as r
from dcil_dsl.lang.check_dynamics import check_dynamics
from dcil_dsl.lang.check_mix import Mixed, check_mix
from dcil_dsl.lang.check_scores import check_scores
from dcil_dsl.lang.check_selectors import Selectors
from dcil_dsl.lang.check_train import (
    check_average,
    check_balance,
    check_players,
    check_train,
    keyword,
    span_of,
)
from dcil_dsl.lang.expected import listed
from dcil_dsl.lang.link import Linked
from dcil_dsl.lang.read_values import Broken
from dcil_dsl.lang.uses import read_uses
from dcil_dsl.lang.words import Reader, Settings
from dcil_dsl.words.blocks import (
    AboutBlock,
    DataBlock,
    ModelBlock,
    PruneBlock,
)
from dcil_dsl.words.granularity import Block, Granularity, Single
from dcil_dsl.words.metrics import METRICS
from dcil_dsl.words.registry import words_at
from dcil_dsl.words.schedules import Ramp, Schedule
from dcil_dsl.words.targets import Target, Within
from dcil_dsl.words.units import Percent, Time, written


def check(linked: Linked, found: Diagnostics) -> r.Recipe:
    """The recipe that a closed file means; RecipeError with all that is wrong in it."""
    file = linked.file
    blocks = {item.kind: item for item in file.items if isinstance(item, ast.Block)}
    uses = read_uses(blocks.get("recipe"), found)
    reader = Reader(found, linked.lets, _epochs(blocks.get("train")), uses)
    selectors = Selectors(linked.layers, found)

    about = _about(blocks.get("recipe"), reader)
    model = _model(blocks.get("model"), reader)
    data = _data(blocks.get("data"), reader)
    train = check_train(blocks.get("train"), _end(file), reader)
    rules = _rules(file, blocks.get("pruning"), reader, selectors)
    mix = next((item for item in file.items if isinstance(item, ast.Mix)), None)
    mixed = check_mix(mix, file, reader, selectors, rules)
    _rules_and_paths(rules, mixed, found)
    check_scores(rules, mixed, found)
    check_dynamics(rules, mixed, found)
    check_players(train, blocks.get("train"), rules, found)
    check_balance(train, blocks.get("train"), mixed, found)
    average = check_average(train, blocks.get("train"), selectors)
    expect = _expect(file, reader)
    selectors.warn_unused()
    _clashes(linked, mixed, [*uses.words], found)
    found.stop_if_wrong()
    assert train is not None and mixed is not None, "a wrong recipe without an error"
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
        average=average,
        expect=expect,
        mix_span=keyword(mix),
        train_span=keyword(blocks["train"]),
        balance_span=span_of(blocks["train"], "balance"),
        rate_span=span_of(blocks["train"], "lr"),
    )


# -- blocks --------------------------------------------------------------------------------


def _about(block: ast.Block | None, reader: Reader) -> r.About:
    if block is None:
        return r.About()
    word = reader.block(AboutBlock, "recipe", block.settings, keyword(block)).word
    return r.About(name=block.name, **({} if word is None else word.model_dump()))


def _model(block: ast.Block | None, reader: Reader) -> r.Model:
    if block is None:
        return r.Model()
    ours = tuple(s for s in block.settings if s.name.name in ModelBlock.model_fields)
    word = reader.block(ModelBlock, "model", ours, keyword(block)).word
    options = []
    for setting in block.settings:
        if setting in ours:
            continue
        value = setting.value
        if isinstance(value, ast.Literal) and not isinstance(value.value, (Percent, Time)):
            options.append((setting.name.name, value.value))
        else:
            reader.found.add(
                "E206",
                "an option of a model is a number, a text, `true`, `false` or `none`",
                value.span,
            )
    return r.Model(
        name=block.name,
        classes=word.classes if word else None,
        options=tuple(options),
        span=block.span,
    )


def _data(block: ast.Block | None, reader: Reader) -> r.Data:
    if block is None:
        return r.Data()
    read = reader.block(DataBlock, "data", block.settings, keyword(block))
    word = read.word
    if word is None:
        return r.Data(name=block.name)
    return r.Data(
        name=block.name,
        batch_size=word.batch_size,
        image_size=word.image_size,
        channels=word.channels,
        augment=word.augment,
        span=block.span,
    )


def _epochs(block: ast.Block | None) -> float | None:
    """The length of the run in epochs, None where it is missing or wrong."""
    for setting in block.settings if block else ():
        value = getattr(setting.value, "value", None)
        if setting.name.name == "epochs" and isinstance(value, Time) and value.unit == "epochs":
            return value.value
    return None


# -- rules -----------------------------------------------------------------------------------


def _rules(
    file: ast.File, pruning: ast.Block | None, reader: Reader, selectors: Selectors
) -> list[r.Prune | r.Keep]:
    shared = pruning.settings if pruning else ()
    rules: list[r.Prune | r.Keep] = []
    if pruning is not None:
        _limits(reader.block(PruneBlock, "pruning", shared, keyword(pruning)), reader)
    for item in file.items:
        if isinstance(item, ast.Keep):
            rules.append(r.Keep(selector=selectors.closed(item.selector), span=item.span))
        elif isinstance(item, ast.Prune):
            rule = _prune(item, shared, reader, selectors)
            rules += [] if rule is None else [rule]
    _unused_settings(file, pruning, reader.found)
    return rules


def _prune(
    item: ast.Prune, shared: tuple[ast.Setting, ...], reader: Reader, selectors: Selectors
) -> r.Prune | None:
    selector = selectors.closed(item.selector)
    own = {s.name.name for s in item.settings}
    # What is wrong in `pruning` was told there; here it would be told once for every rule.
    _limits(reader.block(PruneBlock, "prune", item.settings, item.head_span), reader)
    quiet = reader.quiet()
    together = (*(s for s in shared if s.name.name not in own), *item.settings)
    read = quiet.block(PruneBlock, "prune", together, item.head_span)
    try:
        target = reader.target(item.target)
    except Broken:
        return None
    if read.word is None:
        return None
    word = read.word
    _ramp(word.schedule, target, read.spans.get("schedule"), reader)
    granularity = _granularity(item, target, word.granularity, reader)
    return r.Prune(
        selector=selector,
        target=target,
        score=word.score,
        schedule=word.schedule,
        refresh=word.refresh,
        freeze=word.freeze,
        floor=word.floor,
        ceiling=word.ceiling,
        bounds=_bounds(together, word.bounds, target, selectors, reader),
        granularity=granularity,
        forget=word.forget,
        reserve=word.reserve,
        penalty=word.penalty,
        param=word.param,
        regrow=word.regrow,
        span=item.head_span,
        spans=read.spans,
        target_span=item.target.span,
        schedule_span=read.spans.get("schedule"),
        floor_span=read.spans.get("floor"),
        ceiling_span=read.spans.get("ceiling"),
        freeze_span=read.spans.get("freeze"),
        granularity_span=read.spans.get("granularity") if granularity is word.granularity else None,
    )


def _bounds(
    settings: tuple[ast.Setting, ...],
    words: tuple[Within, ...],
    target: Target,
    selectors: Selectors,
    reader: Reader,
) -> tuple[r.Bound, ...]:
    """The bounds of layers together, each with the layers that it names."""
    given = next((s.value for s in settings if s.name.name == "bounds"), None)
    bounds = []
    for word, node in zip(words, given.items if given else (), strict=True):
        place = next(
            a.value.span for a in node.arguments if a.name is None or a.name.name == "layers"
        )
        if not target.one_budget:
            reader.found.add(
                "E238",
                "these layers share no budget",
                node.span,
                help="`global(...)` is one budget for all layers of a rule",
            )
        elif word.floor is None and word.ceiling is None:
            reader.found.add(
                "E211",
                "`within` needs `floor` or `ceiling`",
                node.span,
                help=f"for example `within({word.layers}, floor=30%)`",
            )
        elif word.floor and word.ceiling and word.floor > word.ceiling:
            reader.found.add(
                "E214",
                f"the floor {written(word.floor)} is above the ceiling {written(word.ceiling)}",
                node.span,
            )
        selector = selectors.closed(ast.ByName(span=place, name=str(word.layers)))
        bounds.append(
            r.Bound(
                name=str(word.layers),
                selector=selector,
                floor=word.floor,
                ceiling=word.ceiling,
                span=node.span,
            )
        )
    return tuple(bounds)


def _granularity(
    item: ast.Prune, target: Target, setting: Granularity | None, reader: Reader
) -> Granularity:
    """The target's own, else the setting's; a rule that gives both gives it twice."""
    own = getattr(target, "granularity", None)
    is_pattern = target.pattern is not None
    for one in item.settings:
        if one.name.name == "granularity" and (own or is_pattern):
            why = "a pattern is a granularity of its own" if is_pattern else None
            reader.found.add(
                "E208",
                "`granularity` is given twice",
                one.name.span,
                label=why,
                others=(Label(item.target.span, "the target says it first"),),
            )
    _block(own, item.target.span, reader)
    return own or setting or Single()


def _block(granularity: object, span: Span | None, reader: Reader) -> None:
    if isinstance(granularity, Block) and granularity.height == granularity.width == 1:
        reader.found.add(
            "E205", "a block of one weight is a weight", span, help="`granularity=weight`"
        )


def _limits(read: Settings, reader: Reader) -> None:
    """What a single setting of `pruning` or of a rule cannot be."""
    refresh, floor = read.values.get("refresh"), read.values.get("floor")
    schedule = read.values.get("schedule")
    if isinstance(refresh, Time) and refresh.value <= 0:
        reader.found.add(
            "E205",
            "masks cannot be recomputed every 0 steps",
            read.spans["refresh"],
            help="for example `refresh = 16 steps`",
        )
    if refresh == ():
        reader.found.add(
            "E205",
            "this list of moments is empty",
            read.spans["refresh"],
            help="for example `refresh = [10ep, 20ep]`",
        )
    if isinstance(floor, Percent) and floor.fraction >= 1:
        reader.found.add(
            "E205",
            "a floor of 100% leaves nothing to prune",
            read.spans["floor"],
            help="`keep` leaves layers whole",
        )
    ceiling = read.values.get("ceiling")
    if isinstance(ceiling, Percent) and ceiling.fraction <= 0:
        reader.found.add("E205", "a ceiling of 0% leaves nothing of a layer", read.spans["ceiling"])
    if isinstance(floor, Percent) and isinstance(ceiling, Percent) and floor > ceiling:
        reader.found.add(
            "E214",
            f"the floor {written(floor)} is above the ceiling {written(ceiling)}",
            read.spans["floor"],
        )
    _block(read.values.get("granularity"), read.spans.get("granularity"), reader)
    grid = getattr(schedule, "grid", None)
    if grid is not None and grid.value <= 0:
        reader.found.add(
            "E205",
            "a grid of 0 steps has no places",
            read.spans["schedule"],
            help="for example `grid=1ep`",
        )


def _ramp(schedule: Schedule, target: Target, span: Span | None, reader: Reader) -> None:
    ramps = isinstance(schedule, Ramp)
    if ramps and target.pattern is not None:
        reader.found.add(
            "E232",
            "a pattern cannot ramp",
            span,
            help="`once(at=10ep)` lets it begin at one moment",
        )
    elif ramps and schedule.initial > target.sparsity:
        start, end = written(schedule.initial), written(target.sparsity)
        reader.found.add(
            "E214",
            f"the ramp starts at {start}, above its target of {end}",
            span,
            help=f"`initial` is at most {end}",
        )


def _unused_settings(file: ast.File, pruning: ast.Block | None, found: Diagnostics) -> None:
    """A setting of `pruning` that every rule sets for itself changes nothing."""
    rules = [item for item in file.items if isinstance(item, ast.Prune)]
    for setting in pruning.settings if pruning else ():
        name = setting.name.name
        if all(any(s.name.name == name for s in rule.settings) for rule in rules):
            why = "every rule sets its own" if rules else "there is no `prune` rule"
            found.add("W204", f"`{name}` of `pruning` has no effect", setting.span, label=why)


def _rules_and_paths(rules, mixed: Mixed | None, found: Diagnostics) -> None:
    """Masks must be made and must be seen."""
    if mixed is None:
        return
    prunes = [rule for rule in rules if isinstance(rule, r.Prune)]
    masked = [path for path in mixed.paths if path.view.prunes]
    if prunes and mixed.paths and not masked and not mixed.broken:
        found.add(
            "E221",
            "weights are pruned, but no path sees the masks",
            prunes[0].span,
            help="declare one in `mix`: `path sparse = masked`",
        )
    if not any(isinstance(rule, r.Prune) for rule in rules) and not found.errors:
        for path in masked:
            found.add(
                "W206",
                f"path `{path.name}` is masked, but no rule prunes",
                path.span,
                label="its masks keep every weight",
            )
        for update in mixed.updates:
            if "pruned" in update.parts:
                found.add("W206", "no rule prunes, so there are no pruned weights", update.span)


# -- the claim ----------------------------------------------------------------------------------


def _expect(file: ast.File, reader: Reader) -> tuple[r.Expectation, ...]:
    expected = []
    for block in file.items:
        for condition in block.conditions if isinstance(block, ast.Expect) else ():
            expectation = _expectation(condition, reader)
            expected += [] if expectation is None else [expectation]
    return tuple(expected)


def _expectation(condition: ast.Condition, reader: Reader) -> r.Expectation | None:
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
    number = isinstance(value, (int, float)) and not isinstance(value, bool)
    wants_share = METRICS[metric].is_share
    if isinstance(value, Percent) != wants_share or not (wants_share or number):
        share = Percent(value if value < 1 else value / 100) if wants_share and number else None
        reader.found.add(
            "E206",
            f"`{metric}` is compared with a {'percentage' if wants_share else 'number'}",
            condition.value.span,
            help=f"did you mean `{written(share)}`?" if share else None,
        )
        return None
    fraction = value.fraction if wants_share else float(value)
    return r.Expectation(
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
