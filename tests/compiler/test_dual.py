"""What a Dual promises to those who hold one."""

import copy

import pytest
import torch
from support.comparison import compile_text
from support.nets import Auxiliary, Drops, Scales, Tied, Tiny, images
from support.two_paths import two_paths
from torch import fx, nn
from torchvision import models

import dcil_dsl as dcil

DCIL = two_paths("prune Conv2d to global(50%)", mix="private BatchNorm2d\n  private last Linear")
NO_NORMS = DCIL.replace("private BatchNorm2d", "")
ONE_PATH = """
language 1
prune Conv2d to 50%
mix {
  path sparse = masked
  update kept, pruned by sparse
  loss cross_entropy(sparse)
  deploy sparse
}
train { epochs = 2ep  optimizer = sgd(lr=0.1) }
"""


@pytest.mark.parametrize("training", [True, False], ids=["train", "eval"])
@pytest.mark.parametrize("net", [Tiny, Drops, Scales, lambda: models.resnet18(num_classes=3)])
def test_with_every_mask_true_each_path_equals_the_original_bit_for_bit(net, training):
    torch.manual_seed(0)
    model = net().train(training)
    has_norms = any(isinstance(module, nn.BatchNorm2d) for module in model.modules())
    dual = compile_text(DCIL if has_norms else NO_NORMS, model).train(training)
    x = images(size=32)
    for path in ("sparse", "dense"):
        torch.manual_seed(1)
        with torch.no_grad():
            outputs = dual(x)
        torch.manual_seed(1)
        expected = model(x)
        if path == "dense":  # the sparse path has drawn its random numbers before
            expected = model(x)
        assert torch.equal(outputs[path], expected)


def test_the_model_given_is_not_changed():
    model = Tiny().eval()
    model.norm.train()
    before = copy.deepcopy(model.state_dict())
    attributes = sorted(vars(model))
    dual = compile_text(DCIL, model)
    dual.train().begin_step(0)
    sum(y.sum() for y in dual(images()).values()).backward()
    assert model.state_dict().keys() == before.keys()
    assert all(torch.equal(v, before[k]) for k, v in model.state_dict().items())
    assert sorted(vars(model)) == attributes
    assert not model.training and model.norm.training
    assert all(p.grad is None for p in model.parameters())


def test_names_and_order_of_the_weights_stay_and_twins_come_last():
    model = Tiny()
    dual = compile_text(DCIL, model)
    names = [name for name, _ in dual.trainable()]
    original = [name for name, _ in model.named_parameters()]
    assert names[: len(original)] == original
    assert names[len(original) :] == [
        "norm__dense.weight",
        "norm__dense.bias",
        "head__dense.weight",
        "head__dense.bias",
    ]


def test_a_weight_learns_from_exactly_one_path():
    """DCIL: kept entries from the sparse path, pruned ones from the dense."""
    torch.manual_seed(0)
    dual = compile_text(DCIL, Tiny())
    dual.begin_step(0)
    x, w = images(), dual.get_parameter("conv.weight")
    gradients = {}
    for path in ("sparse", "dense"):
        w.grad = None
        dual(x)[path].square().sum().backward()
        gradients[path] = w.grad
    mask = dual.masks["conv.weight"]
    assert gradients["sparse"][mask].all() and not gradients["sparse"][~mask].any()
    assert gradients["dense"][~mask].all() and not gradients["dense"][mask].any()


def test_a_recipe_with_one_path_makes_one_forward():
    dual = compile_text(ONE_PATH, Tiny())
    calls = [node for node in dual.graph.nodes if node.name.startswith("conv") and node.args]
    dual.begin_step(0)
    assert list(dual(images())) == ["sparse"]
    assert sum(node.name == "conv" for node in calls) == 1
    assert len(dual.trainable()) == len(list(Tiny().parameters()))


def test_what_stands_before_the_first_difference_is_computed_once():
    dual = compile_text(DCIL.replace("mix {", "keep first Conv2d\nmix {", 1), Tiny())
    runs = []
    dual.stem.register_forward_hook(lambda *_: runs.append("module"))
    names = [node.name for node in dual.graph.nodes]
    assert "stem" in names and "stem_sparse" not in names
    assert "norm_sparse" in names and "norm_dense" in names


def test_a_kept_stem_learns_from_the_paths_that_its_shares_name():
    torch.manual_seed(0)
    dual = compile_text(DCIL.replace("mix {", "keep first Conv2d\nmix {", 1), Tiny())
    x = images()
    dual.begin_step(0)
    dual(x)["dense"].sum().backward()
    assert dual.stem.weight.grad is None or not dual.stem.weight.grad.any()
    dual(x)["sparse"].square().sum().backward()
    assert dual.stem.weight.grad.any()


def test_a_path_whose_losses_are_closed_is_not_run_in_training_but_is_in_evaluation():
    text = DCIL.replace("loss cross_entropy(dense)", "loss cross_entropy(dense) until 1ep")
    dual = compile_text(text, Tiny())
    dual.begin_step(9)
    assert list(dual(images())) == ["sparse", "dense"]
    dual.begin_step(10)
    assert list(dual(images())) == ["sparse"]
    assert list(dual.eval()(images())) == ["sparse", "dense"]


def test_graphs_that_differ_between_modes_are_both_kept():
    model = Auxiliary()
    dual = compile_text(NO_NORMS.replace("private last Linear", ""), model)
    dual.begin_step(0)
    assert isinstance(dual(images())["dense"], tuple)
    assert isinstance(dual.eval()(images())["dense"], torch.Tensor)


def test_tied_weights_share_one_mask_and_are_zero_at_both_ends():
    text = ONE_PATH.replace("prune Conv2d", "prune Linear")
    dual = compile_text(text, Tied())
    dual.refresh(0)
    assert list(dual.masks) == ["first.weight"]
    model = dcil.export(dual)
    assert model.first.weight is model.second.weight
    assert (model.first.weight == 0).sum() == 18
    x = torch.randn(2, 6)
    assert torch.equal(model.eval()(x), dual.eval()(x)["sparse"])


@pytest.mark.parametrize("path", ["sparse", "dense"])
def test_the_collapsed_model_computes_what_its_path_did_and_loads_strictly(path):
    from dcil_dsl.exporting.export import export

    torch.manual_seed(0)
    dual = compile_text(DCIL, Tiny())
    dual.begin_step(0)
    for name, parameter in dual.trainable():
        if "__dense" in name:
            parameter.data.add_(0.1)
    dual(images())  # statistics of the two norms part
    model = export(dual, path).eval()
    assert type(model) is Tiny
    assert torch.equal(model(images(seed=1)), dual.eval()(images(seed=1))[path])
    untouched = Tiny()
    untouched.load_state_dict(model.state_dict(), strict=True)
    zeros = sum((p == 0).sum() for n, p in model.named_parameters() if n in dual.masks)
    assert zeros == ((108 + 144) // 2 if path == "sparse" else 0)


@pytest.mark.parametrize("net", [Tiny, Scales])
def test_a_deep_copy_is_independent_and_equal(net):
    dual = compile_text(DCIL if net is Tiny else NO_NORMS, net())
    dual.begin_step(0)
    twin = copy.deepcopy(dual)
    x = images()
    assert torch.equal(twin(x)["sparse"], dual(x)["sparse"])
    twin.get_parameter("conv.weight").data.zero_()
    assert dual.get_parameter("conv.weight").any()
    assert isinstance(twin, fx.GraphModule)


def test_masks_are_boolean_buffers_next_to_their_weights():
    dual = compile_text(DCIL, Tiny())
    assert dual.conv.weight_mask.dtype == torch.bool
    assert "conv.weight_mask" in dict(dual.named_buffers())
    assert dual.masks["conv.weight"] is dual.conv.weight_mask


def test_fresh_twins_are_the_same_each_time_and_leave_the_random_numbers_alone():
    text = DCIL.replace("private last Linear", "private last Linear { init = fresh }")
    model = Tiny()
    torch.manual_seed(7)
    expected = torch.rand(3)
    torch.manual_seed(7)
    one = compile_text(text, model)
    assert torch.equal(torch.rand(3), expected)
    two = compile_text(text, model)
    assert torch.equal(one.head__dense.weight, two.head__dense.weight)
    assert not torch.equal(one.head__dense.weight, one.head.weight)


def test_a_compiled_step_has_one_graph_and_is_not_compiled_again_when_masks_move():
    torch._dynamo.reset()
    dual = compile_text(DCIL, Tiny())
    graphs = []

    def backend(graph, inputs):
        graphs.append(graph)
        return graph

    compiled = torch.compile(dual, backend=backend, fullgraph=True)
    for step in (0, 8, 16):
        dual.begin_step(step)
        torch.nn.init.normal_(dual.conv.weight)
        outputs = compiled(images())
        assert torch.equal(outputs["sparse"], dual(images())["sparse"])
        sum(y.sum() for y in outputs.values()).backward()
    assert len(graphs) == 1


def test_a_plan_for_another_model_is_refused():
    plan = compile_text(DCIL, Tiny()).plan
    with pytest.raises(dcil.InputError, match="not the model that was planned"):
        dcil.compile(plan, nn.Sequential(nn.Conv2d(3, 4, 3)))
