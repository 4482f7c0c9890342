"""Masks that change by dropping and growing, instead of being made from scores alone.

In:   the settings of a rule, a step.
Out:  one class for each word: the share that is dropped at that step.
Not:  no masks (masking/grow.py).
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, ClassVar

from dcil_dsl.words.units import Percent, Time
from dcil_dsl.words.word import Run, ScoredPath, Word

if TYPE_CHECKING:
    from typing_extensions import Self


class Regrow(Word):
    """`regrow = word(30%)`: at each refresh drop a share of the kept weights, grow as many.

    share  of the kept weights at step 0; it falls to 0 at `stop` by half a cosine
    where  where weights grow, for the text of a plan
    """

    place: ClassVar[str] = "a way to grow"
    where: ClassVar[str] = ""
    share: Percent
    if TYPE_CHECKING:  # the last setting of each word

        @property
        def stop(self) -> Time:
            """When the share is 0."""

    @property
    def gradient_path(self) -> str | None:
        """The path whose last gradient says where to grow; None: chance says."""
        return getattr(self, "path", None)

    def share_at(self, step: int) -> float:
        """The share of the kept weights that is dropped at `step`."""
        u = min(step / max(self.stop.step, 1), 1.0)
        return self.share.fraction / 2 * (1 + math.cos(math.pi * u))


class GrowByGradient(Regrow):
    """`gradient(30%)`: grow where the gradient is largest, that of the deployed path or,
    `gradient(30%, dense)`, of another. RigL: Evci et al. 2020, arXiv:1911.11134.
    """

    word: ClassVar[str] = "gradient"
    positional: ClassVar[int] = 2
    where: ClassVar[str] = "where the last gradient is largest"
    path: ScoredPath = None
    stop: Time = Time(0.75, "run")

    def in_steps(self, run: Run) -> Self:
        return super().in_steps(run).model_copy(update={"path": self.path or run.deploy})


class GrowAtRandom(Regrow):
    """`random(30%)`: grow anywhere. SET: Mocanu et al. 2018, arXiv:1707.04780."""

    word: ClassVar[str] = "random"
    positional: ClassVar[int] = 1
    where: ClassVar[str] = "at random"
    stop: Time = Time(0.75, "run")
