"""Settings in F5-TTS's own terms are what its command line and its functions take."""

import inspect
import re
from pathlib import Path

import pytest
import yaml

from f5lab import models, upstream_terms

EVERY = {
    "arch": {"text_mask_padding": False, "pe_attn_head": 1}, "weights": "raw", "vocab": "a folder/vocab.txt", "precision": "fp32",
    "front_end": "raw", "mel_spec_type": "vocos", "nfe_step": 32, "cfg_strength": 2.0, "sway_sampling_coef": -1.0, "speed": 1.0,
    "fix_duration": 3.5,
}  # fmt: skip


def test_options_are_those_of_the_stock_command_line() -> None:
    from importlib.util import find_spec

    spec = find_spec("f5_tts.infer.infer_cli")
    assert spec is not None and spec.origin
    known = set(re.findall(r'"(--\w+)"', Path(spec.origin).read_text(encoding="utf-8")))
    said = upstream_terms.lines(EVERY)
    options = set(re.findall(r"--\w+", said))
    assert len(options) == 8 and options <= known
    assert "'a folder/vocab.txt'" in said


def test_the_config_lines_are_yaml_that_upstreams_config_has() -> None:
    block = upstream_terms.lines({"arch": EVERY["arch"], "mel_spec_type": "vocos"}).split("\n\n")[0]
    config = yaml.safe_load(block)
    assert config == {"model": {"arch": EVERY["arch"], "mel_spec": {"mel_spec_type": "vocos"}}}
    taken = inspect.signature(models.upstream().DiT.__init__).parameters
    assert set(config["model"]["arch"]) <= set(taken)


@pytest.mark.parametrize(
    ("name", "arguments"),
    [("load_model", {"vocab_file", "use_ema"}), ("load_checkpoint", {"dtype"}),
     ("infer_process", {"nfe_step", "cfg_strength", "sway_sampling_coef", "speed", "fix_duration"})],
)  # fmt: skip
def test_arguments_are_those_of_upstreams_functions(name: str, arguments: set[str]) -> None:
    said = re.search(rf"^{name}\((.*)\)$", upstream_terms.lines(EVERY), re.M)
    assert said is not None
    given = set(re.findall(r"(\w+)=", said[1]))
    assert given == arguments
    assert given <= set(inspect.signature(getattr(models.upstream(), name)).parameters)


def test_what_upstream_has_no_place_for_is_left_out() -> None:
    assert upstream_terms.lines({"ref_audio": "a recording at a normal level", "texts": "in small letters"}) == ""
    assert "use_ema" not in upstream_terms.lines({"arch": {"depth": 2}})
