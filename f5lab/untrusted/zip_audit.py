"""Audit of the zip container of torch files: every byte accounted for, nothing unpacked.

Python's ``zipfile``, torch's miniz and other readers disagree about archives that are not quite right, and files that
pass one reader and mean something else to another live on that. So the central directory is read strictly and compared
with every local header, entries must touch each other from the first byte to the directory, and any doubt refuses.
Format: PKWARE's APPNOTE 6.3.10, sections 4.3 and 4.4. Standard library only.
"""

import re
import struct
import zlib
from dataclasses import dataclass

from f5lab.untrusted.refusals import Refused
from f5lab.untrusted.sources import Source

MOST_ENTRIES = 100_000
MOST_DIRECTORY_BYTES = 64 << 20
MOST_SMALL_BYTES = 4096

_END, _END64, _LOCATOR = b"PK\x05\x06", b"PK\x06\x06", b"PK\x06\x07"
_CENTRAL, _LOCAL, _DESCRIPTOR = b"PK\x01\x02", b"PK\x03\x04", b"PK\x07\x08"
_ONES16, _ONES32 = 0xFFFF, 0xFFFFFFFF
_DESCRIBED, _UTF8 = 0x0008, 0x0800
_ENCRYPTED = 0x0001 | 0x0040 | 0x2000
_PARTS = r"data\.pkl|data/\d{1,20}|version|byteorder|\.data/serialization_id|\.format_version|\.storage_alignment"
_NAME = re.compile(rf"(?P<folder>[^/\\\x00-\x1f\x7f]{{1,255}})/(?P<part>{_PARTS})")
_SCRIPT = re.compile(r"[^/]*/(code/.*|constants\.pkl|constants/.*|attributes\.pkl|mobile_debug_handles\.pkl)")


@dataclass(frozen=True)
class Entry:
    """One stored file of an archive.

    Attributes
    ----------
    name : str
    size : int
        Bytes.
    crc : int
        Recorded CRC-32.
    flags : int
    header : int
        First byte of its local header.
    place : int
        First byte of its data; -1 until the local header was read.
    """

    name: str
    size: int
    crc: int
    flags: int
    header: int
    place: int = -1


def read_archive(source: Source) -> dict[str, Entry]:
    """Return the entries of a torch archive by their name below the archive's folder.

    Raises
    ------
    Refused
        The archive breaks a rule.
    """
    start, end, count = _find_directory(source)
    listed = _read_directory(source.read(start, end - start, "zip-directory", "central directory"), count)
    parts = _name_parts(listed)
    placed = _check_layout(source, sorted(listed, key=lambda entry: entry.header), start)
    return {part: placed[name] for name, part in parts.items()}


def _find_directory(source: Source) -> tuple[int, int, int]:
    """Return the central directory's first byte, the byte after it, and its number of entries."""
    at = source.size - 22
    record = source.read(at, 22, "zip-end", "end record") if at >= 0 else b""
    if record[:4] != _END:
        raise Refused("zip-suffix" if _END in source.peek(max(0, at - 65557), 65579) else "zip-end",
                      "the last 22 bytes are no end record", f"byte {max(at, 0):,}")  # fmt: skip
    disk, first_disk, here, total, size, start, comment = struct.unpack("<HHHHIIH", record[4:])
    if comment:
        raise Refused("zip-suffix", f"a comment of {comment} bytes", "end record")
    if disk or first_disk or here != total:
        raise Refused("zip-end", "an archive in several parts", "end record")
    end = at
    if source.peek(at - 20, 4) == _LOCATOR and at >= 76:
        end = at - 76
        total, size, start = _read_end64(source, end, (total, size, start))
    elif total == _ONES16 or _ONES32 in (size, start):
        raise Refused("zip-end", "a zip64 record is announced and missing", "end record")
    if start + size != end:
        raise Refused("zip-directory", f"bytes {start:,} to {start + size:,}, the end records begin at {end:,}",
                      "end record")  # fmt: skip
    if not 0 < total <= MOST_ENTRIES or size > MOST_DIRECTORY_BYTES:
        raise Refused("zip-count", f"{total:,} entries in {size:,} bytes", "end record")
    return start, end, total


def _read_end64(source: Source, at: int, short: tuple[int, int, int]) -> tuple[int, int, int]:
    record = source.read(at, 76, "zip-end", "zip64 end record")
    sign, length, _, _, disk, first_disk, here, total, size, start = struct.unpack("<4sQHHIIQQQQ", record[:56])
    where, disks = struct.unpack("<QI", record[64:76])
    if sign != _END64 or length != 44 or where != at or disks != 1 or struct.unpack("<I", record[60:64])[0]:
        raise Refused("zip-end", "the zip64 locator does not name the record before it", "zip64 end record")
    if disk or first_disk or here != total:
        raise Refused("zip-end", "an archive in several parts", "zip64 end record")
    for old, new, ones in zip(short, (total, size, start), (_ONES16, _ONES32, _ONES32), strict=True):
        if old not in (ones, new):
            raise Refused("zip-end", f"{old:,} in the end record, {new:,} in the zip64 one", "zip64 end record")
    return total, size, start


def _read_directory(data: bytes, count: int) -> list[Entry]:
    entries, pos = [], 0
    for number in range(count):
        where = f"directory entry {number}"
        if len(data) - pos < 46 or data[pos : pos + 4] != _CENTRAL:
            raise Refused("zip-directory", f"{count} entries announced, no entry here", where)
        fields = struct.unpack("<HHHHHHIIIHHHHHII", data[pos + 4 : pos + 46])
        _, _, flags, method, _, _, crc, packed, size, name_n, extra_n, comment_n, disk, _, _, header = fields
        stop = pos + 46 + name_n + extra_n + comment_n
        if stop > len(data):
            raise Refused("zip-directory", "an entry that reaches beyond the directory", where)
        name = _decode_name(data[pos + 46 : pos + 46 + name_n], flags, where)
        extra = data[pos + 46 + name_n : pos + 46 + name_n + extra_n]
        _check_kind(name, flags, method, where)
        if comment_n or disk not in (0, _ONES16):
            raise Refused("zip-directory", f"{name}: a comment or another disk", where)
        size, packed, header = _widen(extra, (size, packed, header), f"{name}, {where}")
        if size != packed:
            raise Refused("zip-ratio", f"{name}: {packed:,} bytes become {size:,}", where)
        entries.append(Entry(name, size, crc, flags, header))
        pos = stop
    if pos != len(data):
        raise Refused("zip-directory", f"{len(data) - pos} bytes after {count} entries", "central directory")
    return entries


def _decode_name(raw: bytes, flags: int, where: str) -> str:
    try:
        return raw.decode("utf-8" if flags & _UTF8 else "ascii")
    except UnicodeDecodeError:
        raise Refused("zip-name", f"a name in no readable encoding: {raw[:60]!r}", where) from None


def _check_kind(name: str, flags: int, method: int, where: str) -> None:
    if flags & _ENCRYPTED:
        raise Refused("zip-encrypted", name, where)
    if flags & ~(_DESCRIBED | _UTF8):
        raise Refused("zip-flags", f"{name}: flags 0x{flags:04x}", where)
    if method:
        raise Refused("zip-method", f"{name}: method {method}", where)


def _widen(extra: bytes, short: tuple[int, ...], where: str) -> tuple[int, ...]:
    """Return sizes and offset with the zip64 values where the short ones are all ones; `extra` must be well-formed."""
    pos, wide = 0, b""
    while pos < len(extra):
        if len(extra) - pos < 4:
            raise Refused("zip-directory", "a torn extra field", where)
        kind, length = struct.unpack_from("<HH", extra, pos)
        if length > len(extra) - pos - 4:
            raise Refused("zip-directory", "an extra field longer than its place", where)
        if kind == 0x0001:
            if wide:
                raise Refused("zip-directory", "two zip64 fields", where)
            wide = extra[pos + 4 : pos + 4 + length]
        elif kind == 0x7075:
            raise Refused("zip-name", "a second name in an extra field", where)
        pos += 4 + length
    missing = sum(value == _ONES32 for value in short)
    if missing and len(wide) != 8 * missing or len(wide) % 8:
        raise Refused("zip-directory", f"{missing} zip64 values wanted, {len(wide)} bytes given", where)
    values = iter(struct.unpack(f"<{len(wide) // 8}Q", wide))
    return tuple(next(values) if value == _ONES32 else value for value in short)


def _name_parts(entries: list[Entry]) -> dict[str, str]:
    """Return each name's part below the one folder; names that torch never gives are refused."""
    parts: dict[str, str] = {}
    folders = set()
    for entry in entries:
        match = _NAME.fullmatch(entry.name)
        if _SCRIPT.fullmatch(entry.name):
            raise Refused("torchscript", entry.name, "central directory")
        if match is None:
            raise Refused("zip-name", entry.name, "central directory")
        if entry.name in parts:
            raise Refused("zip-duplicate", entry.name, "central directory")
        parts[entry.name] = match["part"]
        folders.add(match["folder"])
    folder = folders.pop()
    if folders or folder in (".", "..") or re.fullmatch("[A-Za-z]:", folder):
        raise Refused("zip-folder", ", ".join(sorted({folder, *folders})[:3]), "central directory")
    if "data.pkl" not in parts.values():
        raise Refused("zip-missing", "no data.pkl", "central directory")
    return parts


def _check_layout(source: Source, entries: list[Entry], directory: int) -> dict[str, Entry]:
    """Return the entries with the place of their data, having compared every local header and every boundary."""
    placed, expected = {}, 0
    starts = [entry.header for entry in entries[1:]] + [directory]
    for entry, following in zip(entries, starts, strict=True):
        if entry.header != expected:
            rule = "zip-gap" if expected else "zip-prefix"
            raise Refused(rule, f"{entry.name}: begins at byte {entry.header:,}, not {expected:,}", "local headers")
        place = _check_local(source, entry)
        stop = place + entry.size
        if entry.flags & _DESCRIBED:
            stop += _check_descriptor(source, entry, stop, following - stop)
        if stop > following:
            raise Refused("zip-gap", f"{entry.name}: overlaps what follows", f"byte {following:,}")
        placed[entry.name] = Entry(entry.name, entry.size, entry.crc, entry.flags, entry.header, place)
        expected = stop
    if expected != directory:
        raise Refused("zip-gap", f"{directory - expected:,} bytes before the central directory", f"byte {expected:,}")
    return placed


def _check_local(source: Source, entry: Entry) -> int:
    """Return where an entry's data begins."""
    where = f"local header at byte {entry.header:,}"
    head = source.peek(entry.header, 320)
    if len(head) < 30 or head[:4] != _LOCAL:
        raise Refused("zip-local-header", f"{entry.name}: no local header", where)
    fields = struct.unpack("<HHHHHIIIHH", head[4:30])
    _, flags, method, _, _, crc, packed, size, name_n, extra_n = fields
    if len(head) < 30 + name_n + extra_n:
        head = source.peek(entry.header, 30 + name_n + extra_n)
    head = head[: 30 + name_n + extra_n]
    if len(head) < 30 + name_n + extra_n:
        raise Refused("zip-local-header", f"{entry.name}: cut short", where)
    source.believe(entry.header, head)
    name = _decode_name(head[30 : 30 + name_n], flags, where)
    if (name, flags, method) != (entry.name, entry.flags, 0):
        raise Refused("zip-local-header", f"{entry.name} in the directory, {name} (flags 0x{flags:04x}) here", where)
    size, packed = _widen(head[30 + name_n :], (size, packed), where)
    later = (0, 0, 0) if entry.flags & _DESCRIBED else None
    if (crc, packed, size) not in (later, (entry.crc, entry.size, entry.size)):
        raise Refused("zip-local-header", f"{entry.name}: size or CRC other than in the directory", where)
    return entry.header + len(head)


def _check_descriptor(source: Source, entry: Entry, at: int, room: int) -> int:
    """Return the length of the record that follows an entry's data."""
    layouts = {16: "<II", 24: "<QQ"}
    if room not in layouts:
        raise Refused("zip-gap", f"{entry.name}: {room:,} bytes after its data, 16 or 24 expected", f"byte {at:,}")
    record = source.read(at, room, "zip-gap", entry.name)
    crc, sizes = struct.unpack("<I", record[4:8])[0], struct.unpack(layouts[room], record[8:])
    if record[:4] != _DESCRIPTOR or crc != entry.crc or sizes != (entry.size, entry.size):
        raise Refused("zip-local-header", f"{entry.name}: the record after its data disagrees", f"byte {at:,}")
    return room


def read_entry(source: Source, entry: Entry, most: int = MOST_SMALL_BYTES, rule: str = "zip-name") -> bytes:
    """Return an entry's bytes, having checked their CRC-32.

    Raises
    ------
    Refused
        More than `most` bytes, by `rule`, or the CRC is another.
    """
    if entry.size > most:
        raise Refused(rule, f"{entry.name}: {entry.size:,} bytes", entry.name)
    data = source.read(entry.place, entry.size, "file-size", entry.name)
    if zlib.crc32(data) != entry.crc:
        raise Refused(
            "zip-crc", f"{entry.name}: CRC-32 is {zlib.crc32(data):08x}, {entry.crc:08x} recorded", entry.name
        )
    return data
