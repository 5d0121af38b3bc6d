"""Measures of speech and text. Each returns a `Score`: value, unit, direction, and a reason where it is undefined.

| function | compares | direction | range | source |
|---|---|---|---|---|
| `cer`, `wer` | transcript, text | lower | 0 to 1 (capped) | Levenshtein over characters or words, jiwer |
| `sequence_ratio` | transcript, text | higher | 0 to 1 | difflib; what the seed case used, for comparison only |
| `mel_l1` | two mels of equal shape | lower | >= 0 | mean absolute difference, nats |
| `log_spectral_distance` | two waves | lower | >= 0 dB | Gray and Markel 1976 |
| `mel_cepstral_distortion` | two waves | lower | >= 0 dB | Kubichek 1993, DTW-aligned |
| `speaker_cosine` | two embeddings | higher | -1 to 1 | Wan et al. 2018 (GE2E) |
| `duration_ratio` | two waves | near 1 | > 0 | seconds over seconds |
| `pitch.pitch_distance` | two pitch tracks | lower | >= 0 semitones | medians of SwiftF0 or pYIN |
| `opinions.rate` | one wave | higher | 1 to 5 | DistillMOS, DNSMOS |
"""

import difflib
import unicodedata
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from typing import TYPE_CHECKING, Literal

import jiwer
import numpy as np

from f5lab.audio import Wave

if TYPE_CHECKING:
    import opencc

Direction = Literal["lower", "higher", "near 1"]
MIN_SECONDS = 0.1


@dataclass(frozen=True)
class Score:
    """One measurement; `value` is None exactly when `reason` says why it is undefined."""

    name: str
    value: float | None
    unit: str
    direction: Direction
    reason: str = ""

    def __str__(self) -> str:
        return (
            f"{self.name} {self.value:.3f} {self.unit}".rstrip()
            if self.value is not None
            else f"{self.name} undefined: {self.reason}"
        )


def normalise(text: str) -> str:
    """Return text as the error rates see it: NFKC, lower case, punctuation and symbols to spaces, single spaces.

    Accents are kept: in Portuguese "avó" and "avô" are two people. Digits are not spelled out. Traditional Chinese becomes
    simplified, as in upstream's own evaluation (``eval/utils_eval.py``): Whisper writes either, whatever was spoken.

    Examples
    --------
    >>> normalise("Esqueceu o guarda-chuva.  ")
    'esqueceu o guarda chuva'
    >>> normalise("對,這就是我")
    '对 这就是我'
    """
    folded = unicodedata.normalize("NFKC", text).lower()
    if any("CJK UNIFIED" in unicodedata.name(c, "") for c in folded):
        folded = _to_simplified().convert(folded)
    kept = (" " if unicodedata.category(c)[0] in "PSZC" else c for c in folded)
    return " ".join("".join(kept).split())


def has_letters(text: str) -> bool:
    """Return whether a text has anything that the error rates compare: letters or digits."""
    return bool(normalise(text))


@cache
def _to_simplified() -> "opencc.OpenCC":
    import opencc

    return opencc.OpenCC("tw2s")


def _error_rate(name: str, reference: str, hypothesis: str, rate: Callable[[str, str], float]) -> Score:
    if not reference:
        return Score(name, None, "", "lower", "the text has no letters to compare with")
    return Score(name, min(1.0, float(rate(reference, hypothesis))), "", "lower")


def cer(text: str, heard: str) -> Score:
    """Character error rate of a transcript against the text that should be heard.

    Parameters
    ----------
    text, heard : str
        Both go through `normalise`, then spaces are dropped: where words end is not audible ("a doutora", "adoutora"),
        on clips of a second it is the recogniser's guess. An empty transcript scores 1.

    Returns
    -------
    Score
        Edits divided by characters of `text`, capped at 1: Whisper loops on noise and would score 7 where 1 already
        means "nothing of it was heard". Undefined when `text` has no letters.

    Examples
    --------
    >>> cer("O gato.", "o pato").value
    0.2
    """
    return _error_rate("CER", normalise(text).replace(" ", ""), normalise(heard).replace(" ", ""), jiwer.cer)


def wer(text: str, heard: str) -> Score:
    """Word error rate, capped at 1; see `cer`."""
    return _error_rate("WER", normalise(text), normalise(heard), jiwer.wer)


def sequence_ratio(text: str, heard: str, *, autojunk: bool = True) -> Score:
    """difflib's similarity, the seed case's measure; for comparison with published figures only.

    With ``autojunk`` (difflib's default) every character that makes up over 1 % of a text of 200 characters or more
    is ignored, so near-identical long texts score low.
    """
    ratio = difflib.SequenceMatcher(None, text.lower().strip(), heard.lower().strip(), autojunk=autojunk).ratio()
    return Score("sequence ratio", ratio, "", "higher")


def mel_l1(a: np.ndarray, b: np.ndarray) -> Score:
    """Mean absolute difference of two log-mels [shape=(n, d)], in nats; undefined when the shapes differ."""
    if a.shape != b.shape:
        return Score("mel L1", None, "nat", "lower", f"shapes differ: {a.shape} and {b.shape}")
    return Score("mel L1", float(np.abs(a.astype(np.float64) - b).mean()), "nat", "lower")


def log_spectral_distance(a: Wave, b: Wave, *, n_fft: int = 1024, hop: int = 256) -> Score:
    """Root-mean-square difference of two power spectra in dB, frame by frame over the shorter wave's length.

    Needs sample-aligned waves (copy-synthesis), not two readings of a text. Levels under -80 dB of each wave's peak
    are floored, so that digital silence does not dominate.
    """
    name = "log-spectral distance"
    problem = _incomparable(a, b)
    if problem:
        return Score(name, None, "dB", "lower", problem)
    length = min(len(a.samples), len(b.samples))
    spectra = [_power_db(w.samples[:length], n_fft, hop) for w in (a, b)]
    return Score(name, float(np.sqrt(np.square(spectra[0] - spectra[1]).mean(0)).mean()), "dB", "lower")


def _power_db(samples: np.ndarray, n_fft: int, hop: int) -> np.ndarray:
    import librosa

    power = np.abs(librosa.stft(samples, n_fft=n_fft, hop_length=hop)) ** 2
    return librosa.power_to_db(power, ref=max(float(power.max()), 1e-12), top_db=80.0)


def mel_cepstral_distortion(a: Wave, b: Wave, *, n_coefficients: int = 13, align: bool = True) -> Score:
    """Mel-cepstral distortion in dB, aligned by dynamic time warping.

    ``10 / ln 10 * sqrt(2 * sum_k (c_k - c'_k)^2)`` averaged over the path, c_0 (level) left out (Kubichek 1993).
    Cepstra: DCT-II of 80 log-mel bands, 1024-point windows every 256 samples.
    """
    name = "MCD"
    problem = _incomparable(a, b)
    if problem:
        return Score(name, None, "dB", "lower", problem)
    import librosa

    first, second = (_cepstra(w, n_coefficients) for w in (a, b))
    if align:
        _, path = librosa.sequence.dtw(first, second, metric="euclidean")
        first, second = first[:, path[:, 0]], second[:, path[:, 1]]
    else:
        frames = min(first.shape[1], second.shape[1])
        first, second = first[:, :frames], second[:, :frames]
    distances = np.sqrt(2 * np.square(first - second).sum(0))
    return Score(name, float(10 / np.log(10) * distances.mean()), "dB", "lower")


def _cepstra(wave: Wave, n_coefficients: int) -> np.ndarray:
    import librosa
    from scipy.fft import dct

    mel = librosa.feature.melspectrogram(
        y=wave.samples, sr=wave.rate_hz, n_fft=1024, hop_length=256, n_mels=80, power=1.0
    )
    return dct(np.log(np.maximum(mel, 1e-5)), axis=0, norm="ortho")[1 : n_coefficients + 1]


def _incomparable(a: Wave, b: Wave) -> str:
    if a.rate_hz != b.rate_hz:
        return f"sample rates differ: {a.rate_hz} and {b.rate_hz} Hz"
    short = min(a.seconds, b.seconds)
    return f"only {short:.2f} s of audio" if short < MIN_SECONDS else ""


def speaker_cosine(a: np.ndarray, b: np.ndarray) -> Score:
    """Cosine of two speaker embeddings [shape=(256,)]; undefined for a zero vector (silence)."""
    norms = float(np.linalg.norm(a) * np.linalg.norm(b))
    if not np.isfinite(norms) or norms == 0:
        return Score("speaker cosine", None, "", "higher", "an embedding is zero or not finite")
    return Score("speaker cosine", float(np.dot(a, b) / norms), "", "higher")


def duration_ratio(spoken: Wave, reference: Wave) -> Score:
    """Seconds spoken over seconds of the real recording; undefined when the reference is empty."""
    if reference.seconds == 0:
        return Score("duration ratio", None, "", "near 1", "the reference is empty")
    return Score("duration ratio", spoken.seconds / reference.seconds, "", "near 1")
