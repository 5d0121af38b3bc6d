"""Toy contests for blind listening: tones against noise, no model in sight."""

import numpy as np

from f5lab.audio import Wave
from f5lab.blind_listening.blind import Contest, Match, Side

RATE_HZ = 8000


def tone(frequency_hz: float, seconds: float = 0.5, amplitude: float = 0.2) -> Wave:
    times = np.arange(int(seconds * RATE_HZ)) / RATE_HZ
    return Wave((amplitude * np.sin(2 * np.pi * frequency_hz * times)).astype(np.float32), RATE_HZ)


def noise(seed: int, seconds: float = 0.6, amplitude: float = 0.05) -> Wave:
    rng = np.random.default_rng(seed)
    return Wave((amplitude * rng.standard_normal(int(seconds * RATE_HZ))).astype(np.float32), RATE_HZ)


def contest(pairs: int = 3) -> Contest:
    """Return a contest whose side a is noise and whose side b is tones, at other levels and lengths."""
    matches = [Match(f"p{i:02d}, seed 0", noise(i), tone(300 + 60 * i), f"Text {i}.") for i in range(1, pairs + 1)]
    return Contest(Side("as it runs", "a" * 32), Side("repaired", "b" * 32), tuple(matches))
