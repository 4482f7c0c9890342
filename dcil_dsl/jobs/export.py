"""Export the network of a run, or of an exported file, in one of the EXPORTERS.

In:   a run folder or an exported file, and the name of a format.
Out:  the file or folder, proved before it is written.
Not:  nothing of the run itself is replaced, but its own file by an equal one.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from pathlib import Path

from torch import nn

from dcil_dsl.compiler import trace_for
from dcil_dsl.compiler.collapse import collapse
from dcil_dsl.diagnostics import InputError
from dcil_dsl.exporting.artefact import Deployed, origin_of, schedule_notes
from dcil_dsl.exporting.checkpoint_tensors import MAX_TOLD
from dcil_dsl.exporting.exporters import EXPORTERS, Exporter, exporter_for, exporter_of
from dcil_dsl.exporting.verify import verify_tensors
from dcil_dsl.jobs.inspect import folder_of, known_path, rebuild
from dcil_dsl.jobs.prepare import Note, no_note
from dcil_dsl.model.trace import text_of
from dcil_dsl.training.checkpoint_files import previous_of
from dcil_dsl.training.run import RunFolder, check_model, open_run
from dcil_dsl.training.sparsity import SparsityError
from dcil_dsl.zoo import network_of


def export_run(
    run: str | Path,
    format: str,
    out: str | Path | None = None,
    model: str | nn.Module | None = None,
    path: str | None = None,
    tell: Callable[[str], None] = lambda text: None,
    anyway: bool = False,
    note: Note = no_note,
) -> Path:
    """Write the network of a run, or of an exported file, in another format; returns its place.

    format  a name of EXPORTERS
    out     the file or folder; else in the run folder, or next to the exported file
    model   a SPEC, or a module, which is not changed; needed where the model is not from a
            library
    path    another path of the run than the deployed one
    tell    called with what the format reports of its work, if anything
    anyway  accept a model whose forward is not the one that was trained
    note    called with what the schedules ask so far, of a run before its end

    Raises InputError, and SparsityError where the network does not hold its promise.
    """
    exporter = exporter_of(format)
    place = place_of(run, exporter, out, path)
    deployed = read_deployed(run, model, path, anyway)
    if deployed.origin is not None:
        verdict = verify_tensors(deployed.network.state_dict(), deployed.origin.promises)
        if not verdict.holds:
            faults = "; ".join(verdict.faults[:MAX_TOLD])
            raise SparsityError(f"path `{deployed.origin.path}` of {run} is not exported: {faults}")
        promises, step = deployed.origin.promises, deployed.origin.step
        for line in schedule_notes(promises, step, deployed.plan):
            note(line)
    report = exporter.write(deployed, place)
    if report:
        tell(report)
    return place


def read_deployed(
    run: str | Path,
    model: str | nn.Module | None = None,
    path: str | None = None,
    anyway: bool = False,
) -> Deployed:
    """The network that a run deploys on `path`, or that an exported file holds.

    anyway  accept a model whose forward is not the one that was trained
    """
    if Path(run).is_file():
        return _of_file(Path(run), model, anyway)
    folder = open_run(run)
    plan = folder.read_plan()
    path = known_path(plan, path)
    dual, at = rebuild(folder, plan, model, anyway=anyway)
    step = at.step
    origin = origin_of(plan.model_copy(update={"deploy": path}), step)
    return Deployed(collapse(dual, path), origin, plan, str(run))


def place_of(run: str | Path, exporter: Exporter, out: str | Path | None, path: str | None) -> Path:
    """Where an export goes. InputError where it would replace a file of a run, or what is given."""
    given = Path(run)
    if given.is_file():
        if path is not None:
            raise InputError(f"--path {path}: a file holds one path", help="name a run folder")
        place = _next_to(given, exporter) if out is None else Path(out)
        _refuse_to_replace(place, None, False)
        if place.absolute() == given.absolute():
            raise InputError(f"{place} is the file that is read", help="name another with --out")
        return place
    folder = open_run(given)
    plan = folder.read_plan()
    path = known_path(plan, path)
    is_deployed = path == plan.deploy
    name = f"{path}{exporter.suffix}"
    if exporter.is_folder:
        name = exporter.name if is_deployed else f"{exporter.name}-{path}"
    place = folder.path / name if out is None else Path(out)
    _refuse_to_replace(place, folder, is_deployed)
    return place


def _next_to(file: Path, exporter: Exporter) -> Path:
    """A folder never takes the name that one of a neighbouring file would take."""
    if not exporter.is_folder:
        return file.with_suffix(exporter.suffix)
    suffixes = {own.ending for own in EXPORTERS.values() if not own.is_folder}
    files = [near for near in file.parent.glob("*") if near.suffix in suffixes]
    alone = all(near.stem == file.stem for near in files)
    return file.parent / (exporter.name if alone else f"{exporter.name}-{file.stem}")


def _refuse_to_replace(file: Path, folder: RunFolder | None, is_deployed: bool) -> None:
    """InputError where an export would take the place of a file that a run wrote for itself."""
    lies_in = folder_of(file)
    if lies_in is None:
        return
    own = (lies_in.weights, lies_in.checkpoint, previous_of(lies_in.checkpoint))
    if file.absolute() not in [path.absolute() for path in own]:
        return
    is_same = folder is not None and lies_in.path.resolve() == folder.path.resolve()
    if not (is_same and is_deployed and file.name == lies_in.weights.name):
        raise InputError(
            f"{file} is a file of the run in {lies_in.path}, and would be another one",
            help="name another file with --out",
        )


def _of_file(file: Path, model: str | nn.Module | None, anyway: bool) -> Deployed:
    """The model of an exported file, as its header says or the run that it lies in."""
    read, run = exporter_for(file).read(file), folder_of(file)
    named = None if read.origin is None else read.origin.model
    plan = None if run is None else run.read_plan()
    if plan is not None and named not in (None, plan.model):
        plan = None  # it came from another run
    if named is None and plan is not None:
        named = plan.model
    name, classes, options = (
        (None, None, {}) if named is None else (named.name, named.classes, named.options)
    )
    network = network_of(model, name, classes, options, file)
    if network is model:
        network = copy.deepcopy(network)
    try:
        network.load_state_dict(read.tensors, strict=True)
    except RuntimeError as error:
        lines = str(error).strip().splitlines()
        fact = " ".join(lines[1 if len(lines) > 1 else 0].split())
        given = name if model is None else model if isinstance(model, str) else type(model).__name__
        raise InputError(f"{file} does not fit {given}: {fact[:200]}") from None
    if run is not None and plan is not None and not anyway:
        check_model(run, text_of(trace_for(plan, network)))
    return Deployed(network, read.origin, plan, str(file))
