"""Options of the commands, and the meaning of a request in JSON. Nothing here imports torch."""

from __future__ import annotations

from collections.abc import Mapping
from functools import cache
from typing import Any

from ltx_core.errors import ConfigError, nearest_hint
from ltx_pipelines.pipeline import Pipeline, every_field, find_pipeline
from ltx_pipelines.planning.schema import Option, UsageError, options_of
from ltx_pipelines.request import Networks, Output, Sharing

SOME_OUTPUTS = {"contact_sheet", "crf", "preview", "keep_latents", "first_stage"}  # in ``uses`` of some pipelines
#: Options that short help shows, in pipelines beside those of their own.
COMMON = frozenset(
    {
        *("prompt", "negative_prompt", "seed", "images", "video_path", "model", "loras", "pipeline"),
        *("height", "width", "num_frames", "duration", "frame_rate", "num_inference_steps"),
        *("audio_path", "start_time", "end_time", "extend_seconds", "video_conditioning"),
        *("output", "count", "contact_sheet", "overwrite", "quiet"),
    }
)
OF_THE_RUN = ("json", "quiet", "count")  # options that one request of many cannot have
DEVICES = options_of(Sharing)
PIPELINE = Option("pipeline", str | None, None, "Take this pipeline.", group="Request", metavar="NAME")


@cache
def every_option() -> dict[str, Option]:
    """The options of all pipelines together."""
    return group_options({**every_field(), **options_of(Networks), **options_of(Output)})


def some_options(*names: str) -> dict[str, Option]:
    """Those of all options that a command shares."""
    return {name: every_option()[name] for name in names}


def options_for(kind: type[Pipeline]) -> dict[str, Option]:
    """The options that have an effect in a pipeline."""
    outputs = {k: one for k, one in options_of(Output).items() if k not in SOME_OUTPUTS or k in kind.uses}
    return group_options({**kind.fields(), **kind.network_fields(), **outputs})


def group_options(options: Mapping[str, Option]) -> dict[str, Option]:
    """The options with those of one group together, the prompt and the file to write first."""
    groups = list(dict.fromkeys(one.group for one in options.values()))
    return dict(sorted(options.items(), key=lambda item: groups.index(item[1].group)))


def from_json(entry: Mapping[str, Any], where: str) -> dict[str, Any]:
    """The values of an object whose keys are options without dashes in front, or names of fields."""
    options = {**every_option(), "pipeline": PIPELINE}
    spelled = {flag.lstrip("-"): (one, flag) for one in options.values() for flag in one.spellings if len(flag) > 2}
    try:
        named = find_pipeline(str(entry["pipeline"])) if "pipeline" in entry else None
    except UsageError as error:
        raise ConfigError(f"{where}: {error}") from error
    used = options if named is None else {**options_for(named), "pipeline": PIPELINE}
    given: dict[str, Any] = {}
    for key, value in entry.items():
        one, flag = spelled.get(key.replace("_", "-"), (options.get(key), ""))
        if one is None:
            raise ConfigError(f"{where}: {key} is no option{nearest_hint(key.replace('_', '-'), spelled)}")
        if one.name in OF_THE_RUN:
            raise UsageError(f"{where}: {key} has no effect in one request of many, expected it left out")
        if one.name not in used and value != one.default:
            raise UsageError(f"{where}: {key} has no effect in {named and named.command()}, expected it left out")
        read = one.read(value, f"{where}: ")
        if read is None:  # is left out
            continue
        given[one.name] = not read if one.turns_off(flag) else read
    return given
