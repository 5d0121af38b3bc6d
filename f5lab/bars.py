"""What somebody who waits is shown: bars in a live notebook, stages on the command line; a headless run shows its own progress instead."""

import os
import sys
from collections.abc import Callable, Iterable, Sequence
from typing import TypeVar

T = TypeVar("T")


def follow(items: Sequence[T], label: str, unit: str) -> Iterable[T]:
    """Return `items`, with a bar that follows them in a live notebook and goes when they are done.

    Nothing is shown on the command line, in scripts, or where ``TQDM_DISABLE`` is set, as in headless runs.
    """
    if len(items) < 2 or not _is_live():
        return items
    from tqdm.notebook import tqdm

    return tqdm(items, desc=label, unit=unit, leave=False)


class Stages:
    """Who is told what begins in long work; by default nobody."""

    told: Callable[[str], None] | None = None


def stage(label: str) -> None:
    """Say what begins now."""
    if Stages.told is not None:
        Stages.told(label)


def _is_live() -> bool:
    shell = sys.modules.get("IPython")
    running = shell.get_ipython() if shell is not None else None
    return type(running).__name__ == "ZMQInteractiveShell" and not os.environ.get("TQDM_DISABLE")
