"""Which settings the weights were trained with, where nobody knows: hypotheses scored by the probe.

Coordinate descent over what a wrong value would not raise for: set of weights, mel type, vocab, hidden options of the
architecture, text front end. A stated setting is kept unless another explains the recordings clearly better.
"""

import contextlib
import hashlib
import logging
import tempfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from typing import Any

from f5lab import models, probes, vocabs
from f5lab.checkpoints import Checkpoint
from f5lab.errors import LabError, ModelError, VocabError
from f5lab.paths import cache_dir, write_text
from f5lab.probes import Gate, Hypothesis, Probe
from f5lab.specs import Case, FrontEnd, Recipe
from f5lab.training_sets import read_rows, stored_front_end
from f5lab.weights import anatomy
from f5lab.weights.architectures import TEXT_EMBEDDING

logger = logging.getLogger(__name__)

HIDDEN = {"DiT": {"text_mask_padding": (True, False), "pe_attn_head": (None, 1)},
          "UNetT": {"text_mask_padding": (True, False), "pe_attn_head": (None, 1)}, "MMDiT": {"text_mask_padding": (True, False)}}  # fmt: skip
"""Options without a trace in the shapes that upstream's own configs differ in."""
STAND_IN = 0xE000
"""Private-use characters stand for rows of a repaired vocab whose symbol nobody knows."""
GAIN = 0.02
"""A setting is taken to be the trained one when it lowers the loss by at least this share and the interval excludes 0."""


@dataclass(frozen=True)
class Truth:
    """The settings that the weights were trained with, and how each is known.

    Attributes
    ----------
    recipe : Recipe
    known : dict of str to str
        Factor to "stated", "inferred" (the probe says so) or "assumed".
    gate : Gate or None
        What the text is worth to the weights; None where nothing could be probed.
    steps : tuple of dict
        Every hypothesis that was scored, as table rows.
    problem, needs : str
        Why nothing could be inferred, and what would help; empty when something could.
    """

    recipe: Recipe
    known: dict[str, str]
    gate: Gate | None = None
    steps: tuple[dict[str, Any], ...] = ()
    problem: str = ""
    needs: str = ""

    @property
    def identifiable(self) -> bool:
        """Whether hypotheses about text and hidden options can be told apart at all."""
        return self.gate is not None and self.gate.passed

    @property
    def rows(self) -> list[dict[str, Any]]:
        """Each setting with its value and how it is known, as table rows."""
        values = {name: getattr(self.recipe, name) for name in self.known}
        values |= {name: value.name for name, value in values.items() if isinstance(value, Path)}
        values |= {name: ", ".join(f"{k} {v}" for k, v in value.items()) for name, value in values.items() if isinstance(value, dict)}
        return [{"setting": name, "value": values[name], "how it is known": how} for name, how in self.known.items()]


class Search:
    """A descent from the stated settings."""

    def __init__(self, stated: Recipe, probe: Probe) -> None:
        self.probe, self.current = probe, Hypothesis(stated)
        self.steps: list[dict[str, Any]] = []
        self.changed: set[str] = set()
        self.decided: dict[str, bool] = {}

    def step(self, factor: str, candidates: dict[str, Hypothesis]) -> None:
        """Move to the candidate that explains the recordings best, when it is clearly better."""
        best, best_loss = None, float("inf")
        for name, candidate in candidates.items():
            row: dict[str, Any] = {"setting": factor, "hypothesis": name}
            try:
                loss = self.probe.loss(candidate).mean
                row |= {"loss": loss, **self._worse(candidate), "says": ""}
                if self._better(candidate) and loss < best_loss:
                    best, best_loss = candidate, loss
            except LabError as error:
                row |= {"loss": None, "worse by %": None, "95 %": None, "says": str(error)[:200]}
            self.steps.append(row)
        if best is not None:
            self.current = best
            taken = next(name for name, candidate in candidates.items() if candidate is best)
            row = next(r for r in reversed(self.steps) if r["setting"] == factor and r["hypothesis"] == taken)
            row["says"] = "taken"
            self.changed.add(factor)
        others = [candidate for candidate in candidates.values() if candidate != self.current]
        self.decided[factor] = bool(others) and all(map(self._clearly_worse, others))

    def _clearly_worse(self, candidate: Hypothesis) -> bool:
        try:
            return self.probe.compare(self.current, candidate).low > 0
        except LabError:
            return True

    def note(self, factor: str, name: str, hypothesis: Hypothesis) -> None:
        """Score a hypothesis for comparison only; it is never taken."""
        row: dict[str, Any] = {"setting": factor, "hypothesis": name}
        try:
            row |= {"loss": self.probe.loss(hypothesis).mean, **self._worse(hypothesis), "says": "for comparison"}
        except LabError as error:
            row |= {"loss": None, "worse by %": None, "95 %": None, "says": str(error)[:200]}
        self.steps.append(row)

    def _worse(self, candidate: Hypothesis) -> dict[str, Any]:
        try:
            worse = self.probe.compare(self.current, candidate)
        except ModelError:
            return {"worse by %": None, "95 %": None}
        low, high = (100 * v for v in worse.interval)
        return {"worse by %": 100 * worse.mean, "95 %": f"{low:+.1f} to {high:+.1f}"}

    def _better(self, candidate: Hypothesis) -> bool:
        try:
            self.probe.loss(self.current)
        except ModelError:
            return True  # what runs is better than what does not
        worse = self.probe.compare(self.current, candidate)
        return worse.mean < -GAIN and worse.high < 0

    def but(self, **changes: Any) -> Hypothesis:
        """Return the current hypothesis with recipe fields changed."""
        return replace(self.current, recipe=self.current.recipe.but(**changes))


def dataset_front_end(case: Case) -> FrontEnd | None:
    """Return the front end that the dataset's stored texts show; None without a dataset, or where they come out alike by both."""
    if case.training.dataset is None:
        return None
    return stored_front_end(read_rows(case.training.dataset))


def find_truth(
    case: Case, stated: Recipe, probe: Callable[[], Probe], checkpoint: Checkpoint, base: Checkpoint | None
) -> Truth:
    """Return the settings as trained, stated or inferred.

    Parameters
    ----------
    stated : Recipe
        Everything that the case says about training; the rest as inference has it.
    probe : callable
        Makes the probe; a case without recordings raises there, and then nothing is inferred.
    """
    training = case.training
    known = {
        "arch": "stated" if training.arch else "assumed", "vocab": "stated" if training.vocab else "assumed",
        "front_end": "stated" if training.front_end or dataset_front_end(case) else "assumed",
        "mel_spec_type": "stated" if training.mel_spec_type else "assumed", "weights": "assumed",
    }  # fmt: skip
    try:
        search = Search(stated, probe())
    except LabError as error:
        return Truth(stated, known, problem=str(error), needs="a recording of half a second or more with its text")
    slots = {slot: search.but(weights=slot) for slot in checkpoint.slots}
    search.step("weights", slots)
    if base is not None:
        slot = "ema" if "ema" in base.slots else base.slots[0]
        search.note("weights", "the base", search.but(checkpoint=base.path, weights=slot))
    search.step("mel_spec_type", {k: search.but(mel_spec_type=k) for k in ("vocos", "bigvgan")})
    search.step("vocab", dict(_vocab_candidates(case, search, checkpoint, base)))
    search.step("arch", dict(_flag_candidates(search)))
    search.step("front_end", dict(_front_ends(search)))
    if search.changed & {"arch", "vocab"}:  # what was masked by a wrong vocab or option may show now
        search.step("weights", {slot: search.but(weights=slot) for slot in checkpoint.slots})
        search.step("arch", dict(_flag_candidates(search)))
    try:
        gate = probes.text_gate(search.probe, search.current)
    except LabError as error:
        return Truth(stated, known, steps=tuple(search.steps), problem=str(error), needs="weights that fit the model, and whose output is finite")
    if not gate.passed:
        return Truth(stated.but(weights=search.current.recipe.weights), known, gate=gate, steps=tuple(search.steps))
    known |= dict.fromkeys(search.changed, "inferred")
    known |= {factor: "inferred" for factor in known if known[factor] == "assumed" and search.decided.get(factor)}
    return Truth(search.current.recipe.but(name="as trained"), known, gate, tuple(search.steps))


def _flag_candidates(search: Search) -> Iterator[tuple[str, Hypothesis]]:
    recipe = search.current.recipe
    full = models.full_options(recipe.backbone, recipe.arch)
    options = [{}]
    for name, values in HIDDEN[recipe.backbone].items():
        options = [{**o, name: v} for o in options for v in values] if name in full else options
    for option in options:
        if any(full[name] != value for name, value in option.items()):
            says = ", ".join(f"{name} {value}" for name, value in option.items())
            yield says, search.but(arch={**recipe.arch, **option})


def _front_ends(search: Search) -> Iterator[tuple[str, Hypothesis]]:
    texts = [item.text for item in search.probe.items]
    if search.current.recipe.front_end == "byte":
        return
    if any([*models.front_end("pinyin")(t)] != list(t) for t in texts):
        for name in ("raw", "pinyin"):
            if name != search.current.recipe.front_end:
                yield name, search.but(front_end=name)


def _vocab_candidates(
    case: Case, search: Search, checkpoint: Checkpoint, base: Checkpoint | None
) -> Iterator[tuple[str, Hypothesis]]:
    recipe = search.current.recipe
    if recipe.front_end == "byte":
        return
    named = {"training's": case.training.vocab, "inference's": case.inference.vocab, "the case's": case.vocab,
             "the base's": case.base_vocab, "repaired by rows": repaired_vocab(checkpoint, base, case.base_vocab)}  # fmt: skip
    tried = {recipe.vocab}
    for name, path in named.items():
        if path is not None and path not in tried:
            tried.add(path)
            yield name, search.but(vocab=path)
    for offset in (-1, 1):
        with contextlib.suppress(VocabError):  # one that cannot be read has been scored as such already
            yield f"indices moved by {offset:+d}", search.but(vocab=moved_vocab(recipe.vocab, offset))


def repaired_vocab(checkpoint: Checkpoint, base: Checkpoint | None, base_vocab: Path | None) -> Path | None:
    """Return a vocab file whose order is the one that the fine-tune's embedding rows have, by the base's rows.

    Needs a base, its vocab, and rows that match convincingly; None otherwise, or when the order is the base's own. The
    file is written to the cache, named by its content.
    """
    if base is None or base_vocab is None:
        return None
    try:
        names = {i: t for t, i in vocabs.read_vocab(base_vocab).char_map.items()}
    except VocabError:
        return None
    slot = checkpoint.slots[0]
    base_slot = slot if slot in base.slots else base.slots[0]
    rows, base_rows = checkpoint.weights(slot)[TEXT_EMBEDDING], base.weights(base_slot)[TEXT_EMBEDDING]
    if rows.shape[1] != base_rows.shape[1]:
        return None
    match = anatomy.match_rows(rows, base_rows)
    if match.convincing < 0.8 or match.identity_share == 1.0 or len(set(match.nearest)) < len(match.nearest):
        return None
    return _kept_vocab([names.get(i, "") for i in match.nearest])


def moved_vocab(vocab: Path, offset: int) -> Path:
    """Return a vocab file in which every symbol's index is higher by `offset`; rows left without one get a stand-in.

    The file is written to the cache, named by its content.

    Raises
    ------
    VocabError
        `vocab` cannot be read.
    """
    given = vocabs.read_vocab(vocab)
    names = {index + offset: token for token, index in given.char_map.items()}
    return _kept_vocab([names.get(index, chr(STAND_IN + index)) for index in range(given.largest_index + 1)])


def _kept_vocab(symbols: Sequence[str]) -> Path:
    text = "".join(f"{symbol}\n" for symbol in symbols)
    name = f"{hashlib.sha256(text.encode()).hexdigest()[:16]}.txt"
    try:
        path = cache_dir("vocabs") / name
        if not path.is_file() or path.read_bytes() != text.encode():
            write_text(path, text)
    except (OSError, LabError) as error:
        logger.warning("nothing was cached: %s", error)
        path = Path(_own_folder().name) / name
        path.write_text(text, encoding="utf-8")
    return path


@cache
def _own_folder() -> tempfile.TemporaryDirectory[str]:
    """Return a folder of this process, which goes with it."""
    return tempfile.TemporaryDirectory(prefix="f5lab-vocabs-")


def recipe_options(recipe: Recipe) -> dict[str, Any]:
    """Return a recipe's architecture with every hidden option spelled out, as a case file's ``arch:`` takes it."""
    full = models.full_options(recipe.backbone, recipe.arch)
    hidden = {name: full[name] for name in HIDDEN[recipe.backbone] if name in full}
    return {"backbone": recipe.backbone, **recipe.arch, **hidden}
