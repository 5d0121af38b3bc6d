"""What a sweep is: a YAML file of cases, checkpoints and recipes, and every combination of them. No torch."""

import glob
import itertools
import math
import os
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any, Literal, get_args

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator

from f5lab.errors import CaseError
from f5lab.paths import existing_file
from f5lab.specs import Arch, Case, FrontEnd, MelType, Precision, Weights, load_case, parse_yaml

Measure = Literal["cer", "loss", "duration", "speaker"]
MEASURES: tuple[Measure, ...] = get_args(Measure)
Start = Literal["inference", "trainer", "repaired"]
NUMBERS = ("nfe_step", "cfg_strength", "sway_sampling_coef", "speed", "fix_duration")


class _Spec(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)


class Settings(_Spec):
    """Changes to a case's recipe; what is left out stays as the case has it.

    `start` says which recipe is changed: what the case's inference does, the trainer's path, or the inference path with the
    options as trained; what a case does not state of the training is inferred by the probe. `arch` is laid over that
    recipe's options, one by one.
    """

    start: Start | None = None
    weights: Weights | None = None
    front_end: FrontEnd | None = None
    mel_spec_type: MelType | None = None
    precision: Precision | None = None
    arch: dict[str, Any] | None = None
    nfe_step: int | None = Field(default=None, gt=0)
    cfg_strength: float | None = Field(default=None, ge=0)
    sway_sampling_coef: float | None = None
    speed: float | None = Field(default=None, gt=0)
    fix_duration: float | None = Field(default=None, gt=0)

    @field_validator("arch")
    @classmethod
    def _known_options(cls, arch: dict[str, Any] | None) -> dict[str, Any] | None:
        if arch is not None:
            if barred := {"preset", "config"} & set(arch):
                raise ValueError(f"{', '.join(sorted(barred))}: give single options")
            Arch.model_validate(arch)
        return arch

    @property
    def given(self) -> dict[str, Any]:
        """The fields that were set, a null included (no sway sampling, for example)."""
        return {name: getattr(self, name) for name in type(self).model_fields if name in self.model_fields_set}


class Sweep(_Spec):
    """A grid: cases x checkpoints x recipes x grid x prompts x seeds.

    Attributes
    ----------
    checkpoints : tuple of str
        Files or patterns (``ckpts/voz/model_*.pt``) that stand in for each case's own; left out, the case's own.
    recipes : dict of str to Settings
        Named changes to the recipe; left out, one without any.
    grid : dict of str to list
        Values for single settings; every combination is laid over every recipe.
    prompts : tuple of str, int or None
        Ids, or how many of each case's from the first; left out, all.
    """

    cases: tuple[Path, ...] = Field(min_length=1)
    checkpoints: tuple[str, ...] = ()
    recipes: dict[str, Settings] = Field(default_factory=lambda: {"as the case says": Settings()}, min_length=1)
    grid: dict[str, tuple[Any, ...]] = {}
    prompts: tuple[str, ...] | Annotated[int, Field(ge=1)] | None = None
    seeds: tuple[Annotated[int, Field(ge=0, lt=2**63)], ...] = Field(default=(0,), min_length=1)
    measures: tuple[Measure, ...] = MEASURES
    asr: str = "base"

    @field_validator("grid")
    @classmethod
    def _known_settings(cls, grid: dict[str, tuple[Any, ...]]) -> dict[str, tuple[Any, ...]]:
        for name, values in grid.items():
            if name not in Settings.model_fields:
                raise ValueError(f"no setting {name!r}; known: {', '.join(Settings.model_fields)}")
            if not values:
                raise ValueError(f"{name}: no values")
            for value in values:
                if name in NUMBERS and value is not None and not _is_number(value):
                    raise ValueError(f"{name}: {value!r} is not a number")
                Settings.model_validate({name: value})
        return grid

    @field_validator("seeds")
    @classmethod
    def _different(cls, seeds: tuple[int, ...]) -> tuple[int, ...]:
        if len(set(seeds)) < len(seeds):
            raise ValueError("seeds repeat")
        return seeds

    @property
    def combinations(self) -> list[tuple[str, dict[str, Any], Settings]]:
        """Every named recipe with every point of the grid, in order, and both together; the grid wins over the recipe."""
        points = [dict(zip(self.grid, values)) for values in itertools.product(*self.grid.values())]
        return [
            (name, point, Settings.model_validate({**recipe.given, **point}))
            for name, recipe in self.recipes.items() for point in points
        ]  # fmt: skip


def _is_number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)


def load_sweep(path: str | Path) -> Sweep:
    """Read a sweep file; paths and patterns in it are relative to it.

    Raises
    ------
    CaseError
        The file is missing or not YAML, or has unknown or impossible keys; all of them are listed.
    """
    path = existing_file(Path(path).expanduser().resolve(), CaseError, "sweep file")
    try:
        data = parse_yaml(path.read_text(encoding="utf-8"))
    except (yaml.YAMLError, ValueError, RecursionError) as error:  # ValueError: no UTF-8, impossible dates
        raise CaseError(f"sweep file {path} is not YAML in UTF-8 ({' '.join(str(error).split())})") from error
    if not isinstance(data, dict):
        raise CaseError(f"sweep file {path} holds {type(data).__name__}", expected="a mapping with cases:")
    for key in ("cases", "checkpoints"):
        if isinstance(data.get(key), list):
            data[key] = [_beside(path.parent, v, pattern=key == "checkpoints") if isinstance(v, str) else v for v in data[key]]
    try:
        return Sweep.model_validate(data)
    except ValidationError as error:
        offenders = [f"{'.'.join(map(str, e['loc'])) or 'sweep'}: {_reason(e)}" for e in error.errors()]
        raise CaseError(
            f"{path} is not a valid sweep", offenders=offenders, next_step="see `f5lab sweep --help`"
        ) from error


def _beside(folder: Path, given: str, pattern: bool) -> str:
    """Return a path, or a pattern, as seen from a folder, whose own name is no pattern."""
    own = Path(given).expanduser()
    if not pattern or own.is_absolute():
        return str(folder / own)
    plain = folder / own
    return glob.escape(str(plain)) if plain.is_file() else os.path.join(glob.escape(str(folder)), str(own))


def _reason(item: Any) -> str:
    return "unknown key" if item["type"] == "extra_forbidden" else item["msg"].removeprefix("Value error, ").replace("a valid tuple", "a list")


def find_cases(sweep: Sweep) -> Iterator[tuple[Case, Path]]:
    """Yield every case with every checkpoint.

    Raises
    ------
    CaseError
        A case is not valid, a checkpoint does not exist, a pattern matches none, or a prompt is in no case.
    """
    files: list[Path] = []
    for given in sweep.checkpoints:
        found = sorted((Path(p) for p in _expanded(given)), key=_in_order)
        if not found:
            raise CaseError(f"no checkpoint {given}", next_step="correct the paths under checkpoints:, which are relative to the sweep file")
        files += [p.resolve() for p in found if p.resolve() not in files]
    cases = [load_case(path) for path in sweep.cases]
    names = [case.name for case in cases]
    if len(set(names)) < len(names):
        raise CaseError(
            "cases of one name", offenders={n for n in names if names.count(n) > 1}, next_step="give one of them another name (the line name: in its case file)"
        )
    if isinstance(sweep.prompts, tuple):
        known = {prompt.id for case in cases for prompt in case.prompts}
        if missing := set(sweep.prompts) - known:
            raise CaseError("prompts that no case has", offenders=missing)
    for case in cases:
        for file in files or [case.checkpoint]:
            yield case, file


def _in_order(path: Path) -> list[Any]:
    """Numbers in a name count as numbers: model_2 before model_10."""
    return [int(part) if part.isdigit() else part for part in re.split(r"(\d+)", str(path))]


def _expanded(given: str) -> list[str]:
    return [given] if Path(given).is_file() else glob.glob(given)
