"""Stage parity: the same inputs through two constructed models, and the first stage at which they part.

One seeded forward pass each, fp32, eval; no sampling, no audio, no recogniser.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from f5lab import models, probes
from f5lab.faults import factors
from f5lab.inside.activations import EXACT, relative_l2, run_watched
from f5lab.probes import Bench, Item
from f5lab.specs import Recipe

TIME = 0.2


@dataclass(frozen=True)
class Trace:
    """One forward pass.

    Attributes
    ----------
    tokens : list of int
    stages : dict of str to Tensor
        Mel, text embedding, input embedding, each block and the velocity, [shape=(n, d)].
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
    ids = probes.token_ids(bench.model(recipe), recipe, item.text)
    stages = run_watched(bench, recipe, item, TIME, seed=seed, branches=False)
    return Trace(ids[0].tolist(), {stage.name: x for stage, x in stages.items()})


def compare(a: Trace, b: Trace) -> Parity:
    """Return the difference of two traces, stage by stage, in the order of the forward pass."""
    longest = max(len(a.tokens), len(b.tokens), 1)
    same = sum(x == y for x, y in zip(a.tokens, b.tokens))
    differences = {"token ids": 1 - same / longest}
    for name, x in a.stages.items():
        y = b.stages.get(name)
        differences[name] = float("inf") if y is None or x.shape != y.shape else relative_l2(x, y)
    return Parity(differences)


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
