"""The commands of the diagnosis: usage, exit status, what they write."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from f5lab import catalogue, paths
from f5lab.planted import plants
from f5lab.specs import load_case

DATA = paths.data_dir()
CLIP = DATA / "speech" / "ptbr" / "jm_kumo_phrase_0012.ogg"
LOOSE = ["--checkpoint", str(DATA / "specimen/finetune/model_last.pt"), "--vocab", str(DATA / "specimen/vocab.txt"),
         "--clip", str(CLIP), "--text", "Comprou um livro.", "--language", "pt", "--vocoder", str(DATA / "specimen/vocos")]  # fmt: skip


def test_the_catalogue_is_listed_and_shown(call: Callable, tmp_path: Path) -> None:
    status, _, _ = call("faults", "--json", str(tmp_path / "all.json"))
    listed = json.loads((tmp_path / "all.json").read_text(encoding="utf-8"))["faults"]
    assert status == 0 and [row["id"] for row in listed] == list(catalogue.FAULTS)
    status, out, _ = call("faults", "mel-type")
    assert status == 0 and catalogue.FAULTS["mel-type"].fix.split()[0] in out
    status, _, err = call("faults", "mel-typ")
    assert status == 1 and "mel-type" in err


def test_a_planted_case_is_written_once(call: Callable, tmp_path: Path) -> None:
    status, out, _ = call("plant", "pe-attn-head-only,cfg-or-sway-off", "--out", str(tmp_path / "p"))
    assert status == 0
    case = load_case(out.strip())
    assert case.planted == ("pe-attn-head-only", "cfg-or-sway-off") and case.inference.cfg_strength == 0
    status, _, err = call("plant", "mel-type", out.strip(), "--out", str(tmp_path / "q"))
    assert status == 1 and "plant" in err and not (tmp_path / "q").exists()
    status, _, err = call("plant", "mel-type", "--out", str(tmp_path / "p"))
    assert status == 1 and len(err.strip().splitlines()) == 1


@pytest.mark.parametrize(
    ("arguments", "status", "says"),
    [
        (["diagnose", *LOOSE[:4]], 2, "--clip, --text missing"),
        (["diagnose", str(paths.default_case()), *LOOSE], 2, "not both"),
        (["diagnose", str(paths.default_case()), "--base", "b.pt"], 2, "not both"),
        (["diagnose", *LOOSE[:7], "  "], 2, "--text is blank"),
        (["diagnose", *LOOSE, "--vocoder", "none"], 1, "none is no folder"),
        (["diagnose", *LOOSE[:4], "--clip", str(DATA / "README.md"), "--text", "a", "--no-listen"], 1, "README.md"),
        (["diagnose", "none.yaml"], 1, "none.yaml does not exist"),
        (["diagnose", *LOOSE[:5], "none.wav", *LOOSE[6:]], 1, "none.wav does not exist"),
        (["bundle"], 2, "--out"),
        (["plant"], 2, "FAULT"),
    ],
)
def test_wrong_usage_is_one_line(call: Callable, arguments: list[str], status: int, says: str) -> None:
    code, _, err = call(*arguments)
    assert code == status and says in err and len(err.strip().splitlines()) == 1


def test_check_exits_with_3_when_a_cause_is_found(call: Callable, tmp_path: Path) -> None:
    case = plants.plant(
        ["pe-attn-head-only"], load_case(DATA / "cases" / "ptbr-repaired" / "case.yaml"), tmp_path / "p"
    )
    status, out, _ = call("diagnose", str(case), "--no-listen", "--check", "--device", "cpu", "--reasons")
    assert status == 3 and "pe-attn-head-only" in out
    assert "refuted" in out and "accelerate" in out  # tables fold where the terminal ends


def test_diagnose_needs_no_case_file(call: Callable, tmp_path: Path) -> None:
    file = tmp_path / "verdict.json"
    status, out, _ = call("diagnose", *LOOSE, "--no-listen", "--check", "--device", "cpu", "--json", str(file))
    verdict = json.loads(file.read_text(encoding="utf-8"))
    assert status == 3 and verdict["causes"][0]["confidence"] == 0.6  # what inference builds was not stated
    assert [c["id"] for c in verdict["causes"]] == ["arch-flags-v0-as-v1"]
    assert "text_mask_padding" in out and "Ruled out" in out


def test_a_healthy_case_exits_with_0(call: Callable, tmp_path: Path) -> None:
    case = plants.healthy(load_case(DATA / "cases" / "ptbr-repaired" / "case.yaml"), tmp_path / "h", variant=0)
    status, out, err = call("diagnose", str(case), "--no-listen", "--check", "--device", "cpu", "--json", "-")
    assert err.splitlines()[0].startswith("… looking for")
    verdict = json.loads(out)
    assert status == 0 and not verdict["causes"] and not verdict["healthy"]  # nobody listened


def test_a_detector_that_failed_is_an_error_not_an_all_clear(call: Callable, monkeypatch: pytest.MonkeyPatch) -> None:
    from f5lab import diagnosis

    def breaks(exam: object) -> list[diagnosis.Suspicion]:
        raise ZeroDivisionError("by nothing")

    monkeypatch.setattr(diagnosis, "DETECTORS", {breaks: ("mel-type",)})
    status, out, err = call("diagnose", "--no-listen", "--check", str(DATA / "cases" / "ptbr-repaired" / "case.yaml"))
    assert status == 1 and "mel-type" in out and "1 of the catalogue's entries not judged" in err and "by nothing" in err
