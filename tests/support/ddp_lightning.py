"""What the tests of DcilCallback start: the same steps on any number of processes.

In:   a folder, the number of processes, a recipe; a checkpoint to resume from, or none.
Out:  `masks-RANK.pt`, the masks of every step, and `net-RANK.pt` of each process; checkpoints of
      each epoch.
Not:  no test.
"""

import os
import sys
from pathlib import Path

import torch
from lightning.pytorch import Callback
from lightning.pytorch.callbacks import ModelCheckpoint
from torch.utils.data import DataLoader, DistributedSampler

from dcil_dsl.integrations.lightning import DcilCallback
from support.lightning_runs import Lit, loader, trainer_of


class Masks(Callback):
    """The masks of every step."""

    def __init__(self, pruning):
        self.pruning, self.seen = pruning, []

    def on_train_batch_end(self, *event):
        self.seen.append({name: mask.clone() for name, mask in self.pruning.dual.masks.items()})


def fit(folder: Path, count: int, recipe: str, resume: str | None = None) -> None:
    """Each process begins with weights of its own."""
    callback = DcilCallback(recipe)
    masks, save = Masks(callback), ModelCheckpoint(folder, save_top_k=-1, filename="{epoch}")
    several = {"devices": count, "strategy": "ddp"} if count > 1 else {}
    several["use_distributed_sampler"] = False  # it shuffles what is to be trained on
    trainer = trainer_of(callback, folder, callbacks=[save, masks], **several)
    module = Lit.of_rows_alone(seed=trainer.global_rank)
    rows = loader().dataset
    own = DistributedSampler(rows, count, trainer.global_rank, shuffle=False)
    trainer.fit(module, DataLoader(rows, 8 // count, sampler=own), ckpt_path=resume)
    torch.save(masks.seen, folder / f"masks-{trainer.global_rank}.pt")
    torch.save(module.state_dict(), folder / f"net-{trainer.global_rank}.pt")


if __name__ == "__main__":
    fit(Path(sys.argv[1]), int(sys.argv[2]), *sys.argv[3:])
    os._exit(0)  # as in ddp_pruner.py: gloo's threads may not outlive the interpreter
