"""One factor at a time, heard: the inference recipe repaired, each cause repaired or broken alone, scored by CER.

How many clips are heard is fixed beforehand: who looks again and again and stops at the first interval without 0 finds
one where nothing is. Clips of equal length are sampled in one batch; clips and transcripts are kept by content.
"""

import hashlib
import inspect
import io
import json
import logging
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from typing import Literal

import numpy as np

from f5lab import audio, bars, batches, caches, graphs, metrics, models, oracles, provenance, samplers
from f5lab.asr import WINDOW_S
from f5lab.audio import Wave, load_wave
from f5lab.batches import Pair
from f5lab.errors import CaseError, LabError, ModelError
from f5lab.faults import factors, weight_faults
from f5lab.faults.examinations import Exam, Suspicion, ranked, span
from f5lab.oracles import Scored
from f5lab.paths import sha256_file
from f5lab.samplers import Sample, Studio, training_item
from f5lab.specs import Prompt, Recipe
from f5lab.statistics import DIFFERENCE, Estimate, paired_difference
from f5lab.verdicts import Effect

logger = logging.getLogger(__name__)

PAIRS = 8
"""(prompt, seed) pairs of a comparison: that many prompts, or fewer with more seeds."""
CER = "CER"
AS_WELL = 0.1
"""Up to this much more CER counts as heard as well."""


@dataclass(frozen=True)
class Comparison:
    """One recipe against another on the same prompts and seeds."""

    name: str
    before: tuple[Scored, ...]
    after: tuple[Scored, ...]

    @property
    def change(self) -> Estimate:
        """CER after less before, paired, with its interval over prompts.

        With a single prompt it is over seeds, and says nothing about other texts; n is then 1.
        """
        sides = [[s.cer for s in side] for side in (self.after, self.before)]
        if len(set(self.groups)) > 1:
            return paired_difference(*sides, self.groups, within=DIFFERENCE)
        return replace(paired_difference(*sides, within=DIFFERENCE), n=1)

    @property
    def groups(self) -> list[str]:
        """Prompt of each pair."""
        return [s.sample.prompt_id for s in self.before]

    @property
    def effect(self) -> Effect:
        """As the effect of a cause."""
        means = [float(np.mean([s.cer for s in side])) for side in (self.before, self.after)]
        return Effect(metric=CER, before=means[0], after=means[1], interval=span(self.change), n=self.change.n)


@dataclass(frozen=True)
class Listening:
    """What was heard.

    Attributes
    ----------
    whole : Comparison or None
        Inference as it is against inference with the settings as trained.
    repaired : dict of str to Comparison
        Cause to: inference as it is, against inference with that cause alone repaired.
    broken : dict of str to Comparison
        Cause to: the settings as trained with that cause alone planted, against the settings as trained.
    problem : str
        Why nothing could be heard; empty when something could.
    plain : tuple of Scored
        Inference as it is, where there is nothing to repair.
    rest : Estimate or None
        How much more CER the repaired clips, or the plain ones, have than the real recordings of the same prompts.
    unmatched : str
        Why the clips could not be compared with real recordings; empty when they could.
    """

    whole: Comparison | None
    repaired: dict[str, Comparison]
    broken: dict[str, Comparison]
    problem: str = ""
    plain: tuple[Scored, ...] = ()
    rest: Estimate | None = None
    unmatched: str = ""

    @property
    def final(self) -> tuple[Scored, ...]:
        """The clips that should be right: repaired, or plain where nothing was to be repaired."""
        return self.whole.after if self.whole is not None else self.plain

    @property
    def rows(self) -> list[dict[str, object]]:
        """As table rows."""
        listed = [("all causes repaired", self.whole)] if self.whole else []
        listed += [(f"{name} alone repaired", c) for name, c in self.repaired.items()]
        listed += [(f"{name} alone left", c) for name, c in self.broken.items()]
        return [
            {"comparison": name, "CER before": c.effect.before, "CER after": c.effect.after,
             "change 95 %": "{:+.2f} to {:+.2f}".format(*c.change.interval), "prompts": c.change.n, "clips": len(c.before)}
            for name, c in listed
        ]  # fmt: skip


class Booth:
    """Speaks recipes for prompts and scores them; clips are kept on disk by what they were made from."""

    def __init__(self, exam: Exam) -> None:
        self.exam, self.studio = exam, Studio(exam.device)
        self.synthesised = 0
        self._digests: dict[str, str] = {}
        self._asked: dict[object, list[list[str]]] = {}

    def scored(self, recipe: Recipe, pairs: Sequence[Pair]) -> list[Scored]:
        """Return one scored clip for each (prompt, seed) pair.

        Raises
        ------
        LabError
            A recipe cannot be spoken, or there is no recogniser.
        """
        return oracles.score(self.samples(recipe, pairs), self.exam.transcriber)

    def samples(self, recipe: Recipe, pairs: Sequence[Pair]) -> list[Sample]:
        """Return one clip for each (prompt, seed) pair, from disk where it was spoken before."""
        kept = {number: self._kept(recipe, prompt, seed) for number, (prompt, seed) in enumerate(pairs)}
        missing = [number for number, sample in kept.items() if sample is None]
        for number, sample in zip(missing, batches.speak_pairs(self.studio, recipe, [pairs[i] for i in missing])):
            self.synthesised += 1
            self._keep(recipe, *pairs[number], sample)
            kept[number] = sample
        return list(kept.values())

    def _kept(self, recipe: Recipe, prompt: Prompt, seed: int) -> Sample | None:
        stored = caches.read("clips", self._key(recipe, prompt, seed))
        if stored is None:
            return None
        clip = np.load(io.BytesIO(stored), allow_pickle=False)
        wave = Wave(clip["wave"], int(clip["rate"]))
        return Sample(wave, clip["mel"], prompt.gen_text, prompt.id, recipe.name, seed, 0.0)

    def _keep(self, recipe: Recipe, prompt: Prompt, seed: int, sample: Sample) -> None:
        buffer = io.BytesIO()
        np.savez(buffer, wave=sample.wave.samples, rate=sample.wave.rate_hz, mel=sample.mel)
        caches.write("clips", self._key(recipe, prompt, seed), buffer.getvalue())

    def _key(self, recipe: Recipe, prompt: Prompt, seed: int) -> str:
        """Return a digest of everything that the clip depends on: settings and the content of every file.

        ``auto`` precision is what it means on the device: of two causes, one repaired is the other one left. A front end
        is the tokens that it makes of the text: where two make the same, it is the same clip.
        """
        files = [recipe.checkpoint, recipe.vocab, prompt.ref_audio]
        if recipe.vocoder.path:
            if not recipe.vocoder.path.is_dir():
                raise ModelError(
                    f"vocoder {recipe.vocoder.path} is no folder", expected="config.yaml and pytorch_model.bin in it"
                )
            files += sorted(p for p in recipe.vocoder.path.iterdir() if p.is_file())
        fields = recipe.model_dump(exclude={"name", "checkpoint", "vocab", "vocoder"}, mode="json")
        fields["precision"] = models.pick_precision(recipe.precision, self.exam.device)
        fields["front_end"] = self._tokens(recipe, prompt) or recipe.front_end
        told = [json.dumps(fields, sort_keys=True), recipe.vocoder.name, prompt.ref_text, prompt.gen_text, seed, self.exam.device, _versions()]
        return hashlib.sha256(repr([*told, *map(self._digest, files)]).encode()).hexdigest()[:32]

    def _tokens(self, recipe: Recipe, prompt: Prompt) -> list[list[str]]:
        """Return what the model would be given for a text; empty where upstream splits it into chunks."""
        if recipe.path != "inference":
            return []
        key = (recipe.front_end, recipe.speed, recipe.fix_duration, prompt)
        if key not in self._asked:
            request = batches.capture(self.studio, recipe, prompt)
            self._asked[key] = [[repr(token) for token in line] for line in request.text] if request else []
        return self._asked[key]

    def _digest(self, path: object) -> str:
        key = str(path)
        if key not in self._digests:
            self._digests[key] = sha256_file(path)  # type: ignore[arg-type]
        return self._digests[key]


@cache
def _versions() -> tuple[str, ...]:
    """Return what speaks: the packages' versions, and the digests of f5lab's own modules that do."""
    known = provenance.versions()
    own = [sha256_file(Path(inspect.getfile(module))) for module in (audio, batches, graphs, models, samplers)]
    return (*(str(known.get(name)) for name in ("f5-tts", "torch", "vocos")), *own)


def listen(exam: Exam, suspicions: Iterable[Suspicion], *, most_prompts: int | None = None) -> Listening:
    """Hear the whole repair, and each repairable cause alone both ways, on `PAIRS` clips a side."""
    booth, most = Booth(exam), most_prompts or PAIRS
    suspicions = list(suspicions)
    given, right = exam.inference, _repaired(exam, suspicions)
    whole, plain, problem = None, (), ""
    try:
        pairs = _pairs(exam.case.prompts[:most])
        if factors.diff(right, given, exam.device):
            whole = _compare(booth, "all", given, right, pairs)
        else:
            plain = tuple(booth.scored(given, pairs))
    except LabError as error:
        problem = str(error)
    repaired, broken = {}, {}
    causes = [s for s in suspicions if s.outcome == "cause" and _switchable(s)]
    for item in causes if whole is not None else []:
        names = list(item.factors)
        try:
            if factors.switch(given, right, names) == given:
                continue  # the repair is no setting: a file must be replaced
            alone = factors.switch(given, right, names).but(name=f"{item.id} repaired")
            left = factors.switch(right, given, names).but(name=f"only {item.id}")
            if len(causes) == 1:  # repairing the one cause is the whole repair
                repaired[item.id], broken[item.id] = whole, whole
                continue
            repaired[item.id] = _compare(booth, item.id, given, alone, pairs, "repaired alone")
            broken[item.id] = _compare(booth, item.id, left, right, pairs, "alone left")
        except LabError as error:
            logger.warning("%s was not heard: %s", item.id, error)
    bars.stage("hearing the real recordings")
    found = Listening(whole, repaired, broken, problem, plain)
    try:
        return replace(found, rest=remaining(exam, found))
    except LabError as error:
        return replace(found, unmatched=str(error))


def remaining(exam: Exam, heard: Listening) -> Estimate | None:
    """Return how much more CER the repaired clips have than the real recordings of the same prompts; None where nothing was spoken.

    A recording longer than Whisper's window, and one whose text has no letters, is left out with its clips.

    Raises
    ------
    LabError
        No recording is left, or none can be heard.
    """
    if not heard.final:
        return None
    items = {p.id: training_item(p) for p in exam.case.prompts}
    used = {name: load_wave(items[name][0]) for name in dict.fromkeys(s.sample.prompt_id for s in heard.final)}
    used = {name: wave for name, wave in used.items() if wave.seconds <= WINDOW_S and metrics.has_letters(items[name][1])}
    if not used:
        raise CaseError(f"no real recording of at most {WINDOW_S:.0f} s has a text with letters", next_step="give prompts shorter recordings")
    said = exam.transcriber(list(used.values()))
    real = {name: metrics.cer(items[name][1], t.text).value for name, t in zip(used, said, strict=True)}
    kept = [s for s in heard.final if s.sample.prompt_id in real]
    groups = [s.sample.prompt_id for s in kept]
    return paired_difference([s.cer for s in kept], [real[name] for name in groups], groups, within=DIFFERENCE)  # type: ignore[misc]


def remains_verdict(more: Estimate) -> Literal["supported", "refuted", "inconclusive"]:
    """Return the verdict on: repaired, inference is heard as well as the real recordings."""
    if more.n < 2 or more.low <= AS_WELL < more.high:
        return "inconclusive"
    return "supported" if more.high <= AS_WELL else "refuted"


def _repaired(exam: Exam, suspicions: Sequence[Suspicion]) -> Recipe:
    """Return inference with every forward setting as trained, the sampler at upstream's defaults, and the weights of a bundle."""
    weights = weight_faults.right_weights(exam, suspicions)
    return exam.truth.recipe.but(name="repaired", path="inference", weights=weights)


def _switchable(item: Suspicion) -> bool:
    return bool(item.factors) and not {"texts", "duration"} & set(item.factors)


def _pairs(prompts: Sequence[Prompt]) -> list[Pair]:
    fit = [prompt for prompt in prompts if metrics.has_letters(prompt.gen_text)]
    if len(fit) < len(prompts):
        logger.warning("%d prompts are not spoken: their gen_text has no letters that could be heard", len(prompts) - len(fit))
    if not fit:
        raise CaseError("no text to be spoken has letters", next_step="give prompts a gen_text in words")
    return [(prompt, seed) for seed in range(PAIRS) for prompt in fit][:PAIRS]


def _compare(booth: Booth, name: str, before: Recipe, after: Recipe, pairs: Sequence[Pair], how: str = "") -> Comparison:
    bars.stage(f"speaking and hearing: {'everything repaired' if name == 'all' else f'{name} {how}'}")
    return Comparison(name, *(tuple(booth.scored(recipe, pairs)) for recipe in (before, after)))


def weigh(suspicions: Sequence[Suspicion], heard: Listening) -> list[Suspicion]:
    """Rank causes by what was heard: how much CER each costs when it alone is left in a healthy recipe.

    A cause that is heard takes CER as its effect; one that is not keeps the probe's and ranks below.
    """
    weighed = []
    for item in suspicions:
        comparison = heard.broken.get(item.id)
        if item.outcome == "cause" and comparison is not None:
            lost = -comparison.change.mean
            audible = comparison.change.high < 0
            severity = 1.0 + lost if audible else min(item.severity, 0.99)
            item = replace(item, severity=severity, confidence=min(0.99, item.confidence + 0.02 * audible),
                           effect=comparison.effect if audible or item.effect is None else item.effect,
                           limitation=item.limitation or ("" if audible else f"its effect on CER was not shown on {comparison.change.n} prompts"))  # fmt: skip
        weighed.append(item)
    return ranked(weighed)
