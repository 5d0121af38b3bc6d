"""Which files, versions, machine and commit a result rests on. No torch: versions come from package metadata."""

import hashlib
import os
import platform
import shutil
import subprocess
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from f5lab import caches, paths

PACKAGES = (
    "f5lab", "f5-tts", "torch", "torchaudio", "torchcodec", "vocos", "ema-pytorch", "openai-whisper", "resemblyzer",
    "librosa", "numpy", "scipy", "jiwer", "matplotlib", "papermill", "nbconvert", "ipykernel",
)  # fmt: skip
"""Distributions whose version can change a figure."""

REMEMBER_BYTES = 64 << 20
COMMAND_TIMEOUT_S = 10


@dataclass(frozen=True)
class Fingerprint:
    """Identity of a file, or of a folder's files.

    Attributes
    ----------
    sha256 : str
        Of the bytes; of a folder: of the lines ``<sha256>  <relative path>`` of its files in order of path, as
        ``sha256sum`` prints them.
    size : int
        Bytes, of all files together.
    files : int
        1 for a file.
    """

    sha256: str
    size: int
    files: int = 1


def fingerprint(path: Path) -> Fingerprint:
    """Return digest and size of a file or folder.

    Digests of files above 64 MiB are remembered in the user's cache under path, size, inode and change time, so that
    a workbook does not read a 5 GB checkpoint once a notebook.
    """
    path = Path(path).resolve()
    if not path.is_dir():
        return Fingerprint(_digest(path), path.stat().st_size)
    files = sorted((file.relative_to(path).as_posix(), file) for file in path.rglob("*") if file.is_file())
    listing = "".join(f"{_digest(file)}  {name}\n" for name, file in files)
    size = sum(file.stat().st_size for _, file in files)
    return Fingerprint(hashlib.sha256(listing.encode()).hexdigest(), size, len(files))


def sha256(path: Path, *, compute: bool = True) -> str | None:
    """Return a file's digest; with `compute` off, None where that would mean to read more than 64 MiB."""
    path = Path(path).resolve()
    if compute or path.stat().st_size < REMEMBER_BYTES:
        return _digest(path)
    remembered = caches.read("sha256", identity(path))
    return remembered.decode("ascii") if remembered is not None else None


def identity(path: Path) -> str:
    """Return what changes whenever a file's content does, short of reading it."""
    facts = path.stat()
    return f"{path}|{facts.st_size}|{facts.st_ino}|{facts.st_mtime_ns}|{facts.st_ctime_ns}"


def _digest(path: Path) -> str:
    if path.stat().st_size < REMEMBER_BYTES:
        return paths.sha256_file(path)
    key = identity(path)
    if (remembered := caches.read("sha256", key)) is not None:
        return remembered.decode("ascii")
    digest = paths.sha256_file(path)
    caches.write("sha256", key, digest.encode("ascii"))
    return digest


def versions() -> dict[str, str | None]:
    """Return Python's version and that of each package that can change a figure; ``None`` where it is missing."""
    from importlib.metadata import PackageNotFoundError, version

    found: dict[str, str | None] = {"python": platform.python_version()}
    for name in PACKAGES:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            found[name] = None
    return found


def code_digest() -> str:
    """Return the SHA-256 of f5lab's own source: modules and templates, by name and content; what is compiled from them is left out."""
    package = paths.PACKAGE
    files = sorted(path for path in package.rglob("*") if path.is_file() and "__pycache__" not in path.parts)
    lines = (f"{paths.sha256_file(path)}  {path.relative_to(package).as_posix()}\n" for path in files)
    return hashlib.sha256("".join(lines).encode()).hexdigest()


def hardware() -> dict[str, Any]:
    """Return CPU model, cores, memory in bytes, GPU names (empty: none found) and operating system."""
    usable = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    return {
        "cpu": _cpu_model(),
        "cores": usable,
        "memory_bytes": _memory_bytes(),
        "gpus": _gpus(),
        "system": platform.platform(terse=True),
        "machine": platform.machine(),
    }


def _cpu_model() -> str:
    listing = Path("/proc/cpuinfo")
    if listing.is_file():
        for line in listing.read_text(encoding="utf-8", errors="replace").splitlines():
            name, _, value = line.partition(":")
            if name.strip() == "model name":
                return value.strip()
    return _output("sysctl", "-n", "machdep.cpu.brand_string") or platform.processor() or platform.machine()


def _memory_bytes() -> int | None:
    names = getattr(os, "sysconf_names", {})
    if "SC_PHYS_PAGES" not in names or "SC_PAGE_SIZE" not in names:
        return None
    return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")


def _gpus() -> list[str]:
    listing = _output("nvidia-smi", "--query-gpu=name,memory.total,driver_version", "--format=csv,noheader")
    if listing:
        return [", ".join(part.strip() for part in line.split(",")) for line in listing.splitlines()]
    return ["Apple GPU (MPS)"] if platform.system() == "Darwin" and platform.machine() == "arm64" else []


def commit(root: Path) -> tuple[str | None, bool | None]:
    """Return the commit of the clone at `root`, and whether files differ from it; ``None`` outside of git."""
    if not (root / ".git").exists():
        return None, None
    revision = _output("git", "-C", str(root), "rev-parse", "--verify", "--quiet", "HEAD")
    if not revision:
        return None, None
    return revision, bool(_output("git", "-C", str(root), "status", "--porcelain", "--untracked-files=no"))


def _output(*command: str) -> str:
    """Return what a command prints; empty when it is missing, fails or does not answer within 10 s."""
    program = shutil.which(command[0])
    if program is None:
        return ""
    try:
        done = subprocess.run(
            [program, *command[1:]], capture_output=True, text=True, timeout=COMMAND_TIMEOUT_S, check=False
        )
    except (OSError, subprocess.TimeoutExpired):
        return ""
    return done.stdout.strip() if done.returncode == 0 else ""


def size_text(size: float) -> str:
    """Return bytes in the largest unit that keeps a number above 1, with three digits.

    Examples
    --------
    >>> size_text(980), size_text(12_900_000)
    ('980 B', '12.9 MB')
    """
    unit = max(0, min(3, (len(str(round(size))) - 1) // 3))
    return f"{size:.0f} B" if unit == 0 else f"{size / 1000**unit:.3g} {('kB', 'MB', 'GB')[unit - 1]}"


def duration_text(seconds: float) -> str:
    """Return seconds as a reader says them.

    Examples
    --------
    >>> duration_text(7.25), duration_text(252)
    ('7.2 s', '4 min 12 s')
    """
    if seconds < 60:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    if minutes < 60:
        return f"{minutes} min {rest:02d} s"
    return f"{minutes // 60} h {minutes % 60:02d} min"
