"""Runs on disk: read or refused, listed, compared."""

import json
from pathlib import Path
from typing import Any

import pytest
from test_reports import Reader, assert_harmless
from toy_runs import HOME, clip, entry, finding, verdict, write_run

from f5lab import cli, paths
from f5lab.errors import RunError
from f5lab.finished import comparisons, privacy, run_index, runs
from f5lab.verdicts import Refuted


def change_record(folder: Path, **changes: Any) -> None:
    path = folder / "run.json"
    path.write_text(json.dumps(json.loads(path.read_text(encoding="utf-8")) | changes), encoding="utf-8")


def compared(tmp_path: Path, a: dict | None = None, b: dict | None = None) -> comparisons.Comparison:
    first, second = write_run(tmp_path / "a", **(a or {})), write_run(tmp_path / "b", **(b or {}))
    return comparisons.compare(runs.open_run(first), runs.open_run(second))


def run_cli(*arguments: str) -> int:
    with pytest.raises(SystemExit) as stopped:
        cli.main(arguments)
    return int(stopped.value.code or 0)


def test_a_run_is_read_with_what_it_heard(tmp_path: Path) -> None:
    run = runs.open_run(write_run(tmp_path / "20260101T000000Z"))
    assert (run.name, run.checkpoint, len(run.findings)) == ("toy 20260101T000000Z", "ab" * 32, 2)
    assert run.headline == "Cause: Mel of the other vocoder (90%)."
    takes = [run.captions[f"05-first-0{n}.flac"].partition(" ·")[0] for n in (1, 2, 3)]
    assert takes == ["take 1", "take 2", "take 3"], "clips of the same bytes keep their own captions"
    assert run.missing_audio == []


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"format": 7, "versions": {"f5lab": "9.9"}}, "has format 7, written by f5lab 9.9; expected format 1, which f5lab"),
        ({"format": None}, "has no format"),
        ({"notebooks": [{"name": "x"}]}, "is damaged: notebooks.0.name"),
        ({"notebooks": [entry("05", "speak") | {"name": "../../etc"}]}, "is damaged: notebooks.0.name"),
        ({"started": "yesterday"}, "is damaged: started"),
        ({"versions": None}, "is damaged: versions"),
    ],
)
def test_other_formats_and_damage_are_refused_with_the_reason(tmp_path: Path, changes: dict, says: str) -> None:
    folder = write_run(tmp_path / "r")
    change_record(folder, **changes)
    with pytest.raises(RunError, match=says):
        runs.open_run(folder)


def test_runs_of_other_versions_are_read_and_their_findings_refused_by_name(tmp_path: Path) -> None:
    folder = write_run(tmp_path / "r")
    change_record(folder, versions={"f5lab": "0.0.9"}, something_new={"a": 1})
    assert runs.open_run(folder).record["something_new"] == {"a": 1}
    old = [{k: v for k, v in json.loads(line).items() if k != "better"} for line in (folder / "findings.jsonl").read_text().splitlines()]
    (folder / "findings.jsonl").write_text("".join(json.dumps(line) + "\n" for line in old))
    assert [f.better for f in runs.open_run(folder).findings] == ["", ""]
    (folder / "findings.jsonl").write_text('{"id": 3}\n')
    with pytest.raises(RunError, match=r"written by f5lab 0\.0\.9, is damaged .*findings\.jsonl:1 is not a finding"):
        runs.open_run(folder)
    (folder / "run.json").write_text("{")
    with pytest.raises(RunError, match="not readable as JSON"):
        runs.open_run(folder)


def test_a_run_is_found_by_folder_file_and_id(tmp_path: Path) -> None:
    folder = write_run(tmp_path / "toy" / "20260101T000000Z").resolve()
    assert runs.find_run(folder) == runs.find_run(folder / "index.html") == runs.find_run("20260101T000000Z", tmp_path) == folder
    with pytest.raises(RunError, match="no run 2027; expected a run's folder"):
        runs.find_run("2027", tmp_path)
    write_run(tmp_path / "other" / "20260101T000000Z")
    with pytest.raises(RunError, match="2 runs are named 20260101T000000Z"):
        runs.find_run("20260101T000000Z", tmp_path)


def test_the_list_has_every_run_newest_first_and_names_damage(tmp_path: Path) -> None:
    write_run(tmp_path / "toy" / "20260101T000000Z")
    write_run(tmp_path / "toy" / "20260201T000000Z", started="2026-02-01T00:00:00+00:00", verdict=None, status="failed",
              notebooks=[entry("05", "speak"), entry("06", "cause", "failed")])  # fmt: skip
    (tmp_path / "toy" / "20260301T000000Z").mkdir()
    (tmp_path / "example").mkdir()
    (tmp_path / "example" / "findings.jsonl").write_text("")
    page = run_index.rebuild(tmp_path).read_text(encoding="utf-8")
    reader = assert_harmless(page)
    assert reader.links() == ["toy/20260201T000000Z/index.html", "toy/20260101T000000Z/index.html"]
    assert all((tmp_path / link).is_file() for link in reader.links())
    for part in ("No verdict: notebook 06 failed.", "06_cause", "Cause: Mel of the other vocoder (90%).", "ab" * 8, "2026-02-01", "1 folder could not be read"):
        assert part in page
    assert "toy/20260301T000000Z" in page
    assert "example" not in page


def test_the_same_run_twice_differs_in_nothing(tmp_path: Path) -> None:
    found = compared(tmp_path)
    assert not found.worse
    assert {change.change for change in found.findings} == {comparisons.SAME}
    assert not found.inputs and not found.environment and not found.settings
    assert all(row["same"] for row in found.audio)
    assert not comparisons.check(found)
    assert any("what differs is chance" in line for line in found.limits)
    one = comparisons.compare(*[runs.open_run(tmp_path / "a")] * 2)
    assert [line for line in one.limits if "same" in line] == ["A and B are the same run: there is nothing to compare."]


@pytest.mark.parametrize(
    ("value", "interval", "better", "change", "worse"),
    [
        (0.6, (0.5, 0.7), "lower", comparisons.MOVED, True),
        (0.6, (0.5, 0.7), "higher", comparisons.MOVED, False),
        (0.6, (0.5, 0.7), "", comparisons.MOVED, False),
        (0.02, (0.0, 0.05), "lower", comparisons.MOVED, False),
        (0.35, (0.29, 0.4), "lower", comparisons.WITHIN, False),
        (0.9, None, "lower", comparisons.UNJUDGED, False),
    ],
)
def test_a_finding_is_worse_beyond_both_intervals_only(
    tmp_path: Path, value: float, interval: Any, better: str, change: str, worse: bool
) -> None:
    a = [finding("05-cer", 0.2, interval=(0.1, 0.3), better=better)]
    b = [finding("05-cer", value, interval=interval, better=better)]
    found = compared(tmp_path, {"findings": a}, {"findings": b})
    assert [(c.change, c.worse) for c in found.findings] == [(change, worse)]
    assert bool(found.worse) == worse
    assert bool(found.better) == (change == comparisons.MOVED and better != "" and not worse)
    turned = comparisons.compare(runs.open_run(tmp_path / "b"), runs.open_run(tmp_path / "a"))
    assert bool(turned.better) == worse and bool(turned.worse) == bool(found.better)


def test_other_prompts_take_the_ground_from_what_is_heard(tmp_path: Path) -> None:
    b = [finding("05-cer", 0.6, interval=(0.5, 0.7))]
    prompts = [{"id": "p01", "ref_text": "A doutora.", "gen_text": "Outra frase."}]
    case = {"name": "other", "question": "?", "language": "pt", "path": "case.yaml"}
    found = compared(tmp_path, {}, {"findings": b, "prompts": prompts, "case": case, "verdict": None})
    assert not found.worse
    assert found.judged_by == []
    said = " ".join(found.limits)
    for part in ("different names (toy, other)", "The prompts differ", "B has no verdict"):
        assert part in said
    assert {"case", "prompts.p01.gen_text"} <= {row["what"] for row in found.inputs}
    with pytest.raises(RunError, match="nothing in common that says which is worse"):
        comparisons.check(found)


def test_other_settings_of_a_notebook_take_the_ground_from_its_findings_only(tmp_path: Path) -> None:
    more = entry("05", "speak", parameters={"n_prompts": {"value": 8, "default": 4, "meaning": "prompts"}})
    known = [finding("05-cer", 0.6, interval=(0.5, 0.7)), finding("06-cause", 0.6, interval=(0.5, 0.7))]
    found = compared(tmp_path, {}, {"findings": known, "notebooks": [more, entry("06", "cause")], "verdict": None})
    assert [reason.partition(":")[0] for reason in found.worse] == ["06-cause"]
    assert found.judged_by == ["06-cause"]
    assert "Notebooks 05 ran with other settings: none of their values says that B is worse." in found.limits
    assert {"what": "05 n_prompts", "a": 4, "b": 8} in found.settings


def test_causes_count_when_they_are_sure_new_and_not_slight(tmp_path: Path) -> None:
    worse = compared(tmp_path / "1", {}, {"verdict": verdict(("mel-type", 0.9), ("vocab-permuted", 0.8))})
    assert worse.worse == ["B names the cause vocab-permuted, A does not"]
    assert {row["cause"]: row["a"] for row in worse.causes} == {"mel-type": "cause, 90%", "vocab-permuted": "not judged"}
    unsure = compared(tmp_path / "2", {}, {"verdict": verdict(("mel-type", 0.9), ("vocab-permuted", 0.6))})
    assert not unsure.worse
    unjudged = compared(tmp_path / "3", {}, {"verdict": verdict().model_copy(update={"healthy": False})})
    assert not unjudged.worse and not unjudged.better
    out = Refuted(id="mel-type", evidence=["06-mel-type"])
    better = compared(tmp_path / "4", {}, {"verdict": verdict().model_copy(update={"healthy": False, "refuted": [out]})})
    assert not better.worse and better.better == ["A names the cause mel-type, B rules it out"]
    page = comparisons.page(better, runs.open_run(tmp_path / "4" / "a"), runs.open_run(tmp_path / "4" / "b"))
    assert "B is better." in page and better.report()["better"] is True


def test_a_notebook_that_failed_is_worse_and_its_findings_do_not_vanish(tmp_path: Path) -> None:
    broken = {"notebooks": [entry("05", "speak", "failed"), entry("06", "cause")], "findings": [finding("06-cause", 0.3)]}
    found = compared(tmp_path, {}, broken)
    assert found.worse == ["notebook 05_speak ran in A and failed in B"]
    assert [change.id for change in found.findings] == ["06-cause"]
    assert found.not_compared == [{"notebook": "05_speak", "a": "ok", "b": "failed"}]


def test_what_appeared_vanished_and_turned_is_listed(tmp_path: Path) -> None:
    a = [finding("05-gone"), finding("05-turned"), finding("05-unit")]
    b = [finding("05-new"), finding("05-turned", verdict="refuted"), finding("05-unit", unit="dB")]
    found = compared(tmp_path, {"findings": a}, {"findings": b})
    assert {c.id: c.change for c in found.findings} == {
        "05-new": "appeared", "05-gone": "vanished", "05-turned": "turned", "05-unit": "differs",
    }  # fmt: skip


def test_versions_settings_and_files_that_differ_are_named(tmp_path: Path) -> None:
    folder = write_run(tmp_path / "x").parent
    record = json.loads((folder / "x" / "run.json").read_text())
    record["files"][0]["sha256"] = "00" * 32
    notebooks = [entry("05", "speak", parameters={"n_prompts": {"value": 8, "default": 4, "meaning": "prompts"}}), entry("06", "cause")]
    changes = {"files": record["files"], "versions": record["versions"] | {"torch": "9"}, "notebooks": notebooks}
    found = compared(tmp_path, {}, changes)
    assert [row["what"] for row in found.inputs] == ["checkpoint"]
    assert found.environment == [{"what": "torch", "a": "2.11.0", "b": "9"}]
    assert found.settings == [{"what": "05 n_prompts", "a": 4, "b": 8}]
    assert any("differ at once" in text for text in found.limits)


def test_audio_that_is_gone_is_said_and_the_page_still_made(tmp_path: Path) -> None:
    a, b = write_run(tmp_path / "a"), write_run(tmp_path / "b", audio={"05-first-01": clip(500)})
    (a / "audio" / "05-first-01.flac").unlink()
    first, second = runs.open_run(a), runs.open_run(b)
    found = comparisons.compare(first, second)
    assert "1 audio files of A are gone: audio/05-first-01.flac." in found.limits
    reader = assert_harmless(comparisons.page(found, first, second))
    assert len([tag for tag, _ in reader.tags if tag == "audio"]) == 3
    page = comparisons.page(found, first, second)
    assert "no such file in this run" in page
    assert "take 1 · heard: compro o livro de couro" in page


def test_the_command_exits_with_3_when_b_is_worse_and_1_when_nothing_can_be_said(tmp_path: Path, capsys: Any) -> None:
    a = str(write_run(tmp_path / "a"))
    b = str(write_run(tmp_path / "b", verdict=verdict(("mel-type", 0.9), ("vocab-permuted", 0.8))))
    bare = str(write_run(tmp_path / "c", verdict=None, findings=[finding("05-x", None, interval=None)]))
    assert run_cli("compare", a, b) == 0
    assert run_cli("compare", a, b, "--check", "--out", str(tmp_path / "c.html"), "--json", str(tmp_path / "c.json")) == 3
    report = json.loads((tmp_path / "c.json").read_text())
    assert report["worse"] is True and report["why_worse"] == ["B names the cause vocab-permuted, A does not"]
    assert "B is worse." in (tmp_path / "c.html").read_text(encoding="utf-8")
    assert run_cli("compare", b, a, "--check") == 0
    assert run_cli("compare", a, bare, "--check") == 1
    assert run_cli("compare", a, str(tmp_path / "none")) == 1
    assert run_cli("compare", a, b, "--out", str(tmp_path / "c.txt")) == 2
    assert "nothing in common" in capsys.readouterr().err


def test_hostile_strings_stay_text_in_list_and_comparison(tmp_path: Path) -> None:
    attack = "<script>alert(1)</script>"
    case = {"name": attack, "question": attack, "language": "pt", "path": attack}
    folder = write_run(tmp_path / "20260101T000000Z", case=case, findings=[finding("05-cer", claim=attack)], versions={"f5lab": attack})
    assert_harmless(run_index.rebuild(tmp_path).read_text(encoding="utf-8"))
    run = runs.open_run(folder)
    assert_harmless(comparisons.page(comparisons.compare(run, run), run, run))


def test_links_out_of_the_run_are_not_followed(tmp_path: Path) -> None:
    (tmp_path / "secret.flac").write_bytes(b"secret")
    folder = write_run(tmp_path / "r")
    (folder / "audio" / "05-first-09.flac").symlink_to(tmp_path / "secret.flac")
    assert "05-first-09.flac" not in runs.open_run(folder).audio


@pytest.mark.parametrize(
    ("path", "start", "expected"),
    [
        ("/work/cases/a/case.yaml", "/work/reports/a/1", "../../../cases/a/case.yaml"),
        ("{home}/train/case.yaml", "{home}/f5lab/reports/1", "../../../train/case.yaml"),
        ("{home}/train/case.yaml", "/srv/reports/1", "~/train/case.yaml"),
        ("/mnt/disk/case.yaml", "{home}/f5lab/reports/1", "case.yaml"),
        ("/home/bob/case.yaml", "/home/annabel/reports/1", "case.yaml"),
    ],
)
def test_paths_that_travel(path: str, start: str, expected: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", "/home/annabel")
    home = "/home/annabel"
    assert privacy.portable(path.format(home=home), Path(start.format(home=home))) == expected


@pytest.mark.parametrize("place", ["{project}/data/cases/a/case.yaml", "{home}/cases/case.yaml", "/srv/work/cases/case.yaml"])
def test_what_reports_write_leads_back_to_the_file(place: str, monkeypatch: pytest.MonkeyPatch) -> None:
    project, home, run = Path("/opt/lab"), Path("/home/annabel"), Path("/srv/work/reports/a/r")
    monkeypatch.setattr(privacy.paths, "project_root", lambda: project)
    monkeypatch.setattr(Path, "home", lambda: home)
    monkeypatch.setenv("HOME", str(home))
    path = Path(place.format(project=project, home=home))
    written = privacy.shown(path, run)
    assert not written.startswith("/") and "annabel" not in written
    assert privacy.locate(written, run) == path


def test_folders_are_hidden_in_text_and_left_alone_in_embedded_data() -> None:
    hide = privacy.hider({"/root": "~", "/root/lab": "$PROJECT"})
    assert hide("a /root/lab/x.py b /root/laboratory c \x1b[32m/root\x1b[0m/x") == "a $PROJECT/x.py b ~/laboratory c \x1b[32m~\x1b[0m/x"
    data = 'src="data:audio/flac;base64,AB/root/lab/CD=="'
    assert hide(data) == data
    assert HOME in privacy.hider({})(HOME)


def test_links_of_the_list_survive_a_move(tmp_path: Path) -> None:
    write_run(tmp_path / "reports" / "toy" / "20260101T000000Z")
    page = run_index.rebuild(tmp_path / "reports").read_text(encoding="utf-8")
    (tmp_path / "reports").rename(tmp_path / "moved")
    assert all((tmp_path / "moved" / link).is_file() for link in Reader(page).links())
    assert str(tmp_path) not in page


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (lambda run: (run / "findings.jsonl").write_text(""), "recorded 1 findings, 0 are there"),
        (lambda run: _append(run / "findings.jsonl", (run / "findings.jsonl").read_text()), "finding 05-cer stands 2 times"),
        (lambda run: _edit(run / "findings.jsonl", "[0.1, 0.3]", "[0.3, 0.1]"), "no possible number or interval"),
        (lambda run: _edit(run / "verdict.json", '"case": "toy"', '"case": "other"'), "verdict.json is of case other"),
        (lambda run: _edit(run / "run.json", '"prompts": [', '"prompts": ["x", '), "prompts.0"),
        (lambda run: _edit(run / "run.json", '"seconds": 12.0', '"seconds": Infinity'), "seconds"),
    ],
)
def test_runs_that_contradict_themselves_are_damaged(change: Any, says: str, tmp_path: Path) -> None:
    run = write_run(tmp_path / "a")
    runs.open_run(run)
    change(run)
    with pytest.raises(RunError, match=says):
        runs.open_run(run)


def test_findings_that_were_edited_after_the_run_are_damaged(tmp_path: Path) -> None:
    run = write_run(tmp_path / "a")
    part = run / "findings" / "05.jsonl"
    part.parent.mkdir(exist_ok=True)
    part.write_bytes((run / "findings.jsonl").read_bytes())
    record = json.loads((run / "run.json").read_text(encoding="utf-8"))
    outputs = {"findings/05.jsonl": paths.sha256_file(part), "verdict.json": paths.sha256_file(run / "verdict.json")}
    next(e for e in record["notebooks"] if e["number"] == "05")["outputs"] = outputs
    (run / "run.json").write_text(json.dumps(record), encoding="utf-8")
    runs.open_run(run)
    _edit(run / "findings.jsonl", "[0.1, 0.3]", "[0.0, 0.3]")
    with pytest.raises(RunError, match="holds other findings than the notebooks recorded"):
        runs.open_run(run)
    _edit(part, "[0.1, 0.3]", "[0.0, 0.3]")
    with pytest.raises(RunError, match="findings/05.jsonl was changed after notebook 05 wrote it"):
        runs.open_run(run)
    part.unlink()
    with pytest.raises(RunError, match="findings/05.jsonl is gone"):
        runs.open_run(run)


def test_an_effect_without_an_interval_is_read(tmp_path: Path) -> None:
    """One clip has no interval: null, not a number that is not there."""
    run = write_run(tmp_path / "a")
    found = json.loads((run / "verdict.json").read_text(encoding="utf-8"))
    for cause in found["causes"]:
        cause["effect"] = {"metric": "CER", "before": 0.5, "after": 0.1, "interval": None, "n": 1}
    (run / "verdict.json").write_text(json.dumps(found), encoding="utf-8")
    assert found["causes"] and runs.open_run(run).verdict.causes[0].effect.interval is None


def _append(path: Path, text: str) -> None:
    path.write_text(path.read_text(encoding="utf-8") + text, encoding="utf-8")


def _edit(path: Path, old: str, new: str) -> None:
    text = path.read_text(encoding="utf-8")
    assert old in text
    path.write_text(text.replace(old, new), encoding="utf-8")


def test_prompts_in_another_order_are_other_material(tmp_path: Path) -> None:
    two = [{"id": name, "ref_text": "A doutora.", "gen_text": name} for name in ("p01", "p02")]
    a = runs.open_run(write_run(tmp_path / "a", prompts=two))
    b = runs.open_run(write_run(tmp_path / "b", prompts=two[::-1], findings=[finding("05-cer", 0.9, interval=(0.8, 1.0)), finding("06-cause")]))
    found = comparisons.compare(a, b)
    assert not found.worse
    assert "order of prompts" in [row["what"] for row in found.inputs]
    assert any(limit.startswith("The prompts differ") for limit in found.limits)


def test_what_a_is_judged_by_and_b_lacks_is_no_pass(tmp_path: Path) -> None:
    a = runs.open_run(write_run(tmp_path / "a"))
    b = runs.open_run(write_run(tmp_path / "b", findings=[finding("05-cer", None, interval=None), finding("06-cause", 0.3)]))
    assert comparisons.check(comparisons.compare(a, a)) is False
    with pytest.raises(RunError, match="lacks what a is judged by: 05-cer"):
        comparisons.check(comparisons.compare(a, b))


def test_json_is_not_written_over_inputs(tmp_path: Path, capsys: Any) -> None:
    run = write_run(tmp_path / "a")
    before = (run / "run.json").read_bytes()
    assert run_cli("compare", str(run), str(run), "--json", str(run / "run.json")) == 2
    precious = tmp_path / "model.pt"
    precious.write_bytes(b"weights")
    (tmp_path / "link.json").symlink_to(precious)
    assert run_cli("compare", str(run), str(run), "--json", str(precious)) == 2
    assert run_cli("compare", str(run), str(run), "--json", str(tmp_path / "link.json")) == 2
    assert ((run / "run.json").read_bytes(), precious.read_bytes()) == (before, b"weights")
    for _ in range(2):
        assert run_cli("compare", str(run), str(run), "--json", str(tmp_path / "c.json")) == 0
