"""Batches of examples of any kind: what a data set returns, collated, on the device.

In:   a map-style data set (`len()`, and an item by its number), or a DataLoader over one.
Out:  batches in the structure that the items have: tuples, lists and dictionaries of tensors.
Not:  no augmentation: it belongs in the data set, whose random numbers are seeded here.

Before an item is read, the generators of torch, Python and numpy are seeded with the run's seed,
the epoch, and the item's place in the epoch. So the number of workers and of ranks changes no
batch, and a resumed run reads the batches of the uninterrupted run.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor
from torch.utils.data import (
    BatchSampler,
    DataLoader,
    IterableDataset,
    RandomSampler,
    SequentialSampler,
    default_collate,
)

from dcil_dsl.data.batches import BatchLoader
from dcil_dsl.data.chance import seed_of
from dcil_dsl.data.dataset import Dataset
from dcil_dsl.data.reading import Request
from dcil_dsl.diagnostics import InputError
from dcil_dsl.model.side_effects import drawn_apart
from dcil_dsl.tasks import task_of
from dcil_dsl.tasks.task import sliced, tensors_mapped

Collate = Callable[[list[Any]], Any]


class ExampleLoader(BatchLoader):
    """One part of a data set of any task. float64 becomes float32, the type of weights."""

    def __init__(
        self,
        dataset: Dataset,
        part: Literal["train", "val"],
        *,
        batch_size: int,
        seed: int = 0,
        workers: int | None = None,
        device: str | torch.device = "cpu",
        rank: int = 0,
        world_size: int = 1,
    ):
        task = task_of(dataset.task)
        source = source_of(dataset.name, part, getattr(dataset, part), *collates(dataset))
        if source.batch_size not in (None, batch_size):
            raise InputError(
                f"the {part} loader of {dataset.name} has batches of {source.batch_size}, the "
                f"recipe of {batch_size}",
                help="set `batch_size` in the recipe's `data` block",
            )
        super().__init__(
            dataset.name,
            source.examples,
            task,
            shuffled=part == "train",
            batch_size=batch_size,
            seed=seed,
            workers=source.workers if workers is None else workers,
            device=device,
            rank=rank,
            world_size=world_size,
        )
        self.sampler = source.sampler
        if self.sampler is not None:
            self.num_examples = len(self.order(0))
            self.num_batches = -(-self.num_examples // batch_size)
        self.reader = ExampleReader(
            source.examples, source.collate, task.check_item, seed, dataset.name
        )

    def order(self, epoch: int) -> Tensor:
        if self.sampler is None:
            return super().order(epoch)
        with drawn_apart(seed_of(self.seed, epoch, "sampler")):
            order = torch.tensor([int(index) for index in self.sampler], dtype=torch.long)
        return order

    def fetch(self, requests: Iterator[Request]) -> Iterator[Any]:
        for answer in self.read(requests, self.reader):
            if isinstance(answer, InputError):
                raise answer
            yield answer

    def make(self, held: Any) -> Any:
        return tensors_mapped(self._sent, held)

    def first(self) -> Any:
        answer = self.reader[Request(0, 0, 1, (0,), (int(self.order(0)[0]),))]
        if isinstance(answer, InputError):
            raise answer
        return tensors_mapped(_narrow, answer)

    def _sent(self, tensor: Tensor) -> Tensor:
        return _narrow(tensor).to(self.device, non_blocking=True)


def _narrow(tensor: Tensor) -> Tensor:
    return tensor.float() if tensor.dtype == torch.float64 else tensor


@dataclass(frozen=True)
class ExampleReader:
    """Reads and collates one request, in a data loader worker or in this process.

    An error comes out as a value, because a DataLoader would turn it into a traceback's text.
    """

    examples: Sequence[Any]
    collate: Collate
    check: Callable[[Any], None]
    seed: int
    name: str

    def __getitem__(self, request: Request) -> Any:
        is_empty = not request.indices
        indices = request.indices or (0,)  # read for its structure, and cut off
        places = request.places or (0,)
        items = []
        for place, index in zip(places, indices, strict=True):
            with drawn_apart(self._seed(request, place)):
                try:
                    item = self.examples[index]
                except InputError as error:
                    return error
                except Exception as error:  # of the user's own code: of any type
                    return _in_words(f"cannot read example {index:,} of {self.name}", error)
            try:
                self.check(item)
            except InputError as error:
                return InputError(f"example {index:,} of {self.name}: {error.message}", error.help)
            items.append(item)
        with drawn_apart(self._seed(request, -1 - places[0])):
            try:
                batch = self.collate(items)
            except Exception as error:
                return _in_words(f"cannot make a batch of the examples of {self.name}", error)
        return sliced(batch, 1, 0, 0) if is_empty else batch

    def _seed(self, request: Request, place: int) -> int:
        return seed_of(self.seed, request.epoch, request.batch, place, "example")


def _in_words(what: str, error: Exception) -> InputError:
    frames, place = error.__traceback__, None
    while frames is not None:
        place = f"{frames.tb_frame.f_code.co_filename}:{frames.tb_lineno}"
        frames = frames.tb_next
    text = " ".join(str(error).split())[:200]
    return InputError(f"{what}: {type(error).__name__}: {text}", f"raised at {place}")


def collates(dataset: Dataset) -> tuple[Collate | None, Collate]:
    """The data set's own, and that of its task."""
    return dataset.collate, task_of(dataset.task).collate


@dataclass(frozen=True)
class ExampleSource:
    """Examples by their number, and how a DataLoader reads them where there is one.

    sampler     numbers of the examples of an epoch; None: all of them, shuffled in training
    batch_size  None: not given
    """

    examples: Sequence[Any]
    collate: Collate
    sampler: Any = None
    batch_size: int | None = None
    workers: int = 0


def source_of(
    name: str,
    part: str,
    given: Any,
    collate: Collate | None = None,
    usual: Collate = default_collate,
) -> ExampleSource:
    """The examples of a part of a data set. InputError where a batch has no number of its own.

    Batches are made here, of the recipe's size and in the order of the run's seed, so that a run
    resumes at any of them. A DataLoader contributes its data set, its sampler, its collate_fn and
    its number of workers.

    collate  makes a batch of items, whatever a DataLoader has
    usual    does so where neither has a function
    """
    if isinstance(given, DataLoader):
        if given.batch_sampler is not None and type(given.batch_sampler) is not BatchSampler:
            raise InputError(
                f"the {part} loader of {name} has a batch sampler of its own",
                help="give the data set, or a loader with a `sampler`",
            )
        if given.drop_last:
            raise InputError(
                f"the {part} loader of {name} drops its last batch",
                help="here an epoch has every example: drop_last=False",
            )
        sampler = given.sampler
        is_usual = type(sampler) is SequentialSampler or (
            type(sampler) is RandomSampler and not sampler.replacement
        )
        return ExampleSource(
            _map_style(name, part, given.dataset),
            collate or _of_loader(given.collate_fn) or usual,
            None if is_usual else sampler,
            given.batch_size,
            given.num_workers,
        )
    return ExampleSource(_map_style(name, part, given), collate or usual)


def _of_loader(collate: Collate | None) -> Collate | None:
    """A DataLoader without a function of its own has torch's."""
    return None if collate is default_collate else collate


def _map_style(name: str, part: str, given: Any) -> Sequence[Any]:
    is_iterable = isinstance(given, IterableDataset)
    if is_iterable or not (hasattr(given, "__len__") and hasattr(given, "__getitem__")):
        raise InputError(
            f"the {part} part of {name} is a {type(given).__name__}, not a list of examples",
            help="a data set has __len__ and __getitem__, or is a DataLoader over one that has",
        )
    examples: Sequence[Any] = given
    return examples
