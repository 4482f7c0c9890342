"""Batches of images on the device, the same ones whenever they are requested again.

In:   one part of a Dataset, and the size, order and augmentation of its batches.
Out:  (images float32 (B, C, H, W), normalised; labels), both on the device. Labels are class
      numbers, int64 (B,); where the recipe mixes examples, shares of classes, float32 (B, classes).
Not:  no state between epochs: what batch b of epoch e holds depends on the seed, e and b alone.
      torch's global generator is neither used nor advanced. Processes do not communicate.

The order of an epoch comes from (seed, epoch), an image's augmentation from (seed, epoch, batch,
place in the batch), drawn on the CPU. So the number of workers and of ranks and the first batch of
an epoch change nothing, and a resumed run sees the batches of the uninterrupted run. Data that fit
in memory are kept on the device as bytes, without workers; images from files are copied to it as
bytes, a quarter of the traffic. Everything else runs on the device, a whole batch at a time.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any, Literal

import torch
from torch import Tensor

from dcil_dsl.data.augment import mix_batch, neighbours, train_pipeline, val_pipeline
from dcil_dsl.data.batches import Batch, BatchLoader, share_of
from dcil_dsl.data.chance import generator_at, seed_of
from dcil_dsl.data.dataset import Dataset, Tensors
from dcil_dsl.data.folders import BadImage
from dcil_dsl.data.reading import Fetched, Reader, Request, check_tensors
from dcil_dsl.diagnostics import InputError
from dcil_dsl.diagnostics.counting import count
from dcil_dsl.diagnostics.optional import library
from dcil_dsl.tasks import task_of
from dcil_dsl.tasks.task import pair
from dcil_dsl.words.augment import Augment, Transform
from dcil_dsl.words.tensors.numbers import sent

if TYPE_CHECKING:
    from PIL import Image
else:
    Image = library("PIL.Image")

__all__ = ["Loader", "share_of"]

MAX_RESIDENT = 4 << 30  # bytes of images that are kept on the device; larger sets stay on the host


class Loader(BatchLoader):
    """One part of a data set of images.

    on_bad_image  called once for each image that cannot be read; the next readable one of the data
                  set replaces it. None: the first one is an InputError.
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
                f"{dataset.name} was opened with {count(have, 'channel')}, not {channels}",
                None if have else "give its Dataset the `mean` and `std` of each channel, in 0..1",
            )
        super().__init__(
            dataset.name,
            getattr(dataset, part),
            task_of(dataset.task),
            shuffled=part == "train",
            batch_size=batch_size,
            seed=seed,
            workers=workers,
            device=device,
            rank=rank,
            world_size=world_size,
        )
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
        self.layout = torch.channels_last if channels_last else torch.contiguous_format
        self.mean, self.std = (
            255 * torch.tensor(values, device=self.device)[:, None, None]
            for values in (dataset.mean, dataset.std)
        )
        self._resident: Tensors | None = None

    def first(self) -> Batch:
        request = Request(0, 0, 1, (0,), (0,))
        if isinstance(self.examples, Tensors):
            fetched = self._indexed(request)
        else:
            answer = self.reader[request]
            if isinstance(answer, InputError):
                raise answer
            self._note(answer.bad)
            fetched = answer
        return self.make((request, fetched))

    def places(self, count: int) -> list[int]:
        start, stop = self.stretch(count)
        return neighbours(start, stop, count) if self._has_neighbour else [*range(start, stop)]

    @property
    def _has_neighbour(self) -> bool:
        """Whether a part needs the example before it, with which its first is mixed."""
        return bool(self.pipeline.mixers) and self.world_size > 1

    # -- their bytes -----------------------------------------------------------------------------

    def fetch(self, requests: Iterator[Request]) -> Iterator[tuple[Request, Fetched]]:
        if isinstance(self.examples, Tensors):
            yield from ((request, self._indexed(request)) for request in requests)
            return
        asked: list[Request] = []  # by the workers, which answer in the order of the questions
        fetched = self.read(_noted(requests, asked), self.reader)
        for answer in fetched:
            if isinstance(answer, InputError):
                raise answer
            self._note(answer.bad)
            yield asked.pop(0), answer

    def _note(self, bad: tuple[str, ...]) -> None:
        for fact in bad:
            if fact not in self.replaced and self.on_bad_image is not None:
                self.replaced[fact] = None
                self.on_bad_image(fact)

    def _indexed(self, request: Request) -> Fetched:
        if self._resident is None:
            assert isinstance(self.examples, Tensors)
            images, labels = self.examples.images, self.examples.labels
            fits = images.numel() <= MAX_RESIDENT
            place = self.device if fits else torch.device("cpu")
            self._resident = Tensors(images.to(place), labels.to(place))
        indices = sent(
            torch.tensor(request.indices, dtype=torch.long), self._resident.images.device
        )
        return Fetched(self._resident.images[indices], self._resident.labels[indices])

    # -- on the device ---------------------------------------------------------------------------

    def make(self, held: tuple[Request, Fetched]) -> Batch:
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
        self, step: Transform, images: Tensor, size: tuple[int, int], request: Request, number: int
    ) -> Tensor:
        """Random numbers are drawn for the whole batch, whichever part of it this rank has."""
        chance = generator_at(self.seed, request.epoch, request.batch, number)
        draws = step.draw(chance, request.count, size)
        if request.places != tuple(range(request.count)):
            draws = tuple(drawn[list(request.places)] for drawn in draws)
        return step.apply(images, draws)


def _noted(requests: Iterator[Request], asked: list[Request]) -> Iterator[Request]:
    for request in requests:
        asked.append(request)
        yield request


def _native_size(name: str, examples: Any) -> tuple[int, int] | None:
    """(H, W) of every image if the first is a tensor; None for PIL images."""
    try:
        first = examples[0]
    except BadImage:  # so it lies in a file, and its neighbours do
        return None
    image, _ = pair("image-classification", first)
    if isinstance(image, Tensor):
        height, width = image.shape[-2:]
        return height, width
    if not isinstance(image, Image.Image):
        raise InputError(
            f"the images of {name} are {type(image).__module__}.{type(image).__name__}",
            "images are uint8 tensors of (channels, height, width), or PIL images",
        )
    return None
