"""DCIL: a recipe language for pruning neural networks, its compiler and its training runtime.

In:   recipes, models, data.
Out:  the public verbs, below; `dcil` is the same on a command line.
Not:  importing this package imports no torch: each verb is imported when it is first used. Type
      checkers and editors read __init__.pyi.
"""

from __future__ import annotations

import importlib
from typing import Any

__version__ = "0.1.0"

# verb or type -> the module that has it
_PUBLIC = {
    "load": "lang",
    "loads": "lang",
    "Recipe": "lang.recipe",
    "RecipeError": "diagnostics",
    "RecipeWarning": "diagnostics",
    "InputError": "diagnostics",
    "Diagnostic": "diagnostics",
    "Plan": "plan.plan",
    "resolve": "jobs.stages",
    "compile": "jobs.stages",
    "loss": "jobs.stages",
    "Pruner": "jobs.pruner",
    "train": "jobs.train",
    "RunOptions": "training.options",
    "Run": "jobs.train",
    "export": "exporting.export",
    "federate": "extras.federated.job",
    "evaluate_run": "jobs.inspect",
    "export_run": "jobs.export",
    "verify_artefact": "jobs.inspect",
    "compact": "extras.compact.compaction",
    "load_compact": "extras.compact.load",
    "expand": "extras.compact.load",
    "compact_run": "extras.compact.job",
    "load_cpu": "extras.cpu.network",
    "SparsityError": "training.sparsity",
}
__all__ = ["__version__", *_PUBLIC]


def __getattr__(name: str) -> Any:
    if name not in _PUBLIC:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(importlib.import_module(f"{__name__}.{_PUBLIC[name]}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
