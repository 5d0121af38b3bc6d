"""The specimen: a small real F5-TTS made from the bundled speech. Building, exporting and verifying it."""

import json
import logging
import random
import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import soundfile as sf
import torch
from torch import Tensor

from f5lab import curricula, models, vocoders
from f5lab.audio import load_wave
from f5lab.curricula import Clip, Stage, Voice
from f5lab.errors import SpecimenError
from f5lab.paths import atomic_path, existing_file, sha256_file, write_text
from f5lab.vocoders import VocoderPlan

logger = logging.getLogger(__name__)

ARCH: dict[str, Any] = {
    "dim": 256, "depth": 6, "heads": 4, "dim_head": 64, "ff_mult": 2, "text_dim": 128, "conv_layers": 4, "dropout": 0.0,
    "text_mask_padding": False, "pe_attn_head": 1,
}  # fmt: skip
"""F5TTS_Base's options, narrower: 6.4 M parameters."""

MALE, FEMALE = "jm_kumo", "jf_alpha"
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
)  # fmt: skip
"""From the reader to the released base."""

READER_UPDATES = 8900
"""Updates that the reader had had, stopped attempts included."""


@dataclass(frozen=True)
class FinetunePlan:
    """How the fine-tune is trained by upstream's own Trainer.

    Attributes
    ----------
    repeats : int
        How often each inference item stands in the dataset.
    frames : int
        Mel frames a batch, as ``batch_size_type="frame"`` counts them.
    """

    name: str = "ptbr"
    voice: str = MALE
    prompts: tuple[int, ...] = (5, 11)
    repeats: int = 2
    epochs: int = 18
    learning_rate: float = 1.5e-4
    warmup: int = 60
    frames: int = 1400
    log_every: int = 180
    time_power: float = 1.8
    silent_weight: float = 0.1
    drop_audio: float = 0.1
    drop_both: float = 0.08
    length_jitter: float = 0.4
    seed: int = 666


def characters(clips: Sequence[Clip]) -> list[str]:
    """Return the vocab: space first, then every character of the texts in code-point order."""
    return [" ", *sorted(set("".join(clip.text for clip in clips)) - {" "})]


def write_vocab(clips: Sequence[Clip], path: Path) -> Path:
    """Write ``vocab.txt`` as the Trainer's data folder has it: one symbol a line, LF, final newline."""
    write_text(path, "".join(f"{c}\n" for c in characters(clips)))
    return path


def load_start(model: torch.nn.Module, weights: Path) -> None:
    """Load a raw state dict (``model_state_dict``, any float type) into `model`."""
    saved = torch.load(existing_file(weights, SpecimenError, "weights"), weights_only=True, map_location="cpu")
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


def span_cfm(spans: dict[str, tuple[int, int]], plan: FinetunePlan) -> type:
    """Return a subclass of upstream's CFM whose loss counts the second clip only.

    Parameters
    ----------
    spans : dict
        Text of a dataset item to (first frame that counts, frames that ``infer_process`` would give the second clip; 0:
        as recorded).
    """

    class SpanCFM(models.upstream().CFM):
        """CFM with the curriculum's loss; ``sample`` and the weights are upstream's."""

        def forward(
            self, inp: Tensor, text: list[str], *, lens: Tensor | None = None, noise_scheduler: str | None = None
        ) -> tuple[Tensor, Tensor, Tensor]:
            """Return loss, condition and prediction, as upstream's Trainer expects them."""
            mels = [refit(mel[:n], *spans[t], plan.length_jitter) for mel, n, t in zip(inp, lens.tolist(), text)]
            x1 = torch.nn.utils.rnn.pad_sequence(mels, batch_first=True)
            lens = torch.tensor([len(mel) for mel in mels], device=x1.device)
            starts = torch.tensor([spans[t][0] for t in text], device=x1.device)
            x0, t = torch.randn_like(x1), torch.rand(len(mels), device=x1.device) ** plan.time_power
            both = random.random() < plan.drop_both
            ids = models.upstream().list_str_to_idx(text, self.vocab_char_map).to(x1.device)
            audio = both or random.random() < plan.drop_audio
            v, span = curricula.span_velocity(self, x1, x0, t, ids, lens, starts, audio, both)
            return curricula.span_error(v, x1, x0, span, plan.silent_weight), x1, v

    return SpanCFM


def refit(mel: Tensor, start: int, frames: int, jitter: float) -> Tensor:
    """Give the second clip of a joined one its duration by the byte rule, or, in a share of cases, one near it."""
    if not frames:
        return mel
    if random.random() < jitter:
        frames = int(min(frames, (len(mel) - start) * 1.6) * random.uniform(0.85, 1.15))
    return torch.cat([mel[:start], curricula.fit_frames(mel[start:].cpu(), min(frames, 160)).to(mel.device)])


def _finetune_items(voice: Voice, plan: FinetunePlan) -> list[tuple[str, Any, tuple[int, int]]]:
    """Return (text, samples, span) of every dataset item."""
    import numpy as np

    waves = [load_wave(clip.path).samples for clip in voice.clips]
    items = [(clip.text, wave, (0, 0)) for clip, wave in zip(voice.clips, waves)]
    for clip, wave in zip(voice.clips, waves):
        items.append((f"{clip.text} {clip.text}", np.concatenate([wave, wave]), (1 + len(wave) // models.HOP, 0)))
    for prompt in voice.prompts.values():
        for clip, wave in zip(voice.clips, waves):
            joined = np.concatenate([prompt.samples, wave * np.float32(np.exp(prompt.gain))])
            span = (len(prompt.mel), prompt.target_frames(clip.text))
            items += [(prompt.text + clip.text, joined, span)] * plan.repeats
    return items


def write_dataset(voice: Voice, plan: FinetunePlan, vocab: Path, folder: Path) -> dict[str, tuple[int, int]]:
    """Write the fine-tune's dataset as upstream's ``prepare_csv_wavs`` leaves it, and return the spans by text.

    ``raw.arrow``, ``duration.json``, ``vocab.txt`` and ``wavs/`` (float, so that nothing is re-encoded).
    """
    from datasets.arrow_writer import ArrowWriter

    (folder / "wavs").mkdir(parents=True, exist_ok=True)
    rows, spans, written = [], {}, {}
    for text, samples, span in _finetune_items(voice, plan):
        if text not in written:
            written[text] = folder / "wavs" / f"item_{len(written):04d}.wav"
            sf.write(written[text], samples, models.RATE_HZ, subtype="FLOAT")
        spans[text] = span
        rows.append(
            {"audio_path": str(written[text].resolve()), "text": text, "duration": len(samples) / models.RATE_HZ}
        )
    with ArrowWriter(path=str(folder / "raw.arrow")) as writer:
        for row in rows:
            writer.write(row)
        writer.finalize()
    write_text(folder / "duration.json", json.dumps({"duration": [row["duration"] for row in rows]}))
    shutil.copyfile(vocab, folder / "vocab.txt")
    return spans


def read_dataset(folder: Path) -> Any:
    """Return upstream's CustomDataset of a data folder (its own ``load_dataset`` reads only folders beside the package)."""
    from datasets import Dataset

    durations = json.loads((folder / "duration.json").read_text(encoding="utf-8"))["duration"]
    return models.upstream().CustomDataset(Dataset.from_file(str(folder / "raw.arrow")), durations, **models.MEL)


def finetune(
    out: Path, clips: Sequence[Clip], base: Path, vocab: Path, vocoder: Path, plan: FinetunePlan, device: str = "cpu"
) -> Path:
    """Fine-tune the base with upstream's Trainer and return the training folder, as the Trainer leaves it.

    The base is put there as ``pretrained_*.pt``, so the Trainer's EMA inherits its ``step``. A run that was stopped is
    taken up from ``model_last.pt``.
    """
    up, folder = models.upstream(), out / "ckpts" / plan.name
    folder.mkdir(parents=True, exist_ok=True)
    if not (folder / "pretrained_model_last.pt").is_file():
        shutil.copyfile(base, folder / "pretrained_model_last.pt")
    voice = curricula.load_voice(clips, plan.voice, plan.prompts)
    spans = write_dataset(voice, plan, vocab, out / "data" / f"{plan.name}_char")
    torch.manual_seed(plan.seed)
    random.seed(plan.seed)
    char_map, size = up.get_tokenizer(str(vocab), "custom")
    model = span_cfm(spans, plan)(
        transformer=up.DiT(**ARCH, text_num_embeds=size, mel_dim=100),
        mel_spec_kwargs={**models.MEL, "mel_spec_type": "vocos"}, vocab_char_map=char_map,
    )  # fmt: skip
    with models.quiet():
        trainer = up.Trainer(
            model, plan.epochs, plan.learning_rate, num_warmup_updates=plan.warmup, save_per_updates=plan.log_every,
            keep_last_n_checkpoints=0, last_per_updates=4 * plan.log_every, checkpoint_path=str(folder),
            batch_size_per_gpu=plan.frames, batch_size_type="frame", max_samples=0, logger=None, log_samples=True,
            is_local_vocoder=True, local_vocoder_path=str(vocoder), accelerate_kwargs={"cpu": device == "cpu"},
        )  # fmt: skip
        trainer.train(read_dataset(out / "data" / f"{plan.name}_char"), num_workers=1, resumable_with_seed=plan.seed)
    return folder


def build(
    out: Path, speech: Path, *, stages: Sequence[Stage] = READER_STAGES + BASE_STAGES, device: str = "auto",
    start: Path | None = None, plan: FinetunePlan | None = None, vocoder_plan: VocoderPlan | None = None,
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
        vocoders.train_vocoder(
            clips, vocoder, plan=vocoder_plan, state=out / "stages" / "vocoder.state.pt", device=device
        )
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
    shutil.copyfile(build_dir / "vocab.txt", target / "vocab.txt")
    shutil.copytree(build_dir / "vocos", target / "vocos", dirs_exist_ok=True)
    return target


ORIGINS: dict[str, tuple[str, str]] = {
    "": ("written for this project", "MIT"),
    "specimen/": ("trained from speech/ptbr by f5lab/specimens.py", "MIT"),
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
