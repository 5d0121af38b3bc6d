"""The diagnosis on the specimen: the bundled case, the repaired one, one with nothing known, and what goes wrong."""

import json
from pathlib import Path

import pytest
import torch

from f5lab import catalogue, diagnosis, listening, paths
from f5lab.errors import CheckpointError, LabError
from f5lab.faults.examinations import Exam, Suspicion, cause
from f5lab.findings import FindingsLog
from f5lab.paths import sha256_file
from f5lab.planted import plants
from f5lab.specs import Case, Prompt, Vocoder, load_case
from f5lab.statistics import cluster_mean
from f5lab.verdicts import UNHEARD

DATA = paths.data_dir()
HEALTHY = DATA / "cases" / "ptbr-repaired" / "case.yaml"
ENTRIES = {*catalogue.FAULTS, *catalogue.SUSPECTS}


@pytest.fixture(scope="module")
def bundled() -> diagnosis.Diagnosis:
    return diagnosis.diagnose(load_case(paths.default_case()), device="cpu", listen=False, limit=4)


def test_the_detectors_cover_the_catalogue() -> None:
    assert {name for names in diagnosis.DETECTORS.values() for name in names} == ENTRIES
    assert {n for pair in diagnosis.FOLLOWS.items() for n in (pair[0], *pair[1])} <= set(catalogue.FAULTS)


def test_the_bundled_case_has_its_two_causes_first_and_the_suspects_refuted(bundled: diagnosis.Diagnosis) -> None:
    verdict = bundled.verdict
    assert [c.id for c in verdict.causes] == ["arch-flags-v0-as-v1", "front-end-pinyin"]
    assert verdict.causes[0].fix.settings == {"arch": {"pe_attn_head": 1, "text_mask_padding": False}}
    assert verdict.causes[0].effect.before > verdict.causes[0].effect.after
    ruled_out = {"vocab-permuted", "vocab-off-by-one", "vocoder-wrong", "mel-type", "ema-lag-inherited"}
    assert ruled_out | {"accelerate", "mel-cycle"} <= {r.id for r in verdict.refuted}
    named = {c.id for c in verdict.causes} | {r.id for r in verdict.refuted} | {u.id for u in verdict.unknown}
    assert named == ENTRIES | {UNHEARD}
    assert not verdict.healthy and all(u.needs for u in verdict.unknown)


def test_every_claim_rests_on_a_recorded_finding(bundled: diagnosis.Diagnosis, tmp_path: Path) -> None:
    log = FindingsLog("06", tmp_path)
    diagnosis.record(log, bundled.suspicions)
    known = {
        json.loads(line)["id"] for line in (tmp_path / "findings" / "06.jsonl").read_text(encoding="utf-8").splitlines()
    }
    cited = {e for part in (bundled.verdict.causes, bundled.verdict.refuted) for item in part for e in item.evidence}
    assert cited <= known and known == {f"06-{name}" for name in ENTRIES | {UNHEARD}}


def test_the_repaired_case_is_healthy() -> None:
    found = diagnosis.diagnose(load_case(HEALTHY), device="cpu", listen=False, limit=4)
    assert not found.verdict.causes and not found.verdict.healthy  # nobody listened
    assert diagnosis.conclude(load_case(HEALTHY), [s for s in found.suspicions if s.id != UNHEARD]).healthy


def loose(**changes: object) -> Case:
    """Return a case that states nothing about training: checkpoint, vocab and one clip with its text."""
    clip = DATA / "speech" / "ptbr" / "jm_kumo_phrase_0012.ogg"
    prompt = Prompt(id="clip", ref_audio=clip, ref_text="Comprou um livro.", gen_text="Comprou um livro.")
    fields = {"checkpoint": DATA / "specimen" / "finetune" / "model_last.pt", "vocab": DATA / "specimen" / "vocab.txt",
              "vocoder": Vocoder(path=DATA / "specimen" / "vocos"), "language": "pt", "prompts": (prompt,)}  # fmt: skip
    return Case(**{**fields, **changes})


def test_hidden_options_are_inferred_from_one_clip() -> None:
    exam = Exam(loose(), device="cpu", asr="")
    recipe = exam.truth.recipe
    assert exam.truth.identifiable and exam.truth.known["arch"] == "inferred"
    assert (recipe.arch.get("text_mask_padding"), recipe.arch.get("pe_attn_head")) == (False, 1)
    (named,) = [s for s in diagnosis.examine(exam) if s.outcome == "cause"]
    assert named.id == "arch-flags-v0-as-v1" and named.confidence == 0.6
    assert "does not state inference's arch" in named.claim


def test_options_are_not_guessed_where_the_text_does_not_matter(monkeypatch: pytest.MonkeyPatch) -> None:
    from f5lab import probes
    from f5lab.probes import Gate

    monkeypatch.setattr(probes, "text_gate", lambda *_: Gate(cluster_mean([0.0, 0.001, -0.001])))
    answers = {s.id: s for s in diagnosis.examine(Exam(loose(), device="cpu", asr=""))}
    assert answers["arch-flags-v0-as-v1"].outcome == "unknown" and "config" in answers["arch-flags-v0-as-v1"].needs
    assert answers["vocab-permuted"].outcome == "unknown"


def test_a_detector_that_fails_is_unknown_and_stops_no_other(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(_: Exam) -> list[Suspicion]:
        raise ZeroDivisionError("oops")

    first = next(iter(diagnosis.DETECTORS))
    monkeypatch.setattr(diagnosis, "DETECTORS", {broken: ("mel-type",), first: diagnosis.DETECTORS[first]})
    answers = {s.id: s for s in diagnosis.examine(Exam(loose(), device="cpu", asr=""))}
    assert answers["mel-type"].outcome == "unknown" and "oops" in answers["mel-type"].claim
    assert answers["prefix-lost"].outcome == "refuted"


def test_consequences_are_not_named_beside_their_cause() -> None:
    found = diagnosis._settled(
        [
            cause("ref-clipped", "c.", 0.9, 0.5),
            cause("ref-text-wrong", "t.", 0.9, 0.9),
            cause("mel-type", "m.", 0.9, 0.7),
        ]
    )
    assert [s.id for s in found if s.outcome == "cause"] == ["mel-type", "ref-clipped"]
    assert "ref-clipped" in next(s for s in found if s.id == "ref-text-wrong").needs


def test_no_text_and_no_checkpoint_are_clear_errors(tmp_path: Path) -> None:
    torch.save({"weights": torch.zeros(2)}, tmp_path / "other.pt")
    with pytest.raises(CheckpointError, match="none of F5-TTS"):
        diagnosis.diagnose(loose(checkpoint=tmp_path / "other.pt"), device="cpu", listen=False)
    quiet = loose().prompts[0].model_copy(update={"ref_text": ""})
    answers = {s.id: s for s in diagnosis.examine(Exam(loose(prompts=(quiet,)), device="cpu", asr=""))}
    assert answers["arch-flags-v0-as-v1"].outcome == "unknown"
    assert "ref_text" in answers["arch-flags-v0-as-v1"].claim


def test_the_smallest_repair_is_the_two_options(bundled: diagnosis.Diagnosis) -> None:
    exam = Exam(load_case(paths.default_case()), device="cpu", limit=4, asr="")
    assert set(diagnosis.smallest_repair(exam)) == {"arch.pe_attn_head", "arch.text_mask_padding"}


def test_clips_are_spoken_once_and_kept_by_content(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("F5LAB_CACHE", str(tmp_path))
    exam = Exam(load_case(HEALTHY), device="cpu", asr="")
    recipe, prompt = exam.inference.but(nfe_step=2), exam.case.prompts[:1]
    first, second = listening.Booth(exam), listening.Booth(exam)
    (a,), (b,) = first.samples(recipe, [(prompt[0], 0)]), second.samples(recipe, [(prompt[0], 0)])
    assert (first.synthesised, second.synthesised) == (1, 0)
    assert (a.wave.samples == b.wave.samples).all() and a.wave.rate_hz == b.wave.rate_hz
    assert first._key(recipe, prompt[0], 0) != first._key(recipe.but(cfg_strength=1.0), prompt[0], 0)
    copied = tmp_path / "vocab.txt"
    copied.write_bytes(recipe.vocab.read_bytes())
    assert first._key(recipe.but(vocab=copied), prompt[0], 0) == first._key(recipe, prompt[0], 0)
    assert first._key(recipe, prompt[0], 1) != first._key(recipe, prompt[0], 0)
    copied.write_bytes(recipe.vocab.read_bytes()[::-1])
    assert listening.Booth(exam)._key(recipe.but(vocab=copied), prompt[0], 0) != first._key(recipe, prompt[0], 0)
    before = first._key(recipe, prompt[0], 0)
    listening._versions.cache_clear()
    monkeypatch.setattr(listening, "sha256_file", lambda path: "other" if Path(path).name == "batches.py" else sha256_file(path))
    try:
        assert first._key(recipe, prompt[0], 0) != before, "what another version of the sampling code spoke is spoken again"
    finally:
        listening._versions.cache_clear()


def test_without_a_recogniser_nothing_is_heard_and_it_says_so() -> None:
    exam = Exam(load_case(HEALTHY), device="cpu", asr="")
    with pytest.raises(LabError, match="recogniser"):
        exam.hear(exam.references[0].wave)


def lying(**inference: object) -> Case:
    """Return the repaired case whose training block states the other architecture."""
    case = load_case(HEALTHY)
    arch = case.training.arch.model_copy(update={"text_mask_padding": True, "pe_attn_head": None})
    return case.model_copy(update={
        "training": case.training.model_copy(update={"arch": arch}),
        "inference": case.inference.model_copy(update={"arch": arch, **inference}),
    })  # fmt: skip


def test_a_training_block_that_the_weights_contradict_is_not_believed() -> None:
    from f5lab import bundles

    answers = {s.id: s for s in diagnosis.examine(Exam(lying(), device="cpu", limit=4, asr=""))}
    assert answers["arch-flags-v0-as-v1"].outcome == "cause"
    assert "contradict" in answers["arch-flags-v0-as-v1"].claim
    recipe = bundles.bundle_recipe(lying())
    assert (recipe.arch["text_mask_padding"], recipe.arch["pe_attn_head"]) == (False, 1)


def answers_of(case: Case) -> dict[str, Suspicion]:
    return {s.id: s for s in diagnosis.examine(Exam(case, device="cpu", limit=4, asr=""))}


def test_inference_that_cannot_load_is_not_healthy() -> None:
    case = load_case(HEALTHY)
    deeper = case.inference.arch.model_copy(update={"depth": 8})
    wrong = case.model_copy(update={"inference": case.inference.model_copy(update={"arch": deeper})})
    found = diagnosis.diagnose(wrong, device="cpu", listen=False, asr="", limit=4).verdict
    assert [c.id for c in found.causes] == ["load-raises"]
    assert found.causes[0].fix.settings == {"arch": {"depth": 6}}


def test_a_difference_that_no_entry_judges_is_unknown_and_not_healthy() -> None:
    case = load_case(HEALTHY)
    odd = case.model_copy(update={"inference": case.inference.model_copy(update={"speed": 2.5})})
    found = diagnosis.diagnose(odd, device="cpu", listen=False, asr="", limit=4).verdict
    assert found.healthy is False
    assert "speed" in next(u for u in found.unknown if u.id == diagnosis.UNEXPLAINED).needs


def test_what_sounds_wrong_but_is_not() -> None:
    """Float16 rotary frequencies, a checkpoint that is not the newest, a dash, a short text with its duration given."""
    from f5lab.faults import text_faults, weight_faults

    case = load_case(HEALTHY)
    dash = case.prompts[0].model_copy(update={"gen_text": "Comprou — um livro."})
    assert (
        text_faults.detect_unknown(Exam(case.model_copy(update={"prompts": (dash,)}), device="cpu", limit=4, asr=""))[
            0
        ].outcome
        == "refuted"
    )
    short = case.prompts[0].model_copy(update={"gen_text": "Oi."})
    fixed = case.model_copy(
        update={"prompts": (short,), "inference": case.inference.model_copy(update={"fix_duration": 2.0})}
    )
    assert text_faults.detect_length(Exam(fixed, device="cpu", asr=""))[0].outcome == "refuted"
    exam = Exam(case, device="cpu", asr="")
    state = dict(exam.weights("ema"))
    name = "transformer.rotary_embed.inv_freq"
    exam.weights = lambda slot: state | {name: state[name].half()}  # type: ignore[method-assign]
    assert weight_faults.detect_rope(exam)[0].outcome == "refuted"
    exam.weights = lambda slot: state | {name: state[name].bfloat16()}  # type: ignore[method-assign]
    assert weight_faults.detect_rope(exam)[0].outcome == "cause"
    for broken in (state[name] * float("nan"), state[name][:0], state[name][None]):
        exam.weights = lambda slot, broken=broken: state | {name: broken}  # type: ignore[method-assign]
        assert weight_faults.detect_rope(exam)[0].outcome == "cause"
    exam.weights = lambda slot: {key: value for key, value in state.items() if key != name}  # type: ignore[method-assign]
    assert weight_faults.detect_rope(exam)[0].outcome == "unknown"


def test_a_front_end_that_no_recording_tests_is_not_ruled_out() -> None:
    case = loose(prompts=(loose().prompts[0].model_copy(update={"gen_text": "Contou uma história."}),))
    assert answers_of(case)["front-end-pinyin"].outcome == "unknown"


def test_two_outputs_of_one_text_do_not_trip_the_detector() -> None:
    from f5lab.faults import audio_faults

    case = load_case(HEALTHY)
    same = tuple(
        p.model_copy(update={"gen_text": case.prompts[0].gen_text, "spoken_audio": p.gen_audio})
        for p in case.prompts[:2]
    )
    exam = Exam(case.model_copy(update={"prompts": same}), device="cpu")
    assert audio_faults.detect_stale_text(exam)[0].outcome == "refuted"


def test_what_the_vocab_file_shows(tmp_path: Path) -> None:
    """A symbol repeated in place of another no longer loads; a decomposed (NFD) vocab loses letters."""
    import unicodedata

    from f5lab.faults import text_faults

    case = load_case(HEALTHY)
    lines = case.vocab.read_text(encoding="utf-8").splitlines()

    def judged(new: list[str]) -> Suspicion:
        path = tmp_path / "vocab.txt"
        path.write_text("".join(f"{line}\n" for line in new), encoding="utf-8")
        given = case.model_copy(update={"inference": case.inference.model_copy(update={"vocab": path})})
        return text_faults.detect_vocab(Exam(given, device="cpu", limit=4, asr=""))[0]

    repeated = judged([lines[0], "a", *lines[2:]])
    assert (repeated.id, repeated.outcome) == ("vocab-damage", "cause") and "raises" in repeated.claim
    assert (judged([unicodedata.normalize("NFD", s) for s in lines]).id) == "oov-to-zero"


def test_plain_strings_in_the_dataset_mean_raw_text(tmp_path: Path) -> None:
    case = load_case(plants.plant(["front-end-pinyin"], load_case(HEALTHY), tmp_path / "p", variant=2))
    assert case.training.front_end is None and case.training.dataset is not None
    assert "front-end-pinyin" in [s.id for s in answers_of(case).values() if s.outcome == "cause"]


@pytest.mark.parametrize("variant", range(3))
def test_a_mislabelled_rate_is_named_alone_whichever_way_it_was_resampled(variant: int, tmp_path: Path) -> None:
    """24 kHz labelled 32 kHz too: taken to 24 kHz as it is labelled, a recording loses its upper quarter for good."""
    case = load_case(plants.plant(["sample-rate-mislabelled"], load_case(HEALTHY), tmp_path / "new", variant=variant))
    found = diagnosis.diagnose(case, device="cpu", listen=False, limit=4, asr="")
    assert [c.id for c in found.verdict.causes] == ["sample-rate-mislabelled"]
    stated = (16000, 32000, 22050)[variant]
    assert found.causes[0].value == pytest.approx(24000 / stated, rel=0.01)
