"""What people do in their LightningModules and Trainers: right, or refused by name."""

import warnings

import pytest
import torch
from support.library import needed
from torch.nn import functional as F
from torch.utils.data import DataLoader

import dcil_dsl as dcil

pl = needed("lightning.pytorch")
from support.lightning_runs import Lit, loader, shares, text, trainer_of  # noqa: E402

from dcil_dsl.integrations.lightning import DcilCallback  # noqa: E402

torchmetrics = needed("torchmetrics")


def fitted(module, callback=None, data=None, **more):
    trainer = trainer_of(callback or DcilCallback(text()), **more)
    trainer.fit(module, data or loader())
    return trainer


# -- what a module keeps on itself ---------------------------------------------------------------


class Keeps(Lit):
    """A metric in both of its forms, a list and a count, all filled by training_step."""

    def __init__(self):
        super().__init__()
        self.mean, self.last, self.losses, self.count = torchmetrics.MeanMetric(), None, [], 0
        self.total = torch.zeros(())
        self.own = []  # all losses, those of the deployed path first of each two

    def training_step(self, batch, batch_idx):
        loss = super().training_step(batch, batch_idx)
        self.mean.update(loss.detach())
        self.total += loss.detach()
        self.losses.append(loss.detach())
        self.count += 1
        self.log("mean", self.mean, on_epoch=True, on_step=False)
        OWN.append(float(loss))
        return loss

    def on_train_epoch_end(self):
        self.ends = [float(self.mean.compute()), self.count, len(self.losses), float(self.total)]
        self.losses.clear()
        self.total.zero_()


OWN = []


def test_what_training_step_keeps_on_the_module_is_of_the_deployed_path():
    OWN.clear()
    module = Keeps()
    trainer = fitted(module)
    deployed = OWN[::2][-5:]
    mean, count, length, total = module.ends
    assert mean == pytest.approx(sum(deployed) / 5) and total == pytest.approx(sum(deployed))
    assert (count, length) == (20, 5)
    assert float(trainer.callback_metrics["mean"]) == pytest.approx(mean)
    assert shares(module) == [0.8, 0.8]


def test_a_training_step_without_batch_idx_and_with_a_dictionary_runs():
    class Short(Lit):
        def training_step(self, batch):
            scores = self(batch["x"])
            return {"loss": F.cross_entropy(scores, batch["y"]), "found": scores.argmax(-1)}

        def on_train_batch_end(self, outputs, batch, batch_idx):
            self.keys = set(outputs)

    module = Short()
    rows = [{"x": x, "y": y} for x, y in loader().dataset]
    fitted(module, data=DataLoader(rows, 8))
    assert shares(module) == [0.8, 0.8] and {"loss", "found"} <= module.keys


def test_two_loaders_and_a_look_in_evaluation_mode_within_a_step_change_nothing():
    class Looks(Lit):
        def training_step(self, batch, batch_idx):
            with torch.no_grad():
                self.eval()
                self(batch["b"][0])
                self.train()
            return super().training_step(batch["a"], batch_idx)

    looks, plain = Looks(), Lit()
    fitted(looks, data={"a": loader(), "b": loader(seed=1)})
    fitted(plain)
    assert all(torch.equal(a, b) for a, b in zip(looks.parameters(), plain.parameters()))


# -- checkpoints -----------------------------------------------------------------------------------


class Early(Lit):
    """A module whose first epoch looks best."""

    def validation_step(self, batch, batch_idx):
        self.log("val", torch.tensor(float(self.current_epoch)))


@pytest.mark.parametrize("top", [1, 2, -1])
def test_only_networks_of_full_sparsity_compete_for_the_best_checkpoint(tmp_path, top):
    save = pl.callbacks.ModelCheckpoint(tmp_path, monitor="val", mode="min", save_top_k=top)
    module, callback = Early(), DcilCallback(text())
    trainer = trainer_of(callback, tmp_path, callbacks=[save])
    trainer.fit(module, loader(), loader(8, seed=1))
    best = Early.load_from_checkpoint(save.best_model_path, map_location="cpu")
    assert shares(best) == [0.8, 0.8]
    assert "epoch=0" not in save.best_model_path and "check_monitor_top_k" not in vars(save)


def test_an_interrupted_fit_says_what_the_module_holds():
    class Stops(pl.Callback):
        def on_train_batch_end(self, trainer, module, *more):
            if trainer.global_step == 7:
                raise ValueError("stop")

    module, callback = Lit(), DcilCallback(text())
    with pytest.warns(UserWarning, match="weights are not pruned"), pytest.raises(ValueError):
        fitted(module, callback, callbacks=[Stops()])
    with pytest.raises(dcil.SparsityError):
        callback.export(module)
    assert shares(callback.export(module, unfinished=True))[0] > 0


# -- the length of a fit ---------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("more", "steps"),
    [
        ({"epochs": -1, "max_steps": 20}, 20),
        ({"epochs": 9, "max_steps": 10}, 10),
        ({"limit_train_batches": 3}, 12),
        ({"accumulate_grad_batches": 2}, 12),
    ],
)
def test_the_plan_has_the_steps_that_the_fit_takes(more, steps):
    module, callback = Lit(), DcilCallback(text())
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "max_")
        trainer = fitted(module, callback, **more)
    assert callback.plan.num_steps == steps == trainer.global_step
    assert shares(module) == [0.8, 0.8]


def test_a_fit_that_ends_within_an_epoch_is_sparse_or_says_that_it_is_not():
    module, callback = Lit(), DcilCallback(text())
    with warnings.catch_warnings():
        warnings.filterwarnings("error", "the fit ended")
        warnings.filterwarnings("ignore", "max_")
        fitted(module, callback, epochs=4, max_steps=18)
    assert shares(module) == [0.8, 0.8]


# -- precision -------------------------------------------------------------------------------------


@pytest.mark.parametrize("scale", [1.0, 2.0**12])
def test_scores_and_penalties_do_not_depend_on_the_scale_of_the_loss(scale):
    """A GradScaler on the CPU in Trainer's own plugin for fp16; the arithmetic is float64."""
    recipe = text("score = taylor(average=0.9)\n  penalty = [square(pruned, weight=0.01)]")
    scaler = torch.amp.GradScaler("cpu", init_scale=scale, growth_interval=3)
    plugin = pl.plugins.MixedPrecision("16-mixed", "cpu", scaler)
    plugin.forward_context = lambda: torch.autocast("cpu", enabled=False)
    scaled, plain = Lit(), Lit()
    fitted(scaled, DcilCallback(recipe), plugins=[plugin])
    fitted(plain, DcilCallback(recipe))
    for one, other in zip(scaled.parameters(), plain.parameters(), strict=True):
        torch.testing.assert_close(one, other, rtol=0, atol=1e-12)
    assert scaler.get_scale() > scale and shares(scaled) == [0.8, 0.8]


def test_bf16_trains():
    class Single(Lit):
        def __init__(self):
            super().__init__()
            self.net.float()

        def training_step(self, batch, batch_idx):
            return super().training_step((batch[0].float(), batch[1]), batch_idx)

    module = Single()
    fitted(module, precision="bf16-mixed")
    assert shares(module) == pytest.approx([0.8, 0.8], abs=1e-6)
    assert all(weight.isfinite().all() for weight in module.parameters())


# -- Fabric: a loop of one's own -------------------------------------------------------------------


@pytest.mark.parametrize("precision", ["32-true", "bf16-mixed"])
def test_a_loop_of_fabric_trains_sparse(precision):
    fabric = needed("lightning").Fabric(accelerator="cpu", precision=precision)
    recipe = text().replace("model(", "cross_entropy(")
    pruner = dcil.Pruner(recipe, Lit().net.float(), steps_per_epoch=5)
    pruner.module, optimizer = fabric.setup(pruner.dual, pruner.make_optimizer())
    for x, y in list(loader()) * 4:
        loss = pruner.step_loss(x.float(), target=y)
        optimizer.zero_grad()
        fabric.backward(loss)
        pruner.step(optimizer)
    found = [float((w == 0).double().mean()) for w in pruner.export().parameters() if w.dim() == 2]
    assert found == pytest.approx([0.8, 0.8], abs=1e-6)


# -- refused ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("callback", "match"),
    [
        (lambda: pl.callbacks.StochasticWeightAveraging(0.01), "StochasticWeightAveraging"),
        (lambda: pl.callbacks.ModelPruning("l1_unstructured", amount=0.5), "ModelPruning"),
        (lambda: pl.callbacks.LearningRateFinder(), "LearningRateFinder"),
        (lambda: pl.callbacks.GradientAccumulationScheduler({0: 1, 2: 2}), "Accumulation"),
    ],
)
def test_a_callback_that_would_leave_other_weights_is_refused_by_name(callback, match):
    with pytest.raises(dcil.InputError, match=match):
        fitted(Lit(), callbacks=[callback()])


@pytest.mark.parametrize("form", ["list", "dictionaries", "with schedulers"])
def test_several_optimizers_are_refused_however_they_are_returned(form):
    class Two(Lit):
        def configure_optimizers(self):
            pair = [torch.optim.SGD(self.net[i].parameters(), 0.1) for i in (0, 3)]
            if form == "dictionaries":
                return [{"optimizer": one} for one in pair]
            return pair if form == "list" else (pair, [])

    with pytest.raises(dcil.InputError, match="several optimizers"):
        fitted(Two())


def test_an_iterator_of_batches_is_refused():
    class Flavour(Lit):
        def training_step(self, dataloader_iter):
            raise AssertionError

    with pytest.raises(dcil.InputError, match="dataloader_iter"):
        fitted(Flavour())


def test_a_fit_without_an_end_is_refused():
    with pytest.raises(dcil.InputError, match="length of this fit"):
        fitted(Lit(), epochs=-1)


# -- texts of unequal length ---------------------------------------------------------------------


class Tagger(torch.nn.Module):
    """Scores at each place, as models of transformers take them."""

    def __init__(self):
        super().__init__()
        self.inner, self.head = torch.nn.Linear(6, 20), torch.nn.Linear(20, 4)

    def forward(self, x, attention_mask=None):
        return self.head(self.inner(x).relu())


class Tags(Lit):
    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.net = Tagger().double()

    def training_step(self, batch, i):
        x, mask, y = batch
        return F.cross_entropy(self.net(x, attention_mask=mask).movedim(2, 1), y)

    validation_step = None


def test_filled_places_teach_nothing():
    """Whatever the places of a batch hold that its mask leaves out, the network is the same."""
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(16, 5, 6, dtype=torch.float64, generator=generator)
    mask = torch.arange(5) < torch.randint(1, 6, (16, 1), generator=generator)
    y = torch.randint(0, 4, (16, 5), generator=generator).where(mask, torch.tensor(-100))
    recipe = text().replace("  private BatchNorm1d\n", "")
    found = []
    for filling in (0.0, 100.0):
        given = x.where(mask[..., None], torch.tensor(filling, dtype=torch.float64))
        module = Tags()
        data = DataLoader(torch.utils.data.TensorDataset(given, mask.long(), y), 4)
        fitted(module, DcilCallback(recipe, network="net"), data)
        found.append(module.net.state_dict())
    for name, tensor in found[0].items():
        torch.testing.assert_close(found[1][name], tensor, rtol=0, atol=1e-12)
