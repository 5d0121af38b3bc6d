"""Training of the specimen's small Vocos: the ``vocos`` package's own classes, spectral losses, no discriminators."""

import random
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from functools import partial
from pathlib import Path

import numpy as np
import torch
import yaml
from torch import Tensor

from f5lab import models
from f5lab.audio import load_wave
from f5lab.errors import SpecimenError
from f5lab.mappings import load_tensors
from f5lab.paths import atomic_path, existing_file, write_text
from f5lab.specimen import curricula
from f5lab.specimen.curricula import Clip
from f5lab.specimen.finetuning import MALE


@dataclass(frozen=True)
class VocoderPlan:
    """Size and training of the small Vocos.

    Attributes
    ----------
    crop_frames : int
        Length of a training crop.
    noise : float
        Gaussian noise of up to this standard deviation is added to half of the input mels (natural log), so that the
        vocoder also serves mels that a model made.
    gain : float
        Crops are made louder or quieter by up to this factor.
    mel_weight : float
        Weight of the mel loss against the spectral ones.
    focus : float
        This share of the crops is drawn from the male phrases alone, which are what the specimen speaks.
    """

    dim: int = 192
    intermediate_dim: int = 512
    num_layers: int = 6
    updates: int = 2000
    peak_lr: float = 2e-3
    warmup: int = 50
    batch: int = 16
    crop_frames: int = 40
    noise: float = 0.25
    gain: float = 1.6
    mel_weight: float = 2.0
    n_ffts: tuple[int, ...] = field(default=(512, 1024, 2048))
    focus: float = 0.0
    seed: int = 0


STAGES = (
    VocoderPlan(),
    VocoderPlan(updates=1500, peak_lr=8e-4, focus=0.6, seed=1),
    VocoderPlan(updates=1500, peak_lr=6e-4, focus=0.8, noise=0.15, seed=2),
)
"""The shipped vocoder: from nothing on all speech, then on at a lower rate and mostly on what the specimen speaks."""


def vocoder_config(plan: VocoderPlan) -> dict[str, dict[str, object]]:
    """Return the ``config.yaml`` that ``Vocos.from_hparams`` reads."""
    return {
        "feature_extractor": {
            "class_path": "vocos.feature_extractors.MelSpectrogramFeatures",
            "init_args": {"sample_rate": models.RATE_HZ, "n_fft": 1024, "hop_length": models.HOP, "n_mels": 100, "padding": "center"},
        },
        "backbone": {
            "class_path": "vocos.models.VocosBackbone",
            "init_args": {"input_channels": 100, **{k: asdict(plan)[k] for k in ("dim", "intermediate_dim", "num_layers")}},
        },
        "head": {
            "class_path": "vocos.heads.ISTFTHead",
            "init_args": {"dim": plan.dim, "n_fft": 1024, "hop_length": models.HOP, "padding": "center"},
        },
    }  # fmt: skip


def build_vocoder(plan: VocoderPlan, folder: Path) -> torch.nn.Module:
    """Write ``config.yaml`` into `folder` and construct the Vocos it describes, with fresh weights."""
    write_text(folder / "config.yaml", yaml.safe_dump(vocoder_config(plan), sort_keys=False))
    torch.manual_seed(plan.seed)
    return models.upstream().Vocos.from_hparams(str(folder / "config.yaml"))


def spectral_loss(made: Tensor, real: Tensor, n_ffts: Sequence[int]) -> Tensor:
    """Return the mean over resolutions of spectral convergence and log-magnitude L1; waves [shape=(b, nw)]."""
    total = torch.zeros((), device=made.device)
    for n_fft in n_ffts:
        window = torch.hann_window(n_fft, device=made.device)
        a, b = (
            torch.stft(wave, n_fft, n_fft // 4, window=window, return_complex=True).abs().clamp(min=1e-5)
            for wave in (made, real)
        )
        total = total + torch.linalg.norm(b - a) / torch.linalg.norm(b) + (a.log() - b.log()).abs().mean()
    return total / len(n_ffts)


def vocoder_loss(
    vocoder: torch.nn.Module, waves: Sequence[np.ndarray], plan: VocoderPlan, update: int, focus: Sequence[int] = ()
) -> Tensor:
    """Return the loss of update number `update`: the same number always draws the same crops and noise.

    Parameters
    ----------
    focus : sequence of int
        The waves that `plan.focus` draws from.
    """
    rng = random.Random(f"{plan.seed}:vocoder:{update}")
    generator = torch.Generator().manual_seed(rng.getrandbits(60))
    device, size, crops = next(vocoder.parameters()).device, plan.crop_frames * models.HOP, []
    for _ in range(plan.batch):
        near = plan.focus and focus and rng.random() < plan.focus
        wave = waves[rng.choice(focus)] if near else rng.choice(waves)
        start = rng.randrange(max(1, len(wave) - size))
        crop = wave[start : start + size] * plan.gain ** rng.uniform(-1, 1)
        crops.append(np.pad(crop, (0, size - len(crop))))
    real = torch.from_numpy(np.stack(crops).astype(np.float32)).to(device)
    with torch.no_grad():
        mel = vocoder.feature_extractor(real)
    noise = torch.randn(mel.shape, generator=generator) * torch.rand(len(mel), 1, 1, generator=generator) * plan.noise
    noise[: plan.batch // 2] = 0
    heard = torch.where(mel > curricula.SILENCE + 0.01, mel + noise.to(device), mel)
    made = vocoder.head(vocoder.backbone(heard))  # Vocos.decode runs in inference mode
    mel_error = (vocoder.feature_extractor(made) - mel).abs().mean()
    return spectral_loss(made, real, plan.n_ffts) + plan.mel_weight * mel_error


def train_vocoder(
    clips: Sequence[Clip], folder: Path, *, stages: Sequence[VocoderPlan] = STAGES, states: Path, device: str = "cpu",
    start: Path | None = None,
) -> Path:  # fmt: skip
    """Train the small Vocos and write ``config.yaml`` and ``pytorch_model.bin``, which upstream's ``load_vocoder`` reads.

    Parameters
    ----------
    clips : sequence of Clip
    folder : Path
        Where the two files go.
    stages : sequence of VocoderPlan
        Each goes on from the weights of the one before; all of one size.
    states : Path
        Folder where unfinished stages are kept; training is taken up from there.
    start : Path, optional
        ``pytorch_model.bin`` to start the first stage from; left out: from nothing.

    Raises
    ------
    SpecimenError
        No clips.
    """
    if not clips:
        raise SpecimenError("no clips to train a vocoder on", next_step="pass the speech folder")
    folder.mkdir(parents=True, exist_ok=True)
    vocoder = build_vocoder(stages[0], folder).to(device)
    if start is not None:
        weights = load_tensors(existing_file(start, SpecimenError, "vocoder"))
        vocoder.load_state_dict({name: tensor.float() for name, tensor in weights.items()})
    waves = [load_wave(clip.path).samples for clip in clips]
    focus = [i for i, clip in enumerate(clips) if (clip.voice, clip.kind) == (MALE, "phrase")]
    for number, plan in enumerate(stages):
        loss = partial(vocoder_loss, vocoder, waves, plan, focus=focus)
        curricula.run_updates(
            vocoder, loss, updates=plan.updates, peak_lr=plan.peak_lr, warmup=plan.warmup,
            state=states / f"vocoder-{number}.state.pt", label=f"vocoder {number + 1} of {len(stages)}",
        )  # fmt: skip
    save_vocoder(vocoder, folder)
    return folder


def save_vocoder(vocoder: torch.nn.Module, folder: Path) -> None:
    """Write ``pytorch_model.bin``: learned weights as fp16, the fixed mel filters and windows as they are."""
    fixed = {name for name, _ in vocoder.named_buffers()}
    weights = {k: v.cpu() if k in fixed else v.half().cpu() for k, v in vocoder.state_dict().items()}
    with atomic_path(folder / "pytorch_model.bin") as temporary:
        torch.save(weights, temporary)
