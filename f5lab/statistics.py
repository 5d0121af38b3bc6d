"""Intervals and sample sizes, so that no claim rests on one clip."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scipy import stats

RESAMPLES = 2000


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


def bootstrap_mean(values: Sequence[float], groups: Sequence[object] | None = None, *, seed: int = 0) -> Estimate:
    """Return mean and 95 % percentile interval of a cluster bootstrap.

    Clips of one prompt are not independent, so whole groups are drawn with replacement (Field and Welsh 2007,
    "Bootstrapping clustered data", J. R. Stat. Soc. B 69(3)).

    Parameters
    ----------
    values : sequence of float [shape=(k,)]
    groups : sequence [shape=(k,)], optional
        Group (prompt) of each value; left out, each value is a group of its own.
    seed : int
        Of the resampling.

    Returns
    -------
    Estimate
        With one group there is no interval to estimate: low and high are ``-inf`` and ``inf``.

    Raises
    ------
    ValueError
        No values, or a value that is not finite.

    Examples
    --------
    >>> estimate = bootstrap_mean([0.1, 0.2, 0.3, 0.2])
    >>> estimate.n, round(estimate.mean, 3), estimate.low <= estimate.mean <= estimate.high
    (4, 0.2, True)
    """
    data = np.asarray(values, dtype=np.float64)
    if data.size == 0 or not np.isfinite(data).all():
        raise ValueError(f"need finite values, got {data.size} of which {int(np.isfinite(data).sum())} are finite")
    labels = list(range(data.size)) if groups is None else list(groups)
    members: dict[object, list[int]] = {}
    for index, label in enumerate(labels):
        members.setdefault(label, []).append(index)
    sums = np.array([data[i].sum() for i in members.values()])
    sizes = np.array([len(i) for i in members.values()])
    if len(sums) == 1:
        return Estimate(float(data.mean()), -np.inf, np.inf, 1)
    rng = np.random.default_rng(seed)
    draws = rng.integers(0, len(sums), size=(RESAMPLES, len(sums)))
    means = sums[draws].sum(1) / sizes[draws].sum(1)
    low, high = np.quantile(means, [0.025, 0.975])
    return Estimate(float(data.mean()), float(low), float(high), len(sums))


def paired_difference(
    after: Sequence[float], before: Sequence[float], groups: Sequence[object] | None = None, *, seed: int = 0
) -> Estimate:
    """Return the mean of after - before with its interval; pairs share prompt, seed and noise."""
    if len(after) != len(before):
        raise ValueError(f"pairs needed: {len(after)} values after, {len(before)} before")
    return bootstrap_mean(np.asarray(after, float) - np.asarray(before, float), groups, seed=seed)


def prompts_needed(spread: float, difference: float, *, power: float = 0.8, level: float = 0.05) -> int:
    """Return how many prompts a paired comparison needs to show a difference.

    Two-sided z approximation: ``n = ((z_{1-level/2} + z_{power}) * spread / difference)**2`` (Cohen 1988, ch. 2).

    Parameters
    ----------
    spread : float
        Standard deviation of the per-prompt differences.
    difference : float
        Smallest difference worth showing, same unit, not 0.
    """
    z = stats.norm.ppf(1 - level / 2) + stats.norm.ppf(power)
    return max(2, int(np.ceil((z * spread / abs(difference)) ** 2)))
