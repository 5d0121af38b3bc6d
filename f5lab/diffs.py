"""Differences between sets of weights: relative L2, cosine, largest change, and the EMA's way from base to raw.

Tensors are read one at a time and summed in float64; sums of squares add up, so that modules and layers are exact.
"""

import math
import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, fields
from typing import Any

import torch
from torch import Tensor

from f5lab.errors import CheckpointError

TEXT_ROWS = "transformer.text_embed.text_embed.weight"
BLOCK = 1 << 15
"""Values summed at a time: six rows of float64 stay in a cache, and torch sees no reason for threads."""
ROUNDING = {torch.float16: 2.0**-11, torch.bfloat16: 2.0**-8}
"""Largest relative rounding error of the two half precisions."""


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
class Sums:
    """Sums over elements from which every figure follows; `b` and `base` may be absent (0).

    With d = a - b, and, where a base P is given, with a = raw R and b = EMA E: u = R - P, v = E - P.
    """

    n: int = 0
    aa: float = 0.0
    bb: float = 0.0
    ab: float = 0.0
    dd: float = 0.0
    largest: float = 0.0
    pp: float = 0.0
    uu: float = 0.0
    vv: float = 0.0
    uv: float = 0.0
    rounding: float = 0.0

    def __add__(self, other: "Sums") -> "Sums":
        pairs = {f.name: getattr(self, f.name) + getattr(other, f.name) for f in fields(self)}
        return Sums(**{**pairs, "largest": max(self.largest, other.largest)})

    @property
    def relative_l2(self) -> float | None:
        """|a - b| / |a|; None where a is all zero."""
        return math.sqrt(self.dd / self.aa) if self.aa else None

    @property
    def cosine(self) -> float | None:
        """Cosine between a and b; None where one is all zero."""
        return vector_cosine(self.ab, self.aa, self.bb)

    @property
    def alpha(self) -> float | None:
        """<E - P, R - P> / |R - P|^2: how far the EMA has come, 0 base to 1 raw; None where R equals P or no base is
        given."""
        return self.uv / self.uu if self.uu else None

    @property
    def path_cosine(self) -> float | None:
        """Cosine between E - P and R - P."""
        return vector_cosine(self.uv, self.uu, self.vv)

    @property
    def moved(self) -> float | None:
        """|R - P| / |P|: how far training moved the raw weights."""
        return math.sqrt(self.uu / self.pp) if self.pp else None

    @property
    def rounding_share(self) -> float | None:
        """Root of (energy of half-precision rounding / energy of b - base); near 1, alpha measures rounding."""
        return math.sqrt(self.rounding / self.vv) if self.vv else None


def vector_cosine(dot: float, first: float, second: float) -> float | None:
    """Return dot / sqrt(first * second), the cosine of two vectors from their dot product and squared lengths."""
    return max(-1.0, min(1.0, dot / math.sqrt(first * second))) if first and second else None


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
    common = [name for name in a if name in b and (base is None or name in base)]
    if not common:
        raise CheckpointError("the two have no tensor in common", expected="checkpoints of one architecture")
    with one_thread():
        rows, reshaped, cut = _compare_tensors(common, a, b, base)
    return Comparison(
        rows=tuple(rows),
        only_a=tuple(n for n in a if n not in b),
        only_b=tuple(n for n in b if n not in a),
        missing_in_base=tuple(n for n in a if n in b and base is not None and n not in base),
        reshaped=reshaped,
        cut_rows=cut,
        has_base=base is not None,
    )


def _compare_tensors(
    common: Iterable[str], a: Mapping[str, Tensor], b: Mapping[str, Tensor], base: Mapping[str, Tensor] | None
) -> tuple[list[TensorDiff], dict[str, str], int]:
    rows, reshaped, cut = [], {}, 0
    for name in common:
        tensors = [a[name], b[name], *([base[name]] if base is not None else [])]
        if len({tuple(t.shape) for t in tensors}) > 1:
            if name != TEXT_ROWS or len({tuple(t.shape[1:]) for t in tensors}) > 1:
                reshaped[name] = " / ".join(str(tuple(t.shape)) for t in tensors)
                continue
            fewest, most = min(len(t) for t in tensors), max(len(t) for t in tensors)
            cut, tensors = most - fewest, [t[:fewest] for t in tensors]
        if tensors[0].dtype.is_floating_point:
            rows.append(TensorDiff(name, module_of(name), layer_of(name), tuple(tensors[0].shape), _sums(*tensors)))
    return rows, reshaped, cut


@contextmanager
def one_thread() -> Iterator[None]:
    """Keep torch to one thread: on short blocks threads wait for each other, the more the busier the machine is."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)


def _sums(a: Tensor, b: Tensor, base: Tensor | None = None) -> Sums:
    """Sum over blocks that fit a cache; rows of the buffer: a, b, a - b, and with a base P, R - P, E - P."""
    sources = [t.detach().flatten() for t in (a, b, base) if t is not None]
    pairs = {"aa": (0, 0), "bb": (1, 1), "ab": (0, 1), "dd": (2, 2)}
    if base is not None:
        pairs |= {"pp": (3, 3), "uu": (4, 4), "vv": (5, 5), "uv": (4, 5)}
    rows = torch.empty(3 if base is None else 6, min(BLOCK, max(a.numel(), 1)), dtype=torch.float64)
    found, largest = dict.fromkeys(pairs, 0.0), 0.0
    for start in range(0, a.numel(), BLOCK):
        n = min(BLOCK, a.numel() - start)
        block = rows[:, :n]
        for row, source in zip((0, 1, 3), sources, strict=False):
            block[row].copy_(source[start : start + n])
        torch.sub(block[0], block[1], out=block[2])
        if base is not None:
            torch.sub(block[0], block[3], out=block[4])
            torch.sub(block[1], block[3], out=block[5])
        for name, (i, j) in pairs.items():
            found[name] += float(torch.dot(block[i], block[j]))
        low, high = torch.aminmax(block[2])
        largest = max(largest, -float(low), float(high))
    rounding = 0.0 if base is None else _rounding_energy(b, found["bb"]) + _rounding_energy(base, found["pp"])
    return Sums(n=a.numel(), largest=largest, rounding=rounding, **found)


def _rounding_energy(stored: Tensor, energy: float) -> float:
    """Expected squared error of rounding to the stored precision: uniform within half a unit, mantissas log-uniform."""
    return energy * ROUNDING.get(stored.dtype, 0.0) ** 2 / 6


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
        records.append(record)
    return records
