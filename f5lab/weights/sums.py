"""Figures of one tensor, and of two or three compared, from sums that add up: over chunks, tensors, layers and modules."""

import math
from dataclasses import dataclass, fields

BINS = 256
"""Bins of a histogram of magnitudes, one for each binary exponent of float32."""
BIAS = 127


def vector_cosine(dot: float, first: float, second: float) -> float | None:
    """Return dot / sqrt(first * second), the cosine of two vectors from their dot product and squared lengths."""
    return max(-1.0, min(1.0, dot / math.sqrt(first * second))) if first and second else None


STRAYED, ROUNDED = 0.5, 0.3
"""Cosine of the ways from the base below which an EMA is no average of the raw weights' way: that of a random walk's average
is 0.87. Where rounding makes up more than this share of its way, the cosine is rounding's."""
EQUAL = 1.02
"""How many times as far from the base an EMA may be as the raw weights it follows: rounding alone makes it a little farther."""


@dataclass(frozen=True)
class Sums:
    """Sums over elements from which every figure follows; `b` and `base` may be absent (0).

    With d = a - b, and, where a base P is given, with a = raw R and b = EMA E: u = R - P, v = E - P. Elements that are not
    finite on any side are left out of all sums and of `n`, and counted in `left_out`.
    """

    n: int = 0
    aa: float = 0.0
    bb: float = 0.0
    ab: float = 0.0
    dd: float = 0.0
    largest: float = 0.0
    pp: float = 0.0
    uu: float = 0.0
    vv: float = 0.0
    uv: float = 0.0
    rounding: float = 0.0
    left_out: int = 0

    def __add__(self, other: "Sums") -> "Sums":
        pairs = {f.name: getattr(self, f.name) + getattr(other, f.name) for f in fields(self)}
        return Sums(**{**pairs, "largest": max(self.largest, other.largest)})

    @property
    def relative_l2(self) -> float | None:
        """|a - b| / |a|; None where a is all zero."""
        return math.sqrt(self.dd / self.aa) if self.aa else None

    @property
    def cosine(self) -> float | None:
        """Cosine between a and b; None where one is all zero."""
        return vector_cosine(self.ab, self.aa, self.bb)

    @property
    def alpha(self) -> float | None:
        """<E - P, R - P> / |R - P|^2: how far the EMA has come, 0 base to 1 raw; None where R equals P or no base is
        given."""
        return self.uv / self.uu if self.uu else None

    @property
    def path_cosine(self) -> float | None:
        """Cosine between E - P and R - P."""
        return vector_cosine(self.uv, self.uu, self.vv)

    @property
    def base_between(self) -> bool:
        """Whether the base lies between E and R, nearer to R: no start of a training, but a later snapshot of it."""
        return self.vv > self.uu and self.uv < 0 and not self.strayed

    @property
    def strayed(self) -> bool:
        """Whether E came another way from the base than R, as no average of R's way can."""
        cosine, rounding = self.path_cosine, self.rounding_share or 0.0
        return cosine is not None and abs(cosine) < STRAYED and rounding < ROUNDED

    @property
    def exchanged(self) -> bool:
        """Whether E is farther from the base than R, by more than rounding an equal one makes it: an EMA lags behind."""
        return self.vv > EQUAL**2 * self.uu

    @property
    def moved(self) -> float | None:
        """|R - P| / |P|: how far training moved the raw weights."""
        return math.sqrt(self.uu / self.pp) if self.pp else None

    @property
    def rounding_share(self) -> float | None:
        """Root of (energy of half-precision rounding / energy of b - base); near 1, alpha measures rounding."""
        return math.sqrt(self.rounding / self.vv) if self.vv else None


@dataclass(frozen=True)
class Totals:
    """What one tensor adds up to; energy, total, minimum and maximum over its finite elements only.

    Attributes
    ----------
    n : int
        Elements, whatever they are.
    energy, total : float
        Sums of squares and of values.
    minimum, maximum : float
        Infinite, the wrong way round, where no element is finite.
    nan, inf : int
        Elements that are no number, infinite.
    zeros : int or None
        Elements that are exactly zero; None where they were not counted.
    histogram : tuple of (int, int)
        (bin, elements) of the bins that are not empty, finite elements only. Bin k from 1 to 254 holds
        2^(k - 127) <= |x| < 2^(k - 126), bin 0 zero and whatever is nearer to it than 2^-126; what is beyond float32's
        range is in the last bin. Empty where they were not counted.
    """

    n: int = 0
    energy: float = 0.0
    total: float = 0.0
    minimum: float = math.inf
    maximum: float = -math.inf
    zeros: int | None = None
    nan: int = 0
    inf: int = 0
    histogram: tuple[tuple[int, int], ...] = ()

    def __add__(self, other: "Totals") -> "Totals":
        bins = dict(self.histogram)
        for key, count in other.histogram:
            bins[key] = bins.get(key, 0) + count
        return Totals(
            n=self.n + other.n,
            energy=self.energy + other.energy,
            total=self.total + other.total,
            minimum=min(self.minimum, other.minimum),
            maximum=max(self.maximum, other.maximum),
            zeros=None if self.zeros is None or other.zeros is None else self.zeros + other.zeros,
            nan=self.nan + other.nan,
            inf=self.inf + other.inf,
            histogram=tuple(sorted(bins.items())),
        )

    @property
    def finite(self) -> int:
        """Elements that are numbers."""
        return self.n - self.nan - self.inf


def bin_range(key: int) -> tuple[float, float]:
    """Return the magnitudes that a bin of a histogram lies between, the lower one first.

    Examples
    --------
    >>> bin_range(127), bin_range(126), bin_range(0)
    ((1.0, 2.0), (0.5, 1.0), (0.0, 1.1754943508222875e-38))
    """
    return (2.0 ** (key - BIAS), 2.0 ** (key - BIAS + 1)) if key else (0.0, 2.0 ** (1 - BIAS))
