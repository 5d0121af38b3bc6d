"""What a pickle can hold: bombs, impossible tensors, keys and texts, and a broken frame."""

import io
import struct
import zipfile

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
from hostile.registry import SHELL, add, alone, hostile, payload, string
from hostile.zip_parts import FLOATS, torch_archive

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
