"""Writing: a file is there whole or not at all, whatever fails on the way."""

import errno
import os
from pathlib import Path

import pytest

from f5lab import paths
from f5lab.errors import RunError


@pytest.mark.parametrize("stage", ["write", "fsync", "replace"])
@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EDQUOT])
def test_a_full_disk_leaves_what_was_there(
    stage: str, code: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    target = tmp_path / "run.json"
    paths.write_text(target, "old")

    def fail(*_: object, **__: object) -> None:
        raise OSError(code, os.strerror(code))

    owner, name = {"write": (Path, "write_text"), "fsync": (os, "fsync"), "replace": (os, "replace")}[stage]
    monkeypatch.setattr(owner, name, fail)
    with pytest.raises(RunError, match=r"cannot write .*run.json \(.*\); make room there, or choose another folder"):
        paths.write_text(target, "new")
    monkeypatch.undo()
    assert target.read_text() == "old"
    assert list(tmp_path.iterdir()) == [target]


def test_bytes_reach_the_disk_before_the_name_does(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    order = []
    fsync, replace = os.fsync, os.replace
    monkeypatch.setattr(os, "fsync", lambda f: (order.append("fsync"), fsync(f)))
    monkeypatch.setattr(os, "replace", lambda a, b: (order.append("replace"), replace(a, b)))
    paths.write_text(tmp_path / "a", "x")
    assert order == ["fsync", "replace", "fsync"]
    order.clear()
    with paths.atomic_path(tmp_path / "b", durable=False) as temporary:
        temporary.write_text("x")
    assert order == ["replace"]


def test_an_error_of_the_writer_is_passed_on_and_leaves_nothing(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="source"), paths.atomic_path(tmp_path / "a"):
        raise FileNotFoundError(errno.ENOENT, "no", "source")
    assert list(tmp_path.iterdir()) == []


def test_a_folder_that_can_not_be_is_one_line(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(RunError, match=r"cannot write .*file/a \(.*\); choose another folder"):
        paths.write_text(tmp_path / "file" / "a", "x")


def test_a_new_folder_on_a_full_disk_is_not_there(tmp_path: Path) -> None:
    def write() -> None:
        with paths.new_folder(tmp_path / "bundle", RunError) as folder:
            (folder / "half").write_text("x")
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with pytest.raises(RunError, match="make room there"):
        write()
    assert list(tmp_path.iterdir()) == []
