"""Federated rounds: clients train the recipe on their own parts, a server averages them.

In:   a Dual, the length of a round in steps, the batches of a client.
Out:  Server: the state that it sends, and its average of the answers; train_client, a client's
      round.
Not:  no data, no network and no process (job.py).

Round r covers the steps r L .. (r + 1) L - 1 of the plan, for every client the same:

    server   moves the masks that are due at r L, sends weights, statistics and masks
    client   W_i <- W, then L ordinary steps of the recipe on its own batches: gradients at what its
             paths see, applied to all of its weights; a fresh optimizer each round
    server   W <- sum n_i W_i / sum n_i, n_i the examples of client i: FedAvg, McMahan et al. 2017,
             arXiv:1602.05629; with `forget = true` W <- W m, so that what it sends is sparse

With `path sparse = masked`, `update kept, pruned by sparse`, `forget`, a ramp and a rising
norm these are the rounds of FedDIP, Long et al. 2023, arXiv:2309.06805, as in the authors' code
(EricLoong/feddip), but for two things. Their masks of the first round are random in the
shares of ERK, here they are by magnitude; their masks of round r have the sparsity that the ramp
has at round r - 1, here at r.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

import torch
from torch import Tensor
from torch.nn.utils import clip_grad_norm_

from dcil_dsl.compiler.dual import Dual
from dcil_dsl.data.chance import seed_of
from dcil_dsl.diagnostics.counting import count
from dcil_dsl.diagnostics.errors import InputError
from dcil_dsl.model.side_effects import drawn_apart
from dcil_dsl.plan.plan import Plan, TrainPlan
from dcil_dsl.plan.schedule import is_refresh
from dcil_dsl.training.losses import refuse_constant, total_loss
from dcil_dsl.training.optim import set_rate

State = dict[str, Tensor]
# Settings of `train` that a client's plain step takes. What others ask for it would leave out.
TAKEN = {"num_epochs", "optimizer", "rate", "groups", "penalties", "clip", "seed"}


def check_rounds(plan: Plan, local_steps: int) -> int:
    """How many rounds the plan has. InputError where a round is not what the recipe asks."""
    if local_steps < 1 or plan.num_steps % local_steps:
        raise InputError(
            f"{count(plan.num_steps, 'step is', 'steps are')} not a whole number of rounds of "
            f"{count(local_steps, 'step')}",
            help="choose a divisor of it, or another number of epochs",
        )
    plain = TrainPlan(num_epochs=1, optimizer=plan.train.optimizer, rate=plan.train.rate)
    for name in TrainPlan.model_fields:
        if name not in TAKEN and getattr(plan.train, name) != getattr(plain, name):
            raise InputError(f"federated rounds do not go with `{name}` of the recipe's `train`")
    if plan.train.rate.evaluates:
        raise InputError("federated rounds do not go with an `lr` that follows from evaluations")
    for group in plan.groups:
        if group.buffered_score is not None or group.regrow is not None:
            raise InputError(
                f"{group.rule}: masks of federated rounds follow from the weights alone",
                help="`score = magnitude` or `l2`, without `average` and `regrow`",
            )
        due = (step for step in range(plan.num_steps) if is_refresh(group, step))
        odd = next((step for step in due if step % local_steps), None)
        if odd is not None:
            raise InputError(
                f"{group.rule}: masks move at step {odd:,}, within a round of "
                f"{count(local_steps, 'step')}",
                help="give `refresh`, the ends of the ramp and `freeze` as multiples of a round",
            )
    return plan.num_steps // local_steps


class Server:
    """The network that the rounds train; `dual` holds its state after the latest round."""

    def __init__(self, dual: Dual, local_steps: int):
        self.dual, self.local_steps = dual, local_steps
        self.num_rounds = check_rounds(dual.plan, local_steps)

    def begin(self, number: int) -> State:
        """The complete state to send to the clients in round `number`, counted from 0."""
        self.dual.begin_step(number * self.local_steps)
        self.dual.penalties_due = None  # the server takes no step that would need them
        return {name: value.detach().clone() for name, value in self.dual.state_dict().items()}

    @torch.no_grad()
    def end(self, average: Mapping[str, Tensor]) -> None:
        """Load the average of the states of the clients."""
        state = self.dual.state_dict()
        for name, value in average.items():
            state[name].copy_(value)
        for group in self.dual.plan.groups:
            for name in group.parameters if group.forget else ():
                self.dual.get_parameter(name).masked_fill_(~self.dual.masks[name], 0.0)


def train_client(
    dual: Dual,
    state: Mapping[str, Tensor],
    batches: Iterable[tuple[Tensor, Tensor]],
    step: int,
    client: int = 0,
) -> State:
    """The weights and statistics of a client after the batches of its round, whose first step is
    `step`. Masks and counts are the server's and stay there.

    client  its number: dropout and its like draw numbers of their own on each
    """
    dual.load_state_dict(state)
    dual.train()
    plan = dual.plan
    optimizer = plan.make_optimizer(dual)
    for at, (images, labels) in enumerate(batches, start=step):
        dual.begin_step(at)
        set_rate(optimizer, plan.lr_at(at))
        optimizer.zero_grad(set_to_none=True)
        with drawn_apart(seed_of(plan.train.seed, client, at)):
            loss = total_loss(plan, dual(images), labels, at)
            refuse_constant(loss)
            loss.backward()
        if plan.train.clip is not None:
            clip_grad_norm_([p for _, p in dual.trainable()], plan.train.clip)
        dual.add_penalties(at)
        optimizer.step()
    return {
        name: value.detach().clone()
        for name, value in dual.state_dict().items()
        if value.is_floating_point()
    }


def average(states: Sequence[State], examples: Sequence[int]) -> State:
    """sum n_i W_i / sum n_i, name by name."""
    shares = [count / sum(examples) for count in examples]
    mean = {name: shares[0] * value for name, value in states[0].items()}
    for share, state in zip(shares[1:], states[1:], strict=True):
        mean = {name: value + share * state[name] for name, value in mean.items()}
    return mean
