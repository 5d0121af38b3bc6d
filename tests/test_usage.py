"""Where time and memory went is measured, summed and shown."""

import time

import pytest

from f5lab import tables, usage


@pytest.fixture(autouse=True)
def _afresh() -> None:
    usage.forget()


def test_time_and_clips_are_counted_by_part() -> None:
    with usage.spend(usage.WHISPER, 3):
        time.sleep(0.05)
    with usage.spend(usage.WHISPER, 2):
        pass
    used = usage.spent()
    assert set(used["parts"]) == {usage.WHISPER}
    assert used["parts"][usage.WHISPER]["count"] == 5
    assert 0.05 <= used["parts"][usage.WHISPER]["seconds"] <= used["seconds"] + 0.01


def test_a_failed_attempt_counts_as_time_but_made_nothing() -> None:
    def fail() -> None:
        with usage.spend(usage.SYNTHESIS, 4):
            time.sleep(0.02)
            raise ValueError("no clip")

    with pytest.raises(ValueError, match="no clip"):
        fail()
    assert usage.spent()["parts"][usage.SYNTHESIS] == {"seconds": pytest.approx(0.02, abs=0.02), "count": 0}


def test_processes_are_summed_and_the_highest_peak_is_kept() -> None:
    a = {"seconds": 10.0, "parts": {"probe": {"seconds": 4.0, "count": 8}}, "gpu": None}
    b = {
        "seconds": 30.0,
        "parts": {"probe": {"seconds": 1.0, "count": 2}, "Whisper": {"seconds": 5.0, "count": 1}},
        "gpu": {"name": "GPU", "peak_bytes": 3 << 30, "total_bytes": 80 << 30},
    }
    c = b | {"parts": {}, "gpu": {"name": "GPU", "peak_bytes": 2 << 30, "total_bytes": 80 << 30}}
    whole = usage.joined([a, b, c])
    assert whole is not None and whole["seconds"] == 70.0
    assert whole["parts"] == {"probe": {"seconds": 5.0, "count": 10}, "Whisper": {"seconds": 5.0, "count": 1}}
    line = usage.sentence(whole)
    assert "probe 5 s (7 %, 10 forward passes)" in line and "the rest 60 s (86 %)" in line
    assert "3.0 of 80 GiB of GPU" in line
    assert usage.joined([]) is None
    assert usage.sentence({"seconds": 11.2, "parts": {}, "gpu": None}) == "11 s, no synthesis, Whisper or probe among them."


def test_a_notebooks_last_table_hands_it_on() -> None:
    with usage.spend(usage.PROBE, 7):
        pass
    shown = tables.show_findings([])
    bundle = shown._repr_mimebundle_()
    assert bundle["text/html"] == shown.source and "the rest" in shown.source
    assert bundle[usage.MIME]["seconds"] >= 0 and bundle[usage.MIME]["gpu"] is None
