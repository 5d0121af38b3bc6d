"""Checkpoints of F5-TTS: what a file holds, and its weights under upstream's names.

Files are examined in a process of its own before anything is done with them (`weights_files`), read as data, mapped
into memory when weights are asked for, and never executed.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from f5lab.errors import CheckpointError
from f5lab.untrusted.layouts import (
    EMA_BOOKKEEPING,
    EMA_PREFIX,
    FOREIGN_PREFIXES,
    LEGACY_BUFFERS,
    WRAPPER_PREFIXES,
    Layout,
    Section,
    read_structure,
)  # fmt: skip
from f5lab.untrusted.stored_tensors import StoredTensor
from f5lab.untrusted.weights_files import WeightsFile, open_weights_file

if TYPE_CHECKING:
    from torch import Tensor

    from f5lab.specs import Weights

__all__ = [
    "EMA_BOOKKEEPING", "EMA_PREFIX", "FOREIGN_PREFIXES", "LEGACY_BUFFERS", "WRAPPER_PREFIXES", "Checkpoint", "Layout",
    "Section", "open_checkpoint",
]  # fmt: skip


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
    stored : dict of str to dict of str to StoredTensor
        Each slot's tensors as the file describes them: shape, dtype and place, nothing read.
    file : WeightsFile
        The examined file.
    update : int or None
        Optimizer updates done; `legacy_step` is the older top-level ``step`` (before 0.4.0; counts micro-steps).
    ema_step, initted : int or None, bool or None
        ema_pytorch's own bookkeeping, kept inside the EMA's state dict.
    notes : tuple of str
        What is odd about the file, in sentences.
    """

    path: Path
    layout: Layout
    sections: tuple[Section, ...]
    slots: "tuple[Weights, ...]"
    labelled: bool
    prefixes: "dict[Weights, tuple[str, ...]]"
    stored: "dict[Weights, dict[str, StoredTensor]]" = field(repr=False)
    file: WeightsFile = field(repr=False)
    update: int | None = None
    legacy_step: int | None = None
    ema_step: int | None = None
    initted: bool | None = None
    notes: tuple[str, ...] = ()
    _states: "dict[Weights, dict[str, Tensor]]" = field(default_factory=dict, repr=False)

    def slot_of(self, slot: "Weights") -> "Weights":
        """Return the slot that is meant: a file that does not label its one set of weights gives it for either.

        Raises
        ------
        CheckpointError
            The file has no such weights.
        """
        if slot in self.stored:
            return slot
        if not self.labelled:
            return self.slots[0]
        other = self.slots[0]
        raise CheckpointError(
            f"{self.path} has no {slot} weights, only {other}",
            next_step=f"ask for {other} (upstream: use_ema={other == 'ema'}), or pass the trainer's full model_*.pt",
        )

    def weights(self, slot: "Weights") -> "dict[str, Tensor]":
        """Return one set of weights under upstream's names (``transformer. …``), mapped, on the CPU.

        A file that does not label its one set of weights gives it for either slot, as upstream's loader does.

        Raises
        ------
        CheckpointError
            The file has no such weights, or changed since it was opened.
        """
        slot = self.slot_of(slot)
        if slot not in self._states:
            self._states[slot] = self._map(self.stored[slot])
        return self._states[slot]

    @cached_property
    def scheduler(self) -> dict[str, Any] | None:
        """The schedule's state, as it was saved."""
        return self._section("scheduler_state_dict")

    @cached_property
    def optimizer(self) -> dict[str, Any] | None:
        """The optimizer's state, its tensors mapped."""
        return self._section("optimizer_state_dict")

    def _section(self, key: str) -> dict[str, Any] | None:
        value = self.file.root.get(key)
        return self._map(value) if isinstance(value, dict) else None

    def _map(self, value: Any) -> Any:
        return self.file.rebuild(value, self._map_tensor)

    def _map_tensor(self, stored: StoredTensor) -> "Tensor":
        from f5lab.mappings import map_tensor

        return map_tensor(self.file, stored)

    def confirm(self, hashes: "Sequence[str | None]" = ()) -> None:
        """Refuse the file if it is not the one any more that was opened: what was computed from it then means nothing.

        Parameters
        ----------
        hashes : sequence of str or None
            ``file.hashes()`` from before.

        Raises
        ------
        CheckpointError
        """
        self.file.confirm(hashes)


def open_checkpoint(path: str | Path) -> Checkpoint:
    """Open a checkpoint without reading its tensors.

    Raises
    ------
    CheckpointError
        The file is missing, a folder, refused (the message names the rule), or a file that is none of F5-TTS's.
    """
    file = open_weights_file(path)
    found = read_structure(file)
    loaded = file.root
    old = loaded.get("step") if found.layout == "trainer" or "model_state_dict" in loaded else None
    book = {key: _integer(file, value) for key, value in found.bookkeeping.items()}
    return Checkpoint(
        path=file.path,
        layout=found.layout,
        sections=found.sections,
        slots=tuple(found.states),
        labelled=found.labelled,
        prefixes=found.prefixes,
        stored=found.states,
        file=file,
        update=_integer(file, loaded.get("update")),
        legacy_step=_integer(file, old),
        ema_step=book.get("step"),
        initted=bool(book["initted"]) if book.get("initted") is not None else None,
        notes=found.notes,
    )


def _integer(file: WeightsFile, value: Any) -> int | None:
    if type(value) is StoredTensor:
        value = file.read_number(value)
        return int(value) if value is not None and value == value and abs(value) != float("inf") else None
    if type(value) is float and not (value == value and abs(value) != float("inf")):
        return None
    return int(value) if isinstance(value, int | float) and not isinstance(value, bool) else None
