"""From what a user calls a model (a file, a folder, a hub id, ``tiny``) to the files its networks come from."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from ltx_core.errors import CheckpointError, ConfigError, LtxError
from ltx_core.loader.checkpoint import Checkpoint
from ltx_core.loader.lora import is_lora
from ltx_core.loader.safetensors_file import SafetensorsFile
from ltx_core.textfiles import read_json
from ltx_pipelines.planning.plan import Lora, ModelFiles
from ltx_pipelines.running import hub

HUB_ID = re.compile(r"[\w.-]+/[\w.-]+")


@dataclass(frozen=True)
class FoundModel:
    """The files of a model, the distilled adapters beside it, and whether the model itself is distilled."""

    files: ModelFiles
    distilled_loras: tuple[Lora, ...] = ()
    is_distilled: bool = False


def find_model(model: str, variant: str | None = None) -> FoundModel:
    """The files of ``model``; what is missing beside a single file is looked for in its folder.

    ``variant`` ("dev" or "distilled") chooses among several transformers. Raises `CheckpointError` with advice.
    """
    if (bundled := hub.bundled_model(model)) is not None:
        return find_in_folder(bundled, variant)
    if model == hub.TINY:
        raise CheckpointError(hub.NOT_BUNDLED)
    path = Path(model).expanduser()
    if path.is_file():
        return find_in_folder(path.parent, variant, chosen=path)
    if path.is_dir():
        return find_in_folder(path, variant)
    if HUB_ID.fullmatch(model) and path.suffix not in (".safetensors", ".gguf"):
        return from_hub(model, variant)
    raise CheckpointError(f"model is {model!r}: neither a file, nor a folder, nor a hub id like owner/name")


def from_hub(repo: str, variant: str | None = None) -> FoundModel:
    """A hub model, fetched where it is missing, with the language model that lies in a repository of its own."""
    found = find_in_folder(hub.download_model(repo), variant)
    if found.files.text_encoder is not None or repo not in hub.KNOWN_MODELS:
        return found
    encoders = (find_text_encoder(hub.download_model(other), ()) for other in hub.KNOWN_MODELS[repo].needs)
    return replace(found, files=replace(found.files, text_encoder=next(filter(None, encoders), None)))


def find_in_folder(folder: Path, variant: str | None = None, chosen: Path | None = None) -> FoundModel:
    """Sort the files of a folder by what their headers say they hold."""
    slots: dict[str, list[Path]] = {}
    for file in sorted(folder.rglob("*.safetensors")):
        if (kind := kind_of(file)) is not None:
            slots.setdefault(kind, []).append(file)
    transformers = [chosen] if chosen else slots.get("checkpoint", [])
    if variant:
        transformers = [file for file in transformers if variant in file.name] or transformers
    if not transformers:
        raise CheckpointError(f"{folder} holds no LTX transformer")
    if len(transformers) > 1:
        names = ", ".join(file.name for file in transformers)
        raise CheckpointError(f"{folder} holds several models: {names}; name one of these files")
    checkpoint = transformers[0]
    files = ModelFiles(str(checkpoint), text_encoder=find_text_encoder(folder, slots.get("text_encoder", [])))
    held = Checkpoint.open(checkpoint).components
    for slot, component in (("video_vae", "video_decoder"), ("audio_vae", "audio_decoder")):
        if component not in held and slots.get(slot):
            files = replace(files, **{slot: str(slots[slot][0])})
    for slot in ("spatial_upsampler", "temporal_upsampler", "duration_head"):
        if slots.get(slot):
            files = replace(files, **{slot: str(slots[slot][0])})
    distilled = tuple(Lora(str(file)) for file in slots.get("lora", ()) if "distilled" in file.name)
    return FoundModel(files, distilled[:1], is_distilled="distilled" in checkpoint.name)


def kind_of(file: Path) -> str | None:
    """The slot a file fills, from its header alone; None for files that are none of ours."""
    try:
        header = SafetensorsFile(file)
        if is_lora(header.tensors):
            return "lora"
        checkpoint = Checkpoint.open(file)
    except LtxError:
        return None
    held = checkpoint.components
    if "transformer" in held:
        return "checkpoint"
    if "latent_upsampler" in held:
        config = checkpoint.component_config("latent_upsampler")
        return "temporal_upsampler" if config.get("temporal_upsample") else "spatial_upsampler"
    by_component = {
        "text_encoder": "text_encoder",
        "video_decoder": "video_vae",
        "audio_decoder": "audio_vae",
        "duration_head": "duration_head",
    }
    return next((slot for component, slot in by_component.items() if component in held), None)


def find_text_encoder(folder: Path, packed: Sequence[Path]) -> str | None:
    """A Gemma folder (a config.json of a Gemma model, weights beside it), else a packed file or the folder of a T5."""
    for config in sorted(folder.rglob("config.json")):
        try:
            kind = read_json(config).get("model_type", "")
        except (ConfigError, AttributeError):
            continue
        if str(kind).startswith("gemma"):
            return str(config.parent)
        if kind == "t5" and config.parent.name == "text_encoder":
            packed = [*packed, config.parent.parent]
    return str(packed[0]) if packed else None
