"""Trained weights: every tensor fits, or each misfit is named and the model stays as it was."""

import os
import pickle

import pytest
import torch
from safetensors.torch import save_file
from torch import nn
from torchvision import models

from dcil_dsl.diagnostics import InputError
from dcil_dsl.zoo import build_model, load_weights

SPEC = "user:net"


def net(num_classes=3, width=4):
    head = nn.Linear(width, num_classes)
    return nn.Sequential(nn.Conv2d(2, width, 3), nn.BatchNorm2d(width), head)


def equal(model, state):
    return all(torch.equal(value, state[name]) for name, value in model.state_dict().items())


def fails(model, source, spec=SPEC):
    before = {name: value.clone() for name, value in model.state_dict().items()}
    with pytest.raises(InputError) as error:
        load_weights(model, str(source), spec)
    assert equal(model, before)
    return str(error.value)


@pytest.mark.parametrize("suffix", ["safetensors", "pth", "pt"])
def test_a_state_dict_is_loaded_without_a_note(tmp_path, suffix):
    state, file = net().state_dict(), tmp_path / f"w.{suffix}"
    save_file(state, file) if suffix == "safetensors" else torch.save(state, file)
    model = net()
    assert load_weights(model, str(file), SPEC) == []
    assert equal(model, state)


@pytest.mark.parametrize("key", ["state_dict", "model"])
@pytest.mark.parametrize(
    "prefix", ["module.", "_orig_mod.", "module._orig_mod.", "_orig_mod.module."]
)
def test_wrappers_and_prefixes_are_taken_off_and_reported(tmp_path, key, prefix):
    state = net().state_dict()
    wrapped = {"epoch": 3, key: {prefix + name: value for name, value in state.items()}}
    torch.save(wrapped, tmp_path / "w.pth")
    model = net()
    notes = load_weights(model, str(tmp_path / "w.pth"), SPEC)
    assert equal(model, state)
    assert f"took the entry `{key}`" in notes[0] and len(notes) == 1 + prefix.count(".")


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_is_converted_and_reported(tmp_path, dtype):
    state = {n: v.to(dtype) if v.is_floating_point() else v for n, v in net().state_dict().items()}
    save_file(state, tmp_path / "w.safetensors")
    model = net()
    notes = load_weights(model, str(tmp_path / "w.safetensors"), SPEC)
    assert notes == [f"converted 8 tensors from {str(dtype)[6:]}"]
    assert model[0].weight.dtype == torch.float32
    assert torch.equal(model[0].weight, state["0.weight"].float())


def test_a_head_for_other_classes_stays_fresh_and_is_reported(tmp_path):
    state, model = net(num_classes=5).state_dict(), net(num_classes=3)
    torch.save(state, tmp_path / "w.pth")
    head = model[2].weight.clone()
    notes = load_weights(model, str(tmp_path / "w.pth"), SPEC)
    assert notes == ["the head stays fresh, 2.weight and 2.bias: 5 classes there, 3 here"]
    assert torch.equal(model[2].weight, head) and torch.equal(model[0].weight, state["0.weight"])


def test_every_mismatch_is_listed_at_once(tmp_path):
    state = net(width=6).state_dict()
    state["old.weight"] = torch.zeros(2, 2)
    del state["1.running_mean"]
    torch.save(state, tmp_path / "w.pth")
    told = fails(net(num_classes=3), tmp_path / "w.pth")
    assert "missing     1.running_mean 4" in told
    assert "unexpected  old.weight 2x2" in told
    assert "shape       0.weight 6x2x3x3 in the file, 4x2x3x3 in the model" in told
    assert "shape       2.weight 3x6 in the file, 3x4 in the model" in told
    assert "8 tensors differ" in told


def test_a_head_that_differs_in_more_than_its_classes_is_a_mismatch(tmp_path):
    state = net(num_classes=5).state_dict()
    state["2.weight"] = torch.zeros(5, 9)
    torch.save(state, tmp_path / "w.pth")
    told = fails(net(num_classes=3), tmp_path / "w.pth")
    assert "shape       2.weight 5x9" in told and "shape       2.bias 5" in told


def test_a_long_mismatch_is_cut_with_the_count_of_the_rest(tmp_path):
    torch.save({"x": torch.zeros(1)}, tmp_path / "w.pth")
    told = fails(build_model("dcil:resnet20"), tmp_path / "w.pth")
    assert len(told.splitlines()) == 14 and told.endswith("more")


def test_counters_that_old_files_lack_are_reported(tmp_path):
    state = net().state_dict()
    del state["1.num_batches_tracked"]
    torch.save(state, tmp_path / "w.pth")
    assert "num_batches_tracked" in load_weights(net(), str(tmp_path / "w.pth"), SPEC)[0]


def test_integers_where_the_model_has_floats_are_a_mismatch(tmp_path):
    state = net().state_dict() | {"0.bias": torch.zeros(4, dtype=torch.int8)}
    torch.save(state, tmp_path / "w.pth")
    told = fails(net(), tmp_path / "w.pth")
    assert "type        0.bias int8 in the file, float32 in the model" in told


class Evil:
    def __reduce__(self):
        return (print, ("this ran",))


def test_a_file_that_could_run_code_is_refused(tmp_path, capsys):
    torch.save({"0.weight": Evil()}, tmp_path / "w.pth")
    (tmp_path / "raw.pth").write_bytes(pickle.dumps(Evil(), protocol=2))
    for name in ("w.pth", "raw.pth"):
        assert "more than tensors" in fails(net(), tmp_path / name)
    assert "this ran" not in capsys.readouterr().out


@pytest.mark.parametrize("name", ["w.pth", "w.pt", "w.safetensors"])
@pytest.mark.parametrize("content", [b"", b"\x00" * 64, b"PK\x03\x04 not a zip"])
def test_a_damaged_file_is_reported(tmp_path, name, content):
    (tmp_path / name).write_bytes(content)
    assert str(tmp_path / name) in fails(net(), tmp_path / name)


def test_a_file_without_a_state_dict_is_reported(tmp_path):
    for number, value in enumerate([torch.zeros(2), [1, 2], {}, {"epoch": 3, "lr": 0.1}]):
        torch.save(value, tmp_path / f"{number}.pth")
        assert "state dict" in fails(net(), tmp_path / f"{number}.pth")


@pytest.mark.parametrize("kind", ["pipe", "device"])
def test_what_is_not_a_regular_file_is_refused_unread(kind, tmp_path):
    path = "/dev/zero"
    if kind == "pipe":
        path = str(tmp_path / "pipe.pth")
        os.mkfifo(path)
    assert f"{path} is a pipe or a device, not a weights file" in fails(net(), path)


def test_a_missing_file_is_reported():
    assert "the weights file no/such.pth does not exist" in fails(net(), "no/such.pth")


def test_a_folder_and_a_checkpoint_are_reported_with_the_file_that_is_meant(tmp_path):
    state = net().state_dict()
    save_file(state, tmp_path / "sparse.safetensors")
    assert "is a folder, not a weights file\nit holds sparse.safetensors" in fails(net(), tmp_path)
    tensors = {f"model/{name}": t for name, t in state.items()} | {"sums": torch.zeros(1)}
    tensors["optimizer/0.weight/momentum_buffer"] = torch.zeros(4, 2, 3, 3)
    save_file(tensors, tmp_path / "last.safetensors")
    told = fails(net(), tmp_path / "last.safetensors")
    assert "is the checkpoint of a run" in told and "sparse.safetensors" in told


def test_the_folder_of_a_run_is_its_exported_file(tmp_path):
    state = net().state_dict()
    save_file(state, tmp_path / "sparse.safetensors")
    (tmp_path / "plan.json").write_text("{}")
    model = net()
    assert load_weights(model, str(tmp_path), SPEC) == [] and equal(model, state)


def test_an_unknown_name_is_reported():
    assert "only models of torchvision and timm have weights by name" in fails(
        net(), "IMAGENET1K_V1"
    )
    model = build_model("torchvision:resnet18")
    told = fails(model, "IMAGENET1K_V2", "torchvision:resnet18")
    assert (
        "neither a file nor weights of torchvision:resnet18\ndid you mean `IMAGENET1K_V1`?" in told
    )
    assert "neither a file nor weights of" in fails(
        model, "ResNet50_Weights.DEFAULT", "torchvision:resnet18"
    )


def serve(monkeypatch, weights, result):
    """Stands in for the download: torch.hub's function, and nothing nearer to us."""

    def load_state_dict_from_url(url, *, weights_only, **_):
        assert url == weights.url and weights_only is True
        if isinstance(result, Exception):
            raise result
        return result

    module = "torchvision.models._api.load_state_dict_from_url"
    monkeypatch.setattr(module, load_state_dict_from_url)


@pytest.mark.parametrize("name", ["IMAGENET1K_V1", "DEFAULT", "ResNet18_Weights.IMAGENET1K_V1"])
def test_the_librarys_own_names_are_known(monkeypatch, name):
    state = build_model("torchvision:resnet18").state_dict()
    serve(monkeypatch, models.ResNet18_Weights.IMAGENET1K_V1, state)
    model = build_model("torchvision:resnet18", num_classes=10)
    notes = load_weights(model, name, "torchvision:resnet18")
    assert torch.equal(model.conv1.weight, state["conv1.weight"])
    assert notes == ["the head stays fresh, fc.weight and fc.bias: 1,000 classes there, 10 here"]


def test_the_old_names_in_densenets_files_are_understood(monkeypatch):
    state = build_model("torchvision:densenet121").state_dict()
    old = {}
    for key, value in state.items():
        for word in ("norm1", "norm2", "conv1", "conv2"):
            if "denselayer" in key:
                key = key.replace(word, f"{word[:4]}.{word[4]}")
        old[key] = value
    serve(monkeypatch, models.DenseNet121_Weights.IMAGENET1K_V1, old)
    model = build_model("torchvision:densenet121")
    assert load_weights(model, "DEFAULT", "torchvision:densenet121") == []
    assert equal(model, state)


def test_inputs_are_transformed_as_googlenets_weights_were_trained(monkeypatch):
    model = build_model("torchvision:googlenet")
    serve(monkeypatch, models.GoogLeNet_Weights.IMAGENET1K_V1, model.state_dict())
    notes = load_weights(model, "DEFAULT", "torchvision:googlenet")
    assert model.transform_input is True and "set transform_input" in notes[0]


def test_a_failed_download_is_plain(monkeypatch):
    weights = models.ResNet18_Weights.IMAGENET1K_V1
    serve(monkeypatch, weights, OSError("Name or service not known"))
    told = fails(build_model("torchvision:resnet18"), "DEFAULT", "torchvision:resnet18")
    assert "cannot download ResNet18_Weights.IMAGENET1K_V1: OSError: Name or service" in told
    assert f"fetch {weights.url}" in told and "--weights FILE" in told


def serve_timm(monkeypatch, result):
    """Stands in for the hub: the function that timm reads a file of weights by."""

    def load_state_dict_from_hf(*place, **more):
        if isinstance(result, Exception):
            raise result
        return {name: value.clone() for name, value in result.items()}

    monkeypatch.setattr("timm.models._builder.load_state_dict_from_hf", load_state_dict_from_hf)


@pytest.mark.parametrize("spec", ["timm:resnet18", "timm:resnet18.a1_in1k"])
def test_the_pretrained_weights_of_timm_are_loaded_by_its_own_loader(monkeypatch, spec):
    torch.manual_seed(1)
    state = build_model(spec).state_dict()
    serve_timm(monkeypatch, state)
    model = build_model(spec)
    assert load_weights(model, "pretrained", spec) == [] and equal(model, state)


def test_the_head_of_a_model_of_timm_for_other_classes_stays_fresh(monkeypatch):
    state = build_model("timm:resnet18").state_dict()
    serve_timm(monkeypatch, state)
    model = build_model("timm:resnet18", 10)
    (note,) = load_weights(model, "pretrained", "timm:resnet18")
    assert note == "the head stays fresh, fc.weight and fc.bias: 1,000 classes there, 10 here"
    assert torch.equal(model.conv1.weight, state["conv1.weight"])


@pytest.mark.parametrize(
    "spec, source, fact",
    [
        ("timm:resnet18", "IMAGENET1K_V1", "neither a file nor weights of timm:resnet18"),
        ("timm:vit_small_patch16_224.no_such", "pretrained", "has no trained weights"),
        ("timm:resnet18", "pretrained", "cannot download the weights of timm:resnet18: OSError"),
    ],
)
def test_weights_of_timm_that_cannot_be_had_are_refused(monkeypatch, spec, source, fact):
    serve_timm(monkeypatch, OSError("Name or service not known"))
    model = build_model(spec.partition(".")[0])
    assert fact in fails(model, source, spec)
