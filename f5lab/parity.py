"""Stage parity: the same inputs through two constructed models, and the first stage at which they part.

One seeded forward pass each, fp32, eval; no sampling, no audio, no recogniser.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor

from f5lab import factors, models, probes
from f5lab.models import HOP, RATE_HZ
from f5lab.probes import Bench, Item
from f5lab.specs import Recipe

EXACT = 1e-6
"""Relative differences up to this are rounding of another order of additions."""
TIME = 0.2


@dataclass(frozen=True)
class Trace:
    """One forward pass.

    Attributes
    ----------
    tokens : list of int
    stages : dict of str to Tensor
        Text embedding, input embedding, each block and the velocity, [shape=(n, d)].
    """

    tokens: list[int]
    stages: dict[str, Tensor]


@dataclass(frozen=True)
class Parity:
    """Two traces side by side.

    Attributes
    ----------
    differences : dict of str to float
        Relative L2 of each stage, |b - a| / |a|; for token ids the share of positions that differ.
    """

    differences: dict[str, float]

    @property
    def first(self) -> str | None:
        """The first stage that differs; None when all are equal."""
        return next((name for name, value in self.differences.items() if value > EXACT), None)


@torch.inference_mode()
def trace(bench: Bench, recipe: Recipe, item: Item, seed: int = 0) -> Trace:
    """Run one forward pass of a recipe's model on a real recording and keep every stage."""
    model = bench.model(recipe)
    x1 = probes.item_mel(item, recipe).to(bench.device)
    x0 = torch.randn(x1.shape, generator=torch.Generator().manual_seed(seed)).to(bench.device)
    ids = probes.token_ids(model, recipe, item.text)
    start = min(round(item.start_s * RATE_HZ / HOP), len(x1) - 1)
    with _recorded(model.transformer) as stages:
        v = probes.velocity(model, x1, x0, ids, start, (TIME,))
    stages["velocity"] = v[0].cpu()
    return Trace(ids[0].tolist(), {"mel": x1.cpu(), **stages})


@contextmanager
def _recorded(transformer: torch.nn.Module) -> Iterator[dict[str, Tensor]]:
    stages: dict[str, Tensor] = {}
    blocks = getattr(transformer, "transformer_blocks", None)
    if blocks is None:  # UNetT: each layer is a list of modules, the feed-forward is the last one
        blocks = [layer[-1] for layer in transformer.layers]
    named = [("text embedding", transformer.text_embed), ("input embedding", getattr(transformer, "input_embed", None))]
    named += [(f"block {k}", block) for k, block in enumerate(blocks)]

    handles = [
        module.register_forward_hook(partial(_keep, stages, name)) for name, module in named if module is not None
    ]
    try:
        yield stages
    finally:
        for handle in handles:
            handle.remove()


def _keep(stages: dict[str, Tensor], name: str, _module: torch.nn.Module, _inputs: object, output: Any) -> None:
    tensor = output[-1] if isinstance(output, tuple) else output
    stages[name] = tensor[0].float().cpu()


def compare(a: Trace, b: Trace) -> Parity:
    """Return the difference of two traces, stage by stage, in the order of the forward pass."""
    longest = max(len(a.tokens), len(b.tokens), 1)
    same = sum(x == y for x, y in zip(a.tokens, b.tokens))
    differences = {"token ids": 1 - same / longest}
    for name, x in a.stages.items():
        y = b.stages.get(name)
        differences[name] = _relative(x, y)
    return Parity(differences)


def _relative(x: Tensor, y: Tensor | None) -> float:
    if y is None or x.shape != y.shape:
        return float("inf")
    norm = float(torch.linalg.norm(x.double()))
    return float(torch.linalg.norm((y - x).double())) / norm if norm else float(torch.linalg.norm(y.double()) > 0)


@dataclass(frozen=True)
class ParityTable:
    """Parity of all factors together and of each alone, [columns x stages]."""

    columns: tuple[str, ...]
    stages: tuple[str, ...]
    values: np.ndarray
    first: dict[str, str | None]

    @property
    def rows(self) -> list[dict[str, object]]:
        """One row a stage, one column a factor."""
        return [
            {"stage": stage, **{c: float(self.values[j, i]) for j, c in enumerate(self.columns)}}
            for i, stage in enumerate(self.stages)
        ]


def telling_item(items: Sequence[Item], a: Recipe, b: Recipe) -> Item:
    """Return the first recording whose text the two recipes' front ends split differently, else the first."""
    first, second = models.front_end(a.front_end), models.front_end(b.front_end)
    return next(
        (item for item in items if list(map(str, first(item.text))) != list(map(str, second(item.text)))), items[0]
    )


def parity_table(
    bench: Bench, reference: Recipe, other: Recipe, names: Sequence[str], item: Item, seed: int = 0
) -> ParityTable:
    """Trace the reference, the other recipe, and the reference with each named factor alone taken from the other."""
    start = trace(bench, reference, item, seed)
    columns = {"all": other} | {name: factors.switch(reference, other, [name]) for name in names}
    found = {name: compare(start, trace(bench, recipe, item, seed)) for name, recipe in columns.items()}
    stages = tuple(next(iter(found.values())).differences)
    values = np.array([[p.differences[s] for s in stages] for p in found.values()])
    return ParityTable(tuple(found), stages, values, {name: p.first for name, p in found.items()})
