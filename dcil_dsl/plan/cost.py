"""What a training run costs, in multiples of a dense one, by arithmetic.

In:   a Plan.
Out:  forward-backward passes over the model, per phase and on average over the run.
Not:  no clock: what a machine really takes is measured by the trainer.
"""

from __future__ import annotations

from collections.abc import Collection

from dcil_dsl.plan.plan import Phase, Plan
from dcil_dsl.plan.skip_pruned import is_estimate, share_done

MOMENTS = 200  # at which a cost that changes with the masks is looked at


def phase_steps(plan: Plan, phase: Phase) -> int:
    """How many steps of the run lie in the phase."""
    return phase.window.num_steps(plan.num_steps)


def step_cost(plan: Plan, phase: Phase, whole: Collection[str] = ()) -> float:
    """A step of the phase in dense steps: the paths that run, each by the pixels that it sees.

    Times the gradients that an integrator takes of them. Of a path that leaves out what is pruned
    the mean over the phase. whole: weights of a 2:4 pattern that are multiplied by as a whole.
    """
    integrator = plan.train.integrator
    evaluations = 1 if integrator is None else integrator.num_gradients
    return evaluations * _one_gradient(plan, phase, whole)


def _one_gradient(plan: Plan, phase: Phase, whole: Collection[str]) -> float:
    costs = {path.name: path.cost for path in plan.paths}
    smaller = [p.name for p in plan.paths if p.compute == "kept" and p.name in phase.paths]
    if smaller:
        share = _mean_share(plan, phase, whole)
        costs |= {name: share * costs[name] for name in smaller}
    return sum(costs[name] for name in phase.paths)


def training_cost(plan: Plan, whole: Collection[str] = ()) -> float:
    """The run's arithmetic as a multiple of a dense run of the same length.

        sum over phases (steps * sum over the paths that run (share of the batch * size^2)) / steps
        * gradients of an integrator, and what a `balance` measures beside the steps

    An upper bound: layers in front of the first weight that differs between the paths are
    computed once for all of them. Zeros do not lower it, since masked weights are multiplied
    by dense kernels, but those that `compute = kept` leaves out, of a 2:4 pattern those that
    sparse tensor cores do: all of them but `whole`, which no other machine has.
    """
    if plan.num_steps == 0:
        return 0.0
    passes = sum(phase_steps(plan, phase) * step_cost(plan, phase, whole) for phase in plan.phases)
    balance = plan.train.balance
    if balance is not None:
        one = {phase: _one_gradient(plan, phase, whole) for phase in plan.phases}
        steps = range(0, plan.num_steps, balance.every.step)
        passes += sum(
            balance.num_gradients(plan.losses, step) * one[plan.phase_at(step)] for step in steps
        )
    return passes / plan.num_steps


def bound(plan: Plan) -> str:
    """What kind of number a cost is: "at most", or "about" where scores decide."""
    return "about" if is_estimate(plan) else "at most"


def _mean_share(plan: Plan, phase: Phase, whole: Collection[str]) -> float:
    stop = plan.num_steps if phase.window.stop is None else phase.window.stop
    first, last = phase.window.start, max(min(stop, plan.num_steps) - 1, phase.window.start)
    count = min(MOMENTS, last - first + 1)
    moments = [first + (last - first) * i // max(count - 1, 1) for i in range(count)]
    return sum(share_done(plan, step, whole) for step in moments) / count
