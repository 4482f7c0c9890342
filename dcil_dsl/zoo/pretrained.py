"""Weights of a folder as transformers saves a model: read by transformers itself.

In:   a model of transformers, a folder with model.safetensors, or the shards and their index.
Out:  the weights in the model, in place; notes on what stays fresh and what was not used.
Not:  nothing is downloaded, and no code of a folder runs.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import nn

from dcil_dsl.diagnostics import InputError
from dcil_dsl.diagnostics.counting import count

HOLDS = ("model.safetensors", "model.safetensors.index.json")
OF_BASE = "pooler"  # the one part of a base model that a checkpoint of another task may lack
MAX_NAMED = 6


def holds_weights(folder: Path) -> bool:
    """Whether transformers saved weights there, as .safetensors: nothing but tensors."""
    return any((folder / name).is_file() for name in HOLDS)


def own_weights(spec: str) -> str | None:
    """The folder of `hf:FOLDER`, where it holds weights."""
    source, _, name = spec.partition(":")
    folder = Path(name).expanduser()
    return str(folder) if source == "hf" and folder.is_dir() and holds_weights(folder) else None


def load_folder(model: nn.Module, folder: Path, new_head: bool = True) -> list[str]:
    """Load the weights of a folder; a head that it lacks, or has in another size, stays fresh.

    InputError for a tensor of the base model that is missing or has another shape; of any, without
    `new_head`.
    """
    kind: Any = type(model)
    own: Any = model
    try:
        loaded, info = kind.from_pretrained(
            str(folder),
            config=own.config,
            local_files_only=True,
            use_safetensors=True,
            ignore_mismatched_sizes=True,
            output_loading_info=True,
            dtype=torch.float32,
        )
    except Exception as error:  # of transformers and safetensors: of many types
        fact = " ".join(str(error).split())[:200]
        raise InputError(
            f"the weights in {folder} cannot be read: {type(error).__name__}: {fact}"
        ) from error
    missing = sorted(info["missing_keys"])
    resized = sorted(entry[0] for entry in info["mismatched_keys"])
    base = own.base_model_prefix
    of_base = [
        name
        for name in [*missing, *resized]
        if not new_head
        or (own.base_model is own or name.startswith(f"{base}."))
        and OF_BASE not in name.split(".")
    ]
    if of_base:
        differ = count(len(of_base), "tensor is missing", "tensors are missing")
        raise InputError(
            f"{folder} does not fit {kind.__name__}: {differ} or of another shape",
            help=_some(of_base),
        )
    fresh = [*missing, *resized]
    read = {name: value for name, value in loaded.state_dict().items() if name not in fresh}
    model.load_state_dict(model.state_dict() | read)
    notes = []
    if fresh:
        notes.append(f"stays fresh, as {folder} has none of this shape: {_some(fresh)}")
    if unused := sorted(info["unexpected_keys"]):
        notes.append(f"not in {kind.__name__}, and not used: {_some(unused)}")
    return notes


def _some(names: list[str]) -> str:
    more = f" and {len(names) - MAX_NAMED} more" if len(names) > MAX_NAMED else ""
    return ", ".join(names[:MAX_NAMED]) + more
