"""The notebooks: their form, read from the files, and all of them executed on the specimen with a reduced budget."""

import ast
import hashlib
import re
from pathlib import Path

import nbformat
import pytest

from f5lab import findings, paths, workbook
from f5lab.execution import parameters

FOLDER = paths.notebooks_dir()
FILES = sorted(FOLDER.glob("*.ipynb"))
REQUIRED = (
    "00_case", "01_checkpoint_anatomy", "02_ema_diff", "03_mel_vocoder_cycle", "04_vocab_comparison",
    "05_end_to_end_inference",
)  # fmt: skip
MOST_LINES = 20
REPORT_BYTES = 25_000_000
COMMON = {"case": "str", "out": "str", "device": "str"}
HARD_PATH = re.compile(r"""["'](/(?:home|root|tmp|work|Users|mnt|data|content)\b|[A-Za-z]:\\|~/)""")

every_notebook = pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)


def read(path: Path) -> nbformat.NotebookNode:
    return nbformat.read(path, as_version=4)


def code_cells(path: Path) -> list[nbformat.NotebookNode]:
    return [cell for cell in read(path).cells if cell.cell_type == "code"]


def tags(cell: nbformat.NotebookNode) -> list[str]:
    return cell.metadata.get("tags", [])


def statements(cell: nbformat.NotebookNode) -> ast.Module:
    return ast.parse(cell.source)


def test_the_workbook_is_complete() -> None:
    assert set(REQUIRED) <= {path.stem for path in FILES}
    assert len(parameters.discover(FOLDER)) == len(FILES)


@every_notebook
def test_form_is_valid_with_ids_and_the_neutral_kernel(path: Path) -> None:
    node = read(path)
    nbformat.validate(node)
    assert (node.nbformat, node.nbformat_minor) >= (4, 5)
    assert node.metadata.kernelspec.name == "python3"
    assert len({cell.id for cell in node.cells}) == len(node.cells)


@every_notebook
def test_outputs_are_stripped(path: Path) -> None:
    kept = [cell.id for cell in code_cells(path) if cell.outputs or cell.execution_count is not None]
    assert not kept
    assert "widgets" not in read(path).metadata


@every_notebook
def test_opening_asks_predicts_and_says_what_would_refute(path: Path) -> None:
    opening = read(path).cells[0]
    assert opening.cell_type == "markdown"
    assert opening.source.startswith("# ")
    text = opening.source.lower()
    missing = [word for word in ("question", "predict", "refute", "input", "runtime") if word not in text]
    assert not missing


@every_notebook
def test_parameters_come_first_and_are_explained(path: Path) -> None:
    cells = code_cells(path)
    assert "parameters" in tags(cells[0])
    declared = parameters.read_notebook(path).parameters
    assert {name: declared[name].annotation for name in COMMON if name in declared} == COMMON
    assert declared["out"].default == ""
    assert declared["device"].default == "auto"
    assert not [name for name, parameter in declared.items() if not parameter.meaning]


@every_notebook
def test_findings_come_last(path: Path) -> None:
    cells = read(path).cells
    assert cells[-1].cell_type == "code"
    assert "findings" in tags(cells[-1])
    assert sum("findings" in tags(cell) for cell in cells) == 1
    assert "show_findings" in cells[-1].source


@every_notebook
def test_cells_are_short_and_define_nothing(path: Path) -> None:
    forbidden = (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef, ast.Try)
    for cell in code_cells(path):
        assert not re.search(r"^\s*[%!]", cell.source, re.M), f"{cell.id}: magics and shell commands"
        assert len(cell.source.strip().splitlines()) <= MOST_LINES, cell.id
        assert not [n for n in ast.walk(statements(cell)) if isinstance(n, forbidden)], cell.id
        assert not HARD_PATH.search(cell.source), f"{cell.id}: an absolute path"


@every_notebook
def test_controls_come_after_a_static_call(path: Path) -> None:
    cells = code_cells(path)
    for index, cell in enumerate(cells):
        if re.search(r"widgets?\.\w+\(|\binteract(ive)?\(", cell.source):
            assert "interactive" in tags(cell), cell.id
            assert index > 2


@every_notebook
def test_results_are_introduced(path: Path) -> None:
    cells = read(path).cells
    for before, cell in zip(cells, cells[1:], strict=False):
        draws = cell.cell_type == "code" and re.search(r"\b(plots|figures)\.\w+|plt\.show|subplots\(", cell.source)
        if draws and "interactive" not in tags(cell):
            assert before.cell_type == "markdown", f"{cell.id}: say what to look for before the result"


def digests(folder: Path) -> dict[str, str]:
    files = (p for p in sorted(folder.rglob("*")) if p.is_file())
    return {str(p.relative_to(folder)): hashlib.sha256(p.read_bytes()).hexdigest() for p in files}


@pytest.fixture(scope="module")
def executed(tmp_path_factory: pytest.TempPathFactory) -> tuple[workbook.Run, dict[str, str], dict[str, str]]:
    before = digests(paths.data_dir()), digests(FOLDER)
    result = workbook.run(out=tmp_path_factory.mktemp("runs"), quick=True, device="cpu", cell_timeout_s=600)
    after = digests(paths.data_dir()), digests(FOLDER)
    return result, {**before[0], **before[1]}, {**after[0], **after[1]}


@pytest.mark.workbook
@every_notebook
def test_runs_on_the_specimen(path: Path, executed: tuple) -> None:
    result = executed[0]
    entry = next(e for e in result.record["notebooks"] if e["name"] == path.stem)
    assert (entry["status"], entry["error"]) == ("ok", "")
    assert entry["findings"] >= 1
    page = (result.folder / f"{path.stem}.html").read_text(encoding="utf-8")
    assert not re.search(r"<(script|iframe|link|object|embed)\b", page)
    assert set(re.findall(r'src="(data:\w+/|[^"]{0,12})', page)) <= {"data:image/", "data:audio/"}


@pytest.mark.workbook
def test_run_is_complete_and_small(executed: tuple) -> None:
    folder = executed[0].folder
    known = findings.load(folder / "findings.jsonl")
    assert {finding.id[:2] for finding in known} == {path.stem[:2] for path in FILES}
    size = sum(p.stat().st_size for p in folder.rglob("*") if p.is_file())
    assert size < REPORT_BYTES


@pytest.mark.workbook
def test_running_changes_no_input(executed: tuple) -> None:
    assert executed[1] == executed[2]
