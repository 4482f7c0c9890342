"""Random syntax trees, the same for the same seed, of everything that the grammar can say.

In:   a seed.
Out:  an ast.File in canonical order; many mean nothing (unknown words, mixed units).
Not:  no text: printing it is what is tested.
"""

from __future__ import annotations

from random import Random

from dcil_dsl.diagnostics.source import Source, Span
from dcil_dsl.lang import ast
from dcil_dsl.words.units import Percent, Ratio, Time

NOWHERE = Span(Source(""), 0, 0)
NAMES = ("a", "warm", "target", "run_2", "_x", "percent", "languages", "l")
TEXTS = ("", "a b", "layer?.*.conv2", "# no comment", "{ }", "1ep", "x" * 60)
NUMBERS = {"0": 0, "7": 7, "0.5": 0.5, "1e-4": 1e-4, "2.50": 2.5, "1e3": 1e3}
TIMES = {
    "5ep": Time(5, "epochs"),
    "0.5 epochs": Time(0.5, "epochs"),
    "1 step": Time(1, "steps"),
    "16steps": Time(16, "steps"),
    "25%  run": Time(0.25, "run"),
}


def random_file(seed: int) -> ast.File:
    """A whole file with up to a dozen items."""
    return Tree(Random(seed)).file()


def node(kind, /, **fields):
    return kind(span=NOWHERE, **fields)


class Tree:
    """One method for each rule of the grammar; `depth` ends the recursion."""

    def __init__(self, random: Random):
        self.random = random

    def some(self, make, at_least=0, at_most=3):
        return tuple(make() for _ in range(self.random.randint(at_least, at_most)))

    def maybe(self, make):
        return make() if self.random.random() < 0.5 else None

    def name(self):
        return node(ast.Name, name=self.random.choice(NAMES))

    def literal(self, values):
        text = self.random.choice(list(values))
        return node(ast.Literal, value=values[text], text=text)

    def number(self):
        return self.literal(NUMBERS)

    def moment(self):
        return self.random.choice([self.name, lambda: self.literal(TIMES)])()

    def scalar(self):
        below = node(ast.Literal, value=-0.5, text="-0.5")
        return self.random.choice([self.name, self.number, self.number, lambda: below])()

    def atom(self):
        string = self.random.choice(TEXTS)
        words = {"true": True, "false": False, "none": None, f'"{string}"': string}
        amounts = {"90%": Percent(0.9), "25%": Percent(0.25), "2:4": Ratio(2, 4)}
        return self.literal(self.random.choice([NUMBERS, TIMES, words, amounts]))

    def value(self, depth=0):
        kinds = [self.atom, self.name, self.atom]
        if depth < 3:
            kinds += [self.call, self.list, self.negative, self.sum, self.range]
        make = self.random.choice(kinds)
        return make() if make in kinds[:3] else make(depth + 1)

    def call(self, depth):
        return node(ast.Call, name=self.name(), arguments=self.some(lambda: self.argument(depth)))

    def argument(self, depth):
        return node(ast.Argument, name=self.maybe(self.name), value=self.value(depth))

    def list(self, depth):
        return node(ast.List, items=self.some(lambda: self.value(depth), at_most=6))

    def negative(self, depth):
        return node(ast.Negative, value=self.value(depth))

    def sum(self, depth):
        operator, sides = self.random.choice("+-*/"), (self.value(depth), self.value(depth))
        return node(ast.Arithmetic, operator=operator, left=sides[0], right=sides[1])

    def range(self, depth):
        return node(ast.RangeOf, start=self.value(depth), stop=self.value(depth))

    def condition(self):
        compare = self.random.choice(["==", "!=", "<=", ">=", "<", ">"])
        return node(ast.Condition, name=self.name(), compare=compare, value=self.value(2))

    def set(self):
        text, name = self.random.choice(TEXTS), self.random.choice(NAMES)
        kinds = [
            (ast.ByType, {"type": "Conv2d"}),
            (ast.ByGlob, {"pattern": text}),
            (ast.ByRegex, {"pattern": text}),
            (ast.ByName, {"name": name}),
        ]
        kind, fields = self.random.choice(kinds)
        return node(kind, **fields)

    def picked(self):
        kind = self.random.choice([None, ast.First, ast.Last])
        if kind is None:
            return self.set()
        return node(kind, count=self.random.randint(1, 3), of=self.set())

    def restricted(self):
        picked = self.picked()
        while self.random.random() < 0.4:
            scope = self.random.choice(TEXTS)
            conditions = self.some(self.condition, 1, 2)
            picked = self.random.choice(
                [
                    node(ast.Inside, of=picked, scope=scope, scope_span=NOWHERE),
                    node(ast.Having, of=picked, conditions=conditions),
                ]
            )
        return picked

    def union(self):
        parts = self.some(self.restricted, 1, 4)
        return parts[0] if len(parts) == 1 else node(ast.Union_, parts=parts)

    def selector(self):
        of, but = self.union(), self.maybe(self.union)
        return of if but is None else node(ast.Except, of=of, but=but)

    def settings(self):
        return self.some(lambda: node(ast.Setting, name=self.name(), value=self.value()))

    def block(self, kind, name, quoted=False):
        return node(ast.BlockNode, kind=kind, name=name, quoted=quoted, settings=self.settings())

    def rule(self):
        if self.random.random() < 0.3:
            return node(ast.KeepNode, selector=self.selector())
        return node(
            ast.PruneNode,
            selector=self.selector(),
            target=self.value(1),
            settings=self.settings(),
            head_span=NOWHERE,
        )

    def window(self):
        return {"start": self.maybe(self.moment), "stop": self.maybe(self.moment)}

    def share(self):
        return node(ast.Share, scalar=self.maybe(self.scalar), path=self.name())

    def mix_item(self):
        view = self.random.choice([self.name, lambda: self.call(2)])()
        return self.random.choice(
            [
                lambda: node(ast.PathNode, name=self.name(), view=view, settings=self.settings()),
                lambda: node(
                    ast.UpdateNode,
                    parts=self.some(self.name, 1),
                    shares=self.some(self.share, 1),
                    **self.window(),
                ),
                lambda: node(ast.PrivateNode, selector=self.selector(), settings=self.settings()),
                lambda: node(
                    ast.LossNode, scalar=self.maybe(self.scalar), term=self.call(2), **self.window()
                ),
                lambda: node(ast.Deploy, path=self.name()),
            ]
        )()

    def file(self):
        name = self.random.choice(NAMES)
        model = self.random.choice([(name, False), ("package.module:build", True)])
        items = [
            *self.some(lambda: self.block("recipe", name), at_most=1),
            *self.some(lambda: node(ast.Let, name=self.name(), value=self.value())),
            *self.some(lambda: self.block("model", *model), at_most=1),
            *self.some(lambda: self.block("data", name), at_most=1),
            *self.some(lambda: node(ast.Layers, name=self.name(), selector=self.selector())),
            *self.some(lambda: self.block("pruning", None), at_most=1),
            *self.some(self.rule, at_most=4),
            *self.some(lambda: node(ast.Mix, items=self.some(self.mix_item, at_most=6)), at_most=1),
            *self.some(lambda: self.block("train", None), at_most=1),
            *self.some(lambda: node(ast.Expect, conditions=self.some(self.condition)), at_most=1),
        ]
        parent = node(ast.Literal, value="x.prune", text='"x.prune"')
        language = node(ast.Literal, value=1, text="1")
        return node(
            ast.File,
            source=NOWHERE.source,
            language=language,
            extends=self.maybe(lambda: parent),
            items=tuple(items),
        )
