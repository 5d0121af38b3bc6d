"""The process that asks picklescan about an untrusted file on its standard input; the one importer of picklescan."""

import json
import logging
import sys
from importlib.metadata import version

from picklescan import scanner

from f5lab.untrusted.file_reader import limit_process

MEMORY_BYTES, CPU_S, DESCRIPTORS = 1 << 30, 60, 64


def main() -> None:
    """Scan the file on standard input and write the counts."""
    logging.getLogger("picklescan").addHandler(logging.NullHandler())
    limit_process(MEMORY_BYTES, CPU_S, DESCRIPTORS)
    with open(0, "rb", closefd=False) as file:
        file.seek(0)
        found = scanner.scan_bytes(file, "checkpoint", ".pt")
    if found.scan_err:
        sys.exit(1)
    answer = {"dangerous": found.issues_count, "suspicious": found.suspicious_count, "version": version("picklescan")}
    sys.stdout.write(json.dumps(answer))
