"""What nobody stated is not judged as a fact, and what is said to be done can be done as it is said."""

import shutil
import subprocess
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from toy_checkpoints import ema_state, save_trainer, state
from toy_runs import write_run

from f5lab import cli, diagnosis, discovery, ema, models, paths, training_sets, upstream_terms, verdicts
from f5lab.audio import Wave, load_wave
from f5lab.execution import reports
from f5lab.faults import audio_faults, setting_faults, settings_search, suspects, text_faults, weight_faults
from f5lab.faults.examinations import ASSUMED, Exam, cause
from f5lab.finished import redaction, run_index, runs
from f5lab.grids import AXES, COST, Change, conclusion
from f5lab.listening import Listening
from f5lab.planted import plants
from f5lab.scale import sweep_specs, sweep_tasks, sweeps, trends
from f5lab.specs import Case, Inference, Prompt, load_case
from f5lab.statistics import Estimate
from f5lab.verdicts import Cause, Fix, Verdict

DATA = paths.data_dir()


@pytest.fixture(scope="module")
def case() -> Case:
    return load_case(DATA / "cases" / "ptbr" / "case.yaml")


def given(case: Case, **fields: Any) -> Case:
    return case.model_copy(update={"inference": case.inference.model_copy(update=fields)})


def exam_of(case: Case, **truth: Any) -> Exam:
    exam = Exam(case, device="cpu", asr="")
    known = {"arch": "stated", "front_end": "stated", "vocab": "stated", "mel_spec_type": "stated", "weights": "stated"}
    truth = {"problem": "", "needs": "", "recipe": exam.stated, "known": known, "gate": None, "identifiable": True} | truth
    exam.truth = SimpleNamespace(**truth)  # type: ignore[misc,assignment]
    return exam


# what the case does not state


@pytest.mark.parametrize("assumed", [(), ("arch",), ("front_end", "arch")])
def test_a_cause_that_rests_on_what_nobody_stated_is_named_with_less_confidence(case: Case, assumed: tuple[str, ...]) -> None:
    exam = SimpleNamespace(assumed=frozenset(assumed))
    for name, factors, setting in (("pe-attn-head-only", ("arch.pe_attn_head",), "arch"), ("front-end-pinyin", ("front_end",), "front_end")):
        (found,) = [diagnosis._as_assumed(exam, cause(name, "Seen.", 0.98, 1.0, factors=factors))]  # type: ignore[arg-type]
        unsaid = setting in assumed
        assert found.confidence == (ASSUMED if unsaid else 0.98) and (f"does not state inference's {setting}" in found.claim) == unsaid
    (damage,) = [diagnosis._as_assumed(exam, cause("weight-damage", "Seen.", 0.97, 1.0))]  # type: ignore[arg-type]
    assert damage.confidence == 0.97


def test_what_is_assumed_names_settings(case: Case) -> None:
    assert Exam(given(case, assumed=("front_end",)), device="cpu").assumed == {"front_end"}
    assert Exam(given(case, arch=None), device="cpu").assumed == {"arch"}
    with pytest.raises(ValueError, match="no settings of inference: frontend"):
        Inference(assumed=("frontend",))


def test_new_says_what_it_assumed_in_the_case_itself(tmp_path: Path) -> None:
    home = tmp_path / "ckpts" / "voz"
    home.mkdir(parents=True)
    shutil.copy(DATA / "specimen" / "finetune" / "model_last.pt", home)
    text = discovery.case_text(discovery.explore(tmp_path), "voz")
    assert yaml.safe_load(text)["inference"]["assumed"] == ["arch", "weights", "front_end"]


def test_without_a_case_file_nothing_of_inference_is_stated() -> None:
    clip = DATA / "speech" / "ptbr" / "jm_kumo_phrase_0012.ogg"
    loose = {"--checkpoint": DATA / "specimen/finetune/model_last.pt", "--vocab": DATA / "specimen/vocab.txt", "--clip": clip, "--text": "a"}
    made = cli._case_of(None, loose, {"--base": None, "--vocoder": None, "--language": None})
    assert set(made.inference.assumed) == {"arch", "front_end", "weights"}


def test_texts_that_every_front_end_splits_alike_rule_nothing_out_where_nobody_said_what_fails(case: Case) -> None:
    prompt = Prompt(id="p", ref_audio=case.prompts[0].ref_audio, ref_text="A doutora.", gen_text="Comprou um livro.")
    for assumed, outcome in (((), "refuted"), (("front_end",), "unknown")):
        told = given(case, assumed=assumed).model_copy(update={"prompts": (prompt,)})
        (found,) = text_faults.detect_front_end(exam_of(told, known={"front_end": "assumed"}))
        assert found.outcome == outcome and "alike" in found.claim


# float16, on a machine that has none


@pytest.mark.parametrize("planted", [True, False])
def test_float16_is_tried_where_it_is_not_chosen(case: Case, tmp_path: Path, planted: bool) -> None:
    if planted:
        made = load_case(plants.plant(["precision-fp16-nan"], case, tmp_path / "new"))
        assert made.inference.precision == "fp16"
        case = given(made, precision="auto")
    found = {item.id: item for item in setting_faults.detect_precision(exam_of(case))}
    nan = found["precision-fp16-nan"]
    assert nan.outcome == ("cause" if planted else "refuted") and found["precision-bf16-cast"].outcome == "refuted"
    if planted:
        assert (nan.confidence, dict(nan.settings)) == (ASSUMED, {"precision": "fp32"}) and "on which device" in nan.limitation


def test_float16_is_not_ruled_out_by_a_probe_that_could_not_run(case: Case) -> None:
    found = {item.id: item for item in setting_faults.detect_precision(exam_of(case, problem="no recording", needs="a recording"))}
    assert found["precision-fp16-nan"].outcome == "unknown" and found["precision-fp16-nan"].needs == "a recording"


# what is missing is what would help


def test_weights_that_are_not_finite_ask_for_no_recording(case: Case, tmp_path: Path) -> None:
    made = load_case(plants.plant(["weight-damage"], case, tmp_path / "new"))
    exam = Exam(made, device="cpu", asr="")
    exam.probe.items = exam.probe.items[:1]  # type: ignore[misc]
    truth = settings_search.find_truth(made, exam.stated, lambda: exam.probe, exam.checkpoint, None)
    if truth.problem:  # the planted damage is one that the probe meets
        assert "finite" in truth.needs
    exam = exam_of(case, problem="the loss is not finite", needs="weights that fit")
    (item, *_) = weight_faults._lag(exam)
    assert item.needs == "weights that fit"


def test_accelerate_is_not_asked_about_nan(case: Case, monkeypatch: pytest.MonkeyPatch) -> None:
    exam = exam_of(case)
    nothing = torch.full((1, 2, 3), torch.nan)
    probe = SimpleNamespace(items=[SimpleNamespace(id="x")], bench=SimpleNamespace(model=lambda recipe: None), velocity=lambda *a, **k: nothing)
    exam.probe = probe  # type: ignore[misc,assignment]
    monkeypatch.setattr("f5lab.samplers.prepared", lambda model, device: model)
    (found,) = suspects.detect_accelerate(exam)
    assert found.outcome == "unknown" and found.needs == "weights whose output is finite"


def test_one_vocab_file_is_not_said_to_be_two(case: Case) -> None:
    truth = {"identifiable": True, "gate": None}
    for told, says in ((case, "byte for byte"), (given(case, vocab=None), "One vocab file stands for")):
        found = text_faults.detect_vocab(exam_of(told, **truth))
        assert any(says in item.claim for item in found)
    (sampler,) = setting_faults.detect_sampler(exam_of(case))
    assert sampler.claim == "Guidance 2.0, sway -1.0, upstream's defaults."


# what is to be changed


def test_only_what_an_inference_block_takes_is_said_to_stand_there() -> None:
    settings = {"arch": {"pe_attn_head": 1}, "front_end": "raw", "ref_text": "what it says", "fix_duration": "reference + expected seconds"}
    taken, elsewhere = upstream_terms.split(settings)
    assert set(taken) == {"arch", "front_end"} and set(elsewhere) == {"ref_text", "fix_duration"}
    Inference.model_validate(taken)
    fix = Fix(summary="Change it.", settings=settings)
    verdict = Verdict(case="x", run="r", causes=(Cause(id="mel-type", confidence=0.9, fix=fix, evidence=("06-mel-type",)),), refuted=(), unknown=(), healthy=False)
    text = verdicts.markdown(verdict)
    assert "case file, `inference:` `arch: {pe_attn_head: 1}, front_end: raw`" in text
    assert "to change: `ref_text: what it says, fix_duration: reference + expected seconds`" in text


# sets of weights


def test_copies_of_a_checkpoint_are_one_in_a_sweep(tmp_path: Path, case: Case) -> None:
    for name in ("model_400.pt", "model_868.pt", "model_last.pt"):
        shutil.copy(DATA / "specimen" / ("base" if name == "model_400.pt" else "finetune") / "model_last.pt", tmp_path / name)
    told = {"cases": [str(DATA / "cases/ptbr/case.yaml")], "checkpoints": ["model_*.pt"], "prompts": 1, "measures": ["loss"]}
    (tmp_path / "sweep.yaml").write_text(yaml.safe_dump(told), encoding="utf-8")
    tasks = list(sweep_tasks.expand(sweep_specs.load_sweep(tmp_path / "sweep.yaml"), device="cpu", threads=1))
    names = list(sweeps._names(tasks).values())
    assert len(tasks) == 2 and sorted(name.partition("/")[2] for name in names) == ["model_400.pt", "model_868.pt = model_last.pt"]


def test_two_trainers_checkpoints_are_compared_set_by_set(tmp_path: Path) -> None:
    one, other = state(0), {name: tensor * 1.01 for name, tensor in state(0).items()}
    a = save_trainer(tmp_path / "a.pt", one, ema_state(one))
    b = save_trainer(tmp_path / "b.pt", other, ema_state(one))
    same = ema.report(a, a)
    assert same["identical"] and not same["notices"] and same["base_share"] is None
    found = ema.report(a, b)
    raw, average = found["overall"]
    assert raw["relative_l2"] == pytest.approx(0.01, rel=1e-3) and average["relative_l2"] == 0 and not found["identical"]


# pages


def test_a_quick_run_says_that_it_is_one(tmp_path: Path) -> None:
    for quick in (True, False):
        run = runs.open_run(write_run(tmp_path / f"run-{quick}", settings={"device": "cpu", "quick": quick, "only": ["05"] if quick else [], "set": {}}))
        page = reports.index_page(run.folder, run.record, run.findings)
        assert run_index.row(run, tmp_path)["quick"] == quick
        assert ("A quick run" in page, " · only 05" in page) == (quick, quick)
    assert ", quick" in run_index.page(runs.list_runs(tmp_path), tmp_path)


def test_an_interval_of_cer_ends_where_cer_does() -> None:
    choice = trends.choose("CER", {"a": [0.0, 0.3], "b": [0.2, 0.9]}, ["p01", "p02"])
    assert choice is not None and choice.value.low >= 0 and choice.rivals[0].worse.high <= 1


def test_passes_that_are_counted_need_no_interval() -> None:
    change = Change(f"{AXES['nfe_step']} 8", COST, 16.0, Estimate(-48.0, -48.0, -48.0, 1), None, 1)
    assert conclusion([change], "nfe_step", COST)["verdict"] == "supported"


def test_a_vocoder_beside_ckpts_is_found_and_a_nearer_one_first(tmp_path: Path) -> None:
    home = tmp_path / "ckpts" / "voz"
    home.mkdir(parents=True)
    shutil.copy(DATA / "specimen" / "finetune" / "model_last.pt", home)
    shutil.copytree(DATA / "specimen" / "vocos", tmp_path / "vocos")
    assert discovery.explore(home).vocoder == tmp_path / "vocos"
    shutil.copytree(DATA / "specimen" / "vocos", tmp_path / "a" / "bundle" / "vocos-mel-24khz")
    assert discovery.explore(tmp_path).vocoder == tmp_path / "vocos"


# what is heard, and what is not


def test_a_wide_interval_clears_nothing_that_is_heard_badly() -> None:
    for mean, low, high, n, named in ((0.69, -1.0, 1.0, 1, True), (0.3, -0.1, 0.7, 3, True), (0.11, -0.03, 0.26, 8, False)):
        left = diagnosis._left_by_ear([], Listening(None, {}, {}, rest=Estimate(mean, low, high, n)))
        assert [item.id for item in left] == ([diagnosis.HEARD] if named else [])
        assert not named or ("one prompt" in left[0].claim) == (n == 1)


def test_without_listening_no_case_is_healthy(case: Case, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(diagnosis, "examine", lambda exam: [])
    verdict = diagnosis.diagnose(case, device="cpu", listen=False).verdict
    assert not verdict.healthy and verdict.headline.endswith("Nothing was listened to.")


def test_check_finds_every_cause_that_is_named(call: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    sure = cause("mel-type", "Seen.", ASSUMED, 1.0)
    for found, status in (([sure], 3), ([], 0)):
        monkeypatch.setattr(diagnosis, "examine", lambda exam, found=found: found)
        assert call("diagnose", "--check", "--no-listen")[0] == status


def test_the_last_piece_of_a_long_text_may_be_short(case: Case) -> None:
    long = "Comprou um livro e depois do jantar contou uma história para a criança " * 6 + "dormir. "
    prompt = case.prompts[0].model_copy(update={"gen_audio": None})
    for text, outcome in ((long + "Sim.", "cause"), (long.strip(), "refuted")):
        told = case.model_copy(update={"prompts": (prompt.model_copy(update={"gen_text": text}),)})
        (found,) = [item for item in text_faults.detect_length(exam_of(told)) if item.id == "short-text-speed"]
        assert found.outcome == outcome and ("'Sim.'" in found.claim) == (outcome == "cause")


# healthy fine-tunes, and files that are not what they are called


def test_symbols_begun_anew_are_no_damage(case: Case, tmp_path: Path) -> None:
    stored = torch.load(case.checkpoint, weights_only=True)
    for key in ("model_state_dict", "ema_model_state_dict"):
        name = next(n for n in stored[key] if n.endswith("text_embed.text_embed.weight"))
        rows = torch.randn(stored[key][name].shape, generator=torch.Generator().manual_seed(0))
        rows[-20:] = 0
        stored[key][name] = rows
    torch.save(stored, tmp_path / "model_last.pt")
    exam = exam_of(case.model_copy(update={"checkpoint": tmp_path / "model_last.pt"}))
    exam.truth = SimpleNamespace(problem="not asked")  # these weights never learned the new rows, and the probe would say so
    (found,) = weight_faults.detect_damage(exam)
    assert found.outcome == "refuted"
    for key in ("model_state_dict", "ema_model_state_dict"):
        name = next(n for n in stored[key] if n.endswith("text_embed.text_embed.weight"))
        stored[key][name] = torch.zeros_like(stored[key][name])
    torch.save(stored, tmp_path / "empty.pt")
    (found,) = weight_faults.detect_damage(exam_of(case.model_copy(update={"checkpoint": tmp_path / "empty.pt"})))
    assert found.outcome == "cause" and "is zero" in found.claim


def test_an_ema_that_is_the_raw_weights_rounded_is_exchanged_with_nothing(tmp_path: Path) -> None:
    base = {name: tensor.float() for name, tensor in state(0).items()}
    raw = {name: tensor + 0.001 * torch.randn(tensor.shape, generator=torch.Generator().manual_seed(1)) for name, tensor in base.items()}
    torch.save({"ema_model_state_dict": ema_state(base)}, tmp_path / "base.pt")
    for average, named in (({name: t.half().float() for name, t in raw.items()}, False), ({n: base[n] + 2 * (raw[n] - base[n]) for n in raw}, True)):
        path = save_trainer(tmp_path / f"model-{named}.pt", raw, ema_state(average))
        notices = [n["id"] for n in ema.report(path, tmp_path / "base.pt")["notices"]]
        assert ("raw-ema-swapped" in notices) == named


@pytest.mark.parametrize(("identifiable", "outcome"), [(True, "unknown"), (False, "cause")])
def test_a_base_of_another_model_is_no_fault_of_weights_that_speak(case: Case, identifiable: bool, outcome: str) -> None:
    exam = exam_of(case, identifiable=identifiable)
    notices = {"scratch-by-accident": "cosine of raw with the base is 0.02: not a fine-tune of this base, or base names another model's"}
    (found,) = weight_faults._slot_faults(exam, notices)
    assert found.id == "scratch-by-accident" and found.outcome == outcome


# datasets


@pytest.mark.parametrize("written", [False, True])
@pytest.mark.parametrize("kind", ["pinyin", "raw"])
def test_the_stored_texts_tell_the_front_end(kind: str, written: bool) -> None:
    """finetune-gradio sends the texts of a ``_char`` project through the pinyin converter too."""
    texts = ["Contou uma história.", "Cantou uma música.", "Não há dúvida possível.", "É útil.", "A família.", "Tomou um café."]
    rows = [{"audio_path": f"/x/{k}.wav", "text": [*map(str, models.front_end(kind)(text))]} for k, text in enumerate(texts)]
    known = {Path(f"{k}.wav"): text for k, text in enumerate(texts)} if written else None
    assert training_sets.stored_front_end(rows, known) == kind
    ascii_rows = [{"audio_path": "a.wav", "text": list("Comprou um livro.")}] * 9
    assert training_sets.stored_front_end(ascii_rows) is None


def test_recordings_are_found_from_the_dataset(tmp_path: Path) -> None:
    (tmp_path / "data" / "voz_char" / "wavs").mkdir(parents=True)
    data = tmp_path / "data" / "voz_char"
    for name in ("wavs/1.wav", "wavs/2.wav"):
        (data / name).write_bytes(b"x")
    rows = [{"audio_path": name} for name in ("wavs/1.wav", "data/voz_char/wavs/2.wav", "C:\\old\\1.wav", "/gone/2.wav", "/gone/3.wav")]
    found = [Path(row["audio_path"]).name for row in training_sets.at_hand(rows, data) if Path(row["audio_path"]).is_file()]
    assert found == ["1.wav", "2.wav", "1.wav", "2.wav"]


# recordings in noise


def test_noise_is_no_fault_of_the_vocoder() -> None:
    speech = load_wave(DATA / "speech" / "ptbr" / "jm_kumo_phrase_0012.ogg")
    noise = np.random.default_rng(0).standard_normal(len(speech.samples)).astype(np.float32)
    noisy = Wave(speech.samples + 0.03 * np.abs(speech.samples).max() * noise, speech.rate_hz)
    assert audio_faults._floor_db(speech) < audio_faults.NOISY_DB < audio_faults._floor_db(noisy)


def test_folders_with_spaces_are_hidden(tmp_path: Path) -> None:
    run = runs.open_run(write_run(tmp_path / "run"))
    run.record["case"]["path"] = "../../Maria Silva 100%41 #x/case.yaml"
    hide = redaction.Redactor(run, redaction.wishes("paths")).text
    for said in ("../../Maria Silva 100%41 #x/case.yaml", "~/Maria Silva 100%41 #x/case.yaml", "$CASE/Maria Silva 100%41 #x/b/a.wav"):
        assert "Maria" not in hide(f"case: {said}") and Path(said).name in hide(f"case: {said}")


def test_an_empty_text_is_not_another_text() -> None:
    script = (Path(cli.__file__).parent / "templates" / "bundle" / "run.sh.j2").read_text(encoding="utf-8")
    line = next(line for line in script.splitlines() if line.startswith("text="))
    bash = line.replace("{{ text | quote }}", "'um texto'")
    said = [subprocess.run(["bash", "-c", f'set -- {given}; {bash}; printf "%s" "$text"'], capture_output=True, text=True).stdout for given in ("''", "oi", "")]
    assert said == ["", "oi", "um texto"]
