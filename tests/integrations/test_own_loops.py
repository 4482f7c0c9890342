"""Loops as people write them around a model, with Pruner added: right, or refused by name."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from support.library import needed
from torch import nn
from torch.nn import functional as F

import dcil_dsl as dcil

RECIPE = """language 1
prune Linear to 80% {
  schedule = cubic(0% run..60% run)
  score = taylor(average=0.9)
}
pruning { refresh = 2 steps }
mix {
  path sparse = masked
  path dense = full
  update kept by sparse
  update pruned by dense
  loss cross_entropy(sparse)
  loss cross_entropy(dense)
  deploy sparse
}
train {
  epochs = 4ep
  optimizer = sgd(lr=0.05, momentum=0.9)
}
"""
X = torch.randn(40, 6, generator=torch.Generator().manual_seed(0))
Y = (X[:, 0] > 0).long() + 2 * (X[:, 1] > 0).long()
BATCHES = list(zip(X.split(8), Y.split(8)))
TESTS = Path(__file__).parents[1]


def net():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(6, 20), nn.ReLU(), nn.Linear(20, 4))


def trained(pruner, optimizer, epochs=4, zero_grad=None, batches=BATCHES):
    for x, y in batches * epochs:
        loss = pruner.step_loss(x, target=y)
        (zero_grad or optimizer.zero_grad)()
        loss.backward()
        pruner.step(optimizer)
    return pruner.export(unfinished=True).state_dict()


def plainly():
    pruner = dcil.Pruner(RECIPE, net(), steps_per_epoch=5)
    return trained(pruner, pruner.make_optimizer())


def equal(one, other):
    return all(torch.equal(tensor, other[name]) for name, tensor in one.items())


def is_sparse(state):
    found = [float((w == 0).double().mean()) for w in state.values() if w.dim() == 2]
    return found == pytest.approx([0.8] * len(found), abs=0.01)


# -- gradients -----------------------------------------------------------------------------------


def test_zero_grad_of_the_model_that_was_given_lets_no_gradient_add_up():
    model = net()
    pruner = dcil.Pruner(RECIPE, model, steps_per_epoch=5)
    found = trained(pruner, pruner.make_optimizer(), zero_grad=model.zero_grad)
    assert equal(found, plainly())


# -- compilation and wrappers --------------------------------------------------------------------


def test_a_compiled_model_is_refused_with_the_name_of_the_module_inside():
    with pytest.raises(dcil.InputError, match="_orig_mod"):
        dcil.Pruner(RECIPE, torch.compile(net()), steps_per_epoch=5)


def test_a_model_compiled_in_place_trains_to_the_same_bits():
    model = net()
    model.compile(backend="eager")
    pruner = dcil.Pruner(RECIPE, model, steps_per_epoch=5)
    assert equal(trained(pruner, pruner.make_optimizer()), plainly())


def test_a_compiled_dual_trains_to_the_same_bits():
    pruner = dcil.Pruner(RECIPE, net(), steps_per_epoch=5)
    pruner.module = torch.compile(pruner.dual, backend="eager")
    assert equal(trained(pruner, pruner.make_optimizer()), plainly())


def test_data_parallel_around_the_model_is_refused_by_name():
    with pytest.raises(dcil.InputError, match="wrapped"):
        dcil.Pruner(RECIPE, nn.DataParallel(net()), steps_per_epoch=5)


# -- precision -----------------------------------------------------------------------------------


def test_autocast_of_the_loop_in_bf16_trains_sparse():
    pruner = dcil.Pruner(RECIPE, net(), steps_per_epoch=5)
    optimizer = pruner.make_optimizer()
    for x, y in BATCHES * 4:
        with torch.autocast("cpu", torch.bfloat16):
            loss = pruner.step_loss(x, target=y)
        loss.backward()
        pruner.step(optimizer)
    assert is_sparse(pruner.export().state_dict())


def test_a_model_of_bf16_weights_trains_sparse():
    pruner = dcil.Pruner(RECIPE, net().bfloat16(), steps_per_epoch=5)
    batches = [(x.bfloat16(), y) for x, y in BATCHES]
    assert is_sparse(trained(pruner, pruner.make_optimizer(), batches=batches))


def test_a_step_by_the_scaler_alone_trains_nothing_in_silence():
    pruner = dcil.Pruner(RECIPE, net(), steps_per_epoch=5)
    optimizer, scaler = pruner.make_optimizer(), torch.amp.GradScaler("cpu", init_scale=8.0)
    for x, y in BATCHES:
        scaler.scale(pruner.step_loss(x, target=y)).backward()
        scaler.step(optimizer)
        scaler.update()
        optimizer.zero_grad()
    with pytest.raises(dcil.SparsityError):
        pruner.export()


# -- averages ------------------------------------------------------------------------------------


def test_an_averaged_copy_of_the_dual_is_exported_with_the_masks_of_the_dual():
    """AveragedModel averages weights and copies buffers."""
    pruner = dcil.Pruner(RECIPE, net(), steps_per_epoch=5)
    average = torch.optim.swa_utils.AveragedModel(pruner.dual)
    optimizer = pruner.make_optimizer()
    for x, y in BATCHES * 4:
        pruner.step_loss(x, target=y).backward()
        pruner.step(optimizer)
        average.update_parameters(pruner.dual)
    found = dcil.export(average.module)
    weights = dict(average.module.named_parameters())
    for name, weight in found.named_parameters():
        mask = pruner.dual.masks.get(name, torch.ones(()))
        assert torch.equal(weight, weights[name] * mask)


# -- resuming ------------------------------------------------------------------------------------


@pytest.mark.parametrize("registers", [True, False])
def test_accelerates_saved_state_resumes_to_the_bit_or_is_refused(tmp_path, registers):
    accelerate = needed("accelerate")
    accelerate.state.AcceleratorState._reset_state(True)
    accelerator = accelerate.Accelerator(cpu=True)

    def start():
        pruner = dcil.Pruner(RECIPE, net(), steps_per_epoch=5)
        pruner.module, optimizer = accelerator.prepare(pruner.dual, pruner.make_optimizer())
        if registers:
            accelerator.register_for_checkpointing(pruner)
        return pruner, optimizer

    trained(*start(), epochs=2)
    accelerator.save_state(str(tmp_path))
    accelerator.free_memory()
    accelerator._custom_objects.clear()
    pruner, optimizer = start()
    accelerator.load_state(str(tmp_path))
    if registers:
        assert equal(trained(pruner, optimizer, epochs=2), plainly())
    else:
        with pytest.raises(dcil.InputError, match="register_for_checkpointing"):
            pruner.step_loss(X[:8], target=Y[:8])


def test_a_dual_rolled_back_without_its_step_is_refused():
    pruner = dcil.Pruner(RECIPE, net(), steps_per_epoch=5)
    optimizer = pruner.make_optimizer()
    trained(pruner, optimizer, epochs=1)
    early = {name: tensor.clone() for name, tensor in pruner.dual.state_dict().items()}
    trained(pruner, optimizer, epochs=1)
    pruner.dual.load_state_dict(early)
    with pytest.raises(dcil.InputError, match="not those of step 10"):
        pruner.step_loss(X[:8], target=Y[:8])
    pruner.steps = 5
    pruner.step_loss(X[:8], target=Y[:8])


# -- texts of unequal length ---------------------------------------------------------------------


class Tagger(nn.Module):
    """Scores at each place, as models of transformers take and return them."""

    def __init__(self):
        super().__init__()
        self.inner, self.head = nn.Linear(6, 20), nn.Linear(20, 4)

    def forward(self, inputs_embeds, attention_mask=None):
        return {"logits": self.head(self.inner(inputs_embeds).relu())}


def tagging(recipe, batch):
    torch.manual_seed(0)
    return dcil.Pruner(recipe, Tagger(), steps_per_epoch=5, example_inputs=batch)


def compared():
    recipe = RECIPE.replace("prune Linear", "prune Linear except last Linear")
    for path in ("sparse", "dense"):
        recipe = recipe.replace(f"  loss cross_entropy({path})\n", "")
    apart = "private last Linear { init = fresh }\n  loss js(one=sparse, other=dense)\n  deploy"
    return recipe.replace("deploy", apart)


def test_filled_places_teach_nothing_though_no_target_is_given():
    """The gradient is that of the texts alone, whatever their places are filled with."""
    x = torch.randn(2, 5, 6, generator=torch.Generator().manual_seed(1))
    mask = torch.tensor([[1, 1, 1, 1, 1], [1, 1, 0, 0, 0]])
    found = []
    for filling in (0.0, 100.0):
        given = x.where(mask.bool()[..., None], torch.tensor(filling))
        batch = {"inputs_embeds": given, "attention_mask": mask}
        pruner = tagging(compared(), batch)
        pruner.step_loss(**batch).backward()
        found.append([p.grad for p in pruner.dual.parameters()])
    assert any(bool(grad.any()) for grad in found[0])
    assert all(torch.allclose(a, b, atol=1e-7) for a, b in zip(*found, strict=True))


def test_a_mask_takes_the_place_of_no_target():
    batch = {"inputs_embeds": torch.randn(2, 5, 6), "attention_mask": torch.ones(2, 5).long()}
    pruner = tagging(RECIPE, batch)
    with pytest.raises(dcil.InputError, match="needs a target"):
        pruner.step_loss(**batch)


# -- several processes ---------------------------------------------------------------------------


def test_distributed_data_parallel_as_it_comes_trains_the_network_of_one_process(tmp_path):
    """Its broadcast of buffers would replace the scores of all processes by the first one's."""
    script = str(TESTS / "support" / "ddp_pruner.py")
    env = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(TESTS)}
    start = ["-m", "torch.distributed.run", "--standalone"]
    for count in (1, 2):
        command = [*start, f"--nproc-per-node={count}", script, str(tmp_path / str(count))]
        done = subprocess.run([sys.executable, *command], capture_output=True, text=True, env=env)
        assert done.returncode == 0, done.stderr[-3000:]
    one, two = (torch.load(tmp_path / f"{count}.pt", weights_only=True) for count in (1, 2))
    assert is_sparse(one["through"])
    for name, tensor in one["through"].items():
        torch.testing.assert_close(two["through"][name], tensor, rtol=0, atol=1e-9)
    assert equal(two["resumed"], two["through"])


def test_a_wrapper_that_would_replace_the_scores_is_refused(tmp_path):
    """The names of a compiled module's buffers are others than those of the dual."""
    store = torch.distributed.FileStore(str(tmp_path / "store"), 1)
    torch.distributed.init_process_group("gloo", store=store, rank=0, world_size=1)
    try:
        pruner = dcil.Pruner(RECIPE, net(), steps_per_epoch=5)
        compiled = torch.compile(pruner.dual, backend="eager")
        wrap, optimizer = nn.parallel.DistributedDataParallel, pruner.make_optimizer()
        pruner.module = wrap(compiled)
        with pytest.raises(dcil.InputError, match="replaces the scores"):
            trained(pruner, optimizer)
        pruner.module = wrap(compiled, broadcast_buffers=False)
        pruner.step(optimizer)
    finally:
        torch.distributed.destroy_process_group()


def test_cross_entropy_reads_probabilities_of_mixed_batches():
    pruner = dcil.Pruner(RECIPE, net(), steps_per_epoch=5)
    pruner.begin()
    mixed = 0.7 * F.one_hot(Y[:8], 4).float() + 0.3 * F.one_hot(Y[8:16], 4).float()
    found = pruner.loss(pruner.forward(X[:8]), mixed)
    own = F.cross_entropy(net()(X[:8]), mixed)
    torch.testing.assert_close(found, 2 * own)
