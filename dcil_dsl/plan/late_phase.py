"""Which weights get copies late in the run, and from which step on.

In:   `average` of the recipe, the layers of the model, the rules' groups.
Out:  the word with its parameters; E322 where the copies have no meaning there.
Not:  what is done with the copies (training/late_phase.py).
"""

from __future__ import annotations

from torch import nn

from dcil_dsl.diagnostics import Diagnostics
from dcil_dsl.diagnostics.counting import count
from dcil_dsl.lang import recipe as r
from dcil_dsl.plan import plan as p
from dcil_dsl.plan.select import Selection
from dcil_dsl.words.averages import LatePhase
from dcil_dsl.words.word import Run


def resolve_late_phase(
    average: r.Average | None,
    model: nn.Module,
    selection: Selection,
    groups: tuple[p.Group, ...],
    run: Run,
    report: Diagnostics,
) -> LatePhase | None:
    """The part of the Plan, with the parameters by their names in the model, each once."""
    if average is None:
        return None
    word = average.word.in_steps(run)
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    chosen = dict.fromkeys(
        names[id(parameter)]
        for layer in selection.select(average.selector)
        for parameter in layer.module.parameters()
    )
    pruned = {name for group in groups for name in group.parameters}
    num_left = run.num_steps - word.start.step
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
    elif num_left < word.copies:
        report.add(
            "E322",
            f"the late phase has {count(max(0, num_left), 'step')}, and a round of copies "
            f"takes {word.copies}",
            average.span,
            help="begin earlier, `start=50% run`, or take fewer `copies`",
        )
    return word.model_copy(update={"parameters": tuple(chosen)})
