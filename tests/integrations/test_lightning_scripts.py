"""Scripts as people publish them for Lightning's Trainer, with DcilCallback added."""

import sys
import warnings

import pytest
import torch
from support.library import needed

import dcil_dsl as dcil

pl = needed("lightning.pytorch")
from support.lightning_runs import Lit, loader, shares, text, trainer_of  # noqa: E402

from dcil_dsl.integrations.lightning import DcilCallback  # noqa: E402


def fitted(module, callback=None, data=None, held_out=None, **more):
    trainer = trainer_of(callback or DcilCallback(text()), **more)
    trainer.fit(module, data or loader(), held_out)
    return trainer


def test_gradients_are_clipped_before_penalties_as_in_every_other_loop():
    recipe = text("penalty = [square(pruned, weight=0.05)]", train="clip = 0.05")
    lit = Lit()
    fitted(lit, DcilCallback(recipe.replace("clip = 0.05", "")), gradient_clip_val=0.05)
    own = recipe.replace("model(", "cross_entropy(")
    pruner = dcil.Pruner(own, Lit().net, steps_per_epoch=5)
    optimizer = torch.optim.SGD(pruner.dual.parameters(), lr=0.05, momentum=0.9)
    for _ in range(4):
        for x, y in loader():
            pruner.step_loss(x, target=y).backward()
            pruner.step(optimizer)
    for name, tensor in pruner.export().state_dict().items():
        torch.testing.assert_close(lit.state_dict()[f"net.{name}"], tensor, rtol=0, atol=1e-10)


def test_a_gradient_clipping_of_the_module_itself_is_called():
    class Clips(Lit):
        calls = 0

        def configure_gradient_clipping(self, optimizer, gradient_clip_val, **more):
            self.calls += 1
            self.clip_gradients(optimizer, gradient_clip_val=0.1, gradient_clip_algorithm="value")

    module = Clips()
    fitted(module, DcilCallback(text("penalty = [square(pruned, weight=0.05)]")))
    assert module.calls == 20 and shares(module) == [0.8, 0.8]


class Data(pl.LightningDataModule):
    def train_dataloader(self):
        return loader()

    def val_dataloader(self):
        return loader(8, seed=1)

    test_dataloader = val_dataloader


class Scheduled(Lit):
    """Hyperparameters saved, a scheduler of steps, a monitored metric, a test step."""

    def __init__(self, seed: int = 0, lr: float = 0.05):
        super().__init__(seed)
        self.save_hyperparameters()

    def configure_optimizers(self):
        optimizer = torch.optim.SGD(self.parameters(), self.hparams.lr, momentum=0.9)
        rate = torch.optim.lr_scheduler.OneCycleLR(
            optimizer, self.hparams.lr, total_steps=self.trainer.estimated_stepping_batches
        )
        return {
            "optimizer": optimizer,
            "lr_scheduler": {"scheduler": rate, "interval": "step"},
        }

    def test_step(self, batch, batch_idx):
        self.log("zeros", (self.net[0].weight == 0).double().mean())


def test_a_data_module_a_rate_by_steps_and_the_best_checkpoint_tested(tmp_path):
    save = pl.callbacks.ModelCheckpoint(tmp_path, monitor="val_loss", save_last=True)
    stop = pl.callbacks.EarlyStopping("val_loss", patience=9)
    module, callback = Scheduled(), DcilCallback(text())
    trainer = trainer_of(callback, tmp_path, callbacks=[save, stop])
    trainer.fit(module, datamodule=Data())
    (measured,) = trainer.test(datamodule=Data(), ckpt_path="best", verbose=False)
    assert measured["zeros"] == pytest.approx(0.8)
    loaded = Scheduled.load_from_checkpoint(tmp_path / "last.ckpt", map_location="cpu")
    assert shares(loaded) == [0.8, 0.8] == shares(module) and loaded.hparams.lr == 0.05


def test_a_fit_that_stops_early_below_the_sparsity_says_so():
    stop = pl.callbacks.EarlyStopping("val_loss", patience=0, min_delta=100.0)
    with pytest.warns(UserWarning, match="has not reached the recipe's sparsity"):
        fitted(Lit(), held_out=loader(8, seed=1), callbacks=[stop], num_sanity_val_steps=0)


def test_an_average_of_the_weights_by_hand_ends_sparse():
    class Average(pl.Callback):
        def on_fit_start(self, trainer, module):
            self.kept = {n: w.detach().clone() for n, w in module.named_parameters()}

        def on_train_batch_end(self, trainer, module, *event):
            for name, weight in module.named_parameters():
                if name in self.kept:
                    self.kept[name].lerp_(weight.detach(), 0.1)

        def on_train_end(self, trainer, module):
            with torch.no_grad():
                for name, weight in module.named_parameters():
                    if name in self.kept:
                        weight.copy_(self.kept[name])

    module = Lit()
    fitted(module, callbacks=[Average()])
    assert shares(module) == [0.8, 0.8]


@pytest.mark.parametrize("verb", ["lr_find", "scale_batch_size"])
def test_a_tuner_that_trains_before_the_fit_is_refused_by_name(verb, tmp_path):
    from lightning.pytorch.tuner import Tuner

    class Tuned(Scheduled):
        batch_size = 4

        def train_dataloader(self):
            return loader(size=self.batch_size)

    trainer = trainer_of(DcilCallback(text()), tmp_path)
    with pytest.raises(dcil.InputError, match="trains steps before the fit"):
        getattr(Tuner(trainer), verb)(Tuned())


def test_the_average_callback_of_lightning_is_refused_by_name():
    with pytest.raises(dcil.InputError, match="EMAWeightAveraging"):
        fitted(Lit(), callbacks=[pl.callbacks.EMAWeightAveraging()])


def test_a_compiled_module_trains_sparse():
    """torch.compile(module), as Lightning's page has it: Trainer takes the module inside."""
    module = Lit()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        trainer_of(DcilCallback(text())).fit(torch.compile(module, backend="eager"), loader())
    assert shares(module) == [0.8, 0.8]


def test_a_configuration_of_the_command_line_trains_sparse(tmp_path, monkeypatch):
    needed("jsonargparse")
    from lightning.pytorch.cli import LightningCLI

    (tmp_path / "net.prune").write_text(text())
    config = f"""
trainer:
  max_epochs: 4
  accelerator: cpu
  logger: false
  enable_progress_bar: false
  enable_model_summary: false
  enable_checkpointing: false
  callbacks:
    - class_path: dcil_dsl.integrations.lightning.DcilCallback
      init_args:
        recipe: {tmp_path / "net.prune"}
model:
  lr: 0.02
"""
    (tmp_path / "fit.yaml").write_text(config)
    monkeypatch.setattr(sys, "argv", ["fit.py"])
    monkeypatch.chdir(tmp_path)
    ran = LightningCLI(Scheduled, Data, args=["fit", "--config", "fit.yaml"])
    assert shares(ran.model) == [0.8, 0.8]
