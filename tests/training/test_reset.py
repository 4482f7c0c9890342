"""`reset = [...]` of `train`: times at which the optimizer remembers nothing."""

import copy

import pytest
import torch
from support.tiny_job import NET, RECIPE

import dcil_dsl as dcil
from dcil_dsl.data import open_dataset
from dcil_dsl.plan.plan import Plan
from dcil_dsl.training.optim import forget_state, make_optimizer, set_rate
from dcil_dsl.words.optimizers import SGD, Adam, AdamW, Lamb, Muon, RMSprop

RESETS = RECIPE.replace("lr        = cosine()", "lr = cosine()  reset = [1ep]")
WORDS = [SGD(lr=0.1, momentum=0.9), Adam(lr=0.1), AdamW(lr=0.1), RMSprop(lr=0.1, momentum=0.9)]
WORDS += [Lamb(lr=0.1), Muon(lr=0.1)]


def net():
    place = {}
    exec(NET, place)
    torch.manual_seed(0)
    return place["Net"]()


def dual_of(text, steps_per_epoch=4):
    return dcil.compile(dcil.resolve(dcil.loads(text), net(), steps_per_epoch), net())


@pytest.mark.parametrize("word", WORDS, ids=lambda word: word.called)
def test_after_a_reset_an_optimizer_steps_like_a_fresh_one(word):
    if word.called in ("lamb", "muon"):
        pytest.importorskip("timm")
    dual = dual_of(RESETS)
    optimizer = make_optimizer(word, dual.trainable())
    for step in range(3):
        dual.begin_step(step)
        step_once(dual, optimizer, step)
    assert dual.begin_step(4)
    forget_state(optimizer, dual)
    fresh_dual = copy.deepcopy(dual)
    fresh = make_optimizer(word, fresh_dual.trainable())
    step_once(dual, optimizer, 4)
    step_once(fresh_dual, fresh, 4)
    for one, other in zip(dual.parameters(), fresh_dual.parameters(), strict=True):
        assert torch.equal(one, other)


def step_once(dual, optimizer, step):
    generator = torch.Generator().manual_seed(step)
    for _, weight in dual.trainable():
        weight.grad = torch.randn(weight.shape, generator=generator)
    set_rate(optimizer, 0.05)
    optimizer.step()


def test_only_the_step_that_is_named_resets_also_if_it_was_left_out():
    dual = dual_of(RESETS.replace("refresh  = 2 steps", "refresh  = 100 steps"))
    found = []
    for step in (0, 3, 5, 6):  # step 4, the first of epoch 1, was left out
        dual.begin_step(step)
        found.append(dual.resets)
    assert found == [False, False, True, False]
    dual.forget_step()  # as after a checkpoint of step 6
    dual.begin_step(6)
    assert not dual.resets


def test_a_run_that_is_resumed_at_its_reset_ends_with_the_same_bits(tmp_path):
    data = open_dataset("synthetic", num_train=256, num_val=64, image_size=32)
    options = {"device": "cpu", "workers": 0, "warn": lambda warning: None}
    recipe = dcil.loads(RESETS)
    straight = dcil.train(recipe, net(), data, out=tmp_path / "straight", **options)
    dcil.train(recipe, net(), data, out=tmp_path / "cut", max_steps=4, **options)
    cut = dcil.train(recipe, net(), data, out=tmp_path / "cut", resume=True, **options)
    pairs = zip(straight.model.state_dict().values(), cut.model.state_dict().values(), strict=True)
    assert all(torch.equal(a, b) for a, b in pairs)
    without = dcil.train(dcil.loads(RECIPE), net(), data, out=tmp_path / "without", **options)
    assert not torch.equal(straight.model[0].weight, without.model[0].weight)


def test_a_plan_says_when_the_optimizer_begins_anew(capsys):
    plan = dual_of(RESETS).plan
    assert plan.train.reset == (4,)
    plan.show()
    assert "begins anew at step 4" in capsys.readouterr().out
    assert Plan.from_json(plan.to_json()) == plan
