"""What the shipped recipes for whole filters, channels and heads leave is really removed."""

from pathlib import Path

import pytest
import torch
from support.zeroed import enliven, numel

import dcil_dsl as dcil
from dcil_dsl.zoo import build_model

KINDS = Path(__file__).parents[3] / "recipes" / "kinds"


@pytest.mark.parametrize(
    "kind, spec, most",
    [
        ("filters", "dcil:resnet20", 0.9),
        ("channels", "dcil:resnet20", 0.9),
        ("heads", "dcil:small_vit", 0.95),
    ],
)
def test_a_recipe_for_whole_units_makes_a_smaller_network_at_its_end(kind, spec, most):
    torch.manual_seed(0)
    model = enliven(build_model(spec, 10, {"num_channels": 1}))
    recipe = dcil.load(KINDS / f"{kind}.prune")
    plan = dcil.resolve(recipe, model, steps_per_epoch=4)
    dual = dcil.compile(plan, model)
    dual.refresh(plan.num_steps - 1)
    sparse = dcil.export(dual)
    images = torch.randn(2, 1, 16, 16)
    result = dcil.compact(sparse, (images,), num_inputs=3)
    assert result.difference < 1e-5
    assert numel(result.model) < most * numel(model)
    torch.testing.assert_close(result.model(images), sparse.eval()(images), rtol=1e-4, atol=1e-4)
