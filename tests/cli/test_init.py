"""`dcil init` writes a commented, canonical recipe that checks for its model."""

from __future__ import annotations

import pytest

from dcil_dsl.jobs.first_recipe import name_of
from dcil_dsl.lang import loads
from dcil_dsl.lang.fmt import format_text


def test_the_recipe_is_canonical_commented_and_sound_for_its_model(dcil, here):
    status, out, err = dcil("init", "--model", "net.py:net")
    assert (status, err) == (0, "")
    assert out.splitlines()[0] == ("net.prune: written, sound for net.py:net, prunes 2 of 2 layers")
    text = (here / "net.prune").read_text()
    assert format_text(text) == text and text.count("# ") >= 10
    assert max(map(len, text.splitlines())) <= 100
    status, out, err = dcil("check", "net.prune", "--model", "net.py:net", "--steps-per-epoch", "9")
    assert (status, err) == (0, "") and "prunes 2 of 2 layers" in out


@pytest.mark.parametrize("spec", ["dcil:resnet20", "torchvision:vit_b_16"])
def test_convolutions_and_transformers_get_what_fits_them(dcil, spec):
    status, out, err = dcil("init", "--model", spec, "--out", "-")
    assert (status, err) == (0, "")
    recipe = loads(out)
    is_resnet = "resnet" in spec
    assert ("private BatchNorm2d" in out) == is_resnet
    assert ("keep first Conv2d" in out) == is_resnet
    assert ("keep last Linear" in out) != is_resnet
    assert recipe.train.optimizer.spelling() == ("sgd" if is_resnet else "adamw")


def test_an_existing_file_is_not_overwritten(dcil, here):
    (here / "net.prune").write_text("mine")
    status, _, err = dcil("init", "--model", "net.py:net")
    assert status == 2 and "net.prune exists already" in err and "--out" in err
    assert (here / "net.prune").read_text() == "mine"


def test_a_model_without_prunable_layers_is_refused(dcil, here):
    (here / "flat.py").write_text("from torch import nn\n\ndef net():\n    return nn.ReLU()\n")
    status, _, err = dcil("init", "--model", "flat.py:net")
    assert status == 2 and "no layer of a type that is usually pruned" in err


def test_a_model_that_a_recipe_cannot_name_is_refused(dcil, here):
    (here / 'a".py').write_text((here / "net.py").read_text())
    status, _, err = dcil("init", "--model", 'a".py:net', "--out", "x.prune")
    assert status == 2 and "cannot name the model" in err and not (here / "x.prune").exists()


@pytest.mark.parametrize(
    "spec, name",
    [
        ("torchvision:resnet18", "resnet18"),
        ("hf:BertForMaskedLM", "bert_for_masked_lm"),
        ("my/net.py:train", "train_"),
        ("net.py:3d", "recipe_3d"),
        ("timm:vit_small.augreg_in1k", "vit_small_augreg_in1k"),
    ],
)
def test_the_recipe_is_named_after_the_model(spec, name):
    assert name_of(spec) == name
