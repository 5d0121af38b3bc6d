"""The shape of the package: layers, sole importers, sizes. Read from the source, so that a lazy import counts too."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

PACKAGE = Path(__file__).resolve().parent.parent / "f5lab"
LAYERS = [
    {
        "errors", "inert", "bars", "usage", "paths", "caches", "remedies", "presets", "specs", "findings", "provenance", "tables", "catalogue", "verdicts", "captions", "upstream_terms",
        "refusals", "sources", "stored_tensors", "pickles", "zip_audit", "manifests", "safetensor_headers", "torch_files",
        "file_kinds", "file_reader", "processes", "opinion_reader", "sandbox", "second_opinion", "weights_files", "layouts",
        "ledgers", "engines", "sweep_specs",
    },
    {
        "mappings", "origins", "contents", "vocoder_folders",
        "sums", "vector_loops", "reductions", "scans", "stored_scans",
        "anatomy", "architectures", "audio", "checkpoints", "diffs", "ema", "figures", "metrics", "plots", "schedules",
        "statistics", "vocabs", "trends", "pitch", "readings",
    },
    {"models", "asr", "whisper_weights", "speakers", "opinions", "graphs"},
    {
        "samplers", "cycles", "oracles", "voices", "discovery", "curricula", "vocoders", "specimens", "finetuning", "gates", "factors", "probes", "batches", "suspects",
        "parity", "prompt_timing", "examinations", "settings_search", "weight_faults", "setting_faults", "text_faults",
        "audio_faults", "listening", "diagnosis", "calibration", "planting", "plants", "plants_audio", "plants_harmless",
        "plants_settings", "plants_text", "plants_weights", "bundles", "bundle_speech", "spellings",
        "activations", "trajectories", "alignments", "grids", "blends", "model_figures", "series", "series_rows", "sweep_tasks", "sweeps",
        "blind", "blind_answers", "blind_results",
    },
    {"parameters", "kernels", "markup", "reports", "run_folders", "workbook", "resuming", "widgets", "console", "cli", "cli_runs", "cli_blends", "cli_scale", "cli_blind", "blind_widget", "series_pages", "privacy",
     "runs", "run_index", "comparisons", "redaction", "sharing", "archives", "__main__"},
]  # fmt: skip
SOLE_IMPORTERS = {
    "f5_tts": {"models"},
    "vocos": {"models"},
    "whisper": {"asr", "whisper_weights"},
    "resemblyzer": {"speakers"},
    "distillmos": {"opinions"},
    "speechmos": {"opinions"},
    "swift_f0": {"pitch"},
    "papermill": {"kernels"},
    "numba": {"vector_loops"},
    "xxhash": {"scans"},
    "nbconvert": {"markup", "reports"},
    "picklescan": {"opinion_reader"},
}
WITHOUT_TORCH = {*LAYERS[0], "parameters", "kernels", "markup", "reports", "run_folders", "workbook", "resuming", "console", "cli",
                 "cli_runs", "cli_blends", "cli_scale", "privacy", "runs", "run_index", "comparisons", "redaction", "sharing", "archives"}
LIGHT = ("f5lab", "f5lab.cli", "f5lab.tables", "f5lab.reports", "f5lab.workbook", "f5lab.kernels")
MOST_LINES, MOST_FUNCTION_LINES = 450, 50

MODULES = sorted(path.stem for path in PACKAGE.glob("*.py") if path.stem != "__init__")


def tree(name: str) -> ast.Module:
    return ast.parse((PACKAGE / f"{name}.py").read_text(encoding="utf-8"))


def imported(name: str) -> set[str]:
    """Return every module that is imported anywhere in a module, with f5lab's own as ``f5lab.<module>``."""
    found: set[str] = set()
    for node in ast.walk(tree(name)):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module == "f5lab":
            found |= {f"f5lab.{alias.name}" for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            found.add(node.module)
    return found


def own(name: str) -> set[str]:
    return {m.split(".")[1] for m in imported(name) if m.startswith("f5lab.")} & set(MODULES)


def layer(name: str) -> int:
    return next(i for i, names in enumerate(LAYERS) if name in names)


def test_every_module_has_one_layer() -> None:
    listed = [name for names in LAYERS for name in names]
    assert len(listed) == len(set(listed))
    assert set(MODULES) <= set(listed), "give each new module a layer"


@pytest.mark.parametrize("name", MODULES)
def test_imports_come_from_the_same_layer_or_above(name: str) -> None:
    below = {other for other in own(name) if layer(other) > layer(name)}
    assert not below


def test_no_import_cycles() -> None:
    rest = {name: own(name) - {name} for name in MODULES}
    while free := [name for name, needs in rest.items() if not needs & set(rest)]:
        for name in free:
            del rest[name]
    assert not rest


@pytest.mark.parametrize("package", sorted(SOLE_IMPORTERS))
def test_some_packages_have_one_importer(package: str) -> None:
    importers = {name for name in MODULES if package in {m.split(".")[0] for m in imported(name)}}
    assert importers <= SOLE_IMPORTERS[package]


@pytest.mark.parametrize("name", sorted(WITHOUT_TORCH))
def test_light_modules_never_name_torch(name: str) -> None:
    assert not {m for m in imported(name) if m.split(".")[0] in ("torch", "torchaudio", "librosa", "matplotlib")}


def test_importing_the_package_and_the_command_line_loads_no_torch() -> None:
    heavy = {"torch", "f5_tts", "librosa", "pandas"}
    code = f"import sys, {', '.join(LIGHT)}; print(sorted({heavy!r} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


@pytest.mark.parametrize("name", MODULES)
def test_modules_and_functions_stay_small(name: str) -> None:
    source = (PACKAGE / f"{name}.py").read_text(encoding="utf-8")
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
