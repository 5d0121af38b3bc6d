"""A toy workbook and a toy case: notebooks that succeed, fail, forget and die, with no model in sight."""

from pathlib import Path

import nbformat
import yaml

PARAMETERS = """case: str = "case.yaml"  # path, the case
out: str = ""  # path, the run's folder; empty: live
device: str = "auto"  # auto, cpu, cuda or mps
n_prompts: int = 3  # prompts spoken
seeds: list[int] = [0, 1]  # sampling seeds"""

RECORD = """from f5lab import findings, tables
log = findings.FindingsLog("{number}", out)
log.record("{number}-works", question="Does it run?", claim="The notebook of {number} runs.", verdict="supported",
           value=n_prompts, unit="prompts", n=len(seeds), evidence=["audio/tone.flac", "figure 1", "probe"],
           limitation="A toy <b>only</b>.")
tables.show_findings(log.findings)"""

FIGURE = """import matplotlib.pyplot as plt
figure, axes = plt.subplots(figsize=(5, 2))
axes.plot(seeds)
axes.set(xlabel="seed number", ylabel="seed", title="The seeds, seed 0")
plt.show()"""

AUDIO = """from pathlib import Path
folder = Path(out) / "audio"
folder.mkdir(exist_ok=True)
_ = (folder / "tone.flac").write_bytes(b"fLaC")"""


def notebook(number: str, *sources: str, parameters: str = PARAMETERS, record: bool = True) -> nbformat.NotebookNode:
    """Return a notebook of the workbook's form around some code cells; the cell before the last has id ``probe``."""
    v4 = nbformat.v4
    cells = [v4.new_markdown_cell(f"# Toy {number}\n\nWhat is asked, and **what** would refute it.", id="opening")]
    cells.append(v4.new_code_cell(parameters, id="parameters", metadata={"tags": ["parameters"]}))
    for index, source in enumerate(sources):
        cells.append(v4.new_markdown_cell(f"## Step {index}", id=f"step-{index}"))
        cells.append(v4.new_code_cell(source, id="probe" if index == len(sources) - 1 else f"code-{index}"))
    if record:
        cells.append(v4.new_code_cell(RECORD.format(number=number), id="record", metadata={"tags": ["findings"]}))
    kernel = {"name": "python3", "display_name": "Python 3", "language": "python"}
    quick = {"quick": {"n_prompts": 1}} if "n_prompts" in parameters else {}
    return v4.new_notebook(cells=cells, metadata={"kernelspec": kernel, "f5lab": quick})


def write_workbook(root: Path, nodes: dict[str, nbformat.NotebookNode]) -> Path:
    """Write notebooks under ``root/notebooks`` and return that folder."""
    folder = root / "notebooks"
    folder.mkdir(parents=True, exist_ok=True)
    for name, node in nodes.items():
        nbformat.write(node, folder / f"{name}.ipynb")
    return folder


def write_case(root: Path) -> Path:
    """Write a case whose files exist and hold nothing of sense, and return its path."""
    folder = root / "case"
    folder.mkdir(parents=True, exist_ok=True)
    for name, content in {"model.pt": b"weights", "vocab.txt": b" \na\n", "a.wav": b"RIFF"}.items():
        (folder / name).write_bytes(content)
    prompt = {"id": "p01", "ref_audio": "a.wav", "ref_text": "a", "gen_text": "b"}
    case = {"name": "toy", "question": "Is <this> a toy?", "checkpoint": "model.pt", "vocab": "vocab.txt"}
    case |= {"prompts": [prompt]}
    path = folder / "case.yaml"
    path.write_text(yaml.safe_dump(case), encoding="utf-8")
    return path
