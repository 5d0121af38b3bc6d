"""The diagnosis of the default case against scoring the same hypotheses as a user would, one fresh process step each.

A user's way to score one hypothesis: load the model, load the vocoder, speak the prompts by ``infer_process``, load
Whisper, transcribe. It is timed on a few hypotheses, paired in one run with the probe, and scaled to all of them.
"""

import argparse
import json
import os
import tempfile
import time
from pathlib import Path

from f5lab import asr, diagnosis, models, paths, provenance
from f5lab.examinations import Exam
from f5lab.probes import Hypothesis
from f5lab.samplers import Studio
from f5lab.specs import load_case


def users_way(exam: Exam, hypothesis: Hypothesis, prompts: int) -> float:
    """Return the seconds of scoring one hypothesis by fresh loads, synthesis and recognition."""
    start = time.perf_counter()
    studio = Studio(exam.device)  # loads model and vocoder anew
    asr._loaded.cache_clear()
    transcribe = asr.Transcriber(exam.case.language, "base", exam.device)
    for prompt in exam.case.prompts[:prompts]:
        transcribe([studio.speak(hypothesis.recipe.but(path="inference"), prompt, 0).wave])
    return time.perf_counter() - start


def main() -> None:
    """Time both and write ``benchmarks/results/speed.json``."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--hypotheses", type=int, default=2, help="how many to score the user's way")
    parser.add_argument("--prompts", type=int, default=8)
    parser.add_argument("--out", type=Path, default=paths.project_root() / "benchmarks" / "results")
    given = parser.parse_args()
    given.out.mkdir(parents=True, exist_ok=True)
    case = load_case(paths.default_case())
    models.upstream()
    with tempfile.TemporaryDirectory() as cache:
        os.environ["F5LAB_CACHE"] = cache  # nothing heard before counts
        start = time.perf_counter()
        diagnosis.diagnose(case)
        whole = time.perf_counter() - start
        exam = Exam(case)
        start = time.perf_counter()
        steps = exam.truth.steps
        probe_s = (time.perf_counter() - start) / len(steps)
        recipe = exam.truth.recipe
        tried = [Hypothesis(recipe), Hypothesis(recipe.but(weights="ema"))][: given.hypotheses]
        user_s = sum(users_way(exam, hypothesis, given.prompts) for hypothesis in tried) / len(tried)
    result = {
        "diagnose_s": whole, "hypotheses": len(steps), "probe_s_per_hypothesis": probe_s, "user_s_per_hypothesis": user_s,
        "prompts": given.prompts, "times_faster_per_hypothesis": user_s / probe_s,
        "times_faster_whole": user_s * len(steps) / whole, "hardware": provenance.hardware(), "versions": provenance.versions(),
    }  # fmt: skip
    paths.write_text(given.out / "speed.json", json.dumps(result, indent=1) + "\n")
    print(json.dumps({k: v for k, v in result.items() if k not in ("hardware", "versions")}, indent=1))


if __name__ == "__main__":
    main()
