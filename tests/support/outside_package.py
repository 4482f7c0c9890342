"""A small package with words, as pip would have installed it: a module and its dist-info.

In:   a folder for it, its text, what it declares.
Out:  install(), after which importlib.metadata and import find it, until the test ends.
Not:  no pip, no network, and no test.
"""

import importlib
import sys

from dcil_dsl.words import registry

WORDS = """
from dcil_dsl.words import (
    GradientScore, Integrator, Loss, PathName, Penalty, Score, View, total
)

class Bounded(Score):
    limit: float = 0.1

    def score(self, weight):
        return weight.abs().clamp(max=self.limit)

class Signed(Score):
    def score(self, weight):
        return weight

class Fisher(GradientScore):
    power: int = 2

    def score(self, weight, gradient):
        return gradient**self.power

class Mse(Loss):
    positional = 1
    path: PathName
    other: PathName
    scale: float = 1.0

    def loss(self, logits, target):
        return self.scale * (logits[self.path] - logits[self.other].detach()).square().mean()

class Rounded(View):
    steps: float = 8.0

    def see(self, weight, mask):
        return (weight * self.steps).round() / self.steps

class Cubes(Penalty):
    def gradient(self, weights):
        return weights**3

class Midpoint(Integrator):
    @property
    def evaluations(self):
        return 2

    def combine(self, first, rate, at):
        return total([at(rate / 2, first)], [1.0])

class Unfinished(Integrator):
    @property
    def evaluations(self):
        return 2
"""
DECLARED = {
    "bounded": "my_words:Bounded",
    "signed": "my_words:Signed",
    "squared_slope": "my_words:Fisher",
    "distance": "my_words:Mse",
    "rounded": "my_words:Rounded",
    "cubes": "my_words:Cubes",
    "midpoint": "my_words:Midpoint",
}


def install(
    folder,
    monkeypatch,
    name="my-words",
    version="1.2",
    module="my_words",
    text=WORDS,
    declared=None,
):
    """The package, importable; a version that was there before is gone."""
    root = folder / name
    root.mkdir(exist_ok=True)
    (root / f"{module}.py").write_text(text)
    for old in root.glob("*.dist-info"):
        for file in old.iterdir():
            file.unlink()
        old.rmdir()
    info = root / f"{name.replace('-', '_')}-{version}.dist-info"
    info.mkdir()
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n")
    lines = [f"{word} = {place}" for word, place in (declared or DECLARED).items()]
    (info / "entry_points.txt").write_text("\n".join(["[dcil.words]", *lines, ""]))
    if str(root) not in sys.path:
        monkeypatch.syspath_prepend(str(root))
    forget(module)


def remove(folder, monkeypatch, name="my-words", module="my_words"):
    """As pip uninstall leaves it."""
    monkeypatch.setattr(sys, "path", [p for p in sys.path if p != str(folder / name)])
    forget(module)


def forget(module):
    """As in a new process."""
    sys.modules.pop(module, None)
    importlib.invalidate_caches()
    registry._loaded.clear()
