"""Deep networks and their recipe, for tests and measurements of scale."""

from torch import nn

RECIPE = """
language 1
prune Linear to 80%
mix {
  path sparse = masked
  path dense  = full
  update kept   by sparse
  update pruned by dense
  private LayerNorm
  loss cross_entropy(sparse)
  loss cross_entropy(dense)
  deploy sparse
}
train { epochs = 2ep optimizer = sgd(lr=0.1) }
"""


class Chain(nn.Module):
    """Blocks of norm, layer, activation and shortcut, four nodes each."""

    def __init__(self, blocks, width, before=0):
        super().__init__()
        self.before = before
        self.blocks = nn.ModuleList(
            nn.ModuleList([nn.LayerNorm(width), nn.Linear(width, width)]) for _ in range(blocks)
        )

    def forward(self, x):
        for _ in range(self.before):
            x = x.relu()
        for norm, linear in self.blocks:
            x = x + linear(norm(x)).relu()
        return x
