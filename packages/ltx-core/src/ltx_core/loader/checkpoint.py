"""``Checkpoint``: opens weights in any layout, knows which components they hold, builds each of them strictly."""

from __future__ import annotations

import logging
import os
from collections.abc import Mapping, Sequence
from functools import cached_property, partial
from typing import TYPE_CHECKING, Any

from ltx_core.errors import CheckpointError, ConfigError, as_checkpoint_error, check_known
from ltx_core.loader.components import COMPONENTS, DIFFUSION_MODEL
from ltx_core.loader.layouts import Part, as_paths, find_files, open_file, read_parts
from ltx_core.loader.lora import Lora, is_lora
from ltx_core.loader.metadata import Version, detect_version
from ltx_core.loader.sources import Source
from ltx_core.model.transformer.config import LTX_VIDEO_CLASS
from ltx_core.text_encoders.gemma.config import infer_connectors

if TYPE_CHECKING:
    import torch
    from torch import nn

    from ltx_core.loader.quantization import QuantizationPolicy
    from ltx_core.loader.weights import ComponentWeights
    from ltx_core.precision import Precision

logger = logging.getLogger(__name__)

Paths = str | os.PathLike[str] | Sequence[str | os.PathLike[str]]


class Checkpoint:
    """Weights on disk: a single file, several files, a folder, or a hub snapshot.

    Opening reads headers only. ``components`` names what can be built; ``config`` is the JSON the files carry, all
    sections together; ``model_version`` is the declared version as text, ``version`` as a tuple to compare with.

    `open` makes one from paths. The constructor is given what was opened: ``parts``, one per file or set of shards;
    ``given_order_wins``, whether the later of two parts that hold the same tensors is read or both are refused; and
    ``prefer``, pieces of file names that decide between parts first, by default none. Raises ``CheckpointError`` when
    the parts are adapters alone or hold no component.
    """

    def __init__(self, parts: Sequence[Part], given_order_wins: bool, prefer: Sequence[str] = ()) -> None:
        self.parts = tuple(part for part in parts if not is_lora(part.tensors))
        self.lora_paths = tuple(part.path for part in parts if is_lora(part.tensors))
        self._given_order_wins = given_order_wins
        self._prefer = tuple(prefer)
        if not self.parts and self.lora_paths:
            raise CheckpointError(f"{self.lora_paths[0]} is a LoRA adapter, not a model; open it with Lora.open")
        if not self.components:
            first = next(iter(self.parts[0].tensors), "none") if self.parts else "none"
            raise CheckpointError(f"{self.where} holds no component of an LTX model; first tensor: {first}")

    @classmethod
    def open(cls, path: Paths, prefer: Sequence[str] = (), verify: bool | None = None) -> Checkpoint:
        """Open one path or several.

        Of several files given one by one, the later wins where two hold the same component. In a folder ``prefer``
        names parts of file names that decide, such as ``("distilled",)``; a component that stays ambiguous cannot be
        built. ``verify``: check the digests our own files carry while reading; by default for files up to 256 MiB.
        """
        given = as_paths(path)
        if not given:
            raise CheckpointError("no checkpoint path given, expected at least one")
        files = [open_file(file, verify) for one in given for file in find_files(one)]
        return cls(read_parts(files), given_order_wins=len(given) > 1, prefer=prefer)

    @property
    def where(self) -> str:
        """The files, for messages."""
        return ", ".join(str(part.path) for part in self.parts)

    @property
    def bytes_read(self) -> int:
        """Tensor bytes read from all files so far; headers do not count."""
        return sum(file.bytes_read for part in self.parts for file in part.files)

    @cached_property
    def components(self) -> tuple[str, ...]:
        whole = [name for name, spec in COMPONENTS.items() if not spec.streams]
        return tuple(name for name in whole if any(part.holds(name) for part in self.parts))

    @cached_property
    def has_text_projection(self) -> bool:
        """Whether states of the language model can be projected; connectors are the other half of ``embeddings``."""
        return any(name.startswith("text_embedding_projection.") for part in self.parts for name in part.tensors)

    @property
    def is_ltx_video(self) -> bool:
        """Whether its transformer is of LTX-Video 0.9.x."""
        return bool(self.config.get("transformer", {}).get("_class_name") == LTX_VIDEO_CLASS)

    @cached_property
    def config(self) -> dict[str, Any]:
        """The config sections of all parts, the first part's winning; an upscaler's flat config is not among them.

        Of the ``transformer`` section, which describes connectors too, those with a transformer come first.
        """
        ordered = sorted(self.parts, key=lambda part: not part.holds("transformer"))
        sections = [part.config for part in ordered if "_class_name" not in part.config]
        merged: dict[str, Any] = {key: value for config in reversed(sections) for key, value in config.items()}
        described = [config.get("transformer") for config in reversed(sections)]
        if any(described):
            known = [section for section in described if isinstance(section, Mapping)]
            merged["transformer"] = {name: setting for section in known for name, setting in section.items()}
        return merged

    @cached_property
    def metadata(self) -> dict[str, str]:
        """The header strings of all parts, the first part's winning."""
        return {key: value for part in reversed(self.parts) for key, value in part.metadata.items()}

    @property
    def model_version(self) -> str:
        return self.metadata.get("model_version", "")

    @property
    def version(self) -> Version:
        return detect_version(self.model_version)

    def component_config(self, name: str) -> dict[str, Any]:
        """The config JSON as the component's own files state it, other files filling in the sections they lack."""
        own: dict[str, Any] = {}
        for part in self.parts_of(name):
            for section, value in part.config.items():
                if name == "embeddings" and section == "transformer":  # each describes what lies in its file
                    own[section] = {**value, **own.get(section, {})}
                elif own.setdefault(section, value) != value:
                    raise CheckpointError(f"{self._where(name)} contradict each other on config {section!r}")
        config = own if "_class_name" in own else {**self.config, **own}
        described = config.get("transformer")
        if name == "embeddings" and isinstance(described, Mapping) and "connector_num_attention_heads" not in described:
            inferred = infer_connectors({key: source.info.shape for key, source in self.sources(name).items()})
            config["transformer"] = {**inferred, **described}
        return config

    def network_config(self, name: str) -> Any:
        """The frozen config of a component's network; ``CheckpointError`` when the files describe none."""
        config, sources = self.component_config(name), self.sources(name)
        spec = COMPONENTS[name]
        if not spec.network:
            raise CheckpointError(f"{name} is not built from a checkpoint alone, ltx_core.text_encoders loads it")
        if not config:
            raise CheckpointError(f"{self._where(name)} carries no config in its metadata, {name} cannot be built")
        for parameter, flag in spec.optional.items():
            section = config.get("transformer")
            if parameter not in sources and isinstance(section, Mapping) and section.get(flag):
                config = {**config, "transformer": {**section, flag: False}}
        with as_checkpoint_error(f"{self._where(name)}: config describes no {name}"):
            _check_counts(config.get(spec.section) if spec.section else config, spec.layer_counts, len(sources))
            return spec.read_config(config)

    def build(
        self,
        name: str,
        dtype: torch.dtype | Precision | None = None,
        device: torch.device | str = "cpu",
        loras: Sequence[Lora] = (),
        quantization: str | QuantizationPolicy | None = None,
    ) -> nn.Module:
        """The network of a component with its weights, in evaluation mode and without gradients.

        ``dtype`` None keeps the file's dtypes. On the CPU, where no dtype changes, parameters are private views of the
        file. Raises ``CheckpointError`` that lists missing, unexpected and misshapen tensors, and for adapters of which
        nothing fits; what else of an adapter does not fit is logged.
        """
        from ltx_core.loader.weights import build

        weights = self.weights(name, dtype, device, quantization)
        return build(partial(self._construct, name), weights, loras, COMPONENTS[name].spare)

    def weights(
        self,
        name: str,
        dtype: torch.dtype | Precision | None = None,
        device: torch.device | str = "cpu",
        quantization: str | QuantizationPolicy | None = None,
    ) -> ComponentWeights:
        """A lazy reader of the component's tensors."""
        from ltx_core.loader.quantization import find_policy
        from ltx_core.loader.weights import ComponentWeights
        from ltx_core.model.common.meter import without_data

        sources = self.sources(name)
        if COMPONENTS[name].streams:
            with without_data():
                sources = _only_of(self._construct(name), sources)
        if quantization is None:
            return ComponentWeights(name, sources, dtype, device)
        if not COMPONENTS[name].quantizable:
            raise CheckpointError(f"{name} cannot be quantised, only the transformer can")
        policy = find_policy(quantization) if isinstance(quantization, str) else quantization
        sources = policy.keep_stored(sources)
        if policy.folds_scales:
            _check_scale_names(self.parts_of(name))
        return ComponentWeights(name, sources, dtype, device, policy)

    def empty_network(self, weights: ComponentWeights) -> nn.Module:
        """The network on the meta device, checked against the files, the policy's layers in place."""
        from ltx_core.loader.weights import empty

        return empty(partial(self._construct, weights.name), weights, COMPONENTS[weights.name].spare)

    def _construct(self, name: str) -> nn.Module:
        return COMPONENTS[name].construct(self.network_config(name))

    def sources(self, name: str) -> dict[str, Source]:
        """The place of each tensor of a component, by module name."""
        return {key: source for part in self.parts_of(name) for key, source in part.sources(name).items()}

    def parts_of(self, name: str) -> list[Part]:
        """The parts a component is read from; ``CheckpointError`` when there is none or several would do."""
        check_known("component", name, COMPONENTS, CheckpointError)
        candidates = [part for part in self.parts if part.holds(name)]
        if not candidates:
            raise CheckpointError(f"{self.where} holds no {name}; it holds {', '.join(self.components)}")
        for wanted in self._prefer:
            candidates = [part for part in candidates if wanted in part.path.name] or candidates
        chosen: list[Part] = []
        for part in candidates:
            rivals = [other for other in chosen if part.sources(name).keys() & other.sources(name).keys()]
            if rivals and not self._given_order_wins:
                files = ", ".join(str(one.path) for one in (*rivals, part))
                raise CheckpointError(f"{name} is in several files: {files}; open one of them, or name it with prefer")
            chosen = [*(other for other in chosen if other not in rivals), part]
        added = COMPONENTS[name].added
        return chosen + [part for part in self.parts if part not in chosen and part.has(added)]

    def verify(self) -> None:
        """Read every tensor of every file against its digest; ``CheckpointError`` on the first that differs."""
        for part in self.parts:
            for file in part.files:
                file.verify()

    def _where(self, name: str) -> str:
        return ", ".join(str(part.path) for part in self.parts_of(name))


def _only_of(network: nn.Module, sources: Mapping[str, Source]) -> dict[str, Source]:
    """The tensors a part of a larger network reads, with their scales."""
    own = network.state_dict().keys()
    layers = {name.rpartition(".")[0] for name in own if name.endswith(".weight")}
    return {name: source for name, source in sources.items() if name in own or name.rpartition(".")[0] in layers}


def _check_counts(config: Any, keys: Sequence[str], tensors: int) -> None:
    """Refuse layer counts above the number of tensors, which no file can fill, before any network is made."""
    if isinstance(config, Mapping):
        for key in keys:
            count = config.get(key)
            if isinstance(count, list):  # one per stage
                count = max((item for item in count if isinstance(item, int | float)), default=0)
            if isinstance(count, int | float) and count > tensors:
                raise ConfigError(f"{key} is {count}, the file has {tensors} tensors for it")
    if isinstance(config, Mapping | list):
        for item in config.values() if isinstance(config, Mapping) else config:
            _check_counts(item, keys, tensors)


def _check_scale_names(parts: Sequence[Part]) -> None:
    for part in parts:
        for name in part.tensors:
            if name.endswith("_scale") and not name.startswith(DIFFUSION_MODEL):
                raise CheckpointError(
                    f"{part.path}: scale {name} is outside {DIFFUSION_MODEL}, fp8-cast cannot fold it"
                )
