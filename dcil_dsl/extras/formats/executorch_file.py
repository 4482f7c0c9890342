"""The format `executorch`: a folder with a .pte file for ExecuTorch's XNNPACK backend, in float32.

In:   a Deployed network.
Out:  network.pte, compared with the network in ExecuTorch's runtime; program.pt2.
Not:  no other backend; the Arm NPUs are in ethos_u.py.

A .pte file has one batch size, here one example: its memory is planned when it is written.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.export import ExportedProgram

from dcil_dsl.diagnostics import InputError
from dcil_dsl.exporting.artefact import Deployed
from dcil_dsl.extras.formats.graph import (
    compare,
    fact_of,
    flat,
    quiet,
    read_names,
    refuse_uncounted,
    tensors_of,
    trace_for_export,
)
from dcil_dsl.extras.formats.lowered import LoweredFile, LoweredFolder, save_lowered
from dcil_dsl.model.inputs import Inputs


class ExecuTorch(LoweredFolder):
    """A folder of program.pt2 and network.pte."""

    def write(self, deployed: Deployed, place: Path) -> str:
        with quiet():
            from executorch.backends.xnnpack.partition import xnnpack_partitioner
        traced = trace_for_export(deployed, batch=1)
        program = traced.program
        refuse_uncounted(deployed, program.state_dict)
        data, taken = lower(program, xnnpack_partitioner.XnnpackPartitioner(), deployed.source)
        found = compare(deployed, traced.inputs, runner(data, deployed.source), is_free=False)
        save_lowered(LoweredFile(program, read_names(program), data), deployed, place)
        return f"{found.report('ExecuTorch')}\n{taken} in XNNPACK"


def lower(
    program: ExportedProgram, partitioner: Any, source: str, **config: Any
) -> tuple[bytes, str]:
    """The bytes of a .pte file, and how many operations of the graph the device runs."""
    from executorch.exir import (
        EdgeCompileConfig,
        ExecutorchBackendConfig,
        to_edge_transform_and_lower,
    )

    with quiet():
        try:
            edge = to_edge_transform_and_lower(
                copy.deepcopy(program),
                partitioner=[partitioner],
                compile_config=EdgeCompileConfig(_check_ir_validity=False),
            )
            left = sum(
                node.op == "call_function" and "executorch_call_delegate" not in str(node.target)
                for node in edge.exported_program().graph.nodes
                if "getitem" not in str(node.target)
            )
            lowered = edge.to_executorch(config=ExecutorchBackendConfig(**config))
        except Exception as error:  # of many types
            raise InputError(f"ExecuTorch cannot lower {source}: {fact_of(error)}") from None
    return bytes(lowered.buffer), f"all operations but {left} run" if left else "all operations run"


def runner(data: bytes, source: str) -> Callable[[Inputs], list[Tensor]]:
    """A function that runs a .pte file in ExecuTorch's runtime."""
    from executorch.runtime import Runtime

    try:
        program = Runtime.get().load_program(data)
        method = program.load_method("forward")
    except Exception as error:  # of many types
        raise InputError(
            f"ExecuTorch cannot load the export of {source}: {fact_of(error)}"
        ) from None

    def run(given: Inputs) -> list[Tensor]:
        assert program is not None  # the method reads its memory, and does not keep it
        outputs = tensors_of(method.execute([tensor.contiguous() for tensor in flat(given)]))
        return [torch.clone(output) for output in outputs]

    return run
