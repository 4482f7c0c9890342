"""What a rule does to its weights beside masking them, against the rest of the rule and `mix`.

In:   the checked rules and the checked `mix`.
Out:  E235, W207 in a Diagnostics.
Not:  single settings (check.py), scores (check_scores.py).
"""

from __future__ import annotations

from dcil_dsl.diagnostics import Diagnostics
from dcil_dsl.lang import recipe as r
from dcil_dsl.lang.check_mix import Mixed
from dcil_dsl.words.granularity import Single


def check_dynamics(rules: list[r.Prune | r.Keep], mixed: Mixed | None, found: Diagnostics) -> None:
    """Note every setting that the rule's units or score, or the paths, give no meaning."""
    prunes = [rule for rule in rules if isinstance(rule, r.Prune)]
    for rule in prunes:
        _check_rule(rule, found)
    if mixed is None:
        return
    soft = next((path for path in mixed.paths if path.view.soft), None)
    for rule in prunes if soft else ():
        if why := _no_threshold(rule):
            found.add(
                "E235",
                f"path `{soft.name}` sees a soft threshold, and there is none here",
                rule.target_span,
                label=why,
                help="`uniform`, `global` or `erk` of single weights by `magnitude` has one",
            )
    _check_reserve(prunes, mixed, found)


def _check_rule(rule: r.Prune, found: Diagnostics) -> None:
    is_single = isinstance(rule.granularity, Single) and rule.target.pattern is None
    for name, value in (("regrow", rule.regrow), ("reserve", rule.reserve)):
        if value is not None and not is_single:
            found.add(
                "E235",
                f"`{name}` chooses single weights, this rule prunes them together",
                rule.spans.get(name, rule.span),
            )
    if rule.regrow is not None and not rule.score.by_size:
        found.add(
            "E235",
            "`regrow` drops by the size of weights, this rule has another score",
            rule.spans.get("regrow", rule.span),
            help="`score = magnitude`",
        )
    in_flops = getattr(rule.target, "of", None) == "flops"
    for name, value in (("ceiling", rule.ceiling), ("bounds", rule.bounds), ("of", in_flops)):
        if rule.regrow is not None and value:
            found.add(
                "E235",
                f"`regrow` counts weights, and this rule has `{name}`",
                rule.spans.get(name, rule.target_span),
            )
    if any(p.part == "reserve" for p in rule.penalty) and rule.reserve is None:
        found.add(
            "E235",
            "a penalty of the reserve, and the rule has none",
            rule.spans.get("penalty", rule.span),
            help="for example `reserve = 10%`",
        )


def _no_threshold(rule: r.Prune) -> str | None:
    if rule.target.pattern or rule.target.rescales or not isinstance(rule.granularity, Single):
        return "what is kept here is not what is larger than some number"
    by_size = rule.score.by_size and rule.score.decay is None
    return None if by_size and rule.regrow is None else "weights are not kept by their size"


def _check_reserve(prunes: list[r.Prune], mixed: Mixed, found: Diagnostics) -> None:
    has_reserve = any(rule.reserve is not None for rule in prunes)
    updates = [update for update in mixed.updates if "reserve" in update.parts]
    if updates and not has_reserve:
        found.add(
            "W207",
            "no rule has a `reserve`, so there are no such weights",
            updates[0].span,
            help="for example `reserve = 10%` in `pruning`",
        )
    if has_reserve and not updates and not found.errors:
        rule = next(rule for rule in prunes if rule.reserve is not None)
        found.add(
            "W207",
            "no rule updates the reserve, so it is as the other pruned weights are",
            rule.spans.get("reserve", rule.span),
            help=f"for example `update kept, reserve by {mixed.deploy}`",
        )
