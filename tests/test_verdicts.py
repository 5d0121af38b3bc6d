"""The verdict file and its Markdown."""

import json
from pathlib import Path

import pytest

from f5lab import verdicts
from f5lab.errors import RunError
from f5lab.findings import Finding
from f5lab.verdicts import Cause, Effect, Fix, Refuted, Unknown, Verdict

VERDICT = Verdict(
    case="c", run="r", healthy=False,
    causes=[Cause(id="mel-type", confidence=0.97, factors=["mel_spec_type"], evidence=["06-mel-type"],
                  effect=Effect(metric="CER", before=0.9, after=0.1, interval=(-0.9, -0.7), n=8),
                  fix=Fix(summary="Compute vocos mels.", settings={"mel_spec_type": "vocos"}))],
    refuted=[Refuted(id="vocoder-wrong", evidence=["06-vocoder-wrong"])],
    unknown=[Unknown(id="tokenizer-drift", needs="raw.arrow")],
)  # fmt: skip


def test_a_verdict_survives_the_disk_with_the_contracts_keys(tmp_path: Path) -> None:
    path = verdicts.save(VERDICT, tmp_path)
    assert verdicts.load(path) == VERDICT
    data = json.loads(path.read_text(encoding="utf-8"))
    assert set(data) == {"case", "run", "healthy", "causes", "refuted", "unknown"}
    assert set(data["causes"][0]) == {"id", "confidence", "factors", "effect", "evidence", "fix"}
    assert set(data["causes"][0]["effect"]) == {"metric", "before", "after", "interval", "n"}


def test_what_is_no_verdict_is_refused(tmp_path: Path) -> None:
    (tmp_path / "verdict.json").write_text('{"case": 1}', encoding="utf-8")
    with pytest.raises(RunError, match="not a verdict"):
        verdicts.load(tmp_path / "verdict.json")
    with pytest.raises(RunError, match="verdict"):
        verdicts.load(tmp_path / "none.json")


def test_markdown_names_cause_numbers_fix_and_what_is_left() -> None:
    text = verdicts.markdown(VERDICT, {"06-mel-type": "Inference computes bigvgan mels."})
    for part in ("mel-type", "0.9 with it alone, 0.1 without", "n = 8", "Inference computes bigvgan mels.", "mel_spec_type: vocos",
                 "`vocoder-wrong`", "raw.arrow"):  # fmt: skip
        assert part in text


def test_a_healthy_verdict_says_so() -> None:
    healthy = VERDICT.model_copy(update={"causes": [], "healthy": True})
    assert "No cause was found" in verdicts.markdown(healthy)


def test_an_effect_that_nobody_sees_is_called_none() -> None:
    tiny = Effect(metric="loss", before=0.014844, after=0.0148419, interval=(-6.4e-06, -0.0), n=5)
    assert tiny.text == "loss (lower is better): 0.0148 with it alone, 0.0148 without; no change within a thousandth; n = 5"


def test_a_recogniser_that_cannot_judge_stands_beside_the_headline() -> None:
    def found(name: str, outcome: str, value: float) -> Finding:
        return Finding(id=name, question="?", claim="Heard.", verdict=outcome, value=value)

    deaf, hears = found(verdicts.SEPARATES, "refuted", 0.1), found(verdicts.SEPARATES, "supported", 0.8)
    mishears, fine = found(verdicts.CEILING, "refuted", 0.31), found(verdicts.CEILING, "supported", 0.02)
    assert verdicts.notes([hears, fine]) == []
    assert verdicts.notes([hears, mishears]) == [
        "The recogniser mishears even the real recordings (CER 0.31): compare a CER here with that, not with 0."
    ]
    (said,) = verdicts.notes([deaf, mishears])
    assert "no CER here says anything" in said
    healthy = Verdict(case="c", run="", healthy=True, causes=[], refuted=[], unknown=[])
    assert said in verdicts.markdown(healthy, beside=[said]).replace("\\", "")


def test_what_is_heard_stands_beside_a_headline_without_a_cause() -> None:
    """No cause is no good speech."""
    heard = Finding(id=verdicts.HEARD, question="?", claim="Heard.", verdict="inconclusive", value=0.53, n=4)
    (said,) = verdicts.notes([heard])
    assert "CER 0.53" in said and "not shown to speak well" in said
    assert verdicts.notes([heard.model_copy(update={"verdict": "supported"})]) == []
    rest = Finding(id=verdicts.REMAINS, question="?", claim="As well.", verdict="refuted", value=0.2, interval=(0.1, 0.3), n=8)
    assert all("As the case runs it" not in note for note in verdicts.notes([heard, rest]))
