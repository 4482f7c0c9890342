"""Filters to ties: which filters of a rule go together, and which of them cannot go.

In:   a rule's weights, the coupling of the model's outputs, who owns every other weight.
Out:  the ties of a Group, each with units of one kind, in the order of use; E324 where an example
      input is missing.
Not:  no budget (allocate.py).

A unit is the filters of one channel. It is bound where something else writes the same channel, a
kept layer or one of another rule, or where the channel cannot go: it is returned, or meets an
operation that the graph of dependencies has no rule for. Weights that the graph does not show have
a unit for each filter.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field

from dcil_dsl.diagnostics import Diagnostics
from dcil_dsl.diagnostics.counting import count
from dcil_dsl.lang import recipe as r
from dcil_dsl.model.channels.coupling import Coupling, Uncoupled, couple_outputs
from dcil_dsl.model.layers import Weight
from dcil_dsl.model.trace import Traced
from dcil_dsl.plan import plan as p
from dcil_dsl.words.granularity import Filter

ALONE = "it is the only unit that they have"


@dataclass
class Ties:
    """The coupling of one model, found when the first rule asks for it.

    whose  for each weight that can be pruned what decides about it, as a reason: "`conv1` is kept"
    """

    traced: Traced
    owner: Mapping[str, int]
    whose: Mapping[str, str]
    _known: Coupling | Uncoupled | None = field(default=None, repr=False)

    def of(
        self, rule: r.PruneRule, index: int, weights: Sequence[Weight], report: Diagnostics
    ) -> tuple[p.Tie, ...] | None:
        """The ties of a rule; () where each of its filters is a unit, None after E324."""
        unit = rule.target.pattern or rule.granularity
        if not isinstance(unit, Filter) or unit.ties is None:
            return ()
        span = rule.at("granularity", "target")
        coupling = self._coupling()
        if isinstance(coupling, Uncoupled):
            off = "`granularity = filter(ties = none)` prunes each filter alone"
            if coupling.needs_example:
                report.add(
                    "E324",
                    f"which filters are tied is not known: {coupling}",
                    span,
                    help="an example input shows them: `image_size` in `data`, or "
                    f"`example_inputs`; {off}",
                )
                return None
            report.add("W307", f"no filters are tied: {coupling}", span, help=off)
            return ()
        others = {name: why for name, why in self.whose.items() if self.owner.get(name) != index}
        return tie_filters(weights, coupling, others)

    def _coupling(self) -> Coupling | Uncoupled:
        if self._known is None:
            try:
                self._known = couple_outputs(self.traced)
            except Uncoupled as reason:
                self._known = reason
        return self._known


def tie_filters(
    weights: Sequence[Weight], coupling: Coupling, others: Mapping[str, str]
) -> tuple[p.Tie, ...]:
    """Ties of these weights.

    others  weights that this rule does not own, with what decides about them
    """
    bound = dict(coupling.fixed)
    for name, reason in others.items():
        if name in coupling.channels:
            for channel in coupling.channels[name].tolist():
                bound.setdefault(channel, reason)
    filters: dict[int, dict[str, list[int]]] = {}
    unseen = -1  # numbers for filters that the graph does not show
    for weight in weights:
        outputs = weight.shape[weight.out_axis] * (weight.groups if weight.out_axis == 1 else 1)
        known = coupling.channels.get(weight.name)
        channels = range(unseen, unseen - outputs, -1) if known is None else known.tolist()
        unseen -= outputs
        for index, channel in enumerate(channels):
            filters.setdefault(channel, {}).setdefault(weight.name, []).append(index)
    alike: dict[tuple[object, ...], list[int]] = {}
    for channel, own in filters.items():
        make = tuple((name, len(indices)) for name, indices in own.items())
        alike.setdefault((make, bound.get(channel, "")), []).append(channel)
    return tuple(
        _tie([filters[channel] for channel in channels], str(reason))
        for (_, reason), channels in alike.items()
    )


def warn_of_bound(rule: r.PruneRule, group: p.Group, report: Diagnostics) -> None:
    """W307 where some filters of a rule cannot go, E325 where none can."""
    reasons: dict[str, list[p.Tie]] = {}
    for tie in group.ties:
        if tie.bound:
            reasons.setdefault(tie.bound, []).append(tie)
    if not reasons:
        return
    span = rule.at("granularity", "target")
    bound = [part for own in reasons.values() for tie in own for part in tie.parts]
    names = dict.fromkeys(part.parameter for part in bound)
    filters = count(sum(part.num_filters for part in bound), "filter")
    first, more = next(iter(reasons)), len(reasons) - 1
    label = first + (f", and {count(more, 'more reason')}" if more else "")
    if len(reasons) and all(tie.bound for tie in group.ties):
        report.add(
            "E325",
            f"no filter of this rule can go: all {filters} are bound",
            span,
            label=label,
            help="`granularity = filter(ties = none)` prunes each filter alone",
        )
        return
    report.add(
        "W307",
        f"{filters} of {count(len(names), 'layer')} are bound and stay",
        span,
        label=label,
        help="`dcil plan` lists them; `granularity = filter(ties = none)` prunes each alone",
    )


def _tie(units: Sequence[Mapping[str, list[int]]], bound: str) -> p.Tie:
    parts = tuple(
        p.Tied(parameter=name, filters=_runs(i for unit in units for i in unit[name]))
        for name in units[0]
    )
    alone = len(units) == 1 and not bound
    return p.Tie(num_units=len(units), parts=parts, bound=ALONE if alone else bound)


def _runs(indices: Iterable[int]) -> tuple[p.Stretch, ...]:
    """Whole numbers as runs of one step each."""
    runs: list[p.Stretch] = []
    for index in indices:
        if runs:
            first, length, step = runs[-1]
            if length == 1 or index == first + length * step:
                runs[-1] = p.Stretch(first, length + 1, index - first if length == 1 else step)
                continue
        runs.append(p.Stretch(index, 1, 1))
    return tuple(runs)
