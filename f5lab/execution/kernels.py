"""Executing one notebook in a kernel of this very Python, and knowing why it stopped.

papermill runs the cells. What it leaves to chance is fixed here: another interpreter behind the kernel name
``python3``, kernels that die or hang, and output that Jupyter drops without an error.
"""

import json
import logging
import os
import re
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import nbformat

from f5lab import inert, paths, remedies
from f5lab.execution.parameters import Notebook, load_node

KERNEL = "python3"
START_TIMEOUT_S = 120
CELL_TIMEOUT_S = 3600
SILENCE_TIMEOUT_S = 60
"""Seconds that a finished cell's output may take to arrive."""

MOST_OUTPUTS = 1000
"""ZeroMQ's default high-water mark: beyond it messages of a cell can be dropped with no error."""

INTERRUPTED = "interrupted"
LAST_WORDS_CHARACTERS = 400
ERROR_CHARACTERS = 300
_ENGINE = "f5lab"
_ANSI = re.compile(r"\x1b\[[0-9;?]*[A-Za-z]")


def _not_about_parameters(record: logging.LogRecord) -> bool:
    """Drop papermill's warning of unknown parameters: it knows no annotation with ``|``, and all were checked before."""
    return not record.getMessage().startswith("Passed unknown parameter")


@dataclass
class Executed:
    """A notebook after execution.

    Attributes
    ----------
    node : NotebookNode
        With outputs, as far as it came.
    error : str
        One line; empty when every cell ran.
    seconds : float
    interrupted : bool
        The user stopped the run.
    """

    node: nbformat.NotebookNode
    error: str
    seconds: float
    interrupted: bool = False


@contextmanager
def own_kernel() -> Iterator[Path]:
    """Make ``python3`` mean this interpreter, with no start-up files of the user; yield the temporary folder.

    The kernel finds f5lab where this process found it, draws figures inline, and has a fixed hash seed, and shows no progress bars.
    """
    with tempfile.TemporaryDirectory(prefix="f5lab-kernel-") as name:
        folder = Path(name)
        package_root = str(paths.PACKAGE.parent)
        search = [package_root, *filter(None, [os.environ.get("PYTHONPATH")])]
        specification = {
            "argv": [sys.executable, "-m", "ipykernel_launcher", "-f", "{connection_file}"],
            "display_name": "Python 3 (ipykernel)",
            "language": "python",
            "metadata": {"debugger": True, "supported_encryption": ["curve"]},
            "env": {
                "PYTHONPATH": os.pathsep.join(search),
                "PYTHONHASHSEED": "0",
                "TQDM_DISABLE": "1",
                "TMPDIR": str(folder),
                "IPYTHONDIR": str(folder / "ipython"),
                "MPLBACKEND": "module://matplotlib_inline.backend_inline",
            },
        }
        kernel = folder / "share" / "kernels" / KERNEL
        kernel.mkdir(parents=True)
        (kernel / "kernel.json").write_text(json.dumps(specification), encoding="utf-8")
        before = os.environ.get("JUPYTER_PATH")
        os.environ["JUPYTER_PATH"] = os.pathsep.join(filter(None, [str(folder / "share"), before]))
        try:
            yield folder
        finally:
            if before is None:
                del os.environ["JUPYTER_PATH"]
            else:
                os.environ["JUPYTER_PATH"] = before


class _Watch:
    """What is seen of an execution from outside: the notebook as far as it came, and the cell it is at."""

    def __init__(self, on_cell: Callable[[int, int, str], None], log: Path) -> None:
        self.node: nbformat.NotebookNode | None = None
        self.index = 0
        self.on_cell = on_cell
        self.log = log
        self.heading = ""
        self.exit_status: int | None = None

    def begin(self, index: int, cell: nbformat.NotebookNode) -> None:
        self.index = index
        if cell.cell_type == "markdown":
            titles = [line.lstrip("# ").strip() for line in cell.source.splitlines() if line.startswith("#")]
            self.heading = titles[-1] if titles else self.heading
        self.on_cell(index + 1, len(self.node.cells) if self.node else 0, self.heading)

    def last_words(self) -> str:
        text = self.log.read_text(encoding="utf-8", errors="replace") if self.log.is_file() else ""
        return " ".join(_ANSI.sub("", text).split())[-LAST_WORDS_CHARACTERS:]


def _client() -> Any:
    """Return the class of the client that runs cells; nbclient and papermill are imported when it is asked for."""
    from nbclient.exceptions import DeadKernelError
    from nbclient.output_widget import OutputWidget
    from papermill.clientwrap import PapermillNotebookClient

    class SilentOutput(OutputWidget):
        """nbclient's Output widget, which tells the kernel nothing.

        A message that is sent while the reply to the cell is waited for can swallow that reply (jupyter/nbclient#312), and the
        notebook then waits until the cell's time is up.
        """

        def send(self, *_: Any, **__: Any) -> None:
            pass

    class Client(PapermillNotebookClient):
        """papermill's client, which also keeps how a kernel ended, and asks a kernel for nothing but its cells."""

        def __init__(self, *args: Any, **more: Any) -> None:
            super().__init__(*args, **more)
            self.widget_registry = {"@jupyter-widgets/output": {"OutputModel": SilentOutput}}

        def papermill_execute_cells(self) -> None:
            try:
                super().papermill_execute_cells()
            except DeadKernelError:
                process = getattr(self.km.provisioner, "process", None)
                self.nb_man.watch.exit_status = process.poll() if process is not None else None
                raise

    return Client


def _register_engine() -> None:
    from papermill.engines import Engine, papermill_engines
    from traitlets.config import Config

    Client = _client()

    class WatchedEngine(Engine):
        """papermill's own way of running cells, watched, with the kernel's stderr kept."""

        @classmethod
        def execute_managed_notebook(
            cls, nb_man: Any, kernel_name: str, *, watch: _Watch, cell_timeout_s: int, held: Sequence[int], **_: Any
        ) -> None:
            watch.node, nb_man.watch = nb_man.nb, watch
            start = nb_man.cell_start

            def cell_start(cell: nbformat.NotebookNode, cell_index: int, **more: Any) -> None:
                watch.begin(cell_index, cell)
                start(cell, cell_index, **more)

            nb_man.cell_start = cell_start
            client = Client(
                nb_man, kernel_name=kernel_name, timeout=cell_timeout_s, startup_timeout=START_TIMEOUT_S,
                iopub_timeout=SILENCE_TIMEOUT_S, config=Config({"KernelManager": {"transport_encryption": "auto"}}),
            )  # fmt: skip
            with watch.log.open("wb") as log:
                client.execute(stdout=log, stderr=log, **({"pass_fds": tuple(held)} if held else {}))

    papermill_engines.register(_ENGINE, WatchedEngine)


def execute(
    notebook: Notebook,
    values: Mapping[str, Any],
    *,
    scratch: Path,
    cell_timeout_s: int = CELL_TIMEOUT_S,
    on_cell: Callable[[int, int, str], None] = lambda index, cells, heading: None,
    held: Sequence[int] = (),
) -> Executed:
    """Execute one notebook in its own folder, in a fresh kernel. Nothing is written but what its cells write.

    Parameters
    ----------
    notebook : Notebook
    values : mapping of str to value
        Parameters to inject; each is one that the notebook declares.
    scratch : Path
        Folder from `own_kernel`.
    cell_timeout_s : int
        Seconds a single cell may take.
    on_cell : callable
        Told cell number (from 1), number of cells and the heading above it, as each begins.
    held : sequence of int
        Open files that the kernel keeps open as long as it lives: a lock is then held until the last of both ends.
    """
    import papermill
    from nbclient.exceptions import CellTimeoutError, DeadKernelError
    from papermill.exceptions import PapermillExecutionError

    _register_engine()
    logging.getLogger("papermill").addFilter(_not_about_parameters)
    watch = _Watch(on_cell, scratch / f"{notebook.name}.log")
    error, interrupted = "", False
    kills = remedies.count_memory_kills()
    begun = time.monotonic()
    try:
        papermill.execute_notebook(
            str(notebook.path), None, parameters=dict(values), engine_name=_ENGINE, kernel_name=KERNEL,
            cwd=str(notebook.path.parent), progress_bar=False, log_output=False, request_save_on_cell_execute=False,
            autosave_cell_every=0, watch=watch, cell_timeout_s=cell_timeout_s, held=held,
        )  # fmt: skip
    except PapermillExecutionError as failure:
        error = f"{failure.ename}: {failure.evalue}" if failure.evalue else failure.ename
    except DeadKernelError:
        why = remedies.explain_death(watch.exit_status, kills, remedies.count_memory_kills())
        error = f"{why}. {watch.last_words()}".strip()
    except CellTimeoutError:
        error = f"the cell did not end within {cell_timeout_s} s"
    except RuntimeError as failure:  # the kernel never answered
        error = f"no kernel: {failure} {watch.last_words()}".strip()
    except KeyboardInterrupt:
        error, interrupted = INTERRUPTED, True
    node = watch.node or load_node(notebook.path)
    seconds = time.monotonic() - begun
    _tidy(node, notebook)
    error = one_line(remedies.explain(error or _incomplete(node)))
    if error:
        _mark(node, watch.index, error)
    return Executed(node, error, seconds, interrupted)


def one_line(text: str) -> str:
    """Return `text` without colours and line breaks, clipped."""
    line = inert.prose(" ".join(_ANSI.sub("", text).split()), None)
    return line if len(line) <= ERROR_CHARACTERS else line[: ERROR_CHARACTERS - 1] + "…"


def _incomplete(node: nbformat.NotebookNode) -> str:
    """Return why an execution that ended without an error is no complete one; empty when it is."""
    for number, cell in enumerate(node.cells, start=1):
        if cell.cell_type != "code":
            continue
        if cell.source.strip() and cell.execution_count is None:
            return f"cell {number} never ran: a cell before it left the kernel"
        if len(cell.outputs) >= MOST_OUTPUTS:
            return f"cell {number} displayed {len(cell.outputs)} objects: Jupyter drops some beyond {MOST_OUTPUTS}"
    return ""


def _mark(node: nbformat.NotebookNode, index: int, error: str) -> None:
    """Record why a notebook stopped where papermill does not: in the cell that ran, and in what never ran."""
    cell = node.cells[index]
    shown = any(output.output_type == "error" for output in cell.get("outputs", ()))
    if cell.cell_type == "code" and not shown:
        cell.outputs.append(nbformat.v4.new_output("error", ename="Stopped", evalue=error, traceback=[]))
    for position, other in enumerate(node.cells):
        state = other.metadata.get("papermill")
        if state is not None and position >= index:
            state["status"] = "failed" if position == index else "pending"


def _tidy(node: nbformat.NotebookNode, notebook: Notebook) -> None:
    """Remove papermill's banners and this machine's paths to its own files."""
    node.cells = [c for c in node.cells if "papermill-error-cell-tag" not in c.metadata.get("tags", [])]
    record = node.metadata.get("papermill")
    if record is not None:
        record["input_path"] = notebook.path.name
        record.pop("output_path", None)
        record.pop("environment_variables", None)
