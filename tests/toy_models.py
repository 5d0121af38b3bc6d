"""Tiny models of upstream's own classes that compute something, and recipes, prompts and cases for them."""

from pathlib import Path

import torch

from f5lab import models, paths
from f5lab.audio import Wave, load_wave
from f5lab.probes import Item
from f5lab.specs import Prompt, Recipe, Vocoder

SPECIMEN = paths.data_dir() / "specimen"
SPEECH = paths.data_dir() / "speech" / "ptbr"
CLIP, REF = SPEECH / "jm_kumo_phrase_0012.ogg", SPEECH / "jm_kumo_phrase_0005.ogg"
ARCH = {
    "dim": 32, "depth": 2, "heads": 1, "ff_mult": 2, "text_dim": 16, "conv_layers": 1, "pe_attn_head": 1, "dropout": 0.0,
}  # fmt: skip
SMALL = {
    "UNetT": ("dim", "depth", "heads", "ff_mult", "dropout"),
    "MMDiT": ("dim", "depth", "heads", "ff_mult", "dropout"),
}


def speaking(backbone: str = "DiT", seed: int = 0) -> torch.nn.Module:
    """Return a tiny model whose zero-initialised layers do something."""
    arch = {k: v for k, v in ARCH.items() if k in SMALL.get(backbone, ARCH)}
    torch.manual_seed(seed)
    model = models.build_cfm(backbone, arch, SPECIMEN / "vocab.txt")  # type: ignore[arg-type]
    for name, parameter in model.named_parameters():
        if "proj_out" in name or "norm_out" in name or "attn_norm" in name:
            torch.nn.init.normal_(parameter, std=0.05)
    return model.eval()


def hooks(model: torch.nn.Module) -> int:
    """Return how many hooks hang on a model."""
    return sum(len(m._forward_hooks) + len(m._forward_pre_hooks) for m in model.modules())


def save_toy(folder: Path) -> Path:
    """Write a checkpoint with raw and EMA weights as the trainer does."""
    raw, average = speaking().state_dict(), speaking(seed=1).state_dict()
    ema = {"initted": torch.tensor(True), "step": torch.tensor(5), **{f"ema_model.{k}": v for k, v in average.items()}}
    torch.save({"model_state_dict": raw, "ema_model_state_dict": ema, "update": 5}, folder / "model.pt")
    return folder / "model.pt"


def toy_recipe(checkpoint: Path) -> Recipe:
    """Return a recipe for a saved toy."""
    return Recipe(
        name="toy", path="inference", checkpoint=checkpoint, weights="raw", backbone="DiT", arch=ARCH,
        vocab=SPECIMEN / "vocab.txt", front_end="raw", mel_spec_type="vocos", vocoder=Vocoder(path=SPECIMEN / "vocos"),
        nfe_step=5,
    )  # fmt: skip


def toy_item() -> Item:
    """Return half a second of real speech."""
    wave = load_wave(CLIP, rate_hz=24000)
    return Item("clip", Wave(wave.samples[:12000], 24000), "Comprou.", 0.2)


def toy_prompt(**changes: object) -> Prompt:
    """Return a prompt with a real target."""
    fields = {
        "id": "p01",
        "ref_audio": REF,
        "ref_text": "A doutora.",
        "gen_text": "Comprou um livro.",
        "gen_audio": CLIP,
    }
    return Prompt.model_validate({**fields, **changes})
