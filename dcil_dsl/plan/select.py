"""Which layers a selector means, and which rule owns each layer.

In:   selectors and rules of the recipe, the layers of a traced model.
Out:  the selected layers in execution order; for each prunable weight the rule that claims it.
Not:  how much each layer loses (allocate.py). No torch: an editor selects in a table of layers.

A set of layers is a number, bit i for layer i. Layers are grouped by what a selector reads, their
class or attribute, and each selector is evaluated once per group; all patterns of a recipe walk
along the names together. So thousands of rules on thousands of layers cost about as much as
reading both.
"""

from __future__ import annotations

import operator
from bisect import bisect_right
from collections import Counter
from collections.abc import Callable, Hashable, Iterable, Iterator, Sequence
from functools import cached_property
from itertools import accumulate
from typing import TYPE_CHECKING, Any

from dcil_dsl.diagnostics import Diagnostics, Label, Span
from dcil_dsl.diagnostics.counting import count, none_of
from dcil_dsl.diagnostics.diagnostic import MAX_ERRORS
from dcil_dsl.diagnostics.suggest import nearest
from dcil_dsl.lang import ast
from dcil_dsl.lang import recipe as r
from dcil_dsl.lang.automaton import LinePattern, glob_lines, match_all, regex_lines
from dcil_dsl.lang.selectors import (
    SECONDS,
    Glob,
    Regex,
    TooSlow,
    patterns_of,
    strip_wrapping,
)
from dcil_dsl.words.units import Percent

if TYPE_CHECKING:
    from dcil_dsl.model.layers import Layer

MOST_NAMED = 5  # types listed in a help line
FEW_NAMES = 64  # are tried one by one
MOST_SHOWN = 5  # rules that a warning points to
COMPARE: dict[str, Callable[[Any, Any], Any]] = {
    "==": operator.eq,
    "!=": operator.ne,
    "<=": operator.le,
    ">=": operator.ge,
    "<": operator.lt,
    ">": operator.gt,
}
PLAIN = (bool, int, float, str, type(None))


class Selection:
    """Selects among the layers of one model; reports every selector that matches nothing."""

    def __init__(self, layers: tuple[Layer, ...], model_name: str, report: Diagnostics):
        self.layers, self.model_name, self.report = layers, model_name, report
        self.place = {layer.path: place for place, layer in enumerate(layers)}
        self.inside: dict[str, int] = {}  # by name: the layer, or those in the container
        for place, layer in enumerate(layers):
            for name in _and_containers(layer.path):
                self.inside[name] = self.inside.get(name, 0) | 1 << place
        self.names = _Names(self.inside)
        self.of_run: dict[tuple[int, int], int] = {}  # by where neighbours start and end
        self.of_name: dict[tuple[str, str], int] = {}  # by kind and text of a selector
        self.of_value: dict[str, list[tuple[object, int]]] = {}  # by attribute

    def select(self, selector: ast.Selector) -> tuple[Layer, ...]:
        """The selected layers in execution order; E301 for every part that matches nothing."""
        return self.listed(self.mask(selector))

    def listed(self, mask: int) -> tuple[Layer, ...]:
        """The layers of a set, in execution order."""
        return tuple(self.layers[place] for place in _places(mask))

    def mask(self, selector: ast.Selector) -> int:
        """The selected layers as a set."""
        match selector:
            case ast.ByType(type=name):
                return self._or_nothing(
                    self.of_type.get(name, 0),
                    f"no layer of type `{name}` in {self.model_name}",
                    selector.span,
                    lambda: self._near_type(name),
                )
            case ast.ByGlob(pattern=pattern):
                return self._or_nothing(
                    self._matching(strip_wrapping(pattern)),
                    f'no layer matches `"{pattern}"`',
                    selector.span,
                    lambda: self._near_path(strip_wrapping(pattern)),
                )
            case ast.ByRegex(pattern=pattern):
                return self._or_nothing(
                    self._matching_regex(pattern, selector.span),
                    f'no layer matches `re"{pattern}"`',
                    selector.span,
                    lambda: None,
                )
            case ast.First(count=wanted, of=of) | ast.Last(count=wanted, of=of):
                among = self.mask(of)
                size = among.bit_count()
                if among and wanted > size:
                    self.report.add(
                        "E301",
                        f"`{selector.span.text}` asks for {count(wanted, 'layer')}, there "
                        f"{'is' if size == 1 else 'are'} {size}",
                        selector.span,
                    )
                if isinstance(selector, ast.First):
                    return _lowest(among, wanted)
                return among ^ _lowest(among, max(size - wanted, 0))
            case ast.Inside():
                return self._inside(selector)
            case ast.Having(of=of, conditions=conditions):
                return self._having(self.mask(of), conditions)
            case ast.Union_(parts=parts):
                chosen = 0
                for part in parts:
                    chosen |= self.mask(part)
                return chosen
            case ast.Except(of=of, but=but):
                return self.mask(of) & ~self.mask(but)
        raise AssertionError(f"no {type(selector).__name__} is left in a checked selector")

    def _or_nothing(
        self, chosen: int, message: str, span: Span, near: Callable[[], str | None]
    ) -> int:
        if not chosen:
            label = f"{none_of(len(self.layers), 'module')} of {self.model_name}"
            few = len(self.report.errors) < MAX_ERRORS  # the others are only counted
            self.report.add("E301", message, span, label=label, help=near() if few else None)
        return chosen

    def prepare(self, selectors: Iterable[ast.Selector]) -> None:
        """Match the patterns of many selectors at once; select and mask then look them up."""
        self._match(dict.fromkeys(key for own in selectors for key in patterns_of(own)))

    # -- types and names -------------------------------------------------------------------

    @cached_property
    def of_type(self) -> dict[str, int]:
        """The layers of each class and of those derived from it.

        An attention is both of its projections: the one for queries, keys and values is its own,
        the other is a linear layer inside it.
        """
        found: dict[str, int] = {}
        for place, layer in enumerate(self.layers):
            own = 1 << place
            if "MultiheadAttention" in layer.types:
                output = self.place.get(f"{layer.path}.out_proj")
                own |= 0 if output is None else 1 << output
            for name in layer.types:
                found[name] = found.get(name, 0) | own
        return found

    def _matching(self, pattern: str) -> int:
        """The layers that a glob matches, by their own names or as part of a container."""
        if "*" not in pattern and "?" not in pattern:
            return self.inside.get(pattern, 0)
        self._match([("glob", pattern)])
        return self.of_name["glob", pattern]

    def _match(self, patterns: Iterable[tuple[str, str]]) -> None:
        """Match globs and regular expressions in one walk; what it cannot match it leaves out."""
        lines: dict[str, dict[str, LinePattern]] = {"glob": {}, "re": {}}
        for kind, pattern in patterns:
            if (kind, pattern) not in self.of_name:
                own = regex_lines(pattern) if kind == "re" else glob_lines(pattern)
                if own is not None:
                    lines[kind][pattern] = own
        paths = [layer.path for layer in self.layers] if any(lines.values()) else []
        for kind, matched in lines.items():
            for pattern, chosen in match_all(matched, paths):
                self.of_name[kind, pattern] = chosen

    def _matching_regex(self, pattern: str, span: Span) -> int:
        """The same for a regular expression; E323 and the end of the stage if it takes too long."""
        self._match([("re", pattern)])
        if ("re", pattern) not in self.of_name:
            regex, chosen = Regex(pattern), 0
            try:
                near = self.names.containing(regex.literals)
                runs = regex.runs(self.names.text) if len(near) > FEW_NAMES else None
                if runs is None or self.names.have_ends:
                    for name in near:
                        if regex.matches(name):
                            chosen |= self.inside[name]
                else:
                    for run in runs:
                        chosen |= self._of_run(run)
            except TooSlow:
                self.report.add(
                    "E323",
                    f"this regular expression takes more than {SECONDS:g} s on the names of "
                    f"{self.model_name}",
                    span,
                    help="a repeat inside a repeat, as in `(a+)+`, tries every way to split a name",
                )
                self.report.stop()  # the next one may take as long
            self.of_name["re", pattern] = chosen
        return self.of_name["re", pattern]

    def _of_run(self, run: tuple[int, int]) -> int:
        """The layers of a run of names: the places of its start and end in their text."""
        if run not in self.of_run:
            self.of_run[run] = 0
            for name in self.names.text[slice(*run)].removesuffix("\n").split("\n"):
                self.of_run[run] |= self.inside[name]
        return self.of_run[run]

    def _inside(self, selector: ast.Inside) -> int:
        among, scope = self.mask(selector.of), selector.scope
        scoped = self._matching(strip_wrapping(scope))
        if not scoped:
            self.report.add(
                "E301",
                f'no part of {self.model_name} matches `"{scope}"`',
                selector.scope_span,
                help=self._near_path(strip_wrapping(scope)),
            )
        if among and scoped and not among & scoped:
            message = f'{none_of(among.bit_count(), "layer")} lies in `"{scope}"`'
            self.report.add("E301", message, selector.span)
        return among & scoped

    # -- attributes ------------------------------------------------------------------------

    def _having(self, among: int, conditions: tuple[ast.Condition, ...]) -> int:
        chosen = among
        for condition in conditions:
            chosen = self._holding(chosen, condition)
        for condition in conditions:
            self._check_attribute(among, condition.name)
        if among and not chosen and not self.report.errors:
            text = " and ".join(condition.span.text for condition in conditions)
            self.report.add(
                "E301",
                f"{none_of(among.bit_count(), 'layer')} has `{text}`",
                conditions[0].span.to(conditions[-1].span),
            )
        return chosen

    def _values(self, name: str) -> list[tuple[object, int]]:
        """The values of an attribute, each with the layers that have it."""
        if name not in self.of_value:
            found: dict[Hashable, tuple[object, int]] = {}
            for place, layer in enumerate(self.layers):
                if hasattr(layer.module, name):
                    value = getattr(layer.module, name)
                    key = _key(value)
                    found[key] = value, found.get(key, (value, 0))[1] | 1 << place
            self.of_value[name] = list(found.values())
        return self.of_value[name]

    def _holding(self, among: int, condition: ast.Condition) -> int:
        """Those for which a condition holds; E307 for a value that does not compare."""
        chosen = 0
        for value, having in self._values(condition.name.name):
            if among & having and self._holds(value, among & having, condition):
                chosen |= among & having
        return chosen

    def _holds(self, value: object, having: int, condition: ast.Condition) -> bool:
        assert isinstance(condition.value, ast.Literal)
        wanted = condition.value.value
        wanted = wanted.fraction if isinstance(wanted, Percent) else wanted
        actual = value if isinstance(value, tuple) else (value,)
        shown = "a tensor"
        if wanted is None or not any(hasattr(size, "requires_grad") for size in actual):
            compare = COMPARE[condition.compare]
            try:
                return all(compare(size, wanted) for size in actual)
            except TypeError:
                shown = repr(actual[0]) if len(repr(actual[0])) < 40 else type(actual[0]).__name__
        first = self.layers[next(_places(having))].path
        more = having.bit_count() - 1
        also = f" and of {count(more, 'other layer')}" if more else ""
        self.report.add(
            "E307",
            f"`{condition.name.name}` of `{first}`{also} is {shown}, which does not compare with "
            f"{wanted!r}",
            condition.span,
        )
        return False

    def _check_attribute(self, among: int, name: ast.Name) -> None:
        """E307 if no layer of a set has an attribute of this name."""
        if among and not any(among & having for _, having in self._values(name.name)):
            layers = self.listed(among)
            known = {key for layer in layers for key in vars(layer.module) if key[0] != "_"}
            near = nearest(name.name, sorted(known))
            self.report.add(
                "E307",
                f"{none_of(len(layers), 'layer')} has an attribute `{name.name}`",
                name.span,
                help=f"did you mean `{near}`?" if near else None,
            )

    # -- suggestions -----------------------------------------------------------------------

    def _near_type(self, name: str) -> str:
        """The nearest real type; else the types with parameters, the prunable ones first."""
        near = nearest(name, sorted(self.of_type))
        if near:
            own = count(self.of_type[near].bit_count(), "layer")
            return f"did you mean `{near}`, of which the model has {own}?"
        numbers = Counter(layer.type for layer in self.layers if layer.module._parameters)
        prunable = {layer.type for layer in self.layers if layer.prunable}
        having = sorted(numbers.items(), key=lambda entry: (entry[0] not in prunable, -entry[1]))
        shown = ", ".join(f"`{one}` ({number})" for one, number in having[:MOST_NAMED])
        more = len(having) - MOST_NAMED
        return f"the model has {shown}" + (f" and {count(more, 'more type')}" if more > 0 else "")

    def _near_path(self, pattern: str) -> str | None:
        """The nearest real name, with the parts of the pattern that already match it."""
        names = {*self.names.sorted, *(_mended(pattern, name) for name in self.names.sorted)}
        near = nearest(pattern, sorted(names))
        if near is None:
            return None
        number = self._matching(near).bit_count()
        return f'`"{near}"` matches {count(number, "layer")}'


class _Names:
    """Names, to be found by a piece of them."""

    def __init__(self, names: Iterable[str]):
        self.sorted = sorted(names)
        self.text = "".join(f"{name}\n" for name in self.sorted)
        self.have_ends = any("\n" in name for name in self.sorted)
        self.known: dict[str, list[str]] = {}
        self.starts = [0, *accumulate(len(name) + 1 for name in self.sorted)]

    def containing(self, pieces: Sequence[str]) -> Sequence[str]:
        """Those that contain the rarest of some pieces: few, and all that contain every piece."""
        return min(map(self._containing, pieces), key=len, default=self.sorted)

    def _containing(self, piece: str) -> Sequence[str]:
        """Those that contain a piece, by one search through all of them."""
        if piece in self.known:
            return self.known[piece]
        found = self.known[piece] = []
        at = self.text.find(piece)
        while at >= 0:
            place = bisect_right(self.starts, at) - 1
            found.append(self.sorted[place])
            at = self.text.find(piece, self.starts[place + 1])
        return found


def _key(value: object) -> Hashable:
    """What equal values of an attribute share; other objects are equal to themselves alone."""
    if isinstance(value, tuple):
        return tuple(_key(one) for one in value)
    return (type(value), value) if isinstance(value, PLAIN) else id(value)


def _lowest(mask: int, number: int) -> int:
    """The first `number` members of a set."""
    if number >= mask.bit_count():
        return mask
    low, high = 0, mask.bit_length()  # the shortest prefix with that number of members
    while low < high:
        middle = (low + high) // 2
        if (mask & ((1 << middle) - 1)).bit_count() < number:
            low = middle + 1
        else:
            high = middle
    return mask & ((1 << low) - 1)


def _places(mask: int) -> Iterator[int]:
    """The members of a set, in order."""
    for start, byte in enumerate(mask.to_bytes((mask.bit_length() + 7) // 8, "little")):
        while byte:
            yield 8 * start + (byte & -byte).bit_length() - 1
            byte &= byte - 1


def _mended(pattern: str, name: str) -> str:
    """ "layer?.*.convv1" and "layer1.0.conv1" -> "layer?.*.conv1"."""
    wanted, real = pattern.split("."), name.split(".")
    if len(wanted) != len(real):
        return name
    pairs = zip(wanted, real, strict=True)
    return ".".join(want if Glob(want).matches(have) else have for want, have in pairs)


def _and_containers(path: str) -> Iterator[str]:
    """ "a.b.c" -> "a", "a.b", "a.b.c"."""
    names = path.split(".")
    for end in range(len(names)):
        yield ".".join(names[: end + 1])


# -- rules -----------------------------------------------------------------------------------------


def claim_layers(
    rules: tuple[r.PruneRule | r.KeepRule, ...], selection: Selection, report: Diagnostics
) -> dict[str, int]:
    """The index of the claiming rule by the name of the weight.

    The last rule that matches a layer claims it. Layers tied to one weight are claimed together,
    by the last rule that matches any of them.

    E302: a `prune` rule none of whose layers can be pruned. W303: a rule whose layers are all
    claimed by later rules of the same file. E402: a layer to be pruned whose weight is computed
    from other parameters (weight_norm and the like) or is changed by its own forward.
    """
    layers = selection.layers
    prunable = _set_of(layers, lambda layer: bool(layer.prunable))
    hidden = _set_of(layers, lambda layer: layer.no_mask is not None)
    selection.prepare(rule.selector for rule in rules)
    matched = [selection.mask(rule.selector) for rule in rules]
    for rule, mask in zip(rules, matched, strict=True):
        if isinstance(rule, r.PruneRule) and mask and not mask & (prunable | hidden):
            kinds = ", ".join(sorted({layer.type for layer in selection.listed(mask)}))
            report.add(
                "E302",
                f"nothing here can be pruned: {count(mask.bit_count(), 'layer')} of type {kinds}",
                rule.selector.span,
                label="modules with a weight of two or more dimensions can be pruned; norms cannot",
            )
    owner: dict[str, int] = {}
    free = (1 << len(layers)) - 1
    for index in reversed(range(len(rules))):
        rule = rules[index]
        for layer in selection.listed(matched[index] & free):
            for name in layer.weights:
                owner.setdefault(name, index)
            if layer.no_mask is not None and isinstance(rule, r.PruneRule):
                report.add(
                    "E402",
                    f"`{layer.path}` ({layer.type}) {layer.no_mask}",
                    rule.selector.span,
                    help=f'exclude it with `except "{layer.path}"` in this rule or '
                    f'`keep "{layer.path}"` below it',
                )
        free &= ~matched[index]
    _warn_of_overridden(rules, [mask & prunable for mask in matched], owner, layers, report)
    return owner


def _set_of(layers: tuple[Layer, ...], holds: Callable[[Layer], bool]) -> int:
    bits = "".join("1" if holds(layer) else "0" for layer in reversed(layers))
    return int(bits or "0", 2)


def _warn_of_overridden(
    rules: tuple[r.PruneRule | r.KeepRule, ...],
    matched: list[int],
    owner: dict[str, int],
    layers: tuple[Layer, ...],
    report: Diagnostics,
) -> None:
    """W303."""
    replaced = r.replaced_rules(rules)
    owned: dict[int, int] = {}  # the layers of which each rule owns a weight
    for place, layer in enumerate(layers):
        for name in layer.weights:
            if name in owner:
                owned[owner[name]] = owned.get(owner[name], 0) | 1 << place
    for index, (rule, mask) in enumerate(zip(rules, matched, strict=True)):
        if not mask or mask & owned.get(index, 0):
            continue
        if index in replaced:
            continue  # reported without a model
        owners = sorted(later for later, own in owned.items() if own & mask)
        # A recipe may well replace a rule that it inherits by `extends`.
        if all(rules[i].span.source is not rule.span.source for i in owners):
            continue
        all_of_it = f"all of its {mask.bit_count()} layers" if mask & (mask - 1) else "its layer"
        report.add(
            "W303",
            "this rule has no effect",
            rule.span,
            label=f"later rules match {all_of_it}",
            others=tuple(
                Label(rules[i].span, "the last rule that matches a layer wins")
                for i in owners[:MOST_SHOWN]
            ),
            help="move the wider rule above the narrower one",
        )
