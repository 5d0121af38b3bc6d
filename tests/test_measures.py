"""Metrics, intervals, audio and the oracle against closed forms and invariants."""

import re
from pathlib import Path

import numpy as np
import pytest
import soundfile as sf

from f5lab import audio, metrics, oracles, statistics
from f5lab.asr import Transcript
from f5lab.audio import Wave
from f5lab.errors import AudioError, CaseError


def tone(frequency: float = 440.0, seconds: float = 0.5, rate: int = 24000, level: float = 0.3) -> Wave:
    return Wave(
        (level * np.sin(2 * np.pi * frequency * np.arange(int(seconds * rate)) / rate)).astype(np.float32), rate
    )


@pytest.mark.parametrize(
    ("text", "heard", "expected"),
    [
        ("O gato.", "o gato", 0.0),
        ("O gato.", "ogato", 0.0),
        ("avó", "avô", 1 / 3),
        ("O gato.", "", 1.0),
        ("oi", "oi oi oi oi oi", 1.0),
        ("对，这就是我", "對,這就是我", 0.0),
        ("對，這就是我", "对这就是你", 0.2),
        ("東京に行く", "东京に行く", 0.0),
        ("看著窗外", "看着窗外", 0.0),
        ("２０２４年", "2024年", 0.0),
    ],
)
def test_cer(text: str, heard: str, expected: float) -> None:
    assert metrics.cer(text, heard).value == pytest.approx(expected)


def test_cer_composes_accents_and_is_undefined_without_letters() -> None:
    assert metrics.cer("avó", "avo\u0301").value == 0
    score = metrics.cer("...", "a")
    assert score.value is None and "no letters" in score.reason
    assert metrics.wer("um dois", "um tres").value == 0.5


def test_autojunk_halves_a_near_identical_pair() -> None:
    text = "a casa amarela tem uma sala e uma cama " * 8
    changed = text.replace("cama", "mesa", 2)
    plain = metrics.sequence_ratio(text, changed, autojunk=False).value
    assert metrics.cer(text, changed).value < 0.05
    assert metrics.sequence_ratio(text, changed).value < plain / 2


def test_distances_are_zero_for_equal_and_positive_for_different() -> None:
    a, b = tone(440), tone(880)
    for measure in (metrics.log_spectral_distance, metrics.mel_cepstral_distortion):
        assert measure(a, a).value == pytest.approx(0, abs=1e-9)
        assert measure(a, b).value > 1
    assert metrics.log_spectral_distance(a, Wave(a.samples, 16000)).value is None
    assert metrics.mel_cepstral_distortion(a, Wave(a.samples[:100], a.rate_hz)).value is None


def test_level_does_not_count_in_mcd() -> None:
    noise = np.random.default_rng(0).standard_normal(12000).astype(np.float32) * 0.1
    distance = metrics.mel_cepstral_distortion(Wave(noise, 24000), Wave(noise / 2, 24000), align=False)
    assert distance.value < 0.1


def test_mel_l1_and_speaker_cosine() -> None:
    mel = np.zeros((4, 100), np.float32)
    assert metrics.mel_l1(mel, mel + 2).value == 2
    assert metrics.mel_l1(mel, mel[:3]).value is None
    assert metrics.speaker_cosine(np.array([1.0, 0]), np.array([0, 2.0])).value == 0
    assert metrics.speaker_cosine(np.zeros(2), np.ones(2)).value is None


@pytest.mark.parametrize("prompts", [2, 3, 4, 8, 30])
@pytest.mark.parametrize("seeds", [1, 3])
def test_intervals_hold_the_mean_as_often_as_they_say(prompts: int, seeds: int) -> None:
    rng, hits = np.random.default_rng(prompts), []
    for _ in range(400):
        values = 0.5 + np.repeat(rng.normal(0, 0.2, prompts), seeds) + rng.normal(0, 0.1, prompts * seeds)
        found = statistics.cluster_mean(values, np.repeat(range(prompts), seeds))
        hits.append(found.low <= 0.5 <= found.high)
    assert 0.91 <= np.mean(hits) <= 0.98


@pytest.mark.parametrize("recordings", [3, 4, 8])
def test_an_interval_of_ratios_holds_what_is_true_whatever_the_recordings_weigh(recordings: int) -> None:
    rng, hits, labels = np.random.default_rng(recordings), [], np.repeat(range(recordings), 3)
    for _ in range(400):
        before = np.exp(rng.normal(-1, 0.5, recordings * 3))
        change = np.repeat(rng.normal(0, 0.2, recordings), 3) + rng.normal(0, 0.1, recordings * 3)
        found = statistics.paired_ratio(before * 1.3 * np.exp(change), before, labels)
        hits.append(found.low <= 0.3 <= found.high)
        assert found.n == recordings
    assert 0.91 <= np.mean(hits) <= 0.98


def test_a_ratio_of_nothing_or_of_unequal_lengths_is_refused() -> None:
    same = statistics.paired_ratio([0.5, 2.0], [0.5, 2.0])
    assert (same.mean, *same.interval) == (0, 0, 0)
    for after, before in (([1.0, 0.0], [1.0, 1.0]), ([1.0], [1.0, 1.0]), ([np.nan], [1.0]), ([], [])):
        with pytest.raises(ValueError, match="above 0|finite"):
            statistics.paired_ratio(after, before)


def test_an_interval_of_few_is_the_textbooks_and_stays_within_bounds() -> None:
    from scipy import stats

    values = [0.1, 0.4, 0.2, 0.6]
    found = statistics.cluster_mean(values)
    half = stats.t.ppf(0.975, 3) * np.std(values, ddof=1) / 2
    assert found.interval == pytest.approx((np.mean(values) - half, np.mean(values) + half))
    assert statistics.cluster_mean(values, within=statistics.SHARE).interval == pytest.approx((0, found.high))


def test_seeds_of_one_prompt_do_not_count_as_prompts() -> None:
    values = [0.1, 0.9, 0.2, 0.8]
    clustered = statistics.cluster_mean(np.repeat(values, 50), np.repeat(range(4), 50))
    naive = statistics.cluster_mean(np.repeat(values, 50))
    assert clustered.n == 4 and clustered.high - clustered.low > 3 * (naive.high - naive.low)
    assert statistics.cluster_mean([0.5, 0.6], ["p", "p"]).interval == (-np.inf, np.inf)


@pytest.mark.parametrize("values", [[], [0.1, np.nan]])
def test_bootstrap_refuses_nothing_and_nan(values: list[float]) -> None:
    with pytest.raises(ValueError, match="need finite values"):
        statistics.cluster_mean(values)
    with pytest.raises(ValueError, match="pairs needed"):
        statistics.paired_difference([1.0], [1.0, 2.0])


def test_prompts_needed_is_the_textbook_figure() -> None:
    """G*Power's, of a two-sided paired t test with a power of 0.8."""
    assert [statistics.prompts_needed(1.0, d) for d in (0.2, 0.5, 0.8, 5.0)] == [199, 34, 15, 3]


def test_audio_is_read_as_it_is(tmp_path: Path) -> None:
    stereo = np.stack([np.full(800, 0.5), np.full(800, -0.1)], axis=1)
    sf.write(tmp_path / "s.wav", stereo, 8000, subtype="FLOAT")
    wave = audio.load_wave(tmp_path / "s.wav")
    assert wave.rate_hz == 8000 and wave.samples == pytest.approx(np.full(800, 0.2))
    facts = audio.audio_facts(tmp_path / "s.wav")
    assert any("8000 Hz" in w for w in facts.warnings) and any("2 channels" in w for w in facts.warnings)
    assert len(audio.load_wave(tmp_path / "s.wav", rate_hz=24000).samples) == 2400


def test_bad_recordings_are_named(tmp_path: Path) -> None:
    (tmp_path / "text.wav").write_text("no audio")
    sf.write(tmp_path / "empty.wav", np.zeros(0), 24000)
    sf.write(tmp_path / "nan.wav", np.full(10, np.nan), 24000, subtype="FLOAT")
    for name, says in (
        ("text.wav", "not readable as audio"),
        ("empty.wav", "holds no samples"),
        ("nan.wav", "not finite"),
        ("gone.wav", "does not exist"),
    ):
        with pytest.raises(AudioError, match=says):
            audio.load_wave(tmp_path / name)


def test_player_escapes_and_round_trips(tmp_path: Path) -> None:
    wave = tone()
    source = audio.player([("<script>x</script>", wave)], out=tmp_path, prefix="00-x")._repr_html_()
    assert "<script>" not in source and re.search(r'src="data:audio/flac;base64,', source)
    saved = audio.load_wave(tmp_path / "audio" / "00-x-01.flac")
    assert np.abs(saved.samples - wave.samples).max() < 2 / 32768


class Parrot:
    """A recogniser that knows each clip by its length."""

    def __init__(self, texts: dict[int, str]) -> None:
        self.texts = texts

    def __call__(self, waves: list[Wave]) -> list[Transcript]:
        return [Transcript(self.texts.get(len(w.samples), "") if w.rms > 0.2 else "", -0.1, 0.0) for w in waves]


def test_calibration_separates_only_when_the_oracle_hears() -> None:
    clips = [
        (tone(seconds=0.5 + k / 10), text)
        for k, text in enumerate(["o gato", "perto da praia", "viu um filme", "no trabalho"])
    ]
    known = {len(w.samples): t for w, t in clips}
    assert oracles.calibrate(clips, Parrot(known)).separates
    deaf = oracles.calibrate(clips, Parrot({}))
    assert not deaf.separates and deaf.ceiling.mean() == 1
    with pytest.raises(CaseError, match="at least 2"):
        oracles.calibrate(clips[:1], Parrot(known))
