"""The ledger: what was finished is there again, what is damaged is not."""

import json
from pathlib import Path

import pytest

from f5lab.scale.ledgers import Ledger, digest


@pytest.fixture
def filled(tmp_path: Path) -> Path:
    ledger = Ledger(tmp_path / "rows.jsonl")
    ledger.put("probe", "a", {"values": [0.1, 0.2]})
    ledger.put("speech", "a", {"clips": [{"heard": "olá \udcff"}]})
    ledger.put("probe", "b", {"values": [0.3]})
    return ledger.path


def test_what_was_put_is_there_for_the_next_process(filled: Path) -> None:
    again = Ledger(filled)
    assert again.get("probe", "a") == {"values": [0.1, 0.2]} and again.get("probe", "b") == {"values": [0.3]}
    assert again.get("speech", "b") is None and again.damaged == 0


def test_a_lone_surrogate_is_not_taken_for_what_it_was(filled: Path) -> None:
    found = Ledger(filled).get("speech", "a")
    assert found is None or found == {"clips": [{"heard": "olá \udcff"}]}


@pytest.mark.parametrize("keep", range(1, 60, 7))
def test_a_line_cut_short_is_done_again_and_swallows_nothing(filled: Path, keep: int) -> None:
    lines = filled.read_bytes().splitlines(keepends=True)
    filled.write_bytes(b"".join(lines[:2]) + lines[2][:keep])
    ledger = Ledger(filled)
    assert ledger.get("probe", "b") is None and ledger.damaged == 1
    ledger.put("probe", "b", {"values": [0.3]})
    again = Ledger(filled)
    assert again.get("probe", "b") == {"values": [0.3]} and again.get("probe", "a") == {"values": [0.1, 0.2]}


def test_an_altered_figure_is_not_believed(filled: Path) -> None:
    filled.write_text(filled.read_text(encoding="utf-8").replace("0.2", "0.1"), encoding="utf-8")
    assert Ledger(filled).get("probe", "a") is None


def test_a_line_filed_under_another_key_is_not_believed(filled: Path) -> None:
    rows = [json.loads(line) for line in filled.read_text(encoding="utf-8").splitlines()]
    rows[0]["key"] = "c"
    filled.write_text("\n".join(map(json.dumps, rows)), encoding="utf-8")
    assert Ledger(filled).get("probe", "c") is None


def test_what_is_not_finite_is_refused(tmp_path: Path) -> None:
    ledger = Ledger(tmp_path / "rows.jsonl")
    with pytest.raises(ValueError, match="not JSON compliant"):
        ledger.put("probe", "a", {"values": [float("nan")]})
    assert not ledger.path.exists() and ledger.get("probe", "a") is None


def test_a_digest_is_of_the_facts_and_not_of_their_order() -> None:
    assert digest({"a": 1, "b": [2, 3]}) == digest({"b": [2, 3], "a": 1}) != digest({"a": 1, "b": [3, 2]})
