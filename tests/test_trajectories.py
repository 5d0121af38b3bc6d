"""Trajectories: they are the sampler's own, the model is left as it was, and where two part is what arithmetic says."""

from pathlib import Path

import numpy as np
import pytest
import torch
from toy_models import hooks, save_toy, toy_prompt, toy_recipe

from f5lab import batches, load_case, paths
from f5lab.audio import Wave
from f5lab.errors import CaseError, ModelError
from f5lab.inside import trajectories
from f5lab.inside.trajectories import Pair, Trajectory
from f5lab.models import HOP, RATE_HZ
from f5lab.samplers import Studio
from f5lab.specs import Recipe


@pytest.fixture(scope="module")
def studio() -> Studio:
    return Studio("cpu")


@pytest.fixture(scope="module")
def recipe(tmp_path_factory: pytest.TempPathFactory) -> Recipe:
    return toy_recipe(save_toy(tmp_path_factory.mktemp("toy")))


@pytest.fixture(scope="module")
def path(studio: Studio, recipe: Recipe) -> Trajectory:
    return trajectories.record(studio, recipe, toy_prompt(), 3)


def test_it_ends_in_the_samplers_own_mel_and_wave(studio: Studio, recipe: Recipe, path: Trajectory) -> None:
    plain = studio.speak(recipe, toy_prompt(), 3)
    assert np.array_equal(path.mel, plain.mel)
    assert np.array_equal(path.wave.samples, plain.wave.samples)
    # infer_process cuts one frame early: its first frame is the reference's last one, which the sampler puts back
    assert np.array_equal(path.states[-1, path.start + 1 :], plain.mel[1:])
    assert np.allclose(path.estimates[-1, 1:], plain.mel[1:], atol=1e-4)
    assert len(path.states) == recipe.nfe_step + 1
    assert path.times[0] == 0 and path.times[-1] == 1 and (np.diff(path.times) > 0).all()


def test_each_velocity_is_the_guided_one_of_the_network(studio: Studio, recipe: Recipe, path: Trajectory) -> None:
    request, model = batches.capture(studio, recipe, toy_prompt()), studio.model(recipe)
    mel = model.mel_spec(request.cond).permute(0, 2, 1)
    cond = torch.zeros(1, len(path.states[0]), 100)
    cond[:, : mel.shape[1]] = mel
    ids = torch.tensor([[model.vocab_char_map.get(c, 0) for c in request.text[0]]])
    step = 2
    x, t = torch.from_numpy(path.states[step : step + 1]), torch.tensor(path.times[step], dtype=torch.float32)
    with torch.inference_mode():
        own = model.transformer(x=x, cond=cond, text=ids, time=t, drop_audio_cond=False, drop_text=False)
        null = model.transformer(x=x, cond=cond, text=ids, time=t, drop_audio_cond=True, drop_text=True)
    guided = own + (own - null) * recipe.cfg_strength
    assert np.allclose(path.velocities[step], guided[0, path.start :].numpy(), atol=2e-3)
    pull = recipe.cfg_strength * float((own - null)[0, path.start :].square().mean().sqrt())
    assert path.guidance[step] == pytest.approx(pull, rel=1e-3)


def test_without_guidance_nothing_is_added(studio: Studio, recipe: Recipe) -> None:
    path = trajectories.record(studio, recipe.but(cfg_strength=0.0), toy_prompt(), 0)
    assert (path.guidance == 0).all()
    assert path.velocity_norms.min() > 0


def test_the_model_is_left_as_it_was_also_when_sampling_fails(studio: Studio, recipe: Recipe) -> None:
    model = studio.model(recipe)
    before = dict(vars(model))
    with pytest.raises(RuntimeError), trajectories._overheard(model):
        model.sample(cond=torch.zeros(1, 20, 7), text=["a"], duration=30)
    assert dict(vars(model)) == before
    assert "sample" not in vars(model) and hooks(model) == 0


def test_long_texts_are_followed_up_to_the_first_cut(studio: Studio, recipe: Recipe) -> None:
    long = toy_prompt(gen_text="Comprou um livro. " * 40, gen_audio=None)
    with pytest.raises(ModelError, match="first_piece"):
        trajectories.record(studio, recipe.but(nfe_step=1), long, 0)
    piece = trajectories.first_piece(long, recipe)
    assert 0 < len(piece.gen_text) < len(long.gen_text) and long.gen_text.startswith(piece.gen_text)
    assert batches.capture(studio, recipe, piece) is not None
    assert trajectories.first_piece(toy_prompt(), recipe) == toy_prompt()


def test_equal_models_do_not_part_and_other_weights_do(studio: Studio, recipe: Recipe) -> None:
    same = trajectories.record_pair(studio, recipe, recipe.but(name="again"), toy_prompt())
    assert same.parting.total == 0 and same.parting.half_t is None and same.parting.densest_half_s is None
    assert same.first_beyond_seeds_t is None and trajectories.conclusion(same)["verdict"] == "refuted"
    other = trajectories.record_pair(studio, recipe, recipe.but(weights="ema"), toy_prompt())
    assert other.parting.total > 0
    assert other.parting.total == pytest.approx(
        np.sqrt(np.square(other.given.mel - other.trained.mel).mean()), rel=1e-5
    )
    assert len(other.rows) == recipe.nfe_step


def test_what_prevents_a_pair_is_said(studio: Studio, recipe: Recipe, tmp_path: Path) -> None:
    silent = trajectories.record_pair(studio, recipe, recipe, toy_prompt(ref_text=" "))
    assert "ref_text" in silent.problem and silent.parting is None and silent.rows == []
    assert trajectories.conclusion(silent) == {"verdict": "inconclusive", "limitation": silent.problem}
    shape = trajectories.record_pair(studio, recipe.but(arch={**recipe.arch, "depth": 3}), recipe, toy_prompt())
    assert "does not fit" in shape.problem
    a, b = (trajectories.record(studio, recipe.but(nfe_step=n), toy_prompt(), 0) for n in (2, 4))
    with pytest.raises(ModelError, match="same frames, steps"):
        trajectories.part(a, b)


def made(final: np.ndarray) -> Trajectory:
    """Return a straight path from zero to a mel [shape=(n, 2)] in four equal steps."""
    times = np.linspace(0, 1, 5)
    return Trajectory(
        "made", "p", "", 0, times, times[:, None, None] * final, np.zeros(4), 0, final, Wave(np.zeros(1), 24000)
    )


def test_where_two_straight_paths_part_is_what_arithmetic_says() -> None:
    final = np.zeros((40, 2))
    final[10:14] = 3.0
    parting = trajectories.part(made(final), made(np.zeros((40, 2))))
    assert parting.apart == pytest.approx(np.tile(np.where(final[:, 0] > 0, 3.0, 0.0), (4, 1)))
    assert parting.total == pytest.approx(np.sqrt(9 * 4 / 40))
    assert parting.half_t == 0.0
    assert parting.densest_half_s == pytest.approx((10 * HOP / RATE_HZ, 12 * HOP / RATE_HZ))
    near = trajectories.part(made(np.full((40, 2), 0.1)), made(np.zeros((40, 2))))
    assert Pair(parting=parting, between_seeds=near).first_beyond_seeds_t == 0.0
    assert Pair(parting=near, between_seeds=parting).first_beyond_seeds_t is None


def test_the_sampler_alone_is_kept_from_what_is_given(recipe: Recipe) -> None:
    given = recipe.but(weights="ema", nfe_step=9, arch={**recipe.arch, "pe_attn_head": None})
    mixed = trajectories.as_trained_but_sampler(given, recipe.but(name="truth", nfe_step=32))
    assert (mixed.weights, mixed.nfe_step, mixed.arch["pe_attn_head"]) == ("raw", 9, 1)


def test_a_prompt_that_is_not_there_is_refused() -> None:
    case = load_case(paths.default_case())
    assert trajectories.find_prompt(case).id == "p01" and trajectories.find_prompt(case, "p03").id == "p03"
    with pytest.raises(CaseError, match="no prompt 'p99'; expected one of p01"):
        trajectories.find_prompt(case, "p99")
