"""An examination: everything that the detectors ask about a case, computed once and kept."""

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

import torch

from f5lab import bars, checkpoints, ema, models, oracles, probes, provenance, samplers
from f5lab.asr import Transcriber
from f5lab.audio import Wave, load_wave
from f5lab.discovery import BYTES
from f5lab.errors import AudioError, CaseError, CheckpointError, LabError
from f5lab.faults.settings_search import Truth, dataset_front_end, find_truth
from f5lab.probes import Hypothesis, Item, Probe
from f5lab.specs import Arch, Case, Inference, Recipe, Weights
from f5lab.statistics import Estimate
from f5lab.verdicts import Effect
from f5lab.weights import architectures

Outcome = Literal["cause", "refuted", "unknown"]
LOSS = "flow-matching loss, share unexplained"
ASSUMED = 0.6
"""The most confidence in a cause that rests on what the case does not say: upstream's default is taken."""
LEAST_S = 0.25
"""A shorter recording is none of a text."""


@dataclass(frozen=True)
class Suspicion:
    """What a detector says about one entry of the catalogue.

    Attributes
    ----------
    id : str
    outcome : {"cause", "refuted", "unknown"}
    claim : str
        What was seen, as a sentence with its numbers.
    confidence : float
        Of a cause. 0.99 a fact that the files themselves prove, 0.95 shown by a paired interval, less where another
        reading is left.
    severity : float
        How much of the speech it can spoil, 0 to 1; ranks causes until their effect has been heard.
    value, unit, interval, n
        The number behind the claim.
    factors : tuple of str
        Fields of the recipe whose repair removes it.
    settings : dict
        What to set under ``inference:`` (or as the fix says).
    needs : str
        What would settle an unknown.
    subjects : frozenset of str
        The recordings of which it was seen; empty: of the case as a whole.
    """

    id: str
    outcome: Outcome
    claim: str
    confidence: float = 0.0
    severity: float = 0.0
    value: float | None = None
    unit: str = ""
    interval: tuple[float, float] | None = None
    n: int | None = None
    factors: tuple[str, ...] = ()
    settings: Mapping[str, Any] = field(default_factory=dict)
    effect: Effect | None = None
    needs: str = ""
    limitation: str = ""
    subjects: frozenset[str] = frozenset()

    def __post_init__(self) -> None:
        if self.value is not None and not math.isfinite(self.value):
            object.__setattr__(self, "limitation", f"{self.limitation} The value is {self.value}.".strip())
            object.__setattr__(self, "value", None)


class Exam:
    """A case under examination.

    Parameters
    ----------
    case : Case
    device : str
    limit : int
        Most recordings to probe with.
    draws : int
        Noise draws for each recording.
    asr : str
        Whisper size or weights file; empty: no recogniser, and what needs one is unknown.
    """

    def __init__(self, case: Case, *, device: str = "auto", limit: int = 8, draws: int = 1, asr: str = "base") -> None:
        self.case, self.device, self.limit, self.draws = case, models.pick_device(device), limit, draws
        self.asr = asr
        self.checkpoint = checkpoints.open_checkpoint(case.checkpoint)
        self.base = checkpoints.open_checkpoint(case.base) if case.base else None
        if self.base is not None and _same_file(case.checkpoint, self.base.path):
            raise CaseError("base is the checkpoint itself", next_step="give what training started from, or leave base out")
        self._refuse_misstated_training()
        for prompt in case.prompts:  # what is no recording must not become a verdict
            for path in (prompt.ref_audio, prompt.gen_audio, prompt.spoken_audio):
                if path is not None and (wave := load_wave(path)).seconds < LEAST_S:
                    raise AudioError(f"{path} lasts {wave.seconds:.2g} s: too short to say a text")

    def _refuse_misstated_training(self) -> None:
        """Every hypothesis is measured against what training ran with. What inference states is examined, not believed."""
        trained, run = (self._contradictions(block) for block in (self.case.training.arch, self.case.inference.arch))
        if self.case.training.front_end == "byte" and (size := self._vocab_size()) is not None and size < BYTES:
            raise CaseError(
                "training.front_end is not what these weights were trained with",
                offenders=[f"byte takes {BYTES} tokens, the text embedding has {size}"],
                next_step="correct it, or leave it out: it is then inferred from recordings with their texts",
            )
        if trained and not run:
            raise CaseError(
                "training.arch is not what these weights were trained with", offenders=trained,
                next_step="correct it, or leave it out: what no shape shows is then inferred from recordings with their texts",
            )  # fmt: skip

    def _vocab_size(self) -> int | None:
        try:
            return self.shapes.vocab_size
        except CheckpointError:  # a damaged file, which the detectors look into
            return None

    def _contradictions(self, stated: Arch | None) -> list[str]:
        if stated is None or stated.is_empty:
            return []
        backbone, options = stated.resolve()
        try:
            return architectures.contradictions(self.shapes, {"backbone": backbone, **options})
        except CheckpointError:  # a damaged file, which the detectors look into
            return []

    @cached_property
    def study(self) -> ema.Study:
        """Raw against EMA, and both against the base."""
        return ema.study(self.checkpoint, self.base)

    @cached_property
    def shapes(self) -> architectures.Implied:
        """The architecture as far as shapes show it."""
        return architectures.implied(self.checkpoint.weights(self.checkpoint.slots[0]))

    @property
    def assumed(self) -> frozenset[str]:
        """Settings of inference that nobody stated, as fields of ``inference:``."""
        unsaid = {"arch"} if self.case.inference.arch is None else set()
        return frozenset(unsaid | set(self.case.inference.assumed))

    @cached_property
    def inference(self) -> Recipe:
        """What inference does; options that nobody stated are what the shapes imply and the constructor assumes."""
        return samplers.inference_recipe(self._with_arch(self.case))

    @cached_property
    def stated(self) -> Recipe:
        """The inference path with everything that the case states about training."""
        case = self._with_arch(self.case)
        trained = samplers.trainer_recipe(case)
        fields = ["vocab", *(k for k in ("front_end", "mel_spec_type") if getattr(case.training, k))]
        if self.case.training.arch is not None:
            fields += ["backbone", "arch"]
        changes = {name: getattr(trained, name) for name in fields}
        if case.training.front_end is None and (stored := dataset_front_end(case)) is not None:
            changes["front_end"] = stored
        defaults = {
            k: Inference.model_fields[k].default
            for k in ("nfe_step", "cfg_strength", "sway_sampling_coef", "speed", "fix_duration")
        }
        return self.inference.but(name="as trained", precision="fp32", **defaults, **changes)

    @property
    def whole_case(self) -> Case:
        """The case, with the architecture that the shapes imply where it names none."""
        return self._with_arch(self.case)

    @cached_property
    def training_known(self) -> dict[str, str]:
        """How each setting of the training is known: "stated", "inferred" by the probe, or "assumed" to be inference's."""
        training = self.case.training
        if training.arch is not None and not training.arch.is_empty and training.front_end is not None:
            return {"arch": "stated", "front_end": "stated"}
        return self.truth.known

    @cached_property
    def informed(self) -> Case:
        """The case with the trained architecture and front end as the probe infers them, where nobody stated them.

        Where it cannot tell they stay as inference has them: see `training_known`.
        """
        found, case = {}, self.whole_case
        if self.training_known["arch"] == "inferred":
            found["arch"] = Arch.model_validate({"backbone": self.truth.recipe.backbone, **self.truth.recipe.arch})
        if case.training.front_end is None and self.training_known["front_end"] != "assumed":
            found["front_end"] = self.truth.recipe.front_end
        return case.model_copy(update={"training": case.training.model_copy(update=found)})

    def _with_arch(self, case: Case) -> Case:
        """Fill in the architecture that the shapes imply where the case names none."""
        blocks = (case.training.arch, case.inference.arch)
        if any(block is not None and not block.is_empty for block in blocks):
            return case
        arch = Arch.model_validate(self.shapes.options())
        return case.model_copy(update={"inference": case.inference.model_copy(update={"arch": arch})})

    @cached_property
    def probe(self) -> Probe:
        """The probe on the case's real recordings.

        Raises
        ------
        CaseError
            There are none.
        """
        return Probe(probes.real_items(self.case, self.limit), draws=self.draws, device=self.device)

    @cached_property
    def truth(self) -> Truth:
        """The settings as trained: stated, or inferred where the probe can tell."""
        bars.stage("asking the weights how they were trained")
        return find_truth(self.case, self.stated, lambda: self.probe, self.checkpoint, self.base)

    @cached_property
    def references(self) -> list[Item]:
        """Each different reference recording with each text that it is given, alone, at the rate that its file states."""
        unique = dict.fromkeys((p.ref_audio, p.ref_text) for p in self.case.prompts if p.ref_text.strip())
        return [Item(str(path), load_wave(path), text, 0.0) for path, text in unique]

    @cached_property
    def transcriber(self) -> Transcriber:
        """The recogniser.

        Raises
        ------
        LabError
            It was switched off, its weights are not at hand, or the recordings are in another language than the case's.
        """
        if not self.asr:
            raise CaseError("the recogniser is switched off", next_step="run with one, such as --asr base")
        return oracles.transcriber(self.case, self.asr, self.device)

    def hear(self, wave: Wave) -> str:
        """Return what the recogniser hears in a wave."""
        return self.transcriber([wave])[0].text

    def weights(self, slot: Weights) -> dict[str, torch.Tensor]:
        """Return one slot of the checkpoint."""
        return self.checkpoint.weights(slot)

    @property
    def texts(self) -> list[str]:
        """What inference hands to the front end: reference text, full stop, two spaces, new text."""
        return [f"{_ended(p.ref_text)} {p.gen_text}" for p in self.case.prompts]

    def broken(self, changes: Mapping[str, Any], **hypothesis: Any) -> Estimate:
        """Return how much the settings as trained lose when some fields are changed, paired over the recordings.

        Raises
        ------
        ModelError
            The changed configuration cannot be run.
        """
        truth = self.truth
        return self.probe.compare(Hypothesis(truth.recipe), Hypothesis(truth.recipe.but(**changes), **hypothesis))

    def loss_effect(self, changes: Mapping[str, Any], **hypothesis: Any) -> tuple[Estimate, Effect]:
        """Return `broken` and the same as the effect of a cause."""
        worse = self.broken(changes, **hypothesis)
        truth = self.truth
        good = self.probe.loss(Hypothesis(truth.recipe)).mean
        bad = self.probe.loss(Hypothesis(truth.recipe.but(**changes), **hypothesis)).mean
        return worse, Effect(metric=LOSS, before=bad, after=good, interval=span(worse, -good), n=worse.n)

    def cost(self, changes: Mapping[str, Any]) -> dict[str, Any]:
        """Return what a change costs by the probe as fields of a suspicion: value (share of the loss), interval, n, effect and
        severity; a limitation instead where it cannot be probed."""
        if self.truth.problem:
            return {"limitation": self.truth.problem}
        try:
            worse, effect = self.loss_effect(changes)
        except LabError as error:
            return {"limitation": str(error)}
        return {"value": worse.mean, "unit": "higher loss, as a share", "interval": span(worse), "n": worse.n,
                "effect": effect, "severity": min(1.0, max(0.0, worse.mean))}  # fmt: skip


def ranked(suspicions: Iterable[Suspicion]) -> list[Suspicion]:
    """Return causes first, then unknown, then refuted; the most severe of each first."""
    order = {"cause": 0, "unknown": 1, "refuted": 2}
    return sorted(suspicions, key=lambda s: (order[s.outcome], -s.severity))


def span(estimate: Estimate, factor: float = 1.0) -> tuple[float, float] | None:
    """Return an estimate's interval times a factor; None where there is none."""
    values = sorted(factor * value for value in estimate.interval)
    return (values[0], values[1]) if all(abs(v) != float("inf") for v in values) else None


def _same_file(a: Path, b: Path) -> bool:
    return a.stat().st_size == b.stat().st_size and provenance.fingerprint(a).sha256 == provenance.fingerprint(b).sha256


def _ended(text: str) -> str:
    """End a reference text as ``preprocess_ref_audio_text`` does."""
    if text.endswith((". ", "。")):
        return text
    return text + (" " if text.endswith(".") else ". ")


def cause(id: str, claim: str, confidence: float, severity: float, **more: Any) -> Suspicion:
    """Return a suspicion that names a cause."""
    return Suspicion(id, "cause", claim, confidence, severity, **more)


def refuted(ids: str | Iterable[str], claim: str, **more: Any) -> list[Suspicion]:
    """Return suspicions that rule entries out, all for one reason."""
    return [Suspicion(id, "refuted", claim, **more) for id in ([ids] if isinstance(ids, str) else ids)]


def unknown(ids: str | Iterable[str], claim: str, needs: str) -> list[Suspicion]:
    """Return suspicions that cannot be judged, and what would settle them."""
    return [Suspicion(id, "unknown", claim, needs=needs) for id in ([ids] if isinstance(ids, str) else ids)]
