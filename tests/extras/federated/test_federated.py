"""Federated rounds take the steps that FedDIP writes down: in float64, to rounding."""

import os
from pathlib import Path

import pytest
import torch
from support.plainly import gradients, largest, sgd
from support.two_layers import (
    COUNT,
    STEPS,
    STRAIGHT,
    assert_same,
    batches,
    recipe_of,
    start,
    state,
)
from torch import nn

import dcil_dsl as dcil
from dcil_dsl.data.dataset import Tensors, in_memory
from dcil_dsl.diagnostics import InputError
from dcil_dsl.extras.federated.job import federate, share_out
from dcil_dsl.extras.federated.rounds import Server, average, check_rounds, train_client
from dcil_dsl.jobs.prepare import prepare

LOCAL, PARTS = 4, (slice(0, 10), slice(10, 16))  # steps of a round; each client's part of a batch
RULE = """prune Linear to global(75%) {{
            schedule = linear(0 steps..8 steps, initial=50%)  refresh = {refresh} steps
            forget = true  penalty = [norm(kept, 0.01, stairs=3)] }}"""


def server_of(rule, mix=STRAIGHT.format(view="masked"), **overrides):
    recipe = dcil.loads(recipe_of(rule, mix), overrides=overrides)
    plan = dcil.resolve(recipe, start(), STEPS)
    return Server(dcil.compile(plan, start()), LOCAL), dcil.compile(plan, start())


def test_rounds_are_those_of_feddip():
    """Gradients at the pruned network, on all weights; a rising norm; averages by examples; what
    is sent is sparse."""
    server, dual = server_of(RULE.format(refresh=4))
    weights, _ = state()
    all_batches = list(batches())
    for number in range(server.num_rounds):
        sent = server.begin(number)
        keep = COUNT - round(COUNT * (0.5 + 0.25 * min(number * LOCAL / 8, 1)))
        masks = largest(weights, keep)
        weights = [w * m for w, m in zip(weights, masks)]
        for name, w in zip(("first.weight", "second.weight"), weights):
            assert torch.allclose(sent[name], w, rtol=0, atol=1e-12)
            assert int((sent[name] != 0).sum()) == int(sent[f"{name}_mask"].sum())
        here = all_batches[number * LOCAL : (number + 1) * LOCAL]
        answers, local = [], []
        for part in PARTS:
            mine = [(x[part], y[part]) for x, y in here]
            answers.append(train_client(dual, sent, mine, number * LOCAL))
            own, velocities = [w.clone() for w in weights], [torch.zeros_like(w) for w in weights]
            for step, (x, y) in enumerate(mine, start=number * LOCAL):
                seen = [w * m for w, m in zip(own, masks)]
                strength = 0.01 * (3 * step // STEPS) / 3
                penalty = [strength * v / v.norm() for v in seen]
                grads = gradients(x, y, seen)
                sgd(own, velocities, [g + p for g, p in zip(grads, penalty)])
            local.append(own)
        server.end(average(answers, [10, 6]))
        weights = [(10 * a + 6 * b) / 16 * m for a, b, m in zip(*local, masks)]
    assert_same(server.dual, weights)


def test_masks_between_two_refreshes_are_the_servers():
    server, dual = server_of(RULE.format(refresh=8))
    for number in range(2):
        sent = server.begin(number)
        batch = [next(batches())] * LOCAL
        answers = [train_client(dual, sent, batch, number * LOCAL) for _ in range(2)]
        assert torch.equal(dual.masks["first.weight"], sent["first.weight_mask"])
        server.end(average(answers, [1, 1]))
    assert server.dual.masks["first.weight"].sum() < COUNT / 2


def test_one_client_without_momentum_is_the_ordinary_run():
    rule = "prune Linear to global(75%) { refresh = 4 steps }"
    server, dual = server_of(rule, **{"train.optimizer": "sgd(lr=0.1)"})
    plan, alone = server.dual.plan, dcil.compile(server.dual.plan, start())
    optimizer = torch.optim.SGD(alone.parameters(), lr=0.1)
    for step, (x, y) in enumerate(batches()):
        alone.begin_step(step)
        optimizer.zero_grad()
        dcil.loss(plan, alone(x), y, step).backward()
        optimizer.step()
    here = list(batches())
    for number in range(3):
        mine = here[number * LOCAL : (number + 1) * LOCAL]
        server.end(average([train_client(dual, server.begin(number), mine, number * LOCAL)], [5]))
    for ours, theirs in zip(server.dual.parameters(), alone.parameters()):
        assert torch.equal(ours, theirs)


@pytest.mark.parametrize(
    "rule, overrides, fact",
    [
        (RULE.format(refresh=3), {}, "masks move at step 3, within a round of 4 steps"),
        (
            "prune Linear to 75% { refresh = 4 steps  score = taylor }",
            {},
            "follow from the weights alone",
        ),
        (
            "prune Linear to 75% { refresh = 4 steps  regrow = random(30%) }",
            {},
            "follow from the weights alone",
        ),
        (RULE.format(refresh=4), {"train.ema": "0.9"}, "do not go with `ema`"),
        (RULE.format(refresh=4), {"train.integrator": "heun()"}, "do not go with `integrator`"),
    ],
)
def test_what_a_round_would_leave_out_is_refused(rule, overrides, fact):
    with pytest.raises(InputError, match=fact):
        server_of(rule, **overrides)


def test_a_run_is_a_whole_number_of_rounds():
    recipe = dcil.loads(recipe_of(RULE.format(refresh=5), STRAIGHT.format(view="masked")))
    plan = dcil.resolve(recipe, start(), STEPS)
    with pytest.raises(InputError, match="12 steps are not a whole number of rounds of 5 steps"):
        Server(dcil.compile(plan, start()), 5)


def test_the_recipe_of_federated_rounds_has_rounds_of_an_epoch():
    path = Path(__file__).parents[3] / "recipes" / "methods" / "feddip_rounds.prune"
    more = dict(warn=print, note=print, steps_per_epoch=47)
    plan = prepare(dcil.load(path), "dcil:resnet20", **more).plan
    assert check_rounds(plan, 47) == plan.train.num_epochs
    assert plan.groups[0].forget and plan.groups[0].penalties[0].stairs == 20


# -- with data ----------------------------------------------------------------------------------

RECIPE = """language 1
recipe rounds { title = "three clients" }
data made { batch_size = 8  channels = 1 }
prune Linear to global(75%) { refresh = 3 steps  forget = true }
mix { path sparse = masked  update kept, pruned by sparse  loss cross_entropy(sparse)
      deploy sparse }
train { epochs = 2ep  optimizer = sgd(lr=0.1) }
"""


def made():
    """Forty small images whose class is where they are bright."""
    images = torch.randint(
        0, 60, (40, 1, 4, 4), dtype=torch.uint8, generator=torch.Generator().manual_seed(0)
    )
    labels = torch.arange(40) % 2
    images[labels == 1, :, :2] += 150
    part = Tensors(images, labels)
    return in_memory("made", part, part, ("dark", "bright"), 1)


def small():
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Flatten(), nn.Linear(16, 16), nn.BatchNorm1d(16), nn.ReLU(), nn.Linear(16, 2)
    )


def run(epochs="2ep", **more):
    recipe = dcil.loads(RECIPE, overrides={"train.epochs": epochs})
    return federate(recipe, small(), made(), clients=3, local_steps=1, **more)


def test_clients_share_the_examples_out():
    parts = [share_out(made(), client, 3, seed=0).train for client in range(3)]
    assert [len(part) for part in parts] == [14, 13, 13]
    together = torch.cat([part.images for part in parts]).flatten(1).tolist()
    assert sorted(together) == sorted(made().train.images.flatten(1).tolist())


def test_rounds_learn_and_keep_the_sparsity():
    result = run(epochs="15ep", engine="here")
    assert [line["step"] for line in result.rounds] == list(range(1, 31))
    assert result.rounds[-1]["top1"]["sparse"] > 0.9
    exported = dcil.export(result.dual)
    zeros = sum(int((m.weight == 0).sum()) for m in exported if isinstance(m, nn.Linear))
    assert zeros == 216  # of 288
    assert exported[2].running_mean.abs().sum() > 0


def test_a_fraction_of_the_clients_is_drawn_anew_and_the_same_again():
    once, again = (run(engine="here", fraction=0.4).dual.state_dict() for _ in range(2))
    assert all(torch.equal(once[name], again[name]) for name in once)


@pytest.mark.parametrize(
    "more, fact",
    [({"engine": "spark"}, "no engine `spark`"), ({"fraction": 0.0}, "a fraction of 0 of the")],
)
def test_what_cannot_be_run_is_reported(more, fact):
    with pytest.raises(InputError, match=fact):
        run(**more)


@pytest.mark.skipif("DCIL_TEST_FLOWER" not in os.environ, reason="starts Ray: DCIL_TEST_FLOWER=1")
def test_flowers_simulation_makes_the_same_network():
    ours, flowers = run(engine="here"), run(engine="flower")
    assert [line["step"] for line in flowers.rounds] == [1, 2, 3, 4]
    theirs = flowers.dual.state_dict()
    for name, value in ours.dual.state_dict().items():
        assert torch.allclose(value, theirs[name], rtol=0, atol=1e-5), name
