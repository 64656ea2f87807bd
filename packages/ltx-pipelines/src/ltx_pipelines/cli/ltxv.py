"""`ltx ltxv`: clips with the models of the LTX-Video 0.9 family, which have no sound."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer

from ltx_pipelines.cli import options as o
from ltx_pipelines.cli.line import PackingCommand, split_values, with_options

if TYPE_CHECKING:
    from ltx_pipelines.cli.progress import Reporter
    from ltx_pipelines.ltx_video.command import LTXVRequest
    from ltx_pipelines.ltx_video.settings import LTXVConfig
    from ltx_pipelines.utils.model_ledger import ModelLedger

HELP = """Clips with the models of the LTX-Video 0.9 family.

--pipeline-config is a YAML file, or the name of published settings such as 13b-0.9.8-distilled. Sizes and lengths may
be any: the clip is made at the next size the model can hold and cut back.
"""
SHARED = (
    *("prompt", "output", "seed", "negative_prompt", "height", "width", "num_frames", "frame_rate"),
    *("checkpoint_path", "spatial_upsampler", "text_encoder", "images"),
    *("policy", "offload", "device", "json", "quiet"),
)
OWN = {
    "config": o.Opt(("--pipeline-config",), "YAML file or published settings.", metavar="NAME"),
    "input_media_path": o.Opt(("--input-media-path",), "Clip to start from.", metavar="FILE", panel="Conditions"),
    "image_cond_noise_scale": o.Opt(
        ("--image-cond-noise-scale",), "Fresh noise on held frames.", float, shown_default="0.15", panel="Conditions"
    ),
}
REQUEST_FIELDS = (
    *("prompt", "seed", "negative_prompt", "height", "width", "num_frames", "frame_rate"),
    *("input_media_path", "image_cond_noise_scale"),
)
DEFAULT_CONFIG = "13b-0.9.8-distilled"


def make(given: dict[str, Any]) -> None:
    """Run one line from options to file."""
    from ltx_core.errors import ConfigError
    from ltx_pipelines.cli.generate import free_output
    from ltx_pipelines.cli.progress import Reporter, style_of
    from ltx_pipelines.cli.session import OFFLOAD, checked_device, one_of
    from ltx_pipelines.ltx_video.command import ledger_for

    reporter = Reporter(style_of(given))
    if not given.get("prompt", "").strip():
        raise ConfigError("prompt is empty, expected a description of the clip")
    config = config_of(given)
    request = request_of(given)
    policy = OFFLOAD.get(one_of(given, "offload", OFFLOAD) or "", given.get("policy", "auto"))
    ledger = ledger_for(config, device=checked_device(given.get("device")), policy=policy)
    output = Path(given.get("output") or free_output(request.prompt, request.seed, ".mp4"))
    execute(request, config, ledger, output, reporter)


def config_of(given: dict[str, Any]) -> LTXVConfig:
    """The settings a line names, with the files it names instead."""
    from ltx_pipelines.ltx_video.settings import find_config

    config = find_config(given.get("config", DEFAULT_CONFIG))
    slots = {
        "checkpoint_path": "checkpoint_path",
        "spatial_upsampler": "spatial_upscaler_model_path",
        "text_encoder": "text_encoder_model_name_or_path",
    }
    return replace(config, **{field: given[name] for name, field in slots.items() if name in given})


def request_of(given: dict[str, Any]) -> LTXVRequest:
    """The request a line makes."""
    from ltx_pipelines.cli.session import drawn_seed
    from ltx_pipelines.ltx_video.command import LTXVRequest

    fields = {name: given[name] for name in REQUEST_FIELDS if name in given}
    if "seed" in fields:
        fields["seed"] = drawn_seed(fields["seed"])
    if "input_media_path" in fields:
        fields["input_media_path"] = str(Path(fields["input_media_path"]).absolute())
    unpacked = [split_values(o.OPTIONS["images"], one, (str, int, float)) for one in given.get("images", ())]
    if any(len(values) > 3 for values in unpacked):
        raise typer.BadParameter("these models know no CRF, expected FILE [FRAME [STRENGTH]]", param_hint="--image")
    full = [(*values, *((None, 0, 1.0)[len(values) :])) for values in unpacked]
    return LTXVRequest(
        **fields,
        conditioning_media_paths=tuple(path for path, _, _ in full),
        conditioning_start_frames=tuple(frame for _, frame, _ in full),
        conditioning_strengths=tuple(strength for _, _, strength in full),
    )


def execute(request: LTXVRequest, config: LTXVConfig, ledger: ModelLedger, output: Path, reporter: Reporter) -> None:
    """Run a request to its file."""
    from ltx_pipelines.cli.job import VIDEO, Result, check_name, summary
    from ltx_pipelines.ltx_video.command import make_recipe, run, save
    from ltx_pipelines.utils.media_io import RECIPE_KEY

    check_name(output, VIDEO)
    reporter.note(f"{config.pipeline_type} with {config.checkpoint_path} on {ledger.device}, seed {request.seed}")
    with reporter.running():
        for event in run(request, ledger, config):
            reporter.event(event)
        recipe = make_recipe(request, config, str(ledger.device))
        written = save(event, output, request.frame_rate, {RECIPE_KEY: json.dumps(recipe, ensure_ascii=False)})
        seconds = reporter.finish()
    duration = request.num_frames / request.frame_rate
    what = f"{request.num_frames} frames of {request.width} x {request.height}, {duration:.2f} s"
    speed = f"{request.num_frames / seconds:.3g} frames/s"
    summary(reporter, Result(written, what, speed, seconds, request.seed, ledger.device))


app = typer.Typer(add_completion=False, rich_markup_mode="rich")
app.command("ltxv", cls=PackingCommand, help=HELP)(with_options(make, SHARED, extra=OWN))
