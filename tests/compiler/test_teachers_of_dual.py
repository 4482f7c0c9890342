"""Teachers of a Dual: when they run, what state they have, and how they move and are copied."""

import copy

import pytest
import torch
from torch import nn

import dcil_dsl as dcil
from dcil_dsl.diagnostics import InputError

RECIPE = """language 1
prune Conv2d to 50% { refresh = 2 steps }
mix {
  path sparse = masked
  path dense  = full
  path slow   = ema(dense, decay=0.75)
  path big    = network()
  update kept by sparse
  update pruned by dense
  private BatchNorm2d
  loss cross_entropy(sparse)
  loss cross_entropy(dense)
  loss mse(sparse, teacher=slow) from 2 steps
  loss kl(student=sparse, teacher=big) until 4 steps
  deploy sparse
}
train { epochs = 1ep  optimizer = sgd(lr=0.1) }
"""
STEPS = 6


def net(width=8):
    torch.manual_seed(width)
    return nn.Sequential(
        nn.Conv2d(3, width, 3),
        nn.BatchNorm2d(width),
        nn.ReLU(),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(width, 5),
    ).double()


def batch(step):
    generator = torch.Generator().manual_seed(step)
    x = torch.randn(4, 3, 6, 6, generator=generator, dtype=torch.float64)
    return x, torch.randint(0, 5, (4,), generator=generator)


@pytest.fixture(scope="module")
def plan():
    return dcil.resolve(RECIPE, net(), STEPS, (batch(0)[0],), teachers={"big": net(16)})


@pytest.fixture
def dual(plan):
    return dcil.compile(plan, net(), teachers={"big": net(16)})


def step_once(dual, optimizer, step, forward=None):
    dual.begin_step(step)
    x, y = batch(step)
    outputs = (dual if forward is None else forward)(x)
    optimizer.zero_grad()
    dcil.loss(dual.plan, outputs, y, step).backward()
    optimizer.step()
    return outputs


def test_teachers_run_in_training_in_the_steps_that_need_them(dual):
    optimizer = dual.plan.make_optimizer(dual)
    ran = [list(step_once(dual, optimizer, step)) for step in range(STEPS)]
    both = ["sparse", "dense"]
    assert ran == [[*both, "big"]] * 2 + [[*both, "slow", "big"]] * 2 + [[*both, "slow"]] * 2
    dual.eval()
    assert list(dual(batch(0)[0])) == both


def test_the_average_follows_the_view_of_its_path_with_its_own_norms(dual):
    """By the recursion on the plain models of the path, taken at the beginning of each step."""
    optimizer = dual.plan.make_optimizer(dual)
    mean = None
    for step in range(STEPS):
        dual.begin_step(step)
        now = dcil.export(dual, "dense", unfinished=True).state_dict()
        real = [name for name, tensor in now.items() if tensor.is_floating_point()]
        if mean is None:
            mean = {name: now[name].clone() for name in real}
        else:
            mean = {name: 0.75 * mean[name] + 0.25 * now[name] for name in real}
        step_once(dual, optimizer, step)
        own = dual.get_submodule("ema__slow").network.state_dict()
        for name in real:
            assert torch.allclose(own[name], mean[name], rtol=0, atol=1e-12), name
        assert own["1.num_batches_tracked"] == now["1.num_batches_tracked"]


def test_a_teacher_is_in_evaluation_mode_while_the_model_trains(dual):
    optimizer = dual.plan.make_optimizer(dual)
    step_once(dual, optimizer, 0)
    taught = [dual.networks["big"], dual.get_submodule("ema__slow").network]
    before = copy.deepcopy(taught[0].state_dict())
    dual.train()
    step_once(dual, optimizer, 1)
    assert not any(module.training for one in taught for module in one.modules())
    after = taught[0].state_dict()
    assert all(torch.equal(after[name], before[name]) for name in before)


def test_a_step_that_is_begun_twice_counts_once(dual):
    optimizer = dual.plan.make_optimizer(dual)
    for step in range(3):
        step_once(dual, optimizer, step)
    means = {n: t.clone() for n, t in dual.state_dict().items() if n.startswith("ema__")}
    state = copy.deepcopy(dual.state_dict())
    dual.load_state_dict(state)
    dual.begin_step(2)
    assert all(torch.equal(dual.state_dict()[name], means[name]) for name in means)


def test_a_dual_that_loads_the_state_goes_on_to_the_same_bits(plan, dual):
    straight = dcil.compile(plan, net(), teachers={"big": net(16)})
    optimizers = [plan.make_optimizer(one) for one in (straight, dual)]
    for step in range(STEPS):
        step_once(straight, optimizers[0], step)
    for step in range(3):
        step_once(dual, optimizers[1], step)
    again = dcil.compile(plan, net(), teachers={"big": net(16)})
    again.load_state_dict(copy.deepcopy(dual.state_dict()))
    optimizer = plan.make_optimizer(again)
    optimizer.load_state_dict(copy.deepcopy(optimizers[1].state_dict()))
    for step in range(3, STEPS):
        step_once(again, optimizer, step)
    one, other = straight.state_dict(), again.state_dict()
    assert all(torch.equal(one[name], other[name]) for name in one)


def test_a_copy_has_teachers_of_its_own(dual):
    optimizer = dual.plan.make_optimizer(dual)
    for step in range(3):
        step_once(dual, optimizer, step)
    copied = copy.deepcopy(dual)
    outputs, others = dual(batch(9)[0]), copied(batch(9)[0])
    assert list(outputs) == list(others)
    assert torch.equal(outputs["big"], others["big"])
    assert torch.equal(outputs["slow"], others["slow"])
    pointers = [
        {t.data_ptr() for m in (one.networks["big"], one) for t in m.state_dict().values()}
        for one in (dual, copied)
    ]
    assert not pointers[0] & pointers[1]


def test_teachers_move_with_the_dual(dual):
    dual.float()
    dual.begin_step(3)
    outputs = dual(batch(0)[0].float())
    assert {output.dtype for output in outputs.values()} == {torch.float32}


def test_the_exported_model_has_no_average_and_a_sequential_does_not_run_one(dual):
    optimizer = dual.plan.make_optimizer(dual)
    for step in range(3):
        step_once(dual, optimizer, step)
    model = dcil.export(dual, unfinished=True).eval()
    assert list(model.state_dict()) == list(net().state_dict())
    dual.eval()
    with torch.no_grad():
        assert torch.equal(model(batch(0)[0]), dual(batch(0)[0])["sparse"])


def test_a_missing_network_is_named_before_the_first_step(plan):
    from dcil_dsl.compiler import compile_plan

    bare = compile_plan(plan, net())
    with pytest.raises(InputError, match="the network of the teacher `big` is missing"):
        bare.begin_step(0)


def test_another_network_than_that_of_the_plan_is_refused(plan):
    with pytest.raises(InputError, match="another network than the one the plan was made with"):
        dcil.compile(plan, net(), teachers={"big": net(12)})
    with pytest.raises(InputError, match="no teacher `slow` that is a network"):
        dcil.compile(plan, net(), teachers={"slow": net(16)})


def test_a_loss_in_evaluation_says_that_its_teacher_is_missing(plan, dual):
    dual.eval()
    x, y = batch(0)
    with pytest.raises(InputError, match="there is no output of `big`"):
        dcil.loss(plan, dual(x), y, 0)


def test_a_teacher_of_another_shape_is_not_broadcast():
    from dcil_dsl.words.losses import KL, MSE

    outputs = {"sparse": torch.zeros(4, 5), "big": torch.zeros(4, 1)}
    for term in (KL(student="sparse", teacher="big"), MSE(path="sparse", teacher="big")):
        with pytest.raises(InputError, match="the teacher returns 1 for an example, the student 5"):
            term.term(outputs, None)


def test_a_compiled_step_has_the_losses_of_an_eager_one(plan, dual):
    eager = dcil.compile(plan, net(), teachers={"big": net(16)})
    fast = torch.compile(dual, backend="aot_eager", dynamic=False)
    optimizers = [plan.make_optimizer(one) for one in (eager, dual)]
    for step in range(STEPS):
        one = step_once(eager, optimizers[0], step)
        other = step_once(dual, optimizers[1], step, fast)
        assert list(one) == list(other)
        for path in one:
            assert torch.allclose(one[path], other[path], rtol=0, atol=1e-9), (step, path)
