"""Several ranks with a stretch of every layer each choose what one with all of it chooses."""

import random
import threading

import pytest
import torch

from dcil_dsl.masking.select import keep_top


class Threads:
    """Ranks as threads: each leaves its tensor, waits for the others, and reads them all."""

    def __init__(self, num_ranks: int):
        self.barrier = threading.Barrier(num_ranks, timeout=30)
        self.left: list = [None] * num_ranks

    def of_rank(self, rank: int):
        return _Rank(self, rank)

    def run(self, choose):
        """choose(rank) on every rank."""
        ranks = range(len(self.left))
        running = [threading.Thread(target=choose, args=(rank,)) for rank in ranks]
        for thread in running:
            thread.start()
        for thread in running:
            thread.join()


class _Rank:
    def __init__(self, threads: Threads, rank: int):
        self.threads, self.rank = threads, rank

    def gather(self, values):
        self.threads.left[self.rank] = values
        self.threads.barrier.wait()
        together = torch.stack(self.threads.left)
        self.threads.barrier.wait()  # no one writes before all have read
        return together

    def sum(self, counts):
        return self.gather(counts).sum(0)


def shards(score, num_ranks):
    """Rows as FSDP cuts them: all ranks but the last ones alike, the last short or empty."""
    rows = -(-len(score) // num_ranks)
    return [score[rank * rows : (rank + 1) * rows] for rank in range(num_ranks)]


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
