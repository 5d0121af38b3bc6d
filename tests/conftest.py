"""How the suite runs: workers by file, each with one thread, the long files first."""

import os

os.environ.setdefault("OMP_NUM_THREADS", "1")  # before torch: two workers with two threads each are slower than one

import pytest


def pytest_xdist_auto_num_workers() -> int:
    """Return one worker per core, at most four: each holds a model, a recogniser and the kernels of its notebooks."""
    return min(os.cpu_count() or 1, 4)


LONG = ("test_notebooks.py", "test_diagnosis.py", "test_bundles.py", "test_cli_diagnosis.py", "test_browser.py", "test_kills.py", "test_jupyter.py")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Put the files that take longest first; begun last, one of them would leave the other workers idle."""
    items.sort(key=lambda item: LONG.index(item.path.name) if item.path.name in LONG else len(LONG))
