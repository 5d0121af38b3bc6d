"""A vocoder's folder, checked before upstream loads it. No torch.

``Vocos.from_hparams`` imports and calls whatever ``class_path`` in ``config.yaml`` names, with the arguments that stand
there: a folder from a stranger could run a command. So the names must be vocos' own, and the arguments plain.
"""

from pathlib import Path
from typing import Any

import yaml

from f5lab.errors import ModelError
from f5lab.paths import existing_file
from f5lab.untrusted.weights_files import open_weights_file

PARTS = {
    "feature_extractor": {"vocos.feature_extractors.MelSpectrogramFeatures"},
    "backbone": {"vocos.models.VocosBackbone", "vocos.models.VocosResNetBackbone"},
    "head": {"vocos.heads.ISTFTHead", "vocos.heads.IMDCTSymExpHead", "vocos.heads.IMDCTCosHead"},
}
"""Section of the configuration to the classes that it may name."""

MOST_CONFIG_BYTES = 1 << 16
LARGEST_SIZE = 1 << 16
_NEXT = "pass a folder as charactr/vocos-mel-24khz has it"


def check_vocoder_folder(folder: Path) -> None:
    """Refuse a Vocos folder that could do anything but build vocos' own classes and fill them with tensors.

    Raises
    ------
    ModelError
        A file is missing, or the configuration names other classes or arguments that are no plain values.
    CheckpointError
        The weights are refused.
    """
    for name in ("config.yaml", "pytorch_model.bin"):
        existing_file(folder / name, ModelError, "vocoder file", _NEXT)
    path = folder / "config.yaml"
    if path.stat().st_size > MOST_CONFIG_BYTES:
        raise ModelError(
            f"{path} has {path.stat().st_size:,} bytes", expected="a vocoder's configuration", next_step=_NEXT
        )
    try:
        config = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        raise ModelError(f"{path} is not YAML ({' '.join(str(error).split())[:200]})", next_step=_NEXT) from error
    wrong = [f"{part}: {problem}" for part in PARTS if (problem := _problem(config, part))]
    if wrong:
        raise ModelError(
            f"{path} would make the loader call other things than a Vocos is made of", offenders=wrong,
            expected="vocos' own classes with numbers and words as arguments", next_step=_NEXT,
        )  # fmt: skip
    open_weights_file(folder / "pytorch_model.bin", "vocoder weights")


def _problem(config: Any, part: str) -> str:
    """Return what is wrong with one section, nothing if nothing is."""
    section = config.get(part) if isinstance(config, dict) else None
    if not isinstance(section, dict) or not set(section) <= {"class_path", "init_args"}:
        return "no class_path with init_args"
    if not isinstance(section.get("class_path"), str) or section["class_path"] not in PARTS[part]:
        return f"class_path {str(section.get('class_path'))[:80]!r}"
    arguments = section.get("init_args", {})
    if not isinstance(arguments, dict):
        return "init_args is no mapping"
    bad = [str(key)[:40] for key, value in arguments.items() if not isinstance(key, str) or not _is_plain(value)]
    return f"init_args {', '.join(bad[:5])}" if bad else ""


def _is_plain(value: Any) -> bool:
    if isinstance(value, list):
        return len(value) < 100 and all(_is_plain(item) and not isinstance(item, list) for item in value)
    if isinstance(value, (int, float)):
        return abs(value) <= LARGEST_SIZE
    return value is None or isinstance(value, str) and len(value) < 100
