"""The probe, the parity of two models, and what they infer, on the specimen."""

from dataclasses import replace

import numpy as np
import pytest

from f5lab import parity, paths, probes
from f5lab.audio import Wave
from f5lab.errors import ModelError
from f5lab.faults import settings_search
from f5lab.faults.examinations import Exam
from f5lab.probes import Hypothesis, Item, Probe
from f5lab.specs import load_case

HEALTHY = paths.data_dir() / "cases" / "ptbr-repaired" / "case.yaml"


@pytest.fixture(scope="module")
def exam() -> Exam:
    return Exam(load_case(HEALTHY), device="cpu", limit=4, asr="")


@pytest.fixture(scope="module")
def good(exam: Exam) -> Hypothesis:
    return Hypothesis(exam.stated.but(weights="raw"))


def test_items_are_reference_and_target_as_inference_joins_them(exam: Exam) -> None:
    items = probes.real_items(exam.case, 4)
    assert [item.id for item in items] == ["p01", "p02", "p03", "p04"]
    assert all(0 < item.start_s < item.wave.seconds for item in items)
    assert items[0].text == "A doutora. Comprou um livro."


def test_a_loss_is_the_same_twice_and_between_probes(exam: Exam, good: Hypothesis) -> None:
    again = Probe(exam.probe.items, device="cpu")
    assert np.array_equal(exam.probe.loss(good).values, again.loss(good).values)
    assert 0 < exam.probe.loss(good).mean < 0.6
    own = exam.probe.compare(good, good)
    assert (own.mean, own.low, own.high) == (0, 0, 0)


def test_the_text_and_its_rows_matter(exam: Exam, good: Hypothesis) -> None:
    assert probes.text_gate(exam.probe, good).passed
    moved = good.recipe.but(vocab=settings_search.moved_vocab(good.recipe.vocab, 1))
    for wrong in (Hypothesis(moved), replace(good, drop_text=True)):
        assert exam.probe.compare(good, wrong).low > 0.05


@pytest.mark.parametrize("change", [{"mel_spec_type": "bigvgan"}, {"text_mask_padding": True}])
def test_a_wrong_setting_explains_the_recordings_worse(exam: Exam, good: Hypothesis, change: dict) -> None:
    recipe = good.recipe
    wrong = recipe.but(arch={**recipe.arch, **change}) if "text_mask_padding" in change else recipe.but(**change)
    assert exam.probe.compare(good, Hypothesis(wrong)).low > 0


def test_an_index_without_a_row_is_refused(exam: Exam, good: Hypothesis, tmp_path) -> None:
    longer = tmp_path / "vocab.txt"
    lines = good.recipe.vocab.read_text(encoding="utf-8").splitlines()
    longer.write_text(
        "\n".join([lines[0], *["§", "¤"], *lines[1:-2]]) + "\n" + "\n".join(["a", "o"]) + "\n", encoding="utf-8"
    )
    with pytest.raises(ModelError, match="rows|fit"):
        exam.probe.loss(Hypothesis(good.recipe.but(vocab=longer)))


def test_a_recording_too_long_or_without_text_is_left_out() -> None:
    case = load_case(HEALTHY)
    quiet = case.model_copy(update={"prompts": tuple(p.model_copy(update={"ref_text": " "}) for p in case.prompts)})
    with pytest.raises(Exception, match="ref_text"):
        probes.real_items(quiet)


def test_parity_is_exact_for_one_recipe_and_names_the_first_stage_of_each_factor(exam: Exam, good: Hypothesis) -> None:
    recipe, item = good.recipe, exam.probe.items[1]
    same = parity.compare(parity.trace(exam.probe.bench, recipe, item), parity.trace(exam.probe.bench, recipe, item))
    assert same.first is None
    bare = {k: v for k, v in recipe.arch.items() if k not in ("pe_attn_head", "text_mask_padding")}
    other = recipe.but(arch=bare, front_end="pinyin")
    names = ["arch.pe_attn_head", "arch.text_mask_padding", "front_end"]
    table = parity.parity_table(exam.probe.bench, recipe, other, names, item)
    assert table.first == {
        "all": "token ids", "arch.pe_attn_head": "block 0", "arch.text_mask_padding": "text embedding", "front_end": "token ids",
    }  # fmt: skip
    assert table.values.shape == (4, len(table.stages)) and "velocity" in table.stages


def test_one_clip_is_enough_and_says_that_draws_were_resampled(good: Hypothesis, exam: Exam) -> None:
    one = Probe(exam.probe.items[:1], device="cpu")
    assert one.loss(good).values.shape == (1, 6)
    assert np.isfinite(one.compare(good, replace(good, drop_text=True)).interval).all()


def test_a_rate_ratio_moves_the_start(good: Hypothesis) -> None:
    wave = Wave(np.random.default_rng(0).standard_normal(24000).astype(np.float32) * 0.1, 24000)
    item = Item("x", wave, "a", 0.5)
    assert len(probes.item_mel(item, good.recipe, 2.0)) == pytest.approx(
        len(probes.item_mel(item, good.recipe)) / 2, abs=1
    )


def test_times_as_a_batch_give_what_each_gives_alone(exam: Exam, good: Hypothesis) -> None:
    import torch

    model, item = exam.probe.bench.model(good.recipe), exam.probe.items[0]
    x1 = probes.item_mel(item, good.recipe)
    x0 = torch.randn(x1.shape, generator=torch.Generator().manual_seed(0))
    ids = probes.token_ids(model, good.recipe, item.text)
    with torch.inference_mode():
        together = probes.velocity(model, x1, x0, ids, 40, probes.TIMES)
        alone = torch.cat([probes.velocity(model, x1, x0, ids, 40, (t,)) for t in probes.TIMES])
    assert torch.allclose(together, alone, atol=1e-4, rtol=1e-4)


def test_models_that_differ_in_hidden_options_share_their_weights(exam: Exam, good: Hypothesis) -> None:
    from f5lab import models

    bench, recipe = probes.Bench("cpu"), good.recipe
    a, b = bench.model(recipe), bench.model(recipe.but(arch={**recipe.arch, "pe_attn_head": None}))
    pairs = list(zip(a.parameters(), b.parameters(), strict=True))
    assert a is not b and len(pairs) > 50
    assert all(x.data_ptr() == y.data_ptr() and not x.is_meta for x, y in pairs)
    alone = models.fill(
        models.build_cfm(recipe.backbone, recipe.arch, recipe.vocab), exam.checkpoint.weights(recipe.weights)
    )
    own = a.state_dict()
    assert all(bool((own[name] == value).all()) for name, value in alone.state_dict().items())
    assert all(bool((x == y).all()) for x, y in zip(a.buffers(), alone.buffers(), strict=True))
