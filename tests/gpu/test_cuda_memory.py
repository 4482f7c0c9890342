"""What a device's allocator says of a step's memory."""

import json

import pytest
import torch
from support.device_training import run

pytestmark = pytest.mark.gpu


def test_checkpointed_activations_take_less_and_the_report_says_how_much(device, tmp_path):
    peaks = {}
    for name, more in (("again", {"checkpoint_activations": True}), ("together", {})):
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats(device)
        report = run(device, tmp_path / name, **more).path / "report.json"
        peaks[name] = json.loads(report.read_text())["device"]["peak_memory_bytes"]
    assert 0 < peaks["again"] < peaks["together"]
