"""Factors between recipes, switching them, and the bisect."""

from pathlib import Path

import pytest

from f5lab import paths, samplers
from f5lab.faults import factors
from f5lab.specs import Recipe, Vocoder, load_case


@pytest.fixture(scope="module")
def recipe() -> Recipe:
    return samplers.inference_recipe(load_case(paths.data_dir() / "cases" / "ptbr-repaired" / "case.yaml"))


def names(a: Recipe, b: Recipe) -> list[str]:
    return [factor.name for factor in factors.diff(a, b)]


def test_a_recipe_does_not_differ_from_itself(recipe: Recipe) -> None:
    assert names(recipe, recipe.but(name="other")) == []


def test_a_dropped_option_is_the_constructors_default_and_unseen_by_shapes(recipe: Recipe) -> None:
    bare = recipe.but(arch={k: v for k, v in recipe.arch.items() if k != "pe_attn_head"})
    (factor,) = factors.diff(recipe, bare)
    assert (factor.name, factor.a, factor.b, factor.stated) == ("arch.pe_attn_head", 1, None, (True, False))
    assert not factor.shown_by_shapes and factor.in_forward


def test_options_without_effect_are_no_factors(recipe: Recipe) -> None:
    inert = {**recipe.arch, "dropout": 0.3, "checkpoint_activations": True, "attn_mask_enabled": True}
    assert names(recipe, recipe.but(arch=inert)) == []


def test_a_vocab_with_other_bytes_and_the_same_map_is_no_factor(recipe: Recipe, tmp_path: Path) -> None:
    same = tmp_path / "crlf.txt"
    same.write_bytes(recipe.vocab.read_bytes().replace(b"\n", b"\r\n"))
    assert names(recipe, recipe.but(vocab=same)) == []
    lines = recipe.vocab.read_text(encoding="utf-8").splitlines()
    other = tmp_path / "other.txt"
    other.write_text("\n".join([lines[0], *reversed(lines[1:])]) + "\n", encoding="utf-8")
    assert names(recipe, recipe.but(vocab=other)) == ["vocab"]


def test_precision_is_compared_as_it_is_on_the_device(recipe: Recipe) -> None:
    assert names(recipe.but(precision="auto"), recipe.but(precision="fp32")) == []
    assert names(recipe, recipe.but(precision="bf16")) == ["precision"]


def test_switching_takes_exactly_the_named_factors(recipe: Recipe) -> None:
    broken = recipe.but(
        arch={k: v for k, v in recipe.arch.items() if k not in ("pe_attn_head", "text_mask_padding")},
        front_end="pinyin", vocoder=Vocoder(name="bigvgan"),
    )  # fmt: skip
    assert len(factors.diff(recipe, broken)) == 4
    partly = factors.switch(broken, recipe, ["arch.pe_attn_head", "front_end"])
    assert names(recipe, partly) == ["arch.text_mask_padding", "vocoder"]
    assert names(recipe, factors.switch(recipe, broken, ["arch.text_mask_padding"])) == ["arch.text_mask_padding"]


@pytest.mark.parametrize("needed", [set(), {0}, {6}, {1, 5}, {0, 3, 6}, set(range(7))])
def test_the_bisect_finds_the_smallest_set(needed: set[int]) -> None:
    asked: list[tuple[int, ...]] = []

    def holds(kept: list[int]) -> bool:
        asked.append(tuple(kept))
        return needed <= set(kept)

    found = factors.bisect(range(7), holds)
    assert set(found) == needed if needed else len(found) <= 1
    assert len(asked) == len(set(asked))


def test_the_bisect_refuses_what_does_not_hold_as_a_whole() -> None:
    with pytest.raises(ValueError, match="whole"):
        factors.bisect([1, 2], lambda kept: False)
