"""How weights of every layout fall into units, against the definition, weight by weight."""

import itertools
import math

import pytest
import torch
from torch import nn

from dcil_dsl.model.layers import Weight, find_heads
from dcil_dsl.model.trace import trace_model
from dcil_dsl.plan.units import Misfit, cut_weight, tensor_core_obstacle
from dcil_dsl.words.granularity import Block, Channel, Filter, Head, Pattern

LAYOUTS = {
    "linear": Weight("w", (4, 8)),
    "in, out": Weight("w", (8, 4), out_axis=1, in_axis=0),
    "convolution": Weight("w", (4, 8, 3, 1)),
    "one by one": Weight("w", (4, 8, 1, 1)),
    "grouped": Weight("w", (8, 4, 3), groups=2),
    "depthwise": Weight("w", (8, 1, 3, 3), groups=8),
    "transposed": Weight("w", (8, 4, 2, 2), out_axis=1, in_axis=0),
    "transposed and grouped": Weight("w", (8, 4, 2), out_axis=1, in_axis=0, groups=2),
}


def places(weight):
    """For each weight in the order of memory: its output and input channel, counted over all
    groups, and its position in the kernel. By the definition of a grouped convolution."""
    per_group = weight.shape[0] // weight.groups
    for index in itertools.product(*map(range, weight.shape)):
        group = index[0] // per_group
        output, input = index[weight.out_axis], index[weight.in_axis]
        if weight.out_axis == 0:
            input += group * weight.shape[1]
        else:
            output += group * weight.shape[1]
        yield output, input, index[2:]


def units_of(weight, cut):
    """The number of the unit that each weight is in, by the cut."""
    unit = torch.arange(cut.num_units).view(
        [size if i in cut.units else 1 for i, size in enumerate(cut.shape)]
    )
    return unit.expand(cut.shape).reshape(-1).tolist()


def same_partition(weight, cut, key):
    """Whether two weights share a unit of the cut exactly where they share a key."""
    keys = [key(*place) for place in places(weight)]
    pairs = set(zip(units_of(weight, cut), keys, strict=True))
    return len(pairs) == cut.num_units == len(set(keys))


@pytest.mark.parametrize("layout", LAYOUTS)
def test_a_filter_is_an_output_and_a_channel_an_input_of_any_layout(layout):
    weight = LAYOUTS[layout]
    filters = cut_weight(weight, Filter())
    assert same_partition(weight, filters, lambda output, input, kernel: output)
    channels = cut_weight(weight, Channel())
    assert same_partition(weight, channels, lambda output, input, kernel: input)


@pytest.mark.parametrize("layout", [name for name in LAYOUTS if name != "depthwise"])
@pytest.mark.parametrize("height, width", [(4, 1), (1, 4), (2, 2), (4, 4)])
def test_a_block_is_a_tile_of_outputs_by_inputs_of_any_layout(layout, height, width):
    weight = LAYOUTS[layout]
    cut = cut_weight(weight, Block(height=height, width=width))
    assert same_partition(
        weight, cut, lambda output, input, kernel: (output // height, input // width, kernel)
    )


@pytest.mark.parametrize("layout", [name for name in LAYOUTS if name != "depthwise"])
def test_the_four_of_a_pattern_are_inputs_in_a_row_of_any_layout(layout):
    weight = LAYOUTS[layout]
    cut = cut_weight(weight, Pattern(n=2, m=4))
    assert same_partition(weight, cut, lambda output, input, kernel: (output, input // 4, kernel))
    (along,) = set(range(len(cut.shape))) - set(cut.units)
    assert cut.shape[along] == 4


@pytest.mark.parametrize(
    "weight, unit, reason",
    [
        (Weight("w", (4, 6)), Pattern(n=2, m=4), "6 inputs, not a multiple of 4"),
        (LAYOUTS["depthwise"], Pattern(n=2, m=4), "1 input a group, not a multiple of 4"),
        (Weight("w", (6, 4)), Block(height=4, width=2), "6 outputs, not a multiple of 4"),
        (Weight("w", (6, 6, 3), groups=2), Block(height=6, width=1), "3 outputs a group"),
        (Weight("w", (4, 6)), Head(), "not belong to an attention with known heads"),
    ],
)
def test_what_does_not_divide_is_reported_with_the_numbers(weight, unit, reason):
    with pytest.raises(Misfit, match=reason):
        cut_weight(weight, unit)


@pytest.mark.parametrize(
    "weight, reason",
    [
        (Weight("w", (32, 64)), ""),
        (Weight("w", (32, 64, 1, 1)), ""),
        (Weight("w", (24, 64)), "24 x 64: both sides must be multiples of 16"),
        (Weight("w", (64, 40)), "64 x 40: both sides must be multiples of 16"),
        (Weight("w", (32, 64, 3, 3)), "a 3 x 3 kernel is not a matrix product in torch"),
        (Weight("w", (64, 32, 1, 1), groups=2), "2 groups are separate small products"),
    ],
)
def test_what_sparse_tensor_cores_do_not_run_is_reported_with_the_reason(weight, reason):
    assert tensor_core_obstacle(weight, Pattern(n=2, m=4)) == reason
    assert "2:4, not 1:4" in tensor_core_obstacle(weight, Pattern(n=1, m=4))


# -- heads -----------------------------------------------------------------------------------


def weights_of(model):
    return {w.name: w for layer in trace_model(model).layers for w in layer.prunable}


class Attends(nn.Module):
    def __init__(self, **settings):
        super().__init__()
        self.attention = nn.MultiheadAttention(6, 3, batch_first=True, **settings)
        self.after = nn.Linear(6, 6)

    def forward(self, x):
        return self.after(self.attention(x, x, x)[0])


def test_a_head_is_its_rows_of_queries_keys_and_values_and_its_columns_of_the_output():
    weights = weights_of(Attends())
    heads = find_heads(Attends(), weights)
    assert set(heads) == {"attention.in_proj_weight", "attention.out_proj.weight"}
    (rows,) = (name for name in heads if "in_proj" in name)
    (columns,) = (name for name in heads if "out_proj" in name)
    unit = Head()
    cut = cut_weight(weights[rows], unit, heads[rows])
    of_row = torch.tensor(units_of(weights[rows], cut)).view(18, 6)
    assert of_row[:, 0].tolist() == 3 * [0, 0, 1, 1, 2, 2]
    assert (of_row == of_row[:, :1]).all()
    cut = cut_weight(weights[columns], unit, heads[columns])
    of_column = torch.tensor(units_of(weights[columns], cut)).view(6, 6)
    assert of_column[0].tolist() == [0, 0, 1, 1, 2, 2]
    assert (of_column == of_column[:1]).all()


def test_a_pruned_head_adds_nothing_to_its_attention():
    """All but head 1 pruned, against softmax(q k / sqrt d) v of that head alone, written out."""
    torch.manual_seed(0)
    model, x = Attends(bias=False).double(), torch.rand(2, 5, 6, dtype=torch.double)
    attention = model.attention
    with torch.no_grad():
        q, k, v = (x @ part[2:4].T for part in attention.in_proj_weight.view(3, 6, 6))
        alone = ((q @ k.transpose(1, 2) / math.sqrt(2)).softmax(-1) @ v) @ (
            attention.out_proj.weight[:, 2:4].T
        )
        weights = weights_of(model)
        for name, share in find_heads(model, weights).items():
            cut = cut_weight(weights[name], Head(), share)
            weight = model.get_parameter(name)
            gone = torch.tensor(units_of(weights[name], cut)).view(weight.shape) != 1
            weight.masked_fill_(gone, 0.0)
    assert torch.allclose(attention(x, x, x)[0], alone, atol=1e-12)


def test_projections_with_inputs_of_their_own_sizes_are_heads_too():
    weights = {
        f"attention.{name}": Weight(f"attention.{name}", shape)
        for name, shape in [
            ("q_proj_weight", (6, 6)),
            ("k_proj_weight", (6, 4)),
            ("v_proj_weight", (6, 5)),
            ("out_proj.weight", (6, 6)),
        ]
    }
    heads = find_heads(Attends(kdim=4, vdim=5), weights)
    assert {name: (h.parts, h.is_output) for name, h in heads.items()} == {
        "attention.q_proj_weight": (1, True),
        "attention.k_proj_weight": (1, True),
        "attention.v_proj_weight": (1, True),
        "attention.out_proj.weight": (1, False),
    }


def linear_weights(model):
    """Every matrix of a model whose forward is of no interest here."""
    found = {}
    for path, module in model.named_modules():
        if isinstance(module, nn.Linear) or type(module).__name__ == "Conv1D":
            axes = (0, 1) if isinstance(module, nn.Linear) else (1, 0)
            found[f"{path}.weight"] = Weight(f"{path}.weight", tuple(module.weight.shape), *axes)
    return found


def heads_of(model):
    return {
        name.removeprefix("encoder.").removeprefix("model."): (h.num_heads, h.parts, h.is_output)
        for name, h in find_heads(model, linear_weights(model)).items()
    }


def test_the_heads_of_timms_and_transformers_models_are_found():
    timm = pytest.importorskip("timm")
    model = timm.create_model("vit_tiny_patch16_224", depth=1, img_size=32)
    assert heads_of(model) == {
        "blocks.0.attn.qkv.weight": (3, 3, True),
        "blocks.0.attn.proj.weight": (3, 1, False),
    }
    hf = pytest.importorskip("transformers")
    bert = hf.BertModel(
        hf.BertConfig(
            hidden_size=12,
            num_attention_heads=3,
            num_hidden_layers=1,
            intermediate_size=8,
            vocab_size=7,
        )
    )
    assert heads_of(bert) == {
        "layer.0.attention.self.query.weight": (3, 1, True),
        "layer.0.attention.self.key.weight": (3, 1, True),
        "layer.0.attention.self.value.weight": (3, 1, True),
        "layer.0.attention.output.dense.weight": (3, 1, False),
    }
    gpt2 = hf.GPT2Model(hf.GPT2Config(n_embd=12, n_head=3, n_layer=1, vocab_size=7))
    assert heads_of(gpt2) == {
        "h.0.attn.c_attn.weight": (3, 3, True),
        "h.0.attn.c_proj.weight": (3, 1, False),
    }


def test_heads_of_queries_that_share_keys_and_values_are_one():
    hf = pytest.importorskip("transformers")
    config = hf.LlamaConfig(
        hidden_size=16,
        num_attention_heads=4,
        num_key_value_heads=2,
        num_hidden_layers=1,
        intermediate_size=8,
        vocab_size=7,
    )
    model = hf.LlamaModel(config)
    assert heads_of(model) == {
        "layers.0.self_attn.q_proj.weight": (2, 1, True),
        "layers.0.self_attn.k_proj.weight": (2, 1, True),
        "layers.0.self_attn.v_proj.weight": (2, 1, True),
        "layers.0.self_attn.o_proj.weight": (2, 1, False),
    }
