"""Sampler settings, measured: steps, guidance, sway, speed and seeds, each clip with CER, duration, voice and cost.

A setting's effect counts when its paired interval over prompts excludes 0 and it is larger than what other seeds alone
would do.
"""

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np

from f5lab import metrics, oracles, speakers
from f5lab.asr import Transcriber
from f5lab.audio import Wave, load_wave
from f5lab.errors import LabError, UsageError
from f5lab.oracles import Scored
from f5lab.samplers import Studio
from f5lab.specs import Prompt, Recipe
from f5lab.statistics import DIFFERENCE, Estimate, paired_difference

AXES = {"nfe_step": "NFE", "cfg_strength": "guidance", "sway_sampling_coef": "sway", "speed": "speed"}
"""Fields of a recipe that a grid varies, and what they are called."""
CER, DURATION, VOICE, COST = "CER", "duration ratio", "speaker cosine", "network passes"
MEASURES = (CER, DURATION, VOICE, COST)
BASE = "base"
FEWEST_PROMPTS = 4
"""With fewer, an interval over prompts says nothing about other texts."""
Judgement = Literal["beyond the seeds", "within the seeds", "no difference shown", "cannot be told"]


def points(base: Recipe, axes: Mapping[str, Sequence[float | None]], *, full: bool = False) -> dict[str, Recipe]:
    """Return the recipes of a grid by name, the base first.

    Parameters
    ----------
    axes : mapping of str to sequence
        Field of the recipe to the values tried; None as a sway is no sway. The base's own value is always in.
    full : bool
        Every combination. Otherwise one field at a time, all others as in the base.

    Raises
    ------
    UsageError
        A field that is no sampler setting.
    """
    if unknown := set(axes) - set(AXES):
        raise UsageError("no sampler setting", offenders=unknown, expected=f"among {', '.join(AXES)}")
    values = {field: list(dict.fromkeys([getattr(base, field), *axes.get(field, ())])) for field in AXES}
    if full:
        combined = [dict(zip(values, chosen)) for chosen in itertools.product(*values.values())]
    else:
        combined = [{}] + [{field: value} for field in values for value in values[field][1:]]
    found = {}
    for chosen in combined:
        changes = {field: value for field, value in chosen.items() if value != getattr(base, field)}
        name = ", ".join(
            f"{AXES[field]} {'off' if value is None else f'{value:g}'}" for field, value in changes.items()
        )
        found[name or BASE] = base.but(name=name or BASE, **changes)
    return found


@dataclass(frozen=True)
class Take:
    """One clip of a grid with its measures; one that is undefined is None."""

    point: str
    recipe: Recipe
    scored: Scored
    duration_ratio: float | None
    speaker_cosine: float | None

    @property
    def seconds(self) -> float:
        """Wall-clock time of the synthesis, the vocoder included; shown, not judged, for it is the machine's as well."""
        return self.scored.sample.seconds

    @property
    def passes(self) -> int:
        """Clips that go through the network: one a step, two with guidance (``CFM.sample``: 1e-5 and more)."""
        return self.recipe.nfe_step * (1 if self.recipe.cfg_strength < 1e-5 else 2)

    def value(self, measure: str) -> float | None:
        """Return one of `MEASURES`."""
        return {CER: self.scored.cer, DURATION: self.duration_ratio, VOICE: self.speaker_cosine, COST: float(self.passes)}[measure]  # fmt: skip

    @property
    def key(self) -> tuple[str, int]:
        """Prompt and seed: what pairs this take with one of another point."""
        return (self.scored.sample.prompt_id, self.scored.sample.seed)

    @property
    def row(self) -> dict[str, object]:
        """As a table row."""
        sample = self.scored.sample
        return {"point": self.point, "prompt": sample.prompt_id, "seed": sample.seed, CER: self.scored.cer, "text": sample.text,
                "heard": self.scored.transcript.text, DURATION: self.duration_ratio, VOICE: self.speaker_cosine,
                "passes": self.passes, "time (s)": round(self.seconds, 2)}  # fmt: skip


@dataclass(frozen=True)
class Grid:
    """Measured points, and those that could not be spoken with the reason."""

    takes: tuple[Take, ...]
    problems: dict[str, str]

    @property
    def names(self) -> list[str]:
        """Points that were measured, in order."""
        return list(dict.fromkeys(take.point for take in self.takes))

    def of(self, point: str) -> list[Take]:
        """Return the takes of a point."""
        return [take for take in self.takes if take.point == point]

    def seed_deviation(self, measure: str) -> float | None:
        """Return the standard deviation between seeds of one prompt at one point, pooled; None with one seed each."""
        cells: dict[tuple[str, str], list[float]] = {}
        for take in self.takes:
            value = take.value(measure)
            if value is not None:
                cells.setdefault((take.point, take.key[0]), []).append(value)
        repeated = [np.asarray(values) for values in cells.values() if len(values) > 1]
        if not repeated:
            return None
        freedom = sum(len(values) - 1 for values in repeated)
        return float(np.sqrt(sum(((v - v.mean()) ** 2).sum() for v in repeated) / freedom))

    def seed_band(self, measure: str, clips: int) -> float | None:
        """Return the difference of two means over so many clips that other seeds alone stay below in 95 of 100 cases.

        ``1.96 sqrt(2 / clips) s`` with the deviation between seeds, pooled over prompts and points. The seeds of a comparison are shared, which
        makes its true noise smaller: the band is on the safe side.
        """
        deviation = self.seed_deviation(measure)
        return None if deviation is None else 1.96 * float(np.sqrt(2 / clips)) * deviation


@dataclass(frozen=True)
class Change:
    """One measure of one point against the base, paired by prompt and seed."""

    point: str
    measure: str
    mean: float
    difference: Estimate
    seed_band: float | None
    clips: int

    @property
    def judgement(self) -> Judgement:
        """Whether the interval excludes 0, and whether the difference is then more than the seeds'."""
        if self.difference.n < FEWEST_PROMPTS or self.seed_band is None:
            return "cannot be told"
        if self.difference.low <= 0 <= self.difference.high:
            return "no difference shown"
        return "beyond the seeds" if abs(self.difference.mean) > self.seed_band else "within the seeds"

    @property
    def row(self) -> dict[str, object]:
        """As a table row."""
        low, high = self.difference.interval
        return {"point": self.point, "measure": self.measure, "mean": self.mean, "against the base": self.difference.mean,
                "95 %": f"{low:+.3f} to {high:+.3f}" if np.isfinite(low) else None, "seeds alone, up to": self.seed_band,
                "clips": self.clips, "says": self.judgement}  # fmt: skip


def measure(
    studio: Studio,
    transcriber: Transcriber,
    recipes: Mapping[str, Recipe],
    prompts: Sequence[Prompt],
    seeds: Sequence[int],
    *,
    base_seeds: Sequence[int] = (0, 1),
) -> Grid:
    """Speak every point with every prompt and seed, one by one, and measure each clip.

    A point that cannot be spoken, or cannot be judged, says why. The first point is also spoken with `base_seeds`, which
    shows what seeds alone do.

    Raises
    ------
    LabError
        A recording cannot be read.
    """
    voices = {p.id: speakers.embed(load_wave(p.ref_audio)) for p in prompts}
    real = {p.id: load_wave(p.gen_audio) if p.gen_audio else None for p in prompts}
    takes: list[Take] = []
    problems: dict[str, str] = {}
    for number, (name, recipe) in enumerate(recipes.items()):
        chosen = seeds if number else sorted({*seeds, *base_seeds})
        try:
            if not number:  # the first synthesis of a process is slower, and its seconds are shown
                studio.speak(recipe.but(nfe_step=2), prompts[0], chosen[0])
            scored = oracles.score(studio.speak_all(recipe, prompts, chosen), transcriber)
        except LabError as error:
            problems[name] = str(error)
            continue
        takes += [_take(name, recipe, s, voices[s.sample.prompt_id], real[s.sample.prompt_id]) for s in scored]
    return Grid(tuple(takes), problems)


def _take(name: str, recipe: Recipe, scored: Scored, voice: np.ndarray, real: Wave | None) -> Take:
    wave = scored.sample.wave
    ratio = metrics.duration_ratio(wave, real).value if real else None
    return Take(name, recipe, scored, ratio, metrics.speaker_cosine(speakers.embed(wave), voice).value)


def changes(grid: Grid, base: str = BASE) -> list[Change]:
    """Return every measure of every point against the base; pairs where a side is undefined are left out and not counted."""
    start = {take.key: take for take in grid.of(base)}
    return [
        change
        for name, measured in itertools.product(grid.names, MEASURES)
        if name != base and (change := _change(grid, start, name, measured)) is not None
    ]


def _change(grid: Grid, start: Mapping[tuple[str, int], Take], point: str, measured: str) -> Change | None:
    sides = [
        (take.value(measured), start[take.key].value(measured), take.key[0])
        for take in grid.of(point)
        if take.key in start
    ]
    kept = [(after, before, prompt) for after, before, prompt in sides if after is not None and before is not None]
    if not kept:
        return None
    after, before, prompts = (list(column) for column in zip(*kept))
    difference = paired_difference(after, before, prompts, within=DIFFERENCE if measured == CER else None)
    return Change(point, measured, float(np.mean(after)), difference, grid.seed_band(measured, len(kept)), len(kept))


def axis_changes(found: Sequence[Change], field: str, measured: str = CER) -> list[Change]:
    """Return the changes of points that vary one field alone."""
    return [c for c in found if c.measure == measured and c.point.startswith(f"{AXES[field]} ") and "," not in c.point]


def conclusion(found: Sequence[Change], field: str, measured: str = CER) -> dict[str, Any]:
    """Return verdict, value, unit, interval, n and limitation of the claim that a field matters to a measure.

    The value is the largest difference from the base among the field's values.
    """
    tried = axis_changes(found, field, measured)
    if not tried:
        alone = any(axis_changes(found, field, other) for other in MEASURES)
        reason = f"the {measured} is undefined here" if alone else f"no other {AXES[field]} was measured alone"
        return {"verdict": "inconclusive", "limitation": reason}
    largest = max(tried, key=lambda c: (c.judgement == "beyond the seeds", abs(c.difference.mean)))
    if measured == COST:  # counted, not sampled
        verdict, limitation = "supported" if largest.difference.mean else "refuted", ""
    elif largest.judgement == "beyond the seeds":
        verdict, limitation = "supported", ""
    elif any(c.judgement != "cannot be told" for c in tried):
        verdict, limitation = (
            "inconclusive",
            "nothing beyond the seeds was shown, which does not show that there is nothing",
        )
    else:
        verdict, limitation = "inconclusive", f"needs {FEWEST_PROMPTS} prompts, and two seeds of the base"
    interval = largest.difference.interval if largest.difference.n > 1 else None
    return {"verdict": verdict, "value": largest.difference.mean, "unit": f"{measured}, {largest.point} against the base",
            "interval": interval, "n": largest.difference.n, "limitation": limitation}  # fmt: skip
