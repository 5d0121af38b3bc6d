"""Differences between sets of weights: relative L2, cosine, largest change, and the EMA's way from base to raw.

All figures follow from sums of one pass (`scans`); sums of squares add up, so that modules and layers are exact.
"""

import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from f5lab.errors import CheckpointError
from f5lab.weights.scans import TEXT_ROWS, Scan, one_thread, scan_weights
from f5lab.weights.sums import Sums, vector_cosine

__all__ = [
    "TEXT_ROWS", "Comparison", "Sums", "TensorDiff", "as_records", "compare", "comparison_of", "layer_of", "module_of",
    "one_thread", "vector_cosine",
]  # fmt: skip

TERMS = {
    "relative_l2": "|a - b| / |a|",
    "cosine": "of the angle between a and b; 1 is the same direction",
    "largest": "largest change of one weight",
    "moved_from_base": "|a - base| / |base|: how far training moved a",
    "alpha": "how far b has come from the base (0) to a (1), along the straight way",
    "path_cosine": "of the angle between b - base and a - base; far below 1, b came another way",
    "weight": "what ema_pytorch's decay leaves of the base after these updates: the least that its share can be",
    "expected": "share of the base in the EMA if the weights moved as AdamW moves them; low and high, over every way",
    "measured": "share of the base in the EMA: 1 - alpha",
    "gap": "measured less expected",
}
"""What a comparison's figures mean; a is raw and b the EMA, where a file holds both."""


def module_of(name: str) -> str:
    """Return the part of the model that a tensor belongs to, blocks of one kind taken together."""
    name = name.removeprefix("transformer.")
    if match := re.match(r"transformer_blocks\.\d+\.(attn_norm|attn|ff)", name):
        return f"blocks.{match.group(1)}"
    if match := re.match(r"layers\.\d+\.([0-4])\.", name):
        return "blocks." + ("skip", "attn_norm", "attn", "ff_norm", "ff")[int(match.group(1))]
    if name.startswith("text_embed.text_blocks"):
        return "text_embed.conv"
    if name.startswith("text_embed.text_embed"):
        return "text_embed.rows"
    return re.split(r"[.]", name)[0]


def layer_of(name: str) -> int | None:
    """Return the number of the transformer block (or of the text encoder's block) that a tensor is in."""
    match = re.search(r"(?:transformer_blocks|layers|text_blocks)\.(\d+)\.", name)
    return int(match.group(1)) if match else None


@dataclass(frozen=True)
class TensorDiff:
    """One tensor's sums, with where it belongs."""

    name: str
    module: str
    layer: int | None
    shape: tuple[int, ...]
    sums: Sums


@dataclass(frozen=True)
class Comparison:
    """Two (or, with a base, three) sets of weights, tensor by tensor.

    Attributes
    ----------
    rows : tuple of TensorDiff
    only_a, only_b, missing_in_base : tuple of str
        Names without a counterpart.
    reshaped : dict of str to str
        Tensors whose shapes differ and were left out; a text embedding is compared on its common rows instead.
    cut_rows : int
        Rows of the text embedding that only the larger one has.
    """

    rows: tuple[TensorDiff, ...]
    only_a: tuple[str, ...]
    only_b: tuple[str, ...]
    missing_in_base: tuple[str, ...]
    reshaped: dict[str, str]
    cut_rows: int
    has_base: bool

    @property
    def overall(self) -> Sums:
        """All tensors together."""
        return sum((row.sums for row in self.rows), Sums())

    @property
    def identical(self) -> bool:
        """Whether both hold the same tensors with the same values, none of which was left out."""
        differs = self.reshaped or self.cut_rows or self.only_a or self.only_b
        return not (self.overall.dd or self.overall.left_out or differs)

    def by(self, key: Callable[[TensorDiff], Any]) -> dict[Any, Sums]:
        """Return the sums of the groups that `key` makes, in file order."""
        groups: dict[Any, Sums] = {}
        for row in self.rows:
            groups[key(row)] = groups.get(key(row), Sums()) + row.sums
        return groups

    def modules(self) -> dict[str, Sums]:
        """Return the sums by module."""
        return self.by(lambda row: row.module)

    def layers(self) -> dict[tuple[str, int | None], Sums]:
        """Return the sums by module and layer."""
        return self.by(lambda row: (row.module, row.layer))


def compare(a: Mapping[str, Tensor], b: Mapping[str, Tensor], base: Mapping[str, Tensor] | None = None) -> Comparison:
    """Compare two sets of weights; with `base`, also as steps away from it (a: raw, b: EMA).

    Raises
    ------
    CheckpointError
        No tensor is in both.
    """
    sets = (a, b) if base is None else (a, b, base)
    _check_common(sets)
    return comparison_of(scan_weights(*sets, counted=False), *sets)


def comparison_of(
    scan: Scan, a: Mapping[str, Tensor], b: Mapping[str, Tensor], base: Mapping[str, Tensor] | None = None
) -> Comparison:
    """Return the comparison of the sets of weights that a pass was made over.

    Raises
    ------
    CheckpointError
        No tensor is in both.
    """
    _check_common((a, b) if base is None else (a, b, base))
    rows = [
        TensorDiff(name, module_of(name), layer_of(name), tuple(a[name].shape), sums)
        for name, sums in scan.sums.items()
    ]
    return Comparison(
        rows=tuple(rows),
        only_a=tuple(n for n in a if n not in b),
        only_b=tuple(n for n in b if n not in a),
        missing_in_base=tuple(n for n in a if n in b and base is not None and n not in base),
        reshaped=scan.reshaped,
        cut_rows=scan.cut_rows,
        has_base=base is not None,
    )


def _check_common(sets: Sequence[Mapping[str, Tensor]]) -> None:
    if not any(all(name in other for other in sets) for name in sets[0]):
        raise CheckpointError("the two have no tensor in common", expected="checkpoints of one architecture")


def as_records(groups: Iterable[tuple[str, Sums]], has_base: bool) -> list[dict[str, Any]]:
    """Return named sums as rows for a table or JSON."""
    records = []
    for name, sums in groups:
        record = {
            "where": name,
            "parameters": sums.n,
            "relative_l2": sums.relative_l2,
            "cosine": sums.cosine,
            "largest": sums.largest,
        }
        if has_base:
            record |= {"moved_from_base": sums.moved, "alpha": sums.alpha, "path_cosine": sums.path_cosine}
        if sums.left_out:
            record["not_finite"] = sums.left_out
        records.append(record)
    return records
