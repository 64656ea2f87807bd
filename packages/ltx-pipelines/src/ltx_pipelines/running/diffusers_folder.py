"""A model as the diffusers library keeps it: weights and configs of each component, and the files around them."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import Any

from ltx_core.errors import ConfigError
from ltx_core.loader.diffusers import vae_blocks, written_names
from ltx_core.loader.diffusers_config import write_config
from ltx_core.loader.safetensors_file import HEADER_DIGEST, TENSOR_DIGESTS
from ltx_core.loader.sources import Derived, Source
from ltx_core.loader.writing import Kind, Piece, save_safetensors
from ltx_core.model.video_vae.config import VideoVaeConfig
from ltx_core.text_encoders.gemma.assets import GemmaAssets
from ltx_core.text_encoders.gemma.config import gemma_text_config
from ltx_pipelines.running.whole_model import Model

VERSION = "0.42.1"  # of the library whose converter the names and configs are compared with
WEIGHTS = "diffusion_pytorch_model.safetensors"
DILATIONS = 3  # convolutions per branch that the library's vocoder has
SCHEDULER = {
    "_class_name": "FlowMatchEulerDiscreteScheduler",
    "base_image_seq_len": 1024,
    "base_shift": 0.95,
    "max_image_seq_len": 4096,
    "max_shift": 2.05,
    "num_train_timesteps": 1000,
    "shift": 1.0,
    "time_shift_type": "exponential",
}
UPSAMPLER = "latent_upsampler"  # beside the pipeline, which has none
IN_LIBRARY = ("transformer", "vae", "audio_vae")  # components whose classes are not the pipeline's own
#: A vision tower of the least size, for language models without one: the class the library loads has it.
VISION = {"model_type": "siglip_vision_model", "hidden_size": 8, "intermediate_size": 8, "num_hidden_layers": 1}
VISION |= {"num_attention_heads": 1, "num_channels": 3, "image_size": 28, "patch_size": 14}
VISION_TOKENS = {"mm_tokens_per_image": 4, "image_token_index": 262144, "boi_token_index": 255999}


def component_files(
    model: Model, folders: Mapping[str, tuple[str, ...]]
) -> Iterator[tuple[str, dict[str, Source], dict[str, Any]]]:
    """Folder, tensors under the library's names and ``config.json`` of each component.

    Raises ``ConfigError`` for what has no counterpart there.
    """
    for kind, names in folders.items():
        if not (tensors := model.tensors(*names)):
            continue
        config: dict[str, Any] = {**model.config}
        if kind == "connectors" and (path := model.found.files.text_encoder):
            config["gemma"] = gemma_text_config(GemmaAssets.open(path).config)
        if kind == "vocoder":
            tensors, config = _with_third_dilation(tensors, config)
        blocks: Any = ()
        if kind == "vae":
            vae = VideoVaeConfig.from_metadata(config)
            blocks = vae_blocks(vae.encoder_blocks, vae.decoder_blocks)
        written = write_config(kind, config) | {"_diffusers_version": VERSION}
        yield kind, written_names(kind, tensors, blocks), written
    if path := model.found.files.spatial_upsampler:
        upsampler = model.facts.open(path)
        written = write_config(UPSAMPLER, upsampler.component_config(UPSAMPLER)) | {"_diffusers_version": VERSION}
        yield UPSAMPLER, upsampler.sources(UPSAMPLER), written


def _with_third_dilation(
    tensors: dict[str, Source], config: Mapping[str, Any]
) -> tuple[dict[str, Source], dict[str, Any]]:
    """A vocoder whose branches have fewer convolutions than the library's, filled up with ones that add nothing."""
    section = config["vocoder"]
    sizes = section.get("resblock_dilation_sizes", [[1, 3, 5]])
    if "bwe" in section or all(len(size) == DILATIONS for size in sizes):
        return tensors, dict(config)
    if any(len(size) > DILATIONS for size in sizes) or section.get("resblock", "1") != "1":
        raise ConfigError(f"vocoder resblock_dilation_sizes are {sizes}, expected {DILATIONS} in each")
    filled = dict(tensors)
    for name, source in tensors.items():
        if match := re.fullmatch(r"(vocoder\.resblocks\.(\d+))\.(convs[12])\.0\.(\w+)", name):
            head, block, convolutions, leaf = match.groups()
            branch = int(block) % len(sizes)
            for added in range(len(sizes[branch]), DILATIONS):
                made = Derived(source.file, source.key, source.info, (), partial(_zeros, source.info.shape))
                filled[f"{head}.{convolutions}.{added}.{leaf}"] = made
    dilations = [[*size, *[1] * (DILATIONS - len(size))] for size in sizes]
    return filled, {**config, "vocoder": {**section, "resblock_dilation_sizes": dilations}}


def _zeros(shape: tuple[int, ...]) -> Any:
    import torch

    return torch.zeros(shape)


def write_side_cars(model: Model, made: Path, configs: Mapping[str, Mapping[str, Any]]) -> None:
    """Configs, index, scheduler, tokenizer and text encoder.

    Raises ``ConfigError`` where there is no Gemma folder: a packed text encoder is no folder of the library.
    """
    for kind, config in configs.items():
        _write_json(made / kind / "config.json", config)
    index: dict[str, Any] = {"_class_name": "LTX2Pipeline", "_diffusers_version": VERSION}
    index["scheduler"] = ["diffusers", SCHEDULER["_class_name"]]
    for kind, config in configs.items():
        if kind != UPSAMPLER:
            index[kind] = ["diffusers" if kind in IN_LIBRARY else "ltx2", config["_class_name"]]
    distilled = model.found.is_distilled
    shifting = {"use_dynamic_shifting": not distilled, "shift_terminal": None if distilled else 0.1}
    _write_json(made / "scheduler" / "scheduler_config.json", SCHEDULER | shifting | {"_diffusers_version": VERSION})
    text_encoder = model.found.files.text_encoder
    if text_encoder is None or not Path(text_encoder).is_dir():
        raise ConfigError(f"text encoder is {text_encoder}, expected a Gemma folder (--gemma-root)")
    assets = GemmaAssets.open(text_encoder)
    architecture = assets.config.get("architectures", ["Gemma3ForConditionalGeneration"])[0]
    index |= {"text_encoder": ["transformers", architecture], "tokenizer": ["transformers", "PreTrainedTokenizerFast"]}
    _write_json(made / "model_index.json", index)
    _write_gemma(assets, made)


def _write_gemma(assets: GemmaAssets, made: Path) -> None:
    """``text_encoder/`` and ``tokenizer/`` of a Gemma folder, with the least vision tower where it has none."""
    config = dict(assets.config)
    if "vision_config" not in config:
        config |= {"vision_config": VISION, **VISION_TOKENS}
    _write_json(made / "text_encoder" / "config.json", config)
    for file in assets.weights:
        metadata = {key: text for key, text in file.metadata.items() if key not in (HEADER_DIGEST, TENSOR_DIGESTS)}
        pieces = [Piece.copy_of(name, Source(file, name)) for name in file.tensors]
        if "vision_config" not in assets.config:
            pieces += _empty_tower(config)
        target = made / "text_encoder" / file.path.name
        if not target.is_file():
            save_safetensors(target, pieces, {"format": "pt", **metadata})
    for index in assets.weights[0].path.parent.glob("*.index.json"):
        (made / "text_encoder" / index.name).write_bytes(index.read_bytes())
    tokenizer = assets.side_car("tokenizer_config.json") | {"tokenizer_class": "PreTrainedTokenizerFast"}
    _write_json(made / "tokenizer" / "tokenizer_config.json", tokenizer)
    (made / "tokenizer" / "tokenizer.json").write_bytes(assets.tokenizer_json)
    for name, text in assets.side_cars.items():
        if name in ("special_tokens_map.json", "added_tokens.json", "chat_template.jinja"):
            (made / "tokenizer" / name).write_text(text, encoding="utf-8")


def _empty_tower(config: Mapping[str, Any]) -> list[Piece]:
    """The tensors of a vision tower that sees nothing, under the names Gemma 3 was published with."""
    import torch
    from transformers import Gemma3Config, Gemma3ForConditionalGeneration

    settings = {key: value for key, value in config.items() if key not in ("architectures", "model_type")}
    with torch.device("meta"):
        shapes = Gemma3ForConditionalGeneration(Gemma3Config(**settings)).state_dict()
    names = {
        "model.vision_tower.": "vision_tower.vision_model.",
        "model.multi_modal_projector.": "multi_modal_projector.",
    }
    pieces = []
    for name, tensor in shapes.items():
        if start := next((start for start in names if name.startswith(start)), None):
            own, shape = names[start] + name.removeprefix(start), tuple(tensor.shape)
            pieces.append(Piece({own: Kind("BF16", shape)}, partial(_named_zeros, own, shape)))
    return pieces


def _named_zeros(name: str, shape: tuple[int, ...]) -> dict[str, Any]:
    return {name: _zeros(shape).bfloat16()}


def _write_json(path: Path, value: Mapping[str, Any]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(value, indent=2) + "\n", encoding="utf-8")
