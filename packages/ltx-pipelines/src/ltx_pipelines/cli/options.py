"""Every option of the commands that make clips, as data: spelling, type, help, and which request field it fills."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

SEPARATOR = "\x1f"  # between the values of one option
MANY = 1000  # "any number" of values
ALONE = "alone"  # the value that stands on the line without an option


@dataclass(frozen=True)
class Opt:
    """One option. ``values`` is the least and the largest number of values it takes; 1 to 1 is typer's own affair."""

    flags: tuple[str, ...]
    help: str
    type: Any = str
    metavar: str | None = None
    values: tuple[int, int] = (1, 1)
    repeatable: bool = False
    default: Any = None
    shown_default: str | None = None
    panel: str = "Request"

    @property
    def packed(self) -> bool:
        return self.values != (1, 1)

    @property
    def is_path(self) -> bool:
        """Whether the (first) value is a file or folder to read."""
        return (self.metavar or "").startswith(("FILE", "FOLDER")) and self.panel != "Output"

    @property
    def name(self) -> str:
        """The long spelling, for messages."""
        return next(flag for flag in self.flags if flag.startswith("--")).split("/")[0]


def _panel(panel: str, options: Mapping[str, Opt]) -> dict[str, Opt]:
    return {name: Opt(**{**vars(option), "panel": panel}) for name, option in options.items()}


REQUEST = _panel(
    "Request",
    {
        "prompt": Opt(("--prompt", "-p"), "What to make."),
        "output": Opt(
            ("--output-path", "--output", "-o"),
            "File to write: .mp4, .mov, .gif, .webp, .wav, or a folder for PNG files.",
            metavar="FILE",
            shown_default="from prompt and seed",
        ),
        "seed": Opt(("--seed", "-s"), "Seed of the noise; -1 draws one and prints it.", int, shown_default="10"),
        "negative_prompt": Opt(
            ("--negative-prompt",), "What guidance pushes away from.", shown_default="a list of defects"
        ),
        "num_inference_steps": Opt(
            ("--num-inference-steps", "--steps"), "Steps of the guided stage.", int, shown_default="by model"
        ),
        "sigmas": Opt(
            ("--sigmas",),
            "Noise levels of the first stage, falling, instead of a schedule.",
            metavar="SIGMA...",
            values=(2, MANY),
        ),
        "enhance_prompt": Opt(("--enhance-prompt",), "Let a language model write the prompt out first.", bool),
        "prompt_enhancer": Opt(
            ("--prompt-enhancer-gemma-root",),
            "Gemma folder for that.",
            metavar="FOLDER",
            shown_default="the text encoder",
        ),
    },
)
MODEL = _panel(
    "Model",
    {
        "model": Opt(
            ("--model", "-m"),
            "File, folder, hub id (owner/name) or 'tiny'.",
            shown_default="$LTX_MODEL, else tiny",
            metavar="MODEL",
        ),
        "checkpoint_path": Opt(
            ("--checkpoint-path", "--distilled-checkpoint-path"), "Single-file model.", metavar="FILE"
        ),
        "gemma_root": Opt(("--gemma-root",), "Gemma folder, where it is not beside the model.", metavar="FOLDER"),
        "transformer": Opt(("--transformer-path",), "Split model: transformer and connectors.", metavar="FILE"),
        "text_encoder": Opt(("--text-encoder-path",), "Split model: text encoder in one file.", metavar="FILE"),
        "video_vae": Opt(("--video-vae-path",), "Video VAE, instead of the model's own.", metavar="FILE"),
        "audio_vae": Opt(("--audio-vae-path",), "Split model: audio VAE and vocoder.", metavar="FILE"),
        "duration_head": Opt(("--duration-head-path",), "Split model: duration head.", metavar="FILE"),
        "loras": Opt(
            ("--lora",),
            "Adapter for the transformer; strength 1 if not given.",
            metavar="FILE [STRENGTH]",
            values=(1, 2),
            repeatable=True,
        ),
    },
)
SECOND_STAGE = _panel(
    "Model",
    {
        "spatial_upsampler": Opt(
            ("--spatial-upsampler-path",), "Latent upscaler x2, where it is not beside the model.", metavar="FILE"
        ),
        "distilled_loras": Opt(
            ("--distilled-lora",),
            "Adapter of the second stage, where it is not beside the model.",
            metavar="FILE [STRENGTH]",
            values=(1, 2),
            repeatable=True,
        ),
    },
)
ROUNDS = _panel(
    "Model",
    {
        "temporal_upsampler": Opt(("--temporal-upsampler-path",), "Latent upsampler in time.", metavar="FILE"),
        "detailing_loras": Opt(
            ("--detailing-lora",),
            "In-context adapter that lets the second stage follow the first.",
            metavar="FILE [STRENGTH]",
            values=(1, 2),
            repeatable=True,
        ),
    },
)
HQ = _panel(
    "Model",
    {
        "distilled_strength_1": Opt(
            ("--distilled-lora-strength-stage-1",),
            "Strength of the distilled adapter in the first stage.",
            float,
            shown_default="0.25",
        ),
        "distilled_strength_2": Opt(
            ("--distilled-lora-strength-stage-2",),
            "Strength of the distilled adapter in the second stage.",
            float,
            shown_default="0.5",
        ),
    },
)
SIZE = _panel(
    "Size and time",
    {
        "height": Opt(("--height", "-H"), "Pixels.", int, shown_default="by pipeline"),
        "width": Opt(("--width", "-W"), "Pixels.", int, shown_default="by pipeline"),
        "num_frames": Opt(("--num-frames", "--frames", "-f"), "Frames, 8k+1.", int, shown_default="121"),
        "duration": Opt(("--duration",), "Seconds, instead of a number of frames.", float),
        "auto_duration": Opt(
            ("--auto-duration",),
            "Let the model choose the length within these seconds.",
            metavar="MIN MAX",
            values=(2, 2),
        ),
        "frame_rate": Opt(("--frame-rate", "--fps"), "Frames per second.", float, shown_default="24"),
        "snap": Opt(
            ("--snap/--no-snap",), "Move sizes and frame counts to the nearest valid ones.", bool, default=True
        ),
    },
)
CONDITIONS = _panel(
    "Conditions",
    {
        "images": Opt(
            ("--image", "-i"),
            "Still at a frame; CRF 0 keeps its pixels.",
            metavar="FILE [FRAME [STRENGTH [CRF]]]",
            values=(1, 4),
            repeatable=True,
        ),
        "generated_keyframes": Opt(
            ("--num-generated-keyframes",), "Evenly spaced keyframes the model makes itself.", int
        ),
        "video_conditioning": Opt(
            ("--video-conditioning",),
            "Reference clip for an in-context adapter.",
            metavar="FILE [STRENGTH]",
            values=(1, 2),
            repeatable=True,
        ),
        "conditioning_attention_mask": Opt(
            ("--conditioning-attention-mask",),
            "Grey clip, white = follow the reference, and a factor for it.",
            metavar="FILE [STRENGTH]",
            values=(1, 2),
        ),
        "conditioning_attention_strength": Opt(
            ("--conditioning-attention-strength",), "How much the clip looks at the reference, 0 to 1.", float
        ),
        "skip_stage_2": Opt(("--skip-stage-2",), "Deliver the first stage, at half the size.", bool),
        "audio_path": Opt(("--audio-path", "--audio"), "Sound, or a clip with sound.", metavar="FILE"),
        "audio_start_time": Opt(("--audio-start-time",), "Seconds into the sound.", float, shown_default="0"),
        "audio_max_duration": Opt(
            ("--audio-max-duration",), "Seconds of sound to use.", float, shown_default="the clip's"
        ),
        "video_path": Opt(("--video-path", "--video"), "Source clip.", metavar="FILE"),
        "start_time": Opt(("--start-time", "--start"), "Seconds where new content starts.", float),
        "end_time": Opt(("--end-time", "--end"), "Seconds where new content ends.", float),
        "keep_video": Opt(("--keep-video",), "Leave the pictures as they are.", bool),
        "keep_audio": Opt(("--keep-audio",), "Leave the sound as it is.", bool),
        "full_model": Opt(
            ("--full-model/--distilled-model",),
            "Schedule and guidance of a full model, or the distilled eight steps.",
            bool,
            shown_default="by file name",
        ),
        "extend_seconds": Opt(("--extend-seconds", "--seconds"), "Seconds to add.", float),
        "reference_video_path": Opt(("--reference-video",), "Clip with the voice to keep.", metavar="FILE"),
        "reference_strength": Opt(("--reference-strength",), "How closely to follow it, 0 to 1.", float),
        "temporal_upsample_rounds": Opt(
            ("--temporal-upsample-rounds",), "0 to 2, each doubles the frame rate.", int, shown_default="0"
        ),
        "direction": Opt(("--direction",), "'after' the clip or 'before' it.", shown_default="after"),
    },
)
MEMORY = _panel(
    "Memory and speed",
    {
        "policy": Opt(
            ("--policy",), "auto, resident, sequential or streamed: which weights stay.", shown_default="auto"
        ),
        "offload": Opt(("--offload",), "none, cpu or disk: other names for resident, streamed, sequential."),
        "quantization": Opt(("--quantization",), "Keep the transformer's weights in a smaller type.", metavar="NAME"),
        "compile_blocks": Opt(("--compile",), "Fuse what a block computes; the first step waits for it.", bool),
        "device": Opt(("--device",), "cuda, cuda:1, mps, cpu.", shown_default="the best there is"),
        "dtype": Opt(
            ("--dtype",), "auto (what the device computes fast), bfloat16, float32 or float16.", shown_default="auto"
        ),
    },
)
BATCHING = _panel(
    "Memory and speed",
    {"max_batch_size": Opt(("--max-batch-size",), "Guidance passes per transformer call, 1 to 4.", int)},
)
SHOWING = _panel(
    "Output",
    {
        "contact_sheet": Opt(("--contact-sheet",), "Also write frames over a spectrogram to this PNG.", metavar="FILE"),
        "keep_latents": Opt(("--keep-latents",), "Keep the first stage beside the clip, for `ltx finish`.", bool),
        "first_stage": Opt(
            ("--first-stage",), "Stop after the first stage, at half the size; `ltx finish` goes on from it.", bool
        ),
        "json": Opt(("--json",), "One JSON object per event on standard output.", bool),
        "quiet": Opt(("--quiet", "-q"), "Print errors only.", bool),
    },
)


def _guidance(stream: str, cross: str, cfg: str, panel: str) -> dict[str, Opt]:
    fields = {
        "cfg_scale": (f"--{stream}-cfg-guidance-scale", f"Towards the prompt, 1 = off ({cfg} by default).", float),
        "stg_scale": (f"--{stream}-stg-guidance-scale", "Away from perturbed self-attention, 0 = off.", float),
        "rescale_scale": (f"--{stream}-rescale-scale", "Keep the spread of the plain prediction, 0 = off.", float),
        "modality_scale": (f"--{cross}-guidance-scale", f"Away from {stream} without its partner, 1 = off.", float),
        "skip_step": (f"--{stream}-skip-step", "Steps that reuse the last guided result.", int),
    }
    options = {f"{stream}_{name}": Opt((flag,), text, kind) for name, (flag, text, kind) in fields.items()}
    options[f"{stream}_stg_blocks"] = Opt(
        (f"--{stream}-stg-blocks",), "Blocks perturbed for that.", metavar="[BLOCK...]", values=(0, MANY)
    )
    return _panel(panel, options)


GUIDANCE = {
    "video": _guidance("video", "a2v", "3", "Guidance of the picture"),
    "audio": _guidance("audio", "v2a", "7", "Guidance of the sound"),
}
OPTIONS: dict[str, Opt] = {
    **REQUEST,
    **MODEL,
    **SECOND_STAGE,
    **ROUNDS,
    **HQ,
    **SIZE,
    **CONDITIONS,
    **GUIDANCE["video"],
    **GUIDANCE["audio"],
    **BATCHING,
    **MEMORY,
    **SHOWING,
}
BY_FLAG: dict[str, Opt] = {flag: option for option in OPTIONS.values() for flag in option.flags}
