"""Calibration: faults planted into a healthy case, diagnosed, and counted; healthy variants and decoys beside them."""

import hashlib
import json
import shutil
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np

from f5lab import catalogue, diagnosis, provenance
from f5lab.errors import FaultError, LabError
from f5lab.paths import write_text
from f5lab.planted import plants
from f5lab.specs import Case, case_files, load_case

HEALTHY = 12
VARIANTS = 3
NONE = "(none)"


@dataclass(frozen=True)
class Trial:
    """One planted case and what the diagnosis named.

    Attributes
    ----------
    kind : {"fault", "pair", "healthy", "decoy"}
    planted : tuple of str
    variant : int
    named : tuple of str
        Causes, ranked.
    seconds : float
    error : str
        Why it could not be diagnosed; empty when it could.
    """

    kind: str
    planted: tuple[str, ...]
    variant: int
    named: tuple[str, ...]
    seconds: float
    error: str = ""

    @property
    def right(self) -> bool:
        """Fault: named first (or an inseparable one is). Pair: both in the top 3. Healthy and decoy: nothing named."""
        if self.kind in ("healthy", "decoy"):
            return not self.named and not self.error
        if self.kind == "fault":
            return bool(self.named) and self.named[0] in _as_good(self.planted[0])
        return all(set(self.named[:3]) & _as_good(name) for name in self.planted)


def _as_good(name: str) -> set[str]:
    return {name, *catalogue.FAULTS[name].look_alikes}


def plan(
    ids: Sequence[str] | None = None, *, variants: int = VARIANTS, healthy: int = HEALTHY, decoys: bool = True,
    pairs: Sequence[tuple[str, str]] = (),
) -> list[tuple[str, tuple[str, ...], int]]:  # fmt: skip
    """Return (kind, what is planted, variant) of every trial."""
    trials = [("fault", (name,), v) for name in ids or catalogue.FAULTS for v in range(variants)]
    trials += [("pair", pair, 0) for pair in pairs]
    trials += [("healthy", (), v) for v in range(healthy)]
    return trials + [("decoy", (name,), 0) for name in (catalogue.DECOYS if decoys else ())]


def run_trial(kind: str, planted: Sequence[str], variant: int, case: Case, folder: Path, **options: object) -> Trial:
    """Plant, diagnose without listening, and return what was named."""
    start = time.perf_counter()
    shutil.rmtree(folder, ignore_errors=True)
    try:
        if kind == "healthy":
            path = plants.healthy(case, folder, variant=variant)
        elif kind == "decoy":
            path = plants.decoy(planted[0], case, folder, variant=variant)
        else:
            path = plants.plant(list(planted), case, folder, variant=variant)
        found = diagnosis.diagnose(load_case(path), listen=False, **options)  # type: ignore[arg-type]
    except FaultError as error:
        return Trial(kind, tuple(planted), variant, (), time.perf_counter() - start, f"not planted: {error}")
    except LabError as error:
        return Trial(kind, tuple(planted), variant, (), time.perf_counter() - start, str(error))
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    return Trial(kind, tuple(planted), variant, tuple(c.id for c in found.causes), time.perf_counter() - start)


def _state(case: Case, options: Mapping[str, object]) -> str:
    files = [provenance.fingerprint(path).sha256 for _, path in case_files(case)]
    told = [provenance.code_digest(), provenance.versions(), files, sorted((k, str(v)) for k, v in options.items())]
    return hashlib.sha256(json.dumps(told, sort_keys=True).encode()).hexdigest()


def _kept(log: Path, state: str) -> dict[tuple[str, tuple[str, ...], int], Trial]:
    """Return the trials of a log that were run in a state, and leave the log with these alone."""
    lines = log.read_text(encoding="utf-8").splitlines() if log.is_file() else []
    whole = [line for line in lines if line.endswith("}")]  # the last one may have been cut off
    rows = [row for line in whole if (row := json.loads(line)).pop("state", None) == state]
    trials = [Trial(**{**row, "planted": tuple(row["planted"]), "named": tuple(row["named"])}) for row in rows]
    write_text(log, "".join(json.dumps({**asdict(t), "state": state}) + "\n" for t in trials))
    return {(t.kind, t.planted, t.variant): t for t in trials}


def calibrate(
    trials: Iterable[tuple[str, tuple[str, ...], int]], case: Case, folder: Path, *, log: Path | None = None,
    watch: Callable[[Trial], None] = lambda trial: None, **options: object,
) -> list[Trial]:  # fmt: skip
    """Run trials in order; with `log`, results are kept as JSON lines and those that are there are not run again.

    Each line has the state that it was measured in: f5lab's code, versions, the case's files and the options. Lines of another
    state are dropped, for a count over two states is none.
    """
    state = _state(case, options) if log is not None else ""
    known = _kept(log, state) if log is not None else {}
    done = []
    for kind, planted, variant in trials:
        trial = known.get((kind, planted, variant)) or run_trial(
            kind, planted, variant, case, folder / "trial", **options
        )
        if log is not None and (kind, planted, variant) not in known:
            with log.open("a", encoding="utf-8") as f:
                f.write(json.dumps({**asdict(trial), "state": state}) + "\n")
        done.append(trial)
        watch(trial)
    return done


@dataclass(frozen=True)
class Tally:
    """Counts of a calibration; each share comes with how many trials it rests on."""

    faults: int
    right: int
    pairs: int
    pairs_right: int
    healthy: int
    false_alarms: int
    not_planted: int

    @property
    def top_1(self) -> float | None:
        """Share of single faults that are named first."""
        return self.right / self.faults if self.faults else None

    @property
    def rows(self) -> list[dict[str, object]]:
        """As table rows."""
        return [
            {"what": "single faults named first", "count": f"{self.right} of {self.faults}", "share": self.top_1},
            {"what": "pairs with both in the top 3", "count": f"{self.pairs_right} of {self.pairs}",
             "share": self.pairs_right / self.pairs if self.pairs else None},
            {"what": "false alarms on healthy variants and decoys", "count": f"{self.false_alarms} of {self.healthy}",
             "share": self.false_alarms / self.healthy if self.healthy else None},
            {"what": "variants that cannot be planted in this case", "count": str(self.not_planted), "share": None},
        ]  # fmt: skip


def tally(trials: Sequence[Trial]) -> Tally:
    """Count; a variant that could not be planted counts nowhere but in its own line."""
    planted = [t for t in trials if not t.error.startswith("not planted")]
    single, pairs = ([t for t in planted if t.kind == kind] for kind in ("fault", "pair"))
    quiet = [t for t in planted if t.kind in ("healthy", "decoy")]
    return Tally(
        len(single), sum(t.right for t in single), len(pairs), sum(t.right for t in pairs), len(quiet),
        sum(not t.right for t in quiet), len(trials) - len(planted),
    )  # fmt: skip


def confusion(trials: Sequence[Trial]) -> tuple[list[str], list[str], np.ndarray]:
    """Return planted (rows), named first (columns) and counts [shape=(rows, columns)]; healthy ones are one row."""
    used = [t for t in trials if t.kind != "pair" and not t.error.startswith("not planted")]
    planted = list(dict.fromkeys(t.planted[0] if t.kind == "fault" else f"({t.kind})" for t in used))
    columns = [p for p in planted if not p.startswith("(")]
    columns += sorted({t.named[0] for t in used if t.named} - set(columns)) + [NONE]
    counts = np.zeros((len(planted), len(columns)), int)
    for t in used:
        row = planted.index(t.planted[0] if t.kind == "fault" else f"({t.kind})")
        counts[row, columns.index(t.named[0] if t.named else NONE)] += 1
    return planted, columns, counts
