"""One task of a sweep: a recipe, a prompt and a seed, spoken and measured; the same content gives the same row.

The key of a task names the content of every file that it reads, so a worker that finds other files than the one that gave
it out refuses, instead of filing a row under the wrong name.
"""

import functools
import json
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import torch

from f5lab import metrics, models, oracles, probes, provenance, remedies, samplers, speakers
from f5lab.asr import Transcriber
from f5lab.audio import load_wave
from f5lab.errors import CaseError, LabError, RunError
from f5lab.paths import cache_dir
from f5lab.probes import Hypothesis, Probe
from f5lab.samplers import Sample, Studio
from f5lab.scale.ledgers import Ledger, digest
from f5lab.scale.series_rows import settings_of
from f5lab.scale.sweep_specs import Measure, Settings, Sweep, find_cases
from f5lab.specs import Arch, Case, Prompt, Recipe
from f5lab.whisper_weights import find_weights

FORMAT = 1
"""Raised when what a task measures, or how, changes."""
UNFORESEEN = (RuntimeError, ValueError, LookupError, ArithmeticError)
"""What torch, numpy and the front ends raise on a clip or a text that they were not made for."""
RECORDINGS = 8
"""Most recordings that the probe is asked about for what a case does not state of the training."""
VERSIONED = ("f5lab", "f5-tts", "torch", "torchaudio", "vocos", "openai-whisper", "resemblyzer")
NULLABLE = ("sway_sampling_coef", "fix_duration")
STARTS = {
    "inference": samplers.inference_recipe, "trainer": samplers.trainer_recipe, "repaired": samplers.repaired_recipe,
}  # fmt: skip


def expand(sweep: Sweep, *, device: str, threads: int) -> Iterator[dict[str, Any]]:
    """Yield the description of every task, JSON-able: cases outermost, then checkpoints, recipes, prompts, seeds.

    Raises
    ------
    CaseError
        A case, checkpoint or prompt of the sweep is not there, or a case says nothing about the architecture.
    AsrError
        A case's recordings are in another language than it states, or in none that can be told.
    """
    informed: dict[str, tuple[Case, dict[str, str]]] = {}
    for case, checkpoint, also in _without_copies(find_cases(sweep)):
        language = case.language
        if "cer" in sweep.measures:
            language = oracles.transcriber(case, sweep.asr, models.pick_device(device)).language
        for name, point, settings in sweep.combinations:
            begun, known = case, dict[str, str]()
            if settings.start not in (None, "inference"):
                begun, known = informed[case.name] = informed.get(case.name) or _informed(case, device)
            recipe = recipe_of(begun, checkpoint, settings)
            for prompt in prompts_of(case, sweep):
                for seed in sweep.seeds:
                    told = {
                        "case": case.name, "language": language, "recipe_name": name,
                        "point": point, "known": known, "recipe": recipe.model_dump(mode="json"), "start": settings.start or "inference",
                        "prompt": prompt.model_dump(mode="json"), "seed": seed, "measures": list(sweep.measures),
                        "asr": sweep.asr, "device": device, "threads": threads, "checkpoint_sha256": _content(str(recipe.checkpoint)),
                    }  # fmt: skip
                    yield told | {"key": content_key(told), "also": also}


def _informed(case: Case, device: str) -> tuple[Case, dict[str, str]]:
    """Return the case with what it does not state of the training as the probe infers it, and how each is known.

    It is asked once of a case's own checkpoint, and remembered: training settings do not change within a run.
    """
    if case.training.arch is not None and not case.training.arch.is_empty and case.training.front_end is not None:
        return case, {"arch": "stated", "front_end": "stated"}
    ledger = Ledger(cache_dir("sweep") / "as_trained.jsonl")
    recipe, found = settings_of(case, ledger, device=device, recordings=RECORDINGS, draws=1)
    arch = Arch.model_validate({"backbone": recipe.backbone, **recipe.arch})
    told = case.training.model_copy(update={"arch": arch, "front_end": recipe.front_end})
    return case.model_copy(update={"training": told}), {name: found["known"].get(name, "stated") for name in ("arch", "front_end")}


def notes(tasks: Iterable[dict[str, Any]]) -> list[str]:
    """Return a sentence for each case whose training was inferred, or could not be, where recipes start from it."""
    said = []
    for case, known in {task["case"]: task["known"] for task in tasks if task["known"]}.items():
        if inferred := [name for name, how in known.items() if how == "inferred"]:
            said.append(f"{case}: not stated under training:, inferred by the probe: {', '.join(inferred)}.")
        if assumed := [name for name, how in known.items() if how == "assumed"]:
            said.append(f"{case}: neither stated under training: nor told by the probe, so “as trained” is as inference has it: {', '.join(assumed)}.")
    return said


def _without_copies(found: Iterable[tuple[Case, Path]]) -> Iterator[tuple[Case, Path, list[str]]]:
    """Yield each different checkpoint of each case once, with the names of its copies: ``model_last.pt`` is often one."""
    kept: dict[tuple[str, str | None], tuple[Case, Path, list[str]]] = {}
    for case, checkpoint in found:
        _, first, also = kept.setdefault((case.name, _content(str(checkpoint))), (case, checkpoint, []))
        if checkpoint != first:
            also.append(checkpoint.name)
    yield from kept.values()


def recipe_of(case: Case, checkpoint: Path, settings: Settings) -> Recipe:
    """Return a case's recipe with a checkpoint and settings laid over it."""
    recipe = STARTS[settings.start or "inference"](case)
    given = {k: v for k, v in settings.given.items() if k != "start" and (v is not None or k in NULLABLE)}
    if "arch" in given:
        given["arch"] = {**recipe.arch, **given["arch"]}
        given["backbone"] = given["arch"].pop("backbone", recipe.backbone)
    return recipe.but(name="sweep", checkpoint=checkpoint, **given)


def prompts_of(case: Case, sweep: Sweep) -> list[Prompt]:
    """Return the prompts of a case that the sweep speaks."""
    if isinstance(sweep.prompts, tuple):
        return [prompt for prompt in case.prompts if prompt.id in sweep.prompts]
    return list(case.prompts[: sweep.prompts])


def content_key(told: dict[str, Any]) -> str:
    """Return a digest of everything that a task's measures depend on: settings, the content of every file, versions.

    Names (of the case, the recipe, the prompt, the files) do not enter.
    """
    recipe, prompt = told["recipe"], told["prompt"]
    files = [recipe["checkpoint"], recipe["vocab"], recipe["vocoder"]["path"], prompt["ref_audio"], prompt["gen_audio"]]
    fields = {k: v for k, v in recipe.items() if k not in ("name", "checkpoint", "vocab", "vocoder")}
    asr = _recogniser(told["asr"]) if "cer" in told["measures"] else ""
    known = provenance.versions()
    return digest([
        FORMAT, fields, recipe["vocoder"]["name"], [_content(f) for f in files], prompt["ref_text"], prompt["gen_text"], told["seed"],
        sorted(told["measures"]), told["language"], asr, told["device"].split(":")[0], told["threads"], [known[n] for n in VERSIONED],
    ])  # fmt: skip


def _content(file: str | None) -> str | None:
    if file is None:
        return None
    path = Path(file)
    facts = path.stat()
    return _remembered(file, facts.st_size, facts.st_mtime_ns, facts.st_ino)


@functools.lru_cache(maxsize=4096)
def _remembered(file: str, _size: int, _changed_ns: int, _inode: int) -> str:
    return provenance.fingerprint(Path(file)).sha256


@functools.cache
def _recogniser(asr: str) -> str:
    source = Path(find_weights(asr))
    return provenance.fingerprint(source).sha256 if source.is_file() else str(source)


def perform(told: dict[str, Any]) -> dict[str, Any]:
    """Speak and measure one task.

    Returns
    -------
    dict
        ``cer`` (0 to 1), ``heard``, ``loss`` (share of the flow unexplained), ``duration_ratio`` and ``speaker_similarity``
        (against the real recording, or the reference), ``forwards`` (calls of the network), ``cost_frames`` (frames that
        went through it, guidance's second half counted), ``seconds``, ``notes``. A measure that is undefined is None and
        ``notes`` says why; one that failed is in ``problem``. Where nothing can be spoken, ``problem`` alone.

    Raises
    ------
    RunError
        The files here are not those that the task was made from.
    """
    if content_key(told) != told["key"]:
        raise RunError(
            "a worker finds other files or versions than the task was made from",
            expected="the same files under the same paths, and the same packages, on every node",
        )
    before = torch.get_num_threads()
    torch.set_num_threads(told["threads"])
    try:
        return _measured(told)
    finally:
        torch.set_num_threads(before)


def _measured(told: dict[str, Any]) -> dict[str, Any]:
    recipe, prompt = Recipe.model_validate(told["recipe"]), Prompt.model_validate(told["prompt"])
    try:
        sample, cost = _spoken(recipe, prompt, told["seed"], told["device"])
    except LabError as error:
        return {"problem": str(error)}
    except torch.OutOfMemoryError:
        return {"problem": f"prompt {prompt.id} does not fit the memory of {told['device']}"}
    except UNFORESEEN as error:  # of one row; the others are measured
        return {"problem": _told(error)}
    row: dict[str, Any] = {**cost, "seconds": sample.seconds}
    notes: list[str] = []
    problems: list[str] = []
    for measure in told["measures"]:
        try:
            row |= _MEASURES[measure](told, recipe, prompt, sample, notes)
        except CaseError as error:  # the prompt does not lend itself to it, now and ever
            notes.append(f"{measure}: {error}")
        except LabError as error:
            problems.append(f"{measure}: {error}")
        except UNFORESEEN as error:  # of one measure; the others are taken
            problems.append(f"{measure}: {_told(error)}")
    return row | {"notes": "; ".join(notes), "problem": "; ".join(problems)}


def _told(error: Exception) -> str:
    """Return an error that nobody foresaw in one line; one of the machine goes on.

    Raises
    ------
    Exception
        Memory, accelerator or disk: the next row would meet it too.
    """
    if remedies.is_machine(error):
        raise error
    return f"{type(error).__name__}: {' '.join(str(error).split())[:200]}"


def _spoken(recipe: Recipe, prompt: Prompt, seed: int, device: str) -> tuple[Sample, dict[str, int]]:
    """Return the clip and what it cost, counted at the network itself."""
    studio = _studio(_model_key(recipe), device)
    cost = {"forwards": 0, "cost_frames": 0}

    def count(_module: Any, positional: tuple[Any, ...], named: dict[str, Any]) -> None:
        x = named["x"] if "x" in named else positional[0]
        cost["forwards"] += 1
        cost["cost_frames"] += x.shape[0] * x.shape[1] * (2 if named.get("cfg_infer") else 1)

    hook = studio.model(recipe).transformer.register_forward_pre_hook(count, with_kwargs=True)
    try:
        return studio.speak(recipe, prompt, seed), cost
    finally:
        hook.remove()


def _model_key(recipe: Recipe) -> str:
    named = ("path", "checkpoint", "weights", "backbone", "arch", "vocab", "front_end", "mel_spec_type", "precision")
    return json.dumps([str(getattr(recipe, name)) for name in named])


@functools.lru_cache(maxsize=1)
def _studio(_model: str, device: str) -> Studio:
    """Return a studio for one model: tasks come ordered by it, and a worker holds one at a time."""
    return Studio(device)


@functools.lru_cache(maxsize=1)
def _bench(_model: str, device: str) -> probes.Bench:
    return probes.Bench(models.pick_device(device))


_losses: dict[str, float] = {}


def _measure_loss(told: dict[str, Any], recipe: Recipe, prompt: Prompt, _: Sample, __: list[str]) -> dict[str, Any]:
    """Probe loss on the prompt's own recordings; steps, guidance and speed do not enter it, so it is computed once for them."""
    fields = {k: v for k, v in told["recipe"].items() if k in ("checkpoint", "weights", "backbone", "arch", "vocab", "front_end",
                                                               "mel_spec_type", "precision")}  # fmt: skip
    key = digest([fields, told["prompt"], told["seed"], told["device"]])
    if key not in _losses:
        case = Case(name="sweep", checkpoint=recipe.checkpoint, vocab=recipe.vocab, prompts=(prompt,))
        probe = Probe(probes.real_items(case), seed=told["seed"], device=models.pick_device(told["device"]))
        probe.bench = _bench(_model_key(recipe), told["device"])
        _losses[key] = probe.loss(Hypothesis(recipe)).mean
    return {"loss": _losses[key]}


def _measure_cer(told: dict[str, Any], _: Recipe, __: Prompt, sample: Sample, ___: list[str]) -> dict[str, Any]:
    scored = oracles.score([sample], _transcriber(told["language"], told["asr"], told["device"]))[0]
    return {"cer": scored.cer, "heard": scored.transcript.text}


@functools.lru_cache(maxsize=2)
def _transcriber(language: str, asr: str, device: str) -> Transcriber:
    return Transcriber(language, asr, models.pick_device(device))


def _measure_duration(
    _: dict[str, Any], __: Recipe, prompt: Prompt, sample: Sample, notes: list[str]
) -> dict[str, Any]:
    real = _real_recording(prompt, sample)
    if real is None:
        notes.append("duration: no real recording of the text")
        return {}
    score = metrics.duration_ratio(sample.wave, load_wave(real))
    notes += [f"duration: {score.reason}"] if score.value is None else []
    return {"duration_ratio": score.value}


def _measure_speaker(_: dict[str, Any], __: Recipe, prompt: Prompt, sample: Sample, notes: list[str]) -> dict[str, Any]:
    score = metrics.speaker_cosine(speakers.embed(sample.wave), speakers.embed(load_wave(prompt.ref_audio)))
    notes += [f"speaker: {score.reason}"] if score.value is None else []
    return {"speaker_similarity": score.value}


def _real_recording(prompt: Prompt, sample: Sample) -> Path | None:
    """Return the recording of the text that was spoken; the trainer's path without a target re-speaks the reference."""
    if prompt.gen_audio is not None:
        return prompt.gen_audio
    return prompt.ref_audio if sample.text == prompt.ref_text else None


_MEASURES: dict[Measure, Any] = {
    "cer": _measure_cer, "loss": _measure_loss, "duration": _measure_duration, "speaker": _measure_speaker,
}  # fmt: skip
