"""Several (prompt, seed) pairs of one recipe in one batch, through upstream's own code.

``infer_process`` speaks one text at a time. What it hands to ``CFM.sample`` is captured, calls of equal shape are made as one, and
``infer_process`` is run again with what came out, so that reference, duration, level and vocoder stay upstream's. Every clip keeps
the noise of its own seed. A test holds a batch equal to clips spoken one by one.
"""

import re
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from f5lab import bars, models, usage
from f5lab.errors import ModelError
from f5lab.samplers import Sample, Studio, inference_prompt, run_inference, spoken_front_end, times_that_increase
from f5lab.specs import Prompt, Recipe

FRAMES = {"cpu": 1200, "mps": 6000, "cuda": 30000}
"""Frames in a batch, guidance's second half not counted: on a CPU more gains nothing."""
LEAST = {"cpu": 2, "mps": 2, "cuda": 1}
"""Clips from which on a batch is made. ``infer_process`` samples in a thread of its own for each clip, where CUDA begins anew."""

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
        with usage.spend(usage.SYNTHESIS, 0):
            groups = list(_groups(studio, recipe, pairs))
        for numbers, requests in bars.follow(groups, f"speaking: {recipe.name}", "batch"):
            with usage.spend(usage.SYNTHESIS, len(numbers)):
                made = _speak_group(studio, recipe, [pairs[i] for i in numbers], requests)
            done.update(zip(numbers, made))
    for number, (prompt, seed) in enumerate(pairs):
        if number not in done:
            done[number] = studio.speak(recipe, prompt, seed)
    return [done[number] for number in range(len(pairs))]


def _groups(studio: Studio, recipe: Recipe, pairs: Sequence[Pair]) -> Iterator[tuple[list[int], list[Request]]]:
    """Yield numbers of pairs that fit one batch with their requests; fewer than `LEAST` are left out."""
    asked = {prompt.id: capture(studio, recipe, prompt) for prompt, _ in pairs}
    shapes: dict[tuple[int, ...], list[int]] = {}
    for number, (prompt, _) in enumerate(pairs):
        if (request := asked[prompt.id]) is not None:
            shapes.setdefault(request.shape, []).append(number)
    kind = studio.device.split(":")[0]
    for (_, frames), numbers in shapes.items():
        size = max(1, FRAMES[kind] // max(1, frames))
        for start in range(0, len(numbers), size):
            chosen = numbers[start : start + size]
            if len(chosen) >= LEAST[kind]:
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
    """Speak pairs in one batch, or in two halves where memory does not suffice."""
    start = time.perf_counter()
    try:
        made = _sample(studio, recipe, [seed for _, seed in pairs], requests)
    except torch.OutOfMemoryError as error:
        if len(pairs) == 1:
            raise ModelError(
                f"one clip of {requests[0].duration} frames does not fit the memory of {studio.device} beside the models",
                next_step=f"free the {_short_of(error)}, use shorter prompts, precision: fp16, or --device cpu",
            ) from error
        made = None
    if made is None:  # outside the handler, so that what the failed attempt held is free
        models.free_memory(studio.device)
        half = len(pairs) // 2
        return [
            sample for part in (slice(half), slice(half, None)) for sample in _speak_group(studio, recipe, pairs[part], requests[part])
        ]
    each = (time.perf_counter() - start) / len(pairs)
    return [
        studio.finish(recipe, prompt, seed, _Player(made[i : i + 1]), each) for i, (prompt, seed) in enumerate(pairs)
    ]


def _sample(studio: Studio, recipe: Recipe, seeds: Sequence[int], requests: Sequence[Request]) -> Tensor:
    """Return the mels of requests of one shape [shape=(b, n, d)], each from the noise of its own seed."""
    model, first = studio.model(recipe), requests[0]
    try:
        with torch.inference_mode(), times_that_increase(recipe), studio.quick(model):
            made, _ = model.sample(
                cond=torch.cat([r.cond for r in requests]), text=[r.text[0] for r in requests], duration=first.duration,
                seed=_Seeds(seeds), **first.options,
            )  # fmt: skip
    finally:
        model.transformer.clear_cache()
    return made


def _short_of(error: torch.OutOfMemoryError) -> str:
    """Return how much memory an allocation asked for, as torch says it."""
    found = re.search(r"allocate ([\d.]+ \wi?B)", str(error))
    return f"{found[1]} that were asked for" if found else "memory"
