"""How fast batches come, and how long a training step waits for them.

    python benchmarks/data_path.py --tiny            # shows that it runs, measures nothing
    python benchmarks/data_path.py --device cuda     # in memory, from JPEGs, from shards
    python benchmarks/data_path.py --small           # the same on a CPU, in five minutes

For each source and list of augmentations: examples a second of the loader alone (whole epochs,
the median over them, workers warm), and of ResNet training steps of the main job the share of the
time in which they waited for a batch. JPEGs are made for it: smooth colours, whose files
are smaller and quicker to decode than photographs' of the same size.
"""

from __future__ import annotations

import argparse
import io
import json
import sys
import tarfile
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

import torch
import workloads  # noqa: F401  (a checkout is found through it)
from environment import describe_machine
from PIL import Image
from timing import spread
from torch import nn

from dcil_dsl.data import Dataset, Loader, open_dataset
from dcil_dsl.jobs.data import num_workers
from dcil_dsl.jobs.train import train
from dcil_dsl.lang import loads
from dcil_dsl.plan.plan import Data
from dcil_dsl.plan.resolve import resolve_data

CIFAR = "pad_crop(4), flip()"
IN_MEMORY = {
    "nothing": "",
    "pad_crop flip": CIFAR,
    "random_resized_crop flip": "random_resized_crop(32), flip()",
    "rand_augment": f"{CIFAR}, rand_augment()",
    "trivial_augment": f"{CIFAR}, trivial_augment()",
    "color_jitter": f"{CIFAR}, color_jitter(brightness=0.4, contrast=0.4, saturation=0.4, hue=0.1)",
    "erase mixup cutmix": f"{CIFAR}, erase(0.25), mixup(0.2), cutmix(1.0)",
}
IN_FILES = "random_resized_crop({size}), flip()"
RECIPE = """
language 1
data x {{ batch_size = {batch}  augment = [{augment}] }}
prune Conv2d to global(90%)
mix {{
  path sparse = masked
  path dense  = full
  update kept   by sparse
  update pruned by dense
  private BatchNorm2d, last Linear
  loss cross_entropy(sparse)
  loss cross_entropy(dense)
  deploy sparse
}}
train {{ epochs = 3ep  optimizer = sgd(lr=0.01, momentum=0.9) }}
"""


@dataclass(frozen=True)
class Case:
    name: str
    dataset: Dataset
    augment: str
    batch: int
    model: str | nn.Module
    workers: int | None


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--tiny", action="store_true", help="a few images; figures mean nothing")
    parser.add_argument("--small", action="store_true", help="fewer images and a smaller network")
    parser.add_argument("--workers", type=int, help="that read files; default: as the job has it")
    parser.add_argument("--rounds", type=int, default=5, help="epochs that are timed")
    parser.add_argument("--seconds", type=float, default=float("inf"), help="no case begins later")
    parser.add_argument("--precision", default="bf16", choices=("fp32", "bf16"))
    parser.add_argument("--compile", action="store_true", help="compiled training steps")
    parser.add_argument("--only", default="", help="cases whose name holds this")
    parser.add_argument("--json", type=Path)
    asked = parser.parse_args(arguments)
    deadline = time.perf_counter() + asked.seconds
    report = {
        "machine": describe_machine(asked.device),
        "tiny": asked.tiny,
        "small": asked.small,
        "cases": {},
    }
    with tempfile.TemporaryDirectory() as scratch:
        for case in cases(Path(scratch), asked):
            if asked.only not in case.name:
                continue
            if time.perf_counter() > deadline:
                report["cases"][case.name] = {"skipped": "no time left"}
                continue
            entry = report["cases"][case.name] = measure(case, asked, Path(scratch))
            rate, share = entry["examples_per_second"]["median"], entry["waited_share"]
            print(f"{case.name:44} {rate:12,.0f}/s   steps wait {share:6.1%}", flush=True)
    if asked.json:
        asked.json.write_text(json.dumps(report, indent=2) + "\n")
    return 0


def cases(scratch: Path, asked: argparse.Namespace):
    """In memory at the size of CIFAR; JPEGs of 500 x 400 as imagefolder and as shards."""
    sizes = dict(num_train=1536 if asked.small else 50_000)
    if asked.tiny:
        sizes = dict(num_train=16, num_val=4, image_size=16)
    small = open_dataset("synthetic", **sizes)
    for name, augment in IN_MEMORY.items():
        batch = 8 if asked.tiny else 128
        model = tiny_net() if asked.tiny else "dcil:resnet20"
        yield Case(f"in memory, {name}", small, augment, batch, model, 0)
    count, size = (16, 32) if asked.tiny else (256 if asked.small else 4096, 224)
    make_images(scratch, count, (60, 50) if asked.tiny else (500, 400))
    workers = 1 if asked.tiny and asked.workers is None else asked.workers
    batch, model = (32, "torchvision:resnet18") if asked.small else (256, "torchvision:resnet50")
    if asked.tiny:
        batch, model = 8, tiny_net()
    for name in ("imagefolder", "webdataset"):
        dataset = open_dataset(name, scratch / name)
        yield Case(name, dataset, IN_FILES.format(size=size), batch, model, workers)


def tiny_net() -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(3, 8, 3),
        nn.BatchNorm2d(8),
        nn.ReLU(),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(8, 10),
    )


def make_images(scratch: Path, count: int, size: tuple[int, int]) -> None:
    """The same JPEGs in class folders and in shards of 1,000."""
    generator = torch.Generator().manual_seed(0)
    for part, number in (("train", count), ("val", 16)):
        folder = scratch / "webdataset"
        folder.mkdir(exist_ok=True)
        for first in range(0, number, 1000):
            with tarfile.open(folder / f"{part}-{first:06}.tar", "w") as tar:
                for index in range(first, min(first + 1000, number)):
                    data = jpeg(size, generator)
                    label = index % 4
                    add(tar, f"{index:06}.jpg", data)
                    add(tar, f"{index:06}.cls", str(label).encode())
                    place = scratch / "imagefolder" / part / str(label)
                    place.mkdir(parents=True, exist_ok=True)
                    (place / f"{index:06}.JPEG").write_bytes(data)


def jpeg(size: tuple[int, int], generator: torch.Generator) -> bytes:
    width, height = size
    coarse = torch.rand(1, 3, height // 8, width // 8, generator=generator)
    pixels = torch.nn.functional.interpolate(coarse, (height, width), mode="bilinear")[0]
    file = io.BytesIO()
    Image.fromarray((255 * pixels.permute(1, 2, 0)).byte().numpy()).save(file, "JPEG", quality=90)
    return file.getvalue()


def add(tar: tarfile.TarFile, name: str, data: bytes) -> None:
    info = tarfile.TarInfo(name)
    info.size = len(data)
    tar.addfile(info, io.BytesIO(data))


def measure(case: Case, asked: argparse.Namespace, scratch: Path) -> dict:
    recipe = loads(RECIPE.format(batch=case.batch, augment=case.augment))
    data: Data = resolve_data(recipe.data)
    workers = num_workers(case.dataset, "train", case.workers, processes=1)
    loader = Loader(
        case.dataset,
        "train",
        batch_size=case.batch,
        augment=data.augment,
        workers=workers,
        device=asked.device,
        channels_last=True,
    )
    rounds = 1 if asked.tiny else asked.rounds
    rates = [rate_of(loader, epoch, asked.device) for epoch in range(rounds + 1)][1:]
    loader.close()
    run = train(
        recipe,
        case.model,
        case.dataset,
        out=scratch / "run" / case.name,
        device=asked.device,
        precision=asked.precision if asked.device == "cuda" else None,
        workers=workers,
        compile=asked.compile,
        max_steps=2 if asked.tiny else None,
        warn=lambda diagnostic: None,
    )
    if run.interrupted:
        raise KeyboardInterrupt
    lines = run.folder.read_metrics()
    lines = lines[1:] or lines  # the first epoch compiles, and sets up libraries
    seconds = sum(line["seconds"] for line in lines)
    return {
        "augment": case.augment,
        "batch": case.batch,
        "model": case.model if isinstance(case.model, str) else "tiny",
        "workers": workers,
        "examples_per_second": spread(rates),
        "waited_share": sum(line["data_seconds"] for line in lines) / seconds,
        "training_examples_per_second": [line["examples_per_second"] for line in lines],
    }


def rate_of(loader: Loader, epoch: int, device: str) -> float:
    """Examples a second of one whole epoch, until the device has its last batch."""
    begin = time.perf_counter()
    for _images, _ in loader.epoch(epoch):
        pass
    if torch.device(device).type == "cuda":
        torch.cuda.synchronize()
    return loader.num_examples / (time.perf_counter() - begin)


if __name__ == "__main__":
    sys.exit(main())
