"""Steps that are recorded once and replayed are the compiled ones."""

import pytest
import torch
from support.device_training import run

pytestmark = pytest.mark.gpu


@pytest.mark.parametrize("precision", ["fp32", "bf16", "fp16"])
def test_a_replayed_run_ends_as_a_compiled_one(device, tmp_path, precision):
    more = dict(compile=True, precision=precision, max_steps=12)
    compiled = run(device, tmp_path / "compiled", **more)
    replayed = run(device, tmp_path / "replayed", compile_mode="reduce-overhead", **more)
    assert replayed.result.sparsity_counted == compiled.result.sparsity_counted
    far = dict(rtol=1e-3, atol=1e-4) if precision == "fp32" else dict(rtol=0.1, atol=0.02)
    torch.testing.assert_close(replayed.model.state_dict(), compiled.model.state_dict(), **far)


def test_masks_that_move_are_seen_by_a_replay(device, tmp_path):
    replayed = run(device, tmp_path / "run", compile=True, compile_mode="reduce-overhead")
    assert replayed.result.sparsity_measured == pytest.approx(0.9, abs=1e-4)
    assert replayed.result.rewinds == ()
