"""The statements of `mix`: paths, updates, privates, losses, deploy.

In:   ast.Mix, closed.
Out:  Mixed: the same, typed; E206, E208, E215..E220, E227, W203, W205 in a Diagnostics.
Not:  no layers, no steps: two windows are compared only where every run would agree.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, cast

from dcil_dsl.diagnostics import Diagnostics, Label, Span
from dcil_dsl.diagnostics.suggest import did_you_mean
from dcil_dsl.lang import ast
from dcil_dsl.lang import recipe as r
from dcil_dsl.lang.ast import BROKEN
from dcil_dsl.lang.check_teachers import is_teacher, place_of_path, read_teacher
from dcil_dsl.lang.read import WordReader
from dcil_dsl.lang.read_values import Broken
from dcil_dsl.lang.selectors import Selectors
from dcil_dsl.lang.syntax_errors import listed
from dcil_dsl.words.blocks import PARTS, PathBlock, PrivateBlock
from dcil_dsl.words.losses import KL, Loss, Taught
from dcil_dsl.words.registry import words_at
from dcil_dsl.words.units import Percent, Time, kind_of, written
from dcil_dsl.words.views import AnyView, Masked


@dataclass(frozen=True)
class Mixed:
    """`broken`: a declaration is wrong, so a missing path may be that one."""

    paths: tuple[r.PathRule, ...]
    teachers: tuple[r.TeacherRule, ...]
    updates: tuple[r.UpdateRule, ...]
    privates: tuple[r.PrivateRule, ...]
    losses: tuple[r.LossRule, ...]
    deploy: str
    deploy_span: Span
    broken: bool


def check_mix(
    mix: ast.Mix | None,
    file: ast.File,
    reader: WordReader,
    selectors: Selectors,
    rules: Iterable[r.PruneRule | r.KeepRule],
) -> Mixed | None:
    """The checked `mix`; None if the recipe has none. `rules`: those of the recipe."""
    found = reader.found
    if mix is None:
        stop = len(file.source.text.rstrip())
        found.add(
            "E215",
            "the recipe has no `mix` block",
            Span(file.source, stop, stop),
            help="`mix` declares the paths, and which weights learn from which path",
        )
        return None
    kinds: dict[type, list[Any]] = {}
    for item in mix.items:
        kinds.setdefault(type(item), []).append(item)
    checker = _Mix(reader, kinds.get(ast.PathNode, []))
    here = Span(mix.span.source, mix.span.start, mix.span.start + 3)
    if not checker.names or (checker.teachers and not checker.paths and not checker.broken):
        found.add("E216", "`mix` declares no path", here, help="for example `path sparse = masked`")
    updates = [u for item in kinds.get(ast.UpdateNode, []) if (u := checker.update(item))]
    if not updates and not kinds.get(ast.UpdateNode) and len(checker.paths) == 1:
        updates = [_of_the_one_path(checker.paths[0], rules)]
    losses = [x for item in kinds.get(ast.LossNode, []) if (x := checker.loss(item))]
    privates = [
        p for item in kinds.get(ast.PrivateNode, []) if (p := checker.private(item, selectors))
    ]
    if not kinds.get(ast.LossNode):
        found.add(
            "E219",
            "`mix` has no loss, so no weight learns",
            here,
            help="for example `loss cross_entropy(sparse)`",
        )
    deploys = kinds.get(ast.Deploy, [])
    deploy = checker.deploy(deploys, here)
    checker.overlaps(updates)
    if not _halves_alone(rules):
        checker.learns_what_it_leaves_out(updates)
    if not found.errors:
        _warn(file, checker, updates, losses, here, found)
    return Mixed(
        tuple(checker.paths),
        tuple(checker.teachers),
        tuple(updates),
        tuple(privates),
        tuple(losses),
        deploy,
        deploys[0].span if deploys else here,
        checker.broken,
    )


def _of_the_one_path(path: r.PathRule, rules: Iterable[r.PruneRule | r.KeepRule]) -> r.UpdateRule:
    """`update kept, pruned by` the only path, where the recipe gives no `update`."""
    prunes = any(isinstance(rule, r.PruneRule) for rule in rules)
    parts = ("kept", "pruned") if prunes else ("kept",)
    return r.UpdateRule(parts=parts, shares=((path.name, 1.0),), span=path.span)


def _halves_alone(rules: Iterable[r.PruneRule | r.KeepRule]) -> bool:
    """Whether `compute = kept` could spare arithmetic of patterns, and of nothing else.

    Of a pattern a path spares products of the forward pass, and has all gradients.
    """
    prunes = [rule for rule in rules if isinstance(rule, r.PruneRule)]
    others = [rule for rule in prunes if rule.target.pattern is None]
    wholes = [rule for rule in others if rule.granularity.axis is not None]
    return len(others) < len(prunes) and not wholes


class _Mix:
    def __init__(self, reader: WordReader, paths: list[ast.PathNode]):
        self.reader, self.found = reader, reader.found
        self.paths: list[r.PathRule] = []
        self.teachers: list[r.TeacherRule] = []
        self.names: dict[str, ast.PathNode] = {}
        self.broken = False
        for item in paths:
            self._path(item)
        for teacher in self.teachers:
            if teacher.word.follows is not None:
                self._runs(teacher.word.follows, place_of_path(self.names[teacher.name]))

    def _path(self, item: ast.PathNode) -> None:
        name = item.name.name
        before = self.names.setdefault(name, item)
        if before is not item:
            self.found.add(
                "E208",
                f"path `{name}` is given twice",
                item.name.span,
                others=(Label(before.name.span, "given here first"),),
            )
        if is_teacher(item):
            self._teacher(item, before is item)
            return
        read = self.reader.block(PathBlock, "path", item.settings, item.name.span)
        word = read.word
        for key in ("batch", "size"):
            share = read.values.get(key)
            if isinstance(share, Percent) and not 0 < share.fraction <= 1:
                self.found.add(
                    "E205",
                    f"`{key}` of `path` is {written(share)}, it must be more "
                    "than 0% and at most 100%",
                    read.spans[key],
                )
        every = read.values.get("every")
        if isinstance(every, Time) and every.value <= 0:
            self.found.add(
                "E205",
                "a path cannot run every 0 steps",
                read.spans["every"],
                help="for example `every = 4 steps`",
            )
        if "offset" in read.values and every is None and "every" not in read.spans:
            self.found.add(
                "E211",
                f"path `{name}` has an `offset` and no `every`",
                read.spans["offset"],
                help="for example `every = 4 steps`",
            )
        view = self._view(item.view)
        if view is None:
            self.broken = True
        elif before is item and word is not None:
            self.paths.append(
                r.PathRule(
                    name=name,
                    view=view,
                    random=word.random,
                    batch=word.batch,
                    size=word.size,
                    every=word.every,
                    offset=word.offset,
                    compute=word.compute,
                    span=item.span,
                )
            )
            if word.compute == "kept" and not isinstance(view, Masked):
                self.found.add(
                    "E239",
                    "only a `masked` path has filters to skip",
                    read.spans["compute"],
                    help="remove `compute = kept`",
                )
        else:
            self.broken = True

    def _teacher(self, item: ast.PathNode, is_new: bool) -> None:
        word = read_teacher(item, self.reader)
        if word is None or not is_new:
            self.broken = True
        else:
            self.teachers.append(r.TeacherRule(name=item.name.name, word=word, span=item.span))

    def _view(self, node: ast.Name | ast.Call) -> AnyView | None:
        """The view of a path; None if it is wrong."""
        name = node.name if isinstance(node, ast.Call) else node
        views, word = words_at("a view"), name.name
        if word in views and isinstance(node, ast.Call) and not node.arguments:
            return cast(AnyView, views[word]())  # `masked()` is `masked`
        if word in views or word in self.reader.uses.words or self.reader.uses.broken:
            try:
                return self.reader.word(node, AnyView)
            except Broken:
                return None
        self.found.add(
            "E210",
            f"`{word}` is not a view of the weights",
            name.span,
            help=did_you_mean(word, views)
            or self.reader.elsewhere(word)
            or "a path is `masked` (w * m), `full` (w), `complement` or `soft_threshold`; "
            "a teacher is `network(...)` or `ema(...)`",
        )
        return None

    def _declared(self, name: str, span: Span, what: str = "path") -> bool:
        if name in self.names:
            return True
        help = did_you_mean(name, self.names)
        if help is None and self.names:
            help = f"`mix` declares {listed(f'`{n}`' for n in self.names)}"
        self.found.add("E216", f"no {what} is named `{name}`", span, help=help)
        return False

    def _runs(self, name: str, span: Span, what: str = "path") -> bool:
        """Whether it is a path that learns; E216, or E251 for a teacher."""
        if not self._declared(name, span, what):
            return False
        if not is_teacher(self.names[name]):
            return True
        self.found.add(
            "E251",
            f"`{name}` is a teacher, not a path of the model",
            span,
            others=(Label(self.names[name].span, "declared here"),),
            help="a teacher is named as the `teacher` of `kl`, `mse` or `cosine` alone",
        )
        return False

    # -- updates ------------------------------------------------------------------------------

    def update(self, item: ast.UpdateNode) -> r.UpdateRule | None:
        good = True
        first: dict[str, ast.Name] = {}
        for part in item.parts:
            if part.name not in PARTS:
                self.found.add(
                    "E217",
                    f"`{part.name}` is not a part of the weights",
                    part.span,
                    help=did_you_mean(part.name, PARTS)
                    or "the parts are `kept`, `reserve`, `pruned` and `rest`",
                )
                good = False
            elif first.setdefault(part.name, part) is not part:
                self.found.add(
                    "E208",
                    f"`{part.name}` is given twice",
                    part.span,
                    others=(Label(first[part.name].span, "given here first"),),
                )
                good = False
        shares: list[tuple[str, float]] = []
        seen: dict[str, ast.Share] = {}
        for share in item.shares:
            name = share.path.name
            good &= self._runs(name, share.path.span)
            if seen.setdefault(name, share) is not share:
                self.found.add(
                    "E208",
                    f"`{name}` is given twice",
                    share.path.span,
                    others=(Label(seen[name].path.span, "given here first"),),
                    help="add the two shares up",
                )
                good = False
            scalar = self._scalar(share.scalar, "a share")
            good &= scalar is not None
            shares.append((name, scalar or 0.0))
        window = self._window(item)
        if not good or window is None:
            return None
        parts = tuple(part.name for part in item.parts)
        return r.UpdateRule(
            parts=parts, shares=tuple(shares), start=window[0], stop=window[1], span=item.span
        )

    def learns_what_it_leaves_out(self, updates: list[r.UpdateRule]) -> None:
        """E239 for pruned weights that would learn from a path that does not compute them."""
        smaller = {path.name: path for path in self.paths if path.compute == "kept"}
        for update in updates:
            parts = [part for part in ("pruned", "reserve") if part in update.parts]
            for name, share in update.shares:
                if parts and share and name in smaller:
                    self.found.add(
                        "E239",
                        f"the {parts[0]} weights would learn from `{name}`, which skips them",
                        update.span,
                        others=(Label(smaller[name].span, "`compute = kept`"),),
                    )

    def overlaps(self, updates: list[r.UpdateRule]) -> None:
        """E220 for two updates of one part that share a moment in every run."""
        for index, later in enumerate(updates):
            for earlier in updates[:index]:
                both = [part for part in earlier.parts if part in later.parts]
                if both and self._certainly_meet(earlier, later):
                    self.found.add(
                        "E220",
                        f"two rules update the {both[0]} weights at one moment",
                        later.span,
                        others=(Label(earlier.span, "the other rule"),),
                        help="give each its time with `from` and `until`, or write one sum",
                    )

    def _certainly_meet(self, a: r.UpdateRule, b: r.UpdateRule) -> bool:
        return self._before(a.start, b.stop) and self._before(b.start, a.stop)

    def _before(self, start: Time | None, stop: Time | None) -> bool:
        if stop is None:
            return True
        return self.reader.compare(start or Time(0, "epochs"), stop) == -1

    # -- losses -------------------------------------------------------------------------------

    def loss(self, item: ast.LossNode) -> r.LossRule | None:
        coefficient, window = self._scalar(item.scalar, "the weight of a loss"), self._window(item)
        try:
            term = self.reader.word(item.term, Loss)
        except Broken:
            return None
        fields = type(term).model_fields
        values = {
            a.name.name if a.name else [*fields][place]: a.value.span
            for place, a in enumerate(item.term.arguments)
        }
        good = True
        for key, value in values.items():
            if "path" in fields[key].metadata:
                name = getattr(term, key)
                good &= (self._runs if name in term.learners else self._declared)(name, value)
        if not term.paths:
            self.found.add(
                "E243", f"`{term.called}` names no path, so nothing learns from it", item.term.span
            )
            good = False
        if isinstance(term, (KL, Taught)) and len(set(term.paths)) < len(term.paths) and good:
            self.found.add("E216", f"`{term.teacher}` cannot be its own teacher", values["teacher"])
            good = False
        if coefficient is None or window is None or not good:
            return None
        return r.LossRule(
            coefficient=coefficient, term=term, start=window[0], stop=window[1], span=item.span
        )

    # -- private and deploy ----------------------------------------------------------------------

    def private(self, item: ast.PrivateNode, selectors: Selectors) -> r.PrivateRule | None:
        selector = selectors.closed(item.selector)
        word = self.reader.block(PrivateBlock, "private", item.settings, item.span).word
        if word is None:
            return None
        return r.PrivateRule(selector=selector, init=word.init, span=item.span)

    def deploy(self, items: list[ast.Deploy], here: Span) -> str:
        if not items and len(self.names) == 1:
            return next(iter(self.names))
        if not items:
            help = f"for example `deploy {next(iter(self.names))}`" if self.names else None
            self.found.add("E218", "`mix` does not say which path is deployed", here, help=help)
            return ""
        for item in items[1:]:
            self.found.add(
                "E208",
                "`deploy` is given twice",
                item.span,
                others=(Label(items[0].span, "given here first"),),
            )
        self._runs(items[0].path.name, items[0].path.span)
        return items[0].path.name

    # -- values ------------------------------------------------------------------------------------

    def _scalar(self, node: ast.Value | None, what: str) -> float | None:
        if node is None:
            return 1.0
        try:
            value = self._plain(node)
        except Broken:
            return None
        if isinstance(value, bool) or not isinstance(value, (int, float)):
            meant = written(value.fraction) if isinstance(value, Percent) else None
            self.found.add(
                "E206",
                f"{what} is a number, not {kind_of(value)}",
                node.span,
                help=meant and f"did you mean `{meant}`?",
            )
            return None
        if what != "a share" and value < 0:
            self.found.add("E205", f"{what} is {written(value)}, it must be at least 0", node.span)
            return None
        return float(value)

    def _window(
        self, item: ast.UpdateNode | ast.LossNode
    ) -> tuple[Time | None, Time | None] | None:
        try:
            start, stop = self._moment(item.start), self._moment(item.stop)
        except Broken:
            return None
        if item.stop is not None and stop is not None:
            order = self.reader.compare(start or Time(0, "epochs"), stop)
            if order is not None and order >= 0:
                self.found.add(
                    "E227",
                    "this window ends before it starts",
                    item.stop.span,
                    help="`from` is before `until`",
                )
                return None
        return start, stop

    def _moment(self, node: ast.Value | None) -> Time | None:
        if node is None:
            return None
        value = self._plain(node)
        if not isinstance(value, Time):
            help = "for example `from 10ep`"
            if isinstance(value, Percent):
                help = f"a share of the run is written `{written(value)} run`"
            self.found.add(
                "E206", f"a window is given by times, not {kind_of(value)}", node.span, help=help
            )
            raise Broken
        return value

    def _plain(self, node: ast.Value) -> object:
        if isinstance(node, ast.Literal) and node.value is BROKEN:
            raise Broken
        if isinstance(node, ast.Name):
            self.found.add(
                "E209",
                f"`{node.name}` is not defined",
                node.span,
                help=did_you_mean(node.name, self.reader.lets),
            )
            raise Broken
        return self.reader.value(node)


def named_by(losses: Iterable[r.LossRule]) -> set[str]:
    """The paths that losses need."""
    return {path for loss in losses for path in loss.term.paths}


def _warn(
    file: ast.File,
    checker: _Mix,
    updates: list[r.UpdateRule],
    losses: list[r.LossRule],
    here: Span,
    found: Diagnostics,
) -> None:
    """W203 and W205: legal, and probably a mistake."""
    paths = checker.paths
    prunes = any(isinstance(item, ast.PruneNode) for item in file.items)
    named = {part for update in updates for part in update.parts}
    untrained = {"kept", "pruned"} - named if prunes else {"rest"} - named
    if not prunes and "kept" in named:  # without a rule, kept and rest are the same
        untrained = set()
    for part in sorted(untrained):
        whose = f"{part} weights" if prunes else "weights"
        found.add(
            "W203",
            f"no `update` trains the {whose}",
            here,
            help=f"for example `update {part} by {paths[0].name}`",
        )
    used = named_by(losses)
    idle = [(path.name, path.span) for path in paths]
    idle += [(teacher.name, teacher.span) for teacher in checker.teachers]
    for name, span in idle:
        if name not in used:
            found.add("W205", f"path `{name}` has no loss, so it never runs in training", span)
