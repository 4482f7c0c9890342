"""A finished run, looked at again: evaluate it, prove it, export it.

In:   a run folder, or a file that came from one.
Out:  accuracies and claims; a Verdict; the deployable file.
Not:  nothing is trained, and a run folder is never changed.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

from torch import Tensor

from dcil_dsl.batches import is_convolutional, make_loaders, open_data, pick_device
from dcil_dsl.claims import Claim, judge_claims
from dcil_dsl.command import read_command
from dcil_dsl.compiler import compile_plan
from dcil_dsl.compiler.dual import Dual
from dcil_dsl.diagnostics import InputError
from dcil_dsl.export.artefact import (
    FORMATS,
    Artefact,
    Promise,
    origin_of,
    promises_at,
    read_artefact,
    write_artefact,
)
from dcil_dsl.export.authors import show_authors
from dcil_dsl.export.collapse import collapse
from dcil_dsl.export.verify import Verdict, verify_tensors
from dcil_dsl.graph.trace import TraceError
from dcil_dsl.lang.recipe import Recipe
from dcil_dsl.plan.plan import Plan
from dcil_dsl.plan.wording import Page
from dcil_dsl.prepare import Note, Warn, prepare, warn_in_python
from dcil_dsl.training.checkpoint import load_deployed, position_of, read_checkpoint
from dcil_dsl.training.machine import lay_out_weights
from dcil_dsl.training.metrics import check_sparsity, masks_step
from dcil_dsl.training.run import RunFolder, newest_of, open_run
from dcil_dsl.training.trainer import Options, evaluate
from dcil_dsl.zoo import build_model, stored_spec

# What a recipe asks of the model of a SPEC, given the data's name and the run's plan, where known.
Asked = Callable[[str | None, str | None, Plan | None], tuple[Promise, ...]]


@dataclass(frozen=True)
class Evaluation:
    """One path of a run on the held-out data."""

    path: str
    accuracy: dict[str, float]
    claims: tuple[Claim, ...]
    step: int

    @property
    def holds(self) -> bool:
        return all(claim.holds is not False for claim in self.claims)


def evaluate_run(
    run: str | Path,
    *,
    path: str | None = None,
    directory: str | Path | None = None,
    device: str = "auto",
    workers: int | None = None,
    model: str | None = None,
) -> Evaluation:
    """Rebuild a run's network from its folder and measure it. path None: the deployed one.

    What the recipe expects is said of the deployed path at the run's end, and judged there.
    """
    folder = open_run(run)
    plan, device = folder.read_plan(), pick_device(device)
    path = known_path(plan, path)
    command = read_command(folder)
    if command["data"] is None:
        raise InputError(f"{folder.path} does not say which data it was trained on")
    dataset = open_data(command["data"], directory or command["directory"], plan.data.channels)
    dual, step = rebuild(folder, plan, model)
    dual.to(device)
    if is_convolutional(plan):
        lay_out_weights(dual)
    train_loader, loader = make_loaders(plan, dataset, device, workers)
    try:
        accuracies = evaluate(
            dual, loader, Options(device=device, channels_last=is_convolutional(plan))
        )
    finally:
        loader.close()
    sparsity = check_sparsity(dual, masks_step(step)).measured
    claims = ()
    if path == plan.deploy:
        claims = judge_claims(plan, accuracies[path], sparsity, step == plan.num_steps)
    return Evaluation(path, accuracies[path], claims, step)


def beside_authors(run: str | Path, path: str, page: Page) -> list[str]:
    """Where a run is of the authors' own experiment: its deployed path, epoch by epoch, beside what
    they logged. Nothing for any other run or path."""
    folder = open_run(run)
    plan = folder.read_plan()
    return show_authors(plan, folder.read_metrics(), page) if path == plan.deploy else []


def rebuild(folder: RunFolder, plan: Plan, model: str | None = None) -> tuple[Dual, int]:
    """The dual graph with the weights of the last checkpoint, and the count of updates done.

    model  a spec; needed where the run's model is no library's (zoo/spec.py)
    """
    spec = model or stored_spec(plan.model.name, folder.path)
    try:
        fresh = build_model(spec, plan.model.classes, dict(plan.model.options))
    except InputError as error:
        raise InputError(
            f"the model of {folder.path} cannot be built: {error.message}",
            help="say where it comes from with --model SPEC",
        ) from error
    try:
        dual = compile_plan(plan, fresh)
    except TraceError as error:
        raise InputError(f"the model of {folder.path} is another one now: {error}") from error
    except KeyError as error:
        raise InputError(f"{spec} is not the model of {folder.path}: {error.args[0]}") from error
    return dual, load_deployed(folder.checkpoint, dual).step


def export_run(
    run: str | Path, format: str, out: str | Path | None = None, model: str | None = None,
    path: str | None = None,
) -> Path:  # fmt: skip
    """Write the deployed network of a run; the file's path. It is proved before it is named."""
    folder = open_run(run)
    plan = folder.read_plan()
    if format not in FORMATS:
        raise InputError(
            f"there is no format `{format}`", help=f"the formats are {', '.join(FORMATS)}, compact"
        )
    path = known_path(plan, path)
    file = Path(out) if out is not None else folder.path / f"{path}.{format}"
    if file.suffix != f".{format}":
        raise InputError(f"{file} does not end in .{format}")
    dual, step = rebuild(folder, plan, model)
    plan = plan.model_copy(update={"deploy": path})
    origin = origin_of(plan, step)
    verdict = verify_tensors(collapse(dual, path).state_dict(), origin.promises)
    assert verdict.holds, verdict.faults
    write_artefact(collapse(dual, path), file, origin)
    return file


def verify_artefact(
    artefact: str | Path,
    *,
    recipe: Recipe | None = None,
    model: str | None = None,
    warn: Warn | None = None,
    note: Note | None = None,
    steps_per_epoch: int | None = None,
) -> list[tuple[Path, Verdict]]:
    """Prove a run folder, a checkpoint or an exported file; a Verdict for each file looked at.

    What is asked comes from `recipe` at its end, else from the file's own header, else from the
    plan.json beside it. InputError where there is none of them, or nothing to look at.

    steps_per_epoch  of `recipe`; None: as the plan.json beside the file or the data have it
    """
    warn, note = warn or warn_in_python, note or (lambda text: None)
    where = Path(artefact)
    if where.is_dir():
        folder = open_run(where)
        newest = newest_of(folder.checkpoint)
        files = [file for file in (folder.weights, newest) if file is not None and file.exists()]
        if not files:
            raise InputError(f"{where} holds no weights yet", help="train first")
    elif where.exists():
        files = [where]
    else:
        raise InputError(f"there is no {where}", help=f"looked at {where.absolute()}")
    known: dict[tuple, tuple[Promise, ...]] = {}  # the files of a run are asked the same

    def asked(spec: str | None, data: str | None, stored: Plan | None) -> tuple[Promise, ...]:
        if (spec, data) not in known:
            known[spec, data] = _promises_of(
                recipe, steps_per_epoch, warn, note, spec, data, stored
            )
        return known[spec, data]

    return [
        (file, _verify_file(file, None if recipe is None else asked, model)) for file in files
    ]


def _verify_file(file: Path, asked: Asked | None, model: str | None) -> Verdict:
    folder = folder_of(file)
    stored = None if folder is None else folder.read_plan()
    if folder is not None and file in (folder.checkpoint, newest_of(folder.checkpoint)):
        return _verify_checkpoint(folder.checkpoint, stored, asked, model)
    read = read_artefact(file)
    faults, masks = [], None
    if read.origin is not None:
        faults += _compare_header(read, stored)
        if folder is not None and folder.has_checkpoint:
            masks = _masks_at(folder, stored, read)
    if asked is not None:
        named = read.origin or stored
        spec = model or (stored_spec(named.model.name, file) if named else None)
        data = read.origin.data if read.origin else stored and stored.data.name
        promises = asked(spec, data, stored)
    elif read.origin is not None:
        promises = read.origin.promises
    elif stored is not None:
        promises = promises_at(stored, stored.num_steps)
    else:
        raise InputError(
            f"{file} says nothing about what was asked of it",
            help="compare it with a recipe: --recipe RECIPE --model SPEC",
        )
    verdict = verify_tensors(read.tensors, promises, masks)
    verdict.faults[:0] = faults
    if not promises:
        verdict.notes.append("nothing was asked: no weight of this path is pruned")
    return verdict


def _verify_checkpoint(
    file: Path, stored: Plan, asked: Asked | None, model: str | None
) -> Verdict:
    """The weights of a checkpoint as its masks deploy them: a pruned weight lives on in there."""
    tensors, header = read_checkpoint(file, stored)
    step = position_of(header, file).step
    kept = {
        name.removeprefix("model/"): t for name, t in tensors.items() if name.startswith("model/")
    }
    kept |= {
        name.removeprefix("average/"): t
        for name, t in tensors.items()
        if name.startswith("average/")
    }
    promises = (
        promises_at(stored, step)
        if asked is None
        else asked(model or stored_spec(stored.model.name, file), stored.data.name, stored)
    )
    deployed = {}
    for name in {name for promise in promises for name in promise.parameters}:
        if f"{name}_mask" in kept and name in kept:
            deployed[name] = kept[name].masked_fill(~kept[f"{name}_mask"], 0.0)
    return verify_tensors(deployed, promises)


def _promises_of(
    recipe: Recipe, steps_per_epoch: int | None, warn: Warn, note: Note, spec: str | None,
    data: str | None, stored: Plan | None,
) -> tuple[Promise, ...]:  # fmt: skip
    """What a recipe asks at its end."""
    if spec is None:
        raise InputError("the file does not name its model", help="name it with --model SPEC")
    if steps_per_epoch is None and stored is not None:
        steps_per_epoch = stored.steps_per_epoch
    plan = prepare(
        recipe, spec, warn=warn, note=note, steps_per_epoch=steps_per_epoch, data=data
    ).plan
    return promises_at(plan, plan.num_steps)


def _compare_header(read: Artefact, stored: Plan | None) -> list[str]:
    """Faults of a file whose numbers or promises are not those that were written."""
    from dcil_dsl.export.artefact import digest

    faults = []
    if digest(read.tensors) != read.origin.digest:
        faults.append("the tensors are not those that were exported: the digest differs")
    if (
        stored is not None
        and read.origin.path == stored.deploy
        and [one.promised() for one in read.origin.promises]
        != [one.promised() for one in promises_at(stored, read.origin.step)]
    ):
        faults.append("the header does not promise what the plan.json beside it asks")
    return faults


def _masks_at(folder: RunFolder, plan: Plan, read: Artefact) -> Mapping[str, Tensor] | None:
    """The checkpoint's masks, where checkpoint and file are of the same step."""
    tensors, header = read_checkpoint(folder.checkpoint, plan)
    is_same = position_of(header, folder.checkpoint).step == read.origin.step
    if not is_same or not read.origin.promises:
        return None
    names = [name for promise in read.origin.promises for name in promise.parameters]
    return {name: tensors[f"model/{name}_mask"] for name in names}


def folder_of(file: Path) -> RunFolder | None:
    """The run that a file or a checkpoint lies in, if it is in one."""
    for parent in (file.parent, file.parent.parent):
        if (parent / "plan.json").is_file():
            return RunFolder(parent)
    return None


def known_path(plan: Plan, path: str | None) -> str:
    """The path of this name, None is the deployed one. InputError where the run has no such."""
    names = [entry.name for entry in plan.paths]
    if path is not None and path not in names:
        raise InputError(f"the run has no path `{path}`", help=f"its paths are {', '.join(names)}")
    return path or plan.deploy
