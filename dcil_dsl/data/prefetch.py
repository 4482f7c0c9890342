"""The next batch is made while the device works on this one.

In:   what the host has of each batch, and how it becomes a batch on the device.
Out:  the batches, in order.
Not:  nothing runs ahead on a CPU, which would compute both in turn.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from typing import TypeVar

import torch
from torch import Tensor

Held = TypeVar("Held")
Batch = tuple[Tensor, Tensor]


def made_ahead(
    held: Iterable[Held], make: Callable[[Held], Batch], device: torch.device
) -> Iterator[Batch]:
    """make(h) for each h; on CUDA one batch ahead, in a stream of its own.

    The stream of the caller waits, on the device, for the batch that it is given, and the host
    waits for neither. `make` may copy from pinned memory with non_blocking=True. What `held` does
    on the device, as to pick the rows of data that lie there, it does in the same stream as
    `make`, which reads them: in the caller's, they might not be there yet.
    """
    if device.type != "cuda":
        yield from map(make, held)
        return
    stream = torch.cuda.Stream(device)
    stream.wait_stream(torch.cuda.current_stream(device))  # what make reads may be on its way
    held, ready, over = iter(held), None, object()
    while True:
        with torch.cuda.stream(stream):
            each = next(held, over)
            made = None if each is over else (make(each), stream.record_event())
        if ready is not None:
            yield _handed_over(*ready, device)
        if made is None:
            return
        ready = made


def _handed_over(batch: Batch, made: torch.cuda.Event, device: torch.device) -> Batch:
    current = torch.cuda.current_stream(device)
    current.wait_event(made)
    for tensor in batch:
        # Else its memory could be given to the next batch while this one is still read.
        tensor.record_stream(current)
    return batch
