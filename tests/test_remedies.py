"""Failures of the machine: named with what to do, and never taken for a finding about a checkpoint."""

import signal
import subprocess
import sys
from pathlib import Path

import pytest
from toy_workbook import notebook, write_case, write_workbook

from f5lab import remedies, workbook
from f5lab.errors import AsrError, ModelError

MESSAGES = {
    "OutOfMemoryError: CUDA out of memory. Tried to allocate 20.00 GiB. GPU 0 has a total": "the accelerator ran out of memory; ",
    "AcceleratorError: CUDA error: unspecified launch failure": "the accelerator failed; look at nvidia-smi",
    "RuntimeError: CUDA error: device-side assert triggered": "the accelerator failed; ",
    "RuntimeError: No CUDA GPUs are available": "the accelerator failed; ",
    "RuntimeError: [enforce fail at alloc_cpu.cpp:127] data. DefaultCPUAllocator: can't allocate memory: you tried": "memory ran out; ",
    "MemoryError": "memory ran out; ",
    "ArrayMemoryError: Unable to allocate 8.00 EiB for an array with shape (1,)": "memory ran out; ",
    "OSError: [Errno 28] No space left on device: 'x'": "the disk is full; make room, then go on with f5lab run --resume",
    "RuntimeError: [enforce fail at inline_container.cc:672] . PytorchStreamWriter failed writing file data/0": "the disk is full",
    "RuntimeError: Could not load libtorchcodec. Likely causes: 1. FFmpeg is not properly installed": "FFmpeg or its",
    "FileNotFoundError: [Errno 2] No such file or directory: 'ffprobe'": "FFmpeg or its shared libraries are missing; install",
    "OSError: libavutil.so.58: cannot open shared object file: No such file": "FFmpeg or its shared libraries are missing",
    "LocalEntryNotFoundError: An error happened while trying to locate the file on the Hub": "a file that upstream downloads",
}


@pytest.mark.parametrize("message", sorted(MESSAGES))
def test_each_failure_says_what_to_do(message: str) -> None:
    said = remedies.explain(message)
    assert said.startswith(MESSAGES[message])
    assert message[:40] in said
    assert "\n" not in said


@pytest.mark.parametrize(
    "message",
    ["ValueError: no such voice", "RuntimeError: Error(s) in loading state_dict for CFM: size mismatch", "", "KeyError: 'cuda'",
     "RuntimeError: mat1 and mat2 shapes cannot be multiplied", "CheckpointError: x.pt holds no weights"],
)  # fmt: skip
def test_other_errors_stay_as_they_are(message: str) -> None:
    assert remedies.explain(message) == message


def test_a_dead_kernel_says_why() -> None:
    assert "because memory ran out" in remedies.explain_death(-9, 3, 4)
    assert "as the system does when memory runs out" in remedies.explain_death(-9, 3, 3)
    assert "as the system does when memory runs out" in remedies.explain_death(-9, None, None)
    assert remedies.explain_death(-signal.SIGSEGV, 3, 4) == "the kernel died of SIGSEGV"
    assert remedies.explain_death(3, None, None) == "the kernel died (exit status 3)"
    assert remedies.explain_death(None, None, None) == "the kernel died"


RAISES = "kind = type({0!r}, (RuntimeError,), {{}})\nraise kind({1!r})"
TOYS = {
    "00_fine": "1",
    "01_killed": "import os, signal\nos.kill(os.getpid(), signal.SIGKILL)",
    "02_memory": "bytearray(1 << 60)",
    "03_lost": RAISES.format("AcceleratorError", "CUDA error: unspecified launch failure\nCUDA kernel errors might be"),
    "04_fine": "2",
}


def test_the_affected_notebook_is_marked_and_the_rest_stands(tmp_path: Path) -> None:
    folder = write_workbook(tmp_path, {name: notebook(name[:2], source) for name, source in TOYS.items()})
    result = workbook.run(write_case(tmp_path), out=tmp_path / "runs", notebooks_dir=folder)
    errors = {entry["name"]: entry["error"] for entry in result.record["notebooks"]}
    assert (errors["00_fine"], errors["04_fine"]) == ("", "")
    assert errors["01_killed"].startswith("the kernel died: it was killed (SIGKILL), as the system does when memory")
    assert errors["02_memory"].startswith("memory ran out; use --quick")
    assert errors["03_lost"].startswith(
        "the accelerator failed; look at nvidia-smi, then go on with f5lab run --resume"
    )
    page = (result.folder / "index.html").read_text(encoding="utf-8")
    assert all(error.split(";")[0] in page for error in errors.values() if error)
    assert result.failed == ["01_killed", "02_memory", "03_lost"]


class OutOfMemoryError(RuntimeError):
    """As torch names its own."""


LOST = OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB")


def test_machine_failures_pass_through_what_turns_errors_into_answers(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    from f5lab import asr, diagnosis, models

    def fail(*_: object, **__: object) -> None:
        raise LOST

    with pytest.raises(OutOfMemoryError):
        diagnosis.examine(None, [fail])
    (tmp_path / "model.pt").write_bytes(b"")
    monkeypatch.setattr(models, "upstream", lambda: type("Up", (), {"load_checkpoint": fail, "load_vocoder": fail}))
    with pytest.raises(OutOfMemoryError):
        models.load_weights(None, tmp_path / "model.pt", "ema")
    import whisper

    monkeypatch.setattr(whisper, "load_model", fail)
    asr._loaded.cache_clear()
    with pytest.raises(OutOfMemoryError):
        asr._loaded("tiny", "cpu")


def test_other_failures_are_still_answers(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    from f5lab import models

    def fail(*_: object, **__: object) -> None:
        raise RuntimeError("Error(s) in loading state_dict for CFM:\n\tsize mismatch for x.")

    (tmp_path / "model.pt").write_bytes(b"")
    monkeypatch.setattr(models, "upstream", lambda: type("Up", (), {"load_checkpoint": fail}))
    with pytest.raises(ModelError, match="does not fit the model: size mismatch for x"):
        models.load_weights(None, tmp_path / "model.pt", "ema")


def test_missing_recogniser_says_what_to_do(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    from f5lab.whisper_weights import find_weights

    with pytest.raises(AsrError, match=r"none.pt does not exist; give a size such as base"):
        find_weights(str(tmp_path / "none.pt"))
    monkeypatch.setenv("F5LAB_WHISPER", str(tmp_path / "gone.pt"))
    with pytest.raises(AsrError, match=r"\(\$F5LAB_WHISPER\) .*gone.pt does not exist; give a size"):
        find_weights()


def test_the_command_line_says_it_too(tmp_path: Path) -> None:
    (tmp_path / "vocabs.py").write_text("raise MemoryError")
    code = f"import sys, f5lab; f5lab.__path__.insert(0, {str(tmp_path)!r}); from f5lab.cli import main; main()"
    done = subprocess.run([sys.executable, "-c", code, "vocab", "x"], capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert done.stderr.startswith("f5lab: memory ran out; use --quick")
    assert done.stderr.count("\n") == 1
