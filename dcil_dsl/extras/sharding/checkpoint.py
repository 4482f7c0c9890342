"""A checkpoint in parts: every rank writes its rows, and any number of ranks reads them.

In:   tensors of which each rank has its rows, by name; a header of text.
Out:  checkpoint/parts-<step>/: the files of torch.distributed.checkpoint in its safetensors form,
      and parts.json, which is written last and holds the header and a sha256 of every file.
Not:  no pickle. torch.distributed.checkpoint's usual form has one, `.metadata`, and unpickles it;
      this form has none, and a file of that name is ignored.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import warnings
from collections.abc import Mapping
from hashlib import sha256
from pathlib import Path
from types import ModuleType

import torch
from safetensors import SafetensorError
from torch import Tensor

from dcil_dsl.diagnostics.errors import InputError
from dcil_dsl.extras.sharding.shards import Shards
from dcil_dsl.masking.placement import Placement
from dcil_dsl.training.checkpoint_files import INDEX, newest_parts, remove_parts
from dcil_dsl.training.files import cannot_write, write_text

FILE = re.compile(r"shard-\d{5}-model-\d{5}-of-\d{5}\.safetensors")


def save_parts(
    path: Path, tensors: Mapping[str, Tensor], header: dict[str, str], shards: Shards
) -> None:
    """Write the tensors of all ranks into one folder next to `path`, which it then replaces.

    All ranks call it. The folder appears whole or not at all; InputError where it cannot.
    """
    dcp, step = _checkpoints(), json.loads(header["position"])["step"]
    ranks, folder = shards.ranks, path.with_name(f"parts-{step:09}")
    draft = path.with_name(f".parts-{step:09}")

    def make() -> str:
        remove_parts(path, but=newest_parts(path))
        draft.mkdir(parents=True)
        return ""

    ranks.from_first(make)
    whole = {}
    for name, tensor in tensors.items():
        layout = shards.in_checkpoint(name, tensor)
        whole[name] = tensor if layout is None else layout.distributed(tensor)
    try:
        writer = dcp.HuggingFaceStorageWriter(str(draft), save_distributed=True)
        dcp.save(whole, storage_writer=writer)
    except (OSError, SafetensorError, dcp.api.CheckpointException) as error:
        raise cannot_write(folder, _first_cause(error)) from None
    own = draft / f"shard-{ranks.rank + 1:05}-model-00001-of-00001.safetensors"
    digest = bytes.fromhex(_digest(own) or "00" * 32)
    prints = ranks.gather(torch.tensor(list(digest), dtype=torch.uint8))

    def finish() -> str:
        digests = {
            f"shard-{rank + 1:05}-model-00001-of-00001.safetensors": bytes(row.tolist()).hex()
            for rank, row in enumerate(prints)
            if row.any()
        }
        digest = _digest_of(header, digests)
        index = {"header": header, "files": digests, "digest": digest}
        write_text(draft / INDEX, json.dumps(index, indent=2))
        if folder.exists():  # this step has been saved before
            shutil.rmtree(folder)
        os.replace(draft, folder)
        remove_parts(path, but=folder)
        path.unlink(missing_ok=True)
        return ""

    ranks.from_first(finish)


def read_parts(folder: Path, placement: Placement) -> tuple[dict[str, Tensor], dict[str, str]]:
    """The tensors, whole or as the placement has them; the header. InputError where damaged.

    Of several ranks each proves the digests of some of the files.
    """
    dcp = _checkpoints()
    header, files = _index(folder)
    shards = placement if isinstance(placement, Shards) else None
    rank, count = (0, 1) if shards is None else (shards.ranks.rank, shards.ranks.count)
    broken = [n for n in list(files)[rank::count] if _digest(folder / n) != files[n]]
    broken += [file.name for file in folder.glob("*.safetensors") if file.name not in files]
    if broken:
        raise InputError(f"the checkpoint {folder} is damaged: {broken[0]} is not what was written")
    try:
        entries = dcp.HuggingFaceStorageReader(str(folder)).read_metadata().state_dict_metadata
        places = {
            name: torch.empty(entry.size, dtype=entry.properties.dtype, device="meta")
            for name, entry in entries.items()
        }
        wanted = {name: _place(name, like, shards) for name, like in places.items()}
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # each rank reads alone on purpose
            dcp.load(wanted, storage_reader=dcp.HuggingFaceStorageReader(str(folder)), no_dist=True)
    except (SafetensorError, OSError, ValueError, KeyError, dcp.api.CheckpointException) as error:
        raise InputError(f"the checkpoint {folder} is damaged: {_first_cause(error)}") from None
    tensors = {n: t.to_local() if hasattr(t, "to_local") else t for n, t in wanted.items()}
    return tensors, header


def _checkpoints() -> ModuleType:
    """torch.distributed.checkpoint, which takes a second to import: only where there are parts."""
    import torch.distributed.checkpoint as dcp

    return dcp


def _place(name: str, like: Tensor, shards: Shards | None) -> Tensor:
    layout = None if shards is None else shards.in_checkpoint(name, like)
    if layout is None:
        return torch.empty_like(like, device="cpu")
    if layout.shape != like.shape:
        raise InputError(
            f"the checkpoint holds another model: `{name}` has shape {tuple(like.shape)} and not "
            f"{tuple(layout.shape)}"
        )
    own = layout.own(like)
    return layout.distributed(torch.empty_like(own, device="cpu"))


def _index(folder: Path) -> tuple[dict[str, str], dict[str, str]]:
    try:
        index = json.loads((folder / INDEX).read_text(encoding="utf-8"))
        header, files = dict(index["header"]), dict(index["files"])
        is_whole = index["digest"] == _digest_of(header, files)
    except (OSError, ValueError, KeyError, TypeError, RecursionError) as error:
        raise InputError(f"the checkpoint {folder} is damaged: {INDEX}: {error}") from None
    if not is_whole:
        raise InputError(f"the checkpoint {folder} is damaged: {INDEX} is not what was written")
    strange = [name for name in files if not FILE.fullmatch(name)]
    if strange:
        raise InputError(f"the checkpoint {folder} is damaged: it names a file {strange[0]!r}")
    return header, files


def _digest_of(header: dict[str, str], files: dict[str, str]) -> str:
    return sha256(json.dumps([header, files], sort_keys=True).encode()).hexdigest()


def _digest(file: Path) -> str | None:
    if not file.is_file():
        return None
    total = sha256()
    with open(file, "rb") as stream:
        while block := stream.read(1 << 22):
            total.update(block)
    return total.hexdigest()


def _first_cause(error: Exception) -> Exception:
    """One of the errors of several ranks."""
    failures = getattr(error, "failures", None)
    if failures:
        failure = next(iter(failures.values()))
        cause = failure[0] if isinstance(failure, tuple) else failure
        assert isinstance(cause, Exception)
        return cause
    return error
