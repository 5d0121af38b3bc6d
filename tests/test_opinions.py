"""MOS predictors: offline, beside controls, undefined with a reason."""

import importlib.util
import socket

import numpy as np
import pytest

from f5lab import audio, load_case, opinions, oracles, paths

NAMES = ["DistillMOS", "DNSMOS OVRL", "DNSMOS P.808"]


@pytest.fixture(scope="module")
def real() -> audio.Wave:
    return audio.load_wave(load_case(paths.default_case()).prompts[0].gen_audio)


def test_a_real_recording_is_rated_above_noise_of_its_level_without_a_network(
    real: audio.Wave, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture
) -> None:
    pytest.importorskip("distillmos")
    pytest.importorskip("speechmos")

    def refuse(*_: object) -> None:
        raise AssertionError("a predictor asked the network")

    monkeypatch.setattr(socket.socket, "connect", refuse)
    opinions._distillmos.cache_clear()
    good, bad = opinions.rate(real), opinions.rate(oracles.noise_like(real, np.random.default_rng(0)))
    assert [score.name for score in good] == NAMES
    assert all(1 <= score.value <= 5 and score.direction == "higher" for score in (*good, *bad))
    assert all(above.value > below.value for above, below in zip(good, bad))
    assert opinions.rate(real) == good
    assert str(paths.project_root()) not in capfd.readouterr().out


@pytest.mark.parametrize(
    ("samples", "reason"), [(np.zeros(24000), "silence"), (np.full(4800, 0.1), "only 0.20 s of audio")]
)
def test_what_can_not_be_rated_says_why(samples: np.ndarray, reason: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: object())
    scores = opinions.rate(audio.Wave(samples.astype(np.float32), 24000))
    assert [(score.name, score.value, score.reason) for score in scores] == [(name, None, reason) for name in NAMES]


def test_predictors_that_are_not_installed_say_how_to_get_them(real: audio.Wave, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    scores = opinions.rate(real)
    assert [score.name for score in scores] == NAMES
    assert scores[0].reason == "distillmos is not installed: pip install 'f5lab[measures]'"
    assert all(score.value is None for score in scores)


def test_a_number_that_is_none_is_no_score(real: audio.Wave, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: object())
    monkeypatch.setattr(opinions, "_PREDICTORS", {"x": (("X",), lambda samples: (float("nan"),))})
    (score,) = opinions.rate(real)
    assert (score.value, score.reason) == (None, "the predictor gives no finite number")
