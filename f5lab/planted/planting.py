"""The bench on which a healthy case is given a fault: what plants may change, and how the new case is written.

Nothing of the healthy case is touched: a plant changes a copy, in memory or in a new folder, and the weights are written
once at the end, so that several faults in one checkpoint do not undo each other.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
import yaml
from safetensors.torch import save_file
from torch import Tensor

from f5lab.checkpoints import EMA_PREFIX, open_checkpoint
from f5lab.errors import FaultError
from f5lab.paths import write_text
from f5lab.specimen.curricula import read_clips
from f5lab.specs import Arch, Case, Prompt, load_case

State = dict[str, Tensor]
ROTARY = "transformer.rotary_embed.inv_freq"


@dataclass
class Stored:
    """The content of a checkpoint, to be changed and written again in the layout that the trainer or a tool leaves.

    Attributes
    ----------
    raw, ema : dict of str to Tensor, or None
        Weights under upstream's bare names.
    ema_step : int or None
    initted : bool or None
    update : int or None
    scheduler, optimizer : dict or None
    ema_prefix : str
        What ema_pytorch puts before each name; a tool that stores raw weights there leaves it out.
    wrapper : str
        A wrapper's prefix on every key, as ``module.``.
    file : str
        File name; ``.safetensors`` keeps the EMA alone, or the raw weights without one.
    """

    raw: State | None
    ema: State | None
    ema_step: int | None = None
    initted: bool | None = None
    update: int | None = None
    scheduler: dict[str, Any] | None = None
    optimizer: dict[str, Any] | None = None
    ema_prefix: str = EMA_PREFIX
    wrapper: str = ""
    file: str = "model_last.pt"

    @property
    def slots(self) -> list[State]:
        """The sets of weights that are there."""
        return [state for state in (self.raw, self.ema) if state is not None]

    def sections(self) -> dict[str, Any]:
        """Return the file's top-level entries, as ``Trainer.save_checkpoint`` names them."""
        found: dict[str, Any] = {}
        if self.raw is not None:
            found["model_state_dict"] = {self.wrapper + name: t for name, t in self.raw.items()}
        if self.ema is not None:
            book: dict[str, Tensor] = {} if self.initted is None else {"initted": torch.tensor(self.initted)}
            book |= {} if self.ema_step is None else {"step": torch.tensor(self.ema_step)}
            prefix = self.ema_prefix + self.wrapper
            found["ema_model_state_dict"] = book | {prefix + name: t for name, t in self.ema.items()}
        rest = {"optimizer_state_dict": self.optimizer, "scheduler_state_dict": self.scheduler, "update": self.update}
        return found | {key: value for key, value in rest.items() if value is not None}

    def save(self, path: Path) -> Path:
        """Write the file; `path` is in a folder that is not yet published."""
        sections = self.sections()
        if path.suffix == ".safetensors":
            state = sections.get("ema_model_state_dict") or sections["model_state_dict"]
            save_file({name: tensor.contiguous() for name, tensor in state.items()}, path)
        else:
            torch.save(sections, path)
        return path


def read_stored(path: Path) -> Stored:
    """Read a checkpoint of any layout.

    Raises
    ------
    CheckpointError
        The file is no checkpoint of F5-TTS.
    """
    found = open_checkpoint(path)
    states: dict[str, State] = {slot: dict(found.weights(slot)) for slot in found.slots}
    return Stored(
        raw=states.get("raw"), ema=states.get("ema"), ema_step=found.ema_step, initted=found.initted,
        update=found.update, scheduler=found.scheduler, optimizer=found.optimizer,
        ema_prefix=EMA_PREFIX if EMA_PREFIX in found.prefixes.get("ema", (EMA_PREFIX,)) else "", file=path.name,
    )  # fmt: skip


@dataclass
class Bench:
    """A case under work.

    Attributes
    ----------
    case : Case
        As changed so far; `origin` is the case as it came.
    root : Path
        New folder for changed files.
    fault : str
        What is being planted, for messages.
    variant : int
        Which of the fault's variants.
    """

    case: Case
    origin: Case
    root: Path
    fault: str = ""
    variant: int = 0
    _stored: Stored | None = field(default=None, repr=False)
    _new_base: Stored | None = field(default=None, repr=False)

    def refuse(self, reason: str, next_step: str | None = None) -> FaultError:
        """Return the error that says why this fault cannot be planted in this case."""
        return FaultError(f"{self.fault} cannot be planted in case {self.origin.name}: {reason}", next_step=next_step)

    def generator(self, salt: int = 0) -> torch.Generator:
        """Return a seeded generator; variants draw other numbers."""
        return torch.Generator().manual_seed(1000 * salt + self.variant)

    def file(self, name: str) -> Path:
        """Return a new path in the folder; a name that an earlier plant has taken is numbered."""
        path, number = self.root / name, 2
        while path.exists():
            path = self.root / Path(name).with_stem(f"{Path(name).stem}_{number}")
            number += 1
        path.parent.mkdir(parents=True, exist_ok=True)
        return path

    def change(self, **fields: Any) -> None:
        """Set fields of the case."""
        self.case = self.case.model_copy(update=fields)

    def forget(self, *fields: str) -> None:
        """Let the case say nothing about some fields."""
        self.case = _without(self.case, fields)

    def training(self, **fields: Any) -> None:
        """Set fields of the training block."""
        self.change(training=self.case.training.model_copy(update=fields))

    def forget_training(self, *fields: str) -> None:
        """Let the training block say nothing about some fields; about nothing at all when none is given."""
        names = fields or tuple(type(self.case.training).model_fields)
        self.change(training=_without(self.case.training, names))

    def forget_inference(self, *fields: str) -> None:
        """Let the inference block leave some fields at their defaults."""
        self.change(inference=_without(self.case.inference, fields))

    def inference(self, **fields: Any) -> None:
        """Set fields of the inference block."""
        self.change(inference=self.case.inference.model_copy(update=fields))

    def checkpoint(self, *needs: str) -> Stored:
        """Return the checkpoint's content, to be changed in place; it is written when the case is.

        Raises
        ------
        FaultError
            A slot of `needs` ("raw", "ema") is not in the file.
        """
        self._stored = self._stored or read_stored(self.case.checkpoint)
        missing = [slot for slot in needs if getattr(self._stored, slot) is None]
        if missing:
            raise self.refuse(
                f"its checkpoint has no {' and no '.join(missing)} weights", "pass the trainer's full file"
            )
        return self._stored

    def base(self) -> Stored:
        """Return the base's content; change it through `write_base` only.

        Raises
        ------
        FaultError
            The case names no base.
        """
        if self._new_base is not None:
            return self._new_base
        if self.case.base is None:
            raise self.refuse("it names no base", "add `base:` to the case")
        return read_stored(self.case.base)

    def base_weights(self) -> State:
        """Return the base's weights as the trainer takes them: its EMA where it has one."""
        return self.base().slots[-1]

    def write_base(self, weights: State, step: int | None = None) -> None:
        """Give the case another base, EMA only, as bases are released."""
        step = self.base().ema_step if step is None else step
        self._new_base = Stored(raw=None, ema=weights, ema_step=step, initted=True)

    def arch(self) -> tuple[str, dict[str, Any]]:
        """Return backbone and options of the training, or of inference where the training is unknown.

        Raises
        ------
        FaultError
            The case says nothing about the architecture.
        """
        for arch in (self.case.training.arch, self.case.inference.arch):
            if arch is not None and not arch.is_empty:
                return arch.resolve()
        raise self.refuse("it says nothing about the architecture", "add `training: {arch: …}`")

    def own_arch(self) -> Arch:
        """Return the architecture of `arch` with its options spelled out."""
        backbone, options = self.arch()
        known = {k: v for k, v in options.items() if k in Arch.model_fields}
        return Arch(backbone=backbone, **known)

    def recordings(self) -> list[tuple[Path, str]]:
        """Return real recordings with their texts: the prompts' own, and those of the speech table beside them.

        Of the table only the voice that speaks the references is taken, where it says so.
        """
        own = [(p.ref_audio, p.ref_text) for p in self.origin.prompts]
        own += [(p.gen_audio, p.gen_text) for p in self.origin.prompts if p.gen_audio]
        folder = self.origin.prompts[0].ref_audio.parent
        clips = read_clips(folder) if (folder / "metadata.csv").is_file() else []
        voices = {clip.voice for clip in clips if clip.path in {path for path, _ in own}}
        own += [(clip.path, clip.text) for clip in clips if clip.voice in voices]
        return sorted(dict(own).items())

    def add_prompt(self, audio: Path, text: str, like: Prompt | None = None) -> None:
        """Append a prompt that speaks the text of a real recording after a reference of the case."""
        like = like or self.case.prompts[0]
        taken = {prompt.id for prompt in self.case.prompts}
        name = next(f"p{n:02d}" for n in range(1, len(taken) + 2) if f"p{n:02d}" not in taken)
        added = like.model_copy(update={"id": name, "gen_text": text, "gen_audio": audio})
        self.change(prompts=(*self.case.prompts, added))

    def finish(self, planted: tuple[str, ...]) -> Path:
        """Write the changed weights and the case file, and return the latter."""
        if self._stored is not None:
            self.change(checkpoint=self._stored.save(self.file(self._stored.file)))
        if self._new_base is not None:
            self.change(base=self._new_base.save(self.file("base/model_last.pt")))
        if planted:
            self.forget("question")
            self.change(planted=planted, name="-".join([self.case.name, *planted]))
        target = self.root / "case.yaml"
        write_text(target, case_yaml(self.case, self.root))
        load_case(target)
        return target


def _without(spec: Any, fields: tuple[str, ...]) -> Any:
    kept = {name: getattr(spec, name) for name in spec.model_fields_set if name not in fields}
    return type(spec).model_validate(kept)


def case_yaml(case: Case, folder: Path) -> str:
    """Return a case as the text of a case file: what was said and no more; paths in `folder` relative to it."""
    data = _plain(case.model_dump(exclude_unset=True), folder)
    return "# Written by f5lab from another case.\n" + yaml.safe_dump(
        data, allow_unicode=True, sort_keys=False, width=120
    )


def _plain(value: Any, folder: Path) -> Any:
    if isinstance(value, Path):
        path, root = value.resolve(), folder.resolve()
        return path.relative_to(root).as_posix() if path.is_relative_to(root) else str(path)
    if isinstance(value, Mapping):
        return {key: _plain(item, folder) for key, item in value.items()}
    return [_plain(item, folder) for item in value] if isinstance(value, list | tuple) else value


def blend(a: Mapping[str, Tensor], b: Mapping[str, Tensor], share: float) -> State:
    """Return ``a + share * (b - a)`` tensor by tensor, in `b`'s types; integers and rotary frequencies as in `b`.

    Rows that only `b` has (an extended vocab) are taken from it.
    """
    mixed = dict(b)
    for name, tensor in b.items():
        start = a.get(name)
        if start is not None and start.shape == tensor.shape and tensor.is_floating_point() and name != ROTARY:
            mixed[name] = torch.lerp(start.float(), tensor.float(), share).to(tensor.dtype)
    return mixed


def scrambled(state: Mapping[str, Tensor], generator: torch.Generator, only: str = "") -> State:
    """Return the weights with the values of every matrix in another order: same norms, nothing learned left.

    Parameters
    ----------
    only : str
        Touch only names that contain this.
    """
    mixed = dict(state)
    for name, tensor in state.items():
        if tensor.ndim > 1 and tensor.is_floating_point() and only in name:
            order = torch.randperm(tensor.numel(), generator=generator)
            mixed[name] = tensor.flatten()[order].reshape(tensor.shape)
    return mixed
