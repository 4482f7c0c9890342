"""The recipes of methods have the settings of their authors' code, where they differ from the rest.

Sources: vanderschuea/stthree (configs/cifar10.toml, trainmodules/default.py), IST-DASLab/ACDC
(configs/neurips/iht_cifar10_resnet20_..._95_constant.yaml, run_cifar100_*.sh), athglentis/feather
(sparse_utils.py, main.py), Jangho-Kim/DCIL-pytorch (resnet_mask.py).
"""

from functools import cache
from pathlib import Path

import pytest

import dcil_dsl as dcil
from dcil_dsl.zoo import build_model

RECIPES = Path(__file__).resolve().parents[2] / "recipes"
STEPS = 160  # of an epoch: with 30 epochs the shares below are whole steps


@cache
def plan_of(method):
    return dcil.resolve(
        dcil.load(RECIPES / "methods" / f"{method}.prune"),
        build_model("dcil:resnet20", 10),
        steps_per_epoch=STEPS,
    )


def share(plan, step):
    return step / plan.num_steps


@pytest.mark.parametrize("method", ["st3", "feather"])
def test_gradients_are_clipped_to_a_norm_of_3(method):
    assert plan_of(method).train.clip == 3


@pytest.mark.parametrize("method", ["st3", "feather", "acdc"])
def test_the_classifier_is_pruned_under_the_same_threshold_as_the_convolutions(method):
    (group,) = plan_of(method).groups
    assert len(group.parameters) == 22 and "fc.weight" in group.parameters
    assert group.one_budget


@pytest.mark.parametrize("method", ["st3", "feather"])
def test_norms_and_biases_have_no_decay_and_momentum_is_plain(method):
    plan = plan_of(method)
    (group,) = plan.train.groups
    assert group.decay == 0 and not plan.train.optimizer.nesterov
    assert plan.train.optimizer.momentum == 0.9
    names = {name for name, p in build_model("dcil:resnet20", 10).named_parameters() if p.dim() < 2}
    assert set(group.parameters) == names and len(names) == 43


def test_st3_decays_weights_by_1e_4_and_feather_by_5e_4():
    decays = [plan_of(method).train.optimizer.weight_decay for method in ("st3", "feather")]
    assert decays == [1e-4, 5e-4]


def test_st3_ramps_from_epoch_5_to_80_of_160_with_a_threshold_at_every_step():
    plan = plan_of("st3")
    schedule = plan.groups[0].schedule
    assert (share(plan, schedule.start), share(plan, schedule.reached)) == (5 / 160, 80 / 160)
    assert schedule.spelling() == "cubic" and plan.groups[0].refresh == 1


def test_feather_ramps_through_the_first_half_and_halves_the_feedback():
    plan = plan_of("feather")
    schedule = plan.groups[0].schedule
    assert (schedule.start, share(plan, schedule.reached)) == (0, 0.5)
    (phase,) = plan.phases
    assert (phase.shares[0].kept, phase.shares[0].pruned) == (1, 0.5)
    assert (plan.paths[0].view.power, plan.paths[0].view.rescale) == (3, False)


def test_the_masks_of_dpf_stop_at_three_quarters():
    assert share(plan_of("dpf"), plan_of("dpf").groups[0].freeze) == 225 / 300
    assert plan_of("dpf_rule").groups[0].freeze is None


def test_acdc_prunes_five_times_and_its_last_sparse_phase_has_15_percent():
    plan = plan_of("acdc")
    sparse = [10, 50, 90, 130, 170]  # of 200 epochs
    dense = [30, 70, 110, 150]
    assert [share(plan, step) for step in plan.groups[0].moments] == [e / 200 for e in sparse]
    assert [share(plan, step) for step in plan.train.reset] == [e / 200 for e in dense]
    runs = [(share(plan, phase.window.start), phase.paths) for phase in plan.phases]
    turns = sorted(
        [(e / 200, ("sparse",)) for e in sparse] + [(e / 200, ("dense",)) for e in dense]
    )
    assert runs == [(0.0, ("dense",)), *turns]
    assert plan.groups[0].forget


@pytest.mark.parametrize("path", sorted(RECIPES.rglob("*.prune")), ids=lambda path: path.stem)
def test_a_private_classifier_is_drawn_apart(path):
    """fc_part and fc_full of the authors' networks are two modules with their own first weights."""
    heads = [p for p in dcil.load(path).privates if "Linear" in p.selector.span.text]
    assert all(private.init == "fresh" for private in heads)


def test_the_reference_draws_the_private_classifier_apart():
    text = (RECIPES.parent / "docs" / "language" / "index.md").read_text()
    assert "private last Linear { init = fresh }" in text
