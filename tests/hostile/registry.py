"""The list of hostile files, and how a builder is added to it."""

from collections.abc import Callable
from dataclasses import dataclass

from hostile.pickle_parts import (
    call,
    checkpoint,
    imported,
    text,
    whole,
)  # fmt: skip
from hostile.zip_parts import Item, archive, torch_archive

TOUCH = "import os, pathlib; pathlib.Path(os.environ['F5LAB_CANARY'], 'canary').touch()"
SHELL = 'touch "$F5LAB_CANARY/canary"'
MAGIC, LEGACY_PROTOCOL = 0x1950A86A20F9469CFC6C, 1001


@dataclass(frozen=True)
class Hostile:
    """One file: what it tries, the rules by one of which it must be refused, and whether plain unpickling runs it."""

    name: str
    group: str
    build: Callable[[], bytes]
    rules: tuple[str, ...]
    suffix: str = ".pt"


CORPUS: list[Hostile] = []


def hostile(group: str, *rules: str, suffix: str = ".pt") -> Callable[[Callable[[], bytes]], Callable[[], bytes]]:
    """Add a builder to the corpus under its function's name."""

    def add(build: Callable[[], bytes]) -> Callable[[], bytes]:
        CORPUS.append(Hostile(build.__name__.strip("_"), group, build, rules, suffix))
        return build

    return add


def add(name: str, group: str, build: Callable[[], bytes], *rules: str, suffix: str = ".pt") -> None:
    """Add one member of a family."""
    CORPUS.append(Hostile(name, group, build, rules, suffix))


def payload(value: bytes) -> bytes:
    """A torch file whose pickle holds a value beside weights."""
    return torch_archive(checkpoint(payload=value))


def alone(pickle_bytes: bytes) -> bytes:
    """A torch file with that pickle and no storage."""
    return archive([Item("m/data.pkl", pickle_bytes), Item("m/version", b"3\n")])


def string(value: str) -> bytes:
    return text(value)


EVIL = whole(call(imported("os", "system"), string(SHELL)))
"""A pickle that calls the shell."""
