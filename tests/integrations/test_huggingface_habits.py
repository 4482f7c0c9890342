"""What people do with a Trainer: right, or refused by name; nothing stays dense in silence."""

import json
import logging
import shutil
from types import SimpleNamespace

import pytest
import torch
from support.library import needed

import dcil_dsl as dcil

transformers = needed("transformers")
needed("accelerate")
from support.hf_runs import Rows, arguments, bert, text, trainer_of  # noqa: E402

from dcil_dsl.integrations.huggingface import DcilTrainer  # noqa: E402


def zeros(trainer):
    """The shares of zeros of the pruned weights."""
    named = trainer.sparse().named_parameters()
    inner = [weight for name, weight in named if "encoder" in name and weight.dim() == 2]
    return [float((weight == 0).double().mean()) for weight in inner]


def is_sparse(trainer):
    return all(share == pytest.approx(0.8, abs=0.005) for share in zeros(trainer))


class Stream(torch.utils.data.IterableDataset):
    def __iter__(self):
        rows = Rows()
        return (rows[i] for i in range(48))


# -- habits that work ------------------------------------------------------------------------------


def test_a_subclass_that_changes_the_loss_of_its_base_class_trains_sparse(tmp_path):
    class Doubled(DcilTrainer):
        def compute_loss(self, model, inputs, return_outputs=False, **more):
            loss, outputs = super().compute_loss(model, inputs, return_outputs=True, **more)
            return (2 * loss, outputs) if return_outputs else 2 * loss

    args = arguments(tmp_path)
    trainer = Doubled(model=bert(), recipe=text(), args=args, train_dataset=Rows())
    trainer.train()
    assert is_sparse(trainer)


def test_evaluation_before_training_is_of_the_plain_model_and_training_follows(tmp_path):
    trainer = trainer_of(tmp_path)
    rows = Rows(16, seed=1)
    with torch.no_grad():
        expected = float(bert().eval()(input_ids=rows.ids, labels=rows.labels).loss)
    assert trainer.evaluate()["eval_loss"] == pytest.approx(expected, abs=1e-6)
    trainer.train()
    assert is_sparse(trainer)


def test_resuming_by_true_takes_the_last_checkpoint_and_ends_with_the_same_bits(tmp_path):
    args = {"save_strategy": "steps", "save_steps": 7}
    through = trainer_of(tmp_path, **args)
    through.train()
    for folder in tmp_path.glob("checkpoint-*"):
        if folder.name != "checkpoint-7":
            shutil.rmtree(folder)
    resumed = trainer_of(tmp_path, model=bert(seed=3), **args)
    resumed.train(resume_from_checkpoint=True)
    expected = through.sparse().state_dict()
    assert all(torch.equal(t, expected[n]) for n, t in resumed.sparse().state_dict().items())


@pytest.mark.parametrize(
    "args",
    [
        {"train": Stream(), "max_steps": 18},
        {"dataloader_num_workers": 1},
        {"held_out": {"a": Rows(16), "b": Rows(8)}, "eval_strategy": "epoch"},
        {"dataloader_drop_last": True, "per_device_train_batch_size": 7},
        {"gradient_accumulation_steps": 4, "per_device_train_batch_size": 2},
        {"max_grad_norm": 0.1},
    ],
    ids=["a stream", "workers", "two held-out sets", "drop last", "accumulation", "clipping"],
)
def test_a_setting_of_every_day_trains_sparse(tmp_path, args):
    trainer = trainer_of(tmp_path, **args)
    trainer.train()
    assert is_sparse(trainer) and trainer.plan.num_steps == trainer.state.global_step


def test_early_stopping_ends_with_a_network_of_the_recipes_sparsity(tmp_path):
    trainer = trainer_of(
        tmp_path,
        more={"callbacks": [transformers.EarlyStoppingCallback(1)]},
        eval_strategy="epoch",
        save_strategy="epoch",
        load_best_model_at_end=True,
        metric_for_best_model="loss",
        num_train_epochs=6,
    )
    trainer.train()
    trainer.save_model(tmp_path / "best")
    assert is_sparse(trainer)


def test_an_optimizer_of_a_subclass_trains_the_paths(tmp_path):
    class Own(DcilTrainer):
        def create_optimizer(self, model=None):
            self.optimizer = torch.optim.SGD(self.model.parameters(), lr=0.05)
            return self.optimizer

    args = arguments(tmp_path)
    trainer = Own(model=bert(), recipe=text(), args=args, train_dataset=Rows())
    trainer.train()
    assert is_sparse(trainer)
    moved = [
        not torch.equal(w, before)
        for (_, w), before in zip(trainer.sparse().named_parameters(), bert().parameters())
    ]
    assert sum(moved) > len(moved) / 2


# -- fp16 ------------------------------------------------------------------------------------------


def test_scores_and_penalties_do_not_depend_on_the_scale_of_the_loss(tmp_path):
    """A GradScaler on the CPU in accelerate's place for it; the arithmetic is float64."""
    recipe = text(more="score = taylor(average=0.9)\n  penalty = [square(pruned, weight=0.01)]")
    found = []
    for scale in (None, 2.0**10):
        trainer = trainer_of(tmp_path / str(scale), recipe, bert().double(), max_grad_norm=0.5)
        if scale is not None:
            scaler = torch.amp.GradScaler("cpu", init_scale=scale, growth_interval=4)
            trainer.accelerator.scaler = trainer.pruner.scaler = scaler
            trainer.accelerator.native_amp = True
            trainer.accelerator.state._mixed_precision = "fp16"
        trainer.train()
        found.append(trainer.sparse().state_dict())
        assert is_sparse(trainer)
    assert scaler.get_scale() > scale
    for name, tensor in found[0].items():
        torch.testing.assert_close(found[1][name], tensor, rtol=0, atol=1e-9)


def test_the_scaler_is_the_pruners_when_the_arguments_alone_ask_for_fp16(tmp_path, monkeypatch):
    """No device of fp16 is needed: only that the accelerator has a scaler when it is made."""
    scaler = torch.amp.GradScaler("cpu")
    own = transformers.Trainer.create_accelerator_and_postprocess

    def with_scaler(self):
        own(self)
        self.accelerator.scaler = scaler

    monkeypatch.setattr(transformers.Trainer, "create_accelerator_and_postprocess", with_scaler)
    trainer = trainer_of(tmp_path)
    assert trainer.pruner.scaler is scaler
    trainer.train()
    assert is_sparse(trainer)


# -- the hub ---------------------------------------------------------------------------------------


class Hub:
    """What huggingface_hub.HfApi does, with a folder for the hub."""

    def __init__(self, root):
        self.root, self.commits = root, []

    def create_repo(self, name, **more):
        return SimpleNamespace(repo_id=f"somebody/{name}")

    def upload_folder(self, *, repo_id, folder_path, commit_message, ignore_patterns=(), **more):
        place = self.root / str(len(self.commits))
        shutil.copytree(folder_path, place, ignore=shutil.ignore_patterns(*ignore_patterns))
        self.commits.append((place, commit_message))
        return SimpleNamespace(done=lambda: True, is_done=lambda: True, result=lambda: None)


@pytest.mark.parametrize("strategy", ["end", "every_save"])
def test_what_is_pushed_has_the_model_the_recipe_the_sparsity_and_its_card(
    tmp_path, monkeypatch, strategy
):
    hub = Hub(tmp_path / "hub")
    monkeypatch.setattr("transformers.trainer.hf_api", lambda: hub)
    trainer = trainer_of(
        tmp_path / "out", push_to_hub=True, hub_strategy=strategy, save_strategy="epoch"
    )
    trainer.train()
    trainer.push_to_hub()
    for place, _ in hub.commits:
        files = {file.name for file in place.iterdir()}
        assert {"config.json", "model.safetensors", "recipe.prune", "sparsity.json"} <= files
        facts = json.loads((place / "sparsity.json").read_text())
        card = (place / "README.md").read_text()
        assert f"{facts['sparsity']:.2%} of the weights" in card
        assert ("has not reached" in card) == (not facts["finished"])
        model = transformers.AutoModelForSequenceClassification.from_pretrained(place)
        pruned = model.get_submodule("bert.encoder.layer.0.intermediate.dense").weight
        layer = facts["layers"]["bert.encoder.layer.0.intermediate.dense.weight"]
        assert float((pruned == 0).double().mean()) == pytest.approx(layer)
    assert len(hub.commits) == (1 if strategy == "end" else 4) and facts["finished"]


def test_a_card_that_somebody_wrote_is_kept_and_ours_follows_the_model(tmp_path):
    trainer = trainer_of(tmp_path)
    trainer.save_model(tmp_path / "a", unfinished=True)
    trainer.train()
    trainer.save_model(tmp_path / "a")
    assert "has not reached" not in (tmp_path / "a" / "README.md").read_text()
    (tmp_path / "a" / "README.md").write_text("mine\n")
    trainer.save_model(tmp_path / "a")
    assert (tmp_path / "a" / "README.md").read_text() == "mine\n"


# -- refused or said -------------------------------------------------------------------------------


def adapted():
    model = bert()
    model.peft_config = {"default": "a LoraConfig"}  # what PEFT leaves on a model
    return model


def pair(model):
    return torch.optim.AdamW(model.parameters(), 1e-3), None


@pytest.mark.parametrize(
    ("settings", "match"),
    [
        (lambda: {"more": {"optimizers": pair(bert())}}, "optimizers"),
        (lambda: {"more": {"optimizer_cls_and_kwargs": (torch.optim.SGD, {})}}, "optimizer_cls"),
        (lambda: {"neftune_noise_alpha": 5.0}, "neftune_noise_alpha"),
        (lambda: {"auto_find_batch_size": True}, "auto_find_batch_size"),
        (lambda: {"use_liger_kernel": True}, "use_liger_kernel"),
        (lambda: {"model": adapted()}, "PEFT"),
        (lambda: {"more": {"model_init": bert}}, "model_init"),
    ],
)
def test_what_would_train_other_weights_is_refused_by_name(tmp_path, settings, match):
    with pytest.raises(dcil.InputError, match=match):
        trainer_of(tmp_path, **settings())


def test_a_second_training_with_one_trainer_is_refused(tmp_path):
    trainer = trainer_of(tmp_path)
    trainer.train()
    with pytest.raises(dcil.InputError, match="trained 18 steps already"):
        trainer.train()


def test_arguments_that_the_recipe_stands_for_are_named(tmp_path, caplog):
    with caplog.at_level(logging.WARNING):
        trainer_of(tmp_path, optim="adafactor", lr_scheduler_type="cosine", weight_decay=0.1)
    (said,) = [line for line in caplog.messages if line.startswith("not used")]
    assert said.endswith("optim, weight_decay, lr_scheduler_type of the arguments")


def test_usual_arguments_are_not_warned_about(tmp_path, caplog):
    with caplog.at_level(logging.WARNING):
        trainer_of(tmp_path)
    assert [line for line in caplog.messages if line.startswith("not used")] == []


def test_an_end_within_an_epoch_is_said(tmp_path, caplog):
    with caplog.at_level(logging.WARNING):
        trainer_of(tmp_path, max_steps=10)
    assert any("max_steps=10 ends training within epoch 2" in line for line in caplog.messages)


def outputs_of_a_plain_model(model, inputs):
    return model(**inputs).logits


def labels_left_out(model, inputs):
    return model(input_ids=inputs["input_ids"])["sparse"].logits


@pytest.mark.parametrize("logits_of", [outputs_of_a_plain_model, labels_left_out])
def test_a_loss_written_for_a_plain_model_is_refused_with_the_paths(tmp_path, logits_of):
    class Own(DcilTrainer):
        def compute_loss(self, model, inputs, return_outputs=False, **more):
            logits = logits_of(model, inputs)
            return torch.nn.functional.cross_entropy(logits, inputs["labels"])

    trainer = Own(model=bert(), recipe=text(), args=arguments(tmp_path), train_dataset=Rows())
    with pytest.raises(dcil.InputError, match=r"compute_loss of Own.* by path \(sparse, dense\)"):
        trainer.train()


def test_the_trained_module_says_where_the_methods_of_the_model_are(tmp_path):
    trainer = trainer_of(tmp_path)
    trainer.train()
    with pytest.raises(AttributeError, match=r"dual\.deployed\.save_pretrained"):
        trainer.model.save_pretrained(tmp_path / "out")
    trainer.model.deployed.save_pretrained(tmp_path / "out")
    loaded = transformers.AutoModelForSequenceClassification.from_pretrained(tmp_path / "out")
    assert all(
        torch.equal(a, b) for a, b in zip(loaded.parameters(), trainer.sparse().parameters())
    )


def test_a_plain_trainer_of_a_dual_does_not_train_in_silence(tmp_path):
    model, rows = bert(), [Rows()[i] for i in range(48)]
    for row in rows:
        del row["comment"]
    batch = torch.utils.data.default_collate(rows[:2])
    plan = dcil.resolve(text(), model, steps_per_epoch=6, example_inputs=batch)

    class Plain(transformers.Trainer):
        def compute_loss(self, model, inputs, return_outputs=False, **more):
            return dcil.loss(plan, model(**inputs), inputs["labels"], self.state.global_step)

    args = arguments(tmp_path, remove_unused_columns=False)
    with pytest.raises(RuntimeError, match="before begin_step"):
        Plain(model=dcil.compile(plan, model), args=args, train_dataset=rows).train()
