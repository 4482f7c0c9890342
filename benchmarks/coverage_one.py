"""One model: built, compiled, a step taken, everything held against two copies of it.

In:   a Case (coverage_case.py).
Out:  a dictionary for the JSON: exact, inexact, refused or failed, and how far, how long, why.
Not:  no list of models and no table; coverage.py runs each case in a process of its own.
"""

from __future__ import annotations

import copy
import math
import re
import resource
import time
import traceback
import warnings

import torch
from coverage_case import SIDES, Case
from coverage_compare import BOUND, call, compare, floats, logits, seed
from coverage_kept import kept_layers, leave_early
from torch import Tensor, nn
from torch.utils import _pytree as pytree
from two_copies import TwoCopies
from workloads import ROOT, build_model, compile_plan, resolve_recipe, trace_model  # noqa: F401

from dcil_dsl.diagnostics import Diagnostics, InputError, RecipeError
from dcil_dsl.lang import loads
from dcil_dsl.model.compare import compare_with_model
from dcil_dsl.model.inputs import Inputs
from dcil_dsl.model.trace import TraceError
from dcil_dsl.zoo import example_inputs

SPARSITY, REST = 0.8, (0.75, 0.25)
RECIPE = """
language 1

prune {types}{but} to 80%
{keep}

mix {{
  path sparse = masked
  path dense  = full
  update kept   by sparse
  update pruned by dense
  update rest   by 0.75 * sparse + 0.25 * dense
  {private}
  {losses}
  deploy sparse
}}

train {{
  epochs    = 2ep
  optimizer = sgd(lr=1e-3)
}}
"""
BOTH_WAYS = """
  loss kl(student=sparse, teacher=dense, temperature=2{output})
  loss kl(student=dense, teacher=sparse, temperature=2{output})
"""
LOSSES = {
    "classes": "loss cross_entropy(sparse)  loss cross_entropy(dense)" + BOTH_WAYS,
    "own and logits": "loss model(sparse)  loss model(dense)" + BOTH_WAYS,
    "own": "loss model(sparse)  loss model(dense)",
    "segmentation": 'loss cross_entropy(sparse, output="out") loss cross_entropy(dense, '
    'output="out") loss 0.5 * cross_entropy(sparse, output="aux") loss 0.5 * '
    'cross_entropy(dense, output="aux")' + BOTH_WAYS,
    # The plan asks for some loss; the step takes one that is written in Python.
    "in python": "loss model(sparse)  loss model(dense)",
}


class Unfit(Exception):
    """The model itself does not do what is asked: no fault of the compiler's."""


def measure(case: Case, float64_below: float) -> dict:
    """The record of one case; `float64_below`: models of fewer weights are run in float64."""
    began = time.perf_counter()
    record: dict = {"spec": case.spec, "note": case.note}
    try:
        _measure(case, float64_below, record)
        worst = max(value for mode in ("train", "eval") for value in record[mode].values())
        record["status"] = "exact" if worst <= BOUND[record["dtype"]] else "inexact"
    except Unfit as error:
        record |= {"status": "failed", "where": "model", "reason": str(error)}
    except (InputError, RecipeError, TraceError) as error:
        record |= {"status": "refused", "reason": " ".join(str(error).split())[:400]}
    except Exception as error:  # what is found here is what the table is for
        frames = traceback.extract_tb(error.__traceback__)
        last = next((f for f in reversed(frames) if "site-packages" not in f.filename), frames[-1])
        place = f"{last.filename.rpartition('/')[2]}:{last.lineno}"
        reason = f"{type(error).__name__}: {' '.join(str(error).split())[:400]} ({place})"
        record |= {"status": "failed", "where": record.pop("stage", "?"), "reason": reason}
    record.pop("stage", None)
    record["seconds"] = round(time.perf_counter() - began, 2)
    record["peak_gb"] = round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20, 2)
    return record


def _measure(case: Case, float64_below: float, record: dict) -> None:
    record["stage"] = "build"
    seed(0)
    model = case.build()
    record["weights"] = sum(p.numel() for p in model.parameters())
    wide = record["weights"] < float64_below and not case.narrow
    dtype = torch.float64 if wide else torch.float32
    model, inputs, kind = _make_ready(case, model, dtype, record)
    record["loss"] = kind

    record["stage"] = "compile"
    record["early"] = leave_early(model)
    plan, dual = _compile(model, inputs, kind, record)
    record["stage"] = "compare"
    pruned = [name for group in plan.groups for name in group.parameters]
    reference = TwoCopies(model, pruned, [entry.module for entry in plan.privates], REST)
    reference.refresh(SPARSITY)
    dual.begin_step(0)
    for name, mask in zip(reference.pruned, dual.masks.values(), strict=True):
        if not torch.equal(mask, reference.masks[name]):
            raise AssertionError(f"the mask of {name} is not the reference's")
    for mode in ("train", "eval"):
        record["stage"] = mode
        record[mode], rounding = compare(dual, plan, reference, inputs, kind, mode, record["dtype"])
        if rounding:
            record["rounding"] = max(rounding, record.get("rounding", 0.0))


def _make_ready(
    case: Case, model: nn.Module, dtype: torch.dtype, record: dict
) -> tuple[nn.Module, Inputs, str]:
    """The model in the wider type that it runs in, on the smallest image that it takes."""
    problem = None
    for kind in dict.fromkeys([dtype, torch.float32]):
        model.to(kind)
        for side in case.sides or SIDES:
            if case.inputs:
                inputs = case.inputs().to(kind)
            else:
                inputs = example_inputs(model, case.batch, side, labels=True).to(kind)
            try:
                seed(0)
                trial = copy.deepcopy(model).train()
                output = call(trial, inputs)
                finite = all(bool(leaf.isfinite().all()) for leaf in floats(output))
                call(trial.eval(), inputs)
                if finite:
                    shapes = [
                        tuple(t.shape)
                        for t in pytree.tree_leaves((inputs.args, inputs.kwargs))
                        if isinstance(t, Tensor)
                    ]
                    record |= {"dtype": str(kind)[6:], "inputs": [list(s) for s in shapes]}
                    return model, inputs, _kind_of(output)
                problem = problem or "its outputs are not finite"
            except Exception as error:  # too small an image, or no arithmetic in float64
                problem = f"{type(error).__name__}: {' '.join(str(error).split())[:300]}"
    raise Unfit(f"the model alone: {problem}")


def _kind_of(output: object) -> str:
    """Which losses can be taken of what the model returns in training mode."""
    if isinstance(output, dict) and isinstance(output.get("out"), Tensor) and "aux" in output:
        return "segmentation"
    found = logits(output)
    if isinstance(output, dict):
        if isinstance(output.get("loss"), Tensor):
            has_logits = isinstance(found, Tensor) and found.dim() > 1
            return "own and logits" if has_logits else "own"
        values = list(output.values())
        if values and all(isinstance(v, Tensor) and v.dim() == 0 for v in values):
            return "own"
    if isinstance(found, Tensor) and found.dim() == 2:
        return "classes"
    return "in python"


# -- ours ------------------------------------------------------------------------------------------


def _compile(model: nn.Module, inputs: Inputs, kind: str, record: dict):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        began = time.process_time()
        traced = trace_model(model, inputs)
        tracing = time.process_time() - began
        began = time.process_time()
        traced = compare_with_model(traced, model, inputs)
        record["compare_seconds"] = round(time.process_time() - began, 3)
        recipe = loads(_recipe(traced, kind, record))
        began = time.process_time()
        plan = resolve_recipe(recipe, traced, 10, Diagnostics())
        dual = compile_plan(plan, traced)
        record["compile_seconds"] = round(tracing + time.process_time() - began, 3)
    record["pruned"] = sum(sum(group.num_weights) for group in plan.groups)
    return plan, dual


def _recipe(traced, kind: str, record: dict) -> str:
    """Prune nine tenths of the layers that can be pruned, with private norms."""
    layers = [layer for layer in traced.layers if layer.prunable]
    if not layers:
        raise InputError("nothing in it can be pruned")
    kept = kept_layers(layers, record["early"])
    prunable = [layer for layer in layers if layer.path not in kept]
    record["kept_layers"] = len(kept)
    types = dict.fromkeys(layer.type for layer in prunable)
    words = [t if re.fullmatch("[A-Z][A-Za-z0-9_]*", t) else None for t in types]
    if None in words:
        words = [f'"{layer.path}"' for layer in prunable]
    norms = [
        layer
        for layer in traced.layers
        if "norm" in layer.type.lower() and not layer.prunable and _has_state(layer.module)
    ]
    inner = {layer.path for layer in prunable}
    private = [
        layer.path
        for layer in norms
        if not any(path.startswith(f"{layer.path}.") for path in inner)
    ]
    record["norms"], record["private_norms"] = len(norms), len(private)
    inside = {
        id(p) for path in traced.opaque for p in traced.model.get_submodule(path).parameters()
    }
    held = sum(p.numel() for p in traced.model.parameters() if id(p) in inside)
    share = round(held / record["weights"], 4)
    told = {path or "(the model)": reason[:120] for path, reason in list(traced.opaque.items())[:4]}
    record["whole"] = {"modules": len(traced.opaque), "share": share, "first": told}
    # A fifth of fewer than five weights is none, and a layer keeps at least one.
    tiny = [layer.path for layer in prunable if min(math.prod(w.shape) for w in layer.prunable) < 5]
    hidden = [f'"{layer.path}"' for layer in traced.layers if layer.hides_weight]
    record["parametrised"] = len(hidden)  # weights that are computed from others
    return RECIPE.format(
        types=", ".join(words),
        but=f" except {', '.join(hidden)}" if hidden else "",
        keep="\n".join(f'keep "{path}"' for path in [*kept, *tiny]),
        private="\n  ".join(f'private "{path}"' for path in private),
        losses=LOSSES[kind].format(output=', output="out"' if kind == "segmentation" else ""),
    )


def _has_state(module: nn.Module) -> bool:
    return any(True for _ in module.parameters()) or any(True for _ in module.buffers())
