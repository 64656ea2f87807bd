"""The ``training_strategy`` section of a configuration: modalities and their conditions, as data."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import pairwise
from typing import Annotated, Any, Literal, Self

from pydantic import BaseModel, ConfigDict, Discriminator, Field, PositiveInt, Tag, field_validator, model_validator

from ltx_core.components.schedulers import DISTILLED_SIGMAS

Probability = Annotated[float, Field(ge=0.0, le=1.0)]


class Strict(BaseModel):
    """A section in which an unknown key is an error."""

    model_config = ConfigDict(extra="forbid", frozen=True, use_attribute_docstrings=True, protected_namespaces=())


class FirstFrame(Strict):
    """The first latent frame is given."""

    type: Literal["first_frame"]
    probability: Probability = 1.0


class Prefix(Strict):
    """The first ``temporal_boundary`` latent frames (audio: latent steps) are given."""

    type: Literal["prefix"]
    temporal_boundary: int = Field(ge=1)
    probability: Probability = 1.0


class Suffix(Strict):
    """The last ``temporal_boundary`` latent frames (audio: latent steps) are given."""

    type: Literal["suffix"]
    temporal_boundary: int = Field(ge=1)
    probability: Probability = 1.0


class Keyframe(Strict):
    """The latent frame at ``latent_index`` is given in place, eight pictures; negative counts from the end."""

    type: Literal["keyframe"]
    latent_index: int
    probability: Probability = 1.0


class KeyframeImage(Strict):
    """One picture, encoded alone, stands in front of the target's tokens: what generation makes of a keyframe."""

    type: Literal["keyframe_image"]
    frame: int | Literal["any"]
    """Pixel frame that it is of; negative counts from the end, any draws one of those that are encoded."""
    latents_dir: str = "keyframe_latents"
    probability: Probability = 1.0


class SpatialCrop(Strict):
    """A rectangle of pixels ``(y1, x1, y2, x2)`` is given in every frame."""

    type: Literal["spatial_crop"]
    spatial_region: tuple[int, int, int, int]
    probability: Probability = 1.0

    @field_validator("spatial_region")
    @classmethod
    def _check_order(cls, region: tuple[int, int, int, int]) -> tuple[int, int, int, int]:
        y1, x1, y2, x2 = region
        if not (0 <= y1 < y2 and 0 <= x1 < x2):
            raise ValueError(f"spatial_region is {list(region)}, expected y1 < y2 and x1 < x2, none negative")
        return region


class Mask(Strict):
    """Tokens where the stored mask is above one half are given."""

    type: Literal["mask"]
    mask_dir: str
    probability: Probability = 1.0


class Reference(Strict):
    """Tokens of another clip stand in front of the target's, clean, in its coordinates."""

    type: Literal["reference"]
    latents_dir: str
    probability: Probability = 1.0


Condition = Annotated[
    FirstFrame | Prefix | Suffix | Keyframe | KeyframeImage | SpatialCrop | Mask | Reference,
    Field(discriminator="type"),
]
VIDEO_ONLY = ("first_frame", "spatial_crop", "keyframe", "keyframe_image")


class ModalityConfig(Strict):
    """One modality: generated, or frozen and only attended to. ``loss_weight`` scales its loss."""

    is_generated: bool
    latents_dir: str
    conditions: tuple[Condition, ...] = ()
    loss_weight: float = Field(default=1.0, ge=0.0)
    loss_mask_dir: str | None = None
    """Of video: how much the loss counts in every latent cell (loss_masks)."""

    def directories(self) -> Iterator[str]:
        """Directories its conditions read."""
        for condition in self.conditions:
            if isinstance(condition, Reference | KeyframeImage):
                yield condition.latents_dir
            elif isinstance(condition, Mask):
                yield condition.mask_dir
        if self.loss_mask_dir is not None:
            yield self.loss_mask_dir


class _Modalities(Strict):
    """Modalities that are made and given."""

    video: ModalityConfig | None = None
    audio: ModalityConfig | None = None
    balance: bool = False
    """Divide each modality's loss by the mean square of what it is to predict, so that neither drowns the other."""

    @model_validator(mode="after")
    def _check(self) -> Self:
        if not any(m is not None and m.is_generated for m in (self.video, self.audio)):
            raise ValueError("at least one of video and audio needs is_generated: true")
        if self.audio is not None and self.audio.loss_mask_dir is not None:
            raise ValueError("loss_mask_dir is for video, audio cannot have it")
        for condition in self.audio.conditions if self.audio else ():
            if condition.type in VIDEO_ONLY:
                raise ValueError(f"condition {condition.type!r} is for video, audio cannot have it")
        return self

    def data_sources(self) -> dict[str, str]:
        """Directory under the data root -> key in a batch."""
        sources = {"conditions": "conditions"}
        for name, modality in self.modalities():
            sources[modality.latents_dir] = f"{name}_latents"
        for _, modality in self.modalities():
            sources |= {directory: directory for directory in modality.directories()}
        return sources

    def modalities(self) -> Iterator[tuple[str, ModalityConfig]]:
        for name, modality in (("video", self.video), ("audio", self.audio)):
            if modality is not None:
                yield name, modality


class FlexibleConfig(_Modalities):
    """Any mix of generated and frozen modalities with conditions."""

    name: Literal["flexible"]


class DistillationConfig(_Modalities):
    """An adapter that does in the few steps of ``sigmas`` what the guided model does in many."""

    name: Literal["distillation"]
    guidance_scale: float = Field(default=3.0, ge=1.0)
    """What the teacher, the model without the adapter, is guided with."""
    substeps: PositiveInt = 3
    """Of the teacher in one step of the student."""
    sigmas: tuple[float, ...] = DISTILLED_SIGMAS
    """Noise levels of the student's steps, from 1 to 0."""

    @field_validator("sigmas")
    @classmethod
    def _check_falling(cls, sigmas: tuple[float, ...]) -> tuple[float, ...]:
        if len(sigmas) < 2 or any(later >= sigma for sigma, later in pairwise(sigmas)) or sigmas[-1] != 0:
            raise ValueError(f"sigmas are {list(sigmas)}, expected falling ones that end with 0")
        return sigmas


class TextToVideoConfig(Strict):
    """Deprecated form: video, perhaps with sound that shares its sigma."""

    name: Literal["text_to_video"] = "text_to_video"
    first_frame_conditioning_p: Probability = 0.1
    with_audio: bool = False
    audio_latents_dir: str = "audio_latents"

    def data_sources(self) -> dict[str, str]:
        sources = {"latents": "latents", "conditions": "conditions"}
        return sources | ({self.audio_latents_dir: "audio_latents"} if self.with_audio else {})


class VideoToVideoConfig(Strict):
    """Deprecated form: video with one reference video in front."""

    name: Literal["video_to_video"]
    first_frame_conditioning_p: Probability = 0.1
    reference_latents_dir: str = "reference_latents"

    def data_sources(self) -> dict[str, str]:
        return {"latents": "latents", "conditions": "conditions", self.reference_latents_dir: "ref_latents"}


def _tag(value: Any) -> str:
    name = value.get("name", "text_to_video") if isinstance(value, dict) else getattr(value, "name", None)
    return str(name)


StrategyConfig = Annotated[
    Annotated[FlexibleConfig, Tag("flexible")]
    | Annotated[DistillationConfig, Tag("distillation")]
    | Annotated[TextToVideoConfig, Tag("text_to_video")]
    | Annotated[VideoToVideoConfig, Tag("video_to_video")],
    Discriminator(_tag),
]


def keyframe_images(strategy: StrategyConfig) -> list[KeyframeImage]:
    """The conditions of a strategy that give pictures."""
    video = strategy.video if isinstance(strategy, _Modalities) else None
    return [] if video is None else [one for one in video.conditions if isinstance(one, KeyframeImage)]
