"""A .pt2 file computes as the network, proves its zeros, and is never executed to be read."""

import json
import zipfile

import pytest
import torch
from safetensors.torch import load_file
from support.tiny_job import call, net, own, whole_run

from dcil_dsl.diagnostics import InputError
from dcil_dsl.exporting.exporters import exporter_for
from dcil_dsl.extras.formats.archive import CONFIG, GRAPH


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = whole_run(tmp_path_factory.mktemp("job"))
    assert call("export", folder / "run", "--to", "torch-export", *own(folder)) == 0
    return folder


@pytest.fixture
def file(folder):
    return folder / "run" / "sparse.pt2"


def test_the_file_computes_as_the_network_for_any_batch_size(folder, file):
    original = net(folder)
    original.load_state_dict(load_file(folder / "run" / "sparse.safetensors"))
    program = torch.export.load(file).module()
    for batch in (1, 5):
        x = torch.randn(batch, 3, 32, 32)
        torch.testing.assert_close(program(x), original.eval()(x))


def test_verify_counts_its_zeros_and_compares_it_with_the_run(folder, file, capsys):
    assert call("verify", file) == 0
    assert "0.weight" in capsys.readouterr().out
    read = exporter_for(file).read(file)
    stored = load_file(folder / "run" / "sparse.safetensors")
    assert read.exact and read.tensors.keys() == stored.keys()
    assert all(torch.equal(read.tensors[name], tensor) for name, tensor in stored.items())


def edited(file, out, change):
    """The archive with the files that `change` returns for (name without the root, bytes)."""
    with zipfile.ZipFile(file) as old, zipfile.ZipFile(out, "w") as new:
        for info in old.infolist():
            root, _, name = info.filename.partition("/")
            data = change(name, old.read(info))
            if data is not None:
                new.writestr(f"{root}/{name}", data)
    return out


def test_a_revived_weight_is_a_fault(file, tmp_path, capsys):
    def change(name, data):
        return b"\x3f" * len(data) if name == "data/weights/weight_0" else data

    assert call("verify", edited(file, tmp_path / "a.pt2", change)) == 1
    assert "the digest differs" in capsys.readouterr().out


def test_another_graph_with_the_same_weights_is_a_fault(file, tmp_path, capsys):
    """Also one that calls an operation of somebody's own."""
    for other in (b"aten.sigmoid.default", b"mine.relu.default"):

        def change(name, data, other=other):
            return data.replace(b"aten.relu.default", other) if name == GRAPH else data

        assert call("verify", edited(file, tmp_path / "a.pt2", change)) == 1
        assert "the graph is not the one that was exported" in capsys.readouterr().out


def weight(**changes):
    """Changes one entry of the list of weights."""

    def change(name, data):
        if name != CONFIG:
            return data
        config = json.loads(data)
        entry = config["config"]["0.weight"]
        for key, value in changes.items():
            (entry if key in entry else entry["tensor_meta"])[key] = value
        return json.dumps(config).encode()

    return change


def sizes(*numbers):
    return [{"as_int": n} for n in numbers]


@pytest.mark.parametrize(
    "change, says",
    [
        (weight(use_pickle=True), "is pickled"),
        (weight(path_name="../../weight_0"), "is missing"),
        (weight(dtype=99), "type of number 99"),
        (weight(sizes=sizes(1 << 40, 3, 3, 3)), "larger than its file"),
        (weight(sizes=sizes(1 << 40), strides=sizes(0)), "larger than its file"),
        (weight(storage_offset={"as_int": 1 << 50}), "larger than its file"),
        (weight(storage_offset={"as_int": -1}), "damaged"),
        (weight(sizes=[{"as_expr": {"expr_str": "__import__('os')"}}]), "damaged"),
        (weight(strides=sizes(1)), "other strides"),
        (lambda name, data: None if name == CONFIG else data, "not a network of torch.export"),
        (lambda name, data: b"[]" if name == CONFIG else data, "damaged"),
        (lambda name, data: None if name == GRAPH else data, "not a network of torch.export"),
        (lambda name, data: b"{" if name == "extra/dcil.json" else data, "header of"),
    ],
)
def test_a_hostile_archive_is_refused(file, tmp_path, change, says):
    bad = edited(file, tmp_path / "bad.pt2", change)
    with pytest.raises(InputError, match=says):
        exporter_for(bad).read(bad)


def test_an_archive_whose_weights_need_more_memory_than_it_has_is_refused(file, tmp_path):
    """Each of many names is a transposed view of the same bytes, which reading copies."""

    def change(name, data):
        if name != CONFIG:
            return data
        config = json.loads(data)
        entry = config["config"]["3.weight"]
        meta = entry["tensor_meta"] | {"sizes": sizes(64, 64), "strides": sizes(1, 64)}
        config["config"] |= {f"w{i}": entry | {"tensor_meta": meta} for i in range(1000)}
        return json.dumps(config).encode()

    bad = edited(file, tmp_path / "bad.pt2", change)
    with pytest.raises(InputError, match="are larger than the file"):
        exporter_for(bad).read(bad)


def test_a_truncated_archive_is_refused(file, tmp_path):
    (tmp_path / "short.pt2").write_bytes(file.read_bytes()[:-4000])
    with pytest.raises(InputError, match="damaged"):
        exporter_for(tmp_path / "short.pt2").read(tmp_path / "short.pt2")


def test_a_file_of_another_network_is_a_fault_of_the_run(folder, file, tmp_path, capsys):
    """It is sound in itself, and not what the run deploys."""
    other = whole_run(tmp_path, seed=1)
    assert call("export", other / "run", "--to", "torch-export", *own(other)) == 0
    assert call("verify", other / "run" / "sparse.pt2") == 0
    kept = file.read_bytes()
    file.write_bytes((other / "run" / "sparse.pt2").read_bytes())
    assert call("verify", file) == 1
    file.write_bytes(kept)


def test_a_compressed_archive_is_refused_before_it_is_read(tmp_path):
    with zipfile.ZipFile(tmp_path / "bomb.pt2", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr(f"a/{CONFIG}", " " * 1_000_000)
    with pytest.raises(InputError, match="compressed"):
        exporter_for(tmp_path / "bomb.pt2").read(tmp_path / "bomb.pt2")
    (tmp_path / "junk.pt2").write_bytes(b"PK junk")
    assert call("verify", tmp_path / "junk.pt2") == 2
