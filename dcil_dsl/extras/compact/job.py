"""A run or an exported file made smaller, from Python.

In:   a run folder, or an exported file of a model that can be built.
Out:  the folder of the format `compact`; the network, measured.
Not:  what `dcil export --to compact` prints is the format's own (exporter.py).
"""

from __future__ import annotations

from pathlib import Path

from torch import nn

from dcil_dsl.exporting.exporters import EXPORTERS
from dcil_dsl.extras.compact.compaction import Compacted
from dcil_dsl.extras.compact.exporter import write_compact
from dcil_dsl.extras.compact.report import Measured
from dcil_dsl.jobs.export import place_of, read_deployed


def compact_run(
    run: str | Path,
    out: str | Path | None = None,
    model: str | nn.Module | None = None,
    path: str | None = None,
    anyway: bool = False,
) -> tuple[Path, Compacted, Measured]:
    """Remove what is dead from the deployed network of a run, or of an exported file.

    out     the folder; else `compact` in the run folder or next to the file, `compact-NAME` where
            exported files of other names lie next to it
    model   a SPEC, or a module, which is not changed; needed where it is not from a library
    path    another path of the run than the deployed one
    anyway  accept a model whose forward is not the one that was trained

    Raises InputError; nothing is written where the two networks differ.
    """
    folder = place_of(run, EXPORTERS["compact"], out, path)
    return folder, *write_compact(read_deployed(run, model, path, anyway), folder)
