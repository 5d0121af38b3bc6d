"""Blind listening without a browser: order, what the front end could know, answers on disk, what they prove."""

import base64
import io
import json
import multiprocessing
from pathlib import Path

import numpy as np
import pytest
import soundfile as sf
import toy_contests

from f5lab import findings
from f5lab.audio import Wave, save_flac
from f5lab.blind_listening import blind, blind_results
from f5lab.blind_listening.blind_answers import AnswerBook, Session
from f5lab.blind_widget import BlindListening
from f5lab.errors import LabError, RunError

CONTEST = toy_contests.contest()
ITEMS = [match.item for match in CONTEST.matches]


def finish(book: AnswerBook, session: Session, chosen: str = "b", most: int = 1000) -> None:
    """Answer the trials that are left: side b (A/B) or rightly (ABX), or the other with ``chosen="a"``."""
    for trial in session.left[:most]:
        wanted = chosen if not trial.x else trial.x if chosen == "b" else {"a": "b", "b": "a"}[trial.x]
        book.answer(session, trial, str(trial.order.index(wanted) + 1), dict.fromkeys(trial.places, 1), 2.0)


def test_order_and_x_are_drawn_for_each_trial() -> None:
    plan = blind.plan_trials(ITEMS, "abx", 200, 7)
    assert plan == blind.plan_trials(ITEMS, "abx", 200, 7)
    assert plan != blind.plan_trials(ITEMS, "abx", 200, 8)
    for value in ([t.order == "ab" for t in plan], [t.x == "a" for t in plan], [t.order[0] == t.x for t in plan]):
        assert 70 < sum(value) < 130
    counts = [sum(t.item == item for t in plan) for item in ITEMS]
    assert max(counts) - min(counts) <= 1
    assert [t.x for t in blind.plan_trials(ITEMS, "ab", 6, 0)] == [""] * 6


@pytest.mark.parametrize(("kind", "least"), [("ab", 6), ("abx", 5)])
def test_too_few_trials_are_refused(kind: str, least: int, tmp_path: Path) -> None:
    assert blind.least_trials(kind) == least
    book = AnswerBook(tmp_path / "blind.jsonl")
    with pytest.raises(RunError, match=rf"{least - 1} trials of .*expected {least} \(fewer can not reach p < 0.05\)"):
        book.begin(CONTEST, kind, least - 1)
    assert not book.path.exists()
    with pytest.raises(LabError, match="can not reach p < 0.05 whatever the answers"):
        blind.score_trials(kind, least - 1, least - 1)
    assert blind.score_trials(kind, least, least).p < 0.05


def test_score_is_the_exact_binomial() -> None:
    """Against sums of binomial coefficients, and the interval against the equations that define it."""
    from math import comb

    score = blind.score_trials("ab", 9, 12)
    tail = sum(comb(12, k) for k in range(9, 13)) / 2**12
    assert score.p == pytest.approx(2 * tail)
    assert blind.score_trials("abx", 9, 12).p == pytest.approx(tail)
    at_least = sum(comb(12, k) * score.low**k * (1 - score.low) ** (12 - k) for k in range(9, 13))
    at_most = sum(comb(12, k) * score.high**k * (1 - score.high) ** (12 - k) for k in range(10))
    assert (at_least, at_most) == (pytest.approx(0.025, abs=1e-6), pytest.approx(0.025, abs=1e-6))


def test_loudness_is_equal_and_nothing_clips() -> None:
    peaky = Wave(np.zeros(4000, np.float32), 8000)
    peaky.samples[::400] = 1.0
    quiet = Wave(toy_contests.tone(500, amplitude=0.01).samples, 8000)
    silent = Wave(np.zeros(3000, np.float32), 8000)
    short = Wave(toy_contests.tone(700).samples[:800], 8000)
    made = blind.match_loudness([peaky, quiet, silent, short])
    levels = [blind.loudness_lufs(wave) for wave in made]
    assert levels[2] is None
    assert np.ptp([levels[0], levels[1], levels[3]]) < 0.05
    assert levels[0] <= blind.LOUDNESS_LUFS + 0.05
    assert max(float(np.abs(wave.samples).max()) for wave in made) <= blind.MOST_PEAK + 1e-6
    assert not made[2].samples.any()
    assert blind.loudness_lufs(toy_contests.tone(1000, 1.0, 0.2)) - blind.loudness_lufs(
        toy_contests.tone(1000, 1.0, 0.1)
    ) == pytest.approx(6.02, abs=0.02)


def test_files_do_not_tell_what_x_is() -> None:
    for trial in blind.plan_trials(ITEMS, "abx", 12, 3):
        files = blind.stimuli(CONTEST, trial, 3)
        assert list(files) == ["1", "2", "x"]
        assert len({len(wav) for wav in files.values()}) == 1
        assert len(set(files.values())) == 3
        waves = {place: sf.read(io.BytesIO(wav))[0] for place, wav in files.items()}
        twin = next(p for p in ("1", "2") if trial.side(p) == trial.x)
        other = {"1": "2", "2": "1"}[twin]
        assert np.abs(waves["x"] - waves[twin]).max() < 4 / 32768
        assert np.abs(waves["x"] - waves[other]).max() > 0.02


def test_answers_are_kept_and_counted(tmp_path: Path) -> None:
    book = AnswerBook(tmp_path / "deep" / "blind.jsonl")
    finish(book, book.begin(CONTEST, "ab", 8, seed=1, listener=" MK "))
    lines = [json.loads(line) for line in book.path.read_text(encoding="utf-8").splitlines()]
    assert [line["event"] for line in lines] == ["session"] + ["answer"] * 8
    assert (lines[0]["listener"], lines[0]["trials"], lines[0]["a"], lines[0]["b"]) == ("MK", 8, "as it runs", "repaired")
    assert {line["answer"] for line in lines[1:]} == {"1", "2"}
    heard = blind_results.hear(book, CONTEST, out=tmp_path, keep="05_blind.jsonl")
    finding = findings.Finding(id="05-blind-ab", **heard.findings["ab"])
    assert (finding.verdict, finding.value, finding.n) == ("supported", 1.0, 8)
    assert finding.interval == (pytest.approx(0.6306, abs=1e-4), 1.0)
    assert "p = 0.0078, two-sided" in finding.limitation
    assert finding.evidence == ["05_blind.jsonl"]
    kept = AnswerBook(tmp_path / "05_blind.jsonl")
    assert blind_results.hear(kept, CONTEST).rows == heard.rows
    assert "MK" not in kept.path.read_text(encoding="utf-8")


def test_verdict_follows_the_answers(tmp_path: Path) -> None:
    book = AnswerBook(tmp_path / "blind.jsonl")
    verdicts = {}
    for hits in (0, 5, 10):
        session = book.begin(CONTEST, "ab", 10, seed=hits)
        finish(book, session, "b", hits)
        finish(book, session, "a")
        verdicts[hits] = blind_results.Tally(CONTEST, "ab", (session,), ()).verdict
    assert verdicts == {0: "refuted", 5: "inconclusive", 10: "supported"}
    together = blind_results.hear(book, CONTEST).tallies[0].score
    assert (together.hits, together.n) == (15, 30)


def test_abx_counts_what_was_named_rightly(tmp_path: Path) -> None:
    book = AnswerBook(tmp_path / "blind.jsonl")
    finish(book, book.begin(CONTEST, "abx", 6, seed=5))
    tallies = {tally.kind: tally for tally in blind_results.hear(book, CONTEST).tallies}
    assert tallies["abx"].verdict == "supported"
    assert (tallies["ab"].score, tallies["ab"].verdict) == (None, "inconclusive")
    assert "one-sided" in tallies["abx"].sentence


def test_without_answers_the_finding_says_what_is_needed(tmp_path: Path) -> None:
    heard = blind_results.hear(AnswerBook(tmp_path / "none.jsonl"), CONTEST, out=tmp_path, keep="05_blind.jsonl")
    assert list(heard.findings) == ["ab"]
    finding = findings.Finding(id="05-blind-ab", **heard.findings["ab"])
    assert (finding.verdict, finding.value, finding.n, finding.evidence) == ("inconclusive", None, None, [])
    assert "at least 6 trials" in finding.limitation
    assert heard.rows == []
    assert list(tmp_path.iterdir()) == []


def test_a_session_goes_on_where_it_stopped(tmp_path: Path) -> None:
    book = AnswerBook(tmp_path / "blind.jsonl")
    finish(book, book.begin(CONTEST, "ab", 6, seed=2), most=4)
    heard = blind_results.hear(book, CONTEST)
    assert heard.tallies[0].score is None
    assert "stopped at 4 of 6 and does not count" in heard.sentence
    again = AnswerBook(book.path)
    (session,) = again.unfinished(CONTEST)
    assert [t.number for t in session.left] == [5, 6]
    finish(again, session)
    assert again.unfinished(CONTEST) == []
    assert blind_results.hear(again, CONTEST).tallies[0].score.n == 6


def test_a_line_that_was_cut_short_is_left_out_and_its_trial_asked_again(tmp_path: Path) -> None:
    book = AnswerBook(tmp_path / "blind.jsonl")
    finish(book, book.begin(CONTEST, "ab", 6, seed=2), most=3)
    whole = book.path.read_bytes()
    book.path.write_bytes(whole[:-40])
    (session,) = book.unfinished(CONTEST)
    assert [t.number for t in session.left] == [3, 4, 5, 6]
    assert "1 line of the answers could not be read" in blind_results.hear(book, CONTEST).sentence
    finish(book, session)
    assert book.path.read_bytes().count(b"\n") == 8
    assert blind_results.hear(book, CONTEST).tallies[0].score.n == 6


@pytest.mark.parametrize(
    "change", [{"chosen": "a"}, {"order": "ab"}, {"item": "p99"}, {"trial": 99}, {"seconds": -1}, {"format": 9}, {"session": "x"}]
)
def test_altered_answers_do_not_count(tmp_path: Path, change: dict) -> None:
    book = AnswerBook(tmp_path / "blind.jsonl")
    finish(book, book.begin(CONTEST, "ab", 6, seed=2))
    lines = [json.loads(line) for line in book.path.read_text(encoding="utf-8").splitlines()]
    number = 0 if "format" in change else next(i for i, x in enumerate(lines) if x.get("order") == "ba" and x.get("chosen") == "b")
    lines[number] |= change
    book.path.write_text("".join(json.dumps(line) + "\n" for line in lines), encoding="utf-8")
    heard = blind_results.hear(book, CONTEST)
    assert heard.tallies[0].score is None
    assert "could not be read" in heard.sentence


def test_answers_to_another_contest_do_not_count(tmp_path: Path) -> None:
    book = AnswerBook(tmp_path / "blind.jsonl")
    finish(book, book.begin(CONTEST, "ab", 6, seed=2))
    other = blind.Contest(blind.Side("as it runs", "c" * 32), CONTEST.b, CONTEST.matches)
    assert blind_results.hear(book, other).tallies[0].score is None
    swapped = blind.Contest(CONTEST.b, CONTEST.a, CONTEST.matches)
    assert swapped.mark != CONTEST.mark


def _write_many(path: Path, seed: int) -> None:
    book = AnswerBook(path)
    finish(book, book.begin(CONTEST, "ab", 12, seed=seed))


def test_writers_at_once_lose_nothing(tmp_path: Path) -> None:
    path = tmp_path / "blind.jsonl"
    context = multiprocessing.get_context("fork")
    writers = [context.Process(target=_write_many, args=(path, seed)) for seed in range(4)]
    for writer in writers:
        writer.start()
    for writer in writers:
        writer.join()
    sessions, bad = AnswerBook(path).read()
    assert (len(sessions), bad) == (4, 0)
    assert all(session.finished for session in sessions.values())


def test_an_answer_that_can_not_be_kept_says_so(tmp_path: Path) -> None:
    book = AnswerBook(tmp_path / "file" / "blind.jsonl")
    (tmp_path / "file").write_text("no folder")
    with pytest.raises(RunError, match="the answer could not be kept"):
        book.begin(CONTEST, "ab", 6)


def test_runs_are_paired_by_file_name(tmp_path: Path) -> None:
    for run, seed in (("r1", 1), ("r2", 2)):
        save_flac(tmp_path / run / "audio" / "06-repair-01.flac", toy_contests.noise(seed))
        save_flac(tmp_path / run / "audio" / "05-first-01.flac", toy_contests.tone(440))
    save_flac(tmp_path / "r1" / "audio" / "05-only-01.flac", toy_contests.tone(220))
    found = blind.match_runs(tmp_path / "r1", tmp_path / "r2")
    assert [m.item for m in found.matches] == ["06-repair-01.flac"]
    assert (found.same, found.a.label, found.b.label) == (1, "r1", "r2")
    (tmp_path / "r3").mkdir()
    with pytest.raises(RunError, match=r"holds no \*.flac; expected a run whose audio is kept"):
        blind.match_runs(tmp_path / "r1", tmp_path / "r3")
    save_flac(tmp_path / "r3" / "audio" / "else.flac", toy_contests.tone(440))
    with pytest.raises(RunError, match="has the same name"):
        blind.match_runs(tmp_path / "r1", tmp_path / "r3")


def test_recipes_are_told_apart_by_what_they_are(tmp_path: Path) -> None:
    from f5lab import samplers
    from f5lab.specs import load_case

    recipe = samplers.inference_recipe(load_case(Path(__file__).parent.parent / "data" / "cases" / "ptbr" / "case.yaml"))
    mark = blind.recipe_mark(recipe)
    copied = tmp_path / "other_name.txt"
    copied.write_bytes(recipe.vocab.read_bytes())
    assert blind.recipe_mark(recipe.but(name="another name", vocab=copied)) == mark
    assert blind.recipe_mark(recipe.but(cfg_strength=2.5)) != mark
    copied.write_bytes(recipe.vocab.read_bytes() + b"x\n")
    assert blind.recipe_mark(recipe.but(vocab=copied)) != mark


def test_the_command_says_what_was_found(tmp_path: Path) -> None:
    from typer.testing import CliRunner

    from f5lab import cli

    book = AnswerBook(tmp_path / "blind.jsonl")
    finish(book, book.begin(CONTEST, "ab", 6, seed=2))
    book.begin(CONTEST, "abx", 6)
    done = CliRunner().invoke(cli.app, ["blind", "--answers", str(book.path), "--json", "-"])
    assert done.exit_code == 0
    ab, abx = json.loads(done.stdout)["contests"]
    assert (ab["b"], ab["hits"], ab["trials"], ab["verdict"]) == ("repaired", 6, 6, "supported")
    assert (abx["share"], abx["unfinished"], abx["verdict"]) == (None, 1, "inconclusive")
    missing = CliRunner().invoke(cli.app, ["blind", "--answers", str(tmp_path / "none.jsonl")])
    assert "does not exist; listen first" in str(missing.exception)


def send(panel: BlindListening, **content: object) -> None:
    panel._receive(panel, content, [])


def test_the_panel_tells_the_page_nothing_before_the_answer(tmp_path: Path) -> None:
    panel = BlindListening(CONTEST, AnswerBook(tmp_path / "blind.jsonl"), trials=6, seed=987654321)
    send(panel, event="start", kind="abx", trials=6)
    session = panel._session
    seen = []
    for trial in session.opened.plan:
        state = {name: value for name, value in panel.get_state().items() if name not in ("_esm", "_css")}
        view = state["view"]
        seen.append(set(view))
        shown = json.dumps({k: v for k, v in state.items() if k != "clips"})
        for word in ("repaired", "as it runs", trial.item, '"ab"', '"ba"', str(session.opened.seed)):
            assert word not in shown
        assert list(state["clips"]) == ["1", "2", "x"]
        assert len({len(clip) for clip in state["clips"].values()}) == 1
        for place in trial.places:
            send(panel, event="played", trial=trial.number, place=place)
        send(panel, event="answer", trial=trial.number, place="1")
    assert len({tuple(sorted(keys)) for keys in seen}) == 1
    assert panel.view["phase"] == "done"
    assert panel.clips == {}


def test_the_panel_counts_replays_and_takes_one_answer_a_trial(tmp_path: Path) -> None:
    book = AnswerBook(tmp_path / "blind.jsonl")
    panel = BlindListening(CONTEST, book, seed=4)
    send(panel, event="start", kind="ab", trials=5)
    assert "fewer can not reach" in panel.view["message"]
    assert not book.path.exists()
    send(panel, event="start", kind="ab", trials=6, listener="x" * 200)
    send(panel, event="answer", trial=1, place="1")
    assert "before every clip was played" in panel.view["message"]
    for place in ("1", "2", "2", "2", "x", "nonsense"):
        send(panel, event="played", trial=1, place=place)
    assert panel.view["plays"] == {"1": 1, "2": 3}
    send(panel, event="answer", trial=1, place="2")
    send(panel, event="answer", trial=1, place="1")
    send(panel, event="answer", trial=2, place="3")
    send(panel, event="nonsense")
    assert panel.view["number"] == 2
    (session,) = book.unfinished(CONTEST)
    (answer,) = session.answers.values()
    assert (answer.answer, answer.plays, answer.replays) == ("2", {"1": 1, "2": 3}, 2)
    assert answer.chosen == answer.order[1]
    again = BlindListening(CONTEST, book)
    assert [(u["done"], u["total"]) for u in again.view["unfinished"]] == [(1, 6)]
    send(again, event="resume", session=session.opened.session)
    assert again.view["number"] == 2
    wav = base64.b64decode(again.clips["1"].partition(",")[2])
    assert sf.info(io.BytesIO(wav)).duration == pytest.approx(0.6)


def test_the_panel_with_nothing_to_choose_says_so(tmp_path: Path) -> None:
    nothing = blind.Contest(CONTEST.a, CONTEST.b, (), same=4)
    panel = BlindListening(nothing, AnswerBook(tmp_path / "blind.jsonl"))
    assert (panel.view["phase"], panel.view["same"]) == ("nothing", 4)
    heard = blind_results.hear(AnswerBook(tmp_path / "blind.jsonl"), nothing)
    assert "the same sound" in heard.sentence
