"""What must clear no case and identify no file: what was not heard, not compared, not finite, given twice, or named by a pattern."""

from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import soundfile as sf
import torch
import yaml
from toy_checkpoints import ema_state, save_trainer, state
from toy_runs import write_run

from f5lab import audio, diagnosis, discovery, ema, findings, listening, paths, probes
from f5lab.asr import Transcript
from f5lab.audio import Wave
from f5lab.checkpoints import open_checkpoint
from f5lab.errors import CaseError
from f5lab.faults import audio_faults, setting_faults, settings_search, text_faults, weight_faults
from f5lab.faults.examinations import Exam, Suspicion
from f5lab.finished import comparisons, runs
from f5lab.listening import Listening
from f5lab.oracles import Scored
from f5lab.samplers import Sample
from f5lab.scale import sweep_specs
from f5lab.scale.ledgers import Ledger
from f5lab.specs import Arch, Case, Inference, load_case
from f5lab.statistics import Estimate
from f5lab.verdicts import UNHEARD

HEALTHY = paths.data_dir() / "cases" / "ptbr-repaired" / "case.yaml"


@pytest.fixture(scope="module")
def case() -> Case:
    return load_case(HEALTHY)


def told(case: Case, **fields: Any) -> Case:
    given = {name: getattr(case, name) for name in case.model_fields_set} | fields
    return Case.model_validate(given)


def long_clip(folder: Path, seconds: float = 31.0) -> Path:
    sf.write(folder / "long.wav", 0.1 * np.sin(np.arange(int(seconds * 24000)) * 0.05), 24000)
    return folder / "long.wav"


# listening


def scored(case: Case) -> tuple[Scored, ...]:
    return tuple(
        Scored(Sample(Wave(np.zeros(9, np.float32), 24000), np.zeros((1, 100)), p.gen_text, p.id, "x", 0, 0.0), Transcript("", 0.0, 0.0), 0.5)
        for p in case.prompts
    )


def test_a_recording_that_cannot_be_heard_is_left_out_alone(case: Case, tmp_path: Path) -> None:
    long = long_clip(tmp_path)
    prompts = list(case.prompts[:3])
    prompts[0] = prompts[0].model_copy(update={"gen_audio": long})
    exam = Exam(told(case, prompts=tuple(prompts)), device="cpu")
    rest = listening.remaining(exam, Listening(None, {}, {}, plain=scored(exam.case)))
    assert rest is not None and rest.n == 2
    exam = Exam(told(case, prompts=(prompts[0],)), device="cpu")
    with pytest.raises(CaseError, match="at most 30 s"):
        listening.remaining(exam, Listening(None, {}, {}, plain=scored(exam.case)))


def test_what_nobody_heard_is_not_healthy(case: Case) -> None:
    for heard, name in ((Listening(None, {}, {}, problem="no weights"), UNHEARD), (Listening(None, {}, {}, unmatched="too long"), diagnosis.UNMATCHED)):
        left = diagnosis._left_by_ear([], heard)
        assert [item.id for item in left] == [name]
        assert not diagnosis.conclude(case, left).healthy
    crashed = Suspicion("frontend-rate", "unknown", "It failed.", needs=diagnosis.CRASHED)
    assert not diagnosis.conclude(case, [crashed]).healthy
    assert diagnosis.conclude(case, [replace(crashed, needs="a config")]).healthy


def test_a_text_without_letters_is_not_spoken_and_the_others_are(case: Case) -> None:
    mute = case.prompts[0].model_copy(update={"gen_text": "... ... ...!"})
    pairs = listening._pairs([mute, *case.prompts[1:3]])
    assert {prompt.id for prompt, _ in pairs} == {p.id for p in case.prompts[1:3]}
    with pytest.raises(CaseError, match="letters"):
        listening._pairs([mute])


# recordings


def test_the_references_asked_about_are_the_worst_heard_in_any_order(case: Case, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    asked: list[list[str]] = []
    monkeypatch.setattr(audio_faults, "MOST_TRIED", 1)
    monkeypatch.setattr(audio_faults, "_explained_as_heard", lambda exam, rows: asked.append([item.text for item, _ in rows]) or [True])
    wave = audio.load_wave(case.prompts[0].ref_audio)
    items = [probes.Item(text, wave, text, 0.0) for text in ("um dois três quatro", "um dois três quatrx", "cinco seis")]
    items.append(probes.Item("long", Wave(np.zeros(31 * 24000, np.float32), 24000), "um", 0.0))
    for order in (items, items[::-1]):
        exam = SimpleNamespace(references=order, transcriber=lambda waves: [Transcript("um dois nove oito", 0.0, 0.0)] * len(waves))
        (found,) = audio_faults.detect_reference_text(exam)  # type: ignore[arg-type]
        assert found.outcome == "cause" and found.n == 3 and "1 of 4 references last more than 30 s" in found.limitation
    assert asked == [["cinco seis"]] * 2


def test_one_wrong_rate_among_right_ones_is_found(case: Case, tmp_path: Path) -> None:
    """Two references that state 32 kHz, one of which holds samples at 48 kHz: on the average no other rate fits."""
    kept = list({p.ref_audio: p for p in case.prompts}.values())[:2]
    assert len(kept) == 2
    for number, (prompt, rate) in enumerate(zip(kept, (32_000, 48_000), strict=True)):
        wave = audio.resample(audio.load_wave(prompt.ref_audio), rate)
        sf.write(tmp_path / f"{number}.wav", wave.samples, 32_000)
        kept[number] = prompt.model_copy(update={"ref_audio": tmp_path / f"{number}.wav", "gen_audio": None})
    exam = Exam(told(case, prompts=tuple(kept)), device="cpu", asr="")
    exam.truth = SimpleNamespace(problem="", recipe=exam.stated)  # type: ignore[misc,assignment]
    (found,) = audio_faults.detect_rate_label(exam)
    assert found.outcome == "cause" and found.value == pytest.approx(1.5) and found.claim.startswith("1 of 2")
    assert found.subjects == {str(tmp_path / "1.wav")} and found.settings["ref_audio"] == "1.wav: a header of 48000 Hz"


def test_a_pair_too_long_for_the_probe_leaves_its_target(case: Case, tmp_path: Path) -> None:
    prompt = case.prompts[0].model_copy(update={"ref_audio": long_clip(tmp_path, 19.0)})
    (item,) = probes.real_items(told(case, prompts=(prompt,)))
    assert item.text == prompt.gen_text and item.start_s == 0.0


@pytest.mark.parametrize(("start_s", "outcome"), [(1.0, "cause"), (0.0, "refuted")])
def test_clips_without_a_reference_name_no_slight_lag(case: Case, start_s: float, outcome: str) -> None:
    """On single clips of a second the healthy specimen's EMA is 7 % off its raw weights; continuing a reference it is the better one."""
    exam = Exam(case, device="cpu", asr="")
    exam.truth = SimpleNamespace(problem="", gate=None, recipe=exam.stated.but(weights="raw"))  # type: ignore[misc,assignment]
    exam.probe = SimpleNamespace(items=[SimpleNamespace(start_s=start_s)] * 4)  # type: ignore[misc,assignment]
    exam.loss_effect = lambda *_: (Estimate(0.066, 0.006, 0.13, 4), None)  # type: ignore[method-assign,assignment,return-value]
    assert {item.outcome for item in weight_faults._lag(exam)} == {outcome, "refuted"}


# weights


def saved(path: Path, weights: dict[str, torch.Tensor], *, pruned: bool = False) -> Path:
    """Write weights as raw and EMA alike, or pruned to the EMA alone."""
    if not pruned:
        return save_trainer(path, weights, ema_state(weights))
    torch.save({"ema_model_state_dict": ema_state(weights)}, path)
    return path


def study_of(path: Path, base: Path | None = None) -> SimpleNamespace:
    """Return as much of an examination as the detectors of weights ask for."""
    checkpoint, other = open_checkpoint(path), open_checkpoint(base) if base else None
    return SimpleNamespace(
        checkpoint=checkpoint, base=other, study=ema.study(checkpoint, other), weights=checkpoint.weights, inference=SimpleNamespace(weights="ema"),
        truth=SimpleNamespace(problem="not asked"),
    )  # fmt: skip


def test_damage_is_ruled_out_only_where_something_was_compared(tmp_path: Path) -> None:
    (found,) = weight_faults.detect_damage(study_of(saved(tmp_path / "a.pt", state(0), pruned=True)))  # type: ignore[arg-type]
    assert found.outcome == "unknown" and "base" in found.needs
    (found,) = weight_faults.detect_damage(study_of(saved(tmp_path / "b.pt", state(0))))  # type: ignore[arg-type]
    assert found.outcome == "refuted" and "raw against EMA" in found.claim and "base" in found.limitation


@pytest.mark.parametrize(("times", "outcome"), [(20.0, "cause"), (1.0, "refuted")])
def test_biases_far_beyond_the_bases_are_damage(tmp_path: Path, times: float, outcome: str) -> None:
    name, weights = "transformer.proj_out.bias", state(0)
    base = saved(tmp_path / "base.pt", state(0), pruned=True)
    weights[name] *= times
    (found,) = weight_faults.detect_damage(study_of(saved(tmp_path / "a.pt", weights), base))  # type: ignore[arg-type]
    assert found.outcome == outcome and (name in found.claim) == (outcome == "cause")


def test_one_set_of_weights_that_is_the_bases_learned_nothing(tmp_path: Path) -> None:
    base, pruned = saved(tmp_path / "base.pt", state(0)), saved(tmp_path / "a.pt", state(0), pruned=True)
    named = [item for item in weight_faults.detect_ema(study_of(pruned, base)) if item.outcome == "cause"]  # type: ignore[arg-type]
    assert [item.id for item in named] == ["lr-dead"] and named[0].confidence == 0.8
    other = saved(tmp_path / "b.pt", {name: tensor * 1.01 for name, tensor in state(0).items()}, pruned=True)
    (moved,) = (item for item in weight_faults.detect_ema(study_of(other, base)) if item.id == "lr-dead")  # type: ignore[arg-type]
    assert moved.outcome == "refuted" and moved.value == pytest.approx(0.01, rel=0.1)
    weights = state(0)
    weights["transformer.proj_out.weight"][0] = float("nan")
    found = weight_faults.detect_ema(study_of(saved(tmp_path / "c.pt", weights, pruned=True), base))  # type: ignore[arg-type]
    assert [item.outcome for item in found if item.id == "lr-dead"] == ["unknown"]


def test_files_that_differ_in_nan_alone_are_not_identical(tmp_path: Path) -> None:
    weights = state(0)
    weights["transformer.proj_out.weight"][0] = float("nan")
    plain, broken = saved(tmp_path / "a.pt", state(0), pruned=True), saved(tmp_path / "b.pt", weights, pruned=True)
    assert ema.report(plain, plain)["identical"] and not ema.report(plain, broken)["identical"]
    both = save_trainer(tmp_path / "c.pt", state(0), ema_state(weights))
    assert not ema.report(both)["identical"] and not ema.report(both)["notices"]


@pytest.mark.parametrize(("way", "name"), [(0.8, "base-too-late"), (0.0, None)])
def test_a_later_snapshot_as_base_exchanges_no_slots(tmp_path: Path, way: float, name: str | None) -> None:
    start, end = state(0), {name: tensor + 0.01 for name, tensor in state(0).items()}
    between = lambda share: {k: (1 - share) * start[k] + share * end[k] for k in start}  # noqa: E731
    checkpoint = save_trainer(tmp_path / "model_last.pt", end, ema_state(between(0.4)))
    base = tmp_path / "base.pt"
    torch.save({"ema_model_state_dict": ema_state(between(way))}, base)
    found = ema.study(open_checkpoint(checkpoint), open_checkpoint(base))
    assert [notice.id for notice in found.notices] == ([name] if name else [])
    assert (found.share.measured is None) == (name is not None)  # 175 % of it would be the base


# files that people write


def test_a_key_given_twice_is_refused(tmp_path: Path) -> None:
    text = HEALTHY.read_text(encoding="utf-8").replace("../../", f"{paths.data_dir()}/")
    (tmp_path / "case.yaml").write_text(text + "\ninference: {weights: ema}\n", encoding="utf-8")
    with pytest.raises(CaseError, match="inference: given twice"):
        load_case(tmp_path / "case.yaml")
    (tmp_path / "sweep.yaml").write_text("cases: [a.yaml]\ncases: [b.yaml]\n")
    with pytest.raises(CaseError, match="given twice"):
        sweep_specs.load_sweep(tmp_path / "sweep.yaml")


@pytest.mark.parametrize(("name", "value"), [("fix_duration", 1e300), ("speed", 1e-300), ("nfe_step", 10**20), ("cfg_strength", 1e300)])
def test_numbers_that_nothing_can_be_run_with_are_refused(name: str, value: float) -> None:
    with pytest.raises(ValueError, match=name):
        Inference.model_validate({name: value})


@pytest.mark.parametrize(
    ("model", "outcome"),
    [({"mel_spec": {"target_sample_rate": "24e3"}}, "refuted"), ({"mel_spec": {"target_sample_rate": "16e3"}}, "cause"), ({"mel_spec": [1]}, "refused"),
     ("search", "refused")],
)  # fmt: skip
def test_a_training_config_is_read_as_upstream_reads_it(tmp_path: Path, model: Any, outcome: str) -> None:
    (tmp_path / "config.yaml").write_text(yaml.safe_dump({"model": model}))
    arch = Arch(config=tmp_path / "config.yaml")
    exam = SimpleNamespace(case=SimpleNamespace(training=SimpleNamespace(arch=arch)))
    if outcome == "refused":
        with pytest.raises(CaseError, match="no mapping"):
            setting_faults.detect_rate(exam)  # type: ignore[arg-type]
        return
    assert [item.outcome for item in setting_faults.detect_rate(exam)] == [outcome]  # type: ignore[arg-type]


def test_a_sweeps_own_folder_is_no_pattern(tmp_path: Path) -> None:
    for name in ("run[2]", "run2"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "model_500.pt").write_text(name)
    sweep = tmp_path / "run[2]" / "sweep.yaml"
    for given in ("model_500.pt", "model_*.pt"):
        sweep.write_text(yaml.safe_dump({"cases": [str(HEALTHY)], "checkpoints": [given]}))
        ((_, file),) = sweep_specs.find_cases(sweep_specs.load_sweep(sweep))
        assert file.read_text() == "run[2]"


def test_bytes_are_not_believed_against_the_shapes(case: Case) -> None:
    with pytest.raises(CaseError, match="byte takes 256 tokens"):
        Exam(told(case, training=case.training.model_copy(update={"front_end": "byte"})), device="cpu", asr="")
    exam = Exam(told(case, inference=case.inference.model_copy(update={"front_end": "byte"})), device="cpu", asr="")
    exam.truth = SimpleNamespace(recipe=exam.stated)  # type: ignore[misc,assignment]
    assert text_faults.detect_unknown(exam)[0].outcome == "unknown"


@pytest.mark.parametrize(
    ("names", "last"),
    [(["model_1000_lr5e5.pt", "model_9000.pt"], "model_9000.pt"), (["model_900.pt", "model_last.pt"], "model_last.pt"),
     (["model_2_a.pt", "model_10_a.pt"], "model_10_a.pt")],
)  # fmt: skip
def test_the_newest_checkpoint_is_told_by_its_update(tmp_path: Path, names: list[str], last: str) -> None:
    for name in names:
        (tmp_path / name).touch()
    assert discovery._last(tmp_path, discovery._checkpoints(tmp_path)).name == last


# what was kept


def test_settings_that_differ_are_named(tmp_path: Path) -> None:
    def compared(first: dict[str, Any], second: dict[str, Any]) -> comparisons.Comparison:
        folder = tmp_path / str(len(list(tmp_path.iterdir())))
        for name, changes in (("a", first), ("b", second)):
            write_run(folder / name, **changes)
        return comparisons.compare(runs.open_run(folder / "a"), runs.open_run(folder / "b"))

    stated = {"training": {}, "inference": {"weights": "ema", "nfe_step": 32}}
    files = [{"label": "case file", "path": "case.yaml", "size": 1, "sha256": mark * 64, "files": 1} for mark in "ab"]
    found = compared({"stated": stated}, {"stated": stated | {"inference": {"weights": "raw", "nfe_step": 32}}})
    assert [row["what"] for row in found.inputs] == ["inference.weights"]
    for pair in (({"files": files[:1]}, {"files": files[1:]}), ({"stated": stated, "files": files[:1]}, {"files": files[1:]})):
        found = compared(*pair)
        assert not any("are the same" in line for line in found.limits) and any("case files differ" in line for line in found.limits)


def test_what_was_kept_is_read_whatever_ends_lines_in_it(tmp_path: Path) -> None:
    Ledger(tmp_path / "a.jsonl").put("heard", "k", "bom\u2028dia\x85")
    again = Ledger(tmp_path / "a.jsonl")
    assert again.get("heard", "k") == "bom\u2028dia\x85" and not again.damaged
    said = findings.Finding(id="05-x", question="?", claim="Heard as bom\u2028dia.", verdict="supported")
    paths.write_text(tmp_path / "f.jsonl", findings.dump([said, said.model_copy(update={"id": "05-y"})]))
    assert [found.claim for found in findings.load(tmp_path / "f.jsonl")] == [said.claim] * 2
    paths.write_text(tmp_path / "none.jsonl", "")
    assert findings.load(tmp_path / "none.jsonl") == []


def test_a_cache_that_cannot_be_written_costs_no_result(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").touch()
    monkeypatch.setenv("F5LAB_CACHE", str(tmp_path / "file" / "cache"))
    kept = settings_search._kept_vocab([" ", "a"])
    assert kept.read_text() == " \na\n" and settings_search._kept_vocab([" ", "a"]) == kept
