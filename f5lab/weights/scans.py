"""One pass over sets of weights: every tensor's totals, and the sums of the differences between the sets.

Tensors are cut into chunks that threads reduce (`reductions`); a chunk of up to three sets is read once, whatever is
computed of it. Chunks are added up in file order, so that figures do not depend on the number of threads.
"""

import hashlib
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, replace

import torch
import xxhash
from numpy.typing import NDArray
from torch import Tensor

from f5lab.weights.reductions import Reduced, add_reduced, reduce_chunk
from f5lab.weights.sums import Sums, Totals

TEXT_ROWS = "transformer.text_embed.text_embed.weight"
CHUNK = 1 << 19
"""Elements that a thread takes at a time: three sets of them stay in the cache that cores share."""
COMPILED_FROM = 16 << 20
"""Elements from which on the compiled loops are worth the second that they take to start."""
MOST_THREADS = 16
ROUNDING = {torch.float16: 2.0**-11, torch.bfloat16: 2.0**-8}
"""Largest relative rounding error of the two half precisions."""
_BYTES = {1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64}


@dataclass(frozen=True)
class Scan:
    """What one pass found.

    Attributes
    ----------
    totals : tuple of dict of str to Totals
        For a and b by name; zeros and histograms only where they were asked for.
    sums : dict of str to Sums
        Floating tensors in all sets, by name, in the order of the first set.
    reshaped : dict of str to str
        Tensors whose shapes differ and were not compared; a text embedding is compared on its common rows instead.
    cut_rows : int
        Rows of the text embedding that only the largest one has.
    digests : tuple of str
        Of names, shapes, dtypes and bytes of each set; empty where none was asked for.
    """

    totals: tuple[dict[str, Totals], ...]
    sums: dict[str, Sums]
    reshaped: dict[str, str]
    cut_rows: int
    digests: tuple[str, ...] = ()


@dataclass(frozen=True)
class _Job:
    """Tensors to be read side by side: from which sets, whether their totals and their differences are wanted."""

    name: str
    sets: tuple[int, ...]
    tensors: tuple[Tensor, ...]
    totals: bool
    compared: bool

    @property
    def size(self) -> int:
        return self.tensors[0].numel()


def scan_weights(
    *sets: Mapping[str, Tensor], counted: bool = True, seed: int | None = None, threads: int | None = None
) -> Scan:
    """Read one, two or three sets of weights (a, b, base) once.

    Parameters
    ----------
    counted : bool
        Whether totals hold zeros and histograms.
    seed : int, optional
        Take digests, with this seed (64 bits).
    threads : int, optional
        By default one for each core that may be used, up to 16.
    """
    plan, reshaped, cut = _plan(sets)
    compiled = sum(job.size * len(job.sets) for job in plan) >= COMPILED_FROM
    work = _Work(plan, counted, compiled, seed)
    with one_thread(), ThreadPoolExecutor(threads or _cores()) as pool:
        for batch, done in zip(work.batches, pool.map(work.reduce, work.batches), strict=True):
            for (job, *_), found in zip(batch, done, strict=True):
                work.add(job, *found)
    sums = {
        plan[i].name: _with_rounding(work.sums[i], plan[i].tensors) for i in sorted(work.sums, key=_order(plan, sets))
    }
    totals = tuple({name: work.totals[i, name] for name in names} for i, names in enumerate(sets[:2]))
    digests = tuple(work.digest(i, names) for i, names in enumerate(sets)) if seed is not None else ()
    return Scan(totals, sums, reshaped, cut, digests)


class _Work:
    """The chunks of all jobs, packed so that no batch is much smaller than a chunk, and what was found in them."""

    def __init__(self, plan: Sequence[_Job], counted: bool, compiled: bool, seed: int | None) -> None:
        self.plan, self.counted, self.compiled, self.seed = plan, counted, compiled, seed
        self.batches = list(_batches(plan))
        self.totals: dict[tuple[int, str], Totals] = {}
        self.sums: dict[int, Sums] = {}
        self.hashes: dict[tuple[int, str], list[bytes]] = {}

    def reduce(self, batch: Sequence[tuple[int, int, int]]) -> list[tuple[Reduced, list[bytes]]]:
        """Reduce some chunks of some jobs: the part that runs in threads."""
        return [self._reduce(self.plan[job], start, stop) for job, start, stop in batch]

    def _reduce(self, job: _Job, start: int, stop: int) -> tuple[Reduced, list[bytes]]:
        flat = [tensor.detach().reshape(-1)[start:stop] for tensor in job.tensors]
        hashers = [xxhash.xxh3_128(seed=self.seed) for _ in flat] if self.seed is not None and job.totals else []
        plain = all(part.dtype == torch.float32 for part in flat)
        if not plain:
            for hasher, part in zip(hashers, flat, strict=bool(hashers)):
                hasher.update(part.contiguous().view(_BYTES.get(part.element_size(), torch.uint8)).numpy())
        options = {"counted": self.counted and job.totals, "compiled": self.compiled, "hashers": hashers * plain}
        whole = add_reduced([reduce_chunk([_values(part) for part in parts], **options) for parts in _pieces(flat)])
        hashes = [hasher.digest() for hasher in hashers]
        return (whole if job.compared else Reduced(whole.totals, None)), hashes

    def add(self, number: int, found: Reduced, hashes: Sequence[bytes]) -> None:
        """Add what was found in one chunk to what is known of its tensors."""
        job = self.plan[number]
        if found.sums is not None:
            self.sums[number] = self.sums.get(number, Sums()) + found.sums
        if not job.totals:
            return
        for i, totals in zip(job.sets, found.totals, strict=False):  # a third set has none
            known = self.totals.get((i, job.name))
            self.totals[i, job.name] = totals if known is None else known + totals
        for i, part in zip(job.sets, hashes, strict=bool(hashes)):
            self.hashes.setdefault((i, job.name), []).append(part)

    def digest(self, number: int, tensors: Mapping[str, Tensor]) -> str:
        """Return a digest of one set, from those of its chunks."""
        whole = hashlib.sha256()
        for name, tensor in tensors.items():
            whole.update(f"{name}\0{tensor.dtype}\0{tuple(tensor.shape)}\0".encode())
            whole.update(b"".join(self.hashes.get((number, name), ())))
        return whole.hexdigest()


def _plan(sets: Sequence[Mapping[str, Tensor]]) -> tuple[list[_Job], dict[str, str], int]:
    jobs, reshaped, cut = [], {}, 0
    for name in dict.fromkeys(name for tensors in sets for name in tensors):
        held = tuple(i for i, tensors in enumerate(sets) if name in tensors)
        tensors = tuple(sets[i][name] for i in held)
        everywhere = len(held) == len(sets) > 1
        shapes = {tuple(t.shape) for t in tensors}
        if everywhere and len(shapes) == 1:
            jobs.append(_Job(name, held, tensors, True, tensors[0].dtype.is_floating_point))
            continue
        jobs += [_Job(name, (i,), (tensor,), True, False) for i, tensor in zip(held, tensors, strict=True)]
        if not everywhere:
            continue
        if name != TEXT_ROWS or len({shape[1:] for shape in shapes}) > 1:
            reshaped[name] = " / ".join(str(tuple(t.shape)) for t in tensors)
            continue
        fewest, most = min(len(t) for t in tensors), max(len(t) for t in tensors)
        cut = most - fewest
        jobs.append(_Job(name, held, tuple(t[:fewest] for t in tensors), False, tensors[0].dtype.is_floating_point))
    return jobs, reshaped, cut


def _batches(plan: Sequence[_Job]) -> Iterator[list[tuple[int, int, int]]]:
    """Yield lists of (job, start, stop); a tensor that does not lie in one piece is taken whole, so as to be copied once."""
    batch, size = [], 0
    for number, job in enumerate(plan):
        step = CHUNK if all(t.is_contiguous() for t in job.tensors) else max(job.size, 1)
        for start in range(0, max(job.size, 1), step):
            stop = min(start + step, job.size)
            batch.append((number, start, stop))
            size += stop - start
            if size >= CHUNK:
                yield batch
                batch, size = [], 0
    if batch:
        yield batch


def _pieces(flat: Sequence[Tensor]) -> Iterator[list[Tensor]]:
    for start in range(0, max(flat[0].numel(), 1), CHUNK):
        yield [part[start : start + CHUNK] for part in flat]


def _values(part: Tensor) -> NDArray:
    """Return a chunk as numpy has it; the two half precisions as float32, which holds all of their values."""
    return (part.float() if part.dtype in ROUNDING else part).numpy()


def _with_rounding(sums: Sums, tensors: Sequence[Tensor]) -> Sums:
    """Add the expected squared error of rounding b and base to their stored precision: uniform within half a unit,
    mantissas log-uniform."""
    if len(tensors) < 3:
        return sums
    pairs = zip(tensors[1:], (sums.bb, sums.pp), strict=True)
    return replace(sums, rounding=sum(energy * ROUNDING.get(t.dtype, 0.0) ** 2 / 6 for t, energy in pairs))


def _order(plan: Sequence[_Job], sets: Sequence[Mapping[str, Tensor]]) -> Callable[[int], int]:
    places = {name: place for place, name in enumerate(sets[0])}
    return lambda number: places[plan[number].name]


def _cores() -> int:
    usable = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return min(usable, MOST_THREADS)


@contextmanager
def one_thread() -> Iterator[None]:
    """Keep torch to one thread: on short blocks threads wait for each other, the more the busier the machine is."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)
