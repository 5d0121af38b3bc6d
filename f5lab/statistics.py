"""Intervals and sample sizes, so that no claim rests on one clip."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from scipy import stats

RESAMPLES = 2000
SHARE = (0.0, 1.0)
"""What a share, such as a CER that is capped at 1, cannot leave."""
DIFFERENCE = (-1.0, 1.0)
"""What a difference of two shares cannot leave."""
MANY = 20
"""Groups from which on the interval of a mean is a bootstrap's, not Student's t."""


@dataclass(frozen=True)
class Estimate:
    """A mean with its 95 % interval.

    Attributes
    ----------
    mean : float
    low, high : float
    n : int
        Number of independent groups (prompts), not of clips.
    """

    mean: float
    low: float
    high: float
    n: int

    def __str__(self) -> str:
        if not np.isfinite(self.interval).all():
            return f"{self.mean:.3f}, no interval from one, n={self.n}"
        return f"{self.mean:.3f} [{self.low:.3f}, {self.high:.3f}], n={self.n}"

    @property
    def interval(self) -> tuple[float, float]:
        """(low, high)."""
        return (self.low, self.high)

    def separated_from(self, other: "Estimate") -> bool:
        """Whether the two intervals do not overlap."""
        return self.high < other.low or other.high < self.low


def cluster_mean(
    values: Sequence[float], groups: Sequence[object] | None = None, *, within: tuple[float, float] | None = None, seed: int = 0
) -> Estimate:
    """Return a mean with its 95 % interval over groups; clips of one prompt are not independent of each other.

    Below `MANY` groups Student's t on the cluster-robust standard error, with one degree of freedom less than groups
    (Cameron and Miller 2015, "A Practitioner's Guide to Cluster-Robust Inference", J. Human Resources 50(2), VI.D):
    a percentile bootstrap of four groups holds the mean in four cases of five only. From `MANY` on that bootstrap,
    which follows a skewed spread (Field and Welsh 2007, "Bootstrapping clustered data", J. R. Stat. Soc. B 69(3)).

    Parameters
    ----------
    values : sequence of float [shape=(k,)]
    groups : sequence [shape=(k,)], optional
        Group (prompt) of each value; left out, each value is a group of its own.
    within : (float, float), optional
        What the mean cannot leave, such as 0 and 1 for a CER: the interval ends there.
    seed : int
        Of the resampling.

    Returns
    -------
    Estimate
        With one group there is no interval to estimate: low and high are ``-inf`` and ``inf``. Equal values have an
        interval of no width, which says nothing of values that were not seen.

    Raises
    ------
    ValueError
        No values, or a value that is not finite.

    Examples
    --------
    >>> estimate = cluster_mean([0.1, 0.2, 0.3, 0.2])
    >>> estimate.n, round(estimate.mean, 3), round(estimate.low, 3), round(estimate.high, 3)
    (4, 0.2, 0.07, 0.33)
    """
    data = _finite(values)
    sums, sizes = _groups(data, groups)
    mean, count = float(data.mean()), len(sums)
    if count == 1:
        return Estimate(mean, -np.inf, np.inf, 1)
    low, high = _resampled(sums, sizes, seed) if count >= MANY else _by_t(sums, sizes)
    if within is not None:
        low, high = np.clip([low, high], *within)
    return Estimate(mean, float(low), float(high), count)


def _finite(values: Sequence[float]) -> np.ndarray:
    data = np.asarray(values, dtype=np.float64)
    if data.size == 0 or not np.isfinite(data).all():
        raise ValueError(f"need finite values, got {data.size} of which {int(np.isfinite(data).sum())} are finite")
    return data


def _groups(data: np.ndarray, groups: Sequence[object] | None) -> tuple[np.ndarray, np.ndarray]:
    """Return sum and size of each group, in the order in which they come."""
    members: dict[object, list[int]] = {}
    for index, label in enumerate(range(data.size) if groups is None else groups):
        members.setdefault(label, []).append(index)
    return np.array([data[i].sum() for i in members.values()]), np.array([len(i) for i in members.values()])


def _by_t(sums: np.ndarray, sizes: np.ndarray) -> tuple[float, float]:
    count, total = len(sums), sizes.sum()
    mean = sums.sum() / total
    error = np.sqrt(count / (count - 1) * ((sums - mean * sizes) ** 2).sum()) / total
    half = stats.t.ppf(0.975, count - 1) * error
    return mean - half, mean + half


def _resampled(sums: np.ndarray, sizes: np.ndarray, seed: int) -> tuple[float, float]:
    draws = np.random.default_rng(seed).integers(0, len(sums), size=(RESAMPLES, len(sums)))
    low, high = np.quantile(sums[draws].sum(1) / sizes[draws].sum(1), [0.025, 0.975])
    return low, high


def paired_difference(
    after: Sequence[float], before: Sequence[float], groups: Sequence[object] | None = None, *,
    within: tuple[float, float] | None = None, seed: int = 0,
) -> Estimate:  # fmt: skip
    """Return the mean of after - before with its interval; pairs share prompt, seed and noise.

    `within` is what a difference cannot leave: `DIFFERENCE` for one of shares, such as CERs.
    """
    if len(after) != len(before):
        raise ValueError(f"pairs needed: {len(after)} values after, {len(before)} before")
    return cluster_mean(np.asarray(after, float) - np.asarray(before, float), groups, within=within, seed=seed)


def paired_ratio(
    after: Sequence[float], before: Sequence[float], groups: Sequence[object] | None = None, *, seed: int = 0
) -> Estimate:
    """Return by what share `after` is above `before`, with its interval; pairs share recording and noise.

    The geometric mean of the ratios, less 1: `cluster_mean` of their logarithms, turned back. For losses, whose changes multiply: a recording that is
    hard to explain does not weigh more than another, and a skewed spread becomes nearly normal.

    Raises
    ------
    ValueError
        No pairs, or a value that is not above 0 and finite.

    Examples
    --------
    >>> found = paired_ratio([2.0, 8.0], [1.0, 1.0])
    >>> round(found.mean, 3), found.n
    (3.0, 2)
    """
    x, y = np.asarray(before, float), np.asarray(after, float)
    if x.shape != y.shape or not ((x > 0) & (y > 0)).all():
        raise ValueError(f"pairs of values above 0 needed, got {x.size} before, {y.size} after")
    return _turned_back(cluster_mean(np.log(y / x), groups, seed=seed), np.expm1)


def geometric_mean(values: Sequence[float], groups: Sequence[object] | None = None, *, seed: int = 0) -> Estimate:
    """Return a geometric mean with its interval: `cluster_mean` of the logarithms, turned back. For losses, as `paired_ratio`.

    Raises
    ------
    ValueError
        No values, or one that is not above 0 and finite.
    """
    data = np.asarray(values, float)
    if not (data > 0).all():
        raise ValueError(f"values above 0 needed, the lowest is {data.min()}")
    return _turned_back(cluster_mean(np.log(data), groups, seed=seed), np.exp)


def _turned_back(logs: Estimate, back: Callable[[float], float]) -> Estimate:
    low, high = (float(back(v)) if np.isfinite(v) else v for v in logs.interval)
    return Estimate(float(back(logs.mean)), low, high, logs.n)


def prompts_needed(spread: float, difference: float, *, power: float = 0.8, level: float = 0.05) -> int:
    """Return how many prompts a paired comparison needs to show a difference.

    The least n at which a two-sided paired t test reaches the power, by the noncentral t distribution (Cohen 1988,
    "Statistical Power Analysis for the Behavioral Sciences", ch. 2).

    Parameters
    ----------
    spread : float
        Standard deviation of the per-prompt differences, above 0.
    difference : float
        Smallest difference worth showing, same unit, not 0.
    """
    effect = abs(difference) / spread
    z = stats.norm.ppf(1 - level / 2) + stats.norm.ppf(power)
    count = max(2, int((z / effect) ** 2))  # a normal test's, below which no t test gets by
    while stats.nct.sf(stats.t.ppf(1 - level / 2, count - 1), count - 1, effect * np.sqrt(count)) < power:
        count += 1
    return count
