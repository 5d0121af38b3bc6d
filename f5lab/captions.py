"""What an executed notebook says below its audio players; the audio itself tells which file it is."""

import base64
import hashlib
import html
import re
from collections.abc import Iterator, Mapping
from typing import Any

_CLIP = re.compile(
    r'<audio\b[^>]*\bsrc="data:audio/flac;base64,([A-Za-z0-9+/=]+)"[^>]*></audio>\s*<figcaption>(.*?)</figcaption>',
    re.S,
)


def mark(audio: bytes) -> bytes:
    """Return what identifies a file's audio among players."""
    return hashlib.sha256(base64.b64encode(audio)).digest()


def players(node: Mapping[str, Any]) -> Iterator[tuple[bytes, str]]:
    """Yield mark and caption of every player of a notebook, in order."""
    for cell in node["cells"]:
        for output in cell.get("outputs", ()):
            shown = output.get("data", {}).get("text/html", "")
            for data, caption in _CLIP.findall("".join(shown) if isinstance(shown, list) else shown):
                yield hashlib.sha256(data.encode()).digest(), html.unescape(caption)
