"""The trackers: how each library takes a run. `TRACKERS` is the table.

In:   the name of a run, its settings, the numbers of each epoch, the files at the end.
Out:  calls of mlflow, wandb or trackio, which is imported when a tracker is made.
Not:  nothing is caught here (session.py). Servers, projects and keys come from the environment
      variables of the library.
"""

from __future__ import annotations

import os
import re
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import Any, Literal, Protocol
from uuid import uuid4

from dcil_dsl.training.events import Setting

PROJECT = "dcil"  # where the environment names no other
End = Literal["finished", "interrupted", "failed"]


class Tracker(Protocol):
    """One run in a tracker. key: what the tracker finds it by when the run is resumed."""

    key: str

    def log(self, numbers: Mapping[str, float], step: int) -> None:
        """Send the numbers of an epoch."""

    def end(self, files: Sequence[Path], how: End) -> None:
        """Send the files and close the run."""


class Mlflow:
    """A run of MLflow. MLFLOW_TRACKING_URI and MLFLOW_EXPERIMENT_NAME say where."""

    STATUS = MappingProxyType({"finished": "FINISHED", "interrupted": "KILLED", "failed": "FAILED"})

    def __init__(self, name: str, settings: Mapping[str, Setting], key: str | None) -> None:
        from mlflow.entities import Metric, Param
        from mlflow.tracking import MlflowClient

        self.client, self.metric = MlflowClient(), Metric
        if key is not None:
            self.key = key
            self.client.update_run(key, status="RUNNING")
            return
        experiment = os.environ.get("MLFLOW_EXPERIMENT_NAME", PROJECT)
        found = self.client.get_experiment_by_name(experiment)
        place = found.experiment_id if found else self.client.create_experiment(experiment)
        self.key = self.client.create_run(place, run_name=name).info.run_id
        params = [Param(_mlflow_name(n), str(value)[:6000]) for n, value in settings.items()]
        for start in range(0, len(params), 100):  # as many as one request takes
            self.client.log_batch(self.key, params=params[start : start + 100])

    def log(self, numbers: Mapping[str, float], step: int) -> None:
        now = int(time.time() * 1000)
        metrics = [self.metric(_mlflow_name(n), one, now, step) for n, one in numbers.items()]
        for start in range(0, len(metrics), 1000):  # as many as one request takes
            self.client.log_batch(self.key, metrics=metrics[start : start + 1000])

    def end(self, files: Sequence[Path], how: End) -> None:
        for file in files:
            self.client.log_artifact(self.key, str(file))
        self.client.set_terminated(self.key, self.STATUS[how])


def _mlflow_name(name: str) -> str:
    """The name with the characters that MLflow takes: "kl(a<-b)" is "kl:a from b"."""
    for mark, instead in (("(", ":"), (")", ""), ("<-", " from "), (",", "")):
        name = name.replace(mark, instead)
    return re.sub(r"[^\w\-. :/]", "_", name)


class Wandb:
    """A run of Weights & Biases. WANDB_MODE, WANDB_PROJECT and WANDB_ENTITY say where."""

    def __init__(self, name: str, settings: Mapping[str, Setting], key: str | None) -> None:
        import wandb

        self.wandb = wandb
        self.run: Any = wandb.init(
            project=os.environ.get("WANDB_PROJECT", PROJECT),
            name=name,
            config=dict(settings),
            id=key,
            resume="allow",
        )
        self.key = str(self.run.id)
        # Steps of the optimizer: wandb's own count refuses a step that comes again.
        self.run.define_metric("*", step_metric="step")

    def log(self, numbers: Mapping[str, float], step: int) -> None:
        self.run.log({**numbers, "step": step})

    def end(self, files: Sequence[Path], how: End) -> None:
        artifact = self.wandb.Artifact(f"run-{self.key}", type="run")
        for file in files:
            artifact.add_file(str(file))
        self.run.log_artifact(artifact)
        self.run.finish(exit_code=0 if how == "finished" else 1)


class Trackio:
    """A run of trackio. TRACKIO_PROJECT and TRACKIO_DIR say where."""

    def __init__(self, name: str, settings: Mapping[str, Setting], key: str | None) -> None:
        import trackio

        self.trackio = trackio
        self.key = key or f"{name}-{uuid4().hex[:8]}"  # trackio finds runs by their names
        trackio.init(
            project=os.environ.get("TRACKIO_PROJECT", PROJECT),
            name=self.key,
            config=dict(settings),
            resume="allow",
            embed=False,  # no page in a notebook
        )

    def log(self, numbers: Mapping[str, float], step: int) -> None:
        self.trackio.log(dict(numbers), step=step)

    def end(self, files: Sequence[Path], how: End) -> None:
        artifact = self.trackio.Artifact(f"run-{self.key}", type="run")
        for file in files:
            artifact.add_file(str(file))
        self.trackio.log_artifact(artifact)
        self.trackio.finish()


TRACKERS: Mapping[str, Callable[[str, Mapping[str, Setting], str | None], Tracker]] = (
    MappingProxyType({"mlflow": Mlflow, "wandb": Wandb, "trackio": Trackio})
)
