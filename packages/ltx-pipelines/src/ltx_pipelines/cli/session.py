"""From what is given to a pipeline on its networks, which follows from what is given, and what it is asked."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from ltx_core.loader.safetensors_file import SafetensorsFile
from ltx_pipelines.cli.fields import every_option, options_for
from ltx_pipelines.pipeline import Pipeline, find_pipeline, owners, pipelines
from ltx_pipelines.planning.schema import UsageError
from ltx_pipelines.running.model_facts import ModelFacts
from ltx_pipelines.running.model_files import FoundModel
from ltx_pipelines.running.networks import existing, find_networks, make_ledger, model_name, shared_ledger
from ltx_pipelines.running.output import SOUND
from ltx_pipelines.utils.model_ledger import ModelLedger


@dataclass(frozen=True)
class Session:
    """A pipeline with its networks, and what it is asked."""

    pipeline: Pipeline
    request: dict[str, Any]  # keyword arguments of the pipeline
    model: str  # as the user calls it

    @property
    def ledger(self) -> ModelLedger:
        return self.pipeline.ledger


def open_session(
    given: Mapping[str, Any], kind: type[Pipeline] | None = None, share: dict[str, ModelLedger] | None = None
) -> Session:
    """The session of a request; without ``kind`` and a name the pipeline follows from what is given.

    ``share`` keeps ledgers between requests, so that those with the same model and settings load it once.
    """
    if named := given.get("pipeline"):
        kind = find_pipeline(named)
    given = {name: value for name, value in given.items() if name != "pipeline"}
    asked = next((pipelines()[command] for field, command in owners().items() if field in given), None)
    if (completed_by := kind or asked) is not None:
        given = completed_by.complete(given)
    found = find_networks(given, kind.variant if kind is not None else "distilled")
    loras = existing(given.get("loras", ()), "loras")
    why = "expected it left out" if kind else "which follows from the other options; leave it out"
    kind = kind or pipelines()[choose(given, read_known(found, given))]
    if "prompt_enhancer" in given and not given.get("enhance_prompt"):
        raise UsageError("--prompt-enhancer-gemma-root has no effect without --enhance-prompt")
    refuse_unused(given, kind, why)
    files = kind.files(found.files)
    ledger = make_ledger(files, given) if share is None else shared_ledger(files, given, share)
    request = {"snap": True} | {name: value for name, value in given.items() if name in kind.fields()}
    return Session(kind(ledger, loras, found.distilled_loras), request, model_name(given))


def refuse_unused(given: Mapping[str, Any], kind: type[Pipeline], why: str) -> None:
    """A pipeline may have no use for something given."""
    used = options_for(kind)
    for name, value in given.items():
        one = every_option()[name]
        if name not in used and value != one.default:
            raise UsageError(f"{one.flag} has no effect in {kind.command()}, {why}")


# The choice of a pipeline -------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Known:
    """Facts that the choice of a pipeline depends on besides the options."""

    distilled: bool
    has_upsampler: bool
    has_distilled_lora: bool
    reference_lora: bool = False  # an adapter given was trained with a reference clip
    ltx_video: bool = False  # LTX-Video 0.9.x


def read_known(found: FoundModel, given: Mapping[str, Any]) -> Known:
    """Read the facts from the headers of files."""
    metadata = (SafetensorsFile(lora.path).metadata for lora in given.get("loras", ()))
    return Known(
        distilled=found.is_distilled,
        has_upsampler=found.files.spatial_upsampler is not None,
        has_distilled_lora=bool(found.distilled_loras),
        reference_lora=any("reference_downscale_factor" in entry for entry in metadata),
        ltx_video=ModelFacts(found.files).is_ltx_video,
    )


def choose(given: Mapping[str, Any], known: Known) -> str:
    """The pipeline that uses what is given: source clip, reference, sound, pictures, and what the model can do."""
    if known.ltx_video:
        return "ltxav" if {"generate_audio", "audio_adapter"} & given.keys() else "ltxv"
    asked = next((command for field, command in owners().items() if field in given), None)
    if asked is not None:
        return asked
    if "video_path" in given:
        return "v2a-one-stage"
    refined = "ti2vid-two-stages" if known.has_distilled_lora else "ti2vid-one-stage"
    two_stages = "distilled" if known.distilled else refined
    plain = two_stages if known.has_upsampler else "ti2vid-one-stage"
    if known.reference_lora:
        return "ic-lora"
    if str(given.get("output", "")).lower().endswith(SOUND):
        return "t2a-one-stage"
    several = len(given.get("images", ())) > 1
    return "keyframe-interpolation" if several and plain == "ti2vid-two-stages" else plain
