"""A run of seconds that has everything a run can have, and a program that kills it.

    python tiny_run.py FOLDER KIND:PLACE ...

trains FOLDER/straight, and for each KIND:PLACE a run that is ended there and then resumed:
kill:N and term:N at step N, write:N at the N-th time something is put on the disk, evaluate:N at
the N-th batch of the evaluations. loop:N is no run but a row of them, FOLDER/loop0, loop1 ...,
killed N times in all at random moments and resumed after each; see FOLDER/kills.json.
"""

from __future__ import annotations

import json
import os
import random
import signal
import sys
import time
from pathlib import Path

import torch
import torch._dynamo  # seconds of import that torch.optim would start in every child
from torch import Tensor, nn

from dcil_dsl.compiler import compile_plan
from dcil_dsl.plan import plan as p
from dcil_dsl.training.machine import Options
from dcil_dsl.training.run import create_run, resume_run
from dcil_dsl.training.trainer import train
from dcil_dsl.words.losses import KL, CrossEntropy, ModelLoss
from dcil_dsl.words.optimizers import SGD
from dcil_dsl.words.rates import Cosine
from dcil_dsl.words.schedules import Cubic
from dcil_dsl.words.scores import Taylor
from dcil_dsl.words.targets import Global
from dcil_dsl.words.units import Percent, Range, Time

NUM_CLASSES, BATCH, STEPS_PER_EPOCH, NUM_EPOCHS = 6, 8, 5, 4
NUM_EXAMPLES = BATCH * STEPS_PER_EPOCH - 3  # the last batch is short


class TinyNet(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv1 = nn.Conv2d(1, 4, 3, padding=1)
        self.bn1 = nn.BatchNorm2d(4)
        self.conv2 = nn.Conv2d(4, 8, 3, stride=2)
        self.bn2 = nn.BatchNorm2d(8)
        self.drop = nn.Dropout(0.2)
        self.fc = nn.Linear(8, NUM_CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        x = self.bn1(self.conv1(x)).relu()
        x = self.bn2(self.conv2(x)).relu()
        return self.fc(self.drop(x.mean((2, 3))))


class TinyData:
    """Six blurred patterns; the batches depend on the epoch and the place alone."""

    def __init__(self, num_examples: int = NUM_EXAMPLES, seed: int = 0, before=lambda batch: None):
        generator = torch.Generator().manual_seed(seed)
        patterns = torch.randn(NUM_CLASSES, 1, 8, 8, generator=torch.Generator().manual_seed(9))
        self.labels = torch.arange(num_examples) % NUM_CLASSES
        noise = torch.randn(num_examples, 1, 8, 8, generator=generator)
        self.images = patterns[self.labels] + 0.5 * noise
        self.num_examples = num_examples
        self.num_batches = -(-num_examples // BATCH)
        self.before = before

    def epoch(self, epoch: int, start: int = 0):
        generator = torch.Generator().manual_seed(epoch)
        order = torch.randperm(self.num_examples, generator=generator).split(BATCH)
        for batch, indices in list(enumerate(order))[start:]:
            self.before(epoch * self.num_batches + batch)
            yield self.images[indices], self.labels[indices]


def tiny_plan(train: dict | None = None, group: dict | None = None, **changes) -> p.Plan:
    """DCIL on TinyNet: a ramp over 12 of 20 steps, distillation from step 7, everything on."""
    sizes = {"conv1.weight": (4, 1, 3, 3), "conv2.weight": (8, 4, 3, 3)}
    layers = tuple(
        p.Layer(parameter=name, module=name[:5], type="Conv2d", shape=shape, group=0)
        for name, shape in sizes.items()
    )
    values = dict(
        rule="tiny.prune:1",
        parameters=tuple(sizes),
        num_weights=tuple(layer.num_weights for layer in layers),
        target=Global(sparsity=Percent(0.8)),
        score="l2",
        schedule=Cubic(over=Range(Time(0, "steps"), Time(12, "steps"))),
        refresh=3,
        floors=(1, 1),
    )
    groups = (p.Group(**values | (group or {})),)
    shares = (p.Shares(kept=1.0, rest=1.0), p.Shares(pruned=1.0, rest=1.0))
    losses = [cross_entropy("sparse"), cross_entropy("dense")]
    losses += [kl("sparse", "dense", p.Window(start=7)), kl("dense", "sparse", p.Window(start=7))]
    settings = dict(
        num_epochs=NUM_EPOCHS,
        optimizer=SGD(lr=0.1, momentum=0.9, nesterov=True, weight_decay=1e-4),
        rate=Cosine(warmup=Time(4, "steps"), warmup_from=0.02),
        clip=5.0,
        ema=0.9,
        seed=3,
    )
    plan = dict(
        recipe=p.About(name="tiny", sha256="0" * 64),
        model=p.Model(classes=NUM_CLASSES),
        data=p.Data(batch_size=BATCH, channels=1),
        steps_per_epoch=STEPS_PER_EPOCH,
        num_steps=STEPS_PER_EPOCH * NUM_EPOCHS,
        layers=layers,
        groups=groups,
        paths=(p.Path(name="sparse", view="masked"), p.Path(name="dense", view="full")),
        privates=tuple(p.Private(module=name) for name in ("bn1", "bn2", "fc")),
        phases=(p.Phase(window=p.Window(), paths=("sparse", "dense"), shares=shares),),
        losses=tuple(losses),
        deploy="sparse",
        train=p.Train(**settings | (train or {})),
    )
    return p.Plan(**plan | changes)


def cross_entropy(path: str, coefficient=1.0, **settings) -> p.WeightedLoss:
    term = CrossEntropy(path=path, **settings)
    named = f", {term.output}" if term.output else ""
    return p.WeightedLoss(name=f"cross_entropy({path}{named})", coefficient=coefficient, term=term)


def kl(
    student: str, teacher: str, window: p.Window = p.Window(), coefficient=1.0, **settings
) -> p.WeightedLoss:
    term = KL(student=student, teacher=teacher, temperature=2.0, **settings)
    name = f"kl({student}<-{teacher})"
    return p.WeightedLoss(name=name, coefficient=coefficient, term=term, window=window)


def own(path: str, coefficient=1.0) -> p.WeightedLoss:
    return p.WeightedLoss(name=f"model({path})", coefficient=coefficient, term=ModelLoss(path=path))


def tiny_dual(plan: p.Plan | None = None):
    torch.manual_seed(0)
    return compile_plan(plan or tiny_plan(), TinyNet())


def tiny_train(folder: Path, plan=None, data=None, val=None, display=None, **options):
    """Train in a new run folder, or go on in it where `resume` is given; (result, dual, run)."""
    plan = plan or tiny_plan()
    resume = options.get("resume", False)
    run = resume_run(folder, plan) if resume else create_run(plan, "given", "resolved", folder)
    dual = tiny_dual(plan)
    data, val = data or TinyData(), val or TinyData(31, seed=1)
    return train(dual, data, val, run, Options(**options), display), dual, run


def end_and_resume(folder: Path, kind: str, place: int) -> None:
    """End a run at a place, in one process, and finish it in the next."""

    def at_place(number: int, act) -> None:
        if number == place:
            act()

    def end() -> None:
        os.kill(os.getpid(), signal.SIGTERM if kind in ("term", "evaluate") else signal.SIGKILL)

    def ended() -> None:
        if kind == "write":
            kill_at_write(place)
        count = iter(range(1000))
        data = TinyData(before=lambda n: at_place(n, end) if kind in ("kill", "term") else None)
        val = TinyData(
            31, seed=1, before=lambda n: at_place(next(count), end) if kind == "evaluate" else None
        )
        result, _, _ = tiny_train(folder, data=data, val=val)
        assert result.interrupted, f"{folder} was not ended"

    status = in_child(ended)
    wanted = 0 if kind in ("term", "evaluate") else -signal.SIGKILL
    assert status == wanted, f"{folder}: ended with {status}"
    assert in_child(lambda: tiny_train(folder, resume=True)) == 0, f"{folder}: resume failed"


def kill_at_write(place: int) -> None:
    """Die at the moment when the data of the N-th write are in the file, and no earlier."""
    count, sync = iter(range(1000)), os.fsync

    def fsync(descriptor: int) -> None:
        if next(count) == place:
            os.kill(os.getpid(), signal.SIGKILL)
        sync(descriptor)

    os.fsync = fsync


def kill_again_and_again(root: Path, num_kills: int) -> None:
    """Runs that are killed and resumed until they are done, and the same run straight.

    By turns at a random time, before the folder is there at the earliest, and at a random
    one of the moments when something is about to be done to a file of the run. The moments come
    from a seed; which step a time is in is up to the machine.
    """
    plan = tiny_plan(group={"score": Taylor(path="sparse", average=0.9)})
    rng, kills, number = random.Random(0), [], 0
    count = root / "count.txt"
    assert in_child(lambda: tiny_train(root / "scored", plan)) == 0
    at_file_event(root / "counted", lambda n: count.write_text(str(n)), plan)
    began = time.monotonic()
    assert in_child(lambda: tiny_train(root / "timed", plan)) == 0
    length, num_events = time.monotonic() - began, int(count.read_text())
    while len(kills) < num_kills:
        folder, done = root / f"loop{number}", False
        while not done:
            resume = (folder / "plan.json").exists()
            if len(kills) % 2 or len(kills) >= num_kills:
                seconds = 600.0 if len(kills) >= num_kills else rng.uniform(0, 0.9 * length)
                kind, moment = "time", round(seconds / length, 3)
                status = in_child(lambda: tiny_train(folder, plan, resume=resume), seconds)
            else:
                kind, moment = "file", rng.randrange(num_events)
                die = kill_at(moment)
                status = at_file_event(folder, die, plan, resume=resume)
            assert status in (0, -signal.SIGKILL), f"{folder}: ended with {status}"
            done = status == 0
            if not done:
                kills.append((folder.name, kind, moment))
        number += 1
    (root / "kills.json").write_text(json.dumps(kills))


def kill_at(moment: int):
    def die(number: int) -> None:
        if number == moment:
            os.kill(os.getpid(), signal.SIGKILL)

    return die


def at_file_event(folder: Path, act, plan, **options) -> int:
    """tiny_train in a child that calls `act` with 0, 1 ... before it does something to a file."""
    number, is_acting = 0, False

    def hook(event: str, arguments: tuple) -> None:
        nonlocal number, is_acting
        names = ("open", "os.rename", "os.remove", "os.link", "os.chmod", "os.mkdir")
        if event not in names or is_acting or folder.name not in str(arguments[0]):
            return
        is_acting = True
        act(number)
        number, is_acting = number + 1, False

    def watched() -> None:
        sys.addaudithook(hook)
        tiny_train(folder, plan, **options)

    return in_child(watched)


def in_child(work, seconds: float | None = None) -> int:
    """Do something in a process of its own; its exit status, negative for a signal.

    seconds  after which it is killed, if it is not done
    """
    child = os.fork()
    if child == 0:
        status = 70
        try:
            work()
            status = 0
        finally:
            sys.stdout.flush()
            if status:
                import traceback

                traceback.print_exc()
            os._exit(status)
    if seconds is not None:
        until = time.monotonic() + seconds
        while time.monotonic() < until:
            ended, status = os.waitpid(child, os.WNOHANG)
            if ended:
                return os.waitstatus_to_exitcode(status)
            time.sleep(0.001)
        os.kill(child, signal.SIGKILL)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


if __name__ == "__main__":
    root = Path(sys.argv[1])
    torch.set_num_threads(1)
    assert in_child(lambda: tiny_train(root / "straight")) == 0
    for case in sys.argv[2:]:
        kind, place = case.split(":")
        if kind == "loop":
            kill_again_and_again(root, int(place))
        else:
            end_and_resume(root / f"{kind}{place}", kind, int(place))
