"""``python -m f5lab`` and the installed command.

``f5lab inspect CKPT`` answers in less time than the command line's own libraries need to be imported, so a plain call of it
goes straight to its function; whatever is not plain, and every error, is left to `cli`.
"""

import gc
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType

from f5lab.errors import LabError

_COLLECT_AFTER = 10_000
"""Objects made until garbage is looked for. Importing torch makes hundreds of thousands and no garbage: with Python's own 700
that search takes a tenth of a short command's time."""


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the command line and exit as `cli.main` does."""
    given = list(sys.argv[1:] if arguments is None else arguments)
    gc.set_threshold(_COLLECT_AFTER)
    if _is_plain_inspect(given) and _inspect(given[1], given[3] if len(given) > 2 else None):
        return
    from f5lab import cli

    cli.main(given)


def _is_plain_inspect(given: Sequence[str]) -> bool:
    """Whether the arguments are exactly ``inspect CKPT [--json FILE]``, and errors are wanted in one line."""
    form = [item if at in (0, 2) else "…" for at, item in enumerate(given)]
    plain = form in (["inspect", "…"], ["inspect", "…", "--json", "…"]) and all(given) and not given[1].startswith("-")
    return plain and not os.environ.get("F5LAB_TRACEBACK")


def _inspect(path: str, json_file: str | None) -> bool:
    """Show a checkpoint's contents; False where that is not possible and `cli` shall say why."""
    from f5lab.untrusted import processes

    gc.disable()  # this process is over before anything could be collected
    sys.excepthook = _one_line_hook
    processes.read_ahead(path)
    from f5lab.commands import console
    from f5lab.weights import contents

    try:
        console.deliver(contents.report(path), Path(json_file) if json_file else None)
        sys.stdout.flush()
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(1)
    except KeyboardInterrupt:
        sys.stderr.write("f5lab: interrupted\n")
        sys.exit(130)
    except (LabError, OSError):
        return False
    finally:
        gc.enable()
    return True


def _one_line_hook(kind: type[BaseException], error: BaseException, trace: TracebackType | None) -> None:
    from f5lab import cli

    cli._one_line_hook(kind, error, trace)


if __name__ == "__main__":
    main()
