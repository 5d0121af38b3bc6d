"""What picklescan says of a file. It decides nothing: its lists have been got round again and again, ours is exact.

It runs in a process of its own under limits, and is not asked about files without a pickle.
"""

import json
from collections.abc import Sequence
from dataclasses import dataclass

from f5lab.sandbox import run_limited
from f5lab.weights_files import Part

WALL_S = 90.0


@dataclass(frozen=True)
class Opinion:
    """picklescan's count of dangerous and suspicious imports; None where it could not say."""

    asked: bool
    dangerous: int | None = None
    suspicious: int | None = None
    version: str = ""


def scan(part: Part) -> Opinion:
    """Return picklescan's opinion of an examined file."""
    if part.manifest.container == "safetensors":
        return Opinion(asked=False)
    return scan_descriptor(part.descriptor)


def scan_descriptor(descriptor: int) -> Opinion:
    """Return picklescan's opinion of a file on a descriptor, whatever it holds."""
    ended = run_limited("opinion_reader", descriptor, site=True, wall_s=WALL_S)
    if ended.stopped or ended.status:
        return Opinion(asked=True)
    try:
        return Opinion(asked=True, **json.loads(ended.answer))
    except (ValueError, TypeError):
        return Opinion(asked=True)


def sentence(opinions: Sequence[Opinion]) -> str:
    """Return opinions in words."""
    asked = [opinion for opinion in opinions if opinion.asked]
    if not asked:
        return "not asked: no pickle in it"
    if any(opinion.dangerous is None for opinion in asked):
        return "could not say: it stopped with an error or beyond its limits"
    dangerous, suspicious = sum(o.dangerous or 0 for o in asked), sum(o.suspicious or 0 for o in asked)
    return f"{dangerous} dangerous, {suspicious} suspicious imports (picklescan {asked[0].version}); a second opinion, not the gate"
