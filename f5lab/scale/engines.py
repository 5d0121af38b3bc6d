"""Where tasks run: in this process, in processes of this machine, or on a Ray cluster. Lost workers' tasks are given out again.

A task is (key, JSON-able description); what performs it returns a JSON-able row. Nothing here knows what the tasks are.
"""

import importlib.util
import logging
import multiprocessing
import os
import socket
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass
from typing import Any

from f5lab.errors import LabError, RunError

logger = logging.getLogger(__name__)

Task = tuple[str, dict[str, Any]]
Perform = Callable[[dict[str, Any]], dict[str, Any]]
RETRIES = 3
IN_FLIGHT = 512
CONNECT_S = 10.0


@dataclass(frozen=True)
class Done:
    """One task that ended; `row` is None, and `lost` says why, where its worker was lost every time."""

    key: str
    row: dict[str, Any] | None
    lost: str = ""


def run_here(tasks: Sequence[Task], perform: Perform) -> Iterator[Done]:
    """Perform tasks in this process, one by one."""
    for key, told in tasks:
        yield Done(key, perform(told))


def run_processes(tasks: Sequence[Task], perform: Perform, *, jobs: int, retries: int = RETRIES) -> Iterator[Done]:
    """Perform tasks in `jobs` processes, as they end.

    A process that dies takes the pool with it: a new one is made, and what had not ended is given out again, a task that was
    running each time at most `retries` times more.
    """
    left, tries = dict(tasks), dict.fromkeys(dict(tasks), 0)
    while left:
        pool = ProcessPoolExecutor(jobs, mp_context=multiprocessing.get_context("spawn"))
        try:
            yield from _drain(pool, left, tries, perform, jobs)
        except BrokenProcessPool:
            logger.warning("a worker process was lost; %d tasks are given out again", len(left))
        finally:
            pool.shutdown(wait=False, cancel_futures=True)
        for key in [k for k in left if tries[k] > retries]:
            del left[key]
            yield Done(key, None, f"its worker process was lost {tries[key]} times")


def _drain(
    pool: ProcessPoolExecutor, left: dict[str, dict[str, Any]], tries: dict[str, int], perform: Perform, jobs: int
) -> Iterator[Done]:
    """Yield tasks as they end and take them out of `left`; a lost process raises. Those in flight then count as tried."""
    waiting = iter(list(left.items()))
    flying: dict[Future[dict[str, Any]], str] = {}

    def give_out() -> None:
        while len(flying) < jobs and (task := next(waiting, None)) is not None:
            flying[pool.submit(perform, task[1])] = task[0]

    try:
        give_out()
        while flying:
            for future in wait(flying, return_when=FIRST_COMPLETED).done:
                row = future.result()
                key = flying.pop(future)
                del left[key]
                yield Done(key, row)
            give_out()
    except BrokenProcessPool:
        for key in flying.values():
            tries[key] += 1
        raise


def run_ray(
    tasks: Sequence[Task], perform: Perform, *, address: str | None = None, cpus: int = 1, gpus: float = 0.0, retries: int = RETRIES
) -> Iterator[Done]:  # fmt: skip
    """Perform tasks on a Ray cluster, as they end.

    Parameters
    ----------
    address : str, optional
        Of a running cluster (``auto``, ``host:port``); left out, Ray is started on this machine and stopped at the end.
    cpus : int
        Cores that one task needs.
    gpus : float
        GPUs that one task needs; a share lets several tasks use one.

    Raises
    ------
    RunError
        Ray is not installed, cannot be started or reached, or the cluster has not what one task needs.
    """
    if importlib.util.find_spec("ray") is None:
        raise RunError("Ray is not installed", next_step="pip install 'f5lab[sweep]', or use --engine local")
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    import ray

    ours = not ray.is_initialized()
    if ours:
        _connect(ray, address)
    try:
        _check_resources(ray, cpus, gpus)
        yield from _stream(
            ray, tasks, ray.remote(num_cpus=cpus, num_gpus=gpus, max_retries=retries, max_calls=0)(perform), retries
        )
    finally:
        if ours:
            ray.shutdown()


def _connect(ray: Any, address: str | None) -> None:
    try:
        _knock(address or "")
        ray.init(
            address=address, include_dashboard=False if address is None else None, configure_logging=False, log_to_driver=False
        )  # fmt: skip
    except (ConnectionError, OSError, RuntimeError, ValueError, ray.exceptions.RayError) as error:
        where = f"Ray cluster {address} cannot be reached" if address else "Ray could not be started on this machine"
        line = " ".join(str(error).split())[:300] or type(error).__name__
        raise RunError(
            f"{where} ({line})", next_step="start one with `ray start --head` and pass --address, or use --engine local"
        ) from error


def _knock(address: str) -> None:
    """Raise OSError where nobody listens at ``host:port``; Ray itself would try again for minutes."""
    host, _, port = address.removeprefix("ray://").rpartition(":")
    if host and port.isdigit():
        socket.create_connection((host.strip("[]"), int(port)), timeout=CONNECT_S).close()


def _check_resources(ray: Any, cpus: int, gpus: float) -> None:
    """Refuse what would wait for ever: no node that is there now has what one task needs."""
    nodes = [node["Resources"] for node in ray.nodes() if node["Alive"]]
    if not any(node.get("CPU", 0) >= cpus and node.get("GPU", 0) >= gpus for node in nodes):
        needs = f"{cpus} cores" + (f" and {gpus:g} GPUs" if gpus else "")
        raise RunError(
            f"no node of the Ray cluster has what a task needs, {needs}",
            next_step="use --device cpu, --gpus with a share, or fewer --threads",
        )


def _stream(ray: Any, tasks: Sequence[Task], remote: Any, retries: int) -> Iterator[Done]:
    """Yield tasks as they end. With ``max_calls=0`` a worker keeps its models for the next task, on a GPU too."""
    waiting, flying = iter(tasks), {}

    def give_out() -> None:
        while len(flying) < IN_FLIGHT and (task := next(waiting, None)) is not None:
            flying[remote.remote(task[1])] = task[0]

    give_out()
    while flying:
        ready, _ = ray.wait(list(flying), num_returns=1)
        for reference in ready:
            key = flying.pop(reference)
            try:
                yield Done(key, ray.get(reference))
            except ray.exceptions.RayTaskError as error:
                if isinstance(error.cause, LabError):
                    raise error.cause from None
                raise
            except (ray.exceptions.WorkerCrashedError, ray.exceptions.NodeDiedError, ray.exceptions.OutOfMemoryError,
                    ray.exceptions.ObjectLostError, ray.exceptions.RaySystemError) as error:  # fmt: skip
                yield Done(key, None, f"its worker was lost {retries + 1} times ({type(error).__name__})")
        give_out()
