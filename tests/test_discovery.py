"""`f5lab new` on a folder as upstream's Trainer leaves it."""

import json
import os
import shutil
from pathlib import Path

import numpy as np
import pytest
import soundfile as sf
import torch
from datasets.arrow_writer import ArrowWriter
from ema_pytorch import EMA

from f5lab import discovery, models, paths, training_sets
from f5lab.errors import CaseError
from f5lab.specimen import finetuning, specimens
from f5lab.specimen.curricula import Clip
from f5lab.specimen.finetuning import MALE, FinetunePlan
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


def test_what_nobody_said_is_listed_as_assumed_or_left_out(folder: Path, tmp_path: Path) -> None:
    for given in (None, "pt"):
        out = tmp_path / f"{given}.yaml"
        report = discovery.report(folder, out, given)
        text = out.read_text(encoding="utf-8")
        assert ("language" in load_case(out).model_fields_set) == (given is not None)
        assert any("language" in item for item in report["assumed"]) == (given is None)
        for what in ("vocoder", "inference.arch", "weights: ema", "front_end: pinyin"):
            assert any(what in item for item in report["assumed"]) and what in text.splitlines()[0]


def test_settings_name_the_preset_and_nothing_is_overwritten(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(discovery.PRESETS, "F5TTS_Base", {"backbone": "DiT", **ARCH})
    (folder / "ckpts" / "voz" / "setting.json").write_text(json.dumps({"exp_name": "F5TTS_Base"}))
    out = tmp_path / "case.yaml"
    discovery.report(folder, out)
    assert load_case(out).training.arch.preset == "F5TTS_Base"
    before = out.read_bytes()
    with pytest.raises(CaseError, match="exists already"):
        discovery.report(folder, out)
    assert out.read_bytes() == before


def test_settings_of_another_model_are_left_out(folder: Path, tmp_path: Path) -> None:
    (folder / "ckpts" / "voz" / "setting.json").write_text(json.dumps({"exp_name": "F5TTS_v1_Base"}))
    report = discovery.report(folder, tmp_path / "case.yaml")
    assert load_case(tmp_path / "case.yaml").training.arch is None
    assert any("F5TTS_v1_Base" in item and "dim 1024, the shapes say 64" in item for item in report["missing"])


def test_of_two_trainings_each_keeps_to_its_own(folder: Path, tmp_path: Path) -> None:
    other, data = folder / "ckpts" / "a_fala", folder / "data" / "a_fala_pinyin"
    other.mkdir(), data.mkdir()
    shutil.copy(folder / "ckpts" / "voz" / "model_last.pt", other / "model_last.pt")
    os.utime(other / "model_last.pt", (0, 0))
    (other / "setting.json").write_text(json.dumps({"exp_name": "F5TTS_Base"}))
    (data / "vocab.txt").write_text(" \nx\ny\nz\nw\n", encoding="utf-8")
    found = discovery.explore(folder)
    assert found.checkpoint.parent.name == "voz" and found.data.name == "voz_char" and found.preset is None
    assert any("others: a_fala" in item for item in found.assumed)
    assert not any("setting.json" in item for item in found.missing)
    shutil.rmtree(folder / "data" / "voz_char")
    assert discovery.explore(folder).data is None


@pytest.mark.parametrize("away", ["/home/ana/data/voz_char/wavs", r"C:\f5\data\voz_char\wavs"])
def test_recordings_are_found_where_the_datasets_paths_are_another_computers(away: str, folder: Path) -> None:
    rows = [{"audio_path": away + ("\\" if "\\" in away else "/") + f"{k}.wav", "text": f"um dia de sol {k}", "duration": 1.0} for k in range(6)]
    arrow(folder / "data" / "voz_char" / "raw.arrow", rows)
    found = discovery.explore(folder)
    assert len(found.prompts) == 3 and Path(found.prompts[0]["ref_audio"]).parent == folder / "data" / "voz_char" / "wavs"
    assert not any("audio of" in item for item in found.missing)


def arrow(path: Path, rows: list[dict[str, object]]) -> None:
    with ArrowWriter(path=str(path)) as writer:
        for row in rows:
            writer.write(row)
        writer.finalize()


def test_texts_are_those_that_somebody_wrote(folder: Path) -> None:
    """The tokens of a pinyin dataset joined are not the text: a space stands where nobody wrote one."""
    data = folder / "data" / "voz_char"
    rows = [
        {"audio_path": str(data / "wavs" / f"{k}.wav"), "text": list(f"famí lia {k}"), "duration": 1.0}
        for k in range(4)
    ]
    arrow(data / "raw.arrow", rows)
    guessed = discovery.explore(folder)
    assert guessed.prompts[0]["ref_text"] == "famí lia 0" and any("joined tokens" in item for item in guessed.assumed)
    lines = ["audio_file|text", *(f"wavs/{k}.wav|família {k}" for k in range(4))]
    (data / "metadata.csv").write_text("\n".join(lines), encoding="utf-8")
    known = discovery.explore(folder)
    assert known.prompts[0]["ref_text"] == "família 0" and not any("joined tokens" in item for item in known.assumed)


def test_prompts_come_from_metadata_where_no_dataset_was_prepared(folder: Path) -> None:
    data = folder / "data" / "voz_char"
    (data / "raw.arrow").unlink()
    lines = ["audio_file|text", *(f"{k}|o gato número {k}" for k in range(6)), "gone.wav|nada", "wavs/0.wav|", "|", "x"]
    (data / "metadata.csv").write_text("\n".join(lines), encoding="utf-8")
    found = discovery.explore(folder)
    assert len(found.prompts) == 3 and found.prompts[0]["ref_audio"] == str(data / "wavs" / "0.wav")
    assert any("metadata.csv" in item for item in found.missing)


def test_texts_that_upstream_slows_down_are_left_to_others(folder: Path) -> None:
    data = folder / "data" / "voz_char"
    texts = ["oi", "um dia de sol", "dois dias de sol", "não", "três dias de sol", "quatro dias de sol"]
    arrow(
        data / "raw.arrow",
        [{"audio_path": str(data / "wavs" / f"{k}.wav"), "text": t, "duration": 1.0} for k, t in enumerate(texts)],
    )
    found = discovery.explore(folder)
    assert [(p["ref_text"], p["gen_text"]) for p in found.prompts] == [
        ("um dia de sol", "dois dias de sol"),
        ("três dias de sol", "quatro dias de sol"),
    ]


@pytest.mark.parametrize("content", [b"", b"[1]", b'{"exp_name": 3}', b"\xff\xfe", b"null", b"[" * 100_000], ids=str)
def test_settings_that_cannot_be_read_say_nothing(content: bytes, folder: Path, tmp_path: Path) -> None:
    (folder / "ckpts" / "voz" / "setting.json").write_bytes(content)
    for name in ("a.yaml", "b.yaml"):
        (folder / name).write_bytes(content if name == "a.yaml" else b"model: [1]\nx: 2026-99-99")
    discovery.report(folder, tmp_path / "case.yaml")
    assert load_case(tmp_path / "case.yaml").training.arch is None


@pytest.mark.parametrize("rows", [[{"text": "a"}], [{"audio_path": "a.wav", "duration": 1.0}]], ids=str)
def test_a_dataset_without_its_columns_is_refused(rows: list[dict[str, object]], folder: Path) -> None:
    arrow(folder / "data" / "voz_char" / "raw.arrow", rows)
    with pytest.raises(CaseError, match="has no column"):
        discovery.explore(folder)


@pytest.mark.parametrize(
    "content", [b"", b"ARROW1", b"\xff\xff\xff\xff\x10\x00\x00\x00" + b"\x01" * 40, b"PK\x03\x04" * 9], ids=str
)
def test_what_is_no_dataset_is_refused(content: bytes, folder: Path) -> None:
    (folder / "data" / "voz_char" / "raw.arrow").write_bytes(content)
    with pytest.raises(CaseError, match="not an Arrow file"):
        discovery.explore(folder)


def test_odd_rows_are_left_out(folder: Path) -> None:
    data = folder / "data" / "voz_char"
    good = {"audio_path": str(data / "wavs" / "0.wav"), "text": "um dia de sol", "duration": 1.0}
    arrow(
        data / "raw.arrow",
        [
            good,
            good | {"duration": None},
            good | {"text": None},
            good | {"audio_path": None},
            good | {"audio_path": "x" * 5000},
        ],
    )
    assert len(training_sets.read_rows(data / "raw.arrow")) == 3
    assert discovery.explore(folder).prompts == []


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


def test_a_front_end_that_nothing_tells_is_not_stated(folder: Path, tmp_path: Path) -> None:
    data = folder / "data" / "voz_char"
    (data / "raw.arrow").unlink()
    data.rename(folder / "data" / "voz")
    report = discovery.report(folder, tmp_path / "case.yaml")
    (tmp_path / "case.yaml").write_text(
        (tmp_path / "case.yaml").read_text().replace("ref.wav", str(folder / "data/voz/wavs/0.wav"))
    )
    assert load_case(tmp_path / "case.yaml").training.front_end is None and report["front_end"] == "not known"


def test_a_case_in_its_training_folder_can_be_moved_with_it(folder: Path, tmp_path: Path) -> None:
    discovery.report(folder, folder / "case.yaml")
    moved = tmp_path.with_name(tmp_path.name + "-moved")
    tmp_path.rename(moved)
    case = load_case(moved / "case.yaml")
    named = [case.checkpoint, case.base, case.vocab, case.training.dataset, case.prompts[0].ref_audio]
    assert all(path.is_relative_to(moved.resolve()) for path in named)


def test_a_vocoder_in_the_folder_is_the_cases(folder: Path, tmp_path: Path) -> None:
    for name in ("other", "vocos"):
        shutil.copytree(paths.data_dir() / "specimen" / "vocos", folder / name)
    config = folder / "other" / "config.yaml"
    config.write_text(config.read_text().replace("vocos.heads.ISTFTHead", "os.system"))
    report = discovery.report(folder, folder / "case.yaml")
    assert load_case(folder / "case.yaml").vocoder.path == (folder / "vocos").resolve()
    assert any("other is left out" in item and "os.system" in item for item in report["missing"])
    assert any(item.startswith("vocoder: vocos") for item in report["assumed"])
    assert not any("downloaded" in item for item in report["assumed"])


def test_as_many_prompts_as_asked_for(folder: Path, tmp_path: Path) -> None:
    drawn = {n: discovery.report(folder, tmp_path / f"{n}.yaml", prompts=n)["prompts"] for n in (2, 3, 8)}
    assert drawn == {2: 2, 3: 3, 8: 3}  # six recordings
    assert len({prompt.gen_text for prompt in load_case(tmp_path / "2.yaml").prompts}) == 2
