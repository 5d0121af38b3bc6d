"""Several (prompt, seed) pairs of one recipe in one batch, through upstream's own code.

``infer_process`` speaks one text at a time. What it hands to ``CFM.sample`` is captured, calls of equal shape are made as one, and
``infer_process`` is run again with what came out, so that reference, duration, level and vocoder stay upstream's. Every clip keeps
the noise of its own seed. A test holds a batch equal to clips spoken one by one.
"""

import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from f5lab import bars
from f5lab.errors import ModelError
from f5lab.samplers import Sample, Studio, inference_prompt, run_inference, spoken_front_end
from f5lab.specs import Prompt, Recipe

FRAMES = {"cpu": 1200, "mps": 6000, "cuda": 30000}
"""Frames in a batch, guidance's second half not counted: on a CPU more gains nothing."""

Pair = tuple[Prompt, int]


@dataclass(frozen=True)
class Request:
    """What ``infer_batch_process`` asks ``CFM.sample`` for: the prepared reference [shape=(1, nw)], tokens, total frames."""

    cond: Tensor
    text: list[Any]
    duration: int
    options: dict[str, Any]

    @property
    def shape(self) -> tuple[int, ...]:
        """What requests of one batch share."""
        return (self.cond.shape[-1], self.duration)


class _Captured(Exception):
    """Ends ``infer_process`` where it would sample."""


class _Recorder:
    """Stands in for the model and keeps what it is asked for."""

    def __init__(self) -> None:
        self.requests: list[Request] = []

    def sample(self, *, cond: Tensor, text: list[Any], duration: int, **options: Any) -> None:
        """Keep one request."""
        self.requests.append(Request(cond, text, duration, options))
        raise _Captured


class _Player:
    """Stands in for the model and gives out a mel [shape=(1, n, d)] that was sampled before."""

    def __init__(self, mel: Tensor) -> None:
        self.mel = mel

    def sample(self, **_: Any) -> tuple[Tensor, None]:
        """Return the mel, as ``CFM.sample`` does, without a trajectory."""
        return self.mel, None


class _Seeds:
    """One seed after the other: ``CFM.sample`` calls ``torch.manual_seed(seed)`` before it draws the noise of each item."""

    def __init__(self, seeds: Sequence[int]) -> None:
        self._seeds = iter(seeds)

    def __int__(self) -> int:
        return next(self._seeds)


def speak_pairs(studio: Studio, recipe: Recipe, pairs: Sequence[Pair]) -> list[Sample]:
    """Synthesise (prompt, seed) pairs, in order; those of equal length in batches, the rest one by one.

    Raises
    ------
    AudioError
        A recording is missing, unreadable or silent.
    CaseError
        A prompt has no text for its reference.
    ModelError
        The model cannot be loaded, or gives values that are not finite.
    """
    done: dict[int, Sample] = {}
    if recipe.path == "inference":
        for numbers, requests in bars.follow(list(_groups(studio, recipe, pairs)), f"speaking: {recipe.name}", "batch"):
            for number, sample in zip(numbers, _speak_group(studio, recipe, [pairs[i] for i in numbers], requests)):
                done[number] = sample
    for number, (prompt, seed) in enumerate(pairs):
        if number not in done:
            done[number] = studio.speak(recipe, prompt, seed)
    return [done[number] for number in range(len(pairs))]


def _groups(studio: Studio, recipe: Recipe, pairs: Sequence[Pair]) -> Iterator[tuple[list[int], list[Request]]]:
    """Yield numbers of pairs that fit one batch, two or more, with their requests."""
    asked = {prompt.id: capture(studio, recipe, prompt) for prompt, _ in pairs}
    shapes: dict[tuple[int, ...], list[int]] = {}
    for number, (prompt, _) in enumerate(pairs):
        if (request := asked[prompt.id]) is not None:
            shapes.setdefault(request.shape, []).append(number)
    most = FRAMES[studio.device.split(":")[0]]
    for (_, frames), numbers in shapes.items():
        size = max(1, most // max(1, frames))
        for start in range(0, len(numbers), size):
            chosen = numbers[start : start + size]
            if len(chosen) > 1:
                yield chosen, [asked[pairs[i][0].id] for i in chosen]


def capture(studio: Studio, recipe: Recipe, prompt: Prompt) -> Request | None:
    """Return what ``infer_process`` would ask the model for; None where it splits the text into chunks."""
    recorder = _Recorder()
    audio, text = inference_prompt(prompt)
    try:
        with spoken_front_end(recipe.front_end):
            run_inference(recipe, audio, text, prompt, recorder, None, studio.device)
    except _Captured:
        pass
    return recorder.requests[0] if len(recorder.requests) == 1 else None


def _speak_group(studio: Studio, recipe: Recipe, pairs: Sequence[Pair], requests: Sequence[Request]) -> list[Sample]:
    start = time.perf_counter()
    model, seeds = studio.model(recipe), [seed for _, seed in pairs]
    first = requests[0]
    try:
        with torch.inference_mode():
            made, _ = model.sample(
                cond=torch.cat([r.cond for r in requests]), text=[r.text[0] for r in requests], duration=first.duration,
                seed=_Seeds(seeds), **first.options,
            )  # fmt: skip
    except torch.OutOfMemoryError as error:
        raise ModelError(
            f"{len(pairs)} clips of {first.duration} frames do not fit the memory of {studio.device}",
            next_step="use fewer prompts and seeds, or --device cpu",
        ) from error
    finally:
        model.transformer.clear_cache()
    each = (time.perf_counter() - start) / len(pairs)
    return [
        studio.finish(recipe, prompt, seed, _Player(made[i : i + 1]), each) for i, (prompt, seed) in enumerate(pairs)
    ]
