"""Spelling text so that upstream's ``convert_char_to_pinyin`` leaves it alone.

The stock command line always converts. On text without Chinese the converter only *adds*: a space before each run of
two or more ASCII letters that does not follow a space, so "família" becomes "famí lia". A model trained on raw characters
never saw that. The converter passes lone characters of two UTF-8 bytes through as they are. So each character that it
would touch gets a stand-in of two bytes; the vocab's line for "a" holds a's stand-in, and the text is spelled with
stand-ins before the command line sees it: same ids, stock code.
"""

import itertools
import re
import unicodedata
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from f5lab.errors import BundleError
from f5lab.vocabs import Vocab

Convert = Callable[[str], list[Any]]

KEPT = " .,!?:"
"""Characters that ``preprocess_ref_audio_text`` and ``chunk_text`` look for: they stand for themselves."""

SHORT_TEXT_BYTES, SHORT_TEXT_SPEED = 10, 0.3
"""Upstream's rule for short texts (``infer_batch_process``, 1.1.22)."""

_NEUTRAL = "\u0101"  # two bytes, passed through by the converter
_POOLS = (range(0x100, 0x250), range(0x370, 0x800), range(0x10000, 0x20000))


@dataclass(frozen=True)
class Spelling:
    """Stand-ins for the characters of a vocab.

    Attributes
    ----------
    letters : dict of str to str
        Every single character of the vocab and of `KEPT`, and what is written for it.
    unknown : str
        Written for everything else: a character that no line of the vocab holds, so that it gets index 0, as every
        unknown character does in ``list_str_to_idx``.
    """

    letters: dict[str, str]
    unknown: str

    def spell(self, text: str) -> str:
        """Return `text` in stand-ins, character by character."""
        return "".join(self.letters.get(c, self.unknown) for c in text)

    @property
    def changed(self) -> dict[str, str]:
        """Stand-ins that differ from what they stand for."""
        return {c: s for c, s in self.letters.items() if c != s}

    def vocab_text(self, tokens: Iterable[str]) -> str:
        """Return a vocab file with the stand-ins in the places of what they stand for; other tokens are kept."""
        return "".join(f"{self.letters.get(token, token)}\n" for token in tokens)


def find_spelling(vocab: Vocab, convert: Convert) -> Spelling:
    """Choose stand-ins for a vocab.

    Parameters
    ----------
    vocab : Vocab
        The training vocab.
    convert : callable
        Upstream's converter: text to tokens (``models.front_end("pinyin")``).

    Raises
    ------
    BundleError
        The converter changes characters for which there is no stand-in.
    """
    known = sorted((t for t in vocab.char_map if len(t) == 1), key=vocab.lookup)
    touched = [c for c in known if c not in KEPT and not survives(c, convert)]
    chosen = _choose(touched, set(known))
    letters = {c: chosen.get(c, c) for c in known} | {c: c for c in KEPT}
    spelling = Spelling(letters, _free({*known, *chosen.values()}))
    broken = [repr(c) for c in letters if c not in KEPT and not survives(letters[c], convert)]
    if broken:
        raise BundleError(
            "upstream's converter changes every stand-in tried for some characters of the vocab", offenders=broken,
            next_step="set inference.front_end: pinyin, or speak through f5lab",
        )  # fmt: skip
    return spelling


def survives(character: str, convert: Convert) -> bool:
    """Tell whether the converter passes a character through wherever it stands among characters that survive."""
    c, n = character, _NEUTRAL
    return all(convert(text) == list(text) for text in (f"{n}{c}{n}", f"{n}{c}{c}{n}", f"{n}{c}.{c}{n} {c}{c} {c}"))


def _choose(characters: Sequence[str], taken: set[str]) -> dict[str, str]:
    """Return a stand-in for each character: for a Latin letter one that looks like it, so that logs can be read."""
    chosen: dict[str, str] = {}
    used = {*taken, _NEUTRAL}
    for character in characters:
        alike = _alike(character, used)
        if alike:
            chosen[character] = alike
            used.add(alike)
    for character in characters:
        if character not in chosen:
            chosen[character] = _free(used)
            used.add(chosen[character])
    return chosen


def _alike(character: str, used: set[str]) -> str | None:
    name = unicodedata.name(character, "")
    if not character.isascii() or not name.startswith("LATIN "):
        return None
    return next(
        (c for c in _pool(_POOLS[0]) if c not in used and unicodedata.name(c).startswith(f"{name} WITH ")), None
    )


def _free(used: set[str]) -> str:
    free = next((c for c in itertools.chain(*map(_pool, _POOLS[1:])) if c not in used), None)
    if free is None:
        raise BundleError("the vocab leaves no letters free for stand-ins", next_step="speak through f5lab")
    return free


def _pool(codes: range) -> Iterable[str]:
    """Yield letters that are written from left to right and have no other form under NFC."""
    for code in codes:
        c = chr(code)
        if c.isalpha() and unicodedata.bidirectional(c) == "L" and unicodedata.normalize("NFC", c) == c:
            yield c


def ended(ref_text: str) -> str:
    """Return a reference text as upstream ends it: ``preprocess_ref_audio_text``, then ``infer_batch_process`` (1.1.22).

    Examples
    --------
    >>> ended("A doutora."), ended("A doutora")
    ('A doutora.  ', 'A doutora.  ')
    """
    if not ref_text.endswith((". ", "。")):
        ref_text += " " if ref_text.endswith(".") else ". "
    return ref_text + " " if ref_text[-1].isascii() else ref_text


def single_dots(text: str) -> str:
    """Return `text` with one dot for each run of dots.

    Upstream's converter sets a space before a run of them, and the dot has to stand for itself (`KEPT`).
    """
    return re.sub(r"\.{2,}", ".", text)


def needs_spelling(vocab: Vocab, texts: Iterable[str], convert: Convert) -> bool:
    """Tell whether the converter changes the ids of `texts`, or of words with the letters that the vocab holds."""
    words = (f"aa{c}aa" for c in vocab.char_map if len(c) == 1 and c.isalpha())
    return any(
        ids(vocab.char_map, convert(text)) != ids(vocab.char_map, text) for text in itertools.chain(texts, words)
    )


def ids(char_map: dict[str, int], tokens: Iterable[Any]) -> list[int]:
    """Return what ``list_str_to_idx`` returns for one text."""
    return [char_map.get(token, 0) for token in tokens]
