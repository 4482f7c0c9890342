"""A step begun twice, left out or backwards; forward passes and exports too early."""

import pickle
import warnings

import numpy
import pytest
import torch
from torch import nn

import dcil_dsl as dcil

RECIPE = """language 1
prune Linear to 80% {
  schedule = cubic(0ep..8ep)
  score = {score}
}
pruning { refresh = 4 steps }
mix {
  path sparse = masked
  update kept, pruned by sparse
  loss cross_entropy(sparse)
  deploy sparse
}
train { epochs = 10ep  optimizer = sgd(lr=0.1) }
"""


def net():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(6, 20), nn.ReLU(), nn.Linear(20, 5)).double()


def dual_of(score="magnitude", **more):
    recipe = dcil.loads(recipe_text(score))
    return dcil.compile(dcil.resolve(recipe, net(), steps_per_epoch=4, **more), net()).train()


def recipe_text(score="magnitude"):
    return RECIPE.replace("{score}", score)


def batch(seed=0):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(8, 6, dtype=torch.float64, generator=generator)


def learn(dual, seed=0):
    dual(batch(seed))["sparse"].square().sum().backward()


def test_a_forward_pass_in_training_mode_needs_a_begun_step():
    dual = dual_of()
    with pytest.raises(RuntimeError, match="before begin_step"):
        dual(batch())
    with torch.no_grad():
        dual(batch())
    dual.eval()(batch())
    dual.train().begin_step(0)
    dual(batch())


def test_the_same_step_begun_twice_changes_nothing():
    once, twice = dual_of("taylor(average=0.5)"), dual_of("taylor(average=0.5)")
    for step in range(9):
        for dual in (once, twice):
            dual.begin_step(step)
            for seed in (2 * step, 2 * step + 1):
                if dual is twice:
                    assert dual.begin_step(step) is False
                learn(dual, seed)
    for one, other in zip(once.state_dict().values(), twice.state_dict().values(), strict=True):
        assert torch.equal(one, other)


@pytest.mark.parametrize("steps", [(0, 29), (29,), (3, 7, 9, 30)])
def test_masks_of_steps_that_were_left_out_are_made_up(steps):
    every, some = dual_of(), dual_of()
    for step in range(steps[-1] + 1):
        every.begin_step(step)
    for step in steps:
        some.begin_step(step)
    for name, mask in every.masks.items():
        assert torch.equal(mask, some.masks[name])
    assert not all(mask.all() for mask in some.masks.values())


def test_masks_of_a_loaded_state_are_not_made_again():
    dual, other = dual_of(), dual_of()
    dual.begin_step(4)
    with torch.no_grad():
        dual.get_parameter("0.weight").neg_().add_(1)
    other.load_state_dict(dual.state_dict())
    other.begin_step(5)
    for name, mask in dual.masks.items():
        assert torch.equal(mask, other.masks[name])


@pytest.mark.parametrize(
    ("step", "error"), [(-1, ValueError), (3.5, TypeError), ("3", TypeError), (2, ValueError)]
)
def test_a_step_is_a_count_that_grows(step, error):
    dual = dual_of()
    dual.begin_step(numpy.int64(3))
    with pytest.raises(error):
        dual.begin_step(step)
    dual.load_state_dict(dual.state_dict())
    dual.begin_step(2)  # a state may be of any step


def test_a_step_beyond_the_plan_warns_once():
    dual = dual_of()
    with pytest.warns(UserWarning, match="40 steps, 0 to 39"):
        dual.begin_step(40)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        dual.begin_step(41)


def test_a_network_short_of_its_sparsity_is_exported_only_on_request():
    dual = dual_of()
    dual.begin_step(8)
    with pytest.raises(dcil.SparsityError, match="unfinished=True"):
        dcil.export(dual)
    early = dcil.export(dual, unfinished=True)
    assert 0 < float((early[0].weight == 0).double().mean()) < 0.8
    dual.begin_step(39)
    done = dcil.export(dual)
    assert float((done[0].weight == 0).double().mean()) == 0.8


def test_an_untrained_network_is_not_exported():
    with pytest.raises(dcil.SparsityError):
        dcil.export(dual_of())


class Labelled(nn.Module):
    def __init__(self):
        super().__init__()
        self.net = net()

    def forward(self, x, labels=None):
        y = self.net(x)
        return y if labels is None else {"logits": y, "loss": y[labels].sum()}

    def generate(self, x):
        return self(x).argmax(-1)


def labelled():
    recipe = (
        recipe_text()
        .replace("cross_entropy(sparse)", "model(sparse)\n  loss model(dense)")
        .replace("= masked", "= masked\n  path dense = full")
        .replace("kept, pruned by sparse", "kept by sparse\n  update pruned by dense")
    )
    x, labels = batch(), torch.arange(5)
    plan = dcil.resolve(
        dcil.loads(recipe), Labelled(), 4, example_inputs={"x": x, "labels": labels}
    )
    dual = dcil.compile(plan, Labelled())
    dual.begin_step(39)
    return dual


def test_a_network_traced_with_labels_evaluates_without_them():
    dual, x, labels = labelled(), batch(), torch.arange(5)
    with pytest.raises(TypeError, match="labels"):
        dual.train()(x)
    dual.eval()
    with torch.no_grad():
        expected = dual(x, labels=labels)
        found = dual(x)
    for path in ("sparse", "dense"):
        assert torch.equal(found[path], expected[path]["logits"])
    assert not torch.equal(found["sparse"], found["dense"])


def test_the_deployed_model_has_the_methods_of_the_original():
    dual, x = labelled(), batch()
    with torch.no_grad():
        logits = dual.eval()(x)["sparse"]
    assert torch.equal(dual.deployed.generate(x), logits.argmax(-1))
    assert dual.deployed.training is False


def test_what_only_the_class_of_the_original_has_is_an_error_that_says_where_it_is():
    dual = labelled()
    with pytest.raises(AttributeError, match=r"sparse Labelled has it: dual\.deployed\.generate"):
        dual.generate(batch())
    assert not hasattr(dual, "generate")
    with pytest.raises(AttributeError, match="has no attribute 'nothing'"):
        _ = dual.nothing


class Holds(torch.utils.data.Dataset):
    def __init__(self, dual):
        self.dual = dual

    def __len__(self):
        return 4


def by_worker(dual):
    loader = torch.utils.data.DataLoader(
        Holds(dual), num_workers=1, multiprocessing_context="spawn"
    )
    next(iter(loader))


@pytest.mark.parametrize("save", [pickle.dumps, lambda dual: torch.save(dual, "x.pt"), by_worker])
@pytest.mark.filterwarnings("ignore:Got pickle error")
def test_a_pickled_dual_says_what_to_save_and_what_a_spawned_process_does(
    save, tmp_path, monkeypatch
):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(TypeError, match=r"dual\.state_dict\(\).*spawned compiles its own"):
        save(dual_of())


def test_what_the_error_of_a_pickled_dual_says_gives_the_same_dual():
    dual = dual_of()
    dual.begin_step(20)
    state, plan = pickle.loads(pickle.dumps((dual.state_dict(), dual.plan.to_json())))
    other = dcil.compile(dcil.Plan.from_json(plan), net())
    other.load_state_dict(state)
    assert torch.equal(other.eval()(batch())["sparse"], dual.eval()(batch())["sparse"])
