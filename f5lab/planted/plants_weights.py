"""Plants in the weights and in what the checkpoint says about them. Each changes its bench; variants are in `PLANTS`."""

import copy
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from f5lab import ema, models, schedules
from f5lab.planted.planting import ROTARY, Bench, State, blend, scrambled

RELEASE_STEP = 1_250_000
"""EMA step of a base trained for over a million updates, as the published one is presumed to have."""

INHERITED_UPDATES = (1000, 3000, 5000)
FRESH_UPDATES = (500, 800, 1200)
STALE_SHARES = (0.6, 0.35, 0.8)
OTHER_BASE_SHARE = 0.4


def _reschedule(state: dict[str, Any] | None, position: int, warmup: int, total: int) -> dict[str, Any] | None:
    """Return a scheduler's state at another position of another plan; None where there was no scheduler."""
    old = schedules.read_schedule(state)
    if state is None or old is None:
        return state
    plan = replace(old, warmup=warmup, decay=total - warmup, position=position)
    changed, rate = copy.deepcopy(state), float(plan.rates(np.array([position]))[0])
    changed |= {"_milestones": [warmup], "last_epoch": position, "_last_lr": [rate]}
    up, down = changed["_schedulers"]
    up |= {"total_iters": warmup, "last_epoch": min(position, warmup)}
    down |= {"total_iters": total - warmup, "last_epoch": max(position - warmup, 0), "_last_lr": [rate]}
    return changed


def _lagging(before: int, updates: int, scheduler: dict[str, Any] | None) -> float:
    """Return how far from its start towards R an EMA is after a run under this schedule (path ``adamw``)."""
    schedule = schedules.read_schedule(scheduler)
    rates = schedule.update_rates(updates) if schedule and schedule.position == updates else None
    return ema.expected_alpha(before, updates, "adamw", rates)


def _other_base(bench: Bench) -> State:
    """Return a base that cannot read: its blocks mostly overwritten by their own values in another order."""
    base = bench.base_weights()
    return blend(scrambled(base, bench.generator(), "transformer_blocks"), base, OTHER_BASE_SHARE)


def ema_lag_inherited(bench: Bench) -> None:
    """A base that differs strongly from R with a release's step, and the EMA that N updates from it leave."""
    stored, updates = bench.checkpoint("raw", "ema"), INHERITED_UPDATES[bench.variant]
    base = _other_base(bench)
    stored.scheduler = _reschedule(stored.scheduler, updates, 60, 2 * updates)
    stored.ema = blend(base, stored.raw, _lagging(RELEASE_STEP, updates, stored.scheduler))
    stored.update, stored.ema_step, stored.initted = updates, RELEASE_STEP + updates, True
    bench.write_base(base, RELEASE_STEP)


def ema_lag_fresh(bench: Bench) -> None:
    """An EMA started with a run from nothing: half of it is the start, here R's own values in another order."""
    stored, updates = bench.checkpoint("raw", "ema"), FRESH_UPDATES[bench.variant]
    stored.scheduler = _reschedule(stored.scheduler, updates, 60, 2 * updates)
    start = scrambled(stored.raw, bench.generator())
    stored.ema = blend(start, stored.raw, _lagging(0, updates, stored.scheduler))
    stored.update, stored.ema_step, stored.initted = updates, updates, True
    bench.forget("base", "base_vocab")


def ema_frozen(bench: Bench) -> None:
    """E is P to the last bit; the step counts on, stands still, or P is a base that cannot read."""
    stored, base = bench.checkpoint("raw", "ema"), bench.base_weights()
    if bench.variant == 2:
        base = _other_base(bench)
        bench.write_base(base)
    stored.ema = dict(base)
    stored.ema_step = (bench.base().ema_step or 0) + (0 if bench.variant == 1 else stored.update or 0)


def _fresh(bench: Bench, like: State) -> State:
    """Return a network as the constructor leaves it, in the types of `like`."""
    backbone, options = bench.arch()
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(1234 + bench.variant)
        made = models.build_cfm(backbone, options, bench.case.training_vocab).state_dict()
    missing = [name for name in like if name not in made or made[name].shape != like[name].shape]
    if missing:
        raise bench.refuse(f"the case's architecture does not fit its checkpoint ({missing[0]})")
    return {name: made[name].to(like[name].dtype) for name in like}


def ema_uninitialised(bench: Bench) -> None:
    """E is a fresh network, never filled."""
    stored = bench.checkpoint("raw", "ema")
    stored.ema, stored.ema_step, stored.initted = _fresh(bench, stored.raw), 0, False


def raw_ema_swapped(bench: Bench) -> None:
    """The two sets of weights under each other's names; variants let the training go further or less far from P."""
    stored, base = bench.checkpoint("raw", "ema"), bench.base_weights()
    way = (1.0, 1.5, 0.6)[bench.variant]
    raw, average = (blend(base, state, way) for state in (stored.raw, stored.ema))
    stored.raw, stored.ema = average, raw


def raw_in_ema_slot(bench: Bench) -> None:
    """What ``finetune_gradio.prune_checkpoint(save_ema=False)`` leaves: .pt, .safetensors, or .pt in fp32."""
    stored = bench.checkpoint("raw")
    raw = stored.raw if bench.variant != 2 else {name: tensor.float() for name, tensor in stored.raw.items()}
    stored.raw, stored.ema, stored.ema_prefix = None, raw, ""
    stored.ema_step = stored.initted = stored.update = stored.scheduler = stored.optimizer = None
    stored.file = "model_pruned" + (".safetensors" if bench.variant == 1 else ".pt")
    bench.inference(weights="ema")


def prefix_lost(bench: Bench) -> None:
    """Every key begins with the prefix of DDP, of torch.compile, or of both."""
    bench.checkpoint().wrapper = ("module.", "_orig_mod.", "module._orig_mod.")[bench.variant]


def stale_checkpoint(bench: Bench) -> None:
    """The checkpoint of an earlier update than the newest logged sample: nearer to P, with the counters of its time."""
    stored, base = bench.checkpoint("raw", "ema"), bench.base()
    samples = bench.case.training.samples
    if not stored.update or samples is None or not list(samples.glob("update_*_gen.*")):
        raise bench.refuse("without an update and logged samples nothing can be stale", "give training.samples")
    share = STALE_SHARES[bench.variant]
    update = int(stored.update * share)
    plan = schedules.read_schedule(stored.scheduler)
    stored.raw, stored.ema = (blend(base.slots[-1], state, share) for state in (stored.raw, stored.ema))
    if plan is not None:
        stored.scheduler = _reschedule(stored.scheduler, update, plan.warmup, plan.warmup + plan.decay)
    if stored.ema_step is not None:
        stored.ema_step -= stored.update - update
    stored.update = update


def scratch_by_accident(bench: Bench) -> None:
    """R and E of a network that began from nothing; the good samples are left out, for this run never made them."""
    stored = bench.checkpoint("raw", "ema")
    bench.base()
    start, generator = _fresh(bench, stored.raw), bench.generator()
    moved = {name: tensor if name == ROTARY else _nudged(tensor, generator) for name, tensor in start.items()}
    updates = stored.update or FRESH_UPDATES[0]
    stored.raw, stored.ema = moved, blend(start, moved, _lagging(0, updates, stored.scheduler))
    stored.update, stored.ema_step, stored.initted = updates, updates, True
    bench.forget_training("samples")


def _nudged(tensor: Tensor, generator: torch.Generator, amount: float = 0.01) -> Tensor:
    """Return a tensor after a little training: AdamW moves every value by about the learning rate an update."""
    if not tensor.is_floating_point() or tensor.ndim < 1:
        return tensor
    noise = torch.randn(tensor.shape, generator=generator)
    return (tensor.float() + amount * noise).to(tensor.dtype)


def lr_dead(bench: Bench) -> None:
    """R did not leave P: a finished schedule resumed, or a warm-up far longer than the training."""
    stored, base = bench.checkpoint("raw", "ema"), bench.base_weights()
    updates = stored.update or INHERITED_UPDATES[0]
    moved = (0.0, 1e-4, 0.0)[bench.variant]
    stored.raw, stored.ema = blend(base, stored.raw, moved), blend(base, stored.raw, moved / 10)
    if bench.variant == 1:
        stored.scheduler = _reschedule(stored.scheduler, updates, 10_000 * updates, 20_000 * updates)
    else:
        resumed = updates * (2 + bench.variant)
        stored.scheduler = _reschedule(stored.scheduler, resumed, 60, updates)
        stored.update = resumed
    stored.ema_step = (bench.base().ema_step or 0) + (stored.update or 0)
    stored.optimizer = None


@dataclass(frozen=True)
class _Damage:
    tensor: str
    kind: str


DAMAGES = (
    _Damage("transformer.transformer_blocks.{middle}.ff.ff.2.weight", "nan"),
    _Damage("transformer.transformer_blocks.0.ff.ff.2.weight", "zero"),
    _Damage("transformer.input_embed.proj.weight", "rows"),
)


def weight_damage(bench: Bench) -> None:
    """One tensor of every slot gets a NaN, is zeroed, or has its rows in another order."""
    stored, damage = bench.checkpoint(), DAMAGES[bench.variant]
    name = damage.tensor.format(middle=_depth(bench) // 2)
    for state in stored.slots:
        if name not in state:
            raise bench.refuse(f"its weights have no {name}")
        broken = state[name].clone()
        if damage.kind == "nan":
            broken[0, 0] = torch.nan
        elif damage.kind == "zero":
            broken.zero_()
        else:
            broken = broken[torch.randperm(len(broken), generator=bench.generator())]
        state[name] = broken


def _depth(bench: Bench) -> int:
    numbers = [
        int(n.split(".")[2]) for n in bench.checkpoint().slots[0] if n.startswith("transformer.transformer_blocks.")
    ]
    return max(numbers, default=0) + 1


def inv_freq_altered(bench: Bench) -> None:
    """The stored rotary frequencies have another base, or were rounded to bfloat16 on the way."""
    stored = bench.checkpoint()
    for state in stored.slots:
        if ROTARY not in state:
            raise bench.refuse("its weights store no rotary frequencies")
        old = state[ROTARY].float()
        exponents = torch.arange(len(old)) / len(old)
        state[ROTARY] = (5000.0**-exponents, 20000.0**-exponents, old.bfloat16().float())[bench.variant]


def precision_fp16_nan(bench: Bench) -> None:
    """Values before an attention's output are scaled by a power of two and back: nothing in fp32, overflow in fp16."""
    stored, block = bench.checkpoint(), (0, _depth(bench) // 2, _depth(bench) - 1)[bench.variant]
    scale = 2.0**18
    prefix = f"transformer.transformer_blocks.{block}.attn"
    for state in stored.slots:
        if f"{prefix}.to_v.weight" not in state:
            raise bench.refuse(f"its weights have no {prefix}.to_v.weight")
        for name, factor in (("to_v.weight", scale), ("to_v.bias", scale), ("to_out.0.weight", 1 / scale)):
            state[f"{prefix}.{name}"] = state[f"{prefix}.{name}"].float() * factor
    bench.inference(precision="fp16")
