"""The cache: an entry is read back as it was written, or not at all."""

import logging
import os
import stat
import subprocess
import sys
from pathlib import Path

import pytest

from f5lab import caches

CONTENT = bytes(range(256)) * 8


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("F5LAB_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


def entry(folder: Path) -> Path:
    (found,) = folder.rglob("*.entry")
    return found


@pytest.mark.parametrize(
    "key", ["ab12", "a", "../../etc/passwd", "name with spaces", "\udcff", "x" * 300, ".hidden", ""]
)
def test_what_was_written_is_read_and_stays_in_the_folder(key: str, folder: Path) -> None:
    assert caches.read("toys", key) is None
    caches.write("toys", key, CONTENT)
    assert caches.read("toys", key) == CONTENT
    assert entry(folder).is_relative_to(folder / "toys")
    assert stat.S_IMODE(entry(folder).stat().st_mode) == 0o644
    assert caches.read("others", key) is None


@pytest.mark.parametrize(
    "damage",
    [
        lambda old: old[: len(old) // 2],
        lambda old: b"",
        lambda old: old + b"x",
        lambda old: old[:-1] + bytes([old[-1] ^ 1]),
        lambda old: bytes([old[0] ^ 1]) + old[1:],
        lambda old: old[:20] + bytes([old[20] ^ 1]) + old[21:],
        lambda old: b'{"text": "what nobody said", "mean_logprob": 0.0, "no_speech": 0.0}',
        lambda old: bytes(len(old)),
    ],
    ids=["cut", "empty", "longer", "last bit", "first bit", "digest", "another format", "zeros"],
)
def test_a_damaged_entry_is_reported_and_not_believed(
    damage: object, folder: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caches.write("toys", "k", CONTENT)
    path = entry(folder)
    path.write_bytes(damage(path.read_bytes()))
    with caplog.at_level(logging.WARNING):
        assert caches.read("toys", "k") is None
    assert "damaged and is made again" in caplog.text
    caches.write("toys", "k", CONTENT)
    assert caches.read("toys", "k") == CONTENT


def test_an_entry_under_another_name_is_not_believed(folder: Path) -> None:
    caches.write("toys", "k1", CONTENT)
    entry(folder).rename(entry(folder).with_name("k2.entry"))
    assert caches.read("toys", "k2") is None


def test_a_cache_that_can_not_be_written_costs_no_result(
    folder: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    folder.write_text("a file where the cache should be")
    with caplog.at_level(logging.WARNING):
        caches.write("toys", "k", CONTENT)
        assert caches.read("toys", "k") is None
    assert "nothing was cached" in caplog.text


WRITER = """
import sys
from f5lab import caches
mine = sys.argv[1].encode() * 5000
for _ in range(150):
    caches.write("toys", "shared", mine)
    found = caches.read("toys", "shared")
    assert found is not None and len(set(found)) == 1 and len(found) == 5000, found
"""


def test_processes_that_write_one_entry_never_see_half_of_it(folder: Path) -> None:
    command = [sys.executable, "-c", WRITER]
    environment = {**os.environ, "F5LAB_CACHE": str(folder)}
    running = [
        subprocess.Popen([*command, name], env=environment, stderr=subprocess.PIPE, text=True)
        for name in ("a", "b", "c")
    ]
    ended = [(process.communicate(timeout=60)[1], process.returncode) for process in running]
    assert ended == [("", 0)] * 3
    assert [path.name for path in folder.rglob("*") if path.is_file()] == ["shared.entry"]


def test_a_transcript_of_a_damaged_entry_is_made_again(monkeypatch: pytest.MonkeyPatch, folder: Path) -> None:
    import numpy as np

    from f5lab import asr
    from f5lab.audio import Wave

    heard = asr.Transcriber.__new__(asr.Transcriber)
    heard.language, heard.device, heard.weights_id, heard.transcribed = "pt", "cpu", "w", 0
    asked = []

    def decode(waves: list[Wave]) -> list[asr.Transcript]:
        asked.append(len(waves))
        return [asr.Transcript("olá", -0.1, 0.0) for _ in waves]

    monkeypatch.setattr(heard, "_decode", decode)
    wave = Wave(np.linspace(-1, 1, 16000, dtype=np.float32), 16000)
    assert [heard([wave])[0].text for _ in range(2)] == ["olá"] * 2
    assert asked == [1]
    path = entry(folder)
    path.write_bytes(path.read_bytes().replace(b"ol", b"no"))
    assert heard([wave])[0].text == "olá"
    assert asked == [1, 1]
