"""The main job with models, data, weights and folders that are not as they should be."""

import fcntl
import json
import os

import pytest
import torch
from support import tiny_job
from torch import nn

import dcil_dsl as dcil
from dcil_dsl.data import Dataset
from dcil_dsl.diagnostics import InputError
from dcil_dsl.jobs.inspect import evaluate_run
from dcil_dsl.jobs.prepare import prepare
from dcil_dsl.jobs.train import train
from dcil_dsl.training import run as run_folder
from dcil_dsl.training.process import hold_run

ONE_EPOCH = (
    tiny_job.RECIPE.replace("2ep", "1ep")
    .replace("0ep..1ep", "0ep..50% run")
    .replace(" from 1ep", "")
)


class Net(nn.Module):
    """A convolution, a norm, a head; `change` makes it one of the odd ones below."""

    def __init__(self, change=lambda net: None, side=False):
        super().__init__()
        self.conv = nn.Conv2d(3, 8, 3, stride=2)
        self.norm = nn.BatchNorm2d(8)
        self.side = nn.BatchNorm2d(3) if side else None
        self.head = nn.Linear(8, 10)
        change(self)

    def forward(self, x):
        y = self.head(self.norm(self.conv(x)).relu().mean((2, 3)))
        if self.side is not None and self.training:
            y = y + self.side(x).mean()
        return y


class Reshapes(Net):
    def forward(self, x):
        y = super().forward(x)
        return y.view(-1, 7) if self.training else y


UNFIT = {
    "lazy": (lambda: nn.Sequential(nn.LazyConv2d(8, 3), nn.Flatten(), nn.LazyLinear(10)), "lazy"),
    "float16": (lambda: Net().half(), "float16"),
    "frozen": (lambda: Net().requires_grad_(False), "no weight of the model learns"),
    "meta": (lambda: Net().to("meta"), "meta"),
    "wrapped": (lambda: nn.DataParallel(Net()), "model.module"),
    "scripted": (lambda: torch.jit.trace(Net().eval(), torch.zeros(1, 3, 32, 32)), "torch.jit"),
    "fails in training": (Reshapes, "fails in training mode"),
    "a dict": (lambda: Returns("dict"), "no logits"),
}


class Returns(Net):
    def __init__(self, kind):
        super().__init__()
        self.kind = kind

    def forward(self, x):
        return {"answer": super().forward(x)}


@pytest.mark.parametrize("case", UNFIT)
def test_a_model_that_cannot_be_trained_is_reported_before_anything_is_written(case, tmp_path):
    build, reason = UNFIT[case]
    with pytest.raises(InputError, match=reason):
        _train(tmp_path / "run", build())
    assert not (tmp_path / "run").exists()


def test_a_private_module_of_the_training_graph_alone_is_no_fault(tmp_path):
    run = _train(tmp_path / "run", Net(side=True))
    assert run.holds and run.result.step == 8


def test_a_loss_of_the_models_own_is_refused_where_only_images_are_fed(tmp_path):
    text = ONE_EPOCH.replace("loss cross_entropy(sparse)", "loss model(sparse)", 1)
    with pytest.raises(InputError, match=r":\d+:\d+: `model\(sparse\)` needs a model"):
        dcil.train(dcil.loads(text), Net(), "synthetic", out=tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_a_model_with_other_numbers_at_each_call_is_refused(monkeypatch):
    model = Net()
    monkeypatch.setattr(nn.Conv2d, "forward", _forward_that_counts())
    with pytest.raises(InputError, match="gives other numbers"):
        prepare(dcil.loads(ONE_EPOCH), model, warn=print, note=print, compare=True)


def _forward_that_counts():
    calls = []

    def forward(self, x):
        calls.append(0)
        return self._conv_forward(x, self.weight, self.bias) * len(calls)

    return forward


def test_a_metric_that_the_model_does_not_measure_is_reported_before_training(tmp_path):
    text = ONE_EPOCH.replace("sparsity >= 89%", "top5 >= 10%").replace("= 10 }", "= 4 }")
    model = Net(lambda net: setattr(net, "head", nn.Linear(8, 5)))
    recipe = dcil.loads(text)
    with pytest.raises(InputError, match="top5"):
        train(recipe, model, _four_classes(), out=tmp_path / "run", device="cpu")
    assert not (tmp_path / "run").exists()


def _four_classes():
    from dcil_dsl.data.dataset import Tensors, in_memory

    images = torch.randint(0, 255, (128, 3, 32, 32), dtype=torch.uint8)
    part = Tensors(images, torch.arange(128) % 4)
    return in_memory("four", part, part, tuple("abcd"), channels=3)


def test_a_run_continues_from_the_weights_it_was_started_with(tmp_path):
    weights = tmp_path / "w.pth"
    torch.save(Net().state_dict(), weights)
    full = _train(tmp_path / "full", Net(), weights=str(weights))
    _train(tmp_path / "cut", Net(), weights=str(weights), max_steps=1)
    for name in ("checkpoint/last.safetensors", "metrics.jsonl", "sparse.safetensors"):
        (tmp_path / "cut" / name).unlink()  # as if killed in the first epoch
    (tmp_path / "cut/report.json").unlink()
    again = _train(tmp_path / "cut", Net(), resume=True)
    expected = full.model.state_dict()
    assert all(torch.equal(t, expected[name]) for name, t in again.model.state_dict().items())


def test_other_weights_at_a_resume_are_refused_and_a_lost_file_is_not_missed(tmp_path):
    weights = tmp_path / "w.pth"
    torch.save(Net().state_dict(), weights)
    _train(tmp_path / "run", Net(), weights=str(weights), max_steps=1)
    weights.rename(tmp_path / "other.pth")
    with pytest.raises(InputError, match="was started from"):
        _train(tmp_path / "run", Net(), weights=str(tmp_path / "other.pth"), resume=True)
    assert _train(tmp_path / "run", Net(), resume=True).result.step == 8


def test_a_run_knows_its_first_weights_from_the_moment_that_it_is_there(tmp_path, monkeypatch):
    """Else one that is killed just then would begin again from fresh ones."""
    torch.save(Net().state_dict(), tmp_path / "w.pth")
    before, seen = run_folder._rename, []

    def rename(draft, *place):
        seen.append(json.loads((draft / "command.json").read_text())["weights"])
        return before(draft, *place)

    monkeypatch.setattr(run_folder, "_rename", rename)
    _train(tmp_path / "run", Net(), weights=str(tmp_path / "w.pth"), max_steps=1)
    assert seen == [str(tmp_path / "w.pth")]


def test_a_layer_that_the_forward_never_uses_is_reported(tmp_path):
    notes = []
    model = Net(lambda net: net.add_module("spare", nn.Conv2d(3, 3, 1)))
    _train(tmp_path / "run", model, max_steps=1, note=notes.append)
    assert [note for note in notes if "never uses" in note and "`spare` (Conv2d)" in note]


def test_a_folder_for_data_that_need_none_is_refused(tmp_path):
    with pytest.raises(InputError, match="synthetic need no folder"):
        _train(tmp_path / "run", Net(), directory=tmp_path)


def test_two_processes_do_not_train_in_one_folder(tmp_path):
    _train(tmp_path / "run", Net(), max_steps=1)
    other = os.open(tmp_path / "run", os.O_RDONLY)
    fcntl.flock(other, fcntl.LOCK_EX)
    try:
        with pytest.raises(InputError, match="another process"):
            _train(tmp_path / "run", Net(), resume=True)
    finally:
        os.close(other)
    assert _train(tmp_path / "run", Net(), resume=True).result.step == 8


def test_a_run_that_another_process_trains_is_not_given_another_recipe(tmp_path):
    run = _train(tmp_path / "run", Net(), max_steps=1)
    before = {file.name: file.read_bytes() for file in run.path.iterdir() if file.is_file()}
    recipe = dcil.loads(ONE_EPOCH.replace("lr=0.05", "lr=0.01"))
    with hold_run(run.folder.path), pytest.raises(InputError, match="another process"):
        train(recipe, Net(), "synthetic", out=run.path, device="cpu", resume=True, anyway=True)
    after = {file.name: file.read_bytes() for file in run.path.iterdir() if file.is_file()}
    assert after == before


def test_a_batch_of_one_example_that_a_norm_cannot_train_on_is_reported(tmp_path):
    """Where one number is left of each channel."""
    model = nn.Sequential(
        nn.Conv2d(3, 8, 3),
        nn.AdaptiveAvgPool2d(1),
        nn.BatchNorm2d(8),
        nn.Flatten(),
        nn.Linear(8, 10),
    )
    recipe = dcil.loads(ONE_EPOCH.replace("batch_size = 64", "batch_size = 1"))
    with pytest.raises(InputError, match="single value per channel") as error:
        train(recipe, model, "synthetic", out=tmp_path / "run", device="cpu", max_steps=1)
    assert "a larger `batch_size`" in error.value.help


def test_a_model_that_is_another_one_now_is_reported(tmp_path):
    (tmp_path / "net.py").write_text(tiny_job.NET)
    spec = f"{tmp_path}/net.py:Net"
    train(dcil.loads(ONE_EPOCH), spec, "synthetic", out=tmp_path / "run", device="cpu", max_steps=1)
    lazy = tiny_job.NET.replace("nn.Conv2d(3, 16", "nn.LazyConv2d(16")
    (tmp_path / "net.py").write_text(lazy)
    with pytest.raises(InputError, match="another one now"):
        evaluate_run(tmp_path / "run", device="cpu", model=spec)


def _train(out, model, **more):
    return train(dcil.loads(ONE_EPOCH), model, "synthetic", out=out, device="cpu", **more)


BALANCED = tiny_job.RECIPE.replace("temperature=2)", "classes=balanced(beta=0.9))")


class Listed(list):
    """Examples whose labels stand beside them, as torchvision's data sets have it."""

    def __init__(self, labels):
        super().__init__((torch.zeros(3, 8, 8, dtype=torch.uint8), label) for label in labels)
        self.targets = labels


@pytest.mark.parametrize(
    "part, says",
    [
        (list(Listed([0, 1])), "does not tell its labels without reading its images"),
        (Listed([0, 2, 0]), "has no training example of b"),
    ],
)
def test_classes_that_cannot_be_counted_are_reported_at_the_loss_that_asks(tmp_path, part, says):
    (tmp_path / "tiny.prune").write_text(BALANCED)
    data = Dataset("mine", part, part, ("a", "b", "c"), (0.5,) * 3, (0.5,) * 3)
    with pytest.raises(InputError, match=rf"tiny.prune:31:3: `balanced` .*{says}"):
        train(tmp_path / "tiny.prune", Net(), data, out=tmp_path / "run", workers=0)
    assert not (tmp_path / "run").exists()


def test_a_run_keeps_the_weights_of_its_classes_for_its_resumption_and_evaluation(tmp_path):
    (tmp_path / "tiny.prune").write_text(BALANCED)
    (tmp_path / "net.py").write_text(tiny_job.NET)
    asked = dict(out=tmp_path / "run", device="cpu", workers=0)
    started = train(
        tmp_path / "tiny.prune", f"{tmp_path}/net.py:Net", "synthetic", max_steps=10, **asked
    )
    weights = started.plan.losses[2].term.classes.weights
    assert len(weights) == 10 and weights[0] < weights[9]  # 512 examples: 52 of 0, 51 of 9
    run = train(
        tmp_path / "tiny.prune", f"{tmp_path}/net.py:Net", "synthetic", resume=True, **asked
    )
    assert run.result.step == 16 and run.plan == started.plan
    found = evaluate_run(tmp_path / "run", device="cpu", model=f"{tmp_path}/net.py:Net")
    assert found.accuracy == run.result.accuracies["sparse"]


def test_a_named_data_set_with_two_channels_is_an_error_located_in_the_recipe():
    recipe = dcil.loads(tiny_job.RECIPE.replace("data synthetic {", "data cifar10 { channels = 2"))
    with pytest.raises(dcil.RecipeError, match="has images of 1 or 3 channels, not 2") as error:
        prepare(recipe, Net(), warn=print, note=print)
    assert [d.code for d in error.value.diagnostics] == ["E205"]
    assert error.value.diagnostics[0].span == recipe.data.span
