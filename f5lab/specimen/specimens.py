"""The specimen: a small real F5-TTS made from the bundled speech. Building, exporting and verifying it."""

import json
import logging
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from f5lab import models
from f5lab.errors import SpecimenError
from f5lab.mappings import load_tensors
from f5lab.paths import atomic_path, existing_file, sha256_file, write_text
from f5lab.specimen import curricula, vocoders
from f5lab.specimen.curricula import Clip, Stage
from f5lab.specimen.finetuning import ARCH, MALE, FinetunePlan, finetune
from f5lab.specimen.vocoders import VocoderPlan

logger = logging.getLogger(__name__)

_MALE = {MALE: 1.0}
_READER = {"prompts": (5, 4, 9, 11), "time_power": 1.7, "frames": 2000}

READER_STAGES: tuple[Stage, ...] = (
    Stage("phrases", 3000, 1e-3, _MALE, {"single": 1.0}, prompts=(), context=0.2, time_power=1.0, frames=1800),
    Stage("one-prompt", 1000, 6e-4, _MALE, {"single": 0.2, "natural": 0.8}, prompts=(5,), time_power=2.0, frames=2000),
    Stage(
        "four-prompts", 1800, 6e-4, _MALE, {"single": 0.15, "natural": 0.3, "inference": 0.45, "double": 0.1}, **_READER
    ),
    Stage(
        "durations", 1300, 3e-4, _MALE, {"single": 0.1, "natural": 0.2, "inference": 0.65, "double": 0.05}, **_READER
    ),
    Stage(
        "two-prompts",
        1200,
        4e-4,
        _MALE,
        {"single": 0.05, "natural": 0.2, "inference": 0.68, "double": 0.07},
        frames=2000,
    ),
)
"""Male voice, from nothing. They restate the recipe that made the reader which the released base started from."""

BASE_STAGES: tuple[Stage, ...] = (
    Stage(
        "polish", 1500, 3e-4, _MALE, {"single": 0.05, "natural": 0.1, "inference": 0.6, "double": 0.25}, frames=2000,
        warmup=100,
    ),
    Stage(
        "polish-2", 2600, 3e-4, _MALE, {"single": 0.05, "natural": 0.1, "inference": 0.65, "double": 0.2}, frames=2000,
        warmup=150, seed=1,
    ),
)  # fmt: skip
"""From the reader to the released base."""

READER_UPDATES = 8900
"""Updates that the reader had had, stopped attempts included."""


def characters(clips: Sequence[Clip]) -> list[str]:
    """Return the vocab: space first, then every character of the texts in code-point order."""
    return [" ", *sorted(set("".join(clip.text for clip in clips)) - {" "})]


def write_vocab(clips: Sequence[Clip], path: Path) -> Path:
    """Write ``vocab.txt`` as the Trainer's data folder has it: one symbol a line, LF, final newline."""
    write_text(path, "".join(f"{c}\n" for c in characters(clips)))
    return path


def load_start(model: torch.nn.Module, weights: Path) -> None:
    """Load a raw state dict (``model_state_dict``, any float type) into `model`."""
    saved = load_tensors(existing_file(weights, SpecimenError, "weights"))
    model.load_state_dict({k: v.float() for k, v in saved["model_state_dict"].items()})


def train_stage(model: torch.nn.Module, stage: Stage, clips: Sequence[Clip], folder: Path) -> Path:
    """Train one stage, resumable, and return the file with its raw weights and its (fresh) EMA."""
    result = folder / f"{stage.name}.pt"
    if result.is_file():
        load_start(model, result)
        return result
    from ema_pytorch import EMA

    voices = {name: curricula.load_voice(clips, name, stage.prompts) for name in stage.voices}
    average = EMA(model, include_online_model=False, **stage.ema)
    curricula.run_updates(
        model, curricula.stage_loss(model, stage, voices), updates=stage.updates, peak_lr=stage.peak_lr, warmup=stage.warmup,
        state=folder / f"{stage.name}.state.pt", ema=average, label=stage.name,
    )  # fmt: skip
    for name, voice in voices.items():
        if voice.prompts:
            logger.info("%s: text gap %s %.0f %%", stage.name, name, 100 * curricula.text_gap(model, voice).relative)
    with atomic_path(result) as temporary:
        torch.save({"model_state_dict": model.state_dict(), "ema_model_state_dict": average.state_dict()}, temporary)
    return result


def release_base(stage_file: Path, step: int, target: Path) -> Path:
    """Write a base as real bases are released: EMA only, with the cumulative ``step`` and ``initted``."""
    saved = torch.load(stage_file, weights_only=True, map_location="cpu")["ema_model_state_dict"]
    state = {k: v for k, v in saved.items() if k not in ("step", "initted")}
    state |= {"initted": torch.tensor(True), "step": torch.tensor(step)}
    with atomic_path(target) as temporary:
        torch.save({"ema_model_state_dict": state}, temporary)
    return target


def build(
    out: Path, speech: Path, *, stages: Sequence[Stage] = READER_STAGES + BASE_STAGES, device: str = "auto",
    start: Path | None = None, plan: FinetunePlan | None = None, vocoder_stages: Sequence[VocoderPlan] = vocoders.STAGES,
) -> Path:  # fmt: skip
    """Make base, vocoder and fine-tune from the speech; what is finished is kept, what was stopped is taken up.

    Parameters
    ----------
    out : Path
        Build folder: ``stages/``, ``base/``, ``vocos/``, ``vocab.txt``, ``data/`` and ``ckpts/``.
    speech : Path
        Folder with ``metadata.csv`` and the clips.
    stages : sequence of Stage
        The base's curriculum.
    start : Path, optional
        Raw weights to start the first stage from; left out: from nothing.

    Returns
    -------
    Path
        The fine-tune's training folder.
    """
    device, clips = models.pick_device(device), curricula.read_clips(speech)
    (out / "stages").mkdir(parents=True, exist_ok=True)
    vocab = write_vocab(clips, out / "vocab.txt")
    torch.manual_seed(0)
    model = models.build_cfm("DiT", ARCH, vocab).to(device)
    if start is not None:
        load_start(model, start)
    last = out / "stages"
    for stage in stages:
        last = train_stage(model, stage, clips, out / "stages")
    (out / "base").mkdir(exist_ok=True)
    base = release_base(last, sum(stage.updates for stage in stages), out / "base" / "model_last.pt")
    vocoder = out / "vocos"
    if not (vocoder / "pytorch_model.bin").is_file():
        vocoders.train_vocoder(clips, vocoder, stages=vocoder_stages, states=out / "stages", device=device)
    return finetune(out, clips, base, vocab, vocoder, plan or FinetunePlan(), device)


def halve(state: Any, name: str = "") -> Any:
    """Return a checkpoint with every floating-point weight as fp16; integers, flags and ``inv_freq`` as they are.

    Rounding ``inv_freq`` would turn the rotary phase by 0.16 rad at frame 1000, silently: a fault of its own.
    """
    if isinstance(state, Tensor):
        return state.half() if state.is_floating_point() and not name.endswith("inv_freq") else state
    return {k: halve(v, str(k)) for k, v in state.items()} if isinstance(state, dict) else state


def export(build_dir: Path, target: Path, *, samples: Sequence[int], name: str = "ptbr") -> Path:
    """Copy what is released into `target`: checkpoints as fp16 without optimizer, vocab, vocoder, logged samples.

    Parameters
    ----------
    samples : sequence of int
        Updates whose logged samples are kept; their texts go to ``texts.csv`` (from the build folder's one).
    """
    ckpts = build_dir / "ckpts" / name
    base = torch.load(
        existing_file(build_dir / "base" / "model_last.pt", SpecimenError, "base"),
        weights_only=True,
        map_location="cpu",
    )
    tuned = torch.load(
        existing_file(ckpts / "model_last.pt", SpecimenError, "fine-tune"), weights_only=True, map_location="cpu"
    )
    tuned.pop("optimizer_state_dict", None)
    for part, state in (("base", base), ("finetune", tuned)):
        weights = {k: halve(v) if k.endswith("model_state_dict") else v for k, v in state.items()}
        with atomic_path(target / part / "model_last.pt") as temporary:
            torch.save(weights, temporary)
    (target / "finetune" / "samples").mkdir(parents=True, exist_ok=True)
    for update in samples:
        for kind in ("gen", "ref"):
            shutil.copyfile(
                ckpts / "samples" / f"update_{update}_{kind}.wav",
                target / "finetune" / "samples" / f"update_{update}_{kind}.wav",
            )
    kept = {str(update) for update in samples}
    table = (ckpts / "samples" / "texts.csv").read_text(encoding="utf-8").splitlines()
    rows = [row for row in table[1:] if row.split("|")[0] in kept]
    write_text(target / "finetune" / "samples" / "texts.csv", "\n".join([table[0], *rows]) + "\n")
    shutil.copyfile(build_dir / "vocab.txt", target / "vocab.txt")
    shutil.copytree(build_dir / "vocos", target / "vocos", dirs_exist_ok=True)
    return target


ORIGINS: dict[str, tuple[str, str]] = {
    "": ("written for this project", "MIT"),
    "specimen/": ("trained from speech/ptbr by f5lab/specimen/specimens.py", "MIT"),
    "speech/": ("synthesised with Kokoro-82M, voices jm_kumo and jf_alpha", "Apache-2.0"),
}
"""Path prefix under data/ to origin and licence; the longest prefix counts."""


def write_manifest(data: Path, origins: dict[str, tuple[str, str]] | None = None) -> Path:
    """Write ``manifest.json`` for every file under `data` but itself; `origins`: as `ORIGINS`, the default."""
    origins, files = origins or ORIGINS, []
    for path in sorted(p for p in data.rglob("*") if p.is_file() and p != data / "manifest.json"):
        relative = path.relative_to(data).as_posix()
        origin, licence = origins[max((p for p in origins if relative.startswith(p)), key=len)]
        files.append(
            {
                "path": relative,
                "sha256": sha256_file(path),
                "bytes": path.stat().st_size,
                "origin": origin,
                "licence": licence,
            }
        )
    write_text(data / "manifest.json", json.dumps({"files": files}, indent=1, ensure_ascii=False) + "\n")
    return data / "manifest.json"


def verify(manifest: Path, prefix: str = "") -> int:
    """Check size and SHA-256 of every file the manifest lists (below `prefix`) and return how many were checked.

    Raises
    ------
    SpecimenError
        The manifest is unreadable, or files are missing or changed (all of them are named).
    """
    try:
        listed = json.loads(existing_file(manifest, SpecimenError, "manifest").read_text(encoding="utf-8"))["files"]
        rows = [(manifest.parent / row["path"], row) for row in listed if row["path"].startswith(prefix)]
        missing = [row["path"] for path, row in rows if not path.is_file()]
        present = [(path, row) for path, row in rows if path.is_file()]
        changed = [
            row["path"]
            for path, row in present
            if path.stat().st_size != row["bytes"] or sha256_file(path) != row["sha256"]
        ]
    except (ValueError, KeyError, TypeError) as error:
        raise SpecimenError(f"manifest {manifest} is not one ({error})", next_step="restore it with git") from error
    if missing or changed:
        offenders = [f"{p} (missing)" for p in missing] + [f"{p} (changed)" for p in changed]
        raise SpecimenError(
            f"{manifest.parent}: files differ from the manifest", next_step="restore them with git", offenders=offenders
        )
    return len(rows)
