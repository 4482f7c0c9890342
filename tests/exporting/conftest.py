"""A plan of two groups and tensors that hold it, made by hand: nothing is trained here."""

import pytest
import torch
from support.in_steps import each_layer, linear, one_budget

from dcil_dsl.plan import plan as p
from dcil_dsl.words.losses import CrossEntropy
from dcil_dsl.words.optimizers import SGD
from dcil_dsl.words.rates import ConstantRate

LAYERS = (("a.weight", (4, 5)), ("b.weight", (10, 4)), ("c.weight", (3, 10)), ("d.weight", (2, 3)))


@pytest.fixture
def plan():
    """a and b share one budget of 50 %, c alone loses 90 %, d is kept. 10 steps, ramp until 5."""
    schedule = linear(0, 5)
    common = dict(score="magnitude", schedule=schedule, refresh=1)
    groups = (
        p.Group(
            rule="x.prune:4",
            parameters=("a.weight", "b.weight"),
            num_weights=(20, 40),
            target=one_budget(0.5),
            floors=(1, 1),
            **common,
        ),
        p.Group(
            rule="x.prune:5",
            parameters=("c.weight",),
            num_weights=(30,),
            target=each_layer(0.9),
            floors=(1,),
            **common,
        ),
    )
    owner = {"a.weight": 0, "b.weight": 0, "c.weight": 1}
    return p.Plan(
        recipe=p.About(name="x", sha256="0" * 64),
        model=p.Model(name="m:f", classes=2),
        data=p.Data(name="synthetic", batch_size=2, image_size=8),
        steps_per_epoch=5,
        num_steps=10,
        layers=tuple(
            p.PlanLayer(
                parameter=name,
                module=name[0],
                type="Linear",
                shape=shape,
                macs=100,
                group=owner.get(name),
                rule="x.prune:4",
            )
            for name, shape in LAYERS
        ),
        groups=groups,
        paths=(p.Path(name="sparse", view="masked"), p.Path(name="dense", view="full")),
        privates=(),
        phases=(
            p.Phase(
                window=p.Window(),
                paths=("sparse", "dense"),
                shares=(p.Shares(kept=1, rest=1), p.Shares(pruned=1)),
            ),
        ),
        losses=(
            p.WeightedLoss(
                name="cross_entropy(sparse)", coefficient=1, term=CrossEntropy(path="sparse")
            ),
        ),
        deploy="sparse",
        train=p.TrainPlan(num_epochs=2, optimizer=SGD(lr=0.1), rate=ConstantRate()),
    )


@pytest.fixture
def masks():
    """Exactly the asked counts: 30 of 60 in a and b, 3 of 30 in c."""
    b = torch.zeros(40, dtype=torch.bool)
    b[:10] = True
    c = torch.zeros(30, dtype=torch.bool)
    c[::10] = True
    return {
        "a.weight": torch.ones(4, 5, dtype=torch.bool),
        "b.weight": b.view(10, 4),
        "c.weight": c.view(3, 10),
    }


@pytest.fixture
def tensors(masks):
    """What such a plan deploys, with a buffer beside the weights."""
    torch.manual_seed(0)
    found = {name: torch.rand(shape) + 0.1 for name, shape in LAYERS}
    found |= {name: found[name] * mask for name, mask in masks.items()}
    return found | {"bn.num_batches_tracked": torch.tensor(7)}
