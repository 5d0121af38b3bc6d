"""EMA arithmetic: how much of an exponential moving average is still the checkpoint that training started from.

Upstream's trainer makes ``EMA(model, include_online_model=False)`` with ema_pytorch's defaults, calls ``update()`` once
an optimizer update, and restores the EMA's own ``step`` when it loads a base (``f5_tts/model/trainer.py``). A base
released after a million updates therefore hands its slow decay to a fine-tune of a thousand.

Notation: P base, R raw weights at the end, R_u after update u, E the EMA, all as one long vector.

Two different questions are kept apart:

* **weight of the base** (`weight_of_base`): the factor of P in E. It is the product of the decays: exact, path-free.
* **share of the base** (1 - alpha): what is measured by projecting E - P on R - P. E also averages early R_u, which are
  themselves mostly P, so the share is never below the weight. To predict it one must assume how R_u went from P to R
  (`expected_alpha`), or have other checkpoints of the same run (`interpolated_alpha`).

Which path is honest. AdamW's steps are about one learning rate long whatever the gradient, so the learning rate is the
path's clock. If all steps agreed (``drift``) progress would be the sum of rates; if each went its own way
(``diffusion``) squares would add up. A fine-tune has both, and its lasting part slows down as the loss falls, which
puts progress earlier than either clock says. ``adamw``, the default, takes whichever clock is ahead: squares while the
rate decays, the sum while it warms up. ``jump`` is the exact bound: the share is never below the weight. Against
ema_pytorch's own EMA on toy models under AdamW with upstream's schedule, ``adamw`` was within 1 point of the measured
alpha where the weights moved by up to a fifth of their length, and 1 to 3 points too low where they moved by up to half
of it. Nothing inside one file tells the timing better (a straight path has the same direction at any pace): only other
checkpoints of the run do.
"""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path as FilePath
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from f5lab import checkpoints, schedules
from f5lab.checkpoints import Checkpoint
from f5lab.errors import CheckpointError, LabError
from f5lab.weights import diffs, pairs, slots
from f5lab.weights.diffs import Comparison
from f5lab.weights.stored_scans import base_slot, scan_checkpoint, weights_of
from f5lab.weights.sums import ROUNDED

BETA = 0.9999
UPDATE_EVERY = 10
UPDATE_AFTER_STEP = 100
INV_GAMMA = 1.0
POWER = 2 / 3
"""Defaults of ema_pytorch 0.8.3's ``EMA.__init__``; upstream's trainer passes none of them."""

Path = Literal["jump", "drift", "diffusion", "adamw"]
PATHS: tuple[Path, ...] = ("jump", "drift", "diffusion", "adamw")
Rates = Sequence[float] | NDArray[np.float64] | None


def decay_at(step: int) -> float:
    """Return the decay that ``EMA.update()`` applies when it is called with its counter at `step`.

    1 where the call leaves the EMA alone, 0 where it copies the raw weights, else
    ``clamp(1 - (1 + step - 100)^(-2/3), 0, 0.9999)``: the counter is raised before the decay is computed, and
    the arithmetic is float32, as there (0.9999 is 0.99989998: a tenth of a point after a million updates).

    References
    ----------
    ema_pytorch 0.8.3, ``EMA.update`` and ``EMA.get_current_decay``.
    """
    if step % UPDATE_EVERY:
        return 1.0
    if step <= UPDATE_AFTER_STEP:
        return 0.0
    epoch = np.float32(step - UPDATE_AFTER_STEP)
    value = np.float32(1) - (np.float32(1) + epoch / np.float32(INV_GAMMA)) ** np.float32(-POWER)
    return float(np.clip(value, np.float32(0), np.float32(BETA)))


def decays(step_before: int, updates: int) -> NDArray[np.float64]:
    """Return the decay of each of `updates` calls that follow `step_before` earlier ones, shape=(updates,)."""
    _check_counts(step_before, updates)
    return np.array([decay_at(step) for step in range(step_before, step_before + updates)], dtype=np.float64)


def weight_of_base(step_before: int, updates: int) -> float:
    """Return the factor of the base in the EMA, 0 to 1: the product of all decays, exact whatever the training did.

    Parameters
    ----------
    step_before : int
        The EMA's ``step`` when training started: that of the base, or 0 for an EMA that started anew.
    updates : int
        Optimizer updates since.

    Examples
    --------
    >>> round(weight_of_base(1_250_000, 10_000), 3), weight_of_base(0, 10_000)
    (0.905, 0.0)
    """
    return float(np.prod(decays(step_before, updates)))


def path_weights(step_before: int, updates: int) -> NDArray[np.float64]:
    """Return the factor in the EMA of the raw weights after each update, shape=(updates,); with `weight_of_base` they
    sum to 1."""
    factors = decays(step_before, updates)
    later = np.append(np.cumprod(factors[::-1])[::-1][1:], 1.0)
    return (1 - factors) * later


def progress(path: Path, updates: int, rates: Rates = None) -> NDArray[np.float64]:
    """Return <R_u - P, R - P> / |R - P|^2 after each update under an assumed path, shape=(updates,), 0 to 1.

    Parameters
    ----------
    path : {"jump", "drift", "diffusion", "adamw"}
        ``jump``: R is reached at once. ``drift``: each update adds its learning rate along one direction.
        ``diffusion``: each adds it along an independent direction, so that squares add up. ``adamw``: whichever of
        these two is ahead.
    rates : array, shape=(updates,), optional
        The learning rate of each update (`schedules.Schedule.update_rates`); constant when left out.
    """
    rates = np.ones(updates) if rates is None else np.asarray(rates, dtype=np.float64)
    if rates.shape != (updates,) or (rates < 0).any() or not rates.sum():
        raise LabError(f"rates: shape {rates.shape}", expected=f"{updates} learning rates, none negative, not all zero")
    if path == "jump":
        return np.ones(updates)
    drift, diffusion = np.cumsum(rates) / np.sum(rates), np.cumsum(rates**2) / np.sum(rates**2)
    return {"drift": drift, "diffusion": diffusion, "adamw": np.maximum(drift, diffusion)}[path]


def expected_alpha(step_before: int, updates: int, path: Path = "adamw", rates: Rates = None) -> float:
    """Return <E - P, R - P> / |R - P|^2 as it must come out if the raw weights went along `path`.

    1 means that E has arrived at R, 0 that it never left the base.
    """
    return float(path_weights(step_before, updates) @ progress(path, updates, rates))


def interpolated_alpha(
    step_before: int, updates: int, points: Sequence[tuple[int, float]],
    rates: Rates = None,
) -> float:  # fmt: skip
    """Return the expected projection when other checkpoints of the run show how far the raw weights had come.

    Parameters
    ----------
    points : sequence of (int, float)
        Update and <R_u - P, R - P> / |R - P|^2 of each sibling checkpoint (`diffs.compare`, ``overall.alpha`` with the
        sibling's raw weights as the second argument). Start (0, 0) and end (updates, 1) are added; between points the
        progress grows as the path ``adamw`` does.
    """
    known = sorted({0: 0.0, **dict(points), updates: 1.0}.items())
    clock = np.append(0.0, progress("adamw", updates, rates))
    at, values = zip(*known, strict=True)
    walked = np.interp(clock[1:], clock[list(at)], values)
    return float(path_weights(step_before, updates) @ walked)


def _check_counts(step_before: int, updates: int) -> None:
    if step_before < 0 or updates < 0:
        raise LabError(f"EMA step {step_before}, updates {updates}", expected="counts of 0 or more")


@dataclass(frozen=True)
class BaseShare:
    """How much of an EMA is still the base; shares and weights 0 to 1, None where they can not be known.

    Attributes
    ----------
    step_before, updates : int or None
        The EMA's counter when training started and optimizer updates since.
    weight : float or None
        Factor of the base in the EMA: exact, and the least that the share can be.
    expected, expected_low, expected_high : float or None
        1 - alpha under the path ``adamw``, and over all that is possible: `weight` (a jump) to the slower of drift and
        diffusion.
    measured : float or None
        1 - alpha from the weights themselves; needs the base.
    cosine : float or None
        Cosine between E - P and R - P.
    schedule : str
        Where the learning rates of the path come from.
    limits : tuple of str
    """

    step_before: int | None
    updates: int | None
    weight: float | None
    expected: float | None
    expected_low: float | None
    expected_high: float | None
    measured: float | None
    cosine: float | None
    schedule: str
    limits: tuple[str, ...]

    @property
    def gap(self) -> float | None:
        """Measured less expected share."""
        return None if self.measured is None or self.expected is None else self.measured - self.expected


def base_share(
    checkpoint: Checkpoint, comparison: Comparison | None = None, base: Checkpoint | None = None
) -> BaseShare:
    """Work out how much of a checkpoint's EMA is still its base, by closed form and, given the base, by projection.

    Parameters
    ----------
    comparison : Comparison, optional
        ``diffs.compare(raw, ema, base)``.
    base : Checkpoint, optional
        For its EMA's ``step``; without it, the step before is taken as step less update.
    """
    step, update, limits = checkpoint.ema_step, checkpoint.update, []
    before = base.ema_step if base is not None else None
    if step is None:
        limits.append("the EMA's step was not kept: no closed form")
    elif before is None and update is not None:
        before = max(step - update, 0)
        limits.append("the step before training is taken as step less update")
    elif before is not None and update and abs(step - update - before) > 1:
        limits.append(f"step {step} is not the base's {before} plus update {update}: another base, or a resumed run")
    if step is None or before is None or before > step:
        before = None
    updates = step - before if step is not None and before is not None else None
    schedule = schedules.read_schedule(checkpoint.scheduler)
    rates = schedule.update_rates(updates) if schedule and updates and updates == update else None
    if rates is not None and not rates.sum():
        rates = None
    weight = low = high = expected = None
    if before is not None and updates:
        weight = weight_of_base(before, updates)
        expected = 1 - expected_alpha(before, updates, "adamw", rates)
        low, high = weight, 1 - min(expected_alpha(before, updates, p, rates) for p in ("drift", "diffusion"))
    overall = comparison.overall if comparison is not None and comparison.has_base else None
    if overall is None:
        limits.append("no base given: the share is not measured")
    elif (overall.rounding_share or 0) > ROUNDED:
        limits.append("the EMA moved little more than its stored precision: the measured share is rounding")
    alpha = overall.alpha if overall is not None else None
    if overall is not None and overall.base_between:
        alpha = None
        limits.append("the base lies between EMA and raw weights, so training did not start from it: the share is not measured")
    elif overall is not None and overall.strayed:
        alpha = None
        limits.append("the EMA did not come the raw weights' way from the base: what is measured along it is no share")
    return BaseShare(
        step_before=before,
        updates=updates,
        weight=weight,
        expected=expected,
        expected_low=low,
        expected_high=high,
        measured=None if alpha is None else 1 - alpha,
        cosine=overall.path_cosine if overall is not None else None,
        schedule="the file's scheduler" if rates is not None else "taken as constant",
        limits=tuple(limits),
    )


def choose_base(base: Checkpoint) -> dict[str, Any]:
    """Return the base's weights as the trainer takes them: its EMA, where it has one."""
    return base.weights(base_slot(base))


@dataclass(frozen=True)
class Study:
    """Raw against EMA of one checkpoint (both from the base, where there is one), or its one set against the base's.

    `comparison` is None, and `compared` says why, where the file holds one set of weights and no base is given.
    """

    checkpoint: Checkpoint
    base: Checkpoint | None
    compared: str
    comparison: Comparison | None
    share: BaseShare | None
    notices: tuple[slots.SlotNotice, ...]

    @property
    def has_both(self) -> bool:
        """Whether the checkpoint holds raw and EMA weights."""
        return set(self.checkpoint.slots) == {"raw", "ema"}


def study(checkpoint: Checkpoint, base: Checkpoint | None = None) -> Study:
    """Compare what a checkpoint holds, as far as it goes."""
    slot = checkpoint.slots[0]
    if len(checkpoint.slots) == 1 and base is None:
        reason = f"{checkpoint.path.name} holds {slot} weights only: nothing to compare"
        return Study(checkpoint, base, reason, None, None, tuple(slots.judge_slots(checkpoint)))
    found = scan_checkpoint(checkpoint, base)
    comparison = diffs.comparison_of(found.scan, *weights_of(found))
    if len(checkpoint.slots) == 1:
        compared = f"{slot} of A against {found.sets[1][1]} of B"
        return Study(checkpoint, base, compared, comparison, None, (*slots.judge_slots(checkpoint), *slots.judge_one(slot, comparison.overall)))
    compared = "raw against EMA" + (", both from the base" if base is not None else "")
    share = base_share(checkpoint, comparison, base)
    return Study(checkpoint, base, compared, comparison, share, tuple(slots.judge_slots(checkpoint, comparison)))


def sibling_points(study: Study, limit: int = 3) -> list[tuple[int, float]]:
    """Return (update, progress) of other checkpoints of the same run, ``model_<update>.pt`` in the same folder.

    Progress is <R_u - P, R - P> / |R - P|^2; at most `limit` files are read, spread evenly; none without a base.
    """
    update = study.checkpoint.update
    if study.base is None or not study.has_both or not update:
        return []
    numbers = {int(p.stem.removeprefix("model_")): p for p in study.checkpoint.path.parent.glob("model_[0-9]*.pt")
               if p.stem.removeprefix("model_").isdigit()}  # fmt: skip
    between = sorted(number for number in numbers if 0 < number < update)
    chosen = [between[i] for i in sorted(set(np.linspace(0, len(between) - 1, limit).astype(int)))] if between else []
    points = []
    for number in chosen:
        sibling = checkpoints.open_checkpoint(numbers[number])
        if "raw" in sibling.slots and sibling.update == number:
            way = diffs.compare(
                study.checkpoint.weights("raw"), sibling.weights("raw"), choose_base(study.base)
            ).overall
            points.append((number, way.alpha if way.alpha is not None else 0.0))
    return points


def share_rows(study: Study, points: Sequence[tuple[int, float]] = ()) -> list[dict[str, Any]]:
    """Return how much of the EMA is still the base, as table rows in percent."""
    share = study.share
    if share is None:
        return [{"quantity": "base in the EMA", "value": None, "how": study.compared}]
    reach = (
        None if share.expected_low is None else f"{100 * share.expected_low:.1f} to {100 * share.expected_high:.1f} %"
    )
    rows = [
        ("EMA step before, updates since", f"{share.step_before}, {share.updates}", "step of the base; step less that"),
        ("weight of the base", _percent(share.weight), "product of the decays: exact, the least the share can be"),
        ("share expected", _percent(share.expected), f"path adamw, learning rates: {share.schedule}"),
        ("share possible", reach, "from a jump to the slower of drift and diffusion"),
        ("share measured", _percent(share.measured), "1 - projection of EMA - base on raw - base"),
        (
            "measured less expected",
            None if share.gap is None else f"{100 * share.gap:+.2f} points",
            "should be within 2",
        ),
    ]
    if points and share.updates:
        schedule = schedules.read_schedule(study.checkpoint.scheduler)
        rates = schedule.update_rates(share.updates) if schedule else None
        exact = 1 - interpolated_alpha(share.step_before or 0, share.updates, points, rates)
        rows.insert(
            3, ("share expected, path measured", _percent(exact), f"{len(points)} other checkpoints of the run")
        )
    return [{"quantity": name, "value": value, "how": how} for name, value, how in rows]


def _percent(value: float | None) -> str | None:
    return None if value is None else f"{100 * value:.1f} %"


def report(a: str | FilePath, b: str | FilePath | None = None) -> dict[str, Any]:
    """Return raw against EMA of one checkpoint (and both against the base `b`), or `a` against `b` where `a` holds one
    set of weights, or set against set where both hold two; JSON-able; what ``f5lab diff`` shows.

    Raises
    ------
    CheckpointError
        A file cannot be opened, or there is nothing to compare.
    """
    first, second = checkpoints.open_checkpoint(a), checkpoints.open_checkpoint(b) if b is not None else None
    if second is not None and len(first.slots) == len(second.slots) == 2:
        return pairs.report(first, second)
    found = study(first, second)
    if found.comparison is None:
        raise CheckpointError(found.compared, next_step="pass a second checkpoint, or the trainer's full model_*.pt")
    comparison, overall = found.comparison, found.comparison.overall
    return {
        "a": str(found.checkpoint.path),
        "b": str(second.path) if second is not None else None,
        "compared": found.compared,
        "identical": comparison.identical,
        "base_share": asdict(found.share) | {"gap": found.share.gap} if found.share is not None else None,
        "notices": [asdict(notice) for notice in found.notices],
        "only_in_a": list(comparison.only_a),
        "only_in_b": list(comparison.only_b),
        "reshaped": comparison.reshaped,
        "text_rows_cut": comparison.cut_rows,
        "values_left_out": overall.left_out,
        "overall": diffs.as_records([("all", overall)], comparison.has_base)[0],
        "modules": diffs.as_records(comparison.modules().items(), comparison.has_base),
    }
