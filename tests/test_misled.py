"""What must not mislead: weights that inference does not load, an EMA that averages nothing, recipes that differ from case to case."""

import shutil
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from toy_checkpoints import ema_state, save_trainer, state

from f5lab import blends, diagnosis, ema, paths, samplers, vocabs
from f5lab.asr import Transcriber
from f5lab.audio import Wave
from f5lab.checkpoints import open_checkpoint
from f5lab.errors import BundleError, CaseError, CheckpointError, ModelError
from f5lab.faults import text_faults, weight_faults
from f5lab.faults.examinations import Exam
from f5lab.faults.weight_faults import EMA_FAULTS
from f5lab.scale import series, series_rows, sweep_tasks, sweeps
from f5lab.specs import Arch, load_case, name_of
from f5lab.statistics import Estimate
from f5lab.weights import architectures

HEAD = "transformer.proj_out.bias"
ROTARY = "transformer.rotary_embed.inv_freq"


def moved(weights: dict[str, torch.Tensor], share: float, seed: int = 9) -> dict[str, torch.Tensor]:
    """Return weights, each but the rotary frequencies moved by a share of its length in a direction that the seed draws."""
    g = torch.Generator().manual_seed(seed)
    return {name: w if name == ROTARY else w + share * w.norm() / w.numel() ** 0.5 * torch.randn(w.shape, generator=g) for name, w in weights.items()}


def exam_of(raw: dict[str, torch.Tensor], average: dict[str, torch.Tensor], folder: Path, *, loads: str = "ema", base: dict[str, torch.Tensor] | None = None,
            truth: Any = None, **more: Any) -> Any:  # fmt: skip
    """Return as much of an examination as the detectors of weights ask for."""
    checkpoint = open_checkpoint(save_trainer(folder / "model_200.pt", raw, ema_state(average), update=200))
    other = open_checkpoint(save_trainer(folder / "base.pt", base, ema_state(base, 12_000))) if base else None
    return SimpleNamespace(checkpoint=checkpoint, base=other, study=ema.study(checkpoint, other), weights=checkpoint.weights,
                           inference=SimpleNamespace(weights=loads), truth=truth or SimpleNamespace(problem="not asked", identifiable=False),
                           **more)  # fmt: skip


def with_nan(weights: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    return weights | {HEAD: weights[HEAD].clone().index_fill_(0, torch.tensor([0]), torch.nan)}


# the set of weights that inference does not load


@pytest.mark.parametrize("loads", ["ema", "raw"])
def test_damage_in_the_other_set_is_no_cause(tmp_path: Path, loads: str) -> None:
    sound, broken = state(0), with_nan(state(0))
    raw, average = (broken, sound) if loads == "ema" else (sound, broken)
    (found,) = weight_faults.detect_damage(exam_of(raw, average, tmp_path, loads=loads))
    assert found.outcome == "refuted" and f"In the {'raw' if loads == 'ema' else 'ema'} weights, which inference does not load" in found.claim


def test_damage_is_repaired_by_the_other_set_where_that_is_whole(tmp_path: Path) -> None:
    exam = exam_of(state(0), with_nan(state(0)), tmp_path)
    (found,) = weight_faults.detect_damage(exam)
    assert found.outcome == "cause" and found.settings == {"weights": "raw"} and weight_faults.right_weights(exam, [found]) == "raw"
    exam = exam_of(with_nan(state(0)), with_nan(state(0)), tmp_path)
    (found,) = weight_faults.detect_damage(exam)
    assert found.outcome == "cause" and "checkpoint" in found.settings and weight_faults.right_weights(exam, [found]) == "ema"


def test_prefixes_and_frequencies_of_the_other_set_are_no_cause(tmp_path: Path) -> None:
    strange = {name.replace("transformer.", "_orig_mod.transformer.", 1): w for name, w in state(0).items()}
    (found,) = weight_faults.detect_prefix(exam_of(strange, state(0), tmp_path))
    assert found.outcome == "refuted" and "_orig_mod." in found.claim
    off = state(0) | {ROTARY: state(0)[ROTARY] * 1.5}
    (found,) = weight_faults.detect_rope(exam_of(off, state(0), tmp_path))
    assert found.outcome == "refuted" and "raw weights, which inference does not load, are altered" in found.claim
    (found,) = weight_faults.detect_rope(exam_of(off, state(0), tmp_path, loads="raw"))
    assert found.outcome == "cause" and found.confidence == 0.99
    exam = exam_of(state(0), state(0), tmp_path)
    exam.weights = lambda _: {ROTARY: architectures.standard_rope(32).bfloat16().float()}
    (found,) = weight_faults.detect_rope(exam)
    assert found.outcome == "cause" and found.confidence == 0.8 and "rounded" in found.claim


def test_an_ema_that_was_never_filled_is_no_fault_of_raw_weights(tmp_path: Path) -> None:
    fresh = state(0) | {"transformer.proj_out.weight": torch.zeros_like(state(0)["transformer.proj_out.weight"])}
    for loads, outcome in (("ema", "cause"), ("raw", "refuted")):
        found = {item.id: item for item in weight_faults.detect_ema(exam_of(state(0), fresh, tmp_path, loads=loads))}
        assert found["ema-uninitialised"].outcome == outcome


def test_an_ema_alone_is_not_cleared_of_lagging(tmp_path: Path) -> None:
    pruned = tmp_path / "pruned.pt"
    torch.save({"ema_model_state_dict": ema_state(state(0))}, pruned)
    exam = exam_of(state(0), state(0), tmp_path)
    exam.checkpoint = open_checkpoint(pruned)
    exam.study, exam.weights = ema.study(exam.checkpoint), exam.checkpoint.weights
    found = {item.id: item for item in weight_faults.detect_ema(exam) if item.id in EMA_FAULTS}
    assert {name for name, item in found.items() if item.outcome == "unknown"} == set(EMA_FAULTS) - {"ema-uninitialised"}
    assert "raw and EMA" in found["ema-lag-inherited"].needs


# an EMA that averages nothing


@pytest.fixture
def strayed(tmp_path: Path) -> Any:
    """A case whose EMA went from the base in a direction of its own, and whose raw weights the probe likes better."""
    base = state(0)
    truth = SimpleNamespace(problem="", gate=None, identifiable=True, recipe=SimpleNamespace(weights="raw"))
    return exam_of(moved(base, 0.1, 1), moved(base, 0.3, 2), tmp_path, base=base, truth=truth, probe=SimpleNamespace(items=[]),
                   loss_effect=lambda *_: (Estimate(3.0, 2.0, 4.0, 8), None))  # fmt: skip


def test_an_ema_that_came_another_way_is_damaged_and_neither_lags_nor_was_exchanged(strayed: Any) -> None:
    assert strayed.study.comparison.overall.strayed
    (found,) = weight_faults.detect_damage(strayed)
    assert found.outcome == "cause" and found.settings == {"weights": "raw"} and "no average" not in found.claim and "cosine" in found.claim
    left = {item.id: item.outcome for item in weight_faults.detect_ema(strayed)}
    assert {left[name] for name in EMA_FAULTS} == {"refuted"}


def test_no_share_of_the_base_is_measured_along_another_way(strayed: Any) -> None:
    share = strayed.study.share
    assert share.measured is None and any("no share" in text for text in share.limits)
    assert [notice.id for notice in strayed.study.notices] == ["ema-strayed"]
    base = state(0)
    way = moved(base, 0.1, 1)
    behind = {name: base[name] + 0.4 * (way[name] - base[name]) for name in base}
    assert not ema.diffs.compare(way, behind, base).overall.strayed


@pytest.mark.parametrize(("worse", "outcome"), [(Estimate(9.0, 5.0, 14.0, 8), "cause"), (Estimate(0.3, 0.1, 0.5, 8), "refuted"), (None, "refuted")])
def test_weights_that_explain_speech_far_worse_than_their_base_are_named(worse: Estimate | None, outcome: str, tmp_path: Path) -> None:
    def compare(*_: Any) -> Estimate:
        if worse is None:
            raise ModelError("another shape")
        return worse

    base = state(0)
    recipe = SimpleNamespace(weights="ema", vocab=None, but=lambda **_: SimpleNamespace())
    truth = SimpleNamespace(problem="", recipe=recipe)
    exam = exam_of(moved(base, 0.1, 1), moved(base, 0.05, 1), tmp_path, base=base, truth=truth, probe=SimpleNamespace(compare=compare))
    (found,) = weight_faults.detect_damage(exam)
    assert found.outcome == outcome and ("diverged" in found.claim) == (outcome == "cause")


# sweeps


def rows(recipe: str, case: str, arch: str, cers: list[float | None]) -> list[dict[str, Any]]:
    return [
        {"case": case, "checkpoint": "a.pt", "recipe": recipe, "point": "{}", "arch": arch, "prompt": f"p{i}", "text": f"text {i}", "reference": f"{i}.wav",
         "seed": 0, "cer": cer, "loss": None, "problem": ""}
        for i, cer in enumerate(cers)
    ]  # fmt: skip


def framed(*given: list[dict[str, Any]]) -> pd.DataFrame:
    frame = pd.DataFrame([row for some in given for row in some])
    return frame.assign(**{name: None for name in sweeps.SCHEMA.names if name not in frame})


def test_a_recipe_that_comes_to_something_else_in_each_case_is_compared(tmp_path: Path) -> None:
    frame = framed(rows("as it is", "x", "v1", [0.8, 0.9, 0.7, 0.8]), rows("as trained", "x", "v1", [0.5, 0.4, 0.6, 0.5]),
                   rows("as it is", "y", "v1", [0.8, 0.9, 0.7, 0.8]), rows("as trained", "y", "v0", [0.0, 0.1, 0.0, 0.1]))  # fmt: skip
    found = sweeps.best(frame)
    assert found is not None and found.best == "recipe as trained" and found.decided


def test_what_is_left_out_of_a_comparison_is_named() -> None:
    frame = framed(rows("a", "x", "v", [0.0, 0.0, 0.0, None]), rows("b", "x", "v", [0.5, 0.4, 0.6, 0.5]), rows("c", "x", "v", [0.9, 0.8, 0.9, 0.9]))
    (said,) = sweeps.conclude(frame)
    assert "Not compared, since not measured on every prompt and seed: recipe a." in said and "Every other one that was compared is worse" in said
    nowhere = framed(rows("a", "x", "v", [0.0, 0.0, 0.1, None]), rows("b", "x", "v", [0.5, 0.4, 0.6, None]))
    (said,) = sweeps.conclude(nowhere)
    assert "recipe a" in said and "n=3 prompts" in said


@pytest.mark.parametrize(("n", "decided"), [(2, False), (4, False), (6, True)])
def test_few_differences_that_happen_to_be_equal_decide_nothing(n: int, decided: bool) -> None:
    found = sweeps.best(framed(rows("a", "x", "v", [0.1 * i for i in range(n)]), rows("b", "x", "v", [0.1 * i + 0.3 for i in range(n)])))
    assert found is not None and found.decided is decided and f"+0.3 in each of {n}" in found.says


# lengths


@pytest.mark.parametrize(("fixed", "outcome"), [(0.3, "cause"), (4.0, "refuted")])
def test_a_fixed_length_that_the_reference_takes_up_is_named(fixed: float, outcome: str) -> None:
    case = load_case(paths.data_dir() / "cases" / "ptbr-repaired" / "case.yaml")
    case = case.model_copy(update={"inference": case.inference.model_copy(update={"fix_duration": fixed}), "prompts": case.prompts[:2]})
    found = {item.id: item for item in text_faults.detect_length(Exam(case, device="cpu", asr=""))}
    assert found["duration-byte-ratio"].outcome == outcome
    silent = case.model_copy(update={"prompts": tuple(p.model_copy(update={"ref_text": " "}) for p in case.prompts)})
    found = {item.id: item for item in text_faults.detect_length(Exam(silent, device="cpu", asr=""))}
    assert found["duration-byte-ratio"].outcome == "unknown"


def test_a_row_that_fails_in_an_unforeseen_way_says_so_and_a_machines_failure_goes_on(monkeypatch: pytest.MonkeyPatch) -> None:
    case = load_case(paths.default_case())
    recipe = samplers.inference_recipe(case).model_dump(mode="json")
    told = {"recipe": recipe, "prompt": case.prompts[0].model_dump(mode="json"), "seed": 0, "device": "cpu", "measures": []}

    def fail(error: Exception) -> Any:
        def speak(*_: Any) -> None:
            raise error

        return speak

    monkeypatch.setattr(sweep_tasks, "_spoken", fail(RuntimeError("padding\nsize")))
    assert sweep_tasks._measured(told) == {"problem": "RuntimeError: padding size"}
    monkeypatch.setattr(sweep_tasks, "_spoken", fail(OSError(28, "No space left on device")))
    with pytest.raises(OSError, match="No space"):
        sweep_tasks._measured(told)


def test_a_clip_of_one_frame_is_transcribed() -> None:
    ears = Transcriber("pt")
    assert isinstance(ears([Wave(np.zeros(171, np.float32), 16000)])[0].text, str)


def test_as_trained_is_inferred_where_a_case_does_not_state_it(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    case = load_case(paths.default_case())
    unsaid = case.model_copy(update={"training": case.training.model_copy(update={"arch": None, "front_end": None})})
    right = samplers.repaired_recipe(case)
    monkeypatch.setattr(sweep_tasks, "settings_of", lambda *_, **__: (right, {"known": {"arch": "inferred", "front_end": "assumed"}}))
    informed, known = sweep_tasks._informed(unsaid, "cpu")
    assert samplers.repaired_recipe(informed).arch == right.arch != samplers.repaired_recipe(unsaid).arch
    inferred, assumed = sweep_tasks.notes([{"case": "x", "known": known}, {"case": "y", "known": {}}])
    assert "inferred by the probe: arch" in inferred and "as inference has it: front_end" in assumed
    assert sweep_tasks._informed(case, "cpu") == (case, {"arch": "stated", "front_end": "stated"})


def test_options_without_the_width_are_refused_as_a_case(tmp_path: Path) -> None:
    with pytest.raises(CaseError, match="pe_attn_head and no dim"):
        Arch(pe_attn_head=1).resolve()
    assert Arch(preset="F5TTS_v1_Base", pe_attn_head=1).resolve()[1]["pe_attn_head"] == 1


# files


def test_a_repeated_token_stops_inference_and_is_not_babble(tmp_path: Path) -> None:
    plain, doubled = tmp_path / "plain.txt", tmp_path / "doubled.txt"
    plain.write_text(" \na\nb\nc\n", encoding="utf-8")
    doubled.write_text(" \na\nb\nc\na\n", encoding="utf-8")
    says = vocabs.compare(vocabs.read_vocab(plain), vocabs.read_vocab(doubled)).consequence
    assert "IndexError at the first 'a'" in says and "babble" not in says


def test_a_checkpoint_that_was_replaced_meanwhile_gets_no_verdict(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    case = load_case(paths.default_case())
    used, other = tmp_path / "model_last.pt", tmp_path / "next.pt"
    for target in (used, other):
        shutil.copy(case.checkpoint, target)

    def train_on(exam: Exam) -> list[Any]:
        other.replace(used)
        return []

    monkeypatch.setattr(diagnosis, "examine", train_on)
    with pytest.raises(CheckpointError, match="changed"):
        diagnosis.diagnose(case.model_copy(update={"checkpoint": used}), device="cpu", listen=False)


def test_a_case_is_named_after_its_folder_in_plain_letters() -> None:
    assert [name_of(Path(name)) for name in ("voz joão", ".hidden", "日本")] == ["voz-joao", "hidden", "case"]


# what is handed over


def test_a_blend_of_options_that_nobody_knows_is_refused(tmp_path: Path) -> None:
    exam: Any = SimpleNamespace(truth=SimpleNamespace(known={"arch": "assumed"}, problem=""))
    with pytest.raises(BundleError, match="neither stated nor can be inferred"):
        blends.export(exam, None, None, tmp_path / "out")  # type: ignore[arg-type]


def test_a_series_says_which_settings_it_measured_with() -> None:
    recipe = samplers.repaired_recipe(load_case(paths.default_case()))
    says = series._settings_sentence(recipe, {"arch": "inferred", "front_end": "stated"})
    assert "pe_attn_head 1, text_mask_padding false (inferred), front end raw (stated)" in says


def test_norms_without_values_that_are_not_finite_say_so(tmp_path: Path) -> None:
    path = save_trainer(tmp_path / "model_200.pt", with_nan(state(0)), ema_state(state(0)), update=200)
    assert any("without 1 values that are not finite" in note for note in series_rows.read_weights(path, None)["notes"])
