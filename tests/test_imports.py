"""The shape of the package: layers, sole importers, sizes. Read from the source, so that a lazy import counts too."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

PACKAGE = Path(__file__).resolve().parent.parent / "f5lab"
LAYERS = [
    {
        "errors", "inert", "bars", "usage", "paths", "caches", "remedies", "presets", "specs", "findings", "provenance",
        "tables", "catalogue", "verdicts", "captions", "upstream_terms", "untrusted",
    },
    {
        "mappings", "weights", "vocoder_folders", "audio", "checkpoints", "ema", "schedules", "vocabs", "metrics",
        "statistics", "pitch", "readings", "plots", "figures",
    },
    {"models", "asr", "whisper_weights", "speakers", "opinions", "graphs"},
    {
        "samplers", "batches", "oracles", "cycles", "voices", "discovery", "training_sets", "specimen",
        "probes", "parity", "faults", "listening", "diagnosis", "planted", "bundles", "bundle_speech", "spellings",
        "inside", "grids", "blends", "scale", "blind_listening",
    },
    {"execution", "finished", "workbook", "resuming", "widgets", "blind_widget", "commands", "cli", "__main__"},
]  # fmt: skip
"""Modules at the top of the package, and folders, each of which lies in one layer."""
SOLE_IMPORTERS = {
    "f5_tts": {"models"},
    "vocos": {"models"},
    "whisper": {"asr", "whisper_weights"},
    "resemblyzer": {"speakers"},
    "distillmos": {"opinions"},
    "speechmos": {"opinions"},
    "swift_f0": {"pitch"},
    "papermill": {"execution.kernels"},
    "numba": {"weights.vector_loops"},
    "xxhash": {"weights.scans"},
    "nbconvert": {"execution.markup", "execution.reports"},
    "picklescan": {"untrusted.opinion_reader"},
}
WITHOUT_TORCH = LAYERS[0] | {"execution", "finished", "workbook", "resuming", "commands", "cli"}
DRAWS = {"finished.series_pages"}
LIGHT = ("f5lab", "f5lab.cli", "f5lab.tables", "f5lab.execution.reports", "f5lab.workbook", "f5lab.execution.kernels")
MOST_LINES, MOST_FUNCTION_LINES = 450, 50

FILES = {
    ".".join(path.relative_to(PACKAGE).with_suffix("").parts).removesuffix(".__init__"): path
    for path in sorted(PACKAGE.rglob("*.py"))
    if path != PACKAGE / "__init__.py"
}
FOLDERS = {name for name, path in FILES.items() if path.stem == "__init__"}
MODULES = sorted(set(FILES) - FOLDERS)


def tree(name: str) -> ast.Module:
    return ast.parse(FILES[name].read_text(encoding="utf-8"))


def imported(name: str) -> set[str]:
    """Return every module that is imported anywhere in a module, with f5lab's own as ``f5lab.<name in FILES>``."""
    found: set[str] = set()
    for node in ast.walk(tree(name)):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            inner = {f"{node.module}.{alias.name}" for alias in node.names}
            within = {module for module in inner if module.removeprefix("f5lab.") in FILES}
            found |= within or {node.module}
    return found


def own(name: str) -> set[str]:
    return {m.removeprefix("f5lab.") for m in imported(name) if m.startswith("f5lab.")} & set(FILES)


def unit(name: str) -> str:
    """Return the folder of a module, or the module itself where it lies at the top."""
    return name.split(".")[0]


def layer(name: str) -> int:
    return next(i for i, names in enumerate(LAYERS) if unit(name) in names)


def in_circles(needs: dict[str, set[str]]) -> set[str]:
    """Return what is left when everything whose needs are met has been taken away, again and again."""
    rest = {name: others - {name} for name, others in needs.items()}
    while free := [name for name, others in rest.items() if not others & set(rest)]:
        for name in free:
            del rest[name]
    return set(rest)


def test_every_module_and_folder_has_one_layer() -> None:
    listed = [name for names in LAYERS for name in names]
    assert len(listed) == len(set(listed))
    assert {unit(name) for name in FILES} == set(listed), "give each new module a layer"


def test_the_imports_of_modules_in_folders_are_seen() -> None:
    assert "untrusted.weights_files" in own("checkpoints")
    assert "weights.scans" in own("weights.diffs")
    assert "paths" in own("execution.reports")


def test_folders_hold_modules_and_say_what_for() -> None:
    for folder in FOLDERS:
        body = tree(folder).body
        assert len(body) == 1 and ast.get_docstring(tree(folder)), folder
        assert sum(unit(name) == folder for name in MODULES) > 2, folder


@pytest.mark.parametrize("name", MODULES)
def test_imports_come_from_the_same_layer_or_above(name: str) -> None:
    below = {other for other in own(name) if layer(other) > layer(name)}
    assert not below


def test_no_import_cycles_among_modules_nor_among_folders() -> None:
    assert not in_circles({name: own(name) for name in MODULES})
    folders: dict[str, set[str]] = {}
    for name in MODULES:
        folders.setdefault(unit(name), set()).update(unit(other) for other in own(name))
    assert not in_circles(folders)


@pytest.mark.parametrize("package", sorted(SOLE_IMPORTERS))
def test_some_packages_have_one_importer(package: str) -> None:
    importers = {name for name in MODULES if package in {m.split(".")[0] for m in imported(name)}}
    assert importers <= SOLE_IMPORTERS[package]


@pytest.mark.parametrize("name", [name for name in MODULES if unit(name) in WITHOUT_TORCH and name not in DRAWS])
def test_light_modules_never_name_torch(name: str) -> None:
    assert not {m for m in imported(name) if m.split(".")[0] in ("torch", "torchaudio", "librosa", "matplotlib")}


def test_importing_the_package_and_the_command_line_loads_no_torch() -> None:
    heavy = {"torch", "f5_tts", "librosa", "pandas"}
    code = f"import sys, {', '.join(LIGHT)}; print(sorted({heavy!r} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


@pytest.mark.parametrize("name", MODULES)
def test_modules_and_functions_stay_small(name: str) -> None:
    source = FILES[name].read_text(encoding="utf-8")
    assert len(source.splitlines()) <= MOST_LINES
    functions = [n for n in ast.walk(tree(name)) if isinstance(n, (ast.FunctionDef, ast.AsyncFunctionDef))]
    long = {n.name: _code_lines(n) for n in functions if _code_lines(n) > MOST_FUNCTION_LINES}
    assert not long


def _code_lines(node: ast.FunctionDef | ast.AsyncFunctionDef) -> int:
    """Return the lines of a function without its docstring."""
    first = node.body[1] if ast.get_docstring(node) and len(node.body) > 1 else node.body[0]
    return (node.end_lineno or 0) - first.lineno + 1 + (node.body[0].lineno - node.lineno)


@pytest.mark.parametrize("name", MODULES)
def test_public_functions_are_annotated(name: str) -> None:
    bare = []
    for node in ast.walk(tree(name)):
        if isinstance(node, ast.FunctionDef) and not node.name.startswith("_"):
            arguments = [*node.args.posonlyargs, *node.args.args, *node.args.kwonlyargs]
            unsaid = [a.arg for a in arguments if a.annotation is None and a.arg not in ("self", "cls")]
            bare += [f"{node.name}({', '.join(unsaid)})"] if unsaid or node.returns is None else []
    assert not bare
