"""The digest of tensors by name: one string that is another where a number is.

In:   tensors by name, on any device; a header.
Out:  a sha256.
Not:  no file is read.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from hashlib import sha256

import torch
from torch import Tensor


def digest(tensors: Mapping[str, Tensor], header: Mapping[str, str] | None = None) -> str:
    """A sha256 of names, types, shapes and values in the order of the names, after the header."""
    total = sha256(json.dumps(dict(header), sort_keys=True).encode() if header else b"")
    for name in sorted(tensors):
        tensor = tensors[name].detach().cpu().contiguous()
        total.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}\n".encode())
        total.update(tensor.reshape(-1).view(torch.uint8).numpy().data)
    return total.hexdigest()
