"""How time grows with the work: number of hypotheses, prompts x seeds, and a whole ``f5lab run`` with 1, 4 and 16 prompts.

Wall-clock and processor time of each point; one exponent for each curve by least squares on the logarithms of wall-clock time
(1: linear, less: better), and the seconds that one more unit of work costs. Points are measured once, smallest first, after one
that loads what stays loaded.
"""

import argparse
import itertools
import json
import os
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import matplotlib.pyplot as plt
import numpy as np
import yaml

from f5lab import batches, models, paths, plots, probes, provenance, samplers
from f5lab.probes import Hypothesis, Probe
from f5lab.samplers import Studio
from f5lab.scale.trends import panels
from f5lab.specs import Case, Prompt, load_case

SPEECH = paths.data_dir() / "speech" / "ptbr"


def used_s() -> float:
    """Return processor seconds of this process and of its ended children."""
    return sum(sum(resource.getrusage(who)[:2]) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN))


def measure(sizes: Sequence[int], work: Callable[[int], None]) -> list[dict[str, float]]:
    """Return size, wall-clock and processor seconds of `work` for each size."""
    points = []
    for size in sizes:
        start, before = time.perf_counter(), used_s()
        work(size)
        points.append({"size": size, "wall_s": time.perf_counter() - start, "processor_s": used_s() - before})
        print(f"  {size:>4}: {points[-1]['wall_s']:.2f} s, processor {points[-1]['processor_s']:.2f} s", flush=True)
    return points


def slope(points: Sequence[dict[str, float]], key: str) -> dict[str, float]:
    """Return the exponent of growth, and seconds for each further unit with those that any size costs."""
    size, seconds = (np.array([p[k] for p in points], float) for k in ("size", key))
    each, fixed = np.polyfit(size, seconds, 1)
    return {
        "exponent": float(np.polyfit(np.log(size), np.log(seconds), 1)[0]),
        "each_s": float(each),
        "fixed_s": float(fixed),
    }


def hypotheses(case: Case, count: int) -> list[Hypothesis]:
    """Return settings that no shape can show, times weights and front ends: 32 at most."""
    recipe = samplers.repaired_recipe(case)
    grid = itertools.product((None, 1, 2, 3), (False, True), ("raw", "ema"), ("raw", "pinyin"))
    return [
        Hypothesis(recipe.but(arch=recipe.arch | {"pe_attn_head": heads, "text_mask_padding": mask}, weights=weights, front_end=front))
        for heads, mask, weights, front in grid
    ][:count]  # fmt: skip


def score(case: Case, count: int, device: str) -> None:
    """Score hypotheses on four recordings, from nothing loaded."""
    probe = Probe(probes.real_items(case, 4), device=device)
    for hypothesis in hypotheses(case, count):
        probe.loss(hypothesis)


def many_prompts(case: Case, count: int) -> list[Prompt]:
    """Return prompts: the references of the case with targets of the corpus, at least ten bytes long."""
    lines = [line.split("|") for line in (SPEECH / "metadata.csv").read_text(encoding="utf-8").splitlines()[1:]]
    targets = [
        (SPEECH / file, text) for file, text, voice, *_ in lines if voice == "jm_kumo" and len(text.encode()) >= 10
    ]
    return [
        case.prompts[number % 2].model_copy(update={"id": f"q{number:02d}", "gen_text": text, "gen_audio": file})
        for number, (file, text) in enumerate(targets[:count])
    ]


def run_workbook(case: Case, count: int, folder: Path, device: str) -> None:
    """Run notebook 05 on `count` prompts, as a user does."""
    told = json.loads(case.model_dump_json(exclude={"path", "recorded"}, exclude_none=True))
    told["prompts"] = [json.loads(p.model_dump_json(exclude_none=True)) for p in many_prompts(case, count)]
    file = folder / f"case-{count}.yaml"
    file.write_text(yaml.safe_dump(told, allow_unicode=True), encoding="utf-8")
    command = [sys.executable, "-m", "f5lab", "run", str(file), "--quick", "--only", "05", "--set", f"n_prompts={count}",
               "--out", str(folder), "--device", device]  # fmt: skip
    environment = {**os.environ, "F5LAB_CACHE": str(folder / f"cache-{count}")}
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL, env=environment)


def draw(curves: dict[str, dict[str, Any]], out: Path) -> None:
    """Draw each curve with its slope, both axes logarithmic."""
    plots.use_style()
    figure, axes = panels(
        len(curves), caption="wall-clock time; dashed: linear growth from the first point", columns=len(curves)
    )
    for ax, (name, curve) in zip(axes, curves.items()):
        size, seconds = ([p[k] for p in curve["points"]] for k in ("size", "wall_s"))
        ax.loglog(size, seconds, marker="o", ms=4)
        ax.loglog(size, [seconds[0] * s / size[0] for s in size], ls="--", lw=0.8, color="#888")
        ax.set(
            xlabel=name,
            ylabel="s",
            title=f"exponent {curve['wall']['exponent']:.2f}, {curve['wall']['each_s']:.2f} s for one more",
        )
        ax.set_xticks(size, [str(s) for s in size])
        ax.minorticks_off()
    figure.savefig(out, dpi=110)
    plt.close(figure)


def main() -> None:
    """Measure, print, and write ``benchmarks/results/scaling.json`` and ``scaling.png``."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--hypotheses", type=int, nargs="*", default=[1, 2, 4, 8, 16, 32])
    parser.add_argument(
        "--clips", type=int, nargs="*", default=[1, 2, 4, 8, 16, 32], help="prompts x seeds; two seeds from 8 on"
    )
    parser.add_argument(
        "--prompts", type=int, nargs="*", default=[1, 4, 16], help="prompts of f5lab run --quick --only 05"
    )
    parser.add_argument("--steps", type=int, default=8, help="steps of each synthesis in prompts x seeds")
    parser.add_argument("--device", default="auto")
    parser.add_argument("--out", type=Path, default=paths.project_root() / "benchmarks" / "results")
    given = parser.parse_args()
    given.out.mkdir(parents=True, exist_ok=True)
    case, device = load_case(paths.default_case()), models.pick_device(given.device)
    curves: dict[str, dict[str, Any]] = {}
    score(case, 1, device)
    with tempfile.TemporaryDirectory() as folder:
        studio, recipe = Studio(device), samplers.repaired_recipe(case).but(nfe_step=given.steps)

        def speak(count: int) -> None:
            seeds = 1 if count < 8 else 2
            batches.speak_pairs(
                studio, recipe, [(p, s) for p in many_prompts(case, count // seeds) for s in range(seeds)]
            )

        speak(1)
        for name, sizes, work in (
            ("hypotheses", given.hypotheses, lambda n: score(case, n, device)),
            ("prompts x seeds", given.clips, speak),
            ("prompts of f5lab run --quick --only 05", given.prompts, lambda n: run_workbook(case, n, Path(folder), device)),
        ):  # fmt: skip
            if len(sizes) > 1:
                print(name, flush=True)
                points = measure(sizes, work)
                curves[name] = {
                    "points": points,
                    "wall": slope(points, "wall_s"),
                    "processor": slope(points, "processor_s"),
                }
                print(
                    f"  exponent {curves[name]['wall']['exponent']:.2f}, {curves[name]['wall']['each_s']:.2f} s for one more"
                )
    result = {
        "curves": curves,
        "device": device,
        "steps": given.steps,
        "hardware": provenance.hardware(),
        "versions": provenance.versions(),
    }
    paths.write_text(given.out / "scaling.json", json.dumps(result, indent=1) + "\n")
    draw(curves, given.out / "scaling.png")


if __name__ == "__main__":
    main()
