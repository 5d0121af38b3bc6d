"""The hostile and the benign corpus of tests/ through f5lab, picklescan and torch's own restricted loader (and modelscan).

Every tool gets every file in a process of its own under limits. f5lab opens it as a user does; picklescan counts as having found a
file when it calls an import dangerous; torch counts as having refused when ``torch.load(weights_only=True)`` raises,
and as having fallen when it dies or needs more than 2 GB or 20 s. A canary shows whether anything was executed.
"""

import argparse
import json
import os
import resource
import subprocess
import sys
import tempfile
import time
import warnings
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from f5lab import paths, provenance
from f5lab.errors import CheckpointError
from f5lab.untrusted import file_reader, processes, second_opinion
from f5lab.untrusted.weights_files import open_weights_file

sys.path.insert(0, str(paths.project_root() / "tests"))
from benign import BUILDERS
from hostile.corpus import CORPUS, canary_folder, write_corpus

TORCH_BYTES, TORCH_S = 2 << 30, 20


def by_f5lab(path: Path) -> str:
    """Return "refused", "died" (the reading process, a refusal too) or "accepted"."""
    try:
        open_weights_file(path)
    except CheckpointError as error:
        return "died" if "rule child-died" in str(error) else "refused"
    return "accepted"


def by_picklescan(path: Path) -> str:
    """Return "dangerous", "suspicious", "no opinion" (an error, or beyond its limits) or "clean"."""
    with path.open("rb") as file:
        found = second_opinion.scan_descriptor(file.fileno())
    if found.dangerous is None:
        return "no opinion"
    return "dangerous" if found.dangerous else "suspicious" if found.suspicious else "clean"


def by_torch(path: Path) -> str:
    """Return "refused", "loaded" or "fell", of a forked process under limits."""
    child = os.fork()
    if not child:
        resource.setrlimit(resource.RLIMIT_CPU, (TORCH_S, TORCH_S))
        resource.setrlimit(resource.RLIMIT_DATA, (TORCH_BYTES, TORCH_BYTES))
        warnings.simplefilter("ignore")
        try:
            torch.load(path, weights_only=True, map_location="cpu")
        except MemoryError:
            os._exit(2)
        except BaseException as error:  # noqa: BLE001  (torch raises anything)
            os._exit(2 if "memory" in str(error).lower() or isinstance(error, RecursionError) else 1)
        os._exit(0)
    _, status = os.waitpid(child, 0)
    return {0: "loaded", 1: "refused"}.get(os.waitstatus_to_exitcode(status), "fell")


MODELSCAN = """
import json, os, sys
from modelscan.modelscan import ModelScan
for path in sys.argv[1:]:
    child = os.fork()
    if not child:
        out = os.dup(1); os.dup2(os.open(os.devnull, os.O_WRONLY), 1); os.dup2(1, 2)
        try:
            scan = ModelScan(); found = scan.scan(path)
            word = "dangerous" if found["issues"] else "no opinion" if found["errors"] else "clean"
        except BaseException:
            word = "no opinion"
        os.write(out, (json.dumps([path, word]) + "\\n").encode()); os._exit(0)
    if os.waitpid(child, 0)[1]:
        print(json.dumps([path, "no opinion"]), flush=True)
"""


def by_modelscan(python: Path, files: dict[str, Path]) -> Callable[[Path], str]:
    """Return a function that runs modelscan over all files when it is first asked, a forked process for each."""
    said: dict[str, str] = {}

    def ask(path: Path) -> str:
        if not said:
            command = [python, "-I", "-c", MODELSCAN, *files.values()]
            done = subprocess.run(command, capture_output=True, text=True, check=True, timeout=1800)
            said.update(json.loads(line) for line in done.stdout.splitlines())
        return said[str(path)]

    return ask


def measure(files: dict[str, Path], groups: dict[str, str], tools: dict[str, Callable[[Path], str]]) -> dict[str, Any]:
    """Return each tool's counts of outcomes, whole and by group, its seconds, and every single outcome."""
    results: dict[str, Any] = {}
    for tool, ask in tools.items():
        begun = time.perf_counter()
        single = {name: ask(path) for name, path in files.items()}
        seconds = time.perf_counter() - begun
        table: dict[str, Counter] = {}
        for name, outcome in single.items():
            table.setdefault(groups[name], Counter())[outcome] += 1
        results[tool] = {"counts": Counter(single.values()), "groups": table, "seconds": seconds, "files": single}
    return results


PEAK = """
import os, resource, sys
from f5lab.untrusted import sandbox
for path in sys.argv[1:]:
    try: sandbox.read_manifest(os.open(path, os.O_RDONLY))
    except sandbox.Refused: pass
print(resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss * 1024)
"""


def largest_reader(files: dict[str, Path]) -> int:
    """Return the most bytes in memory of any process that read one of the files.

    They are started by a small process: a child counts what its parent had when it was forked.
    """
    command = [sys.executable, "-c", PEAK, *map(str, files.values())]
    return int(subprocess.run(command, capture_output=True, text=True, check=True).stdout)


def show(results: dict[str, Any], groups: dict[str, str], stopped: dict[str, set[str]]) -> None:
    """Print a table: how many files of each group each tool stopped."""
    sizes = Counter(groups.values())
    print(f"{'group':<16}{'files':>6}" + "".join(f"{tool:>14}" for tool in results))
    for group, size in sizes.items():
        cells = [
            sum(n for outcome, n in found["groups"][group].items() if outcome in stopped[tool])
            for tool, found in results.items()
        ]
        print(f"{group:<16}{size:>6}" + "".join(f"{cell:>14}" for cell in cells))
    cells = [
        sum(n for outcome, n in found["counts"].items() if outcome in stopped[tool]) for tool, found in results.items()
    ]
    print(f"{'all':<16}{sum(sizes.values()):>6}" + "".join(f"{cell:>14}" for cell in cells))
    for tool, found in results.items():
        print(f"  {tool}: {dict(found['counts'])}, {found['seconds']:.1f} s")


def main() -> None:
    """Build both corpora, ask every tool and write ``benchmarks/results/hostile.json``."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--modelscan", type=Path, help="the Python of an environment of its own that has it")
    parser.add_argument("--out", type=Path, default=paths.project_root() / "benchmarks" / "results")
    given = parser.parse_args()
    stopped = {
        "f5lab": {"refused", "died"},
        "picklescan": {"dangerous"},
        "torch": {"refused"},
        "modelscan": {"dangerous"},
    }
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place)
        canary = canary_folder(folder / "canary") / "canary"
        for name in ("hostile", "benign"):
            (folder / name).mkdir()
        bad = write_corpus(folder / "hostile")
        good = {}
        for name, build in BUILDERS.items():
            (folder / "benign" / name).mkdir()
            good[name] = build(folder / "benign" / name)
        groups = {item.name: item.group for item in CORPUS}
        tools = {"f5lab": by_f5lab, "picklescan": by_picklescan, "torch": by_torch}
        if given.modelscan:
            tools["modelscan"] = by_modelscan(given.modelscan, bad)
        found = measure(bad, groups, tools)
        peak = largest_reader(bad)
        if given.modelscan:
            tools["modelscan"] = by_modelscan(given.modelscan, good)
        kept = measure(good, dict.fromkeys(good, "benign"), tools)
        executed = canary.exists()
    print("hostile files stopped, by group")
    show(found, groups, stopped)
    print("benign files stopped")
    show(kept, dict.fromkeys(good, "benign"), stopped)
    print(f"largest reading process of f5lab: {peak >> 20} MiB of {file_reader.MEMORY_BYTES >> 20} MiB")
    print(f"anything executed: {'YES' if executed else 'no'}")
    result = {
        "hostile": found, "benign": kept, "executed": executed, "reader_cap_bytes": file_reader.MEMORY_BYTES,
        "largest_reader_bytes": peak, "reader_wall_limit_s": processes.WALL_S, "hardware": provenance.hardware(),
        "versions": provenance.versions(),
    }  # fmt: skip
    given.out.mkdir(parents=True, exist_ok=True)
    paths.write_text(given.out / "hostile.json", json.dumps(result, indent=1) + "\n")
    if executed or any(outcome == "accepted" for outcome in found["f5lab"]["files"].values()):
        sys.exit("a hostile file was accepted or executed")


if __name__ == "__main__":
    main()
