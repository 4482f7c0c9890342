"""Selectors against a real model: which layers a recipe's words mean.

In:   a selector of the recipe (lang/ast.py) and the layers of a traced model.
Out:  the layers it selects, in execution order.
Not:  what is done to them; a selector that matches nothing is reported here, where it stands.
"""

from __future__ import annotations

import operator
from bisect import bisect_left
from collections import Counter

from torch import Tensor, nn

from dcil_dsl.diagnostics import Diagnostics, Span
from dcil_dsl.diagnostics.counting import count, none_of
from dcil_dsl.diagnostics.diagnostic import MAX_ERRORS
from dcil_dsl.diagnostics.suggest import nearest
from dcil_dsl.lang import ast
from dcil_dsl.lang.patterns import SECONDS, Glob, Regex, TooSlow
from dcil_dsl.model.layers import Layer
from dcil_dsl.words.units import Percent

MOST_NAMED = 5  # types in a help
COMPARE = {
    "==": operator.eq,
    "!=": operator.ne,
    "<=": operator.le,
    ">=": operator.ge,
    "<": operator.lt,
    ">": operator.gt,
}


class Selection:
    """Selects among the layers of one model, and reports what selects nothing."""

    def __init__(self, layers: tuple[Layer, ...], model_name: str, report: Diagnostics):
        self.layers, self.model_name, self.report = layers, model_name, report
        self.place = {layer.path: place for place, layer in enumerate(layers)}
        self.inside: dict[str, list[str]] = {}  # by name: the layer, or those in the container
        for layer in layers:
            for name in _and_containers(layer.path):
                self.inside.setdefault(name, []).append(layer.path)
        self.names = sorted(self.inside)
        self.known: dict[tuple[str, str], frozenset[str]] = {}  # by kind and text of a selector

    def select(self, selector: ast.Selector) -> tuple[Layer, ...]:
        """The selected layers in execution order; every part that matches nothing is E301."""
        chosen = self._set(selector)
        return tuple(self.layers[place] for place in sorted(self.place[path] for path in chosen))

    def _set(self, selector: ast.Selector) -> set[str]:
        match selector:
            case ast.ByType(type=type):
                return self._or_nothing(
                    self._of_type(type),
                    f"no layer of type `{type}` in {self.model_name}",
                    selector.span,
                    lambda: self._near_type(type),
                )
            case ast.ByGlob(pattern=pattern):
                return self._or_nothing(
                    self._matching(strip_wrapping(pattern)),
                    f'no layer matches `"{pattern}"`',
                    selector.span,
                    lambda: self._near_path(strip_wrapping(pattern)),
                )
            case ast.ByRegex(pattern=pattern):
                try:
                    chosen = self._matching_regex(pattern)
                except TooSlow:
                    self.report.add(
                        "E323",
                        f"this regular expression takes more than {SECONDS:g} s on the names of "
                        f"{self.model_name}",
                        selector.span,
                        help="repeats inside of repeats, as in `(a+)+`, try everything twice",
                    )
                    self.report.stop_if_wrong()  # the next one may take as long
                return self._or_nothing(
                    chosen,
                    f'no layer matches `re"{pattern}"`',
                    selector.span,
                    lambda: None,
                )
            case ast.First(count=asked, of=of) | ast.Last(count=asked, of=of):
                among = self.select(of)
                if among and asked > len(among):
                    self.report.add(
                        "E301",
                        f"`{selector.span.text}` asks for {count(asked, 'layer')}, there "
                        f"{'is' if len(among) == 1 else 'are'} {len(among)}",
                        selector.span,
                    )
                kept = among[:asked] if isinstance(selector, ast.First) else among[-asked:]
                return {layer.path for layer in kept}
            case ast.Inside(of=of, scope=scope):
                return self._inside(selector, of, scope)
            case ast.Having(of=of, conditions=conditions):
                among = self.select(of)
                chosen = {a.path for a in among if all(self._holds(a, c) for c in conditions)}
                self._check_attributes(among, conditions)
                if among and not chosen and not self.report.errors:
                    self.report.add(
                        "E301",
                        f"{none_of(len(among), 'layer')} has `{_conditions_text(conditions)}`",
                        conditions[0].span.to(conditions[-1].span),
                    )
                return chosen
            case ast.Union_(parts=parts):
                return set().union(*(self._set(part) for part in parts))
            case ast.Except(of=of, but=but):
                chosen = self._set(of)
                return chosen - self._set(but)
        raise AssertionError(f"link.py leaves no {type(selector).__name__} in a selector")

    def _of_type(self, type: str) -> set[str]:
        """Layers of the class. An attention is both of its projections: the one that makes queries,
        keys and values is its own, the other a linear layer inside it."""
        if ("type", type) in self.known:
            return set(self.known["type", type])
        chosen = {layer.path for layer in self.layers if type in layer.types}
        attentions = {
            layer.path
            for layer in self.layers
            if layer.path in chosen and isinstance(layer.module, nn.MultiheadAttention)
        }
        own = {f"{path}.out_proj" for path in attentions}
        chosen |= {path for path in own if path in self.place}
        self.known["type", type] = frozenset(chosen)
        return chosen

    def _or_nothing(self, chosen: set[str], message: str, span: Span, near) -> set[str]:
        if not chosen:
            label = f"{none_of(len(self.layers), 'module')} of {self.model_name}"
            few = len(self.report.errors) < MAX_ERRORS  # the rest is counted and not shown
            self.report.add("E301", message, span, label=label, help=near() if few else None)
        return chosen

    def _matching(self, pattern: str) -> set[str]:
        """Layers that a glob matches, by their own name or as part of a container that does."""
        if ("glob", pattern) not in self.known:
            glob = Glob(pattern)
            if glob.is_exact:
                found = self.inside.get(pattern, [])
            else:
                start, stop = bisect_left(self.names, glob.prefix), len(self.names)
                if glob.prefix:
                    after = glob.prefix[:-1] + chr(min(ord(glob.prefix[-1]) + 1, 0x10FFFF))
                    stop = bisect_left(self.names, after)
                matched = filter(glob.matches, self.names[start:stop])
                found = [path for name in matched for path in self.inside[name]]
            self.known["glob", pattern] = frozenset(found)
        return set(self.known["glob", pattern])

    def _matching_regex(self, pattern: str) -> set[str]:
        """The same for a regular expression; TooSlow."""
        if ("re", pattern) not in self.known:
            regex = Regex(pattern)
            matched = [name for name in self.names if regex.matches(name)]
            found = frozenset(path for name in matched for path in self.inside[name])
            self.known["re", pattern] = found
        return set(self.known["re", pattern])

    def _inside(self, selector, of, scope: str) -> set[str]:
        among = self.select(of)
        scoped = self._matching(strip_wrapping(scope))
        if not scoped:
            self.report.add(
                "E301",
                f'no part of {self.model_name} matches `"{scope}"`',
                selector.scope_span,
                help=self._near_path(strip_wrapping(scope)),
            )
        chosen = {layer.path for layer in among} & scoped
        if among and scoped and not chosen:
            message = f'{none_of(len(among), "layer")} lies in `"{scope}"`'
            self.report.add("E301", message, selector.span)
        return chosen

    def _holds(self, layer: Layer, condition: ast.Condition) -> bool:
        if not hasattr(layer.module, condition.name.name):
            return False
        actual = getattr(layer.module, condition.name.name)
        wanted = condition.value.value
        wanted = wanted.fraction if isinstance(wanted, Percent) else wanted
        actual = actual if isinstance(actual, tuple) else (actual,)
        if wanted is not None and any(isinstance(size, Tensor) for size in actual):
            return self._does_not_compare(layer, condition, "a tensor", wanted)
        compare = COMPARE[condition.compare]
        try:
            return all(compare(size, wanted) for size in actual)
        except TypeError:
            shown = repr(actual[0]) if len(repr(actual[0])) < 40 else type(actual[0]).__name__
            return self._does_not_compare(layer, condition, shown, wanted)

    def _does_not_compare(self, layer: Layer, condition, shown: str, wanted: object) -> bool:
        self.report.add(
            "E307",
            f"`{condition.name.name}` of `{layer.path}` is {shown}, "
            f"which does not compare with {wanted!r}",
            condition.span,
        )
        return False

    def _check_attributes(self, among: tuple[Layer, ...], conditions) -> None:
        for condition in conditions:
            name = condition.name.name
            if among and not any(hasattr(layer.module, name) for layer in among):
                known = {key for layer in among for key in vars(layer.module) if key[0] != "_"}
                near = nearest(name, sorted(known))
                self.report.add(
                    "E307",
                    f"{none_of(len(among), 'layer')} has an attribute `{name}`",
                    condition.name.span,
                    help=f"did you mean `{near}`?" if near else None,
                )

    def _near_type(self, type: str) -> str:
        """The nearest real type; else those of the model with parameters, the prunable first."""
        near = nearest(type, sorted({name for layer in self.layers for name in layer.types}))
        if near:
            own = count(len(self._of_type(near)), "layer")
            return f"did you mean `{near}`, of which the model has {own}?"
        numbers = Counter(layer.type for layer in self.layers if layer.module._parameters)
        prunable = {layer.type for layer in self.layers if layer.prunable}
        having = sorted(numbers.items(), key=lambda entry: (entry[0] not in prunable, -entry[1]))
        shown = ", ".join(f"`{name}` ({number})" for name, number in having[:MOST_NAMED])
        more = len(having) - MOST_NAMED
        return f"the model has {shown}" + (f" and {count(more, 'more type')}" if more > 0 else "")

    def _near_path(self, pattern: str) -> str | None:
        """The nearest real name, in which what the pattern matches already stays as it is."""
        names = {*self.names, *(_mended(pattern, name) for name in self.names)}
        near = nearest(pattern, sorted(names))
        if near is None:
            return None
        number = len(self._matching(near))
        return f'`"{near}"` matches {count(number, "layer")}'


def strip_wrapping(pattern: str) -> str:
    """Names as wrappers and state dicts show them: `module.`, `_orig_mod.`, `.weight`."""
    while pattern.startswith(("module.", "_orig_mod.")):
        pattern = pattern.split(".", 1)[1]
    return pattern.removesuffix(".weight")


def _mended(pattern: str, name: str) -> str:
    """ "layer?.*.convv1" and "layer1.0.conv1" -> "layer?.*.conv1"."""
    wanted, real = pattern.split("."), name.split(".")
    if len(wanted) != len(real):
        return name
    pairs = zip(wanted, real, strict=True)
    return ".".join(want if Glob(want).matches(have) else have for want, have in pairs)


def _and_containers(path: str):
    """ "a.b.c" -> "a", "a.b", "a.b.c"."""
    names = path.split(".")
    for end in range(len(names)):
        yield ".".join(names[: end + 1])


def _conditions_text(conditions) -> str:
    return " and ".join(condition.span.text for condition in conditions)
