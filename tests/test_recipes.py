"""Recipes for allocations, scores and methods train on the digits and keep their promise.

The network is a small one of two convolutions, and the run is two epochs long.
"""

import json
from pathlib import Path

import pytest
from safetensors.torch import load_file, save_file
from support.tiny_job import NET

import dcil_dsl as dcil
from dcil_dsl.plan.schedule import keeps_at
from dcil_dsl.zoo import build_model

RECIPES = Path(__file__).parent.parent / "recipes"
SIZES = {"0.weight": 432, "3.weight": 4608}  # the convolutions of tiny_job.NET
MEASURED = RECIPES / "allocation" / "sensitivity.prune"  # by a profile of one model
FROZEN = RECIPES / "training" / "frozen.prune"  # its first layer keeps every weight
BELOW = RECIPES / "allocation" / "below.prune"  # its sparsity is a result
OF_RESNET20 = [RECIPES / "allocation" / f"{name}.prune" for name in ("table", "at_most", "speedup")]
PATTERN = RECIPES / "schedules" / "nm24.prune"  # its target is 2:4
PATHS = [
    path
    for name in ("allocation", "scores", "training", "schedules")
    for path in sorted((RECIPES / name).glob("*.prune"))
    if path not in (MEASURED, FROZEN, PATTERN, BELOW, *OF_RESNET20)
]


def train(path, folder, **overrides):
    """The non-zero weights of each convolution in the exported file, and the run."""
    folder.mkdir(exist_ok=True)
    (folder / "net.py").write_text(NET)
    run = dcil.train(
        str(path),
        f"{folder}/net.py:Net",
        "digits",
        overrides={"train.epochs": "2ep"} | overrides,
        out=folder / "run",
        device="cpu",
        workers=0,
        warn=lambda _: None,
    )
    tensors = load_file(run.folder.weights)
    assert not [name for name in tensors if name.endswith(("_mask", "_score"))]
    return {name: int((tensors[name] != 0).sum()) for name in SIZES}, run


@pytest.mark.parametrize("path", PATHS, ids=lambda path: f"{path.parent.name}/{path.stem}")
def test_a_recipe_trains_and_its_file_has_the_zeros_it_promises(path, tmp_path):
    kept, run = train(path, tmp_path)
    assert sum(kept.values()) <= 504  # 10% of 5,040
    assert sum(kept.values()) >= 504 - len(SIZES)
    assert run.plan.groups[0].sparsity == 0.9


def test_a_recipe_of_a_measured_speed_trains_and_its_plan_names_the_machine(tmp_path):
    run = dcil.train(
        str(RECIPES / "allocation" / "speedup.prune"),
        "dcil:resnet20",
        "digits",
        overrides={"pruning.schedule": "constant()"},
        out=tmp_path / "run",
        device="cpu",
        workers=0,
        max_steps=2,
        warn=lambda _: None,
    )
    (group,) = dcil.Plan.from_json((tmp_path / "run" / "plan.json").read_text()).groups
    assert group.target.measured.startswith("AMD EPYC") and 0.8 < group.sparsity < 0.9
    tensors = load_file(run.folder.weights)
    assert sum(int((tensors[name] != 0).sum()) for name in group.parameters) == 34_735


@pytest.mark.parametrize("path", OF_RESNET20, ids=lambda path: path.stem)
def test_a_target_of_resnet20_is_resolved_for_it(path):
    plan = dcil.resolve(dcil.load(path), build_model("dcil:resnet20", 10), steps_per_epoch=23)
    kept = sum(sum(keeps_at(group, plan.num_steps)) for group in plan.groups)
    assert kept == {"at_most": 25_000, "table": 26_036, "speedup": 34_735}[path.stem]


def test_a_threshold_prunes_what_is_smaller_and_the_result_says_how_much(tmp_path):
    kept, run = train(BELOW, tmp_path, **{"pruning.refresh": "1 step"})
    result, size = run.result, sum(SIZES.values())
    assert 0 < sum(kept.values()) < size
    assert result.sparsity_measured == pytest.approx(1 - sum(kept.values()) / size)
    assert result.sparsity_asked == pytest.approx(result.sparsity_measured)
    found = dcil.verify_artefact(run.folder.path, warn=print, note=print)
    assert found and all(verdict.holds for _, verdict in found)


def test_a_pattern_that_ramps_ends_at_two_of_four(tmp_path):
    kept, run = train(PATTERN, tmp_path)
    assert kept["0.weight"] == 432 and kept["3.weight"] == 2304
    lines = [json.loads(line) for line in run.folder.metrics.read_text().splitlines()]
    assert [line["sparsity_asked"] for line in lines] == [0.25, 0.5]


def test_a_frozen_layer_keeps_every_weight_as_it_was(tmp_path):
    kept, run = train(FROZEN, tmp_path)
    assert kept["0.weight"] == 432 and 460 - 1 <= kept["3.weight"] <= 460
    weight = run.model.state_dict()["0.weight"]
    again = train(FROZEN, tmp_path / "again", **{"train.epochs": "1ep", "train.seed": "0"})[1]
    assert (again.model.state_dict()["0.weight"] == weight).all()


@pytest.mark.parametrize("method", ["late_phase", "foster", "dcil_balanced", "dcil_in_turn"])
def test_a_method_learns_and_its_file_has_the_zeros_it_promises(method, tmp_path):
    small = {"data.image_size": "8", "data.batch_size": "64", "data.augment": "[]"}
    kept, run = train(RECIPES / "methods" / f"{method}.prune", tmp_path, **small)
    assert 504 - len(SIZES) <= sum(kept.values()) <= 504
    first, last = map(json.loads, run.folder.metrics.read_text().splitlines())
    for name in first["losses"]:
        assert last["losses"][name] < first["losses"][name] or not name.startswith("cross")


def test_the_measured_recipe_prunes_the_model_that_was_measured(tmp_path):
    run = dcil.train(
        str(MEASURED),
        "dcil:resnet20",
        "digits",
        overrides={"pruning.schedule": "constant()"},
        out=tmp_path / "run",
        device="cpu",
        workers=0,
        max_steps=2,
        warn=lambda _: None,
    )
    tensors = load_file(run.folder.weights)
    (group,) = run.plan.groups
    kept = {name: int((tensors[name] != 0).sum()) for name in group.parameters}
    assert sum(kept.values()) <= sum(group.num_weights) // 10
    densities = [kept[n] / size for n, size in zip(group.parameters, group.num_weights)]
    assert max(densities) > 3 * min(densities)  # not every layer alike


@pytest.mark.parametrize("name", ["network", "mean_teacher"])
def test_a_recipe_with_a_teacher_trains_two_steps(name, tmp_path):
    trained = tmp_path / "big.safetensors"
    save_file(build_model("dcil:resnet56", 10).state_dict(), trained)
    where = {"trained": f'"{trained}"'} if name == "network" else {}
    run = dcil.train(
        str(RECIPES / "teachers" / f"{name}.prune"),
        "dcil:resnet20",
        "digits",
        overrides={"train.epochs": "2ep", "data.image_size": "8", "data.batch_size": "16"} | where,
        out=tmp_path / "run",
        device="cpu",
        workers=0,
        max_steps=2,
        warn=lambda _: None,
    )
    assert run.result.step == 2 and len(run.plan.teachers) == 1
    assert run.result.cost == pytest.approx(1 + run.plan.teachers[0].size / 3 * (name == "network"))
