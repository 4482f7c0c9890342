"""WebDataset shards: train-*.tar and val-*.tar, in which KEY.jpg and KEY.cls make an example.

In:   the folder that holds the shards.
Out:  a Dataset whose items are (PIL image, class index), read from the tars when accessed.
Not:  nothing of a tar is unpacked, unpickled or run: a header gives the offset of an image, whose
      bytes go to Pillow. Nothing is streamed: an example is found by its number.

The index (shard, offset, size and class of each example) comes from one pass over the headers. It
is cached in ~/.cache/dcil/webdataset as long as the shards keep their names, sizes and times.
"""

from __future__ import annotations

import hashlib
import io
import os
import shlex
import tarfile
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from dcil_dsl.data.dataset import Dataset
from dcil_dsl.data.datasets import shards_of
from dcil_dsl.data.folders import MODES, BadImage, read_image, statistics_of
from dcil_dsl.diagnostics import InputError
from dcil_dsl.diagnostics.counting import count
from dcil_dsl.diagnostics.optional import library

if TYPE_CHECKING:
    from PIL import Image
else:
    Image = library("PIL.Image")

IMAGES = ("jpg", "jpeg", "png", "webp")
WINDOW = 8  # shards that are shuffled together, so that reading stays in a few files at a time
OPEN_FILES = 2 * WINDOW
MAX_CLASSES = 1_000_000
INDEX = "2"  # of its making: an index that was made otherwise is made anew


@dataclass(frozen=True)
class TarShards:
    """One part. The examples are in the order of the shards' names, then of their offsets.

    shard, offset, size, label  int64 (N,); the image's bytes are `size` from `offset` on
    """

    files: tuple[str, ...]
    shard: Tensor
    offset: Tensor
    size: Tensor
    label: Tensor
    mode: str
    _open: dict[int, int] = field(default_factory=dict, compare=False, repr=False)

    def __len__(self) -> int:
        return len(self.label)

    def __getitem__(self, index: int) -> tuple[Image.Image, int]:
        """Raises BadImage."""
        shard, offset, size = (int(x[index]) for x in (self.shard, self.offset, self.size))
        try:
            data = os.pread(self._descriptor(shard), size, offset)
        except OSError as error:  # the shard is gone since its headers were read
            raise BadImage(f"cannot read {self.files[shard]}: {error.strerror}") from error
        name = f"{_name_at(self._descriptor(shard), offset)} of {self.files[shard]}"
        return read_image(io.BytesIO(data), self.mode, name), int(self.label[index])

    def shuffled(self, chance: torch.Generator) -> Tensor:
        """All numbers in an order of this epoch: shards at random, WINDOW of them shuffled."""
        order = torch.randperm(len(self.files), generator=chance)
        starts = torch.searchsorted(self.shard, torch.arange(len(self.files) + 1)).tolist()
        windows = []
        for shards in torch.split(order, WINDOW):
            window = torch.cat([torch.arange(starts[s], starts[s + 1]) for s in shards.tolist()])
            windows.append(window[torch.randperm(len(window), generator=chance)])
        return torch.cat(windows)

    def _descriptor(self, shard: int) -> int:
        if shard not in self._open:
            if len(self._open) == OPEN_FILES:
                os.close(self._open.pop(next(iter(self._open))))
            self._open[shard] = os.open(self.files[shard], os.O_RDONLY)
        return self._open[shard]

    def __getstate__(self) -> dict[str, object]:
        return self.__dict__ | {"_open": {}}  # descriptors mean nothing in another process


def open_shards(directory: Path, channels: int) -> Dataset:
    """Both parts. InputError for tars that are damaged, incomplete or not shards of images."""
    train, val = (_open_part(shards_of(directory, part), channels) for part in ("train", "val"))
    num_classes = int(train.label.max()) + 1
    if int(val.label.max()) >= num_classes:
        raise InputError(
            f"the val shards of {directory} have a class {int(val.label.max())}, "
            f"the train shards have 0 to {num_classes - 1}"
        )
    mean, std = statistics_of(channels)
    return Dataset("webdataset", train, val, tuple(map(str, range(num_classes))), mean, std)


def _open_part(files: list[Path], channels: int) -> TarShards:
    index = _cached_index(files)
    names = tuple(str(file.absolute()) for file in files)
    shard, offset, size, label = (index[n] for n in ("shard", "offset", "size", "label"))
    return TarShards(names, shard, offset, size, label, MODES[channels])


# -- the index -----------------------------------------------------------------------------------


def _cached_index(files: list[Path]) -> dict[str, Tensor]:
    lines = (f"{f.absolute()} {f.stat().st_size} {f.stat().st_mtime_ns}" for f in files)
    text = "\n".join([INDEX, *lines])
    name = hashlib.blake2b(os.fsencode(text), digest_size=16).hexdigest()
    try:
        cache = Path.home() / ".cache" / "dcil" / "webdataset" / f"{name}.safetensors"
        return load_file(cache)
    except RuntimeError:  # a user without a home, as containers have them
        return make_index(files)
    except (OSError, SafetensorError):  # not there yet, or cut off
        pass
    index = make_index(files)
    draft = cache.with_suffix(f".{os.getpid()}.draft")
    try:
        cache.parent.mkdir(parents=True, exist_ok=True)
    except OSError:
        return index  # no place for it: the next start walks over the headers again
    try:
        save_file(index, draft)
        os.replace(draft, cache)  # other ranks see all of it or nothing
    except (OSError, SafetensorError):
        draft.unlink(missing_ok=True)
    return index


def make_index(files: list[Path]) -> dict[str, Tensor]:
    """{"shard", "offset", "size", "label"}, int64 (N,), from the headers of `files`."""
    rows = [(number, *row) for number, file in enumerate(files) for row in _examples(file)]
    columns = torch.tensor(rows, dtype=torch.long).reshape(-1, 4).unbind(1)
    return {n: c.contiguous() for n, c in zip(("shard", "offset", "size", "label"), columns)}


def _examples(file: Path) -> Iterator[tuple[int, int, int]]:
    """offset, size, class of each example of one tar."""
    images: dict[str, tuple[int, int]] = {}
    labels: dict[str, int] = {}
    try:
        with tarfile.open(file, mode="r:") as tar:
            end = file.stat().st_size
            for member in tar:
                if member.isdir():
                    continue
                _check(member, file, end)
                key, _, kind = member.name.rpartition("/")[2].partition(".")
                key = member.name[: len(member.name) - len(kind)]
                if kind.lower() in IMAGES:
                    _put(images, key, (member.offset_data, member.size), file)
                elif kind == "cls":
                    _put(labels, key, _label(tar, member, file), file)
            _check_end(file, tar.offset)
    except InputError:
        raise
    except Exception as error:  # what a parser of damaged headers may raise: many things
        raise InputError(f"{file} is damaged: {type(error).__name__}: {error}") from error
    if lonely := images.keys() ^ labels.keys():
        key = min(lonely)
        missing = "cls" if key in images else "jpg"
        raise InputError(
            f"{file} has an example without its {missing}: {key}{missing}",
            f"so it is for {len(lonely)} of {count(len(images.keys() | labels.keys()), 'example')}",
        )
    if not images:
        raise InputError(f"{file} holds no example", f"expected KEY.jpg and KEY.cls in {file.name}")
    yield from ((*place, labels[key]) for key, place in images.items())


def _put(known: dict[str, Any], key: str, value: object, file: Path) -> None:
    if key in known:
        raise InputError(f"{file} has two examples called {key.rstrip('.')}")
    known[key] = value


def _check(member: tarfile.TarInfo, file: Path, end: int) -> None:
    """Refuse members that a tar of images does not need, harmful or not."""
    path = PurePosixPath(member.name)
    if path.is_absolute() or ".." in path.parts:
        raise InputError(
            f"{file} is not a shard of images: the name {member.name!r} leads out of it"
        )
    if not member.isreg() or member.issparse():
        raise InputError(f"{file} is not a shard of images: {member.name!r} is not a plain file")
    if member.offset_data + member.size > end:
        raise InputError(f"{file} is cut off: {member.name!r} is not all there")


def _check_end(file: Path, offset: int) -> None:
    """Refuse a tar that does not end with blocks of zeros.

    tarfile also stops at a damaged header and at a cut, and would silently lose the rest."""
    with open(file, "rb") as opened:
        opened.seek(offset)
        block = opened.read(tarfile.BLOCKSIZE)
    if len(block) < tarfile.BLOCKSIZE:
        raise InputError(
            f"{file} is cut off: the zeros at the end of a tar are missing",
            f"if it is whole all the same: truncate -s +1024 {shlex.quote(str(file))}",
        )
    if any(block):
        raise InputError(f"{file} is damaged: at byte {offset:,} there is no header of a tar")


def _label(tar: tarfile.TarFile, member: tarfile.TarInfo, file: Path) -> int:
    opened = tar.extractfile(member) if member.size <= 16 else None
    text = opened.read(16) if opened is not None else b""
    if not text.strip().isdigit() or int(text) >= MAX_CLASSES:
        hint = f"a whole number, from 0 on and below {MAX_CLASSES:,}"
        raise InputError(f"{file}: {member.name!r} is not a class number", hint)
    return int(text)


def _name_at(descriptor: int, offset: int) -> str:
    """The name in the header before the bytes; long names have other headers."""
    try:
        header = os.pread(descriptor, tarfile.BLOCKSIZE, offset - tarfile.BLOCKSIZE)
        return tarfile.TarInfo.frombuf(header, "utf-8", "replace").name
    except (tarfile.HeaderError, OSError):
        return f"the image at byte {offset}"
