"""The panel of a blind session in JupyterLab. What is presented where is known to Python alone.

The front end is sent clips by place ("1", "2", "x") and sends back what was played and answered. Sides, order, labels, item and
seed never reach it before a session is finished.
"""

import base64
import logging
import time
from typing import Any

import anywidget
import traitlets

from f5lab.blind_listening import blind, blind_results
from f5lab.blind_listening.blind import Contest
from f5lab.blind_listening.blind_answers import AnswerBook, Session
from f5lab.blind_listening.blind_results import Tally
from f5lab.errors import LabError
from f5lab.paths import TEMPLATES

logger = logging.getLogger(__name__)

TRIALS = 12


class BlindListening(anywidget.AnyWidget):
    """A panel to begin, answer, interrupt and resume blind sessions; keyboard or mouse.

    Parameters
    ----------
    contest : Contest
    book : AnswerBook
    trials : int
        Proposed number of trials.
    seed : int, optional
        Of order and X; left out, each session draws its own.

    Attributes
    ----------
    view : dict
        What the front end shows now: ``phase`` is "start", "trial", "done" or "nothing".
    clips : dict of str to str
        Place to a WAV file as a data URI.
    """

    _esm = (TEMPLATES / "blind.js").read_text(encoding="utf-8")
    _css = (TEMPLATES / "blind.css").read_text(encoding="utf-8")
    view = traitlets.Dict().tag(sync=True)
    clips = traitlets.Dict().tag(sync=True)

    def __init__(self, contest: Contest, book: AnswerBook, trials: int = TRIALS, seed: int | None = None) -> None:
        super().__init__()
        self._contest, self._book, self._trials, self._seed = contest, book, trials, seed
        self._session: Session | None = None
        self._plays: dict[str, int] = {}
        self._since_s = 0.0
        self._show_start()
        self.on_msg(self._receive)

    def _receive(self, _widget: Any, content: Any, _buffers: Any) -> None:
        events = {
            "start": self._start,
            "resume": self._resume,
            "played": self._played,
            "answer": self._answer,
            "again": self._again,
        }
        handler = events.get(content.get("event")) if isinstance(content, dict) else None
        if handler is None:
            logger.warning("the panel sent %.80r, which is no event", content)
            return
        try:
            handler(content)
        except LabError as error:
            self.view = self.view | {"message": str(error)}

    def _start(self, content: dict[str, Any]) -> None:
        trials = content.get("trials")
        if not isinstance(trials, int):
            raise LabError(f"number of trials {trials!r}", expected="a whole number")
        listener = str(content.get("listener") or "")
        self._session = self._book.begin(self._contest, content.get("kind"), trials, seed=self._seed, listener=listener)
        self._present()

    def _resume(self, content: dict[str, Any]) -> None:
        known = {session.opened.session: session for session in self._book.unfinished(self._contest)}
        if content.get("session") not in known:
            raise LabError("this session can not go on", expected="one of those listed", next_step="start a new one")
        self._session = known[content["session"]]
        self._present()

    def _played(self, content: dict[str, Any]) -> None:
        place = content.get("place")
        if self._is_current(content) and place in self._plays:
            self._plays[place] += 1
            self.view = self.view | {"plays": dict(self._plays), "message": ""}

    def _answer(self, content: dict[str, Any]) -> None:
        """Keep an answer to the trial that is shown; one to an earlier trial (a second click) is none."""
        if self._session is None or not self._is_current(content):
            return
        seconds = time.monotonic() - self._since_s
        self._book.answer(self._session, self._session.left[0], content.get("place"), self._plays, seconds)
        self._present()

    def _again(self, _content: dict[str, Any]) -> None:
        self._session = None
        self._show_start()

    def _is_current(self, content: dict[str, Any]) -> bool:
        return self.view.get("phase") == "trial" and content.get("trial") == self.view.get("number")

    def _present(self) -> None:
        """Show the next trial, or the result after the last."""
        session = self._session
        if session is None or not session.left:
            self._show_done()
            return
        trial, opened = session.left[0], session.opened
        files = blind.stimuli(self._contest, trial, opened.seed)
        self._plays = dict.fromkeys(files, 0)
        with self.hold_sync():
            self.clips = {p: "data:audio/wav;base64," + base64.b64encode(wav).decode() for p, wav in files.items()}
            self.view = {
                "phase": "trial", "kind": opened.kind, "number": trial.number, "done": len(session.answers), "total": opened.trials,
                "question": opened.question or "Which of the two is X?", "text": self._contest.match(trial.item).text,
                "places": list(trial.places), "plays": dict(self._plays), "message": "",
            }  # fmt: skip
        self._since_s = time.monotonic()

    def _show_start(self) -> None:
        matches = len(self._contest.matches)
        unfinished = [
            {"session": s.opened.session, "kind": s.opened.kind, "done": len(s.answers), "total": s.opened.trials}
            for s in self._book.unfinished(self._contest)
        ]
        with self.hold_sync():
            self.clips = {}
            self.view = {
                "phase": "start" if matches else "nothing", "a": self._contest.a.label, "b": self._contest.b.label,
                "pairs": matches, "same": self._contest.same, "trials": self._trials, "most": blind.MOST_TRIALS,
                "least": {kind: blind.least_trials(kind) for kind in blind.KINDS}, "unfinished": unfinished,
                "loudness": blind.LOUDNESS, "message": "",
            }  # fmt: skip

    def _show_done(self) -> None:
        session = self._session
        if session is None:
            return
        own = Tally(self._contest, session.opened.kind, (session,), ())
        every = next(t for t in blind_results.hear(self._book, self._contest).tallies if t.kind == session.opened.kind)
        results = [{"of": "this session", **_told(own)}]
        if len(every.finished) > 1:
            results.append({"of": f"all {len(every.finished)} finished sessions", **_told(every)})
        with self.hold_sync():
            self.clips = {}
            self.view = {
                "phase": "done", "kind": session.opened.kind, "a": self._contest.a.label, "b": self._contest.b.label,
                "claim": own.claim, "results": results, "file": self._book.path.name, "message": "",
            }  # fmt: skip


def _told(tally: Tally) -> dict[str, str]:
    score = tally.score
    if score is None:
        return {"verdict": tally.verdict, "share": "", "detail": tally.sentence}
    share = f"{score.hits} of {score.n} ({score.share:.0%}; 95 % interval {score.low:.0%} to {score.high:.0%})"
    return {"verdict": tally.verdict, "share": share, "detail": tally.sentence}


def listen(contest: Contest, book: AnswerBook, *, trials: int = TRIALS, seed: int | None = None) -> BlindListening:
    """Return a panel for blind sessions about a contest; see `BlindListening`."""
    return BlindListening(contest, book, trials, seed)
