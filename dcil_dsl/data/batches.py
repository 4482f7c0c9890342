"""Batches of one part of a data set, the same ones whenever they are requested again.

In:   examples by their number, and the batch size.
Out:  BatchLoader: which examples are in which batch, read by this process or by workers; on CUDA
      the next batch is made while the device computes with the current one.
Not:  what an example is, and how it reaches the device (loader.py, examples.py).

The order of an epoch comes from (seed, epoch), and the content of batch b depends on these and b
alone: there is no state between epochs. So the number of workers and of ranks and the first batch
of an epoch change nothing, and a resumed run sees the batches of the uninterrupted run.
"""

from __future__ import annotations

import math
import signal
import threading
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from functools import cache
from typing import Any, TypeVar

import torch
from torch import Tensor
from torch.utils import _pytree as pytree
from torch.utils.data import DataLoader

from dcil_dsl.data.chance import generator_at
from dcil_dsl.data.reading import Request, Requests, leave_signals
from dcil_dsl.diagnostics import InputError
from dcil_dsl.model.inputs import Inputs
from dcil_dsl.tasks import Task


class BatchLoader(ABC):
    """One part of a data set, in batches.

    task          what reads the batches
    num_examples  examples in an epoch
    num_batches   batches in an epoch; the last may be short. A last training batch of one example
                  is left out, as batch norm cannot train on it: then num_examples is one less
                  than the part holds.

    Both count all ranks together. Of `world_size` processes each gets an equal stretch of every
    batch (share_of), rank 0 the first: concatenated, they are the batch of one process. A last
    training batch that would leave a rank fewer than two examples goes to every rank in full.
    """

    def __init__(
        self,
        name: str,
        examples: Sequence[Any],
        task: Task,
        *,
        shuffled: bool,
        batch_size: int,
        seed: int = 0,
        workers: int = 0,
        device: str | torch.device = "cpu",
        rank: int = 0,
        world_size: int = 1,
    ):
        if not len(examples):
            part = "train" if shuffled else "val"
            raise InputError(f"the {part} part of {name} holds no example")
        self.name, self.examples, self.task = name, examples, task
        self.shuffled = shuffled
        self.batch_size, self.seed, self.workers = batch_size, seed, workers
        self.rank, self.world_size = rank, world_size
        self.num_examples = len(examples)
        if self.shuffled and self.num_examples > 1 and self.num_examples % batch_size == 1:
            self.num_examples -= 1  # never for a batch_size of 1: n % 1 is 0
        self.num_batches = math.ceil(self.num_examples / batch_size)
        self.device = torch.device(device)
        self.layout = torch.contiguous_format
        self._workers: DataLoader[Any] | None = None

    @abstractmethod
    def fetch(self, requests: Iterator[Request]) -> Iterator[Any]:
        """For each request the host data that `make` turns into a batch. Raises InputError."""

    @abstractmethod
    def make(self, held: Any) -> Any:
        """The batch on the device."""

    @abstractmethod
    def first(self) -> Any:
        """A batch of the first example of the part. No worker is started for it."""

    def example(self) -> Inputs:
        """The inputs of the model for the first example of the part, on the CPU.

        Raises InputError where it cannot be read.
        """
        return self.task.inputs(self.first()).to(torch.device("cpu"))

    def epoch(self, epoch: int, start: int = 0) -> Iterator[Any]:
        """The batches of an epoch, from number `start` on.

        Raises InputError for an example that cannot be read. An iterator that is closed or fails
        before its end stops its workers; the next epoch starts new ones.
        """
        order = self.order(epoch)
        requests = (self.request(epoch, batch, order) for batch in range(start, self.num_batches))
        finished = False
        try:
            yield from made_ahead(self.fetch(requests), self.make, self.device)
            finished = True
        finally:
            if not finished:
                self.close()

    def size_of(self, batch: int) -> int:
        """The number of examples in batch number `batch` of an epoch, over all ranks."""
        return min(self.batch_size, self.num_examples - batch * self.batch_size)

    def close(self) -> None:
        """End the workers, if there are any."""
        if self._workers is not None:
            iterator: Any = self._workers._iterator
            self._workers = None
            if iterator is None:
                return
            iterator._shutdown_workers()  # what its __del__ calls, but now
            for worker in iterator._workers:
                worker.kill()  # one that did not stop

    # -- which examples --------------------------------------------------------------------------

    def order(self, epoch: int) -> Tensor:
        """The numbers of the examples of an epoch."""
        if not self.shuffled:
            return torch.arange(len(self.examples))
        chance = generator_at(self.seed, epoch)
        if hasattr(self.examples, "shuffled"):
            shuffled: Tensor = self.examples.shuffled(chance)
            return shuffled
        return torch.randperm(len(self.examples), generator=chance)

    def request(self, epoch: int, batch: int, order: Tensor) -> Request:
        count = self.size_of(batch)
        places = self.places(count)
        first = batch * self.batch_size
        indices = order[first : first + count][places].tolist()
        return Request(epoch, batch, count, tuple(places), tuple(indices))

    def places(self, count: int) -> list[int]:
        """The places of a batch of `count` that this rank reads."""
        return list(range(*self.stretch(count)))

    def stretch(self, count: int) -> tuple[int, int]:
        """start, stop of this rank's part of a batch."""
        least = min(2, self.batch_size // self.world_size)
        if self.shuffled and count < least * self.world_size:
            return 0, count  # every rank learns from all of it: batch norm needs two examples
        return share_of(count, self.rank, self.world_size)

    # -- their bytes -----------------------------------------------------------------------------

    def read(self, requests: Iterator[Request], reader: Any) -> Iterator[Any]:
        """reader[request] for each request, in order, by workers where there are any."""
        if not self.workers:
            yield from (reader[request] for request in requests)
            return
        if self._workers is None:
            self._workers = DataLoader(
                reader,
                batch_size=None,  # a request is a batch already
                sampler=Requests(),
                num_workers=self.workers,
                worker_init_fn=leave_signals,
                pin_memory=self.device.type == "cuda",
                persistent_workers=True,
                generator=torch.Generator(),  # else it draws from the global one
            )
        sampler: Any = self._workers.sampler
        sampler.requests = requests
        try:
            with _no_handler_for_children():
                fetched = iter(self._workers)
            yield from fetched
        except (RuntimeError, OSError, EOFError) as error:
            if not _is_of_dead_worker(error):
                raise
            hint = "often too little memory, or too small a /dev/shm: fewer --workers, or 0"
            raise InputError(f"a worker that reads {self.name} was killed", hint) from error


def share_of(count: int, rank: int, world_size: int) -> tuple[int, int]:
    """start, stop of a rank's part of `count` examples; the sizes of parts differ by at most one.

    Where a batch has fewer examples than there are ranks, some parts are empty.
    """
    return rank * count // world_size, (rank + 1) * count // world_size


@contextmanager
def _no_handler_for_children() -> Iterator[None]:
    """Undo the handler of SIGCHLD that a first DataLoader sets.

    The handler raises anywhere, even in the middle of a step, from which no run can resume. The
    code that waits for a batch polls every few seconds whether the workers are alive.
    """
    if not hasattr(signal, "SIGCHLD"):  # Windows
        yield
        return
    before = signal.getsignal(signal.SIGCHLD)
    try:
        yield
    finally:
        if before is not None and threading.current_thread() is threading.main_thread():
            signal.signal(signal.SIGCHLD, before)


def _is_of_dead_worker(error: Exception) -> bool:
    """Whether a worker died: torch's message, or an error of the socket to it.

    Torch begins the message with "Caught" for an exception that a living worker reports.
    """
    if str(error).startswith("Caught "):
        return False
    words = ("DataLoader worker", "Pin memory thread exited")  # the thread has met such a socket
    return not isinstance(error, RuntimeError) or any(word in str(error) for word in words)


Held = TypeVar("Held")
Made = TypeVar("Made")
Batch = tuple[Tensor, Tensor]


def made_ahead(
    held: Iterable[Held], make: Callable[[Held], Made], device: torch.device
) -> Iterator[Made]:
    """make(h) for each h; on CUDA one batch ahead, in one separate stream for all epochs.

    The stream of the caller waits on the device for the batch that it is given; the host waits for
    neither. `make` may copy from pinned memory with non_blocking=True. `held` runs in the same
    stream as `make`, which reads its results: rows that it picks from data on the device would not
    be ready in the caller's stream.
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
    """One stream for all epochs: the allocator keeps freed memory for the stream that allocated it.
    With a new stream at each epoch (torch hands out 32 in turn) it would keep 32 copies."""
    return torch.cuda.Stream(device)


def _handed_over(batch: Made, made: torch.cuda.Event, device: torch.device) -> Made:
    current = torch.cuda.current_stream(device)
    current.wait_event(made)
    for leaf in pytree.tree_leaves(batch):
        if hasattr(leaf, "record_stream"):  # a tensor
            # Else its memory could be given to the next batch while this one is still read.
            leaf.record_stream(current)
    return batch
