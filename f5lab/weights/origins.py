"""Where a checkpoint comes from and which published architecture it is, as far as names, counters and shapes say. No torch."""

import re

from f5lab import schedules
from f5lab.checkpoints import Checkpoint
from f5lab.weights import architectures


def provenance(checkpoint: Checkpoint) -> list[dict[str, str]]:
    """Return what file name, counters and scheduler say about where the file comes from, and where they disagree."""
    rows = [{"fact": "file name", "value": checkpoint.path.name, "means": _name_says(checkpoint)}]
    update, step = checkpoint.update, checkpoint.ema_step
    if update is not None:
        rows.append({"fact": "update", "value": str(update), "means": "optimizer updates of this training"})
    elif "update" in checkpoint.file.root:
        rows.append({"fact": "update", "value": "no number", "means": "written by other code than the trainer's, or damaged"})
    elif checkpoint.legacy_step is None:
        rows.append({"fact": "update", "value": "absent", "means": "not resumable: a base, a pruned or converted file"})
    if checkpoint.legacy_step is not None:
        rows.append({
            "fact": "top-level step", "value": str(checkpoint.legacy_step),
            "means": "saved before the counter was called update, thus before 1.0.0: trained with v0's options "
            "(text_mask_padding False, pe_attn_head 1)",
        })  # fmt: skip
    if step is not None:
        rows.append({"fact": "EMA step", "value": str(step), "means": _step_says(update, step)})
    if checkpoint.initted is not None:
        means = "the EMA holds weights" if checkpoint.initted else "the EMA was never filled: random weights"
        rows.append({"fact": "EMA initted", "value": str(checkpoint.initted), "means": means})
    schedule = schedules.read_schedule(checkpoint.scheduler)
    if schedule:
        rows += _schedule_says(schedule)
    elif checkpoint.scheduler:
        rows.append({"fact": "schedule", "value": "not read", "means": "not the trainer's warm-up and decay in finite numbers"})
    return rows


def _name_says(checkpoint: Checkpoint) -> str:
    name, update = checkpoint.path.name, checkpoint.update
    if name.startswith("pretrained_"):
        return "the base that finetune_cli copied here, not a result of this training"
    match = re.fullmatch(r"model_(\d+)\.(pt|safetensors)", name)
    if match and update is not None and int(match.group(1)) != update:
        return f"DISAGREES with update {update}: renamed, or saved by other code"
    if match:
        published = {"1250000": "F5TTS_v1_Base (v1)", "1200000": "F5TTS_Base or E2TTS_Base (v0)"}.get(match.group(1))
        return f"the number of the published {published}" if published else f"update {match.group(1)} of a training"
    return "the trainer's latest" if name == "model_last.pt" else "not a name that upstream gives"


def _step_says(update: int | None, step: int) -> str:
    if not update:
        return f"handed to every fine-tune of this file: its EMA starts {step} steps into the schedule"
    if abs(step - update) <= 1:
        return "equals update: trained from nothing, or the EMA was reset"
    if step > update:
        return f"{step - update} more than update: inherited from the base, so the EMA decays as slowly as at {step}"
    return f"{update - step} fewer than update: the EMA missed updates, or was made anew at a resume"


def _schedule_says(schedule: schedules.Schedule) -> list[dict[str, str]]:
    share = (
        "dead: an update here changes nothing"
        if schedule.is_dead
        else f"{schedule.last_lr / schedule.peak:.0%} of peak"
    )
    phases = {
        "warm-up": "stopped before the warm-up's end: the planned rate was never reached",
        "decay": "stopped within the planned decay",
        "finished": "ran to its end; a resume from here trains at no learning rate",
    }
    plan = f"warm-up {schedule.warmup}, decay {schedule.decay}, at {schedule.position}"
    return [
        {"fact": "learning rate", "value": f"{schedule.last_lr:.3g} (peak {schedule.peak:.3g})", "means": share},
        {"fact": "schedule", "value": plan, "means": phases[schedule.phase]},
    ]


def preset_sentence(match: architectures.PresetMatch) -> str:
    """Return a preset match in words."""
    if not match.presets:
        apart = ", ".join(f"{key} {here} instead of {there}" for key, (here, there) in match.differences.items())
        return f"no published preset; nearest is {match.nearest} ({apart})"
    if not match.tie:
        return match.presets[0]
    ways = "; ".join(f"{k}: " + ", ".join(f"{n} {v}" for n, v in values.items()) for k, values in match.tie.items())
    return (
        f"TIE: {' and '.join(match.presets)} have the same names and shapes, so weights of one load into the other "
        f"without an error and speak garbage. They differ in {ways}"
    )
