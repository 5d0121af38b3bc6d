"""What an examined file is to F5-TTS: its sections, its sets of weights, their prefixes, and what is odd. No torch.

Users have four layouts: the trainer's ``model_*.pt`` (raw, EMA, optimizer, scheduler, update), a pruned ``.pt``
(``finetune_gradio.prune_checkpoint``), an EMA-only base, and ``.safetensors`` with or without prefix ``ema_model.``.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from f5lab.errors import CheckpointError
from f5lab.tables import visible
from f5lab.untrusted.stored_tensors import StoredTensor
from f5lab.untrusted.weights_files import WeightsFile

if TYPE_CHECKING:
    from f5lab.specs import Weights

Layout = Literal["trainer", "ema-only", "raw-only", "bare", "safetensors"]

EMA_PREFIX = "ema_model."
WRAPPER_PREFIXES = ("module.", "_orig_mod.")
FOREIGN_PREFIXES = ("ema.", "online_model.", "model.")
EMA_BOOKKEEPING = ("initted", "step", "update")
LEGACY_BUFFERS = ("mel_spec.mel_stft.mel_scale.fb", "mel_spec.mel_stft.spectrogram.window")
"""Buffers of old releases that upstream drops at load (its commit 305e3ea)."""

_SLOT_KEYS: "dict[str, Weights]" = {"model_state_dict": "raw", "ema_model_state_dict": "ema"}
_EXPECTED = "a checkpoint of F5-TTS (.pt of the trainer, pruned .pt, or .safetensors)"
_KEY_CHARACTERS = 80


@dataclass(frozen=True)
class Section:
    """One top-level entry of a checkpoint: tensors, their parameters and bytes, and how they are laid out."""

    name: str
    holds: str
    tensors: int
    parameters: int
    bytes: int


@dataclass(frozen=True)
class Structure:
    """A checkpoint's layout, with tensors described and not read.

    Attributes
    ----------
    layout, sections, slots, labelled, prefixes, notes
        As in `checkpoints.Checkpoint`.
    states : dict of str to dict of str to StoredTensor
        Each slot's weights under upstream's names.
    bookkeeping : dict
        ema_pytorch's own entries.
    """

    layout: Layout
    sections: tuple[Section, ...]
    labelled: bool
    states: "dict[Weights, dict[str, StoredTensor]]"
    prefixes: "dict[Weights, tuple[str, ...]]"
    bookkeeping: dict[str, Any]
    notes: tuple[str, ...]


def read_structure(file: WeightsFile) -> Structure:
    """Return what an examined file is to F5-TTS.

    Raises
    ------
    CheckpointError
        It is none of F5-TTS's checkpoints.
    """
    path, loaded = file.path, file.root
    if not isinstance(loaded, dict):
        raise CheckpointError(f"{path} holds {kind_of(loaded)}", expected=_EXPECTED)
    found, layout, labelled = _find_states(path, loaded, file.container)
    notes = _container_notes(path, file.container)
    states, prefixes, bookkeeping = {}, {}, {}
    for slot, state in found.items():
        states[slot], prefixes[slot], book = _strip(path, slot, state)
        bookkeeping.update(book)
        notes += _prefix_notes(slot, prefixes[slot], labelled, layout)
    sections = tuple(_sections(loaded, layout))
    return Structure(layout, sections, labelled, states, prefixes, bookkeeping, tuple(notes))


def kind_of(value: Any) -> str:
    """Return the name of a value's type as torch's users know it."""
    return "Tensor" if type(value) is StoredTensor else type(value).__name__


def clip_key(key: Any) -> str:
    """Return a key of the file, what is invisible written out, in at most 80 characters and a count of the rest."""
    return visible(str(key), _KEY_CHARACTERS)


def _find_states(path: Path, loaded: dict[Any, Any], container: str) -> "tuple[dict[Weights, Any], Layout, bool]":
    """Return the state dicts by slot, the layout, and whether the file says which slot is which."""
    if container == "safetensors":
        prefixed = any(key.startswith(EMA_PREFIX) for key in loaded)
        return {"ema" if prefixed else "raw": loaded}, "safetensors", prefixed
    states = {slot: loaded[key] for key, slot in _SLOT_KEYS.items() if key in loaded}
    if states:
        layout: Layout = "trainer" if len(states) == 2 else "ema-only" if "ema" in states else "raw-only"
        return states, layout, True
    if loaded and all(type(value) is StoredTensor for value in loaded.values()):
        prefixed = any(str(key).startswith(EMA_PREFIX) for key in loaded)
        return {"ema" if prefixed else "raw": loaded}, "bare", prefixed
    raise CheckpointError(
        f"{path} is a torch file but none of F5-TTS's; its top-level keys",
        offenders=[clip_key(key) for key in loaded] or ["none at all"],
        expected="model_state_dict or ema_model_state_dict",
    )


def _strip(path: Path, slot: str, state: Any) -> tuple[dict[str, StoredTensor], tuple[str, ...], dict[str, Any]]:
    """Return the weights under upstream's names, the prefixes taken off, and ema_pytorch's bookkeeping."""
    if not isinstance(state, Mapping):
        raise CheckpointError(f"{path}: {slot} weights are {kind_of(state)}", expected="a state dict")
    weights: dict[str, StoredTensor] = {}
    found, bookkeeping, alien = [], {}, []
    for key, value in state.items():
        if key in EMA_BOOKKEEPING:
            bookkeeping[key] = value
            continue
        if type(value) is not StoredTensor:
            alien.append(f"{clip_key(key)} ({kind_of(value)})")
            continue
        name, prefixes = bare_name(str(key))
        found += [p for p in prefixes if p not in found]
        if name in weights:
            alien.append(f"{clip_key(name)} (twice, under different prefixes)")
        if name not in LEGACY_BUFFERS:
            weights[name] = value
    if alien:
        raise CheckpointError(f"{path}: {slot} weights hold entries that are no weights", offenders=alien)
    if not any(name.startswith("transformer.") for name in weights):
        raise CheckpointError(
            f"{path} is a torch file but none of F5-TTS's; its {slot} weights are named",
            offenders=[clip_key(name) for name in weights] or ["nothing at all"],
            expected="names that start with transformer.",
        )
    return weights, tuple(found), bookkeeping


def bare_name(key: str) -> tuple[str, list[str]]:
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


def _container_notes(path: Path, container: str) -> list[str]:
    if path.name.endswith(".json"):
        return []
    container = "safetensors" if container == "safetensors" else "torch"
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
        yield _section(clip_key(name), value)


def _section(name: str, value: Any) -> Section:
    tensors = list(tensors_in(value))
    holds = {"model_state_dict": "raw weights", "ema_model_state_dict": "EMA weights"}.get(name)
    if holds is None:
        holds = f"{len(tensors)} tensors" if tensors else _value_text(value)
    return Section(
        name=name,
        holds=holds,
        tensors=len(tensors),
        parameters=sum(t.count for t in tensors),
        bytes=sum(t.nbytes for t in tensors),
    )


def _value_text(value: Any) -> str:
    if value is None or isinstance(value, bool | int | float | str):
        return visible(repr(value), 60)
    return (
        f"{type(value).__name__} of {len(value)}" if isinstance(value, Mapping | list | tuple) else type(value).__name__
    )


def tensors_in(value: Any, depth: int = 6) -> Iterable[StoredTensor]:
    """Yield the tensors of a nested container, down to `depth` levels (an optimizer's state has three)."""
    if type(value) is StoredTensor:
        yield value
    elif depth and isinstance(value, Mapping):
        for item in value.values():
            yield from tensors_in(item, depth - 1)
    elif depth and isinstance(value, list | tuple):
        for item in value:
            yield from tensors_in(item, depth - 1)
