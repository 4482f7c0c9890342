"""Data of every task from the command line: train, evaluate, verify, export."""

import json

import pytest
import torch
from safetensors.torch import load_file
from support.tiny_job import call

import dcil_dsl as dcil
from dcil_dsl.data import Dataset
from dcil_dsl.tasks import TASKS

RECIPE = """language 1
recipe r { title = "numbers" }
data %s { batch_size = 32 }
prune Linear except last Linear to global(50%%) { schedule = linear(0ep..1ep)  refresh = 1 steps }
mix {
  path sparse = masked
  path dense  = full
  update kept by sparse
  update pruned by dense
  loss %s(sparse)
  loss %s(dense)
  deploy sparse
}
train { epochs = 2ep  optimizer = adamw(lr=0.003) }
expect { %s }
"""

CODE = '''
import torch
from torch import nn
from torch.utils.data import DataLoader, Dataset


class Rows(Dataset):
    """Sums of rows of numbers, drawn once; noise in every item from the generator of torch."""

    def __init__(self, count, kind="real"):
        generator = torch.Generator().manual_seed(count)
        self.x = torch.randn(count, 10, generator=generator)
        self.y = self.x.sum(1)
        self.kind = kind

    def __len__(self):
        return len(self.x)

    def __getitem__(self, index):
        x = self.x[index] + 0.01 * torch.randn(10)
        if self.kind == "named":
            return {"x": x, "labels": self.y[index]}
        if self.kind == "classes":
            return x, int(self.y[index] > 0)
        return x, self.y[index]


def make():
    return Rows(128), Rows(40)


def loaders():
    return DataLoader(Rows(128), batch_size=32, shuffle=True), DataLoader(Rows(40), batch_size=32)


def named(directory=None):
    return Rows(128, "named"), Rows(40, "named")


def classes():
    return Rows(128, "classes"), Rows(40, "classes")


def wrong():
    return 3


def fails():
    return {}["nothing"]


class Net(nn.Module):
    def __init__(self, num_classes=1):
        super().__init__()
        self.body = nn.Linear(10, 32)
        self.head = nn.Linear(32, num_classes)

    def forward(self, x):
        return self.head(self.body(x).relu())


class OwnLoss(Net):
    """As transformers' models: a loss where labels are given."""

    def forward(self, x, labels=None):
        out = super().forward(x)
        if labels is None:
            return {"logits": out}
        return {"loss": (out.squeeze(1) - labels).square().mean(), "logits": out}


class Detector(Net):
    """As torchvision's detectors: a dictionary of losses in training mode, else predictions."""

    def forward(self, x, labels):
        out = super().forward(x).squeeze(1)
        if self.training:
            return {"far": (out - labels).square().mean(), "off": (out - labels).abs().mean()}
        return [out]
'''


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("tasks")
    (folder / "my.py").write_text(CODE)
    return folder


def recipe(folder, data="rows", loss="mse", expect="sparsity >= 49%"):
    file = folder / f"{data}-{loss}.prune"
    file.write_text(RECIPE % (data, loss, loss, expect))
    return file


def train(folder, file, train, model="Net", *more):
    spec = model if ":" in model else f"{folder}/my.py:{model}"
    given = train if ":" not in train else f"{folder}/{train}"
    return call("compile", file, "--model", spec, "--train", given, "--quiet", *more)


@pytest.fixture(scope="module")
def diabetes(folder):
    file = recipe(folder, "diabetes", "mse", "sparsity >= 49%  mse <= 100000")
    assert train(folder, file, "diabetes", "dcil:mlp", "--out", folder / "diabetes") == 0
    return folder / "diabetes"


def test_a_regression_reports_its_metrics_in_their_units(diabetes):
    lines = [json.loads(line) for line in (diabetes / "metrics.jsonl").read_text().splitlines()]
    assert set(lines[-1]["r2"]) == set(lines[-1]["train_mse"]) == {"sparse", "dense"}
    assert "top1" not in lines[-1]
    report = json.loads((diabetes / "report.json").read_text())
    assert set(report["result"]["accuracies"]["sparse"]) == {"mse", "mae", "r2"}
    assert report["expect"][1]["text"] == "mse <= 100000" and report["expect"][1]["holds"]


def test_the_metrics_are_those_of_the_exported_network_on_the_held_out_part(diabetes):
    from sklearn.metrics import mean_absolute_error, mean_squared_error, r2_score

    from dcil_dsl.data import open_dataset
    from dcil_dsl.zoo import build_model

    model = build_model("dcil:mlp").eval()
    model.load_state_dict(load_file(diabetes / "sparse.safetensors"))
    inputs, targets = open_dataset("diabetes").val.tensors
    with torch.no_grad():
        own = model(inputs)[:, 0].double()
    report = json.loads((diabetes / "report.json").read_text())
    found = report["result"]["accuracies"]["sparse"]
    given = targets.double(), own
    assert found["mse"] == pytest.approx(mean_squared_error(*given))
    assert found["mae"] == pytest.approx(mean_absolute_error(*given))
    assert found["r2"] == pytest.approx(r2_score(*given))


def test_eval_verify_and_export_take_a_run_of_a_regression(diabetes, tmp_path, capsys):
    assert call("eval", diabetes, "--device", "cpu") == 0
    out = capsys.readouterr().out
    report = json.loads((diabetes / "report.json").read_text())
    assert f"mse {report['result']['accuracies']['sparse']['mse']:.6g}" in out
    assert "expect mse <= 100000: measured" in out and ", holds" in out
    assert call("verify", diabetes) == 0
    assert call("export", diabetes, "--to", "pth", "--out", tmp_path / "x.pth") == 0
    assert call("export", diabetes, "--to", "compact", "--out", tmp_path / "small") == 0


@pytest.mark.parametrize(
    "make, loss, model, metrics",
    [
        ("make", "mse", "Net", {"mse", "mae", "r2"}),
        ("loaders", "mse", "Net", {"mse", "mae", "r2"}),
        ("named", "model", "OwnLoss", {"loss"}),
        ("named", "model", "Detector", set()),
    ],
)
def test_a_callable_gives_the_data_of_a_run(folder, tmp_path, make, loss, model, metrics):
    out = tmp_path / "run"
    assert train(folder, recipe(folder, loss=loss), f"my.py:{make}", model, "--out", out) == 0
    report = json.loads((out / "report.json").read_text())
    assert set(report["result"]["accuracies"].get("sparse", {})) == metrics
    line = json.loads((out / "metrics.jsonl").read_text().splitlines()[-1])
    own = "mse" if loss == "mse" else "loss"
    assert set(line[f"train_{own}"]) == {"sparse", "dense"}
    assert call("verify", out) == 0
    spec = f"{folder}/my.py"
    again = ["--train", f"{spec}:{make}", "--model", f"{spec}:{model}", "--device", "cpu"]
    assert call("eval", out, *again) == 0
    assert call("export", out, "--to", "pth", "--model", f"{spec}:{model}") == 0


def test_the_loss_of_a_detector_is_the_sum_of_its_losses(folder, tmp_path):
    file = recipe(folder, loss="model")
    out = tmp_path / "run"
    assert train(folder, file, "my.py:named", "Detector", "--out", out, "--max-steps", "1") == 0
    line = json.loads((out / "metrics.jsonl").read_text().splitlines()[-1])
    assert line["losses"]["model(sparse)"] == pytest.approx(line["train_loss"]["sparse"])


def test_paths_are_compared_where_the_model_computes_its_loss(folder, tmp_path):
    """A loss between paths needs no target: the model's own data have none apart."""
    file = recipe(folder, loss="model", expect="sparsity >= 49%")
    file.write_text(file.read_text().replace("deploy", "loss mse(sparse, teacher=dense)\n  deploy"))
    assert train(folder, file, "my.py:named", "OwnLoss", "--out", tmp_path / "run") == 0
    lines = (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()
    assert 0 < json.loads(lines[-1])["losses"]["mse(sparse<-dense)"] < 100


def test_a_run_names_no_code_that_its_evaluation_would_run(folder, tmp_path, capsys):
    out = tmp_path / "run"
    assert train(folder, recipe(folder), "my.py:make", "Net", "--out", out) == 0
    assert call("eval", out, "--model", f"{folder}/my.py:Net") == 2
    assert "somebody's own code" in capsys.readouterr().err


def test_whole_numbers_as_targets_make_a_classification(folder, tmp_path):
    file, out = recipe(folder, loss="cross_entropy"), tmp_path / "run"
    (folder / "two.py").write_text(CODE.replace("num_classes=1", "num_classes=2"))
    assert train(folder, file, "two.py:classes", f"{folder}/two.py:Net", "--out", out) == 0
    report = json.loads((out / "report.json").read_text())
    assert set(report["result"]["accuracies"]["sparse"]) == {"top1"}


def test_a_run_that_is_interrupted_and_resumed_ends_with_the_same_bits(folder, tmp_path):
    """Items draw random numbers: those of a resumed run are those of a run without a break."""
    file = recipe(folder)
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    assert train(folder, file, "my.py:make", "Net", "--out", whole) == 0
    assert train(folder, file, "my.py:make", "Net", "--out", parts, "--max-steps", "3") == 0
    workers = ("--resume", "--workers", "2")
    assert train(folder, file, "my.py:make", "Net", "--out", parts, *workers) == 0
    one, other = (load_file(run / "sparse.safetensors") for run in (whole, parts))
    assert all(torch.equal(one[name], other[name]) for name in one)


@pytest.mark.parametrize(
    "make, loss, fact",
    [
        ("my.py:wrong", "mse", "returned a int"),
        ("my.py:fails", "mse", "cannot be called: KeyError: 'nothing'"),
        ("my.py:none", "mse", "has nothing called `none`"),
        ("my.py:make", "cross_entropy", "reads scores of classes"),
        ("my.py:named", "mse", "compares with targets, and this task has none"),
        ("my.py:make", "model", "needs a model that is given its labels"),
    ],
)
def test_data_and_losses_that_do_not_fit_are_refused_in_plain_words(
    folder, capsys, make, loss, fact
):
    assert train(folder, recipe(folder, loss=loss), make) == 2
    assert fact in capsys.readouterr().err


def test_a_metric_that_the_task_has_not_is_refused_before_the_run(folder, tmp_path, capsys):
    file = recipe(folder, "diabetes", "mse", "top1 >= 50%")
    assert train(folder, file, "diabetes", "dcil:mlp", "--out", tmp_path / "run") == 2
    assert "a run of this model measures mae, mse, r2, sparsity" in capsys.readouterr().err
    assert not (tmp_path / "run").exists()


def test_python_takes_a_pair_or_a_dataset_of_any_task(folder, tmp_path):
    from torch.utils.data import TensorDataset

    x = torch.randn(64, 10)
    part = TensorDataset(x, x.sum(1))
    recipe_ = dcil.load(recipe(folder))
    for number, data in enumerate([(part, part), Dataset("mine", part, part, task="regression")]):
        run = dcil.train(recipe_, "dcil:mlp", data, out=tmp_path / str(number), device="cpu")
        assert set(run.result.accuracies["sparse"]) == {"mse", "mae", "r2"}


@pytest.mark.parametrize("task", TASKS.values(), ids=list(TASKS))
def test_every_metric_of_a_task_is_a_word_that_expect_may_name(task):
    from dcil_dsl.words.metrics import METRICS

    assert set(task.metrics) <= set(METRICS) and task.trained in METRICS
