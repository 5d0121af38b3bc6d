"""Telling a weights file's container by its first bytes, and reading its structure.

This is the whole of what the process for untrusted files does; tests call it directly. Standard library only.
"""

import re

from f5lab.untrusted import safetensor_headers, torch_files
from f5lab.untrusted.manifests import Container, Manifest
from f5lab.untrusted.refusals import Refused
from f5lab.untrusted.sources import Source

_HEAD_BYTES = 512


def examine(source: Source) -> Manifest:
    """Return a file's manifest.

    Raises
    ------
    Refused
        The file breaks a rule.
    """
    reader = {
        "torch": torch_files.read_zip, "torch-old": torch_files.read_bare, "torch-tar": torch_files.read_tar,
        "safetensors": safetensor_headers.read_safetensors, "shard-index": safetensor_headers.read_index,
    }[tell_container(source)]  # fmt: skip
    return torch_files.with_file_facts(reader(source), source)


def tell_container(source: Source) -> Container:
    """Tell the container by content; upstream tells it by suffix.

    Raises
    ------
    Refused
        None of those that are read; the refusal says what the file is instead, as far as its first bytes show.
    """
    head = source.peek(0, _HEAD_BYTES)
    if head.startswith(b"PK\x03\x04"):
        return "torch"
    if head.startswith(b"\x80\x02\x8a\x0a"):
        return "torch-old"
    if head[257:262] == b"ustar" or _is_old_tar(head):
        return "torch-tar"
    if len(head) > 9 and head[8:9] == b"{" and int.from_bytes(head[:8], "little") <= source.size:
        return "safetensors"
    if re.match(rb"\s*\{\s*\"(metadata|weight_map)\"", head):
        return "shard-index"
    raise Refused("file-magic", describe(head))


def _is_old_tar(head: bytes) -> bool:
    """Whether a tar header's own checksum holds (tars from before POSIX have no magic)."""
    if len(head) < 512 or not re.fullmatch(rb"[0-7 ]{6}[\0 ][\0 ]|[0-7 ]{7}[\0 ]", head[148:156]):
        return False
    total = sum(head[:148]) + 8 * 0x20 + sum(head[156:512])
    return int(head[148:156].strip(b" \0") or b"0", 8) == total


def describe(head: bytes) -> str:
    """Say what a file is whose first bytes are none of a weights file's."""
    start = head.lstrip().lower()
    if not head:
        return "an empty file"
    if start.startswith((b"<!doctype", b"<html", b"<?xml")):
        return "a web page (an error or login page saved under this name?)"
    if start.startswith(b"version https://git-lfs"):
        return "a Git LFS pointer"
    for magic, name in ((b"\x1f\x8b", "a gzip archive"), (b"7z\xbc\xaf'\x1c", "a 7-Zip archive"),
                        (b"\x89HDF", "an HDF5 file"), (b"GGUF", "a GGUF file"), (b"\x93NUMPY", "a numpy file"),
                        (b"\x80", "a pickle, but no torch file")):  # fmt: skip
        if head.startswith(magic):
            return name
    if not re.search(rb"[^\x09\x0a\x0d\x20-\x7e\x80-\xff]", head):
        return "a text file"
    return f"{len(head)}+ bytes of unknown format"


ADVICE = {
    "an empty file": "download or copy it again",
    "a web page": "download the file itself",
    "a Git LFS pointer": "fetch the content with `git lfs pull`",
    "a gzip archive": "unpack it first",
    "a 7-Zip archive": "torch cannot read it either; ask where it comes from before you unpack it",
    "a pickle": "such a file runs code when it is loaded; ask for tensors saved by torch.save or as .safetensors",
    "a text file": "give the .pt or .safetensors file",
}
"""What to do about a file that is no weights file, by how its description begins."""
