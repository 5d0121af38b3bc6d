"""What a pickle can reach: imports, calls, persistent ids."""

import pickle

from hostile.pickle_parts import (
    PROTO,
    STOP,
    call,
    imported,
    mapping,
    number,
    storage,
    tensor,
    tuple_of,
)  # fmt: skip
from hostile.registry import SHELL, TOUCH, add, hostile, payload, string
from hostile.zip_parts import torch_archive

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
