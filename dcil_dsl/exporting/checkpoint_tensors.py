"""The tensors that a checkpoint deploys, and how those of an exported file differ from them.

In:   the tensors of a checkpoint and the Plan of its run; the tensors of a file.
Out:  the tensors that the file must hold, under the original's names; every tensor that is missing,
      unknown to the model, or of another shape, type or value.
Not:  no model is built (compiler/collapse.py builds one), no zeros are counted (verify.py).
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping

import torch
from torch import Tensor

from dcil_dsl.compiler.privatize import is_of_mean, is_within, twin_name, twin_names
from dcil_dsl.compiler.weight_state import buffers_of
from dcil_dsl.plan.plan import Group, Plan
from dcil_dsl.training.checkpoint import under

MAX_TOLD = 5  # tensors whose numbers differ; the count of the rest is said


def state_of(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The dual graph's state in a checkpoint: averages where the recipe has them."""
    return under("model/", tensors) | under("average/", tensors)


def deployed_tensors(
    state: Mapping[str, Tensor], plan: Plan, path: str
) -> tuple[dict[str, Tensor], set[str]]:
    """The tensors that `path` deploys from a dual graph's state; the names of unknown values.

    Unknown are the weights of a view of another package, of a view with a threshold, and those
    stored as theta (`param`): only their shapes, types and zeros are known.
    """
    view = next(entry.view for entry in plan.paths if entry.name == path)
    kinds = {name: ("mask", "score", *buffers_of(g, plan)) for g, name in _pruned(plan)}
    ours = {f"{name}_{kind}" for name, those in kinds.items() for kind in those}
    twins = frozenset(twin_names(plan))
    found = {
        name: tensor
        for name, tensor in state.items()
        if name not in ours and not is_within(name, twins) and not is_of_mean(name, plan)
    }
    if path != plan.deploy:
        for entry in plan.privates:
            own, twin = f"{entry.module}.", f"{twin_name(entry.module, path)}."
            found |= {
                own + name.removeprefix(twin): tensor
                for name, tensor in state.items()
                if name.startswith(twin)
            }
    unknown = set()
    for group, name in _pruned(plan):
        mask = state.get(f"{name}_mask")
        if name not in found or mask is None or not _fits(mask, found[name]):
            continue  # a fault of the checkpoint, which mask_faults names
        if group.param is not None or not view.entrywise or view.soft:
            unknown.add(name)
            found[name] = found[name].masked_fill(~mask, 0.0)
        else:
            found[name] = view.of(found[name], mask)
    return found, unknown


def mask_faults(state: Mapping[str, Tensor], plan: Plan) -> list[str]:
    """Weights that the plan does not prune, and masks that do not fit these weights."""
    shapes = {layer.parameter: layer.shape for layer in plan.layers}
    faults = []
    for name, shape in shapes.items():
        if name in state and tuple(state[name].shape) != shape:
            faults.append(
                f"{name} has the shape {_words(state[name].shape)}, the plan {_words(shape)}"
            )
    for _, name in _pruned(plan):
        mask = state.get(f"{name}_mask")
        if name not in state:
            faults.append(f"{name} is missing")
        elif mask is None:
            faults.append(f"{name} has no mask")
        elif not _fits(mask, state[name]):
            faults.append(
                f"the mask of {name} is {_type(mask)} of the shape {_words(mask.shape)}, not bool "
                f"of {_words(state[name].shape)}"
            )
    return faults


def differences(
    tensors: Mapping[str, Tensor], wanted: Mapping[str, Tensor], exact_type: bool = True
) -> list[str]:
    """Tensors of only one of model and file; tensors of other shapes and types.

    exact_type  False: a floating type may be another floating type
    """
    faults = []
    for name in dict.fromkeys([*wanted, *tensors]):
        if name not in tensors:
            faults.append(f"{name} is missing")
        elif name not in wanted:
            faults.append(f"{name} is not a tensor of the model")
        elif tensors[name].shape != wanted[name].shape:
            faults.append(
                f"{name} has the shape {_words(tensors[name].shape)}, the model "
                f"{_words(wanted[name].shape)}"
            )
        elif tensors[name].dtype != wanted[name].dtype and (
            exact_type or _kind(tensors[name]) != _kind(wanted[name])
        ):
            faults.append(f"{name} is {_type(tensors[name])}, in the model {_type(wanted[name])}")
    return faults


def other_numbers(
    tensors: Mapping[str, Tensor], wanted: Mapping[str, Tensor], unknown: set[str]
) -> list[str]:
    """One fault that names the tensors whose values are not those of the checkpoint, if any."""
    names = []
    for name, tensor in wanted.items():
        have = tensors.get(name)
        if have is None or have.shape != tensor.shape or have.dtype != tensor.dtype:
            continue
        is_same = (
            not (have[tensor == 0] != 0).any()
            if name in unknown
            else torch.equal(_bits(have), _bits(tensor))
        )
        if not is_same:
            names.append(name)
    if not names:
        return []
    more = f" and {len(names) - MAX_TOLD} more" if len(names) > MAX_TOLD else ""
    told = ", ".join(names[:MAX_TOLD]) + more
    return [f"the numbers are not those that the checkpoint deploys: {told}"]


def _pruned(plan: Plan) -> list[tuple[Group, str]]:
    return [(group, name) for group in plan.groups for name in group.parameters]


def _fits(mask: Tensor, weight: Tensor) -> bool:
    return mask.dtype == torch.bool and mask.shape == weight.shape


def _bits(tensor: Tensor) -> Tensor:
    """The bits to compare: equal NaNs are equal, and -0 equals 0."""
    if tensor.is_floating_point():
        tensor = torch.where(tensor == 0, tensor.new_zeros(()), tensor)
    return tensor.contiguous().reshape(-1).view(torch.uint8)


def _kind(tensor: Tensor) -> str:
    if tensor.dtype == torch.bool:
        return "bool"
    return "real" if tensor.is_floating_point() else "complex" if tensor.is_complex() else "whole"


def _type(tensor: Tensor) -> str:
    return str(tensor.dtype).removeprefix("torch.")


def _words(shape: Iterable[int]) -> str:
    return " x ".join(map(str, shape)) or "scalar"
