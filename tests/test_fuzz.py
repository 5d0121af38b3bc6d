"""Damaged and altered files of every kind that f5lab reads: each ends in a result or a clear error, soon and in little memory.

``F5LAB_FUZZ`` is the number of mutations of all kinds together (500); with more than that they are drawn anew in every run.
"""

import io
import json
import os
import resource
import struct
import time
import wave
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from benign import BUILDERS, save
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st
from toy_checkpoints import ema_state, scheduler, state
from toy_workbook import write_case

from f5lab.audio import load_wave
from f5lab.errors import LabError
from f5lab.mappings import load_tensors
from f5lab.specs import load_case
from f5lab.untrusted import file_reader, refusals
from f5lab.untrusted.manifests import decode
from f5lab.vocabs import read_vocab

TOTAL = int(os.environ.get("F5LAB_FUZZ", "500"))
SHARES = {
    "torch": 0.34,
    "pickle": 0.2,
    "old": 0.06,
    "tar": 0.04,
    "safetensors": 0.16,
    "header": 0.04,
    "vocab": 0.04,
    "yaml": 0.08,
    "wav": 0.04,
}
SLOWEST_S, MOST_GROWTH_BYTES = 20.0, 400 << 20


def fuzz(kind: str) -> Callable:
    """Return hypothesis' settings for one kind of file."""
    return settings(
        max_examples=max(1, round(TOTAL * SHARES[kind])), deadline=None, derandomize=TOTAL <= 500, database=None,
        phases=[Phase.generate, Phase.shrink], suppress_health_check=list(HealthCheck),
    )  # fmt: skip


@st.composite
def mutations(draw: st.DrawFn, base: bytes, most: int = 4) -> bytes:
    """Return `base` with a few bytes flipped, cut, inserted, repeated or replaced by extreme numbers."""
    data = bytearray(base)
    for _ in range(draw(st.integers(1, most))):
        at = draw(st.integers(0, max(0, len(data) - 1)))
        kind = draw(st.sampled_from(["flip", "byte", "cut", "delete", "insert", "repeat", "number", "swap"]))
        if kind == "flip" and data:
            data[at] ^= 1 << draw(st.integers(0, 7))
        elif kind == "byte" and data:
            data[at] = draw(st.sampled_from([0, 1, 0x2E, 0x52, 0x63, 0x7F, 0x80, 0x93, 0xFF]))
        elif kind == "cut":
            del data[at:]
        elif kind == "delete":
            del data[at : at + draw(st.integers(1, 64))]
        elif kind == "insert":
            data[at:at] = draw(st.binary(min_size=1, max_size=24))
        elif kind == "repeat":
            data[at:at] = data[at : at + draw(st.integers(1, 200))]
        elif kind == "number":
            layout, value = draw(
                st.sampled_from(
                    [("<I", 0xFFFFFFFF), ("<I", 0x7FFFFFFF), ("<Q", (1 << 64) - 1), ("<H", 0xFFFF), ("<I", 0)]
                )
            )
            data[at : at + struct.calcsize(layout)] = struct.pack(layout, value)
        else:
            other = draw(st.integers(0, max(0, len(data) - 1)))
            data[at : at + 8], data[other : other + 8] = data[other : other + 8], data[at : at + 8]
    return bytes(data)


@pytest.fixture(autouse=True)
def bounded():
    """Bound the memory of a whole kind."""
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    yield
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 - before < MOST_GROWTH_BYTES


def outcome(path: Path) -> str:
    """Return the rule that refuses a file, or "accepted"; an accepted one must have a manifest that decodes."""
    begun = time.monotonic()
    with path.open("rb") as file:
        answer = file_reader.report(file.fileno())
    assert time.monotonic() - begun < SLOWEST_S
    if "refused" in answer:
        rule, what, where = answer["refused"]
        assert rule in refusals.RULES and rule != "child-died" and isinstance(what, str) and isinstance(where, str)
        return rule
    manifest = decode(json.loads(json.dumps(answer["manifest"])))
    assert manifest.size == path.stat().st_size
    return "accepted"


def base(name: str) -> bytes:
    if name not in _BASES:
        _BASES[name] = _made(name)
    return _BASES[name]


_BASES: dict[str, bytes] = {}


def _made(name: str) -> bytes:
    import tempfile

    with tempfile.TemporaryDirectory() as folder:
        if name == "torch":
            small = dict(list(state().items())[:3])
            value = {
                "model_state_dict": small,
                "ema_model_state_dict": ema_state(small),
                "scheduler_state_dict": scheduler(3),
                "update": 3,
            }
            return save(Path(folder) / "x.pt", value).read_bytes()
        builder = {"old": "old_format", "tar": "tar_format", "safetensors": "safetensors"}[name]
        return BUILDERS[builder](Path(folder)).read_bytes()


def agrees_with_torch(path: Path) -> bool:
    """Tell whether torch, where it reads an accepted file too, reads the same; `assert_same` names what differs."""
    try:
        theirs = torch.load(path, weights_only=True, map_location="cpu")
    except Exception:  # noqa: BLE001  (torch raises anything at all)
        return True
    from test_benign import assert_same

    assert_same(load_tensors(path), theirs)
    return True


@pytest.fixture(scope="module")
def file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("fuzz") / "x.pt"


@fuzz("torch")
@given(data=st.data())
def test_torch_archives(data: st.DataObject, file: Path) -> None:
    file.write_bytes(data.draw(mutations(base("torch"))))
    assert outcome(file) != "accepted" or agrees_with_torch(file)


@fuzz("pickle")
@given(data=st.data())
def test_pickles_in_whole_archives(data: st.DataObject, file: Path) -> None:
    """Only the pickle is altered and the archive made anew around it, so that the walker is reached every time."""
    import zipfile

    from hostile.zip_parts import Item, archive

    with zipfile.ZipFile(io.BytesIO(base("torch"))) as old:
        parts = {name.split("/", 1)[1]: old.read(name) for name in old.namelist()}
    parts["data.pkl"] = data.draw(mutations(parts["data.pkl"], most=3))
    file.write_bytes(archive([Item(f"m/{name}", content) for name, content in parts.items()]))
    rule = outcome(file)
    assert not rule.startswith("zip-") or rule in ("zip-missing", "zip-extra")
    assert rule != "accepted" or agrees_with_torch(file)


@fuzz("old")
@given(data=st.data())
def test_old_format(data: st.DataObject, file: Path) -> None:
    file.write_bytes(data.draw(mutations(base("old"))))
    assert outcome(file) != "accepted" or agrees_with_torch(file)


@fuzz("tar")
@given(data=st.data())
def test_tar_format(data: st.DataObject, file: Path) -> None:
    file.write_bytes(data.draw(mutations(base("tar"))))
    assert outcome(file) in {"accepted", *refusals.RULES}


@fuzz("safetensors")
@given(data=st.data())
def test_safetensors(data: st.DataObject, file: Path) -> None:
    file.write_bytes(data.draw(mutations(base("safetensors"))))
    assert outcome(file) in {"accepted", *refusals.RULES}


_numbers = st.one_of(st.integers(-2, 40), st.sampled_from([1 << 31, 1 << 63, -(1 << 63), 1 << 200]))
_entry = st.fixed_dictionaries(
    {"dtype": st.sampled_from(["F32", "F16", "BF16", "I64", "", "f32"]), "shape": st.lists(_numbers, max_size=3),
     "data_offsets": st.lists(_numbers, min_size=1, max_size=3)}
)  # fmt: skip


@fuzz("header")
@given(
    header=st.dictionaries(st.text(max_size=5), st.one_of(_entry, st.none(), st.integers()), max_size=3),
    more=st.binary(max_size=40),
)
def test_safetensors_headers(header: dict, more: bytes, file: Path) -> None:
    raw = json.dumps(header).encode()
    file.write_bytes(struct.pack("<Q", len(raw)) + raw + more)
    assert outcome(file) in {"accepted", *refusals.RULES}


def ends_clearly(read: Callable[[Path], object], path: Path) -> bool:
    """Tell whether a file is read or refused in words of bearable length, and soon."""
    begun, said = time.monotonic(), "read"
    try:
        read(path)
    except LabError as error:
        said = str(error)
    return 0 < len(said) < 5000 and time.monotonic() - begun < SLOWEST_S


@fuzz("vocab")
@given(data=st.data())
def test_vocabs(data: st.DataObject, file: Path) -> None:
    path = file.with_name("vocab.txt")
    path.write_bytes(data.draw(mutations(" \na\nb\nç\né\n你\n".encode() * 5)))
    assert ends_clearly(read_vocab, path)


@fuzz("yaml")
@given(data=st.data())
def test_cases(data: st.DataObject, file: Path) -> None:
    if "case" not in _BASES:
        _BASES["case"] = write_case(file.parent).read_bytes()
    path = file.parent / "case" / "altered.yaml"
    path.write_bytes(data.draw(mutations(_BASES["case"])))
    assert ends_clearly(load_case, path)


@fuzz("wav")
@given(data=st.data())
def test_recordings(data: st.DataObject, file: Path) -> None:
    buffer = io.BytesIO()
    with wave.open(buffer, "wb") as sound:
        sound.setparams((1, 2, 24000, 0, "NONE", ""))
        sound.writeframes(bytes(range(256)) * 8)
    path = file.with_name("x.wav")
    path.write_bytes(data.draw(mutations(buffer.getvalue())))
    assert ends_clearly(load_wave, path)


CASES = {
    "deep": "a: " + "[" * 100_000,
    "deep closed": "a: " + "[" * 5_000 + "]" * 5_000,
    "laughs": "a: &a [x, x]\n"
    + "\n".join(f"{b}: &{b} [*{a}, *{a}]" for a, b in zip("abcdefghijklmnopqrst", "bcdefghijklmnopqrstu", strict=True)),
    "itself": "name: &a [*a]",
    "itself as a mapping": "training: &a {arch: *a}",
    "no date": "name: 2024-13-45",
    "no number": "name: 0b2",
    "nul in a path": 'checkpoint: "a\\0b"',
    "long path": "checkpoint: " + "a" * 5000,
    "python tag": "name: !!python/object/apply:os.system [ls]",
    "key of a list": "? [a]\n: b",
    "huge number": "name: " + "9" * 10_000,
}


@pytest.mark.parametrize("name", CASES)
def test_case_files_that_are_traps(name: str, tmp_path: Path) -> None:
    (tmp_path / "case.yaml").write_text(CASES[name])
    with pytest.raises(LabError):
        load_case(tmp_path / "case.yaml")
