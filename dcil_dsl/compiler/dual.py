"""The compiled model: one module, one graph for each mode and phase, one set of weights.

In:   the model with masks and twins registered, the graphs, the plan.
Out:  Dual: x -> {path: output}; its masks, recomputed at the steps that the plan names.
Not:  no optimizer and no loss (training/); exporting/ makes the deployable model.
"""

from __future__ import annotations

import copy
import operator
import warnings
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any, NoReturn

import torch
from torch import Tensor, fx, nn

from dcil_dsl.compiler.collapse import collapse, tensors_of
from dcil_dsl.compiler.masks import are_halved, make_masks
from dcil_dsl.compiler.privatize import mean_name, mean_names, twin_name, twin_names
from dcil_dsl.compiler.teachers import (
    checked_networks,
    follow,
    missing_network,
    still,
    teach,
)
from dcil_dsl.compiler.weight_state import (
    PrunedModule,
    add_penalties,
    begin_scores,
    clear_growth,
    follow_masks,
    grown_masks,
    scores_of,
)
from dcil_dsl.diagnostics import InputError
from dcil_dsl.masking.placement import ALL_ROWS
from dcil_dsl.masking.units import remember_half
from dcil_dsl.model.calls import apply_opaque, global_hook
from dcil_dsl.model.copies import copy_module
from dcil_dsl.model.inner_checkpoints import left_to_python, runs_through
from dcil_dsl.model.inputs import Arguments
from dcil_dsl.model.trace import WHOLE
from dcil_dsl.plan.plan import Group, Plan
from dcil_dsl.plan.schedule import is_refresh, last_refresh, sparsity_at
from dcil_dsl.words.tensors.widest import has_float64

NOT_BROADCAST = "_ddp_params_and_buffers_to_ignore"  # what DistributedDataParallel reads


class Dual(PrunedModule):
    """A GraphModule that runs the paths of a plan on one set of weights.

    In training mode the paths that the current phase needs are computed, in evaluation mode
    every path. Weights keep the original's names; the mask of a weight is the boolean buffer
    `<weight>_mask` of the same module, True = kept. `.code` is the training graph of the
    current phase.

    graphs         by (training, phase)
    forwards       the function that runs each graph
    penalties_due  the step whose penalties are not added yet
    apart          runs a forward outside of the caller's torch.compile; None: nothing is opaque
    begun          the step that was begun last; None: any may be begun next
    resets         whether the optimizer begins anew at that step, by `reset` of `train`
    networks       the frozen networks that teach, by the names of the teachers
    teaching       the teachers of the phase of the step that was begun last, by name
    averaged       the step of each average of a path, as far as it is known
    is_begun       whether any was: a flag whose value torch.compile need not watch
    """

    graphs: dict[tuple[bool, int], fx.Graph]
    forwards: dict[tuple[bool, int], Callable[..., Any]]
    penalties_due: int | None
    arguments: Arguments
    phase: int
    apart: Callable[..., Any] | None
    begun: int | None
    resets: bool
    is_begun: bool
    networks: dict[str, nn.Module]
    averaged: dict[str, int]
    teaching: tuple[tuple[str, nn.Module], ...]

    def __init__(
        self,
        model: nn.Module,
        graphs: dict[tuple[bool, int], fx.Graph],
        plan: Plan,
        arguments: Arguments,
        means: Mapping[str, nn.Module] = {},
    ):
        # fx copies attributes in the order of their use. With the model's own tables, optimizers
        # and state dicts see the model's order.
        super().__init__(nn.Module(), fx.Graph(), type(model).__name__)
        self.__dict__["_parameters"] = model._parameters
        self.__dict__["_buffers"] = model._buffers
        self.__dict__["_non_persistent_buffers_set"] = model._non_persistent_buffers_set
        # Averages are not of the model: a Sequential would run them.
        self.__dict__["_modules"] = {**model._modules, **means} if means else model._modules
        # Tensors of the model that are neither parameters nor buffers.
        self.__dict__.update({n: t for n, t in vars(model).items() if isinstance(t, Tensor)})
        self.__dict__["original"] = model  # not a submodule
        self.__dict__[WHOLE] = model
        self.__dict__["penalties_due"] = None  # the step whose penalties are not added yet
        self.__dict__["networks"], self.__dict__["averaged"] = {}, {}
        self.begun, self.is_begun, self.resets, self.teaching = None, False, False, ()
        self.plan, self.arguments = plan, arguments
        # What stays opaque may use checkpoints, and what torch.compile leaves of it to Python too.
        self.__dict__["apart"] = left_to_python() if plan.opaque else None
        self.phase = 0
        self.placement = ALL_ROWS
        # DistributedDataParallel would replace each process's own scores by the first one's.
        self.__dict__[NOT_BROADCAST] = [
            name + end
            for group in plan.groups
            for name in group.parameters
            for end in ("_mask", "_score")
        ]
        self.run_graphs(graphs)
        self.training = model.training

    def run_graphs(self, graphs: dict[tuple[bool, int], fx.Graph]) -> None:
        """Run these graphs, by (training, phase)."""
        self.__dict__["graphs"] = graphs
        self.__dict__["forwards"] = {key: method_of(graph) for key, graph in graphs.items()}
        # `self.graph = ...` would make fx write and compile a forward that Dual.forward replaces.
        self._graph = graphs[True, self.phase]

    def recompile(self) -> Any:
        """As fx does, but keep Dual.forward, which chooses among all graphs."""
        code = super().recompile()
        setattr(type(self), "forward", Dual.forward)  # noqa: B010
        return code

    def forward(self, *args: Any, **kwargs: Any) -> dict[str, Any]:
        """{path: output}, each output in the structure that the original model returns; in training
        mode also {teacher: output} of the teachers that the phase needs.

        In evaluation mode without gradients the model may be called with other arguments than the
        graph was made for (without labels, say). In training mode TypeError for an argument that
        is not an input of the graph, and RuntimeError before the first begin_step.
        """
        if self.training and not self.is_begun and torch.is_grad_enabled():
            raise RuntimeError(
                "a forward pass in training mode before begin_step(step): masks, phase and losses "
                "depend on the training step. Call dual.begin_step(step) before each step, "
                "or dual.eval() to evaluate"
            )
        outputs = self._paths(args, kwargs)
        if self.training and self.teaching:
            return outputs | teach(self.teaching, args, kwargs)
        return outputs

    def _paths(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> dict[str, Any]:
        run = self.forwards[self.training, self.phase]
        if self.apart is not None and torch.compiler.is_compiling() and not runs_through():
            run = partial(self.apart, run)
        outputs: dict[str, Any]
        if self.arguments.live is None:
            outputs = run(self, *args, **kwargs)
            return outputs
        try:
            inputs = self.inputs(*args, **kwargs)
        except TypeError:
            if self.training or torch.is_grad_enabled():
                raise
            return self._called_otherwise(args, kwargs)
        outputs = run(self, *inputs)
        return outputs

    def _teachers(self) -> tuple[tuple[str, nn.Module], ...]:
        """What teaches in this phase. InputError where a network is missing."""
        found = []
        for name in self.plan.phases[self.phase].teachers:
            module = self.networks.get(name, self._modules.get(mean_name(name)))
            if module is None:
                raise missing_network(name)
            found.append((name, module))
        return tuple(found)

    def teach(self, networks: Mapping[str, nn.Module], copies: bool = True) -> None:
        """Take the networks of the plan's `network` teachers, by their names.

        copies  of them, or themselves

        InputError for a name that is none of them, and for another network than that of the plan.
        """
        for name, network in checked_networks(self.plan, networks).items():
            device = next((weight.device for weight in self.parameters()), None)
            self.networks[name] = still(copy_module(network) if copies else network).to(device)

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Dual:
        """Of `to`, `cuda`, `float`: the networks that teach move along."""
        for network in self.networks.values():
            network._apply(fn)
        super()._apply(fn, recurse)  # type: ignore[no-untyped-call]
        return self

    def _called_otherwise(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> dict[str, Any]:
        """Evaluation with other arguments than those of the graph: the model's own forward, with
        the weights of each path."""
        twins = tuple(twin_names(self.plan))
        return {
            path.name: apply_opaque(
                self.original, tensors_of(self, path.name), twins, args, kwargs, path.name
            )
            for path in self.plan.paths
        }

    @property
    def deployed(self) -> nn.Module:
        """The plain model of the deployed path, as its weights and masks are now: a copy, with the
        original's methods and attributes (`generate`, `config`), in evaluation mode."""
        return collapse(self).eval()

    def __getattr__(self, name: str) -> Any:
        """As of any module; of what only the original's class has, the error says where it is."""
        try:
            return super().__getattr__(name)
        except AttributeError as error:
            original = self.__dict__.get("original")
            if name.startswith("_") or not hasattr(type(original), name):
                raise
            kind = type(original).__name__
            raise AttributeError(
                f"a Dual has no `{name}`; the sparse {kind} has it: dual.deployed.{name}"
            ) from error

    def inputs(self, *args: Any, **kwargs: Any) -> tuple[Any, ...]:
        """The inputs of a graph, in its order, from the arguments of a call of the model."""
        return args if self.arguments.live is None else self.arguments.bind(args, kwargs)

    def train(self, mode: bool = True) -> Dual:
        """Call the train() or eval() of the model, which may override it; twins follow."""
        self.original.train() if mode else self.original.eval()
        for entry in self.plan.privates:
            own = self.get_submodule(entry.module)
            for path in self.plan.paths:
                if path.name != self.plan.deploy:
                    twin = self.get_submodule(twin_name(entry.module, path.name))
                    for one, other in zip(own.modules(), twin.modules(), strict=True):
                        other.training = one.training
        self.training = mode
        return self

    def __deepcopy__(self, memo: dict[int, Any]) -> Dual:
        means = {n: copy_module(self.get_submodule(n), memo) for n in mean_names(self.plan)}
        model = copy_module(self.original, memo)
        copied = Dual(model, self.graphs, self.plan, self.arguments, means)
        copied.begun, copied.is_begun, copied.resets = self.begun, self.is_begun, self.resets
        copied.networks.update({n: copy_module(net, memo) for n, net in self.networks.items()})
        copied.averaged.update(self.averaged)
        copied._in_phase(self.phase)
        copied.teaching = copied._teachers() if self.teaching else ()
        return copied

    def __reduce__(self) -> NoReturn:
        raise TypeError(
            "a Dual cannot be pickled: save dual.state_dict() and dual.plan.to_json(). A process "
            "that is spawned compiles its own: dcil.compile(plan, model), then load_state_dict()"
        )

    def load_state_dict(self, *args: Any, **kwargs: Any) -> Any:
        """As of any module. The state may be that of any step: each may be begun next."""
        result = super().load_state_dict(*args, **kwargs)
        self.forget_step()
        return result

    # -- time --------------------------------------------------------------------------------

    def begin_step(self, step: int, loss_scale: Tensor | None = None) -> bool:
        """Prepare training step `step`, counted from 0; True if masks were recomputed or the
        optimizer begins anew, so that it has something to forget (training/optim.py).

        Chooses the phase, lets moving averages of scores fade and recomputes the masks that are
        due, also those of steps that were left out. A second call for the same step does nothing:
        a step of several micro-batches may call it before each.

        loss_scale  a tensor of one number: what the loss will be multiplied by for its backward
                    pass, None where it will not be

        Raises TypeError for a step that is not an integer, ValueError for a negative or an earlier
        one, InputError where a hook is registered for all modules, RuntimeError where the step
        before had penalties and did not add them. Warns once where the step is beyond the plan's
        last.
        """
        step = self._checked(step)
        if step == self.begun:
            return False
        if self.penalties_due is not None and self.penalties_due != step:
            raise RuntimeError(
                f"step {self.penalties_due} ended without its penalties: call "
                "add_penalties(step) between backward() and the optimizer's step()"
            )
        if hook := global_hook():
            raise InputError(
                f"the hook `{hook}` was registered for all modules after compiling",
                help="register it on the modules that need it, before `dcil.compile`",
            )
        self._in_phase(self._phase_of(step))
        phase = self.plan.phases[self.phase]
        begin_scores(self, phase, loss_scale)
        due = self.due(step)
        self._refresh_all([(group, last_refresh(group, step)) for group in due])
        clear_growth(self, phase)
        follow(self, step, self.averaged)
        self.teaching = self._teachers()
        before = step - 1 if self.begun is None else self.begun
        self.resets = any(before < time <= step for time in self.plan.train.reset)
        self.begun, self.is_begun = step, True
        if self.plan.has_penalties:
            self.__dict__["penalties_due"] = step
        return bool(due) or self.resets

    def forget_step(self) -> None:
        """Let any step be begun next, as after a checkpoint was loaded."""
        self.begun = None
        self.averaged.clear()
        self.__dict__["penalties_due"] = None

    def _checked(self, step: int) -> int:
        step, num_steps = operator.index(step), self.plan.num_steps
        if step < 0:
            raise ValueError(f"begin_step({step}): steps count from 0")
        if self.begun is not None and step < self.begun:
            raise ValueError(
                f"begin_step({step}) after step {self.begun}: masks and scores cannot go back. "
                "Load the state of that step first (load_state_dict), or call forget_step()"
            )
        if step >= num_steps and not self.__dict__.get("is_past"):
            self.__dict__["is_past"] = True
            warnings.warn(
                f"begin_step({step}): the plan has {num_steps:,} steps, 0 to {num_steps - 1:,}; "
                "the masks stay as they are at its end. Does `epochs` of the recipe, or "
                "steps_per_epoch, agree with this loop?",
                stacklevel=3,
            )
        return step

    def due(self, step: int) -> list[Group]:
        """The groups whose masks begin_step(step) would recompute."""
        if step == self.begun:
            return []
        return [group for group in self.plan.groups if self._is_due(group, step)]

    def _is_due(self, group: Group, step: int) -> bool:
        """Whether masks have to move: at this step, or at one since the last that was begun."""
        if is_refresh(group, step):
            return True
        moved = last_refresh(group, step)
        if self.begun is not None:
            return moved > self.begun
        # After a checkpoint the masks are those of its step. A fresh Dual keeps every weight.
        # Where a limit decides, masks may keep every weight for good.
        return sparsity_at(group, moved) > 0 and all(
            bool(self.get_buffer(f"{name}_mask").all()) for name in group.parameters
        )

    def add_penalties(self, step: int) -> None:
        """Add the gradients of the recipe's penalties to those of the weights, once a step.

        Call it between backward(), with the gradients unscaled, and the optimizer's step(). A
        recipe without a `penalty` does not need it.
        """
        add_penalties(self, step)
        self.__dict__["penalties_due"] = None

    @torch.no_grad()
    def refresh(self, step: int) -> None:
        """Recompute every mask for `step`, due or not."""
        self._in_phase(self._phase_of(step))
        self._refresh_all([(group, step) for group in self.plan.groups])

    @torch.no_grad()
    def _refresh_all(self, due: list[tuple[Group, int]]) -> None:
        """Refresh groups, each for its step. Equal masks on every device need float64: where the
        device has none, refresh a copy on the CPU."""
        weight = next(self.parameters(), None)
        if not due or weight is None or has_float64(weight.device):
            for group, step in due:
                self._refresh(group, step)
            return
        copied = copy.deepcopy(self).cpu()
        for group, step in due:
            copied._refresh(group, step)
        own = self.state_dict(keep_vars=True)
        for name, tensor in copied.state_dict().items():
            own[name].copy_(tensor)

    @torch.no_grad()
    def _refresh(self, group: Group, step: int) -> None:
        scores = scores_of(self, group, step)
        if group.regrow is not None:
            masks = grown_masks(self, group, scores, step)
        else:
            masks = make_masks(group, scores, step, placement=self.placement)
        for name, mask in zip(group.parameters, masks, strict=True):
            # In place: a compiled step reads the same tensor again.
            self.get_buffer(f"{name}_mask").copy_(mask)
        for name, holds in zip(group.parameters, are_halved(group, step), strict=False):
            remember_half(self.get_buffer(f"{name}_mask"), holds)  # the host does not read masks
        follow_masks(self, group, scores, step)

    def _phase_of(self, step: int) -> int:
        return self.plan.phases.index(self.plan.phase_at(step))

    def _in_phase(self, phase: int) -> Dual:
        if phase != self.phase:
            # `self.graph = ...` would make fx compile a forward. A path that runs every few steps
            # changes the phase as often.
            self.phase, self._graph = phase, self.graphs[True, phase]
        return self

    @property
    def code(self) -> str:
        """The training graph of the current phase as Python."""
        return self._graph.python_code("self").src


def method_of(graph: fx.Graph) -> Callable[..., object]:
    """(module, *inputs) -> what the graph computes with the attributes of the module.

    A GraphModule of the graph would copy each of them first, which is most of the work for many.
    """
    writer = fx.GraphModule(nn.Module(), fx.Graph())
    writer.graph = graph
    return type(writer).forward
