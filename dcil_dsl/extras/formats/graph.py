"""What the formats of other engines share: the traced network, and its proof.

In:   a Deployed network.
Out:  its torch.export program with a free batch size; the difference of outputs to the network's.
Not:  no format.
"""

from __future__ import annotations

import io
import logging
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, redirect_stdout
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.export import Dim, ExportedProgram
from torch.utils import _pytree as pytree

from dcil_dsl.diagnostics import InputError
from dcil_dsl.exporting.artefact import Deployed
from dcil_dsl.jobs.example import example_of
from dcil_dsl.model.copies import copy_module
from dcil_dsl.model.inputs import Inputs
from dcil_dsl.training.files import write_atomically

TOLERANCE = 1e-4  # of outputs in float32, relative to the largest of them
ROUNDINGS = 20  # times the difference between float32 and float64, where that is more
MOST = 0.01  # a network that draws random numbers differs from itself


@dataclass(frozen=True)
class TracedNetwork:
    """The program of a network in eval mode, the inputs it was traced with, and whether it takes
    any number of examples."""

    program: ExportedProgram
    inputs: Inputs
    is_free: bool


def trace_for_export(deployed: Deployed, batch: int | None = None) -> TracedNetwork:
    """Trace the network.

    batch  the only batch size; None: any, or 1 alone where the network binds it

    InputError where torch.export cannot trace the network.
    """
    model = copy_module(deployed.network).cpu().eval()
    inputs = example_of(deployed, batch or 2)
    is_fixed = batch is not None or bool(inputs.args and inputs.kwargs)
    free = pytree.tree_map(
        lambda leaf: {0: Dim.AUTO} if _has_batch(leaf) else None, inputs.kwargs or inputs.args
    )
    with quiet():
        try:
            program = torch.export.export(
                model, inputs.args, inputs.kwargs, dynamic_shapes=None if is_fixed else free
            )
        except Exception as error:  # of many types
            raise InputError(
                f"torch.export cannot trace {deployed.source}: {fact_of(error)}"
            ) from None
    if batch is not None:
        return TracedNetwork(program, inputs, False)
    if _takes_three(program, deployed):
        return TracedNetwork(program, inputs, True)
    return trace_for_export(deployed, 1)


@torch.no_grad()
def _takes_three(program: ExportedProgram, deployed: Deployed) -> bool:
    """Whether the program takes another batch than that which it was traced with: an `if` on the
    batch size binds it to the sizes of one branch."""
    example = example_of(deployed, 3)
    with quiet():
        try:
            program.module()(*example.args, **example.kwargs)
        except Exception:  # of many types
            return False
    return True


def read_names(program: ExportedProgram) -> dict[str, str]:
    """Each parameter -> the name under which the graph reads it: tied ones share one."""
    named = program.graph_signature.inputs_to_parameters
    read = {named[node.name] for node in program.graph.nodes if node.users and node.name in named}
    of_tensor = {_storage_of(t): n for n, t in program.state_dict.items() if n in read}
    return {
        name: of_tensor.get(_storage_of(tensor), name)
        for name, tensor in program.state_dict.items()
    }


def _storage_of(tensor: Tensor) -> tuple[object, ...]:
    return tensor.data_ptr(), tensor.shape, tensor.stride(), tensor.dtype


def fact_of(error: Exception) -> str:
    """The type and the beginning of what a library raised, in one line."""
    text = " ".join(str(error).split())[:200]
    return f"{type(error).__name__}: {text}" if text else type(error).__name__


def _has_batch(leaf: object) -> bool:
    return isinstance(leaf, Tensor) and leaf.dim() > 0


@contextmanager
def quiet() -> Iterator[None]:
    """Without the warnings and the advice that the tools of engines print and log."""
    level = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        with warnings.catch_warnings(), redirect_stdout(io.StringIO()):
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(level)


@dataclass(frozen=True)
class Comparison:
    """An export next to its network.

    difference  max |export - network| / max |network|, of the worst output
    batches     the batch sizes that the export takes, a phrase
    """

    difference: float
    batches: str

    def report(self, engine: str = "") -> str:
        where = f" in {engine}" if engine else ""
        return f"largest difference{where} {self.difference:.1e}; batch size: {self.batches}"


def compare(
    deployed: Deployed, inputs: Inputs, run: Callable[[Inputs], list[Tensor]], is_free: bool
) -> Comparison:
    """The outputs on random inputs; of a free batch size with three sizes, 1 among them.

    InputError where they differ by more than is allowed, or the export does not run. A network that
    treats one example in a way of its own may have an export for all sizes from 2 on.
    """
    if not is_free:
        return Comparison(_compared(deployed, inputs, run), f"{inputs.batch_size()} alone")
    worst = max(_compared(deployed, batch, run) for batch in (inputs, example_of(deployed, 3)))
    try:
        alone = _compared(deployed, example_of(deployed, 1), run)
    except InputError:
        return Comparison(worst, "any from 2 on")
    return Comparison(max(worst, alone), "any")


def largest_difference(
    deployed: Deployed, inputs: Inputs, run: Callable[[Inputs], list[Tensor]], is_free: bool
) -> float:
    """As Comparison.difference, of an export that is not exact. InputError where it does not run,
    or its outputs have other shapes."""
    examples = [inputs, example_of(deployed, 3)] if is_free else [inputs]
    return max(_difference(deployed, example, run) for example in examples)


def _compared(deployed: Deployed, inputs: Inputs, run: Callable[[Inputs], list[Tensor]]) -> float:
    """The difference. InputError where it is more than is allowed."""
    difference = _difference(deployed, inputs, run)
    if difference <= TOLERANCE:
        return difference
    allowed = max(TOLERANCE, min(ROUNDINGS * _rounding(deployed, inputs), MOST))
    if not difference <= allowed:
        raise InputError(
            f"the export of {deployed.source} differs from the network by {difference:.1e}, "
            f"relative to the largest output; {allowed:.0e} is allowed"
        )
    return difference


@torch.no_grad()
def _rounding(deployed: Deployed, inputs: Inputs) -> float:
    """The difference between float64 and float32 in the network itself; 0 where it has no float64.

    It is large where outputs are small next to what they are computed from.
    """
    wide = copy_module(deployed.network).cpu().eval().double()
    given = inputs.to(torch.float64)
    try:
        exact = [tensor.float() for tensor in tensors_of(wide(*given.args, **given.kwargs))]
        return _difference(deployed, inputs, lambda inputs: exact)
    except Exception:  # of many types
        return 0.0


@torch.no_grad()
def _difference(
    deployed: Deployed,
    inputs: Inputs,
    run: Callable[[Inputs], list[Tensor]],
) -> float:
    model = copy_module(deployed.network).cpu().eval()
    batch = f"a batch of {inputs.batch_size()}"
    expected = tensors_of(model(*inputs.args, **inputs.kwargs))
    try:
        found = run(inputs)
    except InputError:
        raise
    except Exception as error:  # of many types
        raise InputError(
            f"the export of {deployed.source} does not run on {batch}: {fact_of(error)}"
        ) from None
    if [tuple(t.shape) for t in expected] != [tuple(t.shape) for t in found]:
        raise InputError(f"the export of {deployed.source} has outputs of other shapes for {batch}")
    if not any(bool(tensor.isfinite().any()) for tensor in expected):
        raise InputError(
            f"{deployed.source} gives no finite number for random inputs: its export cannot be "
            "compared with it"
        )
    return max(distance(one, other) for one, other in zip(expected, found, strict=True))


def distance(expected: Tensor, found: Tensor) -> float:
    """Relative to the largest expected number; infinite where one of a pair is not finite.

    Where all expected numbers are zero, the distance is the largest found one.
    """
    wide = torch.complex128 if expected.is_complex() or found.is_complex() else torch.float64
    expected, found = expected.to(wide), found.to(wide)
    are_finite = expected.isfinite() & found.isfinite()
    are_equal = (expected == found) | (expected.isnan() & found.isnan())
    if not bool((are_finite | are_equal).all()):
        return float("inf")
    if not bool(are_finite.any()):
        return 0.0
    expected, found = expected[are_finite], found[are_finite]
    return float((expected - found).abs().max()) / (float(expected.abs().max()) or 1.0)


def tensors_of(outputs: object) -> list[Tensor]:
    return [leaf for leaf in pytree.tree_leaves(outputs) if isinstance(leaf, Tensor)]


def flat(inputs: Inputs) -> list[Tensor]:
    """The tensors of a call, in the order of the program's inputs."""
    return tensors_of((inputs.args, inputs.kwargs))


def turned(tensor: Tensor) -> Tensor:
    """The transposed tensor; of one that is not a matrix every side in reverse."""
    return tensor.permute(*reversed(range(tensor.dim()))).contiguous()


def write_bytes(place: Path, data: bytes) -> None:
    """write_atomically for bytes."""
    write_atomically(place, lambda draft: draft.write_bytes(data))


def promised_names(deployed: Deployed) -> list[str]:
    """The weights whose zeros are promised."""
    promises = () if deployed.origin is None else deployed.origin.promises
    return [name for promise in promises for name in promise.parameters]


def refuse_uncounted(deployed: Deployed, found: Mapping[str, Any]) -> None:
    """InputError where a promised weight is not in the export: its zeros could not be proved."""
    missing = [name for name in promised_names(deployed) if name not in found]
    if missing:
        more = f" and {len(missing) - 3} more" if len(missing) > 3 else ""
        raise InputError(
            f"the export of {deployed.source} would hold no tensor `{', '.join(missing[:3])}`"
            f"{more}: another constant has its place, and its zeros could not be counted"
        )


def refuse_broadcast(codes: tuple[int, ...], *parts: tuple[int, ...]) -> None:
    """InputError where scales do not fit the shape of integer weights.

    They would make the weights larger than they are, and than the memory.
    """
    try:
        is_fit = np.broadcast_shapes(codes, *parts) == codes
    except ValueError:
        is_fit = False
    if not is_fit:
        raise InputError(f"scales do not fit an integer weight of shape {list(codes)}")
