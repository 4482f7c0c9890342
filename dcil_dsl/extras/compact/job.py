"""A run or an exported file made smaller: what `dcil export --to compact` does.

In:   a run folder, or a .safetensors or .pth of a model that can be built.
Out:  a folder with small.safetensors, shapes.json, report.json; the network, measured.
Not:  nothing is trained, and what was given is not changed.
"""

from __future__ import annotations

from math import prod
from pathlib import Path

import torch
from torch import nn

from dcil_dsl.compiler.collapse import collapse
from dcil_dsl.diagnostics import InputError
from dcil_dsl.exporting.artefact import FORMATS, read_artefact
from dcil_dsl.extras.compact.compaction import Compacted, compact
from dcil_dsl.extras.compact.files import write_shapes
from dcil_dsl.extras.compact.load import MOST_NUMBERS, try_inputs
from dcil_dsl.extras.compact.report import Measured, measure, report_of, show_compacted
from dcil_dsl.jobs.data import pick_device
from dcil_dsl.jobs.inspect import folder_of, known_path, rebuild
from dcil_dsl.jobs.prepare import ASSUMED_SIZE, KNOWN_DATA
from dcil_dsl.model.inputs import Inputs
from dcil_dsl.plan.plan import Plan
from dcil_dsl.training.run import open_run
from dcil_dsl.words.augment import crop_sizes
from dcil_dsl.zoo import build_model, stored_spec
from dcil_dsl.zoo.example import example_inputs, takes_keywords, takes_one_image

BATCH = 32  # images in the batch that is timed


def compact_run(
    run: str | Path,
    out: str | Path | None = None,
    model: str | None = None,
    path: str | None = None,
) -> tuple[Path, Compacted, Measured]:
    """Remove what is dead from the deployed network of a run, or of an exported file.

    out   the folder; else `compact` in the run folder or beside the file, `compact-NAME` where
          exported files of other names lie beside it
    path  another path of the run than the deployed one

    Raises InputError; nothing is written where the two networks differ.
    """
    given = Path(run)
    if given.is_file():
        if path is not None:
            raise InputError(f"--path {path}: a file holds one path", help="name a run folder")
        network, plan, image = _from_file(given, model)
        folder = _folder_beside(given)
    else:
        opened = open_run(given)
        plan, image = opened.read_plan(), None
        path = known_path(plan, path)
        network = collapse(rebuild(opened, plan, model)[0], path)
        folder = opened.path / ("compact" if path == plan.deploy else f"compact-{path}")
    folder = folder if out is None else Path(out)
    if folder.exists() and not folder.is_dir():
        raise InputError(f"{folder} is a file", help="name a folder with --out")
    example = _inputs(network, plan, image, batch=2)
    try_inputs(network, example, f"the plan or the header of {given}")
    result = compact(network, example)
    device = pick_device("auto")
    inputs = _inputs(network, plan, image, BATCH).to(device)
    network.eval()
    measured = measure(network.to(device), result.model.to(device), inputs)
    result.model.cpu()
    write_shapes(folder, result.shapes, result.tensors, report_of(result, measured))
    return folder, result, measured


def _folder_beside(file: Path) -> Path:
    """Where the small network of a file goes: never where that of a neighbour would."""
    files = [near for near in file.parent.glob("*") if near.suffix.removeprefix(".") in FORMATS]
    alone = all(near.stem == file.stem for near in files)
    return file.parent / ("compact" if alone else f"compact-{file.stem}")


def _from_file(
    file: Path, spec: str | None
) -> tuple[nn.Module, Plan | None, tuple[int, ...] | None]:
    """The model of an exported file, as its header says or the run that it lies in; its plan, and
    the shape of one image where the header has it."""
    read, run = read_artefact(file), folder_of(file)
    named, plan = read.origin and read.origin.model, run and run.read_plan()
    if plan is not None and named not in (None, plan.model):
        plan = None  # it came from another run
    named = named or plan and plan.model
    if spec is None and named is None:
        raise InputError(f"{file} does not name its model", help="name it with --model SPEC")
    known = (named.classes, dict(named.options)) if named else (None, {})
    spec = spec or stored_spec(named.name, file)
    network = build_model(spec, *known)
    try:
        network.load_state_dict(read.tensors, strict=True)
    except RuntimeError as error:
        lines = str(error).strip().splitlines()
        fact = " ".join(lines[1 if len(lines) > 1 else 0].split())
        raise InputError(f"{file} does not fit {spec}: {fact[:200]}") from None
    sizes = [*(read.origin.sizes if read.origin else {}).values()]
    image = sizes[0].shape[1:] if len(sizes) == 1 and len(sizes[0].shape) == 4 else None
    if image is not None and BATCH * prod(image) > MOST_NUMBERS:
        shape = " x ".join(map(str, image))
        raise InputError(f"the header of {file} names images of {shape}: too large to be tried")
    return network, plan, image


def _inputs(
    network: nn.Module, plan: Plan | None, image: tuple[int, ...] | None, batch: int
) -> Inputs:
    """A random batch of what the network takes: images as it was trained on, where that is known;
    of a size that was guessed, their timing alone may take minutes."""
    if plan is not None and image is None:
        image = (plan.data.channels, *(_image_size(plan),) * 2)
    if image is not None and takes_one_image(network) and not takes_keywords(network):
        generator = torch.Generator().manual_seed(0)
        return Inputs.of(torch.randn(batch, *image, generator=generator))
    return example_inputs(network, batch)


def _image_size(plan: Plan) -> int:
    """The side of the images that the run was trained on."""
    crops = crop_sizes(plan.data.augment)
    known = KNOWN_DATA.get((plan.data.name or "").replace("_", "-"), (None, ASSUMED_SIZE))
    return plan.data.image_size or (int(crops[-1]) if crops else known[1])


def compact_and_show(
    run: str | Path, out: str | Path | None, model: str | None, path: str | None
) -> str:
    """`compact_run`, and its result as text."""
    folder, result, measured = compact_run(run, out, model, path)
    return f"{show_compacted(result, measured)}\n{folder}"
