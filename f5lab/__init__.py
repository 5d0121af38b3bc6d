"""f5lab: why does F5-TTS inference speak garbage when the trainer's samples are perfect?

Importing the package is cheap: neither torch nor f5_tts is loaded. Work with the modules, ``from f5lab import
checkpoints, vocabs, samplers``; each imports only from the layers above it:

0. No torch. ``errors`` ``inert`` ``bars`` ``usage`` ``specs`` ``presets`` ``paths`` ``caches`` ``remedies`` ``findings``
   ``verdicts`` ``catalogue`` ``provenance`` ``tables`` ``captions`` ``upstream_terms``
   Untrusted files: ``refusals`` ``sources`` ``stored_tensors`` ``pickles`` ``zip_audit`` ``manifests``
   ``safetensor_headers`` ``torch_files`` ``file_kinds`` ``file_reader`` ``processes`` ``opinion_reader`` ``sandbox``
   ``second_opinion`` ``weights_files`` ``layouts``
   Many tasks: ``ledgers`` ``engines`` ``sweep_specs``
1. Numeric, know nothing of f5_tts. ``mappings`` ``origins`` ``contents`` ``vocoder_folders`` ``audio``
   ``checkpoints`` ``anatomy`` ``architectures`` ``diffs`` ``ema`` ``schedules`` ``vocabs`` ``metrics`` ``statistics``
   ``plots`` ``figures`` ``trends`` ``pitch`` ``readings``
   One pass over weights: ``sums`` ``vector_loops`` ``reductions`` ``scans`` ``stored_scans``
2. ``models`` is the one importer of f5_tts and vocos, ``asr`` of whisper; ``whisper_weights`` ``speakers``
   ``opinions`` ``graphs``
3. Synthesis: ``samplers`` ``batches`` ``oracles`` ``cycles`` ``voices`` ``discovery``
   The diagnosis: ``factors`` ``probes`` ``parity`` ``prompt_timing`` ``settings_search`` ``examinations``
   ``weight_faults`` ``setting_faults`` ``text_faults`` ``audio_faults`` ``suspects`` ``listening`` ``diagnosis``
   Its calibration: ``planting`` ``plants*`` ``calibration``
   What it hands over: ``bundles`` ``bundle_speech`` ``spellings``
   Inside the model, settings and weights: ``activations`` ``trajectories`` ``alignments`` ``model_figures`` ``grids``
   ``blends``
   Many checkpoints: ``series`` ``series_rows`` ``sweep_tasks`` ``sweeps``
   Blind listening: ``blind`` ``blind_answers`` ``blind_results``
   The specimen: ``curricula`` ``vocoders`` ``finetuning`` ``specimens`` ``gates``
4. The workbook: ``widgets`` ``blind_widget`` ``markup`` ``kernels`` ``parameters`` ``reports`` ``run_folders``
   ``workbook`` ``resuming``
   Finished runs: ``privacy`` ``runs`` ``run_index`` ``comparisons`` ``redaction`` ``sharing`` ``archives``
   ``series_pages``
   The command line: ``console`` ``cli`` ``cli_runs`` ``cli_blends`` ``cli_scale`` ``cli_blind``
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
