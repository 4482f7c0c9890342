"""The printed Plan: complete, deterministic, no wider than its page."""

import io
import os

import pytest
from torch import nn

import dcil_dsl as dcil
from dcil_dsl.plan.cost import training_cost
from dcil_dsl.plan.show import fitting, show_plan, show_summary
from dcil_dsl.plan.text import PLAIN, Page, ordinal, page_of, percent, shorten

RECIPE = """language 1

recipe small { title = "three layers" }

pruning { schedule = cubic(1ep..4ep, grid=1ep) refresh = 2 steps }

prune Conv2d to global(80%)
prune last Linear to 50% { schedule = once(at=2ep) freeze = 3ep floor = 10% }
keep first Conv2d

mix {
  path sparse = masked
  path dense  = full

  update kept by sparse
  update pruned by 0.5 * dense + 0.5 * sparse from 2ep
  update pruned by sparse until 2ep

  private BatchNorm2d

  loss cross_entropy(sparse, smoothing=0.1)
  loss cross_entropy(dense) from 2ep
  loss 0.5 * kl(student=sparse, teacher=dense, temperature=3) from 2ep

  deploy sparse
}

train {
  epochs    = 8ep
  optimizer = sgd(lr=0.1, momentum=0.9)
  lr        = multistep(at=[4ep, 6ep], warmup=1ep)
  clip      = 1.0
  ema       = 0.99
}
"""


def net(long_name="middle"):
    model = nn.Sequential()
    model.add_module("stem", nn.Conv2d(3, 4, 3))
    model.add_module("norm", nn.BatchNorm2d(4))
    model.add_module(long_name, nn.Conv2d(4, 10, 3))
    model.add_module("pool", nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten()))
    model.add_module("head", nn.Linear(10, 2))
    return model


@pytest.fixture(scope="module")
def plan():
    return dcil.resolve(dcil.loads(RECIPE, "small.prune"), net(), steps_per_epoch=10)


def test_every_layer_is_reported_with_the_line_that_decided_it(plan):
    lines = show_plan(plan).splitlines()
    assert "stem    Conv2d  4x3x3x3       108      -  :9    kept" in lines
    assert "middle  Conv2d  10x4x3x3      360      -  :7    80% of all" in lines
    assert "head    Linear  2x10           20      -  :8    50%" in lines


@pytest.mark.parametrize(
    "target, words",
    [
        ("50%", "50%"),
        ("global(50%)", "50% of all"),
        ("2:4", "2:4"),
        ("uniform(50%, granularity=filter(ties=none))", "50% of filters"),
        ("global(50%, granularity=channel)", "50% of all channels"),
        ("uniform(50%, granularity=block(2, 4))", "50% of 2 x 4 blocks"),
    ],
)
def test_a_target_is_reported_with_what_goes_together(target, words):
    text = RECIPE.replace("global(80%)", target).replace("cubic(1ep..4ep, grid=1ep)", "constant()")
    recipe = dcil.loads(text, "small.prune")
    lines = show_plan(dcil.resolve(recipe, net(), steps_per_epoch=10)).splitlines()
    assert f"middle  Conv2d  10x4x3x3      360      -  :7    {words}" in lines


def test_groups_tell_allocation_target_schedule_refresh_freeze_and_floor(plan):
    lines = show_plan(plan).splitlines()
    assert "  80% of 360 weights in 1 layer, one budget for all; 72 kept at the end" in lines
    assert (
        "  schedule cubic from 0% at step 10 (epoch 1) to 80% at step 40 (epoch 4), "
        "moving every 10 steps"
    ) in lines
    assert (
        "  score magnitude, masks move every 2 steps, freeze never, floor 1 weight per layer"
        in lines
    )
    assert "  schedule 0% until step 20 (epoch 2), then 50%" in lines
    assert any("freeze step 30 (epoch 3), floor 2 weights" in line for line in lines)


def test_who_learns_from_whom_is_said_in_words_for_each_phase(plan):
    text = show_plan(plan)
    before, after = text.split("steps 20 to 80 (epoch 2 to 8): sparse, dense run")
    assert "pruned weights learn from sparse" in before
    assert "pruned weights learn from 0.5 * sparse + 0.5 * dense" in after
    assert "kept weights learn from sparse" in before and "kept weights learn from sparse" in after


def test_the_cost_counts_the_paths_of_every_step(plan):
    assert training_cost(plan) == (20 * 1 + 60 * 2) / 80
    assert "training cost: 1.75 dense runs at most" in show_plan(plan)
    assert "1.75 dense runs" in show_summary(plan)


def test_losses_and_training_are_reported(plan):
    text = show_plan(plan)
    assert "cross_entropy(sparse), smoothing 0.1: the whole run" in text
    assert "0.5 * kl(sparse<-dense), temperature 3, no gradient into dense: steps 20 to 80" in text
    assert "times 0.1 at steps 40, 60 after 10 steps of warm-up" in text
    assert "gradients clipped to 1, weights averaged with 0.99" in text


def test_the_text_is_the_same_twice_and_through_json(plan):
    assert show_plan(plan) == show_plan(dcil.Plan.from_json(plan.to_json()))


def test_one_epoch_is_reported_in_the_singular(plan):
    train = plan.train.model_copy(update={"num_epochs": 1})
    short = plan.model_copy(update={"train": train, "num_steps": 10})
    assert "run      1 epoch of 10 steps = 10 steps" in show_summary(short)


@pytest.mark.parametrize("width", [60, 80, 100, 140])
def test_long_names_of_layers_and_files_stay_within_the_page(width):
    name = "features_" + "x" * 120
    recipe = dcil.loads(RECIPE.replace("three layers", "words " * 40), "folder/" * 20 + "a.prune")
    plan = dcil.resolve(recipe, net(name), steps_per_epoch=10)
    for show in (show_plan, show_summary):
        for page in (Page(width), Page(width, unicode=True)):
            assert max(map(len, show(plan, page).splitlines())) <= width


def test_a_name_that_does_not_fit_is_never_cut_but_has_a_line_of_its_own():
    header = ("layer", "type", "shape", "weights", "FLOPs", "rule", "target")
    names = [f"encoder.layers.encoder_layer_{i}.self_attention.in_proj_weight" for i in (0, 1)]
    rows = [(name, "Linear", "8x8", "64", "9%", ":9", "90%") for name in (*names, "head")]
    lines = fitting(header, rows, Page(60))
    assert lines[1] == names[0] and lines[3] == names[1]
    assert lines[2].split() == lines[4].split() == ["64", "9%", ":9", "90%"]
    assert lines[5].startswith("head ")


def test_a_narrow_page_keeps_the_names_and_leaves_out_types_then_shapes():
    header = ("layer", "type", "shape", "weights", "FLOPs", "rule", "target")
    row = ("encoder.block.mlp", "NonDynamicallyQ..", "3072x768", "2,359,296", "9%", ":9", "90%")
    assert fitting(header, [row], Page(100))[0].split() == list(header)
    assert fitting(header, [row], Page(70))[0].split() == ["layer", *header[2:]]
    assert fitting(header, [row], Page(55))[0].split() == ["layer", *header[3:]]
    assert fitting(header, [row], Page(55))[1].startswith("encoder.block.mlp")


def test_a_plain_page_is_ascii_and_a_pipe_is_a_plain_page(plan):
    assert show_plan(plan).isascii() and page_of(io.StringIO()) == PLAIN


def test_masks_are_reported_in_bytes(plan):
    assert "masks take 380 bytes in training, 48 packed into bits" in show_plan(plan)


def test_a_shortened_name_keeps_both_its_ends():
    assert shorten("features.denseblock3.denselayer24.conv2", 20) == "features...r24.conv2"
    assert shorten("short", 20) == "short"


def test_every_so_manyth_step_is_written_as_it_is_said():
    numbers = (2, 3, 4, 11, 13, 21, 112, 1_003)
    said = ["2nd", "3rd", "4th", "11th", "13th", "21st", "112th", "1,003rd"]
    assert [ordinal(number) for number in numbers] == said


def test_percentages_are_written_as_in_recipes():
    assert [percent(x) for x in (0.9, 0.925, 0.0, 1.0)] == ["90%", "92.5%", "0%", "100%"]


@pytest.mark.parametrize("columns, width", [(40, 60), (60, 60), (100, 100), (200, 140)])
def test_a_page_is_as_wide_as_its_terminal_within_bounds(columns, width, monkeypatch):
    class Terminal(io.StringIO):
        encoding = "utf-8"

        def isatty(self):
            return True

    size = os.terminal_size((columns, 24))
    monkeypatch.setattr("dcil_dsl.plan.text.get_terminal_size", lambda: size)
    assert page_of(Terminal()).width == width
    assert page_of(io.StringIO()).width == 100  # a file holds the same everywhere
