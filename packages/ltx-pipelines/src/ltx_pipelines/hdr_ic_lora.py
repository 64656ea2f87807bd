"""A finished clip as HDR, through an adapter that was trained for it; without sound."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, ClassVar, cast, get_args

from ltx_core.errors import ConfigError
from ltx_pipelines.pipeline import TwoStagePipeline
from ltx_pipelines.planning.layout import apart_tiles
from ltx_pipelines.planning.plan import Plan, ReferenceCondition, TransferName
from ltx_pipelines.planning.schema import File, UsageError
from ltx_pipelines.planning.stages import distilled_stage, halve_size, refinement_stage
from ltx_pipelines.request import Request, condition

SIGMAS = (0.909375, 0.725, 0.0)  # of the second stage
TILES = ((2, 8), (2, 6), (2, 6))  # along frames, height and width, each with the latent cells that neighbours share


@dataclass(frozen=True)
class HDRRequest(Request):
    """A request with the text that came with the adapter."""

    text_embeddings: File | None = condition(
        None, "File of encoded text, as it comes with the adapter; no prompt then."
    )
    high_quality_hdr: bool = condition(False, "Make twice the frames and keep every second.", "--high-quality-hdr")


class HDRICLoraPipeline(TwoStagePipeline):
    """Two distilled stages on the picture alone that follow the clip; the second in tiles that are made apart.

    Size, length and rate are the clip's own: sides are continued to multiples of 64 and cut back. The adapter says the
    curve of the codes it makes (LogC3 or ACEScct).
    """

    accepts = frozenset({"prompt", "seed", "sigmas", "snap", "background", "video_path", "hdr"})
    uses = TwoStagePipeline.uses - {"crf", "distilled_loras"}
    usual: ClassVar[Mapping[str, Any]] = {"num_frames": 161, "hdr": "SRGB_LINEAR"}
    variant = "distilled"
    alone = "video_path prompt"

    def make_plan(self, request: HDRRequest) -> Plan:
        if request.video_path is None:
            raise ConfigError("video_path is not given, expected the clip to make HDR")
        if bool(request.prompt) == (request.text_embeddings is not None):
            raise UsageError("expected text_embeddings, a file that comes with the adapter, or a prompt in its place")
        transfer, factor = self.adapter()
        shape, shown = self.source_shapes(request, self.probe(request.video_path))
        if request.high_quality_hdr:
            shape = shape._replace(frames=2 * shape.frames - 1, fps=2 * shape.fps)
        clip = (ReferenceCondition(request.video_path, downscale_factor=factor),)
        first = distilled_stage(request, halve_size(shape), clip, self.loras)
        second = replace(refinement_stage(shape, clip, self.loras), sigmas=SIGMAS, delivered=shown, apart=True)
        second = replace(second, tiles=apart_tiles(shape, self.ledger.scale_factors, TILES))
        stages = [replace(stage, streams={"video": stage.streams["video"]}) for stage in (first, second)]
        embeddings = request.text_embeddings
        return self.finish_plan(request, stages, audio="none", transfer=transfer, text_embeddings=embeddings)

    def adapter(self) -> tuple[TransferName, int]:
        """The curve of the one adapter's codes, and how much smaller its references are."""
        if len(self.loras) != 1:
            raise ConfigError(f"{len(self.loras)} adapters are given, expected the one that makes clips HDR (--lora)")
        lora, path = self.ledger.lora(self.loras[0]), self.loras[0].path
        if lora.hdr_transform not in get_args(TransferName):
            expected = f"expected {' or '.join(get_args(TransferName))}, of an adapter that makes clips HDR"
            raise ConfigError(f"{path}: hdr_transform is {lora.hdr_transform}, {expected}")
        return cast(TransferName, lora.hdr_transform), lora.reference_downscale_factor
