"""A forward that decides by sizes is traced as the example decides, and held to it."""

import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch import fx, nn

from dcil_dsl.diagnostics import InputError
from dcil_dsl.model import trace_model
from dcil_dsl.model.compare import compare_with_model

ROOT = Path(__file__).resolve().parents[2]


class Decides(nn.Module):
    """A linear layer, then what `rule` makes of its output and of the input."""

    def __init__(self, rule):
        super().__init__()
        self.linear = nn.Linear(4, 4)
        self.rule = rule

    def forward(self, x):
        return self.rule(self.linear(x), x)


def ran(traced, *inputs, training=False):
    graph = fx.GraphModule(traced.model, traced.graph(training)).train(training)
    return graph(*inputs)


def longer_than_two(y, x):
    return y * 2 if y.shape[1] > 2 else y - 1


@pytest.mark.parametrize(
    "rule",
    [
        longer_than_two,
        lambda y, x: y.view(*y.shape[:-1], 2, -1),
        lambda y, x: y.reshape(len(x.shape), -1),
        lambda y, x: sum(part for part in y.chunk(2, dim=-1)),
        lambda y, x: y if x.dtype == torch.float32 else y.to(x.dtype),
        lambda y, x: y.mean(1) if y.dim() == 3 and y.size(-1) % 2 == 0 else y,
        lambda y, x: y if x.shape == y.shape else y + x,
        lambda y, x: y + torch.ones(x.shape[0], x.shape[1], 1) / torch.tensor(x.shape[1]),
        lambda y, x: y * len(x) + torch.arange(len(x))[:, None, None],
        lambda y, x: y.masked_fill(x > 0, torch.finfo(y.dtype).min),
    ],
)
def test_sizes_ranks_and_given_types_decide_and_nothing_stays_whole(rule):
    model, x = Decides(rule), torch.randn(2, 3, 4)
    traced = trace_model(model, (x,))
    assert traced.opaque == {}
    for other in (x, torch.randn(5, 3, 4)):
        assert torch.equal(ran(traced, other), model(other))


def test_inputs_that_would_take_the_other_way_are_refused_with_the_question():
    model = Decides(longer_than_two)
    traced = trace_model(model, (torch.randn(2, 3, 4),))
    assert torch.equal(ran(traced, x := torch.randn(2, 7, 4)), model(x))
    with pytest.raises(InputError, match=r"linear.shape\[1\] > 2 was True in the example"):
        ran(traced, torch.randn(2, 2, 4))
    short = trace_model(model, (torch.randn(2, 2, 4),))
    assert torch.equal(ran(short, x := torch.randn(3, 1, 4)), model(x))


@pytest.mark.parametrize(
    "rule",
    [
        lambda y, x: y if x.sum() > 0 else -y,
        lambda y, x: y if x.nonzero().shape[0] > 3 else -y,
        lambda y, x: y if (x > 0).sum().item() > 3 else -y,
        lambda y, x: y if x.device.type == "cpu" else -y,  # it may be trained elsewhere
        lambda y, x: y if y.dtype == torch.float32 else -y,  # under autocast it is another
        lambda y, x: y if y.requires_grad else -y,
        lambda y, x: sum(y[i] for i in range(len(x))),  # examples by their number
        lambda y, x: y[: int(x.shape[0] / 2)],
    ],
)
def test_numbers_devices_and_counts_of_examples_decide_nothing(rule):
    model, x = Decides(rule), torch.randn(2, 4)
    assert list(trace_model(model, (x,)).opaque) == [""]


def test_without_an_example_nothing_is_known():
    assert list(trace_model(Decides(longer_than_two)).opaque) == [""]
    like = {"x": torch.empty(2, 3, 4, device="meta")}
    assert trace_model(Decides(longer_than_two), like=like).opaque == {}


def test_what_depends_on_the_number_of_examples_stays_whole():
    model = nn.Sequential(Decides(lambda y, x: y * 2 if x.shape[0] > 2 else y), nn.ReLU())
    x = torch.randn(2, 4)
    traced = compare_with_model(trace_model(model, (x,)), model, (x,))
    assert list(traced.opaque) == ["0"] or "" in traced.opaque
    for batch in (1, 2, 3):
        assert torch.equal(ran(traced, x := torch.randn(batch, 4)), model(x))


def test_to_ask_moves_no_statistic_and_draws_no_number():
    body = [nn.Linear(4, 4), nn.BatchNorm1d(4), nn.Dropout(0.5), Decides(longer_than_two)]
    model = nn.Sequential(*body)
    torch.manual_seed(0)
    state = torch.get_rng_state()
    traced = trace_model(model, (torch.ones(6, 4),))
    assert traced.opaque == {} and torch.equal(torch.get_rng_state(), state)
    norm = traced.model[1]
    assert int(norm.num_batches_tracked) == 0 and torch.equal(norm.running_mean, torch.zeros(4))
    assert all(type(p) is nn.Parameter for p in traced.model.parameters())


class Looks(nn.Module):
    """What decides by numbers, and counts its calls."""

    calls = 0

    def forward(self, x):
        self.calls += 1
        return x if x.sum() > 0 else -x


def test_behind_a_module_that_looks_at_numbers_nothing_is_known():
    model = nn.Sequential(Looks(), Decides(longer_than_two))
    assert list(trace_model(model, (torch.ones(2, 3, 4),)).opaque) == ["0", "1"]


class Puts(nn.Module):
    """It cannot be traced, as it counts its calls, and decides nothing by numbers."""

    calls = 0

    def forward(self, x):
        self.calls += 1
        return {"x": 2 * x}


def test_behind_a_module_that_stays_whole_sizes_are_known_where_it_looks_at_none():
    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.puts, self.decides = Puts(), Decides(longer_than_two)

        def forward(self, x):
            return self.decides(self.puts(x)["x"])

    traced = trace_model(Net(), (torch.ones(2, 3, 4),))
    assert list(traced.opaque) == ["puts"] and traced.model.puts.calls == 0


def test_a_loss_that_is_made_at_the_call_is_traced():
    def rule(y, x):
        return nn.CrossEntropyLoss(label_smoothing=0.1)(y, x.argmax(1))

    model, x = Decides(rule), torch.randn(3, 4)
    traced = trace_model(model, (x,))
    assert traced.opaque == {} and torch.equal(ran(traced, x), model(x))


def test_a_process_that_traced_before_it_trained_may_have_children_that_train():
    code = (
        "import os, torch\n"
        "from dcil_dsl.model import trace_model\n"
        "class Flat(torch.nn.Linear):\n"
        "    def forward(self, x):\n"
        "        return super().forward(x) if x.ndim == 2 else x\n"
        "model, x = Flat(2, 2), torch.ones(3, 2)\n"
        "assert not trace_model(model, x).opaque\n"
        "model(x).sum().backward()\n"
        "child = os.fork()\n"
        "if child == 0:\n"
        "    try:\n"
        "        model(x).sum().backward()\n"
        "    except RuntimeError:\n"
        "        os._exit(1)\n"
        "    os._exit(0)\n"
        "assert os.waitpid(child, 0)[1] == 0\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True, cwd=ROOT)
