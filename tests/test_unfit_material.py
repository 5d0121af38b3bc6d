"""Material that cannot settle a question: the answer is unknown and says what would settle it, never a cause."""

import json
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import soundfile as sf

from f5lab import asr, audio, bundle_speech, bundles, diagnosis, listening, metrics, models, oracles, paths, statistics
from f5lab.audio import Wave
from f5lab.errors import AsrError, CaseError, LabError, ModelError, RunError, UsageError
from f5lab.faults import audio_faults, factors, suspects, text_faults, weight_faults
from f5lab.faults.examinations import Exam, Suspicion
from f5lab.listening import Comparison, Listening
from f5lab.planted import plants
from f5lab.probes import Gate
from f5lab.samplers import Sample
from f5lab.specs import Case, Inference, Prompt, Vocoder, load_case
from f5lab.statistics import Estimate
from f5lab.verdicts import UNHEARD, UNPROBED, Unknown, Verdict

HEALTHY = paths.data_dir() / "cases" / "ptbr-repaired" / "case.yaml"


@pytest.fixture(scope="module")
def case() -> Case:
    return load_case(HEALTHY)


def only(found: list[Suspicion], name: str) -> Suspicion:
    return next(item for item in found if item.id == name)


def told(case: Case, **fields: Any) -> Case:
    """Return the case with fields set as its file would set them; None leaves one out."""
    given = {name: getattr(case, name) for name in case.model_fields_set} | fields
    return Case.model_validate({name: value for name, value in given.items() if value is not None})


# recordings


@pytest.mark.parametrize("variant", [10, 11], ids=["8 kHz", "16 kHz"])
def test_an_empty_upper_band_is_no_wrong_rate_and_no_wrong_vocoder(case: Case, tmp_path: Path, variant: int) -> None:
    exam = Exam(load_case(plants.healthy(case, tmp_path / "new", variant=variant)), device="cpu", limit=4, asr="")
    assert audio_faults.detect_rate_label(exam)[0].outcome != "cause"
    (vocoder,) = audio_faults.detect_vocoder(exam)
    assert vocoder.outcome == "unknown" and "Hz" in vocoder.needs


def test_recordings_with_full_bands_judge_the_vocoder_first(case: Case, tmp_path: Path) -> None:
    low = audio.save_flac(tmp_path / "low.flac", audio.resample(audio.load_wave(case.prompts[0].ref_audio), 8000))
    first = case.prompts[0].model_copy(update={"ref_audio": low, "gen_audio": None})
    exam = Exam(case.model_copy(update={"prompts": (first, *case.prompts[1:])}), device="cpu", asr="")
    assert audio_faults.detect_vocoder(exam)[0].outcome == "refuted"


def test_every_text_of_a_recording_is_compared_with_it(case: Case) -> None:
    """A wrong text must not hide behind a later prompt that has the recording's right one."""
    right = case.prompts[0]
    wrong = right.model_copy(update={"id": "wrong", "ref_text": "Uma frase que ninguém falou aqui."})
    exam = Exam(case.model_copy(update={"prompts": (wrong, right)}), device="cpu")
    assert [item.text for item in exam.references] == [wrong.ref_text, right.ref_text]
    found = audio_faults.detect_reference_text(exam)[0]
    assert found.outcome == "cause" and found.n == 2


def test_a_reference_in_noise_is_not_a_wrong_text(case: Case, tmp_path: Path) -> None:
    """Nobody hears its text there; but the weights explain it no better by what is heard instead."""
    rng, noisy = np.random.default_rng(0), []
    for prompt in case.prompts[:4]:
        wave = audio.load_wave(prompt.ref_audio)
        noise = rng.normal(0, 1.8 * wave.rms, len(wave.samples)).astype(np.float32)
        path = audio.save_flac(tmp_path / f"{prompt.id}.flac", Wave(0.4 * (wave.samples + noise), wave.rate_hz))
        noisy.append(prompt.model_copy(update={"ref_audio": path}))
    found = audio_faults.detect_reference_text(Exam(told(case, prompts=tuple(noisy)), device="cpu"))[0]
    assert found.outcome == "unknown" and "may be unclear" in found.claim and found.needs == "a clear recording of each reference"


def test_without_the_probe_a_text_that_is_not_heard_is_named_with_its_doubt(case: Case) -> None:
    wrong = tuple(p.model_copy(update={"ref_text": "Uma frase que ninguém falou aqui."}) for p in case.prompts)
    exam = Exam(told(case, prompts=wrong), device="cpu")
    sure = audio_faults.detect_reference_text(exam)[0]
    exam.truth = replace(exam.truth, problem="no recording")  # type: ignore[misc]
    doubted = audio_faults.detect_reference_text(exam)[0]
    assert sure.confidence > doubted.confidence and "unless the recording is unclear" in doubted.claim


def test_texts_without_letters_cannot_be_compared(case: Case) -> None:
    silent = tuple(p.model_copy(update={"ref_text": "…!?"}) for p in case.prompts)
    found = audio_faults.detect_reference_text(Exam(case.model_copy(update={"prompts": silent}), device="cpu"))[0]
    assert found.outcome == "unknown" and "letters" in found.claim


# the recogniser's language


def test_a_recogniser_told_the_wrong_language_judges_nothing(case: Case) -> None:
    """Told English, Whisper translates Portuguese: right texts would be named wrong."""
    wrong = told(case, language="en")
    with pytest.raises(AsrError, match="recordings are in 'pt'.*set language: pt"):
        oracles.transcriber(wrong)
    found = audio_faults.detect_reference_text(Exam(wrong, device="cpu"))[0]
    assert found.outcome == "unknown" and "'pt'" in found.claim and found.needs == "set language: pt"


def test_a_transcript_that_was_cut_is_written_on(case: Case, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where letters take three tokens each, what is said in a second takes more than Portuguese does."""
    heard = oracles.transcriber(case)
    waves = [audio.load_wave(p.gen_audio) for p in case.prompts[:2] if p.gen_audio]
    whole = [t.text for t in heard._decode(waves)]
    monkeypatch.setattr(asr, "FEWEST_TOKENS", 3)
    monkeypatch.setattr(asr, "TOKENS_PER_SECOND", 0)
    assert [t.text for t in heard._decode(waves)] == whole
    monkeypatch.setattr(asr, "LONGER", 1)
    assert all(len(t.text) < len(text) for t, text in zip(heard._decode(waves), whole, strict=True))


def test_a_language_that_nobody_states_is_heard(case: Case) -> None:
    unstated = told(case, language=None)
    assert oracles.transcriber(unstated).language == "pt" and "not stated" in unstated.language_text
    assert audio_faults.detect_reference_text(Exam(unstated, device="cpu"))[0].outcome == "refuted"


def test_one_short_clip_does_not_tell_the_language(case: Case) -> None:
    clip = paths.data_dir() / "speech" / "ptbr" / "jm_kumo_phrase_0012.ogg"
    prompt = Prompt(id="p", ref_audio=clip, ref_text="Comprou um livro.", gen_text="Contou uma história.")
    with pytest.raises(AsrError, match="no language is stated"):
        oracles.transcriber(told(case, language=None, prompts=(prompt,)))


def test_near_silence_tells_no_language(case: Case, tmp_path: Path) -> None:
    quiet = audio.save_flac(tmp_path / "quiet.flac", Wave(np.full(48000, 1e-4, np.float32), 24000))
    prompts = (Prompt(id="p", ref_audio=quiet, ref_text="Nada.", gen_text="Nada."),)
    silent = told(case, prompts=prompts)
    assert oracles.spoken_language(silent, oracles.transcriber(silent)) == oracles.Language()


# texts and their durations


def test_a_byte_front_end_lacks_no_symbol(case: Case) -> None:
    exam = Exam(case, device="cpu", asr="")
    exam.truth = replace(exam.truth, recipe=exam.truth.recipe.but(front_end="byte"))  # type: ignore[misc]
    found = text_faults.detect_unknown(exam) + text_faults.detect_vocab(exam)
    assert {item.outcome for item in found} == {"refuted"} and len(found) == 1 + len(text_faults.VOCAB_FAULTS)


@pytest.mark.parametrize(("recordings", "outcome"), [(1, "unknown"), (2, "unknown"), (3, "cause")])
def test_few_recordings_do_not_tell_that_training_saw_no_capitals(case: Case, recordings: int, outcome: str) -> None:
    exam = Exam(told(case, prompts=case.prompts[:1]), device="cpu", asr="")
    assert exam.truth.problem == ""
    exam.probe.compare = lambda *_: Estimate(-0.1, -0.12, -0.08, recordings)  # type: ignore[method-assign]
    (found,) = text_faults.detect_capitals(exam)
    assert found.outcome == outcome


@pytest.mark.parametrize("change", [{"fix_duration": 2.0}, {"speed": 3.0}, {"speed": 0.2}], ids=str)
def test_a_chosen_duration_is_not_the_byte_rules_doing(case: Case, change: dict[str, float]) -> None:
    odd = case.model_copy(update={"inference": case.inference.model_copy(update=change)})
    exam = Exam(odd, device="cpu", limit=4, asr="")
    assert only(text_faults.detect_length(exam), "duration-byte-ratio").outcome == "refuted"
    rest = diagnosis.examine(exam, [text_faults.detect_length])
    assert next(iter(change)) in only(rest, diagnosis.UNEXPLAINED).claim


@pytest.mark.parametrize("field", ["cfg_strength", "sway_sampling_coef", "speed", "fix_duration"])
@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
def test_settings_are_finite_numbers(field: str, value: float, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="finite|greater"):
        Inference(**{field: value})
    text = HEALTHY.read_text(encoding="utf-8").replace("../../", f"{paths.data_dir()}/")
    line = f"inference:\n  {field}: {str(value).replace('nan', '.nan').replace('inf', '.inf')}"
    (tmp_path / "case.yaml").write_text(text.replace("inference:", line, 1), encoding="utf-8")
    with pytest.raises(CaseError, match=field):
        load_case(tmp_path / "case.yaml")


# a detector that fails


def test_a_detector_that_fails_leaves_the_verdict_incomplete(case: Case, monkeypatch: pytest.MonkeyPatch) -> None:
    def breaks(exam: Exam) -> list[Suspicion]:
        raise ZeroDivisionError("by nothing")

    monkeypatch.setitem(diagnosis.DETECTORS, breaks, ("mel-type",))
    found = diagnosis.examine(Exam(case, device="cpu", limit=4, asr=""), [breaks, weight_faults.detect_prefix])
    assert [item.id for item in diagnosis.Diagnosis(None, tuple(found), None).crashed] == ["mel-type"]  # type: ignore[arg-type]


def test_a_download_that_failed_is_not_tried_again(monkeypatch: pytest.MonkeyPatch) -> None:
    tried = []

    def offline(*given: object) -> None:
        tried.append(given)
        raise OSError("no route\nto the hub")

    monkeypatch.setattr(models, "upstream", lambda: SimpleNamespace(load_vocoder=offline))
    monkeypatch.setattr(models, "_not_downloaded", {})
    for _ in range(2):
        with pytest.raises(ModelError, match="download.*no route.*vocoder.path"):
            models.load_vocoder(Vocoder())
    assert len(tried) == 1


def test_a_verdict_by_no_ear_says_so() -> None:
    silent = Verdict(
        case="c", run="r", healthy=True, causes=[], refuted=[], unknown=[Unknown(id=UNHEARD, needs="a vocoder")]
    )
    assert silent.headline.endswith("Nothing was listened to.")


def test_one_prompt_has_no_interval() -> None:
    assert str(statistics.cluster_mean([0.5])) == "0.500, no interval from one, n=1"


@pytest.mark.parametrize(
    ("rise", "verdict"),
    [
        (Estimate(0.02, 0.0, 0.08, 4), "supported"),
        (Estimate(0.3, 0.25, 0.4, 4), "refuted"),
        (Estimate(0.15, 0.05, 0.3, 4), "inconclusive"),
        (Estimate(0.0, -np.inf, np.inf, 1), "inconclusive"),
        (Estimate(0.0, 0.0, 0.0, 1), "inconclusive"),
    ],
)
def test_one_rule_judges_by_the_interval(rise: Estimate, verdict: str) -> None:
    assert suspects.cycle_verdict(rise) == listening.remains_verdict(rise) == verdict


def test_what_remains_is_measured_against_the_prompts_own_recordings(case: Case) -> None:
    """The real recordings in place of the repaired clips leave nothing; noise in their place leaves all of the text."""
    exam, prompts = Exam(case, device="cpu"), case.prompts[:3]
    assert listening.remaining(exam, Listening(None, {}, {})) is None
    for work, low, high in (
        (lambda wave: wave, -0.01, 0.01),
        (lambda wave: oracles.noise_like(wave, np.random.default_rng(0)), 0.5, 1),
    ):
        waves = [work(audio.load_wave(p.gen_audio or p.ref_audio)) for p in prompts]
        samples = [
            Sample(w, np.zeros((1, 100), np.float32), p.gen_text, p.id, "repaired", 0, 0.0)
            for p, w in zip(prompts, waves)
        ]
        scored = tuple(oracles.score(samples, exam.transcriber))
        rest = listening.remaining(exam, Listening(Comparison("all", scored, scored), {}, {}))
        assert rest is not None and low <= rest.mean <= high and rest.n == 3


# what would have been a plausible answer


def test_without_the_probe_no_case_is_healthy(case: Case) -> None:
    mute = told(case, prompts=tuple(p.model_copy(update={"ref_text": ""}) for p in case.prompts))
    found = diagnosis.diagnose(mute, device="cpu", listen=False, asr="")
    assert not found.verdict.healthy and UNPROBED in {item.id for item in found.verdict.unknown}
    assert "clears nothing" in found.verdict.headline


def test_a_base_that_is_the_checkpoint_is_refused(case: Case, tmp_path: Path) -> None:
    copy = tmp_path / "base.pt"
    copy.write_bytes(case.checkpoint.read_bytes())
    for base in (case.checkpoint, copy):
        with pytest.raises(CaseError, match="base is the checkpoint itself"):
            Exam(told(case, base=base), device="cpu", asr="")


@pytest.mark.parametrize("seconds, says", [(0.1, "too short to say a text"), (0.4, "no prompt has a recording of 0.5")])
def test_a_fragment_is_no_recording(case: Case, tmp_path: Path, seconds: float, says: str) -> None:
    wave = audio.load_wave(case.prompts[0].ref_audio)
    cut = audio.save_flac(tmp_path / "cut.flac", Wave(wave.samples[: int(seconds * wave.rate_hz)], wave.rate_hz))
    prompt = case.prompts[0].model_copy(update={"ref_audio": cut, "gen_audio": None})
    with pytest.raises(LabError, match=says):
        _ = Exam(told(case, prompts=(prompt,)), device="cpu", asr="").probe


def test_a_vocoder_is_not_judged_by_recordings_that_nobody_understands(case: Case, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    noise = Wave(np.random.default_rng(0).normal(0, 0.1, 36_000).astype(np.float32), 24_000)
    path = audio.save_flac(tmp_path / "noise.flac", noise)
    prompt = case.prompts[0].model_copy(update={"ref_audio": path, "gen_audio": None})
    exam = Exam(told(case, prompts=(prompt,)), device="cpu")
    exam.hear = lambda wave: "outra coisa"  # type: ignore[method-assign]
    (found,) = audio_faults.detect_vocoder(exam)
    assert found.outcome == "unknown" and "not heard as their texts" in found.claim
    exam.hear = lambda wave: prompt.ref_text  # type: ignore[method-assign]
    (found,) = audio_faults.detect_vocoder(exam)
    assert found.outcome == "unknown" and "understood as well as before" in found.claim
    as_recorded = np.abs(noise.samples[:100])

    def hear(wave: Wave) -> str:
        return prompt.ref_text if np.allclose(np.abs(wave.samples[:100]), as_recorded, atol=1e-3) else "outra coisa"

    exam.hear = hear  # type: ignore[method-assign]
    (found,) = audio_faults.detect_vocoder(exam)
    assert found.outcome == "unknown" and "never quiet" in found.claim
    monkeypatch.setattr(audio_faults, "_floor_db", lambda wave: -60.0)
    assert audio_faults.detect_vocoder(exam)[0].confidence == 0.95


def test_a_wrong_reference_text_explains_a_lagging_average(case: Case) -> None:
    both = [Suspicion(name, "cause", "Seen.", 0.9, 0.5) for name in ("ref-text-wrong", "ema-lag-inherited")]
    assert [item.id for item in diagnosis._settled(both) if item.outcome == "cause"] == ["ref-text-wrong"]


@pytest.mark.parametrize(("clipped", "named"), [("b", ["ref-clipped"]), ("a", ["ref-clipped", "ref-text-wrong"])])
def test_a_consequence_was_seen_of_the_same_recordings(clipped: str, named: list[str]) -> None:
    """A text that recording b does not say is no consequence of recording a being cut."""
    both = [
        Suspicion("ref-clipped", "cause", "Seen.", 0.9, 0.6, subjects=frozenset({clipped})),
        Suspicion("ref-text-wrong", "cause", "Seen.", 0.9, 0.5, subjects=frozenset({"b"})),
    ]
    assert [item.id for item in diagnosis._settled(both) if item.outcome == "cause"] == named


def test_silence_around_a_recording_is_no_speech(case: Case, tmp_path: Path) -> None:
    padded = []
    for prompt in case.prompts[:4]:
        wave = audio.load_wave(prompt.gen_audio or prompt.ref_audio)
        still = np.zeros(4 * wave.rate_hz, np.float32)
        path = audio.save_flac(tmp_path / f"{prompt.id}.flac", Wave(np.concatenate([still, wave.samples, still]), wave.rate_hz))
        padded.append(prompt.model_copy(update={"gen_audio": path}))
    ratios = []
    for prompts in (case.prompts[:4], tuple(padded)):
        found = text_faults.detect_length(Exam(told(case, prompts=prompts), device="cpu", limit=4, asr=""))
        assert only(found, "duration-byte-ratio").outcome == "refuted"
        ratios.append(only(found, "duration-byte-ratio").value)
    assert ratios[1] == pytest.approx(ratios[0], rel=0.02)


def test_recordings_without_speech_do_not_choose_between_raw_and_average(case: Case) -> None:
    exam = Exam(told(case, prompts=case.prompts[:4]), device="cpu", asr="")
    right = exam.truth.recipe.but(weights="raw")
    exam.loss_effect = lambda *_: (Estimate(0.3, 0.2, 0.4, 4), None)  # type: ignore[method-assign,assignment,return-value]
    for gate, outcome in ((exam.truth.gate, "cause"), (Gate(Estimate(0.001, -0.01, 0.01, 4)), "unknown")):
        exam.truth = replace(exam.truth, recipe=right, gate=gate)  # type: ignore[misc]
        assert outcome in {item.outcome for item in weight_faults._lag(exam) if item.id.startswith("ema-lag")}


def test_channels_that_cancel_each_other_are_named(case: Case, tmp_path: Path) -> None:
    wave = audio.load_wave(case.prompts[0].ref_audio)
    sf.write(tmp_path / "odd.wav", np.stack([wave.samples, -wave.samples], 1), wave.rate_hz)
    sf.write(tmp_path / "quiet.wav", np.stack([wave.samples, wave.samples], 1) * 1e-3, wave.rate_hz)
    for name, says in (("odd.wav", "channels of 1 cancel"), ("quiet.wav", "divided by 0.")):
        prompt = case.prompts[0].model_copy(update={"ref_audio": tmp_path / name})
        (found,) = audio_faults.detect_level(Exam(told(case, prompts=(prompt,)), device="cpu", asr=""))
        assert found.outcome == "cause" and says in found.claim
        assert ("one channel" in found.settings["ref_audio"]) == (name == "odd.wav")


def test_how_many_clips_are_heard_does_not_depend_on_what_is_heard(monkeypatch: pytest.MonkeyPatch, case: Case) -> None:
    asked = []

    def scored(recipe: object, pairs: list[tuple[Prompt, int]]) -> list[object]:
        asked.append([(prompt.id, seed) for prompt, seed in pairs])
        return []

    for prompts, per_prompt in ((case.prompts[:8], 1), (case.prompts[:2], 4)):
        booth = SimpleNamespace(exam=SimpleNamespace(case=told(case, prompts=prompts)), scored=scored)
        listening._compare(booth, "x", None, None, listening._pairs(prompts))  # type: ignore[arg-type]
        assert asked[-1] == asked[-2] == [(p.id, seed) for seed in range(per_prompt) for p in prompts]


def test_a_file_that_is_no_result_is_not_written_over(tmp_path: Path, case: Case) -> None:
    from f5lab.commands import console
    from f5lab.scale import sweeps

    (tmp_path / "mine.html").write_text("<p>mine</p>")
    (tmp_path / "case.yaml").write_text("name: mine")
    with pytest.raises(UsageError, match="would write over"):
        console.spare_page(tmp_path / "mine.html")
    with pytest.raises(UsageError, match="would write over"):
        console.write_json("{}", tmp_path / "case.yaml")
    (tmp_path / "setting.json").write_text('{"exp_name": "F5TTS_Base"}')
    with pytest.raises(UsageError, match="would write over"):
        console.write_json('{"found": 1}', tmp_path / "setting.json")
    for value in (1, 2):
        console.write_json(f'{{"found": {value}}}', tmp_path / "found.json")
    assert json.loads((tmp_path / "found.json").read_text()) == {"found": 2}
    with pytest.raises(RunError, match="not the result of a sweep"):
        sweeps.spare(tmp_path / "case.yaml")
    (tmp_path / "page.html").write_bytes(b"<!DOCTYPE html>" + console.PAGE_MARK)
    assert console.spare_page(tmp_path / "page.html").is_file() and sweeps.spare(tmp_path / "new.parquet")
    assert all(console.PAGE_MARK.decode() in t.read_text() for t in paths.TEMPLATES.rglob("*.j2") if "<html" in t.read_text())


def test_of_two_causes_one_repaired_is_the_other_left_and_spoken_once() -> None:
    exam = Exam(load_case(paths.default_case()), device="cpu", asr="")
    given, right, booth = exam.inference, listening._repaired(exam, []), listening.Booth(exam)
    options = ["arch.pe_attn_head", "arch.text_mask_padding"]
    recipes = [factors.switch(given, right, options), factors.switch(right, given, ["front_end"])]
    alike, split = exam.case.prompts[0], exam.case.prompts[-1]
    for prompt, clips in ((alike, 2), (split, 3)):  # pinyin splits "música", and nothing of the first text
        assert len({booth._key(recipe, prompt, 0) for recipe in recipes}) == 1
        assert len({booth._key(recipe, prompt, 0) for recipe in (given, right, *recipes)}) == clips


def test_a_repair_speaks_with_the_weights_that_its_bundle_holds() -> None:
    """The probe may like the raw weights better; while no cause says so, neither the repaired clip nor the bundle has them."""
    exam = Exam(load_case(paths.default_case()), device="cpu", asr="")
    exam.truth = replace(exam.truth, recipe=exam.truth.recipe.but(weights="raw"))
    lag = Suspicion("ema-lag-inherited", "cause", "Seen.", 0.95, 0.5, factors=("weights",), settings={"weights": "raw"})
    for found, weights in (([], "ema"), ([replace(lag, outcome="unknown")], "ema"), ([lag], "raw")):
        assert listening._repaired(exam, found).weights == bundles._as_trained(exam, found).weights == weights


@pytest.mark.parametrize("heard, verified", [("Comprou um livro.", True), ("Um tem anoio de churras.", False)])
def test_a_bundle_that_nobody_understands_is_not_verified(heard: str, verified: bool) -> None:
    cer = metrics.cer("Comprou um livro.", heard).value
    said = bundle_speech.misheard([bundle_speech.Check("p01", "Comprou um livro.", "spoken/p01.wav", heard, cer, 1.0)])
    assert (not said) is verified and not bundle_speech.misheard([])


def test_a_training_that_the_shapes_deny_is_refused_and_an_inference_that_they_deny_is_examined(case: Case) -> None:
    other = {"preset": "F5TTS_v1_Base"}
    training, inference = case.training.model_dump(exclude_unset=True), case.inference.model_dump(exclude_unset=True)
    with pytest.raises(CaseError, match="dim 1024, the shapes say 256"):
        Exam(told(case, training=training | {"arch": other}), device="cpu", asr="")
    found = Exam(told(case, inference=inference | {"arch": other}), device="cpu", asr="")
    assert found.inference.arch["dim"] == 1024
    Exam(told(case, training=training | {"arch": other}, inference=inference | {"arch": other}), device="cpu", asr="")


@pytest.mark.parametrize(("rest", "healthy"), [((0.6, 0.4, 0.8), False), ((0.11, -0.03, 0.26), True), ((0.01, -0.02, 0.04), True)])
def test_what_is_heard_worse_than_the_recordings_is_not_healthy(case: Case, rest: tuple[float, float, float], healthy: bool) -> None:
    """Weights that are spoilt alike everywhere match every setting, and no detector knows them."""
    heard = Listening(None, {}, {}, rest=Estimate(*rest, 8))
    left = diagnosis._left_by_ear([], heard)
    assert [item.id for item in left] == ([] if healthy else [diagnosis.HEARD])
    assert diagnosis.conclude(case, left).healthy is healthy


def test_a_text_that_explains_nothing_clears_nothing(case: Case) -> None:
    gate = SimpleNamespace(passed=False, gain=Estimate(-0.31, -0.4, -0.2, 4))
    (said,) = diagnosis._without_text(SimpleNamespace(truth=SimpleNamespace(gate=gate)))  # type: ignore[arg-type]
    assert said.outcome == "unknown" and "-31 % (95 % -40 to -20)" in said.claim
    assert not diagnosis.conclude(case, [said]).healthy


def test_silence_that_upstream_drops_is_not_cut_speech(case: Case) -> None:
    speech = audio.load_wave(case.prompts[0].ref_audio)
    silence = np.zeros(12 * speech.rate_hz, np.float32)
    padded = Wave(np.concatenate([speech.samples, silence]), speech.rate_hz)
    assert padded.seconds > models.LONGEST_REFERENCE_S > audio_faults._without_silence_s(padded)
    long = Wave(np.tile(speech.samples, 20), speech.rate_hz)
    assert audio_faults._without_silence_s(long) > models.LONGEST_REFERENCE_S
