"""A packed file holds every bit of a network, is read by the page's own reader, and resists."""

import json
import re
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from support.library import needed
from support.tiny_job import call, own, short_run, whole_run
from torch import nn

from dcil_dsl.diagnostics import InputError
from dcil_dsl.exporting.artefact import Deployed
from dcil_dsl.exporting.exporters import EXPORTERS, exporter_for

zstandard = needed("zstandard")
PAGE = Path(__file__).parents[3] / "docs" / "how-to" / "deploy-packed.md"


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return whole_run(tmp_path_factory.mktemp("job"))


class Odd(nn.Module):
    """Types and numbers that a careless format loses."""

    def __init__(self):
        super().__init__()
        weight = torch.zeros(7, 9)
        weight[0, 0], weight[1, 1], weight[2, 2] = -0.0, float("nan"), 1e-42
        self.weight = nn.Parameter(weight)
        self.dense = nn.Parameter(torch.randn(5, 5))
        self.wide = nn.Parameter(torch.randn(3, 2).double())
        self.sixteen = nn.Parameter(torch.randn(4, 4).half())
        self.brain = nn.Parameter(torch.eye(33).bfloat16())
        self.register_buffer("steps", torch.tensor(3))
        self.register_buffer("kept", torch.eye(20).bool())
        self.register_buffer("none", torch.zeros(0, 4))
        self.register_buffer("codes", torch.eye(20).to(torch.int8))


def bits(tensor):
    return tensor.contiguous().reshape(-1).view(torch.uint8)


def reader():
    code = re.search(r"<!-- file: unpack.py -->\n```python\n(.*?)```", PAGE.read_text(), re.S)[1]
    space = {}
    exec(compile(code, "unpack.py", "exec"), space)
    body = code[code.index("def ") :].strip().splitlines()
    return space["unpack"], body


def test_packed_is_exact_to_the_bit_for_every_type(tmp_path):
    odd = Odd()
    EXPORTERS["packed"].write(Deployed(odd, None), tmp_path / "odd.packed")
    read = exporter_for(tmp_path / "odd.packed").read(tmp_path / "odd.packed")
    state = odd.state_dict()
    assert read.exact and list(read.tensors) == list(state)
    for name, tensor in state.items():
        found = read.tensors[name]
        assert found.dtype == tensor.dtype and found.shape == tensor.shape, name
        assert torch.equal(bits(found), bits(tensor)), name


def test_the_reader_of_the_page_needs_numpy_and_zstandard_and_has_the_same_numbers(tmp_path):
    unpack, body = reader()
    assert len(body) <= 25
    for name in ("packed", "packed-fp16", "packed-bf16"):
        odd = Odd()
        with torch.no_grad():
            odd.weight[1, 1] = 0.5
        file = tmp_path / f"{name}.packed"
        EXPORTERS[name].write(Deployed(odd, None), file)
        ours = exporter_for(file).read(file).tensors
        theirs = unpack(file)
        assert list(theirs) == list(ours)
        for key, tensor in ours.items():
            wanted = tensor.float().numpy() if tensor.dtype == torch.bfloat16 else tensor.numpy()
            assert (theirs[key] == wanted).all() and theirs[key].shape == wanted.shape, key


def test_a_run_is_packed_verified_and_converted_back(folder, tmp_path, capsys):
    assert call("export", folder / "run", "--to", "packed", *own(folder)) == 0
    assert "times as many" in capsys.readouterr().out
    packed = folder / "run" / "sparse.packed"
    assert packed.stat().st_size < (folder / "run" / "sparse.safetensors").stat().st_size
    assert call("verify", packed) == 0
    assert "90" in capsys.readouterr().out
    out = tmp_path / "back.safetensors"
    assert call("export", packed, "--to", "safetensors", "--out", out, *own(folder)) == 0
    assert out.read_bytes() == (folder / "run" / "sparse.safetensors").read_bytes()


def test_weights_in_float16_are_half_as_large_and_stay_zero(folder, capsys):
    assert call("export", folder / "run", "--to", "packed-fp16", *own(folder)) == 0
    half = folder / "run" / "sparse.fp16.packed"
    assert call("verify", half) == 0
    dense = load_file(folder / "run" / "sparse.safetensors")
    read = exporter_for(half).read(half).tensors
    assert (read["0.weight"][dense["0.weight"] == 0] == 0).all()
    assert read["0.weight"].dtype == torch.float32
    assert torch.equal(read["0.weight"], dense["0.weight"].half().float())
    assert torch.equal(read["1.running_var"], dense["1.running_var"])


def test_weights_beyond_float16_are_refused(tmp_path):
    net = nn.Linear(2, 2)
    nn.init.constant_(net.weight, 1e6)
    with pytest.raises(InputError, match="1e[+]06, which float16 cannot"):
        EXPORTERS["packed-fp16"].write(Deployed(net, None), tmp_path / "a.packed")
    assert not list(tmp_path.iterdir())


def test_a_revived_weight_is_a_fault(folder, tmp_path, capsys):
    """The tensors of the file changed, its header kept."""
    source = folder / "run" / "sparse.packed"
    EXPORTERS["packed"].write(Deployed(nn.ParameterDict({}), None), tmp_path / "empty.packed")
    read = exporter_for(source).read(source)
    net = nn.Module()
    for name, tensor in read.tensors.items():
        net.register_buffer(name.replace(".", "_"), tensor)
    assert read.origin is not None

    class Changed(Deployed):
        def tensors(self):
            return read.tensors | {"0.weight": torch.ones_like(read.tensors["0.weight"])}

    EXPORTERS["packed"].write(Changed(net, read.origin), tmp_path / "full.packed")
    assert call("verify", tmp_path / "full.packed") == 1
    assert "revived or never pruned" in capsys.readouterr().out


# -- hostile files ---------------------------------------------------------------------------


def file_of(tmp_path, table, masks=b"", values=b"", **more):
    press = zstandard.ZstdCompressor()
    streams = {
        key: torch.frombuffer(bytearray(press.compress(stream)), dtype=torch.uint8)
        for key, stream in (("masks", masks), ("values", values))
    }
    file = tmp_path / "hostile.packed"
    save_file(streams, file, {"packed": table if isinstance(table, str) else json.dumps(table)})
    return file


@pytest.mark.parametrize(
    "table, masks, values, says",
    [
        ([["w", "float32", [1 << 40], 0, "float32"]], b"", b"", "too many for its size"),
        ([["w", "float32", [1 << 20] * 9, 0, "float32"]], b"", b"", "too many for its size"),
        ([["w", "float32", [-1], 0, "float32"]], b"", b"", "table of"),
        ([["w", "Tensor", [1], 1, "float32"]], b"\1", b"\0" * 4, "type of numbers `Tensor`"),
        ([["w", "complex64", [1], 1, "float32"]], b"\1", b"\0" * 8, "type of numbers"),
        ([["w", "float32", [8], 9, "float32"]], b"\xff", b"\0" * 36, "keeps 9 of 8"),
        ([["w", "float32", [8], 2, "float32"]], b"\1", b"\0" * 8, "does not fit its values"),
        ([["w", "float32", [4], 1, "float32"]], b"\x80", b"\0" * 4, "does not fit its values"),
        ([["w", "float32", [8], 1, "float32"]], b"", b"\0" * 4, "are expected"),
        ([["w", "bool", [8], 1, "bool"]], b"\1", b"\7", "neither true nor false"),
        ([["w", "float32", [0], 0, "float32"]] * 2, b"", b"", "twice"),
        ([["w", "float32"]], b"", b"", "table of"),
        ("[[[[", b"", b"", "table of"),
        ('{"a": 1}', b"", b"", "table of"),
    ],
)
def test_a_hostile_file_is_refused(tmp_path, table, masks, values, says):
    file = file_of(tmp_path, table, masks, values)
    with pytest.raises(InputError, match=says):
        exporter_for(file).read(file)
    assert call("verify", file) == 2


def test_a_stream_that_is_not_zstd_is_refused(tmp_path):
    junk = torch.arange(50, dtype=torch.uint8)
    for streams in ({"masks": junk, "values": junk + 1}, {"masks": junk}, {"values": junk.float()}):
        save_file(streams, tmp_path / "a.packed", {"packed": "[]"})
        with pytest.raises(InputError, match="damaged|not a packed"):
            exporter_for(tmp_path / "a.packed").read(tmp_path / "a.packed")


def test_every_damaged_byte_is_refused_or_changes_nothing_in_silence(folder, tmp_path):
    """A flipped byte: the file is refused, or its digest differs, or the tensors are equal."""
    from dcil_dsl.jobs.inspect import verify_artefact

    whole = (folder / "run" / "sparse.packed").read_bytes()
    good = exporter_for(folder / "run" / "sparse.packed").read(folder / "run" / "sparse.packed")
    file = tmp_path / "a.packed"
    for at in range(0, len(whole), max(1, len(whole) // 60)):
        file.write_bytes(whole[:at] + bytes([whole[at] ^ 0x55]) + whole[at + 1 :])
        try:
            [(_, verdict)] = verify_artefact(file)
        except InputError:
            continue
        if verdict.holds:
            read = exporter_for(file).read(file).tensors
            assert all(torch.equal(bits(read[k]), bits(t)) for k, t in good.tensors.items()), at


def test_a_missing_library_names_the_extra(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "zstandard", None)
    with pytest.raises(InputError, match="`packed` needs the library") as found:
        EXPORTERS["packed"].write(Deployed(nn.Linear(2, 2), None), tmp_path / "a.packed")
    assert found.value.help == "pip install 'dcil-dsl[packed]'"


def test_a_missing_library_does_not_stop_other_formats(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "zstandard", None)
    EXPORTERS["safetensors"].write(Deployed(nn.Linear(2, 2), None), tmp_path / "a.safetensors")
    assert exporter_for(tmp_path / "a.safetensors").name == "safetensors"


def test_a_short_run_keeps_its_own_files(tmp_path):
    folder = short_run(tmp_path)
    before = (folder / "run" / "sparse.safetensors").read_bytes()
    assert call("export", folder / "run", "--to", "packed-bf16", *own(folder)) == 0
    assert (folder / "run" / "sparse.bf16.packed").exists()
    assert (folder / "run" / "sparse.safetensors").read_bytes() == before
