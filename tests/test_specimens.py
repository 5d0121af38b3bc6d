"""Manifest, release format, fine-tune loss and vocoder of the specimen."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch

from f5lab import models
from f5lab.errors import SpecimenError
from f5lab.specimen import curricula, finetuning, gates, specimens, vocoders
from f5lab.specimen.curricula import Item
from f5lab.specimen.finetuning import FinetunePlan
from tests.test_curricula import ARCH, VOCAB, tiny_model, tiny_voice


@pytest.fixture
def data(tmp_path: Path) -> Path:
    for name in ("specimen/a.bin", "specimen/b.txt", "speech/c.ogg"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(name.encode())
    specimens.write_manifest(tmp_path, {"": ("made here", "MIT"), "speech/": ("Kokoro-82M", "Apache-2.0")})
    return tmp_path


def test_an_untouched_folder_verifies(data: Path) -> None:
    assert specimens.verify(data / "manifest.json") == 3
    assert specimens.verify(data / "manifest.json", "speech/") == 1
    rows = json.loads((data / "manifest.json").read_text(encoding="utf-8"))["files"]
    assert {row["path"]: row["licence"] for row in rows}["speech/c.ogg"] == "Apache-2.0"


def test_a_changed_byte_and_a_missing_file_are_named(data: Path) -> None:
    changed = bytearray((data / "specimen/a.bin").read_bytes())
    changed[0] ^= 1
    (data / "specimen/a.bin").write_bytes(changed)
    (data / "speech/c.ogg").unlink()
    with pytest.raises(SpecimenError, match=r"specimen/a.bin \(changed\), speech/c.ogg \(missing\)"):
        specimens.verify(data / "manifest.json")


def test_a_damaged_manifest_is_one_clear_error(data: Path) -> None:
    (data / "manifest.json").write_text("{}", encoding="utf-8")
    with pytest.raises(SpecimenError, match="restore it with git"):
        specimens.verify(data / "manifest.json")


def test_a_base_is_released_as_ema_with_the_cumulative_step(tmp_path: Path) -> None:
    from ema_pytorch import EMA

    model = tiny_model()
    average = EMA(model, include_online_model=False)
    torch.save(
        {"model_state_dict": model.state_dict(), "ema_model_state_dict": average.state_dict()}, tmp_path / "stage.pt"
    )
    released = torch.load(specimens.release_base(tmp_path / "stage.pt", 10700, tmp_path / "base.pt"), weights_only=True)
    assert list(released) == ["ema_model_state_dict"]
    state = released["ema_model_state_dict"]
    assert state["step"].item() == 10700 and state["step"].dtype == torch.int64
    assert state["initted"].item() is True
    EMA(model, include_online_model=False).load_state_dict(state)


def test_the_finetune_loss_is_the_curriculums(monkeypatch: pytest.MonkeyPatch) -> None:
    plan = FinetunePlan(drop_audio=0, drop_both=0, time_power=1.0, silent_weight=1.0)
    text, mel = "ab. bc.", torch.randn(30, 100)
    up = models.upstream()
    model = finetuning.span_cfm({text: (12, 0)}, plan)(
        transformer=up.DiT(**ARCH, text_num_embeds=len(VOCAB), mel_dim=100), mel_spec_kwargs=models.MEL, vocab_char_map=VOCAB
    )  # fmt: skip
    model.load_state_dict(tiny_model().state_dict())
    noise = torch.randn(1, 30, 100)
    monkeypatch.setattr(torch, "randn_like", lambda _: noise)
    monkeypatch.setattr(torch, "rand", lambda *_, **__: torch.tensor([0.3]))
    loss, _, _ = model.eval()(mel[None], text=[text], lens=torch.tensor([30]))
    monkeypatch.setattr(torch, "randn", lambda *_, **__: noise)
    assert loss.item() == pytest.approx(
        curricula.flow_loss(model, [Item(mel, 12, text)], torch.tensor([0.3])).item(), rel=1e-5
    )


def test_refit_keeps_the_prompt_and_gives_the_byte_rules_duration() -> None:
    mel = torch.randn(50, 100)
    fitted = finetuning.refit(mel, 20, 44, 0.0)
    assert torch.equal(fitted[:20], mel[:20]) and len(fitted) == 64
    assert finetuning.refit(mel, 20, 0, 1.0) is mel


def test_the_dataset_is_on_disk_as_upstream_reads_it(tmp_path: Path) -> None:
    import soundfile as sf

    voice, clips = tiny_voice(), []
    for i, clip in enumerate(voice.clips):
        sf.write(tmp_path / f"{i}.wav", np.full(24000, 0.1, np.float32), 24000)
        clips.append(curricula.Clip(tmp_path / f"{i}.wav", clip.text, "v", "phrase"))
    voice = curricula.Voice("v", tuple(clips), voice.mels, voice.prompts)
    (tmp_path / "vocab.txt").write_text(" \na\n", encoding="utf-8")
    spans = finetuning.write_dataset(
        finetuning.finetune_items(voice, FinetunePlan(repeats=2, doubles=1)), tmp_path / "vocab.txt", tmp_path / "v_char"
    )
    dataset = finetuning.read_dataset(tmp_path / "v_char")
    assert len(dataset) == 3 + 3 + 6
    assert {dataset.data[i]["text"] for i in range(len(dataset))} == set(spans)
    assert spans["ab. ab."] == (1 + 24000 // 256, 0)
    assert dataset[3]["mel_spec"].shape == (100, 1 + 48000 // 256)


def test_a_vocoder_loads_by_upstreams_loader_and_learns(tmp_path: Path) -> None:
    import soundfile as sf

    sf.write(tmp_path / "a.wav", 0.3 * np.sin(np.arange(24000) / 9).astype(np.float32), 24000)
    clips = [curricula.Clip(tmp_path / "a.wav", "a.", "v", "phrase")]
    plan = vocoders.VocoderPlan(
        dim=16, intermediate_dim=16, num_layers=1, updates=6, warmup=1, batch=2, crop_frames=12, n_ffts=(512,)
    )
    folder = vocoders.train_vocoder(clips, tmp_path / "vocos", stages=(plan,), states=tmp_path / "states")
    vocoder = models.upstream().load_vocoder("vocos", is_local=True, local_path=str(folder), device="cpu")
    mel = curricula.wave_mel(np.zeros(2560, np.float32))
    assert vocoder.decode(mel.T[None]).shape == (1, 2560)
    assert torch.allclose(
        vocoder.feature_extractor(torch.zeros(1, 2560)).exp().clamp(min=1e-5).log(), mel.T[None], atol=3e-3
    )


def test_the_table_of_gates_says_what_was_missed(tmp_path: Path) -> None:
    result = {"b": {"mean": 0.3, "low": 0.2, "high": 0.4, "n": 24, "seeds": 3, "limit": 0.12, "passed": False}}
    (tmp_path / "README.md").write_text(f"x\n{gates.MARKS[0]}\nold\n{gates.MARKS[1]}\ny\n", encoding="utf-8")
    gates.write_table(tmp_path / "README.md", result)
    text = (tmp_path / "README.md").read_text(encoding="utf-8")
    assert "CER 0.300 | 0.200 to 0.400 | 24 x 3 | 0.12 | **missed**" in text
    assert "old" not in text and text.endswith("y\n")
