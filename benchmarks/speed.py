"""The diagnosis of the default case against scoring the same hypotheses as a user would.

A hypothesis is one configuration that the diagnosis scored, by the probe or by ear. A user's way to score one: start Python,
load the model, speak the prompts by ``infer_process``, load Whisper, transcribe (`users_way.py`, upstream's code alone). It is timed on
a few hypotheses in the same run and scaled to all of them.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from datetime import date
from pathlib import Path
from statistics import median
from typing import Any

from f5lab import diagnosis, listening, models, paths, probes, provenance
from f5lab.faults.examinations import Exam
from f5lab.specs import Case, Recipe, load_case
from f5lab.whisper_weights import find_weights

CODE = """
import json, time
begun = time.perf_counter()
from benchmarks.speed import counted
print(json.dumps(counted("DEVICE") | {"inside_s": time.perf_counter() - begun}))
"""


def counted(device: str) -> dict[str, Any]:
    """Diagnose the default case and return what was named and how many different hypotheses were scored."""
    scored: set[str] = set()
    loss, samples = probes.Probe.loss, listening.Booth.samples

    def loss_seen(self: probes.Probe, hypothesis: probes.Hypothesis) -> probes.Loss:
        scored.add(probes._key(hypothesis))
        return loss(self, hypothesis)

    def samples_seen(self: listening.Booth, recipe: Recipe, pairs: Any) -> Any:
        scored.add("heard " + repr(sorted(recipe.model_dump(exclude={"name"}, mode="json").items())))
        return samples(self, recipe, pairs)

    probes.Probe.loss, listening.Booth.samples = loss_seen, samples_seen
    found = diagnosis.diagnose(load_case(paths.default_case()), device=device)
    return {"causes": [c.id for c in found.verdict.causes], "hypotheses": len(scored)}


def timed(command: list[str], environment: dict[str, str], stdin: str = "") -> tuple[float, dict[str, Any]]:
    """Return a command's wall-clock seconds and the JSON that it printed last."""
    start = time.perf_counter()
    done = subprocess.run(
        command, input=stdin, capture_output=True, text=True, env=environment, check=True, cwd=paths.project_root()
    )
    return time.perf_counter() - start, json.loads(done.stdout.strip().splitlines()[-1])


def told(case: Case, recipe: Recipe, prompts: int, device: str) -> str:
    """Return what `users_way.py` reads."""
    spoken = [{k: str(getattr(p, k)) for k in ("ref_audio", "ref_text", "gen_text")} for p in case.prompts[:prompts]]
    return json.dumps({
        "backbone": recipe.backbone, "arch": recipe.arch, "checkpoint": str(recipe.checkpoint), "vocab": str(recipe.vocab),
        "use_ema": recipe.weights == "ema", "raw_text": recipe.front_end == "raw", "vocoder": str(recipe.vocoder.path),
        "whisper": str(find_weights("base")), "language": case.language, "device": device, "prompts": spoken,
    })  # fmt: skip


def main() -> None:
    """Time both and write ``benchmarks/results/speed.json``; on a GPU ``<date>-<host kind>-speed.json``."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--hypotheses", type=int, default=3, help="how many to score the user's way")
    parser.add_argument("--prompts", type=int, default=8)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--out", type=Path, default=paths.project_root() / "benchmarks" / "results")
    given = parser.parse_args()
    case, device = load_case(paths.default_case()), models.pick_device(given.device)
    find_weights("base")  # converted once, for either side
    users = {**os.environ}
    with tempfile.TemporaryDirectory() as cache:
        kept = paths.cache_dir("whisper")
        (Path(cache) / "whisper").symlink_to(kept)
        whole, found = timed(
            [sys.executable, "-c", CODE.replace("DEVICE", device)], {**users, "F5LAB_CACHE": cache}
        )  # nothing heard before counts
    exam = Exam(case, asr="", device=device)
    recipe = exam.truth.recipe
    start = time.perf_counter()
    for _ in range(3):
        fresh = probes.Probe(exam.probe.items, device=exam.device)
        fresh.bench = exam.probe.bench
        fresh.loss(probes.Hypothesis(recipe))  # a number: the device has finished
    probe_s = (time.perf_counter() - start) / 3
    tried = [recipe, exam.inference, recipe.but(weights="ema")][: given.hypotheses]
    script = str(Path(__file__).with_name("users_way.py"))
    rows = [timed([sys.executable, script], users, told(case, r, given.prompts, device)) for r in tried]
    user_s = median(seconds for seconds, _ in rows)
    hardware = provenance.hardware()
    result = {
        "diagnose_s": whole, "causes": found["causes"], "hypotheses": found["hypotheses"], "probe_s_per_hypothesis": probe_s,
        "user_s_per_hypothesis": user_s, "user_s": [s for s, _ in rows], "user_cer": [r["cer"] for _, r in rows],
        "prompts": given.prompts, "device": device, "times_faster_per_hypothesis": user_s / probe_s,
        "times_faster_whole": user_s * found["hypotheses"] / whole, "hardware": hardware,
        "versions": provenance.versions(),
    }  # fmt: skip
    name = f"{date.today():%Y-%m-%d}-gpu{len(hardware['gpus'])}-speed.json" if device.startswith("cuda") else "speed.json"
    given.out.mkdir(parents=True, exist_ok=True)
    paths.write_text(given.out / name, json.dumps(result, indent=1) + "\n")
    print(json.dumps({k: v for k, v in result.items() if k not in ("hardware", "versions")}, indent=1))


if __name__ == "__main__":
    main()
