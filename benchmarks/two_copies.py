"""Two paths over one set of weights, written plainly: two copies of the model, two forwards.

In:   any model, the names of its pruned weights and private modules, how to call it, a loss.
Out:  outputs, loss and every gradient of a step; its statistics, and any values taken over.
Not:  nothing of dcil_dsl is used here, so that it can be held against it.

The sparse path sees w * m, the dense path w. A kept weight learns from the sparse path, a pruned
one from the dense, and what is not pruned at all from both in the proportion `rest`.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable

import torch
from torch import Tensor, nn

TWIN = "__dense"


class TwoCopies:
    """`model` is taken over as the one set of weights; private modules have a second one."""

    def __init__(
        self, model: nn.Module, pruned: list[str], private: list[str], rest: tuple[float, float]
    ):
        self.model = model
        self.twins = {name: copy.deepcopy(model.get_submodule(name)) for name in private}
        self.rest = rest
        first = {id(p): name for name, p in model.named_parameters()}
        every = dict(model.named_parameters(remove_duplicate=False))
        self.pruned = [first[id(every[name])] for name in pruned]
        self.masks: dict[str, Tensor] = {}

    def refresh(self, sparsity: float) -> None:
        """Each weight keeps its largest, n * (1 - sparsity) rounded down; the earlier of equals."""
        for name in self.pruned:
            size = self.model.get_parameter(name).detach().abs().flatten()
            keep = max(1, math.floor(round(size.numel() * (1 - sparsity), 6)))
            last = size.kthvalue(size.numel() - keep + 1).values
            mask = size > last
            equal = (size == last).nonzero().flatten()
            mask[equal[: keep - int(mask.sum())]] = True
            self.masks[name] = mask.view_as(self.model.get_parameter(name))

    def step(
        self,
        call: Callable[[nn.Module], object],
        loss_of: Callable[[object, object], Tensor],
    ) -> tuple[object, object, Tensor, dict[str, Tensor]]:
        """Forward on both copies, sparse first; (sparse output, dense output, loss, gradients).

        call     runs a model on the batch
        loss_of  (sparse output, dense output) -> the loss
        Gradients go by the name of the parameter, a twin's by "norm1__dense.weight".
        """
        sparse, dense = copy.deepcopy(self.model), copy.deepcopy(self.model)
        with torch.no_grad():
            for name, mask in self.masks.items():
                sparse.get_parameter(name).mul_(mask)
        for name, twin in self.twins.items():
            dense.get_submodule(name).load_state_dict(twin.state_dict())
        y_sparse = call(sparse)
        # What both paths share is moved by the sparse forward and then by the dense one.
        ours = dict(sparse.named_buffers())
        for name, _ in list(dense.named_buffers()):
            if not self._private(name) and name in ours:
                _put(dense, name, ours[name])
        y_dense = call(dense)
        loss = loss_of(y_sparse, y_dense)
        # Before a backward pass that computes again and so moves statistics a second time.
        self._keep_buffers(sparse, dense)
        if loss.requires_grad:
            loss.backward()
        return y_sparse, y_dense, loss.detach(), self._route(sparse, dense)

    @torch.no_grad()
    def take(self, values: dict[str, Tensor]) -> None:
        """Set every weight and buffer, those of the twins too, to the value of its name."""
        for name, value in (self.parameters() | self.buffers()).items():
            value.copy_(values[name])

    def parameters(self) -> dict[str, nn.Parameter]:
        found = dict(self.model.named_parameters())
        for module, twin in self.twins.items():
            found |= {f"{module}{TWIN}.{name}": p for name, p in twin.named_parameters()}
        return found

    def buffers(self) -> dict[str, Tensor]:
        found = dict(self.model.named_buffers())
        for module, twin in self.twins.items():
            found |= {f"{module}{TWIN}.{name}": b for name, b in twin.named_buffers()}
        return found

    # -- inside a step -----------------------------------------------------------------------

    def _route(self, sparse: nn.Module, dense: nn.Module) -> dict[str, Tensor]:
        gradients = {}
        pairs = zip(sparse.named_parameters(), dense.parameters(), strict=True)
        for (name, one), other in pairs:
            zero = torch.zeros_like(one)
            g_sparse = zero if one.grad is None else one.grad
            g_dense = zero if other.grad is None else other.grad
            module = self._private(name)
            if module is not None:
                gradients[name] = g_sparse
                gradients[f"{module}{TWIN}{name[len(module) :]}"] = g_dense
            elif name in self.masks:
                m = self.masks[name].to(g_sparse.dtype)
                gradients[name] = m * g_sparse + (1 - m) * g_dense
            else:
                gradients[name] = self.rest[0] * g_sparse + self.rest[1] * g_dense
            one.grad = other.grad = None
        return gradients

    @torch.no_grad()
    def _keep_buffers(self, sparse: nn.Module, dense: nn.Module) -> None:
        one, other = dict(sparse.named_buffers()), dict(dense.named_buffers())
        for name, _ in list(self.model.named_buffers()):
            _put(self.model, name, (one if self._private(name) else other)[name])
        for module, twin in self.twins.items():
            for name, _ in list(twin.named_buffers()):
                _put(twin, name, other[f"{module}.{name}"])

    def _private(self, name: str) -> str | None:
        """The private module that a parameter or buffer is in."""
        parts = name.split(".")
        for end in range(len(parts) - 1, 0, -1):
            module = ".".join(parts[:end])
            if module in self.twins:
                return module
        return None


def _put(model: nn.Module, name: str, value: Tensor) -> None:
    """Set a buffer; forwards may make theirs anew, in another shape."""
    owner, _, leaf = name.rpartition(".")
    model.get_submodule(owner)._buffers[leaf] = value.detach().clone()
