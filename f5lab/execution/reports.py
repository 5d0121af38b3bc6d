"""The report of a run: a front page and one HTML file a notebook, each needing nothing but itself."""

import base64
import copy
import json
import re
from collections.abc import Iterable, Mapping, Sequence
from datetime import datetime
from functools import cache
from pathlib import Path
from typing import Any
from urllib.parse import quote

import yaml
from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup
from nbconvert.exporters import TemplateExporter
from nbformat import NotebookNode
from pygments import highlight
from pygments.formatters import HtmlFormatter
from pygments.lexers import PythonLexer

from f5lab import __version__, captions, catalogue, tables, upstream_terms, usage, verdicts
from f5lab.execution import markup
from f5lab.findings import Finding
from f5lab.inert import markdown_code, markdown_text, spell_hidden
from f5lab.paths import TEMPLATES
from f5lab.provenance import duration_text, size_text
from f5lab.verdicts import Cause, Verdict

VERDICTS = ("supported", "refuted", "inconclusive")
BEFORE, AFTER = "audio/06-repair-01.flac", "audio/06-repair-02.flac"
"""Where notebook 06 leaves the first prompt as inference speaks it, and repaired."""
SETTINGS_CHARACTERS = 5000
MOST_NAME_CHARACTERS = 200
"""No file of a run has a longer path in it; the system refuses to look up one much longer."""
_FIGURE = re.compile(r"^fig(?:ure)?\.?\s*(\d+)$", re.IGNORECASE)


class _ReportExporter(TemplateExporter):
    """nbconvert with our own template, and escaping on."""

    file_extension = ".html"
    output_mimetype = "text/html"
    export_from_notebook = None

    def _create_environment(self) -> Environment:
        environment = super()._create_environment()
        environment.autoescape = True
        environment.undefined = StrictUndefined
        environment.finalize = _shown
        return environment


def _shown(value: Any) -> Any:
    """Write out what a reader can not see in every string that a template prints; our own HTML stays."""
    return spell_hidden(value, keep="\n\t") if isinstance(value, str) and not isinstance(value, Markup) else value


@cache
def _stylesheet() -> Markup:
    light = HtmlFormatter(style="friendly").get_style_defs(".highlight")
    dark = HtmlFormatter(style="github-dark").get_style_defs(".highlight")
    own = (TEMPLATES / "style.css").read_text(encoding="utf-8")
    return Markup(f"{light}\n@media screen and (prefers-color-scheme: dark) {{\n{dark}\n}}\n{own}")


def _code(source: str) -> Markup:
    return Markup(highlight(source, PythonLexer(), HtmlFormatter()))


def _shown_text(value: Any) -> str:
    return tables.cell_text(value, 400)


def _moment(stamp: str) -> str:
    return f"{datetime.fromisoformat(stamp):%Y-%m-%d %H:%M} UTC"


def notebook_page(node: NotebookNode, entry: Mapping[str, Any], record: Mapping[str, Any]) -> str:
    """Return an executed notebook as one HTML file.

    Parameters
    ----------
    node : NotebookNode
        Executed, as far as it came.
    entry : mapping
        Its entry in ``run.json``: name, title, status, seconds, error, parameters.
    record : mapping
        What ``run.json`` holds.
    """
    node = copy.deepcopy(node)
    _number_figures(node)
    exporter = _ReportExporter(template_name="report", extra_template_basedirs=[str(TEMPLATES)])
    for name, function in {
        "code": _code,
        "markdown": markup.markdown,
        "output": markup.output,
        "shown": _shown_text,
        "duration": duration_text,
        "moment": _moment,
    }.items():
        exporter.register_filter(name, function)
    resources = {
        "css": _stylesheet(),
        "policy": markup.CONTENT_SECURITY_POLICY,
        "entry": entry,
        "record": record,
        "neighbours": _neighbours(entry, record),
        "has_widget": markup.has_widget,
    }
    body, _ = exporter.from_notebook_node(node, resources)
    return markup.encodable(body)


def _neighbours(entry: Mapping[str, Any], record: Mapping[str, Any]) -> tuple[Any, Any]:
    listed = [other["name"] for other in record["notebooks"]]
    position = listed.index(entry["name"])
    before = record["notebooks"][position - 1] if position else None
    after = record["notebooks"][position + 1] if position + 1 < len(listed) else None
    return before, after


def _number_figures(node: NotebookNode) -> None:
    """Give the first output of each figure its number, for links from findings."""
    count = 0
    for cell in node.cells:
        for output in cell.get("outputs", ()):
            if any(kind.startswith("image/") for kind in output.get("data", {})):
                count += 1
                output.metadata["f5lab_figure"] = count


def index_page(folder: Path, record: Mapping[str, Any], findings: Sequence[Finding]) -> str:
    """Return the front page of a run.

    Parameters
    ----------
    folder : Path
        The run's folder; evidence that is a file in it gets a link.
    record : mapping
        What ``run.json`` holds.
    findings : sequence of Finding
    """
    entries = {entry["number"]: entry for entry in record["notebooks"]}
    anchors = {number: _cell_ids(folder, entry) for number, entry in entries.items()}
    rows = [_finding_row(finding, folder, entries, anchors) for finding in findings]
    verdict = verdicts.load(folder / verdicts.FILE) if (folder / verdicts.FILE).is_file() else None
    return page(
        "index.html.j2",
        verdict=_verdict_view(verdict, rows, folder, record) if verdict else None,
        used=usage.joined([entry["usage"] for entry in record["notebooks"] if entry.get("usage")]),
        bundled=str(record["case"]["path"]).startswith("data/cases/"),
        record=record,
        rows=rows,
        questions=_by_question(rows),
        counts={name: sum(row["finding"].verdict == name for row in rows) for name in VERDICTS},
        signs=tables.SIGNS,
        failed=[entry for entry in record["notebooks"] if entry["status"] == "failed"],
        done=[entry for entry in record["notebooks"] if entry["status"] == "ok"],
    )


def page(template: str, **values: Any) -> str:
    """Return a template of ours filled in, with the reports' look, policy and filters; everything is escaped."""
    environment = Environment(
        loader=FileSystemLoader(TEMPLATES), autoescape=True, undefined=StrictUndefined, trim_blocks=True,
        lstrip_blocks=True, finalize=_shown,
    )  # fmt: skip
    environment.filters |= {"spent": usage.sentence, "shown": _shown_text, "duration": duration_text, "size": size_text, "moment": _moment}
    filled = environment.get_template(template).render(
        css=_stylesheet(), policy=markup.CONTENT_SECURITY_POLICY, f5lab=__version__, **values
    )
    return markup.encodable(filled)


def _verdict_view(
    verdict: Verdict, rows: Sequence[Mapping[str, Any]], folder: Path, record: Mapping[str, Any]
) -> dict[str, Any]:
    """Return what the front page shows of a verdict: causes with their evidence, clips, and the Markdown to paste."""
    by_id = {row["finding"].id: row for row in rows}
    claims = {name: row["finding"].claim.partition(": ")[2] for name, row in by_id.items()}
    beside = verdicts.notes(row["finding"] for row in rows)
    return {
        "headline": verdict.headline,
        "notes": beside,
        "causes": [
            {"cause": cause, "title": catalogue.title_of(cause.id), **_settings_texts(cause),
             "upstream": upstream_terms.lines(cause.fix.settings)[:SETTINGS_CHARACTERS],
             "claims": [(name, claims.get(name, ""), _best_link(by_id.get(name))) for name in cause.evidence]}
            for cause in verdict.causes
        ],
        "refuted": [(item.id, claims.get(item.evidence[0], "") if item.evidence else "") for item in verdict.refuted],
        "unknown": verdict.unknown,
        "clips": _before_and_after(folder, record),
        "markdown": verdicts.markdown(verdict, claims, beside) + "\n" + maintainer_markdown(record),
    }  # fmt: skip


def _best_link(row: Mapping[str, Any] | None) -> str | None:
    """Return the first place that a finding names as evidence, else its notebook."""
    if row is None:
        return None
    return next((link for _, link in row["evidence"] if link), row["page"])


def _before_and_after(folder: Path, record: Mapping[str, Any]) -> list[dict[str, str]]:
    """Return the first prompt's clips as inference runs and repaired: label, data, and what its notebook says of each."""
    entry = next((e for e in record["notebooks"] if e["number"] == BEFORE.split("/")[1][:2]), {})
    said = dict(captions.players({"cells": _cells(folder, entry)}))
    found = []
    for label, file in (("as inference runs", BEFORE), ("repaired", AFTER)):
        if (folder / file).is_file():
            audio = (folder / file).read_bytes()
            caption = said.get(captions.mark(audio), "")
            text = next((p["gen_text"] for p in record.get("prompts") or () if f" · {p['id']} · " in caption), "")
            found.append({"label": label, "data": base64.b64encode(audio).decode(), "caption": caption, "text": text})
    return found


def maintainer_markdown(record: Mapping[str, Any]) -> str:
    """Return what a maintainer asks for in an issue: versions, system, GPU, checkpoint and model config, as Markdown."""
    versions, hardware = record["versions"], record["hardware"]
    names = ("f5-tts", "torch", "torchaudio", "python", "f5lab")
    machine = f"{hardware['system']}; {hardware['cpu']}, {hardware['cores']} cores; GPU: {'; '.join(hardware['gpus']) or 'none'}"
    lines = [
        "**Environment**",
        "",
        "- " + markdown_text(", ".join(f"{name} {versions.get(name) or 'not installed'}" for name in names)),
        f"- {markdown_text(machine)}",
    ]
    for file in record["files"]:
        if file["label"] in ("checkpoint", "vocab", "training.vocab", "inference.vocab"):
            name, digest = (markdown_code(text) for text in (Path(file["path"]).name, file["sha256"]))
            lines.append(f"- {file['label']} {name}, {size_text(file['size'])}, sha256 {digest}")
    for side, arch in (record.get("model") or {}).items():
        said = json.dumps(arch, ensure_ascii=False, default=str) if arch else "not stated"
        lines.append(f"- model config, {markdown_text(side)}: {markdown_code(said)}")
    return "\n".join(lines) + "\n"


def _settings_texts(cause: Cause) -> dict[str, str]:
    """Return as YAML what stands in a case file's ``inference:`` block, and what is changed elsewhere."""
    parts = upstream_terms.split(cause.fix.settings)
    return {
        name: yaml.safe_dump(part, sort_keys=False, allow_unicode=True)[:SETTINGS_CHARACTERS] if part else ""
        for name, part in zip(("settings", "elsewhere"), parts, strict=True)
    }


def _by_question(rows: Iterable[dict[str, Any]]) -> list[tuple[str, list[dict[str, Any]]]]:
    groups: dict[str, list[dict[str, Any]]] = {}
    for row in rows:
        groups.setdefault(row["finding"].question, []).append(row)
    return list(groups.items())


def _finding_row(
    finding: Finding, folder: Path, entries: Mapping[str, Any], anchors: Mapping[str, set[str]]
) -> dict[str, Any]:
    number = finding.id[:2]
    page = entries[number].get("report") if number in entries else None
    evidence = [(name, _evidence_link(name, folder, page, anchors.get(number, set()))) for name in finding.evidence]
    return {"finding": finding, "page": page, "evidence": evidence}


def _evidence_link(name: str, folder: Path, page: str | None, ids: set[str]) -> str | None:
    """Return where a piece of evidence is: a file of the run, a cell of the notebook, or one of its figures."""
    target = (folder / name).resolve()
    if name and len(name) <= MOST_NAME_CHARACTERS and target.is_relative_to(folder.resolve()) and target.is_file():
        return quote(target.relative_to(folder.resolve()).as_posix().encode("utf-8", "surrogateescape"))
    if page is None:
        return None
    key = name.removeprefix("cell:").removeprefix("#").strip()
    if key in ids:
        return f"{page}#cell-{key}"
    if found := _FIGURE.match(key):
        return f"{page}#figure-{int(found[1])}"
    return page


def _cell_ids(folder: Path, entry: Mapping[str, Any]) -> set[str]:
    return {cell.get("id", "") for cell in _cells(folder, entry)}


def _cells(folder: Path, entry: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Return the cells of a run's executed notebook; none where it was not executed or is damaged since."""
    source = folder / str(entry.get("notebook", ""))
    if not source.is_file():
        return []
    try:
        return list(json.loads(source.read_text(encoding="utf-8"))["cells"])
    except (ValueError, KeyError, TypeError):
        return []
