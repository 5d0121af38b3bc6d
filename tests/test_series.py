"""A series over what upstream's own Trainer wrote: figures against the files themselves, failures seen, finished parts kept."""

import gc
import json
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import toy_training

from f5lab import checkpoints
from f5lab.errors import CaseError
from f5lab.finished import series_pages
from f5lab.scale import series, series_rows

PLAN = series.Plan(recordings=3, draws=1, device="cpu", language="pt")


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A training of six updates, saved every second, with one file cut short."""
    home = toy_training.train(tmp_path_factory.mktemp("training"))
    (home / "model_5.pt").write_bytes((home / "model_4.pt").read_bytes()[:1_000_000])
    return home


@pytest.fixture(scope="module")
def out(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("series")


@pytest.fixture(scope="module")
def found(trained: Path, out: Path) -> series.Series:
    return series.run(trained.parent.parent, out, PLAN)


def weights(path: Path, slot: str) -> np.ndarray:
    state = torch.load(path, weights_only=True)["model_state_dict" if slot == "raw" else "ema_model_state_dict"]
    named = {k.removeprefix("ema_model."): v for k, v in state.items() if k not in ("initted", "step")}
    return np.concatenate([v.double().numpy().ravel() for k, v in sorted(named.items()) if "mel_spec." not in k])


def test_rows_are_in_order_and_the_damaged_one_says_why(found: series.Series) -> None:
    assert [row["file"] for row in found.rows] == [
        "model_2.pt",
        "model_4.pt",
        "model_5.pt",
        "model_6.pt",
        "model_last.pt",
    ]
    assert len(found.failed) == 1 and "model_5.pt is damaged" in found.failed[0]
    assert not any(row["problem"] for row in found.rows if row["file"] != "model_5.pt")


@pytest.mark.parametrize("number", [0, 3])
def test_norms_and_distances_are_those_of_the_files(found: series.Series, trained: Path, number: int) -> None:
    row, base = found.rows[number], weights(trained / "pretrained_base.pt", "ema")
    for slot in ("raw", "ema"):
        own = weights(trained / row["file"], slot)
        assert row["norm"][slot] == pytest.approx(np.linalg.norm(own), rel=1e-6)
        assert row["from_base"][slot] == pytest.approx(
            np.linalg.norm(own - base) / np.linalg.norm(base), rel=1e-6, abs=1e-9
        )


def test_the_loss_falls_in_training_and_the_last_update_is_named(found: series.Series) -> None:
    losses = [np.mean(row["probe"]["raw"]["values"]) for row in found.rows if "probe" in row]
    assert losses == sorted(losses, reverse=True) and np.shape(found.rows[0]["probe"]["raw"]["values"]) == (3, 3)
    choice = found.choices[series.LOSS]
    assert choice.best == "model_6.pt raw" and choice.twins == ("model_last.pt raw",) and choice.decided
    assert any("in the training set" in note for note in found.notes)


def test_what_is_finished_is_not_done_again(
    found: series.Series, trained: Path, out: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def forbidden(path: Any, *_: Any, **__: Any) -> None:
        raise AssertionError(f"measured again: {path}")

    for name in ("read_losses", "Exam"):
        monkeypatch.setattr(series_rows, name, forbidden)
    real = series_rows.read_weights
    monkeypatch.setattr(
        series_rows,
        "read_weights",
        lambda path, base: real(path, base) if path.name == "model_5.pt" else forbidden(path),
    )
    again = series.run(trained.parent.parent, out, PLAN)
    bare = [[{k: v for k, v in row.items() if k != "seconds"} for row in s.rows] for s in (found, again)]
    assert bare[0] == bare[1] and again.choices == found.choices


def test_a_series_that_was_cut_off_does_what_is_missing_and_no_more(
    found: series.Series, trained: Path, out: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    lines, asked = (out / series.LEDGER).read_bytes().splitlines(keepends=True), []
    (tmp_path / series.LEDGER).write_bytes(b"".join(lines[:-2]) + lines[-2][:50])
    real = series_rows.read_losses
    monkeypatch.setattr(
        series_rows, "read_losses", lambda path, slot, bench: asked.append((path.name, slot)) or real(path, slot, bench)
    )
    again = series.run(trained.parent.parent, tmp_path, PLAN)
    assert asked == [("model_last.pt", "raw"), ("model_last.pt", "ema")] and again.choices == found.choices


def test_other_weights_under_the_same_name_are_measured_anew(
    found: series.Series, trained: Path, out: Path, tmp_path: Path
) -> None:
    home = tmp_path / "ckpts" / "voz"
    home.mkdir(parents=True)
    shutil.copyfile(trained / "pretrained_base.pt", home / "pretrained_base.pt")
    shutil.copyfile(trained / "model_6.pt", home / "model_2.pt")
    shutil.copyfile(out / series.LEDGER, tmp_path / series.LEDGER)
    (row,) = series.run(home, tmp_path, series.Plan(probe=False)).rows
    assert row["norm"] == found.rows[3]["norm"] and "named 2, holds update 6" in row["notes"]


def test_a_file_that_changes_under_the_series_is_refused(
    trained: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shutil.copyfile(trained / "model_2.pt", tmp_path / "model_last.pt")
    real = series_rows.read_weights

    def overwritten(path: Path, base: Any) -> dict[str, Any]:
        row = real(path, base)
        shutil.copyfile(trained / "model_4.pt", path)
        return row

    monkeypatch.setattr(series_rows, "read_weights", overwritten)
    shown = series.run(tmp_path, tmp_path / "out", series.Plan(probe=False))
    assert len(shown.failed) == 1 and "changed while it was measured" in shown.failed[0]
    assert not (tmp_path / "out" / series.LEDGER).exists()


def test_one_checkpoint_is_open_at_a_time(trained: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    open_now, real = [], series_rows.read_weights

    def count() -> int:
        return sum(type(o) is checkpoints.Checkpoint for o in gc.get_objects())

    gc.collect()
    others = count()  # that other tests of this process hold

    def counted(path: Path, base: Any) -> dict[str, Any]:
        open_now.append(count() - others)
        return real(path, base)

    monkeypatch.setattr(series_rows, "read_weights", counted)
    series.run(trained, tmp_path, series.Plan(probe=False))
    assert len(open_now) == 5 and max(open_now) <= 2  # the base, and the one that the case was written from


def test_the_page_and_the_json_show_what_was_measured(found: series.Series) -> None:
    page, told = series_pages.page(found), json.loads(json.dumps(series.report(found), allow_nan=False))
    assert told["choices"][series.LOSS]["best"] == "model_6.pt raw" and told["rows"][0]["norm"] == found.rows[0]["norm"]
    assert page.count("<tr>") == 6 and "model_5.pt is damaged" in page and "data:image/png;base64," in page
    assert "http://" not in page and "https://" not in page and "<script" not in page
    figure = series_pages.draw(found)
    drawn = figure.axes[0].lines[0]
    assert list(drawn.get_xdata()) == [2, 4, 6, 6] and drawn.get_ydata()[0] == found.rows[0]["norm"]["raw"]


@pytest.mark.parametrize(
    "names, says", [([], "holds no model_"), (["a/model_1.pt", "b/model_2.pt"], "2 folders with checkpoints: a, b")]
)
def test_a_folder_that_is_no_training_is_refused(names: list[str], says: str, tmp_path: Path) -> None:
    for name in names:
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()
    with pytest.raises(CaseError, match=says):
        series.find_checkpoints(tmp_path)
    with pytest.raises(CaseError, match="is not a folder"):
        series.find_checkpoints(tmp_path / "gone")


def test_numbers_are_ordered_as_numbers(tmp_path: Path) -> None:
    for name in ("model_10.pt", "model_2.pt", "model_last.pt", "model_9.safetensors", "pretrained_x.pt"):
        (tmp_path / name).touch()
    assert [p.name for p in series.find_checkpoints(tmp_path)] == [
        "model_2.pt",
        "model_9.safetensors",
        "model_10.pt",
        "model_last.pt",
    ]


def test_the_command_shows_the_table_and_exits_with_1_for_what_failed(trained: Path, tmp_path: Path) -> None:
    command = [sys.executable, "-m", "f5lab", "series", str(trained), "--out", str(tmp_path), "--no-probe"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 1 and "1 of 5 checkpoints could not be measured as asked: model_5.pt" in done.stderr
    assert (
        "Traceback" not in done.stderr
        and done.stdout.endswith("series.html\n")
        and "norm raw" in " ".join(done.stdout.split())
    )
    assert {p.name for p in tmp_path.iterdir()} >= {"series.html", "series.json", "rows.jsonl"}
