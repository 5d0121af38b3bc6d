"""Two trainer's checkpoints, each with raw weights and their EMA: set against set. Neither is the other's base."""

from typing import Any

from f5lab.checkpoints import Checkpoint
from f5lab.weights import diffs


def report(a: Checkpoint, b: Checkpoint) -> dict[str, Any]:
    """Return how far the raw weights of two checkpoints are apart, and their EMAs; JSON-able, as ``ema.report``.

    Raises
    ------
    CheckpointError
        No tensor is in both.
    """
    found = {slot: diffs.compare(a.weights(slot), b.weights(slot)) for slot in a.slots}
    sides = [f"{'EMA' if slot == 'ema' else slot} against {'EMA' if slot == 'ema' else slot}" for slot in found]
    return {
        "a": str(a.path),
        "b": str(b.path),
        "compared": f"A with B: {', '.join(sides)}",
        "identical": all(comparison.identical for comparison in found.values()),
        "base_share": None,
        "notices": [],
        "only_in_a": sorted({name for comparison in found.values() for name in comparison.only_a}),
        "only_in_b": sorted({name for comparison in found.values() for name in comparison.only_b}),
        "reshaped": {name: shapes for comparison in found.values() for name, shapes in comparison.reshaped.items()},
        "text_rows_cut": max(comparison.cut_rows for comparison in found.values()),
        "values_left_out": sum(comparison.overall.left_out for comparison in found.values()),
        "overall": diffs.as_records([(side, c.overall) for side, c in zip(sides, found.values(), strict=True)], False),
        "modules": diffs.as_records(
            [(f"{slot}: {name}", sums) for slot, c in found.items() for name, sums in c.modules().items()], False
        ),
    }
