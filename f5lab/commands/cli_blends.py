"""The command on blends of weights; registered on the command line's app."""

from pathlib import Path
from typing import Annotated

import typer

from f5lab import paths
from f5lab.commands.console import JsonFile, deliver, tell_stages
from f5lab.errors import UsageError


def register(app: typer.Typer) -> None:
    """Add the commands of this module to an app."""
    app.command("blend")(blend)


def blend(
    case: Annotated[
        Path | None, typer.Argument(metavar="[CASE]", help="Default: the bundled case.", show_default=False)
    ] = None,
    mix: Annotated[
        str, typer.Option(metavar="raw=0.75,ema=0.25", help="Write this blend; without it, all are scored.")
    ] = "",
    out: Annotated[Path | None, typer.Option(metavar="DIR", help="New folder for weights and bundle.")] = None,
    verify: Annotated[bool, typer.Option(help="Speak the bundle by the stock CLI and score it.")] = True,
    recordings: Annotated[int, typer.Option(min=1, help="Most recordings for the probe.")] = 8,
    steps: Annotated[int, typer.Option(min=1, help="Score blends in steps of 1/N.")] = 4,
    device: Annotated[str, typer.Option(help="auto, cpu, cuda, cuda:N or mps.")] = "auto",
    json_file: JsonFile = None,
) -> None:
    """Score blends of raw, EMA and base weights by the probe, or write one as a bundle that the stock CLI speaks with."""
    from f5lab import blends
    from f5lab.faults.examinations import Exam
    from f5lab.specs import load_case

    if bool(mix) != (out is not None):
        raise UsageError("--mix and --out belong together", next_step="give both to write a blend, none to score them")
    wanted = blends.read_mix(mix) if mix else None
    tell_stages()
    exam = Exam(load_case(case or paths.default_case()), device=device, limit=recordings, asr="")
    if wanted is not None and out is not None:
        sources = blends.find_sources(exam.case, exam.checkpoint, exam.base)
        deliver(blends.export(exam, sources, wanted, out, verify=verify), json_file)
        return
    deliver(blends.report(blends.explore(exam, steps=steps)), json_file)
