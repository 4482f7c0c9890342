"""Call a module with other weights than its own, and with a part of its inputs.

In:   a module, a view of each of its parameters by name, the inputs.
Out:  the output of the module with these parameters; the module itself is not changed. The first
      rows of a batch, smaller images.
Not:  no masks; the graph chooses the views.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.func import functional_call
from torch.utils import _pytree as pytree

from dcil_dsl.diagnostics.errors import InputError
from dcil_dsl.model.inner_checkpoints import run_through
from dcil_dsl.model.side_effects import remembered_by


def apply_layer(module: nn.Module, parameters: dict[str, Tensor], *args: Any, **kwargs: Any) -> Any:
    """`module(*args, **kwargs)` with `parameters` ({"weight": ..., "bias": ...}) as its own.

    Common layers with torch.nn's own forward are called directly. Everything else goes through
    torch.func.functional_call, which costs some tens of microseconds a call; it runs hooks, and
    computes a parametrized weight from "parametrizations.weight.original".
    """
    layer: Any = module
    forward = type(module).forward
    if has_hooks(module):  # torch.distributed's checkpoint has some
        with _checkpoints_run_through():
            return functional_call(module, parameters, args, kwargs, tie_weights=False)
    if kwargs or not _is_plain(parameters):
        return functional_call(module, parameters, args, kwargs, tie_weights=False)
    if forward in CONVOLUTIONS:
        return layer._conv_forward(*args, parameters["weight"], parameters.get("bias"))
    if forward is nn.Linear.forward:
        (x,) = args
        return F.linear(x, parameters["weight"], parameters.get("bias"))
    if forward is nn.LayerNorm.forward:
        (x,), weight, bias = args, parameters["weight"], parameters.get("bias")
        return F.layer_norm(x, layer.normalized_shape, weight, bias, layer.eps)
    return functional_call(module, parameters, args, kwargs, tie_weights=False)


def apply_opaque(
    module: nn.Module,
    tensors: dict[str, Tensor],
    hidden: tuple[str, ...],
    args: tuple[Any, ...],
    kwargs: dict[str, Any],
    path: str | None = None,
) -> Any:
    """`module(*args, **kwargs)` of an opaque module, with `tensors` as its own.

    tensors  parameters and buffers by their names in the module. A buffer that the forward
             changes or replaces is changed in place, whether the module's own or one of these.
    hidden   submodules to hide from a forward that iterates over its children: the twins of its
             private modules
    path     the path of the call, if there are several. Each path has its own copy of the
             attributes that the forward sets (under torch.compile they share them)

    Raises InputError if the forward writes to a weight: the write would go to the view of one path.
    """
    tensors = _requiring_grad(module, tensors)
    versions = _versions(tensors)
    memory: AbstractContextManager[None] = nullcontext()
    if path is not None and not torch.compiler.is_compiling():
        memory = remembered_by(module, path)
    with memory, _checkpoints_run_through(), _without(module, hidden):
        given = {**dict(module.named_buffers()), **tensors}
        state = dict(given)
        # Every name has a tensor; tie_weights=True breaks a module that has two names.
        result = functional_call(module, state, tuple(args), dict(kwargs), tie_weights=False)
    replaced = [name for name, tensor in given.items() if state[name] is not tensor]
    written = [name for name, version in _versions(tensors).items() if version != versions[name]]
    written += [name for name in replaced if given[name].requires_grad]
    if written:
        kind = type(module).__name__
        raise InputError(f"the forward of {kind} changes its weight `{written[0]}` in place")
    for name in replaced:
        given[name].data = state[name].detach()
    return result


def copy_tensors(value: Any) -> Any:
    """`value` with a copy of every tensor in it, however deep in lists and dictionaries."""
    return pytree.tree_map(lambda leaf: leaf.clone() if isinstance(leaf, Tensor) else leaf, value)


def _checkpoints_run_through() -> AbstractContextManager[None]:
    """run_through; not under torch.compile, whose graphs have the weights as inputs."""
    return nullcontext() if torch.compiler.is_compiling() else run_through()


@contextmanager
def _without(module: nn.Module, hidden: tuple[str, ...]) -> Iterator[None]:
    """Hide some submodules of the module while the `with` is open."""
    taken: dict[nn.Module, dict[str, nn.Module | None]] = {}
    for path in hidden:
        parent, _, name = path.rpartition(".")
        owner = module.get_submodule(parent)
        taken.setdefault(owner, dict(owner._modules))
        del owner._modules[name]
    try:
        yield
    finally:
        for owner, children in taken.items():
            owner._modules.update(children)  # twins come last, so the order stays the same


def _requiring_grad(module: nn.Module, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """The tensors; under torch.no_grad(), views of trained weights as leaves that require
    gradients, for a forward that differentiates within torch.enable_grad().
    """
    if torch.is_grad_enabled() or torch.is_inference_mode_enabled():
        return tensors
    trained = {n for n, p in module.named_parameters(remove_duplicate=False) if p.requires_grad}
    return {
        name: tensor.detach().requires_grad_()
        if name in trained and not isinstance(tensor, nn.Parameter)
        else tensor
        for name, tensor in tensors.items()
    }


def _versions(tensors: dict[str, Tensor]) -> dict[str, int]:
    if torch.compiler.is_compiling() or not torch.is_grad_enabled():
        return {}
    return {name: tensor._version for name, tensor in tensors.items() if tensor.requires_grad}


def is_plain_forward(module: nn.Module) -> bool:
    """Whether the forward is torch.nn's own, of a convolution or a linear layer, without hooks."""
    forward = type(module).forward
    return (forward is nn.Linear.forward or forward in CONVOLUTIONS) and not has_hooks(module)


def has_hooks(module: nn.Module) -> bool:
    """Whether a call of the module runs hooks."""
    return bool(
        module._forward_hooks
        or module._forward_pre_hooks
        or module._backward_hooks
        or module._backward_pre_hooks
    )


def global_hook() -> str | None:
    """The name of a hook for the calls of all modules that other code than torch's registered.

    A graph calls some modules of the model and not others, and a Dual gives {path: output}.
    """
    kinds = ("forward", "forward_pre", "backward", "backward_pre")
    for hooks in (getattr(nn.modules.module, f"_global_{kind}_hooks") for kind in kinds):
        for hook in hooks.values():
            home = getattr(hook, "__module__", None) or ""
            if home.split(".")[0] != "torch":  # which only watches: torch.utils.module_tracker
                return str(getattr(hook, "__qualname__", type(hook).__name__))
    return None


def has_own_methods(module: nn.Module) -> bool:
    """Whether an attribute of the instance hides a method of its class, such as `forward`.

    The tracer traces through such a layer, so no call of a graph is one of it.
    """
    return any(callable(getattr(type(module), name, None)) for name in vars(module))


def _is_plain(parameters: dict[str, Tensor]) -> bool:
    return "weight" in parameters and all(name in ("weight", "bias") for name in parameters)


CONVOLUTIONS = frozenset({nn.Conv1d.forward, nn.Conv2d.forward, nn.Conv3d.forward})


# -- a part of the inputs --------------------------------------------------------------------------


def subsample_input(value: object, batch: float, size: float) -> object:
    """The first `batch` share of the rows, at least one; images (B, C, H, W) at `size` of their
    height and width, each new pixel the mean of the area it covers.

    Tensors may be in lists and dictionaries; other values do not change.
    """

    def subsample(leaf: object) -> object:
        if not isinstance(leaf, Tensor) or leaf.dim() == 0:
            return leaf
        if batch < 1:
            leaf = leaf[: num_rows(leaf.shape[0], batch)]
        if size < 1 and leaf.dim() == 4 and leaf.is_floating_point():
            shape = [max(1, round(side * size)) for side in leaf.shape[2:]]
            leaf = F.interpolate(leaf, shape, mode="area")
        return leaf

    return pytree.tree_map(subsample, value)


def num_rows(count: int, batch: float) -> int:
    """The number of rows in a share of `count` rows, rounded up."""
    return math.ceil(count * batch - 1e-9)
