"""What a step's memory is counted by: every tensor made, once, from its making to its end."""

import json
import sys
from pathlib import Path

import pytest
import torch

sys.path.insert(0, str(Path(__file__).parent.parent / "benchmarks"))

from memory import Alive, peak_of

FLOAT = 4


def test_the_most_that_is_alive_at_a_time_is_counted_and_not_the_sum():
    with Alive() as alive:
        for _ in range(3):
            one = torch.zeros(1000)
            del one
        two = torch.zeros(500)
        two.view(50, 10).t().add_(1)  # other looks at the same memory
    assert (alive.most, alive.now) == (1000 * FLOAT, 500 * FLOAT)


def test_what_a_backward_pass_needs_and_makes_counts_while_it_is_held():
    """exp keeps its result, 1000 numbers; beside it stand the sum, its gradient, and at the most
    two more of 1000: the gradient of exp and the one that becomes w.grad."""
    w = torch.ones(1000, requires_grad=True)

    def step():
        w.exp().sum().backward()

    peak = peak_of(step, torch.device("cpu"), [w])
    assert 3 * 1000 * FLOAT <= peak <= 4 * 1000 * FLOAT + 100


@pytest.fixture
def resnet20(monkeypatch):
    """The smallest network of the zoo, as a workload."""
    import workloads

    recipe, sizes = "resnet32_cifar10_dcil90.prune", ((8, 16), (8, 16))
    work = workloads.Workload("dcil:resnet20", recipe, 10, *sizes)
    monkeypatch.setitem(workloads.WORKLOADS, "resnet20", work)
    return ["--networks", "resnet20"]


def test_checkpointed_activations_take_less_than_all_of_them(resnet20, tmp_path):
    import peak_memory

    out = tmp_path / "peaks.json"
    assert peak_memory.main([*resnet20, "--json", str(out)]) == 0
    (entry,) = json.loads(out.read_text())["results"]
    peaks = entry["peak_ratios"]
    assert 1.6 < peaks["ours/dense"] < 2  # on so small a batch weights are much of it
    assert peaks["checkpointed/dense"] < 0.8 * peaks["ours/dense"]


def test_kept_filters_alone_are_the_same_network(resnet20, tmp_path):
    import kept_alone

    out = tmp_path / "kept.json"
    options = ["--tiny", "--units", "filter", "--json", str(out)]
    assert kept_alone.main([*resnet20, *options]) == 0
    (entry,) = json.loads(out.read_text())["results"]
    assert entry["difference"] < 1e-9 and 1.5 < entry["counted"] < 1.6


def test_halved_products_are_measured_on_the_same_network_and_what_ran_is_said(tmp_path):
    import kept_alone

    out = tmp_path / "pattern.json"
    options = ["--pattern", "--tiny", "--precision", "bf16", "--json", str(out)]
    assert kept_alone.main(options) == 0
    (entry,) = json.loads(out.read_text())["results"]
    assert entry["difference"] < 1e-9 and entry["rounded"] < 1e-2
    # All but the head, which sees one token of 16 and is a few in a hundred of the arithmetic.
    assert 2 - 1 / 6 < entry["counted"] < 2 - 0.9 / 6
    assert entry["ratios"].keys() >= {"kept/dense", "ours/dense", "kept/ours"}
    (told,) = entry["patterns"]
    assert told.startswith("computed in full") and "the device is a CPU" in told


def test_on_a_gpu_what_others_hold_there_does_not_count(monkeypatch):
    """The allocator's figures: 900 bytes of others and 100 of ours before, 1,500 at the most."""
    seen = {"memory_allocated": 1000, "max_memory_allocated": 1500}
    for name, bytes in seen.items():
        monkeypatch.setattr(torch.cuda, name, lambda device, bytes=bytes: bytes)
    for name in ("reset_peak_memory_stats", "synchronize"):
        monkeypatch.setattr(torch.cuda, name, lambda device: None)
    ours = torch.zeros(25)
    assert peak_of(lambda: None, torch.device("cuda"), [ours, ours.view(5, 5)]) == 600
