"""Speaking a bundle by the stock F5-TTS command line, through the bundle's own ``run.sh``."""

import os
import subprocess
import sys
import tempfile
from pathlib import Path

from f5lab import samplers
from f5lab.audio import load_wave
from f5lab.errors import BundleError

CLIP_TIMEOUT_S = 1800


def run_bundle(folder: Path, text: str, out: Path, *flags: str) -> None:
    """Speak one text through a bundle's ``run.sh``, offline, with this Python's ``f5-tts_infer-cli``.

    Parameters
    ----------
    out : Path
        The WAV to write; must not exist.
    *flags : str
        Further flags of the command line; they win over the bundle's own.

    Raises
    ------
    BundleError
        The command fails, takes over half an hour, or writes no audible clip.
    """
    scripts = Path(sys.executable).parent
    path = os.pathsep.join([str(scripts), os.environ.get("PATH", "")])
    environment = {**os.environ, "PATH": path, "PYTHON": sys.executable, "HF_HUB_OFFLINE": "1"}
    command = [str(folder / "run.sh"), text, str(out), *flags]
    try:
        with tempfile.TemporaryDirectory(prefix="f5lab-bundle-") as passing:  # upstream leaves its prepared reference
            environment["TMPDIR"] = passing
            done = subprocess.run(
                command, capture_output=True, text=True, env=environment, timeout=CLIP_TIMEOUT_S, check=False
            )
    except (OSError, subprocess.TimeoutExpired) as error:
        raise BundleError(f"run.sh could not speak {text!r} ({error})", next_step="run it by hand") from error
    if done.returncode or not out.is_file():
        last = (done.stderr.strip().splitlines() or ["no message"])[-1][:300]
        raise BundleError(
            f"the stock command line failed on {text!r} (exit {done.returncode}: {last})",
            next_step="write the bundle with verify=False and run its run.sh by hand",
        )
    wave = load_wave(out)  # raises where values are not finite
    if wave.rms < samplers.MIN_RMS:
        raise BundleError(f"the stock command line spoke silence for {text!r} (RMS {wave.rms:.1g})")
