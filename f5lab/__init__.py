"""f5lab: why does F5-TTS inference speak garbage when the trainer's samples are perfect?

Importing the package is cheap: neither torch nor f5_tts is loaded. Work with the modules, ``from f5lab import
checkpoints, vocabs, samplers``; each imports only from the layers above it:

0. ``errors`` ``specs`` ``paths`` ``findings`` ``tables``: no torch
1. ``audio`` ``checkpoints`` ``anatomy`` ``ema`` ``vocabs`` ``metrics`` ``statistics`` ``plots``: numeric, know nothing of f5_tts
2. ``models`` (the one importer of f5_tts and vocos), ``asr`` (the one importer of whisper), ``speakers``
3. ``samplers`` ``cycles`` ``oracles`` ``discovery`` ``curricula`` ``vocoders`` ``specimens``
4. ``widgets`` ``reports`` ``workbook`` ``cli``
"""

from importlib.metadata import PackageNotFoundError, version

from f5lab.errors import LabError
from f5lab.specs import Case, load_case

try:
    __version__ = version("f5lab")
except PackageNotFoundError:  # a source tree that was never installed
    __version__ = "0+source"

__all__ = ["Case", "LabError", "__version__", "load_case"]
