"""Twenty networks with half of each tie's filters gone, beside Torch-Pruning: size and accuracy.

    python benchmarks/compaction_table.py [--models resnet50,regnet_x_400mf] [--out FILE]
    python benchmarks/compaction_table.py --show FILE

Both sides begin with one network of random weights, prune half of what goes together by magnitude,
the last layer excepted, and train what is left for three epochs on digits at 64 pixels with one
loop, two seeds each. Ours is the recipe `prune Conv2d, Linear to 50% { granularity = filter }`,
exported and compacted; the compacted network is compared with the masked one in float64. Sizes are
those of networks whose norms are drawn at random, as after a training: a pruned filter then gives a
constant, and ours keeps a filter here and there to carry it. Trainings begin with norms that do
nothing.

Torch-Pruning also removes channels of a stream that layer norms read, and dimensions of attention
heads, which changes what the network computes. For ViT-tiny the side `torch-pruning, equal` keeps
both, as equal outputs ask for; `changed_by_stream` is how much a stream of half its channels
changes the outputs.

The file is written after each part, and a part that it holds is not run again, so the command may
be stopped and given again. Needs torch-pruning (the table only; the package does not use it).
"""

from __future__ import annotations

import argparse
import copy
import json
import math
import sys
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from environment import ROOT, describe_machine
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

sys.path.insert(0, str(ROOT))

import dcil_dsl as dcil
from dcil_dsl.lang import loads
from dcil_dsl.zoo import build_model

MODELS = (
    *(
        f"torchvision:{name}"
        for name in (
            "mobilenet_v3_small",
            "mnasnet0_5",
            "shufflenet_v2_x0_5",
            "resnet18",
            "squeezenet1_1",
            "mobilenet_v2",
            "regnet_x_400mf",
            "regnet_y_400mf",
            "mobilenet_v3_large",
            "efficientnet_b0",
            "googlenet",
            "resnet50",
            "resnext50_32x4d",
            "densenet121",
        )
    ),
    "timm:mobilenetv2_050",
    "timm:efficientnet_lite0",
    "timm:resnet26d",
    "timm:dla34",
    "timm:res2net50_26w_4s",
    "timm:vit_tiny_patch16_224",
)
RECIPE = """language 1
prune LAYERS to 50% { granularity = filter  score = l2 }
LAST
mix {
  path sparse = masked
  update kept, pruned by sparse
  loss cross_entropy(sparse)
  deploy sparse
}
train { epochs = 1ep  optimizer = sgd(lr=0.1) }
"""
SIZE, CLASSES, EPOCHS, BATCH, SEEDS = 64, 10, 3, 32, (0, 1)


def size_of(spec: str) -> int:
    return 224 if spec.endswith("_224") else SIZE


def built(spec: str, seed: int) -> nn.Module:
    """A network of random weights. No norm begins at zero: its branch would be dead."""
    torch.manual_seed(seed)
    options = {"aux_logits": False} if spec.endswith("googlenet") else {}
    model = build_model(spec, CLASSES, options)
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.momentum = 0.1  # some have 0.0003, for trainings of a million steps
            if not module.weight.any():
                nn.init.ones_(module.weight)
    return model


@torch.no_grad()
def drawn(model: nn.Module) -> nn.Module:
    """With norms and biases as of a trained network: a pruned filter still gives a number."""
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.running_mean.normal_(0, 0.3)
            module.running_var.uniform_(0.5, 1.5)
            module.weight.normal_(1, 0.3)
            module.bias.normal_(0, 0.3)
    return model


def last_layer(model: nn.Module) -> str:
    """The name of the layer that makes the classes, whichever comes last."""
    kinds = (nn.Linear, nn.Conv2d)
    return [name for name, module in model.named_modules() if isinstance(module, kinds)][-1]


def ours(model: nn.Module, spec: str) -> tuple[nn.Module, float]:
    """The compacted network, and the largest difference from the masked one in float64."""
    model = model.double()
    x = torch.randn(2, 3, size_of(spec), size_of(spec), dtype=torch.float64)
    last = last_layer(model)
    kinds = {type(m).__name__ for name, m in model.named_modules() if name != last}
    layers = ", ".join(sorted(kinds & {"Conv2d", "Linear"}))
    text = RECIPE.replace("LAYERS", layers).replace("LAST", f'keep "{last}"')
    plan = dcil.resolve(loads(text, "half.prune"), model, steps_per_epoch=2, example_inputs=(x,))
    dual = dcil.compile(plan, model)
    dual.refresh(plan.num_steps - 1)
    result = dcil.compact(dcil.export(dual), (x,), num_inputs=2)
    return result.model.float(), result.difference


def theirs(model: nn.Module, spec: str, equal: bool = False) -> tuple[nn.Module, None]:
    """The network that Torch-Pruning leaves.

    equal  it keeps the stream that layer norms read, and the dimensions of heads
    """
    import torch_pruning as tp

    model.eval()
    x = torch.randn(2, 3, size_of(spec), size_of(spec))
    heads = {m.qkv: m.num_heads for m in model.modules() if hasattr(m, "qkv")}
    pruner = tp.pruner.BasePruner(
        model,
        x,
        importance=tp.importance.GroupMagnitudeImportance(p=2),
        pruning_ratio=0.5,
        ignored_layers=[model.get_submodule(last_layer(model)), *(writers(model) if equal else ())],
        num_heads=heads,
        prune_num_heads=bool(heads),
        prune_head_dims=not equal,
        head_pruning_ratio=0.5,
    )
    pruner.step()
    for module in model.modules():  # as the authors' examples set them after each step
        if hasattr(module, "qkv"):
            module.num_heads = pruner.num_heads[module.qkv]
            module.head_dim = module.qkv.out_features // (3 * module.num_heads)
            module.attn_dim = module.num_heads * module.head_dim
    return model, None


def writers(model: nn.Module) -> list[nn.Module]:
    """The layers of a ViT that write to its stream."""
    ends = ("patch_embed.proj", "attn.proj", "mlp.fc2")
    return [module for name, module in model.named_modules() if name.endswith(ends)]


@torch.no_grad()
def changed_by_stream(model: nn.Module, spec: str) -> float:
    """How much half of a ViT's stream changes the outputs, relative to 1 + the largest output.

    The same channels are gone on both sides: as zeros in every tensor that writes, scales or reads
    them, and as missing channels. The layer norms then divide by another count.
    """
    import torch_pruning as tp

    model = model.double().eval()
    x = torch.randn(2, 3, size_of(spec), size_of(spec), dtype=torch.float64)
    small = copy.deepcopy(model)
    width = model.embed_dim
    gone = list(range(0, width, 2))
    first = small.patch_embed.proj
    with torch.enable_grad():
        graph = tp.DependencyGraph().build_dependency(small, example_inputs=x)
    graph.get_pruning_group(first, tp.prune_conv_out_channels, idxs=gone).prune()
    for module in writers(model):
        module.weight[gone], module.bias[gone] = 0, 0
    for tensor in (model.cls_token, model.pos_embed):
        tensor[..., gone] = 0
    for module in model.modules():
        if isinstance(module, nn.LayerNorm):
            module.weight[gone], module.bias[gone] = 0, 0
    wanted, given = model(x), small(x)
    return ((given - wanted).abs().max() / (1 + wanted.abs().max())).item()


SIDES: dict[str, Callable[[nn.Module, str], tuple[nn.Module, float | None]]] = {
    "dcil": ours,
    "torch-pruning": theirs,
}
EQUAL = "torch-pruning, equal"  # a side of the networks whose stream layer norms read


def costs(model: nn.Module, size: int) -> dict[str, int]:
    counter = FlopCounterMode(display=False)
    with counter, torch.no_grad():
        copy.deepcopy(model).eval()(torch.zeros(1, 3, size, size))
    parameters = sum(p.numel() for p in model.parameters())
    return {"parameters": parameters, "macs": counter.get_total_flops() // 2}


def digits(size: int) -> tuple[Tensor, Tensor]:
    from sklearn.datasets import load_digits

    data = load_digits()
    images = torch.tensor(data.images, dtype=torch.float32)[:, None] / 8 - 1
    images = F.interpolate(images, size=(size, size), mode="bilinear")
    return images.expand(-1, 3, -1, -1), torch.tensor(data.target)


def train(model: nn.Module, size: int, seed: int) -> float:
    """Top-1 in percent on the last 360 digits after three epochs on the others."""
    images, labels = digits(size)
    torch.manual_seed(seed)
    optimizer = torch.optim.AdamW(model.parameters(), lr=2e-3, weight_decay=0.01)
    steps = EPOCHS * (1437 // BATCH)
    rate = torch.optim.lr_scheduler.LambdaLR(
        optimizer, lambda step: min(1, (step + 1) / 20) * (1 + math.cos(math.pi * step / steps)) / 2
    )
    model.train()
    for _ in range(EPOCHS):
        order = torch.randperm(1437)
        for start in range(0, 1437 - BATCH + 1, BATCH):
            batch = order[start : start + BATCH]
            optimizer.zero_grad()
            F.cross_entropy(model(images[batch]), labels[batch]).backward()
            optimizer.step()
            rate.step()
    model.eval()
    with torch.no_grad():
        right = [
            (model(images[i : i + 60]).argmax(1) == labels[i : i + 60]).sum().item()
            for i in range(1437, 1797, 60)
        ]
    return 100 * sum(right) / 360


def part(entry: dict[str, Any], spec: str, side: str, seed: int | None) -> None:
    """One part of an entry: the size of a side (seed None), or a training."""
    started = time.perf_counter()
    own = entry.setdefault(side, {})
    model = built(spec, seed or 0)
    model = drawn(model) if seed is None else model
    if side == EQUAL:
        own["changed_by_stream"] = changed_by_stream(copy.deepcopy(model), spec)
        model, difference = theirs(model, spec, equal=True)
    else:
        model, difference = SIDES[side](model, spec)
    if seed is None:
        own |= costs(model, size_of(spec)) | {"class": type(model).__name__}
        if difference is not None:
            own["difference_float64"] = difference
    else:
        own.setdefault("top1", {})[str(seed)] = train(model, size_of(spec), seed)
        own.setdefault("seconds", {})[str(seed)] = round(time.perf_counter() - started, 1)


def missing(spec: str, entry: dict[str, Any], sizes_only: bool) -> list[tuple[str, int | None]]:
    """The parts of an entry that were not run."""
    parts: list[tuple[str, int | None]] = []
    for side in SIDES:
        own = entry.get(side, {})
        if "parameters" not in own and "refused" not in own:
            parts.append((side, None))
        if not sizes_only and "refused" not in own:
            parts += [(side, seed) for seed in SEEDS if str(seed) not in own.get("top1", {})]
    if spec.endswith("_224") and "parameters" not in entry.get(EQUAL, {}):
        parts.append((EQUAL, None))
    return parts


def rows(spec: str, entry: dict[str, Any]) -> list[str]:
    """The row of a network, and one for the side EQUAL where it has one."""
    name = spec.partition(":")[2]
    found = [row(name, entry, tuple(SIDES))]
    if EQUAL in entry:
        found.append(row(f"{name}, equal outputs", entry, ("dcil", EQUAL)))
        found.append(f"without half of its stream: {entry[EQUAL]['changed_by_stream']:.2f} apart")
    return found


def row(name: str, entry: dict[str, Any], sides: tuple[str, ...]) -> str:
    cells = [name]
    for key in ("parameters", "macs"):
        for side in sides:
            value = entry.get(side, {}).get(key)
            cells.append("-" if value is None else f"{100 * value / entry['dense'][key]:.1f}%")
    for side in sides:
        top1 = entry.get(side, {}).get("top1", {})
        cells.append(", ".join(f"{v:.1f}" for v in top1.values()) or "-")
    difference = entry.get("dcil", {}).get("difference_float64")
    return f"| {' | '.join(cells)} | {'-' if difference is None else f'{difference:.0e}'} |"


HEAD = (
    "| network | parameters | theirs | MACs | theirs | top-1 | theirs | difference in float64 |\n"
    "|---|---|---|---|---|---|---|---|"
)


def main() -> int:
    options = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    options.add_argument("--models", help="names, separated by commas; else all")
    options.add_argument("--sizes", action="store_true", help="no training")
    options.add_argument("--out", type=Path, default=Path("compaction-table.json"))
    options.add_argument("--show", type=Path, help="print the table of a file and stop")
    given = options.parse_args()
    warnings.simplefilter("ignore")
    file = given.show or given.out
    report = json.loads(file.read_text()) if file.exists() else {}
    report = {"machine": describe_machine("cpu"), "models": {}} if not report else report
    if given.show is None:
        chosen = given.models.split(",") if given.models else None
        for sizes_only in (True, False)[: 1 if given.sizes else 2]:
            for spec in MODELS:
                if chosen is None or spec.partition(":")[2] in chosen:
                    run(report, spec, sizes_only, given.out)
    lines = [line for spec, entry in report["models"].items() for line in rows(spec, entry)]
    print("\n".join([HEAD, *lines]))
    return 0


def run(report: dict[str, Any], spec: str, sizes_only: bool, out: Path) -> None:
    entry = report["models"].setdefault(spec, {})
    for side, seed in missing(spec, entry, sizes_only):
        if "dense" not in entry:
            entry["dense"] = costs(built(spec, 0), size_of(spec))
        try:
            part(entry, spec, side, seed)
        except Exception as error:  # either side may refuse a network; the row says so
            entry.setdefault(side, {})["refused"] = f"{type(error).__name__}: {error}"[:300]
        draft = out.with_suffix(".draft")
        draft.write_text(json.dumps(report, indent=1) + "\n")
        draft.replace(out)
        what = "size" if seed is None else f"seed {seed}"
        print(f"{spec} {side} {what}: {entry[side]}", flush=True)


if __name__ == "__main__":
    sys.exit(main())
