"""Torch's three file formats, read without torch: today's zip, the bare pickles of before 1.6, the tar of before 0.2.

Formats: ``torch/serialization.py``, ``_save``, ``_legacy_save``, and ``legacy_load`` inside ``_legacy_load``.
Standard library only.
"""

import io
import struct
import tarfile
from dataclasses import replace
from typing import Any

from f5lab.untrusted import zip_audit
from f5lab.untrusted.manifests import Manifest
from f5lab.untrusted.pickles import MOST_PICKLE_BYTES, Import, Walker
from f5lab.untrusted.refusals import Refused
from f5lab.untrusted.sources import Source
from f5lab.untrusted.stored_tensors import ITEM_BYTES, Storage, brief, check_tensor

MAGIC_NUMBER, PROTOCOL_VERSION = 0x1950A86A20F9469CFC6C, 1001
TAR_MEMBERS = ("sys_info", "pickle", "tensors", "storages")
MOST_KEYS = 200_000
MOST_LOCATION = 32
_RECORD_BYTES = 1 << 14


class Storages:
    """The storages that a pickle names by persistent ids.

    Parameters
    ----------
    fields : tuple of int
        Lengths that an id may have.
    """

    def __init__(self, fields: tuple[int, ...]) -> None:
        self.fields = fields
        self.found: dict[str, Storage] = {}
        self.views: dict[tuple[str, str], tuple[Storage, Storage, int]] = {}

    def __call__(self, identity: Any, where: str) -> Storage:
        """Return the storage that a persistent id names.

        Raises
        ------
        Refused
            Anything else than ``("storage", type, key, location, count)``, or a key with another type or size.
        """
        if type(identity) is not tuple or len(identity) not in self.fields or identity[0] != "storage":
            raise Refused("pickle-persistent-id", brief(identity), where)
        _, kind, key, location, count = identity[:5]
        if type(kind) is not Import or kind.kind != "storage" or type(key) is not str or not 0 < len(key) <= 20:
            raise Refused("pickle-persistent-id", brief(identity), where)
        if type(location) is not str or len(location) > MOST_LOCATION or location == "meta":
            raise Refused("pickle-persistent-id", f"location {brief(location)}", where)
        if type(count) is not int or not 0 <= count < 1 << 48:
            raise Refused("storage-type", f"storage {key} of {brief(count)} elements", where)
        known = self.found.setdefault(key, Storage(key, kind.name, count))
        if (known.dtype, known.count) != (kind.name, count):
            raise Refused(
                "storage-type", f"storage {key} is {known.count} of {known.dtype}, then {count} of {kind.name}", where
            )
        return self._view(known, identity[5], where) if len(identity) == 6 and identity[5] is not None else known

    def _view(self, root: Storage, view: Any, where: str) -> Storage:
        """Return part of a storage, as torch before 0.4 saved it."""
        good = type(view) is tuple and len(view) == 3 and type(view[0]) is str and len(view[0]) <= 20
        if not good or not all(type(n) is int and n >= 0 for n in view[1:]) or view[1] + view[2] > root.count:
            raise Refused("pickle-persistent-id", f"view {brief(view)} of storage {root.key}", where)
        made = (Storage(view[0], root.dtype, view[2]), root, view[1])
        known = self.views.setdefault((root.key, view[0]), made)
        if (known[0].count, known[2]) != (view[2], view[1]):
            raise Refused("storage-type", f"view {view[0]} with two places", where)
        return known[0]

    def place_views(self) -> None:
        """Give the views the place that their storages have."""
        for view, root, offset in self.views.values():
            view.place = root.place + offset * ITEM_BYTES[root.dtype]


def read_zip(source: Source) -> Manifest:
    """Return the manifest of a torch file in today's format.

    Raises
    ------
    Refused
        The archive or its pickle breaks a rule.
    """
    entries = zip_audit.read_archive(source)
    facts = _read_small(source, entries)
    data = zip_audit.read_entry(source, entries["data.pkl"], MOST_PICKLE_BYTES, "pickle-size")
    storages = Storages((5,))
    walker = Walker(data, persistent=storages)
    root = walker.walk()
    if walker.pos != len(data):
        raise Refused("pickle-trailing", f"{len(data) - walker.pos:,} bytes", f"data.pkl, byte {walker.pos}")
    crcs = {}
    for key, storage in storages.found.items():
        entry = entries.get(f"data/{key}")
        if entry is None and storage.count:
            raise Refused("zip-missing", f"storage {key} has no entry", "central directory")
        if entry is not None and entry.size != storage.nbytes:
            raise Refused("storage-size", f"{entry.size:,} bytes stored, {storage.nbytes:,} announced", entry.name)
        storage.place, crcs[key] = (entry.place, entry.crc) if entry else (0, 0)
    unused = {part for part in entries if part.startswith("data/")} - {f"data/{key}" for key in storages.found}
    if unused:
        raise Refused("zip-extra", f"{len(unused)} entries: {', '.join(sorted(unused)[:3])}", "central directory")
    return Manifest("torch", root, tuple(storages.found.values()), tuple(walker.imports), crcs=crcs, facts=facts)


def _read_small(source: Source, entries: dict[str, zip_audit.Entry]) -> dict[str, Any]:
    """Return what the small entries say, having refused what is not read."""
    texts = {}
    for name in ("version", "byteorder", ".format_version", ".storage_alignment", ".data/serialization_id"):
        if name in entries:
            texts[name] = zip_audit.read_entry(source, entries[name]).decode("ascii", "replace").strip()
    if texts.get("byteorder", "little") != "little":
        raise Refused("zip-byteorder", f"{texts['byteorder'][:20]}", "byteorder")
    version = texts.get("version", "3")
    if not version.isascii() or not version.isdigit() or not 1 <= int(version[:4]) <= 10:
        raise Refused("zip-version", version[:20], "version")
    return {"entries": len(entries), "format_version": int(version), "byteorder": texts.get("byteorder", "not stated")}


def read_bare(source: Source) -> Manifest:
    """Return the manifest of a torch file from before 1.6: five pickles, then the storages.

    Raises
    ------
    Refused
        The pickles or the storages break a rule.
    """
    data = source.peek(0, min(source.size, MOST_PICKLE_BYTES))
    storages, imports = Storages((5, 6)), {}
    values, pos = [], 0
    for name in ("magic number", "protocol", "system facts", "data", "storage keys"):
        walker = Walker(data, pos, name, storages if name == "data" else None)
        values.append(walker.walk())
        pos, imports = walker.pos, imports | walker.imports
        if name == "system facts":
            _check_preface(values)
    source.believe(0, data[:pos])
    root, keys = values[3:]
    if type(keys) is not list or len(keys) > MOST_KEYS or not all(type(key) is str for key in keys):
        raise Refused("legacy-keys", f"keys are {brief(keys)}", "storage keys")
    if len(set(keys)) != len(keys) or set(keys) != set(storages.found):
        raise Refused("legacy-keys", f"{len(keys)} keys for {len(storages.found)} storages", "storage keys")
    for key in keys:
        pos = _place(source, storages.found[key], pos)
    if pos != source.size:
        raise Refused("legacy-trailing", f"{source.size - pos:,} bytes", f"byte {pos:,}")
    storages.place_views()
    return Manifest("torch-old", root, tuple(storages.found.values()), tuple(imports), facts={"protocol": values[1]})


def _check_preface(values: list[Any]) -> None:
    magic, protocol, facts = values
    if magic != MAGIC_NUMBER or protocol != PROTOCOL_VERSION or type(facts) is not dict:
        raise Refused("legacy-magic", f"{brief(magic)}, {brief(protocol)}, {brief(facts)}", "first three pickles")
    if facts.get("little_endian") is not True:
        raise Refused("legacy-byteorder", f"little_endian is {brief(facts.get('little_endian'))}", "system facts")


def _place(source: Source, storage: Storage, pos: int) -> int:
    """Say where a storage lies whose element count stands before it; return the byte after it."""
    (count,) = struct.unpack("<q", source.read(pos, 8, "file-size", f"storage {storage.key}"))
    if count != storage.count:
        raise Refused("storage-size", f"{count:,} elements stored, {storage.count:,} announced", storage.key)
    storage.place = pos + 8
    end = storage.place + storage.nbytes
    if end > source.size:
        raise Refused("file-size", f"ends at byte {end:,} of {source.size:,}", f"storage {storage.key}")
    return end


class _Window(io.RawIOBase):
    """A file object over a source, for `tarfile`."""

    def __init__(self, source: Source) -> None:
        self.source, self.pos = source, 0

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def tell(self) -> int:
        return self.pos

    def seek(self, offset: int, whence: int = 0) -> int:
        self.pos = offset + {0: 0, 1: self.pos, 2: self.source.size}[whence]
        return self.pos

    def read(self, size: int = -1) -> bytes:
        data = self.source.peek(self.pos, min(self.source.size - self.pos if size < 0 else size, 1 << 20))
        self.source.believe(self.pos, data)
        self.pos += len(data)
        return data


def read_tar(source: Source) -> Manifest:
    """Return the manifest of a torch file in the tar format of before 0.2.

    Raises
    ------
    Refused
        A member, its pickles or its records break a rule.
    """
    members = _tar_members(source)
    imports: dict[str, None] = {}
    facts = _Records(source, *members["sys_info"], "sys_info", imports)
    system = facts.pickle()
    if type(system) is not dict or system.get("little_endian") is not True:
        raise Refused("legacy-byteorder", f"system facts are {brief(system)}", "sys_info")
    objects: dict[int, Any] = {}
    storages = _tar_storages(_Records(source, *members["storages"], "storages", imports), objects)
    _tar_tensors(_Records(source, *members["tensors"], "tensors", imports), objects)

    def persistent(identity: Any, where: str) -> Any:
        key = int(identity) if type(identity) is str and identity.isascii() and identity[:20].isdigit() else identity
        if type(key) is not int or key not in objects:
            raise Refused("pickle-persistent-id", brief(identity), where)
        return objects[key]

    main = _Records(source, *members["pickle"], "pickle", imports)
    root = main.pickle(persistent, MOST_PICKLE_BYTES)
    for records in (facts, main):
        records.close()
    return Manifest("torch-tar", root, tuple(storages), tuple(imports))


def _tar_members(source: Source) -> dict[str, tuple[int, int]]:
    """Return first byte and size of the four members."""
    found: dict[str, tuple[int, int]] = {}
    try:
        with tarfile.open(fileobj=_Window(source), mode="r:", bufsize=512) as tar:
            while (member := tar.next()) is not None:
                if member.name not in TAR_MEMBERS or member.name in found or member.type != tarfile.REGTYPE:
                    raise Refused("tar-member", f"{member.name[:80]!r}", f"byte {member.offset:,}")
                found[member.name] = (member.offset_data, member.size)
            end = tar.offset
    except (tarfile.TarError, ValueError, OverflowError, EOFError) as error:
        raise Refused("tar-layout", f"{type(error).__name__}: {error}", "tar headers") from None
    if set(found) != set(TAR_MEMBERS):
        raise Refused("tar-member", f"only {', '.join(sorted(found)) or 'none'}", "tar headers")
    rest = source.peek(end, 1 << 16)
    if any(rest) or source.size - end > 1 << 16 or any(at + size > source.size for at, size in found.values()):
        raise Refused("tar-layout", "bytes after the last member, or a member that is cut short", f"byte {end:,}")
    return found


class _Records:
    """The pickles and binary fields of one tar member, in a row."""

    def __init__(self, source: Source, start: int, size: int, name: str, imports: dict[str, None]) -> None:
        self.source, self.pos, self.end, self.name, self.imports = source, start, start + size, name, imports

    def pickle(self, persistent: Any = None, most: int = _RECORD_BYTES) -> Any:
        data = self.source.peek(self.pos, min(self.end - self.pos, most))
        walker = Walker(data, 0, f"{self.name} from byte {self.pos}", persistent)
        value = walker.walk()
        self.source.believe(self.pos, data[: walker.pos])
        self.pos += walker.pos
        self.imports.update(walker.imports)
        return value

    def fields(self, layout: str) -> tuple[int, ...]:
        size = struct.calcsize(layout)
        if size > self.end - self.pos:
            raise Refused("tar-layout", "a record that is cut short", self.name)
        values = struct.unpack(layout, self.source.read(self.pos, size, "tar-layout", self.name))
        self.pos += size
        return values

    def count(self) -> int:
        value = self.pickle()
        if type(value) is not int or not 0 <= value <= MOST_KEYS:
            raise Refused("tar-layout", f"{brief(value)} records", self.name)
        return value

    def close(self) -> None:
        if self.pos != self.end:
            raise Refused("pickle-trailing", f"{self.end - self.pos:,} bytes", self.name)


def _tar_storages(records: _Records, objects: dict[int, Any]) -> list[Storage]:
    made = []
    for _ in range(records.count()):
        row = records.pickle()
        good = type(row) is tuple and len(row) == 3 and type(row[0]) is int and type(row[2]) is Import
        if not good or row[2].kind != "storage" or row[0] in objects:
            raise Refused("tar-layout", f"storage {brief(row)}", records.name)
        (count,) = records.fields("<q")
        storage = Storage(str(row[0])[:20], row[2].name, count, records.pos)
        if count < 0 or storage.nbytes > records.end - records.pos:
            raise Refused("storage-size", f"{count:,} elements", f"storage {storage.key}")
        records.pos += storage.nbytes
        objects[row[0]] = storage
        made.append(storage)
    for row in _rows(records.pickle(), 4, records.name):
        root = objects.get(row[1])
        if type(root) is not Storage or row[0] in objects or min(row[2:]) < 0 or row[2] + row[3] > root.count:
            raise Refused("tar-layout", f"view {brief(row)}", records.name)
        place = root.place + row[2] * ITEM_BYTES[root.dtype]
        objects[row[0]] = Storage(str(row[0])[:20], root.dtype, row[3], place)
    records.close()
    return made


def _rows(value: Any, width: int, where: str) -> list[tuple[int, ...]]:
    good = type(value) is list and all(
        type(r) is tuple and len(r) == width and all(type(n) is int for n in r) for r in value
    )
    if not good:
        raise Refused("tar-layout", f"views are {brief(value)}", where)
    return value


def _tar_tensors(records: _Records, objects: dict[int, Any]) -> None:
    for _ in range(records.count()):
        row = records.pickle()
        good = type(row) is tuple and len(row) == 3 and type(row[0]) is int and type(row[1]) is int
        good = good and type(row[2]) is Import and row[2].kind == "class"
        if not good or row[0] in objects or type(objects.get(row[1])) is not Storage:
            raise Refused("tar-layout", f"tensor {brief(row)}", records.name)
        dimensions, _ = records.fields("<ii")
        if not 0 <= dimensions <= 16:
            raise Refused("tensor-shape", f"{dimensions} dimensions", f"tensor {row[0]}")
        shape, stride = records.fields(f"<{dimensions}q"), records.fields(f"<{dimensions}q")
        (offset,) = records.fields("<q")
        storage = objects[row[1]]
        objects[row[0]] = check_tensor(storage, storage.dtype, offset, shape, stride, f"tensor {str(row[0])[:20]}")
    records.close()


def with_file_facts(manifest: Manifest, source: Source) -> Manifest:
    """Return a manifest with the file's size and what was believed of it."""
    return replace(manifest, size=source.size, ranges=tuple(source.ranges), digest=source.digest())
