"""All tensors of a model by their published names, from whatever files they lie in."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import cached_property, partial
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ltx_core.loader.components import COMPONENTS
from ltx_core.loader.safetensors_file import HEADER_DIGEST, TENSOR_DIGESTS
from ltx_core.loader.sources import Derived, Source
from ltx_core.textfiles import parse_json
from ltx_pipelines.running.model_facts import ModelFacts
from ltx_pipelines.running.model_files import FoundModel

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True)
class Model:
    """The tensors of a model by published names, and what its headers say."""

    found: FoundModel

    @cached_property
    def facts(self) -> ModelFacts:
        return ModelFacts(replace(self.found.files, audio_adapter=None))  # which stays a file of its own

    @property
    def name(self) -> str:
        """Name of the files made of it."""
        path = Path(self.found.files.checkpoint)
        stem = path.name if path.is_dir() else path.stem
        return stem.removesuffix(".safetensors").removesuffix("-transformer")

    @cached_property
    def config(self) -> dict[str, Any]:
        """All sections, each from the file its component is read from."""
        config = dict(self.facts.source("embeddings").config)
        for component in ("video_decoder", "audio_decoder", "vocoder", "duration_head"):
            if self.facts.holds(component):
                own = self.facts.source(component).component_config(component)
                config |= {key: own[key] for key in ("vae", "audio_vae", "vocoder", "duration_head") if key in own}
        if self.facts.holds("embeddings"):
            config["transformer"] = self.facts.source("embeddings").component_config("embeddings")["transformer"]
        return config

    @cached_property
    def metadata(self) -> dict[str, str]:
        """Header strings of the transformer's file: licence, version, defaults."""
        own = self.facts.checkpoint.metadata
        dropped = (HEADER_DIGEST, TENSOR_DIGESTS, "config", "format", "quantization", "_quantization_metadata")
        return {key: text for key, text in own.items() if key not in dropped and not key.startswith("general.")}

    def tensors(self, *names: str) -> dict[str, Source]:
        """The tensors of these components; connectors and the projection are the two parts of ``embeddings``."""
        found: dict[str, Source] = {}
        for name in names:
            component = "embeddings" if name in ("connectors", "projection") else name
            if not self.facts.holds(component):
                continue
            spec, checkpoint = COMPONENTS[component], self.facts.source(component)
            if component not in checkpoint.components:  # in the packed text encoder, which is copied whole
                continue
            for part in checkpoint.parts_of(component):
                for key, source in plain_of_mlx(part.tensors, part.metadata).items():
                    projection = key.startswith("text_embedding_projection.")
                    wanted = component == name or projection == (name == "projection")
                    if wanted and spec.module_name(key) is not None:
                        bare = key.startswith(("encoder.", "decoder.", "per_channel_statistics."))
                        found[f"vae.{key}" if bare else key] = source
        return found


def plain_of_mlx(tensors: Mapping[str, Source], metadata: Mapping[str, str]) -> Mapping[str, Source]:
    """The tensors of a file that was quantised for MLX with its weights plain; those of any other file as they are."""
    given = parse_json(metadata.get("quantization", "{}"), "quantization")
    if not isinstance(given, dict) or given.get("format") != "mlx":
        return tensors
    plain = dict(tensors)
    for name in [name for name in tensors if name.endswith(".scales")]:
        layer = name.removesuffix(".scales")
        leaves = [leaf for leaf in ("weight", "scales", "biases") if f"{layer}.{leaf}" in tensors]
        parts = tuple(plain.pop(f"{layer}.{leaf}") for leaf in leaves)
        rows, words = parts[0].info.shape
        shape = (rows, words * 32 // given["bits"])
        plain[f"{layer}.weight"] = Derived.of(parts, partial(_dequantize, given), shape, "F32")
    return plain


def _dequantize(given: Mapping[str, Any], *tensors: Tensor) -> Tensor:
    widened: Tensor = import_module("ltx_mlx.convert").widen_weight(given, *tensors)
    return widened
