"""Plants in vocab files, texts and what the dataset says about its texts."""

import random
import unicodedata
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import soundfile as sf
import torch

from f5lab import models, vocabs
from f5lab.paths import atomic_path, write_text
from f5lab.planted.planting import Bench
from f5lab.weights.architectures import TEXT_EMBEDDING

STRANGERS = "ñöüäåøþðßłşğ"
"""Letters that a vocab is extended with by mistake; those that it has are left out."""

TAIL_LINES = (4, 6, 3)


def _symbols(path: Path) -> list[str]:
    """Return the lines of a vocab file without their ends (universal newlines, as upstream reads it)."""
    with path.open(encoding="utf-8") as f:
        return [line.removesuffix("\n") for line in f]


def _write_vocab(bench: Bench, symbols: Sequence[str], final_newline: bool = True) -> Path:
    path = bench.file("vocab.txt")
    write_text(path, "\n".join(symbols) + "\n" * final_newline)
    return path


def _give(bench: Bench, symbols: Sequence[str], final_newline: bool = True) -> None:
    """Hand inference another vocab; the training keeps the true one."""
    bench.training(vocab=bench.case.training_vocab)
    bench.inference(vocab=_write_vocab(bench, symbols, final_newline))


def _given(bench: Bench) -> list[str]:
    vocabs.read_vocab(bench.case.inference_vocab)
    return _symbols(bench.case.inference_vocab)


def used_characters(bench: Bench) -> set[str]:
    """Return the characters of the case's prompts."""
    return {c for prompt in bench.case.prompts for c in prompt.ref_text + prompt.gen_text}


def vocab_permuted(bench: Bench) -> None:
    """The space stays first and all else moves: shuffled, shuffled with the training's vocab unknown, or reversed."""
    symbols = _given(bench)
    rest = symbols[1:]
    if bench.variant == 2:
        rest = rest[::-1]
    else:
        random.Random(bench.variant).shuffle(rest)
    if rest == symbols[1:]:
        raise bench.refuse("its vocab is too short to be reordered")
    if bench.variant != 1:
        _give(bench, symbols[:1] + rest)
        return
    rows = bench.base_weights()[TEXT_EMBEDDING]
    true = bench.case.base_vocab or bench.case.training_vocab
    if len(rows) != vocabs.read_vocab(true).size + 1:
        raise bench.refuse("the base has another number of symbols than the training's vocab", "give base_vocab")
    bench.change(vocab=_write_vocab(bench, symbols[:1] + rest), base_vocab=true)
    bench.forget_training("vocab", "dataset")
    bench.forget_inference("vocab")


def vocab_off_by_one(bench: Bench) -> None:
    """The space line goes and a letter is appended, or a blank line comes near the start and the last line goes."""
    symbols = _given(bench)
    if symbols[:1] != [" "] or len(symbols) < 5:
        raise bench.refuse("its vocab does not start with a space")
    new = next(c for c in STRANGERS if c not in symbols)
    shifted = ([*symbols[1:], new], [" ", "", *symbols[1:-1]], [*symbols[:3], "", *symbols[3:-1]])[bench.variant]
    _give(bench, shifted)


def vocab_re_extended(bench: Bench) -> None:
    """The last lines hold other letters; at least one that the prompts use is among those lost."""
    symbols, lines = _given(bench), TAIL_LINES[bench.variant]
    lost = set(symbols[-lines:]) & used_characters(bench)
    if len(symbols) <= lines or not lost:
        raise bench.refuse(f"no prompt uses the last {lines} symbols of its vocab")
    new = [c for c in STRANGERS if c not in symbols][:lines]
    _give(bench, symbols[:-lines] + new)


def vocab_damage(bench: Bench) -> None:
    """A used letter repeated at the end, the last letter cut and spoken, or a used letter in place of another."""
    symbols = _given(bench)
    used = next((s for s in reversed(symbols) if s.isalpha() and s in used_characters(bench)), None)
    if used is None or used == symbols[1]:
        raise bench.refuse("no prompt uses a letter of its vocab")
    if bench.variant == 0:
        _give(bench, [*symbols, used])
    elif bench.variant == 2:
        _give(bench, [symbols[0], used, *symbols[2:]])
    else:
        last = symbols[-1]
        if last not in used_characters(bench):
            said = next(((path, text) for path, text in bench.recordings() if last in text), None)
            if said is None:
                raise bench.refuse(f"no text uses {last!r}, the last symbol of its vocab")
            bench.add_prompt(*said)
        _give(bench, symbols, final_newline=False)


def oov_to_zero(bench: Bench) -> None:
    """Decomposed accents (NFD): in all texts of the prompts, in ``gen_text`` only, or in the vocab file."""
    if not any(unicodedata.normalize("NFD", c) != c for c in used_characters(bench)):
        raise bench.refuse("its prompts have no accented letter")
    if bench.variant == 2:
        symbols = _given(bench)
        _give(bench, [unicodedata.normalize("NFD", s) for s in symbols])
        return
    fields = ("gen_text", "ref_text") if bench.variant == 0 else ("gen_text",)
    bench.change(
        prompts=tuple(
            p.model_copy(update={name: unicodedata.normalize("NFD", getattr(p, name)) for name in fields})
            for p in bench.case.prompts
        )
    )


def front_end_pinyin(bench: Bench) -> None:
    """Inference converts; the training says raw, says nothing, or shows its raw texts in the dataset."""
    if bench.case.training.front_end not in (None, "raw"):
        raise bench.refuse(f"it was trained with the {bench.case.training.front_end} front end")
    if bench.case.inference.front_end != "raw":
        raise bench.refuse(f"inference uses the {bench.case.inference.front_end} front end already")
    bench.inference(front_end="pinyin")
    if bench.variant == 0:
        bench.training(front_end="raw")
        return
    bench.forget_training("front_end")
    if bench.variant == 2:
        bench.training(dataset=write_arrow(bench, [(path, text) for path, text in bench.recordings()]))


def write_arrow(bench: Bench, items: Sequence[tuple[Path, Any]]) -> Path:
    """Write ``raw.arrow`` as upstream's ``prepare_csv_wavs`` does: path, text (string or token list), seconds."""
    import pyarrow as pa

    rows = [{"audio_path": str(path), "text": text, "duration": sf.info(path).duration} for path, text in items]
    table, target = pa.Table.from_pylist(rows), bench.file("raw.arrow")
    with atomic_path(target) as temporary, pa.ipc.new_stream(str(temporary), table.schema) as stream:
        stream.write_table(table)
    return target


def old_style(tokens: Sequence[str]) -> list[str]:
    """Return tokens as converters before December 2024 left them: a space after a hyphen inside a word, and before each
    three-byte letter that is no Han."""
    made: list[str] = []
    for before, token in zip(["", *tokens], tokens):
        wide = len(token) == 1 and len(token.encode()) == 3 and not "\u3100" <= token <= "\u9fff"
        if made and made[-1] != " " and (wide or (before == "-" and token.isalpha())):
            made.append(" ")
        made.append(token)
    return made


def tokenizer_drift(bench: Bench) -> None:
    """A dataset of token lists from an old converter, and prompts with hyphens. Other texts are those that both front
    ends read alike, so that nothing else is wrong. Variants: all clips, every second, only those with a hyphen."""
    convert = models.front_end("pinyin")
    tokens = {text: convert(text) for _, text in bench.recordings()}
    same = {text for text, made in tokens.items() if made == list(text)}
    items = [(path, text) for path, text in bench.recordings() if text in same]
    hyphens = [(path, text) for path, text in items if old_style(tokens[text]) != tokens[text]]
    kept = [p for p in bench.case.prompts if p.ref_text in same and p.gen_text in same]
    if not hyphens or not kept:
        raise bench.refuse("it has no recordings whose text an old converter splits otherwise")
    plain = [item for item in items if item not in hyphens]
    chosen = hyphens + (plain, plain[::2], [])[bench.variant]
    bench.change(prompts=tuple(kept))
    for path, text in hyphens:
        if text not in {p.gen_text for p in kept}:
            bench.add_prompt(path, text, like=kept[0])
    bench.training(front_end="pinyin", dataset=write_arrow(bench, [(p, old_style(tokens[t])) for p, t in chosen]))
    bench.inference(front_end="pinyin")


def case_folding(bench: Bench) -> None:
    """A lower-cased dataset, and capitals' rows as the constructor draws them, alike in R, E and P: never trained.
    Variants: seeds; the third has token lists."""
    stored, symbols = bench.checkpoint(), _symbols(bench.case.training_vocab)
    capitals = [i for i, s in enumerate(symbols) if len(s) == 1 and s.lower() != s]
    if not {symbols[i] for i in capitals} & used_characters(bench):
        raise bench.refuse("its prompts use no capital letter of the vocab")
    states = list(stored.slots)
    if bench.case.base is not None:
        base = dict(bench.base_weights())
        states.append(base)
        bench.write_base(base)
    width = states[0][TEXT_EMBEDDING].shape[1]
    fresh = torch.randn((len(capitals), width), generator=bench.generator()).half()  # halves: alike in any storage
    for state in states:
        rows = state[TEXT_EMBEDDING].clone()
        rows[[i + 1 for i in capitals]] = fresh.to(rows.dtype)  # row 0 is the filler
        state[TEXT_EMBEDDING] = rows
    as_tokens = list if bench.variant == 2 else str
    bench.training(dataset=write_arrow(bench, [(p, as_tokens(t.lower())) for p, t in bench.recordings()]))
