"""Tensors of an examined file, mapped from it: nothing is unpickled, nothing is copied that can be mapped.

The map is private: what is written to a tensor stays in this process, the file is only read.
"""

import mmap
import re
import sys
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from f5lab.errors import CheckpointError
from f5lab.untrusted.refusals import Refused
from f5lab.untrusted.stored_tensors import ITEM_BYTES, Storage, StoredTensor
from f5lab.untrusted.weights_files import Part, WeightsFile, as_error, open_weights_file

OLDEST_TORCH = (2, 10)
"""The first torch without CVE-2026-24747 (memory corruption under ``weights_only=True``)."""


def require_torch(version: str) -> None:
    """Refuse a torch that other parts of F5-TTS must not load files with.

    Raises
    ------
    CheckpointError
        Older than 2.10.
    """
    match = re.match(r"(\d+)\.(\d+)", version)
    if match is None or (int(match[1]), int(match[2])) < OLDEST_TORCH:
        raise CheckpointError(
            f"torch {version} is installed",
            expected="torch 2.10 or newer: older ones can be taken over by a file, weights_only or not",
            next_step="pip install -U torch",
        )


require_torch(torch.__version__)


class _Map:
    """One file in memory, and its storages as they are asked for."""

    def __init__(self, part: Part) -> None:
        if sys.byteorder != "little":
            raise CheckpointError("this machine is big-endian", expected="little-endian, as the files are")
        part.confirm()
        self.buffer = mmap.mmap(part.descriptor, part.manifest.size, access=mmap.ACCESS_COPY)
        self.whole = torch.frombuffer(self.buffer, dtype=torch.uint8).untyped_storage()
        self.storages: dict[int, torch.UntypedStorage] = {}

    def storage(self, stored: Storage) -> torch.UntypedStorage:
        if id(stored) not in self.storages:
            part = self.whole[stored.place : stored.place + stored.nbytes]
            if stored.place % ITEM_BYTES[stored.dtype]:
                part = part.clone()  # kernels may take alignment for granted
            self.storages[id(stored)] = part
        return self.storages[id(stored)]

    def tensor(self, stored: StoredTensor) -> Tensor:
        empty = torch.empty(0, dtype=getattr(torch, stored.dtype))
        if not stored.storage.count:
            return empty.new_empty(stored.shape)
        return empty.set_(self.storage(stored.storage), stored.offset, stored.shape, stored.stride)


def map_tensor(file: WeightsFile, stored: StoredTensor) -> Tensor:
    """Return a tensor of an examined file, mapped, on the CPU; tensors of one storage share it.

    Raises
    ------
    CheckpointError
        The file changed since it was examined, or cannot be mapped.
    """
    part = file.owners[id(stored.storage)]
    if part.mapped is None:
        try:
            part.mapped = _Map(part)
        except Refused as refused:
            raise as_error(part.path, refused) from None
        except (OSError, ValueError) as error:
            raise CheckpointError(f"{part.path} cannot be mapped into memory ({error})") from error
    return part.mapped.tensor(stored)


def load_tensors(path: str | Path, what: str = "weights") -> Any:
    """Return what a torch or safetensors file holds, tensors mapped: `torch.load` for files that nobody vouches for.

    Raises
    ------
    CheckpointError
        It is missing or refused.
    """
    file = open_weights_file(path, what)
    return file.rebuild(file.root, partial(map_tensor, file))
