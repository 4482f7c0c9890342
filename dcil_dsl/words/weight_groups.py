"""Weights that learn otherwise than the others: `groups = [...]` of `train`.

In:   parameters by name, and the words of the setting.
Out:  one class for each word; ParameterGroup, the parameters that one optimizer treats alike.
Not:  no optimizer (optimizers.py), and no choice of layers (plan/resolve.py).

Later words win, setting by setting: of `[no_decay(), group(head, lr_scale=10)]` the biases of the
head have both ten times the rate and no decay.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Iterable, Sequence
from typing import TYPE_CHECKING, Annotated, ClassVar, NamedTuple

from dcil_dsl.words.word import RESOLVED, FactorOrZero, LayersName, Word

if TYPE_CHECKING:
    from torch.nn import Parameter

    Named = list[tuple[str, Parameter]]


class WeightGroup(Word):
    """A word of `groups`.

    is_frozen   whether its weights stay as they are
    scale       what the learning rate of a step is multiplied by; None: nothing is said
    decay       the weight decay; None: nothing is said
    parameters  the names of its parameters in the model, once resolved
    """

    place: ClassVar[str] = "a group of weights"
    is_frozen: ClassVar[bool] = False
    parameters: Annotated[tuple[str, ...], RESOLVED] = ()

    @property
    def scale(self) -> float | None:
        return None

    @property
    def decay(self) -> float | None:
        return None

    @property
    def layers_named(self) -> str | None:
        """The name of its `layers` definition; None where `takes` alone says what it takes."""
        return None

    def takes(self, name: str, num_axes: int) -> bool:
        """Whether it takes this parameter, of the layers that `layers` names, or of the model."""
        return True

    @abstractmethod
    def summary(self) -> str:
        """What is different, in the text of a plan."""


class LayerGroup(WeightGroup):
    """`group(head, lr_scale=10, weight_decay=0)`: these layers' weights, biases included.

    lr_scale  what the learning rate of each step is multiplied by
    """

    word: ClassVar[str] = "group"
    positional: ClassVar[int] = 1
    layers: LayersName
    lr_scale: FactorOrZero | None = None
    weight_decay: FactorOrZero | None = None

    @property
    def layers_named(self) -> str:
        return self.layers

    @property
    def scale(self) -> float | None:
        return self.lr_scale

    @property
    def decay(self) -> float | None:
        return self.weight_decay

    def summary(self) -> str:
        scale = "" if self.lr_scale is None else f"{self.lr_scale:g} times the rate"
        decay = "" if self.weight_decay is None else f"weight decay {self.weight_decay:g}"
        return ", ".join(filter(None, (scale, decay))) or "as all others"


class NoDecay(WeightGroup):
    """`no_decay()`: no weight decay for biases and for weights of one axis, as norms have.

    The same choice as that of timm.optim.param_groups_weight_decay.
    """

    @property
    def decay(self) -> float:
        return 0.0

    @property
    def layers_named(self) -> str | None:
        """The name of its `layers` definition; None where `takes` alone says what it takes."""
        return None

    def takes(self, name: str, num_axes: int) -> bool:
        return num_axes <= 1 or name.endswith(".bias")

    def summary(self) -> str:
        return "no weight decay"


class Frozen(WeightGroup):
    """`frozen(stem)`: these layers' weights and biases stay as they are.

    The running statistics of their norms still follow the data.
    """

    is_frozen: ClassVar[bool] = True
    positional: ClassVar[int] = 1
    layers: LayersName

    @property
    def layers_named(self) -> str:
        return self.layers

    def summary(self) -> str:
        return "frozen"


class ParameterGroup(NamedTuple):
    """Parameters that the optimizer treats alike. weight_decay None: the optimizer's."""

    named: Named
    lr_scale: float = 1.0
    weight_decay: float | None = None


def divided(
    groups: Sequence[WeightGroup],
    named: Iterable[tuple[str, Parameter]],
    original: Callable[[str], str] = str,
) -> list[ParameterGroup]:
    """The parameters in parts, in their order; one part where there are no groups.

    original  the name in the model of a parameter of the dual graph, which may be a twin's
    """
    parts: dict[tuple[float, float | None], Named] = {}
    members = [(group, frozenset(group.parameters)) for group in groups]
    for name, parameter in named:
        scale, decay = 1.0, None
        for group, own in members:
            if original(name) in own:
                scale = scale if group.scale is None else group.scale
                decay = decay if group.decay is None else group.decay
        parts.setdefault((scale, decay), []).append((name, parameter))
    return [ParameterGroup(own, scale, decay) for (scale, decay), own in parts.items()]


def frozen_names(groups: Iterable[WeightGroup]) -> frozenset[str]:
    """The parameters in the model that stay as they are."""
    return frozenset(name for group in groups if group.is_frozen for name in group.parameters)
