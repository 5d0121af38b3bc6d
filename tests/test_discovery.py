"""`f5lab new` on a folder as upstream's Trainer leaves it."""

import json
from pathlib import Path

import numpy as np
import pytest
import soundfile as sf
import torch
from datasets.arrow_writer import ArrowWriter
from ema_pytorch import EMA

from f5lab import discovery, finetuning, models, paths, specimens
from f5lab.curricula import Clip
from f5lab.errors import CaseError
from f5lab.finetuning import MALE, FinetunePlan
from f5lab.specs import load_case

ARCH = {
    "dim": 64,
    "depth": 2,
    "heads": 1,
    "ff_mult": 2,
    "text_dim": 32,
    "conv_layers": 2,
    "text_mask_padding": False,
    "pe_attn_head": 1,
}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    home, data = tmp_path / "ckpts" / "voz", tmp_path / "data" / "voz_char"
    (home / "samples").mkdir(parents=True), (data / "wavs").mkdir(parents=True)
    (data / "vocab.txt").write_text(" \n.\na\nb\nç\n", encoding="utf-8")
    model = models.build_cfm("DiT", ARCH, data / "vocab.txt")
    average = EMA(model, include_online_model=False)
    state = {"model_state_dict": model.state_dict(), "ema_model_state_dict": average.state_dict(), "update": 40}
    torch.save(state, home / "model_40.pt"), torch.save(state, home / "model_last.pt")
    torch.save({"ema_model_state_dict": average.state_dict()}, home / "pretrained_base.pt")
    rows = []
    for k in range(6):
        path = data / "wavs" / f"{k}.wav"
        sf.write(path, 0.1 * np.sin(np.arange(24000) * 0.05 * (k + 1)), 24000)
        rows.append({"audio_path": str(path), "text": "ab ç." + "a" * k, "duration": 1.0})
    with ArrowWriter(path=str(data / "raw.arrow")) as writer:
        for row in rows:
            writer.write(row)
        writer.finalize()
    (data / "duration.json").write_text(json.dumps({"duration": [1.0] * 6}))
    return tmp_path


def test_a_training_folder_becomes_a_valid_case(folder: Path, tmp_path: Path) -> None:
    out = tmp_path / "case.yaml"
    report = discovery.report(folder, out)
    case = load_case(out)
    assert case.checkpoint.name == "model_last.pt" and case.base.name == "pretrained_base.pt"
    assert case.training.front_end == "raw" and case.training.arch is None
    assert case.inference.arch.resolve()[1]["dim"] == 64 and "pe_attn_head" not in case.inference.arch.resolve()[1]
    assert len(case.prompts) == 3 and case.prompts[0].gen_audio.is_file()
    assert any("text_mask_padding" in item for item in report["missing"])


def test_a_language_that_was_given_is_not_called_assumed(folder: Path, tmp_path: Path) -> None:
    said = []
    for given in (None, "pt"):
        out = tmp_path / f"{given}.yaml"
        discovery.report(folder, out, given)
        said += [line for line in out.read_text(encoding="utf-8").splitlines() if line.startswith("language")]
    assert said == ['language: "en"  # assumed: correct it if the speech is in another language', 'language: "pt"']


def test_settings_name_the_preset_and_nothing_is_overwritten(folder: Path, tmp_path: Path) -> None:
    (folder / "ckpts" / "voz" / "setting.json").write_text(json.dumps({"exp_name": "F5TTS_Base"}))
    out = tmp_path / "case.yaml"
    discovery.report(folder, out)
    assert load_case(out).training.arch.preset == "F5TTS_Base"
    before = out.read_bytes()
    with pytest.raises(CaseError, match="exists already"):
        discovery.report(folder, out)
    assert out.read_bytes() == before


def test_folders_that_are_none(tmp_path: Path) -> None:
    with pytest.raises(CaseError, match="holds no model_"):
        discovery.explore(tmp_path)
    with pytest.raises(CaseError, match="is not a folder"):
        discovery.explore(tmp_path / "gone")


def test_a_folder_that_upstreams_trainer_made(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The real Trainer writes checkpoints, samples and all: a short fine-tune of a tiny model from a released base."""
    monkeypatch.setattr(finetuning, "ARCH", ARCH)
    clips = []
    for k in range(3):
        path, time = tmp_path / f"clip_{k}.wav", np.arange(18000) / 24000
        sf.write(path, 0.2 * np.sin(2 * np.pi * (150 + 40 * k) * time) * (1 + np.sin(8 * time)), 24000)
        clips.append(Clip(path, f"{'ab' * (k + 5)} ç.", MALE, "phrase"))
    vocab = specimens.write_vocab(clips, tmp_path / "vocab.txt")
    model = models.build_cfm("DiT", ARCH, vocab)
    stage = {
        "model_state_dict": model.state_dict(),
        "ema_model_state_dict": EMA(model, include_online_model=False).state_dict(),
    }
    torch.save(stage, tmp_path / "stage.pt")
    base = specimens.release_base(tmp_path / "stage.pt", 500, tmp_path / "base.pt")
    plan = FinetunePlan(
        name="voz", prompts=(0,), epochs=2, repeats=1, doubles=1, warmup=1, frames=700, log_every=2, logged=0
    )
    out = tmp_path / "training"
    home = finetuning.finetune(out, clips, base, vocab, paths.data_dir() / "specimen" / "vocos", plan)
    assert {p.name for p in home.iterdir()} >= {"model_last.pt", "pretrained_model_last.pt", "samples"}
    report = discovery.report(out, tmp_path / "case.yaml")
    case = load_case(tmp_path / "case.yaml")
    assert case.checkpoint == home / "model_last.pt" and case.base == home / "pretrained_model_last.pt"
    assert case.training.samples == home / "samples" and any(case.training.samples.glob("update_*_gen.wav"))
    assert case.training.dataset == out / "data" / "voz_char" / "raw.arrow" and case.training.front_end == "raw"
    assert case.vocab.read_bytes() == vocab.read_bytes() and case.inference.arch.resolve()[1]["depth"] == 2
    assert all(p.ref_audio.is_file() and p.gen_text for p in case.prompts)
    assert any("text_mask_padding" in item for item in report["missing"])
