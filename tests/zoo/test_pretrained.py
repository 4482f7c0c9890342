"""A folder of transformers: its weights are used, and what stays fresh or differs is named."""

import pytest
import torch
from support.library import needed

import dcil_dsl as dcil
from dcil_dsl.diagnostics import InputError
from dcil_dsl.zoo import build_model, load_weights
from dcil_dsl.zoo.pretrained import own_weights

transformers = needed("transformers")
SIZES = dict(
    vocab_size=32,
    hidden_size=16,
    num_hidden_layers=2,
    num_attention_heads=2,
    intermediate_size=32,
    max_position_embeddings=16,
)
RECIPE = """language 1
recipe r { title = "a folder" }
model "FOLDER" { OPTIONS }
prune Linear to uniform(50%)
mix {
  path sparse = masked
  loss cross_entropy(sparse)
  deploy sparse
}
train { epochs = 1ep  optimizer = sgd(lr=0.1) }
"""


def bert(kind="BertForSequenceClassification", seed=3, **more):
    cls = getattr(transformers, kind)
    torch.manual_seed(seed)
    return cls(cls.config_class(**SIZES | more))


def equal(one, other):
    return all(torch.equal(value, other[name]) for name, value in one.items())


@pytest.fixture
def folder(tmp_path):
    bert().save_pretrained(tmp_path / "bert")
    return tmp_path / "bert"


@pytest.mark.parametrize("shards", [False, True])
def test_weights_takes_a_folder(tmp_path, shards):
    saved = bert()
    saved.save_pretrained(tmp_path, max_shard_size="4KB" if shards else "5GB")
    assert (len(list(tmp_path.glob("*.safetensors"))) > 1) == shards
    model = bert(seed=4)
    assert load_weights(model, str(tmp_path), "hf:BertForSequenceClassification") == []
    assert equal(model.state_dict(), saved.state_dict())


def test_the_folder_that_is_the_model_brings_its_own_weights(folder):
    recipe = dcil.loads(RECIPE.replace("FOLDER", f"hf:{folder}").replace("OPTIONS", ""))
    from dcil_dsl.jobs.prepare import no_note, no_warning, prepare

    given = dict(warn=no_warning, note=no_note, steps_per_epoch=1)
    model = prepare(recipe, f"hf:{folder}", **given).traced.model
    assert equal(model.state_dict(), bert().state_dict())
    assert own_weights(f"hf:{folder}") == str(folder)
    (folder / "model.safetensors").unlink()
    fresh = prepare(recipe, f"hf:{folder}", **given).traced.model
    assert not equal(fresh.state_dict(), bert().state_dict())


def test_given_weights_take_the_place_of_the_folders_own(folder, tmp_path):
    other = bert(seed=5)
    other.save_pretrained(tmp_path / "other")
    from dcil_dsl.jobs.prepare import no_note, no_warning, prepare

    recipe = dcil.loads(RECIPE.replace("FOLDER", f"hf:{folder}").replace("OPTIONS", ""))
    model = prepare(
        recipe,
        f"hf:{folder}",
        warn=no_warning,
        note=no_note,
        steps_per_epoch=1,
        weights=str(tmp_path / "other"),
    ).traced.model
    assert equal(model.state_dict(), other.state_dict())


def test_a_class_of_transformers_starts_fresh():
    assert own_weights("hf:BertModel") is None and own_weights("torchvision:resnet18") is None


def test_a_head_that_the_folder_lacks_stays_fresh_and_is_named(tmp_path):
    base = bert("BertModel")
    base.save_pretrained(tmp_path)
    model = bert(seed=4)
    head = {n: v.clone() for n, v in model.state_dict().items() if n.startswith("classifier")}
    (note,) = load_weights(model, str(tmp_path), "hf:BertForSequenceClassification")
    assert "stays fresh" in note and "classifier.bias, classifier.weight" in note
    assert equal(model.bert.state_dict(), base.state_dict()) and equal(head, model.state_dict())


def test_a_head_for_another_number_of_classes_stays_fresh_and_is_named(folder):
    model = bert(seed=4, num_labels=7)
    (note,) = load_weights(model, str(folder), "hf:BertForSequenceClassification")
    assert "classifier.bias, classifier.weight" in note
    assert equal(model.bert.state_dict(), bert().bert.state_dict())


def test_tensors_that_the_model_has_no_place_for_are_named(folder):
    (note,) = load_weights(bert("BertModel", seed=4), str(folder), "hf:BertModel")
    assert "not used: classifier.bias, classifier.weight" in note


@pytest.mark.parametrize("more", [{"hidden_size": 32}, {"num_hidden_layers": 3}])
def test_a_base_model_of_another_size_is_refused_and_stays_as_it_was(folder, more):
    model = bert(seed=4, **more)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    with pytest.raises(InputError, match="does not fit BertForSequenceClassification"):
        load_weights(model, str(folder), "hf:BertForSequenceClassification")
    assert equal(before, model.state_dict())


def test_a_damaged_file_is_refused(folder):
    (folder / "model.safetensors").write_bytes(b"nonsense")
    with pytest.raises(InputError, match="the weights in .* cannot be read"):
        load_weights(bert(), str(folder), "hf:BertForSequenceClassification")


def test_a_folder_of_pickles_is_no_folder_of_weights(folder):
    state = bert().state_dict()
    (folder / "model.safetensors").unlink()
    torch.save(state, folder / "pytorch_model.bin")
    with pytest.raises(InputError, match="is a folder, not a weights file"):
        load_weights(bert(), str(folder), "hf:BertForSequenceClassification")


def test_half_precision_becomes_float32(folder):
    bert().to(torch.bfloat16).save_pretrained(folder)
    model = build_model(f"hf:{folder}", None, {})
    load_weights(model.float(), str(folder), f"hf:{folder}")
    assert {p.dtype for p in model.parameters()} == {torch.float32}
    name, value = next(iter(bert().state_dict().items()))
    assert torch.equal(model.state_dict()[name], value.bfloat16().float())
