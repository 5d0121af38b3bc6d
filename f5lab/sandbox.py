"""Running the process that reads untrusted files, and judging how it ended. No torch.

The file is opened once; the process gets the descriptor as its standard input, so that what it examines is what is
mapped later. It starts with an empty environment, isolated and without site-packages (`file_reader`).
"""

import json
import os
import selectors
import signal
import subprocess
import sys
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from f5lab.manifests import Manifest, decode
from f5lab.refusals import Refused

WALL_S = 120.0
MOST_ANSWER_BYTES = 128 << 20
_KEPT_ENVIRONMENT = ("LD_LIBRARY_PATH", "DYLD_LIBRARY_PATH", "SYSTEMROOT")
_START = (
    "import sys, types; package = types.ModuleType('f5lab'); package.__path__ = [sys.argv[1]]; "
    "sys.modules['f5lab'] = package; from f5lab.{module} import main; main()"
)


@dataclass(frozen=True)
class Ended:
    """How a process ended: what it wrote, its exit status (negative: the signal), and whether it was stopped."""

    answer: bytes
    status: int
    stopped: str = ""


def run_limited(module: str, descriptor: int, *, site: bool = False, wall_s: float = WALL_S) -> Ended:
    """Run ``main`` of a module of f5lab on a file in a process of its own.

    Parameters
    ----------
    module : str
        It must limit itself before it reads; its package is a bare shell, so that nothing else of f5lab is imported.
    descriptor : int
        The file, as standard input.
    site : bool
        Let it import installed packages; never for what decides about a file.
    wall_s : float
        Seconds until it is killed.
    """
    flags = ["-I"] if site else ["-I", "-S"]
    command = [sys.executable, *flags, "-c", _START.format(module=module), str(Path(__file__).resolve().parent)]
    kept = {name: os.environ[name] for name in _KEPT_ENVIRONMENT if name in os.environ}
    with subprocess.Popen(
        command, stdin=descriptor, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, env=kept, close_fds=True
    ) as process:
        answer, stopped = _collect(process, time.monotonic() + wall_s)
        if stopped:
            process.kill()
        status = process.wait()
    return Ended(answer, status, stopped)


def _collect(process: "subprocess.Popen[bytes]", deadline: float) -> tuple[bytes, str]:
    """Read what a process writes until it closes its output, time is over, or it writes too much."""
    assert process.stdout is not None
    parts, total = [], 0
    with selectors.DefaultSelector() as selector:
        selector.register(process.stdout, selectors.EVENT_READ)
        while True:
            left = deadline - time.monotonic()
            if left <= 0 or not selector.select(left):
                return b"".join(parts), "it took longer than it may"
            part = os.read(process.stdout.fileno(), 1 << 20)
            if not part:
                return b"".join(parts), ""
            parts.append(part)
            total += len(part)
            if total > MOST_ANSWER_BYTES:
                return b"", "it described more than it may"


def read_manifest(descriptor: int) -> Manifest:
    """Return the manifest of the file on a descriptor, read in a limited process.

    Raises
    ------
    Refused
        The file breaks a rule; that process dying, being killed or taking too long is rule ``child-died``.
    """
    ended = run_limited("file_reader", descriptor)
    answer = _answer(ended)
    if "refused" in answer:
        raise Refused(*answer["refused"])
    return decode(answer["manifest"])


def _answer(ended: Ended) -> Mapping[str, Any]:
    if ended.stopped:
        raise Refused("child-died", f"the process that reads it was killed: {ended.stopped}")
    if ended.status:
        raise Refused("child-died", f"the process that reads it ended with {_status_text(ended.status)}")
    try:
        answer = json.loads(ended.answer)
    except ValueError:
        raise Refused("child-died", "the process that reads it gave no answer") from None
    return answer


def _status_text(status: int) -> str:
    if status >= 0:
        return f"exit status {status}"
    try:
        return signal.Signals(-status).name
    except ValueError:
        return f"signal {-status}"
