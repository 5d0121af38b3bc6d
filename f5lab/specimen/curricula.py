"""What teaches a small F5-TTS to read a second text after a prompt: items, the loss on a span, the text gap, updates.

Inference always puts a prompt first, and a model that has only seen single clips ignores the text behind it. Four things
make it read: a fixed set of prompts; loss on exactly the second clip; flow times drawn as ``u ** power``, because only
at small times does the text decide; prompts treated as ``preprocess_ref_audio_text`` and ``infer_process`` treat them,
and targets fitted to the durations that ``infer_process``'s byte rule will give them.
"""

import logging
import math
import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence
from tqdm.auto import tqdm

from f5lab import models
from f5lab.audio import load_wave
from f5lab.errors import SpecimenError
from f5lab.paths import atomic_path, existing_file

logger = logging.getLogger(__name__)

SILENCE = math.log(1e-5)
"""F5-TTS's log-mel of digital silence."""
TARGET_RMS = 0.1
"""``infer_process``: prompts below this level are raised to it."""


@dataclass(frozen=True)
class Clip:
    """One recording of the speech set."""

    path: Path
    text: str
    voice: str
    kind: str


def read_clips(speech: Path) -> list[Clip]:
    """Read ``metadata.csv`` (``file|text|voice|kind|seconds``) of a speech folder; clips that are not there are left out.

    Raises
    ------
    SpecimenError
        No table, or a row without the five columns.
    """
    table = existing_file(speech / "metadata.csv", SpecimenError, "speech table", "pass the folder with metadata.csv")
    rows = [line.split("|") for line in table.read_text(encoding="utf-8").splitlines()[1:]]
    broken = [f"line {number}" for number, row in enumerate(rows, 2) if len(row) != 5]
    if broken:
        raise SpecimenError(
            f"{table}: rows without 5 columns", expected="file|text|voice|kind|seconds", offenders=broken
        )
    clips = [Clip(speech / file, text, voice, kind) for file, text, voice, kind, _ in rows]
    return [clip for clip in clips if clip.path.is_file()]


@dataclass(frozen=True)
class Prompt:
    """A prompt as the model gets it inside ``infer_batch_process``.

    Attributes
    ----------
    mel : Tensor [shape=(n, d)]
        Edges trimmed, 50 ms of silence, level raised.
    text : str
        With the two trailing spaces that upstream puts there.
    gain : float
        What the level was raised by, in units of the log-mel.
    frames : int
        Whole hops of the treated recording: what the byte rule counts with.
    samples : ndarray [shape=(nw,)]
        The treated recording itself.
    """

    mel: Tensor
    text: str
    gain: float
    frames: int
    samples: np.ndarray

    def target_frames(self, text: str) -> int:
        """Return how many frames ``infer_process`` leaves for `text` behind this prompt."""
        size = len(text.encode())
        speed = models.SHORT_SPEED if size < models.SHORT_BYTES else 1.0
        return self.frames + int(self.frames / len(self.text.encode()) * size / speed) - len(self.mel)


@dataclass(frozen=True)
class Voice:
    """The phrases of one voice and its prepared prompts (by row)."""

    name: str
    clips: tuple[Clip, ...]
    mels: tuple[Tensor, ...]
    prompts: dict[int, Prompt]


def wave_mel(samples: np.ndarray) -> Tensor:
    """Return upstream's log-mel of a 24 kHz wave, [shape=(n, d)], float32."""
    mel = models.upstream().MelSpec(**{**models.MEL, "mel_spec_type": "vocos"})
    return mel(torch.from_numpy(np.ascontiguousarray(samples, np.float32))[None])[0].T.contiguous()


def prepare_prompt(clip: Clip) -> Prompt:
    """Treat a clip as upstream's inference treats a reference recording, by upstream's own code."""
    path, text = models.prepare_reference(clip.path, clip.text)
    samples = load_wave(path).samples
    gain = max(1.0, TARGET_RMS / float(np.sqrt(np.mean(np.square(samples)))))
    samples = samples * np.float32(gain)
    return Prompt(wave_mel(samples), text + " ", math.log(gain), len(samples) // models.HOP, samples)


def load_voice(clips: Sequence[Clip], name: str, prompts: Sequence[int]) -> Voice:
    """Load the phrases of one voice.

    Raises
    ------
    SpecimenError
        The speech has no phrase of that voice, or too few for the prompts asked for.
    """
    mine = tuple(clip for clip in clips if clip.voice == name and clip.kind == "phrase")
    if len(mine) <= max(prompts, default=0):
        raise SpecimenError(f"voice {name!r}: {len(mine)} phrases", expected=f"prompt rows {list(prompts)}")
    mels = tuple(wave_mel(load_wave(clip.path).samples) for clip in mine)
    return Voice(name, mine, mels, {row: prepare_prompt(mine[row]) for row in prompts})


def raise_level(mel: Tensor, gain: float) -> Tensor:
    """Raise the level of all frames but digital silence by `gain` (natural log)."""
    return torch.where(mel > SILENCE + 0.01, mel + gain, mel)


def fit_frames(mel: Tensor, frames: int) -> Tensor:
    """Return `mel` with exactly `frames` frames: quiet end cut first, then compressed in time, or silence appended."""
    loud = (mel.mean(-1) > -9.5).nonzero()
    last = int(loud.max()) + 2 if len(loud) else len(mel)
    if frames < len(mel):
        mel = mel[: max(frames, min(last, len(mel)))]
    if frames < len(mel):
        return torch.nn.functional.interpolate(mel.T[None], size=frames, mode="linear")[0].T
    return torch.cat([mel, torch.full((frames - len(mel), mel.shape[1]), SILENCE)])


@dataclass(frozen=True)
class Item:
    """One training item: the whole mel [shape=(n, d)], the first frame that counts, the whole text."""

    mel: Tensor
    start: int
    text: str


@dataclass(frozen=True)
class Stage:
    """One stage of a curriculum; every stage starts from the one before.

    Attributes
    ----------
    voices : dict[str, float]
        Voice and its share.
    shares : dict[str, float]
        Shares of ``single`` clips, ``natural`` pairs (prompt and target as recorded), ``double`` (a clip twice, as the
        trainer's logged samples have it) and ``inference`` (prompt and duration as ``infer_process`` makes them).
    prompts : tuple of int
        Rows of the phrase table that serve as prompts.
    context : float
        Single clips keep up to this share of their frames as given.
    drop_audio, drop_both : float
        Chance of dropping the audio condition, and both conditions (for guidance).
    time_power : float
        Flow times are ``u ** time_power``.
    length_jitter : float
        Share of inference items whose duration departs from the byte rule by up to 15 %.
    silent_weight : float
        Weight of digital silence in the loss.
    frames : int
        Padded mel frames a batch.
    """

    name: str
    updates: int
    peak_lr: float
    voices: dict[str, float]
    shares: dict[str, float]
    prompts: tuple[int, ...] = (5, 11)
    context: float = 0.0
    drop_audio: float = 0.1
    drop_both: float = 0.08
    time_power: float = 1.8
    length_jitter: float = 0.4
    silent_weight: float = 0.1
    frames: int = 1400
    warmup: int = 60
    seed: int = 0
    ema: dict[str, Any] = field(default_factory=lambda: {"beta": 0.995, "update_every": 1, "update_after_step": 0})


def draw_item(stage: Stage, voices: dict[str, Voice], rng: random.Random) -> Item:
    """Draw one training item; prompt and target are always of one voice."""
    voice = voices[rng.choices(list(stage.voices), list(stage.voices.values()))[0]]
    kind = rng.choices(list(stage.shares), list(stage.shares.values()))[0]
    row = rng.randrange(len(voice.clips))
    mel, text = voice.mels[row], voice.clips[row].text
    if kind == "single":
        return Item(mel, int(len(mel) * rng.uniform(0, stage.context)), text)
    prompt_row = row if kind == "double" else rng.choice(stage.prompts)
    if kind in ("double", "natural"):
        first = voice.mels[prompt_row]
        return Item(torch.cat([first, mel]), len(first), f"{voice.clips[prompt_row].text} {text}")
    prompt = voice.prompts[prompt_row]
    frames = prompt.target_frames(text)
    if rng.random() < stage.length_jitter:
        frames = int(min(frames, len(mel) * 1.6) * rng.uniform(0.85, 1.15))
    target = fit_frames(raise_level(mel, prompt.gain), min(frames, 160))
    return Item(torch.cat([prompt.mel, target]), len(prompt.mel), prompt.text + text)


def draw_batch(stage: Stage, voices: dict[str, Voice], rng: random.Random) -> list[Item]:
    """Draw items until the padded batch would exceed the stage's frames."""
    items: list[Item] = []
    longest = 0
    while True:
        item = draw_item(stage, voices, rng)
        longest = max(longest, len(item.mel))
        if items and longest * (len(items) + 1) > stage.frames:
            return items
        items.append(item)


def flow_loss(
    model: torch.nn.Module,
    items: Sequence[Item],
    t: Tensor,
    *,
    generator: torch.Generator | None = None,
    silent_weight: float = 1.0,
    drop_audio: bool = False,
    drop_text: bool = False,
) -> Tensor:
    """Flow-matching loss on the frames from each item's first counted one on.

    Parameters
    ----------
    model : CFM
    items : sequence of Item, length b
    t : Tensor [shape=(b,)]
        Flow times, 0 (noise) to 1 (speech).
    silent_weight : float
        Weight of frames that are digital silence.

    Notes
    -----
    ``mean over counted frames of |v(x_t, t) - (x_1 - x_0)|^2``, ``x_t = (1 - t) x_0 + t x_1``, as upstream's
    ``CFM.forward``; only the choice of the span differs (there random, here the second clip).
    """
    device = next(model.parameters()).device
    x1 = pad_sequence([item.mel for item in items], batch_first=True)
    x0 = torch.randn(x1.shape, generator=generator).to(device)
    x1, t = x1.to(device), t.to(device)
    lens = torch.tensor([len(item.mel) for item in items], device=device)
    starts = torch.tensor([item.start for item in items], device=device)
    text = models.upstream().list_str_to_idx([item.text for item in items], model.vocab_char_map).to(device)
    v, span = span_velocity(model, x1, x0, t, text, lens, starts, drop_audio, drop_text)
    return span_error(v, x1, x0, span, silent_weight)


def span_velocity(
    model: torch.nn.Module, x1: Tensor, x0: Tensor, t: Tensor, text: Tensor, lens: Tensor, starts: Tensor,
    drop_audio: bool, drop_text: bool,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    """Return the velocity [shape=(b, n, d)] with everything before `starts` given, and the counted frames (b, n)."""
    frame = torch.arange(x1.shape[1], device=x1.device)[None]
    valid = frame < lens[:, None]
    span = valid & (frame >= starts[:, None])
    xt = (1 - t[:, None, None]) * x0 + t[:, None, None] * x1
    cond = torch.where(span[..., None], torch.zeros_like(x1), x1)
    v = model.transformer(
        x=xt, cond=cond, text=text, time=t, mask=valid, drop_audio_cond=drop_audio, drop_text=drop_text
    )
    return v, span


def span_error(v: Tensor, x1: Tensor, x0: Tensor, span: Tensor, silent_weight: float = 1.0) -> Tensor:
    """Return the weighted mean squared error of the velocity over the counted frames."""
    weight = span * torch.where((x1 < SILENCE + 0.01).all(-1), silent_weight, 1.0)
    return (((v.float() - (x1 - x0)) ** 2).mean(-1) * weight).sum() / weight.sum()


@dataclass(frozen=True)
class TextGap:
    """Loss of the second clip with its own text and with another phrase's; a reader's first is clearly lower."""

    own: float
    other: float

    @property
    def relative(self) -> float:
        """How much higher the loss is with the other phrase's text."""
        return self.other / self.own - 1


def text_gap(model: torch.nn.Module, voice: Voice, *, n: int = 24, seed: int = 0) -> TextGap:
    """Measure the text gap on `n` natural pairs at times 0.1, 0.4 and 0.7, with the same noise for both texts."""
    was_training, count = model.training, len(voice.clips)
    model.eval()
    rows = []
    with torch.inference_mode():
        for k in range(n):
            first = list(voice.prompts)[k % len(voice.prompts)]
            own, other = (k * 5 + 3) % count, (k * 5 + 14) % count
            mel, start = torch.cat([voice.mels[first], voice.mels[own]]), len(voice.mels[first])
            for t in (0.1, 0.4, 0.7):
                texts = [f"{voice.clips[first].text} {voice.clips[row].text}" for row in (own, other)]
                noise = [torch.Generator().manual_seed(seed * 1000 + k) for _ in texts]
                pairs = [(Item(mel, start, text), g) for text, g in zip(texts, noise)]
                rows.append([flow_loss(model, [item], torch.tensor([t]), generator=g).item() for item, g in pairs])
    model.train(was_training)
    means = np.mean(rows, axis=0)
    return TextGap(float(means[0]), float(means[1]))


def stage_loss(model: torch.nn.Module, stage: Stage, voices: dict[str, Voice]) -> Callable[[int], Tensor]:
    """Return the loss of update number i: the same number always draws the same items, times and noise."""

    def loss(update: int) -> Tensor:
        rng = random.Random(f"{stage.seed}:{stage.name}:{update}")
        generator = torch.Generator().manual_seed(rng.getrandbits(60))
        items, both = draw_batch(stage, voices, rng), rng.random() < stage.drop_both
        return flow_loss(
            model, items, torch.rand(len(items), generator=generator) ** stage.time_power, generator=generator,
            silent_weight=stage.silent_weight, drop_audio=both or rng.random() < stage.drop_audio, drop_text=both,
        )  # fmt: skip

    return loss


def learning_rate(update: int, updates: int, peak: float, warmup: int) -> float:
    """Return the rate of an update (1-based): linear warm-up, then half a cosine down to 0.

    Examples
    --------
    >>> learning_rate(5, 100, 1e-3, 10), learning_rate(100, 100, 1e-3, 10)
    (0.0005, 0.0)
    """
    return peak * min(1.0, update / max(1, warmup)) * (0.5 + 0.5 * math.cos(math.pi * min(1.0, update / updates)))


def run_updates(
    model: torch.nn.Module,
    loss: Callable[[int], Tensor],
    *,
    updates: int,
    peak_lr: float,
    warmup: int,
    state: Path,
    ema: torch.nn.Module | None = None,
    save_every: int = 100,
    stop_after: int | None = None,
    label: str = "",
) -> bool:
    """Run AdamW updates, resuming from `state` where it exists; return whether all updates are done.

    Parameters
    ----------
    loss : callable
        Gives the loss of update i (1-based) and depends on nothing but i and the weights, so that a broken and resumed
        run ends with the weights of an unbroken one.
    stop_after : int, optional
        Stop (and save) after this update.
    """
    optimizer = torch.optim.AdamW(model.parameters(), lr=peak_lr, fused=True)
    done = _resume(state, model, optimizer, ema)
    last = min(updates, stop_after or updates)
    model.train()
    with torch.random.fork_rng(), tqdm(total=updates, initial=done, desc=label, unit="update", disable=None) as bar:
        for update in range(done + 1, last + 1):
            torch.manual_seed(update)  # dropout draws from the global generator
            for group in optimizer.param_groups:
                group["lr"] = learning_rate(update, updates, peak_lr, warmup)
            value = loss(update)
            value.backward()
            torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
            optimizer.zero_grad()
            if ema is not None:
                ema.update()
            bar.update(1)
            bar.set_postfix(loss=f"{value.item():.4f}")
            if update % save_every == 0 or update == last:
                _save(state, model, optimizer, ema, update)
    return max(done, last) >= updates


def _save(
    state: Path, model: torch.nn.Module, optimizer: torch.optim.Optimizer, ema: torch.nn.Module | None, update: int
) -> None:
    with atomic_path(state) as temporary:
        torch.save(
            {
                "model": model.state_dict(), "optimizer": optimizer.state_dict(),
                "ema": ema.state_dict() if ema is not None else None, "update": update,
            },
            temporary,
        )  # fmt: skip


def _resume(state: Path, model: torch.nn.Module, optimizer: torch.optim.Optimizer, ema: torch.nn.Module | None) -> int:
    if not state.is_file():
        return 0
    saved = torch.load(state, weights_only=True, map_location="cpu")
    model.load_state_dict(saved["model"])
    optimizer.load_state_dict(saved["optimizer"])
    if ema is not None:
        ema.load_state_dict(saved["ema"])
    logger.info("%s: resumed after update %d", state, saved["update"])
    return int(saved["update"])
