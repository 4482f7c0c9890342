"""The run's data: batches to calibrate int8 on, and the accuracy of an exported network.

In:   a Deployed network that came from a run folder.
Out:  inputs of the training part; top-1 accuracy on the held-out part, of any function.
Not:  nothing is trained, and the held-out part calibrates nothing.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from math import isfinite
from pathlib import Path

import torch
from torch import Tensor

from dcil_dsl.data.batches import BatchLoader
from dcil_dsl.diagnostics import InputError
from dcil_dsl.diagnostics.counting import count
from dcil_dsl.exporting.artefact import Deployed
from dcil_dsl.extras.formats.graph import largest_difference
from dcil_dsl.jobs.data import make_loader, open_data
from dcil_dsl.jobs.inspect import folder_of, stored_data
from dcil_dsl.model.inputs import Inputs
from dcil_dsl.plan.plan import Plan
from dcil_dsl.plan.text import percent
from dcil_dsl.training.run import RunFolder, read_command

Run = Callable[[Inputs], list[Tensor]]  # a network in an engine
CALIBRATED_ON = 256  # examples, at least
MEASURED_ON = 2048  # examples, at most


@dataclass(frozen=True)
class RunData:
    """The data of a run. num_classes: of a network whose accuracy can be measured, else 0."""

    train: BatchLoader
    held_out: BatchLoader

    def close(self) -> None:
        self.train.close()
        self.held_out.close()

    def calibration(self) -> Iterator[Inputs]:
        """Batches of the training part, as in the first epoch."""
        seen = 0
        for batch in self.train.epoch(0):
            inputs = self.train.task.inputs(batch)
            yield inputs.map(_plain)
            seen += inputs.batch_size()
            if seen >= CALIBRATED_ON:
                return

    def accuracies(self, *functions: Run) -> tuple[int, list[float]] | None:
        """The number of held-out examples, and the top-1 accuracy of each function on them; None
        where labels or outputs are not those of a classification."""
        right, seen = [0] * len(functions), 0
        for batch in self.held_out.epoch(0):
            given = self.held_out.task.inputs(batch).map(_plain)
            labels = self.held_out.task.targets(batch)
            if not isinstance(labels, Tensor) or labels.dim() != 1 or labels.is_floating_point():
                return None
            for i, function in enumerate(functions):
                outputs = function(given)
                if len(outputs) != 1 or outputs[0].dim() != 2:
                    return None
                right[i] += int((outputs[0].argmax(1) == labels.cpu()).sum())
            seen += len(labels)
            if seen >= MEASURED_ON:
                break
        return (seen, [n / seen for n in right]) if seen else None


def report_int8(
    deployed: Deployed, inputs: Inputs, data: RunData, exact: Run, coded: Run, is_free: bool
) -> list[str]:
    """What is printed of a network in int8, next to itself in float32.

    InputError where it does not run, or gives numbers that are not finite.
    """
    difference = largest_difference(deployed, inputs, coded, is_free)
    if not isfinite(difference):
        raise InputError(f"{deployed.source} in int8 gives numbers that are not finite")
    lines = [f"largest difference to float32 on noise {difference:.1e}"]
    found = data.accuracies(exact, coded)
    if found is None:
        return lines
    seen, (before, after) = found
    shares = f"float32 {percent(round(before, 4))}, int8 {percent(round(after, 4))}"
    return [f"top-1 on {count(seen, 'held-out example')}: {shares}", *lines]


def run_of(deployed: Deployed) -> tuple[RunFolder, Plan]:
    """The run that a network came from. InputError where there is none."""
    source = Path(deployed.source)
    run = RunFolder(source) if (source / "plan.json").is_file() else folder_of(source)
    if run is None or deployed.plan is None:
        raise InputError(
            f"{deployed.source} is not in a run folder: int8 is calibrated on the data of the run",
            help="export the run folder itself",
        )
    return run, deployed.plan


def open_run_data(deployed: Deployed, batch_size: int | None = None) -> RunData:
    """InputError where the network came from no run, or its data cannot be opened."""
    run, plan = run_of(deployed)
    command = read_command(run)
    named = stored_data(run, command["data"])
    dataset = open_data(named, command["directory"], plan.data.channels, plan.data.length)
    if batch_size is not None:
        plan = plan.model_copy(
            update={"data": plan.data.model_copy(update={"batch_size": batch_size})}
        )
    cpu = torch.device("cpu")
    train, held_out = (make_loader(plan, dataset, part, cpu, 0) for part in ("train", "val"))
    train.layout = held_out.layout = torch.contiguous_format
    return RunData(train, held_out)


def _plain(tensor: Tensor) -> Tensor:
    return tensor.detach().cpu().contiguous()
