"""A training folder with several checkpoints, as upstream's own Trainer leaves it: a tiny DiT on ten clips."""

import json
import shutil
from pathlib import Path

import torch
from datasets import Dataset
from datasets.arrow_writer import ArrowWriter
from ema_pytorch import EMA

from f5lab import audio, models, paths

ARCH = {"dim": 64, "depth": 2, "heads": 1, "ff_mult": 2, "text_dim": 32, "conv_layers": 2, "text_mask_padding": False,
        "pe_attn_head": 1, "dropout": 0.0}  # fmt: skip
DATA = paths.data_dir()
VOCAB = DATA / "specimen" / "vocab.txt"
SPEECH = DATA / "speech" / "ptbr"


def clips(count: int) -> list[dict[str, object]]:
    """Return rows of a dataset: the first phrases of one voice, with their texts."""
    listed = [line.split("|") for line in (SPEECH / "metadata.csv").read_text(encoding="utf-8").splitlines()[1:]]
    chosen = [(SPEECH / row[0], row[1]) for row in listed if row[0].startswith("jm_kumo_phrase")][:count]
    return [{"audio_path": str(path), "text": text, "duration": audio.load_wave(path).seconds} for path, text in chosen]


def train(root: Path, *, updates: int = 6, every: int = 2, rate: float = 2e-3) -> Path:
    """Train from a base and return ``root/ckpts/voz``: pretrained_base.pt, model_<every>.pt …, model_last.pt; data/ beside it."""
    up, home, data = models.upstream(), root / "ckpts" / "voz", root / "data" / "voz_char"
    home.mkdir(parents=True), data.mkdir(parents=True)
    char_map, size = models.read_vocab_map(VOCAB)
    shutil.copyfile(VOCAB, data / "vocab.txt")
    rows = clips(12)
    with ArrowWriter(path=str(data / "raw.arrow")) as writer:
        for row in rows:
            writer.write(row)
        writer.finalize()
    (data / "duration.json").write_text(json.dumps({"duration": [row["duration"] for row in rows]}))

    def cfm() -> torch.nn.Module:
        return up.CFM(transformer=up.DiT(**ARCH, text_num_embeds=size, mel_dim=100),
                      mel_spec_kwargs={**models.MEL, "mel_spec_type": "vocos"}, vocab_char_map=char_map)  # fmt: skip

    torch.manual_seed(0)
    model = cfm()
    for name, parameter in model.named_parameters():
        if "proj_out" in name or "norm_out" in name or "attn_norm" in name:
            torch.nn.init.normal_(parameter, std=0.05)
    torch.save(
        {"ema_model_state_dict": EMA(model, include_online_model=False).state_dict()}, home / "pretrained_base.pt"
    )
    dataset = up.CustomDataset(Dataset.from_file(str(data / "raw.arrow")), [r["duration"] for r in rows], **models.MEL)
    torch.manual_seed(1)
    with models.quiet():
        trainer = up.Trainer(
            cfm(), updates * 4 // len(rows) or 1, rate, num_warmup_updates=1, save_per_updates=every, checkpoint_path=str(home),
            batch_size_per_gpu=4, batch_size_type="sample", logger=None, log_samples=False, accelerate_kwargs={"cpu": True},
        )  # fmt: skip
        trainer.train(dataset, num_workers=1, resumable_with_seed=1)
    return home
