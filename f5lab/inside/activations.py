"""Activations: what two models compute from the same inputs, module by module, and how far apart they are.

Hooks are put on for one forward pass and taken off again, also when the pass raises: the model is left as it was.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor

from f5lab import probes
from f5lab.errors import ModelError
from f5lab.models import HOP, RATE_HZ
from f5lab.probes import Bench, Item
from f5lab.specs import Recipe

MEL, TEXT, INPUT, VELOCITY = "mel", "text embedding", "input embedding", "velocity"
STREAM, ATTENTION, FEED_FORWARD = "block", "attention", "feed-forward"
"""Parts of a block: its output on the residual stream, and what its two branches add, before their gates."""
EXACT = 1e-6
"""Relative differences up to this are rounding of another order of additions."""


@dataclass(frozen=True)
class Stage:
    """One point of the forward pass: a part of a block, or a part alone (`block` is None)."""

    part: str
    block: int | None = None

    @property
    def name(self) -> str:
        """As in tables: ``block 3``, ``block 3 attention``, ``velocity``."""
        if self.block is None:
            return self.part
        return f"block {self.block}" + ("" if self.part == STREAM else f" {self.part}")


def stages_of(transformer: torch.nn.Module, *, branches: bool = True) -> list[tuple[Stage, torch.nn.Module]]:
    """Return the modules of a backbone that are worth watching, in the order of the forward pass.

    Parameters
    ----------
    branches : bool
        Attention and feed-forward of each block too. UNetT adds its branches outside of any module, so there the
        feed-forward stands for the block when they are not asked for.
    """
    found = [(Stage(TEXT), transformer.text_embed)]
    if hasattr(transformer, "input_embed"):  # MMDiT keeps text and audio apart
        found.append((Stage(INPUT), transformer.input_embed))
    if hasattr(transformer, "transformer_blocks"):
        for k, block in enumerate(transformer.transformer_blocks):
            if branches:
                found.append((Stage(ATTENTION, k), block.attn))
                found.append((Stage(FEED_FORWARD, k), block.ff if hasattr(block, "ff") else block.ff_x))
            found.append((Stage(STREAM, k), block))
    else:
        for k, layer in enumerate(transformer.layers):
            _skip, _norm, attention, _ff_norm, feed_forward = layer
            if branches:
                found.append((Stage(ATTENTION, k), attention))
            found.append((Stage(FEED_FORWARD if branches else STREAM, k), feed_forward))
    return found


@contextmanager
def watched(transformer: torch.nn.Module, *, branches: bool = True) -> Iterator[dict[Stage, Tensor]]:
    """Yield a dict that each forward pass fills: stage to its output [shape=(b, n, d)], float32, on the CPU.

    Of a module that returns audio and text the audio's part is kept. The hooks are off when the block is left.
    """
    kept: dict[Stage, Tensor] = {}
    handles = []
    try:
        for stage, module in stages_of(transformer, branches=branches):
            handles.append(module.register_forward_hook(partial(_keep, kept, stage)))
        yield kept
    finally:
        for handle in handles:
            handle.remove()


def _keep(kept: dict[Stage, Tensor], stage: Stage, _module: torch.nn.Module, _inputs: object, output: Any) -> None:
    if isinstance(output, tuple):  # MMDiT: attention gives (audio, text), a block (text, audio)
        output = output[0] if stage.part == ATTENTION else output[-1]
    kept[stage] = output.float().cpu()


@dataclass(frozen=True)
class Divergence:
    """How far apart two models are, stage by stage.

    Attributes
    ----------
    stages : tuple of Stage
    passes : tuple of (str, float)
        Recording and flow time of each forward pass.
    relative : np.ndarray [shape=(stages, passes)]
        |b - a| / |a|, L2 over the whole activation, 0 or above.
    cosine : np.ndarray [shape=(stages, passes)]
        Of the two activations taken as vectors, -1 to 1; NaN where one is zero.
    problem : str
        Why the models could not be compared; empty when they were.
    """

    stages: tuple[Stage, ...]
    passes: tuple[tuple[str, float], ...]
    relative: np.ndarray
    cosine: np.ndarray
    problem: str = ""

    @property
    def rows(self) -> list[dict[str, object]]:
        """One row a stage: mean and range of the relative difference over the passes, mean cosine."""
        return [
            {"stage": stage.name, "relative L2": float(far.mean()), "least": float(far.min()), "most": float(far.max()),
             "cosine": float(near.mean())}
            for stage, far, near in zip(self.stages, self.relative, self.cosine)
        ]  # fmt: skip

    def series(self, part: str) -> tuple[list[int], np.ndarray, np.ndarray]:
        """Return block numbers, relative differences and cosines [shape=(blocks, passes)] of one part of the blocks."""
        rows = [i for i, stage in enumerate(self.stages) if stage.part == part and stage.block is not None]
        return [int(self.stages[i].block or 0) for i in rows], self.relative[rows], self.cosine[rows]

    def at(self, part: str) -> tuple[np.ndarray, np.ndarray]:
        """Return relative differences and cosines [shape=(passes,)] of a part that belongs to no block."""
        row = self.stages.index(Stage(part))
        return self.relative[row], self.cosine[row]

    @property
    def first(self) -> Stage | None:
        """The first stage that differs in any pass by more than rounding; None when all are equal."""
        return next((s for s, far in zip(self.stages, self.relative) if far.max() > EXACT), None)


def nothing(problem: str) -> Divergence:
    """Return a comparison that could not be made."""
    return Divergence((), (), np.empty((0, 0)), np.empty((0, 0)), problem)


def conclusion(found: Divergence) -> dict[str, Any]:
    """Return verdict, value, unit, n and limitation of: the two models compute different things from the same inputs."""
    if found.problem:
        return {"verdict": "inconclusive", "limitation": found.problem}
    far = float(found.at(VELOCITY)[0].mean())
    return {"verdict": "supported" if found.first else "refuted", "value": far if np.isfinite(far) else None,
            "unit": "relative L2 at the velocity", "n": len({name for name, _ in found.passes}),
            "limitation": "" if np.isfinite(far) else "one of the velocities is zero or not finite"}  # fmt: skip


@torch.inference_mode()
def run_watched(
    bench: Bench, recipe: Recipe, item: Item, time: float, *, seed: int = 0, branches: bool = True
) -> dict[Stage, Tensor]:
    """Run one forward pass of a recipe's model on a real recording and return every stage [shape=(n, d)].

    Inputs are those of the probe: ``x_t`` between seeded noise and the recording, everything before the item's start given.

    Raises
    ------
    ModelError
        The recipe's model cannot be built or run.
    """
    model = bench.model(recipe)
    x1 = probes.item_mel(item, recipe).to(bench.device)
    x0 = torch.randn(x1.shape, generator=torch.Generator().manual_seed(seed)).to(bench.device)
    ids = probes.token_ids(model, recipe, item.text)
    start = min(round(item.start_s * RATE_HZ / HOP), len(x1) - 1)
    with watched(model.transformer, branches=branches) as kept:
        v = probes.velocity(model, x1, x0, ids, start, (time,))
    return {Stage(MEL): x1.cpu(), **{stage: x[0] for stage, x in kept.items()}, Stage(VELOCITY): v[0].float().cpu()}


def diverge(
    bench: Bench, a: Recipe, b: Recipe, items: Sequence[Item], times: Sequence[float] = probes.TIMES, *, seed: int = 0
) -> Divergence:
    """Compare two recipes' models on the same inputs, one forward pass of each for every recording and time.

    Returns
    -------
    Divergence
        With a problem, and no numbers, when one of them cannot be run or their activations have different shapes.
    """
    passes, relative, cosine, stages = [], [], [], ()
    for item in items:
        for time in times:
            try:
                first, second = (run_watched(bench, recipe, item, time, seed=seed) for recipe in (a, b))
            except ModelError as error:
                return nothing(str(error))
            stages = tuple(first)
            odd = [s.name for s in stages if s not in second or first[s].shape != second[s].shape]
            if odd:
                problem = f"activations of {', '.join(odd[:5])} have different shapes in the two models"
                return nothing(problem)
            passes.append((item.id, time))
            relative.append([relative_l2(first[s], second[s]) for s in stages])
            cosine.append([cosine_of(first[s], second[s]) for s in stages])
    return Divergence(stages, tuple(passes), np.array(relative).T, np.array(cosine).T)


def relative_l2(a: Tensor, b: Tensor) -> float:
    """Return |b - a| / |a| in double precision; for a zero `a`, 0 when `b` is zero too, else infinity."""
    norm, far = (float(torch.linalg.norm(x)) for x in (a.double(), b.double() - a.double()))
    return far / norm if norm else (float("inf") if far else 0.0)


def cosine_of(a: Tensor, b: Tensor) -> float:
    """Return the cosine of two activations taken as vectors, NaN where one is zero."""
    x, y = a.double().ravel(), b.double().ravel()
    norms = float(torch.linalg.norm(x) * torch.linalg.norm(y))
    return float(x @ y) / norms if norms else float("nan")
