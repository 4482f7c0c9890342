"""Kept filters alone, on the device."""

import pytest
import torch
from support.device_training import RECIPE

from dcil_dsl.jobs.train import train
from dcil_dsl.lang import loads

pytestmark = pytest.mark.gpu


def close(one, other) -> None:
    torch.testing.assert_close(
        one.model.state_dict(), other.model.state_dict(), rtol=1e-2, atol=1e-3
    )


def test_kept_filters_alone_end_as_all_of_them(device, tmp_path):
    text = RECIPE.replace("global(90%)", "global(60%, granularity=filter(ties=none))")
    kept = text.replace("sparse = masked", "sparse = masked { compute = kept }")
    ended = [
        train(
            loads(recipe),
            "dcil:resnet20",
            "synthetic",
            out=tmp_path / name,
            max_steps=4,
            device=str(device),
        )
        for name, recipe in (("all", text), ("kept", kept))
    ]
    close(*ended)
