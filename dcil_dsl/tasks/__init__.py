"""Tasks: what stands between the batches of a loader and the loss.

In:   a batch, whatever its structure.
Out:  the model's inputs, the targets, the metrics.
Not:  no data are read (data/), nothing is trained (training/).

To add a task, subclass Task and add it to TASKS; its metrics are records of words/metrics.py.
"""

from __future__ import annotations

from dcil_dsl.diagnostics import InputError
from dcil_dsl.diagnostics.suggest import nearest
from dcil_dsl.tasks.classification import Classification, ImageClassification
from dcil_dsl.tasks.detection import Detection
from dcil_dsl.tasks.embedding import Embedding
from dcil_dsl.tasks.language import LanguageModelling
from dcil_dsl.tasks.multi_label import MultiLabel
from dcil_dsl.tasks.own_loss import OwnLoss
from dcil_dsl.tasks.physics import Physics
from dcil_dsl.tasks.regression import Regression
from dcil_dsl.tasks.segmentation import Segmentation
from dcil_dsl.tasks.task import Task

__all__ = ["IMAGES", "TASKS", "Task", "task_of"]

IMAGES = ImageClassification()
TASKS: dict[str, Task] = {
    task.name: task
    for task in (
        IMAGES,
        Classification(),
        MultiLabel(),
        Segmentation(),
        Detection(),
        Regression(),
        LanguageModelling(),
        Embedding(),
        OwnLoss(),
        Physics(),
    )
}


def task_of(name: str) -> Task:
    """The task of this name. InputError where there is none."""
    if name not in TASKS:
        near = nearest(name, list(TASKS))
        hint = f"did you mean `{near}`?" if near else f"the tasks are {', '.join(TASKS)}"
        raise InputError(f"there is no task `{name}`", hint)
    return TASKS[name]
