"""Networks of teachers are built with their weights: with the classes they have, nothing random."""

import pytest
import torch
from safetensors.torch import save_file

from dcil_dsl.diagnostics import InputError
from dcil_dsl.words.views import TrainedNetwork
from dcil_dsl.zoo import build_model
from dcil_dsl.zoo.teacher import build_network


def saved(spec, path, classes):
    model = build_model(spec, classes)
    save_file(model.state_dict(), path)
    return model


@pytest.mark.parametrize("spec", ["dcil:resnet20", "torchvision:squeezenet1_1", "timm:resnet10t"])
@pytest.mark.parametrize("classes", [7, 1000])
def test_a_network_has_the_classes_of_its_weights(spec, classes, tmp_path):
    model = saved(spec, tmp_path / "big.safetensors", classes)
    before = torch.get_rng_state()
    found, _ = build_network(TrainedNetwork(source=spec, weights="big.safetensors"), tmp_path)
    assert torch.equal(torch.get_rng_state(), before)
    own = found.state_dict()
    assert all(torch.equal(own[name], t) for name, t in model.state_dict().items())


def test_a_path_is_relative_to_the_folder_and_may_be_absolute(tmp_path):
    saved("dcil:mlp", tmp_path / "big.safetensors", 3)
    absolute = str(tmp_path / "big.safetensors")
    found, _ = build_network(
        TrainedNetwork(source="dcil:mlp", weights=absolute), tmp_path / "elsewhere"
    )
    assert found.head.out_features == 3
    with pytest.raises(InputError, match="elsewhere/big.safetensors does not exist"):
        build_network(
            TrainedNetwork(source="dcil:mlp", weights="big.safetensors"), tmp_path / "elsewhere"
        )


def test_weights_of_another_network_are_refused_whole(tmp_path):
    saved("dcil:mlp", tmp_path / "big.safetensors", 3)
    with pytest.raises(InputError, match="does not fit the model"):
        build_network(TrainedNetwork(source="dcil:resnet20", weights="big.safetensors"), tmp_path)


def test_a_folder_of_transformers_is_its_own_weights_and_none_of_them_is_random(tmp_path):
    transformers = pytest.importorskip("transformers")
    sizes = dict(hidden_size=8, num_hidden_layers=1, num_attention_heads=2, intermediate_size=8)
    config = transformers.BertConfig(vocab_size=20, num_labels=3, **sizes)
    model = transformers.BertForSequenceClassification(config)
    model.save_pretrained(tmp_path / "bert")
    found, _ = build_network(TrainedNetwork(source="hf:bert"), tmp_path)
    own = found.state_dict()
    assert all(torch.equal(own[name], t) for name, t in model.state_dict().items())
    model.bert.save_pretrained(tmp_path / "bert")  # without a classifier
    config.architectures = ["BertForSequenceClassification"]
    config.save_pretrained(tmp_path / "bert")
    with pytest.raises(InputError, match="does not fit BertForSequenceClassification"):
        build_network(TrainedNetwork(source="hf:bert"), tmp_path)


def test_a_class_of_transformers_without_weights_is_refused(tmp_path):
    pytest.importorskip("transformers")
    with pytest.raises(InputError, match="has no weights of its own"):
        build_network(TrainedNetwork(source="hf:BertModel"), tmp_path)


def test_a_network_is_built_with_the_options_that_the_recipe_gives(tmp_path):
    model = build_model("dcil:resnet20", 7, {"num_channels": 1})
    save_file(model.state_dict(), tmp_path / "big.safetensors")
    given = {"source": "dcil:resnet20", "weights": "big.safetensors"}
    with pytest.raises(InputError, match="does not fit the model"):
        build_network(TrainedNetwork(**given), tmp_path)
    found, _ = build_network(TrainedNetwork(**given, options="num_channels=1"), tmp_path)
    assert all(torch.equal(found.state_dict()[name], t) for name, t in model.state_dict().items())


@pytest.mark.parametrize(
    ("options", "match"),
    [
        ("num_channels", "no list of keywords"),
        ("num_channels=print(1)", "no list of keywords"),
        ("**{}", "no list of keywords"),
        ("num_channels=1)(", "no list of keywords"),
        ("num_channels=1, num_channels=2", "no list of keywords"),
        ("chans=1", "chans"),
    ],
)
def test_options_that_are_no_keywords_of_the_builder_are_refused(options, match, tmp_path):
    saved("dcil:resnet20", tmp_path / "big.safetensors", 7)
    word = TrainedNetwork(source="dcil:resnet20", weights="big.safetensors", options=options)
    with pytest.raises(InputError, match=match):
        build_network(word, tmp_path)
