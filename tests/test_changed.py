"""--resume where recipe, model or data are not what they were; data with a bad image in them."""

import json
import os
import shutil
import signal
from pathlib import Path

import numpy
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file
from support.tiny_job import NET, RECIPE, call
from torch import nn

import dcil_dsl as dcil
from dcil_dsl.data import Dataset
from dcil_dsl.diagnostics import InputError
from dcil_dsl.jobs.train import train

JOB = [
    "compile",
    "tiny.prune",
    "--model",
    "./net.py:Net",
    "--train",
    "imagefolder",
    "--data",
    "images",
    "--out",
    "run",
    "--device",
    "cpu",
    "--workers",
    "0",
    "--quiet",
]
SMALL = RECIPE.replace("batch_size = 64", "batch_size = 8").replace("data synthetic", "data x")


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """A recipe, a model, photographs, and a run of one epoch of two."""
    folder = tmp_path_factory.mktemp("changed")
    (folder / "tiny.prune").write_text(SMALL)
    (folder / "net.py").write_text(NET)
    generator = numpy.random.default_rng(0)
    for part, count in (("train", 12), ("val", 4)):
        for name in ("ant", "bee"):
            (folder / "images" / part / name).mkdir(parents=True)
            for number in range(count):
                pixels = generator.integers(0, 256, (40, 36, 3), numpy.uint8)
                Image.fromarray(pixels).save(folder / f"images/{part}/{name}/{number:02}.JPEG")
    with pytest.MonkeyPatch.context() as patched:
        patched.chdir(folder)
        assert call(*JOB, "--max-steps", "3") == 0
    return folder


@pytest.fixture
def folder(made, tmp_path, monkeypatch):
    """A copy of it, in which the test works."""
    monkeypatch.chdir(shutil.copytree(made, tmp_path / "copy"))
    return tmp_path / "copy"


def change(file, old, new):
    text = file.read_text()
    assert old in text
    file.write_text(text.replace(old, new))


def test_a_changed_recipe_is_refused_with_its_lines_and_taken_if_asked(folder, capsys):
    change(folder / "tiny.prune", "target = 90%", "target = 80%")
    change(folder / "tiny.prune", "lr=0.05", "lr=0.04")
    assert call(*JOB, "--resume") == 2
    err = capsys.readouterr().err
    assert "was started with another recipe and another plan" in err
    assert "- " in err and "global(90%)" in err and "global(80%)" in err
    assert "train.optimizer.lr: 0.05 in the run, 0.04 now" in err and "--resume-anyway" in err
    change(folder / "tiny.prune", "sparsity >= 89%", "sparsity >= 79%")
    assert call(*JOB, "--resume-anyway") == 0
    report = json.loads((folder / "run/report.json").read_text())
    assert report["complete"] and report["result"]["sparsity_measured"] == pytest.approx(0.8)


def test_a_model_whose_weights_fit_but_which_computes_otherwise_is_refused(folder, capsys):
    change(folder / "net.py", "nn.BatchNorm2d(32), nn.ReLU()", "nn.BatchNorm2d(32), nn.GELU()")
    assert call(*JOB, "--resume") == 2
    err = capsys.readouterr().err
    assert "was started with another model and cannot" in err
    assert "- 5: ReLU()" in err and "+ 5: GELU(approximate='none')" in err
    assert call(*JOB, "--resume-anyway") == 0


def test_changed_data_are_refused_by_class_and_taken_if_asked(folder, capsys):
    (folder / "images/train/bee/03.JPEG").unlink()
    assert call(*JOB, "--resume") == 2
    err = capsys.readouterr().err
    assert "was started with other data and cannot be resumed" in err
    assert "train/bee: 12 files of" in err and "in the run, 11 files of" in err
    assert call(*JOB, "--resume-anyway") == 0


def test_what_a_recipe_expects_and_its_comments_may_change(folder):
    change(folder / "tiny.prune", "let target", "# nine tenths\nlet target")
    change(folder / "tiny.prune", "sparsity >= 89%", "sparsity >= 88%")
    assert call(*JOB, "--resume") == 0


# -- an image that cannot be read ----------------------------------------------------------------


def spoil():
    bad = Path("images/train/ant/05.JPEG")
    bad.write_bytes(bad.read_bytes()[:200])
    return bad


def test_a_corrupt_image_ends_the_run_with_its_name_and_a_checkpoint_to_resume_from(folder, capsys):
    bad = spoil()
    shutil.rmtree(folder / "run")
    assert call(*JOB) == 2
    err = capsys.readouterr().err
    assert f"cannot read the image {bad}" in err and " saved; --resume continues from there" in err
    assert (folder / "run/checkpoint/last.safetensors").exists()
    assert call(*JOB, "--resume") == 2  # it is still there
    assert call(*JOB, "--resume", "--on-bad-image", "skip") == 0


def test_a_corrupt_image_is_skipped_if_asked_and_reported_once(folder, capsys):
    bad = spoil()
    shutil.rmtree(folder / "run")
    assert call(*JOB, "--on-bad-image", "skip") == 0
    err = capsys.readouterr().err
    assert err.count(str(bad)) == 1 and "another image replaces it" in err
    report = json.loads((folder / "run/report.json").read_text())
    (line,) = report["bad_images"]
    assert str(bad) in line
    before = load_file("run/sparse.safetensors")
    shutil.rmtree(folder / "run")
    assert call(*JOB[:-3], "--workers", "1", "--on-bad-image", "skip") == 0
    again = load_file("run/sparse.safetensors")
    assert all(torch.equal(tensor, again[name]) for name, tensor in before.items())


def test_the_list_of_skipped_images_is_written_to_no_link(folder, capsys):
    """Else who gives away a run and its images could write lines into any file of the user's."""
    spoil().rename("images/train/ant/x\necho mine\x1b[2J\n.JPEG")
    victim = folder / "profile"
    victim.write_text("mine\n")
    (folder / "run/bad_images.txt").symlink_to(victim)
    assert call(*JOB, "--resume-anyway", "--on-bad-image", "skip") == 2
    err = capsys.readouterr().err
    assert "cannot write run/bad_images.txt: Too many levels of symbolic links" in err
    assert "x\\necho mine\\x1b[2J\\n.JPEG" in err and "\x1b" not in err
    assert victim.read_text() == "mine\n"
    (folder / "run/bad_images.txt").unlink()
    assert call(*JOB, "--resume-anyway", "--on-bad-image", "skip") == 0
    assert len((folder / "run/bad_images.txt").read_text().splitlines()) == 1


def test_a_run_whose_folder_and_model_were_moved_resumes(folder, tmp_path, monkeypatch):
    moved = folder.rename(tmp_path / "mit \u00dcbergr\u00f6\u00dfe")
    monkeypatch.chdir(tmp_path)
    (moved / "run").rename(tmp_path / "der Lauf")
    there = ["der Lauf" if word == "run" else word for word in JOB]
    for place in (1, 3, 7):  # the recipe, the model, the images
        there[place] = str(moved / there[place])
    assert call(*there, "--resume") == 0


def test_another_way_with_bad_images_is_refused(folder, capsys):
    assert call(*JOB, "--on-bad-image", "ignore") == 2
    assert "stop or skip" in capsys.readouterr().err


def test_data_of_which_nothing_can_be_read_end_the_run_although_images_are_skipped(folder):
    for file in (folder / "images").rglob("*.JPEG"):
        file.write_bytes(b"no image")
    recipe = dcil.load(folder / "tiny.prune")
    with pytest.raises(InputError, match="in a row cannot be read"):
        train(
            recipe,
            f"{folder}/net.py:Net",
            "imagefolder",
            directory=folder / "images",
            out=folder / "other",
            device="cpu",
            workers=0,
            on_bad_image="skip",
        )


class Deadly:
    """Images whose reading kills a worker, once in the middle of the first epoch."""

    def __init__(self, flag):
        self.flag = flag
        self.images = torch.arange(40 * 3 * 64, dtype=torch.uint8).reshape(40, 3, 8, 8)

    def __len__(self):
        return 40

    def __getitem__(self, index):
        if index == 17 and self.flag.exists() and torch.utils.data.get_worker_info():
            self.flag.unlink()
            os.kill(os.getpid(), signal.SIGKILL)
        return self.images[index], index % 10


def test_a_killed_worker_ends_the_run_with_a_checkpoint_and_resumes_as_if_it_had_lived(tmp_path):
    def run(out, **options):
        parts = Deadly(tmp_path / "flag"), Deadly(tmp_path / "no flag")
        data = Dataset("x", *parts, tuple("abcdefghij"), (0.5,) * 3, (0.2,) * 3)
        recipe = dcil.loads(SMALL.replace("image_size = 32", "image_size = 8"))
        return train(recipe, net(), data, out=tmp_path / out, device="cpu", workers=1, **options)

    straight = run("straight")
    (tmp_path / "flag").touch()
    with pytest.raises(InputError, match="a worker that reads x was killed") as error:
        run("run")
    assert " saved; --resume continues from there" in error.value.help
    resumed = run("run", resume=True).model.state_dict()
    for name, value in straight.model.state_dict().items():
        assert torch.equal(value, resumed[name]), name


def net():
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(3, 8, 3),
        nn.BatchNorm2d(8),
        nn.ReLU(),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(8, 10),
    )
