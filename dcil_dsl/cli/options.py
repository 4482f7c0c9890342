"""The options that verbs share, and those of the main job, each defined once.

In:   nothing.
Out:  types for the parameters of the functions in commands.py, which typer reads.
Not:  no defaults, which stand with the verb, and no behaviour.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Optional

import typer

from dcil_dsl.data.datasets import DATASETS

RecipeFile = Annotated[str, typer.Argument(metavar="RECIPE", help="a .prune file")]
Spec = Annotated[
    str,
    typer.Option(
        "--model",
        metavar="SPEC",
        help="torchvision:NAME, timm:NAME, hf:CLASS, dcil:NAME, package.module:callable or "
        "file.py:callable",
    ),
]
MaybeSpec = Annotated[
    Optional[str],
    typer.Option("--model", metavar="SPEC", help="a model, spelled as for `dcil compile`"),
]
Sets = Annotated[
    Optional[list[str]],
    typer.Option(
        "--set", metavar="NAME=VALUE", help="replace a `let` or a setting (train.epochs=5ep)"
    ),
]
Concise = Annotated[bool, typer.Option("--concise", help="one line a diagnostic")]
Steps = Annotated[
    Optional[int],
    typer.Option(
        "--steps-per-epoch",
        min=1,
        metavar="N",
        help="steps of the optimiser in an epoch, where the data that would tell are not at hand",
    ),
]
DataDir = Annotated[
    Optional[Path],
    typer.Option(
        "--data",
        metavar="DIR",
        help="where the data lie; else $DCIL_DATA/NAME, else ~/.cache/dcil/NAME",
    ),
]
Device = Annotated[str, typer.Option("--device", metavar="DEVICE", help="auto, cpu or cuda")]
Workers = Annotated[
    Optional[int],
    typer.Option(
        "--workers", min=0, metavar="N", help="processes that read images; else as many as pay"
    ),
]
RunDir = Annotated[str, typer.Argument(metavar="RUN", help="a run folder")]

# -- of the main job ---------------------------------------------------------------------------

Train = Annotated[
    Optional[str],
    typer.Option(
        "--train",
        metavar="DATA",
        help=f"one of {', '.join(DATASETS)}; or my.py:make or package.module:callable, which "
        "returns data of your own",
    ),
]
RunOut = Annotated[
    Optional[Path],
    typer.Option("--out", metavar="DIR", help="the run folder; else runs/RECIPE-DATE-N"),
]
Resume = Annotated[bool, typer.Option("--resume", help="continue the run in --out")]
ResumeAnyway = Annotated[
    bool,
    typer.Option(
        "--resume-anyway", help="--resume, although recipe, model or data are not what they were"
    ),
]
OnBadImage = Annotated[
    str,
    typer.Option(
        "--on-bad-image",
        metavar="WHAT",
        help="an image that cannot be read: stop, or skip it and take the next one in its place",
    ),
]
CheckpointActivations = Annotated[
    bool,
    typer.Option(
        "--checkpoint-activations",
        help="less memory, more time: compute most activations again for the backward pass",
    ),
]
EvaluateEvery = Annotated[
    int,
    typer.Option(
        "--evaluate-every",
        metavar="EPOCHS",
        min=1,
        help="go through the held-out data every so many epochs, and at the end",
    ),
]
OnNan = Annotated[
    str,
    typer.Option(
        "--on-nan",
        metavar="WHAT",
        help="a loss that is not finite: stop, or rewind to the last good checkpoint and go on "
        "with half the rate, three times at most",
    ),
]
Weights = Annotated[
    Optional[str],
    typer.Option(
        "--weights",
        metavar="FILE",
        help="start from trained weights: a file, or torchvision's name (IMAGENET1K_V2)",
    ),
]
Precision = Annotated[
    Optional[str],
    typer.Option("--precision", metavar="TYPE", help="fp32, bf16 or fp16, instead of the recipe's"),
]
Compile = Annotated[bool, typer.Option("--compile/--no-compile", help="use torch.compile")]
CompileMode = Annotated[
    str,
    typer.Option(
        "--compile-mode",
        metavar="MODE",
        help="with --compile: default, or reduce-overhead, which records the step as CUDA graphs "
        "and replays it, for networks so small that the host is slower than the GPU",
    ),
]
Shard = Annotated[
    bool,
    typer.Option(
        "--shard", help="under torchrun: each process has a part of every weight, not all of them"
    ),
]
Seed = Annotated[
    Optional[int], typer.Option("--seed", min=0, metavar="N", help="instead of the recipe's")
]
MaxSteps = Annotated[
    Optional[int],
    typer.Option(
        "--max-steps", min=1, metavar="N", help="stop after N steps in all; --resume goes on"
    ),
]
Quiet = Annotated[bool, typer.Option("--quiet", help="no progress, no tables")]
