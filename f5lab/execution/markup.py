"""From a notebook's outputs to HTML that needs no network and can run nothing."""

import base64
import html
import re
from typing import Any

import nh3
from markupsafe import Markup
from nbconvert.filters import ansi2html
from nbconvert.filters.markdown_mistune import IPythonRenderer, MarkdownWithMath
from nbformat import NotebookNode

from f5lab.inert import prose, spell_hidden

CONTENT_SECURITY_POLICY = (
    "default-src 'none'; style-src 'unsafe-inline'; img-src data:; media-src data:; base-uri 'none'; form-action 'none'"
)
TEXT_CHARACTERS = 20_000
"""Longest plain text shown of one output; the rest stays in the executed notebook."""

WIDGET = "application/vnd.jupyter.widget-view+json"
_IMAGES = ("image/png", "image/jpeg", "image/gif", "image/webp")
_TAGS = set(
    "a abbr audio b blockquote br caption code col colgroup dd del details div dl dt em figcaption figure h1 h2 h3 h4"
    " h5 h6 hr i img ins kbd li mark ol p pre s samp small source span strong sub summary sup table tbody td tfoot th"
    " thead tr u ul var wbr".split()
)
_ATTRIBUTES = {
    "*": {"class", "id", "title", "style", "lang", "dir", "role", "aria-label", "aria-hidden"},
    "a": {"href"},
    "audio": {"src", "controls", "preload"},
    "source": {"src", "type"},
    "img": {"src", "alt", "width", "height"},
    "details": {"open"},
    "ol": {"start"},
    "td": {"colspan", "rowspan"},
    "th": {"colspan", "rowspan", "scope"},
    "col": {"span"},
    "colgroup": {"span"},
}
_STYLES = set(
    "text-align vertical-align font-weight font-style font-family font-size white-space width max-width min-width"
    " color background-color padding margin margin-top margin-bottom border display flex-wrap gap opacity".split()
)
_DATA = {
    "img": re.compile(r"data:image/(png|jpeg|gif|webp|svg\+xml)[;,]"),
    "audio": re.compile(r"data:audio/[a-z0-9.+-]+[;,]"),
    "source": re.compile(r"data:audio/[a-z0-9.+-]+[;,]"),
}
_COLOUR = re.compile(r"(\x1b\[[0-9;]*m)")
_LINK = re.compile(r"(#|https://|http://|mailto:)", re.IGNORECASE)
_NOTEBOOK = re.compile(r"^(?:\./)?(\d\d_[a-z0-9_]+)\.(?:ipynb|html)(#[\w.-]*)?$")


def _filter_attribute(tag: str, name: str, value: str) -> str | None:
    if name == "src":
        return value if tag in _DATA and _DATA[tag].match(value) else None
    if name == "href":
        if found := _NOTEBOOK.match(value):
            return f"{found[1]}.html{found[2] or ''}"
        return value if _LINK.match(value) else None
    if name == "style" and ("url(" in value.lower() or "\\" in value):
        return None
    return value


_CLEANER = nh3.Cleaner(
    tags=_TAGS,
    clean_content_tags={"script", "style", "template", "noscript", "iframe", "object", "svg", "math"},
    attributes=_ATTRIBUTES,
    attribute_filter=_filter_attribute,
    filter_style_properties=_STYLES,
    url_schemes={"http", "https", "mailto", "data"},
    link_rel="noopener noreferrer",
)


def clean(source: str) -> Markup:
    """Return HTML with everything removed that runs, loads from elsewhere, lays itself over the page or turns its text.

    Audio and images stay when they are embedded (``data:``); links to other notebooks lead to their report; tables
    get a box that scrolls.
    """
    safe = spell_hidden(_CLEANER.clean(encodable(source)), keep="\n\t\r")
    safe = safe.replace("<table", '<div class="scroll" tabindex="0"><table').replace("</table>", "</table></div>")
    return Markup(safe)


def markdown(source: str) -> Markup:
    """Return Markdown as sanitised HTML; formulas stay as they are written."""
    renderer = IPythonRenderer(escape=False, exclude_anchor_links=True)
    return clean(MarkdownWithMath(renderer=renderer).render(source))


def plain(text: str) -> Markup:
    """Return plain text, with ANSI colours as classes, clipped; of a line that was rewritten its last state."""
    lines = [line.rstrip("\r").rsplit("\r", 1)[-1] for line in text.split("\n")]
    text = "\n".join(lines).strip("\n")
    rest = len(text) - TEXT_CHARACTERS
    pieces = _COLOUR.split(text[:TEXT_CHARACTERS])
    shown = ansi2html("".join(p if i % 2 else spell_hidden(p, keep="\n\t") for i, p in enumerate(pieces)))
    note = f'<p class="note">{rest:,} more characters are in the notebook.</p>' if rest > 0 else ""
    return Markup(f"<pre>{clean_spans(shown)}</pre>{note}")


def encodable(text: str) -> str:
    """Return `text` with unpaired surrogates, which no file can hold, written as escapes."""
    return text.encode("utf-8", "backslashreplace").decode()


def clean_spans(source: str) -> str:
    """Return the output of ansi2html with nothing in it but spans."""
    return nh3.clean(encodable(source), tags={"span"}, attributes={"span": {"class"}})


def output(node: NotebookNode) -> Markup:
    """Return one output of a cell as HTML."""
    if node.output_type == "error":
        return _error(node)
    if node.output_type == "stream":
        return _stream(node)
    data = node.get("data", {})
    if WIDGET in data:
        return Markup("")
    if "text/html" in data:
        return Markup('<div class="html">{}</div>').format(clean(_text(data["text/html"])))
    for kind in (*_IMAGES, "image/svg+xml"):
        if kind in data:
            return _image(kind, data[kind], node.get("metadata", {}), _text(data.get("text/plain", "")))
    if "text/markdown" in data:
        return Markup('<div class="prose">{}</div>').format(markdown(_text(data["text/markdown"])))
    for kind in ("text/latex", "text/plain"):
        if kind in data:
            return plain(_text(data[kind]))
    return Markup('<p class="note">Output of type {} is not shown.</p>').format(prose(", ".join(sorted(data)), 200) or "unknown")


def has_widget(cell: NotebookNode) -> bool:
    """Return whether a cell shows controls that only a live kernel can move."""
    return any(WIDGET in node.get("data", {}) for node in cell.get("outputs", ()))


def _text(value: Any) -> str:
    return "".join(value) if isinstance(value, list) else str(value)


def _image(kind: str, data: Any, metadata: Any, alternative: str) -> Markup:
    content = _text(data)
    if kind == "image/svg+xml":
        content = base64.b64encode(content.encode()).decode()
    size = metadata.get(kind, {}) if isinstance(metadata, dict) else {}
    width = f' width="{int(size["width"])}"' if str(size.get("width", "")).isdigit() else ""
    label = "figure" if alternative.startswith("<") or not alternative else prose(alternative, 200)
    source = "".join(content.split())
    if not re.fullmatch(r"[A-Za-z0-9+/=]*", source):
        return Markup('<p class="note">An image that could not be read.</p>')
    image = f'<img src="data:{kind};base64,{source}" alt="{html.escape(label)}"{width}>'
    return Markup(f'<figure class="plot">{image}</figure>')


def _stream(node: NotebookNode) -> Markup:
    text = _text(node.text)
    if not text.strip():
        return Markup("")
    if node.name != "stderr":
        return plain(text)
    lines = len(text.strip().splitlines())
    summary = f"{lines} line{'s' * (lines != 1)} of messages"
    return Markup('<details class="messages"><summary>{}</summary>{}</details>').format(summary, plain(text))


def _error(node: NotebookNode) -> Markup:
    head = Markup('<p class="what"><strong>{}</strong> {}</p>').format(prose(node.ename, 200), prose(node.evalue))
    trace = "\n".join(node.get("traceback", []))
    body = Markup("<details><summary>traceback</summary>{}</details>").format(plain(trace)) if trace else ""
    return Markup('<div class="error" role="alert">{}{}</div>').format(head, body)
