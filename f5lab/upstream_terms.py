"""Settings of a case file in F5-TTS's own terms: lines of its model config, options of its command line, arguments of its Python."""

import json
import shlex
from collections.abc import Mapping
from typing import Any

import yaml
from pydantic import ValidationError

from f5lab.specs import Inference

_OPTIONS = ("nfe_step", "cfg_strength", "sway_sampling_coef", "speed", "fix_duration")
_RAW = "utils_infer.convert_char_to_pinyin = lambda texts, **_: [list(text) for text in texts]"


def split(settings: Mapping[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
    """Return what a case file's ``inference:`` block takes as it stands, and what is changed elsewhere or said in words.

    Examples
    --------
    >>> split({"front_end": "raw", "ref_text": "what the reference says"})
    ({'front_end': 'raw'}, {'ref_text': 'what the reference says'})
    """
    taken = {key: value for key, value in settings.items() if _is_taken(key, value)}
    return taken, {key: value for key, value in settings.items() if key not in taken}


def _is_taken(key: str, value: Any) -> bool:
    try:
        Inference.model_validate({key: value})
    except ValidationError:
        return False
    return True


def lines(settings: Mapping[str, Any]) -> str:
    """Return what to write where, as text in blocks; empty when F5-TTS has no place for any of the settings.

    References
    ----------
    ``f5_tts/infer/infer_cli.py`` and ``utils_infer.py`` 1.1.22: what the command line has no option for is said in Python.

    Examples
    --------
    >>> print(lines({"arch": {"pe_attn_head": 1}, "nfe_step": 32}))
    # model config, given by --model_cfg
    model:
      arch:
        pe_attn_head: 1
    <BLANKLINE>
    # command line
    f5-tts_infer-cli --nfe_step 32
    <BLANKLINE>
    # Python
    load_model(DiT, {..., "pe_attn_head": 1}, ...)
    infer_process(..., nfe_step=32)
    """
    model, options, python = _config(settings), _command(settings), _python(settings)
    blocks = []
    if model:
        blocks.append("# model config, given by --model_cfg\n" + yaml.safe_dump({"model": model}, sort_keys=False).rstrip())
    if options:
        blocks.append("# command line\nf5-tts_infer-cli " + " ".join(options))
    if python:
        blocks.append("\n".join(["# Python", *python]))
    return "\n\n".join(blocks)


def places(settings: Mapping[str, Any]) -> list[tuple[str, str]]:
    """Return the same as (place, text) with each text in one line, for where no block can stand.

    Examples
    --------
    >>> places({"arch": {"pe_attn_head": 1}})[0]
    ('model config, given by --model_cfg', 'model: {arch: {pe_attn_head: 1}}')
    """
    model, options, python = _config(settings), _command(settings), _python(settings)
    listed = [("model config, given by --model_cfg", in_one_line({"model": model}))] if model else []
    listed += [("command line", "f5-tts_infer-cli " + " ".join(options))] if options else []
    return listed + ([("Python", "; ".join(python))] if python else [])


def in_one_line(settings: Mapping[str, Any]) -> str:
    """Return settings as YAML in one line, without the outer braces."""
    return yaml.safe_dump(dict(settings), sort_keys=False, default_flow_style=True, allow_unicode=True, width=10**6).strip()[1:-1]


def _config(settings: Mapping[str, Any]) -> dict[str, Any]:
    model: dict[str, Any] = {}
    if isinstance(settings.get("arch"), Mapping):
        model["arch"] = dict(settings["arch"])
    if "mel_spec_type" in settings:
        model["mel_spec"] = {"mel_spec_type": settings["mel_spec_type"]}
    return model


def _command(settings: Mapping[str, Any]) -> list[str]:
    given = [f"--{name} {settings[name]}" for name in _OPTIONS if _is_number(settings.get(name))]
    if "vocab" in settings:
        given.append(f"--vocab_file {shlex.quote(str(settings['vocab']))}")
    if "mel_spec_type" in settings:
        given.append(f"--vocoder_name {shlex.quote(str(settings['mel_spec_type']))}")
    return given


def _python(settings: Mapping[str, Any]) -> list[str]:
    loading, said = [], []
    if isinstance(settings.get("arch"), Mapping):
        options = ", ".join(f"{json.dumps(str(k))}: {v!r}" for k, v in settings["arch"].items())
        loading.append(f"{{..., {options}}}")
    loading.append("...")
    if "vocab" in settings:
        loading.append(f"vocab_file={str(settings['vocab'])!r}")
    if settings.get("weights") in ("raw", "ema"):
        loading.append(f"use_ema={settings['weights'] == 'ema'}")
    if len(loading) > 1:
        said.append(f"load_model(DiT, {', '.join(loading)})")
    if settings.get("precision") == "fp32":
        said.append("load_checkpoint(model, ckpt_path, device, dtype=torch.float32)")
    if settings.get("front_end") == "raw":
        said.append(f"from f5_tts.infer import utils_infer; {_RAW}")
    numbers = [f"{name}={settings[name]!r}" for name in _OPTIONS if _is_number(settings.get(name))]
    if numbers:
        said.append(f"infer_process(..., {', '.join(numbers)})")
    return said


def _is_number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool)
