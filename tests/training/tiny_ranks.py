"""The run of seconds on several processes, which talk over gloo.

In:   a program for each rank; it is forked, so that torch is imported once.
Out:  what each rank returned, as text, or how it ended.
Not:  no test.
"""

from __future__ import annotations

import os
import signal
import socket
import sys
import time
import traceback
from dataclasses import replace
from pathlib import Path

import torch
from tiny_run import BATCH, TinyData, tiny_plan
from torch import Tensor, nn

from dcil_dsl.cli.errors import status_of
from dcil_dsl.compiler import compile_plan
from dcil_dsl.data.loader import share_of
from dcil_dsl.plan import plan as p
from dcil_dsl.training.distributed import joined_ranks
from dcil_dsl.training.machine import Options
from dcil_dsl.training.run import create_run, resume_run
from dcil_dsl.training.trainer import train


class PlainNet(nn.Module):
    """Without batch norm a batch in parts has the gradients of the whole."""

    def __init__(self):
        super().__init__()
        self.conv1 = nn.Conv2d(1, 4, 3, padding=1)
        self.conv2 = nn.Conv2d(4, 8, 3, stride=2)
        self.norm = nn.GroupNorm(2, 8)
        self.fc = nn.Linear(8, 6)

    def forward(self, x: Tensor) -> Tensor:
        x = self.conv2(self.conv1(x).relu())
        return self.fc(self.norm(x).relu().mean((2, 3)))


class RankData(TinyData):
    """TinyData of which each rank has its stretch, as data.Loader gives it."""

    def __init__(self, ranks, num_examples: int = 37, seed: int = 0, before=lambda batch: None):
        super().__init__(num_examples, seed, before)
        self.ranks, self.is_training = ranks, seed == 0

    def epoch(self, epoch: int, start: int = 0):
        for images, labels in super().epoch(epoch, start):
            few = len(labels) < min(2, BATCH // self.ranks.count) * self.ranks.count
            if not (self.is_training and few):
                first, last = share_of(len(labels), self.ranks.rank, self.ranks.count)
                images, labels = images[first:last], labels[first:last]
            yield images, labels


def plain_plan(train: dict | None = None, **changes) -> p.Plan:
    privates = tuple(p.Private(module=name) for name in ("norm", "fc"))
    return tiny_plan(train, privates=privates, **changes)


def rank_train(folder: Path, ranks, plan=None, net=PlainNet, before=lambda batch: None, **more):
    """Train in a new folder, or go on in one that is there; (result, dual)."""
    plan = plan or plain_plan()

    def make() -> str:
        there = (folder / "plan.json").exists()
        return str((resume_run(folder, plan) if there else create_run(plan, "", "", folder)).path)

    ranks.from_first(make)
    torch.manual_seed(0)
    dual = compile_plan(plan, net())
    run = resume_run(folder, plan)
    data, val = RankData(ranks, before=before), RankData(ranks, 31, seed=1)
    options = replace(Options(ranks=ranks, resume=True), **more)
    return train(dual, data, val, run, options), dual


def on_ranks(folder: Path, count: int, work) -> list[int]:
    """Run work(ranks) on `count` forked processes; the status of each, as `dcil` would end.

    What a rank says lies in folder/said.<rank>. None is left after a minute.
    """
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    children = [_fork(folder, count, rank, port, work) for rank in range(count)]
    status, until = {}, time.monotonic() + 60
    while len(status) < count:
        for child in children:
            if child not in status:
                if time.monotonic() > until:
                    os.kill(child, signal.SIGKILL)
                done, how = os.waitpid(child, 0 if time.monotonic() > until else os.WNOHANG)
                if done:
                    status[child] = os.waitstatus_to_exitcode(how)
        time.sleep(0.01)
    return [status[child] for child in children]


def said(folder: Path, rank: int) -> str:
    return (folder / f"said.{rank}").read_text()


def _fork(folder: Path, count: int, rank: int, port: int, work) -> int:
    child = os.fork()
    if child:
        return child
    os.environ |= {
        "RANK": str(rank),
        "WORLD_SIZE": str(count),
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(port),
        "LOCAL_RANK": str(rank),
        "LOCAL_WORLD_SIZE": str(count),
    }
    status = 70
    try:
        torch.set_num_threads(1)
        descriptor = os.open(folder / f"said.{rank}", os.O_CREAT | os.O_WRONLY | os.O_TRUNC)
        os.dup2(descriptor, 2)
        sys.stderr = os.fdopen(2, "w", buffering=1)
        with joined_ranks() as ranks:
            work(ranks)
        status = 0
    except BaseException as error:
        try:
            status = status_of(error, concise=False)
        except BaseException:
            traceback.print_exc()
    finally:
        sys.stderr.flush()
        os._exit(status)
