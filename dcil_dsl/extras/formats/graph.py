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
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.export import Dim, ExportedProgram
from torch.utils import _pytree as pytree

from dcil_dsl.diagnostics import InputError
from dcil_dsl.exporting.artefact import Deployed
from dcil_dsl.jobs.example import example_of
from dcil_dsl.model.copies import copy_module
from dcil_dsl.model.inputs import Inputs, resized
from dcil_dsl.training.files import write_atomically

TOLERANCE = 1e-4  # of outputs in float32, relative to 1 + the largest of them


def trace_for_export(
    deployed: Deployed, batch: int | None = None
) -> tuple[ExportedProgram, Inputs]:
    """The program of the network in eval mode.

    batch  the only batch size; None: any, where the network lets it be free

    InputError where torch.export cannot trace the network.
    """
    model = copy_module(deployed.network).cpu().eval()
    inputs = example_of(deployed, batch or 2)
    free = pytree.tree_map(
        lambda leaf: {0: Dim.AUTO} if _has_batch(leaf) else None, inputs.kwargs or inputs.args
    )
    with quiet():
        try:
            program = torch.export.export(
                model,
                inputs.args,
                inputs.kwargs,
                dynamic_shapes=None if batch or (inputs.args and inputs.kwargs) else free,
            )
        except Exception as error:  # of many types
            fact = " ".join(str(error).split())[:200]
            raise InputError(
                f"torch.export cannot trace {deployed.source}: {type(error).__name__}: {fact}"
            ) from None
    return program, inputs


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


def has_free_batch(program: ExportedProgram) -> bool:
    """Whether every input takes any number of examples."""
    names = set(program.graph_signature.user_inputs)
    values = [node.meta.get("val") for node in program.graph.nodes if node.name in names]
    tensors = [value for value in values if isinstance(value, Tensor) and value.dim()]
    return bool(tensors) and all(not isinstance(value.shape[0], int) for value in tensors)


def batch_report(inputs: Inputs, free_batch: bool) -> str:
    return f"batch size: {'any' if free_batch else f'{inputs.batch_size()} alone'}"


@torch.no_grad()
def largest_difference(
    deployed: Deployed,
    inputs: Inputs,
    run: Callable[[Inputs], list[Tensor]],
    free_batch: bool,
    tolerance: float | None = TOLERANCE,
) -> float:
    """max |exported - network| / (1 + max |network|) over the outputs for two batch sizes.

    InputError where it is above the tolerance, or the outputs have other shapes.
    """
    model = copy_module(deployed.network).cpu().eval()
    worst = 0.0
    for example in [inputs, *([resized(inputs, 3)] if free_batch else [])]:
        expected = tensors_of(model(*example.args, **example.kwargs))
        found = run(example)
        if [tuple(t.shape) for t in expected] != [tuple(t.shape) for t in found]:
            raise InputError(f"the export of {deployed.source} has outputs of other shapes")
        for one, other in zip(expected, found, strict=True):
            worst = max(worst, distance(one, other))
    if tolerance is not None and not worst <= tolerance:
        raise InputError(
            f"the export of {deployed.source} differs from the network by {worst:.1e}, relative "
            f"to 1 + the largest output; {tolerance:.0e} is allowed"
        )
    return worst


def distance(expected: Tensor, found: Tensor) -> float:
    """Relative to 1 + the largest expected number; infinite where one is not finite."""
    if not expected.numel():
        return 0.0
    expected, found = expected.double(), found.double()
    difference = float((expected - found).abs().max()) / (1 + float(expected.abs().max()))
    return difference if difference == difference else float("inf")


def tensors_of(outputs: object) -> list[Tensor]:
    return [leaf for leaf in pytree.tree_leaves(outputs) if isinstance(leaf, Tensor)]


def flat(inputs: Inputs) -> list[Tensor]:
    """The tensors of a call, in the order of the program's inputs."""
    return tensors_of((inputs.args, inputs.kwargs))


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
