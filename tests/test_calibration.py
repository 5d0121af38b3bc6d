"""Counting trials; that a stopped calibration goes on where it was."""

from pathlib import Path

import pytest

from f5lab import catalogue, paths
from f5lab.errors import FaultError
from f5lab.planted import calibration, plants
from f5lab.planted.calibration import NONE, Trial
from f5lab.specs import load_case


def trial(kind: str, planted: tuple[str, ...], *named: str, error: str = "") -> Trial:
    return Trial(kind, planted, 0, named, 1.0, error)


def test_right_means_first_for_one_fault_and_top_three_for_a_pair() -> None:
    assert trial("fault", ("mel-type",), "mel-type", "vocoder-wrong").right
    assert not trial("fault", ("mel-type",), "vocoder-wrong", "mel-type").right
    assert not trial("fault", ("mel-type",)).right
    pair = ("mel-type", "vocoder-wrong")
    assert trial("pair", pair, "oov-to-zero", "vocoder-wrong", "mel-type").right
    assert not trial("pair", pair, "oov-to-zero", "vocoder-wrong", "inv-freq-altered", "mel-type").right


def test_an_inseparable_fault_counts_as_right() -> None:
    name, other = next((f.id, f.look_alikes[0]) for f in catalogue.FAULTS.values() if f.look_alikes)
    assert trial("fault", (name,), other).right


def test_silence_is_right_only_where_nothing_is_wrong() -> None:
    assert trial("healthy", ()).right and trial("decoy", ("crlf-vocab",)).right
    assert not trial("decoy", ("crlf-vocab",), "vocab-damage").right
    assert not trial("healthy", (), error="crashed").right


def test_the_tally_counts_what_was_planted_only() -> None:
    trials = [
        trial("fault", ("mel-type",), "mel-type"), trial("fault", ("mel-type",), "vocoder-wrong"), trial("healthy", ()),
        trial("healthy", (), "mel-type"), trial("fault", ("lr-dead",), error="not planted: no base"),
        trial("pair", ("mel-type", "lr-dead"), "mel-type", "lr-dead"),
    ]  # fmt: skip
    tally = calibration.tally(trials)
    assert (tally.right, tally.faults, tally.top_1) == (1, 2, 0.5)
    assert (tally.pairs_right, tally.pairs) == (1, 1)
    assert (tally.false_alarms, tally.healthy, tally.not_planted) == (1, 2, 1)
    rows, columns, counts = calibration.confusion(trials)
    assert rows == ["mel-type", "(healthy)"] and columns[-1] == NONE
    assert counts.sum() == 4 and counts[1, columns.index(NONE)] == 1


def test_the_plan_covers_the_catalogue() -> None:
    kinds = [kind for kind, _, _ in calibration.plan()]
    assert kinds.count("fault") == 3 * len(catalogue.FAULTS)
    assert kinds.count("healthy") >= 10 and kinds.count("decoy") == len(catalogue.DECOYS)


def test_a_stopped_calibration_goes_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked = []

    def refuse(*args: object, **_: object) -> None:
        asked.append(args[0])
        raise FaultError("no")

    monkeypatch.setattr(plants, "plant", refuse)
    plan, log = [("fault", ("mel-type",), 0), ("fault", ("lr-dead",), 0)], tmp_path / "log.jsonl"
    case = load_case(paths.default_case())
    calibration.calibrate(plan[:1], case, tmp_path, log=log)
    log.write_text(log.read_text(encoding="utf-8") + '{"kind": "fau', encoding="utf-8")
    done = calibration.calibrate(plan, case, tmp_path, log=log)
    assert asked == [["mel-type"], ["lr-dead"]]
    assert [t.error for t in done] == ["not planted: no"] * 2

    monkeypatch.setattr(calibration.provenance, "code_digest", lambda: "other code")
    calibration.calibrate(plan[:1], case, tmp_path, log=log)
    assert asked[2:] == [["mel-type"]], "what other code found is not today's figure"
    assert len(log.read_text(encoding="utf-8").splitlines()) == 1
