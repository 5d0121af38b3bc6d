"""Reports of a hostile case in a real browser: nothing runs, nothing is fetched, players play and figures show.

With ``F5LAB_KILLS=30`` the workbook's own notebooks on checkpoints and vocabs are opened too.
"""

import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import hostile_case
import pytest
from toy_workbook import write_workbook

from f5lab import workbook

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
FLAGS = [
    "--no-sandbox", "--disable-gpu", "--no-first-run", "--disable-background-networking", "--disable-component-update",
    "--disable-sync", "--disable-quic", "--autoplay-policy=no-user-gesture-required",
]  # fmt: skip
LONG = os.environ.get("F5LAB_KILLS", "3") != "3"

pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="no Chromium: sudo apt-get install chromium")

PLAYERS = """async () => {
  const times = [];
  for (const player of document.querySelectorAll('audio[src]')) {
    player.preload = 'metadata'; player.load();
    await new Promise(done => { player.onloadedmetadata = player.onerror = done; setTimeout(done, 5000); });
    times.push(player.duration);
  }
  return times;
}"""
FIGURES = "() => [...document.querySelectorAll('img')].map(i => [i.src.slice(0, 14), i.naturalWidth])"
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
    from playwright.sync_api import sync_playwright

    with sync_playwright() as driver:
        running = driver.chromium.launch(executable_path=CHROMIUM, args=FLAGS)
        yield running
        running.close()


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
    watched.open(still)
    assert watched.page.evaluate("() => window.canary") == 1
    assert len(watched.page.evaluate(LIVE)) == 1
