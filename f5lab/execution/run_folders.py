"""The folder of a run: who writes to it, which of its files belong to which notebook, and what its record says."""

import json
import os
import re
import time
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from f5lab import verdicts
from f5lab.errors import RunError
from f5lab.paths import sha256_file

RECORD = "run.json"
_PLACES = ("", "findings", "audio")
_TEMPORARY = re.compile(r"\..+-[a-z0-9_]{8}(\.\w+)?")
_ASK_AGAIN_S = 0.2


@contextmanager
def hold(folder: Path, wait_s: float = 0.0) -> Iterator[tuple[int, ...]]:
    """Keep other processes from writing to a run's folder; yield the open files to hand on to its kernels.

    The lock is the system's: it ends with the last process that has the file open, however that process ends. Where
    the file system has no locks, nothing is held.

    Parameters
    ----------
    wait_s : float
        Seconds to wait for another holder, such as the kernel of a run that was just killed.

    Raises
    ------
    RunError
        Another process still holds the folder.
    """
    if os.name != "posix":
        yield ()
        return
    import fcntl

    handle = os.open(folder, os.O_RDONLY)
    try:
        deadline = time.monotonic() + wait_s
        while True:
            try:
                fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError as error:
                if time.monotonic() >= deadline:
                    raise RunError(f"{folder} is being written by another process", next_step="wait for it") from error
                time.sleep(_ASK_AGAIN_S)
            except OSError:  # this file system has no locks
                break
        yield (handle,)
    finally:
        os.close(handle)


def load_record(folder: Path) -> dict[str, Any]:
    """Return what ``run.json`` of a run holds.

    Raises
    ------
    RunError
        There is none, or it is no record of a run.
    """
    path = folder / RECORD
    if not path.is_file():
        raise RunError(f"{folder} holds no {RECORD}", expected="the folder of a run", next_step="start a new run")
    try:
        record = json.loads(path.read_text(encoding="utf-8"))
        whole = all(key in record for key in ("format", "run", "case", "notebooks", "versions", "files"))
    except (ValueError, TypeError) as error:
        raise RunError(f"{path} can not be read as JSON", next_step="start a new run") from error
    if not whole:
        raise RunError(f"{path} is no record of a run", next_step="start a new run")
    return record


def products(folder: Path, number: str) -> list[Path]:
    """Return what a notebook left in its run's folder: page, executed notebook, findings and audio, by their names."""
    mark = re.compile(rf"{re.escape(number)}[_.-]")
    found = (path for place in _PLACES if (folder / place).is_dir() for path in sorted((folder / place).iterdir()))
    return [path for path in found if path.is_file() and mark.match(path.name)]


def digests(folder: Path, files: Iterable[Path]) -> dict[str, str]:
    """Return files of a run by their path in it, with the SHA-256 of each."""
    return {path.relative_to(folder).as_posix(): sha256_file(path) for path in files}


def clear(folder: Path, number: str, kept: Iterable[Mapping[str, Any]]) -> None:
    """Remove what an earlier, broken execution of a notebook left, so that nothing of it passes for the next one's.

    Parameters
    ----------
    kept : iterable of mapping
        Entries of ``run.json`` that stay; their files are left alone.
    """
    owned = {name for entry in kept for name in entry.get("outputs", {})}
    stale = [path for path in products(folder, number) if path.relative_to(folder).as_posix() not in owned]
    if verdicts.FILE not in owned:
        stale.append(folder / verdicts.FILE)
    for place in _PLACES:
        if (folder / place).is_dir():
            stale += [path for path in (folder / place).iterdir() if _TEMPORARY.fullmatch(path.name)]
    for path in stale:
        path.unlink(missing_ok=True)


def is_intact(folder: Path, outputs: Mapping[str, str]) -> bool:
    """Return whether every file of a notebook is there as it was written; False where none was recorded."""
    files = {folder / name: digest for name, digest in outputs.items()}
    return bool(files) and all(path.is_file() and sha256_file(path) == digest for path, digest in files.items())
