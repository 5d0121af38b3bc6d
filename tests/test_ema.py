"""EMA arithmetic against ema_pytorch's own class, and what it says about real training under AdamW."""

import copy
from pathlib import Path

import numpy as np
import pytest
import torch
from ema_pytorch import EMA
from torch.optim.lr_scheduler import LinearLR, SequentialLR
from toy_checkpoints import ema_state, save_trainer, scheduler, state

from f5lab import ema, schedules
from f5lab.checkpoints import open_checkpoint
from f5lab.errors import CheckpointError, LabError
from f5lab.weights import diffs


@pytest.mark.parametrize(("step", "updates"), [(0, 250), (37, 200), (95, 30), (12_000, 300), (1_250_000, 200)])
def test_weights_equal_ema_pytorch(step: int, updates: int) -> None:
    """One-hot probes: raw weights after update u are the unit vector u, so the EMA ends up holding the weights."""
    model = torch.nn.Linear(1, updates + 1, bias=False, dtype=torch.float64)
    model.weight.data = torch.eye(updates + 1, dtype=torch.float64)[:, :1]
    average = EMA(model, include_online_model=False)
    average.step.fill_(step)
    average.initted.fill_(True)
    for update in range(1, updates + 1):
        model.weight.data = torch.eye(updates + 1, dtype=torch.float64)[:, update : update + 1]
        average.update()
    held = average.ema_model.weight.detach().squeeze().numpy()
    assert held[0] == pytest.approx(ema.weight_of_base(step, updates), abs=2e-7)
    np.testing.assert_allclose(held[1:], ema.path_weights(step, updates), atol=2e-7)  # float32's pow differs by an ulp


def test_a_released_base_keeps_most_of_the_ema() -> None:
    assert 1 - ema.weight_of_base(1_250_000, 1_000) == pytest.approx(0.00995, abs=1e-4)
    assert ema.weight_of_base(1_250_000, 20_000) == pytest.approx(0.9999**2000, abs=1e-4)


def test_expected_alpha_orders_the_paths() -> None:
    rates = schedules.read_schedule(scheduler(150)).update_rates(150)
    jump, drift, diffusion, adamw = (ema.expected_alpha(12_000, 150, path, rates) for path in ema.PATHS)
    assert jump == pytest.approx(1 - ema.weight_of_base(12_000, 150))
    assert drift < diffusion <= adamw < jump


def test_siblings_on_the_assumed_path_change_nothing() -> None:
    walked = ema.progress("adamw", 500)
    points = [(100, walked[99]), (350, walked[349])]
    assert ema.interpolated_alpha(9_000, 500, points) == pytest.approx(ema.expected_alpha(9_000, 500), abs=1e-9)


@pytest.mark.parametrize("rates", [[1.0], [0.0, 0.0], [1.0, -1.0]])
def test_impossible_rates_are_refused(rates: list[float]) -> None:
    with pytest.raises(LabError, match="2 learning rates"):
        ema.expected_alpha(0, 2, "drift", rates)


def finetune(seed: int, updates: int = 600) -> tuple[dict, dict, dict, dict]:
    """Fine-tune a small trained network on noisy batches of a related task; return base, raw, EMA and schedule."""
    torch.manual_seed(seed)

    def network() -> torch.nn.Module:
        return torch.nn.Sequential(torch.nn.Linear(16, 32), torch.nn.GELU(), torch.nn.Linear(32, 8))

    model, teacher, other = network(), network(), network()

    def loss(mix: float) -> torch.Tensor:
        x = torch.randn(16, 16)
        with torch.no_grad():
            y = 3 * ((1 - mix) * teacher(x) + mix * other(x)) + 0.3 * torch.randn(16, 8)
        return (model(x) - y).square().mean()

    def train(steps: int, lr: float, mix: float, average: EMA | None = None) -> dict:
        optimizer = torch.optim.AdamW(model.parameters(), lr=lr, foreach=True)
        up = LinearLR(optimizer, start_factor=1e-8, end_factor=1.0, total_iters=60)
        down = LinearLR(optimizer, start_factor=1.0, end_factor=1e-8, total_iters=int(1.1 * steps) - 60)
        schedule = SequentialLR(optimizer, [up, down], milestones=[60])
        for _ in range(steps):
            loss(mix).backward()
            torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
            schedule.step()
            optimizer.zero_grad()
            if average is not None:
                average.update()
        return schedule.state_dict()

    train(600, 2e-3, 0.0)
    base = copy.deepcopy(model.state_dict())
    average = EMA(model, include_online_model=False)
    average.step.fill_(12_000)
    average.initted.fill_(True)
    plan = train(updates, 3e-4, 0.2, average)
    return base, model.state_dict(), average.ema_model.state_dict(), plan


@pytest.mark.parametrize("seed", [0, 1])
def test_closed_form_and_projection_agree_on_a_real_fine_tune(seed: int) -> None:
    base, raw, average, plan = finetune(seed)
    measured = diffs.compare(raw, average, base).overall
    rates = schedules.read_schedule(plan).update_rates(600)
    assert measured.moved < 0.2
    assert abs(measured.alpha - ema.expected_alpha(12_000, 600, "adamw", rates)) < 0.02
    assert measured.alpha <= 1 - ema.weight_of_base(12_000, 600)


def toy_run(folder: Path, *, factor: float = 0.25, swap: bool = False, **more: object) -> tuple[Path, Path]:
    """A base, and a fine-tune whose EMA went `factor` of the way to the raw weights."""
    base, target = state(0), state(1)
    raw = {k: v + 0.1 * target[k] * ("inv_freq" not in k) for k, v in base.items()}
    average = {k: v + factor * (raw[k] - v) for k, v in base.items()}
    if swap:
        raw, average = average, raw
    start = folder / "base.pt"
    torch.save({"ema_model_state_dict": ema_state(base, 12_000)}, start)
    extra = {"update": 100, "scheduler_state_dict": scheduler(100)} | more
    return save_trainer(folder / "model_100.pt", raw, ema_state(average, 12_100), **extra), start


def test_report_of_a_fine_tune(tmp_path: Path) -> None:
    tuned, base = toy_run(tmp_path)
    report = ema.report(tuned, base)
    share = report["base_share"]
    assert share["measured"] == pytest.approx(0.75, abs=1e-5)
    assert (share["step_before"], share["updates"], share["schedule"]) == (12_000, 100, "the file's scheduler")
    assert share["expected_low"] == pytest.approx(ema.weight_of_base(12_000, 100))
    assert share["expected_low"] <= share["expected"] <= share["expected_high"]
    assert report["notices"] == [] and not report["identical"]
    assert {row["where"] for row in report["modules"]} >= {"text_embed.rows", "blocks.attn", "proj_out"}


def test_report_without_base_gives_the_closed_form_only(tmp_path: Path) -> None:
    tuned, _ = toy_run(tmp_path)
    share = ema.report(tuned)["base_share"]
    assert share["measured"] is None and share["weight"] == pytest.approx(ema.weight_of_base(12_000, 100))
    assert any("not measured" in limit for limit in share["limits"])


@pytest.mark.parametrize(
    ("change", "found"),
    [({"swap": True}, "raw-ema-swapped"), ({"factor": 0.0}, "ema-frozen"), ({"factor": 1.0}, "slots-equal")],
)
def test_misplaced_weights_are_named(tmp_path: Path, change: dict, found: str) -> None:
    tuned, base = toy_run(tmp_path, **change)
    assert [notice["id"] for notice in ema.report(tuned, base)["notices"]] == [found]


def test_notices_without_a_base(tmp_path: Path) -> None:
    never = ema_state(state(1), 0) | {"initted": torch.tensor(False)}
    save_trainer(tmp_path / "a.pt", state(0), never, update=50)
    save_trainer(tmp_path / "b.pt", state(0), state(1), update=50)
    assert [n["id"] for n in ema.report(tmp_path / "a.pt")["notices"]] == ["ema-uninitialised"]
    assert [n["id"] for n in ema.report(tmp_path / "b.pt")["notices"]] == ["raw-in-ema-slot"]


def test_another_base_is_noticed(tmp_path: Path) -> None:
    tuned, _ = toy_run(tmp_path)
    torch.save({"ema_model_state_dict": ema_state(state(7), 12_000)}, tmp_path / "other.pt")
    assert "scratch-by-accident" in [n["id"] for n in ema.report(tuned, tmp_path / "other.pt")["notices"]]


def test_one_set_of_weights_needs_a_second_file(tmp_path: Path) -> None:
    _, base = toy_run(tmp_path)
    with pytest.raises(CheckpointError, match="holds ema weights only: nothing to compare; pass a second"):
        ema.report(base)
    assert ema.report(base, base)["identical"]


def test_siblings_are_measured(tmp_path: Path) -> None:
    tuned, base = toy_run(tmp_path)
    opened, start = open_checkpoint(tuned), open_checkpoint(base)
    half = {k: (v + start.weights("ema")[k]) / 2 for k, v in opened.weights("raw").items()}
    save_trainer(tmp_path / "model_40.pt", half, ema_state(half), update=40)
    points = ema.sibling_points(ema.study(opened, start))
    assert points == [(40, pytest.approx(0.5, abs=1e-4))]


def test_sums_add_up_to_the_whole() -> None:
    a, b, p = state(0), state(1), state(2)
    comparison = diffs.compare(a, b, p)
    flat = [torch.cat([t[k].double().flatten() for k in a]) for t in (a, b, p)]
    whole = comparison.overall
    assert whole.relative_l2 == pytest.approx(float((flat[0] - flat[1]).norm() / flat[0].norm()))
    u, v = flat[0] - flat[2], flat[1] - flat[2]
    assert whole.alpha == pytest.approx(float(u @ v / (u @ u)))
    assert whole.cosine == pytest.approx(float(torch.cosine_similarity(flat[0], flat[1], dim=0)))
    assert sum(s.n for s in comparison.layers().values()) == len(flat[0])


def test_extended_text_rows_are_compared_on_common_rows() -> None:
    a, b = state(0), state(0)
    a[diffs.TEXT_ROWS] = torch.cat([a[diffs.TEXT_ROWS], torch.ones(2, 6)])
    b["transformer.proj_out.bias"] = torch.zeros(3)
    comparison = diffs.compare(a, b)
    assert comparison.cut_rows == 2 and list(comparison.reshaped) == ["transformer.proj_out.bias"]
    assert comparison.overall.dd == 0
    with pytest.raises(CheckpointError, match="no tensor in common"):
        diffs.compare(a, {"x": torch.zeros(1)})


@pytest.mark.parametrize(("warmup", "total", "position"), [(10, 200, 5), (10, 200, 150), (10, 200, 400), (1, 50, 20)])
def test_schedule_equals_torch(warmup: int, total: int, position: int) -> None:
    rebuilt = schedules.read_schedule(scheduler(position, warmup, total))
    assert rebuilt.rates(np.array([position]))[0] == pytest.approx(rebuilt.last_lr, rel=1e-6, abs=1e-15)
    assert rebuilt.phase == ("warm-up" if position < warmup else "decay" if position < total else "finished")
    assert rebuilt.is_dead == (position >= total)


def test_processes_step_the_schedule_together() -> None:
    single = schedules.read_schedule(scheduler(100)).update_rates(100)
    double = schedules.read_schedule(scheduler(100)).update_rates(50)
    np.testing.assert_allclose(double, single[::2])


def test_unknown_schedulers_are_not_guessed() -> None:
    assert schedules.read_schedule(None) is None
    assert schedules.read_schedule({"T_max": 3, "last_epoch": 1}) is None
