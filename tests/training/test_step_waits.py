"""Between two changes of the masks the host never waits for a GPU: fake tensors tell without one.

tests/gpu/test_cuda_waits.py asks CUDA itself.
"""

from types import SimpleNamespace

import pytest
import torch
from support.fake_gpu import elsewhere, fake_gpu
from torch import nn

from dcil_dsl.compiler import compile_plan
from dcil_dsl.lang import loads
from dcil_dsl.model import trace_model
from dcil_dsl.plan.resolve import resolve_recipe
from dcil_dsl.plan.schedule import is_refresh
from dcil_dsl.tasks import IMAGES
from dcil_dsl.training import result, trainer
from dcil_dsl.training import session as sessions
from dcil_dsl.training.machine import Options
from dcil_dsl.training.run import create_run
from dcil_dsl.training.step import Wrapper

BATCH, STEPS_PER_EPOCH = 4, 6
RECIPE = """
language 1
data synthetic {{ batch_size = 4  image_size = 8 }}
layers norms = BatchNorm2d
prune {layers} to {target} {{ refresh = 4 steps  {rule} }}
mix {{
  path sparse = {view}
  path dense  = full
  update kept by sparse
  update pruned by dense
  private BatchNorm2d, last Linear
  loss cross_entropy(sparse)
  loss cross_entropy(dense)
  loss kl(student=sparse, teacher=dense, temperature=2)
  deploy sparse
}}
train {{ epochs = 2ep  optimizer = {optimizer}  {train} }}
"""
SGD = "sgd(lr=0.1, momentum=0.9, nesterov=true)"
PLAIN = dict(layers="Conv2d", target="global(80%)", rule="", view="masked", optimizer=SGD, train="")


class Net(nn.Sequential):
    def __init__(self):
        super().__init__(
            nn.Conv2d(3, 8, 3),
            nn.BatchNorm2d(8),
            nn.ReLU(),
            nn.Conv2d(8, 8, 3),
            nn.BatchNorm2d(8),
            nn.ReLU(),
            nn.AdaptiveAvgPool2d(1),
            nn.Flatten(),
            nn.Linear(8, 10),
        )


class Batches:
    """On the device, where each is made anew."""

    task = IMAGES

    def __init__(self, num_batches):
        self.num_batches, self.num_examples = num_batches, num_batches * BATCH

    def epoch(self, epoch, start=0):
        for _ in range(start, self.num_batches):
            images = torch.empty(BATCH, 3, 8, 8, device="cuda")
            yield images, torch.zeros(BATCH, dtype=torch.long, device="cuda")


def waits_of(text, options, folder):
    """(waits of each step whose masks stand, of each that moves them, by place; the number of
    steps that move them).

    What needs numbers is left out: whether masks and losses are right, and checkpoints.
    """
    traced = trace_model(Net())
    plan = resolve_recipe(loads(text), traced, steps_per_epoch=STEPS_PER_EPOCH)
    dual = compile_plan(plan, traced)
    sparsity = dict(
        asked=0.0,
        measured=0.0,
        pruned=0.0,
        at_floor=(),
        at_ceiling=(),
        rules=(),
        num_kept=1,
        num_weights=1,
        counts="weights",
    )
    result.check_sparsity = lambda *more: SimpleNamespace(**sparsity)
    sessions.save_checkpoint = sessions.stop_if_no_finite_loss = lambda *more: None
    sessions.stop_if_no_finite_weights = sessions.check_fit = lambda *more: None
    trainer.stop_if_no_finite_outputs = lambda *more: None
    # Every 50 steps, and at the end of an epoch.
    sessions.show_step = sessions.check_deferred = result.check_deferred = lambda now: None
    still, moving, moves, current = {}, {}, set(), None

    def noted(work):
        """`work`, with what it waits for counted for the step of the session that began last."""

        def note(*given):
            nonlocal current
            current = given[0] if isinstance(given[0], sessions.Session) else current
            step = current.state.position.step
            moved = any(is_refresh(group, step) for group in plan.groups)
            before = waits.places.copy()
            done = work(*given)
            into = moving if moved else still
            if moved:
                moves.add(step)
            for place, count in (waits.places - before).items():
                into[place] = into.get(place, 0) + count
            return done

        return note

    class Noted(Wrapper):
        def gradients(self, batch):
            return noted(self.inner.gradients)(batch)

        def apply(self, rate):
            noted(self.inner.apply)(rate)

    wrap = sessions.wrap_step
    sessions.wrap_step = lambda step: Noted(wrap(step))
    for name in ("begin_batch", "count_batch", "end_step"):
        setattr(trainer, name, noted(getattr(trainer, name)))
    loaders = Batches(STEPS_PER_EPOCH * plan.train.accumulate), Batches(2)
    with fake_gpu(dual) as waits:
        run = create_run(plan, text, text, folder / "run")
        trainer.train(dual, *loaders, run, Options(device="cuda", **options))
    assert len(moves) < plan.num_steps
    return still, moving, len(moves)


def recipe(**changed):
    return RECIPE.format(**PLAIN | changed)


CASES = {
    "fp32": (recipe(), {}),
    "bf16": (recipe(), dict(precision="bf16", channels_last=True)),
    "fp16": (recipe(), dict(precision="fp16")),
    "adamw": (recipe(optimizer="adamw(lr=0.1)"), {}),
    "clip, ema, accumulate": (recipe(train="clip = 1.0  ema = 0.9  accumulate = 2"), {}),
    "movement": (recipe(rule="score = movement"), dict(precision="fp16")),
    "average of taylor": (recipe(rule="score = taylor(average = 0.9)"), {}),
    "soft threshold": (recipe(view="soft_threshold"), {}),
    "filters": (recipe(target="global(80%, granularity=filter(ties=none))"), {}),
    "powers": (recipe(rule="param = power(alpha=2)  penalty = [norm(pruned, 1e-3)]"), {}),
    "checkpointed": (recipe(), dict(checkpoint_activations=True)),
    "late phase": (recipe(train="average = late_phase(norms, copies=2, start=50% run)"), {}),
    "heun": (recipe(train="integrator = heun()"), {}),
    "balanced": (recipe(train="balance = inverse_dirichlet(every=2 steps, average=0.5)"), {}),
}


@pytest.mark.parametrize("case", CASES)
def test_a_step_waits_once_where_masks_of_a_global_budget_move_and_else_never(case, tmp_path):
    text, options = CASES[case]
    still, moving, num_moves = elsewhere(waits_of, text, options, tmp_path)
    assert still == {}
    assert 0 < sum(moving.values()) <= num_moves


@pytest.mark.parametrize(
    "rule",
    [
        dict(target="80%"),
        dict(target="uniform(80%, granularity=filter(ties=none))"),
        dict(target="2:4", layers='Conv2d in "3"'),
    ],
)
def test_masks_of_each_layer_alone_move_without_a_wait(rule, tmp_path):
    still, moving, _ = elsewhere(waits_of, recipe(**rule), {}, tmp_path)
    assert still == moving == {}


def test_a_reserve_is_a_budget_of_its_own(tmp_path):
    still, moving, num_moves = elsewhere(waits_of, recipe(rule="reserve = 10%"), {}, tmp_path)
    assert still == {}
    assert sum(moving.values()) <= 2 * num_moves


@pytest.mark.parametrize(("target", "most"), [("80%", 0), ("global(80%)", 2)])
def test_masks_that_drop_and_grow_wait_once_for_what_drops_and_once_for_what_grows(
    target, most, tmp_path
):
    text = recipe(target=target, rule="regrow = gradient(30%, stop=75% run)")
    still, moving, num_moves = elsewhere(waits_of, text, {}, tmp_path)
    assert still == {}
    assert sum(moving.values()) <= most * num_moves


def waits_of_faults():
    with fake_gpu() as waits:
        ones = torch.ones(3, device="cuda")
        ones.sum().item()
        torch.tensor(1.0, device="cuda")
        ones + torch.ones(3, device="cuda")
        with pytest.raises(RuntimeError, match="device"):
            ones + torch.ones(3)
    return sum(waits.places.values())


def test_a_number_read_or_sent_is_a_wait_and_tensors_of_both_sides_do_not_meet():
    assert elsewhere(waits_of_faults) == 2
