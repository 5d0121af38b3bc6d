"""The fixed bundle: right weights, vocab, architecture, vocoder and commands in one folder, checked by speaking.

Only the stock ``f5-tts_infer-cli`` speaks in the check, by the bundle's own ``run.sh``: a fix that was not heard to
work is not a fix. Three things of that command line (1.1.22) shape the folder. It loads the EMA slot, so whatever the right weights
are, they go under ``ema_model.``. It looks for a local vocoder in ``../checkpoints`` of the folder it runs in, so ``run.sh``
runs it in the bundle's ``checkpoints``. And it always converts text, so a raw-text model gets stand-ins (`spellings`).
"""

import json
import logging
import shlex
import shutil
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import soundfile as sf
import torch
import yaml
from jinja2 import Environment, FileSystemLoader, StrictUndefined
from safetensors.torch import save_file

from f5lab import bars, catalogue, diagnosis, models, provenance, samplers, spellings
from f5lab.bundle_speech import UNDERSTOOD, Check, is_understood, mean_cer, misheard, speak
from f5lab.checkpoints import EMA_PREFIX, open_checkpoint
from f5lab.errors import BundleError, CaseError
from f5lab.faults import weight_faults
from f5lab.faults.examinations import Exam, Suspicion
from f5lab.paths import TEMPLATES, existing_file, free_folder, new_folder, sha256_file, write_text
from f5lab.specs import Case, MelType, Recipe
from f5lab.spellings import Spelling
from f5lab.vocabs import Vocab, read_vocab
from f5lab.weights import architectures

logger = logging.getLogger(__name__)

MANIFEST = "bundle.json"

VOCODER_FOLDERS: dict[MelType, str] = {
    "vocos": "../checkpoints/vocos-mel-24khz",
    "bigvgan": "../checkpoints/bigvgan_v2_24khz_100band_256x",
}
"""Where ``infer_cli.py`` 1.1.22 looks for a local vocoder; no flag changes it."""

REPAIRED = {"arch", "weights", "front_end", "mel_spec_type", "nfe_step", "cfg_strength", "sway_sampling_coef", "speed",
            architectures.INV_FREQ, "strip from the keys", "after an error"}  # fmt: skip
"""What a bundle sets right, of all that a cause's ``settings`` name."""
_NEARLY_ZERO_CFG, _NEARLY_ZERO_SWAY = 1e-6, 1e-9


def bundle_recipe(case: Case) -> Recipe:
    """Return the inference path with everything as trained, stated or inferred.

    The weights stay those that the case loads, unless something is wrong with its EMA; then they are the raw ones.
    What the weights contradict is not taken from the case: a training block may be wrong.

    Raises
    ------
    CheckpointError, AudioError
        The checkpoint or a recording cannot be read.
    BundleError
        The architecture's hidden options are neither stated nor can they be inferred.
    """
    return _as_trained(*_examined(case))


def _examined(case: Case) -> tuple[Exam, list[Suspicion]]:
    exam = Exam(case, asr="")
    refuse_unknown_options(exam)
    return exam, diagnosis.examine(exam)


def refuse_unknown_options(exam: Exam) -> None:
    """Refuse a case of which nobody knows how its model was built: a bundle of it would be a guess.

    Raises
    ------
    BundleError
    """
    if exam.truth.known["arch"] == "assumed":
        raise BundleError(
            "the options that no shape shows are neither stated nor can be inferred"
            + (f" ({exam.truth.problem})" if exam.truth.problem else ""),
            next_step="state training.arch, or give prompts whose recordings have their texts",
        )


def _as_trained(exam: Exam, found: Iterable[Suspicion]) -> Recipe:
    return exam.truth.recipe.but(
        name="inference, settings as trained", precision=exam.case.inference.precision,
        weights=weight_faults.right_weights(exam, found),
    )  # fmt: skip


def write_bundle(
    case: Case, out: Path, *, recipe: Recipe | None = None, verify: bool = True, device: str = "auto", notes: Sequence[str] = (),
) -> dict[str, Any]:  # fmt: skip
    """Write a folder that the stock F5-TTS command line speaks with.

    Parameters
    ----------
    case : Case
        The reference voice and the texts that are spoken in the check come from its prompts.
    out : Path
        A folder that does not exist or is empty. It appears complete or not at all.
    recipe : Recipe, optional
        What is right; default `bundle_recipe`.
    verify : bool
        Speak up to four prompts through ``run.sh`` and score what Whisper hears.
    device : str
        Where the check computes: "auto", "cuda", "mps" or "cpu".
    notes : sequence of str
        What else is to be said of it to whoever gets it.

    Returns
    -------
    dict
        What ``bundle.json`` holds: recipe, ``sources`` and ``files`` with SHA-256, versions, ``checks``, ``mean_cer``.

    Raises
    ------
    BundleError
        `out` is not empty, the stock command line cannot do what the recipe says, token ids would differ from the raw
        text's, or the command line fails or is silent.
    CaseError, CheckpointError, ModelError, VocabError, AudioError, AsrError
        The case's files are not what they should be; the weights do not load strictly.
    """
    out = free_folder(out, BundleError)
    said = list(notes)
    if recipe is None:
        bars.stage("finding out what is wrong")
        exam, found = _examined(case)
        recipe = _as_trained(exam, found)
        said += not_repaired(exam, found, recipe)
    device = models.pick_device(device)
    _refuse_impossible(case, recipe)
    vocab = read_vocab(recipe.vocab)
    spelling = _spelling(case, recipe, vocab)
    with new_folder(out, BundleError) as folder:
        said = _write_parts(case, recipe, vocab, spelling, folder) + said
        bars.stage("loading what was written")
        _load_strictly(recipe, folder)
        _write_programs(case, recipe, spelling, said, [], folder)
        if verify:
            bars.stage("speaking it by the stock command line, and hearing it")
        checks = speak(case, folder, device) if verify else []
        said += misheard(checks)
        _write_programs(case, recipe, spelling, said, checks, folder)
        facts = _facts(case, recipe, spelling, said, checks, folder)
        write_text(folder / MANIFEST, json.dumps(facts, ensure_ascii=False, indent=2) + "\n")
    logger.info("bundle written to %s", out)
    return facts


def summary(facts: Mapping[str, Any], text: str, out: Path) -> dict[str, Any]:
    """Return what a person wants to know of ``bundle.json``: changes, notes, what was heard, and the command that speaks `text`."""
    changed = [row | {"what": row["what"].strip("`")} for row in facts["changes"]]
    heard = [{"text": c["text"], "heard": c["heard"], "CER": c["cer"]} for c in facts["checks"]]
    return {
        "case": facts["case"], "verified": _verified(facts), "mean_cer": facts["mean_cer"],
        "speak": shlex.join([str(out / "run.sh"), text]), "more": str(out / "README.md"),
        "changes": changed, "notes": [{"note": note} for note in facts["notes"]], "heard": heard,
    }  # fmt: skip


def _verified(facts: Mapping[str, Any]) -> str:
    """Return whether the bundle was understood, and by which rule."""
    if not facts["checks"]:
        return "no, it was not spoken"
    if facts["mean_cer"] is None:
        return "no: it was spoken, but the texts have no letters to compare"
    answer, rule = ("yes", "at most") if facts["verified"] else ("no", "above")
    return f"{answer}: spoken by the stock command line, its mean CER is {rule} {UNDERSTOOD}"


def not_repaired(exam: Exam, found: Iterable[Suspicion], recipe: Recipe) -> list[str]:
    """Return a sentence for each cause that a bundle with this recipe leaves as it is."""
    left = [item for item in found if item.outcome == "cause" and not _is_repaired(item, exam, recipe)]
    named = [(catalogue.find_fault(item.id), item) for item in left]
    return [f"Not repaired in here: {fault.title} ({fault.id}). {item.claim} {fault.fix}" for fault, item in named]


def _is_repaired(item: Suspicion, exam: Exam, recipe: Recipe) -> bool:
    if item.id == "load-raises":
        return True  # the bundle's own weights are loaded strictly
    if item.id == "precision-bf16-cast":
        return True  # the stock command line never casts to it
    repaired = REPAIRED | ({"vocab"} if recipe.vocab != exam.inference.vocab else set())
    return bool(item.settings) and set(item.settings) <= repaired


def _refuse_impossible(case: Case, recipe: Recipe) -> None:
    if recipe.front_end == "byte":
        raise BundleError(
            "the model was trained on bytes, and the stock command line has no byte front end",
            next_step="call infer_process with a model whose vocab_char_map is None",
        )
    if recipe.vocoder.name != recipe.mel_spec_type:
        raise BundleError(
            f"vocoder {recipe.vocoder.name} for a model of {recipe.mel_spec_type} mels",
            expected="both of one type: the stock command line asserts it",
            next_step="set vocoder.name to what was trained with",
        )
    if not case.prompts[0].ref_text.strip():
        raise CaseError(f"prompt {case.prompts[0].id} has no ref_text", next_step="write down what its recording says")


def _spelling(case: Case, recipe: Recipe, vocab: Vocab) -> Spelling | None:
    """Return stand-ins where the stock converter would change a raw model's ids, proven on the case's prompts."""
    if recipe.front_end != "raw":
        return None
    convert = models.front_end("pinyin")
    texts = [spellings.ended(p.ref_text.strip()) + p.gen_text.strip() for p in case.prompts]
    if not spellings.needs_spelling(vocab, texts, convert):
        return None
    spelling = spellings.find_spelling(vocab, convert)
    # dots in a row are the one thing known to be beyond stand-ins: a note says so, and the rest of such a text is held
    texts_of = {p.id: [spellings.single_dots(t.strip()) for t in (p.ref_text, p.gen_text)] for p in case.prompts}
    broken = [name for name, (ref, gen) in texts_of.items() if not same_ids(vocab, spelling, ref, gen)]
    if broken:
        raise BundleError(
            "the stock converter would change token ids even of texts in stand-ins; prompts", offenders=broken,
            next_step="speak them through f5lab",
        )  # fmt: skip
    return spelling


def same_ids(vocab: Vocab, spelling: Spelling, ref_text: str, gen_text: str) -> bool:
    """Tell whether texts, spelled and converted by upstream, get the ids that the raw texts have in the training vocab.

    Compared is all that ``infer_batch_process`` hands the model: the reference's text as upstream ends it, and the text
    to be spoken.
    """
    up = models.upstream()
    plain = spellings.ended(ref_text) + gen_text
    spelled = spellings.ended(spelling.spell(ref_text)) + spelling.spell(gen_text)
    renamed = {spelling.letters.get(token, token): index for token, index in vocab.char_map.items()}
    raw = up.list_str_to_idx([list(plain)], vocab.char_map)
    converted = up.list_str_to_idx(up.convert_char_to_pinyin([spelled]), renamed)
    return torch.equal(raw, converted)


def _write_parts(case: Case, recipe: Recipe, vocab: Vocab, spelling: Spelling | None, folder: Path) -> list[str]:
    """Write weights, vocab, architecture, vocoder and reference; return what a user should know about them."""
    weights = open_checkpoint(recipe.checkpoint).weights(recipe.weights)
    # cloned: safetensors refuses tensors that share memory or are views
    tensors = {EMA_PREFIX + k: v.detach().clone(memory_format=torch.contiguous_format) for k, v in weights.items()}
    rope = architectures.check_rope(weights)
    renewed = rope.stored and not rope.as_built
    if renewed:
        count = models.full_options(recipe.backbone, recipe.arch)["dim_head"] // 2
        tensors[EMA_PREFIX + architectures.INV_FREQ] = architectures.standard_rope(count).float()
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt", "weights": recipe.weights})
    (folder / "model.safetensors").chmod(0o644)
    if spelling is None:
        shutil.copyfile(recipe.vocab, folder / "vocab.txt")
    else:
        with recipe.vocab.open(encoding="utf-8") as f:  # the last character of each line goes, as in get_tokenizer
            write_text(folder / "vocab.txt", spelling.vocab_text(line[:-1] for line in f))
    write_text(folder / "model.yaml", model_yaml(case, recipe))
    notes = _notes(case, recipe, spelling)
    if renewed:
        notes.append(f"The rotary frequencies were written anew, as 10000^(-2i/d): those of the checkpoint are {rope.verdict}.")
    if recipe.vocoder.path is not None:
        _copy_vocoder(recipe, folder)
    prompt = case.prompts[0]
    wave = samplers.audible(prompt.ref_audio, rate_hz=models.RATE_HZ)
    sf.write(folder / "reference.wav", np.clip(wave.samples, -1, 1), wave.rate_hz, subtype="PCM_16")
    write_text(folder / "reference.txt", prompt.ref_text.strip() + "\n")
    if wave.seconds > models.LONGEST_REFERENCE_S:
        notes.append(
            f"The reference lasts {wave.seconds:.1f} s; F5-TTS cuts it at about {models.LONGEST_REFERENCE_S:.0f} s but keeps its "
            "whole text. A shorter one speaks better."
        )
    return notes


def _copy_vocoder(recipe: Recipe, folder: Path) -> None:
    source, target = recipe.vocoder.path, folder / VOCODER_FOLDERS[recipe.vocoder.name].removeprefix("../")
    if recipe.vocoder.name == "bigvgan":
        shutil.copytree(source, target)
        return
    target.mkdir(parents=True)
    for name in ("config.yaml", "pytorch_model.bin"):
        shutil.copyfile(existing_file(source / name, BundleError, "vocoder file"), target / name)


def _notes(case: Case, recipe: Recipe, spelling: Spelling | None) -> list[str]:
    notes = []
    if recipe.vocoder.path is None:
        notes.append(f"The vocoder is not in here: the command line downloads {recipe.vocoder.name} on first use.")
    if recipe.precision in ("fp16", "bf16"):
        notes.append(
            f"The recipe computes in {recipe.precision}; the command line takes fp16 on recent NVIDIA GPUs and fp32 elsewhere, "
            "and has no flag for it."
        )
    if spelling is not None:
        notes.append("Trained on raw characters: give text to run.sh or speak.py, not to the command line itself.")
        dotted = [p.id for p in case.prompts if ".." in p.ref_text + p.gen_text]
        if dotted:
            notes.append(
                f"Prompts with dots in a row get a space before them that raw text has not: {', '.join(dotted)}."
            )
    elif recipe.front_end == "raw":
        notes.append(
            "Trained on raw characters. The command line's converter leaves this case's texts as they are; a word right "
            "after a bracket or another sign without a space would get a space that raw text has not."
        )
    return notes


def model_yaml(case: Case, recipe: Recipe) -> str:
    """Return the model file for ``--model_cfg``, as ``f5_tts/configs/*.yaml``, every constructor option spelled out."""
    own = recipe.vocoder.path is not None
    model = {
        "name": case.name,
        "tokenizer": "custom",
        "tokenizer_path": "vocab.txt",
        "backbone": recipe.backbone,
        "arch": models.full_options(recipe.backbone, recipe.arch),
        "mel_spec": {**models.MEL, "mel_spec_type": recipe.mel_spec_type},
        "vocoder": {"is_local": own, "local_path": VOCODER_FOLDERS[recipe.vocoder.name] if own else None},
    }
    return yaml.safe_dump({"model": model}, sort_keys=False, allow_unicode=True)


def _load_strictly(recipe: Recipe, folder: Path) -> None:
    """Load what was written as the command line will: names, shapes and vocab size must fit."""
    model = models.build_cfm(recipe.backbone, recipe.arch, folder / "vocab.txt", mel_spec_type=recipe.mel_spec_type)
    models.load_weights(model, folder / "model.safetensors", "ema")


def _write_programs(
    case: Case, recipe: Recipe, spelling: Spelling | None, notes: list[str], checks: list[Check], folder: Path
) -> None:
    """Write run.sh, speak.py, README.md and, with stand-ins, letters.py and its table."""
    environment = Environment(
        loader=FileSystemLoader(TEMPLATES / "bundle"), undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True,
        keep_trailing_newline=True,
    )  # fmt: skip
    environment.filters |= {"quote": shlex.quote, "python": _literal, "cell": _cell}
    facts = {
        "case": case,
        "recipe": recipe,
        "name": case.name,
        "text": case.prompts[0].gen_text.strip(),
        "spelled": spelling is not None,
        "example": _example(spelling),
        "vocoder_folder": VOCODER_FOLDERS[recipe.vocoder.name] if recipe.vocoder.path is not None else None,
        # the command line takes 0 for "not given", and cannot be told None
        "cfg": recipe.cfg_strength or _NEARLY_ZERO_CFG,
        "sway": recipe.sway_sampling_coef or _NEARLY_ZERO_SWAY,
        "short_bytes": spellings.SHORT_TEXT_BYTES,
        "short_speed": spellings.SHORT_TEXT_SPEED,
        "changes": changes(case, recipe),
        "notes": notes,
        "checked": checks,
        "language": case.language_text,
        "f5_version": provenance.versions()["f5-tts"],
    }
    names = ["run.sh", "speak.py", "README.md"]
    if spelling is not None:
        write_text(folder / "letters.json", _table(spelling, case.prompts[0].ref_text.strip()))
        names.append("letters.py")
    for name in names:
        write_text(folder / name, environment.get_template(f"{name}.j2").render(facts))
    (folder / "run.sh").chmod(0o755)


def _literal(value: str | float | None) -> str:
    return json.dumps(value, ensure_ascii=False) if isinstance(value, str) else repr(value)


def _cell(text: str) -> str:
    return " ".join(text.split()).replace("|", "\\|") or "(nothing)"


def _example(spelling: Spelling | None) -> tuple[str, str] | None:
    """Return a character and its stand-in, for the README."""
    changed = spelling.changed if spelling else {}
    return next(((c, changed[c]) for c in ("a", *changed) if c in changed), None)


def _table(spelling: Spelling, ref_text: str) -> str:
    table = {
        "unknown": spelling.unknown,
        "reference_bytes": len(spellings.ended(ref_text).encode()),
        "reference_bytes_spelled": len(spellings.ended(spelling.spell(ref_text)).encode()),
        "letters": spelling.letters,
    }
    return json.dumps(table, ensure_ascii=False, indent=1) + "\n"


def changes(case: Case, recipe: Recipe) -> list[dict[str, str]]:
    """Return how a recipe differs from the inference that failed, as rows of ``what``, ``was``, ``now``."""
    try:
        failed = samplers.inference_recipe(case)
    except CaseError:
        return []  # the case says nothing of how it was run
    was, now = (models.full_options(r.backbone, r.arch) for r in (failed, recipe))
    rows = [(f"`{key}`", was.get(key), now.get(key)) for key in sorted({*was, *now})]
    fields = ("weights", "backbone", "front_end", "mel_spec_type", "nfe_step", "cfg_strength", "sway_sampling_coef",
              "speed", "fix_duration")  # fmt: skip
    rows += [(name.replace("_", " "), getattr(failed, name), getattr(recipe, name)) for name in fields]
    rows.append(("vocab, SHA-256", *(read_vocab(r.vocab).sha256[:12] for r in (failed, recipe))))
    return [{"what": what, "was": str(a), "now": str(b)} for what, a, b in rows if a != b]


def _facts(
    case: Case, recipe: Recipe, spelling: Spelling | None, notes: list[str], checks: list[Check], folder: Path
) -> dict[str, Any]:
    """Return the manifest; it names files, never where they lay."""
    named = {"checkpoint": recipe.checkpoint, "vocab": recipe.vocab}
    sources = {what: {"file": p.name, "sha256": provenance.fingerprint(p).sha256} for what, p in named.items()}
    own = VOCODER_FOLDERS[recipe.vocoder.name].removeprefix("../") if recipe.vocoder.path is not None else None
    settings = recipe.model_dump(mode="json", exclude={"checkpoint", "vocab", "vocoder"})
    settings |= {"arch": models.full_options(recipe.backbone, recipe.arch)}
    settings |= {
        "checkpoint": recipe.checkpoint.name,
        "vocab": recipe.vocab.name,
        "vocoder": {"name": recipe.vocoder.name, "path": own},
    }
    files = sorted(f for f in folder.rglob("*") if f.is_file() and f.name != MANIFEST)
    return {
        "case": case.name,
        "recipe": settings,
        "changes": changes(case, recipe),
        "sources": sources,
        "stand_ins": spelling.changed if spelling else {},
        "notes": notes,
        "verified": is_understood(checks),
        "mean_cer": mean_cer(checks),
        "checks": [vars(check) for check in checks],
        "files": {f.relative_to(folder).as_posix(): sha256_file(f) for f in files},
        "versions": provenance.versions(),
    }
