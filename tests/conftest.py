"""How the suite runs: workers by file, each with one thread, the long files first. And the command line, called in a test."""

import os
import sys
from collections.abc import Callable

os.environ.setdefault("OMP_NUM_THREADS", "1")  # before torch: two workers with two threads each are slower than one

import pytest

from f5lab import cli


def pytest_xdist_auto_num_workers() -> int:
    """Return one worker per core, at most four: each holds a model, a recogniser and the kernels of its notebooks."""
    return min(os.cpu_count() or 1, 4)


LONG = ("test_notebooks.py", "test_diagnosis.py", "test_bundles.py", "test_cli_diagnosis.py", "test_browser.py", "test_kills.py", "test_jupyter.py", "test_unfit_material.py")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Put the files that take longest first; begun last, one of them would leave the other workers idle."""
    items.sort(key=lambda item: LONG.index(item.path.name) if item.path.name in LONG else len(LONG))


@pytest.fixture
def call(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Callable[..., tuple[int, str, str]]:
    """Call the command line in this process: its arguments to exit status, stdout and stderr."""
    monkeypatch.delenv("F5LAB_TRACEBACK", raising=False)
    monkeypatch.setattr(cli.signal, "signal", lambda *_: None)
    monkeypatch.setattr(sys, "excepthook", sys.excepthook)

    def run(*arguments: str) -> tuple[int, str, str]:
        with pytest.raises(SystemExit) as left:
            cli.main(arguments)
        return (left.value.code, *capsys.readouterr())

    return run
