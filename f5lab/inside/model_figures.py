"""Figures of what happens inside a model, and of its settings: trajectories, activations, alignments, grids, blends."""

from collections.abc import Mapping, Sequence

import matplotlib.pyplot as plt
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from f5lab.blends import Landscape, Mix
from f5lab.grids import MEASURES, Change
from f5lab.inside.activations import ATTENTION, FEED_FORWARD, INPUT, STREAM, TEXT, VELOCITY, Divergence, Stage
from f5lab.inside.alignments import Alignment, Alignments
from f5lab.inside.trajectories import Pair, Trajectory
from f5lab.plots import HOP_S, PALETTE, label_text, plot_mel

COLUMNS = 6
_PARTS = {STREAM: "output of the block", ATTENTION: "attention branch", FEED_FORWARD: "feed-forward branch"}


def step_grid(paths: Sequence[tuple[str, Trajectory]], *, columns: int = COLUMNS, caption: str = "") -> Figure:
    """Draw the mel that a step points to, one row a trajectory, at steps spread evenly; the last column is the final mel."""
    figure, axes = plt.subplots(
        len(paths),
        columns,
        figsize=(1.75 * columns + 0.6, 1.75 * len(paths) + 0.5),
        squeeze=False,
        sharey=True,
        sharex="row",
    )
    for row, (name, path) in zip(axes, paths):
        estimates = path.estimates
        steps = np.unique(np.linspace(0, len(estimates) - 1, columns - 1).round().astype(int))
        panels = [(f"step {k}, t = {path.times[k]:.2f}", estimates[k]) for k in steps] + [("final mel", path.mel)]
        for ax, (title, mel) in zip(row, panels):
            mesh = plot_mel(mel, ax, title=title)
            ax.set_ylabel("")
        for ax in row[len(panels) :]:
            ax.set_visible(False)
        row[0].set_ylabel(f"{name}\nmel channel")
    figure.colorbar(mesh, ax=axes, label="log-mel (nat)", fraction=0.02)
    figure.suptitle(label_text(caption, 240), fontsize=8, color="#555")
    return figure


def one_step(paths: Sequence[tuple[str, Trajectory]], step: int) -> Figure:
    """Draw the mel that one step points to, and the state that the step starts from, a row for each trajectory."""
    figure, axes = plt.subplots(len(paths), 2, figsize=(8.4, 1.9 * len(paths)), squeeze=False)
    for row, (name, path) in zip(axes, paths):
        plot_mel(path.states[step, path.start :], row[0], title=f"{name}: state, t = {path.times[step]:.3f}")
        speed = path.velocity_norms[step]
        mesh = plot_mel(path.estimates[step], row[1], title=f"points to; velocity RMS {speed:.2f}")
    figure.colorbar(mesh, ax=axes, label="log-mel (nat)", fraction=0.03)
    return figure


def partings(pair: Pair, *, caption: str = "") -> Figure:
    """Draw velocity and distance of two trajectories over flow time, and the distance over flow time and the clip."""
    if pair.given is None or pair.trained is None or pair.parting is None or pair.between_seeds is None:
        raise ValueError(f"nothing to draw: {pair.problem}")
    figure, axes = plt.subplots(2, 2, figsize=(9.2, 4.6), width_ratios=(1, 1.35))
    (speed, whole), (far, final) = axes
    times, parting = pair.parting.times, pair.parting
    for colour, name, path in zip(PALETTE[1::-1], ("as it is", "model as trained"), (pair.given, pair.trained)):
        speed.plot(times, path.velocity_norms, ".-", color=colour, label=f"velocity, {name}")
        speed.plot(times, path.guidance, ":", color=colour, label=f"guidance, {name}")
    speed.set(xlabel="flow time t", ylabel="RMS (nat per unit of t)", ylim=(0, None))
    far.plot(times, parting.by_step, ".-", color=PALETTE[3], label="as it is, from as trained")
    far.plot(times, pair.between_seeds.by_step, "--", color=PALETTE[4], label="as trained, two seeds")
    far.set(xlabel="flow time t", ylabel="mel estimates apart (nat)", ylim=(0, None))
    for ax in (speed, far):
        _legend_above(ax)
    seconds, steps = np.arange(parting.apart.shape[1] + 1) * HOP_S, np.arange(len(times) + 1)
    mesh = whole.pcolormesh(seconds, steps, parting.apart, cmap="viridis", vmin=0, rasterized=True)
    ticks = np.unique(np.linspace(0, len(times) - 1, 6).round().astype(int))
    whole.set_yticks(ticks + 0.5, [f"{k} ({times[k]:.2f})" for k in ticks], fontsize=7)
    whole.set(xlabel="time in the generated clip (s)", ylabel="step (t)")
    figure.colorbar(mesh, ax=whole, label="apart (nat)")
    final.plot(seconds[:-1], parting.final, color=PALETTE[3], label="as it is, from as trained")
    final.plot(
        seconds[: len(pair.between_seeds.final)], pair.between_seeds.final, "--", color=PALETTE[4], label="two seeds"
    )
    if span := parting.densest_half_s:
        final.axvspan(*span, color=PALETTE[3], alpha=0.12, label="holds half of it")
    _legend_above(final, columns=3)
    final.set(xlabel="time in the generated clip (s)", ylabel="final mels apart (nat)", ylim=(0, None))
    figure.suptitle(label_text(caption, 240), fontsize=8, color="#555")
    return figure


def _legend_above(ax: Axes, columns: int = 2) -> None:
    """Place a legend over the axes, where it hides no curve."""
    ax.legend(fontsize=6.5, loc="lower center", bbox_to_anchor=(0.5, 1.0), ncol=columns, frameon=False, borderaxespad=0.1)


def divergences(found: Divergence, *, caption: str = "") -> Figure:
    """Draw relative L2 (logarithmic) and cosine of two models' activations along the forward pass.

    Lines are means over the passes, bands their range; the branches of a block are drawn at its number.
    """
    figure, axes = plt.subplots(1, 2, figsize=(9.2, 3.1))
    blocks = sorted({stage.block for stage in found.stages if stage.block is not None})
    singles = {TEXT: -2, INPUT: -1, VELOCITY: len(blocks)}
    present = {part: at for part, at in singles.items() if Stage(part) in found.stages}
    for colour, (part, name) in zip(PALETTE, _PARTS.items()):
        numbers, relative, cosine = found.series(part)
        for ax, values in zip(axes, (relative, cosine)):
            if numbers:
                ax.fill_between(numbers, values.min(1), values.max(1), color=colour, alpha=0.15, lw=0)
                ax.plot(numbers, values.mean(1), "o-", ms=3, color=colour, label=name)
    for part, at in present.items():
        for ax, values in zip(axes, found.at(part)):
            ax.plot([at, at], [values.min(), values.max()], color="black", lw=1)
            ax.plot(at, values.mean(), "D", ms=4, color="black")
    step = max(1, len(blocks) // 12)
    ticks = {**{at: part for part, at in present.items()}, **{k: f"block {k}" for k in blocks[::step]}}
    for ax in axes:
        ax.set_xticks(list(ticks), list(ticks.values()), rotation=45, ha="right", fontsize=7)
    axes[0].set_yscale("symlog", linthresh=1e-6)
    axes[0].set(ylabel="relative L2 difference", ylim=(0, None))
    axes[1].set(ylabel="cosine")
    axes[0].legend(fontsize=7)
    figure.suptitle(label_text(caption, 240), fontsize=8, color="#555")
    return figure


def character_maps(found: Sequence[tuple[str, Alignment]], *, caption: str = "") -> Figure:
    """Draw characters (rows, read downwards) against time, one panel each: how much each frame listens to each character.

    Circles are the characters' centroids, the dashed line is the straight diagonal; all panels have one scale.
    """
    most = max(len(alignment.tokens) for _, alignment in found)
    figure, axes = plt.subplots(1, len(found), figsize=(4.5 * len(found), 0.17 * most + 1.5), squeeze=False)
    highest = max(float(100 * alignment.effect.max()) for _, alignment in found)
    for ax, (name, alignment) in zip(axes.flat, found):
        k, n = alignment.effect.shape
        mesh = ax.pcolormesh(
            np.arange(n + 1) * HOP_S, np.arange(k + 1), 100 * alignment.effect, cmap="viridis", rasterized=True, vmin=0, vmax=highest,
        )  # fmt: skip
        ax.plot([0, n * HOP_S], [0, k], "--", color="white", lw=0.8)
        ax.plot(alignment.centroids_s, np.arange(k) + 0.5, "o", ms=3.5, mfc="none", mec="white")
        ax.set_yticks(
            np.arange(k) + 0.5, [label_text(token.replace(" ", "␣"), 8) for token in alignment.tokens], fontsize=7
        )
        ax.invert_yaxis()
        rank = alignment.rank_correlation
        ax.set_title(
            f"{label_text(name)}: {'no order' if rank is None else f'rank correlation {rank:.2f}'}", loc="left"
        )
        ax.set(xlabel="time in the new clip (s)", ylabel="character of the new text")
        figure.colorbar(mesh, ax=ax, label="change of velocity (% of the flow)")
    figure.suptitle(label_text(caption, 240), fontsize=8, color="#555")
    return figure


def order_maps(found: Mapping[str, Alignments], *, caption: str = "") -> Figure:
    """Draw parts of the text (downwards) against parts of the clip, the mean over recordings: how many times more they have to do
    with each other than their shares alone would give. A model that reads has a red diagonal.
    """
    shown = {name: value for name, side in found.items() if (value := side.excess) is not None}
    figure, axes = plt.subplots(1, max(1, len(shown)), figsize=(4.5 * max(1, len(shown)), 3), squeeze=False)
    for ax, (name, excess) in zip(axes.flat, shown.items()):
        k, n = excess.shape
        x, y = np.linspace(0, 100, n + 1), np.linspace(0, 100, k + 1)
        mesh = ax.pcolormesh(x, y, np.log2(excess), cmap="RdBu_r", vmin=-1.5, vmax=1.5, rasterized=True)
        ax.plot([0, 100], [0, 100], "--", color="black", lw=0.8)
        ax.invert_yaxis()
        ax.set_title(label_text(name), loc="left")
        ax.set(xlabel="place in the new clip (%)", ylabel="place in the new text (%)")
        bar = figure.colorbar(mesh, ax=ax, label="times chance", ticks=[-1, 0, 1])
        bar.ax.set_yticklabels(["½", "1", "2"])
    figure.suptitle(label_text(caption, 240), fontsize=8, color="#555")
    return figure


def setting_changes(found: Sequence[Change], measures: Sequence[str] = MEASURES, *, caption: str = "") -> Figure:
    """Draw each point's difference from the base, a panel for each measure; the grey band is what seeds alone do.

    Lines are 95 % intervals over prompts. Filled: beyond the seeds.
    """
    names = list(dict.fromkeys(change.point for change in found))
    figure, axes = plt.subplots(
        1, len(measures), figsize=(2.4 * len(measures) + 1.2, 0.3 * len(names) + 1.3), sharey=True, squeeze=False
    )
    for ax, measured in zip(axes.flat, measures):
        for change in (c for c in found if c.measure == measured):
            row, (low, high) = names.index(change.point), change.difference.interval
            beyond = change.judgement == "beyond the seeds"
            if change.seed_band is not None:
                ax.fill_betweenx([row - 0.4, row + 0.4], -change.seed_band, change.seed_band, color="#ddd", lw=0)
            if np.isfinite([low, high]).all():
                ax.plot([low, high], [row, row], color=PALETTE[1] if beyond else "#777", lw=2)
            ax.plot(
                change.difference.mean,
                row,
                "o",
                color=PALETTE[1] if beyond else "#777",
                mfc=PALETTE[1] if beyond else "white",
            )
        ax.axvline(0, color="black", lw=0.8)
        ax.set(xlabel=f"{measured}, change")
    axes[0, 0].set_yticks(range(len(names)), [label_text(name) for name in names])
    axes[0, 0].set_ylim(len(names) - 0.4, -0.6)
    figure.suptitle(label_text(caption, 240), fontsize=8, color="#555")
    return figure


def blend_losses(landscape: Landscape, reference: Mix, *, caption: str = "") -> Figure:
    """Draw how much higher the loss of each blend is than the reference's, in percent, paired, with its interval."""
    changes = {mix: landscape.change(mix, reference) for mix in landscape.mixes}
    ordered = sorted(changes, key=lambda mix: changes[mix].mean)
    figure, ax = plt.subplots(figsize=(7.2, 0.24 * len(ordered) + 1.2))
    for row, mix in enumerate(ordered):
        low, high = changes[mix].interval
        colour = PALETTE[2] if high < 0 else PALETTE[1] if low > 0 else "#777"
        if np.isfinite([low, high]).all():
            ax.plot([100 * low, 100 * high], [row, row], color=colour, lw=2)
        ax.plot(100 * changes[mix].mean, row, "o" if len(mix.shares) > 1 else "D", color=colour, ms=4)
    ax.axvline(0, color="black", lw=0.8)
    ax.set_yticks(range(len(ordered)), [mix.name for mix in ordered], fontsize=7)
    ax.set(xlabel=f"loss against {reference.name} (%), paired, 95 % interval", ylim=(len(ordered) - 0.4, -0.6))
    figure.suptitle(label_text(caption, 240), fontsize=8, color="#555")
    return figure
