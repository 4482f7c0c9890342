"""What a run started from: start.json, report.json and the display say it once."""

import json

import pytest
import torch
from support import tiny_job

import dcil_dsl as dcil
from dcil_dsl.data.dataset import Tensors, in_memory
from dcil_dsl.jobs.data import open_loader
from dcil_dsl.jobs.train import train
from dcil_dsl.plan.resolve import resolve_data
from dcil_dsl.plan.text import Page
from dcil_dsl.training.progress import Display

ONE_EPOCH = (
    tiny_job.RECIPE.replace("2ep", "1ep")
    .replace("linear(0ep..1ep)", "once(at=0ep)")
    .replace(" from 1ep", "")
    .replace("  private last Linear { init = fresh }\n", "")
)
POWER = ONE_EPOCH.replace("refresh  = 2 steps", "refresh  = 2 steps\n  param = power(alpha=2)")


class Notes(Display):
    def __init__(self):
        super().__init__()
        self.texts = []

    def note(self, text):
        self.texts.append(text)


def dataset():
    generator = torch.Generator().manual_seed(0)
    images = torch.randint(0, 255, (130, 3, 32, 32), dtype=torch.uint8, generator=generator)
    part = Tensors(images, torch.arange(130) % 10)
    return in_memory("ten", part, part, tuple("abcdefghij"), channels=3)


@pytest.fixture
def model(tmp_path):
    (tmp_path / "net.py").write_text(tiny_job.NET)
    net = tiny_job.net(tmp_path)
    with torch.no_grad():
        for parameter in net.parameters():
            parameter.mul_(2)
    return net


def run_of(folder, recipe, model, **options):
    return train(dcil.loads(recipe), model, dataset(), out=folder, device="cpu", **options)


def start_of(folder):
    return json.loads((folder / "start.json").read_text())


@pytest.mark.parametrize("recipe", [ONE_EPOCH, POWER], ids=["masks", "a parametrization"])
def test_a_given_network_is_measured_unpruned_before_the_first_step(recipe, model, tmp_path):
    """At step 0 of this recipe 90% are pruned; the start is what the network did before."""
    shown = Notes()
    run = run_of(tmp_path / "run", recipe, model, display=shown)
    images = resolve_data(dcil.loads(recipe).data)
    loader = open_loader(dataset(), "val", images, torch.device("cpu"), 0)
    model.eval()
    with torch.no_grad():
        right = sum(int((model(x).argmax(1) == y).sum()) for x, y in loader.epoch(0))
    found = start_of(tmp_path / "run")
    assert found["metrics"]["top1"] == pytest.approx(right / 130)
    assert json.loads((tmp_path / "run/report.json").read_text())["start"] == found
    assert [text for text in shown.texts if text.startswith("before training, unpruned: top1")]
    assert run.result.step == 3


def test_the_summary_before_training_fits_the_terminal(model, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr("dcil_dsl.jobs.open_job.page_of", lambda stream: Page(60))
    run_of(tmp_path / "run", ONE_EPOCH, model, max_steps=1, quiet=False)
    text = capsys.readouterr().out
    head = text.partition("cost ")[0].splitlines()
    assert "one budget for" in text and max(map(len, head)) <= 60


def test_measuring_the_start_changes_no_bit_of_the_run(model, tmp_path, monkeypatch):
    measured = run_of(tmp_path / "one", ONE_EPOCH, model).model.state_dict()
    monkeypatch.setattr("dcil_dsl.training.trainer.record_start", lambda *given: None)
    without = run_of(tmp_path / "two", ONE_EPOCH, model).model.state_dict()
    assert not (tmp_path / "two/start.json").exists()
    assert all(torch.equal(tensor, without[name]) for name, tensor in measured.items())


def test_a_network_of_a_library_without_weights_starts_from_random_ones(tmp_path):
    recipe = ONE_EPOCH.replace("  private BatchNorm2d\n", "")
    run_of(tmp_path / "run", recipe, "dcil:resnet20", max_steps=1)
    assert start_of(tmp_path / "run") == {"weights": "random"}


def test_given_weights_make_a_network_of_a_library_worth_measuring(tmp_path):
    weights = tmp_path / "w.pth"
    torch.save(dcil.zoo.build_model("dcil:resnet20", 10).state_dict(), weights)
    recipe = ONE_EPOCH.replace("  private BatchNorm2d\n", "")
    run_of(tmp_path / "run", recipe, "dcil:resnet20", weights=str(weights), max_steps=1)
    assert "top1" in start_of(tmp_path / "run")["metrics"]


def test_a_resumed_run_keeps_its_start_and_an_older_one_has_none(model, tmp_path):
    run_of(tmp_path / "run", ONE_EPOCH, model, max_steps=1)
    before = (tmp_path / "run/start.json").read_bytes()
    run_of(tmp_path / "run", ONE_EPOCH, model, resume=True, max_steps=2)
    assert (tmp_path / "run/start.json").read_bytes() == before
    (tmp_path / "run/start.json").unlink()  # as a version made it that did not measure
    run_of(tmp_path / "run", ONE_EPOCH, model, resume=True)
    assert not (tmp_path / "run/start.json").exists()
    assert json.loads((tmp_path / "run/report.json").read_text())["start"] is None
