"""Commands on runs that are done: list, compare, share. Registered on the command line's app by being imported."""

from pathlib import Path
from typing import Annotated, Any

import typer
from typer.core import TyperCommand

from f5lab import paths
from f5lab.commands.console import JsonFile, deliver, spare_page
from f5lab.errors import RunError, UsageError

WORSE = 3
"""Exit status of ``compare --check`` when B is worse."""

RunName = Annotated[str, typer.Argument(metavar="RUN", help="A run's folder, or its id under reports/.")]
HtmlFile = Annotated[Path | None, typer.Option("--out", metavar="FILE.html", help="Write the page to FILE.html.")]


class _ShareCommand(TyperCommand):
    """A command whose ``--redact`` may stand alone."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        """Let a bare ``--redact`` mean paths and names only."""
        return super().parse_args(ctx, ["--redact=paths" if item == "--redact" else item for item in args])


def register(app: typer.Typer) -> None:
    """Add the commands of this module to an app."""
    app.command("runs")(list_runs)
    app.command("compare")(compare_runs)
    app.command("share", cls=_ShareCommand)(share_run)


def list_runs(
    folder: Annotated[Path | None, typer.Argument(metavar="DIR", help="Default: reports/.", show_default=False)] = None,
    json_file: JsonFile = None,
) -> None:
    """List every run of a folder, with those that can not be read, and rebuild its index.html."""
    from f5lab.finished import run_index, runs

    root = paths.reports_dir() if folder is None else folder
    if not root.is_dir():
        raise RunError(f"{root} is no folder", expected="a folder of runs", next_step="start a run with `f5lab run`")
    found = runs.list_runs(root)
    page = run_index.rebuild(root)
    rows = [run_index.row(run, root) for run in found if isinstance(run, runs.StoredRun)]
    short = ("started", "case", "run", "status", "headline", "checkpoint")
    brief = [
        {key: row[key] for key in short} | {"started": row["started"][:16], "checkpoint": row["checkpoint"][:12]}
        for row in rows
    ]
    shown = rows if json_file else brief
    damaged = [{"folder": str(run.folder), "reason": run.reason} for run in found if isinstance(run, runs.Damaged)]
    deliver({"page": page, "runs": shown, "damaged": damaged}, json_file)


def compare_runs(
    run_a: Annotated[str, typer.Argument(metavar="RUN_A", help="A run's folder, or its id under reports/.")],
    run_b: Annotated[str, typer.Argument(metavar="RUN_B", help="The run that is judged.")],
    out: HtmlFile = None,
    check: Annotated[bool, typer.Option("--check", help="Exit with 3 when B is worse.")] = False,
    json_file: JsonFile = None,
) -> None:
    """Compare two runs: verdicts, findings, inputs, environment, audio.

    B is worse when it names a cause (confidence 0.7 or more) that A does not, when a finding that knows which way is
    better moved the other way beyond both intervals on the same prompts, or when a notebook ran in A and failed in B;
    it is better by the same rules turned round.
    """
    from f5lab.finished import comparisons, runs

    a, b = (runs.open_run(runs.find_run(name)) for name in (run_a, run_b))
    found = comparisons.compare(a, b)
    if out is not None:
        _require_ending(out, ".html")
        paths.write_text(spare_page(out), comparisons.page(found, a, b))
    deliver(found.report() if json_file else _short(found), json_file)
    if out is not None and str(json_file) != "-":
        typer.echo(str(out))
    if check and comparisons.check(found):
        raise typer.Exit(WORSE)


def _short(found: Any) -> dict[str, Any]:
    """Return a comparison as the terminal shows it: what stayed is counted only."""
    from f5lab.finished import comparisons

    report = found.report()
    still = (comparisons.SAME, comparisons.WITHIN)
    stayed = sum(change["change"] in still for change in report["findings"])
    keys = ("id", "change", "verdict_a", "a", "verdict_b", "b")
    changed = [{key: change[key] for key in keys} for change in report["findings"] if change["change"] not in still]
    sides = {side: {k: v for k, v in report[side].items() if k != "audio_missing"} for side in ("a", "b")}
    clips = len(report["audio"])
    facts = {"B is worse": found.worse or "not seen", "B is better": found.better or "not seen", "judged by": found.judged_by or "nothing"}
    facts |= {"findings that stayed": stayed, "audio files in either": clips}
    tables = {"causes": found.causes, "findings that changed": changed, "inputs that differ": found.inputs}
    tables |= {"environment that differs": found.environment, "settings that differ": found.settings}
    limits = [{"what can not be said": text} for text in found.limits]
    return facts | sides | {key: rows for key, rows in tables.items() if rows} | ({"limits": limits} if limits else {})


def share_run(
    run: RunName,
    out: Annotated[Path | None, typer.Option("--out", metavar="FILE", help="FILE.html, or FILE.zip with --zip.")] = None,
    redact: Annotated[
        str,
        typer.Option(
            "--redact",
            metavar="[=texts,voices]",
            help="Hide paths, user and host names; texts and voices on request. Names of the case and of its files stay.",
        ),
    ] = "",
    zip_: Annotated[bool, typer.Option("--zip", help="Also pack notebooks, findings and audio for JupyterLab.")] = False,
    markdown: Annotated[bool, typer.Option("--markdown", help="Print the verdict with the versions, to paste; no file is needed.")] = False,
) -> None:  # fmt: skip
    """Write a run as one HTML file that needs nothing else; with --zip also as an archive for JupyterLab."""
    from f5lab.finished import runs, sharing

    if out is None and not markdown:
        raise UsageError("nothing to do", expected="--out FILE.html, or --markdown")
    if out is not None:
        _require_ending(out, ".html", *((".zip",) if zip_ else ()))
        if out.suffix.lower() == ".html":
            spare_page(out)
    hidden = sharing.wishes(redact)
    shared = sharing.share(runs.open_run(runs.find_run(run)), out, redact=hidden, archive=zip_)
    if markdown:
        typer.echo(shared.markdown, nl=False)
    for line in (*map(str, shared.files), *shared.notes):
        typer.echo(line, err=markdown or line in shared.notes)


def _require_ending(out: Path, *endings: str) -> None:
    if out.suffix.lower() not in endings:
        raise UsageError(f"--out {out}", expected=f"a name ending in {' or '.join(endings)}")
    if out.is_dir():
        raise UsageError(f"--out {out} is a folder", expected="a file's name")
