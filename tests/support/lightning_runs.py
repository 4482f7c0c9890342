"""A small LightningModule, its data, a recipe for it and a quiet Trainer.

In:   parts of a recipe; settings of Trainer.
Out:  modules, loaders, trainers, the sparsity of each layer.
Not:  no test.
"""

import torch
from torch import nn
from torch.nn import functional as F
from torch.utils.data import DataLoader, TensorDataset

from support.library import needed

pl = needed("lightning.pytorch")

RECIPE = """language 1
prune Linear to 80% {
  schedule = cubic(0% run..60% run)
  {more}
}
pruning { refresh = 2 steps }
mix {
  path sparse = masked
  path dense = full
  update kept by sparse
  update pruned by dense
  private BatchNorm1d
  loss model(sparse)
  loss model(dense)
  loss kl(student=sparse, teacher=dense, temperature=2)
  deploy sparse
}
train {
  epochs = 4ep
  optimizer = sgd(lr=0.05, momentum=0.9)
  {train}
}
"""


def text(more="", train=""):
    return RECIPE.replace("{more}", more).replace("{train}", train)


class Lit(pl.LightningModule):
    """A training_step that nobody could trace: it decides by a number and logs it."""

    def __init__(self, seed=0):
        super().__init__()
        torch.manual_seed(seed)
        self.net = nn.Sequential(
            nn.Linear(6, 20), nn.BatchNorm1d(20), nn.ReLU(), nn.Linear(20, 4)
        ).double()
        self.seen = []

    @classmethod
    def of_rows_alone(cls, seed=0):
        """With a norm of each row, so that a batch may be divided among processes."""
        module = cls(seed)
        module.net[1] = nn.LayerNorm(20).double()
        return module

    def forward(self, x):
        return self.net(x)

    def training_step(self, batch, i):
        x, y = batch
        loss = F.cross_entropy(self(x), y)
        if float(loss) < 0:
            raise AssertionError
        self.log("train_loss", loss, on_step=True)
        return loss

    def validation_step(self, batch, i):
        x, y = batch
        self.seen.append(float((self.net[0].weight == 0).double().mean()))
        self.log("val_loss", F.cross_entropy(self(x), y))

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=0.05, momentum=0.9)


def loader(num=40, size=8, seed=0):
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(num, 6, dtype=torch.float64, generator=generator)
    return DataLoader(TensorDataset(x, (x[:, 0] > 0).long() + 2 * (x[:, 1] > 0).long()), size)


def trainer_of(callback, folder=None, epochs=4, callbacks=(), **more):
    quiet = dict(
        logger=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        accelerator="cpu",
        enable_checkpointing=folder is not None,
    )
    if folder is not None:
        quiet["default_root_dir"] = folder
    return pl.Trainer(max_epochs=epochs, callbacks=[callback, *callbacks], **{**quiet, **more})


def shares(module):
    return [float((module.net[i].weight == 0).double().mean()) for i in (0, 3)]
