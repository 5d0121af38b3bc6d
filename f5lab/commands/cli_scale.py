"""The commands for many checkpoints and many settings: ``f5lab series`` and ``f5lab sweep``."""

import contextlib
import hashlib
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Annotated, Any

import typer

from f5lab import inert, paths
from f5lab.commands.console import JsonFile, say_path, write_json
from f5lab.errors import RunError, UsageError

Device = Annotated[str, typer.Option("--device", help="auto, cpu, cuda, cuda:N or mps.")]


def register(app: typer.Typer) -> None:
    """Add the commands to the command line."""
    app.command()(series)
    app.command()(sweep)


def series(
    folder: Annotated[Path, typer.Argument(metavar="DIR", help="Training folder with model_*.pt, or the one above ckpts/.")],
    out: Annotated[
        Path | None, typer.Option(metavar="DIR", help="Page, JSON and finished rows; default: under reports/series/.")
    ] = None,
    case: Annotated[Path | None, typer.Option(metavar="CASE", help="Prompts and settings from a case.yaml; else from the training's dataset.")] = None,
    probe: Annotated[bool, typer.Option(help="Probe loss of raw and EMA weights on real recordings.")] = True,
    listen: Annotated[bool, typer.Option("--listen", help="Also synthesise and transcribe: CER.")] = False,
    recordings: Annotated[int, typer.Option(min=1, help="Most recordings for the probe.")] = 8,
    draws: Annotated[int, typer.Option(min=1, help="Noise draws for each recording.")] = 2,
    prompts: Annotated[int, typer.Option(min=1, help="Prompts spoken with --listen.")] = 4,
    seeds: Annotated[int, typer.Option(min=1, help="Seeds for each prompt with --listen.")] = 1,
    asr: Annotated[str, typer.Option(help="Whisper size or weights file.")] = "base",
    language: Annotated[
        str | None, typer.Option(help="Language of the speech where no CASE says it; default: as Whisper hears it.")
    ] = None,
    device: Device = "auto",
    json_file: JsonFile = None,
) -> None:  # fmt: skip
    """Compare every checkpoint of a training: norms, EMA, probe loss, CER over updates, and the best update.

    One checkpoint is open at a time. Finished parts are kept: a series that was stopped goes on. A checkpoint that cannot
    be measured is a row with its reason, and the command exits with 1 at the end.
    """
    from f5lab.finished import series_pages
    from f5lab.scale import series as many

    folder = folder.expanduser()
    out = (out or default_out(folder)).expanduser()
    plan = many.Plan(recordings, draws, probe, listen, prompts, seeds, asr, device, language)
    found = many.run(folder, out, plan, case=case, watch=_show_row)
    told = many.report(found)
    paths.write_text(out / "series.json", inert.json_text(told) + "\n")
    paths.write_text(out / "series.html", series_pages.page(found))
    rows = [{k: v for k, v in row.items() if k != "says"} for row in many.table_rows(found)]
    _deliver(told | {"notes": [*told["notes"], *many.remarks(found)]}, rows, out / "series.html", json_file)
    if found.failed:
        raise RunError(
            f"{len(found.failed)} of {len(found.rows)} checkpoints could not be measured as asked", offenders=found.failed,
            next_step=f"see {out / 'series.html'}; what was finished is not done again",
        )  # fmt: skip


def default_out(folder: Path) -> Path:
    """Return where a training folder's series is kept unless told otherwise: its name, and a mark of its whole path."""
    whole = folder.resolve()
    mark = hashlib.sha256(str(whole).encode("utf-8", "backslashreplace")).hexdigest()[:6]
    return paths.reports_dir() / "series" / f"{whole.name}-{mark}"


def _show_row(row: dict[str, Any]) -> None:
    from rich.console import Console
    from rich.text import Text

    from f5lab.provenance import duration_text

    sign, style = ("✘", "bold red") if row["problem"] else ("✔", "green")
    line = Text(f"{sign} {inert.visible(row['file']):<28} {duration_text(row['seconds']):>10}", style)
    Console(stderr=True, highlight=False).print(line.append(f"  {inert.prose(row['problem'])}", "red"), soft_wrap=True)


def _deliver(told: dict[str, Any], rows: list[dict[str, Any]], page: Path, json_file: Path | None) -> None:
    """Show a result for people, or write it as JSON where that was asked for."""
    if write_json(inert.json_text(told) + "\n", json_file):
        return
    import sys

    from rich.text import Text

    from f5lab.commands.console import _console, _show_table

    console = _console(sys.stdout)
    _show_table(rows, console)
    for line in told["best"]:
        console.print(Text(inert.prose(line, None), "bold"), soft_wrap=True)
    for line in told["notes"]:
        console.print(Text(f"Note: {inert.prose(line)}", "yellow"), soft_wrap=True)
    say_path(page)


def sweep(
    file: Annotated[Path, typer.Argument(metavar="SWEEP", help="YAML: cases, checkpoints, recipes, grid, prompts, seeds, measures.")],
    out: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Parquet file to write; default: SWEEP's name, here.")
    ] = None,
    engine: Annotated[str, typer.Option(help="local: this machine; ray: a Ray cluster.")] = "local",
    address: Annotated[str | None, typer.Option(help="Ray cluster: auto or host:port; left out, Ray is started here.")] = None,
    jobs: Annotated[int | None, typer.Option(min=1, help="Local processes; default: one a core, at most 4; with a GPU 1.")] = None,
    threads: Annotated[int, typer.Option(min=1, help="CPU threads of one task, on every engine.")] = 1,
    gpus: Annotated[float, typer.Option(min=0.01, help="With Ray and a GPU: GPUs for one task; 0.5 lets two share one.")] = 1.0,
    device: Device = "auto",
    json_file: JsonFile = None,
) -> None:  # fmt: skip
    """Speak and measure every combination of cases, checkpoints, recipes, prompts and seeds: one Parquet file.

    Every row is kept by content: a sweep that is repeated or goes on computes only what is missing, whichever engine it
    runs on. Rows that cannot be measured say why, and the command exits with 1 at the end.

    \b
    cases: \\[case.yaml]
    checkpoints: \\["ckpts/voz/model_*.pt"]   # left out: each case's own
    recipes: {as it is: {}, as trained: {start: repaired}}   # what training: leaves out is inferred by the probe
    grid: {weights: \\[raw, ema], nfe_step: \\[8, 16, 32], arch: \\[{}, {pe_attn_head: 1}]}
    prompts: 4                              # or ids; left out: all
    seeds: \\[0, 1]
    """
    if engine not in ("local", "ray"):
        raise UsageError(f"--engine {engine}", expected="local or ray")
    if address is not None and engine == "local":
        raise UsageError("--address with --engine local", expected="--engine ray")
    from f5lab import models
    from f5lab.scale import sweep_specs, sweep_tasks, sweeps

    out = sweeps.spare((out or Path(f"{file.stem}.parquet")).expanduser())
    device = models.pick_device(device)
    tasks = list(sweep_tasks.expand(sweep_specs.load_sweep(file), device=device, threads=threads))
    jobs = jobs or (min(4, os.cpu_count() or 1) if device == "cpu" else 1)
    with _bar(f"{len(tasks)} rows") as watch:
        outcome = sweeps.run(
            tasks, sweep_tasks.perform, engine=engine, jobs=jobs, address=address, cpus=threads,
            gpus=0 if device == "cpu" else gpus, watch=watch
        )  # fmt: skip
    out = sweeps.write_parquet(outcome.rows, out)
    frame = sweeps.read(out)
    told = {"rows": len(outcome.rows), "computed": outcome.computed, "cached": outcome.cached, "seconds": outcome.seconds,
            "engine": engine, "device": device, "out": str(out), "best": sweeps.conclude(frame), "notes": sweep_tasks.notes(tasks), "failed": outcome.failed,
            "recipes": sweeps.summarise(frame)}  # fmt: skip
    _deliver(told, told["recipes"], out, json_file)
    if outcome.failed:
        raise RunError(
            f"{len(outcome.failed)} of {len(outcome.rows)} rows could not be measured", offenders=outcome.failed
        )


@contextlib.contextmanager
def _bar(what: str) -> Iterator[Callable[[int, int], None]]:
    """Yield what moves a progress bar on stderr; nothing is shown where stderr is no terminal."""
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    console = Console(stderr=True)
    columns = (TextColumn("{task.description}", markup=False), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=console, transient=True, disable=not console.is_terminal) as progress:
        number = progress.add_task(what)
        yield lambda done, of: progress.update(number, completed=done, total=of)
