"""The arguments and options of the verbs, for typer.

In:   the fields of RunOptions (training/options.py), with their help texts.
Out:  types for the parameters of the verbs; the parameters of the verb that takes every field.
Not:  no defaults but those of RunOptions, and no behaviour.
"""

from __future__ import annotations

import inspect
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Optional, get_args

import typer

from dcil_dsl.data.datasets import DATASETS
from dcil_dsl.diagnostics import InputError
from dcil_dsl.training.options import RunOptions, defaults, flags, help_of, hints


def option(name: str) -> Any:
    """The option of the command line that sets a field of RunOptions."""
    flag = flags()[name]
    spelled = f"{flag.name}/{flag.off}" if flag.off else flag.name
    return typer.Option(
        spelled,
        metavar=flag.metavar,
        min=flag.at_least,
        max=flag.at_most,
        help=help_of(name),
        rich_help_panel=flag.topic,
    )


RecipeFile = Annotated[str, typer.Argument(metavar="RECIPE", help="a .prune file")]
RecipeFiles = Annotated[
    list[str],
    typer.Argument(
        metavar="PATH...", help=".prune files, folders of them, or - for standard input"
    ),
]
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
Anyway = Annotated[
    bool,
    typer.Option("--anyway", help="accept a model whose forward is not the one that was trained"),
]
Train = Annotated[
    Optional[str],
    typer.Option(
        "--train",
        metavar="DATA",
        help=f"the data: {', '.join(DATASETS)}; or my.py:make or package.module:callable, which "
        "returns data of your own",
    ),
]
Concise = Annotated[bool, typer.Option("--concise", help="print one line per diagnostic")]
Steps = Annotated[
    Optional[int],
    typer.Option(
        "--steps-per-epoch",
        min=1,
        metavar="N",
        help="optimizer steps per epoch; needed when the data set is not known",
    ),
]
RunDir = Annotated[str, typer.Argument(metavar="RUN", help="a run folder")]
PathOfRun = Annotated[
    Optional[str],
    typer.Option("--path", metavar="PATH", help="sparse, dense, ... (default: the deployed path)"),
]
DataDir = Annotated[Optional[Path], option("directory")]
Sets = Annotated[Optional[list[str]], option("overrides")]
Weights = Annotated[Optional[str], option("weights")]
Device = Annotated[str, option("device")]
Workers = Annotated[Optional[int], option("workers")]


def run_parameters() -> list[inspect.Parameter]:
    """A keyword parameter for each field of RunOptions."""
    return [
        inspect.Parameter(
            name,
            inspect.Parameter.KEYWORD_ONLY,
            default=_default(name),
            annotation=Annotated[_type(name), option(name)],
        )
        for name in flags()
    ]


def run_options(values: Mapping[str, Any]) -> RunOptions:
    """RunOptions from the values that typer read for `run_parameters`."""
    teachers = _pairs(values["teachers"], "--teacher", "NAME=SPEC", "--teacher big=my.py:make")
    overrides = overrides_of(values["overrides"])
    return RunOptions(**{**values, "overrides": overrides, "teachers": teachers})


def overrides_of(sets: Sequence[str] | None) -> dict[str, str]:
    """["a=1"] -> {"a": "1"}. InputError for an entry without `=` and for a name given twice."""
    return _pairs(sets, "--set", "NAME=VALUE", "--set target=95%")


def _pairs(entries: Sequence[str] | None, flag: str, form: str, help: str) -> dict[str, str]:
    pairs: dict[str, str] = {}
    for entry in entries or []:
        name, equals, value = entry.partition("=")
        name, value = name.strip(), value.strip()
        if not equals or not name or not value:
            raise InputError(f"{flag} {entry}: not {form}", help=help)
        if name in pairs:
            raise InputError(f"{flag} gives `{name}` twice")
        pairs[name] = value
    return pairs


def _default(name: str) -> Any:
    """The default on the command line: the field's, but None for no --set."""
    default, typed = defaults()[name], flags()[name].typed
    if isinstance(default, Mapping):
        return None
    return default if typed is None else typed


def _type(name: str) -> Any:
    """The type that typer reads: the first of the field's; a string for a choice of words."""
    hint = hints()[name].__origin__
    if isinstance(defaults()[name], Mapping):
        return Optional[list[str]]
    first, *more = get_args(hint) or (hint,)
    kind = first if first in (bool, int, Path) else str
    return Optional[kind] if type(None) in more else kind
