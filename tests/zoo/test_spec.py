"""SPEC to model: what is accepted, and what is said where something is not."""

import sys
import warnings

import pytest
from torch import nn

from dcil_dsl.diagnostics import InputError
from dcil_dsl.zoo import build_model


@pytest.fixture
def folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    return tmp_path


def fails(spec, num_classes=None, options=None):
    with pytest.raises(InputError) as error:
        build_model(spec, num_classes, options)
    return str(error.value)


# -- libraries -----------------------------------------------------------------------------------


def test_torchvision_models_take_the_classes_and_their_own_options():
    model = build_model("torchvision:resnet18", 7, {"zero_init_residual": True})
    assert model.fc.out_features == 7
    assert model.layer1[0].bn2.weight.abs().sum() == 0


def test_a_detection_model_is_built_without_a_download():
    model = build_model("torchvision:ssdlite320_mobilenet_v3_large", 5)
    assert type(model).__name__ == "SSD"


def test_googlenet_is_built_without_a_warning():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert build_model("torchvision:googlenet", 3).fc.out_features == 3


@pytest.mark.parametrize(
    "spec, message",
    [
        ("torchvision:resnet51", "did you mean `torchvision:resnet50`?"),
        ("torchvision:zzzz", "none of a similar name"),
        ("torchvison:resnet18", "did you mean `torchvision:resnet18`?"),
        ("resnet18", "did you mean `torchvision:resnet18`?"),
        (":resnet18", "did you mean `torchvision:resnet18`?"),
        ("resnet32", "did you mean `dcil:resnet32`?"),
        ("net.py", "a callable in the file is missing, `net.py:NAME`"),
        ("torchvision", "\na model is written torchvision:NAME"),
        ("", "a model is written torchvision:NAME"),
        ("torchvision:", "a model is written torchvision:NAME"),
        ("hf:BertForSequenceClasification", "did you mean `hf:BertForSequenceClassification`?"),
        ("hf:bert-base-uncased", "did you mean `hf:BertModel`?"),
        ("hf:zzzz", "nothing is downloaded"),
        ("hf:AutoModel", "stands for several models"),
        ("hf:google/vit-base", "google/vit-base is not a folder"),
        ("a b:c", "`a b` is not a source of models"),
        ("no_such_package_here:f", "the module `no_such_package_here` does not exist"),
        ("missing.py:f", "the file missing.py does not exist"),
    ],
)
def test_a_wrong_spec_is_reported(folder, spec, message):
    assert message in fails(spec)


TINY_BERT = {
    "hidden_size": 8,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "intermediate_size": 8,
    "vocab_size": 50,
}


def test_a_class_of_transformers_is_built_from_its_configuration():
    model = build_model("hf:BertForSequenceClassification", 7, TINY_BERT)
    assert model.classifier.weight.shape == (7, 8)
    clip = build_model("hf:CLIPTextModel", 7, {"hidden_size": 16, "num_attention_heads": 2})
    assert clip.config.hidden_size == 16


def test_an_inner_configuration_is_reached_by_two_underscores():
    options = {
        "text_config__hidden_size": 16,
        "text_config__num_attention_heads": 2,
        "vision_config__num_hidden_layers": 1,
        "text_config__num_hidden_layers": 1,
        "vision_config__hidden_size": 16,
        "vision_config__num_attention_heads": 2,
    }
    model = build_model("hf:CLIPModel", None, options)
    assert model.config.text_config.hidden_size == 16
    assert model.config.vision_config.num_hidden_layers == 1


def test_a_folder_with_a_configuration_is_built_as_it_says(folder):
    text = '{"model_type": "bert", "architectures": ["BertForMaskedLM"], "hidden_size": 8, '
    text += '"num_hidden_layers": 1, "num_attention_heads": 2, "vocab_size": 50}'
    (folder / "mine").mkdir()
    (folder / "mine" / "config.json").write_text(text)
    model = build_model("hf:mine", 7, {"intermediate_size": 12})
    assert type(model).__name__ == "BertForMaskedLM"
    assert model.bert.encoder.layer[0].intermediate.dense.weight.shape == (12, 8)
    (folder / "mine" / "config.json").write_text('{"model_type": "bert"}')
    assert "names no model under `architectures`" in fails("hf:mine")


def test_a_configuration_that_transformers_refuses_is_reported():
    assert "did you mean `hidden_size`?" in fails("hf:BertModel", None, {"hiden_size": 8})
    assert "rejects its options" in fails("hf:BertModel", None, {"hidden_size": "wide"})
    odd = TINY_BERT | {"hidden_size": 9}
    assert "not a multiple of the number of attention heads" in fails("hf:BertModel", None, odd)
    told = fails("hf:CLIPModel", None, {"tex_config__hidden_size": 8})
    assert "did you mean `text_config`?" in told


def test_transformers_that_is_not_installed_is_reported_with_what_to_type(monkeypatch):
    monkeypatch.setitem(sys.modules, "transformers", None)
    assert "pip install transformers" in fails("hf:BertModel")


def test_timm_that_is_not_installed_is_reported_with_what_to_type(monkeypatch):
    monkeypatch.setitem(sys.modules, "timm", None)
    assert "pip install timm" in fails("timm:vit_small_patch16_224")


def test_an_option_that_the_builder_does_not_take_is_named():
    assert "takes no option `num_chanels`" in fails("dcil:resnet20", None, {"num_chanels": 1})
    assert "did you mean `num_channels`?" in fails("dcil:resnet20", None, {"num_chanels": 1})
    assert "takes no option `foo`" in fails("torchvision:resnet18", 10, {"foo": 1})
    assert "see --weights" in fails("torchvision:resnet18", 10, {"weights": "DEFAULT"})


# -- the user's own code -------------------------------------------------------------------------

NET = "from torch import nn\n"


def test_a_callable_that_requires_num_classes_says_where_to_give_it(folder):
    (folder / "net.py").write_text(NET + "def f(num_classes): return nn.Linear(3, num_classes)\n")
    told = fails("net.py:f")
    assert "requires the argument `num_classes`" in told and "classes = 10" in told
    assert build_model("net.py:f", 5).weight.shape == (5, 3)
    assert build_model("net.py:f", None, {"num_classes": 4}).weight.shape == (4, 3)


def test_a_callable_in_a_file_gets_the_classes_where_it_takes_them(folder):
    (folder / "net.py").write_text(
        NET + "def head(num_classes=2, width=3): return nn.Linear(width, num_classes)\n"
        "def plain(): return nn.Linear(1, 1)\n"
        "def loose(**k): return head(**k)\n"
        "def strict(**k): return plain(**k)\n"
    )
    assert build_model("net.py:head", 5, {"width": 4}).weight.shape == (5, 4)
    assert build_model("net.py:loose", 5).weight.shape == (5, 3)
    assert build_model("net.py:plain", 5).weight.shape == (1, 1)
    assert build_model("net.py:strict", 5).weight.shape == (1, 1)


def test_a_package_in_the_current_folder_is_found_and_the_path_left_as_it_was(folder):
    (folder / "my_dcil_nets").mkdir()
    (folder / "my_dcil_nets" / "small.py").write_text(NET + "Net = nn.Flatten\n")
    before = list(sys.path)
    assert isinstance(build_model("my_dcil_nets.small:Net"), nn.Flatten)
    assert sys.path == before


def test_a_file_imports_its_neighbours(folder):
    (folder / "neighbour_of_net.py").write_text(NET + "Net = nn.ReLU\n")
    (folder / "inner.py").write_text("from neighbour_of_net import Net\n")
    assert isinstance(build_model(f"{folder}/inner.py:Net"), nn.ReLU)


@pytest.mark.parametrize(
    "code, spec, message, line",
    [
        ("def f(): return 1 / 0\n", "f", "cannot be built: ZeroDivisionError: division by zero", 2),
        ("1 / 0\n", "f", "cannot be imported: ZeroDivisionError", 2),
        ("def f(:\n", "f", "cannot be imported: SyntaxError", 2),
        ("import no_such_thing_x\n", "f", "cannot be imported: ModuleNotFoundError", 2),
        ("raise SystemExit(3)\n", "f", "cannot be imported: SystemExit: 3", 2),
        ("def f(): return nn.Conv2d(3, 4, 1, groups=2)\n", "f", "cannot be built: ValueError", 2),
        ("def f(a): return a\n", "f", "missing 1 required positional argument: 'a'", None),
        ("def f(): return {}\n", "f", "returned a value of type dict, not a torch.nn.Module", None),
        ("def make(): pass\n", "mak", "nothing called `mak`\ndid you mean `make`?", None),
        ("x = 3\n", "x", "is of type int, not a callable", None),
    ],
)
def test_an_error_in_user_code_is_reported_with_its_line(folder, code, spec, message, line):
    (folder / "net.py").write_text(NET + code)
    told = fails(f"net.py:{spec}")
    assert message in told
    if line is not None:
        assert f"raised at {folder}/net.py:{line}" in told


def test_a_module_that_fails_inside_is_not_mistaken_for_a_missing_one(folder):
    (folder / "broken_dcil_net.py").write_text("\nimport no_such_thing_x\n")
    told = fails("broken_dcil_net:f")
    assert "cannot be imported: ModuleNotFoundError" in told
    assert "broken_dcil_net.py:2" in told
