"""Exported files: tensors and JSON only, the same numbers back."""

import json

import pytest
import torch
from safetensors import safe_open
from torch import nn

from dcil_dsl.diagnostics import InputError
from dcil_dsl.exporting.artefact import Deployed, Origin, origin_of
from dcil_dsl.exporting.exporters import EXPORTERS, Exporter, exporter_for, exporter_of
from dcil_dsl.model.digest import digest


def net():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Flatten(), nn.Linear(16, 2))
    return model.to(memory_format=torch.channels_last)


def write(plan, file, model=None, format="safetensors"):
    EXPORTERS[format].write(Deployed(model or net(), origin_of(plan, 10)), file)


def read(file):
    return exporter_for(file).read(file)


@pytest.mark.parametrize("format", ["safetensors", "pth"])
def test_a_file_loads_strictly_into_the_same_class_with_equal_numbers(plan, tmp_path, format):
    model, file = net(), tmp_path / f"x.{format}"
    write(plan, file, model, format)
    tensors = read(file).tensors
    fresh = net()
    for parameter in fresh.parameters():
        nn.init.zeros_(parameter)
    fresh.load_state_dict(tensors, strict=True)
    for name, value in model.state_dict().items():
        assert torch.equal(fresh.state_dict()[name], value), name


def test_equal_results_are_equal_files(plan, tmp_path):
    """Of safetensors alone, whose order of two keys is drawn anew, 20 files would all be equal
    once in a million times."""
    for at in range(20):
        write(plan, tmp_path / f"{at}.safetensors")
    assert len({file.read_bytes() for file in tmp_path.iterdir()}) == 1


def test_a_pth_is_a_bare_state_dict_that_loads_with_weights_only(plan, tmp_path):
    write(plan, tmp_path / "x.pth", format="pth")
    loaded = torch.load(tmp_path / "x.pth", weights_only=True)
    assert set(loaded) == set(net().state_dict())


def test_tied_weights_are_written_under_each_of_their_names(plan, tmp_path):
    model = nn.Sequential(nn.Linear(3, 3, bias=False), nn.Linear(3, 3, bias=False))
    model[1].weight = model[0].weight
    write(plan, tmp_path / "x.safetensors", model)
    assert set(read(tmp_path / "x.safetensors").tensors) == {"0.weight", "1.weight"}


def test_the_header_says_recipe_model_and_the_counts_that_are_allowed(plan, tmp_path):
    write(plan, tmp_path / "x.safetensors")
    with safe_open(tmp_path / "x.safetensors", framework="pt") as opened:
        header = json.loads(opened.metadata()["dcil"])
    assert header["recipe"] == "x" and header["sha256"] == "0" * 64 and header["step"] == 10
    assert header["model"]["name"] == "m:f" and header["data"] == "synthetic"
    assert [promise["keeps"] for promise in header["promises"]] == [[30], [3]]
    assert Origin.model_validate(header).digest == digest(net().state_dict())


def test_the_digest_changes_with_any_value_shape_or_name():
    one = {"a": torch.zeros(2, 3)}
    others = [
        {"b": torch.zeros(2, 3)},
        {"a": torch.zeros(3, 2)},
        {"a": torch.zeros(2, 3).half()},
        {"a": torch.tensor([[0.0, 0, 0], [0, 0, -0.0]])},
    ]
    assert len({digest(tensors) for tensors in [one, *others]}) == 5


def test_an_unknown_format_is_refused_with_the_list():
    with pytest.raises(InputError, match="no format `onyx`") as error:
        exporter_of("onyx")
    assert error.value.help == f"the formats are {', '.join(EXPORTERS)}"


def test_a_file_of_a_format_has_its_suffix(plan, tmp_path):
    with pytest.raises(InputError, match=r"does not end in \.pth"):
        write(plan, tmp_path / "x.onnx", format="pth")
    assert list(tmp_path.iterdir()) == []


def test_a_file_in_the_place_of_a_folder_is_refused(plan, tmp_path):
    (tmp_path / "x").write_text("")
    with pytest.raises(InputError, match="is a file"):
        write(plan, tmp_path / "x", format="compact")


def test_an_export_never_replaces_the_files_of_a_run_folder(plan, tmp_path):
    (tmp_path / "plan.json").write_text("{}")
    with pytest.raises(InputError, match="is a run folder"):
        write(plan, tmp_path, format="compact")


def test_a_format_whose_library_is_missing_names_the_extra_to_install(plan, tmp_path):
    missing = Exporter("x", "", at="no_such_library:X", extra="onnx")
    with pytest.raises(InputError, match="needs the library `no_such_library`") as error:
        missing.write(Deployed(net(), None), tmp_path / "x")
    assert error.value.help == "pip install 'dcil-dsl[onnx]'"


def test_files_that_cannot_be_read_are_plain_errors(tmp_path):
    (tmp_path / "x.safetensors").write_bytes(b"\x00" * 20)
    (tmp_path / "x.pth").write_bytes(b"not a file of torch")
    (tmp_path / "x.onyx").write_bytes(b"")
    torch.save({"a": [1]}, tmp_path / "list.pth")
    torch.save(nn.Linear(2, 2), tmp_path / "module.pth")
    for name, fact in [
        ("x.safetensors", "is damaged"),
        ("x.pth", "cannot be read|is damaged"),
        ("x.onyx", "not an exported file"),
        ("list.pth", "not a state dict"),
        ("module.pth", "more than tensors"),
        ("none.pth", "there is no file"),
    ]:
        with pytest.raises(InputError, match=fact):
            read(tmp_path / name)
