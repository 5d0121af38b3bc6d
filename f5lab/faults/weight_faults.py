"""Detectors for faults in the weights themselves: EMA, slots, prefixes, damage, rotary buffer, the wrong file."""

import math
import re
from collections.abc import Callable, Iterable, Mapping, Sequence

import numpy as np
import torch

from f5lab import ema
from f5lab.checkpoints import FOREIGN_PREFIXES, WRAPPER_PREFIXES
from f5lab.errors import LabError
from f5lab.faults.examinations import Exam, Suspicion, cause, refuted, span, unknown
from f5lab.probes import FEW_ITEMS, Hypothesis
from f5lab.specs import Weights
from f5lab.weights import anatomy, architectures, diffs
from f5lab.weights.stored_scans import base_slot

MATTERS, MATTERS_ON_FEW = 0.05, 0.15
"""A lagging EMA is named when its loss is at least this share above that of the raw weights; at least the second on one or two
recordings, where the interval covers noise only, and on single clips, for inference always continues a reference."""
LEAST_SHARE = 0.1
OUTLIER, LEAST_MOVE = 20.0, 0.5
"""A tensor is damaged when it moved this many times as far as the median one, and by half its own length."""
EMPTY = 0.2
"""A matrix is damaged when more than this share of it is zero."""
GROWN = 5.0
"""A bias is damaged when it is this many times as large as the base's largest."""
BETWEEN = "raw against EMA"
"""How the change between the two sets of weights is called, which does not say which of them is at fault."""
ROPE_RAD = 0.3
"""Rotary phase error at frame 1000 that is named. Rounding to float16 gives 0.16 rad: upstream's own cast on CUDA does it."""
SPOILT = 0.5
"""Weights are damaged when their loss is at least this share above that of the base they come from."""
EMA_FAULTS = ("ema-lag-inherited", "ema-lag-fresh", "ema-frozen", "ema-uninitialised", "raw-ema-swapped")


def detect_ema(exam: Exam) -> list[Suspicion]:
    """Judge the EMA slot: lagging, frozen, never filled, exchanged, or raw weights under its name."""
    notices = {notice.id: notice.says for notice in exam.study.notices}
    found = _slot_faults(exam, notices)
    named = {item.id for item in found}
    if "raw-in-ema-slot" not in named:
        found += refuted("raw-in-ema-slot", "The EMA slot carries ema_pytorch's prefix and step, or the file has none.")
    found += _training(exam, named)
    if {item.id for item in found if item.outcome == "cause"} & {*EMA_FAULTS, "scratch-by-accident", "lr-dead"}:
        return found
    if exam.inference.weights != "ema":
        beside = "".join(f" Of the EMA: {notices[name]}." for name in (*EMA_FAULTS, "ema-strayed") if name in notices)
        return found + refuted(EMA_FAULTS, f"Inference loads raw weights.{beside}")
    if exam.checkpoint.slots == ("ema",):
        return found + _ema_alone(exam)
    if exam.checkpoint.slots != ("raw", "ema"):
        return found + refuted(EMA_FAULTS, f"The file holds {' and '.join(exam.checkpoint.slots)} weights.")
    return found + _lag(exam)


def _ema_alone(exam: Exam) -> list[Suspicion]:
    """Say what is known of an EMA without the raw weights beside it: that it was filled, and against the base that it moved."""
    moved = exam.study.comparison is not None
    known = refuted(["ema-uninitialised", *["ema-frozen"] * moved], "The EMA is filled" + " and differs from the base." * moved + "." * (not moved))
    rest = [name for name in EMA_FAULTS if name not in {item.id for item in known}]
    says = "The file holds the EMA alone: how far it is behind the raw weights, or whether it is them, no file without them shows."
    return known + unknown(rest, says, "the trainer's own model_*.pt, which holds raw and EMA weights")


def right_weights(exam: Exam, found: Iterable[Suspicion]) -> Weights:
    """Return the set of weights that a repair speaks with: the one that inference loads, unless a cause names it or the file
    lacks it. A probe that merely likes the other set better repairs nothing that anybody is told of."""
    own, slots = exam.inference.weights, exam.checkpoint.slots
    named = [item.settings["weights"] for item in found if item.outcome == "cause" and item.factors == ("weights",) and "weights" in item.settings]
    right = next((name for name in named if name in slots), own)
    return right if right in slots else slots[0]


def _slot_faults(exam: Exam, notices: Mapping[str, str]) -> list[Suspicion]:
    """Return at most one fault of the slots, the one that explains the others."""
    asked = exam.inference.weights == "ema"
    if asked and "ema" in exam.checkpoint.slots and _is_fresh(exam.weights("ema")) and not _is_fresh_raw(exam):
        says = notices.get("ema-uninitialised", "its output layer is exactly zero, as a new model's")
        return [cause("ema-uninitialised", f"The EMA was never filled: {says}.", 0.99, 1.0, value=0.0,
                      unit="largest weight of proj_out", factors=("weights",), settings={"weights": "raw"})]  # fmt: skip
    if not exam.checkpoint.labelled and asked:
        claim = ("The file does not say which weights it holds and is loaded as EMA; without the ema_model. prefix it is what "
                 "prune_checkpoint(save_ema=False) makes of the raw ones, or an EMA whose prefix a converter dropped.")  # fmt: skip
        return [
            cause("raw-in-ema-slot", claim, 0.7, 0.05, limitation="A converter may have dropped the prefix of an EMA.")
        ]
    of_training = ("scratch-by-accident", "lr-dead")
    order = ("raw-in-ema-slot", "ema-uninitialised", *of_training, "ema-frozen", "raw-ema-swapped") if asked else of_training
    first = next((name for name in order if name in notices), None)
    if first is None:
        return []
    if first == "scratch-by-accident" and (exam.truth.problem or exam.truth.identifiable):
        says = "the text explains what they speak" if exam.truth.identifiable else "nothing was tried that would tell"
        return unknown(first, f"{_sentence(notices[first])[:-1]}; {says}.", "base: the very file that training started from, or none")
    severity = {"raw-in-ema-slot": 0.05, "raw-ema-swapped": 0.3, "ema-frozen": 0.5}.get(first, 0.9)
    settings = {"weights": "raw"} if first in ("ema-frozen", "ema-uninitialised", "raw-ema-swapped") else {}
    factors = ("weights",) if settings else ()
    confidence = {"raw-ema-swapped": 0.95, "scratch-by-accident": 0.8}.get(first, 0.99)
    if first == "lr-dead" and not exam.study.has_both:
        confidence = 0.8  # an EMA that never moved looks the same
    return [cause(first, _sentence(notices[first]), confidence, severity,
                  factors=factors, settings=settings, **_slot_numbers(exam, first))]  # fmt: skip


def _slot_numbers(exam: Exam, name: str) -> dict[str, object]:
    comparison = exam.study.comparison
    if comparison is None:
        return {}
    sums = comparison.overall
    if not comparison.has_base:
        return {} if exam.study.has_both else {"value": sums.relative_l2, "unit": "|weights - base| / |weights|"}
    if name in ("lr-dead", "scratch-by-accident"):
        return {"value": sums.moved, "unit": "|raw - base| / |base|"}
    return {"value": float(np.sqrt(sums.vv / sums.uu)) if sums.uu else None, "unit": "|EMA - base| / |raw - base|"}


def _training(exam: Exam, named: set[str]) -> list[Suspicion]:
    """Say whether the raw weights left the base, and whether they began there."""
    names = [name for name in ("scratch-by-accident", "lr-dead") if name not in named]
    comparison = exam.study.comparison
    if comparison is not None and not exam.study.has_both:
        away = comparison.overall.relative_l2
        if away is None or comparison.overall.left_out:
            return unknown(names, "The distance to the base is not finite.", "weights that are")
        return refuted(names, f"The {exam.checkpoint.slots[0]} weights are {away:.2g} of their length from the base.",
                       value=away, unit="|weights - base| / |weights|")  # fmt: skip
    if comparison is None or not comparison.has_base:
        return unknown(names, "There is no base to compare with.", "base: the checkpoint that training started from")
    moved = comparison.overall.moved
    if moved is None or not np.isfinite(moved):
        return unknown(names, "The distance to the base is not finite.", "weights that are")
    return refuted(
        names,
        f"Raw weights moved by {moved:.2g} of their length away from the base.",
        value=moved,
        unit="|raw - base| / |base|",
    )


def _is_fresh(weights: Mapping[str, torch.Tensor]) -> bool:
    return not bool(weights["transformer.proj_out.weight"].any())


def _is_fresh_raw(exam: Exam) -> bool:
    return "raw" in exam.checkpoint.slots and _is_fresh(exam.weights("raw"))


def _lag(exam: Exam) -> list[Suspicion]:
    """Compare EMA and raw by the probe; a worse EMA lags, inherited or fresh by its step."""
    step, update, share = exam.checkpoint.ema_step, exam.checkpoint.update, exam.study.share
    inherited = step is None or update is None or step - update > max(update, 100)
    name = "ema-lag-inherited" if inherited else "ema-lag-fresh"
    other = "ema-lag-fresh" if inherited else "ema-lag-inherited"
    base_part = next((v for v in (share.measured, share.weight) if v is not None), None) if share else None
    try:
        worse, effect = exam.loss_effect({"weights": "ema"}) if exam.truth.recipe.weights == "raw" else (None, None)
    except LabError as error:
        return unknown(EMA_FAULTS[:2], f"EMA and raw could not be compared: {error}", "a recording with its text")
    if exam.truth.problem:
        return unknown(EMA_FAULTS[:2], exam.truth.problem, exam.truth.needs)
    if exam.truth.gate is not None and not exam.truth.gate.passed:  # which weights explain music better says nothing of speech
        return unknown(EMA_FAULTS[:2], "The text explains nothing of these recordings.", "clear recordings with their right texts")
    rest = refuted(
        [f for f in EMA_FAULTS if f not in (name, other)], "The EMA is filled, has moved, and lags behind raw."
    )
    if exam.study.comparison is not None and exam.study.comparison.overall.strayed:
        return rest + refuted((name, other), "The EMA did not come the raw weights' way from the base: what it does, it does not lag.")
    items = exam.probe.items
    least = MATTERS if len(items) >= FEW_ITEMS and any(item.start_s for item in items) else MATTERS_ON_FEW
    if worse is None or worse.mean < least or worse.low <= 0:
        says = (
            "EMA explains the recordings at least as well as raw"
            if worse is None
            else f"EMA is {100 * worse.mean:+.1f} % off raw"
        )
        return rest + refuted((name, other), f"{says}: whatever it lags, it does not spoil speech.")
    if inherited and base_part is not None and base_part < LEAST_SHARE:
        return rest + refuted((name, other), f"Only {100 * base_part:.0f} % of the EMA is still the base.")
    still = f"; {100 * base_part:.0f} % of it is still the base" if base_part is not None else ""
    claim = f"The EMA's loss is {100 * worse.mean:.0f} % above that of the raw weights (step {step}, update {update}{still})."
    confidence = 0.95 if base_part is not None or not inherited else 0.8
    return [*rest, *refuted(other, f"step {step} against update {update}."),
            cause(name, claim, confidence, min(1.0, worse.mean), value=worse.mean, unit="share of the raw loss",
                  interval=span(worse), n=worse.n, factors=("weights",), settings={"weights": "raw"}, effect=effect)]  # fmt: skip


def detect_prefix(exam: Exam) -> list[Suspicion]:
    """Look for keys that a wrapper renamed: a strict load raises, a lenient one keeps random weights."""
    known = {*WRAPPER_PREFIXES, *FOREIGN_PREFIXES}
    strange, beside = (sorted({p for slot in slots for p in exam.checkpoint.prefixes[slot]} & known) for slots in (_loaded(exam), _others(exam)))
    if not strange:
        other = f" Those of the {_others(exam)[0]} weights, which inference does not load, carry {', '.join(beside)}." if beside else ""
        return refuted("prefix-lost", f"Every key carries upstream's own name.{other}")
    claim = f"Keys carry {', '.join(strange)}: a strict load raises, one with strict=False keeps random weights."
    return [cause("prefix-lost", claim, 0.99, 1.0, settings={"strip from the keys": strange})]


def detect_stale(exam: Exam) -> list[Suspicion]:
    """Compare the checkpoint's update with the logged samples that were heard and with the file's own name."""
    update, folder = exam.checkpoint.update, exam.case.training.samples
    named = re.fullmatch(r"model_(\d+)", exam.case.checkpoint.stem)
    if update is not None and named and int(named[1]) != update:
        claim = f"The file is called {exam.case.checkpoint.name} and holds update {update}, unless somebody renamed it."
        return [cause("stale-checkpoint", claim, 0.75, 0.5, value=update, unit="update")]
    numbers = _sample_updates(exam)
    if update is None or not numbers:
        missing = "logged samples" if update is not None else "the checkpoint's update"
        return unknown(
            "stale-checkpoint", "Nothing to compare.", f"training.samples and a checkpoint with its update ({missing})"
        )
    if max(numbers) > update and update not in numbers:
        claim = f"The newest logged sample is of update {max(numbers)}, the checkpoint of update {update}: not the same weights."
        return [cause("stale-checkpoint", claim, 0.95, 0.6, value=max(numbers) - update, unit="updates apart")]
    return refuted(
        "stale-checkpoint", f"Samples up to update {max(numbers)} in {folder.name}, checkpoint at update {update}."
    )


def _sample_updates(exam: Exam) -> list[int]:
    folder = exam.case.training.samples
    found = [re.fullmatch(r"update_(\d+)_gen", path.stem) for path in folder.glob("*.wav")] if folder else []
    return sorted(int(match[1]) for match in found if match)


def detect_damage(exam: Exam) -> list[Suspicion]:
    """Look for values that are not finite, emptied matrices, and tensors that moved far more than all others."""
    facts = anatomy.checkpoint_facts(exam.checkpoint, exam.base)
    problems = _problems(exam, facts, _loaded(exam))
    changes = {} if problems else _changes(exam)
    if problems:
        return [_damaged(exam, facts, problems)]
    spoilt = _strayed(exam) or _below_base(exam)
    if spoilt is not None:
        return [spoilt]
    beside = _problems(exam, facts, _others(exam))
    other = f" In the {_others(exam)[0]} weights, which inference does not load: {beside[0]}." if beside else ""
    if not changes:
        says = "All values are finite and no matrix is empty. Whether one stands out is not known: there is nothing to compare with."
        return unknown("weight-damage", says + other, "base: the checkpoint that training started from")
    says = f"All values are finite, no matrix is empty, no tensor stands out ({', '.join(changes)}).{other}"
    limit = "" if exam.base is not None else "What is spoilt alike in raw and EMA shows against the base only, which is not given."
    return refuted("weight-damage", says, value=0.0, unit="damaged tensors", limitation=limit)


def _problems(exam: Exam, facts: Mapping[Weights, Sequence[anatomy.TensorFacts]], slots: Sequence[Weights]) -> list[str]:
    """Return what is broken in some sets of weights, or stands out in them."""
    broken = [f"{slot}: {text}" for slot in slots for text in _broken_tensors(exam, slot, facts[slot])]
    if broken or not slots:
        return broken
    changes = {label: rows for label, rows in _changes(exam).items() if label.partition(" ")[0] in slots or label == BETWEEN}
    return _outliers(changes) + _grown(exam, facts, slots)


def _damaged(exam: Exam, facts: Mapping[Weights, Sequence[anatomy.TensorFacts]], problems: Sequence[str]) -> Suspicion:
    """Return the cause; where the file's other set of weights is whole, that one is the repair."""
    claim = f"{len(problems)} damaged tensor{'s' * (len(problems) > 1)}: {'; '.join(problems[:3])}."
    others = _others(exam)
    whole = others and not _problems(exam, facts, others) and not any(BETWEEN in text for text in problems)
    settings: dict[str, object] = {"weights": others[0]} if whole else {"checkpoint": "another copy or another update"}
    says = f" The file's {others[0]} weights are whole." if whole else ""
    return cause("weight-damage", claim + says, 0.97, 1.0, value=float(len(problems)), unit="damaged tensors",
                 settings=settings, factors=("weights",) if whole else ())  # fmt: skip


def _strayed(exam: Exam) -> Suspicion | None:
    """Name the weights that inference loads where they share no way from the base with the others, and explain speech worse."""
    comparison, own = exam.study.comparison, exam.inference.weights
    if comparison is None or not comparison.overall.strayed or _has_notice(exam, "ema-uninitialised", "scratch-by-accident"):
        return None
    if exam.truth.problem or exam.truth.recipe.weights == own:
        return None
    worse, effect = exam.loss_effect({"weights": own})
    if worse.n < FEW_ITEMS or worse.low <= 0 or worse.mean < MATTERS:
        return None
    other = exam.truth.recipe.weights
    claim = (f"The {own} weights did not come the {other} weights' way from the base (cosine {comparison.overall.path_cosine:.2f}), as an average and "
             f"what it averages do, and their loss is {100 * worse.mean:.0f} % above: damaged, of another run, or merged with something else.")  # fmt: skip
    return cause("weight-damage", claim, 0.9, min(1.0, worse.mean), value=worse.mean, unit=f"share of the {other} loss", interval=span(worse),
                 n=worse.n, factors=("weights",), settings={"weights": other}, effect=effect)  # fmt: skip


def _has_notice(exam: Exam, *ids: str) -> bool:
    """Return whether something else is known of the slots that explains as much."""
    return any(notice.id in ids for notice in exam.study.notices)


def _below_base(exam: Exam) -> Suspicion | None:
    """Name weights that explain real speech far worse than the base that training started from, all settings the same: what is
    wrong with those spoils both."""
    if exam.base is None or exam.truth.problem or _has_notice(exam, "scratch-by-accident"):
        return None
    if any(_is_off(_rope(exam, slot)) for slot in exam.checkpoint.slots):
        return None
    recipe = exam.truth.recipe
    start = recipe.but(checkpoint=exam.base.path, weights=base_slot(exam.base))
    try:
        worse = exam.probe.compare(Hypothesis(start), Hypothesis(recipe))
    except LabError:  # of another shape, or no checkpoint of this architecture
        return None
    if worse.n < FEW_ITEMS or worse.low < SPOILT:
        return None
    claim = (f"The weights explain real speech worse than the base that training started from: their loss is {100 * worse.mean:.0f} % "
             "above its. Training diverged, or the file is damaged.")  # fmt: skip
    return cause("weight-damage", claim, 0.9, 1.0, value=worse.mean, unit="share of the base's loss", interval=span(worse), n=worse.n,
                 settings={"checkpoint": "an earlier update, or another copy"})  # fmt: skip


def _loaded(exam: Exam) -> list[Weights]:
    """Return the set of weights that inference loads; all that there are where the file lacks it."""
    own, slots = exam.inference.weights, exam.checkpoint.slots
    return [own] if own in slots else list(slots)


def _others(exam: Exam) -> list[Weights]:
    return [slot for slot in exam.checkpoint.slots if slot not in _loaded(exam)]


def _broken_tensors(exam: Exam, slot: Weights, tensors: Sequence[anatomy.TensorFacts]) -> list[str]:
    fresh = _is_fresh(exam.weights(slot))
    found = []
    for facts in tensors:
        if facts.name == architectures.INV_FREQ:
            continue  # no weight, and it can be made anew: see detect_rope
        if facts.state == "not finite":
            found.append(f"{facts.name} holds {facts.nan} NaN and {facts.inf} infinite values")
        elif facts.name.endswith("weight") and len(facts.shape) > 1 and not fresh and facts.zero_share > EMPTY:
            if facts.name != architectures.TEXT_EMBEDDING or not _is_zero_by_rows(exam.weights(slot)[facts.name]):
                found.append(f"{facts.zero_share:.0%} of {facts.name} is zero")
    return found


def _is_zero_by_rows(rows: torch.Tensor) -> bool:
    """Return whether rows of symbols, shape=(symbols, text_dim), are zero as a whole and the others are not: added, and never trained."""
    filled = rows[(rows != 0).any(1)]
    return len(filled) > 0 and float((filled == 0).float().mean()) <= EMPTY


def _grown(exam: Exam, facts: Mapping[Weights, Sequence[anatomy.TensorFacts]], slots: Sequence[Weights]) -> list[str]:
    """Return biases far larger than any of the base's: their own change says little, they begin at zero."""
    if exam.base is None:
        return []
    sizes = {name: _rms(weights) for name, weights in ema.choose_base(exam.base).items() if name.endswith(".bias")}
    largest = max(sizes.values(), default=0.0)
    found = []
    for slot in slots if largest else []:
        for fact in facts[slot]:
            size = (fact.norm or 0.0) / math.sqrt(max(fact.parameters, 1))
            if fact.name in sizes and size > GROWN * largest:
                found.append(f"{slot}: {fact.name} has RMS {size:.2g}, the base's largest bias {largest:.2g}")
    return found


def _rms(tensor: torch.Tensor) -> float:
    return float(tensor.double().square().mean().sqrt()) if tensor.numel() else 0.0


def _outliers(changes: Mapping[str, Sequence[tuple[str, float]]]) -> list[str]:
    """Return tensors whose change, against the base or between the slots, is far beyond that of all others."""
    found = []
    for label, rows in changes.items():
        median = float(np.median([value for _, value in rows]))
        far = [(name, value) for name, value in rows if value > max(LEAST_MOVE, OUTLIER * median)]
        far = [row for row in far if row[0] != architectures.TEXT_EMBEDDING or "base" not in label]  # begun anew for other symbols
        found += [f"{name} moved by {value:.2f} of its length ({label}; median {median:.3g})" for name, value in far]
    return found


def _raw_from_base(sums: diffs.Sums) -> float | None:
    return math.sqrt(sums.uu / sums.aa) if sums.aa else None


def _ema_from_base(sums: diffs.Sums) -> float | None:
    return math.sqrt(sums.vv / sums.bb) if sums.bb else None


def _changes(exam: Exam) -> dict[str, list[tuple[str, float]]]:
    """Return (matrix, change against its length) of each slot against the base, or of raw against EMA."""
    ways: dict[str, Callable[[diffs.Sums], float | None]]
    if exam.base is None:
        ways = {BETWEEN: lambda s: s.relative_l2} if exam.study.has_both else {}
        comparison = exam.study.comparison
    elif exam.study.has_both:
        ways = {"raw against the base": _raw_from_base, "ema against the base": _ema_from_base}
        comparison = exam.study.comparison
    else:
        slot = exam.checkpoint.slots[0]
        ways = {f"{slot} against the base": lambda s: s.relative_l2}
        comparison = diffs.compare(exam.weights(slot), ema.choose_base(exam.base))
    rows = [row for row in comparison.rows if len(row.shape) > 1] if comparison is not None else []
    return {label: [(row.name, change(row.sums) or 0.0) for row in rows] for label, change in ways.items()}


def detect_rope(exam: Exam) -> list[Suspicion]:
    """Check the stored rotary frequencies, which override whatever the model was built with."""
    name, unit, repair = "inv-freq-altered", "rad at frame 1000", {architectures.INV_FREQ: "10000^(-2i/d)"}
    checks = {slot: _rope(exam, slot) for slot in _loaded(exam)}
    for slot, check in checks.items():
        error, claim = check.phase_error_rad, f"Rotary frequencies of {slot} are {check.verdict}."
        if check.stored and error is None:  # not finite, or of a shape that no model has: nothing comes through
            return [cause(name, claim, 0.99, 1.0, settings=repair)]
        if error is not None and error > ROPE_RAD:
            sure = 0.8 if check.is_rounded else 0.99  # what rounding does is not heard on every clip
            return [cause(name, claim, sure, min(1.0, error / 3), value=error, unit=unit, settings=repair)]
    errors = [check.phase_error_rad for check in checks.values() if check.phase_error_rad is not None]
    if not errors:
        return unknown(name, "The file stores no rotary frequencies.", "nothing: the model computes its own")
    says = "Rotary frequencies are as built, or rounded to float16 as upstream rounds them."
    for slot in _others(exam):
        if _is_off(_rope(exam, slot)):
            says += f" Those of the {slot} weights, which inference does not load, are {_rope(exam, slot).verdict}."
    return refuted(name, says, value=max(errors), unit=unit)


def _rope(exam: Exam, slot: Weights) -> architectures.RopeCheck:
    return architectures.check_rope(exam.weights(slot))


def _is_off(check: architectures.RopeCheck) -> bool:
    return check.stored and (check.phase_error_rad is None or check.phase_error_rad > ROPE_RAD)


def _sentence(text: str) -> str:
    return text[:1].upper() + text[1:].rstrip(".") + "."
