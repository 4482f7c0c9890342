"""The formats of exported networks, one record each: `EXPORTERS`.

In:   the name of a format, or a file or folder of one.
Out:  its Exporter, which writes, reads and verifies.
Not:  no format is imported before it is used, so that the command line names all of them without
      torch, and core names those of extras without importing them.

To add a format, write a class with the methods of Format and add its record to the table.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from importlib import import_module
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Protocol

from dcil_dsl.diagnostics import InputError

if TYPE_CHECKING:
    from dcil_dsl.exporting.artefact import Artefact, Deployed


class Format(Protocol):
    """What an exporter's class does."""

    def write(self, deployed: Deployed, place: Path) -> str:
        """Write the network to `place`. Returns the text that the command line prints.

        InputError where nothing can be written.
        """
        ...

    def recognises(self, place: Path) -> bool:
        """Whether the file or folder claims to have this format; does not read it."""
        ...

    def read(self, place: Path) -> Artefact:
        """The tensors under the original model's names. InputError for a damaged file."""
        ...

    def verify(self, artefact: Artefact) -> list[str]:
        """Faults that the zeros of the tensors do not show."""
        ...


@dataclass(frozen=True)
class Exporter:
    """One format.

    help    what the format is for, a phrase
    at      "module:class", imported at the first use
    suffix  of the files that it names, ".onnx" or ".int8.onnx"; "" where the format is a folder
    extra   the extra of `pip install 'dcil-dsl[...]'` that it needs, if any
    """

    name: str
    help: str
    at: str
    suffix: str = ""
    extra: str | None = None

    @property
    def is_folder(self) -> bool:
        return not self.suffix

    @property
    def ending(self) -> str:
        """The last part of the suffix, which every file of the format has."""
        return f".{self.suffix.rpartition('.')[2]}" if self.suffix else ""

    @cached_property
    def format(self) -> Format:
        """Its module imports no library of the extra: `recognise` asks every format."""
        module, _, name = self.at.partition(":")
        made: Format = getattr(import_module(module), name)()
        return made

    @contextmanager
    def _libraries(self) -> Iterator[None]:
        """InputError where a library of the extra is missing."""
        try:
            yield
        except ModuleNotFoundError as error:
            if self.extra is None:
                raise
            raise InputError(
                f"the format `{self.name}` needs the library `{error.name}`",
                help=f"pip install 'dcil-dsl[{self.extra}]'",
            ) from None

    def write(self, deployed: Deployed, place: Path) -> str:
        """Format.write. InputError where a file is in the place of the folder, or the reverse."""
        if self.is_folder and place.exists() and not place.is_dir():
            raise InputError(f"{place} is a file", help="name a folder with --out")
        if self.is_folder and (place / "plan.json").exists():
            raise InputError(f"{place} is a run folder", help="name another folder with --out")
        if not self.is_folder and place.suffix != self.ending:
            raise InputError(f"{place} does not end in {self.ending}")
        with self._libraries():
            return self.format.write(deployed, place)

    def read(self, place: Path) -> Artefact:
        with self._libraries():
            return self.format.read(place)

    def verify(self, artefact: Artefact) -> list[str]:
        with self._libraries():
            return self.format.verify(artefact)


EXPORTERS: Mapping[str, Exporter] = MappingProxyType(
    {
        exporter.name: exporter
        for exporter in (
            Exporter(
                "safetensors",
                "tensors under the original model's names, and a header that says what they hold",
                at="dcil_dsl.exporting.files:Safetensors",
                suffix=".safetensors",
            ),
            Exporter(
                "pth",
                "a state dict of PyTorch, which says nothing about itself",
                at="dcil_dsl.exporting.files:Pth",
                suffix=".pth",
            ),
            Exporter(
                "compact",
                "a folder with a smaller network: filters, channels and heads that are all zero "
                "leave it",
                at="dcil_dsl.extras.compact.exporter:Compact",
            ),
            Exporter(
                "cpu",
                "a folder for `dcil.load_cpu`, which runs the network on a CPU without its zeros",
                at="dcil_dsl.extras.cpu.exporter:Cpu",
            ),
            *(
                Exporter(
                    name,
                    f"the smallest file: bit masks and kept values, compressed; {what}",
                    at=f"dcil_dsl.extras.formats.packed:{kind}",
                    suffix=suffix,
                    extra="packed",
                )
                for name, what, kind, suffix in (
                    ("packed", "bit-exact", "Packed", ".packed"),
                    ("packed-fp16", "weights in float16", "PackedHalf", ".fp16.packed"),
                    ("packed-bf16", "weights in bfloat16", "PackedBrain", ".bf16.packed"),
                )
            ),
            Exporter(
                "torch-export",
                "a file for torch.export.load: the traced network with its weights",
                at="dcil_dsl.extras.formats.torch_export:TorchExport",
                suffix=".pt2",
            ),
            Exporter(
                "onnx",
                "a file for ONNX Runtime and others, in float32",
                at="dcil_dsl.extras.formats.onnx_file:Onnx",
                suffix=".onnx",
                extra="onnx",
            ),
            Exporter(
                "onnx-int8",
                "the same in int8, calibrated on the run's data; a zero stays a zero",
                at="dcil_dsl.extras.formats.onnx_int8:OnnxInt8",
                suffix=".int8.onnx",
                extra="onnx",
            ),
            Exporter(
                "openvino",
                "a folder for OpenVINO, in float32",
                at="dcil_dsl.extras.formats.openvino_ir:OpenVino",
                extra="openvino",
            ),
            Exporter(
                "openvino-int8",
                "the same in int8, calibrated on the run's data; a zero stays a zero",
                at="dcil_dsl.extras.formats.openvino_ir:OpenVinoInt8",
                extra="openvino",
            ),
            Exporter(
                "executorch",
                "a folder with a .pte file for ExecuTorch with XNNPACK, in float32",
                at="dcil_dsl.extras.formats.executorch_file:ExecuTorch",
                extra="executorch",
            ),
            *(
                Exporter(
                    f"ethos-u{size}",
                    f"a folder with a .pte file for Arm's NPU Ethos-U{size}, in int8, and Vela's "
                    "report",
                    at=f"dcil_dsl.extras.formats.ethos_u:EthosU{size}",
                    extra="ethos-u",
                )
                for size in (55, 65, 85)
            ),
        )
    }
)


def exporter_of(name: str) -> Exporter:
    """The format of this name. InputError where there is none."""
    if name not in EXPORTERS:
        raise InputError(
            f"there is no format `{name}`", help=f"the formats are {', '.join(EXPORTERS)}"
        )
    return EXPORTERS[name]


def recognise(place: Path) -> Exporter | None:
    """The format that a file or folder claims to have."""
    kinds = [e for e in EXPORTERS.values() if e.is_folder == place.is_dir()]
    return next((e for e in kinds if e.format.recognises(place)), None)


def exporter_for(place: Path) -> Exporter:
    """The format of an exported file or folder. InputError if it is missing or of no format."""
    if not place.exists():
        raise InputError(f"there is no file {place}", help=f"looked at {place.absolute()}")
    if not place.is_file() and not place.is_dir():  # opening a pipe waits for its writer
        raise InputError(f"{place} is not a regular file")
    found = recognise(place)
    if found is None:
        raise InputError(
            f"{place} is not an exported {'folder' if place.is_dir() else 'file'}",
            help=f"the formats are {', '.join(EXPORTERS)}",
        )
    return found
