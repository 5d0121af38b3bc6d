"""Activations: which stages are watched, that numbers are those of a plain computation, that nothing is left in a model."""

import numpy as np
import pytest
import torch
from toy_models import ARCH, hooks, save_toy, speaking, toy_item, toy_recipe

from f5lab import probes
from f5lab.inside import activations
from f5lab.inside.activations import Divergence, Stage
from f5lab.probes import Bench, Item
from f5lab.specs import Recipe


def forward(model: torch.nn.Module, frames: int = 40, batch: int = 2) -> torch.Tensor:
    g = torch.Generator().manual_seed(1)
    x = torch.randn(batch, frames, 100, generator=g)
    text = torch.randint(0, 40, (batch, 12), generator=g)
    with torch.inference_mode():
        return model.transformer(x=x, cond=x, text=text, time=torch.full((batch,), 0.3))


@pytest.mark.parametrize("backbone", ["DiT", "UNetT", "MMDiT"])
def test_every_backbone_is_watched_and_left_as_it_was(backbone: str) -> None:
    model = speaking(backbone)
    before = forward(model)
    state = dict(model.transformer.__dict__)
    with activations.watched(model.transformer) as kept:
        seen = forward(model)
    assert torch.equal(before, seen)
    assert hooks(model) == 0
    assert torch.equal(before, forward(model))
    assert dict(model.transformer.__dict__) == state
    names = [stage.name for stage in kept]
    assert set(names) == {stage.name for stage, _ in activations.stages_of(model.transformer)}
    assert {"block 0 attention", "block 1 feed-forward"} <= set(names)
    assert all(x.ndim == 3 and x.dtype == torch.float32 and torch.isfinite(x).all() for x in kept.values())
    frames = [len(x[0]) for stage, x in kept.items() if stage.block is not None]
    assert set(frames) <= {40, 41}  # UNetT carries the time as a frame


def test_hooks_come_off_when_the_forward_pass_raises() -> None:
    model = speaking()
    with pytest.raises(IndexError), activations.watched(model.transformer), torch.inference_mode():
        model.transformer(
            x=torch.zeros(1, 5, 100), cond=torch.zeros(1, 5, 100), text=torch.full((1, 3), 5000), time=torch.zeros(1)
        )
    assert hooks(model) == 0


def test_hooks_come_off_when_a_module_is_missing() -> None:
    model = speaking()
    broken = torch.nn.Module()
    broken.text_embed, broken.transformer_blocks = model.transformer.text_embed, [torch.nn.Identity()]
    with pytest.raises(AttributeError), activations.watched(broken):
        pass
    assert hooks(model) == 0


def test_figures_are_those_of_a_plain_computation() -> None:
    a, b = torch.tensor([[3.0, 0.0], [0.0, 4.0]]), torch.tensor([[3.0, 0.0], [0.0, -4.0]])
    assert activations.relative_l2(a, b) == pytest.approx(8 / 5)
    assert activations.cosine_of(a, b) == pytest.approx((9 - 16) / 25)
    zero = torch.zeros(2)
    assert activations.relative_l2(zero, zero) == 0
    assert activations.relative_l2(zero, torch.ones(2)) == float("inf")
    assert np.isnan(activations.cosine_of(zero, torch.ones(2)))


@pytest.fixture(scope="module")
def recipe(tmp_path_factory: pytest.TempPathFactory) -> Recipe:
    return toy_recipe(save_toy(tmp_path_factory.mktemp("toy")))


@pytest.fixture(scope="module")
def item() -> Item:
    return toy_item()


def test_a_model_equals_itself_and_a_lost_option_shows_from_its_own_stage_on(recipe: Recipe, item: Item) -> None:
    bench = Bench()
    same = activations.diverge(bench, recipe, recipe, [item], (0.1, 0.6))
    assert same.first is None
    assert same.relative.shape == (len(same.stages), 2)
    assert same.cosine == pytest.approx(1)
    lost = recipe.but(arch={k: v for k, v in recipe.arch.items() if k != "pe_attn_head"})
    found = activations.diverge(
        bench, recipe, recipe.but(arch={**lost.arch, "heads": 1, "text_mask_padding": False}), [item]
    )
    assert found.first == Stage("text embedding")
    assert found.passes == tuple(("clip", t) for t in probes.TIMES)
    assert [row["stage"] for row in found.rows][-1] == "velocity"
    assert found.at("velocity")[0].min() > 0
    blocks, relative, _ = found.series("attention")
    assert blocks == [0, 1] and relative.shape == (2, len(probes.TIMES))
    assert hooks(bench.model(recipe)) == 0


def test_what_cannot_be_compared_says_why(recipe: Recipe, item: Item) -> None:
    other = activations.diverge(Bench(), recipe, recipe.but(arch={**ARCH, "text_dim": 8}), [item])
    assert isinstance(other, Divergence) and not other.stages and "fit" in other.problem
    mels = activations.diverge(Bench(), recipe, recipe.but(mel_spec_type="bigvgan"), [item])
    assert "shapes" in mels.problem and not mels.rows
