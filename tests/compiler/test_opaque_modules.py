"""What stays one call of the graph is rewritten inside: equal to two plain forwards."""

import copy

import pytest
import torch
from support.comparison import compile_text, worst_difference
from support.opaque_nets import (
    HABITS,
    SHAPES,
    TOKENS,
    WIDTH,
    Around,
    Branch,
    Detects,
    Doubles,
    Fork,
    Gate,
    Habit,
    Root,
    Words,
)
from support.two_forwards import weighted_squares
from support.two_paths import two_paths
from torch import nn
from torch.utils import _pytree as pytree

from dcil_dsl.diagnostics import InputError
from dcil_dsl.model import trace_model

ATTENTION = "Linear, MultiheadAttention"
NORMS = "private BatchNorm1d"


def tokens(step, scale=1.0):
    generator = torch.Generator().manual_seed(step)
    x = torch.randn(4, TOKENS, WIDTH, dtype=torch.float64, generator=generator)
    return (scale * x,), {}


def numbers(step):
    generator = torch.Generator().manual_seed(step)
    return (torch.randint(0, 20, (4, TOKENS), generator=generator),), {}


def first_of(part, x):
    return part(x)[0]


def seeded(build):
    torch.manual_seed(0)
    return build().double()


def differ(model, *, inputs=tokens, **more):
    more.setdefault("keep", "")
    more.setdefault("steps", 4)
    return worst_difference(model, inputs=inputs, losses=weighted_squares, **more)


CASES = {
    "lstm": (
        lambda: Around(nn.LSTM(WIDTH, WIDTH, 2, dropout=0.3, batch_first=True), first_of),
        "Linear, LSTM",
        "",
    ),
    "gru": (
        lambda: Around(nn.GRU(WIDTH, WIDTH // 2, bidirectional=True, batch_first=True), first_of),
        "GRU",
        "private last Linear",
    ),
    "attention": (
        lambda: Around(
            nn.MultiheadAttention(WIDTH, 2, dropout=0.2, batch_first=True),
            lambda part, x: part(x, x, x)[0],
        ),
        ATTENTION,
        "",
    ),
    "attention of three widths": (
        lambda: Around(
            nn.MultiheadAttention(WIDTH, 2, kdim=3, vdim=2, batch_first=True),
            lambda part, x: part(x, x[..., :3], x[..., 3:5])[0],
        ),
        ATTENTION,
        "",
    ),
    "encoder layer": (
        lambda: Around(nn.TransformerEncoderLayer(WIDTH, 2, 12, dropout=0.1, batch_first=True)),
        ATTENTION,
        "private LayerNorm",
    ),
    "transformer": (
        lambda: Around(
            nn.Transformer(WIDTH, 2, 1, 1, 12, dropout=0.1, batch_first=True),
            lambda part, x: part(x, x),
        ),
        ATTENTION,
        "private LayerNorm",
    ),
    "control flow, private norm": (lambda: Around(Gate()), "Linear", NORMS),
    "control flow, shared norm": (lambda: Around(Gate()), "Linear", ""),
    "control flow, all private": (
        lambda: Around(Gate()),
        'Linear except Linear in "part"',
        'private "part"',
    ),
    "the model itself": (Root, "first Linear", f"{NORMS}, last Linear"),
    "one module, two names": (Doubles, "last Linear", NORMS),
    "one module, two names, pruned": (Doubles, "Linear", ""),
}


@pytest.mark.parametrize("training", [True, False], ids=["train", "eval"])
@pytest.mark.parametrize("name", CASES)
def test_outputs_and_every_gradient_equal_the_reference(name, training):
    build, prune, private = CASES[name]
    assert differ(seeded(build), prune=prune, private=private, training=training) < 1e-9


@pytest.mark.parametrize("habit", HABITS, ids=lambda habit: habit.__name__)
def test_what_a_graph_cannot_express_is_kept_opaque_and_right(habit):
    model = seeded(lambda: Around(Habit(habit)))
    assert list(trace_model(model).opaque) == ["part"]
    assert differ(model, prune="Linear") < 1e-9
    alone = seeded(lambda: Habit(habit))
    assert list(trace_model(alone).opaque) == [""]


def test_what_one_path_has_put_aside_is_not_what_another_finds():
    def caches(net, x):
        if net.last is None:
            net.last = net.two.weight.sum()
        net.calls += 1
        return x * net.last * net.calls

    model = seeded(lambda: Around(Habit(caches)))
    assert differ(model, prune="Linear", steps=1) < 1e-9
    dual = compile_text(_recipe("Linear"), model)
    dual.refresh(0)
    (x,), _ = tokens(0)
    dual.begin_step(0)
    outputs = [dual(x)["dense"] for _ in range(3)]
    torch.testing.assert_close(outputs[2] - outputs[1], outputs[1] - outputs[0])
    assert dual.part.calls == 0 and dual.part.last is None


@pytest.mark.parametrize("middle", [nn.Tanh, Gate], ids=["traced", "whole"])
@pytest.mark.parametrize("inside", [False, True], ids=["last traced", "last inside"])
def test_tied_weights_are_masked_at_both_ends(inside, middle):
    model = seeded(lambda: Words(middle(), inside))
    assert differ(model, prune="Embedding", inputs=numbers) < 1e-9
    dual = compile_text(_recipe("Embedding"), model, numbers(0)[0])
    assert list(dual.masks) == ["embedding.weight"]


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("training", [True, False], ids=["train", "eval"])
def test_outputs_have_the_structure_and_inputs_the_names_of_the_original(shape, training):
    def given(step):
        (x,), _ = tokens(step)
        return (x,), {"other": 2 * x, "scale": 0.5}

    model = seeded(lambda: Fork(SHAPES[shape]))
    assert differ(model, prune="Linear", inputs=given, training=training) < 1e-9


@pytest.mark.parametrize("training", [True, False], ids=["train", "eval"])
def test_lists_of_images_and_of_targets_pass_through(training):
    def given(step):
        generator = torch.Generator().manual_seed(step)
        images = [torch.randn(3, 4 + i, 5, generator=generator).double() for i in range(3)]
        return (images, [{"box": torch.ones(4).double() * i} for i in range(3)]), {}

    model = seeded(Detects)
    worst = differ(
        model, prune="Conv2d", private="private BatchNorm2d", inputs=given, training=training
    )
    assert worst < 1e-9


def test_an_argument_that_the_example_did_not_give_is_refused_by_name():
    model, (x,) = seeded(lambda: Fork(SHAPES["tuple"])), tokens(0)[0]
    dual = compile_text(_recipe("Linear"), model, (x,))
    dual.begin_step(0)
    assert torch.equal(dual(x, scale=1.0)["dense"][0], model(x)[0])
    with pytest.raises(TypeError, match="`other` is held at its default None"):
        dual(x, other=x)
    with pytest.raises(TypeError, match="`scale` is held at its default 1.0"):
        dual(x, scale=2.0)
    with pytest.raises(TypeError, match="`x` missing"):
        dual()
    with pytest.raises(TypeError, match="`y` is not an input"):
        dual(x, y=x)


def test_a_flag_in_the_example_is_part_of_the_graph():
    model, (x,) = seeded(lambda: Fork(SHAPES["tuple"])), tokens(0)[0]
    dual = compile_text(_recipe("Linear"), model, {"x": x, "scale": 2.0})
    dual.begin_step(0)
    assert torch.equal(dual(x, scale=2.0)["dense"][0], model(x, scale=2.0)[0])
    with pytest.raises(TypeError, match="`scale` is 2.0 in the example"):
        dual(x, scale=3.0)


def test_twins_inside_an_opaque_module_have_their_name_and_their_own_statistics():
    model = seeded(lambda: Around(Gate()))
    dual = compile_text(_recipe("Linear", NORMS), model).train()
    (x,), _ = tokens(0)
    dual.refresh(0)
    dual.before.bias.data.fill_(-100)  # into the branch with the norm
    dual.begin_step(0)
    dual(x)
    own = dual.get_submodule("part.body.1")
    twin = dual.get_submodule("part.body.1__dense")
    assert not torch.equal(own.running_mean, twin.running_mean)
    assert own.num_batches_tracked == twin.num_batches_tracked == 1
    assert [name for name, _ in dual.trainable()][-2:] == [
        "part.body.1__dense.weight",
        "part.body.1__dense.bias",
    ]


def test_the_weight_norm_of_old_computes_each_paths_weight_from_its_parts():
    model = seeded(lambda: Around(nn.utils.weight_norm(nn.Linear(WIDTH, WIDTH))))
    dual = compile_text(_recipe('Linear except "part"'), model).train()
    (x,), _ = tokens(0)
    dual.part.weight_v.data.mul_(-1)
    model.part.weight_v.data.mul_(-1)
    dual.begin_step(0)
    for mask in dual.masks.values():
        mask.fill_(True)
    outputs = dual(x)
    assert all(torch.equal(y, model(x)) for y in outputs.values())
    outputs["sparse"].sum().backward()
    assert dual.part.weight_v.grad.any() and dual.part.weight_g.grad.any()
    assert torch.equal(copy.deepcopy(dual)(x)["dense"], outputs["dense"])


@pytest.mark.parametrize("build", [lambda: Around(Gate()), Root], ids=["a part", "the model"])
def test_copies_averages_and_exports_hold(build):
    import dcil_dsl as dcil

    model, (x,) = seeded(build), tokens(0)[0]
    dual = compile_text(_recipe("first Linear", NORMS), model).train()
    dual.begin_step(0)
    sum(y.sum() for y in dual(x).values()).backward()
    twin = copy.deepcopy(dual)
    average = torch.optim.swa_utils.AveragedModel(dual, use_buffers=True)
    average.update_parameters(dual)
    exported = dcil.export(dual).eval()
    untouched = build().double()
    untouched.load_state_dict(exported.state_dict(), strict=True)
    dual.eval()
    for other in (twin.eval(), average.eval()):
        for path, y in dual(x).items():
            assert torch.equal(other(x)[path], y)
    assert torch.equal(exported(x), dual(x)["sparse"])
    assert torch.equal(untouched.eval()(x), exported(x))
    assert vars(exported).keys() == vars(model).keys()
    next(twin.parameters()).data.zero_()
    assert next(dual.parameters()).any()


def test_a_weight_that_the_forward_writes_to_is_refused():
    def shrinks(net, x):
        with torch.no_grad():
            net.two.weight.mul_(0.9)
        return x

    dual = compile_text(_recipe("Linear"), seeded(lambda: Around(Habit(shrinks)))).train()
    dual.begin_step(0)
    with pytest.raises(InputError, match="forward of Habit changes its weight `two.weight`"):
        dual(*tokens(0)[0])


def test_a_compiled_step_with_a_module_kept_opaque_equals_the_eager_one():
    torch._dynamo.reset()
    dual = compile_text(_recipe("Linear"), seeded(lambda: Around(Branch(nn.Linear(WIDTH, WIDTH)))))
    dual.begin_step(0)
    compiled = torch.compile(dual, backend="eager")
    (x,), _ = tokens(0)
    for ours, theirs in zip(
        pytree.tree_leaves(compiled(x)), pytree.tree_leaves(dual(x)), strict=True
    ):
        assert torch.equal(ours, theirs)


def _recipe(prune, private=""):
    return two_paths(f"prune {prune} to 50%", private)
