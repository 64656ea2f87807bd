"""The ``validation`` section of a configuration: which samples to make while training, and how they are guided."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import Field, PositiveFloat, PositiveInt, ValidationInfo, field_validator, model_validator

from ltx_core.components.guiders import DEFAULT_NEGATIVE_PROMPT
from ltx_core.textfiles import path_of
from ltx_trainer.training_strategies.config import Strict

Scale = Annotated[float, Field(ge=1.0)]
Strength = Annotated[float, Field(ge=0.0)]


class SampleFirstFrame(Strict):
    """The first frame is given."""

    type: Literal["first_frame"]
    image_or_video: str
    """An image, or a video whose first frame is taken."""

    def targets(self) -> str:
        return "video"


class _OneSource(Strict):
    """A condition read from one file, of a video or of sound."""

    video: str | None = None
    """A video file; conditions the video."""
    audio: str | None = None
    """A sound file; conditions the audio."""

    @model_validator(mode="after")
    def _one_source(self) -> _OneSource:
        if (self.video is None) == (self.audio is None):
            raise ValueError("expected exactly one of video and audio")
        return self

    def targets(self) -> str:
        return "video" if self.video is not None else "audio"


class SamplePrefix(_OneSource):
    """The beginning is given."""

    type: Literal["prefix"]
    num_frames: int | None = Field(default=None, ge=1)
    """Frames of the video to give; all of them when not set."""
    duration: PositiveFloat | None = None
    """Seconds of the sound to give; all of it when not set."""


class SampleSuffix(_OneSource):
    """The end is given."""

    type: Literal["suffix"]
    num_frames: int | None = Field(default=None, ge=1)
    """Frames of the video to give; all of them when not set."""
    duration: PositiveFloat | None = None
    """Seconds of the sound to give; all of it when not set."""


class SampleKeyframe(Strict):
    """One latent frame of a video is given in place."""

    type: Literal["keyframe"]
    video: str
    """The video it is taken from."""
    latent_index: int
    """Which one; negative counts from the end."""

    def targets(self) -> str:
        return "video"


class SampleKeyframeImage(Strict):
    """One picture is given at a frame, as generation takes keyframes."""

    type: Literal["keyframe_image"]
    image_or_video: str
    """An image, or a video of which that frame is taken."""
    frame: int
    """Pixel frame; negative counts from the end."""

    def targets(self) -> str:
        return "video"


class SampleSpatialCrop(Strict):
    """A rectangle of every frame is given."""

    type: Literal["spatial_crop"]
    video: str
    """The video it is taken from."""
    spatial_region: tuple[int, int, int, int]
    """Pixels (y1, x1, y2, x2)."""

    def targets(self) -> str:
        return "video"


class SampleMask(_OneSource):
    """Whatever lies where the mask is white is given."""

    type: Literal["mask"]
    mask: str
    """An image or video for video; a sound file or a stored tensor for audio."""


class SampleReference(_OneSource):
    """Another clip is seen beside the target."""

    type: Literal["reference"]
    downscale_factor: PositiveInt = 1
    """Sides of the reference are the target's divided by this."""
    temporal_scale_factor: PositiveInt = 1
    """The reference keeps its first frame and every n-th from the second."""
    include_in_output: bool = False
    """Show the reference left of the result."""


class SampleVideoToAudio(Strict):
    """The whole video is given, sound is made for it."""

    type: Literal["video_to_audio"]
    video: str

    def targets(self) -> str:
        return "video"


class SampleAudioToVideo(Strict):
    """The whole sound is given, video is made for it."""

    type: Literal["audio_to_video"]
    audio: str

    def targets(self) -> str:
        return "audio"


SampleCondition = Annotated[
    SampleFirstFrame
    | SamplePrefix
    | SampleSuffix
    | SampleKeyframe
    | SampleKeyframeImage
    | SampleSpatialCrop
    | SampleMask
    | SampleReference
    | SampleVideoToAudio
    | SampleAudioToVideo,
    Field(discriminator="type"),
]


class ValidationSample(Strict):
    """One sample to make at every validation. Its conditions name files, not directories."""

    prompt: str
    conditions: tuple[SampleCondition, ...] = ()
    video_dims: tuple[PositiveInt, PositiveInt, PositiveInt] | None = None
    """Width, height, frames; the section's when not set."""
    seed: int | None = None
    """The section's when not set."""
    truth: str | None = None
    """The clip or sound that the sample should come to: shown below it, and measured against it."""

    @model_validator(mode="after")
    def _frozen_modality(self) -> ValidationSample:
        frozen = [c for c in self.conditions if isinstance(c, SampleVideoToAudio | SampleAudioToVideo)]
        if len(frozen) > 1:
            raise ValueError("video_to_audio and audio_to_video exclude each other and themselves")
        for whole in frozen:
            rival = next((c for c in self.conditions if c is not whole and c.targets() == whole.targets()), None)
            if rival is not None:
                raise ValueError(f"{rival.type} conditions the {whole.targets()}, which {whole.type} gives whole")
        return self


class ValidationConfig(Strict):
    """Samples made while training, at fixed seeds, and the held-out loss beside them."""

    samples: tuple[ValidationSample, ...] = ()
    """What to make."""
    prompts: tuple[str, ...] = ()
    """Deprecated: use samples."""
    images: tuple[str, ...] | None = None
    """Deprecated: first frames, one per prompt."""
    reference_videos: tuple[str, ...] | None = None
    """Deprecated: references, one per prompt."""
    reference_downscale_factor: PositiveInt = 1
    """Deprecated: of reference_videos."""
    include_reference_in_output: bool = False
    """Deprecated: of reference_videos."""
    negative_prompt: str = DEFAULT_NEGATIVE_PROMPT
    """What guidance moves away from."""
    video_dims: tuple[PositiveInt, PositiveInt, PositiveInt] = (960, 544, 89)
    """Width, height, frames."""
    frame_rate: PositiveFloat = 24.0
    """Frames per second."""
    seed: int = 42
    inference_steps: PositiveInt = 30
    sigmas: Literal["distilled"] | tuple[float, ...] | None = None
    """Noise levels from 1 to 0 in place of the schedule; distilled: those of the eight steps of distilled models."""
    interval: PositiveInt | None = 100
    """Optimizer steps between validations; null for none."""
    video_cfg_scale: Scale = 3.0
    """Classifier-free guidance; 1 is off."""
    audio_cfg_scale: Scale = 7.0
    """Classifier-free guidance; 1 is off."""
    video_stg_scale: Strength = 1.0
    """Spatio-temporal guidance; 0 is off."""
    audio_stg_scale: Strength = 1.0
    """Spatio-temporal guidance; 0 is off."""
    stg_blocks: tuple[int, ...] | None = (28,)
    """Blocks perturbed for it; null for all."""
    guidance_rescale: float = Field(default=0.7, ge=0.0, le=1.0)
    """Share of the guided prediction brought back to the plain one's deviation."""
    video_modality_guidance_scale: Scale = 3.0
    """Guidance towards the sound; 1 is off."""
    audio_modality_guidance_scale: Scale = 3.0
    """Guidance towards the video; 1 is off."""
    generate_audio: bool = True
    generate_video: bool = True
    skip_initial_validation: bool = False
    """Do not validate before the first step."""

    @model_validator(mode="before")
    @classmethod
    def _migrate(cls, raw: Any) -> Any:
        if not isinstance(raw, dict):
            return raw
        raw = dict(raw)
        _migrate_guidance(raw)
        if not raw.get("samples") and isinstance(raw.get("prompts"), list | tuple):
            raw["samples"] = _samples_of_prompts(raw)
        return raw

    @field_validator("images", "reference_videos")
    @classmethod
    def _one_per_prompt(cls, files: tuple[str, ...] | None, info: ValidationInfo) -> tuple[str, ...] | None:
        prompts = info.data.get("prompts", ())
        if files is None:
            return None
        if len(files) != len(prompts):
            raise ValueError(f"{len(files)} files for {len(prompts)} prompts, expected one for each")
        for file in files:
            if not path_of(file).is_file():
                raise ValueError(f"{file} is no file")
        return files

    @model_validator(mode="after")
    def _makes_something(self) -> ValidationConfig:
        if (self.samples or self.prompts) and not (self.generate_audio or self.generate_video):
            raise ValueError("generate_audio and generate_video are both false, samples would be empty")
        return self


def _migrate_guidance(raw: dict[str, Any]) -> None:
    """Rename the keys from when both modalities shared their scales."""

    def refuse_mixture(old: str, new: tuple[str, ...]) -> None:
        mixed = [name for name in new if name in raw]
        if mixed:
            raise ValueError(f"{old} is the old form of {', '.join(new)}; it cannot stand beside {mixed[0]}")

    if "guidance_scale" in raw:
        refuse_mixture("guidance_scale", ("video_cfg_scale", "audio_cfg_scale"))
        raw["video_cfg_scale"] = raw["audio_cfg_scale"] = raw.pop("guidance_scale")
    if "stg_scale" in raw or "stg_mode" in raw:
        refuse_mixture("stg_scale", ("video_stg_scale", "audio_stg_scale"))
        scale, mode = raw.pop("stg_scale", 1.0), raw.pop("stg_mode", "stg_av")
        if mode not in ("stg_av", "stg_v"):
            raise ValueError(f"stg_mode is {mode!r}, expected stg_av or stg_v")
        raw["video_stg_scale"], raw["audio_stg_scale"] = scale, scale if mode == "stg_av" else 0.0


def _samples_of_prompts(raw: dict[str, Any]) -> list[dict[str, Any]]:
    """Samples that say what the lists of prompts, images and reference videos say."""
    samples = []
    for index, prompt in enumerate(raw["prompts"]):
        conditions: list[dict[str, Any]] = []
        images, references = (_item(raw.get(key), index) for key in ("images", "reference_videos"))
        if images is not None:
            conditions.append({"type": "first_frame", "image_or_video": images})
        if references is not None:
            reference = {"type": "reference", "video": references}
            reference["downscale_factor"] = raw.get("reference_downscale_factor", 1)
            reference["include_in_output"] = raw.get("include_reference_in_output", False)
            conditions.append(reference)
        samples.append({"prompt": prompt, "conditions": conditions})
    return samples


def _item(values: Any, index: int) -> Any:
    return values[index] if isinstance(values, list | tuple) and index < len(values) else None
