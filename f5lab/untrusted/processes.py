"""Starting the processes that read untrusted files, and collecting what they say within limits.

Such a process gets an open file as its standard input, an empty environment, isolated Python, and a bare shell of this package.
Nothing of f5lab is imported here, so that one can be started before anything else is.
"""

import os
import selectors
import subprocess
import sys
import time
from dataclasses import dataclass, field
from pathlib import Path

WALL_S = 120.0
MOST_ANSWER_BYTES = 128 << 20
_KEPT_ENVIRONMENT = ("LD_LIBRARY_PATH", "DYLD_LIBRARY_PATH", "SYSTEMROOT")
_START = (
    "import sys, types; package = types.ModuleType('f5lab'); package.__path__ = [sys.argv[1]]; "
    "sys.modules['f5lab'] = package; from f5lab.untrusted.{module} import main; main()"
)
_ahead: "dict[str, Running]" = {}


@dataclass(frozen=True)
class Ended:
    """How a process ended: what it wrote, its exit status (negative: the signal), and why it was stopped."""

    answer: bytes
    status: int
    stopped: str = ""


@dataclass(frozen=True)
class Running:
    """A process that reads a file.

    Attributes
    ----------
    process : Popen
    descriptor : int
        The file, still open here.
    deadline : float
        When it is killed, in seconds of the monotonic clock.
    """

    process: "subprocess.Popen[bytes]" = field(repr=False)
    descriptor: int
    deadline: float

    def end(self) -> Ended:
        """Wait for the process, or kill it when time is over or it writes too much."""
        with self.process as process:
            answer, stopped = self._collect()
            if stopped:
                process.kill()
            status = process.wait()
        return Ended(answer, status, stopped)

    def _collect(self) -> tuple[bytes, str]:
        assert self.process.stdout is not None
        parts, total = [], 0
        with selectors.DefaultSelector() as selector:
            selector.register(self.process.stdout, selectors.EVENT_READ)
            while True:
                left = self.deadline - time.monotonic()
                if left <= 0 or not selector.select(left):
                    return b"", "it took longer than it may"
                part = os.read(self.process.stdout.fileno(), 1 << 20)
                if not part:
                    return b"".join(parts), ""
                parts.append(part)
                total += len(part)
                if total > MOST_ANSWER_BYTES:
                    return b"", "it described more than it may"


def open_untrusted(path: str | Path) -> int:
    """Return a descriptor for reading; a pipe does not block."""
    return os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)


def start_limited(module: str, descriptor: int, *, site: bool = False, wall_s: float | None = None) -> Running:
    """Start ``main`` of a module of f5lab on a file in a process of its own.

    Parameters
    ----------
    module : str
        It must limit itself before it reads.
    descriptor : int
        The file, as standard input.
    site : bool
        Let it import installed packages; never for what decides about a file.
    wall_s : float, optional
        Seconds until it is killed; `WALL_S`.
    """
    flags = ["-I"] if site else ["-I", "-S"]
    command = [sys.executable, *flags, "-c", _START.format(module=module), str(Path(__file__).resolve().parent.parent)]
    kept = {name: os.environ[name] for name in _KEPT_ENVIRONMENT if name in os.environ}
    process = subprocess.Popen(
        command, stdin=descriptor, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, env=kept, close_fds=True
    )
    return Running(process, descriptor, time.monotonic() + (WALL_S if wall_s is None else wall_s))


def read_ahead(path: str) -> None:
    """Begin to examine a file that is about to be opened, while what opens it is still being imported."""
    if os.path.abspath(path) not in _ahead and os.path.isfile(path) and os.access(path, os.R_OK):
        _ahead[os.path.abspath(path)] = start_limited("file_reader", open_untrusted(path))


def taken_ahead(path: Path) -> Running | None:
    """Return the examination of a file that was begun ahead, once."""
    return _ahead.pop(os.path.abspath(path), None) if _ahead else None
