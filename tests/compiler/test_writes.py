"""What a forward changes in place, and what it does beside its arithmetic: right or refused."""

import threading

import pytest
import torch
import torch.nn.functional as F
from support.comparison import compile_text, worst_difference
from support.nets import images
from support.two_paths import two_paths
from torch import nn
from torch.nn.utils import parametrizations

import dcil_dsl as dcil
from dcil_dsl.model import TraceError, trace_model

RECIPE = two_paths('prune "conv" to 50%')


class Net(nn.Module):
    """A stem that both paths share, a pruned convolution, a head; `body` is the forward."""

    def __init__(self, body, change=None):
        super().__init__()
        self.stem = nn.Conv2d(3, 8, 3, padding=1)
        self.conv = nn.Conv2d(8, 8, 3, padding=1)
        self.head = nn.Linear(8, 10)
        self.register_buffer("offset", torch.tensor([0.1, 0.2, 0.3]))
        self.body = body
        if change is not None:
            change(self)

    def forward(self, x):
        return self.head(self.body(self, x).mean((2, 3)))


def residual_in_place(net, x):
    x = net.stem(x) * 1
    x += net.conv(x * 1)
    return x


def residual_through_a_view(net, x):
    x = net.stem(x) * 1
    x.view(x.shape).add_(net.conv(x * 1))
    return x


def shared_write_after_a_path_has_read(net, x):
    x = net.stem(x) * 1
    y = x + net.conv(x * 1)
    return F.relu_(x) + y


def dropout_in_place(net, x):
    x = net.stem(x) * 1
    return net.conv(F.dropout(x, 0.5, net.training, inplace=True) * 1) + x


def buffer_in_the_arithmetic(net, x):
    return net.conv(net.stem(x - net.offset.view(1, 3, 1, 1)))


def constant_that_is_written(net, x):
    total = torch.zeros((), dtype=torch.float64)
    total += x.mean()
    return net.conv(net.stem(x)) * total


def own_running_mean(net, x):
    y = net.stem(x)
    net.offset.mul_(0.9).add_(0.1 * y.mean((0, 2, 3)).detach()[:3])
    return net.conv(y) * net.offset.sum().detach().clone()


def dropout_in_attention(net, x):
    y = net.stem(x).flatten(2).transpose(1, 2)
    y = F.scaled_dot_product_attention(y, y, y, dropout_p=0.5)
    return net.conv(y.transpose(1, 2).unflatten(2, x.shape[2:]))


WRITES = [
    residual_in_place,
    residual_through_a_view,
    shared_write_after_a_path_has_read,
    dropout_in_place,
    buffer_in_the_arithmetic,
    constant_that_is_written,
    own_running_mean,
    dropout_in_attention,
]


def plain(net, x):
    return net.conv(net.stem(x))


def hook_on_a_pruned_layer(net):
    net.conv.register_forward_hook(lambda module, inputs, output: output * 2)
    net.conv.register_forward_pre_hook(lambda module, inputs: (inputs[0] + 1,))


def weight_norm_on_the_stem(net):
    net.stem = parametrizations.weight_norm(net.stem)


def spectral_norm_on_the_stem(net):
    net.stem = parametrizations.spectral_norm(net.stem)


CHANGES = [hook_on_a_pruned_layer, weight_norm_on_the_stem, spectral_norm_on_the_stem]


@pytest.mark.parametrize("body", WRITES, ids=lambda body: body.__name__)
def test_what_a_forward_writes_stays_on_its_path(body):
    assert _worst(Net(body)) < 1e-9


@pytest.mark.parametrize("change", CHANGES, ids=lambda change: change.__name__)
def test_hooks_and_parametrised_weights_are_honoured(change):
    assert _worst(Net(plain, change)) < 1e-9


def test_a_write_that_all_paths_share_is_done_once():
    dual = compile_text(RECIPE, Net(lambda net, x: net.conv(F.relu_(net.stem(x)))))
    assert dual.code.count("relu_(") == 1


def test_a_tensor_made_by_the_forward_is_not_in_what_is_exported():
    model = Net(constant_that_is_written)
    dual = compile_text(RECIPE, model)
    assert dual.state_dict().keys() == model.state_dict().keys() | {"conv.weight_mask"}
    assert [name for name, _ in dcil.export(dual, unfinished=True).named_buffers()] == ["offset"]


def test_a_weight_that_is_written_in_place_is_refused_and_named():
    def body(net, x):
        net.conv.weight.mul_(0.9)
        return plain(net, x)

    with pytest.raises(TraceError, match=r"`conv` \(Conv2d\).* weight `weight` in place"):
        trace_model(Net(body))


def test_a_model_with_hooks_of_its_own_stays_opaque_and_runs_them():
    def hooked(net):
        net.register_forward_hook(lambda module, inputs, output: output * 2)

    assert list(trace_model(Net(plain, hooked)).opaque) == [""]
    assert _worst(Net(plain, hooked)) < 1e-9


@pytest.mark.parametrize(
    "build, message",
    [
        (lambda: nn.Sequential(nn.LazyConv2d(4, 3)), r"`0` \(LazyConv2d\).*lazy"),
        (lambda: nn.Sequential(torch.jit.script(nn.ReLU())), "`0` .*torch.jit"),
        (lambda: nn.Sequential(nn.DataParallel(nn.ReLU())), "`model.0.module`"),
        (lambda: _uncopyable(), "cannot be copied"),
    ],
    ids=["lazy", "jit", "wrapped", "uncopyable"],
)
def test_what_cannot_be_rewritten_is_refused_with_module_and_reason(build, message):
    with pytest.raises(TraceError, match=message):
        trace_model(build())


def _uncopyable():
    model = nn.Sequential(nn.ReLU())
    model.lock = threading.Lock()
    return model


def test_tracing_changes_no_statistic_of_a_parametrised_weight():
    torch.manual_seed(0)
    model = Net(plain, spectral_norm_on_the_stem).train()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    after = trace_model(model, (images(),)).model.state_dict()
    assert all(torch.equal(after[name], value) for name, value in before.items())


def _worst(model):
    torch.manual_seed(0)
    return worst_difference(model.double(), 8, prune="Conv2d", private="")
