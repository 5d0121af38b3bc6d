"""Vocab files: read exactly as upstream reads them, compared by what they map, traced."""

import json
import unicodedata
from pathlib import Path

import pytest

from f5lab import vocabs
from f5lab.errors import VocabError
from f5lab.execution import markup

PLAIN = " \na\nb\nç\nã\n"
FILES = {
    "plain": PLAIN.encode(),
    "crlf": PLAIN.replace("\n", "\r\n").encode(),
    "cr": PLAIN.replace("\n", "\r").encode(),
    "bom": b"\xef\xbb\xbf" + PLAIN.encode(),
    "no-final-newline": PLAIN[:-1].encode(),
    "duplicate": (PLAIN + "a\nz\n").encode(),
    "stripped-space": PLAIN[1:].encode(),
    "trailing-blank": (PLAIN + "\n").encode(),
    "nfd": unicodedata.normalize("NFD", PLAIN).encode(),
    "separators": " \n\u2028\n\x0b\n\x85\n".encode(),
    "pinyin": b" \nzhong1\nguo2\n",
}


def write(folder: Path, name: str, data: bytes | str) -> Path:
    path = folder / f"{name}.txt"
    path.write_bytes(data.encode() if isinstance(data, str) else data)
    return path


@pytest.mark.parametrize("name", FILES)
def test_maps_equal_upstreams(tmp_path: Path, name: str) -> None:
    from f5lab import models

    path = write(tmp_path, name, FILES[name])
    char_map, size = models.upstream().get_tokenizer(str(path), "custom")
    read = vocabs.read_vocab(path)
    assert (read.char_map, read.size) == (char_map, size)


@pytest.mark.parametrize(
    ("name", "says"),
    [
        ("plain", None), ("crlf", "line endings other than LF (harmless"), ("bom", "byte order mark"),
        ("no-final-newline", "reads the last token as ''"),
        ("duplicate", "1 tokens on several lines (indices run to 6, 6"),
        ("stripped-space", "a space stripped"), ("nfd", "2 tokens are not NFC"),
    ],
)  # fmt: skip
def test_problems(tmp_path: Path, name: str, says: str | None) -> None:
    found = vocabs.read_vocab(write(tmp_path, name, FILES[name])).problems()
    assert found == [] if says is None else any(says in problem for problem in found)


COMPARISONS = {
    "same": (PLAIN, PLAIN, "same-bytes", True),
    "crlf": (PLAIN, PLAIN.replace("\n", "\r\n"), "same-map", True),
    "bom": (PLAIN, "\ufeff" + PLAIN, "same-lookups", True),
    "stripped space": (PLAIN, PLAIN[1:], "same-lookups", True),
    "trailing blank": (PLAIN, PLAIN + "\n", "extended", False),
    "reordered": (PLAIN, " \nb\na\nç\nã\n", "permuted", False),
    "line removed, one appended": (" \na\nb\nc\nd\ne\n", " \nb\nc\nd\ne\nf\n", "shifted", False),
    "extended": (PLAIN, PLAIN + "õ\n", "extended", False),
    "other tail": (PLAIN + "x\n", PLAIN + "y\n", "tail-differs", False),
    "no common order": (PLAIN, " \nx\ny\n", "different", False),
}


@pytest.mark.parametrize("name", COMPARISONS)
def test_comparisons(tmp_path: Path, name: str) -> None:
    first, second, verdict, harmless = COMPARISONS[name]
    a, b = (vocabs.read_vocab(write(tmp_path, n, text)) for n, text in (("a", first), ("b", second)))
    found = vocabs.compare(a, b)
    assert (found.verdict, found.harmless) == (verdict, harmless)
    assert found.silent == (a.size == b.size)


def test_a_shift_is_measured_and_called_silent(tmp_path: Path) -> None:
    first, second, _, _ = COMPARISONS["line removed, one appended"]
    a, b = (vocabs.read_vocab(write(tmp_path, n, text)) for n, text in (("a", first), ("b", second)))
    found = vocabs.compare(a, b)
    assert list(found.offsets)[0] == -1 and found.first_difference == 1
    assert found.only_a == ("a",) and found.only_b == ("f",)
    assert "loads without an error; 4 symbols" in found.consequence


def test_nfd_is_recognised_as_the_same_letters(tmp_path: Path) -> None:
    a, b = (vocabs.read_vocab(write(tmp_path, n, FILES[n])) for n in ("plain", "nfd"))
    found = vocabs.compare(a, b)
    assert found.verdict == "tail-differs" and found.nfc_equal


def test_trace_marks_what_falls_to_zero(tmp_path: Path) -> None:
    vocab = vocabs.read_vocab(write(tmp_path, "v", PLAIN))
    traced = vocabs.trace("baÇ ç", list, vocab)
    assert [(t.text, t.index, t.known) for t in traced] == [
        ("b", 2, True), ("a", 1, True), ("Ç", 0, False), (" ", 0, True), ("ç", 3, True),
    ]  # fmt: skip
    assert [t.index for t in vocabs.trace("ç", lambda s: list(s.encode()), None)] == [0xC3, 0xA7]


def test_indices_equal_upstreams(tmp_path: Path) -> None:
    from f5lab import models

    path, text = write(tmp_path, "v", PLAIN), "a bç Ãã, família"
    expected = models.upstream().list_str_to_idx([list(text)], vocabs.read_vocab(path).char_map)[0].tolist()
    assert [t.index for t in vocabs.trace(text, list, vocabs.read_vocab(path))] == expected


def test_accent_splitting_by_pinyin_shows_as_an_edit(tmp_path: Path) -> None:
    from f5lab import models

    vocab = vocabs.read_vocab(write(tmp_path, "v", " \n" + "".join(f"{c}\n" for c in "afmilí")))
    plain, split = (vocabs.trace("família", front, vocab) for front in (list, models.front_end("pinyin")))
    (edit,) = vocabs.differences(plain, split)
    assert (edit.at, edit.a, [t.text for t in edit.b]) == (4, (), [" "])
    assert vocabs.edit_rows("p", [edit])[0]["inference"] == "␣=0"
    shown = vocabs.show_trace("<b>", plain, split).source
    assert shown.count("border:2px") == 1 and "border:2px" in markup.clean(shown) and "&lt;b&gt;" in shown and "<b>" not in shown


def test_unknown_characters_and_what_composing_saves(tmp_path: Path) -> None:
    vocab = vocabs.read_vocab(write(tmp_path, "v", PLAIN))
    found = {u.character: u for u in vocabs.unknown_tokens(["ça", "c\u0327a", "Xa"], vocab)}
    assert set(found) == {"c", "\u0327", "X"}
    assert found["c"].nfc_saves and not found["X"].nfc_saves
    assert found["X"].texts == (2,) and found["X"].name == "LATIN CAPITAL LETTER X"


def test_rows_against_vocab(tmp_path: Path) -> None:
    plain = vocabs.read_vocab(write(tmp_path, "a", PLAIN))
    twice = vocabs.read_vocab(write(tmp_path, "b", FILES["duplicate"]))
    assert vocabs.rows_sentence(6, plain).startswith("fits")
    assert vocabs.rows_sentence(5, plain).startswith("does not load: 5 rows want 4 tokens, the vocab has 5")
    assert "run out of the 7 rows" in vocabs.rows_sentence(7, twice)


@pytest.mark.parametrize(
    ("data", "says"),
    [
        (b"", "is empty"),
        (b"\x80\x81\n", "is not UTF-8 .* not a checkpoint"),
        (b"a\n" * (9 << 20), "bytes; expected a text"),
    ],
)
def test_bad_files(tmp_path: Path, data: bytes, says: str) -> None:
    with pytest.raises(VocabError, match=says):
        vocabs.read_vocab(write(tmp_path, "bad", data))


def test_missing_and_folder(tmp_path: Path) -> None:
    with pytest.raises(VocabError, match="does not exist; pass the vocab.txt"):
        vocabs.read_vocab(tmp_path / "none.txt")
    with pytest.raises(VocabError, match="is a folder"):
        vocabs.read_vocab(tmp_path)


def test_report(tmp_path: Path) -> None:
    a, b = write(tmp_path, "a", PLAIN), write(tmp_path, "b", " \nb\na\nç\nã\n")
    report = vocabs.report(a, b)
    json.dumps(report, allow_nan=False)
    assert report["verdict"] == "permuted" and report["comparison"]["moved_count"] == 2
    assert vocabs.report(a)["embedding_rows"] == 6
