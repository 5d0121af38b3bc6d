"""`f5lab cycle`: recordings through mel and vocoder and back, and those that cannot go that way."""

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import soundfile as sf

from f5lab import audio, cycles, paths
from f5lab.audio import Wave
from f5lab.errors import AudioError

CLIP = paths.data_dir() / "speech" / "ptbr" / "jm_kumo_phrase_0012.ogg"
VOCOS = paths.data_dir() / "specimen" / "vocos"


def test_the_vocoder_is_named_and_its_cycle_is_near_griffin_lims() -> None:
    found = cycles.report([CLIP], device="cpu")
    assert "specimen" in found["vocoder"]
    vocoder, reference, other_mel = found["recordings"][0]["cycles"]
    assert (vocoder["method"], reference["method"], other_mel["mel"]) == ("vocoder", "Griffin-Lim", "bigvgan")
    assert vocoder["mel_l1_nat"] < 2 * reference["mel_l1_nat"] and vocoder["mcd_db"] < reference["mcd_db"] * 1.5


def test_one_bad_recording_keeps_the_others(call: Callable, tmp_path: Path) -> None:
    tone = 0.2 * np.sin(np.arange(24000) * 0.05)
    sf.write(tmp_path / "opposed.wav", np.stack([tone, -tone], axis=1), 24000)
    sf.write(tmp_path / "short.wav", tone[:200], 24000)
    sf.write(tmp_path / "silent.wav", 0 * tone, 24000)
    (tmp_path / "text.wav").write_text("no audio")
    bad = [str(tmp_path / f"{name}.wav") for name in ("opposed", "short", "silent", "text", "gone")]
    status, _, err = call("cycle", str(CLIP), *bad, "--vocoder", str(VOCOS), "--json", str(tmp_path / "c.json"), "--device", "cpu")
    found = json.loads((tmp_path / "c.json").read_text(encoding="utf-8"))
    assert status == 1 and "5 of 6 recordings not measured" in err and found["vocoder"] == "vocos"
    said = [row.get("problem", "") for row in found["recordings"]]
    assert said[0] == "" and all(word in text for word, text in zip(("cancel", "0.008 s", "silent", "not readable", "gone.wav"), said[1:]))
    assert "cancel" not in said[3]


@pytest.mark.parametrize("samples", [1, 500, 1024, 2399])
def test_what_is_too_short_is_refused(samples: int) -> None:
    with pytest.raises(AudioError, match="at least 0.1 s"):
        cycles.run_cycle(Wave(np.ones(samples, np.float32) * 0.1, 24000), "vocos")


def test_a_tenth_of_a_second_goes_through() -> None:
    noise = Wave(np.random.default_rng(0).normal(0, 0.1, 2400).astype(np.float32), 24000)
    assert np.isfinite(cycles.run_cycle(noise, "vocos").mel_l1.value)
    assert audio.band_limit_hz(noise) > 10_000
