"""Speaker embeddings by Resemblyzer's GE2E encoder (Wan et al. 2018); its one importer."""

import functools
import importlib.util
import warnings
from pathlib import Path

import numpy as np
import torch

from f5lab.audio import Wave, resample
from f5lab.errors import ModelError
from f5lab.mappings import load_tensors

RATE_HZ = 16000
MIN_SECONDS = 0.5


@functools.cache
def _encoder() -> torch.nn.Module:
    spec = importlib.util.find_spec("resemblyzer")
    if spec is None or spec.origin is None:
        raise ModelError("resemblyzer is not installed", next_step="install the locked requirements")
    weights = Path(spec.origin).parent / "pretrained.pt"
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # its VAD dependency imports the deprecated pkg_resources
        from resemblyzer import VoiceEncoder
    encoder = VoiceEncoder.__new__(VoiceEncoder)  # its __init__ unpickles freely; load the weights as data instead
    torch.nn.Module.__init__(encoder)
    encoder.lstm = torch.nn.LSTM(40, 256, 3, batch_first=True)
    encoder.linear = torch.nn.Linear(256, 256)
    encoder.relu = torch.nn.ReLU()
    encoder.device = torch.device("cpu")
    state = load_tensors(weights)["model_state"]
    encoder.load_state_dict(state, strict=False)
    return encoder.eval()


def embed(wave: Wave) -> np.ndarray:
    """Return the speaker embedding of a wave.

    Level is normalised as Resemblyzer's ``preprocess_wav`` does (-30 dBFS, only raised); its silence trimming is not
    applied, so that a clip's own pauses count alike in every comparison.

    Returns
    -------
    np.ndarray [shape=(256,), dtype=float32]
        Unit length; zeros when the wave is shorter than 0.5 s or silent, which `metrics.speaker_cosine` calls undefined.
    """
    if wave.seconds < MIN_SECONDS or wave.rms < 1e-4:
        return np.zeros(256, dtype=np.float32)
    samples = resample(wave, RATE_HZ).samples
    gain = 10 ** (-30 / 20) / float(np.sqrt(np.mean(samples.astype(np.float64) ** 2)))
    return _encoder().embed_utterance((samples * max(gain, 1.0)).astype(np.float32))
