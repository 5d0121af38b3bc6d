"""f5lab: why does F5-TTS inference speak garbage when the trainer's samples are perfect?

Importing the package is cheap: neither torch nor f5_tts is loaded. Work with the modules, ``from f5lab import
checkpoints, vocabs, samplers``; each imports only from the layers above it:

0. ``errors`` ``inert`` ``bars`` ``specs`` ``presets`` ``paths`` ``caches`` ``remedies`` ``findings`` ``verdicts`` ``catalogue`` ``provenance``
   ``tables``: no torch; untrusted files: ``refusals`` ``sources`` ``stored_tensors`` ``pickles`` ``zip_audit`` ``manifests``
   ``safetensor_headers`` ``torch_files`` ``file_kinds`` ``file_reader`` ``processes`` ``opinion_reader`` ``sandbox`` ``second_opinion``
   ``weights_files`` ``layouts``; many tasks: ``ledgers`` ``engines`` ``sweep_specs``
1. ``mappings`` ``origins`` ``contents`` ``vocoder_folders``
   ``audio`` ``checkpoints`` ``anatomy`` ``architectures`` ``diffs`` ``ema`` ``schedules`` ``vocabs`` ``metrics`` ``statistics`` ``plots``
   ``figures`` ``trends`` ``pitch`` ``readings``, one pass over weights: ``sums`` ``vector_loops`` ``reductions`` ``scans`` ``stored_scans``: numeric,
   know nothing of f5_tts
2. ``models`` (the one importer of f5_tts and vocos), ``asr`` (the one importer of whisper), ``whisper_weights`` ``speakers`` ``opinions``
3. ``samplers`` ``oracles`` ``cycles`` ``voices`` ``discovery``; the diagnosis: ``factors`` ``probes`` ``parity`` ``settings_search`` ``examinations``
   ``weight_faults`` ``setting_faults`` ``text_faults`` ``audio_faults`` ``listening`` ``diagnosis``; its calibration: ``planting`` ``plants*``
   ``calibration``; ``bundles`` ``bundle_speech`` ``spellings``; inside the model: ``activations`` ``trajectories`` ``alignments``
   ``model_figures``; settings and weights: ``grids`` ``blends``; many
   checkpoints: ``series`` ``series_rows`` ``sweep_tasks`` ``sweeps``; the specimen: ``curricula`` ``vocoders`` ``finetuning`` ``specimens`` ``gates``;
   blind listening: ``blind`` ``blind_answers`` ``blind_results``
4. ``widgets`` ``blind_widget`` ``markup`` ``kernels`` ``parameters`` ``reports`` ``run_folders`` ``workbook`` ``resuming`` ``console`` ``cli`` ``cli_blends`` ``cli_scale`` ``cli_blind``
   ``series_pages``; finished runs: ``privacy`` ``runs`` ``run_index`` ``comparisons`` ``redaction`` ``sharing`` ``archives`` ``cli_runs``
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
