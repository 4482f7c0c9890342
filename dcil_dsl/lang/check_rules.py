"""The `prune` and `keep` rules: each alone, and against the paths of `mix`.

In:   ast.File, closed; the checked `mix`.
Out:  PruneRule and KeepRule with the settings of `pruning` merged in; E2xx and W2xx in a
      Diagnostics.
Not:  no layers and no steps; a path may still turn out never to run (plan/phases.py).
"""

from __future__ import annotations

from typing import cast

from dcil_dsl.diagnostics import Diagnostics, Label, Span
from dcil_dsl.diagnostics.suggest import did_you_mean
from dcil_dsl.lang import ast
from dcil_dsl.lang import recipe as r
from dcil_dsl.lang.check_mix import Mixed, named_by
from dcil_dsl.lang.read import Settings, WordReader, keyword
from dcil_dsl.lang.read_values import Broken
from dcil_dsl.lang.rule_parts import check_block, check_schedule, read_before, read_bounds
from dcil_dsl.lang.selectors import Selectors
from dcil_dsl.lang.syntax_errors import listed
from dcil_dsl.words.blocks import PruneBlock
from dcil_dsl.words.granularity import Granularity, Single
from dcil_dsl.words.registry import words_at
from dcil_dsl.words.schedules import GrowByGradient, Schedule
from dcil_dsl.words.scores import GradientScore
from dcil_dsl.words.targets import Target
from dcil_dsl.words.units import Percent, Time, written
from dcil_dsl.words.views import Complement, Masked


def read_rules(
    file: ast.File, pruning: ast.BlockNode | None, reader: WordReader, selectors: Selectors
) -> list[r.PruneRule | r.KeepRule]:
    shared = pruning.settings if pruning else ()
    rules: list[r.PruneRule | r.KeepRule] = []
    if pruning is not None:
        _limits(reader.block(PruneBlock, "pruning", shared, keyword(pruning)), reader)
    for item in file.items:
        if isinstance(item, ast.KeepNode):
            rules.append(r.KeepRule(selector=selectors.closed(item.selector), span=item.span))
        elif isinstance(item, ast.PruneNode):
            rule = _prune(item, shared, reader, selectors)
            rules += [] if rule is None else [rule]
    _unused_settings(file, pruning, reader.found)
    return rules


def _prune(
    item: ast.PruneNode, shared: tuple[ast.Setting, ...], reader: WordReader, selectors: Selectors
) -> r.PruneRule | None:
    selector = selectors.closed(item.selector)
    own = {s.name.name for s in item.settings}
    # Errors in `pruning` are reported there, not once for every rule.
    _limits(reader.block(PruneBlock, "prune", item.settings, item.head_span), reader)
    quiet = reader.quiet()
    together = (*(s for s in shared if s.name.name not in own), *item.settings)
    read = quiet.block(PruneBlock, "prune", together, item.head_span)
    try:
        target = reader.target(item.target)
    except Broken:
        return None
    if read.word is None:
        return None
    word = read.word
    check_schedule(word.schedule, target, read.spans.get("schedule"), reader)
    granularity = _granularity(item, target, word.granularity, reader)
    spans = {**read.spans, "target": item.target.span}
    if granularity is not word.granularity:  # the target brings its own
        spans.pop("granularity", None)
    return r.PruneRule(
        selector=selector,
        target=target,
        score=word.score,
        schedule=word.schedule,
        refresh=word.refresh,
        freeze=word.freeze,
        floor=word.floor,
        filter_floor=word.filter_floor,
        ceiling=word.ceiling,
        bounds=read_bounds(together, word.bounds, target, selectors, reader),
        granularity=granularity,
        before=read_before(item, word, target, granularity, selector, read.spans, reader),
        forget=word.forget,
        reserve=word.reserve,
        penalty=word.penalty,
        param=word.param,
        regrow=word.regrow,
        span=item.head_span,
        spans=spans,
    )


def _granularity(
    item: ast.PruneNode, target: Target, setting: Granularity | None, reader: WordReader
) -> Granularity:
    """The target's own, else the setting's; a rule that gives both gives it twice."""
    own = getattr(target, "granularity", None)
    is_pattern = target.pattern is not None
    for one in item.settings:
        if one.name.name == "granularity" and (own or is_pattern):
            why = "a pattern is a granularity of its own" if is_pattern else None
            reader.found.add(
                "E208",
                "`granularity` is given twice",
                one.name.span,
                label=why,
                others=(Label(item.target.span, "the target says it first"),),
            )
    check_block(own, item.target.span, reader)
    return own or setting or Single()


def _limits(read: Settings[PruneBlock], reader: WordReader) -> None:
    """Report single settings of `pruning` or of a rule that are out of their limits."""
    refresh, floor = read.values.get("refresh"), read.values.get("floor")
    schedule = read.values.get("schedule")
    if isinstance(refresh, Time) and refresh.value <= 0:
        reader.found.add(
            "E205",
            "masks cannot be recomputed every 0 steps",
            read.spans["refresh"],
            help="for example `refresh = 16 steps`",
        )
    if refresh == ():
        reader.found.add(
            "E205",
            "this list of moments is empty",
            read.spans["refresh"],
            help="for example `refresh = [10ep, 20ep]`",
        )
    if isinstance(floor, Percent) and floor.fraction >= 1:
        reader.found.add(
            "E205",
            "a floor of 100% leaves nothing to prune",
            read.spans["floor"],
            help="`keep` excludes layers from pruning",
        )
    of_filters = read.values.get("filter_floor")
    if isinstance(of_filters, Percent) and not 0 < of_filters.fraction < 1:
        reader.found.add(
            "E205",
            f"a floor of {written(of_filters)} of each filter "
            + ("keeps nothing" if of_filters.fraction <= 0 else "leaves nothing to prune"),
            read.spans["filter_floor"],
            help="for example `filter_floor = 1`, one weight of each filter",
        )
    ceiling = read.values.get("ceiling")
    if isinstance(ceiling, Percent) and ceiling.fraction <= 0:
        reader.found.add("E205", "a ceiling of 0% leaves nothing of a layer", read.spans["ceiling"])
    if isinstance(floor, Percent) and isinstance(ceiling, Percent) and floor > ceiling:
        reader.found.add(
            "E214",
            f"the floor {written(floor)} is above the ceiling {written(ceiling)}",
            read.spans["floor"],
        )
    check_block(read.values.get("granularity"), read.spans.get("granularity"), reader)
    grid = getattr(schedule, "grid", None)
    if grid is not None and grid.value <= 0:
        reader.found.add(
            "E205",
            "a grid of 0 steps has no places",
            read.spans["schedule"],
            help="for example `grid=1ep`",
        )


def _unused_settings(file: ast.File, pruning: ast.BlockNode | None, found: Diagnostics) -> None:
    """A setting of `pruning` that every rule sets for itself changes nothing."""
    rules = [item for item in file.items if isinstance(item, ast.PruneNode)]
    for setting in pruning.settings if pruning else ():
        name = setting.name.name
        if all(any(s.name.name == name for s in rule.settings) for rule in rules):
            why = "every rule sets its own" if rules else "there is no `prune` rule"
            found.add("W204", f"`{name}` of `pruning` has no effect", setting.span, label=why)


def check_rules(
    rules: list[r.PruneRule | r.KeepRule], mixed: Mixed | None, found: Diagnostics
) -> None:
    """Check the rules against the paths of `mix`."""
    _check_overridden(rules, found)
    if mixed is not None:
        _check_masks(rules, mixed, found)
    _check_scores(rules, mixed, found)
    _check_effects(rules, mixed, found)


def _check_overridden(rules: list[r.PruneRule | r.KeepRule], found: Diagnostics) -> None:
    """W303 for a rule whose selector a later rule of the same file has too: no model is needed."""
    for index, later in sorted(r.replaced_rules(rules).items()):
        found.add(
            "W303",
            "this rule has no effect",
            rules[index].span,
            label="a later rule has the same layers",
            others=(Label(rules[later].span, "the last rule that matches a layer wins"),),
            help="leave one of the two out",
        )


def _check_masks(rules: list[r.PruneRule | r.KeepRule], mixed: Mixed, found: Diagnostics) -> None:
    """Masks need both a rule that makes them and a path that applies them."""
    prunes = [rule for rule in rules if isinstance(rule, r.PruneRule)]
    masked = [path for path in mixed.paths if path.view.prunes]
    if prunes and mixed.paths and not masked and not mixed.broken:
        found.add(
            "E221",
            "weights are pruned, but no path sees the masks",
            prunes[0].span,
            help="declare one in `mix`: `path sparse = masked`",
        )
    if prunes:
        _check_deployed(mixed, found)
    elif not found.errors:
        for path in masked:
            found.add(
                "W206",
                f"path `{path.name}` is masked, but no rule prunes",
                path.span,
                label="its masks keep every weight",
            )
        for update in mixed.updates:
            if "pruned" in update.parts:
                found.add("W206", "no rule prunes, so there are no pruned weights", update.span)


def _check_deployed(mixed: Mixed, found: Diagnostics) -> None:
    """W208 and E244: the deployed path has no zeros where the rules prune."""
    view = next((path.view for path in mixed.paths if path.name == mixed.deploy), None)
    masked = next((path.name for path in mixed.paths if isinstance(path.view, Masked)), None)
    help = None if masked is None else f"`deploy {masked}` exports a sparse network"
    if isinstance(view, Complement):
        found.add(
            "E244",
            f"the deployed path `{mixed.deploy}` is `complement`: the exported file would have its "
            "zeros where the rules keep weights",
            mixed.deploy_span,
            help=help,
        )
    elif view is not None and not view.prunes and not found.errors:
        found.add(
            "W208",
            f"the deployed path `{mixed.deploy}` is `{view.called}`: the exported file will have "
            "no zeros from the rules",
            mixed.deploy_span,
            help=help,
        )


# -- scores and growth -----------------------------------------------------------------------------


def _check_scores(
    rules: list[r.PruneRule | r.KeepRule], mixed: Mixed | None, found: Diagnostics
) -> None:
    """Report every score that cannot be computed, once for each place."""
    seen = set()
    for rule in rules:
        if not isinstance(rule, r.PruneRule):
            continue
        span = rule.at("score")
        word = rule.score.called
        if rule.target.rescales and not rule.score.by_size:
            found.add(
                "E234",
                f"`{rule.target.called}` compares squared weights, and the score is `{word}`",
                rule.at("target"),
                others=(Label(span, "the score"),),
                help="`score = magnitude`, or `global` with this score",
            )
        asked: GradientScore | GrowByGradient
        if isinstance(rule.regrow, GrowByGradient):
            asked, span = rule.regrow, rule.at("regrow")
        elif isinstance(rule.score, GradientScore):
            asked = rule.score
        else:
            continue
        if mixed is not None and span not in seen:
            seen.add(span)
            _check_path(asked, span, mixed, found)


def _check_path(
    asked: GradientScore | GrowByGradient,
    span: Span,
    mixed: Mixed,
    found: Diagnostics,
) -> None:
    declared = [path.name for path in mixed.paths]
    path = asked.path or mixed.deploy
    if path not in declared:
        if asked.path and declared and not mixed.broken:
            found.add(
                "E216",
                f"no path is named `{path}`",
                span,
                help=did_you_mean(path, declared)
                or f"`mix` declares {listed(f'`{name}`' for name in declared)}",
            )
        return
    used = named_by(mixed.losses)
    learning = [name for name in declared if name in used]
    if learning and path not in used:
        word, other = asked.called, f"{asked.called}({learning[0]})"
        if isinstance(asked, GrowByGradient):
            other = f"{word}({written(asked.share)}, {learning[0]})"
        found.add(
            "E233",
            f"`{word}` needs the gradient of path `{path}`, which has no loss",
            span,
            help=f"`{other}`, or a loss of `{path}` in `mix`",
        )


# -- other effects on weights ----------------------------------------------------------------------


def _check_effects(
    rules: list[r.PruneRule | r.KeepRule], mixed: Mixed | None, found: Diagnostics
) -> None:
    """Note every setting that the rule's units or score, or the paths, give no meaning."""
    prunes = [rule for rule in rules if isinstance(rule, r.PruneRule)]
    for rule in prunes:
        _check_rule(rule, found)
    if mixed is None:
        return
    soft = next((path for path in mixed.paths if path.view.soft), None)
    for rule in prunes:
        if soft and (why := _no_threshold(rule)):
            found.add(
                "E235",
                f"path `{soft.name}` sees a soft threshold, and this rule has none",
                rule.at("target"),
                label=why,
                help="a target of single weights by `magnitude` has one, for example `90%`",
            )
    _check_reserve(prunes, mixed, found)


def _check_rule(rule: r.PruneRule, found: Diagnostics) -> None:
    is_single = isinstance(rule.granularity, Single) and rule.target.pattern is None
    alone = ("regrow", "reserve", "filter_floor")
    for name, value in ((name, getattr(rule, name)) for name in alone):
        if value is not None and not is_single:
            found.add(
                "E235",
                f"`{name}` is for single weights, and this rule prunes {rule.unit.together}",
                rule.at(name),
            )
    for name in ("regrow", "reserve", "filter_floor", "ceiling", "bounds"):
        if rule.before is not None and getattr(rule, name):
            found.add("E235", f"`before` and `{name}` are of the same weights", rule.at(name))
    if rule.target.is_result:
        _check_limit(rule, found)
    if rule.regrow is not None and not rule.score.by_size:
        found.add(
            "E235",
            "`regrow` drops weights by magnitude, and this rule has another score",
            rule.at("regrow"),
            help="`score = magnitude`",
        )
    in_flops = getattr(rule.target, "of", None) == "flops"
    counts = {
        "ceiling": rule.ceiling,
        "filter_floor": rule.filter_floor,
        "bounds": rule.bounds,
        "of": in_flops,
    }
    for name in (name for name, value in counts.items() if value):
        if rule.regrow is not None:
            found.add(
                "E235",
                f"`regrow` counts weights, and this rule has `{name}`",
                rule.at(name, "target"),
            )
    for word in rule.penalty:
        if word.part == "rest" or word.of is not None or word.biases:
            found.add(
                "E235",
                "a penalty of a rule is on the weights that it prunes"
                + (", and no rule prunes the rest" if word.part == "rest" else ""),
                rule.at("penalty"),
                help=f"`penalty = [{word.called}(rest, ...)]` of `train`",
            )
            break
    if any(p.part == "reserve" for p in rule.penalty) and rule.reserve is None:
        found.add(
            "E235",
            "a penalty on the reserve, and the rule has none",
            rule.at("penalty"),
            help="for example `reserve = 10%`",
        )


def _check_limit(rule: r.PruneRule, found: Diagnostics) -> None:
    """E235 for what needs a share, where a limit of the scores decides."""
    word = f"`{rule.target.called}`"
    for name in ("before", "ceiling", "bounds", "reserve", "regrow"):
        if getattr(rule, name):
            found.add("E235", f"`{name}` needs a share, and {word} asks for none", rule.at(name))
    known = cast("dict[str, type[Schedule]]", words_at("a schedule")).items()
    if not rule.schedule.proportional:
        found.add(
            "E235",
            f"`{rule.schedule.called}` is a course of shares, and {word} asks for none",
            rule.at("schedule"),
            help=f"{listed(f'`{w}`' for w, c in known if c.proportional)} raise the limit from 0",
        )


def _no_threshold(rule: r.PruneRule) -> str | None:
    if rule.target.is_result:
        return "its threshold is that of `below`, and the path takes the largest pruned weight"
    if rule.target.pattern or rule.target.rescales or not isinstance(rule.granularity, Single):
        return "kept weights are not those above a threshold here"
    if rule.filter_floor is not None:
        return "`filter_floor` keeps weights below the threshold"
    if rule.before is not None:
        return "`before` prunes weights above the threshold"
    by_size = rule.score.by_size and rule.score.decay is None
    return None if by_size and rule.regrow is None else "weights are not kept by their magnitude"


def _check_reserve(prunes: list[r.PruneRule], mixed: Mixed, found: Diagnostics) -> None:
    has_reserve = any(rule.reserve is not None for rule in prunes)
    updates = [update for update in mixed.updates if "reserve" in update.parts]
    if updates and not has_reserve:
        found.add(
            "W207",
            "no rule has a `reserve`, so there are no reserved weights",
            updates[0].span,
            help="for example `reserve = 10%` in `pruning`",
        )
    if has_reserve and not updates and not found.errors:
        rule = next(rule for rule in prunes if rule.reserve is not None)
        found.add(
            "W207",
            "no rule updates the reserve, so it learns like other pruned weights",
            rule.at("reserve"),
            help=f"for example `update kept, reserve by {mixed.deploy}`",
        )
