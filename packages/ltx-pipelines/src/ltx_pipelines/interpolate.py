"""Double the frame rate of a clip: the temporal latent upscaler, then refinement; its sound is kept."""

from collections.abc import Mapping
from dataclasses import replace
from typing import Any, ClassVar

from ltx_core.components.schedulers import TEMPORAL_ROUND_SIGMAS
from ltx_core.errors import ConfigError
from ltx_pipelines.dfr_pipeline import FASTEST, faster
from ltx_pipelines.pipeline import Pipeline
from ltx_pipelines.planning.layout import tiles_of
from ltx_pipelines.planning.plan import Plan, StreamPlan
from ltx_pipelines.planning.stages import encoded_clip
from ltx_pipelines.request import Request
from ltx_pipelines.upscale import PROMPT


class InterpolatePipeline(Pipeline):
    """A stage that goes on from the encoded clip with a new frame between any two, in tiles where it is large.

    The prompt is by default that of the recipe inside the clip. Size and sound are the clip's own.
    """

    accepts = frozenset({"prompt", "seed", "snap", "background", "video_path"})
    uses = Pipeline.uses | {"temporal_upsampler", "distilled_loras"}
    usual: ClassVar[Mapping[str, Any]] = {"num_frames": 121}
    variant = "distilled"
    alone = "video_path prompt"

    def make_plan(self, request: Request) -> Plan:
        if request.video_path is None:
            raise ConfigError("video_path is not given, expected the clip to make faster")
        clip = self.probe(request.video_path)
        if clip.frames < 2:
            raise ConfigError(f"{request.video_path} has one frame, expected at least two")
        shape, shown = self.source_shapes(request, clip)
        first, sources = encoded_clip(request.video_path, shape, shown, clip.has_audio)
        doubled = faster(shape)
        again = StreamPlan(start="previous", noise_scale=TEMPORAL_ROUND_SIGMAS[0])
        stage = replace(
            first,
            shape=doubled._replace(fps=min(doubled.fps, FASTEST)),
            delivered=faster(shown),
            sigmas=TEMPORAL_ROUND_SIGMAS,
            streams={**first.streams, "video": again},
            loras=self.loras + self.distilled_loras,
            tiles=tiles_of(doubled, self.ledger.scale_factors, self.tile_side()),
        )
        request = replace(request, prompt=self.prompt_of(request, PROMPT))
        return self.finish_plan(request, [first, stage], sources=sources, audio="source" if clip.has_audio else "none")
