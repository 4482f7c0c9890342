"""A run that is continued under another plan, because that was asked for."""

from __future__ import annotations

import pytest
import torch
from safetensors.torch import save_file
from support.in_steps import one_budget
from support.same_runs import assert_same, set_position
from support.tiny_run import STEPS_PER_EPOCH, TinyData, tiny_dual, tiny_plan

from dcil_dsl.diagnostics import InputError
from dcil_dsl.model.digest import digest
from dcil_dsl.plan import plan as p
from dcil_dsl.plan.schedule import keeps_at
from dcil_dsl.training.checkpoint import read_checkpoint, read_file
from dcil_dsl.training.machine import Options
from dcil_dsl.training.progress import Display
from dcil_dsl.training.run import RunFolder, create_run, resume_run
from dcil_dsl.training.session import start_session
from dcil_dsl.training.sparsity import check_sparsity
from dcil_dsl.training.trainer import train
from dcil_dsl.words.optimizers import AdamW
from dcil_dsl.words.rates import ConstantRate


@pytest.fixture
def folder(tmp_path):
    """A run of two of its four epochs and three steps more."""
    run = create_run(tiny_plan(), "given", "resolved", tmp_path / "run")
    train(tiny_dual(), TinyData(), TinyData(31, seed=1), run, Options(max_steps=13))
    return run.path


def go_on(folder, plan, dual=None, **options):
    run = resume_run(folder, plan, anyway=True)
    dual = dual or tiny_dual(plan)
    val = TinyData(31, seed=1)
    return train(dual, TinyData(), val, run, Options(resume=True, anyway=True, **options)), dual


def state_after(folder, plan):
    """What a continued run starts from, before its first step."""
    run = resume_run(folder, plan, anyway=True)
    return start_session(tiny_dual(plan), run, Options(resume=True, anyway=True), Display()).state


OTHERS = {
    "target": dict(group={"target": one_budget(0.7)}),
    "rate": dict(train={"rate": ConstantRate()}),
    "longer": dict(train={"num_epochs": 6}, num_steps=30),
    "optimizer": dict(train={"optimizer": AdamW(lr=0.01)}),
    "no average": dict(train={"ema": None}),
    "one loss less": dict(losses=tiny_plan().losses[:3]),
}


@pytest.mark.parametrize("change", OTHERS)
def test_the_run_ends_as_the_new_plan_says(folder, change):
    plan = tiny_plan(**OTHERS[change])
    result, dual = go_on(folder, plan)
    assert result.step == plan.num_steps
    assert check_sparsity(dual, result.step - 1).asked == pytest.approx(plan.groups[0].sparsity)
    assert resume_run(folder, plan).read_plan() == plan
    (kept,) = folder.glob("plan-until-*.json")
    assert p.Plan.from_json(kept.read_text()) == tiny_plan()


def test_the_folder_is_one_of_the_new_plan_before_a_step_is_made_and_where_none_is_left(folder):
    plan = tiny_plan(group={"target": one_budget(0.7)})
    state_after(folder, plan)  # and killed
    read_checkpoint(RunFolder(folder).checkpoint, plan)  # InputError where it is of another plan
    go_on(folder, plan)  # to its end
    other = tiny_plan(group={"target": one_budget(0.6)})
    result, _ = go_on(folder, other)
    assert result.step == other.num_steps
    read_checkpoint(RunFolder(folder).checkpoint, other)


def test_it_begins_with_the_epoch_that_it_was_in_with_the_weights_that_it_had(folder):
    plan = tiny_plan(group={"target": one_budget(0.7)})
    before = start_session(
        tiny_dual(), resume_run(folder, tiny_plan()), Options(resume=True), Display()
    ).state
    state = state_after(folder, plan)
    assert (before.position.step, before.position.batch) == (13, 3)
    assert (state.position.step, state.position.epoch, state.position.batch) == (10, 2, 0)
    for name, weight in before.dual.named_parameters():
        assert torch.equal(weight, state.dual.get_parameter(name))
        momentum = before.optimizer.state[weight]["momentum_buffer"]
        found = state.optimizer.state[state.dual.get_parameter(name)]["momentum_buffer"]
        assert torch.equal(momentum, found)
    assert all(torch.equal(mean, state.average[name]) for name, mean in before.average.items())
    assert check_sparsity(state.dual, 9).measured != check_sparsity(before.dual, 12).measured


def test_two_groups_that_are_refreshed_at_other_times_have_each_its_own_masks(folder):
    """After step 9: one at the budget of step 8, the other at that of step 5."""
    (group,) = tiny_plan().groups
    groups = tuple(
        group.model_copy(
            update={
                "parameters": group.parameters[i : i + 1],
                "floors": (1,),
                "refresh": refresh,
                "num_weights": group.num_weights[i : i + 1],
            }
        )
        for i, refresh in enumerate((4, 5))
    )
    layers = tuple(
        layer.model_copy(update={"group": i}) for i, layer in enumerate(tiny_plan().layers)
    )
    state = state_after(folder, tiny_plan(groups=groups, layers=layers))
    check_sparsity(state.dual, 9)  # to the weight, or it raises
    counts = [int(mask.sum()) for mask in state.dual.masks.values()]
    assert [keeps_at(g, at)[0] for g, at in zip(groups, (8, 5))] == counts


def test_steps_are_counted_in_epochs_of_the_new_length(folder):
    plan = tiny_plan(steps_per_epoch=2 * STEPS_PER_EPOCH, num_steps=8 * STEPS_PER_EPOCH)
    assert state_after(folder, plan).position.step == 2 * 2 * STEPS_PER_EPOCH


def test_an_average_that_is_new_starts_from_the_weights(folder):
    go_on(folder, tiny_plan(train={"ema": None}), max_steps=15)
    state = state_after(folder, tiny_plan())
    weights = state.dual.state_dict()
    assert all(torch.equal(mean, weights[name]) for name, mean in state.average.items())


def test_under_the_same_plan_it_resumes_bit_for_bit_as_without_being_asked(folder, tmp_path):
    straight = create_run(tiny_plan(), "given", "resolved", tmp_path / "straight")
    train(tiny_dual(), TinyData(), TinyData(31, seed=1), straight, Options())
    go_on(folder, tiny_plan())
    assert_same(folder, straight.path)


def test_a_weight_of_another_shape_is_refused_by_name_all_the_same(folder):
    plan = tiny_plan()
    dual = tiny_dual(plan)
    dual.fc.weight = torch.nn.Parameter(torch.zeros(6, 9))
    with pytest.raises(InputError, match=r"`fc.weight` has shape \(6, 8\) and not \(6, 9\)"):
        go_on(folder, tiny_plan(train={"seed": 9}), dual)


def test_a_position_that_is_none_is_reported_under_another_plan_too(folder):
    set_position(folder / "checkpoint" / "last.safetensors", step="__import__")
    with pytest.raises(InputError, match="does not say where it stands: step"):
        go_on(folder, tiny_plan(group={"target": one_budget(0.7)}))


@pytest.mark.parametrize(
    "changes, fact",
    [
        ({"batch": 6}, "step 13 is not after 2 epochs of 5 steps and 6 batches"),
        ({"step": 3}, "step 3 is not after 2 epochs"),
        ({"epoch": 1, "step": 3, "batch": 0}, "step 3 is not after 1 epoch "),
        ({"epoch": 10**9, "step": 5 * 10**9 + 3}, "of step 5,000,000,003, the run has 20"),
        ({"step": -5}, "does not say where it stands: step"),
        ({"seconds": float("nan")}, "does not say where it stands: seconds"),
    ],
)
def test_a_position_that_is_no_place_in_the_run_is_refused(folder, changes, fact):
    set_position(folder / "checkpoint" / "last.safetensors", **changes)
    with pytest.raises(InputError, match=fact):
        go_on(folder, tiny_plan())


def test_a_recipe_with_fewer_epochs_than_are_done_is_refused(folder):
    plan = tiny_plan(train={"num_epochs": 1}, num_steps=5)
    with pytest.raises(InputError, match="after 2 epochs, more than the recipe has now"):
        go_on(folder, plan)


@pytest.mark.parametrize(
    "plan", [{}, {"group": {"target": one_budget(0.7)}}], ids=["same", "another"]
)
@pytest.mark.parametrize("shape", [(1,), (), (8, 4, 3, 3)])
def test_momentum_of_another_shape_than_its_weight_is_refused(folder, plan, shape):
    path = folder / "checkpoint" / "last.safetensors"
    tensors, header = read_file(path)
    tensors["optimizer/conv1.weight/momentum_buffer"] = torch.zeros(shape)
    save_file(tensors, path, header | {"digest": digest(tensors, header)})
    with pytest.raises(InputError, match="holds another optimizer: `conv1.weight/momentum_buffer`"):
        go_on(folder, tiny_plan(**plan))
