"""Alignments: planted orders are found, chance and silence are not taken for one, and the specimen's is lost with its faults."""

from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from toy_models import save_toy, toy_item, toy_recipe

from f5lab import load_case, models, paths, probes, samplers
from f5lab.errors import ModelError
from f5lab.faults.examinations import Exam
from f5lab.inside import alignments
from f5lab.inside.alignments import Alignment, Alignments, Target
from f5lab.probes import Bench, Item
from f5lab.specs import Recipe

TEXT = "Comprou um livro."


class Listener(torch.nn.Module):
    """A network each of whose frames hears one token: in order, in reverse, none, or the last one alone."""

    def __init__(self, kind: str) -> None:
        super().__init__()
        self.kind = kind
        self.text_embed = SimpleNamespace(text_embed=torch.nn.Embedding(60, 1))
        self.weight = torch.nn.Parameter(torch.zeros(1))

    def forward(self, x: torch.Tensor, text: torch.Tensor, **_: object) -> torch.Tensor:
        b, n, d = x.shape
        heard = (torch.arange(n) * text.shape[1]) // n
        if self.kind == "reverse":
            heard = heard.flip(0)
        said = text.float()[:, heard] * (self.kind != "silent")
        return said[:, :, None].expand(b, n, d)


def bench_of(kind: str) -> SimpleNamespace:
    model = torch.nn.Module()
    model.transformer = Listener(kind)
    return SimpleNamespace(device="cpu", model=lambda recipe: model)


@pytest.fixture(scope="module")
def recipe(tmp_path_factory: pytest.TempPathFactory) -> Recipe:
    return toy_recipe(save_toy(tmp_path_factory.mktemp("toy")))


@pytest.fixture
def target() -> Target:
    item = toy_item()
    return Target(Item("clip", item.wave, TEXT, 0.0), TEXT)


@pytest.mark.parametrize(("kind", "order"), [("forward", 1.0), ("reverse", -1.0)])
def test_a_planted_order_is_found(recipe: Recipe, target: Target, kind: str, order: float) -> None:
    found = alignments.align(bench_of(kind), recipe, target)
    assert found.tokens == tuple(TEXT)
    assert found.rank_correlation == pytest.approx(order)
    assert (found.diagonal_share > 0.55) == (kind == "forward")
    assert (found.diagonal_share < -0.1) == (kind == "reverse")


def test_a_text_without_effect_has_no_order(recipe: Recipe, target: Target) -> None:
    found = alignments.align(bench_of("silent"), recipe, target)
    assert found.strength == 0 and found.rank_correlation is None and found.diagonal_share is None
    assert alignments.order_conclusion(Alignments((found,) * 3))["verdict"] == "refuted"
    assert "no effect" in alignments.order_conclusion(Alignments((found,) * 3))["limitation"]


def test_the_change_is_that_of_a_plain_computation(recipe: Recipe) -> None:
    bench, item = Bench(), toy_item()
    found = alignments.align(bench, recipe, Target(item, "rou."), substitutes=1)
    assert found.tokens == tuple("rou.")
    model, start = bench.model(recipe), round(0.2 * models.RATE_HZ / models.HOP)
    x1 = probes.item_mel(item, recipe)
    x0 = torch.randn(x1.shape, generator=torch.Generator().manual_seed(0))
    texts = alignments.replaced(item.text, len(item.text) - 4, 1)
    sides = []
    with torch.inference_mode():
        for text in (item.text, "".join(texts[1])):
            ids = probes.token_ids(model, recipe, text)
            sides.append(probes.velocity(model, x1, x0, ids, start, (alignments.TIME,))[0])
    change = (sides[1] - sides[0])[start:].square().mean(-1).sqrt() / (x1 - x0)[start:].square().mean().sqrt()
    assert np.allclose(found.effect[1], change.numpy(), rtol=1e-3, atol=1e-7)


def test_batches_do_not_matter(recipe: Recipe, monkeypatch: pytest.MonkeyPatch) -> None:
    bench, target = Bench(), Target(toy_item(), "prou.")
    whole = alignments.align(bench, recipe, target)
    monkeypatch.setitem(alignments.FRAMES, "cpu", 100)
    assert np.allclose(whole.effect, alignments.align(bench, recipe, target).effect, rtol=1e-3, atol=1e-7)


def test_replacements_change_one_token_each_and_never_to_itself() -> None:
    tokens = list("abcab")
    changed = alignments.replaced(tokens, 2, 2)
    assert len(changed) == 6
    for number, text in enumerate(changed):
        assert [i for i in range(5) if text[i] != tokens[i]] == [2 + number // 2]
        assert set(text) <= set("abc")
    assert changed == alignments.replaced(tokens, 2, 2)
    with pytest.raises(ModelError, match="different tokens"):
        alignments.replaced(list("aab"), 0, 2)


def test_a_text_that_does_not_end_the_recording_is_refused(recipe: Recipe) -> None:
    problem = alignments.align_all(bench_of("forward"), recipe, [Target(toy_item(), "xyz")]).problem
    assert "not the last ones" in problem


def ordered(value: float) -> Alignment:
    """Return an alignment of ten characters, in order or in reverse."""
    effect = np.full((10, 40), 0.001) + np.kron(np.eye(10), np.full((1, 4), 0.1))
    return Alignment("r", "i", tuple("abcdefghij"), 0.05, effect if value > 0 else effect[:, ::-1])


def contrast(excess: np.ndarray) -> float:
    """Return how many times more is near the straight diagonal, a fifth of the clip to either side, than far from it."""
    rows, columns = ((np.arange(size) + 0.5) / size for size in excess.shape)
    near, logs = np.abs(rows[:, None] - columns) <= 0.2, np.log(np.maximum(excess, 1e-3))
    return float(np.exp(logs[near].mean() - logs[~near].mean()))


def test_what_one_character_or_frame_carries_is_no_order() -> None:
    """Rows and columns of any strength divide out to 1; an order stays, whatever their strength."""
    rows, columns = np.linspace(0.1, 3, 7)[:, None], np.linspace(2, 0.2, 53)
    flat = Alignment("r", "i", tuple("abcdefg"), 0.05, rows * columns)
    assert flat.excess.shape == alignments.PARTS and np.allclose(flat.excess, 1)
    steady = ordered(1)
    uneven = Alignment("r", "i", steady.tokens, 0.05, steady.effect * np.linspace(1, 4, 10)[:, None])
    for found in (steady, uneven):
        assert contrast(found.excess) > 4 and found.excess[0, -1] < 0.2
    assert contrast(ordered(-1).excess) < 1
    assert Alignments((Alignment("r", "i", ("a",), 0.05, np.zeros((1, 4))),)).excess is None


def test_conclusions_need_more_than_one_recording() -> None:
    good, bad = Alignments((ordered(1),) * 4), Alignments((ordered(-1),) * 4)
    assert alignments.order_conclusion(good)["verdict"] == "supported"
    assert alignments.order_conclusion(bad)["verdict"] == "refuted"
    assert alignments.loss_conclusion(bad, good)["verdict"] == "supported"
    assert alignments.loss_conclusion(good, good)["verdict"] == "refuted"
    one = Alignments((ordered(1),))
    assert alignments.order_conclusion(one)["verdict"] == "inconclusive"
    assert alignments.loss_conclusion(Alignments((ordered(-1),)), one)["verdict"] == "inconclusive"
    nothing = alignments.order_conclusion(alignments.align_all(bench_of("forward"), None, []))  # type: ignore[arg-type]
    assert nothing == {"verdict": "inconclusive", "limitation": "no recording with its text"}


def test_the_specimens_diagonal_is_there_as_trained_and_lost_with_its_faults(tmp_path: Path) -> None:
    case = load_case(paths.default_case())
    exam = Exam(case, device="cpu", asr="", limit=6)
    trained = samplers.repaired_recipe(case)
    first, *rest = trained.vocab.read_text(encoding="utf-8").splitlines()
    shuffled = [rest[i] for i in np.random.default_rng(0).permutation(len(rest))]
    (tmp_path / "vocab.txt").write_text("\n".join([first, *shuffled]) + "\n", encoding="utf-8")
    targets = alignments.targets(case, exam.probe.items)
    assert [t.text for t in targets] == [p.gen_text for p in case.prompts[:6]]
    recipes = [trained, samplers.inference_recipe(case), trained.but(vocab=tmp_path / "vocab.txt")]
    healthy, *broken = (alignments.align_all(exam.probe.bench, recipe, targets) for recipe in recipes)
    assert healthy.order.mean > 0.4 and healthy.order.low > 0.1
    assert healthy.share > 0.05
    assert contrast(healthy.excess) > 1.2
    for found in broken:
        assert found.order.mean < 0.2
        assert found.share < healthy.share - 0.04
        assert contrast(found.excess) < 1.1
        assert alignments.loss_conclusion(found, healthy)["verdict"] == "supported"
