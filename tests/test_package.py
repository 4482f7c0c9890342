"""The verbs of the package, as `import dcil_dsl as dcil` gives them."""

import subprocess
import sys
from pathlib import Path

import pytest
import torch
from tiny_job import NET, RECIPE, net

import dcil_dsl as dcil


@pytest.fixture
def folder(tmp_path):
    (tmp_path / "tiny.prune").write_text(RECIPE)
    (tmp_path / "net.py").write_text(NET)
    return tmp_path


def test_a_module_trains_without_being_changed(folder, tmp_path):
    model = net(folder)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    recipe = dcil.load(folder / "tiny.prune", overrides={"target": "50%"})
    run = dcil.train(recipe, model, "synthetic", out=tmp_path / "run", max_steps=2)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert type(run.model) is type(model) and not run.interrupted
    assert run.plan.groups[0].sparsity == 0.5


def test_the_verbs_of_the_package_make_a_step_by_hand(folder):
    model, x = net(folder), torch.randn(4, 3, 32, 32)
    recipe = dcil.load(folder / "tiny.prune")
    plan = dcil.resolve(recipe, model, steps_per_epoch=8, example_inputs=(x,))
    assert dcil.Plan.from_json(plan.to_json()) == plan
    assert plan.layers[0].macs == 16 * 27 * 15 * 15
    dual = dcil.compile(plan, model, example_inputs=(x,))
    dual.begin_step(0)
    outputs = dual(x)
    assert set(outputs) == {"sparse", "dense"}
    loss = dcil.loss(plan, outputs, torch.tensor([0, 1, 2, 3]), step=0)
    loss.backward()
    dual.refresh(16)
    sparse = dcil.export(dual)
    assert type(sparse) is type(model)
    assert int((sparse[3].weight != 0).sum()) + int((sparse[0].weight != 0).sum()) == 504
    assert set(sparse.state_dict()) == set(model.state_dict())


def test_export_is_a_plain_function_whatever_was_imported_before():
    code = (
        "import types, dcil_dsl.exporting.verify, dcil_dsl as dcil\n"
        "assert isinstance(dcil.export, types.FunctionType)\n"
        "from dcil_dsl import export\nassert export is dcil.export\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True, cwd=Path(__file__).parent.parent)


def test_warnings_of_a_recipe_reach_python_as_warnings(folder):
    text = RECIPE.replace("mix {", 'prune "0" to 50%\nprune Conv2d to global(target)\n\nmix {', 1)
    text = text.replace("{\n  schedule = linear(0ep..1ep)\n  refresh  = 2 steps\n}", "", 1)
    with pytest.warns(dcil.RecipeWarning, match="W303"):
        dcil.resolve(dcil.loads(text), net(folder), steps_per_epoch=8)
