"""What a case, an architecture and a recipe are. No torch.

Axis letters used in every docstring: ``b`` batch, ``n`` mel frames, ``d`` mel channels or features, ``nt`` text tokens,
``nw`` wave samples, as at the top of upstream's ``model/cfm.py``.
"""

import re
import unicodedata
from pathlib import Path
from typing import Any, Literal

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator, model_validator

from f5lab.errors import CaseError
from f5lab.paths import existing_file
from f5lab.presets import PRESETS, Backbone

MOST_YAML_BYTES = 4 << 20

Weights = Literal["ema", "raw"]
FrontEnd = Literal["raw", "pinyin", "byte"]
MelType = Literal["vocos", "bigvgan"]
Precision = Literal["auto", "fp32", "fp16", "bf16"]


class _Spec(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)


class Arch(_Spec):
    """Architecture: a published preset, a hydra config file, or the options themselves; options given win.

    Only options that are set reach the model: what is left out takes the constructor's default, as it does for a user
    who hands ``load_model`` a bare dict.
    """

    preset: str | None = None
    config: Path | None = None
    backbone: Backbone | None = None
    dim: int | None = Field(default=None, gt=0)
    depth: int | None = Field(default=None, gt=0)
    heads: int | None = Field(default=None, gt=0)
    dim_head: int | None = Field(default=None, gt=0)
    ff_mult: int | None = Field(default=None, gt=0)
    text_dim: int | None = Field(default=None, gt=0)
    conv_layers: int | None = Field(default=None, ge=0)
    dropout: float | None = None
    text_mask_padding: bool | None = None
    text_embedding_average_upsampling: bool | None = None
    qk_norm: str | None = None
    pe_attn_head: int | None = None
    attn_backend: str | None = None
    attn_mask_enabled: bool | None = None
    long_skip_connection: bool | None = None
    skip_connect_type: str | None = None
    checkpoint_activations: bool | None = None

    @field_validator("preset")
    @classmethod
    def _known(cls, preset: str | None) -> str | None:
        if preset is not None and preset not in PRESETS:
            raise ValueError(f"no preset {preset!r}; known: {', '.join(PRESETS)}")
        return preset

    @model_validator(mode="after")
    def _one_source(self) -> "Arch":
        if self.preset and self.config:
            raise ValueError("give preset or config, not both")
        return self

    def resolve(self) -> tuple[Backbone, dict[str, Any]]:
        """Return the backbone's name and the options that its constructor is called with.

        Raises
        ------
        CaseError
            `config` is missing or has no ``model.arch``, or the width, which no constructor assumes, is left out.
        """
        options: dict[str, Any] = dict(PRESETS[self.preset]) if self.preset else {}
        if self.config:
            model = self.training_config
            if not isinstance(model.get("arch"), dict):
                raise CaseError(f"{self.config} has no model.arch", expected="a training config as in f5_tts/configs")
            options = {"backbone": model.get("backbone", "DiT"), **model["arch"]}
        given = self.model_dump(exclude={"preset", "config"}, exclude_unset=True)
        options.update(given)
        backbone = options.pop("backbone", None) or "DiT"
        if options and "dim" not in options:
            raise CaseError(
                f"arch gives {', '.join(options)} and no dim, without which no model can be built",
                next_step="give all options of the architecture, or a preset with these beside it: {preset: F5TTS_v1_Base, …}",
            )
        return backbone, options

    @property
    def training_config(self) -> dict[str, Any]:
        """The section ``model`` of `config`; empty without one.

        Raises
        ------
        CaseError
            `config` is missing, or its ``model`` is no mapping.
        """
        model = (_read_yaml(self.config, "architecture config").get("model") or {}) if self.config else {}
        if not isinstance(model, dict):
            raise CaseError(f"model: in {self.config} is no mapping", expected="a training config as in f5_tts/configs")
        return model

    @property
    def is_empty(self) -> bool:
        """Whether nothing at all was said about the architecture."""
        return not self.model_fields_set


class Vocoder(_Spec):
    """Vocoder by name; without `path` upstream's own download is used."""

    name: MelType = "vocos"
    path: Path | None = None


class Training(_Spec):
    """What the trainer ran with, as far as known; `dataset` is its ``raw.arrow``."""

    arch: Arch | None = None
    vocab: Path | None = None
    front_end: FrontEnd | None = None
    mel_spec_type: MelType | None = None
    samples: Path | None = None
    dataset: Path | None = None


class Inference(_Spec):
    """What is run and fails; defaults are those of ``f5_tts.infer.utils_infer`` 1.1.22.

    `assumed` names settings of this block that nobody stated: a cause that rests on one of them is named with less confidence.
    """

    arch: Arch | None = None
    vocab: Path | None = None
    weights: Weights = "ema"
    front_end: FrontEnd = "pinyin"
    mel_spec_type: MelType = "vocos"
    precision: Precision = "auto"
    nfe_step: int = Field(default=32, gt=0, le=10_000)
    cfg_strength: float = Field(default=2.0, ge=-1000, le=1000)
    sway_sampling_coef: float | None = Field(default=-1.0, ge=-1000, le=1000)
    speed: float = Field(default=1.0, ge=0.01, le=100)
    fix_duration: float | None = Field(default=None, gt=0, le=10_000)
    assumed: tuple[str, ...] = ()

    @field_validator("assumed")
    @classmethod
    def _settings(cls, assumed: tuple[str, ...]) -> tuple[str, ...]:
        if unknown := set(assumed) - (set(cls.model_fields) - {"assumed"}):
            raise ValueError(f"no settings of inference: {', '.join(sorted(unknown))}")
        return assumed


class Prompt(_Spec):
    """A reference recording with its text, and the text to be spoken after it.

    `gen_audio` is a real recording of `gen_text`, `spoken_audio` what the user's failing inference made of it.
    """

    id: str = Field(pattern=r"^[A-Za-z0-9_-]+$")
    ref_audio: Path
    ref_text: str
    gen_text: str = Field(min_length=1)
    gen_audio: Path | None = None
    spoken_audio: Path | None = None


class Recorded(_Spec):
    """A figure that somebody published about the case."""

    label: str
    similarity: float | None = None
    cer: float | None = None
    note: str = ""


class Case(_Spec):
    """One investigation; see ``data/cases/ptbr/case.yaml`` for a commented example.

    Where no `language` is stated, the recogniser takes the one that it hears in the recordings. `base_vocab` is the vocab
    that `base` was trained with, `planted` the faults that ``f5lab plant`` put in.
    """

    name: str = Field(default="case", pattern=r"^[A-Za-z0-9_-][A-Za-z0-9._-]*$")
    language: str = "en"
    question: str = "The trainer's samples are fine, inference is not. Why?"
    checkpoint: Path
    base: Path | None = None
    base_vocab: Path | None = None
    vocab: Path | None = None
    vocoder: Vocoder = Vocoder()
    training: Training = Training()
    inference: Inference = Inference()
    prompts: tuple[Prompt, ...] = Field(min_length=1)
    recorded: tuple[Recorded, ...] = ()
    planted: tuple[str, ...] = ()
    path: Path | None = Field(default=None, exclude=True)

    @model_validator(mode="after")
    def _vocab_somewhere(self) -> "Case":
        if self.vocab is None and (self.training.vocab is None or self.inference.vocab is None):
            raise ValueError("no vocab: give `vocab`, or one under both training and inference")
        ids = [prompt.id for prompt in self.prompts]
        if len(set(ids)) != len(ids):
            raise ValueError(f"prompt ids repeat: {sorted(i for i in set(ids) if ids.count(i) > 1)}")
        return self

    @property
    def language_text(self) -> str:
        """The language for a reader: the stated one, or that none is."""
        return self.language if "language" in self.model_fields_set else "language not stated"

    @property
    def training_vocab(self) -> Path:
        """Vocab that the training used, or the case's one when nothing else is said."""
        return self.training.vocab or self.vocab or self.inference.vocab  # type: ignore[return-value]

    @property
    def inference_vocab(self) -> Path:
        """Vocab that inference is given."""
        return self.inference.vocab or self.vocab or self.training.vocab  # type: ignore[return-value]


class Recipe(_Spec):
    """The complete, frozen description of one synthesis.

    `path` says whose code speaks: ``trainer`` is what ``Trainer.train`` does for a logged sample (in-process model,
    dataset mel as condition, text doubled, exactly twice the duration), ``inference`` is ``load_model`` +
    ``preprocess_ref_audio_text`` + ``infer_process``, ``accelerate`` the trainer's with the model prepared and
    unwrapped by Accelerate.
    """

    name: str
    path: Literal["trainer", "inference", "accelerate"]
    checkpoint: Path
    weights: Weights
    backbone: Backbone
    arch: dict[str, Any]
    vocab: Path
    front_end: FrontEnd
    mel_spec_type: MelType
    vocoder: Vocoder
    precision: Precision = "auto"
    nfe_step: int = 32
    cfg_strength: float = 2.0
    sway_sampling_coef: float | None = -1.0
    speed: float = 1.0
    fix_duration: float | None = None

    def but(self, **changes: Any) -> "Recipe":
        """Return a copy with some fields changed, validated anew."""
        return Recipe.model_validate({**self.model_dump(), **changes})


class _Once(yaml.SafeLoader):
    """Refuses a mapping that gives a key twice: of the two, YAML silently keeps the last."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        """Return a mapping, whose keys all differ."""
        given = [key.value for key, _ in node.value if isinstance(key, yaml.ScalarNode) and key.value != "<<"]
        for key, _ in node.value:
            if isinstance(key, yaml.ScalarNode) and given.count(key.value) > 1:
                raise yaml.constructor.ConstructorError(None, None, f"{key.value}: given twice", key.start_mark)
        return super().construct_mapping(node, deep)


def parse_yaml(text: str) -> Any:
    """Return what YAML says, as `yaml.safe_load`.

    Raises
    ------
    yaml.YAMLError
        It is none, or a mapping gives a key twice.
    """
    return yaml.load(text, Loader=_Once)


def _read_yaml(path: Path, what: str) -> dict[str, Any]:
    existing_file(path, CaseError, what)
    if path.stat().st_size > MOST_YAML_BYTES:
        raise CaseError(f"{what} {path} has {path.stat().st_size:,} bytes", expected=f"at most {MOST_YAML_BYTES:,}")
    try:
        data = parse_yaml(path.read_text(encoding="utf-8"))
    except (yaml.YAMLError, ValueError, RecursionError) as error:  # ValueError: no UTF-8, impossible dates and numbers
        reason = " ".join(str(error).split())[:300]
        raise CaseError(f"{what} {path} is not YAML in UTF-8 ({reason})") from error
    if not isinstance(data, dict):
        raise CaseError(f"{what} {path} holds {type(data).__name__}", expected="a mapping of keys to values")
    return data


def _resolved(data: Any, model: type[BaseModel], folder: Path) -> Any:
    """Make the path fields of a raw mapping absolute, following the spec's own types."""
    if not isinstance(data, dict):
        return data
    resolved = {}
    for key, value in data.items():
        field = model.model_fields.get(key)
        kinds = _kinds(field.annotation) if field else []
        nested = next((k for k in kinds if isinstance(k, type) and issubclass(k, BaseModel)), None)
        if Path in kinds and isinstance(value, str):
            value = (folder / Path(value).expanduser()).resolve()
        elif nested and isinstance(value, list):
            value = [_resolved(item, nested, folder) for item in value]
        elif nested:
            value = _resolved(value, nested, folder)
        resolved[key] = value
    return resolved


def _kinds(annotation: Any) -> list[Any]:
    arguments = getattr(annotation, "__args__", None)
    return [kind for inner in arguments for kind in _kinds(inner)] if arguments else [annotation]


def load_case(path: str | Path) -> Case:
    """Read a case file; paths in it are relative to it.

    Raises
    ------
    CaseError
        The file is missing or not YAML, has unknown or impossible keys (all of them are listed), or names files that
        do not exist.
    """
    path = Path(path).expanduser().resolve()
    data = _read_yaml(path, "case file")
    try:
        resolved = _resolved(data, Case, path.parent)
    except (ValueError, RuntimeError, OSError) as error:  # a NUL, a ring of links, a name without end
        raise CaseError(f"{path} names a path that no file can have ({error})", next_step="correct the paths") from error
    try:
        case = Case.model_validate({"name": name_of(path.parent), **resolved, "path": path})
    except ValidationError as error:
        raise CaseError(
            f"{path} is not a valid case",
            offenders=[_explain(item) for item in error.errors()],
            next_step="compare with data/cases/ptbr/case.yaml",
        ) from error
    missing = [f"{label} ({file})" for label, file in case_files(case) if not file.exists()]
    if missing:
        raise CaseError(f"{path} names files that do not exist", offenders=missing, next_step="correct the paths")
    return case


def name_of(folder: Path) -> str:
    """Return a name that a case in a folder may have: the folder's, without what a name cannot hold."""
    plain = "".join(c for c in unicodedata.normalize("NFKD", folder.name) if not unicodedata.combining(c))
    return re.sub(r"[^A-Za-z0-9._-]+", "-", plain).strip("-.") or "case"


def _explain(item: Any) -> str:
    where = ".".join(str(part) for part in item["loc"]) or "case"
    if item["type"] == "extra_forbidden":
        return f"{where}: unknown key"
    if item["type"] == "missing":
        return f"{where}: missing"
    return f"{where}: {item['msg'].removeprefix('Value error, ').replace('a valid tuple', 'a list')}"


def case_files(case: Case) -> list[tuple[str, Path]]:
    """Return every (label, path) that a case names, for hashing and existence checks."""
    named: list[tuple[str, Path | None]] = [
        ("checkpoint", case.checkpoint),
        ("base", case.base),
        ("base_vocab", case.base_vocab),
        ("vocab", case.vocab),
        ("vocoder.path", case.vocoder.path),
        ("training.vocab", case.training.vocab),
        ("training.samples", case.training.samples),
        ("training.dataset", case.training.dataset),
        ("inference.vocab", case.inference.vocab),
    ]
    for block, arch in (("training", case.training.arch), ("inference", case.inference.arch)):
        named.append((f"{block}.arch.config", arch.config if arch else None))
    for prompt in case.prompts:
        named += [
            (f"prompts.{prompt.id}.ref_audio", prompt.ref_audio),
            (f"prompts.{prompt.id}.gen_audio", prompt.gen_audio),
            (f"prompts.{prompt.id}.spoken_audio", prompt.spoken_audio),
        ]
    return [(label, file) for label, file in named if file is not None]
