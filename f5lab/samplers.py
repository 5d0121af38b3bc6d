"""The paths by which an F5-TTS checkpoint is made to speak, each through upstream's own code.

``trainer`` replays what ``Trainer.train`` does when it logs a sample (``model/trainer.py``), ``inference`` is
``preprocess_ref_audio_text`` + ``infer_process`` (``infer/utils_infer.py``), ``accelerate`` the trainer's path with the model
prepared and unwrapped by Accelerate. Tests hold the first equal to the wave that a real Trainer logs and the second to
``load_model`` + ``infer_process``, under one seed.
"""

import contextlib
import logging
import time
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from f5lab import bars, graphs, models, usage
from f5lab.audio import Wave, load_wave, resample
from f5lab.errors import AudioError, CaseError, ModelError
from f5lab.specs import Arch, Case, FrontEnd, Prompt, Recipe, Vocoder

logger = logging.getLogger(__name__)

MIN_RMS = 1e-4


@dataclass(frozen=True)
class Sample:
    """One synthesis.

    Attributes
    ----------
    wave : Wave
        What was spoken, without the prompt.
    mel : np.ndarray [shape=(n, 100), dtype=float32]
        The generated log-mel, natural log.
    text : str
        What should be heard.
    prompt_id, recipe : str
    seed : int
    seconds : float
        Wall-clock time of the synthesis.
    """

    wave: Wave
    mel: np.ndarray
    text: str
    prompt_id: str
    recipe: str
    seed: int
    seconds: float

    @property
    def label(self) -> str:
        """Caption for a player or a figure."""
        return f"{self.recipe} · {self.prompt_id} · seed {self.seed}"


def _arch(case: Case, own: Arch | None, other: Arch | None, side: str) -> Arch:
    for candidate in (own, other):
        if candidate is not None and not candidate.is_empty:
            return candidate
    raise CaseError(
        f"{case.path or 'case'}: no architecture under training or inference, so no {side} recipe",
        expected="arch: {preset: F5TTS_v1_Base} or the options", next_step="see `f5lab inspect` for what the shapes say",
    )  # fmt: skip


def trainer_recipe(case: Case) -> Recipe:
    """Return what the trainer's own logged sample does, as far as the case says; the rest is taken from inference.

    Raises
    ------
    CaseError
        The case says nothing about the architecture.
    """
    backbone, arch = _arch(case, case.training.arch, case.inference.arch, "trainer").resolve()
    return Recipe(
        name="trainer", path="trainer", checkpoint=case.checkpoint, weights="raw", backbone=backbone, arch=arch,
        vocab=case.training_vocab, front_end=case.training.front_end or "raw",
        mel_spec_type=case.training.mel_spec_type or case.inference.mel_spec_type, vocoder=case.vocoder, precision="fp32",
    )  # fmt: skip


def inference_recipe(case: Case) -> Recipe:
    """Return what ``load_model`` + ``infer_process`` does with the case's inference settings.

    Raises
    ------
    CaseError
        The case says nothing about the architecture.
    """
    block = case.inference
    backbone, arch = _arch(case, block.arch, case.training.arch, "inference").resolve()
    return Recipe(
        name="inference", path="inference", checkpoint=case.checkpoint, weights=block.weights, backbone=backbone,
        arch=arch, vocab=case.inference_vocab, front_end=block.front_end, mel_spec_type=block.mel_spec_type,
        vocoder=case.vocoder, precision=block.precision, nfe_step=block.nfe_step, cfg_strength=block.cfg_strength,
        sway_sampling_coef=block.sway_sampling_coef, speed=block.speed, fix_duration=block.fix_duration,
    )  # fmt: skip


def repaired_recipe(case: Case) -> Recipe:
    """Return the inference path with architecture, vocab, front end and mel type as trained."""
    trained = trainer_recipe(case)
    shared = {k: getattr(trained, k) for k in ("backbone", "arch", "vocab", "front_end", "mel_spec_type")}
    return inference_recipe(case).but(name="inference, options as trained", **shared)


class Studio:
    """Speaks recipes, keeping the models and vocoders it has loaded.

    Parameters
    ----------
    device : str
        "auto", "cuda", "mps" or "cpu".
    replay : bool
        On CUDA, let `batches` record a forward pass once and replay it (`graphs`); nothing else changes.
    """

    def __init__(self, device: str = "auto", *, replay: bool = True) -> None:
        self.device = models.pick_device(device)
        self.replay = replay and self.device.startswith("cuda")
        self._models: dict[str, torch.nn.Module] = {}
        self._replayers: dict[torch.nn.Module, graphs.Replayer] = {}
        self._vocoders: dict[Vocoder, torch.nn.Module] = {}

    def model(self, recipe: Recipe) -> torch.nn.Module:
        """Return the recipe's CFM in eval mode; loaded once for all recipes that share its fields."""
        fields = (
            "path",
            "checkpoint",
            "weights",
            "backbone",
            "arch",
            "vocab",
            "front_end",
            "mel_spec_type",
            "precision",
        )
        key = repr(
            [
                (name, getattr(recipe, name))
                for name in fields
                if not (name == "front_end" and recipe.front_end != "byte")
            ]
        )
        if key not in self._models:
            model = models.build_cfm(
                recipe.backbone,
                recipe.arch,
                recipe.vocab,
                mel_spec_type=recipe.mel_spec_type,
                front_end=recipe.front_end,
            )
            precision = "fp32" if recipe.mel_spec_type == "bigvgan" else recipe.precision
            model = models.load_weights(
                model, recipe.checkpoint, recipe.weights, precision=precision, device=self.device
            )
            self._models[key] = prepared(model, self.device) if recipe.path == "accelerate" else model
        return self._models[key]

    def quick(self, model: torch.nn.Module) -> contextlib.AbstractContextManager[Any]:
        """Return a context in which a model's forward passes are replayed where that is wanted.

        For one thread at a time, as `batches` samples: ``infer_process`` runs the chunks of a long text in threads side by side, and
        recorded passes share their buffers, so `speak` launches every pass.
        """
        if not self.replay:
            return contextlib.nullcontext()
        return self._replayers.setdefault(model, graphs.Replayer(model)).active()

    def vocoder(self, recipe: Recipe) -> torch.nn.Module:
        """Return the recipe's vocoder."""
        if recipe.vocoder not in self._vocoders:
            self._vocoders[recipe.vocoder] = models.load_vocoder(recipe.vocoder, self.device)
        return self._vocoders[recipe.vocoder]

    def speak(self, recipe: Recipe, prompt: Prompt, seed: int) -> Sample:
        """Synthesise one prompt.

        The trainer's path re-speaks a recording after itself: ``gen_audio`` with ``gen_text`` where the prompt has
        one, else the reference; the inference path speaks ``gen_text`` after the reference.

        Raises
        ------
        AudioError
            The recording is missing, unreadable or silent.
        ModelError
            The model cannot be loaded, or gives values that are not finite.
        """
        start = time.perf_counter()
        with usage.spend(usage.SYNTHESIS):
            if recipe.path == "inference":
                wave, mel, text = self._infer(recipe, prompt, seed)
            else:
                clip, text = training_item(prompt)
                wave, mel = self._log_sample(recipe, clip, text, seed)
        return Sample(wave, mel, text, prompt.id, recipe.name, seed, time.perf_counter() - start)

    def speak_all(self, recipe: Recipe, prompts: Sequence[Prompt], seeds: Iterable[int]) -> list[Sample]:
        """Synthesise every prompt with every seed, prompts outermost."""
        seeds = list(seeds)
        pairs = [(prompt, seed) for prompt in prompts for seed in seeds]
        return [self.speak(recipe, *pair) for pair in bars.follow(pairs, f"speaking: {recipe.name}", "clip")]

    def _log_sample(self, recipe: Recipe, clip: Path, text: str, seed: int) -> tuple[Wave, np.ndarray]:
        """Follow ``Trainer.train`` (model/trainer.py 1.1.22, ``if self.log_samples``) line by line."""
        model = self.model(recipe)
        mel = torch.from_numpy(models.mel_spectrogram(audible(clip, rate_hz=models.RATE_HZ), recipe.mel_spec_type)).to(
            self.device
        )
        tokens = text if recipe.front_end in ("raw", "byte") else models.front_end(recipe.front_end)(text)
        doubled = [tokens + ([" "] if isinstance(tokens, list) else " ") + tokens]
        torch.manual_seed(seed)
        with torch.inference_mode(), times_that_increase(recipe):
            generated, _ = model.sample(
                cond=mel[None], text=doubled, duration=2 * len(mel), steps=recipe.nfe_step,
                cfg_strength=recipe.cfg_strength, sway_sampling_coef=recipe.sway_sampling_coef,
            )  # fmt: skip
        made = generated.to(torch.float32)[0, len(mel) :].cpu().numpy()
        return models.decode_mel(self.vocoder(recipe), made, recipe.vocoder.name), made

    def _infer(self, recipe: Recipe, prompt: Prompt, seed: int, model: Any = None) -> tuple[Wave, np.ndarray, str]:
        """Call upstream's ``preprocess_ref_audio_text`` and ``infer_process``; `model` stands in for the recipe's."""
        audio, text = inference_prompt(prompt)
        own, vocoder = (self.model(recipe) if model is None else None), self.vocoder(recipe)
        with spoken_front_end(recipe.front_end):  # whatever is built draws random numbers: before the seed is set
            torch.manual_seed(seed)
            try:
                samples, rate, spectrogram = run_inference(
                    recipe, audio, text, prompt, own or model, vocoder, self.device
                )
            finally:
                if own is not None:
                    own.transformer.clear_cache()
        if samples is None or not len(samples):
            raise ModelError(
                f"infer_process returned no audio for prompt {prompt.id}", next_step="check gen_text and fix_duration"
            )
        if not np.isfinite(samples).all():
            raise ModelError(
                f"infer_process returned values that are not finite for prompt {prompt.id}",
                next_step="try precision: fp32",
            )
        return Wave(np.asarray(samples, np.float32), rate), np.ascontiguousarray(spectrogram.T), prompt.gen_text

    def finish(self, recipe: Recipe, prompt: Prompt, seed: int, sampled: Any, seconds: float) -> Sample:
        """Return the sample that ``infer_process`` makes of a mel; `sampled` has a ``sample`` method that returns it."""
        start = time.perf_counter()
        wave, mel, text = self._infer(recipe, prompt, seed, sampled)
        return Sample(wave, mel, text, prompt.id, recipe.name, seed, seconds + time.perf_counter() - start)


def inference_prompt(prompt: Prompt) -> tuple[str, str]:
    """Return the reference as upstream's ``preprocess_ref_audio_text`` prepares it: a WAV file and its text.

    Raises
    ------
    CaseError
        The prompt has no text for its reference.
    AudioError
        The reference is missing, unreadable or silent.
    """
    if not prompt.ref_text.strip():
        raise CaseError(
            f"prompt {prompt.id} has no ref_text",
            next_step="write down what the reference says: upstream would guess it",
        )
    audible(prompt.ref_audio)
    return models.prepare_reference(prompt.ref_audio, prompt.ref_text)


def run_inference(
    recipe: Recipe, audio: str, text: str, prompt: Prompt, model: Any, vocoder: Any, device: str
) -> tuple[np.ndarray | None, int, np.ndarray | None]:
    """Call upstream's ``infer_process`` with a recipe's settings: samples, rate and spectrogram [shape=(d, n)]."""
    with models.quiet(), times_that_increase(recipe):
        return models.upstream().infer_process(
            audio, text, prompt.gen_text, model, vocoder, mel_spec_type=recipe.vocoder.name, show_info=_mute, progress=None,
            nfe_step=recipe.nfe_step, cfg_strength=recipe.cfg_strength, sway_sampling_coef=recipe.sway_sampling_coef,
            speed=recipe.speed, fix_duration=recipe.fix_duration, device=device,
        )  # fmt: skip


@contextlib.contextmanager
def times_that_increase(recipe: Recipe) -> Iterator[None]:
    """Name what torchdiffeq's bare assertion means: in bfloat16 neighbouring sampling times round to the same value."""
    try:
        yield
    except AssertionError as error:
        if "strictly increasing" not in str(error):
            raise
        raise ModelError(
            f"upstream cannot sample {recipe.nfe_step} steps in {recipe.precision}: with sway sampling the first times round to "
            f"equal values ({error})", next_step="precision: fp32 or fp16",
        ) from error


def training_item(prompt: Prompt) -> tuple[Path, str]:
    """Return the recording and text that the trainer's path re-speaks."""
    return (prompt.gen_audio, prompt.gen_text) if prompt.gen_audio else (prompt.ref_audio, prompt.ref_text)


def audible(path: Path, rate_hz: int | None = None) -> Wave:
    """Load a recording that holds sound.

    Raises
    ------
    AudioError
        Missing, unreadable, empty or silent: ``infer_batch_process`` would divide by its RMS.
    """
    wave = load_wave(path)
    if wave.rms < MIN_RMS:
        raise AudioError(
            f"{path} is silent (RMS {wave.rms:.1g})",
            expected=f"speech, RMS at least {MIN_RMS}",
            next_step="use another recording",
        )
    return resample(wave, rate_hz) if rate_hz else wave


@contextlib.contextmanager
def spoken_front_end(name: FrontEnd) -> Iterator[None]:
    """Let ``infer_process`` split texts by another front end than the pinyin one that it always calls."""
    module = models.upstream().utils_infer
    stock = module.convert_char_to_pinyin
    if name == "raw":
        module.convert_char_to_pinyin = lambda texts, **_: [list(text) for text in texts]
    elif name == "byte":
        module.convert_char_to_pinyin = lambda texts, **_: list(texts)
    try:
        yield
    finally:
        module.convert_char_to_pinyin = stock


def prepared(model: torch.nn.Module, device: str) -> torch.nn.Module:
    """Return a model after Accelerate's ``prepare`` and ``unwrap_model``, in eval mode."""
    from accelerate import Accelerator

    accelerator = Accelerator(cpu=device == "cpu")
    return accelerator.unwrap_model(accelerator.prepare(model)).eval()


def _mute(*_: object) -> None:
    return None
