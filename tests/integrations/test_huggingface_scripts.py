"""Scripts as people publish them for Trainer, with DcilTrainer in its place."""

import numpy
import pytest
import torch
from support.library import needed

import dcil_dsl as dcil

transformers = needed("transformers")
needed("accelerate")
from support.hf_runs import BERT, GPT, Rows, arguments, bert, gpt2, text, trainer_of  # noqa: E402

from dcil_dsl.integrations.huggingface import DcilTrainer  # noqa: E402


def shares(model, inside="encoder"):
    weights = [w for name, w in model.named_parameters() if inside in name and w.dim() == 2]
    assert weights
    return [float((weight == 0).double().mean()) for weight in weights]


def is_sparse(model, inside="encoder"):
    return all(share == pytest.approx(0.8, abs=0.005) for share in shares(model, inside))


# -- classification as in run_glue.py ----------------------------------------------------------


def tokenizer():
    from tokenizers import Tokenizer, models, pre_tokenizers

    words = {word: i for i, word in enumerate(["[PAD]", "[UNK]", *"abcdefghijklmnopqrstuvwxyz"])}
    inner = Tokenizer(models.WordLevel(words, unk_token="[UNK]"))
    inner.pre_tokenizer = pre_tokenizers.Whitespace()
    return transformers.PreTrainedTokenizerFast(
        tokenizer_object=inner, pad_token="[PAD]", unk_token="[UNK]"
    )


def sentences(num=48, seed=0):
    """Encoded sentences of 3 to 8 words; the class is the first word's."""
    rng, encode = numpy.random.default_rng(seed), tokenizer()
    rows = []
    for _ in range(num):
        label = int(rng.integers(3))
        words = ["abc"[label], *rng.choice(list("defghij"), rng.integers(2, 8))]
        rows.append({**encode(" ".join(words)), "label": label})
    return rows


def accuracy(prediction):
    found = prediction.predictions.argmax(-1)
    return {"accuracy": float((found == prediction.label_ids).mean())}


def test_batches_of_padded_sentences_of_unequal_lengths_train_sparse(tmp_path):
    encode = tokenizer()
    trainer = DcilTrainer(
        model=bert(),
        recipe=text(),
        args=arguments(
            tmp_path,
            eval_strategy="epoch",
            save_strategy="epoch",
            load_best_model_at_end=True,
            metric_for_best_model="accuracy",
            save_total_limit=1,
            num_train_epochs=5,
        ),
        train_dataset=sentences(),
        eval_dataset=sentences(16, seed=1),
        processing_class=encode,
        data_collator=transformers.DataCollatorWithPadding(encode),
        compute_metrics=accuracy,
        callbacks=[transformers.EarlyStoppingCallback(early_stopping_patience=3)],
    )
    trainer.train()
    trainer.save_model(tmp_path / "best")
    assert is_sparse(trainer.sparse()) and (tmp_path / "best" / "tokenizer.json").exists()
    predictions = trainer.predict(sentences(16, seed=1))
    assert predictions.metrics["test_accuracy"] == trainer.evaluate()["eval_accuracy"]


def test_rows_grouped_by_their_lengths_train_sparse(tmp_path):
    encode = tokenizer()
    trainer = DcilTrainer(
        model=bert(),
        recipe=text(),
        args=arguments(tmp_path, train_sampling_strategy="group_by_length"),
        train_dataset=sentences(),
        processing_class=encode,
        data_collator=transformers.DataCollatorWithPadding(encode),
    )
    trainer.train()
    assert is_sparse(trainer.sparse())


# -- what a script does after train() ----------------------------------------------------------


def test_the_model_that_was_given_is_the_sparse_network_after_training(tmp_path):
    """`model.save_pretrained(...)` at the end of a script saves what was trained."""
    model = bert()
    trainer = trainer_of(tmp_path, model=model)
    trainer.train()
    model.save_pretrained(tmp_path / "out")
    loaded = transformers.AutoModelForSequenceClassification.from_pretrained(tmp_path / "out")
    expected = trainer.sparse().state_dict()
    assert is_sparse(loaded)
    assert all(torch.equal(tensor, expected[n]) for n, tensor in loaded.state_dict().items())


def test_a_training_that_was_cut_short_says_that_the_model_is_not_sparse(tmp_path, caplog):
    class Stops(transformers.TrainerCallback):
        def on_step_end(self, args, state, control, **more):
            control.should_training_stop = state.global_step == 5

    trainer_of(tmp_path, more={"callbacks": [Stops()]}).train()
    assert any("has not reached the recipe's sparsity" in line for line in caplog.messages)


# -- other heads -------------------------------------------------------------------------------


def test_a_masked_language_model_trains_sparse(tmp_path):
    encode = tokenizer()
    encode.add_special_tokens({"mask_token": "[MASK]"})
    config = transformers.BertConfig(
        vocab_size=60,
        hidden_size=16,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=32,
        max_position_embeddings=16,
    )
    model = transformers.BertForMaskedLM(config)
    trainer = DcilTrainer(
        model=model,
        recipe=text(),
        args=arguments(tmp_path, gradient_accumulation_steps=2, bf16=True),
        train_dataset=[{"input_ids": row["input_ids"]} for row in sentences()],
        processing_class=encode,
        data_collator=transformers.DataCollatorForLanguageModeling(encode, mlm_probability=0.4),
    )
    trainer.train()
    assert is_sparse(model)


def bart(seed=0):
    torch.manual_seed(seed)
    config = transformers.BartConfig(
        vocab_size=50,
        d_model=16,
        encoder_layers=1,
        decoder_layers=1,
        encoder_attention_heads=2,
        decoder_attention_heads=2,
        encoder_ffn_dim=32,
        decoder_ffn_dim=32,
        max_position_embeddings=32,
        pad_token_id=0,
        bos_token_id=1,
        eos_token_id=2,
        decoder_start_token_id=2,
        forced_eos_token_id=2,
    )
    return transformers.BartForConditionalGeneration(config)


def test_a_seq2seq_trainer_generates_with_the_sparse_network(tmp_path):
    class Pruned(DcilTrainer, transformers.Seq2SeqTrainer):
        pass

    rows = [{"input_ids": row["input_ids"], "labels": row["input_ids"][:4]} for row in Rows()]
    args = transformers.Seq2SeqTrainingArguments(
        str(tmp_path),
        per_device_train_batch_size=8,
        predict_with_generate=True,
        generation_max_length=6,
        report_to=[],
        use_cpu=True,
        disable_tqdm=True,
        save_strategy="no",
    )
    model = bart()
    trainer = Pruned(
        model=model,
        recipe=text(BERT.replace("bert.encoder", "model.decoder.layers")),
        args=args,
        train_dataset=rows,
        eval_dataset=rows[:8],
        compute_metrics=lambda p: {"length": p.predictions.shape[1]},
    )
    trainer.train()
    assert trainer.evaluate()["eval_length"] == 20  # padded by Seq2SeqTrainer
    ids = torch.stack([row["input_ids"] for row in rows[:8]])
    expected = model.eval().generate(ids, max_length=6).numpy()
    found = trainer.predict(rows[:8]).predictions[:, : expected.shape[1]]
    numpy.testing.assert_array_equal(found, expected)
    assert is_sparse(model, "decoder.layers")


# -- arguments of every day --------------------------------------------------------------------


@pytest.mark.parametrize(
    "args",
    [
        {"eval_on_start": True, "eval_strategy": "steps", "eval_steps": 5},
        {"include_num_input_tokens_seen": True},
        {"logging_nan_inf_filter": False, "logging_first_step": True, "logging_strategy": "epoch"},
        {"dataloader_pin_memory": False, "dataloader_persistent_workers": False},
        {"torch_empty_cache_steps": 2, "max_grad_norm": 0.3},
        {"full_determinism": False, "data_seed": 3, "warmup_steps": 3},
    ],
    ids=lambda args: next(iter(args)),
)
def test_arguments_of_every_day_train_sparse(tmp_path, args):
    model = bert()
    trainer_of(tmp_path, model=model, **args).train()
    assert is_sparse(model)


def test_accumulation_in_bf16_resumes_by_true_to_the_same_bits(tmp_path):
    args = {
        "bf16": True,
        "gradient_accumulation_steps": 2,
        "per_device_train_batch_size": 4,
        "save_strategy": "steps",
        "save_steps": 9,
        "save_total_limit": 1,
    }
    recipe = text(more="score = taylor(average=0.9)")
    through = bert()
    trainer_of(tmp_path / "a", recipe, through, **args).train()

    class Stops(transformers.TrainerCallback):
        def on_save(self, args, state, control, **more):
            control.should_training_stop = True

    trainer_of(tmp_path / "b", recipe, bert(), more={"callbacks": [Stops()]}, **args).train()
    resumed = bert(seed=5)
    trainer = trainer_of(tmp_path / "b", recipe, resumed, **args)
    trainer.train(resume_from_checkpoint=True)
    expected = through.state_dict()
    assert all(torch.equal(tensor, expected[n]) for n, tensor in resumed.state_dict().items())
    assert is_sparse(resumed)


def test_torch_compile_of_the_arguments_changes_no_mask(tmp_path):
    found = []
    for compiles in (False, True):
        model = bert()
        more = {"torch_compile": True, "torch_compile_backend": "eager"} if compiles else {}
        trainer_of(tmp_path / str(compiles), model=model, **more).train()
        found.append([weight == 0 for weight in model.parameters()])
    assert all(torch.equal(*pair) for pair in zip(*found, strict=True))
    assert is_sparse(model)


def test_a_model_whose_outputs_are_tuples_is_refused_with_the_name_of_the_setting(tmp_path):
    model = bert()
    model.config.return_dict = False
    with pytest.raises(dcil.InputError, match="return_dict"):
        trainer_of(tmp_path, model=model)


def test_a_head_replaced_before_the_trainer_is_made_trains_sparse(tmp_path):
    model = gpt2()
    model.resize_token_embeddings(64)
    args = arguments(tmp_path)
    DcilTrainer(model, text(GPT), args, train_dataset=Rows(causal=True)).train()
    assert is_sparse(model, ".h.")
