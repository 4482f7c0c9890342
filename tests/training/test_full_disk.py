"""A disk that is full while a run writes: the report, the files left, and how it resumes."""

from __future__ import annotations

import ctypes
import os
import resource
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from support.same_runs import assert_same
from support.tiny_run import in_child, tiny_train
from torch.utils.tensorboard import SummaryWriter

from dcil_dsl.data import Dataset, Loader
from dcil_dsl.diagnostics import InputError
from dcil_dsl.training import result
from dcil_dsl.training.checkpoint import read_file

LIBC = ctypes.CDLL(None, use_errno=True)
NEW_USERS, NEW_MOUNTS, PRIVATE = 0x10000000, 0x00020000, (1 << 14) | (1 << 18)  # sched.h, mount.h
PAGE = 4096


def mount_small_disk(place: Path, size: int) -> bool:
    """A file system of `size` bytes for this process alone; False where that is not allowed."""
    user, group, is_root = os.getuid(), os.getgid(), os.getuid() == 0
    if LIBC.unshare(NEW_MOUNTS if is_root else NEW_USERS | NEW_MOUNTS):
        return False
    if not is_root:
        Path("/proc/self/setgroups").write_text("deny")
        Path("/proc/self/uid_map").write_text(f"0 {user} 1")
        Path("/proc/self/gid_map").write_text(f"0 {group} 1")
    LIBC.mount(b"none", b"/", None, PRIVATE, None)
    return not LIBC.mount(b"none", bytes(place), b"tmpfs", 0, f"size={size}".encode())


def may_mount(place: Path) -> bool:
    place.mkdir()
    return in_child(lambda: os._exit(0 if mount_small_disk(place, PAGE) else 1)) == 0


def fill(file: Path, leave: int) -> None:
    """Take all the space but for `leave` bytes."""
    free = os.statvfs(file.parent)
    file.write_bytes(bytes(free.f_bavail * free.f_frsize - leave))


def files_of(run) -> dict[str, bytes]:
    return {file.name: file.read_bytes() for file in run.checkpoint.parent.iterdir()}


@pytest.fixture(scope="module")
def straight(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("runs") / "straight"
    tiny_train(folder)
    return folder


@pytest.mark.parametrize("pages", [0, 1, 3, 6])
def test_a_full_file_system_ends_the_run_in_words_and_it_resumes_when_there_is_space(
    tmp_path, straight, pages
):
    """Full at the metrics, at the next checkpoint's first page or last, at the one after it."""
    if not may_mount(tmp_path / "disk"):
        pytest.skip("this system lets nobody mount a file system of their own")

    def work() -> None:
        mount_small_disk(tmp_path / "disk", 2 << 20)
        folder, filler = tmp_path / "disk" / "run", tmp_path / "disk" / "filler"
        _, _, run = tiny_train(folder, max_steps=5)
        assert run.checkpoint.stat().st_size > 3 * PAGE
        fill(filler, leave=pages * PAGE)
        with pytest.raises(InputError, match=f"cannot write {folder}/.*: No space left") as error:
            tiny_train(folder, resume=True)
        assert error.value.help == "free some space and continue with --resume"
        assert all(read_file(file) for file in run.checkpoint.parent.iterdir())
        filler.unlink()
        tiny_train(folder, resume=True)
        assert_same(folder, straight)

    assert in_child(work) == 0


@pytest.mark.parametrize("share", [0.5, 0.99])
def test_a_checkpoint_that_finds_no_space_leaves_the_last_one_as_it_is(tmp_path, straight, share):
    """A limit on the size of files stands for a full disk where nobody may make one."""

    def work() -> None:
        folder = tmp_path / "run"
        _, _, run = tiny_train(folder, max_steps=5)
        before = files_of(run)
        limit = int(share * len(before["last.safetensors"]))
        resource.setrlimit(resource.RLIMIT_FSIZE, (limit, resource.RLIM_INFINITY))
        with pytest.raises(InputError, match=f"cannot write {run.checkpoint}: ") as error:
            tiny_train(folder, resume=True)
        assert error.value.help == "free some space and continue with --resume"
        assert files_of(run) == before
        resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY,) * 2)
        tiny_train(folder, resume=True)
        assert_same(folder, straight)

    assert in_child(work) == 0


def test_events_that_find_no_space_end_the_run_in_words_too(tmp_path, straight, monkeypatch):
    """TensorBoard's writer fails a few lines late, and again when it is closed."""

    class Full(SummaryWriter):
        def flush(self) -> None:
            raise OSError(28, os.strerror(28))

        close = flush

    with monkeypatch.context() as patched:
        patched.setattr(result, "tensorboard", SimpleNamespace(SummaryWriter=Full))
        with pytest.raises(InputError, match="cannot write .*tensorboard: No space left on device"):
            tiny_train(tmp_path / "run")
    tiny_train(tmp_path / "run", resume=True)
    assert_same(tmp_path / "run", straight)


class Photographs:
    """Of 12 kB each."""

    def __len__(self):
        return 32

    def __getitem__(self, index):
        return torch.zeros(3, 64, 64, dtype=torch.uint8), 0


def test_too_little_shared_memory_is_reported_and_nothing_waits_for_the_batch_without_end(tmp_path):
    """As the 64 MiB of a Docker container are for photographs."""
    if not may_mount(tmp_path / "disk"):
        pytest.skip("this system lets nobody mount a file system of their own")

    def work() -> None:
        mount_small_disk(Path("/dev/shm"), 16 * PAGE)
        data = Dataset("photographs", Photographs(), Photographs(), ("a",), (0.5,) * 3, (0.5,) * 3)
        loader = Loader(data, "train", batch_size=8, workers=1)
        with pytest.raises(InputError, match="no room in shared memory for a batch of 98,304 b"):
            list(loader.epoch(0))

    assert in_child(work, seconds=60) == 0
