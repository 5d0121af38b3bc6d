"""Speaking a bundle by the stock F5-TTS command line, through the bundle's own ``run.sh``."""

import os
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from f5lab import metrics, oracles, samplers
from f5lab.audio import load_wave
from f5lab.errors import BundleError
from f5lab.specs import Case, Prompt

CLIP_TIMEOUT_S = 1800
SPOKEN_PROMPTS = 4
UNDERSTOOD = 0.5
"""Mean CER up to which a bundle counts as verified; the specimen with its hidden options wrong has 0.6."""


@dataclass(frozen=True)
class Check:
    """One clip that the stock command line spoke for a bundle, and what Whisper heard; `cer` is None without letters."""

    prompt: str
    text: str
    file: str
    heard: str
    cer: float | None
    seconds: float


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


def spoken_prompts(case: Case) -> list[Prompt]:
    """Return up to four prompts with different texts for the check, those that share the bundle's reference first."""
    reference, chosen = case.prompts[0].ref_audio, {}
    for prompt in sorted(case.prompts, key=lambda p: p.ref_audio != reference):
        chosen.setdefault(prompt.gen_text.strip(), prompt)
    return list(chosen.values())[:SPOKEN_PROMPTS]


def speak(case: Case, folder: Path, device: str) -> list[Check]:
    """Speak through ``run.sh`` and transcribe."""
    (folder / "spoken").mkdir()
    prompts = spoken_prompts(case)
    files = [folder / "spoken" / f"{p.id}.wav" for p in prompts]
    for prompt, file in zip(prompts, files):
        run_bundle(folder, prompt.gen_text.strip(), file, "--device", device)
    waves = [load_wave(file) for file in files]
    heard = [t.text for t in oracles.transcriber(case, device=device)(waves)]
    return [
        Check(p.id, p.gen_text.strip(), f"spoken/{f.name}", h, metrics.cer(p.gen_text, h).value, round(w.seconds, 3))
        for p, f, h, w in zip(prompts, files, heard, waves)
    ]


def mean_cer(checks: Sequence[Check]) -> float | None:
    """Return the mean CER (0 to 1) of the clips whose texts have letters; None without one."""
    rates = [check.cer for check in checks if check.cer is not None]
    return sum(rates) / len(rates) if rates else None


def is_understood(checks: Sequence[Check]) -> bool:
    """Return whether the clips are understood on average; False where there is none to judge by."""
    mean = mean_cer(checks)
    return mean is not None and mean <= UNDERSTOOD


def misheard(checks: Sequence[Check]) -> list[str]:
    """Return what is to be said of clips that were spoken and not understood."""
    mean = mean_cer(checks)
    if mean is None:
        return []
    if mean > UNDERSTOOD:
        return [f"**Spoken, but not understood**: CER {mean:.2f} on average. Do not take this bundle for a repair; see f5lab diagnose."]
    lost = [check for check in checks if check.cer is not None and check.cer > UNDERSTOOD]
    which = ", ".join(f"{check.prompt} (CER {check.cer:.2f})" for check in lost)
    return [f"Understood on average, but {len(lost)} of {len(checks)} clips not: {which}. Listen to them."] if lost else []
