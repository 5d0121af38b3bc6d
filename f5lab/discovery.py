"""A case from a training folder, as F5-TTS's finetune CLI and finetune-gradio leave it."""

import json
import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from f5lab import architectures
from f5lab.checkpoints import open_checkpoint
from f5lab.errors import CaseError
from f5lab.paths import existing_file, write_text
from f5lab.specs import PRESETS

MAX_PROMPTS = 4
MIN_S, MAX_S = 0.5, 11.0
TOKENIZERS = {"char": "raw", "pinyin": "pinyin", "custom": "raw", "byte": "byte"}


@dataclass
class Found:
    """What a training folder holds, and in words what was assumed and what is missing."""

    checkpoint: Path
    base: Path | None = None
    samples: Path | None = None
    data: Path | None = None
    front_end: str = "raw"
    preset: str | None = None
    config: Path | None = None
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
    found = Found(checkpoint or _checkpoint(folder))
    home = found.checkpoint.parent
    bases = sorted(home.glob("pretrained_*.pt")) + sorted(home.glob("pretrained_*.safetensors"))
    found.base = bases[0] if bases else None
    if len(bases) > 1:
        found.assumed.append(f"base: {bases[0].name}, the first of {len(bases)} pretrained_* files")
    found.samples = home / "samples" if (home / "samples").is_dir() else None
    _read_data(folder, home, found, prompts)
    _read_settings(folder, home, found)
    implied = architectures.implied(open_checkpoint(found.checkpoint).weights(_slot(found.checkpoint)))
    options = implied.options() if callable(implied.options) else implied.options
    found.options = {k: v for k, v in options.items() if v is not None and k not in ("mel_dim", "text_num_embeds")}
    found.options.setdefault("backbone", implied.backbone)
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


def _checkpoint(folder: Path) -> Path:
    candidates = [p for p in folder.rglob("model_*") if p.suffix in (".pt", ".safetensors") and p.is_file()]
    if not candidates:
        raise CaseError(
            f"{folder} holds no model_*.pt or model_*.safetensors",
            next_step="pass the folder above ckpts/ or one in it",
        )
    newest = max(candidates, key=lambda p: p.stat().st_mtime).parent
    here = [p for p in candidates if p.parent == newest]
    last = [p for p in here if p.stem == "model_last"]
    return last[0] if last else max(here, key=lambda p: int("".join(re.findall(r"\d+", p.stem)) or -1))


def _read_data(folder: Path, home: Path, found: Found, prompts: int) -> None:
    folders = sorted(
        {p.parent for p in folder.rglob("vocab.txt")} | {p.parent for p in home.parent.parent.glob("data/*/vocab.txt")}
    )
    if not folders:
        return
    named = [p for p in folders if p.name.startswith(home.name)]
    found.data = (named or folders)[0]
    if len(folders) > 1:
        found.assumed.append(f"data: {found.data.name}, one of {len(folders)} folders with a vocab.txt")
    tokenizer = found.data.name.rpartition("_")[2]
    found.front_end = TOKENIZERS.get(tokenizer, "raw")
    if not (found.data / "raw.arrow").is_file():
        found.missing.append("raw.arrow: no prompts could be drawn")
        return
    rows = read_rows(found.data / "raw.arrow")
    if rows and isinstance(rows[0]["text"], str):
        found.front_end = "raw"
    elif rows and tokenizer not in TOKENIZERS:
        found.front_end = "pinyin"
        found.assumed.append("front_end: pinyin, since the dataset's texts are token lists")
    _draw_prompts(rows, found, prompts)


def read_rows(arrow: Path) -> list[dict[str, Any]]:
    """Return the rows of a dataset's ``raw.arrow``: ``audio_path``, ``text`` (a string or a list of tokens), ``duration``.

    Raises
    ------
    CaseError
        The file is missing or no Arrow file.
    """
    import pyarrow as pa

    with existing_file(arrow, CaseError, "dataset").open("rb") as f:
        try:
            return pa.ipc.open_stream(f).read_all().to_pylist()
        except pa.ArrowInvalid:
            f.seek(0)
            try:
                return pa.ipc.open_file(f).read_all().to_pylist()
            except pa.ArrowInvalid as error:
                raise CaseError(f"{arrow} is not an Arrow file", expected="what prepare_csv_wavs writes") from error


def _draw_prompts(rows: list[dict[str, Any]], found: Found, prompts: int) -> None:
    usable = [
        (row["audio_path"], "".join(row["text"]))
        for row in rows
        if MIN_S <= float(row.get("duration", 0)) <= MAX_S and Path(row["audio_path"]).is_file()
    ]
    gone = sum(not Path(row["audio_path"]).is_file() for row in rows)
    if gone:
        found.missing.append(f"audio of {gone} of {len(rows)} dataset rows")
    texts = {text: path for path, text in usable}
    step = max(1, len(texts) // (2 * prompts))
    chosen = list(texts.items())[::step][: 2 * prompts]
    for number, ((ref_text, ref), (text, gen)) in enumerate(zip(chosen[::2], chosen[1::2], strict=False), start=1):
        found.prompts.append(
            {"id": f"p{number:02d}", "ref_audio": ref, "ref_text": ref_text, "gen_text": text, "gen_audio": gen}
        )


def _read_settings(folder: Path, home: Path, found: Found) -> None:
    for path in [*home.glob("setting.json"), *folder.rglob("setting.json")]:
        name = json.loads(path.read_text(encoding="utf-8")).get("exp_name")
        if name in PRESETS:
            found.preset = name
            return
    for path in [*folder.rglob(".hydra/config.yaml"), *folder.glob("*.yaml"), *home.glob("*.yaml")]:
        data = yaml.safe_load(path.read_text(encoding="utf-8"))
        if isinstance(data, dict) and "arch" in (data.get("model") or {}):
            found.config = path
            return


def case_text(found: Found, name: str, language: str | None = None) -> str:
    """Return the commented case file; a language that nobody gave is taken to be English, and marked so."""

    def line(key: str, value: Any) -> str:
        return f"{key}: {json.dumps(str(value) if isinstance(value, Path) else value, ensure_ascii=False)}"

    arch = {"preset": found.preset} if found.preset else {"config": str(found.config)} if found.config else None
    lines = [
        f"# Written by `f5lab new`. Assumed: {'; '.join(found.assumed) or 'nothing'}.",
        f"# Missing: {'; '.join(found.missing) or 'nothing'}.",
    ]
    lines += [
        line("name", name),
        line("language", language or "en")
        + ("" if language else "  # assumed: correct it if the speech is in another language"),
    ]
    lines += [line("checkpoint", found.checkpoint)]
    lines += [line("base", found.base)] if found.base else ["# base: the file it was fine-tuned from"]
    vocab = found.data / "vocab.txt" if found.data else None
    lines += [line("vocab", vocab)] if vocab else ["vocab: vocab.txt  # not found: name the training's vocab.txt"]
    lines += ["# vocoder: {name: vocos, path: folder}  # left out: upstream's download", "training:"]
    lines += (
        [f"  {line('arch', arch)}"]
        if arch
        else ["  # arch: unknown; {preset: F5TTS_Base} or {preset: F5TTS_v1_Base} if you know it"]
    )
    lines += [f"  {line('vocab', vocab)}"] if vocab else []
    lines += [f"  {line('front_end', found.front_end)}", "  # mel_spec_type: vocos  # or bigvgan, if you know it"]
    arrow = found.data / "raw.arrow" if found.data else None
    lines += [f"  {line('dataset', arrow)}"] if arrow and arrow.is_file() else []
    lines += [f"  {line('samples', found.samples)}"] if found.samples else []
    lines += [
        "inference:  # what you run; defaults are those of f5-tts 1.1.22",
        f"  {line('arch', found.options)}  # assumed, what the shapes say: put here what you really pass",
    ]
    lines += ["  weights: ema", "  front_end: pinyin", "prompts:"]
    lines += [f"  - {json.dumps(p, ensure_ascii=False)}" for p in found.prompts]
    if not found.prompts:
        lines += ['  - {id: p01, ref_audio: ref.wav, ref_text: "what it says", gen_text: "what to say"}  # fill in']
    return "\n".join(lines) + "\n"


def report(folder: Path, out: Path, language: str | None = None) -> dict[str, Any]:
    """Explore a training folder and write a case file: the body of ``f5lab new``.

    Raises
    ------
    CaseError
        No checkpoint, or `out` exists already.
    """
    if out.exists():
        raise CaseError(f"{out} exists already", next_step="choose another --out")
    found = explore(folder.expanduser().resolve())
    name = re.sub(r"[^A-Za-z0-9._-]+", "-", found.checkpoint.parent.name) or "case"
    write_text(out, case_text(found, name, language))
    return {
        "written": str(out), "checkpoint": str(found.checkpoint), "base": str(found.base or "none"),
        "data": str(found.data or "none"), "front_end": found.front_end, "prompts": len(found.prompts),
        "assumed": found.assumed, "missing": found.missing,
    }  # fmt: skip
