"""The notebooks of the workbook and the parameters that each declares. Nothing is executed here."""

import ast
import io
import json
import re
import tokenize
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import nbformat
from pydantic import TypeAdapter, ValidationError

from f5lab.errors import RunError, UsageError

GIVEN_BY_RUNNER = ("case", "out", "device")
"""Parameters that the runner fills in itself."""

_NAME = re.compile(r"^(\d\d)_[a-z0-9_]+$")
_TYPES = {"bool": bool, "int": int, "float": float, "str": str, "list": list, "dict": dict, "tuple": tuple}


@dataclass(frozen=True)
class Parameter:
    """One line of a parameters cell: ``name: annotation = default  # unit, meaning``."""

    name: str
    annotation: str
    default: Any
    meaning: str = ""

    def parse(self, text: str) -> Any:
        """Return what `text` says, as the type that the annotation asks for.

        Lists are given as JSON or with commas, ``None`` as ``none``.

        Raises
        ------
        UsageError
            `text` is no such value.

        Examples
        --------
        >>> Parameter("n_seeds", "int", 3).parse("5"), Parameter("seeds", "list[int]", [0]).parse("1,2")
        (5, [1, 2])
        """
        options = [part.strip() for part in self.annotation.split("|")]
        if "None" in options and text.strip().lower() in ("none", "null"):
            return None
        if "str" in options:
            return text
        value: Any = text.strip()
        if self.annotation.startswith(("list", "tuple", "dict")):
            value = self._structure(value)
        try:
            return TypeAdapter(_type_of(self.annotation)).validate_python(value)
        except ValidationError as error:
            what = f"{self.name}={text!r} is not {self.annotation}"
            raise UsageError(what, expected=f"as {self.default!r}") from error

    def _structure(self, text: str) -> Any:
        if not text.startswith(("[", "{")):
            return [part.strip() for part in text.split(",") if part.strip()]
        try:
            return json.loads(text)
        except ValueError as error:
            raise UsageError(f"{self.name}={text!r} is not JSON", expected=f"as {self.default!r}") from error


@dataclass(frozen=True)
class Notebook:
    """One notebook of the workbook, not executed.

    Attributes
    ----------
    path : Path
    number, name, title : str
        Two digits, file name without ending, first heading.
    parameters : mapping of str to Parameter
        In declared order.
    quick : mapping of str to value
        The reduced budget, from the metadata key ``f5lab: {quick: {...}}``.
    """

    path: Path
    number: str
    name: str
    title: str
    parameters: Mapping[str, Parameter]
    quick: Mapping[str, Any]


def discover(folder: Path, only: Sequence[str] = ()) -> list[Notebook]:
    """Read the notebooks of a folder in order of their numbers.

    Parameters
    ----------
    folder : Path
    only : sequence of str
        Numbers or names to keep; empty: all.

    Raises
    ------
    RunError
        There is none, two have one number, or one can not be read.
    UsageError
        `only` names a notebook that does not exist, or none at all.
    """
    found = [path for path in sorted(folder.glob("*.ipynb")) if _NAME.match(path.stem)]
    if not found:
        raise RunError(f"no notebooks in {folder}", expected="files named NN_topic.ipynb")
    numbers = [path.stem[:2] for path in found]
    if repeated := {number for number in numbers if numbers.count(number) > 1}:
        raise RunError(f"two notebooks in {folder} have one number", offenders=repeated)
    wanted = [item.strip().removesuffix(".ipynb") for item in only if item.strip()]
    if only and not wanted:
        raise UsageError("no notebook is named", expected=f"among {', '.join(numbers)}")
    known = {key for path in found for key in (path.stem, path.stem[:2])}
    if unknown := {item for item in wanted if _padded(item) not in known}:
        raise UsageError("no such notebook", offenders=unknown, expected=f"among {', '.join(numbers)}")
    keep = {_padded(item) for item in wanted}
    return [read_notebook(path) for path in found if not keep or {path.stem, path.stem[:2]} & keep]


def _padded(item: str) -> str:
    return item.zfill(2) if item.isdigit() else item


def read_notebook(path: Path) -> Notebook:
    """Read one notebook's title, parameters and reduced budget.

    Raises
    ------
    RunError
        The file is no notebook, its parameters cell is missing or has more than annotated literals, or its reduced
        budget names parameters that it does not have.
    """
    node = load_node(path)
    cells = [c for c in node.cells if c.cell_type == "code" and "parameters" in c.metadata.get("tags", [])]
    if len(cells) != 1:
        raise RunError(f"{path.name} has {len(cells)} cells tagged `parameters`", expected="one")
    parameters = read_parameters(cells[0].source, path.name)
    quick = dict(node.metadata.get("f5lab", {}).get("quick", {}))
    if unknown := set(quick) - set(parameters):
        raise RunError(f"the reduced budget of {path.name} names no parameter of it", offenders=unknown)
    return Notebook(path, path.stem[:2], path.stem, title_of(node) or path.stem, parameters, quick)


def load_node(path: Path) -> nbformat.NotebookNode:
    """Read a notebook file, upgraded to format 4.

    Raises
    ------
    RunError
        The file is missing or is no notebook.
    """
    try:
        return nbformat.reads(path.read_text(encoding="utf-8"), as_version=4)
    except (OSError, UnicodeDecodeError, nbformat.reader.NotJSONError, nbformat.ValidationError) as error:
        raise RunError(f"{path} is not a readable notebook ({type(error).__name__})") from error


def title_of(node: nbformat.NotebookNode) -> str:
    """Return the first heading, without its markup; empty when there is none."""
    for cell in node.cells:
        if cell.cell_type == "markdown":
            for line in cell.source.splitlines():
                if line.startswith("#"):
                    return re.sub(r"[`*]", "", line.lstrip("#")).strip()
    return ""


def read_parameters(source: str, where: str) -> dict[str, Parameter]:
    """Return the parameters that a cell declares, in order.

    Raises
    ------
    RunError
        A line is not ``name: annotation = literal``; all such lines are named.
    """
    try:
        statements = ast.parse(source).body
    except SyntaxError as error:
        raise RunError(f"the parameters cell of {where} is not Python: {error.msg}") from error
    comments = _comments(source)
    parameters, wrong = {}, []
    for statement in statements:
        try:
            parameter = _parameter(statement, comments)
        except ValueError:
            wrong.append(f"line {statement.lineno}: {ast.unparse(statement)}")
        else:
            parameters[parameter.name] = parameter
    if wrong:
        raise RunError(f"the parameters cell of {where}", offenders=wrong, expected="`name: type = literal` only")
    return parameters


def _parameter(statement: ast.stmt, comments: Mapping[int, str]) -> Parameter:
    named = isinstance(statement, ast.AnnAssign) and isinstance(statement.target, ast.Name)
    if not named or statement.value is None:
        raise ValueError("not an annotated assignment")
    annotation = ast.unparse(statement.annotation)
    _type_of(annotation)
    default = ast.literal_eval(statement.value)
    return Parameter(statement.target.id, annotation, default, comments.get(statement.end_lineno or 0, ""))


def _comments(source: str) -> dict[int, str]:
    tokens = tokenize.generate_tokens(io.StringIO(source).readline)
    return {token.start[0]: token.string.lstrip("# ").strip() for token in tokens if token.type == tokenize.COMMENT}


def _type_of(annotation: str) -> Any:
    """Return the type that an annotation of builtins names; anything else is a ValueError."""
    return _type_of_node(ast.parse(annotation, mode="eval").body)


def _type_of_node(node: ast.expr) -> Any:
    if isinstance(node, ast.Name) and node.id in _TYPES:
        return _TYPES[node.id]
    if isinstance(node, ast.Constant) and node.value in (None, ...):
        return node.value
    if isinstance(node, ast.BinOp) and isinstance(node.op, ast.BitOr):
        return _type_of_node(node.left) | _type_of_node(node.right)
    if isinstance(node, ast.Subscript) and isinstance(node.value, ast.Name):
        inner = node.slice.elts if isinstance(node.slice, ast.Tuple) else [node.slice]
        if node.value.id == "Literal":
            return Literal[tuple(ast.literal_eval(item) for item in inner)]
        if node.value.id in _TYPES:
            return _TYPES[node.value.id][tuple(_type_of_node(item) for item in inner)]
    raise ValueError(f"annotation {ast.unparse(node)!r} is not made of builtins")


def chosen_values(
    notebooks: Sequence[Notebook], settings: Mapping[str, str], *, quick: bool = False
) -> dict[str, dict[str, Any]]:
    """Return, by notebook name, the parameters that differ from a notebook's own defaults.

    Parameters
    ----------
    notebooks : sequence of Notebook
    settings : mapping of str to str
        As typed by the user; each must be a parameter of one of the notebooks at least.
    quick : bool
        Start from the reduced budgets.

    Raises
    ------
    UsageError
        A key is a parameter of none of the notebooks or is filled in by the runner; or a value has another type.
    """
    given = sorted(set(settings) & set(GIVEN_BY_RUNNER))
    if given:
        raise UsageError("set by the runner itself", offenders=given, next_step="use CASE, --out and --device")
    known = {name for notebook in notebooks for name in notebook.parameters} - set(GIVEN_BY_RUNNER)
    if unknown := set(settings) - known:
        raise UsageError("unknown parameter", offenders=unknown, expected=f"among {', '.join(sorted(known)) or 'none'}")
    values = {}
    for notebook in notebooks:
        chosen = dict(notebook.quick) if quick else {}
        chosen |= {k: notebook.parameters[k].parse(v) for k, v in settings.items() if k in notebook.parameters}
        values[notebook.name] = chosen
    return values
