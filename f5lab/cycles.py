"""wav -> mel -> wav: what the mel and the vocoder lose, and nothing about the TTS model."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from f5lab import metrics, models
from f5lab.audio import SILENCE_RMS, Wave, audio_facts, load_wave, resample
from f5lab.errors import AudioError
from f5lab.metrics import Score
from f5lab.paths import data_dir, existing_file
from f5lab.specs import MelType, Vocoder

GRIFFIN_LIM_ITERATIONS = 60
LEAST_S = 0.1
"""Below this the mel has fewer frames than the measures have windows."""


@dataclass(frozen=True)
class MelFacts:
    """Statistics of a log-mel that tell vocos features from bigvgan ones.

    Attributes
    ----------
    mean, floor_share, top : float
        Mean (nats), share of values at the clamp log(1e-5), 99th percentile (nats).
    frames : int
    """

    mean: float
    floor_share: float
    top: float
    frames: int


def mel_facts(mel: np.ndarray) -> MelFacts:
    """Return statistics of a log-mel [shape=(n, 100)]."""
    return MelFacts(
        float(mel.mean()), float(np.mean(mel <= np.log(1e-5) + 1e-3)), float(np.quantile(mel, 0.99)), len(mel)
    )


def guess_mel_type(mel: np.ndarray, wave: Wave) -> tuple[MelType, float]:
    """Return which of upstream's two mel types a mel of `wave` is, and by how many nats it is nearer to that one.

    The two differ by scale (HTK without norm against Slaney with area norm), about 4.5 nats on average
    (``model/modules.py``).
    """
    distances = {}
    for kind in ("vocos", "bigvgan"):
        own = models.mel_spectrogram(wave, kind)
        n = min(len(own), len(mel))
        distances[kind] = float(np.abs(own[:n] - mel[:n]).mean())
    best = min(distances, key=distances.__getitem__)
    return best, abs(distances["vocos"] - distances["bigvgan"])


def griffin_lim(
    mel: np.ndarray, mel_spec_type: MelType = "vocos", *, iterations: int = GRIFFIN_LIM_ITERATIONS, seed: int = 0
) -> Wave:
    """Return the wave of a log-mel [shape=(n, 100)] by Griffin and Lim 1984, from a pseudo-inverse of the mel filters."""
    import librosa

    htk = mel_spec_type == "vocos"
    filters = librosa.filters.mel(
        sr=models.RATE_HZ,
        n_fft=models.MEL["n_fft"],
        n_mels=models.MEL["n_mel_channels"],
        htk=htk,
        norm=None if htk else "slaney",
    )
    magnitude = np.maximum(0.0, np.linalg.pinv(filters) @ np.exp(mel.T))
    state = np.random.RandomState(seed)
    samples = librosa.griffinlim(magnitude, n_iter=iterations, hop_length=models.HOP, center=htk, random_state=state)
    return Wave(samples.astype(np.float32), models.RATE_HZ)


@dataclass(frozen=True)
class Cycle:
    """One recording through a mel type and back by one method."""

    method: str
    mel_spec_type: MelType
    wave: Wave
    log_spectral_distance: Score
    mcd: Score
    mel_l1: Score


def run_cycle(wave: Wave, mel_spec_type: MelType, vocoder: torch.nn.Module | None = None) -> Cycle:
    """Take a 24 kHz recording through a mel and back, by `vocoder` or, without one, by Griffin-Lim.

    Raises
    ------
    ModelError
        The wave is not at 24 kHz.
    AudioError
        It is shorter than the mel and the vocoder need.
    """
    if wave.seconds < LEAST_S:
        raise AudioError(f"a recording of {wave.seconds:.3f} s", expected=f"at least {LEAST_S} s of speech")
    mel = models.mel_spectrogram(wave, mel_spec_type)
    made = griffin_lim(mel, mel_spec_type) if vocoder is None else models.decode_mel(vocoder, mel)
    n = min(len(made.samples), len(wave.samples))
    made, real = Wave(made.samples[:n], made.rate_hz), Wave(wave.samples[:n], wave.rate_hz)
    again = models.mel_spectrogram(made, mel_spec_type)
    shared = min(len(mel), len(again))
    return Cycle(
        "Griffin-Lim" if vocoder is None else "vocoder", mel_spec_type, made, metrics.log_spectral_distance(real, made),
        metrics.mel_cepstral_distortion(real, made), metrics.mel_l1(mel[:shared], again[:shared]),
    )  # fmt: skip


def report(recordings: list[Path], vocoder: Vocoder | None = None, device: str = "auto") -> dict[str, Any]:
    """Return file facts and cycle measures of recordings as a JSON-able dict: the body of ``f5lab cycle``.

    Without `vocoder` the specimen's small one is used. A recording that cannot be measured has a ``problem`` in its row.
    """
    device = models.pick_device(device)
    loaded = models.load_vocoder(vocoder or Vocoder(path=data_dir() / "specimen" / "vocos"), device)
    rows = []
    for path in recordings:
        try:
            rows.append(_measured(path, loaded))
        except AudioError as error:
            rows.append({"file": path.name, "problem": str(error)})
    own = "the specimen's, trained on two voices: it stands for no other; --vocoder takes yours"
    return {
        "vocoder": own if vocoder is None or vocoder.path is None else vocoder.path.name,
        "recordings": rows,
        "limit": "a good cycle says nothing about the checkpoint: no learned weight of the TTS model is touched",
    }


def _measured(path: Path, vocoder: torch.nn.Module) -> dict[str, Any]:
    existing_file(path, AudioError, "recording")
    facts, wave = audio_facts(path), resample(load_wave(path), models.RATE_HZ)
    if wave.rms < SILENCE_RMS:
        cancel = [text for text in facts.warnings if "cancel" in text]
        raise AudioError(f"{path} is silent{': ' if cancel else ''}{''.join(cancel)}", next_step="use a recording of speech")
    cycles = [run_cycle(wave, "vocos", vocoder), run_cycle(wave, "vocos"), run_cycle(wave, "bigvgan")]
    return {
        "file": path.name, "rate_hz": facts.rate_hz, "channels": facts.channels, "seconds": facts.seconds, "rms": facts.rms,
        "peak": facts.peak, "band_limit_hz": facts.band_limit_hz, "warnings": list(facts.warnings),
        "cycles": [
            {
                "method": c.method, "mel": c.mel_spec_type, "log_spectral_distance_db": c.log_spectral_distance.value,
                "mcd_db": c.mcd.value, "mel_l1_nat": c.mel_l1.value,
            }
            for c in cycles
        ],
    }  # fmt: skip
