"""Runs that are killed, interrupted, out of disk or run at once: what was there stays, and what was broken is finished.

``F5LAB_KILLS=30`` kills 30 times instead of 3, and fills a real small disk.
"""

import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import nbformat
import pytest
from toy_workbook import notebook, write_case, write_workbook

from f5lab import resuming, workbook
from f5lab.errors import RunError

KILLS = int(os.environ.get("F5LAB_KILLS", "3"))
CALLS = """from pathlib import Path
from f5lab import caches, paths
for number in range(60):
    paths.write_text(Path(out) / "audio" / f"{number_of}-{number:02d}.txt", "x" * 20_000)
    caches.write("toys", "shared", bytes(50_000))
    assert caches.read("toys", "shared") in (None, bytes(50_000))
print("y" * 60_000)"""


def number_calls(number: str) -> str:
    return f"number_of = {number!r}\n{CALLS}"


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    folder = tmp_path_factory.mktemp("kills")
    write_workbook(folder, {f"0{i}_toy": notebook(f"0{i}", number_calls(f"0{i}")) for i in range(2)})
    write_case(folder)
    (folder / "tmp").mkdir()
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("F5LAB_ROOT", str(folder))
        patch.setenv("F5LAB_CACHE", str(folder / "cache"))
        yield folder


def start(root: Path, *arguments: str) -> subprocess.Popen[str]:
    command = [sys.executable, "-m", "f5lab", "run", *arguments]
    environment = {**os.environ, "TMPDIR": str(root / "tmp")}
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment)


def finish(process: subprocess.Popen[str]) -> tuple[int, str, str]:
    out, err = process.communicate(timeout=240)
    return process.returncode, out.strip(), err


def state(folder: Path) -> dict[str, tuple[int, bytes]]:
    files = (path for path in folder.rglob("*") if path.is_file())
    return {path.relative_to(folder).as_posix(): (path.stat().st_mtime_ns, path.read_bytes()) for path in files}


@pytest.fixture(scope="module")
def whole(root: Path) -> tuple[Path, float]:
    """Return an unbroken run and the seconds that it took."""
    result = workbook.run(root / "case" / "case.yaml", out=root / "first", notebooks_dir=root / "notebooks")
    assert result.failed == []
    return result.folder, result.record["seconds"]


def assert_every_file_is_whole(folder: Path) -> None:
    for path in folder.rglob("*"):
        if path.is_dir() or path.name.startswith("."):
            continue
        text = path.read_text(encoding="utf-8")
        if path.suffix == ".json":
            json.loads(text)
        elif path.suffix == ".jsonl":
            assert all(json.loads(line)["verdict"] for line in text.splitlines())
            assert not text or text.endswith("\n")
        elif path.suffix == ".ipynb":
            nbformat.validate(nbformat.reads(text, as_version=4))
        elif path.suffix == ".html":
            assert text.rstrip().endswith("</html>")
        else:
            assert text == "x" * 20_000
    if (folder / "run.json").is_file():
        for entry in json.loads((folder / "run.json").read_text())["notebooks"]:
            assert entry["status"] != "ok" or all((folder / name).is_file() for name in entry["outputs"])


def wait_for_folder(parent: Path) -> Path:
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline:
        if found := list(parent.glob("*")):
            return found[0]
        time.sleep(0.02)
    raise AssertionError(f"no run began in {parent}")


@pytest.mark.parametrize("number", range(KILLS))
def test_a_killed_run_is_finished_as_if_it_had_not_been(number: int, root: Path, whole: tuple[Path, float]) -> None:
    folder, seconds = whole
    rng = random.Random(1000 + number)
    before = state(folder), state(root / "case"), state(root / "notebooks")
    process = start(root, str(root / "case" / "case.yaml"), "--out", str(root / f"killed-{number}"))
    run = wait_for_folder(root / f"killed-{number}")
    time.sleep(rng.uniform(0.0, 0.95) * seconds)
    process.send_signal(signal.SIGINT if number % 3 == 1 else signal.SIGKILL)
    finish(process)
    assert_every_file_is_whole(run)
    if (run / "run.json").is_file():
        result = resuming.resume(run, notebooks_dir=root / "notebooks")
        assert (result.failed, result.folder) == ([], run)
        assert_every_file_is_whole(run)
        assert not list(run.rglob(".*"))
        assert (run / "findings.jsonl").read_bytes() == (folder / "findings.jsonl").read_bytes()
        assert json.loads((run / "run.json").read_text())["status"] == "ok"
    else:
        with pytest.raises(RunError, match="holds no run.json"):
            resuming.resume(run, notebooks_dir=root / "notebooks")
    assert (state(folder), state(root / "case"), state(root / "notebooks")) == before


def test_two_runs_at_once_do_not_disturb_each_other(root: Path, whole: tuple[Path, float]) -> None:
    case = str(root / "case" / "case.yaml")
    both = [start(root, case, "--out", str(root / "both")) for _ in range(2)]
    ended = [finish(process) for process in both]
    assert [status for status, _, _ in ended] == [0, 0], ended
    folders = {Path(out).parent for _, out, _ in ended}
    assert len(folders) == 2
    for folder in folders:
        assert_every_file_is_whole(folder)
        assert (folder / "findings.jsonl").read_bytes() == (whole[0] / "findings.jsonl").read_bytes()


ON_A_SMALL_DISK = """
mount -t tmpfs -o size=1500k none "$1" || exit 77
"$2" -m f5lab run "$3" --out "$1/runs" >"$4/out1" 2>"$4/err1"; echo $? >"$4/status1"
run=$(ls -d "$1"/runs/*)
cp -r "$run" "$4/left"
mount -o remount,size=50m "$1"
"$2" -m f5lab run --resume "$run" >"$4/out2" 2>"$4/err2"; echo $? >"$4/status2"
cp -r "$run" "$4/finished"
"""


@pytest.mark.skipif(KILLS <= 3, reason="fills a real disk with F5LAB_KILLS=30; tests/test_paths.py has the errors")
@pytest.mark.skipif(shutil.which("unshare") is None, reason="no unshare: a small disk can not be made")
def test_a_full_disk_is_said_and_the_run_is_finished_when_there_is_room(
    root: Path, whole: tuple[Path, float], tmp_path: Path
) -> None:
    disk, results = tmp_path / "disk", tmp_path / "results"
    disk.mkdir()
    results.mkdir()
    before = state(whole[0])
    command = ["unshare", "-rm", "sh", "-c", ON_A_SMALL_DISK, "sh", str(disk), sys.executable]
    command += [str(root / "case" / "case.yaml"), str(results)]
    environment = {**os.environ, "TMPDIR": str(root / "tmp")}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=240, check=False)
    if done.returncode in (1, 77) and not (results / "status1").exists():
        pytest.skip(f"a small disk can not be made here: {done.stderr.strip()}")
    assert (results / "status1").read_text() == "1\n"
    (line,) = [text for text in (results / "err1").read_text().splitlines() if text.startswith("f5lab: ")]
    assert "No space left on device" in line
    assert "make room" in line
    assert_every_file_is_whole(results / "left")
    assert (results / "status2").read_text() == "0\n", (results / "err2").read_text()
    assert_every_file_is_whole(results / "finished")
    assert (results / "finished" / "findings.jsonl").read_bytes() == (whole[0] / "findings.jsonl").read_bytes()
    assert state(whole[0]) == before
