"""A series of checkpoints of one training: which update is best, and how norms, EMA, loss and speech went there.

Streaming: one checkpoint is open at a time, besides the base. Resumable: each finished part is kept by content.
"""

import gc
import json
import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from f5lab import checkpoints, discovery, models, oracles, probes, provenance, training_sets
from f5lab.checkpoints import Checkpoint
from f5lab.errors import CaseError, LabError
from f5lab.faults.setting_faults import HIDDEN
from f5lab.paths import write_text
from f5lab.scale import series_rows
from f5lab.scale.ledgers import Ledger
from f5lab.scale.series_rows import Bench, Booth
from f5lab.scale.trends import Choice, choose
from f5lab.specs import Case, Recipe, load_case, name_of
from f5lab.statistics import SHARE, cluster_mean, geometric_mean

LEDGER = "rows.jsonl"
LOSS = "probe loss"
CER = "CER"
SUFFIXES = (".pt", ".safetensors")


@dataclass(frozen=True)
class Plan:
    """How a series is measured.

    Attributes
    ----------
    recordings, draws : int
        Most recordings for the probe, and the fewest noise draws for each: with few recordings the probe takes more.
    probe, listen : bool
        Whether to compute probe losses, and to synthesise and transcribe.
    prompts, seeds : int
        Prompts and seeds spoken for each set of weights.
    asr : str
        Whisper size or weights file.
    """

    recordings: int = 8
    draws: int = 2
    probe: bool = True
    listen: bool = False
    prompts: int = 4
    seeds: int = 1
    asr: str = "base"
    device: str = "auto"
    language: str | None = None


@dataclass(frozen=True)
class Series:
    """What a series showed.

    Attributes
    ----------
    rows : tuple of dict
        `series_rows.measure` of each checkpoint, in order of updates.
    choices : dict of str to Choice
        Measure to the best set of weights by it.
    context : dict
        Settings and how they are known, recordings, controls of the recogniser.
    notes : tuple of str
        What limits the reading, in sentences.
    """

    folder: Path
    rows: tuple[dict[str, Any], ...]
    choices: dict[str, Choice]
    context: dict[str, Any]
    notes: tuple[str, ...]

    @property
    def failed(self) -> list[str]:
        """Checkpoints of which something that was asked for could not be measured."""
        return [f"{row['file']} ({row['problem']})" for row in self.rows if row["problem"]]


def find_checkpoints(folder: Path) -> list[Path]:
    """Return every ``model_*`` checkpoint of a training folder, numbers in order, ``model_last`` at the end.

    Raises
    ------
    CaseError
        Not a folder, no checkpoint in or below it, or several folders below it hold some.
    """
    if not folder.is_dir():
        raise CaseError(f"{folder} is not a folder", expected="the training folder")
    homes = (
        [folder]
        if _models(folder)
        else sorted({p.parent for p in folder.rglob("model_*") if p.suffix in SUFFIXES and p.is_file()})
    )
    if not homes:
        raise CaseError(
            f"{folder} holds no model_*.pt", next_step="pass the folder above ckpts/ or the one with the checkpoints"
        )
    if len(homes) > 1:
        raise CaseError(
            f"{folder} holds {len(homes)} folders with checkpoints", offenders=[str(h.relative_to(folder)) for h in homes],
            expected="one training", next_step="pass one of them",
        )  # fmt: skip
    return sorted(_models(homes[0]), key=_order)


def _models(folder: Path) -> list[Path]:
    return [p for p in folder.glob("model_*") if p.suffix in SUFFIXES and p.is_file()]


def number_of(path: Path) -> int | None:
    """Return the update that a checkpoint's name states."""
    found = re.fullmatch(r"model_(\d+)", path.stem)
    return int(found[1]) if found else None


def _order(path: Path) -> tuple[int, str]:
    number = number_of(path)
    return (number if number is not None else 1 << 62, path.name)


def run(
    folder: Path, out: Path, plan: Plan, *, case: Path | None = None,
    watch: Callable[[dict[str, Any]], None] = lambda row: None,
) -> Series:  # fmt: skip
    """Measure every checkpoint of a training folder; finished parts under `out` are not computed again.

    Raises
    ------
    CaseError
        There is no series, or the case file is none.
    AsrError
        Listening was asked for and there is no recogniser.
    """
    paths = find_checkpoints(folder)
    ledger, notes = Ledger(out / LEDGER), []
    the_case, base = _case_and_base(folder, paths, case, out, plan, notes)
    bench = (
        _bench(the_case, paths, ledger, plan, notes) if the_case is not None and (plan.probe or plan.listen) else None
    )
    booth, controls = _booth(bench, plan, notes)
    rows = []
    for path in paths:
        before = ledger.added
        row = series_rows.measure(path, base, bench if plan.probe else None, booth, ledger)
        row["number"] = number_of(path)
        if row["number"] is not None and row.get("update") not in (None, row["number"]):
            row["notes"] = [*row["notes"], f"named {row['number']}, holds update {row['update']}"]
        rows.append(row)
        watch(row)
        if ledger.added > before:  # an opened checkpoint lies in a cycle
            gc.collect()
    rows.sort(key=lambda row: (_update(row) is None, _update(row) or 0))
    context = {
        "base": str(base.path) if base is not None else None,
        "device": models.pick_device(plan.device),
        **controls,
    }
    if bench is not None:
        context |= {"settings": bench.recipe.model_dump(mode="json", exclude={"name", "checkpoint", "weights"}),
                    "recordings": [item.id for item in bench.items]}  # fmt: skip
    return Series(paths[0].parent, tuple(rows), _choices(rows), context, tuple(notes))


def _update(row: dict[str, Any]) -> int | None:
    update = row.get("update")
    return update if update is not None else row["number"]


def _case_and_base(
    folder: Path, paths: list[Path], given: Path | None, out: Path, plan: Plan, notes: list[str]
) -> tuple[Case | None, Checkpoint | None]:
    """Return the case to measure with (given, or written from the folder) and the base, opened."""
    last = next((p for p in reversed(paths) if _opens(p)), None)
    if given is not None:
        case: Case | None = load_case(given)
    elif last is None:
        return None, None
    else:
        case = _written_case(folder, last, out, plan, notes)
    if case is not None and last is not None:
        case = case.model_copy(update={"checkpoint": last})
    base_path = case.base if case is not None and case.base else next(
        (p for suffix in SUFFIXES for p in sorted(paths[0].parent.glob(f"pretrained_*{suffix}"))), None
    )  # fmt: skip
    if base_path is None:
        notes.append(
            "No base (pretrained_*) was found: no distance to it, and the base's share in the EMA is not measured."
        )
        return case, None
    try:
        return case, checkpoints.open_checkpoint(base_path)
    except LabError as error:
        notes.append(f"The base cannot be read, so nothing is measured from it: {error}")
        return case.model_copy(update={"base": None}) if case is not None else None, None


def _opens(path: Path) -> bool:
    try:
        checkpoints.open_checkpoint(path)
    except (LabError, OSError):
        return False
    return True


def _written_case(folder: Path, last: Path, out: Path, plan: Plan, notes: list[str]) -> Case | None:
    """Write a case from the training folder under `out`, as `f5lab new` does, and return it."""
    try:
        found = discovery.explore(folder.expanduser().resolve(), checkpoint=last.resolve(), prompts=plan.recordings)
    except LabError as error:
        notes.append(f"The training folder could not be read for prompts: {error}")
        return None
    if not found.prompts or found.data is None:
        gone = "; ".join(found.missing) or "no recordings of 0.5 to 11 s"
        notes.append(f"No prompts in the training folder ({gone}), so no probe loss and no CER: give --case.")
        return None
    path = out / "case.yaml"
    write_text(path, discovery.case_text(found, name_of(last.resolve().parent), plan.language))
    if found.assumed:
        notes.append(f"Assumed from the training folder: {'; '.join(found.assumed)}.")
    return load_case(path)


def _bench(case: Case, paths: list[Path], ledger: Ledger, plan: Plan, notes: list[str]) -> Bench | None:
    if not _opens(case.checkpoint):
        return None
    device = models.pick_device(plan.device)
    try:
        items = probes.real_items(case, plan.recordings)
        recipe, known = series_rows.settings_of(
            case, ledger, device=device, recordings=plan.recordings, draws=plan.draws
        )
    except LabError as error:
        notes.append(f"No probe loss and no CER: {error}")
        return None
    if known["problem"]:
        notes.append(f"The settings as trained were not checked by the probe: {known['problem']}")
    elif not known["tells"]:
        notes.append(
            "The text hardly matters to these weights, so the settings as trained are as stated or implied, not inferred."
        )
    notes.append(_settings_sentence(recipe, known["known"]))
    notes += _heard_in_training(case, len(items), plan.recordings)
    if len(items) < 3:
        notes.append(
            f"Only {len(items)} recordings: intervals are over noise draws and say nothing about other recordings."
        )
    return Bench(case, recipe, tuple(items), plan.draws, device)


def _settings_sentence(recipe: Recipe, known: dict[str, str]) -> str:
    """Say what no shape shows of the settings that every checkpoint is measured with: a user needs the same."""
    options = models.full_options(recipe.backbone, recipe.arch)
    hidden = {name: options[name] for name in sorted(item.removeprefix("arch.") for item in HIDDEN) if name in options}
    told = ", ".join(f"{name} {json.dumps(value)}" for name, value in hidden.items())
    return (f"Measured, and spoken where --listen asks for it, with the settings as trained: {told} ({known.get('arch', 'stated')}), front end "
            f"{recipe.front_end} ({known.get('front_end', 'stated')}). A checkpoint speaks as measured here only when it is loaded with the same.")  # fmt: skip


def _heard_in_training(case: Case, items: int, limit: int) -> list[str]:
    """Say how many of the probe's recordings training has seen, as far as the dataset tells."""
    prompts = [p for p in case.prompts[:limit] if p.ref_text.strip()]
    if case.training.dataset is None:
        return [
            "Whether training has seen the probe's recordings is not known: on those that it has, later updates look better."
        ]
    rows = training_sets.at_hand(training_sets.read_rows(case.training.dataset), case.training.dataset.parent)
    seen = {Path(row["audio_path"]).resolve() for row in rows}
    known = sum((p.gen_audio or p.ref_audio).resolve() in seen for p in prompts)
    if not known:
        return []
    return [f"{known} of {len(prompts)} recordings of the probe are in the training set, where later updates look better than they are: "
            "give --case with recordings held out."]  # fmt: skip


def _booth(bench: Bench | None, plan: Plan, notes: list[str]) -> tuple[Booth | None, dict[str, Any]]:
    """Return what speaks and hears, with the recogniser's ceiling and chance measured first."""
    if not plan.listen:
        return None, {}
    if bench is None:
        raise CaseError(
            "--listen without prompts", next_step="give --case with prompts that have ref_text and gen_text"
        )
    transcriber = oracles.transcriber(bench.case, plan.asr, bench.device)
    try:
        found = oracles.calibrate(oracles.real_recordings(bench.case), transcriber)
    except CaseError as error:
        notes.append(f"The recogniser's ceiling and chance were not measured: {error}")
        return Booth(bench, transcriber, plan.prompts, tuple(range(plan.seeds))), {}
    controls = {"cer_of_real_recordings": float(found.ceiling.mean()), "cer_of_unrelated_texts": float(found.unrelated.mean()),
                "recogniser_separates": found.separates}  # fmt: skip
    if not found.separates:
        notes.append("The recogniser does not tell these real recordings from chance: CER here says nothing.")
    return Booth(bench, transcriber, plan.prompts, tuple(range(plan.seeds))), controls


def _choices(rows: list[dict[str, Any]]) -> dict[str, Choice]:
    losses = {label: part["values"] for label, part in parts(rows, "probe")}
    spoken = dict(parts(rows, "speech"))
    groups = [clip["prompt"] for clip in next(iter(spoken.values()))["clips"]] if spoken else None
    cers = {label: [clip["cer"] for clip in part["clips"]] for label, part in spoken.items()}
    found = {LOSS: choose(LOSS, losses, ratios=True), CER: choose(CER, cers, groups)}
    return {name: choice for name, choice in found.items() if choice is not None}


def parts(rows: Any, part: str) -> list[tuple[str, dict[str, Any]]]:
    """Return (label, result) of one part over all rows and sets of weights."""
    return [(label(row, slot), value) for row in rows for slot, value in row.get(part, {}).items()]


def label(row: dict[str, Any], slot: str) -> str:
    """Return how a set of weights is named: file and slot."""
    return f"{row['file']} {'EMA' if slot == 'ema' else slot}"


def mean_interval(row: dict[str, Any], part: str, slot: str) -> tuple[float, float, float] | None:
    """Return mean and 95 % interval of a row's loss (over recordings) or CER (over prompts); None where there is none."""
    value = row.get(part, {}).get(slot)
    if value is None:
        return None
    if part == "probe":
        array = np.asarray(value["values"], float)
        found = geometric_mean(np.exp(np.log(array).mean(1)) if len(array) >= 3 else array.ravel())
    else:
        found = cluster_mean([c["cer"] for c in value["clips"]], [c["prompt"] for c in value["clips"]], within=SHARE)
    return found.mean, found.low, found.high


def table_rows(series: Series) -> list[dict[str, Any]]:
    """Return the series as table rows: one a checkpoint; distances and shares in percent."""
    listed = []
    measured = any((row.get("ema_share") or {}).get("measured") is not None for row in series.rows)
    for row in series.rows:
        share = row.get("ema_share") or {}
        shown = {"update": _update(row), "file": row["file"]}
        for slot, name in (("raw", "raw"), ("ema", "EMA")):
            shown[f"norm {name}"] = row.get("norm", {}).get(slot)
            shown[f"{name} from base %"] = _percent(row.get("from_base", {}).get(slot))
        shown["base in EMA %" if measured else "base in EMA, computed %"] = _percent(share.get("measured" if measured else "expected"))
        for part, name in (("probe", "loss"), ("speech", "CER")):
            for slot, of in (("raw", "raw"), ("ema", "EMA")):
                if any(slot in r.get(part, {}) for r in series.rows):
                    found = mean_interval(row, part, slot)
                    shown[f"{name} {of}"] = found[0] if found else None
        shown["says"] = (
            "; ".join(["not measured as asked, see the reason above"] * bool(row["problem"]) + row["notes"]) or None
        )
        listed.append(shown)
    empty = [k for k in listed[0] if k not in ("update", "file") and all(r[k] is None for r in listed)]
    return [{k: v for k, v in r.items() if k not in empty} for r in listed]


def remarks(series: Series) -> list[str]:
    """Return what has to be said of single checkpoints, each sentence once; why one failed is said elsewhere."""
    said: dict[str, list[str]] = {}
    for row in series.rows:
        for note in row["notes"]:
            said.setdefault(note, []).append(row["file"])
    return [f"{', '.join(files)}: {note}" for note, files in said.items()]


def _percent(share: float | None) -> float | None:
    return None if share is None else 100 * share


def report(series: Series) -> dict[str, Any]:
    """Return the series as JSON-able facts: conclusion, choices with their intervals, context, notes and all rows."""
    return {
        "folder": str(series.folder),
        "checkpoints": len(series.rows),
        "best": [choice.says for choice in series.choices.values()],
        "choices": {name: describe(choice) for name, choice in series.choices.items()},
        "context": series.context,
        "notes": list(series.notes),
        "failed": series.failed,
        "rows": list(series.rows),
        "versions": provenance.versions(),
        "hardware": provenance.hardware(),
    }


def describe(choice: Choice) -> dict[str, Any]:
    """Return a choice as JSON-able facts; an interval that does not exist is None."""

    def span(estimate: Any) -> list[float] | None:
        return list(estimate.interval) if np.isfinite(estimate.interval).all() else None

    return {
        "best": choice.best, "mean": choice.value.mean, "interval": span(choice.value), "n": choice.value.n,
        "decided": choice.decided, "twins": list(choice.twins), "intervals_over": "noise draws" if choice.of_draws else "recordings",
        "rivals": [{"name": r.name, "worse": r.worse.mean, "interval": span(r.worse), "told_apart": not r.tied} for r in choice.rivals],
    }  # fmt: skip
