"""What a model is called with.

In:   positional and keyword arguments of a forward, tensors in any structure.
Out:  Inputs, from whatever form a caller has them in.
Not:  nothing is run.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import torch
from torch import Tensor
from torch.utils import _pytree as pytree


@dataclass(frozen=True)
class Inputs:
    """model(*args, **kwargs)"""

    args: tuple = ()
    kwargs: dict = field(default_factory=dict)

    @classmethod
    def of(cls, given: Inputs | Mapping | tuple | list | Tensor) -> Inputs:
        """A tuple is positional arguments, a dict keyword arguments, a tensor the one argument."""
        if isinstance(given, Inputs):
            return given
        if isinstance(given, Mapping):
            return cls(kwargs=dict(given))
        return cls(args=(given,) if isinstance(given, Tensor) else tuple(given))

    def to(self, *where: torch.device | torch.dtype) -> Inputs:
        """The same with every tensor moved; whole numbers keep their type."""

        def move(value):
            for place in where:
                if isinstance(place, torch.device) or value.is_floating_point():
                    value = value.to(place)
            return value

        args, kwargs = pytree.tree_map_only(Tensor, move, (self.args, self.kwargs))
        return Inputs(args, kwargs)
