"""Which weights a forward writes to, seen while it runs.

In:   a model.
Out:  the names of the parameters that were changed in place, or replaced, while the `with` is open.
Not:  nothing is refused here. Buffers are there to be written.

Every operation that changes a tensor passes by a dispatch mode, under torch.no_grad() and through
`.data`, too, and whether or not it changes a number this time.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

RENORM = torch.ops.aten.embedding_renorm_.default  # what max_norm does


class WeightWatch(TorchDispatchMode):
    """`written`: {full name: whether something else than `max_norm` has written to it}."""

    def __init__(self, model: nn.Module):
        super().__init__()
        self.model, self.written = model, {}
        self.before = dict(model.named_parameters(remove_duplicate=False))
        self.names: dict[int, list[str]] = {}
        for name, parameter in self.before.items():
            self.names.setdefault(_place(parameter), []).append(name)
        self.names.pop(0, None)

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        for changed in _changed(function, args, kwargs):
            self._note(self.names.get(_place(changed), ()), function is not RENORM)
        return function(*args, **kwargs)

    def __exit__(self, *problem):
        super().__exit__(*problem)
        now = dict(self.model.named_parameters(remove_duplicate=False))
        for name, parameter in self.before.items():
            if now.get(name) is not parameter or _place(parameter) not in (0, *self.names):
                self._note([name], True)

    def _note(self, names, is_other: bool) -> None:
        for name in names:
            self.written[name] = is_other or self.written.get(name, False)


def _changed(function, args: tuple, kwargs: dict) -> Iterator[Tensor]:
    if not function._schema.is_mutable:
        return
    for place, argument in enumerate(function._schema.arguments):
        if argument.alias_info is not None and argument.alias_info.is_write:
            value = args[place] if place < len(args) else kwargs.get(argument.name)
            for tensor in value if isinstance(value, (list, tuple)) else [value]:
                if isinstance(tensor, Tensor):
                    yield tensor


def _place(tensor: Tensor) -> int:
    """Where its numbers lie; 0 where it has none, or no such place."""
    if tensor.layout != torch.strided or tensor.is_meta:
        return 0
    return tensor.untyped_storage().data_ptr()
