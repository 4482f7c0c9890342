"""The options of a run: one field each, with its type, default, help text and conflicts.

In:   values from the command line or from Python.
Out:  RunOptions, whose values have been checked; the Flag of each field.
Not:  no torch, so that `dcil --help` answers at once; whether the machine and the recipe allow the
      options is checked later (conflicts.py).

The command line, the keywords of `dcil.train`, the comparison of processes, command.json and the
reference page are read off the fields. A new option is one field and the place where it acts.
"""

from __future__ import annotations

import dataclasses
import functools
import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal, get_type_hints

from dcil_dsl.diagnostics.errors import InputError
from dcil_dsl.diagnostics.suggest import nearest
from dcil_dsl.words.units import MAX_WHOLE

if TYPE_CHECKING:
    from pydantic import TypeAdapter


def _same(value: Any) -> Any:
    return value


def _device_type(device: str) -> str:
    return device.partition(":")[0]


def _absolute(path: str | Path | None) -> str | None:
    return None if path is None else os.path.abspath(path)


def _file_name(weights: str | Path | None) -> str | None:
    return None if weights is None else Path(weights).name


MACHINE, FAULTS, SHOWN = "Machine, speed and memory", "What goes wrong", "What is shown"


@dataclass(frozen=True)
class Flag:
    """What is known of one field, besides its type and default.

    help      one line, for `--help` and the reference
    metavar   the placeholder of the value
    name      the flag; default: the field's name with dashes
    off       the flag that says no, where there is one
    at_least  the smallest number that is allowed
    at_most   the largest number that is allowed
    trains    whether it concerns training alone; refused without `--train`
    requires  fields that must be given together with this one
    excludes  fields that must not be given together with this one
    compared  the part of the value that all processes of a job must agree on; None: no part
    recorded  the value that command.json holds; None: not recorded
    typed     the default of the command line; default: the field's
    topic     the heading of `--help` below which it stands
    """

    help: str
    metavar: str | None = None
    name: str = ""
    off: str = ""
    at_least: int | None = None
    at_most: int | None = None
    trains: bool = True
    requires: tuple[str, ...] = ()
    excludes: tuple[str, ...] = ()
    compared: Callable[[Any], object] | None = _same
    recorded: Callable[[Any], str | None] | None = None
    typed: bool | None = None
    topic: str = "The run"


@dataclass(frozen=True, kw_only=True)
class RunOptions:
    """How to run a job: where its files are, on which machine, from where to where.

    Raises InputError for a value that no run can have, and for options that exclude each other.
    """

    directory: Annotated[
        Path | str | None,
        Flag(
            "folder of the data (default: $DCIL_DATA/NAME, then ~/.cache/dcil/NAME)",
            "DIR",
            name="--data",
            compared=None,
            recorded=_absolute,
        ),
    ] = None
    out: Annotated[
        Path | str | None,
        Flag("run folder (default: runs/RECIPE-DATE-N)", "DIR", compared=_absolute),
    ] = None
    resume: Annotated[bool, Flag("continue the run in --out")] = False
    anyway: Annotated[
        bool,
        Flag(
            "like --resume, even if the recipe, the model or the data changed",
            name="--resume-anyway",
        ),
    ] = False
    weights: Annotated[
        str | Path | None,
        Flag(
            "start from trained weights: a file, a folder of a run or of transformers, "
            "torchvision's name (IMAGENET1K_V2), or `pretrained` for timm",
            "FILE",
            trains=False,
            compared=_file_name,
            recorded=_same,
        ),
    ] = None
    overrides: Annotated[
        Mapping[str, str],
        Flag(
            "replace a `let` or a setting (train.epochs=5ep)",
            "NAME=VALUE",
            name="--set",
            trains=False,
            compared=None,  # the plan holds it, as it holds precision and seed
        ),
    ] = field(default_factory=dict)
    teachers: Annotated[
        Mapping[str, Any],
        Flag(
            "the network of `path NAME = network()`: my.py:make or package.module:callable",
            "NAME=SPEC",
            name="--teacher",
            compared=None,  # the plan has its digest
        ),
    ] = field(default_factory=dict)
    device: Annotated[
        str,
        Flag(
            "auto, cpu, cuda, cuda:N or mps",
            "DEVICE",
            trains=False,
            compared=_device_type,
            recorded=_same,
            topic=MACHINE,
        ),
    ] = "auto"
    precision: Annotated[
        Literal["fp32", "bf16", "fp16"] | None,
        Flag(
            "fp32, bf16 or fp16 (default: the recipe's)",
            "TYPE",
            trains=False,
            compared=None,
            topic=MACHINE,
        ),
    ] = None
    workers: Annotated[
        int | None,
        Flag(
            "data loader workers (default: automatic)",
            "N",
            at_least=0,
            compared=None,
            topic=MACHINE,
        ),
    ] = None
    on_bad_image: Annotated[
        Literal["stop", "skip"],
        Flag("on an unreadable image: stop, or skip it and use the next one", "WHAT", topic=FAULTS),
    ] = "stop"
    on_nan: Annotated[
        Literal["stop", "rewind"],
        Flag(
            "on a loss that is not finite: stop, or rewind to the last good checkpoint and "
            "continue with half the learning rate, at most three times",
            "WHAT",
            topic=FAULTS,
        ),
    ] = "stop"
    compile: Annotated[
        bool,
        Flag(
            "use torch.compile",
            off="--no-compile",
            excludes=("checkpoint_activations",),
            topic=MACHINE,
        ),
    ] = False
    compile_mode: Annotated[
        Literal["default", "reduce-overhead"],
        Flag(
            "default, or reduce-overhead: record the compiled step as CUDA graphs and replay it, "
            "for networks so small that the host is slower than the GPU",
            "MODE",
            requires=("compile",),
            topic=MACHINE,
        ),
    ] = "default"
    shard: Annotated[
        bool, Flag("under torchrun: each process holds a shard of every weight", topic=MACHINE)
    ] = False
    checkpoint_activations: Annotated[
        bool,
        Flag(
            "recompute most activations in the backward pass: less memory, more time", topic=MACHINE
        ),
    ] = False
    evaluate_every: Annotated[
        int, Flag("evaluate every N epochs, and at the end", "N", at_least=1)
    ] = 1
    seed: Annotated[
        int | None,
        Flag(
            "seed (default: the recipe's)",
            "N",
            at_least=0,
            at_most=MAX_WHOLE,
            trains=False,
            compared=None,
        ),
    ] = None
    max_steps: Annotated[
        int | None,
        Flag("stop after N steps of the whole run; --resume continues", "N", at_least=1),
    ] = None
    track: Annotated[
        Literal["mlflow", "wandb", "trackio"] | None,
        Flag("also send the run to a tracker: mlflow, wandb or trackio", "TRACKER", topic=SHOWN),
    ] = None
    quiet: Annotated[
        bool,
        Flag(
            "print no progress and no tables", trains=False, compared=None, typed=False, topic=SHOWN
        ),
    ] = True

    def __post_init__(self) -> None:
        object.__setattr__(self, "device", str(self.device))  # torch.device as well
        for name in flags():
            _check(name, getattr(self, name))
        for name in self.given():
            self._check_together(name)

    def given(self) -> tuple[str, ...]:
        """The fields whose value is not the default."""
        return tuple(name for name in flags() if getattr(self, name) != defaults()[name])

    def spelled(self, name: str) -> str:
        """A field as the command line spells it, with its value where it has one."""
        flag, value = flags()[name], getattr(self, name)
        return flag.name if isinstance(value, bool) else f"{flag.name} {value}"

    def compared(self) -> dict[str, object]:
        """By flag, what all processes of a job must agree on."""
        return {
            flag.name: flag.compared(getattr(self, name))
            for name, flag in flags().items()
            if flag.compared is not None
        }

    def recorded(self) -> dict[str, str | None]:
        """By field, what command.json holds."""
        return {
            name: flag.recorded(getattr(self, name))
            for name, flag in flags().items()
            if flag.recorded is not None
        }

    def _check_together(self, name: str) -> None:
        flag, given = flags()[name], self.given()
        for other in flag.requires:
            if other not in given:
                wanted = flags()[other].name
                raise InputError(f"{self.spelled(name)} needs {wanted}", help=f"add {wanted}")
        for other in flag.excludes:
            if other in given:
                raise InputError(
                    f"{self.spelled(other)} does not go with {self.spelled(name)}",
                    help="leave one of them out",
                )


def options_of(options: RunOptions | None, fields: Mapping[str, Any]) -> RunOptions:
    """The options with these fields replaced. TypeError for a field that does not exist."""
    for name in fields:
        if name not in flags():
            near = nearest(name, flags())
            hint = f"did you mean `{near}`?" if near else f"the options are {', '.join(flags())}"
            raise TypeError(f"there is no option `{name}`: {hint}")
    return dataclasses.replace(options or RunOptions(), **fields)


@functools.cache
def flags() -> dict[str, Flag]:
    """{field: its Flag}, in the order of the fields."""
    found = {}
    for name, hint in hints().items():
        (flag,) = (mark for mark in hint.__metadata__ if isinstance(mark, Flag))
        spelled = flag.name or f"--{name.replace('_', '-')}"
        found[name] = dataclasses.replace(flag, name=spelled)
    return found


def help_of(name: str) -> str:
    """The help text of a field, with the options that it needs and excludes."""
    known = flags()
    excluded = [*known[name].excludes, *(n for n, flag in known.items() if name in flag.excludes)]
    parts = [known[name].help]
    parts += [f"needs {known[other].name}" for other in known[name].requires]
    parts += [f"not with {known[other].name}" for other in excluded]
    return "; ".join(parts)


@functools.cache
def defaults() -> dict[str, Any]:
    """{field: its default}."""
    return {
        one.name: one.default if one.default_factory is dataclasses.MISSING else {}
        for one in dataclasses.fields(RunOptions)
    }


@functools.cache
def hints() -> dict[str, Any]:
    """{field: its type, Annotated with its Flag}."""
    return get_type_hints(RunOptions, include_extras=True)


@functools.cache
def _adapter(name: str) -> TypeAdapter[Any]:
    from pydantic import Field, TypeAdapter

    least, most = flags()[name].at_least, flags()[name].at_most
    hint: Any = hints()[name].__origin__
    return TypeAdapter(Annotated[hint, Field(ge=least, le=most)])


def _check(name: str, value: object) -> None:
    """InputError unless the value is of the field's type, a choice, and not too small."""
    from pydantic import ValidationError  # late: verbs without a run do not wait for it

    try:
        _adapter(name).validate_python(value, strict=True)
    except ValidationError as error:
        wanted = [one["msg"].removeprefix("Input should be ") for one in error.errors()]
        why = " or ".join(wanted).replace("'", "")
        why = why.replace("greater than or equal to", "at least")
        why = why.replace("less than or equal to", "at most")
        raise InputError(f"{flags()[name].name} {value}: must be {why}") from None
