"""``python -m f5lab`` and the installed command.

``f5lab inspect CKPT`` answers in less time than the command line's own libraries need to be imported, so a plain call of it
goes straight to its function; whatever is not plain, and every error, is left to `cli`.
"""

import sys
from collections.abc import Sequence
from pathlib import Path

from f5lab.errors import LabError


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the command line and exit as `cli.main` does."""
    given = list(sys.argv[1:] if arguments is None else arguments)
    if given[:1] == ["inspect"] and _inspect(given[1:]):
        return
    from f5lab import cli

    cli.main(given)


def _inspect(given: Sequence[str]) -> bool:
    """Show a checkpoint's contents; False where the arguments are not exactly CKPT [--json FILE], or it is refused."""
    plain = len(given) in (1, 3) and not given[0].startswith("-") and list(given[1:2]) in ([], ["--json"])
    if not plain or any(not item for item in given):
        return False
    from f5lab import console, contents

    try:
        report = contents.report(given[0])
    except LabError:
        return False
    console.deliver(report, Path(given[2]) if len(given) == 3 else None)
    return True


if __name__ == "__main__":
    main()
