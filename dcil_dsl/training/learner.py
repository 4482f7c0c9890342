"""The gradients of a step, the same on every rank.

In:   a dual graph, its forward with the losses, the Ranks, batches.
Out:  loss and sums of a batch; after the last of a step's batches, the mean of all ranks'
      gradients in the parameters of each.
Not:  no update (trainer.py), no loss (losses.py).
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from inspect import signature

from torch import Tensor, nn
from torch.futures import Future
from torch.nn.parallel import DistributedDataParallel

from dcil_dsl.compiler.dual import Dual
from dcil_dsl.training.distributed import Ranks
from dcil_dsl.training.forward import Forward
from dcil_dsl.training.sharding import Regather, Shards

# What older versions of torch call broadcast_buffers.
SYNC_BUFFERS = "forward_sync_buffers"
if SYNC_BUFFERS not in signature(DistributedDataParallel).parameters:
    SYNC_BUFFERS = "broadcast_buffers"


class Learner(nn.Module):
    """One batch forward and backward, under DistributedDataParallel where there are several ranks.

    forward  outputs, losses and counts; forward.make_forward
    eager    what `forward` compiles, for a short last batch, which is not worth a compilation

    The losses are computed inside the module that is wrapped, so that the parameters no open loss
    reaches are known. Which these are changes with the phase and with the losses' windows only:
    each such stretch of steps has a wrapper of its own, whose graph stands still (`static_graph`).
    Buffers stay each rank's own: masks are equal by computation, which is proved at every refresh,
    and running statistics are averaged when they are read (session.merge_ranks). Where weights
    are in parts, the graph itself exchanges their gradients (sharding.py). Several backward passes
    are no affair of DistributedDataParallel's, nor are stretches of a few steps, for each of which
    it would be built anew: there the mean is taken when the last backward pass is done.

    What lies beside what in its buckets changes after its first backward pass, which a run that
    goes on has at another step. On a CPU, where it is to end with the same bits, means are
    therefore taken by exchange_in_order, wherever their rounding could tell.
    """

    def __init__(
        self,
        dual: Dual,
        forward: Forward,
        eager: Forward,
        ranks: Ranks,
        shards: Shards | None = None,
    ):
        super().__init__()
        self.dual, self.full, self.short, self.ranks = dual, forward, eager, ranks
        self.shards = shards
        windows = [part.window for part in (*dual.plan.phases, *dual.plan.losses)]
        self.alternates = any(window.every > 1 for window in windows)
        self.stretch: tuple | None = None
        self.is_fresh = self.closes = True
        self.__dict__["wrapped"] = None  # not a submodule: it contains this one

    def forward(self, images: Tensor, labels: Tensor, active: tuple[int, ...], is_short: bool):
        return (self.short if is_short else self.full)(images, labels, active)

    def learn(
        self,
        images: Tensor,
        labels: Tensor,
        active: tuple[int, ...],
        backward: Callable[[Tensor], None],
        is_short: bool,
        closes: bool,
    ) -> tuple[Tensor, Tensor]:
        """(loss, sums) of a batch whose gradients `backward` adds to those of its step.

        closes  the last batch of the step: the ranks exchange what they have added up
        """
        if self.ranks.count == 1 or self.shards or self.alternates:
            with self._hooks():
                loss, sums = self.forward(images, labels, active, is_short)
            backward(loss)
            if closes:
                self._average()
            return loss.detach(), sums
        wrapped = self._wrapped((self.dual.phase, active))
        # What its no_sync() sets. The first backward of a static graph must not be without it; the
        # mean of means that an early exchange makes is the same mean, but for rounding.
        self.closes = closes
        wrapped.require_backward_grad_sync = closes or self.is_fresh
        loss, sums = wrapped(images, labels, active, is_short)
        backward(loss)
        self.is_fresh = False
        return loss.detach(), sums

    def _hooks(self) -> AbstractContextManager:
        return Regather.hooks() if self.shards else nullcontext()

    def _average(self) -> None:
        if self.shards:  # what is in parts the graph has exchanged
            self.shards.average_others(dict(self.dual.trainable()))
            return
        gradients = (parameter.grad for _, parameter in self.dual.trainable())
        self.ranks.average(gradient for gradient in gradients if gradient is not None)

    def _wrapped(self, stretch: tuple) -> DistributedDataParallel:
        if stretch != self.stretch:
            self.stretch, self.is_fresh = stretch, True
            self.__dict__["wrapped"] = None  # the old one's buckets go first
            self.__dict__["wrapped"] = DistributedDataParallel(
                self,
                static_graph=True,
                init_sync=False,
                gradient_as_bucket_view=True,
                **{SYNC_BUFFERS: False},
            )
            on_host = next(self.dual.parameters()).device.type == "cpu"
            if on_host and (self.ranks.count > 2 or self.dual.plan.train.accumulate > 1):
                self.wrapped.register_comm_hook(self, exchange_in_order)
        return self.__dict__["wrapped"]


def exchange_in_order(learner: Learner, bucket):
    """The mean of a bucket of gradients, in the order of the ranks; their own where no batch of the
    step is the last. Without annotations of types, which torch would compare as text."""
    gradients = bucket.buffer()
    if learner.closes:
        gradients.copy_(learner.ranks.mean_in_order(gradients))
    exchanged = Future()
    exchanged.set_result(gradients)
    return exchanged
