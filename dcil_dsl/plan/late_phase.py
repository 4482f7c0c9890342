"""Which weights get copies late in the run, and from which step on.

In:   `average` of the recipe, the layers of the model, the rules' groups.
Out:  LatePhase, a part of the Plan; E322 where the copies have no meaning there.
Not:  what is done with the copies (training/late_phase.py).
"""

from __future__ import annotations

from torch import nn

from dcil_dsl.diagnostics import Diagnostics
from dcil_dsl.diagnostics.counting import count
from dcil_dsl.lang import recipe as r
from dcil_dsl.plan import plan as p
from dcil_dsl.plan.select import Selection


def resolve_late_phase(
    average: r.Average | None, model: nn.Module, selection: Selection,
    groups: tuple[p.Group, ...], steps_per_epoch: int, num_steps: int, report: Diagnostics,
) -> p.LatePhase | None:  # fmt: skip
    """The part of the Plan, with the parameters by their names in the model, each once."""
    if average is None:
        return None
    word = average.word
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    chosen = dict.fromkeys(
        names[id(parameter)]
        for layer in selection.select(average.selector)
        for parameter in layer.module.parameters()
    )
    pruned = {name for group in groups for name in group.parameters}
    start = word.start.to_steps(steps_per_epoch, num_steps)
    if not chosen:
        report.add("E322", f"the layers of `{word.layers}` have no weights to copy", average.span)
    elif both := next((name for name in chosen if name in pruned), None):
        report.add(
            "E322",
            f"`{both}` is pruned, and its copies would need masks of their own",
            average.span,
            help="copy what no rule prunes, for example `layers norms = BatchNorm2d`",
        )
    elif len(chosen) == len(names):
        report.add(
            "E322", f"`{word.layers}` is all weights, so that none would be shared", average.span
        )
    elif num_steps - start < word.copies:
        report.add(
            "E322",
            f"the late phase has {count(max(0, num_steps - start), 'step')}, and a round of copies "
            f"takes {word.copies}",
            average.span,
            help="begin earlier, `start=50% run`, or take fewer `copies`",
        )
    return p.LatePhase(
        parameters=tuple(chosen),
        copies=word.copies,
        start=start,
        noise=word.noise,
        gradients=word.gradients,
    )
