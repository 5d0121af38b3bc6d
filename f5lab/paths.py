"""Where things are, and writing files so that a half-written one is never seen."""

import errno
import hashlib
import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from f5lab.errors import LabError, RunError

PACKAGE = Path(__file__).resolve().parent
TEMPLATES = PACKAGE / "templates"
CHUNK_BYTES = 1 << 20
_NO_ROOM = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS}


def project_root() -> Path:
    """Return the folder that holds ``notebooks/`` and ``data/``.

    Raises
    ------
    RunError
        The package was installed without its notebooks and data.
    """
    root = Path(os.environ.get("F5LAB_ROOT") or PACKAGE.parent)
    if not (root / "notebooks").is_dir():
        raise RunError(
            f"no notebooks/ beside the package (looked in {root})",
            next_step="install from a clone with `pip install -e .`, or set F5LAB_ROOT to the clone",
        )
    return root


def notebooks_dir() -> Path:
    """Return the folder of the numbered notebooks."""
    return project_root() / "notebooks"


def data_dir() -> Path:
    """Return ``data/``: specimen, speech and cases. Read-only by convention."""
    return project_root() / "data"


def reports_dir() -> Path:
    """Return ``reports/``, where runs are written unless told otherwise."""
    return project_root() / "reports"


def default_case() -> Path:
    """Return the bundled Brazilian-Portuguese case."""
    return data_dir() / "cases" / "ptbr" / "case.yaml"


def cache_dir(*parts: str) -> Path:
    """Return (and create) a folder under the user's cache: ``$F5LAB_CACHE`` or ``~/.cache/f5lab``."""
    root = Path(os.environ.get("F5LAB_CACHE") or Path.home() / ".cache" / "f5lab")
    folder = root.joinpath(*parts)
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise RunError(f"no cache can be kept in {root} ({error.strerror})", next_step="set F5LAB_CACHE to a folder that can be written") from error
    return folder


def sha256_file(path: Path) -> str:
    """Return the SHA-256 of a file's bytes, read in chunks of 1 MiB."""
    digest = hashlib.sha256()
    with path.open("rb") as f:
        while chunk := f.read(CHUNK_BYTES):
            digest.update(chunk)
    return digest.hexdigest()


@contextmanager
def atomic_path(target: Path, *, durable: bool = True) -> Iterator[Path]:
    """Yield a temporary path beside `target`; it replaces `target` only when the block ends without an error.

    Parameters
    ----------
    durable : bool
        Wait until the bytes are on the disk before the name points at them, so that a power cut leaves no empty file.

    Raises
    ------
    RunError
        The disk is full or read-only, or the folder can not be written; `target` is as it was.
    """
    temporary = None
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        handle, name = tempfile.mkstemp(prefix=f".{target.stem[:100]}-", suffix=target.suffix, dir=target.parent)
        os.close(handle)
        temporary = Path(name)
        yield temporary
        temporary.chmod(0o644)
        if durable:
            _flush(temporary)
        os.replace(temporary, target)
        if durable:
            _flush_folder(target.parent)
    except OSError as error:
        if error.errno in _NO_ROOM or temporary is None:
            raise _unwritable(target, error) from error
        raise
    finally:
        if temporary is not None:
            temporary.unlink(missing_ok=True)


def _unwritable(target: Path, error: OSError) -> RunError:
    step = "make room there, or choose another folder" if error.errno in _NO_ROOM else "choose another folder"
    return RunError(f"cannot write {target} ({error.strerror})", next_step=step)


def _flush(path: Path) -> None:
    with path.open("rb+") as f:
        os.fsync(f.fileno())


def _flush_folder(folder: Path) -> None:
    """Ask for a folder's names to reach the disk, where the system can be asked."""
    if os.name != "posix":
        return
    handle = os.open(folder, os.O_RDONLY)
    try:
        with suppress(OSError):  # some network file systems have no such call
            os.fsync(handle)
    finally:
        os.close(handle)


def write_text(target: Path, text: str) -> None:
    """Write `text` as UTF-8, whole or not at all."""
    with atomic_path(target) as temporary:
        temporary.write_text(text, encoding="utf-8", newline="\n")


def copy_file(source: Path, target: Path) -> None:
    """Copy a file's bytes, whole or not at all."""
    with atomic_path(target) as temporary:
        shutil.copyfile(source, temporary)


def existing_file(path: Path, error: type[LabError], what: str, next_step: str | None = None) -> Path:
    """Return `path` if it is a readable file.

    Raises
    ------
    error
        `path` does not exist, is a folder, or cannot be read.
    """
    if path.is_dir():
        raise error(f"{what} {path} is a folder", expected="a file", next_step=next_step)
    if not path.is_file():
        raise error(f"{what} {path} does not exist", next_step=next_step)
    if not os.access(path, os.R_OK):
        raise error(f"{what} {path} cannot be read", next_step="check its permissions")
    return path


def free_folder(out: Path, error: type[LabError]) -> Path:
    """Return `out` as an absolute path if nothing would be written over.

    Raises
    ------
    error
        `out` exists and is not an empty folder.
    """
    out = Path(out).expanduser().absolute()
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise error(f"{out} exists and is not an empty folder", next_step="give a folder that is not there yet")
    return out


@contextmanager
def new_folder(out: Path, error: type[LabError]) -> Iterator[Path]:
    """Yield a temporary folder beside `out`; it becomes `out` only when the block ends without an error.

    Raises
    ------
    error
        `out` exists and is not an empty folder.
    """
    out = free_folder(out, error)
    out.parent.mkdir(parents=True, exist_ok=True)
    temporary = Path(tempfile.mkdtemp(prefix=f".{out.name}-", dir=out.parent))
    try:
        yield temporary
        temporary.chmod(0o755)
        for file in temporary.rglob("*"):
            if file.is_file() and not file.is_symlink():
                _flush(file)
        os.replace(temporary, out)
        _flush_folder(out.parent)
    except OSError as problem:
        if problem.errno in _NO_ROOM:
            raise _unwritable(out, problem) from problem
        raise
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
