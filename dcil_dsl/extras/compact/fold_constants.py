"""Move the constants of dead parts into other tensors: whole branches, then single channels.

In:   Dependencies, the constant values of each node; the layers' readings, the channels that go.
Out:  the modules whose output is one constant for each channel, and the graph without their
      branches; the tensors that change, by name, in their full shapes.
Not:  nothing is cut yet: the network computes what it did before, whatever the channels that go
      may hold. A branch that ends in a layer without a bias has no place for its constant: it
      stays, one channel wide.

    y = x + norm(conv(act(... x)))     ==>     y = x + norm.bias      where conv is all zeros
    y = W x + b,   x_k = c always      ==>     y = W' x' + (b + c W_k)

The constant of a branch lies in the bias that the original has for it, so that the weights still
load there: a norm or layer whose weights are zero gives its bias. Through zero padding a constant
is not one: at the border fewer taps meet it. There a channel r that stays and is constant too
carries the others of its group exactly, W_r += sum over k of (c_k / c_r) W_k.
"""

from __future__ import annotations

import operator

import torch
import torch.nn.functional as F
from torch import Tensor, fx, nn

from dcil_dsl.extras.compact.constants import Values, add_up
from dcil_dsl.extras.compact.dead_channels import WeighedRead
from dcil_dsl.model.channels.dependencies import Dependencies
from dcil_dsl.model.channels.operations import (
    Conv,
    Kind,
    name_of,
    writes_into_its_input,
)


def constant_branches(found: Dependencies, values: Values) -> dict[str, Tensor]:
    """The last module of each branch that can leave, with what it always gives, (channels,)."""
    branches = {}
    for node in found.graph.nodes:
        if node.op == "call_module" and (constant := _constant(node, found, values)) is not None:
            if _is_added(node, found, values) and _leaves_no_trace(node, found):
                branches[node.target] = constant
    return branches


def replace_branch(graph: fx.Graph, node: fx.Node, model: nn.Module) -> None:
    """Put the bias of a module in the place of its call, and erase what only the call needed."""
    with graph.inserting_before(node):
        bias = graph.get_attr(f"{node.target}.bias")
        rank = _rank(model.get_submodule(str(node.target)))
        if rank > 1:
            bias = graph.call_method("reshape", (bias, 1, -1, *[1] * (rank - 2)))
    node.replace_all_uses_with(bias)
    for dead in _only_for(node):
        graph.erase_node(dead)
    _write_elsewhere(graph, bias, model)


def _write_elsewhere(graph: fx.Graph, constant: fx.Node, model: nn.Module) -> None:
    """Nothing is written into a constant, nor into what is computed of constants alone.

        y = bias; y += x     ==>     y = bias + x

    The parameter would change at each call, and it does not have the shape of the result.
    """
    constants, waiting = {constant}, [constant]
    while waiting:
        source = waiting.pop()
        for user in list(source.users):
            if user.all_input_nodes[0] is source and writes_into_its_input(user, model):
                _return_instead(graph, user)
            if set(user.all_input_nodes) <= constants and user not in constants:
                constants.add(user)
                waiting.append(user)


def _return_instead(graph: fx.Graph, node: fx.Node) -> None:
    """`y += x` becomes `y + x`, `y.relu_()` `y.relu()`; a module in place is given a copy."""
    if node.op == "call_module":
        with graph.inserting_before(node):
            node.args = (graph.call_method("clone", (node.args[0],)), *node.args[1:])
        return
    name = name_of(node)
    if node.kwargs.get("inplace"):
        node.kwargs = {**node.kwargs, "inplace": False}
    elif node.op == "call_method":
        node.target = name.removesuffix("_")
    elif node.target is getattr(operator, name, None):
        node.target = getattr(operator, name.removeprefix("i"))
    else:
        home = torch if hasattr(torch, name.removesuffix("_")) else F
        node.target = getattr(home, name.removesuffix("_"))


def _constant(node: fx.Node, found: Dependencies, values: Values) -> Tensor | None:
    """(channels,), where nothing but the channel decides the value and a bias can hold it."""
    module = found.model.get_submodule(str(node.target))
    bias = module._parameters.get("bias")
    if _rank(module) == 0 or bias is None:
        return None
    calls = [other for other in found.graph.nodes if other.target == node.target]
    key = f"{node.target}.bias"
    tied = sum(found.first[key] == first for first in found.first.values()) > 1
    value: Tensor = values[node]
    if len(calls) > 1 or tied or value.isnan().any() or value.numel() not in (1, len(bias)):
        return None
    return value.reshape(-1).expand(len(bias)).clone()


def _rank(module: nn.Module) -> int:
    """The dims of what a module gives; 1 stands for any number, the channels last."""
    match module:
        case nn.Linear():
            return 1
        case Conv():
            return module.weight.dim()
        case nn.BatchNorm2d() | nn.BatchNorm3d():
            return 4 if isinstance(module, nn.BatchNorm2d) else 5
    return 0


def _is_added(node: fx.Node, found: Dependencies, values: Values) -> bool:
    """Whether only elementwise operations read it, and some of their results are not constant."""
    ends = False
    for user in node.users:
        if found.kind(user) is not Kind.POINTWISE:
            return False
        if values[user].isnan().any():
            ends |= found.seen[user].shape == _largest(user, node, found)
        elif not _is_added(user, found, values):
            return False
        else:
            ends = True
    return ends


def _largest(user: fx.Node, node: fx.Node, found: Dependencies) -> torch.Size | None:
    """The shape that the other operands alone give a result."""
    others = [found.seen[other] for other in user.all_input_nodes if other is not node]
    shapes = [other.shape for other in others if isinstance(other, Tensor)]
    return max(shapes, key=lambda shape: shape.numel(), default=None)


def _only_for(node: fx.Node) -> list[fx.Node]:
    """The node and all before it that nothing else needs, the last first."""
    dead, waiting = {node: None}, [*node.all_input_nodes]
    while waiting:
        source = waiting.pop()
        if source.op != "placeholder" and source not in dead and set(source.users) <= dead.keys():
            dead[source] = None
            waiting += source.all_input_nodes
    return list(dead)


def _leaves_no_trace(node: fx.Node, found: Dependencies) -> bool:
    """Nothing that would be erased writes into a tensor that others read."""
    dead = _only_for(node)
    for writer in dead:
        if writes_into_its_input(writer, found.model):
            if not all(set(source.users) <= set(dead) for source in writer.all_input_nodes):
                return False
    return True


@torch.no_grad()
def fold_constants(model: nn.Module, given: list[WeighedRead], gone: Tensor) -> dict[str, Tensor]:
    """Hand the constants of channels that go to biases, running means and carriers."""
    folded: dict[str, Tensor] = {}
    for reading in given:
        carried = reading.carried(gone)
        if not carried.any():
            continue
        call = reading.read.weighing
        weight = model.get_parameter(call.weight).detach()
        constant = torch.where(carried, reading.constant, 0.0)
        if reading.receiver is not None:
            delta = add_up(call.blocks(weight), constant).reshape(-1)
            owner, _, name = reading.receiver.rpartition(".")
            module = model.get_submodule(owner)
            before = getattr(module, name).detach()
            folded[reading.receiver] = (before.double() + reading.sign * delta).to(before)
        else:
            folded[call.weight] = _carried(reading, weight, constant, gone)
    return folded


def _carried(reading: WeighedRead, weight: Tensor, constant: Tensor, gone: Tensor) -> Tensor:
    """The weight in which each group's carrier does the work of its other columns too."""
    call = reading.read.weighing
    carriers = reading.carriers(gone)
    carrier = carriers.abs().argmax(1, keepdim=True)
    # A group that hands over nothing may have no carrier: 0 / 0 there.
    share = (constant / carriers.gather(1, carrier)).masked_fill(constant == 0, 0.0)
    blocks = call.blocks(weight.double()).clone()  # (groups, rows, columns, taps)
    place = carrier[:, None, :, None].expand(-1, blocks.shape[1], -1, blocks.shape[3])
    added = (blocks * share[:, None, :, None]).sum(2, keepdim=True)
    blocks.scatter_add_(2, place, added)
    return call.unblock(blocks, weight.shape).to(weight)
