"""What the tests of Pruner start under torchrun: the same steps on any number of ranks.

In:   the name of the result.
Out:  NAME.pt of rank 0: the network trained `through`, and one `resumed` after half of the steps
      from the state that rank 0 saved.
Not:  no test.
"""

import os
import sys

import torch
from torch import distributed, nn
from torch.nn.parallel import DistributedDataParallel

import dcil_dsl as dcil
from support.two_paths import two_paths

RECIPE = two_paths(
    "prune Linear to 80% { schedule = cubic(0% run..60% run)  score = movement }\n"
    "pruning { refresh = 3 steps }",
    train="epochs = 4ep  optimizer = sgd(lr=0.05, momentum=0.9)",
)
X = torch.randn(40, 6, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
Y = (X[:, 0] > 0).long() + 2 * (X[:, 1] > 0).long()
STEPS, HALF = 20, 10


class Loop:
    """A Pruner in DistributedDataParallel; each rank begins with weights of its own."""

    def __init__(self):
        torch.manual_seed(distributed.get_rank())
        net = nn.Sequential(nn.Linear(6, 20), nn.ReLU(), nn.Linear(20, 4)).double()
        self.pruner = dcil.Pruner(RECIPE, net, steps_per_epoch=5)
        self.pruner.module = DistributedDataParallel(self.pruner.dual)
        self.optimizer = self.pruner.make_optimizer()

    def train(self, steps):
        rank, count = distributed.get_rank(), distributed.get_world_size()
        for step in steps:
            rows = slice(step % 5 * 8 + rank, step % 5 * 8 + 8, count)
            self.pruner.step_loss(X[rows], target=Y[rows]).backward()
            self.pruner.step(self.optimizer)

    def result(self):
        return self.pruner.export().state_dict()


def main(name: str) -> None:
    distributed.init_process_group("gloo")
    through = Loop()
    through.train(range(HALF))
    saved = {"pruner": through.pruner.state_dict(), "optimizer": through.optimizer.state_dict()}
    if distributed.get_rank() == 0:
        torch.save(saved, f"{name}-half.pt")
    distributed.barrier()
    through.train(range(HALF, STEPS))
    resumed = Loop()
    state = torch.load(f"{name}-half.pt", weights_only=True)
    resumed.pruner.load_state_dict(state["pruner"])
    resumed.optimizer.load_state_dict(state["optimizer"])
    resumed.train(range(HALF, STEPS))
    if distributed.get_rank() == 0:
        torch.save({"through": through.result(), "resumed": resumed.result()}, f"{name}.pt")
    distributed.destroy_process_group()
    # DistributedDataParallel keeps the group, and a thread of gloo aborts one run in thirty when it
    # releases its last work while the interpreter ends (torch 2.14, Python 3.11).
    os._exit(0)


if __name__ == "__main__":
    main(sys.argv[1])
