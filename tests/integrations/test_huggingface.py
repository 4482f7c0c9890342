"""DcilTrainer against the real Trainer, on small models of random weights."""

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy
import pytest
import torch
from support.library import needed

import dcil_dsl as dcil

transformers = needed("transformers")
needed("accelerate")
from support.hf_runs import GPT, Rows, arguments, bert, gpt2, text, trainer_of  # noqa: E402

from dcil_dsl.integrations.huggingface import DcilTrainer, _shifts_labels  # noqa: E402


def zeros(model, inside="encoder"):
    return {
        name: float((weight == 0).double().mean())
        for name, weight in model.named_parameters()
        if inside in name and weight.dim() == 2
    }


def accuracy(prediction):
    found = numpy.argmax(prediction.predictions, axis=-1)
    return {"accuracy": float((found == prediction.label_ids).mean())}


def test_the_saved_folder_loads_without_this_package_and_is_as_sparse_as_asked(tmp_path):
    trainer = trainer_of(tmp_path, more={"compute_metrics": accuracy})
    trainer.train()
    measured = trainer.evaluate()
    trainer.save_model(tmp_path / "out")
    assert set(zeros(trainer.sparse()).values()) <= {0.80078125, 0.8, 0.80273438}
    code = (
        "import sys, json\n"
        "sys.modules['dcil_dsl'] = None\n"
        "from transformers import AutoModelForSequenceClassification as Auto\n"
        "model = Auto.from_pretrained(sys.argv[1])\n"
        "pruned = [float((w == 0).double().mean()) for n, w in model.named_parameters() "
        "if 'encoder' in n and w.dim() == 2]\n"
        "print(json.dumps(pruned))\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, str(tmp_path / "out")], capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    pruned = json.loads(done.stdout.splitlines()[-1])
    assert len(pruned) == 12 and all(abs(share - 0.8) < 0.005 for share in pruned)

    loaded = transformers.AutoModelForSequenceClassification.from_pretrained(tmp_path / "out")
    rows = Rows(16, seed=1)
    with torch.no_grad():
        logits = loaded.eval()(rows.ids).logits
    found = float((logits.argmax(-1) == rows.labels).double().mean())
    assert found == pytest.approx(measured["eval_accuracy"])
    assert measured["eval_loss"] == pytest.approx(
        float(torch.nn.functional.cross_entropy(logits, rows.labels)), abs=1e-5
    )
    facts = json.loads((tmp_path / "out" / "sparsity.json").read_text())
    assert facts["finished"] and facts["sparsity"] == pytest.approx(0.8, abs=0.005)
    assert (tmp_path / "out" / "recipe.prune").read_text() == text()
    assert "% of the weights that" in (tmp_path / "out" / "README.md").read_text()


def test_logs_have_the_sparsity(tmp_path):
    trainer = trainer_of(tmp_path)
    trainer.train()
    told = [line["sparsity"] for line in trainer.state.log_history if "loss" in line]
    assert told == sorted(told) and told[0] < 0.5 and told[-1] == pytest.approx(0.8, abs=0.005)


@pytest.mark.parametrize("train", ["", "ema = 0.9"])
def test_a_resumed_trainer_ends_with_the_same_bits(tmp_path, train):
    recipe = text(train=train, more="score = taylor(average=0.9)")
    args = {"save_strategy": "steps", "save_steps": 7}
    through = trainer_of(tmp_path / "a", recipe, **args)
    through.train()
    resumed = trainer_of(tmp_path / "b", recipe, bert(seed=5), **args)
    resumed.train(resume_from_checkpoint=str(tmp_path / "a" / "checkpoint-7"))
    expected = through.sparse().state_dict()
    for name, tensor in resumed.sparse().state_dict().items():
        assert torch.equal(tensor, expected[name]), name


def test_micro_batches_are_one_batch_also_of_unequal_numbers_of_tokens(tmp_path):
    """The mean over the tokens of a step, wherever they are: num_items_in_batch. A loss between
    the paths counts the places whose next token is a label, as the model's own does."""
    recipe = text(GPT).replace(
        "loss model(dense)", "loss model(dense)\n  loss kl(student=sparse, teacher=dense)"
    )
    found = []
    for size, parts in ((8, 1), (2, 4)):
        model = gpt2().double()
        for module in model.modules():
            if isinstance(module, torch.nn.Dropout):
                module.p = 0.0
        rows = Rows(causal=True)
        rows.ids[::3, 4:] = 7
        trainer = DcilTrainer(
            model=model,
            recipe=recipe,
            args=arguments(
                tmp_path / str(size),
                per_device_train_batch_size=size,
                gradient_accumulation_steps=parts,
                max_grad_norm=0.0,
            ),
            train_dataset=rows,
            data_collator=masked,
        )
        trainer.train()
        found.append(trainer.sparse().state_dict())
    for name, tensor in found[0].items():
        torch.testing.assert_close(found[1][name], tensor, rtol=0, atol=1e-7)


def masked(rows):
    """Every third example has labels at half of its places."""
    batch = {
        "input_ids": torch.stack([row["input_ids"] for row in rows]),
        "labels": torch.stack([row["labels"] for row in rows]).clone(),
    }
    batch["labels"][batch["input_ids"][:, 5] == 7, :4] = -100
    return batch


def test_a_model_of_tied_weights_checkpoints_and_generates(tmp_path):
    trainer = DcilTrainer(
        model=gpt2(),
        recipe=text(GPT),
        args=arguments(tmp_path, save_strategy="steps", save_steps=4),
        train_dataset=Rows(causal=True),
    )
    trainer.train()
    trainer.save_model()
    model = transformers.AutoModelForCausalLM.from_pretrained(tmp_path)
    assert all(abs(share - 0.8) < 0.005 for share in zeros(model, ".h.").values())
    assert model.generate(torch.tensor([[3, 4]]), max_new_tokens=3, do_sample=False).shape == (1, 5)


def test_predictions_without_labels_are_those_of_the_sparse_model(tmp_path):
    trainer = trainer_of(tmp_path)
    trainer.train()
    rows = Rows(10, seed=2)
    unlabelled = [{"input_ids": row["input_ids"]} for row in (rows[i] for i in range(10))]
    found = trainer.predict(unlabelled).predictions
    with torch.no_grad():
        expected = trainer.sparse()(rows.ids).logits
    numpy.testing.assert_allclose(found, expected.numpy(), atol=1e-6)


def test_only_networks_of_full_sparsity_compete_for_the_best(tmp_path):
    best_first = iter([1.0, 0.9, 0.2, 0.3, 0.25, 0.1, 0.1, 0.1, 0.1])
    trainer = trainer_of(
        tmp_path,
        more={"compute_metrics": lambda prediction: {"score": next(best_first)}},
        eval_strategy="steps",
        eval_steps=2,
        save_strategy="steps",
        save_steps=2,
        load_best_model_at_end=True,
        metric_for_best_model="score",
    )
    trainer.train()
    steps = [line["step"] for line in trainer.state.log_history if "eval_score" in line]
    scores = [line["eval_score"] for line in trainer.state.log_history if "eval_score" in line]
    best = int(Path(trainer.state.best_model_checkpoint).name.split("-")[1])
    assert scores[steps.index(best)] < 0.9 and trainer.is_finished()
    trainer.save_model(tmp_path / "best")


def test_an_early_network_is_saved_only_on_request(tmp_path):
    trainer = trainer_of(tmp_path, max_steps=3, num_train_epochs=3)
    with pytest.raises(dcil.SparsityError, match="unfinished=True"):
        trainer.train()
        trainer.save_model(tmp_path / "early")
    trainer.save_model(tmp_path / "early", unfinished=True)
    assert json.loads((tmp_path / "early" / "sparsity.json").read_text())["finished"] is False


def test_bf16_trains(tmp_path):
    trainer = trainer_of(tmp_path, bf16=True)
    trainer.train()
    assert trainer.is_finished() and all(w.isfinite().all() for w in trainer.sparse().parameters())


def test_the_arguments_may_ask_for_another_number_of_epochs(tmp_path):
    trainer = trainer_of(tmp_path, num_train_epochs=2)
    trainer.train()
    assert trainer.plan.num_steps == 12 == trainer.state.global_step and trainer.is_finished()


def test_the_recipes_accumulation_and_clipping_hold(tmp_path):
    trainer = trainer_of(tmp_path, text(train="accumulate = 2\n  clip = 0.5"))
    assert trainer.args.gradient_accumulation_steps == 2 and trainer.args.max_grad_norm == 0.5
    trainer.train()
    assert trainer.plan.num_steps == 9 == trainer.state.global_step and trainer.is_finished()


def test_activation_checkpointing_changes_no_number(tmp_path):
    found = []
    for recomputes in (False, True):
        trainer = trainer_of(tmp_path / str(recomputes), gradient_checkpointing=recomputes)
        trainer.train()
        found.append(trainer.sparse().state_dict())
    for name, tensor in found[0].items():
        torch.testing.assert_close(found[1][name], tensor, rtol=0, atol=1e-6)


@pytest.mark.parametrize(
    ("more", "args", "match"),
    [
        ({"compute_loss_func": lambda *a, **k: 0}, {}, "compute_loss_func"),
        ({}, {"label_smoothing_factor": 0.1}, "label_smoothing_factor"),
        ({}, {"num_train_epochs": 2.5}, "whole number of epochs"),
    ],
)
def test_what_would_be_left_out_is_refused_by_name(tmp_path, more, args, match):
    with pytest.raises(dcil.InputError, match=match):
        trainer_of(tmp_path, more=more, **args)


def test_labels_that_are_not_shifted_are_not_compared_with_logits(tmp_path):
    recipe = text(GPT).replace("loss model(sparse)", "loss cross_entropy(sparse)")
    with pytest.raises(dcil.InputError, match="not shifted"):
        DcilTrainer(
            model=gpt2(), recipe=recipe, args=arguments(tmp_path), train_dataset=Rows(causal=True)
        )


def test_a_checkpoint_of_another_trainer_is_refused(tmp_path):
    (tmp_path / "checkpoint-3").mkdir()
    with pytest.raises(dcil.InputError, match="not a checkpoint of a DcilTrainer"):
        trainer_of(tmp_path).train(resume_from_checkpoint=str(tmp_path / "checkpoint-3"))


def test_two_processes_train_the_network_of_one_and_resume_to_the_bit(tmp_path):
    """torchrun with gloo: scores, masks and weights are those of one process of the same batch."""
    script = Path(__file__).parents[1] / "support" / "ddp_trainer.py"
    tests = str(Path(__file__).parents[1])
    env = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": tests}
    for count in (1, 2):
        done = subprocess.run(
            [
                sys.executable,
                "-m",
                "torch.distributed.run",
                "--standalone",
                f"--nproc-per-node={count}",
                str(script),
                str(tmp_path / str(count)),
                str(count),
            ],
            capture_output=True,
            text=True,
            env=env,
        )
        assert done.returncode == 0, done.stderr[-3000:]
    one, two = (torch.load(tmp_path / f"{count}.pt", weights_only=True) for count in (1, 2))
    assert float(two["loss"]) == pytest.approx(float(one["loss"]), abs=1e-9)
    for name, tensor in one["through"].items():
        torch.testing.assert_close(two["through"][name], tensor, rtol=0, atol=1e-9)
        assert torch.equal(two["resumed"][name], two["through"][name])


@pytest.mark.parametrize(
    ("name", "settings", "shifts"),
    [
        ("GPT2LMHeadModel", {}, True),
        ("GPT2DoubleHeadsModel", {}, True),
        ("BertLMHeadModel", {"is_decoder": True}, True),
        ("BartForCausalLM", {"decoder_ffn_dim": 8, "decoder_layers": 1}, False),
        ("XLNetLMHeadModel", {"d_inner": 8}, False),
        ("BertForTokenClassification", {}, False),
        ("BertForSequenceClassification", {}, False),
    ],
)
def test_whether_labels_are_shifted_is_asked_of_the_models_loss(name, settings, shifts):
    kind = getattr(transformers, name)
    sizes = {"hidden_size": 8, "num_hidden_layers": 1, "num_attention_heads": 2}
    config = kind.config_class(vocab_size=13, **settings)
    for key, value in sizes.items():
        setattr(config, key, value)
    if hasattr(config, "decoder_attention_heads"):
        config.decoder_attention_heads = 2
    if hasattr(config, "intermediate_size"):
        config.intermediate_size = 8
    model = kind(config).train()
    ids = torch.randint(3, 13, (2, 5))
    labels = ids[:, 0] % 2 if "Sequence" in name else ids % 2
    assert _shifts_labels(model, {"input_ids": ids, "labels": labels}) is shifts
    assert model.training
