"""The experiments of docs/results.md: their runs, what is measured, and how runs are paired."""

import copy
import csv
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from support.tiny_job import RECIPE
from torch import nn

import dcil_dsl as dcil
from dcil_dsl.data import Dataset, open_dataset
from dcil_dsl.data.dataset import Tensors
from dcil_dsl.jobs.data import make_loader
from dcil_dsl.masking.split import split_weight

sys.path.insert(0, str(Path(__file__).parent.parent / "benchmarks"))
import compare
import evidence
import paired
import watch


def cells_of(name):
    parser, experiment = compare.parser(), evidence.EXPERIMENTS[name]
    given = ([*cells, *experiment.common, "--out", "x.csv"] for cells in experiment.grids)
    grids = map(parser.parse_args, given)
    return [cell for asked in grids for cell in compare.grid(asked)]


def table_of(path, *runs):
    """A table of compare.py with the top-1 of runs (method, seed, passes, value)."""
    cell = compare.Cell("gmp", 95.0, 0, "n", "d", "test", 10, 8, 12, 1.0, 12.0, "a=1", "f" * 16)
    for method, seed, passes, value in runs:
        fields = vars(cell) | {"method": method, "seed": seed, "passes": passes}
        compare.append(path, compare.Cell(**fields), [("top1", "end", value)])
    return path


def test_the_frontier_is_reported_on_test_images_and_tuned_on_held_out_ones():
    frontier, tuning = cells_of("frontier"), cells_of("tuning")
    assert {cell.split for cell in frontier} == {"test"}
    assert {cell.split for cell in tuning} == {"validation"}
    assert {(c.target, c.seed, round(c.passes)) for c in frontier if c.method == "dcil"} == {
        (target, seed, cost)
        for target in (95.0, 98.0)
        for seed in (0, 1, 2)
        for cost in (10, 20, 40)
    }
    assert len({c.overrides for c in tuning}) == 9


def test_the_frontiers_weight_decay_acts_as_in_the_runs_of_the_authors():
    """Decay times the sum of the rates over 1 - momentum: 12.3 in theirs, 0.28 in short runs."""
    (cell, *_) = (c for c in cells_of("frontier") if c.method == "gmp" and c.passes == 40)
    settings = dict(item.split("=", 1) for item in cell.overrides.split("; "))
    recipe = dcil.load(compare.METHODS / "gmp.prune", overrides=settings | {"train.epochs": "40ep"})
    plan = dcil.resolve(recipe, small_net(), steps_per_epoch=430)
    rates = sum(plan.lr_at(step) for step in range(430 * 40))
    optimizer = plan.train.optimizer
    effect = optimizer.weight_decay * rates / (1 - optimizer.momentum)
    assert effect == pytest.approx(9.0, abs=0.2)


def test_the_held_out_loss_is_the_mean_cross_entropy_of_the_exported_network(tmp_path):
    whole = open_dataset("digits")
    few = (Tensors(part.images[:50], part.labels[:50]) for part in (whole.train, whole.val))
    data = Dataset("d", *few, whole.classes, whole.mean, whole.std)
    done = dcil.train(
        compare.METHODS / "dense.prune",
        "dcil:resnet20",
        data,
        overrides={"train.epochs": "2ep", "data.image_size": "8", "data.batch_size": "25"},
        out=tmp_path / "run",
        device="cpu",
    )
    loader = make_loader(done.plan, data, "val", torch.device("cpu"), workers=0)
    images = torch.cat([loader.task.inputs(batch).args[0] for batch in loader.epoch(0)])
    assert len(images) == 50
    logits = copy.deepcopy(done.model).double().eval()(images.double())
    log_q = logits - logits.exp().sum(1, keepdim=True).log()
    expected = -log_q[range(50), data.val.labels.long()].mean()
    assert compare.held_out_loss(done, data) == pytest.approx(expected.item(), abs=1e-4)


# -- pairs -------------------------------------------------------------------------------------


def test_the_interval_is_students_of_the_mean_of_the_differences():
    mean, half = paired.interval([0.01, 0.02, 0.03])
    assert mean == pytest.approx(0.02)
    assert half == pytest.approx(4.302653 * 0.01 / 3**0.5, rel=1e-6)
    assert paired.interval([0.01]) == (0.01, None)


def test_runs_pair_by_seed_and_cost_alone(tmp_path):
    runs = [("gmp", 0, 12.0, 0.80), ("gmp", 1, 12.0, 0.90), ("gmp", 0, 24.0, 0.99)]
    runs += [("st3", 0, 12.0, 0.81), ("st3", 1, 12.0, 0.93), ("st3", 2, 12.0, 0.10)]
    table = table_of(tmp_path / "t.csv", *runs)
    lines = paired.markdown(table, paired.read_arms(table), "gmp").splitlines()
    (st3,) = (line for line in lines if "| st3 |" in line)
    assert "| 61.33 (3) | +2.00 +- 12.71 (2) |" in st3  # 12.706 is Student's quantile of two pairs


def test_a_measure_by_epoch_is_its_last_value_or_its_largest(tmp_path):
    table = table_of(tmp_path / "t.csv", ("gmp", 0, 12.0, 0.8))
    with open(table, newline="") as file:
        rows = list(csv.DictReader(file))
    for name in ("dead_filters", "grad_norm_max"):
        for epoch, value in ((1, 7), (2, 3)):
            row = rows[0] | {"measure": name, "at": epoch, "value": value}
            with open(table, "a", newline="") as file:
                csv.DictWriter(file, rows[0].keys(), lineterminator="\n").writerow(row)
    (arm,) = paired.read_arms(table)
    assert paired.by_epoch(table, "dead_filters")[arm] == [3]
    assert paired.by_epoch(table, "grad_norm_max")[arm] == [7]


# -- which runs --------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["clip", "extreme", "rules", "routing", "tuning", "frontier"])
def test_no_run_is_asked_for_twice(name):
    keys = [cell.key for cell in cells_of(name)]
    assert len(keys) == len(set(keys))


def test_rules_and_routing_are_measured_on_held_out_images_and_cost_the_same():
    held_out = cells_of("rules") + cells_of("routing")
    assert {cell.split for cell in held_out} == {"validation"}
    assert {round(cell.passes) for cell in cells_of("rules")} == {24}
    assert {cell.split for cell in cells_of("clip")} == {"test"}


def test_text_is_searched_on_held_out_pieces_and_reported_on_the_held_out_chapters():
    pytest.importorskip("transformers")
    assert {cell.split for cell in cells_of("text_tuning")} == {"validation"}
    cells = [cell for cell in cells_of("text") if cell.method != "dense"]
    assert {cell.split for cell in cells} == {"test"}
    for method in ("gmp", "soft_fading", "dcil"):
        asked = {(c.target, c.seed, c.passes) for c in cells if c.method == method}
        assert asked == {(t, s, p) for t in (80, 90, 95) for s in (0, 1, 2) for p in (4, 8)}


def test_every_rule_is_clipped_and_gmp_has_eight_other_settings():
    cells = cells_of("rules")
    assert all("train.clip=3" in cell.overrides for cell in cells)
    others = {c.overrides for c in cells if c.method == "gmp" and "schedule" in c.overrides}
    assert len(others) == 8


def test_the_chosen_rule_is_measured_on_test_images_with_seeds_that_did_not_choose_it():
    chosen, searched = cells_of("chosen"), cells_of("rules")
    assert {cell.split for cell in chosen} == {"test"}
    assert not {cell.seed for cell in chosen} & {cell.seed for cell in searched}
    rule = {(c.target, c.seed) for c in chosen if c.method == "soft_fading"}
    assert rule == {(target, seed) for target in (95, 98, 99) for seed in (2, 3, 4, 5, 6)}


def test_feather_halves_the_feedback_above_95_percent_alone():
    shares = {c.target: c.overrides for c in cells_of("rules") if c.method == "feather"}
    assert {target: "share=0.5" in text for target, text in shares.items()} == {
        98.0: True,
        95.0: False,
        99.0: True,
    }


def test_the_routing_is_three_by_three_with_kept_shares_that_sum_to_one_over_12_seeds():
    assert all(route[0] + route[1] == 1 for route in evidence.ROUTES)
    assert len({route[:4] for route in evidence.ROUTES}) == 9
    seeds = [cell.seed for cell in cells_of("routing") if cell.method == "routing"]
    assert {seed: seeds.count(seed) for seed in set(seeds)} == dict.fromkeys(range(12), 11)


def test_the_numbers_of_routing_as_they_stand_are_dcil():
    recipes = compare.ROOT / "recipes" / "methods"
    routing, dcil_recipe = (dcil.load(recipes / f"{n}.prune") for n in ("routing", "dcil"))
    plans = [dcil.resolve(r, small_net(), steps_per_epoch=20) for r in (routing, dcil_recipe)]
    assert plans[0].phases == plans[1].phases and plans[0].losses == plans[1].losses
    assert plans[0].groups[0].schedule == plans[1].groups[0].schedule


def test_masks_are_compared_with_those_of_gradual_pruning_of_the_same_seed_once(tmp_path):
    table, where = tmp_path / "t.csv", ["--out", str(tmp_path / "t.csv")]
    grids = [[*cells, *where] for cells in evidence.routing_of(3)[:2]]
    parser = compare.parser()
    gmp, routing = (compare.grid(parser.parse_args(cells))[0] for cells in grids)
    kept = {gmp: [1.0, 2.0, 0.0, 0.0], routing: [0.0, 5.0, 6.0, 0.0]}
    for cell, values in kept.items():
        folder = tmp_path / "runs" / cell.key
        folder.mkdir(parents=True)
        weight = torch.tensor(values).view(1, 4, 1, 1)
        save_file(
            {"conv.weight": weight, "fc.weight": torch.ones(2, 2)}, compare.weights_in(folder)
        )
        compare.append(table, cell, [("top1", "end", 0.5)])
    for _ in range(2):
        evidence.compare_masks(table, tmp_path / "runs", grids)
    rows = paired.read_rows(table, "kept_as_gmp")
    assert [(row["run"], float(row["value"])) for _, row in rows] == [(routing.key, 0.5)]


# -- what is measured --------------------------------------------------------------------------


def small_net():
    torch.manual_seed(0)
    first = (nn.Conv2d(3, 4, 3, stride=4), nn.BatchNorm2d(4), nn.ReLU())
    second = (nn.Conv2d(4, 8, 3), nn.BatchNorm2d(8), nn.ReLU())
    return nn.Sequential(*first, *second, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 10))


def trained(folder, watches, text=RECIPE):
    recipe = dcil.loads(text, name="tiny.prune")
    data = open_dataset("synthetic", num_train=128, num_val=64, image_size=32)
    options = {"out": folder, "device": "cpu", "workers": 0, "warn": lambda warning: None}
    if not watches:
        return dcil.train(recipe, small_net(), data, **options)
    with watch.watched():
        return dcil.train(recipe, small_net(), data, **options)


def test_a_watched_run_has_the_same_weights_and_counts_dead_filters(tmp_path):
    plain, seen = trained(tmp_path / "plain", False), trained(tmp_path / "seen", True)
    pairs = zip(plain.model.state_dict().values(), seen.model.state_dict().values(), strict=True)
    assert all(torch.equal(a, b) for a, b in pairs)
    line = seen.folder.read_metrics()[-1]["watch"]
    filters = [m.weight for m in seen.model.modules() if isinstance(m, nn.Conv2d)]
    dead = sum(int((~w.flatten(1).any(1)).sum()) for w in filters)
    assert line["dead_filters"] == dead
    assert 0 < line["grad_norm"] <= line["grad_norm_max"]
    assert -1 <= seen.folder.read_metrics()[0]["watch"]["cosine"] <= 1  # of step 0
    assert "watch" not in plain.folder.read_metrics()[-1]


def test_the_norm_is_the_one_before_clipping(tmp_path):
    free = trained(tmp_path / "free", True)
    clipped = trained(tmp_path / "clipped", True, RECIPE.replace("epochs ", "clip = 1e-3 epochs "))
    first = [run.folder.read_metrics()[0]["watch"]["grad_norm_max"] for run in (free, clipped)]
    assert first[1] > 100 * 1e-3
    assert first[0] == pytest.approx(first[1], rel=0.5)


def test_the_cosine_compares_the_gradients_that_reach_the_two_views_where_weights_are_kept():
    w, dots = torch.randn(4, 3, dtype=torch.float64, requires_grad=True), torch.zeros(3).double()
    mask = torch.tensor([[True, True, False]] * 4)
    a, b = torch.randn(2, 4, 3, dtype=torch.float64)
    with watch.comparing_paths(dots):
        one, other = split_weight(w, mask, ("masked", "full"), (1.0, 0.0), (0.0, 1.0))
        ((one * a).sum() + (other * b).sum()).backward()
    a, b = a[mask], b[mask]
    assert torch.allclose(dots, torch.stack([a.dot(b), a.dot(a), b.dot(b)]))
    assert torch.equal(w.grad[mask], a)
