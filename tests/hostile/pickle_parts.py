"""Assembling pickles opcode by opcode, so that a test can write what no pickler would."""

import struct

PROTO, STOP = b"\x80\x02", b"."


def text(value: str) -> bytes:
    """BINUNICODE."""
    raw = value.encode("utf-8", "surrogatepass")
    return b"X" + struct.pack("<I", len(raw)) + raw


def number(value: int) -> bytes:
    """BININT1, BININT or LONG1."""
    if 0 <= value < 256:
        return b"K" + bytes([value])
    if -(1 << 31) <= value < 1 << 31:
        return b"J" + struct.pack("<i", value)
    raw = value.to_bytes((value.bit_length() + 8) // 8, "little", signed=True)
    return b"\x8a" + bytes([len(raw)]) + raw


def imported(module: str, name: str) -> bytes:
    """GLOBAL."""
    return b"c" + f"{module}\n{name}\n".encode()


def tuple_of(*parts: bytes) -> bytes:
    """MARK … TUPLE."""
    return b"(" + b"".join(parts) + b"t"


def call(function: bytes, *arguments: bytes) -> bytes:
    """REDUCE."""
    return function + tuple_of(*arguments) + b"R"


def mapping(**items: bytes) -> bytes:
    """EMPTY_DICT MARK … SETITEMS."""
    return b"}(" + b"".join(text(key) + value for key, value in items.items()) + b"u"


def storage(key: str = "0", count: int = 4, kind: str = "FloatStorage", location: str = "cpu") -> bytes:
    """A storage by its persistent id."""
    return tuple_of(text("storage"), imported("torch", kind), text(key), text(location), number(count)) + b"Q"


def tensor(
    stored: bytes | None = None, offset: int = 0, shape: tuple[int, ...] = (4,), stride: tuple[int, ...] = (1,),
    builder: str = "_rebuild_tensor_v2", extra: bytes = b"",
) -> bytes:  # fmt: skip
    """A tensor as torch.save writes it."""
    sizes = tuple_of(*map(number, shape)), tuple_of(*map(number, stride))
    hooks = call(imported("collections", "OrderedDict"))
    return call(imported("torch._utils", builder), stored or storage(), number(offset), *sizes, b"\x89", hooks + extra)


def whole(value: bytes) -> bytes:
    """A complete pickle of protocol 2."""
    return PROTO + value + STOP


def checkpoint(**extra: bytes) -> bytes:
    """A pickle that passes for a checkpoint's, plus entries of one's own."""
    weights = mapping(**{"transformer.proj_out.bias": tensor()})
    return whole(mapping(model_state_dict=weights, **extra))
