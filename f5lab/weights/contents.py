"""What is in a checkpoint, without reading its tensors and without torch: what ``f5lab inspect`` shows at once."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from f5lab import checkpoints
from f5lab.checkpoints import Checkpoint
from f5lab.tables import visible
from f5lab.untrusted import second_opinion
from f5lab.untrusted.stored_tensors import StoredTensor
from f5lab.weights import architectures, origins

NOT_EXECUTED = "read as data, not executed; that says nothing about what the weights do"
_NAME_CHARACTERS = 200
MOST_IRREGULAR = 5


def report(path: str | Path, *, verify: bool = False) -> dict[str, Any]:
    """Return names, shapes, dtypes, sections and storage map of a checkpoint, and what they imply.

    No tensor data is read, so that 5 GB take no longer than 5 MB; the hash of a file above 64 MiB is only shown where it
    was taken before.

    Parameters
    ----------
    path : str or Path
    verify : bool
        Read the whole file: its SHA-256, and the CRC-32 of every storage where the container records one; ask
        picklescan for a second opinion.

    Raises
    ------
    CheckpointError
        The file is refused, is no F5-TTS checkpoint, or changed while it was read.
    """
    checkpoint = checkpoints.open_checkpoint(path)
    hashes = checkpoint.file.hashes(compute=verify)
    found = describe(checkpoint, hashes, verify=verify)
    checkpoint.confirm(hashes)
    return found


def describe(checkpoint: Checkpoint, hashes: Sequence[str | None], *, verify: bool = False) -> dict[str, Any]:
    """Return a checkpoint's structure as a JSON-able dict; `hashes` of its files, where they are known."""
    slot = checkpoint.slots[-1]
    stored = checkpoint.stored[slot]
    arch = architectures.implied(stored)
    return {
        "path": str(checkpoint.path),
        **file_facts(checkpoint, hashes, verify=verify),
        "layout": checkpoint.layout,
        "slots": list(checkpoint.slots),
        "labelled": checkpoint.labelled,
        "tensors": len(stored),
        "parameters": sum(tensor.count for tensor in stored.values()),
        "dtypes": sorted({tensor.dtype for tensor in stored.values()}),
        "notes": [*checkpoint.notes, *_irregular(stored)],
        "provenance": origins.provenance(checkpoint),
        "sections": [asdict(section) for section in checkpoint.sections],
        "architecture": arch.options() | {"vocab_size": arch.vocab_size, "mel_dim": arch.mel_dim},
        "presets": origins.preset_sentence(architectures.match_presets(arch)),
        "hidden_options": [asdict(option) for option in architectures.hidden_options(arch)],
        "storage": storage_facts(checkpoint),
        "tensor_list": list(tensor_rows(checkpoint)),
    }


def _irregular(stored: Mapping[str, StoredTensor]) -> list[str]:
    found = architectures.irregular_blocks(stored)
    more = [f"… and {len(found) - MOST_IRREGULAR} more tensors that differ from those of the other blocks"]
    return [visible(text, _NAME_CHARACTERS) for text in found[:MOST_IRREGULAR]] + (more if len(found) > MOST_IRREGULAR else [])


def file_facts(checkpoint: Checkpoint, hashes: Sequence[str | None], *, verify: bool = True) -> dict[str, Any]:
    """Return how the file was read, what it imports, its hash, whether its bytes are those written, and picklescan's
    opinion; with `verify` off, what needs the whole file or another process is left open.
    """
    parts = checkpoint.file.parts
    questions = [second_opinion.Question(part.path) for part in parts] if verify else []
    damaged = [f"storage {key}" for part in parts for key in part.damaged()] if verify else []
    return {
        "loading": NOT_EXECUTED,
        "container": checkpoint.file.container,
        "files": len(parts),
        "file_bytes": sum(part.identity.size for part in parts),
        "sha256": [digest or "unknown: --verify reads the whole file" for digest in hashes],
        "checksums": _checksums(checkpoint, damaged) if verify else "not compared: --verify reads the whole file",
        "imports": list(checkpoint.file.imports),
        "picklescan": second_opinion.sentence([q.answer() for q in questions])
        if verify
        else "not asked: --verify asks it",
    }


def _checksums(checkpoint: Checkpoint, damaged: Sequence[str]) -> str:
    known = sum(len(part.manifest.crcs) for part in checkpoint.file.parts)
    if not known:
        return "none recorded: the container has no checksums"
    if damaged:
        shown = ", ".join(damaged[:5]) + (" …" if len(damaged) > 5 else "")
        return f"DAMAGED: {len(damaged)} of {known} storages are not as they were written ({shown})"
    return f"{known} storages as they were written"


def storage_facts(checkpoint: Checkpoint) -> dict[str, Any]:
    """Return how the file's tensors lie in its storages."""
    storages = [storage for part in checkpoint.file.parts for storage in part.manifest.storages]
    views: dict[int, int] = {}
    for _, tensor in _walk(checkpoint.file.root, ""):
        views[id(tensor.storage)] = views.get(id(tensor.storage), 0) + 1
    return {
        "storages": len(storages),
        "bytes": sum(storage.nbytes for storage in storages),
        "shared_by_several_tensors": sum(count > 1 for count in views.values()),
        "not_contiguous": sum(not _is_contiguous(tensor) for _, tensor in _walk(checkpoint.file.root, "")),
    }


def tensor_rows(checkpoint: Checkpoint) -> Iterator[dict[str, Any]]:
    """Yield one row for each tensor of the file: where it stands, shape, dtype, bytes, storage and place in the file."""
    for name, tensor in _walk(checkpoint.file.root, ""):
        yield {
            "name": _shown(name),
            "shape": "x".join(map(str, tensor.shape)) or "scalar",
            "dtype": tensor.dtype,
            "bytes": tensor.nbytes,
            "storage": _shown(tensor.storage.key),
            "at_byte": tensor.storage.place + tensor.offset * (tensor.nbytes // tensor.count if tensor.count else 0),
        }


def _shown(name: str) -> str:
    plain = name.isascii() and name.isprintable() and len(name) <= _NAME_CHARACTERS and not name.isspace()
    return name if plain else visible(name, _NAME_CHARACTERS)


def _walk(value: Any, name: str) -> Iterator[tuple[str, StoredTensor]]:
    """Yield every tensor with its keys; nesting and repetition are bounded by the rules of loading."""
    if type(value) is StoredTensor:
        yield name, value
    elif isinstance(value, dict | list | tuple):
        items = value.items() if isinstance(value, dict) else enumerate(value)
        for key, item in items:
            if isinstance(item, StoredTensor | dict | list | tuple):
                yield from _walk(item, f"{name} / {key}" if name else str(key))


def _is_contiguous(tensor: StoredTensor) -> bool:
    expected = 1
    for size, step in zip(reversed(tensor.shape), reversed(tensor.stride), strict=True):
        if size != 1 and step != expected:
            return False
        expected *= size
    return True
