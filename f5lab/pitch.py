"""Fundamental frequency: SwiftF0 where it is installed (the extra ``measures``), else librosa's pYIN."""

import functools
import importlib.util
from dataclasses import dataclass
from typing import Any

import numpy as np

from f5lab.audio import Wave, resample
from f5lab.metrics import Score

RATE_HZ, HOP = 16000, 256
LOWEST_HZ, HIGHEST_HZ = 60.0, 500.0
"""Band of speaking voices; creak below it counts as unvoiced."""
FEWEST_FRAMES = 8
"""Voiced frames (16 ms each) that a median needs."""
VOICED = 0.5


@dataclass(frozen=True)
class Pitch:
    """The pitch of a wave.

    Attributes
    ----------
    times_s : np.ndarray [shape=(n,)]
    f0_hz : np.ndarray [shape=(n,)]
        NaN where nothing is voiced.
    method : str
    """

    times_s: np.ndarray
    f0_hz: np.ndarray
    method: str

    @property
    def voiced_share(self) -> float:
        """Share of voiced frames; 0 for a wave without frames."""
        return float(np.isfinite(self.f0_hz).mean()) if len(self.f0_hz) else 0.0

    @property
    def median_hz(self) -> float | None:
        """Median over voiced frames; None when there are fewer than `FEWEST_FRAMES`."""
        voiced = self.f0_hz[np.isfinite(self.f0_hz)]
        return float(np.median(voiced)) if len(voiced) >= FEWEST_FRAMES else None


def track_pitch(wave: Wave, *, method: str = "auto") -> Pitch:
    """Return the pitch of a wave, a value every 16 ms.

    Parameters
    ----------
    wave : Wave
    method : {"auto", "swift-f0", "pyin"}
        ``auto``: swift-f0 where it is installed. Contours that are compared should come from one method.

    References
    ----------
    SwiftF0: Nieradzik, arXiv 2508.18440 (of its first version). pYIN: Mauch and Dixon 2014, by `librosa.pyin`.
    """
    if method == "auto":
        method = "swift-f0" if has_swift() else "pyin"
    samples = resample(wave, RATE_HZ).samples
    if len(samples) < 4 * HOP:
        return Pitch(np.zeros(0), np.zeros(0), method)
    times_s, f0_hz = _swift(samples) if method == "swift-f0" else _pyin(samples)
    return Pitch(times_s, f0_hz, method)


def has_swift() -> bool:
    """Return whether swift-f0 is installed."""
    return importlib.util.find_spec("swift_f0") is not None


@functools.cache
def _detector() -> Any:
    import swift_f0

    return swift_f0.SwiftF0(threads=1, spin=False)


def _swift(samples: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    found = _detector().detect(samples, RATE_HZ, LOWEST_HZ, HIGHEST_HZ)
    return found.timestamps, np.where(found.confidence >= VOICED, found.pitch_hz, np.nan)


def _pyin(samples: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    import librosa

    f0_hz, voiced, _ = librosa.pyin(samples, fmin=LOWEST_HZ, fmax=HIGHEST_HZ, sr=RATE_HZ, hop_length=HOP)
    return np.arange(len(f0_hz)) * HOP / RATE_HZ, np.where(voiced, f0_hz, np.nan)


def pitch_distance(spoken: Pitch, reference: Pitch) -> Score:
    """Distance of two voices' median pitch in semitones, ``|12 log2(a / b)|``; says nothing of the melody."""
    name, medians = "pitch distance", (spoken.median_hz, reference.median_hz)
    if spoken.method != reference.method:
        return Score(name, None, "semitones", "lower", f"two methods: {spoken.method} and {reference.method}")
    if medians[0] is None or medians[1] is None:
        return Score(name, None, "semitones", "lower", f"fewer than {FEWEST_FRAMES} voiced frames")
    return Score(name, abs(float(12 * np.log2(medians[0] / medians[1]))), "semitones", "lower")
