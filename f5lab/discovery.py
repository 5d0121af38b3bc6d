"""A case from a training folder, as F5-TTS's finetune CLI and finetune-gradio leave it."""

import json
import re
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import yaml

from f5lab.checkpoints import open_checkpoint
from f5lab.errors import CaseError, LabError
from f5lab.models import SHORT_BYTES
from f5lab.paths import write_text
from f5lab.specs import MOST_YAML_BYTES, PRESETS, Arch, name_of, parse_yaml
from f5lab.training_sets import at_hand, is_file, read_metadata, read_rows, row_of, stored_front_end
from f5lab.vocoder_folders import check_vocoder_folder
from f5lab.weights import architectures

MAX_PROMPTS = 4
MIN_S, MAX_S = 0.5, 11.0
LEAST_TEXTS = 4
"""Of two prompts, the least that a case needs."""
BYTES = 256
"""Tokens of the byte front end (``get_tokenizer`` in ``f5_tts/model/utils.py``)."""
TOKENIZERS = {"char": "raw", "pinyin": "pinyin", "custom": "raw", "byte": "byte"}


@dataclass
class Found:
    """What a training folder holds, and in words what was assumed and what is missing; None where it does not say."""

    checkpoint: Path
    base: Path | None = None
    samples: Path | None = None
    data: Path | None = None
    front_end: str | None = None
    preset: str | None = None
    config: Path | None = None
    vocoder: Path | None = None
    options: dict[str, Any] = field(default_factory=dict)
    prompts: list[dict[str, str]] = field(default_factory=list)
    assumed: list[str] = field(default_factory=list)
    missing: list[str] = field(default_factory=list)


def explore(folder: Path, *, checkpoint: Path | None = None, prompts: int = MAX_PROMPTS) -> Found:
    """Look through a training folder.

    Parameters
    ----------
    checkpoint : Path, optional
        The one to read the architecture from; left out, the last one of the folder that was written last.
    prompts : int
        Most prompts drawn from the dataset, two recordings each.

    Raises
    ------
    CaseError
        `folder` is none, or holds no ``model_*.pt`` or ``.safetensors``.
    """
    if not folder.is_dir():
        raise CaseError(f"{folder} is not a folder", expected="the training folder")
    candidates = _checkpoints(folder)
    found = Found(checkpoint or _last(folder, candidates))
    home = found.checkpoint.parent
    others = sorted({path.parent for path in candidates} - {home})
    if others and checkpoint is None:
        names = ", ".join(path.name for path in others)
        found.assumed.append(f"checkpoint: {home.name}/{found.checkpoint.name}, the training written last (others: {names})")
    bases = sorted(home.glob("pretrained_*.pt")) + sorted(home.glob("pretrained_*.safetensors"))
    found.base = bases[0] if bases else None
    if len(bases) > 1:
        found.assumed.append(f"base: {bases[0].name}, the first of {len(bases)} pretrained_* files")
    found.samples = home / "samples" if (home / "samples").is_dir() else None
    _read_data(folder, home, others, found, prompts)
    _read_settings(folder, home, others, found)
    _find_vocoder(folder, found)
    implied = architectures.implied(open_checkpoint(found.checkpoint).weights(_slot(found.checkpoint)))
    found.options = implied.options()
    _leave_out_what_shapes_deny(found, implied)
    if found.front_end == "byte" and implied.vocab_size < BYTES:
        found.front_end = None
        found.missing.append(f"front_end: not byte, as the folder's name says: {implied.vocab_size} tokens have no room for {BYTES}")
    for label, value in (
        ("base (pretrained_*)", found.base),
        ("samples/", found.samples),
        ("data/<name>_<tokenizer>", found.data),
    ):
        if value is None:
            found.missing.append(label)
    if found.preset is None and found.config is None:
        found.missing.append(
            "the architecture options that training ran with: no shape shows text_mask_padding and pe_attn_head"
        )
    return found


def _slot(checkpoint: Path) -> Any:
    return "raw" if "raw" in open_checkpoint(checkpoint).slots else "ema"


def _leave_out_what_shapes_deny(found: Found, implied: architectures.Implied) -> None:
    """Settings may lie beside weights that they are not of: finetune-gradio keeps the last ones that somebody chose."""
    stated = Arch(preset=found.preset) if found.preset else Arch(config=found.config) if found.config else None
    if stated is None:
        return
    backbone, options = stated.resolve()
    if denied := architectures.contradictions(implied, {"backbone": backbone, **options}):
        where = f"setting.json ({found.preset})" if found.preset else str(found.config)
        found.missing.append(f"{where}: not of these weights, left out ({'; '.join(denied)})")
        found.preset = found.config = None


def _checkpoints(folder: Path) -> list[Path]:
    return [p for p in folder.rglob("model_*") if p.suffix in (".pt", ".safetensors") and p.is_file()]


def _last(folder: Path, candidates: list[Path]) -> Path:
    if not candidates:
        raise CaseError(
            f"{folder} holds no model_*.pt or model_*.safetensors",
            next_step="pass the folder above ckpts/ or one in it",
        )
    newest = max(candidates, key=lambda p: p.stat().st_mtime).parent
    here = [p for p in candidates if p.parent == newest]
    last = [p for p in here if p.stem == "model_last"]
    return last[0] if last else max(here, key=_update)


def _update(path: Path) -> tuple[bool, int]:
    """Return whether a file is named as the trainer names it, ``model_<update>``, and the first number in its name."""
    numbers = re.findall(r"\d+", path.stem)
    return re.fullmatch(r"model_\d+", path.stem) is not None, int(numbers[0]) if numbers else -1


def _read_data(folder: Path, home: Path, others: list[Path], found: Found, prompts: int) -> None:
    folders = sorted(
        {p.parent for p in folder.rglob("vocab.txt")} | {p.parent for p in home.parent.parent.glob("data/*/vocab.txt")}
    )
    if not folders:
        return
    own = [p for p in folders if p.name.rpartition("_")[0] == home.name] or [p for p in folders if p.name.startswith(home.name)]
    free = [p for p in folders if not any(p.name.startswith(other.name) for other in others)]
    if not (own or free):
        return
    found.data = (own or free)[0]
    if len(folders) > 1 or found.data.name.rpartition("_")[0] != home.name:
        found.assumed.append(f"data: {found.data.name}, one of {len(folders)} folders with a vocab.txt" if len(folders) > 1
                             else f"data: {found.data.name}, the only folder with a vocab.txt")  # fmt: skip
    tokenizer = found.data.name.rpartition("_")[2]
    named = TOKENIZERS.get(tokenizer)
    found.front_end = named
    written = read_metadata(found.data)
    if (found.data / "raw.arrow").is_file():
        rows = read_rows(found.data / "raw.arrow")
        stored = stored_front_end(rows, written) if named != "byte" else None
        if stored is not None and stored != named:
            found.front_end = stored
            found.assumed.append(f"front_end: {stored}, as the dataset's texts are stored, whatever its folder is called")
        rows = _as_written(at_hand(rows, found.data), written, found)
    elif written:
        found.missing.append("raw.arrow: prompts are drawn from metadata.csv")
        rows = [row_of(path, text) for path, text in written.items()]
    else:
        found.missing.append("raw.arrow and metadata.csv: no prompts could be drawn")
        return
    _draw_prompts(rows, found, prompts)


def _as_written(rows: list[dict[str, Any]], written: dict[Path, str], found: Found) -> list[dict[str, Any]]:
    """Return rows with their texts as somebody wrote them: the tokens of a pinyin dataset joined have spaces of their own."""
    by_name = {path.name: text for path, text in written.items()}
    texts = [by_name.get(Path(row["audio_path"]).name) for row in rows]
    lists = [not isinstance(row["text"], str) for row in rows]
    if guessed := sum(is_list and text is None for is_list, text in zip(lists, texts)):
        found.assumed.append(f"texts: of {guessed} rows the joined tokens, which have spaces that nobody wrote: correct them")
    return [row | {"text": text} if text and is_list else row for row, text, is_list in zip(rows, texts, lists)]


def _draw_prompts(rows: list[dict[str, Any]], found: Found, prompts: int) -> None:
    usable = [
        (row["audio_path"], "".join(map(str, row["text"])).strip())
        for row in rows
        if MIN_S <= row["duration"] <= MAX_S and is_file(row["audio_path"])
    ]
    gone = sum(not is_file(row["audio_path"]) for row in rows)
    if gone:
        found.missing.append(f"audio of {gone} of {len(rows)} dataset rows")
    texts = {text: path for path, text in usable if text}
    long = {text: path for text, path in texts.items() if len(text.encode()) >= SHORT_BYTES}
    if len(long) >= LEAST_TEXTS:  # upstream slows shorter ones down
        texts = long
    step = max(1, len(texts) // (2 * prompts))
    chosen = list(texts.items())[::step][: 2 * prompts]
    if chosen[1:]:
        found.assumed.append("prompts: recordings of the dataset in pairs, taken to be of one speaker")
    for number, ((ref_text, ref), (text, gen)) in enumerate(zip(chosen[::2], chosen[1::2], strict=False), start=1):
        found.prompts.append(
            {"id": f"p{number:02d}", "ref_audio": ref, "ref_text": ref_text, "gen_text": text, "gen_audio": gen}
        )


def _read_settings(folder: Path, home: Path, others: list[Path], found: Found) -> None:
    elsewhere = [p for p in folder.rglob("setting.json") if not set(p.parents) & set(others)]
    for path in [*home.glob("setting.json"), *elsewhere]:
        name = _mapping(path, json.loads, found).get("exp_name")
        if isinstance(name, str) and name in PRESETS:
            found.preset = name
            return
    for path in [*folder.rglob(".hydra/config.yaml"), *folder.glob("*.yaml"), *home.glob("*.yaml")]:
        model = _mapping(path, parse_yaml, found).get("model")
        if isinstance(model, dict) and isinstance(model.get("arch"), dict):
            found.config = path
            return


def _find_vocoder(folder: Path, found: Found) -> None:
    """Take the first folder that a Vocos can be made of, the nearest to the training's; what is wrong with others is listed."""
    near = sorted(folder.rglob("pytorch_model.bin"), key=lambda path: (len(path.parts), path))
    beside = sorted(found.checkpoint.parent.parent.parent.glob("*/pytorch_model.bin"))  # of ckpts/<name>/
    for weights in dict.fromkeys([*near, *beside]):
        if not (weights.parent / "config.yaml").is_file():
            continue
        try:
            check_vocoder_folder(weights.parent)
        except LabError as error:
            found.missing.append(f"vocoder: {weights.parent.name} is left out ({error})")
            continue
        found.vocoder = weights.parent
        found.assumed.append(f"vocoder: {weights.parent.name}, which lies with the training")
        return


def _mapping(path: Path, parse: Callable[[str], Any], found: Found) -> dict[str, Any]:
    """Return what a settings file says; one that cannot be read says nothing, and is listed."""
    try:
        data = parse(path.read_text(encoding="utf-8")) if path.stat().st_size <= MOST_YAML_BYTES else None
    except (OSError, ValueError, RecursionError, yaml.YAMLError):
        data = None
    if not isinstance(data, dict):
        note = f"{path.name}: it is no mapping of settings in UTF-8"
        if note not in found.missing:
            found.missing.append(note)
        return {}
    return data


def assumptions(found: Found, language: str | None = None) -> list[str]:
    """Return in words what a case from a training folder takes for granted: correct what is not so."""
    default = "inference: weights: ema, front_end: pinyin, upstream's defaults"
    heard = [] if language else ["language: left to Whisper"]
    vocoder = [] if found.vocoder else ["vocoder: upstream's, which is downloaded"]
    return [*heard, *found.assumed, "inference.arch: what the shapes say, other options at their defaults", *vocoder, default]


def _named(path: Path, place: Path | None) -> str:
    return path.relative_to(place).as_posix() if place and path.is_relative_to(place) else str(path)


def case_text(found: Found, name: str, language: str | None = None, place: Path | None = None) -> str:
    """Return the commented case file; a language that nobody gave is left to Whisper.

    Parameters
    ----------
    place : Path, optional
        Folder that the file is to lie in: what lies in it too is named from there, so that the two can be moved together.
    """
    assumed = assumptions(found, language)

    named = partial(_named, place=place)

    def line(key: str, value: Any) -> str:
        return f"{key}: {json.dumps(named(value) if isinstance(value, Path) else value, ensure_ascii=False)}"

    arch = {"preset": found.preset} if found.preset else {"config": named(found.config)} if found.config else None
    lines = [
        f"# Written by `f5lab new`. Assumed: {'; '.join(assumed)}.",
        f"# Missing: {'; '.join(found.missing) or 'nothing'}.",
    ]
    unsaid = "# language: pt  # left out: as Whisper hears the recordings; state it to be sure"
    lines += [line("name", name), line("language", language) if language else unsaid]
    lines += [line("checkpoint", found.checkpoint)]
    lines += [line("base", found.base)] if found.base else ["# base: the file it was fine-tuned from"]
    vocab = found.data / "vocab.txt" if found.data else None
    lines += [line("vocab", vocab)] if vocab else ["vocab: vocab.txt  # not found: name the training's vocab.txt"]
    own = line("vocoder", {"name": "vocos", "path": named(found.vocoder)}) if found.vocoder else ""
    lines += [own or "# vocoder: {name: vocos, path: folder}  # left out: upstream's download", "training:"]
    lines += (
        [f"  {line('arch', arch)}"]
        if arch
        else ["  # arch: unknown; {preset: F5TTS_Base} or {preset: F5TTS_v1_Base} if you know it"]
    )
    lines += [f"  {line('vocab', vocab)}"] if vocab else []
    lines += [f"  {line('front_end', found.front_end)}" if found.front_end else "  # front_end: raw  # or pinyin or byte, if you know it"]
    lines += ["  # mel_spec_type: vocos  # or bigvgan, if you know it"]
    arrow = found.data / "raw.arrow" if found.data else None
    lines += [f"  {line('dataset', arrow)}"] if arrow and arrow.is_file() else []
    lines += [f"  {line('samples', found.samples)}"] if found.samples else []
    lines += [
        "inference:  # what you run; defaults are those of f5-tts 1.1.22",
        f"  {line('arch', found.options)}  # what the shapes say: put here what you really pass",
        "  weights: ema",
        "  front_end: pinyin",
        "  assumed: [arch, weights, front_end]  # nobody stated these: take out what you have checked",
        "prompts:",
    ]
    recordings = ("ref_audio", "gen_audio")
    prompts = [{key: named(Path(value)) if key in recordings else value for key, value in p.items()} for p in found.prompts]
    lines += [f"  - {json.dumps(prompt, ensure_ascii=False)}" for prompt in prompts]
    if not found.prompts:
        lines += ['  - {id: p01, ref_audio: ref.wav, ref_text: "what it says", gen_text: "what to say"}  # fill in']
    return "\n".join(lines) + "\n"


def report(folder: Path, out: Path, language: str | None = None, prompts: int = MAX_PROMPTS) -> dict[str, Any]:
    """Explore a training folder and write a case file of at most so many prompts: the body of ``f5lab new``.

    Raises
    ------
    CaseError
        No checkpoint, or `out` exists already.
    """
    if out.exists():
        raise CaseError(f"{out} exists already", next_step="choose another --out")
    found = explore(folder.expanduser().resolve(), prompts=prompts)
    place = out.expanduser().absolute().parent.resolve()
    text = case_text(found, name_of(found.checkpoint.parent), language, place)
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise CaseError("a path below the training folder is no UTF-8, which a case file is", next_step="rename it") from error
    write_text(out, text)
    return {
        "written": str(out), "checkpoint": str(found.checkpoint), "base": str(found.base or "none"),
        "data": str(found.data or "none"), "front_end": found.front_end or "not known", "prompts": len(found.prompts),
        "assumed": assumptions(found, language), "missing": found.missing,
    }  # fmt: skip
