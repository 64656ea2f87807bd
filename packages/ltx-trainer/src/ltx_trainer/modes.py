"""``ltx train --init``: a commented configuration for every way to train, filled in from a table or folder of clips."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import yaml

from ltx_core.errors import ConfigError, nearest_hint
from ltx_trainer.model_files import ModelFiles

ATTENTION = ("to_k", "to_q", "to_v", "to_out.0")
VIDEO = (*(f"{part}.{name}" for part in ("attn1", "attn2") for name in ATTENTION), "ff.net.0.proj", "ff.net.2")
AUDIO = tuple(f"audio_{name}" for name in VIDEO)
LISTENING = (*AUDIO, *(f"video_to_audio_attn.{name}" for name in ATTENTION))

MADE_VIDEO = "  video:\n    is_generated: true\n    latents_dir: latents\n"
MADE_AUDIO = "  audio:\n    is_generated: true\n    latents_dir: audio_latents\n"
GIVEN_VIDEO = (
    "  video:                        # given, not learned\n    is_generated: false\n    latents_dir: latents\n"
)
GIVEN_AUDIO = (
    "  audio:                        # given, not learned\n    is_generated: false\n    latents_dir: audio_latents\n"
)


def _conditions(*conditions: str) -> str:
    return "    conditions:\n" + "".join(f"      - {condition}\n" for condition in conditions)


@dataclass(frozen=True)
class Mode:
    """One way to train. ``sample`` is the condition of a validation sample, ``{video}`` and so on stand for files."""

    says: str  # what it teaches, for the first line and for `--help`
    strategy: str  # the lines below ``training_strategy``
    targets: tuple[str, ...] = ATTENTION
    columns: tuple[str, ...] = ("video",)  # of the table, beside the captions
    sample: tuple[dict[str, Any], ...] = ()
    metric: str = ""  # what a validation measures against the clip itself
    validation: str = ""  # further lines of that section
    data: str = ""  # further lines of a data set
    held_out: float = 0.0  # share of the clips
    name: str = "flexible"
    training_mode: str = "lora"
    rate: str = "1e-4"
    steps: int = 2000


MORE_SOUND = "  # audio: {is_generated: true, latents_dir: audio_latents}   # learns the sound of the clips as well\n"
SOUND_ONLY = "  generate_video: false\n"
SILENT = "  generate_audio: false\n"
ONSETS = "val/onsets: how well beats fall together, 1 is exactly"
PSNR = "val/psnr: decibels, over what was not given"

MODES: dict[str, Mode] = {
    "text-to-video": Mode("clips from captions, without sound", MADE_VIDEO + MORE_SOUND, VIDEO, validation=SILENT),
    "audio-video": Mode("clips with their sound from captions", MADE_VIDEO + MADE_AUDIO),
    "first-frame": Mode(
        "clips that begin with a given picture",
        MADE_VIDEO
        + _conditions("{type: first_frame, probability: 0.5}   # the other half learns from text alone")
        + MORE_SOUND,
        VIDEO,
        sample=({"type": "first_frame", "image_or_video": "{video}"},),
        metric=PSNR,
        validation=SILENT,
    ),
    "keyframes": Mode(
        "clips through given pictures: here the first and the last",
        MADE_VIDEO
        + _conditions(
            "{type: keyframe_image, frame: 0, probability: 0.9}    # of `ltx keyframe-interpolation`; else first_frame",
            "{type: keyframe_image, frame: -1, probability: 0.9}   # or any: one of data.sets.keyframes, drawn",
        )
        + MORE_SOUND,
        VIDEO,
        sample=(
            {"type": "keyframe_image", "image_or_video": "{video}", "frame": 0},
            {"type": "keyframe_image", "image_or_video": "{video}", "frame": -1},
        ),
        metric="val/psnr_keyframes: decibels at the given pictures; val/psnr: over the whole clip",
        validation=SILENT,
        data="      keyframes: [0, -1]            # frames that are encoded alone, as pictures given to `ltx` are\n",
    ),
    "extend": Mode(
        "clips that go on; `suffix` in place of `prefix` teaches what came before",
        MADE_VIDEO
        + _conditions("{type: prefix, temporal_boundary: 1}   # latent frames: 1 is 1 picture, each more is 8")
        + MORE_SOUND,
        VIDEO,
        sample=({"type": "prefix", "video": "{video}", "num_frames": 1},),
        metric=PSNR,
        validation=SILENT,
    ),
    "inpainting": Mode(
        "filling what a mask leaves black; white is given",
        MADE_VIDEO + _conditions("{type: mask, mask_dir: video_masks}"),
        VIDEO,
        ("video", "video_mask"),
        ({"type": "mask", "video": "{video}", "mask": "{video_mask}"},),
        PSNR,
        SILENT,
    ),
    "outpainting": Mode(
        "painting around a rectangle that is given",
        MADE_VIDEO
        + _conditions(
            "{type: spatial_crop, spatial_region: [0, 0, {half_height}, {half_width}]}   # y1 x1 y2 x2, pixels"
        ),
        VIDEO,
        sample=({"type": "spatial_crop", "video": "{video}", "spatial_region": "{region}"},),
        metric=PSNR,
        validation=SILENT,
    ),
    "audio-to-video": Mode(
        "pictures for a given sound",
        MADE_VIDEO + GIVEN_AUDIO,
        sample=({"type": "audio_to_video", "audio": "{video}"},),
        metric=PSNR,
    ),
    "video-to-audio": Mode(
        "sound for given pictures",
        GIVEN_VIDEO + MADE_AUDIO,
        LISTENING,
        sample=({"type": "video_to_audio", "video": "{video}"},),
        metric=ONSETS,
        rate="2e-4",
    ),
    "text-to-audio": Mode(
        "sound from captions", MADE_AUDIO, AUDIO, ("audio",), metric=ONSETS, validation=SOUND_ONLY, rate="2e-4"
    ),
    "ic-lora-video": Mode(
        "clips that follow another clip: its edges, a sketch, the same seen otherwise",
        MADE_VIDEO + _conditions("{type: reference, latents_dir: reference_latents}"),
        VIDEO,
        ("video", "reference_video"),
        ({"type": "reference", "video": "{reference_video}"},),
        PSNR,
        SILENT,
        rate="2e-4",
        steps=3000,
    ),
    "ic-lora-image": Mode(
        "clips that show what a picture shows; `reference_video` names pictures",
        MADE_VIDEO + _conditions("{type: reference, latents_dir: reference_latents}"),
        VIDEO,
        ("video", "reference_video"),
        ({"type": "reference", "video": "{reference_video}"},),
        PSNR,
        SILENT,
        rate="2e-4",
        steps=3000,
    ),
    "ic-lora-audio": Mode(
        "sound that follows another sound: a voice, a room, an instrument",
        MADE_AUDIO + _conditions("{type: reference, latents_dir: reference_audio_latents}"),
        AUDIO,
        ("audio", "reference_audio"),
        ({"type": "reference", "audio": "{reference_audio}"},),
        ONSETS,
        SOUND_ONLY,
        rate="2e-4",
        steps=3000,
    ),
    "full": Mode(
        "the whole model, not an adapter: much data, much memory",
        MADE_VIDEO + MADE_AUDIO,
        training_mode="full",
        rate="1e-5",
    ),
    "audio-adapter": Mode(
        "sound for an LTX-Video model, which stays as it is",
        MADE_VIDEO + MADE_AUDIO,
        training_mode="audio_adapter",
        held_out=0.1,
        rate="2e-4",
    ),
    "distill": Mode(
        "an adapter with which eight steps do what the model does in forty",
        "  guidance_scale: 3.0            # what the teacher is guided with\n"
        "  substeps: 3                    # of the teacher in one step of the student\n" + MADE_VIDEO + MADE_AUDIO,
        validation="  sigmas: distilled              # the student's eight steps\n",
        name="distillation",
    ),
}
NEUTRAL = "".join(
    f"  {name}_{kind}: {value}\n"
    for name in ("video", "audio")
    for kind, value in (("cfg_scale", 1), ("stg_scale", 0), ("modality_guidance_scale", 1))
)


PLACEHOLDERS = ModelFiles(Path("/path/to/ltx-2.3-22b-dev.safetensors"), Path("/path/to/gemma-3-12b-it"))
LTX_VIDEO = ModelFiles(Path("/path/to/ltxv-2b-0.9.6-dev-04-25.safetensors"), Path("/path/to/t5"))
AUDIO_VAE = Path("/path/to/ltx-2-audio-vae.safetensors")  # LTX-Video has none of its own


@dataclass(frozen=True)
class Facts:
    """Values that a configuration is filled in with."""

    models: ModelFiles = PLACEHOLDERS
    data: str = "clips.csv"
    size: tuple[int, int, int] = (768, 512, 49)  # width, height, frames
    fps: float = 24.0
    prompt: str = "TRIGGER a red boat drifts past the harbour wall, gulls cry"
    files: Mapping[str, str] | None = None  # of the first row, by column
    stg_blocks: tuple[int, ...] = (28,)  # of the transformer, perturbed for guidance
    has_video: bool | None = None  # whether the rows name videos; None: as the mode needs


def find_mode(name: str) -> Mode:
    """A mode. Raises `ConfigError` with the nearest name."""
    if name not in MODES:
        raise ConfigError(f"mode is {name!r}, expected one of {', '.join(MODES)}{nearest_hint(name, MODES)}")
    return MODES[name]


def configuration(name: str, facts: Facts) -> str:
    """The text of a configuration file for a mode. Raises `ConfigError` for an unknown mode."""
    mode, file = find_mode(name), f"{name}.yaml"
    width, height, _ = facts.size
    half = {"{half_height}": str(height // 64 * 32 or 32), "{half_width}": str(width // 64 * 32 or 32)}
    strategy = mode.strategy
    for place, value in half.items():
        strategy = strategy.replace(place, value)
    sound_only = mode.columns[0] == "audio" if facts.has_video is None else not facts.has_video
    return "".join(
        (
            f"# {name}: {mode.says}.\n",
            f"#   ltx train {file} --plan       the memory it needs\n",
            f"#   ltx train {file}              encodes the clips, trains, and goes on where it was stopped\n",
            "#   ltx train --schema              every key there is\n\n",
            _model(mode, facts),
            ADAPTERS[mode.training_mode].format(targets=_inline(list(mode.targets))),
            f"training_strategy:\n  name: {mode.name}\n{strategy}\n",
            _optimization(mode),
            _data(mode, facts, sound_only),
            _validation(mode, facts, half),
            "checkpoints:\n  interval: 250\n  keep_last_n: 2\n"
            "  save_training_state: full     # a run that was stopped goes on exactly\n\n"
            f"output_dir: outputs/{name}\n",
        )
    )


def _model(mode: Mode, facts: Facts) -> str:
    models = facts.models
    if mode.training_mode == "audio_adapter":
        models = LTX_VIDEO if models is PLACEHOLDERS else models
        models = replace(models, audio_vae_path=models.audio_vae_path or AUDIO_VAE)
    lines = [f"  {key}: {_inline(str(path))}\n" for key, path in vars(models).items() if path is not None]
    return f"model:\n{''.join(lines)}  training_mode: {mode.training_mode}\n\n"


#: The section of what is trained, by training mode.
ADAPTERS = {
    "full": "",
    "lora": (
        "lora:\n"
        "  rank: 32                      # more learns more, also of what you do not mean\n"
        "  alpha: 32                     # strength while training: alpha / rank\n"
        "  target_modules: {targets}\n\n"
    ),
    "audio_adapter": (
        "audio_adapter:\n"
        "  head_dim: 32                  # channels of a head of sound; the video has 64 or 128\n"
        "  blocks: null                  # with sound, such as [8, 16, 24]; null: all\n\n"
    ),
}


def _optimization(mode: Mode) -> str:
    return (
        f"optimization:\n  learning_rate: {mode.rate}\n  steps: {mode.steps}\n"
        "  warmup_steps: 20\n"
        "  batch_size: auto              # auto: chosen for this machine, and printed\n"
        "  enable_gradient_checkpointing: auto\n\n"
        "acceleration:\n  mixed_precision_mode: auto\n"
        + ("  quantization: auto\n  blocks_to_swap: auto\n" if mode.training_mode == "lora" else "")
        + "\n"
    )


def _data(mode: Mode, facts: Facts, sound_only: bool) -> str:
    width, height, frames = facts.size
    columns = ", ".join((*mode.columns, "caption"))
    size = (
        ""
        if sound_only
        else f"      resolution: {width}x{height}x{frames}   # width x height x frames; WxHxF;WxHxF offers two\n"
    )
    rate = "" if sound_only else f"      fps: {facts.fps:g}                   # sound stays in step\n"
    return (
        "data:\n  sets:\n"
        f"    - path: {_inline(facts.data)}   # columns: {columns}\n{size}{rate}"
        "      # trigger: ZORB            # a word put in front of every caption\n"
        f"{mode.data}"
        "  encode: auto                  # lazily: clips as they are drawn; ahead: all of them before the first step\n"
        f"  held_out_share: {mode.held_out}           # of the clips, never trained on, whose loss is measured\n\n"
    )


def _validation(mode: Mode, facts: Facts, half: Mapping[str, str]) -> str:
    if mode.training_mode == "audio_adapter":
        return "validation:\n  interval: 250                 # steps; the loss of held-out clips\n\n"
    width, height, frames = facts.size
    files = facts.files or {column: f"clips/one_{column}.mp4" for column in ("video", *mode.columns)}
    region = [0, 0, int(half["{half_height}"]), int(half["{half_width}"])]
    conditions = [_fill(condition, {**files, "region": region}) for condition in mode.sample]
    sample: dict[str, Any] = {"prompt": facts.prompt}
    if conditions:
        sample["conditions"] = conditions
    target = files.get(mode.columns[0]) or files.get("video")
    if target is not None:
        sample["truth"] = target
    text = yaml.safe_dump([sample], sort_keys=False, allow_unicode=True, width=10**6, default_flow_style=None)
    body = "".join(f"    {line}\n" for line in text.splitlines())
    metric = f"  # {mode.metric}\n" if mode.metric else ""
    is_student = mode.name == "distillation"
    steps = NEUTRAL if is_student else f"  inference_steps: 30\n  stg_blocks: {list(facts.stg_blocks)}\n"
    return (
        "validation:\n  interval: 250                 # steps; also before the first\n"
        f"{metric}  samples:\n{body}"
        f"  video_dims: [{width}, {height}, {frames}]\n  frame_rate: {facts.fps:g}\n"
        f"{mode.validation}{steps}\n"
    )


def _fill(condition: Mapping[str, Any], values: Mapping[str, Any]) -> dict[str, Any]:
    """A condition with the files of a row in place of ``{column}``."""
    return {
        key: values.get(value[1:-1], value) if isinstance(value, str) and value.startswith("{") else value
        for key, value in condition.items()
    }


def _inline(value: str | Sequence[str]) -> str:
    """A value as YAML on one line."""
    return (
        str(yaml.safe_dump(value, default_flow_style=True, width=10**6, allow_unicode=True))
        .removesuffix("\n...\n")
        .strip()
    )
