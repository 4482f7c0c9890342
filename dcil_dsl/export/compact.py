"""Filters, channels and heads that are gone leave the network.

In:   a model with exact zeros, and example inputs; or the files of such a one and its builder.
Out:  Compacted: a smaller network that computes the same, measured; how to get back.
Not:  how the zeros came about plays no part, and what is not understood stays, with the reason.

    zeros ==> dependencies, constants ==> what may go ==> fold ==> cut ==> run both, compare
"""

from __future__ import annotations

import copy
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, fx, nn
from torch.utils import _pytree as pytree

from dcil_dsl.diagnostics import InputError
from dcil_dsl.export.dead import find_removal, readings
from dcil_dsl.export.fold import fold_constants
from dcil_dsl.export.shapes import (
    Input,
    ModuleSizes,
    Shapes,
    TensorMap,
    expand_tensors,
    read_shapes,
)
from dcil_dsl.export.shrink import cut, gather, kept_indices, sizes_of
from dcil_dsl.export.stays import Stay, find_stays
from dcil_dsl.graph.attention import attention_calls, dead_heads, open_attention, why_closed
from dcil_dsl.graph.channels import find_dependencies
from dcil_dsl.graph.constants import find_constants
from dcil_dsl.graph.dependencies import Dependencies, first_names
from dcil_dsl.graph.trace import Traced, TraceError, constants, trace_model
from dcil_dsl.training.checkpoint import digest

TOLERANCE = 1e-5  # in float32, relative to 1 + the largest output


@dataclass(frozen=True)
class Compacted:
    """A network without its dead parts.

    model       of the original's class where its forward runs on smaller layers, else a GraphModule
                of its forward in evaluation mode
    shapes      how its tensors lie in the original's
    tensors     under the original's keys, in their small shapes
    difference  the largest of |small - original| / (1 + max |original|) over num_inputs random
                inputs
    stays       rows of zeros that could not leave, with the reason
    """

    model: nn.Module
    shapes: Shapes
    tensors: dict[str, Tensor]
    difference: float
    num_inputs: int
    stays: tuple[Stay, ...]

    def expand(self) -> dict[str, Tensor]:
        """The small weights under the original's keys and shapes; they load strictly there."""
        return expand_tensors(self.shapes, self.tensors)


def compact(model: nn.Module, example_inputs: tuple, num_inputs: int = 8) -> Compacted:
    """Remove every filter, channel and head that the output does not depend on.

    model           with exact zeros, as `dcil.export(dual)` gives it; it is not changed
    example_inputs  the arguments of forward, tensors; later inputs may have another batch size
    num_inputs      random inputs on which both networks must agree

    InputError where the model cannot be traced, or where the two networks disagree by more than
    1e-5 in float32 (1e-10 in float64), relative to 1 + the largest output: then it is our fault
    and nothing is returned.
    """
    original = copy.deepcopy(model).eval()
    place, given_inputs = _place(model), example_inputs
    example_inputs = tuple(x.cpu() for x in example_inputs)
    traced = _trace(model)
    traced.model.cpu()  # where the zeros are looked at, tensor by tensor
    graph = copy.deepcopy(traced.eval)
    opened = _open_dead(graph, traced.model)
    found = find_dependencies(graph, traced.model, example_inputs)
    values = find_constants(found)
    given = readings(found, values)
    removal = find_removal(found, given)
    kept = kept_indices(found, removal.gone)
    folded = fold_constants(traced.model, given, removal.gone)
    stays = find_stays(found, given, removal)
    first = first_names(traced.model)
    full = {**traced.model.state_dict(), **folded}
    small = {name: gather(t, kept.get(first[name], {})) for name, t in full.items()}
    maps = {
        name: TensorMap(shape=tuple(t.shape), kept=kept.get(first[name], {}))
        for name, t in full.items()
    }
    traced.model.load_state_dict(folded, strict=False)
    result, modules = _cut(traced, found, removal.gone, bool(opened))
    result.to(place)
    difference = _compare(original, result, given_inputs, num_inputs)
    shapes = Shapes(
        model=type(model).__name__,
        inputs=tuple(
            Input(shape=tuple(x.shape), dtype=str(x.dtype).removeprefix("torch."))
            for x in example_inputs
        ),
        modules=modules, tensors=maps, opened=opened, digest=digest(small),
    )  # fmt: skip
    return Compacted(result, shapes, small, difference, num_inputs, stays)


def load_compact(folder: str | Path, model: nn.Module) -> nn.Module:
    """The small network of `folder` (shapes.json, small.safetensors), cut out of its original.

    model  the original with any weights, as its builder gives it; it is not changed

    No code comes from the files. InputError where they are damaged, or belong to another model.
    """
    shapes, small = read_shapes(folder)
    return rebuild_compact(shapes, small, model)


def expand(folder: str | Path) -> dict[str, Tensor]:
    """The weights of `folder` under the original's keys and shapes: they load strictly into it."""
    return expand_tensors(*read_shapes(folder))


def rebuild_compact(shapes: Shapes, small: dict[str, Tensor], model: nn.Module) -> nn.Module:
    """Cut `model` as the shapes say, and give it the small weights."""
    _compare_keys(shapes, model)
    full = expand_tensors(shapes, small)
    traced = _trace(model)
    traced.model.cpu().load_state_dict(full)
    graph = copy.deepcopy(traced.eval)
    for node in attention_calls(graph, traced.model):
        if node.target in shapes.opened:
            open_attention(graph, node, traced.model)
    example = tuple(torch.zeros(e.shape, dtype=getattr(torch, e.dtype)) for e in shapes.inputs)
    found = find_dependencies(graph, traced.model, example)
    result, modules = _cut(traced, found, _gone(found, shapes), bool(shapes.opened))
    if modules != shapes.modules:
        both = modules | shapes.modules
        path = next(p for p in both if modules.get(p) != shapes.modules.get(p))
        raise InputError(f"the sizes of `{path}` are not those that the index map leaves")
    try:
        with torch.no_grad():
            result(*example)
    except Exception as error:  # whatever a network of wrong sizes raises
        raise InputError(f"the index map does not leave a network that runs: {error}") from error
    return result.to(_place(model))


def _trace(model: nn.Module) -> Traced:
    try:
        traced = trace_model(model)
    except TraceError as error:
        raise InputError(str(error), help="`dcil explain E401` says what can be traced") from error
    for path, reason in traced.whole.items():
        place = f"`{path}`" if path else "the model"
        raise InputError(f"{place} cannot be traced, so nothing of it can be removed: {reason}")
    return traced


def _open_dead(graph: fx.Graph, model: nn.Module) -> tuple[str, ...]:
    """Open the attention modules that have dead heads, so that these can leave."""
    calls = attention_calls(graph, model)
    names = [node.target for node in calls]
    opened = [
        node
        for node in calls
        if dead_heads(model.get_submodule(node.target))
        and why_closed(node, model) is None
        and names.count(node.target) == 1
    ]
    for node in opened:
        open_attention(graph, node, model)
    return tuple(node.target for node in opened)


def _cut(
    traced: Traced, found: Dependencies, gone: Tensor, edited: bool
) -> tuple[nn.Module, dict[str, ModuleSizes]]:
    """Cut the traced model; its own class where that class still knows how to run."""
    before = {path: sizes_of(module) for path, module in traced.model.named_modules()}
    used = {
        name
        for node in found.graph.nodes
        if node.op in ("call_module", "get_attr")
        for name in [node.target]
    }
    edited |= cut(found, gone)
    modules = {
        path: ModuleSizes(type=type(module).__name__, before=before[path], after=after)
        for path, module in traced.model.named_modules()
        if (after := sizes_of(module)) != before[path]
    }
    idle = any(
        not any(name == key or key.startswith(f"{name}.") for name in used)
        for key, _ in traced.model.named_parameters()
    )
    if not edited and not idle:
        for name in constants(traced.model):  # which its forward makes anew
            delattr(traced.model, name)
        return traced.model.eval(), modules
    small = fx.GraphModule(traced.model, found.graph, f"Small{traced.name}").eval()
    small.graph.eliminate_dead_code()
    small.delete_all_unused_submodules()
    small.recompile()
    return small, modules


def _compare(original: nn.Module, small: nn.Module, example_inputs: tuple, count: int) -> float:
    """The largest difference over random inputs, relative to 1 + the largest output."""
    generator = torch.Generator().manual_seed(0)
    worst, double = 0.0, False
    for index in range(count):
        inputs = tuple(_random(x, generator) if index else x for x in example_inputs)
        with torch.no_grad():
            pairs = zip(_run(original, inputs), _run(small, inputs), strict=True)
        for expected, given in pairs:
            double |= expected.dtype == torch.float64
            largest = 1 + expected.abs().max().item()
            worst = max(worst, (given - expected).abs().max().item() / largest)
    bound = 1e-10 if double else TOLERANCE
    if not worst <= bound:  # NaN is refused too
        raise InputError(
            f"the small network differs from the original by {worst:.1e}, more than {bound:.0e}",
            help="nothing was written; the model changes what it computes in a way that its graph "
            "does not show",
        )
    return worst


def _random(like: Tensor, generator: torch.Generator) -> Tensor:
    if not like.is_floating_point():
        return like
    return torch.randn(like.shape, generator=generator, dtype=like.dtype).to(like.device)


def _run(model: nn.Module, inputs: tuple) -> list[Tensor]:
    output = model(*[x.clone() for x in inputs])  # a forward may write into what it is given
    return [leaf for leaf in pytree.tree_leaves(output) if isinstance(leaf, Tensor)]


def _place(model: nn.Module) -> torch.device:
    first = next(model.parameters(), None)
    return torch.device("cpu") if first is None else first.device


def _compare_keys(shapes: Shapes, model: nn.Module) -> None:
    given = {name: tuple(tensor.shape) for name, tensor in model.state_dict().items()}
    for name in sorted(given.keys() | shapes.tensors.keys()):
        if name not in shapes.tensors:
            raise InputError(f"this is not the model of the shape file, which has no {name}")
        if name not in given:
            raise InputError(f"this is not the model of the shape file: it has no {name}")
        if given[name] != shapes.tensors[name].shape:
            fact = f"{list(given[name])} here and {list(shapes.tensors[name].shape)} there"
            raise InputError(f"this is not the model of the shape file: {name} is {fact}")


def _gone(found: Dependencies, shapes: Shapes) -> Tensor:
    """The channels that no index map keeps. InputError where the maps contradict each other."""
    gone = torch.zeros(found.num_channels, dtype=torch.bool)
    for axis in found.axes.values():
        gone[_left_out(axis, shapes)] = True
    gone[0] = False
    for key, dims in kept_indices(found, gone).items():
        if dims != shapes.tensors[key].lists():
            raise InputError(f"the index map of {key} does not fit those of its neighbours")
    for key, entry in shapes.tensors.items():
        if entry.kept and key not in {axis.key for axis in found.axes.values()}:
            raise InputError(f"{key} cannot be cut as its index map says")
    return gone


def _left_out(axis, shapes: Shapes) -> Tensor:
    indices = shapes.tensors[axis.key].lists().get(axis.dim)
    if indices is None:
        return axis.channels[:0]
    out = torch.ones(axis.channels.shape, dtype=torch.bool)
    for row, stays in zip(torch.atleast_2d(out), indices if out.dim() == 2 else [indices]):
        row[torch.as_tensor(stays, dtype=torch.int64)] = False
    return axis.channels[out]
