"""`DcilCallback`: a recipe inside Lightning's Trainer (`pip install 'dcil-dsl[lightning]'`).

In:   a recipe; a LightningModule with a training_step that returns its loss.
Out:  the module trained on every path of the recipe, evaluated and saved as the sparse network.
Not:  no loop, no optimizer unless asked: those are the module's and Trainer's.

The training_step runs once for each path, on that path's weights: what it returns is the recipe's
`model(path)`. The module is not traced, so it may contain any Python. Attributes that it sets on
the way (metrics, lists, hidden states) are kept from the deployed path alone; the other paths see
them as they were before the step. In checkpoints the module's weights are those of the sparse
network; what resumes the other paths is the callback's state.
"""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.strategies import DDPStrategy
from lightning.pytorch.utilities import rank_zero_warn
from torch import Tensor, nn
from torch.nn.utils import clip_grad_norm_
from torch.utils import _pytree as pytree

from dcil_dsl.compiler import compile_plan
from dcil_dsl.compiler.collapse import collapse_in_place, tensors_of
from dcil_dsl.compiler.dual import NOT_BROADCAST, Dual
from dcil_dsl.compiler.privatize import twin_names
from dcil_dsl.diagnostics import Diagnostics, InputError
from dcil_dsl.exporting.export import export
from dcil_dsl.integrations.lightning_fit import (
    before_ddp,
    length_of,
    loss_scale,
    num_optimizers,
    refuse_callbacks,
    refuse_strategy,
)
from dcil_dsl.jobs.prepare import read_recipe, warn_in_python
from dcil_dsl.jobs.pruner import refuse_alone
from dcil_dsl.lang.recipe import Recipe
from dcil_dsl.model.calls import copy_tensors
from dcil_dsl.model.side_effects import REMEMBERED
from dcil_dsl.model.trace import trace_opaque
from dcil_dsl.plan.plan import Plan
from dcil_dsl.plan.resolve import resolve_recipe
from dcil_dsl.training.distributed import Ranks, begin_step, current_ranks
from dcil_dsl.training.losses import total_loss
from dcil_dsl.training.optim import forget_state, set_rate
from dcil_dsl.training.sparsity import SparsityError, check_sparsity, masks_step
from dcil_dsl.words.losses import CrossEntropy, ModelLoss
from dcil_dsl.words.tensors.outputs import counted_positions

OWN_STEP = "the steps of a LightningModule run as they are"


class DcilCallback(Callback):
    """Prunes a LightningModule while Trainer fits it.

        Trainer(max_epochs=10, callbacks=[DcilCallback("net.prune")]).fit(module, loader)

    After `fit` the module is the sparse network itself, zeros in place.

    recipe     a Recipe, a Path, the name of a file, or the text of a recipe
    network    the attribute of the module whose outputs `kl` compares ("net"); None: the smallest
               part that holds every pruned layer
    optimizer  "module": what configure_optimizers gives. "recipe": the recipe's optimizer, rate
               and clipping
    overrides  as of dcil.load

    plan, dual  of the fit that is running, or was

    Trainer's `max_epochs` replaces the recipe's number of epochs, with a warning. Only checkpoints
    at the recipe's sparsity compete for what a ModelCheckpoint monitors.
    Raises RecipeError; InputError for what it cannot serve, by name; SparsityError at the end of a
    fit that ran all steps and does not have the recipe's sparsity.
    """

    def __init__(
        self,
        recipe: str | Path | Recipe,
        *,
        network: str | None = None,
        optimizer: str = "module",
        overrides: Mapping[str, str] | None = None,
    ) -> None:
        if optimizer not in ("module", "recipe"):
            raise InputError(f'optimizer is {optimizer!r}: "module" or "recipe"')
        self.recipe = read_recipe(recipe, overrides or {})
        self.network, self.optimizer = network, optimizer
        self.plan: Plan | None = None
        self.dual: Dual | None = None
        self._resumed: dict[str, Any] | None = None
        self._patched: dict[str, Any] = {}
        self._raw: dict[str, Tensor] = {}  # while the sparse weights stand in their place
        self._hidden: list[tuple[dict[str, Any], dict[str, Any]]] = []  # twins, likewise
        self._moved = False
        self.ranks = Ranks()

    # -- the start of a fit -------------------------------------------------------------------

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Compile when Trainer makes the optimizers: only then are data and weights in place."""
        if stage != "fit":
            return
        if not pl_module.automatic_optimization:
            raise InputError(
                "the module optimizes manually: its training_step is run once for each path"
            )
        if "dataloader_iter" in inspect.signature(pl_module.training_step).parameters:
            raise InputError("training_step takes dataloader_iter: each path needs the same batch")
        refuse_callbacks(trainer)
        refuse_strategy(trainer)
        self.ranks = Ranks()
        configure = pl_module.configure_optimizers

        def configured() -> Any:
            if "training_step" not in self._patched:  # of several processes it is compiled before
                self._compile(trainer, pl_module)
            if self.optimizer == "recipe":
                assert self.plan is not None
                return self.plan.make_optimizer(self.dual)
            found = configure()
            if num_optimizers(found) > 1:
                raise InputError("the module has several optimizers: a recipe's step has one")
            return found

        self._patch(pl_module, "configure_optimizers", configured)
        clip = pl_module.configure_gradient_clipping

        def clipped(*args: Any, **kwargs: Any) -> None:  # the last hook before the optimizer's step
            clip(*args, **kwargs)
            assert self.dual is not None
            self.dual.add_penalties(trainer.global_step)

        self._patch(pl_module, "configure_gradient_clipping", functools.wraps(clip)(clipped))
        if isinstance(trainer.strategy, DDPStrategy):
            before_ddp(trainer.strategy, lambda: self._compile_on_each(trainer, pl_module))

    def _compile_on_each(self, trainer: Trainer, module: LightningModule) -> None:
        """Compile the first process's module on each, for DistributedDataParallel to wrap."""
        self.ranks = current_ranks()
        with torch.no_grad():
            self.ranks.copy_first([*module.parameters(), *module.buffers()])
        self._compile(trainer, module)
        assert self.dual is not None
        own = getattr(module, NOT_BROADCAST, ())
        self._patch(module, NOT_BROADCAST, [*own, *vars(self.dual)[NOT_BROADCAST]])

    def _compile(self, trainer: Trainer, module: LightningModule) -> None:
        steps, epochs = length_of(trainer)
        recipe = self.recipe
        if recipe.train.epochs.value != epochs:
            asked = f"max_epochs={epochs}"
            if epochs != trainer.max_epochs:
                asked = f"max_steps={trainer.max_steps}, {epochs} epochs of {steps} steps,"
            rank_zero_warn(f"{asked} replaces the recipe's {recipe.train.epochs.value:g} epochs")
            changed = {**dict(recipe.overrides), "train.epochs": f"{epochs}ep"}
            recipe = read_recipe(recipe.given, changed)
        report = Diagnostics(list(recipe.warnings))
        traced = trace_opaque(module, OWN_STEP)
        plan = resolve_recipe(recipe, traced, steps, report, None)
        for diagnostic in report.warnings:
            warn_in_python(diagnostic)
        refuse_alone(plan, more={"ema": "keeps a second set of weights"})
        _refuse_losses(plan)
        self.plan, self.dual = plan, compile_plan(plan, traced)
        if self._resumed is not None:
            self.dual.load_state_dict(self._resumed["dual"])
            self._resumed = None
        self._own_step = module.training_step
        self._patch(module, "training_step", self._step_of(trainer, module))
        for callback in trainer.callbacks:
            if isinstance(callback, ModelCheckpoint) and callback.monitor is not None:
                vars(callback)["check_monitor_top_k"] = self._competing(callback)

    def _competing(self, callback: ModelCheckpoint) -> Callable[..., bool]:
        """Its check_monitor_top_k, refused to a network below the recipe's sparsity."""
        own = type(callback).check_monitor_top_k

        def check(trainer: Trainer, current: Tensor | None = None) -> bool:
            return self.is_finished() and bool(own(callback, trainer, current))

        return check

    def is_finished(self) -> bool:
        """Whether the masks have the sparsity of the recipe's end."""
        assert self.plan is not None and self.dual is not None
        try:
            check_sparsity(self.dual, masks_step(self.plan.num_steps))
        except SparsityError:
            return False
        return True

    # -- one step ------------------------------------------------------------------------------

    def _step_of(self, trainer: Trainer, module: LightningModule) -> Callable[..., Any]:
        @functools.wraps(self._own_step)  # Trainer reads its signature
        def step(*args: Any, **kwargs: Any) -> Any:
            assert self.plan is not None and self.dual is not None
            now = trainer.global_step
            scale = loss_scale(trainer)
            self._moved = begin_step(self.dual, now, scale, self.ranks) or self._moved
            inner = _Inner(module, self._network_of(module))
            self._patch(module, "forward", self._forward_of(module, inner))
            try:
                with inner:
                    outputs = self.dual(*args, **kwargs)
            finally:
                self._unpatch(module, "forward")
            for name, changed in vars(module).pop(REMEMBERED, {}).get(self.plan.deploy, {}).items():
                vars(module.get_submodule(name)).update(changed)
            if any(output is None for output in outputs.values()):
                return None  # as the module said: this batch is left out
            loss = total_loss(self.plan, outputs, None, now, counted=inner.counted)
            own = outputs[self.plan.deploy]["returned"]
            return {**own, "loss": loss} if isinstance(own, Mapping) else loss

        return step

    def _forward_of(self, module: LightningModule, inner: _Inner) -> Callable[..., Any]:
        """What the graph calls once for each path: the module's own training_step."""

        def forward(*args: Any, **kwargs: Any) -> Any:
            assert self.plan is not None
            patched = vars(module).pop("forward")
            is_deployed = inner.next_path(self.plan, self.dual) == self.plan.deploy
            quiet = {} if is_deployed else dict.fromkeys(("log", "log_dict"), _silent)
            vars(module).update(quiet)
            try:
                with _attributes_apart(module, not is_deployed):
                    returned = self._own_step(*args, **kwargs)
            finally:
                for name in quiet:
                    del vars(module)[name]
                vars(module)["forward"] = patched
            if returned is None:
                return None
            loss = returned["loss"] if isinstance(returned, Mapping) else returned
            return {"loss": loss, "returned": returned, **inner.outputs()}

        return forward

    def _network_of(self, module: LightningModule) -> nn.Module:
        if self.network is not None:
            return module.get_submodule(self.network)
        assert self.plan is not None
        names = [name.split(".")[:-2] for group in self.plan.groups for name in group.parameters]
        common: list[str] = []
        for parts in zip(*names):
            if len(set(parts)) > 1:
                break
            common.append(parts[0])
        return module.get_submodule(".".join(common))

    def on_before_optimizer_step(
        self, trainer: Trainer, pl_module: LightningModule, optimizer: torch.optim.Optimizer
    ) -> None:
        assert self.plan is not None and self.dual is not None
        step = trainer.global_step
        if loss_scale(trainer) is not None and getattr(
            optimizer, "_step_supports_amp_scaling", False
        ):
            raise InputError(
                f"{type(optimizer).__name__} unscales its gradients itself, after penalties and "
                "clipping",
                help="fused=False, or precision='bf16-mixed'",
            )
        if self._moved:
            forget_state(optimizer, self.dual)
            self._moved = False
        if self.optimizer == "recipe":
            if self.plan.train.clip is not None:
                clip_grad_norm_(
                    [weight for _, weight in self.dual.trainable()], self.plan.train.clip
                )
            set_rate(optimizer, self.plan.lr_at(step))

    # -- evaluation: the sparse network ----------------------------------------------------------

    def on_validation_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._deploy()

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._undeploy()

    @torch.no_grad()
    def _deploy(self) -> None:
        """Put the sparse path's weights in the place of the trained ones."""
        if self.dual is None or self.plan is None or self._raw or not self._patched:
            return
        seen = tensors_of(self.dual, self.plan.deploy)
        for group in self.plan.groups:
            for name in group.parameters:
                weight = self.dual.get_parameter(name)
                self._raw[name] = weight.clone()
                weight.copy_(seen[name])
        for path in twin_names(self.plan):  # a Sequential would run them
            owner, _, name = path.rpartition(".")
            parts = self.dual.get_submodule(owner)._modules
            self._hidden.append((parts, dict(parts)))
            del parts[name]

    @torch.no_grad()
    def _undeploy(self) -> None:
        if self.dual is None:
            return
        for name, raw in self._raw.items():
            self.dual.get_parameter(name).copy_(raw)
        self._raw.clear()
        while self._hidden:
            parts, before = self._hidden.pop()
            parts.clear()
            parts.update(before)

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if self.dual is not None:
            masks = list(self.dual.masks.values())
            kept = sum(int(mask.sum()) for mask in masks)
            pl_module.log("sparsity", 1.0 - kept / max(sum(m.numel() for m in masks), 1))

    # -- the end, and files ----------------------------------------------------------------------

    def on_fit_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Leave the module as the sparse network that it was trained to be."""
        if self.dual is None or self.plan is None:
            return
        if trainer.global_step >= self.plan.num_steps:
            check_sparsity(self.dual, masks_step(self.plan.num_steps))
        elif not self.is_finished():
            rank_zero_warn(
                f"the fit ended at step {trainer.global_step} of {self.plan.num_steps}: the module "
                "has not reached the recipe's sparsity"
            )
        for name in list(self._patched):
            self._unpatch(pl_module, name)
        for callback in trainer.callbacks:
            vars(callback).pop("check_monitor_top_k", None)
        collapse_in_place(self.dual, pl_module)

    def on_exception(
        self, trainer: Trainer, pl_module: LightningModule, exception: BaseException
    ) -> None:
        """Warn that the module is not pruned; masks stay, as a checkpoint may be written next."""
        if self.dual is not None and self._patched:
            rank_zero_warn(
                "the fit was interrupted: the module's weights are not pruned. "
                "callback.export(module, unfinished=True) is the sparse network as it is"
            )

    def export(self, module: LightningModule, *, unfinished: bool = False) -> nn.Module:
        """A copy of the module as the sparse network, while it is fitted.

        SparsityError where the recipe's sparsity is not reached, unless `unfinished`; InputError
        before the first fit.
        """
        if self.dual is None:
            raise InputError("nothing was fitted with this callback yet")
        return self._plain(module, unfinished)

    def _plain(self, module: LightningModule, unfinished: bool) -> nn.Module:
        kept = {
            name: vars(module).pop(name) for name in list(self._patched) if name in vars(module)
        }
        assert self.dual is not None
        trainer, module._trainer = module._trainer, None
        deployed = bool(self._raw)
        self._undeploy()
        try:
            return export(self.dual, unfinished=unfinished)
        finally:
            module._trainer = trainer
            vars(module).update(kept)
            if deployed:
                self._deploy()

    def on_save_checkpoint(
        self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        """Save the sparse network's weights, so that load_from_checkpoint needs no dcil."""
        if self.dual is not None and self._patched:
            checkpoint["state_dict"] = self._plain(pl_module, unfinished=True).state_dict()

    def state_dict(self) -> dict[str, Any]:
        if self.dual is None or not self._patched:
            return {}
        deployed = bool(self._raw)
        self._undeploy()
        self.ranks.average(self.dual.score_state.values())
        state = {name: tensor.clone() for name, tensor in self.dual.state_dict().items()}
        if deployed:
            self._deploy()
        return {"dual": state}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self._resumed = state_dict or None

    # -- patches of the module ---------------------------------------------------------------------

    def _patch(self, module: LightningModule, name: str, value: Any) -> None:
        self._patched[name] = vars(module).get(name)
        vars(module)[name] = value

    def _unpatch(self, module: LightningModule, name: str) -> None:
        before = self._patched.pop(name, None)
        vars(module).pop(name, None)
        if before is not None:
            vars(module)[name] = before


@contextmanager
def _attributes_apart(module: LightningModule, apart: bool) -> Iterator[None]:
    """Give a path that is not deployed copies of the module's tensors: a metric that adds in place
    then counts the deployed path alone. What is set is dropped after the step."""
    if apart:
        for part in module.modules():
            if not type(part).__module__.startswith("torch.nn."):
                own = {n: v for n, v in vars(part).items() if isinstance(v, (Tensor, list, dict))}
                for table in ("_parameters", "_buffers", "_modules"):
                    own.pop(table, None)
                vars(part).update({n: copy_tensors(v) for n, v in own.items() if _has_tensor(v)})
    yield


def _has_tensor(value: object) -> bool:
    return any(isinstance(leaf, Tensor) for leaf in pytree.tree_leaves(value))


class _Inner:
    """The outputs of the part of a module that `kl` compares, on the path that runs; which of its
    positions count."""

    def __init__(self, module: nn.Module, network: nn.Module) -> None:
        self.network, self.count = network, 0
        self.output: object = None
        self.counted: Tensor | None = None
        self.is_root = network is module

    def __enter__(self) -> _Inner:
        self.handle = self.network.register_forward_hook(self._note, with_kwargs=True)
        return self

    def __exit__(self, *error: object) -> None:
        self.handle.remove()

    def _note(
        self, module: nn.Module, inputs: object, named: dict[str, Any], output: object
    ) -> None:
        self.output, self.counted = output, counted_positions(named)

    def next_path(self, plan: Plan, dual: Dual | None) -> str:
        assert dual is not None
        paths = plan.phases[dual.phase].paths
        self.output, self.count = None, self.count + 1
        return paths[self.count - 1]

    def outputs(self) -> dict[str, Any]:
        if isinstance(self.output, Mapping):
            return {name: value for name, value in self.output.items() if name != "loss"}
        return {} if self.output is None else {"logits": self.output}


def _silent(*args: Any, **kwargs: Any) -> None:
    """In the place of `log` on other paths: metrics are logged for the deployed path alone."""


def _refuse_losses(plan: Plan) -> None:
    for teacher in plan.teachers:
        raise InputError(
            f"`{teacher.network.called}` of path `{teacher.name}` teaches by its outputs, and this "
            "callback calls the module's training_step",
            help="use `dcil.train` or `dcil.Pruner`, or leave the teacher out of the recipe",
        )
    for loss in plan.losses:
        if isinstance(loss.term, CrossEntropy):
            raise InputError(
                f"`{loss.name}` needs a target, which only the module's training_step knows",
                help=f"`loss model({loss.term.paths[0]})` is what training_step returns there",
            )
    if not any(isinstance(loss.term, ModelLoss) for loss in plan.losses):
        raise InputError(
            "no loss of the recipe is what training_step returns", help="`loss model(sparse)`"
        )
