"""The program that measures exported files: what it prunes, reads, and measures again."""

import argparse
import sys
from pathlib import Path

import pytest
import torch
from torch import nn

sys.path.insert(0, str(Path(__file__).parent.parent / "benchmarks"))
import formats

REPORT = """\
top-1 on 360 held-out examples: float32 96.11%, int8 95.83%
largest difference to float32 on noise 2.1e-02
all operations but 2 run on the NPU; batch size: 1 alone
Vela for ethos-u85-128, Ethos_U85_SYS_Flash_High, Shared_Sram:
          weights  encoded weights  NPU cycles  total cycles
dense   522.5 KiB        526.6 KiB      44,577       547,088
sparse  522.5 KiB         46.2 KiB      44,577        55,168
dense: every zero replaced by another weight of its layer
"""


def test_the_figures_of_an_int8_export_are_read_off_its_report():
    found = formats.figures_of(REPORT)
    assert (found["examples"], found["float32"], found["int8"]) == (360, 96.11, 95.83)
    assert found["dense"]["total_cycles"] == 547088 and found["sparse"]["encoded_kib"] == 46.2
    assert formats.figures_of(REPORT.splitlines()[0]).keys() == {"examples", "float32", "int8"}


def test_every_layer_but_a_first_convolution_loses_its_share():
    torch.manual_seed(0)
    net = nn.Sequential(nn.Conv2d(3, 8, 3), nn.Conv2d(8, 10, 3), nn.Linear(10, 10))
    formats.prune(net, 0.9)
    shares = [float((layer.weight == 0).float().mean()) for layer in net]
    assert shares == pytest.approx([0, 0.9, 0.9])
    assert formats.count_zeros(net) == pytest.approx(0.9 * 820 / 1036)


def test_a_size_in_the_file_is_not_measured_again(monkeypatch):
    made = []

    def size(network, sizes, name):
        made.append(name)
        return 1_000_000

    monkeypatch.setitem(formats.NETWORKS, "tiny", lambda: (nn.Linear(10, 10), {}))
    monkeypatch.setattr(formats, "bytes_of", size)
    options = argparse.Namespace(networks=["tiny"], shares=[0.9], formats=["packed", "onnx"])
    rows = list(formats.measure_sizes(options, []))
    assert made == ["packed", "onnx"] and rows[0]["zeros"] == pytest.approx(0.9)
    assert list(formats.measure_sizes(options, rows[:1])) == rows[1:]
    assert made == ["packed", "onnx", "onnx"]
    assert "| `packed` | 1.0 |" in formats.show_sizes(rows)


def test_the_report_of_vela_stands_in_the_table():
    row = {"network": "mlp", "seed": 0, "format": "ethos-u85", **formats.figures_of(REPORT)}
    text = formats.show_int8([row])
    assert (
        "| mlp | 0 | ethos-u85 | 96.11% | 95.83% | 526.6 to 46.2 KiB | 547,088 to 55,168 |" in text
    )
