"""The command line: exit status and one clear line, whatever goes wrong."""

import json
import os
import re
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from toy_workbook import notebook, write_case, write_workbook

from f5lab import cli
from f5lab.commands import console
from f5lab.errors import CheckpointError
from f5lab.workbook import Step


def run_cli(*arguments: str, root: Path | None = None, **environment: str) -> subprocess.CompletedProcess[str]:
    known = {k: v for k, v in os.environ.items() if k != "F5LAB_TRACEBACK"}
    if root is not None:
        known["F5LAB_ROOT"] = str(root)
    command = [sys.executable, "-m", "f5lab", *arguments]
    return subprocess.run(command, capture_output=True, text=True, env=known | environment, timeout=120, check=False)


@pytest.fixture
def in_process(root: Path, monkeypatch: pytest.MonkeyPatch, call: Callable[..., tuple]) -> Callable[..., tuple]:
    """Return a function that runs the command line here and gives exit status, stdout and stderr."""
    monkeypatch.setenv("F5LAB_ROOT", str(root))
    return call


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("root")
    write_workbook(folder, {"00_fine": notebook("00", "1"), "01_bad": notebook("01", "raise ValueError('no voice')")})
    write_case(folder)
    return folder


def test_run_reports_failure_in_one_line_and_keeps_the_rest(root: Path) -> None:
    done = run_cli("run", str(root / "case" / "case.yaml"), "--set", "n_prompts=2", root=root)
    assert done.returncode == 1
    assert done.stderr.strip().splitlines()[-1].startswith("f5lab: 1 of 2 notebooks failed: 01_bad; see ")
    assert "ValueError: no voice" in done.stderr
    assert "Traceback" not in done.stderr
    index = Path(done.stdout.strip())
    assert index.is_file()
    assert index.parent.parent == root / "reports" / "toy"
    finding = json.loads((index.parent / "findings.jsonl").read_text(encoding="utf-8"))
    assert finding["value"] == 2


@pytest.mark.parametrize(
    ("arguments", "status", "line"),
    [
        (["run", "--only", "09", "CASE"], 2, "no such notebook: 09; expected among 00, 01"),
        (["run", "CASE", "--set", "n_promts=3"], 2, "unknown parameter: n_promts; expected among n_prompts, seeds"),
        (["run", "CASE", "--set", "n_prompts=many"], 2, "n_prompts='many' is not int; expected as 3"),
        (["run", "CASE", "--set", "n_prompts"], 2, "--set 'n_prompts'; expected KEY=VALUE"),
        (["run", "CASE", "--device", "gpu"], 2, "device 'gpu'; expected auto, cpu, cuda, cuda:N or mps"),
        (["run", "CASE", "--nope"], 2, "No such option: --nope"),
        (["run", "nowhere.yaml"], 1, "nowhere.yaml does not exist"),
        (["inspect"], 2, "Missing argument 'CKPT'"),
        (["nope"], 2, "No such command 'nope'"),
    ],
)
def test_bad_usage_and_bad_cases_are_one_line(
    root: Path, in_process: Callable[..., tuple], arguments: list[str], status: int, line: str
) -> None:
    case = str(root / "case" / "case.yaml")
    code, out, err = in_process(*[case if a == "CASE" else a for a in arguments])
    assert (code, out) == (status, "")
    assert re.fullmatch(r"f5lab: [^\n]+\n", err)
    assert line in err


def test_unknown_key_in_a_case_is_named(root: Path, in_process: Callable[..., tuple], tmp_path: Path) -> None:
    bad = root / "case" / "bad.yaml"
    bad.write_text((root / "case" / "case.yaml").read_text(encoding="utf-8") + "chekpoint: x\n", encoding="utf-8")
    code, out, err = in_process("run", str(bad), "--out", str(tmp_path / "out"))
    bad.unlink()
    assert (code, out) == (1, "")
    assert "chekpoint: unknown key" in err
    assert err.count("\n") == 1
    assert not (tmp_path / "out").exists()


def test_out_that_can_not_be_a_folder_is_one_line(root: Path, in_process: Callable[..., tuple], tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    code, _, err = in_process("run", str(root / "case" / "case.yaml"), "--out", str(tmp_path / "file"))
    assert code == 1
    assert re.fullmatch(r"f5lab: cannot make a folder in [^\n]+; choose --out\n", err)


def test_termination_closes_the_report_and_the_kernel(tmp_path: Path) -> None:
    sleeper = "import os, time\nfrom pathlib import Path\nPath('pid').write_text(str(os.getpid()))\ntime.sleep(100)"
    write_workbook(tmp_path, {"00_slow": notebook("00", sleeper), "01_later": notebook("01", "1")})
    command = [sys.executable, "-m", "f5lab", "run", str(write_case(tmp_path))]
    environment = {**os.environ, "F5LAB_ROOT": str(tmp_path)}
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment)
    mark = tmp_path / "notebooks" / "pid"
    deadline = time.monotonic() + 60
    while not (mark.is_file() and mark.read_text()) and time.monotonic() < deadline:
        time.sleep(0.1)
    process.terminate()
    out, err = process.communicate(timeout=60)
    assert process.returncode == 130
    assert err.endswith("f5lab: interrupted\n")
    record = json.loads((Path(out.strip()).parent / "run.json").read_text(encoding="utf-8"))
    assert [e["status"] for e in record["notebooks"]] == ["failed", "pending"]
    with pytest.raises(ProcessLookupError):
        os.kill(int(mark.read_text()), 0)


def call(monkeypatch: pytest.MonkeyPatch, error: BaseException, *arguments: str) -> int:
    """Run ``f5lab vocab x`` in this process with a body that raises `error`, and return the exit status."""

    def body(*_: object) -> dict:
        raise error

    module = type(sys)("f5lab.vocabs")
    module.report = body
    monkeypatch.setitem(sys.modules, "f5lab.vocabs", module)
    monkeypatch.setattr("f5lab.vocabs", module, raising=False)
    monkeypatch.setattr(cli.signal, "signal", lambda *_: None)
    monkeypatch.setattr(sys, "excepthook", sys.excepthook)
    with pytest.raises(SystemExit) as left:
        cli.main(["vocab", "x", *arguments])
    return left.value.code


def test_lab_errors_exit_with_1(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    assert call(monkeypatch, CheckpointError("x is\nno checkpoint", expected="one")) == 1
    assert capsys.readouterr().err == "f5lab: x is no checkpoint; expected one\n"


def test_interrupt_exits_with_130(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    assert call(monkeypatch, KeyboardInterrupt()) == 130
    assert capsys.readouterr().err == "f5lab: interrupted\n"


def test_traceback_is_shown_when_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(CheckpointError, match="no checkpoint"):
        call(monkeypatch, CheckpointError("no checkpoint"), "--traceback")


def test_unexpected_errors_are_one_line_with_a_hint(tmp_path: Path) -> None:
    broken = tmp_path / "specimens.py"
    broken.write_text("raise ZeroDivisionError('two\\nlines')")
    code = f"import f5lab.specimen as folder; folder.__path__.insert(0, {str(tmp_path)!r}); from f5lab.cli import main; main()"
    command = [sys.executable, "-c", code, "specimen", "verify"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert done.stderr == "f5lab: ZeroDivisionError: two lines; run again with --traceback to see where it comes from\n"
    shown = subprocess.run([*command, "--traceback"], capture_output=True, text=True, check=False)
    assert shown.returncode == 1
    assert "Traceback" in shown.stderr


def test_json_goes_to_a_file_or_to_stdout(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    report = {"path": Path("a"), "cer": 0.5, "rows": [{"key": "\u202ea", "n": 1}], "part": {"text": "é"}}
    console.deliver(report, tmp_path / "r.json")
    shown = capsys.readouterr().out
    assert "⟨U+202E⟩a" in shown
    assert json.loads((tmp_path / "r.json").read_text(encoding="utf-8")) == {**report, "path": "a"}
    console.deliver(report, Path("-"))
    assert json.loads(capsys.readouterr().out)["part"] == {"text": "é"}
    with pytest.raises(ValueError, match="Out of range float values"):
        console.deliver({"cer": float("nan")}, tmp_path / "bad.json")
    assert not (tmp_path / "bad.json").exists()


def test_help_names_every_command_quickly() -> None:
    begun = time.monotonic()
    done = run_cli("--help")
    assert done.returncode == 0
    assert set(re.findall(r"^│ (\w+)", done.stdout, re.M)) >= {
        "run", "new", "inspect", "diff", "vocab", "cycle", "specimen",
    }  # fmt: skip
    assert time.monotonic() - begun < 10
    assert run_cli("--version").stdout.startswith("f5lab ")


def test_json_goes_into_devices_and_pipes_without_replacing_them(tmp_path: Path) -> None:
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    reader = subprocess.Popen(["cat", str(pipe)], stdout=subprocess.PIPE, text=True)
    console.deliver({"answer": 42}, pipe)
    assert json.loads(reader.communicate(timeout=20)[0]) == {"answer": 42}
    assert pipe.is_fifo()
    console.deliver({"answer": 42}, Path(os.devnull))
    assert Path(os.devnull).is_char_device()


def test_tables_in_a_file_are_not_folded_and_a_log_says_what_runs(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("COLUMNS", raising=False)
    name = "transformer.transformer_blocks.17.attn.to_out.0.weight"
    console.deliver({"tensors": [{"name": name, "shape": "1024 x 1024", "section": "ema_model_state_dict"}]}, None)
    assert any(name in line and "ema_model_state_dict" in line for line in capsys.readouterr().out.splitlines())
    with console.Progress() as progress:
        for cell in (0, 1, 2):
            progress.show(Step("05_inference", 1, 1, cell, 2, "Speech"))
        progress.show(Step("05_inference", 1, 1, 2, 2, "Speech", "ok", 61.0, 3))
    begun, ended = capsys.readouterr().err.splitlines()
    assert begun == "… 05_inference" and ended.startswith("✔ 05_inference") and ended.endswith("3 findings")
