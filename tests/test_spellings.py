"""Stand-ins: text spelled so that the stock converter leaves it alone and the model gets its raw ids."""

import csv
import random
from pathlib import Path
from types import SimpleNamespace

import pytest

from f5lab import bundles, models, paths, spellings
from f5lab.errors import BundleError
from f5lab.specs import load_case
from f5lab.spellings import Spelling
from f5lab.vocabs import Vocab, read_vocab

REF_TEXT = "A criança."


@pytest.fixture(scope="module")
def vocab() -> Vocab:
    return read_vocab(load_case(paths.default_case()).training_vocab)


@pytest.fixture(scope="module")
def spelling(vocab: Vocab) -> Spelling:
    return spellings.find_spelling(vocab, models.front_end("pinyin"))


@pytest.fixture(scope="module")
def texts() -> list[str]:
    with (paths.data_dir() / "speech" / "ptbr" / "metadata.csv").open(encoding="utf-8") as f:
        return [row["text"] for row in csv.DictReader(f, delimiter="|")]


def test_stand_ins_give_every_text_of_the_speech_its_raw_ids(
    vocab: Vocab, spelling: Spelling, texts: list[str]
) -> None:
    convert = models.front_end("pinyin")
    assert any(spellings.ids(vocab.char_map, convert(t)) != spellings.ids(vocab.char_map, t) for t in texts)
    assert [t for t in texts if not bundles.same_ids(vocab, spelling, REF_TEXT, t)] == []


@pytest.mark.parametrize(
    "text", ["kwy XYZ 123", "“eu”; família-guarda!", "sim… 中国 tu", "a\u0301 não", "ă ƀ", "3.5% a+b_c", "tu\nnão"]
)
def test_what_the_vocab_lacks_gets_index_0_as_in_raw_text(vocab: Vocab, spelling: Spelling, text: str) -> None:
    assert bundles.same_ids(vocab, spelling, REF_TEXT, text)


def test_dots_in_a_row_are_the_exception_that_the_readme_names(vocab: Vocab, spelling: Spelling) -> None:
    assert not bundles.same_ids(vocab, spelling, REF_TEXT, "Sim... tu.")
    assert bundles.same_ids(vocab, spelling, REF_TEXT, spellings.single_dots("Sim... tu."))


def test_stand_ins_work_for_the_vocab_of_the_release_and_chinese() -> None:
    convert = models.front_end("pinyin")
    stock = Path(models.upstream().utils_infer.__file__).parent / "examples" / "vocab.txt"
    vocab = read_vocab(stock)
    characters = [c for c in vocab.char_map if len(c) == 1 and c != "."] + list("中国猫")
    char_map = {c: i for i, c in enumerate(characters)}
    found = spellings.find_spelling(SimpleNamespace(char_map=char_map, lookup=char_map.get), convert)
    renamed = {found.letters[c]: i for c, i in char_map.items()}
    assert len(renamed) == len(char_map)
    rng = random.Random(0)
    for _ in range(300):
        text = "".join(rng.choices(characters, k=30))
        assert spellings.ids(renamed, convert(found.spell(text))) == spellings.ids(char_map, text)


def test_a_converter_that_eats_everything_is_refused(vocab: Vocab) -> None:
    with pytest.raises(BundleError, match="changes every stand-in"):
        spellings.find_spelling(vocab, lambda text: [" ", *text])


def test_plain_english_needs_no_stand_ins() -> None:
    letters = SimpleNamespace(char_map={c: i for i, c in enumerate(" .,abcdefghijklmnopqrstuvwxyz")})
    convert = models.front_end("pinyin")
    assert not spellings.needs_spelling(letters, ["the cat, a dog."], convert)
    assert spellings.needs_spelling(letters, ["the (wild) cat."], convert)
