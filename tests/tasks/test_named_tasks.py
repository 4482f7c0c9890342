"""Each named task with its recipe: every verb works, and the metrics are the task's."""

import json

import pytest
from support.library import needed
from support.tiny_job import call
from support.verbs import all_verbs, metrics_of

# A run that --max-steps cuts short is not judged by `expect`.
FEW = ("--set", "pruning.schedule=once(at=1 steps)", "--set", "data.batch_size=8")
FEW += ("--max-steps", "2")
OF_TABLES = [("breast_cancer", "breast-cancer"), ("wine", "wine"), ("digits", "digits-table")]


@pytest.mark.parametrize("recipe, data", OF_TABLES)
def test_every_verb_works_on_a_table(recipe, data, tmp_path):
    run, profile = all_verbs(f"dcil:tables/{recipe}", "dcil:mlp", data, tmp_path, *FEW)
    assert "top1" in metrics_of(run)["sparse"] and profile["metric"] == "top1"


def test_every_verb_works_on_several_labels(tmp_path):
    args = ("dcil:scenes/labels", "dcil:resnet20", "digits-labels", tmp_path)
    run, profile = all_verbs(*args, *FEW)
    assert set(metrics_of(run)["sparse"]) == {"f1", "label_accuracy", "exact_match"}
    assert profile["metric"] == "f1"


def test_every_verb_works_on_a_segmentation(tmp_path):
    model = "torchvision:lraspp_mobilenet_v3_large"
    run, profile = all_verbs("dcil:scenes/masks", model, "digits-masks", tmp_path, *FEW)
    assert set(metrics_of(run)["sparse"]) == {"miou", "pixel_accuracy"}
    assert profile["metric"] == "miou"


def test_every_verb_works_on_a_detection(tmp_path):
    needed("pycocotools")
    args = ("dcil:scenes/boxes", "dcil:small_fcos", "digits-boxes", tmp_path)
    run, profile = all_verbs(*args, *FEW)
    assert set(metrics_of(run)["sparse"]) == {"map", "map50"}
    assert profile["metric"] == "map"


def test_every_verb_works_on_a_physics_informed_network(tmp_path):
    args = ("dcil:physics/poisson", "dcil:poisson", "poisson", tmp_path)
    run, profile = all_verbs(*args, *FEW)
    assert set(metrics_of(run)["sparse"]) == {"relative_l2"}
    assert profile["metric"] == "relative_l2" and profile["score"] > 0
    line = json.loads((run / "metrics.jsonl").read_text().splitlines()[-1])
    names = {f"model(sparse, {term})" for term in ("residual", "boundary", "data")}
    assert set(line["losses"]) == names


@pytest.mark.parametrize("name", ["balanced", "powerprop", "implicit"])
def test_the_rules_for_physics_informed_networks_take_their_steps(name, tmp_path):
    given = ["--model", "dcil:poisson", "--train", "poisson", "--device", "cpu"]
    assert call("compile", f"dcil:physics/{name}", *given, *FEW, "--out", tmp_path / "run") == 0
    (line,) = map(json.loads, (tmp_path / "run" / "metrics.jsonl").read_text().splitlines())
    assert line["step"] == 2 and line["relative_l2"]["sparse"] > 0


def test_detection_without_pycocotools_is_refused_before_the_first_step(
    tmp_path, capsys, monkeypatch
):
    monkeypatch.setattr("dcil_dsl.tasks.detection.is_installed", lambda name: False)
    given = ["--model", "dcil:small_fcos", "--train", "digits-boxes", "--device", "cpu"]
    assert call("compile", "dcil:scenes/boxes", *given, *FEW, "--out", tmp_path / "run") == 2
    assert "dcil-dsl[detection]" in capsys.readouterr().err


@pytest.mark.parametrize(
    "data, loss, fact",
    [
        ("digits-labels", "cross_entropy", "classes that exclude each other"),
        ("digits-masks", "mse", "the targets here are classes of pixels"),
        ("digits-boxes", "cross_entropy", "returns its losses alone"),
        ("poisson", "mse", "returns its losses alone"),
    ],
)
def test_a_loss_without_a_meaning_for_the_task_is_refused(data, loss, fact, tmp_path, capsys):
    recipe = tmp_path / "x.prune"
    recipe.write_text(
        f"language 1\nmix {{ path a = full  loss {loss}(a)  deploy a }}\n"
        "train { epochs = 1ep  optimizer = sgd(lr=0.1) }\n"
    )
    assert call("compile", recipe, "--model", "dcil:mlp", "--train", data) == 2
    assert fact in capsys.readouterr().err
