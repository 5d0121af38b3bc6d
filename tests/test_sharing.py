"""One file with everything, and an archive: complete, inert, small, and silent about what was to be hidden."""

import asyncio
import json
import re
import zipfile
from pathlib import Path
from typing import Any

import nbformat
import numpy as np
import pytest
from test_reports import assert_harmless
from test_runs import run_cli
from toy_runs import HEARD, HOME, TEXT, clip, entry, finding, write_run

from f5lab import audio
from f5lab.errors import RunError, UsageError
from f5lab.finished import archives, redaction, runs, sharing

ALL = frozenset({"paths", "texts", "voices"})
QUOTING = [finding("06-cause", claim=f"mel-type: it splits “Compr ou” of {TEXT}", limitation=f"Of annabel's {HOME}/x.pt", evidence=["figure 1"])]


def shared(tmp_path: Path, *wanted: str, **changes: Any) -> tuple[str, dict[str, bytes]]:
    """Return the page and the archive's contents of a toy run."""
    run = runs.open_run(write_run(tmp_path / "20260101T000000Z", **changes))
    sharing.share(run, tmp_path / "out.html", redact=frozenset(wanted), archive=True)
    with zipfile.ZipFile(tmp_path / "out.zip") as archive:
        contents = {name.partition("/")[2]: archive.read(name) for name in archive.namelist()}
    return (tmp_path / "out.html").read_text(encoding="utf-8"), contents


def bare(page: str) -> str:
    """Return a page without embedded data."""
    return re.sub(r"data:[\w/+.-]+;base64,[A-Za-z0-9+/=]+", "", page)


def test_one_file_holds_everything_and_every_link_leads_inside(tmp_path: Path) -> None:
    page, _ = shared(tmp_path)
    reader = assert_harmless(page)
    ids = [attributes["id"] for _, attributes in reader.tags if "id" in attributes]
    assert len(ids) == len(set(ids))
    inside = {link[1:] for link in reader.links() if link.startswith("#")}
    assert inside <= set(ids)
    assert {link for link in reader.links() if not link.startswith("#")} == {"https://example.org/paper"}
    assert {"n05", "n06", "n06-cell-probe", "audio-05-first-01", "file-findings.jsonl", "n05-cell-probe"} <= inside
    assert "Cause: Mel of the other vocoder (90%)" in page
    assert page.count('<audio controls=""') == 3
    assert page.count("data:image/png;base64,") == 2
    assert "Toy &lt;05&gt;" in page and "Toy &lt;06&gt;" in page
    policy = next(a["content"] for tag, a in reader.tags if tag == "meta" and "http-equiv" in a)
    assert "default-src 'none'" in policy and "script-src" not in policy


def test_a_notebook_that_is_gone_or_failed_is_named(tmp_path: Path) -> None:
    folder = write_run(tmp_path / "r", notebooks=[entry("05", "speak"), entry("06", "cause", "failed")])
    (folder / "05_speak.ipynb").write_text("{")
    (folder / "verdict.json").unlink()
    run = runs.open_run(folder)
    page = sharing.one_page(run)
    assert_harmless(page)
    assert "Not here: its file is not in the run&#x27;s folder, or can not be read." in page
    assert "Not here: ValueError: no." in page


def test_paths_and_names_are_hidden_everywhere(tmp_path: Path) -> None:
    page, archive = shared(tmp_path, "paths", findings=QUOTING)
    texts = {name: data.decode() for name, data in archive.items() if not name.endswith(".flac")} | {"page": page}
    for name, text in texts.items():
        assert not re.search(r"annabel(?!-01)|/home|secret|voices/", bare(text)), name
    assert TEXT in page and HEARD in page
    assert "…/model_last.pt" in page
    for name in ("open_me.ipynb", "notebooks/05_speak.ipynb", "notebooks/06_cause.ipynb"):
        nbformat.validate(nbformat.reads(texts[name], as_version=4))


def test_without_redaction_nothing_is_changed(tmp_path: Path) -> None:
    page, archive = shared(tmp_path)
    assert HOME in page
    assert archive["findings.jsonl"] == (tmp_path / "20260101T000000Z" / "findings.jsonl").read_bytes()


def test_texts_are_hidden_however_they_are_spelled(tmp_path: Path) -> None:
    page, archive = shared(tmp_path, "paths", "texts", findings=QUOTING)
    everything = bare(page) + "".join(data.decode() for name, data in archive.items() if not name.endswith(".flac"))
    for word in ("comprou", "livro", "doutora", "couro", "Compr ou"):
        assert word.lower() not in everything.lower(), word
    assert "it spells out a text of the case" in page
    assert "its cell handles texts" in page
    assert page.count("data:image/png") == 0
    assert page.count('<audio controls=""') == 3
    assert "take 1" in page
    assert json.loads(archive["run.json"])["prompts"] == [{"id": "p01", "ref_text": "(hidden)", "gen_text": "(hidden)"}]


def test_voices_are_left_out_with_their_pictures_and_file_names(tmp_path: Path) -> None:
    page, archive = shared(tmp_path, "paths", "voices", findings=QUOTING)
    assert "data:audio" not in page and "data:image/png" not in page
    assert not [name for name in archive if name.endswith(".flac")]
    assert b"fLaC" not in b"".join(archive.values())
    assert "annabel-01.wav" not in page
    assert "prompts.p01.ref_audio.wav" in page
    assert TEXT in page


def test_texts_of_a_run_that_does_not_say_them_are_not_guessed(tmp_path: Path) -> None:
    run = runs.open_run(write_run(tmp_path / "r", prompts=None))
    with pytest.raises(RunError, match="does not say which texts its case has"):
        sharing.share(run, tmp_path / "o.html", redact=ALL)
    assert not (tmp_path / "o.html").exists()


def test_a_text_that_stays_stops_the_sharing(tmp_path: Path) -> None:
    redactor = redaction.Redactor(runs.open_run(write_run(tmp_path / "r")), ALL)
    redactor.check("<p>comprou muito</p>")
    with pytest.raises(RunError, match="1 texts of the case could not be hidden"):
        redactor.check("<p>COMPROU <b>um</b> livro!</p>")


@pytest.mark.parametrize(
    ("text", "kept"),
    [
        ("see /data/anna/models/x.pt now", "see …/x.pt now"),
        ("C:\\Users\\anna\\x.pt", "…/x.pt"),
        ("mail anna.b@example.org or http://192.168.3.4:8080", "mail (hidden) or http://(hidden)"),
        ("torch 2.11.0.1 and 10.0 and 1/2 and n/a", "torch 2.11.0.1 and 10.0 and 1/2 and n/a"),
        ("</td><td>image/png https://example.org/a/b", "</td><td>image/png https://example.org/a/b"),
        ("~/work/anna/case.yaml ../../anna/x", "…/case.yaml …/x"),
        ("root mean square", "root mean square"),
    ],
)
def test_what_counts_as_a_place_or_a_name(tmp_path: Path, text: str, kept: str) -> None:
    redactor = redaction.Redactor(runs.open_run(write_run(tmp_path / "r")), frozenset({"paths"}))
    assert redactor.text(text) == kept


def test_wishes_are_checked() -> None:
    assert redaction.wishes("") == frozenset()
    assert redaction.wishes("voices") == {"paths", "voices"}
    with pytest.raises(UsageError, match="--redact: names; expected among paths, texts, voices"):
        redaction.wishes("names,texts")


def test_a_file_that_grows_too_large_keeps_its_limit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    noise = np.random.default_rng(0).standard_normal((3, 24000)).astype(np.float32) * 0.2
    sounds = {f"05-first-0{n}": audio.Wave(samples, 24000) for n, samples in enumerate(noise, start=1)}
    run = runs.open_run(write_run(tmp_path / "r", audio=sounds))
    full = len(sharing.one_page(run).encode())
    monkeypatch.setattr(sharing, "MOST_BYTES", full - 50_000)
    page, notes = sharing._fitting(sharing.one_page(run))
    assert len(page.encode()) <= full - 50_000
    assert page.count("data:audio/mpeg") == 3 and "MP3" in notes[0]
    tight = len(page.encode()) - 2000
    monkeypatch.setattr(sharing, "MOST_BYTES", tight)
    page, notes = sharing._fitting(sharing.one_page(run))
    assert len(page.encode()) <= tight
    assert (page.count("data:audio/mpeg"), page.count("This clip is left out")) == (2, 1)
    assert "1 clips are left out" in notes[1]
    monkeypatch.setattr(sharing, "MOST_BYTES", 5000)
    with pytest.raises(RunError, match="even without its audio"):
        sharing._fitting(sharing.one_page(run))


def test_the_archive_opens_without_f5lab(tmp_path: Path) -> None:
    from nbclient import NotebookClient

    _, archive = shared(tmp_path)
    folder = tmp_path / "colleague"
    for name, data in archive.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(data)
    node = nbformat.read(folder / archives.OPENING, as_version=4)
    assert not re.search(r"(import|from) f5lab", "".join(cell.source for cell in node.cells))
    filtered = "words.value = '06-cause'\nprint(count.value)\nwords.value, verdict.value = '', 'refuted'\nprint(count.value)"
    node.cells.append(nbformat.v4.new_code_cell(filtered))
    asyncio.set_event_loop(asyncio.new_event_loop())
    NotebookClient(node, timeout=120, kernel_name="python3", resources={"metadata": {"path": str(folder)}}).execute()
    said = "".join(o.get("text", "") for c in node.cells if c.cell_type == "code" for o in c.outputs)
    assert "2 findings, 3 clips" in said
    assert "1 of 2 findings" in said and "0 of 2 findings" in said
    states = node.metadata.widgets["application/vnd.jupyter.widget-state+json"]["state"].values()
    shown = json.dumps([state["state"].get("outputs") for state in states if "outputs" in state["state"]])
    assert "data:audio/" in shown and "<table" in shown


def test_the_same_run_gives_the_same_archive(tmp_path: Path) -> None:
    run = runs.open_run(write_run(tmp_path / "r"))
    for name in ("a", "b"):
        archives.pack(run, "page", tmp_path / f"{name}.zip")
    assert (tmp_path / "a.zip").read_bytes() == (tmp_path / "b.zip").read_bytes()


def test_audio_that_is_gone_is_said(tmp_path: Path) -> None:
    folder = write_run(tmp_path / "r")
    (folder / "audio" / "05-first-01.flac").unlink()
    told = sharing.share(runs.open_run(folder), tmp_path / "o.zip", archive=True)
    assert told.files == [tmp_path / "o.zip"]
    assert "audio file audio/05-first-01.flac is gone from the run" in told.notes
    with zipfile.ZipFile(tmp_path / "o.zip") as archive:
        readme = archive.read(next(name for name in archive.namelist() if name.endswith("README.md"))).decode()
    assert "Gone when this was packed: audio/05-first-01.flac" in readme


def test_the_command_line(tmp_path: Path, capsys: Any) -> None:
    folder = str(write_run(tmp_path / "20260101T000000Z"))
    assert run_cli("share", folder, "--redact", "--out", str(tmp_path / "o.html")) == 0
    told = capsys.readouterr()
    assert told.out == f"{tmp_path / 'o.html'}\n"
    assert "look through the file" in told.err
    assert "/home" not in bare((tmp_path / "o.html").read_text(encoding="utf-8"))
    assert run_cli("share", folder, "--markdown") == 0
    pasted = capsys.readouterr().out
    for part in ("Cause: Mel of the other vocoder (90%)", "f5-tts 1.1.22, torch 2.11.0, torchaudio 2.11.0, python 3.11.7", "GPU: none",
                 f"sha256 `{'ab' * 32}`", 'model config, inference: `{"dim": 256}`', "model config, training: `not stated`"):  # fmt: skip
        assert part in pasted
    assert run_cli("share", folder) == 2
    assert run_cli("share", folder, "--out", str(tmp_path / "o.zip")) == 2
    assert run_cli("share", folder, "--redact=all", "--out", str(tmp_path / "o.html")) == 2
    assert run_cli("runs", str(tmp_path), "--json", "-") == 0
    assert json.loads(capsys.readouterr().out)["runs"][0]["headline"] == "Cause: Mel of the other vocoder (90%)."


def test_hostile_runs_make_harmless_files(tmp_path: Path) -> None:
    attack = "<script>alert(1)</script><a href='javascript:alert(1)'>x</a>"
    folder = write_run(tmp_path / "r", findings=[finding("05-cer", claim=attack, evidence=["javascript:alert(1)", "../../etc/passwd"])])
    node = nbformat.read(folder / "06_cause.ipynb", as_version=4)
    node.cells[0].source += attack
    next(c for c in node.cells if c.id == "probe").outputs = [nbformat.v4.new_output("display_data", {"text/html": attack + "</main></body>"})]
    nbformat.write(node, folder / "06_cause.ipynb")
    page = sharing.one_page(runs.open_run(folder))
    assert_harmless(page)
    assert page.count("</main>") == 1


def test_clips_of_the_toy_differ() -> None:
    assert audio.flac_bytes(clip()) != audio.flac_bytes(clip(330))


def test_state_of_panels_does_not_leave_with_a_redacted_run(tmp_path: Path) -> None:
    folder = write_run(tmp_path / "20260101T000000Z")
    file = folder / "05_speak.ipynb"
    node = nbformat.read(file, 4)
    node.metadata["widgets"] = {"application/vnd.jupyter.widget-state+json": {"state": {"m": {"state": {"value": TEXT}}}}}
    nbformat.write(node, file)
    sharing.share(runs.open_run(folder), tmp_path / "o.zip", redact=ALL, archive=True)
    with zipfile.ZipFile(tmp_path / "o.zip") as packed:
        for name in packed.namelist():
            assert TEXT not in packed.read(name).decode("utf-8", "replace"), name


@pytest.mark.parametrize(
    "said",
    [
        "/home/joana silva/Meus Modelos/voz.pt", r"C:\Users\Joana Silva\My Models\voz.pt", "/media/joana/HD Externo/voz.pt",
        r"\\srv-voz\Dados da Joana\x.pt", "by ANNABEL on fe80::1c2d:3e4f", "Annabel_voz at 100.64.3.2:10001",
    ],
)  # fmt: skip
def test_folders_with_spaces_and_names_however_written_are_hidden(said: str, tmp_path: Path) -> None:
    quoting = [finding("05-cer", limitation=f"it was {said}"), finding("06-cause", limitation="in /home/joana/x")]
    run = runs.open_run(write_run(tmp_path / "r", findings=quoting))
    hidden = redaction.Redactor(run, frozenset({"paths"})).findings()[0].limitation
    assert not re.search(r"joana|annabel|silva|Meus|My Models|HD Externo|srv-voz|Dados|fe80|100\.64", hidden, re.IGNORECASE), hidden


def test_nothing_is_written_over_that_nobody_named(tmp_path: Path) -> None:
    run = runs.open_run(write_run(tmp_path / "r"))
    with pytest.raises(RunError, match="lies in the run's own folder"):
        sharing.share(run, tmp_path / "r" / "index.html", redact=frozenset())
    (tmp_path / "o.zip").write_bytes(b"precious")
    with pytest.raises(RunError, match="o.zip exists"):
        sharing.share(run, tmp_path / "o.html", redact=frozenset(), archive=True)
    assert (tmp_path / "o.zip").read_bytes() == b"precious"
