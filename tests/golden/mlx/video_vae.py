"""Golden operations of the video VAE in MLX."""

from __future__ import annotations

import json
import re
from typing import TypeVar

import torch
from safetensors.torch import load_file
from torch import Tensor

from ltx_core.loader.checkpoint import Checkpoint
from ltx_core.loader.components import COMPONENTS
from ltx_core.model.video_vae.config import Family, VideoVaeConfig
from ltx_core.model.video_vae.tiling import TilePlan, tiled_decode, tiled_encode
from ltx_core.model.video_vae.video_vae import DecodeConditioning
from ltx_mlx import video_vae as net
from ltx_mlx.arrays import channels_first, channels_last, to_mlx, to_torch
from ltx_mlx.conv_cache import ConvCache
from ltx_mlx.diffusion_decoder import DiffusionVideoDecoder, neighbourhood_attention, rotate
from ltx_mlx.layers import sinusoid
from ltx_mlx.weights import fill
from tests.golden.case import Case, read_header
from tests.golden.operations import Operation
from tests.golden.operations import video_vae as torch_operations
from tests.golden.operations.video_vae import (
    check_scale_factors,
    given_noise,
    plan_of,
    recorded_noise,
    tile_rows,
    tiling_of,
    video_from_recipe,
)

Half = TypeVar("Half", net.VideoEncoder, net.VideoDecoder)


def load(case: Case, network: type[Half]) -> Half:
    """Build one half of the case's VAE and give it the tensors of the file, strictly."""
    family: Family = "ltxv" if case.key[0].endswith("ltxv") else "ltx2"
    path = case.weights_path
    config = VideoVaeConfig.from_metadata(json.loads(read_header(path)["__metadata__"]["config"]), family)
    half = "encoder." if network is net.VideoEncoder else "decoder."
    tensors = {name.removeprefix("vae."): tensor for name, tensor in load_file(path).items()}
    state = {name.removeprefix(half): t for name, t in tensors.items() if name.startswith((half, "per_channel"))}
    return fill(network(config), state.items(), COMPONENTS["video_encoder"].spare)


def patches(case: Case) -> dict[str, Tensor]:
    hw, t = case.args["patch_size_hw"], case.args["patch_size_t"]
    assert t == 1
    x, image = case.inputs["x"], case.inputs["image"]
    patched = net.patchify(channels_last(x), hw)
    return {
        "out.patched": channels_first(patched),
        "out.unpatched": channels_first(net.unpatchify(patched, hw)),
        "out.image_patched": channels_first(net.patchify(channels_last(image.unsqueeze(2)), hw)).squeeze(2),
    }


def norms(case: Case) -> dict[str, Tensor]:
    x, dim = to_mlx(case.inputs["x"]), case.args["dim"]
    given = {name: float(name.partition("eps")[2] or case.args["eps"]) for name in case.outputs}
    return {f"out.{name}": to_torch(net.pixel_norm(x, dim, eps)) for name, eps in given.items()}


def convolution(case: Case) -> dict[str, Tensor]:
    weight, results = case.inputs["weight"], {}
    for name in case.outputs:
        space, time, *short = name.split("_")
        strided = space.startswith("stride")
        strides = tuple(int(digit) for digit in space.removeprefix("stride")) if strided else (1, 1, 1)
        conv = net.CausalConv3d(weight.shape[1], weight.shape[0], "zeros" if strided else space, strides)
        fill(conv, {"conv.weight": weight, "conv.bias": case.inputs["bias"]}.items())
        x = channels_last(case.inputs["_".join(["x", *short])])
        results[f"out.{name}"] = channels_first(conv(x, ConvCache(causal=time == "causal")))
    return results


def statistics(case: Case) -> dict[str, Tensor]:
    x = case.inputs["x"]
    module = net.PerChannelStatistics(x.shape[1])
    fill(module, ((name, tensor) for name, tensor in case.inputs.items() if name != "x"))
    results = {}
    for ending, given in (("", x), ("_bf16", x.to(torch.bfloat16))):
        results[f"out.normalized{ending}"] = channels_first(module.normalize(channels_last(given)))
        results[f"out.unnormalized{ending}"] = channels_first(module.un_normalize(channels_last(given)))
    return results


def timestep_embedding(case: Case) -> dict[str, Tensor]:
    timestep = to_mlx(case.inputs["timestep"] * case.args["timestep_scale_multiplier"])
    embedder = net.TimestepEmbedder(case.inputs["linear_1.bias"].shape[0])
    linears = {f"timestep_embedder.{name}": t for name, t in case.inputs.items() if name.startswith("linear")}
    fill(embedder, linears.items())
    found = sinusoid(timestep, case.args["dim"], float(case.args["max_period"]))
    return {"out.sinusoid": to_torch(found), "out.embedding": to_torch(embedder(timestep))}


def down_blocks(case: Case) -> dict[str, Tensor]:
    blocks = load(case, net.VideoEncoder).down_blocks
    runs = {f"out.y{i}": block(channels_last(case.inputs[f"x{i}"]), ConvCache()) for i, block in enumerate(blocks)}
    return {name: channels_first(y) for name, y in runs.items()}


def up_blocks(case: Case) -> dict[str, Tensor]:
    decoder, results = load(case, net.VideoDecoder), {}
    for name in case.outputs:
        found = re.fullmatch(r"y(\d+)_(causal|symmetric)", name)
        assert found is not None
        index, mode = found.groups()
        draws = recorded_noise(case, f"noise{index}.")
        cache = ConvCache(causal=mode == "causal", noise=given_noise(draws) if draws else None)
        if "timestep" in case.inputs:
            cache.timestep = to_mlx(case.inputs["timestep"]) * decoder.timestep_scale_multiplier
        y = decoder.up_blocks[int(index)](channels_last(case.inputs[f"x{index}"]), cache)
        results[f"out.{name}"] = channels_first(y)
    return results


def wide_resnets(case: Case) -> dict[str, Tensor]:
    encoder_block = load(case, net.VideoEncoder).down_blocks[0]
    decoder_block = load(case, net.VideoDecoder).up_blocks[0]
    results = {"out.y_enc": channels_first(encoder_block(channels_last(case.inputs["x_enc"]), ConvCache()))}
    for mode in ("causal", "symmetric"):
        y = decoder_block(channels_last(case.inputs["x_dec"]), ConvCache(causal=mode == "causal"))
        results[f"out.y_dec_{mode}"] = channels_first(y)
    return results


def group_norm_resnets(case: Case) -> dict[str, Tensor]:
    is_encoder = case.args["side"] == "encoder"
    block = load(case, net.VideoEncoder).down_blocks[0] if is_encoder else load(case, net.VideoDecoder).up_blocks[0]
    return {"out.y": channels_first(block(channels_last(case.inputs["x"]), ConvCache(causal=case.args["causal"])))}


def encode(case: Case) -> dict[str, Tensor]:
    encoder, video = load(case, net.VideoEncoder), case.inputs["video"]
    check_scale_factors(case, encoder)
    results = {"out.latent": encoder(video)}
    if "latent_first_frame_only" in case.outputs:
        results["out.latent_first_frame_only"] = encoder(video[:, :, :1])
    return results


def decode(case: Case) -> dict[str, Tensor]:
    decoder = load(case, net.VideoDecoder)
    check_scale_factors(case, decoder)
    return {"out.video": decoder(case.inputs["latent"])}


def decode_at_timestep(case: Case) -> dict[str, Tensor]:
    decoder, results = load(case, net.VideoDecoder), {}
    for name in case.outputs:
        kind = name.removeprefix("video_")
        timestep = None if kind == "default" else case.inputs[f"timestep_{kind}"]
        noise = given_noise(recorded_noise(case))
        conditioning = DecodeConditioning(timestep, case.args["decode_noise_scale"], noise)
        results[f"out.{name}"] = decoder(case.inputs["latent"], conditioning)
    return results


def rgb_frames(case: Case) -> dict[str, Tensor]:
    return {"out.frames": torch.cat(list(load(case, net.VideoDecoder).decode_frames(case.inputs["latent"])))}


def round_trip(case: Case) -> dict[str, Tensor]:
    latent = load(case, net.VideoEncoder)(case.inputs["video"])
    return {"out.latent": latent, "out.video": load(case, net.VideoDecoder)(latent)}


def ltxv_round_trip(case: Case) -> dict[str, Tensor]:
    encoder, decoder, video = load(case, net.VideoEncoder), load(case, net.VideoDecoder), case.inputs["video"]
    mean, log_variance = encoder.moments(video)
    assert log_variance is not None
    results = {
        "out.mean": channels_first(mean),
        "out.logvar": channels_first(log_variance),
        "out.latent": encoder(video),
        "out.latent_sampled": encoder.sample(video, lambda shape: case.inputs["posterior_noise"].view(shape)),
    }
    timestep, scale = case.args["decode_timestep"], case.args["decode_noise_scale"]
    conditioning = DecodeConditioning(timestep, timestep if scale is None else scale, given_noise(recorded_noise(case)))
    return results | {"out.video": decoder(results["out.latent"], conditioning)}


def decode_tiles(case: Case) -> dict[str, Tensor]:
    decoder, latent, tiling = load(case, net.VideoDecoder), case.inputs["latent"], tiling_of(case)
    plan = TilePlan.of(tuple(latent.shape[2:]), tiling, decoder.scale_factors)
    chunks = list(tiled_decode(decoder, latent, tiling))
    return {
        "out.video": torch.cat(chunks, dim=2),
        "out.chunk_lengths": torch.tensor([chunk.shape[2] for chunk in chunks]),
        "out.tiles": tile_rows(plan.tiles, latent_first=True),
    }


def encode_tiles(case: Case) -> dict[str, Tensor]:
    encoder, tiling = load(case, net.VideoEncoder), tiling_of(case)
    video = case.inputs["video"] if "video" in case.inputs else video_from_recipe(case)
    plan = plan_of(video, tiling, encoder.scale_factors)
    results = {"out.latent": tiled_encode(encoder, video[:, :, : plan.frames[-1].pixels.end], plan)}
    if "tiles" in case.outputs:
        results["out.tiles"] = tile_rows(plan.tiles, latent_first=False)
    return results


def load_diffusion(case: Case) -> DiffusionVideoDecoder:
    checkpoint = Checkpoint.open(case.weights_path)
    network = DiffusionVideoDecoder(checkpoint.network_config("video_decoder").diffusion_decoder)
    state = checkpoint.weights("video_decoder", torch.float32).state_dict()
    return fill(network, state.items(), COMPONENTS["video_decoder"].spare)


def neighbourhoods(case: Case) -> dict[str, Tensor]:
    q, k, v = (to_mlx(case.inputs[name]) for name in "qkv")
    results = {}
    for name in case.outputs:
        kernel = tuple(int(size) for size in re.findall(r"\d+", name))
        scale = q.shape[-1] ** -0.5 if name.endswith("scaled") else 1.0
        results[f"out.{name}"] = to_torch(neighbourhood_attention(q, k, v, kernel, scale))
    return results


def rotary(case: Case) -> dict[str, Tensor]:
    """Frequencies and widths are shared; the rotation is MLX's."""
    turned = rotate(to_mlx(case.inputs["x"]), base=case.args["base"])
    return torch_operations.rotary(case) | {"out.y": to_torch(turned)}


def diffusion_blocks(case: Case) -> dict[str, Tensor]:
    decoder, inputs = load_diffusion(case), {name: to_mlx(x) for name, x in case.inputs.items()}
    results = {}
    for name, x in inputs.items():
        if name.startswith("det"):
            results[f"out.{name}"] = decoder.det_stages[int(name[3:])][0](x)
        elif name.startswith("up"):
            upsample = decoder.upsamples[int(name[2:])]
            results |= {f"out.{name}_drop": upsample(x, begins=True), f"out.{name}_keep": upsample(x, begins=False)}
    pixels = channels_last(case.inputs["x_t"])
    modulation = decoder.shared_adaln(decoder.t_embedder(inputs["t"] * decoder.config.timestep_scale, pixels.dtype))
    x = decoder.conv_in_x_t(net.patchify(pixels, decoder.config.patch_size))
    results["out.diff_block0"] = decoder.diff_blocks[0].denoise_frames(x, inputs["context"], modulation)
    found = {name: to_torch(value) for name, value in results.items() if name in case.tensors}
    return found | {"out.diff_step": channels_first(decoder.step(pixels, inputs["context"], inputs["t"]))}


def column_slabs(case: Case) -> dict[str, Tensor]:
    decoder, t = load_diffusion(case), to_mlx(case.inputs["t"])
    context = decoder.upsamples[-1](to_mlx(case.inputs["stage4_features"]), case.args["drop_leading_frame"])
    pixels = channels_last(case.inputs["x_t"])
    results = {"out.full": channels_first(decoder.step(pixels, context, t))}
    decoder.copy_edges()
    return results | {"out.w_chunked": channels_first(decoder.step(pixels, context, t))}


def diffusion_decode(case: Case) -> dict[str, Tensor]:
    decoder, latent = load_diffusion(case), case.inputs["latent"]
    tiling = tiling_of(case) if "frames" in case.args else None
    conditioning = DecodeConditioning(noise=given_noise(torch_operations.drawn_noise(case)))
    chunks = list(decoder.decode_tiled(latent, tiling, conditioning))
    video = torch.cat(chunks, dim=2)
    results = {
        "out.video": video,
        "out.shape": torch.tensor(video.shape),
        "out.chunk_lengths": torch.tensor([chunk.shape[2] for chunk in chunks]),
        "out.row_mean": video.mean(dim=-1),
        "out.video_sub": video[:, :, :, 1::3, 2::3],
    }
    return {name: value for name, value in results.items() if name in case.tensors}


OPERATIONS: dict[tuple[str, str], Operation] = {
    ("video_vae.ops", "patchify/unpatchify"): patches,
    ("video_vae.norm", "pixel_norm"): norms,
    ("video_vae.conv", "causal_conv3d"): convolution,
    ("video_vae.stats", "normalize/un_normalize"): statistics,
    ("video_vae.timestep", "scaled timestep -> sinusoid(256) -> linear, silu, linear"): timestep_embedding,
    ("video_vae.encoder", "down_blocks.{i} alone"): down_blocks,
    ("video_vae.decoder", "up_blocks.{i} alone"): up_blocks,
    ("video_vae", "res_x_y in the ltx-core form"): wide_resnets,
    ("video_vae", "res_x with norm_layer=group_norm"): group_norm_resnets,
    ("video_vae.encoder", "encode"): encode,
    ("video_vae.decoder", "decode"): decode,
    ("video_vae.decoder", "decode, not tiled"): decode,
    ("video_vae.decoder", "decode with timestep conditioning"): decode_at_timestep,
    ("video_vae.decoder", "decode_video"): rgb_frames,
    ("video_vae", "encode then decode"): round_trip,
    ("video_vae.ltxv", "encode, then decode of the normalised mean"): ltxv_round_trip,
    ("video_vae.decoder", "tiled decode"): decode_tiles,
    ("video_vae.encoder", "tiled encode"): encode_tiles,
    ("video_vae.diffusion", "neighbourhood attention"): neighbourhoods,
    ("video_vae.diffusion", "absolute 3-axis rotary embedding"): rotary,
    ("video_vae.diffusion", "blocks alone"): diffusion_blocks,
    ("video_vae.diffusion", "stage-5 step, W-chunked approximation"): column_slabs,
    ("video_vae.diffusion", "decode"): diffusion_decode,
}
#: Geometry of tiles, the same for every backend.
SHARED = {
    ("video_vae.tiling", "trapezoidal_mask_1d / rectangular_mask_1d"),
    ("video_vae.tiling", "split one axis"),
    ("video_vae.tiling", "map a latent interval to pixels"),
    ("video_vae.tiling", "chunk count and long-side tile sizes"),
    ("video_vae.diffusion", "recommended decode tiling"),
    ("video_vae.diffusion", "tiling geometry of a config"),
}
