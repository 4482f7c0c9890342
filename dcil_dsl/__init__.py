"""DCIL: a recipe language for pruning neural networks, its compiler and its training runtime.

In:   recipes, models, data.
Out:  the public verbs, below; `dcil` is the same on a command line.
Not:  importing this package imports no torch: each verb is imported when it is first used.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

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
    "export": "exporting.collapse",
    "federate": "extras.federated.job",
    "evaluate_run": "jobs.inspect",
    "export_run": "jobs.export",
    "verify_artefact": "jobs.inspect",
    "compact": "extras.compact.compaction",
    "load_compact": "extras.compact.load",
    "expand": "extras.compact.load",
    "compact_run": "extras.compact.job",
    "load_cpu": "extras.cpu.network",
    "SparsityError": "training.metrics",
}
__all__ = ["__version__", *_PUBLIC]

if TYPE_CHECKING:  # what type checkers and editors see
    from dcil_dsl.diagnostics import Diagnostic as Diagnostic
    from dcil_dsl.diagnostics import InputError as InputError
    from dcil_dsl.diagnostics import RecipeError as RecipeError
    from dcil_dsl.diagnostics import RecipeWarning as RecipeWarning
    from dcil_dsl.exporting.collapse import export as export
    from dcil_dsl.extras.compact.compaction import compact as compact
    from dcil_dsl.extras.compact.job import compact_run as compact_run
    from dcil_dsl.extras.compact.load import expand as expand
    from dcil_dsl.extras.compact.load import load_compact as load_compact
    from dcil_dsl.extras.cpu.network import load_cpu as load_cpu
    from dcil_dsl.extras.federated.job import federate as federate
    from dcil_dsl.jobs.export import export_run as export_run
    from dcil_dsl.jobs.inspect import evaluate_run as evaluate_run
    from dcil_dsl.jobs.inspect import verify_artefact as verify_artefact
    from dcil_dsl.jobs.pruner import Pruner as Pruner
    from dcil_dsl.jobs.stages import compile as compile
    from dcil_dsl.jobs.stages import loss as loss
    from dcil_dsl.jobs.stages import resolve as resolve
    from dcil_dsl.jobs.train import Run as Run
    from dcil_dsl.jobs.train import train as train
    from dcil_dsl.lang import load as load
    from dcil_dsl.lang import loads as loads
    from dcil_dsl.lang.recipe import Recipe as Recipe
    from dcil_dsl.plan.plan import Plan as Plan
    from dcil_dsl.training.metrics import SparsityError as SparsityError
    from dcil_dsl.training.options import RunOptions as RunOptions
else:

    def __getattr__(name: str) -> Any:
        if name not in _PUBLIC:
            raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
        value = getattr(importlib.import_module(f"{__name__}.{_PUBLIC[name]}"), name)
        globals()[name] = value
        return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
