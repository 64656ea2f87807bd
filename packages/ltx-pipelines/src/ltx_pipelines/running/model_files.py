"""From what a user calls a model (a file, a folder, a hub id, ``tiny``) to the files its networks come from."""

from __future__ import annotations

import logging
import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from ltx_core.errors import CheckpointError, ConfigError, LtxError
from ltx_core.loader.checkpoint import Checkpoint
from ltx_core.loader.layouts import INDEX, SUFFIXES, diffusers_kind, find_files, is_diffusers_model
from ltx_core.loader.lora import is_lora
from ltx_core.loader.safetensors_file import SafetensorsFile
from ltx_core.textfiles import path_of, read_json
from ltx_pipelines.planning.plan import Lora, ModelFiles
from ltx_pipelines.planning.schema import options_of
from ltx_pipelines.request import Networks
from ltx_pipelines.running import hub

logger = logging.getLogger(__name__)

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
    path = path_of(model)
    if path.is_file():
        chosen = find_files(path)[0] if path.name.endswith((INDEX, *SUFFIXES)) else path
        return find_in_folder(path.parent, variant, chosen)
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


#: ComfyUI's folders below the one for models, in which the parts of a model lie.
COMFY_FOLDERS = (
    *("diffusion_models", "unet", "checkpoints", "text_encoders", "clip", "vae", "loras"),
    *("latent_upscale_models", "model_patches"),
)
#: Parts of a model that files beside the transformer's may hold: slots of `ModelFiles`.
PARTS = (
    *("text_projection", "video_vae", "audio_vae", "spatial_upsampler", "temporal_upsampler"),
    *("duration_head", "audio_adapter"),
)


def find_in_folder(folder: Path, variant: str | None = None, chosen: Path | None = None) -> FoundModel:
    """Sort the files of a folder by what their headers say they hold; ``chosen`` is the transformer's."""
    if chosen is None and is_diffusers_model(folder) and not any(folder.glob("*.safetensors")):
        return _diffusers_model(folder)
    slots = _sorted_files(_model_root(folder))
    transformers = [chosen] if chosen else slots.get("checkpoint", [])
    if variant:
        transformers = [file for file in transformers if variant in file.name] or transformers
    if not transformers:
        found = ", ".join(f"{file.name} ({slot})" for slot, files in slots.items() for file in files)
        raise CheckpointError(f"{folder} holds no LTX transformer; found {found or 'no weights'}")
    if len(transformers) > 1:
        names = ", ".join(file.name for file in transformers)
        raise CheckpointError(f"{folder} holds several models: {names}; name one of these files")
    checkpoint = transformers[0]
    opened = Checkpoint.open(checkpoint)
    encoder = find_text_encoder(_model_root(folder), slots.get("text_encoder", []))
    files = ModelFiles(str(checkpoint), text_encoder=encoder)
    own = {"video_vae": "video_decoder", "audio_vae": "audio_decoder"}
    held = {slot for slot, component in own.items() if component in opened.components}
    held |= {"text_projection"} if opened.has_text_projection else set()
    held |= set() if opened.is_ltx_video else {"audio_adapter"}
    for slot in PARTS:
        if slots.get(slot) and slot not in held:
            files = replace(files, **{slot: str(_fitting(slot, slots[slot], checkpoint))})
    distilled = tuple(Lora(str(file)) for file in slots.get("lora", ()) if "distilled" in file.name)
    return FoundModel(files, distilled[:1], is_distilled="distilled" in checkpoint.name)


def _diffusers_model(folder: Path) -> FoundModel:
    """A diffusers folder, its Gemma or T5 with it; distilled where its scheduler does not shift by size."""
    upscaler = folder / "latent_upsampler"
    files = ModelFiles(str(folder), find_text_encoder(folder, ()))
    if diffusers_kind(upscaler) is not None:
        files = replace(files, spatial_upsampler=str(upscaler))
    scheduler = folder / "scheduler" / "scheduler_config.json"
    settings = read_json(scheduler) if scheduler.is_file() else {}
    return FoundModel(files, is_distilled=settings.get("use_dynamic_shifting") is False)


def _model_root(folder: Path) -> Path:
    """The folder a model's parts lie in: above ComfyUI's folders where this is in one of them."""
    below = next((place for place in (folder, *folder.parents[:2]) if place.name in COMFY_FOLDERS), None)
    return below.parent if below is not None else folder


def _sorted_files(root: Path) -> dict[str, list[Path]]:
    """Files by the slot they fill, one for each set of shards."""
    comfy = [root / name for name in COMFY_FOLDERS if (root / name).is_dir()]
    found = [*root.iterdir(), *(file for place in comfy for file in place.rglob("*"))] if comfy else root.rglob("*")
    slots: dict[str, list[Path]] = {}
    for file in sorted(file for file in found if file.suffix in SUFFIXES):
        if find_files(file)[0] == file and (kind := kind_of(file)) is not None:
            slots.setdefault(kind, []).append(file)
    return slots


def _fitting(slot: str, files: Sequence[Path], checkpoint: Path) -> Path:
    """Of several files for one slot the one of the transformer's version by header or name, else the first."""
    if len(files) == 1:
        return files[0]
    version = Checkpoint.open(checkpoint).version[:2]
    fitting = [file for file in files if Checkpoint.open(file).version[:2] == version]
    chosen = (fitting or files)[0]
    names, flag = ", ".join(file.name for file in files), options_of(Networks)[slot].flag
    logger.info("several files for %s: %s; %s is used", flag, names, chosen.name)
    return chosen


def kind_of(file: Path) -> str | None:
    """The slot a file fills, from its header alone; None for files that are none of ours, and damaged ones are said."""
    try:
        if file.suffix == ".safetensors" and is_lora(SafetensorsFile(file).tensors):
            return "lora"
        checkpoint = Checkpoint.open(file)
    except LtxError as error:
        if "no component of an LTX model" not in str(error):
            logger.warning("left out: %s", error)
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
        "audio_adapter": "audio_adapter",
        "embeddings": "text_projection",
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
