"""Time the network of a run or of an exported folder.

In:   a run folder, or an exported file or folder.
Out:  BenchReport; bench.json in a run folder.
Not:  the engines (engines.py) and the clock (measure.py).
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from itertools import islice
from pathlib import Path

import torch

from dcil_dsl.diagnostics import InputError
from dcil_dsl.diagnostics.counting import count
from dcil_dsl.exporting.exporters import EXPORTERS, exporter_for
from dcil_dsl.extras.bench.engines import CALIBRATION, ENGINES, write_calibration
from dcil_dsl.extras.bench.exported import engines_for, timed_format
from dcil_dsl.extras.bench.measure import BenchReport, bench_folder, check_settings
from dcil_dsl.extras.cpu.export import write
from dcil_dsl.extras.cpu.program import read_program
from dcil_dsl.extras.sensitivity.job import evenly_spaced
from dcil_dsl.jobs.data import make_loader, open_data
from dcil_dsl.jobs.example import example_of
from dcil_dsl.jobs.export import read_deployed
from dcil_dsl.jobs.inspect import stored_data
from dcil_dsl.model.inputs import Inputs
from dcil_dsl.training.run import RunFolder, open_run, read_command


def bench_run(
    place: str | Path,
    engines: Sequence[str] | None = None,
    batches: Sequence[int] = (1, 16),
    threads: Sequence[int] = (1,),
    rounds: int = 15,
    *,
    model: str | None = None,
    path: str | None = None,
    data: str | None = None,
    directory: str | Path | None = None,
    tell: Callable[[str], None] = lambda text: None,
    anyway: bool = False,
) -> BenchReport:
    """Time a network, and write bench.json where `place` is a run folder.

    engines          None: all, of an exported file those that read it
    model, path, anyway  as for `dcil export`
    data, directory  the data that int8 is calibrated on, as for `dcil eval`; default: those of the
                     run. Where there are none, int8 is calibrated on noise.

    InputError for settings that mean nothing and a network that cannot be exported.
    """
    check_settings(tuple(ENGINES) if engines is None else engines, batches, threads, rounds)
    place = Path(place)
    is_timed = place.exists() and timed_format(place) is not None
    if is_timed or EXPORTERS["cpu"].format.recognises(place):
        if path is not None or model is not None or data is not None or directory is not None:
            raise InputError(f"{place} is exported: --model, --path and data are of runs")
        if is_timed:
            exporter_for(place).read(place)  # refuses a damaged file here, once
            named = engines_for(place) if engines is None else engines
            report = bench_folder(place, named, batches, threads, rounds)
            return replace(report, calibration="what its export says")
        named = tuple(ENGINES) if engines is None else engines
        return bench_folder(place, named, batches, threads, rounds)
    if place.suffix == ".pt2" and place.is_file():
        raise InputError(
            f"{place} is not timed as it is: torch.export.load evaluates expressions of a file",
            help="time its run with --engines torch-export",
        )
    engines = tuple(ENGINES) if engines is None else engines
    is_run = place.is_dir()
    if is_run and not (place / "plan.json").exists():
        raise InputError(
            f"{place} is neither a run folder nor one that `dcil export --to cpu` wrote"
        )
    deployed = read_deployed(place, model, path, anyway)
    with tempfile.TemporaryDirectory(prefix="dcil-bench-") as name:
        folder, examples = Path(name) / "cpu", Path(name) / "examples.safetensors"
        write(deployed.network, example_of(deployed, batch=2), folder)
        told = "noise"
        if is_run and any("int8" in engine for engine in engines):
            try:
                run = open_run(place)
                number = write_calibration(
                    read_program(folder), _batches(run, data, directory, max(batches)), examples
                )
                told = f"{count(number, 'training example')} of the run"
            except InputError as error:
                tell(f"int8 is calibrated on noise: {error.message}")
        calibration = examples if examples.exists() else None
        report = bench_folder(folder, engines, batches, threads, rounds, calibration)
    report = replace(report, calibration=told)
    if is_run:
        report.write(place)
    return report


def _batches(
    run: RunFolder, data: str | None, directory: str | Path | None, most: int
) -> Iterator[Inputs]:
    """Training examples as the network is evaluated on them, as many as calibration reads."""
    plan, command = run.read_plan(), read_command(run)
    named = stored_data(run, command["data"]) if data is None else data
    dataset = open_data(
        named, directory or command["directory"], plan.data.channels, plan.data.length
    )
    number = min(CALIBRATION * most, len(dataset.train))
    dataset = replace(dataset, val=evenly_spaced(dataset.train, number))
    loader = make_loader(plan, dataset, "val", torch.device("cpu"), 0)
    try:
        for batch in islice(loader.epoch(0), loader.num_batches):
            yield loader.task.inputs(batch)
    finally:
        loader.close()
