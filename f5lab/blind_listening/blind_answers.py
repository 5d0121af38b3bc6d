"""Answers of blind listening: a JSON-lines file that is only ever appended to, sessions that go on where they stopped."""

import contextlib
import logging
import os
import secrets
from collections.abc import Iterator
from dataclasses import dataclass, field
from datetime import datetime, timezone
from functools import cached_property
from pathlib import Path
from typing import Annotated, Any, BinaryIO, Literal

from pydantic import BaseModel, ConfigDict, Field, TypeAdapter, ValidationError, field_validator, model_validator

from f5lab import inert, paths
from f5lab.blind_listening import blind
from f5lab.blind_listening.blind import Contest, Kind, Place, Trial
from f5lab.errors import RunError
from f5lab.specs import Case

logger = logging.getLogger(__name__)

FORMAT = 1
FILE = "blind.jsonl"
LISTENER_CHARACTERS = 40


class _Line(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)

    session: str = Field(pattern=r"^[0-9a-z-]{1,40}$")
    at: datetime


class Opened(_Line):
    """The line that begins a session: all that its trials follow from."""

    event: Literal["session"] = "session"
    format: Literal[1] = FORMAT
    kind: Kind
    a: str
    b: str
    mark: str
    seed: int = Field(ge=0)
    trials: int = Field(ge=1, le=blind.MOST_TRIALS)
    items: tuple[str, ...] = Field(min_length=1)
    question: str = ""
    loudness: str = ""
    listener: str = ""

    @field_validator("a", "b", "question", "loudness", mode="before")
    @classmethod
    def _readable(cls, text: object) -> object:
        return inert.prose(text, 200) if isinstance(text, str) else text

    @field_validator("listener", mode="before")
    @classmethod
    def _short(cls, text: object) -> object:
        return inert.prose(text, LISTENER_CHARACTERS) if isinstance(text, str) else text

    @cached_property
    def plan(self) -> tuple[Trial, ...]:
        """The session's trials."""
        return blind.plan_trials(self.items, self.kind, self.trials, self.seed)


class Answered(_Line):
    """The line of one answer: what was presented where, what was answered, what that means.

    Attributes
    ----------
    plays : dict of str to int
        How often the clip at each place was played.
    replays : int
        Plays beyond the first of each.
    seconds : float
        From presentation to answer.
    """

    event: Literal["answer"] = "answer"
    trial: int = Field(ge=1)
    item: str
    order: Literal["ab", "ba"]
    x: Literal["a", "b", ""]
    answer: Literal["1", "2"]
    chosen: Literal["a", "b"]
    right: bool | None
    plays: dict[str, int]
    replays: int = Field(ge=0)
    seconds: float = Field(ge=0, allow_inf_nan=False)

    @model_validator(mode="after")
    def _consistent(self) -> "Answered":
        chosen = self.order[int(self.answer) - 1]
        right = chosen == self.x if self.x else None
        replays = sum(self.plays.values()) - len(self.plays)
        if (chosen, right, replays) != (self.chosen, self.right, self.replays):
            raise ValueError("chosen, right and replays do not follow from order, x, answer and plays")
        return self


_LINES: TypeAdapter[Opened | Answered] = TypeAdapter(Annotated[Opened | Answered, Field(discriminator="event")])


@dataclass
class Session:
    """A session as the file tells it.

    Attributes
    ----------
    opened : Opened
    answers : dict of int to Answered
        By number of the trial.
    """

    opened: Opened
    answers: dict[int, Answered] = field(default_factory=dict)

    @property
    def left(self) -> list[Trial]:
        """Trials without an answer, in order."""
        return [trial for trial in self.opened.plan if trial.number not in self.answers]

    @property
    def finished(self) -> bool:
        """Whether every trial was answered."""
        return len(self.answers) == self.opened.trials

    @property
    def hits(self) -> int:
        """A/B: answers for side b. ABX: right answers."""
        return sum(a.right if a.right is not None else a.chosen == "b" for a in self.answers.values())


class AnswerBook:
    """The file of answers.

    Parameters
    ----------
    path : str or Path
        It is made by the first session.
    """

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path).expanduser()

    def begin(
        self, contest: Contest, kind: Kind, trials: int, *, seed: int | None = None, listener: str = ""
    ) -> Session:
        """Begin a session and write its first line.

        Parameters
        ----------
        seed : int, optional
            Of order and X. Left out: drawn anew, so that nobody knows it.

        Raises
        ------
        RunError
            Too few trials to prove anything, nothing that differs, or the file can not be written.
        """
        now = _now()
        opened = Opened(
            session=f"{now:%Y%m%dt%H%M%Sz}-{secrets.token_hex(3)}", at=now, kind=kind, a=contest.a.label, b=contest.b.label,
            mark=contest.mark, seed=secrets.randbelow(2**48) if seed is None else seed,
            trials=_checked(contest, kind, trials), items=tuple(m.item for m in contest.matches),
            question=contest.question if kind == "ab" else "", loudness=blind.LOUDNESS, listener=listener.strip(),
        )  # fmt: skip
        self._append(opened)
        return Session(opened)

    def answer(self, session: Session, trial: Trial, place: Place, plays: dict[str, int], seconds: float) -> None:
        """Keep one answer: on the disk when this returns. An answer that another window gave before stays as it is.

        Raises
        ------
        RunError
            No such answer, a clip was never played, or the file can not be written.
        """
        if place not in ("1", "2"):
            raise RunError(f"answer {place!r}", expected="1 or 2")
        if unheard := [p for p in trial.places if plays.get(p, 0) < 1]:
            raise RunError("an answer before every clip was played", expected="each at least once", offenders=unheard)
        chosen = trial.side(place)
        told = Answered(
            session=session.opened.session, at=_now(), trial=trial.number, item=trial.item, order=trial.order, x=trial.x,
            answer=place, chosen=chosen, right=chosen == trial.x if trial.x else None,
            plays={p: plays[p] for p in trial.places}, replays=sum(plays[p] - 1 for p in trial.places), seconds=round(seconds, 2),
        )  # fmt: skip
        known, _ = self.read()
        earlier = known[told.session].answers.get(trial.number) if told.session in known else None
        if earlier is None:
            self._append(told)
        session.answers[trial.number] = earlier or told

    def read(self) -> tuple[dict[str, Session], int]:
        """Return every session by its id, and how many lines could not be read.

        A line that is cut short, altered or belongs to no session is left out and counted; its trial is unanswered. Of two
        answers to one trial the first counts.
        """
        sessions: dict[str, Session] = {}
        bad = 0
        for number, line in enumerate(self._lines(), start=1):
            try:
                told = _LINES.validate_json(line)
                if isinstance(told, Opened):
                    sessions.setdefault(told.session, Session(told))
                    continue
                session = sessions[told.session]
                planned = {trial.number: trial for trial in session.opened.plan}[told.trial]
                if (planned.item, planned.order, planned.x) != (told.item, told.order, told.x):
                    raise KeyError(told.trial)
                session.answers.setdefault(told.trial, told)
            except (ValidationError, KeyError, RunError):
                bad += 1
                logger.warning("%s:%d is no answer and is left out", self.path, number)
        return sessions, bad

    def sessions(self, contest: Contest) -> list[Session]:
        """Return the sessions about these two sides, oldest first."""
        return [session for session in self.read()[0].values() if session.opened.mark == contest.mark]

    def unfinished(self, contest: Contest) -> list[Session]:
        """Return the sessions that can go on: trials are left, and their clips are at hand."""
        items = {match.item for match in contest.matches}
        return [s for s in self.sessions(contest) if not s.finished and items >= set(s.opened.items)]

    def _lines(self) -> list[bytes]:
        try:
            return [line for line in self.path.read_bytes().split(b"\n") if line.strip()]
        except FileNotFoundError:
            return []
        except OSError as error:
            raise RunError(f"cannot read {self.path} ({error.strerror})", next_step="choose another file") from error

    def _append(self, told: _Line) -> None:
        """Write one line, after a line break where the last one was cut short, and wait for the disk."""
        line = inert.json_text(told.model_dump(mode="json"), indent=None).encode() + b"\n"
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            with self.path.open("ab+") as f, _locked(f):
                if f.seek(0, os.SEEK_END):
                    f.seek(-1, os.SEEK_END)
                    line = line if f.read(1) == b"\n" else b"\n" + line
                f.write(line)
                f.flush()
                os.fsync(f.fileno())
        except OSError as error:
            raise RunError(
                f"the answer could not be kept in {self.path} ({error.strerror})",
                next_step="make room there, then answer again",
            ) from error


@contextlib.contextmanager
def _locked(f: BinaryIO) -> Iterator[None]:
    """Keep other writers out, where the file system has locks; the lock ends with the file."""
    if os.name == "posix":
        import fcntl

        with contextlib.suppress(OSError):
            fcntl.flock(f, fcntl.LOCK_EX)
    yield


def _checked(contest: Contest, kind: Kind, trials: int) -> int:
    return len(blind.plan_trials([m.item for m in contest.matches], kind, trials, 0))


def _now() -> datetime:
    return datetime.now(timezone.utc).replace(microsecond=0)


def answers_file(case: Case) -> Path:
    """Return where answers about a case are kept, beside its runs."""
    return paths.reports_dir() / (case.name if case.name.strip(".") else "case") / FILE


def kept_lines(sessions: list[Session]) -> str:
    """Return sessions as the file has them, without the listeners' names."""
    told: list[dict[str, Any]] = []
    for session in sessions:
        told.append(session.opened.model_dump(mode="json") | {"listener": ""})
        told += [answer.model_dump(mode="json") for _, answer in sorted(session.answers.items())]
    return "".join(inert.json_text(line, indent=None) + "\n" for line in told)
