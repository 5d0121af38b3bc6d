"""A sweep: every task of a grid once, on the engine of choice, and its rows in one Parquet file.

The file holds nothing that depends on where or when it was made, so every engine writes the same bytes.
"""

import json
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq

from f5lab import caches
from f5lab.errors import RunError
from f5lab.paths import atomic_path, existing_file
from f5lab.scale import engines
from f5lab.scale.engines import Done, Perform, Task
from f5lab.scale.trends import Choice, choose, panels
from f5lab.statistics import SHARE, Estimate, cluster_mean, geometric_mean

if TYPE_CHECKING:
    from matplotlib.figure import Figure

Engine = Literal["local", "ray"]
CACHE = "sweep"
SETTINGS = ("start", "weights", "front_end", "mel_spec_type", "precision", "arch", "nfe_step", "cfg_strength",
            "sway_sampling_coef", "speed", "fix_duration")  # fmt: skip
MEASURED = ("cer", "loss", "duration_ratio", "speaker_similarity", "cost_frames")
SCHEMA = pa.schema([
    ("case", pa.string()), ("checkpoint", pa.string()), ("checkpoint_sha256", pa.string()), ("recipe", pa.string()),
    ("point", pa.string()), ("start", pa.string()), ("path", pa.string()), ("weights", pa.string()), ("front_end", pa.string()),
    ("mel_spec_type", pa.string()), ("precision", pa.string()), ("arch", pa.string()), ("nfe_step", pa.int64()),
    ("cfg_strength", pa.float64()), ("sway_sampling_coef", pa.float64()), ("speed", pa.float64()),
    ("fix_duration", pa.float64()), ("prompt", pa.string()), ("text", pa.string()), ("reference", pa.string()), ("seed", pa.int64()), ("cer", pa.float64()),
    ("heard", pa.string()), ("loss", pa.float64()), ("duration_ratio", pa.float64()), ("speaker_similarity", pa.float64()),
    ("forwards", pa.int64()), ("cost_frames", pa.int64()), ("notes", pa.string()), ("problem", pa.string()), ("key", pa.string()),
])  # fmt: skip
"""Columns of the file, the same for every sweep."""


@dataclass(frozen=True)
class Outcome:
    """What a sweep did.

    Attributes
    ----------
    rows : tuple of dict
        As in the file, in the order of the grid.
    computed, cached : int
        Tasks that were performed, and tasks whose rows were there already.
    seconds : float
    """

    rows: tuple[dict[str, Any], ...]
    computed: int
    cached: int
    seconds: float

    @property
    def failed(self) -> list[str]:
        """Rows that could not be measured, with the reason."""
        return [
            f"{r['checkpoint']} {r['recipe']} {r['prompt']} seed {r['seed']} ({r['problem']})"
            for r in self.rows
            if r["problem"]
        ]


def run(
    tasks: Sequence[dict[str, Any]], perform: Perform, *, engine: Engine = "local", jobs: int = 1, address: str | None = None,
    cpus: int = 1, gpus: float = 0.0, retries: int = engines.RETRIES, watch: Callable[[int, int], None] = lambda done, of: None,
) -> Outcome:  # fmt: skip
    """Perform tasks that were not performed before, keep each row as it comes, and return all rows in order.

    Parameters
    ----------
    tasks : sequence of dict
        `sweep_tasks.expand`; each has a ``key``. Tasks of one key are performed once.
    perform : callable
        Makes the measures of a task; has to be importable by other processes.
    watch : callable
        Called with how many different tasks are done, and of how many.

    Raises
    ------
    RunError
        The engine cannot be started, or a worker refuses its task.
    """
    start = time.perf_counter()
    unique = {told["key"]: told for told in tasks}
    known = {key: row for key in unique if (row := _kept(key)) is not None}
    cached = len(known)
    watch(cached, len(unique))
    missing: list[Task] = [(key, told) for key, told in unique.items() if key not in known]
    for done in _engine(missing, perform, engine, jobs, address, cpus, gpus, retries) if missing else ():
        known[done.key] = done.row if done.row is not None else {"problem": done.lost}
        if not known[done.key].get("problem"):  # what failed is tried again by the next sweep
            caches.write(CACHE, done.key, json.dumps(done.row, allow_nan=False).encode())
        watch(len(known), len(unique))
    names = _names(tasks)
    rows = tuple(_row(told, known[told["key"]], names) for told in tasks)
    return Outcome(rows, len(missing), cached, time.perf_counter() - start)


def _kept(key: str) -> dict[str, Any] | None:
    stored = caches.read(CACHE, key)
    return json.loads(stored) if stored is not None else None


def _engine(
    tasks: Sequence[Task],
    perform: Perform,
    engine: Engine,
    jobs: int,
    address: str | None,
    cpus: int,
    gpus: float,
    retries: int,
) -> Iterator[Done]:
    if engine == "ray":
        return engines.run_ray(tasks, perform, address=address, cpus=cpus, gpus=gpus, retries=retries)
    if jobs == 1:
        return engines.run_here(tasks, perform)
    return engines.run_processes(tasks, perform, jobs=min(jobs, len(tasks)), retries=retries)


def _names(tasks: Iterable[dict[str, Any]]) -> dict[str, str]:
    """Return how each checkpoint is named, by its digest: folder and file, marked where two share them."""
    named = {
        told["checkpoint_sha256"]: " = ".join(["/".join(Path(told["recipe"]["checkpoint"]).parts[-2:]), *told.get("also", ())])
        for told in reversed(list(tasks))
    }
    twice = {name for name, count in Counter(named.values()).items() if count > 1}
    return {digest: f"{name} {digest[:6]}" if name in twice else name for digest, name in named.items()}


def _row(told: dict[str, Any], measured: dict[str, Any], names: dict[str, str]) -> dict[str, Any]:
    recipe, sha256 = told["recipe"], told["checkpoint_sha256"]
    row = {name: recipe.get(name) for name in SCHEMA.names} | {
        "case": told["case"], "checkpoint": names[sha256], "recipe": told["recipe_name"],
        "point": json.dumps(told["point"]), "start": told["start"],
        "checkpoint_sha256": sha256, "arch": json.dumps(recipe["arch"], sort_keys=True),
        "prompt": told["prompt"]["id"], "text": told["prompt"]["gen_text"],
        "reference": Path(told["prompt"]["ref_audio"]).name, "seed": told["seed"], "key": told["key"], "notes": "", "problem": "",
    }  # fmt: skip
    return row | {name: value for name, value in measured.items() if name in SCHEMA.names}


def spare(out: Path) -> Path:
    """Return the file to write, unless what lies there is not the result of a sweep.

    Raises
    ------
    RunError
        It would be written over.
    """
    if out.is_file():
        try:
            ours = {"recipe", "prompt", "seed", "key"} <= set(pq.read_schema(out).names)
        except (pa.ArrowInvalid, OSError):
            ours = False
        if not ours:
            raise RunError(f"{out} exists and is not the result of a sweep", next_step="name another file: --out FILE.parquet")
    return out


def write_parquet(rows: Iterable[dict[str, Any]], out: Path) -> Path:
    """Write rows as one Parquet file, whole or not at all.

    Raises
    ------
    RunError
        `out` is a folder.
    """
    if out.is_dir():
        raise RunError(f"{out} is a folder", expected="a file, such as sweep.parquet")
    table = pa.Table.from_pylist(list(rows), schema=SCHEMA)
    with atomic_path(out) as temporary:
        pq.write_table(table, temporary, compression="zstd")
    return out


def read(path: str | Path) -> pd.DataFrame:
    """Return a sweep's rows.

    Raises
    ------
    RunError
        The file is missing or no sweep's.
    """
    path = existing_file(Path(path), RunError, "sweep result")
    try:
        table = pq.read_table(path)
    except pa.ArrowInvalid as error:
        raise RunError(f"{path} is no Parquet file ({str(error)[:120]})", next_step="run the sweep again") from error
    if missing := set(SCHEMA.names) - set(table.column_names):
        raise RunError(
            f"{path} is not the result of a sweep, or of an older one; it lacks", offenders=missing,
            next_step="run the sweep again: what it computed is kept",
        )  # fmt: skip
    return table.to_pandas()


def varying(frame: pd.DataFrame) -> list[str]:
    """Return the columns that tell the recipes of a sweep apart."""
    return [c for c in ("case", "checkpoint", "recipe", *SETTINGS) if frame[c].nunique(dropna=False) > 1]


def _average(rows: pd.DataFrame, measure: str) -> Estimate:
    """Return a measure's mean over clips with its interval over prompts: of losses the geometric one, as the probe has it."""
    values, prompts = rows[measure].astype(float).tolist(), list(zip(rows["text"], rows["reference"]))
    if measure == "loss":
        return geometric_mean(values, prompts)
    return cluster_mean(values, prompts, within=SHARE if measure == "cer" else None)


def summarise(frame: pd.DataFrame) -> list[dict[str, Any]]:
    """Return one row a recipe: what tells it apart, means over prompts and seeds, n of prompts, CER's and loss's 95 % interval."""
    listed = []
    for values, rows in _recipes(frame):
        shown: dict[str, Any] = dict(values) | {
            "prompts": rows["prompt"].nunique(),
            "failed": int((rows["problem"] != "").sum()),
        }
        for name in MEASURED:
            usable = rows[rows[name].notna()]
            found = _average(usable, name) if len(usable) else None
            shown[name] = found.mean if found else None
            if name in ("cer", "loss") and found:
                shown[f"{name} 95 %"] = (
                    f"{found.low:.3f} to {found.high:.3f}" if np.isfinite(found.low) else "one prompt"
                )
        listed.append(shown)
    empty = (
        [k for k in listed[0] if all(r.get(k) is None or (k == "failed" and not r[k]) for r in listed)]
        if listed
        else []
    )
    return [{k: v for k, v in r.items() if k not in empty} for r in listed]


def _recipes(frame: pd.DataFrame) -> Iterator[tuple[dict[str, Any], pd.DataFrame]]:
    columns = varying(frame) or ["recipe"]
    for values, rows in frame.groupby(columns, sort=False, dropna=False):
        yield {c: None if pd.isna(v) else v for c, v in zip(columns, values)}, rows


def best(frame: pd.DataFrame, measure: str = "cer") -> Choice | None:
    """Return the recipe with the lowest mean of a measure, and those that are not told apart from it.

    A recipe is what the sweep file names it, at one point of the grid: what it comes to may differ from case to case. Pairs
    share case, prompt and seed, so recipes are compared over all cases, on what was measured at all. Those that were not
    measured on all of it are left out and named; None when that leaves none. A checkpoint that differs between cases only
    does not tell recipes apart.
    """
    candidates, groups, left = {}, None, []
    keys = ["case", "prompt", "seed"]
    asked = frame.assign(known=frame[measure].notna() | (frame["problem"] != ""))
    frame = frame[asked.groupby(keys)["known"].transform("any")]  # a text without letters has no CER, whoever speaks it
    whole = frame.groupby(keys).ngroups
    for name, rows in _as_named(frame):
        if rows[measure].isna().any() or len(rows) != whole:
            left.append(name)
            continue
        candidates[name], groups = (
            rows[measure].astype(float).tolist(),
            list(zip(rows["text"], rows["reference"])),  # the same material in two cases is no second prompt
        )
    found = choose({"cer": "CER", "loss": "probe loss"}.get(measure, measure), candidates, groups, ratios=measure == "loss")
    return replace(found, left_out=tuple(left)) if found is not None else None


def _as_named(frame: pd.DataFrame) -> Iterator[tuple[str, pd.DataFrame]]:
    """Yield each recipe of the sweep file at each point of its grid, over all cases in one order, with a name."""
    apart = (frame.groupby("case")["checkpoint"].nunique() > 1).any()
    columns = (["checkpoint"] if apart else []) + ["recipe", "point"]
    for values, rows in frame.groupby(columns, sort=False):
        told = dict(zip(columns, values))
        point = json.loads(told.pop("point"))
        if frame["recipe"].nunique() == 1 and (point or apart):
            del told["recipe"]
        yield ", ".join(f"{k} {v}" for k, v in (told | point).items()), rows.sort_values(["case", "prompt", "seed"])


def conclude(frame: pd.DataFrame) -> list[str]:
    """Return the best recipe by CER and by probe loss in sentences, each where it was measured on every prompt and seed."""
    return [choice.says for measure in ("cer", "loss") if (choice := best(frame, measure)) is not None]


def plot(
    rows: "str | Path | pd.DataFrame", *, x: str | None = None, y: str | None = None, by: str | None = None, caption: str = ""
) -> "Figure":  # fmt: skip
    """Draw a measure over a setting: means with 95 % intervals over prompts, one line for each value of `by`.

    Parameters
    ----------
    rows : path of a sweep's Parquet file, or its rows
    x, y, by : str, optional
        Columns; left out, `x` is the first setting that varies, `y` CER or else what was measured, `by` the first other column that varies.

    Raises
    ------
    RunError
        A column does not exist, or `y` was not measured.
    """
    from f5lab.plots import PALETTE, use_style

    frame = read(rows) if isinstance(rows, (str, Path)) else rows
    x = x or next((c for c in (*SETTINGS, "checkpoint", "recipe", "case") if c in varying(frame)), "recipe")
    y = y or next((c for c in MEASURED if frame[c].notna().any()), "cer")
    if unknown := {c for c in (x, y, by) if c is not None} - set(frame.columns):
        raise RunError("no such column in a sweep", offenders=unknown, expected=f"one of {', '.join(SCHEMA.names)}")
    used = frame[frame[y].notna()]
    if used.empty:
        raise RunError(
            f"{y} was not measured in this sweep",
            next_step=f"choose another y, or add it to measures: ({', '.join(MEASURED)})",
        )
    use_style()
    by = by or next((c for c in varying(used) if c != x), None)
    figure, (ax,) = panels(1, caption=caption or f"{len(used)} clips; bars: 95 % intervals over prompts", columns=1)
    ticks = sorted(used[x].dropna().unique(), key=lambda v: (isinstance(v, str), v)) + (
        [None] if used[x].isna().any() else []
    )
    lines = [("", used)] if by is None else [(str(v), part) for v, part in used.groupby(by, sort=False, dropna=False)]
    for number, (name, part) in enumerate(lines):
        points = [(i, part[part[x].isna()] if v is None else part[part[x] == v]) for i, v in enumerate(ticks)]
        found = [(i, _average(p, y)) for i, p in points if len(p)]
        at = [i + 0.06 * (number - (len(lines) - 1) / 2) for i, _ in found]
        colour = PALETTE[number % len(PALETTE)]
        ax.plot(at, [e.mean for _, e in found], marker="os^Dv"[number % 5], ms=4, lw=1.2, color=colour, label=name[:60])
        for place, (_, e) in zip(at, found):
            if np.isfinite(e.low):
                ax.plot([place, place], [e.low, e.high], color=colour, lw=1)
    ax.set_xticks(
        range(len(ticks)), ["none" if v is None else f"{v:g}" if not isinstance(v, str) else v[:24] for v in ticks]
    )
    ax.set(
        xlabel=x.replace("_", " "),
        ylabel={"cer": "CER", "loss": "probe loss (share unexplained)"}.get(y, y.replace("_", " ")),
    )
    if by is not None:
        ax.legend(title=by.replace("_", " "), fontsize=7, title_fontsize=7)
    return figure
