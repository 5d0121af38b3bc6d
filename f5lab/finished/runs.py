"""Runs as they lie on disk, of whatever age and origin: read whole, or refused with the reason."""

import json
import math
import re
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

import nbformat
from pydantic import BaseModel, ConfigDict, Field, FiniteFloat, ValidationError, field_validator

from f5lab import __version__, captions, findings, paths, verdicts
from f5lab.errors import LabError, RunError
from f5lab.execution import parameters
from f5lab.findings import Finding
from f5lab.verdicts import Verdict

FORMAT = 1
"""Of ``run.json``; a change that older readers would misread counts it up."""

RECORD = "run.json"
_STAMP = re.compile(r"^\d{8}T\d{6}Z(-\d+)?$")
_NAME = r"^\d\d_[a-z0-9_]+$"


class _Part(BaseModel):
    model_config = ConfigDict(extra="allow")


class _CaseEntry(_Part):
    name: str
    question: str
    language: str
    path: str


class _FileEntry(_Part):
    label: str
    path: str
    size: int = Field(ge=0)
    sha256: str
    files: int = 1


class _Hardware(_Part):
    cpu: str
    cores: int
    memory_bytes: int | None = None
    gpus: list[str] = []
    system: str


class _Parameter(_Part):
    value: Any
    default: Any
    meaning: str


class _Settings(_Part):
    device: str = "auto"
    quick: bool = False
    set: dict[str, str] = {}


class _Spent(_Part):
    seconds: FiniteFloat = Field(ge=0)
    count: int = Field(ge=0)


class _Memory(_Part):
    name: str
    peak_bytes: int = Field(ge=0)
    total_bytes: int = Field(ge=0)


class _Usage(_Part):
    seconds: FiniteFloat = Field(ge=0)
    parts: dict[Literal["synthesis", "Whisper", "probe"], _Spent] = {}
    gpu: _Memory | None = None


class _NotebookEntry(_Part):
    number: str = Field(pattern=r"^\d\d$")
    name: str = Field(pattern=_NAME)
    title: str
    status: Literal["ok", "failed", "pending", "running"]
    seconds: FiniteFloat | None = None
    findings: int = 0
    error: str = ""
    parameters: dict[str, _Parameter] = {}
    usage: _Usage | None = None
    outputs: dict[str, str] = {}


class _Record(_Part):
    """What every reader relies on in ``run.json``; keys beyond these are kept."""

    run: str = Field(min_length=1)
    case: _CaseEntry
    status: Literal["ok", "failed", "running"]
    started: str
    ended: str | None = None
    seconds: FiniteFloat | None = None
    versions: dict[str, str | None]
    hardware: _Hardware
    commit: str | None = None
    commit_modified: bool | None = None
    files: list[_FileEntry]
    seeds: dict[str, dict[str, Any]] = {}
    notebooks: list[_NotebookEntry]
    settings: _Settings = _Settings()
    prompts: list[dict[str, Any]] | None = None

    @field_validator("versions")
    @classmethod
    def _writer(cls, versions: dict[str, str | None]) -> dict[str, str | None]:
        return {"f5lab": None, **versions}

    @field_validator("started")
    @classmethod
    def _moment(cls, stamp: str) -> str:
        datetime.fromisoformat(stamp)
        return stamp


@dataclass(frozen=True)
class StoredRun:
    """A run that was read.

    Attributes
    ----------
    folder : Path
    record : dict
        What ``run.json`` holds.
    findings : list of Finding
    verdict : Verdict, optional
        None when notebook 06 did not come to one.
    """

    folder: Path
    record: dict[str, Any]
    findings: list[Finding]
    verdict: Verdict | None

    @property
    def name(self) -> str:
        """Case and run, as people say it."""
        return f"{self.record['case']['name']} {self.record['run']}"

    @property
    def checkpoint(self) -> str:
        """SHA-256 of the checkpoint; empty when the record has none."""
        return next((file["sha256"] for file in self.record["files"] if file["label"] == "checkpoint"), "")

    @property
    def headline(self) -> str:
        """The verdict in one sentence, or why there is none."""
        if self.verdict is not None:
            return self.verdict.headline
        entry = next((e for e in self.record["notebooks"] if e["number"] == "06"), None)
        if entry is None:
            return "No verdict: notebook 06 was not asked for."
        return f"No verdict: notebook 06 {'failed' if entry['status'] == 'failed' else 'did not run'}."

    @cached_property
    def audio(self) -> dict[str, Path]:
        """Audio files that are there, by name, in order of name."""
        folder = (self.folder / "audio").resolve()
        files = sorted(folder.glob("*.flac")) if folder.is_dir() else []
        return {file.name: file for file in files if file.is_file() and file.resolve().parent == folder}

    @property
    def missing_audio(self) -> list[str]:
        """Audio files that findings name as evidence and that are gone."""
        named = {name for finding in self.findings for name in finding.evidence if name.startswith("audio/")}
        return sorted(name for name in named if name.removeprefix("audio/") not in self.audio)

    @cached_property
    def captions(self) -> dict[str, str]:
        """What the notebooks say below each audio file, by the file's name; the audio itself tells which is which."""
        said: dict[tuple[str, bytes], list[str]] = {}
        for entry in self.record["notebooks"]:
            node = self.notebook(entry)
            for mark, caption in captions.players(node) if node else ():
                said.setdefault((entry["number"], mark), []).append(caption)
        found = {}
        for name, file in self.audio.items():
            same = said.get((name[:2], captions.mark(file.read_bytes())), [])
            if same:
                found[name] = same.pop(0) if len(same) > 1 else same[0]
        return found

    def notebook(self, entry: Mapping[str, Any]) -> nbformat.NotebookNode | None:
        """Return an executed notebook; None when it never ran or its file can not be read."""
        file = self.folder / f"{entry['name']}.ipynb"
        if not file.is_file() or file.resolve().parent != self.folder.resolve():
            return None
        try:
            return parameters.load_node(file)
        except RunError:
            return None


@dataclass(frozen=True)
class Damaged:
    """A folder that should be a run and can not be read as one."""

    folder: Path
    reason: str


def find_run(name: str | Path, root: Path | None = None) -> Path:
    """Return a run's folder: a path to it or to a file in it, or the id of a run below `root`.

    Parameters
    ----------
    root : Path, optional
        Default: ``reports/``.

    Raises
    ------
    RunError
        There is no such run, or several runs have that id.
    """
    path = Path(name).expanduser()
    if path.is_file() and path.name in (RECORD, "index.html", "findings.jsonl", "verdict.json"):
        path = path.parent
    if path.is_dir():
        return path.resolve()
    root = paths.reports_dir() if root is None else root
    found = [folder for folder in candidates(root) if folder.name == str(name)]
    if len(found) > 1:
        raise RunError(f"{len(found)} runs are named {name}", offenders=map(str, found), next_step="give the folder")
    if not found:
        raise RunError(
            f"no run {name}", expected=f"a run's folder, or its id under {root}", next_step="see `f5lab runs`"
        )
    return found[0]


def open_run(folder: str | Path) -> StoredRun:
    """Read a run.

    Raises
    ------
    RunError
        The folder is no run, is damaged, or was written in a format that this version does not read; then the message
        names format and version.
    """
    folder = Path(folder)
    record = read_record(paths.existing_file(folder / RECORD, RunError, "run record"))
    writer = record["versions"].get("f5lab") or "of unknown version"
    joined = folder / "findings.jsonl"
    try:
        known = findings.load(joined) if joined.is_file() else findings.load_run(folder)
        verdict = verdicts.load(folder / verdicts.FILE) if (folder / verdicts.FILE).is_file() else None
    except (LabError, UnicodeDecodeError, OSError) as error:
        raise RunError(f"run {record['run']}, written by f5lab {writer}, is damaged ({error})") from error
    said = _edited(folder, record, known) if (folder / "findings").is_dir() else []
    if said := [*said, *_contradictions(record, known, verdict)]:
        raise RunError(f"run {record['run']} in {folder}, written by f5lab {writer}, is damaged", offenders=said)
    return StoredRun(folder, record, known, verdict)


def _edited(folder: Path, record: Mapping[str, Any], known: list[Finding]) -> list[str]:
    """Return which findings are no longer those that the notebooks recorded."""
    said = []
    for entry in record["notebooks"]:
        for name, digest in entry.get("outputs", {}).items():
            if name.startswith("findings/") or name == verdicts.FILE:
                file = folder / "findings" / Path(name).name if name != verdicts.FILE else folder / name
                if not file.is_file():
                    said.append(f"{name} is gone")
                elif paths.sha256_file(file) != digest:
                    said.append(f"{name} was changed after notebook {entry['number']} wrote it")
    if not said and known != findings.load_run(folder):
        said.append("findings.jsonl holds other findings than the notebooks recorded")
    return said


def _contradictions(record: Mapping[str, Any], known: list[Finding], verdict: Verdict | None) -> list[str]:
    """Return in what a run's files contradict each other, or hold what can not have been measured."""
    ids = [finding.id for finding in known]
    said = [f"finding {id} stands {count} times" for id, count in Counter(ids).items() if count > 1]
    for entry in record["notebooks"]:
        there = sum(id.startswith(entry["number"]) for id in ids)
        if entry["status"] == "ok" and there != entry["findings"]:
            said.append(f"notebook {entry['number']} recorded {entry['findings']} findings, {there} are there")
    for finding in known:
        numbers = [finding.value or 0.0, *(finding.interval or ())]
        if not all(map(math.isfinite, numbers)) or (finding.interval and finding.interval[0] > finding.interval[1]):
            said.append(f"finding {finding.id} has no possible number or interval")
    if verdict is not None:
        if (verdict.case, verdict.run) != (record["case"]["name"], record["run"]):
            said.append(f"verdict.json is of case {verdict.case}, run {verdict.run}")
        effects = [cause.effect for cause in verdict.causes if cause.effect is not None]
        if not all(map(math.isfinite, (number for e in effects for number in (e.before, e.after, *(e.interval or ()))))):
            said.append("verdict.json has an effect that is no number")
    return said


def read_record(path: Path) -> dict[str, Any]:
    """Read ``run.json``.

    Raises
    ------
    RunError
        It is not JSON, of another format, or lacks or has wrong what every reader relies on; all of it is named.
    """
    try:
        data = json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, RecursionError, OSError) as error:
        raise RunError(f"{path} is not readable as JSON ({type(error).__name__})") from error
    if not isinstance(data, dict) or type(data.get("format")) is not int:
        raise RunError(f"{path} has no format", expected="the run.json of a run")
    if data["format"] != FORMAT:
        versions = data.get("versions")
        writer = versions.get("f5lab") if isinstance(versions, dict) else None
        raise RunError(
            f"{path} has format {data['format']}, written by f5lab {writer or 'of unknown version'}",
            expected=f"format {FORMAT}, which f5lab {__version__} reads",
            next_step="read it with the version that wrote it",
        )
    try:
        record = _Record.model_validate(data).model_dump()
    except ValidationError as error:
        places = {".".join(map(str, item["loc"])) + ": " + item["msg"] for item in error.errors()}
        raise RunError(f"{path} is damaged", offenders=places) from error
    for entry in record["notebooks"]:
        entry |= {
            key: entry["name"] + end for key, end in (("notebook", ".ipynb"), ("report", ".html")) if key in entry
        }
    return record


def candidates(root: Path) -> list[Path]:
    """Return the folders below `root` (one or two levels) that are runs or are named like one."""
    if not root.is_dir():
        return []
    folders = [
        path for pattern in ("*", "*/*") for path in root.glob(pattern) if path.is_dir() and not path.is_symlink()
    ]
    return sorted(path for path in folders if (path / RECORD).exists() or _STAMP.match(path.name))


def list_runs(root: Path) -> list[StoredRun | Damaged]:
    """Return every run below a folder, newest first, with those that can not be read last."""
    good, bad = [], []
    for folder in candidates(root):
        try:
            good.append(open_run(folder))
        except LabError as error:
            bad.append(Damaged(folder, str(error)))
    return [*sorted(good, key=lambda run: run.record["started"], reverse=True), *bad]
