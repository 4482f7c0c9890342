"""The formats `ethos-u55`, `ethos-u65` and `ethos-u85`: int8 for the NPUs of Arm's Ethos-U family.

In:   a Deployed network that came from a run folder.
Out:  network.pte, with the command and weight streams of Arm's compiler Vela; program.pt2, the
      quantised program; Vela's report of the weights and cycles, next to that of no zeros.
Not:  nothing runs on an NPU: the cycles are Vela's estimate.

Arm's quantizer makes weights symmetric, one scale for each output channel: the code of 0 is 0.
"""

from __future__ import annotations

import copy
import csv
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, fx
from torch.export import ExportedProgram

from dcil_dsl.diagnostics import InputError
from dcil_dsl.exporting.artefact import Deployed
from dcil_dsl.extras.formats.calibrate import RunData, open_run_data, report_int8, run_of
from dcil_dsl.extras.formats.executorch_file import lower
from dcil_dsl.extras.formats.graph import (
    quiet,
    read_names,
    refuse_uncounted,
    tensors_of,
    trace_for_export,
)
from dcil_dsl.extras.formats.lowered import LoweredFile, LoweredFolder, save_lowered
from dcil_dsl.model.copies import copy_module
from dcil_dsl.model.inputs import Inputs
from dcil_dsl.plan.text import table


@dataclass(frozen=True)
class VelaReport:
    """One line of Vela's summary: bytes of weights, estimated cycles of one example.

    npu_cycles    of the arithmetic alone
    total_cycles  with the waits for memory
    """

    weights: float
    encoded: float
    npu_cycles: float
    total_cycles: float


class EthosU85(LoweredFolder):
    """A folder of program.pt2 and network.pte."""

    target, system, memory = "ethos-u85-128", "Ethos_U85_SYS_Flash_High", "Shared_Sram"

    def recognises(self, place: Path) -> bool:
        return False  # `executorch` reads these folders too

    def write(self, deployed: Deployed, place: Path) -> str:
        with quiet():  # before anything takes its time
            import ethosu.vela  # noqa: F401
            import executorch.backends.arm.ethosu  # noqa: F401

        run_of(deployed)
        traced = trace_for_export(deployed, batch=1)
        program, inputs = traced.program, traced.inputs
        data = open_run_data(deployed, 1)
        try:
            coded, weights = self._quantise(program, data)
            refuse_uncounted(deployed, weights)
            _check_zeros(deployed, coded, weights)
            report = _report(deployed, inputs, coded, data)
        finally:
            data.close()
        again = torch.export.export(coded, inputs.args, inputs.kwargs)
        lowered, taken, sparse = self._lower(again, deployed)
        _, _, dense = self._lower(_without_zeros(again), deployed)
        save_lowered(LoweredFile(again, weights, lowered), deployed, place)
        return "\n".join(
            [
                *report,
                f"{taken} on the NPU; batch size: 1 alone",
                f"Vela for {self.target}, {self.system}, {self.memory}:",
                *show_vela(dense, sparse),
                "dense: every zero replaced by another weight of its layer",
            ]
        )

    def _spec(self, folder: Path | None = None) -> Any:
        from executorch.backends.arm.ethosu import EthosUCompileSpec

        spec = EthosUCompileSpec(self.target, self.system, self.memory)
        return spec if folder is None else spec.dump_intermediate_artifacts_to(str(folder))

    def _quantise(
        self, program: ExportedProgram, data: RunData
    ) -> tuple[fx.GraphModule, dict[str, str]]:
        """The program in int8, and where the weights of the network lie in it."""
        from executorch.backends.arm.quantizer import (
            EthosUQuantizer,
            get_symmetric_quantization_config,
        )
        from torchao.quantization.pt2e.quantize_pt2e import convert_pt2e, prepare_pt2e

        quantizer = EthosUQuantizer(self._spec())
        quantizer.set_global(get_symmetric_quantization_config())
        with quiet(), torch.no_grad():
            module = program.module(check_guards=False)
            readers = _readers(module)
            names = read_names(program)
            watched = prepare_pt2e(module, quantizer)
            for batch in data.calibration():
                watched(*batch.args, **batch.kwargs)
            coded = convert_pt2e(watched)
        codes = _codes(coded, readers)
        return coded, {name: codes[read] for name, read in names.items() if read in codes}

    def _lower(self, program: ExportedProgram, deployed: Deployed) -> tuple[bytes, str, VelaReport]:
        from executorch.backends.arm.ethosu import EthosUPartitioner

        with tempfile.TemporaryDirectory() as name, quiet():
            spec = self._spec(Path(name))
            data, taken = lower(
                program, EthosUPartitioner(spec), deployed.source, extract_delegate_segments=False
            )
            return data, taken, _summary(Path(name), deployed)


class EthosU65(EthosU85):
    """The same for Ethos-U65."""

    target, system, memory = "ethos-u65-256", "Ethos_U65_High_End", "Dedicated_Sram_384KB"


class EthosU55(EthosU85):
    """The same for Ethos-U55."""

    target, system, memory = "ethos-u55-128", "Ethos_U55_High_End_Embedded", "Shared_Sram"


Readers = dict[str, tuple[str, int]]  # a weight -> the call that reads it, and which argument


def _readers(module: fx.GraphModule) -> Readers:
    return {
        str(argument.target): (node.name, at)
        for node in module.graph.nodes
        for at, argument in enumerate(node.args)
        if isinstance(argument, fx.Node) and argument.op == "get_attr"
    }


def _codes(coded: fx.GraphModule, readers: Readers) -> dict[str, str]:
    """The weights -> the tensors of codes in their place, behind the call that dequantizes them."""
    calls = {node.name: node for node in coded.graph.nodes}
    found = {}
    for name, (call, at) in readers.items():
        source = calls[call].args[at] if call in calls and at < len(calls[call].args) else None
        if isinstance(source, fx.Node) and "dequantize_per" in str(source.target):
            source = source.args[0]
        if isinstance(source, fx.Node) and source.op == "get_attr":
            found[name] = str(source.target)
    return found


def _check_zeros(deployed: Deployed, coded: fx.GraphModule, weights: dict[str, str]) -> None:
    """InputError where a zero of the network is not the code of 0."""
    buffers = dict(coded.named_buffers()) | dict(coded.named_parameters())
    for name, tensor in deployed.tensors().items():
        codes = buffers.get(weights.get(name, ""))
        if codes is None or tensor.dim() < 2:
            continue
        revived = int((codes[tensor == 0] != 0).sum()) if codes.shape == tensor.shape else -1
        if revived:
            raise InputError(f"the zeros of `{name}` would not be the code of zero in int8")


def _report(deployed: Deployed, inputs: Inputs, coded: fx.GraphModule, data: RunData) -> list[str]:
    network = copy_module(deployed.network).cpu().eval()

    @torch.no_grad()
    def exact(given: Inputs) -> list[Tensor]:
        return tensors_of(network(*given.args, **given.kwargs))

    @torch.no_grad()
    def rounded(given: Inputs) -> list[Tensor]:
        return tensors_of(coded(*given.args, **given.kwargs))

    return report_int8(deployed, inputs, data, exact, rounded, is_free=False)


def _without_zeros(program: ExportedProgram) -> ExportedProgram:
    """The program with every zero code replaced by another code of its tensor, drawn at random."""
    dense = copy.deepcopy(program)
    generator = torch.Generator().manual_seed(0)
    for tensor in dense.state_dict.values():
        kept = tensor[tensor != 0]
        if tensor.dtype == torch.int8 and len(kept):
            zeros = tensor == 0
            drawn = torch.randint(len(kept), (int(zeros.sum()),), generator=generator)
            tensor[zeros] = kept[drawn]
    return dense


def _summary(folder: Path, deployed: Deployed) -> VelaReport:
    """Vela's own summary, a line of a CSV for each part of the network that the NPU runs."""
    files = sorted(folder.rglob("*summary*.csv"))
    if not files:
        raise InputError(f"the NPU runs no part of {deployed.source}: Vela compiled nothing")
    names = {
        "weights": "total_original_weights",
        "encoded": "total_npu_encoded_weights",
        "npu_cycles": "cycles_npu",
        "total_cycles": "cycles_total",
    }
    sums = dict.fromkeys(names, 0.0)
    for file in files:
        for row in csv.DictReader(file.read_text().splitlines()):
            for key, column in names.items():
                sums[key] += float(row[column])
    return VelaReport(**sums)


def show_vela(dense: VelaReport, sparse: VelaReport) -> list[str]:
    """Both reports as a table."""
    header = ("", "weights", "encoded weights", "NPU cycles", "total cycles")
    rows = [
        (
            name,
            f"{one.weights / 1024:,.1f} KiB",
            f"{one.encoded / 1024:,.1f} KiB",
            f"{one.npu_cycles:,.0f}",
            f"{one.total_cycles:,.0f}",
        )
        for name, one in (("dense", dense), ("sparse", sparse))
    ]
    return list(table(header, rows, "lrrrr"))
