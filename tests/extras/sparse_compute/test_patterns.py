"""A run says once where its 2:4 patterns are computed and why, and counts its cost accordingly."""

import io
import json

import pytest
import torch
from rich.console import Console
from support.reference_cores import reference_cores
from torch import nn

from dcil_dsl.extras.sparse_compute import tensor_cores
from dcil_dsl.extras.sparse_compute.step import COMPILED, pattern_words, why_computed_whole
from dcil_dsl.extras.sparse_compute.tensor_cores import Cores
from dcil_dsl.jobs.train import train
from dcil_dsl.lang import loads
from dcil_dsl.training.machine import Options
from dcil_dsl.training.progress import make_display
from dcil_dsl.training.result import result_table

RECIPE = """
language 1
data synthetic {{ batch_size = 64  image_size = 8 }}
prune Linear except last Linear to 2:4 {{ refresh = 1 steps }}
mix {{
  path sparse = masked {{ {sparse} }}
  path dense  = full
  update kept   by sparse
  update pruned by 0.5 * sparse + 0.5 * dense
  loss cross_entropy(sparse)
  loss cross_entropy(dense)
  deploy sparse
}}
train {{ epochs = 2ep  optimizer = sgd(lr=0.05, momentum=0.9)  precision = {precision} }}
"""
WHOLE = (
    "computed in full, with the same result: 2:4 of 2, 4; the device is a CPU, which has no sparse "
    "tensor cores"
)
ON_CORES = (
    "on sparse tensor cores in the forward pass: 2:4 of 2, 4; the device gave the dense product"
)
FAILED = (
    "computed in full, with the same result: 2:4 of 4; its kernel failed: CUDA error: launch failed"
)


def net():
    torch.manual_seed(0)
    return nn.Sequential(
        nn.AdaptiveAvgPool2d(4),
        nn.Flatten(),
        nn.Linear(48, 64),
        nn.ReLU(),
        nn.Linear(64, 32),
        nn.ReLU(),
        nn.Linear(32, 10),
    )


def run(folder, sparse="compute = kept", precision="fp32", **more):
    console = Console(file=io.StringIO(), width=400)
    recipe = loads(RECIPE.format(sparse=sparse, precision=precision))
    more = dict(max_steps=4) | more
    made = train(
        recipe,
        net(),
        "synthetic",
        out=folder,
        device="cpu",
        workers=0,
        display=make_display(False, console),
        **more,
    )
    return made, console.file.getvalue()


def weights_of(made):
    return made.model.state_dict()


def test_on_a_cpu_it_says_once_that_they_are_computed_whole_and_counts_them_so(tmp_path):
    kept, text = run(tmp_path / "kept", precision="bf16")
    assert text.count("2:4") == 1 and WHOLE in text.splitlines()
    assert kept.result.patterns == (WHOLE,) and kept.result.cost == 2
    report = json.loads((kept.path / "report.json").read_text())
    assert report["training_cost"] == 2 and report["result"]["patterns"] == [WHOLE]
    console = Console(file=io.StringIO(), width=400)
    console.print(result_table(kept.result, kept.plan))
    assert WHOLE in console.file.getvalue()
    every, text = run(tmp_path / "all", sparse="", precision="bf16")
    assert "2:4" not in text and every.result.patterns == ()
    torch.testing.assert_close(weights_of(kept), weights_of(every), rtol=0, atol=0)


def test_a_run_on_cores_says_so_ends_where_it_would_and_costs_less(tmp_path, monkeypatch):
    calls = []
    monkeypatch.setattr(tensor_cores, "CORES", reference_cores(calls))
    kept, text = run(tmp_path / "kept", precision="fp32")
    every, _ = run(tmp_path / "all", sparse="", precision="fp32")
    assert text.count("2:4") == 1 and ON_CORES in text.splitlines()
    assert [shape for shape in calls if shape[0][0] == 64 and shape[1] == (32, 64)]
    torch.testing.assert_close(weights_of(kept), weights_of(every), rtol=1e-5, atol=1e-7)
    half, _ = run(tmp_path / "half", precision="bf16")
    macs = 48 * 64 + 64 * 32
    assert half.result.cost == pytest.approx(2 - macs / (macs + 320) / 6, abs=1e-12)


def test_a_kernel_that_fails_in_the_middle_is_reported_when_it_is_known(tmp_path, monkeypatch):
    """Its layer is computed in full from then on, and was in the end: so it is counted."""
    reference, calls = reference_cores(), []

    def multiply(x, w, b):
        calls.append(None)
        if len(calls) > 12 and len(w) == 32:
            raise RuntimeError("CUDA error: launch failed")
        return reference.multiply(x, w, b)

    monkeypatch.setattr(tensor_cores, "CORES", Cores(lambda *_: "", multiply))
    kept, text = run(tmp_path / "kept", precision="bf16", max_steps=16)
    lines = [line for line in text.splitlines() if "2:4" in line]
    one = ON_CORES.replace("2, 4", "2")
    assert lines == [ON_CORES, one, FAILED] and kept.result.patterns == (one, FAILED)
    assert kept.result.cost == pytest.approx(2 - 48 * 64 / (48 * 64 + 64 * 32 + 320) / 6)


def test_compiled_steps_compute_in_full(tmp_path, monkeypatch):
    monkeypatch.setattr(tensor_cores, "CORES", reference_cores())
    made, _ = run(tmp_path / "run", precision="bf16", max_steps=1)
    from dcil_dsl.compiler import compile_plan

    found = why_computed_whole(compile_plan(made.plan, net()), Options(compile=True))
    assert found == {"2.weight": COMPILED, "4.weight": COMPILED}


def test_many_layers_are_named_in_short():
    found = {f"blocks.{i}.weight": "" for i in range(5)} | {"head.weight": "why"}
    assert pattern_words(found) == (
        "on sparse tensor cores in the forward pass: 2:4 of blocks.0, blocks.1, blocks.2 and 2 "
        "more; the device gave the dense product",
        "computed in full, with the same result: 2:4 of head; why",
    )
