"""Batches: their sizes, that they repeat bit for bit, and what a failing worker says."""

import dataclasses
import multiprocessing
import os
import pickle
import signal
import subprocess
import threading
import time

import numpy
import pytest
import torch
from PIL import Image

from dcil_dsl.data import Dataset, Loader, Tensors, open_dataset
from dcil_dsl.data.dataset import in_memory
from dcil_dsl.diagnostics import InputError
from dcil_dsl.words.augment import Flip, PadCrop, RandomResizedCrop

CHANCE = (
    PadCrop(pixels=4),
    Flip(p=0.5),
)
CROP = (RandomResizedCrop(size=16),)


@pytest.fixture(scope="module")
def small():
    return open_dataset("synthetic", num_train=41, num_val=9, image_size=16)


@pytest.fixture
def tree(tmp_path):
    """An ImageFolder of 12 + 6 real JPEG files of different sizes."""
    generator = numpy.random.default_rng(0)
    for part, count in (("train", 4), ("val", 2)):
        for name in ("ant", "bee", "cow"):
            (tmp_path / part / name).mkdir(parents=True)
            for number in range(count):
                pixels = generator.integers(0, 256, (30 + number, 50, 3), numpy.uint8)
                Image.fromarray(pixels).save(tmp_path / part / name / f"{number}.JPEG")
    return tmp_path


def collect(loader, epoch=0, start=0):
    images, labels = zip(*loader.epoch(epoch, start))
    return torch.cat(images), torch.cat(labels)


def same(a, b):
    return torch.equal(a[0], b[0]) and torch.equal(a[1], b[1])


# -- sizes ---------------------------------------------------------------------------------------


def test_a_training_epoch_holds_every_example_once(small):
    numbered = Tensors(small.train.images, torch.arange(41))
    names = tuple(map(str, range(41)))
    data = Dataset("numbered", numbered, numbered, names, small.mean, small.std)
    labels = collect(Loader(data, "train", batch_size=12))[1]
    assert labels.tolist() != sorted(labels.tolist())
    assert sorted(labels.tolist()) == list(range(41))


@pytest.mark.parametrize(
    "part, batch_size, num_batches, num_examples",
    [
        ("train", 8, 5, 40),  # a last batch of one is left out in training
        ("train", 10, 4, 40),
        ("train", 12, 4, 41),
        ("train", 1, 41, 41),
        ("train", 64, 1, 41),
        ("val", 8, 2, 9),  # and kept in validation
        ("val", 4, 3, 9),
    ],
)
def test_the_counts_are_those_of_the_epoch(small, part, batch_size, num_batches, num_examples):
    loader = Loader(small, part, batch_size=batch_size)
    sizes = [len(labels) for _, labels in loader.epoch(0)]
    assert (len(sizes), sum(sizes)) == (num_batches, num_examples)
    assert (loader.num_batches, loader.num_examples) == (num_batches, num_examples)


def test_images_are_float_normalised_and_labels_int64(small):
    images, labels = collect(Loader(small, "val", batch_size=4))
    assert images.dtype == torch.float32 and labels.dtype == torch.int64
    mean, std = (torch.tensor(v).view(3, 1, 1) for v in (small.mean, small.std))
    torch.testing.assert_close(images, (small.val.images / 255 - mean) / std)
    assert torch.equal(labels, small.val.labels)


def test_an_image_resized_in_a_batch_equals_the_image_resized_alone(small):
    together = collect(Loader(small, "val", batch_size=9, image_size=24))
    alone = collect(Loader(small, "val", batch_size=1, image_size=24))
    assert same(together, alone) and together[0].shape == (9, 3, 24, 24)


def test_channels_last_changes_the_layout_alone(small):
    plain, last = (
        next(Loader(small, "val", batch_size=4, channels_last=flag).epoch(0))[0]
        for flag in (False, True)
    )
    assert last.is_contiguous(memory_format=torch.channels_last) and plain.is_contiguous()
    assert torch.equal(plain, last)


def test_photographs_become_batches_of_one_size(tree):
    data = open_dataset("imagefolder", tree)
    images, labels = collect(Loader(data, "train", batch_size=5, augment=CROP))
    assert images.shape == (12, 3, 16, 16) and labels.bincount().tolist() == [4, 4, 4]
    assert collect(Loader(data, "val", batch_size=5, image_size=20))[0].shape == (6, 3, 20, 20)


def test_a_part_without_examples_and_other_channels_are_refused(small):
    with pytest.raises(InputError, match="val part of synthetic holds no example"):
        Loader(open_dataset("synthetic", num_train=4, num_val=0), "val", batch_size=4)
    with pytest.raises(InputError, match="opened with 3 channels, not 1"):
        Loader(small, "train", batch_size=4, channels=1)


def test_a_last_training_batch_too_small_to_be_parted_comes_whole_to_every_rank(small):
    alone = Loader(small, "train", batch_size=12)
    second = Loader(small, "train", batch_size=12, rank=1, world_size=3)
    *_, whole = alone.epoch(0)
    *_, one_before, own = second.epoch(0)
    assert len(one_before[1]) == 4 and len(whole[1]) == 5
    assert same(whole, own)


@pytest.mark.parametrize("world_size", [2, 16])
def test_the_shares_of_the_ranks_in_a_row_are_the_batches_of_one_process(small, world_size):
    options = dict(batch_size=12, augment=CHANCE)
    alone = Loader(small, "train", **options)
    ranks = [
        Loader(small, "train", rank=rank, world_size=world_size, **options)
        for rank in range(world_size)
    ]
    assert {(r.num_batches, r.num_examples) for r in ranks} == {(4, 41)}
    assert [alone.size_of(batch) for batch in range(4)] == [12, 12, 12, 5]
    for whole, *shares in zip(*(loader.epoch(2, 1) for loader in (alone, *ranks))):
        together = tuple(torch.cat(parts) for parts in zip(*shares))
        assert same(whole, together)
        sizes = [len(labels) for _, labels in shares]
        assert max(sizes) - min(sizes) <= 1


# -- the same again ------------------------------------------------------------------------------


@pytest.mark.parametrize("augment", [(), CHANCE])
def test_an_epoch_repeats_bit_for_bit_and_differs_by_seed_and_epoch(small, augment):
    first = collect(Loader(small, "train", batch_size=8, augment=augment, seed=1), epoch=2)
    again = Loader(small, "train", batch_size=8, augment=augment, seed=1)
    collect(again, epoch=0)
    assert same(first, collect(again, epoch=2))
    assert not same(first, collect(again, epoch=3))
    assert not same(first, collect(Loader(small, "train", batch_size=8, seed=2), epoch=2))


@pytest.mark.parametrize("augment", [(), CHANCE])
def test_an_epoch_begun_in_the_middle_resumes_as_the_whole_one_does(small, augment):
    loader = Loader(small, "train", batch_size=8, augment=augment)
    whole = list(loader.epoch(1))
    late = list(loader.epoch(1, start=3))
    assert len(late) == 2
    assert all(same(a, b) for a, b in zip(whole[3:], late))
    assert list(loader.epoch(1, start=5)) == []


def test_the_number_of_workers_changes_nothing(tree):
    data = open_dataset("imagefolder", tree)
    alone = Loader(data, "train", batch_size=5, augment=CROP)
    staffed = Loader(data, "train", batch_size=5, augment=CROP, workers=2)
    for epoch, start in ((0, 0), (1, 1), (1, 0)):
        assert same(collect(alone, epoch, start), collect(staffed, epoch, start))
    staffed.close()


def test_augmentation_differs_by_image_and_by_epoch(small):
    one = Tensors(small.train.images[:1].expand(40, -1, -1, -1), small.train.labels[:40])
    data = Dataset("one", one, one, small.classes, small.mean, small.std)
    loader = Loader(data, "train", batch_size=40, augment=CHANCE)
    first, second = (collect(loader, epoch)[0].unique(dim=0) for epoch in (0, 1))
    assert len(first) > 20  # 40 draws of 81 shifts and 2 sides
    assert not torch.equal(first, second)  # unique sorts them: more than another order


def test_validation_is_in_order_and_without_chance(small):
    loader = Loader(small, "val", batch_size=4, augment=CHANCE)
    assert same(collect(loader, 0), collect(loader, 7))


@pytest.mark.parametrize("workers", [0, 1])
def test_the_global_random_numbers_are_neither_used_nor_moved(small, workers):
    loader = Loader(small, "train", batch_size=20, augment=CHANCE, workers=workers)
    torch.manual_seed(0)
    before = torch.get_rng_state()
    first = collect(loader)
    assert torch.equal(before, torch.get_rng_state())
    torch.manual_seed(123)
    assert same(first, collect(loader))
    loader.close()


# -- workers -------------------------------------------------------------------------------------


@pytest.mark.parametrize("workers", [0, 1])
def test_an_unreadable_image_is_named_and_no_worker_stays(tree, workers):
    bad = tree / "train" / "cow" / "3.JPEG"
    bad.write_bytes(bad.read_bytes()[:100])
    data = open_dataset("imagefolder", tree)
    loader = Loader(data, "train", batch_size=5, augment=CROP, workers=workers)
    with pytest.raises(InputError) as error:
        collect(loader)
    assert f"cannot read the image {bad}" in error.value.message
    assert "Traceback" not in str(error.value)
    assert multiprocessing.active_children() == []


def test_a_closed_epoch_leaves_no_worker_and_the_next_one_starts_afresh(tree):
    data = open_dataset("imagefolder", tree)
    loader = Loader(data, "train", batch_size=2, augment=CROP, workers=1)
    whole = collect(loader, 0)
    batches = loader.epoch(0)
    next(batches)
    assert len(multiprocessing.active_children()) == 1
    batches.close()
    assert multiprocessing.active_children() == []
    assert same(whole, collect(loader, 0))
    loader.close()
    assert multiprocessing.active_children() == []


class Deadly:
    """Examples whose reading ends the worker, as the system does when memory runs out."""

    def __len__(self):
        return 4

    def __getitem__(self, index):
        if torch.utils.data.get_worker_info() is not None:
            os.kill(os.getpid(), signal.SIGKILL)
        return torch.zeros(3, 8, 8, dtype=torch.uint8), 0


def test_a_killed_worker_is_reported_with_what_helps():
    data = Dataset("deadly", Deadly(), Deadly(), ("a",), (0.5,) * 3, (0.5,) * 3)
    loader = Loader(data, "train", batch_size=1, workers=1)
    with pytest.raises(InputError, match="deadly was killed\n.*fewer --workers"):
        list(loader.epoch(0))
    assert multiprocessing.active_children() == []


def test_a_worker_that_dies_in_the_middle_of_a_step_is_reported_when_a_batch_is_asked_for(tree):
    data = open_dataset("imagefolder", tree)
    loader = Loader(data, "train", batch_size=2, augment=CROP, workers=1)
    batches = loader.epoch(0)
    next(batches)
    (worker,) = multiprocessing.active_children()
    worker.kill()
    time.sleep(0.3)  # a step goes on
    with pytest.raises(InputError, match="a worker that reads imagefolder was killed"):
        list(batches)
    assert multiprocessing.active_children() == []


def test_workers_leave_it_to_the_main_process_what_a_signal_to_all_means(tree):
    """As `timeout` and batch systems send it to the whole group."""
    data = open_dataset("imagefolder", tree)
    loader = Loader(data, "train", batch_size=2, augment=CROP, workers=1)
    whole = collect(loader)
    batches = loader.epoch(0)
    first = next(batches)
    for worker in multiprocessing.active_children():
        subprocess.run(["kill", "-TERM", str(worker.pid)], check=True)
    rest = list(batches)
    assert same(whole, tuple(map(torch.cat, zip(first, *rest))))
    loader.close()
    assert multiprocessing.active_children() == []


class Stuck(Deadly):
    """Examples on a disk that does not answer."""

    def __getitem__(self, index):
        if torch.utils.data.get_worker_info() is not None:
            time.sleep(60)
        return torch.zeros(3, 8, 8, dtype=torch.uint8), 0


def test_a_worker_that_hangs_is_ended_by_the_main_process():
    data = Dataset("stuck", Stuck(), Stuck(), ("a",), (0.5,) * 3, (0.5,) * 3)
    loader = Loader(data, "train", batch_size=1, workers=1)
    # A shell that starts the tests in the background has SIGINT ignored.
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    threading.Timer(1, signal.raise_signal, [signal.SIGINT]).start()
    try:
        with pytest.raises(KeyboardInterrupt):
            list(loader.epoch(0))
    finally:
        signal.signal(signal.SIGINT, before)
    began = time.monotonic()
    loader.close()
    assert multiprocessing.active_children() == [] and time.monotonic() - began < 9


class Failing(Deadly):
    """Examples of somebody's own, with a mistake of theirs in it."""

    def __getitem__(self, index):
        raise RuntimeError("no such codec")


def test_a_mistake_in_the_examples_is_not_taken_for_a_killed_worker():
    part = Failing()
    data = Dataset(
        "failing",
        [(torch.zeros(3, 8, 8, dtype=torch.uint8), 0)],
        part,
        ("a",),
        (0.5,) * 3,
        (0.5,) * 3,
    )
    loader = Loader(data, "train", batch_size=1, workers=1)
    loader.reader = dataclasses.replace(loader.reader, examples=part)
    with pytest.raises(RuntimeError, match="no such codec"):
        list(loader.epoch(0))
    assert multiprocessing.active_children() == []


@pytest.mark.parametrize("label", [10, -1])
def test_a_label_that_is_not_a_class_is_reported_before_a_device_meets_it(small, label):
    labels = small.train.labels.index_fill(0, torch.tensor(9), label)
    part = Tensors(small.train.images, labels)
    fact = f"odd has 10 classes, and an example of class {label}"
    data = Dataset("odd", part, small.val, small.classes, small.mean, small.std)
    with pytest.raises(InputError, match=fact):
        Loader(data, "train", batch_size=8)
    data = Dataset("odd", list(part), small.val, small.classes, small.mean, small.std)
    with pytest.raises(InputError, match=fact):
        list(Loader(data, "train", batch_size=8).epoch(0))


def test_what_tensors_of_somebodys_own_are_not_is_reported(small):
    images, labels = small.train.images, small.train.labels
    for part, fact in (
        (Tensors(images / 255, labels), "0 of own is float32 of 3 x 16 x 16, and not uint8 of"),
        (Tensors(images, labels.float()), "labels of own are float32 of 41, and not int64 of 41"),
        (Tensors(images, labels[:40]), "labels of own are int64 of 40, and not int64 of 41"),
        (list(Tensors(images / 255, labels)), "of own is float32 of 3 x 16 x 16, and not uint8"),
        (
            [*Tensors(images[:1], labels), *Tensors(images[1:, :, 1:], labels[1:])],
            "of own is uint8 of 3 x 15 x 16, and not uint8 of 3 x 16 x 16",
        ),
        (
            [(image, label + 0.5) for image, label in Tensors(images, labels)],
            "the label of example .* of own is not a whole number",
        ),
        (
            [(image, torch.ones(10) / 10) for image in images],
            "of own is not a whole number: tensor",
        ),
        ([(image, "cat") for image in images], "of own is not a whole number: 'cat'"),
        ([(image.numpy(), 0) for image in images], "the images of own are numpy.ndarray"),
    ):
        data = Dataset("own", part, part, small.classes, small.mean, small.std)
        with pytest.raises(InputError, match=fact):
            collect(Loader(data, "train", batch_size=8))


@pytest.mark.parametrize("kind", [float, bool, torch.tensor, numpy.int32, numpy.bool_])
def test_a_label_is_any_whole_number(small, kind):
    part = [(image, kind(row % 2)) for row, image in enumerate(small.train.images)]
    data = Dataset("small", part, part, small.classes, small.mean, small.std)
    labels = collect(Loader(data, "val", batch_size=8))[1]
    assert labels.tolist() == [row % 2 for row in range(len(part))]


@pytest.mark.parametrize("kind", [torch.uint8, torch.int32])
def test_class_numbers_of_any_whole_kind_are_those_of_int64(small, kind):
    part = Tensors(small.train.images, small.train.labels.to(kind))
    parts = part, [(image, labels) for image, labels in zip(part.images, part.labels)]
    for part in parts:
        data = Dataset("small", part, part, small.classes, small.mean, small.std)
        same = collect(Loader(small, "train", batch_size=8))[1]
        given = collect(Loader(data, "train", batch_size=8))[1]
        assert given.dtype == torch.int64 and torch.equal(given, same)


def test_a_channel_of_one_value_is_normalised_to_zero_and_a_deviation_of_zero_refused(small):
    images = small.train.images.clone()
    images[:, 1] = 7
    part = Tensors(images, small.train.labels)
    data = in_memory("flat", part, part, small.classes, 3)
    batch = collect(Loader(data, "train", batch_size=8))[0]
    assert batch.isfinite().all() and (batch[:, 1].abs() < 1e-6).all()
    data = dataclasses.replace(data, std=(0.2, 0.0, 0.2))
    with pytest.raises(InputError, match="flat: a standard deviation of 0"):
        Loader(data, "train", batch_size=8)


def test_a_label_that_counts_for_nothing_is_none_of_the_classes_on_purpose(small):
    labels = torch.full_like(small.train.labels, -100)
    data = Dataset(
        "odd", Tensors(small.train.images, labels), small.val, small.classes, small.mean, small.std
    )
    assert collect(Loader(data, "train", batch_size=8))[1].unique().tolist() == [-100]


def test_what_workers_get_can_be_pickled(tree, small):
    """As Python 3.14 and macOS start workers."""
    folder = open_dataset("imagefolder", tree)
    for data, augment in ((folder, CROP), (small, CHANCE)):
        reader = Loader(data, "train", batch_size=2, augment=augment).reader
        assert len(pickle.loads(pickle.dumps(reader)).examples) == len(data.train)
