"""The verdict: ranked causes, refuted suspects, what is not known, and the fix. What ``verdict.json`` holds."""

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field

from f5lab import catalogue, upstream_terms
from f5lab.errors import RunError
from f5lab.findings import OF_ONE, Finding
from f5lab.inert import escape_json, markdown_code, markdown_text, prose
from f5lab.paths import existing_file, write_text

FILE = "verdict.json"
SEEN = 1e-3
"""Changes below this share of their measure are none to speak of."""
UNHEARD = "listening"
"""What stands under ``unknown`` where clips could not be spoken or heard."""
UNPROBED = "probe"
"""What stands under ``unknown`` where the weights were not tried on a recording."""
AS_IT_RUNS = "As it runs, inference is"
"""How the claim on what remains begins where there was nothing to repair."""
REMAINS, CEILING, SEPARATES, HEARD = "06-remains", "00-asr-ceiling", "00-oracle-separates", "05-heard-inference"
"""Findings that say what the verdict's figures are worth."""
Sentence = Annotated[str, BeforeValidator(lambda text: prose(text) if isinstance(text, str) else text)]
"""Text that may quote a file: one line in which everything can be seen."""


class _Part(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class Effect(_Part):
    """What a cause does, on one measure.

    Attributes
    ----------
    metric : str
    before, after : float
        With the cause alone left in what is otherwise as trained, and without it.
    interval : (float, float), optional
        95 % interval of after - before, paired; None where there are too few observations for one.
    n : int
        Prompts or recordings.
    """

    metric: str
    before: float
    after: float
    interval: tuple[float, float] | None = None
    n: int = Field(ge=1)

    @property
    def text(self) -> str:
        """Measure, both values, interval and n as one readable string."""
        said = f"{self.metric} (lower is better): {self.before:.3g} with it alone, {self.after:.3g} without"
        if abs(self.after - self.before) < SEEN * max(abs(self.before), abs(self.after)):
            said += "; no change within a thousandth"
        elif self.interval is not None:
            low, high = (edge + 0.0 for edge in self.interval)  # -0.0 is 0
            said += f"; change {self.after - self.before:+.2g}, 95 % {low:+.2g} to {high:+.2g}"
        alone = OF_ONE if self.n == 1 and self.interval is not None else ""
        return f"{said}; n = {self.n}{alone}"


class Fix(_Part):
    """What to change: a sentence, and the settings of the case file's ``inference:`` block (or of the file named)."""

    summary: Sentence
    settings: dict[str, Any] = {}


class Cause(_Part):
    """One named cause, with the findings that it rests on."""

    id: str
    confidence: float = Field(ge=0, le=1)
    factors: list[str] = []
    effect: Effect | None = None
    evidence: list[str]
    fix: Fix

    @property
    def slight(self) -> bool:
        """Whether its effect was measured and changes its measure by less than 2 % of it."""
        effect = self.effect
        return effect is not None and abs(effect.before - effect.after) < 0.02 * max(abs(effect.before), 1e-9)


class Refuted(_Part):
    """A suspect that was looked at and is not a cause."""

    id: str
    evidence: list[str]


class Unknown(_Part):
    """A suspect that could not be judged, and what would settle it."""

    id: str
    needs: Sentence


class Verdict(_Part):
    """What a diagnosis says; causes most responsible first."""

    case: str
    run: str
    healthy: bool
    causes: list[Cause]
    refuted: list[Refuted]
    unknown: list[Unknown]

    @property
    def headline(self) -> str:
        """The verdict in one sentence, and a second one where nothing of it was heard."""
        unheard = " Nothing was listened to." if any(item.id == UNHEARD for item in self.unknown) else ""
        if not self.causes:
            untried = any(item.id == UNPROBED for item in self.unknown)
            rest = " The weights were not tried on a recording: this clears nothing." if untried else ""
            rest = rest or (" Some suspects could not be judged." if self.unknown else "")
            return "No cause was found." + rest + unheard
        names = [f"{catalogue.title_of(cause.id)} ({cause.confidence:.0%})" for cause in self.causes if not cause.slight]
        slight = [catalogue.title_of(cause.id) for cause in self.causes if cause.slight]
        parts = ["Cause: " + ", then ".join(names) + "."] if names else []
        parts += (
            ["Set otherwise than in training, with hardly an effect here: " + "; ".join(slight) + "."] if slight else []
        )
        return " ".join(parts) + unheard


def to_json(verdict: Verdict) -> str:
    """Return what ``verdict.json`` holds."""
    return escape_json(verdict.model_dump_json(indent=2)) + "\n"


def save(verdict: Verdict, folder: str | Path) -> Path:
    """Write ``verdict.json`` into a folder."""
    folder = Path(folder)
    write_text(folder / FILE, to_json(verdict))
    return folder / FILE


def load(path: Path) -> Verdict:
    """Read a verdict.

    Raises
    ------
    RunError
        The file is missing or holds something else.
    """
    existing_file(path, RunError, "verdict")
    try:
        return Verdict.model_validate_json(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise RunError(f"{path} is not a verdict", next_step="run the diagnosis again") from error


def notes(found: Iterable[Finding]) -> list[str]:
    """Return what belongs beside the headline, a sentence each: what the repair leaves, and whether the recogniser can judge."""
    known = {finding.id: finding for finding in found}
    said = [_remains(known[REMAINS])] if REMAINS in known and known[REMAINS].value is not None else []
    heard = known.get(HEARD)
    if not said and heard is not None and heard.value is not None and heard.verdict != "supported":
        measured = f"CER {heard.value:.2g} (0: every letter right, 1: none; n = {heard.n})"
        said.append(f"As the case runs it, inference is heard with {measured}: it is not shown to speak well.")
    if SEPARATES in known and known[SEPARATES].verdict == "refuted":
        said.append("The recogniser does not tell this case's real recordings from chance: no CER here says anything.")
    elif CEILING in known and known[CEILING].verdict == "refuted":
        heard = f"{known[CEILING].value:.2g}" if known[CEILING].value is not None else "unknown"
        said.append(f"The recogniser mishears even the real recordings (CER {heard}): compare a CER here with that, not with 0.")
    return said


def _remains(finding: Finding) -> str:
    says = {"supported": "heard as well as", "refuted": "still heard worse than", "inconclusive": "not shown to be heard as well as"}
    tail = " What remains is no setting of the catalogue's." if finding.verdict == "refuted" else ""
    clips = "As the case runs it, inference is" if finding.claim.startswith(AS_IT_RUNS) else "Repaired, the clips are"
    return f"{clips} {says[finding.verdict]} the real recordings: {_measured(finding)}.{tail}"


def _measured(finding: Finding) -> str:
    """Return a difference in CER as effects are written, without brackets, which Markdown escapes."""
    span = "; 95 % {:+.2g} to {:+.2g}".format(*finding.interval) if finding.interval is not None else ""
    return f"CER {finding.value:+.2g}{span}; n = {finding.n}"


def markdown(verdict: Verdict, findings: Mapping[str, str] | None = None, beside: Sequence[str] = ()) -> str:
    """Return the verdict as Markdown to paste into an issue or a chat.

    Parameters
    ----------
    findings : dict of str to str, optional
        Finding id to its claim, quoted as evidence.
    beside : sequence of str
        What `notes` returns.
    """
    known = findings or {}
    lines = [f"**f5lab on {markdown_code(verdict.case)}**: {markdown_text(verdict.headline)}", ""]
    for rank, cause in enumerate(verdict.causes, start=1):
        name, summary = markdown_text(cause.id), markdown_text(cause.fix.summary)
        title = markdown_text(catalogue.title_of(cause.id))
        lines.append(f"{rank}. **{title}** ({name}), confidence {cause.confidence:.0%}. {summary}")
        if cause.effect is not None:
            lines.append(f"   - {markdown_text(cause.effect.text)}")
        lines += [f"   - {markdown_text(known.get(name, name))}" for name in cause.evidence]
        for label, part in zip(("case file, `inference:`", "to change:"), upstream_terms.split(cause.fix.settings), strict=True):
            joined = " (added to the options there)" if "arch" in part else ""
            lines += [f"   - {label} {markdown_code(upstream_terms.in_one_line(part))}{joined}"] if part else []
        lines += [f"   - F5-TTS, {place}: {markdown_code(text)}" for place, text in upstream_terms.places(cause.fix.settings)]
    for note in beside:
        lines += ["", markdown_text(note)]
    if verdict.refuted:
        lines += ["", "Ruled out: " + ", ".join(markdown_code(item.id) for item in verdict.refuted) + "."]
    if verdict.unknown:
        lines += ["", "Not known:"]
        lines += [f"- {markdown_code(item.id)}: {markdown_text(item.needs)}" for item in verdict.unknown]
    return "\n".join(lines) + "\n"
