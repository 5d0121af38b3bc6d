"""Figures: spectrograms, waveforms, distributions. Functions take axes, label units and return what they drew."""

from collections.abc import Mapping, Sequence

import matplotlib.pyplot as plt
import numpy as np
from matplotlib.axes import Axes
from matplotlib.collections import QuadMesh
from matplotlib.figure import Figure

from f5lab.audio import Wave
from f5lab.inert import prose

HOP_S = 256 / 24000
PALETTE = ("#2f6db5", "#c8552b", "#3a8f5c", "#7a5aa6", "#8a8a8a", "#b8922a")


def use_style() -> None:
    """Set the look of every figure: small, light, readable in print."""
    plt.rcParams.update({
        "figure.dpi": 96, "savefig.dpi": 96, "font.size": 9, "axes.spines.top": False, "axes.spines.right": False,
        "axes.grid": False, "legend.frameon": False, "image.cmap": "magma", "axes.titlesize": 9, "figure.constrained_layout.use": True,
    })  # fmt: skip


def label_text(text: str, clip: int = 80) -> str:
    """Return text for a figure: one line, clipped, what can not be seen written out, and never a formula.

    Names out of a checkpoint would otherwise stretch the figure without end, or stop it as a formula with an error.

    Examples
    --------
    >>> label_text("$x_$ \u202e"), label_text("a" * 9, clip=3)
    ('\\\\$x_\\\\$ ⟨U+202E⟩', 'aaa… (+6)')
    """
    return prose(text, clip).replace("$", r"\$")


def plot_mel(mel: np.ndarray, ax: Axes, *, title: str = "", span: tuple[float, float] = (-10.0, 3.0)) -> QuadMesh:
    """Draw a log-mel [shape=(n, 100), natural log] against seconds, on a fixed colour scale so that panels compare."""
    times = np.arange(len(mel) + 1) * HOP_S
    mesh = ax.pcolormesh(times, np.arange(mel.shape[1] + 1), mel.T, vmin=span[0], vmax=span[1], rasterized=True)
    ax.set(xlabel="time (s)", ylabel="mel channel")
    ax.set_title(label_text(title), loc="left")
    return mesh


def plot_wave(wave: Wave, ax: Axes, *, title: str = "") -> None:
    """Draw a waveform against seconds, full scale at ±1."""
    ax.plot(np.arange(len(wave.samples)) / wave.rate_hz, wave.samples, lw=0.4, color=PALETTE[0])
    ax.set(xlabel="time (s)", ylabel="amplitude", ylim=(-1, 1))
    ax.set_title(label_text(title), loc="left")


def mel_grid(panels: Sequence[tuple[str, np.ndarray]], *, columns: int = 2, caption: str = "") -> Figure:
    """Draw several log-mels [shape=(n, 100)] with one colour bar; `caption` names checkpoint and seed."""
    rows = -(-len(panels) // columns)
    figure, axes = plt.subplots(rows, columns, figsize=(4.4 * columns, 1.9 * rows), squeeze=False)
    for ax, (title, mel) in zip(axes.flat, panels):
        mesh = plot_mel(mel, ax, title=title)
    for ax in axes.flat[len(panels) :]:
        ax.set_visible(False)
    figure.colorbar(mesh, ax=axes, label="log-mel (nat)", fraction=0.03)
    figure.suptitle(label_text(caption, 240), fontsize=8, color="#555")
    return figure


def distributions(
    groups: Mapping[str, Sequence[float]], *, xlabel: str, marks: Mapping[str, float] | None = None, caption: str = ""
) -> Figure:
    """Draw one strip of points a group with its mean, and dashed marks for single published figures."""
    figure, ax = plt.subplots(figsize=(7.2, 0.55 * len(groups) + 1.5))
    rng = np.random.default_rng(0)
    for row, values in enumerate(groups.values()):
        data = np.asarray(list(values), float)
        ax.scatter(
            data, row + rng.uniform(-0.17, 0.17, len(data)), s=14, alpha=0.6, color=PALETTE[row % len(PALETTE)], lw=0
        )
        ax.plot([data.mean()] * 2, [row - 0.32, row + 0.32], color="black", lw=1.6)
    for name, value in (marks or {}).items():
        ax.axvline(value, color="#999", lw=0.8, ls="--")
        ax.text(value, len(groups) - 0.42, label_text(name), rotation=60, fontsize=7, ha="left", va="bottom", color="#555")
    ax.set(
        yticks=range(len(groups)),
        yticklabels=[f"{label_text(k)} (n={len(v)})" for k, v in groups.items()],
        xlabel=xlabel,
        ylim=(-0.6, len(groups) - 0.4),
    )
    figure.suptitle(label_text(caption, 240), fontsize=8, color="#555")
    return figure


def intervals(
    rows: Mapping[str, tuple[float, float, float]],
    *,
    xlabel: str,
    lines: Mapping[str, float] | None = None,
    caption: str = "",
) -> Figure:
    """Draw means with intervals, (mean, low, high) a row, and labelled reference lines."""
    figure, ax = plt.subplots(figsize=(7.2, 0.42 * len(rows) + 1.3))
    for row, (mean, low, high) in enumerate(rows.values()):
        bounds = [max(low, 0.0) if np.isfinite(low) else mean, high if np.isfinite(high) else mean]
        ax.plot(bounds, [row, row], color=PALETTE[0], lw=2)
        ax.plot(mean, row, "o", color=PALETTE[0], ms=5)
    for number, (name, value) in enumerate((lines or {}).items()):
        ax.axvline(value, color=PALETTE[1 + number % 5], lw=1, ls="--", label=label_text(name))
    if lines:
        ax.legend(fontsize=7, loc="best")
    ax.set(yticks=range(len(rows)), yticklabels=[label_text(row) for row in rows], xlabel=xlabel, ylim=(-0.6, len(rows) - 0.4))
    ax.invert_yaxis()
    figure.suptitle(label_text(caption, 240), fontsize=8, color="#555")
    return figure
