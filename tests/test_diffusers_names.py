"""Folders of the diffusers library: every published name and config, there and back.

`manifests/diffusers.json.xz` holds, for every component of the three LTX-2 models, the ``config.json`` and, for each
tensor, the one in the published file it is; None for thirds of a fused tensor.
"""

from __future__ import annotations

import json
import lzma
from pathlib import Path
from typing import Any

import pytest

from ltx_core.errors import ConfigError
from ltx_core.loader.components import COMPONENTS
from ltx_core.loader.diffusers import from_diffusers, read_names, to_diffusers, vae_blocks, written_names
from ltx_core.loader.diffusers_config import read_config, write_config
from ltx_core.loader.safetensors_file import TensorInfo
from ltx_core.loader.sources import Source
from ltx_core.model.video_vae.config import VideoVaeConfig

MANIFESTS = Path(__file__).parent / "manifests"
FOLDERS: dict[str, Any] = json.loads(lzma.decompress((MANIFESTS / "diffusers.json.xz").read_bytes()))
KIND = {"diffusion_vae": "diffusion_decoder"}
PUBLISHED = {"connectors": "embeddings_connectors", "vae": "video_vae", "diffusion_vae": "video_vae"}
COMPONENT = {"transformer": "transformer", "connectors": "embeddings", "vae": "video_decoder"}
COMPONENT |= {"audio_vae": "audio_decoder", "vocoder": "vocoder", "diffusion_decoder": "video_decoder"}


class Fake:
    """A file of which only names and shapes are known."""

    def __init__(self, shapes: dict[str, list[int]]) -> None:
        self.tensors = {name: TensorInfo("BF16", tuple(shape), 0, 0) for name, shape in shapes.items()}


def sources(shapes: dict[str, list[int]]) -> dict[str, Source]:
    file: Any = Fake(shapes)
    return {name: Source(file, name) for name in shapes}


def published(model: str, folder: str) -> dict[str, Any]:
    """The manifest of the published file a folder was made of; projections are in a file of their own."""
    found = json.loads((MANIFESTS / model / f"{PUBLISHED.get(folder, folder)}.json").read_text())
    if folder == "connectors":
        found["tensors"] |= json.loads((MANIFESTS / model / "text_embedding_projection.json").read_text())["tensors"]
    return found


def with_vae(folder: str, name: str) -> str:
    return f"vae.{name}" if folder == "diffusion_vae" and not name.startswith("vae.") else name


@pytest.mark.parametrize("case", FOLDERS)
def test_every_tensor_and_the_config_go_both_ways(case: str) -> None:
    model, folder = case.split("/")
    kind, given = KIND.get(folder, folder), FOLDERS[case]
    original = published(model, folder)
    shapes = {with_vae(folder, n): t["shape"] if isinstance(t, dict) else t for n, t in original["tensors"].items()}
    blocks: Any = ()
    if kind == "vae":
        vae = VideoVaeConfig.from_metadata(read_config(kind, given["config"], {}))
        blocks = vae_blocks(vae.encoder_blocks, vae.decoder_blocks)
    for theirs, ours in given["tensors"].items():
        if ours is not None:
            assert from_diffusers(kind, theirs, blocks) == with_vae(folder, ours)
            assert to_diffusers(kind, with_vae(folder, ours), blocks) == theirs
    ours = {name: shape for name, shape in shapes.items() if to_diffusers(kind, name, blocks) in given["tensors"]}
    fused = {name: shape for name, shape in shapes.items() if ".attn.qkv." in name}
    there = written_names(kind, sources(ours | fused), blocks)
    assert there.keys() == given["tensors"].keys()
    back = read_names(kind, there, blocks)
    assert {name: list(source.info.shape) for name, source in back.items()} == ours | fused

    config = read_config(kind, given["config"], {name: source.info.shape for name, source in back.items()})
    read = COMPONENTS[COMPONENT[kind]].read_config
    mine, theirs = read(config), read(original["config"])
    assert mine == theirs or mine.diffusion_decoder == theirs.diffusion_decoder is not None
    if "_class_name" in given["config"]:  # LTX-Video, which is read only
        return
    whole = original["config"] | config
    whole["transformer"] = {**published(model, "transformer")["config"]["transformer"], **config.get("transformer", {})}
    written = write_config(kind, whole)
    del written["_class_name"]
    assert json.loads(json.dumps(written)) == given["config"]


def test_what_has_no_counterpart_is_refused() -> None:
    conv = published("ltx-2.3-22b", "vae")["config"]["vae"]
    foreign = {"vae": conv | {"decoder_blocks": [["attn", {}], *conv["decoder_blocks"]]}}
    with pytest.raises(ConfigError, match="VAE block attn has no counterpart in AutoencoderKLLTX2Video"):
        write_config("vae", foreign)
    with pytest.raises(ConfigError, match="diffusion decoder, vae/ of a diffusers folder a convolutional one"):
        write_config("vae", published("ltx-2.5-22b", "video_vae")["config"])
    with pytest.raises(ConfigError, match=r"config.json describes no vocoder: KeyError"):
        read_config("vocoder", {"_class_name": "LTX2Vocoder"}, {})
