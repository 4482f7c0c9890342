"""Batches of one part of a data set, the same ones whenever they are asked for again.

In:   examples that are found by their number, and how many make a batch.
Out:  BatchLoader: which examples are in which batch, read by this process or by workers.
Not:  what an example is, and what becomes of it on the device (loader.py, examples.py).

The order of an epoch comes from (seed, epoch), and what batch b holds depends on these and b
alone: there is no state between epochs. So the number of workers and of ranks and the batch at
which an epoch is begun change nothing, and a resumed run sees what the run without a break would
have seen.
"""

from __future__ import annotations

import math
import signal
import threading
from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import DataLoader

from dcil_dsl.data.chance import generator_at
from dcil_dsl.data.prefetch import made_ahead
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
    batch (share_of), rank 0 the first: put one after the other they are the batch of one process.
    A last training batch that would leave a rank less than two examples comes whole to all of them.
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
        """For each request what `make` makes a batch of, on the host. Raises InputError."""

    @abstractmethod
    def make(self, held: Any) -> Any:
        """The batch on the device."""

    @abstractmethod
    def first(self) -> Any:
        """A batch of the first example of the part. No worker is started for it."""

    def example(self) -> Inputs:
        """What the model is called with for the first example of the part, on the CPU.

        Raises InputError where it cannot be read.
        """
        return self.task.inputs(self.first()).to(torch.device("cpu"))

    def epoch(self, epoch: int, start: int = 0) -> Iterator[Any]:
        """The batches of an epoch, from number `start` on.

        Raises InputError for an example that cannot be read. An iterator that is closed or fails
        before its end takes its workers with it; the next epoch starts new ones.
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
        """How many examples batch number `batch` of an epoch has, over all ranks."""
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
                worker.kill()  # one that was asked in vain

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
        """Which places of a batch of `count` this rank reads."""
        return list(range(*self.stretch(count)))

    def stretch(self, count: int) -> tuple[int, int]:
        """start, stop of this rank's part of a batch."""
        least = min(2, self.batch_size // self.world_size)
        if self.shuffled and count < least * self.world_size:
            return 0, count  # every rank learns from all of it: batch norm needs two examples
        return share_of(count, self.rank, self.world_size)

    # -- their bytes -----------------------------------------------------------------------------

    def read(self, requests: Iterator[Request], reader: Any) -> Iterator[Any]:
        """reader[request] for each, by workers where there are any, in order."""
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
        self._workers.sampler.requests = requests  # type: ignore[attr-defined]
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
    """start, stop of a rank's stretch of `count` examples; stretches differ by one at most.

    Where a batch has fewer examples than there are ranks, some stretches are empty.
    """
    return rank * count // world_size, (rank + 1) * count // world_size


@contextmanager
def _no_handler_for_children() -> Iterator[None]:
    """Take back the handler of SIGCHLD that a first DataLoader sets.

    It raises wherever it finds us, in the middle of a step as well, from which no run goes on. Who
    waits for a batch asks by himself every few seconds whether the workers are alive.
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
    """Torch's own words for it, or the socket of a worker that is gone already. What a worker met
    and lives to tell of begins with "Caught"."""
    if str(error).startswith("Caught "):
        return False
    words = ("DataLoader worker", "Pin memory thread exited")  # the thread has met such a socket
    return not isinstance(error, RuntimeError) or any(word in str(error) for word in words)
