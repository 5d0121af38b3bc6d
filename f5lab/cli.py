"""The command line: a thin layer over the package; every command has a function that does the same.

Exit status 0: done, whatever was found. 1: it could not be done, one line on stderr says why. 2: wrong usage.
Torch is imported by the commands that need it, when they run.
"""

import os
import re
import signal
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Annotated, Any

import typer

from f5lab import inert, paths, remedies
from f5lab.commands import cli_blends, cli_blind, cli_runs, cli_scale
from f5lab.commands.console import JsonFile, Progress, deliver, say_path, tell_stages, write_json
from f5lab.errors import LabError, RunError, UsageError

if TYPE_CHECKING:
    from f5lab.specs import Case

TRACEBACK = "--traceback"
INTERRUPTED = 130
FOUND = 3
"""Exit status of --check, and the least confidence of a cause that counts for it."""

app = typer.Typer(
    name="f5lab",
    help="Why does F5-TTS inference speak garbage when the trainer's samples are perfect?",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)
specimen = typer.Typer(help="The small real F5-TTS in data/: build, check, measure.", no_args_is_help=True)
app.add_typer(specimen, name="specimen")
cli_runs.register(app)
cli_blends.register(app)
cli_scale.register(app)
cli_blind.register(app)

Device = Annotated[str, typer.Option("--device", help="auto, cpu, cuda, cuda:N or mps.")]


def _version(wanted: bool) -> None:
    if wanted:
        from f5lab import __version__

        typer.echo(f"f5lab {__version__}")
        raise typer.Exit


@app.callback()
def _frame(
    version: Annotated[bool, typer.Option("--version", callback=_version, is_eager=True, help="Print it.")] = False,
    traceback: Annotated[bool, typer.Option(TRACEBACK, help="Show where an error comes from; anywhere.")] = False,
) -> None:
    pass


@app.command()
def run(
    case: Annotated[Path | None, typer.Argument(metavar="CASE", help="case.yaml; default: the bundled one.")] = None,
    only: Annotated[str, typer.Option(metavar="01,05", help="Run these notebooks only.")] = "",
    out: Annotated[Path | None, typer.Option(metavar="DIR", help="Make the run's folder in DIR.")] = None,
    set_: Annotated[
        list[str] | None, typer.Option("--set", metavar="KEY=VALUE", help="Set a notebook parameter; repeatable.")
    ] = None,
    device: Device = "auto",
    quick: Annotated[bool, typer.Option("--quick", help="Reduced budgets: fewer prompts and seeds.")] = False,
    cell_timeout: Annotated[int, typer.Option(min=1, metavar="SECONDS", help="Longest time for one cell.")] = 3600,
    resume: Annotated[
        Path | None, typer.Option(metavar="RUN", help="Finish this run, a folder under reports/, that was cut off.")
    ] = None,
) -> None:
    """Execute the workbook on a case and write an HTML report.

    A notebook that fails is kept and marked in the report, the others still run, and the command exits with 1.
    """
    settings = _settings(set_ or [])
    if resume is not None and (only or out or settings or quick or device != "auto"):
        raise UsageError("--resume with settings", expected="--resume RUN alone: it goes on as the run began")
    from f5lab import resuming, workbook

    with Progress() as progress:
        if resume is not None:
            result = resuming.resume(resume, case, cell_timeout_s=cell_timeout, watch=progress.show)
        else:
            result = workbook.run(
                case, only=only.split(",") if only else [], out=out, settings=settings, device=device,
                quick=quick, cell_timeout_s=cell_timeout, watch=progress.show,
            )  # fmt: skip
    if result.used:
        progress.console.print(result.used, style="dim", markup=False, soft_wrap=True)
    say_path(result.index)
    if result.interrupted:
        progress.console.print(f"interrupted; to go on: f5lab run --resume {inert.prose(str(result.folder), None)}", markup=False, soft_wrap=True)
        raise typer.Exit(INTERRUPTED)
    if result.changed:
        raise RunError(
            "files were changed while the run read them: its findings rest on two states", offenders=result.changed,
            next_step="run it again",
        )  # fmt: skip
    if result.failed:
        raise RunError(
            f"{len(result.failed)} of {len(result.record['notebooks'])} notebooks failed",
            offenders=result.failed,
            next_step=f"see {result.index}",
        )


def _settings(given: Sequence[str]) -> dict[str, str]:
    settings = {}
    for item in given:
        key, equals, value = item.partition("=")
        if not equals or not key.strip():
            raise UsageError(f"--set {item!r}", expected="KEY=VALUE")
        settings[key.strip()] = value
    return settings


@app.command()
def new(
    folder: Annotated[Path, typer.Argument(metavar="DIR", help="Training folder, as F5-TTS's finetune CLI leaves it.")],
    out: Annotated[Path, typer.Option(metavar="FILE", help="Case file to write.")] = Path("case.yaml"),
    language: Annotated[
        str | None, typer.Option(help="Language of the speech, as Whisper names it: pt, … (left to Whisper)", show_default=False)
    ] = None,
    prompts: Annotated[
        int, typer.Option(min=2, help="Most prompts to draw, of two recordings each: more take longer and narrow the intervals.")
    ] = 4,
    json_file: JsonFile = None,
) -> None:
    """Write a case.yaml from a training folder: what was found, assumed and is missing."""
    from f5lab import discovery

    deliver(discovery.report(folder, out, language, prompts), json_file)


def _examine_ahead(*files: Path | None) -> None:
    """Have files examined in processes of their own while torch, which takes a second, is imported."""
    from f5lab.untrusted import processes

    for file in filter(None, files):
        processes.read_ahead(str(file))


@app.command()
def inspect(
    checkpoint: Annotated[Path, typer.Argument(metavar="CKPT")],
    stats: Annotated[bool, typer.Option("--stats", help="Read every weight: statistics, what was never trained.")] = False,
    verify: Annotated[bool, typer.Option("--verify", help="Read the whole file: hash, checksums; ask picklescan.")] = False,
    json_file: JsonFile = None,
) -> None:
    """Say what is in a checkpoint, executing nothing: sections, tensors, architecture, and what no shape can show."""
    if stats:
        _examine_ahead(checkpoint)
        from f5lab.weights import anatomy as reader
    else:
        from f5lab.weights import contents as reader

    deliver(reader.report(checkpoint, verify=verify), json_file)


@app.command()
def diff(
    a: Annotated[Path, typer.Argument(metavar="A")],
    b: Annotated[Path | None, typer.Argument(metavar="B", show_default=False)] = None,
    json_file: JsonFile = None,
) -> None:
    """Compare A's raw and EMA weights, both seen from the base B where it is given.

    Where A holds one set, or B two as well, A is compared with B, set against set.
    """
    _examine_ahead(a, b)
    from f5lab import ema
    from f5lab.weights import diffs

    found = ema.report(a, b)
    used = set(found["overall"][0] if isinstance(found["overall"], list) else found["overall"]) | (found["base_share"] or {}).keys()
    deliver(found, json_file, found | {"terms": {name: text for name, text in diffs.TERMS.items() if name in used}})


@app.command()
def vocab(
    a: Annotated[Path, typer.Argument(metavar="A")],
    b: Annotated[Path | None, typer.Argument(metavar="B", show_default=False)] = None,
    json_file: JsonFile = None,
) -> None:
    """Check a vocab file, or compare two by what they map, not by bytes."""
    from f5lab import vocabs

    deliver(vocabs.report(a, b), json_file)


@app.command()
def cycle(
    waves: Annotated[list[Path], typer.Argument(metavar="WAV...")],
    vocoder: Annotated[Path | None, typer.Option(metavar="DIR", help="Folder of a Vocos; default: the specimen's.")] = None,
    device: Device = "auto",
    json_file: JsonFile = None,
) -> None:
    """Send recordings through mel and vocoder and back, and measure what is lost."""
    from f5lab import cycles
    from f5lab.specs import Vocoder

    found = cycles.report(waves, None if vocoder is None else Vocoder(path=vocoder), device)
    deliver(found, json_file)
    if failed := [row["problem"] for row in found["recordings"] if "problem" in row]:
        raise RunError(f"{len(failed)} of {len(waves)} recordings not measured", offenders=failed)


CasePath = Annotated[
    Path | None, typer.Argument(metavar="CASE", help="case.yaml; default: the bundled one.", show_default=False)
]


@app.command()
def diagnose(
    case: CasePath = None,
    checkpoint: Annotated[Path | None, typer.Option(help="Without a case file: the checkpoint.")] = None,
    vocab: Annotated[Path | None, typer.Option(help="Without a case file: vocab.txt.")] = None,
    clip: Annotated[Path | None, typer.Option(help="Without a case file: a recording.")] = None,
    text: Annotated[str, typer.Option(help="Without a case file: what the recording says.")] = "",
    base: Annotated[Path | None, typer.Option(help="Without a case file: what was fine-tuned.")] = None,
    vocoder: Annotated[Path | None, typer.Option(help="Without a case file: folder of a Vocos.")] = None,
    language: Annotated[
        str | None, typer.Option(help="Without a case file: language of the recording; default: as Whisper hears it.")
    ] = None,
    listen: Annotated[bool, typer.Option(help="Synthesise and transcribe.")] = True,
    asr: Annotated[str, typer.Option(help="Whisper size or weights file.")] = "base",
    check: Annotated[bool, typer.Option("--check", help="Exit with 3 when a cause is found.")] = False,
    reasons: Annotated[bool, typer.Option("--reasons", help="Also list every suspect with what was seen, the ruled out ones too.")] = False,
    device: Device = "auto",
    json_file: JsonFile = None,
) -> None:
    """Name the cause: the verdict of a case, without notebooks."""
    loose = {"--checkpoint": checkpoint, "--vocab": vocab, "--clip": clip, "--text": text or None}
    the_case = _case_of(case, loose, {"--base": base, "--vocoder": vocoder, "--language": language})
    from f5lab import diagnosis, verdicts

    tell_stages()
    found = diagnosis.diagnose(the_case, device=device, listen=listen, asr=asr)
    if not write_json(verdicts.to_json(found.verdict), json_file):
        typer.echo(verdicts.markdown(found.verdict, found.claims, found.beside), nl=False)
        if reasons:
            deliver({"suspects": diagnosis.rows(found.suspicions)}, None)
    if check and found.verdict.causes:
        raise typer.Exit(FOUND)
    if found.crashed:
        raise RunError(
            f"{len(found.crashed)} of the catalogue's entries not judged", offenders=[s.claim for s in found.crashed]
        )


def _case_of(case: Path | None, loose: Mapping[str, Any], more: Mapping[str, Any]) -> "Case":
    """Return the case of a file, or one made from the four loose options and those that may go with them."""
    from f5lab.specs import Case as CaseSpec
    from f5lab.specs import Inference, Prompt, Vocoder, load_case

    given = {name for name, value in {**loose, **more}.items() if value is not None}
    if case is not None or not given:
        if given:
            raise UsageError(
                f"CASE and {', '.join(sorted(given))}", expected="a case file or the loose options, not both"
            )
        return load_case(case or paths.default_case())
    if missing := sorted(set(loose) - given):
        raise UsageError(f"{', '.join(missing)} missing", expected="--checkpoint, --vocab, --clip and --text together")
    if not loose["--text"].strip():
        raise UsageError("--text is blank", expected="what the recording says")
    base, vocoder = more["--base"], more["--vocoder"]
    for name in ("--checkpoint", "--vocab", "--clip"):
        paths.existing_file(loose[name], RunError, name)
    if vocoder is not None and not vocoder.is_dir():
        raise RunError(f"--vocoder {vocoder} is no folder", expected="a folder with config.yaml and pytorch_model.bin")
    prompt = Prompt(id="clip", ref_audio=loose["--clip"], ref_text=loose["--text"], gen_text=loose["--text"])
    name = re.sub(r"[^A-Za-z0-9._-]", "_", loose["--checkpoint"].stem).lstrip(".") or "case"
    language = {"language": more["--language"]} if more["--language"] else {}
    return CaseSpec(
        name=name, checkpoint=loose["--checkpoint"], vocab=loose["--vocab"], base=base, vocoder=Vocoder(path=vocoder),
        inference=Inference(assumed=("arch", "front_end", "weights")), prompts=(prompt,), **language,
    )  # fmt: skip


@app.command()
def bundle(
    case: CasePath = None,
    out: Annotated[Path, typer.Option(metavar="DIR", help="New folder for the bundle.")] = ...,  # type: ignore[assignment]
    verify: Annotated[bool, typer.Option(help="Speak it by the stock CLI and score it.")] = True,
    device: Device = "auto",
    json_file: JsonFile = None,
) -> None:
    """Write a fixed bundle that the stock F5-TTS command line speaks with."""
    from f5lab import bundles
    from f5lab.specs import load_case

    the_case = load_case(case or paths.default_case())
    tell_stages()
    facts = bundles.write_bundle(the_case, out, verify=verify, device=device)
    deliver(facts, json_file, bundles.summary(facts, the_case.prompts[0].gen_text.strip(), out))


@app.command()
def faults(
    fault: Annotated[str, typer.Argument(metavar="[ID]", help="Show one entry in full.", show_default=False)] = "",
    json_file: JsonFile = None,
) -> None:
    """List the catalogue of faults, or one entry in full."""
    from dataclasses import asdict

    from f5lab import catalogue

    rows = catalogue.rows()
    short = [{key: row[key] for key in ("id", "group", "loads", "title")} for row in rows]
    others = {
        name: [{"id": key, "why it is none": reason} for key, reason in listed.items()]
        for name, listed in (("suspects", catalogue.SUSPECTS), ("decoys", catalogue.DECOYS))
    }
    whole = {"faults": rows if json_file else short, **others}
    deliver(asdict(catalogue.find_fault(fault)) if fault else whole, json_file)


@app.command()
def plant(
    fault: Annotated[str, typer.Argument(metavar="FAULT", help="Id of the catalogue; several: a,b.")],
    case: Annotated[
        Path | None, typer.Argument(metavar="CASE", help="A healthy case.yaml; default: the bundled one, repaired.", show_default=False)
    ] = None,
    out: Annotated[Path, typer.Option(metavar="DIR", help="New folder for the case.")] = ...,  # type: ignore[assignment]
    variant: Annotated[int, typer.Option(min=0, help="Another seed, layer or amount of the same fault.")] = 0,
) -> None:
    """Write a case with a fault planted into it."""
    from f5lab.planted import plants
    from f5lab.specs import load_case

    healthy = load_case(case or paths.data_dir() / "cases" / "ptbr-repaired" / "case.yaml")
    say_path(plants.plant([name.strip() for name in fault.split(",")], healthy, out, variant=variant))


@specimen.command("build")
def specimen_build(
    out: Annotated[Path, typer.Option(metavar="DIR", help="Build folder; a broken build goes on from there.")],
    device: Device = "auto",
) -> None:
    """Train base, vocoder and fine-tune again from the speech. Takes hours on a CPU."""
    from f5lab.specimen import specimens

    say_path(specimens.build(out, paths.data_dir() / "speech" / "ptbr", device=device))


@specimen.command("verify")
def specimen_verify(json_file: JsonFile = None) -> None:
    """Compare every file under data/ with the manifest."""
    from f5lab.specimen import specimens

    deliver({"files_checked": specimens.verify(paths.data_dir() / "manifest.json"), "differences": 0}, json_file)


@specimen.command("measure")
def specimen_measure(
    out: Annotated[Path, typer.Option(metavar="DIR", help="Folder for every clip's score; a broken run goes on.")],
    targets: Annotated[int, typer.Option(min=1, help="Phrases per condition.")] = 24,
    json_file: JsonFile = None,
) -> None:
    """Measure again how well the specimen speaks: the figures of data/specimen/README.md."""
    from f5lab.specimen import gates

    data = paths.data_dir()
    deliver(gates.measure_gates(data / "specimen", data / "speech" / "ptbr", out, n=targets), json_file)


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the command line and exit: 0 done, 1 could not be done, 2 wrong usage, 130 interrupted."""
    given = list(sys.argv[1:] if arguments is None else arguments)
    if TRACEBACK not in given and not os.environ.get("F5LAB_TRACEBACK"):
        sys.excepthook = _one_line_hook
    signal.signal(signal.SIGTERM, _interrupt)
    command = typer.main.get_command(app)
    try:
        status = command.main([item for item in given if item != TRACEBACK], prog_name="f5lab", standalone_mode=False)
    except UsageError as error:
        _fail(str(error), 2)
    except LabError as error:
        if TRACEBACK in given:
            raise
        _fail(str(error), 1)
    except typer.TyperException as error:
        message = error.format_message()
        if message:
            _fail(f"{message} (see f5lab --help)", 2)
        sys.exit(2)
    except typer.Abort:
        _fail("interrupted", INTERRUPTED)
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(1)
    if status == INTERRUPTED:
        _fail("interrupted", INTERRUPTED)
    sys.exit(status if isinstance(status, int) else 0)


def _interrupt(_signum: int, _frame: Any) -> None:
    raise KeyboardInterrupt


def _fail(message: str, status: int) -> None:
    line = inert.prose(" ".join(message.split()))
    sys.stderr.write(f"f5lab: {line}\n")
    sys.exit(status)


def _one_line_hook(kind: type[BaseException], error: BaseException, _trace: TracebackType | None) -> None:
    """Say an unexpected error in one line; Python then exits with 1."""
    said = " ".join(f"{kind.__name__}: {error}".split())
    line = remedies.explain(said)
    if line == said:
        line += f"; run again with {TRACEBACK} to see where it comes from"
    sys.stderr.write(f"f5lab: {inert.prose(line)}\n")
