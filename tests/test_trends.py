"""The best of a series: named where it is shown, a tie where it is not."""

import numpy as np
import pytest

from f5lab.scale.trends import choose


def losses(mean: float, spread: float = 0.002, seed: int = 0) -> np.ndarray:
    """Eight recordings of different difficulty, two draws each; the difficulty is shared by all candidates."""
    hard = np.random.default_rng(1).normal(0, 0.1, (8, 1))
    return mean + hard + np.random.default_rng(seed).normal(0, spread, (8, 2))


def test_one_that_is_better_on_every_recording_is_named_with_its_interval() -> None:
    found = choose(
        "probe loss", {"early": losses(0.60, seed=1), "best": losses(0.55, seed=2), "late": losses(0.58, seed=3)}
    )
    assert found.best == "best" and found.decided and [r.name for r in found.rivals] == ["late", "early"]
    assert found.value.low < losses(0.55, seed=2).mean() < found.value.high
    assert "Every other one is worse; the nearest, late" in found.says and "n=8 recordings" in found.says


def test_pairs_tell_apart_what_overlapping_intervals_do_not() -> None:
    found = choose("probe loss", {"a": losses(0.55, seed=1), "b": losses(0.56, seed=2)})
    (rival,) = found.rivals
    assert found.decided and rival.worse.low > 0
    assert found.value.high > losses(0.56, seed=2).mean()  # unpaired they overlap by far


def test_what_is_not_told_apart_is_said() -> None:
    found = choose("probe loss", {"a": losses(0.55, 0.02, 1), "b": losses(0.5501, 0.02, 2), "c": losses(0.7, 0.02, 3)})
    assert not found.decided and [r.name for r in found.ties] == [r for r in ("a", "b") if r != found.best]
    assert "Not told apart from it" in found.says and "c" not in found.says.split("Not told apart")[1].split("(")[0]


def test_the_same_weights_twice_are_twins_and_no_rival() -> None:
    found = choose("probe loss", {"model_6": losses(0.5), "model_last": losses(0.5), "model_2": losses(0.6, seed=2)})
    assert found.best == "model_6" and found.twins == ("model_last",) and found.decided


@pytest.mark.parametrize("candidates", [{"one": losses(0.5)}, {"one": np.array([[0.5]])}])
def test_one_alone_is_not_the_best_of_anything(candidates: dict[str, np.ndarray]) -> None:
    found = choose("probe loss", candidates)
    assert not found.decided and "nothing to compare it with" in found.says


def test_two_recordings_give_intervals_over_draws_and_say_so() -> None:
    found = choose("probe loss", {"a": losses(0.5)[:2], "b": losses(0.6, seed=2)[:2]})
    assert found.of_draws and "noise draws" in found.says and found.value.n == 4


def test_clips_of_one_prompt_are_not_counted_as_many() -> None:
    found = choose("CER", {"a": [0.1, 0.1, 0.3, 0.3], "b": [0.2, 0.2, 0.4, 0.4]}, ["p", "p", "q", "q"])
    assert found.value.n == 2 and found.rivals[0].worse.n == 2


def test_one_prompt_decides_nothing() -> None:
    found = choose("CER", {"a": [0.1, 0.2], "b": [0.9, 0.8]}, ["p", "p"])
    assert not found.decided and "no interval from one" in found.says


def test_nothing_measured_is_no_choice() -> None:
    assert choose("CER", {}) is None


def test_losses_are_compared_by_their_ratios_as_the_probe_does() -> None:
    """A recording that is hard to explain does not outvote the others."""
    hard, easy = [0.9, 0.1, 0.1], [0.8, 0.12, 0.12]
    by_means = choose("probe loss", {"hard": hard, "easy": easy}, ["p", "q", "r"])
    found = choose("probe loss", {"hard": hard, "easy": easy}, ["p", "q", "r"], ratios=True)
    assert (by_means.best, found.best) == ("easy", "hard") and found.ratios
    assert found.rivals[0].worse.mean == pytest.approx((0.8 * 0.12 * 0.12 / (0.9 * 0.1 * 0.1)) ** (1 / 3) - 1)
    assert found.value.mean == pytest.approx((0.9 * 0.1 * 0.1) ** (1 / 3)) and "+8.6 % [" in found.says
    alone = choose("probe loss", {"a": [[0.5]], "b": [[0.6]]}, ratios=True)
    assert not alone.decided and "+20 %, no interval from one" in alone.says
