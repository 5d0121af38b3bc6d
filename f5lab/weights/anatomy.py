"""Checkpoint anatomy: every tensor with its statistics, what was never trained, and where the file comes from."""

import math
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from f5lab import checkpoints
from f5lab.checkpoints import Checkpoint
from f5lab.errors import CheckpointError
from f5lab.specs import Weights
from f5lab.weights import architectures, contents
from f5lab.weights.diffs import layer_of, module_of
from f5lab.weights.origins import preset_sentence, provenance
from f5lab.weights.scans import scan_weights
from f5lab.weights.stored_scans import scan_checkpoint
from f5lab.weights.sums import Totals, bin_range

__all__ = [
    "RowMatch", "RowTest", "TensorFacts", "checkpoint_facts", "match_rows", "modules", "preset_sentence", "provenance",
    "report", "sum_histograms", "tensor_facts", "untouched_rows",
]  # fmt: skip

ROW_TOLERANCE = {torch.float16: 2.0**-11, torch.bfloat16: 2.0**-8}
"""Relative distance from collinear that rounding of two stored rows explains: the rms of it is half of this."""
FULL_TOLERANCE = 3e-5
"""The same for float32: a thousand rounded steps of weight decay."""
INIT_SPREAD = 0.03
_ZERO_INIT = re.compile(r"(attn_norm(_[xc])?\.linear|norm_out\.linear|proj_out)\.(weight|bias)$|\.grn\.(gamma|beta)$")


@dataclass(frozen=True)
class TensorFacts:
    """One tensor: where it belongs, how it is stored, and statistics over its finite elements (None where none is).

    `state` is "ok", "not finite", "zero as initialised" (upstream starts it at zero: it never learned), "zero"
    (upstream does not: damaged) or "as initialised" (uniform within 1/sqrt(fan-in), torch's start for linear layers and
    convolutions: hardly learned). `histogram` counts finite elements by magnitude, as `sums.Totals` has it.
    """

    name: str
    module: str
    layer: int | None
    shape: tuple[int, ...]
    dtype: str
    parameters: int
    bytes: int
    norm: float | None
    mean: float | None
    std: float | None
    minimum: float | None
    maximum: float | None
    nan: int
    inf: int
    zero_share: float
    state: str
    histogram: tuple[tuple[int, int], ...] = ()


@dataclass(frozen=True)
class RowTest:
    """Rows of the text embedding that training never touched, and by which test.

    Attributes
    ----------
    test : {"optimizer", "base", "raw-ema", "none"}
        ``optimizer``: Adam's second moment of the row is exactly zero. ``base``: the row is the base's, shrunk by
        weight decay at most. ``raw-ema``: raw and EMA rows are collinear and equally shrunk.
    untouched : tuple of int
        Row numbers; row 0 is the filler, row i + 1 belongs to vocab index i.
    rows : int
    norms : tuple of float
        L2 norm of each row; N(0, 1), torch's start, gives sqrt(text_dim) +- 0.7.
    limit : str
        What this test can not tell.
    """

    test: str
    untouched: tuple[int, ...]
    rows: int
    norms: tuple[float, ...]
    limit: str


def tensor_facts(weights: Mapping[str, Tensor]) -> list[TensorFacts]:
    """Return the facts of every tensor of a set of weights, in one pass."""
    totals = scan_weights(weights).totals[0]
    return [_facts(name, tensor, totals[name]) for name, tensor in weights.items()]


def checkpoint_facts(checkpoint: Checkpoint, base: Checkpoint | None = None) -> dict[Weights, list[TensorFacts]]:
    """Return the facts of every tensor of each slot, in the one pass that comparisons share (`scan_checkpoint`).

    Parameters
    ----------
    base : Checkpoint, optional
        Read with it, for whoever compares the two later.

    Raises
    ------
    CheckpointError
        A file changed while it was read.
    """
    found = scan_checkpoint(checkpoint, base)
    return {
        slot: [_facts(name, tensor, found.totals(slot)[name]) for name, tensor in checkpoint.weights(slot).items()]
        for slot in checkpoint.slots
    }


def _facts(name: str, tensor: Tensor, totals: Totals) -> TensorFacts:
    stats: dict[str, float | None] = dict.fromkeys(("norm", "mean", "std", "minimum", "maximum"))
    if n := totals.finite:
        mean = totals.total / n
        std = math.sqrt(max(totals.energy / n - mean**2, 0.0))
        ends = {"minimum": totals.minimum, "maximum": totals.maximum}
        stats = {"norm": math.sqrt(totals.energy), "mean": mean, "std": std, **ends}
    return TensorFacts(
        name=name,
        module=module_of(name),
        layer=layer_of(name),
        shape=tuple(tensor.shape),
        dtype=str(tensor.dtype).removeprefix("torch."),
        parameters=tensor.numel(),
        bytes=tensor.numel() * tensor.element_size(),
        **stats,
        nan=totals.nan,
        inf=totals.inf,
        zero_share=(totals.zeros or 0) / tensor.numel() if tensor.numel() else 0.0,
        state=_state(name, tensor, stats, bool(totals.nan or totals.inf)),
        histogram=totals.histogram,
    )


def _state(name: str, tensor: Tensor, stats: Mapping[str, float | None], broken: bool) -> str:
    if broken:
        return "not finite"
    if not stats["norm"]:
        return "zero as initialised" if _ZERO_INIT.search(name) else "zero"
    if name.endswith("weight") and tensor.dim() > 1 and not name.endswith("text_embed.text_embed.weight"):
        bound = 1 / math.sqrt(math.prod(tensor.shape[1:]))
        largest = max(-stats["minimum"], stats["maximum"])  # type: ignore[operator,type-var]
        if largest <= bound * 1.001 and abs(stats["std"] * math.sqrt(3) / bound - 1) < INIT_SPREAD:  # type: ignore[operator]
            return "as initialised"
    return "ok"


def modules(facts: list[TensorFacts]) -> list[dict[str, Any]]:
    """Return tensors, parameters, bytes, dtypes, root mean square and states by module, in file order."""
    groups: dict[str, list[TensorFacts]] = {}
    for fact in facts:
        groups.setdefault(fact.module, []).append(fact)
    rows = []
    for module, members in groups.items():
        total = sum(f.parameters for f in members)
        energy = sum((f.norm or 0.0) ** 2 for f in members)
        odd = {f.state for f in members} - {"ok"}
        rows.append(
            {
                "module": module,
                "tensors": len(members),
                "parameters": total,
                "bytes": sum(f.bytes for f in members),
                "dtypes": sorted({f.dtype for f in members}),
                "rms": math.sqrt(energy / total) if total else None,
                "not_finite": sum(f.nan + f.inf for f in members),
                "odd": sorted(odd),
            }
        )
    return rows


def sum_histograms(facts: Sequence[TensorFacts]) -> dict[int, int]:
    """Return the number of finite weights by magnitude, of all tensors together; keys as `sums.bin_range` has them."""
    counts: Counter[int] = Counter()
    for fact in facts:
        counts.update(dict(fact.histogram))
    return dict(sorted(counts.items()))


def _magnitudes(facts: Mapping[Weights, Sequence[TensorFacts]]) -> list[dict[str, Any]]:
    """Return the histogram of each slot as rows, one for each power of two."""
    counts = {slot: sum_histograms(members) for slot, members in facts.items()}
    rows = []
    for key in sorted(set().union(*counts.values())):
        start, stop = bin_range(key)
        rows.append({"from": start, "below": stop} | {slot: held.get(key, 0) for slot, held in counts.items()})
    return rows


def untouched_rows(checkpoint: Checkpoint, slot: Weights, base: Mapping[str, Tensor] | None = None) -> RowTest:
    """Find text-embedding rows that no training text ever used.

    A row whose symbol never occurs gets no gradient: Adam leaves it alone and weight decay only shrinks it. The best
    test that the file allows is taken: optimizer, then base, then raw against EMA.
    """
    rows = checkpoint.weights(slot)[architectures.TEXT_EMBEDDING]
    norms = tuple(torch.linalg.vector_norm(rows.double(), dim=1).tolist())
    found = {"rows": len(rows), "norms": norms}
    moment = _second_moment(checkpoint.optimizer, tuple(rows.shape))
    if moment is not None:
        untouched = tuple(torch.nonzero((moment == 0).all(dim=1)).flatten().tolist())
        return RowTest(
            "optimizer", untouched, limit="only since the optimizer was made: not what the base knew", **found
        )
    old = base.get(architectures.TEXT_EMBEDDING) if base is not None else None
    if old is not None and old.shape[1:] == rows.shape[1:]:
        limit = (
            "rows touched once or twice move less than half precision shows; a row kept by other means looks the same"
        )
        return _row_test("base", _collinear(rows, old), limit, found)
    if set(checkpoint.slots) == {"raw", "ema"}:
        other = checkpoint.weights("ema" if slot == "raw" else "raw")[architectures.TEXT_EMBEDDING]
        limit = (
            "only since the EMA was last equal to the raw weights; means nothing where one was copied from the other"
        )
        return _row_test("raw-ema", _collinear(rows, other), limit, found)
    limit = (
        "one set of weights and no optimizer: trained rows keep about the norm of N(0, 1) that all rows start with, "
        "so the norm alone decides nothing; a comparison with the base does (base: in a case file)"
    )
    return RowTest("none", (), limit=limit, **found)


def _row_test(test: str, untouched: tuple[int, ...] | None, limit: str, found: Mapping[str, Any]) -> RowTest:
    if untouched is None:
        return RowTest("none", (), limit=f"{test}: no row moved clearly more than its stored precision shows", **found)
    return RowTest(test, untouched, limit=limit, **found)


def _second_moment(optimizer: Mapping[str, Any] | None, shape: tuple[int, ...]) -> Tensor | None:
    states = (optimizer or {}).get("state")
    if not isinstance(states, Mapping):
        return None
    moments = [state.get("exp_avg_sq") for state in states.values() if isinstance(state, Mapping)]
    same = [m for m in moments if isinstance(m, Tensor) and tuple(m.shape) == shape]
    return same[0] if len(same) == 1 else None


def _collinear(a: Tensor, b: Tensor) -> tuple[int, ...] | None:
    """Rows of `a` that are the same row of `b` times a factor near 1, up to rounding; rows only in `a` left out.

    None where no row is clearly apart: training moved them all less than the stored precision shows.
    """
    n = min(len(a), len(b))
    tolerance = max(ROW_TOLERANCE.get(t.dtype, FULL_TOLERANCE) for t in (a, b))
    x, y = a[:n].double(), b[:n].double()
    factor = (x * y).sum(1) / (y * y).sum(1).clamp_min(1e-300)
    apart = torch.linalg.vector_norm(x - factor[:, None] * y, dim=1)
    apart /= torch.linalg.vector_norm(x, dim=1).clamp_min(1e-300)
    if float(apart.max()) < 3 * tolerance:
        return None
    near = (apart <= tolerance) & ((factor - 1).abs() < 0.05)
    return tuple(torch.nonzero(near).flatten().tolist())


@dataclass(frozen=True)
class RowMatch:
    """Which row of a base's text embedding each row of a fine-tune's is nearest to, by cosine; the filler row left out.

    Attributes
    ----------
    nearest : tuple of int
        Base index for each fine-tune index.
    cosine : tuple of float
    identity_share : float
        Share of rows nearest to their own number: 1 where the vocab kept its order.
    permutation : bool
        Whether the match is one to one and not the identity: the vocab was reordered in between.
    offset : int or None
        The one offset that most moved rows share, where one does.
    convincing : float
        Share of rows whose best cosine is above 0.5: lower, and the two have nothing to do with each other.
    """

    nearest: tuple[int, ...]
    cosine: tuple[float, ...]
    identity_share: float
    permutation: bool
    offset: int | None
    convincing: float


def match_rows(weight: Tensor, base: Tensor) -> RowMatch:
    """Match the rows of two text embeddings [shape=(vocab + 1, text_dim)] by cosine.

    Raises
    ------
    CheckpointError
        Their widths differ.
    """
    if weight.shape[1] != base.shape[1]:
        raise CheckpointError(f"text embeddings {weight.shape[1]} and {base.shape[1]} wide", expected="equal widths")
    x = torch.nn.functional.normalize(weight[1:].double(), dim=1)
    y = torch.nn.functional.normalize(base[1:].double(), dim=1)
    best, index = (x @ y.T).max(dim=1)
    nearest, n = index.tolist(), len(x)
    identity = [i == j for i, j in enumerate(nearest)]
    moved = Counter(j - i for i, j in enumerate(nearest) if i != j)
    offset = next((k for k, count in moved.most_common(1) if count > 0.5 * sum(moved.values()) and count > 2), None)
    return RowMatch(
        nearest=tuple(nearest),
        cosine=tuple(best.tolist()),
        identity_share=sum(identity) / n if n else 0.0,
        permutation=len(set(nearest)) == n and not all(identity),
        offset=offset,
        convincing=float((best > 0.5).double().mean()) if n else 0.0,
    )


def report(path: str | Path, *, verify: bool = False) -> dict[str, Any]:
    """Return everything about a checkpoint, statistics of every weight included; what ``f5lab inspect --stats`` shows.

    Parameters
    ----------
    path : str or Path
    verify : bool
        As for `contents.report`.

    Raises
    ------
    CheckpointError
        The file is refused, is no F5-TTS checkpoint, or changed while it was read.
    """
    checkpoint = checkpoints.open_checkpoint(path)
    with ThreadPoolExecutor(1) as beside:
        hashing = beside.submit(checkpoint.file.hashes, compute=verify)
        facts = checkpoint_facts(checkpoint)
        hashes = hashing.result()
    slot = checkpoint.slots[-1]
    rows = untouched_rows(checkpoint, slot)
    odd = [f for members in facts.values() for f in members if f.state != "ok"]
    found = {
        "rotary": asdict(architectures.check_rope(checkpoint.weights(slot))),
        "text_rows": {"test": rows.test, "rows": rows.rows, "untouched": list(rows.untouched), "limit": rows.limit},
        "modules": modules(facts[slot]),
        "magnitudes": _magnitudes(facts),
        "odd_tensors": [{"name": f.name, "state": f.state, "nan": f.nan, "inf": f.inf} for f in odd],
    }
    found = contents.describe(checkpoint, hashes, verify=verify) | found
    checkpoint.confirm(hashes)
    return found
