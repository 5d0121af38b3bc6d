"""Plants in recordings, in their texts and durations, and in the vocoder."""

import random
import shutil
from collections.abc import Callable
from dataclasses import replace

import numpy as np
import torch

from f5lab.audio import Wave, load_wave, resample, save_flac
from f5lab.errors import FaultError
from f5lab.mappings import load_tensors
from f5lab.models import SHORT_BYTES
from f5lab.paths import atomic_path, existing_file
from f5lab.planted.planting import Bench
from f5lab.specs import Prompt

WRONG_RATES_HZ = (16000, 32000, 22050)
CLIPPED_S = (15.0, 18.0, 22.0)
GAINS = (0.002, 0.0, 0.0005)
STRETCHES = (0.45, None, 0.55)
LONGEST_PAUSE_S = 0.9


def rework_references(bench: Bench, work: Callable[[Wave], Wave]) -> None:
    """Give each reference a reworked copy; prompts that share one go on sharing it."""
    made = {
        path: save_flac(bench.file("clips/reference.flac"), work(load_wave(path)))
        for path in dict.fromkeys(prompt.ref_audio for prompt in bench.case.prompts)
    }
    bench.change(prompts=tuple(p.model_copy(update={"ref_audio": made[p.ref_audio]}) for p in bench.case.prompts))


def rework_recordings(bench: Bench, work: Callable[[Wave], Wave]) -> None:
    """Give each recording of the prompts a reworked copy: references, targets and what was spoken."""
    named = ("ref_audio", "gen_audio", "spoken_audio")
    files = dict.fromkeys(path for p in bench.case.prompts for name in named if (path := getattr(p, name)) is not None)
    made = {path: save_flac(bench.file("clips/recording.flac"), work(load_wave(path))) for path in files}
    bench.change(prompts=tuple(p.model_copy(update={name: made.get(getattr(p, name)) for name in named}) for p in bench.case.prompts))


def vocoder_wrong(bench: Bench) -> None:
    """The vocoder's matrices with noise of 0.6 or 0.9 of their spread, or its head with its rows in another order."""
    folder = bench.case.vocoder.path
    if folder is None or bench.case.vocoder.name != "vocos":
        raise bench.refuse("it names no local vocos folder", "give vocoder.path")
    weights = existing_file(folder / "pytorch_model.bin", FaultError, "vocoder weights")
    state, generator = load_tensors(weights, "vocoder weights"), bench.generator()
    for name, tensor in state.items():
        if bench.variant == 2 and name.startswith("head.out."):
            order = torch.randperm(len(tensor), generator=torch.Generator().manual_seed(2))
            state[name] = tensor[order]
        elif bench.variant < 2 and tensor.ndim > 1 and not name.startswith("feature_extractor."):
            noise = torch.randn(tensor.shape, generator=generator) * tensor.std()
            state[name] = tensor + (0.6, 0.9)[bench.variant] * noise
    target = bench.file("vocos/pytorch_model.bin").parent
    shutil.copyfile(folder / "config.yaml", target / "config.yaml")
    with atomic_path(target / "pytorch_model.bin") as temporary:
        torch.save(state, temporary)
    bench.change(vocoder=bench.case.vocoder.model_copy(update={"path": target}))


def sample_rate_mislabelled(bench: Bench) -> None:
    """The references' samples stored under a header that names another rate."""
    rate = WRONG_RATES_HZ[bench.variant]
    rework_references(bench, lambda wave: replace(wave, rate_hz=rate if wave.rate_hz != rate else 44100))


def ref_clipped(bench: Bench) -> None:
    """One reference of several clips in a row, longer than the 12 s that are kept, with the whole text."""
    recordings, seconds = bench.recordings(), CLIPPED_S[bench.variant]
    random.Random(bench.variant).shuffle(recordings)
    waves, texts, rate = [], [], load_wave(recordings[0][0]).rate_hz
    for path, text in recordings:
        if sum(map(len, waves)) >= seconds * rate:
            break
        waves.append(resample(load_wave(path), rate).samples)
        texts.append(text.strip())
    if sum(map(len, waves)) < seconds * rate:
        raise bench.refuse(f"its recordings do not last {seconds:.0f} s together")
    path = save_flac(bench.file("clips/reference.flac"), Wave(np.concatenate(waves), rate))
    said = " ".join(texts)
    bench.change(prompts=tuple(p.model_copy(update={"ref_audio": path, "ref_text": said}) for p in bench.case.prompts))


def ref_text_wrong(bench: Bench) -> None:
    """Every reference has the text of another recording: the next reference's, or any other's."""
    said = {prompt.ref_audio: prompt.ref_text for prompt in bench.case.prompts}
    others = sorted({text for _, text in bench.recordings()} - set(said.values()))
    if bench.variant == 0 and len(set(said.values())) > 1:
        texts = list(said.values())
        wrong = dict(zip(said, texts[1:] + texts[:1]))
    elif others:
        random.Random(bench.variant).shuffle(others)
        wrong = {path: others[i % len(others)] for i, path in enumerate(said)}
    else:
        raise bench.refuse("it has no second text to mistake for the reference's")
    bench.change(prompts=tuple(p.model_copy(update={"ref_text": wrong[p.ref_audio]}) for p in bench.case.prompts))


def ref_silent_or_quiet(bench: Bench) -> None:
    """The references at 0.002 or 0.0005 of their level, or silent."""
    gain = np.float32(GAINS[bench.variant])
    rework_references(bench, lambda wave: replace(wave, samples=wave.samples * gain))


def duration_byte_ratio(bench: Bench) -> None:
    """Slow or halting references, so that the byte rule gives the new text about twice its time."""
    rate = STRETCHES[bench.variant]
    rework_references(bench, lambda wave: _paused(wave) if rate is None else _stretched(wave, rate))


def _stretched(wave: Wave, rate: float) -> Wave:
    """Return the wave at another speed and the same pitch (phase vocoder, 1024 points, hop 256)."""
    import torchaudio

    window = torch.hann_window(1024)
    spectrum = torch.stft(torch.from_numpy(wave.samples), 1024, 256, window=window, return_complex=True)
    advance = torch.linspace(0, torch.pi * 256, len(spectrum))[:, None]
    slow = torchaudio.functional.phase_vocoder(spectrum, rate, advance)
    return replace(wave, samples=torch.istft(slow, 1024, 256, window=window).numpy())


def _paused(wave: Wave) -> Wave:
    """Return the wave with a pause of its own length (no more than silence trimming leaves) where it is quietest."""
    hop = wave.rate_hz // 100
    third = len(wave.samples) // 3
    levels = [np.square(wave.samples[i : i + hop]).mean() for i in range(third, 2 * third, hop)]
    cut = third + int(np.argmin(levels)) * hop
    pause = np.zeros(int(min(wave.seconds, LONGEST_PAUSE_S) * wave.rate_hz), np.float32)
    return replace(wave, samples=np.concatenate([wave.samples[:cut], pause, wave.samples[cut:]]))


def short_text_speed(bench: Bench) -> None:
    """Every prompt speaks a text of under ten bytes that there is a recording of; variants begin at another one."""
    short = [(path, text) for path, text in bench.recordings() if len(text.encode()) < SHORT_BYTES]
    if not short:
        raise bench.refuse(f"there is no recording of a text under {SHORT_BYTES} bytes")
    start = bench.variant % len(short)
    changed = [
        prompt.model_copy(update={"gen_text": text, "gen_audio": path})
        for prompt, (path, text) in zip(bench.case.prompts, short[start:] + short[:start])
    ]
    bench.change(prompts=tuple(changed))


def stale_text_cache(bench: Bench) -> None:
    """What was spoken is the text of the prompt before: the first is right, the first has the last's, or all reversed."""
    prompts = [prompt for prompt in bench.case.prompts if prompt.gen_audio]
    if len({prompt.gen_text for prompt in prompts}) < 2:
        raise bench.refuse("it needs two prompts with a real recording of their text", "give gen_audio")
    if bench.variant == 2:
        prompts.reverse()
    before = [prompts[-1] if bench.variant == 1 else prompts[0], *prompts[:-1]]
    bench.change(prompts=tuple(_speaking(p, b) for p, b in zip(prompts, before)))


def _speaking(prompt: Prompt, other: Prompt) -> Prompt:
    return prompt.model_copy(update={"spoken_audio": other.gen_audio})
