"""Detectors for what people blame and what never is the cause: Accelerate's wrapping, and the cycle from wave to mel and back.

Where one of them is found guilty after all, it is reported as unknown, with what would settle it.
"""

import math
from typing import Literal

import torch

from f5lab import cycles, metrics, models, samplers
from f5lab.audio import load_wave, resample
from f5lab.errors import LabError
from f5lab.faults.examinations import Exam, Suspicion, refuted, unknown
from f5lab.faults.prompt_timing import QUIET_RMS
from f5lab.models import RATE_HZ
from f5lab.probes import Hypothesis
from f5lab.statistics import DIFFERENCE, Estimate, paired_difference

CYCLED, HARM = 8, 0.2
"""Recordings sent through the cycle, and by how much their CER may rise: a smaller rise is not why inference speaks garbage."""


def detect_accelerate(exam: Exam) -> list[Suspicion]:
    """Prepare and unwrap the model by Accelerate and compare its velocity with the untouched one's, bit for bit."""
    item, recipe = exam.probe.items[0], exam.truth.recipe
    model = exam.probe.bench.model(recipe)
    before = exam.probe.velocity(Hypothesis(recipe), 0)
    unwrapped = samplers.prepared(model, exam.device)
    after = exam.probe.velocity(Hypothesis(recipe), 0, model=unwrapped)
    largest = float((after - before).abs().max())
    if unwrapped is model and largest == 0:
        claim = f"prepare() and unwrap_model() return the same module, and its velocity on {item.id} does not change by a bit."
        return refuted("accelerate", claim, value=0.0, unit="largest change of the velocity", n=1)
    if not math.isfinite(largest):
        return unknown("accelerate", "The model's output is not finite, with or without Accelerate.", "weights whose output is finite")
    return unknown(
        "accelerate", f"After prepare() and unwrap_model() the velocity differs by up to {largest:.2g}.",
        "the same case without Accelerate, in fp32",
    )  # fmt: skip


def detect_mel_cycle(exam: Exam) -> list[Suspicion]:
    """Send real recordings through mel and vocoder and back and hear whether they still say their text."""
    prompts = [p for p in exam.case.prompts if p.gen_audio or p.ref_text.strip()][:CYCLED]
    kind = exam.case.vocoder.name
    try:
        vocoder = models.load_vocoder(exam.case.vocoder, exam.device)
        clips = [samplers.training_item(p) for p in prompts]
        waves = [(resample(load_wave(path), RATE_HZ), text) for path, text in clips]
        waves = [(wave, text) for wave, text in waves if wave.rms >= QUIET_RMS]
        cycled = [cycles.run_cycle(wave, kind, vocoder).wave for wave, _ in waves]
        heard = [exam.transcriber(side) for side in ([wave for wave, _ in waves], cycled)]
    except LabError as error:
        return unknown("mel-cycle", f"The cycle was not heard: {error}", error.next_step or "a vocoder, a recogniser and a recording")
    rates = [[metrics.cer(text, t.text).value for (_, text), t in zip(waves, side)] for side in heard]
    if not waves or any(rate is None for side in rates for rate in side):
        return unknown("mel-cycle", "No recording with words to send round.", "a recording with its text")
    change = paired_difference(rates[1], rates[0], within=DIFFERENCE)
    claim = f"Real recordings score CER {_mean(rates[0]):.2f} before and {_mean(rates[1]):.2f} after wave, mel and wave again."
    if cycle_verdict(change) == "supported":
        return refuted("mel-cycle", claim, value=change.mean, unit="CER more after the cycle", interval=change.interval, n=change.n)
    needs = "more recordings" if cycle_verdict(change) == "inconclusive" else "the verdict on vocoder-wrong and mel-type: the cycle touches nothing else"
    return unknown("mel-cycle", claim, needs)


def cycle_verdict(rise: Estimate) -> Literal["supported", "refuted", "inconclusive"]:
    """Return the verdict on: the cycle keeps the speech intelligible; by the interval of the rise of CER, so not on one recording."""
    if rise.n < 2 or rise.low <= HARM < rise.high:
        return "inconclusive"
    return "supported" if rise.high <= HARM else "refuted"


def _mean(values: list[float]) -> float:
    return float(torch.tensor(values).mean())
