"""Text out of files, made harmless for whoever shows it: a page, a terminal, Markdown to paste, JSON.

Tensor names, vocab lines, transcripts, paths and messages are written by others. They may hold characters that no
reader sees, that turn the line around, or that a terminal obeys.
"""

import json
import re
import unicodedata
from collections.abc import Callable
from functools import lru_cache
from typing import Any

CLIP_CHARACTERS = 160
SENTENCE_CHARACTERS = 2000
"""Longest sentence that a finding, an error or a page shows whole."""

_SHOWN = {"\n": "↵", "\t": "⇥", "\r": "␍", "\0": "␀", "\x1b": "␛", "\ufeff": "⟨BOM⟩", "\xa0": "⟨NBSP⟩"}
_HIDDEN = {"Cc", "Cf", "Cs", "Co", "Cn", "Zl", "Zp"}
_UNUSUAL = re.compile(r"[^ -~]")
_BREAKS = re.compile(r"\s*[\r\n\u2028\u2029]\s*")
_MARKDOWN = re.compile(r"[\\`*\[\]<>|~$!]|(?<![A-Za-z0-9])_|_(?![A-Za-z0-9])|&(?=#?\w+;)|^(?=[#+=-]|\d+[.)])")


def visible(text: str, clip: int | None = CLIP_CHARACTERS) -> str:
    """Return `text` with characters that a reader can not see written out, and no longer than `clip` characters.

    Parameters
    ----------
    text : str
    clip : int, optional
        Characters of `text` kept; the number left out is stated. ``None``: all.

    Examples
    --------
    >>> visible("a\\u202eb"), visible("tab\\t"), visible("abcdef", clip=3), visible(" ")
    ('a⟨U+202E⟩b', 'tab⇥', 'abc… (+3)', '␣')
    """
    rest = max(0, len(text) - clip) if clip is not None else 0
    kept = text[: len(text) - rest]
    if kept and not kept.strip(" "):
        return "␣" * len(kept)
    shown = _UNUSUAL.sub(lambda found: _written(found[0]), kept)
    return shown + (f"… (+{rest})" if rest else "")


def prose(text: str, clip: int | None = SENTENCE_CHARACTERS) -> str:
    """Return `text` as one line to read: line breaks become spaces, what can not be seen or turns text is written out.

    Examples
    --------
    >>> prose("two\\nlines"), prose("a\\u202eb"), prose("\\x1b[31mred")
    ('two lines', 'a⟨U+202E⟩b', '␛[31mred')
    """
    line = _BREAKS.sub(" ", text)
    rest = max(0, len(line) - clip) if clip is not None else 0
    return spell_hidden(line[: len(line) - rest]) + (f"… (+{rest})" if rest else "")


def spell_hidden(text: str, keep: str = "") -> str:
    """Return `text` with control, format, private and unpaired characters written out, but for those in `keep`."""
    return _UNUSUAL.sub(
        lambda found: found[0] if found[0] in keep or not _is_hidden(found[0]) else _written(found[0]), text
    )


@lru_cache(maxsize=4096)
def _written(character: str) -> str:
    if character in _SHOWN:
        return _SHOWN[character]
    unseen = _is_hidden(character) or unicodedata.category(character) == "Zs"
    return f"⟨U+{ord(character):04X}⟩" if unseen else character


@lru_cache(maxsize=4096)
def _is_hidden(character: str) -> bool:
    return unicodedata.category(character) in _HIDDEN


def markdown_text(text: str, clip: int | None = SENTENCE_CHARACTERS) -> str:
    r"""Return `text` as Markdown that shows just that text: no link, image, HTML, code or emphasis comes of it.

    Examples
    --------
    >>> markdown_text("![x](https://example.org/a.png) <b> text_mask_padding")
    '\\!\\[x\\](https://example.org/a.png) \\<b\\> text_mask_padding'
    """
    return _MARKDOWN.sub(lambda found: "\\" + found[0], prose(text, clip))


def markdown_code(text: str, clip: int | None = SENTENCE_CHARACTERS) -> str:
    """Return `text` as a code span that it can not close.

    Examples
    --------
    >>> markdown_code("a: 1"), markdown_code("`")
    ('`a: 1`', '`` ` ``')
    """
    shown = prose(text, clip)
    longest = max((len(run) for run in re.findall("`+", shown)), default=0)
    fence = "`" * (longest + 1)
    space = " " if longest or not shown.strip() else ""
    return f"{fence}{space}{shown}{space}{fence}"


def json_text(value: Any, *, indent: int | None = 2, default: Callable[[Any], Any] | None = None) -> str:
    """Return JSON with accents as they are and every character that is hidden or unpaired as an escape.

    It reads back as the same value, can be written as UTF-8 whatever the strings hold, and does nothing to a terminal.

    Raises
    ------
    ValueError
        A number is not finite.
    """
    return escape_json(json.dumps(value, indent=indent, ensure_ascii=False, allow_nan=False, default=default))


def escape_json(text: str) -> str:
    """Return JSON that says the same with every hidden or unpaired character as an escape."""
    return _UNUSUAL.sub(lambda found: _escaped(found[0]), text)


def _escaped(character: str) -> str:
    if character == "\n" or not _is_hidden(character):
        return character
    return json.dumps(character)[1:-1] if ord(character) > 0x7F else f"\\u{ord(character):04x}"
