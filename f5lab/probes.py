"""The probe: how well a configuration explains real speech, without sampling and without a recogniser.

The flow-matching loss of F5-TTS on real recordings, with the same noise, times and masks for every hypothesis, so that
two hypotheses are compared in pairs. The settings that the weights were trained with win.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from f5lab import checkpoints, models, usage
from f5lab.audio import Wave, load_wave, resample
from f5lab.errors import CaseError, ModelError
from f5lab.models import HOP, RATE_HZ
from f5lab.specs import Case, Recipe
from f5lab.statistics import Estimate, paired_ratio

TIMES = (0.05, 0.2, 0.45, 0.75)
"""Flow times, 0 noise to 1 speech. Text decides at small ones, weights and precision show at all."""
LEAST_SECONDS, MAX_SECONDS = 0.5, 20.0
"""Shorter ones hold no sentence: on fragments wrong settings win."""
FEW_ITEMS = 3
"""With fewer recordings than this, intervals are over noise draws instead of recordings."""
MANY_ITEMS, LOSSES, MOST_DRAWS = 8, 8, 6
"""With fewer recordings than `MANY_ITEMS` each is drawn more often, up to `MOST_DRAWS`, so that there are about `LOSSES` losses of a hypothesis."""


@dataclass(frozen=True)
class Item:
    """A real recording with its text.

    Attributes
    ----------
    id : str
    wave : Wave
        At any rate; it is brought to 24 kHz only once its rate is decided upon, for that cuts what lies above 12 kHz.
    text : str
        Of the whole recording.
    start_s : float
        Frames before it are given as condition; the loss counts the rest.
    """

    id: str
    wave: Wave
    text: str
    start_s: float


def real_items(case: Case, limit: int = 8) -> list[Item]:
    """Return what the probe can be run on: reference and real target joined, as inference joins them; single clips where there is
    no target, or both together are too long for training.

    Raises
    ------
    CaseError
        No prompt has a text for its recording.
    """
    items: list[Item] = []
    for prompt in case.prompts[:limit]:
        if not prompt.ref_text.strip():
            continue
        first = load_wave(prompt.ref_audio, rate_hz=RATE_HZ)
        if prompt.gen_audio is None:
            items.append(Item(prompt.id, first, prompt.ref_text, 0.0))
            continue
        second = load_wave(prompt.gen_audio, rate_hz=RATE_HZ)
        if first.seconds + second.seconds > MAX_SECONDS:  # as much of it as fits: the target alone
            items.append(Item(prompt.id, second, prompt.gen_text, 0.0))
            continue
        joined = Wave(np.concatenate([first.samples, second.samples]), RATE_HZ)
        items.append(Item(prompt.id, joined, f"{prompt.ref_text} {prompt.gen_text}", first.seconds))
    fit = [item for item in items if LEAST_SECONDS <= item.wave.seconds <= MAX_SECONDS]
    unique = {(item.text, len(item.wave.samples)): item for item in fit}
    if not unique:
        raise CaseError(
            f"no prompt has a recording of {LEAST_SECONDS} to {MAX_SECONDS:.0f} s with its text", next_step="give one prompt ref_audio and ref_text"
        )
    return list(unique.values())


@dataclass(frozen=True)
class Hypothesis:
    """One configuration to be scored.

    Attributes
    ----------
    recipe : Recipe
        Weights, architecture, vocab, front end, mel type and precision count; the rest does not enter.
    drop_text : bool
        Give no text at all.
    text : callable, optional
        What is done to every text before the front end, such as ``str.lower``.
    rate_ratio : float
        The recordings are taken to have this many times the rate that they state.
    """

    recipe: Recipe
    drop_text: bool = False
    text: Callable[[str], str] | None = None
    rate_ratio: float = 1.0


@dataclass(frozen=True)
class Loss:
    """Loss of a hypothesis: share of the flow's energy left unexplained, [shape=(items, draws)]."""

    values: np.ndarray

    @property
    def mean(self) -> float:
        """Geometric mean over items and draws: the ratio of two is `Probe.compare`'s."""
        return float(np.exp(np.log(self.values).mean()))

    @property
    def by_item(self) -> np.ndarray:
        """Geometric mean of each item over its draws, [shape=(items,)]."""
        return np.exp(np.log(self.values).mean(1))


class Probe:
    """Scores hypotheses on fixed items, noise and times; losses and models are kept.

    Parameters
    ----------
    items : sequence of Item
    draws : int
        Fewest noise draws for each item.
    """

    def __init__(self, items: Sequence[Item], *, draws: int = 1, seed: int = 0, device: str = "cpu") -> None:
        self.items, self.seed, self.device = tuple(items), seed, device
        self.draws = max(draws, _draws(len(items)))
        self.bench = Bench(device)
        self._losses: dict[str, Loss] = {}
        self.forwards = 0

    def loss(self, hypothesis: Hypothesis) -> Loss:
        """Return the loss of a hypothesis.

        Raises
        ------
        ModelError
            The weights do not fit, a token lies outside the embedding, or the loss is not finite.
        """
        key = _key(hypothesis)
        if key not in self._losses:
            with usage.spend(usage.PROBE, len(self.items) * self.draws):
                values = [[self._item_loss(hypothesis, i, k) for k in range(self.draws)] for i in range(len(self.items))]
            self._losses[key] = Loss(np.array(values))
        if not np.isfinite(self._losses[key].values).all():
            raise ModelError("the loss is not finite", next_step="see the checkpoint's anatomy and the precision")
        return self._losses[key]

    def compare(self, a: Hypothesis, b: Hypothesis) -> Estimate:
        """Return by what share the loss of `b` is above that of `a`: `statistics.paired_ratio`, 95 %.

        The interval is over recordings; with fewer than `FEW_ITEMS` of them it is over noise draws, and says nothing
        about other recordings.
        """
        x, y = self.loss(a).values, self.loss(b).values
        recordings = np.repeat(np.arange(len(x)), x.shape[1]) if len(x) >= FEW_ITEMS else None
        return replace(paired_ratio(y.ravel(), x.ravel(), recordings), n=len(x))

    def velocity(self, hypothesis: Hypothesis, number: int, draw: int = 0, *, model: Any = None) -> Tensor:
        """Return the velocity of an item [shape=(times, n, d)]; `model` stands in for the hypothesis's own."""
        return self._forward(hypothesis, number, draw, model)[0]

    def is_finite(self, hypothesis: Hypothesis) -> bool:
        """Return whether the velocity of the first item is finite everywhere, in one forward pass.

        Raises
        ------
        ModelError
            As `loss`.
        RuntimeError
            The device lacks an operation in the hypothesis's precision.
        """
        return bool(torch.isfinite(self.velocity(hypothesis, 0)).all())

    def _item_loss(self, hypothesis: Hypothesis, number: int, draw: int) -> float:
        v, flow, start = self._forward(hypothesis, number, draw)
        self.forwards += 1
        return float(((v - flow)[:, start:] ** 2).mean() / (flow[start:] ** 2).mean())

    @torch.inference_mode()
    def _forward(self, hypothesis: Hypothesis, number: int, draw: int, model: Any = None) -> tuple[Tensor, Tensor, int]:
        """Return velocity [shape=(times, n, d)], flow [shape=(n, d)] and the first frame that counts."""
        item, recipe = self.items[number], hypothesis.recipe
        model = self.bench.model(recipe) if model is None else model
        x1 = item_mel(item, recipe, hypothesis.rate_ratio).to(self.device)
        generator = torch.Generator().manual_seed(self.seed * 10_007 + number * 101 + draw)
        x0 = torch.randn(x1.shape, generator=generator).to(self.device)
        start = min(round(item.start_s / hypothesis.rate_ratio * RATE_HZ / HOP), len(x1) - 1)
        ids = token_ids(model, recipe, item.text, hypothesis)
        v = velocity(model, x1, x0, ids, start, TIMES, drop_text=hypothesis.drop_text)
        return v, x1 - x0, start


def _draws(items: int) -> int:
    return 1 if items >= MANY_ITEMS else min(MOST_DRAWS, -(-LOSSES // max(items, 1)))


def _key(hypothesis: Hypothesis) -> str:
    recipe = hypothesis.recipe
    named = ("checkpoint", "weights", "backbone", "arch", "vocab", "front_end", "mel_spec_type", "precision")
    text = getattr(hypothesis.text, "__qualname__", "")
    return repr([getattr(recipe, n) for n in named] + [hypothesis.drop_text, text, hypothesis.rate_ratio])


def item_mel(item: Item, recipe: Recipe, rate_ratio: float = 1.0) -> Tensor:
    """Return an item's log-mel [shape=(n, 100)] under the recipe's mel type."""
    wave = item.wave
    if rate_ratio != 1.0:
        wave = Wave(wave.samples, round(wave.rate_hz * rate_ratio))
    wave = resample(wave, RATE_HZ)
    return torch.from_numpy(models.mel_spectrogram(wave, recipe.mel_spec_type))


def token_ids(model: torch.nn.Module, recipe: Recipe, text: str, hypothesis: Hypothesis | None = None) -> Tensor:
    """Return a text's token indices [shape=(1, nt)] by the recipe's front end and vocab.

    Raises
    ------
    ModelError
        An index has no row in the embedding: upstream raises an IndexError, or a CUDA assert, at the first forward.
    """
    hypothesis = hypothesis or Hypothesis(recipe)
    given = hypothesis.text(text) if hypothesis.text else text
    tokens = models.front_end(recipe.front_end)(given)
    rows = model.transformer.text_embed.text_embed.num_embeddings - 1
    if recipe.front_end == "byte":
        ids = torch.tensor([tokens])
    else:
        char_map, _ = models.read_vocab_map(recipe.vocab)
        ids = models.upstream().list_str_to_idx([[str(t) for t in tokens]], char_map)
    if int(ids.max()) >= rows:
        worst = int(ids.max())
        raise ModelError(f"token index {worst} of {text[:40]!r}", expected=f"below {rows}, the rows of the embedding")
    return ids


def velocity(
    model: torch.nn.Module, x1: Tensor, x0: Tensor, ids: Tensor, start: int, times: Sequence[float],
    *, drop_text: bool = False,
) -> Tensor:  # fmt: skip
    """Return the predicted velocity [shape=(len(times), n, d)] with everything before frame `start` given.

    ``x_t = (1 - t) x_0 + t x_1`` as in upstream's ``CFM.forward``; the times form the batch, so that no item is padded.
    """
    dtype = next(model.parameters()).dtype
    t = torch.tensor(times, device=x1.device)
    xt = (1 - t[:, None, None]) * x0 + t[:, None, None] * x1
    cond = x1.clone()
    cond[start:] = 0
    b = len(times)
    return model.transformer(
        x=xt.to(dtype), cond=cond.expand(b, -1, -1).to(dtype), text=ids.to(x1.device).expand(b, -1), time=t.to(dtype),
        drop_audio_cond=False, drop_text=drop_text,
    ).float()  # fmt: skip


class Bench:
    """Models for experiments: built as a recipe says, filled with weights whose wrappers' prefixes are stripped.

    Models that differ in nothing that owns a parameter share their weights.
    """

    def __init__(self, device: str = "cpu") -> None:
        self.device = device
        self._models: dict[str, torch.nn.Module] = {}
        self._files: dict[str, checkpoints.Checkpoint] = {}
        self._weights: dict[object, dict[str, Tensor]] = {}

    def checkpoint(self, recipe: Recipe) -> checkpoints.Checkpoint:
        """Return the recipe's opened checkpoint."""
        key = str(recipe.checkpoint)
        if key not in self._files:
            self._files[key] = checkpoints.open_checkpoint(recipe.checkpoint)
        return self._files[key]

    def model(self, recipe: Recipe) -> torch.nn.Module:
        """Return the recipe's CFM, eval mode; vocab files of one size share a model.

        Raises
        ------
        ModelError
            The weights do not fit the architecture or the size of the vocab.
        """
        size = models.read_vocab_map(recipe.vocab, recipe.front_end)[1]
        fields = (recipe.checkpoint, recipe.weights, recipe.backbone, sorted(recipe.arch.items(), key=str), size)
        key = repr((fields, models.pick_precision(recipe.precision, self.device)))
        if key not in self._models:
            built = models.build_cfm(recipe.backbone, recipe.arch, recipe.vocab, front_end=recipe.front_end, empty=True)
            self._models[key] = models.fill(
                built, self._converted(recipe), precision=recipe.precision, device=self.device
            )
        return self._models[key]

    def _converted(self, recipe: Recipe) -> dict[str, Tensor]:
        """Return the recipe's weights in its precision on the bench's device, the same tensors for every model."""
        dtype = models.compute_dtype(recipe.precision, self.device)
        key = (recipe.checkpoint, recipe.weights, dtype)
        if key not in self._weights:
            weights = self.checkpoint(recipe).weights(recipe.weights)
            self._weights[key] = models.converted(weights, dtype, self.device)
        return self._weights[key]

    def forget(self) -> None:
        """Drop all models."""
        self._models.clear()
        self._weights.clear()


@dataclass(frozen=True)
class Scored:
    """A hypothesis with its name, mean loss, and how much higher its loss is than the reference's."""

    name: str
    loss: float | None
    worse: Estimate | None
    problem: str = ""

    @property
    def row(self) -> dict[str, object]:
        """As a table row, percent."""
        if self.worse is None:
            return {"hypothesis": self.name, "loss": self.loss, "worse by %": None, "95 %": None, "says": self.problem}
        low, high = (100 * value for value in self.worse.interval)
        return {
            "hypothesis": self.name, "loss": self.loss, "worse by %": 100 * self.worse.mean, "95 %": f"{low:+.2g} to {high:+.2g}",
            "says": "worse" if low > 0 else "better" if high < 0 else "no difference shown",
        }  # fmt: skip


def grid(probe: Probe, reference: Hypothesis, others: Mapping[str, Hypothesis]) -> list[Scored]:
    """Score hypotheses against a reference; one that cannot be run says why and has no number."""
    rows = [Scored("reference", probe.loss(reference).mean, None, "reference")]
    for name, hypothesis in others.items():
        try:
            rows.append(Scored(name, probe.loss(hypothesis).mean, probe.compare(reference, hypothesis)))
        except ModelError as error:
            rows.append(Scored(name, None, None, str(error)))
    return rows


@dataclass(frozen=True)
class Gate:
    """Whether text matters to the weights: how much higher the loss is without it."""

    gain: Estimate

    @property
    def passed(self) -> bool:
        """Dropping the text raises the loss by at least 2 %, and the interval excludes 0."""
        return self.gain.mean >= 0.02 and self.gain.low > 0


def text_gate(probe: Probe, hypothesis: Hypothesis) -> Gate:
    """Measure what the text is worth: without this, no hypothesis about text or hidden options can be told apart."""
    return Gate(probe.compare(hypothesis, replace(hypothesis, drop_text=True)))
