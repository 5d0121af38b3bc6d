"""Files that must never run, never fill the memory and never load: one builder each, made anew in every test run.

Every file that could execute something would create ``canary`` in the folder that ``F5LAB_CANARY`` names.
Classes follow the advisories of torch, picklescan and fickling, and the bombs that load under ``weights_only`` today.
"""

import os
from pathlib import Path

from hostile import calls, containers, contents, other_formats  # noqa: F401 - each adds its files to the corpus
from hostile.registry import CORPUS


def write_corpus(folder: Path) -> dict[str, Path]:
    """Write every file into `folder` and return them by name."""
    made = {}
    for item in CORPUS:
        made[item.name] = folder / f"{item.name}{item.suffix}"
        made[item.name].write_bytes(item.build())
    return made


def canary_folder(folder: Path) -> Path:
    """Return the folder where anything executed leaves ``canary``, named in the environment."""
    folder.mkdir(exist_ok=True)
    os.environ["F5LAB_CANARY"] = str(folder)
    return folder
