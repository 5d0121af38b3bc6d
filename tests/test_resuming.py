"""A run that was cut off goes on where it was, ends with the same findings, and never mixes two states."""

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from toy_workbook import AUDIO, notebook, write_case, write_workbook

from f5lab import paths, resuming, workbook
from f5lab.errors import RunError
from f5lab.execution import run_folders

TALLY = """from pathlib import Path
with (Path(case).parent.parent / "tally").open("a") as f:
    f.write("{number}\\n")"""
FRAGILE = """if (Path(case).parent.parent / "trip").exists():
    raise RuntimeError("CUDA error: unspecified launch failure")"""


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """Return a root with a toy workbook of two, and a run of it whose second notebook failed."""
    root = tmp_path_factory.mktemp("resume")
    nodes = {
        "00_first": notebook("00", TALLY.format(number="00"), AUDIO),
        "01_second": notebook("01", TALLY.format(number="01"), FRAGILE),
    }
    folder, case = write_workbook(root, nodes), write_case(root)
    (root / "trip").touch()
    broken = workbook.run(case, out=root / "runs", notebooks_dir=folder, settings={"n_prompts": "2"})
    (root / "trip").unlink()
    return root, broken.folder


@pytest.fixture
def copied(made: tuple[Path, Path], tmp_path: Path) -> Iterator[tuple[Path, Path]]:
    """Return the root, and a copy of the broken run to damage; what is changed in the case or notebooks comes back."""
    root, run = made
    shutil.copytree(root / "case", tmp_path / "case")
    shutil.copytree(root / "notebooks", tmp_path / "notebooks")
    shutil.copytree(run, tmp_path / "run")
    (root / "tally").unlink(missing_ok=True)
    yield root, tmp_path / "run"
    for name in ("case", "notebooks"):
        shutil.rmtree(root / name)
        shutil.copytree(tmp_path / name, root / name)


def resume(root: Path, run: Path) -> workbook.Run:
    return resuming.resume(run, root / "case" / "case.yaml", notebooks_dir=root / "notebooks")


def executed(root: Path) -> list[str]:
    return (root / "tally").read_text().split() if (root / "tally").exists() else []


def change_record(run: Path, **changes: Any) -> None:
    record = json.loads((run / "run.json").read_text())
    (run / "run.json").write_text(json.dumps({**record, **changes}))


def test_only_what_failed_is_executed_again_and_findings_are_those_of_an_unbroken_run(
    copied: tuple[Path, Path], tmp_path: Path
) -> None:
    root, run = copied
    assert json.loads((run / "run.json").read_text())["notebooks"][1]["error"].startswith("the accelerator failed;")
    (run / "audio" / "01-stale-01.flac").write_bytes(b"half")
    (run / "verdict.json").write_text("{}")
    (run / "findings" / ".01-a1b2c3d4.jsonl").write_text("half")
    page = (run / "00_first.html").stat().st_mtime_ns
    result = resume(root, run)
    assert executed(root) == ["01"]
    assert result.failed == []
    assert (run / "00_first.html").stat().st_mtime_ns == page
    left = {p.relative_to(run).as_posix() for p in run.rglob("*") if p.is_file()}
    assert not left & {"audio/01-stale-01.flac", "verdict.json", "findings/.01-a1b2c3d4.jsonl"}
    (note,) = result.record["resumed"]
    assert (note["kept"], note["again"]) == (["00_first"], {"01_second": "it failed"})
    assert "resumed" in (run / "index.html").read_text()
    whole = workbook.run(
        root / "case" / "case.yaml",
        out=tmp_path / "whole",
        notebooks_dir=root / "notebooks",
        settings={"n_prompts": "2"},
    )
    assert (run / "findings.jsonl").read_bytes() == (whole.folder / "findings.jsonl").read_bytes()
    (root / "tally").unlink()
    assert resume(root, run / "index.html").record["resumed"] == [note]
    assert executed(root) == []


def test_a_run_that_was_moved_away_from_its_case_asks_for_it(copied: tuple[Path, Path]) -> None:
    root, run = copied
    change_record(run, case={"name": "toy", "question": "", "language": "pt", "path": "../../gone/case.yaml"})
    with pytest.raises(RunError, match=r"names its case ../../gone/case.yaml, .*: f5lab run CASE --resume RUN"):
        resuming.resume(run, notebooks_dir=root / "notebooks")


def test_what_is_not_whole_is_executed_again(copied: tuple[Path, Path]) -> None:
    root, run = copied
    (run / "findings" / "00.jsonl").write_text((run / "findings" / "00.jsonl").read_text()[:-20])
    write_workbook(root, {"01_second": notebook("01", TALLY.format(number="01x"))})
    assert resume(root, run).failed == []
    assert executed(root) == ["00", "01x"]
    again = json.loads((run / "run.json").read_text())["resumed"][0]["again"]
    assert again == {"00_first": "what it left is not whole", "01_second": "it failed"}


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({}, ""),
        ({"status": "running"}, "it was cut off"),
        ({"status": "pending"}, "it never ran"),
        ({"source": "0"}, "the notebook was changed"),
        ({"parameters": {"n_prompts": {"value": 3}}}, "its parameters differ"),
        ({"outputs": {}}, "what it left is not whole"),
        ({"outputs": {"gone.html": "0"}}, "what it left is not whole"),
    ],
)
def test_reasons_to_execute_again(made: tuple[Path, Path], changes: dict, reason: str) -> None:
    entry = json.loads((made[1] / "run.json").read_text())["notebooks"][0]
    assert resuming._why_again(made[1], {**entry, **changes}, entry) == reason


def alter_checkpoint(root: Path, run: Path) -> None:
    (root / "case" / "model.pt").write_bytes(b"Weights")


def alter_case(root: Path, run: Path) -> None:
    with (root / "case" / "case.yaml").open("a") as f:
        f.write("language: pt\n")


def alter_versions(root: Path, run: Path) -> None:
    change_record(run, versions={**json.loads((run / "run.json").read_text())["versions"], "torch": "1.0"})


def alter_code(root: Path, run: Path) -> None:
    change_record(run, code="0" * 64)


def alter_machine(root: Path, run: Path) -> None:
    change_record(run, hardware={**json.loads((run / "run.json").read_text())["hardware"], "gpus": ["another"]})


def drop_notebook(root: Path, run: Path) -> None:
    (root / "notebooks" / "01_second.ipynb").unlink()


def drop_record(root: Path, run: Path) -> None:
    (run / "run.json").unlink()


def cut_record(root: Path, run: Path) -> None:
    (run / "run.json").write_text((run / "run.json").read_text()[:500])


def forget_account(root: Path, run: Path) -> None:
    record = json.loads((run / "run.json").read_text())
    del record["code"]
    (run / "run.json").write_text(json.dumps(record))


@pytest.mark.parametrize(
    ("alter", "reason"),
    [
        (alter_checkpoint, r"changed since: checkpoint \(model.pt\); start a new run"),
        (alter_case, r"changed since: case file \(case.yaml\); start a new run"),
        (alter_versions, r"changed since: torch 1.0 → "),
        (alter_code, "changed since: f5lab's code; start a new run"),
        (alter_machine, "changed since: hardware: gpus; start a new run"),
        (drop_notebook, "no such notebook: 01_second"),
        (drop_record, "holds no run.json; expected the folder of a run; start a new run"),
        (cut_record, "can not be read as JSON; start a new run"),
        (forget_account, "kept no account of it; start a new run"),
    ],
)
def test_two_states_are_never_mixed(copied: tuple[Path, Path], alter: Any, reason: str) -> None:
    root, run = copied
    alter(root, run)
    before = run_folders.digests(run, (p for p in run.rglob("*") if p.is_file()))
    with pytest.raises(RunError, match=reason):
        resume(root, run)
    assert run_folders.digests(run, (p for p in run.rglob("*") if p.is_file())) == before
    assert executed(root) == []


def test_a_folder_that_another_process_writes_is_left_alone(
    copied: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    root, run = copied
    code = "import sys; from pathlib import Path; from f5lab.execution import run_folders\n"
    code += "with run_folders.hold(Path(sys.argv[1])): print('held', flush=True); sys.stdin.read()"
    command = [sys.executable, "-c", code, str(run)]
    other = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    assert other.stdout.readline() == "held\n"
    monkeypatch.setattr(resuming, "WAIT_S", 0.3)
    with pytest.raises(RunError, match="is being written by another process; wait for it"):
        resume(root, run)
    other.kill()
    other.wait()
    with run_folders.hold(run, 5.0) as held:
        assert len(held) == (os.name == "posix")


def test_resume_takes_no_other_settings(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    from f5lab import cli

    monkeypatch.setattr(cli.signal, "signal", lambda *_: None)
    monkeypatch.setattr(sys, "excepthook", sys.excepthook)
    with pytest.raises(SystemExit) as left:
        cli.main(["run", "--resume", "x", "--quick"])
    assert left.value.code == 2
    assert "--resume RUN alone" in capsys.readouterr().err
    with pytest.raises(SystemExit) as left:
        cli.main(["run", "--resume", "nowhere"])
    assert left.value.code == 1
    assert "nowhere holds no run.json" in capsys.readouterr().err


def test_code_digest_follows_the_source(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    from f5lab import provenance

    shutil.copytree(paths.PACKAGE, tmp_path / "f5lab", ignore=shutil.ignore_patterns("__pycache__"))
    monkeypatch.setattr(paths, "PACKAGE", tmp_path / "f5lab")
    same = provenance.code_digest()
    (tmp_path / "f5lab" / "__pycache__").mkdir()
    (tmp_path / "f5lab" / "__pycache__" / "x.pyc").write_bytes(b"x")
    assert provenance.code_digest() == same
    with (tmp_path / "f5lab" / "templates" / "style.css").open("a") as f:
        f.write("\n")
    assert provenance.code_digest() != same
