"""Sweeps: the grid as it was asked for, each task once, the same file from every engine, damage and failure seen."""

import contextlib
import itertools
import json
import os
import socket
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import psutil
import pytest
import toy_tasks
import yaml

from f5lab import paths
from f5lab.errors import AsrError, CaseError, RunError
from f5lab.scale import sweep_specs, sweep_tasks, sweeps
from f5lab.specs import load_case

LONG = pytest.mark.skipif(not os.environ.get("F5LAB_LONG_TESTS"), reason="a Ray cluster; set F5LAB_LONG_TESTS=1")
CASE = str(paths.default_case())
GRID = {"cases": [CASE], "grid": {"weights": ["raw", "ema"], "nfe_step": [8, 16]}, "prompts": 2, "seeds": [0, 1]}


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("F5LAB_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(sweep_tasks, "_recogniser", lambda asr: f"weights of {asr}")
    return tmp_path / "cache"


def write(tmp_path: Path, told: dict[str, Any]) -> Path:
    path = tmp_path / "sweep.yaml"
    path.write_text(yaml.safe_dump(told, sort_keys=False), encoding="utf-8")
    return path


def expand(tmp_path: Path, told: dict[str, Any] = GRID) -> list[dict[str, Any]]:
    return list(sweep_tasks.expand(sweep_specs.load_sweep(write(tmp_path, told)), device="cpu", threads=1))


def test_the_grid_is_every_combination_in_order(tmp_path: Path) -> None:
    tasks = expand(tmp_path)
    found = [(t["recipe"]["weights"], t["recipe"]["nfe_step"], t["prompt"]["id"], t["seed"]) for t in tasks]
    assert found == list(itertools.product(["raw", "ema"], [8, 16], ["p01", "p02"], [0, 1]))
    assert len({t["key"] for t in tasks}) == 16 and json.loads(json.dumps(tasks)) == tasks


def test_settings_are_laid_over_the_recipe_that_is_named(tmp_path: Path) -> None:
    recipes = {
        "as it is": {},
        "as trained": {"start": "repaired"},
        "one option": {"arch": {"pe_attn_head": 1}, "sway_sampling_coef": None},
    }
    plain, trained, one = (
        t["recipe"] for t in expand(tmp_path, {"cases": [CASE], "recipes": recipes, "prompts": ["p03"]})
    )
    case = load_case(CASE)
    assert trained["front_end"] == case.training.front_end == "raw" != plain["front_end"]
    assert one["arch"] == plain["arch"] | {"pe_attn_head": 1} and "pe_attn_head" not in {
        k for k, v in plain["arch"].items() if v == 1
    }
    assert one["sway_sampling_coef"] is None and plain["sway_sampling_coef"] == -1.0


@pytest.mark.parametrize(
    "change, says",
    [
        ({"seed": [0]}, "seed: unknown key"),
        ({"grid": {"nfe_steps": [8]}}, "no setting 'nfe_steps'; known: start, weights"),
        ({"grid": {"nfe_step": [0]}}, "greater than 0"),
        ({"grid": {"nfe_step": []}}, "nfe_step: no values"),
        ({"grid": {"arch": [{"heads_": 4}]}}, "heads_"),
        ({"recipes": {"a": {"weigths": "raw"}}}, "recipes.a.weigths: unknown key"),
        ({"seeds": [1, 1]}, "seeds repeat"),
        ({"cases": []}, "cases"),
        ({"measures": ["mos"]}, "measures"),
        ({"checkpoints": ["nowhere/model_*.pt"]}, "no checkpoint"),
        ({"prompts": 0}, "greater than or equal to 1"),
        ({"seeds": [-1]}, "greater than or equal to 0"),
        ({"grid": {"nfe_step": ["8"]}}, "nfe_step: '8' is not a number"),
        ({"grid": {"nfe_step": [[8]]}}, "nfe_step: [8] is not a number"),
        ({"grid": {"nfe_step": [True]}}, "nfe_step: True is not a number"),
        ({"grid": {"cfg_strength": [float("inf")]}}, "cfg_strength: inf is not a number"),
        ({"recipes": {"odd": {"sway_sampling_coef": float("nan")}}}, "finite number"),
        ({"recipes": {"odd": {"speed": float("inf")}}}, "finite number"),
        ({"prompts": ["p99"]}, "prompts that no case has: p99"),
        ({"cases": ["gone.yaml"]}, "gone.yaml"),
    ],
)  # fmt: skip
def test_what_cannot_be_meant_is_refused(change: dict[str, Any], says: str, tmp_path: Path) -> None:
    with pytest.raises(CaseError) as refused:
        expand(tmp_path, GRID | change)
    assert says in str(refused.value)


def test_a_key_is_of_the_content_and_not_of_names_and_places(tmp_path: Path) -> None:
    (told,) = expand(tmp_path, {"cases": [CASE], "prompts": ["p01"]})
    copy = tmp_path / "elsewhere.ogg"
    copy.write_bytes(Path(told["prompt"]["ref_audio"]).read_bytes())
    moved = told | {
        "case": "renamed",
        "recipe_name": "x",
        "prompt": told["prompt"] | {"ref_audio": str(copy), "id": "other"},
    }
    assert sweep_tasks.content_key(moved) == told["key"]
    copy.write_bytes(copy.read_bytes() + b"x")
    assert sweep_tasks.content_key(moved) != told["key"]
    for change in (
        {"seed": 1},
        {"threads": 2},
        {"language": "en"},
        {"asr": "small"},
        {"recipe": told["recipe"] | {"speed": 0.9}},
    ):
        assert sweep_tasks.content_key(told | change) != told["key"], change


def test_a_worker_with_other_files_refuses(tmp_path: Path) -> None:
    (told,) = expand(tmp_path, {"cases": [CASE], "prompts": ["p01"]})
    with pytest.raises(RunError, match="other files or versions"):
        sweep_tasks.perform(told | {"seed": 5})


def test_engines_write_the_same_bytes_and_nothing_is_done_twice(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tasks, files = expand(tmp_path), []
    monkeypatch.setenv("TOY_MARKS", str(tmp_path))
    for name, perform, jobs in (("here", toy_tasks.measure, 1), ("processes", toy_tasks.die_once, 2)):
        monkeypatch.setenv("F5LAB_CACHE", str(tmp_path / name))
        outcome = sweeps.run(tasks, perform, jobs=jobs)
        assert (outcome.computed, outcome.cached, outcome.failed) == (16, 0, [])
        files.append(sweeps.write_parquet(outcome.rows, tmp_path / f"{name}.parquet").read_bytes())
    assert files[0] == files[1] and (tmp_path / "died").exists()
    again = sweeps.run(tasks, toy_tasks.refuse)
    assert (again.computed, again.cached) == (0, 16)
    assert sweeps.write_parquet(again.rows, tmp_path / "again.parquet").read_bytes() == files[0]
    more = sweeps.run(expand(tmp_path, GRID | {"seeds": [0, 1, 2]}), toy_tasks.measure)
    assert (more.computed, more.cached) == (8, 16)


def test_a_damaged_row_is_computed_again(tmp_path: Path, cache: Path) -> None:
    tasks = expand(tmp_path)
    first = sweeps.run(tasks, toy_tasks.measure)
    entry = next((cache / "sweep").rglob("*.entry"))
    entry.write_bytes(entry.read_bytes().replace(b'"cer": 0.', b'"cer": 1.'))
    again = sweeps.run(tasks, toy_tasks.measure)
    assert again.computed == 1 and again.rows == first.rows


def test_what_failed_says_why_and_is_tried_again(tmp_path: Path) -> None:
    tasks = expand(tmp_path)
    outcome = sweeps.run(tasks, toy_tasks.fail)
    assert len(outcome.failed) == 8 and "p01 seed 1 (no voice)" in outcome.failed[0]
    frame = sweeps.read(sweeps.write_parquet(outcome.rows, tmp_path / "a.parquet"))
    assert frame["cer"].isna().sum() == 8 and sweeps.best(frame) is None
    assert [row["failed"] for row in sweeps.summarise(frame)] == [2, 2, 2, 2]
    assert sweeps.run(tasks, toy_tasks.measure).computed == 8


def test_two_cases_are_compared_within_each(tmp_path: Path) -> None:
    other = tmp_path / "other.yaml"
    told = yaml.safe_load(Path(CASE).read_text(encoding="utf-8")) | {"name": "other"}
    other.write_text(yaml.safe_dump(_absolute(told, Path(CASE).parent)), encoding="utf-8")
    frame = _frame(tmp_path, GRID | {"cases": [CASE, str(other)]}, toy_tasks.measure)
    frame["cer"] = (
        0.5 + 0.1 * (frame["weights"] == "ema") + 0.3 * (frame["case"] == "other") + 0.01 * frame["nfe_step"] / 8
    )
    found = sweeps.best(frame)
    assert found.best == "weights raw, nfe_step 8" and found.rivals[0].worse.mean == pytest.approx(0.01)
    assert found.value.n == 2  # the same two prompts in both cases are two, not four
    assert sweeps.summarise(frame)[0]["case"] == "ptbr"


def _absolute(told: Any, home: Path) -> Any:
    if isinstance(told, dict):
        return {k: _absolute(v, home) for k, v in told.items()}
    if isinstance(told, list):
        return [_absolute(v, home) for v in told]
    return str((home / told).resolve()) if isinstance(told, str) and told.startswith("../") else told


def _frame(tmp_path: Path, told: dict[str, Any], perform: Any) -> Any:
    outcome = sweeps.run(expand(tmp_path, told), perform)
    return sweeps.read(sweeps.write_parquet(outcome.rows, tmp_path / "f.parquet"))


def test_a_plot_shows_the_means_of_the_rows(tmp_path: Path) -> None:
    import matplotlib.pyplot as plt

    frame = _frame(tmp_path, GRID, toy_tasks.measure)
    figure = sweeps.plot(frame, x="nfe_step", y="cer", by="weights")
    drawn = {
        line.get_label(): line.get_ydata() for line in figure.axes[0].lines if not line.get_label().startswith("_")
    }
    for weights in ("raw", "ema"):
        chosen = frame[frame["weights"] == weights]
        assert list(drawn[weights]) == pytest.approx([chosen[chosen["nfe_step"] == n]["cer"].mean() for n in (8, 16)])
    plt.close(figure)
    with pytest.raises(RunError, match="no such column in a sweep: steps"):
        sweeps.plot(frame, x="steps")
    with pytest.raises(RunError, match="duration_ratio was not measured"):
        sweeps.plot(frame, y="duration_ratio")


def test_a_case_that_states_another_language_than_is_spoken_is_refused(tmp_path: Path) -> None:
    text = Path(CASE).read_text(encoding="utf-8").replace("language: pt", "language: en")
    (tmp_path / "case.yaml").write_text(text.replace("../../", f"{paths.data_dir()}/"), encoding="utf-8")
    told = {"cases": [str(tmp_path / "case.yaml")], "prompts": 2}
    with pytest.raises(AsrError, match="Whisper would translate"):
        list(expand(tmp_path, told | {"measures": ["cer"]}))


def test_a_language_that_no_case_states_is_heard_once_for_all_tasks(tmp_path: Path) -> None:
    text = Path(CASE).read_text(encoding="utf-8").replace("language: pt", "").replace("../../", f"{paths.data_dir()}/")
    (tmp_path / "case.yaml").write_text(text, encoding="utf-8")
    told = {"cases": [str(tmp_path / "case.yaml")], "prompts": 2}
    assert {task["language"] for task in expand(tmp_path, told | {"measures": ["cer"]})} == {"pt"}
    assert {task["language"] for task in expand(tmp_path, told | {"measures": ["duration"]})} == {"en"}


def test_an_impossible_date_is_no_traceback(tmp_path: Path) -> None:
    (tmp_path / "sweep.yaml").write_text("cases: [case.yaml]\nwhen: 2026-13-45\n")
    with pytest.raises(CaseError, match="not YAML"):
        sweep_specs.load_sweep(tmp_path / "sweep.yaml")


def test_what_is_no_sweep_is_refused(tmp_path: Path) -> None:
    (tmp_path / "a.parquet").write_bytes(b"PAR1 no")
    with pytest.raises(RunError, match="no Parquet file"):
        sweeps.read(tmp_path / "a.parquet")
    with pytest.raises(RunError, match="is a folder"):
        sweeps.write_parquet([], tmp_path)


def test_a_real_clip_is_measured_and_repeats_to_the_bit(tmp_path: Path) -> None:
    tasks = expand(tmp_path, {"cases": [CASE], "recipes": {"as trained": {"start": "repaired", "nfe_step": 2}},
                              "prompts": ["p01"], "measures": ["loss", "duration"]})  # fmt: skip
    (row,) = sweeps.run(tasks, sweep_tasks.perform).rows
    assert row["problem"] == "" and 0 < row["loss"] < 1 and 0.3 < row["duration_ratio"] < 3
    assert row["forwards"] == 2 and row["cost_frames"] > 100 and row["cer"] is None
    assert {k: v for k, v in sweep_tasks.perform(tasks[0]).items() if k != "seconds" and k in row} == {
        k: row[k] for k in ("forwards", "cost_frames", "loss", "duration_ratio", "notes", "problem")
    }


def test_a_recipe_that_does_not_fit_the_weights_is_a_row_with_its_reason(tmp_path: Path) -> None:
    tasks = expand(
        tmp_path, {"cases": [CASE], "grid": {"arch": [{"depth": 7}]}, "prompts": ["p01"], "measures": ["loss"]}
    )
    outcome = sweeps.run(tasks, sweep_tasks.perform)
    assert len(outcome.failed) == 1 and "p01 seed 0" in outcome.failed[0] and outcome.rows[0]["loss"] is None


@LONG
def test_a_ray_cluster_that_loses_a_node_writes_what_one_machine_writes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("ray")
    from ray.cluster_utils import Cluster

    tasks, marks = expand(tmp_path, GRID | {"seeds": [0, 1, 2]}), tmp_path / "marks"
    marks.mkdir()
    monkeypatch.setenv("TOY_MARKS", str(marks))
    monkeypatch.setenv("RAY_USAGE_STATS_ENABLED", "0")
    monkeypatch.setenv("PYTHONPATH", str(Path(__file__).parent))  # workers import toy_tasks
    expected = sweeps.run(tasks, toy_tasks.measure).rows
    monkeypatch.setenv("F5LAB_CACHE", str(tmp_path / "cluster"))
    cluster = Cluster(initialize_head=True, head_node_args=_node())
    try:
        cluster.add_node(**_node())
        cluster.wait_for_nodes()
        with ThreadPoolExecutor(1) as aside:
            lost = aside.submit(_lose_a_node_when_two_work, cluster, marks)
            outcome = sweeps.run(tasks, toy_tasks.measure_after_the_loss, engine="ray", address=cluster.address)
            lost.result()
    finally:
        cluster.shutdown()
    begun = [path.name.rpartition("-") for path in marks.iterdir() if path.name != toy_tasks.LOST]
    assert len({pid for _, _, pid in begun}) > 1 and len(begun) > len(tasks)  # something was begun twice
    assert outcome.failed == [] and outcome.computed == len(tasks) == 24
    files = [
        sweeps.write_parquet(rows, tmp_path / f"{i}.parquet").read_bytes()
        for i, rows in enumerate((expected, outcome.rows))
    ]
    assert files[0] == files[1]


def _node() -> dict[str, Any]:
    """A node of one core. Ports that are known from the start: a raylet waits 15 s for those that its agents choose, and then dies."""
    with contextlib.ExitStack() as stack:
        held = [stack.enter_context(contextlib.closing(socket.socket())) for _ in range(4)]
        for one in held:
            one.bind(("127.0.0.1", 0))
        ports = [one.getsockname()[1] for one in held]
    names = ("metrics_agent_port", "metrics_export_port", "dashboard_agent_listen_port", "runtime_env_agent_port")
    return {"num_cpus": 1, "object_store_memory": 80 << 20, "include_dashboard": False, **dict(zip(names, ports))}


def _lose_a_node_when_two_work(cluster: Any, marks: Path) -> None:
    """Kill all processes of the node that is not the head, in the middle of a task."""
    until = time.monotonic() + 60
    while len({p.name.rpartition("-")[2] for p in marks.iterdir()}) < 2:
        assert time.monotonic() < until, "only one node works"
        time.sleep(0.05)
    (second,) = cluster.worker_nodes
    raylet = second.all_processes["raylet"][0].process.pid
    workers = psutil.Process(raylet).children(recursive=True)  # they outlive it by long enough to end their task
    cluster.remove_node(second, allow_graceful=False)
    for worker in workers:
        with contextlib.suppress(psutil.NoSuchProcess):
            worker.kill()
    (marks / toy_tasks.LOST).touch()
