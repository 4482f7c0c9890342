"""Evaluate a finished run, and prove the sparsity of what it stores.

In:   a run folder, or a file or folder exported from one.
Out:  accuracies and claims; a Verdict.
Not:  nothing is trained or written; export.py exports.
"""

from __future__ import annotations

import shlex
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

import torch
from torch import Tensor, nn

from dcil_dsl.compiler import compile_plan, trace_for
from dcil_dsl.compiler.collapse import collapse
from dcil_dsl.compiler.dual import Dual
from dcil_dsl.data.dataset import TextSize
from dcil_dsl.data.datasets import known_record
from dcil_dsl.data.sources import is_callable_spec
from dcil_dsl.diagnostics import InputError
from dcil_dsl.diagnostics.optional import require_training
from dcil_dsl.exporting.artefact import (
    Artefact,
    Origin,
    Promise,
    promises_at,
    schedule_notes,
)
from dcil_dsl.exporting.checkpoint_tensors import (
    MAX_TOLD,
    deployed_tensors,
    differences,
    mask_faults,
    other_numbers,
    state_of,
)
from dcil_dsl.exporting.exporters import exporter_for, recognise
from dcil_dsl.exporting.verify import Verdict, verify_tensors
from dcil_dsl.jobs.data import Data, is_convolutional, make_loader, open_data, pick_device
from dcil_dsl.jobs.expect import Claim, judge_claims
from dcil_dsl.jobs.prepare import Note, Warn, no_note, prepare, refuse_texts, warn_in_python
from dcil_dsl.lang.recipe import Recipe
from dcil_dsl.model.digest import digest
from dcil_dsl.model.trace import TraceError, require_module, text_of
from dcil_dsl.plan.plan import Plan
from dcil_dsl.training.checkpoint import load_deployed, read_checkpoint
from dcil_dsl.training.checkpoint_files import Position, newest_of, position_of, previous_of
from dcil_dsl.training.evaluate import check_not_empty, evaluate, outputs_for
from dcil_dsl.training.machine import Options, lay_out_weights
from dcil_dsl.training.run import RunFolder, check_model, open_run, read_command
from dcil_dsl.training.sparsity import SparsityError
from dcil_dsl.training.step import BROKEN
from dcil_dsl.zoo import network_of, stored_spec

Wanted = tuple[tuple[Promise, ...], Mapping[str, Tensor]]


@dataclass(frozen=True)
class Asked:
    """The promises of a recipe at its end for the model of a SPEC, and the tensors of the model.

    Called with the SPEC, the name of the data and the run's plan, each None if unknown. All files
    of a run share one answer.
    """

    recipe: Recipe
    steps_per_epoch: int | None
    warn: Warn
    note: Note
    known: dict[tuple[str, str | None], Wanted] = field(default_factory=dict)

    def __call__(self, spec: str | None, data: str | None, stored: Plan | None) -> Wanted:
        if spec is None:
            raise InputError("the file does not name its model", help="name it with --model SPEC")
        if (spec, data) not in self.known:
            self.known[spec, data] = self._ask(spec, data, stored)
        return self.known[spec, data]

    def _ask(self, spec: str, data: str | None, stored: Plan | None) -> Wanted:
        steps = self.steps_per_epoch
        if steps is None and stored is not None:
            steps = stored.steps_per_epoch
        prepared = prepare(
            self.recipe, spec, warn=self.warn, note=self.note, steps_per_epoch=steps, data=data
        )
        plan = prepared.plan
        return promises_at(plan, plan.num_steps), prepared.traced.model.state_dict()


@dataclass(frozen=True)
class Evaluation:
    """One path of a run on the held-out data.

    accuracy  the metrics of the task by name; shares are fractions
    claims    the lines of `expect`, judged; empty for a path that is not deployed
    step      the updates that the network has had
    broken    the examples, of num_examples, with outputs that are not finite; they count as wrong
    notes     of a run before its end: what its schedules ask so far
    """

    path: str
    accuracy: dict[str, float]
    claims: tuple[Claim, ...]
    step: int
    broken: int = 0
    num_examples: int = 0
    notes: tuple[str, ...] = ()

    @property
    def holds(self) -> bool:
        return not self.broken and all(claim.holds is not False for claim in self.claims)


def evaluate_run(
    run: str | Path,
    *,
    path: str | None = None,
    directory: str | Path | None = None,
    device: str = "auto",
    workers: int | None = None,
    model: str | nn.Module | None = None,
    data: Data | None = None,
    anyway: bool = False,
) -> Evaluation:
    """Rebuild a run's network from its folder and measure it on the held-out data.

    path       the path to measure; None: the deployed one
    directory  the folder of the data; None: where the run had them
    workers    data loader workers; None: automatic
    model      a SPEC, or a module, which is not changed; needed where the model is not from a
               library
    data       needed where code of the user's own made the data of the run
    anyway     accept a model whose forward is not the one that was trained

    `expect` of the recipe is judged only on the deployed path, at the end of the run. InputError
    where the folder, the model or the data cannot be used; SparsityError where the exported file
    differs from the checkpoint.
    """
    require_training("an evaluation")
    folder = open_run(run)
    plan, place = folder.read_plan(), pick_device(device)
    path = known_path(plan, path)
    command = read_command(folder)
    if data is None:
        data = stored_data(folder, command["data"])
        directory = directory or command["directory"]
    dataset = open_data(data, directory, plan.data.channels, plan.data.length)
    dual, at = rebuild(folder, plan, model, dataset.texts, anyway)
    step = at.step
    dual.to(place)
    if is_convolutional(plan):
        lay_out_weights(dual)
    loader = make_loader(plan, dataset, "val", place, workers)
    try:
        check_not_empty(loader)
        options = Options(device=str(place), channels_last=is_convolutional(plan))
        outputs_for(dual, loader.task, loader.example().to(place), options)
        accuracies = evaluate(dual, loader, options)
    finally:
        loader.close()
    # Of the numbers that an export would hold, as finish_run counts them.
    network, promises = collapse(dual).cpu().state_dict(), promises_at(plan, step)
    sparsity = verify_tensors(network, promises).sparsity
    assert accuracies is not None  # None only where a signal asks a run to stop
    accuracy, claims = dict(accuracies[path]), tuple[Claim, ...]()
    broken = int(accuracy.pop(BROKEN, 0))
    if path == plan.deploy:
        ended = step == plan.num_steps or at.stopped
        claims = judge_claims(plan, accuracy, sparsity, ended)
    notes = tuple(schedule_notes(promises, step, plan))
    return Evaluation(path, accuracy, claims, step, broken, loader.num_examples, notes)


def stored_data(folder: RunFolder, name: str | None) -> str:
    """The data set that a run names. InputError for code, which no file may start."""
    if name is None or known_record(name) is None and not is_callable_spec(name):
        said = f"was trained on `{name}`" if name else "does not say which data it was trained on"
        raise InputError(f"{folder.path} {said}", help="name the data with --train")
    if is_callable_spec(name):
        raise InputError(
            f"the data of {folder.path} are somebody's own code, {name}, which a file cannot ask "
            "to run",
            help=f"if you know it: --train {shlex.quote(name)}",
        )
    return name


def rebuild(
    folder: RunFolder,
    plan: Plan,
    model: str | nn.Module | None = None,
    texts: TextSize | None = None,
    anyway: bool = False,
) -> tuple[Dual, Position]:
    """The dual graph with the weights of the last checkpoint, and where the run stands.

    model   a SPEC or a module; needed where the model is not from a library (zoo/spec.py)
    texts   that the network is to read, if any
    anyway  accept a model whose forward is not the one that was trained
    """
    if model is not None and not isinstance(model, str):
        require_module(model)
    stored = plan.model.name if model is not None else stored_spec(plan.model.name, folder.path)
    try:
        fresh = network_of(model, stored, plan.model.classes, plan.model.options, folder.path)
    except InputError as error:
        raise InputError(
            f"the model of {folder.path} cannot be built: {error.message}",
            help="name it with --model SPEC",
        ) from error
    refuse_texts(fresh, texts)
    try:
        traced = trace_for(plan, fresh)
        text = text_of(traced)  # before the compiler adds its own modules
        dual = compile_plan(plan, traced)
    except TraceError as error:
        raise InputError(f"the model of {folder.path} is another one now: {error}") from error
    except KeyError as error:
        given = model if isinstance(model, str) else type(fresh).__name__
        raise InputError(f"{given} is not the model of {folder.path}: {error.args[0]}") from error
    if not anyway:
        check_model(folder, text)
    at = load_deployed(folder.checkpoint, dual)
    _compare_exported(folder, plan, at.step)
    return dual, at


def _compare_exported(folder: RunFolder, plan: Plan, step: int) -> None:
    """SparsityError where the run's own file of this step differs from the checkpoint.

    This finds masks that have the right counts and prune other weights.
    """
    try:
        read = exporter_for(folder.weights).read(folder.weights)
    except InputError:
        return  # there is none, or `dcil verify` says what it is
    if read.origin is None or (read.origin.step, read.origin.path) != (step, plan.deploy):
        return
    if read.origin.sha256 != plan.recipe.sha256 or digest(read.tensors) != read.origin.digest:
        return
    faults, _ = _compare_run(folder, plan, read)
    if faults:
        raise SparsityError(
            f"{folder.weights} and the checkpoint next to it contradict each other: "
            f"{'; '.join(faults[:MAX_TOLD])}"
        )


def verify_artefact(
    artefact: str | Path,
    *,
    recipe: Recipe | None = None,
    model: str | None = None,
    warn: Warn | None = None,
    note: Note | None = None,
    steps_per_epoch: int | None = None,
) -> list[tuple[Path, Verdict]]:
    """Prove a run folder, a checkpoint or an exported file; a Verdict for each file.

    The promise comes from `recipe` at its end, else from the file's own header, else from the
    plan.json next to it. InputError where all of them are missing, or nothing is stored.

    model            a SPEC; needed where the model is not from a library
    steps_per_epoch  of `recipe`; None: from the plan.json next to the file, or from the data
    warn, note       as of dcil.train
    """
    warn, note = warn or warn_in_python, note or no_note
    where = Path(artefact)
    if where.is_dir() and not (where / "plan.json").exists() and recognise(where) is not None:
        files = [where]
    elif where.is_dir():
        folder = open_run(where)
        newest = newest_of(folder.checkpoint)
        known = [file for file in (folder.weights, newest) if file is not None]
        files = [file for file in known if file.exists() or file.is_symlink()]
        if not files:
            raise InputError(f"{where} holds no weights yet", help="train first")
    elif where.exists():
        files = [where]
    else:
        raise InputError(f"there is no {where}", help=f"looked at {where.absolute()}")
    asked = None if recipe is None else Asked(recipe, steps_per_epoch, warn, note)
    return [(file, _verify_file(file, asked, model)) for file in files]


def _verify_file(file: Path, asked: Asked | None, model: str | None) -> Verdict:
    folder = folder_of(file)
    stored = None if folder is None else folder.read_plan()
    if folder is not None and stored is not None and file in _checkpoints_of(folder):
        return _verify_checkpoint(folder, file, stored, asked, model)
    exporter = exporter_for(file)
    read = exporter.read(file)
    faults, notes, masks = exporter.verify(read), [], None
    if read.origin is not None:
        faults += _compare_header(read, read.origin, stored)
    if folder is not None and file == folder.weights and read.origin is None:
        faults.append("the file says nothing about itself, as a run's own does")
    if folder is not None and stored is not None and folder.has_checkpoint:
        found, masks = _compare_run(folder, stored, read)
        faults += found
    elif stored is not None and read.origin is not None:
        notes.append("the run has no checkpoint: it is not proved that this is its last file")
        if read.origin.path != stored.deploy:
            faults.append(_of_another_path(read.origin, stored))
    if asked is not None:
        named = read.origin or stored
        spec = model or (stored_spec(named.model.name, file) if named else None)
        data = read.origin.data if read.origin else stored.data.name if stored else None
        promises, wanted = asked(spec, data, stored)
        faults += _differences(read, wanted, exact_type=False)
    elif read.origin is not None:
        promises = read.origin.promises
        notes += schedule_notes(promises, read.origin.step, stored)
        if not promises and folder is None:
            faults.append("the file promises nothing, so there is nothing to prove")
    elif stored is not None:
        promises = promises_at(stored, stored.num_steps)
    else:
        raise InputError(
            f"{file} says nothing about what was asked of it",
            help="compare it with a recipe: --recipe RECIPE --model SPEC",
        )
    verdict = verify_tensors(read.tensors, promises, masks)
    verdict.faults[:] = dict.fromkeys(faults + verdict.faults)  # each once
    verdict.notes[:0] = notes
    if not promises:
        verdict.notes.append("nothing was asked: no weight of this path is pruned")
    return verdict


def _of_another_path(origin: Origin, plan: Plan) -> str:
    return f"this is path `{origin.path}`, the run deploys `{plan.deploy}`"


def _checkpoints_of(folder: RunFolder) -> tuple[Path | None, ...]:
    last = folder.checkpoint
    return last, newest_of(last), previous_of(last)


def _verify_checkpoint(
    folder: RunFolder, file: Path, stored: Plan, asked: Asked | None, model: str | None
) -> Verdict:
    """The weights of a checkpoint under its masks: a checkpoint also stores pruned weights."""
    place = folder.checkpoint if file in (folder.checkpoint, newest_of(folder.checkpoint)) else file
    tensors, header = read_checkpoint(place, stored)
    step, state = position_of(header, file, stored).step, state_of(tensors)
    promises = (
        promises_at(stored, step)
        if asked is None
        else asked(model or stored_spec(stored.model.name, file), stored.data.name, stored)[0]
    )
    faults = mask_faults(state, stored)
    faults += [  # of the other paths' own modules too
        f"{name} holds numbers that are not finite"
        for name, tensor in state.items()
        if tensor.is_floating_point() and tensor.float().isnan().any()
    ]
    verdict = verify_tensors(deployed_tensors(state, stored, stored.deploy)[0], promises)
    verdict.faults[:] = dict.fromkeys(faults + verdict.faults)
    if asked is None:
        verdict.notes[:0] = schedule_notes(promises, step, stored)
    return verdict


def _compare_header(read: Artefact, origin: Origin, stored: Plan | None) -> list[str]:
    """Faults of a file whose tensors or promises differ from those that were written."""
    faults = []
    if digest(read.tensors) != origin.digest:
        faults.append("the tensors are not those that were exported: the digest differs")
    if (
        stored is not None
        and origin.path == stored.deploy
        and [one.promised() for one in origin.promises]
        != [one.promised() for one in promises_at(stored, origin.step)]
    ):
        faults.append("the header does not promise what the plan.json next to it asks")
    return faults


def _compare_run(
    folder: RunFolder, plan: Plan, read: Artefact
) -> tuple[list[str], Mapping[str, Tensor] | None]:
    """Faults of a file that differs from what its run deploys; the masks of the checkpoint, if both
    are of one step."""
    tensors, header = read_checkpoint(folder.checkpoint, plan)
    state, origin = state_of(tensors), read.origin
    if origin is None:  # which path it is of, and of which step, it does not say
        wanted, _ = deployed_tensors(state, plan, plan.deploy)
        return _differences(read, wanted, exact_type=False), None
    step, faults = position_of(header, folder.checkpoint, plan).step, []
    if origin.step != step:
        faults.append(f"this is the file of step {origin.step:,}, the run is at step {step:,}")
    if origin.path != plan.deploy:
        faults.append(_of_another_path(origin, plan))
    if origin.path not in {entry.name for entry in plan.paths}:
        return faults, None
    wanted, unknown = deployed_tensors(state, plan, origin.path)
    faults += _differences(read, wanted)
    if origin.step != step or not read.exact:
        return faults, None
    faults += mask_faults(state, plan) + other_numbers(read.tensors, wanted, unknown)
    names = [name for promise in origin.promises for name in promise.parameters]
    masks = {name: state.get(f"{name}_mask") for name in names}
    fits = {
        name: mask
        for name, mask in masks.items()
        if mask is not None
        and mask.dtype == torch.bool
        and name in read.tensors
        and mask.shape == read.tensors[name].shape
    }
    return faults, fits


def _differences(
    read: Artefact, wanted: Mapping[str, Tensor], exact_type: bool = True
) -> list[str]:
    """As `differences` has them; of an incomplete artefact for the tensors that both have."""
    tensors: Mapping[str, Tensor] = read.tensors
    if not read.complete:
        tensors = {name: tensor for name, tensor in tensors.items() if name in wanted}
        wanted = {name: tensor for name, tensor in wanted.items() if name in tensors}
    return differences(tensors, wanted, exact_type)


def folder_of(file: Path) -> RunFolder | None:
    """The run whose folder holds a file or a checkpoint, if any."""
    for parent in (file.parent, file.parent.parent):
        if (parent / "plan.json").is_file():
            return RunFolder(parent)
    return None


def known_path(plan: Plan, path: str | None) -> str:
    """The path of this name, None is the deployed one. InputError for an unknown path."""
    names = [entry.name for entry in plan.paths]
    if path is not None and path not in names:
        raise InputError(f"the run has no path `{path}`", help=f"its paths are {', '.join(names)}")
    return path or plan.deploy
