"""`dcil plan --for TARGET` says of each pruned layer whether its zeros pay, and why."""

import json

import pytest
from support.tiny_job import NET, RECIPE, call

from dcil_dsl.extras.targets.rules import TARGETS, LayerFigures


def layer(**fields):
    defaults = dict(
        parameter="w",
        type="Linear",
        num_outputs=128,
        num_inputs=128,
        groups=1,
        sparsity=0.9,
        rows=1,
    )
    return LayerFigures(**defaults | fields)


def gain(target, **fields):
    return TARGETS[target][1](layer(**fields))


def test_no_zeros_pay_on_dense_kernels():
    assert gain("dense").pays == "no" and gain("dense").estimate == 1


@pytest.mark.parametrize(
    "target, fields, pays, says",
    [
        ("cpu", {}, "yes", "skips zeros"),
        ("cpu", {"sparsity": 0.6}, "perhaps", "measured from 80%"),
        ("cpu", {"sparsity": 0.3}, "no", "too few"),
        ("cpu", {"type": "Conv2d", "groups": 32, "num_inputs": 1}, "no", "depthwise"),
        ("cpu", {"type": "Conv1d"}, "no", "no kernel for Conv1d"),
        ("openvino-int8", {}, "yes", "AMX"),
        ("openvino-int8", {"num_outputs": 1000}, "no", "multiples of 64, not 1000 x 128"),
        ("openvino-int8", {"type": "Conv2d"}, "no", "only MatMul"),
        ("openvino-int8", {"rows": 197}, "no", "compute-bound: 197"),
        ("openvino-int8", {"rows": None}, "perhaps", "not known"),
        ("ethos-u", {}, "yes", "memory-bound"),
        ("ethos-u", {"type": "Conv2d", "rows": 3136}, "size", "compute-bound"),
        ("ethos-u", {"sparsity": 0.0}, "no", "too few"),
        ("coreml", {}, "perhaps", "75%"),
        ("coreml", {"sparsity": 0.5}, "size", "below 75%"),
        ("coreml", {"sparsity": 0.02}, "no", "bit mask costs more"),
        ("cuda-2:4", {}, "no", "the zeros do not form a 2:4 pattern"),
        ("cuda-2:4", {"tensor_cores": ""}, "perhaps", "at most 2 times"),
        ("cuda-2:4", {"tensor_cores": "its side is 3"}, "no", "its side is 3"),
        ("cuda-2:4", {"tensor_cores": "", "type": "Conv2d"}, "no", "not Conv2d"),
    ],
)
def test_the_rule_of_a_target_decides_and_is_named(target, fields, pays, says):
    found = gain(target, **fields)
    assert found.pays == pays and says in found.rule


def test_an_estimate_rises_with_the_zeros_and_never_beyond_what_was_measured():
    found = [gain("cpu", sparsity=s).estimate for s in (0.8, 0.85, 0.9, 0.95, 0.99)]
    assert found == sorted(found) and found[0] == 2.4 and found[3] == found[4] == 9.5
    assert gain("cpu", sparsity=0.7).estimate is None


def test_the_size_on_ethos_u_is_near_to_that_of_arms_own_example():
    """Its notebook: 507 -> 46 KiB at 95%, 11.0 times."""
    assert gain("ethos-u", sparsity=0.95).estimate == pytest.approx(11.0, rel=0.02)


@pytest.fixture
def folder(tmp_path):
    (tmp_path / "tiny.prune").write_text(RECIPE)
    (tmp_path / "net.py").write_text(NET)
    return tmp_path


def plan_for(folder, *more):
    return call("plan", folder / "tiny.prune", "--model", f"{folder}/net.py:Net", *more)


def test_the_table_has_a_row_for_each_pruned_layer(folder, capsys):
    assert plan_for(folder, "--for", "cpu") == 0
    out = capsys.readouterr().out
    assert "0.weight" in out and "3.weight" in out and "8.weight" not in out
    assert "about 90%" in out and "2 of 2 layers gain time" in out


def test_the_json_has_the_same_rows(folder, capsys):
    assert plan_for(folder, "--for", "openvino-int8", "--json") == 0
    found = json.loads(capsys.readouterr().out)
    assert found["target"] == "openvino-int8"
    assert [row["parameter"] for row in found["layers"]] == ["0.weight", "3.weight"]
    assert {row["pays"] for row in found["layers"]} == {"no"}
    assert all(row["exact"] is False for row in found["layers"])


def test_an_unknown_target_is_refused_with_the_nearest_one(folder, capsys):
    assert plan_for(folder, "--for", "openvino_int8") == 2
    assert "did you mean `openvino-int8`?" in capsys.readouterr().err
