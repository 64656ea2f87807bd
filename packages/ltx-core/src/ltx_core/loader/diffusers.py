"""Tensor names of the diffusers library's folders, to the published names and back.

A component is a folder with a ``config.json`` that names a class; what each class is called here says ``CLASSES``. Its
configs are in `diffusers_config`.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING

from ltx_core.loader.components import AUDIO_CONNECTOR, DIFFUSION_MODEL, VIDEO_CONNECTORS
from ltx_core.loader.sources import Derived, Source
from ltx_core.model.transformer.foreign import NAMES as TRANSFORMER_NAMES

if TYPE_CHECKING:
    from torch import Tensor

    from ltx_core.model.video_vae.config import BlockConfig

#: Class of a ``config.json`` -> the folder it lies in.
CLASSES = {
    "LTX2VideoTransformer3DModel": "transformer",
    "LTXVideoTransformer3DModel": "transformer",
    "LTX2TextConnectors": "connectors",
    "AutoencoderKLLTX2Video": "vae",
    "AutoencoderKLLTXVideo": "vae",
    "AutoencoderKLLTX2Audio": "audio_vae",
    "LTX2Vocoder": "vocoder",
    "LTX2VocoderWithBWE": "vocoder",
    "LTX2DurationHead": "duration_head",
    "LTX2VideoDiffusionDecoderModel": "diffusion_decoder",
    "LTX2LatentUpsamplerModel": "latent_upsampler",
    "LTXLatentUpsamplerModel": "latent_upsampler",
}
Pairs = Sequence[tuple[str, str]]  # (ours, theirs)

STATISTICS: Pairs = (
    ("per_channel_statistics.mean-of-means", "latents_mean"),
    ("per_channel_statistics.std-of-means", "latents_std"),
)
NORMS: Pairs = (("q_norm", "norm_q"), ("k_norm", "norm_k"))
VOCODER: Pairs = (
    ("conv_pre", "conv_in"),
    ("conv_post", "conv_out"),
    ("act_post", "act_out"),
    ("ups", "upsamplers"),
    ("resblocks", "resnets"),
    ("downsample.lowpass.filter", "downsample.filter"),
)
DIFFUSION_DECODER: Pairs = (
    *NORMS,
    ("attn.proj", "attn.to_out.0"),
    ("t_embedder.mlp.0", "t_embedder.timestep_embedder.linear_1"),
    ("t_embedder.mlp.2", "t_embedder.timestep_embedder.linear_2"),
)
#: Of LTX-Video's decoders, which are told the noise level.
LAST: Pairs = (
    ("decoder.last_time_embedder.", "decoder.time_embedder."),
    ("decoder.last_scale_shift_table", "decoder.scale_shift_table"),
)
#: Kind -> starts of names, the first that fits counts.
STARTS: dict[str, Pairs] = {
    "transformer": ((DIFFUSION_MODEL, ""),),
    "connectors": (
        ("text_embedding_projection.aggregate_embed.", "text_proj_in."),
        ("text_embedding_projection.video_aggregate_embed.", "video_text_proj_in."),
        ("text_embedding_projection.audio_aggregate_embed.", "audio_text_proj_in."),
        (VIDEO_CONNECTORS[0], "video_connector."),
        (AUDIO_CONNECTOR, "audio_connector."),
    ),
    "vae": (*((f"vae.{ours}", theirs) for ours, theirs in STATISTICS), ("vae.", "")),
    "audio_vae": (*((f"audio_vae.{ours}", theirs) for ours, theirs in STATISTICS), ("audio_vae.", "")),
    "vocoder": (("vocoder.", ""),),
    "duration_head": (("duration_head.", ""),),
    "diffusion_decoder": (*((f"vae.{ours}", theirs) for ours, theirs in STATISTICS), ("vae.", "")),
    "latent_upsampler": (("", ""),),
}
#: Kind -> whole parts of names, wherever they stand.
PARTS: dict[str, Pairs] = {
    "transformer": tuple(TRANSFORMER_NAMES.items()),
    "connectors": (("transformer_1d_blocks", "transformer_blocks"), *NORMS),
    "vocoder": VOCODER,
    "diffusion_decoder": DIFFUSION_DECODER,
}
FUSED, QUERY_KEY_VALUE = ".attn.qkv.", (".attn.to_q.", ".attn.to_k.", ".attn.to_v.")


def to_diffusers(kind: str, name: str, blocks: Pairs = ()) -> str:
    """The name a folder of this kind has for a tensor with a published name; ``blocks`` as of `vae_blocks`."""
    name = _with_start(name, STARTS[kind])
    return _with_parts(_with_start(name, blocks), PARTS.get(kind, ()))


def from_diffusers(kind: str, name: str, blocks: Pairs = ()) -> str:
    """The published name of a tensor in a folder of this kind."""
    name = _with_start(name, [(theirs, ours) for ours, theirs in blocks])
    name = _with_parts(name, [(theirs, ours) for ours, theirs in PARTS.get(kind, ())])
    return _with_start(name, [(theirs, ours) for ours, theirs in STARTS[kind]])


def _with_start(name: str, pairs: Iterable[tuple[str, str]]) -> str:
    return next((after + name[len(before) :] for before, after in pairs if name.startswith(before)), name)


def _with_parts(name: str, pairs: Iterable[tuple[str, str]]) -> str:
    text = f".{name}."
    for before, after in pairs:
        text = text.replace(f".{before}.", f".{after}.")
    return text[1:-1]


def vae_blocks(encoder: Sequence[BlockConfig], decoder: Sequence[BlockConfig]) -> Pairs:
    """Starts of the names of a VAE's blocks, whose lists are in file order.

    diffusers groups them: stacks of resnets with the resampling after it (encoder) or before it (decoder), and the
    stack at the latent's end as ``mid_block``.
    """
    pairs = list(LAST)
    place = 0
    samplings = sum(block.name.startswith("compress") for block in encoder)
    for index, block in enumerate(encoder):
        own = f"encoder.down_blocks.{index}."
        if block.name.startswith("compress"):
            pairs.append((own, f"encoder.down_blocks.{place}.downsamplers.0."))
            place += 1
        else:
            group = f"encoder.down_blocks.{place}." if place < samplings else "encoder.mid_block."
            pairs.append((f"{own}res_blocks.", f"{group}resnets."))
    place = -1
    for index, block in enumerate(reversed(decoder)):
        own = f"decoder.up_blocks.{index}."
        if block.name.startswith("compress"):
            place += 1
            pairs.append((own, f"decoder.up_blocks.{place}.upsamplers.0."))
        else:
            group = f"decoder.up_blocks.{place}." if place >= 0 else "decoder.mid_block."
            pairs += [(f"{own}res_blocks.", f"{group}resnets."), (f"{own}time_embedder.", f"{group}time_embedder.")]
    return pairs


def read_names(kind: str, tensors: Mapping[str, Source], blocks: Pairs = ()) -> dict[str, Source]:
    """The tensors of a folder by their published names; query, key and value that are one tensor there are joined."""
    named: dict[str, Source] = {}
    for name, source in tensors.items():
        if kind == "diffusion_decoder" and (part := next((p for p in QUERY_KEY_VALUE if p in name), None)):
            if part == QUERY_KEY_VALUE[0]:
                parts = tuple(tensors[name.replace(part, other)] for other in QUERY_KEY_VALUE)
                shape = (3 * source.info.shape[0], *source.info.shape[1:])
                named[from_diffusers(kind, name.replace(part, FUSED), blocks)] = Derived.of(parts, _join, shape)
        else:
            named[from_diffusers(kind, name, blocks)] = source
    return named


def written_names(kind: str, tensors: Mapping[str, Source], blocks: Pairs = ()) -> dict[str, Source]:
    """Tensors with published names as a folder of this kind has them."""
    named: dict[str, Source] = {}
    for name, source in tensors.items():
        if kind == "diffusion_decoder" and FUSED in name:
            rows, *rest = source.info.shape
            for index, part in enumerate(QUERY_KEY_VALUE):
                own = to_diffusers(kind, name, blocks).replace(FUSED, part)
                named[own] = Derived.of((source,), _Third(index), (rows // 3, *rest))
        else:
            named[to_diffusers(kind, name, blocks)] = source
    return named


def _join(*tensors: Tensor) -> Tensor:
    import torch

    return torch.cat(tensors)


class _Third(int):
    """A third of a tensor's rows."""

    def __call__(self, tensor: Tensor) -> Tensor:
        return tensor.chunk(3)[self]
