"""What the tests of DcilTrainer start under torchrun: the same steps on any number of ranks."""

import os
import sys

import torch
from torch.utils.data import SequentialSampler

from dcil_dsl.integrations.huggingface import DcilTrainer
from support.hf_runs import Rows, arguments, bert, text


class Ordered(DcilTrainer):
    def _get_train_sampler(self, dataset=None):
        return SequentialSampler(self.train_dataset)


def trained(out: str, ranks: int, resume: str | None = None) -> Ordered:
    model = bert().double()
    for module in model.modules():
        if isinstance(module, torch.nn.Dropout):
            module.p = 0.0
    trainer = Ordered(
        model=model,
        recipe=text(more="score = movement"),
        args=arguments(
            out,
            per_device_train_batch_size=8 // ranks,
            max_grad_norm=0.0,
            save_strategy="steps",
            save_steps=7,
        ),
        train_dataset=Rows(),
        eval_dataset=Rows(16, seed=1),
    )
    trainer.train(resume_from_checkpoint=resume)
    return trainer


def main(out: str, ranks: int) -> None:
    """Rank 0 saves the network trained through, the same resumed at step 7, and its loss."""
    through = trained(out, ranks)
    loss = through.evaluate()["eval_loss"]
    resumed = trained(out, ranks, f"{out}/checkpoint-7")
    if through.is_world_process_zero():
        nets = {"through": through.sparse(), "resumed": resumed.sparse()}
        found = {name: net.state_dict() for name, net in nets.items()}
        torch.save({**found, "loss": torch.tensor(loss)}, f"{out}.pt")
    through.accelerator.wait_for_everyone()
    os._exit(0)  # as in ddp_pruner.py: gloo's threads may not outlive the interpreter


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]))
