"""A finished run, made by hand: no kernel, no model; everything that a reader of runs meets."""

import base64
import json
from pathlib import Path
from typing import Any

import nbformat
import numpy as np
from toy_workbook import notebook

from f5lab import audio, findings, verdicts
from f5lab.finished import runs
from f5lab.verdicts import Cause, Effect, Fix, Refuted, Verdict

PNG = base64.b64encode(b"\x89PNG not really").decode()
TEXT, HEARD = "Comprou um livro.", "compro o livro de couro"
HOME = "/home/annabel/voices/secret"


def clip(frequency: float = 220.0) -> audio.Wave:
    samples = 0.2 * np.sin(2 * np.pi * frequency * np.arange(4800) / 24000)
    return audio.Wave(samples.astype(np.float32), 24000)


def entry(number: str, name: str, status: str = "ok", **changes: Any) -> dict[str, Any]:
    parameter = {"value": 4, "default": 4, "meaning": "prompts"}
    case = {"value": f"{HOME}/case.yaml", "default": "", "meaning": "case file"}
    return {
        "number": number, "name": f"{number}_{name}", "title": f"Toy <{number}>", "status": status, "seconds": 1.0, "findings": 1,
        "error": "" if status == "ok" else "ValueError: no", "parameters": {"n_prompts": parameter, "case": case},
        "notebook": f"{number}_{name}.ipynb", "report": f"{number}_{name}.html", **changes,
    }  # fmt: skip


def record(run: str, **changes: Any) -> dict[str, Any]:
    files = [("checkpoint", "model_last.pt", "ab"), ("vocab", "vocab.txt", "cd"), ("prompts.p01.ref_audio", "annabel-01.wav", "ef")]
    return {
        "format": runs.FORMAT, "run": run, "status": "ok", "started": "2026-01-01T00:00:00+00:00", "ended": None, "seconds": 12.0,
        "case": {"name": "toy", "question": "Why <this>?", "language": "pt", "path": f"{HOME}/case.yaml"},
        "prompts": [{"id": "p01", "ref_text": "A doutora.", "gen_text": TEXT}], "model": {"training": None, "inference": {"dim": 256}},
        "versions": {"f5lab": "0.1.0", "torch": "2.11.0", "torchaudio": "2.11.0", "f5-tts": "1.1.22", "python": "3.11.7"},
        "hardware": {"cpu": "toy cpu", "cores": 2, "memory_bytes": None, "gpus": [], "system": "Linux"},
        "commit": None, "commit_modified": None, "seeds": {}, "settings": {"device": "auto", "quick": False, "only": [], "set": {}},
        "files": [{"label": l, "path": f"{HOME}/{p}", "size": 10, "sha256": s * 32, "files": 1} for l, p, s in files],
        "notebooks": [entry("05", "speak"), entry("06", "cause")], **changes,
    }  # fmt: skip


def finding(id: str, value: float | None = 0.2, **changes: Any) -> findings.Finding:
    fields: dict[str, Any] = {
        "question": "Does it speak?", "claim": f"Claim of {id}.", "verdict": "supported", "unit": "CER", "interval": (0.1, 0.3), "n": 4,
        "better": "lower",
    }  # fmt: skip
    return findings.Finding(id=id, value=value, **{**fields, **changes})


def verdict(*causes: tuple[str, float], run: str = "r") -> Verdict:
    named = [
        Cause(id=name, confidence=sure, evidence=["06-cause"], fix=Fix(summary="Change it.", settings={"weights": "raw"}),
              effect=Effect(metric="CER", before=0.9, after=0.1, interval=(-0.9, -0.7), n=8))
        for name, sure in causes
    ]  # fmt: skip
    return Verdict(case="toy", run=run, healthy=not causes, causes=named, refuted=[Refuted(id="vocoder-wrong", evidence=[])], unknown=[])


def executed(number: str, *waves: tuple[str, audio.Wave]) -> nbformat.NotebookNode:
    """Return an executed notebook that shows clips, a table with texts, a figure, a link and paths."""
    node = notebook(number, f"figure = plots.mel_grid({TEXT!r})\nload({HOME + '/case.yaml'!r})")
    probe = next(cell for cell in node.cells if cell.id == "probe")
    table = f"<table><thead><tr><th>text</th><th>heard</th><th>CER</th></tr></thead><tbody><tr><td>{TEXT}</td><td>{HEARD}</td><td>0.2</td></tr></tbody></table>"
    spelled = "".join(f"<span>{letter}</span>" for letter in TEXT)
    v4 = nbformat.v4
    probe.outputs = [
        v4.new_output("display_data", {"text/html": audio.player(waves)._repr_html_()}),
        v4.new_output("display_data", {"text/html": table}),
        v4.new_output("display_data", {"text/html": f"<div>{spelled}</div>"}),
        v4.new_output("display_data", {"image/png": PNG, "text/plain": "<Figure>"}),
        v4.new_output("stream", name="stderr", text=f"\x1b[32m{HOME}/model_last.pt\x1b[0m by annabel: heard {HEARD.upper()}"),
    ]
    node.cells[0].source += "\n\n[to the cause](06_cause.ipynb#cell-probe) [paper](https://example.org/paper)"
    return node


def write_run(folder: Path, **changes: Any) -> Path:
    """Write a run; `findings`, `verdict` and `audio` may be given, the rest changes ``run.json``."""
    known = changes.pop("findings", [finding("05-cer", evidence=["audio/05-first-01.flac", "probe"]), finding("06-cause", 0.3)])
    judged = changes.pop("verdict", verdict(("mel-type", 0.9)))
    sounds = changes.pop("audio", {"05-first-01": clip(), "05-first-02": clip(), "05-first-03": clip(330)})
    said = record(folder.name, **changes)
    folder.mkdir(parents=True)
    (folder / "run.json").write_text(json.dumps(said), encoding="utf-8")
    (folder / "findings.jsonl").write_text(findings.dump(known), encoding="utf-8")
    for item in said["notebooks"]:
        if item["status"] == "ok":
            item["findings"] = sum(f.id.startswith(item["number"]) for f in known)
    (folder / "run.json").write_text(json.dumps(said), encoding="utf-8")
    if judged is not None:
        verdicts.save(judged.model_copy(update={"run": said["run"], "case": said["case"]["name"]}), folder)
    for name, wave in sounds.items():
        audio.save_flac(folder / "audio" / f"{name}.flac", wave)
    shown = [(f"take {n} · heard: {HEARD}", wave) for n, wave in enumerate(sounds.values(), start=1)]
    for item in said["notebooks"]:
        if item["status"] == "ok":
            nbformat.write(executed(item["number"], *(shown if item["number"] == "05" else ())), folder / item["notebook"])
    (folder / "index.html").write_text("<p>The front page.</p>", encoding="utf-8")
    return folder
