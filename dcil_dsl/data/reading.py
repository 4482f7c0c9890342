"""One batch read from its source, in a worker process or in this one.

In:   a Request: which examples, and their places in the batch.
Out:  Fetched, uint8 images of one size and labels; or the InputError, as a value. A note and a
      line of a file for each image that could not be read while another replaced it.
Not:  no augmentation but the crop of photographs, which must have one size to form a batch.
"""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.utils.data import get_worker_info

from dcil_dsl.data.augment import Reading
from dcil_dsl.data.chance import generator_at
from dcil_dsl.data.dataset import Tensors
from dcil_dsl.data.folders import BadImage
from dcil_dsl.diagnostics import InputError
from dcil_dsl.words.tensors.outputs import IGNORED

WHOLE = (torch.int64, torch.int32, torch.int16, torch.int8, torch.uint8)  # a batch's are int64
MAX_BAD = 100  # images in a row that cannot be read: then something else is wrong


@dataclass(frozen=True)
class Request:
    """A part of one batch.

    places   of the examples in the whole batch, which holds `count`
    indices  of the same examples in the data set
    """

    epoch: int
    batch: int
    count: int
    places: tuple[int, ...]
    indices: tuple[int, ...]


class Requests:
    """The sampler of a DataLoader with persistent workers: `requests` is replaced every epoch."""

    requests: Iterator[Request] = iter(())

    def __iter__(self) -> Iterator[Request]:
        return self.requests


class Fetched(NamedTuple):
    """images uint8 (B, C, H, W); labels int64 (B,); bad: images that others replace."""

    images: Tensor
    labels: Tensor
    bad: tuple[str, ...] = ()


@dataclass(frozen=True)
class Reader:
    """Reads one request, in a data loader worker or in this process.

    shape     (C, H, W) of every image that comes out
    replaces  whether an image that cannot be read is replaced by the next one that can
    name, num_classes  of the data set

    An error is returned as a value, because a DataLoader turns what a worker raises into the text
    of a traceback.
    """

    examples: Sequence[Any]
    reading: Reading | None
    shape: tuple[int, int, int]
    seed: int
    replaces: bool = False
    name: str = ""
    num_classes: int | None = None

    def __getitem__(self, request: Request) -> Fetched | InputError:
        count = len(request.indices)
        chances = self._chances(request)
        bad: list[str] = []
        try:
            images = sent_back(torch.empty(count, *self.shape, dtype=torch.uint8))
            labels = sent_back(torch.empty(count, dtype=torch.long))
            for row, (place, index) in enumerate(zip(request.places, request.indices)):
                image, label = self._example(index, bad)
                labels[row] = self._class_of(index, label)
                if self.reading is not None:
                    image = self.reading.apply(image, None if chances is None else chances[place])
                elif image.dtype != torch.uint8 or image.shape != self.shape:
                    raise other_tensor(self.name, index, image, self.shape)
                images[row] = image
            check_labels(self.name, labels, self.num_classes)
        except InputError as error:
            return error
        return Fetched(images, labels, tuple(bad))

    def _chances(self, request: Request) -> Tensor | None:
        if self.reading is None:
            return None
        chance = generator_at(self.seed, request.epoch, request.batch, "reading")
        return self.reading.chances(chance, request.count)

    def _class_of(self, index: int, label: Any) -> int:
        """The class number, from a number of Python, NumPy or torch; a fraction is an error."""
        try:
            number = int(label)
            if number == label:
                return number
        except (TypeError, ValueError, RuntimeError, OverflowError):
            pass
        raise InputError(
            f"the label of example {index:,} of {self.name} is not a whole number: {label!r:.80}",
            "a label is the number of a class, counted from 0",
        )

    def _example(self, index: int, bad: list[str]) -> Any:
        for offset in range(MAX_BAD):
            try:
                return self.examples[(index + offset) % len(self.examples)]
            except BadImage as error:
                if not self.replaces:
                    raise
                bad.append(error.message)
        raise InputError(f"{MAX_BAD} images in a row cannot be read; the last: {bad[-1]}")


def sent_back(tensor: Tensor) -> Tensor:
    """The tensor, in shared memory if this is a worker, which returns its batches that way.

    Otherwise a thread would move it there, whose errors are lost: the batch would never arrive.
    InputError where shared memory is full.
    """
    if get_worker_info() is None or not tensor.numel():
        return tensor
    try:
        shared: Tensor = tensor.share_memory_()
        return shared
    except RuntimeError as error:
        raise InputError(
            f"no room in shared memory for a batch of {tensor.nbytes:,} bytes: {error}",
            "a larger /dev/shm (docker run --shm-size 8g), fewer --workers, or 0",
        ) from error


def other_tensor(
    name: str, index: int, image: Tensor, shape: tuple[int, ...] | None = None
) -> InputError:
    """The error for a tensor of another type or shape. shape: the right one; None: its own."""
    have, want = (" x ".join(map(str, sizes)) for sizes in (image.shape, shape or image.shape))
    kind = str(image.dtype).removeprefix("torch.")
    return InputError(
        f"example {index:,} of {name} is {kind} of {have}, and not uint8 of {want}",
        "images are tensors of whole numbers 0 to 255, of one size, or PIL images",
    )


def check_tensors(name: str, examples: Tensors, num_classes: int) -> None:
    """InputError for another type or shape than Tensors has, and for a label without a class."""
    images, labels = examples.images, examples.labels
    if images.dtype != torch.uint8:
        raise other_tensor(name, 0, *images[:1])
    if labels.dtype not in WHOLE or labels.shape != images.shape[:1]:
        kind = str(labels.dtype).removeprefix("torch.")
        sizes = " x ".join(map(str, labels.shape))
        raise InputError(
            f"the labels of {name} are {kind} of {sizes}, and not int64 of {len(images)}",
            "one class number for each image",
        )
    check_labels(name, labels, num_classes)


def check_labels(name: str, labels: Tensor, num_classes: int | None) -> None:
    """InputError for a label that is not a class; a device reports it without saying which.

    -100 is not a class on purpose: losses ignore it (training/losses.py).
    num_classes  None: no limit
    """
    if num_classes is None:
        return
    wrong = labels[((labels < 0) & (labels != IGNORED)) | (labels >= num_classes)]
    if len(wrong):
        raise InputError(
            f"{name} has {num_classes} classes, and an example of class {int(wrong[0])}",
            "classes are counted from 0" if num_classes else "give its Dataset the names `classes`",
        )


def leave_signals(worker: int) -> None:
    """Leave signals to the main process: Ctrl-C reaches the whole process group.

    So do the SIGTERM of torchrun, `timeout`, systemd and batch systems, and the SIGHUP of a closed
    terminal. Only a SIGTERM from the main process ends a worker.
    """
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    if hasattr(signal, "SIGHUP"):  # not on Windows
        signal.signal(signal.SIGHUP, signal.SIG_IGN)
    if not hasattr(signal, "sigwaitinfo"):  # macOS, Windows
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        return
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})
    threading.Thread(target=_end_for, args=(os.getppid(),), daemon=True).start()


def _end_for(parent: int) -> None:
    while signal.sigwaitinfo({signal.SIGTERM}).si_pid != parent:
        pass
    os._exit(0)


class BadImages:
    """The on_bad_image that the loaders of a run share.

    It keeps the lines in memory until `keep_in` names a file, which processes share.
    """

    def __init__(self, note: Callable[[str], None]):
        self.note = note
        self.seen: dict[str, None] = {}
        self.file: Path | None = None

    def __call__(self, fact: str) -> None:
        if fact in self.seen:
            return
        self.seen[fact] = None
        self.note(f"{fact}; another image replaces it")
        self._write([fact])

    def keep_in(self, file: Path) -> None:
        self.file = file
        self._write(list(self.seen))

    def _write(self, facts: list[str]) -> None:
        if self.file is not None and facts:
            lines = "".join(f"{fact}\n" for fact in facts)
            flags = os.O_WRONLY | os.O_APPEND | os.O_CREAT
            try:  # in a run folder from elsewhere it may be a link, to what is not ours to change
                descriptor = os.open(self.file, flags | os.O_NOFOLLOW, 0o666)
                with open(descriptor, "a", encoding="utf-8") as file:
                    file.write(lines)
            except OSError as error:
                raise InputError(f"cannot write {self.file}: {error.strerror}") from error
