"""What may be computed again, kept on disk: read back only as it was written, shared by any number of processes.

An entry carries the digest of its content, kind and key. One that was cut short, altered or filed under another name
is reported and counts as absent, so the caller computes it anew. A cache that can not be written costs time, not the
result.
"""

import hashlib
import logging
import re
from pathlib import Path

from f5lab.errors import LabError
from f5lab.paths import atomic_path, cache_dir

logger = logging.getLogger(__name__)

_MAGIC = b"f5lab cache 1\n"
_PLAIN = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,99}")


def read(kind: str, key: str) -> bytes | None:
    """Return what was written under a key; None when there is nothing, or when it is not as it was written.

    Parameters
    ----------
    kind : str
        Folder of the cache: letters, digits and dashes.
    key : str
        Everything that the content depends on; best a digest of it.
    """
    try:
        path = _entry(kind, key)
        stored = path.read_bytes()
    except FileNotFoundError:
        return None
    except (OSError, LabError) as error:
        logger.warning("cache entry %s/%s can not be read (%s) and is made again", kind, key, getattr(error, "strerror", error))
        return None
    head, content = stored[: len(_MAGIC) + 32], stored[len(_MAGIC) + 32 :]
    if head != _MAGIC + _digest(kind, key, content):
        logger.warning("cache entry %s/%s is damaged and is made again", kind, path.name)
        return None
    return content


def write(kind: str, key: str, content: bytes) -> None:
    """Keep `content` under a key, whole or not at all; failing to is a warning."""
    try:
        with atomic_path(_entry(kind, key), durable=False) as temporary:
            temporary.write_bytes(_MAGIC + _digest(kind, key, content) + content)
    except (OSError, LabError) as error:
        logger.warning("nothing was cached: %s", error)


def _entry(kind: str, key: str) -> Path:
    name = key if _PLAIN.fullmatch(key) else hashlib.sha256(key.encode("utf-8", "backslashreplace")).hexdigest()
    return cache_dir(kind, name[:2]) / f"{name}.entry"


def _digest(kind: str, key: str, content: bytes) -> bytes:
    label = f"{len(kind)} {kind} {len(key)} {key} ".encode("utf-8", "backslashreplace")
    return hashlib.sha256(label + content).digest()
