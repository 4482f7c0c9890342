"""Metrics over all batches and all processes: torchmetrics, and ours on its base class.

In:   what a task compares, batch by batch.
Out:  Meter: the metrics of one path, and the number of examples without a finite output.
Not:  no metric is chosen (Task.compared).
"""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from importlib import import_module
from types import MappingProxyType
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional
from torchmetrics import MeanMetric, Metric
from torchmetrics.functional import spearman_corrcoef
from torchmetrics.utilities import dim_zero_cat

from dcil_dsl.diagnostics import InputError
from dcil_dsl.tasks.classification import num_correct
from dcil_dsl.words.metrics import METRICS
from dcil_dsl.words.tensors.widest import widest


class OwnMetric(Metric):  # type: ignore[misc,unused-ignore]
    """The base of the metrics that torchmetrics has not."""


class TopK(OwnMetric):
    """The share of examples whose class is among the k largest logits.

    Counts are whole numbers and the quotient is float64, so that the value is exact. torchmetrics'
    own accuracy divides in float32. A class below 0 is never right, and counts.
    """

    correct: Tensor
    total: Tensor

    def __init__(self, k: int, **more: Any):
        super().__init__(**more)
        self.k = k
        for name in ("correct", "total"):
            self.add_state(name, torch.zeros((), dtype=torch.long), dist_reduce_fx="sum")

    def update(self, logits: Tensor, classes: Tensor) -> None:
        self.correct += num_correct(logits, classes, self.k)
        self.total += len(classes)

    def compute(self) -> Tensor:
        return self.correct.cpu().double() / self.total.cpu()


class Perplexity(MeanMetric):
    """The exponential of the mean of losses in nats.

    torchmetrics' own takes scores, and a softmax in float32, in which a rare token is impossible.
    """

    def compute(self) -> Tensor:
        mean: Tensor = super().compute()
        return mean.exp()


class PairRanks(OwnMetric):
    """Spearman's correlation between the cosines of all pairs of two sets of vectors.

    ValueError for fewer than three vectors, of which the ranks say nothing.
    """

    own: list[Tensor]
    wanted: list[Tensor]

    def __init__(self, **more: Any):
        super().__init__(**more)
        for name in ("own", "wanted"):
            self.add_state(name, [], dist_reduce_fx="cat")

    def update(self, own: Tensor, wanted: Tensor) -> None:
        self.own.append(own)
        self.wanted.append(wanted)

    def compute(self) -> Tensor:
        rows = [dim_zero_cat(vectors) for vectors in (self.own, self.wanted)]
        if len(rows[0]) < 3:
            raise ValueError("it needs three examples")
        places = torch.triu_indices(len(rows[0]), len(rows[0]), offset=1, device=self.device)
        pairs = []
        for vectors in rows:
            unit = functional.normalize(vectors, dim=1)
            pairs.append((unit @ unit.T)[places[0], places[1]])
        correlation: Tensor = spearman_corrcoef(*pairs)
        return correlation


class RelativeL2(OwnMetric):
    """The root of sum (output - known)^2 / sum known^2, over all examples together."""

    error: Tensor
    size: Tensor

    def __init__(self, **more: Any):
        super().__init__(**more)
        for name in ("error", "size"):
            self.add_state(name, torch.zeros(()), dist_reduce_fx="sum")

    def update(self, output: Tensor, known: Tensor) -> None:
        self.error += (output - known).square().sum()
        self.size += known.square().sum()

    def compute(self) -> Tensor:
        return (self.error / self.size).sqrt()


class Meter:
    """The metrics of one path, on one device.

    settings  of all of its metrics, those that an output determines (Task.settings)
    """

    def __init__(self, device: torch.device, settings: Mapping[str, Any] = MappingProxyType({})):
        self.device, self.settings = device, settings
        self.metrics: dict[str, Metric] = {}
        self.num_broken = torch.zeros((), dtype=torch.long, device=device)

    def update(self, compared: Mapping[str, tuple[Any, ...]], broken: Tensor, adds: bool) -> None:
        """Add a batch: the arguments of each metric, and which examples have no finite output.

        adds  False: a batch that stands in for none, by which only the metrics become known
        """
        for name, given in compared.items():
            if name not in self.metrics:
                self.metrics[name] = self._make(name)
            if adds:
                self._add(name, given)
        if adds:
            self.num_broken += broken.sum()

    def compute(self, num_ranks: int) -> dict[str, float]:
        """The values over all batches, of all processes. All of them call it."""
        values = {}
        for name, metric in self.metrics.items():
            # Not when it computes: it would wait for processes that do not evaluate.
            metric.sync(should_sync=num_ranks > 1, distributed_available=lambda: True)
            try:
                with warnings.catch_warnings():  # of a process that had no batch of its own
                    warnings.simplefilter("ignore", UserWarning)
                    value, key = metric.compute(), METRICS[name].key
                    values[name] = float(value[key] if key else value)
                if key and values[name] < 0:  # torchmetrics: -1 stands for "nothing to find"
                    raise ValueError("no held-out example has a box")
            except ValueError as error:
                raise InputError(f"`{name}` cannot be computed: {error}") from None
        return values

    def _add(self, name: str, given: tuple[Any, ...]) -> None:
        try:
            self.metrics[name].update(*given)
        except (RuntimeError, ValueError) as error:  # such as a class number that is too large
            text = " ".join(str(error).split())[:200]
            raise InputError(f"`{name}` cannot be computed: {text}") from None

    def _make(self, name: str) -> Metric:
        record = METRICS[name]
        module, _, cls = record.at.partition(":")
        made: Metric = getattr(import_module(module), cls)(
            **record.settings, **self.settings, sync_on_compute=False
        )
        return made.set_dtype(widest(self.device)).to(self.device)
