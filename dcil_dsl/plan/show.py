"""Print a Plan: what `dcil plan` shows and golden files hold.

In:   a Plan, and the page it is printed on.
Out:  text no wider than the page, the same for the same Plan.
Not:  no decisions and no measured numbers; exporting/report.py reports what became of it. The parts
      stand in show_layers.py, show_groups.py and show_training.py.
"""

from __future__ import annotations

from textwrap import wrap

from dcil_dsl.diagnostics.counting import count
from dcil_dsl.plan.cost import bound, training_cost
from dcil_dsl.plan.plan import Plan
from dcil_dsl.plan.show_groups import group_line, show_curves, show_groups
from dcil_dsl.plan.show_layers import show_apart, show_layers
from dcil_dsl.plan.show_training import (
    cost_elsewhere,
    show_expectations,
    show_losses,
    show_phases,
    show_privates,
    show_training,
)
from dcil_dsl.plan.wording import PLAIN, Page, fit, shorten


def show_plan(plan: Plan, page: Page = PLAIN) -> str:
    """The whole plan: head, layers, groups, private modules, phases, losses, training."""
    parts = [
        _head(plan, page),
        show_layers(plan, page),
        show_apart(plan, page),
        show_groups(plan, page),
        show_curves(plan, page),
        show_privates(plan, page),
        show_phases(plan),
        show_losses(plan),
        show_training(plan, page),
        show_expectations(plan),
    ]
    return fit("\n\n".join(part for part in parts if part), page.width) + "\n"


def show_summary(plan: Plan, page: Page = PLAIN) -> str:
    """What a person wants to see before a run starts, in a few lines."""
    pruned = [layer for layer in plan.layers if layer.group is not None]
    weights, total = (sum(layer.num_weights for layer in some) for some in (pruned, plan.layers))
    lines = [
        _head(plan, page),
        f"prunes   {len(pruned)} of {count(len(plan.layers), 'layer')}, {weights:,} of "
        f"{count(total, 'weight')}",
    ]
    lines += [f"         {group_line(plan, group)}" for group in plan.groups]
    if plan.privates:
        lines.append(f"private  {count(len(plan.privates), 'module')}, one for each path")
    lines.append(f"cost     {training_cost(plan):.2f} dense runs of arithmetic, {bound(plan)}")
    lines += [f"         {line}" for line in cost_elsewhere(plan)]
    return fit("\n".join(lines), page.width) + "\n"


def _head(plan: Plan, page: Page) -> str:
    about = plan.recipe
    lines = [f"recipe   {about.name}" + (f" {about.version}" if about.version else "")]
    lines += [f"         {line}" for line in wrap(about.title or "", page.width - 9)]
    if about.overrides:
        settings = ", ".join(f"{name}={value}" for name, value in sorted(about.overrides.items()))
        lines += [
            f"{'set' if not i else '':8} {line}"
            for i, line in enumerate(wrap(settings, page.width - 9))
        ]
    classes = ""
    if plan.model.classes is not None:
        classes = f", {count(plan.model.classes, 'class', 'classes')}"
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
        f"run      {count(plan.train.num_epochs, 'epoch')} of "
        f"{count(plan.steps_per_epoch, 'step')} = {count(plan.num_steps, 'step')}"
    )
    return "\n".join(shorten(line, page.width) for line in lines)
