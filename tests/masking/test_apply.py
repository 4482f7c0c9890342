"""A module that reads other weights computes what it would if they were its own."""

import copy

import pytest
import torch
from torch import nn

from dcil_dsl.model.calls import apply_layer


def changed(module):
    """Parameters of the module's own shapes and other values."""
    generator = torch.Generator().manual_seed(5)
    return {
        name: torch.randn(p.shape, generator=generator).to(p.dtype).requires_grad_()
        for name, p in module.named_parameters()
    }


def with_parameters(module, parameters):
    copied = copy.deepcopy(module)
    with torch.no_grad():
        for name, parameter in copied.named_parameters():
            parameter.copy_(parameters[name])
    return copied


class Scaled(nn.Conv2d):
    """A convolution that does something of its own besides."""

    def forward(self, x):
        return 2 * super().forward(x)


def case(name, module, *shape):
    return pytest.param(module, shape, id=name)


LAYERS = [
    case("conv1d", lambda: nn.Conv1d(4, 6, 3), 2, 4, 9),
    case("conv2d", lambda: nn.Conv2d(4, 6, 3, stride=2, dilation=2), 2, 4, 9, 9),
    case("conv3d", lambda: nn.Conv3d(2, 3, 2), 2, 2, 4, 4, 4),
    case("no bias", lambda: nn.Conv2d(4, 6, 3, bias=False), 2, 4, 9, 9),
    case("circular", lambda: nn.Conv2d(4, 6, 3, padding=1, padding_mode="circular"), 2, 4, 9, 9),
    case("reflect", lambda: nn.Conv1d(4, 6, 3, padding=2, padding_mode="reflect"), 2, 4, 9),
    case("padding same", lambda: nn.Conv2d(4, 6, (3, 5), padding="same"), 2, 4, 9, 9),
    case("padding valid", lambda: nn.Conv2d(4, 6, 3, padding="valid"), 2, 4, 9, 9),
    case("groups", lambda: nn.Conv2d(4, 6, 3, groups=2), 2, 4, 9, 9),
    case("depthwise", lambda: nn.Conv2d(4, 8, 3, groups=4), 2, 4, 9, 9),
    case("subclass", lambda: Scaled(4, 6, 3), 2, 4, 9, 9),
    case("transposed 1d", lambda: nn.ConvTranspose1d(4, 6, 3), 2, 4, 9),
    case("transposed 2d", lambda: nn.ConvTranspose2d(4, 6, 3, stride=2, groups=2), 2, 4, 5, 5),
    case("linear", lambda: nn.Linear(4, 6), 2, 4),
    case("linear, no bias", lambda: nn.Linear(4, 6, bias=False), 2, 3, 4),
    case("layer norm", lambda: nn.LayerNorm(4), 2, 3, 4),
    case("layer norm, no bias", lambda: nn.LayerNorm((3, 4), eps=0.5, bias=False), 2, 3, 4),
    case("layer norm, no weight", lambda: nn.LayerNorm(4, elementwise_affine=False), 2, 3, 4),
    case("group norm", lambda: nn.GroupNorm(2, 4), 2, 4, 5),
    case("batch norm", lambda: nn.BatchNorm2d(4), 3, 4, 5, 5),
    case("prelu", lambda: nn.PReLU(4), 3, 4, 5),
    case("several in one", lambda: nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 2)), 3, 4),
]


@pytest.mark.parametrize("build, shape", LAYERS)
def test_it_computes_what_the_module_would_with_those_weights(build, shape):
    torch.manual_seed(0)
    module = build()
    parameters, x = changed(module), torch.randn(shape, requires_grad=True)
    expected = with_parameters(module, parameters)
    ours, theirs = apply_layer(module, parameters, x), expected(x)
    assert torch.equal(ours, theirs)
    ours.square().sum().backward()
    theirs.square().sum().backward()
    for name, parameter in expected.named_parameters():
        assert torch.equal(parameters[name].grad, parameter.grad), name


@pytest.mark.parametrize("build, shape", LAYERS)
def test_the_modules_own_weights_are_neither_changed_nor_taught(build, shape):
    torch.manual_seed(0)
    module = build()
    before = copy.deepcopy(dict(module.named_parameters()))
    apply_layer(module, changed(module), torch.randn(shape, requires_grad=True)).sum().backward()
    for name, parameter in module.named_parameters():
        assert torch.equal(parameter, before[name]) and parameter.grad is None


def test_the_statistics_of_a_batch_norm_move_in_training_and_rest_in_evaluation():
    module = nn.BatchNorm1d(3, momentum=0.5)
    x = torch.randn(8, 3) + 4
    apply_layer(module, changed(module), x)
    assert torch.allclose(module.running_mean, 0.5 * x.mean(0))
    assert module.num_batches_tracked == 1
    apply_layer(module.eval(), changed(module), x)
    assert module.num_batches_tracked == 1


@pytest.mark.parametrize("training", [True, False], ids=["train", "eval"])
def test_attention_reads_both_its_projections(training):
    torch.manual_seed(0)
    module = nn.MultiheadAttention(8, 2, batch_first=True).train(training)
    parameters, x = changed(module), torch.randn(2, 5, 8)
    ours, weights = apply_layer(module, parameters, x, x, x, need_weights=True)
    theirs, their_weights = with_parameters(module, parameters)(x, x, x, need_weights=True)
    assert torch.equal(ours, theirs) and torch.equal(weights, their_weights)
    ours.sum().backward()
    assert all(p.grad is not None for name, p in parameters.items() if "in_proj_weight" in name)
    assert parameters["out_proj.weight"].grad.abs().sum() > 0


def test_arguments_by_name_are_passed_on():
    torch.manual_seed(0)
    module = nn.Linear(4, 6)
    parameters, x = changed(module), torch.randn(2, 4)
    assert torch.equal(apply_layer(module, parameters, input=x), apply_layer(module, parameters, x))
    conv = nn.Conv2d(4, 6, 3)
    weights, images = changed(conv), torch.randn(2, 4, 5, 5)
    assert torch.equal(apply_layer(conv, weights, input=images), apply_layer(conv, weights, images))


@pytest.mark.parametrize("build", [lambda: nn.Linear(2, 2), lambda: nn.Conv1d(2, 2, 1)])
def test_hooks_run_and_see_the_other_weights(build):
    module = build()
    module.register_forward_pre_hook(lambda _, inputs: (inputs[0] + 1,))
    module.register_forward_hook(lambda module, _, output: output * module.weight.sum())
    parameters = changed(module)
    x = torch.ones(1, 2) if isinstance(module, nn.Linear) else torch.ones(1, 2, 1)
    expected = with_parameters(module, parameters)(x)
    assert torch.equal(apply_layer(module, parameters, x), expected)


@pytest.mark.parametrize("norm", ["weight_norm", "spectral_norm", "orthogonal"])
@pytest.mark.parametrize("build", [lambda: nn.Linear(4, 4), lambda: nn.Conv2d(4, 4, 1)])
def test_a_weight_made_of_other_parameters_is_made_of_the_other_ones(norm, build):
    torch.manual_seed(0)
    module = getattr(nn.utils.parametrizations, norm)(build()).eval()
    parameters = {name: p.detach() + 0.5 for name, p in module.named_parameters()}
    x = torch.randn(2, 4) if isinstance(module, nn.Linear) else torch.randn(2, 4, 3, 3)
    expected = copy.deepcopy(module)
    expected.load_state_dict(parameters, strict=False)
    assert torch.equal(apply_layer(module, parameters, x), expected(x))
