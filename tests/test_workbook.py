"""The runner: what is kept, marked and refused."""

import hashlib
import json
import os
import sys
from pathlib import Path

import nbformat
import pytest
from toy_workbook import AUDIO, FIGURE, PARAMETERS, notebook, write_case, write_workbook

from f5lab import paths, resuming, workbook
from f5lab.errors import CaseError, RunError, UsageError
from f5lab.execution import kernels, parameters

DYING = "import os, sys\nprint('out of cheese', file=sys.__stderr__, flush=True)\nos._exit(9)"
PYTHON = "import sys\nprint(sys.executable)\nprint(Path.cwd())"


@pytest.fixture(scope="module")
def toy(tmp_path_factory: pytest.TempPathFactory) -> tuple[workbook.Run, list[workbook.Step], Path]:
    root = tmp_path_factory.mktemp("toy")
    folder = write_workbook(
        root,
        {
            "00_fine": notebook("00", AUDIO, PYTHON, FIGURE),
            "01_raises": notebook("01", "x = 1\nraise ValueError('no <such> voice')"),
            "02_dies": notebook("02", DYING),
            "03_forgets": notebook("03", "1 + 1", record=False),
            "04_leaves": notebook("04", "import sys\nsys.exit()"),
        },
    )
    impostor = root / "kernels" / "python3"
    impostor.mkdir(parents=True)
    spec = {"argv": ["/bin/false"], "display_name": "no", "language": "python"}
    (impostor / "kernel.json").write_text(json.dumps(spec))
    steps: list[workbook.Step] = []
    before = os.environ.get("JUPYTER_PATH")
    os.environ["JUPYTER_PATH"] = str(root)
    try:
        result = workbook.run(
            write_case(root), out=root / "runs", notebooks_dir=folder, settings={"n_prompts": "5"}, watch=steps.append
        )
    finally:
        os.environ.pop("JUPYTER_PATH")
        if before is not None:
            os.environ["JUPYTER_PATH"] = before
    return result, steps, root


def entry(toy: tuple, number: str) -> dict:
    return next(e for e in toy[0].record["notebooks"] if e["number"] == number)


def test_every_notebook_runs_whatever_the_others_do(toy: tuple) -> None:
    states = {e["number"]: e["status"] for e in toy[0].record["notebooks"]}
    assert states == {"00": "ok", "01": "failed", "02": "failed", "03": "failed", "04": "failed"}
    assert toy[0].failed == ["01_raises", "02_dies", "03_forgets", "04_leaves"]


def test_reasons_are_one_line_each(toy: tuple) -> None:
    assert entry(toy, "01")["error"] == "ValueError: no <such> voice"
    assert "the kernel died" in entry(toy, "02")["error"]
    assert "out of cheese" in entry(toy, "02")["error"]
    assert entry(toy, "03")["error"] == "recorded no findings"
    assert "never ran" in entry(toy, "04")["error"]
    assert all("\n" not in e["error"] for e in toy[0].record["notebooks"])


def test_failed_notebooks_are_kept_with_what_they_had(toy: tuple) -> None:
    folder = toy[0].folder
    for name in ("01_raises", "02_dies", "04_leaves"):
        node = nbformat.read(folder / f"{name}.ipynb", as_version=4)
        nbformat.validate(node)
        assert not any("papermill-error-cell-tag" in c.metadata.get("tags", []) for c in node.cells)
        assert 'id="stopped"' in (folder / f"{name}.html").read_text(encoding="utf-8")
    dead = nbformat.read(folder / "02_dies.ipynb", as_version=4)
    probe = next(c for c in dead.cells if c.id == "probe")
    assert probe.outputs[-1].output_type == "error"


def test_parameters_reach_the_notebook(toy: tuple) -> None:
    finding = json.loads((toy[0].folder / "findings.jsonl").read_text(encoding="utf-8").splitlines()[0])
    assert (finding["id"], finding["value"], finding["n"]) == ("00-works", 5.0, 2)
    shown = entry(toy, "00")["parameters"]
    assert shown["n_prompts"] == {"value": 5, "default": 3, "meaning": "prompts spoken"}
    assert shown["out"]["value"] == "."
    assert shown["case"]["value"] == "../../case/case.yaml"
    assert toy[0].record["seeds"]["00_fine"] == {"seeds": [0, 1]}


def test_kernel_is_this_python_in_the_notebooks_folder(toy: tuple) -> None:
    node = nbformat.read(toy[0].folder / "00_fine.ipynb", as_version=4)
    text = "".join(o.text for c in node.cells if c.cell_type == "code" for o in c.outputs if o.output_type == "stream")
    assert text.splitlines() == [sys.executable.replace(sys.prefix, "$PYTHON"), str(toy[2] / "notebooks")]
    assert node.metadata.kernelspec.name == "python3"


def test_what_is_kept_leads_to_the_case_and_names_no_folder_of_the_run(toy: tuple) -> None:
    folder = toy[0].folder
    node = nbformat.read(folder / "00_fine.ipynb", as_version=4)
    injected = next(c.source for c in node.cells if "injected-parameters" in c.metadata.get("tags", []))
    given = dict(line.split(" = ") for line in injected.splitlines() if " = " in line)
    assert (folder / json.loads(given["case"])).resolve() == toy[2] / "case" / "case.yaml"
    assert json.loads(given["out"]) == "."
    for path in (*folder.glob("*.html"), *folder.glob("*.ipynb"), folder / "run.json", folder / "findings.jsonl"):
        assert str(folder) not in path.read_text(encoding="utf-8"), path.name
    assert toy[0].record["case"]["path"] == "../../case/case.yaml"
    assert toy[0].record["prompts"] == [{"id": "p01", "ref_text": "a", "gen_text": "b"}]
    assert toy[0].record["model"] == {"training": None, "inference": None}


def test_record_names_every_file_with_its_digest(toy: tuple) -> None:
    record = json.loads((toy[0].folder / "run.json").read_text(encoding="utf-8"))
    files = {f["label"]: f for f in record["files"]}
    assert files["checkpoint"]["sha256"] == hashlib.sha256(b"weights").hexdigest()
    assert files["checkpoint"]["size"] == 7
    assert set(files) == {"case file", "checkpoint", "vocab", "prompts.p01.ref_audio"}
    assert record["status"] == "failed"
    assert record["ended"] >= record["started"]
    assert record["versions"]["torch"]
    assert record["hardware"]["cores"] >= 1


def test_nothing_temporary_is_left(toy: tuple) -> None:
    names = {p.name for p in toy[0].folder.iterdir()}
    assert not {n for n in names if n.startswith(".")}
    assert {"index.html", "run.json", "findings.jsonl", "findings", "audio", "00_fine.ipynb", "00_fine.html"} <= names
    assert {p.name for p in (toy[2] / "case").iterdir()} == {"case.yaml", "model.pt", "vocab.txt", "a.wav"}


def test_watcher_is_told_notebook_cell_and_end(toy: tuple) -> None:
    steps = [s for s in toy[1] if s.notebook == "00_fine"]
    assert steps[0].cell == 0
    assert [s.cell for s in steps[1:-1]] == list(range(1, steps[-1].cells + 1))
    assert "Step 2" in {s.heading for s in steps}
    assert (steps[-1].status, steps[-1].findings) == ("ok", 1)


def test_same_inputs_give_the_same_findings(toy: tuple, tmp_path: Path) -> None:
    again = workbook.run(
        toy[2] / "case" / "case.yaml", out=tmp_path, notebooks_dir=toy[2] / "notebooks", only=["0"],
        settings={"n_prompts": "5"},
    )  # fmt: skip
    first = (toy[0].folder / "findings.jsonl").read_bytes()
    assert (again.folder / "findings.jsonl").read_bytes() == first
    assert again.failed == []


def test_quick_budget_yields_to_settings() -> None:
    declared = parameters.read_parameters(PARAMETERS, "toy")
    toy = parameters.Notebook(Path("00_toy.ipynb"), "00", "00_toy", "Toy", declared, {"n_prompts": 1})
    assert parameters.chosen_values([toy], {}, quick=True)["00_toy"] == {"n_prompts": 1}
    assert parameters.chosen_values([toy], {"n_prompts": "2"}, quick=True)["00_toy"] == {"n_prompts": 2}
    assert parameters.chosen_values([toy], {})["00_toy"] == {}


@pytest.mark.parametrize(
    ("settings", "reason"),
    [
        ({"n_promts": "3"}, "unknown parameter: n_promts"),
        ({"n_prompts": "three"}, "n_prompts='three' is not int"),
        ({"seeds": "1,x"}, "seeds='1,x' is not list"),
        ({"out": "/tmp"}, "set by the runner itself: out"),
    ],
)
def test_wrong_settings_are_refused_before_anything_is_written(settings: dict, reason: str, tmp_path: Path) -> None:
    folder = write_workbook(tmp_path, {"00_fine": notebook("00", "1")})
    with pytest.raises(UsageError, match=reason):
        workbook.run(write_case(tmp_path), out=tmp_path / "runs", notebooks_dir=folder, settings=settings)
    assert not (tmp_path / "runs").exists()


def test_unknown_notebook_device_and_case_are_refused(tmp_path: Path) -> None:
    folder = write_workbook(tmp_path, {"00_fine": notebook("00", "1")})
    case = write_case(tmp_path)
    with pytest.raises(UsageError, match="no such notebook: 07"):
        workbook.run(case, out=tmp_path / "runs", notebooks_dir=folder, only=["07"])
    with pytest.raises(UsageError, match="device 'gpu'; expected auto, cpu"):
        workbook.run(case, out=tmp_path / "runs", notebooks_dir=folder, device="gpu")
    with pytest.raises(CaseError, match="does not exist"):
        workbook.run(tmp_path / "none.yaml", out=tmp_path / "runs", notebooks_dir=folder)
    assert not (tmp_path / "runs").exists()


def test_derived_values_in_a_parameters_cell_are_refused(tmp_path: Path) -> None:
    folder = write_workbook(tmp_path, {"00_x": notebook("00", "1", parameters="a: int = 1\nb: int = 1 + a\nc = 3")})
    with pytest.raises(RunError, match=r"line 2: b: int = 1 \+ a, line 3: c = 3; expected `name: type = literal`"):
        parameters.discover(folder)


@pytest.mark.parametrize(
    ("annotation", "text", "value"),
    [
        ("int", "7", 7),
        ("float", "1e-3", 0.001),
        ("bool", "false", False),
        ("str", " 7 ", " 7 "),
        ("float | None", "none", None),
        ("str | None", "null", None),
        ("list[float]", "[1, 2.5]", [1.0, 2.5]),
        ("tuple[int, ...]", "1", (1,)),
        ("Literal['ema', 'raw']", "raw", "raw"),
    ],
)
def test_values_take_the_annotated_type(annotation: str, text: str, value: object) -> None:
    assert parameters.Parameter("x", annotation, None).parse(text) == value


def test_slow_cell_and_flood_of_outputs_fail(tmp_path: Path) -> None:
    toys = {"00_slow": "import time; time.sleep(60)", "01_flood": "for i in range(1200): display(i)"}
    folder = write_workbook(tmp_path, {name: notebook(name[:2], source) for name, source in toys.items()})
    slow, flood = parameters.discover(folder)
    with kernels.own_kernel() as scratch:
        late = kernels.execute(slow, {"out": ""}, scratch=scratch, cell_timeout_s=3)
        lost = kernels.execute(flood, {"out": ""}, scratch=scratch)
    assert late.error == "the cell did not end within 3 s"
    assert late.seconds < 30
    assert "Jupyter drops some" in lost.error


def test_output_widgets_send_nothing_while_a_reply_is_waited_for(tmp_path: Path) -> None:
    """What they send can swallow the reply (jupyter/nbclient#312); a kernel that was told of it would know the outputs."""
    made = "import ipywidgets\nshown = ipywidgets.Output()\nwith shown:\n    print('in the widget')\nshown"
    folder = write_workbook(tmp_path, {"00_widget": notebook("00", made, "assert shown.outputs == (), shown.outputs")})
    with kernels.own_kernel() as scratch:
        done = kernels.execute(parameters.discover(folder)[0], {"out": ""}, scratch=scratch)
    assert done.error == ""


def test_run_folders_never_collide(tmp_path: Path) -> None:
    made = [workbook._new_folder(tmp_path) for _ in range(5)]
    assert len({*made}) == 5


def test_empty_and_unreadable_findings_count_as_none(tmp_path: Path) -> None:
    (tmp_path / "findings").mkdir()
    (tmp_path / "findings" / "00.jsonl").write_text("")
    (tmp_path / "findings" / "01.jsonl").write_text('{"id": 1}\n')
    assert workbook._count_findings(tmp_path, "00") == (0, "recorded no findings")
    count, complaint = workbook._count_findings(tmp_path, "01")
    assert count == 0
    assert "01.jsonl:1 is not a finding" in complaint
    assert workbook.findings.load_run(tmp_path) == []


def test_files_that_change_while_a_run_reads_them_are_named(tmp_path: Path) -> None:
    case = write_case(tmp_path)
    change = f"from pathlib import Path\nPath({str(case.parent / 'vocab.txt')!r}).write_bytes(b' \\nz\\n')"
    folder = write_workbook(tmp_path, {"00_fine": notebook("00", "1 + 1"), "01_changes": notebook("01", change)})
    whole = workbook.run(case, only=["00"], out=tmp_path / "runs", notebooks_dir=folder)
    assert whole.record["status"] == "ok" and whole.changed == []
    torn = workbook.run(case, out=tmp_path / "runs", notebooks_dir=folder)
    assert torn.record["status"] == "failed" and torn.failed == [] and torn.changed == ["vocab"]
    page = torn.index.read_text(encoding="utf-8")
    assert "rests on two states" in page
    with pytest.raises(RunError, match="rests on two states.*vocab"):
        resuming.resume(torn.folder, case, notebooks_dir=folder)
    case.unlink()
    assert workbook._changed(whole) == ["the case file, or a file that it names"]


@pytest.mark.parametrize("only", [[""], [" "], ["", ""]])
def test_naming_no_notebook_is_not_naming_all(only: list[str]) -> None:
    with pytest.raises(UsageError, match="no notebook is named"):
        parameters.discover(paths.notebooks_dir(), only)
