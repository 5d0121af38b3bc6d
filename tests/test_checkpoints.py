"""Opening checkpoints: every layout that users have, and files that are none."""

import os
import pickle
import zipfile
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from toy_checkpoints import ema_state, save_trainer, scheduler, state

from f5lab.checkpoints import open_checkpoint
from f5lab.errors import CheckpointError


def test_trainer_file(tmp_path: Path) -> None:
    raw, ema = state(0), state(1)
    path = save_trainer(tmp_path / "model_100.pt", raw, ema_state(ema), update=100, scheduler_state_dict=scheduler(100))
    opened = open_checkpoint(path)
    assert (opened.layout, opened.slots, opened.labelled) == ("trainer", ("raw", "ema"), True)
    assert (opened.update, opened.ema_step, opened.initted, opened.legacy_step) == (100, 12_100, True, None)
    assert set(opened.weights("ema")) == set(opened.weights("raw")) == set(raw)
    assert all(torch.equal(opened.weights("ema")[name], ema[name]) for name in ema)
    assert opened.scheduler is not None and opened.scheduler["last_epoch"] == 100
    assert opened.notes == ()
    sizes = {section.name: section.parameters for section in opened.sections}
    assert sizes["model_state_dict"] == sum(t.numel() for t in raw.values())


def test_ema_only_base_says_what_it_lacks(tmp_path: Path) -> None:
    torch.save({"ema_model_state_dict": ema_state(state())}, tmp_path / "base.pt")
    opened = open_checkpoint(tmp_path / "base.pt")
    assert (opened.layout, opened.slots, opened.update) == ("ema-only", ("ema",), None)
    with pytest.raises(CheckpointError, match=r"no raw weights, only ema; ask for ema \(upstream: use_ema=True\)"):
        opened.weights("raw")


def test_raw_weights_pruned_into_the_ema_slot_are_noticed(tmp_path: Path) -> None:
    torch.save({"ema_model_state_dict": state()}, tmp_path / "pruned.pt")
    opened = open_checkpoint(tmp_path / "pruned.pt")
    assert opened.slots == ("ema",) and opened.ema_step is None
    assert any("prune_checkpoint(save_ema=False)" in note for note in opened.notes)


@pytest.mark.parametrize("prefixed", [True, False])
def test_safetensors(tmp_path: Path, prefixed: bool) -> None:
    weights = state()
    save_file(ema_state(weights) if prefixed else weights, tmp_path / "model.safetensors")
    opened = open_checkpoint(tmp_path / "model.safetensors")
    assert opened.labelled is prefixed
    assert opened.slots == (("ema",) if prefixed else ("raw",))
    assert opened.ema_step == (12_100 if prefixed else None)
    assert torch.equal(opened.weights("ema")["transformer.proj_out.bias"], weights["transformer.proj_out.bias"])


def test_container_is_told_by_content_and_the_wrong_suffix_noted(tmp_path: Path) -> None:
    save_file(state(), tmp_path / "model.pt")
    assert any("upstream goes by the name" in note for note in open_checkpoint(tmp_path / "model.pt").notes)


@pytest.mark.parametrize(
    ("key", "found"),
    [("module.{}", "module."), ("_orig_mod.{}", "_orig_mod."), ("ema_model.module.{}", "module."), ("ema.{}", "ema.")],
)
def test_wrapper_prefixes_are_stripped_and_named(tmp_path: Path, key: str, found: str) -> None:
    weights = {key.format(name): tensor for name, tensor in state().items()}
    torch.save({"ema_model_state_dict": weights}, tmp_path / "wrapped.pt")
    opened = open_checkpoint(tmp_path / "wrapped.pt")
    assert set(opened.weights("ema")) == set(state())
    assert found in opened.prefixes["ema"]
    assert any("strict load fails" in note for note in opened.notes)


def test_compiled_submodules_keep_their_names(tmp_path: Path) -> None:
    weights = {name.replace("transformer.", "transformer._orig_mod."): t for name, t in state().items()}
    torch.save({"model_state_dict": weights}, tmp_path / "compiled.pt")
    assert set(open_checkpoint(tmp_path / "compiled.pt").weights("raw")) == set(state())


def test_old_mel_buffers_are_dropped_as_upstream_drops_them(tmp_path: Path) -> None:
    weights = ema_state(state() | {"mel_spec.mel_stft.mel_scale.fb": torch.zeros(2)})
    torch.save({"ema_model_state_dict": weights}, tmp_path / "old.pt")
    assert set(open_checkpoint(tmp_path / "old.pt").weights("ema")) == set(state())


def test_legacy_step(tmp_path: Path) -> None:
    save_trainer(tmp_path / "model_200000.pt", state(), ema_state(state()), step=200_000)
    opened = open_checkpoint(tmp_path / "model_200000.pt")
    assert (opened.update, opened.legacy_step) == (None, 200_000)


def hidden_zip(path: Path) -> None:
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("readme.txt", "no model")


def cut(path: Path) -> None:
    torch.save({"model_state_dict": state()}, path)
    path.write_bytes(path.read_bytes()[:4000])


def cut_safetensors(path: Path) -> None:
    save_file(state(), path)
    path.write_bytes(path.read_bytes()[:-500])


def code(path: Path) -> None:
    torch.save({"model_state_dict": state(), "run": os.getcwd}, path)


NOT_CHECKPOINTS = {
    "random": (lambda p: p.write_bytes(bytes(range(255, 0, -1)) * 20), "unknown format"),
    "text": (lambda p: p.write_text("update,loss\n1,0.7\n"), "is a text file, not a checkpoint"),
    "page": (lambda p: p.write_text("<!DOCTYPE html><html>404"), "is a web page"),
    "lfs": (lambda p: p.write_text("version https://git-lfs.github.com/spec/v1\n"), "git lfs pull"),
    "empty": (lambda p: p.write_bytes(b""), "is an empty file"),
    "zip": (hidden_zip, "damaged, cut short or no torch file"),
    "cut": (cut, "damaged, cut short or no torch file"),
    "cut-safetensors": (cut_safetensors, "no readable .safetensors file"),
    "bare-pickle": (lambda p: p.write_bytes(pickle.dumps({"a": 1}, protocol=4)), "a pickle, but no torch file"),
    "code": (code, "Python objects besides tensors"),
    "list": (lambda p: torch.save([torch.zeros(2)], p), "holds list"),
    "other-model": (lambda p: torch.save({"state_dict": {}, "epoch": 3}, p), "none of F5-TTS's.*: epoch, state_dict"),
    "names": (lambda p: torch.save({"model_state_dict": {"fc.bias": torch.zeros(1)}}, p), "start with transformer"),
    "no-tensors": (lambda p: torch.save({"model_state_dict": state() | {"x": "y"}}, p), r"no weights: x \(str\)"),
    "slot-of-tensor": (lambda p: torch.save({"model_state_dict": torch.zeros(1)}, p), "raw weights are Tensor"),
}


@pytest.mark.parametrize("name", NOT_CHECKPOINTS)
def test_what_is_no_checkpoint_is_refused_in_one_line(tmp_path: Path, name: str) -> None:
    make, says = NOT_CHECKPOINTS[name]
    path = tmp_path / ("x.safetensors" if name == "cut-safetensors" else "x.pt")
    make(path)
    with pytest.raises(CheckpointError, match=says) as caught:
        open_checkpoint(path)
    assert "\n" not in str(caught.value)


def test_missing_file_and_folder(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="does not exist"):
        open_checkpoint(tmp_path / "none.pt")
    with pytest.raises(CheckpointError, match="is a folder"):
        open_checkpoint(tmp_path)


def test_a_view_larger_than_its_storage_is_refused(tmp_path: Path) -> None:
    huge = torch.zeros(1).as_strided((1000, 1000), (0, 0))
    torch.save({"model_state_dict": state() | {"transformer.huge": huge}}, tmp_path / "bomb.pt")
    with pytest.raises(CheckpointError, match="more bytes than are stored"):
        open_checkpoint(tmp_path / "bomb.pt")
