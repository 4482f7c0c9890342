"""A measured profile gives the sparsity that a speed needs, and the plan says on what machine."""

import json
import random

import pytest
import torch
from support.resolving import MIX, TRAIN, Net
from torch import nn

import dcil_dsl as dcil
from dcil_dsl.extras.latency.job import measure_speed
from dcil_dsl.extras.latency.profile import SpeedProfile
from dcil_dsl.extras.latency.show import show_speed
from dcil_dsl.plan.plan import Plan
from dcil_dsl.plan.show import show_plan

LAYERS = {
    "layer1.0.conv1.weight": 576,
    "layer1.0.conv2.weight": 192,
    "layer1.1.conv1.weight": 576,
    "layer1.1.conv2.weight": 192,
}


def profile_with(**changes):
    values = dict(
        model="net.py:Net",
        machine="A CPU",
        date="2026-11-30T10:00:00+00:00",
        engine="dcil",
        batch=1,
        threads=1,
        layers=LAYERS,
        levels=(0.0, 0.5, 0.8, 0.9),
        seconds=(0.008, 0.006, 0.003, 0.002),
        dense={"torch": 0.009, "openvino": 0.006},
    )
    return SpeedProfile(**values | changes)


def resolved(tmp_path, target, profile=None, layers='"layer1.**"', more=""):
    if profile is not False:
        (tmp_path / "speed.json").write_text((profile or profile_with()).to_json())
    text = f"language 1\nprune {layers} to {target} {{ {more} }}\n{MIX}\n{TRAIN}"
    (tmp_path / "x.prune").write_text(text)
    return dcil.resolve(dcil.load(tmp_path / "x.prune"), Net(), steps_per_epoch=10)


@pytest.mark.parametrize(
    "target, sparsity",
    [
        ('speedup(2, profile="speed.json")', 0.8),
        ('speedup(2.4, profile="speed.json")', 0.85),
        ('latency(3, profile="speed.json")', 0.8),
        ('latency(4.5, profile="speed.json")', 0.65),
        ('latency(7, profile="speed.json")', 0.25),
    ],
)
def test_the_sparsity_is_read_off_the_straight_line_between_two_levels(tmp_path, target, sparsity):
    plan = Plan.from_json(resolved(tmp_path, target).to_json())
    (group,) = plan.groups
    assert group.sparsity == pytest.approx(sparsity) and not group.one_budget
    assert "A CPU, batch 1, 1 thread, 2026-11-30" in " ".join(show_plan(plan).split())


@pytest.mark.parametrize("seed", range(30))
def test_it_is_the_least_sparsity_whose_slowest_reading_is_fast_enough(seed):
    chance = random.Random(seed)
    levels = (0.0, *sorted(chance.sample([i / 100 for i in range(1, 100)], chance.randint(1, 5))))
    seconds = tuple(chance.uniform(0.5, 2.0) for _ in levels)
    profile = profile_with(levels=levels, seconds=seconds)
    wanted = chance.uniform(0.4, 2.1)

    def time_at(sparsity):
        """The largest reading of any level from the next lower one on, on a straight line."""
        low = max(i for i, level in enumerate(levels) if level <= sparsity)
        if low == len(levels) - 1:
            return seconds[-1]
        slow, fast = max(seconds[low:]), max(seconds[low + 1 :])
        share = (sparsity - levels[low]) / (levels[low + 1] - levels[low])
        return slow + (fast - slow) * share

    grid = [i / 20000 * levels[-1] for i in range(20001)]
    expected = next((s for s in grid if time_at(s) <= wanted + 1e-12), None)
    found = profile.sparsity_for(wanted)
    assert (found is None) == (expected is None)
    if found is not None:
        assert found == pytest.approx(expected, abs=2e-4) and time_at(found) <= wanted + 1e-9


@pytest.mark.parametrize(
    "target, changes, told",
    [
        ("speedup(9)", {}, "needs 0.6667 ms, and the profile reaches 2 ms"),
        ("latency(9)", {}, "the network takes 8 ms with all weights"),
        ("speedup(2)", {"layers": LAYERS | {"head.weight": 80}}, "does not prune `head.weight`"),
        ("speedup(2)", {"layers": {"stem.weight": 216}}, "does not have this `layer1.0.conv1"),
        ("speedup(2)", {"layers": LAYERS | {"layer1.0.conv1.weight": 5}}, "does not have this"),
    ],
)
def test_a_profile_that_does_not_reach_or_fit_is_an_error(tmp_path, target, changes, told):
    target = target.replace(")", ', profile="speed.json")')
    with pytest.raises(dcil.RecipeError, match="E318") as caught:
        resolved(tmp_path, target, profile_with(**changes))
    assert told in str(caught.value)


@pytest.mark.parametrize("text", ["{", "[]", '{"kind": "sensitivity"}', None])
def test_a_file_that_is_no_profile_is_an_error_at_its_line(tmp_path, text):
    if text is not None:
        (tmp_path / "speed.json").write_text(text)
    with pytest.raises(dcil.RecipeError, match="cannot read the profile `speed.json`"):
        resolved(tmp_path, 'speedup(2, profile="speed.json")', False)


def test_larger_units_were_not_timed(tmp_path):
    with pytest.raises(dcil.RecipeError, match="this rule prunes filters"):
        resolved(
            tmp_path,
            'speedup(2, profile="speed.json")',
            more="granularity = filter(ties=none)",
        )


class Small(nn.Module):
    def __init__(self):
        super().__init__()
        self.one = nn.Conv2d(3, 8, 3)
        self.two = nn.Conv2d(8, 8, 3)
        self.head = nn.Linear(8 * 16, 4)

    def forward(self, x):
        return self.head(self.two(self.one(x).relu()).relu().flatten(1))


def test_measuring_times_the_layers_of_the_timed_rule_at_every_level(tmp_path):
    torch.manual_seed(0)
    text = (
        "language 1\ndata digits { image_size = 8  channels = 3 }\nprune Linear to 50%\n"
        f'prune Conv2d to speedup(1.01, profile="speed.json")\n{MIX}\n{TRAIN}'
    )
    (tmp_path / "x.prune").write_text(text)
    profile = measure_speed(
        tmp_path / "x.prune", Small(), levels=(0.5, 0.9), rounds=1, dense=("torch",)
    )
    assert profile.levels == (0.0, 0.5, 0.9) and len(profile.seconds) == 3
    assert profile.layers == {"one.weight": 216, "two.weight": 576}
    assert set(profile.dense) == {"torch"}
    stored = json.loads(profile.to_json())
    assert SpeedProfile(**stored) == profile
    shown = show_speed(profile)
    assert "2 layers pruned alike" in shown and "90%" in shown
