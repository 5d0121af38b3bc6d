"""The sampler's path from noise to speech: every state of the ODE, and where two recipes part on it.

Nothing is sampled here: upstream's own ``CFM.sample`` runs inside ``infer_process``, and what it returns and drops, the
trajectory, is kept. With Euler steps the guided velocity is ``v_k = (x_{k+1} - x_k) / (t_{k+1} - t_k)`` and the mel that
it points to ``x_k + (1 - t_k) v_k``.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import torch

from f5lab import models
from f5lab.audio import Wave
from f5lab.errors import CaseError, LabError, ModelError
from f5lab.faults import factors
from f5lab.models import HOP, RATE_HZ
from f5lab.samplers import Studio
from f5lab.specs import Case, Prompt, Recipe


@dataclass(frozen=True)
class Trajectory:
    """One synthesis, step by step.

    Attributes
    ----------
    recipe, prompt_id, text : str
    seed : int
    times : np.ndarray [shape=(s + 1,)]
        Flow time of each state, 0 noise to 1 speech.
    states : np.ndarray [shape=(s + 1, n, d), dtype=float32]
        ``x_t``, the prompt's frames included.
    guidance : np.ndarray [shape=(s,)]
        RMS over the generated frames of what guidance adds to the velocity; 0 without guidance.
    start : int
        First generated frame.
    mel : np.ndarray [shape=(n - start, d)]
        What the sampler handed to the vocoder. Its first frame is the reference's last: ``infer_batch_process`` counts one
        frame less than ``CFM.sample``, which puts the reference's frames back at the end.
    wave : Wave
    """

    recipe: str
    prompt_id: str
    text: str
    seed: int
    times: np.ndarray
    states: np.ndarray
    guidance: np.ndarray
    start: int
    mel: np.ndarray
    wave: Wave

    @property
    def velocities(self) -> np.ndarray:
        """Guided velocity of each step over the generated frames [shape=(s, n - start, d)], nats per unit of time."""
        return np.diff(self.states[:, self.start :], axis=0) / np.diff(self.times)[:, None, None]

    @property
    def estimates(self) -> np.ndarray:
        """The mel that each step points to [shape=(s, n - start, d)], natural log."""
        rest = (1 - self.times[:-1])[:, None, None]
        return self.states[:-1, self.start :] + rest * self.velocities

    @property
    def velocity_norms(self) -> np.ndarray:
        """RMS of each step's velocity over the generated frames [shape=(s,)]."""
        return np.sqrt(np.square(self.velocities, dtype=np.float64).mean((1, 2)))

    @property
    def rows(self) -> list[dict[str, object]]:
        """One row a step."""
        return [
            {"step": k, "t": float(t), "velocity RMS": float(v), "guidance RMS": float(g)}
            for k, (t, v, g) in enumerate(zip(self.times, self.velocity_norms, self.guidance))
        ]

    @property
    def label(self) -> str:
        """Caption for a player or a figure."""
        return f"{self.recipe} · {self.prompt_id} · seed {self.seed}"


def record(studio: Studio, recipe: Recipe, prompt: Prompt, seed: int) -> Trajectory:
    """Synthesise one prompt on the inference path and keep its trajectory.

    Raises
    ------
    ModelError
        The recipe is not on the inference path, the text is spoken in several pieces (`first_piece` gives one), or the
        model cannot be loaded or run.
    AudioError, CaseError
        As for `Studio.speak`.
    """
    if recipe.path != "inference":
        raise ModelError(f"recipe {recipe.name!r} speaks on the {recipe.path} path", expected="path: inference")
    with _overheard(studio.model(recipe)) as calls:
        sample = studio.speak(recipe, prompt, seed)
    if len(calls) != 1:
        raise ModelError(
            f"the text of prompt {prompt.id} is spoken in {len(calls)} pieces", expected="one",
            next_step="use trajectories.first_piece",
        )  # fmt: skip
    call = calls[0]
    states, start = call.states, len(call.states[0]) - len(sample.mel)
    if len(call.times) != len(states) - 1:
        raise ModelError(f"{len(call.times)} evaluations for {len(states) - 1} steps", expected="one a step (Euler)")
    times = np.array([*call.times, 1.0])
    guidance = np.array([recipe.cfg_strength * g for g in call.pulls(start)])
    return Trajectory(
        recipe.name, prompt.id, sample.text, seed, times, states, guidance, start, sample.mel, sample.wave
    )


class _Call:
    """One call of ``CFM.sample``: the times at which the network was asked, what it said, and the trajectory."""

    def __init__(self) -> None:
        self.times: list[float] = []
        self.states = np.empty((0, 0, 0), np.float32)
        self._gaps: list[np.ndarray] = []

    def pulls(self, start: int) -> list[float]:
        """Return the RMS over generated frames of conditional less unconditional velocity, for each step."""
        return [float(np.sqrt(gap[start:].mean())) if len(gap) else 0.0 for gap in self._gaps]

    def hear(self, _module: torch.nn.Module, _args: object, given: dict[str, Any], output: torch.Tensor) -> None:
        """Keep one evaluation of the network; a forward hook."""
        self.times.append(float(given["time"]))
        if given.get("cfg_infer"):
            with_text, without = output.float().chunk(2)
            self._gaps.append((with_text - without)[0].square().mean(-1).cpu().numpy())
        else:
            self._gaps.append(np.empty(0))


@contextmanager
def _overheard(model: torch.nn.Module) -> Iterator[list[_Call]]:
    """Yield a list that each ``sample`` of the model adds to; the model is left as it was."""
    calls: list[_Call] = []
    model.sample = partial(_sample, model, model.sample, calls)
    try:
        yield calls
    finally:
        del model.sample


def _sample(model: torch.nn.Module, stock: Any, calls: list[_Call], *args: Any, **kwargs: Any) -> Any:
    call = _Call()
    handle = model.transformer.register_forward_hook(call.hear, with_kwargs=True)
    try:
        made, trajectory = stock(*args, **kwargs)
    finally:
        handle.remove()
    call.states = trajectory[:, 0].float().cpu().numpy()
    calls.append(call)
    return made, trajectory


def find_prompt(case: Case, id: str = "") -> Prompt:
    """Return the prompt of an id, the first one where none is named.

    Raises
    ------
    CaseError
        The case has no such prompt.
    """
    known = {prompt.id: prompt for prompt in case.prompts}
    if id and id not in known:
        raise CaseError(f"no prompt {id!r}", expected=f"one of {', '.join(known)}")
    return known[id] if id else case.prompts[0]


def first_piece(prompt: Prompt, recipe: Recipe) -> Prompt:
    """Return the prompt with as much of its text as ``infer_process`` speaks in one call of the sampler.

    Upstream speaks longer texts in pieces, in threads that share one random generator; under one seed two recipes would
    not start from the same noise.
    """
    if not prompt.ref_text.strip():
        return prompt  # refused when it is spoken: upstream would guess what the reference says
    pieces = models.pieces(*models.prepare_reference(prompt.ref_audio, prompt.ref_text), prompt.gen_text, recipe.speed)
    if len(pieces) <= 1:
        return prompt
    return prompt.model_copy(update={"gen_text": pieces[0], "gen_audio": None})


def as_trained_but_sampler(given: Recipe, trained: Recipe, device: str = "cpu") -> Recipe:
    """Return `given` with everything that its model computes as trained, and its own sampler, path and vocoder.

    Under one seed the two start from the same noise and take the same steps, so every difference is the model's.
    """
    names = [f.name for f in factors.diff(given, trained, device) if f.in_forward]
    return factors.switch(given, trained, names).but(name="model as trained")


@dataclass(frozen=True)
class Parting:
    """Where two trajectories from the same noise part.

    Attributes
    ----------
    times : np.ndarray [shape=(s,)]
    apart : np.ndarray [shape=(s, n)]
        RMS difference of the two mel estimates, nats, for each step and generated frame.
    final : np.ndarray [shape=(n,)]
        The same of the two mels that reached the vocoder.
    """

    times: np.ndarray
    apart: np.ndarray
    final: np.ndarray

    @property
    def by_step(self) -> np.ndarray:
        """RMS over all generated frames [shape=(s,)], nats."""
        return np.sqrt(np.square(self.apart).mean(1))

    @property
    def total(self) -> float:
        """RMS difference of the two final mels, nats."""
        return float(np.sqrt(np.square(self.final).mean()))

    @property
    def half_t(self) -> float | None:
        """The flow time by which the estimates are half as far apart as the final mels; None where these are equal."""
        if not self.total:
            return None
        return next((float(t) for t, far in zip(self.times, self.by_step) if far >= self.total / 2), 1.0)

    @property
    def densest_half_s(self) -> tuple[float, float] | None:
        """The shortest stretch of the generated clip, in seconds, that holds half of the squared final difference.

        None where the final mels are equal.
        """
        energy = np.concatenate([[0.0], np.cumsum(np.square(self.final))])
        if not energy[-1]:
            return None
        ends = np.searchsorted(energy, energy + energy[-1] / 2 * (1 - 1e-12))
        spans = [(int(end) - first, first, int(end)) for first, end in enumerate(ends) if end < len(energy)]
        _, first, last = min(spans)
        return first * HOP / RATE_HZ, last * HOP / RATE_HZ


def part(a: Trajectory, b: Trajectory) -> Parting:
    """Compare two trajectories step by step.

    Raises
    ------
    ModelError
        They have different lengths or take different steps: then not even their noise is the same.
    """
    if a.states.shape != b.states.shape or a.start != b.start or not np.allclose(a.times, b.times, atol=1e-3):
        raise ModelError(
            f"{a.label} has {a.states.shape[1]} frames in {len(a.times) - 1} steps, {b.label} {b.states.shape[1]} in {len(b.times) - 1}",
            expected="the same frames, steps and flow times",
            next_step="give both the same sampler settings",
        )
    return Parting(a.times[:-1], _rms(a.estimates - b.estimates), _rms(a.mel - b.mel))


def _rms(difference: np.ndarray) -> np.ndarray:
    return np.sqrt(np.square(difference, dtype=np.float64).mean(-1))


@dataclass(frozen=True)
class Pair:
    """The case's inference and the same sampler with the model as trained, under one seed.

    Attributes
    ----------
    given, trained : Trajectory or None
    parting : Parting or None
    between_seeds : Parting or None
        The model as trained under this seed and the next: how far apart two takes are that are both right.
    problem : str
        Why there is nothing to compare; empty when there is.
    """

    given: Trajectory | None = None
    trained: Trajectory | None = None
    parting: Parting | None = None
    between_seeds: Parting | None = None
    problem: str = ""

    @property
    def first_beyond_seeds_t(self) -> float | None:
        """The first flow time at which the recipes are further apart than two seeds; None when they never are."""
        if self.parting is None or self.between_seeds is None:
            return None
        pairs = zip(self.parting.times, self.parting.by_step, self.between_seeds.by_step)
        return next((float(t) for t, recipes, seeds in pairs if recipes > seeds), None)

    @property
    def since(self) -> str:
        """``, from t = … on``, for a sentence; empty when they never part that far."""
        beyond = self.first_beyond_seeds_t
        return "" if beyond is None else f", from t = {beyond:.2g} on"

    @property
    def rows(self) -> list[dict[str, object]]:
        """One row a step: flow time, both velocities' RMS, how far the estimates are apart, and how far two seeds are."""
        if self.given is None or self.trained is None or self.parting is None or self.between_seeds is None:
            return []
        columns = (self.parting.times, self.given.velocity_norms, self.trained.velocity_norms,
                   self.parting.by_step, self.between_seeds.by_step)  # fmt: skip
        return [
            {"step": k, "t": float(t), "velocity RMS, as it is": float(v), "as trained": float(w),
             "apart (nat)": float(far), "two seeds apart (nat)": float(seeds)}
            for k, (t, v, w, far, seeds) in enumerate(zip(*columns))
        ]  # fmt: skip


def record_pair(studio: Studio, given: Recipe, trained: Recipe, prompt: Prompt, seed: int = 0) -> Pair:
    """Record a prompt by two recipes with the same sampler; what prevents it is said, not raised."""
    try:
        piece = first_piece(prompt, given)
        right, other = (record(studio, trained, piece, s) for s in (seed, seed + 1))
        wrong = record(studio, given, piece, seed)
        return Pair(wrong, right, part(wrong, right), part(right, other))
    except LabError as error:
        return Pair(problem=str(error))


def conclusion(pair: Pair) -> dict[str, Any]:
    """Return verdict, value, unit, n and limitation of: the two paths part further than two seeds of the right one do."""
    if pair.parting is None:
        return {"verdict": "inconclusive", "limitation": pair.problem}
    beyond = pair.first_beyond_seeds_t
    return {"verdict": "refuted" if beyond is None else "supported", "value": pair.parting.total,
            "unit": "RMS difference of the final mels (nat)", "n": 1,
            "limitation": "One prompt and one seed."}  # fmt: skip
