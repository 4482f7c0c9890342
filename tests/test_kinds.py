"""Every kind of sparsity trains on the digits by its recipe, and its file holds what was asked.

The schedule is cut to one moment and the run to a few steps; what is counted here is counted in
the stored numbers, by the definition of each kind and by no code of the package.
"""

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

import dcil_dsl as dcil
from dcil_dsl.jobs.inspect import verify_artefact
from dcil_dsl.jobs.train import train

RECIPES = Path(__file__).parent.parent / "recipes" / "kinds"
SHORT = {
    "pruning.schedule": "once(at=1 steps)",
    "pruning.refresh": "1 steps",
    "data.batch_size": "16",
}


@pytest.fixture
def trained(tmp_path):
    def train_kind(kind, model="dcil:resnet20", **more):
        recipe = dcil.load(RECIPES / f"{kind}.prune", overrides=SHORT | more)
        run = train(recipe, model, "digits", out=tmp_path / kind, device="cpu", max_steps=3)
        file = tmp_path / kind / "sparse.safetensors"
        told = []
        (_, verdict), *_ = verify_artefact(file, warn=told.append, note=told.append)
        assert verdict.holds, verdict.faults
        return run.result, load_file(file)

    return train_kind


def convolutions(tensors):
    return {name: w for name, w in tensors.items() if w.dim() == 4}


def nonzero(w, *dims):
    return (w != 0).any(dim=dims) if dims else w != 0


def test_forty_percent_of_the_filters_go_and_no_layer_loses_more_than_three_quarters(trained):
    result, tensors = trained("filters")
    kept = [nonzero(w, 1, 2, 3) for w in convolutions(tensors).values()]
    assert sum(len(k) for k in kept) == 784
    assert sum(int(k.sum()) for k in kept) == 470  # 0.6 * 784 = 470.4
    assert all(int(k.sum()) >= len(k) / 4 for k in kept)
    assert all((w[k] != 0).all() for w, k in zip(convolutions(tensors).values(), kept, strict=True))
    assert (result.counts, result.sparsity_asked) == ("filters", 0.4)
    assert result.sparsity_counted == pytest.approx(1 - 470 / 784)


def test_forty_percent_of_the_filters_go_and_then_nine_tenths_of_what_they_leave(trained):
    result, tensors = trained(
        "filters_then_weights", **{"pruning.before_schedule": "once(at=1 steps)"}
    )
    left = sum(w[0].numel() * int(0.6 * len(w) + 1e-9) for w in convolutions(tensors).values())
    kept = sum(int(nonzero(w).sum()) for w in convolutions(tensors).values())
    size = sum(w.numel() for w in convolutions(tensors).values())
    assert left // 10 - 200 <= kept <= left // 10
    filters = [nonzero(w, 1, 2, 3) for w in convolutions(tensors).values()]
    assert all(int(f.sum()) <= 0.6 * len(f) + 1e-9 for f in filters)
    assert result.sparsity_asked == pytest.approx(1 - kept / size, abs=1e-3)


def test_half_of_the_inputs_of_each_layer_go(trained):
    _, tensors = trained("channels")
    first, *others = convolutions(tensors).values()
    assert nonzero(first).all()
    assert all(int(nonzero(w, 0, 2, 3).sum()) == w.shape[1] // 2 for w in others)


def test_blocks_of_four_outputs_go_together_and_the_shortcuts_keep_forty_percent(trained):
    _, tensors = trained("blocks")
    weights = convolutions(tensors).values()
    blocks = [w.view(len(w) // 4, 4, *w.shape[1:]) != 0 for w in weights]
    assert all(torch.equal(b.any(1), b.all(1)) for b in blocks)
    assert sum(int(b.any(1).sum()) for b in blocks) == 270_256 // 4 // 4
    shortcuts = [w for name, w in convolutions(tensors).items() if "downsample" in name]
    assert sum(int((w != 0).sum()) for w in shortcuts) >= 0.4 * sum(w.numel() for w in shortcuts)


def test_tiles_of_sixteen_by_sixteen_go_together_and_the_image_is_read_whole(trained):
    _, tensors = trained("tiles")
    first, *others = convolutions(tensors).values()
    assert nonzero(first).all()
    shapes = [(len(w) // 16, 16, w.shape[1] // 16, 16, w.shape[2] * w.shape[3]) for w in others]
    tiles = [w.view(shape) != 0 for w, shape in zip(others, shapes, strict=True)]
    kept = [t.any(3).any(1) for t in tiles]
    assert all(torch.equal(k, t.all(3).all(1)) for k, t in zip(kept, tiles, strict=True))
    assert sum(k.numel() for k in kept) == 1054 and sum(int(k.sum()) for k in kept) == 1054 // 4
    assert all(int(k.sum()) >= 0.2 * k.numel() for k in kept)


def test_of_every_four_inputs_two_stay(trained):
    _, tensors = trained("nm24")
    first, *others = convolutions(tensors).values()
    assert nonzero(first).all()
    for w in others:
        fours = (w != 0).view(len(w), w.shape[1] // 4, 4, *w.shape[2:])
        assert (fours.sum(2) == 2).all()


def test_a_fifth_of_the_arithmetic_is_left_and_no_layer_keeps_more_than_half(trained):
    result, tensors = trained("flops")
    positions = {16: 16 * 16, 32: 8 * 8, 64: 4 * 4}  # of images of 16 x 16, by the outputs
    weights = convolutions(tensors).values()
    total = sum(w.numel() * positions[len(w)] for w in weights)
    left = sum(int((w != 0).sum()) * positions[len(w)] for w in weights)
    assert 0 <= total // 5 - left < positions[64]
    assert all(int((w != 0).sum()) <= w.numel() // 2 for w in weights)
    assert result.counts == "multiply-accumulates"
    assert all("downsample" in name for name in result.at_ceiling)


def test_heads_go_with_all_that_makes_them(trained):
    _, tensors = trained("heads", "dcil:small_vit")
    kept = 0
    for block in range(3):
        name = f"blocks.{block}.attention"
        rows = nonzero(tensors[f"{name}.in_proj_weight"].view(3, 8, 8, 64), 0, 2, 3)
        columns = nonzero(tensors[f"{name}.out_proj.weight"].view(64, 8, 8), 0, 2)
        assert torch.equal(rows, columns)
        kept += int(rows.sum())
    assert kept == 12
    blocks = tensors["blocks.0.mlp.0.weight"].view(64, 4, 16, 4) != 0
    assert int(blocks.any(3).any(1).sum()) == 64 * 16 // 4
