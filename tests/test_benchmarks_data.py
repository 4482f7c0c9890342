"""The programs that measure the way of the data: that they run, and compare like with like."""

import json
import sys
from pathlib import Path

import pytest
import torch

HERE = Path(__file__).parent.parent / "benchmarks"


@pytest.fixture(autouse=True)
def programs(monkeypatch):
    monkeypatch.setattr(sys, "path", [str(HERE), *sys.path])


def test_the_way_of_the_data_is_measured_from_memory_and_from_shards(tmp_path):
    import data_path

    for case, workers in (("in memory, erase mixup cutmix", 0), ("webdataset", 1)):
        out = tmp_path / f"{workers}.json"
        options = ["--device", "cpu", "--only", case, "--json", str(out)]
        assert data_path.main(["--tiny", *options]) == 0
        (found,) = json.loads(out.read_text())["cases"].values()
        assert found["workers"] == workers and found["model"] == "tiny"
        assert found["examples_per_second"]["median"] > 0 and 0 < found["waited_share"] < 1


def test_the_usual_loop_and_ours_train_the_same_network_on_the_same_images(tmp_path):
    import like_the_authors as bench

    out = tmp_path / "out.json"
    assert bench.main(["--tiny", "--device", "cpu", "--json", str(out)]) == 0
    report = json.loads(out.read_text())
    assert len(report["seconds_by_epoch"]["ours"]) == len(report["seconds_by_epoch"]["usual"]) == 1
    rates = report["examples_per_second"]
    assert report["ratio"] == pytest.approx(rates["ours"] / rates["usual"])


def test_the_usual_threshold_leaves_one_tenth():
    import like_the_authors as bench

    net = bench.PlainDcil(torch.nn.Sequential(torch.nn.Conv2d(3, 40, 3)), ["0.weight"], [])
    bench.refresh_by_sorting(net)
    mask, weight = net.sparse[0].mask, net.sparse[0].weight
    assert mask.sum() == 107  # of 1,080: the one at the threshold goes too
    assert weight[mask.bool()].abs().min() > weight[~mask.bool()].abs().max()
