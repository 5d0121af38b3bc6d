"""Stand-ins for what a sweep performs: quick, importable by worker processes, and some that die."""

import hashlib
import os
import signal
import time
from pathlib import Path
from typing import Any

from f5lab.errors import RunError

LOST = "lost"
"""File among the marks that says that a worker has been lost."""


def measure(told: dict[str, Any]) -> dict[str, Any]:
    """Return figures that depend on the task alone."""
    number = int(hashlib.sha256(told["key"].encode()).hexdigest()[:8], 16) / 2**32
    return {
        "cer": number,
        "heard": told["key"][:4],
        "loss": 1 - number,
        "forwards": 64,
        "cost_frames": 100,
        "seconds": time.time(),
    }


def measure_after_the_loss(told: dict[str, Any]) -> dict[str, Any]:
    """Leave a mark that the task was begun here, and go on once a worker has been lost; a minute is waited for that."""
    folder = Path(os.environ["TOY_MARKS"])
    (folder / f"{told['key']}-{os.getpid()}").touch()
    until = time.monotonic() + 60
    while not (folder / LOST).exists() and time.monotonic() < until:
        time.sleep(0.05)
    return measure(told)


def die_once(told: dict[str, Any]) -> dict[str, Any]:
    """Kill the worker on the first try of the first task that comes; later tries succeed."""
    try:
        os.close(os.open(Path(os.environ["TOY_MARKS"]) / "died", os.O_CREAT | os.O_EXCL))
    except FileExistsError:
        return measure(told)
    os.kill(os.getpid(), signal.SIGKILL)
    raise AssertionError


def die_always(told: dict[str, Any]) -> dict[str, Any]:
    """Kill the worker whenever the task is number 2."""
    if told.get("number") == 2:
        os.kill(os.getpid(), signal.SIGKILL)
    return measure(told)


def fail(told: dict[str, Any]) -> dict[str, Any]:
    """Measure all but seed 1."""
    return {"problem": "no voice"} if told["seed"] == 1 else measure(told)


def refuse(told: dict[str, Any]) -> dict[str, Any]:
    """Refuse every task, as a worker with other files does."""
    raise RunError("a worker finds other files", expected="the same files")
