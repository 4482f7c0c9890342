"""The class that the docs give to timm's training script, in a loop of that script's shape."""

import pytest
import torch
from support.pages import blocks_of
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

import dcil_dsl as dcil

pytest.importorskip("timm.task")
import timm
from timm.data import Mixup
from timm.scheduler import create_scheduler_v2
from timm.task import resume_task_checkpoint

RECIPE = """language 1
prune Conv2d except first Conv2d to 80% { schedule = cubic(0% run..60% run) }
pruning { refresh = 2 steps }
mix {
  path sparse = masked
  path dense = full
  update kept by sparse
  update pruned by dense
  private BatchNorm2d
  loss cross_entropy(sparse)
  loss cross_entropy(dense)
  deploy sparse
}
train {
  epochs = 2ep
  optimizer = sgd(lr=0.05, momentum=0.9)
  lr = cosine(warmup=1ep)
  clip = 0.5
}
"""
IMAGES = torch.randn(22, 3, 32, 32, generator=torch.Generator().manual_seed(0))
LABELS = torch.arange(22) % 4


def task_of_the_page():
    (block,) = [b for b in blocks_of("docs/how-to/other-loops.md") if "timm_task" in b.mark]
    names = {}
    exec(block.text, names)
    return names["PrunedTask"]


def trained(mixup=False, autocast=None, parts=1, size=4, first=0, last=2, resume=None, saved=None):
    """Batches of 4 and a last one of 2: a step takes `parts` of them, the last one what is left.

    first, last    the epochs that are run
    resume, saved  files that are read at the start, and written at the end
    """
    torch.manual_seed(0)
    model = timm.create_model("test_resnet", num_classes=4)
    loader = DataLoader(TensorDataset(IMAGES, LABELS), size)
    updates = -(-len(loader) // parts)
    pruner = dcil.Pruner(
        RECIPE, model, steps_per_epoch=updates, example_inputs=(torch.zeros(2, 3, 32, 32),)
    )
    task = task_of_the_page()(pruner, device=torch.device("cpu"), verbose=False)
    optimizer = pruner.make_optimizer()
    scheduler, _ = create_scheduler_v2(optimizer, num_epochs=2, warmup_epochs=0)
    mix = Mixup(mixup_alpha=0.8, num_classes=4, label_smoothing=0.1) if mixup else None
    if resume is not None:
        resume_task_checkpoint(task, resume, optimizer=optimizer, log_info=False)
    rates, losses = [], []
    for epoch in range(first, last):
        task.get_trainable_module().train()
        accumulated, last_parts = parts, len(loader) % parts
        optimizer.zero_grad()
        for index, (x, y) in enumerate(loader):
            need_update = index == len(loader) - 1 or (index + 1) % parts == 0
            if index >= len(loader) - last_parts:
                accumulated = last_parts
            x, y = mix(x, y) if mix else (x, y)
            with torch.autocast("cpu", torch.bfloat16, enabled=bool(autocast)):
                result = task(x, y)
            (result["loss"] / accumulated).backward()
            losses.append(result["loss"].item())
            if need_update:
                pruner.step(optimizer)
                rates.append(optimizer.param_groups[0]["lr"])
                optimizer.zero_grad()
                scheduler.step_update(num_updates=pruner.steps)
        validated = task.get_eval_model()
        with torch.inference_mode():
            assert validated(IMAGES).shape == (22, 4)
        scheduler.step(epoch + 1, 0.0)
    assert rates == [pruner.plan.lr_at(step) for step in range(first * updates, pruner.steps)]
    assert all(loss == loss for loss in losses)
    if saved is not None:
        parts = {"optimizer": optimizer.state_dict(), "epoch": last - 1, "version": 2}
        torch.save(
            {**task.get_checkpoint_state(), **task.get_checkpoint_state(ema=True), **parts}, saved
        )
    return pruner


def shares(model):
    return [
        float((module.weight == 0).double().mean())
        for name, module in model.named_modules()
        if isinstance(module, nn.Conv2d)
    ][1:]


@pytest.mark.parametrize(
    "settings",
    [{}, {"mixup": True}, {"autocast": True}, {"parts": 2}],
    ids=["plain", "mixup", "bf16", "accumulation"],
)
def test_the_loop_of_timms_script_trains_sparse_with_the_recipes_rate(settings):
    pruner = trained(**settings)
    assert pruner.steps == pruner.plan.num_steps
    found = shares(pruner.export())
    assert found == pytest.approx([0.8] * len(found), abs=0.01) and len(found) > 5
    plain = timm.create_model("test_resnet", num_classes=4)
    plain.load_state_dict(pruner.export().state_dict())


def test_the_option_resume_of_timms_script_ends_with_the_same_bits(tmp_path):
    trained(last=1, saved=tmp_path / "checkpoint.pth.tar")
    resumed = trained(first=1, resume=tmp_path / "checkpoint.pth.tar").export().state_dict()
    for name, tensor in trained().export().state_dict().items():
        assert torch.equal(tensor, resumed[name]), name


def test_a_checkpoint_of_timms_script_loads_the_sparse_network_by_timm_alone(tmp_path):
    trained(saved=tmp_path / "last.pth.tar")
    saved = torch.load(tmp_path / "last.pth.tar", weights_only=True)
    assert not any(name.endswith("_ema") for name in saved)
    plain = timm.create_model(
        "test_resnet", num_classes=4, checkpoint_path=str(tmp_path / "last.pth.tar")
    )
    found = shares(plain)
    assert found == pytest.approx([0.8] * len(found), abs=0.01)
