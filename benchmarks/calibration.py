"""Plant every fault of the catalogue, pairs, healthy variants and decoys, and count what the diagnosis names."""

import argparse
import json
import tempfile
from dataclasses import asdict
from pathlib import Path

from f5lab import paths, provenance
from f5lab.planted import calibration
from f5lab.planted.calibration import Trial
from f5lab.specs import load_case

PAIRS = (
    ("arch-flags-v0-as-v1", "front-end-pinyin"), ("ema-lag-inherited", "oov-to-zero"), ("vocab-permuted", "mel-type"),
    ("weight-damage", "short-text-speed"), ("text-mask-padding-only", "ref-text-wrong"), ("raw-ema-swapped", "vocoder-wrong"),
    ("vocab-off-by-one", "cfg-or-sway-off"), ("inv-freq-altered", "front-end-pinyin"), ("prefix-lost", "ref-clipped"),
    ("stale-checkpoint", "arch-flags-v0-as-v1"),
)  # fmt: skip


def show(trial: Trial) -> None:
    """Print one line for a trial."""
    mark = "ok " if trial.right else "-- " if trial.error.startswith("not planted") else "XX "
    what = "+".join(trial.planted) or trial.kind
    print(
        f"{mark} {trial.kind:8} {what:45} v{trial.variant} {trial.seconds:5.1f} s  {', '.join(trial.named)} {trial.error[:120]}",
        flush=True,
    )


def main() -> None:
    """Run the calibration; results go to ``benchmarks/results/``."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--variants", type=int, default=calibration.VARIANTS)
    parser.add_argument("--recordings", type=int, default=4)
    parser.add_argument("--only", default="", help="ids, separated by commas")
    parser.add_argument("--out", type=Path, default=paths.project_root() / "benchmarks" / "results")
    given = parser.parse_args()
    given.out.mkdir(parents=True, exist_ok=True)
    case = load_case(paths.data_dir() / "cases" / "ptbr-repaired" / "case.yaml")
    ids = [name for name in given.only.split(",") if name] or None
    trials = calibration.plan(ids, variants=given.variants, pairs=() if ids else PAIRS)
    with tempfile.TemporaryDirectory() as folder:
        done = calibration.calibrate(
            trials,
            case,
            Path(folder),
            log=None if ids else given.out / "calibration.jsonl",
            watch=show,
            limit=given.recordings,
        )
    tally = calibration.tally(done)
    for row in tally.rows:
        print(row)
    if ids is None:
        result = {"tally": asdict(tally) | {"top_1": tally.top_1}, "recordings": given.recordings,
                  "hardware": provenance.hardware(), "versions": provenance.versions()}  # fmt: skip
        paths.write_text(given.out / "calibration.json", json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    main()
