"""Finished work as JSON lines: what is there is not done again, and a line that was cut short or altered is not believed."""

import hashlib
import json
import logging
import os
from pathlib import Path
from typing import Any

logger = logging.getLogger(__name__)


def digest(told: Any) -> str:
    """Return 32 hexadecimal digits for JSON-able facts, the same for equal facts whatever the order of their keys."""
    text = json.dumps(told, sort_keys=True, ensure_ascii=False, allow_nan=False, separators=(",", ":"))
    return hashlib.sha256(text.encode("utf-8", "backslashreplace")).hexdigest()[:32]


class Ledger:
    """Results by part and key, one a line, appended as they are finished.

    Parameters
    ----------
    path : Path
        The ``.jsonl`` file; made by the first result.

    Attributes
    ----------
    damaged : int
        Lines that were not as they had been written; what they held is done again.
    added : int
        Results that were put by this object.
    """

    def __init__(self, path: Path) -> None:
        self.path, self.damaged, self.added = path, 0, 0
        self._known: dict[tuple[str, str], Any] = {}
        lines = path.read_text(encoding="utf-8", errors="replace").split("\n") if path.is_file() else []
        for line in filter(str.strip, lines):
            try:
                row = json.loads(line)
                whole = row["digest"] == digest([row["part"], row["key"], row["value"]])
            except (ValueError, TypeError, KeyError):
                whole = False
            if whole:
                self._known[row["part"], row["key"]] = row["value"]
            else:
                self.damaged += 1
        if self.damaged:
            logger.warning("%s: %d lines are damaged; what they held is done again", path.name, self.damaged)

    def get(self, part: str, key: str) -> Any | None:
        """Return a finished result; None where there is none."""
        return self._known.get((part, key))

    def put(self, part: str, key: str, value: Any) -> Any:
        """Keep a finished result, on the disk before this returns, and return it.

        Raises
        ------
        ValueError
            A number in it is not finite.
        """
        row = {"part": part, "key": key, "digest": digest([part, key, value]), "value": value}
        self.path.parent.mkdir(parents=True, exist_ok=True)
        line = json.dumps(row, ensure_ascii=False, allow_nan=False).encode("utf-8", "backslashreplace")
        # a line that a killed run left without its end must not swallow this one
        with self.path.open("ab") as f:
            f.write(b"\n" * (not self._ends_a_line()) + line + b"\n")
            f.flush()
            os.fsync(f.fileno())
        self._known[part, key] = value
        self.added += 1
        return value

    def _ends_a_line(self) -> bool:
        if not self.path.is_file() or not self.path.stat().st_size:
            return True
        with self.path.open("rb") as f:
            f.seek(-1, os.SEEK_END)
            return f.read(1) == b"\n"
