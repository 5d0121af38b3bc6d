"""The command on blind listening; registered on the command line's app."""

from pathlib import Path
from typing import Annotated

import typer

from f5lab import paths
from f5lab.commands.console import JsonFile, deliver
from f5lab.errors import UsageError


def register(app: typer.Typer) -> None:
    """Add the commands of this module to an app."""
    app.command("blind")(blind)


def blind(
    case: Annotated[
        Path | None, typer.Argument(metavar="[CASE]", help="Default: the bundled case.", show_default=False)
    ] = None,
    answers: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Instead of the case's own file of answers.")
    ] = None,
    json_file: JsonFile = None,
) -> None:
    """Say what blind listening found so far; sessions are held in notebook 05, in JupyterLab."""
    from f5lab.blind_listening import blind_answers, blind_results
    from f5lab.specs import load_case

    if case is not None and answers is not None:
        raise UsageError("CASE and --answers", expected="one of them")
    file = answers or blind_answers.answers_file(load_case(case or paths.default_case()))
    deliver(blind_results.report(file), json_file)
