"""A module's computation with other weights than its own.

In:   a module, a view for each of its parameters by name, the inputs.
Out:  what the module would compute if those were its parameters. The module is untouched.
Not:  no masks; which view it is, the graph decides.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager, nullcontext

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.func import functional_call
from torch.utils import _pytree as pytree

from dcil_dsl.diagnostics.diagnostic import InputError
from dcil_dsl.masking.path_state import remembered_by
from dcil_dsl.masking.recompute import run_through


def apply_layer(module: nn.Module, parameters: dict[str, Tensor], *args, **kwargs):
    """`module(*args, **kwargs)` reading `parameters` ({"weight": ..., "bias": ...}) instead.

    Layers whose forward is torch.nn's own are called directly; everything else goes through
    torch.func.functional_call, which costs some tens of microseconds a call: hooks run there,
    and a parametrised weight ("parametrizations.weight.original") is computed from its parts.
    """
    forward = type(module).forward
    if has_hooks(module):  # of torch.distributed's checkpoint, for one
        with _checkpoints_run_through():
            return functional_call(module, parameters, args, kwargs, tie_weights=False)
    if kwargs or not _has_own(parameters):
        return functional_call(module, parameters, args, kwargs, tie_weights=False)
    if forward in CONVOLUTIONS:
        return module._conv_forward(*args, parameters["weight"], parameters.get("bias"))
    if forward is nn.Linear.forward:
        return F.linear(*args, parameters["weight"], parameters.get("bias"))
    if forward is nn.LayerNorm.forward:
        weight, bias = parameters["weight"], parameters.get("bias")
        return F.layer_norm(*args, module.normalized_shape, weight, bias, module.eps)
    return functional_call(module, parameters, args, kwargs, tie_weights=False)


def apply_opaque(
    module: nn.Module,
    tensors: dict[str, Tensor],
    hidden: tuple[str, ...],
    args: tuple,
    kwargs: dict[str, object],
    path: str | None = None,
):
    """`module(*args, **kwargs)` of a module with modules inside, reading `tensors` instead.

    tensors  parameters, and buffers, by their names in the module. A buffer that the forward
             changes or replaces is changed in place, be it the module's own or one given here.
    hidden   submodules that the forward must not see, should it go through its children: the
             twins that other paths have of its private modules
    path     whose forward this is, where there are several: what it puts aside in attributes it
             finds again, and no other path does (under torch.compile all paths do)

    Raises InputError where the forward writes to a weight: the view of one path is no place for
    what all paths are to see.
    """
    tensors = _learning(module, tensors)
    versions = _versions(tensors)
    is_shared = path is not None and not torch.compiler.is_compiling()
    memory = remembered_by(module, path) if is_shared else nullcontext()
    with memory, _checkpoints_run_through(), _without(module, hidden):
        given = {**dict(module.named_buffers()), **tensors}
        state = dict(given)
        # Each name is given; to tie by functional_call breaks a module that has two names.
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


def copy_tensors(value):
    """Every tensor in `value`, however deep in lists and dictionaries, as a copy of its own."""
    return pytree.tree_map(lambda leaf: leaf.clone() if isinstance(leaf, Tensor) else leaf, value)


def _checkpoints_run_through():
    """Under torch.compile a checkpoint is part of the graph, its weights inputs of it."""
    return nullcontext() if torch.compiler.is_compiling() else run_through()


@contextmanager
def _without(module: nn.Module, hidden: tuple[str, ...]) -> Iterator[None]:
    """The module without some of its submodules, while the `with` is open."""
    taken: dict[nn.Module, dict[str, nn.Module]] = {}
    for path in hidden:
        owner, _, name = path.rpartition(".")
        owner = module.get_submodule(owner)
        taken.setdefault(owner, dict(owner._modules))
        del owner._modules[name]
    try:
        yield
    finally:
        for owner, children in taken.items():
            owner._modules.update(children)  # they stand last, and in their order


def _learning(module: nn.Module, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """The same; without gradients, views of trained weights as such, which a forward may ask for
    gradients by itself, in torch.enable_grad().
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
    return bool(
        module._forward_hooks
        or module._forward_pre_hooks
        or module._backward_hooks
        or module._backward_pre_hooks
    )


def _has_own(parameters: dict[str, Tensor]) -> bool:
    return "weight" in parameters and all(name in ("weight", "bias") for name in parameters)


CONVOLUTIONS = frozenset({nn.Conv1d.forward, nn.Conv2d.forward, nn.Conv3d.forward})
