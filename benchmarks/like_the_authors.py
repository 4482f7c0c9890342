"""CIFAR-size training as it is usually written against the same training by the main job.

    python benchmarks/like_the_authors.py --tiny               # shows that it runs
    python benchmarks/like_the_authors.py --device cuda        # the ratio of examples a second

usual  eager, float32, two forwards (plain.py); PIL images cropped, flipped and normalised one by
       one by worker processes; a threshold by sorting on the CPU every 16 steps
ours   the recipe resnet32_cifar10_dcil90 by dcil_dsl.train: images on the device, augmented there,
       one graph for both paths, compiled, bf16; both KL terms open from the first epoch on

Both train ResNet-32 at batch 128 on 50,000 random images of 32 x 32. Seconds are those of whole
epochs between one end and the next, the first left out: for ours with the evaluation of a few
images, the metrics and the checkpoint of the epoch in it.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
import time
from dataclasses import dataclass, field
from pathlib import Path
from statistics import median

import torch
from environment import describe_machine
from plain import PlainDcil, dcil_loss
from torch.utils.data import DataLoader
from torchvision import transforms
from torchvision.transforms.functional import to_pil_image
from workloads import ROOT, WORKLOADS, build

from dcil_dsl.data import open_dataset
from dcil_dsl.jobs.train import train
from dcil_dsl.training.progress import Display

NETWORK = WORKLOADS["resnet32"]
REFRESH, SPARSITY, BATCH = 16, 0.9, 128


@dataclass
class Clock(Display):
    """Marks the end of every epoch, when its line is shown: the device has been waited for."""

    ends: list[float] = field(default_factory=list)

    def epoch(self, line: dict) -> None:
        self.ends.append(time.perf_counter())


class Pictures:
    """PIL images, transformed one at a time in workers."""

    def __init__(self, images, labels):
        self.images, self.labels = [to_pil_image(image) for image in images], labels.tolist()
        self.transform = transforms.Compose(
            [
                transforms.RandomCrop(images.shape[-1], 4),
                transforms.RandomHorizontalFlip(),
                transforms.ToTensor(),
                transforms.Normalize((0.4914, 0.4822, 0.4465), (0.2023, 0.1994, 0.2010)),
            ]
        )

    def __len__(self):
        return len(self.images)

    def __getitem__(self, index):
        return self.transform(self.images[index]), self.labels[index]


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--tiny", action="store_true", help="a few images; figures mean nothing")
    parser.add_argument("--examples", type=int, default=50_000)
    parser.add_argument("--epochs", type=int, default=4, help="of ours; the first is not timed")
    parser.add_argument("--usual-epochs", type=int, default=2, help="likewise")
    parser.add_argument("--workers", type=int, default=4, help="of the usual loop")
    parser.add_argument("--no-compile", action="store_true")
    parser.add_argument("--json", type=Path)
    asked = parser.parse_args(arguments)
    if asked.tiny:
        asked.examples, asked.epochs, asked.usual_epochs, asked.workers = 16, 2, 2, 1
        asked.no_compile = True
    size = dict(num_val=8, image_size=8) if asked.tiny else dict(num_val=128)
    dataset = open_dataset("synthetic", num_train=asked.examples, **size)
    batch = 8 if asked.tiny else BATCH
    seconds = {"ours": ours(dataset, batch, asked), "usual": usual(dataset, batch, asked)}
    rates = {name: asked.examples / median(values) for name, values in seconds.items()}
    report = {
        "machine": describe_machine(asked.device),
        "tiny": asked.tiny,
        "examples": asked.examples,
        "batch": batch,
        "workers_of_usual": asked.workers,
        "compiled": not asked.no_compile,
        "seconds_by_epoch": seconds,
        "examples_per_second": rates,
        "ratio": rates["ours"] / rates["usual"],
    }
    print(f"usual {rates['usual']:10,.0f} examples/s")
    print(f"ours  {rates['ours']:10,.0f} examples/s   {report['ratio']:.1f} x")
    if asked.json:
        asked.json.write_text(json.dumps(report, indent=2) + "\n")
    return 0


def ours(dataset, batch: int, asked: argparse.Namespace) -> list[float]:
    text = (ROOT / "recipes" / NETWORK.recipe).read_text()
    changes = {
        "epochs    = 300ep": f"epochs    = {asked.epochs}ep",
        "cubic(0ep..225ep, grid=1ep)": "constant()",
        "at=[150ep, 225ep], gamma=0.1, warmup=5ep, warmup_from=0.1": "at=[1ep]",
        " from 70ep": "",
        "batch_size = 128": f"batch_size = {batch}",
        "lr=0.2": "lr=0.01",  # random images are no place for a large one
    }
    for old, new in changes.items():
        assert old in text, old
        text = text.replace(old, new)
    text = text[: text.index("expect {")]
    clock = Clock()
    with tempfile.TemporaryDirectory() as scratch:
        recipe = Path(scratch) / "resnet32.prune"
        recipe.write_text(text)
        run = train(
            recipe,
            NETWORK.spec,
            dataset,
            out=Path(scratch) / "run",
            device=asked.device,
            precision="bf16" if asked.device == "cuda" else None,
            compile=not asked.no_compile,
            display=clock,
            warn=lambda diagnostic: None,
        )
    if run.interrupted:
        raise KeyboardInterrupt
    return [b - a for a, b in zip(clock.ends, clock.ends[1:])]


def usual(dataset, batch: int, asked: argparse.Namespace) -> list[float]:
    device = torch.device(asked.device)
    model = build(NETWORK)
    convolutions = [n for n, m in model.named_modules() if isinstance(m, torch.nn.Conv2d)]
    own = (torch.nn.BatchNorm2d, torch.nn.Linear)
    private = [n for n, m in model.named_modules() if isinstance(m, own)]
    net = PlainDcil(model, [f"{n}.weight" for n in convolutions], private).to(device)
    net.lay_out(device, channels_last=False)
    loader = DataLoader(
        Pictures(dataset.train.images, dataset.train.labels),
        batch,
        shuffle=True,
        num_workers=asked.workers,
        pin_memory=device.type == "cuda",
    )
    optimizer = torch.optim.SGD(
        net.parameters(), lr=0.01, momentum=0.9, nesterov=True, weight_decay=1e-4
    )
    ends, step = [], 0
    for _ in range(asked.usual_epochs):
        for images, labels in loader:
            if step % REFRESH == 0:
                refresh_by_sorting(net)
            images = images.to(device, non_blocking=True)
            labels = labels.to(device, non_blocking=True)
            loss = dcil_loss(*net(images), labels)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            step += 1
        loss.item()  # waits for the device
        ends.append(time.perf_counter())
    return [b - a for a, b in zip(ends, ends[1:])]


@torch.no_grad()
def refresh_by_sorting(net: PlainDcil) -> None:
    """One threshold over all masked weights, on the CPU, as the authors' script takes it."""
    layers = [net.sparse.get_submodule(name.removesuffix(".weight")) for name in net.pruned]
    scores = torch.cat([layer.weight.detach().flatten().cpu() ** 2 for layer in layers])
    threshold = scores.sort().values[int(len(scores) * SPARSITY)].item()
    for layer in layers:
        layer.mask.copy_(layer.weight**2 > threshold)


if __name__ == "__main__":
    sys.exit(main())
