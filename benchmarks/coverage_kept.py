"""A tenth of the layers is kept out of the rule, and one of its weights leaves the model early.

In:   a model; its layers that can be pruned.
Out:  the model, which also returns the squared norm of one weight; the layers that are kept.
Not:  no chance: layers are chosen by the hashes of their names.

Where every layer is pruned, each value behind the first of them belongs to one path. A weight that
no rule prunes is read by both, and what is computed of it alone is computed once: a fault in how
its gradient is shared out shows in such a value, and not in the network's own output.
"""

from __future__ import annotations

import functools
import math
import zlib
from collections import Counter
from collections.abc import Sequence

from torch import nn

SHARE = 0.1


def kept_layers(layers: Sequence, early: str) -> list[str]:
    """The paths of a tenth of the layers, at least one of two, with that of the weight `early`.

    A weight that two layers read is not kept: the rule of the one would be that of the other.
    """
    readers = Counter(name for layer in layers for name in layer.weights)
    alone = [layer for layer in layers if all(readers[name] == 1 for name in layer.weights)]
    first = [layer.path for layer in alone if early in layer.weights]
    paths = first + sorted((layer.path for layer in alone), key=_hash)
    num = min(math.ceil(SHARE * len(layers)), len(layers) - 1)
    return list(dict.fromkeys(paths))[:num]


def leave_early(model: nn.Module) -> str:
    """Have the model return {"output": what it returned, "early": a norm}; the weight's name."""
    seen: dict[int, list[str]] = {}
    for name, parameter in model.named_parameters(remove_duplicate=False):
        seen.setdefault(id(parameter), []).append(name)
    names = [
        name
        for name, parameter in model.named_parameters()
        if parameter.dim() > 1
        and parameter.requires_grad
        and len(seen[id(parameter)]) == 1
        and name.endswith("weight")
    ]
    early = min(names or [name for name, _ in model.named_parameters()], key=_hash)
    kind = type(model)
    owner, _, leaf = early.rpartition(".")

    @functools.wraps(kind.forward)
    def forward(self, *args, **kwargs):
        output = kind.forward(self, *args, **kwargs)
        weight = getattr(self.get_submodule(owner), leaf)
        return {"output": output, "early": weight.square().mean()}

    model.__class__ = type(kind.__name__, (kind,), {"forward": forward})
    return early


def _hash(name: str) -> int:
    return zlib.crc32(name.encode())
