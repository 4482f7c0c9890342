"""Tracing: right in both modes, harmless to the model, plain about what it cannot do."""

import copy

import pytest
import torch
import torch.nn.functional as F
from torch import fx, nn
from torchvision import models

from dcil_dsl.model import TraceError, trace_model
from dcil_dsl.model.compare import compare_with_model
from dcil_dsl.model.dataflow import reached_from
from dcil_dsl.model.trace import comparable, text_of


def run(traced, training, *args):
    model = copy.deepcopy(traced.model).train(training)
    return fx.GraphModule(model, traced.graph(training))(*args)


class Drops(nn.Module):
    def __init__(self):
        super().__init__()
        self.fc = nn.Linear(8, 8)

    def forward(self, x):
        return F.dropout(self.fc(x), 0.5, self.training)


def test_what_depends_on_the_mode_is_right_in_both():
    model, x = Drops(), torch.ones(2, 8)
    traced = trace_model(model)
    assert traced.train is not traced.eval
    assert torch.equal(run(traced, False, x), model.eval()(x))
    torch.manual_seed(0)
    ours = run(traced, True, x)
    torch.manual_seed(0)
    assert torch.equal(ours, model.train()(x)) and (ours == 0).any()


def test_where_the_modes_agree_there_is_one_graph():
    traced = trace_model(models.resnet18(num_classes=10))
    assert traced.train is traced.eval
    assert traced.graph(True) is traced.graph(False) is traced.train


class Late(nn.Module):
    """Two outputs in training, one in evaluation, and a part with a mode of its own."""

    def __init__(self):
        super().__init__()
        self.drops = Drops()
        self.side = nn.Linear(8, 2)

    def forward(self, x):
        x = self.drops(x)
        return (x, self.side(x)) if self.training else x


@pytest.mark.parametrize("training", [True, False], ids=["train", "eval"])
@pytest.mark.parametrize(
    "build, size",
    [
        (lambda: Late(), (3, 8)),
        (lambda: models.DenseNet(4, (1, 1), 8, drop_rate=0.5, num_classes=3), (2, 3, 32, 32)),
        (
            lambda: models.SwinTransformer(
                [4, 4], 8, [1, 1], [2, 2], [2, 2], dropout=0.1, num_classes=3
            ),
            (2, 3, 32, 32),
        ),
    ],
    ids=["late", "densenet", "swin"],
)
def test_models_whose_graph_depends_on_the_mode_equal_themselves_in_both(build, size, training):
    torch.manual_seed(0)
    model, x = build(), torch.randn(size)
    traced = trace_model(model)
    torch.manual_seed(1)
    ours = run(traced, training, x)
    torch.manual_seed(1)
    theirs = copy.deepcopy(model).train(training)(x)
    assert type(ours) is type(theirs)
    for a, b in zip(ours, theirs, strict=True):
        assert torch.equal(a, b)


def test_the_model_given_keeps_its_flags_its_values_and_its_attributes():
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), Drops())
    model[1].eval()  # one part frozen by its owner
    before = [(name, module.training) for name, module in model.named_modules()]
    names = [sorted(vars(module)) for module in model.modules()]
    traced = trace_model(model, (torch.ones(1, 3, 8, 10),))
    for net in (model, traced.model):
        assert [(name, module.training) for name, module in net.named_modules()] == before
    assert [sorted(vars(module)) for module in model.modules()] == names
    assert traced.model is not model
    assert traced.model[0].weight is not model[0].weight


class Makes(nn.Module):
    """A tensor made in forward, which fx keeps as an attribute of what it traces."""

    def __init__(self):
        super().__init__()
        self.fc = nn.Linear(3, 3)

    def forward(self, x):
        return self.fc(x) + torch.tensor([1.0, 2.0, 3.0])


def test_a_tensor_made_in_forward_is_kept_out_of_the_users_model_and_out_of_the_state():
    model, x = Makes(), torch.ones(2, 3)
    traced = trace_model(model)
    assert set(vars(model)) == set(vars(Makes()))
    assert list(traced.model.state_dict()) == ["fc.weight", "fc.bias"]
    for training in (True, False):
        assert torch.equal(run(traced, training, x), model(x))


def test_tied_weights_stay_tied():
    model = nn.Sequential(nn.Linear(3, 3), nn.ReLU(), nn.Linear(3, 3))
    model[2].weight = model[0].weight
    traced = trace_model(model).model
    assert traced[0].weight is traced[2].weight is not model[0].weight


def test_arguments_with_a_default_are_held_at_it():
    class Scaled(nn.Module):
        def __init__(self):
            super().__init__()
            self.fc = nn.Linear(3, 3)

        def forward(self, x, factor=2, twice=False):
            return self.fc(x) * factor if not twice else self.fc(self.fc(x))

    model, x = Scaled(), torch.ones(1, 3)
    assert torch.equal(run(trace_model(model), True, x), model(x))


class Branches(nn.Module):
    def __init__(self):
        super().__init__()
        self.fc = nn.Linear(3, 3)

    def forward(self, x):
        return self.fc(x) if x.sum() > 0 else x


WHOLE = {
    "the model itself": (lambda: Branches(), [""]),
    "a part": (lambda: nn.Sequential(nn.Linear(3, 3), Branches()), ["1"]),
    "a part of a part": (lambda: nn.Sequential(nn.Sequential(nn.ReLU(), Branches())), ["0.1"]),
    "two parts": (lambda: nn.Sequential(Branches(), nn.ReLU(), Branches()), ["0", "2"]),
    "the parent of two": (lambda: nn.Sequential(Chooses(Branches(), Branches())), ["0"]),
}


class Chooses(nn.Module):
    """Cannot be traced itself either."""

    def __init__(self, *parts):
        super().__init__()
        self.parts = nn.ModuleList(parts)

    def forward(self, x):
        for part in self.parts:
            x = part(x) if x.mean() < 1e3 else x
        return x


@pytest.mark.parametrize("name", WHOLE)
def test_the_innermost_module_that_cannot_be_traced_stays_opaque(name):
    build, paths = WHOLE[name]
    model, x = build(), torch.randn(2, 3)
    traced = trace_model(model)
    assert list(traced.opaque) == paths
    assert "control flow" in traced.opaque[paths[0]] and "\n" not in traced.opaque[paths[0]]
    for training in (True, False):
        assert torch.equal(run(traced, training, x), model(x))


def test_an_opaque_module_leaves_no_node_of_its_inside():
    traced = trace_model(nn.Sequential(nn.Linear(3, 3), Branches(), nn.ReLU()))
    assert [node.target for node in traced.train.nodes if node.op == "call_module"] == [
        "0",
        "1",
        "2",
    ]
    assert [(layer.path, layer.called) for layer in traced.layers] == [
        ("0", "0"),
        ("1", "1"),
        ("1.fc", "1"),
        ("2", "2"),
    ]


def test_any_failure_of_a_forward_under_tracing_is_its_reason():
    class Fails(nn.Module):
        def forward(self, x):
            raise ZeroDivisionError

    assert trace_model(nn.Sequential(Fails())).opaque == {"0": "ZeroDivisionError"}


def test_a_module_is_kept_opaque_on_request():
    traced = trace_model(Late(), keep={"drops": "asked for"})
    assert traced.opaque == {"drops": "asked for"}
    assert "drops" in [node.target for node in traced.eval.nodes]


class Fills(nn.Module):
    """Writes into a list of its caller, and cannot be traced."""

    def forward(self, x, found):
        found.append(x * 2)
        return x if x.sum() > 0 else -x


class Gives(nn.Module):
    def __init__(self):
        super().__init__()
        self.fills = Fills()

    def forward(self, x):
        found = []
        return self.fills(x, found) + found[0]


def test_who_gives_a_list_to_be_filled_stays_opaque_with_the_one_who_fills_it():
    traced = trace_model(nn.Sequential(Gives()))
    assert list(traced.opaque) == ["0"]


def test_a_model_whose_part_stays_opaque_is_given_back_as_it_was():
    model = nn.Sequential(nn.Linear(3, 3), Branches()).eval()
    names = [sorted(vars(module)) for module in model.modules()]
    traced = trace_model(model)
    assert not any(module.training for module in model.modules())
    for net in (model, traced.model):
        assert [sorted(vars(module)) for module in net.modules()] == names


class Tells(nn.Module):
    """Its part returns a dictionary or a pair by a flag of the part's own."""

    def __init__(self):
        super().__init__()
        self.part = Branches()

    def forward(self, x):
        y = self.part(x)
        return y if isinstance(y, torch.Tensor) else y * 0


def test_more_stays_opaque_where_the_graph_computes_other_numbers():
    """fx sees no tensor in what a whole module returns, and takes the other branch."""
    model, x = nn.Sequential(nn.Linear(3, 3), Tells(), nn.Linear(3, 2)), torch.randn(2, 3)
    traced = compare_with_model(trace_model(model, (x,)), model, (x,))
    assert list(traced.opaque) == ["1"] and "other numbers" in traced.opaque["1"]
    assert torch.equal(run(traced, True, x), model(x))


def test_a_model_that_fails_alone_is_an_error_with_its_reason():
    class Fails(nn.Linear):
        def forward(self, x):
            return super().forward(x[:, :2])

    model = nn.Sequential(Fails(3, 3))
    with pytest.raises(TraceError, match="it fails in evaluation mode: mat1 and mat2"):
        compare_with_model(trace_model(model), model, (torch.ones(2, 3),))


# -- topology -------------------------------------------------------------------------------------


def test_what_is_reached_is_all_that_depends_on_a_source_and_the_source():
    graph = fx.Graph()
    x, y = graph.placeholder("x"), graph.placeholder("y")
    a = graph.call_function(torch.relu, (x,))
    b = graph.call_function(torch.add, (a, y))
    c = graph.call_function(torch.neg, (y,))
    out = graph.output((b, c))
    assert reached_from(graph, [a]) == {a, b, out}
    assert reached_from(graph, [y]) == {y, b, c, out}
    assert reached_from(graph, []) == set()


class AddsInPlace(nn.Module):
    def forward(self, x):
        before = x.relu()
        after = before
        after += 1
        return before


def test_an_augmented_assignment_stays_in_place():
    """fx's own tracer makes `after = before + 1` of it, and `before` keeps its old value."""
    traced = trace_model(AddsInPlace())
    x = torch.zeros(2)
    assert torch.equal(fx.GraphModule(traced.model, traced.train)(x), torch.ones(2))


# -- the text of a model ---------------------------------------------------------------------------


class Branching(nn.Module):
    """Stays opaque as a whole: it branches on a value."""

    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(2, 2)

    def forward(self, x):
        return self.layer(x) if x.sum() > 0 else x


def test_the_text_of_a_model_equals_that_of_a_version_with_other_files():
    now = text_of(trace_model(Branching(), (torch.ones(1, 2),)))
    assert "apply_opaque(" in now and "dcil_dsl" not in now
    assert comparable(now.replace("apply_opaque", "dcil_dsl_masking_apply_apply_opaque")) == now
