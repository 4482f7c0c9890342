"""What the loop does beside resuming (test_resume.py)."""

from __future__ import annotations

import json
import subprocess
import sys
import traceback

import pytest
import torch
from support.tiny_run import TinyData, cross_entropy, tiny_dual, tiny_plan, tiny_train
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tensorboard.plugins.hparams.metadata import EXPERIMENT_TAG as EXPERIMENT
from tensorboard.plugins.hparams.metadata import SESSION_START_INFO_TAG as SESSION
from tensorboard.plugins.hparams.plugin_data_pb2 import HParamsPluginData
from torch import nn
from torch.nn import functional as F

from dcil_dsl.compiler.dual import Dual
from dcil_dsl.diagnostics import InputError
from dcil_dsl.plan import plan as p
from dcil_dsl.training.average import deployed, start_average, update_average
from dcil_dsl.training.evaluate import evaluate
from dcil_dsl.training.machine import lay_out_weights
from dcil_dsl.words.optimizers import SGD
from dcil_dsl.words.rates import ConstantRate

PLAIN = {"clip": None, "ema": None}


def lines_of(run) -> list[dict]:
    return [json.loads(line) for line in run.metrics.read_text().splitlines()]


def one_path(**train) -> p.Plan:
    """Dense training: no rule, one path, one loss."""
    phase = p.Phase(
        window=p.Window(), paths=("dense",), shares=(p.Shares(kept=1.0, pruned=1.0, rest=1.0),)
    )
    return tiny_plan(
        train=PLAIN | train,
        groups=(),
        privates=(),
        paths=(p.Path(name="dense", view="full"),),
        phases=(phase,),
        losses=(cross_entropy("dense"),),
        deploy="dense",
    )


def test_both_paths_learn_at_eighty_percent_sparsity(tmp_path):
    plan = tiny_plan(train=PLAIN | {"num_epochs": 30}, num_steps=150)
    result, _, _ = tiny_train(tmp_path / "run", plan, val=TinyData())
    assert result.accuracies["sparse"]["top1"] > 0.9
    assert result.accuracies["dense"]["top1"] > 0.9
    assert (result.num_kept, result.num_weights, result.cost) == (64, 324, 2.0)


def test_from_the_loop_to_the_graph_a_step_is_eight_functions(tmp_path, monkeypatch):
    """The loop and the graph's own code included; calls within torch are not counted."""
    chains, plain = set(), Dual.forward

    def traced(dual, *args):
        calls = traceback.extract_stack()[:-1]
        own = [call for call in calls if "dcil_dsl" in call.filename]
        names = [call.name for call in own]
        if "_train_epoch" in names:  # not from an evaluation
            chains.add(tuple(names[names.index("_train_epoch") :]) + ("Dual.forward", "graph"))
        return plain(dual, *args)

    monkeypatch.setattr(Dual, "forward", traced)
    tiny_train(tmp_path / "run", one_path(), max_steps=1)
    (chain,) = {chain for chain in chains if "gradients" in chain}
    assert len(chain) <= 8, chain


def test_without_a_rule_training_equals_the_plain_loop(tmp_path):
    """The reference: torch's own SGD on the model itself, batch by batch."""
    plan, data = one_path(clip=0.5), TinyData()
    _, dual, _ = tiny_train(tmp_path / "run", plan, data)
    reference = tiny_dual(plan).original
    optimizer = torch.optim.SGD(
        reference.parameters(), lr=0.1, momentum=0.9, nesterov=True, weight_decay=1e-4
    )
    reference.train()
    for step, (images, labels) in enumerate(b for e in range(4) for b in data.epoch(e)):
        torch.manual_seed(plan.train.seed * 1_000_003 + step)
        optimizer.param_groups[0]["lr"] = plan.lr_at(step)
        optimizer.zero_grad()
        F.cross_entropy(reference(images), labels).backward()
        nn.utils.clip_grad_norm_(reference.parameters(), 0.5)
        optimizer.step()
    torch.testing.assert_close(dict(dual.named_parameters()), dict(reference.named_parameters()))


def test_clip_bounds_the_norm_over_all_gradients(tmp_path):
    plan = one_path(clip=1e-3, optimizer=SGD(lr=1.0), rate=ConstantRate())
    before = {name: w.detach().clone() for name, w in tiny_dual(plan).named_parameters()}
    _, dual, _ = tiny_train(tmp_path / "run", plan, max_steps=1)
    moved = [w.detach() - before[name] for name, w in dual.named_parameters()]
    norm = torch.cat([m.flatten() for m in moved]).norm().item()
    assert norm == pytest.approx(1e-3, rel=1e-3)


def test_the_average_is_the_recursion_written_out_and_stands_in_only_for_a_while():
    module = nn.Linear(1, 1, bias=False)
    average = start_average(module, 0.9)
    expected = module.weight.item()
    for value in (1.0, 2.0, -3.0):
        module.weight.data.fill_(value)
        update_average(average, 0.9)
        expected = 0.9 * expected + 0.1 * value
    with deployed(average):
        assert module.weight.item() == pytest.approx(expected)
    assert module.weight.item() == -3.0


def test_averages_are_deployed_and_masks_are_the_current_ones(tmp_path):
    result, dual, run = tiny_train(tmp_path / "run")
    assert evaluate(dual, TinyData(31, seed=1)) == result.accuracies
    assert lines_of(run)[-1]["top1"] == {k: v["top1"] for k, v in result.accuracies.items()}
    assert sum(int(mask.sum()) for mask in dual.masks.values()) == 64


def test_a_line_an_epoch_says_what_was_asked_and_measured(tmp_path):
    _, _, run = tiny_train(tmp_path / "run")
    lines = lines_of(run)
    assert [line["step"] for line in lines] == [5, 10, 15, 20]
    assert list(lines[0]["losses"]) == ["cross_entropy(sparse)", "cross_entropy(dense)"]
    assert list(lines[1]["losses"])[2:] == ["kl(sparse<-dense)", "kl(dense<-sparse)"]
    # masks move at 0, 3, 6, ..: the first epoch ends with those of step 3, u = 3/12
    assert lines[0]["sparsity_asked"] == pytest.approx(0.8 * (1 - 0.75**3))
    assert lines[-1]["sparsity_measured"] == 1 - 64 / 324
    assert set(lines[-1]["top5"]) == {"sparse", "dense"}


def test_epochs_that_are_not_evaluated_train_the_same_and_the_last_one_always_is(tmp_path):
    usual, _, _ = tiny_train(tmp_path / "usual")
    result, _, run = tiny_train(tmp_path / "run", evaluate_every=3)
    assert [sorted(line["top1"]) for line in lines_of(run)] == [
        [],
        [],
        ["dense", "sparse"],
        ["dense", "sparse"],
    ]
    assert result.accuracies == usual.accuracies


def test_the_losses_of_a_line_are_means_over_the_examples(tmp_path):
    plan = one_path(optimizer=SGD(lr=1e-30), rate=ConstantRate())
    _, dual, run = tiny_train(tmp_path / "run", plan, max_steps=5)
    # without dropout noise the mean over the epoch could be had in one go; so take it by batches
    data, total, right = TinyData(), 0.0, 0
    dual.train()
    for step, (images, labels) in enumerate(data.epoch(0)):
        torch.manual_seed(plan.train.seed * 1_000_003 + step)
        logits = dual(images)["dense"]
        total += F.cross_entropy(logits, labels, reduction="sum").item()
        right += (logits.argmax(1) == labels).sum().item()
    (line,) = lines_of(run)
    assert line["losses"]["cross_entropy(dense)"] == pytest.approx(total / data.num_examples)
    assert line["train_top1"]["dense"] == pytest.approx(right / data.num_examples)


def test_tensorboard_has_the_same_numbers(tmp_path):
    _, _, run = tiny_train(tmp_path / "run")
    events = EventAccumulator(str(run.events))
    events.Reload()
    scalars = events.Scalars("top1/sparse")
    assert [event.step for event in scalars] == [5, 10, 15, 20]
    wanted = [line["top1"]["sparse"] for line in lines_of(run)]
    assert [event.value for event in scalars] == pytest.approx(wanted)


def test_tensorboard_has_the_settings_as_hparams_of_the_metrics_of_each_path(tmp_path):
    plan, _, run = tiny_plan(), *tiny_train(tmp_path / "run")[1:]
    events = EventAccumulator(str(run.events))
    events.Reload()
    content = events.summary_metadata
    start = HParamsPluginData.FromString(content[SESSION].plugin_data.content)
    given = {
        name: value.ListFields()[0][1] for name, value in start.session_start_info.hparams.items()
    }
    assert given["train.optimizer"] == "sgd" and given["train.optimizer.lr"] == 0.1
    assert given["rule1.target"] == "global" and given["rule1.target.sparsity"] == 0.8
    assert given["batch_size"] == plan.data.batch_size and given["train.seed"] == 3
    about = HParamsPluginData.FromString(content[EXPERIMENT].plugin_data.content)
    tags = {info.name.tag for info in about.experiment.metric_infos}
    assert (
        {"top1/sparse", "top1/dense", "sparsity_measured"} <= tags <= set(events.Tags()["scalars"])
    )


def test_tensorboard_and_the_lines_have_the_density_of_each_layer(tmp_path):
    _, dual, run = tiny_train(tmp_path / "run")
    wanted = {name: mask.float().mean().item() for name, mask in dual.masks.items()}
    assert lines_of(run)[-1]["density"] == pytest.approx(wanted)
    assert set(wanted) == {"conv1.weight", "conv2.weight"} and 0 < wanted["conv2.weight"] < 0.5
    events = EventAccumulator(str(run.events))
    events.Reload()
    for name, density in wanted.items():
        assert events.Scalars(f"density/{name}")[-1].value == pytest.approx(density)


def test_a_loss_that_is_not_finite_is_named_with_its_step(tmp_path):
    data = TinyData()
    order = torch.randperm(37, generator=torch.Generator().manual_seed(0)).tolist()
    data.images[order[12]] = float("nan")  # of the second batch: the first one is looked at
    fact = r"`cross_entropy\(\w+\)` is not a finite number at step 1 "
    with pytest.raises(InputError, match=fact):
        tiny_train(tmp_path / "run", data=data)
    assert not (tmp_path / "run" / "checkpoint" / "last.safetensors").exists()


def test_data_that_does_not_fit_the_model_is_a_plain_error(tmp_path):
    data = TinyData()
    data.labels = data.labels + 1
    with pytest.raises(InputError, match="class number 6, counted from 0; the model has 6"):
        tiny_train(tmp_path / "labels", data=data)
    data = TinyData()
    data.images = data.images.expand(-1, 3, -1, -1)
    with pytest.raises(InputError, match=r"does not take images of shape \(3, 8, 8\)"):
        tiny_train(tmp_path / "channels", data=data)
    with pytest.raises(InputError, match="has 3 steps, and the plan was made for 5"):
        tiny_train(tmp_path / "steps", data=TinyData(20))


def test_an_empty_held_out_part_is_a_plain_error(tmp_path):
    with pytest.raises(InputError, match="no data to evaluate on"):
        tiny_train(tmp_path / "run", val=TinyData(0), max_steps=1)


@pytest.mark.parametrize(
    "options", [{"precision": "bf16"}, {"precision": "fp16"}, {"channels_last": True}]
)
def test_precision_and_layout_change_the_rounding_only(tmp_path, options):
    _, plain, _ = tiny_train(tmp_path / "plain", one_path(), max_steps=3)
    _, other, _ = tiny_train(tmp_path / "other", one_path(), max_steps=3, **options)
    close = {"rtol": 0.05, "atol": 0.02} if "precision" in options else {}
    torch.testing.assert_close(
        dict(other.named_parameters()), dict(plain.named_parameters()), **close
    )
    assert {w.dtype for w in other.parameters()} == {torch.float32}


def test_channels_last_is_for_tensors_of_four_dimensions_next_to_those_of_five():
    net = nn.ModuleList([nn.Conv3d(1, 2, 3), nn.Conv2d(3, 2, 3), nn.Linear(2, 2)])
    net[1].register_buffer("weight_mask", net[1].weight > 0)
    before = {name: tensor.clone() for name, tensor in net.state_dict().items()}
    lay_out_weights(net)
    for name, tensor in net.state_dict().items():
        assert torch.equal(tensor, before[name])
        if tensor.dim() == 4:
            assert tensor.is_contiguous(memory_format=torch.channels_last)


def test_a_path_outside_its_phase_is_not_trained(tmp_path):
    """AC/DC: the dense path until step 5, then the sparse one; one pass a step."""
    dense = p.Phase(
        window=p.Window(stop=5),
        paths=("dense",),
        shares=(p.Shares(), p.Shares(kept=1.0, pruned=1.0, rest=1.0)),
    )
    sparse = p.Phase(
        window=p.Window(start=5),
        paths=("sparse",),
        shares=(p.Shares(kept=1.0, rest=1.0), p.Shares()),
    )
    losses = (
        cross_entropy("sparse").model_copy(update={"window": p.Window(start=5)}),
        cross_entropy("dense").model_copy(update={"window": p.Window(stop=5)}),
    )
    plan = tiny_plan(train=PLAIN, phases=(dense, sparse), losses=losses)
    result, _, run = tiny_train(tmp_path / "run", plan)
    assert [list(line["train_top1"]) for line in lines_of(run)[:2]] == [["dense"], ["sparse"]]
    assert result.cost == 1.0 and set(result.accuracies) == {"sparse", "dense"}


def test_compiled_steps_are_the_same_and_moving_masks_compile_nothing(tmp_path, graphs_compiled):
    _, compiled, _ = tiny_train(tmp_path / "compiled", compile=True)
    _, plain, _ = tiny_train(tmp_path / "plain")
    assert len(graphs_compiled) == 2  # before the distillation starts, and after
    torch.testing.assert_close(
        dict(compiled.named_parameters()), dict(plain.named_parameters()), rtol=0, atol=0
    )


def test_freed_memory_stays_with_the_process():
    """100 blocks of 1 MB: glibc hands them back to the system, unless it was told to keep them."""
    code = """if True:
        import ctypes, sys
        from dcil_dsl.training.machine import keep_freed_memory
        heard = keep_freed_memory() if sys.argv[1] == "keep" else None
        libc = ctypes.CDLL(None)
        libc.malloc.restype, libc.free.argtypes = ctypes.c_void_p, [ctypes.c_void_p]
        blocks = [libc.malloc(1 << 20) for _ in range(100)]
        for block in blocks: ctypes.memset(ctypes.c_void_p(block), 1, 1 << 20)
        for block in blocks: libc.free(block)
        pages = int(open("/proc/self/statm").read().split()[1])
        print(heard, pages * 4096 >> 20)
    """

    def resident(word):
        out = subprocess.run([sys.executable, "-c", code, word], capture_output=True, text=True)
        heard, megabytes = out.stdout.split()
        return heard, int(megabytes)

    (heard, kept), (_, returned) = resident("keep"), resident("return")
    assert heard == "False" or kept > returned + 50
