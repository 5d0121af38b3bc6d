"""The diagnosis: all detectors, then listening to what they name, then the verdict.

Detectors that read files, then those that probe; each on its own, so that one that fails is reported as unknown and
stops no other. Causes that can be repaired by a setting are then repaired and broken one at a time and heard.
"""

import logging
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace

from f5lab import bars, catalogue, listening, remedies, verdicts
from f5lab.errors import CaseError, LabError
from f5lab.faults import audio_faults, factors, setting_faults, suspects, text_faults, weight_faults
from f5lab.faults.examinations import ASSUMED, Exam, Suspicion, ranked, unknown
from f5lab.faults.settings_search import GAIN
from f5lab.findings import FindingsLog
from f5lab.probes import Hypothesis
from f5lab.specs import Case
from f5lab.verdicts import AS_IT_RUNS, UNHEARD, UNPROBED, Cause, Fix, Refuted, Unknown, Verdict

logger = logging.getLogger(__name__)

NUMBER = "06"
QUESTION = "Which entry of the fault catalogue explains why inference differs from the trainer's samples?"
UNEXPLAINED, HEARD, TEXTLESS = "unexplained-difference", "heard-difference", "text-without-effect"
UNMATCHED = "recordings-unheard"
CLEARLY = 0.2
"""More CER than the real recordings' by this much on the average clears no case, however wide the interval is."""
CLEARS_NOTHING = (UNEXPLAINED, HEARD, TEXTLESS, UNPROBED, UNHEARD, UNMATCHED)
"""Not of the catalogue: what was asked and not answered stands under ``unknown``; with any of them a case is not healthy."""
CRASHED = "a report of this failure"
"""What an entry needs whose detector failed by no fault of the case; it clears nothing either."""
Detector = Callable[[Exam], list[Suspicion]]

DETECTORS: dict[Detector, tuple[str, ...]] = {
    weight_faults.detect_prefix: ("prefix-lost",),
    weight_faults.detect_damage: ("weight-damage",),
    weight_faults.detect_rope: ("inv-freq-altered",),
    weight_faults.detect_stale: ("stale-checkpoint",),
    weight_faults.detect_ema: (*weight_faults.EMA_FAULTS, "raw-in-ema-slot", "scratch-by-accident", "lr-dead"),
    setting_faults.detect_load: ("load-raises",),
    setting_faults.detect_options: setting_faults.ARCH_FAULTS,
    setting_faults.detect_mel: ("mel-type",),
    setting_faults.detect_rate: ("frontend-rate",),
    setting_faults.detect_precision: ("precision-bf16-cast", "precision-fp16-nan"),
    setting_faults.detect_sampler: ("cfg-or-sway-off",),
    text_faults.detect_vocab: text_faults.VOCAB_FAULTS,
    text_faults.detect_unknown: ("oov-to-zero",),
    text_faults.detect_front_end: ("front-end-pinyin",),
    text_faults.detect_drift: ("tokenizer-drift",),
    text_faults.detect_capitals: ("case-folding",),
    text_faults.detect_length: ("short-text-speed", "duration-byte-ratio"),
    audio_faults.detect_level: ("ref-silent-or-quiet",),
    audio_faults.detect_clipped: ("ref-clipped",),
    audio_faults.detect_reference_text: ("ref-text-wrong",),
    audio_faults.detect_rate_label: ("sample-rate-mislabelled",),
    audio_faults.detect_vocoder: ("vocoder-wrong",),
    audio_faults.detect_stale_text: ("stale-text-cache",),
    suspects.detect_accelerate: ("accelerate",),
    suspects.detect_mel_cycle: ("mel-cycle",),
}
"""Every detector with the entries it can name; together they cover the catalogue and the suspects."""

FOLLOWS: dict[str, tuple[str, ...]] = {
    "ref-text-wrong": ("ema-lag-inherited", "ema-lag-fresh"),  # whose loss is that of a text that the recording does not say
    "sample-rate-mislabelled": (
        "duration-byte-ratio", "ref-text-wrong", "case-folding", "ema-lag-inherited", "ema-lag-fresh",
    ),  # fmt: skip
    "ref-clipped": ("duration-byte-ratio", "ref-text-wrong", "sample-rate-mislabelled"),
    "ref-silent-or-quiet": ("duration-byte-ratio", "ref-text-wrong", "sample-rate-mislabelled", "case-folding"),
    "duration-byte-ratio": ("sample-rate-mislabelled", "ref-text-wrong"),
    "frontend-rate": ("duration-byte-ratio",),
    "weight-damage": ("raw-ema-swapped", "ema-lag-inherited", "ema-lag-fresh", "scratch-by-accident", "ema-frozen"),
    "scratch-by-accident": ("weight-damage", "raw-ema-swapped"),
    "vocab-damage": ("load-raises",),
    "precision-fp16-nan": ("weight-damage", "scratch-by-accident"),
    "oov-to-zero": ("case-folding",),
    "vocab-permuted": ("case-folding", "oov-to-zero"),
    "vocab-off-by-one": ("case-folding", "oov-to-zero"),
}
"""What a cause makes look wrong besides itself: named beside it, these are its consequences and are not named."""


@dataclass(frozen=True)
class Diagnosis:
    """A verdict with what it rests on.

    Attributes
    ----------
    verdict : Verdict
    suspicions : tuple of Suspicion
        Every detector's answers, causes first, by rank.
    heard : listening.Listening or None
        What was synthesised and scored; None without listening.
    beside : tuple of str
        What belongs beside the verdict's headline.
    """

    verdict: Verdict
    suspicions: tuple[Suspicion, ...]
    heard: "listening.Listening | None"
    beside: tuple[str, ...] = ()

    @property
    def claims(self) -> dict[str, str]:
        """Finding id to what was seen."""
        return {f"{NUMBER}-{item.id}": item.claim for item in self.suspicions}

    @property
    def causes(self) -> list[Suspicion]:
        """The causes, most responsible first."""
        return [item for item in self.suspicions if item.outcome == "cause"]

    @property
    def crashed(self) -> list[Suspicion]:
        """Entries that nobody judged because a detector failed: the verdict is not complete."""
        return [item for item in self.suspicions if item.needs == CRASHED]


def examine(exam: Exam, detectors: Iterable[Detector] | None = None) -> list[Suspicion]:
    """Run the detectors; one that fails becomes an unknown for each entry it could have named."""
    found: list[Suspicion] = []
    for detector in detectors if detectors is not None else DETECTORS:
        try:
            found += detector(exam)
        except LabError as error:
            found += unknown(DETECTORS.get(detector, ()), f"The detector could not run: {error}", str(error))
        except Exception as error:
            if remedies.is_machine(error):
                raise
            logger.debug("%s failed", detector.__name__, exc_info=True)
            says = f"{detector.__name__} failed: {type(error).__name__}: {error}"
            found += unknown(DETECTORS.get(detector, ()), says, CRASHED)
    if exam.truth.problem:
        found += unknown(UNPROBED, f"The probe could not run: {exam.truth.problem}", exam.truth.needs)
    return _settled([_as_assumed(exam, item) for item in (*found, *_unexplained(exam, found), *_without_text(exam))])


def _as_assumed(exam: Exam, item: Suspicion) -> Suspicion:
    """Say of a cause that it rests on settings which the case does not state, and be less sure of it."""
    names = sorted({name.partition(".")[0] for name in item.factors} & exam.assumed)
    if item.outcome != "cause" or not names:
        return item
    says = f"The case does not state inference's {', '.join(names)}: what is said of it is assumed."
    return replace(item, claim=f"{item.claim} {says}", confidence=min(item.confidence, ASSUMED))


def _without_text(exam: Exam) -> list[Suspicion]:
    """Report that the text explains nothing of the recordings: vocab, front end and options were not told apart then."""
    gate = exam.truth.gate
    if gate is None or gate.passed:
        return []
    mean, low, high = (100 * value for value in (gate.gain.mean, *gate.gain.interval))
    says = f"Without the text the loss is {mean:+.0f} % (95 % {low:+.0f} to {high:+.0f}): the text explains nothing here."
    return unknown(TEXTLESS, says, "clear recordings with their right texts; if these are, the vocab that training used")


def _unexplained(exam: Exam, found: Sequence[Suspicion]) -> list[Suspicion]:
    """Report differences from the settings as trained that no entry of the catalogue answers for."""
    judged = {
        "checkpoint",
        "weights",
        "vocab",
        "front_end",
        "mel_spec_type",
        "precision",
        "path",
        "duration",
        "vocoder",
    }
    judged |= {"nfe_step", "cfg_strength", "sway_sampling_coef", *setting_faults.HIDDEN}
    judged |= {name for item in found if item.outcome == "cause" for name in (*item.factors, *item.settings)}
    try:
        rest = [f for f in factors.diff(exam.truth.recipe, exam.inference, exam.device) if f.name not in judged]
    except LabError as error:
        return unknown(UNEXPLAINED, str(error), "settings that can be compared")
    if not rest or any(item.id == "load-raises" and item.outcome == "cause" for item in found):
        return []
    words = ", ".join(f"{f.name} {f.b} instead of {f.a}" for f in rest)
    return unknown(
        UNEXPLAINED,
        f"Inference differs in {words}; no entry of the catalogue judges that.",
        f"a run with {words} repaired",
    )


def _settled(found: Sequence[Suspicion]) -> list[Suspicion]:
    """Keep one answer for each entry (a cause before unknown before refuted) and drop consequences of other causes."""
    best: dict[str, Suspicion] = {}
    for item in ranked(found):
        best.setdefault(item.id, item)
    causes = {name for name, item in best.items() if item.outcome == "cause"}
    for name in list(causes):
        reason = next((other for other in sorted(causes - {name}) if _follows(best[name], best[other])), None)
        if reason is not None:
            says = f"{best[name].claim} This follows from {reason}."
            best[name] = Suspicion(name, "unknown", says, needs=f"the same case without {reason}")
    return ranked(best.values())


def _follows(item: Suspicion, other: Suspicion) -> bool:
    """Return whether one cause is a consequence of another: it can be, and was seen of no recording that the other spares."""
    if item.id not in FOLLOWS.get(other.id, ()) or other.id in FOLLOWS.get(item.id, ()):
        return False
    return not other.subjects or not item.subjects or item.subjects <= other.subjects


def diagnose(
    case: Case, *, device: str = "auto", listen: bool = True, asr: str = "base", limit: int = 8, draws: int = 1,
    most_prompts: int | None = None, log: FindingsLog | None = None, run: str = "",
) -> Diagnosis:  # fmt: skip
    """Examine a case and return the verdict.

    Parameters
    ----------
    listen : bool
        Synthesise and transcribe; without it causes rank by what the files and the probe say.
    asr : str
        Whisper size or weights; empty: none, and then nothing is listened to.
    limit, draws : int
        Recordings and noise draws for the probe.
    most_prompts : int, optional
        Most prompts to synthesise for a comparison.
    log : FindingsLog, optional
        Where the findings go; its ids are the verdict's evidence.

    Raises
    ------
    CheckpointError
        The checkpoint (or base) is none of F5-TTS's, or was written anew while it was examined.
    """
    exam = Exam(case, device=device, limit=limit, draws=draws, asr=asr)
    bars.stage(f"looking for {len(catalogue.FAULTS)} faults, in files and by the probe")
    suspicions = examine(exam)
    heard = listening.listen(exam, suspicions, most_prompts=most_prompts) if listen and asr else None
    if heard is not None:
        suspicions = by_ear(suspicions, heard)
    else:
        suspicions = ranked([*suspicions, *unknown(UNHEARD, "Nothing was heard: listening was switched off.", "a diagnosis that listens")])
    for file in filter(None, (exam.checkpoint, exam.base)):
        file.confirm()
    log = log or FindingsLog(NUMBER, "")
    record(log, suspicions)
    if heard is not None:
        record_remaining(log, exam, heard)
    verdict = conclude(case, suspicions, log.notebook, run)
    return Diagnosis(verdict, tuple(suspicions), heard, tuple(verdicts.notes(log.findings)))


def by_ear(suspicions: Sequence[Suspicion], heard: "listening.Listening") -> list[Suspicion]:
    """Return suspicions ranked by what was heard, with what listening leaves open."""
    return [*listening.weigh(suspicions, heard), *_left_by_ear(suspicions, heard)]


def _left_by_ear(suspicions: Iterable[Suspicion], heard: "listening.Listening") -> list[Suspicion]:
    """Report what listening leaves open: that nothing could be heard, or that the repair is heard though no cause is named."""
    if heard.problem:
        return unknown(UNHEARD, f"Nothing was heard: {heard.problem}", heard.problem)
    named = any(item.outcome == "cause" for item in suspicions)
    if heard.whole is not None and not named and heard.whole.change.high < 0:
        says = f"With the settings as trained inference is heard better ({heard.whole.effect.text}), and no cause is named."
        return unknown(HEARD, says, "the factors of notebook 06, one at a time")
    if heard.rest is not None and not named and (listening.remains_verdict(heard.rest) == "refuted" or heard.rest.mean > CLEARLY):
        low, high = heard.rest.interval
        span = f"95 % {low:+.2g} to {high:+.2g}" if heard.rest.n > 1 else "one prompt"
        says = f"Inference is heard with {heard.rest.mean:.2f} more CER than the real recordings ({span}), and no cause is named."
        return unknown(HEARD, says, "more prompts and the ear: what no entry of the catalogue knows, such as weights that never learned to speak")
    if heard.unmatched:
        says = f"The real recordings were not heard, so nobody knows how well inference should be: {heard.unmatched}"
        return unknown(UNMATCHED, says, "recordings of at most 30 s with their texts")
    return []


def record(log: FindingsLog, suspicions: Iterable[Suspicion], evidence: Sequence[str] = ()) -> None:
    """Record one finding for each suspicion, under its id; `evidence` names the cells in which they are looked at."""
    verdict = {"cause": "supported", "refuted": "refuted", "unknown": "inconclusive"}
    says = {"cause": "is at work:", "refuted": "is at work. Ruled out:", "unknown": "is at work. Not known:"}
    for item in suspicions:
        log.record(
            f"{log.notebook}-{item.id}", question=QUESTION, claim=f"{item.id} {says[item.outcome]} {item.claim}", verdict=verdict[item.outcome],
            value=item.value, unit=item.unit, interval=item.interval, n=item.n, limitation=item.limitation or item.needs,
            evidence=list(evidence),
        )  # fmt: skip


def record_remaining(log: FindingsLog, exam: Exam, heard: "listening.Listening", question: str = QUESTION) -> None:
    """Record how much worse than the real recordings the repaired clips are heard, where both were heard."""
    more = heard.rest
    if more is None:
        return
    speaks = "Repaired, inference is" if heard.whole is not None else AS_IT_RUNS
    log.record(
        f"{log.notebook}-remains", question=question, claim=f"{speaks} heard as well as the real recordings.",
        verdict=listening.remains_verdict(more), value=more.mean, unit="CER more", interval=more.interval if more.n > 1 else None, n=more.n,
        limitation="What remains is the weights' own, the sampler's, or what no entry of the catalogue knows.",
    )  # fmt: skip


def conclude(case: Case, suspicions: Sequence[Suspicion], notebook: str = NUMBER, run: str = "") -> Verdict:
    """Return the verdict of a list of ranked suspicions."""
    causes = [
        Cause(
            id=item.id, confidence=item.confidence, factors=list(item.factors), effect=item.effect,
            evidence=[f"{notebook}-{item.id}"], fix=Fix(summary=catalogue.find_fault(item.id).fix, settings=dict(item.settings)),
        )
        for item in suspicions
        if item.outcome == "cause"
    ]  # fmt: skip
    return Verdict(
        case=case.name, run=run, causes=causes,
        healthy=not causes and not any(s.id in CLEARS_NOTHING or s.needs == CRASHED for s in suspicions),
        refuted=[Refuted(id=s.id, evidence=[f"{notebook}-{s.id}"]) for s in suspicions if s.outcome == "refuted"],
        unknown=[Unknown(id=s.id, needs=s.needs) for s in suspicions if s.outcome == "unknown"],
    )  # fmt: skip


def smallest_repair(exam: Exam) -> list[str]:
    """Return the fewest factors whose repair makes inference explain the recordings as the settings as trained do.

    By the probe, so factors outside the forward pass do not count; delta debugging over the rest.

    Raises
    ------
    LabError
        Nothing can be probed, or no repair suffices.
    """
    truth, probe = exam.truth, exam.probe
    good = Hypothesis(truth.recipe)
    names = [f.name for f in factors.diff(truth.recipe, exam.inference, exam.device) if f.in_forward]

    def repaired(kept: Sequence[str]) -> bool:
        try:
            recipe = factors.switch(exam.inference, truth.recipe, kept)
            worse = probe.compare(good, Hypothesis(recipe))
        except LabError:
            return False
        return worse.mean < GAIN or worse.low <= 0

    if not names or repaired([]):
        return []
    try:
        return factors.bisect(names, repaired)
    except ValueError as error:
        raise CaseError(
            "no repair of the settings explains the recordings", next_step="see the probe's table"
        ) from error


def rows(suspicions: Iterable[Suspicion]) -> list[dict[str, object]]:
    """Return suspicions as table rows."""
    return [
        {
            "cause": s.id,
            "outcome": s.outcome,
            "confidence": s.confidence or None,
            "what was seen": s.claim,
            "needs": s.needs,
        }
        for s in suspicions
    ]
