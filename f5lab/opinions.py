"""Predicted opinion scores (MOS) by models whose weights come with their packages; the extra ``measures``.

| name | what it was trained to predict | source |
|---|---|---|
| DistillMOS | opinion scores of a larger model on XLS-R features, 1 to 5 | Stahl and Gamper, `distillmos` |
| DNSMOS OVRL | P.835 overall quality of noise-suppressed speech, 1 to 5 | Reddy et al. 2022, `speechmos` |
| DNSMOS P.808 | P.808 quality of noise-suppressed speech, 1 to 5 | Reddy et al. 2021, `speechmos` |

None of them knows the text: clear speech of the wrong words scores well, in a language that nobody asked for as well.
Shown without the same clips' controls they say little, so `rate` is meant to be called on those too.
"""

import functools
import importlib.util
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from f5lab.audio import Wave, resample
from f5lab.metrics import Score

RATE_HZ = 16000
MIN_SECONDS, LEAST_RMS = 0.5, 1e-4
UNIT = "MOS, 1 to 5"
CAN_NOT = (
    "They rate noise and distortion. They do not know the text, can not tell a right word from a wrong one or one voice "
    "from another, and see a short clip padded with silence to 7.7 s (DistillMOS) or repeated to 9 s (DNSMOS). A value "
    "means something beside those of the real recording and of noise, which are rated in the same way."
)
INSTALL = "pip install 'f5lab[measures]'"


def rate(wave: Wave) -> list[Score]:
    """Return each predictor's opinion of a wave; undefined, with the reason, where it has none or is not installed."""
    problem = ""
    if wave.seconds < MIN_SECONDS:
        problem = f"only {wave.seconds:.2f} s of audio"
    elif wave.rms < LEAST_RMS:
        problem = "silence"
    scores = []
    for package, (names, predict) in _PREDICTORS.items():
        missing = f"{package} is not installed: {INSTALL}" if importlib.util.find_spec(package) is None else ""
        if reason := missing or problem:
            scores += [Score(name, None, UNIT, "higher", reason) for name in names]
            continue
        samples = np.clip(resample(wave, RATE_HZ).samples, -1.0, 1.0)
        scores += [_score(name, value) for name, value in zip(names, predict(samples), strict=True)]
    return scores


def _score(name: str, value: float) -> Score:
    if not np.isfinite(value):
        return Score(name, None, UNIT, "higher", "the predictor gives no finite number")
    return Score(name, float(value), UNIT, "higher")


@functools.cache
def _distillmos() -> Any:
    import distillmos

    from f5lab.mappings import load_tensors

    weights = Path(distillmos.__file__).parent / "weights" / "distill_mos_v7.pt"
    model = distillmos.ConvTransformerSQAModel(load_weights=False)  # it would print where this machine keeps them
    model.load_state_dict(load_tensors(weights)["model"])
    return model.eval()


def _by_distillmos(samples: np.ndarray) -> tuple[float, ...]:
    import torch

    with torch.inference_mode():
        return (float(_distillmos()(torch.from_numpy(samples)[None])),)


@functools.cache
def _dnsmos() -> Any:
    import onnxruntime
    from speechmos import dnsmos

    folder = Path(dnsmos.__file__).parent / "dnsmos_models"
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1  # more of them cost more than they bring, and take every core from others
    scorer = dnsmos.DNSMOS.__new__(dnsmos.DNSMOS)
    scorer.onnx_sess, scorer.p808_onnx_sess = (
        onnxruntime.InferenceSession(str(folder / name), options, providers=["CPUExecutionProvider"])
        for name in ("sig_bak_ovr.onnx", "model_v8.onnx")
    )
    return scorer


def _by_dnsmos(samples: np.ndarray) -> tuple[float, ...]:
    found = _dnsmos()(samples, RATE_HZ, is_personalized_MOS=False)
    return float(found["ovrl_mos"]), float(found["p808_mos"])


_PREDICTORS: dict[str, tuple[tuple[str, ...], Callable[[np.ndarray], tuple[float, ...]]]] = {
    "distillmos": (("DistillMOS",), _by_distillmos),
    "speechmos": (("DNSMOS OVRL", "DNSMOS P.808"), _by_dnsmos),
}
