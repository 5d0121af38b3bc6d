"""A vocoder's folder from a stranger: its configuration builds vocos' own classes or nothing."""

import shutil
from pathlib import Path

import pytest
import torch
import yaml

from f5lab import models, paths
from f5lab.errors import CheckpointError, ModelError
from f5lab.specs import Vocoder
from f5lab.vocoder_folders import check_vocoder_folder


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    shutil.copytree(paths.data_dir() / "specimen" / "vocos", tmp_path / "vocos")
    return tmp_path / "vocos"


def change(folder: Path, part: str, **section: object) -> None:
    config = yaml.safe_load((folder / "config.yaml").read_text())
    config[part] |= section
    (folder / "config.yaml").write_text(yaml.safe_dump(config))


def test_the_specimens_vocoder_passes_and_speaks(folder: Path) -> None:
    check_vocoder_folder(folder)
    wave = models.load_vocoder(Vocoder(path=folder)).decode(torch.zeros(1, 100, 20))
    assert wave.shape[0] == 1 and wave.shape[1] >= 19 * 256 and bool(wave.isfinite().all())


@pytest.mark.parametrize("part", ["feature_extractor", "backbone", "head"])
def test_a_class_of_somewhere_else_is_refused_before_it_is_called(folder: Path, part: str) -> None:
    canary = folder / "canary"
    change(folder, part, class_path="subprocess.check_call", init_args={"args": ["touch", str(canary)]})
    with pytest.raises(ModelError, match=rf"{part}: class_path 'subprocess.check_call'"):
        models.load_vocoder(Vocoder(path=folder))
    assert not canary.exists()
    import vocos

    vocos.Vocos.from_hparams(str(folder / "config.yaml"))  # upstream's own loader calls it: the check is needed
    assert canary.exists()


@pytest.mark.parametrize(
    ("section", "says"),
    [
        ({"init_args": {"dim": 1 << 40}}, "init_args dim"),
        ({"init_args": {"dim": {"a": 1}}}, "init_args dim"),
        ({"init_args": ["a"]}, "no mapping"),
        ({"class_path": ["vocos.models.VocosBackbone"]}, "class_path"),
        ({"more": 1}, "no class_path with init_args"),
    ],
)
def test_odd_arguments_are_refused(folder: Path, section: dict, says: str) -> None:
    change(folder, "backbone", **section)
    with pytest.raises(ModelError, match=f"backbone: .*{says}"):
        check_vocoder_folder(folder)


def test_a_config_that_is_none_and_weights_that_are_refused(folder: Path) -> None:
    (folder / "pytorch_model.bin").write_bytes(b"\x80\x04cos\nsystem\n.")
    with pytest.raises(CheckpointError, match="rule file-magic"):
        check_vocoder_folder(folder)
    (folder / "config.yaml").write_text("a: [")
    with pytest.raises(ModelError, match="is not YAML"):
        check_vocoder_folder(folder)
    (folder / "config.yaml").unlink()
    with pytest.raises(ModelError, match="does not exist; pass a folder"):
        check_vocoder_folder(folder)
