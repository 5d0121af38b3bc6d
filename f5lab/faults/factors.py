"""What differs between two recipes, in words, and switching one difference at a time."""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

from f5lab import models, vocabs
from f5lab.errors import VocabError
from f5lab.specs import Recipe

T = TypeVar("T")

WORDS = {
    "weights": "which set of weights is loaded",
    "vocab": "which row of the embedding a symbol gets",
    "front_end": "how a text is split into symbols",
    "mel_spec_type": "which mel features the model is given",
    "vocoder": "what turns the mel into a wave",
    "precision": "in which floating-point format the model runs",
    "path": "prompt and duration: the clip itself and twice its length (trainer), or a prepared reference and the byte rule",
    "nfe_step": "how many steps the sampler takes",
    "cfg_strength": "how strong the guidance is",
    "sway_sampling_coef": "where the sampler's steps are dense",
    "speed": "by what the duration is divided",
    "fix_duration": "total duration in seconds, the reference included",
    "backbone": "which network is built",
    "checkpoint": "which file is loaded",
}
FORWARD = ("weights", "backbone", "arch.", "vocab", "front_end", "mel_spec_type", "precision", "checkpoint")
"""Factors that change the model's forward pass; a probe and a parity test see these and no others."""


@dataclass(frozen=True)
class Factor:
    """One field in which two recipes differ.

    Attributes
    ----------
    name : str
        Field of the recipe; options of the architecture as ``arch.<option>``.
    a, b : object
        Its values, constructor defaults spelled out.
    stated : tuple of bool
        Whether each side says so itself (False: it is the constructor's default).
    says : str
        What the field decides.
    shown_by_shapes : bool
        Whether a wrong value would fail to load.
    """

    name: str
    a: Any
    b: Any
    stated: tuple[bool, bool]
    says: str
    shown_by_shapes: bool

    @property
    def in_forward(self) -> bool:
        """Whether the factor changes the forward pass itself."""
        return self.name.startswith(FORWARD)


_SHAPED = ("dim", "depth", "heads", "dim_head", "ff_mult", "text_dim", "conv_layers", "qk_norm", "long_skip_connection")
_WITHOUT_EFFECT = ("dropout", "checkpoint_activations", "attn_backend", "attn_mask_enabled")
"""Options that change nothing in a forward pass of one clip in eval mode: never a factor."""


def diff(a: Recipe, b: Recipe, device: str = "cpu") -> list[Factor]:
    """Return every field in which two recipes differ, defaults spelled out, forward-pass factors first.

    Vocab files that map every symbol to the same index are equal, whatever their bytes; ``auto`` precision is what it
    is on `device`; options without effect on a single clip at inference are left out.
    """
    found = [_plain(name, a, b, device) for name in ("checkpoint", "weights", "backbone")]
    found += _options(a, b)
    found += [_vocab(a, b)]
    rest = ("front_end", "mel_spec_type", "precision", "vocoder", "path", "nfe_step", "cfg_strength",
            "sway_sampling_coef", "speed", "fix_duration")  # fmt: skip
    found += [_plain(name, a, b, device) for name in rest]
    return [factor for factor in found if factor is not None]


def _plain(name: str, a: Recipe, b: Recipe, device: str) -> Factor | None:
    values = [getattr(recipe, name) for recipe in (a, b)]
    if name == "precision":
        values = [models.pick_precision(value, device) for value in values]
    if values[0] == values[1]:
        return None
    return Factor(name, *values, (True, True), WORDS[name], name == "backbone")


def _options(a: Recipe, b: Recipe) -> Iterable[Factor]:
    sides = [models.full_options(r.backbone, r.arch) for r in (a, b)]
    for name in sorted({*sides[0], *sides[1]}):
        x, y = (side.get(name) for side in sides)
        if x != y and name not in _WITHOUT_EFFECT:
            says = "no tensor shape shows it" if name not in _SHAPED else "shapes show it: a wrong value fails to load"
            yield Factor(f"arch.{name}", x, y, (name in a.arch, name in b.arch), says, name in _SHAPED)


def _vocab(a: Recipe, b: Recipe) -> Factor | None:
    if a.vocab == b.vocab:
        return None
    try:
        if vocabs.compare(vocabs.read_vocab(a.vocab), vocabs.read_vocab(b.vocab)).harmless:
            return None
    except VocabError:
        pass
    return Factor("vocab", a.vocab, b.vocab, (True, True), WORDS["vocab"], False)


def switch(recipe: Recipe, other: Recipe, names: Sequence[str]) -> Recipe:
    """Return `recipe` with the named factors taken from `other`; an option left out there is left out here too.

    Examples
    --------
    ``switch(inference, trainer, ["arch.pe_attn_head"])`` repairs one option; the other way round breaks it.
    """
    changes: dict[str, Any] = {}
    arch = dict(recipe.arch)
    for name in names:
        if name.startswith("arch."):
            key = name.removeprefix("arch.")
            arch.pop(key, None)
            if key in other.arch:
                arch[key] = other.arch[key]
        else:
            changes[name] = getattr(other, name)
    return recipe.but(arch=arch, **changes)


def bisect(items: Sequence[T], holds: Callable[[Sequence[T]], bool]) -> list[T]:
    """Return a smallest subset for which `holds` is still true, none of whose members can be left out.

    Delta debugging (Zeller and Hildebrandt 2002, "Simplifying and isolating failure-inducing input", IEEE TSE 28(2),
    algorithm ddmin); needs ``holds(items)``, asks each subset once.

    Raises
    ------
    ValueError
        `holds` is false for the whole.

    Examples
    --------
    >>> bisect([1, 2, 3, 4, 5, 6, 7, 8], lambda kept: {3, 6} <= set(kept))
    [3, 6]
    """
    known: dict[tuple[int, ...], bool] = {}

    def ask(indices: Sequence[int]) -> bool:
        key = tuple(indices)
        if key not in known:
            known[key] = holds([items[i] for i in key])
        return known[key]

    kept, parts = list(range(len(items))), 2
    if not ask(kept):
        raise ValueError("the whole set does not hold")
    while len(kept) > 1:
        size = -(-len(kept) // parts)
        chunks = [kept[i : i + size] for i in range(0, len(kept), size)]
        smaller = next((chunk for chunk in chunks if ask(chunk)), None)
        if smaller is not None:
            kept, parts = smaller, 2
            continue
        rest = next((r for c in chunks if (r := [i for i in kept if i not in c]) and ask(r)), None)
        if rest is not None:
            kept, parts = rest, max(parts - 1, 2)
        elif parts >= len(kept):
            break
        else:
            parts = min(2 * parts, len(kept))
    return [items[i] for i in kept]
