"""A network and plans for weights in parts."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from dcil_dsl.lang import loads
from dcil_dsl.model import trace_model
from dcil_dsl.plan import plan as p
from dcil_dsl.plan.resolve import resolve_recipe
from support.tiny_run import BATCH, NUM_CLASSES, STEPS_PER_EPOCH


class PartsNet(nn.Module):
    """Convolutions, one transposed, whose filters are no rows; nothing depends on the batch."""

    def __init__(self):
        super().__init__()
        self.conv1 = nn.Conv2d(1, 8, 3, padding=1)
        self.conv2 = nn.Conv2d(8, 8, 3, stride=2)
        self.up = nn.ConvTranspose2d(8, 6, 2)
        self.fc = nn.Linear(6, NUM_CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        x = self.conv2(self.conv1(x).relu()).relu()
        return self.fc(self.up(x).relu().mean((2, 3)))


BOTH = """mix {
  path sparse = masked
  path dense  = full
  update kept   by sparse
  update pruned by dense
  private last Linear
  loss cross_entropy(sparse)
  loss cross_entropy(dense)
  deploy sparse
}"""


ALONE = """mix {
  path sparse = VIEW
  update kept   by sparse
  update pruned by sparse
  loss cross_entropy(sparse)
  deploy sparse
}"""


def plan_of(statements: str, mix: str = BOTH, net=PartsNet) -> p.Plan:
    """Ten steps; masks move at every other one, up to the sixth by a ramp."""
    named = "layers convs = Conv2d, ConvTranspose2d" if "convs" in statements else ""
    text = f"""language 1
    {named}
    pruning {{ schedule = cubic(0ep..6 steps)  refresh = 2 steps }}
    {statements}
    {mix}
    train {{
      epochs = 2ep
      optimizer = sgd(lr=0.1, momentum=0.9, nesterov=true, weight_decay=1e-4)
      clip = 5.0
      ema = 0.9
      seed = 3
    }}"""
    example = (torch.zeros(1, 1, 8, 8),)
    plan = resolve_recipe(loads(text, "tiny.prune"), trace_model(net(), example), STEPS_PER_EPOCH)
    data, model = p.Data(batch_size=BATCH, channels=1), p.Model(classes=NUM_CLASSES)
    return plan.model_copy(update={"data": data, "model": model})
