"""Opening a file of weights from anywhere: examined in a process of its own, refused in one line, never executed.

No torch: what a file holds is known before any of its tensors is mapped (`mappings` does that).
"""

import hashlib
import os
import struct
import weakref
import zlib
from collections import OrderedDict
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from itertools import zip_longest
from pathlib import Path
from typing import Any

from f5lab import provenance
from f5lab.errors import CheckpointError
from f5lab.paths import CHUNK_BYTES, existing_file
from f5lab.untrusted.file_kinds import ADVICE
from f5lab.untrusted.manifests import Container, Manifest
from f5lab.untrusted.processes import Running, open_untrusted, taken_ahead
from f5lab.untrusted.refusals import DAMAGED, FOREIGN, FORMAT, Refused
from f5lab.untrusted.sandbox import read_manifest
from f5lab.untrusted.sources import digest_ranges
from f5lab.untrusted.stored_tensors import ITEM_BYTES, Storage, StoredTensor

_EXPECTED = "a checkpoint of F5-TTS (.pt of the trainer, pruned .pt, or .safetensors)"
_REMEMBERED = 32
_READERS = 8
_known: "OrderedDict[Identity, Manifest]" = OrderedDict()


@dataclass(frozen=True)
class Identity:
    """What tells that a file is still the same without reading it."""

    device: int
    inode: int
    size: int
    mtime_ns: int
    ctime_ns: int

    @classmethod
    def of(cls, descriptor: int) -> "Identity":
        """Return the identity of an open file."""
        facts = os.fstat(descriptor)
        return cls(facts.st_dev, facts.st_ino, facts.st_size, facts.st_mtime_ns, facts.st_ctime_ns)


class Part:
    """One file, held open, with its manifest.

    Attributes
    ----------
    path : Path
    descriptor : int
        Open for reading as long as this object lives; what was examined is what is mapped.
    identity : Identity
    manifest : Manifest
    mapped : Any
        Where `mappings` keeps its memory map.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        running = taken_ahead(path)
        self.descriptor = running.descriptor if running else open_untrusted(path)
        weakref.finalize(self, os.close, self.descriptor)
        self.identity = Identity.of(self.descriptor)
        self.manifest = self._manifest(running)
        self.mapped: Any = None
        self._damaged: list[str] | None = None

    def _manifest(self, running: Running | None) -> Manifest:
        """Return the manifest of this very content, examined once in this process."""
        known = _known.get(self.identity)
        if running is None and known is not None and digest_ranges(self.descriptor, known.ranges) == known.digest:
            _known.move_to_end(self.identity)
            return known
        manifest = read_manifest(self.descriptor, running)
        self.confirm(manifest)
        _known[self.identity] = manifest
        while len(_known) > _REMEMBERED:
            _known.popitem(last=False)
        return manifest

    def confirm(self, manifest: Manifest | None = None) -> None:
        """Refuse the file if it is no longer what was examined.

        Raises
        ------
        Refused
            Rule ``file-changed``.
        """
        manifest = manifest or self.manifest
        if manifest.size != self.identity.size or Identity.of(self.descriptor) != self.identity:
            raise Refused("file-changed", "size or times changed since it was opened")
        if digest_ranges(self.descriptor, manifest.ranges) != manifest.digest:
            raise Refused("file-changed", "its structure changed since it was examined")

    def damaged(self) -> list[str]:
        """Return the storages whose bytes are not those that were written, by the CRC-32 that zip archives record.

        Torch never looks at it: a flipped bit loads in silence. The whole file is read, once.
        """
        if self._damaged is None:
            crcs = self.manifest.crcs
            stored = [s for s in self.manifest.storages if s.key in crcs and s.count]
            with ThreadPoolExecutor(min(os.cpu_count() or 1, _READERS)) as pool:
                found = list(pool.map(self._crc, stored))
            self._damaged = [s.key for s, crc in zip(stored, found, strict=True) if crc != crcs[s.key]]
        return self._damaged

    def _crc(self, storage: Storage) -> int:
        crc, offset, end = 0, storage.place, storage.place + storage.nbytes
        while offset < end and (chunk := os.pread(self.descriptor, min(CHUNK_BYTES, end - offset), offset)):
            crc, offset = zlib.crc32(chunk, crc), offset + len(chunk)
        return crc

    def sha256(self) -> str:
        """Return the SHA-256 of the whole file, read now through the descriptor that was examined."""
        digest, offset = hashlib.sha256(), 0
        while chunk := os.pread(self.descriptor, CHUNK_BYTES, offset):
            digest.update(chunk)
            offset += len(chunk)
        return digest.hexdigest()


@dataclass(frozen=True)
class WeightsFile:
    """An examined file, or an index with its shards.

    Attributes
    ----------
    path : Path
    container : {"torch", "torch-old", "torch-tar", "safetensors", "shard-index"}
    root : Any
        The object that was saved, `StoredTensor` in place of each tensor.
    parts : tuple of Part
        The files that hold tensors.
    """

    path: Path
    container: Container
    root: Any
    parts: tuple[Part, ...]
    owners: dict[int, Part] = field(default_factory=dict, repr=False)

    @property
    def imports(self) -> tuple[str, ...]:
        """What the file's pickles import, all of it on the list and none of it executed."""
        return tuple(dict.fromkeys(name for part in self.parts for name in part.manifest.imports))

    def read_number(self, tensor: StoredTensor) -> int | float | None:
        """Return the one element of a whole-number, boolean or float tensor; None for any other tensor."""
        layout = {"int64": "<q", "int32": "<i", "int16": "<h", "int8": "<b", "uint8": "<B", "bool": "<?",
                  "float64": "<d", "float32": "<f", "float16": "<e"}.get(tensor.dtype)  # fmt: skip
        if layout is None or tensor.count != 1:
            return None
        place = tensor.storage.place + tensor.offset * ITEM_BYTES[tensor.dtype]
        return struct.unpack(
            layout, os.pread(self.owners[id(tensor.storage)].descriptor, struct.calcsize(layout), place)
        )[0]

    def rebuild(self, value: Any, make: Callable[[StoredTensor], Any]) -> Any:
        """Return a copy of a value of this file with `make` of each tensor in its place; what was shared stays shared."""
        made: dict[int, Any] = {}

        def copy(value: Any) -> Any:
            kind = type(value)
            if kind not in (StoredTensor, dict, list, tuple):
                return value
            if id(value) not in made:
                if kind is StoredTensor:
                    made[id(value)] = make(value)
                elif kind is dict:
                    made[id(value)] = {key: copy(item) for key, item in value.items()}
                else:
                    made[id(value)] = kind(copy(item) for item in value)
            return made[id(value)]

        return copy(value)

    def hashes(self, *, compute: bool = True) -> list[str | None]:
        """Return the SHA-256 of each part; with `compute` off, None where that would mean to read more than 64 MiB."""
        return [provenance.sha256(part.path, compute=compute) for part in self.parts]

    def confirm(self, hashes: Sequence[str | None] = ()) -> None:
        """Refuse the file if it changed since it was opened.

        Parameters
        ----------
        hashes : sequence of str or None
            What `hashes` returned before; files up to 64 MiB are hashed again and compared, larger ones by identity
            (device, inode, size and times) and by the bytes that describe their structure.

        Raises
        ------
        CheckpointError
        """
        for part, digest in zip_longest(self.parts, hashes):
            try:
                part.confirm()
                small = part.identity.size < provenance.REMEMBER_BYTES
                if digest is not None and small and part.sha256() != digest:
                    raise Refused("file-changed", "its SHA-256 is another than before")
            except Refused as refused:
                raise as_error(part.path, refused) from None


def open_weights_file(path: str | Path, what: str = "checkpoint") -> WeightsFile:
    """Examine a file of weights, or the index of a sharded one, without reading its tensors.

    Raises
    ------
    CheckpointError
        It is missing, a folder, or refused; the message names the rule.
    """
    path = Path(path).expanduser()
    existing_file(path, CheckpointError, what, next_step="give the path of a .pt or .safetensors file")
    part = _open_part(path)
    manifest = part.manifest
    if manifest.container == "shard-index":
        return _open_shards(path, manifest.root)
    return WeightsFile(path, manifest.container, manifest.root, (part,), {id(s): part for s in manifest.storages})


def _open_part(path: Path) -> Part:
    try:
        return Part(path)
    except Refused as refused:
        raise as_error(path, refused) from None
    except OSError as error:
        raise CheckpointError(f"{path} cannot be read ({error.strerror})", next_step="check its permissions") from error


def _open_shards(path: Path, files: dict[str, str]) -> WeightsFile:
    parts = {}
    for name in dict.fromkeys(files.values()):
        shard = existing_file(
            path.parent / name, CheckpointError, "shard", next_step="copy every shard beside the index"
        )
        parts[name] = _open_part(shard)
    for name, part in parts.items():
        wanted = {tensor for tensor, file in files.items() if file == name}
        found = set(part.manifest.root) if part.manifest.container == "safetensors" else set()
        if found != wanted:
            odd = sorted(found ^ wanted)
            raise as_error(path, Refused("shard-tensors", f"{len(odd)} tensors, {odd[0]} first", name))
    root = {tensor: parts[file].manifest.root[tensor] for tensor, file in files.items()}
    owners = {id(storage): part for part in parts.values() for storage in part.manifest.storages}
    return WeightsFile(path, "safetensors", root, tuple(parts.values()), owners)


def as_error(path: Path, refused: Refused) -> CheckpointError:
    """Return a refusal as an error that names the rule, the place and what to do."""
    from f5lab.tables import visible

    what, where = visible(refused.what), visible(refused.where)
    found = f"rule {refused.rule}: {what}" + (f"; {where}" if where else "")
    if refused.rule == "file-magic":
        advice = next((text for start, text in ADVICE.items() if refused.what.startswith(start)), None)
        step = advice or "compare its sha256 with the source and copy it again"
        return CheckpointError(
            f"{path} is {what}, not a checkpoint (rule file-magic)", expected=_EXPECTED, next_step=step
        )
    size = path.stat().st_size if path.exists() else 0
    if refused.kind == DAMAGED:
        kind = "no readable .safetensors file" if refused.rule.startswith(("safetensors", "shard")) else (
            "damaged, cut short or no torch file"
        )  # fmt: skip
        lead, step = (
            f"{path} is {kind} ({size:,} bytes; {found})",
            "compare its size and sha256 with the source and copy it again",
        )
    elif refused.kind == FOREIGN:
        lead = f"{path} holds Python objects besides tensors and was not loaded, nothing in it was executed ({found})"
        step = "do not load it elsewhere to find out; ask for the weights alone, saved by torch.save or as .safetensors"
    elif refused.kind == FORMAT:
        lead, step = (
            f"{path} is in a format that is not read ({found})",
            "save it again with torch.save or as .safetensors",
        )
    else:
        lead = f"{path} claims more than it stores or may ask for, and was not loaded ({found})"
        step = "ask where it comes from; it was not written by torch.save on real weights"
    return CheckpointError(lead, expected=refused.expected, next_step=step)
