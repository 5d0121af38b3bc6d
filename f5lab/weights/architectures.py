"""What the shapes of a checkpoint say about its architecture, and what no shape can say.

Options that own no parameter leave no trace in a state dict: weights trained with one setting load into a model built
with the other without an error. `hidden_options` lists them all.
"""

import re
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from f5lab.errors import CheckpointError
from f5lab.presets import PRESETS, Backbone

if TYPE_CHECKING:
    from torch import Tensor

    from f5lab.untrusted.stored_tensors import StoredTensor

TEXT_EMBEDDING = "transformer.text_embed.text_embed.weight"
INV_FREQ = "transformer.rotary_embed.inv_freq"
ROPE_BASE = 10_000.0
AS_BUILT, ROUNDED = 1e-5, 5e-3
"""Largest relative deviations of rotary frequencies that float32 leaves, and that the half precisions do."""
_VISIBLE = ("backbone", "dim", "depth", "heads", "ff_mult", "text_dim", "conv_layers")


@dataclass(frozen=True)
class Implied:
    """Architecture as far as shapes show it; None where they do not.

    Attributes
    ----------
    backbone : {"DiT", "UNetT", "MMDiT"}
    dim, depth, inner_dim, ff_mult, text_dim, conv_layers, mel_dim : int
        `inner_dim` is ``heads * dim_head``.
    heads, dim_head : int or None
        Known only through the rotary buffer ``inv_freq`` (dim_head / 2 entries).
    vocab_size : int
        Rows of the text embedding less the filler row.
    qk_norm : str or None
    long_skip_connection : bool
    skip_connect_type : str or None
        UNetT: "concat" shows in the shapes; "add" and "none" look alike (None).
    evidence : dict of str to str
        The tensor that each value was read from.
    """

    backbone: Backbone
    dim: int
    depth: int
    inner_dim: int
    heads: int | None
    dim_head: int | None
    ff_mult: int
    text_dim: int
    conv_layers: int
    mel_dim: int
    vocab_size: int
    qk_norm: str | None
    long_skip_connection: bool
    skip_connect_type: str | None
    evidence: dict[str, str]

    def options(self) -> dict[str, Any]:
        """Return the values as a case file's ``arch:`` block takes them; what shapes do not show is left out."""
        named = {key: getattr(self, key) for key in _VISIBLE if getattr(self, key) is not None}
        if self.backbone == "MMDiT":
            del named["text_dim"], named["conv_layers"]
        if self.dim_head not in (None, 64):
            named["dim_head"] = self.dim_head
        if self.qk_norm:
            named["qk_norm"] = self.qk_norm
        if self.long_skip_connection:
            named["long_skip_connection"] = True
        return named


@dataclass(frozen=True)
class HiddenOption:
    """An option that leaves no trace in the weights: its possible values, what it changes, and what decides it."""

    name: str
    values: str
    default: str
    changes: str
    decided_by: str


@dataclass(frozen=True)
class PresetMatch:
    """Published presets whose visible options equal the checkpoint's, and the options in which these presets differ.

    `nearest` and `differences` are for a checkpoint that matches none.
    """

    presets: tuple[str, ...]
    tie: dict[str, dict[str, Any]]
    nearest: str
    differences: dict[str, tuple[Any, Any]]


def irregular_blocks(stored: "Mapping[str, Tensor | StoredTensor]") -> list[str]:
    """Return in words how blocks of one kind differ from most of them in names or shapes: a file that was cut, or edited.

    ``transformer_blocks.0`` to ``.n`` hold the same tensors, as do ``text_blocks``; UNetT's skip projections stand apart.
    """
    kinds: dict[str, dict[int, dict[str, tuple[int, ...]]]] = {}
    for name, tensor in stored.items():
        if match := re.fullmatch(r"(.*\b(?:transformer_blocks|text_blocks))\.(\d+)\.(.+)", name):
            kinds.setdefault(match[1], {}).setdefault(int(match[2]), {})[match[3]] = tuple(tensor.shape)
    said = []
    for kind, blocks in kinds.items():
        usual = {inner: _commonest([b.get(inner) for b in blocks.values()]) for b in blocks.values() for inner in b}
        for number, block in sorted(blocks.items()):
            for inner, shape in usual.items():
                if block.get(inner) != shape:
                    have = "x".join(map(str, block[inner])) if inner in block else "no such tensor"
                    want = "x".join(map(str, shape)) if shape is not None else "no such tensor"
                    said.append(f"{kind}.{number}.{inner}: {have}; most blocks have {want}")
        said += [f"{kind}.{n}: there is no such block" for n in range(max(blocks)) if n not in blocks]
    return said


def _commonest(shapes: "list[tuple[int, ...] | None]") -> "tuple[int, ...] | None":
    return Counter(shapes).most_common(1)[0][0]


@dataclass(frozen=True)
class RopeCheck:
    """The stored rotary frequencies against 10000^(-2i/d).

    Attributes
    ----------
    stored : bool
    dtype : str
    worst : float or None
        Largest relative deviation; None where the buffer holds no finite list of frequencies.
    phase_error_rad : float or None
        Largest resulting phase error at frame 1000 (about 10.7 s), in rad.
    verdict : str
    """

    stored: bool
    dtype: str
    worst: float | None
    phase_error_rad: float | None
    verdict: str

    @property
    def is_rounded(self) -> bool:
        """Whether they are the standard ones, rounded to a half precision."""
        return self.worst is not None and AS_BUILT <= self.worst < ROUNDED

    @property
    def as_built(self) -> bool:
        """Whether the buffer holds what upstream's constructor makes, to float32's rounding."""
        return self.worst is not None and self.worst < AS_BUILT


def implied(weights: "Mapping[str, Tensor] | Mapping[str, StoredTensor]") -> Implied:
    """Read the architecture off the names and shapes of a state dict; its values are not read.

    Raises
    ------
    CheckpointError
        Tensors that every F5-TTS has are missing, or shapes contradict each other; all of them are listed.
    """
    shapes = {name: tuple(tensor.shape) for name, tensor in weights.items()}
    backbone, block = _backbone(shapes)
    q_name = f"{block}.0.{'2' if backbone == 'UNetT' else 'attn'}.to_q.weight"
    ff_name = f"{block}.0.{ {'DiT': 'ff', 'UNetT': '4', 'MMDiT': 'ff_x'}[backbone] }.ff.0.0.weight"
    needed = {"transformer.proj_out.weight": 2, TEXT_EMBEDDING: 2, q_name: 2, ff_name: 2}
    wrong = [
        n if n not in shapes else f"{n} {shapes[n]}" for n, rank in needed.items() if len(shapes.get(n, ())) != rank
    ]
    if wrong:
        raise CheckpointError(f"no complete {backbone}: tensors missing or of the wrong rank", offenders=wrong)
    mel_dim, dim = shapes["transformer.proj_out.weight"]
    rows, text_dim = shapes[TEXT_EMBEDDING]
    inner_dim = shapes[q_name][0]
    dim_head = 2 * shapes[INV_FREQ][0] if len(shapes.get(INV_FREQ, ())) == 1 else None
    _refuse_contradictions(shapes, backbone, dim, mel_dim, text_dim, dim_head, inner_dim)
    depth = _count(shapes, rf"{re.escape(block)}\.(\d+)\.")
    conv_layers = _count(shapes, r"transformer\.text_embed\.text_blocks\.(\d+)\.")
    skip = f"{block}.{depth - 1}.0.weight"
    return Implied(
        backbone=backbone,
        dim=dim,
        depth=depth,
        inner_dim=inner_dim,
        heads=inner_dim // dim_head if dim_head else None,
        dim_head=dim_head,
        ff_mult=shapes[ff_name][0] // dim,
        text_dim=text_dim,
        conv_layers=conv_layers,
        mel_dim=mel_dim,
        vocab_size=rows - 1,
        qk_norm="rms_norm" if q_name.replace("to_q", "q_norm") in shapes else None,
        long_skip_connection="transformer.long_skip_connection.weight" in shapes,
        skip_connect_type="concat" if backbone == "UNetT" and len(shapes.get(skip, ())) == 2 else None,
        evidence={
            "dim, mel_dim": f"transformer.proj_out.weight {mel_dim} x {dim}",
            "text_dim, vocab_size": f"{TEXT_EMBEDDING} {rows} x {text_dim} (one filler row)",
            "heads x dim_head": f"{q_name} {inner_dim} x {shapes[q_name][1]}",
            "dim_head": f"{INV_FREQ} {dim_head // 2} entries" if dim_head else "not stored",
            "ff_mult": f"{ff_name} {shapes[ff_name][0]} x {shapes[ff_name][1]}",
            "depth": f"{block}.0 … {depth - 1}",
            "conv_layers": f"transformer.text_embed.text_blocks: {conv_layers}",
        },
    )


def _backbone(shapes: Mapping[str, Any]) -> tuple[Backbone, str]:
    if any(name.startswith("transformer.layers.") for name in shapes):
        return "UNetT", "transformer.layers"
    if any(".attn.to_q_c." in name for name in shapes):
        return "MMDiT", "transformer.transformer_blocks"
    return "DiT", "transformer.transformer_blocks"


def _count(shapes: Mapping[str, Any], pattern: str) -> int:
    found = {int(match.group(1)) for name in shapes if (match := re.match(pattern, name))}
    return len(found)


def _refuse_contradictions(
    shapes: Mapping[str, tuple[int, ...]], backbone: Backbone, dim: int, mel_dim: int, text_dim: int,
    dim_head: int | None, inner_dim: int,
) -> None:  # fmt: skip
    wrong = []
    entry = "transformer.audio_embed.linear.weight" if backbone == "MMDiT" else "transformer.input_embed.proj.weight"
    wanted = (dim, 2 * mel_dim + (0 if backbone == "MMDiT" else text_dim))
    if shapes.get(entry) != wanted:
        wrong.append(f"{entry} is {shapes.get(entry, 'missing')}, others imply {wanted}")
    if dim_head and inner_dim % dim_head:
        wrong.append(f"to_q has {inner_dim} rows, no multiple of dim_head {dim_head}")
    for name, shape in shapes.items():
        if re.search(r"\.(attn|layers\.\d+\.2)\.to_[qkv]\.weight$", name) and shape != (inner_dim, dim):
            wrong.append(f"{name} is {shape}, others imply {(inner_dim, dim)}")
    if wrong:
        raise CheckpointError(
            "shapes contradict each other", offenders=wrong, next_step="the file was merged or cut badly"
        )


def hidden_options(arch: Implied) -> list[HiddenOption]:
    """Return the options that no shape of this checkpoint can show."""
    config, yaml = "training code or YAML; else the loss on real clips", "training YAML"
    options = [
        HiddenOption("text_mask_padding", "False (v0) | True (v1)", "True", "text embedding of every frame", config),
        HiddenOption(
            "pe_attn_head", "1 (v0) | None (v1) | any", "None", "on how many heads positions are rotated", config
        ),
        HiddenOption(
            "text_embedding_average_upsampling", "False | True", "False", "where each letter sits in time", config
        ),
        HiddenOption("attn_mask_enabled", "False | True", "False", "batches of unequal lengths only", yaml),
        HiddenOption("attn_backend", "torch | flash_attn", "torch", "speed, not the result", "the machine at hand"),
        HiddenOption("dropout", "0 … 1", "0.1", "training only", yaml),
        HiddenOption("checkpoint_activations", "False | True", "False", "memory in training only", yaml),
    ]
    if arch.dim_head is None:
        values = f"any product of {arch.inner_dim}"
        options.append(HiddenOption("heads, dim_head", values, "8, 64", "the whole attention", yaml))
    if arch.backbone == "UNetT":
        options = [o for o in options if o.name not in ("text_embedding_average_upsampling", "checkpoint_activations")]
        if arch.skip_connect_type is None:
            options.append(
                HiddenOption("skip_connect_type", "add | none", "concat", "every deep layer's input", config)
            )
    if arch.backbone == "MMDiT":
        options = [o for o in options if o.name not in ("pe_attn_head", "text_embedding_average_upsampling")]
    return [
        *options,
        HiddenOption(
            "mel_spec_type", "vocos | bigvgan", "vocos", "what the 100 mel channels mean", "training YAML; notebook 03"
        ),
        HiddenOption("sample rate, hop, n_fft", "24000, 256, 1024 at inference", "fixed", "pitch and speed", yaml),
        HiddenOption(
            "vocab order", "any order of the same size", "bundled list", "which letter a row means", "notebook 04"
        ),
        HiddenOption(
            "text front end", "raw | pinyin | byte", "pinyin", "how text becomes tokens", "the dataset; notebook 04"
        ),
    ]


def match_presets(arch: Implied) -> PresetMatch:
    """Compare with upstream's published architectures, by what shapes can show."""
    found = {key: getattr(arch, key) for key in _VISIBLE}
    apart = {}
    for name, preset in PRESETS.items():
        visible = {"text_dim": arch.mel_dim, "conv_layers": 0, **preset}
        apart[name] = {key: (found[key], visible[key]) for key in _VISIBLE if found[key] not in (None, visible[key])}
    matches = tuple(name for name, differences in apart.items() if not differences)
    hidden = {key for name in matches for key in PRESETS[name] if key not in _VISIBLE}
    tie = {key: {name: PRESETS[name].get(key) for name in matches} for key in sorted(hidden)}
    tie = {key: values for key, values in tie.items() if len(set(values.values())) > 1}
    nearest = min(apart, key=lambda name: len(apart[name]))
    return PresetMatch(matches, tie, nearest, {} if matches else apart[nearest])


def standard_rope(count: int) -> "Tensor":
    """Return 10000^(-2i/d) for i below `count` = d / 2, float64, shape=(count,): what upstream's constructor makes.

    Source: Su et al. 2021 (arXiv:2104.09864), section 3.2.2; ``RotaryEmbedding`` of x_transformers.
    """
    import torch

    return ROPE_BASE ** (-torch.arange(count, dtype=torch.float64) / count)


def check_rope(weights: "Mapping[str, Tensor]", frame: int = 1000) -> RopeCheck:
    """Compare the stored rotary frequencies with 10000^(-2i/d), in float64.

    The buffer in the file overrides whatever the model was built with, so a converted file can carry a wrong one.
    """
    import torch

    stored = weights.get(INV_FREQ)
    if stored is None:
        return RopeCheck(False, "", None, None, "not stored: dim_head must be known from elsewhere")
    values, dtype = stored.double(), str(stored.dtype).removeprefix("torch.")
    if values.ndim != 1 or not len(values):
        return RopeCheck(True, dtype, None, None, f"no list of frequencies: shape {tuple(values.shape)}")
    if not torch.isfinite(values).all():
        return RopeCheck(True, dtype, None, None, "not finite")
    exact = standard_rope(len(values))
    worst = float(((values - exact) / exact).abs().max())
    phase = float(((values - exact).abs() * frame).max())
    if worst < AS_BUILT:
        verdict = "as built: 10000^(-2i/d)"
    elif worst < ROUNDED:
        verdict = f"rounded to half precision at some time: {phase:.2f} rad off at frame {frame}"
    else:
        verdict = f"altered: {100 * worst:.1f} % off; another base or another model"
    return RopeCheck(True, dtype, worst, phase, verdict)


def contradictions(arch: Implied, options: Mapping[str, Any]) -> list[str]:
    """Return in words which stated options, ``backbone`` among them, are not what the shapes show; what they can not show is left alone."""
    shown = _shown(arch)
    return [f"{key} {value}, the shapes say {shown[key]}" for key, value in options.items() if _wrong(key, value, shown)]


def _shown(arch: Implied) -> dict[str, Any]:
    return arch.options() | ({"dim_head": arch.dim_head} if arch.dim_head else {})


def _wrong(key: str, value: Any, shown: Mapping[str, Any]) -> bool:
    return key in shown and value not in ("left out", None, shown[key])


def claim_rows(arch: Implied, claims: Mapping[str, Mapping[str, Any] | None]) -> list[dict[str, Any]]:
    """Return option by option what the shapes say and what others claim, as table rows.

    Parameters
    ----------
    claims : mapping of str to (mapping or None)
        Options by who claims them, ``backbone`` among them; None where nobody says any.

    Returns
    -------
    list of dict
        ``says`` is "contradicts the shapes", "sides differ, shapes can not tell", "sides differ" or "".
    """
    shown = _shown(arch)
    given = {who: options for who, options in claims.items() if options is not None}
    keys = list(dict.fromkeys([*shown, *(key for options in given.values() for key in options)]))
    rows = []
    for key in keys:
        values = {who: options.get(key, "left out") for who, options in given.items()}
        stated = {str(value) for value in values.values()}
        wrong = any(_wrong(key, value, shown) for value in values.values())
        says = "contradicts the shapes" if wrong else ""
        if not wrong and len(stated) > 1:
            says = "sides differ" if key in shown else "sides differ, shapes can not tell"
        rows.append({"option": key, "shapes": shown.get(key, "can not show"), **values, "says": says})
    return rows
