"""The loss on a span against a direct computation, durations, and resuming."""

import math
import random
from pathlib import Path

import numpy as np
import pytest
import torch
from ema_pytorch import EMA

from f5lab import models
from f5lab.errors import SpecimenError
from f5lab.specimen import curricula
from f5lab.specimen.curricula import SILENCE, Clip, Item, Prompt, Stage, Voice

VOCAB = {c: i for i, c in enumerate(" abc.")}
ARCH = {
    "dim": 16,
    "depth": 1,
    "heads": 2,
    "dim_head": 8,
    "ff_mult": 1,
    "text_dim": 8,
    "conv_layers": 1,
    "text_mask_padding": False,
    "pe_attn_head": 1,
}


def tiny_model() -> torch.nn.Module:
    up = models.upstream()
    torch.manual_seed(0)
    transformer = up.DiT(**ARCH, text_num_embeds=len(VOCAB), mel_dim=100)
    model = up.CFM(transformer=transformer, mel_spec_kwargs=models.MEL, vocab_char_map=VOCAB)
    torch.nn.init.normal_(model.transformer.proj_out.weight, std=0.1)
    return model


def tiny_voice() -> Voice:
    generator = torch.Generator().manual_seed(1)
    texts = ("ab.", "bc.", "ca.")
    clips = tuple(Clip(Path("none"), text, "v", "phrase") for text in texts)
    mels = tuple(torch.randn(20 + 3 * i, 100, generator=generator) for i in range(len(texts)))
    return Voice("v", clips, mels, {0: Prompt(mels[0], "ab.  ", 0.1, 19, np.zeros(19 * 256, np.float32))})


def test_span_loss_is_the_mean_over_the_second_clip_only() -> None:
    model, mel = tiny_model().eval(), torch.randn(30, 100)
    t = torch.tensor([0.3])
    loss = curricula.flow_loss(model, [Item(mel, 12, "ab. bc.")], t, generator=torch.Generator().manual_seed(5))
    x0 = torch.randn(1, 30, 100, generator=torch.Generator().manual_seed(5))
    cond = torch.cat([mel[:12], torch.zeros(18, 100)])[None]
    ids = torch.tensor([[VOCAB[c] for c in "ab. bc."]])
    v = model.transformer(
        x=0.7 * x0 + 0.3 * mel[None], cond=cond, text=ids, time=t, mask=torch.ones(1, 30, dtype=torch.bool)
    )
    direct = ((v - (mel[None] - x0)) ** 2)[0, 12:].mean()
    assert loss.item() == pytest.approx(direct.item(), rel=1e-5)


def test_silent_frames_count_with_their_weight() -> None:
    x1 = torch.cat([torch.zeros(1, 2, 100), torch.full((1, 2, 100), SILENCE)], dim=1)
    v, span = torch.zeros(1, 4, 100), torch.ones(1, 4, dtype=torch.bool)
    expected = 0.1 * 2 * SILENCE**2 / (2 + 0.1 * 2)
    assert curricula.span_error(v, x1, torch.zeros_like(x1), span, 0.1).item() == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize("frames", [5, 18, 20, 40])
def test_fit_frames_gives_exactly_the_frames_asked_for(frames: int) -> None:
    mel = torch.cat([torch.zeros(18, 100), torch.full((2, 100), SILENCE)])
    fitted = curricula.fit_frames(mel, frames)
    assert fitted.shape == (frames, 100)
    assert (fitted[:5] == 0).all()
    assert (fitted[20:] == SILENCE).all()


def test_target_frames_follow_the_byte_rule() -> None:
    prompt = tiny_voice().prompts[0]
    assert prompt.target_frames("Antes da aula.") == 19 + int(19 / 5 * 14) - 20
    assert prompt.target_frames("ção.") == 19 + int(19 / 5 * 6 / 0.3) - 20


def test_items_join_clips_of_one_voice_and_count_from_the_second() -> None:
    voice = tiny_voice()
    stage = Stage("s", 1, 1e-3, {"v": 1.0}, {"double": 1.0}, prompts=(0,))
    item = curricula.draw_item(stage, {"v": voice}, random.Random(0))
    first, second = item.text.split(" ")
    assert first == second
    assert torch.equal(item.mel[: item.start], item.mel[item.start :])


def test_text_gap_is_reproducible_and_restores_the_mode() -> None:
    model = tiny_model().train()
    gaps = [curricula.text_gap(model, tiny_voice(), n=2) for _ in range(2)]
    assert gaps[0] == gaps[1]
    assert math.isfinite(gaps[0].relative)
    assert model.training


def test_a_resumed_run_ends_with_the_weights_of_an_unbroken_one(tmp_path: Path) -> None:
    stage = Stage("s", 4, 1e-2, {"v": 1.0}, {"single": 0.5, "natural": 0.5}, prompts=(0,), frames=80, warmup=1)
    ends = {}
    for name, stops in (("whole", [None]), ("broken", [2, None])):
        for stop in stops:
            model = tiny_model()
            average = EMA(model, include_online_model=False, **stage.ema)
            done = curricula.run_updates(
                model, curricula.stage_loss(model, stage, {"v": tiny_voice()}), updates=4, peak_lr=1e-2, warmup=1,
                state=tmp_path / f"{name}.pt", ema=average, stop_after=stop,
            )  # fmt: skip
            assert done is (stop is None)
        ends[name] = torch.load(tmp_path / f"{name}.pt", weights_only=True)
    start = tiny_model().state_dict()
    assert any(not torch.equal(start[k], v) for k, v in ends["whole"]["model"].items())
    for part in ("model", "ema"):
        assert all(torch.equal(ends["whole"][part][k], v) for k, v in ends["broken"][part].items())


def test_a_table_with_a_short_row_is_refused(tmp_path: Path) -> None:
    (tmp_path / "metadata.csv").write_text(
        "file|text|voice|kind|seconds\na.ogg|A.|v|phrase|1.0\nb.ogg|B.\n", encoding="utf-8"
    )
    with pytest.raises(SpecimenError, match="line 3"):
        curricula.read_clips(tmp_path)
