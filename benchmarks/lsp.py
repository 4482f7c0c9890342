"""How long the language server takes, on a recipe of 20 and of 2,000 rules.

    python benchmarks/lsp.py [--repeats 20] [--json FILE]

In:   a ResNet-18's table of layers, made once; recipes with rules by name.
Out:  medians and the slowest of N, in milliseconds of processor time and of wall time: the
      analysis of a change, and the requests that an editor sends after it.
Not:  no debounce (150 ms) and no transport; no torch in the measured process.
"""

from __future__ import annotations

import argparse
import json
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

from dcil_dsl.extras.lsp.analysis import Analysis, analyse
from dcil_dsl.extras.lsp.colours import semantic_tokens
from dcil_dsl.extras.lsp.completion import complete
from dcil_dsl.extras.lsp.hints import inlay_hints
from dcil_dsl.extras.lsp.hover import hover
from dcil_dsl.extras.lsp.session import EditorSession
from dcil_dsl.extras.lsp.symbols import folds, outline
from dcil_dsl.extras.lsp.table import LayerTable, read_table

ASKED = {"specs": ["torchvision:resnet18"], "classes": 10, "options": {}, "image_size": 32}
REST = """
mix {
  path sparse = masked
  path dense  = full
  update kept   by sparse
  update pruned by dense
  loss cross_entropy(sparse)
  loss cross_entropy(dense)
  deploy sparse
}
train { epochs = 15ep optimizer = sgd(lr=0.01, momentum=0.9) }
"""


def recipe(rules: int) -> str:
    """A recipe with this number of rules."""
    lines = [
        f'prune "layer{i % 4 + 1}.{i // 4 % 2}.conv{i % 2 + 1}" to {50 + i % 40}%'
        for i in range(rules - 1)
    ]
    return "language 1\nprune Conv2d to global(90%)\n" + "\n".join(lines) + REST


def layers() -> LayerTable:
    """The table, made by a child process as in the server."""
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder, "table.json")
        asked = json.dumps(ASKED | {"channels": 3})
        module = "dcil_dsl.extras.lsp.layer_table"
        subprocess.run([sys.executable, "-m", module, asked, str(file)], check=True)
        return read_table(file)


def timed(work: Callable[[int], object], repeats: int) -> dict[str, float]:
    """Milliseconds of `work(number of the repeat)`."""
    cpu, wall = [], []
    for number in range(repeats):
        start = time.process_time(), time.perf_counter()
        work(number)
        cpu.append(1000 * (time.process_time() - start[0]))
        wall.append(1000 * (time.perf_counter() - start[1]))
    return {
        "cpu": statistics.median(cpu),
        "cpu_slowest": max(cpu),
        "wall": statistics.median(wall),
        "wall_slowest": max(wall),
    }


def measure(rules: int, table: LayerTable, repeats: int) -> dict[str, dict[str, float]]:
    """Each kind of work on a recipe with this number of rules."""
    text = recipe(rules)

    def fresh(number: int) -> Analysis:
        return analyse(f"{text}# {number}\n", None, "a", lambda file: table)

    fresh(-1)  # the parser is built once
    found = [fresh(number) for number in range(repeats)]
    place = text.index("global") + 2
    inside = text.index('"layer1') + 8

    def all_of(number: int) -> None:
        one = found[number]
        semantic_tokens(one)
        inlay_hints(one, 0, len(one.text))
        outline(one)
        folds(one)

    return {
        "analysis": timed(fresh, repeats),
        "tokens, hints, outline, folds": timed(all_of, repeats),
        "completion": timed(lambda number: complete(found[number], inside), repeats),
        "hover": timed(lambda number: hover(found[number], place), repeats),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0])
    parser.add_argument("--repeats", type=int, default=20)
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    EditorSession(lambda text: None, lambda why: None)  # sets the collector as the server does
    table = layers()
    results = {str(rules): measure(rules, table, options.repeats) for rules in (20, 2000)}
    assert "torch" not in sys.modules
    for rules, rows in results.items():
        print(f"{rules} rules")
        for name, row in rows.items():
            print(
                f"  {name:32} cpu {row['cpu']:8.1f} ms (slowest {row['cpu_slowest']:8.1f})  "
                f"wall {row['wall']:8.1f} ms (slowest {row['wall_slowest']:8.1f})"
            )
    if options.json is not None:
        about = {"machine": platform.machine(), "python": platform.python_version()}
        options.json.write_text(json.dumps({**about, "milliseconds": results}, indent=1) + "\n")


if __name__ == "__main__":
    main()
