"""Alignments of transcript and text: they count what the error rates count, and are read without colour."""

import random
import re

import jiwer
import pytest

from f5lab import metrics, readings

WORDS = ("o", "gato", "pato", "avó", "avô", "comprou", "um", "livro")


def phrase(rng: random.Random, least: int = 0) -> str:
    return " ".join(rng.choice(WORDS) for _ in range(rng.randint(least, 7)))


def errors(reading: readings.Reading, of: str) -> int:
    return sum(reading.count(kind, of=of) for kind in ("replaced", "missing", "added"))


@pytest.mark.parametrize("seed", range(40))
def test_edits_are_those_of_the_error_rates(seed: int) -> None:
    rng = random.Random(seed)
    text, heard = phrase(rng, 1), phrase(rng)
    reading = readings.compare_reading(text, heard)
    assert errors(reading, "words") / len(text.split()) == pytest.approx(jiwer.wer(text, heard))
    letters = text.replace(" ", "")
    assert errors(reading, "letters") / len(letters) == pytest.approx(jiwer.cer(letters, heard.replace(" ", "")))
    for edits, joined in ((reading.words, text.split()), (reading.letters, list(letters))):
        assert [part for edit in edits for part in edit.text] == joined
    assert [part for edit in reading.words for part in edit.heard] == heard.split()


def test_each_kind_has_a_sign_that_needs_no_colour() -> None:
    shown = readings.show_reading(readings.compare_reading("Comprou um livro.", "Comprou o livro de couro"))
    bare = re.sub(r"<[^>]+>", "", shown.source)
    assert bare.startswith("comprou [−um−]{+o+} livro {+de couro+}")
    assert repr(shown) == "comprou [−um−]{+o+} livro {+de couro+}"
    text, signs, heard = bare.partition("couro+}")[2].splitlines()
    assert len(text) == len(signs) == len(heard)
    assert set(signs) == {" ", "~", "−", "+"}
    marked = {sign: {(t, h) for t, s, h in zip(text, signs, heard) if s == sign} for sign in "−+"}
    assert all(h == "·" for _, h in marked["−"]) and all(t == "·" for t, _ in marked["+"])
    assert all(t == h for t, s, h in zip(text, signs, heard) if s == " ")


@pytest.mark.parametrize(("text", "heard", "kinds"), [("…", "o", ["added"]), ("o", "", ["missing"]), ("", "", [])])
def test_nothing_said_or_nothing_heard(text: str, heard: str, kinds: list[str]) -> None:
    reading = readings.compare_reading(text, heard)
    assert [edit.kind for edit in reading.words] == [edit.kind for edit in reading.letters] == kinds
    assert "f5lab-alignment" in readings.show_reading(reading).source


def test_texts_do_nothing_to_the_page() -> None:
    table = readings.show_readings([("<b>x</b>", "<script>alert(1)</script>", "<img src=x>\u202e")])
    assert "<script" not in table.source and "<img" not in table.source and "<b>" not in table.source
    assert "\u202e" not in table.source


def test_the_table_has_the_measures_of_metrics() -> None:
    shown = readings.show_readings([("inference", "O gato.", "o pato"), ("trainer", "O gato.", "o gato")]).source
    assert f">{metrics.wer('O gato.', 'o pato').value}<" in shown
    assert f">{metrics.cer('O gato.', 'o pato').value}<" in shown
