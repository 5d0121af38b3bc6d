"""Recordings in and out: reading, facts about level and band, FLAC players for notebooks.

Nothing here resamples, trims or amplifies unless it is asked to.
"""

import base64
import html
import io
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import soundfile as sf

from f5lab.errors import AudioError
from f5lab.inert import prose
from f5lab.paths import atomic_path, existing_file

CLIP_LEVEL = 0.999
SILENCE_RMS = 1e-4
BAND_FLOOR_DB = -65.0


@dataclass(frozen=True)
class Wave:
    """Mono audio.

    Attributes
    ----------
    samples : np.ndarray [shape=(nw,), dtype=float32]
        Amplitude, full scale at ±1.
    rate_hz : int
    """

    samples: np.ndarray
    rate_hz: int

    @property
    def seconds(self) -> float:
        """Duration in seconds."""
        return len(self.samples) / self.rate_hz

    @property
    def rms(self) -> float:
        """Root mean square amplitude; 0 for an empty wave."""
        return float(np.sqrt(np.mean(np.square(self.samples, dtype=np.float64)))) if len(self.samples) else 0.0


def load_wave(path: str | Path, *, rate_hz: int | None = None) -> Wave:
    """Read a recording; channels are averaged, as upstream's dataset and ``infer_batch_process`` do.

    Parameters
    ----------
    path : str or Path
        Anything libsndfile reads (WAV, FLAC, Ogg, MP3).
    rate_hz : int, optional
        Resample to this rate (soxr, high quality). Left out: the file's own rate.

    Raises
    ------
    AudioError
        Missing or unreadable file, no samples, or samples that are not finite.
    """
    path = existing_file(Path(path), AudioError, "recording")
    try:
        samples, rate = sf.read(path, dtype="float32", always_2d=True)
    except sf.LibsndfileError as error:
        raise AudioError(f"{path} is not readable as audio ({error})", expected="WAV, FLAC, Ogg or MP3") from error
    if not len(samples):
        raise AudioError(f"{path} holds no samples", next_step="use another recording")
    mono = samples.mean(axis=1)
    if not np.isfinite(mono).all():
        raise AudioError(f"{path} holds values that are not finite", next_step="decode it again")
    wave = Wave(mono, int(rate))
    return wave if rate_hz is None else resample(wave, rate_hz)


def resample(wave: Wave, rate_hz: int) -> Wave:
    """Return `wave` at another sample rate (soxr HQ)."""
    if wave.rate_hz == rate_hz:
        return wave
    import librosa

    return Wave(librosa.resample(wave.samples, orig_sr=wave.rate_hz, target_sr=rate_hz, res_type="soxr_hq"), rate_hz)


@dataclass(frozen=True)
class AudioFacts:
    """What a recording's file and samples say; the warnings are in words that name the consequence."""

    rate_hz: int
    channels: int
    encoding: str
    seconds: float
    rms: float
    peak: float
    clipped_share: float
    band_limit_hz: float | None
    warnings: tuple[str, ...]


def audio_facts(path: str | Path) -> AudioFacts:
    """Examine a recording as a reference prompt or training clip.

    Returns
    -------
    AudioFacts
        ``band_limit_hz`` is the highest frequency whose long-term level lies within 65 dB of the loudest band, ``None``
        for silence. Warnings speak of F5-TTS's front end: 24 kHz, prompts under 12 s, level 0.1 RMS
        (``utils_infer.preprocess_ref_audio_text``, ``infer_batch_process``).
    """
    path = Path(path)
    wave = load_wave(path)
    info = sf.info(path)
    band = band_limit_hz(wave)
    warnings = []
    if wave.rms < SILENCE_RMS:
        warnings.append("silent: infer_process divides by its RMS and returns noise or NaN")
    elif wave.rms < 0.1:
        warnings.append(f"quiet (RMS {wave.rms:.3f}): infer_process raises it to 0.1, the trainer does not")
    if wave.seconds > 12:
        warnings.append(f"{wave.seconds:.1f} s: preprocess_ref_audio_text cuts at about 12 s but keeps the whole text")
    if info.channels > 1:
        loudest = float(np.sqrt(np.square(sf.read(path, dtype="float32", always_2d=True)[0]).mean(axis=0)).max())
        cancelled = "; they cancel each other, and the average is silent" if wave.rms < SILENCE_RMS <= loudest else ""
        warnings.append(f"{info.channels} channels: averaged to one{cancelled}")
    if info.samplerate < 24000:
        warnings.append(f"{info.samplerate} Hz: nothing above {info.samplerate // 2} Hz for a 24 kHz model")
    elif band is not None and band < 7000:
        warnings.append(f"nothing above {band:.0f} Hz: band-limited before it was stored at {info.samplerate} Hz")
    clipped = float(np.mean(np.abs(wave.samples) >= CLIP_LEVEL))
    if clipped > 1e-4:
        warnings.append(f"{clipped:.2%} of samples at full scale: clipped")
    peak = float(np.abs(wave.samples).max())
    return AudioFacts(
        info.samplerate, info.channels, f"{info.format} {info.subtype}", wave.seconds, wave.rms, peak, clipped, band,
        tuple(warnings),
    )  # fmt: skip


def band_limit_hz(wave: Wave) -> float | None:
    """Return the highest frequency whose long-term level lies within 65 dB of the loudest band; None for silence."""
    if wave.rms < SILENCE_RMS or len(wave.samples) < 1024:
        return None
    from scipy.signal import welch

    frequencies, power = welch(wave.samples, wave.rate_hz, nperseg=1024)
    level = 10 * np.log10(power + 1e-20)
    return float(frequencies[np.flatnonzero(level > level.max() + BAND_FLOOR_DB)[-1]])


def flac_bytes(wave: Wave) -> bytes:
    """Return the wave as 16-bit FLAC; amplitudes beyond full scale are clipped, as every player does."""
    buffer = io.BytesIO()
    sf.write(buffer, np.clip(wave.samples, -1, 1), wave.rate_hz, format="FLAC", subtype="PCM_16")
    return buffer.getvalue()


def save_flac(path: str | Path, wave: Wave) -> Path:
    """Write 16-bit FLAC, whole or not at all."""
    with atomic_path(Path(path)) as temporary:
        temporary.write_bytes(flac_bytes(wave))
    return Path(path)


@dataclass(frozen=True)
class Player:
    """One or more audio players with captions, embedded as FLAC; displays itself in a notebook."""

    items: tuple[tuple[str, Wave], ...]

    def _repr_html_(self) -> str:
        return f'<div class="players" style="display:flex;flex-wrap:wrap;gap:.6em 1.2em">{"".join(map(_figure, self.items))}</div>'


def _figure(item: tuple[str, Wave]) -> str:
    caption, wave = item
    data = base64.b64encode(flac_bytes(wave)).decode("ascii")
    return (
        '<figure class="player" style="margin:0">'
        f'<audio controls preload="metadata" src="data:audio/flac;base64,{data}"></audio>'
        f"<figcaption>{html.escape(prose(caption, 300))} ({wave.seconds:.1f} s)</figcaption></figure>"
    )


def player(items: Iterable[tuple[str, Wave]], *, out: str | Path = "", prefix: str = "") -> Player:
    """Return players for (caption, wave) pairs; in a run the waves are also saved as ``audio/<prefix>-NN.flac``.

    Parameters
    ----------
    items : iterable of (str, Wave)
    out : str or Path
        The run's folder; empty: nothing is saved.
    prefix : str
        ``NN-slug`` of the notebook and what is heard.
    """
    kept = tuple(items)
    if str(out):
        for number, (_, wave) in enumerate(kept, start=1):
            save_flac(Path(out) / "audio" / f"{prefix}-{number:02d}.flac", wave)
    return Player(kept)
