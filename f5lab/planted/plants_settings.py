"""Plants in what a case says about architecture, mel, sampler and precision: no file but a config is written."""

from collections.abc import Callable
from typing import Any

import yaml

from f5lab.models import MEL
from f5lab.paths import write_text
from f5lab.planted.planting import Bench
from f5lab.specs import Arch

V1_DEFAULTS: dict[str, Any] = {"text_mask_padding": True, "pe_attn_head": None}
"""What DiT's constructor assumes when the two options are left out."""


def _lose(*options: str) -> Callable[[Bench], None]:
    """Return the plant by which inference loses options: left out, at the v1 value, or left out and training unknown."""

    def plant(bench: Bench) -> None:
        backbone, trained = bench.arch()
        same = [name for name in options if trained.get(name, V1_DEFAULTS[name]) == V1_DEFAULTS[name]]
        if same:
            raise bench.refuse(f"the training's {' and '.join(same)} is the default already")
        if bench.case.inference.arch is not None and not bench.case.inference.arch.is_empty:
            now = bench.case.inference.arch.resolve()[1]
            if any(now.get(name, V1_DEFAULTS[name]) != trained[name] for name in options):
                raise bench.refuse(f"inference lacks {' or '.join(options)} already")
        given = bench.own_arch().model_dump(exclude_unset=True)
        if bench.variant == 1:
            wrong = {**given, **{name: V1_DEFAULTS[name] for name in options}}
        else:
            wrong = {name: value for name, value in given.items() if name not in options}
        if bench.variant == 2 and len(options) > 1:
            bench.forget_training()
        elif bench.variant == 2:
            bench.forget_training("arch")
        bench.inference(arch=Arch(**wrong))

    return plant


def load_raises(bench: Bench) -> None:
    """Inference builds another depth, feed-forward or text width than the weights have."""
    given = bench.own_arch().model_dump(exclude_unset=True)
    trained = bench.arch()[1]
    wrong = (
        {"depth": trained["depth"] + 2},
        {"ff_mult": 2 * trained.get("ff_mult", 4)},
        {"text_dim": 2 * trained.get("text_dim", 512)},
    )
    bench.inference(arch=Arch(**{**given, **wrong[bench.variant]}))


arch_flags_v0_as_v1 = _lose("text_mask_padding", "pe_attn_head")
pe_attn_head_only = _lose("pe_attn_head")
text_mask_padding_only = _lose("text_mask_padding")


def mel_type(bench: Bench) -> None:
    """Inference uses the other mel; variants let the training say nothing about its mel, or nothing at all."""
    trained = bench.case.training.mel_spec_type or bench.case.inference.mel_spec_type
    bench.inference(mel_spec_type="bigvgan" if trained == "vocos" else "vocos")
    if bench.variant == 1:
        bench.forget_training("mel_spec_type")
    elif bench.variant == 2:
        bench.inference(arch=bench.own_arch())
        bench.forget_training()


MEL_CONFIGS: tuple[dict[str, int], ...] = (
    {"target_sample_rate": 16000}, {"hop_length": 320}, {"target_sample_rate": 22050, "hop_length": 300},
)  # fmt: skip


def frontend_rate(bench: Bench) -> None:
    """The training's config names another rate or hop than ``utils_infer`` fixes."""
    backbone, options = bench.arch()
    mel = {**MEL, **MEL_CONFIGS[bench.variant], "mel_spec_type": bench.case.training.mel_spec_type or "vocos"}
    model = {"name": bench.case.name, "tokenizer": "custom", "tokenizer_path": str(bench.case.training_vocab),
             "backbone": backbone, "arch": options, "mel_spec": mel}  # fmt: skip
    path = bench.file("config.yaml")
    write_text(path, yaml.safe_dump({"model": model}, sort_keys=False, allow_unicode=True))
    if bench.case.inference.arch is None or bench.case.inference.arch.is_empty:
        bench.inference(arch=bench.own_arch())
    bench.training(arch=Arch(config=path))


def cfg_or_sway_off(bench: Bench) -> None:
    """Guidance off, guidance far too strong, or no sway."""
    bench.inference(**({"cfg_strength": 0.0}, {"cfg_strength": 6.0}, {"sway_sampling_coef": None})[bench.variant])


def precision_bf16_cast(bench: Bench) -> None:
    """The whole model, its rotary frequencies included, in bfloat16."""
    bench.inference(precision="bf16")
