"""What lies in the slots of a checkpoint where it should not be, or is not what its label says."""

from dataclasses import dataclass

import numpy as np

from f5lab import checkpoints
from f5lab.checkpoints import Checkpoint
from f5lab.weights.diffs import Comparison
from f5lab.weights.sums import Sums, vector_cosine


@dataclass(frozen=True)
class SlotNotice:
    """Something about the slots of a checkpoint that explains bad speech: a stable id, and what was seen."""

    id: str
    says: str


def judge_slots(checkpoint: Checkpoint, comparison: Comparison | None = None) -> list[SlotNotice]:
    """Say which weights are where they should not be, or are not what their label says.

    Without a base a plain exchange of the two slots cannot be seen: raw and EMA differ, and that is all.
    """
    notices = []
    if "ema" in checkpoint.slots and checkpoints.EMA_PREFIX not in checkpoint.prefixes["ema"]:
        if checkpoint.ema_step is None:
            says = (
                "EMA slot without ema_model. prefix and step: prune_checkpoint(save_ema=False) puts raw weights there"
            )
            notices.append(SlotNotice("raw-in-ema-slot", says))
    if checkpoint.initted is False or (checkpoint.ema_step == 0 and checkpoint.update):
        says = f"initted {checkpoint.initted}, step {checkpoint.ema_step} at update {checkpoint.update}"
        notices.append(SlotNotice("ema-uninitialised", f"the EMA was never filled ({says})"))
    if comparison is None:
        return notices
    overall = comparison.overall
    if overall.dd == 0 and not overall.left_out:
        notices.append(SlotNotice("slots-equal", "raw and EMA are the same, to the last bit"))
    if comparison.has_base:
        notices += _judge_with_base(overall)
    return notices


def _judge_with_base(overall: Sums) -> list[SlotNotice]:
    notices = []
    if overall.uu and overall.vv == 0:
        notices.append(SlotNotice("ema-frozen", "the EMA equals the base exactly although the raw weights moved"))
    if overall.base_between:
        says = "the EMA lies on the other side of the base than the raw weights: the base is not what training started from, but a later snapshot of it"
        notices.append(SlotNotice("base-too-late", says))
    elif overall.strayed:
        says = "no average of this training: damaged, of another run, or this is not the base"
        notices.append(SlotNotice("ema-strayed", f"the EMA did not come the raw weights' way from the base (cosine {overall.path_cosine:.2f}): {says}"))
    elif overall.exchanged:
        ratio = float(np.sqrt(overall.vv / overall.uu)) if overall.uu else float("inf")
        says = "an EMA lags behind the raw weights, so the slots look exchanged (or this is not the base)"
        notices.append(SlotNotice("raw-ema-swapped", f"the EMA is {ratio:.1f} times as far from the base as raw: {says}"))
    if overall.moved is not None and overall.moved < 1e-5:
        notices.append(SlotNotice("lr-dead", f"raw weights moved by {overall.moved:.1g} of their length: nothing learned"))
    similar = vector_cosine((overall.aa + overall.pp - overall.uu) / 2, overall.aa, overall.pp)
    if similar is not None and similar < 0.3:
        says = f"cosine of raw with the base is {similar:.2f}: not a fine-tune of this base (near 1 expected), or base names another model's"
        notices.append(SlotNotice("scratch-by-accident", says))
    return notices


def judge_one(slot: str, overall: Sums) -> list[SlotNotice]:
    """Judge one set of weights against the base's, with no second one to tell what happened."""
    if overall.left_out or not overall.n:
        return []
    moved = overall.relative_l2 or 0.0
    if overall.dd == 0 or moved < 1e-5:
        how = "the base's, to the last bit" if overall.dd == 0 else f"{moved:.1g} of their length from the base"
        return [SlotNotice("lr-dead", f"the {slot} weights are {how}: nothing learned" + (", or an EMA that never moved" if slot == "ema" else ""))]
    if overall.cosine is not None and overall.cosine < 0.3:
        says = f"cosine of {slot} with the base is {overall.cosine:.2f}: not a fine-tune of this base (near 1 expected), or base names another model's"
        return [SlotNotice("scratch-by-accident", says)]
    return []
