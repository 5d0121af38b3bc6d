"""Detectors for the way from text to token ids: vocab, unknown symbols, front end, capitals, and the text's length."""

import unicodedata
from collections import Counter
from collections.abc import Sequence
from typing import Any

import numpy as np

from f5lab import models, vocabs
from f5lab.audio import load_wave
from f5lab.errors import LabError, VocabError
from f5lab.faults import prompt_timing
from f5lab.faults.examinations import Exam, Suspicion, cause, refuted, span, unknown
from f5lab.models import SHORT_BYTES
from f5lab.probes import FEW_ITEMS, Hypothesis
from f5lab.specs import Prompt
from f5lab.training_sets import read_rows
from f5lab.vocabs import Vocab, VocabComparison

VOCAB_FAULTS = ("vocab-permuted", "vocab-off-by-one", "vocab-re-extended", "vocab-damage")
BYTES_NEED_NONE = "The byte front end takes no vocab: a byte is its own index."
LEAST_NEW_S = 0.1
"""A fixed length that leaves less than this for the new text leaves nothing."""
RATIO = (0.6, 1.7)
"""Duration by the byte rule over the real recording's; outside this the words no longer fit."""


def detect_vocab(exam: Exam) -> list[Suspicion]:
    """Compare the vocab that inference is given with the one that the embedding rows belong to."""
    truth = exam.truth
    if truth.recipe.front_end == "byte":
        return refuted(VOCAB_FAULTS, BYTES_NEED_NONE)
    try:
        given = vocabs.read_vocab(exam.inference.vocab)
        trained = vocabs.read_vocab(truth.recipe.vocab)
    except VocabError as error:
        return [cause("vocab-damage", f"The vocab cannot be read: {error}", 0.99, 1.0, factors=("vocab",))]
    rows = exam.shapes.vocab_size
    if given.size != rows:
        claim = f"The vocab has {given.size} symbols, the embedding {rows} rows: loading raises."
        return [
            cause(
                "vocab-damage", claim, 0.95, 1.0, value=given.size - rows, unit="symbols too many", factors=("vocab",)
            )
        ]
    found = vocabs.compare(trained, given)
    moved, total = _moved(exam, trained, given)
    if found.harmless or not moved:
        return _same_vocab(exam, found, given)
    name = _classify(found, trained, given)
    claim = f"{moved} of {total} tokens of the texts get another row than in training ({found.verdict}: {found.consequence})."
    more: dict[str, Any] = {"value": moved / total, "unit": "share of tokens", "n": total}
    more = {**exam.cost({"vocab": exam.inference.vocab}), "interval": None, **more}
    confidence = 0.98 if truth.known["vocab"] == "stated" else 0.92
    rest = refuted([f for f in (*VOCAB_FAULTS, "oov-to-zero") if f != name], f"The difference is {found.verdict}.")
    return [cause(name, claim, confidence, max(more.pop("severity", 0.0), min(1.0, 2 * moved / total)), factors=("vocab",),
                  settings={"vocab": str(truth.recipe.vocab)}, **more), *rest]  # fmt: skip


def _same_vocab(exam: Exam, found: VocabComparison, given: Vocab) -> list[Suspicion]:
    truth = exam.truth
    if given.largest_index >= exam.shapes.vocab_size and (lost := _overrun(exam, given)):
        claim = f"{''.join(lost)!r} get an index beyond the embedding: the first text with one raises."
        return [cause("vocab-damage", claim, 0.97, 0.8, factors=("vocab",))]
    failed = truth.gate is not None and not truth.identifiable
    if failed or (truth.known["vocab"] == "assumed" and not truth.identifiable):
        says = truth.problem or "Dropping the text does not raise the loss: with this vocab the text explains nothing."
        return unknown(VOCAB_FAULTS, says, "the vocab.txt of the training data, or base and base_vocab; and clear recordings")
    if found.verdict == "same-bytes":
        one = exam.case.training.vocab is None or exam.case.inference.vocab is None
        says = "One vocab file stands for training and inference." if one else "Training and inference use the same vocab, byte for byte."
    elif found.harmless:
        says = f"The two vocabs map every symbol alike ({found.verdict})."
    else:
        says = f"The vocabs differ ({found.verdict}), but in no symbol of these texts."
    if truth.known["vocab"] == "inferred" or truth.identifiable:
        says += " With it the text lowers the loss as it should." if truth.identifiable else ""
    return refuted(VOCAB_FAULTS, says, value=0.0, unit="tokens with another row")


def _overrun(exam: Exam, given: Vocab) -> list[str]:
    used = {t for text in exam.texts for t in map(str, models.front_end(exam.inference.front_end)(text))}
    return sorted(t for t in used if given.lookup(t) >= exam.shapes.vocab_size)


def _moved(exam: Exam, trained: Vocab, given: Vocab) -> tuple[int, int]:
    """Return how many tokens of the texts get another index, and how many there are."""
    split = models.front_end(exam.inference.front_end)
    tokens = [str(t) for text in exam.texts for t in split(text)]
    return sum(trained.lookup(t) != given.lookup(t) for t in tokens), len(tokens)


def _classify(found: VocabComparison, trained: Vocab, given: Vocab) -> str:
    if found.nfc_equal:
        return "oov-to-zero"
    if (
        given.duplicates
        and not trained.duplicates
        or (not given.final_newline and trained.final_newline and not found.moved)
    ):
        return "vocab-damage"
    if found.verdict == "permuted":
        return "vocab-permuted"
    offsets = {k: n for k, n in found.offsets.items() if k}
    if found.verdict == "shifted" or (offsets and set(offsets) <= {-1, 1} and sum(offsets.values()) > 2):
        return "vocab-off-by-one"
    if not found.moved:
        return "vocab-re-extended" if len(found.only_a) > 1 else "oov-to-zero"
    return "vocab-permuted" if len(found.moved) > 0.3 * trained.size else "vocab-damage"


def detect_unknown(exam: Exam) -> list[Suspicion]:
    """Count the symbols of the texts that the trained vocab lacks: they are spoken as index 0, a space."""
    if exam.truth.recipe.front_end == "byte":
        return refuted("oov-to-zero", BYTES_NEED_NONE)
    if exam.inference.front_end == "byte":
        says = "Inference hands over bytes where training did not: no index means what it meant, whatever the vocab holds."
        return unknown("oov-to-zero", says, "the front end of the training")
    trained = vocabs.read_vocab(exam.truth.recipe.vocab)
    lost = vocabs.unknown_tokens(exam.texts, trained, models.front_end(exam.inference.front_end))
    lost = [u for u in lost if any(unicodedata.category(c)[0] in "LMN" for c in u.character)]  # letters, marks, digits
    total = sum(len(text) for text in exam.texts)
    if not lost:
        return refuted(
            "oov-to-zero",
            "Every letter and digit of the texts is in the vocab.",
            value=0.0,
            unit="unknown tokens",
            n=total,
        )
    if all(u.character.isupper() and u.character.lower() in trained.char_map for u in lost):
        return refuted("oov-to-zero", "Only capitals are unknown, and the small letters are not.")
    count, nfc = sum(u.count for u in lost), all(u.nfc_saves for u in lost)
    shown = ", ".join(f"{u.character!r} ({u.count})" for u in lost[:4])
    claim = f"{count} of {total} symbols are not in the vocab and are spoken as a space: {shown}."
    settings = (
        {"texts": "composed, unicodedata.normalize('NFC', text)"} if nfc else {"texts": "with known symbols only"}
    )
    return [cause("oov-to-zero", claim, 0.95, min(1.0, 0.2 + 3 * count / total), value=count / total, unit="share of symbols",
                  n=total, settings=settings, factors=("texts",))]  # fmt: skip


def detect_front_end(exam: Exam) -> list[Suspicion]:
    """Compare how inference splits the case's texts with how training did."""
    truth, given = exam.truth, exam.inference.front_end
    trained = truth.recipe.front_end
    pairs = [(models.front_end(trained)(t), models.front_end(given)(t)) for t in exam.texts]
    changed = [t for t, (a, b) in zip(exam.texts, pairs) if [str(x) for x in a] != [str(x) for x in b]]
    if trained == given or not changed:
        how = truth.known["front_end"]
        known = trained == given and how != "assumed"
        same = f"as trained ({how})" if known else "and every front end splits these texts alike"
        if trained == given and truth.known["front_end"] == "assumed" and _splits_matter(exam):
            return unknown(
                "front-end-pinyin", "The trained front end is not known.", "training.front_end, or training.dataset"
            )
        if not known and "front_end" in exam.assumed:
            return unknown("front-end-pinyin", f"Inference uses the {given} front end, {same}.", "a text that fails, with letters such as é or 汉")
        return refuted(
            "front-end-pinyin", f"Inference uses the {given} front end, {same}.", value=0.0, unit="texts", n=len(pairs),
            limitation="" if known else "Of this case's texts; others may be split apart.",
        )  # fmt: skip
    claim = f"Inference splits {len(changed)} of {len(pairs)} texts by {given}, the weights learned {trained}{_examples(pairs)}."
    more: dict[str, Any] = {"value": len(changed) / len(pairs), "unit": "share of texts", "n": len(pairs)}
    more = {**exam.cost({"front_end": given}), "interval": None, **more}
    known = 0.98 if truth.known["front_end"] == "stated" else 0.93
    return [cause("front-end-pinyin", claim, known, max(0.15, more.pop("severity", 0.0)), factors=("front_end",),
                  settings={"front_end": trained}, **more)]  # fmt: skip


def _splits_matter(exam: Exam) -> bool:
    return any([str(t) for t in models.front_end("pinyin")(text)] != list(text) for text in exam.texts)


def _examples(pairs: Sequence[tuple[Sequence[Any], Sequence[Any]]]) -> str:
    """Return words that inference breaks, else words that only training broke, as the end of a sentence."""
    broken = Counter(word for trained, given in pairs for word in _split_words(trained, given))
    kept = Counter(word for trained, given in pairs for word in _split_words(given, trained))
    shown = ", ".join(f"“{word}”" for word, _ in (broken or kept).most_common(3))
    return f": {shown}" if broken else f", which has {shown}" if kept else ""


def _split_words(a: Sequence[Any], b: Sequence[Any]) -> list[str]:
    """Return the words that one front end breaks and the other does not."""
    whole = set("".join(map(str, a)).split())
    broken = "".join(map(str, b)).split()
    return [f"{x} {y}" for x, y in zip(broken, broken[1:]) if x + y in whole and x not in whole]


def detect_drift(exam: Exam) -> list[Suspicion]:
    """Compare the tokens stored in the dataset with what the front end makes of the same texts today."""
    if exam.case.training.dataset is None:
        return unknown("tokenizer-drift", "The dataset's stored tokens are not at hand.", "training.dataset: raw.arrow")
    stored = [row["text"] for row in read_rows(exam.case.training.dataset)]
    lists = [[str(t) for t in tokens] for tokens in stored if not isinstance(tokens, str)]
    if not lists:
        return refuted("tokenizer-drift", "The dataset stores plain strings, which nothing has tokenised.")
    split = models.front_end(exam.truth.recipe.front_end)
    texts = {_squeezed(t): t for p in exam.case.prompts for t in (p.ref_text, p.gen_text)}
    pairs = [
        (tokens, [str(t) for t in split(texts[key])])
        for tokens in lists
        if (key := _squeezed("".join(tokens))) in texts
    ]
    if not pairs:
        return unknown("tokenizer-drift", "No text of the case is in the dataset.", "prompts drawn from the dataset")
    changed = [pair for pair in pairs if pair[0] != pair[1]]
    if not changed:
        return refuted("tokenizer-drift", "Stored tokens and today's are equal.", value=0.0, unit="texts", n=len(pairs))
    then, now = ("".join(tokens) for tokens in changed[0])
    claim = f"{len(changed)} of {len(pairs)} texts were stored with other tokens than today's: “{then}”, now “{now}”."
    return [cause("tokenizer-drift", claim, 0.9, 0.4, value=len(changed) / len(pairs), unit="share of texts", n=len(pairs),
                  settings={"f5-tts": "the version that prepared the dataset, or the dataset prepared again"})]  # fmt: skip


def _squeezed(text: str) -> str:
    return "".join(unicodedata.normalize("NFC", text).split())


def detect_capitals(exam: Exam) -> list[Suspicion]:
    """See whether training ever saw capitals: by dataset, by vocab, and by the probe on small letters."""
    capitals = sum(c.isupper() for text in exam.texts for c in text)
    if not capitals:
        return refuted("case-folding", "The texts have no capitals.", value=0.0, unit="capitals")
    trained = vocabs.read_vocab(exam.truth.recipe.vocab)
    has_capitals = any(t.isupper() for t in trained.char_map)
    lost = vocabs.unknown_tokens(exam.texts, trained, models.front_end(exam.inference.front_end))
    lost = [u for u in lost if u.character.isupper() and u.character.lower() in trained.char_map]
    if lost and has_capitals and exam.truth.recipe.front_end != "byte":
        count, shown = sum(u.count for u in lost), ", ".join(u.character for u in lost[:6])
        claim = f"{count} of {capitals} capitals are not in the vocab ({shown}) and are spoken as a space; their small letters are in it."
        return [cause("case-folding", claim, 0.95, min(1.0, 0.2 + count / capitals), value=float(count), unit="capitals", n=capitals,
                      settings={"texts": "in small letters"}, factors=("texts",))]  # fmt: skip
    folded = _dataset_is_folded(exam)
    try:
        truth = exam.truth
        lower = exam.probe.compare(Hypothesis(truth.recipe), Hypothesis(truth.recipe, text=str.lower))
        better = lower.mean < -0.02 and lower.high < 0
    except LabError:
        lower, better = None, False
    if not (better or folded or not has_capitals):
        says = "The dataset has capitals." if folded is False else "Small letters explain the recordings no better."
        return refuted("case-folding", says, value=None if lower is None else lower.mean, unit="loss in small letters",
                       interval=None if lower is None else span(lower), n=None if lower is None else lower.n)  # fmt: skip
    if not folded and has_capitals and lower is not None and lower.n < FEW_ITEMS:
        says = f"Small letters lower the loss by {-100 * lower.mean:.0f} %, on {lower.n} recordings only."
        return unknown("case-folding", says, f"{FEW_ITEMS} recordings with their texts, or training.dataset")
    why = (
        "the dataset has none"
        if folded
        else "the vocab has none"
        if not has_capitals
        else "the loss falls without them"
    )
    saw = "training saw none" if folded or not has_capitals else "training seems to have seen none or few"
    claim = f"The texts have {capitals} capitals, and {saw}: {why}."
    return [cause("case-folding", claim, 0.95 if folded or not has_capitals else 0.85, 0.35, value=float(capitals),
                  unit="capitals", settings={"texts": "in small letters"}, factors=("texts",))]  # fmt: skip


def _dataset_is_folded(exam: Exam) -> bool | None:
    if exam.case.training.dataset is None:
        return None
    texts = ["".join(map(str, row["text"])) for row in read_rows(exam.case.training.dataset)]
    return not any(c.isupper() for text in texts for c in text) if texts else None


def detect_length(exam: Exam) -> list[Suspicion]:
    """Look for texts that upstream slows down, and for durations that do not fit the words."""
    prompts = exam.case.prompts
    fixed = exam.inference.fix_duration is not None  # upstream's short-text rule does not apply then
    spoken = {p.id: prompt_timing.pieces(p, exam.inference) for p in prompts}
    slow = {name: [piece for piece in found if len(piece.encode()) < SHORT_BYTES] for name, found in spoken.items() if not fixed}
    short = [p for p in prompts if slow.get(p.id)]
    found = refuted(
        "short-text-speed", f"Every text, and every piece that is spoken by itself, has {SHORT_BYTES} bytes or more.",
        value=0.0, unit="texts", n=len(prompts),
    )  # fmt: skip
    if short:
        first = slow[short[0].id][0]
        whole = first == short[0].gen_text.strip()
        what = f"are below {SHORT_BYTES} bytes and get" if whole else f"have a piece below {SHORT_BYTES} bytes that is spoken by itself and gets"
        claim = f"{len(short)} of {len(prompts)} texts {what} speed 0.3: {first!r}."
        share = sum(len("".join(slow[p.id]).encode()) / len(p.gen_text.encode()) for p in short) / len(prompts)
        found = [cause("short-text-speed", claim, 0.95, min(0.6, 0.6 * share), value=len(short) / len(prompts),
                       unit="share of texts", n=len(prompts), settings={"fix_duration": "reference + expected seconds"},
                       factors=("duration",))]  # fmt: skip
    if fixed:
        return found + _fixed_length(exam)
    ratios = _duration_ratios(exam, [p for p in prompts if p not in short])
    if not ratios:
        return found + unknown("duration-byte-ratio", "No real recording of a target.", "gen_audio for a prompt")
    middle, number = float(np.median(ratios)), {"unit": "duration ratio", "n": len(ratios)}
    if RATIO[0] <= middle <= RATIO[1]:
        claim = f"Texts get {middle:.2f} times the duration of their recordings (median)."
        return found + refuted("duration-byte-ratio", claim, value=middle, **number)
    claim = f"At speed 1 the byte rule gives the texts {middle:.2f} times the duration of their recordings (median)."
    told = _ratio_as_heard(exam, [p for p in prompts if p not in short])
    if told is not None and RATIO[0] <= told <= RATIO[1]:
        claim += (
            f" With what the references are heard to say it would be {told:.2f}: their texts are wrong, not the rule."
        )
        return found + refuted("duration-byte-ratio", claim, value=told, **number)
    return [*found, cause("duration-byte-ratio", claim, 0.9, min(1.0, abs(float(np.log2(max(middle, 1e-3)))) / 2), value=middle, **number,
                          settings={"fix_duration": "reference + expected seconds"}, factors=("duration",))]  # fmt: skip


def _fixed_length(exam: Exam) -> list[Suspicion]:
    """Look for a fixed length that the reference, which is part of it, takes up."""
    name, fixed = "duration-byte-ratio", exam.inference.fix_duration
    timed = [t for p in exam.case.prompts if (t := prompt_timing.timing(p, exam.inference)) is not None]
    if not timed:
        return unknown(name, "No reference could be timed: each is too quiet, too long or without a text.", "a reference that can")
    full = [t.prepared_s for t in timed if t.given_s < LEAST_NEW_S]
    if not full:
        return refuted(name, "The byte rule is not used: fix_duration is set, and longer than the references.")
    claim = (f"fix_duration is the length of reference and new text together: {fixed:g} s leave nothing for the text after a reference of "
             f"{full[0]:.2g} s ({len(full)} of {len(timed)} prompts).")  # fmt: skip
    return [cause(name, claim, 0.95, len(full) / len(timed), value=len(full) / len(timed), unit="share of prompts", n=len(timed),
                  settings={"fix_duration": "reference + expected seconds"}, factors=("duration",))]  # fmt: skip


def _duration_ratios(exam: Exam, prompts: Sequence[Prompt]) -> list[float]:
    """Return the duration that the byte rule gives at speed 1 over the real recording's, where there is one."""
    rule = exam.inference.but(speed=1.0)  # another speed is the user's own choice, not the rule's doing
    timed = [prompt_timing.timing(p, rule) for p in prompts]
    return [t.given_s / t.recorded_s for t in timed if t is not None and t.recorded_s]


def _ratio_as_heard(exam: Exam, prompts: Sequence[Prompt]) -> float | None:
    """Return the median ratio if each reference's text were what is heard in it; None where nothing can be heard."""
    try:
        heard = [exam.hear(load_wave(p.ref_audio)) for p in prompts]
    except LabError:
        return None
    ratios = _duration_ratios(
        exam, [p.model_copy(update={"ref_text": text}) for p, text in zip(prompts, heard) if text]
    )
    return float(np.median(ratios)) if ratios else None
