"""The process that reads an untrusted file: limits first, then the file on standard input, then one line of JSON.

It runs with ``python -I -S`` and nothing but the standard library on its path. By the time that it looks at the file it can
open no further file or socket, write to no file, take no more memory and no more processor time than it was given.
"""

import gc
import json
import resource
import sys

from f5lab.untrusted.file_kinds import examine
from f5lab.untrusted.manifests import encode
from f5lab.untrusted.refusals import Refused
from f5lab.untrusted.sources import Source

MEMORY_BYTES = 512 << 20
CPU_S = 30
DESCRIPTORS = 3


def limit_process(memory_bytes: int, cpu_s: int, descriptors: int) -> None:
    """Limit this process for good: address space, processor time, open files, files written, core dumps.

    With `descriptors` as many as are open already, nothing can be opened any more: no file and no socket.
    """
    wanted = [
        (resource.RLIMIT_CPU, cpu_s), (resource.RLIMIT_CORE, 0), (resource.RLIMIT_FSIZE, 0),
        (resource.RLIMIT_NOFILE, descriptors),
    ]  # fmt: skip
    if sys.platform != "darwin":  # macOS has no limit on address space that it would keep, and refuses to set one
        wanted.append((resource.RLIMIT_AS, memory_bytes))
    for kind, value in wanted:
        _, hard = resource.getrlimit(kind)
        value = value if hard == resource.RLIM_INFINITY else min(value, hard)
        resource.setrlimit(kind, (value, value))


def report(descriptor: int) -> dict[str, object]:
    """Return the manifest of the file on a descriptor, or why it was refused, as JSON-able data."""
    try:
        return {"manifest": encode(examine(Source(descriptor)))}
    except Refused as refused:
        return {"refused": [refused.rule, refused.what, refused.where]}
    except MemoryError:
        return {"refused": ["child-died", "it needs more memory than the process that reads it has", ""]}
    except RecursionError:
        return {"refused": ["child-died", "it nests deeper than the process that reads it can follow", ""]}


def main() -> None:
    """Read the file on standard input and write what it holds to standard output."""
    limit_process(MEMORY_BYTES, CPU_S, DESCRIPTORS)
    gc.disable()  # nothing that is built here is ever given back; the collector would walk over it again and again
    sys.stdout.write(json.dumps(report(0), ensure_ascii=True, separators=(",", ":")))
