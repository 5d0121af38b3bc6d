"""Vocab files and what they make of a text: read as upstream reads them, compared by what they map, not by bytes."""

import difflib
import hashlib
import html
import unicodedata
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

from f5lab import tables
from f5lab.errors import VocabError
from f5lab.paths import existing_file

UNKNOWN_INDEX = 0
"""Where ``list_str_to_idx`` sends every token that the vocab lacks; in a sound vocab that is the space."""
MAX_BYTES = 16 << 20
SHOWN = 20
Verdict = Literal[
    "same-bytes", "same-map", "same-lookups", "permuted", "shifted", "extended", "tail-differs", "different"
]


@dataclass(frozen=True)
class Vocab:
    """A vocab file as ``get_tokenizer(path, "custom")`` reads it, and the facts about its bytes.

    Attributes
    ----------
    path : Path
    char_map : dict of str to int
        Token to index: upstream cuts the last character of every line, whatever it is; a repeated token keeps its last
        line number.
    bytes, sha256 : int, str
    lines : int
    endings : dict of str to int
        Counts of "LF", "CRLF" and "CR"; all three read the same.
    bom : bool
    final_newline : bool
        Without it the last token loses its last character.
    duplicates : dict of str to tuple of int
        Tokens on several lines. Size is then smaller than the largest index, which runs out of the embedding.
    empty_lines : tuple of int
        Line numbers from 0.
    not_nfc : tuple of str
        Tokens that are not in Unicode's composed form (NFC), as most keyboards and texts have it.
    """

    path: Path
    char_map: dict[str, int]
    bytes: int
    sha256: str
    lines: int
    endings: dict[str, int]
    bom: bool
    final_newline: bool
    duplicates: dict[str, tuple[int, ...]]
    empty_lines: tuple[int, ...]
    not_nfc: tuple[str, ...]

    @property
    def size(self) -> int:
        """Number of tokens; the model gets one embedding row more (the filler)."""
        return len(self.char_map)

    @property
    def largest_index(self) -> int:
        """Highest index; above ``size - 1`` it has no embedding row."""
        return max(self.char_map.values())

    @property
    def space_index(self) -> int:
        """Index that a space gets: its own, or that of unknown tokens."""
        return self.char_map.get(" ", UNKNOWN_INDEX)

    def lookup(self, token: str) -> int:
        """Return a token's index as ``list_str_to_idx`` does."""
        return self.char_map.get(token, UNKNOWN_INDEX)

    def problems(self) -> list[str]:
        """Return what is wrong or looks wrong, in sentences; harmless oddities say so."""
        found = []
        if not self.final_newline:
            found.append(f"no newline at the end: upstream reads the last token as {list(self.char_map)[-1]!r}")
        if self.duplicates:
            ids = (
                f"indices run to {self.largest_index}, {self.size} tokens"
                if self.largest_index >= self.size
                else "no overrun"
            )
            found.append(f"{len(self.duplicates)} tokens on several lines ({ids}): the embedding has no such row")
        if self.bom:
            found.append(
                "byte order mark: the first token starts with it and is never looked up (harmless before a space)"
            )
        if self.space_index != UNKNOWN_INDEX:
            found.append(f"the space has index {self.space_index}, so unknown characters are spoken as another symbol")
        if self.empty_lines:
            lines = ", ".join(str(i) for i in self.empty_lines[:5])
            found.append(f"empty lines ({lines}): a space stripped by an editor, or indices moved by one")
        if self.not_nfc:
            found.append(f"{len(self.not_nfc)} tokens are not NFC: letters typed normally do not match them")
        if self.endings.get("CRLF") or self.endings.get("CR"):
            found.append("line endings other than LF (harmless: read the same)")
        return found


def read_vocab(path: str | Path) -> Vocab:
    """Read a vocab file.

    Raises
    ------
    VocabError
        The file is missing, a folder, empty, not UTF-8 or far too large.
    """
    path = Path(path).expanduser()
    existing_file(path, VocabError, "vocab", next_step="pass the vocab.txt of the training data")
    if path.stat().st_size > MAX_BYTES:
        raise VocabError(f"vocab {path} has {path.stat().st_size:,} bytes", expected="a text file, one symbol a line")
    data = path.read_bytes()
    try:
        data.decode("utf-8")
    except UnicodeDecodeError as error:
        where = f"{error.reason} at byte {error.start}"
        raise VocabError(
            f"vocab {path} is not UTF-8 ({where})", next_step="pass the training vocab, not a checkpoint"
        ) from error
    places: dict[str, list[int]] = {}
    last = ""
    with path.open(encoding="utf-8") as f:  # universal newlines, as upstream
        for number, line in enumerate(f):
            places.setdefault(line[:-1], []).append(number)
            last = line
    if not places:
        raise VocabError(f"vocab {path} is empty", expected="one symbol a line, space first")
    crlf = data.count(b"\r\n")
    endings = {"LF": data.count(b"\n") - crlf, "CRLF": crlf, "CR": data.count(b"\r") - crlf}
    return Vocab(
        path=path,
        char_map={token: numbers[-1] for token, numbers in places.items()},
        bytes=len(data),
        sha256=hashlib.sha256(data).hexdigest(),
        lines=sum(len(numbers) for numbers in places.values()),
        endings={name: count for name, count in endings.items() if count},
        bom=data.startswith(b"\xef\xbb\xbf"),
        final_newline=last.endswith("\n"),
        duplicates={token: tuple(numbers) for token, numbers in places.items() if len(numbers) > 1},
        empty_lines=tuple(places.get("", ())),
        not_nfc=tuple(t for t in places if unicodedata.normalize("NFC", t) != t),
    )


@dataclass(frozen=True)
class VocabComparison:
    """Two vocabs by what they map.

    Attributes
    ----------
    verdict : str
        ``same-bytes``; ``same-map`` (other bytes, equal token maps); ``same-lookups`` (every token of either gets the
        same index, unknown ones counted as 0); ``permuted`` (same tokens, other order); ``shifted`` (most common tokens
        moved by one offset); ``extended`` (one continues the other); ``tail-differs`` (same size and beginning);
        ``different``.
    moved : dict of str to (int, int)
        Tokens whose index differs.
    offsets : dict of int to int
        How many common tokens moved by how much, most frequent first.
    silent : bool
        Equal sizes: a checkpoint of one loads with the other without an error.
    nfc_equal : bool
        The maps are equal once all tokens are composed (NFC).
    consequence : str
    """

    verdict: Verdict
    sizes: tuple[int, int]
    only_a: tuple[str, ...]
    only_b: tuple[str, ...]
    moved: dict[str, tuple[int, int]]
    offsets: dict[int, int]
    first_difference: int | None
    silent: bool
    nfc_equal: bool
    consequence: str

    @property
    def harmless(self) -> bool:
        """Whether swapping the two changes nothing."""
        return self.verdict in ("same-bytes", "same-map") or (self.verdict == "same-lookups" and self.silent)


def compare(a: Vocab, b: Vocab) -> VocabComparison:
    """Compare two vocabs by token map."""
    common = [t for t in a.char_map if t in b.char_map]
    moved = {t: (a.char_map[t], b.char_map[t]) for t in common if a.char_map[t] != b.char_map[t]}
    offsets = Counter(b.char_map[t] - a.char_map[t] for t in common)
    by_index_a, by_index_b = _by_index(a), _by_index(b)
    longest = max(a.largest_index, b.largest_index) + 1
    first = next((i for i in range(longest) if by_index_a.get(i) != by_index_b.get(i)), None)
    verdict = _verdict(a, b, offsets, moved, first)
    composed = [{unicodedata.normalize("NFC", t): i for t, i in v.char_map.items()} for v in (a, b)]
    return VocabComparison(
        verdict=verdict,
        sizes=(a.size, b.size),
        only_a=tuple(t for t in a.char_map if t not in b.char_map),
        only_b=tuple(t for t in b.char_map if t not in a.char_map),
        moved=moved,
        offsets=dict(offsets.most_common()),
        first_difference=first,
        silent=a.size == b.size,
        nfc_equal=composed[0] == composed[1],
        consequence=_consequence(verdict, a, b, len(moved)),
    )


def _by_index(vocab: Vocab) -> dict[int, str]:
    return {index: token for token, index in vocab.char_map.items()}


def _verdict(a: Vocab, b: Vocab, offsets: Counter, moved: Mapping[str, Any], first: int | None) -> Verdict:
    if a.sha256 == b.sha256:
        return "same-bytes"
    if a.char_map == b.char_map:
        return "same-map"
    if all(a.lookup(t) == b.lookup(t) for t in {**a.char_map, **b.char_map}):
        return "same-lookups"
    if a.char_map.keys() == b.char_map.keys():
        return "permuted"
    if first is not None and first >= min(a.size, b.size) and not moved:
        return "extended"
    shift, count = offsets.most_common(1)[0] if offsets else (0, 0)
    if shift and count > 0.5 * min(a.size, b.size):
        return "shifted"
    if a.size == b.size and not moved and first:
        return "tail-differs"
    return "different"


def _consequence(verdict: Verdict, a: Vocab, b: Vocab, moved: int) -> str:
    if verdict in ("same-bytes", "same-map"):
        return "none: every text gets the same indices"
    if a.size != b.size:
        return f"a checkpoint trained with one does not load with the other ({a.size} against {b.size} tokens)"
    if verdict == "same-lookups":
        return "none: the tokens that differ fall to the index of the unknown, which is the same"
    beyond = next((token for token, index in b.char_map.items() if index >= b.size and index != a.char_map.get(token)), None)
    if beyond is not None:
        return f"loads without an error, and stops with an IndexError at the first {beyond!r}: the embedding has no such row"
    if moved:
        return f"loads without an error; {moved} symbols are spoken as other symbols: fluent babble in the right voice"
    return "loads without an error; only the symbols that differ are spoken wrong or left out"


@dataclass(frozen=True)
class Token:
    """One token with its index, and whether the vocab knows it."""

    text: str
    index: int
    known: bool


def trace(text: str, front_end: Callable[[str], Sequence[Any]], vocab: Vocab | None) -> list[Token]:
    """Return text -> front end -> tokens -> indices.

    Parameters
    ----------
    front_end : callable
        From text to tokens: ``list`` for raw characters, ``models.front_end("pinyin")`` for what inference does. Bytes
        (integers) need no vocab.
    vocab : Vocab or None
    """
    tokens = front_end(text)
    if vocab is None:
        return [Token(repr(bytes([t]))[2:-1], int(t), True) for t in tokens]
    return [Token(str(t), vocab.lookup(str(t)), str(t) in vocab.char_map) for t in tokens]


@dataclass(frozen=True)
class Edit:
    """A stretch in which two traces differ: the tokens of each (empty: inserted or left out) and where it begins."""

    at: int
    a: tuple[Token, ...]
    b: tuple[Token, ...]


def differences(a: Sequence[Token], b: Sequence[Token]) -> list[Edit]:
    """Return the stretches in which two traces differ by token or by index."""
    matcher = difflib.SequenceMatcher(
        None, [(t.text, t.index) for t in a], [(t.text, t.index) for t in b], autojunk=False
    )
    return [Edit(i, tuple(a[i:j]), tuple(b[k:l])) for op, i, j, k, l in matcher.get_opcodes() if op != "equal"]


@dataclass(frozen=True)
class Unknown:
    """A token that falls to index 0: how often, in which texts, and whether composing the text (NFC) would save it."""

    character: str
    name: str
    count: int
    texts: tuple[int, ...]
    nfc_saves: bool


def unknown_tokens(
    texts: Iterable[str], vocab: Vocab, front_end: Callable[[str], Sequence[Any]] = list
) -> list[Unknown]:
    """Return the tokens of texts that the vocab lacks, most frequent first."""
    counts: Counter[str] = Counter()
    places: dict[str, set[int]] = {}
    saved: set[str] = set()
    for number, text in enumerate(texts):
        missing = [str(t) for t in front_end(text) if str(t) not in vocab.char_map]
        composed = [str(t) for t in front_end(unicodedata.normalize("NFC", text)) if str(t) not in vocab.char_map]
        saved |= set((Counter(missing) - Counter(composed)).keys())
        counts.update(missing)
        for token in missing:
            places.setdefault(token, set()).add(number)
    return [
        Unknown(token, _name(token), count, tuple(sorted(places[token])), token in saved)
        for token, count in counts.most_common()
    ]


def _name(token: str) -> str:
    return " + ".join(unicodedata.name(c, f"U+{ord(c):04X}") for c in token[:4])


def edit_rows(name: str, edits: Sequence[Edit]) -> list[dict[str, Any]]:
    """Return the differences of two traces as table rows."""
    return [
        {
            "text": name,
            "at token": edit.at,
            "training": " ".join(f"{tables.visible(t.text)}={t.index}" for t in edit.a) or "(nothing)",
            "inference": " ".join(f"{tables.visible(t.text)}={t.index}" for t in edit.b) or "(nothing)",
        }
        for edit in edits
    ]


def show_trace(name: str, a: Sequence[Token], b: Sequence[Token]) -> tables.Html:
    """Return two traces as marked text: what differs is boxed, what the vocab lacks (index 0) is struck through."""
    edits = differences(a, b)
    in_a = {edit.at + k for edit in edits for k in range(len(edit.a))}
    starts, moved = {}, 0
    for edit in edits:
        starts[edit.at + moved] = len(edit.b)
        moved += len(edit.b) - len(edit.a)
    in_b = {start + k for start, count in starts.items() for k in range(count)}
    lines = []
    for side, tokens, marked in (("training", a, in_a), ("inference", b, in_b)):
        spans = "".join(_span(token, number in marked) for number, token in enumerate(tokens))
        lines.append(f"<div><small>{html.escape(name)}, {side}, {len(tokens)} tokens:</small> {spans}</div>")
    text = f"{name}: {len(edits)} stretches differ"
    return tables.Html(f'<div class="f5lab-trace" style="line-height:2">{"".join(lines)}</div>', text)


def _span(token: Token, marked: bool) -> str:
    style = "font-family:monospace;padding:0 1px;"
    style += "border:2px solid #c8552b;" if marked else ""
    style += "text-decoration:line-through;background:#f5d9cf;" if not token.known else ""
    shown = html.escape(tables.visible(token.text, 12))
    return f'<span style="{style}" title="index {token.index}">{shown}</span>'


def rows_sentence(rows: int, vocab: Vocab) -> str:
    """Say whether an embedding of `rows` rows fits a vocab."""
    if rows == vocab.size + 1 and vocab.largest_index < vocab.size:
        return f"fits: {rows} rows are {vocab.size} tokens and the filler"
    if rows == vocab.size + 1:
        return (
            f"loads, but indices up to {vocab.largest_index} run out of the {rows} rows: an IndexError when one occurs"
        )
    return f"does not load: {rows} rows want {rows - 1} tokens, the vocab has {vocab.size}"


def report(a: str | Path, b: str | Path | None = None) -> dict[str, Any]:
    """Return the facts of a vocab, or of two and how they differ; JSON-able; what ``f5lab vocab`` shows.

    Raises
    ------
    VocabError
        A file cannot be read as a vocab.
    """
    first = read_vocab(a)
    if b is None:
        return facts(first)
    second = read_vocab(b)
    found = compare(first, second)
    moved = [{"token": t, "a": i, "b": j} for t, (i, j) in found.moved.items()]
    comparison = asdict(found) | {"harmless": found.harmless, "moved_count": len(moved), "moved": moved[:SHOWN]}
    comparison |= {"only_a": list(found.only_a[:SHOWN]), "only_b": list(found.only_b[:SHOWN])}
    comparison["offsets"] = {str(k): n for k, n in list(found.offsets.items())[:5]}
    return {"verdict": found.verdict, "a": facts(first), "b": facts(second), "comparison": comparison}


def facts(vocab: Vocab) -> dict[str, Any]:
    """Return the facts of one vocab file as a JSON-able dict."""
    return {
        "path": str(vocab.path),
        "sha256": vocab.sha256,
        "bytes": vocab.bytes,
        "lines": vocab.lines,
        "tokens": vocab.size,
        "embedding_rows": vocab.size + 1,
        "largest_index": vocab.largest_index,
        "space_index": vocab.space_index,
        "endings": vocab.endings,
        "byte_order_mark": vocab.bom,
        "final_newline": vocab.final_newline,
        "problems": vocab.problems(),
    }
