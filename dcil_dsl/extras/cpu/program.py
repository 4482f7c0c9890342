"""The program of an exported network: a list of operations, as JSON that no code has to run.

In:   program.json.
Out:  Program: inputs, operations in order, outputs; every name defined before it is used.
Not:  no tensor is read here (storage.py), no shape is computed (shapes.py).

An operation is a `Layer` (linear or conv2d with its fused residual sum and activation) or a `Call`
of a torch function from the list in functions.py.
"""

from __future__ import annotations

import json
import stat
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any, Literal, Union, get_args

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from dcil_dsl.diagnostics import InputError

PROGRAM = "program.json"
FORMAT = 1
MOST_BYTES = 2**26  # of a program file
MOST_OPERATIONS = 100_000

Text = Annotated[str, Field(max_length=300)]
Name = Annotated[Text, Field(min_length=1)]
Size = Annotated[int, Field(ge=0, le=2**31 - 1)]
Step = Annotated[int, Field(ge=1, le=2**15)]
Edge = Annotated[int, Field(ge=0, le=2**15)]
Activation = Literal["relu", "relu6", "gelu"]
Dtype = Literal[
    "float32",
    "float64",
    "float16",
    "bfloat16",
    "bool",
    "uint8",
    "int8",
    "int16",
    "int32",
    "int64",
]
DTYPES: tuple[str, ...] = get_args(Dtype)


class Part(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False, strict=True)


class ProgramInput(Part):
    """One tensor that the network takes.

    shape  None for the batch dimension, which may have any size
    """

    name: Name
    shape: list[Size | None]
    dtype: Dtype


class ProgramLayer(Part):
    """activation(layer(input) + add), with the layer's weight and bias by name.

    layer  the path of the layer in the original model, for people
    """

    op: Literal["linear", "conv2d"]
    layer: Text
    input: Name
    output: Name
    weight: Name
    bias: Name | None = None
    add: Name | None = None
    activation: Activation | None = None
    stride: tuple[Step, Step] = (1, 1)
    padding: tuple[Edge, Edge] = (0, 0)
    dilation: tuple[Step, Step] = (1, 1)
    groups: Step = 1

    def values(self) -> Iterator[str]:
        """The names of the values that the operation reads."""
        yield self.input
        if self.add is not None:
            yield self.add


class ProgramCall(Part):
    """A torch function of the list in functions.py.

    args, kwargs  plain JSON; {"value": NAME} is a value, {"tensor": NAME} a stored tensor, and
                  {"dtype": NAME}, {"memory_format": NAME}, {"float": "inf"} what JSON has no form
                  for
    outputs       a name for each result; None for one that nothing reads
    """

    op: Literal["torch"]
    function: Name
    args: list[Any]
    kwargs: dict[str, Any] = {}
    outputs: list[Name | None]

    def values(self) -> Iterator[str]:
        yield from named(self.args, "value")
        yield from named(self.kwargs, "value")


Operation = Annotated[Union[ProgramLayer, ProgramCall], Field(discriminator="op")]


class CpuProgram(Part):
    """The whole file.

    outputs    the structure that the network returns: {"value": NAME}, {"constant": JSON},
               {"list": [...]}, {"tuple": [...]}, {"dict": {...}}
    constants  values that are stored tensors
    digest     of the tensors in weights.safetensors
    model      the name of the original's class, for people
    """

    format: int
    model: Text
    inputs: list[ProgramInput] = Field(max_length=1000)
    constants: dict[Name, Name] = {}
    operations: list[Operation] = Field(max_length=MOST_OPERATIONS)
    outputs: Any
    digest: str = Field(max_length=100)


def named(structure: object, kind: str) -> Iterator[str]:
    """The names in every {kind: NAME} of a JSON structure."""
    if isinstance(structure, dict):
        if set(structure) == {kind} and isinstance(structure[kind], str):
            yield structure[kind]
            return
        for part in structure.values():
            yield from named(part, kind)
    elif isinstance(structure, list):
        for part in structure:
            yield from named(part, kind)


def outputs_of(operation: ProgramLayer | ProgramCall) -> list[str]:
    """The names that an operation defines."""
    if isinstance(operation, ProgramLayer):
        return [operation.output]
    return [name for name in operation.outputs if name is not None]


def tensors_of(program: CpuProgram) -> Iterator[str]:
    """The names of the stored tensors that a program reads."""
    yield from program.constants.values()
    for operation in program.operations:
        if isinstance(operation, ProgramLayer):
            yield operation.weight
            if operation.bias is not None:
                yield operation.bias
        else:
            yield from named(operation.args, "tensor")
            yield from named(operation.kwargs, "tensor")


def read_program(folder: str | Path) -> CpuProgram:
    """Read and check program.json. InputError where it is damaged or contradicts itself."""
    file = Path(folder) / PROGRAM
    try:
        if not stat.S_ISREG(file.stat().st_mode):
            raise InputError(f"{file} is not a file")
        if file.stat().st_size > MOST_BYTES:
            raise InputError(f"{file} is larger than {MOST_BYTES:,} bytes")
        text = file.read_text(encoding="utf-8")
    except FileNotFoundError:
        raise InputError(
            f"there is no {PROGRAM} in {folder}", help="name a folder that `--to cpu` wrote"
        ) from None
    except UnicodeDecodeError:
        raise InputError(f"{file} is not text") from None
    except OSError as error:
        raise InputError(f"{file} cannot be read: {error.strerror}") from None
    return parse_program(text, str(file))


def parse_program(text: str, place: str) -> CpuProgram:
    """A program from its JSON; `place` names it in an error."""
    try:
        loaded = json.loads(text, parse_constant=_no_constant)
    except (ValueError, RecursionError) as error:
        raise InputError(f"{place} is not JSON: {str(error)[:200]}") from None
    if any(not text.isprintable() for text in _strings(loaded)):
        raise InputError(f"{place} is not a program: it has text that cannot be printed")
    found = loaded.get("format") if isinstance(loaded, dict) else None
    if isinstance(found, int) and found != FORMAT:
        raise InputError(f"{place} is of format {found}; this version reads {FORMAT}")
    try:
        program = CpuProgram.model_validate_json(text)
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(map(str, first["loc"])) or "the file"
        raise InputError(f"{place} is not a program: {where[:200]}: {first['msg'][:200]}") from None
    except RecursionError:
        raise InputError(f"{place} is nested too deep") from None
    _check_names(program, place)
    return program


def _strings(loaded: object) -> Iterator[str]:
    """Every key and string of a JSON structure."""
    waiting = [loaded]
    while waiting:
        part = waiting.pop()
        if isinstance(part, str):
            yield part
        elif isinstance(part, dict):
            waiting += [*part.keys(), *part.values()]
        elif isinstance(part, list):
            waiting += part


def _no_constant(word: str) -> object:
    raise ValueError(f"{word} is not a JSON number")


def _check_names(program: CpuProgram, place: str) -> None:
    """Every value is defined once, before it is used. So no operation waits for a later one."""
    known: set[str] = set()
    for name in [*(given.name for given in program.inputs), *program.constants]:
        if name in known:
            raise InputError(f"{place} defines the value `{name}` twice")
        known.add(name)
    for index, operation in enumerate(program.operations):
        for name in operation.values():
            if name not in known:
                raise InputError(
                    f"{place}: operation {index} reads the value `{name}`, which no earlier "
                    "operation defines"
                )
        for name in outputs_of(operation):
            if name in known:
                raise InputError(f"{place} defines the value `{name}` twice")
            known.add(name)
    for name in returned(program.outputs, place):
        if name not in known:
            raise InputError(f"{place} returns the value `{name}`, which no operation defines")


def returned(structure: object, place: str = PROGRAM, depth: int = 0) -> Iterator[str]:
    """The names of the values that a program returns. InputError for another structure."""
    if depth > 50 or not isinstance(structure, dict) or len(structure) != 1:
        raise InputError(f"{place}: the outputs are not a structure of values")
    (kind, inner), *_ = structure.items()
    if kind == "value" and isinstance(inner, str):
        yield inner
    elif kind in ("list", "tuple") and isinstance(inner, list):
        for part in inner:
            yield from returned(part, place, depth + 1)
    elif kind == "dict" and isinstance(inner, dict):
        for part in inner.values():
            yield from returned(part, place, depth + 1)
    elif kind != "constant" or not isinstance(inner, (bool, int, float, str, type(None))):
        raise InputError(f"{place}: the outputs are not a structure of values")
