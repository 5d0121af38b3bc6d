"""Detectors for recordings and vocoder: level, clipped or wrong references, mislabelled rate, old text spoken again."""

from dataclasses import replace
from pathlib import Path

import librosa
import numpy as np
import soundfile as sf
from pydub import AudioSegment
from pydub.silence import split_on_silence

from f5lab import cycles, metrics, models
from f5lab.asr import WINDOW_S
from f5lab.audio import Wave, band_limit_hz, load_wave, resample
from f5lab.errors import LabError
from f5lab.faults.examinations import Exam, Suspicion, cause, refuted, span, unknown
from f5lab.faults.prompt_timing import QUIET_RMS
from f5lab.models import LONGEST_REFERENCE_S, RATE_HZ
from f5lab.probes import Hypothesis, Item, Probe, text_gate

WRONG_TEXT, OWN_TEXT, DOUBTED_TEXT = 0.6, 0.34, 0.2
"""CER from which a recording says something else, up to which it says the text, and from which the probe is asked as well."""
MOST_TRIED = 8
"""References that the probe is asked about, those first that are heard least as their texts."""
AS_HEARD = 0.1
"""A reference's text is wrong when what is heard in it lowers the loss by this share."""
RATES_HZ = (8000, 11025, 12000, 16000, 22050, RATE_HZ, 32000, 44100, 48000)
SLOWEST, FASTEST = 0.4, 2.6
"""Range of the true over the stated rate that is tried."""
ALONE = 0.25
"""Share by which another rate has to lower the loss of one recording before it is judged by itself, after all were judged together."""
RATE_GAIN = 0.1
"""A rate is taken to be mislabelled when another lowers the loss of the reference by this share and the text matters there."""
WIDE_HZ = 10_000
"""Recordings whose band ends below this fit better at any rate that fills it, and a vocoder of full-band speech fails on them."""
HARMLESS = 0.1
"""A vocoder that costs the recordings less CER than this is not named."""
NOISY_DB = -35.0
"""Recordings whose quietest twentieth is louder than this, against their loudest, have no pauses or lie in noise."""
VOCODER_EXCESS = 2.2
"""A vocoder is wrong when its mel error is this many times that of Griffin-Lim."""


def detect_level(exam: Exam) -> list[Suspicion]:
    """Measure the level of every reference."""
    levels = {str(p.ref_audio): load_wave(p.ref_audio).rms for p in exam.case.prompts}
    quiet = {name: level for name, level in levels.items() if level < QUIET_RMS}
    low = min(levels.values())
    if not quiet:
        return refuted(
            "ref-silent-or-quiet", f"The quietest reference has RMS {low:.3f}.", value=low, unit="RMS", n=len(levels)
        )
    claim = f"{len(quiet)} of {len(levels)} references are below RMS {QUIET_RMS} (lowest {low:.2g}): raised with their noise, or divided by 0."
    repair = "a recording at a normal level"
    if cancelled := sum(_cancels(Path(name)) for name in quiet):
        claim = f"{claim} The channels of {cancelled} cancel each other: upstream averages them."
        repair = "one channel of it" if cancelled == len(quiet) else f"{repair}; where channels cancel each other, one of them"
    return [cause("ref-silent-or-quiet", claim, 0.97, len(quiet) / len(levels), value=low, unit="RMS", n=len(levels),
                  settings={"ref_audio": repair}, subjects=frozenset(quiet))]  # fmt: skip


def _cancels(path: Path) -> bool:
    """Return whether the channels of a recording are loud and their mean is not."""
    samples, _ = sf.read(path, dtype="float32", always_2d=True)
    return samples.shape[1] > 1 and float(np.sqrt((samples**2).mean())) >= QUIET_RMS


def detect_clipped(exam: Exam) -> list[Suspicion]:
    """Look for references that upstream cuts while it keeps their whole text."""
    seconds = {str(p.ref_audio): _without_silence_s(load_wave(p.ref_audio)) for p in exam.case.prompts}
    long = {name: value for name, value in seconds.items() if value > LONGEST_REFERENCE_S}
    longest = max(seconds.values())
    if not long:
        return refuted(
            "ref-clipped", f"The longest reference lasts {longest:.1f} s.", value=longest, unit="s", n=len(seconds)
        )
    claim = f"{len(long)} of {len(seconds)} references last more than {LONGEST_REFERENCE_S:.0f} s (up to {longest:.1f} s): audio is cut, text is not."
    return [cause("ref-clipped", claim, 0.95, len(long) / len(seconds), value=longest, unit="s", n=len(seconds),
                  settings={"ref_audio": "below 12 s, with exactly its own text"}, subjects=frozenset(long))]  # fmt: skip


def _without_silence_s(wave: Wave) -> float:
    """Return how long a recording is without the silence that upstream drops before it cuts.

    References
    ----------
    ``preprocess_ref_audio_text`` in ``f5_tts/infer/utils_infer.py``: pydub's ``split_on_silence`` of 1 s below -50 dBFS.
    """
    if wave.seconds <= LONGEST_REFERENCE_S or wave.rms == 0:
        return wave.seconds
    samples = (np.clip(wave.samples, -1, 1) * 32767).astype(np.int16)
    sound = AudioSegment(samples.tobytes(), frame_rate=round(wave.rate_hz), sample_width=2, channels=1)
    parts = split_on_silence(sound, min_silence_len=1000, silence_thresh=-50, keep_silence=1000, seek_step=10)
    return sum(len(part) for part in parts) / 1000 or wave.seconds


def detect_reference_text(exam: Exam) -> list[Suspicion]:
    """Transcribe every reference and compare it with the text that is claimed for it."""
    items = [item for item in exam.references if item.wave.seconds <= WINDOW_S]
    if not items:
        return unknown("ref-text-wrong", f"No reference of at most {WINDOW_S:.0f} s has a text.", "such a reference with its ref_text")
    longer = len(exam.references) - len(items)
    limit = f"{longer} of {longer + len(items)} references last more than {WINDOW_S:.0f} s and were not heard." if longer else ""
    try:
        heard = [t.text for t in exam.transcriber([item.wave for item in items])]
    except LabError as error:
        return unknown("ref-text-wrong", f"The references were not heard: {error}", error.next_step or "a recogniser")
    rates = [metrics.cer(item.text, text).value for item, text in zip(items, heard)]
    judged = [(item, text, rate) for item, text, rate in zip(items, heard, rates) if rate is not None]
    if not judged:
        return unknown("ref-text-wrong", "No reference text has letters to compare.", "ref_text in words")
    mean = float(np.mean([rate for _, _, rate in judged]))
    doubted = [row for row in judged if row[2] >= DOUBTED_TEXT]
    doubted.sort(key=lambda row: -row[2])  # those that are asked about are the same in any order of the prompts
    known = _explained_as_heard(exam, [(item, text) for item, text, _ in doubted[:MOST_TRIED]])
    surely = known is not None and any(known)
    wrong = [row for k, row in enumerate(doubted) if row[2] >= WRONG_TEXT or (known is not None and k < len(known) and known[k])]
    if not wrong:
        says = "are heard a little otherwise than their texts, which explain them as well" if doubted else "are heard as their texts"
        return refuted("ref-text-wrong", f"References {says} (mean CER {mean:.2f}).", value=mean, unit="CER", n=len(judged), limitation=limit)
    item, text, rate = doubted[known.index(True)] if known is not None and surely else wrong[0]
    more = {"value": rate, "unit": "CER", "n": len(judged), "limitation": limit}
    claim = f"{len(wrong)} of {len(judged)} references say other words: “{item.text}” is heard as “{text}” (CER {rate:.2f})"
    if known is None:
        confidence, claim = 0.85, f"{claim}, unless the recording is unclear."
    elif not surely:
        asked = "" if len(doubted) <= MOST_TRIED else f" (asked of {MOST_TRIED} of {len(doubted)})"
        says = f"{claim}, but with that text the weights explain the recording no better{asked}: it may be unclear."
        return unknown("ref-text-wrong", says, "a clear recording of each reference")
    else:
        confidence, claim = 0.93, f"{claim}, and with that text the weights explain the recording better."
    return [cause("ref-text-wrong", claim, confidence, 0.7 * len(wrong) / len(judged), **more, settings={"ref_text": "what the reference says"},
                  subjects=frozenset(item.id for item, _, _ in wrong))]  # fmt: skip


def _explained_as_heard(exam: Exam, rows: list[tuple[Item, str]]) -> list[bool] | None:
    """Return for each reference whether what is heard in it explains it better than its text; None where the probe cannot tell.

    To a recording that is only noisy the text hardly matters; one that says other words fits its text worse than none.
    """
    if exam.truth.problem:
        return None
    recipe, known = exam.truth.recipe, []
    for item, text in rows:
        probe = Probe([item], device=exam.device)
        probe.bench = exam.probe.bench
        try:
            gain = probe.compare(Hypothesis(recipe), Hypothesis(recipe, text=lambda _, heard=text: heard or " "))
        except LabError:
            return None
        known.append(gain.mean <= -AS_HEARD and gain.high < 0)
    return known


def detect_rate_label(exam: Exam) -> list[Suspicion]:
    """Score each reference as if its header lied about the rate: the true rate explains the recording best."""
    items = [
        item for item in exam.references if item.wave.seconds <= LONGEST_REFERENCE_S and item.wave.rms >= QUIET_RMS
    ]
    if exam.truth.problem:
        return unknown("sample-rate-mislabelled", exam.truth.problem, exam.truth.needs)
    if not items:
        return unknown(
            "sample-rate-mislabelled", "No reference to try.", "a reference with its text, below 12 s and not silent"
        )
    found = []
    for stated in sorted({item.wave.rate_hz for item in items}):
        found += _rate_label(exam, [item for item in items if item.wave.rate_hz == stated], stated)
    return _worst_rate(found, len(items)) or found[:1]


def _worst_rate(found: list[Suspicion], total: int) -> list[Suspicion]:
    """Return what separate judgements of some references come to: all that were named as one cause, else the first unknown."""
    named = [item for item in found if item.outcome == "cause"]
    if not named:
        return [item for item in found if item.outcome == "unknown"][:1]
    subjects = frozenset().union(*(item.subjects for item in named))
    if len(subjects) == total:
        return [named[0]] if len(named) == 1 else [replace(named[0], subjects=subjects, settings=_headers(named))]
    claim = f"{len(subjects)} of {total} references state another rate than they have. {named[0].claim}"
    return [replace(named[0], claim=claim, subjects=subjects, settings=_headers(named))]


def _headers(named: list[Suspicion]) -> dict[str, str]:
    """Return which header each recording should have."""
    return {"ref_audio": "; ".join(f"{Path(name).name}: {item.settings['ref_audio']}" for item in named for name in sorted(item.subjects))}


def _rate_label(exam: Exam, items: list[Item], stated: int) -> list[Suspicion]:
    """Judge the references that state one rate, all together; where no other rate explains all of them, each by itself.

    Returns
    -------
    list of Suspicion
        One for all of them, or one for each that another rate explains.
    """
    probe = Probe(items, draws=exam.draws, device=exam.device)
    probe.bench = exam.probe.bench
    recipe = exam.truth.recipe
    stays = Hypothesis(recipe)
    try:
        tried = {r: probe.compare(stays, Hypothesis(recipe, rate_ratio=r)) for r in rate_ratios(stated)}
        ratio, gain = min(tried.items(), key=lambda pair: pair[1].mean)
        fits = gain.mean <= -RATE_GAIN and gain.high < 0
        reads = fits and text_gate(probe, Hypothesis(recipe, rate_ratio=ratio)).passed
        lowest = np.min([probe.loss(Hypothesis(recipe, rate_ratio=r)).by_item for r in tried], axis=0) / probe.loss(stays).by_item
    except LabError as error:
        return unknown("sample-rate-mislabelled", str(error), "weights whose output is finite")
    if not fits and len(items) > 1:
        alone = [found for item, low in zip(items, lowest, strict=True) if low < 1 - ALONE for found in _rate_label(exam, [item], stated)]
        if told := [item for item in alone if item.outcome != "refuted"]:
            return told
    if not fits:
        return refuted("sample-rate-mislabelled", f"No other rate than the stated one explains the references (best {100 * gain.mean:+.0f} %).",
                       value=gain.mean, unit="loss at the best other rate", interval=span(gain), n=gain.n)  # fmt: skip
    claim = f"References fit {ratio:.2f} times their stated rate of {stated} Hz: the loss falls by {-100 * gain.mean:.0f} %."
    if not reads:
        band = max((band_limit_hz(item.wave) or 0.0) for item in items)
        return unknown("sample-rate-mislabelled", f"{claim} But their text explains nothing at that rate: bands (here up to {band:.0f} Hz) do that.",
                       f"a reference with speech up to {WIDE_HZ} Hz")  # fmt: skip
    return [cause("sample-rate-mislabelled", f"{claim[:-1]}, and there the text explains them.", 0.93, 0.8, value=ratio,
                  unit="times the stated rate", n=gain.n, settings={"ref_audio": f"a header of {round(stated * ratio)} Hz"},
                  subjects=frozenset(item.id for item in items))]  # fmt: skip


def rate_ratios(stated_hz: int) -> list[float]:
    """Return the true over the stated rate for every usual true rate; a file at 24 kHz may have been resampled by a wrong one."""
    ratios = {rate / stated_hz for rate in RATES_HZ}
    if stated_hz == RATE_HZ:
        ratios |= {RATE_HZ / rate for rate in RATES_HZ}
    return sorted(r for r in ratios - {1.0} if SLOWEST < r < FASTEST)


def detect_vocoder(exam: Exam) -> list[Suspicion]:
    """Send a real recording through mel and vocoder and compare with Griffin-Lim, which needs no weights."""
    try:
        loud = [(w, text) for w, text in _widest_with_texts(exam) if w.rms >= QUIET_RMS]
        waves = _widest(exam)
        vocoder = models.load_vocoder(exam.case.vocoder, exam.device)
        kind = exam.case.vocoder.name
        pairs = [(cycles.run_cycle(w, kind, vocoder), cycles.run_cycle(w, kind)) for w, _ in loud]
        errors = np.array([[c.mel_l1.value for c in pair] for pair in pairs], dtype=float)
    except LabError as error:
        return unknown(
            "vocoder-wrong", f"The vocoder was not tried: {error}", "vocoder.path, and a recording that is not silent"
        )
    if not len(errors):
        return unknown("vocoder-wrong", "Every recording is silent.", "a recording at a normal level")
    made, reference = (float(v) for v in errors.mean(0))
    ratio = made / reference
    claim = f"Mel error after the vocoder {made:.2f}, after Griffin-Lim {reference:.2f} nat; named from {VOCODER_EXCESS} times on."
    numbers = {"value": ratio, "unit": "times Griffin-Lim's error", "n": len(errors)}
    if ratio < VOCODER_EXCESS:
        return refuted("vocoder-wrong", claim, **numbers)
    band = min((b for w in waves if (b := band_limit_hz(w)) is not None), default=0.0)
    if band < WIDE_HZ:
        return unknown("vocoder-wrong", f"{claim} The recordings end at {band:.0f} Hz: a vocoder of full-band speech may fail on them.",
                       f"a recording with speech up to {WIDE_HZ} Hz")  # fmt: skip
    try:
        rates = [metrics.cer(text, exam.hear(wave)).value for wave, text in _widest_with_texts(exam)]
        after = [metrics.cer(text, exam.hear(cycle.wave)).value for (_, text), (cycle, _) in zip(loud, pairs, strict=True)]
        before = [metrics.cer(text, exam.hear(wave)).value for wave, text in loud]
    except LabError:
        rates, after, before = [], [], []  # nobody listened: a noisy recording would look the same
    if rates and all(rate is not None and rate > OWN_TEXT for rate in rates):
        return unknown("vocoder-wrong", f"{claim} The recordings themselves are not heard as their texts.", "a clean recording with its text")
    harm = [b - a for a, b in zip(before, after) if a is not None and b is not None]
    if harm and float(np.mean(harm)) < HARMLESS:
        says = f"{claim} But what comes out of it is understood as well as before (CER {np.mean(harm):+.2f}): noise or silence may do that."
        return unknown("vocoder-wrong", says, "clean recordings without long silence")
    if all(_floor_db(wave) > NOISY_DB for wave, _ in loud):
        return unknown("vocoder-wrong", f"{claim} The recordings are never quiet: noise that a vocoder of speech does not make may be all of it.",
                       "clean recordings with pauses")  # fmt: skip
    return [cause("vocoder-wrong", claim, 0.95 if rates else 0.8, min(1.0, ratio / 4), **numbers, factors=("vocoder",),
                  settings={"vocoder": "the weights that belong to this mel type"})]  # fmt: skip


def _floor_db(wave: Wave) -> float:
    """Return how far a recording's quietest twentieth lies below its loudest, in dB: about -25 in plain noise, below -55 in clean speech."""
    levels = librosa.feature.rms(y=wave.samples, frame_length=1024, hop_length=256)[0]
    quiet, loud = np.percentile(levels, [5, 95])
    return float(20 * np.log10(max(quiet, 1e-9) / max(loud, 1e-9)))


def _widest(exam: Exam) -> list[Wave]:
    """Return the recordings with the widest bands at 24 kHz, in the order of the prompts where they are equally wide."""
    return [wave for wave, _ in _widest_with_texts(exam)]


def _widest_with_texts(exam: Exam, most: int = 3) -> list[tuple[Wave, str]]:
    said = {p.gen_audio or p.ref_audio: p.gen_text if p.gen_audio else p.ref_text for p in reversed(exam.case.prompts)}
    pairs = [(resample(load_wave(path), RATE_HZ), said[path]) for path in dict.fromkeys(p.gen_audio or p.ref_audio for p in exam.case.prompts)]
    return sorted(pairs, key=lambda pair: (band_limit_hz(pair[0]) or 0.0) < WIDE_HZ)[:most]


def detect_stale_text(exam: Exam) -> list[Suspicion]:
    """Listen to what the user's inference produced: does it speak another prompt's text?"""
    prompts = [p for p in exam.case.prompts if p.spoken_audio]
    if len(prompts) < 2:
        return unknown(
            "stale-text-cache", "No output of the failing inference is at hand.", "spoken_audio for two prompts or more"
        )
    try:
        heard = [exam.hear(load_wave(p.spoken_audio)) for p in prompts if p.spoken_audio]
    except LabError as error:
        return unknown("stale-text-cache", f"The outputs were not heard: {error}", error.next_step or "a recogniser")
    texts = [p.gen_text for p in exam.case.prompts]
    others = {p.id: [t for t in texts if t != p.gen_text] for p in prompts}
    rows = [(metrics.cer(p.gen_text, h).value, _nearest(h, others[p.id])) for p, h in zip(prompts, heard)]
    stale = [
        own for own, other in rows if own is not None and own >= WRONG_TEXT and other is not None and other <= OWN_TEXT
    ]
    if not stale:
        return refuted(
            "stale-text-cache", "No output speaks another prompt's text.", value=0.0, unit="outputs", n=len(rows)
        )
    claim = f"{len(stale)} of {len(rows)} outputs speak the text of another prompt."
    return [cause("stale-text-cache", claim, 0.9, len(stale) / len(rows), value=len(stale) / len(rows), unit="share of outputs",
                  n=len(rows), settings={"after an error": "model.transformer.clear_cache(), or a new process"})]  # fmt: skip


def _nearest(heard: str, texts: list[str]) -> float | None:
    """Return the lowest CER of what was heard against any of the texts; None where no text has letters."""
    return min((rate for text in texts if (rate := metrics.cer(text, heard).value) is not None), default=None)
