"""A budget of costs is filled from the highest score down; no layer keeps more than its ceiling."""

import random

import pytest
import torch
from support.threads import Threads, shards

from dcil_dsl.masking.select import keep_top


def plain(scores, budget, floors, costs, ceilings):
    """The rule as the documentation states it, an entry at a time: lists of lists of booleans.

    Each layer's highest fill its floor. Then from the highest of all down, an entry is kept
    if its layer is below its ceiling and the budget still has its cost.
    """
    entries = [(-s, i, j) for i, layer in enumerate(scores) for j, s in enumerate(layer)]
    entries.sort()
    kept, count = set(), [0] * len(scores)

    def take(entry):
        nonlocal budget
        _, i, j = entry
        if count[i] < ceilings[i] and costs[i] <= budget and (i, j) not in kept:
            kept.add((i, j))
            count[i] += 1
            budget -= costs[i]

    for entry in entries:
        if count[entry[1]] < floors[entry[1]]:
            take(entry)
    for entry in entries:
        take(entry)
    return [[(i, j) in kept for j in range(len(layer))] for i, layer in enumerate(scores)]


def kept(masks):
    return [mask.flatten().tolist() for mask in masks]


def draw(seed):
    """Scores with ties, costs, floors, ceilings and a budget that they allow."""
    chance = random.Random(seed)
    sizes = [chance.randint(1, 12) for _ in range(chance.randint(1, 5))]
    levels = chance.choice([2, 4, 10**6])
    scores = [[float(chance.randint(0, levels)) for _ in range(size)] for size in sizes]
    costs = [chance.choice(chance.choice([[3], [1, 2, 5], [7, 11, 13, 100]])) for _ in sizes]
    floors = [chance.randint(0, min(2, size)) for size in sizes]
    ceilings = [chance.randint(max(1, low), n) for low, n in zip(floors, sizes, strict=True)]
    least = sum(n * cost for n, cost in zip(floors, costs, strict=True))
    most = sum(n * cost for n, cost in zip(ceilings, costs, strict=True))
    return scores, chance.randint(least, most), floors, costs, ceilings


@pytest.mark.parametrize("seed", range(200))
def test_a_budget_is_filled_as_the_rule_says_an_entry_at_a_time(seed):
    scores, budget, floors, costs, ceilings = draw(seed)
    masks = keep_top(
        [torch.tensor(layer) for layer in scores], budget, floors, costs=costs, ceilings=ceilings
    )
    assert kept(masks) == plain(scores, budget, floors, costs, ceilings)


def plain_within(scores, num_keep, floors, ceilings, bounds):
    """As `plain` with costs of one, and layers that have a least and a most together."""
    entries = sorted((-s, i, j) for i, layer in enumerate(scores) for j, s in enumerate(layer))
    group_of = {i: number for number, (places, _, _) in enumerate(bounds) for i in places}
    kept = set()

    def of_layer(i):
        return sum(1 for _, layer, _ in kept if layer == i)

    def of_group(number):
        return sum(1 for _, layer, _ in kept if group_of.get(layer) == number)

    for entry in entries:
        if of_layer(entry[1]) < floors[entry[1]]:
            kept.add(entry)
    for entry in entries:
        number = group_of.get(entry[1])
        if number is not None and of_group(number) < bounds[number][1]:
            if of_layer(entry[1]) < ceilings[entry[1]]:
                kept.add(entry)
    for entry in entries:
        number = group_of.get(entry[1])
        is_full = number is not None and of_group(number) >= bounds[number][2]
        if len(kept) < num_keep and not is_full and of_layer(entry[1]) < ceilings[entry[1]]:
            kept.add(entry)
    return [[(-s, i, j) in kept for j, s in enumerate(layer)] for i, layer in enumerate(scores)]


def draw_bounds(seed):
    """Up to two sets of layers with a least and a most, and a count that all allow."""
    chance = random.Random(seed)
    scores, _, floors, _, ceilings = draw(seed)
    places = list(range(len(scores)))
    chance.shuffle(places)
    cut = chance.randint(1, len(places))
    bounds, low, high = [], sum(floors), sum(ceilings)
    for own in (places[:cut], places[cut:])[: chance.randint(1, 2)]:
        own_low, own_high = (sum(counts[i] for i in own) for counts in (floors, ceilings))
        most = chance.randint(own_low, own_high)
        least = chance.randint(0, most)
        bounds.append((sorted(own), least, most))
        low, high = low + max(least - own_low, 0), high - (own_high - most)
    return scores, chance.randint(low, high), floors, ceilings, bounds


@pytest.mark.parametrize("seed", range(100))
def test_layers_together_keep_their_least_and_no_more_than_their_most(seed):
    scores, num_keep, floors, ceilings, bounds = draw_bounds(seed)
    tensors = [torch.tensor(layer) for layer in scores]
    masks = keep_top(tensors, num_keep, floors, ceilings=ceilings, bounds=bounds)
    assert kept(masks) == plain_within(scores, num_keep, floors, ceilings, bounds)
    assert sum(int(mask.sum()) for mask in masks) == num_keep


@pytest.mark.parametrize("seed", range(20))
def test_ranks_fill_a_budget_as_one_does(seed):
    scores, budget, floors, costs, ceilings = draw(seed)
    tensors = [torch.tensor(layer) for layer in scores]
    threads, found = Threads(2), {}

    def choose(rank):
        own = [shards(score, 2)[rank] for score in tensors]
        across = threads.of_rank(rank)
        found[rank] = keep_top(own, budget, floors, across, costs, ceilings)

    threads.run(choose)
    together = [torch.cat([found[0][i], found[1][i]]) for i in range(len(scores))]
    assert kept(together) == plain(scores, budget, floors, costs, ceilings)


def test_what_is_dear_and_does_not_fit_leaves_its_place_to_what_is_cheap():
    scores = [torch.tensor([9.0, 8.0]), torch.tensor([7.0, 1.0, 0.5])]
    masks = keep_top(scores, 8, [0, 0], costs=[5, 1])
    # 9 costs 5 and fits, 8 would cost 5 of the 3 that are left, the cheap ones fit.
    assert kept(masks) == [[True, False], [True, True, True]]


def test_of_equal_scores_the_earlier_layer_is_served_first_whatever_it_costs():
    ones = [torch.ones(2), torch.ones(2), torch.ones(2)]
    masks = keep_top(ones, 9, [0, 0, 0], costs=[4, 3, 1])
    assert kept(masks) == [[True, True], [False, False], [True, False]]


def test_one_cost_for_all_is_a_count():
    scores = [torch.rand(40, generator=torch.Generator().manual_seed(0)) for _ in range(3)]
    masks = keep_top(scores, 7 * 31 + 6, [1, 1, 1], costs=[7, 7, 7])
    assert kept(masks) == kept(keep_top(scores, 31, [1, 1, 1]))


def test_a_ceiling_gives_a_layers_place_to_the_others():
    scores = [torch.tensor([9.0, 8.0, 7.0]), torch.tensor([1.0, 2.0])]
    assert kept(keep_top(scores, 3, [0, 0], ceilings=[2, 2])) == [
        [True, True, False],
        [False, True],
    ]


def test_costs_beyond_what_32_bits_hold_are_added_up_exactly():
    scores = [torch.tensor([3.0, 1.0]), torch.tensor([2.0])]
    dear = 5 * 10**9
    assert kept(keep_top(scores, 2 * dear + 1, [0, 0], costs=[dear, dear + 1])) == [
        [True, False],
        [True],
    ]


@pytest.mark.parametrize(
    "budget, floors, ceilings", [(4, [1, 1], None), (21, [0, 0], None), (18, [0, 0], [2, 2])]
)
def test_a_budget_that_costs_floors_or_ceilings_do_not_allow_is_an_error(budget, floors, ceilings):
    with pytest.raises(ValueError, match=f"cannot keep {budget} of 19 weights"):
        keep_top([torch.rand(3), torch.rand(2)], budget, floors, costs=[3, 5], ceilings=ceilings)


def test_a_floor_above_its_ceiling_is_an_error():
    with pytest.raises(ValueError, match="floors .3, 0. and ceilings .2, 2."):
        keep_top([torch.rand(3), torch.rand(2)], 4, [3, 0], ceilings=[2, 2])
