"""A model in another layout, its transformer quantised on the way: what is written where, tensor by tensor."""

from __future__ import annotations

import json
import math
import os
import shutil
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from ltx_core.errors import CheckpointError, ConfigError
from ltx_core.loader.components import DIFFUSION_MODEL
from ltx_core.loader.gguf import TYPES, GgufFile
from ltx_core.loader.safetensors_file import HEADER_DIGEST, SafetensorsFile
from ltx_core.loader.sources import Source
from ltx_core.loader.writing import Kind, Piece, as_type, plain_type, save_gguf, save_safetensors
from ltx_pipelines.running.diffusers_folder import WEIGHTS, component_files, write_side_cars
from ltx_pipelines.running.model_files import FoundModel
from ltx_pipelines.running.whole_model import Model

if TYPE_CHECKING:
    from torch import Tensor

Layout = Literal["single", "split", "diffusers"]
Say = Callable[[str], None]

GGUF_KINDS = {"q8_0": "Q8_0", "q4_k": "Q4_K"}
QUANTIZATIONS = ("fp8", "fp8-rows", "nvfp4", *GGUF_KINDS)
#: Parts of a split model: where a file of these components goes.
SPLIT = {
    "diffusion_models/{}-transformer": ("transformer", "connectors"),
    "text_encoders/{}-text-projection": ("projection",),
    "vae/{}-video-vae": ("video_encoder", "video_decoder"),
    "vae/{}-audio-vae": ("audio_encoder", "audio_decoder", "vocoder"),
    "model_patches/{}-duration-head": ("duration_head",),
}
#: Components of a diffusers folder.
FOLDERS = {
    "transformer": ("transformer",),
    "connectors": ("connectors", "projection"),
    "vae": ("video_encoder", "video_decoder"),
    "audio_vae": ("audio_encoder", "audio_decoder"),
    "vocoder": ("vocoder",),
    "duration_head": ("duration_head",),
}
WHOLE = tuple(dict.fromkeys(name for names in SPLIT.values() for name in names))
NEVER_QUANTISED = ("adaln_single.", "caption_projection.", "patchify_proj.", "proj_out.", "scale_shift_table")
LICENCES = ("LICENSE*", "LICENCE*", "NOTICE*")
PARTIAL = "source.json"


def convert(found: FoundModel, target: Path, layout: Layout, quantization: str | None, say: Say) -> None:
    """Write a model as a folder ``target``; an interrupted run goes on where it stopped.

    Raises ``CheckpointError`` when ``target`` exists or cannot be written, ``ConfigError`` for what the layout cannot
    hold.
    """
    if quantization not in (None, *QUANTIZATIONS):
        raise ConfigError(f"quantization is {quantization!r}, expected one of {', '.join(QUANTIZATIONS)}")
    if quantization and (layout == "diffusers" or (layout == "single" and quantization in GGUF_KINDS)):
        holds = "plain weights" if layout == "diffusers" else "safetensors only"
        raise ConfigError(f"quantization is {quantization}, but {layout} holds {holds}; expected --to split")
    if target.exists():
        raise CheckpointError(f"{target} exists, expected a folder that is not there yet")
    made = target.with_name(f".{target.name}.partial")
    _start(made, {"model": [*found.files.paths()], "layout": layout, "quantization": quantization}, say)
    model = Model(found)
    for path, pieces, metadata in _files(model, layout, quantization):
        write_checked(made / path, pieces, metadata, say, target / path)
    if layout == "diffusers":
        write_side_cars(model, made, {kind: config for kind, _, config in component_files(model, FOLDERS)})
    _copy_others(model, made, layout, say)
    (made / PARTIAL).unlink()
    made.rename(target)


def _start(made: Path, plan: Mapping[str, Any], say: Say) -> None:
    """Go on in the folder of an interrupted run of the same plan, else begin an empty one."""
    text = json.dumps(plan, sort_keys=True)
    if made.is_dir():
        if (made / PARTIAL).is_file() and (made / PARTIAL).read_text(encoding="utf-8") == text:
            say(f"going on in {made}")
            return
        say(f"{made} is of another conversion and begins anew")
        shutil.rmtree(made)
    made.mkdir(parents=True)
    (made / PARTIAL).write_text(text, encoding="utf-8")


def write_checked(path: Path, pieces: list[Piece], metadata: Mapping[str, str], say: Say, shown: Path) -> None:
    """One file, checked by reading it again."""
    count = sum(len(piece.kinds) for piece in pieces)
    if not path.is_file():
        save = save_gguf if path.suffix == ".gguf" else save_safetensors
        save(path, pieces, metadata)
    file = GgufFile(path) if path.suffix == ".gguf" else SafetensorsFile(path, verify=True)
    if len(file.tensors) != count:
        raise CheckpointError(f"{path} has {len(file.tensors)} tensors, expected {count}; delete it and run again")
    if isinstance(file, SafetensorsFile):
        file.verify()
    checksum = file.metadata.get(HEADER_DIGEST, "")
    say(f"{shown}: {count} tensors, {path.stat().st_size / 1e9:.3f} GB{f', blake2b {checksum}' if checksum else ''}")


def _files(model: Model, layout: Layout, quantization: str | None) -> Iterator[tuple[str, list[Piece], dict[str, str]]]:
    """Path, tensors and header of every file of a layout."""
    if layout == "diffusers":
        for kind, tensors, _ in component_files(model, FOLDERS):
            metadata = model.metadata if kind == "transformer" else {}
            yield f"{kind}/{WEIGHTS}", plain_pieces(tensors), {"format": "pt", **metadata}
        return
    groups = {"{}": WHOLE} if layout == "single" else SPLIT
    for pattern, names in groups.items():
        tensors = model.tensors(*names)
        if not tensors:
            continue
        header = model.metadata | {"config": json.dumps(_sections(model.config, names))}
        path = pattern.format(model.name)
        if quantization in GGUF_KINDS and "transformer" in names:
            kind = GGUF_KINDS[quantization]
            yield f"{path}-{kind}.gguf", gguf_pieces(tensors, kind), header
        else:
            yield f"{path}.safetensors", pieces_of(tensors, quantization), header


def _sections(config: Mapping[str, Any], names: tuple[str, ...]) -> dict[str, Any]:
    """Header sections of a file with these components."""
    sections = {"video_decoder": "vae", "audio_decoder": "audio_vae", "vocoder": "vocoder"}
    sections |= {"transformer": "transformer", "projection": "transformer", "duration_head": "duration_head"}
    wanted = {sections[name] for name in names if name in sections} | {"scheduler"} & {*config}
    return {key: value for key, value in config.items() if key in wanted or key not in sections.values()}


# Tensors --------------------------------------------------------------------------------------------------------------


def plain_pieces(tensors: Mapping[str, Source]) -> list[Piece]:
    """Every tensor by itself, scales multiplied in."""
    pieces = []
    for name, source in tensors.items():
        layer, _, leaf = name.rpartition(".")
        scale = tensors.get(f"{layer}.weight_scale") if leaf == "weight" else None
        if leaf in ("weight_scale", "input_scale") and f"{layer}.weight" in tensors:
            continue
        if source.info.stored_as.startswith("F8"):
            kind = Kind(plain_type(source), source.info.shape)
            pieces.append(Piece({name: kind}, partial(_widen, name, source, scale)))
        else:
            pieces.append(Piece.copy_of(name, source, plain_type(source)))
    return pieces


def _widen(name: str, weight: Source, scale: Source | None) -> dict[str, Tensor]:
    from ltx_core.loader.quantization import widen_plain

    tensors = {"weight": weight.read()} | ({"weight_scale": scale.read()} if scale is not None else {})
    return {name: as_type(widen_plain(tensors), "BF16")}


def pieces_of(tensors: Mapping[str, Source], quantization: str | None) -> list[Piece]:
    """The tensors with the linears of the transformer's blocks quantised as ComfyUI marks it."""
    if quantization is None:
        return plain_pieces(tensors)
    pieces = []
    for piece in plain_pieces(tensors):
        (name,) = piece.kinds
        shape = piece.kinds[name].shape
        pieces += _quantise(name, shape, piece, quantization) if _is_covered(name, shape, quantization) else [piece]
    return pieces


def _is_covered(name: str, shape: tuple[int, ...], quantization: str) -> bool:
    path = name.removeprefix(DIFFUSION_MODEL).removesuffix(".weight")
    linear = name.startswith(f"{DIFFUSION_MODEL}transformer_blocks.") and name.endswith(".weight") and len(shape) == 2
    sides = all(side % 16 == 0 for side in shape)
    return linear and "to_gate_logits" not in path and (quantization != "nvfp4" or sides)


def _quantise(name: str, shape: tuple[int, ...], plain: Piece, quantization: str) -> list[Piece]:
    """A weight, its scales and the marker that says what they are."""
    layer = name.removesuffix(".weight")
    rows, columns = shape
    if quantization == "nvfp4":
        tiles = (-(-rows // 128) * 128, -(-(columns // 16) // 4) * 4)
        kinds = {name: Kind("U8", (rows, columns // 2)), f"{layer}.weight_scale": Kind("F8_E4M3", tiles)}
        kinds[f"{layer}.weight_scale_2"] = Kind("F32", ())
    else:
        scale = (rows, 1) if quantization == "fp8-rows" else ()
        kinds = {name: Kind("F8_E4M3", shape), f"{layer}.weight_scale": Kind("F32", scale)}
    marker = json.dumps({"format": "nvfp4" if quantization == "nvfp4" else "float8_e4m3fn"}).encode()
    kinds[f"{layer}.comfy_quant"] = Kind("U8", (len(marker),))

    def make() -> dict[str, Tensor]:
        import torch

        from ltx_core.loader import fp8, nvfp4

        weight = plain.make()[name].float()
        if quantization == "nvfp4":
            made = nvfp4.quantize_layer(weight)
            made["weight_scale"] = made["weight_scale"].view(torch.float8_e4m3fn)
        else:
            quantize = fp8.quantize_per_row if quantization == "fp8-rows" else fp8.quantize_per_tensor
            made = dict(zip(("weight", "weight_scale"), quantize(weight), strict=True))
        made["comfy_quant"] = torch.frombuffer(bytearray(marker), dtype=torch.uint8)
        return {f"{layer}.{leaf}": tensor for leaf, tensor in made.items()}

    return [Piece(kinds, make)]


def gguf_pieces(tensors: Mapping[str, Source], kind: str) -> list[Piece]:
    """The tensors under the transformer's own names, its linears in blocks of a ggml type.

    Rows that do not divide into blocks of 256 become Q8_0, rows that do not divide into 32 stay as they are, as do the
    parts around the blocks; vectors, small tensors and tables are float32.
    """
    return [_gguf_piece(next(iter(piece.kinds.items())), piece, kind) for piece in plain_pieces(tensors)]


def _gguf_piece(item: tuple[str, Kind], plain: Piece, wanted: str) -> Piece:
    from ltx_core.loader.gguf_blocks import QUANTIZE

    name, (_, shape) = item
    own = name.removeprefix(DIFFUSION_MODEL)
    elements = {block.name: block.elements for block in TYPES.values()}
    kept = any(part in own for part in NEVER_QUANTISED) or not own.endswith("weight")
    fitting = [kind for kind in (wanted, "Q8_0") if shape and shape[-1] % elements[kind] == 0]
    if len(shape) < 2 or math.prod(shape) <= 1024 or "scale_shift_table" in own:
        kind = "F32"
    else:
        kind = "BF16" if kept or len(shape) != 2 or not fitting else fitting[0]

    def make() -> dict[str, Tensor]:
        tensor = plain.make()[name]
        if kind not in QUANTIZE:
            return {own: as_type(tensor, kind)}
        return {own: QUANTIZE[kind](tensor.float().reshape(-1, elements[kind]))}

    return Piece({own: Kind(kind, shape)}, make)


# What is not converted ------------------------------------------------------------------------------------------------


def _copy_others(model: Model, made: Path, layout: Layout, say: Say) -> None:
    """The text encoder, upscalers, adapters and licences."""
    files = model.found.files
    places = {"temporal_upsampler": "latent_upscale_models"}
    if layout != "diffusers":
        places |= {"spatial_upsampler": "latent_upscale_models", "text_encoder": "text_encoders"}
    for slot, folder in places.items():
        if path := getattr(files, slot):
            name = "gemma" if slot == "text_encoder" and Path(path).is_dir() else Path(path).name
            _copy(Path(path), made / folder / name)
            say(f"{folder}/{name}: as it is")
    for lora in model.found.distilled_loras:
        _copy(Path(lora.path), made / "loras" / Path(lora.path).name)
        say(f"loras/{Path(lora.path).name}: as it is")
    checkpoint = Path(files.checkpoint)
    home = checkpoint if checkpoint.is_dir() else checkpoint.parent
    for licence in (file for pattern in LICENCES for file in home.glob(pattern)):
        _copy(licence, made / licence.name)


def _copy(source: Path, target: Path) -> None:
    """A file or folder, its files linked where they can be."""
    if source.is_dir():
        shutil.copytree(source, target, copy_function=_link, dirs_exist_ok=True)
    elif not target.exists():
        target.parent.mkdir(parents=True, exist_ok=True)
        _link(source, target)


def _link(source: str | Path, target: str | Path) -> None:
    if Path(target).exists():
        return
    try:
        os.link(Path(source).resolve(), target)
    except OSError:
        shutil.copy2(source, target)
