"""Anatomy: what shapes show (against upstream's own classes), what they can not, and what was never trained."""

from pathlib import Path

import pytest
import torch
from toy_checkpoints import ema_state, save_trainer, scheduler, state

from f5lab.checkpoints import open_checkpoint
from f5lab.errors import CheckpointError
from f5lab.specs import PRESETS
from f5lab.weights import anatomy, architectures

ROWS = architectures.TEXT_EMBEDDING
VARIANTS = {
    "v0": ("DiT", {"dim": 32, "depth": 2, "heads": 2, "dim_head": 16, "ff_mult": 2, "text_dim": 12, "conv_layers": 3}),
    "plain": ("DiT", {"dim": 32, "depth": 1, "heads": 4, "dim_head": 8, "ff_mult": 4, "conv_layers": 0}),
    "extras": (
        "DiT",
        {"dim": 32, "depth": 3, "heads": 2, "dim_head": 16, "ff_mult": 1, "text_dim": 16, "conv_layers": 1,
         "qk_norm": "rms_norm", "long_skip_connection": True},
    ),
    "unet": (
        "UNetT",
        {"dim": 32, "depth": 4, "heads": 2, "dim_head": 16, "ff_mult": 2, "text_dim": 12, "conv_layers": 2},
    ),
    "mmdit": ("MMDiT", {"dim": 32, "depth": 2, "heads": 2, "dim_head": 16, "ff_mult": 3}),
}  # fmt: skip


def real(backbone: str, options: dict, tokens: int = 7) -> dict[str, torch.Tensor]:
    from f5lab import models

    module = getattr(models.upstream(), backbone)(**options, text_num_embeds=tokens, mel_dim=20)
    return {f"transformer.{name}": tensor for name, tensor in module.state_dict().items()}


@pytest.mark.parametrize("name", VARIANTS)
def test_shapes_give_back_what_upstream_was_built_with(name: str) -> None:
    backbone, options = VARIANTS[name]
    arch = architectures.implied(real(backbone, options))
    assert arch.backbone == backbone and (arch.vocab_size, arch.mel_dim) == (7, 20)
    for key, value in options.items():
        if key in ("text_dim", "conv_layers") and backbone == "MMDiT":
            continue
        assert getattr(arch, key) == value
    assert arch.skip_connect_type == ("concat" if backbone == "UNetT" else None)
    rebuilt = {k: v for k, v in arch.options().items() if k != "backbone"}
    assert real(backbone, rebuilt).keys() == real(backbone, options).keys()


def test_a_fresh_model_is_seen_as_untrained() -> None:
    backbone, options = VARIANTS["v0"]
    states = {f.name: f.state for f in anatomy.tensor_facts(real(backbone, options))}
    assert states["transformer.proj_out.weight"] == "zero as initialised"
    assert states["transformer.transformer_blocks.1.attn_norm.linear.bias"] == "zero as initialised"
    assert states["transformer.transformer_blocks.0.attn.to_q.weight"] == "as initialised"
    assert states[ROWS] == "ok"


def test_the_hidden_options_are_those_that_leave_names_and_shapes_alone() -> None:
    backbone, options = VARIANTS["v0"]
    plain = {k: tuple(v.shape) for k, v in real(backbone, options).items()}
    listed = {option.name for option in architectures.hidden_options(architectures.implied(real(backbone, options)))}
    changes = {"text_mask_padding": False, "pe_attn_head": 1, "text_embedding_average_upsampling": True, "dropout": 0.3,
               "attn_mask_enabled": False, "checkpoint_activations": True}  # fmt: skip
    for key, value in changes.items():
        changed = {k: tuple(v.shape) for k, v in real(backbone, {**options, key: value}).items()}
        assert changed == plain and key in listed


def test_base_and_v1_base_tie() -> None:
    arch = architectures.implied(state())
    big = {**arch.__dict__, "heads": 16, "dim_head": 64, "text_dim": 512, "conv_layers": 4, "dim": 1024, "depth": 22}
    match = architectures.match_presets(architectures.Implied(**big))
    assert match.presets == ("F5TTS_Base", "F5TTS_v1_Base")
    assert match.tie == {
        "pe_attn_head": {"F5TTS_Base": 1, "F5TTS_v1_Base": None},
        "text_mask_padding": {"F5TTS_Base": False, "F5TTS_v1_Base": True},
    }
    assert anatomy.preset_sentence(match).startswith("TIE: F5TTS_Base and F5TTS_v1_Base")


@pytest.mark.parametrize("preset", PRESETS)
def test_each_preset_matches_itself(preset: str) -> None:
    visible = {k: v for k, v in PRESETS[preset].items() if k not in ("text_mask_padding", "pe_attn_head")}
    arch = {**architectures.implied(state()).__dict__, "text_dim": 100, "conv_layers": 0, "mel_dim": 100, **visible}
    assert preset in architectures.match_presets(architectures.Implied(**arch)).presets


def test_a_stranger_gets_the_nearest_preset_and_the_differences() -> None:
    match = architectures.match_presets(architectures.implied(state()))
    assert match.presets == () and match.differences["dim"][0] == 8
    assert "no published preset" in anatomy.preset_sentence(match)


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (lambda v: v, "as built"),
        (lambda v: v.half(), "rounded to half precision"),
        (lambda v: 5_000.0 ** (-torch.arange(0, 64, 2).float() / 64), "altered"),
        (lambda v: v * float("nan"), "not finite"),
    ],
)
def test_rotary_frequencies(change: object, says: str) -> None:
    exact = 10_000.0 ** (-torch.arange(0, 64, 2).float() / 64)
    assert says in architectures.check_rope({architectures.INV_FREQ: change(exact)}).verdict


def test_without_rotary_buffer_heads_are_a_hidden_option() -> None:
    weights = state()
    del weights[architectures.INV_FREQ]
    arch = architectures.implied(weights)
    assert arch.heads is None and "heads" not in arch.options()
    assert "heads, dim_head" in [option.name for option in architectures.hidden_options(arch)]
    assert architectures.check_rope(weights).stored is False


def test_every_contradiction_is_listed() -> None:
    weights = state()
    weights["transformer.input_embed.proj.weight"] = torch.zeros(8, 5)
    weights["transformer.transformer_blocks.1.attn.to_q.weight"] = torch.zeros(8, 6)
    with pytest.raises(CheckpointError, match="shapes contradict each other") as caught:
        architectures.implied(weights)
    assert len(caught.value.offenders) == 2


def test_missing_tensors_are_listed() -> None:
    weights = {k: v for k, v in state().items() if "text_embed.text_embed" not in k and "proj_out" not in k}
    with pytest.raises(CheckpointError, match="no complete DiT") as caught:
        architectures.implied(weights)
    assert len(caught.value.offenders) == 2


def test_claims_are_held_against_shapes() -> None:
    claims = {"training": {"dim": 8, "pe_attn_head": 1}, "inference": {"dim": 16}, "nobody": None}
    rows = {row["option"]: row for row in architectures.claim_rows(architectures.implied(state()), claims)}
    assert rows["dim"]["says"] == "contradicts the shapes"
    assert rows["pe_attn_head"]["says"] == "sides differ, shapes can not tell"
    assert rows["pe_attn_head"]["inference"] == "left out" and "nobody" not in rows["dim"]


def test_statistics() -> None:
    weights = {"transformer.a.weight": torch.tensor([[3.0, -4.0], [0.0, float("nan")]])}
    (fact,) = anatomy.tensor_facts(weights)
    assert (fact.norm, fact.minimum, fact.maximum, fact.nan, fact.inf) == (5.0, -4.0, 3.0, 1, 0)
    assert (fact.state, fact.zero_share, fact.parameters, fact.bytes) == ("not finite", 0.25, 4, 16)
    infinite = torch.full((2,), torch.inf)
    dead = anatomy.tensor_facts({"transformer.a.weight": torch.zeros(2, 2), "transformer.b": infinite})
    assert [f.state for f in dead] == ["zero", "not finite"] and dead[1].norm is None


def trained_rows(touched: tuple[int, ...]) -> tuple[torch.Tensor, torch.Tensor, dict]:
    """Train an embedding with AdamW on some rows only; return rows before, rows after, optimizer state."""
    torch.manual_seed(0)
    table = torch.nn.Embedding(5, 6)
    before = table.weight.detach().clone()
    optimizer = torch.optim.AdamW(table.parameters(), lr=1e-2, weight_decay=0.01)
    for _ in range(20):
        table(torch.tensor(touched)).square().sum().backward()
        optimizer.step()
        optimizer.zero_grad()
    return before, table.weight.detach(), optimizer.state_dict()


@pytest.mark.parametrize("test", ["optimizer", "base", "raw-ema", "none"])
def test_rows_that_no_text_used(tmp_path: Path, test: str) -> None:
    before, after, optimizer = trained_rows((0, 2, 3))
    raw, old = state() | {ROWS: after}, state() | {ROWS: before}
    more = {"optimizer_state_dict": optimizer} if test == "optimizer" else {}
    if test == "none":
        torch.save({"model_state_dict": raw}, tmp_path / "m.pt")
    else:
        save_trainer(tmp_path / "m.pt", raw, ema_state(old if test == "raw-ema" else raw), **more)
    found = anatomy.untouched_rows(open_checkpoint(tmp_path / "m.pt"), "raw", old if test == "base" else None)
    assert found.test == test and found.rows == 5
    assert found.untouched == (() if test == "none" else (1, 4))


def test_rows_that_moved_less_than_their_precision_are_not_called_untouched(tmp_path: Path) -> None:
    before = torch.randn(5, 6, generator=torch.Generator().manual_seed(0))
    raw, old = state() | {ROWS: (before * 1.0001).half()}, state() | {ROWS: before.half()}
    save_trainer(tmp_path / "m.pt", raw, ema_state(raw))
    found = anatomy.untouched_rows(open_checkpoint(tmp_path / "m.pt"), "raw", old)
    assert (found.test, found.untouched) == ("none", ()) and "stored precision" in found.limit


def test_row_match_finds_a_permutation() -> None:
    g = torch.Generator().manual_seed(0)
    base = torch.randn(41, 32, generator=g)
    order = [*range(3), *range(4, 40), 3]
    moved = torch.cat([base[:1], base[1:][order]]) + 0.05 * torch.randn(41, 32, generator=g)
    match = anatomy.match_rows(moved, base)
    assert list(match.nearest) == order
    assert match.permutation and match.offset == 1 and match.identity_share == pytest.approx(3 / 40)
    assert anatomy.match_rows(base, base).identity_share == 1.0
    assert anatomy.match_rows(torch.randn(41, 32, generator=g), base).convincing < 0.7
    with pytest.raises(CheckpointError, match="equal widths"):
        anatomy.match_rows(moved, base[:, :5])


def says(path: Path, fact: str) -> str:
    return next(row["means"] for row in anatomy.provenance(open_checkpoint(path)) if row["fact"] == fact)


def test_provenance(tmp_path: Path) -> None:
    path = save_trainer(
        tmp_path / "model_90.pt", state(), ema_state(state()), update=100, scheduler_state_dict=scheduler(200)
    )
    assert "DISAGREES with update 100" in says(path, "file name")
    assert "12000 more than update: inherited" in says(path, "EMA step")
    assert "dead" in says(path, "learning rate") and "ran to its end" in says(path, "schedule")
    old = save_trainer(tmp_path / "model_1200000.pt", state(), ema_state(state()), step=1_200_000)
    assert "v0's options" in says(old, "top-level step") and "F5TTS_Base or E2TTS_Base (v0)" in says(old, "file name")


def test_report_is_plain_and_complete(tmp_path: Path) -> None:
    import json

    broken = state() | {"transformer.proj_out.bias": torch.full((10,), torch.nan)}
    path = save_trainer(tmp_path / "model_last.pt", broken, ema_state(state()), update=100)
    report = anatomy.report(path)
    json.dumps(report, allow_nan=False)
    assert report["odd_tensors"] == [{"name": "transformer.proj_out.bias", "state": "not finite", "nan": 10, "inf": 0}]
    assert report["architecture"]["heads"] == 2 and report["parameters"] == sum(t.numel() for t in broken.values())
