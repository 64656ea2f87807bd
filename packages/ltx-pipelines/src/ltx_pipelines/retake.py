"""Make a span of a clip anew: pictures, sound or both."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, ClassVar

from ltx_core.errors import ConfigError
from ltx_pipelines.pipeline import COMMON, GUIDED, SIZE, TIME, FullOrDistilledPipeline
from ltx_pipelines.planning.plan import Plan, RegionCondition, Source, StreamPlan
from ltx_pipelines.request import FullOrDistilledRequest, condition

if TYPE_CHECKING:
    from ltx_media.video import VideoInfo


@dataclass(frozen=True)
class RetakeRequest(FullOrDistilledRequest):
    """A request with the span that is made anew."""

    start_time: float | None = condition(None, "Where new content starts.", "--start-time", "--start", unit="seconds")
    end_time: float | None = condition(
        None, "Where new content ends.", "--end-time", "--end", unit="seconds", shown="the end"
    )
    regenerate_video: bool = condition(True, "Make new pictures, or leave them.", "--regenerate-video/--keep-video")
    regenerate_audio: bool = condition(True, "Make new sound, or leave it.", "--regenerate-audio/--keep-audio")


class RetakePipeline(FullOrDistilledPipeline):
    """One stage on the whole clip, in which only tokens that overlap ``[start_time, end_time)`` are noised.

    A stream that is not regenerated is frozen at its source. What is delivered outside the span is the source's own. A
    clip without sound gets new sound throughout.
    """

    accepts = (COMMON | GUIDED | {"video_path", "sparse_attention"}) - SIZE - TIME
    usual: ClassVar[Mapping[str, Any]] = {"num_frames": 121}  # the size is that of the clip
    variant = "distilled"

    def make_plan(self, request: RetakeRequest) -> Plan:
        if request.video_path is None or request.start_time is None:
            raise ConfigError("video_path and start_time are both needed")
        if not (request.regenerate_video or request.regenerate_audio):
            raise ConfigError("regenerate_video and regenerate_audio are both off, expected at least one on")
        clip = self.probe(request.video_path)
        region = RegionCondition(*span_of(request, clip))
        shape, shown = self.source_shapes(request, clip)
        anew = {"video": request.regenerate_video, "audio": request.regenerate_audio}
        stage = self.stage_of(request, shape)
        streams = {
            name: _stream(stream, region if anew[name] else None)
            for name, stream in stage.streams.items()
            if name == "video" or clip.has_audio
        }
        source = Source(request.video_path, 0.0, shape.duration)
        return self.finish_plan(
            request,
            [replace(stage, streams={**stage.streams, **streams}, delivered=shown)],
            sources=dict.fromkeys(streams, source),
        )


def span_of(request: RetakeRequest, clip: "VideoInfo") -> tuple[float, float]:
    """The seconds that are made anew: to the end of the clip where no end is given."""
    start, end, length = request.start_time or 0.0, request.end_time, clip.duration
    if start >= length:
        raise ConfigError(f"start_time is {start:g} s, the clip ends at {length:.3f} s")
    if end is not None and end > length + 0.5 / float(clip.fps):
        raise ConfigError(f"end_time is {end:g} s, the clip ends at {length:.3f} s; nearest valid: {length:.3f}")
    end = length if end is None else end
    if not 0 <= start < end:
        raise ConfigError(f"the span is {start:g} to {end:g} s, expected 0 <= start < end")
    return start, end


def _stream(stream: StreamPlan, region: RegionCondition | None) -> StreamPlan:
    if region is None:
        return StreamPlan(start="source", noise_scale=0.0, frozen=True)
    return replace(stream, start="source", conditions=(region,))
