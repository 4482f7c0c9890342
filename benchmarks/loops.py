"""Accuracy that a recipe reaches in other people's loops, next to the same loop without dcil.

    python benchmarks/loops.py plain|accelerate|lightning|hf [--seeds 0 1 2] [--targets 80 90]
                               [--out FILE.json]

In:   scikit-learn's digits, 360 of 1,797 held out; a perceptron of two hidden layers, or for `hf`
      a vision transformer of two layers that reads the image as 16 patches.
Out:  top-1 of the held-out rows after the last epoch for each seed: dense (the loop alone, AdamW
      with the recipe's rate) and the sparse model of each target, with its share of zeros. FILE
      gathers the loops and seeds: a second run adds its own.
Not:  no time is measured.
"""

from __future__ import annotations

import argparse
import json
import math
import statistics
import tempfile
from pathlib import Path

import torch
from environment import describe_machine, installed
from sklearn.datasets import load_digits
from torch import nn
from torch.utils.data import DataLoader

import dcil_dsl as dcil

EPOCHS, BATCH, LR, HF_LR = 20, 64, 0.003, 0.001
RECIPE = """language 1
prune Linear except last Linear to {target}% {{ schedule = cubic(0% run..60% run) }}
pruning {{ refresh = 4 steps }}
mix {{
  path sparse = masked
  path dense = full
  update kept by sparse
  update pruned by dense
  loss {loss}(sparse)
  loss {loss}(dense)
  deploy sparse
}}
train {{
  epochs = {epochs}ep
  optimizer = adamw(lr={lr}, weight_decay=0.01)
  lr = cosine()
}}
"""


def data() -> tuple[list, list]:
    """(pixels, class) of the training and of the held-out rows; pixels are 0 to 16."""
    pixels, labels = load_digits(return_X_y=True)
    rows = list(zip(torch.tensor(pixels).float(), torch.tensor(labels)))
    order = torch.randperm(len(rows), generator=torch.Generator().manual_seed(0)).tolist()
    return [rows[i] for i in order[360:]], [rows[i] for i in order[:360]]


TRAIN, HELD_OUT = data()
STEPS = math.ceil(len(TRAIN) / BATCH)


def recipe(target: int, loss: str = "cross_entropy", loop: str = "plain") -> str:
    rate = HF_LR if loop == "hf" else LR
    return RECIPE.format(target=target, loss=loss, epochs=EPOCHS, lr=rate)


def perceptron(seed: int) -> nn.Sequential:
    torch.manual_seed(seed)
    sizes = ((64, 256), (256, 256), (256, 10))
    first, second, last = (nn.Linear(*size) for size in sizes)
    return nn.Sequential(first, nn.ReLU(), second, nn.ReLU(), last)


def loader(seed: int) -> DataLoader:
    generator = torch.Generator().manual_seed(seed)
    return DataLoader([(x / 16, y) for x, y in TRAIN], BATCH, shuffle=True, generator=generator)


@torch.no_grad()
def top1(net: nn.Module) -> float:
    x, y = (torch.stack(part) for part in zip(*HELD_OUT))
    return float((net.eval()(x / 16).argmax(-1) == y).float().mean()) * 100


def zeros(net: nn.Module, last: str) -> float:
    """Percent of the weights of the pruned layers: every Linear but the last."""
    layers = [m for name, m in net.named_modules() if isinstance(m, nn.Linear) and name != last]
    found = [layer.weight for layer in layers]
    return 100 * sum(int((w == 0).sum()) for w in found) / sum(w.numel() for w in found)


def rate(optimizer: torch.optim.Optimizer) -> torch.optim.lr_scheduler.LRScheduler:
    return torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, EPOCHS * STEPS)


def adamw(net: nn.Module) -> torch.optim.Optimizer:
    return torch.optim.AdamW(net.parameters(), LR, weight_decay=0.01)


def plain(seed: int, target: int, accelerator=None) -> nn.Module:
    """A loop of one's own; with an accelerator, accelerate's."""
    net, batches = perceptron(seed), loader(seed)
    if target == 0:
        optimizer = adamw(net)
        scheduler = rate(optimizer)
        for _ in range(EPOCHS):
            for x, y in batches:
                optimizer.zero_grad()
                nn.functional.cross_entropy(net(x), y).backward()
                optimizer.step()
                scheduler.step()
        return net
    pruner = dcil.Pruner(recipe(target), net, steps_per_epoch=STEPS)
    optimizer = pruner.make_optimizer()
    if accelerator is not None:
        pruner.module, optimizer, batches = accelerator.prepare(pruner.dual, optimizer, batches)
    for _ in range(EPOCHS):
        for x, y in batches:
            loss = pruner.step_loss(x, target=y)
            optimizer.zero_grad()
            loss.backward() if accelerator is None else accelerator.backward(loss)
            pruner.step(optimizer)
    return pruner.export()


def accelerated(seed: int, target: int) -> nn.Module:
    import accelerate

    return plain(seed, target, accelerate.Accelerator(cpu=True))


def lit(seed: int, target: int) -> nn.Module:
    import lightning

    from dcil_dsl.integrations.lightning import DcilCallback

    class Digits(lightning.LightningModule):
        def __init__(self):
            super().__init__()
            self.net = perceptron(seed)

        def training_step(self, batch, i):
            return nn.functional.cross_entropy(self.net(batch[0]), batch[1])

        def configure_optimizers(self):
            optimizer = adamw(self)
            return [optimizer], [{"scheduler": rate(optimizer), "interval": "step"}]

    module = Digits()
    lightning.Trainer(
        max_epochs=EPOCHS,
        callbacks=[DcilCallback(recipe(target, "model"))] if target else [],
        logger=False,
        accelerator="cpu",
        enable_progress_bar=False,
        enable_model_summary=False,
        enable_checkpointing=False,
    ).fit(module, loader(seed))
    return module.net


def hf(seed: int, target: int) -> tuple[nn.Module, float]:
    """The model and its accuracy as Trainer's `evaluate` gives it."""
    import transformers

    from dcil_dsl.integrations.huggingface import DcilTrainer

    torch.manual_seed(seed)
    config = transformers.ViTConfig(
        image_size=8,
        patch_size=2,
        num_channels=1,
        hidden_size=64,
        num_hidden_layers=2,
        num_attention_heads=4,
        intermediate_size=128,
        num_labels=10,
    )
    model = transformers.ViTForImageClassification(config)
    rows = [
        [{"pixel_values": x.view(1, 8, 8) / 16, "labels": y} for x, y in part]
        for part in (TRAIN, HELD_OUT)
    ]
    with tempfile.TemporaryDirectory() as folder:
        args = transformers.TrainingArguments(
            folder,
            per_device_train_batch_size=BATCH,
            num_train_epochs=EPOCHS,
            learning_rate=HF_LR,
            weight_decay=0.01,
            lr_scheduler_type="cosine",
            seed=seed,
            save_strategy="no",
            report_to=[],
            disable_tqdm=True,
            use_cpu=True,
        )
        more = {
            "args": args,
            "train_dataset": rows[0],
            "eval_dataset": rows[1],
            "compute_metrics": lambda p: {"top1": (p.predictions.argmax(-1) == p.label_ids).mean()},
        }
        if target:
            trainer = DcilTrainer(model, recipe(target, "model", "hf"), **more)
        else:
            trainer = transformers.Trainer(model, **more)
        trainer.train()
        found = trainer.evaluate()["eval_top1"] * 100
        return (trainer.sparse() if target else model), found


LOOPS = {"plain": plain, "accelerate": accelerated, "lightning": lit, "hf": hf}


def measure(name: str, seed: int, target: int) -> dict:
    made = LOOPS[name](seed, target)
    net, found = made if name == "hf" else (made, top1(made))
    last = "classifier" if name == "hf" else "4"
    share = zeros(net, last)
    print(f"{name} seed {seed} target {target}%: top-1 {found:.2f}, zeros {share:.2f}%", flush=True)
    return {"seed": seed, "target": target, "top1": found, "zeros": share}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("loop", choices=LOOPS)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--targets", type=int, nargs="+", default=[80, 90])
    parser.add_argument("--out", type=Path)
    asked = parser.parse_args()
    runs = [measure(asked.loop, s, t) for t in [0, *asked.targets] for s in asked.seeds]
    for target in [0, *asked.targets]:
        found = [run["top1"] for run in runs if run["target"] == target]
        print(f"| {asked.loop} | {target}% | {', '.join(f'{x:.1f}' for x in found)} | "
              f"{statistics.mean(found):.1f} |")  # fmt: skip
    if asked.out is not None:
        kept = json.loads(asked.out.read_text()) if asked.out.exists() else {}
        machine = describe_machine("cpu")
        machine |= {name: installed(name) for name in ("transformers", "accelerate", "lightning")}
        before = kept.get(asked.loop, {}).get("runs", [])
        new = {(run["seed"], run["target"]) for run in runs}
        runs += [run for run in before if (run["seed"], run["target"]) not in new]
        runs.sort(key=lambda run: (run["target"], run["seed"]))
        kept[asked.loop] = {"machine": machine, "epochs": EPOCHS, "runs": runs}
        asked.out.write_text(json.dumps(kept, indent=1) + "\n")


if __name__ == "__main__":
    main()
