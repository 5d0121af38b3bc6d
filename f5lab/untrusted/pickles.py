"""A walker over the pickles of torch files that executes nothing.

Opcodes are interpreted symbolically: an import is looked up in an exact list of names and becomes a mark, a call of
one of torch's tensor builders becomes a description of that tensor. No class is imported, no function of the file's
choosing is called, and whatever is not on the lists refuses the file. The opcodes are those that ``torch.save`` writes
(protocol 2; CPython's ``pickletools`` documents them).
"""

import struct
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from f5lab.untrusted.refusals import Refused
from f5lab.untrusted.stored_tensors import ITEM_BYTES, LARGEST_INDEX, Storage, StoredTensor, brief, check_tensor

STORAGE_DTYPES = {
    "DoubleStorage": "float64", "FloatStorage": "float32", "HalfStorage": "float16", "BFloat16Storage": "bfloat16",
    "LongStorage": "int64", "IntStorage": "int32", "ShortStorage": "int16", "CharStorage": "int8",
    "ByteStorage": "uint8", "BoolStorage": "bool", "ComplexFloatStorage": "complex64",
    "ComplexDoubleStorage": "complex128", "UntypedStorage": "uint8",
}  # fmt: skip

_BUILDERS = ("_rebuild_tensor", "_rebuild_tensor_v2", "_rebuild_tensor_v3", "_rebuild_parameter",
             "_rebuild_parameter_with_state")  # fmt: skip
ALLOWED_IMPORTS: dict[tuple[str, str], tuple[str, str]] = {
    ("collections", "OrderedDict"): ("mapping", "OrderedDict"),
    ("collections", "Counter"): ("mapping", "Counter"),
    ("__builtin__", "set"): ("set", "set"),
    ("builtins", "set"): ("set", "set"),
    ("_codecs", "encode"): ("bytes", "encode"),
    ("__builtin__", "bytes"): ("bytes", "bytes"),
    ("builtins", "bytes"): ("bytes", "bytes"),
    ("torch", "Size"): ("size", "Size"),
    ("torch", "device"): ("device", "device"),
    ("torch._tensor", "_rebuild_from_type_v2"): ("tensor", "_rebuild_from_type_v2"),
    ("torch", "Tensor"): ("class", "Tensor"),
    ("torch.nn.parameter", "Parameter"): ("class", "Parameter"),
    **{("torch._utils", name): ("tensor", name) for name in _BUILDERS},
    **{("torch", name): ("storage", dtype) for name, dtype in STORAGE_DTYPES.items()},
    **{("torch.cuda", name): ("storage", dtype) for name, dtype in STORAGE_DTYPES.items()},
    ("torch.storage", "UntypedStorage"): ("storage", "uint8"),
    **{("torch", dtype): ("dtype", dtype) for dtype in ITEM_BYTES},
    **{
        (module, name.replace("Storage", "Tensor")): ("class", name)
        for module in ("torch", "torch.cuda")
        for name in STORAGE_DTYPES
        if name != "UntypedStorage"
    },
}
"""Every import that a file may name, and what it stands for; nothing is ever imported."""

REFUSED_OPCODES = {
    0x30: "POP", 0x31: "POP_MARK", 0x32: "DUP", 0x42: "BINBYTES", 0x43: "SHORT_BINBYTES", 0x46: "FLOAT", 0x49: "INT",
    0x4C: "LONG", 0x50: "PERSID", 0x53: "STRING", 0x54: "BINSTRING", 0x56: "UNICODE", 0x64: "DICT", 0x67: "GET",
    0x69: "INST", 0x6C: "LIST", 0x6F: "OBJ", 0x70: "PUT", 0x80: "PROTO", 0x81: "NEWOBJ", 0x82: "EXT1", 0x83: "EXT2",
    0x84: "EXT4", 0x8B: "LONG4", 0x8C: "SHORT_BINUNICODE", 0x8D: "BINUNICODE8", 0x8E: "BINBYTES8", 0x8F: "EMPTY_SET",
    0x90: "ADDITEMS", 0x91: "FROZENSET", 0x92: "NEWOBJ_EX", 0x93: "STACK_GLOBAL", 0x94: "MEMOIZE", 0x95: "FRAME",
    0x96: "BYTEARRAY8", 0x97: "NEXT_BUFFER", 0x98: "READONLY_BUFFER",
}  # fmt: skip
"""CPython's names of the opcodes that no file may hold."""

MOST_PICKLE_BYTES = 32 << 20
MOST_OPCODES = 2_000_000
MOST_STRING_BYTES = 1 << 20
MOST_NUMBER_BYTES = 32
MOST_NAME_BYTES = 120
MOST_MARKS = 256


@dataclass(frozen=True)
class Import:
    """A name of the list above, as the file imports it."""

    kind: str
    name: str


@dataclass(frozen=True)
class Named:
    """A dtype or device that stands in a file as a value."""

    kind: str
    name: str


class Bytes(bytes):
    """Bytes that a file holds as a value."""


class Walker:
    """Walks one pickle.

    Parameters
    ----------
    data : bytes
    start : int
        Where the pickle begins in `data`.
    where : str
        Name of `data` in refusals.
    persistent : callable, optional
        Turns a persistent id into a value; without it the pickle may hold none.

    Attributes
    ----------
    imports : dict of str to None
        Names that the pickle imports, in order of appearance.
    """

    def __init__(
        self, data: bytes, start: int = 0, where: str = "data.pkl", persistent: Callable[[Any, str], Any] | None = None
    ) -> None:
        self.data, self.pos, self.where, self.persistent = data, start, where, persistent
        self.stack: list[Any] = []
        self.marks: list[int] = []
        self.memo: dict[int, Any] = {}
        self.imports: dict[str, None] = {}
        self.opcode_at = start
        if len(data) - start > MOST_PICKLE_BYTES:
            raise self.refuse("pickle-size", f"{len(data) - start:,} bytes")

    def refuse(self, rule: str, what: str) -> Refused:
        """Return the refusal of the opcode at hand."""
        return Refused(rule, what, f"{self.where}, byte {self.opcode_at}")

    def walk(self) -> Any:
        """Return the pickle's value; `pos` is then the first byte after STOP.

        Returns
        -------
        None, bool, int, float, str, bytes, list, tuple, dict, set, Named, Storage or StoredTensor

        Raises
        ------
        Refused
            Anything that is not on the lists or beyond the limits.
        """
        data, handlers, end = self.data, _HANDLERS, len(self.data)
        if self.take(2) != b"\x80\x02":
            raise self.refuse("pickle-opcode", "no protocol 2 at the start")
        for _ in range(MOST_OPCODES):
            self.opcode_at = at = self.pos
            if at >= end:
                raise self.refuse("pickle-truncated", "the data ends before STOP")
            code = data[at]
            self.pos = at + 1
            if code == 0x2E:  # STOP
                return self._stop()
            handler = handlers.get(code)
            if handler is None:
                raise self.refuse("pickle-opcode", f"opcode {opcode_name(code)}")
            handler(self)
        raise self.refuse("pickle-opcodes", f"more than {MOST_OPCODES:,} opcodes")

    def _stop(self) -> Any:
        if len(self.stack) != 1 or self.marks:
            raise self.refuse("pickle-stack", f"{len(self.stack)} values and {len(self.marks)} marks at STOP")
        return self.stack.pop()

    def take(self, count: int) -> bytes:
        """Return the next bytes."""
        start = self.pos
        if count > len(self.data) - start:
            raise self.refuse("pickle-truncated", f"{count:,} bytes wanted, {len(self.data) - start:,} left")
        self.pos = start + count
        return self.data[start : self.pos]

    def byte(self) -> int:
        """Return the next byte."""
        if self.pos >= len(self.data):
            raise self.refuse("pickle-truncated", "a byte wanted, none left")
        self.pos += 1
        return self.data[self.pos - 1]

    def pop(self) -> Any:
        """Return the topmost value above the last mark."""
        if len(self.stack) <= (self.marks[-1] if self.marks else 0):
            raise self.refuse("pickle-stack", "a value is wanted and none is there")
        return self.stack.pop()

    def top(self, kind: type) -> Any:
        """Return the container that the next opcode fills."""
        if len(self.stack) <= (self.marks[-1] if self.marks else 0) or type(self.stack[-1]) is not kind:
            raise self.refuse("pickle-stack", f"a {kind.__name__} is wanted")
        return self.stack[-1]

    def pop_mark(self) -> list[Any]:
        """Return what lies above the last mark, which goes too."""
        if not self.marks:
            raise self.refuse("pickle-stack", "a mark is wanted and none is there")
        mark = self.marks.pop()
        items = self.stack[mark:]
        del self.stack[mark:]
        return items

    def line(self) -> str:
        """Return an import's module or name: ASCII up to a line feed."""
        stop = self.data.find(b"\n", self.pos, self.pos + MOST_NAME_BYTES + 1)
        if stop < 0:
            raise self.refuse("pickle-import", f"no name of at most {MOST_NAME_BYTES} bytes")
        text = self.data[self.pos : stop]
        self.pos = stop + 1
        return text.decode("ascii", "replace")

    def _on_global(self) -> None:
        module, name = self.line(), self.line()
        found = ALLOWED_IMPORTS.get((module, name))
        if found is None:
            raise self.refuse("pickle-import", f"{module}.{name} is not on the list")
        self.imports[f"{module}.{name}"] = None
        self.stack.append(Import(*found))

    def _on_reduce(self) -> None:
        arguments, function = self.pop(), self.pop()
        if type(arguments) is not tuple:
            raise self.refuse("pickle-call", f"arguments are {brief(arguments)}")
        self.stack.append(self.call(function, arguments))

    def call(self, function: Any, arguments: tuple[Any, ...]) -> Any:
        """Return what one of the listed functions would give, as a description."""
        kind = function.kind if type(function) is Import else ""
        if kind == "mapping":
            return self.new_mapping(arguments)
        if kind == "set" and len(arguments) == 1 and type(arguments[0]) is list:
            if not all(_is_key(item) for item in arguments[0]):
                raise self.refuse("pickle-key", "a set of other things than text and whole numbers")
            return set(arguments[0])
        if kind == "bytes":
            return self.new_bytes(function.name, arguments)
        if kind == "size" and len(arguments) == 1 and type(arguments[0]) is tuple:
            return arguments[0]
        if kind == "device" and arguments and all(type(item) in (str, int) for item in arguments[:2]):
            return Named("device", ":".join(str(item)[:16] for item in arguments[:2]))
        if kind == "tensor":
            return self.new_tensor(function.name, arguments)
        raise self.refuse("pickle-call", f"{_called(function)} with {len(arguments)} arguments")

    def new_mapping(self, arguments: tuple[Any, ...]) -> dict[Any, Any]:
        """Return an ordered dict, empty or (as Python 2 wrote it) from a list of pairs."""
        if not arguments:
            return {}
        pairs = arguments[0]
        if len(arguments) == 1 and type(pairs) is dict:
            return dict(pairs)
        if len(arguments) != 1 or type(pairs) is not list:
            raise self.refuse("pickle-call", "an ordered dict from other things than pairs")
        made: dict[Any, Any] = {}
        for pair in pairs:
            if type(pair) not in (list, tuple) or len(pair) != 2:
                raise self.refuse("pickle-call", "an ordered dict from other things than pairs")
            self.set_item(made, pair[0], pair[1])
        return made

    def new_bytes(self, name: str, arguments: tuple[Any, ...]) -> Bytes:
        """Return bytes as protocol 2 writes them: text in Latin-1, or nothing."""
        if name == "bytes" and not arguments:
            return Bytes()
        if name == "encode" and len(arguments) == 2 and type(arguments[0]) is str and arguments[1] == "latin1":
            if all(ord(character) < 256 for character in arguments[0]):
                return Bytes(arguments[0].encode("latin1"))
        raise self.refuse("pickle-call", f"{name} with other arguments than torch gives it")

    def new_tensor(self, name: str, arguments: tuple[Any, ...]) -> StoredTensor:
        """Return the tensor that one of torch's builders would make (``torch/_utils.py``, ``torch/_tensor.py``)."""
        count = len(arguments)
        if name == "_rebuild_from_type_v2":
            return self.new_subclass(arguments)
        if name in ("_rebuild_parameter", "_rebuild_parameter_with_state"):
            if type(arguments[0] if arguments else None) is not StoredTensor or not 3 <= count <= 4:
                raise self.refuse("pickle-call", f"{name} of {brief(arguments[0] if arguments else None)}")
            return arguments[0]
        needed = {"_rebuild_tensor": (4, 4), "_rebuild_tensor_v2": (6, 7), "_rebuild_tensor_v3": (7, 8)}[name]
        if not needed[0] <= count <= needed[1] or type(arguments[0]) is not Storage:
            raise self.refuse("pickle-call", f"{name} with {count} arguments, first {brief((*arguments, None)[0])}")
        if count == needed[1] and name != "_rebuild_tensor" and arguments[-1]:
            raise self.refuse("tensor-kind", "a tensor with its conjugate or negative bit set")
        if name != "_rebuild_tensor" and (type(arguments[4]) is not bool or arguments[5]):
            raise self.refuse("pickle-call", f"{name} with hooks")
        dtype = arguments[0].dtype
        if name == "_rebuild_tensor_v3":
            if type(arguments[6]) is not Import or arguments[6].kind != "dtype":
                raise self.refuse("pickle-call", f"{name} with dtype {brief(arguments[6])}")
            dtype = arguments[6].name
        return check_tensor(arguments[0], dtype, *arguments[1:4], f"{self.where}, byte {self.opcode_at}")

    def new_subclass(self, arguments: tuple[Any, ...]) -> StoredTensor:
        """Return a tensor with attributes; they are left out."""
        if len(arguments) != 4 or type(arguments[2]) is not tuple:
            raise self.refuse("pickle-call", "_rebuild_from_type_v2 with other arguments than torch gives it")
        function, kind, inner, _ = arguments
        plain = type(kind) is Import and kind.kind == "class"
        if not plain or type(function) is not Import or function.name not in _BUILDERS:
            raise self.refuse("pickle-call", f"_rebuild_from_type_v2 of {_called(function)}, {_called(kind)}")
        return self.new_tensor(function.name, inner)

    def _on_build(self) -> None:
        state = self.pop()
        self.top(dict)
        if type(state) is not dict or not all(type(key) is str for key in state):
            raise self.refuse("pickle-build", f"state is {brief(state)}")

    def _on_persistent_id(self) -> None:
        identity = self.pop()
        if self.persistent is None:
            raise self.refuse("pickle-persistent-id", "one where none may be")
        self.stack.append(self.persistent(identity, f"{self.where}, byte {self.opcode_at}"))

    def set_item(self, target: dict[Any, Any], key: Any, value: Any) -> None:
        """Put a value into a dictionary under a key that is new."""
        if not _is_key(key):
            raise self.refuse("pickle-key", f"key {brief(key)}")
        if key in target:
            raise self.refuse("pickle-key", f"key {brief(key)} twice")
        target[key] = value

    def _on_append(self) -> None:
        value = self.pop()
        self.top(list).append(value)

    def _on_appends(self) -> None:
        items = self.pop_mark()
        self.top(list).extend(items)

    def _on_setitem(self) -> None:
        value, key = self.pop(), self.pop()
        self.set_item(self.top(dict), key, value)

    def _on_setitems(self) -> None:
        items = self.pop_mark()
        target = self.top(dict)
        if len(items) % 2:
            raise self.refuse("pickle-stack", "a key without a value")
        for i in range(0, len(items), 2):
            self.set_item(target, items[i], items[i + 1])

    def _on_mark(self) -> None:
        if len(self.marks) >= MOST_MARKS:
            raise self.refuse("pickle-depth", f"more than {MOST_MARKS} marks")
        self.marks.append(len(self.stack))

    def _on_tuple(self) -> None:
        self.stack.append(tuple(self.pop_mark()))

    def _on_tuple_of(self, count: int) -> None:
        at = len(self.stack) - count
        if at < (self.marks[-1] if self.marks else 0):
            raise self.refuse("pickle-stack", f"{count} values are wanted and not there")
        self.stack[at:] = [tuple(self.stack[at:])]

    def _on_text(self, width: str, encoding: str) -> None:
        (length,) = struct.unpack(width, self.take(struct.calcsize(width)))
        if length > MOST_STRING_BYTES:
            raise self.refuse("pickle-string", f"a text of {length:,} bytes")
        raw = self.take(length)
        try:
            self.stack.append(raw.decode(encoding))
        except UnicodeDecodeError:
            raise self.refuse("pickle-text", f"{length} bytes that are no {encoding}") from None

    def _on_number(self, layout: str) -> None:
        self.stack.append(struct.unpack(layout, self.take(struct.calcsize(layout)))[0])

    def _on_long(self) -> None:
        length = self.take(1)[0]
        if length > MOST_NUMBER_BYTES:
            raise self.refuse("pickle-number", f"a number of {length} bytes")
        self.stack.append(int.from_bytes(self.take(length), "little", signed=True))

    def _on_put(self, index: int) -> None:
        if index in self.memo:
            raise self.refuse("pickle-memo", f"entry {index} written twice")
        value = self.pop()
        self.stack.append(value)
        self.memo[index] = value

    def _on_get(self, index: int) -> None:
        if index not in self.memo:
            raise self.refuse("pickle-memo", f"entry {index} read before it was written")
        self.stack.append(self.memo[index])


def _is_key(value: Any) -> bool:
    """Whether a value may be looked up: whole numbers beyond 62 bits can be made to collide without end."""
    return type(value) is str or type(value) is int and abs(value) < LARGEST_INDEX


def _called(function: Any) -> str:
    return function.name if type(function) is Import else brief(function)


def opcode_name(code: int) -> str:
    """Return CPython's name of a refused opcode, or its number."""
    return REFUSED_OPCODES.get(code, f"0x{code:02x}, which no protocol has")


_HANDLERS: dict[int, Callable[[Walker], None]] = {
    ord("c"): Walker._on_global,
    ord("R"): Walker._on_reduce,
    ord("b"): Walker._on_build,
    ord("Q"): Walker._on_persistent_id,
    ord("("): Walker._on_mark,
    ord("t"): Walker._on_tuple,
    ord(")"): lambda w: w.stack.append(()),
    0x85: lambda w: w._on_tuple_of(1),
    0x86: lambda w: w._on_tuple_of(2),
    0x87: lambda w: w._on_tuple_of(3),
    ord("]"): lambda w: w.stack.append([]),
    ord("}"): lambda w: w.stack.append({}),
    ord("a"): Walker._on_append,
    ord("e"): Walker._on_appends,
    ord("s"): Walker._on_setitem,
    ord("u"): Walker._on_setitems,
    ord("N"): lambda w: w.stack.append(None),
    0x88: lambda w: w.stack.append(True),
    0x89: lambda w: w.stack.append(False),
    ord("K"): lambda w: w.stack.append(w.byte()),
    ord("M"): lambda w: w.stack.append(int.from_bytes(w.take(2), "little")),
    ord("J"): lambda w: w._on_number("<i"),
    ord("G"): lambda w: w._on_number(">d"),
    0x8A: Walker._on_long,
    ord("X"): lambda w: w._on_text("<I", "utf-8"),
    ord("U"): lambda w: w._on_text("<B", "utf-8"),
    ord("q"): lambda w: w._on_put(w.byte()),
    ord("r"): lambda w: w._on_put(int.from_bytes(w.take(4), "little")),
    ord("h"): lambda w: w._on_get(w.byte()),
    ord("j"): lambda w: w._on_get(int.from_bytes(w.take(4), "little")),
}
