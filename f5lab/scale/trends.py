"""What changes along a series of checkpoints or a grid of settings: which is best, what it is not told apart from, figures."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial

import matplotlib.pyplot as plt
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from f5lab.plots import PALETTE
from f5lab.statistics import DIFFERENCE, SHARE, Estimate, cluster_mean, geometric_mean, paired_difference, paired_ratio

ALL_EQUAL_FROM = 5
"""Differences that are all equal have an interval without width; they tell recipes apart from this many on, as a sign test does."""
FEW_GROUPS = 3
"""With fewer recordings than this, noise draws are resampled instead, as the probe does."""
SLOT_COLOURS = {"raw": PALETTE[0], "ema": PALETTE[1]}


def _without_width(estimate: Estimate) -> bool:
    """Return whether all values are equal, but for rounding."""
    return bool(np.isclose(estimate.low, estimate.high, rtol=0, atol=1e-9))


@dataclass(frozen=True)
class Rival:
    """One candidate against the best: how much higher its measure is, paired over the same recordings and noise.

    `worse` is a difference, or of losses the share by which it is higher.
    """

    name: str
    worse: Estimate

    @property
    def tied(self) -> bool:
        """Whether the interval does not exclude that it is as good, or is one of few values that happen to be equal."""
        return not self.worse.low > 0 or (_without_width(self.worse) and self.worse.n < ALL_EQUAL_FROM)


@dataclass(frozen=True)
class Choice:
    """The best of several candidates by one measure, smaller being better.

    Attributes
    ----------
    measure : str
    best : str
    value : Estimate
    rivals : tuple of Rival
        All others, nearest first.
    twins : tuple of str
        Candidates whose every value is the best's: the same weights under another name.
    of_draws : bool
        The intervals are over noise draws of one or two recordings, and say nothing about other recordings.
    ratios : bool
        Losses: compared by their ratios, the mean is the geometric one, as the probe has it.
    left_out : tuple of str
        Candidates that were not measured on everything that the others were, and so were not compared.
    """

    measure: str
    best: str
    value: Estimate
    rivals: tuple[Rival, ...]
    twins: tuple[str, ...] = ()
    of_draws: bool = False
    ratios: bool = False
    left_out: tuple[str, ...] = ()

    @property
    def ties(self) -> list[Rival]:
        """Rivals that are not told apart from the best."""
        return [rival for rival in self.rivals if rival.tied]

    @property
    def decided(self) -> bool:
        """Whether every rival is shown to be worse; False without any."""
        return bool(self.rivals) and not self.ties

    @property
    def says(self) -> str:
        """Return the choice in sentences, with its intervals."""
        low, high = self.value.interval
        span = f" [{low:.3f}, {high:.3f}]" if np.isfinite(low) else ""
        over = "noise draws" if self.of_draws else "recordings" if self.measure != "CER" else "prompts"
        text = f"Lowest {self.measure}: {self.best}, {self.value.mean:.3f}{span}, n={self.value.n} {over}."
        if self.twins:
            text += f" The same to the last digit: {', '.join(self.twins)}."
        if self.decided:
            others = "Every other one that was compared" if self.left_out else "Every other one"
            text += f" {others} is worse; the nearest, {self.rivals[0].name}, by {self._span(self.rivals[0].worse)}."
        elif self.ties:
            listed = ", ".join(f"{r.name} ({self._span(r.worse)})" for r in self.ties[:4])
            more = f" and {len(self.ties) - 4} more" if len(self.ties) > 4 else ""
            text += f" Not told apart from it: {listed}{more}. Take any of them, or measure on more {over}."
        elif not self.twins:
            text += " There is nothing to compare it with."
        if self.left_out:
            text += f" Not compared, since not measured on every prompt and seed: {', '.join(self.left_out)}."
        return text

    def _span(self, worse: Estimate) -> str:
        scale, unit = (100, " %") if self.ratios else (1, "")
        mean = f"{scale * worse.mean:+.2g}{unit}"
        if not np.isfinite(worse.low):
            return f"{mean}, no interval from one"
        if _without_width(worse):
            return f"{mean} in each of {worse.n}"
        return f"{mean} [{scale * worse.low:+.2g}, {scale * worse.high:+.2g}]"


def choose(
    measure: str, candidates: Mapping[str, Sequence[float] | np.ndarray], groups: Sequence[object] | None = None, *, ratios: bool = False
) -> Choice | None:
    """Return the candidate with the lowest mean, and how the others compare in pairs; None without candidates.

    Parameters
    ----------
    candidates : mapping of str to array [shape=(recordings, draws)] or [shape=(k,)]
        All of one shape, values in the same order.
    groups : sequence [shape=(k,)], optional
        Prompt of each value of a flat array; without it rows of the array are the groups.
    ratios : bool
        Compare by ratios, as losses are; every value above 0 then.

    Notes
    -----
    The lowest of many means is a little too low by the very choice; the paired intervals are of single comparisons, not
    of all of them together.
    """
    arrays = {name: np.asarray(values, dtype=np.float64) for name, values in candidates.items()}
    if not arrays:
        return None
    average, compare = (geometric_mean, paired_ratio) if ratios else (cluster_mean, paired_difference)
    if measure == "CER":
        average, compare = partial(cluster_mean, within=SHARE), partial(paired_difference, within=DIFFERENCE)
    flat, labels, of_draws = _flattened(arrays, groups, ratios)
    best = min(flat, key=lambda name: average(flat[name], labels).mean)
    twins = tuple(n for n, values in arrays.items() if n != best and np.array_equal(values, arrays[best]))
    rivals = [
        Rival(name, _counted(compare(values, flat[best], labels), arrays[best], of_draws))
        for name, values in flat.items() if name != best and name not in twins
    ]  # fmt: skip
    value = _counted(average(flat[best], labels), arrays[best], of_draws)
    return Choice(measure, best, value, tuple(sorted(rivals, key=lambda r: r.worse.mean)), twins, of_draws, ratios)


def _flattened(
    arrays: Mapping[str, np.ndarray], groups: Sequence[object] | None, ratios: bool
) -> tuple[dict[str, np.ndarray], Sequence[object] | None, bool]:
    first = next(iter(arrays.values()))
    if first.ndim == 1:
        return dict(arrays), groups, False
    if len(first) >= FEW_GROUPS:
        means = {n: np.exp(np.log(values).mean(1)) if ratios else values.mean(1) for n, values in arrays.items()}
        return means, None, False
    return {name: values.ravel() for name, values in arrays.items()}, None, True


def _counted(estimate: Estimate, values: np.ndarray, of_draws: bool) -> Estimate:
    return replace(estimate, n=values.size) if of_draws else estimate


def plot_lines(
    ax: Axes, lines: Mapping[str, Sequence[tuple[float, float | None]]], *, ylabel: str, xlabel: str = "update",
    spans: Mapping[str, Sequence[tuple[float, float, float]]] | None = None, mark: tuple[float, float] | None = None,
) -> None:  # fmt: skip
    """Draw one line a set of weights over updates.

    Parameters
    ----------
    lines : mapping of str to points (x, y)
        A y of None leaves a gap.
    spans : mapping of str to (x, low, high), optional
        95 % intervals.
    mark : (x, y), optional
        The best point.
    """
    for number, (name, points) in enumerate(lines.items()):
        colour = SLOT_COLOURS.get(name, PALETTE[number % len(PALETTE)])
        x, y = zip(*((x, np.nan if y is None else y) for x, y in points)) if points else ((), ())
        ax.plot(x, y, marker="os^Dv"[number % 5], ms=4, lw=1.3, color=colour, label={"ema": "EMA"}.get(name, name))
        for at, low, high in (spans or {}).get(name, ()):
            if np.isfinite([low, high]).all():
                ax.plot([at, at], [low, high], color=colour, lw=1, alpha=0.7)
    if mark is not None:
        ax.plot(*mark, marker="o", ms=11, mfc="none", mec="black", lw=0, label="lowest")
    if lines:
        ax.legend(fontsize=7, loc="best")
    ax.set(xlabel=xlabel, ylabel=ylabel)
    ax.xaxis.set_major_locator(MaxNLocator("auto", integer=True))
    ax.ticklabel_format(useOffset=False)
    ax.grid(axis="y", lw=0.4, color="#ddd")


def panels(count: int, *, caption: str, columns: int = 2) -> tuple[Figure, list[Axes]]:
    """Return a figure of `count` panels in rows of two, with a caption that names what it rests on."""
    rows = -(-count // columns)
    figure, axes = plt.subplots(rows, columns, figsize=(4.6 * columns, 2.5 * rows), squeeze=False, layout="constrained")
    for ax in list(axes.flat)[count:]:
        ax.set_visible(False)
    figure.suptitle(caption, fontsize=8, color="#555")
    return figure, list(axes.flat)[:count]
