"""Teachers: networks that only teach, written where a path is declared.

In:   settings; for `ema`, what a path computes with at each step.
Out:  one class for each word.
Not:  no network is built here (zoo/teacher.py), and none runs (compiler/teachers.py).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Annotated, ClassVar

from pydantic import Field

from dcil_dsl.words.word import RESOLVED, PathName, Word

if TYPE_CHECKING:
    from torch import Tensor

# Libraries of networks that a recipe may name: of these alone it runs code.
SOURCES = ("torchvision", "timm", "hf", "dcil")


class Teacher(Word):
    """`path name = word(...)`: a network that only teaches. It runs forward, in evaluation mode,
    on what the model is given; no weight learns from it, and it is in no exported file.

    follows  the path whose weights it averages; None: it never changes
    """

    place: ClassVar[str] = "a teacher"

    @property
    def follows(self) -> str | None:
        return None

    def summary(self) -> str:
        """What it is, in the text of a plan."""
        return self.describe()


class Network(Teacher):
    """`network("torchvision:resnet50", weights="IMAGENET1K_V2")`: a trained network, which stays
    as it is.

    source   torchvision:NAME, timm:NAME, dcil:NAME, hf:CLASS or hf:FOLDER, as `--model` takes them;
             `none`: the caller gives it, `teachers=` in Python
    weights  a file of weights, the folder of a run, or a name as `--weights` takes it; a path is
             relative to the recipe. `none`: those of the folder of hf:FOLDER
    digest   a sha256 of its tensors, which a resumed run compares
    It has as many classes as its weights. Hinton et al. 2015, arXiv:1503.02531.
    """

    positional: ClassVar[int] = 1
    source: str | None = None
    weights: str | None = None
    digest: Annotated[str | None, RESOLVED] = None

    def summary(self) -> str:
        return self.describe("digest")


class PathAverage(Teacher):
    """`ema(sparse, decay=0.999)`: an average over the steps of what a path computes with.

        a <- decay a + (1 - decay) v

    v is the path's view of the weights at the beginning of a step, with its private modules and
    running statistics; a begins as the first v. Mean teacher, Tarvainen & Valpola 2017,
    arXiv:1703.01780, section 2.
    """

    word: ClassVar[str] = "ema"
    positional: ClassVar[int] = 1
    path: PathName
    decay: Annotated[float, Field(gt=0, lt=1)] = 0.999

    @property
    def follows(self) -> str:
        return self.path

    def average(self, means: Sequence[Tensor], seen: Sequence[Tensor]) -> None:
        """One step of the recursion, in place."""
        import torch

        torch._foreach_lerp_(list(means), list(seen), 1 - self.decay)
