"""Checkpoints of F5-TTS: what a file holds, and its weights under upstream's names.

Users have four layouts: the trainer's ``model_*.pt`` (raw, EMA, optimizer, scheduler, update), a pruned ``.pt``
(``finetune_gradio.prune_checkpoint``), an EMA-only base, and ``.safetensors`` with or without prefix ``ema_model.``.
Files are only read, mapped into memory and never unpickled beyond ``weights_only=True``.
"""

import pickle
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from f5lab.errors import CheckpointError
from f5lab.paths import existing_file
from f5lab.specs import Weights

Layout = Literal["trainer", "ema-only", "raw-only", "bare", "safetensors"]

EMA_PREFIX = "ema_model."
WRAPPER_PREFIXES = ("module.", "_orig_mod.")
FOREIGN_PREFIXES = ("ema.", "online_model.", "model.")
EMA_BOOKKEEPING = ("initted", "step", "update")
LEGACY_BUFFERS = ("mel_spec.mel_stft.mel_scale.fb", "mel_spec.mel_stft.spectrogram.window")
"""Buffers of old releases that upstream drops at load (its commit 305e3ea)."""

_SLOT_KEYS: dict[str, Weights] = {"model_state_dict": "raw", "ema_model_state_dict": "ema"}
_LOAD_ERRORS = (
    RuntimeError,
    pickle.UnpicklingError,
    EOFError,
    OSError,
    ValueError,
    KeyError,
    TypeError,
    AttributeError,
)
_EXPECTED = "a checkpoint of F5-TTS (.pt of the trainer, pruned .pt, or .safetensors)"
_HEAD_BYTES = 512


@dataclass(frozen=True)
class Section:
    """One top-level entry of a checkpoint: tensors, their parameters and bytes, and how they are laid out."""

    name: str
    holds: str
    tensors: int
    parameters: int
    bytes: int


@dataclass(frozen=True)
class Checkpoint:
    """An opened checkpoint.

    Attributes
    ----------
    path : Path
    layout : {"trainer", "ema-only", "raw-only", "bare", "safetensors"}
    sections : tuple of Section
        Every top-level entry, in file order.
    slots : tuple of {"raw", "ema"}
        Sets of weights that the file holds, by their label.
    labelled : bool
        False where nothing in the file says whether the weights are raw or EMA: a ``.safetensors`` without prefix
        (upstream loads it with either ``use_ema``) or a bare state dict.
    prefixes : dict of str to tuple of str
        Key prefixes found and stripped, for each slot.
    update : int or None
        Optimizer updates done; `legacy_step` is the older top-level ``step`` (before 0.4.0; counts micro-steps).
    ema_step, initted : int or None, bool or None
        ema_pytorch's own bookkeeping, kept inside the EMA's state dict.
    scheduler, optimizer : dict or None
    notes : tuple of str
        What is odd about the file, in sentences.
    """

    path: Path
    layout: Layout
    sections: tuple[Section, ...]
    slots: tuple[Weights, ...]
    labelled: bool
    prefixes: dict[str, tuple[str, ...]]
    update: int | None = None
    legacy_step: int | None = None
    ema_step: int | None = None
    initted: bool | None = None
    scheduler: dict[str, Any] | None = None
    optimizer: dict[str, Any] | None = None
    notes: tuple[str, ...] = ()
    _states: dict[str, dict[str, Tensor]] = field(default_factory=dict, repr=False)

    def weights(self, slot: Weights) -> dict[str, Tensor]:
        """Return one set of weights under upstream's names (``transformer. …``), mapped, on the CPU.

        A file that does not label its one set of weights gives it for either slot, as upstream's loader does.

        Raises
        ------
        CheckpointError
            The file has no such weights.
        """
        if slot in self._states:
            return self._states[slot]
        if not self.labelled:
            return self._states[self.slots[0]]
        other = self.slots[0]
        raise CheckpointError(
            f"{self.path} has no {slot} weights, only {other}",
            next_step=f"ask for {other} (upstream: use_ema={other == 'ema'}), or pass the trainer's full model_*.pt",
        )


def open_checkpoint(path: str | Path) -> Checkpoint:
    """Open a checkpoint without copying its tensors.

    Raises
    ------
    CheckpointError
        The file is missing, a folder, truncated, no checkpoint at all, or a torch file that is none of F5-TTS's.
    """
    path = Path(path).expanduser()
    existing_file(path, CheckpointError, "checkpoint", next_step="give the path of a .pt or .safetensors file")
    container = _container(path)
    loaded = _read(path, container)
    if not isinstance(loaded, dict):
        raise CheckpointError(f"{path} holds {type(loaded).__name__}", expected=_EXPECTED)
    raw_states, layout, labelled = _find_states(path, loaded, container)
    notes = _container_notes(path, container)
    states, prefixes, bookkeeping = {}, {}, {}
    for slot, state in raw_states.items():
        states[slot], prefixes[slot], found = _strip(path, slot, state)
        bookkeeping.update(found)
        notes += _prefix_notes(slot, prefixes[slot], labelled, layout)
    return Checkpoint(
        path=path,
        layout=layout,
        sections=tuple(_sections(loaded, layout)),
        slots=tuple(states),
        labelled=labelled,
        prefixes=prefixes,
        update=_integer(loaded.get("update")),
        legacy_step=_integer(loaded.get("step")) if layout == "trainer" or "model_state_dict" in loaded else None,
        ema_step=_integer(bookkeeping.get("step")),
        initted=bool(bookkeeping["initted"]) if "initted" in bookkeeping else None,
        scheduler=_mapping(loaded.get("scheduler_state_dict")),
        optimizer=_mapping(loaded.get("optimizer_state_dict")),
        notes=tuple(notes),
        _states=states,
    )


def _read(path: Path, container: str) -> Any:
    """The one place where bytes become objects."""
    try:
        if container == "safetensors":
            return load_file(path, device="cpu")
        return torch.load(path, map_location="cpu", weights_only=True, mmap=True)
    except pickle.UnpicklingError as error:
        raise CheckpointError(
            f"{path} holds Python objects besides tensors and was not loaded ({_short(error)})",
            expected="tensors, numbers, lists and dicts only",
            next_step="save it again as plain state dicts or as .safetensors",
        ) from error
    except SafetensorError as error:
        raise CheckpointError(
            f"{path} is no readable .safetensors file ({_short(error)})",
            next_step="compare its size and sha256 with the source and copy it again",
        ) from error
    except _LOAD_ERRORS as error:
        raise CheckpointError(
            f"{path} is damaged, cut short or no torch file ({path.stat().st_size:,} bytes; {_short(error)})",
            expected=_EXPECTED,
            next_step="compare its size and sha256 with the source and copy it again",
        ) from error


def _container(path: Path) -> Literal["torch", "safetensors"]:
    """Tell the container by content; upstream tells it by suffix."""
    with path.open("rb") as f:
        head = f.read(_HEAD_BYTES)
    if head.startswith(b"PK\x03\x04"):
        return "torch"
    if len(head) > 9 and head[8:9] == b"{" and int.from_bytes(head[:8], "little") <= path.stat().st_size:
        return "safetensors"
    what, advice = _describe(head)
    raise CheckpointError(f"{path} is {what}, not a checkpoint", expected=_EXPECTED, next_step=advice)


def _describe(head: bytes) -> tuple[str, str]:
    start = head.lstrip().lower()
    if not head:
        return "an empty file", "download or copy it again"
    if start.startswith((b"<!doctype", b"<html", b"<?xml")):
        return "a web page (an error or login page saved under this name?)", "download the file itself"
    if start.startswith(b"version https://git-lfs"):
        return "a Git LFS pointer", "fetch the content with `git lfs pull`"
    if head.startswith(b"\x80"):
        return "a pickle in torch's old format", "open it with a torch you trust and torch.save() it again"
    if head.startswith(b"\x1f\x8b"):
        return "a gzip archive", "unpack it first"
    if not re.search(rb"[^\x09\x0a\x0d\x20-\x7e\x80-\xff]", head):
        return "a text file", "give the .pt or .safetensors file"
    return f"{len(head)}+ bytes of unknown format", "compare its sha256 with the source and copy it again"


def _find_states(path: Path, loaded: dict[str, Any], container: str) -> tuple[dict[Weights, Any], Layout, bool]:
    """Return the state dicts by slot, the layout, and whether the file says which slot is which."""
    if container == "safetensors":
        prefixed = any(key.startswith(EMA_PREFIX) for key in loaded)
        return {"ema" if prefixed else "raw": loaded}, "safetensors", prefixed
    states = {slot: loaded[key] for key, slot in _SLOT_KEYS.items() if key in loaded}
    if states:
        layout: Layout = "trainer" if len(states) == 2 else "ema-only" if "ema" in states else "raw-only"
        return states, layout, True
    if loaded and all(isinstance(value, Tensor) for value in loaded.values()):
        prefixed = any(key.startswith(EMA_PREFIX) for key in loaded)
        return {"ema" if prefixed else "raw": loaded}, "bare", prefixed
    raise CheckpointError(
        f"{path} is a torch file but none of F5-TTS's; its top-level keys",
        offenders=[_clip(str(key)) for key in loaded] or ["none at all"],
        expected="model_state_dict or ema_model_state_dict",
    )


def _strip(path: Path, slot: str, state: Any) -> tuple[dict[str, Tensor], tuple[str, ...], dict[str, Tensor]]:
    """Return the weights under upstream's names, the prefixes taken off, and ema_pytorch's bookkeeping."""
    if not isinstance(state, Mapping):
        raise CheckpointError(f"{path}: {slot} weights are {type(state).__name__}", expected="a state dict")
    weights, found, bookkeeping, alien = {}, [], {}, []
    for key, value in state.items():
        if key in EMA_BOOKKEEPING:
            bookkeeping[key] = value
            continue
        if not isinstance(value, Tensor):
            alien.append(f"{_clip(str(key))} ({type(value).__name__})")
            continue
        name, prefixes = _bare_name(str(key))
        found += [p for p in prefixes if p not in found]
        if name in weights:
            alien.append(f"{_clip(name)} (twice, under different prefixes)")
        if name not in LEGACY_BUFFERS:
            weights[name] = value
    alien += [f"{_clip(k)} (its shape needs more bytes than are stored)" for k, v in weights.items() if _overruns(v)]
    if alien:
        raise CheckpointError(f"{path}: {slot} weights hold entries that are no weights", offenders=alien)
    if not any(name.startswith("transformer.") for name in weights):
        raise CheckpointError(
            f"{path} is a torch file but none of F5-TTS's; its {slot} weights are named",
            offenders=[_clip(name) for name in weights] or ["nothing at all"],
            expected="names that start with transformer.",
        )
    return weights, tuple(found), bookkeeping


def _bare_name(key: str) -> tuple[str, list[str]]:
    """Take off every known wrapper's prefix: ``ema_model.``, DDP's ``module.``, torch.compile's ``_orig_mod.``."""
    found = []
    candidates = (EMA_PREFIX, *WRAPPER_PREFIXES, *FOREIGN_PREFIXES)
    while prefix := next((p for p in candidates if key.startswith(p)), None):
        found.append(prefix)
        key = key.removeprefix(prefix)
    if "._orig_mod." in key:  # a compiled submodule
        found.append("_orig_mod.")
        key = key.replace("._orig_mod.", ".")
    return key, found


def _overruns(tensor: Tensor) -> bool:
    return tensor.numel() * tensor.element_size() > tensor.untyped_storage().nbytes()


def _container_notes(path: Path, container: str) -> list[str]:
    by_suffix = "safetensors" if path.name.split(".")[-1] == "safetensors" else "torch"
    if by_suffix == container:
        return []
    return [f"The content is {container}, the name says {by_suffix}: upstream goes by the name and fails to load it."]


def _prefix_notes(slot: str, prefixes: tuple[str, ...], labelled: bool, layout: Layout) -> list[str]:
    notes = []
    strange = [p for p in prefixes if p != EMA_PREFIX]
    if strange:
        notes.append(
            f"Keys of the {slot} weights carry {', '.join(strange)}: a strict load fails, and a load with strict=False "
            "keeps random weights without a word."
        )
    if slot == "ema" and EMA_PREFIX not in prefixes:
        notes.append(
            f"The EMA slot has no {EMA_PREFIX} prefix: ema_pytorch did not write it. prune_checkpoint(save_ema=False) "
            "stores raw weights under this name."
        )
    if slot == "raw" and EMA_PREFIX in prefixes:
        notes.append(f"The raw slot's keys carry {EMA_PREFIX}: these are EMA weights under the wrong name.")
    if not labelled:
        notes.append("Nothing in the file says whether these weights are raw or EMA.")
    if layout == "bare":
        notes.append("A bare state dict: upstream's load_checkpoint wants model_state_dict or ema_model_state_dict.")
    return notes


def _sections(loaded: dict[str, Any], layout: Layout) -> Iterable[Section]:
    if layout in ("safetensors", "bare"):
        yield _section("(whole file)", loaded)
        return
    for name, value in loaded.items():
        yield _section(_clip(str(name)), value)


def _section(name: str, value: Any) -> Section:
    tensors = list(_tensors(value))
    holds = {"model_state_dict": "raw weights", "ema_model_state_dict": "EMA weights"}.get(name)
    if holds is None:
        holds = f"{len(tensors)} tensors" if tensors else _value_text(value)
    return Section(
        name=name,
        holds=holds,
        tensors=len(tensors),
        parameters=sum(t.numel() for t in tensors),
        bytes=sum(t.numel() * t.element_size() for t in tensors),
    )


def _value_text(value: Any) -> str:
    if value is None or isinstance(value, bool | int | float | str):
        return _clip(repr(value), 60)
    return (
        f"{type(value).__name__} of {len(value)}" if isinstance(value, Mapping | list | tuple) else type(value).__name__
    )


def _tensors(value: Any, depth: int = 6) -> Iterable[Tensor]:
    """Yield the tensors of a nested container, down to `depth` levels (an optimizer's state has three)."""
    if isinstance(value, Tensor):
        yield value
    elif depth and isinstance(value, Mapping):
        for item in value.values():
            yield from _tensors(item, depth - 1)
    elif depth and isinstance(value, list | tuple):
        for item in value:
            yield from _tensors(item, depth - 1)


def _integer(value: Any) -> int | None:
    if isinstance(value, Tensor) and value.numel() == 1:
        return int(value.item())
    return int(value) if isinstance(value, int | float) and not isinstance(value, bool) else None


def _mapping(value: Any) -> dict[str, Any] | None:
    return dict(value) if isinstance(value, Mapping) else None


def _clip(text: str, length: int = 80) -> str:
    printable = "".join(c if c.isprintable() else "\ufffd" for c in text[: length + 1])
    return printable if len(printable) <= length else printable[: length - 1] + "…"


def _short(error: Exception) -> str:
    return _clip(" ".join(str(error).split()) or type(error).__name__, 120)
