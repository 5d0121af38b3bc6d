"""Putting known faults into a healthy case, so that a diagnosis can be checked against the truth.

Every fault of `catalogue.FAULTS` has a plant. A planted case names its faults under ``planted:``; decoys and healthy forms
name none, since nothing is wrong with them, and faults may be planted on top.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from f5lab.catalogue import DECOYS, find_fault, unknown_id
from f5lab.errors import FaultError
from f5lab.paths import new_folder
from f5lab.planted import plants_audio as audio
from f5lab.planted import plants_settings as settings
from f5lab.planted import plants_text as text
from f5lab.planted import plants_weights as weights
from f5lab.planted.planting import Bench
from f5lab.planted.plants_harmless import DECOY_PLANTS, HEALTHY_FORMS
from f5lab.specs import Case
from f5lab.weights.diffs import one_thread

VARIANTS = 3


@dataclass(frozen=True)
class Plant:
    """How a fault is planted, and what each of its variants does; fewer than three are counted round."""

    make: Callable[[Bench], None]
    variants: tuple[str, ...]


PLANTS: dict[str, Plant] = {
    "ema-lag-inherited": Plant(weights.ema_lag_inherited, ("1000 updates", "3000 updates", "5000 updates")),
    "ema-lag-fresh": Plant(weights.ema_lag_fresh, ("500 updates", "800 updates", "1200 updates")),
    "ema-frozen": Plant(weights.ema_frozen, ("step counts on", "step stands still", "a base that cannot read")),
    "ema-uninitialised": Plant(weights.ema_uninitialised, ("seed 1", "seed 2", "seed 3")),
    "raw-ema-swapped": Plant(weights.raw_ema_swapped, ("as trained", "raw 1.5 times as far", "raw 0.6 times as far")),
    "raw-in-ema-slot": Plant(weights.raw_in_ema_slot, (".pt", ".safetensors", ".pt in fp32")),
    "prefix-lost": Plant(weights.prefix_lost, ("module.", "_orig_mod.", "module._orig_mod.")),
    "stale-checkpoint": Plant(weights.stale_checkpoint, ("0.6 of the updates", "0.35", "0.8")),
    "scratch-by-accident": Plant(weights.scratch_by_accident, ("seed 1", "seed 2", "seed 3")),
    "lr-dead": Plant(weights.lr_dead, ("finished schedule resumed", "endless warm-up", "resumed for longer")),
    "weight-damage": Plant(weights.weight_damage, ("one NaN", "a matrix of zeros", "rows in another order")),
    "load-raises": Plant(settings.load_raises, ("two blocks too many", "ff_mult 4", "text_dim doubled")),
    "arch-flags-v0-as-v1": Plant(settings.arch_flags_v0_as_v1, ("bare dict", "v1 spelled out", "training unknown")),
    "pe-attn-head-only": Plant(settings.pe_attn_head_only, ("left out", "null", "training options unknown")),
    "text-mask-padding-only": Plant(settings.text_mask_padding_only, ("left out", "true", "training options unknown")),
    "inv-freq-altered": Plant(weights.inv_freq_altered, ("base 5000", "base 20000", "rounded to bfloat16")),
    "vocab-permuted": Plant(text.vocab_permuted, ("shuffled", "shuffled, training vocab unknown", "reversed")),
    "vocab-off-by-one": Plant(text.vocab_off_by_one, ("space line gone", "blank in line 2", "blank in line 4")),
    "vocab-re-extended": Plant(text.vocab_re_extended, ("4 lines", "6 lines", "3 lines")),
    "vocab-damage": Plant(text.vocab_damage, ("repeated at the end", "last letter cut", "repeated in place of another")),
    "oov-to-zero": Plant(text.oov_to_zero, ("NFD texts", "NFD gen_text", "NFD vocab")),
    "front-end-pinyin": Plant(text.front_end_pinyin, ("training raw", "training unknown", "raw texts in the dataset")),
    "tokenizer-drift": Plant(text.tokenizer_drift, ("all clips", "every second plain clip", "hyphens only")),
    "case-folding": Plant(text.case_folding, ("seed 1", "seed 2", "seed 3, token lists")),
    "mel-type": Plant(settings.mel_type, ("training known", "training mel unknown", "training unknown")),
    "frontend-rate": Plant(settings.frontend_rate, ("16 kHz", "hop 320", "22.05 kHz and hop 300")),
    "vocoder-wrong": Plant(audio.vocoder_wrong, ("noise 0.6", "noise 0.9", "head rows in another order")),
    "sample-rate-mislabelled": Plant(audio.sample_rate_mislabelled, ("16 kHz", "32 kHz", "22.05 kHz")),
    "ref-clipped": Plant(audio.ref_clipped, ("15 s", "18 s", "22 s")),
    "ref-text-wrong": Plant(audio.ref_text_wrong, ("the next reference's", "another text", "yet another")),
    "ref-silent-or-quiet": Plant(audio.ref_silent_or_quiet, ("gain 0.002", "silence", "gain 0.0005")),
    "duration-byte-ratio": Plant(audio.duration_byte_ratio, ("speed 0.45", "a pause inside", "speed 0.55")),
    "short-text-speed": Plant(audio.short_text_speed, ("from the first", "from the second", "from the third")),
    "cfg-or-sway-off": Plant(settings.cfg_or_sway_off, ("guidance 0", "guidance 6", "no sway")),
    "precision-bf16-cast": Plant(settings.precision_bf16_cast, ("bf16",)),
    "precision-fp16-nan": Plant(weights.precision_fp16_nan, ("first block", "middle block", "last block")),
    "stale-text-cache": Plant(audio.stale_text_cache, ("first right", "first has the last's", "reversed")),
}  # fmt: skip
"""Every fault to its plant."""


def plant(ids: Sequence[str], case: Case, out: Path, *, variant: int = 0) -> Path:
    """Write a case with faults planted into the new folder `out`; nothing of `case` is changed.

    Parameters
    ----------
    ids : sequence of str
        Faults of the catalogue, planted in this order.
    variant : int
        0 to 2: another seed, layer, shift or amount; `PLANTS` says what for each fault.

    Returns
    -------
    Path
        The new ``case.yaml``: changed files lie beside it, others are named where they are.

    Raises
    ------
    FaultError
        An id is unknown or repeated, the case is planted already, a fault does not apply to it, or `out` is not empty.
    """
    if isinstance(ids, str):
        ids = [ids]
    names = [find_fault(name).id for name in ids]
    if not names or len(set(names)) != len(names):
        raise FaultError(f"faults to plant: {', '.join(names) or 'none'}", expected="one or more, each once")
    _check_variant(variant, VARIANTS)
    steps = [(name, PLANTS[name].make, variant % len(PLANTS[name].variants)) for name in names]
    return _apply(steps, case, out, tuple(names))


def decoy(name: str, case: Case, out: Path, *, variant: int = 0) -> Path:
    """Write a case with a decoy, which must not be named by any diagnosis, into the new folder `out`.

    Raises
    ------
    FaultError
        As for `plant`.
    """
    if name not in DECOYS:
        raise unknown_id(name, DECOYS, "decoy")
    _check_variant(variant, VARIANTS)
    make, count = DECOY_PLANTS[name]
    return _apply([(name, make, variant % count)], case, out, ())


def healthy(case: Case, out: Path, *, variant: int = 0) -> Path:
    """Write one of the harmless forms of a case into the new folder `out`; `HEALTHY_FORMS` says which.

    Raises
    ------
    FaultError
        As for `plant`.
    """
    _check_variant(variant, len(HEALTHY_FORMS))
    make = HEALTHY_FORMS[variant]
    return _apply([(make.__name__.replace("_", "-"), make, 0)], case, out, ())


def _check_variant(variant: int, count: int) -> None:
    if not 0 <= variant < count:
        raise FaultError(f"variant {variant}", expected=f"0 to {count - 1}")


def _apply(
    steps: Sequence[tuple[str, Callable[[Bench], None], int]], case: Case, out: Path, planted: tuple[str, ...]
) -> Path:
    if case.planted:
        raise FaultError(
            f"case {case.name} has {', '.join(case.planted)} planted already",
            next_step="plant into a healthy case, such as data/cases/ptbr-repaired; several faults go in one call",
        )
    # one thread: the tensors are small, and on a busy machine waiting for other threads takes longer than the work
    with one_thread(), new_folder(Path(out), FaultError) as folder:
        bench = Bench(case, case, folder)
        for name, make, variant in steps:
            bench.fault, bench.variant = name, variant
            make(bench)
        bench.finish(planted)
    return Path(out) / "case.yaml"
