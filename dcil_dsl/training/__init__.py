"""Dual x Plan x data -> a run: the loop, the step, the checkpoints, the run folder."""

from dcil_dsl.training.checkpoint import load_deployed
from dcil_dsl.training.evaluate import evaluate
from dcil_dsl.training.losses import loss_terms, total_loss
from dcil_dsl.training.machine import Options
from dcil_dsl.training.metrics import SparsityError, check_sparsity
from dcil_dsl.training.progress import make_display, result_table
from dcil_dsl.training.result import Result
from dcil_dsl.training.run import RunFolder, create_run, open_run, resume_run
from dcil_dsl.training.trainer import train

__all__ = [
    "Options",
    "Result",
    "RunFolder",
    "SparsityError",
    "check_sparsity",
    "create_run",
    "evaluate",
    "load_deployed",
    "loss_terms",
    "make_display",
    "open_run",
    "result_table",
    "resume_run",
    "total_loss",
    "train",
]
