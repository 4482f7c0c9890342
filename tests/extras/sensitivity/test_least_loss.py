"""A budget shared out by measured curves: against every possible split, and by hand."""

import itertools
import random

import pytest

from dcil_dsl.extras.sensitivity.least_loss import Infeasible, interpolate, least_loss, lower_hull
from dcil_dsl.extras.sensitivity.profile import LayerProfile, Profile, ProfileError, read_profile

CONVEX = (
    ((0.0, 0.0), (0.5, 0.1), (0.9, 1.0)),
    ((0.0, 0.0), (0.5, 0.4), (0.9, 0.9)),
    ((0.0, 0.0), (0.5, 0.0), (0.9, 2.0)),
)


def total(sizes, curves, keeps):
    return sum(
        interpolate(curve, 1 - keep / size)
        for size, curve, keep in zip(sizes, curves, keeps, strict=True)
    )


def test_the_layer_that_minds_nothing_goes_first_and_the_sensitive_one_stays():
    """20 of 30 weights go: B's 9 and C's 9 cost nothing, A gives the other 2."""
    free = ((0.0, 0.0), (0.9, 0.0))
    assert least_loss((10, 10, 10), (((0.0, 0.0), (0.9, 5.0)), free, free), 10, (1, 1, 1)) == (
        8,
        1,
        1,
    )


@pytest.mark.parametrize("num_keep", [3, 8, 14, 20, 29, 36])
def test_on_convex_curves_no_other_split_loses_less(num_keep):
    sizes = (10, 20, 6)
    curves = tuple(tuple((s, loss) for s, loss in curve) for curve in CONVEX)
    if num_keep == 3:
        num_keep = 1 + 2 + 1  # the least that the last measured sparsity leaves
    keeps = least_loss(sizes, curves, num_keep, (1, 1, 1))
    possible = [
        split
        for split in itertools.product(*(range(1, n + 1) for n in sizes))
        if sum(split) == num_keep
        and all(n - k <= n * 0.9 + 1e-9 for n, k in zip(sizes, split, strict=True))
    ]
    best = min(total(sizes, curves, split) for split in possible)
    assert sum(keeps) == num_keep
    assert total(sizes, curves, keeps) == pytest.approx(best, abs=1e-12)


def test_every_layer_but_one_ends_at_a_measured_point():
    rng = random.Random(3)
    sizes = [rng.choice((100, 200, 1000)) for _ in range(12)]
    curves = []
    for _ in sizes:
        steps = [rng.random() for _ in range(3)]
        points = [(s, sum(steps[: i + 1])) for i, s in enumerate((0.5, 0.8, 0.9))]
        curves.append([(0.0, 0.0), *points])
    keeps = least_loss(sizes, curves, sum(sizes) // 3, [1] * 12)
    off = [
        keep
        for keep, size in zip(keeps, sizes, strict=True)
        if not any(abs(size - keep - size * s) < 1e-6 for s in (0.0, 0.5, 0.8, 0.9))
    ]
    assert sum(keeps) == sum(sizes) // 3 and len(off) <= 1


def test_layers_that_mind_alike_go_level_by_level_not_one_after_the_other():
    flat = ((0.0, 0.0), (0.5, 0.0), (0.9, 0.0))
    assert least_loss((10, 10), (flat, flat), 10, (1, 1)) == (5, 5)


def test_floors_and_ceilings_hold():
    curve = ((0.0, 0.0), (0.9, 0.0))
    dear = ((0.0, 0.0), (0.9, 9.0))
    assert least_loss((10, 10), (curve, dear), 14, (5, 1)) == (5, 9)
    assert least_loss((10, 10), (curve, dear), 8, (1, 1), ceilings=(10, 6)) == (2, 6)


def test_beyond_the_measured_sparsities_nothing_is_promised():
    curve = ((0.0, 0.0), (0.9, 1.0))
    with pytest.raises(Infeasible) as error:
        least_loss((10, 10), (curve, curve), 1, (1, 1))
    assert (error.value.least, error.value.most) == (0, 18)


def test_a_bump_in_a_curve_is_bridged_by_its_hull():
    assert lower_hull([(0, 0.0), (1, 5.0), (2, 2.0), (3, 3.0), (4, 6.0)]) == [
        (0, 0.0),
        (2, 2.0),
        (3, 3.0),
        (4, 6.0),
    ]


def profile(**more):
    layer = LayerProfile(
        parameter="a.weight", module="a", num_weights=10, losses=(-0.1, 0.3, 0.2), scores=(0, 0, 0)
    )
    values = dict(
        model="m",
        data="d",
        weights="w",
        num_batches=1,
        num_examples=4,
        levels=(0.5, 0.8, 0.9),
        loss=1.0,
        score=0.5,
        layers=(layer,),
    )
    return Profile(**(values | more))


def test_a_curve_begins_at_nothing_and_never_falls():
    assert profile().curve("a.weight") == ((0.0, 0.0), (0.5, 0.0), (0.8, 0.3), (0.9, 0.3))
    with pytest.raises(KeyError):
        profile().curve("b.weight")


def test_a_profile_lies_in_a_file_and_comes_back(tmp_path):
    (tmp_path / "p.json").write_text(profile().to_json())
    assert read_profile(tmp_path / "p.json") == profile()


def test_a_file_that_is_no_profile_is_refused_with_the_reason(tmp_path):
    with pytest.raises(ProfileError, match="no such file"):
        read_profile(tmp_path / "p.json")
    (tmp_path / "p.json").write_text("{}")
    with pytest.raises(ProfileError, match="model: Field required"):
        read_profile(tmp_path / "p.json")
    (tmp_path / "p.json").write_text(profile().to_json().replace("0.8", "0.95", 1))
    with pytest.raises(ProfileError, match="not rising sparsities"):
        read_profile(tmp_path / "p.json")
    (tmp_path / "p.json").write_bytes(b"\xff\xfe")
    with pytest.raises(ProfileError):
        read_profile(tmp_path / "p.json")
