"""The report: complete in itself, and nothing in it runs, loads or breaks out, whatever a notebook displays."""

import base64
import re
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import nbformat
import pytest
from toy_workbook import notebook

from f5lab import findings
from f5lab.execution import markup, reports

PNG = base64.b64encode(b"\x89PNG not really").decode()
V4 = nbformat.v4
LOADING = {"script", "iframe", "object", "embed", "link", "base", "form", "input", "svg", "video", "frame", "template"}


class Reader(HTMLParser):
    """Collects every tag, and every address that would be fetched without a click."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.open: list[str] = []
        self.feed(page)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def names(self) -> set[str]:
        return {tag for tag, _ in self.tags}

    def fetched(self) -> list[str]:
        return [a["src"] or "" for _, a in self.tags if "src" in a]

    def links(self) -> list[str]:
        return [a["href"] or "" for tag, a in self.tags if tag == "a" and "href" in a]


def assert_harmless(page: str) -> Reader:
    reader = Reader(page)
    assert not reader.names() & LOADING
    assert all(address.startswith(("data:image/", "data:audio/")) for address in reader.fetched())
    assert not [k for _, attributes in reader.tags for k in attributes if k.startswith("on") or k == "srcset"]
    assert not [link for link in reader.links() if re.match(r"\s*(javascript|data|file|vbscript):", link, re.I)]
    styles = "".join(a.get("style") or "" for _, a in reader.tags)
    assert "url(" not in styles
    assert "@import" not in page
    assert "require.js" not in page
    assert "MathJax" not in page
    return reader


def entry(**changes: Any) -> dict[str, Any]:
    parameter = {"value": "<i>5</i>", "default": 3, "meaning": "prompts & more"}
    return {
        "number": "00", "name": "00_toy", "title": "Toy <0>", "status": "ok", "seconds": 1.5, "findings": 2,
        "error": "", "parameters": {"n_prompts": parameter}, "report": "00_toy.html", "notebook": "00_toy.ipynb",
        **changes,
    }  # fmt: skip


def record(*entries: dict[str, Any], **changes: Any) -> dict[str, Any]:
    hardware = {"cpu": "toy <cpu>", "cores": 2, "memory_bytes": None, "gpus": [], "system": "Linux"}
    file = {"label": "checkpoint", "path": "/m/<b>.pt", "size": 12_900_000, "sha256": "ab" * 32, "files": 1}
    return {
        "run": "20260101T000000Z", "status": "ok", "started": "2026-01-01T00:00:00+00:00", "seconds": 12.0,
        "case": {"name": "toy", "question": "Why <this>?", "language": "pt", "path": "/c/case.yaml"},
        "versions": {"f5lab": "0.1", "torch": None}, "hardware": hardware, "commit": None, "commit_modified": None,
        "files": [file], "seeds": {"00_toy": {"seeds": [0, 1]}}, "notebooks": list(entries) or [entry()],
        "settings": {"device": "auto", "quick": False, "only": [], "set": {"n_prompts": "<5>"}}, **changes,
    }  # fmt: skip


def page_of(*outputs: Any, source: str = "show()", text: str = "", **changes: Any) -> str:
    node = notebook("00", source)
    probe = next(cell for cell in node.cells if cell.id == "probe")
    probe.outputs = list(outputs)
    if text:
        node.cells[0].source = text
    mine = entry(**changes)
    return reports.notebook_page(node, mine, record(mine))


def shown(**data: Any) -> nbformat.NotebookNode:
    return V4.new_output("display_data", {key.replace("__", "/"): value for key, value in data.items()})


@pytest.mark.parametrize(
    "attack",
    [
        "<script>alert(1)</script>",
        '<img src=x onerror="alert(1)">',
        '<img src="https://example.org/pixel.png">',
        '<svg onload="alert(1)"><script>alert(1)</script></svg>',
        '<a href="javascript:alert(1)">x</a>',
        '<a href="data:text/html,<script>alert(1)</script>">x</a>',
        '<iframe src="https://example.org"></iframe>',
        '<div style="background-image:url(https://example.org/a.png)">x</div>',
        '<style>@import "https://example.org/a.css";</style>',
        '<link rel="stylesheet" href="https://example.org/a.css">',
        '<audio autoplay src="https://example.org/a.mp3"></audio>',
        '<img src="data:text/html,<script>1</script>">',
        '<form action="https://example.org"><input name=x></form>',
        '<div style="position:fixed;top:0;width:100%">over everything</div>',
        "</main></body><script>alert(1)</script>",
        '<math><mtext><script>alert(1)</script></mtext></math><base href="https://example.org/">',
    ],
)
@pytest.mark.parametrize("kind", ["text/html", "text/markdown", "cell"])
def test_hostile_markup_is_taken_apart(attack: str, kind: str) -> None:
    if kind == "cell":
        page = page_of(text=f"# T\n\n{attack}")
    else:
        page = page_of(V4.new_output("display_data", {kind: attack}))
    assert_harmless(page)
    assert "position:fixed" not in page.replace(" ", "")
    assert page.count("</main>") == 1


@pytest.mark.parametrize("kind", ["stream", "error", "text/plain", "application/javascript", "image/png", "source"])
def test_text_stays_text(kind: str) -> None:
    attack = "<script>alert(1)</script>"
    outputs = {
        "stream": V4.new_output("stream", name="stdout", text=attack),
        "error": V4.new_output("error", ename=attack, evalue=attack, traceback=[attack]),
        "image/png": V4.new_output("display_data", {"image/png": f'"><{attack}', "text/plain": attack}),
    }
    output = outputs.get(kind) or V4.new_output("display_data", {kind: attack})
    page = page_of(source=attack) if kind == "source" else page_of(output)
    assert_harmless(page)


def test_policy_forbids_what_sanitising_might_miss() -> None:
    reader = Reader(page_of())
    policy = next(a["content"] for tag, a in reader.tags if tag == "meta" and "http-equiv" in a)
    assert "default-src 'none'" in policy
    assert "script-src" not in policy
    assert "http" not in policy


def test_figures_audio_and_tables_are_inside() -> None:
    html = '<audio controls src="data:audio/flac;base64,ZkxhQw=="></audio><table><tr><td>1</table>'
    page = page_of(shown(image__png=PNG + "\n", text__plain="<Figure>"), shown(text__html=html))
    reader = assert_harmless(page)
    assert f"data:image/png;base64,{PNG}" in reader.fetched()
    assert "data:audio/flac;base64,ZkxhQw==" in reader.fetched()
    assert ("audio", {"controls": "", "src": "data:audio/flac;base64,ZkxhQw=="}) in reader.tags
    assert '<div class="scroll" tabindex="0"><table><tbody><tr><td>1</td></tr></tbody></table></div>' in page
    assert all(attributes.get("alt") for tag, attributes in reader.tags if tag == "img")
    assert 'id="figure-1"' in page


def test_code_is_folded_and_parameters_are_a_table() -> None:
    page = page_of(source="a = 1\nb = 2")
    assert re.search(r'<details class="code"><summary>code · 2 lines', page)
    assert "&lt;i&gt;5&lt;/i&gt;" in page
    assert "prompts &amp; more" in page


def test_widgets_leave_a_note() -> None:
    view = {markup.WIDGET: {"model_id": "x"}, "text/plain": "interactive(children=(IntSlider(value=3)))"}
    page = page_of(V4.new_output("display_data", view))
    assert "live in JupyterLab only" in page
    assert "IntSlider" not in page


def test_errors_are_readable_and_their_cell_is_open() -> None:
    trace = ["\x1b[0;31mValueError\x1b[0m: no voice"]
    error = V4.new_output("error", ename="ValueError", evalue="no voice", traceback=trace)
    node = notebook("00", "raise ValueError")
    probe = next(cell for cell in node.cells if cell.id == "probe")
    probe.outputs, probe.metadata["papermill"] = [error], {"status": "failed"}
    mine = entry(status="failed", error="ValueError: no voice")
    page = reports.notebook_page(node, mine, record(mine))
    assert "\x1b" not in page
    assert 'id="stopped"' in page
    assert '<details class="code" open>' in page
    assert page.index("This notebook failed") < page.index("<h1")
    assert "<strong>not run</strong>" in page


def test_links_between_notebooks_lead_to_reports() -> None:
    page = page_of(text="# T\n\n[a](01_anatomy.ipynb#norms) [b](../data/x.wav) [c](https://example.org/paper)")
    links = Reader(page).links()
    assert "01_anatomy.html#norms" in links
    assert "../data/x.wav" not in links
    assert "https://example.org/paper" in links
    assert "index.html" in links


def test_progress_bars_show_their_last_state_and_floods_are_clipped() -> None:
    assert str(markup.plain("10%\r50%\r100%\n")) == "<pre>100%</pre>"
    long = str(markup.plain("x" * (markup.TEXT_CHARACTERS + 7)))
    assert "7 more characters" in long
    assert len(long) < markup.TEXT_CHARACTERS + 200


def finding(slug: str, **changes: Any) -> findings.Finding:
    fields = {"question": "Is it <so>?", "claim": f"Claim {slug} & more.", "verdict": "supported", **changes}
    return findings.Finding(id=f"00-{slug}", **fields)


def test_front_page_groups_findings_and_puts_failures_first(tmp_path: Path) -> None:
    bad = entry(number="01", name="01_bad", status="failed", error="ValueError: <x>", report="01_bad.html")
    known = [finding("a"), finding("b", question="Second?", verdict="refuted"), finding("c", verdict="inconclusive")]
    page = reports.index_page(tmp_path, record(entry(), bad, status="failed"), known)
    assert_harmless(page)
    assert page.index("1 notebook failed") < page.index("Verdict so far")
    assert "ValueError: &lt;x&gt;" in page
    first, second = page.index("<h3>Is it &lt;so&gt;?</h3>"), page.index("<h3>Second?</h3>")
    assert first < page.index("Claim c &amp; more.") < second < page.index("Claim b &amp; more.")
    for word in ("supported", "refuted", "inconclusive"):
        assert re.search(rf"</span> {word}</span>", page)
    assert "ab" * 32 in page
    assert "12.9 MB" in page
    assert "Why &lt;this&gt;?" in page


def test_evidence_links_to_file_cell_or_figure_and_never_outside(tmp_path: Path) -> None:
    (tmp_path / "audio").mkdir()
    (tmp_path / "audio" / "a.flac").write_bytes(b"fLaC")
    (tmp_path.parent / "secret.txt").write_text("x")
    nbformat.write(notebook("00", "1"), tmp_path / "00_toy.ipynb")
    named = ["audio/a.flac", "probe", "figure 2", "../secret.txt", "the table above"]
    page = reports.index_page(tmp_path, record(), [finding("a", evidence=named)])
    links = Reader(page).links()
    assert {"audio/a.flac", "00_toy.html#cell-probe", "00_toy.html#figure-2", "00_toy.html"} <= set(links)
    assert not [link for link in links if "secret" in link]


def test_front_page_of_a_run_that_just_began(tmp_path: Path) -> None:
    fresh = {k: v for k, v in entry(status="pending", seconds=None).items() if k not in ("report", "notebook")}
    page = reports.index_page(tmp_path, record(fresh, status="running", seconds=None), [])
    assert_harmless(page)
    assert "still going" in page
    assert "No finding was recorded." in page


def test_unpaired_surrogates_do_not_break_writing(tmp_path: Path) -> None:
    page = page_of(V4.new_output("stream", name="stdout", text="\ud800"))
    assert page.encode("utf-8").decode("utf-8") == page


def test_the_front_page_opens_with_the_verdict(tmp_path: Path) -> None:
    from f5lab import verdicts
    from f5lab.findings import Finding
    from f5lab.verdicts import Cause, Effect, Fix, Refuted, Unknown, Verdict

    attack = "<script>alert(1)</script>"
    verdict = Verdict(
        case="toy", run="r", healthy=False,
        causes=[Cause(id="mel-type", confidence=0.97, evidence=["06-mel-type"], fix=Fix(summary=attack, settings={"mel_spec_type": attack}),
                      effect=Effect(metric="CER", before=0.9, after=0.1, interval=(-0.9, -0.7), n=8))],
        refuted=[Refuted(id="vocoder-wrong", evidence=["06-none"])], unknown=[Unknown(id="tokenizer-drift", needs=attack)],
    )  # fmt: skip
    verdicts.save(verdict, tmp_path)
    (tmp_path / "audio").mkdir()
    (tmp_path / reports.BEFORE).write_bytes(b"fLaC")
    finding = Finding(id="06-mel-type", question="Why?", claim=f"mel-type: bigvgan {attack}", verdict="supported")
    page = reports.index_page(tmp_path, record(), [finding])
    assert_harmless(page)
    assert page.index("Cause: Mel of the other vocoder (97%)") < page.index("What it rests on")
    assert "--vocoder_name &#39;&lt;script&gt;alert(1)&lt;/script&gt;&#39;" in page  # quoted for a shell, then for HTML
    for part in (
        "CER (lower is better): 0.9 with it alone, 0.1 without",
        "vocoder-wrong",
        "tokenizer-drift",
        "data:audio/flac;base64,",
        "to paste into",
    ):
        assert part in page
    (tmp_path / "verdict.json").unlink()
    assert "Verdict so far" in reports.index_page(tmp_path, record(), [finding])


@pytest.mark.parametrize(
    ("said", "part"),
    [
        ("refuted", "still heard worse than the real recordings: CER +0.25; 95 % +0.15 to +0.35; n = 4. What remains is no setting"),
        ("supported", "heard as well as the real recordings: CER +0.25; 95 %"),
        ("inconclusive", "not shown to be heard as well as the real recordings"),
    ],
)
def test_what_the_repair_leaves_stands_under_the_verdict(said: str, part: str, tmp_path: Path) -> None:
    from f5lab import verdicts
    from f5lab.findings import Finding
    from f5lab.verdicts import Refuted, Verdict

    ruled = [Refuted(id="vocoder-wrong", evidence=["06-vocoder-wrong"])]
    verdicts.save(Verdict(case="toy", run="r", healthy=True, causes=[], refuted=ruled, unknown=[]), tmp_path)
    rest = Finding(id="06-remains", question="?", claim="As well.", verdict=said, value=0.25, unit="CER more", interval=(0.15, 0.35), n=4)
    out = Finding(id="06-vocoder-wrong", question="?", claim="vocoder-wrong is at work.", verdict="refuted")
    page = reports.index_page(tmp_path, record(), [rest, out])
    assert part in page and page.index("Repaired, the clips are") < page.index("Ruled out: 1 suspects")
    assert "<b>1</b> suspects ruled out" in page
    assert f"<b>{int(said == 'refuted')}</b> ✘ other claims refuted" in page
    as_it_runs = rest.model_copy(update={"claim": f"{verdicts.AS_IT_RUNS} heard as well as the real recordings."})
    page = reports.index_page(tmp_path, record(), [as_it_runs, out])
    assert f"As the case runs it, inference is {part}" in page and "Repaired" not in page
    unsaid = reports.index_page(tmp_path, record(), [rest.model_copy(update={"value": None}), out])
    assert "Repaired, the clips are" not in unsaid


def test_before_and_after_say_what_should_be_and_what_was_heard(tmp_path: Path) -> None:
    from f5lab import verdicts
    from f5lab.verdicts import Verdict

    verdicts.save(Verdict(case="toy", run="r", healthy=True, causes=[], refuted=[], unknown=[]), tmp_path)
    (tmp_path / "audio").mkdir()
    (tmp_path / reports.BEFORE).write_bytes(b"fLaC before")
    (tmp_path / reports.AFTER).write_bytes(b"fLaC after")
    clip = '<audio src="data:audio/flac;base64,{}"></audio><figcaption>{} \u00b7 p02 \u00b7 seed 0 \u00b7 heard: {}</figcaption>'
    shown = [
        clip.format(base64.b64encode(data).decode(), name, heard)
        for data, name, heard in ((b"fLaC before", "inference", "ova &lt;b&gt;"), (b"fLaC after", "repaired", "um livro"))
    ]
    cell = V4.new_code_cell("", outputs=[V4.new_output("display_data", {"text/html": "".join(shown)})])
    (tmp_path / "06_x.ipynb").write_text(nbformat.writes(V4.new_notebook(cells=[cell])), encoding="utf-8")
    told = record() | {
        "notebooks": [entry(number="06", name="06_x", notebook="06_x.ipynb", report="06_x.html")],
        "prompts": [{"id": "p01", "gen_text": "Outra frase"}, {"id": "p02", "gen_text": "Comprou um livro"}],
    }
    page = reports.index_page(tmp_path, told, [])
    assert_harmless(page)
    assert "\u201cComprou um livro\u201d" in page and "Outra frase" not in page
    assert "heard: ova &lt;b&gt;" in page and "heard: um livro" in page
    assert page.index("as inference runs") < page.index("ova &lt;b&gt;") < page.index("repaired")
