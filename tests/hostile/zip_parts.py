"""Writing zip archives field by field, so that a test can write what no archiver would."""

import struct
import zlib
from collections.abc import Sequence
from dataclasses import dataclass, field

FLOATS = struct.pack("<4f", 1, 2, 3, 4)


@dataclass
class Item:
    """One entry; what is None follows from the data. `local` overrides fields in the local header only."""

    name: str
    data: bytes
    method: int = 0
    flags: int = 0
    crc: int | None = None
    packed: int | None = None
    size: int | None = None
    header: int | None = None
    extra: bytes = b""
    comment: bytes = b""
    local: dict[str, object] = field(default_factory=dict)
    gap: bytes = b""

    def values(self, local: bool) -> dict[str, object]:
        """Return the header's fields."""
        known = {
            "name": self.name.encode("utf-8", "surrogateescape"), "flags": self.flags, "method": self.method,
            "crc": zlib.crc32(self.data) if self.crc is None else self.crc,
            "packed": len(self.data) if self.packed is None else self.packed,
            "size": len(self.data) if self.size is None else self.size, "extra": self.extra,
        }  # fmt: skip
        return known | (self.local if local else {})


def torch_items(pickle: bytes, folder: str = "m", **storages: bytes) -> list[Item]:
    """Return the entries that torch.save would write, the one storage ``data/0`` among them unless others are given."""
    stored = storages or {"0": FLOATS}
    return [
        Item(f"{folder}/data.pkl", pickle), Item(f"{folder}/byteorder", b"little"),
        *(Item(f"{folder}/data/{key}", data) for key, data in stored.items()), Item(f"{folder}/version", b"3\n"),
    ]  # fmt: skip


def archive(
    items: Sequence[Item], prefix: bytes = b"", comment: bytes = b"", suffix: bytes = b"", count: int | None = None,
    shift: int = 0, before_directory: bytes = b"", after_directory: bytes = b"",
) -> bytes:  # fmt: skip
    """Return an archive; `shift` is added to every offset in the directory."""
    body, directory = prefix, b""
    for item in items:
        at = len(body) + shift if item.header is None else item.header
        v = item.values(local=True)
        body += b"PK\x03\x04" + struct.pack(
            "<HHHHHIIIHH", 20, v["flags"], v["method"], 0, 33, v["crc"], v["packed"], v["size"], len(v["name"]), len(v["extra"])
        ) + v["name"] + v["extra"] + item.data + item.gap  # fmt: skip
        v = item.values(local=False)
        directory += b"PK\x01\x02" + struct.pack(
            "<HHHHHHIIIHHHHHII", 20, 20, v["flags"], v["method"], 0, 33, v["crc"], v["packed"], v["size"], len(v["name"]),
            len(v["extra"]), len(item.comment), 0, 0, 0, at,
        ) + v["name"] + v["extra"] + item.comment  # fmt: skip
    body += before_directory
    total = len(items) if count is None else count
    end = struct.pack("<4sHHHHIIH", b"PK\x05\x06", 0, 0, total, total, len(directory), len(body) + shift, len(comment))
    return body + directory + after_directory + end + comment + suffix


def torch_archive(pickle: bytes, **storages: bytes) -> bytes:
    """Return a torch file with that ``data.pkl``."""
    return archive(torch_items(pickle, **storages))
