"""Whole runs on the device: precisions, the scaler, a compiled run, resume, and the loader."""

import pytest
import torch

from dcil_dsl.data import Loader, open_dataset
from dcil_dsl.jobs.train import train
from dcil_dsl.lang import loads

pytestmark = pytest.mark.gpu
RECIPE = """
language 1

model resnet20 { classes = 10 }
data synthetic { batch_size = 64  image_size = 16 }

prune Conv2d to global(90%) {
  schedule = cubic(0ep..1ep)
  refresh  = 2 steps
}

mix {
  path sparse = masked
  path dense  = full
  update kept by sparse
  update pruned by dense
  private BatchNorm2d, last Linear
  loss cross_entropy(sparse)
  loss cross_entropy(dense)
  loss kl(student=sparse, teacher=dense, temperature=2) from 1ep
  deploy sparse
}

train {
  epochs    = 2ep
  optimizer = sgd(lr=0.05, momentum=0.9, nesterov=true, weight_decay=1e-4)
  lr        = cosine()
}
"""


@pytest.fixture(autouse=True)
def same_sums_every_time():
    """Else cuDNN may choose algorithms whose sums depend on the order of threads."""
    torch.backends.cudnn.deterministic = True
    yield
    torch.backends.cudnn.deterministic = False


def run(device, out, **options):
    recipe = loads(RECIPE)
    return train(recipe, "dcil:resnet20", "synthetic", out=out, device=str(device), **options)


@pytest.mark.parametrize("precision", ["fp32", "bf16", "fp16"])
def test_a_run_ends_with_the_asked_sparsity_and_finite_weights(device, tmp_path, precision):
    result = run(device, tmp_path / "run", precision=precision)
    assert result.result.step == result.plan.num_steps
    assert result.result.sparsity_measured == pytest.approx(0.9, abs=1e-4)
    for name, value in result.model.state_dict().items():
        assert value.isfinite().all(), name


def test_a_compiled_run_ends_with_the_asked_sparsity(device, tmp_path):
    torch._dynamo.reset()
    result = run(device, tmp_path / "run", precision="bf16", compile=True)
    assert result.result.sparsity_measured == pytest.approx(0.9, abs=1e-4)


@pytest.mark.parametrize("precision", ["fp32", "fp16"])
def test_a_resumed_run_has_the_weights_of_the_straight_one(device, tmp_path, precision):
    straight = run(device, tmp_path / "straight", precision=precision)
    run(device, tmp_path / "broken", precision=precision, max_steps=5)
    resumed = run(device, tmp_path / "broken", precision=precision, resume=True)
    assert resumed.result.step == straight.result.step
    others = resumed.model.state_dict()
    for name, value in straight.model.state_dict().items():
        difference = (value - others[name]).double().norm()
        assert difference <= 1e-3 * value.double().norm() + 1e-6, name


@pytest.mark.parametrize("workers", [0, 2])
def test_batches_on_the_device_are_those_on_a_cpu(device, workers):
    data = open_dataset("digits", channels=3)
    options = dict(batch_size=64, image_size=16, channels_last=True)
    there = Loader(data, "train", device=device, workers=workers, **options)
    here = Loader(data, "train", **options)
    try:
        for (images, labels), (others, expected) in zip(there.epoch(3, 20), here.epoch(3, 20)):
            assert images.device.type == labels.device.type == device.type
            assert images.is_contiguous(memory_format=torch.channels_last)
            # A CPU resizes bytes, and rounds after either direction: one level, at most.
            assert (images.cpu() - others).abs().max() <= 1.01 / 255 / min(data.std)
            assert torch.equal(labels.cpu(), expected)
    finally:
        there.close()
