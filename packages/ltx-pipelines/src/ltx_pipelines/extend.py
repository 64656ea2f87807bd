"""Continue a clip, with its sound, after its end or before its beginning."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from math import ceil
from typing import Any, ClassVar, Literal

from ltx_core.errors import ConfigError
from ltx_pipelines.pipeline import COMMON, GUIDED, TIME, Pipeline
from ltx_pipelines.planning.plan import Plan, RegionCondition, Source
from ltx_pipelines.planning.stages import guided_stage
from ltx_pipelines.request import Request, condition

ROUNDED = 1e-3  # share of a frame by which seconds may be off


@dataclass(frozen=True)
class ExtendRequest(Request):
    """A request with the seconds to add."""

    extend_seconds: float | None = condition(None, "How much to add.", "--extend-seconds", "--seconds", unit="seconds")
    direction: Literal["after", "before"] = condition("after", "Where to add it: 'after' the clip or 'before' it.")


class ExtendPipeline(Pipeline):
    """One guided stage on the longer clip, in which the given part is held; what is delivered of it is its own.

    At least what was asked is added, at the nearest length that fits.
    """

    accepts = (COMMON | GUIDED | {"video_path", "sparse_attention"}) - TIME
    usual: ClassVar[Mapping[str, Any]] = {"num_frames": 121}

    def make_plan(self, request: ExtendRequest) -> Plan:
        if request.video_path is None or request.extend_seconds is None:
            raise ConfigError("video_path and extend_seconds are both needed")
        if request.extend_seconds <= 0:
            raise ConfigError(f"extend_seconds is {request.extend_seconds}, expected more than 0")
        clip = self.probe(request.video_path)
        more = ceil(request.extend_seconds * clip.fps - ROUNDED)
        shape, shown = self.source_shapes(request, clip, max(more, 1))
        added = (shape.frames - clip.frames) / shape.fps
        if request.direction == "after":
            source, region = Source(request.video_path), RegionCondition(shape.duration - added, shape.duration)
        else:
            source, region = Source(request.video_path, offset=added), RegionCondition(0.0, added)
        stage = guided_stage(request, self.ledger.defaults, shape, (), self.loras)
        given = ("video", "audio") if clip.has_audio else ("video",)
        held = {name: replace(stage.streams[name], start="source", conditions=(region,)) for name in given}
        stage = replace(stage, streams={**stage.streams, **held}, delivered=shown)
        return self.finish_plan(request, [stage], sources=dict.fromkeys(given, source))
