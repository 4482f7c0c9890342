"""What two runs have in common: checkpoints, metrics, to the bit or to rounding."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from dcil_dsl.model.digest import digest
from dcil_dsl.training.checkpoint import read_file

TIMES = (
    "seconds",
    "trained",
    "epoch_trained",
    "waited",
    "epoch_waited",
    "examples_per_second",
    "data_seconds",
    "data_share",
)


def contents(folder: Path):
    """Every tensor of the checkpoint, its position and the metrics, times left out."""
    with safe_open(folder / "checkpoint" / "last.safetensors", framework="pt") as file:
        tensors = {name: file.get_tensor(name) for name in file.keys()}
        position = json.loads(file.metadata()["position"])
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    for values in (position, *lines):
        for name in TIMES:
            values.pop(name, None)
    return tensors, position, lines


def assert_same(one: Path, other: Path) -> None:
    tensors, *rest = contents(one)
    others, *other_rest = contents(other)
    assert rest == other_rest
    assert tensors.keys() == others.keys()
    assert [name for name in tensors if not torch.equal(tensors[name], others[name])] == []


def checkpoint(folder):
    return load_file(folder / "checkpoint" / "last.safetensors")


def lines(folder):
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


def assert_equal_runs(one, other):
    """Masks alike; weights, momentum, averages and losses to rounding."""
    tensors, others = checkpoint(one), checkpoint(other)
    assert tensors.keys() == others.keys()
    for name, tensor in tensors.items():
        torch.testing.assert_close(tensor, others[name], rtol=1e-4, atol=1e-5, msg=name)
    for line, same in zip(lines(one), lines(other), strict=True):
        assert line["losses"] == pytest.approx(same["losses"], rel=1e-4)
        for name in ("step", "epoch", "top1", "sparsity_measured", "mask_flips"):
            assert line[name] == same[name]


def set_position(path: Path, **changes) -> None:
    tensors, header = read_file(path)
    header["position"] = json.dumps(json.loads(header["position"]) | changes)
    save_file(tensors, path, header | {"digest": digest(tensors, header)})
