"""Files that must never run, never fill the memory and never load: one builder each, made anew in every test run.

Every file that could execute something would create ``canary`` in the folder that ``F5LAB_CANARY`` names.
Classes follow the advisories of torch, picklescan and fickling, and the bombs that load under ``weights_only`` today.
"""

import io
import json
import lzma
import os
import pickle
import struct
import tarfile
import zipfile
import zlib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from hostile.pickle_parts import (
    PROTO,
    STOP,
    call,
    checkpoint,
    imported,
    mapping,
    number,
    storage,
    tensor,
    text,
    tuple_of,
    whole,
)  # fmt: skip
from hostile.zip_parts import FLOATS, Item, archive, torch_archive, torch_items

TOUCH = "import os, pathlib; pathlib.Path(os.environ['F5LAB_CANARY'], 'canary').touch()"
SHELL = 'touch "$F5LAB_CANARY/canary"'
MAGIC, LEGACY_PROTOCOL = 0x1950A86A20F9469CFC6C, 1001


@dataclass(frozen=True)
class Hostile:
    """One file: what it tries, the rules by one of which it must be refused, and whether plain unpickling runs it."""

    name: str
    group: str
    build: Callable[[], bytes]
    rules: tuple[str, ...]
    suffix: str = ".pt"


CORPUS: list[Hostile] = []


def hostile(group: str, *rules: str, suffix: str = ".pt") -> Callable[[Callable[[], bytes]], Callable[[], bytes]]:
    """Add a builder to the corpus under its function's name."""

    def add(build: Callable[[], bytes]) -> Callable[[], bytes]:
        CORPUS.append(Hostile(build.__name__.strip("_"), group, build, rules, suffix))
        return build

    return add


def add(name: str, group: str, build: Callable[[], bytes], *rules: str, suffix: str = ".pt") -> None:
    """Add one member of a family."""
    CORPUS.append(Hostile(name, group, build, rules, suffix))


def payload(value: bytes) -> bytes:
    """A torch file whose pickle holds a value beside weights."""
    return torch_archive(checkpoint(payload=value))


def alone(pickle_bytes: bytes) -> bytes:
    """A torch file with that pickle and no storage."""
    return archive([Item("m/data.pkl", pickle_bytes), Item("m/version", b"3\n")])


def string(value: str) -> bytes:
    return text(value)


# --- imports and calls: what REDUCE can reach -------------------------------------------------------------------

CALLS: dict[str, tuple[str, str, tuple[bytes, ...]]] = {
    "exec": ("builtins", "exec", (string(TOUCH),)),
    "eval-py2-name": ("__builtin__", "eval", (string(f"exec({TOUCH!r})"),)),
    "os-system": ("os", "system", (string(SHELL),)),
    "posix-system": ("posix", "system", (string(SHELL),)),
    "subprocess-check-output": (
        "subprocess",
        "check_output",
        (b"](" + string("sh") + string("-c") + string(SHELL) + b"e",),
    ),
    "subprocess-getoutput": ("subprocess", "getoutput", (string(SHELL),)),
    "pty-spawn": ("pty", "spawn", (b"](" + string("sh") + string("-c") + string(SHELL) + b"e",)),
    "runpy-run-code": ("runpy", "_run_code", (string(TOUCH), b"}")),
    "timeit": ("timeit", "timeit", (string("pass"), string(TOUCH))),
    "cprofile-run": ("cProfile", "run", (string(TOUCH),)),
    "pdb-run": ("pdb", "run", (string(TOUCH),)),
    "code-interpreter": ("code", "interact", ()),
    "pip-main": ("pip._internal", "main", (b"](" + string("--version") + b"e",)),
    "importlib-import": ("importlib", "import_module", (string("antigravity"),)),
    "webbrowser-open": ("webbrowser", "open", (string("http://localhost:9/"),)),
    "urllib-open": ("urllib.request", "urlopen", (string("http://localhost:9/"),)),
    "socket-connect": ("socket", "create_connection", (tuple_of(string("localhost"), number(9)),)),
    "ssl-exfiltration": ("ssl", "get_server_certificate", (tuple_of(string("localhost"), number(9)),)),
    "open-file": ("builtins", "open", (string("/etc/passwd"),)),
    "io-fileio": ("_io", "FileIO", (string("/etc/passwd"),)),
    "logging-filehandler": ("logging", "FileHandler", (string("/tmp/x"),)),
    "shutil-rmtree": ("shutil", "rmtree", (string("/nonexistent"),)),
    "ctypes-cdll": ("ctypes", "CDLL", (string("libc.so.6"),)),
    "pickle-loads": (
        "pickle",
        "loads",
        (call(imported("_codecs", "encode"), string("cos\nsystem\n."), string("latin1")),),
    ),
    "torch-load": ("torch.serialization", "load", (string("other.pt"),)),
    "torch-hub": ("torch.hub", "load", (string("a/b"), string("c"))),
    "torch-inductor": (
        "torch._inductor.codecache",
        "compile_file",
        (string(""), string(""), b"]" + string("sh") + b"a"),
    ),
    "torch-getattr-chain": ("torch.utils._config_module", "ConfigModule.load_config", (string(""),)),
    "torch-execwrapper": ("torch.jit.unsupported_tensor_ops", "execWrapper", (string(TOUCH), b"}", b"}")),
    "numpy-runstring": ("numpy.testing._private.utils", "runstring", (string(TOUCH), b"}")),
    "numpy-f2py-eval": ("numpy.f2py.crackfortran", "myeval", (string(f"exec({TOUCH!r})"),)),
    "cloudpickle-code": ("cloudpickle.cloudpickle", "_builtin_type", (string("CodeType"),)),
    "types-codetype": ("types", "CodeType", ()),
    "operator-attrgetter": ("operator", "attrgetter", (string("system"),)),
    "functools-partial": ("functools", "partial", (imported("os", "system"), string(SHELL))),
    "pkgutil-resolve": ("pkgutil", "resolve_name", (string("os:system"),)),
    "pydoc-locate": ("pydoc", "locate", (string("os"),)),
    "uuid-getstdout": ("uuid", "_get_command_stdout", (string("sh"),)),
    "doctest-debug": ("doctest", "debug_script", (string(TOUCH),)),
    "lib2to3-loads": ("lib2to3.pgen2.grammar", "Grammar.loads", ()),
    "idlelib-fetch": ("idlelib.autocomplete", "AutoComplete.get_entity", (string("os"),)),
    "ensurepip-run": ("ensurepip", "_run_pip", (b"]",)),
    "distutils-write": ("distutils.file_util", "write_file", (string("/tmp/x"), b"]")),
    "bdb-run": ("bdb", "Bdb", ()),
    "asyncio-subprocess": ("asyncio.unix_events", "_UnixSubprocessTransport._start", ()),
    "getattr": ("builtins", "getattr", (imported("torch", "Tensor"), string("__class__"))),
    "homoglyph-module": ("torch._utils\u200b", "_rebuild_tensor_v2", ()),
    "near-miss-name": ("torch._utils", "_rebuild_tensor_v22", ()),
    "allowed-name-dotted": ("torch", "Tensor.__init_subclass__", ()),
    "storage-from-elsewhere": ("os", "FloatStorage", ()),
}
for _name, (_module, _attribute, _arguments) in CALLS.items():
    add(f"call-{_name}", "import", lambda m=_module, a=_attribute, x=_arguments: payload(call(imported(m, a), *x)),
        "pickle-import")  # fmt: skip


@hostile("import", "pickle-import")
def _import_without_call() -> bytes:
    return payload(imported("os", "system"))


@hostile("obfuscation", "pickle-opcode")
def _stack_global() -> bytes:
    return payload(string("os") + string("system") + b"\x93" + tuple_of(string(SHELL)) + b"R")


@hostile("obfuscation", "pickle-opcode")
def _stack_global_from_memo() -> bytes:
    first = string("os") + b"q\xf0" + b"0" + string("system") + b"q\xf1" + b"0"
    return torch_archive(PROTO + first + mapping(a=b"h\xf0h\xf1\x93" + tuple_of(string(SHELL)) + b"R") + STOP)


@hostile("obfuscation", "pickle-opcode")
def _inst() -> bytes:
    return payload(b"(" + string(SHELL) + b"ios\nsystem\n")


@hostile("obfuscation", "pickle-opcode", "pickle-import")
def _obj() -> bytes:
    return payload(b"(" + imported("os", "system") + string(SHELL) + b"o")


@hostile("obfuscation", "pickle-opcode", "pickle-import")
def _newobj() -> bytes:
    return payload(imported("subprocess", "Popen") + tuple_of(b"](" + string("sh") + b"e") + b"\x81")


@hostile("obfuscation", "pickle-opcode")
def _newobj_of_an_allowed_class() -> bytes:
    return payload(imported("torch", "Tensor") + b")\x81")


@hostile("obfuscation", "pickle-opcode")
def _newobj_ex() -> bytes:
    return payload(string("x") + b")}\x92")


@hostile("obfuscation", "pickle-opcode")
def _protocol_0() -> bytes:
    return torch_archive(f"cbuiltins\nexec\n(V{TOUCH}\ntR.".encode())


@hostile("obfuscation", "pickle-opcode")
def _protocol_4() -> bytes:
    class Run:
        def __reduce__(self) -> tuple:
            return exec, (TOUCH,)

    return torch_archive(pickle.dumps({"model_state_dict": Run()}, protocol=4))


@hostile("obfuscation", "pickle-opcode")
def _second_proto() -> bytes:
    return torch_archive(PROTO + b"\x80\x04" + b"}" + STOP)


@hostile("obfuscation", "pickle-memo")
def _memo_overwritten() -> bytes:
    return payload(string("collections") + b"q\x01" + string("os") + b"q\x01" + b"0")


@hostile("obfuscation", "pickle-memo")
def _memo_read_before_written() -> bytes:
    return payload(b"h\x63")


@hostile("obfuscation", "pickle-import")
def _import_with_a_carriage_return() -> bytes:
    return payload(b"cos\r\nsystem\r\n" + tuple_of(string(SHELL)) + b"R")


@hostile("obfuscation", "pickle-import")
def _import_name_without_end() -> bytes:
    return payload(b"c" + b"a" * 100_000)


for _code, _number in (("ext1", b"\x82\x01"), ("ext2", b"\x83\x01\x00"), ("ext4", b"\x84\x01\x00\x00\x00")):
    add(f"extension-registry-{_code}", "obfuscation", lambda n=_number: payload(n + b")R"), "pickle-opcode")

for _opcode, _what in ((b"0", "pop"), (b"2", "dup"), (b"1", "pop-mark"), (b"\x8e\0\0\0\0\0\0\0\0", "binbytes8"),
                       (b"\x95\0\0\0\0\0\0\0\0", "frame"), (b"\x94", "memoize"), (b"\x97", "next-buffer"),
                       (b"\x8f", "empty-set"), (b"I1\n", "int"), (b"S'a'\n", "string"), (b"\xff", "unknown")):  # fmt: skip
    add(f"opcode-{_what}", "obfuscation", lambda o=_opcode: payload(string("x") + o), "pickle-opcode")


@hostile("call", "pickle-call")
def _call_of_a_call() -> bytes:
    return payload(call(call(imported("collections", "OrderedDict")), string("x")))


@hostile("call", "pickle-call")
def _rebuild_from_type_of_another_function() -> bytes:
    inner = tuple_of(string(TOUCH))
    return payload(
        call(imported("torch._tensor", "_rebuild_from_type_v2"), imported("collections", "OrderedDict"),
             imported("torch", "Tensor"), inner, b"N")
    )  # fmt: skip


@hostile("call", "pickle-call")
def _builder_without_storage() -> bytes:
    return payload(call(imported("torch._utils", "_rebuild_tensor_v2"), *[b"N"] * 6))


@hostile("call", "pickle-call")
def _builder_as_a_value() -> bytes:
    return payload(imported("torch._utils", "_rebuild_tensor_v2"))


@hostile("call", "pickle-call")
def _class_as_a_value() -> bytes:
    return payload(imported("torch", "Tensor"))


@hostile("call", "pickle-call")
def _backward_hooks() -> bytes:
    hooks = call(imported("collections", "OrderedDict")) + string("k") + number(1) + b"s"
    one = tuple_of(number(4)), tuple_of(number(1))
    return payload(call(imported("torch._utils", "_rebuild_tensor_v2"), storage(), number(0), *one, b"\x89", hooks))


@hostile("call", "pickle-call")
def _codec_by_name() -> bytes:
    return payload(call(imported("_codecs", "encode"), string("x"), string("zlib")))


@hostile("call", "tensor-kind")
def _negative_bit() -> bytes:
    return payload(tensor(extra=mapping(neg=b"\x88")))


@hostile("call", "pickle-build")
def _build_a_state_that_is_no_dict() -> bytes:
    return payload(call(imported("collections", "OrderedDict")) + tuple_of(b"}", b"}") + b"b")


@hostile("call", "pickle-stack")
def _build_on_a_tensor() -> bytes:
    return payload(tensor() + mapping(x=number(1)) + b"b")


# --- persistent ids ---------------------------------------------------------------------------------------------

IDS = {
    "module": tuple_of(string("module"), imported("torch", "Tensor"), string("a.py"), string("source")),
    "text": string("storage"), "empty": b")", "wrong-type": tuple_of(string("storage"), *[string("0")] * 4),
    "too-long": tuple_of(string("storage"), imported("torch", "FloatStorage"), *[string("0")] * 5),
    "negative-size": tuple_of(string("storage"), imported("torch", "FloatStorage"), string("0"), string("cpu"), number(-1)),
    "meta": tuple_of(string("storage"), imported("torch", "FloatStorage"), string("0"), string("meta"), number(4)),
}  # fmt: skip
for _name, _id in IDS.items():
    add(
        f"persistent-id-{_name}",
        "persistent id",
        lambda i=_id: payload(i + b"Q"),
        "pickle-persistent-id",
        "storage-type",
    )


@hostile("persistent id", "pickle-opcode")
def _persistent_id_as_a_line() -> bytes:
    return payload(b"Pstorage\n")


@hostile("persistent id", "storage-type")
def _one_storage_with_two_types() -> bytes:
    return payload(tensor(storage(kind="IntStorage")))


@hostile("persistent id", "tensor-kind")
def _storage_without_a_tensor() -> bytes:
    return payload(storage())


# --- bombs ------------------------------------------------------------------------------------------------------


@hostile("bomb", "zip-method")
def _deflated_zeros() -> bytes:
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w", zipfile.ZIP_DEFLATED) as file:
        file.writestr(
            "m/data.pkl", whole(mapping(model_state_dict=mapping(x=tensor(storage(count=16 << 20), shape=(16 << 20,)))))
        )
        file.writestr("m/version", b"3\n")
        with file.open("m/data/0", "w") as entry:
            for _ in range(64):
                entry.write(bytes(1 << 20))
    return out.getvalue()


@hostile("bomb", "tensor-expanded")
def _stride_zero() -> bytes:
    return payload(tensor(shape=(1_000_000, 1_000_000), stride=(0, 0)))


@hostile("bomb", "pickle-expansion")
def _shared_references() -> bytes:
    out = b"](K\x01K\x01eq\x00"
    for level in range(1, 40):
        out += b"](h" + bytes([level - 1]) + b"h" + bytes([level - 1]) + b"eq" + bytes([level])
    return alone(PROTO + b"(" + out + b"t" + STOP)


@hostile("bomb", "pickle-expansion")
def _shared_wide() -> bytes:
    out = b"](" + b"K\x01" * 250 + b"eq\x00"
    for level in range(1, 6):
        out += b"](" + (b"h" + bytes([level - 1])) * 250 + b"eq" + bytes([level])
    return alone(PROTO + b"(" + out + b"t" + STOP)


@hostile("bomb", "pickle-depth")
def _deep_lists() -> bytes:
    return alone(PROTO + b"]" * 50_000 + b"a" * 49_999 + STOP)


@hostile("bomb", "pickle-depth")
def _deep_tuples() -> bytes:
    return alone(PROTO + b")" + b"\x85" * 300_000 + STOP)


@hostile("bomb", "pickle-depth")
def _many_marks() -> bytes:
    return alone(PROTO + b"(" * 100_000)


@hostile("bomb", "pickle-cycle")
def _list_in_itself() -> bytes:
    return payload(b"]q\xf0h\xf0a")


@hostile("bomb", "pickle-cycle")
def _dict_in_itself() -> bytes:
    return payload(b"}q\xf0" + string("a") + b"h\xf0s")


@hostile("bomb", "pickle-nodes")
def _millions_of_values() -> bytes:
    return alone(PROTO + b"](" + b"N" * 1_050_000 + b"e" + STOP)


@hostile("bomb", "pickle-opcodes")
def _millions_of_opcodes() -> bytes:
    return alone(PROTO + b"]" + b"Na" * 2_100_000 + STOP)


@hostile("bomb", "pickle-nodes")
def _millions_of_dicts() -> bytes:
    return alone(PROTO + b"](" + b"}" * 1_000_000 + b"e" + STOP)


@hostile("bomb", "pickle-size")
def _long_pickle() -> bytes:
    return alone(PROTO + b"]" + b"Na" * (17 << 20) + STOP)


@hostile("bomb", "pickle-string")
def _long_text() -> bytes:
    return payload(string("a" * (2 << 20)))


@hostile("bomb", "pickle-truncated", "pickle-string")
def _text_of_4_gb() -> bytes:
    return payload(b"X\xff\xff\xff\xff")


@hostile("bomb", "pickle-number", "pickle-opcode")
def _huge_number() -> bytes:
    return payload(b"\x8a\xff" + b"\x7f" * 255)


@hostile("bomb", "pickle-opcode")
def _long4() -> bytes:
    return payload(b"\x8b\xff\xff\xff\x7f")


@hostile("bomb", "pickle-memo", "pickle-stack")
def _memo_index_of_4_billion() -> bytes:
    return alone(PROTO + b"r\xff\xff\xff\xff" + STOP)


@hostile("bomb", "storage-type", "storage-size", "pickle-persistent-id")
def _storage_of_exabytes() -> bytes:
    return payload(tensor(storage("1", 1 << 60), shape=(1 << 60,)))


@hostile("bomb", "storage-size")
def _storage_larger_than_its_entry() -> bytes:
    return torch_archive(whole(mapping(model_state_dict=mapping(x=tensor(storage(count=1000), shape=(1000,))))))


# --- tensors ----------------------------------------------------------------------------------------------------

TENSORS = {
    "beyond": (tensor(shape=(5,)), "tensor-bounds"),
    "offset-beyond": (tensor(offset=1), "tensor-bounds"),
    "offset-negative": (tensor(offset=-1), "tensor-shape"),
    "shape-negative": (tensor(shape=(-1,)), "tensor-shape"),
    "stride-negative": (tensor(stride=(-1,)), "tensor-shape"),
    "stride-huge": (tensor(shape=(2,), stride=(1 << 61,)), "tensor-bounds"),
    "product-overflow": (tensor(shape=(1 << 32, 1 << 32), stride=(0, 0)), "tensor-expanded"),
    "ranks-differ": (tensor(shape=(2, 2)), "tensor-shape"),
    "too-many-dimensions": (tensor(shape=(1,) * 40, stride=(1,) * 40), "tensor-shape"),
}
for _name, (_value, _rule) in TENSORS.items():
    add(f"tensor-{_name}", "tensor", lambda v=_value: payload(v), _rule)


@hostile("tensor", "tensor-bounds")
def _reinterpreted_as_wider() -> bytes:
    """CVE-2026-24747's class: bytes of a small storage taken for larger elements."""
    one = tuple_of(number(4)), tuple_of(number(1))
    hooks = call(imported("collections", "OrderedDict"))
    stored = (
        tuple_of(string("storage"), imported("torch.storage", "UntypedStorage"), string("1"), string("cpu"), number(16))
        + b"Q"
    )
    value = call(
        imported("torch._utils", "_rebuild_tensor_v3"),
        stored,
        number(0),
        *one,
        b"\x89",
        hooks,
        imported("torch", "float64"),
    )
    return torch_archive(checkpoint(payload=value), **{"0": FLOATS, "1": FLOATS})


@hostile("tensor", "pickle-import")
def _sparse_tensor() -> bytes:
    return payload(call(imported("torch._utils", "_rebuild_sparse_tensor"), b"N"))


@hostile("tensor", "pickle-import")
def _quantised_tensor() -> bytes:
    return payload(call(imported("torch._utils", "_rebuild_qtensor"), *[b"N"] * 7))


# --- keys and text ----------------------------------------------------------------------------------------------

KEYS = {"nan": b"G" + struct.pack(">d", float("nan")), "tuple": b")", "none": b"N", "bool": b"\x88", "list": b"]",
        "huge-number": number(1 << 100), "tensor": tensor()}  # fmt: skip
for _name, _key in KEYS.items():
    add(f"key-{_name}", "key", lambda k=_key: payload(b"}" + k + number(1) + b"s"), "pickle-key")


@hostile("key", "pickle-key")
def _colliding_numbers_in_a_set() -> bytes:
    prime = (1 << 61) - 1
    numbers = b"".join(number(prime * i) for i in range(1, 50_000))
    return alone(whole(call(imported("builtins", "set"), b"](" + numbers + b"e")))


@hostile("key", "pickle-key")
def _key_twice() -> bytes:
    return payload(b"}(" + string("a") + number(1) + string("a") + number(2) + b"u")


@hostile("key", "pickle-text")
def _surrogate_in_a_name() -> bytes:
    return payload(b"}" + text("\ud800") + number(1) + b"s")


@hostile("key", "pickle-text")
def _name_that_is_no_utf8() -> bytes:
    return payload(b"X\x02\x00\x00\x00\xff\xfe")


# --- the pickle's frame -----------------------------------------------------------------------------------------


@hostile("frame", "pickle-trailing")
def _second_pickle_after_stop() -> bytes:
    return torch_archive(checkpoint() + whole(call(imported("os", "system"), string(SHELL))))


@hostile("frame", "pickle-truncated")
def _no_stop() -> bytes:
    return torch_archive(checkpoint()[:-1])


@hostile("frame", "pickle-truncated", "pickle-opcode")
def _empty_pickle() -> bytes:
    return torch_archive(b"")


@hostile("frame", "pickle-stack")
def _stack_underflow() -> bytes:
    return torch_archive(PROTO + b"\x87" + STOP)


@hostile("frame", "pickle-stack")
def _two_values_at_stop() -> bytes:
    return torch_archive(PROTO + b"NN" + STOP)


@hostile("frame", "pickle-import")
def _broken_after_the_call() -> bytes:
    """nullifAI: the call comes first, what makes scanners stop comes after."""
    return torch_archive(PROTO + call(imported("os", "system"), string(SHELL)) + b"\xff\xff broken")


# --- zip --------------------------------------------------------------------------------------------------------


def items() -> list[Item]:
    return torch_items(checkpoint())


def changed(index: int, **fields: object) -> bytes:
    made = items()
    for name, value in fields.items():
        setattr(made[index], name, value)
    return archive(made)


EVIL = whole(call(imported("os", "system"), string(SHELL)))
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


def write_corpus(folder: Path) -> dict[str, Path]:
    """Write every file into `folder` and return them by name."""
    made = {}
    for item in CORPUS:
        made[item.name] = folder / f"{item.name}{item.suffix}"
        made[item.name].write_bytes(item.build())
    return made


def canary_folder(folder: Path) -> Path:
    """Return the folder where anything executed leaves ``canary``, named in the environment."""
    folder.mkdir(exist_ok=True)
    os.environ["F5LAB_CANARY"] = str(folder)
    return folder
