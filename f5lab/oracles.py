"""Is this audio right? Speech recognition with its ceiling and chance level measured first, and scored sets of samples."""

import itertools
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from f5lab import metrics
from f5lab.asr import WINDOW_S, Transcriber, Transcript
from f5lab.audio import Wave, load_wave, resample
from f5lab.errors import AsrError, CaseError
from f5lab.samplers import Sample
from f5lab.specs import Case, Prompt
from f5lab.statistics import SHARE, Estimate, cluster_mean

MAX_PAIRS = 60
LEAST_RMS = 0.01
"""Below this nothing is learned about a language."""
SURE = 0.9
"""From this probability on a language is taken to be spoken; another that is stated must have at most the rest to be wrong."""
MOST_JOINED, JOINED_HZ = 12, 16_000


@dataclass(frozen=True)
class Calibration:
    """What the recogniser scores where the answer is known.

    Attributes
    ----------
    ceiling : np.ndarray [shape=(k,)]
        CER of real recordings against their own texts.
    unrelated : np.ndarray
        CER of the same transcripts against other clips' texts.
    noise : np.ndarray
        CER of noise, shaped like speech in level and length, against the texts.
    texts, heard : list of str
        The real recordings' texts and transcripts.
    """

    ceiling: np.ndarray
    unrelated: np.ndarray
    noise: np.ndarray
    texts: tuple[str, ...]
    heard: tuple[str, ...]

    @property
    def separates(self) -> bool:
        """Whether real speech scores clearly better than chance: at least 0.3 lower in the mean, and either the intervals
        are apart or every recording scores better than every unrelated pair."""
        real, chance = (cluster_mean(side, within=SHARE) for side in (self.ceiling, self.unrelated))
        apart = real.separated_from(chance) or self.ceiling.max() < self.unrelated.min()
        return apart and chance.mean - real.mean >= 0.3


def real_recordings(case: Case, limit: int | None = None) -> list[tuple[Wave, str]]:
    """Return the case's real recordings with their texts, each pair once: targets first, then references."""
    pairs = [(p.gen_audio, p.gen_text) for p in case.prompts if p.gen_audio]
    pairs += [(p.ref_audio, p.ref_text) for p in case.prompts if p.ref_text.strip()]
    unique = list(dict.fromkeys(pairs))
    return [(load_wave(path), text) for path, text in unique[:limit]]


def calibrate(
    clips: Sequence[tuple[Wave, str]], transcriber: Transcriber, *, seed: int = 0, n_noise: int = 6
) -> Calibration:
    """Measure the oracle on controls before it judges anything.

    Parameters
    ----------
    clips : sequence of (Wave, str)
        Real recordings and their texts, at least two with different texts.
    n_noise : int
        How many clips of noise: level and length of the real ones, spectrum falling by 6 dB an octave.

    Raises
    ------
    CaseError
        Fewer than two different texts.
    """
    texts = tuple(text for _, text in clips)
    if len(set(texts)) < 2:
        raise CaseError(
            f"{len(set(texts))} real recordings with different texts",
            expected="at least 2",
            next_step="give two prompts with different references, or a prompt its gen_audio",
        )
    heard = tuple(t.text for t in transcriber([wave for wave, _ in clips]))
    rng = np.random.default_rng(seed)
    pairs = [(i, j) for i, j in itertools.permutations(range(len(texts)), 2) if texts[i] != texts[j]]
    chosen = [pairs[k] for k in rng.permutation(len(pairs))[:MAX_PAIRS]]
    noise = [noise_like(wave, rng) for wave, _ in clips[:n_noise]]
    heard_noise = transcriber(noise)
    return Calibration(
        _rates(texts, heard), np.array([_rate(texts[j], heard[i]) for i, j in chosen]),
        _rates(texts, [t.text for t in heard_noise]), texts, heard,
    )  # fmt: skip


def noise_like(wave: Wave, rng: np.random.Generator) -> Wave:
    """Return noise with the level and length of a wave, its spectrum falling by 6 dB an octave."""
    from scipy.signal import lfilter

    noise = lfilter([1.0], [1.0, -0.95], rng.standard_normal(len(wave.samples)))
    return Wave((noise * wave.rms / np.sqrt(np.mean(noise**2))).astype(np.float32), wave.rate_hz)


def _rate(text: str, heard: str) -> float:
    value = metrics.cer(text, heard).value
    if value is None:
        raise CaseError(f"text {text!r} has no letters", next_step="give it words")
    return value


def _rates(texts: Sequence[str], heard: Sequence[str]) -> np.ndarray:
    return np.array([_rate(text, h) for text, h in zip(texts, heard)])


@dataclass(frozen=True)
class Language:
    """What language a case's recordings are in, by Whisper.

    Attributes
    ----------
    heard : str
        The likeliest; empty where there is nothing to hear or the model knows English only.
    probability, of_stated : float
        Of `heard` and of the case's own, 0 to 1.
    seconds : float
        How much was heard.
    """

    heard: str = ""
    probability: float = 0.0
    of_stated: float = 0.0
    seconds: float = 0.0

    @property
    def certain(self) -> bool:
        """Whether it is as good as certain."""
        return self.probability >= SURE


def spoken_language(case: Case, judge: Transcriber) -> Language:
    """Hear what language the case's real recordings are in, joined up to 30 s: one short clip alone is a coin toss."""
    waves = [resample(wave, JOINED_HZ).samples for wave, _ in real_recordings(case, MOST_JOINED) if wave.rms >= LEAST_RMS]
    pause = np.zeros(JOINED_HZ // 5, np.float32)
    joined = Wave(np.concatenate([part for samples in waves for part in (samples, pause)]), JOINED_HZ) if waves else None
    found = judge.languages(joined) if joined is not None else {}
    if joined is None or not found:
        return Language()
    heard = max(found, key=found.__getitem__)
    return Language(heard, found[heard], found.get(case.language, 0.0), min(joined.seconds, WINDOW_S))


def transcriber(case: Case, model: str = "base", device: str = "cpu") -> Transcriber:
    """Return the recogniser for a case: in the language that the case states, else in the one that its recordings are in.

    Raises
    ------
    AsrError
        No weights. The recordings are in another language than the case states: Whisper would translate. None is stated,
        and Whisper cannot tell.
    """
    judge = Transcriber(case.language, model, device)
    spoken = spoken_language(case, judge)
    told = f"Whisper: {spoken.probability:.2f} on {spoken.seconds:.0f} s"
    if "language" not in case.model_fields_set:
        if spoken.heard and not spoken.certain:
            raise AsrError(
                f"no language is stated, and the recordings do not tell ({spoken.heard!r}? {told})",
                next_step="state it, by its two letters: language: in the case, or --language (pt, en, es, …)",
            )
        judge.language = spoken.heard or judge.language
    elif spoken.certain and spoken.heard != case.language and spoken.of_stated <= 1 - SURE:
        raise AsrError(
            f"the recordings are in {spoken.heard!r} ({told}) and the case says {case.language!r}: Whisper would translate them",
            next_step=f"set language: {spoken.heard}",
        )
    return judge


@dataclass(frozen=True)
class Scored:
    """A sample with what was heard and its measures."""

    sample: Sample
    transcript: Transcript
    cer: float

    @property
    def caption(self) -> str:
        """Caption for a player: recipe, prompt, seed, CER and transcript."""
        return f"{self.sample.label} · CER {self.cer:.2f} · heard: {self.transcript.text or '(nothing)'}"


def score(samples: Sequence[Sample], transcriber: Transcriber) -> list[Scored]:
    """Transcribe samples and score each against its own text."""
    heard = transcriber([sample.wave for sample in samples])
    return [Scored(s, t, _rate(s.text, t.text)) for s, t in zip(samples, heard)]


def mean_cer(scored: Sequence[Scored]) -> Estimate:
    """Return the mean CER with its interval over prompts (seeds of one prompt are drawn together)."""
    return cluster_mean([s.cer for s in scored], [s.sample.prompt_id for s in scored], within=SHARE)


def score_recordings(prompts: Sequence[Prompt], transcriber: Transcriber) -> float:
    """Return the mean CER of the prompts' real recordings (targets where there are any, else references)."""
    pairs = dict.fromkeys((p.gen_audio, p.gen_text) if p.gen_audio else (p.ref_audio, p.ref_text) for p in prompts)
    heard = transcriber([load_wave(path) for path, _ in pairs])
    return float(_rates([text for _, text in pairs], [t.text for t in heard]).mean())
