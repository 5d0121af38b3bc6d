"""One pass over sets of weights: every tensor's totals, and the sums of the differences between the sets.

Tensors are cut into chunks that threads reduce (`reductions`); a chunk of up to three sets is read once, whatever is
computed of it. Chunks are added up in file order, so that figures do not depend on the number of threads.
"""

import functools
import hashlib
import itertools
import os
import threading
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, replace

import numpy as np
import torch
import xxhash
from numpy.typing import NDArray
from torch import Tensor

from f5lab.weights.reductions import Hasher, Reduced, Tally, add_reduced, reduce_exactly, reduce_in_parts
from f5lab.weights.sums import Sums, Totals

TEXT_ROWS = "transformer.text_embed.text_embed.weight"
CHUNK = 1 << 19
"""Elements that a thread takes at a time: three sets of them stay in the cache that cores share."""
COMPILED_FROM = 16 << 20
"""Elements from which on the compiled loops are worth the second that they take to start."""
MOST_THREADS = 16
ROUNDING = {torch.float16: 2.0**-11, torch.bfloat16: 2.0**-8}
"""Largest relative rounding error of the two half precisions."""
_AS_FLOAT32 = {torch.float32, *ROUNDING}
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
        Tensors that were not compared and differ, in shape or as whole numbers; a text embedding is compared on its
        common rows instead.
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

    @functools.cached_property
    def size(self) -> int:
        return self.tensors[0].numel()

    @functools.cached_property
    def as_stored(self) -> tuple[NDArray[np.float32], ...] | None:
        """The tensors' own memory, where they have elements, and all of them are float32 and lie in one piece."""
        fit = self.size > 0 and all(tensor.dtype == torch.float32 and tensor.is_contiguous() for tensor in self.tensors)
        return tuple(tensor.detach().reshape(-1).numpy() for tensor in self.tensors) if fit else None


@dataclass(frozen=True)
class _Chunk:
    """A run of elements of a job's tensors."""

    job: _Job
    start: int
    stop: int

    @property
    def size(self) -> int:
        return self.stop - self.start


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
    work.run(threads or _cores())
    found = [(job, work.joined(number)) for number, job in enumerate(plan)]
    held = {
        (i, job.name): totals
        for job, reduced in found
        if job.totals
        for i, totals in zip(job.sets, reduced.totals, strict=False)  # a third set has none
    }
    totals = tuple({name: held[i, name] for name in names} for i, names in enumerate(sets[:2]))
    sums = {job.name: reduced.sums for job, reduced in found if job.compared and reduced.sums is not None}
    compared = {job.name: _with_rounding(sums[job.name], job.tensors) for job in plan if job.name in sums}
    digests = tuple(work.digest(i, names) for i, names in enumerate(sets)) if seed is not None else ()
    return Scan(totals, {name: compared[name] for name in sets[0] if name in compared}, reshaped, cut, digests)


class _Work:
    """The chunks of all jobs, in file order, and what was found in them."""

    def __init__(self, plan: Sequence[_Job], counted: bool, compiled: bool, seed: int | None) -> None:
        self.plan, self.counted, self.compiled, self.seed = plan, counted, compiled, seed
        self.chunks, self._first = list[_Chunk](), list[int]()
        for job in plan:
            self._first.append(len(self.chunks))
            self.chunks += _chunks(job)
        self._tally = Tally(len(self.chunks) if compiled else 0)
        self._exact: dict[int, Reduced] = {}
        self._hashes: dict[int, list[bytes]] = {}

    def run(self, threads: int) -> None:
        """Reduce all chunks. A thread fetches its next ones itself: waking another to hand them out takes longer than many do."""
        batches, lock = _batches(self.chunks), threading.Lock()

        def _next_rows() -> range | None:
            with lock:
                return next(batches, None)

        def _reduce_what_is_left(_: int) -> None:
            for rows in iter(_next_rows, None):
                for row in rows:
                    self._reduce(row)

        with one_thread(), ThreadPoolExecutor(threads) as pool:
            list(pool.map(_reduce_what_is_left, range(threads)))

    def _reduce(self, row: int) -> None:
        """Let the loops reduce a chunk, where they can; have it hashed either way."""
        chunk = self.chunks[row]
        job, counted = chunk.job, self._counts(chunk.job)
        hashers = [xxhash.xxh3_128(seed=self.seed) for _ in job.sets] if self.seed is not None and job.totals else []
        if self.compiled and job.as_stored:
            arrays = [array[chunk.start : chunk.stop] for array in job.as_stored]
            if not self._tally.take(row, arrays, counted, hashers):
                self._exact[row] = reduce_in_parts(arrays, counted)
        else:
            self._reduce_others(row, counted, hashers)
        if hashers:
            self._hashes[row] = [hasher.digest() for hasher in hashers]

    def _reduce_others(self, row: int, counted: bool, hashers: Sequence[Hasher]) -> None:
        """Reduce a chunk of anything else than float32 in one piece, or any chunk without the loops."""
        chunk = self.chunks[row]
        flat = [tensor.detach().reshape(-1)[chunk.start : chunk.stop] for tensor in chunk.job.tensors]
        for hasher, part in zip(hashers, flat, strict=bool(hashers)):
            hasher.update(part.contiguous().view(_BYTES.get(part.element_size(), torch.uint8)).numpy())
        loops = self.compiled and chunk.size > 0 and all(part.dtype in _AS_FLOAT32 for part in flat)
        if not (loops and self._tally.take(row, [_values(part) for part in flat], counted, ())):
            reduce = reduce_in_parts if loops else reduce_exactly
            self._exact[row] = add_reduced([reduce(part, counted) for part in _pieces(flat)])

    def _counts(self, job: _Job) -> bool:
        return self.counted and job.totals

    @functools.cached_property
    def _joined(self) -> list[Reduced]:
        """What the loops found of each job."""
        sizes = [0] * len(self.plan)
        for number, rows in enumerate(self._rows):
            sizes[number] = sum(self.chunks[row].size for row in rows if row not in self._exact)
        sets = [len(job.sets) for job in self.plan]
        return self._tally.joined(self._first).reduced(sizes, sets, [self._counts(job) for job in self.plan])

    @functools.cached_property
    def _rows(self) -> list[range]:
        return [range(*ends) for ends in itertools.pairwise([*self._first, len(self.chunks)])]

    def joined(self, number: int) -> Reduced:
        """Return what all chunks of a job come to."""
        rows = self._rows[number]
        exact = [self._exact[row] for row in rows if row in self._exact]
        return add_reduced(exact if len(exact) == len(rows) else [self._joined[number], *exact])

    def digest(self, number: int, tensors: Mapping[str, Tensor]) -> str:
        """Return a digest of one set, from those of its chunks."""
        hashes = {
            job.name: b"".join(self._hashes[row][job.sets.index(number)] for row in rows)
            for job, rows in zip(self.plan, self._rows, strict=True)
            if job.totals and number in job.sets
        }
        whole = hashlib.sha256()
        for name, tensor in tensors.items():
            whole.update(f"{name}\0{tensor.dtype}\0{tuple(tensor.shape)}\0".encode())
            whole.update(hashes[name])
        return whole.hexdigest()


def _plan(sets: Sequence[Mapping[str, Tensor]]) -> tuple[list[_Job], dict[str, str], int]:
    jobs, reshaped, cut = [], {}, 0
    sets = [{name: _as_reals(tensor) for name, tensor in tensors.items()} for tensors in sets]
    for name in dict.fromkeys(name for tensors in sets for name in tensors):
        held = tuple(i for i, tensors in enumerate(sets) if name in tensors)
        tensors = tuple(sets[i][name] for i in held)
        everywhere = len(held) == len(sets) > 1
        shapes = {tuple(t.shape) for t in tensors}
        if everywhere and len(shapes) == 1:
            jobs.append(_Job(name, held, tensors, True, any(t.is_floating_point() for t in tensors)))
            if not jobs[-1].compared and not all(torch.equal(tensors[0], t) for t in tensors[1:]):
                reshaped[name] = "other values: " + " / ".join(str(t.dtype).removeprefix("torch.") for t in tensors)
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


def _as_reals(tensor: Tensor) -> Tensor:
    """Return complex numbers as pairs of reals, of which every sum is taken."""
    return torch.view_as_real(tensor.resolve_conj()) if tensor.is_complex() else tensor


def _chunks(job: _Job) -> list[_Chunk]:
    """Return a job's chunks, at least one; a tensor that does not lie in one piece is taken whole, so as to be copied once."""
    size = max(job.size, 1)
    step = CHUNK if all(t.is_contiguous() for t in job.tensors) else size
    return [_Chunk(job, start, min(start + step, job.size)) for start in range(0, size, step)]


def _batches(chunks: Sequence[_Chunk]) -> Iterator[range]:
    """Yield runs of chunks of which none is much smaller than a chunk may be."""
    first, size = 0, 0
    for number, chunk in enumerate(chunks):
        size += chunk.size
        if size >= CHUNK:
            yield range(first, number + 1)
            first, size = number + 1, 0
    yield range(first, len(chunks))


def _pieces(flat: Sequence[Tensor]) -> Iterator[list[NDArray]]:
    for start in range(0, max(flat[0].numel(), 1), CHUNK):
        yield [_values(part[start : start + CHUNK]) for part in flat]


def _values(part: Tensor) -> NDArray:
    """Return elements as numpy has them; those of shorter floats, which it may not know, as float32, which holds all of their values."""
    return (part.float() if part.is_floating_point() and part.element_size() < 4 else part).numpy()


def _with_rounding(sums: Sums, tensors: Sequence[Tensor]) -> Sums:
    """Add the expected squared error of rounding b and base to their stored precision: uniform within half a unit,
    mantissas log-uniform."""
    if len(tensors) < 3:
        return sums
    pairs = zip(tensors[1:], (sums.bb, sums.pp), strict=True)
    return replace(sums, rounding=sum(energy * ROUNDING.get(t.dtype, 0.0) ** 2 / 6 for t, energy in pairs))


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
