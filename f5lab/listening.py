"""One factor at a time, heard: the inference recipe repaired, each cause repaired or broken alone, scored by CER.

As many prompts as the interval needs to separate the answer from chance, and no more. Clips and transcripts are kept
by content.
"""

import hashlib
import io
import logging
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from functools import cache
from importlib.metadata import version

import numpy as np

from f5lab import factors, oracles
from f5lab.errors import LabError, ModelError
from f5lab.examinations import Exam, Suspicion, ranked, span
from f5lab.oracles import Scored
from f5lab.paths import atomic_path, cache_dir, sha256_file
from f5lab.samplers import Sample, Studio
from f5lab.specs import Prompt, Recipe
from f5lab.statistics import Estimate, paired_difference
from f5lab.verdicts import Effect

logger = logging.getLogger(__name__)

FIRST, STEP, MOST = 4, 2, 8
"""Prompts to begin with, to add, and at most."""
CER = "CER"
SEED = 0


@dataclass(frozen=True)
class Comparison:
    """One recipe against another on the same prompts and seeds."""

    name: str
    before: tuple[Scored, ...]
    after: tuple[Scored, ...]

    @property
    def change(self) -> Estimate:
        """CER after less before, paired, with its interval over prompts."""
        return paired_difference(*([s.cer for s in side] for side in (self.after, self.before)), self.groups)

    @property
    def groups(self) -> list[str]:
        """Prompt of each pair."""
        return [s.sample.prompt_id for s in self.before]

    @property
    def settled(self) -> bool:
        """Whether the interval excludes 0, or is too narrow for a change that anybody would hear."""
        low, high = self.change.interval
        return low > 0 or high < 0 or (high - low) < 0.15

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
    """

    whole: Comparison | None
    repaired: dict[str, Comparison]
    broken: dict[str, Comparison]
    problem: str = ""

    @property
    def rows(self) -> list[dict[str, object]]:
        """As table rows."""
        listed = [("all causes repaired", self.whole)] if self.whole else []
        listed += [(f"{name} alone repaired", c) for name, c in self.repaired.items()]
        listed += [(f"{name} alone left", c) for name, c in self.broken.items()]
        return [
            {"comparison": name, "CER before": c.effect.before, "CER after": c.effect.after,
             "change 95 %": "{:+.2f} to {:+.2f}".format(*c.change.interval), "prompts": c.change.n}
            for name, c in listed
        ]  # fmt: skip


class Booth:
    """Speaks recipes for prompts and scores them; clips are kept on disk by what they were made from."""

    def __init__(self, exam: Exam) -> None:
        self.exam, self.studio = exam, Studio(exam.device)
        self.synthesised = 0
        self._digests: dict[str, str] = {}

    def scored(self, recipe: Recipe, prompts: Sequence[Prompt]) -> list[Scored]:
        """Return one scored clip for each prompt.

        Raises
        ------
        LabError
            A recipe cannot be spoken, or there is no recogniser.
        """
        samples = [self._sample(recipe, prompt) for prompt in prompts]
        return oracles.score(samples, self.exam.transcriber)

    def _sample(self, recipe: Recipe, prompt: Prompt) -> Sample:
        path = cache_dir("clips") / f"{self._key(recipe, prompt)}.npz"
        if path.is_file():
            stored = np.load(io.BytesIO(path.read_bytes()), allow_pickle=False)
            from f5lab.audio import Wave

            wave = Wave(stored["wave"], int(stored["rate"]))
            return Sample(wave, stored["mel"], prompt.gen_text, prompt.id, recipe.name, SEED, 0.0)
        sample = self.studio.speak(recipe, prompt, SEED)
        self.synthesised += 1
        with atomic_path(path) as temporary, temporary.open("wb") as f:
            np.savez(f, wave=sample.wave.samples, rate=sample.wave.rate_hz, mel=sample.mel)
        return sample

    def _key(self, recipe: Recipe, prompt: Prompt) -> str:
        """Return a digest of everything that the clip depends on: settings and the content of every file."""
        files = [recipe.checkpoint, recipe.vocab, prompt.ref_audio]
        if recipe.vocoder.path:
            if not recipe.vocoder.path.is_dir():
                raise ModelError(
                    f"vocoder {recipe.vocoder.path} is no folder", expected="config.yaml and pytorch_model.bin in it"
                )
            files += sorted(p for p in recipe.vocoder.path.iterdir() if p.is_file())
        fields = recipe.model_dump(exclude={"name", "checkpoint", "vocab", "vocoder"}, mode="json")
        told = [fields, recipe.vocoder.name, prompt.ref_text, prompt.gen_text, SEED, self.exam.device, _versions()]
        return hashlib.sha256(repr([*told, *map(self._digest, files)]).encode()).hexdigest()[:32]

    def _digest(self, path: object) -> str:
        key = str(path)
        if key not in self._digests:
            self._digests[key] = sha256_file(path)  # type: ignore[arg-type]
        return self._digests[key]


@cache
def _versions() -> tuple[str, ...]:
    return tuple(version(name) for name in ("f5-tts", "torch", "vocos", "f5lab"))


def listen(exam: Exam, suspicions: Iterable[Suspicion], *, most_prompts: int | None = None) -> Listening:
    """Hear the whole repair, and each repairable cause alone both ways, on as many prompts as needed."""
    booth, most = Booth(exam), most_prompts or MOST
    given, right = exam.inference, _repaired(exam)
    whole, problem = None, ""
    try:
        if factors.diff(right, given, exam.device):
            whole = _compare(booth, "all", given, right, most)
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
            repaired[item.id] = _compare(booth, item.id, given, alone, len(whole.before))
            broken[item.id] = _compare(booth, item.id, left, right, most)
        except LabError as error:
            logger.warning("%s was not heard: %s", item.id, error)
    return Listening(whole, repaired, broken, problem)


def _repaired(exam: Exam) -> Recipe:
    """Return inference with every forward setting as trained, and the sampler at upstream's defaults."""
    truth = exam.truth.recipe
    return truth.but(name="repaired", path="inference")


def _switchable(item: Suspicion) -> bool:
    return bool(item.factors) and not {"texts", "duration"} & set(item.factors)


def _compare(booth: Booth, name: str, before: Recipe, after: Recipe, most: int) -> Comparison:
    prompts = booth.exam.case.prompts[:most]
    count = min(FIRST, len(prompts))
    while True:
        sides = [tuple(booth.scored(recipe, prompts[:count])) for recipe in (before, after)]
        found = Comparison(name, *sides)
        if count >= len(prompts) or found.settled:
            return found
        count = min(count + STEP, len(prompts))


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
                           limitation=item.limitation or ("" if audible else "its effect was not heard on these prompts"))  # fmt: skip
        weighed.append(item)
    return ranked(weighed)
