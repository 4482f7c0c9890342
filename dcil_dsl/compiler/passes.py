"""The compiler's table of contents: its passes in their order, and what must hold after each.

In:   a plan.
Out:  the passes that make its graphs, those of extras among them.
Not:  nothing is run here (compiler/__init__.py).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

from torch import fx, nn

from dcil_dsl.compiler.lift_weights import lift_weights
from dcil_dsl.compiler.privatize import privatize
from dcil_dsl.compiler.route_gradients import route_gradients
from dcil_dsl.compiler.unroll_paths import unroll_paths
from dcil_dsl.compiler.verify import verify_paths, verify_privates, verify_routes
from dcil_dsl.plan.plan import Phase, Plan
from dcil_dsl.words.registry import extra


class Context(NamedTuple):
    """What every pass may read.

    model     the copy of the model that the graph calls, with masks and twins registered
    phase     which paths run, and their shares of the gradients
    training  whether this is the graph for training
    pruned    the names of the weights that a rule prunes
    private   the names of the modules of which each path has its own
    twins     the names of the copies of private modules
    redraws   the paths that draw the same random numbers as the first path
    thin      (share of the batch, size) of the paths whose inputs are subsampled
    """

    model: nn.Module
    plan: Plan
    phase: Phase
    training: bool
    pruned: frozenset[str]
    private: frozenset[str]
    twins: frozenset[str]
    redraws: frozenset[str]
    thin: dict[str, tuple[float, float]]


class Pass(NamedTuple):
    """A pass, and the checks of the graph that it makes.

    after  the pass that a pass of an extra follows
    """

    name: str
    rewrite: Callable[[fx.Graph, Context], fx.Graph]
    checks: tuple[Callable[[fx.Graph, Context], None], ...] = ()
    after: str = ""


PASSES = (
    Pass("lift_weights", lambda g, c: lift_weights(g, c.model, c.private, c.twins)),
    Pass(
        "unroll_paths",
        lambda g, c: unroll_paths(
            g, c.model, c.phase.paths, c.pruned, c.private, c.redraws, c.thin
        ),
        (lambda g, c: verify_paths(g, c.phase),),
    ),
    Pass(
        "route_gradients",
        lambda g, c: route_gradients(g, c.model, c.plan, c.phase, c.training),
        (lambda g, c: verify_paths(g, c.phase), lambda g, c: verify_routes(g, c.plan)),
    ),
    Pass(
        "privatize",
        lambda g, c: privatize(g, c.plan),
        (lambda g, c: verify_privates(g, c.plan, c.phase),),
    ),
)


def passes_of(plan: Plan) -> list[Pass]:
    """PASSES, and those of extras that the plan asks for."""
    found = list(PASSES)
    if any(path.compute == "kept" for path in plan.paths):
        own: Pass = extra("sparse_compute.skip_pruned").PASS
        found.insert([one.name for one in found].index(own.after) + 1, own)
    return found
