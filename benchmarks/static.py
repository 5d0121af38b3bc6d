"""Anatomy and comparison of full-size checkpoints against merely reading their bytes, and against ``torch.load`` and a loop.

``python benchmarks/static.py [--sizes 8MB … full] [--rounds 12] [--folder FOLDER]``. Every measurement is a fresh process, the page
cache warm unless said otherwise; its wall-clock and processor time and the peak of its anonymous memory are taken. Within a process, and in turns, so
that whatever else the machine does hits all of them:

* floor: the bytes of those weights through a memory map, in as many threads, the largest 8-byte word of each 2 MiB. It is the
  fastest of the plain reads tried (a sum of words, a copy into a buffer of 2 MiB)
* pass: ``stored_scans.scan_checkpoint`` with nothing remembered, hashing included
* again: the same, remembered
* from disk: floor and pass of the largest size, the files dropped from the page cache before each

The baseline is what one would write: ``torch.load``, then for every tensor, in float32, either norm, mean, deviation, extremes,
NaN, infinities, zeros and a histogram, or relative L2, cosine, largest change and projection. f5lab's pass computes both.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from datetime import date
from pathlib import Path
from typing import Any

import numpy as np

from f5lab import paths, provenance

SETS = {"raw and EMA": False, "raw, EMA and base": True}
SAMPLE_S = 0.005

FLOOR_AND_PASS = """
import gc, json, mmap, os, shutil, sys, time
from concurrent.futures import ThreadPoolExecutor
import numpy as np
from f5lab import checkpoints, paths
from f5lab.weights import stored_scans
from f5lab.weights.scans import _cores

checkpoint_file, base_file, rounds, cold_rounds = sys.argv[1], sys.argv[2], int(sys.argv[3]), int(sys.argv[4])

def opened():
    return checkpoints.open_checkpoint(checkpoint_file), checkpoints.open_checkpoint(base_file) if base_file else None

def floor(checkpoint, base):
    held = [(checkpoint, slot) for slot in ("raw", "ema")] + ([(base, "ema")] if base else [])
    parts = {id(file): file.file.parts[0] for file, _ in held}
    maps = {key: np.frombuffer(mmap.mmap(part.descriptor, part.manifest.size, access=mmap.ACCESS_READ), np.uint8)
            for key, part in parts.items()}
    jobs = [(maps[id(file)], place, min(1 << 21, stored.storage.place + stored.storage.nbytes - place))
            for file, slot in held for stored in file.stored[slot].values()
            for place in range(stored.storage.place, stored.storage.place + stored.storage.nbytes, 1 << 21)]
    def largest(job):
        memory, place, size = job
        words = memory[place : place + size // 8 * 8].view(np.int64)
        return int(words.max(initial=0))
    with ThreadPoolExecutor(_cores()) as pool:
        list(pool.map(largest, jobs))
    return sum(size for _, _, size in jobs)

def forget():
    shutil.rmtree(paths.cache_dir("scans"))

def drop():
    gc.collect()  # pages that are mapped stay
    for file in filter(None, (checkpoint_file, base_file)):
        descriptor = os.open(file, os.O_RDONLY)
        os.fsync(descriptor)
        os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
        os.close(descriptor)

def timed(work, *given):
    wall, cpu = time.perf_counter(), time.process_time()
    result = work(*given)
    return {"wall_s": time.perf_counter() - wall, "cpu_s": time.process_time() - cpu}, result

first = None
for _ in range(rounds):
    plain, size = timed(floor, *opened())
    files = opened()
    forget()
    scanned, found = timed(stored_scans.scan_checkpoint, *files)
    first = first or scanned
    again, same = timed(stored_scans.scan_checkpoint, *opened())
    assert same.scan == found.scan
    print(json.dumps({"bytes": size, "floor": plain, "pass": scanned, "again": again}))
print(json.dumps({"first": first}))
del files, found, same
for _ in range(cold_rounds):
    drop()
    plain, _ = timed(floor, *opened())
    drop()
    forget()
    scanned, found = timed(stored_scans.scan_checkpoint, *opened())
    del found
    print(json.dumps({"floor": plain, "pass": scanned}))
"""

BASELINE = """
import json, sys, torch
torch.set_num_threads(int(sys.argv[3]))
loaded = torch.load(sys.argv[1], map_location="cpu", weights_only=True)
base = torch.load(sys.argv[2], map_location="cpu", weights_only=True)["ema_model_state_dict"] if sys.argv[2] else None
raw, ema, found = loaded["model_state_dict"], loaded["ema_model_state_dict"], {}
def facts(t):
    figures = [t.norm(), t.mean(), t.std(), t.min(), t.max(), t.isnan().sum(), t.isinf().sum(), (t == 0).sum()]
    return [f.item() for f in figures] + torch.histc(t.abs(), 64, 0, 4).tolist()
def change(a, b, p):
    d, u, v = a - b, a - p, b - p
    figures = [d.norm(), a.norm(), b.norm(), a @ b, d.abs().max(), u @ u, u @ v, v @ v, p.norm()]
    return [f.item() for f in figures]
for name, a in raw.items():
    b = ema["ema_model." + name]
    found[name] = change(*(t.flatten() for t in (a, b, base["ema_model." + name]))) if base else [facts(a), facts(b)]
json.dumps(found)
"""

COMMAND = "from f5lab.__main__ import main; import sys; sys.exit(main(sys.argv[1:]))"


def run_child(code: str, *given: str, cache: Path) -> dict[str, Any]:
    """Run Python code in a process of its own.

    Returns
    -------
    dict
        wall_s, cpu_s, anonymous_bytes (peak, sampled every 5 ms) and lines, what it printed.
    """
    environment = {**os.environ, "F5LAB_CACHE": str(cache)}
    start = time.perf_counter()
    child = subprocess.Popen([sys.executable, "-c", code, *given], stdout=subprocess.PIPE, text=True, env=environment)
    peak = [0]
    watcher = threading.Thread(target=_watch, args=(child, peak))
    watcher.start()
    text = child.stdout.read() if child.stdout else ""
    _, status, usage = os.wait4(child.pid, 0)
    child.returncode = os.waitstatus_to_exitcode(status)
    wall = time.perf_counter() - start
    watcher.join()
    if child.returncode:
        raise SystemExit(f"a measured process failed with status {child.returncode}")
    cpu = usage.ru_utime + usage.ru_stime
    return {"wall_s": wall, "cpu_s": cpu, "anonymous_bytes": peak[0], "lines": text.splitlines()}


def _watch(child: subprocess.Popen[str], peak: list[int]) -> None:
    status = Path(f"/proc/{child.pid}/status")
    while child.returncode is None:
        try:
            text = status.read_text()
        except (FileNotFoundError, ProcessLookupError):
            return
        found = [line for line in text.splitlines() if line.startswith("RssAnon:")]
        peak[0] = max(peak[0], int(found[0].split()[1]) * 1024 if found else 0)
        time.sleep(SAMPLE_S)


def warm(*files: Path) -> None:
    """Read files once, so that they lie in memory."""
    for file in files:
        paths.sha256_file(file)


def median(values: list[float]) -> float:
    """Return the median as a plain number."""
    return float(statistics.median(values))


def measure_pass(checkpoint: Path, base: Path | None, rounds: int, cold_rounds: int, cache: Path) -> dict[str, Any]:
    """Return floor, pass and remembered pass as medians over rounds of one process, and the ratios of each pair; with
    `cold_rounds` floor and pass from disk too."""
    given = [str(checkpoint), str(base or ""), str(rounds), str(cold_rounds)]
    child = run_child(FLOOR_AND_PASS, *given, cache=cache)
    lines = list(map(json.loads, child["lines"]))
    turns, last, cold = lines[:rounds], lines[rounds], lines[rounds + 1 :]
    kept = turns[1:] or turns
    result: dict[str, Any] = {
        "bytes": turns[0]["bytes"],
        "rounds": len(kept),
        "anonymous_bytes": child["anonymous_bytes"],
    }
    for what in ("floor", "pass", "again"):
        result[what] = {clock: median([turn[what][clock] for turn in kept]) for clock in ("wall_s", "cpu_s")}
    for clock in ("wall_s", "cpu_s"):
        result[f"pass_over_floor_{clock[:-2]}"] = median([turn["pass"][clock] / turn["floor"][clock] for turn in kept])
    if cold:
        result["from_disk"] = {what: median([turn[what]["wall_s"] for turn in cold]) for what in ("floor", "pass")}
        result["from_disk"] |= {
            "pass_over_floor": median([turn["pass"]["wall_s"] / turn["floor"]["wall_s"] for turn in cold]),
            "rounds": len(cold),
        }
    return result | {"first_pass": last["first"]}


def measure_commands(checkpoint: Path, base: Path | None, rounds: int, cache: Path) -> dict[str, Any]:
    """Return whole processes, start included: f5lab's command with nothing remembered, and the baseline; in turns."""
    arguments = ["diff", str(checkpoint), str(base)] if base else ["inspect", "--stats", str(checkpoint)]
    turns = []
    for turn in range(rounds):
        own = run_child(COMMAND, *arguments, "--json", os.devnull, cache=cache / f"turn{turn}")
        plain = run_child(BASELINE, str(checkpoint), str(base or ""), str(provenance.hardware()["cores"]), cache=cache)
        turns.append({"f5lab": own, "baseline": plain})
    result: dict[str, Any] = {"command": " ".join(arguments[: -1 if not base else -2]), "rounds": rounds}
    for who in ("f5lab", "baseline"):
        result[who] = {key: median([t[who][key] for t in turns]) for key in ("wall_s", "cpu_s", "anonymous_bytes")}
    for key in ("wall_s", "cpu_s", "anonymous_bytes"):
        result[f"times_less_{key}"] = median([t["baseline"][key] / t["f5lab"][key] for t in turns])
    return result


def slope(sizes: list[float], times: list[float]) -> float | None:
    """Return the exponent of time against size by least squares on logarithms; 1 is linear."""
    return float(np.polyfit(np.log(sizes), np.log(times), 1)[0]) if len(sizes) > 1 else None


def draw(rows: list[dict[str, Any]], fitted: dict[str, float | None], target: Path) -> None:
    """Write time against checkpoint size as SVG."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    figure, ax = plt.subplots(figsize=(6.4, 3.6))
    for what, style in (("floor", "--"), ("pass", "-"), ("again", ":")):
        points = [(row["checkpoint_bytes"] / 1e6, row["three"][what]["wall_s"]) for row in rows]
        power = fitted[what]
        label = {"floor": "bytes read", "pass": "one pass, hashed", "again": "the second look"}[what]
        ax.plot(
            *zip(*points, strict=True), style, marker="o", label=f"{label}" + (f", size^{power:.2f}" if power else "")
        )
    ax.set(
        xscale="log", yscale="log", xlabel="checkpoint, MB", ylabel="s", title="raw, EMA and base: time against size"
    )
    ax.legend()
    figure.savefig(target, bbox_inches="tight", metadata={"Date": None})


def table(rows: list[dict[str, Any]]) -> str:
    """Return what was measured as Markdown."""
    lines = [
        "| checkpoint | read | floor s | pass s | pass/floor wall, CPU | first pass s | second look s | anonymous MB |",
        "|-|-|-|-|-|-|-|-|",
    ]
    for row in rows:
        for key in ("two", "three"):
            m = row[key]
            lines.append(
                f"| {row['size']} | {provenance.size_text(m['bytes'])} | {m['floor']['wall_s']:.3f} | {m['pass']['wall_s']:.3f} "
                f"| {m['pass_over_floor_wall']:.2f}, {m['pass_over_floor_cpu']:.2f} | {m['first_pass']['wall_s']:.2f} "
                f"| {m['again']['wall_s']:.3f} | {m['anonymous_bytes'] / 1e6:.0f} |"
            )
    for row in rows:
        for key in ("two", "three"):
            if cold := row[key].get("from_disk"):
                lines += ["", f"{row['size']}, {provenance.size_text(row[key]['bytes'])} from disk: floor {cold['floor']:.2f} s, "
                              f"pass {cold['pass']:.2f} s, {cold['pass_over_floor']:.2f} times"]  # fmt: skip
    lines += [
        "",
        "| command | f5lab s (CPU) | torch.load and a loop s (CPU) | times faster wall, CPU | anonymous MB | times leaner |",
        "|-|-|-|-|-|-|",
    ]
    for row in rows:
        for m in row.get("commands", []):
            own, plain = m["f5lab"], m["baseline"]
            lines.append(
                f"| {m['command']}, {row['size']} | {own['wall_s']:.1f} ({own['cpu_s']:.1f}) | {plain['wall_s']:.1f} ({plain['cpu_s']:.1f}) "
                f"| {m['times_less_wall_s']:.1f}, {m['times_less_cpu_s']:.1f} | {own['anonymous_bytes'] / 1e6:.0f} against "
                f"{plain['anonymous_bytes'] / 1e6:.0f} | {m['times_less_anonymous_bytes']:.1f} |"
            )
    return "\n".join(lines)


def measure(folder: Path, size: str, rounds: int, command_rounds: int) -> dict[str, Any]:
    """Make the files of one size, where they are not there yet, and measure everything on them."""
    from fullsize import make

    made = make(folder, size)
    checkpoint, base = Path(made["checkpoint"]), Path(made["base"])
    warm(checkpoint, base)
    with tempfile.TemporaryDirectory(prefix="f5lab-static-") as text:
        cache = Path(text)
        row = {
            "size": size, "checkpoint_bytes": made["checkpoint_bytes"], "parameters": made["parameters"],
            "two": measure_pass(checkpoint, None, rounds, command_rounds, cache),
            "three": measure_pass(checkpoint, base, rounds, command_rounds, cache),
        }  # fmt: skip
        if command_rounds:
            row["commands"] = [
                measure_commands(checkpoint, b, command_rounds, cache / str(b is None)) for b in (None, base)
            ]
    return row


def main() -> None:
    """Measure, print the tables, write JSON and plot."""
    from fullsize import SIZES

    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sizes", nargs="+", choices=SIZES, default=list(SIZES))
    parser.add_argument(
        "--rounds", type=int, default=12, help="of floor and pass; the first warms up and is not counted"
    )
    parser.add_argument("--command-rounds", type=int, default=5, help="of whole commands and of reads from disk, on the largest size")
    parser.add_argument(
        "--folder", type=Path, help="where checkpoints are made, a folder a size; default: one that is removed"
    )
    parser.add_argument("--out", type=Path, default=paths.project_root() / "benchmarks" / "results")
    given = parser.parse_args()
    rows = []
    for size in given.sizes:
        with tempfile.TemporaryDirectory(prefix="f5lab-static-") as temporary:
            folder = given.folder / size if given.folder else Path(temporary)
            rows.append(measure(folder, size, given.rounds, given.command_rounds if size == given.sizes[-1] else 0))
    sizes = [row["checkpoint_bytes"] for row in rows]
    fitted = {what: slope(sizes, [row["three"][what]["wall_s"] for row in rows]) for what in ("floor", "pass", "again")}
    hardware = provenance.hardware()
    kind = f"gpu{len(hardware['gpus'])}" if hardware["gpus"] else f"cpu{hardware['cores']}"
    name = f"{date.today():%Y-%m-%d}-{kind}-static"
    load = os.getloadavg()[2]
    result = {
        "rows": rows,
        "exponent_of_size": fitted,
        "load_average_15min": load,
        "hardware": hardware,
        "versions": provenance.versions(),
    }
    given.out.mkdir(parents=True, exist_ok=True)
    paths.write_text(given.out / f"{name}.json", json.dumps(result, indent=1) + "\n")
    if len(rows) > 1:
        draw(rows, fitted, given.out / f"{name}.svg")
    print(table(rows))
    print(f"\ntime as a power of size: {fitted}\n{hardware}\nload average {load:.1f}")


if __name__ == "__main__":
    main()
