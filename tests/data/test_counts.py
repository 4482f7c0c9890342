"""Classes are counted from labels alone, wherever a source keeps them."""

import pytest
import torch

from dcil_dsl.data import Dataset, open_dataset
from dcil_dsl.data.contents import class_counts
from dcil_dsl.data.dataset import Tensors


class Named(list):
    """A data set in the manner of torchvision's."""

    targets = [2, 0, 2]


def dataset(train):
    return Dataset("mine", train, [], ("a", "b", "c"), (0.5,), (0.5,))


def test_the_digits_have_1437_examples_to_train_on():
    counts = class_counts(open_dataset("digits"))
    assert len(counts) == 10 and sum(counts) == 1437 and min(counts) > 130


@pytest.mark.parametrize(
    "train, counts",
    [
        (Tensors(torch.zeros(3, 1, 2, 2, dtype=torch.uint8), torch.tensor([2, 0, 2])), (1, 0, 2)),
        (Named([None] * 3), (1, 0, 2)),
        ([(torch.zeros(1, 2, 2), 1)], None),
    ],
)
def test_a_class_that_never_occurs_is_counted_0_and_hidden_labels_are_not_guessed(train, counts):
    assert class_counts(dataset(train)) == counts
