"""Detectors for settings: hidden architecture options, mel type, precision, sampler, front-end constants."""

from f5lab import models, remedies
from f5lab.errors import CaseError, CheckpointError, ModelError
from f5lab.faults import factors
from f5lab.faults.examinations import ASSUMED, Exam, Suspicion, cause, refuted, unknown
from f5lab.probes import Hypothesis
from f5lab.specs import Inference, Recipe

HIDDEN = {"arch.text_mask_padding", "arch.pe_attn_head"}
ARCH_FAULTS = ("arch-flags-v0-as-v1", "pe-attn-head-only", "text-mask-padding-only")
LEAST_STEPS = 7
"""Fewer steps of the sampler than upstream tabulates times for (``get_epss_timesteps``: from 5; 7 is its fast setting)."""
GUIDANCE, SWAY = (0.5, 4.0), 0.5
"""Guidance outside this range, or sway this far from -1, is named: upstream's defaults are 2 and -1."""


def detect_options(exam: Exam) -> list[Suspicion]:
    """Compare the hidden options that inference builds with those that the weights were trained with."""
    truth, names = exam.truth, {f.name for f in factors.diff(exam.truth.recipe, exam.inference, exam.device)}
    hidden = sorted(names & HIDDEN)
    if truth.known["arch"] == "assumed":
        says = (
            "Dropping the text does not raise the loss"
            if not truth.identifiable
            else "Their losses are too near each other"
        )
        return unknown(ARCH_FAULTS, truth.problem or f"{says}: options cannot be told apart.",
                       "the trainer's config, or a recording with its text that the weights can read")  # fmt: skip
    if not hidden:
        return refuted(ARCH_FAULTS, f"pe_attn_head and text_mask_padding are as trained ({truth.known['arch']}).")
    name = {1: {"arch.pe_attn_head": ARCH_FAULTS[1]}.get(hidden[0], ARCH_FAULTS[2]), 2: ARCH_FAULTS[0]}[len(hidden)]
    wrong, right = (models.full_options(r.backbone, r.arch) for r in (exam.inference, truth.recipe))
    keys = [h.removeprefix("arch.") for h in hidden]
    words = ", ".join(f"{key}: {wrong[key]} instead of {right[key]}" for key in keys)
    claim = f"Inference builds {words}; no tensor shape shows it and nothing is raised."
    if exam.case.training.arch is not None and truth.known["arch"] == "inferred":
        claim += " The case states otherwise about training, and the weights contradict it."
    broken = {**truth.recipe.arch, **{key: wrong[key] for key in keys}}
    more = exam.cost({"arch": broken})
    known = 0.99 if truth.known["arch"] == "stated" else 0.95
    rest = refuted([f for f in ARCH_FAULTS if f != name], f"Exactly {' and '.join(keys)} differ.")
    return [cause(name, claim, known, max(0.3 * len(hidden), more.pop("severity", 0.0)), factors=tuple(hidden),
                  settings={"arch": {key: right[key] for key in keys}}, **more), *rest]  # fmt: skip


def detect_load(exam: Exam) -> list[Suspicion]:
    """Build what inference builds and see whether the weights fit it."""
    recipe = exam.inference.but(precision="fp32")
    try:
        built = models.build_cfm(recipe.backbone, recipe.arch, exam.truth.recipe.vocab, front_end=recipe.front_end)
        models.fill(built, exam.checkpoint.weights(recipe.weights))
    except (ModelError, CheckpointError) as error:
        shown = exam.shapes.options()
        wrong = {key: value for key, value in shown.items() if key in recipe.arch and recipe.arch[key] != value}
        return [cause("load-raises", f"Inference cannot load the weights: {error}", 0.97, 1.0,
                      factors=tuple(f"arch.{key}" for key in wrong), settings={"arch": wrong} if wrong else {})]  # fmt: skip
    return refuted(
        "load-raises", "The weights fit the model that inference builds.", value=0.0, unit="tensors that do not fit"
    )


def detect_mel(exam: Exam) -> list[Suspicion]:
    """Compare the mel type that inference computes with the trained one."""
    truth = exam.truth
    if truth.recipe.mel_spec_type == exam.inference.mel_spec_type:
        how = truth.known["mel_spec_type"]
        if how == "assumed":
            return unknown(
                "mel-type", "The trained mel type is not known.", "training.mel_spec_type, or a recording with its text"
            )
        return refuted("mel-type", f"Inference computes {exam.inference.mel_spec_type}, as trained ({how}).")
    more = exam.cost({"mel_spec_type": exam.inference.mel_spec_type})
    claim = f"Inference computes {exam.inference.mel_spec_type} mels, the weights were trained on {truth.recipe.mel_spec_type}."
    return [cause("mel-type", claim, 0.97, max(0.95, more.pop("severity", 0.0)), factors=("mel_spec_type",),
                  settings={"mel_spec_type": truth.recipe.mel_spec_type}, **more)]  # fmt: skip


def detect_precision(exam: Exam) -> list[Suspicion]:
    """Try the precision that inference runs in: values that are not finite, and a rotary phase that bfloat16 ruins."""
    precision = models.pick_precision(exam.inference.precision, exam.device)
    names = ("precision-bf16-cast", "precision-fp16-nan")
    if precision == "fp32" and exam.inference.precision == "auto" and not exam.device.startswith("cuda"):
        return [*refuted(names[0], "Inference runs in float32 or float16."), *_elsewhere_in_fp16(exam)]
    if precision == "fp32":
        return refuted(names, "Inference runs in float32.")
    if exam.truth.problem:
        return unknown(names, exam.truth.problem, exam.truth.needs)
    finite = _runs_finite(exam, exam.truth.recipe.but(precision=precision))
    if finite is False:
        claim = f"In {precision} the model's output is not finite; in float32 it is."
        return [cause("precision-fp16-nan", claim, 0.97, 1.0, factors=("precision",), settings={"precision": "fp32"}),
                *refuted(names[0], "The output is not finite at all.")]  # fmt: skip
    if finite is None:
        return unknown(
            names, f"This device cannot run the model in {precision}.", f"a run with --device cuda in {precision}"
        )
    if precision == "fp16":
        return refuted(names, "In float16 every value is finite.")
    more = exam.cost({"precision": "bf16"})
    claim = "The whole model is cast to bfloat16, the rotary frequencies included: 2 rad of phase error at frame 1000."
    return [cause("precision-bf16-cast", claim, 0.9, max(0.2, more.pop("severity", 0.0)), factors=("precision",),
                  settings={"precision": "fp32"}, **more), *refuted(names[1], "Every value is finite.")]  # fmt: skip


def _elsewhere_in_fp16(exam: Exam) -> list[Suspicion]:
    """Try on one recording what inference would run in on a GPU: which device it runs on a case does not say."""
    name, needs = "precision-fp16-nan", "a run with --device cuda"
    if exam.truth.problem:
        return unknown(name, f"{exam.truth.problem}: float16, which upstream takes on a GPU, was not tried.", exam.truth.needs)
    try:
        finite = {kind: exam.probe.is_finite(Hypothesis(exam.truth.recipe.but(precision=kind))) for kind in ("fp32", "fp16")}
    except (RuntimeError, ModelError) as error:
        if remedies.is_machine(error):
            raise
        return unknown(name, "This device cannot run the model in float16, which upstream takes on a GPU.", needs)
    if not finite["fp32"]:
        return unknown(name, "The model's output is not finite in float32 either.", "weights whose output is finite")
    if finite["fp16"]:
        return refuted(name, "Every value is finite, in float32 and in float16, which upstream takes on a GPU.")
    claim = "On a GPU upstream runs in float16, in which the model's output is not finite; in float32, as on this device, it is."
    return [cause(name, claim, ASSUMED, 1.0, settings={"precision": "fp32"}, limitation="The case does not say on which device inference runs.")]


def _runs_finite(exam: Exam, recipe: Recipe) -> bool | None:
    """Return whether the model's loss is finite; None where the device cannot run it, or float32 is not finite either."""
    try:
        exam.probe.loss(Hypothesis(recipe.but(precision="fp32")))
    except ModelError:
        return None
    try:
        exam.probe.loss(Hypothesis(recipe))
    except ModelError as error:
        return False if "not finite" in str(error) else None
    except RuntimeError as error:
        if remedies.is_machine(error):
            raise
        return None
    return True


def detect_sampler(exam: Exam) -> list[Suspicion]:
    """Compare guidance and sway with the range in which F5-TTS speaks."""
    recipe, defaults = exam.inference, Inference.model_fields
    odd = {}
    if not GUIDANCE[0] <= recipe.cfg_strength <= GUIDANCE[1]:
        odd["cfg_strength"] = recipe.cfg_strength
    if recipe.sway_sampling_coef is None or abs(recipe.sway_sampling_coef + 1.0) > SWAY:
        odd["sway_sampling_coef"] = recipe.sway_sampling_coef
    if recipe.nfe_step < LEAST_STEPS:
        odd["nfe_step"] = recipe.nfe_step
    if not odd:
        own = (recipe.cfg_strength, recipe.sway_sampling_coef) == (defaults["cfg_strength"].default, defaults["sway_sampling_coef"].default)
        says = ", upstream's defaults" if own else ""
        return refuted("cfg-or-sway-off", f"Guidance {recipe.cfg_strength}, sway {recipe.sway_sampling_coef}{says}.")
    words = ", ".join(f"{name} is {value}" for name, value in odd.items())
    claim = f"{words}; upstream's defaults are guidance 2, sway -1, 32 steps."
    return [cause("cfg-or-sway-off", claim, 0.9, 0.5, factors=tuple(odd),
                  settings={name: defaults[name].default for name in odd})]  # fmt: skip


def _number(value: object) -> object:
    """Return a number that YAML 1.1 takes for text (``24e3``) as upstream's reader, OmegaConf, takes it."""
    try:
        return float(value) if isinstance(value, str) else value
    except ValueError:
        return value


def detect_rate(exam: Exam) -> list[Suspicion]:
    """Compare the training config's mel constants with those that upstream's inference hard-codes."""
    arch = exam.case.training.arch
    if arch is None or arch.config is None:
        return refuted("frontend-rate", "No training config says anything but 24 kHz, hop 256.",
                       limitation="Without training.arch.config this rests on upstream's defaults.")  # fmt: skip
    given = arch.training_config.get("mel_spec") or {}
    if not isinstance(given, dict):
        raise CaseError(f"model.mel_spec in {arch.config} is no mapping", expected="a training config as in f5_tts/configs")
    keys = ("target_sample_rate", "hop_length", "win_length", "n_fft", "n_mel_channels")
    wrong = {key: given[key] for key in keys if key in given and _number(given[key]) != models.MEL[key]}
    if not wrong:
        return refuted("frontend-rate", "The training config's mel constants are those of inference.")
    words = ", ".join(f"{key} {value} (inference: {models.MEL[key]})" for key, value in wrong.items())
    return [cause("frontend-rate", f"Trained with {words}, which upstream's inference hard-codes otherwise.", 0.97, 0.9,
                  settings={"utils_infer constants": wrong})]  # fmt: skip
