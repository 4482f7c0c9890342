"""A forward that differentiates its output by its input, as physics-informed networks do.

The derivatives are made within the forward by torch.autograd.grad with create_graph, so that the
backward pass goes through each view of a weight twice.
"""

import copy

import pytest
import torch
from support.two_paths import two_paths

import dcil_dsl as dcil
from dcil_dsl.data import open_dataset
from dcil_dsl.training.losses import total_loss
from dcil_dsl.zoo import build_model
from dcil_dsl.zoo.physics import PoissonNet

RULE = """prune Linear except last Linear to 50%% {
  schedule = linear(0ep..1ep)  refresh = 1 steps %s
}"""
ONE_PATH = """language 1
%s
mix {
  path sparse = masked
  loss model(sparse, output="residual")
  loss 3 * model(sparse, output="boundary")
  deploy sparse
}
train { epochs = 4ep  optimizer = sgd(lr=0.001) }
"""


def batch(count=6):
    torch.manual_seed(1)
    points = {name: torch.rand(count, 2).double() for name in ("inside", "edge", "sensor")}
    values = {name: torch.randn(count).double() for name in ("source", "edge_value")}
    return points | values | {"sensor_value": torch.zeros(count).double()}


def compiled(recipe, step):
    torch.manual_seed(0)
    model = build_model("dcil:poisson", options={"width": 8, "num_hidden": 3}).double()
    plan = dcil.resolve(recipe, copy.deepcopy(model), steps_per_epoch=1, example_inputs=batch())
    dual = dcil.compile(plan, copy.deepcopy(model)).train()
    for at in range(step + 1):
        dual.begin_step(at)
    return model, plan, dual


def masked(model, dual):
    """A copy of the model, its pruned weights zeros."""
    own = copy.deepcopy(model)
    with torch.no_grad():
        for name, mask in dual.masks.items():
            own.get_parameter(name).mul_(mask)
    return own.train()


def test_the_graph_follows_the_derivatives_and_keeps_no_module_opaque():
    from dcil_dsl.model.trace import trace_model

    traced = trace_model(build_model("dcil:poisson").double(), batch())
    assert traced.opaque == {}


@pytest.mark.parametrize("training", [True, False])
def test_terms_and_gradients_of_one_path_are_those_of_a_masked_copy(training):
    model, plan, dual = compiled(ONE_PATH % (RULE % ""), 3)
    own = masked(model, dual)
    if not training:
        assert torch.equal(dual.eval()(**batch())["sparse"], own.eval()(**batch()))
        return
    terms = own(**batch())
    (terms["residual"] + 3 * terms["boundary"]).backward()
    outputs = dual(**batch())
    total_loss(plan, outputs, None, 3).backward()
    for name, value in outputs["sparse"].items():
        assert float(value.detach()) == pytest.approx(float(terms[name].detach()), rel=1e-12)
    for name, weight in own.named_parameters():
        wanted = weight.grad
        assert torch.allclose(dual.get_parameter(name).grad, wanted, rtol=1e-10), name


def test_two_paths_learn_from_their_own_derivatives():
    model, plan, dual = compiled(two_paths(RULE % "", loss="model"), 1)
    dense, sparse = copy.deepcopy(model).train(), masked(model, dual)
    for own in (dense, sparse):
        sum(own(**batch()).values()).backward()
    total_loss(plan, dual(**batch()), None, 1).backward()
    for name, mask in dual.masks.items():
        gradients = [own.get_parameter(name).grad for own in (sparse, dense)]
        wanted = torch.where(mask, *gradients)
        assert torch.allclose(dual.get_parameter(name).grad, wanted, rtol=1e-10), name


def test_powerpropagation_learns_through_the_derivatives():
    model, plan, dual = compiled(ONE_PATH % (RULE % "param = power(alpha=2)"), 3)
    outputs = dual(**batch())
    total_loss(plan, outputs, None, 3).backward()
    own = masked(model, dual)
    terms = own(**batch())
    (terms["residual"] + 3 * terms["boundary"]).backward()
    for name, mask in dual.masks.items():
        theta = dual.get_parameter(name)
        wanted = own.get_parameter(name).grad * 2 * theta.detach().abs()
        assert torch.allclose(theta.grad[mask], wanted[mask], rtol=1e-9), name


def test_the_known_solution_of_the_poisson_problem_has_no_residual():
    """By finite differences of the solution, in float64."""
    from dcil_dsl.data.sets.poisson import W, solution

    points, h = torch.rand(50, 2, dtype=torch.float64), 1e-4
    around = sum(
        solution(points + h * torch.tensor(step, dtype=torch.float64))
        for step in ((1, 0), (-1, 0), (0, 1), (0, -1))
    )
    laplacian = (around - 4 * solution(points)) / h**2
    assert torch.allclose(laplacian, -2 * W**2 * solution(points), atol=1e-2)
    data = open_dataset("poisson")
    edge = data.train.given["edge"]
    assert (((edge == 0) | (edge == 1)).any(1)).all()


def test_a_network_that_is_the_solution_has_a_residual_of_zero():
    """PoissonNet's derivatives against the formula of the source."""
    from dcil_dsl.data.sets.poisson import W, solution

    class Exact(PoissonNet):
        def solution(self, points):
            return solution(points)

    model = Exact().train()
    given = batch()
    given["source"] = -2 * W**2 * solution(given["inside"])
    assert float(model(**given)["residual"].detach()) < 1e-20
