"""Detectors for recordings and vocoder: level, clipped or wrong references, mislabelled rate, old text spoken again."""

import numpy as np

from f5lab import cycles, metrics, models
from f5lab.audio import load_wave, resample
from f5lab.errors import LabError
from f5lab.examinations import Exam, Suspicion, cause, refuted, span, unknown
from f5lab.models import LONGEST_REFERENCE_S, RATE_HZ
from f5lab.probes import Hypothesis, Probe
from f5lab.prompt_timing import QUIET_RMS

WRONG_TEXT, OWN_TEXT = 0.6, 0.34
"""CER from which a recording says something else, and up to which it says the text."""
RATES_HZ = (8000, 11025, 12000, 16000, 22050, 32000, 44100, 48000)
RATE_GAIN = 0.1
"""A rate is taken to be mislabelled when another lowers the loss of the reference by this share."""
VOCODER_EXCESS = 2.2
"""A vocoder is wrong when its mel error is this many times that of Griffin-Lim."""


def detect_level(exam: Exam) -> list[Suspicion]:
    """Measure the level of every reference."""
    levels = {p.id: load_wave(p.ref_audio).rms for p in exam.case.prompts}
    quiet = {name: level for name, level in levels.items() if level < QUIET_RMS}
    low = min(levels.values())
    if not quiet:
        return refuted(
            "ref-silent-or-quiet", f"The quietest reference has RMS {low:.3f}.", value=low, unit="RMS", n=len(levels)
        )
    claim = f"{len(quiet)} of {len(levels)} references are below RMS {QUIET_RMS} (lowest {low:.2g}): raised with their noise, or divided by 0."
    return [cause("ref-silent-or-quiet", claim, 0.97, len(quiet) / len(levels), value=low, unit="RMS", n=len(levels),
                  settings={"ref_audio": "a recording at a normal level"})]  # fmt: skip


def detect_clipped(exam: Exam) -> list[Suspicion]:
    """Look for references that upstream cuts while it keeps their whole text."""
    seconds = {p.id: load_wave(p.ref_audio).seconds for p in exam.case.prompts}
    long = {name: value for name, value in seconds.items() if value > LONGEST_REFERENCE_S}
    longest = max(seconds.values())
    if not long:
        return refuted(
            "ref-clipped", f"The longest reference lasts {longest:.1f} s.", value=longest, unit="s", n=len(seconds)
        )
    claim = f"{len(long)} of {len(seconds)} references last more than {LONGEST_REFERENCE_S:.0f} s (up to {longest:.1f} s): audio is cut, text is not."
    return [cause("ref-clipped", claim, 0.95, len(long) / len(seconds), value=longest, unit="s", n=len(seconds),
                  settings={"ref_audio": "below 12 s, with exactly its own text"})]  # fmt: skip


def detect_reference_text(exam: Exam) -> list[Suspicion]:
    """Transcribe every reference and compare it with the text that is claimed for it."""
    items = exam.references
    if not items:
        return unknown("ref-text-wrong", "No reference has a text.", "ref_text for every reference")
    try:
        heard = [t.text for t in exam.transcriber([item.wave for item in items])]
    except LabError as error:
        return unknown("ref-text-wrong", f"The references were not heard: {error}", "a recogniser (--asr base)")
    rates = [metrics.cer(item.text, text).value for item, text in zip(items, heard)]
    wrong = [
        (item, text, rate) for item, text, rate in zip(items, heard, rates) if rate is not None and rate >= WRONG_TEXT
    ]
    mean = float(np.mean([rate for rate in rates if rate is not None]))
    if not wrong:
        return refuted(
            "ref-text-wrong",
            f"References are heard as their texts (mean CER {mean:.2f}).",
            value=mean,
            unit="CER",
            n=len(items),
        )
    item, text, rate = wrong[0]
    claim = f"{len(wrong)} of {len(items)} references say something else: “{item.text}” is heard as “{text}” (CER {rate:.2f})."
    return [cause("ref-text-wrong", claim, 0.9, 0.7 * len(wrong) / len(items), value=rate, unit="CER", n=len(items),
                  settings={"ref_text": "what the reference says"})]  # fmt: skip


def detect_rate_label(exam: Exam) -> list[Suspicion]:
    """Score each reference as if its header lied about the rate: the true rate explains the recording best."""
    items = [
        item for item in exam.references if item.wave.seconds <= LONGEST_REFERENCE_S and item.wave.rms >= QUIET_RMS
    ]
    if not items or exam.truth.problem:
        return unknown(
            "sample-rate-mislabelled", "No reference to try.", "a reference with its text, below 12 s and not silent"
        )
    stated = load_wave(exam.case.prompts[0].ref_audio).rate_hz
    probe = Probe(items, draws=exam.draws, device=exam.device)
    probe.bench = exam.probe.bench
    recipe = exam.truth.recipe
    good = Hypothesis(recipe)
    try:
        ratios = sorted({RATE_HZ / rate for rate in RATES_HZ} | {rate / RATE_HZ for rate in RATES_HZ} - {1.0})
        tried = {r: probe.compare(good, Hypothesis(recipe, rate_ratio=r)) for r in ratios if 0.4 < r < 2.6}
    except LabError as error:
        return unknown("sample-rate-mislabelled", str(error), "weights whose output is finite")
    ratio, gain = min(tried.items(), key=lambda pair: pair[1].mean)
    if gain.mean > -RATE_GAIN or gain.high >= 0:
        return refuted("sample-rate-mislabelled", f"No other rate than the stated one explains the references (best {100 * gain.mean:+.0f} %).",
                       value=gain.mean, unit="loss at the best other rate", interval=span(gain), n=gain.n)  # fmt: skip
    claim = f"References fit {ratio:.2f} times their stated rate: the loss falls by {-100 * gain.mean:.0f} %."
    return [cause("sample-rate-mislabelled", claim, 0.93, 0.8, value=ratio, unit="times the stated rate", n=gain.n,
                  settings={"ref_audio": f"a header of {round(stated * ratio)} Hz"})]  # fmt: skip


def detect_vocoder(exam: Exam) -> list[Suspicion]:
    """Send a real recording through mel and vocoder and compare with Griffin-Lim, which needs no weights."""
    try:
        waves = [resample(load_wave(p.gen_audio or p.ref_audio), RATE_HZ) for p in exam.case.prompts[:3]]
        vocoder = models.load_vocoder(exam.case.vocoder, exam.device)
        kind = exam.case.vocoder.name
        pairs = [(cycles.run_cycle(w, kind, vocoder), cycles.run_cycle(w, kind)) for w in waves if w.rms >= QUIET_RMS]
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
    return [cause("vocoder-wrong", claim, 0.95, min(1.0, ratio / 4), **numbers, factors=("vocoder",),
                  settings={"vocoder": "the weights that belong to this mel type"})]  # fmt: skip


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
        return unknown("stale-text-cache", f"The outputs were not heard: {error}", "a recogniser (--asr base)")
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
