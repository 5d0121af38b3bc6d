"""Upstream's published architectures. No torch, no pydantic: what a checkpoint's structure is compared with at once."""

from typing import Any, Literal

Backbone = Literal["DiT", "UNetT", "MMDiT"]

_V0 = {"text_mask_padding": False, "pe_attn_head": 1}
_BASE = {"dim": 1024, "depth": 22, "heads": 16, "ff_mult": 2, "text_dim": 512, "conv_layers": 4}
_SMALL = {"dim": 768, "depth": 18, "heads": 12, "ff_mult": 2, "text_dim": 512, "conv_layers": 4}

PRESETS: dict[str, dict[str, Any]] = {
    "F5TTS_Base": {"backbone": "DiT", **_BASE, **_V0},
    "F5TTS_v1_Base": {"backbone": "DiT", **_BASE, "text_mask_padding": True, "pe_attn_head": None},
    "F5TTS_Small": {"backbone": "DiT", **_SMALL, **_V0},
    "F5TTS_v1_Small": {"backbone": "DiT", **_SMALL, "text_mask_padding": True, "pe_attn_head": None},
    "E2TTS_Base": {"backbone": "UNetT", "dim": 1024, "depth": 24, "heads": 16, "ff_mult": 4, **_V0},
    "E2TTS_Small": {"backbone": "UNetT", "dim": 768, "depth": 20, "heads": 12, "ff_mult": 4, **_V0},
}
"""``configs/*.yaml``, ``model.arch`` (a test compares them with the wheel)."""
