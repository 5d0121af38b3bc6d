"""The list of all runs: ``reports/index.html``."""

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from f5lab import paths
from f5lab.execution import reports
from f5lab.finished import runs
from f5lab.finished.runs import Damaged, StoredRun

PAGE = "index.html"


def rebuild(root: Path) -> Path:
    """Read every run below `root` and write its list, whole or not at all; return the page."""
    found = runs.list_runs(root)
    paths.write_text(root / PAGE, page(found, root))
    return root / PAGE


def page(found: Sequence[StoredRun | Damaged], root: Path) -> str:
    """Return the list of runs as HTML, links relative to `root`."""
    return reports.page(
        "runs.html.j2",
        rows=[row(run, root) for run in found if isinstance(run, StoredRun)],
        damaged=[
            {"folder": _below(run.folder, root), "reason": run.reason.replace(f"{run.folder}{os.sep}", "")}
            for run in found if isinstance(run, Damaged)
        ],
    )  # fmt: skip


def row(run: StoredRun, root: Path) -> dict[str, Any]:
    """Return what the list says of a run: run, case, status, verdict, checkpoint, date, version, where it is."""
    record = run.record
    failed = [entry["name"] for entry in record["notebooks"] if entry["status"] != "ok"]
    return {
        "run": record["run"],
        "case": record["case"]["name"],
        "started": record["started"],
        "status": record["status"],
        "failed": failed,
        "notebooks": len(record["notebooks"]),
        "quick": record["settings"]["quick"],
        "findings": len(run.findings),
        "headline": run.headline,
        "healthy": run.verdict.healthy if run.verdict else None,
        "checkpoint": run.checkpoint,
        "f5lab": record["versions"].get("f5lab"),
        "page": f"{_below(run.folder, root)}/{PAGE}" if (run.folder / PAGE).is_file() else None,
    }


def _below(folder: Path, root: Path) -> str:
    return Path(os.path.relpath(folder.resolve(), root.resolve())).as_posix()
