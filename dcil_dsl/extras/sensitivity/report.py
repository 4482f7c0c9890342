"""Draw a measured profile, and write the rules that follow from it.

In:   a Profile, and the page.
Out:  the table of `dcil sensitivity` with its bars; statements that can be pasted into a recipe.
Not:  nothing is measured; least_loss.py divides the budget.
"""

from __future__ import annotations

from pathlib import Path

from dcil_dsl.diagnostics.counting import count
from dcil_dsl.extras.sensitivity.least_loss import Infeasible, interpolate, least_loss
from dcil_dsl.extras.sensitivity.profile import LayerProfile, Profile
from dcil_dsl.plan.schedule import whole_units
from dcil_dsl.plan.show import short_name
from dcil_dsl.plan.text import PLAIN, Page, bar, fit, named_table, percent
from dcil_dsl.words.metrics import METRICS, metric_text

SHORTEST_BAR = 8
RULE_WIDTH = 96  # columns of the rules, whatever the page: they go into a file


def show_measured(profile: Profile, target: float, file: Path | None, page: Page = PLAIN) -> str:
    """The table, and what to do with it: rules for `target`, or the profile in `file`."""
    text = show_profile(profile, target, page) + "\n"
    if not _open_to_rules(profile):
        return text + "no rules: each layer that was measured is private to the paths\n"
    try:
        rules = suggest_rules(profile, target)
    except Infeasible as error:
        total = sum(layer.num_weights for layer in _open_to_rules(profile))
        most = percent(int(1000 * error.most / total) / 1000)
        return text + (
            f"no rules for {percent(target)}: at the highest level that was measured {most} go\n"
        )
    text += f"rules for {percent(target)}, to paste into a recipe:\n\n{rules}"
    if file is not None:
        text += (
            f"\nor, with the profile in {file}, over the layers that a rule selects:\n\n"
            f'prune ... to sensitivity({percent(target)}, profile="{file}")\n'
        )
    return text


def show_profile(profile: Profile, target: float, page: Page = PLAIN) -> str:
    """The profile, one row per layer; bars show the level nearest to `target`.

    Levels that do not fit on the page are left out, the lowest first; --json has them all.
    """
    marked = min(range(len(profile.levels)), key=lambda i: abs(profile.levels[i] - target))
    level = percent(profile.levels[marked])
    part = "held-out" if profile.part == "val" else "training"
    lines = [
        f"{profile.model} on {count(profile.num_examples, f'{part} example')} of {profile.data}, "
        f"{count(profile.num_batches, 'batch', 'batches')}",
        f"weights: {profile.weights or 'FRESH, not trained'}",
        f"unpruned: loss {profile.loss:.4f}, {_name(profile)} "
        f"{metric_text(profile.metric, profile.score, '.2%')}",
        "each layer pruned alone, magnitude masks made once, nothing trained after",
    ]
    lines += [
        "",
        "columns of percentages: by how much the loss rises when that share of the layer is zero",
        f"last column: the change of {_name(profile)} at {level}{_unit(profile)}; "
        f"bar: the rise of the loss at {level}",
    ]
    head = fit("\n".join(lines), page.width)
    return "\n".join([head, "", *_rows(profile, marked, page)]) + "\n"


def _rows(profile: Profile, marked: int, page: Page) -> list[str]:
    largest = max((layer.losses[marked] for layer in profile.layers), default=0.0)
    names = ["layer", *(short_name(layer.parameter) for layer in profile.layers)]
    longest = max(map(len, names))
    name_room = min(longest, max(16, page.width // 3))
    shown = list(range(len(profile.levels)))
    while True:
        header = ("layer", "weights", *(percent(profile.levels[i]) for i in shown), _name(profile))
        rows = [
            (
                short_name(layer.parameter),
                f"{layer.num_weights:,}",
                *(_nats(layer.losses[i]) for i in shown),
                _change(profile, layer.scores[marked]),
            )
            for layer in profile.layers
        ]
        lines = named_table(header, rows, "l" + "r" * (len(header) - 1), name_room, page)
        width = max(len(line[-1]) for line in lines)
        left_out = next((i for i in shown if i != marked), None)
        if page.width - width - 2 >= SHORTEST_BAR or left_out is None:
            break
        shown.remove(left_out)
    room = min(40, max(SHORTEST_BAR, page.width - width - 2))
    drawn = [*lines[0]]
    for (*name, line), layer in zip(lines[1:], profile.layers, strict=True):
        share = layer.losses[marked] / largest if largest > 0 else 0.0
        drawn += [*name, f"{line:{width}}  {bar(share, room, page.unicode)}".rstrip()]
    return drawn


def suggest_rules(profile: Profile, target: float) -> str:
    """`prune` and `keep` lines that take `target` of all measured weights that are not private.

    Raises Infeasible where the profile was not measured that far. Each layer's share
    is what least_loss gave it, rounded up to a tenth of a percent; at least one weight stays.
    """
    layers = _open_to_rules(profile)
    sizes = [layer.num_weights for layer in layers]
    curves = [profile.curve(layer.parameter) for layer in layers]
    num_keep = whole_units(sum(sizes) * (1 - target))
    keeps = least_loss(sizes, curves, num_keep, [1] * len(sizes))
    kept: dict[str, int] = {}
    size_of: dict[str, int] = {}
    least: dict[str, int] = {}  # its smallest weight, of which one entry stays
    for layer, keep in zip(layers, keeps, strict=True):  # an LSTM has several weights
        kept[layer.module] = kept.get(layer.module, 0) + keep
        least[layer.module] = min(least.get(layer.module, layer.num_weights), layer.num_weights)
        size_of[layer.module] = size_of.get(layer.module, 0) + layer.num_weights
    shares = {
        module: min(_tenths(keep, size_of[module]), int(1000 * (1 - 1 / least[module])))
        for module, keep in kept.items()
    }
    left = sum(whole_units(size_of[m] * (1 - share / 1000)) for m, share in shares.items())
    expected = sum(
        interpolate(curve, 1 - keep / size)
        for size, curve, keep in zip(sizes, curves, keeps, strict=True)
    )
    lines = [
        f"# {percent(round(1 - left / sum(sizes), 3))} of {sum(sizes):,} weights; the layers' own "
        f"loss increases add up to {expected:.4g}."
    ]
    for modules, share in _in_order(shares):
        statement = f"prune {{}} to {percent(share / 1000)}" if share else "keep  {}"
        lines.append(statement.format(_selector(modules)))
    return "\n".join(lines) + "\n"


def _open_to_rules(profile: Profile) -> list[LayerProfile]:
    return [layer for layer in profile.layers if not layer.private]


def _in_order(shares: dict[str, int]) -> list[tuple[list[str], int]]:
    """Modules with one share together; but a name also selects what lies inside, so a module
    that has others inside comes first and alone, that the last rule be its insides' own."""
    outer = [m for m in shares if any(other.startswith(f"{m}.") for other in shares)]
    together: dict[int, list[str]] = {}
    for module, share in shares.items():
        if module not in outer:
            together.setdefault(share, []).append(module)
    rules = [([module], shares[module]) for module in outer]
    return rules + [(modules, share) for share, modules in sorted(together.items())]


def _selector(modules: list[str]) -> str:
    """ "a", "b", in lines of their own where one is not enough."""
    lines, line = [], ""
    for module in modules:
        name = f'"{module}"'
        if line and 6 + len(line) + 2 + len(name) + 12 > RULE_WIDTH:
            lines.append(f"{line},")
            line = name
        else:
            line = f"{line}, {name}" if line else name
    return "\n      ".join([*lines, line])


def _tenths(keep: int, size: int) -> int:
    """The roundest sparsity, in tenths of a percent, that leaves `keep` weights or just fewer."""
    tenths = max(0, int(1000 * (size - keep - 1) / size))
    while whole_units(size * (1 - tenths / 1000)) > keep:
        tenths += 1
    left = whole_units(size * (1 - tenths / 1000))
    alike = [t for t in range(tenths, 1000) if whole_units(size * (1 - t / 1000)) == left]
    return next((t for unit in (100, 50, 10, 5) for t in alike if t % unit == 0), tenths)


def _name(profile: Profile) -> str:
    return "top-1" if profile.metric == "top1" else profile.metric


def _unit(profile: Profile) -> str:
    return ", in percentage points" if METRICS[profile.metric].is_share else ""


def _change(profile: Profile, change: float) -> str:
    return f"{100 * change:+.1f}" if METRICS[profile.metric].is_share else f"{change:+.4g}"


def _nats(loss: float) -> str:
    return f"{loss:.3f}" if abs(loss) < 10 else f"{loss:.1f}" if abs(loss) < 1000 else f"{loss:.2g}"
