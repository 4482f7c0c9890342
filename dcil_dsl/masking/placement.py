"""Where the rows of a weight lie: all in this process, or some in each of several.

In:   tensors of pruned weights, by the weight's name.
Out:  sums over units, the rows of masks: what choosing masks needs, the same on every process.
Not:  no mask is chosen (select.py, compiler/masks.py). Rows on several processes are an extra
      (extras/sharding); the core knows `Whole`.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from dcil_dsl.masking.select import Across
from dcil_dsl.masking.units import CutLike, spread_mask, sum_in_units


class Placement(ABC):
    """Which rows of the pruned weights this process holds.

    across  the processes that choose masks together; None: each process has all rows
    """

    across: Across | None = None

    @property
    def is_whole(self) -> bool:
        """Whether this process has all rows."""
        return self.across is None

    @abstractmethod
    def totals(self, values: Sequence[Tensor]) -> list[Tensor]:
        """Sums over the rows of all processes, of the sums over this one's."""

    @abstractmethod
    def sum_units(self, name: str, values: Tensor, cut: CutLike, dtype: torch.dtype) -> Tensor:
        """What these rows add to the sum of each unit of the weight, (number of units,)."""

    @abstractmethod
    def spread(self, name: str, kept: Tensor, cut: CutLike, like: Tensor) -> Tensor:
        """The mask of these rows, in the shape of `like`, from one boolean per unit."""

    @abstractmethod
    def pattern_cut(self, name: str, cut: CutLike, num_rows: int) -> CutLike:
        """How these rows, `num_rows`, fall into the groups of a pattern."""

    @abstractmethod
    def on_whole(self, name: str, function: Callable[[Tensor], Tensor], values: Tensor) -> Tensor:
        """These rows of what `function` makes of all rows."""

    @abstractmethod
    def start(self, name: str) -> int:
        """The place of the first of these entries in the flattened weight."""

    # -- weights and whatever has their rows: initial values, checkpoints -------------------------

    def holds_part(self, name: str) -> bool:
        """Whether this process has only some rows of a tensor of the state."""
        return False

    def own(self, key: str, whole: Tensor) -> Tensor:
        """This process's rows of a tensor of a checkpoint."""
        return whole

    def restore(self, dual: Any) -> None:
        """Put whole weights and masks into the dual graph of the first process."""
        return None


class Whole(Placement):
    """Every process has all rows of every weight."""

    def totals(self, values: Sequence[Tensor]) -> list[Tensor]:
        return list(values)

    def sum_units(self, name: str, values: Tensor, cut: CutLike, dtype: torch.dtype) -> Tensor:
        return sum_in_units(values, cut, dtype)

    def spread(self, name: str, kept: Tensor, cut: CutLike, like: Tensor) -> Tensor:
        return spread_mask(kept, cut, like.shape)

    def pattern_cut(self, name: str, cut: CutLike, num_rows: int) -> CutLike:
        return cut

    def on_whole(self, name: str, function: Callable[[Tensor], Tensor], values: Tensor) -> Tensor:
        return function(values)

    def start(self, name: str) -> int:
        return 0


ALL_ROWS = Whole()
