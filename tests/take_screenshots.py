"""Pictures of a run's best pages and of the listening panel into reports/example/: ``make screenshots RUN=reports/ptbr/...``.

Every picture shows what is on the page; nothing is drawn in. Each is under 200 kB.
"""

import io
import sys
import tempfile
from pathlib import Path
from typing import Any

import nbformat
from browsers import LiveNotebook, chromium, jupyter_lab
from PIL import Image

MOST_BYTES = 200_000
OUT = Path(__file__).resolve().parent.parent / "reports" / "example"

CELL = """from pathlib import Path
from f5lab import blind_widget, load_case
from f5lab.blind_listening import blind, blind_answers
from f5lab.audio import load_wave
case = load_case({case!r})
audio = Path({run!r}) / "audio"
a, b = (load_wave(audio / f"06-repair-{{n}}.flac") for n in ("01", "02"))
sides = blind.Side("inference as it runs", "a" * 32), blind.Side("repaired", "b" * 32)
contest = blind.Contest(*sides, (blind.Match("p01, seed 0", a, b, case.prompts[0].gen_text),))
blind_widget.listen(contest, blind_answers.AnswerBook("answers.jsonl"))"""


def save(png: bytes, name: str) -> Path:
    """Write a picture with as many colours as fit."""
    image = Image.open(io.BytesIO(png)).convert("RGB")
    colours = 256
    while True:
        buffer = io.BytesIO()
        image.quantize(colours, dither=Image.Dither.NONE).save(buffer, "PNG", optimize=True)
        if len(buffer.getvalue()) < MOST_BYTES:
            break
        if colours <= 16:
            raise SystemExit(f"{name}: {len(buffer.getvalue())} bytes with 16 colours")
        colours //= 2
    path = OUT / name
    path.write_bytes(buffer.getvalue())
    return path


def shoot_page(browser: Any, path: Path, height: int, anchor: str = "") -> bytes:
    """Return a picture of the top of a page, or of what begins at an element."""
    context = browser.new_context(viewport={"width": 1100, "height": height}, color_scheme="light")
    page = context.new_page()
    page.goto(path.as_uri(), wait_until="load")
    if anchor:
        page.locator(anchor).first.evaluate("e => window.scrollTo(0, e.getBoundingClientRect().top + scrollY - 70)")
    page.wait_for_timeout(500)
    png = page.screenshot()
    context.close()
    return png


def shoot_panel(browser: Any, run: Path) -> bytes:
    """Return a picture of the second trial of a listening session in JupyterLab, over a run's own clips."""
    from f5lab import paths

    with tempfile.TemporaryDirectory() as name:
        root, scratch = Path(name) / "work", Path(name) / "lab"
        root.mkdir()
        cell = nbformat.v4.new_code_cell(CELL.format(case=str(paths.default_case()), run=str(run)), id="listen")
        kernel = {"name": "python3", "display_name": "Python 3"}
        nbformat.write(nbformat.v4.new_notebook(cells=[cell], metadata={"kernelspec": kernel}), root / "listen.ipynb")
        with jupyter_lab(root, scratch) as lab:
            live = LiveNotebook(browser, lab, "listen.ipynb")
            live.run_all(120)
            panel = live.page.locator(".f5lab-blind")
            panel.locator("button.start").click()
            for key in ("1", "2", "ArrowRight", "Enter"):
                live.page.keyboard.press(key)
                live.page.wait_for_timeout(600)
            for key in ("1", "2", "ArrowLeft"):
                live.page.keyboard.press(key)
                live.page.wait_for_timeout(600)
            png = panel.screenshot()
            live.close()
    return png


def main(run: Path) -> None:
    """Take the pictures."""
    if not (run / "index.html").is_file():
        raise SystemExit(f"{run} is no run: make screenshots RUN=reports/<case>/<run-id>")
    with chromium() as browser:
        pictures = {
            "report.png": shoot_page(browser, run / "index.html", 1000),
            "inference.png": shoot_page(browser, run / "05_end_to_end_inference.html", 900, "#figure-1"),
            "blind.png": shoot_panel(browser, run),
        }
        for name, png in pictures.items():
            path = save(png, name)
            sys.stdout.write(f"{path.relative_to(OUT.parent.parent)}: {path.stat().st_size} bytes\n")


if __name__ == "__main__":
    if len(sys.argv) != 2:
        raise SystemExit("which run? make screenshots RUN=reports/<case>/<run-id>")
    main(Path(sys.argv[1]).resolve())
