"""Hiding, before a run is handed on, what names a machine or a person, and on request what was said and how it sounds.

``paths`` hides folders, user and host names, mail and private network addresses. ``texts`` hides the prompts, the
transcripts and what spells them out; ``voices`` takes out the audio, the figures that show it and the recordings' names.
Figures are pictures that nobody reads here: those of a cell that handles texts (voices) go as a whole.
"""

import copy
import getpass
import re
import socket
import unicodedata
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import nbformat
from bs4 import BeautifulSoup
from nbformat import NotebookNode

from f5lab.errors import LabError, RunError
from f5lab.findings import Finding
from f5lab.finished import privacy
from f5lab.finished.runs import StoredRun
from f5lab.specs import load_case
from f5lab.verdicts import Verdict

WISHES = ("paths", "texts", "voices")
HIDDEN = "(hidden)"
TEXT_COLUMNS = {"text", "texts", "heard", "transcript", "ref text", "gen text", "spoken", "said", "token", "character"}
SPELLED = ".f5lab-trace, .f5lab-alignment"
_NO_NAMES = {
    "root", "user", "users", "home", "admin", "ubuntu", "debian", "runner", "jovyan", "nobody", "shared", "guest",
    "localhost", "app", "work", "data", "test", "lab", "ec2-user", "vagrant", "model", "audio",
}  # fmt: skip
_HANDLES_TEXT = re.compile(r"text|transcri|heard|prompt|token|trace|item", re.I)
_HANDLES_VOICE = re.compile(r"mel|wave|pitch|f0|spectr|clip|sample|audio", re.I)
_QUOTED = re.compile("“[^”]*”")
_HEARD = re.compile(r"heard: .*", re.S)
_PART = r"[^\s/\"'<>|:*?`()\[\]{},;\\]+"
_HOME = re.compile(r"(?:/home/|/Users/|\\Users\\)([\w.@+-]+)")
_MAIL = re.compile(r"[\w.+-]+@[\w-]+\.[\w.-]+\w")
_PRIVATE = re.compile(
    r"(?<![\w.])(?:10|127|192\.168|172\.(?:1[6-9]|2\d|3[01])|100\.(?:6[4-9]|[7-9]\d|1[01]\d|12[0-7]))(?:\.\d{1,3}){2,3}(?::\d+)?(?![\w.])"
    r"|(?<![\w:])(?:fe80|f[cd][0-9a-f]{2})(?::{1,2}[0-9a-f]{1,4})+(?![\w:])", re.IGNORECASE,
)  # fmt: skip


def wishes(text: str) -> frozenset[str]:
    """Return what ``--redact`` asks for; empty: nothing. Texts and voices include paths.

    Raises
    ------
    UsageError
        Something else is named.
    """
    from f5lab.errors import UsageError

    named = {part.strip() for part in text.split(",") if part.strip()}
    if unknown := named - set(WISHES):
        raise UsageError("--redact", offenders=unknown, expected=f"among {', '.join(WISHES)}")
    return frozenset(named | {"paths"}) if named else frozenset()


class Redactor:
    """What is hidden in one run.

    Parameters
    ----------
    run : StoredRun
    wanted : frozenset of str
        From `wishes`.

    Raises
    ------
    RunError
        Texts are to be hidden, and neither the run nor its case file says which there are.
    """

    def __init__(self, run: StoredRun, wanted: frozenset[str]) -> None:
        self.run, self.wanted = run, wanted
        self.texts = _case_texts(run) if "texts" in wanted else []
        self.notebooks = {entry["name"]: run.notebook(entry) for entry in run.record["notebooks"]}
        said = (
            {text for node in self.notebooks.values() if node for text in _listed_texts(node)} if self.texts else set()
        )
        self._texts = _text_hider([*self.texts, *(text for text in said if len(_words(text)) > 1)])
        self._machine = _machine_hider(run, wanted) if "paths" in wanted else (lambda text: text)

    def text(self, text: str) -> str:
        """Return a string without what is to be hidden."""
        return privacy.outside_embedded(lambda part: self._machine(self._texts(part)))(text)

    def record(self) -> dict[str, Any]:
        """Return ``run.json`` without what is to be hidden."""
        record = copy.deepcopy(self.run.record)
        if self.texts:
            for prompt in record.get("prompts") or ():
                prompt |= {key: HIDDEN for key in ("ref_text", "gen_text") if key in prompt}
        if "paths" in self.wanted:
            for file in (record["case"], *record["files"]):
                file["path"] = re.split(r"[/\\]", file["path"])[-1]
        return _in_keys(privacy.in_strings(record, self.text), self.text)

    def findings(self) -> list[Finding]:
        """Return the findings without what is to be hidden."""
        return [Finding.model_validate(privacy.in_strings(f.model_dump(), self._keep_ids)) for f in self.run.findings]

    def verdict(self) -> Verdict | None:
        """Return the verdict without what is to be hidden."""
        verdict = self.run.verdict
        if verdict is None:
            return None
        hidden = _in_keys(privacy.in_strings(verdict.model_dump(), self._keep_ids), self.text)
        return Verdict.model_validate(hidden | {"case": self.text(verdict.case), "run": self.text(verdict.run)})

    def _keep_ids(self, text: str) -> str:
        return text if re.fullmatch(r"[\w.-]*|audio/[\w.-]+", text) else self.text(text)

    def notebook(self, name: str) -> NotebookNode | None:
        """Return an executed notebook without what is to be hidden; None where there is none."""
        node = self.notebooks[name]
        if node is None or not self.wanted:
            return node
        node = copy.deepcopy(node)
        node.metadata.pop("widgets", None)  # the state of panels: texts in their fields, figures in their outputs
        for cell in node.cells:
            cell.pop("attachments", None)
            cell.metadata = {key: value for key, value in cell.metadata.items() if key in ("tags", "papermill")}
            if cell.cell_type == "code":
                cell.outputs = [self._output(output, cell.source) for output in cell.outputs]
        return privacy.in_notebook(node, self.text)

    def _output(self, output: NotebookNode, source: str) -> NotebookNode:
        data = output.get("data", {})
        hides_text, hides_voice = bool(self.texts), "voices" in self.wanted
        if any(kind.startswith("image/") for kind in data):
            if hides_text and (_HANDLES_TEXT.search(source) or HIDDEN in self._texts(source)):
                return _note("A figure is left out: its cell handles texts.")
            if hides_voice and _HANDLES_VOICE.search(source):
                return _note("A figure is left out: its cell handles voices.")
        if "text/html" in data and (hides_text or hides_voice):
            output.data["text/html"] = self._html(_joined(data["text/html"]), hides_text, hides_voice)
        if hides_text and self._spells(output):
            return _note("An output is left out: it spells out a text of the case.")
        return output

    def _html(self, source: str, hides_text: bool, hides_voice: bool) -> str:
        soup = BeautifulSoup(source, "html.parser")
        if hides_voice:
            for sound in soup.find_all(["audio", "source", "img"]):
                sound.replace_with(soup.new_string("(left out)"))
        if hides_text:
            for spelled in soup.select(SPELLED):
                spelled.replace_with(soup.new_string(HIDDEN))
            for _, cell in _text_cells(soup):
                cell.string = HIDDEN
            for caption in soup.find_all("figcaption"):
                caption.string = _HEARD.sub(f"heard: {HIDDEN}", caption.get_text())
        return str(soup)

    def _spells(self, output: NotebookNode) -> bool:
        """Return whether the visible letters of an output, tags and gaps left out, still contain a text."""
        shown = self.text(_joined(output.get("text", "")) + _joined(output.get("traceback", "")))
        for kind, value in output.get("data", {}).items():
            if kind == "text/html":
                shown += BeautifulSoup(self.text(_joined(value)), "html.parser").get_text()
            elif kind.startswith("text/"):
                shown += self.text(_joined(value))
        letters = "".join(_words(shown))
        return any(spelled in letters for text in self.texts if len(spelled := "".join(_words(text))) >= 6)

    def check(self, page: str) -> None:
        """Make sure that no text of the case is left on a page.

        Raises
        ------
        RunError
            One is.
        """
        shown = f" {' '.join(_words(BeautifulSoup(page, 'html.parser').get_text(' ')))} " if self.texts else ""
        left = [text for text in self.texts if len(words := _words(text)) > 1 and f" {' '.join(words)} " in shown]
        if left:
            raise RunError(
                f"{len(left)} texts of the case could not be hidden", next_step="share without --redact=texts"
            )


def _case_texts(run: StoredRun) -> list[str]:
    prompts = run.record.get("prompts")
    if prompts is None:
        try:
            case = load_case(privacy.locate(run.record["case"]["path"], run.folder))
        except LabError as error:
            raise RunError(
                f"run {run.record['run']} does not say which texts its case has, and its case can not be read",
                next_step="run the workbook again with this version, or share without texts",
            ) from error
        prompts = [{"ref_text": p.ref_text, "gen_text": p.gen_text} for p in case.prompts]
    texts = {str(prompt.get(key) or "") for prompt in prompts for key in ("ref_text", "gen_text")}
    return sorted((text for text in texts if _words(text)), key=len, reverse=True)


def _words(text: str) -> list[str]:
    return re.findall(r"[^\W_]+", unicodedata.normalize("NFC", text).casefold())


def _text_cells(soup: BeautifulSoup) -> Iterable[tuple[str, Any]]:
    """Yield (column, cell) of every table column that holds texts."""
    for table in soup.find_all("table"):
        names = [head.get_text().strip().lower().replace("_", " ") for head in table.select("thead th")]
        for row in table.select("tbody tr"):
            for name, cell in zip(names, row.find_all(["td", "th"], recursive=False), strict=False):
                if name in TEXT_COLUMNS:
                    yield name, cell


def _listed_texts(node: NotebookNode) -> set[str]:
    """Return what the text columns and captions of a notebook's outputs say, transcripts among it."""
    found: set[str] = set()
    for cell in node.cells:
        for output in cell.get("outputs", ()):
            source = _joined(output.get("data", {}).get("text/html", ""))
            if "<table" in source or "heard: " in source:
                soup = BeautifulSoup(source, "html.parser")
                found |= {cell.get_text() for _, cell in _text_cells(soup)}
                heard = (
                    re.search(r"heard: (.*?)(?: \([\d.]+ s\))?$", c.get_text()) for c in soup.find_all("figcaption")
                )
                found |= {match[1] for match in heard if match}
    return found


def _text_hider(texts: Iterable[str]) -> Callable[[str], str]:
    """Return a function that hides texts whatever stands between their words; single words of three letters stay."""
    known = sorted({tuple(_words(text)) for text in texts}, key=lambda words: -sum(map(len, words)))
    patterns = [r"[\W_]+".join(map(re.escape, words)) for words in known if sum(map(len, words)) > 3]
    if not patterns:
        return lambda text: text
    found = re.compile(rf"(?<![^\W_])(?:{'|'.join(patterns)})(?![^\W_])", re.IGNORECASE)
    return lambda text: _QUOTED.sub(f"“{HIDDEN}”", found.sub(HIDDEN, unicodedata.normalize("NFC", text)))


def _folders(known: Iterable[str]) -> list[re.Pattern[str]]:
    """Return what folders look like in a text; of those whose names hold spaces or brackets the names have to be `known`."""
    part = "|".join([*map(re.escape, sorted(known, key=len, reverse=True)), _PART])
    return [
        re.compile(r"file://[^\s\"'<>]*/"),
        re.compile(r"(?<![\w.~$:/<])/(?:home|Users|media|mnt|Volumes|root|srv)/(?:[^\n\"'<>|:*?`/]+/)+"),  # names of folders may hold spaces
        re.compile(rf"(?:(?<![\w.~$:/<])|(?<=\dm))/(?:(?:{part})/)+"),
        re.compile(rf"(?<![\w/])~/(?:(?:{part})/)*"),
        re.compile(rf"(?<![\w/])(?:\.\./)+(?:(?:{part})/)*"),
        re.compile(rf"\$CASE/(?:(?:{part})/)*"),
        re.compile(r"(?<!\w)[A-Za-z]:\\{1,2}(?:[^\\\n\"'<>|]+\\{1,2})+"),
        re.compile(r"\\{2,4}[\w.-]+\\{1,2}(?:[^\\\n\"'<>|]+\\{1,2})*"),
    ]


def _machine_hider(run: StoredRun, wanted: frozenset[str]) -> Callable[[str], str]:
    """Return a function that hides folders, names, addresses, and with voices the names of the recordings."""
    people = _people(run)
    names = dict.fromkeys((form for name in people for form in (name, name.lower(), name.capitalize(), name.upper())), HIDDEN)
    files = {}
    for file in run.record["files"]:
        parts = re.split(r"[/\\]", file["path"])
        if "voices" in wanted and file["label"].startswith("prompts."):
            files[parts[-1]] = file["label"] + Path(parts[-1]).suffix
        files["/".join(parts[-2:])] = files.get(parts[-1], parts[-1])
    places = [file["path"] for file in (run.record["case"], *run.record["files"])]
    folders = _folders({part for place in places for part in re.split(r"[/\\]", place)[:-1] if not re.fullmatch(rf"(?:{_PART})?", part)})
    hide_files, hide_names = privacy.hider(files, whole_words=True), privacy.hider(names, whole_words=True)

    def hide(text: str) -> str:
        text = hide_files(text)
        for pattern in folders:
            text = pattern.sub("…/", text)
        return _PRIVATE.sub(HIDDEN, _MAIL.sub(HIDDEN, hide_names(text)))

    return hide


def _people(run: StoredRun) -> set[str]:
    """Return names of users and hosts: this machine's, and those of home folders that the run mentions."""
    found = {Path.home().name, socket.gethostname(), socket.gethostname().partition(".")[0]}
    try:
        found.add(getpass.getuser())
    except (OSError, KeyError):  # no such user in the system's list
        pass
    for entry in run.record["notebooks"]:
        file = run.folder / f"{entry['name']}.ipynb"
        if file.is_file():
            found |= set(_HOME.findall(file.read_text(encoding="utf-8", errors="replace")))
    found |= set(_HOME.findall(str(run.record)))
    return {name for name in found if len(name) > 2 and name.lower() not in _NO_NAMES}


def _in_keys(value: Any, function: Callable[[str], str]) -> Any:
    """Return a JSON-like value with `function` applied to the keys that look like paths; others are f5lab's own."""
    if isinstance(value, dict):
        return {
            function(key) if isinstance(key, str) and re.search(r"[/\\]", key) else key: _in_keys(item, function)
            for key, item in value.items()
        }
    return [_in_keys(item, function) for item in value] if isinstance(value, list) else value


def _joined(text: Any) -> str:
    return "".join(text) if isinstance(text, list) else str(text)


def _note(text: str) -> NotebookNode:
    return nbformat.v4.new_output("display_data", {"text/html": f"<p>{text}</p>", "text/plain": text})
