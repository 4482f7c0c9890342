"""Batches of a data set on the device, the same ones whenever they are asked for again.

In:   one part of a Dataset, and the size, order and augmentation of its batches.
Out:  (images float32 (B, C, H, W), normalised; labels int64 (B,)), both on the device.
Not:  no state between epochs: what batch b of epoch e holds depends on the seed, e and b alone.
      torch's global random numbers are neither used nor moved. No process talks to another.

The order of an epoch comes from (seed, epoch), an image's augmentation from (seed, epoch, index).
So the number of workers and the batch at which an epoch is begun change nothing, and a resumed
run sees what the run without a break would have seen.
"""

from __future__ import annotations

import hashlib
import math
import signal
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor
from torch.utils.data import DataLoader
from torchvision.transforms.v2 import functional

from dcil_dsl.data.augment import Transform, train_transform, val_transform
from dcil_dsl.data.dataset import Dataset, Tensors
from dcil_dsl.diagnostics import InputError
from dcil_dsl.plan.plan import Augment

Batch = tuple[Tensor, Tensor]


class Loader:
    """One part of a data set, in batches.

    num_examples  examples in an epoch
    num_batches   batches in an epoch; the last may be short. A last training batch of one example
                  is left out, as batch norm cannot train on it: then num_examples is one less
                  than the part holds.

    Both count all ranks together. Of `world_size` processes each gets an equal stretch of every
    batch (share_of), rank 0 the first: put one after the other they are the batch of one process.
    """

    def __init__(
        self,
        dataset: Dataset,
        part: Literal["train", "val"],
        *,
        batch_size: int,
        image_size: int | None = None,
        channels: int = 3,
        augment: tuple[Augment, ...] = (),
        seed: int = 0,
        workers: int = 0,
        device: str | torch.device = "cpu",
        channels_last: bool = False,
        rank: int = 0,
        world_size: int = 1,
    ):
        if channels != dataset.num_channels:
            have = dataset.num_channels
            raise InputError(f"{dataset.name} was opened with {have} channels, not {channels}")
        self.name, self.examples = dataset.name, getattr(dataset, part)
        if not len(self.examples):
            raise InputError(f"the {part} part of {dataset.name} holds no example")
        native = _native_size(self.examples)
        if part == "train":
            transform = train_transform(augment, image_size, native)
        else:
            transform = val_transform(augment, image_size, native)
        self.shuffled = part == "train"
        self.batch_size, self.seed, self.workers = batch_size, seed, workers
        self.rank, self.world_size = rank, world_size
        self.num_examples = len(self.examples)
        if self.shuffled and self.num_examples > 1 and self.num_examples % batch_size == 1:
            self.num_examples -= 1  # never for a batch_size of 1: n % 1 is 0
        self.num_batches = math.ceil(self.num_examples / batch_size)
        self.device = torch.device(device)
        self.layout = torch.channels_last if channels_last else torch.contiguous_format
        self.mean, self.std = list(dataset.mean), list(dataset.std)
        # Without chance in it, a transform of tensors does the whole batch at once.
        whole = isinstance(self.examples, Tensors) and not (self.shuffled and augment)
        self.samples = Samples(self.examples, transform, seed, whole)
        self._workers: DataLoader | None = None

    def epoch(self, epoch: int, start: int = 0) -> Iterator[Batch]:
        """The batches of an epoch, from number `start` on.

        Raises InputError for an image that cannot be read. An iterator that is closed or fails
        before its end takes its workers with it; the next epoch starts new ones.
        """
        batches = self._order(epoch)[: self.num_examples].split(self.batch_size)[start:]
        requests = (Request(epoch, tuple(self._own(indices).tolist())) for indices in batches)
        finished = False
        try:
            for batch in self._fetch(requests):
                if isinstance(batch, InputError):
                    raise batch
                yield self._on_device(*batch)
            finished = True
        finally:
            if not finished:
                self.close()

    def size_of(self, batch: int) -> int:
        """How many examples batch number `batch` of an epoch has, over all ranks."""
        return min(self.batch_size, self.num_examples - batch * self.batch_size)

    def _own(self, indices: Tensor) -> Tensor:
        start, stop = share_of(len(indices), self.rank, self.world_size)
        return indices[start:stop]

    def close(self) -> None:
        """End the workers, if there are any."""
        if self._workers is not None:
            iterator, self._workers = self._workers._iterator, None
            if iterator is None:
                return
            try:
                iterator._shutdown_workers()  # what its __del__ calls, but now
            except RuntimeError as error:
                # Torch's signal handler tells of a dead worker wherever it finds us: here, of
                # one that was to end anyway.
                if "DataLoader worker" not in str(error):
                    raise

    def _order(self, epoch: int) -> Tensor:
        if not self.shuffled:
            return torch.arange(len(self.examples))
        generator = torch.Generator().manual_seed(_mix(self.seed, epoch))
        return torch.randperm(len(self.examples), generator=generator)

    def _fetch(self, requests: Iterator[Request]) -> Iterator[Batch | InputError]:
        if not self.workers or self.samples.whole:
            yield from (self.samples[request] for request in requests)
            return
        if self._workers is None:
            self._workers = DataLoader(
                self.samples,
                batch_size=None,  # a request is a batch already
                sampler=Requests(),
                num_workers=self.workers,
                worker_init_fn=_ignore_interrupt,
                pin_memory=self.device.type == "cuda",
                persistent_workers=True,
                generator=torch.Generator(),  # else it draws from the global one
            )
        self._workers.sampler.requests = requests
        try:
            yield from self._workers
        except (RuntimeError, OSError, EOFError) as error:
            # Torch's own word for it, or the socket of a worker that is gone already.
            if isinstance(error, RuntimeError) and "DataLoader worker" not in str(error):
                raise
            hint = "often too little memory, or too small a /dev/shm: fewer --workers, or 0"
            raise InputError(f"a worker that reads {self.name} was killed", hint) from error

    def _on_device(self, images: Tensor, labels: Tensor) -> Batch:
        """To the device as bytes, a quarter of the traffic; float and normalised there."""
        images = images.to(self.device, non_blocking=True)
        labels = labels.to(self.device, non_blocking=True)
        images = functional.to_dtype(images, torch.float32, scale=True)
        images = functional.normalize(images, self.mean, self.std, inplace=True)
        return images.contiguous(memory_format=self.layout), labels


# -- in a worker, or in this process if there are none -------------------------------------------


@dataclass(frozen=True)
class Request:
    """One batch, by what decides it."""

    epoch: int
    indices: tuple[int, ...]


class Requests:
    """The sampler of a DataLoader whose workers stay: `requests` is replaced every epoch."""

    requests: Iterator[Request] = iter(())

    def __iter__(self) -> Iterator[Request]:
        return self.requests


@dataclass(frozen=True)
class Samples:
    """Request -> the batch as uint8 (B, C, H, W) and labels; or the InputError, as a value.

    As a value, because a DataLoader would turn what is raised in a worker into a traceback's text.
    whole: examples are Tensors and the transform is free of chance.
    """

    examples: Sequence
    transform: Transform | None
    seed: int
    whole: bool

    def __getitem__(self, request: Request) -> Batch | InputError:
        if self.whole:
            indices = torch.tensor(request.indices)
            images = self.examples.images[indices]
            if self.transform is not None:
                images = self.transform(images)
            return images, self.examples.labels[indices]
        if not request.indices:  # a rank without a share of a very short batch
            images, labels = self[Request(request.epoch, (0,))]
            return images[:0], labels[:0]
        try:
            items = [self._one(request.epoch, index) for index in request.indices]
        except InputError as error:
            return error
        images, labels = zip(*items)
        return torch.stack(images), torch.tensor(labels)

    def _one(self, epoch: int, index: int) -> tuple[Tensor, int]:
        image, label = self.examples[index]
        if self.transform is None:
            return image, label
        # The v2 transforms draw from the global generator of the CPU: it is lent to them.
        generator = torch.default_generator
        before = generator.get_state()
        generator.manual_seed(_mix(self.seed, epoch, index))
        try:
            return self.transform(image), label
        finally:
            generator.set_state(before)


def share_of(count: int, rank: int, world_size: int) -> tuple[int, int]:
    """start, stop of a rank's stretch of `count` examples; stretches differ by one at most.

    Where a batch has fewer examples than there are ranks, some stretches are empty.
    """
    return rank * count // world_size, (rank + 1) * count // world_size


def _mix(*numbers: int) -> int:
    """A seed of 63 bits from a few numbers, in which no two tuples are near each other."""
    text = "/".join(map(str, numbers)).encode()
    return int.from_bytes(hashlib.blake2b(text, digest_size=8).digest(), "big") >> 1


def _ignore_interrupt(worker: int) -> None:
    """Ctrl-C goes to the whole group of processes; the main one decides what it means."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)


def _native_size(examples: Sequence) -> tuple[int, int] | None:
    """(H, W) of every image where they are tensors, as the first is; None for PIL images."""
    image, _ = examples[0]
    return tuple(image.shape[-2:]) if isinstance(image, Tensor) else None
