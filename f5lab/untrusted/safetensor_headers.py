"""Headers of ``.safetensors`` files and indexes of sharded ones, read strictly.

Format: eight bytes of length, JSON, then the tensors, without gap or overlap (huggingface/safetensors, README).
Standard library only.
"""

import json
import re
import struct
from collections.abc import Iterable
from typing import Any, NoReturn

from f5lab.untrusted.manifests import Manifest
from f5lab.untrusted.refusals import Refused
from f5lab.untrusted.sources import Source
from f5lab.untrusted.stored_tensors import ITEM_BYTES, LARGEST_INDEX, Storage, StoredTensor, check_tensor

MOST_HEADER_BYTES = 16 << 20
MOST_TENSORS = 200_000
MOST_NAME_CHARACTERS = 1024
DTYPES = {
    "F64": "float64", "F32": "float32", "F16": "float16", "BF16": "bfloat16", "I64": "int64", "I32": "int32",
    "I16": "int16", "I8": "int8", "U8": "uint8", "BOOL": "bool", "U16": "uint16", "U32": "uint32", "U64": "uint64",
    "C64": "complex64", "F8_E4M3": "float8_e4m3fn", "F8_E5M2": "float8_e5m2",
}  # fmt: skip
_SHARD = re.compile(r"[A-Za-z0-9_][A-Za-z0-9._-]{0,200}\.safetensors")


def _unique(pairs: Iterable[tuple[str, Any]]) -> dict[str, Any]:
    made: dict[str, Any] = {}
    for key, value in pairs:
        if key in made:
            raise Refused("safetensors-json", f"key {key[:80]!r} twice", "header")
        made[key] = value
    return made


def _no_constant(text: str) -> NoReturn:
    raise Refused("safetensors-json", f"{text} is no JSON", "header")


def _no_float(text: str) -> NoReturn:
    raise Refused("safetensors-json", f"{text[:40]}: no whole number", "header")


def read_json(raw: bytes, where: str) -> dict[str, Any]:
    """Return a JSON object whose keys are unique and whose numbers are whole.

    Raises
    ------
    Refused
        Anything else.
    """
    try:
        loaded = json.loads(
            raw.decode("utf-8"), object_pairs_hook=_unique, parse_constant=_no_constant, parse_float=_no_float
        )
    except UnicodeDecodeError as error:
        raise Refused("safetensors-json", f"no UTF-8 at byte {error.start}", where) from None
    except (ValueError, RecursionError) as error:
        raise Refused("safetensors-json", f"{type(error).__name__}: {error}", where) from None
    if type(loaded) is not dict:
        raise Refused("safetensors-json", f"a {type(loaded).__name__}", where)
    return loaded


def _is_text(value: Any, most: int = MOST_NAME_CHARACTERS) -> bool:
    if type(value) is not str or len(value) > most:
        return False
    return not any("\ud800" <= character <= "\udfff" for character in value)


def read_safetensors(source: Source) -> Manifest:
    """Return the manifest of a ``.safetensors`` file.

    Raises
    ------
    Refused
        The header breaks a rule, or the tensors do not fill the data exactly.
    """
    (length,) = struct.unpack("<Q", source.read(0, 8, "safetensors-header", "length"))
    if not 2 <= length <= MOST_HEADER_BYTES or length + 8 > source.size:
        raise Refused("safetensors-header", f"{length:,} bytes announced in a file of {source.size:,}", "length")
    header = read_json(source.read(8, length, "safetensors-header", "header"), "header")
    metadata = header.pop("__metadata__", {})
    good = type(metadata) is dict and all(_is_text(k) and _is_text(v, 1 << 20) for k, v in metadata.items())
    if not good:
        raise Refused("safetensors-entry", "__metadata__ is no map from text to text", "header")
    if len(header) > MOST_TENSORS:
        raise Refused("safetensors-count", f"{len(header):,} tensors", "header")
    tensors = {name: _read_entry(name, entry, 8 + length) for name, entry in header.items()}
    expected = 8 + length
    for name, tensor in sorted(tensors.items(), key=lambda item: (item[1].storage.place, item[1].nbytes)):
        if tensor.storage.place != expected:
            raise Refused("safetensors-holes", f"begins at byte {tensor.storage.place:,}, not {expected:,}", name)
        expected += tensor.nbytes
    if expected != source.size:
        raise Refused("safetensors-holes", f"tensors end at byte {expected:,}, the file at {source.size:,}", "data")
    return Manifest("safetensors", tensors, tuple(t.storage for t in tensors.values()), facts={"metadata": metadata})


def _read_entry(name: str, entry: Any, base: int) -> StoredTensor:
    if not _is_text(name):
        raise Refused("safetensors-entry", "a name that is too long or no text", name[:80])
    if type(entry) is not dict or set(entry) != {"dtype", "shape", "data_offsets"}:
        raise Refused("safetensors-entry", "other keys than dtype, shape and data_offsets", name)
    if type(entry["dtype"]) is not str or entry["dtype"] not in DTYPES:
        raise Refused("safetensors-dtype", str(entry["dtype"])[:40], name)
    shape, offsets = entry["shape"], entry["data_offsets"]
    for numbers in (shape, offsets):
        good = type(numbers) is list and all(type(n) is int and 0 <= n <= LARGEST_INDEX for n in numbers)
        if not good:
            raise Refused("safetensors-entry", "a shape or offsets that are no whole numbers", name)
    if len(offsets) != 2 or offsets[0] > offsets[1]:
        raise Refused("safetensors-entry", f"data_offsets {offsets[:4]}", name)
    dtype, count, stride = DTYPES[entry["dtype"]], 1, []
    for size in reversed(shape):
        stride.insert(0, count)
        count *= size
        if len(stride) > 64 or count > LARGEST_INDEX:
            raise Refused("tensor-shape", "more elements than any file holds", name)
    if count * ITEM_BYTES[dtype] != offsets[1] - offsets[0]:
        raise Refused("safetensors-size", f"{offsets[1] - offsets[0]:,} bytes for {count:,} of {dtype}", name)
    return check_tensor(Storage(name, dtype, count, base + offsets[0]), dtype, 0, tuple(shape), tuple(stride), name)


def read_index(source: Source) -> Manifest:
    """Return the manifest of an index of sharded safetensors: a dict of tensor name to file name.

    Raises
    ------
    Refused
        No ``weight_map``, or it names anything but ``.safetensors`` files beside the index.
    """
    if source.size > MOST_HEADER_BYTES:
        raise Refused("shard-index", f"{source.size:,} bytes", "index")
    loaded = _index_json(source.read(0, source.size, "shard-index", "index"))
    files = loaded.get("weight_map")
    if type(files) is not dict or not files or len(files) > MOST_TENSORS:
        raise Refused("shard-index", "no weight_map", "index")
    for name, file in files.items():
        if not _is_text(name) or type(file) is not str or not _SHARD.fullmatch(file):
            raise Refused("shard-index", f"{str(name)[:60]!r} is in {str(file)[:60]!r}", "weight_map")
    return Manifest("shard-index", files, ())


def _index_json(raw: bytes) -> dict[str, Any]:
    """Read the index; its ``metadata`` may hold numbers that are not whole."""
    try:
        loaded = json.loads(raw.decode("utf-8"), object_pairs_hook=_unique, parse_constant=_no_constant)
    except (ValueError, RecursionError) as error:
        raise Refused("shard-index", f"{type(error).__name__}: {error}", "index") from None
    if type(loaded) is not dict:
        raise Refused("shard-index", f"a {type(loaded).__name__}", "index")
    return loaded
