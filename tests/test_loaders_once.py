"""Jobs open each part of their data once, and no part that they do not read."""

import pytest
import torch
from support import tiny_job

import dcil_dsl as dcil
from dcil_dsl.data import open_dataset
from dcil_dsl.extras.sensitivity.job import measure_sensitivity
from dcil_dsl.jobs import data as batches


@pytest.fixture
def opened(monkeypatch):
    """The loaders that jobs open, in order."""
    loaders, whole = [], batches.Loader

    def noted(*given, **more):
        loaders.append(whole(*given, **more))
        return loaders[-1]

    monkeypatch.setattr(batches, "Loader", noted)
    return loaders


@pytest.fixture
def folder(tmp_path):
    (tmp_path / "tiny.prune").write_text(tiny_job.RECIPE)
    (tmp_path / "net.py").write_text(tiny_job.NET)
    return tmp_path


def parts(loaders):
    return ["train" if loader.shuffled else "val" for loader in loaders]


def test_a_training_opens_each_part_once_and_its_evaluation_the_held_out_one(folder, opened):
    spec = f"{folder}/net.py:Net"
    run = dcil.train(
        folder / "tiny.prune", spec, "synthetic", out=folder / "run", max_steps=2, seed=3
    )
    assert sorted(parts(opened)) == ["train", "val"]
    assert {loader.seed for loader in opened} == {3} == {run.plan.train.seed}
    assert {loader.layout for loader in opened} == {torch.channels_last}  # it has convolutions
    assert len({loader.batch_size for loader in opened}) == 1
    opened.clear()
    dcil.evaluate_run(folder / "run", model=spec)
    assert parts(opened) == ["val"]


def test_a_sensitivity_opens_the_part_that_is_measured_and_one_for_its_example(folder, opened):
    measure_sensitivity(
        folder / "tiny.prune", f"{folder}/net.py:Net", "synthetic", num_batches=1, levels=(0.5,)
    )
    assert parts(opened) == ["val", "val"]


@pytest.mark.parametrize("data", ["digits", "synthetic"])
def test_the_example_of_a_loader_is_the_first_image_of_its_epoch(data):
    channels = {"digits": 1, "synthetic": 3}[data]
    dataset = open_dataset(data, None, channels=channels)
    loader = batches.Loader(dataset, "val", batch_size=7, channels=channels)
    assert torch.equal(loader.example().args[0], next(iter(loader.epoch(0)))[0][:1])
