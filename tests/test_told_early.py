"""What a verb says before the work begins: a bad --out, a batch beyond the data, assumed images."""

import os

import pytest
from support.tiny_job import NET, RECIPE, call, job, own

import dcil_dsl as dcil
from dcil_dsl.diagnostics import InputError
from dcil_dsl.training.run import refuse_out


@pytest.fixture
def folder(tmp_path):
    (tmp_path / "tiny.prune").write_text(RECIPE)
    (tmp_path / "net.py").write_text(NET)
    return tmp_path


def no_data(*given, **more):
    raise AssertionError("the data were opened")


@pytest.mark.parametrize(
    "out, says",
    [
        ("tiny.prune", "is a file"),
        ("full", "is not empty"),
        ("old", "already holds a run"),
        ("tiny.prune/run", "tiny.prune/run"),
    ],
)
def test_a_folder_that_a_run_cannot_have_is_refused_before_the_data_are_opened(
    folder, monkeypatch, capsys, out, says
):
    for name, file in (("full", "a.txt"), ("old", "plan.json")):
        (folder / name).mkdir()
        (folder / name / file).write_text("{}")
    before = sorted(os.listdir(folder))
    monkeypatch.setattr("dcil_dsl.jobs.open_job.open_data", no_data)
    assert call(*job(folder), "--out", folder / out) == 2
    shown = capsys.readouterr()
    assert says in shown.err and shown.err.startswith("error: ") and shown.out == ""
    assert sorted(os.listdir(folder)) == before


def test_a_folder_that_cannot_be_written_is_refused_and_one_that_can_is_left_as_it_was(
    tmp_path, monkeypatch
):
    refuse_out(tmp_path / "a" / "b" / "run")
    assert os.listdir(tmp_path) == []

    def refuse(**given):
        raise OSError(30, "Read-only file system")

    monkeypatch.setattr("tempfile.mkdtemp", refuse)
    for out in (tmp_path / "run", None):
        with pytest.raises(InputError, match="Read-only file system"):
            refuse_out(out)


@pytest.mark.parametrize("size, is_larger", [(99_999_999_999, True), (513, True), (512, False)])
def test_a_batch_beyond_the_training_part_is_noted_with_both_numbers(folder, size, is_larger):
    recipe = dcil.load(folder / "tiny.prune", overrides={"data.batch_size": str(size)})
    notes = []
    run = dcil.train(
        recipe,
        own(folder)[1],
        "synthetic",
        out=folder / "run",
        device="cpu",
        max_steps=1,
        note=notes.append,
    )
    wanted = f"a batch of {size:,} is larger than the training part of synthetic, 512 examples"
    assert any(wanted in text for text in notes) == is_larger
    assert not is_larger or run.plan.steps_per_epoch == 1


@pytest.mark.parametrize("verb", ["plan", "plan --for cpu", "plan --json", "compile", "explain 0"])
def test_every_verb_that_assumes_the_size_of_images_says_so(folder, capsys, verb):
    pathless = RECIPE.replace("data synthetic {", "data mine {").replace("  image_size = 32\n", "")
    (folder / "tiny.prune").write_text(pathless)
    name, *more = verb.split()
    asked = [name, *more[:1], folder / "tiny.prune"] if name == "explain" else None
    asked = asked or [name, folder / "tiny.prune", *more]
    wanted = "note: the size of the images is unknown: 224 x 224 pixels are assumed"
    assert call(*asked, *own(folder)) == 0
    assert capsys.readouterr().err.count(wanted) == 1
    (folder / "tiny.prune").write_text(RECIPE)
    assert call(*asked, *own(folder)) == 0
    assert wanted not in capsys.readouterr().err
