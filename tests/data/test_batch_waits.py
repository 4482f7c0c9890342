"""Batches are made on a GPU without a wait of the host; fake tensors tell without one."""

import pytest
from support.augment_words import WORDS
from support.fake_gpu import elsewhere, fake_gpu

from dcil_dsl.data import Loader, open_dataset
from dcil_dsl.data import batches as data_batches
from dcil_dsl.words.registry import words_at


def waits_of(word):
    """The places of the waits of an epoch from its second batch on, and the batches' devices.

    The first one takes the data to the device.
    """
    data_batches.made_ahead = lambda held, make, device: map(make, held)  # in no stream of its own
    data = open_dataset("synthetic", num_train=96, num_val=8)
    augment = (WORDS[word],)
    with fake_gpu() as waits:
        loads = Loader(data, "train", device="cuda", batch_size=32, augment=augment)
        batches = loads.epoch(0)
        next(batches)
        waits.places.clear()
        devices = {tensor.device.type for batch in batches for tensor in batch}
    return dict(waits.places), devices


@pytest.mark.parametrize("word", WORDS)
def test_an_augmented_batch_is_made_without_a_wait(word):
    assert elsewhere(waits_of, word) == ({}, {"cuda"})


def test_no_augmentation_of_the_language_is_left_out():
    assert set(WORDS) == set(words_at("an augmentation"))
