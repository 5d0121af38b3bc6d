"""f5lab: why does F5-TTS inference speak garbage when the trainer's samples are perfect?

Importing the package is cheap: neither torch nor f5_tts is loaded. Work with the modules, ``from f5lab import
checkpoints, vocabs, samplers``; each imports only from the layers above it:

0. ``errors`` ``specs`` ``paths`` ``findings`` ``verdicts`` ``catalogue`` ``provenance`` ``tables``: no torch
1. ``audio`` ``checkpoints`` ``anatomy`` ``architectures`` ``diffs`` ``ema`` ``schedules`` ``vocabs`` ``metrics`` ``statistics`` ``plots``
   ``figures``: numeric, know nothing of f5_tts
2. ``models`` (the one importer of f5_tts and vocos), ``asr`` (the one importer of whisper), ``whisper_weights`` ``speakers``
3. ``samplers`` ``oracles`` ``cycles`` ``discovery``; the diagnosis: ``factors`` ``probes`` ``parity`` ``settings_search`` ``examinations``
   ``weight_faults`` ``setting_faults`` ``text_faults`` ``audio_faults`` ``listening`` ``diagnosis``; its calibration: ``planting`` ``plants*``
   ``calibration``; ``bundles`` ``bundle_speech`` ``spellings``; the specimen: ``curricula`` ``vocoders`` ``finetuning`` ``specimens`` ``gates``
4. ``widgets`` ``markup`` ``kernels`` ``parameters`` ``reports`` ``workbook`` ``console`` ``cli``; finished runs: ``privacy`` ``runs``
   ``run_index`` ``comparisons`` ``redaction`` ``sharing`` ``archives`` ``cli_runs``
"""

from importlib.metadata import PackageNotFoundError, version

from f5lab.errors import LabError
from f5lab.specs import Case, load_case

try:
    __version__ = version("f5lab")
except PackageNotFoundError:  # a source tree that was never installed
    __version__ = "0+source"

__all__ = ["Case", "LabError", "__version__", "load_case"]
