"""Plants: each puts in the fault that it names, as other modules measure it, and touches nothing of the healthy case."""

import itertools
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
import torch

from f5lab import audio, catalogue, checkpoints, ema, models, paths, vocabs
from f5lab.checkpoints import Checkpoint
from f5lab.planted import plants
from f5lab.planted.planting import Stored
from f5lab.planted.plants import PLANTS
from f5lab.planted.plants_harmless import DECOY_PLANTS, HEALTHY_FORMS
from f5lab.planted.plants_text import old_style
from f5lab.specimen.curricula import read_clips
from f5lab.specs import Case, case_files, load_case
from f5lab.weights import architectures
from f5lab.weights.architectures import TEXT_EMBEDDING

START = paths.data_dir() / "cases" / "ptbr-repaired" / "case.yaml"


@pytest.fixture(scope="module")
def case() -> Case:
    return load_case(START)


def shas(files: list[Path]) -> dict[Path, tuple[str, int]]:
    return {p: (paths.sha256_file(p), p.stat().st_mtime_ns) for p in files}


@pytest.fixture(scope="module", autouse=True)
def untouched_data() -> Iterator[None]:
    """Whatever is planted in this module, the project's data stay as they are, and nothing is added to them."""
    files = sorted(p for p in paths.data_dir().rglob("*") if p.is_file())
    before = shas(files)
    yield
    assert sorted(p for p in paths.data_dir().rglob("*") if p.is_file()) == files
    assert shas(files) == before


Planted = Callable[..., Case]


@pytest.fixture
def planted(case: Case, tmp_path: Path) -> Planted:
    numbers = itertools.count()

    def make(*ids: str, variant: int = 0) -> Case:
        return load_case(plants.plant(ids, case, tmp_path / f"new-{next(numbers)}", variant=variant))

    return make


def content(case: Case) -> tuple[str, list[str]]:
    """Return all that a case says and the bytes of all files that it names."""
    files = [paths.sha256_file(p) for _, p in case_files(case) if p.is_file()]
    files += [paths.sha256_file(p) for _, d in case_files(case) if d.is_dir() for p in sorted(d.rglob("*.*"))]
    return repr(case.model_dump(exclude={"planted", "path"}, exclude_unset=True)), files


def study(case: Case) -> ema.Study:
    base = checkpoints.open_checkpoint(case.base) if case.base else None
    return ema.study(checkpoints.open_checkpoint(case.checkpoint), base)


def notices(case: Case) -> set[str]:
    return {notice.id for notice in study(case).notices}


def flat(weights: dict[str, torch.Tensor]) -> torch.Tensor:
    return torch.cat([t.float().flatten() for t in weights.values()])


def test_every_fault_has_a_plant_and_every_decoy() -> None:
    assert list(PLANTS) == list(catalogue.FAULTS)
    assert list(DECOY_PLANTS) == list(catalogue.DECOYS)
    assert all(1 <= len(plant.variants) <= plants.VARIANTS for plant in PLANTS.values())
    assert len(HEALTHY_FORMS) == 12


@pytest.mark.parametrize("name", sorted(PLANTS))
def test_every_plant_gives_a_case_that_loads_and_differs(name: str, case: Case, planted: Planted) -> None:
    made = planted(name)
    assert made.planted == (name,)
    said, files = content(made)
    said_before, files_before = content(case)
    assert (said, files) != (said_before, files_before)
    assert not list(made.path.parent.parent.glob(".*")), "no temporary folder is left"


@pytest.mark.parametrize("name", sorted(n for n in PLANTS if len(PLANTS[n].variants) == 3 and n != "tokenizer-drift"))
def test_variants_differ(name: str, planted: Planted) -> None:
    made = [content(planted(name, variant=v)) for v in range(3)]
    texts = [(said.replace(f"new-{v}", "new"), files) for v, (said, files) in enumerate(made)]
    assert texts[0] != texts[1] and texts[1] != texts[2] and texts[0] != texts[2]


@pytest.mark.parametrize("variant", range(3))
def test_inherited_lag_is_what_the_decays_predict(variant: int, planted: Planted) -> None:
    made = planted("ema-lag-inherited", variant=variant)
    found = study(made)
    assert found.share.step_before == 1_250_000 and found.share.updates == found.checkpoint.update
    assert found.share.measured == pytest.approx(found.share.expected, abs=2e-3)
    assert found.share.expected_low < found.share.measured < 1, "some of R is in it: not frozen"
    assert not {"ema-frozen", "scratch-by-accident", "raw-ema-swapped"} & notices(made)
    raw, base = flat(found.checkpoint.weights("raw")), flat(found.base.weights("ema"))
    similar = torch.nn.functional.cosine_similarity(raw, base, dim=0)
    assert 0.5 < similar < 0.95, "a fine-tune of this base, far from it"


def test_fresh_lag_has_no_base_and_half_of_its_start(planted: Planted) -> None:
    made = planted("ema-lag-fresh")
    found = checkpoints.open_checkpoint(made.checkpoint)
    assert made.base is None and found.ema_step == found.update == 500
    raw, average = flat(found.weights("raw")), flat(found.weights("ema"))
    assert 0.2 < (raw - average).norm() / raw.norm() < 0.9


@pytest.mark.parametrize("name", ["ema-frozen", "ema-uninitialised", "raw-ema-swapped", "raw-in-ema-slot", "lr-dead",
                                  "scratch-by-accident"])  # fmt: skip
@pytest.mark.parametrize("variant", range(3))
def test_slots_are_judged_as_planted(name: str, variant: int, case: Case, planted: Planted) -> None:
    assert name not in notices(case)
    made = planted(name, variant=variant)
    if made.checkpoint.suffix == ".safetensors":
        found = checkpoints.open_checkpoint(made.checkpoint)
        assert made.inference.weights == "ema" and not found.labelled and found.ema_step is None
    else:
        assert name in notices(made)


def test_a_fresh_ema_keeps_the_constructors_zeros(planted: Planted) -> None:
    found = checkpoints.open_checkpoint(planted("ema-uninitialised").checkpoint)
    assert found.initted is False and found.ema_step == 0
    assert not found.weights("ema")["transformer.proj_out.weight"].any()


@pytest.mark.parametrize(("variant", "prefix"), [(0, {"module."}), (1, {"_orig_mod."}), (2, {"module.", "_orig_mod."})])
def test_lost_prefixes(variant: int, prefix: set[str], planted: Planted) -> None:
    found = checkpoints.open_checkpoint(planted("prefix-lost", variant=variant).checkpoint)
    assert set(found.prefixes["raw"]) == prefix and set(found.prefixes["ema"]) == prefix | {"ema_model."}


def test_a_stale_checkpoint_has_the_counters_and_weights_of_its_time(case: Case, planted: Planted) -> None:
    made = planted("stale-checkpoint")
    found = study(made)
    newest = max(int(p.name.split("_")[1]) for p in made.training.samples.glob("update_*_gen.wav"))
    update = int(0.6 * study(case).checkpoint.update)
    assert found.checkpoint.update == update < newest
    assert found.checkpoint.scheduler["last_epoch"] == update == found.share.updates
    assert found.comparison.overall.uu == pytest.approx(0.36 * study(case).comparison.overall.uu, rel=0.02)


def damaged(found: Checkpoint, healthy: Checkpoint) -> list[str]:
    a, b = found.weights("ema"), healthy.weights("ema")
    return [name for name in b if not torch.equal(a[name], b[name])]


def test_damage_is_one_tensor_of_every_slot(case: Case, planted: Planted) -> None:
    healthy = checkpoints.open_checkpoint(case.checkpoint)
    found = [checkpoints.open_checkpoint(planted("weight-damage", variant=v).checkpoint) for v in range(3)]
    names = [damaged(f, healthy) for f in found]
    assert [len(n) for n in names] == [1, 1, 1] and len({n[0] for n in names}) == 3
    for slot in ("raw", "ema"):
        nan, zero, rows = (f.weights(slot)[n[0]] for f, n in zip(found, names))
        assert int(nan.isnan().sum()) == 1
        assert not zero.any()
        before = healthy.weights(slot)[names[2][0]]
        assert torch.equal(rows.float().sum(1).sort().values, before.float().sum(1).sort().values)


@pytest.mark.parametrize(("variant", "says"), [(0, "altered"), (1, "altered"), (2, "rounded to half precision")])
def test_rotary_frequencies(variant: int, says: str, case: Case, planted: Planted) -> None:
    healthy = checkpoints.open_checkpoint(case.checkpoint).weights("ema")
    assert architectures.check_rope(healthy).verdict.startswith("as built")
    made = checkpoints.open_checkpoint(planted("inv-freq-altered", variant=variant).checkpoint)
    assert all(architectures.check_rope(made.weights(slot)).verdict.startswith(says) for slot in ("raw", "ema"))


OPTIONS = {
    "arch-flags-v0-as-v1": {"text_mask_padding", "pe_attn_head"},
    "pe-attn-head-only": {"pe_attn_head"},
    "text-mask-padding-only": {"text_mask_padding"},
}


@pytest.mark.parametrize("name", OPTIONS)
def test_options_are_lost_and_no_others(name: str, case: Case, planted: Planted) -> None:
    true = case.training.arch.resolve()[1]
    for variant in range(3):
        made = planted(name, variant=variant)
        now = made.inference.arch.resolve()[1]
        full = {"text_mask_padding": True, "pe_attn_head": None, **now}
        assert {k for k in full if full[k] != true[k]} == OPTIONS[name]
        assert (OPTIONS[name] <= set(now)) == (variant == 1)
        assert (made.training.arch is None) == (variant == 2)


@pytest.mark.parametrize(
    ("name", "variant", "verdict"),
    [
        ("vocab-permuted", 0, "permuted"),
        ("vocab-permuted", 1, "permuted"),
        ("vocab-permuted", 2, "permuted"),
        ("vocab-off-by-one", 0, "shifted"),
        ("vocab-off-by-one", 1, "shifted"),
        ("vocab-off-by-one", 2, "shifted"),
        ("vocab-re-extended", 0, "tail-differs"),
        ("vocab-re-extended", 1, "tail-differs"),
        ("vocab-re-extended", 2, "tail-differs"),
    ],
)
def test_vocabs_of_the_same_size(name: str, variant: int, verdict: str, case: Case, planted: Planted) -> None:
    made = planted(name, variant=variant)
    true, given = vocabs.read_vocab(case.training_vocab), vocabs.read_vocab(made.inference_vocab)
    found = vocabs.compare(true, given)
    assert found.silent and found.verdict == verdict
    if (name, variant) == ("vocab-permuted", 1):
        assert made.training_vocab == made.inference_vocab and made.base_vocab == case.training_vocab
    else:
        assert made.training_vocab == case.training_vocab


def test_damaged_vocabs(case: Case, planted: Planted) -> None:
    size = vocabs.read_vocab(case.training_vocab).size
    overrun, cut, smaller = (planted("vocab-damage", variant=v) for v in range(3))
    read = vocabs.read_vocab(overrun.inference_vocab)
    assert read.size == size and read.largest_index == size, "loads, and an index has no row"
    assert any(read.lookup(c) == size for p in overrun.prompts for c in p.gen_text + p.ref_text)
    last = list(vocabs.read_vocab(case.training_vocab).char_map)[-1]
    read = vocabs.read_vocab(cut.inference_vocab)
    assert read.size == size and last not in read.char_map and any(last in p.gen_text for p in cut.prompts)
    read = vocabs.read_vocab(smaller.inference_vocab)
    assert read.size == size - 1 and read.duplicates


def test_unknown_letters(case: Case, planted: Planted) -> None:
    vocab = vocabs.read_vocab(case.training_vocab)
    assert not vocabs.unknown_tokens([p.gen_text for p in case.prompts], vocab)
    texts, generated, decomposed = (planted("oov-to-zero", variant=v) for v in range(3))
    assert all(u.nfc_saves for u in vocabs.unknown_tokens([p.ref_text for p in texts.prompts], vocab))
    assert vocabs.unknown_tokens([p.gen_text for p in generated.prompts], vocab)
    assert [p.ref_text for p in generated.prompts] == [p.ref_text for p in case.prompts]
    read = vocabs.read_vocab(decomposed.inference_vocab)
    assert read.size == vocab.size and read.not_nfc and vocabs.compare(vocab, read).nfc_equal


def arrow(case: Case) -> list[dict]:
    with case.training.dataset.open("rb") as f:
        return pa.ipc.open_stream(f).read_all().to_pylist()


def test_drifted_tokens_differ_from_todays_at_hyphens_only(planted: Planted) -> None:
    made = planted("tokenizer-drift")
    convert = models.front_end("pinyin")
    written = {str(clip.path): clip.text for clip in read_clips(made.prompts[0].ref_audio.parent)}
    rows = arrow(made)
    assert all(row["audio_path"] in written and row["duration"] > 0 for row in rows)
    drifted = [row for row in rows if row["text"] != convert(written[row["audio_path"]])]
    assert drifted and all("".join(row["text"]) == written[row["audio_path"]].replace("-", "- ") for row in drifted)
    assert len(drifted) < len(rows)
    both = {str(p.gen_audio) for p in made.prompts} & {row["audio_path"] for row in drifted}
    assert both, "a prompt has the text of a row as it is written, so that the two can be compared"
    assert all(convert(f"{p.ref_text}  {p.gen_text}") == list(f"{p.ref_text}  {p.gen_text}") for p in made.prompts)


def test_old_converters_put_spaces_where_todays_does_not() -> None:
    assert "".join(old_style("well-known")) == "well- known"
    assert "".join(old_style("ab한국")) == "ab 한 국"
    assert old_style("plain text.") == list("plain text.")


def test_capitals_were_never_trained(case: Case, planted: Planted) -> None:
    made = planted("case-folding", variant=2)
    texts = ["".join(row["text"]) for row in arrow(made)]
    assert texts == [t.lower() for t in texts] and isinstance(arrow(made)[0]["text"], list)
    symbols = list(vocabs.read_vocab(case.training_vocab).char_map)
    capitals = {i + 1 for i, s in enumerate(symbols) if s != s.lower()}
    found = study(made)
    base = found.base.weights("ema")[TEXT_EMBEDDING]
    for slot in ("raw", "ema"):
        rows = found.checkpoint.weights(slot)[TEXT_EMBEDDING]
        assert capitals == {i for i in range(len(rows)) if torch.equal(rows[i], base[i])}


def test_front_end_rate_is_only_in_the_config(case: Case, planted: Planted) -> None:
    made = planted("frontend-rate")
    assert "target_sample_rate: 16000" in made.training.arch.config.read_text()
    assert made.training.arch.resolve() == case.training.arch.resolve()


def test_references_are_reworked(case: Case, planted: Planted) -> None:
    before = audio.load_wave(case.prompts[0].ref_audio)
    wrong = audio.load_wave(planted("sample-rate-mislabelled").prompts[0].ref_audio)
    assert wrong.rate_hz == 16000 and len(wrong.samples) == len(before.samples)
    silent = audio.load_wave(planted("ref-silent-or-quiet", variant=1).prompts[0].ref_audio)
    quiet = audio.load_wave(planted("ref-silent-or-quiet").prompts[0].ref_audio)
    assert silent.rms == 0 and 20 * np.log10(quiet.rms) < -50, "upstream trims below -50 dBFS"
    for variant in range(3):
        slow = planted("duration-byte-ratio", variant=variant).prompts[0]
        ratio = audio.load_wave(slow.ref_audio).seconds / before.seconds
        assert 1.75 < ratio < 2.3 and slow.ref_text == case.prompts[0].ref_text
    long = planted("ref-clipped").prompts[0]
    assert audio.load_wave(long.ref_audio).seconds > 12 and len(long.ref_text.split(".")) > 8


def test_texts_are_exchanged(case: Case, planted: Planted) -> None:
    for variant in range(3):
        wrong = planted("ref-text-wrong", variant=variant)
        assert all(a.ref_text != b.ref_text for a, b in zip(wrong.prompts, case.prompts))
        assert len({(p.ref_audio, p.ref_text) for p in wrong.prompts}) == len({p.ref_audio for p in case.prompts})
    short = planted("short-text-speed")
    assert all(len(p.gen_text.encode()) < 10 and p.gen_audio.is_file() for p in short.prompts)
    stale = planted("stale-text-cache").prompts
    assert [p.spoken_audio for p in stale[1:]] == [p.gen_audio for p in stale[:-1]]
    assert stale[0].spoken_audio == stale[0].gen_audio


def test_a_damaged_vocoder_has_the_same_shapes(case: Case, planted: Planted) -> None:
    good = torch.load(case.vocoder.path / "pytorch_model.bin", weights_only=True)
    for variant in range(3):
        bad = torch.load(
            planted("vocoder-wrong", variant=variant).vocoder.path / "pytorch_model.bin", weights_only=True
        )
        assert {k: v.shape for k, v in bad.items()} == {k: v.shape for k, v in good.items()}
        assert not torch.equal(bad["head.out.weight"], good["head.out.weight"])


def velocity(case: Case, precision: str) -> torch.Tensor:
    backbone, options = case.training.arch.resolve()
    model = models.build_cfm(backbone, options, case.training_vocab)
    model = models.load_weights(model, case.checkpoint, "ema", precision=precision)
    noise = torch.randn(1, 24, 100, generator=torch.Generator().manual_seed(0))
    kind = next(model.parameters()).dtype
    with torch.inference_mode():
        return model.transformer(
            x=noise.to(kind), cond=torch.zeros_like(noise).to(kind), text=torch.arange(20)[None],
            time=torch.tensor([0.5], dtype=kind),
        )  # fmt: skip


def test_half_precision_overflows_and_full_does_not_change(case: Case, planted: Planted) -> None:
    healthy = velocity(case, "fp32")
    assert velocity(case, "fp16").isfinite().all()
    for variant in range(3):
        made = planted("precision-fp16-nan", variant=variant)
        assert made.inference.precision == "fp16"
        assert torch.equal(velocity(made, "fp32"), healthy), "a power of two is exact"
        assert not velocity(made, "fp16").isfinite().all()


def test_faults_in_one_file_do_not_undo_each_other(planted: Planted) -> None:
    made = planted("prefix-lost", "ema-frozen", "front-end-pinyin")
    found = checkpoints.open_checkpoint(made.checkpoint)
    assert made.planted == ("prefix-lost", "ema-frozen", "front-end-pinyin")
    assert "module." in found.prefixes["raw"] and "ema-frozen" in notices(made)
    assert made.inference.front_end == "pinyin"


def test_two_vocab_faults_work_on_one_another(case: Case, planted: Planted) -> None:
    made = planted("vocab-off-by-one", "vocab-damage")
    read = vocabs.read_vocab(made.inference_vocab)
    assert read.duplicates and " " not in read.char_map and made.inference_vocab.name == "vocab_2.txt"


@pytest.mark.parametrize("name", sorted(DECOY_PLANTS))
def test_decoys_change_nothing_that_counts(name: str, case: Case, tmp_path: Path) -> None:
    for variant in range(DECOY_PLANTS[name][1]):
        made = load_case(plants.decoy(name, case, tmp_path / str(variant), variant=variant))
        assert made.planted == ()
        assert content(made) != content(case)
        true, given = vocabs.read_vocab(case.training_vocab), vocabs.read_vocab(made.inference_vocab)
        texts = [p.ref_text + p.gen_text for p in made.prompts]
        assert given.size == true.size
        assert [[given.lookup(c) for c in t] for t in texts] == [[true.lookup(c) for c in t] for t in texts]
        hidden = [a.resolve()[1] for a in (made.training.arch, made.inference.arch)]
        assert all(h["pe_attn_head"] == 1 and h["text_mask_padding"] is False for h in hidden)


@pytest.mark.parametrize("variant", range(10))
def test_healthy_forms_keep_the_weights(variant: int, case: Case, tmp_path: Path) -> None:
    made = load_case(plants.healthy(case, tmp_path / "new", variant=variant))
    assert made.planted == () and content(made) != content(case)
    slot = made.inference.weights
    a = checkpoints.open_checkpoint(made.checkpoint).weights(slot)
    b = checkpoints.open_checkpoint(case.checkpoint).weights(slot)
    assert all(torch.equal(a[name].float(), b[name].float()) for name in b)
    now, true = made.inference.arch.resolve(), case.training.arch.resolve()
    assert now[0] == true[0] and {k: now[1][k] for k in true[1]} == true[1]
    assert vocabs.read_vocab(made.inference_vocab).char_map == vocabs.read_vocab(case.training_vocab).char_map


def test_a_pruned_file_has_only_what_upstream_keeps() -> None:
    weights = {"transformer.proj_out.weight": torch.ones(2, 2)}
    assert list(Stored(raw=None, ema=weights, ema_prefix="").sections()) == ["ema_model_state_dict"]
    full = Stored(raw=weights, ema=weights, ema_step=3, initted=True, update=3).sections()
    assert list(full) == ["model_state_dict", "ema_model_state_dict", "update"]
    assert list(full["ema_model_state_dict"]) == ["initted", "step", "ema_model.transformer.proj_out.weight"]
