"""Weights in parts: each rank has its rows, and trains the network that one process trains."""

from __future__ import annotations

import json
import pickle
from functools import partial

import pytest
import torch
from support.same_runs import assert_equal_runs
from support.tiny_ranks import PlainNet, on_ranks, plain_plan, rank_train, said
from support.tiny_run import tiny_plan
from torch._dynamo.backends.common import aot_autograd
from torch._functorch.partitioners import min_cut_rematerialization_partition

from dcil_dsl.compiler import compile_plan
from dcil_dsl.compiler.checkpoint_activations import recompute_activations
from dcil_dsl.diagnostics import InputError
from dcil_dsl.extras.sharding.layout import Regather
from dcil_dsl.extras.sharding.refusals import check_shardable
from dcil_dsl.extras.sharding.shards import shard
from dcil_dsl.training import checkpoint as checkpoint_file
from dcil_dsl.training.distributed import Ranks
from dcil_dsl.words.scores import Magnitude
from dcil_dsl.words.word import WordOrigin


@pytest.fixture(scope="module")
def alone(tmp_path_factory):
    folder = tmp_path_factory.mktemp("alone") / "run"
    rank_train(folder, Ranks())
    return folder


def test_two_ranks_in_parts_train_what_one_process_trains_and_it_resumes_from_them(tmp_path, alone):
    def some_steps(ranks):
        rank_train(tmp_path / "run", ranks, shard=True, max_steps=10)

    assert on_ranks(tmp_path, 2, some_steps) == [0, 0], said(tmp_path, 0)
    rank_train(tmp_path / "run", Ranks())
    assert_equal_runs(tmp_path / "run", alone)


@pytest.mark.parametrize("way", ["checkpoint_activations", "compile"])
def test_parts_go_with_other_ways_of_making_a_step(tmp_path, alone, way, monkeypatch):
    whole = partial(torch.compile, backend="aot_eager", fullgraph=True)
    monkeypatch.setattr(torch, "compile", whole)

    def some_steps(ranks):
        rank_train(tmp_path / "run", ranks, shard=True, max_steps=4, **{way: True})

    assert on_ranks(tmp_path, 2, some_steps) == [0, 0], said(tmp_path, 0)
    assert "context_fn" not in said(tmp_path, 0)
    rank_train(tmp_path / "run", Ranks())
    assert_equal_runs(tmp_path / "run", alone)


def test_a_compiled_step_keeps_no_gathered_weight_and_is_the_same_when_masks_move(tmp_path):
    def compiled(ranks):
        dual = compile_plan(plain_plan(), PlainNet())
        shard(dual, ranks, torch.device("cpu"))
        graphs = {"forward": [], "backward": []}

        def noted(kind):
            return lambda graph, inputs: graphs[kind].append(graph) or graph.forward

        backend = aot_autograd(
            fw_compiler=noted("forward"),
            bw_compiler=noted("backward"),
            partition_fn=min_cut_rematerialization_partition,
        )

        @partial(torch.compile, backend=backend, fullgraph=True, dynamic=False)
        def step(images):
            return sum(output.square().mean() for output in dual(images).values())

        for number in (20, 30):
            dual.begin_step(number)
            step(torch.randn(3, 1, 8, 8)).backward()
        ((forward,), (backward,)) = graphs.values()
        targets = [str(node.target) for node in backward.graph.nodes]
        gathers = [t for t in targets if "all_gather" in t]
        assert len(gathers) == sum("all_gather" in str(n.target) for n in forward.graph.nodes) > 0
        (output,) = forward.graph.find_nodes(op="output")
        kept = [tuple(node.meta["val"].shape) for node in output.args[0] if hasattr(node, "meta")]
        assert (8, 4, 3, 3) not in kept and (4, 4, 3, 3) in kept  # conv2's weight, and its rows

    assert on_ranks(tmp_path, 2, compiled) == [0, 0], said(tmp_path, 1)


def test_each_rank_has_its_rows_of_weights_masks_and_momentum_and_no_mask_is_whole_anywhere(
    tmp_path,
):
    def cut(ranks):
        dual = compile_plan(plain_plan(), PlainNet())
        sizes = {name: len(mask) for name, mask in dual.masks.items()}
        shard(dual, ranks, torch.device("cpu"))
        for name, mask in dual.masks.items():
            assert len(mask) == len(dual.get_parameter(name)) == sizes[name] // 2
        dual.begin_step(20)
        images = torch.randn(3, 1, 8, 8)
        with Regather.hooks():
            outputs = dual(images)
            assert not Regather.alive  # nothing that was gathered for the forward is kept
            loss = sum(output.square().mean() for output in outputs.values())
            recompute_activations(dual)(images)
            assert not Regather.alive
        loss.backward()
        for name, parameter in dual.named_parameters():
            assert parameter.grad is None or parameter.grad.shape == parameter.shape, name
        assert dual.get_parameter("conv2.weight").grad is not None

    assert on_ranks(tmp_path, 2, cut) == [0, 0], said(tmp_path, 1)


def test_file_parts_of_two_and_parts_of_three_ranks_follow_each_other_in_one_run(tmp_path, alone):
    """Three ranks cut four rows into two, two and none."""
    rank_train(tmp_path / "run", Ranks(), max_steps=5)
    folder = tmp_path / "run" / "checkpoint"

    def more(stop):
        return lambda ranks: rank_train(tmp_path / "run", ranks, shard=True, max_steps=stop)

    assert on_ranks(tmp_path, 2, more(10)) == [0, 0], said(tmp_path, 0)
    assert [file.name for file in folder.iterdir()] == ["parts-000000010"]
    assert on_ranks(tmp_path, 3, more(15)) == [0] * 3, said(tmp_path, 0)
    assert [file.name for file in folder.iterdir()] == ["parts-000000015"]
    rank_train(tmp_path / "run", Ranks())
    assert [file.name for file in folder.iterdir()] == ["last.safetensors"]
    assert_equal_runs(tmp_path / "run", alone)


# -- files from elsewhere ------------------------------------------------------------------------


class Bomb:
    def __init__(self, place):
        self.place = str(place)

    def __reduce__(self):
        return open, (self.place, "w")


@pytest.fixture
def parts(tmp_path):
    def some_steps(ranks):
        rank_train(tmp_path / "run", ranks, shard=True, max_steps=5)

    assert on_ranks(tmp_path, 2, some_steps) == [0, 0], said(tmp_path, 0)
    (folder,) = (tmp_path / "run" / "checkpoint").iterdir()
    return folder


def test_a_pickle_planted_among_the_parts_is_never_opened_and_parts_hold_none(tmp_path, parts):
    assert {file.suffix for file in parts.iterdir()} == {".safetensors", ".json"}
    for name in (".metadata", "data.pkl", "__0_0.distcp"):
        (parts / name).write_bytes(pickle.dumps(Bomb(tmp_path / "exploded")))
    rank_train(tmp_path / "run", Ranks(), max_steps=6)
    assert not (tmp_path / "exploded").exists()


def test_parts_that_were_changed_are_refused_whatever_was_changed(parts):
    path = parts.with_name("last.safetensors")

    def refused():
        with pytest.raises(InputError, match="damaged"):
            checkpoint_file.read_checkpoint(path, plain_plan())

    index = (parts / "parts.json").read_text()
    first = next(parts.glob("shard-00001*"))
    whole = first.read_bytes()
    first.write_bytes(whole[:-1] + bytes([whole[-1] ^ 1]))
    refused()
    first.unlink()
    refused()
    first.write_bytes(whole)
    (parts / "shard-00003-model-00001-of-00001.safetensors").write_bytes(whole)
    refused()
    (parts / "shard-00003-model-00001-of-00001.safetensors").unlink()
    (parts / "parts.json").write_text(index.replace("shard-00001", "../shard-1"))
    refused()
    (parts / "parts.json").write_text(index.replace('"step\\": 5', '"step\\": 4'))
    refused()
    (parts / "parts.json").write_text(index[: len(index) // 2])
    refused()
    (parts / "parts.json").write_text(index)
    _, header = checkpoint_file.read_checkpoint(path, plain_plan())
    assert json.loads(header["position"])["step"] == 5


def test_parts_are_refused_where_there_is_one_process_or_a_word_that_is_given_whole_weights():
    score = Magnitude()
    score._origin = WordOrigin(word="ours", package="my-words", version="1")
    plan = tiny_plan(group={"score": score})
    with pytest.raises(InputError, match="tiny.prune:1 scores by ours, a word of a package"):
        check_shardable(plan, Ranks(0, 2))
    with pytest.raises(InputError, match="there is one process"):
        shard(compile_plan(plain_plan(), PlainNet()), Ranks(), torch.device("cpu"))
