"""What the process that reads untrusted files hands over: a bounded table in JSON, and the way back to values.

Containers refer to each other by number, a container always after what it holds: what a file shares is described once,
nothing nests deeper than the limit, and nothing holds itself. Standard library only.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

from f5lab.untrusted.pickles import Bytes, Import, Named
from f5lab.untrusted.refusals import Refused
from f5lab.untrusted.stored_tensors import ITEM_BYTES, Storage, StoredTensor, brief, check_tensor

Container = Literal["torch", "torch-old", "torch-tar", "safetensors", "shard-index"]

MOST_DEPTH = 64
MOST_VALUES = 1_000_000
MOST_CONTAINERS = 200_000
MOST_EXPANDED = 2_000_000


@dataclass(frozen=True)
class Manifest:
    """A file's structure, tensors described and not read.

    Attributes
    ----------
    container : {"torch", "torch-old", "torch-tar", "safetensors", "shard-index"}
    root : Any
        The object that was saved: dicts, lists, tuples, numbers, texts, and `StoredTensor` for tensors.
    storages : tuple of Storage
    imports : tuple of str
        What the file's pickles import.
    size : int
        Bytes of the file.
    crcs : dict of str to int
        Storage key to recorded CRC-32, where the container records one.
    ranges : tuple of (int, int)
        The bytes that all this was read from.
    digest : str
        Their SHA-256, in order.
    facts : dict
        What the container says about itself.
    """

    container: Container
    root: Any
    storages: tuple[Storage, ...]
    imports: tuple[str, ...] = ()
    size: int = 0
    crcs: Mapping[str, int] = field(default_factory=dict)
    ranges: tuple[tuple[int, int], ...] = ()
    digest: str = ""
    facts: Mapping[str, Any] = field(default_factory=dict)


class _Encoder:
    def __init__(self) -> None:
        self.nodes: list[Any] = []
        self.tensors: list[Any] = []
        self.storages: dict[int, int] = {}
        self.stored: list[Storage] = []
        self.known: dict[int, tuple[int, int, int]] = {}
        self.open: set[int] = set()
        self.values = 0

    def encode(self, value: Any, depth: int) -> tuple[Any, int, int]:
        """Return a value's code, its height, and how many values it holds once shared ones are counted each time."""
        self.values += 1
        if self.values > MOST_VALUES:
            raise Refused("pickle-nodes", f"more than {MOST_VALUES:,} values")
        kind = type(value)
        if value is None or kind in (bool, int, str):
            return value, 0, 1
        if kind is float:
            return {"f": value.hex() if math.isfinite(value) else repr(value)}, 0, 1
        if kind is StoredTensor:
            return {"t": self.tensor(value)}, 0, 1
        if kind in (list, tuple, dict, set):
            return self.container(value, depth)
        if kind is Bytes:
            return {"b": value.hex()}, 0, 1
        if kind is Named or kind is Import and value.kind == "dtype":
            return {"w": [value.kind, value.name]}, 0, 1
        if kind is Storage:
            raise Refused("tensor-kind", f"storage {value.key} stands alone, without a tensor")
        raise Refused("pickle-call", f"{value.name if kind is Import else brief(value)} stands as a value")

    def container(self, value: Any, depth: int) -> tuple[Any, int, int]:
        identity = id(value)
        if identity in self.open:
            raise Refused("pickle-cycle", f"a {type(value).__name__} that holds itself")
        if identity not in self.known:
            if depth >= MOST_DEPTH:
                raise Refused("pickle-depth", f"more than {MOST_DEPTH} containers inside each other")
            if len(self.known) >= MOST_CONTAINERS:
                raise Refused("pickle-nodes", f"more than {MOST_CONTAINERS:,} containers")
            self.open.add(identity)
            self.known[identity] = self.node(value, depth + 1)
            self.open.discard(identity)
        number, height, expanded = self.known[identity]
        if depth + height > MOST_DEPTH:
            raise Refused("pickle-depth", f"more than {MOST_DEPTH} containers inside each other")
        return {"n": number}, height, expanded

    def node(self, value: Any, depth: int) -> tuple[int, int, int]:
        if type(value) is dict:
            flat: Sequence[Any] = [part for pair in value.items() for part in pair]
        else:
            flat = sorted(value, key=repr) if type(value) is set else value
        codes, height, expanded = [], 0, 1
        for item in flat:
            code, below, count = self.encode(item, depth)
            codes.append(code)
            height, expanded = max(height, below), expanded + count
            if expanded > MOST_EXPANDED:
                raise Refused("pickle-expansion", f"more than {MOST_EXPANDED:,} values once shared ones are repeated")
        self.nodes.append([type(value).__name__, codes])
        return len(self.nodes) - 1, height + 1, expanded

    def tensor(self, tensor: StoredTensor) -> int:
        storage = tensor.storage
        if id(storage) not in self.storages:
            self.storages[id(storage)] = len(self.stored)
            self.stored.append(storage)
        number = self.storages[id(storage)]
        self.tensors.append([number, tensor.dtype, tensor.offset, list(tensor.shape), list(tensor.stride)])
        return len(self.tensors) - 1


def encode(manifest: Manifest) -> dict[str, Any]:
    """Return a manifest as JSON-able data.

    Raises
    ------
    Refused
        Too many values, too deep, a container that holds itself, or something that is no value.
    """
    encoder = _Encoder()
    root, _, _ = encoder.encode(manifest.root, 0)
    return {
        "container": manifest.container, "root": root, "nodes": encoder.nodes, "tensors": encoder.tensors,
        "storages": [[s.key, s.dtype, s.count, s.place] for s in encoder.stored], "imports": list(manifest.imports),
        "size": manifest.size, "crcs": dict(manifest.crcs), "ranges": [list(pair) for pair in manifest.ranges],
        "digest": manifest.digest, "facts": dict(manifest.facts),
    }  # fmt: skip


def decode(data: Mapping[str, Any]) -> Manifest:
    """Return the manifest of encoded data, every bound checked again.

    Raises
    ------
    Refused
        A storage lies outside the file, or a tensor outside its storage.
    """
    storages = [Storage(*row) for row in data["storages"]]
    for storage in storages:
        outside = storage.place < 0 or storage.place + storage.nbytes > data["size"]
        if storage.dtype not in ITEM_BYTES or storage.count and outside:
            raise Refused("file-size", f"storage {storage.key} ends beyond the file", "manifest")
    tensors = [
        check_tensor(storages[number], dtype, offset, tuple(shape), tuple(stride), "manifest")
        for number, dtype, offset, shape, stride in data["tensors"]
    ]
    made: list[Any] = []

    def value(code: Any) -> Any:
        if type(code) is not dict:
            return code
        ((kind, content),) = code.items()
        if kind == "f":
            return float(content) if content in ("inf", "-inf", "nan") else float.fromhex(content)
        if kind in ("n", "t"):
            return (made if kind == "n" else tensors)[content]
        return bytes.fromhex(content) if kind == "b" else Named(*content)

    for kind, codes in data["nodes"]:
        items = [value(code) for code in codes]
        made.append(
            dict(zip(items[::2], items[1::2], strict=True)) if kind == "dict"
            else {"list": list, "tuple": tuple, "set": set}[kind](items)
        )  # fmt: skip
    return Manifest(
        container=data["container"], root=value(data["root"]), storages=tuple(storages), imports=tuple(data["imports"]),
        size=data["size"], crcs=data["crcs"], ranges=tuple((a, b) for a, b in data["ranges"]), digest=data["digest"],
        facts=data["facts"],
    )  # fmt: skip
