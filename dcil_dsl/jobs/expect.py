"""The `expect` block of a recipe against the measured result.

In:   a Plan; the accuracy and the sparsity of the deployed path.
Out:  a Claim for each line of `expect`.
Not:  no measuring.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from dcil_dsl.diagnostics import InputError
from dcil_dsl.plan.plan import Expectation, Plan


@dataclass(frozen=True)
class Claim:
    """One line of `expect`. `holds` is None where the run has not reached its end."""

    text: str
    measured: float
    holds: bool | None


def check_claims(plan: Plan) -> None:
    """Refuse, before training, a metric that a run of this model does not measure."""
    measured = {"top1", "sparsity"} | ({"top5"} if (plan.model.classes or 0) > 5 else set())
    for claim in plan.expect:
        if claim.metric not in measured:
            raise InputError(
                f"`expect {claim.metric}`: a run of this model measures "
                f"{', '.join(sorted(measured))}"
            )


def judge_claims(
    plan: Plan, accuracy: Mapping[str, float], sparsity: float, judged: bool = True
) -> tuple[Claim, ...]:
    """Compare `expect` with the numbers of one path. InputError for a metric not among them.

    judged  False where --max-steps cut the run short: the recipe claims nothing of such a run
    """
    measured = {**accuracy, "sparsity": sparsity}
    claims = []
    for claim in plan.expect:
        if claim.metric not in measured:
            raise InputError(f"`expect {claim.metric}`: this run measures {', '.join(measured)}")
        value = measured[claim.metric]
        holds = _compare(value, claim) if judged else None
        text = f"{claim.metric} {claim.compare} {100 * claim.value:.6g}%"
        claims.append(Claim(text, value, holds))
    return tuple(claims)


def _compare(value: float, claim: Expectation) -> bool:
    # 0.96 as a fraction of two counts and as a decimal may differ in the last bit.
    near = abs(value - claim.value) < 1e-12
    return {
        ">=": value > claim.value or near,
        "<=": value < claim.value or near,
        "==": near,
        "!=": not near,
        ">": value > claim.value and not near,
        "<": value < claim.value and not near,
    }[claim.compare]
