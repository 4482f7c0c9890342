"""A checkpoint that is not what was written is refused, and the one before it is pointed to."""

from __future__ import annotations

import json
import shlex
import shutil
import subprocess
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from support.same_runs import assert_same
from support.tiny_run import tiny_dual, tiny_train

from dcil_dsl.diagnostics import InputError
from dcil_dsl.model.digest import digest
from dcil_dsl.training.checkpoint import load_deployed, read_file


@pytest.fixture(scope="module")
def made(tmp_path_factory) -> Path:
    """A run of two epochs of four, and the straight run."""
    root = tmp_path_factory.mktemp("runs")
    tiny_train(root / "straight")
    tiny_train(root / "run", max_steps=10)
    return root


@pytest.fixture
def folder(made, tmp_path) -> Path:
    return shutil.copytree(made / "run", tmp_path / "run")


def header_size(content: bytes) -> int:
    return 8 + int.from_bytes(content[:8], "little")


def flipped(content: bytes, place: int) -> bytes:
    changed = bytearray(content)
    changed[place] ^= 1
    return bytes(changed)


def in_header(old: bytes, new: bytes):
    def change(content: bytes) -> bytes:
        assert content.count(old) >= 1 and len(old) == len(new)
        return content.replace(old, new, 1)

    return change


DAMAGE = {
    "the size of the header": lambda c: flipped(c, 0),
    "a huge size of the header": lambda c: flipped(c, 7),
    "the first byte of the header": lambda c: flipped(c, 8),
    "the name of a tensor": in_header(b"conv1.weight_mask", b"conv1.weight_mark"),
    "the type of a tensor": in_header(b'"dtype":"F32"', b'"dtype":"I32"'),
    "the shape of a tensor": in_header(b'"shape":[8,4,3,3]', b'"shape":[4,8,3,3]'),
    "the position": in_header(b'\\"step\\": 10', b'\\"step\\": 15'),
    "the plan": lambda c: flipped(c, c.index(b'"plan":"') + 9),
    "the digest": lambda c: flipped(c, c.index(b'"digest":"') + 11),
    "the first tensor": lambda c: flipped(c, header_size(c)),
    "a tensor in the middle": lambda c: flipped(c, (header_size(c) + len(c)) // 2),
    "the last byte": lambda c: flipped(c, len(c) - 1),
    "a byte more": lambda c: c + b"\0",
    "another file more": lambda c: c + c,
    "a byte less": lambda c: c[:-1],
    "half of it": lambda c: c[: len(c) // 2],
    "half of the header": lambda c: c[: header_size(c) // 2],
    "nothing": lambda c: b"",
    "zeros": lambda c: bytes(len(c)),
}


@pytest.mark.parametrize("damage", [*DAMAGE])
def test_what_is_not_what_was_written_is_refused_and_nothing_of_it_is_loaded(folder, damage):
    path = folder / "checkpoint" / "last.safetensors"
    path.write_bytes(DAMAGE[damage](path.read_bytes()))
    dual = tiny_dual()
    before = {name: tensor.clone() for name, tensor in dual.state_dict().items()}
    fact = r"last\.safetensors (is damaged: |is not a checkpoint of this version)"
    with pytest.raises(InputError, match=fact) as error:
        load_deployed(path, dual)
    assert error.value.help.startswith("the one before it, of step 5, is intact; to resume from")
    after = dual.state_dict()
    assert [name for name in before if not torch.equal(before[name], after[name])] == []


def test_the_command_that_is_named_leads_to_the_end_of_the_straight_run(folder, made):
    path = folder / "checkpoint" / "last.safetensors"
    path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(InputError) as error:
        tiny_train(folder, resume=True)
    assert (folder / "metrics.jsonl").read_text() == (made / "run/metrics.jsonl").read_text()
    subprocess.run(shlex.split(error.value.help.splitlines()[1]), check=True)
    tiny_train(folder, resume=True)
    assert_same(folder, made / "straight")


def test_a_checkpoint_that_is_gone_is_not_taken_for_a_run_that_never_had_one(folder):
    (folder / "checkpoint" / "last.safetensors").unlink()
    with pytest.raises(InputError, match="there is no checkpoint .*last.safetensors") as error:
        tiny_train(folder, resume=True)
    assert "of step 5, is intact" in error.value.help


def test_where_both_are_damaged_nothing_is_promised(folder):
    for path in (folder / "checkpoint").iterdir():
        path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(InputError, match="last.safetensors is damaged") as error:
        tiny_train(folder, resume=True)
    assert error.value.help is None


def test_the_one_before_is_of_the_end_of_an_epoch(tmp_path):
    """Else a run that was interrupted twice in an epoch would have no place to go back to."""
    for max_steps in (5, 6, 7, 12):
        tiny_train(tmp_path / "run", max_steps=max_steps, resume=max_steps > 5)
    header = read_file(tmp_path / "run" / "checkpoint" / "previous.safetensors")[1]
    assert json.loads(header["position"])["step"] == 10


@pytest.mark.parametrize(
    ("change", "fact"),
    [
        (lambda t, h: h.pop("position"), "does not say where it stands"),
        (lambda t, h: h.update(position="[]"), "does not say where it stands"),
        (lambda t, h: h.update(position='{"step": "__import__"}'), "does not say where it stands"),
        (lambda t, h: h.pop("plan"), "belongs to another plan"),
        (lambda t, h: t.pop("sums"), "it lacks `sums`"),
        (lambda t, h: t.pop("model/conv1.weight"), "it lacks `conv1.weight`"),
        (lambda t, h: t.update({"optimizer/nowhere/momentum_buffer": torch.zeros(1)}), "optimizer"),
        (
            lambda t, h: t.update({"optimizer/conv1.weight/momentum_buffer": torch.zeros(2, 7)}),
            "optimizer",
        ),
    ],
)
def test_a_forged_checkpoint_with_a_right_digest_is_refused_in_words(folder, change, fact):
    """A digest proves that a file is whole, not who wrote it."""
    path = folder / "checkpoint" / "last.safetensors"
    tensors, header = read_file(path)
    change(tensors, header)
    save_file(tensors, path, header | {"digest": digest(tensors, header)})
    with pytest.raises(InputError, match=fact):
        tiny_train(folder, resume=True)
