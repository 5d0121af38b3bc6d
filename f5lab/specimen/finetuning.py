"""The specimen's fine-tune: upstream's own Trainer on joined clips, with the loss on the second clip."""

import json
import random
import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import soundfile as sf
import torch
from torch import Tensor

from f5lab import models
from f5lab.audio import load_wave
from f5lab.errors import SpecimenError
from f5lab.paths import write_text
from f5lab.specimen import curricula
from f5lab.specimen.curricula import Clip, Voice

ARCH: dict[str, Any] = {
    "dim": 256, "depth": 6, "heads": 4, "dim_head": 64, "ff_mult": 2, "text_dim": 128, "conv_layers": 4, "dropout": 0.0,
    "text_mask_padding": False, "pe_attn_head": 1,
}  # fmt: skip
"""F5TTS_Base's options, narrower: 6.4 M parameters."""

MALE, FEMALE = "jm_kumo", "jf_alpha"


@dataclass(frozen=True)
class FinetunePlan:
    """How the fine-tune is trained by upstream's own Trainer.

    Attributes
    ----------
    repeats, doubles : int
        How often each inference item, and each clip joined to itself (what the trainer logs), stands in the dataset.
    frames : int
        Mel frames a batch, as ``batch_size_type="frame"`` counts them.
    logged : int
        Updates over single clips at the end, each with a logged sample.
    """

    name: str = "ptbr"
    voice: str = MALE
    prompts: tuple[int, ...] = (5, 11)
    repeats: int = 2
    doubles: int = 4
    epochs: int = 20
    learning_rate: float = 1.5e-4
    warmup: int = 60
    frames: int = 1400
    log_every: int = 180
    time_power: float = 1.8
    silent_weight: float = 0.1
    drop_audio: float = 0.1
    drop_both: float = 0.08
    length_jitter: float = 0.4
    logged: int = 8
    seed: int = 666


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

        first_texts: list[str] = []

        def forward(
            self, inp: Tensor, text: list[str], *, lens: Tensor | None = None, noise_scheduler: str | None = None
        ) -> tuple[Tensor, Tensor, Tensor]:
            """Return loss, condition and prediction, as upstream's Trainer expects them."""
            self.first_texts.append(text[0])
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


def finetune_items(voice: Voice, plan: FinetunePlan) -> list[tuple[str, Any, tuple[int, int]]]:
    """Return (text, samples, span) of every dataset item."""
    waves = [load_wave(clip.path).samples for clip in voice.clips]
    items = [(clip.text, wave, (0, 0)) for clip, wave in zip(voice.clips, waves)]
    for clip, wave in zip(voice.clips, waves):
        double = (f"{clip.text} {clip.text}", np.concatenate([wave, wave]), (1 + len(wave) // models.HOP, 0))
        items += [double] * plan.doubles
    for prompt in voice.prompts.values():
        for clip, wave in zip(voice.clips, waves):
            joined = np.concatenate([prompt.samples, wave * np.float32(np.exp(prompt.gain))])
            span = (len(prompt.mel), prompt.target_frames(clip.text))
            items += [(prompt.text + clip.text, joined, span)] * plan.repeats
    return items


def write_dataset(
    items: Sequence[tuple[str, Any, tuple[int, int]]], vocab: Path, folder: Path
) -> dict[str, tuple[int, int]]:
    """Write (text, samples, span) items as upstream's ``prepare_csv_wavs`` leaves it, and return the spans by text.

    ``raw.arrow``, ``duration.json``, ``vocab.txt`` and ``wavs/`` (float, so that nothing is re-encoded).
    """
    from datasets.arrow_writer import ArrowWriter

    (folder / "wavs").mkdir(parents=True, exist_ok=True)
    rows, spans, written = [], {}, {}
    for text, samples, span in items:
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
    taken up from ``model_last.pt``. The Trainer then goes on over single clips for a few updates, at the rate at which
    the schedule ended, to log samples of single clips; their texts are written to ``samples/texts.csv``.
    """
    folder = out / "ckpts" / plan.name
    folder.mkdir(parents=True, exist_ok=True)
    if not (folder / "pretrained_model_last.pt").is_file():
        shutil.copyfile(base, folder / "pretrained_model_last.pt")
    voice = curricula.load_voice(clips, plan.voice, plan.prompts)
    random.seed(plan.seed)
    data = out / "data" / f"{plan.name}_char"
    spans = write_dataset(finetune_items(voice, plan), vocab, data)
    _run_trainer(folder, data, vocab, vocoder, spans, plan, device, epochs=plan.epochs, log_every=plan.log_every)
    if plan.logged and not (folder / "samples" / "texts.csv").is_file():
        _log_single_clips(out, folder, voice, vocab, vocoder, plan, device)
    return folder


def _run_trainer(
    folder: Path, data: Path, vocab: Path, vocoder: Path, spans: dict[str, tuple[int, int]], plan: FinetunePlan,
    device: str, *, epochs: int, log_every: int, max_samples: int = 0,
) -> list[str]:  # fmt: skip
    """Run upstream's Trainer on a data folder and return the first text of every batch, in order."""
    up = models.upstream()
    torch.manual_seed(plan.seed)
    char_map, size = up.get_tokenizer(str(vocab), "custom")
    model = span_cfm(spans, plan)(
        transformer=up.DiT(**ARCH, text_num_embeds=size, mel_dim=100),
        mel_spec_kwargs={**models.MEL, "mel_spec_type": "vocos"}, vocab_char_map=char_map,
    )  # fmt: skip
    with models.quiet():
        trainer = up.Trainer(
            model, epochs, plan.learning_rate, num_warmup_updates=plan.warmup, save_per_updates=log_every,
            keep_last_n_checkpoints=0, last_per_updates=4 * log_every, checkpoint_path=str(folder),
            batch_size_per_gpu=plan.frames, batch_size_type="frame", max_samples=max_samples, logger=None,
            log_samples=True, is_local_vocoder=True, local_vocoder_path=str(vocoder),
            accelerate_kwargs={"cpu": device == "cpu"},
        )  # fmt: skip
        trainer.train(read_dataset(data), num_workers=1, resumable_with_seed=plan.seed)
    return model.first_texts


def _log_single_clips(
    out: Path, folder: Path, voice: Voice, vocab: Path, vocoder: Path, plan: FinetunePlan, device: str
) -> None:
    """Let the Trainer go on for `plan.logged` updates over single clips, one a batch, and log a sample of each."""
    done = int(torch.load(folder / "model_last.pt", weights_only=True, mmap=True)["update"])
    last = done + plan.logged
    count = next((k for k in range(len(voice.clips), 3, -1) if last % k == 0), None)
    if count is None:
        raise SpecimenError(f"{last} updates cannot be split into epochs", next_step="choose another plan.logged")
    items = [item for item in finetune_items(voice, plan) if item[0] in {c.text for c in voice.clips}][-count:]
    data = out / "data" / f"{plan.name}_single_char"
    spans = write_dataset(items, vocab, data)
    texts = _run_trainer(
        folder, data, vocab, vocoder, spans, plan, device, epochs=last // count, log_every=1, max_samples=1
    )
    rows = [f"{done + i}|{text}" for i, text in enumerate(texts[-plan.logged :], start=1)]
    write_text(folder / "samples" / "texts.csv", "\n".join(["update|text", *rows]) + "\n")
