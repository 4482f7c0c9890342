"""Hooks and functions that hold parts of the model: right, or refused with the name."""

import functools
import weakref

import pytest
import torch
from support.comparison import compile_text, worst_difference
from support.two_forwards import weighted_squares
from support.two_paths import two_paths
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from dcil_dsl.diagnostics import InputError
from dcil_dsl.model import TraceError, trace_model

WIDTH = 6


class Net(nn.Module):
    def __init__(self, change=None):
        super().__init__()
        self.stem, self.a = nn.Linear(WIDTH, WIDTH), nn.Linear(WIDTH, WIDTH)
        self.b, self.head = nn.Linear(WIDTH, WIDTH), Head()
        self.slope, self.fn = 0.3, None
        if change is not None:
            change(self)

    def forward(self, x):
        h = self.a(self.stem(x)) + 0 * self.b(x)
        return self.head(h if self.fn is None else self.fn(h))

    def add_b(self, module, inputs, output):
        return output + self.b(inputs[0])

    def scale(self, module, inputs, output):
        return output * self.slope


class Head(nn.Module):
    def __init__(self):
        super().__init__()
        self.one, self.two = nn.Linear(WIDTH, WIDTH), nn.Linear(WIDTH, 4)

    def forward(self, x):
        return self.two(self.one(x).tanh())

    def add_two(self, module, inputs, output):
        return output + self.two(inputs[0]).sum(-1, keepdim=True)


def add(module, inputs, output, other=None):
    return output + other(inputs[0])


def bound_method(net):
    net.a.register_forward_hook(net.add_b)


def bound_method_of_a_part(net):
    net.head.one.register_forward_hook(net.head.add_two)


def bound_method_that_reads_a_setting(net):
    net.a.register_forward_hook(net.scale)


def partial_with_a_module(net):
    net.a.register_forward_hook(functools.partial(add, other=net.b))


def partial_with_the_module_itself(net):
    net.head.register_forward_hook(functools.partial(add, other=net.head.one))
    net.head.two = nn.Linear(WIDTH, WIDTH)


def object_with_a_module(net):
    class Adds:
        def __init__(self, other):
            self.others = [other]

        def __call__(self, module, inputs):
            return (inputs[0] + self.others[0](inputs[0]),)

    net.a.register_forward_pre_hook(Adds(net.b))


def function_that_holds_a_setting(net):
    net.a.register_forward_hook(lambda module, inputs, output: output.float().double() * net.slope)


def function_that_holds_the_activations(net):
    kept = []
    net.a.register_forward_hook(lambda module, inputs, output: kept.append(output))


def function_of_its_own_module(net):
    net.a.register_forward_hook(
        lambda module, inputs, output: (
            output + module(inputs[0]).detach() if False else output + module.weight.sum()
        )
    )


def full_backward_hook(net):
    # What a path has no share of is detached: its gradient is None.
    net.a.register_full_backward_hook(
        lambda module, given, grads: tuple(g if g is None else g * 3 for g in given)
    )


def full_backward_pre_hook(net):
    net.a.register_full_backward_pre_hook(lambda module, grads: (grads[0] * 3,))


def forward_pre_hook_with_kwargs(net):
    net.a.register_forward_pre_hook(
        lambda module, args, kwargs: ((args[0] + 1,), kwargs), with_kwargs=True
    )


def backward_pre_hook_of_the_model(net):
    net.register_full_backward_pre_hook(lambda module, grads: (grads[0] * 3,))


def attribute_that_is_a_bound_method(net):
    net.fn = net.b.forward


def attribute_that_is_a_partial(net):
    net.fn = functools.partial(torch.add, net.b.bias)


def attribute_that_holds_nothing(net):
    net.fn = lambda h: h.relu()


RIGHT = [
    bound_method,
    bound_method_of_a_part,
    bound_method_that_reads_a_setting,
    partial_with_a_module,
    partial_with_the_module_itself,
    object_with_a_module,
    function_that_holds_a_setting,
    function_that_holds_the_activations,
    function_of_its_own_module,
    full_backward_hook,
    full_backward_pre_hook,
    forward_pre_hook_with_kwargs,
    backward_pre_hook_of_the_model,
    attribute_that_is_a_bound_method,
    attribute_that_is_a_partial,
    attribute_that_holds_nothing,
]


@pytest.mark.parametrize("prune", ["Linear", 'Linear except "a"', 'Linear except "b"'])
@pytest.mark.parametrize("change", RIGHT, ids=lambda change: change.__name__)
def test_a_hook_uses_the_weights_of_its_path(change, prune):
    torch.manual_seed(0)
    worst = worst_difference(
        Net(change).double(),
        inputs=tokens,
        losses=weighted_squares,
        prune=prune,
        keep='keep "stem"',
        steps=3,
    )
    assert worst < 1e-9


def closure_over_a_module(net):
    other = net.b
    net.a.register_forward_hook(lambda module, inputs, output: output + other(inputs[0]))


def closure_over_the_model(net):
    net.a.register_forward_hook(lambda module, inputs, output: output + net.b(inputs[0]))


def closure_over_a_weight(net):
    weight = net.b.weight
    net.a.register_forward_pre_hook(lambda module, inputs: (inputs[0] @ weight,))


def closure_over_a_list(net):
    others = {"all": [net.b]}
    net.a.register_forward_hook(lambda module, inputs, output: output + others["all"][0](inputs[0]))


def default_argument(net):
    def hook(module, inputs, output, other=net.b):
        return output + other(inputs[0])

    net.a.register_forward_hook(hook)


def closure_over_a_bound_method(net):
    other = net.b.forward
    net.a.register_forward_hook(lambda module, inputs, output: output + other(inputs[0]))


def closure_over_a_partial(net):
    other = functools.partial(nn.functional.linear, weight=net.b.weight)
    net.a.register_forward_hook(lambda module, inputs, output: output + other(inputs[0]))


def partial_of_a_closure(net):
    def hook(factor, module, inputs, output):
        return output + factor * net.b(inputs[0])

    net.a.register_forward_hook(functools.partial(hook, 2.0))


def global_of_the_script(net):
    globals()["THE_LAYER"] = net.b
    net.a.register_forward_hook(
        lambda module, inputs, output: output + THE_LAYER(inputs[0])  # noqa: F821
    )


def attribute_that_is_a_function(net):
    net.fn = lambda h: net.b(h)


def attribute_in_a_list(net):
    net.table = [{"b": lambda h: net.b(h)}]


def forward_that_is_replaced(net):
    forward = net.forward
    net.forward = lambda x: forward(x) * 2


def mode_of_the_model(net):
    net.fn = lambda h: nn.functional.dropout(h, 0.5, net.training)


def weak_reference(net):
    net.a.parent = weakref.ref(net)


REFUSED = {
    closure_over_a_module: r"`a` \(Linear\).* a hook of it holds `b`",
    closure_over_the_model: r"`a` \(Linear\).* a hook of it holds the model",
    closure_over_a_weight: r"`a` \(Linear\).* a hook of it holds `b.weight`",
    closure_over_a_list: r"`a` \(Linear\).* a hook of it holds `b`",
    default_argument: r"`a` \(Linear\).* a hook of it holds `b`",
    closure_over_a_bound_method: r"`a` \(Linear\).* a hook of it holds `b`",
    closure_over_a_partial: r"`a` \(Linear\).* a hook of it holds `b.weight`",
    partial_of_a_closure: r"`a` \(Linear\).* a hook of it holds the model",
    global_of_the_script: r"`a` \(Linear\).* a hook of it holds `b`",
    attribute_that_is_a_function: "forward of Net .* its `fn` holds the model",
    attribute_in_a_list: "forward of Net .* its `table` holds the model",
    forward_that_is_replaced: "forward of Net .* its `forward` holds the model",
    mode_of_the_model: "forward of Net .* its `fn` holds the model",
    weak_reference: r"`a` \(Linear\).* its `parent` holds the model",
}


@pytest.mark.parametrize("change", REFUSED, ids=lambda change: change.__name__)
def test_a_function_that_a_copy_would_leave_behind_is_refused_by_name(change):
    with pytest.raises(TraceError, match=REFUSED[change]):
        trace_model(Net(change))


@pytest.mark.parametrize("kind", ["register_hook", "register_post_accumulate_grad_hook"])
def test_a_hook_on_a_weights_gradient_is_refused_until_it_is_removed(kind):
    net = Net()
    handle = getattr(net.head.two.weight, kind)(lambda gradient: None)
    with pytest.raises(TraceError, match=r"`head.two` \(Linear\).* `weight` has a hook"):
        trace_model(net)
    handle.remove()
    trace_model(net)


@pytest.mark.parametrize(
    "register",
    [
        nn.modules.module.register_module_forward_hook,
        nn.modules.module.register_module_forward_pre_hook,
        nn.modules.module.register_module_full_backward_hook,
        nn.modules.module.register_module_full_backward_pre_hook,
    ],
    ids=lambda register: register.__name__,
)
def test_a_hook_for_all_modules_is_refused_by_name_before_and_after_compiling(register):
    def doubles(module, *values):
        return None

    dual = compile_text(RECIPE, Net(), tokens(0)[0])
    handle = register(doubles)
    try:
        with pytest.raises(TraceError, match=r"forward of Net .* the hook `.*doubles` is regis"):
            trace_model(Net())
        with pytest.raises(InputError, match=r"the hook `.*doubles` was registered"):
            dual.begin_step(0)
    finally:
        handle.remove()
    dual.begin_step(0)


def test_a_counter_of_torch_may_watch_all_modules():
    dual = compile_text(RECIPE, Net().double(), tokens(0)[0])
    with FlopCounterMode(display=False) as counter:
        dual.begin_step(0)
        dual(*tokens(0)[0])
    assert counter.get_total_flops() > 0


def test_a_hook_that_reaches_out_keeps_opaque_the_module_that_holds_both():
    assert list(trace_model(Net(bound_method_of_a_part)).opaque) == ["head"]
    assert list(trace_model(Net(bound_method_that_reads_a_setting)).opaque) == []


def test_the_model_given_keeps_its_hooks():
    net = Net(full_backward_hook)
    compile_text(RECIPE, net, tokens(0)[0])
    assert len(net.a._backward_hooks) == 1


RECIPE = two_paths('prune "b" to 50%')


def tokens(step):
    generator = torch.Generator().manual_seed(step)
    return (torch.randn(4, WIDTH, dtype=torch.float64, generator=generator),), {}
