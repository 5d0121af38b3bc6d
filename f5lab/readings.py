"""A text against what was heard of it: which words and letters were kept, replaced, missing or added.

The edits are those that the error rates of `metrics` count: jiwer's alignment of the normalised texts. Each kind has
a sign of its own, so that none is told by colour alone.
"""

import html
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any, Literal

import jiwer

from f5lab import metrics, tables
from f5lab.inert import visible
from f5lab.tables import Html

Kind = Literal["kept", "replaced", "missing", "added"]
_KINDS: dict[str, Kind] = {"equal": "kept", "substitute": "replaced", "delete": "missing", "insert": "added"}
_GONE = '<del class="missing" style="background-color:rgba(205,70,50,.20)">[−{}−]</del>'
_NEW = '<ins class="added" style="background-color:rgba(50,120,205,.20)">{{+{}+}}</ins>'
LEGEND = "[−text that was not heard−] {+heard, not in the text+}; below, letter by letter: ~ replaced, − missing, + added"


@dataclass(frozen=True)
class Edit:
    """A stretch of text and what was heard in its place; one of the two is empty where something is missing or added."""

    kind: Kind
    text: tuple[str, ...]
    heard: tuple[str, ...]


@dataclass(frozen=True)
class Reading:
    """A text and what was heard of it, aligned.

    Attributes
    ----------
    words : tuple of Edit
        Over words of the normalised texts.
    letters : tuple of Edit
        Over characters without spaces, as `metrics.cer` counts them.
    """

    words: tuple[Edit, ...]
    letters: tuple[Edit, ...]

    def count(self, kind: Kind, *, of: Literal["words", "letters"] = "words") -> int:
        """Return how many words or letters were kept, replaced, missing or added."""
        edits = self.words if of == "words" else self.letters
        return sum(max(len(edit.text), len(edit.heard)) for edit in edits if edit.kind == kind)


def compare_reading(text: str, heard: str) -> Reading:
    """Align a transcript with the text that should be heard; both go through `metrics.normalise`.

    Examples
    --------
    >>> [(edit.kind, edit.text, edit.heard) for edit in compare_reading("O gato preto.", "o pato").words]
    [('kept', ('o',), ('o',)), ('replaced', ('gato',), ('pato',)), ('missing', ('preto',), ())]
    """
    said, got = metrics.normalise(text), metrics.normalise(heard)
    return Reading(
        _edits(said.split(), got.split(), jiwer.process_words, " "),
        _edits(list(said.replace(" ", "")), list(got.replace(" ", "")), jiwer.process_characters, ""),
    )


def _edits(text: list[str], heard: list[str], process: Callable[..., Any], gap: str) -> tuple[Edit, ...]:
    if not text:  # jiwer refuses it
        return (Edit("added", (), tuple(heard)),) if heard else ()
    return tuple(
        Edit(
            _KINDS[chunk.type],
            tuple(text[chunk.ref_start_idx : chunk.ref_end_idx]),
            tuple(heard[chunk.hyp_start_idx : chunk.hyp_end_idx]),
        )
        for chunk in process(gap.join(text), gap.join(heard)).alignments[0]
    )


def show_reading(reading: Reading) -> Html:
    """Return a reading as HTML: its words in a line, and below them its letters in three rows."""
    words = " ".join(_words(edit) for edit in reading.words)
    rows = zip(*(_columns(edit) for edit in reading.letters), strict=True)
    letters = "\n".join(html.escape("".join(row)) for row in rows)
    return Html(
        f'<div class="f5lab-alignment"><div>{words or "—"}</div><pre style="margin:0; white-space:pre">{letters}</pre></div>',
        " ".join(filter(None, (_plain(edit) for edit in reading.words))),
    )


def _words(edit: Edit) -> str:
    gone, new = (html.escape(visible(" ".join(part), None)) for part in (edit.text, edit.heard))
    if edit.kind == "kept":
        return gone
    return (_GONE.format(gone) if gone else "") + (_NEW.format(new) if new else "")


def _plain(edit: Edit) -> str:
    gone, new = (visible(" ".join(part), None) for part in (edit.text, edit.heard))
    if edit.kind == "kept":
        return gone
    return (f"[−{gone}−]" if gone else "") + (f"{{+{new}+}}" if new else "")


def _columns(edit: Edit) -> tuple[str, str, str]:
    """Return a stretch of letters as text, signs and what was heard, of one width."""
    width = max(len(edit.text), len(edit.heard))
    sign = {"kept": " ", "replaced": "~", "missing": "−", "added": "+"}[edit.kind]
    text, heard = ("".join(part).ljust(width, "·") for part in (edit.text, edit.heard))
    return text, sign * width, heard


def show_readings(items: Iterable[tuple[str, str, str]]) -> Html:
    """Return a table of (label, text, heard) with each pair aligned and its error rates.

    Parameters
    ----------
    items : iterable of (str, str, str)
    """
    return tables.table([_row(*item) for item in items], caption=LEGEND)


def _row(label: str, text: str, heard: str) -> dict[str, Any]:
    rates = {"WER": metrics.wer(text, heard).value, "CER": metrics.cer(text, heard).value}
    return {"clip": label, **rates, "text against what was heard": show_reading(compare_reading(text, heard))}
