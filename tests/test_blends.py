"""Blends: sums of weights, what may not be summed, the best one without flattery, and files that load."""

from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from toy_models import ARCH, SPECIMEN, save_toy, toy_item, toy_prompt, toy_recipe

from f5lab import blends, models
from f5lab.blends import Blending, Landscape, Mix, Sources
from f5lab.checkpoints import open_checkpoint
from f5lab.commands import cli_blends
from f5lab.errors import CheckpointError, UsageError
from f5lab.faults.examinations import Exam
from f5lab.probes import Hypothesis, Probe
from f5lab.specs import Arch, Case, Inference, Training, Vocoder


@pytest.fixture(scope="module")
def file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_toy(tmp_path_factory.mktemp("toy"))


@pytest.fixture(scope="module")
def case(file: Path) -> Case:
    arch = Arch(**ARCH, backbone="DiT")
    return Case(
        checkpoint=file, vocab=SPECIMEN / "vocab.txt", vocoder=Vocoder(path=SPECIMEN / "vocos"), prompts=(toy_prompt(),),
        training=Training(arch=arch, front_end="raw"), inference=Inference(arch=arch, front_end="raw", nfe_step=4),
    )  # fmt: skip


@pytest.fixture(scope="module")
def sources(case: Case) -> Sources:
    return blends.find_sources(case, open_checkpoint(case.checkpoint), None)


def test_mixes_are_read_and_sum_to_one() -> None:
    assert blends.read_mix("raw=0.75, ema=0.25") == Mix(raw=0.75, ema=0.25)
    assert Mix(raw=0.75, ema=0.25).name == "0.75 raw + 0.25 ema"
    assert blends.read_mix("raw=1.5,ema=-0.5").shares == {"raw": 1.5, "ema": -0.5}
    for wrong, said in (
        ("raw=0.5", "sum to 0.5"),
        ("raw", "coefficients as in"),
        ("raw=0.5,mean=0.5", "no source"),
        ("raw=nan", "sum"),
    ):
        with pytest.raises(UsageError, match=said):
            blends.read_mix(wrong)


def test_a_blend_is_the_sum_that_it_says(sources: Sources) -> None:
    made = blends.blend(sources, Mix(raw=0.75, ema=0.25))
    for name, tensor in made.items():
        expected = 0.75 * sources.weights["raw"][name].double() + 0.25 * sources.weights["ema"][name].double()
        assert tensor.dtype == torch.float32
        assert torch.allclose(tensor.double(), expected, atol=1e-6)
    alone = blends.blend(sources, Mix(ema=1.0))
    assert all(torch.equal(alone[n], t.float()) for n, t in sources.weights["ema"].items())
    with pytest.raises(CheckpointError, match="the case names no base"):
        blends.blend(sources, Mix(raw=0.5, base=0.5))


def test_the_lattice_holds_every_mix_once(sources: Sources) -> None:
    assert [m.name for m in sources.lattice(2)] == ["1 ema", "1 raw", "0.5 raw + 0.5 ema"]
    three = Sources({**sources.weights, "base": sources.weights["raw"]}, {}, {})
    assert len(set(three.lattice(4))) == 15


def test_a_base_of_another_vocab_or_shape_stays_out(case: Case, file: Path, tmp_path: Path) -> None:
    lines = (SPECIMEN / "vocab.txt").read_text(encoding="utf-8").splitlines()
    (tmp_path / "vocab.txt").write_text("\n".join([lines[0], *reversed(lines[1:])]) + "\n", encoding="utf-8")
    other = case.model_copy(update={"base_vocab": tmp_path / "vocab.txt"})
    found = blends.find_sources(other, open_checkpoint(file), open_checkpoint(file))
    assert set(found.weights) == {"raw", "ema"} and "other rows" in found.missing["base"]
    wide = {f"ema_model.{k}": torch.zeros(3, 3) for k in found.weights["raw"]}
    torch.save(
        {"ema_model_state_dict": {"initted": torch.tensor(True), "step": torch.tensor(1), **wide}}, tmp_path / "b.pt"
    )
    found = blends.find_sources(case, open_checkpoint(file), open_checkpoint(tmp_path / "b.pt"))
    assert "other names or shapes" in found.missing["base"]
    assert "base" in blends.find_sources(case, open_checkpoint(file), open_checkpoint(file)).weights


def test_a_written_blend_loads_as_users_load_it(sources: Sources, tmp_path: Path) -> None:
    mix = Mix(raw=0.5, ema=0.5)
    path = blends.write_blend(sources, mix, tmp_path / "new")
    assert set(load_file(path)) == {f"ema_model.{name}" for name in sources.weights["raw"]}
    model = models.load_weights(models.build_cfm("DiT", ARCH, SPECIMEN / "vocab.txt"), path, "ema")
    expected = blends.blend(sources, mix)
    assert all(torch.equal(t, expected[n]) for n, t in model.state_dict().items() if n in expected)
    assert open_checkpoint(path).slots == ("ema",)


def test_a_single_source_has_the_probes_own_loss(case: Case, sources: Sources) -> None:
    recipe, items = toy_recipe(case.checkpoint), [toy_item()]
    landscape = blends.survey(recipe, sources, sources.lattice(2), items, draws=1)
    for slot in ("raw", "ema"):
        own = Probe(items).loss(Hypothesis(recipe.but(weights=slot))).mean
        assert landscape.losses[landscape.mixes.index(Mix(**{slot: 1.0}))] == pytest.approx(own, rel=1e-5)
    assert len(landscape.rows) == 3 and landscape.rows[0]["blend"] == landscape.best.name


def test_the_best_of_noise_is_no_better_than_the_rest() -> None:
    rng = np.random.default_rng(0)
    mixes = (Mix(raw=1.0), *(Mix(raw=1 - k / 40, ema=k / 40) for k in range(1, 20)))
    flattered, honest = [], []
    for _ in range(60):
        landscape = Landscape(mixes, 1 + 0.1 * rng.standard_normal((20, 6)))
        flattered.append(landscape.change(landscape.best, mixes[0]).mean)
        honest.append(landscape.honest_change(mixes[0]).mean)
    assert np.mean(flattered) < -0.05
    assert abs(np.mean(honest)) < 0.03
    good = np.ones((20, 6)) + 0.01 * rng.standard_normal((20, 6))
    good[7] -= 0.5
    said = blends.probe_conclusion(Blending(Sources({}, {}, {}), mixes[0], Landscape(mixes, good)))
    assert said["verdict"] == "supported" and said["value"] == pytest.approx(-50, abs=2)
    assert Landscape(mixes, good[:, :2]).honest_change(mixes[0]) is None


def test_one_set_of_weights_cannot_be_blended(case: Case, tmp_path: Path) -> None:
    raw = torch.load(case.checkpoint, weights_only=True)["model_state_dict"]
    torch.save({"model_state_dict": raw}, tmp_path / "raw.pt")
    exam = Exam(case.model_copy(update={"checkpoint": tmp_path / "raw.pt"}), device="cpu", asr="")
    found = blends.explore(exam)
    assert found.landscape is None and found.problem.startswith("only 1 raw is there")
    assert blends.probe_conclusion(found) == {"verdict": "inconclusive", "limitation": found.problem}
    heard = blends.hear(exam, exam.inference, found, found.own, [])
    assert heard.change is None and blends.heard_conclusion(heard)["verdict"] == "inconclusive"


def test_a_blend_is_exported_with_its_bundle(case: Case, sources: Sources, tmp_path: Path) -> None:
    exam, mix = Exam(case, device="cpu", asr="", limit=1), Mix(raw=0.25, ema=0.75)
    facts = blends.export(exam, sources, mix, tmp_path / "out", verify=False)
    assert facts["blend"]["name"] == "0.25 raw + 0.75 ema"
    assert facts["blend"]["sha256"] in str(facts["bundle"]["sources"])
    made, expected = load_file(tmp_path / "out" / "bundle" / "model.safetensors"), blends.blend(sources, mix)
    assert all(torch.equal(made[f"ema_model.{n}"], t) for n, t in expected.items())


def test_the_command_wants_a_mix_and_a_folder_together() -> None:
    with pytest.raises(UsageError, match="--mix and --out belong together"):
        cli_blends.blend(mix="raw=1")
    with pytest.raises(UsageError, match="sum to 0.5"):
        cli_blends.blend(mix="raw=0.5", out=Path("nowhere"))
