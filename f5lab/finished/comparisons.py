"""Two runs side by side: what appeared, vanished or moved, what else differs, and what can therefore not be said.

B is worse than A when one of these holds, and only then:

- B's verdict names a cause, not a slight one, with a confidence of 0.7 or more, that A's verdict does not name so;
- a finding that says which way is better (`Finding.better`) went the other way by more than its interval: same id, same
  unit, both intervals known and apart, on the same prompts and with the same settings of its notebook;
- a notebook that ran in A failed in B.

B is better by the same rules turned round, a cause being gone only where B's verdict rules it out. It can be both.
"""

import base64
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from f5lab import tables
from f5lab.errors import RunError
from f5lab.execution import reports
from f5lab.findings import Finding
from f5lab.finished.runs import StoredRun
from f5lab.verdicts import Verdict

SURE = 0.7
AUDIO_BYTES = 12_000_000
"""Most bytes of audio, as files, that a page carries."""

APPEARED, VANISHED, MOVED, TURNED, WITHIN, UNJUDGED, SAME = (
    "appeared", "vanished", "moved", "turned", "within intervals", "differs", "same",
)  # fmt: skip
MEANINGS = {
    APPEARED: "only in B",
    VANISHED: "only in A",
    TURNED: "another verdict",
    MOVED: "moved beyond the intervals",
    UNJUDGED: "another value, with no two intervals to judge by",
    WITHIN: "moved within the intervals",
    SAME: "the same",
}
"""What can become of a finding, most telling first."""


@dataclass(frozen=True)
class Change:
    """One finding in both runs.

    Attributes
    ----------
    id, claim : str
    change : str
        A key of `MEANINGS`.
    a, b : str
        Value, unit, interval and n; a dash when the run has no such finding.
    verdict_a, verdict_b : str
    better : str
        Which way is better; empty where neither is.
    worse, improved : bool
        B is worse, or better, by this finding.
    """

    id: str
    claim: str
    change: str
    a: str
    b: str
    verdict_a: str
    verdict_b: str
    better: str
    worse: bool
    improved: bool


@dataclass(frozen=True)
class Comparison:
    """What two runs have to say about each other; see the module for when B is worse."""

    a: dict[str, Any]
    b: dict[str, Any]
    worse: list[str]
    better: list[str]
    judged_by: list[str]
    lost: list[str]
    limits: list[str]
    causes: list[dict[str, Any]]
    findings: list[Change]
    not_compared: list[dict[str, str]]
    environment: list[dict[str, Any]]
    settings: list[dict[str, Any]]
    inputs: list[dict[str, Any]]
    audio: list[dict[str, Any]]

    def report(self) -> dict[str, Any]:
        """Return everything as JSON-able values."""
        said = {"worse": bool(self.worse), "why_worse": self.worse, "better": bool(self.better), "why_better": self.better}
        return said | {key: value for key, value in asdict(self).items() if key not in ("worse", "better")}


def compare(a: StoredRun, b: StoredRun) -> Comparison:
    """Compare run B with run A, whatever their cases and versions."""
    shared, not_compared = _shared_notebooks(a, b)
    one_material = _material(a) == _material(b)
    measured = {n for n in shared if one_material and _parameters(a, n) == _parameters(b, n)}
    changes = _changes(a, b, shared, measured)
    inputs, environment, settings = _inputs(a, b), _environment(a, b), _settings(a, b)
    failed = [e["name"] for e in b.record["notebooks"] if e["status"] == "failed" and _status(a, e["number"]) == "ok"]
    worse = [f"B names the cause {name}, A does not" for name in _new_causes(a.verdict, b.verdict)]
    worse += [f"{c.id}: {c.a} in A, {c.b} in B, {c.better} is better" for c in changes if c.worse]
    worse += [f"notebook {name} ran in A and failed in B" for name in failed]
    if a.verdict and b.verdict and a.verdict.healthy and not b.verdict.healthy:
        worse.append("A is healthy, B is not")
    better = [f"A names the cause {name}, B rules it out" for name in _gone_causes(a.verdict, b.verdict)]
    better += [f"{c.id}: {c.a} in A, {c.b} in B, {c.better} is better" for c in changes if c.improved]
    if a.verdict and b.verdict and b.verdict.healthy and not a.verdict.healthy:
        better.append("B is healthy, A is not")
    lost = _lost(a, b, measured, one_material)
    judged_by = ["the causes that the verdicts name"] if a.verdict and b.verdict else []
    judged_by += [f.id for f in b.findings if f.id[:2] in measured and _judgeable(_by_id(a).get(f.id), f)]
    return Comparison(
        _summary(a), _summary(b), worse, better, judged_by + failed, lost,
        _limits(a, b, changes, inputs, environment, settings, one_material, shared - measured, lost), _causes(a.verdict, b.verdict), changes,
        not_compared, environment, settings, inputs, _audio(a, b),
    )  # fmt: skip


def check(comparison: Comparison) -> bool:
    """Return whether B is worse.

    Raises
    ------
    RunError
        Nothing of the two could be judged: neither both verdicts nor one finding with a direction and intervals; or B is not
        worse as far as it was judged, and lacks what A was judged by.
    """
    if not comparison.judged_by:
        raise RunError(
            f"{comparison.a['run']} and {comparison.b['run']} have nothing in common that says which is worse",
            expected="two verdicts, or findings with a direction and intervals on the same prompts",
            next_step="run notebooks 05 and 06 on both",
        )
    if comparison.lost and not comparison.worse:
        raise RunError(
            f"{comparison.b['run']} lacks what {comparison.a['run']} is judged by", offenders=comparison.lost,
            next_step="finish it with f5lab run --resume, or run it again",
        )  # fmt: skip
    return bool(comparison.worse)


def _summary(run: StoredRun) -> dict[str, Any]:
    record = run.record
    return {
        "run": record["run"], "case": record["case"]["name"], "started": record["started"], "verdict": run.headline,
        "healthy": run.verdict.healthy if run.verdict else None, "checkpoint": run.checkpoint,
        "f5lab": record["versions"].get("f5lab"), "findings": len(run.findings), "audio_missing": run.missing_audio,
    }  # fmt: skip


def _by_id(run: StoredRun) -> dict[str, Finding]:
    return {finding.id: finding for finding in run.findings}


def _status(run: StoredRun, number: str) -> str:
    return next((e["status"] for e in run.record["notebooks"] if e["number"] == number), "not asked for")


def _shared_notebooks(a: StoredRun, b: StoredRun) -> tuple[set[str], list[dict[str, str]]]:
    """Return the numbers of notebooks that ran to their end in both, and those that did not, with their states."""
    names = {e["number"]: e["name"] for run in (a, b) for e in run.record["notebooks"]}
    states = {number: (_status(a, number), _status(b, number)) for number in sorted(names)}
    shared = {number for number, pair in states.items() if pair == ("ok", "ok")}
    rest = [{"notebook": names[n], "a": pair[0], "b": pair[1]} for n, pair in states.items() if n not in shared]
    return shared, rest


def _material(run: StoredRun) -> tuple[Any, ...]:
    """Return what was spoken and heard: the prompts' texts in their order, of which notebooks take the first, and the digests of their recordings."""
    files = sorted((f["label"], f["sha256"]) for f in run.record["files"] if f["label"].startswith("prompts."))
    texts = [(str(p.get("id")), str(p.get("gen_text"))) for p in run.record.get("prompts") or ()]
    return (files, texts)


def _changes(a: StoredRun, b: StoredRun, shared: set[str], measured: set[str]) -> list[Change]:
    known_a, known_b = _by_id(a), _by_id(b)
    ids = [id for id in dict.fromkeys([*known_a, *known_b]) if id[:2] in shared]
    changes = [_change(id, known_a.get(id), known_b.get(id), id[:2] in measured) for id in ids]
    order = list(MEANINGS)
    return sorted(changes, key=lambda c: (not c.worse, not c.improved, order.index(c.change)))


def _change(id: str, a: Finding | None, b: Finding | None, measured_alike: bool) -> Change:
    last = b or a
    assert last is not None
    judged = measured_alike and _judgeable(a, b)
    return Change(
        id, last.claim, _kind(a, b), a.value_text() if a else "—", b.value_text() if b else "—", a.verdict if a else "",
        b.verdict if b else "", last.better, judged and _is_worse(a, b), judged and _is_worse(b, a),
    )  # fmt: skip


def _kind(a: Finding | None, b: Finding | None) -> str:
    if a is None or b is None:
        return APPEARED if a is None else VANISHED
    if a.verdict != b.verdict:
        return TURNED
    if (a.value, a.unit) == (b.value, b.unit):
        return SAME
    if a.interval is None or b.interval is None or a.unit != b.unit:
        return UNJUDGED
    return MOVED if _apart(a, b) else WITHIN


def _apart(a: Finding, b: Finding) -> bool:
    assert a.interval is not None and b.interval is not None
    return a.interval[1] < b.interval[0] or b.interval[1] < a.interval[0]


def _judgeable(a: Finding | None, b: Finding | None) -> bool:
    """Return whether a finding can say that B is worse: a direction, one unit, and both intervals."""
    if a is None or b is None or a.unit != b.unit or not b.better or a.value is None or b.value is None:
        return False
    return a.interval is not None and b.interval is not None


def _lost(a: StoredRun, b: StoredRun, measured: set[str], one_material: bool) -> list[str]:
    """Return the findings that A can be judged by and B can not, though it ran or began to run what makes them."""
    cut = {e["number"] for e in b.record["notebooks"] if e["status"] in ("pending", "running") and _status(a, e["number"]) == "ok"}
    asked = measured | (cut if one_material else set())
    other = _by_id(b)
    return [f.id for f in a.findings if f.id[:2] in asked and _judgeable(f, f) and not _judgeable(f, other.get(f.id))]


def _is_worse(a: Finding | None, b: Finding | None) -> bool:
    assert a is not None and b is not None and a.value is not None and b.value is not None
    return _apart(a, b) and (b.value > a.value) == (b.better == "lower")


def _new_causes(a: Verdict | None, b: Verdict | None) -> list[str]:
    if a is None or b is None:
        return []
    sure = [{c.id for c in verdict.causes if c.confidence >= SURE and not c.slight} for verdict in (a, b)]
    return sorted(sure[1] - sure[0])


def _gone_causes(a: Verdict | None, b: Verdict | None) -> list[str]:
    """Return the causes that A's verdict surely names and B's rules out; one that B does not know is not gone."""
    return [] if b is None else sorted({*_new_causes(b, a)} & {item.id for item in b.refuted})


def _causes(a: Verdict | None, b: Verdict | None) -> list[dict[str, Any]]:
    """Return every suspect that either verdict names a cause, with what each says of it."""
    said: list[dict[str, str]] = []
    for verdict in (a, b):
        words: dict[str, str] = {}
        if verdict is not None:
            words |= {item.id: "ruled out" for item in verdict.refuted} | {
                item.id: "unknown" for item in verdict.unknown
            }
            words |= {c.id: f"cause, {c.confidence:.0%}" + (", slight" if c.slight else "") for c in verdict.causes}
        said.append(words)
    names = [c.id for verdict in (b, a) if verdict for c in verdict.causes]
    return [
        {"cause": name, "a": said[0].get(name, "not judged" if a else "no verdict"), "b": said[1].get(name, "not judged" if b else "no verdict")}
        for name in dict.fromkeys(names)
    ]  # fmt: skip


def _differing(a: Mapping[str, Any], b: Mapping[str, Any]) -> list[dict[str, Any]]:
    names = dict.fromkeys([*a, *b])
    return [{"what": name, "a": a.get(name), "b": b.get(name)} for name in names if a.get(name) != b.get(name)]


def _environment(a: StoredRun, b: StoredRun) -> list[dict[str, Any]]:
    def facts(run: StoredRun) -> dict[str, Any]:
        hardware = {key: value for key, value in run.record["hardware"].items() if key != "memory_bytes"}
        commit = run.record["commit"] and run.record["commit"] + (", changed" if run.record["commit_modified"] else "")
        return {**run.record["versions"], **hardware, "commit of f5lab": commit}

    return _differing(facts(a), facts(b))


def _parameters(run: StoredRun, number: str) -> dict[str, Any]:
    """Return what a notebook ran with; where it ran is no part of it."""
    entry = next(entry for entry in run.record["notebooks"] if entry["number"] == number)
    return {name: p["value"] for name, p in entry["parameters"].items() if name not in ("case", "out", "device")}


def _settings(a: StoredRun, b: StoredRun) -> list[dict[str, Any]]:
    """Return the parameters that differ, of notebooks that both runs have; folders are no setting."""

    def facts(run: StoredRun) -> dict[str, Any]:
        ran = [n for entry in run.record["notebooks"] if _status(a, n := entry["number"]) == "ok" == _status(b, n)]
        values = {f"{n} {name}": value for n in ran for name, value in _parameters(run, n).items()}
        return {"device": run.record["settings"]["device"], **values}

    return _differing(facts(a), facts(b))


def _inputs(a: StoredRun, b: StoredRun) -> list[dict[str, Any]]:
    """Return the files whose bytes differ or that only one run has, and what the cases state otherwise."""
    both = all(run.record.get("stated") for run in (a, b))  # runs of older versions do not have it

    def facts(run: StoredRun) -> dict[str, Any]:
        stated = {f"{side}.{key}": value for side, block in run.record["stated"].items() for key, value in block.items()} if both else {}
        files = {f["label"]: f"{f['path'].rpartition('/')[2]} {f['sha256'][:16]}…" for f in run.record["files"]}
        marks = {f["label"]: f["sha256"] for f in run.record["files"]}
        texts = {f"prompts.{p.get('id')}.{key}": p.get(key) for p in run.record.get("prompts") or () for key in ("ref_text", "gen_text")}
        models = {f"{side}.arch": str(arch) for side, arch in (run.record.get("model") or {}).items()}
        order = ", ".join(str(p.get("id")) for p in run.record.get("prompts") or ())
        said = {"case": run.record["case"]["name"], "language": run.record["case"]["language"], "order of prompts": order, **models, **stated, **texts}
        return {"shown": said | files, "marks": said | marks}

    first, second = facts(a), facts(b)
    names = [row["what"] for row in _differing(first["marks"], second["marks"])]
    return [{"what": name, "a": first["shown"].get(name), "b": second["shown"].get(name)} for name in names]


def _limits(
    a: StoredRun, b: StoredRun, changes: Sequence[Change], inputs: Sequence[Mapping[str, Any]],
    environment: Sequence[Mapping[str, Any]], settings: Sequence[Mapping[str, Any]], one_material: bool, unlike: set[str], lost: Sequence[str],
) -> list[str]:  # fmt: skip
    """Return what can not be said of these two, in words."""
    differ = {row["what"] for row in inputs}
    said = []
    if "case" in differ:
        said.append(f"The cases have different names ({a.record['case']['name']}, {b.record['case']['name']}).")
    if not one_material:
        said.append(
            "The prompts differ: what is heard (CER, similarity, duration) was measured on other material, and no "
            "difference in it says that B is worse."
        )
    elif unlike:
        said.append(f"Notebooks {', '.join(sorted(unlike))} ran with other settings: none of their values says that B is worse.")
    for letter, run in (("A", a), ("B", b)):
        if run.verdict is None:
            said.append(f"{letter} has no verdict, so causes are not compared. {run.headline}")
        if run.missing_audio:
            said.append(
                f"{len(run.missing_audio)} audio files of {letter} are gone: {', '.join(run.missing_audio[:5])}."
            )
        if run.record["status"] == "running":
            said.append(f"{letter} was cut off or is still going.")
    if lost:
        said.append(f"Judged in A and not in B: {', '.join(lost)}. Whether B is worse there is not known.")
    reasons = [
        name for name, differs in (
            ("the checkpoint", "checkpoint" in differ), ("other inputs", bool(differ - {"checkpoint", "case", "case file"})),
            ("versions or machine", bool(environment)), ("settings of the notebooks", bool(settings)),
        ) if differs
    ]  # fmt: skip
    if len(reasons) > 1:
        said.append(f"{', '.join(reasons).capitalize()} differ at once: no change can be put down to one of them.")
    if not reasons and _is_one_run(a, b):
        said.append("A and B are the same run: there is nothing to compare.")
    elif not reasons and "case file" in differ:
        said.append("The case files differ, in nothing that is listed here: a comment, or what these runs do not record of it.")
    elif not reasons:
        said.append(
            "Checkpoint, inputs, versions and settings are the same: what differs is chance, or the run itself."
        )
    bare = sum(change.change == UNJUDGED for change in changes)
    if bare:
        said.append(
            f"{bare} finding{'s differ' if bare > 1 else ' differs'} with no two intervals to judge by: whether that is more "
            "than chance is not known."
        )
    return said


def _is_one_run(a: StoredRun, b: StoredRun) -> bool:
    return all(a.record[key] == b.record[key] for key in ("run", "started", "ended"))


def _audio(a: StoredRun, b: StoredRun) -> list[dict[str, Any]]:
    """Return the audio files by name, with their captions and whether their bytes are the same."""
    rows = []
    for name in sorted({*a.audio, *b.audio}):
        pair = (a.audio.get(name), b.audio.get(name))
        same = all(pair) and pair[0].read_bytes() == pair[1].read_bytes()  # type: ignore[union-attr]
        sides = {
            side: run.captions.get(name, name) if name in run.audio else None for side, run in (("a", a), ("b", b))
        }
        rows.append({"file": name, **sides, "same": same})
    return rows


def page(comparison: Comparison, a: StoredRun, b: StoredRun) -> str:
    """Return a comparison as one HTML file, audio inside; pairs beyond `AUDIO_BYTES` are counted, not shown."""
    clips, used = [], 0
    for row in comparison.audio:
        sides = {
            side: run.audio[row["file"]].read_bytes() for side, run in (("a", a), ("b", b)) if row[side] is not None
        }
        used += sum(map(len, sides.values()))
        if used > AUDIO_BYTES:
            break
        clips.append(row | {f"data_{s}": base64.b64encode(sides[s]).decode() if s in sides else "" for s in ("a", "b")})
    counts = Counter(change.change for change in comparison.findings)
    still = (SAME, WITHIN)
    return reports.page(
        "compare.html.j2", c=comparison, clips=clips, left_out=len(comparison.audio) - len(clips), meanings=MEANINGS,
        signs=tables.SIGNS, counts={kind: counts[kind] for kind in MEANINGS if counts[kind]},
        changed=[c for c in comparison.findings if c.change not in still], unchanged=[c for c in comparison.findings if c.change in still],
    )  # fmt: skip
