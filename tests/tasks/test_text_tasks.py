"""Texts from the command line: classes of texts and the next token, through every verb."""

import json
import math

import pytest
import torch
from safetensors.torch import load_file
from support.library import needed
from support.text_folders import labelled, save_tokenizer, text_folder
from support.tiny_job import call

needed("transformers")
needed("datasets")
NUM_TOKENS = 16  # of the tokenizer of text_folder

RECIPE = """language 1
recipe r {{ title = "texts" }}
model "{spec}" {{
  {options}
  hidden_size = 16  num_hidden_layers = 2  num_attention_heads = 2  intermediate_size = 32
}}
data {data} {{ batch_size = 16  length = 12 }}
prune Linear except last Linear to global(50%) {{
  schedule = linear(0ep..1ep)  refresh = 1 steps
}}
mix {{
  path sparse = masked
  path dense  = full
  update kept by sparse
  update pruned by dense
  loss cross_entropy(sparse)
  loss kl(student=sparse, teacher=dense)
  loss cross_entropy(dense)
  deploy sparse
}}
train {{ epochs = 3ep  optimizer = adamw(lr=0.01) }}
expect {{ {expect}  sparsity >= 49% }}
"""
BERT, LLAMA = "hf:BertForSequenceClassification", "hf:LlamaForCausalLM"
KINDS = {
    "text-classification": (BERT, "max_position_embeddings = 12", "top1 >= 60%"),
    "language-modelling": (LLAMA, "use_cache = false", "perplexity <= 16  nll <= 2.77"),
}


def write_recipe(folder, data, vocabulary=NUM_TOKENS, options=None, expect=None):
    spec, own, claim = KINDS[data]
    options = f"vocab_size = {vocabulary}  {own if options is None else options}"
    file = folder / f"{data}.prune"
    file.write_text(
        RECIPE.format(
            spec=spec,
            options=options,
            data=data.replace("-", "_"),
            expect=claim if expect is None else expect,
        )
    )
    return file


def train(folder, data, file, *more):
    place = folder / "texts"
    given = ("--train", data, "--data", place, "--device", "cpu", "--quiet")
    return call("compile", file, "--model", KINDS[data][0], *given, *more)


@pytest.fixture(scope="module", params=KINDS)
def trained(request, tmp_path_factory):
    folder = tmp_path_factory.mktemp(request.param)
    text_folder(folder / "texts")
    file = write_recipe(folder, request.param)
    assert train(folder, request.param, file, "--out", folder / "run") == 0
    return request.param, folder


def test_a_run_reports_the_metrics_of_its_task_and_keeps_its_promise(trained):
    data, folder = trained
    report = json.loads((folder / "run" / "report.json").read_text())
    found = report["result"]["accuracies"]["sparse"]
    wanted = {"text-classification": {"top1"}, "language-modelling": {"perplexity", "nll", "top1"}}
    assert set(found) == wanted[data]
    assert all(claim["holds"] for claim in report["expect"]) and report["data"] == data
    if data == "language-modelling":
        assert found["perplexity"] == pytest.approx(math.exp(found["nll"]), rel=1e-12)
    lines = (folder / "run" / "metrics.jsonl").read_text().splitlines()
    first, last = json.loads(lines[0]), json.loads(lines[-1])
    assert last["losses"]["cross_entropy(sparse)"] < first["losses"]["cross_entropy(sparse)"]


def test_every_verb_takes_the_run(trained, capsys):
    data, folder = trained
    run = folder / "run"
    assert call("eval", run, "--device", "cpu") == 0
    assert KINDS[data][2].split()[0] in capsys.readouterr().out
    assert call("eval", run, "--path", "dense", "--device", "cpu") == 0
    assert call("verify", run) == 0
    assert call("plan", folder / f"{data}.prune", "--model", KINDS[data][0]) == 0
    assert "12 tokens a text" in capsys.readouterr().out
    assert call("export", run, "--to", "pth") == 0
    assert call("runs", folder) == 0
    assert call("report", run, "--out", folder / "report.html") == 0


def test_the_layers_of_a_run_can_be_measured_for_their_sensitivity(trained, capsys):
    data, folder = trained
    assert call("sensitivity", folder / "run", "--device", "cpu", "--levels", "50%,90%") == 0
    said = capsys.readouterr().out
    assert "unpruned: loss" in said and ("q_proj" in said or "query" in said)


def test_the_exported_file_loads_into_the_model_of_transformers(trained):
    import transformers

    data, folder = trained
    tensors = load_file(folder / "run" / "sparse.safetensors")
    plan = json.loads((folder / "run" / "plan.json").read_text())
    kind = getattr(transformers, KINDS[data][0].removeprefix("hf:"))
    options = dict(plan["model"]["options"])
    if data == "text-classification":
        options["num_labels"] = 2
    model = kind(kind.config_class(**options))
    model.load_state_dict(tensors, strict=False)
    pruned = [n for n, w in model.named_parameters() if w.dim() == 2 and (w == 0).any()]
    assert pruned and not any("head" in name or "classifier" in name for name in pruned)


def test_a_resumed_run_ends_with_the_bits_of_the_uninterrupted_one(trained, tmp_path):
    data, folder = trained
    file, out = folder / f"{data}.prune", tmp_path / "run"
    assert train(folder, data, file, "--out", out, "--max-steps", "5") == 0
    assert train(folder, data, file, "--out", out, "--resume") == 0
    whole, again = (load_file(place / "sparse.safetensors") for place in (folder / "run", out))
    assert whole.keys() == again.keys()
    assert all(torch.equal(whole[name], again[name]) for name in whole)


# -- what does not fit ---------------------------------------------------------------------------


@pytest.fixture
def folder(tmp_path):
    text_folder(tmp_path / "texts")
    return tmp_path


@pytest.mark.parametrize("data", KINDS)
def test_a_model_with_fewer_tokens_than_the_tokenizer_is_refused(folder, data, capsys):
    file = write_recipe(folder, data, vocabulary=8)
    assert train(folder, data, file, "--out", folder / "run") == 2
    said = capsys.readouterr().err
    assert "the tokenizer has 16 tokens, and the model 8" in said and "vocab_size = 16" in said
    assert not (folder / "run").exists()


@pytest.mark.parametrize("data", KINDS)
def test_a_model_of_shorter_texts_is_refused(folder, data, capsys):
    file = write_recipe(folder, data, options="max_position_embeddings = 4")
    assert train(folder, data, file, "--out", folder / "run") == 2
    said = capsys.readouterr().err
    assert "and the model takes 4" in said and "`length = 4`" in said


def test_a_model_that_numbers_the_classes_otherwise_is_refused(folder, capsys):
    (folder / "net.py").write_text(
        "from transformers import BertConfig, BertForSequenceClassification\n"
        "def make(**sizes):\n"
        "    config = BertConfig(id2label={0: 'Sun', 1: 'Sea'}, **sizes)\n"
        "    return BertForSequenceClassification(config)\n"
    )
    file = write_recipe(folder, "text-classification")
    data = ("--train", "text-classification", "--data", folder / "texts", "--device", "cpu")
    assert call("compile", file, "--model", f"{folder}/net.py:make", *data) == 2
    assert "class 0 is `Sun` in the model and `sea` in the data" in capsys.readouterr().err


def test_a_larger_tokenizer_after_the_run_is_refused_by_eval(trained, tmp_path, capsys):
    data, folder = trained
    other = text_folder(tmp_path / "texts")
    config = other / "tokenizer" / "tokenizer.json"
    known = json.loads(config.read_text())
    known["model"]["vocab"]["moonlight"] = 16
    config.write_text(json.dumps(known))
    assert call("eval", folder / "run", "--data", other, "--device", "cpu") == 2
    assert "the tokenizer has 17 tokens, and the model 16" in capsys.readouterr().err


def test_a_metric_of_another_task_is_refused_before_the_run(folder, capsys):
    file = write_recipe(folder, "language-modelling", expect="r2 >= 0.5")
    assert train(folder, "language-modelling", file, "--out", folder / "run") == 2
    said = capsys.readouterr().err
    assert "a run of this model measures nll, perplexity, sparsity, top1" in said


def test_a_loss_that_compares_with_numbers_is_refused_at_its_line(folder, capsys):
    file = write_recipe(folder, "language-modelling")
    file.write_text(file.read_text().replace("loss cross_entropy(sparse)", "loss mse(sparse)"))
    assert train(folder, "language-modelling", file) == 2
    said = capsys.readouterr().err
    assert "language-modelling.prune:16:3" in said and "`mse(sparse)` compares with numbers" in said


def test_length_is_refused_for_images(folder, capsys):
    file = write_recipe(folder, "text-classification")
    given = ("--model", "torchvision:resnet18", "--train", "digits", "--quiet")
    assert call("compile", file, *given) == 2
    assert "`length` is of texts, in tokens" in capsys.readouterr().err


def test_a_model_that_is_no_language_model_is_refused(folder, capsys):
    file = write_recipe(folder, "language-modelling")
    given = ("--train", "language-modelling", "--data", folder / "texts", "--quiet")
    assert call("compile", file, "--model", "hf:LlamaModel", *given) == 2
    assert "no logits are found" in capsys.readouterr().err


def test_cut_texts_are_counted_in_a_note(folder, capsys):
    long = [("the sun " * 9, "a"), ("a sea", "b")] * 8
    text_folder(folder / "texts", long + labelled(0), long)
    save_tokenizer(folder / "texts", length=16)
    file = write_recipe(folder, "text-classification", expect="top1 >= 0%")
    more = ("--out", folder / "run", "--max-steps", "1")
    assert train(folder, "text-classification", file, *more) == 0
    assert "8 of 16 texts of train.csv are cut to 12 tokens" in capsys.readouterr().err


@pytest.mark.parametrize("padded_first", [False, True])
def test_a_text_of_full_length_and_a_padded_one_go_through_one_graph(folder, padded_first):
    rows = [("the sun shines bright today", "a"), ("the sun", "b")]
    rows = rows[::-1] if padded_first else rows
    text_folder(folder / "texts", rows * 9, rows * 9)
    for data in KINDS:
        file = write_recipe(folder, data, expect="top1 >= 0%")
        assert train(folder, data, file, "--out", folder / data, "--max-steps", "2") == 0
