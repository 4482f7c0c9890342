"""How many training examples each class has.

In:   a Dataset.
Out:  counts by class index.
Not:  no image is read: a source that does not keep its labels beside its images cannot tell.
"""

from __future__ import annotations

import torch

from dcil_dsl.data.dataset import Dataset


def class_counts(dataset: Dataset) -> tuple[int, ...] | None:
    """One count for each of dataset.classes, 0 where a class never occurs; None where the labels
    are not known.

    They are `labels` (data in memory), `label` (shards), or `targets` as torchvision's data sets
    have them: class numbers by example.
    """
    for name in ("labels", "label", "targets"):
        labels = getattr(dataset.train, name, None)
        if labels is None:
            continue
        labels = torch.as_tensor(labels)
        if labels.dim() == 1 and not labels.is_floating_point():
            return tuple(torch.bincount(labels, minlength=len(dataset.classes)).tolist())
    return None
