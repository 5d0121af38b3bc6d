"""The one pass over a checkpoint's weights and its base's, and the memory of it: a second notebook reads nothing again.

What was read is hashed while it is in the processor's cache (XXH3-128, with a seed that only this cache knows, so that no
file can be made to pass for another). Digests are remembered by the files' identities (device, inode, size and times),
results by the digests. Files below 64 MiB are read again each time, which takes no longer.
"""

import json
import secrets
from collections.abc import Mapping, Sequence
from dataclasses import astuple, dataclass
from typing import Any

from torch import Tensor

from f5lab import caches, provenance
from f5lab.checkpoints import Checkpoint
from f5lab.specs import Weights
from f5lab.weights.scans import Scan, scan_weights
from f5lab.weights.sums import Sums, Totals

VERSION = 2
"""To be raised whenever a figure, or how it is stored, changes its meaning."""
_KIND = "scans"


@dataclass(frozen=True)
class StoredScan:
    """A pass over some sets of weights of files.

    Attributes
    ----------
    sets : tuple of (Checkpoint, str)
        Which file and slot each set is: raw and EMA, or the one that there is; then the base's.
    scan : Scan
    """

    sets: tuple[tuple[Checkpoint, Weights], ...]
    scan: Scan

    def totals(self, slot: Weights) -> dict[str, Totals]:
        """Return the totals of one slot of the checkpoint, by name."""
        checkpoint = self.sets[0][0]
        place = next(i for i, (file, held) in enumerate(self.sets) if file is checkpoint and held == slot)
        return self.scan.totals[place]


def base_slot(base: Checkpoint) -> Weights:
    """Return the base's slot that a trainer starts from: its EMA, where it has one."""
    return "ema" if "ema" in base.slots else base.slots[0]


def scan_checkpoint(checkpoint: Checkpoint, base: Checkpoint | None = None) -> StoredScan:
    """Read a checkpoint's weights once, and its base's with them: whatever anatomy and comparison need.

    With one set of weights in the checkpoint, the base's set of the same name is the other side, where it has one.

    Raises
    ------
    CheckpointError
        A file changed while it was read.
    """
    sets = [(checkpoint, slot) for slot in ("raw", "ema") if slot in checkpoint.slots]
    if base is not None:
        same = len(sets) == 1 and sets[0][1] in base.slots
        sets.append((base, sets[0][1] if same else base_slot(base)))
    remembered = sum(_stored_bytes(*held) for held in sets) >= provenance.REMEMBER_BYTES
    seed = _seed() if remembered else None
    found = _recall(sets, seed) if seed is not None else None
    if found is None:
        found = scan_weights(*(file.weights(slot) for file, slot in sets), seed=seed)
        for file in {id(file): file for file, _ in sets}.values():
            file.confirm()
        if seed is not None:
            _remember(sets, found, seed)
    return StoredScan(tuple(sets), found)


def _stored_bytes(checkpoint: Checkpoint, slot: Weights) -> int:
    return sum(stored.nbytes for stored in checkpoint.stored[slot].values())


def _seed() -> int:
    """Return the seed of this cache's digests; a new one, under which nothing is remembered, where there is none."""
    stored = caches.read(_KIND, "seed")
    if stored is None:
        stored = secrets.token_bytes(8)
        caches.write(_KIND, "seed", stored)
    return int.from_bytes(stored, "little")


def _digest_key(checkpoint: Checkpoint, slot: Weights, seed: int) -> str:
    return json.dumps([VERSION, "digest", [astuple(part.identity) for part in checkpoint.file.parts], slot, seed])


def _result_key(digests: Sequence[str]) -> str:
    return json.dumps([VERSION, "result", *digests])


def _recall(sets: Sequence[tuple[Checkpoint, Weights]], seed: int) -> Scan | None:
    """Return what is remembered of these sets; None where nothing is, or what there is was damaged."""
    digests = []
    for held in sets:
        stored = caches.read(_KIND, _digest_key(*held, seed))
        if stored is None:
            return None
        digests.append(stored.decode("ascii"))
    result = caches.read(_KIND, _result_key(digests))
    return _rebuild(json.loads(result)) if result is not None else None


def _remember(sets: Sequence[tuple[Checkpoint, Weights]], scan: Scan, seed: int) -> None:
    caches.write(_KIND, _result_key(scan.digests), json.dumps(_plain(scan)).encode("ascii"))
    for held, digest in zip(sets, scan.digests, strict=True):
        caches.write(_KIND, _digest_key(*held, seed), digest.encode("ascii"))


def _plain(scan: Scan) -> dict[str, Any]:
    """Return a scan for JSON: ``asdict``, which copies every number, takes a tenth of the time of the read."""
    totals = [{name: vars(held) for name, held in of_one.items()} for of_one in scan.totals]
    return vars(scan) | {"totals": totals, "sums": {name: vars(held) for name, held in scan.sums.items()}}


def _rebuild(data: Mapping[str, Any]) -> Scan:
    return Scan(
        totals=tuple({name: _totals(values) for name, values in held.items()} for held in data["totals"]),
        sums={name: Sums(**values) for name, values in data["sums"].items()},
        reshaped=data["reshaped"],
        cut_rows=data["cut_rows"],
        digests=tuple(data["digests"]),
    )


def _totals(values: Mapping[str, Any]) -> Totals:
    return Totals(**{**values, "histogram": tuple((key, count) for key, count in values["histogram"])})


def weights_of(found: StoredScan) -> list[dict[str, Tensor]]:
    """Return the sets of weights that were read, mapped, in order."""
    return [file.weights(slot) for file, slot in found.sets]
