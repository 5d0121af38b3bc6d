"""The one pass over a checkpoint's weights and its base's, and the memory of it: a second notebook reads nothing again.

What was read is hashed while it is in the processor's cache (XXH3-128, with a seed that only this cache knows, so that no
file can be made to pass for another). Digests are remembered by the files' identities (device, inode, size and times),
results by the digests. Files below 64 MiB are read again each time, which takes no longer.
"""

import hashlib
import json
import secrets
from collections.abc import Mapping, Sequence
from dataclasses import asdict, astuple, dataclass
from pathlib import Path
from typing import Any

from torch import Tensor

from f5lab import paths, provenance
from f5lab.checkpoints import Checkpoint
from f5lab.scans import Scan, scan_weights
from f5lab.specs import Weights
from f5lab.sums import Sums, Totals

VERSION = 1
"""To be raised whenever a figure, or how it is stored, changes its meaning."""


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
    found = _recall(sets) if remembered else None
    if found is None:
        seed = _seed() if remembered else None
        found = scan_weights(*(file.weights(slot) for file, slot in sets), seed=seed)
        for file in {id(file): file for file, _ in sets}.values():
            file.confirm()
        if remembered:
            _remember(sets, found)
    return StoredScan(tuple(sets), found)


def _stored_bytes(checkpoint: Checkpoint, slot: Weights) -> int:
    return sum(stored.nbytes for stored in checkpoint.stored[slot].values())


def _seed() -> int:
    file = paths.cache_dir("scans") / "seed"
    if not file.is_file() or len(file.read_text(encoding="ascii").strip()) != 16:
        paths.write_text(file, secrets.token_hex(8) + "\n")
    return int(file.read_text(encoding="ascii"), 16)


def _digest_file(checkpoint: Checkpoint, slot: Weights) -> Path:
    identities = [astuple(part.identity) for part in checkpoint.file.parts]
    key = json.dumps([VERSION, identities, slot, _seed()])
    return paths.cache_dir("scans", "digests") / hashlib.sha256(key.encode()).hexdigest()


def _result_file(digests: Sequence[str]) -> Path:
    key = json.dumps([VERSION, *digests])
    return paths.cache_dir("scans", "results") / f"{hashlib.sha256(key.encode()).hexdigest()}.json"


def _recall(sets: Sequence[tuple[Checkpoint, Weights]]) -> Scan | None:
    """Return what is remembered of these sets; None where nothing is, or what there is was damaged."""
    memories = [_digest_file(*held) for held in sets]
    if not all(memory.is_file() for memory in memories):
        return None
    digests = tuple(memory.read_text(encoding="utf-8", errors="replace").strip() for memory in memories)
    file = _result_file(digests)
    if not file.is_file():
        return None
    check, _, text = file.read_bytes().partition(b"\n")
    if check != hashlib.sha256(text).hexdigest().encode():
        return None
    data = json.loads(text)
    return _rebuild(data) if data["version"] == VERSION and tuple(data["digests"]) == digests else None


def _remember(sets: Sequence[tuple[Checkpoint, Weights]], scan: Scan) -> None:
    text = json.dumps({"version": VERSION} | asdict(scan))
    check = hashlib.sha256(text.encode()).hexdigest()
    paths.write_text(_result_file(scan.digests), f"{check}\n{text}")
    for held, digest in zip(sets, scan.digests, strict=True):
        paths.write_text(_digest_file(*held), digest + "\n")


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
