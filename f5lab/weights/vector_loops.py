"""Loops over weights that a compiler turns into vector instructions, run without Python's lock.

The arrays are taken in blocks that stay in a core's first cache, so that each byte is read once whatever is computed. All
sums are float64 sums of float64 products of the stored values. Extremes are taken of the bit patterns: floats of one sign
are ordered as whole numbers, and NaN and infinity are the largest. numba is imported here and nowhere else: it takes a
second to start.
"""

import numba
import numpy as np
from llvmlite import ir
from numba.core import cgutils
from numba.extending import intrinsic
from numpy.typing import NDArray

Floats = NDArray[np.float32]
_LANES, _ROWS = 32, 15
_GROUP = _LANES * _ROWS
_BLOCK = 16 * _GROUP
"""A counter of four bits holds 15 rows, a byte 16 groups of them; a few blocks stay in a core's own caches."""
_LINE = 16
"""Elements that a cache brings at once."""
_EXPONENT, _SIZE = np.uint32(0x7F800000), np.uint32(0x7FFFFFFF)
_FREE_ORDER = {"reassoc", "contract", "nsz"}
"""Sums may be taken in any order; NaN and infinity stay what they are."""


@intrinsic
def _fetch(typing_context, array, index):  # type: ignore[no-untyped-def]
    """Ask for an element of an array to be brought into the second cache, without waiting for it."""

    def _build(context, builder, signature, arguments):  # type: ignore[no-untyped-def]
        values = context.make_array(signature.args[0])(context, builder, arguments[0])
        place = builder.bitcast(builder.gep(values.data, [arguments[1]]), cgutils.voidptr_t)
        number = ir.IntType(32)
        kind = ir.FunctionType(ir.VoidType(), [cgutils.voidptr_t, number, number, number])
        call = cgutils.get_or_insert_function(builder.module, kind, "llvm.prefetch.p0")
        builder.call(call, [place, number(0), number(2), number(1)])
        return context.get_dummy_value()

    return numba.types.void(array, numba.types.intp), _build


@intrinsic
def _shift(typing_context, value, places):  # type: ignore[no-untyped-def]
    """Shift 32 bits to the left by less than 32 places: numba's own shift widens them to 64."""

    def _build(context, builder, signature, arguments):  # type: ignore[no-untyped-def]
        return builder.shl(*arguments)

    return numba.types.uint32(numba.types.uint32, numba.types.uint32), _build


@numba.njit(nogil=True, cache=True)
def reduce_blocks(
    a: Floats, b: Floats, p: Floats, arrays: int, counted: bool,
    sums: NDArray[np.float64], extremes: NDArray[np.int64], counts: NDArray[np.int64],
) -> int:  # fmt: skip
    """Reduce one to three float32 arrays (a, b, base) of equal length; those beyond the number of `arrays` are empty.

    Parameters
    ----------
    counted : bool
        Whether to count exponents of a and b.
    sums : array, shape=(10,), float64
        Added to: aa, sum of a, bb, sum of b, dd, pp, uu, vv, ab, uv (as in `sums.Sums`).
    extremes : array, shape=(3, 3), int64
        Widened for each array: bit pattern of the largest as signed, largest and smallest as unsigned number.
    counts : array, shape=(2, 256), int64
        The number of elements of a and b is added, by biased exponent.

    Returns
    -------
    int
        Bit pattern of the largest |a - b|.
    """
    lanes = np.zeros((4, _LANES), np.uint32)
    largest = 0
    for start in range(0, a.size, _BLOCK):
        stop = min(start + _BLOCK, a.size)
        x, y, q = a[start:stop], b[start:stop], p[start:stop]
        if arrays == 1:
            top = _widen(x.view(np.int32), extremes[0])
            if counted:
                _count(x.view(np.uint32), top, counts[0], lanes, a[stop : stop + _BLOCK], p[:0])
            sums[0], sums[1] = _add_energy(x, sums[0], sums[1])
            continue
        top, other, step = _widen_pair(x, y, extremes)
        largest = max(largest, step)
        if counted:
            _count(x.view(np.uint32), top, counts[0], lanes, a[stop : stop + _BLOCK], p[:0])
            _count(y.view(np.uint32), other, counts[1], lanes, b[stop : stop + _BLOCK], p[stop : stop + _BLOCK])
        if arrays == 2:
            _add_pair(x, y, sums)
        else:
            _widen(q.view(np.int32), extremes[2])
            _add_three(x, y, q, sums)
    return largest


@numba.njit(nogil=True, cache=True, fastmath=_FREE_ORDER)
def _add_energy(x, energy, total):  # type: ignore[no-untyped-def]
    e, t = 0.0, 0.0
    for i in range(x.size):
        v = np.float64(x[i])
        e += v * v
        t += v
    return energy + e, total + t


@numba.njit(nogil=True, cache=True)
def _widen(bits, extremes):  # type: ignore[no-untyped-def]
    """Widen the largest pattern as signed, the largest and the smallest as unsigned; return the block's top exponent."""
    signed, high, low = np.int32(-2147483648), np.uint32(0), np.uint32(0xFFFFFFFF)
    for i in range(bits.size):
        v = bits[i]
        signed = max(signed, v)
        high = max(high, np.uint32(v))
        low = min(low, np.uint32(v))
    return _widened(signed, high, low, extremes)


@numba.njit(nogil=True, cache=True)
def _widen_pair(a, b, extremes):  # type: ignore[no-untyped-def]
    """Widen the extremes of both; return their top exponents and the pattern of the largest |a - b|."""
    x, y = a.view(np.int32), b.view(np.int32)
    signed, high, low = np.int32(-2147483648), np.uint32(0), np.uint32(0xFFFFFFFF)
    signed_b, high_b, low_b = signed, high, low
    largest = np.int32(0)
    for i in range(a.size):
        u, v = x[i], y[i]
        signed, signed_b = max(signed, u), max(signed_b, v)
        high, high_b = max(high, np.uint32(u)), max(high_b, np.uint32(v))
        low, low_b = min(low, np.uint32(u)), min(low_b, np.uint32(v))
        largest = max(largest, np.int32(np.float32(a[i] - b[i]).view(np.int32) & np.int32(0x7FFFFFFF)))
    return _widened(signed, high, low, extremes[0]), _widened(signed_b, high_b, low_b, extremes[1]), np.int64(largest)


@numba.njit(nogil=True, cache=True)
def _widened(signed, high, low, extremes):  # type: ignore[no-untyped-def]
    extremes[0] = max(extremes[0], np.int64(signed))
    extremes[1] = max(extremes[1], np.int64(high))
    extremes[2] = min(extremes[2], np.int64(low))
    negative = np.int64(high & np.uint32(0x7FFFFFFF)) if high >= np.uint32(0x80000000) else 0
    return max(np.int64(signed), negative, 0) >> 23


@numba.njit(nogil=True, cache=True)
def _count(bits, top, table, lanes, ahead, beside):  # type: ignore[no-untyped-def]
    """Count the exponents of a block none of which is above `top`, and fetch what will be read next.

    Each of 32 lanes keeps eight 4-bit counters for the exponents modulo 8, of all elements and of those more than 7 below
    `top`. After 15 rows, before one can overflow, they are spread over bytes, and after the block the bytes are added up.
    What is more than 15 below `top` was counted for another exponent, and is put right one by one.
    """
    whole = bits.size - bits.size % _GROUP
    edge, least = np.uint32(max(top - 7, 0) << 23), np.uint32(max(top - 15, 0) << 23)
    lanes[:] = 0
    for start in range(0, whole, _GROUP):
        stop = start + _GROUP
        for line in range(start, min(stop, ahead.size), _LINE):
            _fetch(ahead, line)
        for line in range(start, min(stop, beside.size), _LINE):
            _fetch(beside, line)
        values = bits[start:stop]
        if _count_group(values, edge, lanes[0], lanes[1], lanes[2], lanes[3]) < least:
            _move_rare(values, top, table)
    _add_bytes(lanes[0], lanes[2], top, 0, table)
    _add_bytes(lanes[1], lanes[3], top, 1, table)
    for i in range(whole, bits.size):
        table[(bits[i] & _EXPONENT) >> np.uint32(23)] += 1


@numba.njit(nogil=True, cache=True)
def _count_group(values, edge, even, odd, even_far, odd_far):  # type: ignore[no-untyped-def]
    """Count 15 rows, those below `edge` once more as far, and return the pattern of the smallest magnitude."""
    nothing, one, nibbles, lowest = np.uint32(0), np.uint32(1), np.uint32(0x0F0F0F0F), _SIZE
    for i in range(_LANES):
        near, far = nothing, nothing
        for row in range(_ROWS):
            value = values[i + row * _LANES]
            bit = _shift(one, np.uint32((value >> np.uint32(21)) & np.uint32(28)))
            size = np.uint32(value & _SIZE)
            lowest = min(lowest, size)
            near = np.uint32(near + bit)
            far = np.uint32(far + (bit if size < edge else nothing))
        even[i] += near & nibbles
        odd[i] += (near >> np.uint32(4)) & nibbles
        even_far[i] += far & nibbles
        odd_far[i] += (far >> np.uint32(4)) & nibbles
    return lowest


@numba.njit(nogil=True, cache=True)
def _move_rare(values, top, table):  # type: ignore[no-untyped-def]
    """Count what is more than 15 below `top` for its exponent, and no more for the one of the far ones that is equal modulo 8."""
    least, found, place = np.uint32((top - 15) << 23), np.uint32(0), np.uint32(0)
    for i in range(_GROUP):
        if values[i] & _SIZE < least:
            found = np.uint32(found + np.uint32(1))
            place = np.uint32(place + np.uint32(i))
    if found == 1:  # as a rule
        _move(values[place], top, table)
        return
    for i in range(_GROUP):
        if values[i] & _SIZE < least:
            _move(values[i], top, table)


@numba.njit(nogil=True, cache=True)
def _move(value, top, table):  # type: ignore[no-untyped-def]
    exponent = np.int64((value & _EXPONENT) >> np.uint32(23))
    table[exponent] += 1
    table[exponent + (top - 8 - exponent) // 8 * 8] -= 1


@numba.njit(nogil=True, cache=True)
def _add_bytes(counted, far, top, odd, table):  # type: ignore[no-untyped-def]
    """Add the bytes of all lanes to the table: of even exponents, or of odd ones. Two bytes are summed in one number."""
    pair, half, byte = np.uint32(0x00FF00FF), np.uint32(16), np.uint32(8)
    first, second, first_far, second_far = np.uint32(0), np.uint32(0), np.uint32(0), np.uint32(0)
    for i in range(_LANES):
        first = np.uint32(first + (counted[i] & pair))
        second = np.uint32(second + ((counted[i] >> byte) & pair))
        first_far = np.uint32(first_far + (far[i] & pair))
        second_far = np.uint32(second_far + ((far[i] >> byte) & pair))
    low = np.uint32(0xFFFF)
    _add_exponent(first & low, first_far & low, top, odd, table)
    _add_exponent(second & low, second_far & low, top, 2 + odd, table)
    _add_exponent(first >> half, first_far >> half, top, 4 + odd, table)
    _add_exponent(second >> half, second_far >> half, top, 6 + odd, table)


@numba.njit(nogil=True, cache=True)
def _add_exponent(both, below, top, modulo, table):  # type: ignore[no-untyped-def]
    """Add what was counted of the highest exponent up to `top` that leaves `modulo`, and of the one 8 below it."""
    exponent = top - (top - modulo) % 8
    if exponent >= 0:
        table[exponent] += np.int64(both) - np.int64(below)
    if exponent >= 8:
        table[exponent - 8] += np.int64(below)


@numba.njit(nogil=True, cache=True, fastmath=_FREE_ORDER)
def _add_pair(a, b, sums):  # type: ignore[no-untyped-def]
    aa, ta, bb, tb, dd, ab = 0.0, 0.0, 0.0, 0.0, 0.0, 0.0
    for i in range(a.size):
        x, y = np.float64(a[i]), np.float64(b[i])
        d = x - y
        aa += x * x
        ta += x
        bb += y * y
        tb += y
        dd += d * d
        ab += x * y
    sums[0] += aa
    sums[1] += ta
    sums[2] += bb
    sums[3] += tb
    sums[4] += dd
    sums[8] += ab


@numba.njit(nogil=True, cache=True, fastmath=_FREE_ORDER)
def _add_three(a, b, p, sums):  # type: ignore[no-untyped-def]
    aa, ta, bb, tb, dd = 0.0, 0.0, 0.0, 0.0, 0.0
    pp, uu, vv, ab, uv = 0.0, 0.0, 0.0, 0.0, 0.0
    for i in range(a.size):
        x, y, q = np.float64(a[i]), np.float64(b[i]), np.float64(p[i])
        d, u, v = x - y, x - q, y - q
        aa += x * x
        ta += x
        bb += y * y
        tb += y
        dd += d * d
        pp += q * q
        uu += u * u
        vv += v * v
        ab += x * y
        uv += u * v
    sums[0] += aa
    sums[1] += ta
    sums[2] += bb
    sums[3] += tb
    sums[4] += dd
    sums[5] += pp
    sums[6] += uu
    sums[7] += vv
    sums[8] += ab
    sums[9] += uv
