"""One run as one HTML file that reads complete years later, and on request as an archive for JupyterLab."""

import base64
import binascii
import hashlib
import html
import io
import json
import re
import tempfile
from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import nbformat

from f5lab import findings, paths, verdicts
from f5lab.errors import RunError
from f5lab.execution import markup, reports
from f5lab.finished import archives, runs
from f5lab.finished.redaction import Redactor, wishes
from f5lab.finished.runs import StoredRun
from f5lab.provenance import size_text

__all__ = ["MOST_BYTES", "Shared", "one_page", "share", "wishes"]

MOST_BYTES = 25_000_000
"""Largest file that is written: what mail and issue trackers take."""

FILES = ("findings.jsonl", "verdict.json", runs.RECORD)
_MAIN = re.compile(r'<main class="[a-z]+">(.*)</main>', re.S)
_PAGE = re.compile(r"^(\d\d)_[a-z0-9_]+\.html(?:#(.+))?$")
_SOUND = re.compile(r'<audio\b[^>]*\bsrc="data:audio/flac;base64,([A-Za-z0-9+/=]+)"[^>]*></audio>')


@dataclass(frozen=True)
class Shared:
    """What was written, what the reader should know, and the Markdown to paste."""

    files: list[Path]
    notes: list[str] = field(default_factory=list)
    markdown: str = ""


def share(run: StoredRun, out: Path | None, *, redact: frozenset[str] = frozenset(), archive: bool = False) -> Shared:
    """Write a run as one file, and as an archive when asked for.

    Parameters
    ----------
    run : StoredRun
    out : Path, optional
        ``FILE.html``; with `archive` ``FILE.zip`` (then only the archive is written) or ``FILE.html`` (then both, the
        archive beside it). None: nothing is written, only the Markdown returned.
    redact : frozenset of str
        From `wishes`.
    archive : bool

    Raises
    ------
    RunError
        A file would exceed `MOST_BYTES` without its audio, or texts that should be hidden can not be.
    """
    redactor = Redactor(run, redact)
    if out is not None:
        _keep_others(run, out, archive)
    if out is None:
        return Shared([], markdown=markdown(redactor.record(), redactor))
    with _staged(run, redactor) as stage:
        page, notes = _fitting(one_page(stage))
        redactor.check(page)
        files = []
        if out.suffix.lower() == ".html":
            paths.write_text(out, page)
            files.append(out)
        if archive:
            files.append(archives.pack(stage, page, out.with_suffix(".zip")))
        notes += _notes(run, redact)
        return Shared(files, notes, markdown(stage.record, redactor))


def _keep_others(run: StoredRun, out: Path, archive: bool) -> None:
    """Make sure that nothing is written over which nobody named.

    Raises
    ------
    RunError
        `out` lies in the run's folder, or an archive would replace a file beside the page.
    """
    if out.resolve().is_relative_to(run.folder.resolve()):
        raise RunError(f"{out} lies in the run's own folder", expected="a file outside of it")
    beside = out.with_suffix(".zip")
    if archive and beside != out and beside.exists():
        raise RunError(f"{beside} exists", expected="no such file beside the page", next_step=f"name it: --out {beside}, or move it")


def markdown(record: Mapping[str, Any], redactor: Redactor) -> str:
    """Return the verdict with what a maintainer asks for, as Markdown to paste."""
    verdict, known = redactor.verdict(), redactor.findings()
    claims = {finding.id: finding.claim.partition(": ")[2] or finding.claim for finding in known}
    said = (
        verdicts.markdown(verdict, claims, verdicts.notes(known))
        if verdict
        else f"**f5lab on `{record['case']['name']}`**: {redactor.run.headline}\n"
    )
    return f"{said}\n{reports.maintainer_markdown(record)}"


def _notes(run: StoredRun, redact: frozenset[str]) -> list[str]:
    notes = [f"audio file {name} is gone from the run" for name in run.missing_audio]
    if "texts" in redact and "voices" not in redact:
        notes.append("the audio still says the texts: add voices to --redact to leave it out")
    if redact:
        notes.append("look through the file before you hand it on: names inside free text can not be known")
    return notes


@contextmanager
def _staged(run: StoredRun, redactor: Redactor) -> Iterator[StoredRun]:
    """Yield a copy of the run in a temporary folder, with everything hidden that has to be."""
    with tempfile.TemporaryDirectory(prefix="f5lab-share-") as name:
        folder = Path(name).resolve()
        record, known, verdict = redactor.record(), redactor.findings(), redactor.verdict()
        paths.write_text(folder / runs.RECORD, json.dumps(record, indent=2, ensure_ascii=False) + "\n")
        paths.write_text(folder / "findings.jsonl", findings.dump(known))
        if verdict is not None:
            verdicts.save(verdict, folder)
        if "voices" not in redactor.wanted:
            for file_name, file in run.audio.items():
                paths.copy_file(file, folder / "audio" / file_name)
        for entry in record["notebooks"]:
            node = redactor.notebook(entry["name"])
            if node is not None:
                text = markup.encodable(nbformat.writes(node)) + "\n"
                redactor.check(text)
                paths.write_text(folder / f"{entry['name']}.ipynb", text)
        for name in FILES:
            if (folder / name).is_file():
                redactor.check((folder / name).read_text(encoding="utf-8"))
        yield runs.open_run(folder)


def one_page(run: StoredRun) -> str:
    """Return a run as one HTML page without scripts: front page, every notebook, and the files for programs."""
    sounds: dict[bytes, list[str]] = {}
    for name, file in run.audio.items():
        mark = hashlib.sha256(base64.b64encode(file.read_bytes())).digest()
        sounds.setdefault(mark, []).append(Path(name).stem)
    front = _body(reports.index_page(run.folder, run.record, run.findings))
    pages = [(entry, _notebook_body(run, entry)) for entry in run.record["notebooks"]]
    bodies = {"index": front} | {f"n{entry['number']}": body for entry, body in pages}
    count = Counter(mark for body in bodies.values() for mark in _sound_marks(body))
    heard = {stem for mark, stems in sounds.items() for stem in stems[: count[mark]]}
    placed: set[str] = set()
    joined = {key: _Joiner(key, sounds, heard, placed).join(body) for key, body in bodies.items()}
    files = [(name, (run.folder / name).read_text(encoding="utf-8")) for name in FILES if (run.folder / name).is_file()]
    return reports.page(
        "share.html.j2", record=run.record, front=markup.Markup(joined["index"]), files=files,
        sections=[(entry, markup.Markup(joined[f"n{entry['number']}"])) for entry, _ in pages],
    )  # fmt: skip


def _body(page: str) -> str:
    found = _MAIN.search(page)
    if found is None:
        raise RunError("a page of the report has no main part", next_step="run the workbook again")
    return found[1]


def _notebook_body(run: StoredRun, entry: Mapping[str, Any]) -> str:
    node = run.notebook(entry)
    if node is None:
        reason = entry["error"] or "its file is not in the run's folder, or can not be read"
        return (
            f'<h1>{html.escape(entry["title"])}</h1><aside class="alert soft">Not here: {html.escape(reason)}.</aside>'
        )
    return _body(reports.notebook_page(node, entry, run.record))


def _sound_marks(body: str) -> list[bytes]:
    return [hashlib.sha256(data.encode()).digest() for data in _SOUND.findall(body)]


class _Joiner(HTMLParser):
    """Makes a page a section of a larger one: ids get the section's key, links lead inside the file or away from it."""

    def __init__(self, key: str, sounds: Mapping[bytes, list[str]], heard: set[str], placed: set[str]) -> None:
        super().__init__(convert_charrefs=False)
        self.key, self.sounds, self.heard, self.placed = key, sounds, heard, placed
        self.parts: list[str] = []

    def join(self, body: str) -> str:
        """Return `body` with ids and links rewritten."""
        self.feed(body)
        self.close()
        return "".join(self.parts)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        """Rewrite ids, links and the ids of audio."""
        given = dict(attrs)
        changed = dict(given)
        if "id" in given:
            changed["id"] = f"{self.key}-{given['id']}"
        if "href" in given:
            target = self._target(given["href"] or "")
            changed = {k: v for k, v in changed.items() if k != "href"} | ({"href": target} if target else {})
        if tag == "audio" and (given.get("src") or "").startswith("data:audio/flac;base64,"):
            mark = hashlib.sha256((given["src"] or "").partition(",")[2].encode()).digest()
            if waiting := [name for name in self.sounds.get(mark, ()) if name not in self.placed]:
                self.placed.add(waiting[0])
                changed["id"] = f"audio-{waiting[0]}"
        if changed == given:
            self.parts.append(self.get_starttag_text() or "")
        else:
            said = "".join(f" {k}" if v is None else f' {k}="{html.escape(v)}"' for k, v in changed.items())
            self.parts.append(f"<{tag}{said}>")

    def _target(self, link: str) -> str | None:
        if link.startswith("#"):
            return f"#{self.key}-{link[1:]}"
        if found := _PAGE.match(link):
            return f"#n{found[1]}" + (f"-{found[2]}" if found[2] else "")
        if link in FILES:
            return f"#file-{link}"
        if link.startswith("audio/"):
            stem = Path(link).stem
            return f"#audio-{stem}" if stem in self.heard else None
        if link.startswith("index.html"):
            return "#index"
        return link if re.match(r"(https?://|mailto:)", link, re.IGNORECASE) else None

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        """Treat ``<br/>`` as ``<br>``."""
        self.handle_starttag(tag, attrs)

    def handle_endtag(self, tag: str) -> None:
        """Keep it."""
        self.parts.append(f"</{tag}>")

    def handle_data(self, data: str) -> None:
        """Keep it."""
        self.parts.append(data)

    def handle_entityref(self, name: str) -> None:
        """Keep it."""
        self.parts.append(f"&{name};")

    def handle_charref(self, name: str) -> None:
        """Keep it."""
        self.parts.append(f"&#{name};")


def _fitting(page: str) -> tuple[str, list[str]]:
    """Return the page in at most `MOST_BYTES`: audio as MP3 if it must be, and the longest clips left out after that."""
    notes = []
    if len(page.encode()) > MOST_BYTES:
        page = _SOUND.sub(lambda found: _as_mp3(found[0], found[1]), page)
        notes.append(f"audio is inside as MP3, to keep the file under {size_text(MOST_BYTES)}")
    excess = len(page.encode()) - MOST_BYTES
    if excess > 0:
        sounds = sorted(re.finditer(r"<audio\b[^>]*></audio>", page), key=lambda found: found.start() - found.end())
        left_out, note = set(), '<p class="note">This clip is left out to keep the file small.</p>'
        for found in sounds:
            if excess <= 0:
                break
            left_out.add(found.start())
            excess -= found.end() - found.start() - len(note)
        page = re.sub(r"<audio\b[^>]*></audio>", lambda found: note if found.start() in left_out else found[0], page)
        notes.append(f"{len(left_out)} clips are left out, to keep the file under {size_text(MOST_BYTES)}")
    if len(page.encode()) > MOST_BYTES:
        raise RunError(
            f"the run makes a file of {size_text(len(page.encode()))} even without its audio",
            expected=f"at most {size_text(MOST_BYTES)}",
            next_step="run fewer notebooks, or hand on the run's folder",
        )
    return page, notes


def _as_mp3(tag: str, data: str) -> str:
    """Return an audio tag with its FLAC as MP3; as it was when its audio can not be read."""
    import soundfile as sf

    try:
        samples, rate = sf.read(io.BytesIO(base64.b64decode(data, validate=True)))
        buffer = io.BytesIO()
        sf.write(buffer, samples, rate, format="MP3")
    except (sf.LibsndfileError, binascii.Error):
        return tag
    return tag.replace(f"audio/flac;base64,{data}", f"audio/mpeg;base64,{base64.b64encode(buffer.getvalue()).decode()}")
