"""A batch of clips is what the same clips are when spoken one by one."""

import numpy as np
import pytest

from f5lab import batches, paths, samplers
from f5lab.errors import CaseError, ModelError
from f5lab.samplers import Studio
from f5lab.specs import Case, Recipe, load_case

TOLERANCE = 1e-3
"""Of a log-mel in nats: a batch adds in another order (1e-5 measured); another seed is off by more than 1."""


@pytest.fixture(scope="module")
def case() -> Case:
    return load_case(paths.data_dir() / "cases" / "ptbr-repaired" / "case.yaml")


@pytest.fixture(scope="module")
def recipe(case: Case) -> Recipe:
    return samplers.inference_recipe(case).but(nfe_step=2)


@pytest.fixture(scope="module")
def studio() -> Studio:
    return Studio("cpu")


def test_seeds_and_texts_of_one_length_in_a_batch_are_what_each_is_alone(
    case: Case, recipe: Recipe, studio: Studio
) -> None:
    shapes = {p.id: batches.capture(studio, recipe, p).shape for p in case.prompts}
    first = case.prompts[0]
    twin = next(p for p in case.prompts[1:] if shapes[p.id] == shapes[first.id])
    pairs = [(first, 0), (twin, 0), (first, 3)]
    together = batches.speak_pairs(studio, recipe, pairs)
    alone = [studio.speak(recipe, *pair) for pair in pairs]
    for a, b in zip(together, alone):
        assert (a.prompt_id, a.seed, a.text, a.recipe) == (b.prompt_id, b.seed, b.text, b.recipe)
        assert a.mel.shape == b.mel.shape and np.abs(a.mel - b.mel).max() < TOLERANCE
        assert len(a.wave.samples) == len(b.wave.samples) and a.wave.rate_hz == b.wave.rate_hz
    assert np.abs(together[0].mel - together[2].mel).max() > 100 * TOLERANCE


def test_the_model_is_asked_once_for_a_batch(
    case: Case, recipe: Recipe, studio: Studio, monkeypatch: pytest.MonkeyPatch
) -> None:
    model, sizes = studio.model(recipe), []
    stock = model.sample
    monkeypatch.setattr(model, "sample", lambda **given: sizes.append(len(given["cond"])) or stock(**given))
    batches.speak_pairs(studio, recipe, [(case.prompts[0], seed) for seed in range(3)])
    assert sizes == [3]


def test_a_text_in_chunks_is_spoken_by_upstream_alone(case: Case, recipe: Recipe, studio: Studio) -> None:
    long = case.prompts[0].model_copy(update={"gen_text": "Comprou um livro. " * 20})
    assert batches.capture(studio, recipe, long) is None


def test_the_trainers_path_is_left_as_it_is(case: Case, recipe: Recipe, studio: Studio) -> None:
    trainer = samplers.trainer_recipe(case).but(nfe_step=2)
    (made,) = batches.speak_pairs(studio, trainer, [(case.prompts[0], 1)])
    assert np.array_equal(made.mel, studio.speak(trainer, case.prompts[0], 1).mel)


def test_a_prompt_without_its_text_is_refused(case: Case, recipe: Recipe, studio: Studio) -> None:
    quiet = case.prompts[0].model_copy(update={"ref_text": " "})
    with pytest.raises(CaseError, match="ref_text"):
        batches.speak_pairs(studio, recipe, [(quiet, 0), (quiet, 1)])


def test_every_seed_is_used_in_its_turn() -> None:
    seeds = batches._Seeds([7, 8])
    assert [int(seeds), int(seeds)] == [7, 8]


def test_bfloat16_whose_times_coincide_is_named(case: Case, recipe: Recipe, studio: Studio) -> None:
    """Upstream ends in torchdiffeq's bare assertion, alone and in a batch."""
    rounded = recipe.but(precision="bf16", nfe_step=32)
    for pairs in ([(case.prompts[0], 0)], [(case.prompts[0], seed) for seed in range(2)]):
        with pytest.raises(ModelError, match="32 steps in bf16.*equal values.*fp32"):
            batches.speak_pairs(studio, rounded, pairs)


def test_a_batch_of_one_is_the_clip_alone(
    case: Case, recipe: Recipe, studio: Studio, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As GPUs speak single clips: sampled in this thread, bit by bit what upstream samples in its own."""
    alone = studio.speak(recipe, case.prompts[1], 5)
    monkeypatch.setitem(batches.LEAST, "cpu", 1)
    monkeypatch.setattr(Studio, "speak", None)
    (made,) = batches.speak_pairs(studio, recipe, [(case.prompts[1], 5)])
    assert np.array_equal(made.mel, alone.mel) and np.array_equal(made.wave.samples, alone.wave.samples)
