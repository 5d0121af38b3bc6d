"""Trainer-format checkpoints of any size up to F5TTS_v1_Base's own 5.4 GB, and the base that each was fine-tuned from.

``python benchmarks/fullsize.py FOLDER [--size full]`` writes ``model_last.pt`` (raw, EMA with step and initted, Adam's two
moments, scheduler, update) and ``base.pt`` (EMA only, as published) with upstream's names and shapes. Values are random but
seeded; the oddities planted in them are listed in ``planted.json``. One tensor is in memory at a time.
"""

import argparse
import json
import tempfile
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch.optim.lr_scheduler import LinearLR, SequentialLR

from f5lab import models, paths, provenance

SIZES: dict[str, dict[str, int]] = {
    "8MB": {"dim": 64, "depth": 8, "heads": 1, "text_dim": 32, "tokens": 255},
    "40MB": {"dim": 128, "depth": 10, "heads": 2, "text_dim": 64, "tokens": 511},
    "200MB": {"dim": 256, "depth": 12, "heads": 4, "text_dim": 128, "tokens": 1023},
    "1GB": {"dim": 512, "depth": 16, "heads": 8, "text_dim": 256, "tokens": 2545},
    "2.7GB": {"dim": 768, "depth": 20, "heads": 12, "text_dim": 384, "tokens": 2545},
    "full": {"dim": 1024, "depth": 22, "heads": 16, "text_dim": 512, "tokens": 2545},
}
"""Architectures by what the trainer's file comes to; ``full`` is F5TTS_v1_Base with its published vocab."""

TEXT_ROWS = "text_embed.text_embed.weight"
STEP_OF_BASE, UPDATES = 1_250_000, 10_000
EMA_WAY, TRAINED_WAY = 0.125, 0.03
"""How far the EMA came from base to raw, and training from the base, against the weights' own length."""
POOL = 1 << 24


@dataclass(frozen=True)
class Fill:
    """A tensor to be: shape, dtype, and what makes its values."""

    shape: tuple[int, ...]
    dtype: torch.dtype
    make: Callable[[], np.ndarray]


@dataclass(frozen=True)
class Planted:
    """The oddities in one fine-tune: tensors by what is wrong with them, and text rows that training never touched."""

    nan: dict[str, int]
    inf: dict[str, int]
    zero: str
    zero_as_initialised: str
    as_initialised: str
    untouched_rows: tuple[int, ...]


def plan(depth: int) -> Planted:
    """Return what is planted in a model of `depth` blocks."""
    block = "transformer_blocks.{}."
    return Planted(
        nan={block.format(1) + "ff.ff.0.0.weight": 3},
        inf={block.format(depth - 1) + "attn.to_k.weight": 2},
        zero=block.format(2) + "attn.to_v.bias",
        zero_as_initialised=block.format(depth - 2) + "attn_norm.linear.bias",
        as_initialised=block.format(3) + "attn.to_out.0.weight",
        untouched_rows=(0, 17, 99),
    )


class Values:
    """Seeded values of every tensor, made when they are asked for: base, raw, EMA and Adam's moments."""

    def __init__(self, shapes: dict[str, tuple[int, ...]], planted: Planted, seed: int) -> None:
        self.shapes, self.planted = shapes, planted
        self.pool = np.random.default_rng(seed).standard_normal(POOL, dtype=np.float32)
        self.order = {name: i for i, name in enumerate(shapes)}

    def _drawn(self, name: str, use: int) -> np.ndarray:
        shape = self.shapes[name]
        n = int(np.prod(shape))
        start = np.random.default_rng([self.order[name], use]).integers(POOL - n)
        return self.pool[start : start + n].reshape(shape)

    def base(self, name: str) -> np.ndarray:
        """Return a tensor of the base, shape as in the model, float32."""
        if name.endswith("inv_freq"):
            n = self.shapes[name][0]
            return (10_000.0 ** (-np.arange(n, dtype=np.float32) / n)).astype(np.float32)
        scale = 1.0 if name == TEXT_ROWS else 0.02
        return self._drawn(name, 0) * np.float32(scale)

    def _step(self, name: str) -> np.ndarray:
        if name.endswith("inv_freq"):
            return np.zeros(self.shapes[name], np.float32)
        step = self._drawn(name, 1) * np.float32(TRAINED_WAY * (1.0 if name == TEXT_ROWS else 0.02))
        if name == TEXT_ROWS:
            step[list(self.planted.untouched_rows)] = 0
        return step

    def raw(self, name: str) -> np.ndarray:
        """Return a tensor of the raw weights, oddities included."""
        return self._spoiled(name, self.base(name) + self._step(name))

    def ema(self, name: str) -> np.ndarray:
        """Return a tensor of the EMA; the same oddities are in it."""
        return self._spoiled(name, self.base(name) + np.float32(EMA_WAY) * self._step(name))

    def _spoiled(self, name: str, values: np.ndarray) -> np.ndarray:
        flat, planted = values.reshape(-1), self.planted
        if name in planted.nan:
            flat[5 : 5 + 1000 * planted.nan[name] : 1000] = np.nan
        if name in planted.inf:
            flat[7 : 7 + 1000 * planted.inf[name] : 1000] = np.inf
        if name in (planted.zero, planted.zero_as_initialised):
            flat[:] = 0
        if name == planted.as_initialised:
            bound = values.shape[1] ** -0.5
            flat[:] = np.random.default_rng(self.order[name]).uniform(-bound, bound, flat.size)
        return values

    def moment(self, name: str, order: int) -> np.ndarray:
        """Return Adam's first or second moment of a tensor; exactly zero in text rows without a gradient."""
        drawn = self._drawn(name, 2) * np.float32(1e-4)
        values = drawn if order == 1 else drawn**2
        if name == TEXT_ROWS:
            values[list(self.planted.untouched_rows)] = 0
        return values


def shapes_of(size: str) -> tuple[dict[str, tuple[int, ...]], set[str]]:
    """Return names (without ``transformer.``) and shapes of upstream's DiT of a size, and which of them are parameters."""
    options = dict(SIZES[size])
    tokens = options.pop("tokens")
    with torch.device("meta"), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        module = models.upstream().DiT(**options, ff_mult=2, conv_layers=4, text_num_embeds=tokens, mel_dim=100)
    shapes = {name: tuple(tensor.shape) for name, tensor in module.state_dict().items()}
    return shapes, {name for name, _ in module.named_parameters()}


def _scheduler_state(position: int) -> dict[str, Any]:
    """Return the scheduler's state as upstream's trainer saves it after `position` updates."""
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=1e-5)
    up = LinearLR(optimizer, start_factor=1e-8, end_factor=1.0, total_iters=1000)
    down = LinearLR(optimizer, start_factor=1.0, end_factor=1e-8, total_iters=19_000)
    schedule = SequentialLR(optimizer, [up, down], milestones=[1000])
    for _ in range(position):
        optimizer.step()
        schedule.step()
    return schedule.state_dict()


def _scalar(value: float, dtype: torch.dtype) -> Fill:
    return Fill((), dtype, lambda: torch.tensor(value, dtype=dtype).numpy())


def _tensors(values: Values, make: Callable[[str], np.ndarray], prefix: str) -> dict[str, Fill]:
    shapes = values.shapes.items()
    return {f"{prefix}transformer.{name}": Fill(shape, torch.float32, partial(make, name)) for name, shape in shapes}


def trainer_file(values: Values, parameters: set[str]) -> dict[str, Any]:
    """Return the trainer's dict with a function in place of each tensor, in the order in which the trainer writes."""
    book = {"initted": _scalar(True, torch.bool), "step": _scalar(STEP_OF_BASE + UPDATES, torch.int64)}
    names = [name for name in values.shapes if name in parameters]
    state = {
        i: {
            "step": _scalar(UPDATES, torch.float32),
            "exp_avg": Fill(values.shapes[name], torch.float32, partial(values.moment, name, 1)),
            "exp_avg_sq": Fill(values.shapes[name], torch.float32, partial(values.moment, name, 2)),
        }
        for i, name in enumerate(names)
    }
    group = {"lr": 5e-6, "betas": (0.9, 0.999), "eps": 1e-8, "weight_decay": 0.01, "params": list(range(len(names)))}
    return {
        "model_state_dict": _tensors(values, values.raw, ""),
        "optimizer_state_dict": {"state": state, "param_groups": [group]},
        "ema_model_state_dict": book | _tensors(values, values.ema, "ema_model."),
        "scheduler_state_dict": _scheduler_state(UPDATES),
        "update": UPDATES,
    }


def base_file(values: Values) -> dict[str, Any]:
    """Return a published base's dict: the EMA alone, with its step."""
    book = {"initted": _scalar(True, torch.bool), "step": _scalar(STEP_OF_BASE, torch.int64)}
    return {"ema_model_state_dict": book | _tensors(values, values.base, "ema_model.")}


def _fills(tree: Any) -> Iterator[Fill]:
    if isinstance(tree, Fill):
        yield tree
    for value in tree.values() if isinstance(tree, dict) else ():
        yield from _fills(value)


def _shadow(tree: Any) -> Any:
    """Return the dict with tensors whose memory is never touched, and so takes none."""
    if isinstance(tree, Fill):
        return torch.empty(tree.shape, dtype=tree.dtype)
    return {key: _shadow(value) for key, value in tree.items()} if isinstance(tree, dict) else tree


def save_streaming(tree: dict[str, Any], path: Path) -> None:
    """Write a dict whose tensors are yet to be made as ``torch.save`` would write it, one tensor in memory at a time.

    The pickle is torch's own; the records are then written by torch's own archive writer, in the order in which the
    pickle names them.
    """
    with tempfile.TemporaryDirectory(dir=path.parent) as folder, torch.serialization.skip_data():
        shadow = Path(folder) / path.name
        torch.save(_shadow(tree), shadow)
        archive = torch._C.PyTorchFileReader(str(shadow))
        heads = ("data.pkl", ".format_version", ".storage_alignment", "byteorder")
        records = {name: archive.get_record(name) for name in heads}
    writer = torch._C.PyTorchFileWriter(str(path), True, 64)
    for name, content in records.items():
        writer.write_record(name, content, len(content))
    for i, fill in enumerate(_fills(tree)):
        array = np.ascontiguousarray(fill.make()).reshape(fill.shape)
        writer.write_record(f"data/{i}", torch.from_numpy(array).untyped_storage(), array.nbytes)
    writer.write_end_of_file()


def make(folder: Path, size: str = "full", seed: int = 0) -> dict[str, Any]:
    """Write ``model_last.pt``, ``base.pt`` and ``planted.json`` into `folder`, or leave them if they are there.

    Returns
    -------
    dict
        Paths, parameters, seed, and what was planted.
    """
    folder.mkdir(parents=True, exist_ok=True)
    note = folder / "planted.json"
    if note.is_file() and (known := json.loads(note.read_text()))["size"] == size and known["seed"] == seed:
        return known
    shapes, parameters = shapes_of(size)
    planted = plan(SIZES[size]["depth"])
    values = Values(shapes, planted, seed)
    save_streaming(trainer_file(values, parameters), folder / "model_last.pt")
    save_streaming(base_file(values), folder / "base.pt")
    result = {
        "size": size, "seed": seed, "parameters": sum(int(np.prod(shape)) for shape in shapes.values()),
        "tensors": len(shapes), "checkpoint": str(folder / "model_last.pt"), "base": str(folder / "base.pt"),
        "checkpoint_bytes": (folder / "model_last.pt").stat().st_size, "base_bytes": (folder / "base.pt").stat().st_size,
        "ema_way": EMA_WAY, "planted": planted.__dict__,
    }  # fmt: skip
    paths.write_text(note, json.dumps(result, indent=1) + "\n")
    return result


def main() -> None:
    """Write a checkpoint and its base."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path, nargs="?", help="default: fullsize/ in f5lab's cache")
    parser.add_argument("--size", choices=SIZES, default="full")
    parser.add_argument("--seed", type=int, default=0)
    given = parser.parse_args()
    made = make(given.folder or paths.cache_dir("fullsize", given.size), given.size, given.seed)
    for kind in ("checkpoint", "base"):
        print(f"{made[kind]}  {provenance.size_text(made[f'{kind}_bytes'])}")
    print(f"{made['tensors']} tensors, {made['parameters'] / 1e6:.1f} M parameters a set")


if __name__ == "__main__":
    main()
