"""Losses and penalties: what a step minimizes.

In:   the outputs of the paths and targets; for a penalty, the weights of one part of a layer.
Out:  one class for each word. A loss is a scalar, a mean over the batch; a penalty is a gradient
      in the shape of the weights.
Not:  no windows and no coefficients (training/losses.py), no parts (compiler/weight_state.py).

A loss averages over the batch and, where the model predicts at several positions, over all
positions alike. Classes are in dimension 1 of the logits that a loss is given.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal

from pydantic import Field

from dcil_dsl.diagnostics.counting import count
from dcil_dsl.diagnostics.errors import InputError
from dcil_dsl.words.word import RESOLVED, Factor, LayersName, PathName, RunLength, ScoredPath, Word

if TYPE_CHECKING:
    from torch import Tensor
    from typing_extensions import Self


class Loss(Word):
    """`loss word(...)`: a scalar. Its settings of type PathName say which paths it needs.

    output             declared as `output: str | None = None`: the recipe may name the logits in
                       what the model returns
    only_first_learns  whether of its paths only the first that the settings name has a gradient
    needs_target       whether it compares with the targets, and not paths with each other
    """

    place: ClassVar[str] = "a loss"
    only_first_learns: ClassVar[bool] = False

    @property
    def needs_target(self) -> bool:
        return True

    @abstractmethod
    def loss(self, logits: Mapping[str, Tensor], target: Tensor | None) -> Tensor:
        """The term, a mean over the batch.

        logits  of each path that the settings name: (B, C), or (B, C, H, W), (B, C, T)
        target  class numbers (B,), (B, H, W), (B, T), where a position of -100 counts for nothing;
                or class probabilities (B, K); or None
        """

    def read(self, logits: Tensor) -> Tensor:
        """The logits as `loss` takes them: classes in dimension 1."""
        from dcil_dsl.words.tensors import outputs as read

        return read.classes_second(logits)

    @property
    def label(self) -> str:
        """The term's name in metrics: "cross_entropy(sparse)"."""
        output = getattr(self, "output", None)
        return f"{self.called}({self._of_paths()}{f', {output}' if output else ''})"

    def _of_paths(self) -> str:
        return ", ".join(self.paths)

    @property
    def learners(self) -> tuple[str, ...]:
        """Of its paths those that have a gradient."""
        return self.paths[:1] if self.only_first_learns else self.paths

    def compared(self, outputs: Mapping[str, object]) -> dict[str, Tensor]:
        """What it reads of the output of each of its paths, float32 or wider."""
        from dcil_dsl.words.tensors import outputs as read

        name = getattr(self, "output", None)
        for path in self.paths:
            if path not in outputs:
                raise InputError(
                    f"there is no output of `{path}`",
                    help="a teacher runs in training mode alone, in the steps that need it",
                )
        return {
            path: self.read(read.widen(read.logits_of(outputs[path], name))) for path in self.paths
        }

    def term(
        self,
        outputs: Mapping[str, object],
        target: Tensor | None,
        share: float = 1.0,
        counted: Tensor | None = None,
    ) -> Tensor:
        """The term from what the model returns on each path.

        share    of the examples, the first ones, that every path of the term sees
        counted  -100 at the positions that a loss between paths leaves out where the target does
                 not say so
        """
        from dcil_dsl.words.tensors import outputs as read

        logits = self.compared(outputs)
        if not self.needs_target:
            path, name = self.paths[0], getattr(self, "output", None)
            target = read.positions_of(outputs[path], name, target, counted)
        elif target is not None:
            read.refuse_no_tensor(target)
        if share < 1:
            rows = min(map(len, logits.values()))
            logits = {path: own[:rows] for path, own in logits.items()}
            target = None if target is None else target[:rows]
        return read.one_number(self.loss(logits, target))

    def summary(self) -> str:
        """The settings in the text of a plan."""
        return self.describe()


class CrossEntropy(Loss):
    """`cross_entropy(path, smoothing=0, output=none)`: mean over the batch and its positions.

    A position whose class number is -100 counts for nothing.
    """

    positional: ClassVar[int] = 1
    path: PathName
    smoothing: Annotated[float, Field(ge=0, lt=1)] = 0.0
    output: str | None = None

    def loss(self, logits: Mapping[str, Tensor], target: Tensor | None) -> Tensor:
        from torch.nn import functional as F

        from dcil_dsl.words.tensors import outputs as read

        if target is None:
            raise InputError("it needs a target", help="dcil.loss(plan, outputs, target)")
        own = logits[self.path]
        target = read.target_for(own, target)
        return F.cross_entropy(own, target, label_smoothing=self.smoothing)

    def summary(self) -> str:
        return f"smoothing {self.smoothing:g}" if self.smoothing else ""


class BinaryCrossEntropy(Loss):
    """`binary_cross_entropy(path, output=none)`: the mean over the batch and all labels.

    Each logit is a label of its own, which occurs (1) or does not (0); a label of -100 counts for
    nothing. The output has the shape of the targets, or one more dimension of size 1 at its end.
    """

    positional: ClassVar[int] = 1
    path: PathName
    output: str | None = None

    def loss(self, logits: Mapping[str, Tensor], target: Tensor | None) -> Tensor:
        from torch.nn import functional as F

        from dcil_dsl.words.tensors import outputs as read

        if target is None:
            raise InputError("it needs a target", help="dcil.loss(plan, outputs, target)")
        own, wanted = read.numbers_for(logits[self.path], target)
        counts = wanted != read.IGNORED
        losses = F.binary_cross_entropy_with_logits(own, wanted.to(own.dtype), reduction="none")
        return losses.where(counts, losses.new_zeros(())).sum() / counts.sum().clamp(min=1)

    def read(self, logits: Tensor) -> Tensor:
        return logits


class Taught(Loss):
    """Compares numbers with the targets, or with what the teacher, another path, returns.

    No gradient reaches the teacher.
    """

    only_first_learns: ClassVar[bool] = True
    positional: ClassVar[int] = 1
    path: PathName
    teacher: ScoredPath = None
    output: str | None = None

    @property
    def needs_target(self) -> bool:
        return self.teacher is None

    def _of_paths(self) -> str:
        return self.path if self.teacher is None else f"{self.path}<-{self.teacher}"

    def _wanted(self, logits: Mapping[str, Tensor], target: Tensor | None) -> Tensor:
        if self.teacher is not None:
            from dcil_dsl.words.tensors import outputs as read

            return read.like_student(logits[self.path], logits[self.teacher].detach())
        if target is None:
            raise InputError("it needs a target", help="dcil.loss(plan, outputs, target)")
        return self.read(target)

    def summary(self) -> str:
        return "" if self.teacher is None else f"no gradient into {self.teacher}"


class MSE(Taught):
    """`mse(path, teacher=none, output=none)`: the mean of (output - target)^2, over all numbers.

    The output has the shape of the targets, or one more dimension of size 1 at its end. With a
    teacher, another path, that path's output takes the place of the targets.
    """

    def loss(self, logits: Mapping[str, Tensor], target: Tensor | None) -> Tensor:
        from dcil_dsl.words.tensors import outputs as read

        own, wanted = read.numbers_for(logits[self.path], self._wanted(logits, target))
        squares = (own - wanted.to(own.dtype)).square()
        if self.teacher is None or target is None or not read.has_positions(target):
            return squares.mean()
        if target.shape == squares.shape:  # one number for each position
            return read.mean_of_positions(squares, target)
        return read.mean_of_positions(read.classes_second(squares).mean(1), target)

    def read(self, logits: Tensor) -> Tensor:
        return logits


class CosineDistance(Taught):
    """`cosine(path, teacher=none, output=none)`: 1 - the mean cosine of output and target.

    The vectors are (B, K); where the model has positions, the cosine of each counts alike. With a
    teacher, another path, that path's output takes the place of the targets.
    """

    word: ClassVar[str] = "cosine"

    def loss(self, logits: Mapping[str, Tensor], target: Tensor | None) -> Tensor:
        from torch.nn import functional as F

        from dcil_dsl.words.tensors import outputs as read

        own, wanted = read.numbers_for(logits[self.path], self._wanted(logits, target))
        cosines = F.cosine_similarity(own, wanted.to(own.dtype), dim=1)
        return 1 - read.mean_of_positions(cosines, None if self.teacher is None else target)


class Balanced(Word):
    """`balanced(beta=0.97)`: rare classes weigh more, by the effective number of their examples.

    w = (1 - beta) / (1 - beta^n) for n training examples, over their mean. Cui et al. 2019,
    arXiv:1901.05555. weights: of each class, None without data.
    """

    place: ClassVar[str] = "a weighting of classes"
    word: ClassVar[str] = "balanced"
    beta: Annotated[float, Field(gt=0, lt=1)]
    weights: Annotated[tuple[float, ...] | None, RESOLVED] = None

    def in_steps(self, run: RunLength) -> Self:
        if run.class_counts is None:
            return self
        own = [(1 - self.beta) / (1 - self.beta**n) for n in run.class_counts]
        mean = sum(own) / len(own)
        return self.model_copy(update={"weights": tuple(weight / mean for weight in own)})


class KL(Loss):
    """`kl(student=, teacher=, temperature=1, output=none, classes=none)`.

        T^2 * mean over batch and positions of KL(q || softmax(student / T))
        q = softmax(teacher / T),   with `classes` w:   q_c <- w_c q_c / sum_k(w_k q_k)

    A position of a text or an image that has no target counts for nothing. Only the student learns.
    T^2 keeps the size of the gradient independent of T: Hinton et al. 2015, arXiv:1503.02531,
    section 2.1. DCIL (arXiv:2109.04660) uses T = 2 in both directions; the authors' code adds 1e-7
    to the teacher's softmax, which the logarithm of a softmax makes unnecessary. The weighted q is
    FOSTER's (Wang et al. 2022, arXiv:2204.04662), whose loss is the cross entropy with it, without
    T^2: the same gradient, over T^2.
    """

    only_first_learns: ClassVar[bool] = True
    student: PathName
    teacher: PathName
    temperature: Annotated[float, Field(gt=0)] = 1.0
    output: str | None = None
    classes: Balanced | None = None

    def _of_paths(self) -> str:
        return f"{self.student}<-{self.teacher}"

    def loss(self, logits: Mapping[str, Tensor], target: Tensor | None) -> Tensor:
        from torch.nn import functional as F

        from dcil_dsl.words.tensors import outputs as read

        student = logits[self.student]
        teacher = read.like_student(student, logits[self.teacher].detach())
        log_student = F.log_softmax(student / self.temperature, dim=1)
        log_teacher = F.log_softmax(teacher / self.temperature, dim=1)
        if self.classes is not None:
            log_weights = self._class_weights(student).log().to(log_teacher.dtype)
            log_weights = log_weights.reshape(-1, *[1] * (log_teacher.dim() - 2))
            log_teacher = F.log_softmax(log_teacher + log_weights, dim=1)
        divergence = F.kl_div(log_student, log_teacher, reduction="none", log_target=True)
        return self.temperature**2 * read.mean_of_positions(divergence.sum(dim=1), target)

    @property
    def needs_target(self) -> bool:
        return False

    def _class_weights(self, logits: Tensor) -> Tensor:
        from dcil_dsl.words.tensors import outputs as read

        weights = self.classes.weights if self.classes is not None else None
        if weights is None:
            raise InputError(
                "it weighs classes by how often they occur, and the plan was made without the data",
                help="dcil.resolve(..., class_counts=[...]) takes the training examples of each "
                "class",
            )
        if len(weights) != logits.shape[1]:
            own = count(logits.shape[1], "class", "classes")
            raise InputError(f"the logits have {own}, the data {len(weights)}")
        return read.on_device(weights, logits.device)

    def summary(self) -> str:
        words = f"temperature {self.temperature:g}, no gradient into {self.teacher}"
        if self.classes is not None:
            words += f", rare classes weigh more (beta {self.classes.beta:g})"
        return words


class ModelLoss(Loss):
    """`model(path, output=none)`: the loss that the model itself computes on that path.

    output  one of several losses that the model returns in a dictionary, by its key; None: their
            sum
    """

    word: ClassVar[str] = "model"
    positional: ClassVar[int] = 1
    path: PathName
    output: str | None = None

    def loss(self, logits: Mapping[str, Tensor], target: Tensor | None) -> Tensor:
        raise AssertionError("the model computes it, from no logits")

    @property
    def needs_target(self) -> bool:
        return False

    def term(
        self,
        outputs: Mapping[str, object],
        target: Tensor | None,
        share: float = 1.0,
        counted: Tensor | None = None,
    ) -> Tensor:
        from dcil_dsl.words.tensors import outputs as read

        return read.widen(read.own_loss(outputs[self.path], self.output))

    def summary(self) -> str:
        return "computed by the model"


class JS(Loss):
    """`js(one=, other=, temperature=1, output=none)`: T^2 * the Jensen-Shannon divergence.

    JS(p, q) = (KL(p || m) + KL(q || m)) / 2,  m = (p + q) / 2,  p and q the softmax of logits / T.
    Symmetric: both paths learn. From 0 to T^2 log 2. Lin 1991, "Divergence measures based on the
    Shannon entropy", section 4.
    """

    one: PathName
    other: PathName
    temperature: Annotated[float, Field(gt=0)] = 1.0
    output: str | None = None

    def loss(self, logits: Mapping[str, Tensor], target: Tensor | None) -> Tensor:
        from dcil_dsl.words.tensors import outputs as read

        logs = [(logits[p] / self.temperature).log_softmax(1) for p in (self.one, self.other)]
        # log m from logarithms: exp of both would lose what is small.
        middle = logs[0].logaddexp(logs[1]) - 0.6931471805599453
        terms = [(log.exp() * (log - middle)).sum(1) for log in logs]
        both: Any = sum(read.mean_of_positions(term, target) for term in terms)
        mean: Tensor = self.temperature**2 * both / 2
        return mean

    @property
    def needs_target(self) -> bool:
        return False


class Penalty(Word):
    """`penalty = [word(pruned, 1e-4)]`: added after clipping and in no reported loss.

    part    whose gradient: that of the kept, the reserved or the pruned weights of a rule; in
            `train` that of the rest, the weights that no rule prunes
    weight  the coefficient
    stairs  the coefficient rises over the run in this many equal steps, from 0; None: constant
    of      of the rest, the layers whose weights it acts on; None: all
    biases  of the rest, whether it acts on biases too
    needs_norm, needs_axis  whether `gradient` takes the norm of the layer, or the axis that counts
            its filters
    """

    place: ClassVar[str] = "a penalty"
    positional: ClassVar[int] = 2
    formula: ClassVar[str] = ""
    needs_norm: ClassVar[bool] = False
    needs_axis: ClassVar[bool] = False
    part: Literal["kept", "reserve", "pruned", "rest"]
    weight: Factor
    stairs: Annotated[int, Field(ge=2)] | None = None
    of: LayersName | None = None
    biases: bool = False

    @abstractmethod
    def gradient(self, weights: Tensor) -> Tensor:
        """That of one layer, in its shape. `weights` are 0 outside the part, where the result is
        ignored."""

    def weight_at(self, step: int, num_steps: int) -> float:
        """The coefficient at `step`: weight, or with stairs weight * floor(n t / T) / n."""
        if self.stairs is None:
            return self.weight
        return self.weight * (self.stairs * step // max(num_steps, 1)) / self.stairs

    def summary(self) -> str:
        return self.formula or self.describe("part", "weight", "stairs", "of", "biases")


class Square(Penalty):
    """`square(pruned, 2e-4)`: weight / 2 * the sum of squares, whose gradient is weight * w.

    On the pruned weights: SR-STE, Zhou et al. 2021, arXiv:2102.04010, eq. 10.
    """

    formula: ClassVar[str] = "half the squares"

    def gradient(self, weights: Tensor) -> Tensor:
        return weights


class Norm(Penalty):
    """`norm(kept, 1e-3)`: weight * the root of the sum of squares, layer by layer.

    On the kept weights: FedDIP, Long et al. 2023, arXiv:2309.06805.
    """

    formula: ClassVar[str] = "the norm"
    needs_norm: ClassVar[bool] = True

    def gradient(self, weights: Tensor, norm: Tensor | None = None) -> Tensor:
        import torch

        norm = weights.norm() if norm is None else norm
        return weights / norm.clamp(min=torch.finfo(weights.dtype).tiny)  # 0 / 0 of no weights


class L1(Penalty):
    """`l1(kept, 1e-4)`: weight * the sum of the absolute values, whose gradient is their sign.

    Of zeros the gradient is 0. Tibshirani 1996, the lasso.
    """

    word: ClassVar[str] = "l1"
    formula: ClassVar[str] = "the absolute values"

    def gradient(self, weights: Tensor) -> Tensor:
        return weights.sign()


class GroupLasso(Penalty):
    """`group_lasso(kept, 1e-4)`: weight * the sum of the norms of the filters, each of its own
    weights of the part. Wen et al. 2016, arXiv:1608.03665, eq. 3."""

    formula: ClassVar[str] = "the norms of the filters"
    needs_axis: ClassVar[bool] = True

    def gradient(self, weights: Tensor, axis: int = 0) -> Tensor:
        import torch

        others = [i for i in range(weights.dim()) if i != axis]
        squares = weights.square()
        norms = (squares.sum(others, keepdim=True) if others else squares).sqrt()  # [] is all
        return weights / norms.clamp(min=torch.finfo(weights.dtype).tiny)
