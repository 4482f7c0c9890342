"""Several processes as one run: the rank of this one, and decisions of all of them together.

In:   the environment of torchrun, or the process group of a caller who made one.
Out:  Ranks: sums, means and texts over all processes; one process is the case in which they cost
      nothing. MasksDiffer where ranks have other masks, found without sending one.
Not:  no gradient is reduced here (step.py), and nothing is read or written.

A rank that ends with an error leaves its text in torchrun's store. An error of all ranks is
reported once, by the first; the others read in the store why a partner is gone.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from hashlib import sha256
from threading import Thread
from time import monotonic, sleep
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor
from torch.nn.functional import pad

from dcil_dsl.compiler.dual import Dual
from dcil_dsl.diagnostics.errors import InputError
from dcil_dsl.training.sparsity import SparsityError

PATIENCE = timedelta(minutes=10)  # for the slowest rank at any one meeting
SECONDS_TO_TELL = 2.0  # in which a rank that failed has left its text
REFUSED = "dcil/refused"
BUCKET = 25 * 2**20  # bytes of one exchange of means, as DistributedDataParallel's


class RankLost(InputError):
    """Another rank is gone, so that this one cannot continue."""


@dataclass(frozen=True)
class Ranks:
    """The processes of a run. All of them call the communicating methods, in the same order.

    rank, count     which process this is, and of how many
    local, local_count  the same among those of this machine
    store           a torch.distributed.Store of this start
    job             torchrun's store, which outlives a start that failed
    """

    rank: int = 0
    count: int = 1
    local: int = 0
    local_count: int = 1
    store: Any = None
    job: Any = None

    @property
    def is_first(self) -> bool:
        """Whether this rank writes files and shows progress."""
        return self.rank == 0

    def refuse(self) -> None:
        """Record for later starts of this job that its run was not begun."""
        if self.job is not None:
            self.job.set(REFUSED, "")

    @property
    def is_refused(self) -> bool:
        return self.job is not None and self.job.check([REFUSED])

    def sum(self, values: Tensor) -> Tensor:
        """Over all ranks, in the shape and on the device of `values`."""
        if self.count > 1:
            values = values.clone(memory_format=torch.contiguous_format)
            dist.all_reduce(values)
        return values

    def gather(self, values: Tensor) -> Tensor:
        """(count, *shape): every rank's values in the order of the ranks."""
        if self.count == 1:
            return values[None]
        parts = [torch.empty_like(values) for _ in range(self.count)]
        dist.all_gather(parts, values.contiguous())
        return torch.stack(parts)

    def any(self, wish: bool) -> bool:
        """Whether the value is true on some rank. The hosts exchange it; no device waits."""
        return wish if self.count == 1 else bool(self.sum(torch.tensor(int(wish))))

    @torch.no_grad()
    def average(self, tensors: Iterable[Tensor]) -> None:
        """Replace each of the floating-point tensors by its mean over the ranks."""
        for bucket in _buckets(tensors) if self.count > 1 else ():
            means = self.sum(torch.cat([tensor.reshape(-1) for tensor in bucket])) / self.count
            parts = torch.split(means, [tensor.numel() for tensor in bucket])
            for tensor, mean in zip(bucket, parts, strict=True):
                tensor.copy_(mean.view(tensor.shape))

    @torch.no_grad()
    def mean_in_order(self, values: Tensor) -> Tensor:
        """The mean of (n,) over the ranks, added up in their order.

        The rounding of a number does not depend on its place in `values`, as it does where an
        all_reduce begins each stretch with another rank. Sent is as much as by that.
        """
        size = -(-len(values) // self.count)
        own = pad(values, (0, size * self.count - len(values)))
        parts = torch.empty_like(own)
        dist.all_to_all_single(parts, own)
        first, *others = torch.split(parts, size)
        means = sum(others, first) / self.count
        dist.all_gather(list(torch.split(own, size)), means)
        return own[: len(values)]

    @torch.no_grad()
    def copy_first(self, tensors: Iterable[Tensor]) -> None:
        """Overwrite the tensors with the first rank's."""
        for tensor in tensors if self.count > 1 else ():
            dense = tensor.contiguous()
            raw = dense.reshape(-1).view(torch.uint8)  # not every backend moves booleans
            dist.broadcast(raw, 0)
            if dense.data_ptr() != tensor.data_ptr():
                tensor.copy_(dense)

    def from_first(self, work: Callable[[], str]) -> str:
        """The result of `work`, run by the first rank alone; every rank raises its InputError."""
        if self.count == 1:
            return work()
        answer: dict[str, Any] = {}
        if self.is_first:
            try:
                answer = {"text": work()}
            except InputError as error:
                answer = {"error": error.message, "help": error.help}
        answer = json.loads(self._tell(json.dumps(answer)))
        if "error" in answer:
            raise InputError(answer["error"], help=answer["help"])
        return str(answer["text"])

    def find_other(self, text: str) -> tuple[list[int], str, str] | None:
        """The ranks whose text differs from rank 0's, rank 0's text, and that of the first of them.

        None if all are equal, which costs the exchange of a digest.
        """
        digest = bytearray(sha256(text.encode()).digest())
        digests = self.gather(torch.frombuffer(digest, dtype=torch.uint8))
        others = (digests != digests[0]).any(1).nonzero().flatten().tolist()
        if not others:
            return None
        return others, self._tell(text), self._tell(text, others[0])

    def _tell(self, text: str, source: int = 0) -> str:
        """The text of the rank `source`. Bytes in a tensor: no object is pickled."""
        raw = torch.frombuffer(bytearray(text.encode()), dtype=torch.uint8)
        size = torch.tensor(len(raw))
        dist.broadcast(size, source)
        raw = raw if self.rank == source else torch.empty(int(size), dtype=torch.uint8)
        dist.broadcast(raw, source)
        return bytes(raw.numpy()).decode()


def _buckets(tensors: Iterable[Tensor]) -> Iterator[list[Tensor]]:
    """In their order by type and device, BUCKET bytes together, a larger one alone."""
    filling: dict[tuple[torch.dtype, torch.device], list[Tensor]] = {}
    for tensor in tensors:
        bucket = filling.setdefault((tensor.dtype, tensor.device), [])
        if bucket and sum(one.nbytes for one in bucket) + tensor.nbytes > BUCKET:
            yield bucket.copy()
            bucket.clear()
        bucket.append(tensor)
    yield from filter(None, filling.values())


@contextmanager
def joined_ranks() -> Iterator[Ranks]:
    """The Ranks of this process, connected; disconnected at the end if they were connected here.

    An error that leaves the `with` is marked: `rank` is the rank that raised it, `told_elsewhere`
    says that the first rank, or the one that failed, reports it. An error of a collective because a
    partner is gone becomes RankLost.
    """
    if dist.is_available() and dist.is_initialized():
        yield current_ranks()
        return
    if int(os.environ.get("WORLD_SIZE", 1)) == 1:
        yield Ranks()
        return
    ranks = _meet()
    try:
        yield ranks
    except BaseException as error:
        if _is_lost(error):
            lost = RankLost(
                f"another process of this job is gone: {str(error).splitlines()[0][:200]}",
                help="resume with --resume; `torchrun --max-restarts N` does so automatically",
            )
            _mark(lost, ranks)
            raise lost from error
        _mark(error, ranks)
        raise
    finally:
        dist.destroy_process_group()


def current_ranks() -> Ranks:
    """The processes of the group that the caller has made; one process where there is none."""
    if dist.is_available() and dist.is_initialized():
        return Ranks(dist.get_rank(), dist.get_world_size(), *_local_ranks())
    return Ranks()


def was_restarted() -> bool:
    """Whether torchrun has restarted this job after a rank failed."""
    return int(os.environ.get("TORCHELASTIC_RESTART_COUNT", 0)) > 0


def may_be_restarted() -> bool:
    return int(os.environ.get("TORCHELASTIC_MAX_RESTARTS", 0)) > 0


def _meet() -> Ranks:
    from torch.distributed.rendezvous import rendezvous

    library: Any = dist

    try:
        store, rank, count = next(rendezvous("env://", timeout=PATIENCE))
        # torchrun's store outlives a failed start, whose addresses must not be taken for ours.
        start = os.environ.get("TORCHELASTIC_RESTART_COUNT", 0)
        job = store
        while isinstance(job, library.PrefixStore):  # by start
            job = job.underlying_store
        store = library.PrefixStore(f"start {start} of {count}", store)
        dist.init_process_group(store=store, rank=rank, world_size=count, timeout=PATIENCE)
    except (RuntimeError, ValueError) as error:
        raise InputError(
            f"the processes of this job do not meet: {str(error).splitlines()[0]}",
            help="start it by torchrun --nproc-per-node N -m dcil_dsl compile ...",
        ) from None
    return Ranks(rank, count, *_local_ranks(), library.PrefixStore("dcil", store), job)


def _local_ranks() -> tuple[int, int]:
    return int(os.environ.get("LOCAL_RANK", 0)), int(os.environ.get("LOCAL_WORLD_SIZE", 1))


def _is_lost(error: BaseException) -> bool:
    """Whether a collective failed. Gloo raises a bare RuntimeError for it."""
    words = ("Connection closed", "Connection reset", "Broken pipe", "Timed out waiting", "gloo")
    return isinstance(error, dist.DistError) or (
        type(error) is RuntimeError and any(word in str(error) for word in words)
    )


def _mark(error: BaseException, ranks: Ranks) -> None:
    """Leave this rank's error for the others; find out whether another rank reports it.

    Takes at most SECONDS_TO_TELL and a second: the process that holds the store may be stopped,
    and then a request to it never returns. In that case this rank reports its error.
    """
    asking = Thread(target=_mark_in_store, args=(error, ranks), daemon=True)
    asking.start()
    asking.join(SECONDS_TO_TELL + 1)


def _mark_in_store(error: BaseException, ranks: Ranks) -> None:
    marks = error.__dict__
    marks["rank"] = ranks.rank
    text = f"{type(error).__name__}: {error}"
    try:
        if isinstance(error, RankLost):
            marks["told_elsewhere"] = _left_by(range(ranks.count), ranks) is not None
            return
        ranks.store.set(f"error/{ranks.rank}", text)
        if not ranks.is_first:
            marks["told_elsewhere"] = _left_by([0], ranks) == text
        elif os.environ.get("TORCHELASTIC_USE_AGENT_STORE") != "True":
            sleep(SECONDS_TO_TELL / 4)  # the store ends with this process; let the others read
    except (RuntimeError, ValueError):  # the store is gone with the first rank
        pass


def _left_by(others: Iterable[int], ranks: Ranks) -> str | None:
    """The text of an error of another rank, waiting a moment for it."""
    until = monotonic() + SECONDS_TO_TELL
    while monotonic() < until:
        for other in others:
            if ranks.store.check([f"error/{other}"]):  # waiting on a store prints to stderr
                return str(ranks.store.get(f"error/{other}").decode())
        sleep(0.02)
    return None


def step_seed(seed: int, step: int, rank: int) -> int:
    """The seed of a step's random numbers. Rank 0 draws the numbers of a single process."""
    return (seed * 1_000_003 + step + rank * 0x2545F4914F6CDD1D) % (1 << 63)


# -- masks that are the same on all ranks --------------------------------------------------------


def merge_scores(dual: Dual, step: int, ranks: Ranks) -> None:
    """The scores of all ranks, where a mask is about to be made of them: means, as they add up.

    In parts they are of all ranks as they stand: the gradients that they take are.
    """
    due = dual.due(step) if dual.placement.is_whole and ranks.count > 1 else []
    if any(group.buffered_score is not None for group in due):
        ranks.average(dual.score_state.values())


def begin_step(dual: Dual, step: int, loss_scale: Tensor | None, ranks: Ranks) -> bool:
    """dual.begin_step with the scores of all ranks. MasksDiffer where ranks then have other masks:
    their weights were not equal."""
    merge_scores(dual, step, ranks)
    moved = dual.begin_step(step, loss_scale)
    if moved and ranks.count > 1:
        compare_fingerprints(list(dual.masks), ranks.gather(mask_fingerprints(dual.masks)), step)
    return moved


GOLDEN = 0x9E3779B97F4A7C15 - (1 << 64)  # 2^64 over the golden ratio, as a signed number
MAX_NAMED = 5


class MasksDiffer(SparsityError):
    """Ranks disagree on a mask."""


def mask_fingerprints(masks: Mapping[str, Tensor]) -> Tensor:
    """int64 (number of masks,), on the masks' device; no value is read by the host."""
    return torch.stack([mask_fingerprint(mask) for mask in masks.values()])


def mask_fingerprint(mask: Tensor) -> Tensor:
    """64 bits of a boolean tensor: the sum over its words of eight of mix(word + place * GOLDEN).

    mix is the finalizer of splitmix64 (Steele, Lea, Flood 2014, figure 16), a bijection in which
    each bit of the input moves half of the output's. Two masks that differ in one word never
    agree; others do by a chance of about 2^-64.
    """
    flat = mask.reshape(-1).view(torch.uint8)
    words = pad(flat, (0, -flat.numel() % 8)).view(torch.int64)
    places = torch.arange(1, len(words) + 1, device=mask.device)
    return _mix(words + places * GOLDEN).sum()


def compare_fingerprints(names: Sequence[str], prints: Tensor, step: int) -> None:
    """prints (ranks, masks) as of `step`. MasksDiffer if a column is not one number."""
    wrong = []
    for name, column in zip(names, prints.t().tolist(), strict=True):
        usual = max(column, key=column.count)
        odd = [str(rank) for rank, value in enumerate(column) if value != usual]
        if odd:
            wrong.append(f"`{name}` on rank {', '.join(odd)}")
    if wrong:
        shown = wrong[:MAX_NAMED]
        if more := len(wrong) - len(shown):
            shown.append(f"and {more} more")
        raise MasksDiffer(
            f"at step {step} the ranks do not have the same masks, which they compute from equal "
            f"weights: {'; '.join(shown)} differs from the others"
        )


def _mix(x: Tensor) -> Tensor:
    x = (x ^ _shifted(x, 30)) * (0xBF58476D1CE4E5B9 - (1 << 64))
    x = (x ^ _shifted(x, 27)) * (0x94D049BB133111EB - (1 << 64))
    return x ^ _shifted(x, 31)


def _shifted(x: Tensor, bits: int) -> Tensor:
    """x >> bits of an unsigned number: zeros are shifted in."""
    return (x >> bits) & ((1 << (64 - bits)) - 1)
