"""The two sampler paths against upstream itself: what a real Trainer logs, what load_model + infer_process gives."""

from pathlib import Path

import numpy as np
import pytest
import torch

from f5lab import audio, models, paths, samplers
from f5lab.errors import AudioError, CaseError, ModelError
from f5lab.specs import Prompt, Recipe, Vocoder, load_case

ARCH = {
    "dim": 64,
    "depth": 2,
    "heads": 1,
    "ff_mult": 2,
    "text_dim": 32,
    "conv_layers": 2,
    "text_mask_padding": False,
    "pe_attn_head": 1,
    "dropout": 0.0,
}
SEED = 1234
DATA = paths.data_dir()
VOCAB, VOCOS = DATA / "specimen" / "vocab.txt", DATA / "specimen" / "vocos"
CLIP, TEXT = DATA / "speech" / "ptbr" / "jm_kumo_phrase_0012.ogg", "Comprou um livro."
REF, REF_TEXT = DATA / "speech" / "ptbr" / "jm_kumo_phrase_0005.ogg", "A doutora."


def loud_model(kind: type | None = None) -> torch.nn.Module:
    """Return a tiny CFM whose zero-initialised output layers speak."""
    up = models.upstream()
    char_map, size = models.read_vocab_map(VOCAB)
    torch.manual_seed(0)
    model = (kind or up.CFM)(
        transformer=up.DiT(**ARCH, text_num_embeds=size, mel_dim=100),
        mel_spec_kwargs={**models.MEL, "mel_spec_type": "vocos"},
        vocab_char_map=char_map,
    )
    for name, parameter in model.named_parameters():
        if "proj_out" in name or "norm_out" in name or "attn_norm" in name:
            torch.nn.init.normal_(parameter, std=0.05)
    return model


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Let upstream's own Trainer take one update and log its sample, seeded where the Trainer does not seed."""
    up, folder = models.upstream(), tmp_path_factory.mktemp("ckpts")

    class Seeded(up.CFM):
        def sample(self, *args: object, **kwargs: object) -> object:
            torch.manual_seed(SEED)
            return super().sample(*args, **kwargs)

    row = {"audio_path": str(CLIP), "text": TEXT, "duration": audio.load_wave(CLIP).seconds}
    with models.quiet():
        trainer = up.Trainer(
            loud_model(Seeded), 1, 1e-3, num_warmup_updates=1, save_per_updates=1, checkpoint_path=str(folder), batch_size_per_gpu=1,
            batch_size_type="sample", logger=None, log_samples=True, is_local_vocoder=True, local_vocoder_path=str(VOCOS),
            accelerate_kwargs={"cpu": True},
        )  # fmt: skip
        trainer.train(up.CustomDataset([row, row], [row["duration"]] * 2, **models.MEL), num_workers=1)
    return folder


def recipe(checkpoint: Path, **changes: object) -> Recipe:
    base = Recipe(
        name="trainer", path="trainer", checkpoint=checkpoint, weights="raw", backbone="DiT", arch=ARCH, vocab=VOCAB,
        front_end="raw", mel_spec_type="vocos", vocoder=Vocoder(path=VOCOS), precision="fp32",
    )  # fmt: skip
    return base.but(**changes)


PROMPT = Prompt(id="p", ref_audio=REF, ref_text=REF_TEXT, gen_text=TEXT, gen_audio=CLIP)


def test_trainer_path_equals_what_the_trainer_logs(trained: Path) -> None:
    logged = audio.load_wave(trained / "samples" / "update_2_gen.wav")
    spoken = samplers.Studio("cpu").speak(recipe(trained / "model_2.pt"), PROMPT, SEED)
    assert len(logged.samples) == len(spoken.wave.samples)
    assert logged.rms > 1e-3
    # the Trainer writes 16-bit samples
    assert np.abs(logged.samples - np.clip(spoken.wave.samples, -1, 1)).max() <= 1.01 / 32768
    other = samplers.Studio("cpu").speak(recipe(trained / "model_2.pt"), PROMPT, SEED + 1)
    assert np.abs(logged.samples - other.wave.samples).max() > 100 / 32768


@pytest.mark.parametrize(("weights", "front_end"), [("ema", "pinyin"), ("raw", "pinyin")])
def test_inference_path_equals_upstream(trained: Path, weights: str, front_end: str) -> None:
    up, checkpoint = models.upstream(), trained / "model_2.pt"
    chosen = recipe(
        checkpoint,
        path="inference",
        name="inference",
        weights=weights,
        front_end=front_end,
        precision="auto",
        nfe_step=8,
    )
    spoken = samplers.Studio("cpu").speak(chosen, PROMPT, SEED)
    with models.quiet():
        model = up.load_model(
            up.DiT, ARCH, str(checkpoint), vocab_file=str(VOCAB), use_ema=weights == "ema", device="cpu"
        )
        vocoder = up.load_vocoder("vocos", True, str(VOCOS), "cpu")
        reference, text = up.preprocess_ref_audio_text(str(REF), REF_TEXT, show_info=lambda *_: None)
        torch.manual_seed(SEED)
        wave, rate, _ = up.infer_process(
            reference, text, TEXT, model, vocoder, show_info=lambda *_: None, progress=None, nfe_step=8, device="cpu"
        )
    assert rate == spoken.wave.rate_hz
    np.testing.assert_array_equal(wave, spoken.wave.samples)


def test_accelerate_changes_nothing(trained: Path) -> None:
    studio = samplers.Studio("cpu")
    plain = studio.speak(recipe(trained / "model_2.pt", nfe_step=4), PROMPT, 0)
    prepared = studio.speak(recipe(trained / "model_2.pt", nfe_step=4, path="accelerate", name="accelerate"), PROMPT, 0)
    np.testing.assert_array_equal(plain.wave.samples, prepared.wave.samples)


def test_front_end_is_put_back_and_reaches_the_model(trained: Path) -> None:
    stock = models.upstream().utils_infer.convert_char_to_pinyin
    split = PROMPT.model_copy(update={"gen_text": "Contou uma história."})
    waves = {}
    for name in ("raw", "pinyin"):
        chosen = recipe(trained / "model_2.pt", path="inference", name=name, front_end=name, nfe_step=4)
        waves[name] = samplers.Studio("cpu").speak(chosen, split, 0).wave.samples
    assert models.upstream().utils_infer.convert_char_to_pinyin is stock
    assert len(waves["raw"]) == len(waves["pinyin"]) and np.abs(waves["raw"] - waves["pinyin"]).max() > 0


def test_default_case_recipes_show_the_lost_options() -> None:
    case = load_case(paths.default_case())
    trained_with, run_with = samplers.trainer_recipe(case), samplers.inference_recipe(case)
    assert trained_with.arch["pe_attn_head"] == 1 and "pe_attn_head" not in run_with.arch
    assert samplers.repaired_recipe(case).arch == trained_with.arch
    assert models.full_options("DiT", run_with.arch)["text_mask_padding"] is True


def test_bad_input_is_named(trained: Path, tmp_path: Path) -> None:
    studio = samplers.Studio("cpu")
    silent = audio.save_flac(tmp_path / "silent.flac", audio.Wave(np.zeros(24000, np.float32), 24000))
    chosen = recipe(trained / "model_2.pt", path="inference", name="inference")
    with pytest.raises(AudioError, match="is silent"):
        studio.speak(chosen, PROMPT.model_copy(update={"ref_audio": silent}), 0)
    with pytest.raises(CaseError, match="has no ref_text"):
        studio.speak(chosen, PROMPT.model_copy(update={"ref_text": " "}), 0)
    with pytest.raises(ModelError, match="does not fit the model"):
        studio.speak(recipe(trained / "model_2.pt", arch={**ARCH, "text_dim": 16}), PROMPT, 0)
    with pytest.raises(ModelError, match="cannot be built"):
        studio.speak(recipe(trained / "model_2.pt", arch={**ARCH, "no_such_option": 1}), PROMPT, 0)
    with pytest.raises(ModelError, match="not available"):
        samplers.Studio("tpu")


def test_prepared_references_go_with_the_process(tmp_path: Path) -> None:
    import os
    import subprocess
    import sys

    code = f"from f5lab import models; print(models.prepare_reference({str(REF)!r}, 'Oi'), os.path.getsize(models.prepare_reference({str(REF)!r}, 'Oi')[0]))"
    command = [sys.executable, "-W", "ignore", "-c", f"import os; {code}"]
    done = subprocess.run(
        command, env={**os.environ, "TMPDIR": str(tmp_path)}, capture_output=True, text=True, check=True
    )
    assert f"'{tmp_path}/" in done.stdout and "'Oi. '" in done.stdout and int(done.stdout.split()[-1]) > 1000
    assert not list(tmp_path.iterdir())


def test_importing_upstream_leaves_matplotlib_alone() -> None:
    import subprocess
    import sys

    code = "import matplotlib; matplotlib.use('svg'); from f5lab import models; models.upstream(); print(matplotlib.get_backend())"
    done = subprocess.run([sys.executable, "-W", "ignore", "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.split()[-1] == "svg"
