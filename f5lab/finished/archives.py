"""A run as an archive that a colleague without the checkpoint opens in JupyterLab: sees, hears and filters what was found."""

import io
import json
import zipfile
from datetime import datetime
from pathlib import Path

import nbformat

from f5lab import paths
from f5lab.finished.runs import StoredRun

OPENING = "open_me.ipynb"
_README = """# {name}

An investigation of an F5-TTS checkpoint by f5lab {version}, without the checkpoint.

- `report.html`: everything in one page; opens in any browser, needs no network.
- `{opening}`: the findings as a table to filter, and every clip to hear. Needs JupyterLab, pandas and ipywidgets:
  `pip install jupyterlab pandas ipywidgets`, then `jupyter lab {opening}` and Run All.
- `notebooks/`: the executed notebooks with their outputs. JupyterLab mutes the players of notebooks that it does not
  trust: choose "Trust Notebook" in the command palette to hear them there. They can be read here, not run again: that
  needs f5lab, the checkpoint and the case file.
- `findings.jsonl`, `verdict.json`, `run.json`: the same for programs; `audio/`: what was spoken; `clips.json`: which clip is what.
{missing}"""

_CELLS = (
    "# {name}\n\nRun all cells. Nothing here needs the checkpoint, f5lab or a network.",
    """import json
from pathlib import Path

import ipywidgets as widgets
import pandas as pd
from IPython.display import Audio, Markdown, display

record = json.loads(Path("run.json").read_text(encoding="utf-8"))
lines = Path("findings.jsonl").read_text(encoding="utf-8").split("\\n")
columns = ["id", "verdict", "claim", "value", "unit", "interval", "n", "limitation", "question", "evidence"]
findings = pd.DataFrame([json.loads(line) for line in lines if line], columns=columns)
clips = json.loads(Path("clips.json").read_text(encoding="utf-8"))
print(record["case"]["question"])
print(f"{len(findings)} findings, {len(clips)} clips, run {record['run']} by f5lab {record['versions']['f5lab']}")""",
    "## The findings\n\nFilter by notebook, verdict and words; the table follows.",
    """notebook = widgets.Dropdown(options=["all", *sorted(findings["id"].str[:2].unique())], description="notebook")
verdict = widgets.Dropdown(options=["all", "supported", "refuted", "inconclusive"], description="verdict")
words = widgets.Text(placeholder="in id, claim or limitation", description="words", continuous_update=True)
count = widgets.Label()


def show_findings(notebook, verdict, words):
    found = findings[(notebook == "all") | (findings["id"].str[:2] == notebook)]
    found = found[(verdict == "all") | (found["verdict"] == verdict)]
    text = (found["id"] + " " + found["claim"] + " " + found["limitation"]).str.lower()
    found = found.loc[[all(word in line for word in words.lower().split()) for line in text]]
    count.value = f"{len(found)} of {len(findings)} findings"
    with pd.option_context("display.max_colwidth", None, "display.max_rows", None):
        display(found.set_index("id").drop(columns=["question", "evidence"]))


table = widgets.interactive_output(show_findings, {"notebook": notebook, "verdict": verdict, "words": words})
display(widgets.HBox([notebook, verdict, words, count]), table)""",
    "## The clips\n\nChoose one; the player loads it from `audio/`.",
    """clip = widgets.Dropdown(options=[(f"{name}: {said}", name) for name, said in clips.items()], description="clip")
clip.layout.width = "100%"


def play(clip):
    if clip is None:
        display(Markdown("No audio is in this archive."))
    else:
        display(Markdown(f"`{clip}`"), Audio(filename=f"audio/{clip}"))


display(clip, widgets.interactive_output(play, {"clip": clip}))""",
)


def opening_notebook(name: str) -> nbformat.NotebookNode:
    """Return the notebook that shows findings and plays clips with pandas and ipywidgets alone."""
    v4 = nbformat.v4
    cells = [
        v4.new_code_cell(source, id=f"cell-{n}") if n in (1, 3, 5) else v4.new_markdown_cell(source, id=f"cell-{n}")
        for n, source in enumerate([_CELLS[0].replace("{name}", name), *_CELLS[1:]])
    ]
    kernel = {"name": "python3", "display_name": "Python 3", "language": "python"}
    return v4.new_notebook(cells=cells, metadata={"kernelspec": kernel})


def pack(run: StoredRun, page: str, out: Path) -> Path:
    """Write the archive of a run, whole or not at all; the same run gives the same bytes.

    Parameters
    ----------
    run : StoredRun
        Already without what is to be hidden.
    page : str
        The run as one HTML page.
    out : Path
        ``FILE.zip``.
    """
    record = run.record
    title = f"{record['case']['name']}, run {record['run']}"
    clips = {name: run.captions.get(name, "") for name in run.audio}
    missing = "".join(f"\nGone when this was packed: {name}" for name in run.missing_audio)
    readme = _README.format(name=title, version=record["versions"].get("f5lab"), opening=OPENING, missing=missing)
    contents: dict[str, bytes] = {
        "README.md": readme.encode(),
        OPENING: nbformat.writes(opening_notebook(title)).encode(),
        "report.html": page.encode(),
        "clips.json": (json.dumps(clips, indent=2, ensure_ascii=False) + "\n").encode(),
    }
    for name in ("findings.jsonl", "verdict.json", "run.json"):
        if (run.folder / name).is_file():
            contents[name] = (run.folder / name).read_bytes()
    for entry in record["notebooks"]:
        if run.notebook(entry) is not None:
            contents[f"notebooks/{entry['name']}.ipynb"] = (run.folder / f"{entry['name']}.ipynb").read_bytes()
    contents |= {f"audio/{name}": file.read_bytes() for name, file in run.audio.items()}
    with paths.atomic_path(out) as temporary:
        temporary.write_bytes(_zip(contents, _stem(record), datetime.fromisoformat(record["started"])))
    return out


def _stem(record: dict) -> str:
    name = f"{record['case']['name']}-{record['run']}"
    return "".join(c if c.isalnum() or c in "._-" else "_" for c in name).lstrip(".") or "run"


def _zip(contents: dict[str, bytes], folder: str, moment: datetime) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, data in contents.items():
            entry = zipfile.ZipInfo(f"{folder}/{name}", date_time=moment.timetuple()[:6])
            entry.external_attr = 0o644 << 16
            archive.writestr(entry, data, zipfile.ZIP_STORED if name.endswith(".flac") else zipfile.ZIP_DEFLATED)
    return buffer.getvalue()
