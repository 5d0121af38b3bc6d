"""A training's dataset as upstream prepares it: ``raw.arrow``, ``metadata.csv`` and the recordings."""

import csv
from collections.abc import Mapping, Sequence
from pathlib import Path, PureWindowsPath
from typing import Any

import soundfile as sf

from f5lab.errors import CaseError
from f5lab.models import front_end
from f5lab.paths import existing_file
from f5lab.specs import FrontEnd

_ROWS_READ, _ROWS_TELL = 200, 5
"""Rows of a dataset that are looked at, and how many with accents, all as the converter leaves them, are no accident."""


def read_rows(arrow: Path) -> list[dict[str, Any]]:
    """Return the rows of a dataset's ``raw.arrow``: ``audio_path``, ``text`` (a string or a list of tokens), ``duration``.

    Raises
    ------
    CaseError
        The file is missing or no Arrow file, or lacks one of the columns.
    """
    import pyarrow as pa

    with existing_file(arrow, CaseError, "dataset").open("rb") as f:
        try:
            table = pa.ipc.open_stream(f).read_all()
        except (pa.ArrowException, OSError):
            f.seek(0)
            try:
                table = pa.ipc.open_file(f).read_all()
            except (pa.ArrowException, OSError) as error:
                raise CaseError(f"{arrow} is not an Arrow file", expected="what prepare_csv_wavs writes") from error
    if gone := {"audio_path", "text"} - set(table.column_names):
        raise CaseError(f"{arrow} has no column {', '.join(sorted(gone))}", expected="what prepare_csv_wavs writes")
    try:
        rows = table.to_pylist()
    except (pa.ArrowException, ValueError) as error:  # text that is no UTF-8
        raise CaseError(f"{arrow} cannot be read ({error})", expected="what prepare_csv_wavs writes") from error
    kept = [row for row in rows if isinstance(row["audio_path"], str) and isinstance(row["text"], (str, list))]
    return [row | {"duration": _number(row.get("duration"))} for row in kept]


def stored_front_end(rows: Sequence[Mapping[str, Any]], written: Mapping[Path, str] | None = None) -> FrontEnd | None:
    """Return the front end that a dataset's stored texts show, whatever its folder is called; None where they come out alike by both.

    finetune-gradio sends the texts of every project through the pinyin converter, which puts spaces into words with accents.

    Parameters
    ----------
    written : mapping of Path to str, optional
        Recording to text as somebody wrote it (`read_metadata`).
    """
    if rows and all(isinstance(row["text"], str) for row in rows):
        return "raw"
    by_name = {path.name: text for path, text in (written or {}).items()}
    convert, accents = front_end("pinyin"), 0
    for row in [row for row in rows if not isinstance(row["text"], str)][:_ROWS_READ]:
        tokens = [str(token) for token in row["text"]]
        if any(len(token) > 1 for token in tokens):
            return "pinyin"
        joined, text = "".join(tokens), by_name.get(PureWindowsPath(row["audio_path"]).name)
        spelled = [*map(str, convert(text))] if text is not None else None
        if text is not None and list(text) != spelled and tokens in (list(text), spelled):
            return "raw" if tokens == list(text) else "pinyin"
        if [*map(str, convert(joined))] != tokens:
            return "raw"  # the converter leaves alone what it made
        accents += not joined.isascii()
    return "pinyin" if accents >= _ROWS_TELL else None


def read_metadata(folder: Path) -> dict[Path, str]:
    """Return recording to text by a dataset's ``metadata.csv`` (``audio_file|text``, beside it or in ``wavs/``); empty without one."""
    path = folder / "metadata.csv"
    if not path.is_file():
        return {}
    found: dict[Path, str] = {}
    with path.open(encoding="utf-8-sig", errors="replace", newline="") as f:
        for row in csv.reader(f, delimiter="|", quoting=csv.QUOTE_NONE):
            name = row[0].strip() if row else ""
            if len(row) < 2 or not name or "\0" in name or not row[1].strip():
                continue
            places = (folder / name, folder / "wavs" / name, folder / "wavs" / f"{name}.wav")
            where = next((place for place in places if place.is_file()), None)
            if where is not None:
                found[where] = row[1].strip()
    return found


def at_hand(rows: list[dict[str, Any]], data: Path) -> list[dict[str, Any]]:
    """Return rows with the recordings that lie in the dataset's folder, where a row's path is relative or of another computer."""

    def place(name: str) -> str:
        if Path(name).is_absolute() and is_file(name):
            return name
        last = PureWindowsPath(name).name
        own = [data / name, *(folder / name for folder in data.parents[:3]), data / "wavs" / last, data / last]
        return next((str(p) for p in own if last and is_file(str(p))), name)

    return [row | {"audio_path": place(row["audio_path"])} for row in rows]


def row_of(path: Path, text: str) -> dict[str, Any]:
    """Return a recording and its text as a row of `read_rows`; one that cannot be read lasts 0 s."""
    try:
        seconds = sf.info(path).duration
    except (sf.LibsndfileError, RuntimeError, OSError):
        seconds = 0.0
    return {"audio_path": str(path), "text": text, "duration": seconds}


def is_file(name: str) -> bool:
    """Return whether a name is a file's, be it too long to be one or hold a NUL."""
    try:
        return Path(name).is_file()
    except (OSError, ValueError):  # a name too long, a NUL
        return False


def _number(value: Any) -> float:
    try:
        return float(value)
    except (TypeError, ValueError):
        return 0.0
