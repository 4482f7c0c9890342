"""What test_huggingface.py starts under torchrun: the same steps, whatever the number of ranks."""

import sys

import torch
from test_huggingface import Rows, arguments, bert, text
from torch.utils.data import SequentialSampler

from dcil_dsl.integrations.huggingface import DcilTrainer


class Ordered(DcilTrainer):
    def _get_train_sampler(self, dataset=None):
        return SequentialSampler(self.train_dataset)


def main(out: str, ranks: int) -> None:
    model = bert().double()
    for module in model.modules():
        if isinstance(module, torch.nn.Dropout):
            module.p = 0.0
    trainer = Ordered(
        model=model,
        recipe=text(more="score = movement"),
        args=arguments(out, per_device_train_batch_size=8 // ranks, max_grad_norm=0.0),
        train_dataset=Rows(),
    )
    trainer.train()
    if trainer.is_world_process_zero():
        torch.save(trainer.sparse().state_dict(), f"{out}.pt")


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]))
