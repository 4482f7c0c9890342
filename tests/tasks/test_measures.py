"""Metrics over batches and over processes, and the loss of a regression."""

import sys
from pathlib import Path

import pytest
import torch
from torch import nn
from torch.utils.data import TensorDataset

import dcil_dsl as dcil
from dcil_dsl.data import Dataset
from dcil_dsl.tasks.measures import Meter, TopK
from dcil_dsl.tasks.task import sliced, stand_in
from dcil_dsl.words.losses import MSE

sys.path.insert(0, str(Path(__file__).parent.parent / "training"))
from support.tiny_ranks import on_ranks, said

RECIPE = """language 1
data rows { batch_size = 8 }
prune Linear to global(50%) { schedule = linear(0ep..1ep)  refresh = 1 steps }
mix { path sparse = masked  update kept by sparse  loss mse(sparse)  deploy sparse }
train { epochs = 2ep  optimizer = sgd(lr=0.01) }
"""


def test_accuracy_is_the_exact_quotient_of_two_whole_numbers():
    metric = TopK(1)
    logits = torch.eye(3)[torch.tensor([0, 1, 2])]
    metric.update(logits, torch.tensor([0, 1, 0]))
    assert float(metric.compute()) == 2 / 3


def test_metrics_do_not_depend_on_how_examples_are_divided_into_batches():
    torch.manual_seed(0)
    own, wanted = torch.randn(2, 37, dtype=torch.float64)
    values = []
    for size in (37, 10):
        meter = Meter(torch.device("cpu"))
        for at in range(0, 37, size):
            given = own[at : at + size], wanted[at : at + size]
            compared = dict.fromkeys(("mse", "mae", "r2"), given)
            meter.update(compared, torch.zeros(len(given[0]), dtype=torch.bool), True)
        values.append(meter.compute(1))
    assert values[0] == pytest.approx(values[1], rel=1e-12)
    assert values[0]["mse"] == pytest.approx(float((own - wanted).square().mean()))


def rows(count):
    x = torch.randn(count, 4, generator=torch.Generator().manual_seed(count))
    return TensorDataset(x, x.sum(1))


def job(folder, name):
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(4, 8), nn.Tanh(), nn.Linear(8, 1))
    # Of 17 held-out examples in batches of 8 the last has one: a process has none of it.
    data = Dataset("rows", rows(32), rows(17), task="regression")
    return dcil.train(folder / "rows.prune", net, data, device="cpu", out=folder / name)


def test_two_processes_measure_what_one_measures(tmp_path):
    (tmp_path / "rows.prune").write_text(RECIPE)
    whole = job(tmp_path, "one").result.accuracies["sparse"]

    def work(ranks):
        found = job(tmp_path, "two").result.accuracies["sparse"]
        assert found == pytest.approx(whole, rel=1e-5)

    assert on_ranks(tmp_path, 2, work) == [0, 0], said(tmp_path, 0) + said(tmp_path, 1)


def test_mse_is_the_mean_of_squares_over_batch_and_numbers():
    torch.manual_seed(0)
    own, wanted = torch.randn(2, 5, 3, dtype=torch.float64)
    term = MSE(path="a").term({"a": own}, wanted)
    assert term.dtype == torch.float64
    assert float(term) == pytest.approx(sum(((own - wanted) ** 2).flatten().tolist()) / 15)


@pytest.mark.parametrize("output, target", [((5, 1), (5,)), ((5,), (5, 1))])
def test_a_column_and_a_row_are_compared_number_by_number(output, target):
    own, wanted = torch.arange(5.0).reshape(output), torch.arange(5.0).reshape(target)
    assert float(MSE(path="a").term({"a": own}, wanted)) == 0


def test_targets_that_would_be_broadcast_are_refused():
    with pytest.raises(dcil.InputError, match="the targets are 5, and the output of the model is"):
        MSE(path="a").term({"a": torch.zeros(5, 5)}, torch.zeros(5))


def test_a_part_of_a_batch_has_rows_of_tensors_and_entries_of_lists():
    batch = {"x": torch.arange(4), "boxes": [1, 2, 3, 4], "scale": torch.tensor(2.0)}
    part = sliced(batch, 4, 1, 3)
    assert part["x"].tolist() == [1, 2] and part["boxes"] == [2, 3] and part["scale"] == 2
    alone = stand_in((torch.zeros(0, 3), torch.zeros(0)))
    assert [tuple(t.shape) for t in alone] == [(1, 3), (1,)]
