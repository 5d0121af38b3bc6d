"""What to do when the machine, and not the case, is at fault: memory, accelerator, disk, FFmpeg, downloads.

Such a failure says nothing about a checkpoint. It must never be taken for a finding: code that turns errors into
answers asks `is_machine` first and lets these through.
"""

import re
import signal
from dataclasses import dataclass
from pathlib import Path

SHOWN_CHARACTERS = 120
_SIGKILL = 9
_SMALLER = "use --quick or fewer prompts (--set), or a machine with more memory"


@dataclass(frozen=True)
class Remedy:
    """A failure of the machine: how its message looks, what it means, what to do."""

    pattern: re.Pattern[str]
    means: str
    step: str


_REMEDIES = (
    Remedy(
        re.compile(r"CUDA out of memory|OutOfMemoryError|_ALLOC_FAILED|MPS backend out of memory|out of memory on device"),
        "the accelerator ran out of memory", "stop what else runs on it, use --quick, or give --device cpu",
    ),
    Remedy(
        re.compile(
            r"AcceleratorError|CUDA error|CUDA driver|cuDNN error|CUDNN_STATUS|CUBLAS_STATUS|HIP error|device-side assert"
            r"|No CUDA GPUs are available|Found no NVIDIA driver|Torch not compiled with CUDA"
        ),
        "the accelerator failed", "look at nvidia-smi, then go on with f5lab run --resume, or give --device cpu",
    ),
    Remedy(
        re.compile(r"MemoryError\b|can't allocate memory|[Cc]annot allocate memory|Unable to allocate .* for an array|bad_alloc"),
        "memory ran out", _SMALLER,
    ),
    Remedy(
        re.compile(r"No space left on device|Disk quota exceeded|PytorchStreamWriter failed|File too large"),
        "the disk is full", "make room, then go on with f5lab run --resume",
    ),
    Remedy(
        re.compile(
            r"Could not load libtorchcodec|FFmpeg is not properly installed|libav\w+\.so\S*: cannot open shared object"
            r"|No such file or directory: '(ffmpeg|ffprobe|avconv)'|Couldn't find ffmpeg"
        ),
        "FFmpeg or its shared libraries are missing",
        "install them: sudo apt-get install ffmpeg, or: conda install -c conda-forge ffmpeg",
    ),
    Remedy(
        re.compile(r"LocalEntryNotFoundError|huggingface\.co|OfflineModeIsEnabled"),
        "a file that upstream downloads is not at hand", "go online once, or name a local one in the case file",
    ),
)  # fmt: skip
_STATISTICS = (Path("/sys/fs/cgroup/memory.events"), Path("/proc/vmstat"))


def find_remedy(message: str) -> Remedy | None:
    """Return what to do about a failure, by its type and message; None when it is not the machine's."""
    return next((remedy for remedy in _REMEDIES if remedy.pattern.search(message)), None)


def is_machine(error: BaseException) -> bool:
    """Return whether an error tells of memory, accelerator, disk or FFmpeg rather than of what was loaded."""
    return find_remedy(f"{type(error).__name__}: {error}") is not None


def explain(message: str) -> str:
    """Return an error's line with what it means and what to do in front; any other message as it is.

    Examples
    --------
    >>> explain("OutOfMemoryError: CUDA out of memory. Tried to allocate 2.00 GiB")[:75]
    'the accelerator ran out of memory; stop what else runs on it, use --quick, '
    >>> explain("ValueError: no such voice")
    'ValueError: no such voice'
    """
    remedy = find_remedy(message)
    if remedy is None:
        return message
    shown = message if len(message) <= SHOWN_CHARACTERS else message[:SHOWN_CHARACTERS] + "…"
    return f"{remedy.means}; {remedy.step} ({shown})"


def count_memory_kills() -> int | None:
    """Return how many processes the system killed for memory, here or in this container; None where it does not say."""
    for path in _STATISTICS:
        if path.is_file():
            found = re.search(r"^oom_kill (\d+)", path.read_text(encoding="ascii", errors="replace"), re.M)
            if found:
                return int(found[1])
    return None


def explain_death(status: int | None, kills_before: int | None, kills_after: int | None) -> str:
    """Return why a kernel died and what to do.

    Parameters
    ----------
    status : int, optional
        Exit status; negative: the signal that ended it.
    kills_before, kills_after : int, optional
        `count_memory_kills` before and after.
    """
    for_memory = kills_before is not None and kills_after is not None and kills_after > kills_before
    if status == -_SIGKILL and for_memory:
        return f"the kernel died: the system killed it because memory ran out; {_SMALLER}"
    if status == -_SIGKILL:
        return f"the kernel died: it was killed (SIGKILL), as the system does when memory runs out; {_SMALLER}"
    if status is not None and status < 0:
        return f"the kernel died of {signal.Signals(-status).name}"
    return "the kernel died" + (f" (exit status {status})" if status else "")
