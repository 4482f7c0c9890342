"""Case: one model of the coverage table, and how it is built.

In:   what dcil_dsl.zoo or a library needs to build it.
Out:  Case.build(); SIDES of the images that are tried.
Not:  no list of models (coverage_models.py, coverage_libraries.py).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

from torch import nn
from workloads import build_model

from dcil_dsl.model.inputs import Inputs

SIDES = (64, 96, 128, 160, 192, 224, None)  # pixels, tried in turn; None: what the model says
CLASSES = 10
SWITCHES = (  # by which a library's models compute activations again
    "gradient_checkpointing_enable",
    "set_grad_checkpointing",
    "enable_gradient_checkpointing",
)


@dataclass(frozen=True)
class Case:
    """spec and options for dcil_dsl.zoo; sides: of the images, the first that the model takes;
    narrow: it is compared in float32, as it computes in it whatever its weights are in, or as
    convolutions in float64 would take many minutes; make, inputs: how it is built and what it is
    called with, where no spec says it; checkpoints: its library's switch for them is on."""

    spec: str
    options: dict = field(default_factory=dict)
    sides: tuple[int | None, ...] | None = None
    batch: int = 2
    narrow: bool = False
    note: str | None = None
    make: Callable[[], nn.Module] | None = None
    inputs: Callable[[], Inputs] | None = None
    checkpoints: bool = False

    def build(self) -> nn.Module:
        model = self.make() if self.make else build_model(self.spec, CLASSES, self.options)
        if self.checkpoints:
            switches = [getattr(model, name) for name in SWITCHES if hasattr(model, name)]
            switches[0]()
        return model
