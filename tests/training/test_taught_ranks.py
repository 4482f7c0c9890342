"""Several processes average a path as one process does."""

from support.same_runs import assert_equal_runs, checkpoint
from support.tiny_ranks import on_ranks, plain_plan, rank_train, said
from support.tiny_run import kl

from dcil_dsl.plan import plan as p
from dcil_dsl.training.distributed import Ranks
from dcil_dsl.words.views import PathAverage


def test_the_average_of_a_path_on_two_ranks_is_that_of_one_process(tmp_path):
    slow = p.TeacherPath(name="slow", network=PathAverage(path="sparse", decay=0.8), size=1.0)
    plan = plain_plan()
    (phase,) = plan.phases
    plan = plan.model_copy(
        update={
            "teachers": (slow,),
            "losses": (*plan.losses, kl("sparse", "slow", p.Window(start=3))),
            "phases": (
                phase.model_copy(update={"window": p.Window(stop=3)}),
                phase.model_copy(update={"window": p.Window(start=3), "teachers": ("slow",)}),
            ),
        }
    )
    rank_train(tmp_path / "alone", Ranks(), plan)
    status = on_ranks(tmp_path, 2, lambda ranks: rank_train(tmp_path / "run", ranks, plan))
    assert status == [0, 0], said(tmp_path, 0)
    assert_equal_runs(tmp_path / "run", tmp_path / "alone")
    assert checkpoint(tmp_path / "run")["model/ema__slow.step"] == plan.num_steps - 1
