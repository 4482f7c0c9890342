"""Dead heads leave an attention, whether a module or written out; half a head does not."""

import pytest
import torch
import torch.nn.functional as F
from support.zeroed import agree, enliven, numel
from torch import nn

from dcil_dsl.extras.compact.compaction import compact


class Attention(nn.Module):
    """Self-attention of 4 heads, then a linear layer."""

    def __init__(self, batch_first=True):
        super().__init__()
        self.attention = nn.MultiheadAttention(16, 4, batch_first=batch_first)
        self.head = nn.Linear(16, 3)

    def forward(self, x):
        x, _ = self.attention(x, x, x, need_weights=False)
        return self.head(x)


@pytest.mark.parametrize("batch_first", [True, False])
def test_a_head_whose_values_or_outputs_are_zero_leaves_the_attention(batch_first):
    torch.manual_seed(0)
    model = enliven(Attention(batch_first)).double()
    with torch.no_grad():
        model.attention.in_proj_weight.view(3, 4, 4, 16)[:, 1] = 0.0
        model.attention.out_proj.weight[:, 12:] = 0.0
    x = (torch.randn(2, 5, 16).double(),)
    result = compact(model, x)
    # two heads of width 4: 3 * 8 rows of 16 and their biases, 16 rows of 8; the last layer
    assert numel(result.model) == 24 * 16 + 24 + 16 * 8 + 16 + 3 * 16 + 3
    agree(result, model, x)
    again = Attention(batch_first).double().eval()
    again.load_state_dict(result.expand(), strict=True)
    torch.testing.assert_close(again(*x), model(*x), rtol=1e-11, atol=1e-11)


def test_zero_queries_alone_do_not_make_a_head_dead():
    torch.manual_seed(0)
    model = enliven(Attention()).double()
    with torch.no_grad():
        model.attention.in_proj_weight[:4] = 0.0
    assert numel(compact(model, (torch.randn(2, 5, 16).double(),)).model) == numel(model)


def test_attention_that_reads_a_packed_projection_loses_whole_heads():
    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.qkv, self.out = nn.Linear(16, 48), nn.Linear(16, 16)

        def forward(self, x):
            b, n, c = x.shape
            q, k, v = self.qkv(x).reshape(b, n, 3, 4, c // 4).permute(2, 0, 3, 1, 4).unbind(0)
            x = F.scaled_dot_product_attention(q, k, v)
            return self.out(x.transpose(1, 2).reshape(b, n, c))

    torch.manual_seed(0)
    model = Net().double()
    with torch.no_grad():
        model.out.weight[:, 4:8] = 0.0
        model.out.weight[:, 8:11] = 0.0  # not the whole head
    x = (torch.randn(2, 5, 16).double(),)
    result = compact(model, x)
    assert result.model.qkv.weight.shape == (36, 16)
    agree(result, model, x)
