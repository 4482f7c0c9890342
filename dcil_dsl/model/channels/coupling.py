"""Which outputs of a model's weights depend on each other.

In:   a Traced, with what its example inputs were like.
Out:  Coupling: a channel for each output of a weight; outputs with one channel are only useful, or
      only useless, together. Uncoupled, with the reason, where the graph cannot be followed.
Not:  no rule and no target; nothing is cut.

Outputs are one channel where they meet in an addition or a product, in a norm or a depthwise
convolution, or in an attention head. The groups of a grouped convolution keep one size: large ones
lose the same place in each, of their inputs or of their outputs, and a small one goes as a whole,
inputs and outputs. The model runs on the meta device: shapes only.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, fx, nn

from dcil_dsl.model.channels.dependencies import Dependencies
from dcil_dsl.model.channels.operations import told
from dcil_dsl.model.channels.rules import find_dependencies
from dcil_dsl.model.copies import copy_module
from dcil_dsl.model.side_effects import drawn_apart
from dcil_dsl.model.trace import Traced
from dcil_dsl.model.tracer import first_line

FEW = 8  # this many groups, or places in them, are enough to choose from
LARGE = 16  # in a group of this many inputs and outputs, one that carries constants costs little


class Uncoupled(Exception):
    """The graph cannot be followed; the text is the reason.

    needs_example  an example input would help
    """

    def __init__(self, reason: str, needs_example: bool = False):
        super().__init__(reason)
        self.needs_example = needs_example


@dataclass(frozen=True)
class Coupling:
    """The channel of each output.

    channels  by weight, (outputs,); a weight that the graph does not show has no entry
    fixed     channels that cannot go, with the reason
    """

    channels: Mapping[str, Tensor]
    fixed: Mapping[int, str]


def couple_outputs(traced: Traced) -> Coupling:
    """The coupling of every weight that `traced.layers` lists. Raises Uncoupled."""
    if "" in traced.opaque:
        raise Uncoupled(f"{traced.name} is kept opaque: {traced.opaque['']}")
    if not traced.like:
        raise Uncoupled("the shapes of its inputs are not known", needs_example=True)
    found = _joined_by_groups(_follow(traced))
    names = [name for layer in traced.layers for name in layer.weights]
    channels = {
        name: found.rows[found.first[name]]
        for name in dict.fromkeys(names)
        if found.first[name] in found.rows
    }
    return Coupling(channels, found.fixed)


def _follow(traced: Traced) -> Dependencies:
    arguments = traced.arguments.bind((), {**traced.like, **traced.arguments.fixed})
    try:
        return _dependencies(traced.eval, _on_meta(traced.model), arguments, traced)
    except Exception:  # any operation may have no shape function
        pass
    try:
        device = next((t.device for t in traced.model.parameters()), torch.device("cpu"))
        zeros = [
            torch.zeros_like(x, device=device) if isinstance(x, Tensor) else x for x in arguments
        ]
        with drawn_apart():
            return _dependencies(traced.eval, copy_module(traced.model), tuple(zeros), traced)
    except Exception as problem:  # whatever the forward raises for zeros is the reason
        raise Uncoupled(f"its graph does not run: {first_line(problem)}") from problem


def _dependencies(
    graph: fx.Graph, model: nn.Module, arguments: tuple[object, ...], traced: Traced
) -> Dependencies:
    return find_dependencies(graph, model, arguments, traced.opaque, joined=False)


def _on_meta(model: nn.Module) -> nn.Module:
    """A copy without numbers."""
    memo: dict[int, object] = {}
    for parameter in model.parameters():
        memo[id(parameter)] = nn.Parameter(parameter.to("meta"), parameter.requires_grad)
    for buffer in model.buffers():
        memo[id(buffer)] = buffer.to("meta")
    return copy_module(model, memo)


def _joined_by_groups(found: Dependencies) -> Dependencies:
    """What a grouped convolution joins: the places of large groups, or whole small ones.

    Half of the places leave a quarter of the weights, half of the groups leave half. But in front
    of zero padding one input of each group carries the constants of those that go: of a small group
    that is much, and a whole group needs none.
    """
    for read in found.reads:
        if read.weighing.groups == 1:
            continue
        place = told(read.weighing.node, found.model)
        places = min(read.columns.shape[1], read.rows.shape[1])
        if places >= LARGE or read.weighing.groups < FEW <= places:
            for channels in (read.columns, read.rows):
                found.join(channels[:1], channels, f"the groups of {place}")
            continue
        for group in torch.cat([read.columns, read.rows], dim=1):
            found.join(group[:1], group, f"a group of {place}")
    return found.with_one_number_each()
