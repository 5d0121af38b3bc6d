"""What the command line shows: results for people or as JSON, and the progress of a run."""

import json
import os
import stat
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from f5lab import bars, inert, paths
from f5lab.errors import UsageError

if TYPE_CHECKING:
    from f5lab.workbook import Step


RUN_FILES = ("run.json", "verdict.json")
PIPE_COLUMNS = 200
PAGE_MARK = b'<meta name="generator" content="f5lab">'


def __getattr__(name: str) -> Any:
    """Return `JsonFile`, the option that every command's result takes; typer is imported for those that parse options."""
    if name != "JsonFile":
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    import typer

    option = typer.Option("--json", metavar="FILE", help="Write the result as JSON to FILE; - prints it instead.")
    return Annotated[Path | None, option]


def deliver(report: Mapping[str, Any], json_file: Path | None, shown: Mapping[str, Any] | None = None) -> None:
    """Show a command's result for people and, when asked for, write it as JSON; `shown` is what people get of a long one."""
    if not write_json(inert.json_text(report, default=_plain) + "\n", json_file):
        _show(report if shown is None else shown, _console(sys.stdout))


def write_json(text: str, json_file: Path | None) -> bool:
    """Write JSON where ``--json`` asks for it; return whether that was standard output, so that nothing else is shown.

    Raises
    ------
    UsageError
        A file would be written over that is no earlier result.
    """
    if str(json_file) == "-":
        sys.stdout.write(text)
        return True
    if json_file is not None and _is_a_stream(json_file):
        with json_file.open("w", encoding="utf-8") as f:
            f.write(text)
    elif json_file is not None:
        paths.write_text(_spare(json_file, text), text)
    return False


def tell_stages() -> None:
    """Say on standard error what begins, for whoever waits for a command of minutes."""

    def tell(label: str) -> None:
        sys.stderr.write(f"… {label}\n")
        sys.stderr.flush()

    bars.Stages.told = tell


def spare_page(out: Path) -> Path:
    """Return the HTML file to write, unless what lies there is no page of f5lab's.

    Raises
    ------
    UsageError
        It would be written over.
    """
    if out.is_symlink() or (out.exists() and PAGE_MARK not in out.read_bytes()[:4000]):
        raise UsageError(f"--out {out} would write over a file", expected="a new file, or an earlier page of f5lab's")
    return out


def _console(stream: Any) -> Any:
    """Return a console as wide as the terminal; in a file or a pipe rich would fold tables at 80 columns, which nobody set."""
    from rich.console import Console

    wide = None if stream.isatty() or os.environ.get("COLUMNS") else PIPE_COLUMNS
    return Console(file=stream, highlight=False, width=wide)


def _is_a_stream(path: Path) -> bool:
    """Return whether a path is a device, pipe or terminal, such as /dev/stdout: written to, never replaced."""
    try:
        mode = path.stat().st_mode
    except OSError:
        return False
    return stat.S_ISCHR(mode) or stat.S_ISFIFO(mode)


def _spare(json_file: Path, text: str) -> Path:
    """Return the file to write, unless what lies there is not an earlier result of the same command.

    Raises
    ------
    UsageError
        It is a link, one of a run's own files, or not JSON with the entries of `text`.
    """
    in_a_run = json_file.name in RUN_FILES and (json_file.parent / "run.json").exists()
    if json_file.is_symlink() or (json_file.exists() and (in_a_run or not _is_alike(json_file, text))):
        raise UsageError(f"--json {json_file} would write over a file", expected="a new file, or this command's earlier result")
    return json_file


def _is_alike(earlier: Path, text: str) -> bool:
    """Return whether a file holds JSON with the entries of a result."""
    try:
        held = json.loads(earlier.read_bytes())
    except (OSError, ValueError, RecursionError):
        return False
    return isinstance(held, dict) and held.keys() == json.loads(text).keys()


def say_path(path: Path) -> None:
    """Print a path on stdout: to a program as its bytes are, to a terminal with nothing in it that the terminal obeys."""
    import typer

    typer.echo(inert.prose(str(path), None) if sys.stdout.isatty() else os.fsencode(path))


def _plain(value: Any) -> Any:
    if isinstance(value, Path):
        return str(value)
    if hasattr(value, "tolist"):
        return value.tolist()
    raise TypeError(f"{type(value).__name__} in a report")


def _show(report: Mapping[str, Any], console: Any, level: int = 0) -> None:
    """Print a report: facts as aligned lines, lists of flat mappings as tables, what is nested as sections."""
    from rich.text import Text

    from f5lab.tables import cell_text

    sections = {k: v for k, v in report.items() if isinstance(v, Mapping) or _is_rows(v)}
    facts = {k: v for k, v in report.items() if k not in sections}
    width = max((len(str(key)) for key in facts), default=0)
    for key, value in facts.items():
        label = inert.visible(str(key))
        line = Text("  " * level + f"{label:<{width}}  ", "cyan").append(cell_text(value, 400) or "none", "none")
        console.print(line, soft_wrap=True)
    for key, value in sections.items():
        console.print(Text("\n" + "  " * level + inert.visible(str(key)), "bold"))
        if isinstance(value, Mapping):
            _show(value, console, level + 1)
        elif any(isinstance(item, Mapping) or _is_rows(item) for row in value for item in row.values()):
            for row in value:
                _show(row, console, level + 1)
                console.print()
        else:
            _show_table(value, console)


def _is_rows(value: Any) -> bool:
    return isinstance(value, (list, tuple)) and bool(value) and all(isinstance(row, Mapping) for row in value)


def _show_table(rows: Sequence[Mapping[str, Any]], console: Any, limit: int = 60) -> None:
    from rich import box
    from rich.table import Table
    from rich.text import Text

    from f5lab.tables import cell_text

    columns = list(dict.fromkeys(key for row in rows for key in row))
    grid = Table(box=box.SIMPLE_HEAD)
    for column in columns:
        number = all(isinstance(row.get(column), (int, float, type(None))) for row in rows)
        grid.add_column(
            Text(inert.visible(str(column))), justify="right" if number else "left", overflow="fold"
        )
    for row in rows[:limit]:
        grid.add_row(*(Text(cell_text(row.get(column), 200)) for column in columns))
    console.print(grid)
    if len(rows) > limit:
        console.print(Text(f"first {limit} of {len(rows)} rows; --json has all", "dim"))


class Progress:
    """A bar that names notebook and cell, and one line for each notebook that is done; on stderr."""

    def __init__(self) -> None:
        import rich.progress
        from rich.progress import BarColumn, SpinnerColumn, TextColumn, TimeElapsedColumn

        self.console = _console(sys.stderr)
        self.begun = ""
        self.bar = rich.progress.Progress(
            SpinnerColumn(), TextColumn("{task.fields[place]}", markup=False), BarColumn(bar_width=24),
            TimeElapsedColumn(), console=self.console, transient=True,
        )  # fmt: skip
        self.task = self.bar.add_task("workbook", total=1, place="starting")

    def __enter__(self) -> "Progress":
        if self.console.is_terminal:
            self.bar.start()
        return self

    def __exit__(self, *_: object) -> None:
        if self.console.is_terminal:
            self.bar.stop()

    def show(self, step: "Step") -> None:
        """Move the bar to a step; a notebook that ended gets its line."""
        done = step.position - 1 + (step.cell / step.cells if step.cells else 0)
        place = (
            f"{step.notebook}  cell {step.cell}/{step.cells}  {inert.visible(step.heading, 40)}"
            if step.cells
            else step.notebook
        )
        self.bar.update(self.task, total=step.notebooks, completed=done, place=place)
        if step.status == "running":
            self._say_begun(step.notebook)
            return
        from rich.text import Text

        from f5lab.provenance import duration_text

        sign, style = ("✔", "green") if step.status == "ok" else ("✘", "bold red")
        if step.kept:
            sign, style = "=", "dim"
        line = Text(f"{sign} {step.notebook:<30} {duration_text(step.seconds):>12}  {step.findings} findings", style)
        line.append("  kept from before" if step.kept else "")
        self.console.print(line.append(f"  {inert.prose(step.error)}" if step.error else "", "red"), soft_wrap=True)

    def _say_begun(self, notebook: str) -> None:
        """Say in a log, where no bar moves, which notebook has begun; some take minutes."""
        if not self.console.is_terminal and notebook != self.begun:
            self.begun = notebook
            self.console.print(f"… {notebook}")
