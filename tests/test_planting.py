"""Planting: a new folder that can be moved, nothing written over, and what cannot be planted refused with its reason."""

import shutil
import unicodedata
from pathlib import Path

import pytest

from f5lab import paths
from f5lab.errors import FaultError
from f5lab.planted import plants
from f5lab.specs import Case, load_case


@pytest.fixture(scope="module")
def case() -> Case:
    return load_case(paths.data_dir() / "cases" / "ptbr-repaired" / "case.yaml")


def test_a_planted_folder_can_be_moved(case: Case, tmp_path: Path) -> None:
    path = plants.plant(["vocab-permuted"], case, tmp_path / "a")
    assert str(tmp_path) not in path.read_text(encoding="utf-8")
    shutil.move(tmp_path / "a", tmp_path / "b")
    assert load_case(tmp_path / "b" / "case.yaml").inference_vocab == tmp_path / "b" / "vocab.txt"


def test_faults_go_into_healthy_forms_too(case: Case, tmp_path: Path) -> None:
    form = load_case(plants.healthy(case, tmp_path / "form", variant=5))
    made = load_case(plants.plant(["vocab-permuted"], form, tmp_path / "made"))
    assert made.checkpoint == form.checkpoint and made.planted == ("vocab-permuted",)
    with pytest.raises(FaultError, match=r"ema-frozen cannot be planted in case .*no raw weights"):
        plants.plant(["ema-frozen"], form, tmp_path / "other")
    assert not (tmp_path / "other").exists()


def test_planting_twice_is_refused(case: Case, tmp_path: Path) -> None:
    made = load_case(plants.plant(["mel-type"], case, tmp_path / "a"))
    for again in (
        lambda: plants.plant(["mel-type"], made, tmp_path / "b"),
        lambda: plants.decoy("bom-vocab", made, tmp_path / "b"),
        lambda: plants.healthy(made, tmp_path / "b"),
    ):
        with pytest.raises(FaultError, match="has mel-type planted already"):
            again()
    assert not (tmp_path / "b").exists()


def test_nothing_is_written_over(case: Case, tmp_path: Path) -> None:
    (tmp_path / "mine.txt").write_text("keep")
    with pytest.raises(FaultError, match="is not an empty folder"):
        plants.plant(["mel-type"], case, tmp_path)
    assert [p.name for p in tmp_path.iterdir()] == ["mine.txt"]
    (tmp_path / "empty").mkdir()
    assert plants.plant(["mel-type"], case, tmp_path / "empty").is_file()


@pytest.mark.parametrize(
    ("ids", "variant", "says"),
    [
        (["mel-typo"], 0, "no fault 'mel-typo'; expected one such as mel-type"),
        (["mel-type", "mel-type"], 0, "each once"),
        ([], 0, "faults to plant: none"),
        (["mel-type"], 3, "variant 3; expected 0 to 2"),
        (["arch-flags-v0-as-v1", "pe-attn-head-only"], 0, "inference lacks pe_attn_head already"),
        (["raw-in-ema-slot", "raw-ema-swapped"], 0, "no raw weights"),
    ],
)
def test_what_cannot_be_planted(ids: list[str], variant: int, says: str, case: Case, tmp_path: Path) -> None:
    with pytest.raises(FaultError, match=says):
        plants.plant(ids, case, tmp_path / "new", variant=variant)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    "name", ["ema-frozen", "ema-lag-inherited", "lr-dead", "scratch-by-accident", "raw-ema-swapped"]
)
def test_faults_that_need_a_base_say_so(name: str, case: Case, tmp_path: Path) -> None:
    with pytest.raises(FaultError, match="it names no base; add `base:` to the case"):
        plants.plant([name], case.model_copy(update={"base": None}), tmp_path / "new")


def test_what_does_not_apply_is_refused(case: Case, tmp_path: Path) -> None:
    plain = [p.model_copy(update={"ref_text": "abc.", "gen_text": "abc def ghi."}) for p in case.prompts]
    with pytest.raises(FaultError, match="no accented letter"):
        plants.plant(["oov-to-zero"], case.model_copy(update={"prompts": tuple(plain)}), tmp_path / "new")
    download = case.vocoder.model_copy(update={"path": None})
    with pytest.raises(FaultError, match="names no local vocos folder"):
        plants.plant(["vocoder-wrong"], case.model_copy(update={"vocoder": download}), tmp_path / "new")
    spoken = [
        p.model_copy(update={"gen_text": unicodedata.lookup("LATIN SMALL LETTER U WITH ACUTE")}) for p in case.prompts
    ]
    with pytest.raises(FaultError, match="this would be vocab-damage"):
        plants.decoy("no-final-newline", case.model_copy(update={"prompts": tuple(spoken)}), tmp_path / "new")
    with pytest.raises(FaultError, match="no decoy 'crlf'; expected one such as crlf-vocab"):
        plants.decoy("crlf", case, tmp_path / "new")
    with pytest.raises(FaultError, match="variant 12; expected 0 to 11"):
        plants.healthy(case, tmp_path / "new", variant=12)
