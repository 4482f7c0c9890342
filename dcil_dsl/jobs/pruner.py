"""`dcil.Pruner`: a recipe inside somebody's own training loop.

In:   a recipe, a model, the number of steps in an epoch; then batches.
Out:  a loss to call backward on; the optimizer's step as the recipe's `train` block has it; the
      sparse model.
Not:  no data, no files, no device: those are the loop's. `dcil.train` does all of it.
"""

from __future__ import annotations

import inspect
import math
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar

import torch
from torch import Tensor, nn
from torch.nn.utils import clip_grad_norm_

from dcil_dsl.diagnostics import InputError
from dcil_dsl.exporting.export import export
from dcil_dsl.jobs import stages
from dcil_dsl.jobs.prepare import read_recipe
from dcil_dsl.lang.recipe import Recipe
from dcil_dsl.plan.plan import Plan
from dcil_dsl.training.average import Average, deployed, not_averaged, start_average, update_average
from dcil_dsl.training.distributed import begin_step, current_ranks
from dcil_dsl.training.losses import refuse_constant
from dcil_dsl.training.optim import forget_state, set_rate
from dcil_dsl.training.sparsity import SparsityError, check_sparsity, masks_step
from dcil_dsl.words.tensors.outputs import counted_positions

T = TypeVar("T")

DTYPES = {"bf16": torch.bfloat16, "fp16": torch.float16}
ALONE = {  # settings of `train` that make more of a step than one backward pass
    "integrator": "evaluates each step several times",
    "balance": "weighs the losses by gradients of their own",
    "mirror": "changes the weights after the optimizer has",
    "average": "takes turns between copies of the weights",
    "sync_norms": "replaces the batch norms",
    "stop": "follows from evaluations",
}


class Pruner:
    """What a recipe does to one model, step by step, in a loop of your own.

        pruner = Pruner("net.prune", model, steps_per_epoch=len(loader), example_inputs=(x,))
        optimizer = pruner.make_optimizer()
        for x, y in loader:
            loss = pruner.step_loss(x, target=y)
            optimizer.zero_grad()
            loss.backward()
            pruner.step(optimizer)
        sparse = pruner.export()

    The recipe's epochs, optimizer, learning rate, clipping, penalties, `ema`, `accumulate` and
    `precision` hold. With `accumulate = k` each step takes k batches: the loop stays as it is, and
    `step` says whether the optimizer took its step. `steps_per_epoch` counts those steps.

    recipe          a Recipe, a Path, the name of a file, or the text of a recipe (with a newline)
    model           any nn.Module; it is not changed
    example_inputs  one batch, as of dcil.resolve
    overrides       as of dcil.load, where the recipe is not loaded yet
    class_counts    as of dcil.resolve
    scaler          the loop's GradScaler: call scaler.scale(loss).backward(); step unscales and
                    updates. Needed where the recipe has `precision = fp16`; of accelerate in fp16
                    it is accelerator.scaler
    teachers        as of dcil.resolve

    plan   the Plan
    dual   the module that trains: move it with dual.to(device) before make_optimizer
    steps  how many steps the optimizer has taken

    Raises RecipeError; InputError where the model cannot be traced, or where the recipe needs more
    of a step than one backward pass.
    """

    def __init__(
        self,
        recipe: str | Path | Recipe,
        model: nn.Module,
        *,
        steps_per_epoch: int,
        example_inputs: object = None,
        overrides: Mapping[str, str] | None = None,
        class_counts: Any = None,
        scaler: torch.amp.GradScaler | None = None,
        teachers: Mapping[str, nn.Module] | None = None,
    ) -> None:
        recipe = read_recipe(recipe, overrides or {})
        self.plan, networks = stages.resolve_with_networks(
            recipe, model, steps_per_epoch, example_inputs, class_counts, teachers
        )
        train = self.plan.train
        refuse_alone(self.plan)
        if train.precision == "fp16" and scaler is None:
            raise InputError(
                "`precision = fp16` needs a loss that is scaled",
                help="Pruner(..., scaler=torch.amp.GradScaler()), or `precision = bf16`",
            )
        self.dual = stages.compile(self.plan, model, example_inputs, networks)
        self.dual.train()
        self.module: nn.Module = self.dual
        self.scaler = scaler
        self.steps = 0
        self._batches = 0  # of this step, that have been through backward
        self._moved = False  # whether this step's masks are others than the last one's
        self._held: dict[str, Tensor] = {}  # gradients of the step's earlier batches
        self._average: Average | None = None  # of `ema`
        self._checked: torch.optim.Optimizer | None = None
        self._warned = False  # of a learning rate that the recipe's replaces

    # -- one step --------------------------------------------------------------------------

    def step_loss(self, *args: Any, target: Any = None, **kwargs: Any) -> Tensor:
        """The recipe's loss on one batch: a scalar to call backward on.

        The arguments are the model's; target, what the loss terms compare its outputs with.
        Losses between paths count the positions that have a target, or else those that
        `attention_mask` lets in. Of k batches to a step it is the k-th part of the batch's mean.
        """
        outputs = self.forward(*args, **kwargs)
        loss = self.loss(outputs, target, counted_positions(kwargs))
        return loss if self.plan.train.accumulate == 1 else loss / self.plan.train.accumulate

    def forward(self, *args: Any, **kwargs: Any) -> dict[str, Any]:
        """{path: output} of the step that is being taken, which begins with its first batch."""
        self.begin()
        with self.autocast(_device_of(self.dual)):
            outputs: dict[str, Any] = self.module(*args, **kwargs)
        return outputs

    def loss(
        self, outputs: Mapping[str, Any], target: Any = None, counted: Tensor | None = None
    ) -> Tensor:
        """The recipe's loss terms of this step for given outputs; the arguments are those of
        `dcil.loss`."""
        loss = stages.loss(self.plan, outputs, target, self.steps, counted=counted)
        if torch.is_grad_enabled():
            refuse_constant(loss)
        return loss

    def autocast(self, device: torch.device) -> torch.autocast:
        """The recipe's `precision`."""
        dtype = DTYPES.get(self.plan.train.precision)
        return torch.autocast(device.type, dtype=dtype or torch.bfloat16, enabled=dtype is not None)

    def begin(self) -> None:
        """Make the masks and the phase those of this step. Once begun, it does nothing."""
        if self.dual.begun == self.steps:
            return
        self.dual.train()
        scale = None
        if self.scaler is not None and self.scaler.is_enabled():
            scale = self.scaler.scale(torch.ones((), device=_device_of(self.dual)))
        if self._average is None:
            self._start_average()
        if self.dual.begun is None:
            self._check_masks()
        self._moved = begin_step(self.dual, self.steps, scale, current_ranks())

    def _check_masks(self) -> None:
        """InputError for a dual whose state was loaded without the number of its step."""
        if all(bool(mask.all()) for mask in self.dual.masks.values()):
            return  # as it was compiled
        try:
            if self.steps == 0:
                raise SparsityError("no step was taken")
            check_sparsity(self.dual, masks_step(self.steps))
        except SparsityError as error:
            raise InputError(
                f"the masks are not those of step {self.steps}, which comes next",
                help="pruner.load_state_dict(state) resumes; accelerate's save_state and load_state"
                " do it after accelerator.register_for_checkpointing(pruner)",
            ) from error

    def step(self, optimizer: torch.optim.Optimizer) -> bool:
        """The optimizer's step, after backward. False while batches of the step are missing.

        In this order: the gradients of the step's batches together, clipping, penalties, the
        learning rate, the optimizer, `ema`; then the gradients are cleared. RuntimeError without a
        begun step; InputError for an optimizer of other weights than the dual's, such as those of
        the model that was given.
        """
        if self.dual.begun != self.steps:
            raise RuntimeError("Pruner.step before step_loss: no step was begun")
        if optimizer is not self._checked:
            self._check(optimizer)
            self._checked = optimizer
        if not is_in_sync(optimizer):  # within accelerate's `accumulate`
            self._batches = 1
            return False
        if scaler_of(optimizer) is not None:
            optimizer = optimizer.optimizer  # type: ignore[attr-defined]  # its scaler is ours
        self._batches += 1
        if self._batches < self.plan.train.accumulate:
            self._hold()
            return False
        self._release()
        clip = self.plan.train.clip
        if self.scaler is not None and (clip is not None or self.has_penalties):
            self.scaler.unscale_(optimizer)
        if clip is not None:
            clip_grad_norm_([weight for _, weight in self.dual.trainable()], clip)
        self.prepare_update(optimizer)
        self._warn_of_other_rates(optimizer)
        set_rate(optimizer, self.plan.lr_at(self.steps))
        if self.scaler is None:
            optimizer.step()
        else:
            self.scaler.step(optimizer)
            self.scaler.update()
        optimizer.zero_grad()  # a loop may call that of the model that was given, which has none
        self.finish_step()
        return True

    @property
    def has_penalties(self) -> bool:
        return self.plan.has_penalties

    def prepare_update(self, optimizer: torch.optim.Optimizer) -> None:
        """Before the optimizer's step, once gradients are clipped and unscaled: the penalties, and
        nothing remembered of weights under `forget`."""
        if self._moved:
            forget_state(optimizer, self.dual)
        self.dual.add_penalties(self.steps)

    def finish_step(self) -> None:
        """Count the step that the optimizer has taken."""
        if self._average is not None:
            update_average(self._average, self.plan.train.ema)
        self.steps += 1
        self._batches = 0

    def _check(self, optimizer: torch.optim.Optimizer) -> None:
        own = {id(weight) for weight in self.dual.parameters()}
        held = [weight for group in optimizer.param_groups for weight in group["params"]]
        if not any(id(weight) in own for weight in held):
            raise InputError(
                "the optimizer holds no weight of pruner.dual, which is what trains",
                help="pruner.make_optimizer(), or an optimizer of pruner.dual.parameters()",
            )
        closure = inspect.signature(optimizer.step).parameters.get("closure")
        if closure is not None and closure.default is inspect.Parameter.empty:
            raise InputError(
                f"{type(optimizer).__name__} evaluates the loss several times in a step, and "
                "Pruner.step has one backward pass",
                help="another optimizer; `dcil.train` has the recipe's `integrator`",
            )
        if isinstance(self.module, nn.DataParallel) and len(self.module.device_ids) > 1:
            raise InputError(
                "pruner.module is in nn.DataParallel, whose copies of the dual lose their scores",
                help="one process for each device: DistributedDataParallel(pruner.dual)",
            )
        if getattr(self.module, "broadcast_buffers", False):  # DistributedDataParallel
            shared = {id(buffer) for buffer in getattr(self.module, "modules_buffers", ())}
            if any(id(score) in shared for score in self.dual.score_state.values()):
                raise InputError(  # the dual is compiled inside of it: other names
                    "pruner.module replaces the scores of each process by the first one's",
                    help="DistributedDataParallel(pruner.dual), or its broadcast_buffers=False",
                )
        if scaler_of(optimizer) not in (None, self.scaler):
            raise InputError(
                "the loop scales its loss, and scores and penalties need to know by how much",
                help="Pruner(..., scaler=accelerator.scaler), or the scaler of Fabric's precision",
            )
        parts = getattr(getattr(optimizer, "gradient_state", None), "num_steps", 1)
        if self.plan.train.accumulate > 1 and parts > 1:
            raise InputError(
                f"`accumulate = {self.plan.train.accumulate}` of the recipe, and the loop has "
                f"gradient_accumulation_steps={parts} as well",
                help="leave one of the two out",
            )

    def _warn_of_other_rates(self, optimizer: torch.optim.Optimizer) -> None:
        """Warn, once, of a learning rate that the recipe's replaces: of the loop's optimizer, or of
        a scheduler that the loop steps."""
        own = [self.plan.train.optimizer.lr, *map(self._rate_at, (self.steps - 1, self.steps))]
        for group in optimizer.param_groups:
            scale = group.get("lr_scale", 1.0)
            if self._warned or any(math.isclose(group["lr"], lr * scale) for lr in own):
                continue
            self._warned = True
            warnings.warn(
                f"the recipe's learning rate ({own[-1] * scale:g}) replaces the optimizer's "
                f"({group['lr']:g}): write yours into the recipe, `lr_scale` into a group",
                stacklevel=3,
            )

    def _rate_at(self, step: int) -> float:
        return self.plan.lr_at(min(max(step, 0), self.plan.num_steps - 1))

    def _hold(self) -> None:
        """Put the gradients of one batch aside, where zero_grad does not reach them."""
        for name, weight in self.dual.trainable():
            if weight.grad is None:
                continue
            if name in self._held:
                self._held[name].add_(weight.grad)
            else:
                self._held[name] = weight.grad
            weight.grad = None

    def _release(self) -> None:
        for name, weight in self.dual.trainable():
            held = self._held.pop(name, None)
            if held is not None:
                weight.grad = held if weight.grad is None else held.add_(weight.grad)

    # -- the optimizer -----------------------------------------------------------------------

    def make_optimizer(self) -> torch.optim.Optimizer:
        """The recipe's optimizer over every weight that learns."""
        optimizer: torch.optim.Optimizer = self.plan.make_optimizer(self.dual)
        return optimizer

    def make_scheduler(self, optimizer: torch.optim.Optimizer) -> torch.optim.lr_scheduler.LambdaLR:
        """The recipe's learning rate as a scheduler, for a loop that steps one itself."""
        base = self.plan.train.optimizer.lr
        for group in optimizer.param_groups:
            group["lr"] = base * group.get("lr_scale", 1.0)  # what LambdaLR multiplies
        return torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: self._rate_at(step) / base)

    # -- the result ----------------------------------------------------------------------------

    @property
    def sparsity(self) -> float:
        """The share of the weights under rules that the masks prune now."""
        masks = list(self.dual.masks.values())
        num_kept = sum(int(mask.sum()) for mask in masks)
        return 1 - num_kept / max(sum(mask.numel() for mask in masks), 1)

    @contextmanager
    def averaged(self) -> Iterator[None]:
        """The averages of `ema` stand in the model while the `with` is open."""
        if self._average is None:
            yield
        else:
            with deployed(self._average):
                yield

    @torch.no_grad()
    def evaluate(self, measure: Callable[[nn.Module], T], path: str | None = None) -> T:
        """`measure(model)` of the plain model of a path (None: the deployed one), in evaluation
        mode, under its masks and with the averages of `ema`."""
        return measure(self.export(path, unfinished=True).eval())

    def export(self, path: str | None = None, *, unfinished: bool = False) -> nn.Module:
        """The model of the class that was given, zeros in place: see dcil.export.

        SparsityError where the recipe's sparsity is not reached, unless `unfinished`.
        """
        with self.averaged():
            return export(self.dual, path, unfinished=unfinished)

    # -- resuming ------------------------------------------------------------------------------

    def state_dict(self) -> dict[str, Any]:
        """What continues this loop to the bit, with the optimizer's own state, and the loop's data
        and random numbers. RuntimeError between the batches of one step.

        Of several processes each calls it: the scores are those of all, and one may save the rest.
        """
        if self._batches:
            raise RuntimeError("between two batches of one step there is no state to save")
        current_ranks().average(self.dual.score_state.values())
        return {
            "plan": self.plan.to_json(),
            "steps": self.steps,
            "dual": self.dual.state_dict(),
            "ema": {} if self._average is None else dict(self._average.mean),
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Continue where state_dict was called. InputError for the state of another plan."""
        if type(self.plan).from_json(state["plan"]) != self.plan:
            raise InputError(
                "this state is of another plan",
                help="the same recipe, model, example_inputs and steps_per_epoch give it",
            )
        self.dual.load_state_dict(state["dual"])
        self.steps, self._batches, self._moved = int(state["steps"]), 0, False
        self._held.clear()
        if state["ema"]:
            self._start_average()
            assert self._average is not None  # the plan has `ema`, as the state's has
            for name, mean in state["ema"].items():
                self._average.mean[name].copy_(mean)

    def _start_average(self) -> None:
        if self.plan.train.ema is not None:
            apart = not_averaged(self.dual)
            self._average = start_average(self.dual, self.plan.train.ema, exclude=apart)


def refuse_alone(plan: Plan, more: Mapping[str, str] | None = None) -> None:
    """InputError for a setting of `train` that a loop of forward and backward cannot serve.

    more  further settings, with what they do
    """
    asked = {n: w for n, w in {**ALONE, **(more or {})}.items() if getattr(plan.train, n)}
    if plan.train.checkpoint == "best":
        asked["checkpoint"] = "compares evaluations"
    if plan.train.rate.evaluates:
        asked["lr"] = "follows from evaluations"
    for name, what in asked.items():
        raise InputError(
            f"`{name}` of the recipe's `train` {what}: this loop cannot do that",
            help="use `dcil.train`, or leave it out of the recipe",
        )


def scaler_of(optimizer: torch.optim.Optimizer) -> torch.amp.GradScaler | None:
    """The GradScaler with which accelerate's or Fabric's optimizer takes its steps."""
    fabric = getattr(getattr(optimizer, "_strategy", None), "precision", None)
    scaler: torch.amp.GradScaler | None = getattr(fabric or optimizer, "scaler", None)
    return scaler


def is_in_sync(optimizer: torch.optim.Optimizer) -> bool:
    """False for accelerate's optimizer while batches of its step are missing."""
    return bool(getattr(getattr(optimizer, "gradient_state", None), "sync_gradients", True))


def _device_of(module: nn.Module) -> torch.device:
    return next(module.parameters()).device
