"""How long upstream's inference makes a text: the reference as it prepares it, and its byte rule."""

from dataclasses import dataclass

import librosa

from f5lab import models
from f5lab.audio import Wave, load_wave
from f5lab.errors import AudioError
from f5lab.models import HOP, LONGEST_REFERENCE_S, RATE_HZ, SHORT_BYTES, SHORT_SPEED
from f5lab.specs import Prompt, Recipe

QUIET_RMS = 0.01
"""Below this the edges of a reference are cut at -42 dBFS until little is left: its length means nothing."""

EDGE_DB = 42
"""Below full scale: upstream cuts quieter edges off a reference."""


@dataclass(frozen=True)
class Timing:
    """Seconds of the reference as stored and as prepared, of the new text by the byte rule, and of its real recording without the
    silence around it, which a prepared reference has lost too."""

    reference_s: float
    prepared_s: float
    given_s: float
    recorded_s: float | None


def _spoken_s(wave: Wave) -> float:
    """Return seconds without what lies below -42 dBFS at either end, as upstream's ``remove_silence_edges``."""
    kept, _ = librosa.effects.trim(wave.samples, top_db=EDGE_DB, ref=1.0, frame_length=512, hop_length=128)
    return len(kept) / wave.rate_hz


def pieces(prompt: Prompt, recipe: Recipe) -> list[str]:
    """Return the pieces in which upstream speaks a prompt's text; the text itself where the reference says nothing."""
    if not prompt.ref_text.strip():
        return [prompt.gen_text]
    return models.pieces(*models.prepare_reference(prompt.ref_audio, prompt.ref_text), prompt.gen_text, recipe.speed) or [prompt.gen_text]


def timing(prompt: Prompt, recipe: Recipe) -> Timing | None:
    """Return a prompt's timing; None where the reference is too quiet, too long or has no text.

    References
    ----------
    ``preprocess_ref_audio_text`` and ``infer_batch_process`` in ``f5_tts/infer/utils_infer.py``.
    """
    wave = load_wave(prompt.ref_audio)
    if wave.rms < QUIET_RMS or wave.seconds > LONGEST_REFERENCE_S or not prompt.ref_text.strip():
        return None
    path, text = models.prepare_reference(prompt.ref_audio, prompt.ref_text)
    prepared = load_wave(path).seconds
    try:
        recorded = _spoken_s(load_wave(prompt.gen_audio)) if prompt.gen_audio else None
    except AudioError:
        recorded = None
    frames = int(prepared * RATE_HZ) // HOP
    size = len(prompt.gen_text.encode())
    speed = SHORT_SPEED if size < SHORT_BYTES else recipe.speed
    given = int(frames / len((text + " ").encode()) * size / speed)
    if recipe.fix_duration is not None:
        given = max(0, int(recipe.fix_duration * RATE_HZ / HOP) - frames)
    return Timing(wave.seconds, prepared, given * HOP / RATE_HZ, recorded)
