"""What finished blind sessions say: hits, exact p, interval, and the finding that records them.

A session's number of trials is fixed when it begins, and only finished sessions are counted: stopping when the answers look good
would make any p too small.
"""

import statistics
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from f5lab import paths
from f5lab.blind_listening import blind
from f5lab.blind_listening.blind import Contest, Kind, Score, Side
from f5lab.blind_listening.blind_answers import AnswerBook, Session, kept_lines
from f5lab.errors import RunError
from f5lab.findings import Outcome


@dataclass(frozen=True)
class Tally:
    """What all sessions of one kind about a contest say together.

    Attributes
    ----------
    contest : Contest
    kind : {"ab", "abx"}
    finished, unfinished : tuple of Session
    unreadable : int
        Lines of the file that are left out.
    """

    contest: Contest
    kind: Kind
    finished: tuple[Session, ...]
    unfinished: tuple[Session, ...]
    unreadable: int = 0

    @property
    def score(self) -> Score | None:
        """Hits of the finished sessions; None without one."""
        n = sum(s.opened.trials for s in self.finished)
        return blind.score_trials(self.kind, sum(s.hits for s in self.finished), n) if n else None

    @property
    def verdict(self) -> Outcome:
        """Supported or refuted below p = 0.05; a difference that was not heard may still be there."""
        score = self.score
        if score is None or score.p >= blind.LEVEL:
            return "inconclusive"
        return "supported" if score.share > 0.5 else "refuted"

    @property
    def claim(self) -> str:
        """What is put to the test."""
        a, b = self.contest.a.label, self.contest.b.label
        if self.kind == "abx":
            return f"Listeners tell “{a}” and “{b}” apart, not knowing which is which."
        return f"Listeners choose “{b}” over “{a}”, not knowing which is which."

    @property
    def sentence(self) -> str:
        """How the number came about, or what is needed to have one."""
        score, parts = self.score, []
        if score is not None:
            items = {a.item for s in self.finished for a in s.answers.values()}
            tail = "one-sided, against guessing" if self.kind == "abx" else "two-sided, against no preference"
            parts.append(
                f"Exact binomial p = {score.p:.2g}, {tail}; {score.hits} of {score.n} trials in {_count(len(self.finished), 'session')}"
                f" over {_count(len(items), 'pair')} of clips, loudness matched. Trials on one pair say little about other texts."
            )
            if len(self.finished) > 1:
                parts.append("It holds where the number of sessions was settled before the first: whoever stops when p pleases is fooled more often.")
        elif not self.contest.matches:
            parts.append("Both sides are the same sound in every pair: there is nothing to choose between.")
        else:
            parts.append(
                f"No finished session: at least {blind.least_trials(self.kind)} trials are needed; start one in JupyterLab,"
                " in the cell tagged `interactive` under “Judge by ear”."
            )
        parts += [
            f"A session stopped at {len(s.answers)} of {s.opened.trials} and does not count until it is finished."
            for s in self.unfinished
        ]
        if self.unreadable:
            parts.append(f"{_count(self.unreadable, 'line')} of the answers could not be read and are left out.")
        return " ".join(parts)

    @property
    def finding(self) -> dict[str, Any]:
        """Fields of the finding that records this."""
        score = self.score
        return {
            "question": "Is the difference heard by people who do not know which is which?", "claim": self.claim,
            "verdict": self.verdict, "value": score.share if score else None,
            "unit": "of trials, X named rightly" if self.kind == "abx" else f"of trials for “{self.contest.b.label}”",
            "interval": (score.low, score.high) if score else None, "n": score.n if score else None, "limitation": self.sentence,
        }  # fmt: skip


@dataclass(frozen=True)
class Heard:
    """What is known by ear about a contest."""

    tallies: tuple[Tally, ...]
    kept: str = ""

    @property
    def rows(self) -> list[dict[str, Any]]:
        """As table rows: one a session, then what they say together."""
        rows: list[dict[str, Any]] = []
        for tally in self.tallies:
            rows += [_session_row(session) for session in (*tally.finished, *tally.unfinished)]
            if (score := tally.score) is not None:
                rows.append({
                    "session": "all finished", "kind": tally.kind.upper(), "trials": score.n, "hits": score.hits, "share": score.share,
                    "95 % interval": f"{score.low:.2f} to {score.high:.2f}", "p": score.p,
                })  # fmt: skip
        return rows

    @property
    def sentence(self) -> str:
        """What the table's caption says."""
        told = [f"{t.kind.upper()}: {t.claim} {t.verdict.capitalize()}. {t.sentence}" for t in self.tallies]
        return " ".join(told)

    @property
    def findings(self) -> dict[str, dict[str, Any]]:
        """Kind to fields of a finding: A/B always, ABX when there was a session."""
        evidence = [self.kept] if self.kept else []
        return {t.kind: t.finding | {"evidence": evidence} for t in self.tallies}


def hear(book: AnswerBook, contest: Contest, *, out: str | Path = "", keep: str = "") -> Heard:
    """Return what the sessions about a contest say so far.

    Parameters
    ----------
    out, keep : str or Path
        In a run: its folder, and the file in it that gets the lines that count, without names.
    """
    known, bad = book.read()
    mine = [session for session in known.values() if session.opened.mark == contest.mark]
    tallies = []
    for kind in blind.KINDS:
        finished = tuple(s for s in mine if s.opened.kind == kind and s.finished)
        unfinished = tuple(s for s in mine if s.opened.kind == kind and not s.finished)
        if kind == "ab" or finished or unfinished:
            tallies.append(Tally(contest, kind, finished, unfinished, bad))
    written = bool(str(out) and keep and mine)
    if written:
        paths.write_text(Path(out) / keep, kept_lines(mine))
    return Heard(tuple(tallies), keep if written else "")


def _session_row(session: Session) -> dict[str, Any]:
    answers, opened = list(session.answers.values()), session.opened
    return {
        "session": f"{opened.at:%Y-%m-%d %H:%M}", "kind": opened.kind.upper(), "trials": len(answers),
        "hits": session.hits if session.finished else None, "share": session.hits / opened.trials if session.finished else None,
        "95 % interval": None, "p": None, "replays": sum(a.replays for a in answers),
        "seconds a trial, median": statistics.median(a.seconds for a in answers) if answers else None,
        "state": "finished" if session.finished else f"stopped at {len(answers)} of {opened.trials}",
    }  # fmt: skip


def _count(number: int, noun: str) -> str:
    return f"{number} {noun}{'s' * (number != 1)}"


def report(path: Path) -> dict[str, Any]:
    """Return what a file of answers says, contest by contest, without their clips.

    Raises
    ------
    RunError
        There is no such file.
    """
    known, bad = AnswerBook(
        paths.existing_file(path, RunError, "file of answers", "listen first, in notebook 05")
    ).read()
    groups: dict[tuple[str, Kind], list[Session]] = {}
    for session in known.values():
        groups.setdefault((session.opened.mark, session.opened.kind), []).append(session)
    rows = []
    for (mark, kind), sessions in groups.items():
        opened = sessions[0].opened
        contest = Contest(Side(opened.a, mark), Side(opened.b, mark), ())
        done, rest = [s for s in sessions if s.finished], [s for s in sessions if not s.finished]
        tally = Tally(contest, kind, tuple(done), tuple(rest))
        score = tally.score
        rows.append({
            "kind": kind, "a": opened.a, "b": opened.b, "finished": len(done), "unfinished": len(rest), "verdict": tally.verdict,
            "trials": score.n if score else 0, "hits": score.hits if score else None, "share": score.share if score else None,
            "low": score.low if score else None, "high": score.high if score else None, "p": score.p if score else None,
        })  # fmt: skip
    return {"answers": path, "unreadable_lines": bad, "contests": rows}
