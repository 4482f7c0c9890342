"""Each integrator takes the steps that its formula writes down: in float64, to rounding."""

import pytest
import torch
from plainly import LR, gradients, largest, sgd
from two_layers import KEEP, STEPS, assert_same, batches, recipe_of, start, state

import dcil_dsl as dcil
from dcil_dsl.training.integrate import integrate, start_previous
from dcil_dsl.training.optim import make_optimizer

RULE = "prune Linear to global(75%) { refresh = 1 step }"
TWO_PATHS = """path sparse = masked  path dense = full
               update kept by sparse  update pruned by dense
               loss cross_entropy(sparse)  loss cross_entropy(dense)  deploy sparse"""


def ours(integrator: str, rule: str = RULE, mix: str = TWO_PATHS):
    """The dual graph after STEPS steps of the recipe."""
    text = recipe_of(rule, mix).replace("epochs ", f"integrator = {integrator}  epochs ")
    plan = dcil.resolve(dcil.loads(text), start(), steps_per_epoch=STEPS)
    dual = dcil.compile(plan, start())
    optimizer, memory = make_optimizer(plan.train.optimizer, dual.trainable()), start_previous(dual)
    for step, (x, y) in enumerate(batches()):
        dual.begin_step(step)
        optimizer.zero_grad()
        before = [p.detach().clone() for p in dual.parameters()]
        integrate(dual, LR, lambda: dcil.loss(plan, dual(x), y, step).backward(), memory)
        assert all(torch.equal(a, b) for a, b in zip(before, dual.parameters()))
        optimizer.step()
    return dual


def plainly(step_of):
    """The weights after as many steps of SGD along step_of(field, weights, masks)."""
    weights, velocities = state()
    for x, y in batches():
        masks = largest(weights, KEEP)

        def field(at):
            kept = gradients(x, y, [w * m for w, m in zip(at, masks)])
            pruned = gradients(x, y, at)
            return [torch.where(m, a, b) for m, a, b in zip(masks, kept, pruned)]

        sgd(weights, velocities, step_of(field, weights, masks))
    return weights


def moved(weights, by, along):
    return [w - by * g for w, g in zip(weights, along)]


def mean(*gradients, weights):
    return [sum(c * g for c, g in zip(weights, own)) for own in zip(*gradients)]


def heun(field, w):
    first = field(w)
    return mean(first, field(moved(w, LR, first)), weights=(1 / 2, 1 / 2))


def rk4(field, w):
    first = field(w)
    second = field(moved(w, LR / 2, first))
    third = field(moved(w, LR / 2, second))
    fourth = field(moved(w, LR, third))
    return mean(first, second, third, fourth, weights=(1 / 6, 2 / 6, 2 / 6, 1 / 6))


def implicit(field, w):
    first = field(w)
    second = field(moved(w, LR, first))
    return field(moved(w, LR, second))


def fresh(field, w):
    return field(moved(w, 0.1, field(w)))


@pytest.mark.parametrize(
    "word, rule",
    [
        ("heun()", heun),
        ("rk4()", rk4),
        ("implicit(iterations=3)", implicit),
        ("extrapolate(rate=0.1, direction=fresh)", fresh),
    ],
)
def test_a_step_follows_the_routed_field_as_the_formula_says(word, rule):
    assert_same(ours(word), plainly(lambda field, w, masks: rule(field, w)))


@pytest.mark.parametrize("word, far", [("extrapolate(rate=0.1)", 0.1), ("extrapolate()", LR)])
def test_extrapolation_along_the_gradient_of_the_step_before(word, far):
    before = [[torch.zeros(12, 8).double(), torch.zeros(4, 12).double()]]

    def step(field, w, masks):
        before.append(field(moved(w, far, before[-1])))
        return before[-1]

    assert_same(ours(word), plainly(step))


@pytest.mark.parametrize("word, rule", [("heun", heun), ("rk4", rk4)])
def test_players_in_turns_move_each_while_the_other_stands_still(word, rule):
    def step(field, w, masks):
        kept = rule(lambda at: [g * m for g, m in zip(field(at), masks)], w)
        pruned = rule(lambda at: [g * ~m for g, m in zip(field(at), masks)], w)
        return [a + b for a, b in zip(kept, pruned)]

    assert_same(ours(f"{word}(players=each)"), plainly(step))


def test_four_gradients_err_by_the_fifth_power_of_the_step():
    """On dw/dt = -w one step of h is 1 - h + h^2/2 - h^3/6 + h^4/24, from the error of e^-h."""

    class Line(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.fc = torch.nn.Linear(1, 1, bias=False)
            torch.nn.init.ones_(self.fc.weight)

        def forward(self, x):
            return self.fc(x)

    text = recipe_of("", "path dense = full  update kept by dense  loss model(dense)  deploy dense")
    text = text.replace("epochs ", "integrator = rk4()  epochs ")
    plan = dcil.resolve(dcil.loads(text), Line(), steps_per_epoch=1)
    dual = dcil.compile(plan, Line().double())
    dual.begin_step(0)
    h = 0.5
    integrate(dual, h, lambda: (dual(torch.ones(1, 1).double())["dense"] ** 2 / 2).backward(), {})
    after = 1 - h * dual.fc.weight.grad.item()
    assert after == pytest.approx(1 - h + h**2 / 2 - h**3 / 6 + h**4 / 24, abs=1e-15)


def test_players_in_turns_need_a_rule_that_prunes():
    text = recipe_of(
        "", "path dense = full  update kept by dense  loss cross_entropy(dense)  deploy dense"
    )
    with pytest.raises(dcil.RecipeError) as error:
        dcil.loads(text.replace("epochs ", "integrator = heun(players=each)  epochs "))
    assert [d.code for d in error.value.diagnostics] == ["E236"]
