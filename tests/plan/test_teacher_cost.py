"""A forward pass alone counts for a third of a dense step of its own network."""

import pytest
import torch
from support.resolving import TRAIN, Net, plan_of
from torch import nn

import dcil_dsl as dcil
from dcil_dsl.plan.cost import bound, step_cost, training_cost
from dcil_dsl.plan.show import show_plan

PRUNE = "prune Conv2d to 50%"
MIX = """mix {{
  path sparse = masked
  {path}
  update kept, pruned by sparse
  loss cross_entropy(sparse)
  {loss}
  deploy sparse
}}
"""


def mix(path, loss):
    return MIX.format(path=path, loss=loss)


def test_a_path_that_only_teaches_costs_a_third():
    plan = plan_of(PRUNE, mix=mix("path dense = full", "loss kl(student=sparse, teacher=dense)"))
    assert training_cost(plan) == pytest.approx(4 / 3) and bound(plan) == "about"


def test_a_path_that_learns_from_a_loss_of_its_own_costs_a_whole_step():
    loss = "loss kl(student=sparse, teacher=dense)\nloss cross_entropy(dense)"
    plan = plan_of(PRUNE, mix=mix("path dense = full", loss))
    assert training_cost(plan) == 2 and bound(plan) == "at most"


def test_a_path_that_learns_in_a_part_of_the_run_costs_a_third_in_the_other():
    """100 steps: for 40 the dense path only teaches."""
    loss = "loss kl(student=sparse, teacher=dense)\nloss cross_entropy(dense) from 40 steps"
    plan = plan_of(PRUNE, mix=mix("path dense = full", loss))
    assert training_cost(plan) == pytest.approx(1 + (40 / 3 + 60) / 100)


def test_a_path_of_a_quarter_of_the_batch_that_only_teaches_costs_a_twelfth():
    path = "path dense = full { batch = 25% }"
    plan = plan_of(PRUNE, mix=mix(path, "loss kl(student=sparse, teacher=dense)"))
    assert training_cost(plan) == pytest.approx(1 + 1 / 12)


def test_a_path_every_four_steps_that_only_teaches_costs_a_twelfth():
    path = "path dense = full { every = 4 steps }"
    plan = plan_of(PRUNE, mix=mix(path, "loss kl(student=sparse, teacher=dense)"))
    assert training_cost(plan) == pytest.approx(1 + 1 / 12)


def test_both_paths_of_js_learn():
    plan = plan_of(PRUNE, mix=mix("path dense = full", "loss js(one=sparse, other=dense)"))
    assert training_cost(plan) == 2


def test_an_average_costs_a_third_in_the_steps_in_which_it_teaches():
    loss = "loss mse(sparse, teacher=slow) from 50 steps until 80 steps"
    plan = plan_of(PRUNE, mix=mix("path slow = ema(sparse)", loss))
    assert training_cost(plan) == pytest.approx(1 + 0.3 / 3)
    assert [step_cost(plan, phase) for phase in plan.phases] == pytest.approx([1, 4 / 3, 1])


def test_an_integrator_runs_the_teacher_for_each_gradient():
    train = TRAIN.replace("}", "integrator = rk4() }")
    loss = "loss mse(sparse, teacher=slow)"
    plan = plan_of(PRUNE, mix=mix("path slow = ema(sparse)", loss), train=train)
    assert training_cost(plan) == pytest.approx(4 * 4 / 3)


class Wide(nn.Module):
    """One convolution of 3 x 3 on 8 x 8 pixels with 64 channels, and a head."""

    def __init__(self, width):
        super().__init__()
        self.conv = nn.Conv2d(3, width, 3, padding=1)
        self.head = nn.Linear(width, 10)

    def forward(self, x):
        return self.head(self.conv(x).mean((2, 3)))


def test_a_bigger_network_costs_its_own_products():
    text = f"language 1\n{PRUNE}\n"
    text += mix("path big = network()", "loss mse(sparse, teacher=big)") + TRAIN
    example = (torch.zeros(2, 3, 8, 8),)
    plan = dcil.resolve(text, Wide(16), 10, example, teachers={"big": Wide(48)})
    products = [width * (3 * 9 * 64 + 10) for width in (48, 16)]
    assert plan.teachers[0].size == pytest.approx(products[0] / products[1])
    assert training_cost(plan) == pytest.approx(1 + products[0] / products[1] / 3)
    assert "a step is 2 dense steps of arithmetic about" in show_plan(plan)


def test_a_plan_says_where_the_size_of_a_teacher_is_not_counted():
    text = f"language 1\n{PRUNE}\n"
    text += mix("path big = network()", "loss mse(sparse, teacher=big)") + TRAIN
    plan = dcil.resolve(text, Net(), 10, teachers={"big": Wide(8)})
    assert plan.teachers[0].size is None and training_cost(plan) == pytest.approx(4 / 3)
    words = " ".join(show_plan(plan).split())
    assert "is not counted, and taken as that of the model" in words


def test_a_plan_with_teachers_goes_to_json_and_back():
    plan = plan_of(PRUNE, mix=mix("path slow = ema(sparse)", "loss mse(sparse, teacher=slow)"))
    assert type(plan).from_json(plan.to_json()) == plan


@pytest.mark.parametrize("name", ["sparse", "missing"])
def test_a_plan_whose_teacher_has_the_name_of_a_path_or_is_missing_is_refused(name):
    plan = plan_of(PRUNE, mix=mix("path slow = ema(sparse)", "loss mse(sparse, teacher=slow)"))
    changed = plan.teachers[0].model_copy(update={"name": name})
    text = plan.model_copy(update={"teachers": (changed,)}).to_json()
    with pytest.raises(ValueError, match="others are named"):
        type(plan).from_json(text)


def test_the_fingerprint_of_a_plan_without_teachers_is_that_of_older_versions():
    from dcil_dsl.training.differences import science_of

    plan = plan_of(PRUNE)
    values = science_of(plan)
    assert "teachers" not in values and "teachers" not in values["phases"][0]
