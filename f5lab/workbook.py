"""Running the workbook on a case: notebooks in order, findings joined, a report beside them."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import nbformat

from f5lab import findings, inert, paths, provenance, usage, verdicts
from f5lab.errors import LabError, RunError, UsageError
from f5lab.execution import kernels, markup, reports, run_folders
from f5lab.execution.parameters import Notebook, chosen_values, discover
from f5lab.finished import privacy, run_index  # fmt: skip
from f5lab.finished.runs import FORMAT
from f5lab.specs import Arch, Case, case_files, load_case

OK, FAILED, PENDING, RUNNING = "ok", "failed", "pending", "running"
_DEVICES = ("auto", "cpu", "cuda", "mps")
_SEED_NAMES = ("seed", "seeds", "n_seeds")


@dataclass(frozen=True)
class Step:
    """Where a run is: told to whoever watches.

    Attributes
    ----------
    notebook : str
    position, notebooks : int
        This is number `position` of `notebooks`.
    cell, cells : int
        Cell number from 1; 0 before the first.
    heading : str
        The heading above the cell.
    status : str
        ``running``, then ``ok`` or ``failed``.
    seconds : float
        Of the notebook; 0 while it runs.
    findings : int
    error : str
        One line; empty when there is none.
    kept : bool
        It was executed before, in a run that is resumed.
    """

    notebook: str
    position: int
    notebooks: int
    cell: int = 0
    cells: int = 0
    heading: str = ""
    status: str = RUNNING
    seconds: float = 0.0
    findings: int = 0
    error: str = ""
    kept: bool = False


@dataclass
class Run:
    """A finished run.

    Attributes
    ----------
    folder : Path
    record : dict
        What ``run.json`` holds.
    case : Path, optional
        The case file, which the record names without this machine's folders.
    """

    folder: Path
    record: dict[str, Any] = field(default_factory=dict)
    case: Path | None = None

    @property
    def failed(self) -> list[str]:
        """Names of the notebooks that failed or never ran."""
        return [entry["name"] for entry in self.record["notebooks"] if entry["status"] != OK]

    @property
    def changed(self) -> list[str]:
        """What the run rests on and was changed while it ran."""
        return list(self.record.get("changed", []))

    @property
    def interrupted(self) -> bool:
        """Whether the user stopped the run."""
        return any(entry["error"] == kernels.INTERRUPTED for entry in self.record["notebooks"])

    @property
    def used(self) -> str:
        """Where time and a GPU's memory went, in one line; empty when no notebook said."""
        used = usage.joined([entry["usage"] for entry in self.record["notebooks"] if entry.get("usage")])
        return usage.sentence(used) if used else ""

    @property
    def index(self) -> Path:
        """The report's front page."""
        return self.folder / "index.html"


def run(
    case_path: Path | None = None,
    *,
    only: Sequence[str] = (),
    out: Path | None = None,
    settings: Mapping[str, str] | None = None,
    device: str = "auto",
    quick: bool = False,
    notebooks_dir: Path | None = None,
    cell_timeout_s: int = kernels.CELL_TIMEOUT_S,
    watch: Callable[[Step], None] = lambda step: None,
) -> Run:
    """Execute the workbook on a case and write its report.

    Everything that can be refused is refused before the run's folder is made. After that a failing notebook is kept
    and marked, and the others still run.

    Parameters
    ----------
    case_path : Path, optional
        Default: the bundled case.
    only : sequence of str
        Numbers or names of notebooks; empty: all.
    out : Path, optional
        Folder to make the run's folder in. Default: ``reports/<case>/``.
    settings : mapping of str to str, optional
        Notebook parameters by name, as typed; every notebook that declares one gets it.
    device : str
        ``auto``, ``cpu``, ``cuda``, ``cuda:N`` or ``mps``.
    quick : bool
        Use the notebooks' reduced budgets; `settings` still win.
    notebooks_dir : Path, optional
        Default: the workbook's own.
    cell_timeout_s : int
        Seconds that one cell may take.
    watch : callable
        Told each `Step`.

    Raises
    ------
    CaseError
        The case is not usable.
    UsageError
        An unknown notebook, parameter or device, or a value of another type.
    RunError
        A notebook can not be read, or the folder can not be made.
    """
    case = load_case(case_path or paths.default_case())
    chosen = discover(notebooks_dir or paths.notebooks_dir(), only)
    values = chosen_values(chosen, settings or {}, quick=quick)
    _check_device(device)
    folder = _new_folder(out or paths.reports_dir() / _folder_name(case))
    for notebook in chosen:
        given = {"case": str(case.path), "out": str(folder), "device": device}
        values[notebook.name] |= {name: value for name, value in given.items() if name in notebook.parameters}
    with run_folders.hold(folder) as held:
        record = opening_record(case, folder, chosen, values)
        record["settings"] = {"device": device, "quick": quick, "only": list(only), "set": dict(settings or {})}
        result = Run(folder, record, case.path)
        execute(result, chosen, values, held=held, cell_timeout_s=cell_timeout_s, watch=watch)
    return result


def execute(
    result: Run,
    chosen: Sequence[Notebook],
    values: Mapping[str, Mapping[str, Any]],
    *,
    held: Sequence[int] = (),
    cell_timeout_s: int = kernels.CELL_TIMEOUT_S,
    watch: Callable[[Step], None] = lambda step: None,
) -> None:
    """Execute the notebooks of a run whose entries are not done, in order, and close the run.

    Parameters
    ----------
    result : Run
        Its record has an entry for each of `chosen`, in the same order.
    held : sequence of int
        From `run_folders.hold`.
    """
    kept = [entry for entry in result.record["notebooks"] if entry["status"] == OK]
    for entry in result.record["notebooks"]:
        if entry["status"] != OK:
            run_folders.clear(result.folder, entry["number"], kept)
    _save(result)
    with kernels.own_kernel() as scratch:
        for position, (notebook, entry) in enumerate(zip(chosen, result.record["notebooks"]), start=1):
            step = Step(notebook.name, position, len(chosen))
            if entry["status"] == OK:
                watch(replace(step, status=OK, seconds=entry["seconds"], findings=entry["findings"], kept=True))
            elif not _run_one(result, notebook, values[notebook.name], step, scratch, cell_timeout_s, held, watch):
                break
    _close(result)
    if result.folder.is_relative_to(paths.reports_dir().resolve()):
        run_index.rebuild(paths.reports_dir())


def _run_one(
    result: Run,
    notebook: Notebook,
    values: Mapping[str, Any],
    step: Step,
    scratch: Path,
    cell_timeout_s: int,
    held: Sequence[int],
    watch: Callable[[Step], None],
) -> bool:
    """Execute one notebook and write what it left; return False when the user wants to stop."""
    entry = result.record["notebooks"][step.position - 1]
    verdict_before = _verdict_digest(result.folder)
    entry["status"] = RUNNING
    _save(result)
    watch(step)

    def on_cell(cell: int, cells: int, heading: str) -> None:
        watch(Step(step.notebook, step.position, step.notebooks, cell, cells, heading))

    done = kernels.execute(
        notebook, values, scratch=scratch, cell_timeout_s=cell_timeout_s, on_cell=on_cell, held=held
    )
    count, complaint = _count_findings(result.folder, notebook.number)
    error = done.error or complaint
    entry |= {
        "status": FAILED if error else OK, "seconds": round(done.seconds, 2), "findings": count, "error": error,
        "cells": len(done.node.cells), "notebook": f"{notebook.name}.ipynb", "report": f"{notebook.name}.html",
    }  # fmt: skip
    if used := _usage(done.node):
        entry["usage"] = used
    node = privacy.settle(done.node, result.folder, result.case)
    paths.write_text(result.folder / f"{notebook.name}.ipynb", markup.encodable(nbformat.writes(node)) + "\n")
    page = reports.notebook_page(node, entry, result.record)
    paths.write_text(result.folder / f"{notebook.name}.html", page)
    mine = run_folders.products(result.folder, notebook.number)
    if _verdict_digest(result.folder) != verdict_before:
        mine.append(result.folder / verdicts.FILE)
    entry["outputs"] = run_folders.digests(result.folder, mine)
    _save(result)
    watch(Step(step.notebook, step.position, step.notebooks, len(done.node.cells), len(done.node.cells),
               status=entry["status"], seconds=done.seconds, findings=count, error=error))  # fmt: skip
    return not done.interrupted


def _usage(node: nbformat.NotebookNode) -> dict[str, Any] | None:
    """Return where an executed notebook says that its time and a GPU's memory went."""
    for cell in reversed(node.cells):
        for output in cell.get("outputs", ()):
            if used := output.get("data", {}).get(usage.MIME):
                return dict(used)
    return None


def _verdict_digest(folder: Path) -> str:
    path = folder / verdicts.FILE
    return paths.sha256_file(path) if path.is_file() else ""


def _count_findings(folder: Path, number: str) -> tuple[int, str]:
    """Return how many findings a notebook left, and what is wrong with that."""
    path = folder / "findings" / f"{number}.jsonl"
    if not path.is_file():
        return 0, "recorded no findings"
    try:
        count = len(findings.load(path))
    except RunError as error:
        path.rename(path.with_suffix(".unreadable"))
        return 0, str(error)
    return count, "" if count else "recorded no findings"


def _check_device(device: str) -> None:
    kind, _, number = device.partition(":")
    if kind not in _DEVICES or (number and (kind != "cuda" or not number.isdigit())):
        raise UsageError(f"device {device!r}", expected="auto, cpu, cuda, cuda:N or mps")


def _folder_name(case: Case) -> str:
    return case.name if case.name.strip(".") else "case"


def _now() -> datetime:
    return datetime.now(timezone.utc)


def now_text() -> str:
    """Return the time in UTC as the record keeps it."""
    return _now().isoformat(timespec="seconds")


def _new_folder(parent: Path) -> Path:
    """Make a folder that no other run has, named by the time in UTC."""
    parent = parent.expanduser().resolve()
    try:
        parent.mkdir(parents=True, exist_ok=True)
        stamp = _now().strftime("%Y%m%dT%H%M%SZ")
        for count in range(1, 1000):
            folder = parent / (stamp if count == 1 else f"{stamp}-{count}")
            try:
                folder.mkdir()
            except FileExistsError:
                continue
            return folder
    except OSError as error:
        raise RunError(f"cannot make a folder in {parent} ({error.strerror})", next_step="choose --out") from error
    raise RunError(f"{parent} has a thousand runs of this second", next_step="choose --out")


def opening_record(
    case: Case, folder: Path, chosen: Sequence[Notebook], values: Mapping[str, Mapping[str, Any]]
) -> dict[str, Any]:
    """Return the record of a run that begins: what it rests on, and an entry for each notebook."""
    revision, modified = provenance.commit(paths.project_root())
    hide = privacy.hider(privacy.machine_folders(folder, case.path))

    def kept(name: str, value: Any) -> Any:
        return privacy.portable(value, folder) if name == "case" and value else privacy.in_strings(value, hide)

    entries = [
        {
            "number": notebook.number, "name": notebook.name, "title": notebook.title, "status": PENDING,
            "seconds": None, "findings": 0, "error": "", "source": paths.sha256_file(notebook.path),
            "parameters": {
                name: {"value": kept(name, values[notebook.name].get(name, p.default)), "default": p.default, "meaning": p.meaning}
                for name, p in notebook.parameters.items()
            },
        }
        for notebook in chosen
    ]  # fmt: skip
    return {
        "format": FORMAT,
        "run": folder.name,
        "case": {
            "name": case.name, "question": inert.prose(case.question), "language": case.language_text,
            "path": privacy.shown(case.path, folder),
        },
        "prompts": [{"id": p.id, "ref_text": p.ref_text, "gen_text": p.gen_text} for p in case.prompts],
        "stated": {
            "training": case.training.model_dump(mode="json", include={"front_end", "mel_spec_type"}),
            "inference": case.inference.model_dump(mode="json", exclude={"arch", "vocab"}),
        },
        "model": {side: _arch(getattr(case, side).arch) for side in ("training", "inference")},
        "status": RUNNING,
        "started": now_text(),
        "ended": None,
        "seconds": None,
        "versions": provenance.versions(),
        "hardware": provenance.hardware(),
        "commit": revision,
        "commit_modified": modified,
        "code": provenance.code_digest(),
        "files": _files(case),
        "seeds": _seeds(entries),
        "notebooks": entries,
    }


def _files(case: Case) -> list[dict[str, Any]]:
    files = [("case file", case.path), *case_files(case)] if case.path else case_files(case)
    marks = [(label, path, provenance.fingerprint(path)) for label, path in files]
    start = case.path.parent if case.path else None
    return [
        {"label": inert.prose(label, 200), "path": privacy.shown(path, start), "size": mark.size, "sha256": mark.sha256, "files": mark.files}
        for label, path, mark in marks
    ]


def _arch(arch: Arch | None) -> dict[str, Any] | None:
    """Return the architecture that a case states, with a config file by its name; None when it states none."""
    if arch is None or arch.is_empty:
        return None
    stated = arch.model_dump(exclude_unset=True)
    return stated | ({"config": arch.config.name} if arch.config else {})


def _seeds(entries: Sequence[Mapping[str, Any]]) -> dict[str, dict[str, Any]]:
    """Return each notebook's parameters that fix or count its seeds."""
    seeds = {}
    for entry in entries:
        found = {k: p["value"] for k, p in entry["parameters"].items() if k in _SEED_NAMES or k.endswith("_seed")}
        if found:
            seeds[entry["name"]] = found
    return seeds


def _save(result: Run) -> None:
    """Write findings, front page and, last, run.json as they are now: what it calls done is there."""
    known = findings.load_run(result.folder)
    paths.write_text(result.folder / "findings.jsonl", findings.dump(known))
    paths.write_text(result.index, reports.index_page(result.folder, result.record, known))
    paths.write_text(result.folder / run_folders.RECORD, inert.json_text(result.record) + "\n")


def _changed(result: Run) -> list[str]:
    """Return what of all that the run rests on is no longer what it was when the run began."""
    record = result.record
    code = ["f5lab's code"] if record["code"] != provenance.code_digest() else []
    if result.case is None:
        return code
    try:
        now = {file["label"]: file["sha256"] for file in _files(load_case(result.case))}
    except (LabError, OSError):
        return [*code, "the case file, or a file that it names"]
    before = {file["label"]: file["sha256"] for file in record["files"]}
    return code + [name for name in {**before, **now} if before.get(name) != now.get(name)]


def _close(result: Run) -> None:
    record = result.record
    ended = _now()
    if changed := _changed(result):
        record["changed"] = changed
    record["status"] = FAILED if result.failed or changed else OK
    record["ended"] = ended.isoformat(timespec="seconds")
    spent = (ended - datetime.fromisoformat(record["started"])).total_seconds()
    if record.get("resumed"):  # what lies between was no work
        spent = sum(entry["seconds"] or 0.0 for entry in record["notebooks"])
    record["seconds"] = round(spent, 1)
    for entry in record["notebooks"]:
        if entry["status"] in (PENDING, RUNNING):
            entry["error"] = "never ran: the run was interrupted"
    _save(result)
