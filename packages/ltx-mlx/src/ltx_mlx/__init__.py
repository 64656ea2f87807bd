"""The networks of LTX-2 in MLX, and doors to the shared pipelines that compute with them.

Names are imported when they are asked for, so that ``import ltx_mlx`` imports neither MLX nor torch.
"""

from __future__ import annotations

from importlib import import_module
from typing import Any

__all__ = [
    "AudioDecoder",
    "AudioEncoder",
    "CFGGuider",
    "DistilledPipeline",
    "EulerDiffusionStep",
    "GenerationConfig",
    "HeunDiffusionStep",
    "ICLoraPipeline",
    "KeyframeInterpolationPipeline",
    "LTX2Scheduler",
    "LTXAVModel",
    "LTXModel",
    "LtxAPGGuider",
    "MLXBackend",
    "OneStageCFGConfig",
    "OneStagePipeline",
    "STGGuider",
    "SimpleVideoDecoder",
    "SimpleVideoEncoder",
    "SpatialUpscaler",
    "TemporalUpscaler",
    "TextToVideoPipeline",
    "TwoStageCFGConfig",
    "TwoStagePipeline",
    "VideoLatentPatchifier",
    "create_distilled_pipeline",
    "create_ic_lora_pipeline",
    "create_keyframe_interpolation_pipeline",
    "create_one_stage_pipeline",
    "create_pipeline",
    "create_two_stage_pipeline",
    "load_transformer_weights",
]

_PLACES = {
    "ltx_mlx.transformer": {"LTXModel": "LTXModel", "LTXAVModel": "LTXModel"},  # streams follow from the config
    "ltx_mlx.video_vae": {"SimpleVideoEncoder": "VideoEncoder", "SimpleVideoDecoder": "VideoDecoder"},
    "ltx_mlx.audio_vae": {"AudioEncoder": "AudioEncoder", "AudioDecoder": "AudioDecoder"},
    "ltx_mlx.upsampler": dict.fromkeys(("SpatialUpscaler", "TemporalUpscaler"), "LatentUpsampler"),
    "ltx_mlx.backend": {name: name for name in ("MLXBackend", "load_transformer_weights")},
    "ltx_core.components.guiders": {name: name for name in ("CFGGuider", "STGGuider", "LtxAPGGuider")},
    "ltx_core.components.diffusion_steps": {name: name for name in ("EulerDiffusionStep", "HeunDiffusionStep")},
    "ltx_core.components.schedulers": {"LTX2Scheduler": "LTX2Scheduler"},
    "ltx_core.components.patchifiers": {"VideoLatentPatchifier": "VideoLatentPatchifier"},
}


def __getattr__(name: str) -> Any:
    if name not in __all__:
        raise AttributeError(f"module 'ltx_mlx' has no attribute {name!r}")
    for module, names in _PLACES.items():
        if name in names:
            return getattr(import_module(module), names[name])
    return getattr(import_module("ltx_mlx.pipelines"), name)
