"""HTML tables for notebooks: every string escaped and clipped, control and direction characters made visible."""

import html
import math
import re
from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from f5lab import usage
from f5lab.inert import CLIP_CHARACTERS, visible

if TYPE_CHECKING:
    from pandas import DataFrame

    from f5lab.findings import Finding
    from f5lab.specs import Case

SHOWN_ROWS = 500
SIGNS = {"supported": "✔", "refuted": "✘", "inconclusive": "?"}
"""A shape for each verdict, so that none is told by colour alone."""


class Html:
    """A piece of HTML that notebooks display."""

    def __init__(self, source: str, text: str) -> None:
        self.source = source
        self.text = text

    def _repr_html_(self) -> str:
        return self.source

    def __repr__(self) -> str:
        return self.text


class Closing(Html):
    """A notebook's last table, which also tells the run that executes it where time and memory went (`usage`)."""

    def __init__(self, source: str, text: str, used: Mapping[str, Any]) -> None:
        super().__init__(f'{source}<p class="note">{html.escape(usage.sentence(used))}</p>', text)
        self.used = used

    def _repr_mimebundle_(self, **_: Any) -> dict[str, Any]:
        return {"text/html": self.source, "text/plain": self.text, usage.MIME: self.used}


def cell_text(value: Any, clip: int | None = CLIP_CHARACTERS) -> str:
    """Return one value as plain text: floats with four digits, ``None`` as a dash, strings made visible."""
    if value is None:
        return "—"
    if isinstance(value, str):
        return visible(value, clip)
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, int):
        return f"{value:,}".replace(",", "\u202f") if abs(value) >= 10_000 else str(value)
    if isinstance(value, float):
        return "undefined" if math.isnan(value) else f"{value:.4g}"
    if isinstance(value, Mapping):
        return visible(", ".join(f"{key}={cell_text(item, None)}" for key, item in value.items()), clip)
    if isinstance(value, (list, tuple, set, frozenset)):
        return visible(", ".join(cell_text(item, None) for item in value), clip)
    if hasattr(value, "item") and not getattr(value, "shape", ()):
        return cell_text(value.item(), clip)
    return visible(str(value), clip)


_LONG_RUN = re.compile(r"[\w./-]{20}(?=[\w./-]{12})")
"""Where a digest, a path or a tensor's name may be broken, so that it does not push other columns out of sight."""


def table(
    rows: "Sequence[Mapping[str, Any]] | DataFrame",
    caption: str = "",
    *,
    clip: int = CLIP_CHARACTERS,
    limit: int = SHOWN_ROWS,
) -> Html:
    """Return rows as an HTML table.

    Parameters
    ----------
    rows : sequence of mappings, or DataFrame
        One mapping a row; the columns are all keys in order of appearance. A DataFrame's named index becomes columns.
        A value that is an `Html` is placed as it is.
    caption : str, optional
        Shown above the table.
    clip : int
        Characters shown of a value.
    limit : int
        Rows shown; the caption says how many were left out.
    """
    records = _records(rows)
    columns = list(dict.fromkeys(str(key) for row in records for key in row))
    numeric = {c for c in columns if all(_is_number(row[c]) for row in records if row.get(c) is not None)}
    if len(records) > limit:
        caption = f"{caption} (first {limit} of {len(records)} rows)".strip()
    head = "".join(f'<th scope="col"{_align(c in numeric)}>{html.escape(visible(c, clip))}</th>' for c in columns)
    body = "\n".join(
        "<tr>" + "".join(f"<td{_align(c in numeric)}>{_cell(row.get(c), clip)}</td>" for c in columns) + "</tr>"
        for row in records[:limit]
    )
    title = f"<caption>{html.escape(visible(caption, None))}</caption>" if caption else ""
    source = f'<table class="f5lab">{title}<thead><tr>{head}</tr></thead>\n<tbody>{body}</tbody></table>'
    return Html(source, f"table of {len(records)} rows: {', '.join(columns)}")


def _records(rows: Any) -> list[dict[str, Any]]:
    if hasattr(rows, "to_dict") and hasattr(rows, "columns"):
        named = any(name is not None for name in rows.index.names)
        frame = rows.reset_index() if named else rows
        rows = frame.to_dict("records")
    return [{str(key): value for key, value in row.items()} for row in rows]


def _is_number(value: Any) -> bool:
    if hasattr(value, "item") and not getattr(value, "shape", ()):
        value = value.item()
    return isinstance(value, (int, float)) and not isinstance(value, bool)


def _align(right: bool) -> str:
    return ' class="num" style="text-align:right"' if right else ' style="text-align:left"'


def _cell(value: Any, clip: int) -> str:
    if isinstance(value, Html):
        return value.source
    return _LONG_RUN.sub(r"\g<0><wbr>", html.escape(cell_text(value, clip)))


def badge(verdict: str) -> Html:
    """Return a verdict as a sign and a word."""
    word = html.escape(verdict)
    return Html(f'<span class="badge {word}">{SIGNS.get(verdict, "·")} {word}</span>', verdict)


def show_findings(findings: "Iterable[Finding]") -> Closing:
    """Return a notebook's findings as its last table, verdict, claim, value with interval and n, evidence, limitation, and below
    it where the time went."""
    rows = [
        {
            "verdict": badge(finding.verdict),
            "finding": finding.id,
            "claim": finding.claim,
            "value": finding.value_text(),
            "evidence": list(finding.evidence),
            "limitation": finding.limitation or None,
        }
        for finding in findings
    ]
    shown = table(rows, caption="Findings of this notebook", clip=600)
    return Closing(shown.source, shown.text, usage.spent())


def provenance(case: "Case", **facts: Any) -> Html:
    """Return what a notebook's results rest on: case, checkpoint, versions and whatever else is given.

    Parameters
    ----------
    case : Case
    **facts
        Device, seeds and other facts to add, one row each.
    """
    from f5lab.provenance import fingerprint, size_text, versions

    rows: list[dict[str, Any]] = [{"what": "case", "value": f"{case.name} ({case.language_text})"}]
    named = [("checkpoint", case.checkpoint), ("base", case.base), ("vocab", case.training_vocab)]
    for label, path in named:
        if path is not None:
            mark = fingerprint(path)
            text = f"{visible(path.parent.name, 60)}/{visible(path.name, 60)}, {size_text(mark.size)}, sha256 {mark.sha256[:16]}…"
            rows.append({"what": label, "value": text})
    known = versions()
    shown = ("python", "f5lab", "f5-tts", "torch", "openai-whisper", "vocos")
    rows.append({"what": "versions", "value": ", ".join(f"{name} {known[name] or 'not installed'}" for name in shown)})
    rows += [{"what": name.replace("_", " "), "value": value} for name, value in facts.items()]
    return table(rows, caption="What the results below rest on", clip=400)
