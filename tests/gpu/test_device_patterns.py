"""Runs with 2:4 patterns: on sparse tensor cores where the device has them, else whole and told."""

import pytest
import torch
from support.device_patterns import RECIPE, has_cores

from dcil_dsl.jobs.train import train
from dcil_dsl.lang import loads
from dcil_dsl.zoo.networks import SmallViT

pytestmark = pytest.mark.gpu


def run(device, out, sparse="compute = kept", **options):
    torch.manual_seed(0)
    recipe = loads(RECIPE.format(sparse=sparse))
    options = dict(max_steps=4) | options
    return train(recipe, SmallViT(), "synthetic", out=out, device=str(device), **options)


@pytest.mark.parametrize("precision", ["bf16", "fp16"])
def test_halved_products_end_as_whole_ones(device, tmp_path, precision):
    if device.type == "cpu" and precision == "fp16":
        pytest.skip("a CPU trains in bf16")
    whole = run(device, tmp_path / "whole", sparse="", precision=precision)
    halved = run(device, tmp_path / "halved", precision=precision)
    (told,) = halved.result.patterns
    assert told.startswith("on sparse" if has_cores(device) else "computed in full"), told
    assert (halved.result.cost < whole.result.cost) == has_cores(device)
    others = whole.model.state_dict()
    for name, value in halved.model.state_dict().items():
        far = (value - others[name]).double().norm()
        assert far <= 0.02 * others[name].double().norm() + 1e-3, name


def test_they_go_with_checkpointed_activations(device, tmp_path):
    usual = run(device, tmp_path / "usual", precision="bf16")
    less = run(device, tmp_path / "less", precision="bf16", checkpoint_activations=True)
    assert less.result.patterns == usual.result.patterns
    others = usual.model.state_dict()
    for name, value in less.model.state_dict().items():
        far = (value - others[name]).double().norm()
        assert far <= 0.02 * others[name].double().norm() + 1e-3, name


def test_in_fp32_they_are_computed_whole_and_the_run_says_why(device, tmp_path):
    (told,) = run(device, tmp_path / "fp32", precision="fp32").result.patterns
    assert told.startswith("computed in full, with the same result: 2:4 of blocks.0.mlp.0")
    if has_cores(device):
        assert told.endswith("sparse tensor cores take bf16 and fp16, not float32")
