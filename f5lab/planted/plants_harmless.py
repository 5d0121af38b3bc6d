"""Changes that must not be called faults: the decoys of the catalogue, and other forms of the same healthy case."""

from collections.abc import Callable
from typing import Any

from f5lab import models
from f5lab.audio import resample
from f5lab.paths import atomic_path
from f5lab.planted.planting import Bench
from f5lab.planted.plants_audio import rework_recordings, rework_references
from f5lab.specs import Arch
from f5lab.vocabs import read_vocab


def _other_bytes(bench: Bench, data: bytes) -> None:
    """Hand inference the same vocab in other bytes."""
    path = bench.file("vocab.txt")
    with atomic_path(path) as temporary:
        temporary.write_bytes(data)
    bench.training(vocab=bench.case.training_vocab)
    bench.inference(vocab=path)


def _bytes(bench: Bench) -> bytes:
    found = read_vocab(bench.case.inference_vocab)
    if found.bom or set(found.endings) - {"LF"} or not found.final_newline:
        raise bench.refuse("its vocab has a mark, other line ends or no last newline already")
    return bench.case.inference_vocab.read_bytes()


def crlf_vocab(bench: Bench) -> None:
    """CRLF, or CR alone."""
    _other_bytes(bench, _bytes(bench).replace(b"\n", b"\r" if bench.variant == 1 else b"\r\n"))


def bom_vocab(bench: Bench) -> None:
    """A byte order mark before the space."""
    data = _bytes(bench)
    if not data.startswith(b" \n"):
        raise bench.refuse("its vocab does not start with a space, so the mark would hit another symbol")
    _other_bytes(bench, b"\xef\xbb\xbf" + data)


def space_line_empty(bench: Bench) -> None:
    """The space stripped from the first line."""
    data = _bytes(bench)
    if not data.startswith(b" \n"):
        raise bench.refuse("its vocab does not start with a space")
    _other_bytes(bench, data[1:])


def no_final_newline(bench: Bench) -> None:
    """The last newline cut; prompts that use the last symbol are left out, for with them it would be vocab-damage."""
    data, last = _bytes(bench), list(read_vocab(bench.case.inference_vocab).char_map)[-1]
    kept = tuple(p for p in bench.case.prompts if last not in p.ref_text + p.gen_text)
    if not kept:
        raise bench.refuse(f"every prompt uses {last!r}, the last symbol: this would be vocab-damage")
    bench.change(prompts=kept)
    _other_bytes(bench, data[:-1])


def sorted_vocab(bench: Bench) -> None:
    """The vocab sorted, where it was sorted already."""
    data = _bytes(bench)
    lines = data.decode("utf-8").split("\n")[:-1]
    if sorted(lines) != lines:
        raise bench.refuse("its vocab is not sorted: this would be vocab-permuted")
    _other_bytes(bench, data)


def _option(side: str, options: tuple[dict[str, Any], ...]) -> Callable[[Bench], None]:
    def plant(bench: Bench) -> None:
        own = bench.own_arch().model_dump(exclude_unset=True)
        changed = Arch(**{**own, **options[bench.variant % len(options)]})
        if side == "training":
            bench.inference(arch=bench.case.inference.arch or Arch(**own))
            bench.training(arch=changed)
        else:
            bench.inference(arch=changed)

    return plant


dropout_in_config = _option("inference", ({"dropout": 0.1}, {"dropout": 0.5}))
checkpoint_activations = _option("training", ({"checkpoint_activations": True},))
attn_flags = _option("inference", ({"attn_mask_enabled": True}, {"attn_backend": "torch", "attn_mask_enabled": False}))


def other_order(bench: Bench) -> None:
    """Prompts the other way round."""
    bench.change(prompts=bench.case.prompts[::-1])


def fewer_prompts(bench: Bench) -> None:
    """Every second prompt."""
    bench.change(prompts=bench.case.prompts[::2])


def fp32_storage(bench: Bench) -> None:
    """The same weights stored as float32."""
    stored = bench.checkpoint()
    for state in stored.slots:
        state |= {name: tensor.float() for name, tensor in state.items() if tensor.is_floating_point()}


def raw_asked(bench: Bench) -> None:
    """Inference asks for the raw weights."""
    bench.checkpoint("raw")
    bench.inference(weights="raw")


def ema_only(bench: Bench) -> None:
    """Pruned to the EMA, ``prune_checkpoint(save_ema=True)``, and the EMA asked for."""
    stored = bench.checkpoint("ema")
    stored.raw = stored.update = stored.scheduler = stored.optimizer = None
    stored.file = "model_pruned.pt"
    bench.inference(weights="ema")


def as_safetensors(bench: Bench) -> None:
    """Pruned to the EMA, as .safetensors."""
    ema_only(bench)
    bench.checkpoint().file = "model_pruned.safetensors"


def other_names(bench: Bench) -> None:
    """Checkpoint and vocab under other names."""
    stored = bench.checkpoint()
    stored.file = f"model_{stored.update or 'final'}.pt"
    path = bench.file("symbols.txt")
    path.write_bytes(bench.case.inference_vocab.read_bytes())
    bench.inference(vocab=path)


def nothing_about_training(bench: Bench) -> None:
    """The training block left out; inference says what is needed."""
    own, vocab = bench.own_arch(), bench.case.training_vocab
    bench.forget_training()
    bench.inference(arch=bench.case.inference.arch or own)
    bench.change(vocab=bench.case.vocab or vocab)


def defaults_spelled_out(bench: Bench) -> None:
    """Inference names every option that it left to the constructor."""
    backbone, given = (bench.case.inference.arch or bench.own_arch()).resolve()
    options = models.full_options(backbone, given)
    bench.inference(arch=Arch(backbone=backbone, **{k: v for k, v in options.items() if k in Arch.model_fields}))


def good_speech(bench: Bench) -> None:
    """References stored again as FLAC, and what was spoken is the right text."""
    rework_references(bench, lambda wave: wave)
    bench.change(prompts=tuple(p.model_copy(update={"spoken_audio": p.gen_audio}) if p.gen_audio else p
                               for p in bench.case.prompts))  # fmt: skip


def _stored_at(rate_hz: int) -> Callable[[Bench], None]:
    def plant(bench: Bench) -> None:
        rework_recordings(bench, lambda wave: resample(wave, rate_hz))

    plant.__doc__ = f"Every recording stored at {rate_hz} Hz, and said to be: speech of the right speed with an empty upper band."
    return plant


telephone_band, sixteen_khz = _stored_at(8000), _stored_at(16000)

DECOY_PLANTS: dict[str, tuple[Callable[[Bench], None], int]] = {
    "crlf-vocab": (crlf_vocab, 2),
    "bom-vocab": (bom_vocab, 1),
    "space-line-empty": (space_line_empty, 1),
    "no-final-newline": (no_final_newline, 1),
    "sorted-vocab": (sorted_vocab, 1),
    "dropout-in-config": (dropout_in_config, 2),
    "checkpoint-activations": (checkpoint_activations, 1),
    "attn-flags": (attn_flags, 2),
}
"""Decoy to its plant and how many variants differ."""

HEALTHY_FORMS: tuple[Callable[[Bench], None], ...] = (
    other_order, fewer_prompts, fp32_storage, raw_asked, ema_only,
    as_safetensors, other_names, nothing_about_training, defaults_spelled_out, good_speech,
    telephone_band, sixteen_khz,
)  # fmt: skip
"""Harmless forms of a case, by variant."""
