"""Ranks as threads, each with a stretch of rows."""

from __future__ import annotations

import threading

import torch


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
