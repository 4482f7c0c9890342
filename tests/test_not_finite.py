"""NaN is reported: in the first weights of a run, in outputs of evaluation, in stored tensors."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from support.tiny_job import NET, call, job, net, own, short_run

import dcil_dsl as dcil
from dcil_dsl.data.dataset import Dataset, Tensors
from dcil_dsl.diagnostics import InputError
from dcil_dsl.model.digest import digest
from dcil_dsl.plan import plan as p
from dcil_dsl.training.checkpoint import read_file
from dcil_dsl.training.step import NotFinite, stop_if_no_finite_loss
from dcil_dsl.words.losses import CrossEntropy

MODELS = """

def broken_statistics():
    net = Net()
    net[1].running_var[0] = float("nan")
    return net


def broken_bias():
    net = Net()
    net[8].bias.data[3] = float("inf")
    return net


class BadOutputs(Net):
    def __init__(self, num_classes=10, number=float("nan"), column=0):
        super().__init__(num_classes)
        self.number = number
        self.register_buffer("bad", torch.arange(num_classes) == column, persistent=False)

    def forward(self, x):
        logits = super().forward(x)
        return logits if self.training else logits.masked_fill(self.bad, self.number)


def nan_outputs():
    return BadOutputs()


def inf_outputs():
    return BadOutputs(number=float("inf"))


def excluded_class():
    return BadOutputs(11, number=float("-inf"), column=10)
"""


@pytest.fixture(scope="module")
def made(tmp_path_factory) -> Path:
    folder = short_run(tmp_path_factory.mktemp("job"))
    (folder / "net.py").write_text("import torch\n" + NET + MODELS)
    return folder


@pytest.fixture
def folder(made, tmp_path) -> Path:
    return Path(shutil.copytree(made, tmp_path / "job"))


@pytest.mark.parametrize(
    "model, name", [("broken_statistics", "1.running_var"), ("broken_bias", "8.bias")]
)
def test_a_model_that_starts_from_nan_is_refused_by_tensor(made, tmp_path, model, name, capsys):
    assert call(*job(made, f"net.py:{model}"), "--out", tmp_path / "run") == 2
    assert f"not finite, in `{name}`" in capsys.readouterr().err
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("number", ["nan", "inf", "-inf"])
@pytest.mark.parametrize("name", ["1.running_var", "0.weight"])
def test_weights_that_are_not_finite_are_refused_by_tensor(made, tmp_path, number, name, capsys):
    weights = net(made).state_dict()
    weights[name].view(-1)[1] = float(number)
    torch.save(weights, tmp_path / "w.pth")
    assert call(*job(made), "--weights", tmp_path / "w.pth", "--out", tmp_path / "run") == 2
    err = capsys.readouterr().err
    assert f"not finite  {name}" in err and "1 number" in err


@pytest.mark.parametrize("rewind", [[], ["--on-nan", "rewind"]])
@pytest.mark.parametrize("model", ["nan_outputs", "inf_outputs"])
def test_outputs_of_evaluation_that_are_not_finite_end_the_run(
    made, tmp_path, model, rewind, capsys
):
    assert call(*job(made, f"net.py:{model}"), "--out", tmp_path / "run", *rewind) == 2
    err = capsys.readouterr().err
    assert "the output of path `sparse` for " in err and "is not a finite number at step" in err
    assert not (tmp_path / "run" / "sparse.safetensors").exists()


def test_a_class_that_a_model_excludes_by_minus_infinity_is_no_fault(made, tmp_path):
    out = ["--set", "model.classes=11", "--out", tmp_path / "run", "--max-steps", "2"]
    assert call(*job(made, "net.py:excluded_class"), *out) == 0


def forge(folder: Path, change) -> None:
    """A checkpoint of other numbers with a right digest; what was exported is gone."""
    file = folder / "run" / "checkpoint" / "last.safetensors"
    tensors, header = read_file(file)
    change(tensors)
    save_file(tensors, file, header | {"digest": digest(tensors, header)})
    (folder / "run" / "sparse.safetensors").unlink()


def fill(tensors, names) -> None:
    for name, tensor in tensors.items():
        if tensor.is_floating_point() and (not names or name in names):
            tensor.fill_(torch.nan)


@pytest.mark.parametrize("names", [(), ("model/1.running_var",)], ids=["all", "statistics"])
def test_a_checkpoint_of_nan_is_reported_by_eval_verify_and_export(folder, names, capsys):
    forge(folder, lambda tensors: fill(tensors, names))
    assert call("eval", folder / "run", *own(folder)) == 1
    out = capsys.readouterr().out
    assert "top1 0.0000%" in out and "NOT FINITE: the output for" in out
    assert call("verify", folder / "run") == 1
    assert "1.running_var holds numbers that are not finite" in capsys.readouterr().out
    for kind in ("pth", "safetensors", "compact"):
        assert call("export", folder / "run", "--to", kind, *own(folder)) == 1
        err = capsys.readouterr().err
        assert "is not exported: " in err and " holds numbers that are not finite" in err
    assert call("sensitivity", folder / "run", *own(folder)) in (0, 2)  # of the dense path
    assert "Traceback" not in capsys.readouterr().err


def test_eval_of_another_path_says_what_that_path_gives(folder, capsys):
    forge(folder, lambda tensors: fill(tensors, ("model/1.running_var",)))
    assert call("eval", folder / "run", "--path", "dense", *own(folder)) == 0
    assert "NOT FINITE" not in capsys.readouterr().out


def dataset(**changes):
    """Images and labels of a program: 64 to learn from, 64 to be judged by."""
    generator = torch.Generator().manual_seed(0)
    images = torch.randint(256, (64, 3, 32, 32), dtype=torch.uint8, generator=generator)
    labels = torch.randint(10, (64,), generator=generator)
    values = dict(
        name="mine",
        train=Tensors(images, labels),
        val=Tensors(images, labels),
        classes=tuple(map(str, range(10))),
        mean=(0.5,) * 3,
        std=(0.5,) * 3,
    )
    return values | changes


def train(folder: Path, tmp_path: Path, **changes):
    return dcil.train(
        folder / "tiny.prune",
        f"{folder}/net.py:Net",
        Dataset(**dataset(**changes)),
        out=tmp_path / "run",
    )


def test_data_without_a_class_are_reported(folder, tmp_path):
    images = dataset()["train"].images
    nothing = Tensors(images, torch.full((64,), -100))
    with pytest.raises(InputError, match="no example of a batch has a class"):
        train(folder, tmp_path, train=nothing)


def test_a_mean_that_is_nan_is_reported(folder, tmp_path):
    with pytest.raises(InputError, match="images of the first batch hold numbers") as error:
        train(folder, tmp_path, mean=(float("nan"),) * 3)
    assert "mean" in error.value.help and "learning rate" not in error.value.help


def small_plan():
    losses = tuple(
        p.WeightedLoss(name=n, coefficient=1, term=CrossEntropy(path=n)) for n in ("a", "b")
    )
    return p.Plan.model_construct(losses=losses, steps_per_epoch=2)


def test_a_loss_that_is_not_finite_at_the_first_step_is_not_put_to_the_rate():
    plan, bad = small_plan(), [[-1, 0]]
    with pytest.raises(NotFinite, match="at step 0") as error:
        stop_if_no_finite_loss(plan, bad)
    assert "look at the data" in error.value.help and "learning rate" not in error.value.help
    with pytest.raises(NotFinite) as error:
        stop_if_no_finite_loss(plan, [[-1, 3]])
    assert "learning rate" in error.value.help


def test_the_report_of_a_sound_run_says_nothing_of_it(made):
    report = json.loads((made / "run" / "report.json").read_text())
    assert all("not_finite" not in path for path in report["result"]["accuracies"].values())
