"""The next batch is made while the device works on this one.

In:   what the host has of each batch, and how it becomes a batch on the device.
Out:  the batches, in order.
Not:  nothing runs ahead on a CPU, which would compute both in turn.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from functools import cache
from typing import Any, TypeVar

import torch
from torch import Tensor
from torch.utils import _pytree as pytree

Held = TypeVar("Held")
Made = TypeVar("Made")
Batch = tuple[Tensor, Tensor]


def made_ahead(
    held: Iterable[Held], make: Callable[[Held], Made], device: torch.device
) -> Iterator[Made]:
    """make(h) for each h; on CUDA one batch ahead, in a stream of its own, for all epochs the same.

    The stream of the caller waits, on the device, for the batch that it is given, and the host
    waits for neither. `make` may copy from pinned memory with non_blocking=True. What `held` does
    on the device, as to pick the rows of data that lie there, it does in the same stream as
    `make`, which reads them: in the caller's, they might not be there yet.
    """
    if device.type != "cuda":
        yield from map(make, held)
        return
    stream = _stream_ahead(device)
    stream.wait_stream(torch.cuda.current_stream(device))  # what make reads may be on its way
    left, ready, over = iter(held), None, object()
    while True:
        with torch.cuda.stream(stream):
            each: Any = next(left, over)
            made = None if each is over else (make(each), stream.record_event())
        if ready is not None:
            yield _handed_over(*ready, device)
        if made is None:
            return
        ready = made


@cache
def _stream_ahead(device: torch.device) -> torch.cuda.Stream:
    """The allocator keeps what is freed for the stream that it was made in: with a new one at each
    epoch (torch has 32 of them to give in turn) all that batches need would be kept 32 times."""
    return torch.cuda.Stream(device)  # type: ignore[no-untyped-call]


def _handed_over(batch: Made, made: torch.cuda.Event, device: torch.device) -> Made:
    current = torch.cuda.current_stream(device)
    current.wait_event(made)
    for leaf in pytree.tree_leaves(batch):
        if hasattr(leaf, "record_stream"):  # a tensor
            # Else its memory could be given to the next batch while this one is still read.
            leaf.record_stream(current)
    return batch
