"""Which dimensions of a weight count outputs and inputs, and which of them are whose head.

In:   a module and the name of its weight; a model for the attentions in it.
Out:  Axes of a weight; HeadShare by the name of a parameter.
Not:  no granularity and no rule (plan/cuts.py).
"""

from __future__ import annotations

from dataclasses import dataclass

from torch import nn

# Where the number of heads of an attention stands, and what its projections are called, in
# torch, torchvision, timm and transformers.
NUM_HEADS = ("num_heads", "num_attention_heads", "n_heads", "n_head", "heads")
NUM_SHARED = ("num_key_value_heads", "num_kv_heads", "n_kv_heads")
FUSED = ("qkv", "c_attn", "in_proj_weight")  # queries, keys, values: each all heads in a row
QUERY = ("q_proj", "query", "q", "q_lin", "to_q", "q_proj_weight")
KEY = ("k_proj", "key", "k", "k_lin", "to_k", "k_proj_weight")
VALUE = ("v_proj", "value", "v", "v_lin", "to_v", "v_proj_weight")
OUTPUT = ("out_proj", "proj", "o_proj", "c_proj", "out_lin", "o", "to_out.0")


@dataclass(frozen=True)
class Axes:
    """The dimensions of a weight, of its first two. `groups` cut dimension 0 (convolutions)."""

    outputs: int
    inputs: int
    groups: int = 1


@dataclass(frozen=True)
class HeadShare:
    """What of a weight belongs to each head of the attention `owner`.

    The outputs of a projection into heads, the inputs of the one out of them, lie as
    (parts, num_heads, width): three parts where one weight makes queries, keys and values.
    """

    owner: str
    num_heads: int
    is_output: bool
    parts: int = 1


def axes_of(module: nn.Module) -> Axes:
    """The axes of the matrix of connections of a layer that can be pruned."""
    match module:
        case nn.modules.conv._ConvTransposeNd():
            return Axes(1, 0, module.groups)
        case nn.modules.conv._ConvNd():
            return Axes(0, 1, module.groups)
        case nn.Embedding() | nn.EmbeddingBag():
            return Axes(1, 0)
    # transformers' Conv1D is a linear layer whose weight lies the other way round.
    return Axes(1, 0) if type(module).__name__ == "Conv1D" else Axes(0, 1)


def find_heads(model: nn.Module) -> dict[str, HeadShare]:
    """The projections of every attention whose heads are known, by the name of their weight.

    Where several heads of queries share keys and values, a head is what shares them.
    """
    found: dict[str, HeadShare] = {}
    for path, module in model.named_modules():
        num_heads = _number(module, NUM_HEADS)
        if num_heads is None:
            continue
        shared = _number(module, NUM_SHARED) or num_heads
        fused = _weight(module, path, FUSED)
        separate = [_weight(module, path, names) for names in (QUERY, KEY, VALUE)]
        out = _weight(module, path, OUTPUT) or _beside(model, path)
        if fused and shared == num_heads:
            shares = {fused: HeadShare(path, num_heads, True, 3)}
        elif all(separate) and num_heads % shared == 0:
            shares = {name: HeadShare(path, shared, True) for name in separate}
        else:
            continue
        if out:
            shares[out] = HeadShare(path, shared, False)
        if all(_divides(model, name, share) for name, share in shares.items()):
            found |= shares
    return found


def _number(module: nn.Module, names: tuple[str, ...]) -> int | None:
    for place in (module, getattr(module, "config", None)):
        for name in names:
            if isinstance(number := getattr(place, name, None), int) and number > 0:
                return number
    return None


def _weight(module: nn.Module, path: str, names: tuple[str, ...]) -> str | None:
    """The full name of the first of these parameters, or of the weights of these submodules."""
    own = dict(module.named_parameters())
    for name in names:
        for found in (name, f"{name}.weight"):
            if found in own and own[found].dim() == 2:
                return f"{path}.{found}" if path else found
    return None


def _beside(model: nn.Module, path: str) -> str | None:
    """BERT and its relatives: `attention.output.dense` beside `attention.self`."""
    parent = path.rpartition(".")[0]
    return _weight(model.get_submodule(parent), parent, ("output.dense",)) if parent else None


def _divides(model: nn.Module, name: str, share: HeadShare) -> bool:
    owner, _, own = name.rpartition(".")
    module = model.get_submodule(owner)
    axes = axes_of(module)
    size = getattr(module, own).shape[axes.outputs if share.is_output else axes.inputs]
    return size % (share.parts * share.num_heads) == 0
