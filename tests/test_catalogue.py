"""The catalogue: complete, in order, in words that say something, and an unknown id gets a useful answer."""

import dataclasses
import re

import pytest

from f5lab import catalogue
from f5lab.catalogue import DECOYS, FAULTS, find_fault, rows
from f5lab.errors import FaultError

ORDER = """
ema-lag-inherited ema-lag-fresh ema-frozen ema-uninitialised raw-ema-swapped raw-in-ema-slot prefix-lost stale-checkpoint
scratch-by-accident lr-dead weight-damage load-raises arch-flags-v0-as-v1 pe-attn-head-only text-mask-padding-only inv-freq-altered
vocab-permuted vocab-off-by-one vocab-re-extended vocab-damage oov-to-zero front-end-pinyin tokenizer-drift case-folding
mel-type frontend-rate vocoder-wrong sample-rate-mislabelled ref-clipped ref-text-wrong ref-silent-or-quiet
duration-byte-ratio short-text-speed cfg-or-sway-off precision-bf16-cast precision-fp16-nan stale-text-cache
""".split()
GROUPS = {"weights", "architecture", "text", "audio", "duration", "sampler", "numerics"}
LOADS = {"silent", "raises", "raises at first forward", "depends"}


def test_every_fault_is_there_in_order() -> None:
    assert list(FAULTS) == ORDER
    assert not set(FAULTS) & set(DECOYS)


@pytest.mark.parametrize("name", ORDER)
def test_entries_say_something(name: str) -> None:
    fault = FAULTS[name]
    assert re.fullmatch(r"[a-z0-9]+(-[a-z0-9]+)*", fault.id) and fault.id == name
    assert fault.group in GROUPS and fault.loads in LOADS
    for text in (fault.happens, fault.symptom, fault.detected_by, fault.fix):
        assert text.endswith(".") and len(text.split()) >= 1 and "\n" not in text
    assert len(fault.happens.split()) >= 8 and len(fault.title.split()) >= 2
    assert all(re.fullmatch(r"SWivid/F5-TTS#\d+", issue) for issue in fault.issues)


def test_no_two_entries_say_the_same() -> None:
    for field in ("title", "happens"):
        assert len({getattr(fault, field) for fault in FAULTS.values()}) == len(FAULTS)


def test_look_alikes_are_known_and_mutual() -> None:
    for fault in FAULTS.values():
        for other in fault.look_alikes:
            assert other != fault.id and fault.id in FAULTS[other].look_alikes


@pytest.mark.parametrize("reason", DECOYS.values(), ids=list(DECOYS))
def test_decoys_have_a_reason(reason: str) -> None:
    assert ": " in reason and reason.endswith(".")


def test_an_unknown_id_lists_close_matches() -> None:
    assert find_fault("mel-type") is FAULTS["mel-type"]
    with pytest.raises(FaultError, match="no fault 'vocab-permutated'; expected one such as vocab-permuted"):
        find_fault("vocab-permutated")
    with pytest.raises(FaultError, match=r"ema-frozen.*`f5lab faults`"):
        find_fault("EMA_frozen")
    with pytest.raises(FaultError, match="expected one of 37, the first being ema-lag-inherited"):
        find_fault("xyzzy")


def test_rows_are_the_entries() -> None:
    made = rows()
    assert [row["id"] for row in made] == ORDER
    assert set(made[0]) == {field.name for field in dataclasses.fields(catalogue.Fault)}
    assert made[0]["issues"][0] == "SWivid/F5-TTS#848"
