"""One read of up to three arrays of weights: energies, sums, extremes, histograms, and the sums of their differences.

Two ways to the same figures: numpy in float64, and for many float32 values loops compiled by numba (`vector_loops`), which
take a second to start and then read at the speed of memory.
"""

import functools
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
_IN_CACHE = 96 << 10
"""Elements of all arrays together that are hashed and then reduced, out of a core's second cache."""
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


def reduce_chunk(
    arrays: Sequence[NDArray], *, counted: bool = True, compiled: bool = True, hashers: Sequence[Hasher] = ()
) -> Reduced:
    """Reduce one array, or two or three of equal length (a, b, base), shape=(n,), in one read.

    Elements that are not finite are left out of totals array by array, and of the sums where any side is not finite.

    Parameters
    ----------
    counted : bool
        Whether totals hold zeros and a histogram.
    compiled : bool
        Whether float32 arrays go through the compiled loops.
    hashers : sequence of Hasher
        One for each array, or none: each takes in its array's bytes while they are in the cache.
    """
    size = arrays[0].size
    if not compiled or not size or any(array.dtype != np.float32 for array in arrays):
        for hasher, array in zip(hashers, arrays, strict=bool(hashers)):
            hasher.update(np.ascontiguousarray(array))
        return _exact(arrays, counted)
    found = _fast(arrays, counted, hashers)
    if found is not None:
        return found
    if size <= _PART:
        return _exact(arrays, counted)
    parts = [[array[start : start + _PART] for array in arrays] for start in range(0, size, _PART)]
    return add_reduced([reduce_chunk(part, counted=counted) for part in parts])


def add_reduced(parts: Sequence[Reduced]) -> Reduced:
    """Return what chunks come to together."""
    totals = tuple(functools.reduce(operator.add, of_one) for of_one in zip(*(p.totals for p in parts), strict=True))
    sums = [part.sums for part in parts if part.sums is not None]
    return Reduced(totals, functools.reduce(operator.add, sums) if sums else None)


def _fast(arrays: Sequence[NDArray[np.float32]], counted: bool, hashers: Sequence[Hasher]) -> Reduced | None:
    """Return what the compiled loops find; None where an element or a difference is not finite."""
    from f5lab.weights.vector_loops import reduce_blocks

    a, b, p = (*map(np.ascontiguousarray, arrays), _NO_VALUES, _NO_VALUES)[:3]
    sums, extremes, counts = np.zeros(8), np.array([_NO_EXTREMES] * 3, np.int64), np.zeros((2, BINS), np.int64)
    largest, step = 0, _IN_CACHE // len(arrays) if hashers else a.size
    for start in range(0, a.size, step):
        part = [array[start : start + step] for array in (a, b, p)]
        for hasher, array in zip(hashers, part, strict=False):
            hasher.update(array)
        largest = max(largest, reduce_blocks(*part, len(arrays), counted, sums, extremes, counts))
    if _is_not_finite(extremes[: len(arrays)]) or largest >= _INFINITY:
        return None
    aa, ta, bb, tb, dd, pp, uu, vv = sums.tolist()
    histograms = counts if counted else (None, None)
    totals = tuple(map(_totals, arrays[:2], (aa, bb), (ta, tb), extremes, histograms))
    if len(arrays) == 1:
        return Reduced(totals, None)
    step = float(np.array([largest], np.int32).view(np.float32)[0])
    uv = (uu + vv - dd) / 2 if len(arrays) == 3 else 0.0  # d = u - v
    found = Sums(n=a.size, aa=aa, bb=bb, ab=(aa + bb - dd) / 2, dd=dd, largest=step, pp=pp, uu=uu, vv=vv, uv=uv)
    return Reduced(totals, found)


def _is_not_finite(extremes: NDArray[np.int64]) -> bool:
    return bool((extremes[:, 0] >= _INFINITY).any() or (extremes[:, 1] >= _SIGN + _INFINITY).any())


def _totals(
    array: NDArray[np.float32], energy: float, total: float, extremes: NDArray[np.int64], counts: NDArray | None
) -> Totals:
    """Return the totals of an array without NaN and infinity, from what the kernel found."""
    signed, high, low = extremes.tolist()
    maximum = signed if signed >= 0 else low
    minimum = high if high >= _SIGN else low
    ends = np.array([minimum, maximum & 0xFFFFFFFF], np.uint32).view(np.float32) + np.float32(0)  # -0 becomes 0
    found = Totals(
        n=array.size, energy=float(energy), total=float(total), minimum=float(ends[0]), maximum=float(ends[1])
    )
    if counts is None:
        return found
    zeros = array.size - int(np.count_nonzero(array)) if counts[0] else 0
    return replace(found, zeros=zeros, histogram=_bins(counts))


def _bins(counts: NDArray[np.int64]) -> tuple[tuple[int, int], ...]:
    keys = np.flatnonzero(counts)
    return tuple(zip(keys.tolist(), counts[keys].tolist(), strict=True))


def _exact(arrays: Sequence[NDArray], counted: bool) -> Reduced:
    """Return the same by numpy in float64, whatever the arrays hold."""
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
    sums = {"aa": a @ a, "bb": b @ b, "ab": a @ b, "dd": d @ d, "largest": np.abs(d).max(initial=0.0)}
    if base:
        u, v = a - base[0], b - base[0]
        sums |= {"pp": base[0] @ base[0], "uu": u @ u, "vv": v @ v, "uv": u @ v}
    found = Sums(n=a.size, left_out=both.size - a.size, **{name: float(value) for name, value in sums.items()})
    return Reduced(totals, found)


def _exact_totals(values: Floats, fit: NDArray[np.bool_], counted: bool) -> Totals:
    finite = values if fit.all() else values[fit]
    nan = int(np.isnan(values).sum()) if finite.size < values.size else 0
    found = Totals(
        n=values.size, energy=float(finite @ finite), total=float(finite.sum()),
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
