"""What a job is given: a device that is there and the current one, workers for the cores it has."""

import os
from types import SimpleNamespace

import pytest
import torch

from dcil_dsl.diagnostics import InputError
from dcil_dsl.jobs.data import num_workers, pick_device
from dcil_dsl.training.distributed import Ranks


@pytest.fixture
def made_current(monkeypatch):
    """Two GPUs, as torch would count them; the devices that were made the current one."""
    devices = []
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setattr(torch.cuda, "set_device", devices.append)
    return devices


def test_a_gpu_that_is_named_becomes_the_current_one(made_current):
    assert pick_device("cuda:1") == torch.device("cuda", 1)
    assert pick_device("auto") == torch.device("cuda")
    assert made_current == ["cuda:1"]


def test_each_of_several_processes_has_the_gpu_of_its_number(made_current):
    assert pick_device("auto", Ranks(3, 4, 1, 2)) == torch.device("cuda", 1)
    assert made_current == ["cuda:1"]
    with pytest.raises(InputError, match="takes the GPU of its local rank"):
        pick_device("cuda:0", Ranks(3, 4, 1, 2))


@pytest.mark.parametrize("device", ["cuda:2", "cuda:one", "tpu"])
def test_a_device_that_is_missing_is_refused(device, made_current):
    with pytest.raises(InputError):
        pick_device(device)
    with pytest.raises(InputError, match="torch finds 2 GPUs"):
        pick_device("cuda", Ranks(4, 8, 2, 8))
    assert made_current == []


def test_an_apple_gpu_is_taken_where_it_is_named_and_torch_finds_one(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(InputError, match="torch finds no Apple GPU"):
        pick_device("mps")
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: True)
    assert pick_device("mps") == torch.device("mps") and pick_device("auto").type == "cpu"
    with pytest.raises(InputError, match="one process at a time"):
        pick_device("mps", Ranks(1, 2, 1, 2))
    with pytest.raises(InputError, match="there is no device `mps:1`"):
        pick_device("mps:1")


@pytest.mark.parametrize(("asked", "processes", "workers"), [(None, 1, 3), (None, 2, 1), (5, 2, 5)])
def test_as_many_processes_read_files_as_this_one_may_use_cores(
    asked, processes, workers, monkeypatch
):
    monkeypatch.setattr(os, "cpu_count", lambda: 64)  # of the machine, not of our share of it
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: {0, 5, 9}, raising=False)
    assert num_workers(SimpleNamespace(train=object()), "train", asked, processes) == workers
