"""Grids of sampler settings: which points, which numbers, and what is said of a difference."""

import numpy as np
import pytest
from toy_models import save_toy, toy_prompt, toy_recipe

from f5lab import grids
from f5lab.asr import Transcript
from f5lab.audio import Wave
from f5lab.errors import UsageError
from f5lab.grids import COST, DURATION, VOICE, Change, Grid, Take
from f5lab.oracles import Scored
from f5lab.samplers import Sample, Studio
from f5lab.specs import Recipe
from f5lab.statistics import Estimate


@pytest.fixture(scope="module")
def recipe(tmp_path_factory: pytest.TempPathFactory) -> Recipe:
    return toy_recipe(save_toy(tmp_path_factory.mktemp("toy"))).but(nfe_step=4)


def test_points_are_one_setting_at_a_time_or_all_together(recipe: Recipe) -> None:
    axes = {"nfe_step": [2, 4, 8], "sway_sampling_coef": [None]}
    one = grids.points(recipe, axes)
    assert list(one) == ["base", "NFE 2", "NFE 8", "sway off"]
    assert (one["NFE 8"].nfe_step, one["sway off"].sway_sampling_coef, one["base"].nfe_step) == (8, None, 4)
    every = grids.points(recipe, axes, full=True)
    assert len(every) == 6 and "NFE 2, sway off" in every
    with pytest.raises(UsageError, match="precision"):
        grids.points(recipe, {"precision": ["fp16"]})


def take(recipe: Recipe, point: str, prompt: str, seed: int, cer: float, ratio: float | None = None) -> Take:
    sample = Sample(Wave(np.zeros(9), 24000), np.zeros((1, 1)), "", prompt, point, seed, 1.0)
    return Take(point, recipe, Scored(sample, Transcript("", 0.0, 0.0), cer), ratio, None)


@pytest.fixture
def grid(recipe: Recipe) -> Grid:
    """Five prompts: a bad point and one that seeds explain; the base with two seeds 0.1 apart."""
    prompts = [f"p{k}" for k in range(5)]
    takes = [take(recipe, "base", p, seed, 0.2 + 0.1 * seed) for p in prompts for seed in (0, 1)]
    takes += [take(recipe, "NFE 2", p, 0, 0.7 + 0.01 * k, 1.2) for k, p in enumerate(prompts)]
    takes += [take(recipe, "NFE 3", p, 0, 0.21) for p in prompts]
    return Grid(tuple(takes), {})


def test_the_seeds_spread_is_the_pooled_deviation(grid: Grid) -> None:
    deviation = np.std([0.2, 0.3], ddof=1)
    assert grid.seed_deviation("CER") == pytest.approx(deviation)
    assert grid.seed_band("CER", 5) == pytest.approx(1.96 * np.sqrt(2 / 5) * deviation)
    assert grid.seed_deviation(DURATION) is None


def test_only_what_exceeds_seeds_and_prompts_counts(grid: Grid) -> None:
    found = {(c.point, c.measure): c for c in grids.changes(grid)}
    assert found["NFE 2", "CER"].difference.mean == pytest.approx(0.52)
    assert found["NFE 2", "CER"].judgement == "beyond the seeds"
    assert found["NFE 3", "CER"].judgement == "within the seeds"  # its interval excludes 0
    assert found["NFE 3", "CER"].difference.low > 0
    assert ("NFE 2", DURATION) not in found and ("NFE 2", VOICE) not in found
    said = grids.conclusion(list(found.values()), "nfe_step")
    assert (said["verdict"], said["n"]) == ("supported", 5) and "NFE 2" in said["unit"]
    assert grids.conclusion(list(found.values()), "speed")["limitation"] == "no other speed was measured alone"
    assert grids.conclusion(list(found.values()), "nfe_step", VOICE)["limitation"] == "the speaker cosine is undefined here"


@pytest.mark.parametrize(
    ("estimate", "band", "judgement"),
    [
        (Estimate(0.5, 0.4, 0.6, 3), 0.1, "cannot be told"),
        (Estimate(0.5, 0.4, 0.6, 4), None, "cannot be told"),
        (Estimate(0.5, -0.1, 0.9, 4), 0.1, "no difference shown"),
        (Estimate(0.2, 0.1, 0.3, 4), 0.25, "within the seeds"),
        (Estimate(-0.5, -0.6, -0.4, 4), 0.1, "beyond the seeds"),
    ],
)
def test_judgement(estimate: Estimate, band: float | None, judgement: str) -> None:
    assert Change("NFE 2", "CER", 0.0, estimate, band, 4).judgement == judgement


def test_clips_are_spoken_and_measured(recipe: Recipe) -> None:
    def hear(waves: list[Wave]) -> list[Transcript]:
        return [Transcript("Comprou um livro.", 0.0, 0.0) for _ in waves]

    points = {
        **grids.points(recipe, {"speed": [2.0], "cfg_strength": [0.0]}),
        "broken": recipe.but(arch={**recipe.arch, "depth": 3}),
    }
    grid = grids.measure(Studio("cpu"), hear, points, [toy_prompt()], [0])  # type: ignore[arg-type]
    assert list(grid.problems) == ["broken"] and "fit" in grid.problems["broken"]
    assert [t.key for t in grid.of("base")] == [("p01", 0), ("p01", 1)]
    base, fast, bare = (grid.of(name)[0] for name in ("base", "speed 2", "guidance 0"))
    assert fast.duration_ratio == pytest.approx(base.duration_ratio / 2, rel=0.05)
    assert (base.passes, bare.passes) == (8, 4)
    assert all(t.value("CER") == 0 and t.value(COST) > 0 and -1 <= t.value(VOICE) <= 1 for t in grid.takes)
    assert base.value(DURATION) == pytest.approx(base.scored.sample.wave.seconds / 1.0, rel=1.0)
    assert {c.judgement for c in grids.changes(grid)} == {"cannot be told"}
