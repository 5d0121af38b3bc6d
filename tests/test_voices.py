"""Speaker similarity with controls: the two bundled voices are told apart, and too little says so."""

from pathlib import Path

import numpy as np
import pytest

from f5lab import load_case, paths, voices


def test_the_bundled_voices_are_told_apart() -> None:
    case = load_case(paths.default_case())
    controls = voices.measure_controls(case, limit=4)
    assert controls.voices == ("jf_alpha",)
    assert (len(controls.same), len(controls.other)) == (4, 4)
    assert controls.same.min() > controls.other.max()
    assert controls.separates and "tells speakers apart" in controls.sentence


def test_a_case_of_another_voice_is_measured_against_both(tmp_path: Path) -> None:
    case = load_case(paths.default_case())
    (tmp_path / "metadata.csv").write_text(
        "file|text|voice|kind|seconds\n" + "".join(f"{name}|x|{name[0]}|phrase|1\n" for name in ("a.ogg", "b.ogg", "gone.ogg"))
    )
    source = paths.data_dir() / voices.SPEECH
    for name, clip in (("a.ogg", "jf_alpha_phrase_0180.ogg"), ("b.ogg", "jf_alpha_phrase_0181.ogg")):
        (tmp_path / name).write_bytes((source / clip).read_bytes())
    alone = case.model_copy(update={"prompts": tuple(p.model_copy(update={"gen_audio": None}) for p in case.prompts)})
    controls = voices.measure_controls(alone, speech=tmp_path)
    assert controls.voices == ("a", "b") and len(controls.other) == 2 and not len(controls.same)
    assert not controls.separates
    assert controls.sentence == "No real recording of a prompt's text: there is no same-speaker control."


@pytest.mark.parametrize(
    ("same", "other", "told"),
    [([0.8, 0.82, 0.81], [0.5, 0.52, 0.51], "tells"), ([0.8, 0.4, 0.6], [0.5, 0.7, 0.6], "does not tell"), ([0.8] * 2, [0.5] * 9, "too few")],
)
def test_what_the_controls_say(same: list[float], other: list[float], told: str) -> None:
    controls = voices.VoiceControls(np.array(same), np.array(other), ("x",))
    assert told in controls.sentence
    assert controls.separates == (told == "tells")
