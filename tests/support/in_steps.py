"""Words as a plan holds them, times in steps: what tests put into plans that they make by hand."""

from dcil_dsl.words.schedules import Cubic, Linear, Once
from dcil_dsl.words.targets import Global, Uniform
from dcil_dsl.words.units import Percent, Range, Time


def steps(number):
    return Time(number, "steps")


def cubic(start, stop, **settings):
    return Cubic(over=Range(steps(start), steps(stop)), **_of_ramp(**settings))


def linear(start, stop, **settings):
    return Linear(over=Range(steps(start), steps(stop)), **_of_ramp(**settings))


def once(at):
    return Once(at=steps(at))


def one_budget(share):
    return Global(sparsity=Percent(share))


def each_layer(share):
    return Uniform(sparsity=Percent(share))


def _of_ramp(initial=0.0, grid=None):
    return {"initial": Percent(initial), "grid": grid and steps(grid)}
