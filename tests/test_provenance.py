"""What results rest on: digests that follow the bytes, facts that are there or said to be missing."""

import hashlib
import os
import subprocess
from pathlib import Path

import pytest

from f5lab import provenance


def test_folder_digest_is_that_of_sha256sum_over_its_files(tmp_path: Path) -> None:
    (tmp_path / "b").mkdir()
    for name in ("z.txt", "b/a.txt"):
        (tmp_path / name).write_bytes(name.encode())
    listing = "".join(f"{hashlib.sha256(n.encode()).hexdigest()}  {n}\n" for n in ("b/a.txt", "z.txt"))
    mark = provenance.fingerprint(tmp_path)
    assert mark == provenance.Fingerprint(hashlib.sha256(listing.encode()).hexdigest(), 12, 2)


def test_remembered_digests_follow_the_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("F5LAB_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(provenance, "REMEMBER_BYTES", 1)
    file = tmp_path / "model.pt"
    file.write_bytes(b"one")
    first = provenance.fingerprint(file)
    assert provenance.fingerprint(file) == first
    assert len(list((tmp_path / "cache").rglob("*.entry"))) == 1
    before = file.stat()
    file.write_bytes(b"two")
    os.utime(file, ns=(before.st_atime_ns, before.st_mtime_ns))
    assert provenance.fingerprint(file).sha256 == hashlib.sha256(b"two").hexdigest()


def test_versions_name_python_and_the_models_packages() -> None:
    known = provenance.versions()
    assert set(known) == {"python", *provenance.PACKAGES}
    assert known["torch"]
    assert known["f5-tts"]


def test_hardware_without_a_gpu_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(provenance.shutil, "which", lambda name: None)
    monkeypatch.setattr(provenance.platform, "system", lambda: "Linux")
    facts = provenance.hardware()
    assert facts["gpus"] == []
    assert facts["cpu"]
    assert facts["cores"] >= 1


def test_commit_is_none_outside_of_git_and_marks_changes(tmp_path: Path) -> None:
    assert provenance.commit(tmp_path) == (None, None)
    git = ["git", "-C", str(tmp_path), "-c", "user.name=a", "-c", "user.email=a@b"]
    subprocess.run([*git, "init", "-q"], check=True)
    assert provenance.commit(tmp_path) == (None, None)
    (tmp_path / "a").write_text("1")
    subprocess.run([*git, "add", "a"], check=True)
    subprocess.run([*git, "commit", "-q", "-m", "a"], check=True)
    revision, modified = provenance.commit(tmp_path)
    assert len(revision) == 40
    assert modified is False
    (tmp_path / "a").write_text("2")
    assert provenance.commit(tmp_path) == (revision, True)


@pytest.mark.parametrize(
    ("size", "text"), [(0, "0 B"), (999, "999 B"), (1000, "1 kB"), (43_900_000, "43.9 MB"), (5_400_000_000, "5.4 GB")]
)
def test_sizes_read_well(size: int, text: str) -> None:
    assert provenance.size_text(size) == text


@pytest.mark.parametrize(
    ("seconds", "text"), [(0.04, "0.0 s"), (59.94, "59.9 s"), (60, "1 min 00 s"), (3720, "1 h 02 min")]
)
def test_durations_read_well(seconds: float, text: str) -> None:
    assert provenance.duration_text(seconds) == text


def test_what_is_compiled_is_not_code() -> None:
    """Numba writes its machine code into ``__pycache__`` during the first run: that changes nothing a finding rests on."""
    before, folder = provenance.code_digest(), Path(provenance.__file__).parent / "__pycache__"
    folder.mkdir(exist_ok=True)
    made = folder / "toy._f-1.py311.nbi"
    made.write_bytes(b"machine code")
    try:
        assert provenance.code_digest() == before
    finally:
        made.unlink()
