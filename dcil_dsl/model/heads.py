"""Which weights make up the heads of an attention.

In:   a model and its weights that can be pruned.
Out:  HeadShare by the name of a weight.
Not:  no rule; an attention that is written otherwise than those known here has no heads.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from torch import nn

from dcil_dsl.model.layers import Weight

# Where the number of heads stands, and what the projections are called, in torch, torchvision,
# timm and transformers.
NUM_HEADS = ("num_heads", "num_attention_heads", "n_heads", "n_head", "heads")
NUM_SHARED = ("num_key_value_heads", "num_kv_heads", "n_kv_heads")
FUSED = ("in_proj_weight", "qkv", "c_attn")  # queries, keys, values: each all heads in a row
QUERY = ("q_proj", "query", "q", "q_lin", "to_q", "q_proj_weight")
KEY = ("k_proj", "key", "k", "k_lin", "to_k", "k_proj_weight")
VALUE = ("v_proj", "value", "v", "v_lin", "to_v", "v_proj_weight")
OUTPUT = ("out_proj", "proj", "o_proj", "c_proj", "out_lin", "o", "to_out.0")


@dataclass(frozen=True)
class HeadShare:
    """What of a weight belongs to each head of the attention `owner`.

    The outputs of a projection into heads, and the inputs of the one out of them (is_output
    False), lie as (parts, num_heads, width); parts is 3 where one weight makes queries, keys
    and values.
    """

    owner: str
    num_heads: int
    is_output: bool
    parts: int = 1


def find_heads(model: nn.Module, weights: Mapping[str, Weight]) -> dict[str, HeadShare]:
    """The projections of every attention whose heads are known, among `weights` by name.

    Where several heads of queries share keys and values, a head is what shares them.
    """
    found: dict[str, HeadShare] = {}
    for path, module in model.named_modules():
        num_heads = _number(module, NUM_HEADS)
        if num_heads is None:
            continue
        num_shared = _number(module, NUM_SHARED) or num_heads
        fused = _first(weights, path, FUSED)
        separate = [_first(weights, path, names) for names in (QUERY, KEY, VALUE)]
        # BERT and its relatives: `attention.output.dense` beside `attention.self`.
        beside = _first(weights, path.rpartition(".")[0], ("output.dense",))
        out = _first(weights, path, OUTPUT) or beside
        if fused and num_shared == num_heads:
            shares = {fused: HeadShare(path, num_heads, True, 3)}
        elif all(separate):
            shares = {name: HeadShare(path, num_shared, True) for name in separate}
        else:
            continue
        if out:
            shares[out] = HeadShare(path, num_shared, False)
        if all(_divides(weights[name], share) for name, share in shares.items()):
            found |= shares
    return found


def _number(module: nn.Module, names: tuple[str, ...]) -> int | None:
    for place in (module, getattr(module, "config", None)):
        for name in names:
            number = getattr(place, name, None)
            if isinstance(number, int) and number > 0:
                return number
    return None


def _first(weights: Mapping[str, Weight], path: str, names: tuple[str, ...]) -> str | None:
    """The first of these parameters, or of the weights of these submodules, below a path."""
    prefix = f"{path}." if path else ""
    names = tuple(prefix + own for name in names for own in (name, f"{name}.weight"))
    return next((name for name in names if name in weights), None)


def _divides(weight: Weight, share: HeadShare) -> bool:
    size = weight.shape[weight.out_axis if share.is_output else weight.in_axis]
    return size % (share.parts * share.num_heads) == 0
