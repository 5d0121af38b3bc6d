"""The fixed bundle: same ids through the stock converter, a folder that upstream loads strictly, a command that speaks."""

import csv
import importlib.util
import json
import shutil
import stat
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from types import ModuleType, SimpleNamespace

import numpy as np
import pytest
import soundfile as sf
import torch
import yaml
from safetensors.torch import load_file

from f5lab import bundle_speech, bundles, diagnosis, models, paths, samplers, spellings
from f5lab.audio import load_wave
from f5lab.checkpoints import open_checkpoint
from f5lab.errors import BundleError, CaseError, ModelError
from f5lab.faults.examinations import Exam
from f5lab.planted import plants
from f5lab.specs import Case, Recipe, load_case
from f5lab.vocabs import Vocab, read_vocab
from f5lab.weights import architectures

SPEECH = paths.data_dir() / "speech" / "ptbr" / "metadata.csv"


@pytest.fixture(scope="module")
def case() -> Case:
    return load_case(paths.default_case())


@pytest.fixture(scope="module")
def vocab(case: Case) -> Vocab:
    return read_vocab(case.training_vocab)


@pytest.fixture(scope="module")
def texts() -> list[str]:
    with SPEECH.open(encoding="utf-8") as f:
        return [row["text"] for row in csv.DictReader(f, delimiter="|")]


@pytest.fixture(scope="module")
def right(case: Case) -> Recipe:
    return bundles.bundle_recipe(case)


@pytest.fixture(scope="module")
def bundle(case: Case, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("out") / "bundle"
    bundles.write_bundle(case, out, verify=False, device="cpu")
    return out


@pytest.fixture
def fake_cli(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Stand in for the stock command line: note how it was called, then speak the reference; quick, for what is ours."""
    folder = tmp_path / "bin"
    folder.mkdir()
    (folder / "python").symlink_to(Path(sys.executable).resolve())
    script = folder / "f5-tts_infer-cli"
    script.write_text(
        f"#!{folder / 'python'}\n"
        "import json, os, pathlib, shutil, sys\n"
        "here = pathlib.Path(__file__).parent\n"
        "(here / 'call.json').write_text(json.dumps([os.getcwd(), *sys.argv[1:]]))\n"
        "if (here / 'fail').exists(): sys.exit('no such model')\n"
        "given = dict(zip(sys.argv[1:], sys.argv[2:]))\n"
        "source = here / 'silence.wav' if (here / 'silence.wav').exists() else given['--ref_audio']\n"
        "shutil.copy(source, pathlib.Path(given['--output_dir']) / given['--output_file'])\n",
        encoding="utf-8",
    )
    script.chmod(0o755)
    monkeypatch.setattr(bundle_speech, "sys", SimpleNamespace(executable=str(folder / "python")))
    return folder


def test_references_end_as_upstream_ends_them(case: Case, monkeypatch: pytest.MonkeyPatch) -> None:
    heard: list[list[str]] = []
    utils = models.upstream().utils_infer

    class Stop(Exception):
        pass

    def listen(texts: list[str], **_: object) -> None:
        heard.append(texts)
        raise Stop

    monkeypatch.setattr(utils, "convert_char_to_pinyin", listen)
    for ref_text in ("A doutora.", "A doutora", "Oi. ", "Oi!", "é", "你好。"):
        with models.quiet():
            audio, text = utils.preprocess_ref_audio_text(
                str(case.prompts[0].ref_audio), ref_text, show_info=lambda *_: None
            )
            with pytest.raises(Stop):
                utils.infer_process(
                    audio, text, "Um gato preto.", None, None, show_info=lambda *_: None, progress=None, device="cpu"
                )
        assert heard[-1] == [spellings.ended(ref_text) + "Um gato preto."]


# the folder


def test_weights_stay_the_cases_own_and_load_strictly_by_upstream(bundle: Path, case: Case) -> None:
    written = load_file(bundle / "model.safetensors")
    own = open_checkpoint(case.checkpoint).weights(case.inference.weights)
    assert set(written) == {f"ema_model.{name}" for name in own}
    assert all(
        torch.equal(written[f"ema_model.{k}"], v) and written[f"ema_model.{k}"].dtype == v.dtype for k, v in own.items()
    )
    assert written["ema_model.transformer.rotary_embed.inv_freq"].dtype == torch.float32
    model = yaml.safe_load((bundle / "model.yaml").read_text(encoding="utf-8"))["model"]
    cfm = models.build_cfm(
        model["backbone"], model["arch"], bundle / "vocab.txt", mel_spec_type=model["mel_spec"]["mel_spec_type"]
    )
    with models.quiet():
        loaded = models.upstream().load_checkpoint(cfm, str(bundle / "model.safetensors"), "cpu", use_ema=True)
    assert all(torch.equal(loaded.state_dict()[k], v) for k, v in own.items())


def test_raw_weights_are_written_where_the_ema_is_at_fault(right: Recipe, tmp_path: Path) -> None:
    repaired = load_case(paths.data_dir() / "cases" / "ptbr-repaired" / "case.yaml")
    lagging = load_case(plants.plant(["ema-frozen"], repaired, tmp_path / "p"))
    assert bundles.bundle_recipe(lagging).weights == "raw" and right.weights == "ema"


@pytest.mark.parametrize("damage", ["another base", "NaN"])
def test_rotary_frequencies_are_written_anew(damage: str, tmp_path: Path) -> None:
    healthy = load_case(paths.data_dir() / "cases" / "ptbr-repaired" / "case.yaml")
    altered = load_case(plants.plant(["inv-freq-altered"], healthy, tmp_path / "p"))
    if damage == "NaN":
        loaded = torch.load(altered.checkpoint, weights_only=True)
        loaded["ema_model_state_dict"]["ema_model." + architectures.INV_FREQ][3] = float("nan")
        torch.save(loaded, altered.checkpoint)
    facts = bundles.write_bundle(altered, tmp_path / "b", verify=False, device="cpu")
    written = load_file(tmp_path / "b" / "model.safetensors")["ema_model." + architectures.INV_FREQ]
    assert written.dtype == torch.float32
    torch.testing.assert_close(written, open_checkpoint(healthy.checkpoint).weights("ema")[architectures.INV_FREQ])
    says = "not finite" if damage == "NaN" else "altered: "
    assert [note for note in facts["notes"] if "rotary frequencies were written anew" in note and says in note]
    assert not [note for note in facts["notes"] if note.startswith("Not repaired")]


def test_causes_that_a_bundle_leaves_are_named_in_it(bundle: Path, tmp_path: Path) -> None:
    healthy = load_case(paths.data_dir() / "cases" / "ptbr-repaired" / "case.yaml")
    quiet = load_case(plants.plant(["ref-silent-or-quiet"], healthy, tmp_path / "p"))
    exam = Exam(quiet, device="cpu", asr="")
    (note,) = bundles.not_repaired(exam, diagnosis.examine(exam), exam.truth.recipe)
    assert note.startswith("Not repaired in here: ") and "(ref-silent-or-quiet)" in note
    assert "Not repaired" not in (bundle / "README.md").read_text(encoding="utf-8")


def test_model_file_spells_out_every_option_of_the_constructor(bundle: Path) -> None:
    model = yaml.safe_load((bundle / "model.yaml").read_text(encoding="utf-8"))["model"]
    assert set(models.constructor_defaults("DiT")) - {"mel_dim", "text_num_embeds"} <= set(model["arch"])
    assert model["arch"]["text_mask_padding"] is False and model["arch"]["pe_attn_head"] == 1
    assert model["mel_spec"] == {**models.MEL, "mel_spec_type": "vocos"}


def test_vocab_keeps_its_rows_and_the_speech_its_ids(bundle: Path, vocab: Vocab, texts: list[str]) -> None:
    written = read_vocab(bundle / "vocab.txt")
    letters = letters_of(bundle)
    assert written.size == vocab.size and written.lookup("ã") == vocab.lookup("ã") and "a" not in written.char_map
    convert = models.front_end("pinyin")
    for text in texts:
        assert spellings.ids(written.char_map, convert(letters.spell(text))) == spellings.ids(vocab.char_map, text)


def letters_of(bundle: Path) -> ModuleType:
    spec = importlib.util.spec_from_file_location("letters", bundle / "letters.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_corrected_speed_gives_the_duration_of_the_plain_text(bundle: Path, case: Case, texts: list[str]) -> None:
    letters, frames, ref = letters_of(bundle), 88, case.prompts[0].ref_text

    def added(ref_bytes: int, gen_bytes: int, speed: float) -> int:  # infer_batch_process, _infer_basic
        return int(frames / ref_bytes * gen_bytes / (0.3 if gen_bytes < 10 else speed))

    for text in texts:
        plain = added(len(spellings.ended(ref).encode()), len(text.encode()), 1.0)
        spelled = added(
            len(spellings.ended(letters.spell(ref)).encode()), len(letters.spell(text).encode()), letters.speed(text)
        )
        assert abs(plain - spelled) <= 1, text


def test_reference_and_vocoder_are_in_place(bundle: Path, case: Case) -> None:
    info, wave = sf.info(bundle / "reference.wav"), load_wave(bundle / "reference.wav")
    assert (info.samplerate, info.channels, info.subtype) == (24000, 1, "PCM_16")
    source = load_wave(case.prompts[0].ref_audio)
    assert np.abs(wave.samples - source.samples).max() <= 1 / 32768
    assert (bundle / "reference.txt").read_text(encoding="utf-8").strip() == case.prompts[0].ref_text
    vocoder = (bundle / "checkpoints" / bundles.VOCODER_FOLDERS["vocos"]).resolve()
    for name in ("config.yaml", "pytorch_model.bin"):
        assert (vocoder / name).read_bytes() == (case.vocoder.path / name).read_bytes()


def test_manifest_has_a_digest_of_every_file_and_no_place_of_this_machine(bundle: Path) -> None:
    facts = json.loads((bundle / "bundle.json").read_text(encoding="utf-8"))
    found = {
        f.relative_to(bundle).as_posix(): paths.sha256_file(f)
        for f in bundle.rglob("*")
        if f.is_file() and f.name != "bundle.json"
    }
    assert facts["files"] == found and facts["verified"] is False and facts["mean_cer"] is None
    assert facts["recipe"]["weights"] == "ema" and facts["versions"]["f5-tts"]
    assert {row["what"] for row in facts["changes"]} == {"`text_mask_padding`", "`pe_attn_head`", "front end"}
    for file in bundle.rglob("*"):
        if file.suffix in {".json", ".sh", ".py", ".md", ".yaml", ".txt"}:
            text = file.read_text(encoding="utf-8")
            assert str(paths.project_root()) not in text and str(bundle.parent) not in text, file.name
    for name in ("speak.py", "letters.py"):
        compile((bundle / name).read_text(encoding="utf-8"), name, "exec")
    assert "nobody has heard" in (bundle / "README.md").read_text(encoding="utf-8")


def test_a_model_trained_on_pinyin_keeps_its_vocab_file(case: Case, right: Recipe, tmp_path: Path) -> None:
    recipe = right.but(front_end="pinyin")
    facts = bundles.write_bundle(case, tmp_path / "b", recipe=recipe, verify=False, device="cpu")
    assert (tmp_path / "b" / "vocab.txt").read_bytes() == case.training_vocab.read_bytes()
    assert facts["stand_ins"] == {} and not (tmp_path / "b" / "letters.py").exists()
    assert "letters" not in (tmp_path / "b" / "run.sh").read_text(encoding="utf-8")


def test_dots_in_a_row_are_noted_not_refused(case: Case, right: Recipe, tmp_path: Path) -> None:
    dotted = case.prompts[1].model_copy(update={"gen_text": "Contou... uma história."})
    two = case.model_copy(update={"prompts": (case.prompts[0], dotted)})
    facts = bundles.write_bundle(two, tmp_path / "b", recipe=right, verify=False, device="cpu")
    assert any(note.endswith("raw text has not: p02.") for note in facts["notes"])


def test_without_a_vocoder_of_its_own_the_download_is_left_to_upstream(
    case: Case, right: Recipe, tmp_path: Path
) -> None:
    recipe = right.but(vocoder={"name": "vocos"})
    facts = bundles.write_bundle(case, tmp_path / "b", recipe=recipe, verify=False, device="cpu")
    assert not (tmp_path / "b" / "checkpoints").exists() and "downloads vocos" in " ".join(facts["notes"])
    assert "--load_vocoder_from_local" not in (tmp_path / "b" / "run.sh").read_text(encoding="utf-8")


# refusals


def test_nothing_is_written_over(case: Case, tmp_path: Path) -> None:
    (tmp_path / "mine.txt").write_text("mine")
    for out in (tmp_path, tmp_path / "mine.txt"):
        with pytest.raises(BundleError, match="exists"):
            bundles.write_bundle(case, out, verify=False, device="cpu")
    assert [f.name for f in tmp_path.iterdir()] == ["mine.txt"] and (tmp_path / "mine.txt").read_text() == "mine"


def test_a_failure_leaves_nothing_behind(case: Case, right: Recipe, tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="does not fit"):
        bundles.write_bundle(
            case, tmp_path / "b", recipe=right.but(arch={**right.arch, "depth": 5}), verify=False, device="cpu"
        )
    assert list(tmp_path.iterdir()) == []


def test_what_the_stock_command_line_cannot_do_is_refused(case: Case, right: Recipe, tmp_path: Path) -> None:
    with pytest.raises(BundleError, match="no byte front end"):
        bundles.write_bundle(case, tmp_path / "b", recipe=right.but(front_end="byte"), verify=False, device="cpu")
    with pytest.raises(BundleError, match="bigvgan mels"):
        bundles.write_bundle(
            case, tmp_path / "b", recipe=right.but(mel_spec_type="bigvgan"), verify=False, device="cpu"
        )
    mute = case.model_copy(update={"prompts": (case.prompts[0].model_copy(update={"ref_text": " "}),)})
    with pytest.raises(CaseError, match="no ref_text"):
        bundles.write_bundle(mute, tmp_path / "b", recipe=right, verify=False, device="cpu")


# speaking


def test_run_sh_without_a_text_says_so(bundle: Path, tmp_path: Path) -> None:
    with pytest.raises(BundleError, match="no text to speak"):
        bundle_speech.run_bundle(bundle, "  ", tmp_path / "out.wav")


def test_run_sh_gives_every_flag_and_runs_where_the_vocoder_is_found(
    bundle: Path, fake_cli: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert (bundle / "run.sh").stat().st_mode & stat.S_IXUSR
    bundle_speech.run_bundle(bundle, "-família", Path("out.wav"), "--nfe_step", "8")
    where, *argv = json.loads((fake_cli / "call.json").read_text())
    assert (Path(where) / "../checkpoints/vocos-mel-24khz/config.yaml").is_file()
    letters = letters_of(bundle)
    assert f"--gen_text={letters.spell('-família')}" in argv and f"--ref_text={letters.spell('A doutora.')}" in argv
    given = {a.split("=")[0] for a in argv if a.startswith("--")}
    assert given >= {
        "--model_cfg",
        "--ckpt_file",
        "--vocab_file",
        "--vocoder_name",
        "--load_vocoder_from_local",
        "--ref_audio",
        "--output_dir",
    }
    assert (
        given >= {"--output_file", "--nfe_step", "--cfg_strength", "--sway_sampling_coef", "--speed"}
        and "--remove_silence" not in given
    )
    assert argv[-2:] == ["--nfe_step", "8"] and "--cfg_strength=2.0" in argv and "--sway_sampling_coef=-1.0" in argv
    assert (tmp_path / "out.wav").is_file()
    with pytest.raises(BundleError, match="exists"):
        bundle_speech.run_bundle(bundle, "Oi", Path("out.wav"))


def test_a_command_line_that_fails_or_is_silent_is_an_error(
    bundle: Path, case: Case, right: Recipe, fake_cli: Path, tmp_path: Path
) -> None:
    sf.write(fake_cli / "silence.wav", np.zeros(24000, np.float32), 24000)
    with pytest.raises(BundleError, match="silence"):
        bundle_speech.run_bundle(bundle, "Oi.", tmp_path / "a.wav")
    (fake_cli / "fail").touch()
    with pytest.raises(BundleError, match="exit 1: no such model"):
        bundles.write_bundle(case, tmp_path / "b", recipe=right, device="cpu")
    assert not (tmp_path / "b").exists() and not list(tmp_path.glob(".b-*"))


def test_what_was_heard_is_in_the_manifest_and_the_readme(
    case: Case, right: Recipe, fake_cli: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def ears(given: Case, *, device: str) -> Callable[[list[object]], list[SimpleNamespace]]:
        assert given is case
        return lambda waves: [SimpleNamespace(text="Comprou um livro.") for _ in waves]

    monkeypatch.setattr(bundle_speech.oracles, "transcriber", ears)
    facts = bundles.write_bundle(case, tmp_path / "b", recipe=right, device="cpu")
    assert facts == json.loads((tmp_path / "b" / "bundle.json").read_text(encoding="utf-8"))
    assert [c["prompt"] for c in facts["checks"]] == ["p01", "p03", "p05", "p07"]  # those of the bundle's reference
    assert facts["checks"][0]["cer"] == 0 and facts["mean_cer"] == pytest.approx(
        np.mean([c["cer"] for c in facts["checks"]])
    )
    assert all(c["file"] in facts["files"] for c in facts["checks"])
    assert "| Comprou um livro. | Comprou um livro. | 0.00 |" in (tmp_path / "b" / "README.md").read_text(
        encoding="utf-8"
    )


@pytest.mark.parametrize("text", ["Contou uma história.", "Oi."])
def test_spelled_text_through_stock_code_is_the_raw_recipe_sample_for_sample(
    bundle: Path, case: Case, right: Recipe, text: str
) -> None:
    letters, recipe = letters_of(bundle), right.but(nfe_step=4)
    prompt = case.prompts[0].model_copy(update={"ref_audio": bundle / "reference.wav", "gen_text": text})
    studio = samplers.Studio("cpu")
    wanted = studio.speak(recipe, prompt, seed=3).wave
    stock = models.build_cfm(recipe.backbone, recipe.arch, bundle / "vocab.txt")
    stock = models.load_weights(stock, bundle / "model.safetensors", "ema")
    up = models.upstream()
    with models.quiet():
        audio, ref = up.preprocess_ref_audio_text(
            str(prompt.ref_audio), letters.spell(prompt.ref_text), show_info=lambda *_: None
        )
        torch.manual_seed(3)
        spoken, _, _ = up.infer_process(
            audio, ref, letters.spell(text), stock, studio.vocoder(recipe), nfe_step=4, speed=letters.speed(text),
            show_info=lambda *_: None, progress=None, device="cpu",
        )  # fmt: skip
    assert np.array_equal(spoken, wanted.samples)


def test_the_stock_command_line_speaks_and_leaves_nothing_behind(
    bundle: Path, case: Case, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    copy, passing = tmp_path / "moved away", tmp_path / "passing"
    passing.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(passing))
    shutil.copytree(bundle, copy)
    bundle_speech.run_bundle(copy, case.prompts[0].gen_text, tmp_path / "out.wav", "--nfe_step", "8", "--device", "cpu")
    wave = load_wave(tmp_path / "out.wav")
    assert wave.rate_hz == 24000 and 0.5 < wave.seconds < 3 and wave.rms > 0.01
    assert not list(passing.iterdir())


def test_a_shifted_vocab_is_repaired_into_a_file(case: Case, tmp_path: Path) -> None:
    """Nothing is said about training and the vocab given is off by one: the bundle's vocab has every symbol in its row."""
    lines = case.vocab.read_text(encoding="utf-8").splitlines()
    wrong = tmp_path / "vocab.txt"
    wrong.write_text("".join(f"{line}\n" for line in [*lines[1:], "§"]), encoding="utf-8")
    odd = case.model_copy(update={
        "vocab": wrong, "base": None, "base_vocab": None, "prompts": case.prompts[:3],
        "training": case.training.model_copy(update={"vocab": None}),
        "inference": case.inference.model_copy(update={"vocab": wrong}),
    })  # fmt: skip
    recipe = bundles.bundle_recipe(odd)
    given, right, repaired = (read_vocab(path) for path in (wrong, case.vocab, recipe.vocab))
    letters = {c for p in case.prompts for c in p.ref_text + p.gen_text}
    assert [repaired.lookup(c) for c in letters] == [right.lookup(c) for c in letters]
    assert [given.lookup(c) for c in letters] != [right.lookup(c) for c in letters]
    assert repaired.size == right.size


def test_people_are_told_how_to_speak_with_it_and_not_every_digest(bundle: Path) -> None:
    facts = json.loads((bundle / "bundle.json").read_text(encoding="utf-8"))
    told = bundles.summary(facts, "Bom dia.", Path("my folder"))
    assert told["speak"] == "'my folder/run.sh' 'Bom dia.'" and told["verified"] == "no, it was not spoken"
    heard = facts | {"checks": [{"text": "Bom dia.", "heard": "Bom dia.", "cer": 0.0}], "verified": True, "mean_cer": 0.0}
    assert bundles.summary(heard, "Bom dia.", Path("x"))["verified"] == "yes: spoken by the stock command line, its mean CER is at most 0.5"
    assert [row["what"] for row in told["changes"]] == ["pe_attn_head", "text_mask_padding", "front end"]
    assert not {"files", "sources", "recipe"} & set(told)


def test_a_clip_that_nobody_understands_is_named_where_the_others_are_understood() -> None:
    clips = [bundle_speech.Check(f"p0{i}", "Oi.", f"spoken/p0{i}.wav", "oi", cer, 1.0) for i, cer in enumerate((0.0, 0.9, 0.1, None))]
    (said,) = bundle_speech.misheard(clips)
    assert "1 of 4 clips not: p01 (CER 0.90)" in said
    assert bundle_speech.is_understood(clips) and not bundle_speech.is_understood(clips[3:]) and not bundle_speech.is_understood([])
