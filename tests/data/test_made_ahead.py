"""In which stream a batch is made ahead; stand-ins for streams tell without a device."""

from contextlib import contextmanager

import pytest
import torch

from dcil_dsl.data import batches
from dcil_dsl.data.batches import made_ahead

CUDA = torch.device("cuda")


class Recorded:
    """Stands for a tensor; `streams`: who reads it beside the stream that made it."""

    def __init__(self):
        self.streams = []

    def record_stream(self, stream):
        self.streams.append(stream)


class Stream:
    def __init__(self, name, log):
        self.name, self.log = name, log

    def wait_stream(self, other):
        self.log.append((self.name, "waits for", other.name))

    def record_event(self):
        return f"event {len(self.log)} of {self.name}"

    def wait_event(self, event):
        self.log.append((self.name, "waits for", event))


@pytest.fixture
def streams(monkeypatch):
    """(log, the names of the streams in which we are, the last one the current)."""
    log = []
    caller, ahead = Stream("caller", log), Stream("ahead", log)
    inside = [caller]

    @contextmanager
    def stream(one):
        inside.append(one)
        yield
        inside.pop()

    made = [ahead, Stream("another", log)]
    monkeypatch.setattr(torch.cuda, "Stream", lambda device: made.pop(0))
    monkeypatch.setattr(torch.cuda, "current_stream", lambda device: inside[-1])
    monkeypatch.setattr(torch.cuda, "stream", stream)
    batches._stream_ahead.cache_clear()
    yield log, inside
    batches._stream_ahead.cache_clear()


def test_rows_are_picked_and_made_into_a_batch_in_one_stream_and_used_in_the_callers(streams):
    log, inside = streams

    def held():
        for number in range(3):
            log.append((inside[-1].name, "picks", number))
            yield number

    def make(number):
        log.append((inside[-1].name, "makes", number))
        return Recorded(), Recorded()

    batches = []
    for number, batch in enumerate(made_ahead(held(), make, CUDA)):
        log.append((inside[-1].name, "uses", number))
        batches.append(batch)
    done = {(name, what) for name, what, _ in log if what != "waits for"}
    assert done == {("ahead", "picks"), ("ahead", "makes"), ("caller", "uses")}
    assert log[0] == ("ahead", "waits for", "caller")
    assert len(batches) == 3
    for images, labels in batches:
        assert [s.name for s in images.streams + labels.streams] == ["caller", "caller"]


def test_a_batch_is_made_before_the_one_before_it_is_used_and_waited_for_on_the_device(streams):
    log, _ = streams
    order = []
    for _number in made_ahead(range(3), lambda n: order.append(f"make {n}") or [], CUDA):
        order.append("use")
    assert order == ["make 0", "make 1", "use", "make 2", "use", "use"]
    assert [row[:2] for row in log] == [("ahead", "waits for")] + 3 * [("caller", "waits for")]


def test_nothing_is_made_of_nothing_and_an_error_of_the_source_reaches_the_caller(streams):
    assert list(made_ahead(iter(()), lambda n: [], CUDA)) == []

    def broken():
        yield 0
        raise ValueError("no such row")

    with pytest.raises(ValueError, match="no such row"):
        list(made_ahead(broken(), lambda n: [], CUDA))


def test_all_epochs_are_made_in_one_stream_whose_memory_is_used_again(streams):
    _, inside = streams
    seen = []
    for _ in range(2):
        list(made_ahead(range(2), lambda n: seen.append(inside[-1].name) or [], CUDA))
    assert seen == 4 * ["ahead"]
