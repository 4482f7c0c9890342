"""Networks with dead filters: random numbers everywhere, then whole rows set to zero.

In:   a model, the part of each layer's rows to lose, a seed.
Out:  the same model, in which no norm is the identity and no bias zero; `agree`, which holds the
      small network against it.
Not:  no test.
"""

import torch
from torch import nn


@torch.no_grad()
def enliven(model: nn.Module, seed: int = 0) -> nn.Module:
    """Norms that shift and scale and biases that are not zero, so that dead filters give some."""
    generator = torch.Generator().manual_seed(seed)

    def draw(tensor, mean=0.0, spread=0.3):
        tensor.copy_(torch.randn(tensor.shape, generator=generator) * spread + mean)

    for module in model.modules():
        if isinstance(module, nn.modules.batchnorm._BatchNorm):
            draw(module.running_mean)
            module.running_var.copy_(
                torch.rand(module.running_var.shape, generator=generator) + 0.5
            )
            draw(module.weight, mean=1.0)
        for name in ("bias", "in_proj_bias", "layer_scale", "gamma"):
            if isinstance(getattr(module, name, None), nn.Parameter):
                draw(getattr(module, name))
    return model.eval()


@torch.no_grad()
def zero_rows(model: nn.Module, part: float = 0.4, seed: int = 1) -> nn.Module:
    """Set a random part of the rows of every convolution and linear layer to zero."""
    generator = torch.Generator().manual_seed(seed)
    for module in model.modules():
        if isinstance(module, nn.modules.conv._ConvNd | nn.Linear):
            rows = torch.randperm(len(module.weight), generator=generator)
            module.weight[rows[: int(part * len(rows))]] = 0.0
    return model


@torch.no_grad()
def zero_heads(model: nn.Module, part: float = 0.4) -> nn.Module:
    """Set the first heads of every attention to zero: its values, or what reads them."""
    for index, module in enumerate(model.modules()):
        heads = getattr(module, "num_heads", None)
        if isinstance(module, nn.MultiheadAttention):
            rows, columns = module.in_proj_weight, module.out_proj.weight
        elif heads and all(hasattr(getattr(module, n, None), "weight") for n in ("qkv", "proj")):
            rows, columns = module.qkv.weight, module.proj.weight
        else:
            continue
        gone = int(part * heads) * columns.shape[1] // heads
        if index % 2:
            rows.view(3, -1, rows.shape[1])[:, :gone] = 0.0
        columns[:, :gone] = 0.0
    return model


def numel(model: nn.Module) -> int:
    return sum(parameter.numel() for parameter in model.parameters())


IMAGE = (torch.randn(2, 3, 8, 8, dtype=torch.float64, generator=torch.Generator().manual_seed(0)),)


def double(*layers):
    """The layers in a row, in float64, with numbers that tell them apart."""
    torch.manual_seed(0)
    return enliven(nn.Sequential(*layers)).double()


@torch.no_grad()
def dead(module, *rows):
    """Zero these rows of a weight."""
    module.weight[list(rows)] = 0.0


def agree(result, model, inputs=IMAGE):
    """Both networks on other inputs than those that compact has compared."""
    inputs = tuple(3 * x.flip(-1) + 1 for x in inputs)
    torch.testing.assert_close(result.model(*inputs), model(*inputs), rtol=1e-11, atol=1e-11)


class Residual(nn.Module):
    """x + b(relu(a(x))) after a stem, then a head."""

    def __init__(self, width=6):
        super().__init__()
        self.stem = nn.Conv2d(3, width, 3, padding=1)
        self.a = nn.Conv2d(width, 8, 3, padding=1, bias=False)
        self.norm = nn.BatchNorm2d(8)
        self.b = nn.Conv2d(8, width, 3, padding=1)
        self.head = nn.Conv2d(width, 4, 1)

    def forward(self, x):
        x = self.stem(x)
        return self.head(x + self.b(self.norm(self.a(x)).relu()))


def residual():
    torch.manual_seed(0)
    return enliven(Residual()).double()
