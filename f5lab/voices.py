"""Is it the reference's voice? Similarities between recordings whose speakers are known, measured before clips are judged."""

import itertools
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from f5lab import metrics, paths, speakers
from f5lab.audio import load_wave
from f5lab.specimen.curricula import read_clips
from f5lab.specs import Case
from f5lab.statistics import cluster_mean

SPEECH = "speech/ptbr"
"""Below ``data/``: the bundled recordings, two synthetic voices."""


@dataclass(frozen=True)
class VoiceControls:
    """Speaker cosines of real recordings.

    Attributes
    ----------
    same : np.ndarray [shape=(k,)]
        References against the real recordings of the texts that they are prompts for; one speaker, by the case.
    other : np.ndarray [shape=(m,)]
        References against bundled recordings of voices that the case has no recording of.
    voices : tuple of str
        The bundled voices that `other` was measured with.
    """

    same: np.ndarray
    other: np.ndarray
    voices: tuple[str, ...]

    @property
    def separates(self) -> bool:
        """Whether the measure tells speakers apart here: at least 3 values a side, and their intervals apart."""
        if min(len(self.same), len(self.other)) < 3:
            return False
        same, other = cluster_mean(self.same), cluster_mean(self.other)
        return same.low > other.high

    @property
    def sentence(self) -> str:
        """What the controls say, in words."""
        if not len(self.same):
            return "No real recording of a prompt's text: there is no same-speaker control."
        if min(len(self.same), len(self.other)) < 3:
            return f"{len(self.same)} same-speaker and {len(self.other)} other-speaker pairs: too few to tell."
        told = "tells speakers apart" if self.separates else "does not tell speakers apart"
        return f"The measure {told} on this case's recordings; other voices: {', '.join(self.voices)}."


def measure_controls(case: Case, *, speech: Path | None = None, limit: int = 8) -> VoiceControls:
    """Measure same-speaker and other-speaker similarity on the case's own references.

    Parameters
    ----------
    case : Case
    speech : Path, optional
        Folder with ``metadata.csv``; default: the bundled speech.
    limit : int
        Most pairs of either kind.
    """
    speech = paths.data_dir() / SPEECH if speech is None else speech
    own = {path.resolve() for p in case.prompts for path in (p.ref_audio, p.gen_audio) if path}
    pairs = [(p.ref_audio, p.gen_audio) for p in case.prompts if p.gen_audio and p.gen_audio != p.ref_audio][:limit]
    clips = read_clips(speech)
    present = {clip.voice for clip in clips if clip.path.resolve() in own}
    by_voice = {voice: [c.path for c in clips if c.voice == voice] for voice in sorted({c.voice for c in clips} - present)}
    mixed = [path for row in itertools.zip_longest(*by_voice.values()) for path in row if path is not None]
    references = list(dict.fromkeys(p.ref_audio for p in case.prompts))
    others = [(references[n % len(references)], path) for n, path in enumerate(mixed[:limit])]
    return VoiceControls(_cosines(pairs), _cosines(others), tuple(by_voice))


def _cosines(pairs: Sequence[tuple[Path, Path]]) -> np.ndarray:
    """Return the defined speaker cosines of pairs of files."""
    known = {path: speakers.embed(load_wave(path)) for path in {path for pair in pairs for path in pair}}
    scores = [metrics.speaker_cosine(known[a], known[b]).value for a, b in pairs]
    return np.array([score for score in scores if score is not None])
