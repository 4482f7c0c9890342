"""Sparse tensors, weights that a forward writes to, gradients within it: right, or refused."""

import copy

import pytest
import torch
import torch.nn.functional as F
from support.comparison import worst_difference
from support.two_forwards import weighted_squares
from support.two_paths import two_paths
from torch import nn
from torchvision.models import resnet18
from torchvision.models.feature_extraction import create_feature_extractor

import dcil_dsl as dcil


def compiled(model, given, prune="Linear", private=""):
    plan = dcil.resolve(dcil.loads(two_paths(f"prune {prune} to 50%", private)), model, 10, given)
    return dcil.compile(plan, model, given)


def numbers(*shape):
    return lambda step: ((torch.randn(*shape, dtype=torch.float64, generator=drawn(step)),), {})


def drawn(step):
    return torch.Generator().manual_seed(step)


class Graph(nn.Module):
    """Two layers over a graph whose edges are a sparse matrix."""

    def __init__(self):
        super().__init__()
        self.one, self.two = nn.Linear(4, 8), nn.Linear(8, 3)

    def forward(self, x, edges):
        return self.two(torch.sparse.mm(edges, self.one(x).relu()))


@pytest.mark.filterwarnings("ignore:Sparse CSR")
def test_an_input_may_be_a_sparse_matrix():
    def given(step):
        (x,), _ = numbers(5, 4)(step)
        return (x, (x @ x.T).relu().to_sparse()), {}

    model = Graph().double()
    assert differ(model, given) < 1e-9
    x, edges = given(0)[0]
    coo, csr = (x, edges), (x, edges.to_sparse_csr())
    with torch.no_grad():
        torch.testing.assert_close(compiled(model, coo)(*coo), compiled(model, csr)(*csr))


class Words(nn.Module):
    def __init__(self, bag=False, **more):
        super().__init__()
        self.words = (nn.EmbeddingBag if bag else nn.Embedding)(10, 6, **more)
        self.head, self.bag = nn.Linear(6, 3), bag

    def forward(self, x):
        return self.head(self.words(x) if self.bag else self.words(x).mean(1))


def tokens(step):
    return (torch.randint(0, 10, (4, 3), generator=drawn(step)),), {}


@pytest.mark.parametrize("bag", [False, True], ids=["Embedding", "EmbeddingBag"])
@pytest.mark.parametrize("prune", ["Embedding, EmbeddingBag", "Linear"])
@pytest.mark.parametrize("rest", ["", "update rest by 0.5 * sparse + 0.5 * dense"])
def test_sparse_gradients_are_routed_as_dense_ones(bag, prune, rest):
    torch.manual_seed(0)
    model, plain = Words(bag, sparse=True).double(), Words(bag).double()
    plain.load_state_dict(model.state_dict())
    prune = prune if prune == "Linear" else type(model.words).__name__
    found = []
    for each in (model, plain):
        dual = compiled(each, tokens(0)[0], prune, rest)
        dual.refresh(5)
        dual.begin_step(0)
        outputs = dual(*tokens(1)[0])
        weighted_squares(outputs["sparse"], outputs["dense"], None, 0).backward()
        found.append({n: p.grad.to_dense() for n, p in dual.named_parameters()})
    torch.testing.assert_close(*found)


def test_an_embedding_with_max_norm_is_right_where_it_is_kept():
    torch.manual_seed(0)
    model = Words(max_norm=1.0).double()
    (given,), _ = tokens(0)
    dual = compiled(model, (given,)).train()
    dual.begin_step(0)
    for mask in dual.masks.values():
        mask.fill_(True)
    dual(given)["sparse"].square().sum().backward()
    model(given).square().sum().backward()
    assert dual.words.weight[given].norm(dim=-1).max() < 1 + 1e-6
    torch.testing.assert_close(dual.words.weight, model.words.weight)
    torch.testing.assert_close(dual.words.weight.grad, model.words.weight.grad)


@pytest.mark.parametrize("bag", [False, True], ids=["Embedding", "EmbeddingBag"])
@pytest.mark.parametrize("given", [None, tokens(0)[0]], ids=["no example", "an example"])
def test_a_rule_over_an_embedding_with_max_norm_is_refused_by_name(bag, given):
    model = Words(bag, max_norm=1.0)
    text = two_paths(f"prune {'EmbeddingBag' if bag else 'Embedding'} to 50%")
    with pytest.raises(dcil.RecipeError, match="E402.*`words` .* changes its weight in place"):
        dcil.resolve(dcil.loads(text), model, 10, given)


class Writes(nn.Module):
    """`how` writes to the weight of `target`, which is frozen or learns."""

    def __init__(self, how, frozen):
        super().__init__()
        self.one, self.target = nn.Linear(4, 8), nn.Linear(4, 8, bias=False)
        self.two, self.how = nn.Linear(8, 3), how
        self.target.weight.requires_grad_(not frozen)

    def forward(self, x):
        self.how(self)
        with torch.no_grad():
            anchor = self.target(x)
        return self.two(self.one(x) + anchor)


def under_no_grad(net):
    with torch.no_grad():
        net.target.weight.clamp_(-9, 9)


def by_data_of_a_view(net):
    with torch.no_grad():
        net.target.weight.view(-1).data[:2].mul_(0.9)


def by_momentum(net):
    with torch.no_grad():
        net.target.weight.mul_(0.9).add_(net.one.weight, alpha=0.1)


WRITES = [under_no_grad, by_data_of_a_view, by_momentum]


@pytest.mark.parametrize("prune", ["Linear", 'Linear except "target"'])
@pytest.mark.parametrize("how", WRITES, ids=lambda how: how.__name__)
def test_a_trained_weight_that_the_forward_writes_to_is_refused_before_training(how, prune):
    with pytest.raises(dcil.InputError, match=r"`target` \(Linear\).* weight `weight` in place"):
        compiled(Writes(how, frozen=False), (torch.randn(2, 4),), prune)


@pytest.mark.parametrize("how", WRITES, ids=lambda how: how.__name__)
def test_a_frozen_weight_that_the_forward_writes_to_is_kept_out_of_every_rule(how):
    given = (torch.randn(2, 4),)
    with pytest.raises(dcil.RecipeError, match="E402.*`target` .* changes its weight in place"):
        compiled(Writes(how, frozen=True), given)
    dual = compiled(Writes(how, frozen=True), given, 'Linear except "target"')
    dual.begin_step(0)
    dual(*given)["sparse"].sum().backward()


class Inner(nn.Module):
    """One step of gradient descent in the forward."""

    def __init__(self):
        super().__init__()
        self.one, self.two = nn.Linear(4, 8), nn.Linear(8, 3)

    def forward(self, x):
        with torch.enable_grad():
            loss = self.two(self.one(x).tanh()).square().mean()
            weights = [self.one.weight, self.two.weight]
            steps = torch.autograd.grad(loss, weights, create_graph=True)
        one, two = (weight - step for weight, step in zip(weights, steps))
        return F.linear(F.linear(x, one, self.one.bias).tanh(), two, self.two.bias)


def test_an_inner_step_of_the_forward_is_right_in_training_and_runs_under_no_grad():
    torch.manual_seed(0)
    model, (given, _) = Inner().double(), numbers(3, 4)(0)
    assert differ(model, numbers(3, 4)) < 1e-9
    dual = compiled(model, given).eval()
    with torch.no_grad():
        outputs = dual(*given)
    torch.testing.assert_close(outputs["dense"], model(*given).detach())
    assert not outputs["dense"].requires_grad or outputs["dense"].grad_fn is None


class Extracts(nn.Module):
    def __init__(self):
        super().__init__()
        self.features = create_feature_extractor(resnet18(num_classes=4), {"layer2": "out"})
        self.head = nn.Linear(128, 3)

    def forward(self, x):
        return self.head(self.features(x)["out"].mean((2, 3)))


@pytest.mark.parametrize("is_root", [False, True])
def test_a_feature_extractor_with_private_norms_is_copied_and_exported(is_root):
    torch.manual_seed(0)
    model = Extracts()
    model = model.features if is_root else model
    given = (torch.randn(2, 3, 16, 16),)
    dual = compiled(model, given, "Conv2d", "private BatchNorm2d")
    dual.refresh(5)
    for other in (dual, copy.deepcopy(dual)):
        assert other.state_dict().keys() == dual.state_dict().keys()
        exported = dcil.export(other).eval()
        assert set(exported.state_dict()) == set(model.state_dict())
        torch.testing.assert_close(exported(*given), other.eval()(*given)["sparse"])
    dual.train()
    assert all(module.training for module in dual.modules())


def differ(model, inputs, **more):
    return worst_difference(
        model, inputs=inputs, losses=weighted_squares, prune="Linear", keep="", steps=3, **more
    )
