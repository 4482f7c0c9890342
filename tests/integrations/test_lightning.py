"""DcilCallback against the real Trainer: modules with a training_step of their own."""

import warnings

import pytest
import torch
from support.library import needed

import dcil_dsl as dcil

pl = needed("lightning.pytorch")
from support.lightning_runs import Lit, loader, shares, text, trainer_of  # noqa: E402

from dcil_dsl.integrations.lightning import DcilCallback  # noqa: E402


def written_out(recipe, seed=0, size=8, epochs=4):
    """The same training by a Dual of the inner network and a loop."""
    lit = Lit(seed)
    plan = dcil.resolve(recipe.replace("model(", "cross_entropy("), lit.net, 40 // size)
    dual = dcil.compile(plan, lit.net).train()
    optimizer = torch.optim.SGD([w for _, w in dual.trainable()], lr=0.05, momentum=0.9)
    step = 0
    for _ in range(epochs):
        for x, y in loader(size=size):
            dual.begin_step(step)
            optimizer.zero_grad()
            dcil.loss(plan, dual(x), y, step).backward()
            dual.add_penalties(step)
            optimizer.step()
            step += 1
    return dcil.export(dual)


@pytest.mark.parametrize(
    "more", ["", "score = taylor(average=0.9)", "penalty = [square(pruned, weight=0.01)]"]
)
def test_a_fit_is_the_loop_written_out_and_leaves_the_sparse_network(more):
    lit, callback = Lit(), DcilCallback(text(more))
    trainer_of(callback).fit(lit, loader())
    expected = written_out(text(more)).state_dict()
    assert list(lit.state_dict()) == [f"net.{name}" for name in expected]
    for name, tensor in expected.items():
        torch.testing.assert_close(lit.state_dict()[f"net.{name}"], tensor, rtol=0, atol=1e-12)
    assert shares(lit) == [0.8, 0.8]


def test_micro_batches_count_as_one_step():
    lit, callback = Lit(), DcilCallback(text("score = taylor(average=0.9)"))
    trainer_of(callback, accumulate_grad_batches=2).fit(lit, loader(size=4))
    assert callback.plan.num_steps == 20 and shares(lit) == [0.8, 0.8]


def test_validation_sees_the_sparse_network_and_training_resumes_without_it():
    lit, plain = Lit(), Lit()
    trainer_of(DcilCallback(text()), num_sanity_val_steps=0).fit(lit, loader(), loader(8, seed=1))
    trainer_of(DcilCallback(text())).fit(plain, loader())
    assert lit.seen == sorted(lit.seen) and lit.seen[-1] == 0.8 and lit.seen[0] < 0.8
    for name, tensor in plain.state_dict().items():
        assert torch.equal(lit.state_dict()[name], tensor)


def test_a_checkpoint_holds_the_sparse_network_and_resumes_to_the_bit(tmp_path):
    save = pl.callbacks.ModelCheckpoint(tmp_path, save_top_k=-1, filename="{epoch}")
    through = Lit()
    recipe = text("score = taylor(average=0.9)")
    trainer_of(DcilCallback(recipe), tmp_path, callbacks=[save]).fit(through, loader())

    early = tmp_path / "epoch=1.ckpt"
    loaded = Lit.load_from_checkpoint(early, map_location="cpu")
    assert 0 < shares(loaded)[0] <= 0.8
    resumed = Lit(seed=3)
    trainer_of(DcilCallback(recipe), tmp_path / "b").fit(resumed, loader(), ckpt_path=early)
    for name, tensor in through.state_dict().items():
        assert torch.equal(resumed.state_dict()[name], tensor), name
    last = Lit.load_from_checkpoint(tmp_path / "epoch=3.ckpt", map_location="cpu")
    assert shares(last) == [0.8, 0.8]


def test_the_recipes_optimizer_rate_and_clipping_hold_where_asked_for():
    recipe = text(train="clip = 0.5\n  lr = cosine(warmup=1ep)")
    lit, callback = Lit(), DcilCallback(recipe, optimizer="recipe")
    trainer_of(callback).fit(lit, loader())
    pruner = dcil.Pruner(recipe.replace("model(", "cross_entropy("), Lit().net, steps_per_epoch=5)
    optimizer = pruner.make_optimizer()
    for _ in range(4):
        for x, y in loader():
            loss = pruner.step_loss(x, target=y)
            optimizer.zero_grad()
            loss.backward()
            pruner.step(optimizer)
    for name, tensor in pruner.export().state_dict().items():
        torch.testing.assert_close(lit.state_dict()[f"net.{name}"], tensor, rtol=0, atol=1e-12)


def test_metrics_are_those_of_the_deployed_path():
    class Notes(pl.Callback):
        def __init__(self):
            self.told, self.found = [], []

        def on_train_batch_end(self, trainer, module, outputs, batch, i):
            self.told.append(float(trainer.callback_metrics["train_loss"]))

    lit, notes = Lit(), Notes()
    own = lit.training_step
    lit.training_step = lambda batch, batch_idx: (
        notes.found.append(float(r := own(batch, batch_idx))),
        r,
    )[1]
    trainer_of(DcilCallback(text()), callbacks=[notes]).fit(lit, loader())
    assert notes.told == pytest.approx(notes.found[::2])  # the sparse path runs first


def test_another_number_of_epochs_is_said():
    lit, callback = Lit(), DcilCallback(text())
    with pytest.warns(UserWarning, match="max_epochs=2 replaces"):
        trainer_of(callback, epochs=2).fit(lit, loader())
    assert shares(lit) == [0.8, 0.8]


def test_a_fit_that_was_cut_short_says_so():
    class Stops(pl.Callback):
        def on_train_epoch_end(self, trainer, module):
            trainer.should_stop = True

    lit, callback = Lit(), DcilCallback(text())
    with pytest.warns(UserWarning, match="has not reached"):
        trainer_of(callback, callbacks=[Stops()]).fit(lit, loader())
    assert 0 < shares(lit)[0] < 0.8


@pytest.mark.parametrize(
    ("recipe", "match"),
    [
        (text().replace("loss model(dense)", "loss cross_entropy(dense)"), "cross_entropy.dense"),
        (text(train="ema = 0.9"), "`ema`"),
        (text(train="integrator = heun"), "integrator"),
    ],
)
def test_what_it_cannot_serve_is_refused_by_name(recipe, match):
    with pytest.raises((dcil.InputError, dcil.RecipeError), match=match):
        trainer_of(DcilCallback(recipe)).fit(Lit(), loader())


def test_a_module_that_optimizes_manually_is_refused():
    class Manual(Lit):
        automatic_optimization = False

    lit = Lit()
    lit.automatic_optimization = False
    with pytest.raises(dcil.InputError, match="manually"):
        trainer_of(DcilCallback(text())).fit(lit, loader())


def test_the_module_may_be_fitted_again():
    lit = Lit()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        trainer_of(DcilCallback(text())).fit(lit, loader())
        trainer_of(DcilCallback(text())).fit(lit, loader())
    assert shares(lit) == [0.8, 0.8] and "__" not in "".join(lit.state_dict())
    assert not {"training_step", "configure_optimizers", "forward"} & set(vars(lit))
