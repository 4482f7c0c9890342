"""The shape file: where each small tensor lies in the original, as plain data.

In:   a cut network; or shapes.json and small.safetensors, read back.
Out:  Shapes and the small tensors; the tensors under the original's keys and shapes again.
Not:  no model is built (load.py) or cut (cut.py), nothing is pickled.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch
from pydantic import (
    BaseModel,
    ConfigDict,
    NonNegativeInt,
    ValidationError,
    model_validator,
)
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn

from dcil_dsl.diagnostics import InputError
from dcil_dsl.exporting.artefact import Origin
from dcil_dsl.exporting.files import write_safetensors
from dcil_dsl.model.digest import digest
from dcil_dsl.training.files import cannot_write, write_atomically

WEIGHTS, SHAPES, REPORT = "small.safetensors", "shapes.json", "report.json"


# dim -> the indices that stay; for the inner dim of a grouped convolution a list per group
Kept = dict[int, list[Any]]


class ShapeEntry(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)


class Input(ShapeEntry):
    """One argument of forward; name None: it is given by its place.

    A tensor by its shape and type; anything else, dtype None, by its value.
    """

    name: str | None = None
    shape: tuple[NonNegativeInt, ...] = ()
    dtype: str | None = None
    value: bool | int | float | str | None = None


class TensorMap(ShapeEntry):
    """Where a small tensor lies in the original's.

    shape  the original's
    kept   dim -> the original's indices that stay; a dim without an entry keeps them all. For the
           inner dim of a grouped convolution a list for each group. What is left out is zero.
    """

    shape: tuple[NonNegativeInt, ...]
    kept: dict[int, tuple[int, ...] | tuple[tuple[int, ...], ...]] = {}

    @model_validator(mode="after")
    def _check(self) -> TensorMap:
        for dim, indices in self.kept.items():
            if dim not in range(len(self.shape)):
                raise ValueError(f"there is no dim {dim} in a shape of {len(self.shape)}")
            for own in indices if indices and isinstance(indices[0], tuple) else (indices,):
                if any(a >= b for a, b in zip((-1, *own), (*own, self.shape[dim]))):
                    raise ValueError(f"the indices of dim {dim} do not rise from 0 to its size")
        return self

    def lists(self) -> Kept:
        return {
            dim: [list(entry) if isinstance(entry, tuple) else entry for entry in indices]
            for dim, indices in self.kept.items()
        }


class ModuleSizes(ShapeEntry):
    """The sizes of a module that changed, before and after."""

    type: str
    before: dict[str, int]
    after: dict[str, int]


class Shapes(ShapeEntry):
    """The whole file.

    opened    attention modules whose heads became nodes of the graph
    replaced  layers and norms that always gave the same, which is now their bias; tensors that
              only they needed are left out
    """

    format: int = 1
    model: str
    inputs: tuple[Input, ...]
    modules: dict[str, ModuleSizes]
    tensors: dict[str, TensorMap]
    opened: tuple[str, ...] = ()
    replaced: tuple[str, ...] = ()
    digest: str


def gather(tensor: Tensor, kept: Kept) -> Tensor:
    """The part of a tensor that stays."""
    if not kept:
        return tensor.clone()
    return torch.cat([tensor[grid] for grid in _grids(tensor.shape, kept)])


def scatter(small: Tensor, kept: Kept, shape: torch.Size) -> Tensor:
    """The inverse of gather: the part at its places in a tensor of zeros."""
    if not kept:
        return small.clone()
    full = small.new_zeros(shape)
    grids = _grids(shape, kept)
    for grid, part in zip(grids, small.split([len(grid[0]) for grid in grids])):
        full[grid] = part
    return full


def _grids(shape: torch.Size, kept: Kept) -> list[tuple[Tensor, ...]]:
    """The indices that stay, as open grids: one, or one per group of a grouped inner dim."""
    dims: list[Sequence[Any]] = [kept.get(dim, range(size)) for dim, size in enumerate(shape)]
    inner = next((dim for dim, indices in kept.items() if _is_nested(indices)), None)
    if inner is None:
        return [_open(dims)]
    size, grids = shape[0] // len(dims[inner]), []
    for group, indices in enumerate(dims[inner]):
        rows = [index for index in dims[0] if index // size == group]
        if rows:
            grids.append(_open([rows, *dims[1:inner], indices, *dims[inner + 1 :]]))
    return grids


def _open(dims: Sequence[Sequence[int]]) -> tuple[Tensor, ...]:
    rank = len(dims)
    return tuple(
        torch.as_tensor(indices, dtype=torch.int64).reshape([-1] + [1] * (rank - 1 - dim))
        for dim, indices in enumerate(dims)
    )


def _is_nested(indices: list[Any]) -> bool:
    return bool(indices) and isinstance(indices[0], list)


def expand_tensors(shapes: Shapes, small: dict[str, Tensor]) -> dict[str, Tensor]:
    """The small tensors at their places under the original's keys and shapes, zeros elsewhere.

    They load strictly into the original model, which then computes what the small one does.
    InputError where a tensor is missing or does not fit.
    """
    if missing := sorted(shapes.tensors.keys() ^ small.keys()):
        raise InputError(f"{missing[0]} is in only one of {SHAPES} and {WEIGHTS}")
    full = {}
    for name, entry in shapes.tensors.items():
        kept = entry.lists()
        try:
            expected = gather(torch.empty(entry.shape, device="meta"), kept).shape
            if small[name].shape != expected:
                fact = f"{list(small[name].shape)}, and the shape file says {list(expected)}"
                raise InputError(f"{name} has the shape {fact}")
            full[name] = scatter(small[name], kept, torch.Size(entry.shape))
        except (IndexError, RuntimeError, ValueError, TypeError) as error:
            raise InputError(
                f"the index map of {name} does not fit a shape of {list(entry.shape)}"
            ) from error
    return full


@torch.no_grad()
def put(model: nn.Module, tensors: Mapping[str, Tensor]) -> None:
    """Write tensors into a state dict's places. load_state_dict runs code of the model's own."""
    places = model.state_dict()
    for name, tensor in tensors.items():
        places[name].copy_(tensor)


def write_shapes(
    folder: Path,
    shapes: Shapes,
    small: dict[str, Tensor],
    report: dict[str, object],
    origin: Origin | None = None,
) -> None:
    """small.safetensors, shapes.json and report.json in `folder`, each written as a whole.

    origin  goes into the header of small.safetensors, with the digest of the tensors in the
            original's shapes
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise cannot_write(folder, error) from None
    texts = {SHAPES: shapes.model_dump_json(indent=1), REPORT: json.dumps(report, indent=2)}
    full = digest(expand_tensors(shapes, small)) if origin is not None else ""
    write_safetensors(small, folder / WEIGHTS, origin, full)
    for name, text in texts.items():
        write_atomically(folder / name, partial(Path.write_text, data=text + "\n"))


def read_shapes(folder: str | Path) -> tuple[Shapes, dict[str, Tensor]]:
    """Read both files back. InputError where one is missing, damaged, or of another pair."""
    folder = Path(folder)
    for name in (SHAPES, WEIGHTS):
        if not (folder / name).is_file():
            raise InputError(f"there is no {name} in {folder}")
    try:
        shapes = Shapes.model_validate_json((folder / SHAPES).read_text())
    except OSError as error:
        raise InputError(f"{folder / SHAPES} cannot be read: {error.strerror}") from None
    except (ValidationError, UnicodeDecodeError) as error:
        where = ""
        if isinstance(error, ValidationError):
            where = ": " + (".".join(map(str, error.errors()[0]["loc"])) or "not JSON")
        raise InputError(f"{folder / SHAPES} is not a shape file{where}") from None
    if shapes.format != 1:
        raise InputError(f"{folder / SHAPES} is of format {shapes.format}; this version reads 1")
    try:
        with safe_open(folder / WEIGHTS, framework="pt") as opened:
            small = {name: opened.get_tensor(name) for name in opened.keys()}
    except OSError as error:
        raise InputError(f"{folder / WEIGHTS} cannot be read: {error}") from None
    except SafetensorError as error:
        raise InputError(f"{folder / WEIGHTS} is damaged: {error}") from None
    if digest(small) != shapes.digest:
        raise InputError(
            f"{folder / WEIGHTS} does not hold the tensors that {SHAPES} was written for",
            help="the two files belong together: export them again",
        )
    return shapes, small
