"""What can be wrong with a zip archive, and files that are something else."""

import io
import lzma
import pickle
import struct
import zipfile
import zlib
from collections.abc import Callable

from hostile.pickle_parts import (
    checkpoint,
)  # fmt: skip
from hostile.registry import EVIL, SHELL, TOUCH, add, hostile
from hostile.zip_parts import FLOATS, Item, archive, torch_archive, torch_items

# --- zip --------------------------------------------------------------------------------------------------------


def items() -> list[Item]:
    return torch_items(checkpoint())


def changed(index: int, **fields: object) -> bytes:
    made = items()
    for name, value in fields.items():
        setattr(made[index], name, value)
    return archive(made)


ZIPS: dict[str, tuple[Callable[[], bytes], tuple[str, ...]]] = {
    "prefix-bytes": (lambda: archive(items(), prefix=b"\x7fELF" + bytes(60)), ("file-magic", "zip-prefix")),
    "prefix-zip-magic": (lambda: archive(items(), prefix=b"PK\x03\x04" + bytes(60)), ("zip-prefix",)),
    "prefix-pickle": (lambda: archive(items(), prefix=EVIL), ("file-magic",)),
    "suffix-bytes": (lambda: archive(items(), suffix=EVIL), ("zip-suffix",)),
    "comment": (lambda: archive(items(), comment=EVIL), ("zip-suffix",)),
    "second-archive-behind": (
        lambda: archive(items()) + archive(torch_items(EVIL)),
        ("zip-directory", "zip-prefix", "zip-gap"),
    ),
    "archive-inside-a-gap": (lambda: changed(0, gap=archive(torch_items(EVIL))), ("zip-gap",)),
    "bytes-before-directory": (lambda: archive(items(), before_directory=bytes(16)), ("zip-gap",)),
    "bytes-after-directory": (lambda: archive(items(), after_directory=bytes(16)), ("zip-directory",)),
    "count-too-small": (lambda: archive(items(), count=2), ("zip-directory",)),
    "count-too-large": (lambda: archive(items(), count=9), ("zip-directory",)),
    "count-absurd": (lambda: archive(items(), count=65000), ("zip-directory",)),
    "offsets-shifted": (lambda: archive(items(), shift=7), ("zip-directory", "zip-prefix")),
    "deflated-method": (lambda: changed(0, method=8), ("zip-method",)),
    "unknown-method": (lambda: changed(0, method=99), ("zip-method",)),
    "encrypted": (lambda: changed(0, flags=1), ("zip-encrypted",)),
    "strong-encryption": (lambda: changed(0, flags=0x41), ("zip-encrypted",)),
    "masked-directory": (lambda: changed(0, flags=0x2000), ("zip-encrypted",)),
    "odd-flags": (lambda: changed(0, flags=0x20), ("zip-flags",)),
    "local-name-differs": (lambda: changed(0, local={"name": b"m/evil.pkl"}), ("zip-local-header",)),
    "local-flags-differ": (lambda: changed(0, local={"flags": 1}), ("zip-local-header",)),
    "local-method-differs": (lambda: changed(0, local={"method": 8}), ("zip-local-header",)),
    "local-crc-differs": (lambda: changed(0, local={"crc": 1}), ("zip-local-header",)),
    "local-size-differs": (lambda: changed(0, local={"size": 1, "packed": 1}), ("zip-local-header",)),
    "size-below-data": (lambda: changed(2, size=8, packed=8), ("zip-gap", "storage-size")),
    "size-beyond-data": (lambda: changed(2, size=64, packed=64), ("zip-gap",)),
    "packed-not-unpacked": (lambda: changed(2, size=1 << 30), ("zip-ratio",)),
    "wrong-crc-of-pickle": (lambda: changed(0, crc=1), ("zip-crc",)),
    "overlapping-entries": (lambda: changed(2, header=0), ("zip-prefix", "zip-gap")),
    "offset-beyond-the-file": (lambda: changed(2, header=1 << 30), ("zip-local-header", "zip-gap")),
    "zip64-announced": (lambda: changed(2, size=0xFFFFFFFF, packed=0xFFFFFFFF), ("zip-directory",)),
    "torn-extra": (lambda: changed(2, extra=b"\x01\x00"), ("zip-directory",)),
    "extra-too-long": (lambda: changed(2, extra=b"\x01\x00\xff\x00"), ("zip-directory",)),
    "unicode-path-extra": (lambda: changed(2, extra=b"up\x05\x00\x01abcd"), ("zip-name",)),
    "entry-comment": (lambda: changed(2, comment=b"hello"), ("zip-directory",)),
    "duplicate-pickle": (lambda: archive([*items(), Item("m/data.pkl", EVIL)]), ("zip-duplicate",)),
    "pickle-in-another-case": (lambda: archive([*items(), Item("m/DATA.pkl", EVIL)]), ("zip-name",)),
    "two-folders": (lambda: archive([*items(), Item("n/data.pkl", EVIL)]), ("zip-folder",)),
    "no-folder": (lambda: archive([Item("data.pkl", checkpoint())]), ("zip-name",)),
    "absolute-name": (lambda: archive([*items(), Item("/etc/passwd", b"x")]), ("zip-name",)),
    "parent-name": (lambda: archive(torch_items(checkpoint(), folder="..")), ("zip-folder",)),
    "path-traversal": (lambda: archive([*items(), Item("m/../../x", b"x")]), ("zip-name",)),
    "backslash-name": (lambda: archive([*items(), Item("m\\data.pkl", EVIL)]), ("zip-name",)),
    "drive-name": (lambda: archive(torch_items(checkpoint(), folder="C:")), ("zip-folder",)),
    "name-with-nul": (lambda: archive([*items(), Item("m/data.pkl\0.txt", EVIL)]), ("zip-name",)),
    "name-not-ascii": (lambda: archive([*items(), Item("m/data/\u0660", FLOATS)]), ("zip-name",)),
    "extra-file": (lambda: archive([*items(), Item("m/evil.py", TOUCH.encode())]), ("zip-name",)),
    "second-pickle": (lambda: archive([*items(), Item("m/data/data.pkl", EVIL)]), ("zip-name",)),
    "unused-storage": (lambda: torch_archive(checkpoint(), **{"0": FLOATS, "7": EVIL}), ("zip-extra",)),
    "missing-storage": (lambda: archive([items()[0]]), ("zip-missing",)),
    "missing-pickle": (lambda: archive(items()[1:]), ("zip-missing",)),
    "torchscript": (
        lambda: archive([*items(), Item("m/code/__torch__.py", b"x"), Item("m/constants.pkl", EVIL)]),
        ("torchscript",),
    ),
    "big-endian": (lambda: changed(1, data=b"big"), ("zip-byteorder",)),
    "odd-version": (lambda: changed(3, data=b"999\n"), ("zip-version",)),
    "empty-archive": (lambda: b"PK\x05\x06" + bytes(18), ("file-magic", "zip-count")),
    "only-a-local-header": (lambda: archive(items())[:200], ("zip-end",)),
    "cut-in-the-data": (lambda: archive(items())[:-40], ("zip-end", "zip-suffix")),
}
for _name, (_build, _rules) in ZIPS.items():
    add(f"zip-{_name}", "zip", _build, *_rules)


@hostile("zip", "zip-end")
def _zip64_record_disagrees() -> bytes:
    plain = archive(items())
    end, total = plain[-22:], len(items())
    size, start = struct.unpack("<II", end[12:20])
    record = struct.pack("<4sQHHIIQQQQ", b"PK\x06\x06", 44, 45, 45, 0, 0, total, total, size, start + 1)
    locator = struct.pack("<4sIQI", b"PK\x06\x07", 0, len(plain) - 22, 1)
    return plain[:-22] + record + locator + end


@hostile("zip", "pickle-truncated", "pickle-opcode", "zip-count", "zip-missing", "zip-name")
def _many_entries() -> bytes:
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w") as file:
        for i in range(2_000):
            file.writestr(f"m/{i}", b"")
    return out.getvalue()


# --- other containers -------------------------------------------------------------------------------------------


@hostile("container", "file-magic")
def _seven_zip_nullifai() -> bytes:
    return (
        b"7z\xbc\xaf\x27\x1c\x00\x04"
        + bytes(24)
        + lzma.compress(EVIL, format=lzma.FORMAT_RAW, filters=[{"id": lzma.FILTER_LZMA2}])
    )


@hostile("container", "file-magic")
def _gzip() -> bytes:
    return b"\x1f\x8b\x08\x00" + bytes(6) + zlib.compress(EVIL)


@hostile("container", "file-magic")
def _bare_pickle() -> bytes:
    return EVIL


@hostile("container", "file-magic")
def _bare_pickle_of_protocol_0() -> bytes:
    return f"cos\nsystem\n(S'{SHELL}'\ntR.".encode()


@hostile("container", "file-magic")
def _joblib() -> bytes:
    return pickle.dumps({"a": exec}, protocol=5)


@hostile("container", "file-magic")
def _numpy_object_array() -> bytes:
    header = b"{'descr': '|O', 'fortran_order': False, 'shape': (1,), }".ljust(117) + b"\n"
    return b"\x93NUMPY\x01\x00" + struct.pack("<H", len(header)) + header + EVIL


@hostile("container", "file-magic", suffix=".safetensors")
def _html_page() -> bytes:
    return b"<!doctype html><script>alert(1)</script>"
