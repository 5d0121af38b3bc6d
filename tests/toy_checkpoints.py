"""Toy state dicts under upstream's names, made without upstream: a DiT of two layers."""

from pathlib import Path
from typing import Any

import torch

DIM, DEPTH, HEAD, TEXT, ROWS, MEL = 8, 2, 4, 6, 5, 10


def state(seed: int = 0) -> dict[str, torch.Tensor]:
    """Return the state dict of a DiT: dim 8, depth 2, 2 heads of 4, ff_mult 2, text_dim 6, 4 tokens, 10 channels."""
    g = torch.Generator().manual_seed(seed)
    shapes = {
        "time_embed.time_mlp.0.weight": (DIM, 16),
        "text_embed.text_embed.weight": (ROWS, TEXT),
        "text_embed.text_blocks.0.dwconv.weight": (TEXT, 1, 7),
        "text_embed.text_blocks.0.grn.gamma": (1, 1, 2 * TEXT),
        "input_embed.proj.weight": (DIM, 2 * MEL + TEXT),
        "norm_out.linear.weight": (2 * DIM, DIM),
        "proj_out.weight": (MEL, DIM),
        "proj_out.bias": (MEL,),
    }
    for i in range(DEPTH):
        block = f"transformer_blocks.{i}."
        shapes[block + "attn_norm.linear.weight"] = (6 * DIM, DIM)
        shapes |= {f"{block}attn.to_{k}.weight": (DIM, DIM) for k in "qkv"}
        shapes[block + "ff.ff.0.0.weight"] = (2 * DIM, DIM)
        shapes[block + "ff.ff.2.weight"] = (DIM, 2 * DIM)
    weights = {f"transformer.{name}": torch.randn(shape, generator=g) for name, shape in shapes.items()}
    weights["transformer.rotary_embed.inv_freq"] = 10_000.0 ** (-torch.arange(0, HEAD, 2).float() / HEAD)
    return weights


def ema_state(weights: dict[str, torch.Tensor], step: int = 12_100) -> dict[str, torch.Tensor]:
    """Return weights as ema_pytorch stores them."""
    book = {"initted": torch.tensor(True), "step": torch.tensor(step)}
    return book | {f"ema_model.{name}": tensor for name, tensor in weights.items()}


def scheduler(position: int, warmup: int = 10, total: int = 200, lr: float = 1e-4) -> dict[str, Any]:
    """Return the real scheduler state of upstream's trainer after `position` steps."""
    from torch.optim.lr_scheduler import LinearLR, SequentialLR

    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=lr)
    up = LinearLR(optimizer, start_factor=1e-8, end_factor=1.0, total_iters=warmup)
    down = LinearLR(optimizer, start_factor=1.0, end_factor=1e-8, total_iters=total - warmup)
    schedule = SequentialLR(optimizer, [up, down], milestones=[warmup])
    for _ in range(position):
        optimizer.step()
        schedule.step()
    return schedule.state_dict()


def save_trainer(path: Path, raw: dict[str, torch.Tensor], ema: dict[str, torch.Tensor], **more: Any) -> Path:
    """Write a file as the trainer does."""
    path.parent.mkdir(parents=True, exist_ok=True)
    torch.save({"model_state_dict": raw, "ema_model_state_dict": ema, **more}, path)
    return path
