"""LTX-Video from prompts and files to frames and a file: what its command line does.

A request of any size runs at the next size the model can hold and is cut back; conditioning media are prepared like the
training data. `run` yields the events of the pipeline and last "done", whose frames are decoded as they are pulled.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ltx_core.errors import ConfigError
from ltx_core.text_encoders.t5 import T5TextEncoder, load_t5
from ltx_pipelines.ltx_video.media import PaddedSize, load_condition, load_source
from ltx_pipelines.ltx_video.noise import GeneratorNoise, Noise
from ltx_pipelines.ltx_video.pipeline import LTXVEvent, LTXVideoPipeline, LTXVInputs, pipeline_for
from ltx_pipelines.ltx_video.sampler import LTXVContexts
from ltx_pipelines.ltx_video.settings import LTXVConfig
from ltx_pipelines.ltx_video.tokens import LTXVCondition
from ltx_pipelines.planning.plan import ModelFiles
from ltx_pipelines.running.recipe import fingerprint, versions
from ltx_pipelines.utils.media_io import write_png, write_video
from ltx_pipelines.utils.model_ledger import ModelLedger

logger = logging.getLogger(__name__)

DEFAULT_NEGATIVE_PROMPT = "poor quality, inconsistent motion, blurry, jittery, distorted"
PRECISIONS: dict[str, tuple[torch.dtype, str | None]] = {  # working dtype, quantisation
    "bfloat16": (torch.bfloat16, None),
    "float8_e4m3fn": (torch.bfloat16, "fp8-cast"),
    "mixed_precision": (torch.float32, None),
    "float32": (torch.float32, None),
}
Text = T5TextEncoder | LTXVContexts


@dataclass(frozen=True)
class LTXVRequest:
    """One clip. Sizes may be any; the defaults are those of the published command."""

    prompt: str
    negative_prompt: str = DEFAULT_NEGATIVE_PROMPT
    seed: int = 171198
    height: int = 704  # pixels
    width: int = 1216
    num_frames: int = 121
    frame_rate: float = 30.0  # frames per second
    input_media_path: str | None = None  # the clip to start from
    image_cond_noise_scale: float = 0.15
    conditioning_media_paths: tuple[str, ...] = ()
    conditioning_strengths: tuple[float, ...] | None = None  # None: all 1
    conditioning_start_frames: tuple[int, ...] = ()

    def __post_init__(self) -> None:
        for name in ("height", "width", "num_frames"):
            if getattr(self, name) < 1:
                raise ConfigError(f"{name} is {getattr(self, name)}, expected at least 1")
        paths, strengths, starts = self.conditioning_media_paths, self.strengths, self.conditioning_start_frames
        for name, values in (("conditioning_strengths", strengths), ("conditioning_start_frames", starts)):
            if len(values) != len(paths):
                raise ConfigError(f"{name} has {len(values)} entries for {len(paths)} conditioning media")
        for strength in strengths:
            if not 0 <= strength <= 1:
                raise ConfigError(f"conditioning strength is {strength}, expected 0 to 1")
        for start in starts:
            if not 0 <= start < self.num_frames:
                raise ConfigError(f"conditioning start frame is {start}, expected 0 to {self.num_frames - 1}")

    @property
    def strengths(self) -> tuple[float, ...]:
        if self.conditioning_strengths is None:
            return (1.0,) * len(self.conditioning_media_paths)
        return self.conditioning_strengths


def ledger_for(config: LTXVConfig, **session: Any) -> ModelLedger:
    """A session on the files of a config; ``session`` goes to the `ModelLedger` (``device``, ``policy``)."""
    if config.checkpoint_path is None:
        raise ConfigError("checkpoint_path is not given, expected an LTX-Video checkpoint")
    if config.pipeline_type == "multi-scale" and config.spatial_upscaler_model_path is None:
        raise ConfigError("spatial_upscaler_model_path is not given, expected one for a multi-scale config")
    files = ModelFiles(config.checkpoint_path, spatial_upsampler=config.spatial_upscaler_model_path)
    dtype, quantization = PRECISIONS[config.precision]
    return ModelLedger(files, dtype, quantization=quantization, **session)


def run(
    request: LTXVRequest,
    ledger: ModelLedger,
    config: LTXVConfig,
    text: Text | None = None,
    noise: Noise | None = None,
) -> Iterator[LTXVEvent]:
    """Make a clip, event by event. Close the iterator to cancel.

    ``text`` is a T5 encoder or the prompts' embeddings; without, the config's T5 is loaded for this call alone.
    ``noise`` is that of the seed unless given. Everything that can be refused is refused before weights are read.
    """
    pipeline = pipeline_for(ledger, config)
    size = PaddedSize.of(request.height, request.width, request.num_frames, ledger.scale_factors)
    inputs = read_inputs(request, size, ledger)
    pipeline.check(inputs)
    source = noise or GeneratorNoise(request.seed)
    yield LTXVEvent("text")
    inputs = replace(inputs, contexts=contexts_of(request, ledger, config, text))
    event = None
    for event in pipeline.stream(inputs, source):
        yield event
    assert event is not None
    yield LTXVEvent("decode", event.stage)
    frames = delivered(pipeline, event.latent, inputs, source, size)
    yield LTXVEvent("done", event.stage, event.step, event.total, event.sigma, event.state, frames)


def read_inputs(request: LTXVRequest, size: PaddedSize, ledger: ModelLedger) -> LTXVInputs:
    """The media of a request, fitted; contexts are placeholders until the prompts are encoded."""
    factors, nothing = ledger.scale_factors, torch.zeros(1, 1, 1)
    media = zip(request.conditioning_media_paths, request.conditioning_start_frames, request.strengths, strict=True)
    return LTXVInputs(
        contexts=LTXVContexts(nothing, negative=nothing),
        height=size.padded_height,
        width=size.padded_width,
        num_frames=size.padded_frames,
        frame_rate=request.frame_rate,
        conditions=tuple(
            LTXVCondition(load_condition(path, size, start, factors), start, strength)
            for path, start, strength in media
        ),
        media=load_source(request.input_media_path, size) if request.input_media_path else None,
        image_cond_noise_scale=request.image_cond_noise_scale,
    )


def contexts_of(request: LTXVRequest, ledger: ModelLedger, config: LTXVConfig, text: Text | None) -> LTXVContexts:
    """The embeddings of both prompts. Raises ``ConfigError`` when there is nothing to make them with."""
    if isinstance(text, LTXVContexts):
        return text
    threshold, words = config.prompt_enhancement_words_threshold, len(request.prompt.split())
    if words < threshold:
        logger.info(
            "the prompt has %d words; these models were trained on descriptions of %d and more", words, threshold
        )
    if text is None:
        folder = config.text_encoder_model_name_or_path
        if folder is None:
            raise ConfigError("text_encoder_model_name_or_path is not given, expected the folder of a T5 encoder")
        if ledger.policy != "resident":
            ledger.release("transformer", "video_encoder", "video_decoder", "latent_upsampler")
        text = load_t5(folder, ledger.dtype, ledger.device)
    embeddings, masks = text([request.negative_prompt, request.prompt], ledger.dtype)
    return LTXVContexts(embeddings[1:], masks[1:], embeddings[:1], masks[:1])


def delivered(
    pipeline: LTXVideoPipeline, latent: Tensor, inputs: LTXVInputs, noise: Noise, size: PaddedSize
) -> Iterator[Tensor]:
    """Decoded chunks ``[f, H, W, 3]`` of the requested size and length."""
    first = 0
    for chunk in pipeline.decode(latent, inputs, noise):
        cropped = size.crop(chunk, first)
        first += len(chunk)
        if len(cropped):
            yield cropped


def save(event: LTXVEvent, path: str | Path, frame_rate: float, metadata: dict[str, str] | None = None) -> Path:
    """Write the frames of a "done" event: an MP4, or a PNG of a single frame; returns the path written.

    ``metadata["recipe"]`` is kept in the file. Raises ``MediaError``.
    """
    if event.frames is None:
        raise ValueError(f"a {event.phase} event has no frames")
    path = Path(path)
    if event.state is not None and event.state.grid.frames == 1:
        path = path.with_suffix(".png")
        picture = torch.cat(list(event.frames))[0]
        write_png(path, picture.float().mul(255).round().to(torch.uint8).cpu(), metadata)
    else:
        write_video(path, event.frames, frame_rate, metadata=metadata)
    return path


def make_recipe(request: LTXVRequest, config: LTXVConfig, device: str = "cpu") -> dict[str, Any]:
    """All it takes to make the clip again, as plain JSON values."""
    files = [config.checkpoint_path, config.spatial_upscaler_model_path, request.input_media_path]
    paths = [path for path in (*files, *request.conditioning_media_paths) if path is not None]
    kind = "LTXMultiScalePipeline" if config.pipeline_type == "multi-scale" else "LTXVideoPipeline"
    return {
        "pipeline": kind,
        "request": asdict(request),
        "config": asdict(config),
        "versions": versions() | {"device": device},
        "files": {path: fingerprint(path) for path in paths},
    }
