"""A vision transformer small enough for digits (Dosovitskiy et al. 2021, arXiv:2010.11929).

In:   the number of classes, the sizes.
Out:  a freshly initialised network of nn.MultiheadAttention and nn.Linear.
Not:  no weights from elsewhere. The libraries' smallest is ten times as large as digits need.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn


class EncoderBlock(nn.Module):
    """x + attention(norm(x)), then x + mlp(norm(x)); (B, tokens, width) in and out."""

    def __init__(self, width: int, num_heads: int):
        super().__init__()
        self.norm1 = nn.LayerNorm(width)
        self.attention = nn.MultiheadAttention(width, num_heads, batch_first=True)
        self.norm2 = nn.LayerNorm(width)
        inner = 4 * width
        self.mlp = nn.Sequential(nn.Linear(width, inner), nn.GELU(), nn.Linear(inner, width))

    def forward(self, x: Tensor) -> Tensor:
        y = self.norm1(x)
        x = x + self.attention(y, y, y, need_weights=False)[0]
        return x + self.mlp(self.norm2(x))


class SmallViT(nn.Module):
    """Patches, learnt positions, `num_blocks` blocks, the mean over all tokens, one Linear.

    Images (B, num_channels, image_size, image_size) -> logits (B, num_classes).
    """

    def __init__(
        self,
        num_classes: int = 10,
        num_channels: int = 3,
        image_size: int = 16,
        patch_size: int = 4,
        width: int = 64,
        num_blocks: int = 3,
        num_heads: int = 8,
    ):
        super().__init__()
        self.patches = nn.Conv2d(num_channels, width, patch_size, patch_size)
        num_tokens = (image_size // patch_size) ** 2
        self.positions = nn.Parameter(0.02 * torch.randn(1, num_tokens, width))
        self.blocks = nn.Sequential(*(EncoderBlock(width, num_heads) for _ in range(num_blocks)))
        self.norm = nn.LayerNorm(width)
        self.head = nn.Linear(width, num_classes)

    def forward(self, x: Tensor) -> Tensor:
        x = self.patches(x).flatten(2).transpose(1, 2) + self.positions
        return self.head(self.norm(self.blocks(x)).mean(1))
