"""Refuse recipes that need more of a weight than rows and sums (`--shard`).

In:   a plan, the Ranks.
Out:  InputError, which names the rule or the path, before anything is written.
Not:  nothing is cut (shards.py).
"""

from __future__ import annotations

from dcil_dsl.diagnostics.errors import InputError
from dcil_dsl.extras.sharding.rows import pattern_needs
from dcil_dsl.plan.plan import Group, Plan
from dcil_dsl.training.distributed import Ranks


def rows_of_a_rank(num_rows: int, num_ranks: int) -> int:
    """The most that one has; the last ranks may have fewer, or none."""
    return -(-num_rows // num_ranks)


def check_shardable(plan: Plan, ranks: Ranks) -> None:
    """InputError where something needs more of a weight than rows and sums, or the machine is
    wrong."""
    if ranks.count == 1:
        raise InputError(
            "--shard: there is one process, and nothing to divide",
            help="torchrun --nproc-per-node N -m dcil_dsl compile ... --shard",
        )
    whole = "leave --shard out: every process then has all weights"
    optimizer = plan.train.optimizer
    if not optimizer.entrywise:
        raise InputError(
            f"--shard: `{optimizer.called}` computes with whole weights, and a process has rows",
            help=whole,
        )
    for group in plan.groups:
        why = _needs_whole(group) or _cuts_filters(plan, group)
        if why is not None:
            raise InputError(f"--shard: the rule at {group.rule} {why}", help=whole)
        _check_pattern(plan, group, ranks)
    for penalty in plan.train.penalties:
        word = penalty.word
        if word.needs_norm or word.needs_axis or word.origin is not None:
            raise InputError(
                f"--shard: the penalty {word.called} of `train` reads whole weights", help=whole
            )
    for path in plan.paths:
        if not path.view.entrywise:
            raise InputError(
                f"--shard: path {path.name} is {path.view.called}, a word of a package, which is "
                "given whole weights",
                help=whole,
            )
        if path.compute == "kept":
            raise InputError(
                f"--shard: `compute = kept` of path `{path.name}` reads whole masks",
                help="leave one of the two out",
            )


def _needs_whole(group: Group) -> str | None:
    """Why a rule needs whole weights, or None: a word of a package may read all of a weight."""
    if group.before is not None:
        return "prunes whole units before, and chooses among the weights that all rows leave"
    if group.score.origin is not None:
        return f"scores by {group.score.called}, a word of a package, which needs whole weights"
    for penalty in group.penalties:
        if penalty.origin is not None:
            return f"has the penalty {penalty.called}, a word of a package; it needs whole weights"
    return None


def _cuts_filters(plan: Plan, group: Group) -> str | None:
    """Why a penalty by filters does not fit: those of transposed convolutions are not rows."""
    axes = {layer.parameter: layer.out_axis for layer in plan.layers}
    cut = next((name for name in group.parameters if axes[name]), None)
    asked = next((penalty for penalty in group.penalties if penalty.needs_axis), None)
    if cut is None or asked is None:
        return None
    return f"has the penalty {asked.called}, and the filters of `{cut}` are not rows"


def _check_pattern(plan: Plan, group: Group, ranks: Ranks) -> None:
    """InputError where a group of m would lie on two ranks."""
    if group.pattern is None:
        return
    shapes = {layer.parameter: layer.shape for layer in plan.layers}
    for name, cut in zip(group.parameters, group.cuts, strict=True):
        num_rows = shapes[name][0]
        each, m = rows_of_a_rank(num_rows, ranks.count), pattern_needs(cut, num_rows)
        if each % m:
            raise InputError(
                f"--shard: the rule at {group.rule} keeps {group.pattern.n} of every {m} rows of "
                f"`{name}`, and {ranks.count} processes cut its {num_rows} rows after each {each}",
                help=f"a number of processes that gives each a multiple of {m} rows, or no --shard",
            )
