"""The metrics that `expect` may name and that a run reports, one record each: `METRICS`.

In:   a name.
Out:  its Metric: how its values are written, and the class that measures it.
Not:  no torch; a class is imported when something is measured. Which metrics a run has, its task
      says (tasks/).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any


@dataclass(frozen=True)
class Metric:
    """One metric.

    at        "module:class" of a torchmetrics.Metric, called with `settings`; "" where a run
              counts it in another way
    is_share  whether it is a fraction, which people read and write as a percentage
    less_is_better  whether a smaller value is the better one
    key             of a class that computes several numbers, the name of this one
    """

    name: str
    help: str
    at: str = ""
    settings: Mapping[str, Any] = field(default_factory=dict)
    is_share: bool = False
    less_is_better: bool = False
    key: str = ""

    def text(self, value: float, form: str = ".4%") -> str:
        """The value for a person. form: of a percentage."""
        return format(value, form) if self.is_share else f"{value:.6g}"


MEAN = "torchmetrics:MeanMetric"
SQUARED, ABSOLUTE = "torchmetrics:MeanSquaredError", "torchmetrics:MeanAbsoluteError"
TOP_K = "dcil_dsl.tasks.measures:TopK"
PERPLEXITY, PAIRS = "dcil_dsl.tasks.measures:Perplexity", "dcil_dsl.tasks.measures:PairRanks"
KEEP_NAN = {"nan_strategy": "disable"}  # else a NaN is left out
LESS = (False, True)  # not a share, and a smaller value is the better one
# Of the metrics of a run, the first one here is the one that its lines show.
METRICS: Mapping[str, Metric] = MappingProxyType(
    {
        metric.name: metric
        for metric in (
            Metric("perplexity", "the exponential of nll", PERPLEXITY, KEEP_NAN, *LESS),
            Metric("nll", "the mean negative log-likelihood, in nats", MEAN, KEEP_NAN, *LESS),
            Metric("cosine", "the mean cosine with the wanted vector", MEAN, KEEP_NAN),
            Metric("spearman", "the rank correlation of the similarities of pairs", PAIRS),
            Metric("top1", "the share of examples classified right", TOP_K, {"k": 1}, True),
            Metric("top5", "the share with the right class among five", TOP_K, {"k": 5}, True),
            Metric(
                "f1",
                "F1 of the labels, their mean",
                "torchmetrics.classification:MultilabelF1Score",
                {"average": "macro"},
                True,
            ),
            Metric(
                "label_accuracy",
                "the share of labels predicted right",
                "torchmetrics.classification:MultilabelAccuracy",
                {"average": "micro"},
                True,
            ),
            Metric(
                "exact_match",
                "the share of examples with all labels right",
                "torchmetrics.classification:MultilabelExactMatch",
                is_share=True,
            ),
            Metric(
                "miou",
                "the mean over the classes of intersection over union",
                "torchmetrics.classification:MulticlassJaccardIndex",
                {"average": "macro"},
                True,
            ),
            Metric(
                "pixel_accuracy",
                "the share of pixels classified right",
                "torchmetrics.classification:MulticlassAccuracy",
                {"average": "micro"},
                True,
            ),
            Metric(
                "map",
                "the mean average precision of boxes, over overlaps of 50 to 95%",
                "torchmetrics.detection:MeanAveragePrecision",
                is_share=True,
                key="map",
            ),
            Metric(
                "map50",
                "the mean average precision of boxes that overlap by half",
                "torchmetrics.detection:MeanAveragePrecision",
                is_share=True,
                key="map_50",
            ),
            Metric("sparsity", "the share of zeros among the weights under rules", is_share=True),
            Metric("mse", "the mean squared error", SQUARED, less_is_better=True),
            Metric("mae", "the mean absolute error", ABSOLUTE, less_is_better=True),
            Metric(
                "relative_l2",
                "the norm of the error over the norm of the known solution",
                "dcil_dsl.tasks.measures:RelativeL2",
                is_share=True,
                less_is_better=True,
            ),
            Metric("r2", "the coefficient of determination", "torchmetrics:R2Score"),
            Metric(
                "loss",
                "the mean of the model's own loss",
                MEAN,
                KEEP_NAN,
                less_is_better=True,
            ),
        )
    }
)


def metric_text(name: str, value: float, form: str = ".4%") -> str:
    """Metric.text by the metric's name; names of others are written as plain numbers."""
    metric = METRICS.get(name)
    return f"{value:.6g}" if metric is None else metric.text(value, form)
