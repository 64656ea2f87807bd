"""Every published checkpoint: building from its config gives exactly its tensor names and shapes, both ways.

`tests/manifests/<model>/<component>.json` holds the config of a published file's header and the shapes of its tensors.
Networks are built on the meta device, so the 22 billion parameters cost no memory.
"""

from __future__ import annotations

import importlib.util
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from ltx_core.loader.components import COMPONENTS
from ltx_core.text_encoders.gemma.config import GemmaConfig

MANIFESTS = Path(__file__).parent / "manifests"
COMPONENTS_OF = {
    "transformer": ("transformer",),
    "video_vae": ("video_encoder", "video_decoder"),
    "video_vae_conv": ("video_encoder", "video_decoder"),
    "audio_vae": ("audio_encoder", "audio_decoder"),
    "vocoder": ("vocoder",),
    "spatial_upscaler": ("latent_upsampler",),
    "spatial_upscaler_x1.5": ("latent_upsampler",),
    "temporal_upscaler": ("latent_upsampler",),
    "duration_head": ("duration_head",),
    "embeddings": ("embeddings",),
}


def read(path: Path) -> dict[str, Any]:
    return json.loads(path.read_text())


def cases() -> dict[str, list[Path]]:
    """Manifest name -> files; the projections and the connectors fill one network together."""
    found: dict[str, list[Path]] = {}
    for path in sorted(MANIFESTS.glob("*/*.json")):
        name = "embeddings" if path.stem in ("embeddings_connectors", "text_embedding_projection") else path.stem
        if name != "text_encoder":
            found.setdefault(f"{path.parent.name}/{name}", []).append(path)
    return found


Shapes = dict[str, tuple[int, ...]]


def shapes_of_torch(component: str, config: Any) -> Shapes:
    """Names and shapes of a network on the meta device."""
    with torch.device("meta"):
        network = COMPONENTS[component].construct(config)
    return {name: tuple(tensor.shape) for name, tensor in network.state_dict().items()}


def shapes_of_mlx(component: str, config: Any) -> Shapes:
    """What the network takes from a file; its arrays are lazy and are never made."""
    from ltx_mlx.backend import NETWORKS
    from ltx_mlx.weights import published_kinds

    return {name: kind.shape for name, kind in published_kinds(NETWORKS[component](config)).items()}


WITH_MLX = pytest.param(
    shapes_of_mlx,
    id="mlx",
    marks=[
        pytest.mark.backend("mlx"),
        pytest.mark.skipif(importlib.util.find_spec("mlx") is None, reason="mlx is not installed: `pip install mlx`"),
    ],
)
WITH_TORCH = pytest.param(shapes_of_torch, id="torch", marks=pytest.mark.backend("torch"))


@pytest.mark.parametrize("shapes_of", [WITH_TORCH, WITH_MLX])
@pytest.mark.parametrize("case", cases())
def test_manifest_is_filled_exactly(case: str, shapes_of: Callable[[str, Any], Shapes]) -> None:
    files = [read(path) for path in cases()[case]]
    published = {name: shape for file in files for name, shape in file["tensors"].items()}
    shapes = {name: tuple(shape["shape"] if isinstance(shape, dict) else shape) for name, shape in published.items()}
    config = merged([file["config"] for file in files])
    used: set[str] = set()
    for component in COMPONENTS_OF[case.split("/")[1]]:
        spec = COMPONENTS[component]
        expected = {}
        for name, shape in shapes.items():
            key = spec.module_name(name)
            if key is not None:
                expected[key] = shape
                used.add(name)
        built = shapes_of(component, spec.read_config(config))
        spare = set(spec.spare)
        assert {k: v for k, v in built.items() if k not in spare} == {
            k: v for k, v in expected.items() if k not in spare
        }
    assert used == set(shapes), f"no component claims {sorted(set(shapes) - used)[:5]}"


def decoder_of_torch(config: Any) -> Shapes:
    from ltx_core.text_encoders.gemma.backbone import GemmaBackbone

    with torch.device("meta"):
        return {name: tuple(tensor.shape) for name, tensor in GemmaBackbone(config).state_dict().items()}


def decoder_of_mlx(config: Any) -> Shapes:
    from ltx_mlx.gemma import GemmaBackbone
    from ltx_mlx.weights import published_kinds

    return {name: kind.shape for name, kind in published_kinds(GemmaBackbone(config)).items()}


@pytest.mark.parametrize(
    "shapes_of",
    [
        pytest.param(decoder_of_torch, id="torch", marks=WITH_TORCH.marks),
        pytest.param(decoder_of_mlx, id="mlx", marks=WITH_MLX.marks),
    ],
)
@pytest.mark.parametrize("model", ["gemma-3-12b-it", "ltx-2.5-22b"])
def test_language_model_is_filled_exactly(model: str, shapes_of: Callable[[Any], Shapes]) -> None:
    """The decoder of a published text encoder; its towers and its head are not read."""
    manifest = read(MANIFESTS / model / "text_encoder.json")
    config = manifest["config"].get("gemma_config", manifest["config"])
    (table,) = [name for name in manifest["tensors"] if name.endswith("model.embed_tokens.weight")]
    prefix = table.removesuffix("embed_tokens.weight")
    parts = tuple(prefix + part for part in ("embed_tokens", "layers.", "norm."))
    published = {
        name.removeprefix(prefix): tuple(shape["shape"] if isinstance(shape, dict) else shape)
        for name, shape in manifest["tensors"].items()
        if name.startswith(parts)
    }
    assert shapes_of(GemmaConfig.from_json(config)) == published


def merged(configs: list[dict[str, Any]]) -> dict[str, Any]:
    """Config sections of several files of one model."""
    sections: dict[str, Any] = {}
    for config in configs:
        for name, value in config.items():
            sections[name] = {**sections.get(name, {}), **value} if isinstance(value, dict) else value
    return sections
