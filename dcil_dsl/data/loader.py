"""Batches of a data set on the device, the same ones whenever they are asked for again.

In:   one part of a Dataset, and the size, order and augmentation of its batches.
Out:  (images float32 (B, C, H, W), normalised; labels), both on the device. Labels are class
      numbers, int64 (B,); where the recipe mixes examples, shares of classes, float32 (B, classes).
Not:  no state between epochs: what batch b of epoch e holds depends on the seed, e and b alone.
      torch's global random numbers are neither used nor moved. No process talks to another.

The order of an epoch comes from (seed, epoch), an image's augmentation from (seed, epoch, batch,
place in the batch), drawn on the CPU. So the number of workers and of ranks and the batch at which
an epoch is begun change nothing, and a resumed run sees what the run without a break would have
seen. What fits in memory lies on the device as bytes, and no worker is started for it; what is
read from files crosses over as bytes, a quarter of the traffic. All else is done on the device, a
whole batch at a time.
"""

from __future__ import annotations

import math
import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Literal

import torch
from PIL import Image
from torch import Tensor
from torch.utils.data import DataLoader

from dcil_dsl.data.augment import train_pipeline, val_pipeline
from dcil_dsl.data.chance import generator_at, seed_of
from dcil_dsl.data.dataset import Dataset, Tensors
from dcil_dsl.data.folders import BadImage
from dcil_dsl.data.mixing import mix_batch, neighbours
from dcil_dsl.data.prefetch import Batch, made_ahead
from dcil_dsl.data.reading import (
    Fetched,
    Reader,
    Request,
    Requests,
    check_tensors,
    leave_signals,
)
from dcil_dsl.diagnostics import InputError
from dcil_dsl.diagnostics.counting import count
from dcil_dsl.words.augment import Augment, Transform
from dcil_dsl.words.transforms.numbers import sent

MAX_RESIDENT = 4 << 30  # bytes of images that are kept on the device; larger sets stay on the host


class Loader:
    """One part of a data set, in batches.

    num_examples  examples in an epoch
    num_batches   batches in an epoch; the last may be short. A last training batch of one example
                  is left out, as batch norm cannot train on it: then num_examples is one less
                  than the part holds.

    Both count all ranks together. Of `world_size` processes each gets an equal stretch of every
    batch (share_of), rank 0 the first: put one after the other they are the batch of one process.
    A last training batch that would leave a rank less than two examples comes whole to all of them.

    on_bad_image  told of each image that cannot be read, once; the next one in the data set that
                  can be stands in for it. None: the first one is an InputError.
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
        on_bad_image: Callable[[str], None] | None = None,
    ):
        if channels != dataset.num_channels:
            have = dataset.num_channels
            raise InputError(
                f"{dataset.name} was opened with {count(have, 'channel')}, not {channels}"
            )
        self.name, self.examples = dataset.name, getattr(dataset, part)
        if not len(self.examples):
            raise InputError(f"the {part} part of {dataset.name} holds no example")
        self.shuffled = part == "train"
        self.batch_size, self.seed, self.workers = batch_size, seed, workers
        self.rank, self.world_size = rank, world_size
        self.num_examples = len(self.examples)
        if self.shuffled and self.num_examples > 1 and self.num_examples % batch_size == 1:
            self.num_examples -= 1  # never for a batch_size of 1: n % 1 is 0
        self.num_batches = math.ceil(self.num_examples / batch_size)
        self.num_classes = len(dataset.classes)
        if isinstance(self.examples, Tensors):
            check_tensors(self.name, self.examples, self.num_classes)
        if min(dataset.std) <= 0:
            raise InputError(f"{self.name}: a standard deviation of 0 leaves no number of a pixel")

        native = _native_size(self.name, self.examples)
        pipeline = train_pipeline if self.shuffled else val_pipeline
        self.pipeline = pipeline(augment, image_size, native)
        shape = (channels, *(native or self.pipeline.size))
        self.replaced: dict[str, None] = {}  # a set in the order of its making
        self.on_bad_image = on_bad_image
        self.reader = Reader(
            self.examples,
            self.pipeline.reading,
            shape,
            seed,
            replaces=on_bad_image is not None,
            name=self.name,
            num_classes=self.num_classes,
        )
        self.device = torch.device(device)
        self.layout = torch.channels_last if channels_last else torch.contiguous_format
        self.mean, self.std = (
            255 * torch.tensor(values, device=self.device)[:, None, None]
            for values in (dataset.mean, dataset.std)
        )
        self._resident: Tensors | None = None
        self._workers: DataLoader | None = None

    def epoch(self, epoch: int, start: int = 0) -> Iterator[Batch]:
        """The batches of an epoch, from number `start` on.

        Raises InputError for an image that cannot be read. An iterator that is closed or fails
        before its end takes its workers with it; the next epoch starts new ones.
        """
        order = self._order(epoch)
        requests = (self._request(epoch, batch, order) for batch in range(start, self.num_batches))
        finished = False
        try:
            yield from made_ahead(self._fetch(requests), self._make, self.device)
            finished = True
        finally:
            if not finished:
                self.close()

    def example(self) -> Tensor:
        """The first image of the part as a batch of one, on the CPU. No worker is started for it.

        Raises InputError where it cannot be read.
        """
        request = Request(0, 0, 1, (0,), (0,))
        if isinstance(self.examples, Tensors):
            fetched = self._indexed(request)
        else:
            fetched = self.reader[request]
            if isinstance(fetched, InputError):
                raise fetched
            self._note(fetched.bad)
        return self._make((request, fetched))[0].cpu()

    def size_of(self, batch: int) -> int:
        """How many examples batch number `batch` of an epoch has, over all ranks."""
        return min(self.batch_size, self.num_examples - batch * self.batch_size)

    def close(self) -> None:
        """End the workers, if there are any."""
        if self._workers is not None:
            iterator, self._workers = self._workers._iterator, None
            if iterator is None:
                return
            iterator._shutdown_workers()  # what its __del__ calls, but now
            for worker in iterator._workers:
                worker.kill()  # one that was asked in vain

    # -- which examples --------------------------------------------------------------------------

    def _order(self, epoch: int) -> Tensor:
        if not self.shuffled:
            return torch.arange(len(self.examples))
        chance = generator_at(self.seed, epoch)
        if hasattr(self.examples, "shuffled"):
            return self.examples.shuffled(chance)
        return torch.randperm(len(self.examples), generator=chance)

    def _request(self, epoch: int, batch: int, order: Tensor) -> Request:
        count = self.size_of(batch)
        start, stop = self._stretch(count)
        places = list(range(start, stop))
        if self._has_neighbour:
            places = neighbours(start, stop, count)
        first = batch * self.batch_size
        indices = order[first : first + count][places].tolist()
        return Request(epoch, batch, count, tuple(places), tuple(indices))

    def _stretch(self, count: int) -> tuple[int, int]:
        least = min(2, self.batch_size // self.world_size)
        if self.shuffled and count < least * self.world_size:
            return 0, count  # every rank learns from all of it: batch norm needs two examples
        return share_of(count, self.rank, self.world_size)

    @property
    def _has_neighbour(self) -> bool:
        """Whether a stretch comes with the example before it, which its first is mixed with."""
        return bool(self.pipeline.mixers) and self.world_size > 1

    # -- their bytes -----------------------------------------------------------------------------

    def _fetch(self, requests: Iterator[Request]) -> Iterator[tuple[Request, Fetched]]:
        if isinstance(self.examples, Tensors):
            yield from ((request, self._indexed(request)) for request in requests)
            return
        asked: list[Request] = []  # by the workers, which answer in the order of the questions
        fetched = self._read(_noted(requests, asked))
        for answer in fetched:
            if isinstance(answer, InputError):
                raise answer
            self._note(answer.bad)
            yield asked.pop(0), answer

    def _note(self, bad: tuple[str, ...]) -> None:
        for fact in bad:
            if fact not in self.replaced:
                self.replaced[fact] = None
                self.on_bad_image(fact)

    def _indexed(self, request: Request) -> Fetched:
        if self._resident is None:
            images, labels = self.examples.images, self.examples.labels
            fits = images.numel() <= MAX_RESIDENT
            place = self.device if fits else torch.device("cpu")
            self._resident = Tensors(images.to(place), labels.to(place))
        indices = sent(
            torch.tensor(request.indices, dtype=torch.long), self._resident.images.device
        )
        return Fetched(self._resident.images[indices], self._resident.labels[indices])

    def _read(self, requests: Iterator[Request]) -> Iterator[Fetched | InputError]:
        if not self.workers:
            yield from (self.reader[request] for request in requests)
            return
        if self._workers is None:
            self._workers = DataLoader(
                self.reader,
                batch_size=None,  # a request is a batch already
                sampler=Requests(),
                num_workers=self.workers,
                worker_init_fn=leave_signals,
                pin_memory=self.device.type == "cuda",
                persistent_workers=True,
                generator=torch.Generator(),  # else it draws from the global one
            )
        self._workers.sampler.requests = requests
        try:
            with _no_handler_for_children():
                fetched = iter(self._workers)
            yield from fetched
        except (RuntimeError, OSError, EOFError) as error:
            if not _is_of_dead_worker(error):
                raise
            hint = "often too little memory, or too small a /dev/shm: fewer --workers, or 0"
            raise InputError(f"a worker that reads {self.name} was killed", hint) from error

    # -- on the device ---------------------------------------------------------------------------

    def _make(self, held: tuple[Request, Fetched]) -> Batch:
        request, fetched = held
        images = fetched.images.to(self.device, non_blocking=True)
        labels = fetched.labels.to(self.device, torch.long, non_blocking=True)
        pipeline, size = self.pipeline, self.pipeline.size
        images = pipeline.resized(images)
        for number, step in enumerate(pipeline.pixels):
            images = self._applied(step, images, size, request, number)
            size = step.size_after(size)
        images = images.to(torch.float32).sub_(self.mean).div_(self.std)
        for number, step in enumerate(pipeline.normalised, len(pipeline.pixels)):
            images = self._applied(step, images, size, request, number)
        if pipeline.mixers:
            seed = seed_of(self.seed, request.epoch, request.batch, "mixing")
            images, labels = mix_batch(images, labels, pipeline.mixers, self.num_classes, seed)
        if self._has_neighbour:
            images, labels = images[1:], labels[1:]
        return images.contiguous(memory_format=self.layout), labels

    def _applied(
        self, step: Transform, images: Tensor, size, request: Request, number: int
    ) -> Tensor:
        """What is drawn is drawn for the whole batch, whatever stretch of it is ours."""
        chance = generator_at(self.seed, request.epoch, request.batch, number)
        draws = step.draw(chance, request.count, size)
        if request.places != tuple(range(request.count)):
            draws = tuple(drawn[list(request.places)] for drawn in draws)
        return step.apply(images, draws)


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


def _noted(requests: Iterator[Request], asked: list[Request]) -> Iterator[Request]:
    for request in requests:
        asked.append(request)
        yield request


def _native_size(name: str, examples) -> tuple[int, int] | None:
    """(H, W) of every image where they are tensors, as the first is; None for PIL images."""
    try:
        image, _ = examples[0]
    except BadImage:  # so it lies in a file, and its neighbours do
        return None
    if isinstance(image, Tensor):
        return tuple(image.shape[-2:])
    if not isinstance(image, Image.Image):
        raise InputError(
            f"the images of {name} are {type(image).__module__}.{type(image).__name__}",
            "images are uint8 tensors of (channels, height, width), or PIL images",
        )
    return None
