"""Blends of raw, EMA and base weights: how the probe's loss and the CER run between them, and the best point.

A blend is ``sum_k c_k w_k`` with coefficients that sum to 1, in float32 (Wortsman et al. 2022, "Model soups", ICML; for one
training run and its average the blend moves along the EMA's own path).
"""

import itertools
import shutil
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import save_file
from torch import Tensor

from f5lab import bars, bundles, models, vocabs
from f5lab.batches import Pair
from f5lab.checkpoints import EMA_PREFIX, Checkpoint
from f5lab.errors import BundleError, CheckpointError, LabError, ModelError, UsageError
from f5lab.faults.examinations import Exam
from f5lab.grids import FEWEST_PROMPTS
from f5lab.listening import Booth
from f5lab.oracles import Scored
from f5lab.paths import atomic_path, free_folder, sha256_file
from f5lab.probes import FEW_ITEMS, Bench, Hypothesis, Item, Probe
from f5lab.specs import Case, Recipe
from f5lab.statistics import DIFFERENCE, Estimate, paired_difference, paired_ratio

SOURCES = ("raw", "ema", "base")


@dataclass(frozen=True)
class Mix:
    """Coefficients of a blend; they sum to 1."""

    raw: float = 0.0
    ema: float = 0.0
    base: float = 0.0

    def __post_init__(self) -> None:
        total = self.raw + self.ema + self.base
        if not np.isfinite(total) or abs(total - 1) > 1e-6:
            raise UsageError(f"coefficients {self.shares} sum to {total:.4g}", expected="a sum of 1")

    @property
    def shares(self) -> dict[str, float]:
        """Coefficients that are not 0, by source."""
        return {name: value for name in SOURCES if (value := getattr(self, name))}

    @property
    def name(self) -> str:
        """Such as ``0.75 raw + 0.25 ema``."""
        return " + ".join(f"{value:g} {name}" for name, value in self.shares.items())


def read_mix(text: str) -> Mix:
    """Return the mix that ``raw=0.75,ema=0.25`` names.

    Raises
    ------
    UsageError
        An unknown source, a coefficient that is no number, or a sum other than 1.
    """
    shares: dict[str, float] = {}
    for part in text.split(","):
        name, _, value = part.strip().partition("=")
        try:
            shares[name] = shares.get(name, 0.0) + float(value)
        except ValueError as error:
            raise UsageError(f"mix {text!r}", expected="coefficients as in raw=0.75,ema=0.25") from error
    if unknown := set(shares) - set(SOURCES):
        raise UsageError(f"mix {text!r} names no source of weights", offenders=unknown, expected="raw, ema or base")
    return Mix(**shares)


@dataclass(frozen=True)
class Sources:
    """Sets of weights that can be blended.

    Attributes
    ----------
    weights : dict of str to dict of str to Tensor
        Under upstream's names, by source; all have the same names and shapes.
    missing : dict of str to str
        Source to the reason why it cannot take part.
    files : dict of str to Path
    """

    weights: dict[str, Mapping[str, Tensor]]
    missing: dict[str, str]
    files: dict[str, Path]

    def lattice(self, steps: int = 4) -> list[Mix]:
        """Return every mix of the sources whose coefficients are multiples of ``1 / steps``, single sources first."""
        names = list(self.weights)
        counts = [c for c in itertools.product(range(steps + 1), repeat=len(names)) if sum(c) == steps]
        counts.sort(key=lambda c: (-max(c), c))
        return [Mix(**{n: k / steps for n, k in zip(names, c)}) for c in counts]

    def line(self, steps: int = 4) -> list[Mix]:
        """Return the mixes from the first source to the second, ends included; one mix where there is one source."""
        first, *rest = list(self.weights)
        if not rest:
            return [Mix(**{first: 1.0})]
        return [Mix(**{first: 1 - k / steps, rest[0]: k / steps}) for k in range(steps + 1)]


def find_sources(case: Case, checkpoint: Checkpoint, base: Checkpoint | None) -> Sources:
    """Return which of raw, EMA and base weights a case has, and why another cannot take part.

    The base stays out where its tensors have other shapes or its vocab another order: rows of the text embedding that
    stand for different symbols have no mean.
    """
    weights: dict[str, Mapping[str, Tensor]] = {}
    missing: dict[str, str] = {}
    for name in ("raw", "ema"):
        if name in checkpoint.slots:
            weights[name] = checkpoint.weights(name)
        else:
            missing[name] = f"{checkpoint.path.name} has only {', '.join(checkpoint.slots)} weights"
    files = dict.fromkeys(weights, checkpoint.path)
    first = next(iter(weights.values()))
    if base is None:
        missing["base"] = "the case names no base"
    elif reason := _other_vocab(case):
        missing["base"] = reason
    else:
        slot = "ema" if "ema" in base.slots else base.slots[0]
        weights["base"], files["base"] = base.weights(slot), base.path
    for name in list(weights):
        odd = _misfits(first, weights[name])
        if odd:
            missing[name] = f"{len(odd)} tensors of other names or shapes, such as {odd[0]}"
            del weights[name], files[name]
    return Sources(weights, missing, files)


def _other_vocab(case: Case) -> str:
    if case.base_vocab is None or case.base_vocab == case.training_vocab:
        return ""
    try:
        same = vocabs.compare(vocabs.read_vocab(case.base_vocab), vocabs.read_vocab(case.training_vocab)).harmless
    except LabError as error:
        return str(error)
    return "" if same else "the base's vocab gives symbols other rows of the text embedding"


def _misfits(a: Mapping[str, Tensor], b: Mapping[str, Tensor]) -> list[str]:
    return sorted(set(a) ^ set(b)) + sorted(n for n in set(a) & set(b) if a[n].shape != b[n].shape)


def blend(sources: Sources, mix: Mix) -> dict[str, Tensor]:
    """Return the blended weights in float32.

    Raises
    ------
    CheckpointError
        A source of the mix is not there; its reason is told.
    """
    lacking = [f"{name} ({sources.missing.get(name, 'unknown')})" for name in mix.shares if name not in sources.weights]
    if lacking:
        raise CheckpointError(f"{mix.name} cannot be blended", offenders=lacking, next_step="leave it out of the mix")
    parts = [(value, sources.weights[name]) for name, value in mix.shares.items()]
    return {
        name: sum(
            (value * weights[name].float() for value, weights in parts[1:]), parts[0][0] * parts[0][1][name].float()
        )
        for name in parts[0][1]
    }


def write_blend(sources: Sources, mix: Mix, folder: Path) -> Path:
    """Write a blend as ``model.safetensors`` into a folder and return its path.

    Names carry ``ema_model.``, which is what upstream's loader asks for by default; recipes load it as ``ema``.
    """
    tensors = {EMA_PREFIX + name: tensor.contiguous() for name, tensor in blend(sources, mix).items()}
    facts = {f"sha256 of {name}": sha256_file(sources.files[name]) for name in mix.shares}
    with atomic_path(folder / "model.safetensors") as temporary:
        save_file(tensors, temporary, metadata={"format": "pt", "blend": mix.name, **facts})
    return folder / "model.safetensors"


class _Blended(Bench):
    """A bench whose one model has blended weights."""

    def __init__(self, model: torch.nn.Module, device: str) -> None:
        super().__init__(device)
        self._only = model

    def model(self, recipe: Recipe) -> torch.nn.Module:
        return self._only


@dataclass(frozen=True)
class Landscape:
    """The probe's loss over blends.

    Attributes
    ----------
    mixes : tuple of Mix
    losses : np.ndarray [shape=(mixes, recordings)]
        Share of the flow's energy left unexplained, geometric mean over noise draws.
    """

    mixes: tuple[Mix, ...]
    losses: np.ndarray

    @property
    def best(self) -> Mix:
        """The mix of the lowest geometric mean loss: losses are compared by their ratios, as the probe does."""
        return self.mixes[int(np.log(self.losses).mean(1).argmin())]

    def change(self, mix: Mix, reference: Mix) -> Estimate:
        """Return how much higher the loss of a mix is than the reference's, as a share of it, paired over recordings."""
        a, b = (self.losses[self.mixes.index(m)] for m in (reference, mix))
        return paired_ratio(b, a)

    def honest_change(self, reference: Mix) -> Estimate | None:
        """Return the same for the best mix, chosen anew for each recording from the others.

        The lowest of many losses on the recordings that it was chosen by flatters itself; what was left out does not
        know the choice. None with fewer than `FEW_ITEMS` recordings.
        """
        count = self.losses.shape[1]
        if count < FEW_ITEMS:
            return None
        logs = np.log(self.losses)
        others = logs.sum(1, keepdims=True) - logs
        chosen = self.losses[others.argmin(0), np.arange(count)]
        start = self.losses[self.mixes.index(reference)]
        return paired_ratio(chosen, start)

    @property
    def rows(self) -> list[dict[str, object]]:
        """One row a mix, the lowest loss first."""
        best = self.best
        rows = []
        means = np.exp(np.log(self.losses).mean(1))
        for k in means.argsort():
            mix, worse = self.mixes[k], self.change(self.mixes[k], best)
            low, high = (100 * v for v in worse.interval)
            rows.append({"blend": mix.name, "loss": float(means[k]), "above the best by %": 100 * worse.mean,
                         "95 %": f"{low:+.1f} to {high:+.1f}" if np.isfinite(low) else "one recording: no interval"})  # fmt: skip
        return rows


def survey(
    recipe: Recipe,
    sources: Sources,
    mixes: Sequence[Mix],
    items: Sequence[Item],
    *,
    draws: int = 1,
    device: str = "cpu",
) -> Landscape:
    """Score blends by the probe, with the same recordings, noise and times for each; one model is in memory at a time.

    Raises
    ------
    ModelError
        The weights do not fit the recipe's architecture, or a loss is not finite.
    """
    model = models.build_cfm(recipe.backbone, recipe.arch, recipe.vocab, front_end=recipe.front_end, empty=True)
    losses = []
    for mix in mixes:
        models.fill(model, blend(sources, mix), precision=recipe.precision, device=device)
        probe = Probe(items, draws=draws, device=device)
        probe.bench = _Blended(model, device)
        losses.append(np.exp(np.log(probe.loss(Hypothesis(recipe)).values).mean(1)))
    return Landscape(tuple(mixes), np.array(losses))


@dataclass(frozen=True)
class Blending:
    """Blends of a case's weights, scored by the probe.

    Attributes
    ----------
    sources : Sources
    own : Mix
        What inference loads today.
    landscape : Landscape or None
    problem : str
        Why nothing was scored; empty when something was.
    """

    sources: Sources
    own: Mix
    landscape: Landscape | None = None
    problem: str = ""


def explore(exam: Exam, *, steps: int = 4, draws: int = 1) -> Blending:
    """Score every blend of a case's sources in steps of ``1 / steps``, with all other settings as trained.

    What prevents it is said, not raised.

    Raises
    ------
    UsageError
        `steps` is below 1.
    """
    if steps < 1:
        raise UsageError(f"steps {steps}", expected="1 or more")
    sources = find_sources(exam.case, exam.checkpoint, exam.base)
    wanted = exam.case.inference.weights
    own = Mix(**{wanted if wanted in sources.weights else next(iter(sources.weights)): 1.0})
    if len(sources.weights) < 2:
        missing = "; ".join(f"{name}: {reason}" for name, reason in sources.missing.items())
        return Blending(sources, own, problem=f"only {own.name} is there ({missing})")
    bars.stage(f"scoring blends of {', '.join(sources.weights)}")
    try:
        landscape = survey(
            exam.truth.recipe, sources, sources.lattice(steps), exam.probe.items, draws=draws, device=exam.device
        )
    except LabError as error:
        return Blending(sources, own, problem=str(error))
    return Blending(sources, own, landscape)


BETTER = "A blend of raw, EMA and base explains the recordings better than what inference loads."


def report(blending: Blending) -> dict[str, Any]:
    """Return what was found as facts and rows.

    Raises
    ------
    ModelError
        Nothing could be scored.
    """
    landscape = blending.landscape
    if landscape is None:
        raise ModelError(f"blends cannot be scored: {blending.problem}")
    return {"inference_loads": blending.own.name, "best": landscape.best.name, "claim": BETTER, **probe_conclusion(blending),
            "recordings": landscape.losses.shape[1], "left_out": blending.sources.missing, "blends": landscape.rows}  # fmt: skip


@dataclass(frozen=True)
class Heard:
    """Two blends spoken with the same prompts and seeds.

    Attributes
    ----------
    before, after : tuple of Scored
    problem : str
        Why nothing was heard; empty when something was.
    """

    before: tuple[Scored, ...] = ()
    after: tuple[Scored, ...] = ()
    problem: str = ""

    @property
    def change(self) -> Estimate | None:
        """CER after less before, paired, with its interval over prompts; None when nothing was heard."""
        if not self.before:
            return None
        prompts = [scored.sample.prompt_id for scored in self.before]
        return paired_difference([s.cer for s in self.after], [s.cer for s in self.before], prompts, within=DIFFERENCE)


def hear(exam: Exam, recipe: Recipe, blending: Blending, mix: Mix, pairs: Sequence[Pair]) -> Heard:
    """Speak and score a mix, and what inference loads today, on the recipe's path; what prevents it is said, not raised."""
    if mix == blending.own:
        return Heard(problem=f"{mix.name} is what inference loads")
    sides = []
    try:
        for chosen in (blending.own, mix):
            with tempfile.TemporaryDirectory() as folder:
                path = write_blend(blending.sources, chosen, Path(folder))
                spoken = recipe.but(name=chosen.name, checkpoint=path, weights="ema")
                sides.append(tuple(Booth(exam).scored(spoken, pairs)))
    except LabError as error:
        return Heard(problem=str(error))
    return Heard(*sides)


def export(exam: Exam, sources: Sources, mix: Mix, out: Path, *, verify: bool = True) -> dict[str, Any]:
    """Write a new folder with ``blend/model.safetensors`` and ``bundle/``, which the stock command line speaks with.

    All settings but the weights are as trained.

    Returns
    -------
    dict
        ``blend``: name, path and SHA-256; ``bundle``: what `bundles.write_bundle` returns.

    Raises
    ------
    BundleError
        `out` is not empty, nobody knows how the model was built, or the bundle cannot be written or does not speak.
    LabError
        A source is not there, or a file cannot be written.
    """
    out = free_folder(out, BundleError)
    bundles.refuse_unknown_options(exam)
    said = f"These weights are a blend of the case's: {mix.name}."
    try:
        path = write_blend(sources, mix, out / "blend")
        recipe = exam.truth.recipe.but(name=f"blend {mix.name}", path="inference", checkpoint=path, weights="ema")
        facts = bundles.write_bundle(exam.case, out / "bundle", recipe=recipe, verify=verify, device=exam.device, notes=[said])
    except BaseException:  # an interrupted blend would look like one, and be in the way of the next try
        shutil.rmtree(out, ignore_errors=True)
        raise
    return {"blend": {"name": mix.name, "path": str(path), "sha256": sha256_file(path)}, "bundle": facts}


def probe_conclusion(blending: Blending) -> dict[str, Any]:
    """Return verdict, value, unit, interval, n and limitation of: a blend explains the recordings better than today's weights."""
    if blending.landscape is None:
        return {"verdict": "inconclusive", "limitation": blending.problem}
    change = blending.landscape.honest_change(blending.own)
    if change is None:
        return {"verdict": "inconclusive", "limitation": f"needs {FEW_ITEMS} recordings"}
    verdict = "supported" if change.high < 0 else "refuted" if change.low >= 0 else "inconclusive"
    return {"verdict": verdict, "value": 100 * change.mean, "unit": f"% of the loss of {blending.own.name}",
            "interval": (100 * change.low, 100 * change.high), "n": change.n,
            "limitation": "The blend is chosen for each recording from the others. Loss is not yet speech."}  # fmt: skip


def heard_conclusion(heard: Heard) -> dict[str, Any]:
    """Return the same of: the best blend by the probe is heard better than today's weights."""
    change = heard.change
    if change is None:
        return {"verdict": "inconclusive", "limitation": heard.problem}
    verdict = "supported" if change.high < 0 else "refuted" if change.low > 0 else "inconclusive"
    few = change.n < FEWEST_PROMPTS
    return {"verdict": "inconclusive" if few else verdict, "value": change.mean, "unit": "CER, blend less today's weights",
            "interval": change.interval if change.n > 1 else None, "n": change.n,
            "limitation": f"needs {FEWEST_PROMPTS} prompts" if few else ""}  # fmt: skip
