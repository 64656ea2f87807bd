"""The parts of a checkpoint as data: which tensors belong to each, and which network they fill.

Native names (section prefixes of the published single files; 2.5 files of one part leave the outer ``vae.`` out)::

    transformer       model.diffusion_model.*
    embeddings        text_embedding_projection.*, model.diffusion_model.{video_,audio_,}embeddings_connector.*
    video_encoder     [vae.]encoder.*            video_decoder     [vae.]decoder.*
    audio_encoder     audio_vae.encoder.*        audio_decoder     audio_vae.decoder.*
    vocoder           vocoder.*                  duration_head     duration_head.*
    latent_upsampler  bare module names
    audio_adapter     audio_adapter.*: sound for an LTX-Video transformer, a part of it where both are opened
    text_encoder      the language model of a packed text-encoder file

``video_transformer`` and ``audio_transformer`` are the transformer with one of its streams. Both halves of a VAE also
own ``per_channel_statistics.*``.
"""

from __future__ import annotations

import importlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

from ltx_core.model.transformer.config import AUDIO_ADAPTER
from ltx_core.model.video_vae.diffusion.config import GATES

if TYPE_CHECKING:
    from torch import nn

DIFFUSION_MODEL = "model.diffusion_model."
VIDEO_CONNECTORS = (f"{DIFFUSION_MODEL}video_embeddings_connector.", f"{DIFFUSION_MODEL}embeddings_connector.")
AUDIO_CONNECTOR = f"{DIFFUSION_MODEL}audio_embeddings_connector."
STATISTICS = "per_channel_statistics."
ADAPTER_PREFIX = f"{AUDIO_ADAPTER}."


@dataclass(frozen=True)
class ComponentSpec:
    """One part of a checkpoint. ``network`` and ``config`` are ``module:Class``, imported when the part is built."""

    prefixes: Mapping[str, str]  # of native names, and what stands for them in module names; others are not loaded
    markers: tuple[str, ...]  # a tensor under one of these shows that the part is there
    network: str = ""  # built as network(config); empty: not built here
    config: str = ""  # read by config.from_metadata
    section: str = ""  # of the config JSON; empty: all of it
    layer_counts: tuple[str, ...] = ()  # keys there, at any depth, of which the file has at least one tensor each
    streams: tuple[str, ...] = ()  # of a transformer with more streams, build only these
    optional: Mapping[str, str] = field(default_factory=dict)  # parameter -> config flag, off if absent
    elsewhere: tuple[str, ...] = ()  # starts of module names that pass but belong to another component or none
    added: tuple[str, ...] = ()  # starts of native names that another file may add to it
    gates: Mapping[str, str] = field(default_factory=dict)  # tensors multiplied into a layer of their block
    spare: tuple[str, ...] = ()  # tensors nothing computes with: the file, the network or both may lack them
    quantizable: bool = False

    def module_name(self, name: str) -> str | None:
        """The name in the network of a tensor with a native name; None where it is none of this component's."""
        for prefix, own in self.prefixes.items():
            if name.startswith(prefix):
                module = own + name.removeprefix(prefix)
                return None if module.startswith(self.elsewhere) else module
        return None

    def read_config(self, metadata_config: Mapping[str, Any]) -> Any:
        """The network's frozen config; ``ConfigError`` when the checkpoint's JSON describes none."""
        read = _load(self.config).from_metadata
        return read(metadata_config, self.streams) if self.streams else read(metadata_config)

    def construct(self, config: Any) -> nn.Module:
        """The network, on whatever device is current."""
        return _load(self.network)(config)


def transformer_component(config: Mapping[str, Any], streams: Sequence[str]) -> str:
    """The component that serves ``streams``: for one of two, the part of the transformer that computes it alone."""
    has_audio = "audio_num_attention_heads" in config.get("transformer", {}) or AUDIO_ADAPTER in config
    return "transformer" if len(streams) == 2 or not has_audio else f"{streams[0]}_transformer"


def _load(path: str) -> Any:
    module, _, name = path.partition(":")
    return getattr(importlib.import_module(module), name)


def _half_of_vae(prefix: str, bare: bool, half: str, network: str, config: str) -> ComponentSpec:
    outer = (f"{prefix}.", "") if bare else (f"{prefix}.",)
    prefixes = {f"{start}{half}.": "" for start in outer} | {f"{start}{STATISTICS}": STATISTICS for start in outer}
    bare_markers = (f"{half}.conv_in.", f"{half}.down_blocks.", f"{half}.up_blocks.") if bare else ()
    return ComponentSpec(
        prefixes=prefixes,
        markers=(f"{prefix}.{half}.", *bare_markers),
        network=network,
        config=config,
        section=prefix,
        layer_counts=("num_layers", "num_res_blocks", "stage_depths"),
        elsewhere=("coarse_",),
        gates=GATES,
        spare=(*LTXV_STATISTICS, "type_emb"),
    )


LTXV_STATISTICS = tuple(STATISTICS + name for name in ("channel", "mean-of-stds", "mean-of-stds_over_std-of-means"))
TRANSFORMER = ComponentSpec(
    prefixes={DIFFUSION_MODEL: "", ADAPTER_PREFIX: ""},
    markers=(f"{DIFFUSION_MODEL}transformer_blocks.", f"{DIFFUSION_MODEL}patchify_proj."),
    network="ltx_core.model.transformer.model:LTXModel",
    config="ltx_core.model.transformer.config:TransformerConfig",
    section="transformer",
    layer_counts=("num_layers",),
    optional={"keyframes_abs_pos_embedding": "use_keyframes_abs_pos_embedding"},
    elsewhere=tuple(name.removeprefix(DIFFUSION_MODEL) for name in (*VIDEO_CONNECTORS, AUDIO_CONNECTOR)),
    added=(ADAPTER_PREFIX,),
    quantizable=True,
)


_VIDEO_VAE = "ltx_core.model.video_vae.video_vae"
_VIDEO_DECODERS = "ltx_core.model.video_vae.frames"
_VIDEO_VAE_CONFIG = "ltx_core.model.video_vae.config:VideoVaeConfig"
_AUDIO_VAE = "ltx_core.model.audio_vae.audio_vae"
_AUDIO_VAE_CONFIG = "ltx_core.model.audio_vae.config:AudioVaeConfig"

COMPONENTS: dict[str, ComponentSpec] = {
    "transformer": TRANSFORMER,
    "video_transformer": replace(TRANSFORMER, streams=("video",)),
    "audio_transformer": replace(TRANSFORMER, streams=("audio",)),
    "embeddings": ComponentSpec(
        prefixes={
            "text_embedding_projection.": "feature_extractor.",
            VIDEO_CONNECTORS[0]: "video_connector.",
            VIDEO_CONNECTORS[1]: "video_connector.",
            AUDIO_CONNECTOR: "audio_connector.",
        },
        markers=("text_embedding_projection.", *VIDEO_CONNECTORS, AUDIO_CONNECTOR),
        network="ltx_core.text_encoders.gemma.embeddings:EmbeddingsProcessor",
        config="ltx_core.text_encoders.gemma.config:EmbeddingsConfig",
        section="transformer",
        layer_counts=("connector_num_layers", "audio_connector_num_layers"),
    ),
    "video_encoder": _half_of_vae("vae", True, "encoder", f"{_VIDEO_VAE}:VideoEncoder", _VIDEO_VAE_CONFIG),
    "video_decoder": _half_of_vae("vae", True, "decoder", f"{_VIDEO_DECODERS}:make_video_decoder", _VIDEO_VAE_CONFIG),
    "audio_encoder": _half_of_vae("audio_vae", False, "encoder", f"{_AUDIO_VAE}:AudioEncoder", _AUDIO_VAE_CONFIG),
    "audio_decoder": _half_of_vae("audio_vae", False, "decoder", f"{_AUDIO_VAE}:AudioDecoder", _AUDIO_VAE_CONFIG),
    "vocoder": ComponentSpec(
        prefixes={"vocoder.": ""},
        markers=("vocoder.",),
        network="ltx_core.model.audio_vae.vocoder:Vocoder",
        config="ltx_core.model.audio_vae.config:VocoderConfig",
    ),
    "duration_head": ComponentSpec(
        prefixes={"duration_head.": ""},
        markers=("duration_head.",),
        network="ltx_core.model.duration_head.model:DurationHead",
        config="ltx_core.model.duration_head.config:DurationHeadConfig",
    ),
    "latent_upsampler": ComponentSpec(
        prefixes={"": ""},
        markers=("initial_conv.",),
        network="ltx_core.model.upsampler.model:LatentUpsampler",
        config="ltx_core.model.upsampler.config:LatentUpsamplerConfig",
        layer_counts=("num_blocks_per_stage",),
    ),
    AUDIO_ADAPTER: ComponentSpec(prefixes={ADAPTER_PREFIX: ""}, markers=(ADAPTER_PREFIX,)),
    "text_encoder": ComponentSpec(
        prefixes={"": ""}, markers=("tokenizer_json", "model.layers.", "model.language_model.", "language_model.model.")
    ),
}
