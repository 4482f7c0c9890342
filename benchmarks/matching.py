"""How long 2,000 rules take to claim 2,000 layers, by the kind of their patterns.

    python benchmarks/matching.py [--rules 2000] [--layers 2000]

Processor seconds of `claim_layers`: matching, owners and warnings, without reading the recipe.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Callable

from environment import ROOT, describe_machine
from torch import nn

sys.path.insert(0, str(ROOT / "tests"))
from support.resolving import MIX, TRAIN

from dcil_dsl.diagnostics import Diagnostics, RecipeError
from dcil_dsl.lang import loads
from dcil_dsl.model.layers import Layer, Weight
from dcil_dsl.plan.select import Selection, claim_layers

# By the number of a rule: the block and the place in it, and a letter that no name has.
SHAPES: dict[str, Callable[[int, int, str], str]] = {
    "exact names": lambda n, m, _: f'"blocks.{n}.part.conv{m}"',
    "globs": lambda n, m, _: f'"blocks.{n}.*.conv{m}"',
    "classes": lambda n, m, _: rf're"[a-c]locks\.{n}\.[a-z]+\.conv[{m}]"',
    "b.*N.*M": lambda n, m, _: rf're"b.*{n}.*{m}"',
    "groups": lambda n, m, _: rf're"blocks\.{n}\.(part|other)\.(conv{m}|norm{m})"',
    "alternatives": lambda n, m, x: rf're"blocks\.{n}\.part\.conv{m}|{x}"',
    "optional groups": lambda n, m, _: rf're"(blocks\.)?(?:{n})?.*conv?{m}"',
    "nearly every name": lambda n, m, x: rf're".*conv[^{x}]"',
    "every name": lambda n, m, x: rf're"[\s\S]*[^{x}]"',
    "all but": lambda n, m, x: rf'"**" except re".*conv[^{x}{m}]"',
    "repeated groups": lambda n, m, _: rf're"blocks\.{n}\.([a-z]+\.)*conv{m}"',
    "a look ahead": lambda n, m, _: rf're"(?!.*norm)blocks\.{n}\..*{m}"',
    "a look ahead, every name": lambda n, m, x: rf're"(?!.*{x}).*"',
}


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--rules", type=int, default=2000)
    parser.add_argument("--layers", type=int, default=2000)
    given = parser.parse_args()
    print(describe_machine("cpu"))
    module = nn.Conv2d(4, 4, 1)
    paths = [f"blocks.{i // 4}.part.conv{i % 4}" for i in range(given.layers)]
    layers = tuple(Layer(path, path, module, (Weight(path, (4, 4)),)) for path in paths)
    for kind, shape in SHAPES.items():
        rules = [
            f"prune {shape(i // 4, i % 4, chr(0x4E00 + i))} to 50%" for i in range(given.rules)
        ]
        recipe = loads("language 1\n" + "\n".join(rules) + f"\n{MIX}\n{TRAIN}")
        report = Diagnostics()
        start = time.process_time()
        try:
            owner = claim_layers(recipe.rules, Selection(layers, "Net", report), report)
        except RecipeError as error:
            print(f"{kind}: {error}")
            return 1
        seconds = time.process_time() - start
        print(f"{kind:26} {seconds:6.2f} s, {len(set(owner.values())):,} rules with a layer")
    return 0


if __name__ == "__main__":
    sys.exit(main())
