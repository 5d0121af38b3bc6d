"""Tensors as a file describes them: where their bytes lie, dtype, shape and strides. Nothing of them is read.

Standard library only: the process that reads untrusted files imports this.
"""

from dataclasses import dataclass
from typing import Any

from f5lab.untrusted.refusals import Refused

ITEM_BYTES = {
    "float64": 8, "float32": 4, "float16": 2, "bfloat16": 2, "int64": 8, "int32": 4, "int16": 2, "int8": 1, "uint8": 1,
    "bool": 1, "complex64": 8, "complex128": 16, "uint16": 2, "uint32": 4, "uint64": 8, "float8_e4m3fn": 1,
    "float8_e5m2": 1, "float8_e4m3fnuz": 1, "float8_e5m2fnuz": 1,
}  # fmt: skip
"""Bytes of one element, for every dtype that is read."""

MOST_DIMENSIONS = 16
LARGEST_INDEX = 1 << 62


@dataclass(eq=False)
class Storage:
    """A stretch of the file that tensors view.

    Attributes
    ----------
    key : str
        The file's own name for it.
    dtype : str
        A key of `ITEM_BYTES`.
    count : int
        Elements.
    place : int
        First byte in the file; -1 until the container has said it.
    """

    key: str
    dtype: str
    count: int
    place: int = -1

    @property
    def nbytes(self) -> int:
        """Bytes of all elements."""
        return self.count * ITEM_BYTES[self.dtype]


@dataclass(frozen=True, eq=False)
class StoredTensor:
    """A tensor as the file describes it: nothing of it was read.

    Attributes
    ----------
    storage : Storage
    dtype : str
        A key of `ITEM_BYTES`.
    offset : int
        Elements from the storage's first.
    shape, stride : tuple of int
        Stride in elements.
    """

    storage: Storage
    dtype: str
    offset: int
    shape: tuple[int, ...]
    stride: tuple[int, ...]

    @property
    def count(self) -> int:
        """Elements."""
        total = 1
        for size in self.shape:
            total *= size
        return total

    @property
    def nbytes(self) -> int:
        """Bytes of all elements."""
        return self.count * ITEM_BYTES[self.dtype]


def check_tensor(storage: Storage, dtype: Any, offset: Any, shape: Any, stride: Any, where: str) -> StoredTensor:
    """Return a tensor that lies within its storage.

    Raises
    ------
    Refused
        Sizes or strides are no whole numbers or negative, elements lie outside the storage, or the tensor would need
        more bytes than are stored (a stride of 0 repeats elements without end).
    """
    for what in (shape, stride):
        good = isinstance(what, tuple) and all(type(n) is int and 0 <= n <= LARGEST_INDEX for n in what)
        if not good or len(what) > MOST_DIMENSIONS:
            raise Refused("tensor-shape", f"{brief(what)}", where)
    if len(shape) != len(stride) or type(offset) is not int or not 0 <= offset <= LARGEST_INDEX:
        raise Refused("tensor-shape", f"{brief(shape)} with strides {brief(stride)} from {brief(offset)}", where)
    tensor = StoredTensor(storage, dtype, offset, shape, stride)
    room = storage.nbytes // ITEM_BYTES[dtype]
    if tensor.count:
        last = offset + sum((size - 1) * step for size, step in zip(shape, stride, strict=True))
        if last >= room:
            raise Refused("tensor-bounds", f"element {last} of a storage of {room}", where)
        if tensor.nbytes > storage.nbytes:
            raise Refused("tensor-expanded", f"its shape needs more bytes than are stored ({storage.nbytes})", where)
    elif offset > room:
        raise Refused("tensor-bounds", f"element {offset} of a storage of {room}", where)
    return tensor


def brief(value: Any, depth: int = 2) -> str:
    """Name a value without its length being the file's choice."""
    if isinstance(value, tuple) and depth:
        return "(" + ", ".join(brief(item, depth - 1) for item in value[:4]) + (", …)" if len(value) > 4 else ")")
    if isinstance(value, (int, float, bool, type(None))):
        return f"{value}" if not isinstance(value, int) or abs(value) < 1 << 64 else "a huge number"
    return repr(value[:40]) if isinstance(value, str) else type(value).__name__
