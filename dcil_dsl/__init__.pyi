"""The public names, as type checkers and editors see them."""

from dcil_dsl.diagnostics import Diagnostic as Diagnostic
from dcil_dsl.diagnostics import InputError as InputError
from dcil_dsl.diagnostics import RecipeError as RecipeError
from dcil_dsl.diagnostics import RecipeWarning as RecipeWarning
from dcil_dsl.exporting.export import export as export
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
from dcil_dsl.training.options import RunOptions as RunOptions
from dcil_dsl.training.sparsity import SparsityError as SparsityError

__version__: str
