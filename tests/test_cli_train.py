"""The main job from end to end on synthetic images, and every verb on the run that it leaves."""

import json
import shutil
import signal
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from support.tiny_job import RECIPE, call, job, net, own, whole_run

import dcil_dsl as dcil
from dcil_dsl.exporting.exporters import exporter_for
from dcil_dsl.training.progress import Display


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """tiny.prune, net.py, and `run`: the main job, done once for the module."""
    return whole_run(tmp_path_factory.mktemp("job"))


@pytest.fixture
def run(folder, tmp_path):
    """A copy of the run, to do harm to."""
    return Path(shutil.copytree(folder / "run", tmp_path / "run"))


def test_the_run_folder_holds_every_file_of_the_contract(folder):
    for name in (
        "recipe.prune",
        "resolved.prune",
        "plan.json",
        "metrics.jsonl",
        "checkpoint",
        "sparse.safetensors",
        "report.json",
    ):
        assert (folder / "run" / name).exists(), name
    assert (folder / "run" / "recipe.prune").read_text() == RECIPE
    assert len((folder / "run" / "metrics.jsonl").read_text().splitlines()) == 2


def test_the_report_states_result_recipe_seed_versions_device_and_cost(folder):
    report = json.loads((folder / "run" / "report.json").read_text())
    assert report["complete"] and report["result"]["step"] == 16
    assert report["result"]["num_kept"] == 504  # 10 % of 432 + 4608
    assert report["recipe"]["name"] == "tiny" and len(report["recipe"]["sha256"]) == 64
    assert report["seed"] == 0 and report["device"]["type"] == "cpu"
    assert report["versions"]["torch"] == torch.__version__
    assert report["training_cost"] == 2.0
    assert report["device"]["peak_memory_bytes"] is None  # a CPU does not count
    assert report["expect"] == [{"text": "sparsity >= 89%", "measured": 0.9, "holds": True}]


def test_the_exported_file_loads_strictly_and_its_zeros_are_those_asked_for(folder):
    tensors = load_file(folder / "run" / "sparse.safetensors")
    model = net(folder)
    model.load_state_dict(tensors, strict=True)
    nonzero = sum(int((tensors[name] != 0).sum()) for name in ("0.weight", "3.weight"))
    assert nonzero == 504


def test_eval_gives_the_accuracy_of_the_report_on_both_paths(folder, capsys):
    report = json.loads((folder / "run" / "report.json").read_text())
    for path in ("sparse", "dense"):
        assert call("eval", folder / "run", "--path", path, "--device", "cpu", *own(folder)) == 0
        top1 = report["result"]["accuracies"][path]["top1"]
        assert f"{path} path after 16 steps: top1 {top1:.4%}" in capsys.readouterr().out


def test_the_exported_model_alone_has_the_accuracy_of_eval(folder):
    from dcil_dsl.data import Loader, open_dataset

    model = net(folder).eval()
    model.load_state_dict(load_file(folder / "run" / "sparse.safetensors"))
    right = 0
    with torch.no_grad():
        for images, labels in Loader(open_dataset("synthetic"), "val", batch_size=64).epoch(0):
            right += int((model(images).argmax(1) == labels).sum())
    report = json.loads((folder / "run" / "report.json").read_text())
    assert right / 128 == report["result"]["accuracies"]["sparse"]["top1"]


def test_the_run_learnt_something(folder):
    report = json.loads((folder / "run" / "report.json").read_text())
    assert report["result"]["accuracies"]["sparse"]["top1"] > 0.2  # chance is 0.1


def test_export_names_the_formats_where_one_is_unknown(folder, capsys):
    assert call("export", folder / "run", "--to", "onyx") == 2
    assert "the formats are safetensors, pth" in capsys.readouterr().err


def test_the_dense_path_can_be_exported_and_promises_no_zeros(folder, tmp_path):
    file = tmp_path / "dense.safetensors"
    assert (
        call(
            "export",
            folder / "run",
            "--to",
            "safetensors",
            "--path",
            "dense",
            "--out",
            file,
            *own(folder),
        )
        == 0
    )
    artefact = exporter_for(file).read(file)
    assert artefact.origin.promises == () and artefact.origin.path == "dense"
    assert bool((artefact.tensors["3.weight"] != 0).all())


def test_an_existing_run_is_not_overwritten(folder, capsys):
    before = (folder / "run" / "plan.json").stat().st_mtime_ns
    assert call(*job(folder), "--out", folder / "run") == 2
    assert "--resume" in capsys.readouterr().err
    assert (folder / "run" / "plan.json").stat().st_mtime_ns == before


def test_resuming_under_another_plan_is_refused_by_field(run, folder, capsys):
    assert call(*job(folder), "--out", run, "--resume", "--set", "train.epochs=3ep") == 2
    assert "num_steps: 16 in the run, 24 now" in capsys.readouterr().err


def test_a_run_cut_short_and_resumed_ends_as_the_straight_one(folder, tmp_path):
    out = ["--out", tmp_path / "cut", "--quiet"]
    assert call(*job(folder), *out, "--max-steps", "5") == 0
    assert json.loads((tmp_path / "cut" / "report.json").read_text())["complete"] is False
    assert call(*job(folder), *out, "--resume") == 0
    straight, cut = (
        load_file(where / "sparse.safetensors") for where in (folder / "run", tmp_path / "cut")
    )
    assert all(torch.equal(straight[name], cut[name]) for name in straight)


def test_an_interrupted_run_is_status_130_and_says_how_to_resume(
    folder, tmp_path, monkeypatch, capsys
):
    class Impatient(Display):
        def step(self, step, loss):
            if step == 3:
                signal.raise_signal(signal.SIGTERM)

    monkeypatch.setattr("dcil_dsl.jobs.train.make_display", lambda quiet: Impatient())
    monkeypatch.setattr("sys.argv", ["dcil", *map(str, job(folder))])
    assert call(*job(folder), "--out", tmp_path / "run") == 130
    err = capsys.readouterr().err
    assert "interrupted at step 3 of 16" in err and "--resume" in err
    assert not (tmp_path / "run" / "sparse.safetensors").exists()
    assert call("verify", tmp_path / "run") == 0  # the checkpoint holds what step 3 asks
    monkeypatch.undo()
    assert call(*job(folder), "--out", tmp_path / "run", "--resume", "--quiet") == 0


def test_a_claim_that_does_not_hold_is_status_1_after_everything_is_written(
    folder, tmp_path, capsys
):
    where = tmp_path / "claims.prune"
    where.write_text(RECIPE.replace("sparsity >= 89%", "top1 >= 100%  sparsity >= 90%"))
    arguments = [
        "compile",
        where,
        "--model",
        f"{folder}/net.py:Net",
        "--train",
        "synthetic",
        "--out",
        tmp_path / "run",
    ]
    assert call(*arguments) == 1
    assert "expect top1 >= 100%: measured" in capsys.readouterr().out
    assert (tmp_path / "run" / "report.json").exists()
    assert call("eval", tmp_path / "run", *own(folder)) == 1
    assert "DOES NOT HOLD" in capsys.readouterr().out


def test_more_classes_in_the_data_than_outputs_is_refused_before_a_folder_is_made(
    folder, tmp_path, monkeypatch, capsys
):
    monkeypatch.chdir(tmp_path)
    assert call(*job(folder, "net.py:two_classes")) == 2
    err = capsys.readouterr().err
    assert "synthetic has 10 classes, the model tells only 2 apart" in err
    assert "--set model.classes=10" in err
    assert list(tmp_path.iterdir()) == []


def test_the_help_for_classes_can_be_typed_where_the_recipe_has_no_model_block(folder, tmp_path):
    recipe = dcil.loads(RECIPE.replace("model net { classes = 10 }", ""))
    with pytest.raises(dcil.InputError) as error:
        dcil.train(recipe, f"{folder}/net.py:two_classes", "synthetic", out=tmp_path / "run")
    assert error.value.help == "--set model.classes=10"


def test_fewer_classes_in_the_data_than_outputs_is_a_loud_warning(folder, tmp_path, capsys):
    assert (
        call(
            *job(folder),
            "--set",
            "model.classes=12",
            "--out",
            tmp_path / "run",
            "--max-steps",
            "1",
            "--quiet",
        )
        == 0
    )
    out, err = capsys.readouterr()
    assert out == "" or "expect" in out
    assert "warning: the model has 12 outputs and synthetic only 10 classes" in err


def test_an_image_that_the_model_does_not_take_is_a_plain_error(folder, tmp_path, capsys):
    assert call(*job(folder), "--set", "data.image_size=2", "--out", tmp_path / "run") == 2
    err = capsys.readouterr().err
    assert "the model does not take images of 3 x 2 x 2" in err and "Traceback" not in err
    assert not (tmp_path / "run").exists()


def test_a_path_whose_images_are_too_small_for_the_model_is_a_plain_error(folder, tmp_path, capsys):
    text = RECIPE.replace("path dense  = full", "path dense = full { size = 6% }")
    (tmp_path / "small.prune").write_text(text)
    arguments = [*job(folder), "--out", tmp_path / "run"]
    arguments[1] = tmp_path / "small.prune"
    assert call(*arguments) == 2
    err = capsys.readouterr().err
    assert "the model does not take images of 3 x 2 x 2" in err
    assert "path `dense` sees images at 6% of their size: raise `size`" in err
    assert not (tmp_path / "run").exists()


def test_weights_are_where_training_starts(folder, tmp_path):
    start = ["--weights", folder / "run" / "sparse.safetensors", "--out", tmp_path / "run"]
    rate = ["--set", "train.optimizer=sgd(lr=1e-9)", "--max-steps", "1", "--quiet"]
    assert call(*job(folder), *start, *rate) == 0
    one, other = (
        load_file(where / "sparse.safetensors") for where in (folder / "run", tmp_path / "run")
    )
    assert torch.allclose(one["3.weight"], other["3.weight"], atol=1e-6)


def test_the_tables_of_a_run_say_asked_and_measured(folder, tmp_path, capsys):
    assert call(*job(folder), "--out", tmp_path / "run", "--max-steps", "2") == 0
    out = capsys.readouterr().out
    for words in (
        "sparsity asked",
        "sparsity measured",
        "training cost",
        "not judged",
        "sparse.safetensors",
    ):
        assert words in out, words


def test_the_exported_resnet18_loads_into_an_untouched_torchvision_model(tmp_path):
    from torchvision.models import resnet18

    recipe = dcil.loads(RECIPE.replace("batch_size = 64", "batch_size = 8"))
    run = dcil.train(
        recipe, "torchvision:resnet18", "synthetic", out=tmp_path / "run", max_steps=1, device="cpu"
    )
    model = resnet18(num_classes=10)
    model.load_state_dict(load_file(run.folder.weights), strict=True)
    assert call("eval", run.path, "--device", "cpu") == 1 or run.holds
    expected = run.model.state_dict()
    assert all(torch.equal(value, expected[name]) for name, value in model.state_dict().items())


def test_folders_of_jpeg_files_train_and_eval_finds_them_again(folder, tmp_path, capsys):
    from PIL import Image

    draw = torch.Generator().manual_seed(0)
    for part, count in (("train", 6), ("val", 2)):
        for name in ("cat", "dog"):
            (tmp_path / "data" / part / name).mkdir(parents=True)
            for index in range(count):
                pixels = torch.randint(0, 256, (40, 50, 3), generator=draw, dtype=torch.uint8)
                Image.fromarray(pixels.numpy()).save(
                    tmp_path / "data" / part / name / f"{index}.JPEG"
                )
    recipe = tmp_path / "jpeg.prune"
    recipe.write_text(
        RECIPE.replace("synthetic", "imagenet")
        .replace("batch_size = 64", "batch_size = 4\n  augment = [random_resized_crop(32), flip()]")
        .replace("classes = 10", "classes = 2")
    )
    arguments = ["compile", recipe, "--model", f"{folder}/net.py:Net", "--train", "imagefolder"]
    data = ["--data", tmp_path / "data", "--workers", "1", "--out", tmp_path / "run"]
    assert call(*arguments, *data, "--quiet") == 0
    assert "written for the data `imagenet`; these are imagefolder" in capsys.readouterr().err
    assert call("eval", tmp_path / "run", "--workers", "0", *own(folder)) == 0
    report = json.loads((tmp_path / "run" / "report.json").read_text())
    assert report["result"]["step"] == 6 and report["model"]["classes"] == 2
    top1 = report["result"]["accuracies"]["sparse"]["top1"]
    assert f"top1 {top1:.4%}" in capsys.readouterr().out


def test_a_run_folder_that_cannot_be_made_is_reported_before_training(folder, tmp_path, capsys):
    (tmp_path / "file").write_text("")
    assert call(*job(folder), "--out", tmp_path / "file" / "run") == 2
    err = capsys.readouterr().err
    assert "cannot write" in err and "Traceback" not in err


def test_a_run_that_goes_back_says_so_each_time_and_why_it_stops(folder, tmp_path, capsys):
    """A rate at which the weights are infinite after the second step, and at half of it, too."""
    out = tmp_path / "run"
    wild = ["--set", "train.optimizer=sgd(lr=1e30)", "--out", out]
    assert call(*job(folder), *wild) == 2
    err = capsys.readouterr().err
    assert "is not a finite number at step" in err and "--on-nan" not in err
    assert call(*job(folder), *wild, "--resume", "--on-nan", "rewind", "--max-steps", "6") == 2
    err = capsys.readouterr().err
    assert err.count("back to step 0, on with") == 3
    assert "went back 3 times, to 0.125 of the recipe's rate; lower the learning rate" in err


def test_another_way_with_what_is_not_finite_is_refused(folder, capsys):
    assert call(*job(folder), "--on-nan", "ignore") == 2
    assert "stop or rewind" in capsys.readouterr().err
    assert call("compile", folder / "tiny.prune", *own(folder), "--on-nan", "rewind") == 2
    assert "--on-nan: only for training" in capsys.readouterr().err


def test_activations_that_are_computed_again_change_no_bit(folder, tmp_path, capsys):
    again = [*job(folder), "--checkpoint-activations", "--quiet"]
    assert call(*again, "--out", tmp_path / "again") == 0
    files = (folder / "run" / "sparse.safetensors", tmp_path / "again" / "sparse.safetensors")
    have, want = map(load_file, files)
    assert [name for name in want if not torch.equal(have[name], want[name])] == []
    for other in ("--compile",):
        assert call(*again, other) == 2
        assert f"--checkpoint-activations does not go with {other}" in capsys.readouterr().err


@pytest.mark.parametrize(
    "options, error",
    [
        (
            ["--device", "cpu", "--compile", "--compile-mode", "reduce-overhead"],
            "needs a CUDA device",
        ),
        (["--compile-mode", "reduce-overhead"], "add --compile"),
        (["--compile", "--compile-mode", "fast"], "default or reduce-overhead"),
    ],
)
def test_a_compile_mode_that_cannot_be_had_is_refused_with_the_reason(
    folder, capsys, options, error
):
    assert call(*job(folder), *options) == 2
    assert error in capsys.readouterr().err


def test_a_compile_mode_without_a_training_is_refused(folder, capsys):
    mode = ["--compile", "--compile-mode", "reduce-overhead"]
    assert call("compile", folder / "tiny.prune", *own(folder), *mode) == 2
    assert "--compile, --compile-mode: only for training" in capsys.readouterr().err
