"""The notebooks as a person uses them: opened in JupyterLab, run by the menu, panels moved by keyboard, clips played.

`make test` opens a toy notebook; with ``F5LAB_BROWSER=all`` (`make test-browser`) every notebook of the workbook is opened too.
"""

import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import nbformat
import pytest
from browsers import CHROMIUM, NO_CHROMIUM, Lab, LiveNotebook, chromium, jupyter_lab

from f5lab import paths
from f5lab.blind_listening.blind_answers import AnswerBook
from f5lab.execution import parameters

ALL = os.environ.get("F5LAB_BROWSER") == "all"
FILES = sorted(paths.notebooks_dir().glob("[0-9][0-9]_*.ipynb"))
NOTEBOOK_S = 1200

pytestmark = [pytest.mark.browser, pytest.mark.skipif(CHROMIUM is None, reason=NO_CHROMIUM)]

SPOKEN = """import time, toy_contests
from f5lab import audio, bars
contest = toy_contests.contest()
for _ in bars.follow([1, 2, 3], "speaking: toy", "clip"):
    time.sleep(0.2)
audio.player([(m.text, m.b) for m in contest.matches])"""
LISTEN = """from f5lab import blind_widget
from f5lab.blind_listening import blind_answers
book = blind_answers.AnswerBook("blind.jsonl")
blind_widget.listen(contest, book, trials=6, seed=11)"""


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    with chromium() as running:
        yield running


@pytest.fixture(scope="module")
def lab(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Lab]:
    root, scratch = tmp_path_factory.mktemp("work"), tmp_path_factory.mktemp("lab")
    v4 = nbformat.v4
    node = v4.new_notebook(cells=[v4.new_code_cell(SPOKEN, id="spoken"), v4.new_code_cell(LISTEN, id="listen"), v4.new_markdown_cell("End.", id="end")])
    node.metadata["kernelspec"] = {"name": "python3", "display_name": "Python 3"}
    nbformat.write(node, root / "toy.ipynb")
    with jupyter_lab(root, scratch) as running:
        yield running


@pytest.fixture
def toy(browser: Any, lab: Lab) -> Iterator[LiveNotebook]:
    notebook = LiveNotebook(browser, lab, "toy.ipynb")
    yield notebook
    notebook.close()


def choose(panel: Any, **fields: str) -> None:
    """Fill in the start form by keyboard and begin."""
    panel.locator("select").select_option(fields["kind"])
    panel.locator('input[type="number"]').fill(fields["trials"])
    panel.locator('input[type="number"]').press("Tab")
    panel.page.keyboard.type("MK")
    panel.page.keyboard.press("Tab")
    panel.page.keyboard.press("Enter")


def answer(panel: Any, number: int, plays: str, arrow: str) -> None:
    """Answer one trial by keyboard alone."""
    page = panel.page
    panel.get_by_role("heading", name=f"Trial {number} of").wait_for(timeout=10_000)
    for at, key in enumerate(plays, start=1):
        page.keyboard.press(key)
        name = {"1": "Clip 1", "2": "Clip 2", "a": "A", "b": "B", "x": "X"}[key]
        count = plays[:at].count(key)  # a play that is stopped before it starts counts for nothing: each is waited for
        panel.get_by_role("button", name=f"Play {name}", exact=True).get_by_text(f"played {count}×").wait_for(timeout=5_000)
    page.keyboard.press(arrow)
    page.keyboard.press("Enter")


def test_a_blind_session_by_keyboard(toy: LiveNotebook) -> None:
    toy.run_all(120)
    page, panel = toy.page, toy.page.locator(".f5lab-blind")
    assert toy.bars_seen >= 1
    assert toy.durations()[:3] == pytest.approx([0.5] * 3, abs=0.02)
    cells = toy.cells
    page.locator(".jp-Notebook").press("Escape")
    choose(panel, kind="abx", trials="3")
    panel.get_by_role("alert").filter(has_text="fewer can not reach p").wait_for()
    choose(panel, kind="abx", trials="5")
    panel.get_by_role("heading", name="Trial 1 of 5").wait_for()
    page.keyboard.press("ArrowLeft")
    page.keyboard.press("Enter")
    panel.get_by_role("alert").filter(has_text="before every clip was played").wait_for()
    outline = panel.evaluate("e => getComputedStyle(e.ownerDocument.activeElement).outlineStyle")
    assert outline == "solid"
    lengths = panel.evaluate("e => [...e.querySelectorAll('audio')].map(a => [a.src.length, a.duration])")
    assert len(lengths) == 3
    assert len({tuple(length) for length in lengths}) == 1
    assert lengths[0][1] == pytest.approx(0.6, abs=0.01)
    text = panel.inner_html()
    assert "repaired" not in text
    assert "as it runs" not in text
    answer(panel, 1, "abxx", "ArrowLeft")
    answer(panel, 2, "xab", "ArrowRight")
    panel.get_by_role("heading", name="Trial 3 of 5").wait_for()
    assert toy.cells == cells, "a key of the panel reached the notebook"
    page.reload()  # the listener goes away: the answers stay
    toy.ready()
    (session,) = AnswerBook(toy.lab.root / "blind.jsonl").read()[0].values()
    assert (session.opened.listener, sorted(session.answers)) == ("MK", [1, 2])
    assert session.answers[1].replays == 1
    toy.run_all(60)
    panel.get_by_role("button", name="Go on: ABX, 2 of 5 answered").focus()
    page.keyboard.press("Enter")
    for number in (3, 4, 5):
        answer(panel, number, "abx", "ArrowLeft")
    panel.get_by_role("heading", name="Done").wait_for()
    (session,) = AnswerBook(toy.lab.root / "blind.jsonl").read()[0].values()
    assert session.finished
    assert f"{session.hits} of 5" in panel.inner_text()
    assert toy.cells == cells
    assert toy.errors() == []


def prepared(path: Path, root: Path) -> Path:
    """Write a copy of a notebook with its quick budget and the case's place set."""
    from papermill.iorw import load_notebook_node
    from papermill.parameterize import parameterize_notebook

    known = parameters.read_notebook(path)
    places = {name: p.default for name, p in known.parameters.items() if str(p.default).startswith("../")}
    values = dict(known.quick) | {name: str((path.parent / place).resolve()) for name, place in places.items()}
    values |= {"device": "cpu"} if "device" in known.parameters else {}
    if "answers" in known.parameters:
        values["answers"] = str(root / "answers.jsonl")
    node = parameterize_notebook(load_notebook_node(str(path)), values, kernel_name="python3", language="python")
    nbformat.write(node, root / path.name)
    return root / path.name


@pytest.mark.skipif(not ALL, reason="every notebook in JupyterLab: make test-browser")
@pytest.mark.parametrize("path", FILES, ids=lambda p: p.stem)
def test_every_notebook_runs_in_jupyterlab(path: Path, browser: Any, lab: Lab) -> None:
    prepared(path, lab.root)
    live = LiveNotebook(browser, lab, path.name)
    try:
        live.run_all(NOTEBOOK_S)
        assert live.errors() == []
        assert all(duration > 0 for duration in live.durations())
        node = live.saved()
        source = "".join(cell.source for cell in node.cells)
        assert live.page.locator(".jp-OutputArea table.f5lab").count() >= 1
        if "audio.player(" in source and path.stem[:2] == "05":
            assert len(live.durations()) >= 3
        if "widgets.synthesiser(" in source:
            synthesise(live)
        if "blind_widget.listen(" in source:
            listen(live)
        for slider in live.page.locator(".jp-OutputArea .widget-slider .noUi-handle").all()[:2]:
            slider.press("ArrowRight")
        assert live.errors() == []
    finally:
        live.close()


def synthesise(live: LiveNotebook) -> None:
    """Move the panel's sliders to a cheap setting and speak: one more player with sound in it."""
    before = len(live.durations())
    handle = live.page.get_by_role("slider", name="NFE").or_(live.page.locator(".widget-slider .noUi-handle")).first
    value = handle.get_attribute("aria-valuenow")
    handle.press("Home")
    assert handle.get_attribute("aria-valuenow") != value
    live.page.get_by_role("button", name="Synthesise").click()
    live.page.wait_for_function(f"() => document.querySelectorAll('.jp-OutputArea audio[src]').length > {before}", timeout=120_000)
    assert len([d for d in live.durations() if d > 0]) == before + 1


def listen(live: LiveNotebook) -> None:
    """A whole A/B session by keyboard; the answers are on the disk and counted when the notebook runs again."""
    panel = live.page.locator(".f5lab-blind")
    choose(panel, kind="ab", trials="6")
    for number in range(1, 7):
        answer(panel, number, "12", "ArrowRight")
    panel.get_by_role("heading", name="Done").wait_for()
    lines = (live.lab.root / "answers.jsonl").read_text(encoding="utf-8").splitlines()
    assert [json.loads(line)["event"] for line in lines] == ["session"] + ["answer"] * 6
