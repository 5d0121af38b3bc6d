"""Engines: every task once, whatever its worker does. Toy tasks in real processes; Ray where F5LAB_LONG_TESTS is set or it is quick."""

import builtins
import importlib.util
import os
from pathlib import Path
from typing import Any

import pytest
import toy_tasks

from f5lab.errors import RunError
from f5lab.scale import engines

TASKS = [(f"k{i}", {"key": f"k{i}", "number": i, "seed": i}) for i in range(6)]
EXPECTED = {key: toy_tasks.measure(told)["cer"] for key, told in TASKS}


def figures(done: Any) -> dict[str, float | None]:
    listed = list(done)
    assert len(listed) == len({d.key for d in listed})
    return {d.key: d.row["cer"] if d.row else None for d in listed}


def test_here_and_in_processes_the_figures_are_the_same() -> None:
    assert figures(engines.run_here(TASKS, toy_tasks.measure)) == EXPECTED
    assert figures(engines.run_processes(TASKS, toy_tasks.measure, jobs=2)) == EXPECTED


def test_a_killed_process_costs_nothing_but_time(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TOY_MARKS", str(tmp_path))
    assert figures(engines.run_processes(TASKS, toy_tasks.die_once, jobs=2)) == EXPECTED
    assert (tmp_path / "died").exists()


def test_a_task_that_kills_every_worker_is_given_up_and_the_others_are_not() -> None:
    found = {d.key: d for d in engines.run_processes(TASKS, toy_tasks.die_always, jobs=1, retries=1)}
    assert found["k2"].row is None and "lost 2 times" in found["k2"].lost
    assert {k for k, d in found.items() if d.row} == set(EXPECTED) - {"k2"}


def test_a_worker_that_refuses_stops_the_sweep_with_its_line() -> None:
    with pytest.raises(RunError, match="other files; expected the same files"):
        list(engines.run_processes(TASKS, toy_tasks.refuse, jobs=2))


def test_without_ray_there_is_one_clear_line(monkeypatch: pytest.MonkeyPatch) -> None:
    real = builtins.__import__
    monkeypatch.setattr(importlib.util, "find_spec", lambda name, *_: None if name == "ray" else real)
    with pytest.raises(RunError, match=r"Ray is not installed; pip install 'f5lab\[sweep\]', or use --engine local"):
        list(engines.run_ray(TASKS, toy_tasks.measure))


@pytest.mark.skipif(not os.environ.get("F5LAB_LONG_TESTS"), reason="starts Ray; set F5LAB_LONG_TESTS=1")
def test_ray_refuses_what_no_node_has_and_hands_on_a_refusal(monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("ray")
    monkeypatch.setenv("PYTHONPATH", str(Path(__file__).parent))  # workers import toy_tasks
    with pytest.raises(RunError, match="no node of the Ray cluster has what a task needs, 1 cores and 9 GPUs"):
        list(engines.run_ray(TASKS, toy_tasks.measure, gpus=9))
    with pytest.raises(RunError, match="other files; expected the same files"):
        list(engines.run_ray(TASKS, toy_tasks.refuse))
    with pytest.raises(RunError, match="Ray cluster 127.0.0.1:1 cannot be reached"):
        list(engines.run_ray(TASKS, toy_tasks.measure, address="127.0.0.1:1"))
