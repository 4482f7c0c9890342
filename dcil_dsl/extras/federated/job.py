"""A recipe trained in federated rounds, by Flower's simulation engine or one client after another.

In:   a recipe, a model, data, how many clients there are and how long a round is.
Out:  Federated: the Plan, the trained Dual, a line for each round.
Not:  the arithmetic of a round (rounds.py); no run folder, and nothing to resume.

The engine is an extra, pip install "dcil-dsl[federated]": each client is a Flower ClientApp, which
Ray runs in processes of its own; sampling, sending and FedAvg are Flower's. A client's examples
are every N-th of the training part, of N clients, after one shuffle by the recipe's seed: equal
shares, alike distributed.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor, nn

from dcil_dsl.compiler import compile_plan
from dcil_dsl.compiler.dual import Dual
from dcil_dsl.data import Dataset, Loader
from dcil_dsl.data.batches import BatchLoader
from dcil_dsl.data.chance import generator_at
from dcil_dsl.data.dataset import Tensors
from dcil_dsl.diagnostics import InputError
from dcil_dsl.diagnostics.counting import count
from dcil_dsl.extras.federated.rounds import Server, State, average, train_client
from dcil_dsl.jobs.data import make_loader, open_data, refuse_other_tasks
from dcil_dsl.jobs.prepare import Prepared, load_recipe, prepare, warn_in_python
from dcil_dsl.lang.recipe import Recipe
from dcil_dsl.plan.plan import Plan
from dcil_dsl.training.evaluate import evaluate
from dcil_dsl.training.sparsity import check_sparsity
from dcil_dsl.training.step import stop_if_no_finite_outputs

Line = dict[str, Any]
Finish = Callable[[int, Mapping[str, Tensor]], None]  # given the number of a round and its average
WITHOUT_FLOWER = 'pip install "dcil-dsl[federated]", or engine="here"'


@dataclass(frozen=True)
class Federated:
    """`rounds`: for each the step it ended at, top-1 of each path and the sparsity in force."""

    plan: Plan
    dual: Dual
    rounds: list[Line] = field(default_factory=list)


@dataclass(frozen=True)
class Clients:
    """What every client has: plain data and a module, so that it can be sent to a process."""

    plan: Plan
    model: nn.Module
    dataset: Dataset
    count: int
    local_steps: int

    def loader(self, client: int) -> BatchLoader:
        """The batches of a client's own examples."""
        mine = share_out(self.dataset, client, self.count, self.plan.train.seed)
        return make_loader(self.plan, mine, "train", torch.device("cpu"), workers=0)

    def train(self, client: int, state: Mapping[str, Tensor], number: int) -> tuple[State, int]:
        """The client's state after round `number`, counted from 0, and its number of examples."""
        loader, step = self.loader(client), number * self.local_steps
        batches = _stretch(loader, step, self.local_steps)
        return train_client(self.dual, state, batches, step, client), loader.num_examples

    @cached_property
    def dual(self) -> Dual:
        """Compiled once per process: a round begins with all of the state that it is sent."""
        return compile_plan(self.plan, self.model)


def federate(
    recipe: str | Path | Recipe,
    model: str | nn.Module,
    data: str | Dataset,
    *,
    clients: int,
    local_steps: int | None = None,
    fraction: float = 1.0,
    engine: Literal["flower", "here"] = "flower",
    overrides: Mapping[str, str] = {},
    directory: str | Path | None = None,
    note: Callable[[Line], None] = lambda line: None,
) -> Federated:
    """Train a recipe on clients that each have a part of the data.

    model        a SPEC or a module, which is not changed
    data         a name or a Dataset, whose training part lies in memory
    local_steps  how many steps a client takes between two averages; None: an epoch, which is one
                 over a client's own examples
    fraction     of the clients, drawn anew for each round; at least one
    note         called with the line of each round

    Raises RecipeError, InputError. On the CPU.
    """
    recipe = load_recipe(recipe, overrides, warn_in_python)
    dataset = open_data(data, directory, recipe.data.channels)
    refuse_other_tasks(dataset, "a federated run")
    if not isinstance(dataset.train, Tensors):
        raise InputError(f"the images of {dataset.name} are read from files, clients hold theirs")
    if not 0 < clients <= len(dataset.train):
        raise InputError(
            f"{count(len(dataset.train), 'example')} cannot be shared out to "
            f"{count(clients, 'client')}"
        )
    if not 0 < fraction <= 1:
        raise InputError(f"a fraction of {fraction:g} of the clients: more than 0, at most 1")
    prepared = _prepare(recipe, model, dataset, clients)
    plan, built = prepared.plan, prepared.traced.model
    for teacher in plan.teachers:
        raise InputError(
            f"`{teacher.network.called}` of path `{teacher.name}`: the clients of a federated run "
            "have no teachers",
            help="leave it out of the recipe",
        )
    local_steps = plan.steps_per_epoch if local_steps is None else local_steps
    server = Server(compile_plan(plan, built), local_steps)
    result = Federated(plan, server.dual)
    val = make_loader(plan, dataset, "val", torch.device("cpu"), workers=0)

    def finish(number: int, mean: Mapping[str, Tensor]) -> None:
        server.end(mean)
        step, accuracies = (number + 1) * local_steps, evaluate(server.dual, val)
        assert (
            accuracies is not None
        )  # None after a signal that a Wish has heard, and there is none
        stop_if_no_finite_outputs(plan, accuracies, step - 1, val.num_examples)
        line = {
            "round": number + 1,
            "step": step,
            "top1": {path: accuracy["top1"] for path, accuracy in accuracies.items()},
            "sparsity": check_sparsity(server.dual, number * local_steps).measured,
        }
        result.rounds.append(line)
        note(line)

    here = Clients(plan, built, dataset, clients, local_steps)
    run = {"flower": _with_flower, "here": _one_after_another}.get(engine)
    if run is None:
        raise InputError(f"there is no engine `{engine}`", help="flower or here")
    run(server, here, max(1, int(fraction * clients)), finish)
    return result


def share_out(dataset: Dataset, client: int, count: int, seed: int) -> Dataset:
    """The same data set with only a client's part of the training images."""
    order = torch.randperm(len(dataset.train), generator=generator_at(seed, "clients"))
    mine = order[client::count]
    train = Tensors(dataset.train.images[mine], dataset.train.labels[mine])
    return replace(dataset, train=train)


def _prepare(recipe: Recipe, model: str | nn.Module, dataset: Dataset, clients: int) -> Prepared:
    """The recipe resolved for the model; an epoch is that of the first client, the largest."""
    from dcil_dsl.plan.resolve import resolve_data

    data = resolve_data(recipe.data)
    loader = Loader(
        share_out(dataset, 0, clients, recipe.train.seed),
        "train",
        batch_size=data.batch_size,
        image_size=data.image_size,
        channels=data.channels,
        augment=data.augment,
    )
    example = next(iter(loader.epoch(0)))[0][:1]
    return prepare(
        recipe,
        model,
        warn=warn_in_python,
        note=lambda text: None,
        example=example,
        steps_per_epoch=loader.num_batches,
        classes=len(dataset.classes),
        data=dataset.name,
    )


def _stretch(loader: BatchLoader, step: int, count: int) -> Iterator[tuple[Tensor, Tensor]]:
    """The batches of `count` steps from `step` on, over as many of the client's epochs."""
    while count:
        epoch, start = divmod(step, loader.num_batches)
        for batch in loader.epoch(epoch, start):
            yield batch
            step, count = step + 1, count - 1
            if not count:
                return


# -- engines -------------------------------------------------------------------------------------


def _one_after_another(server: Server, clients: Clients, size: int, finish: Finish) -> None:
    for number in range(server.num_rounds):
        state = server.begin(number)
        draw = generator_at(clients.plan.train.seed, "round", number)
        chosen = torch.randperm(clients.count, generator=draw)[:size].tolist()
        answers = [clients.train(client, state, number) for client in chosen]
        finish(number, average(*map(list, zip(*answers, strict=True))))


def _with_flower(server: Server, clients: Clients, size: int, finish: Finish) -> None:
    """The same rounds as Flower's strategy and client app, in its simulation."""
    os.environ.setdefault("FLWR_TELEMETRY_ENABLED", "0")  # nothing is sent to anybody
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    try:
        from flwr.app import ArrayRecord, Message, MetricRecord, RecordDict
        from flwr.clientapp import ClientApp
        from flwr.serverapp import ServerApp
        from flwr.serverapp.strategy import FedAvg
        from flwr.simulation import run_simulation
    except ImportError as error:
        raise InputError(f"Flower cannot be imported: {error}", help=WITHOUT_FLOWER) from None

    class Rounds(FedAvg):  # type: ignore[misc]
        """FedAvg, whose average goes through the server's masks before it is sent again."""

        def aggregate_train(self, server_round: int, replies: Iterable[Any]) -> tuple[Any, Any]:
            replies = list(replies)
            failed = next((reply for reply in replies if reply.has_error()), None)
            if failed is not None or not replies:
                why = failed.error.reason if failed else "no client answered"
                raise RuntimeError(f"round {server_round}: {why}")
            arrays, metrics = super().aggregate_train(server_round, replies)
            finish(server_round - 1, arrays.to_torch_state_dict())
            if server_round < server.num_rounds:
                arrays = ArrayRecord(server.begin(server_round))
            return arrays, metrics

    client_app, server_app = ClientApp(), ServerApp()

    def train(message: Any, context: Any) -> Any:
        torch.set_num_threads(1)  # of this client's process
        state = message.content["arrays"].to_torch_state_dict()
        number = message.content["config"]["server-round"] - 1
        made, examples = clients.train(context.node_config["partition-id"], state, number)
        metrics = MetricRecord({"num-examples": examples})
        content = RecordDict({"arrays": ArrayRecord(made), "metrics": metrics})
        return Message(content, reply_to=message)

    def main(grid: Any, context: Any) -> None:
        strategy = Rounds(
            fraction_train=size / clients.count,
            fraction_evaluate=0.0,
            min_train_nodes=size,
            min_available_nodes=clients.count,
        )
        strategy.start(grid, ArrayRecord(server.begin(0)), num_rounds=server.num_rounds)

    client_app.train()(train)
    server_app.main()(main)
    config = {"client_resources": {"num_cpus": 1, "num_gpus": 0.0}}
    run_simulation(server_app, client_app, num_supernodes=clients.count, backend_config=config)
