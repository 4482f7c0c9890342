"""The end of a run: export the deployed network, prove the file, judge the claims, report.

In:   a Job whose training is done, its folder and its Result.
Out:  the exported file and report.json; the claims and the deployed network.
Not:  no training.
"""

from __future__ import annotations

import platform
from collections.abc import Mapping
from dataclasses import asdict
from importlib.metadata import PackageNotFoundError, version
from typing import Any

import torch
from torch import Tensor, nn

from dcil_dsl.compiler.collapse import collapse
from dcil_dsl.exporting.artefact import Deployed, origin_of
from dcil_dsl.exporting.exporters import EXPORTERS
from dcil_dsl.exporting.report import make_report
from dcil_dsl.exporting.verify import Verdict, verify_tensors
from dcil_dsl.jobs.expect import Claim, judge_claims
from dcil_dsl.jobs.open_job import Job
from dcil_dsl.plan.plan import Plan
from dcil_dsl.training.machine import peak_memory
from dcil_dsl.training.result import Result
from dcil_dsl.training.run import RunFolder
from dcil_dsl.training.sparsity import SparsityError

FORMAT = "safetensors"  # of the file that a run leaves


def finish_run(job: Job, folder: RunFolder, result: Result) -> tuple[tuple[Claim, ...], nn.Module]:
    """Write the exported file and the report. SparsityError where the file breaks a promise."""
    plan = job.plan
    deployed = collapse(job.dual).cpu()
    origin = origin_of(plan, result.step)
    EXPORTERS[FORMAT].write(Deployed(deployed, origin, plan), folder.weights)
    verdict = _prove(folder, {name: mask.cpu() for name, mask in job.dual.masks.items()})
    claims = judge_claims(plan, result.accuracies[plan.deploy], verdict.sparsity, result.ended)
    report = _report(plan, result, claims, deployed, torch.device(job.options.device))
    folder.write_report(
        report | {"start": folder.read_start(), "bad_images": folder.read_bad_images()}
    )
    return claims, deployed


def _prove(folder: RunFolder, masks: Mapping[str, Tensor]) -> Verdict:
    """The verdict on the file on disk, not on the module it was written from."""
    artefact = EXPORTERS[FORMAT].read(folder.weights)
    promises = artefact.origin.promises if artefact.origin is not None else ()
    verdict = verify_tensors(artefact.tensors, promises, masks if promises else None)
    if not verdict.holds:
        raise SparsityError(
            f"{folder.weights} is not what the recipe asks: " + "; ".join(verdict.faults)
        )
    return verdict


def _report(
    plan: Plan, result: Result, claims: tuple[Claim, ...], deployed: nn.Module, device: torch.device
) -> dict[str, Any]:
    versions = {
        "dcil_dsl": _version("dcil-dsl"),
        "torch": torch.__version__,
        "torchvision": _version("torchvision"),
        "python": platform.python_version(),
        **{origin.package: origin.version for word in plan.words() if (origin := word.origin)},
    }
    hardware = torch.cuda.get_device_name(device) if device.type == "cuda" else platform.machine()
    return {
        "result": asdict(result),
        "expect": [asdict(claim) for claim in claims],
        "recipe": {
            "name": plan.recipe.name,
            "sha256": plan.recipe.sha256,
            "overrides": plan.recipe.overrides,
        },
        "model": plan.model.model_dump(),
        "data": plan.data.name,
        "seed": plan.train.seed,
        "device": {
            "type": device.type,
            "name": hardware,
            "threads": torch.get_num_threads(),
            "peak_memory_bytes": peak_memory(device),
        },
        "versions": versions,
        "training_cost": result.cost,
        "complete": result.ended,
        "weights": make_report(plan, deployed.state_dict()).to_dict(),
    }


def _version(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:  # run from a checkout
        return "unknown" if package != "dcil-dsl" else "checkout"
