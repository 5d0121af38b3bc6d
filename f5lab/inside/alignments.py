"""Which character drives which frame: occlusion of the text, measured at the velocity.

Each character of the new text is replaced by others that occur in the text; the change in the network's velocity, frame by
frame, is how much that frame listens to that character (occlusion: Zeiler and Fergus 2014, "Visualizing and understanding
convolutional networks", ECCV, sec. 2.1). Where speech follows its text the changes lie along a diagonal.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from scipy import stats
from torch import Tensor

from f5lab import models, probes
from f5lab.errors import LabError, ModelError
from f5lab.models import HOP, RATE_HZ
from f5lab.probes import Bench, Item
from f5lab.specs import Case, Recipe
from f5lab.statistics import Estimate, cluster_mean, paired_difference

TIME = 0.05
"""Flow time: early, when the network must take from the text what the mel does not show yet."""
SUBSTITUTES = 2
NEAR = 0.2
"""Half width of the band around the diagonal, as a share of the clip."""
FEWEST_CHARACTERS = 4
PARTS = (12, 30)
"""Parts of the text and of the clip, in which recordings of different lengths are averaged."""
ORDERED = 0.3
"""Rank correlation from which on characters are said to act in the order of the text; chance is 0."""
SILENT = 1e-3
"""Changes below this share of the flow are no effect of the text; rounding is 1e-6."""
FRAMES = {"cpu": 2400, "mps": 6000, "cuda": 30000}
"""Frames in a batch."""


@dataclass(frozen=True)
class Target:
    """A recording of the probe, and what is said in its part that is not given."""

    item: Item
    text: str


def targets(case: Case, items: Sequence[Item]) -> list[Target]:
    """Return the probe's recordings with their new texts: of a joined clip the second, of a single one the whole."""
    prompts = {prompt.id: prompt for prompt in case.prompts}
    return [Target(i, prompts[i.id].gen_text if i.start_s else i.text) for i in items]


@dataclass(frozen=True)
class Alignment:
    """How much each frame listens to each character.

    Attributes
    ----------
    recipe, item : str
    tokens : tuple of str [length k]
        Of the new text, as the front end splits it.
    time : float
        Flow time.
    effect : np.ndarray [shape=(k, n)]
        RMS change of the velocity when the token is replaced, as a share of the flow's RMS; mean square over substitutes.
    """

    recipe: str
    item: str
    tokens: tuple[str, ...]
    time: float
    effect: np.ndarray

    @property
    def strength(self) -> float:
        """RMS over tokens and frames, as a share of the flow's RMS."""
        return float(np.sqrt(np.square(self.effect, dtype=np.float64).mean()))

    @property
    def centroids_s(self) -> np.ndarray:
        """Where in the new clip each token acts, in seconds [shape=(k,)]: mean frame weighted by squared change."""
        energy = np.square(self.effect, dtype=np.float64)
        middles = (np.arange(energy.shape[1]) + 0.5) * HOP / RATE_HZ
        with np.errstate(invalid="ignore"):
            return energy @ middles / energy.sum(1)

    @property
    def rank_correlation(self) -> float | None:
        """Spearman's correlation of a token's number with its centroid: 1 where speech follows the text, about 0 by chance.

        None where the text has no effect, or is too short to have an order.
        """
        if len(self.tokens) < FEWEST_CHARACTERS or self.strength < SILENT:
            return None
        value = float(stats.spearmanr(np.arange(len(self.tokens)), self.centroids_s).statistic)
        return value if np.isfinite(value) else None

    @property
    def diagonal_share(self) -> float | None:
        """Share of the squared change within `NEAR` of the straight diagonal, less what an even spread would put there.

        0 by chance; None where the text has no effect.
        """
        if self.strength < SILENT:
            return None
        energy, near = np.square(self.effect, dtype=np.float64), self._near
        return float(energy[near].sum() / energy.sum() - near.mean())

    @property
    def excess(self) -> np.ndarray | None:
        """How many times more each part of the clip listens to each part of the text than their shares alone would give,
        [shape=(12, 30)], text downwards; 1 everywhere by chance, None where the text has no effect.

        Some characters and some frames carry more than others: their row and column are divided out, and order is left.
        """
        if self.strength < SILENT:
            return None
        energy = _pooled(np.square(self.effect, dtype=np.float64))
        chance = np.outer(energy.sum(1), energy.sum(0)) / energy.sum()
        return np.divide(energy, chance, out=np.ones_like(energy), where=chance > 0)

    @property
    def _near(self) -> np.ndarray:
        k, n = self.effect.shape
        return np.abs((np.arange(k)[:, None] + 0.5) / k - (np.arange(n) + 0.5) / n) <= NEAR

    @property
    def row(self) -> dict[str, object]:
        """As a table row."""
        return {"recipe": self.recipe, "recording": self.item, "characters": len(self.tokens),
                "rank correlation": self.rank_correlation, "near the diagonal, above chance": self.diagonal_share,
                "effect of one character": self.strength}  # fmt: skip


def _pooled(energy: np.ndarray) -> np.ndarray:
    """Return an array as means over `PARTS` equal parts of its rows and columns."""
    for parts in PARTS:
        summed = np.concatenate([np.zeros((1, energy.shape[1])), np.cumsum(energy, axis=0)])
        edges = np.linspace(0, len(energy), parts + 1)
        at = np.stack([np.interp(edges, np.arange(len(summed)), column) for column in summed.T], axis=1)
        energy = (np.diff(at, axis=0) / np.diff(edges)[:, None]).T
    return energy


@dataclass(frozen=True)
class Alignments:
    """Alignments of one recipe over several recordings.

    Attributes
    ----------
    found : tuple of Alignment
    problem : str
        Why there are none; empty when there are.
    """

    found: tuple[Alignment, ...]
    problem: str = ""

    @property
    def order(self) -> Estimate | None:
        """Mean rank correlation with its interval over recordings; None where it is undefined for all of them.

        A recording whose text has no effect, or no order, counts with 0: nothing in it follows the text.
        """
        values = [a.rank_correlation for a in self.found]
        if all(value is None for value in values):
            return None
        return cluster_mean([value or 0.0 for value in values], within=(-1.0, 1.0))

    @property
    def excess(self) -> np.ndarray | None:
        """Geometric mean of the recordings' `Alignment.excess`; None where the text has no effect in any."""
        values = [np.log(np.maximum(value, 1e-3)) for a in self.found if (value := a.excess) is not None]
        return np.exp(np.mean(values, axis=0)) if values else None

    @property
    def share(self) -> float | None:
        """Mean share near the diagonal above chance; None where the text has no effect in any recording."""
        values = [a.diagonal_share for a in self.found if a.diagonal_share is not None]
        return float(np.mean(values)) if values else None


def align_all(
    bench: Bench, recipe: Recipe, chosen: Sequence[Target], *, time: float = TIME, seed: int = 0
) -> Alignments:
    """Measure several recordings; what prevents it is said, not raised."""
    if not chosen:
        return Alignments((), "no recording with its text")
    try:
        return Alignments(tuple(align(bench, recipe, target, time=time, seed=seed) for target in chosen))
    except LabError as error:
        return Alignments((), str(error))


def order_conclusion(found: Alignments) -> dict[str, Any]:
    """Return verdict, value, unit, interval, n and limitation of: characters act on the clip in the order of the text."""
    if found.problem:
        return {"verdict": "inconclusive", "limitation": found.problem}
    order = found.order
    if order is None:
        return {"verdict": "refuted", "n": len(found.found), "limitation": "the text has no effect on the velocity"}
    if order.n < 2:
        return {
            "verdict": "inconclusive",
            "value": order.mean,
            "unit": "rank correlation",
            "n": 1,
            "limitation": "one recording",
        }
    verdict = "supported" if order.low >= ORDERED else "refuted" if order.high < ORDERED else "inconclusive"
    return {"verdict": verdict, "value": order.mean, "unit": f"rank correlation (from {ORDERED} on: in order)",
            "interval": order.interval, "n": order.n}  # fmt: skip


def loss_conclusion(given: Alignments, trained: Alignments) -> dict[str, Any]:
    """Return the same of: the order that characters have as trained is lost under other settings; paired by recording."""
    if given.problem or trained.problem:
        return {"verdict": "inconclusive", "limitation": given.problem or trained.problem}
    if trained.order is None:
        return {"verdict": "inconclusive", "limitation": "the text has no effect as trained either"}
    sides = [[a.rank_correlation or 0.0 for a in side.found] for side in (given, trained)]
    change = paired_difference(*sides)
    told = change.n > 1
    verdict = "supported" if change.high < 0 else "refuted" if change.low >= 0 else "inconclusive"
    return {"verdict": verdict if told else "inconclusive", "value": change.mean, "unit": "rank correlation, as it is less as trained",
            "interval": change.interval if told else None, "n": change.n, "limitation": "" if told else "one recording"}  # fmt: skip


@torch.inference_mode()
def align(
    bench: Bench, recipe: Recipe, target: Target, *, time: float = TIME, substitutes: int = SUBSTITUTES, seed: int = 0
) -> Alignment:
    """Measure which character drives which frame, with the recording's own noise and everything before its start given.

    Raises
    ------
    ModelError
        The recipe's model cannot be built or run, or no token of the new text can be told from the reference's.
    """
    model, item = bench.model(recipe), target.item
    x1 = probes.item_mel(item, recipe).to(bench.device)
    x0 = torch.randn(x1.shape, generator=torch.Generator().manual_seed(seed)).to(bench.device)
    start = min(round(item.start_s * RATE_HZ / HOP), len(x1) - 1)
    whole = [str(token) for token in models.front_end(recipe.front_end)(item.text)]
    first = _first_new(whole, [str(token) for token in models.front_end(recipe.front_end)(target.text)])
    if first == len(whole):
        raise ModelError(f"the tokens of {target.text[:40]!r} are not the last ones of {item.id}")
    texts = [whole, *replaced(whole, first, substitutes, seed)]
    ids = _ids(model, recipe, texts)
    changes = _changes(model, x1, x0, ids, start, time, bench.device)
    flow = float((x1 - x0)[start:].square().mean())
    energy = changes.reshape(len(whole) - first, substitutes, -1).mean(1) / flow
    if not np.isfinite(energy).all():
        raise ModelError("the velocity is not finite", next_step="see the checkpoint's anatomy and the precision")
    return Alignment(recipe.name, item.id, tuple(whole[first:]), time, np.sqrt(energy))


def _first_new(whole: Sequence[str], new: Sequence[str]) -> int:
    """Return the number of the first token of the longest common end."""
    common = 0
    while common < min(len(whole), len(new)) and whole[-1 - common] == new[-1 - common]:
        common += 1
    return len(whole) - common


def replaced(tokens: Sequence[str], first: int, substitutes: int, seed: int = 0) -> list[list[str]]:
    """Return the text with each token from `first` on replaced by others of the text, drawn without repetition.

    Raises
    ------
    ModelError
        The text has too few different tokens.
    """
    alphabet, rng = sorted(set(tokens)), np.random.default_rng(seed)
    if len(alphabet) <= substitutes:
        raise ModelError(f"a text of {len(alphabet)} different tokens", expected=f"at least {substitutes + 1}")
    changed = []
    for k in range(first, len(tokens)):
        others = [token for token in alphabet if token != tokens[k]]
        for pick in rng.permutation(len(others))[:substitutes]:
            changed.append([*tokens[:k], others[pick], *tokens[k + 1 :]])
    return changed


def _ids(model: torch.nn.Module, recipe: Recipe, texts: Sequence[Sequence[str]]) -> Tensor:
    """Return token indices [shape=(b, nt)], the first text's checked against the rows of the embedding."""
    if recipe.front_end == "byte":
        ids = torch.tensor([[int(token) for token in text] for text in texts])
    else:
        char_map, _ = models.read_vocab_map(recipe.vocab)
        ids = models.upstream().list_str_to_idx([list(text) for text in texts], char_map)
    rows = model.transformer.text_embed.text_embed.num_embeddings - 1
    if int(ids.max()) >= rows:
        raise ModelError(f"token index {int(ids.max())}", expected=f"below {rows}, the rows of the embedding")
    return ids


def _changes(
    model: torch.nn.Module, x1: Tensor, x0: Tensor, ids: Tensor, start: int, time: float, device: str
) -> np.ndarray:
    """Return the mean squared change of velocity of each text but the first, by frame [shape=(b - 1, n - start)]."""
    size = max(1, FRAMES[device.split(":")[0]] // len(x1))
    own = _velocity(model, x1, x0, ids[:1], start, time)
    parts = [
        (_velocity(model, x1, x0, chunk, start, time) - own)[:, start:].square().mean(-1).cpu()
        for chunk in ids[1:].split(size)
    ]
    return torch.cat(parts).double().numpy()


def _velocity(model: torch.nn.Module, x1: Tensor, x0: Tensor, ids: Tensor, start: int, time: float) -> Tensor:
    """Return the velocity under each text [shape=(b, n, d)]; all else is shared."""
    dtype, b = next(model.parameters()).dtype, len(ids)
    xt, cond = (1 - time) * x0 + time * x1, x1.clone()
    cond[start:] = 0
    return model.transformer(
        x=xt.expand(b, -1, -1).to(dtype), cond=cond.expand(b, -1, -1).to(dtype), text=ids.to(x1.device),
        time=torch.full((b,), time, device=x1.device, dtype=dtype), drop_audio_cond=False, drop_text=False,
    ).float()  # fmt: skip
