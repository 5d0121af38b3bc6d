"""Pitch by both methods on voices of known pitch, and where it is undefined."""

import numpy as np
import pytest

from f5lab import audio, load_case, paths, pitch, plots

RATE = 24000


def voice(f0_hz: float, seconds: float = 0.8) -> audio.Wave:
    """A buzz with formant-like tilt: harmonics up to 4 kHz."""
    t = np.arange(int(seconds * RATE)) / RATE
    numbers = np.arange(1, int(4000 / f0_hz))
    samples = sum(np.sin(2 * np.pi * n * f0_hz * t) / n for n in numbers)
    return audio.Wave((0.1 * samples).astype(np.float32), RATE)


@pytest.fixture(params=["swift-f0", "pyin"])
def method(request: pytest.FixtureRequest) -> str:
    if request.param == "swift-f0":
        pytest.importorskip("swift_f0")
    return request.param


@pytest.mark.parametrize("f0_hz", [100.0, 210.0])
def test_known_pitch_is_found(method: str, f0_hz: float) -> None:
    found = pitch.track_pitch(voice(f0_hz), method=method)
    assert found.median_hz == pytest.approx(f0_hz, rel=0.03)
    assert found.voiced_share > 0.7
    assert found.times_s[1] - found.times_s[0] == pytest.approx(pitch.HOP / pitch.RATE_HZ)
    assert found.method == method


def test_silence_noise_and_a_click_have_no_pitch(method: str) -> None:
    rng = np.random.default_rng(0)
    noise = audio.Wave((0.05 * rng.standard_normal(RATE)).astype(np.float32), RATE)
    for wave in (audio.Wave(np.zeros(RATE, np.float32), RATE), audio.Wave(np.ones(100, np.float32), RATE)):
        found = pitch.track_pitch(wave, method=method)
        assert (found.median_hz, found.voiced_share) == (None, 0.0)
    assert pitch.track_pitch(noise, method=method).voiced_share < 0.2


def test_an_octave_is_twelve_semitones_and_what_is_undefined_says_why(method: str) -> None:
    low, high = (pitch.track_pitch(voice(f), method=method) for f in (110.0, 220.0))
    assert pitch.pitch_distance(high, low).value == pytest.approx(12, abs=0.6)
    assert pitch.pitch_distance(low, low).value == 0
    none = pitch.Pitch(np.zeros(9), np.full(9, np.nan), method)
    assert pitch.pitch_distance(low, none).value is None
    assert pitch.pitch_distance(low, none).reason == "fewer than 8 voiced frames"
    other = pitch.Pitch(low.times_s, low.f0_hz, "another")
    assert pitch.pitch_distance(low, other).reason == f"two methods: {method} and another"


def test_without_the_extra_librosa_does_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pitch, "has_swift", lambda: False)
    assert pitch.track_pitch(voice(150.0)).method == "pyin"


def test_both_methods_agree_on_a_real_voice() -> None:
    pytest.importorskip("swift_f0")
    wave = audio.load_wave(load_case(paths.default_case()).prompts[0].gen_audio)
    medians = [pitch.track_pitch(wave, method=name).median_hz for name in ("swift-f0", "pyin")]
    assert medians[0] == pytest.approx(medians[1], rel=0.05)


def test_contours_are_told_apart_without_colour_and_say_their_method() -> None:
    tracks = {"real": pitch.track_pitch(voice(120.0), method="pyin"), "none": pitch.Pitch(np.zeros(0), np.zeros(0), "pyin")}
    figure = plots.pitch_contours(tracks, caption="p01")
    ax = figure.axes[0]
    assert (ax.get_xlabel(), ax.get_ylabel()) == ("time (s)", "F0 (Hz), pyin")
    first, second = ax.get_lines()
    assert (first.get_marker(), first.get_linestyle()) != (second.get_marker(), second.get_linestyle())
    labels = [text.get_text() for text in ax.get_legend().get_texts()]
    assert labels[0].startswith("real: median 1") and labels[1] == "none: median none, 0% voiced"
