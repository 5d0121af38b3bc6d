"""What picklescan says of a file. It decides nothing: its lists have been got round again and again, ours is exact.

It runs in a process of its own under limits, and is not asked about files without a pickle.
"""

import json
import threading
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from f5lab.untrusted.file_kinds import tell_container
from f5lab.untrusted.processes import start_limited
from f5lab.untrusted.refusals import Refused
from f5lab.untrusted.sources import Source

WALL_S = 90.0


@dataclass(frozen=True)
class Opinion:
    """picklescan's count of dangerous and suspicious imports; None where it could not say."""

    asked: bool
    dangerous: int | None = None
    suspicious: int | None = None
    version: str = ""


class Question:
    """picklescan asked about a file while other work goes on.

    Parameters
    ----------
    path : Path
        A file that is told by its first bytes to be torch's; picklescan is not asked about any other.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._opinion = Opinion(asked=False)
        self._thread = threading.Thread(target=self._ask, daemon=True)
        self._thread.start()

    def _ask(self) -> None:
        try:
            with self._path.open("rb") as file:
                if tell_container(Source(file.fileno())).startswith("torch"):
                    self._opinion = scan_descriptor(file.fileno())
        except (OSError, Refused):
            return

    def answer(self) -> Opinion:
        """Return the opinion, waiting for it."""
        self._thread.join()
        return self._opinion


def scan_descriptor(descriptor: int) -> Opinion:
    """Return picklescan's opinion of a file on a descriptor, whatever it holds."""
    ended = start_limited("opinion_reader", descriptor, site=True, wall_s=WALL_S).end()
    if ended.stopped or ended.status:
        return Opinion(asked=True)
    try:
        return Opinion(asked=True, **json.loads(ended.answer))
    except (ValueError, TypeError):
        return Opinion(asked=True)


def sentence(opinions: Sequence[Opinion]) -> str:
    """Return opinions of one or several files in words."""
    asked = [opinion for opinion in opinions if opinion.asked]
    if not asked:
        return "not asked: no pickle in it"
    if any(opinion.dangerous is None for opinion in asked):
        return "could not say: it stopped with an error or beyond its limits"
    counts = (
        f"{sum(o.dangerous or 0 for o in asked)} dangerous, {sum(o.suspicious or 0 for o in asked)} suspicious imports"
    )
    return f"{counts} (picklescan {asked[0].version}); a second opinion, not the gate"
