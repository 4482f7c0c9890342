"""Ways to take a training step of one network: dense, plain (two forwards), ours with its options.

In:   a workload, a Setting, the device.
Out:  Variants whose `step` trains on one fixed batch; a check that plain and ours are the same.
Not:  masks stand still in a step: their refresh is measured apart. No data are loaded.
"""

from __future__ import annotations

import copy
import gc
import math
import time
from collections.abc import Callable
from dataclasses import dataclass, field

import torch
import torch.nn.functional as F
from memory import peak_of
from plain import PlainDcil, dcil_loss
from torch import Tensor, nn
from workloads import WORKLOADS, build, last_step, make_dual

from dcil_dsl.compiler.checkpoint_activations import recompute_activations
from dcil_dsl.compiler.dual import Dual
from dcil_dsl.plan.plan import Plan
from dcil_dsl.training.losses import total_loss

LESS_MEMORY = ("checkpointed",)  # ours with --checkpoint-activations
NAMES = ("dense", "plain", "ours", *LESS_MEMORY)  # the order in which they are sampled


@dataclass(frozen=True)
class Setting:
    """What a time depends on beside the network.

    precision  "fp32" | "bf16" (autocast); tf32: whether float32 products may be done in tf32
    compiled   whether torch.compile takes the forward, the loss and the backward
    graphs     whether what it makes is replayed as CUDA graphs
    """

    network: str
    device: str
    precision: str
    tf32: bool
    compiled: bool
    batch: int
    size: int
    channels_last: bool = True
    plain_masks: str = "float"
    graphs: bool = False


@dataclass
class Variant:
    """`peak_bytes`: the most that was allocated in a step, all of this variant's own and nothing
    of another's (memory.py); None for compiled steps on a CPU. `first_seconds`: of the first step,
    which compiles."""

    name: str
    module: nn.Module
    step: Callable[[], Tensor]
    first_loss: float
    first_seconds: float
    peak_bytes: int | None = None


@dataclass
class Materials:
    """What all variants of a network are made from; each is given copies."""

    setting: Setting
    model: nn.Module
    dual: Dual
    plan: Plan
    stage_seconds: dict
    device: torch.device = field(init=False)

    def __post_init__(self):
        self.device = torch.device(self.setting.device)


def prepare(setting: Setting) -> Materials:
    workload = WORKLOADS[setting.network]
    model = build(workload)
    dual, plan, seconds = make_dual(workload, model, setting.size)
    return Materials(setting, model, dual, plan, seconds)


def ours(made: Materials) -> Dual:
    dual = copy.deepcopy(made.dual).train().to(made.device)
    if made.setting.channels_last:
        dual.to(memory_format=torch.channels_last)
    dual.begin_step(last_step(made.plan))
    return dual


def plain(made: Materials) -> PlainDcil:
    """The two networks with the dual's masks and the dual's private modules."""
    plan, dual = made.plan, made.dual
    dtype = {"float": torch.float32, "bool": torch.bool}[made.setting.plain_masks]
    pruned = [name for group in plan.groups for name in group.parameters]
    net = PlainDcil(made.model.train(), pruned, [p.module for p in plan.privates], dtype)
    net.lay_out(made.device, made.setting.channels_last)
    with torch.no_grad():
        for name, mask in dual.masks.items():
            net.sparse.get_submodule(name.removesuffix(".weight")).mask.copy_(mask)
        for entry in plan.privates:
            twin = dual.get_submodule(f"{entry.module}__dense")
            net.dense.get_submodule(entry.module).load_state_dict(twin.state_dict())
    return net


def dense(made: Materials) -> nn.Module:
    model = copy.deepcopy(made.model).train().to(made.device)
    return model.to(memory_format=torch.channels_last) if made.setting.channels_last else model


def loss_function(name: str, made: Materials, module: nn.Module):
    """(images, labels) -> loss: what torch.compile is given."""
    setting, plan, step = made.setting, made.plan, last_step(made.plan)

    def forward(images: Tensor, labels: Tensor) -> Tensor:
        enabled = setting.precision == "bf16"
        with torch.autocast(made.device.type, dtype=torch.bfloat16, enabled=enabled):
            outputs = module(images)
        if name == "dense":
            return F.cross_entropy(outputs.float(), labels)
        if name == "plain":
            return dcil_loss(outputs[0].float(), outputs[1].float(), labels)
        return total_loss(plan, outputs, labels, step)

    if not setting.compiled:
        return forward
    mode = "reduce-overhead" if setting.graphs else None
    return torch.compile(forward, dynamic=False, mode=mode)


def gradients_of(name: str, made: Materials, module: nn.Module):
    """(images, labels) -> the detached loss, with the gradients in the parameters."""
    if name == "checkpointed":
        recompute_activations(module)
    forward = loss_function(name, made, module)

    def learn(images: Tensor, labels: Tensor) -> Tensor:
        if made.setting.graphs:
            torch.compiler.cudagraph_mark_step_begin()
        loss = forward(images, labels)
        loss.backward()
        return loss.detach().clone()

    return learn


def may_be(name: str, setting: Setting) -> bool:
    """Whether there is such a variant in such a setting."""
    return not (name == "checkpointed" and setting.compiled)


def make_variant(name: str, made: Materials, warm_up: int = 2) -> Variant:
    """Build, take the first step (and compile), warm up, and read the peak of memory."""
    device, on_gpu = made.device, made.device.type == "cuda"
    gc.collect()
    if on_gpu:
        torch.cuda.empty_cache()
    module = {"dense": dense, "plain": plain}.get(name, ours)(made)
    # One list of Parameters, each once; the same optimizer for all, fused where the runtime's is.
    optimizer = torch.optim.SGD(
        module.parameters(), lr=1e-3, momentum=0.9, nesterov=True, weight_decay=1e-4, fused=on_gpu
    )
    learn = gradients_of(name, made, module)
    images, labels = batch_of(made)

    def step() -> Tensor:
        optimizer.zero_grad(set_to_none=True)
        loss = learn(images, labels)
        optimizer.step()
        return loss

    begin = time.perf_counter()
    first_loss = step().item()
    variant = Variant(name, module, step, first_loss, time.perf_counter() - begin)
    for _ in range(warm_up):
        step()
    if on_gpu or not made.setting.compiled:
        state = [value for kept in optimizer.state.values() for value in kept.values()]
        optimizer.zero_grad(set_to_none=True)
        lasting = [*module.parameters(), *module.buffers(), *state, images, labels]
        tensors = [value for value in lasting if isinstance(value, Tensor)]
        variant.peak_bytes = peak_of(step, device, tensors)
    return variant


def batch_of(made: Materials, batch: int | None = None, seed: int = 0) -> tuple[Tensor, Tensor]:
    setting = made.setting
    generator = torch.Generator().manual_seed(seed)
    shape = (batch or setting.batch, 3, setting.size, setting.size)
    images = torch.randn(shape, generator=generator)
    labels = torch.randint(0, WORKLOADS[setting.network].classes, shape[:1], generator=generator)
    if setting.channels_last:
        images = images.contiguous(memory_format=torch.channels_last)
    return images.to(made.device), labels.to(made.device)


def compare_plain_and_ours(made: Materials, batch: int = 8) -> dict[str, float]:
    """Worst relative differences |ours - plain| / |plain| of the loss and of every gradient.

    In float64, where two right programs agree to many digits whatever the order of their sums.
    """
    images, labels = batch_of(made, min(batch, made.setting.batch))
    images = images.double()
    dual, net = ours(made).double(), plain(made).double()
    step = last_step(made.plan)
    our_loss = total_loss(made.plan, dual(images), labels, step)
    y_sparse, y_dense = net(images)
    their_loss = dcil_loss(y_sparse, y_dense, labels)
    our_loss.backward()
    their_loss.backward()
    worst = 0.0
    for name, parameter in dual.named_parameters():
        side = net.dense if "__dense" in name else net.sparse
        theirs = side.get_parameter(name.replace("__dense", "")).grad
        mine = torch.zeros_like(parameter) if parameter.grad is None else parameter.grad
        theirs = torch.zeros_like(mine) if theirs is None else theirs
        scale = theirs.norm().clamp_min(1e-9)
        difference = float((mine - theirs).norm() / scale)
        worst = difference if math.isnan(difference) else max(worst, difference)
        if math.isnan(worst):
            break
    a, b = our_loss.item(), their_loss.item()
    loss = abs(a - b) / abs(b)
    return {"loss": loss, "gradients": worst}


def mask_bytes(dual: Dual) -> dict[str, float]:
    size = sum(mask.numel() * mask.element_size() for mask in dual.masks.values())
    weights = sum(mask.numel() for mask in dual.masks.values())
    return {"bytes": size, "weights": weights, "bytes_per_weight": size / weights}
