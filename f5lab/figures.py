"""Figures of checkpoints and vocabs: heat maps by module and layer, the EMA's schedule, rows of the text embedding."""

from collections.abc import Callable, Mapping, Sequence

import matplotlib.pyplot as plt
import numpy as np
from matplotlib.axes import Axes
from matplotlib.collections import QuadMesh
from matplotlib.figure import Figure

from f5lab import ema
from f5lab.plots import PALETTE, label_text
from f5lab.weights.anatomy import RowMatch, TensorFacts, sum_histograms
from f5lab.weights.diffs import Comparison, Sums
from f5lab.weights.sums import BIAS, bin_range


def plot_layer_map(values: Mapping[tuple[str, int | None], float | None], ax: Axes, *, label: str) -> QuadMesh:
    """Draw one value for each module (rows) and layer (columns); what has no layer stands in the column ``-``.

    Parameters
    ----------
    values : mapping of (module, layer) to float
        None and missing pairs are left white.
    label : str
        Quantity with its unit, for the colour bar.
    """
    names = list(dict.fromkeys(module for module, _ in values))
    layers = sorted({layer for _, layer in values if layer is not None})
    columns: list[int | None] = [None, *layers]
    grid = np.full((len(names), len(columns)), np.nan)
    for (module, layer), value in values.items():
        grid[names.index(module), columns.index(layer)] = np.nan if value is None else value
    mesh = ax.pcolormesh(grid, cmap="viridis", edgecolors="white", linewidth=0.5)
    ticks = ["-", *map(str, layers)]
    step = max(1, len(ticks) // 16)
    ax.set_xticks(np.arange(len(ticks))[::step] + 0.5, ticks[::step])
    ax.set_yticks(np.arange(len(names)) + 0.5, [label_text(name, 40) for name in names])
    ax.invert_yaxis()
    ax.set(xlabel="layer (-: none)", ylabel="module")
    ax.figure.colorbar(mesh, ax=ax, label=label)
    return mesh


def layer_maps(
    comparison: Comparison, panels: Sequence[tuple[str, Callable[[Sums], float | None]]], *, caption: str = ""
) -> Figure:
    """Draw heat maps of a comparison, one for each (label, figure of the sums)."""
    layers = comparison.layers()
    height = 0.28 * len({module for module, _ in layers}) + 1.1
    figure, axes = plt.subplots(len(panels), 1, figsize=(7.6, height * len(panels)), squeeze=False)
    for ax, (label, pick) in zip(axes.flat, panels, strict=True):
        plot_layer_map({key: pick(sums) for key, sums in layers.items()}, ax, label=label)
    figure.suptitle(label_text(caption, 240), fontsize=8, color="#555")
    return figure


def magnitudes(facts: Mapping[str, Sequence[TensorFacts]], *, caption: str = "") -> Figure:
    """Draw how many weights of each slot have which magnitude, by powers of two, on logarithmic scales.

    Parameters
    ----------
    facts : mapping of str to sequence of TensorFacts
        By slot.
    """
    figure, ax = plt.subplots(figsize=(7.6, 2.8))
    for i, (slot, members) in enumerate(facts.items()):
        counts = sum_histograms(members)
        zeros = counts.pop(0, 0)
        keys = range(min(counts, default=BIAS), max(counts, default=BIAS) + 1)
        heights = [counts.get(key, 0) for key in keys]
        edges = [bin_range(key)[0] for key in keys] + [bin_range(keys[-1])[1]]
        ax.stairs(heights, edges, color=PALETTE[i], label=f"{label_text(slot, 20)} ({zeros:,} zero or below 2^-126)")
    ax.axvline(2.0**-14, color="#888", lw=0.8, ls=":", label="fp16: fewer digits left of this")
    ax.set(xscale="log", yscale="log", xlabel="|weight|", ylabel="weights in a power of two")
    ax.legend()
    figure.suptitle(label_text(caption, 240), fontsize=8, color="#555")
    return figure


def rms_map(facts: Sequence[TensorFacts], *, caption: str = "") -> Figure:
    """Draw the root mean square of the weights by module and layer, on a logarithmic scale."""
    energy: dict[tuple[str, int | None], list[float]] = {}
    for fact in facts:
        total = energy.setdefault((fact.module, fact.layer), [0.0, 0.0])
        total[0] += (fact.norm or 0.0) ** 2
        total[1] += fact.parameters
    rms = {key: float(np.log10(np.sqrt(e / n))) if e and n else None for key, (e, n) in energy.items()}
    figure, ax = plt.subplots(figsize=(7.6, 0.28 * len({m for m, _ in rms}) + 1.2))
    plot_layer_map(rms, ax, label="log10 of root mean square")
    figure.suptitle(label_text(caption, 240), fontsize=8, color="#555")
    return figure


def ema_schedule(share: ema.BaseShare, *, caption: str = "") -> Figure:
    """Draw what is left of the base in the EMA against updates, with the inherited step and with a step of 0.

    The band is what any path of the raw weights allows, the point what was measured.
    """
    figure, ax = plt.subplots(figsize=(7.2, 3.0))
    updates = share.updates or 10_000
    marks = np.unique(np.linspace(0, updates, 60).astype(int))
    starts = {"step set to 0": 0}
    if share.step_before:
        starts[f"step inherited ({share.step_before:,})"] = share.step_before
    for color, (name, start) in zip(PALETTE[1:], starts.items(), strict=False):
        left = np.append(1.0, np.cumprod(ema.decays(start, updates)))
        ax.plot(marks, 100 * left[marks], color=color, label=f"weight of the base, {name}")
    if share.expected is not None:
        ax.plot([updates] * 2, [100 * share.expected_low, 100 * share.expected_high], color=PALETTE[4], lw=5, alpha=0.4,
                solid_capstyle="butt", label="share, any path")  # fmt: skip
        ax.plot(updates, 100 * share.expected, "_", color="black", ms=14, label="share expected")
    if share.measured is not None:
        ax.plot(updates, 100 * share.measured, "o", color=PALETTE[0], label="share measured")
    ax.set(xlabel="optimizer updates since the base", ylabel="base in the EMA (%)", ylim=(-3, 103))
    ax.legend(fontsize=7, loc="best")
    figure.suptitle(label_text(caption, 240), fontsize=8, color="#555")
    return figure


def row_norms(norms: Sequence[float], text_dim: int, untouched: Sequence[int] = (), *, caption: str = "") -> Figure:
    """Draw the L2 norm of each row of the text embedding against its number, with the band of N(0, 1)."""
    figure, ax = plt.subplots(figsize=(7.2, 2.3))
    numbers = np.arange(len(norms))
    ax.axhspan(*(np.sqrt(text_dim) + np.array([-1.4, 1.4])), color=PALETTE[4], alpha=0.2, label="95 % of N(0, 1) rows")
    ax.plot(numbers, norms, ".", ms=4, color=PALETTE[0], label="rows")
    if len(untouched):
        ax.plot(list(untouched), np.asarray(norms)[list(untouched)], "x", color=PALETTE[1], label="never touched")
    ax.set(xlabel="row (0: filler, i + 1: vocab index i)", ylabel="L2 norm")
    ax.legend(fontsize=7, loc="best")
    figure.suptitle(label_text(caption, 240), fontsize=8, color="#555")
    return figure


def row_match(match: RowMatch, *, caption: str = "") -> Figure:
    """Draw the base index with the nearest row for each vocab index of a fine-tune; on the diagonal nothing moved."""
    figure, ax = plt.subplots(figsize=(4.2, 3.6))
    points = ax.scatter(range(len(match.nearest)), match.nearest, c=match.cosine, s=9, cmap="viridis", vmin=0, vmax=1)
    ax.axline((0, 0), slope=1, color="#999", lw=0.6, ls="--")
    ax.set(xlabel="vocab index, this checkpoint", ylabel="nearest index, base")
    figure.colorbar(points, ax=ax, label="cosine")
    figure.suptitle(label_text(caption, 240), fontsize=8, color="#555")
    return figure


def share_by_module(comparison: Comparison, share: ema.BaseShare, *, caption: str = "") -> Figure:
    """Draw the measured share of the base in the EMA by module, with the expected share and all that any path allows."""
    modules = {name: sums.alpha for name, sums in comparison.modules().items() if sums.alpha is not None}
    figure, ax = plt.subplots(figsize=(7.2, 0.26 * len(modules) + 1.2))
    ax.plot([100 * (1 - a) for a in modules.values()], range(len(modules)), "o", color=PALETTE[0], label="measured")
    if share.expected is not None:
        ax.axvspan(100 * share.expected_low, 100 * share.expected_high, color=PALETTE[4], alpha=0.25, label="any path")
        ax.axvline(100 * share.expected, color="black", lw=1, label="expected")
    ax.legend(fontsize=7, loc="upper left", bbox_to_anchor=(1.0, 1.0))
    ax.invert_yaxis()
    ax.set_yticks(range(len(modules)), [label_text(name, 40) for name in modules])
    ax.set(xlabel="base still in the EMA (%)", ylabel="module")
    figure.suptitle(label_text(caption, 240), fontsize=8, color="#555")
    return figure


def stage_map(columns: Sequence[str], stages: Sequence[str], values: np.ndarray, *, caption: str = "") -> Figure:
    """Draw the relative difference of each stage (columns) for each factor (rows), logarithmic; exact zeros are white.

    Parameters
    ----------
    values : ndarray [shape=(factors, stages)]
    """
    figure, ax = plt.subplots(figsize=(8.2, 0.42 * len(columns) + 1.9))
    shown = np.ma.masked_where(values <= 0, np.log10(np.clip(values, 1e-8, 10)))
    mesh = ax.pcolormesh(shown, cmap="viridis", vmin=-6, vmax=0.5, edgecolors="#ddd", linewidth=0.5)
    ax.set_xticks(np.arange(len(stages)) + 0.5, stages, rotation=40, ha="right", fontsize=8)
    ax.set_yticks(np.arange(len(columns)) + 0.5, [label_text(name) for name in columns], fontsize=8)
    ax.invert_yaxis()
    figure.colorbar(mesh, ax=ax, label="log10 relative L2 difference")
    figure.suptitle(label_text(caption, 240), fontsize=8, color="#555")
    return figure


def losses(rows: Mapping[str, tuple[float, float, float]], *, caption: str = "") -> Figure:
    """Draw how much worse each hypothesis explains the recordings, (mean, low, high) in percent; 0 is the reference."""
    figure, ax = plt.subplots(figsize=(7.6, 0.36 * len(rows) + 1.3))
    for row, (mean, low, high) in enumerate(rows.values()):
        colour = PALETTE[1] if low > 0 else PALETTE[2] if high < 0 else "#999"
        ax.plot([low, high] if np.isfinite([low, high]).all() else [mean, mean], [row, row], color=colour, lw=2)
        ax.plot(mean, row, "o", color=colour, ms=5)
    ax.axvline(0, color="black", lw=0.8)
    ax.set(
        yticks=range(len(rows)),
        xlabel="loss against the reference (%), paired, 95 % interval",
        ylim=(-0.6, len(rows) - 0.4),
    )
    ax.set_yticklabels([label_text(row) for row in rows], fontsize=8)
    ax.invert_yaxis()
    figure.suptitle(label_text(caption, 240), fontsize=8, color="#555")
    return figure


def confusion(rows: Sequence[str], columns: Sequence[str], counts: np.ndarray, *, caption: str = "") -> Figure:
    """Draw what was planted (rows) against what was named first (columns), counts [shape=(rows, columns)]."""
    figure, ax = plt.subplots(figsize=(0.24 * len(columns) + 3.2, 0.24 * len(rows) + 2.6))
    ax.pcolormesh(np.ma.masked_equal(counts, 0), cmap="viridis_r", vmin=0, edgecolors="#eee", linewidth=0.4)
    for i, j in zip(*np.nonzero(counts)):
        ax.text(
            j + 0.5,
            i + 0.5,
            str(counts[i, j]),
            ha="center",
            va="center",
            fontsize=6,
            color="white" if counts[i, j] > counts.max() / 2 else "black",
        )
    ax.set_xticks(np.arange(len(columns)) + 0.5, columns, rotation=90, fontsize=6.5)
    ax.set_yticks(np.arange(len(rows)) + 0.5, rows, fontsize=6.5)
    ax.set(xlabel="named first", ylabel="planted")
    ax.invert_yaxis()
    figure.suptitle(label_text(caption, 240), fontsize=8, color="#555")
    return figure
