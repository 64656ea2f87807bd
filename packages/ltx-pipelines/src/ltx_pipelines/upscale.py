"""Enlarge a clip 2 or 4 times: the latent upscaler, then refinement in tiles; its sound is kept."""

from collections.abc import Mapping
from dataclasses import replace
from typing import Any, ClassVar

from ltx_core.errors import ConfigError
from ltx_pipelines.pipeline import LARGE, Pipeline
from ltx_pipelines.planning.plan import Plan
from ltx_pipelines.planning.stages import encoded_clip
from ltx_pipelines.request import Request

PROMPT = "The same scene in fine detail, sharp and clean."


class UpscalePipeline(Pipeline):
    """Stages in tiles that go on from the encoded clip at a low noise level.

    The prompt is by default that of the recipe inside the clip. Length, rate and sound are the clip's own.
    """

    accepts = frozenset({"prompt", "seed", "snap", "background", "video_path"}) | LARGE - {"sparse_attention"}
    uses = Pipeline.uses | {"spatial_upsampler", "distilled_loras"}
    usual: ClassVar[Mapping[str, Any]] = {"num_frames": 121, "upscale": 2}
    variant = "distilled"
    alone = "video_path prompt"

    def make_plan(self, request: Request) -> Plan:
        if request.video_path is None:
            raise ConfigError("video_path is not given, expected the clip to enlarge")
        if request.upscale == 1:
            raise ConfigError("upscale is 1, expected 2 or 4; nearest valid: 2")
        clip = self.probe(request.video_path)
        shape, shown = self.source_shapes(request, clip)
        stage, sources = encoded_clip(request.video_path, shape, shown, clip.has_audio)
        stage = replace(stage, loras=self.loras + self.distilled_loras)
        request = replace(request, prompt=self.prompt_of(request, PROMPT))
        return self.finish_plan(request, [stage], sources=sources, audio="source" if clip.has_audio else "none")
