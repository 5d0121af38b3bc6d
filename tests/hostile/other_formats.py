"""Torch's formats of before 1.6, safetensors, and indexes of shards."""

import io
import json
import struct
import tarfile
from collections.abc import Callable

from hostile.pickle_parts import (
    call,
    checkpoint,
    imported,
    mapping,
    number,
    tensor,
    tuple_of,
    whole,
)  # fmt: skip
from hostile.registry import EVIL, LEGACY_PROTOCOL, MAGIC, SHELL, TOUCH, add, string
from hostile.zip_parts import FLOATS

# --- the old formats --------------------------------------------------------------------------------------------


def bare(main: bytes, magic: bytes | None = None, system: bytes | None = None, keys: bytes = b"](" + string("0") + b"e",
         data: bytes = struct.pack("<q", 4) + FLOATS) -> bytes:  # fmt: skip
    """Return a file in torch's format of before 1.6."""
    preface = whole(number(MAGIC)) if magic is None else magic
    facts = mapping(little_endian=b"\x88") if system is None else system
    return preface + whole(number(LEGACY_PROTOCOL)) + whole(facts) + main + whole(keys) + data


OLD: dict[str, tuple[Callable[[], bytes], tuple[str, ...]]] = {
    "call": (lambda: bare(whole(call(imported("os", "system"), string(SHELL)))), ("pickle-import",)),
    "call-in-system-facts": (lambda: bare(checkpoint(), system=call(imported("os", "system"), string(SHELL))), ("pickle-import",)),
    "call-in-keys": (lambda: bare(checkpoint(), keys=call(imported("os", "system"), string(SHELL))), ("pickle-import",)),
    "magic-by-a-call": (lambda: bare(checkpoint(), magic=whole(call(imported("builtins", "eval"), string(hex(MAGIC))))), ("file-magic",)),
    "other-magic": (lambda: bare(checkpoint(), magic=whole(number(MAGIC + 1))), ("legacy-magic",)),
    "big-endian": (lambda: bare(checkpoint(), system=mapping(little_endian=b"\x89")), ("legacy-byteorder",)),
    "keys-missing": (lambda: bare(checkpoint(), keys=b"]"), ("legacy-keys",)),
    "keys-unknown": (lambda: bare(checkpoint(), keys=b"](" + string("0") + string("1") + b"e"), ("legacy-keys",)),
    "size-differs": (lambda: bare(checkpoint(), data=struct.pack("<q", 1 << 40) + FLOATS), ("storage-size",)),
    "cut": (lambda: bare(checkpoint())[:-4], ("file-size",)),
    "trailing-pickle": (lambda: bare(checkpoint()) + EVIL, ("legacy-trailing",)),
    "view-beyond": (lambda: bare(whole(mapping(model_state_dict=mapping(x=tensor(
        tuple_of(string("storage"), imported("torch", "FloatStorage"), string("0"), string("cpu"), number(4),
                 tuple_of(string("9"), number(2), number(100))) + b"Q"))))), ("pickle-persistent-id",)),
    "module-with-source": (lambda: bare(whole(tuple_of(string("module"), imported("torch", "Tensor"), string("a"), string("b")) + b"Q")),
                           ("pickle-persistent-id",)),
}  # fmt: skip
for _name, (_build, _rules) in OLD.items():
    add(f"old-{_name}", "old format", _build, *_rules)


def tar(**members: bytes) -> bytes:
    """Return a file in torch's format of before 0.2 with the members given in place of the plain ones."""
    plain = {
        "sys_info": whole(mapping(little_endian=b"\x88")), "pickle": whole(mapping(model_state_dict=b"}")),
        "tensors": whole(number(0)), "storages": whole(number(0)) + whole(b"]"),
    } | members  # fmt: skip
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w:") as file:
        for name, data in plain.items():
            member = tarfile.TarInfo(name)
            member.size = len(data)
            file.addfile(member, io.BytesIO(data))
    return out.getvalue()


def tar_link() -> bytes:
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w:") as file:
        for name in ("sys_info", "pickle", "tensors", "storages"):
            member = tarfile.TarInfo(name)
            member.type, member.linkname = tarfile.SYMTYPE, "/etc/passwd"
            file.addfile(member)
    return out.getvalue()


TARS: dict[str, tuple[Callable[[], bytes], tuple[str, ...]]] = {
    "call": (lambda: tar(pickle=EVIL), ("pickle-import",)),
    "call-in-storages": (lambda: tar(storages=EVIL), ("pickle-import",)),
    "call-in-tensors": (lambda: tar(tensors=EVIL), ("pickle-import",)),
    "call-in-system-facts": (lambda: tar(sys_info=EVIL), ("pickle-import",)),
    "extra-member": (lambda: tar(**{"../evil": EVIL}), ("tar-member",)),
    "absolute-member": (lambda: tar(**{"/tmp/evil": EVIL}), ("tar-member",)),
    "links": (tar_link, ("tar-member",)),
    "million-storages": (lambda: tar(storages=whole(number(10**9))), ("tar-layout", "pickle-truncated", "pickle-opcode")),
    "storage-beyond": (lambda: tar(storages=whole(number(1)) + whole(tuple_of(number(1), string("cpu"), imported("torch", "FloatStorage")))
                                   + struct.pack("<q", 1 << 40) + whole(b"]")), ("storage-size",)),
    "cut": (lambda: tar()[:2000], ("tar-layout", "tar-member")),
    "unknown-object": (lambda: tar(pickle=whole(number(7) + b"Q")), ("pickle-persistent-id",)),
}  # fmt: skip
for _name, (_build, _rules) in TARS.items():
    add(f"tar-{_name}", "tar", _build, *_rules)


# --- safetensors ------------------------------------------------------------------------------------------------


def safetensors(header: object, data: bytes = FLOATS, length: int | None = None) -> bytes:
    """Return a file with that header, which is JSON text or what becomes it."""
    raw = header if isinstance(header, bytes) else json.dumps(header).encode()
    return struct.pack("<Q", len(raw) if length is None else length) + raw + data


def entry(dtype: object = "F32", shape: object = (4,), offsets: object = (0, 16), **more: object) -> dict[str, object]:
    return {"dtype": dtype, "shape": shape, "data_offsets": offsets, **more}


SAFE: dict[str, tuple[Callable[[], bytes], tuple[str, ...]]] = {
    "length-beyond": (lambda: safetensors({"x": entry()}, length=1 << 20), ("safetensors-header", "file-magic")),
    "length-of-exabytes": (lambda: safetensors({"x": entry()}, length=1 << 62), ("safetensors-header", "file-magic")),
    "huge-header": (lambda: safetensors(b'{"x":' + b" " * (17 << 20) + b"1}"), ("safetensors-header",)),
    "deep-json": (lambda: safetensors(b'{"x":' + b"[" * 200_000 + b"]" * 200_000 + b"}"), ("safetensors-json",)),
    "duplicate-key": (lambda: safetensors(b'{"x":{"dtype":"F32","shape":[4],"data_offsets":[0,16]},"x":{}}'), ("safetensors-json",)),
    "duplicate-key-within": (lambda: safetensors(b'{"x":{"dtype":"F32","dtype":"F64","shape":[4],"data_offsets":[0,16]}}'),
                             ("safetensors-json",)),
    "nan-in-shape": (lambda: safetensors(b'{"x":{"dtype":"F32","shape":[NaN],"data_offsets":[0,16]}}'), ("safetensors-json",)),
    "float-in-shape": (lambda: safetensors(b'{"x":{"dtype":"F32","shape":[4.0],"data_offsets":[0,16]}}'), ("safetensors-json",)),
    "long-number": (lambda: safetensors(b'{"x":{"dtype":"F32","shape":[' + b"9" * 10_000 + b'],"data_offsets":[0,16]}}'),
                    ("safetensors-json",)),
    "negative-shape": (lambda: safetensors({"x": entry(shape=[-4])}), ("safetensors-entry",)),
    "overflowing-shape": (lambda: safetensors({"x": entry(shape=[1 << 40, 1 << 40])}), ("tensor-shape",)),
    "unknown-dtype": (lambda: safetensors({"x": entry("F33")}), ("safetensors-dtype",)),
    "dtype-is-a-list": (lambda: safetensors({"x": entry(["F32"])}), ("safetensors-dtype",)),
    "size-differs": (lambda: safetensors({"x": entry(shape=[5])}), ("safetensors-size",)),
    "hole": (lambda: safetensors({"x": entry(shape=[2], offsets=[8, 16])}), ("safetensors-holes",)),
    "overlap-and-hole": (
        lambda: safetensors({"x": entry(shape=[2], offsets=[0, 8]), "y": entry(shape=[2], offsets=[0, 8])}),
        ("safetensors-holes",),
    ),
    "overlap": (lambda: safetensors({"x": entry(), "y": entry()}), ("safetensors-holes",)),
    "trailing-bytes": (lambda: safetensors({"x": entry()}, FLOATS + EVIL), ("safetensors-holes",)),
    "cut": (lambda: safetensors({"x": entry()}, FLOATS[:8]), ("safetensors-holes",)),
    "extra-key": (lambda: safetensors({"x": entry(code=TOUCH)}), ("safetensors-entry",)),
    "entry-is-a-list": (lambda: safetensors({"x": []}), ("safetensors-entry",)),
    "surrogate-name": (lambda: safetensors(b'{"\\ud800":{"dtype":"F32","shape":[4],"data_offsets":[0,16]}}'), ("safetensors-entry",)),
    "long-name": (lambda: safetensors({"x" * 100_000: entry()}), ("safetensors-entry",)),
    "metadata-is-a-list": (lambda: safetensors({"__metadata__": [], "x": entry()}), ("safetensors-entry",)),
    "no-utf8": (lambda: safetensors(b'{"\xff":1}'), ("safetensors-json",)),
    "too-many-tensors": (lambda: safetensors({f"{i}": 0 for i in range(210_000)}), ("safetensors-count",)),
}  # fmt: skip
for _name, (_build, _rules) in SAFE.items():
    add(f"safetensors-{_name}", "safetensors", _build, *_rules, suffix=".safetensors")

INDEXES = {
    "escape": {"weight_map": {"x": "../../etc/passwd.safetensors"}},
    "absolute": {"weight_map": {"x": "/etc/passwd.safetensors"}},
    "pickle-shard": {"weight_map": {"x": "shard.pt"}},
    "empty": {"weight_map": {}},
    "no-map": {"metadata": {}},
    "number": {"weight_map": {"x": 1}},
}
for _name, _index in INDEXES.items():
    add(f"index-{_name}", "shards", lambda i=_index: json.dumps(i).encode(), "shard-index", suffix=".json")
