"""Going on with a run that was cut off: keep what is done and whole, execute the rest, refuse to mix two states."""

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from f5lab import paths, workbook
from f5lab.errors import RunError, UsageError
from f5lab.execution import kernels, run_folders
from f5lab.execution.parameters import Notebook, chosen_values, discover
from f5lab.finished import privacy, runs
from f5lab.specs import load_case

WAIT_S = 10.0
"""Seconds that the last kernel of a killed run may take to end."""


def resume(
    run: Path,
    case_path: Path | None = None,
    *,
    notebooks_dir: Path | None = None,
    cell_timeout_s: int = kernels.CELL_TIMEOUT_S,
    watch: Callable[[workbook.Step], None] = lambda step: None,
) -> workbook.Run:
    """Finish a run that was killed, interrupted or failed in part; its findings are those of an unbroken run.

    A notebook is kept when it ended well with the same source and parameters and all that it left is there as it was
    written. Every other one is executed again from its first cell.

    Parameters
    ----------
    run : Path
        The run's folder, or a file in it.
    case_path : Path, optional
        The case file; needed where the record can not say where it lies without naming this machine's folders.
    notebooks_dir : Path, optional
        Default: the workbook's own.
    cell_timeout_s : int
        Seconds that one cell may take.
    watch : callable
        Told each `workbook.Step`.

    Raises
    ------
    RunError
        There is no such run, another process writes to it, or files of the case, versions, f5lab's code or the
        machine have changed since: its findings would rest on two states.
    CaseError
        The case is no longer usable.
    """
    folder = run.expanduser().resolve()
    folder = folder.parent if folder.is_file() else folder
    record = run_folders.load_record(folder)
    runs.read_record(folder / runs.RECORD)
    if "settings" not in record or "code" not in record:
        raise RunError(f"{folder} was written by an f5lab that kept no account of it", next_step="start a new run")
    if record.get("changed"):
        raise RunError(
            f"{folder} rests on two states: files were changed while it ran", offenders=record["changed"],
            next_step="start a new run",
        )  # fmt: skip
    case = load_case(case_path or _case_file(folder, record))
    chosen, values = _as_chosen(folder, record, case.path, notebooks_dir or paths.notebooks_dir())
    with run_folders.hold(folder, WAIT_S) as held:
        fresh = workbook.opening_record(case, folder, chosen, values)
        if changed := _changes(record, fresh):
            raise RunError(
                f"{folder} can not be resumed, for its findings would rest on two states; changed since", offenders=changed,
                next_step="start a new run",
            )  # fmt: skip
        _plan(folder, record, fresh)
        record["case"]["path"] = fresh["case"]["path"]
        result = workbook.Run(folder, record, case.path)
        workbook.execute(result, chosen, values, held=held, cell_timeout_s=cell_timeout_s, watch=watch)
    return result


def _as_chosen(
    folder: Path, record: Mapping[str, Any], case: Path, notebooks_dir: Path
) -> tuple[list[Notebook], dict[str, dict[str, Any]]]:
    """Return the run's notebooks as they are now, and the parameters of each by its name, as they were chosen then."""
    settings = record["settings"]
    try:
        chosen = discover(notebooks_dir, [entry["name"] for entry in record["notebooks"]])
        values = chosen_values(chosen, settings["set"], quick=settings["quick"])
    except UsageError as error:
        raise RunError(f"{folder} can not be resumed ({error})", next_step="start a new run") from error
    for notebook in chosen:
        given = {"case": str(case), "out": str(folder), "device": settings["device"]}
        values[notebook.name] |= {name: value for name, value in given.items() if name in notebook.parameters}
    return chosen, values


def _case_file(folder: Path, record: Mapping[str, Any]) -> Path:
    """Return where a run's case file lies, as far as its record says."""
    said = record["case"]["path"]
    path = privacy.locate(said, folder)
    if not path.is_file():
        raise RunError(
            f"{folder} names its case {said}, and no such file is there",
            next_step="give the case file too: f5lab run CASE --resume RUN",
        )
    return path


def _plan(folder: Path, record: dict[str, Any], fresh: Mapping[str, Any]) -> None:
    """Put a fresh entry in place of each that must be executed again, and note why."""
    again: dict[str, str] = {}
    for position, (entry, new) in enumerate(zip(record["notebooks"], fresh["notebooks"], strict=True)):
        if reason := _why_again(folder, entry, new):
            again[entry["name"]] = reason
            record["notebooks"][position] = new
    kept = [entry["name"] for entry in record["notebooks"] if entry["name"] not in again]
    if again:
        note = {"at": workbook.now_text(), "kept": kept, "again": again}
        record |= {"status": workbook.RUNNING, "ended": None, "resumed": [*record.get("resumed", []), note]}


def _why_again(folder: Path, entry: Mapping[str, Any], new: Mapping[str, Any]) -> str:
    """Return why a notebook must be executed again; empty when what it left stands."""
    if entry["status"] != workbook.OK:
        return {workbook.FAILED: "it failed", workbook.RUNNING: "it was cut off"}.get(entry["status"], "it never ran")
    if entry.get("source") != new["source"]:
        return "the notebook was changed"
    if _values(entry) != _values(new):
        return "its parameters differ"
    return "" if run_folders.is_intact(folder, entry.get("outputs", {})) else "what it left is not whole"


def _values(entry: Mapping[str, Any]) -> Any:
    values = {name: p["value"] for name, p in entry["parameters"].items() if name not in ("case", "out")}
    return json.loads(json.dumps(values))


def _changes(record: Mapping[str, Any], fresh: Mapping[str, Any]) -> list[str]:
    """Return what differs between a run's record and now, of all that its findings rest on."""
    before = {f"{file['label']} ({Path(file['path']).name})": file["sha256"] for file in record["files"]}
    now = {f"{file['label']} ({Path(file['path']).name})": file["sha256"] for file in fresh["files"]}
    changed = [name for name in {**before, **now} if before.get(name) != now.get(name)]
    versions = {**record["versions"], **fresh["versions"]}
    for name in versions:
        old, new = record["versions"].get(name), fresh["versions"].get(name)
        changed += [f"{name} {old or 'absent'} → {new or 'absent'}"] if old != new else []
    changed += ["f5lab's code"] if record["code"] != fresh["code"] else []
    machine = ("cpu", "machine") if record["settings"]["device"] == "cpu" else ("cpu", "machine", "gpus")
    return changed + [
        f"hardware: {key}" for key in machine if record["hardware"].get(key) != fresh["hardware"].get(key)
    ]
