"""Upstream's code, contained: the one module that imports f5_tts and vocos.

Importing ``f5_tts.infer.utils_infer`` switches matplotlib to Agg, edits ``sys.path`` and picks a device. `upstream`
imports it once and undoes the first two; the device is always passed explicitly.
"""

import atexit
import contextlib
import functools
import gc
import inspect
import io
import shutil
import sys
import tempfile
import textwrap
import warnings
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from types import SimpleNamespace
from typing import Any, Literal

import numpy as np
import soundfile
import torch

from f5lab import provenance, remedies
from f5lab.audio import Wave
from f5lab.errors import ModelError, VocabError
from f5lab.paths import existing_file
from f5lab.specs import Backbone, FrontEnd, MelType, Precision, Vocoder, Weights
from f5lab.untrusted.weights_files import open_weights_file
from f5lab.vocoder_folders import check_vocoder_folder

MEL = {"n_fft": 1024, "hop_length": 256, "win_length": 1024, "n_mel_channels": 100, "target_sample_rate": 24000}
"""Upstream's constants, hard-coded in ``infer/utils_infer.py`` whatever a training config says."""

SHORT_BYTES, SHORT_SPEED = 10, 0.3
"""``infer_batch_process``: a new text below so many bytes is spoken at this speed."""
LONGEST_REFERENCE_S = 12.0
"""``preprocess_ref_audio_text`` cuts what is longer, and keeps the whole text."""
RATE_HZ, HOP = MEL["target_sample_rate"], MEL["hop_length"]
_DTYPES = {"auto": None, "fp32": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16}


@functools.cache
def upstream() -> SimpleNamespace:
    """Return upstream's names: CFM, DiT, UNetT, MMDiT, Trainer, CustomDataset, collate_fn, MelSpec, utils_infer, Vocos, …"""
    import matplotlib

    backend, path = dict.__getitem__(matplotlib.rcParams, "backend"), list(sys.path)
    if isinstance(backend, str) and "inline" in backend:  # loaded later, it would not show figures in a notebook
        import matplotlib.pyplot as plt

        plt.switch_backend(backend)
    with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()), _pipeline_later():
        warnings.simplefilter("ignore")
        import vocos
        from f5_tts.infer import utils_infer
        from f5_tts.model import CFM, DiT, MMDiT, Trainer, UNetT, dataset, modules
        from f5_tts.model import utils as model_utils
    sys.path[:] = path
    if isinstance(backend, str):
        matplotlib.use(backend, force=True)
    else:
        dict.__setitem__(matplotlib.rcParams, "backend", backend)
    utils_infer.tempfile_kwargs = {**utils_infer.tempfile_kwargs, "dir": _passing_folder()}
    return SimpleNamespace(
        CFM=CFM, DiT=DiT, MMDiT=MMDiT, UNetT=UNetT, Trainer=Trainer,
        CustomDataset=dataset.CustomDataset, collate_fn=dataset.collate_fn, load_dataset=dataset.load_dataset,
        DynamicBatchSampler=dataset.DynamicBatchSampler, MelSpec=modules.MelSpec,
        convert_char_to_pinyin=model_utils.convert_char_to_pinyin, get_tokenizer=model_utils.get_tokenizer,
        list_str_to_idx=model_utils.list_str_to_idx, lens_to_mask=model_utils.lens_to_mask,
        utils_infer=utils_infer, load_checkpoint=utils_infer.load_checkpoint, load_model=utils_infer.load_model,
        load_vocoder=utils_infer.load_vocoder, infer_process=utils_infer.infer_process,
        preprocess_ref_audio_text=utils_infer.preprocess_ref_audio_text,
        vocos=vocos, Vocos=vocos.Vocos,
    )  # fmt: skip


def _passing_folder() -> str:
    """Return a new folder that goes with this process: upstream leaves every reference that it prepares behind."""
    folder = tempfile.mkdtemp(prefix="f5lab-references-")
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    return folder


def prepare_reference(path: Path, text: str) -> tuple[str, str]:
    """Return what upstream's ``preprocess_ref_audio_text`` makes of a reference: a WAV file, kept as long as this process
    lives, and the text with its end."""
    with quiet():
        return upstream().preprocess_ref_audio_text(str(path), text, show_info=lambda *_: None)


@contextlib.contextmanager
def _pipeline_later() -> Iterator[None]:
    """Let ``from transformers import pipeline`` load nothing: upstream wants it for its own recogniser, which f5lab never calls,
    and it takes nearly half of the whole import."""
    import transformers

    def pipeline(*arguments: Any, **options: Any) -> Any:
        from transformers.pipelines import pipeline as stock

        return stock(*arguments, **options)

    there = "pipeline" in vars(transformers)
    if not there:
        transformers.pipeline = pipeline  # type: ignore[attr-defined]
    try:
        yield
    finally:
        if not there:
            del transformers.pipeline  # type: ignore[attr-defined]


def pick_device(device: str = "auto") -> str:
    """Return the device to compute on: "cuda", "mps" or "cpu"; "auto" takes the first of these that is there.

    Raises
    ------
    ModelError
        The device asked for is unknown or not available.
    """
    available = {"cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available(), "cpu": True}
    if device == "auto":
        return next(name for name, there in available.items() if there)
    if not available.get(device.split(":")[0], False):
        there = ", ".join(name for name, there in available.items() if there)
        raise ModelError(f"device {device!r} is not available", expected=f"auto or one of: {there}")
    kind, _, number = device.partition(":")
    if kind == "cuda" and number and not (number.isdigit() and int(number) < torch.cuda.device_count()):
        raise ModelError(f"device {device!r} is not available", expected=f"cuda:0 to cuda:{torch.cuda.device_count() - 1}")
    return device


def free_memory(device: str) -> None:
    """Give memory that torch keeps for later back to an accelerator."""
    gc.collect()
    if device.startswith("cuda"):
        torch.cuda.empty_cache()
    elif device == "mps":
        torch.mps.empty_cache()


def pick_precision(precision: Precision, device: str) -> Literal["fp32", "fp16", "bf16"]:
    """Return what a precision is on a device: "auto" is upstream's choice, float16 on CUDA from compute capability 7 on.

    References
    ----------
    ``load_checkpoint`` in ``f5_tts/infer/utils_infer.py``.
    """
    if precision != "auto":
        return precision
    if not device.startswith("cuda"):
        return "fp32"
    name, capability = torch.cuda.get_device_name(device), torch.cuda.get_device_properties(device).major
    return "fp16" if capability >= 7 and not name.endswith("[ZLUDA]") else "fp32"


def compute_dtype(precision: Precision, device: str) -> torch.dtype:
    """Return the type that a precision means on a device."""
    return _DTYPES[pick_precision(precision, device)]  # type: ignore[return-value]


def fill(
    model: torch.nn.Module, weights: Mapping[str, torch.Tensor], *, precision: Precision = "fp32", device: str = "cpu"
) -> torch.nn.Module:
    """Fill a CFM from a state dict under upstream's names (strict), cast, move and put it in eval mode.

    For experiments on weights that upstream's loader would refuse, such as those with a wrapper's prefix stripped. Tensors that
    have the precision and device already become the model's own, without a copy: models filled from one such dict share them.

    Raises
    ------
    ModelError
        Names or shapes do not fit; every offending tensor is listed.
    """
    own = model.state_dict()
    wrong = [f"{n} missing" for n in own if n not in weights and n.startswith("transformer.")]
    wrong += [f"{n} unexpected" for n in weights if n not in own]
    wrong += [f"{n} {tuple(weights[n].shape)}, the model has {tuple(t.shape)}" for n, t in own.items()
              if n in weights and weights[n].shape != t.shape]  # fmt: skip
    if wrong:
        raise ModelError("the weights do not fit the model", offenders=wrong, next_step="compare with `f5lab inspect`")
    dtype = compute_dtype(precision, device)
    model.load_state_dict(converted(weights, dtype, device), strict=False, assign=True)
    return model.to(device=device, dtype=dtype).eval()


def converted(weights: Mapping[str, torch.Tensor], dtype: torch.dtype, device: str) -> dict[str, torch.Tensor]:
    """Return weights in another precision and place; tensors that are there already are not copied."""
    return {name: tensor.to(device=device, dtype=dtype) for name, tensor in weights.items()}


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Swallow what upstream prints."""
    with contextlib.redirect_stdout(io.StringIO()):
        yield


@contextlib.contextmanager
def _without_retries_told() -> Iterator[None]:
    """Swallow the hub's account of its attempts: the error at the end says what failed."""
    from huggingface_hub.utils import logging as hub

    level = hub.get_verbosity()
    hub.set_verbosity_error()
    try:
        yield
    finally:
        hub.set_verbosity(level)


def constructor_defaults(backbone: Backbone) -> dict[str, Any]:
    """Return the options that a backbone's constructor assumes when they are left out."""
    parameters = inspect.signature(getattr(upstream(), backbone).__init__).parameters.values()
    return {p.name: p.default for p in parameters if p.default is not inspect.Parameter.empty}


def full_options(backbone: Backbone, arch: dict[str, Any]) -> dict[str, Any]:
    """Return `arch` with every constructor default spelled out; mel and vocab sizes left out."""
    options = {**constructor_defaults(backbone), **arch}
    return {k: v for k, v in sorted(options.items()) if k not in ("mel_dim", "text_num_embeds")}


def read_vocab_map(vocab: Path, front_end: FrontEnd = "raw") -> tuple[dict[str, int] | None, int]:
    """Return upstream's token map and its size: ``get_tokenizer(vocab, "custom")``, or bytes without a map.

    Raises
    ------
    VocabError
        The file is missing, empty or not UTF-8.
    """
    if front_end == "byte":
        return None, 256
    vocab = existing_file(vocab, VocabError, "vocab", "pass the vocab.txt of the training data")
    char_map, size = _custom_map(vocab, provenance.identity(vocab))
    return dict(char_map), size


@functools.lru_cache(maxsize=8)
def _custom_map(vocab: Path, _identity: str) -> tuple[dict[str, int], int]:
    try:
        char_map, size = upstream().get_tokenizer(str(vocab), "custom")
    except UnicodeDecodeError as error:
        raise VocabError(
            f"vocab {vocab} is not UTF-8 ({error.reason} at byte {error.start})", next_step="pass the training vocab"
        ) from error
    if not size:
        raise VocabError(f"vocab {vocab} is empty", expected="one symbol a line, space first")
    return char_map, size


def build_cfm(
    backbone: Backbone,
    arch: dict[str, Any],
    vocab: Path,
    *,
    mel_spec_type: MelType = "vocos",
    front_end: FrontEnd = "raw",
    empty: bool = False,
) -> torch.nn.Module:
    """Construct upstream's CFM as ``load_model`` and ``finetune_cli`` do, with fresh weights, on the CPU.

    With `empty` the parameters have no storage yet (`fill` gives them one): nothing is drawn or allocated twice.

    Raises
    ------
    ModelError
        The backbone refuses the options.
    """
    char_map, size = read_vocab_map(vocab, front_end)
    up = upstream()
    try:
        with _without_storage() if empty else contextlib.nullcontext():
            transformer = getattr(up, backbone)(**arch, text_num_embeds=size, mel_dim=MEL["n_mel_channels"])
    except (TypeError, AssertionError, ValueError) as error:
        reason = str(error) or type(error).__name__
        raise ModelError(
            f"{backbone} cannot be built with {arch} ({reason})", next_step="compare with f5_tts/configs/*.yaml"
        ) from error
    return up.CFM(
        transformer=transformer, mel_spec_kwargs={**MEL, "mel_spec_type": mel_spec_type},
        odeint_kwargs={"method": "euler"}, vocab_char_map=char_map,
    )  # fmt: skip


def _without_storage() -> contextlib.AbstractContextManager[None]:
    from accelerate import init_empty_weights

    return init_empty_weights(include_buffers=False)


def load_weights(
    model: torch.nn.Module, checkpoint: Path, weights: Weights, *, precision: Precision = "fp32", device: str = "cpu"
) -> torch.nn.Module:
    """Fill a CFM by upstream's own ``load_checkpoint`` (strict), move it to `device` and put it in eval mode.

    Parameters
    ----------
    precision : {"auto", "fp32", "fp16", "bf16"}
        "auto" is upstream's choice: float16 on CUDA with compute capability 7 or above, else float32.

    Raises
    ------
    ModelError
        The file lacks the section, or names and shapes do not fit the model; every offending tensor is listed.
    """
    existing_file(checkpoint, ModelError, "checkpoint")
    open_weights_file(checkpoint)  # upstream's torch.load(weights_only=True) sees no file that this refuses
    try:
        with quiet():
            model = upstream().load_checkpoint(
                model, str(checkpoint), device, dtype=_DTYPES[precision], use_ema=weights == "ema"
            )
    except KeyError as error:
        raise ModelError(
            f"{checkpoint} has no {error.args[0]!r} section", expected=f"one for weights: {weights}",
            next_step="look at `f5lab inspect` and choose weights: ema or raw",
        ) from error  # fmt: skip
    except RuntimeError as error:
        if remedies.is_machine(error):
            raise
        lines = [line.strip().rstrip(".") for line in str(error).splitlines()[1:] if line.strip()]
        raise ModelError(
            f"{checkpoint} does not fit the model", offenders=[line[:200] for line in lines] or [str(error)[:200]],
            next_step="compare the architecture with `f5lab inspect`, the vocab with `f5lab vocab`",
        ) from error  # fmt: skip
    return model.eval()


def pieces(prepared: Path, ref_text: str, text: str, speed: float = 1.0) -> list[str]:
    """Return the pieces in which ``infer_process`` speaks a text, each by a call of the sampler; a short text is one.

    Parameters
    ----------
    prepared : Path
        The reference as `prepare_reference` leaves it, with its text.

    References
    ----------
    ``infer_process`` in ``f5_tts/infer/utils_infer.py``.
    """
    seconds = soundfile.info(prepared).duration
    most = int(len(ref_text.encode()) / seconds * (22 - seconds) * speed)
    with quiet():
        return upstream().utils_infer.chunk_text(text, max_chars=most)


GIVE_VOCODER = "give vocoder.path (--vocoder) a folder that holds it"
_not_downloaded: dict[str, str] = {}


def load_vocoder(vocoder: Vocoder, device: str = "cpu") -> torch.nn.Module:
    """Load a vocoder by upstream's ``load_vocoder``: a local folder with config.yaml and pytorch_model.bin, or its download.

    Raises
    ------
    ModelError
        The folder lacks a file or its configuration names other than vocos' classes, or the download is impossible.
    CheckpointError
        The weights are refused.
    """
    if vocoder.path is not None and vocoder.name == "vocos":
        check_vocoder_folder(vocoder.path)
    if vocoder.path is None and vocoder.name in _not_downloaded:  # each attempt takes half a minute offline
        raise ModelError(_not_downloaded[vocoder.name], next_step=GIVE_VOCODER)
    try:
        with quiet(), _without_retries_told():
            return upstream().load_vocoder(vocoder.name, vocoder.path is not None, str(vocoder.path or ""), device)
    except (OSError, RuntimeError, ImportError, UnboundLocalError) as error:
        if remedies.is_machine(error) and vocoder.path is not None:
            raise
        reason = textwrap.shorten(str(error).splitlines()[0], 300, placeholder=" …")
        says = f"vocoder {vocoder.name} ({vocoder.path or 'download'}) could not be loaded ({reason})"
        if vocoder.path is None:
            _not_downloaded[vocoder.name] = says
        raise ModelError(says, next_step=GIVE_VOCODER) from error


def decode_mel(vocoder: torch.nn.Module, mel: np.ndarray, name: MelType = "vocos") -> Wave:
    """Return the wave of a log-mel [shape=(n, 100), float32, nats] through a vocoder.

    Raises
    ------
    ModelError
        The mel holds values that are not finite.
    """
    if not np.isfinite(mel).all():
        raise ModelError(
            f"the mel holds {int((~np.isfinite(mel)).sum())} values that are not finite", next_step="run in fp32"
        )
    with torch.inference_mode():
        batch = torch.from_numpy(np.ascontiguousarray(mel.T))[None].to(next(vocoder.parameters()).device)
        wave = vocoder.decode(batch) if name == "vocos" else vocoder(batch)
    return Wave(wave.squeeze().float().cpu().numpy(), RATE_HZ)


def mel_spectrogram(wave: Wave, mel_spec_type: MelType = "vocos") -> np.ndarray:
    """Return upstream's log-mel of a 24 kHz wave, as ``CFM.mel_spec`` computes it.

    Returns
    -------
    np.ndarray [shape=(n, 100), dtype=float32]
        Natural log of magnitudes, clamped at 1e-5; ``nw // 256 + 1`` frames for vocos, ``nw // 256`` for bigvgan.

    Raises
    ------
    ModelError
        The wave has another rate: resample it explicitly.
    """
    if wave.rate_hz != RATE_HZ:
        raise ModelError(f"wave at {wave.rate_hz} Hz", expected=f"{RATE_HZ} Hz", next_step="use audio.resample")
    module = upstream().MelSpec(**MEL, mel_spec_type=mel_spec_type)
    with torch.inference_mode():
        return module(torch.from_numpy(wave.samples)[None])[0].T.contiguous().numpy()


def front_end(name: FrontEnd) -> Callable[[str], list[Any]]:
    """Return the function from text to tokens: raw characters, upstream's ``convert_char_to_pinyin``, or UTF-8 bytes."""
    if name == "pinyin":
        return lambda text: list(upstream().convert_char_to_pinyin([text])[0])
    return list if name == "raw" else lambda text: list(text.encode("utf-8"))
