"""Decide which channels leave a network, and why the others stay.

In:   Dependencies, the constant values of each node, and the weights, found by looking at zeros.
Out:  Removal: the channels that go, and the reason of each that could have gone and stays; Stay:
      for each layer how many rows of zeros stay, by reason.
Not:  no weight is changed; fold_constants.py gives the neighbours what the channels gave, cut.py
      cuts.

A channel may go if each layer that reads it multiplies it with zeros only, or if it is constant and
the layer can get that constant from elsewhere.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field

import torch
from torch import Tensor, fx, nn

from dcil_dsl.extras.compact.constants import constant_columns
from dcil_dsl.model.channels.dependencies import FIXED, Dependencies, Read
from dcil_dsl.model.channels.operations import Kind, norming_of, told

# A constant is carried by a channel whose own is at least this part of the largest: dividing by
# a small one would lose digits.
STRONG = 0.1


@dataclass
class Removal:
    """gone (channels,) bool. reasons: why a channel stays that some rows of zeros would let go."""

    gone: Tensor
    reasons: dict[int, str] = field(default_factory=dict)


@dataclass
class WeighedRead:
    """A Read with its numbers.

    matters   (groups, rows, columns) bool: the weight is not zero
    constant  (groups, columns) float64: what a column always is, NaN where it depends on the input
    shared    its weights are used more than once, so that no use may change them
    receiver  the tensor that can take a constant for each row; None: there is none
    sign      -1 where the receiver is subtracted: the running mean of a batch norm
    """

    read: Read
    matters: Tensor
    constant: Tensor
    shared: bool
    receiver: str | None
    sign: int = 1

    @property
    def folds(self) -> bool:
        """The layer can be given a constant otherwise: in its receiver, or by carriers."""
        return not self.shared

    @property
    def can_take(self) -> Tensor:
        """(groups, columns): a column that may go although the layer reads it."""
        return (self.constant == 0) | (~self.constant.isnan() & self.folds)

    def carried(self, gone: Tensor) -> Tensor:
        """(groups, columns): columns that go, and whose constant the rows that stay still need."""
        needed = (self.matters & ~gone[self.read.rows][:, :, None]).any(1)
        return gone[self.read.columns] & needed & (self.constant.nan_to_num(0.0) != 0)

    def carriers(self, gone: Tensor) -> Tensor:
        """(groups, columns) float64: the constants of columns that stay, 0 where there is none."""
        return self.constant.nan_to_num(0.0).masked_fill(gone[self.read.columns], 0.0)


def readings(found: Dependencies, values: dict[fx.Node, object]) -> list[WeighedRead]:
    """Every layer of the graph that adds up columns, with what it is given."""
    weights = [read.weighing.weight for read in found.reads]
    means = _means(found)
    result = []
    for read in found.reads:
        call = read.weighing
        weight = found.model.get_parameter(call.weight).detach()
        shared = weights.count(call.weight) > 1 or _is_tied(found.model, call.weight)
        receiver = None if call.bordered or shared else _receiver(read, found, means)
        result.append(
            WeighedRead(
                read,
                matters=(call.blocks(weight) != 0).any(-1),
                constant=constant_columns(call, found, values).reshape(call.groups, -1),
                shared=shared,
                receiver=receiver,
                sign=1 if call.bias is not None else -1,
            )
        )
    return result


def fix_sums(found: Dependencies, values: dict[fx.Node, object]) -> None:
    """Keep the channels that a sum over channels reads, except those that are always zero."""
    for node, source in found.sums:
        channels, value = torch.broadcast_tensors(found.channels[source], values[source])
        found.fix(channels[value != 0], f"{told(node, found.model)} adds it up")


def find_removal(found: Dependencies, given: list[WeighedRead]) -> Removal:
    """The largest set of channels that can go together.

    What is read stays; then whole channels stay again until every tensor keeps a shape: slices of
    whole dims, groups of equal size, nothing empty, and in each group of a layer one carrier for
    constants that need one.
    """
    live = _live(found, given)
    removal = Removal(~live)
    before = None
    while before is None or not torch.equal(before, removal.gone):
        before = removal.gone.clone()
        for reading in given:
            _keep_carriers(reading, removal, found)
            _keep_balance(reading.read, removal, found)
        for node, channels in found.tensors():
            _keep_slabs(node, channels, removal, found)
    return removal


def gone_along(
    node: fx.Node, channels: Tensor, gone: Tensor, found: Dependencies
) -> dict[int, Tensor]:
    """For each dim of a node that may shrink the slices that go, (size,) bool."""
    mask = gone[channels]
    rigid = found.rigid.get(node, set())
    slices = {}
    for dim, size in enumerate(channels.shape):
        if size > 1 and dim not in rigid:
            slices[dim] = mask.movedim(dim, 0).reshape(size, -1).all(1)
    return slices


def _live(found: Dependencies, given: list[WeighedRead]) -> Tensor:
    """(channels,) bool: something that is returned depends on it, and it is not constant."""
    live = torch.zeros(found.num_channels, dtype=torch.bool)
    live[[FIXED, *found.fixed]] = True
    before = None
    while before is None or not torch.equal(before, live):
        before = live.clone()
        for reading in reversed(given):
            read = (reading.matters & live[reading.read.rows][:, :, None]).any(1)
            live[reading.read.columns[read & ~reading.can_take]] = True
    return live


def _keep(channels: Tensor, removal: Removal, reason: str) -> None:
    for channel in channels[removal.gone[channels]].unique().tolist():
        removal.reasons[channel] = reason
    removal.gone[channels] = False


def _keep_carriers(reading: WeighedRead, removal: Removal, found: Dependencies) -> None:
    if reading.receiver is not None:
        return
    carried = reading.carried(removal.gone)
    if not carried.any():
        return
    place = told(reading.read.weighing.node, found.model)
    if not reading.folds:  # rows that nothing reads, but which stay: they keep what they read
        columns = reading.read.columns[carried]
        _keep(columns, removal, f"nothing at {place} could take its constant")
        return
    constants = reading.constant.abs().nan_to_num(0.0) * carried
    strongest = reading.carriers(removal.gone).abs().amax(1)
    weak = strongest < STRONG * constants.amax(1)
    best = reading.read.columns.gather(1, constants.argmax(1, keepdim=True))
    _keep(best[weak], removal, f"it carries the constants of the others into {place}")


def _keep_balance(read: Read, removal: Removal, found: Dependencies) -> None:
    """Groups of a convolution have one size: what goes beyond the smallest count stays."""
    if read.weighing.groups == 1:
        return
    masks = [removal.gone[read.columns], removal.gone[read.rows]]
    whole = masks[0].all(1) & masks[1].all(1)
    if whole.all():
        whole[0] = False
    place = told(read.weighing.node, found.model)
    for channels, mask in zip((read.columns, read.rows), masks):
        most = min(int(mask[~whole].sum(1).min()), channels.shape[1] - 1)
        beyond = (mask.cumsum(1) > most) & mask & ~whole[:, None]
        _keep(channels[beyond], removal, f"the groups of {place} keep one size")


def _keep_slabs(node: fx.Node, channels: Tensor, removal: Removal, found: Dependencies) -> None:
    mask = removal.gone[channels]
    if not mask.any():
        return
    place = told(node, found.model)
    covered = torch.zeros_like(mask)
    for dim, slices in gone_along(node, channels, removal.gone, found).items():
        covered |= slices.reshape([-1 if d == dim else 1 for d in range(channels.dim())])
    _keep(channels[mask & ~covered], removal, f"{place} would not keep a rectangular shape")
    if removal.gone[channels].all():
        _keep(channels.reshape(-1)[:1], removal, f"{place} would be empty")


def _means(found: Dependencies) -> Counter[str]:
    """How often the graph uses each running mean: by norms, and by reading it by hand."""
    uses: Counter[str] = Counter()
    for node in found.graph.nodes:
        norm = norming_of(node, found.model)
        if norm is not None and norm.mean is not None and node.op == "call_module":
            uses[found.first[norm.mean]] += 1
        elif node.op == "get_attr" and node.target in found.first:
            uses[found.first[node.target]] += len(node.users)
    return uses


def _receiver(read: Read, found: Dependencies, means: Counter[str]) -> str | None:
    """The bias that can take a constant, or the running mean of the batch norm that follows."""
    call, model = read.weighing, found.model
    if call.bias is not None:
        return None if _is_tied(model, call.bias) else call.bias
    users = [user for user in call.node.users if isinstance(found.seen[user], Tensor)]
    norm = norming_of(users[0], model) if len(users) == 1 else None
    if norm is None or norm.mean is None or found.kind(norm.node) is not Kind.BATCH_NORM:
        return None
    return norm.mean if means[found.first[norm.mean]] == 1 else None


def _is_tied(model: nn.Module, key: str) -> bool:
    tensor = model.get_parameter(key)
    return sum(other is tensor for _, other in model.named_parameters(remove_duplicate=False)) > 1


@dataclass(frozen=True)
class Stay:
    """`count` rows of `weight` are zero and stay."""

    weight: str
    count: int
    reason: str


def find_stays(found: Dependencies, given: list[WeighedRead], removal: Removal) -> tuple[Stay, ...]:
    """By layer, in execution order, the commonest reason first."""
    why: dict[int, str] = {}
    for reading in given:  # the later reasons give way to those that stand already
        writes = reading.read.rows[reading.matters.any(2)]
        place = told(reading.read.weighing.node, found.model)
        _note(why, writes, f"{place} writes the same channel")
    for reading in given:
        place = told(reading.read.weighing.node, found.model)
        read = (reading.matters & ~removal.gone[reading.read.rows][:, :, None]).any(1)
        held, lost = read & ~reading.can_take, reading.constant.isnan()
        _note(why, reading.read.columns[held & lost], f"{place} reads it where it is not constant")
        _note(
            why, reading.read.columns[held & ~lost], f"nothing at {place} could take its constant"
        )
    why |= found.fixed | removal.reasons
    stays = []
    for reading in given:
        zero = ~reading.matters.any(2) & ~removal.gone[reading.read.rows]
        channels = reading.read.rows[zero].tolist()
        reasons = Counter(why.get(c, "what it is joined with stays") for c in channels)
        weight = reading.read.weighing.weight
        stays += [Stay(weight, count, reason) for reason, count in reasons.most_common()]
    return tuple(stays)


def _note(why: dict[int, str], channels: Tensor, reason: str) -> None:
    for channel in channels.unique().tolist():
        why.setdefault(channel, reason)
