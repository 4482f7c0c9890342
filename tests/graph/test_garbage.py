"""Large graphs are made with the cyclic garbage collector run seldom; then all is as it was."""

import gc
import sys
from pathlib import Path

import pytest
import torch
from torch import nn

from dcil_dsl.compiler import compile_plan
from dcil_dsl.graph.garbage import NEW_OBJECTS, seldom_collected
from dcil_dsl.graph.trace import TraceError, trace_model
from dcil_dsl.lang import loads
from dcil_dsl.plan.resolve import resolve_recipe

sys.path.insert(0, str(Path(__file__).parents[1] / "compiler"))
from test_scale import RECIPE, Chain  # noqa: E402

USUAL = (700, 10, 10)


@pytest.fixture(autouse=True)
def usual():
    """Python's own setting, and afterwards what it was."""
    before, was_on = gc.get_threshold(), gc.isenabled()
    gc.set_threshold(*USUAL)
    yield
    gc.set_threshold(*before)
    (gc.enable if was_on else gc.disable)()


def test_within_it_is_seldom_and_afterwards_as_before_also_one_within_another():
    with seldom_collected():
        with seldom_collected():
            assert gc.get_threshold() == (NEW_OBJECTS, 10, 10)
        assert gc.get_threshold() == (NEW_OBJECTS, 10, 10)
    assert gc.get_threshold() == USUAL and gc.isenabled()


def test_two_that_overlap_as_threads_do_leave_it_as_before():
    one, other = seldom_collected(), seldom_collected()
    one.__enter__()
    other.__enter__()
    one.__exit__(None, None, None)
    assert gc.get_threshold() == (NEW_OBJECTS, 10, 10)
    other.__exit__(None, None, None)
    assert gc.get_threshold() == USUAL


def test_an_error_leaves_it_as_before():
    with pytest.raises(KeyError):
        with seldom_collected():
            raise KeyError
    with pytest.raises(TraceError):
        trace_model(nn.Sequential(nn.LazyLinear(3)))
    assert gc.get_threshold() == USUAL


@pytest.mark.parametrize("own", [(0, 10, 10), (NEW_OBJECTS + 1, 5, 5)], ids=("never", "seldom"))
def test_who_collects_as_seldom_or_never_keeps_the_own_setting(own):
    gc.set_threshold(*own)
    with seldom_collected():
        assert gc.get_threshold() == own
    assert gc.get_threshold() == own


def test_a_collector_that_is_off_stays_off():
    gc.disable()
    with seldom_collected():
        assert not gc.isenabled()
    assert not gc.isenabled()


def test_it_is_seldom_while_a_model_is_traced_resolved_and_compiled():
    """Without, some thirty collections."""
    recipe, model, numbers = loads(RECIPE), Chain(60, width=4), []
    found = []

    def note(phase, info):
        if phase == "start":
            found.append(info["generation"])

    def counted(function, *arguments, **more):
        found.clear()
        result = function(*arguments, **more)
        numbers.append(len(found))
        return result

    gc.set_threshold(50, 10, 10)
    gc.callbacks.append(note)
    try:
        traced = counted(trace_model, model, (torch.zeros(2, 4),))
        plan = counted(resolve_recipe, recipe, traced, steps_per_epoch=10)
        counted(compile_plan, plan, traced)
    finally:
        gc.callbacks.remove(note)
    assert max(numbers) < 20  # thousands, tens and hundreds as Python has it
