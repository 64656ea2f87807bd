"""From the fields of `Networks` to the files of a model and the ledger that holds it, for Python and commands alike."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

from ltx_core.errors import CheckpointError, ConfigError, nearest_hint
from ltx_pipelines.planning.plan import BackendName, Lora, ModelFiles
from ltx_pipelines.planning.schema import MODEL_VARIABLE, UsageError, options_of
from ltx_pipelines.request import MEMORY, Networks
from ltx_pipelines.running.hub import TINY
from ltx_pipelines.running.model_files import FoundModel, find_model
from ltx_pipelines.running.placement import default_backend
from ltx_pipelines.utils.model_ledger import ModelLedger

OFFLOAD = {"none": "resident", "cpu": "streamed", "disk": "sequential"}
# Named here too, since their own modules take torch.
QUANTIZATIONS = ("fp8-cast", "fp8-rowwise", "fp8-scaled-mm", "nvfp4-cast", "nvfp4-prequant")
DEVICES = ("cpu", "cuda", "mps", "xpu")
SPLIT = ("transformer", "text_encoder", "audio_vae", "duration_head")
PLACEMENT = (*(name for name, one in options_of(Networks).items() if one.group == MEMORY), "lora_precision")


def model_name(given: Mapping[str, Any]) -> str:
    """The user's name of the model."""
    named = given.get("model") or given.get("checkpoint_path") or given.get("transformer")
    return str(named or os.environ.get(MODEL_VARIABLE) or TINY)


def find_networks(given: Mapping[str, Any], variant: str | None = None) -> FoundModel:
    """The files of a model named as a whole or part by part, each part replaced by the one that is named for it.

    ``variant`` ("dev" or "distilled") chooses among several transformers. Raises `CheckpointError`, or `UsageError`
    for names that contradict each other.
    """
    found = _whole(given, variant)
    slots = {field.name for field in fields(ModelFiles)} - {"checkpoint"}
    named = {slot: str(given[slot]) for slot in slots if given.get(slot)}
    if given.get("gemma_root"):
        named["text_encoder"] = given["gemma_root"]
    for slot, path in named.items():
        if not Path(path).exists():
            raise CheckpointError(f"{slot} is {path}, which does not exist")
    if given.get("distilled_loras"):
        found = replace(found, distilled_loras=existing(given["distilled_loras"], "distilled_loras"))
    return replace(found, files=replace(found.files, **named))


def _whole(given: Mapping[str, Any], variant: str | None) -> FoundModel:
    parts = [name for name in SPLIT if given.get(name)]
    transformer = given.get("transformer")
    if transformer and (given.get("checkpoint_path") or given.get("gemma_root")):
        other = "checkpoint_path" if given.get("checkpoint_path") else "gemma_root"
        raise UsageError(f"transformer names part of a split model, which has no {other}")
    if transformer and not given.get("model"):
        return FoundModel(ModelFiles(transformer), is_distilled="distilled" in Path(transformer).name)
    if "text_encoder" in parts and given.get("gemma_root"):
        raise UsageError("text_encoder and gemma_root both name the text encoder, expected one of them")
    found = find_model(model_name(given), variant)
    return replace(found, files=replace(found.files, checkpoint=transformer)) if transformer else found


def existing(loras: tuple[Lora, ...], name: str) -> tuple[Lora, ...]:
    """The adapters, none of whose files is missing."""
    for lora in loras:
        if not Path(lora.path).is_file():
            raise CheckpointError(f"{name} is {lora.path}, which does not exist")
    return loras


def make_ledger(files: ModelFiles, given: Mapping[str, Any]) -> ModelLedger:
    """The networks of these files, placed as is asked."""
    if given.get("policy") and given.get("offload"):
        raise UsageError("--offload and --policy say the same, expected one of them")
    backend = given.get("backend") or default_backend()
    if given.get("quantization"):
        check_quantization(given["quantization"], backend)
    chosen = {name: given[name] for name in ("dtype", "quantization", "compile_blocks") if given.get(name)}
    chosen["backend"] = backend
    if given.get("embedding_cache"):
        chosen["embedding_cache"] = Path(given["embedding_cache"])
    policy: Any = given.get("policy") or OFFLOAD.get(given.get("offload") or "", "auto")
    ledger = ModelLedger(files, device=checked_device(given.get("device")), policy=policy, **chosen)
    ledger.lora_precision = given.get("lora_precision") or ledger.lora_precision
    return ledger


def shared_ledger(files: ModelFiles, given: Mapping[str, Any], share: dict[str, ModelLedger]) -> ModelLedger:
    """The ledger of an earlier request with the same files and settings, else a new one, the old ones emptied."""
    key = repr((files, [given.get(name) for name in PLACEMENT]))
    if key not in share:
        for ledger in share.values():
            ledger.release()
        share.clear()
        share[key] = make_ledger(files, given)
    return share[key]


def check_quantization(name: str, backend: BackendName) -> None:
    """A format of the transformer's weights that the backend has."""
    if backend == "torch":
        if name not in QUANTIZATIONS:
            hint = nearest_hint(name, QUANTIZATIONS)
            raise ConfigError(f"quantization is {name!r}, expected one of {', '.join(QUANTIZATIONS)}{hint}")
        return
    from ltx_core.networks import find_backend

    find_backend(backend).check_quantization(name)


def checked_device(name: str | None) -> str | None:
    """A device torch knows and this machine has."""
    if name is None:
        return None
    if name.partition(":")[0] not in DEVICES:
        hint = nearest_hint(name, DEVICES)
        raise ConfigError(f"device is {name!r}, expected one of {', '.join(DEVICES)}{hint}; see `ltx doctor`")
    import torch

    try:
        torch.empty(0, device=name)
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        reason = str(error).split("\n")[0].rstrip(".")
        raise ConfigError(f"device is {name!r}, which cannot be used: {reason}; see `ltx doctor`") from error
    return name
