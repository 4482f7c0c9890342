"""What a network loses by a pruned layer, against the same done by hand in float64."""

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from dcil_dsl.diagnostics import InputError
from dcil_dsl.extras.sensitivity.job import measure_sensitivity
from dcil_dsl.extras.sensitivity.measure import measure, measure_layers


@pytest.fixture
def net():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(6, 8), nn.Dropout(0.5), nn.ReLU(), nn.Linear(8, 3)).train()


@pytest.fixture
def batches():
    torch.manual_seed(1)
    return [(torch.randn(n, 6), torch.randint(3, (n,))) for n in (5, 3)]


def by_hand(net, batches, name=None, num_gone=0):
    weights = {n: p.detach().double().clone() for n, p in net.named_parameters()}
    if name is not None:
        order = weights[name].abs().flatten().argsort()
        weights[name].flatten()[order[:num_gone]] = 0.0
    x = torch.cat([images for images, _ in batches]).double()
    y = torch.cat([labels for _, labels in batches])
    hidden = (x @ weights["0.weight"].T + weights["0.bias"]).relu()
    logits = hidden @ weights["3.weight"].T + weights["3.bias"]
    return float(F.cross_entropy(logits, y)), float((logits.argmax(1) == y).double().mean())


def test_the_unpruned_network_is_measured_over_all_examples_alike(net, batches):
    found, _ = measure_layers(net, [], batches, [])
    assert (found.loss, found.score) == pytest.approx(by_hand(net, batches), abs=1e-6)


@pytest.mark.parametrize("name, gone", [("0.weight", (24, 43)), ("3.weight", (12, 21))])
def test_a_level_takes_the_smallest_weights_of_one_layer_and_no_other(net, batches, name, gone):
    """48 and 24 weights at 50% and 90%: 24 and 4 stay, 12 and 2 (2.4, rounded down)."""
    gone = (gone[0], {"0.weight": 44, "3.weight": 22}[name])
    _, found = measure_layers(net, [name], batches, [0.5, 0.9])
    for quality, count in zip(found[name], gone, strict=True):
        wanted = by_hand(net, batches, name, count)
        assert (quality.loss, quality.score) == pytest.approx(wanted, abs=1e-6)


def test_the_network_is_left_as_it_was(net, batches):
    before = {name: tensor.clone() for name, tensor in net.state_dict().items()}
    measure_layers(net, ["0.weight", "3.weight"], batches, [0.5, 0.99])
    assert all(torch.equal(before[name], tensor) for name, tensor in net.state_dict().items())
    assert net.training and net[1].training


def test_a_failure_in_between_leaves_the_weights_whole(net, batches):
    before = net[0].weight.detach().clone()
    net.register_forward_pre_hook(lambda *_: None if (net[0].weight != 0).all() else 1 / 0)
    with pytest.raises(ZeroDivisionError):
        measure_layers(net, ["0.weight"], batches, [0.5])
    assert torch.equal(net[0].weight, before)


def test_a_network_without_a_finite_loss_is_refused(net, batches):
    nn.init.constant_(net[3].bias, float("nan"))
    with pytest.raises(InputError, match="not a finite number"):
        measure_layers(net, ["0.weight"], batches, [0.5])


def test_a_layer_without_a_finite_loss_at_a_level_is_named(net, batches):
    def spoil(module, inputs, output):
        if (module.weight == 0).sum() > 20:
            return output / 0.0 * 0.0

    net[0].register_forward_hook(spoil)
    measure_layers(net, ["0.weight"], batches, [0.25])
    with pytest.raises(InputError, match="with 0.weight pruned to 75 % is not a finite number"):
        measure_layers(net, ["0.weight"], batches, [0.25, 0.75])


def test_tied_weights_are_pruned_at_both_ends(batches):
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(6, 6, bias=False), nn.Linear(6, 6, bias=False))
    net[1].weight = net[0].weight
    _, found = measure_layers(net, ["0.weight"], batches, [0.5])
    gone = net[0].weight.detach().abs().flatten().argsort()[:18]
    with torch.no_grad():
        net[0].weight.flatten()[gone] = 0.0
    assert found["0.weight"][0] == measure(net, batches)


def test_a_run_folder_refuses_a_module_in_the_place_of_a_spec(tmp_path):
    with pytest.raises(InputError, match="a run folder takes a SPEC, not a module"):
        measure_sensitivity(tmp_path, nn.Linear(2, 2), None)
