"""One checkpoint of a series: what its weights say, how well they explain real speech, and how they speak.

Each part is kept in a ledger by the content that it depends on, so that a stopped series goes on where it was.
"""

import gc
import hashlib
import math
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property, partial
from pathlib import Path
from typing import Any

import numpy as np

from f5lab import batches, checkpoints, ema, models, oracles, provenance
from f5lab.asr import Transcriber
from f5lab.checkpoints import Checkpoint
from f5lab.errors import CheckpointError, LabError
from f5lab.faults.examinations import Exam
from f5lab.probes import Hypothesis, Item, Probe
from f5lab.samplers import Studio
from f5lab.scale.ledgers import Ledger, digest
from f5lab.specs import Case, Recipe, Weights, case_files
from f5lab.weights import diffs

FORMAT = 2
"""Raised when what a part holds, or how it is computed, changes."""
VERSIONED = ("f5lab", "f5-tts", "torch", "vocos", "openai-whisper")


@dataclass(frozen=True)
class Bench:
    """What every checkpoint of a series is measured with, the same for all.

    Attributes
    ----------
    recipe : Recipe
        The settings as trained; checkpoint and weights are put in for each row.
    items : tuple of Item
        Real recordings for the probe.
    draws : int
        Noise draws for each recording.
    """

    case: Case
    recipe: Recipe
    items: tuple[Item, ...]
    draws: int
    device: str

    @cached_property
    def identity(self) -> str:
        """Digest of everything but the checkpoint that a probe loss depends on."""
        heard = [[i.id, i.text, i.start_s, hashlib.sha256(i.wave.samples.tobytes()).hexdigest()] for i in self.items]
        fields = self.recipe.model_dump(mode="json", exclude={"name", "checkpoint", "weights", "vocab", "vocoder"})
        vocab = provenance.fingerprint(self.recipe.vocab).sha256
        known = provenance.versions()
        return digest([FORMAT, fields, vocab, heard, self.draws, self.device, [known[n] for n in VERSIONED]])

    def hypothesis(self, path: Path, slot: Weights) -> Hypothesis:
        """Return the settings as trained with one checkpoint's weights."""
        return Hypothesis(self.recipe.but(checkpoint=path, weights=slot))


@dataclass(frozen=True)
class Booth:
    """How a series speaks: prompts and seeds of the case by the inference path, heard by one recogniser."""

    bench: Bench
    transcriber: Transcriber
    prompts: int
    seeds: tuple[int, ...]

    @cached_property
    def identity(self) -> str:
        """Digest of everything but the checkpoint that a CER depends on."""
        spoken = [[p.id, p.ref_text, p.gen_text, provenance.fingerprint(p.ref_audio).sha256] for p in self.spoken]
        vocoder = self.bench.recipe.vocoder
        files = provenance.fingerprint(vocoder.path).sha256 if vocoder.path else "download"
        heard = [self.transcriber.weights_id, self.transcriber.language]
        return digest([FORMAT, self.bench.identity, spoken, list(self.seeds), vocoder.name, files, heard])

    @property
    def spoken(self) -> list[Any]:
        """The prompts, those that say what their reference says."""
        return [p for p in self.bench.case.prompts if p.ref_text.strip()][: self.prompts]


def measure(
    path: Path, base: Checkpoint | None, bench: Bench | None, booth: Booth | None, ledger: Ledger
) -> dict[str, Any]:  # fmt: skip
    """Return one checkpoint's row; what cannot be measured is None and says why.

    Returns
    -------
    dict
        ``problem`` is empty where everything that was asked for was measured. Norms and distances are L2, distances as
        shares of the base's norm; losses have shape (recordings, draws), by set of weights.
    """
    start = time.perf_counter()
    row: dict[str, Any] = {"file": path.name, "problem": "", "notes": []}
    try:
        row["sha256"] = provenance.fingerprint(path).sha256
        row |= _once(
            ledger,
            "weights",
            [FORMAT, row["sha256"], base_id(base)],
            partial(_steady, path, row["sha256"], partial(read_weights, path, base)),
        )
    except (LabError, OSError) as error:
        return row | {"problem": str(error), "unreadable": True, "seconds": time.perf_counter() - start}
    problems = []
    for part, tool, work in (("probe", bench, read_losses), ("speech", booth, speak)):
        row[part] = {}
        for slot in row["slots"] if tool is not None else []:
            if slot in row["not_finite"]:
                continue
            try:
                key = [row["sha256"], slot, tool.identity]
                row[part][slot] = _once(
                    ledger, part, key, partial(_steady, path, row["sha256"], partial(work, path, slot, tool))
                )
            except LabError as error:
                problems.append(f"{slot}: {error}")
    return row | {"problem": "; ".join(dict.fromkeys(problems)), "seconds": time.perf_counter() - start}


def base_id(base: Checkpoint | None) -> str:
    """Return the digest of the base's file; empty without one."""
    return provenance.fingerprint(base.path).sha256 if base is not None else ""


def _steady(path: Path, sha256: str, work: Callable[[], dict[str, Any]]) -> dict[str, Any]:
    """Return what was measured of a file that is still the same: a training that goes on writes ``model_last.pt`` anew."""
    found = work()
    if provenance.fingerprint(path).sha256 != sha256:
        raise CheckpointError(f"{path.name} changed while it was measured", next_step="run the series again")
    return found


def _once(ledger: Ledger, part: str, told: list[Any], work: Callable[[], dict[str, Any]]) -> dict[str, Any]:
    key = digest(told)
    found = ledger.get(part, key)
    return ledger.put(part, key, work()) if found is None else found


def read_weights(path: Path, base: Checkpoint | None) -> dict[str, Any]:
    """Return norms, distances and the base's share in the EMA of one checkpoint.

    Raises
    ------
    CheckpointError
        It cannot be read.
    """
    checkpoint = checkpoints.open_checkpoint(path)
    found, slots = ema.study(checkpoint, base), checkpoint.slots
    alone = found.comparison is None
    comparison = (
        diffs.compare(checkpoint.weights(slots[0]), checkpoint.weights(slots[0])) if alone else found.comparison
    )
    sums, share, notes = comparison.overall, found.share, [*checkpoint.notes, *(n.says for n in found.notices)]
    squares = {"raw": sums.aa, "ema": sums.bb} if found.has_both else {slots[0]: sums.aa}
    steps = {"raw": sums.uu, "ema": sums.vv} if found.has_both else {slots[0]: sums.dd}
    base_square = sums.pp if found.has_both else sums.bb
    if comparison.cut_rows or comparison.reshaped:
        notes.append(
            f"{comparison.cut_rows} rows of the text embedding and {len(comparison.reshaped)} tensors that the base lacks are left out"
        )
    notes += [
        f"the {slot} weights hold values that are not finite" for slot, v in squares.items() if not math.isfinite(v)
    ]
    if sums.left_out:
        notes.append(f"norms and shares are without {sums.left_out:,} values that are not finite")
    return {
        "update": checkpoint.update if checkpoint.update is not None else checkpoint.legacy_step,
        "slots": list(slots), "labelled": checkpoint.labelled, "parameters": sums.n,
        "norm": {slot: _root(v) for slot, v in squares.items()},
        "from_base": {slot: _root(v / base_square) for slot, v in steps.items()} if base is not None and base_square else {},
        "raw_to_ema": _finite(sums.relative_l2) if found.has_both else None,
        "not_finite": [slot for slot, v in squares.items() if not math.isfinite(v)],
        "ema_share": {k: _finite(getattr(share, k)) for k in ("measured", "expected", "weight")} if share else {},
        "notes": notes,
    }  # fmt: skip


def _root(square: float) -> float | None:
    return math.sqrt(square) if math.isfinite(square) and square >= 0 else None


def _finite(value: float | None) -> float | None:
    return value if value is not None and math.isfinite(value) else None


def read_losses(path: Path, slot: Weights, bench: Bench) -> dict[str, Any]:
    """Return the probe's losses of one set of weights, [recordings][draws]; smaller is better, 0 explains all.

    Raises
    ------
    LabError
        The weights do not fit the settings, or the loss is not finite.
    """
    probe = Probe(bench.items, draws=bench.draws, device=bench.device)
    values = probe.loss(bench.hypothesis(path, slot)).values
    return {"items": [item.id for item in bench.items], "values": np.asarray(values, float).tolist()}


def speak(path: Path, slot: Weights, booth: Booth) -> dict[str, Any]:
    """Return CER and transcript of every prompt and seed.

    Raises
    ------
    LabError
        The checkpoint cannot be spoken.
    """
    studio, bench = Studio(booth.bench.device), booth.bench
    recipe = bench.recipe.but(name=f"{path.name} {slot}", path="inference", checkpoint=path, weights=slot)
    pairs = [(prompt, seed) for prompt in booth.spoken for seed in booth.seeds]
    scored = oracles.score(batches.speak_pairs(studio, recipe, pairs), booth.transcriber)
    return {
        "clips": [
            {"prompt": s.sample.prompt_id, "seed": s.sample.seed, "cer": s.cer, "heard": s.transcript.text}
            for s in scored
        ]
    }


def settings_of(
    case: Case, ledger: Ledger, *, device: str, recordings: int, draws: int
) -> tuple[Recipe, dict[str, Any]]:
    """Return the settings that the case's checkpoint was trained with, and how each is known.

    Found by the probe as the diagnosis does, once for the series: training settings do not change within a run.

    Raises
    ------
    LabError
        The checkpoint cannot be opened, or a recording cannot be read.
    """
    files = {label: provenance.fingerprint(file).sha256 for label, file in case_files(case)}
    told = case.model_dump(mode="json", include={"language", "training", "inference", "prompts"})
    key = [FORMAT, told, files, recordings, draws, models.pick_device(device), provenance.versions()["f5lab"]]

    def search() -> dict[str, Any]:
        truth = Exam(case, device=device, limit=recordings, draws=draws, asr="").truth
        gc.collect()  # the models of the search lie in cycles
        return {
            "recipe": truth.recipe.model_dump(mode="json"), "known": truth.known,
            "tells": truth.identifiable, "problem": truth.problem,
        }  # fmt: skip

    found = _once(ledger, "settings", key, search)
    if not Path(found["recipe"]["vocab"]).is_file():  # a repaired one lies in the cache, which may have been emptied
        found = search()
    return Recipe.model_validate(found["recipe"]), found
