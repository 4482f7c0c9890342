"""Teachers against loops written by hand, in float64: losses, averages, and what stays as it is."""

import pytest
import torch
from support.plainly import network as forward
from support.plainly import sgd
from support.two_layers import STEPS, TwoLayers, batches, recipe_of, start
from torch import nn
from torch.nn import functional as F

import dcil_dsl as dcil

TEMPERATURE, AVERAGE = 3.0, 0.8
RULE = "prune Linear to 50% { refresh = 4 steps }"
MIX = """path sparse = masked
         {teacher}
         update kept, pruned by sparse
         loss cross_entropy(sparse)
         loss 0.5 * {loss}
         deploy sparse"""
SLOW = f"path slow = ema(sparse, decay={AVERAGE})"


def network() -> nn.Module:
    """Another architecture than the student's."""
    torch.manual_seed(7)
    return nn.Sequential(nn.Linear(8, 20), nn.Tanh(), nn.Dropout(), nn.Linear(20, 4)).double()


def compiled(teacher: str, loss: str, **networks):
    recipe = dcil.loads(recipe_of(RULE, MIX.format(teacher=teacher, loss=loss)))
    plan = dcil.resolve(recipe, start(), STEPS, teachers=networks)
    return plan, dcil.compile(plan, start(), teachers=networks)


def trained(teacher: str, loss: str, **networks):
    """The dual graph after STEPS steps."""
    plan, dual = compiled(teacher, loss, **networks)
    optimizer = plan.make_optimizer(dual)
    for step, (x, y) in enumerate(batches()):
        dual.begin_step(step)
        optimizer.zero_grad()
        dcil.loss(plan, dual(x), y, step).backward()
        optimizer.step()
    return dual


def mask_of(weight):
    """The larger half of the absolute values."""
    keep = weight.numel() // 2
    order = weight.abs().flatten().argsort(descending=True)
    mask = torch.zeros(weight.numel(), dtype=torch.bool)
    mask[order[:keep]] = True
    return mask.view_as(weight)


def plainly(distance, teach, follow=lambda step, seen: None):
    """The weights after STEPS steps of cross entropy and half of `distance` to `teach(x)`.

    The views are straight-through: the gradient of w * m reaches all of w.
    """
    model = start()
    weights = [model.first.weight.detach().clone(), model.second.weight.detach().clone()]
    momenta = [torch.zeros_like(w) for w in weights]
    masks = None
    for step, (x, y) in enumerate(batches()):
        if step % 4 == 0:
            masks = [mask_of(w) for w in weights]
        seen = [(w * m).requires_grad_() for w, m in zip(weights, masks)]
        follow(step, [v.detach() for v in seen])
        taught = teach(x)
        own = forward(x, seen)
        loss = F.cross_entropy(own, y) + 0.5 * distance(own, taught)
        sgd(weights, momenta, torch.autograd.grad(loss, seen))
    return weights


def hinton(own, taught):
    p = (taught / TEMPERATURE).softmax(1)
    q = (own / TEMPERATURE).softmax(1)
    return TEMPERATURE**2 * (p * (p.log() - q.log())).sum(1).mean()


def squares(own, taught):
    return ((own - taught) ** 2).sum() / own.numel()


def angle(own, taught):
    cosines = (own * taught).sum(1) / (own.norm(dim=1) * taught.norm(dim=1))
    return 1 - cosines.mean()


LOSSES = {
    f"kl(student=sparse, teacher=TEACHER, temperature={TEMPERATURE})": hinton,
    "mse(sparse, teacher=TEACHER)": squares,
    "cosine(sparse, teacher=TEACHER)": angle,
}


def assert_weights(dual, weights):
    for name, w in zip(("first.weight", "second.weight"), weights):
        assert torch.allclose(dual.get_parameter(name).detach(), w, rtol=0, atol=1e-12), name


@pytest.mark.parametrize("loss", LOSSES)
def test_a_network_teaches_as_a_loop_by_hand(loss):
    big = network().eval()
    expected = plainly(LOSSES[loss], lambda x: big(x).detach())
    dual = trained("path big = network()", loss.replace("TEACHER", "big"), big=network())
    assert_weights(dual, expected)


class Mean:
    """theta' <- decay theta' + (1 - decay) theta, begun as the first theta."""

    def __init__(self):
        self.weights = []

    def follow(self, step, seen):
        if not self.weights:
            self.weights = [v.clone() for v in seen]
        else:
            self.weights = [AVERAGE * a + (1 - AVERAGE) * v for a, v in zip(self.weights, seen)]

    def __call__(self, x):
        return forward(x, self.weights)


@pytest.mark.parametrize("loss", LOSSES)
def test_the_average_of_a_path_teaches_as_a_loop_by_hand(loss):
    mean = Mean()
    expected = plainly(LOSSES[loss], mean, mean.follow)
    dual = trained(SLOW, loss.replace("TEACHER", "slow"))
    assert_weights(dual, expected)
    for name, w in zip(("first.weight", "second.weight"), mean.weights):
        own = dual.get_parameter(f"ema__slow.network.{name}")
        assert torch.allclose(own, w, rtol=0, atol=1e-12) and not own.requires_grad


def test_a_teacher_neither_learns_nor_changes_its_mode_nor_shares_a_tensor():
    big = network()
    before = {name: t.clone() for name, t in big.state_dict().items()}
    dual = trained("path big = network()", "mse(sparse, teacher=big)", big=big)
    own = dual.networks["big"]
    assert big.training and not own.training
    assert all(torch.equal(t, before[name]) for name, t in own.state_dict().items())
    assert all(torch.equal(t, before[name]) for name, t in big.state_dict().items())
    assert not {t.data_ptr() for t in own.parameters()} & {t.data_ptr() for t in big.parameters()}
    assert not any(t.requires_grad or t.grad is not None for t in own.parameters())


def test_the_model_itself_can_be_its_frozen_teacher():
    model = start()
    before = {name: t.clone() for name, t in model.state_dict().items()}
    dual = trained("path begun = network()", "mse(sparse, teacher=begun)", begun=model)
    assert all(torch.equal(t, before[n]) for n, t in dual.networks["begun"].state_dict().items())
    assert not torch.equal(dual.get_parameter("first.weight"), before["first.weight"])


def test_nothing_of_a_teacher_is_in_the_exported_model_or_among_what_learns():
    teacher = "path big = network()\n" + SLOW
    loss = "mse(sparse, teacher=big)\nloss mse(sparse, teacher=slow)"
    dual = trained(teacher, loss, big=network())
    assert list(dcil.export(dual, unfinished=True).state_dict()) == list(start().state_dict())
    assert [name for name, _ in dual.trainable()] == ["first.weight", "second.weight"]
    assert not any("big" in name for name in dual.state_dict())
    assert type(dcil.export(dual, unfinished=True)) is TwoLayers
