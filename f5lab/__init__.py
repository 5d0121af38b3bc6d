"""f5lab: why does F5-TTS inference speak garbage when the trainer's samples are perfect?

Importing the package is cheap: neither torch nor f5_tts is loaded. Work with the modules, ``from f5lab import
checkpoints, vocabs, samplers``; what belongs together and is not asked for by itself lies in a folder. Each module and
folder imports only from the layers above it and its own:

0. No torch. ``errors`` ``inert`` ``bars`` ``usage`` ``specs`` ``presets`` ``paths`` ``caches`` ``remedies`` ``findings``
   ``verdicts`` ``catalogue`` ``provenance`` ``tables`` ``captions`` ``upstream_terms``; files from strangers:
   ``untrusted/``
1. Numeric, know nothing of f5_tts. ``mappings`` ``checkpoints`` ``vocoder_folders`` ``audio`` ``ema`` ``schedules``
   ``vocabs`` ``metrics`` ``statistics`` ``pitch`` ``readings`` ``plots`` ``figures``; what is in a set of weights:
   ``weights/``
2. ``models`` is the one importer of f5_tts and vocos, ``asr`` of whisper; ``whisper_weights`` ``speakers``
   ``opinions`` ``graphs``
3. Synthesis: ``samplers`` ``batches`` ``oracles`` ``cycles`` ``voices``; a case from a training folder: ``discovery``,
   ``training_sets``.
   The diagnosis: ``probes`` ``parity`` ``faults/`` ``listening`` ``diagnosis``; its calibration: ``planted/``.
   What it hands over: ``bundles`` ``bundle_speech`` ``spellings``.
   Looking further: ``inside/`` the model, ``grids`` of settings, ``blends`` of weights, ``scale/`` for many checkpoints,
   ``blind_listening/``. How data/ was made: ``specimen/``
4. The workbook: ``execution/`` ``workbook`` ``resuming`` ``widgets`` ``blind_widget``; ``finished/`` runs.
   The command line: ``commands/`` ``cli``
"""

from typing import TYPE_CHECKING, Any

from f5lab.errors import LabError

if TYPE_CHECKING:
    from f5lab.specs import Case, load_case

    __version__: str

__all__ = ["Case", "LabError", "__version__", "load_case"]


def __getattr__(name: str) -> Any:
    """Import what is costly to import when it is asked for; a command that needs none of it starts at once."""
    if name in ("Case", "load_case"):
        from f5lab import specs

        return getattr(specs, name)
    if name == "__version__":
        from importlib.metadata import PackageNotFoundError, version

        try:
            return version("f5lab")
        except PackageNotFoundError:  # a source tree that was never installed
            return "0+source"
    raise AttributeError(f"module 'f5lab' has no attribute {name!r}")
