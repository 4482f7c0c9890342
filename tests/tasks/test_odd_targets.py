"""Targets as other people store them: read as they are meant, or refused with their place."""

from __future__ import annotations

import pytest
import torch
from safetensors.torch import load_file
from torch import nn

import dcil_dsl as dcil
from dcil_dsl.data.dataset import Dataset
from dcil_dsl.data.examples import ExampleLoader
from dcil_dsl.data.loader import Loader
from dcil_dsl.diagnostics import InputError
from dcil_dsl.model.inputs import Inputs, doubled

RECIPE = """language 1
recipe r { title = "pixels" }
data mine { batch_size = 2 }
prune Conv2d to 50% { refresh = 1 steps }
mix {
  path sparse = masked
  path dense  = full
  update kept by sparse
  update pruned by dense
  loss cross_entropy(sparse)
  loss cross_entropy(dense)
  deploy sparse
}
train { epochs = 1ep  optimizer = sgd(lr=0.1) }
"""
SCALE = {"mean": (0.5,) * 3, "std": (0.5,) * 3}


class Pixels(nn.Module):
    def __init__(self):
        super().__init__()
        self.stem = nn.Conv2d(3, 4, 3, padding=1)
        self.head = nn.Conv2d(4, 2, 1)

    def forward(self, x):
        return self.head(self.stem(x).relu())


def trained(folder, masks, val=None):
    torch.manual_seed(0)
    images = torch.rand(len(masks), 3, 8, 8)
    parts = [list(zip(images, part)) for part in (masks, masks if val is None else val)]
    data = Dataset("mine", *parts, task="segmentation")
    model = Pixels()
    return dcil.train(RECIPE, model, data, out=folder, device="cpu", quiet=True, workers=0)


def test_class_numbers_of_every_whole_type_give_one_training(tmp_path):
    masks = torch.randint(0, 2, (6, 8, 8), generator=torch.Generator().manual_seed(0))
    tensors = []
    for kind in (torch.int64, torch.int32, torch.uint8, torch.bool):
        trained(tmp_path / str(kind), masks.to(kind))
        tensors.append(load_file(tmp_path / str(kind) / "sparse.safetensors"))
    for other in tensors[1:]:
        for name, value in tensors[0].items():
            assert torch.equal(value, other[name]), name


@pytest.mark.parametrize("odd", [255, -1, 2])
def test_a_class_number_that_a_later_batch_has_alone_is_reported_with_its_step(tmp_path, odd):
    masks = torch.zeros(6, 8, 8, dtype=torch.long)
    masks[5, 3, 3] = odd
    with pytest.raises(InputError) as error:
        trained(tmp_path / "run", masks, torch.zeros_like(masks))
    assert f"the class number {odd}, which the model does not have" in str(error.value)
    assert "a batch at step " in str(error.value)
    with pytest.raises(InputError, match=f"the data has a class number {odd}, counted from 0"):
        trained(tmp_path / "held-out", torch.zeros_like(masks), masks)


def test_a_label_other_than_0_and_1_is_refused_by_the_number_of_its_example():
    items = [(torch.rand(4), torch.tensor([1.0, 0, row == 6 and 2])) for row in range(8)]
    data = Dataset("mine", items, items, task="multi-label")
    with pytest.raises(InputError, match="example 6 of mine: its targets hold numbers other than"):
        list(ExampleLoader(data, "val", batch_size=4).epoch(0))


@pytest.mark.parametrize(
    "given, item, said",
    [
        ({}, (torch.zeros(3, 8, 8, dtype=torch.uint8), 0), "the `mean` and `std` of each channel"),
        (SCALE, (torch.zeros(3, 8, 8, dtype=torch.uint8), 0), "give its Dataset the names"),
        (SCALE, (torch.zeros(3, 8, 8, dtype=torch.uint8), 0, 1), "and this is a tuple of 3"),
    ],
)
def test_images_of_an_unfinished_data_set_are_refused_with_what_it_needs(given, item, said):
    data = Dataset("mine", [item] * 4, [item] * 4, **given)
    with pytest.raises(InputError) as error:
        list(Loader(data, "val", batch_size=2).epoch(0))
    assert said in f"{error.value.message} {error.value.help}"


def test_a_list_of_one_image_is_doubled_for_norms_that_need_two_values():
    image, target = torch.rand(3, 8, 8), {"boxes": torch.rand(1, 4)}
    twice = doubled(Inputs(([image], [target])))
    assert [len(part) for part in twice.args] == [2, 2]
    assert twice.args[0][1] is image and twice.args[1][1] is target
