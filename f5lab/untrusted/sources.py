"""Reading parts of an untrusted file through one descriptor, and remembering which bytes were believed.

Standard library only: the process that reads untrusted files imports this.
"""

import hashlib
import os
import stat
from collections.abc import Iterable

from f5lab.untrusted.refusals import Refused


class Source:
    """A regular file, read at offsets.

    Parameters
    ----------
    descriptor : int
        Open for reading; its position is neither used nor moved.

    Attributes
    ----------
    size : int
        Bytes.
    ranges : list of (int, int)
        Offset and length of everything that was read and believed, in order.

    Raises
    ------
    Refused
        A device, pipe, socket or folder.
    """

    def __init__(self, descriptor: int) -> None:
        facts = os.fstat(descriptor)
        if not stat.S_ISREG(facts.st_mode):
            raise Refused("file-kind", "no regular file")
        self.descriptor, self.size = descriptor, facts.st_size
        self.ranges: list[tuple[int, int]] = []
        self._digest = hashlib.sha256()

    def peek(self, offset: int, length: int) -> bytes:
        """Return up to `length` bytes, fewer at the end of the file."""
        parts = []
        while length > 0 and (part := os.pread(self.descriptor, length, offset)):
            parts.append(part)
            offset, length = offset + len(part), length - len(part)
        return b"".join(parts)

    def read(self, offset: int, length: int, rule: str, where: str) -> bytes:
        """Return exactly `length` bytes and remember them.

        Raises
        ------
        Refused
            The file ends before, by `rule`.
        """
        data = self.peek(offset, length) if 0 <= offset and 0 <= length <= self.size - offset else b""
        if len(data) != length:
            raise Refused(rule, f"{length:,} bytes wanted at byte {offset:,} of {self.size:,}", where)
        self.believe(offset, data)
        return data

    def believe(self, offset: int, data: bytes) -> None:
        """Remember bytes that were peeked at and are now relied on."""
        start, length = self.ranges[-1] if self.ranges else (offset, 0)
        if start + length == offset:  # goes on where the last one ended: one read confirms both
            self.ranges[-1:] = [(start, length + len(data))]
        else:
            self.ranges.append((offset, len(data)))
        self._digest.update(data)

    def digest(self) -> str:
        """Return the SHA-256 of everything remembered, in order."""
        return self._digest.hexdigest()


def digest_ranges(descriptor: int, ranges: Iterable[tuple[int, int]]) -> str:
    """Return the SHA-256 of parts of a file, as `Source.digest` does; a part that is missing changes it."""
    digest = hashlib.sha256()
    for offset, length in ranges:
        digest.update(os.pread(descriptor, length, offset))
    return digest.hexdigest()
