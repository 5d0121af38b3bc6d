"""Blind listening: pairs of clips, trials in random order, loudness made equal, and what the answers say.

A/B: which of two clips fits the question better? ABX: is X the same recipe as A or as B? Which clip comes first, and what X is, is
drawn for every trial on its own, so that the number of hits of somebody who hears no difference is binomial with 1/2 whatever they do.
"""

import hashlib
import io
import json
import random
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Literal

import numpy as np
import soundfile as sf

from f5lab import batches, paths, provenance
from f5lab.audio import Wave, load_wave, resample
from f5lab.errors import LabError, RunError
from f5lab.samplers import Sample, Studio
from f5lab.specs import Prompt, Recipe

Kind = Literal["ab", "abx"]
Place = Literal["1", "2", "x"]
"""Where a clip is presented; never which recipe it is."""

KINDS: tuple[Kind, ...] = ("ab", "abx")
LEVEL = 0.05
MOST_TRIALS = 200
LOUDNESS_LUFS = -23.0
MOST_PEAK = 0.99
LOUDNESS = "equal loudness by ITU-R BS.1770-4, at most -23 LUFS, no peak above 0.99; a clip with none keeps its level"
QUESTION = "Which clip says the text better?"
_GATE_S = 0.4
_SILENT_LUFS = -70.0
_MEASURED_PEAK = 0.1
"""Clips are measured at this peak: torchaudio's filters clip what they raise above full scale."""
_STEP = 1 / 32768


@dataclass(frozen=True)
class Side:
    """One of the two things compared: how it is called, and a digest of everything that it is."""

    label: str
    mark: str


@dataclass(frozen=True)
class Match:
    """The same item from both sides: the same text and seed, or the same file of two runs."""

    item: str
    a: Wave
    b: Wave
    text: str = ""


@dataclass(frozen=True)
class Contest:
    """Two sides and what can be heard of both.

    Attributes
    ----------
    a, b : Side
        The claim that is tested is that `b` is chosen.
    matches : tuple of Match
        Pairs whose two clips differ.
    same : int
        Pairs that were left out because both clips are the same sound.
    question : str
        What A/B asks.
    """

    a: Side
    b: Side
    matches: tuple[Match, ...]
    same: int = 0
    question: str = QUESTION

    @property
    def mark(self) -> str:
        """Digest of the two sides: answers to another contest are never taken for answers to this one."""
        return hashlib.sha256(f"{self.a.mark} {self.b.mark}".encode()).hexdigest()[:32]

    def match(self, item: str) -> Match:
        """Return the pair of an item.

        Raises
        ------
        RunError
            This contest has no such pair.
        """
        for match in self.matches:
            if match.item == item:
                return match
        raise RunError(f"no clips for {item!r}", expected="the prompts and seeds that the session began with")


def recipe_mark(recipe: Recipe) -> str:
    """Return a digest of a recipe: its settings and the content of every file that it names."""
    fields = recipe.model_dump(exclude={"name", "checkpoint", "vocab", "vocoder"}, mode="json")
    files = [recipe.checkpoint, recipe.vocab, *([recipe.vocoder.path] if recipe.vocoder.path else [])]
    told = [fields, recipe.vocoder.name, [provenance.fingerprint(path).sha256 for path in files]]
    return hashlib.sha256(json.dumps(told, sort_keys=True, default=str).encode()).hexdigest()[:32]


def match_samples(a: Recipe, b: Recipe, spoken_a: Sequence[Sample], spoken_b: Sequence[Sample]) -> Contest:
    """Return a contest of what two recipes spoke, paired by prompt and seed.

    Raises
    ------
    RunError
        They share no prompt and seed, or one side has two samples of one.
    """
    sides: list[dict[str, Sample]] = [{}, {}]
    for side, spoken in zip(sides, (spoken_a, spoken_b)):
        for sample in spoken:
            item = f"{sample.prompt_id}, seed {sample.seed}"
            if item in side:
                raise RunError(f"two samples of {item} by {sample.recipe!r}", expected="one for each prompt and seed")
            side[item] = sample
    pairs = [
        Match(item, sides[0][item].wave, sides[1][item].wave, sides[1][item].text)
        for item in sides[0]
        if item in sides[1]
    ]
    return _contest(Side(a.name, recipe_mark(a)), Side(b.name, recipe_mark(b)), pairs)


def match_recipes(
    studio: Studio, a: Recipe, b: Recipe, prompts: Sequence[Prompt], seeds: Iterable[int] = (0,)
) -> Contest:
    """Speak two recipes, the same prompts and seeds each, and return the contest."""
    pairs = [(prompt, seed) for seed in seeds for prompt in prompts]
    return match_samples(a, b, *(batches.speak_pairs(studio, recipe, pairs) for recipe in (a, b)))


def match_runs(run_a: str | Path, run_b: str | Path, pattern: str = "*.flac") -> Contest:
    """Return a contest of two runs' audio, paired by file name in ``audio/``.

    Parameters
    ----------
    run_a, run_b : str or Path
        Folders of runs.
    pattern : str
        Which files; ``"06-repair-*"`` takes one notebook's clips. File names tell what a clip is only between runs of the
        same notebooks and parameters.

    Raises
    ------
    RunError
        A folder has no audio, or the two share no file name.
    """
    folders = [Path(run).expanduser().resolve() / "audio" for run in (run_a, run_b)]
    found = []
    for folder in folders:
        found.append({path.name: path for path in sorted(folder.glob(pattern)) if path.is_file()})
        if not found[-1]:
            raise RunError(
                f"{folder} holds no {pattern}", expected="a run whose audio is kept", next_step="run the case again"
            )
    names = [name for name in found[0] if name in found[1]]
    if not names:
        raise RunError(
            f"no file of {folders[0].parent.name} and {folders[1].parent.name} has the same name",
            expected=f"{pattern} in both audio/ folders", next_step="compare runs of the same notebooks",
        )  # fmt: skip
    labels = [folder.parent.name for folder in folders]
    if labels[0] == labels[1]:
        labels = ["/".join(folder.parent.parts[-2:]) for folder in folders]
    sides = []
    for label, files in zip(labels, found):
        told = "".join(f"{paths.sha256_file(files[name])}  {name}\n" for name in names)
        sides.append(Side(label, hashlib.sha256(told.encode()).hexdigest()[:32]))
    return _contest(*sides, [Match(name, load_wave(found[0][name]), load_wave(found[1][name])) for name in names])


def _contest(a: Side, b: Side, pairs: Sequence[Match]) -> Contest:
    if not pairs:
        raise RunError(
            f"{a.label!r} and {b.label!r} share no clip", expected="the same prompts and seeds on both sides"
        )
    different = tuple(m for m in pairs if m.a.rate_hz != m.b.rate_hz or not np.array_equal(m.a.samples, m.b.samples))
    return Contest(a, b, different, len(pairs) - len(different))


@dataclass(frozen=True)
class Trial:
    """One presentation.

    Attributes
    ----------
    number : int
        From 1.
    item : str
        Which pair.
    order : {"ab", "ba"}
        Sides at place 1 and 2.
    x : {"a", "b", ""}
        The side that X is; empty in A/B.
    """

    number: int
    item: str
    order: Literal["ab", "ba"]
    x: Literal["a", "b", ""] = ""

    @property
    def places(self) -> tuple[Place, ...]:
        """Where there is something to play."""
        return ("1", "2", "x") if self.x else ("1", "2")

    def side(self, place: Place) -> str:
        """Return "a" or "b": what is presented at a place."""
        return self.x if place == "x" else self.order[int(place) - 1]


@cache
def least_trials(kind: Kind) -> int:
    """Return the fewest trials with which a perfect score reaches p < 0.05.

    Examples
    --------
    >>> least_trials("ab"), least_trials("abx")
    (6, 5)
    """
    n = 1
    while _exact_p(kind, n, n) >= LEVEL:
        n += 1
    return n


def _exact_p(kind: Kind, hits: int, n: int) -> float:
    from scipy.stats import binomtest

    return float(binomtest(hits, n, 0.5, alternative="greater" if kind == "abx" else "two-sided").pvalue)


def plan_trials(items: Sequence[str], kind: Kind, n: int, seed: int) -> tuple[Trial, ...]:
    """Return `n` trials in random order: every item as often as any other (±1), order and X drawn independently.

    Raises
    ------
    RunError
        No items, a kind that does not exist, or a number of trials that could prove nothing.
    """
    if kind not in KINDS:
        raise RunError(f"kind of session {kind!r}", expected="ab or abx")
    if not items:
        raise RunError("nothing to listen to: no pair of clips differs", next_step="compare other recipes or runs")
    if not least_trials(kind) <= n <= MOST_TRIALS:
        raise RunError(
            f"{n} trials of {kind.upper()}",
            expected=f"{least_trials(kind)} (fewer can not reach p < {LEVEL}) to {MOST_TRIALS}",
        )
    rng = random.Random(seed)
    deck: list[str] = []
    while len(deck) < n:
        round_ = list(items)
        rng.shuffle(round_)
        deck += round_
    return tuple(
        Trial(number, item, rng.choice(("ab", "ba")), rng.choice(("a", "b")) if kind == "abx" else "")
        for number, item in enumerate(deck[:n], start=1)
    )


def loudness_lufs(wave: Wave) -> float | None:
    """Return the gated loudness by ITU-R BS.1770-4 (torchaudio); None for a clip in which nothing passes the gate.

    A clip under 0.4 s, the length of a gating block, is measured with silence after it.
    """
    import torch
    from torchaudio.functional import loudness

    peak = float(np.abs(wave.samples).max(initial=0.0))
    if peak == 0:
        return None
    missing = max(0, int(np.ceil(_GATE_S * wave.rate_hz)) + 1 - len(wave.samples))
    samples = np.pad(wave.samples.astype(np.float32) * (_MEASURED_PEAK / peak), (0, missing))
    value = float(loudness(torch.from_numpy(samples)[None], wave.rate_hz)) + 20 * np.log10(peak / _MEASURED_PEAK)
    return float(value) if np.isfinite(value) and value > _SILENT_LUFS else None


def match_loudness(waves: Sequence[Wave]) -> list[Wave]:
    """Return waves of one loudness: -23 LUFS, or as much less as the one with the highest peak needs not to clip."""
    measured = [loudness_lufs(wave) for wave in waves]
    target = LOUDNESS_LUFS
    for wave, level in zip(waves, measured):
        if level is not None:
            room_db = 20 * np.log10(MOST_PEAK / float(np.abs(wave.samples).max()))
            target = min(target, level + room_db)
    gains = [1.0 if level is None else 10 ** ((target - level) / 20) for level in measured]
    return [Wave((w.samples * gain).astype(np.float32), w.rate_hz) for w, gain in zip(waves, gains)]


def stimuli(contest: Contest, trial: Trial, seed: int) -> dict[Place, bytes]:
    """Return what is played in a trial, as WAV files of equal size.

    All clips of a trial have one loudness, rate and length, and each has dither of its own, so that neither size nor content of
    the files tells what X is, short of listening to them (or correlating them).

    Returns
    -------
    dict of str to bytes
        Place to a 16-bit WAV file.
    """
    match = contest.match(trial.item)
    rate = max(match.a.rate_hz, match.b.rate_hz)
    a, b = match_loudness([resample(wave, rate) for wave in (match.a, match.b)])
    length = max(len(a.samples), len(b.samples))
    files = {}
    for index, place in enumerate(trial.places):
        chosen = a if trial.side(place) == "a" else b
        rng = np.random.default_rng([seed, trial.number, index])
        dither = (rng.random(length) - rng.random(length)) * _STEP
        samples = np.pad(chosen.samples, (0, length - len(chosen.samples))) + dither
        buffer = io.BytesIO()
        sf.write(buffer, np.clip(samples, -1, 1), rate, format="WAV", subtype="PCM_16")
        files[place] = buffer.getvalue()
    return files


@dataclass(frozen=True)
class Score:
    """Hits among trials: exact binomial p against 1/2, Clopper-Pearson 95 % interval of the share.

    Attributes
    ----------
    hits, n : int
        A/B: how often side b was chosen. ABX: how often X was named rightly.
    low, high : float
    p : float
        A/B two-sided; ABX one-sided, better than guessing.
    """

    hits: int
    n: int
    low: float
    high: float
    p: float

    @property
    def share(self) -> float:
        """Hits in trials, 0 to 1."""
        return self.hits / self.n


def score_trials(kind: Kind, hits: int, n: int) -> Score:
    """Score a number of finished trials (Clopper and Pearson 1934, Biometrika 26(4), by scipy).

    Raises
    ------
    LabError
        Too few trials to reach p < 0.05 with any answers.

    Examples
    --------
    >>> score = score_trials("ab", 10, 10)
    >>> round(score.p, 4), round(score.low, 3), score.high
    (0.002, 0.692, 1.0)
    """
    from scipy.stats import binomtest

    if n < least_trials(kind):
        raise LabError(
            f"{n} trials of {kind.upper()} can not reach p < {LEVEL} whatever the answers",
            expected=f"at least {least_trials(kind)}", next_step="listen to more",
        )  # fmt: skip
    interval = binomtest(hits, n, 0.5).proportion_ci(confidence_level=0.95, method="exact")
    return Score(hits, n, float(interval.low), float(interval.high), _exact_p(kind, hits, n))
