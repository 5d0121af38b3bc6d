"""Where the time of a notebook went and how much of a GPU's memory it took, so that a report can say so.

Synthesis, recogniser and probe tell what they spend; everything else is the rest. Times are wall-clock and do not overlap.
"""

import sys
import time
from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

MIME = "application/vnd.f5lab.usage+json"
"""The type under which a notebook's last cell hands this on to the run that executes it."""
SYNTHESIS, WHISPER, PROBE = "synthesis", "Whisper", "probe"
UNITS = {SYNTHESIS: "clips", WHISPER: "clips", PROBE: "forward passes"}

_BEGUN = time.monotonic()
_SECONDS: Counter[str] = Counter()
_COUNTS: Counter[str] = Counter()


@contextmanager
def spend(what: str, count: int = 1) -> Iterator[None]:
    """Count the time within as spent on `what`, for `count` clips or passes; a failed attempt counts as time alone."""
    start = time.monotonic()
    try:
        yield
        _COUNTS[what] += count
    finally:
        _SECONDS[what] += time.monotonic() - start


def forget() -> None:
    """Begin anew."""
    global _BEGUN
    _BEGUN = time.monotonic()
    _SECONDS.clear()
    _COUNTS.clear()


def spent() -> dict[str, Any]:
    """Return what this process spent.

    Returns
    -------
    dict
        ``seconds`` since f5lab was imported; ``parts``, by name: seconds and count; ``gpu``: name, peak bytes that torch's allocator
        held for this process, and total bytes, or None where no GPU was used.
    """
    parts = {
        name: {"seconds": round(_SECONDS[name], 2), "count": _COUNTS[name]} for name in UNITS if _SECONDS[name] > 0
    }
    return {"seconds": round(time.monotonic() - _BEGUN, 2), "parts": parts, "gpu": _gpu()}


def _gpu() -> dict[str, Any] | None:
    torch = sys.modules.get("torch")
    if torch is None or not torch.cuda.is_available() or not torch.cuda.is_initialized():
        return None
    peaks = {number: torch.cuda.max_memory_reserved(number) for number in range(torch.cuda.device_count())}
    number = max(peaks, key=lambda n: peaks[n])
    about = torch.cuda.get_device_properties(number)
    return {"name": about.name, "peak_bytes": peaks[number], "total_bytes": about.total_memory}


def sentence(used: Mapping[str, Any]) -> str:
    """Return what `spent` found in one line.

    Examples
    --------
    >>> sentence({"seconds": 40.0, "parts": {"Whisper": {"seconds": 10.0, "count": 8}}, "gpu": None})
    'Of 40 s: Whisper 10 s (25 %, 8 clips), the rest 30 s (75 %).'
    """
    whole = max(used["seconds"], 1e-9)
    rest = max(0.0, whole - sum(part["seconds"] for part in used["parts"].values()))
    told = [
        f"{name} {part['seconds']:.0f} s ({100 * part['seconds'] / whole:.0f} %, {part['count']} {UNITS[name]})"
        for name, part in used["parts"].items()
    ]
    told.append(f"the rest {rest:.0f} s ({100 * rest / whole:.0f} %)")
    line = f"Of {whole:.0f} s: {', '.join(told)}." if used["parts"] else f"{whole:.0f} s, no synthesis, Whisper or probe among them."
    if gpu := used["gpu"]:
        line += f" At most {gpu['peak_bytes'] / 2**30:.1f} of {gpu['total_bytes'] / 2**30:.0f} GiB of {gpu['name']}."
    return line


def joined(many: list[Mapping[str, Any]]) -> dict[str, Any] | None:
    """Return the sum of several processes' spending, the GPU's peak being the highest; None when there are none."""
    if not many:
        return None
    parts: dict[str, dict[str, Any]] = {}
    for used in many:
        for name, part in used["parts"].items():
            own = parts.setdefault(name, {"seconds": 0.0, "count": 0})
            own["seconds"], own["count"] = own["seconds"] + part["seconds"], own["count"] + part["count"]
    gpus = [used["gpu"] for used in many if used["gpu"]]
    peak = max(gpus, key=lambda gpu: gpu["peak_bytes"], default=None)
    return {"seconds": sum(used["seconds"] for used in many), "parts": parts, "gpu": peak}
