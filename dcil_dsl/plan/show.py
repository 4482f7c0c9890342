"""Print a Plan: what `dcil plan` shows and golden files hold.

In:   a Plan.
Out:  text of at most 100 columns, the same for the same Plan.
Not:  no decisions and no measured numbers; export/report.py tells what became of it.
"""

from __future__ import annotations

from collections.abc import Sequence
from textwrap import wrap

from dcil_dsl.plan.cost import training_cost
from dcil_dsl.plan.plan import CrossEntropy, Group, Layer, Phase, Plan, Schedule, Window
from dcil_dsl.plan.schedule import keeps_at, last_refresh

WIDTH = 100


def show_plan(plan: Plan) -> str:
    """The whole plan: head, layers, groups, private modules, phases, losses, training."""
    parts = [
        _head(plan),
        _layers(plan),
        _groups(plan),
        _privates(plan),
        _phases(plan),
        _losses(plan),
        _train(plan),
        _expect(plan),
    ]
    return _fit("\n\n".join(part for part in parts if part)) + "\n"


def show_summary(plan: Plan) -> str:
    """What a person wants to see before a run starts, in a few lines."""
    pruned = [layer for layer in plan.layers if layer.group is not None]
    weights, total = _weights(pruned), _weights(plan.layers)
    lines = [
        _head(plan),
        f"prunes   {len(pruned)} of {len(plan.layers)} layers, {weights:,} of {total:,} weights",
    ]
    lines += [f"         {_group_line(plan, group)}" for group in plan.groups]
    if plan.privates:
        lines.append(f"private  {len(plan.privates)} modules, one for each path")
    lines.append(f"cost     {training_cost(plan):.2f} dense runs of arithmetic, at most")
    return _fit("\n".join(lines)) + "\n"


def percent(fraction: float) -> str:
    """0.9 -> "90%", 0.925 -> "92.5%"."""
    return f"{100 * fraction:.6g}%"


def table(header: Sequence[str], rows: Sequence[Sequence[str]], right: str) -> list[str]:
    """Columns as wide as their widest cell, two spaces between; `right` has an r or l a column."""
    widths = [max(len(row[i]) for row in [header, *rows]) for i in range(len(header))]
    return [
        "  ".join(
            cell.rjust(width) if side == "r" else cell.ljust(width)
            for cell, width, side in zip(row, widths, right, strict=True)
        ).rstrip()
        for row in [header, *rows]
    ]


def shorten(text: str, width: int) -> str:
    """The middle goes first: both ends of a layer's name tell more."""
    if len(text) <= width:
        return text
    head = (width - 2) // 2
    return f"{text[:head]}..{text[len(text) - (width - 2 - head) :]}"


def _fit(text: str) -> str:
    """Lines longer than WIDTH go on in the next line, further in."""
    lines = []
    for line in text.splitlines():
        indent = " " * (len(line) - len(line.lstrip()) + 2)
        lines += wrap(line, WIDTH, subsequent_indent=indent) if len(line) > WIDTH else [line]
    return "\n".join(lines)


# -- parts ------------------------------------------------------------------------------------


def _head(plan: Plan) -> str:
    about = plan.recipe
    lines = [f"recipe   {about.name}" + (f" {about.version}" if about.version else "")]
    lines += [f"         {line}" for line in wrap(about.title or "", WIDTH - 9)]
    if about.overrides:
        settings = ", ".join(f"{name}={value}" for name, value in sorted(about.overrides.items()))
        lines += [
            f"{'set' if not i else '':8} {line}" for i, line in enumerate(wrap(settings, WIDTH - 9))
        ]
    classes = f", {plan.model.classes} classes" if plan.model.classes is not None else ""
    lines.append(f"model    {plan.model.name or 'as given'}{classes}")
    size = (
        f", {plan.data.channels} x {plan.data.image_size} x {plan.data.image_size}"
        if plan.data.image_size
        else ""
    )
    lines.append(
        f"data     {plan.data.name or 'as given'}, batches of {plan.data.batch_size}{size}"
    )
    lines.append(
        f"run      {plan.train.num_epochs} epochs of {plan.steps_per_epoch:,} steps = "
        f"{plan.num_steps:,} steps"
    )
    return "\n".join(shorten(line, WIDTH) for line in lines)


def _layers(plan: Plan) -> str:
    files = {layer.rule.rpartition(":")[0] for layer in plan.layers if layer.rule}
    macs = sum(layer.macs or 0 for layer in plan.layers)
    rows = [_layer_row(plan, layer, macs, short=len(files) == 1) for layer in plan.layers]
    others = sum(max(len(row[i]) for row in rows) + 2 for i in range(1, 8)) if rows else 0
    room = max(12, WIDTH - others)
    rows = [(shorten(row[0], room), *row[1:]) for row in rows]
    note = f" (rules by their line in {next(iter(files))})" if len(files) == 1 else ""
    header = ("parameter", "type", "shape", "weights", "MACs", "rule", "group", "target")
    return "\n".join(
        [f"layers in execution order{shorten(note, WIDTH - 25)}", *table(header, rows, "lllrrlll")]
    )


def _layer_row(plan: Plan, layer: Layer, macs: int, short: bool) -> tuple[str, ...]:
    rule = "-" if layer.rule is None else layer.rule.rpartition("/")[2]
    if short and layer.rule is not None:
        rule = ":" + layer.rule.rpartition(":")[2]
    share = "-" if layer.macs is None or not macs else f"{100 * layer.macs / macs:.1f}%"
    group, target = "-", "kept"
    if layer.group is not None:
        whole = plan.groups[layer.group]
        group, target = str(layer.group), percent(whole.target)
        target += " of all" if whole.allocation == "global" else ""
    shape = "x".join(str(size) for size in layer.shape)
    kind = shorten(layer.type, 16)
    return (layer.parameter, kind, shape, f"{layer.num_weights:,}", share, rule, group, target)


def _groups(plan: Plan) -> str:
    lines = ["groups"]
    for index, group in enumerate(plan.groups):
        lines.append(f"{index}  {shorten(group.rule, WIDTH - 3)}")
        lines.append(f"   {_group_line(plan, group)}")
        lines.append(f"   schedule {_schedule(group.schedule, group.target, plan)}")
        freeze = "never" if group.freeze is None else _moment(group.freeze, plan)
        lines.append(
            f"   score {group.score}, masks move every {_count(group.refresh, 'step')}, "
            f"freeze {freeze}, floor {_floor(group)}"
        )
    if not plan.groups:
        lines.append("none: no weight is pruned")
    return "\n".join(lines)


def _group_line(plan: Plan, group: Group) -> str:
    size = sum(group.num_weights)
    kept = sum(keeps_at(group, last_refresh(group, max(0, plan.num_steps - 1))))
    shared = "one budget for all" if group.allocation == "global" else "one budget each"
    layers = _count(len(group.parameters), "layer")
    return (
        f"{percent(group.target)} of {size:,} weights in {layers}, {shared}; "
        f"{kept:,} kept at the end"
    )


def _floor(group: Group) -> str:
    if all(floor == 1 for floor in group.floors):
        return "1 weight a layer"
    shares = [floor / size for floor, size in zip(group.floors, group.num_weights, strict=True)]
    return f"{sum(group.floors):,} weights, at least {percent(round(min(shares), 4))} of a layer"


def _schedule(schedule: Schedule, target: float, plan: Plan) -> str:
    match schedule.kind:
        case "constant":
            return f"{percent(target)} from the first step on"
        case "once":
            return f"0% until {_moment(schedule.start, plan)}, then {percent(target)}"
        case _:
            grid = f", moving every {schedule.grid:,} steps" if schedule.grid > 1 else ""
            return (
                f"{schedule.kind} from {percent(schedule.initial)} at "
                f"{_moment(schedule.start, plan)} to {percent(target)} at "
                f"{_moment(schedule.stop, plan)}{grid}"
            )


def _privates(plan: Plan) -> str:
    if not plan.privates:
        return ""
    others = [path.name for path in plan.paths if path.name != plan.deploy]
    twins = ", ".join(f"<name>__{path}" for path in others) or "no twin: one path"
    lines = [f"private modules: the original on path {plan.deploy}; {twins}"]
    for init, words in (("copy", "copies"), ("fresh", "freshly initialised")):
        names = ", ".join(private.module for private in plan.privates if private.init == init)
        if names:
            lines += wrap(
                f"{words}: {names}", WIDTH, subsequent_indent="  ", break_long_words=False
            )
    return "\n".join(lines)


def _phases(plan: Plan) -> str:
    views = ", ".join(
        f"{path.name} = {path.view}, y = f(x; {'w * m' if path.view == 'masked' else 'w'})"
        for path in plan.paths
    )
    lines = [f"paths {views}; {plan.deploy} is deployed"]
    for phase in plan.phases:
        runs = "runs" if len(phase.paths) == 1 else "run"
        lines.append(
            f"{_window(phase.window, plan)}: {', '.join(phase.paths)} {runs}, a step is "
            f"{_count(len(phase.paths), 'dense step')} of arithmetic at most"
        )
        lines += [f"  {words}" for words in _updates(plan, phase)]
    lines.append(
        f"training cost: {training_cost(plan):.2f} dense runs at most (zeros do not make "
        "dense kernels faster)"
    )
    return "\n".join(lines)


def _updates(plan: Plan, phase: Phase) -> list[str]:
    lines = []
    for part in ("kept", "pruned", "rest"):
        terms = [
            path.name if share == 1 else f"{share:g} * {path.name}"
            for path, shares in zip(plan.paths, phase.shares, strict=True)
            if (share := getattr(shares, part)) != 0
        ]
        whose = {
            "kept": "kept weights",
            "pruned": "pruned weights",
            "rest": "weights no rule prunes",
        }[part]
        lines.append(
            f"{whose} learn from {' + '.join(terms)}" if terms else f"{whose} get no gradient"
        )
    return lines


def _losses(plan: Plan) -> str:
    lines = ["losses"]
    for loss in plan.losses:
        factor = "" if loss.coefficient == 1 else f"{loss.coefficient:g} * "
        term = loss.term
        if isinstance(term, CrossEntropy):
            more = f", smoothing {term.smoothing:g}" if term.smoothing else ""
        else:
            more = f", temperature {term.temperature:g}, no gradient into {term.teacher}"
        lines.append(f"  {factor}{loss.name}{more}: {_window(loss.window, plan)}")
    return "\n".join(lines)


def _train(plan: Plan) -> str:
    train = plan.train
    optimizer = ", ".join(
        f"{name} {_value(value)}"
        for name, value in train.optimizer
        if name != "kind" and value is not False
    )
    rate = train.rate
    words = {
        "constant": "constant",
        "cosine": f"half a cosine to {rate.final:g}",
        "multistep": f"times {rate.gamma:g} at steps {', '.join(map(str, rate.at))}",
    }[rate.kind]
    warmup = (
        f" after {_count(rate.warmup, 'step')} of warm-up from {rate.warmup_from:g}"
        if rate.warmup
        else ""
    )
    more = f"precision {train.precision}, seed {train.seed}"
    more += f", gradients clipped to {train.clip:g}" if train.clip is not None else ""
    more += f", weights averaged with {train.ema:g}" if train.ema is not None else ""
    return "\n".join(
        [
            f"train    {train.optimizer.kind}: {optimizer}",
            *(
                f"{'rate' if not i else '':8} {line}"
                for i, line in enumerate(wrap(words + warmup, WIDTH - 9))
            ),
            f"         {more}",
        ]
    )


def _expect(plan: Plan) -> str:
    claims = (f"{claim.metric} {claim.compare} {percent(claim.value)}" for claim in plan.expect)
    return f"expect   {', '.join(claims)}" if plan.expect else ""


# -- words --------------------------------------------------------------------------------------


def _weights(layers: Sequence[Layer]) -> int:
    return sum(layer.num_weights for layer in layers)


def _count(number: int, noun: str) -> str:
    return f"{number:,} {noun}" + ("" if number == 1 else "s")


def _value(value: object) -> str:
    return (
        "yes"
        if value is True
        else " ".join(f"{v:g}" for v in value)
        if isinstance(value, tuple)
        else f"{value:g}"
    )


def _moment(step: int, plan: Plan) -> str:
    return f"step {step:,} (epoch {step / max(1, plan.steps_per_epoch):.4g})"


def _window(window: Window, plan: Plan) -> str:
    stop = plan.num_steps if window.stop is None else window.stop
    if window.start == 0 and stop >= plan.num_steps:
        return "the whole run"
    epochs = (f"{step / max(1, plan.steps_per_epoch):.4g}" for step in (window.start, stop))
    return f"steps {window.start:,} to {stop:,} (epoch {' to '.join(epochs)})"
