"""Depth as a control: what is near is white, by a depth model of `transformers` in a folder of the user's."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from safetensors import SafetensorError
from torch import Tensor

from ltx_core.errors import ConfigError

AT_ONCE = 8  # frames
DISTANCES = ("zoedepth", "depth_pro", "glpn", "prompt_depth_anything")  # kinds of models that tell metres
NEAREST = 0.05  # metres


def depth_control(place: str, device: str) -> DepthControl:
    """The depth model at ``place``, a folder or the name of a downloaded repository. Raises `ConfigError`."""
    network, processor = open_network("AutoModelForDepthEstimation", "a depth model", place, device)
    return DepthControl(network, processor)


class DepthControl:
    """Frames ``[3, F, H, W]`` to grey ones: the nearest point of the clip is 1, the farthest -1."""

    def __init__(self, network: Any, processor: Any) -> None:
        self.network, self.processor = network, processor
        config = network.config
        metric = getattr(config, "depth_estimation_type", "relative") == "metric"
        self.tells_distance = metric or config.model_type in DISTANCES

    @torch.inference_mode()
    def __call__(self, frames: Tensor) -> Tensor:
        size = (frames.shape[-2], frames.shape[-1])
        found = torch.cat([self._planes(pictures, size) for pictures in as_pictures(frames).split(AT_ONCE)])
        if self.tells_distance:
            found = 1 / found.clamp(min=NEAREST)
        low, high = found.min(), found.max()  # of the whole clip, or it would flicker
        shown = (found - low) / (high - low).clamp(min=torch.finfo(torch.float32).tiny) * 2 - 1
        return shown.to(frames.dtype).expand(3, -1, -1, -1).contiguous()

    def _planes(self, pictures: Tensor, size: tuple[int, int]) -> Tensor:
        """Depth of pictures, float32 ``[F, H, W]`` on the CPU."""
        inputs = self.processor(images=list(pictures.numpy()), return_tensors="pt").to(self.network.device)
        depth = self.network(pixel_values=inputs["pixel_values"]).predicted_depth.float()
        return F.interpolate(depth[:, None], size, mode="bicubic", align_corners=False)[:, 0].cpu()


def as_pictures(frames: Tensor) -> Tensor:
    """Frames ``[3, F, H, W]`` in [-1, 1] as uint8 ``[F, H, W, 3]``."""
    return ((frames.float() + 1) * 127.5).round().clamp(0, 255).to(torch.uint8).permute(1, 2, 3, 0).contiguous().cpu()


def open_network(kind: str, what: str, place: str, device: str) -> tuple[Any, Any]:
    """A network of `transformers` with its image processor, from files on this machine; nothing is downloaded.

    Weights are read from safetensors alone, and no code of theirs is run. Raises `ConfigError`, one line, where there
    is no such model, its files are damaged or lack some of its weights.
    """
    import transformers

    options = {"local_files_only": True, "trust_remote_code": False}
    try:
        processor = transformers.AutoImageProcessor.from_pretrained(place, backend="pil", **options)
        network, found = getattr(transformers, kind).from_pretrained(
            place, use_safetensors=True, output_loading_info=True, dtype=torch.float32, **options
        )
    except (OSError, ValueError, RuntimeError, ImportError, KeyError, SafetensorError) as error:
        reason = str(error).strip().partition("\n")[0]
        hint = f"expected a folder, or a name that `hf download {place}` was run for"
        raise ConfigError(f"there is no {what.partition(' ')[2]} at {place} ({reason}): {hint}") from error
    if missing := sorted(found["missing_keys"]):
        raise ConfigError(f"{place} is not {what}: its files lack {len(missing)} weights, first {missing[0]}")
    return network.to(device).eval(), processor
