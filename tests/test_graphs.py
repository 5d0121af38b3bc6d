"""Replayed forward passes change nothing but time; memory that does not suffice splits a batch."""

from typing import Any

import numpy as np
import pytest
import torch

from f5lab import batches, graphs, paths, samplers
from f5lab.errors import ModelError
from f5lab.samplers import Studio
from f5lab.specs import Case, Recipe, load_case

needs_cuda = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")


@pytest.fixture(scope="module")
def case() -> Case:
    return load_case(paths.data_dir() / "cases" / "ptbr-repaired" / "case.yaml")


@pytest.fixture(scope="module")
def recipe(case: Case) -> Recipe:
    return samplers.inference_recipe(case).but(nfe_step=4)


def test_on_a_cpu_passes_are_launched_as_ever_and_the_model_is_left_alone(case: Case, recipe: Recipe) -> None:
    studio = Studio("cpu")
    assert not studio.replay
    model = studio.model(recipe)
    replayer = graphs.Replayer(model)
    prompt = case.prompts[0]
    before = studio.speak(recipe, prompt, 3).mel
    with replayer.active():
        assert np.array_equal(studio.speak(recipe, prompt, 3).mel, before)
    assert replayer.replays == 0 and "forward" not in vars(model.transformer)


@needs_cuda
@pytest.mark.parametrize("precision", ["fp32", "fp16", "bf16"])
def test_replayed_passes_give_the_same_mel(case: Case, recipe: Recipe, precision: str) -> None:
    recipe = recipe.but(precision=precision)
    plain, quick = Studio("cuda", replay=False), Studio("cuda")
    pairs = [(prompt, seed) for prompt in case.prompts[:3] for seed in (0, 1)]
    for pair in pairs:
        (expected,), (sample,) = (batches.speak_pairs(studio, recipe, [pair]) for studio in (plain, quick))
        assert np.array_equal(expected.mel, sample.mel)
    for expected, sample in zip(batches.speak_pairs(plain, recipe, pairs), batches.speak_pairs(quick, recipe, pairs)):
        assert np.array_equal(expected.mel, sample.mel)
    (replayer,) = quick._replayers.values()
    assert replayer.replays > 6
    assert "forward" not in vars(quick.model(recipe).transformer)


@needs_cuda
def test_without_guidance_too(case: Case, recipe: Recipe) -> None:
    recipe = recipe.but(cfg_strength=0.0)
    pairs = [(case.prompts[0], 0)]
    mels = [batches.speak_pairs(Studio("cuda", replay=on), recipe, pairs)[0].mel for on in (False, True)]
    assert np.array_equal(*mels)


@needs_cuda
def test_a_batch_on_a_gpu_is_what_each_clip_is_alone(case: Case, recipe: Recipe) -> None:
    recipe, studio = recipe.but(precision="fp32"), Studio("cuda")
    pairs = [(case.prompts[0], seed) for seed in range(3)]
    for together, pair in zip(batches.speak_pairs(studio, recipe, pairs), pairs):
        assert np.abs(together.mel - studio.speak(recipe, *pair).mel).max() < 0.02


def scarce(monkeypatch: pytest.MonkeyPatch, studio: Studio, recipe: Recipe, most: int) -> list[int]:
    """Let the model refuse batches of more than `most` clips, as a GPU without memory does; return the sizes asked for."""
    model, asked = studio.model(recipe), []
    stock = model.sample

    def sample(**given: Any) -> Any:
        asked.append(len(given["cond"]))
        if asked[-1] > most:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB. GPU 0 has 1 GiB free.")
        return stock(**given)

    monkeypatch.setattr(model, "sample", sample)
    return asked


def test_a_batch_that_does_not_fit_is_spoken_in_halves(
    case: Case, recipe: Recipe, monkeypatch: pytest.MonkeyPatch
) -> None:
    studio, pairs = Studio("cpu"), [(case.prompts[0], seed) for seed in range(4)]
    expected = batches.speak_pairs(studio, recipe, pairs)
    asked = scarce(monkeypatch, studio, recipe, 2)
    found = batches.speak_pairs(studio, recipe, pairs)
    assert asked == [4, 2, 2]
    for a, b in zip(found, expected):
        assert (a.prompt_id, a.seed) == (b.prompt_id, b.seed) and np.abs(a.mel - b.mel).max() < 1e-3


def test_a_clip_that_does_not_fit_says_what_would(case: Case, recipe: Recipe, monkeypatch: pytest.MonkeyPatch) -> None:
    studio = Studio("cpu")
    scarce(monkeypatch, studio, recipe, 0)
    with pytest.raises(ModelError, match=r"does not fit the memory of cpu.*2\.00 GiB.*fp16"):
        batches.speak_pairs(studio, recipe, [(case.prompts[0], seed) for seed in range(2)])


def test_the_threads_of_a_long_text_are_not_replayed(
    case: Case, recipe: Recipe, monkeypatch: pytest.MonkeyPatch
) -> None:
    """``infer_process`` samples the chunks of a text side by side; recorded passes have one set of buffers."""
    studio, asked = Studio("cpu"), []
    monkeypatch.setattr(studio, "replay", True)
    monkeypatch.setattr(graphs.Replayer, "active", lambda self: asked.append(self))
    long = case.prompts[0].model_copy(update={"gen_text": "Comprou um livro. " * 20})
    studio.speak(recipe.but(nfe_step=1), long, 0)
    assert asked == []
