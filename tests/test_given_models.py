"""What Python gives in the place of a model, of data, of a plan: modules are taken, and anything
else is an InputError that says what is wanted."""

from __future__ import annotations

import shutil

import pytest
import torch
from support.tiny_job import NET, RECIPE, call, own, short_run
from torch import nn

import dcil_dsl as dcil
from dcil_dsl.diagnostics import InputError
from dcil_dsl.zoo import build_model


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """A folder with tiny.prune, net.py and a run of two steps, run/."""
    return short_run(tmp_path_factory.mktemp("given"))


@pytest.fixture
def folder(made, tmp_path):
    return shutil.copytree(made, tmp_path / "job")


def module(folder, name="Net"):
    return build_model(f"{folder}/net.py:{name}", 10)


def state(model):
    return {name: tensor.clone() for name, tensor in model.state_dict().items()}


def same(one, other):
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


@pytest.mark.parametrize("data", ["wine", "diabetes", "digits-masks"])
def test_eval_refuses_data_that_the_model_of_the_run_does_not_take(folder, capsys, data):
    assert call("eval", folder / "run", *own(folder), "--train", data, "--device", "cpu") == 2
    err = capsys.readouterr().err
    assert "error: the model" in err and "Traceback" not in err


def test_a_run_is_evaluated_with_a_module_as_with_its_spec_and_the_module_is_not_changed(folder):
    model = module(folder)
    before = state(model)
    found = dcil.evaluate_run(folder / "run", device="cpu", model=model)
    assert found == dcil.evaluate_run(folder / "run", device="cpu", model=own(folder)[1])
    assert same(before, state(model)) and model.training


def test_a_run_and_a_file_are_exported_with_a_module_which_is_not_changed(folder):
    model, run = module(folder), folder / "run"
    before = state(model)
    wanted = torch.load(dcil.export_run(run, "pth", model=own(folder)[1]), weights_only=True)
    first = dcil.export_run(run, "pth", folder / "a.pth", model=model)
    again = dcil.export_run(folder / "a.pth", "pth", folder / "b.pth", model=model)
    for file in (first, again):
        assert same(torch.load(file, weights_only=True), wanted)
    assert dcil.compact_run(run, model=model)[0].is_dir()
    assert same(before, state(model))


def test_a_run_of_a_module_is_evaluated_with_one_and_its_advice_is_for_python_too(tmp_path):
    layers = nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.AdaptiveAvgPool2d(1), nn.Flatten()
    net = nn.Sequential(*layers, nn.Linear(8, 10))
    recipe = dcil.loads(RECIPE)
    out = tmp_path / "run"
    dcil.train(recipe, net, "synthetic", out=out, device="cpu", max_steps=1)
    with pytest.raises(InputError, match="somebody's own code") as error:
        dcil.evaluate_run(out, device="cpu")
    assert error.value.help == "name it with --model SPEC; in Python model=SPEC, or the module"
    assert dcil.evaluate_run(out, device="cpu", model=net).step == 1


def test_the_advice_for_a_run_of_a_spec_names_the_spec(folder):
    with pytest.raises(InputError) as error:
        dcil.evaluate_run(folder / "run", device="cpu")
    assert "net.py:Net; in Python model='" in error.value.help


def test_another_module_than_that_of_the_run_is_refused(folder):
    with pytest.raises(InputError, match="Sequential is not the model of"):
        dcil.evaluate_run(folder / "run", device="cpu", model=nn.Sequential(nn.Flatten()))


def small_net(num_classes):
    return nn.Sequential(nn.Conv2d(3, 8, 3), nn.Flatten(), nn.Linear(8, num_classes))


@pytest.mark.parametrize(
    "verb",
    [
        lambda run, model: dcil.resolve(dcil.loads(RECIPE), model, 20),
        lambda run, model: dcil.Pruner(dcil.loads(RECIPE), model, steps_per_epoch=20),
        lambda run, model: dcil.train(dcil.loads(RECIPE), model, "synthetic"),
        lambda run, model: dcil.evaluate_run(run, model=model),
        lambda run, model: dcil.export_run(run, "pth", model=model),
        lambda run, model: dcil.export_run(run / "sparse.safetensors", "pth", model=model),
        lambda run, model: dcil.compact_run(run, model=model),
    ],
)
def test_a_function_or_a_number_for_a_model_is_refused_in_every_verb(folder, verb):
    run = folder / "run"
    shutil.copy(run / "plan.json", folder / "plan.json")
    if not (run / "sparse.safetensors").exists():
        dcil.export_run(run, "safetensors", model=own(folder)[1])
    with pytest.raises(InputError, match="^the model is a function, `small_net`") as error:
        verb(run, small_net)
    assert error.value.help == "call it first: small_net(...)"
    with pytest.raises(InputError, match="^the model is of type int"):
        verb(run, 3)


@pytest.mark.parametrize("data", [None, [1, 2], 3])
def test_data_of_a_type_that_are_none_are_refused(folder, data):
    with pytest.raises(InputError, match="^the data are of type"):
        dcil.train(dcil.loads(RECIPE), module(folder), data)


@pytest.fixture(scope="module")
def compiled(tmp_path_factory):
    folder = tmp_path_factory.mktemp("compiled")
    (folder / "net.py").write_text(NET)
    model = module(folder)
    plan = dcil.resolve(dcil.loads(RECIPE), model, 8)
    dual = dcil.compile(plan, model)
    dual.begin_step(0)
    return plan, model, dual(torch.randn(4, 3, 32, 32))


def test_a_recipe_in_the_place_of_a_plan_is_refused(compiled):
    _, model, outputs = compiled
    with pytest.raises(InputError, match="dcil.compile takes a Plan, and this is of type str"):
        dcil.compile("small.prune", model)
    with pytest.raises(InputError, match="dcil.loss takes a Plan"):
        dcil.loss("small.prune", outputs, torch.zeros(4, dtype=torch.long), 0)


@pytest.mark.parametrize("steps", [1.5, 2.0, "3", True, None])
def test_steps_per_epoch_that_are_no_whole_number_are_refused(compiled, steps):
    with pytest.raises(InputError, match="^steps_per_epoch is .*: a whole number, at least 1$"):
        dcil.resolve(dcil.loads(RECIPE), compiled[1], steps_per_epoch=steps)


@pytest.mark.parametrize(
    "target, says",
    [
        (torch.rand(4), "the target holds numbers of type float32, and class numbers are whole"),
        ([1, 2, 3, 4], "the target is of type list, and must be a tensor"),
    ],
)
def test_targets_that_are_no_class_numbers_are_refused(compiled, target, says):
    plan, _, outputs = compiled
    with pytest.raises(InputError, match=says):
        dcil.loss(plan, outputs, target, 0)
    assert dcil.loss(plan, outputs, torch.rand(4, 10).softmax(1), 0) > 0  # shares of classes


def test_outputs_of_one_path_in_the_place_of_all_are_refused(compiled):
    plan, _, outputs = compiled
    with pytest.raises(InputError, match="the outputs are of type Tensor, and must be a dict"):
        dcil.loss(plan, outputs["sparse"], torch.zeros(4, dtype=torch.long), 0)
