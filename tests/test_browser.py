"""Reports of a hostile case in a real browser: nothing runs, nothing is fetched, players play, figures show, phones and paper do.

With ``F5LAB_KILLS=30`` the workbook's own notebooks on checkpoints and vocabs are opened too; with ``F5LAB_BROWSER=all`` (``make
test-browser``) the report of the bundled case.
"""

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import hostile_case
import pytest
from browsers import CHROMIUM, FIGURES, NO_CHROMIUM, PLAYERS, chromium
from toy_workbook import write_workbook

from f5lab import workbook

LONG = os.environ.get("F5LAB_KILLS", "3") != "3"
ALL = os.environ.get("F5LAB_BROWSER") == "all"
PHONE = {"viewport": {"width": 375, "height": 667}, "device_scale_factor": 2, "is_mobile": True, "has_touch": True}
WIDER = """() => { const wide = document.documentElement.clientWidth;
  return [document.documentElement.scrollWidth - wide, ...[...document.querySelectorAll('body *')]
    .filter(e => !e.closest('.scroll, .out, pre, .chips') && e.getBoundingClientRect().right > wide + 1)
    .map(e => e.outerHTML.slice(0, 120))]; }"""

pytestmark = [pytest.mark.browser, pytest.mark.skipif(CHROMIUM is None, reason=NO_CHROMIUM)]

LIVE = """() => [...document.querySelectorAll('*')].filter(e =>
  ['SCRIPT', 'IFRAME', 'OBJECT', 'EMBED', 'LINK', 'BASE', 'FORM', 'svg', 'VIDEO'].includes(e.tagName) ||
  e.getAttributeNames().some(n => n.startsWith('on') || n === 'srcdoc') ||
  /^\\s*(javascript|data|vbscript|file):/i.test(e.getAttribute('href') || '')).map(e => e.outerHTML.slice(0, 200))"""


@pytest.fixture(scope="module")
def reports(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """Return the folders of runs of a hostile case through the real pipeline."""
    root = tmp_path_factory.mktemp("hostile")
    case, folder = hostile_case.write_case(root), write_workbook(root, hostile_case.toy_nodes())
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PYTHONPATH", str(Path(__file__).parent))
        toy = workbook.run(case, out=root / "toy", notebooks_dir=folder)
        assert toy.failed == ["02_raised"]
        real = workbook.run(case, out=root / "real", only=["01", "04"] if LONG else ["01"], quick=True)
        assert real.failed == []
    return [toy.folder, real.folder]


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    with chromium() as running:
        yield running


class Watched:
    """A page whose requests, dialogs, console and errors are recorded; whatever is not the opened file is refused."""

    def __init__(self, browser: Any) -> None:
        self.context = browser.new_context()
        self.page = self.context.new_page()
        self.requests: list[str] = []
        self.events: list[str] = []
        self.page.on("request", lambda r: self.requests.append(r.url))
        self.page.on("dialog", lambda d: (self.events.append(f"dialog {d.message}"), d.dismiss()))
        self.page.on("console", lambda m: self.events.append(f"console {m.text}"))
        self.page.on("pageerror", lambda e: self.events.append(f"error {e}"))
        self.context.on("page", lambda p: self.events.append(f"window {p.url}"))
        self.context.route(
            "**/*", lambda r: r.continue_() if r.request.url.startswith(("file:", "data:")) else r.abort()
        )

    def open(self, path: Path) -> None:
        self.requests.clear()
        self.events.clear()
        self.page.goto(path.as_uri(), wait_until="load")
        self.page.evaluate("() => document.querySelectorAll('details').forEach(d => d.open = true)")
        self.page.evaluate("() => document.querySelectorAll('#clickme, button').forEach(e => e.click())")
        self.page.wait_for_timeout(300)

    def elsewhere(self, path: Path) -> list[str]:
        return [url for url in self.requests if not url.startswith("data:") and url.split("#")[0] != path.as_uri()]


def pages(reports: list[Path]) -> list[Path]:
    found = sorted(path for folder in reports for path in folder.glob("*.html"))
    assert len(found) >= 6
    return found


def test_no_payload_runs_or_fetches_anything(reports: list[Path], browser: Any) -> None:
    watched = Watched(browser)
    for path in pages(reports):
        watched.open(path)
        page = watched.page
        assert watched.elsewhere(path) == [], path.name
        assert page.url == path.as_uri()
        assert page.evaluate("() => window.canary") is None, path.name
        assert watched.events == [], path.name
        assert page.evaluate(LIVE) == [], path.name
        assert "owned" not in page.title()


def test_players_play_and_figures_show(reports: list[Path], browser: Any) -> None:
    watched = Watched(browser)
    watched.open(reports[0] / "00_shown.html")
    times = watched.page.evaluate(PLAYERS)
    assert len(times) == 4
    assert all(time == pytest.approx(1.0, abs=0.05) for time in times)
    widths = []
    for path in pages(reports):
        watched.open(path)
        widths += watched.page.evaluate(FIGURES)
    shown = [width for source, width in widths if source == "data:image/png"]
    assert len(shown) >= 3
    assert min(shown) > 100
    assert all(source.startswith("data:image/") for source, _ in widths if source)


def test_payloads_are_there_to_read(reports: list[Path], browser: Any) -> None:
    watched = Watched(browser)
    for name in ("00_shown.html", "01_recorded.html", "02_raised.html", "index.html"):
        watched.open(reports[0] / name)
        text = watched.page.evaluate("() => document.body.innerText")
        assert f"<script>{hostile_case.RUNS}" in text, name
        for character in "\u202e\u2066\u200b\x1b\x9b\x07\x08":
            assert character not in text, (name, hex(ord(character)))
        assert "⟨U+202E⟩" in text, name
    watched.open(reports[1] / "01_checkpoint_anatomy.html")
    assert "<img src=x onerror=" in watched.page.evaluate("() => document.body.innerText")


def test_the_watch_would_see_a_payload(tmp_path: Path, browser: Any) -> None:
    """The other tests hold only if this page, with the same payloads and nothing against them, sets everything off."""
    bad = tmp_path / "bad.html"
    bad.write_text("<!DOCTYPE html><body>" + "".join(hostile_case.PAYLOADS[:7]), encoding="utf-8")
    watched = Watched(browser)
    watched.open(bad)
    assert [e for e in watched.events if e.startswith("dialog")]
    assert watched.events.count("console canary") >= 3
    assert {"pixel.png", "a.css"} <= {url.rpartition("/")[2] for url in watched.elsewhere(bad)}
    still = tmp_path / "still.html"
    still.write_text(f"<!DOCTYPE html><body>{hostile_case.PAYLOADS[1]}", encoding="utf-8")
    watched = Watched(browser)  # the page before leads away from itself, whenever it likes
    watched.open(still)
    assert watched.page.evaluate("() => window.canary") == 1
    assert len(watched.page.evaluate(LIVE)) == 1


@pytest.fixture(scope="module")
def bundled(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """Return the folder of a quick run of the bundled case, where all is asked for."""
    if not ALL:
        return []
    done = workbook.run(out=tmp_path_factory.mktemp("bundled"), quick=True, device="cpu")
    assert done.failed == []
    return [done.folder]


def test_pages_fit_a_phone(reports: list[Path], bundled: list[Path], browser: Any) -> None:
    context = browser.new_context(**PHONE)
    page = context.new_page()
    for path in pages(reports + bundled):
        page.goto(path.as_uri(), wait_until="load")
        assert page.evaluate(WIDER) == [0], path.name
        page.evaluate("() => document.querySelectorAll('details').forEach(d => d.open = true)")
        assert page.evaluate(WIDER) == [0], f"{path.name}, all opened"
        heights = page.evaluate("() => [...document.querySelectorAll('nav.top a, summary')].map(e => e.getBoundingClientRect().height)")
        assert min(heights) >= 16, f"{path.name}: too small to touch"
    context.close()


def test_pages_print(reports: list[Path], bundled: list[Path], browser: Any) -> None:
    context = browser.new_context(viewport={"width": 740, "height": 1000})
    page = context.new_page()
    page.emulate_media(media="print")
    for path in pages(reports + bundled):
        page.goto(path.as_uri(), wait_until="load")
        paper = page.pdf(format="A4")
        assert paper.startswith(b"%PDF-"), path.name
        assert paper.count(b"/Type /Page\n") >= 1, path.name
        shown = page.evaluate("() => [...document.querySelectorAll('nav, audio')].filter(e => getComputedStyle(e).display !== 'none').length")
        assert shown == 0, path.name
        assert page.locator("h1").first.is_visible()
        assert page.evaluate("() => getComputedStyle(document.body).backgroundColor") == "rgb(255, 255, 255)"
        assert page.evaluate("() => document.documentElement.scrollWidth - document.documentElement.clientWidth") == 0, path.name
    context.close()
