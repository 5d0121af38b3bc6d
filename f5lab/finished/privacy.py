"""Keeping this machine's folders out of what a run leaves behind, without touching figures and audio."""

import copy
import os
import re
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from nbformat import NotebookNode

from f5lab import paths

_EMBEDDED = re.compile(r"(data:[\w.+-]+/[\w.+-]+;base64,[A-Za-z0-9+/=\s]*)")
_BEFORE = r"(?:(?<![\w.~$-])|(?<=\dm))"  # the end of an ANSI colour may touch a path
_AFTER = r"(?![\w-])"
_TEXTUAL = ("text/", "image/svg+xml", "application/json")


def portable(path: Path | str, start: Path) -> str:
    """Return `path` as it can be written in the folder `start` without naming this machine's folders.

    Parameters
    ----------
    path : Path or str
        Absolute.
    start : Path
        Absolute folder that the result is relative to.

    Returns
    -------
    str
        Relative where the two share a folder below the root and below the parent of the user's home; with ``~`` inside
        the home; else the bare name, which then has to be given again.

    Examples
    --------
    >>> portable("/work/cases/a/case.yaml", Path("/work/reports/a/1")), portable("/mnt/x/case.yaml", Path("/work/a"))
    ('../../../cases/a/case.yaml', 'case.yaml')
    """
    path, home = Path(path), Path.home()
    shared = Path(os.path.commonpath([path, start]))
    if shared.parent != shared and shared not in home.parents:
        return Path(os.path.relpath(path, start)).as_posix()
    return f"~/{path.relative_to(home).as_posix()}" if path.is_relative_to(home) else path.name


def shown(path: Path | None, start: Path | None) -> str:
    """Return how reports write a path: relative to the project inside of it, else to `start`; empty for none."""
    root = paths.project_root()
    if path is None:
        return ""
    if path.is_relative_to(root):
        return path.relative_to(root).as_posix()
    return portable(path, start) if start is not None else path.name


def locate(said: str, run: Path) -> Path:
    """Return the place that `shown` wrote, seen from the folder of its run; whether there is a file is not asked."""
    if said.startswith(".."):
        return Path(os.path.normpath(run / said))
    return Path(said).expanduser() if said.startswith("~") else paths.project_root() / said


def machine_folders(run: Path, case: Path | None) -> dict[str, str]:
    """Return the folders of this machine that outputs may name, with what is written instead."""
    named = {str(run): ".", str(paths.project_root()): "$PROJECT", sys.prefix: "$PYTHON"}
    if case is not None:
        named.setdefault(str(case.parent), "$CASE")
    named.setdefault(str(Path.home()), "~")
    return named


def hider(names: Mapping[str, str], *, whole_words: bool = False) -> Callable[[str], str]:
    """Return a function that writes names otherwise, longest first, and leaves embedded audio and images alone.

    Parameters
    ----------
    names : mapping of str to str
        What is looked for, and what stands there instead.
    whole_words : bool
        Look for words; otherwise for folders, which may be followed by a slash but not by more of a name.
    """
    known = {name: names[name] for name in sorted(names, key=len, reverse=True) if len(name) > 1}
    if not known:
        return lambda text: text
    before, after = (r"(?<![^\W_])", r"(?![^\W_])") if whole_words else (_BEFORE, _AFTER)
    pattern = re.compile(before + "(" + "|".join(map(re.escape, known)) + ")" + after)
    return outside_embedded(lambda text: pattern.sub(lambda found: known[found[1]], text))


def outside_embedded(function: Callable[[str], str]) -> Callable[[str], str]:
    """Return `function` applied to everything but ``data:`` addresses in base64."""

    def apply(text: str) -> str:
        parts = _EMBEDDED.split(text)
        return "".join(part if index % 2 else function(part) for index, part in enumerate(parts))

    return apply


def in_strings(value: Any, function: Callable[[str], str]) -> Any:
    """Return a JSON-like value with `function` applied to every string in it; keys stay."""
    if isinstance(value, str):
        return function(value)
    if isinstance(value, Mapping):
        return {key: in_strings(item, function) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [in_strings(item, function) for item in value]
    return value


def in_notebook(node: NotebookNode, function: Callable[[str], str]) -> NotebookNode:
    """Return a copy of a notebook with `function` applied to sources, parameters and textual outputs, not to images."""
    node = copy.deepcopy(node)
    for cell in node.cells:
        cell.source = function(cell.source)
        for output in cell.get("outputs", ()):
            for key in ("text", "ename", "evalue", "traceback"):
                if key in output:
                    output[key] = in_strings(output[key], function)
            for kind in output.get("data", {}):
                if kind.startswith(_TEXTUAL):
                    output.data[kind] = in_strings(output.data[kind], function)
    record = node.metadata.get("papermill", {})
    if "parameters" in record:
        record["parameters"] = in_strings(record["parameters"], function)
    return node


def settle(node: NotebookNode, run: Path, case: Path | None) -> NotebookNode:
    """Return an executed notebook as it is kept in its run: opened there, its parameters lead to the same files.

    The parameters ``case`` and ``out`` become relative to the run's folder; other mentions of this machine's folders
    become ``$PROJECT``, ``$CASE``, ``$PYTHON`` and ``~``.
    """
    hide = hider(machine_folders(run, case))
    if case is None:
        return in_notebook(node, hide)
    node, here = copy.deepcopy(node), portable(case, run)
    for cell in node.cells:
        if "injected-parameters" in cell.metadata.get("tags", []):
            cell.source = cell.source.replace(f'"{case}"', f'"{here}"')
    record = node.metadata.get("papermill", {}).get("parameters", {})
    if record.get("case") == str(case):
        record["case"] = here
    return in_notebook(node, hide)
