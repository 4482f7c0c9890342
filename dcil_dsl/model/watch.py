"""Record which weights a forward writes to.

In:   a model.
Out:  the names of the parameters that are changed in place or replaced while the `with` is open.
Not:  no buffers: a forward may write to them.

A dispatch mode sees every operation that changes a tensor, also under torch.no_grad() and through
`.data`, whether or not it changes a number this time.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

RENORM = torch.ops.aten.embedding_renorm_.default  # the operation of max_norm


class WeightWatch(TorchDispatchMode):  # type: ignore[no-untyped-call]  # in __init_subclass__
    """`written`: {full name: whether another operation than `max_norm` wrote to it}."""

    def __init__(self, model: nn.Module):
        super().__init__()  # type: ignore[no-untyped-call]
        self.model = model
        self.written: dict[str, bool] = {}
        self.before = dict(model.named_parameters(remove_duplicate=False))
        self.names: dict[int, list[str]] = {}
        for name, parameter in self.before.items():
            self.names.setdefault(_place(parameter), []).append(name)
        self.names.pop(0, None)

    def __torch_dispatch__(
        self, function: Any, types: Any, args: Any = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        for changed in _changed(function, args, kwargs):
            self._note(self.names.get(_place(changed), ()), function is not RENORM)
        return function(*args, **kwargs)

    def __exit__(self, *problem: Any) -> None:
        super().__exit__(*problem)  # type: ignore[no-untyped-call]
        now = dict(self.model.named_parameters(remove_duplicate=False))
        for name, parameter in self.before.items():
            if now.get(name) is not parameter or _place(parameter) not in (0, *self.names):
                self._note([name], True)

    def _note(self, names: Iterable[str], is_other: bool) -> None:
        for name in names:
            self.written[name] = is_other or self.written.get(name, False)


def _changed(function: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Iterator[Tensor]:
    if not function._schema.is_mutable:
        return
    for place, argument in enumerate(function._schema.arguments):
        if argument.alias_info is not None and argument.alias_info.is_write:
            value = args[place] if place < len(args) else kwargs.get(argument.name)
            for tensor in value if isinstance(value, (list, tuple)) else [value]:
                if isinstance(tensor, Tensor):
                    yield tensor


def _place(tensor: Tensor) -> int:
    """The address of its storage; 0 if it has none."""
    if tensor.layout != torch.strided or tensor.is_meta:
        return 0
    return tensor.untyped_storage().data_ptr()
