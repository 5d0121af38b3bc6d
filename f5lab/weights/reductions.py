"""One read of up to three arrays of weights: energies, sums, extremes, histograms, and the sums of their differences.

Two ways to the same figures: numpy in float64, and for many float32 values loops compiled by numba (`vector_loops`), which
take a second to start and then read at the speed of memory. What the loops add up stays in arrays (`Tally`) until a tensor is
complete: threads that reduce its chunks have next to nothing to do that needs Python's lock.
"""

import functools
import itertools
import math
import operator
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from f5lab.weights.sums import BIAS, BINS, Sums, Totals

Floats = NDArray[np.float64]
_INFINITY = 0x7F800000
_SIGN = 0x80000000
_PART = 1 << 14
"""Elements of a chunk with NaN or infinity that are gone over in float64."""
_NO_VALUES = np.empty(0, np.float32)
_IN_CACHE = 512 << 10
"""Elements of all arrays together that are reduced and then hashed, out of a cache. Fewer would fit a core's own; but threads
then hand Python's lock over so often that the pass takes a fifth longer."""
_NO_EXTREMES = (-(1 << 31), 0, 0xFFFFFFFF)


class Hasher(Protocol):
    """What takes in bytes for a digest."""

    def update(self, data: NDArray, /) -> None:
        """Take in the bytes of an array that lies in one piece."""


@dataclass(frozen=True)
class Reduced:
    """One chunk: totals of a and b, sums of their differences (None for one array alone)."""

    totals: tuple[Totals, ...]
    sums: Sums | None


def add_reduced(parts: Sequence[Reduced]) -> Reduced:
    """Return what chunks come to together."""
    if len(parts) == 1:
        return parts[0]
    totals = tuple(functools.reduce(operator.add, of_one) for of_one in zip(*(p.totals for p in parts), strict=True))
    sums = [part.sums for part in parts if part.sums is not None]
    return Reduced(totals, functools.reduce(operator.add, sums) if sums else None)


class Tally:
    """What the compiled loops add up, one row for each chunk; threads may fill different rows at a time."""

    def __init__(self, rows: int) -> None:
        self._sums, self._largest = np.zeros((rows, 10)), np.zeros(rows, np.int64)
        self._extremes, self._counts = np.empty((rows, 3, 3), np.int64), np.zeros((rows, 2, BINS), np.int64)
        self._extremes[:] = _NO_EXTREMES
        self._zeros = np.zeros((rows, 2), np.int64)

    def take(self, row: int, arrays: Sequence[NDArray[np.float32]], counted: bool, hashers: Sequence[Hasher]) -> bool:
        """Reduce one to three arrays of equal length, shape=(n,), into a row that is empty.

        Returns
        -------
        bool
            Whether there are elements, and they and their differences are finite; else the row stays empty. The hashers
            have taken in all bytes either way.
        """
        if not arrays[0].size:
            return False
        from f5lab.weights.vector_loops import reduce_blocks

        a, b, p = (*map(np.ascontiguousarray, arrays), _NO_VALUES, _NO_VALUES)[:3]
        held = self._sums[row], self._extremes[row], self._counts[row]
        largest, step = 0, _IN_CACHE // len(arrays) if hashers else a.size
        for start in range(0, a.size, step):
            part = [array[start : start + step] for array in (a, b, p)]
            largest = max(largest, reduce_blocks(*part, len(arrays), counted, *held))
            for hasher, array in zip(hashers, part, strict=False):
                hasher.update(array)
        if largest >= _INFINITY or _is_not_finite(held[1][: len(arrays)].tolist()):
            self._sums[row], self._extremes[row], self._counts[row] = 0, _NO_EXTREMES, 0
            return False
        self._largest[row] = largest
        for i, array in enumerate((a, b)):
            if self._counts[row, i, 0]:
                self._zeros[row, i] = array.size - int(np.count_nonzero(array))
        return True

    def joined(self, starts: Sequence[int]) -> "Tally":
        """Return one row for each run of rows that begins at one of `starts`, in rising order."""
        found = Tally(0)
        for name in ("_sums", "_counts", "_zeros"):
            setattr(found, name, np.add.reduceat(getattr(self, name), starts))
        found._largest = np.maximum.reduceat(self._largest, starts)
        highest, lowest = np.maximum.reduceat(self._extremes, starts), np.minimum.reduceat(self._extremes, starts)
        found._extremes = np.concatenate([highest[..., :2], lowest[..., 2:]], axis=-1)
        return found

    def reduced(self, sizes: Sequence[int], arrays: Sequence[int], counted: Sequence[bool]) -> list[Reduced]:
        """Return what each row comes to, of how many elements, of how many arrays, and whether they were counted."""
        ends, bins, zeros = self._ends(), self._bins(), self._zeros.tolist()
        steps = self._largest.astype(np.int32).view(np.float32).tolist()
        found = []
        for row, (aa, ta, bb, tb, dd, pp, uu, vv, ab, uv) in enumerate(self._sums.tolist()):
            n, held = sizes[row], min(arrays[row], 2)
            totals = [
                Totals(n, energy, total, *ends[row][i], zeros=zeros[row][i], histogram=bins[2 * row + i])
                if counted[row]
                else Totals(n, energy, total, *ends[row][i])
                for i, (energy, total) in enumerate(((aa, ta), (bb, tb))[:held])
            ]
            sums = Sums(n=n, aa=aa, bb=bb, ab=ab, dd=dd, largest=steps[row], pp=pp, uu=uu, vv=vv, uv=uv)
            found.append(Reduced(tuple(totals), sums if held == 2 else None))
        return found

    def _ends(self) -> list[list[list[float]]]:
        """Return minimum and maximum of each array of each row."""
        signed, high, low = np.moveaxis(self._extremes, -1, 0)
        maximum = np.where(signed >= 0, signed, low) & 0xFFFFFFFF
        minimum = np.where(high >= _SIGN, high, low)
        ends = np.stack([minimum, maximum], axis=-1).astype(np.uint32).view(np.float32) + np.float32(0)  # -0 becomes 0
        return ends.tolist()

    def _bins(self) -> list[tuple[tuple[int, int], ...]]:
        """Return the histograms of both arrays of each row, one after the other."""
        counts = self._counts.reshape(-1, BINS)
        rows, keys = np.nonzero(counts)
        held = list(zip(keys.tolist(), counts[rows, keys].tolist(), strict=True))
        ends = np.searchsorted(rows, range(len(counts) + 1)).tolist()
        return [tuple(held[start:stop]) for start, stop in itertools.pairwise(ends)]


def reduce_in_parts(arrays: Sequence[NDArray[np.float32]], counted: bool) -> Reduced:
    """Reduce as `reduce_exactly`, by the compiled loops wherever nothing is NaN or infinite."""
    starts = range(0, arrays[0].size, _PART)
    tally, exact, size = Tally(len(starts)), [], 0
    for row, start in enumerate(starts):
        part = [array[start : start + _PART] for array in arrays]
        if tally.take(row, part, counted, ()):
            size += part[0].size
        else:
            exact.append(reduce_exactly(part, counted))
    fast = tally.joined([0]).reduced([size], [len(arrays)], [counted]) if size else []
    return add_reduced([*fast, *exact])


def _is_not_finite(extremes: Sequence[Sequence[int]]) -> bool:
    return any(signed >= _INFINITY or high >= _SIGN + _INFINITY for signed, high, _ in extremes)


def _bins(counts: NDArray[np.int64]) -> tuple[tuple[int, int], ...]:
    keys = np.flatnonzero(counts)
    return tuple(zip(keys.tolist(), counts[keys].tolist(), strict=True))


def reduce_exactly(arrays: Sequence[NDArray], counted: bool) -> Reduced:
    """Reduce one array, or two or three of equal length (a, b, base), shape=(n,), by numpy in float64, whatever they hold.

    Elements that are not finite are left out of totals array by array, and of the sums where any side is not finite.
    """
    with np.errstate(invalid="ignore"):  # a signalling NaN is a NaN
        values = [array.astype(np.float64) for array in arrays]
    fit = [np.isfinite(array) for array in values]
    totals = tuple(_exact_totals(*pair, counted) for pair in zip(values[:2], fit[:2], strict=True))
    if len(arrays) == 1:
        return Reduced(totals, None)
    both = np.logical_and.reduce(fit)
    if not both.all():
        values = [array[both] for array in values]
    a, b, *base = values
    d = a - b
    sums = {
        "aa": _dot(a, a),
        "bb": _dot(b, b),
        "ab": _dot(a, b),
        "dd": _dot(d, d),
        "largest": np.abs(d).max(initial=0.0),
    }
    if base:
        u, v = a - base[0], b - base[0]
        sums |= {"pp": _dot(base[0], base[0]), "uu": _dot(u, u), "vv": _dot(v, v), "uv": _dot(u, v)}
    found = Sums(n=a.size, left_out=both.size - a.size, **{name: float(value) for name, value in sums.items()})
    return Reduced(totals, found)


def _dot(a: Floats, b: Floats) -> float:
    """Return a dot product without BLAS, whose threads go on spinning where ours have work."""
    return float(np.einsum("i,i->", a, b))


def _exact_totals(values: Floats, fit: NDArray[np.bool_], counted: bool) -> Totals:
    finite = values if fit.all() else values[fit]
    nan = int(np.isnan(values).sum()) if finite.size < values.size else 0
    found = Totals(
        n=values.size, energy=_dot(finite, finite), total=float(finite.sum()),
        minimum=float(finite.min(initial=math.inf)) + 0.0, maximum=float(finite.max(initial=-math.inf)) + 0.0,
        nan=nan, inf=values.size - finite.size - nan,
    )  # fmt: skip
    if not counted:
        return found
    histogram = _bins(np.bincount(_bin_of(finite), minlength=BINS))
    return replace(found, zeros=int((finite == 0).sum()), histogram=histogram)


def _bin_of(values: Floats) -> NDArray[np.int64]:
    exponents = np.frexp(values)[1].astype(np.int64) - 1 + BIAS
    return np.where(values == 0, 0, np.clip(exponents, 0, BINS - 2))
