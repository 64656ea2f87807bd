"""`ltx ltxv`: clips with the models of the LTX-Video 0.9 family, which have no sound."""

from __future__ import annotations

import json
import random
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ltx_pipelines.cli.command import Command
from ltx_pipelines.cli.fields import every_option
from ltx_pipelines.pipeline import DRAWN
from ltx_pipelines.planning.schema import File, UsageError, option, options_of

if TYPE_CHECKING:
    from ltx_pipelines.cli.progress import Reporter
    from ltx_pipelines.ltx_video.command import LTXVRequest
    from ltx_pipelines.ltx_video.settings import LTXVConfig
    from ltx_pipelines.utils.model_ledger import ModelLedger

ABOUT = """Clips with the models of the LTX-Video 0.9 family.

--pipeline-config is a YAML file, or the name of published settings such as 13b-0.9.8-distilled. Sizes and lengths may
be any: the clip is made at the next size the model can hold and cut back.
"""
SHARED = (
    *("prompt", "output", "seed", "negative_prompt", "height", "width", "num_frames", "frame_rate"),
    *("checkpoint_path", "spatial_upsampler", "text_encoder", "images"),
    *("backend", "policy", "offload", "device", "json", "quiet"),
)


@dataclass(frozen=True)
class Own:
    """The options that other commands do not have."""

    config: str | None = option(None, "YAML file or published settings.", "--pipeline-config", metavar="NAME")
    input_media_path: File | None = option(None, "Clip to start from.", group="Conditions")
    image_cond_noise_scale: float | None = option(None, "Fresh noise on held frames.", shown="0.15", group="Conditions")


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
    from ltx_pipelines.ltx_video.command import ledger_for
    from ltx_pipelines.running.networks import OFFLOAD, checked_device

    reporter = Reporter(style_of(given))
    if not given.get("prompt", "").strip():
        raise ConfigError("prompt is empty, expected a description of the clip")
    config = config_of(given)
    request = request_of(given)
    policy = OFFLOAD.get(given.get("offload", ""), given.get("policy", "auto"))
    placed = {"device": checked_device(given.get("device")), "backend": given.get("backend")}
    ledger = ledger_for(config, policy=policy, **placed)
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
    from ltx_pipelines.ltx_video.command import LTXVRequest

    fields = {name: given[name] for name in REQUEST_FIELDS if name in given}
    if fields.get("seed") == DRAWN:
        fields["seed"] = random.SystemRandom().randrange(2**31)
    images = given.get("images", ())
    if any(image.crf is not None for image in images):
        raise UsageError("--image: these models know no CRF, expected FILE [FRAME [STRENGTH]]")
    return LTXVRequest(
        **fields,
        conditioning_media_paths=tuple(image.path for image in images),
        conditioning_start_frames=tuple(image.frame_idx for image in images),
        conditioning_strengths=tuple(image.strength for image in images),
    )


def execute(request: LTXVRequest, config: LTXVConfig, ledger: ModelLedger, output: Path, reporter: Reporter) -> None:
    """Run a request to its file."""
    from ltx_pipelines.cli.job import Result, summary
    from ltx_pipelines.cli.output import VIDEO, check_name
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


OPTIONS = {name: every_option()[name] for name in SHARED} | options_of(Own)
LTXV = Command("ltxv", ABOUT, OPTIONS, make, "prompt", every_option)
