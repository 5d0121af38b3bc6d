"""Activations: which stages are watched, that numbers are those of a plain computation, that nothing is left in a model."""

import numpy as np
import pytest
import torch

from f5lab import activations, models, paths, probes
from f5lab.activations import Divergence, Stage
from f5lab.audio import Wave, load_wave
from f5lab.probes import Bench, Item
from f5lab.specs import Recipe, Vocoder

SPECIMEN = paths.data_dir() / "specimen"
CLIP = paths.data_dir() / "speech" / "ptbr" / "jm_kumo_phrase_0012.ogg"
ARCH = {"dim": 32, "depth": 2, "heads": 1, "ff_mult": 2, "text_dim": 16, "conv_layers": 1, "pe_attn_head": 1, "dropout": 0.0}
SMALL = {"UNetT": ("dim", "depth", "heads", "ff_mult", "dropout"), "MMDiT": ("dim", "depth", "heads", "ff_mult", "dropout")}


def speaking(backbone: str = "DiT") -> torch.nn.Module:
    """Return a tiny model whose zero-initialised layers do something."""
    arch = {k: v for k, v in ARCH.items() if k in SMALL.get(backbone, ARCH)}
    torch.manual_seed(0)
    model = models.build_cfm(backbone, arch, SPECIMEN / "vocab.txt")
    for name, parameter in model.named_parameters():
        if "proj_out" in name or "norm_out" in name or "attn_norm" in name:
            torch.nn.init.normal_(parameter, std=0.05)
    return model.eval()


def forward(model: torch.nn.Module, frames: int = 40, batch: int = 2) -> torch.Tensor:
    g = torch.Generator().manual_seed(1)
    x = torch.randn(batch, frames, 100, generator=g)
    text = torch.randint(0, 40, (batch, 12), generator=g)
    with torch.inference_mode():
        return model.transformer(x=x, cond=x, text=text, time=torch.full((batch,), 0.3))


def hooks(model: torch.nn.Module) -> int:
    return sum(len(m._forward_hooks) + len(m._forward_pre_hooks) for m in model.modules())


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
    path = tmp_path_factory.mktemp("toy") / "model.pt"
    torch.save({"model_state_dict": speaking().state_dict()}, path)
    return Recipe(
        name="toy", path="inference", checkpoint=path, weights="raw", backbone="DiT", arch=ARCH, vocab=SPECIMEN / "vocab.txt",
        front_end="raw", mel_spec_type="vocos", vocoder=Vocoder(path=SPECIMEN / "vocos"),
    )  # fmt: skip


@pytest.fixture(scope="module")
def item() -> Item:
    wave = load_wave(CLIP, rate_hz=24000)
    return Item("clip", Wave(wave.samples[:12000], 24000), "Comprou.", 0.2)


def test_a_model_equals_itself_and_a_lost_option_shows_from_its_own_stage_on(recipe: Recipe, item: Item) -> None:
    bench = Bench()
    same = activations.diverge(bench, recipe, recipe, [item], (0.1, 0.6))
    assert same.first is None
    assert same.relative.shape == (len(same.stages), 2)
    assert same.cosine == pytest.approx(1)
    lost = recipe.but(arch={k: v for k, v in recipe.arch.items() if k != "pe_attn_head"})
    found = activations.diverge(bench, recipe, recipe.but(arch={**lost.arch, "heads": 1, "text_mask_padding": False}), [item])
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
