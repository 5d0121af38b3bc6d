"""What the specimen must do, measured: text gap, trainer path, inference path, inference with default options, vocoder."""

import json
import logging
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from tqdm.auto import tqdm

from f5lab import metrics, models
from f5lab.asr import Transcriber
from f5lab.audio import Wave, load_wave
from f5lab.errors import SpecimenError
from f5lab.paths import write_text
from f5lab.specimen import curricula
from f5lab.specimen.curricula import Clip
from f5lab.specimen.finetuning import ARCH, FEMALE, MALE
from f5lab.specs import FrontEnd, Vocoder, Weights
from f5lab.statistics import DIFFERENCE, SHARE, Estimate, cluster_mean, paired_difference

logger = logging.getLogger(__name__)

MIN_BYTES, HEARD = 10, 0.1
"""Targets: texts that ``infer_process`` does not slow down, and whose real recording the recogniser hears (CER up to this):
of a text that it mishears in the recording, it can say nothing when it is synthesised."""
BESIDE = "vocoder less griffin-lim, paired"
DEFAULTS = {"text_mask_padding": True, "pe_attn_head": None}


@dataclass(frozen=True)
class Condition:
    """One way of making speech with the specimen.

    Attributes
    ----------
    path : {"recorded", "vocoder", "griffin-lim", "trainer", "inference"}
    model : {"base", "finetune"}
    options : dict
        Architecture options that differ from those trained with.
    prompts : tuple of int
        Rows of the phrase table.
    limit : float, optional
        The gate: mean CER at most this (at least this, where `reverse`).
    unheard : bool
        Count also phrases whose real recording is misheard.
    joined : bool
        Speak each target and the next one as one text, which the specimen was never taught.
    """

    label: str
    path: Literal["recorded", "vocoder", "griffin-lim", "trainer", "inference"]
    model: Literal["base", "finetune"] = "finetune"
    weights: Weights = "raw"
    voice: str = MALE
    options: dict[str, Any] = field(default_factory=dict)
    front_end: FrontEnd = "raw"
    prompts: tuple[int, ...] = (11, 5)
    limit: float | None = None
    reverse: bool = False
    unheard: bool = False
    joined: bool = False


CONDITIONS: tuple[Condition, ...] = (
    Condition("recorded", "recorded"),
    Condition("vocoder", "vocoder", limit=0.05),
    Condition("griffin-lim", "griffin-lim"),
    Condition("c inference ema", "inference", weights="ema", limit=0.2),
    Condition("b trainer raw", "trainer", limit=0.12),
    Condition("d defaults ema", "inference", weights="ema", options=DEFAULTS, limit=0.5, reverse=True),
    Condition("c inference raw", "inference", limit=0.2),
    Condition("d defaults raw", "inference", options=DEFAULTS, limit=0.5, reverse=True),
    Condition("base", "inference", "base", "ema"),
    Condition("pinyin ema", "inference", weights="ema", front_end="pinyin"),
    Condition("mask only", "inference", weights="ema", options={"text_mask_padding": True}),
    Condition("heads only", "inference", weights="ema", options={"pe_attn_head": None}),
    Condition("other prompts", "inference", weights="ema", prompts=(4, 9, 2)),
    Condition("joined phrases", "inference", joined=True),
    Condition("recorded, misheard ones too", "recorded", unheard=True),
    Condition("recorded female, misheard ones too", "recorded", voice=FEMALE, unheard=True),
)


@dataclass(frozen=True)
class Bench:
    """The specimen's files, its speech and the recogniser."""

    specimen: Path
    clips: tuple[Clip, ...]
    transcribe: Transcriber
    nfe_step: int = 32

    def phrases(self, voice: str) -> list[Clip]:
        """Return the phrases of a voice, in table order."""
        return [clip for clip in self.clips if clip.voice == voice and clip.kind == "phrase"]

    def targets(self, condition: Condition, n: int) -> list[int]:
        """Return rows of `n` phrases that a condition can be judged on, its prompts last.

        Raises
        ------
        SpecimenError
            There are fewer.
        """
        phrases = self.phrases(condition.voice)
        rows = [i for i, clip in enumerate(phrases) if len(clip.text.encode()) >= MIN_BYTES]
        if not condition.unheard:
            heard = self.transcribe([load_wave(phrases[i].path) for i in rows])
            rates = [metrics.cer(phrases[i].text, h.text).value for i, h in zip(rows, heard)]
            rows = [i for i, rate in zip(rows, rates) if rate is not None and rate <= HEARD]
        rows.sort(key=lambda i: i in condition.prompts)
        if len(rows) < n:
            raise SpecimenError(
                f"{len(rows)} phrases of {MIN_BYTES} bytes or more that the recogniser hears", expected=f"at least {n}"
            )
        return rows[:n]


@cache
def _model(bench_specimen: Path, name: str, weights: Weights, options: str) -> torch.nn.Module:
    model = models.build_cfm("DiT", {**ARCH, **json.loads(options)}, bench_specimen / "vocab.txt")
    return models.load_weights(model, bench_specimen / name / "model_last.pt", weights)


@cache
def _vocoder(folder: Path) -> torch.nn.Module:
    return models.load_vocoder(Vocoder(path=folder))


def condition_model(bench: Bench, condition: Condition) -> torch.nn.Module:
    """Return the model that a condition speaks with."""
    return _model(bench.specimen, condition.model, condition.weights, json.dumps(condition.options, sort_keys=True))


@contextmanager
def _front_end(name: FrontEnd) -> Iterator[None]:
    """Let ``infer_process`` split texts as the specimen was trained, or as upstream does."""
    module = models.upstream().utils_infer
    stock = module.convert_char_to_pinyin
    if name == "raw":
        module.convert_char_to_pinyin = lambda texts, **_: [list(text) for text in texts]
    try:
        yield
    finally:
        module.convert_char_to_pinyin = stock


def speak_trainer(bench: Bench, condition: Condition, row: int, seed: int) -> Wave:
    """Sample a clip after itself exactly as ``Trainer.train`` logs it: text doubled, twice the frames, 32 steps."""
    model, clip = condition_model(bench, condition), bench.phrases(condition.voice)[row]
    mel = curricula.wave_mel(load_wave(clip.path).samples)
    torch.manual_seed(seed)
    with torch.inference_mode():
        made, _ = model.sample(
            cond=mel[None], text=[clip.text + " " + clip.text], duration=2 * len(mel), steps=bench.nfe_step, cfg_strength=2.0,
            sway_sampling_coef=-1.0,
        )  # fmt: skip
    return models.decode_mel(_vocoder(bench.specimen / "vocos"), made[0, len(mel) :].float().numpy())


def speak_inference(bench: Bench, condition: Condition, text: str, prompt: Clip, seed: int) -> Wave:
    """Speak `text` after `prompt` through upstream's ``preprocess_ref_audio_text`` and ``infer_process``."""
    up, model = models.upstream(), condition_model(bench, condition)
    audio, ref_text = models.prepare_reference(prompt.path, prompt.text)
    with models.quiet(), _front_end(condition.front_end):
        torch.manual_seed(seed)
        wave, rate, _ = up.infer_process(
            audio, ref_text, text, model, _vocoder(bench.specimen / "vocos"), show_info=lambda *_: None, progress=None,
            nfe_step=bench.nfe_step, device="cpu",
        )  # fmt: skip
    return Wave(np.asarray(wave, np.float32), rate)


def copy_synthesis(bench: Bench, wave: Wave, vocoder: str) -> Wave:
    """Take a recording through the mel and back."""
    mel = curricula.wave_mel(wave.samples)
    if vocoder == "vocoder":
        return models.decode_mel(_vocoder(bench.specimen / "vocos"), mel.numpy())
    import librosa

    filters = librosa.filters.mel(sr=models.RATE_HZ, n_fft=1024, n_mels=100, htk=True, norm=None)
    magnitude = np.maximum(0, np.linalg.pinv(filters) @ np.exp(mel.numpy().T))
    samples = librosa.griffinlim(magnitude, n_iter=60, hop_length=models.HOP, random_state=0)
    return Wave(samples.astype(np.float32), models.RATE_HZ)


def target_text(condition: Condition, phrases: Sequence[Clip], rows: Sequence[int], number: int) -> str:
    """Return what the `number`-th target should say."""
    text = phrases[rows[number]].text
    return f"{text} {phrases[rows[(number + 1) % len(rows)]].text}" if condition.joined else text


def make_wave(bench: Bench, condition: Condition, row: int, text: str, number: int, seed: int) -> Wave:
    """Return the wave of target `row` (the `number`-th target) under a condition."""
    phrases = bench.phrases(condition.voice)
    if condition.path == "trainer":
        return speak_trainer(bench, condition, row, seed)
    if condition.path == "inference":
        prompt = phrases[condition.prompts[(number + seed) % len(condition.prompts)]]
        return speak_inference(bench, condition, text, prompt, seed)
    wave = load_wave(phrases[row].path)
    return wave if condition.path == "recorded" else copy_synthesis(bench, wave, condition.path)


def measure_condition(
    bench: Bench, condition: Condition, rows: Sequence[int], seeds: Sequence[int], known: "Rows"
) -> Estimate:
    """Return the mean CER of a condition with its interval over targets; rows measured before are taken from `known`."""
    seeds = seeds if condition.path in ("trainer", "inference") else seeds[:1]
    keys = [(number, row, seed) for seed in seeds for number, row in enumerate(rows)]
    phrases = bench.phrases(condition.voice)
    for number, row, seed in tqdm(keys, desc=condition.label, unit="clip", disable=None):
        if known.find(condition.label, row, seed) is None:
            text = target_text(condition, phrases, rows, number)
            wave = make_wave(bench, condition, row, text, number, seed)
            heard = bench.transcribe([wave])[0].text
            known.add(condition.label, row, seed, float(metrics.cer(text, heard).value), heard)
    values = [known.find(condition.label, row, seed) for _, row, seed in keys]
    return cluster_mean(values, [row for _, row, _ in keys], within=SHARE)


class Rows:
    """Measured clips, one JSON object a line; a measurement that was stopped is taken up."""

    def __init__(self, path: Path) -> None:
        self.path, self._known = path, {}
        if path.is_file():
            for line in path.read_text(encoding="utf-8").splitlines():
                row = json.loads(line)
                self._known[(row["condition"], row["row"], row["seed"])] = row["cer"]

    def find(self, condition: str, row: int, seed: int) -> float | None:
        """Return the CER of a clip measured before."""
        return self._known.get((condition, row, seed))

    def add(self, condition: str, row: int, seed: int, cer: float, heard: str) -> None:
        """Keep the CER of a clip."""
        self._known[(condition, row, seed)] = cer
        with self.path.open("a", encoding="utf-8") as f:
            f.write(
                json.dumps(
                    {"condition": condition, "row": row, "seed": seed, "cer": cer, "heard": heard}, ensure_ascii=False
                )
                + "\n"
            )


def measure_text_gap(bench: Bench, condition: Condition) -> curricula.TextGap:
    """Measure gate (a) on a condition's weights and voice: 24 natural pairs, three times."""
    prompts = [row for row in condition.prompts if row in (5, 11)]
    return curricula.text_gap(
        condition_model(bench, condition), curricula.load_voice(bench.clips, condition.voice, prompts)
    )


def measure_gates(
    specimen: Path, speech: Path, out: Path, *, n: int = 24, seeds: Sequence[int] = (0, 1, 2), nfe_step: int = 32,
    only: Callable[[Condition], bool] = lambda _: True,
) -> dict[str, dict[str, Any]]:  # fmt: skip
    """Measure the specimen's gates and write ``clips.jsonl`` and ``gates.json`` into `out`.

    Parameters
    ----------
    specimen : Path
        Folder with ``base/``, ``finetune/``, ``vocos/`` and ``vocab.txt``.
    n : int
        Targets a condition.
    seeds : sequence of int
        Seeds for each target.

    Returns
    -------
    dict
        Label to mean, low, high, n, seeds, limit and passed.
    """
    out.mkdir(parents=True, exist_ok=True)
    bench = Bench(specimen, tuple(curricula.read_clips(speech)), Transcriber("pt"), nfe_step)
    known, result = Rows(out / "clips.jsonl"), {}
    for condition in filter(only, CONDITIONS):
        estimate = measure_condition(bench, condition, bench.targets(condition, n), seeds, known)
        result[condition.label] = _judged(condition, estimate, len(seeds))
        if condition.label in ("c inference raw", "c inference ema", "base"):
            gap = measure_text_gap(bench, condition)
            result[f"a gap {condition.model} {condition.weights} {condition.voice}"] = {
                "mean": gap.relative, "own": gap.own, "other": gap.other, "n": 24, "limit": 0.15, "passed": gap.relative >= 0.15,
            }  # fmt: skip
        if {"vocoder", "griffin-lim"} <= set(result):
            result[BESIDE] = _beside(bench, known, n)
        write_text(out / "gates.json", json.dumps(result, indent=1))
    return result


def _beside(bench: Bench, known: Rows, n: int) -> dict[str, Any]:
    """Return the vocoder's CER less Griffin-Lim's, target by target; held when the vocoder is not shown to be worse."""
    rows = bench.targets(CONDITIONS[1], n)
    sides = [[known.find(label, row, 0) for row in rows] for label in ("vocoder", "griffin-lim")]
    change = paired_difference(*sides, within=DIFFERENCE)
    return {"mean": change.mean, "low": change.low, "high": change.high, "n": change.n, "seeds": 1, "limit": 0.0,
            "passed": change.low <= 0}  # fmt: skip


def _judged(condition: Condition, estimate: Estimate, seeds: int) -> dict[str, Any]:
    passed = None
    if condition.limit is not None:
        passed = estimate.mean >= condition.limit if condition.reverse else estimate.mean <= condition.limit
    return {
        "mean": estimate.mean, "low": estimate.low, "high": estimate.high, "n": estimate.n,
        "seeds": seeds if condition.path in ("trainer", "inference") else 1, "limit": condition.limit, "passed": passed,
    }  # fmt: skip


MARKS = ("<!-- gates: begin -->", "<!-- gates: end -->")


def gate_table(result: dict[str, dict[str, Any]]) -> str:
    """Return the measured gates as a Markdown table."""
    lines = ["| what | measured | 95 % interval | targets x seeds | gate | |", "|---|---|---|---|---|---|"]
    for label, row in result.items():
        if "own" in row:
            value, interval = (
                f"+{100 * row['mean']:.0f} %",
                f"loss {row['own']:.3f} own text, {row['other']:.3f} another's",
            )
        else:
            value, interval = f"CER {row['mean']:.3f}", f"{row['low']:.3f} to {row['high']:.3f}"
        limit = "" if row["limit"] is None else f"{row['limit']:g}"
        verdict = {None: "", True: "held", False: "**missed**"}[row["passed"]]
        lines.append(f"| {label} | {value} | {interval} | {row['n']} x {row.get('seeds', 1)} | {limit} | {verdict} |")
    return "\n".join(lines) + "\n"


def write_table(readme: Path, result: dict[str, dict[str, Any]]) -> None:
    """Put the table of gates between the two marks of a README.

    Raises
    ------
    SpecimenError
        The README lacks the marks.
    """
    text = readme.read_text(encoding="utf-8")
    if any(text.count(mark) != 1 for mark in MARKS):
        raise SpecimenError(f"{readme} lacks the marks of the table", expected=" … ".join(MARKS))
    before, rest = text.split(MARKS[0])
    write_text(readme, before + MARKS[0] + "\n" + gate_table(result) + MARKS[1] + rest.split(MARKS[1])[1])
