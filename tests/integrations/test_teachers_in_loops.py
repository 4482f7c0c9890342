"""Teachers in loops of others: served by Pruner and DcilTrainer, refused by name in Lightning."""

import copy

import pytest
import torch
from support.library import needed
from support.two_paths import two_paths
from torch import nn

import dcil_dsl as dcil
from dcil_dsl.diagnostics import InputError

TEACHERS = """path slow = ema(sparse, decay=0.8)
  path big  = network()
  loss kl(student=sparse, teacher=big, temperature=2)
  loss mse(sparse, teacher=slow)"""
STEPS = 5


def text(loss="cross_entropy", teachers=TEACHERS, prune="Linear"):
    train = "epochs = 2ep\n  optimizer = sgd(lr=0.1, momentum=0.9)"
    rule = f"prune {prune} to 80% {{ schedule = cubic(0ep..1ep)  refresh = 2 steps }}"
    return two_paths(rule, mix=teachers, train=train, loss=loss)


def net(width=20):
    torch.manual_seed(width)
    return nn.Sequential(nn.Linear(6, width), nn.ReLU(), nn.Linear(width, 5)).double()


def batches():
    generator = torch.Generator().manual_seed(3)
    for _ in range(STEPS):
        x = torch.randn(8, 6, dtype=torch.float64, generator=generator)
        yield x, torch.randint(5, (8,), generator=generator)


def pruner_of(**more):
    return dcil.Pruner(text(), net(), steps_per_epoch=STEPS, teachers={"big": net(30)}, **more)


def one_epoch(pruner, optimizer):
    for x, y in batches():
        pruner.step_loss(x, target=y).backward()
        pruner.step(optimizer)


def test_a_pruner_serves_teachers_as_the_loop_written_out():
    pruner = pruner_of()
    optimizer = pruner.make_optimizer()
    for _ in range(2):
        one_epoch(pruner, optimizer)

    teachers = {"big": net(30)}
    plan = dcil.resolve(text(), net(), STEPS, teachers=teachers)
    dual = dcil.compile(plan, net(), teachers=teachers).train()
    optimizer = plan.make_optimizer(dual)
    for step, (x, y) in enumerate([*batches(), *batches()]):
        dual.begin_step(step)
        optimizer.zero_grad()
        dcil.loss(plan, dual(x), y, step).backward()
        optimizer.step()
    one, other = pruner.dual.state_dict(), dual.state_dict()
    assert list(one) == list(other) and all(torch.equal(one[name], other[name]) for name in one)
    assert list(pruner.export().state_dict()) == list(net().state_dict())


def test_a_pruner_with_teachers_resumes_to_the_same_bits():
    straight = pruner_of()
    optimizer = straight.make_optimizer()
    one_epoch(straight, optimizer)
    state = copy.deepcopy((straight.state_dict(), optimizer.state_dict()))
    one_epoch(straight, optimizer)
    resumed = pruner_of()
    resumed.load_state_dict(state[0])
    optimizer = resumed.make_optimizer()
    optimizer.load_state_dict(state[1])
    one_epoch(resumed, optimizer)
    one, other = straight.dual.state_dict(), resumed.dual.state_dict()
    assert all(torch.equal(one[name], other[name]) for name in one)


def test_a_pruner_refuses_the_state_of_a_run_with_another_teacher():
    other = dcil.Pruner(text(), net(), steps_per_epoch=STEPS, teachers={"big": net(31)})
    with pytest.raises(InputError, match="this state is of another plan"):
        pruner_of().load_state_dict(other.state_dict())


def test_the_trainer_of_transformers_serves_teachers_and_resumes_to_the_same_bits(tmp_path):
    needed("transformers")
    needed("accelerate")
    from support.hf_runs import bert, trainer_of

    recipe = text("model", prune='Linear in "bert.encoder"')
    args = {"save_strategy": "steps", "save_steps": 4, "num_train_epochs": 2}
    straight = trainer_of(tmp_path / "a", recipe, more={"teachers": {"big": bert(9)}}, **args)
    straight.train()
    own = straight.pruner.dual
    assert not torch.equal(
        own.get_parameter("ema__slow.network.classifier.weight"),
        own.get_parameter("classifier.weight"),
    )
    resumed = trainer_of(tmp_path / "b", recipe, more={"teachers": {"big": bert(9)}}, **args)
    resumed.train(resume_from_checkpoint=str(tmp_path / "a" / "checkpoint-4"))
    one, other = own.state_dict(), resumed.pruner.dual.state_dict()
    assert all(torch.equal(one[name], other[name]) for name in one)
    assert not [name for name in straight.sparse().state_dict() if "ema__" in name]


@pytest.mark.parametrize(
    "teachers, name",
    [
        ("path slow = ema(sparse)\n  loss mse(sparse, teacher=slow)", "`ema` of path `slow`"),
        ("path big = network()\n  loss mse(sparse, teacher=big)", "`network` of path `big`"),
    ],
)
def test_lightning_refuses_a_teacher_by_its_name(teachers, name):
    needed("lightning.pytorch")
    from support.lightning_runs import Lit, loader, trainer_of

    from dcil_dsl.integrations.lightning import DcilCallback

    with pytest.raises(InputError, match=f"{name} teaches by its outputs"):
        trainer_of(DcilCallback(text("model", teachers))).fit(Lit(), loader())
