"""Scores that are kept over the steps, in runs that stop and go on and on several ranks."""

import pytest
from support.in_steps import steps
from support.same_runs import assert_equal_runs, assert_same, contents
from support.tiny_ranks import on_ranks, plain_plan, rank_train, said
from support.tiny_run import tiny_plan, tiny_train

from dcil_dsl.training.distributed import Ranks
from dcil_dsl.words.schedules import GrowByGradient
from dcil_dsl.words.scores import Magnitude, Movement, Taylor
from dcil_dsl.words.units import Percent

REGROW = GrowByGradient(share=Percent(0.3), stop=steps(15), path="sparse")
SCORES = {
    "taylor": Taylor(path="sparse", average=0.9),
    "movement": Movement(path="dense"),
    "magnitude": Magnitude(average=0.5),
}


@pytest.mark.parametrize("score", [*SCORES])
def test_a_run_with_a_score_resumes_in_mid_epoch_bit_for_bit(tmp_path, score):
    plan = tiny_plan(group={"score": SCORES[score]})
    tiny_train(tmp_path / "straight", plan)
    tiny_train(tmp_path / "run", plan, max_steps=8)
    tiny_train(tmp_path / "run", plan, resume=True)
    assert_same(tmp_path / "run", tmp_path / "straight")
    tensors, _, _ = contents(tmp_path / "run")
    assert tensors["model/conv1.weight_score"].any()
    assert "average/conv1.weight" in tensors and "average/conv1.weight_score" not in tensors


def test_several_ranks_move_as_one_process_does(tmp_path):
    """Movement is linear in the gradients, so the mean of the ranks' is that of the whole batch."""
    plan = plain_plan(group={"score": SCORES["movement"]})
    rank_train(tmp_path / "alone", Ranks(), plan)
    status = on_ranks(tmp_path, 2, lambda ranks: rank_train(tmp_path / "run", ranks, plan))
    assert status == [0, 0], said(tmp_path, 0)
    assert_equal_runs(tmp_path / "run", tmp_path / "alone")


@pytest.mark.parametrize(
    "group",
    [
        {"score": Taylor(path="sparse")},
        {"score": "magnitude", "regrow": REGROW},
    ],
    ids=["taylor", "regrow"],
)
def test_ranks_agree_on_masks_whatever_each_has_seen(tmp_path, group):
    """The fingerprints of the masks are compared at every look; a difference ends the run."""
    plan = plain_plan(group=group)
    status = on_ranks(tmp_path, 2, lambda ranks: rank_train(tmp_path / "run", ranks, plan))
    assert status == [0, 0], said(tmp_path, 0)


def test_the_scale_of_fp16_is_taken_out_of_scores(tmp_path):
    """It is 65,536 at the start of a run."""
    plan = plain_plan(group={"score": Taylor(path="sparse")})
    _, plain = rank_train(tmp_path / "plain", Ranks(), plan, max_steps=3)
    _, half = rank_train(tmp_path / "half", Ranks(), plan, max_steps=3, precision="fp16")
    for name, score in plain.score_state.items():
        assert half.score_state[name].sum() == pytest.approx(float(score.sum()), rel=0.05)
