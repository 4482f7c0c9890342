"""One model: built, compiled, a step taken, everything held against two copies of it.

In:   a Case (coverage_models.py).
Out:  a dictionary for the JSON: exact, inexact, refused or failed, and how far, how long, why.
Not:  no list of models and no table; coverage.py runs each case in a process of its own.

Differences are relative: the largest |ours - theirs| of a tensor over the largest |theirs| of it,
or over FLOOR times the largest of all gradients where that is more, so that the rounding of a
gradient that should be zero is not taken for an error.
"""

from __future__ import annotations

import copy
import math
import random
import re
import resource
import time
import traceback
import warnings

import numpy
from coverage_models import SIDES, Case
from two_copies import TwoCopies
from workloads import ROOT, build_model, compile_plan, resolve_recipe, trace_model  # noqa: F401

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from dcil_dsl.diagnostics import Diagnostics, InputError, RecipeError
from dcil_dsl.graph.compare import compare_with_model
from dcil_dsl.graph.inputs import Inputs
from dcil_dsl.graph.trace import TraceError
from dcil_dsl.lang import loads
from dcil_dsl.training.losses import total_loss
from dcil_dsl.zoo import example_inputs

SPARSITY, RATE, REST = 0.8, 1e-3, (0.75, 0.25)
BOUND = {"float64": 1e-9, "float32": 1e-4}
FLOOR = {"float64": 1e-6, "float32": 1e-3}
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
        worst = max(
            value for mode in ("train", "eval") for value in record[mode].values()
        )
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
    _seed(0)
    model = case.build()
    record["weights"] = sum(p.numel() for p in model.parameters())
    wide = record["weights"] < float64_below and not case.narrow
    dtype = torch.float64 if wide else torch.float32
    model, inputs, kind = _make_ready(case, model, dtype, record)
    record["loss"] = kind

    record["stage"] = "compile"
    plan, dual = _compile(model, inputs, kind, record)
    record["stage"] = "compare"
    pruned = [name for group in plan.groups for name in group.parameters]
    reference = TwoCopies(model, pruned, [entry.module for entry in plan.privates], REST)
    reference.refresh(SPARSITY)
    dual.begin_step(0)
    for name, mask in zip(reference.pruned, dual.masks.values(), strict=True):
        if not torch.equal(mask, reference.masks[name].bool()):
            raise AssertionError(f"the mask of {name} is not the reference's")
    for mode in ("train", "eval"):
        record["stage"] = mode
        record[mode] = _compare(dual, plan, reference, inputs, kind, mode, record["dtype"])


def _make_ready(
    case: Case, model: nn.Module, dtype: torch.dtype, record: dict
) -> tuple[nn.Module, Inputs, str]:
    """The model in the wider type that it runs in, on the smallest image that it takes."""
    problem = None
    for kind in dict.fromkeys([dtype, torch.float32]):
        model.to(kind)
        for side in case.sides or SIDES:
            inputs = example_inputs(model, case.batch, side, labels=True).to(kind)
            try:
                _seed(0)
                trial = copy.deepcopy(model).train()
                output = _call(trial, inputs)
                finite = all(bool(leaf.isfinite().all()) for leaf in _floats(output))
                _call(trial.eval(), inputs)
                if finite:
                    shapes = [tuple(t.shape) for t in pytree.tree_leaves((inputs.args,
                              inputs.kwargs)) if isinstance(t, Tensor)]
                    record |= {"dtype": str(kind)[6:], "inputs": [list(s) for s in shapes]}
                    return model, inputs, _kind_of(output)
                problem = problem or "its outputs are not finite"
            except Exception as error:  # too small an image, or no arithmetic in float64
                problem = f"{type(error).__name__}: {' '.join(str(error).split())[:300]}"
    raise Unfit(f"the model by itself: {problem}")


def _kind_of(output: object) -> str:
    """Which losses can be taken of what the model returns in training mode."""
    if isinstance(output, dict) and isinstance(output.get("out"), Tensor) and "aux" in output:
        return "segmentation"
    logits = output if isinstance(output, Tensor) else _logits(output)
    if isinstance(output, dict):
        if isinstance(output.get("loss"), Tensor):
            has_logits = isinstance(logits, Tensor) and logits.dim() > 1
            return "own and logits" if has_logits else "own"
        values = list(output.values())
        if values and all(isinstance(v, Tensor) and v.dim() == 0 for v in values):
            return "own"
    if isinstance(logits, Tensor) and logits.dim() == 2:
        return "classes"
    return "in python"


# -- ours ------------------------------------------------------------------------------------------


def _compile(model: nn.Module, inputs: Inputs, kind: str, record: dict):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        began = time.perf_counter()
        traced = trace_model(model, inputs)
        tracing = time.perf_counter() - began
        began = time.perf_counter()
        traced = compare_with_model(traced, model, inputs)
        record["compare_seconds"] = round(time.perf_counter() - began, 3)
        recipe = loads(_recipe(traced, kind, record))
        began = time.perf_counter()
        plan = resolve_recipe(recipe, traced, 10, Diagnostics())
        dual = compile_plan(plan, traced)
        record["compile_seconds"] = round(tracing + time.perf_counter() - began, 3)
    record["pruned"] = sum(sum(group.num_weights) for group in plan.groups)
    return plan, dual


def _recipe(traced, kind: str, record: dict) -> str:
    """Prune everything that can be pruned, with private norms."""
    prunable = [layer for layer in traced.layers if layer.prunable]
    if not prunable:
        raise InputError("nothing in it can be pruned")
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
        id(p) for path in traced.whole for p in traced.model.get_submodule(path).parameters()
    }
    held = sum(p.numel() for p in traced.model.parameters() if id(p) in inside)
    share = round(held / record["weights"], 4)
    told = {path or "(the model)": reason[:120] for path, reason in list(traced.whole.items())[:4]}
    record["whole"] = {"modules": len(traced.whole), "share": share, "first": told}
    # A fifth of fewer than five weights is none, and a layer keeps at least one.
    tiny = [layer.path for layer in prunable if min(math.prod(w.shape) for w in layer.prunable) < 5]
    hidden = [f'"{layer.path}"' for layer in traced.layers if layer.hides_weight]
    record["parametrised"] = len(hidden)  # weights that are computed from others
    return RECIPE.format(
        types=", ".join(words),
        but=f" except {', '.join(hidden)}" if hidden else "",
        keep="\n".join(f'keep "{path}"' for path in tiny),
        private="\n  ".join(f'private "{path}"' for path in private),
        losses=LOSSES[kind].format(output=', output="out"' if kind == "segmentation" else ""),
    )


def _has_state(module: nn.Module) -> bool:
    return any(True for _ in module.parameters()) or any(True for _ in module.buffers())


# -- the comparison --------------------------------------------------------------------------------


def _compare(dual, plan, reference, inputs, kind, mode, dtype) -> dict[str, float]:
    """Outputs, the loss, every gradient, and then the weights and statistics after a step."""
    for module in (dual, reference.model, *reference.twins.values()):
        module.train(mode == "train")
    target = _target(inputs)
    ask = kind if mode == "train" or kind in ("classes", "own and logits") else "in python"

    def ours_of(outputs):
        if ask == "in python":
            return _project(outputs["sparse"]) + _project(outputs["dense"])
        step_target = _segments(inputs) if ask == "segmentation" else target
        return total_loss(plan, outputs, step_target, 0)

    def theirs_of(sparse, dense):
        return _plain_loss(ask, sparse, dense, inputs, target)

    _seed(1)
    outputs = _call(dual, inputs)
    loss = ours_of(outputs)
    for parameter in dual.parameters():
        parameter.grad = None
    if loss.requires_grad:
        loss.backward()
    _seed(1)
    y_sparse, y_dense, their_loss, gradients = reference.step(
        lambda model: _call(model, inputs), theirs_of
    )
    found = {"outputs": 0.0}
    for ours, theirs in ((outputs["sparse"], y_sparse), (outputs["dense"], y_dense)):
        a, b = _floats(ours), _floats(theirs)
        if [t.shape for t in a] != [t.shape for t in b]:
            raise AssertionError(f"other outputs: {[t.shape for t in a]}, {[t.shape for t in b]}")
        found["outputs"] = max([found["outputs"], *map(_apart, a, b)])
    found["loss"] = _apart(loss.detach(), their_loss)
    named = dict(dual.named_parameters())
    if named.keys() != gradients.keys():
        raise AssertionError(f"other parameters: {sorted(named.keys() ^ gradients.keys())[:6]}")
    largest = max((float(g.abs().max()) for g in gradients.values() if g.numel()), default=0.0)
    for name, parameter in named.items():
        grad = torch.zeros_like(parameter) if parameter.grad is None else parameter.grad
        apart = _apart(grad, gradients[name], FLOOR[dtype] * largest)
        found["gradients"] = max(found.get("gradients", 0.0), apart)
        parameter.grad = None
        with torch.no_grad():
            parameter.sub_(RATE * grad)
    reference.descend(gradients, RATE)
    buffers = dict(dual.named_buffers())
    for name, buffer in reference.buffers().items():
        if buffer.is_floating_point():
            found["buffers"] = max(found.get("buffers", 0.0), _apart(buffers[name], buffer))
    return found


def _plain_loss(kind: str, sparse, dense, inputs: Inputs, target: Tensor) -> Tensor:
    """The losses of the recipe, by hand."""
    if kind == "in python":
        return _project(sparse) + _project(dense)
    loss = 0.0
    for output in (sparse, dense):
        if kind == "classes":
            loss = loss + F.cross_entropy(_logits(output), target)
        elif kind == "segmentation":
            segments = _segments(inputs)
            loss = loss + F.cross_entropy(output["out"], segments)
            loss = loss + 0.5 * F.cross_entropy(output["aux"], segments)
        elif "loss" in output:
            loss = loss + output["loss"]
        else:
            loss = loss + sum(output.values())
    if kind == "own":
        return loss
    one, other = (
        y["out"] if kind == "segmentation" else _logits(y) for y in (sparse, dense)
    )
    axis = -1 if one.dim() == 3 else 1
    for student, teacher in ((one, other), (other, one)):
        p = (teacher.detach() / 2).softmax(axis)
        log_p, log_q = (teacher.detach() / 2).log_softmax(axis), (student / 2).log_softmax(axis)
        loss = loss + 4 * (p * (log_p - log_q)).sum(axis).mean()
    return loss


def _project(output: object) -> Tensor:
    """A number that every output has its part in: the mean product with fixed random numbers."""
    total = torch.zeros((), dtype=torch.float64)
    for place, leaf in enumerate(_floats(output, learn=True)):
        fixed = torch.randn(leaf.shape, generator=torch.Generator().manual_seed(place))
        total = total + (leaf.double() * fixed.double()).mean()
    return total


def _apart(ours: Tensor, theirs: Tensor, floor: float = 0.0) -> float:
    if not theirs.numel():
        return 0.0
    ours, theirs = ours.detach(), theirs.detach()
    if torch.equal(ours, theirs):
        return 0.0
    if not bool((ours.isfinite() == theirs.isfinite()).all()):
        return float("inf")
    difference = (ours - theirs).nan_to_num(0.0, 0.0, 0.0).abs().max().item()
    scale = max(theirs.nan_to_num(0.0, 0.0, 0.0).abs().max().item(), floor, 1e-12)
    return difference / scale


def _logits(output: object) -> Tensor | None:
    if isinstance(output, Tensor):
        return output
    found = output.get("logits") if isinstance(output, dict) else None
    return getattr(output, "logits", found)


def _floats(output: object, learn: bool = False) -> list[Tensor]:
    """The tensors of numbers in an output, whatever it is made of."""
    found: list[Tensor] = []

    def look(value):
        if isinstance(value, Tensor):
            if value.is_floating_point() and (value.requires_grad or not learn):
                found.append(value)
        elif isinstance(value, dict):
            for part in value.values():
                look(part)
        elif isinstance(value, (list, tuple)):
            for part in value:
                look(part)

    look(output)
    return found


def _target(inputs: Inputs) -> Tensor:
    labels = inputs.kwargs.get("labels")
    if isinstance(labels, Tensor):
        return labels
    first = next(t for t in pytree.tree_leaves((inputs.args, inputs.kwargs)) if t is not None)
    return torch.arange(len(first)) % 10


def _segments(inputs: Inputs) -> Tensor:
    batch, _, height, width = inputs.args[0].shape
    generator = torch.Generator().manual_seed(0)
    return torch.randint(0, 10, (batch, height, width), generator=generator)


def _call(model: nn.Module, inputs: Inputs):
    """On copies: detection models change what they are given."""
    args, kwargs = copy.deepcopy((inputs.args, inputs.kwargs))
    return model(*args, **kwargs)


def _seed(seed: int) -> None:
    torch.manual_seed(seed)
    random.seed(seed)
    numpy.random.seed(seed)
