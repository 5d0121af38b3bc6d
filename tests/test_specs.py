"""Cases and findings: what is accepted, what is refused and in which words; presets against upstream's own configs."""

from importlib.resources import files
from pathlib import Path

import pytest
import yaml

from f5lab import findings, paths
from f5lab.errors import CaseError, RunError
from f5lab.specs import PRESETS, Arch, load_case, name_of

MINIMAL = {
    "checkpoint": "c.pt",
    "vocab": "v.txt",
    "prompts": [{"id": "p", "ref_audio": "a.wav", "ref_text": "a", "gen_text": "b"}],
}


def write(folder: Path, data: dict) -> Path:
    for name in ("c.pt", "v.txt", "a.wav"):
        (folder / name).touch()
    (folder / "case.yaml").write_text(yaml.safe_dump(data), encoding="utf-8")
    return folder / "case.yaml"


@pytest.mark.parametrize("name", sorted(PRESETS))
def test_presets_are_upstreams(name: str) -> None:
    model = yaml.safe_load((files("f5_tts") / "configs" / f"{name}.yaml").read_text())["model"]
    backbone, options = Arch(preset=name).resolve()
    assert backbone == model["backbone"]
    assert {k: model["arch"].get(k) for k in options} == options


def test_minimal_case_resolves_paths_beside_it(tmp_path: Path) -> None:
    case = load_case(write(tmp_path, MINIMAL))
    assert case.checkpoint == tmp_path / "c.pt" and case.prompts[0].ref_audio == tmp_path / "a.wav"
    assert case.inference.nfe_step == 32 and case.inference.weights == "ema"


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"chekpoint": "x"}, "chekpoint: unknown key"),
        ({"inference": {"nfe": 3}}, "inference.nfe: unknown key"),
        ({"vocab": None}, "no vocab"),
        ({"prompts": []}, "prompts"),
        ({"checkpoint": "gone.pt"}, "name files? that do not exist|names files that do not exist"),
        ({"training": {"arch": {"preset": "F6"}}}, "no preset 'F6'"),
    ],
)
def test_bad_cases_are_refused_in_one_line(tmp_path: Path, change: dict, says: str) -> None:
    data = {k: v for k, v in {**MINIMAL, **change}.items() if v is not None}
    with pytest.raises(CaseError, match=says) as error:
        load_case(write(tmp_path, data))
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("text", ["- a\n- b\n", "a: [\n", ""])
def test_files_that_are_no_case(tmp_path: Path, text: str) -> None:
    (tmp_path / "case.yaml").write_text(text)
    with pytest.raises(CaseError, match="case file"):
        load_case(tmp_path / "case.yaml")


def test_the_bundled_case_is_valid() -> None:
    case = load_case(paths.default_case())
    assert len(case.prompts) == 8 and len(case.recorded) == 5


def test_findings_are_written_whole_and_read_back(tmp_path: Path) -> None:
    log = findings.FindingsLog("01", tmp_path)
    log.record("01-a", question="q", claim="c", verdict="supported", value=1.5, unit="dB", interval=(1.0, 2.0), n=3)
    assert findings.load_run(tmp_path) == log.findings
    with pytest.raises(RunError, match="recorded twice"):
        log.record("01-a", question="q", claim="c", verdict="refuted")
    with pytest.raises(RunError, match="recorded in notebook 01"):
        log.record("02-a", question="q", claim="c", verdict="refuted")
    with pytest.raises(ValueError, match="say why"):
        log.record("01-b", question="q", claim="c", verdict="refuted", value=float("nan"))


@pytest.mark.parametrize(
    ("folder", "name"), [(".hidden", "hidden"), ("my case", "my-case"), ("..", "case"), ("ação", "acao")]
)
def test_a_folder_gives_a_name_that_a_case_may_have(folder: str, name: str) -> None:
    assert name_of(Path("/somewhere") / folder) == name
