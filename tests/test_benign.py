"""What real trainers write loads, every variant, with exactly the numbers that torch itself reads."""

import importlib.util
import io
import json
import pickletools
import zipfile
from pathlib import Path
from typing import Any

import pytest
import torch
from benign import BUILDERS, ONLY_FREELY
from hostile.other_formats import bare
from hostile.pickle_parts import imported, mapping, number, tensor, text, tuple_of, whole
from safetensors.torch import load_file, save_file
from toy_checkpoints import state

from f5lab import paths
from f5lab.checkpoints import open_checkpoint
from f5lab.errors import CheckpointError
from f5lab.mappings import load_tensors
from f5lab.untrusted import zip_audit
from f5lab.untrusted.pickles import REFUSED_OPCODES, opcode_name
from f5lab.untrusted.sources import Source


def assert_same(ours: Any, theirs: Any, where: str = "root") -> None:
    """Compare two trees of values bit by bit."""
    if isinstance(theirs, torch.Tensor):
        assert isinstance(ours, torch.Tensor), where
        assert (ours.dtype, ours.shape) == (theirs.dtype, theirs.shape), where
        assert ours.stride() == theirs.stride(), where
        raw = [t.detach().contiguous().reshape(-1).view(torch.uint8) for t in (ours, theirs)]
        assert torch.equal(*raw), where
    elif isinstance(theirs, dict):
        assert isinstance(ours, dict) and list(ours) == list(theirs), where
        for key in theirs:
            assert_same(ours[key], theirs[key], f"{where} / {key}")
    elif isinstance(theirs, (list, tuple)):
        assert len(ours) == len(theirs) and isinstance(ours, list) == isinstance(theirs, list), where
        for i, (a, b) in enumerate(zip(ours, theirs, strict=True)):
            assert_same(a, b, f"{where} / {i}")
    elif isinstance(theirs, torch.dtype):
        assert str(theirs) == f"torch.{ours.name}", where
    else:
        assert type(ours) is type(theirs) and repr(ours) == repr(theirs), where


def read_by_others(path: Path, freely: bool) -> Any:
    """Return what torch or safetensors read."""
    if path.suffix == ".safetensors":
        return load_file(path)
    if path.suffix == ".json":
        files = json.loads(path.read_text())["weight_map"]
        return {name: load_file(path.parent / file)[name] for name, file in files.items()}
    return torch.load(path, map_location="cpu", weights_only=not freely)


@pytest.mark.parametrize("name", BUILDERS)
def test_every_variant_loads_as_torch_loads_it(name: str, tmp_path: Path) -> None:
    path = BUILDERS[name](tmp_path)
    ours, theirs = load_tensors(path), read_by_others(path, name in ONLY_FREELY)
    assert_same(ours, theirs)


def test_there_are_enough_variants() -> None:
    assert len(BUILDERS) >= 12


SPECIMEN = ("specimen/finetune/model_last.pt", "specimen/base/model_last.pt", "specimen/vocos/pytorch_model.bin")


@pytest.mark.parametrize("name", SPECIMEN)
def test_the_specimen_loads_as_torch_loads_it(name: str) -> None:
    path = paths.data_dir() / name
    assert_same(load_tensors(path), torch.load(path, weights_only=True, map_location="cpu"))


def test_weights_inside_installed_packages_load_as_torch_loads_them() -> None:
    """Resemblyzer's file is of the old format, with storages at odd offsets."""
    folder = Path(importlib.util.find_spec("resemblyzer").origin).parent
    assert_same(
        load_tensors(folder / "pretrained.pt"),
        torch.load(folder / "pretrained.pt", weights_only=True, map_location="cpu"),
    )


def test_what_was_shared_stays_shared(tmp_path: Path) -> None:
    tensors = load_tensors(BUILDERS["shared_storages_and_views"](tmp_path))["model_state_dict"]
    tensors["transformer.whole"][1, 0] = 77
    assert tensors["transformer.rows"][0, 0] == 77 and tensors["transformer.turned"][0, 1] == 77
    groups = load_tensors(BUILDERS["one_list_twice"](tmp_path))["groups"]
    assert groups[0] is groups[1]


def test_a_storage_that_had_to_be_copied_is_copied_once(tmp_path: Path) -> None:
    base = torch.arange(6.0)
    torch.save([b"x" * 3, base, base[2:]], tmp_path / "x.pt", _use_new_zipfile_serialization=False)
    _, ours, part = load_tensors(tmp_path / "x.pt")
    ours[2] = 9
    assert part[0] == 9 and part.untyped_storage().data_ptr() == ours.untyped_storage().data_ptr()


def test_a_view_of_torch_before_0_4_lies_where_it_says(tmp_path: Path) -> None:
    view = tuple_of(text("9"), number(1), number(2))
    root = [text("storage"), imported("torch", "FloatStorage"), text("0"), text("cpu"), number(4)]
    one = tensor(tuple_of(*root, view) + b"Q", shape=(2,))
    (tmp_path / "x.pt").write_bytes(bare(whole(mapping(view=one, all=tensor(tuple_of(*root, b"N") + b"Q")))))
    ours = load_tensors(tmp_path / "x.pt")
    assert ours["view"].tolist() == [2, 3] and ours["all"].tolist() == [1, 2, 3, 4]
    assert_same(ours, torch.load(tmp_path / "x.pt", weights_only=True))


def test_writing_to_a_tensor_leaves_the_file_alone(tmp_path: Path) -> None:
    path = BUILDERS["trainer"](tmp_path)
    before = path.read_bytes()
    load_tensors(path)["model_state_dict"]["transformer.0.weight"].zero_()
    assert path.read_bytes() == before


def test_storages_at_odd_offsets_are_copied_so_that_elements_are_aligned(tmp_path: Path) -> None:
    for name in ("old_format", "zipped_again_by_python"):
        for loaded in load_tensors(BUILDERS[name](tmp_path))["model_state_dict"].values():
            assert loaded.data_ptr() % loaded.element_size() == 0


def test_old_and_sharded_files_open_as_checkpoints(tmp_path: Path) -> None:
    old = open_checkpoint(BUILDERS["old_format"](tmp_path))
    assert (old.layout, old.update) == ("raw-only", 3) and old.optimizer["state"][0]["exp_avg"].shape == (3, 4)
    tar = open_checkpoint(BUILDERS["tar_format"](tmp_path))
    assert tar.weights("raw")["transformer.a"].tolist() == [[0, 1, 2], [3, 4, 5]]
    sharded = open_checkpoint(BUILDERS["safetensors_sharded"](tmp_path))
    assert (
        sharded.layout == "safetensors"
        and set(sharded.weights("raw")) == set(state())
        and sharded.notes[0].startswith("Nothing")
    )


def test_a_shard_that_is_missing_or_another_is_named(tmp_path: Path) -> None:
    index = BUILDERS["safetensors_sharded"](tmp_path)
    save_file({"transformer.other": torch.ones(1)}, tmp_path / "model-00002-of-00002.safetensors")
    with pytest.raises(CheckpointError, match="rule shard-tensors"):
        open_checkpoint(index)
    (tmp_path / "model-00002-of-00002.safetensors").unlink()
    with pytest.raises(CheckpointError, match="shard .*model-00002-of-00002.safetensors does not exist"):
        open_checkpoint(index)


def test_the_archive_is_read_as_zipfile_reads_it(tmp_path: Path) -> None:
    path = BUILDERS["trainer"](tmp_path)
    with path.open("rb") as file, zipfile.ZipFile(path) as theirs:
        ours = zip_audit.read_archive(Source(file.fileno()))
        assert {f"x/{part}": (e.size, e.crc) for part, e in ours.items()} == {
            i.filename: (i.file_size, i.CRC) for i in theirs.infolist()
        }
        assert all(zip_audit.read_entry(Source(file.fileno()), e, 1 << 20) == theirs.read(e.name) for e in ours.values())


def test_opcode_names_are_cpythons() -> None:
    assert all(opcode_name(code) == name for code, name in REFUSED_OPCODES.items())
    known = {ord(op.code): op.name for op in pickletools.opcodes}
    assert {code: known[code] for code in REFUSED_OPCODES} == REFUSED_OPCODES
    assert len(list(pickletools.genops(io.BytesIO(b"\x80\x02N.")))) == 3
