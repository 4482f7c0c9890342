"""Several ranks with a stretch of every layer each choose what one with all of it chooses."""

import random

import pytest
import torch
from threads import Threads, shards

from dcil_dsl.masking.select import keep_top


def keep_across(scores, num_keep, floors, num_ranks):
    threads, found = Threads(num_ranks), {}

    def choose(rank):
        own = [shards(score, num_ranks)[rank] for score in scores]
        found[rank] = keep_top(own, num_keep, floors, threads.of_rank(rank))

    threads.run(choose)
    return [torch.cat([found[r][i] for r in range(num_ranks)]) for i in range(len(scores))]


@pytest.mark.parametrize("num_ranks", [1, 2, 4])
@pytest.mark.parametrize("seed", range(12))
def test_any_number_of_ranks_chooses_what_one_chooses_floors_and_ties_included(seed, num_ranks):
    chance = random.Random(seed)
    generator = torch.Generator().manual_seed(seed)
    shapes = [(chance.randint(1, 9), chance.randint(1, 7)) for _ in range(chance.randint(1, 4))]
    levels = chance.choice([2, 3, 1_000_000])  # few levels: most scores are tied
    scores = [torch.randint(0, levels, shape, generator=generator).float() for shape in shapes]
    floors = [chance.choice([0, 1, min(3, score.numel())]) for score in scores]
    num_keep = chance.randint(sum(floors), sum(score.numel() for score in scores))
    alone = keep_top(scores, num_keep, floors)
    together = keep_across(scores, num_keep, floors, num_ranks)
    assert all(torch.equal(a, b) for a, b in zip(alone, together, strict=True))
    assert sum(int(mask.sum()) for mask in together) == num_keep


def test_of_equal_scores_the_earlier_layer_and_then_the_earlier_rank_is_kept():
    ones = [torch.ones(2, 1), torch.ones(4, 1)]
    masks = keep_across(ones, 4, [0, 0], num_ranks=2)
    assert [mask.flatten().tolist() for mask in masks] == [[True] * 2, [True, True, False, False]]


def test_a_rank_without_a_row_of_a_layer_takes_part():
    masks = keep_across([torch.tensor([[3.0], [1.0]]), torch.tensor([[2.0]])], 2, [0, 1], 4)
    assert [mask.flatten().tolist() for mask in masks] == [[True, False], [True]]
