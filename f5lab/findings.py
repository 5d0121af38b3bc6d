"""Findings: claims that a notebook makes, with the numbers they rest on.

One finding is one line of ``findings.jsonl``. A notebook writes its own file whole, so that running it again
replaces what it said before; the workbook joins them.
"""

import math
from collections.abc import Iterable
from pathlib import Path
from typing import Literal

from pydantic import BaseModel, ConfigDict, Field, field_validator

from f5lab import inert, paths
from f5lab.errors import RunError

Outcome = Literal["supported", "refuted", "inconclusive"]


class Finding(BaseModel):
    """One recorded claim.

    Attributes
    ----------
    id : str
        ``NN-slug``: the notebook's number and a short name.
    question : str
        What was asked; the report groups findings by it.
    claim : str
        The sentence that was put to the test.
    verdict : {"supported", "refuted", "inconclusive"}
    value, unit : float, str
        The number behind the verdict; ``None`` when undefined, with the reason in `limitation`.
    interval : (float, float), optional
        95 % interval of `value`.
    n : int, optional
        How many independent observations `value` rests on.
    evidence : list of str
        Figures, tables and audio files (relative to the run) that show it.
    limitation : str
        What this finding can not say.
    better : {"", "lower", "higher"}
        Which way `value` has to go for the checkpoint to be better; empty where neither is. Two runs are judged by it.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    id: str = Field(pattern=r"^\d\d-[a-z0-9]+(-[a-z0-9]+)*$")
    question: str = Field(min_length=1)
    claim: str = Field(min_length=1)
    verdict: Outcome
    value: float | None = None
    unit: str = ""
    interval: tuple[float, float] | None = None
    n: int | None = Field(default=None, ge=0)
    evidence: list[str] = []
    limitation: str = ""
    better: Literal["", "lower", "higher"] = ""

    @field_validator("question", "claim", "unit", "limitation", mode="before")
    @classmethod
    def _readable(cls, text: object) -> object:
        """Keep what files put into a sentence from hiding, turning or flooding it, wherever it is shown later."""
        return inert.prose(text) if isinstance(text, str) else text

    @field_validator("evidence", mode="before")
    @classmethod
    def _readable_names(cls, names: object) -> object:
        return [inert.prose(n) if isinstance(n, str) else n for n in names] if isinstance(names, (list, tuple)) else names

    @field_validator("value")
    @classmethod
    def _finite(cls, value: float | None) -> float | None:
        if value is not None and not math.isfinite(value):
            raise ValueError(f"value is {value}: give None and say why in `limitation`")
        return value

    def value_text(self) -> str:
        """Return value, unit, interval and n as one readable string; an em dash when there is no number."""
        if self.value is None:
            return "—"
        text = f"{self.value:.4g}" + (f" {self.unit}" if self.unit else "")
        if self.interval is not None:
            text += f" [{self.interval[0]:.3g}, {self.interval[1]:.3g}]"
        alone = OF_ONE if self.n == 1 and self.interval is not None else ""
        return text + (f", n={self.n}{alone}" if self.n is not None else "")


OF_ONE = ", so the interval is over noise draws or seeds and says nothing about others"
"""What follows n = 1."""


class FindingsLog:
    """The findings of one notebook.

    Parameters
    ----------
    notebook : str
        Two digits, as in the notebook's file name; every finding's id starts with them.
    out : str or Path
        The run's folder; empty when the notebook runs live, and then nothing is written.

    Examples
    --------
    >>> log = FindingsLog("01", "")
    >>> _ = log.record("01-finite", question="Is the file sound?", claim="All weights are finite.",
    ...                verdict="supported", value=0, unit="non-finite values", n=364)
    >>> log.findings[0].value_text()
    '0 non-finite values, n=364'
    """

    def __init__(self, notebook: str, out: str | Path) -> None:
        self.notebook = notebook
        self.path = Path(out) / "findings" / f"{notebook}.jsonl" if str(out) else None
        self.findings: list[Finding] = []

    def record(self, id: str, **fields: object) -> Finding:
        """Add one finding and write the notebook's file anew.

        Raises
        ------
        RunError
            The id belongs to another notebook or was recorded before.
        """
        finding = Finding(id=id, **fields)
        if not id.startswith(f"{self.notebook}-"):
            raise RunError(f"finding {id!r} recorded in notebook {self.notebook}", expected=f"{self.notebook}-…")
        if any(id == other.id for other in self.findings):
            raise RunError(f"finding {id!r} recorded twice", next_step="give each claim its own id")
        self.findings.append(finding)
        if self.path is not None:
            paths.write_text(self.path, dump(self.findings))
        return finding


def dump(findings: Iterable[Finding]) -> str:
    """Return findings as JSON lines, one a line, keys in declared order."""
    return "".join(inert.json_text(f.model_dump(mode="json"), indent=None) + "\n" for f in findings)


def load(path: Path) -> list[Finding]:
    """Read a findings file.

    Raises
    ------
    RunError
        A line is not a finding; the message names file and line.
    """
    findings = []
    lines = path.read_text(encoding="utf-8").removesuffix("\n").split("\n")  # a claim may hold other ends of lines
    for number, line in enumerate(lines if lines != [""] else [], start=1):
        try:
            findings.append(Finding.model_validate_json(line))
        except ValueError as error:
            raise RunError(f"{path}:{number} is not a finding", next_step="run the notebook again") from error
    return findings


def load_run(run: Path) -> list[Finding]:
    """Read every notebook's findings of a run, in notebook order."""
    return [finding for path in sorted((run / "findings").glob("[0-9]*.jsonl")) for finding in load(path)]
