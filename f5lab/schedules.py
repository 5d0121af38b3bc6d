"""The trainer's learning-rate schedule, rebuilt from a checkpoint's ``scheduler_state_dict``.

Upstream's trainer runs ``SequentialLR([LinearLR warm-up, LinearLR decay])`` (``f5_tts/model/trainer.py``, ``train``);
everything about it is in the saved state, so the rate of every past and coming update is known exactly.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

DEAD_SHARE = 1e-3
"""Below this share of the peak rate an update changes nothing that fp32 training would notice."""


@dataclass(frozen=True)
class Schedule:
    """A linear warm-up and a linear decay.

    Attributes
    ----------
    peak : float
        Learning rate at the end of the warm-up.
    warmup, decay : int
        Lengths in scheduler steps (``num_warmup_updates`` times processes; the rest of the planned training).
    start_factor, end_factor : float
        Shares of `peak` at the very start and the very end; upstream's is 1e-8.
    position : int
        Scheduler steps done. Accelerate takes one for each process and update.
    last_lr : float
        The rate that the state itself records for its position.
    """

    peak: float
    warmup: int
    decay: int
    start_factor: float
    end_factor: float
    position: int
    last_lr: float

    def rates(self, steps: "NDArray[np.int64]") -> "NDArray[np.float64]":
        """Return the learning rate of the update that begins at each scheduler position, shape=(len(steps),)."""
        import numpy as np

        steps = np.asarray(steps, dtype=np.float64)
        up = np.clip(steps / self.warmup, 0, 1) if self.warmup else np.ones_like(steps)
        down = np.clip((steps - self.warmup) / self.decay, 0, 1) if self.decay > 0 else np.zeros_like(steps)
        rising = self.start_factor + (1 - self.start_factor) * up
        falling = 1 + (self.end_factor - 1) * down
        return self.peak * np.where(steps < self.warmup, rising, falling)

    def update_rates(self, update: int) -> "NDArray[np.float64]":
        """Return the learning rate of updates 1 to `update`, shape=(update,), however many processes there were."""
        import numpy as np

        per_update = self.position / update if update else 1.0
        return self.rates(np.floor(np.arange(update) * max(per_update, 0.0)).astype(np.int64))

    @property
    def phase(self) -> str:
        """Where the training stopped: ``warm-up``, ``decay`` or ``finished``."""
        if self.position < self.warmup:
            return "warm-up"
        return "decay" if self.position < self.warmup + self.decay else "finished"

    @property
    def is_dead(self) -> bool:
        """Whether the next update would be made at (nearly) no learning rate."""
        return self.last_lr < DEAD_SHARE * self.peak


def read_schedule(state: Mapping[str, Any] | None) -> Schedule | None:
    """Return the schedule of a ``scheduler_state_dict``; None when there is none, it is of another kind or holds no numbers."""
    if not state:
        return None
    parts = state.get("_schedulers")
    if not isinstance(parts, list) or len(parts) != 2 or not all(isinstance(p, Mapping) for p in parts):
        return None
    up, down = parts
    if not all("total_iters" in part and part.get("base_lrs") for part in parts) or not state.get("_last_lr"):
        return None
    try:
        found = _schedule(state, up, down)
    except (TypeError, ValueError, KeyError, IndexError, OverflowError):
        return None
    numbers = (found.peak, found.start_factor, found.end_factor, found.last_lr)
    return found if all(map(math.isfinite, numbers)) and found.peak > 0 else None


def _schedule(state: Mapping[str, Any], up: Mapping[str, Any], down: Mapping[str, Any]) -> Schedule:
    milestones = state.get("_milestones") or [up["total_iters"]]
    return Schedule(
        peak=float(up["base_lrs"][0]),
        warmup=int(milestones[0]),
        decay=int(down["total_iters"]),
        start_factor=float(up["start_factor"]),
        end_factor=float(down["end_factor"]),
        position=int(state.get("last_epoch", 0)),
        last_lr=float(state["_last_lr"][0]),
    )
