"""Golden operations of the video VAE."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator

import numpy
import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from ltx_core.errors import ConfigError
from ltx_core.loader.checkpoint import Checkpoint
from ltx_core.loader.components import COMPONENTS
from ltx_core.loader.weights import fill
from ltx_core.model.common.tiling import (
    Interval,
    TileCountConfig,
    causal,
    rectangular_mask_1d,
    split_by_count,
    split_by_size,
    trapezoidal_mask_1d,
)
from ltx_core.model.video_vae.blocks import AttentionBlock, ResnetStack, SpaceToDepthDownsample
from ltx_core.model.video_vae.config import Family, VideoVaeConfig
from ltx_core.model.video_vae.conv_cache import ConvCache, NoiseSource
from ltx_core.model.video_vae.diffusion.attention import axis_frequencies, axis_widths, neighbourhood_attention, rotate
from ltx_core.model.video_vae.diffusion.config import DiffusionDecoderConfig
from ltx_core.model.video_vae.diffusion.decoder import DiffusionVideoDecoder, pad_edges
from ltx_core.model.video_vae.diffusion.tiling import MemoryBudget, recommended_tiling
from ltx_core.model.video_vae.frames import decode_video
from ltx_core.model.video_vae.layers import CausalConv3d, TimestepEmbedder, pixel_norm
from ltx_core.model.video_vae.ops import PerChannelStatistics, patchify, unpatchify
from ltx_core.model.video_vae.tiling import (
    Span,
    Tile,
    TilePlan,
    TileSizeConfig,
    Tiling,
    announced_chunks,
    tiled_decode,
    tiled_encode,
)
from ltx_core.model.video_vae.video_vae import DecodeConditioning, VideoDecoder, VideoEncoder
from ltx_core.types import SpatioTemporalScaleFactors
from ltx_core.utils import timestep_embedding as sinusoids
from tests.golden.case import Case, read_header
from tests.golden.operations import Operation

Network = VideoEncoder | VideoDecoder


def load(case: Case, network: type[VideoEncoder] | type[VideoDecoder]) -> Network:
    """Build one half of the case's VAE without memory and give it the tensors of the file, strictly."""
    family: Family = "ltxv" if case.key[0].endswith("ltxv") else "ltx2"
    path = case.weights_path
    config = VideoVaeConfig.from_metadata(json.loads(read_header(path)["__metadata__"]["config"]), family)
    with torch.device("meta"):
        model = network(config)
    half = "encoder." if network is VideoEncoder else "decoder."
    tensors = {name.removeprefix("vae."): tensor for name, tensor in load_file(path).items()}
    state = {name.removeprefix(half): t for name, t in tensors.items() if name.startswith((half, "per_channel"))}
    return fill(model, state, COMPONENTS["video_encoder"].spare)


def watch(modules: dict[str, nn.Module], case: Case) -> dict[str, Tensor]:
    """Outputs of the modules, by the name under `mid.` they are listed by, filled as they run."""
    seen: dict[str, Tensor] = {}

    def keep(name: str):
        def hook(_module: nn.Module, _inputs: object, output: Tensor) -> None:
            seen.setdefault(f"mid.{name}", output.clone())

        return hook

    for name in case.group("mid."):
        if name in modules:
            modules[name].register_forward_hook(keep(name))
    return seen


def given_noise(tensors: list[Tensor]) -> NoiseSource:
    """A noise source that gives recorded draws in order."""
    draws = iter(tensors)

    def draw(shape: tuple[int, ...]) -> Tensor:
        noise = next(draws)
        assert tuple(noise.shape) == tuple(shape)
        return noise

    return draw


def recorded_noise(case: Case, prefix: str = "noise.") -> list[Tensor]:
    draws = case.group(f"in.{prefix}")
    return [draws[str(index)] for index in range(len(draws))]


def patches(case: Case) -> dict[str, Tensor]:
    hw, t = case.args["patch_size_hw"], case.args["patch_size_t"]
    results = {"out.patched": patchify(case.inputs["x"], hw, t)}
    results["out.unpatched"] = unpatchify(results["out.patched"], hw, t)
    results["out.image_patched"] = patchify(case.inputs["image"], hw)
    return results


def norms(case: Case) -> dict[str, Tensor]:
    x, dim = case.inputs["x"], case.args["dim"]
    return {
        f"out.{name}": pixel_norm(x, dim, float(name.partition("eps")[2] or case.args["eps"])) for name in case.outputs
    }


def convolution(case: Case) -> dict[str, Tensor]:
    weight, bias = case.inputs["weight"], case.inputs["bias"]
    assert set(weight.shape[2:]) == {case.args["kernel_size"]}
    results = {}
    for name in case.outputs:
        space, time, *short = name.split("_")
        strides = (
            tuple(int(digit) for digit in space.removeprefix("stride")) if space.startswith("stride") else (1, 1, 1)
        )
        padding = "zeros" if space.startswith("stride") else space
        conv = CausalConv3d(weight.shape[1], weight.shape[0], padding, strides)
        conv.load_state_dict({"conv.weight": weight, "conv.bias": bias})
        x = case.inputs["_".join(["x", *short])]
        results[f"out.{name}"] = conv(x, ConvCache(causal=time == "causal"))
    return results


def statistics(case: Case) -> dict[str, Tensor]:
    x = case.inputs["x"]
    module = PerChannelStatistics(x.shape[1])
    module.load_state_dict({name: t for name, t in case.inputs.items() if name != "x"})
    half = x.to(torch.bfloat16)
    return {
        "out.normalized": module.normalize(x),
        "out.unnormalized": module.un_normalize(x),
        "out.normalized_bf16": module.normalize(half),
        "out.unnormalized_bf16": module.un_normalize(half),
    }


def timestep_embedding(case: Case) -> dict[str, Tensor]:
    timestep = case.inputs["timestep"] * case.args["timestep_scale_multiplier"]
    linears = {f"timestep_embedder.{name}": t for name, t in case.inputs.items() if name.startswith("linear")}
    embedder = TimestepEmbedder(case.inputs["linear_1.bias"].shape[0])
    embedder.load_state_dict(linears)
    sinusoid = sinusoids(timestep, case.args["dim"], float(case.args["max_period"]))
    return {"out.sinusoid": sinusoid, "out.embedding": embedder(timestep)}


def block_parts(index: int, block: nn.Module) -> dict[str, nn.Module]:
    """Submodules under the short names block cases use, such as `conv10`: conv1 of block 0."""
    if isinstance(block, AttentionBlock):
        return {f"norm{index}": block.norm, f"qkv{index}": block.to_qkv, f"proj{index}": block.proj}
    if isinstance(block, ResnetStack):
        first = block.res_blocks[0]
        names = {name: getattr(first, name) for name in ("norm1", "conv1", "norm2", "conv2")}
        return {f"{name}{index}": module for name, module in {**names, "res0": first}.items()}
    return {}


def down_blocks(case: Case) -> dict[str, Tensor]:
    encoder = load(case, VideoEncoder)
    modules = {name: m for i, block in enumerate(encoder.down_blocks) for name, m in block_parts(i, block).items()}
    results = watch(modules, case)
    for i, block in enumerate(encoder.down_blocks):
        x = case.inputs[f"x{i}"]
        results[f"out.y{i}"] = block(x, ConvCache())
        if isinstance(block, SpaceToDepthDownsample) and f"mid.skip{i}" in case.tensors:
            results[f"mid.skip{i}"] = block.shortcut(ConvCache().pairs(block, x) if block.stride[0] == 2 else x)
    return results


def up_blocks(case: Case) -> dict[str, Tensor]:
    decoder = load(case, VideoDecoder)
    results = {}
    for name in case.outputs:
        index, mode = re.fullmatch(r"y(\d+)_(causal|symmetric)", name).groups()
        block = decoder.up_blocks[int(index)]
        draws = recorded_noise(case, f"noise{index}.")
        cache = ConvCache(causal=mode == "causal", noise=given_noise(draws) if draws else None)
        if "timestep" in case.inputs:
            cache.timestep = case.inputs["timestep"] * decoder.timestep_scale_multiplier
        modules = {f"conv{index}_{mode}": getattr(block, "conv", None)}
        seen = watch({name: module for name, module in modules.items() if module is not None}, case)
        results[f"out.{name}"] = block(case.inputs[f"x{index}"], cache)
        results |= seen
        if cache.timestep is not None and isinstance(block, ResnetStack):
            embedding = block.embedding(cache)
            parts = zip(
                ("shift1", "scale1", "shift2", "scale2"), block.res_blocks[0].modulation(embedding), strict=True
            )
            mids = {f"mid.timestep_embed{index}": embedding, **{f"mid.{part}_{index}": t for part, t in parts}}
            results |= {mid: t for mid, t in mids.items() if mid in case.tensors}
    return results


def wide_resnets(case: Case) -> dict[str, Tensor]:
    encoder_block = load(case, VideoEncoder).down_blocks[0]
    decoder_block = load(case, VideoDecoder).up_blocks[0]
    results = watch({"shortcut_norm": encoder_block.norm3}, case)
    results["out.y_enc"] = encoder_block(case.inputs["x_enc"], ConvCache())
    for mode in ("causal", "symmetric"):
        results[f"out.y_dec_{mode}"] = decoder_block(case.inputs["x_dec"], ConvCache(causal=mode == "causal"))
    return results


def group_norm_resnets(case: Case) -> dict[str, Tensor]:
    if case.args["side"] == "encoder":
        block = load(case, VideoEncoder).down_blocks[0]
    else:
        block = load(case, VideoDecoder).up_blocks[0]
    return {"out.y": block(case.inputs["x"], ConvCache(causal=case.args["causal"]))}


def check_scale_factors(case: Case, network: Network) -> None:
    if factors := case.args.get("scale_factors"):
        assert list(network.scale_factors) == factors


def encode(case: Case) -> dict[str, Tensor]:
    encoder = load(case, VideoEncoder)
    check_scale_factors(case, encoder)
    video = case.inputs["video"]
    assert video.shape[2] == case.args.get("frames", video.shape[2])
    assert encoder.scale_factors.snap_frames(video.shape[2]) == case.args.get("frames_used", video.shape[2])
    results = watch(dict(encoder.named_modules()), case)
    results["out.latent"] = encoder(video)
    if "latent_first_frame_only" in case.outputs:
        results["out.latent_first_frame_only"] = encoder(video[:, :, :1])
    return results


def decode(case: Case) -> dict[str, Tensor]:
    decoder = load(case, VideoDecoder)
    check_scale_factors(case, decoder)
    assert decoder.config.causal_decoder == case.args.get("causal", decoder.config.causal_decoder)
    results = watch(dict(decoder.named_modules()), case)
    results["out.video"] = decoder(case.inputs["latent"])
    return results


def decode_at_timestep(case: Case) -> dict[str, Tensor]:
    decoder = load(case, VideoDecoder)
    assert decoder.config.decode_timestep == case.args["default_timestep"]
    results = watch(dict(decoder.named_modules()), case)
    for name in case.outputs:
        kind = name.removeprefix("video_")
        timestep = None if kind == "default" else case.inputs[f"timestep_{kind}"]
        noise = given_noise(recorded_noise(case))
        conditioning = DecodeConditioning(timestep, case.args["decode_noise_scale"], noise)
        results[f"out.{name}"] = decoder(case.inputs["latent"], conditioning)
    return results


def rgb_frames(case: Case) -> dict[str, Tensor]:
    return {"out.frames": torch.cat(list(decode_video(load(case, VideoDecoder), case.inputs["latent"])))}


def round_trip(case: Case) -> dict[str, Tensor]:
    latent = load(case, VideoEncoder)(case.inputs["video"])
    return {"out.latent": latent, "out.video": load(case, VideoDecoder)(latent)}


def ltxv_round_trip(case: Case) -> dict[str, Tensor]:
    encoder, decoder = load(case, VideoEncoder), load(case, VideoDecoder)
    distribution = encoder.moments(case.inputs["video"])
    normalize = encoder.per_channel_statistics.normalize
    results = {
        "out.mean": distribution.mean,
        "out.logvar": distribution.logvar,
        "out.latent": encoder(case.inputs["video"]),
        "out.latent_sampled": normalize(distribution.sample(case.inputs["posterior_noise"])),
    }
    timestep, scale = case.args["decode_timestep"], case.args["decode_noise_scale"]
    scale = timestep if scale is None else scale  # the pipeline's rule
    conditioning = DecodeConditioning(timestep, scale, given_noise(recorded_noise(case)))
    results["out.video"] = decoder(results["out.latent"], conditioning)
    return results


def masks(case: Case) -> dict[str, Tensor]:
    results = {}
    for i, (length, left, right, from_0) in enumerate(case.inputs["params"].tolist()):
        results[f"out.mask{i}"] = trapezoidal_mask_1d(length, left, right, bool(from_0))
    for i, row in enumerate(case.inputs["rect_params"].tolist()):
        results[f"out.rect{i}"] = rectangular_mask_1d(*row)
    return results


def intervals(case: Case) -> dict[str, Tensor]:
    results = {}
    for i, (kind, dim, size, overlap, smallest) in enumerate(case.inputs["rows"].tolist()):
        name = case.args["kinds"][kind]
        if name.startswith("size"):
            parts = split_by_size(dim, size, overlap, smallest or None)
        else:
            parts = split_by_count(dim, size, overlap)
        parts = causal(parts) if name.endswith("causal") else parts
        rows = [(part.start, part.end, part.left_ramp, part.right_ramp) for part in parts]
        results[f"out.intervals{i}"] = torch.tensor(rows)
    return results


def spans(case: Case) -> dict[str, Tensor]:
    results = {}
    for i, (start, end, left, right, scale, is_time) in enumerate(case.inputs["rows"].tolist()):
        span = Span.on(Interval(start, end, left, right), scale, bool(is_time))
        results[f"out.slice{i}"] = torch.tensor([span.pixels.start, span.pixels.end])
        results[f"out.mask{i}"] = span.mask(on_pixels=True)
    return results


def tiling_tables(case: Case) -> dict[str, Tensor]:
    chunks = [
        announced_chunks(frames, TileSizeConfig((tile, overlap)))
        for frames, tile, overlap in case.inputs["frames_tile_overlap"].tolist()
    ]
    factor = case.args["scale_factors"][1]
    coupled = [
        TileSizeConfig.for_long_side(height, width, tile, overlap, factor=factor)
        for height, width, tile, overlap in case.inputs["h_w_tile_overlap"].tolist()
    ]
    sizes = [(*config.height, *config.width) for config in coupled]
    return {"out.chunks": torch.tensor(chunks), "out.h_tile_overlap_w_tile_overlap": torch.tensor(sizes)}


def tiling_of(case: Case) -> Tiling:
    kind = {"size": TileSizeConfig, "count": TileCountConfig}[case.args.get("mode", "size")]
    return kind(*(tuple(case.args[axis]) for axis in ("frames", "height", "width")))


def tile_rows(tiles: list[Tile], latent_first: bool) -> Tensor:
    def columns(tile: Tile) -> Iterator[int]:
        for span in tile:
            parts = (span.cells, span.pixels) if latent_first else (span.pixels, span.cells)
            for part in parts:
                yield from (part.start, part.end)

    return torch.tensor([list(columns(tile)) for tile in tiles])


def decode_tiles(case: Case) -> dict[str, Tensor]:
    decoder, latent, tiling = load(case, VideoDecoder), case.inputs["latent"], tiling_of(case)
    check_scale_factors(case, decoder)
    plan = TilePlan.of(tuple(latent.shape[2:]), tiling, SpatioTemporalScaleFactors(*case.args["scale_factors"]))
    assert plan.complementary(on_pixels=True) == case.args["complementary"]
    chunks = list(tiled_decode(decoder, latent, tiling))
    results = {
        "out.video": torch.cat(chunks, dim=2),
        "out.chunk_lengths": torch.tensor([chunk.shape[2] for chunk in chunks]),
        "out.tiles": tile_rows(plan.tiles, latent_first=True),
    }
    for name in case.group("mid."):
        if match := re.fullmatch(r"tile(\d+)_decoded", name):
            t, h, w = (slice(span.cells.start, span.cells.end) for span in plan.tiles[int(match[1])])
            results[f"mid.{name}"] = decoder(latent[:, :, t, h, w])
    return results


def encode_tiles(case: Case) -> dict[str, Tensor]:
    encoder, tiling = load(case, VideoEncoder), tiling_of(case)
    check_scale_factors(case, encoder)
    video = case.inputs["video"] if "video" in case.inputs else video_from_recipe(case)
    plan = plan_of(video, tiling, encoder.scale_factors)
    results = {"out.latent": tiled_encode(encoder, video[:, :, : plan.frames[-1].pixels.end], plan)}
    if "tiles" in case.outputs:
        results["out.tiles"] = tile_rows(plan.tiles, latent_first=False)
    return results


def plan_of(video: Tensor, tiling: Tiling | None, factors: SpatioTemporalScaleFactors) -> TilePlan:
    frames, height, width = video.shape[2:]
    return TilePlan.of(
        (factors.latent_frames(frames), height // factors.height, width // factors.width), tiling, factors
    )


def video_from_recipe(case: Case) -> Tensor:
    recipe = case.args["video_recipe"]
    assert recipe["rng"] == "numpy.random.RandomState"
    assert recipe["transform"] == "clip(0.5*standard_normal, -1, 1) as float32"
    normal = numpy.random.RandomState(recipe["seed"]).standard_normal(recipe["shape"])
    video = torch.from_numpy(numpy.clip(0.5 * normal, -1, 1).astype(numpy.float32))
    torch.testing.assert_close(video.flatten()[:64], case.inputs["video_head"])
    return video


def load_diffusion(case: Case) -> DiffusionVideoDecoder:
    decoder = Checkpoint.open(case.weights_path).build("video_decoder", dtype=torch.float32)
    assert isinstance(decoder, DiffusionVideoDecoder)
    return decoder


def neighbourhoods(case: Case) -> dict[str, Tensor]:
    assert case.args["layout"] == "B,T,H,W,heads,head_dim"
    q, k, v = (case.inputs[name] for name in "qkv")
    results = {}
    for name in case.outputs:
        kernel = tuple(int(size) for size in re.findall(r"\d+", name))
        scale = q.shape[-1] ** -0.5 if name.endswith("scaled") else 1.0
        results[f"out.{name}"] = neighbourhood_attention(q, k, v, kernel, scale)
    return results


def rotary(case: Case) -> dict[str, Tensor]:
    head_dim, base = case.args["head_dim"], case.args["base"]
    frequencies = [axis_frequencies(width, base) for width in axis_widths(head_dim)]
    results = {f"out.inv_freq_{axis}": values for axis, values in zip("thw", frequencies, strict=True)}
    widths = [(row[0], *axis_widths(row[0])) for row in case.outputs["splits"].tolist()]
    return results | {"out.splits": torch.tensor(widths), "out.y": rotate(case.inputs["x"], base=base)}


def diffusion_blocks(case: Case) -> dict[str, Tensor]:
    decoder, inputs = load_diffusion(case), case.inputs
    results = {}
    for name, x in inputs.items():
        if name.startswith("det"):
            block = decoder.det_stages[int(name[3:])][0]
            results |= {f"out.{name}": block(x.clone()), f"mid.{name}_attn": block.attn(block.norm1(x))}
        elif name.startswith("up"):
            upsample = decoder.upsamples[int(name[2:])]
            results |= {f"out.{name}_drop": upsample(x, begins=True), f"out.{name}_keep": upsample(x, begins=False)}
    patches = patchify(inputs["x_t"], decoder.config.patch_size).movedim(1, -1)
    embedding = decoder.t_embedder(inputs["t"] * decoder.config.timestep_scale, torch.float32)
    modulation = decoder.shared_adaln(embedding)
    results |= {"mid.x_in": decoder.conv_in_x_t(patches), "mid.t_emb": embedding, "mid.modulation": modulation[0]}
    results["out.diff_block0"] = decoder.diff_blocks[0](results["mid.x_in"].clone(), inputs["context"], modulation)
    results["out.diff_step"] = decoder.step(inputs["x_t"], inputs["context"], inputs["t"])
    return {name: value for name, value in results.items() if name in case.tensors}


def column_slabs(case: Case) -> dict[str, Tensor]:
    decoder, inputs = load_diffusion(case), case.inputs
    context = decoder.upsamples[-1](inputs["stage4_features"], case.args["drop_leading_frame"])
    results = {"out.full": decoder.step(inputs["x_t"], context, inputs["t"])}
    decoder.copy_edges()
    return results | {"out.w_chunked": decoder.step(inputs["x_t"], context, inputs["t"])}


def drawn_noise(case: Case) -> list[Tensor]:
    if "noise" not in case.args:
        return recorded_noise(case)
    recipe = case.args["noise"]
    assert recipe["rng"] == "numpy.random.RandomState"
    state = numpy.random.RandomState(recipe["seed"])
    draws = [torch.from_numpy(state.standard_normal(shape).astype(numpy.float32)) for shape in recipe["shapes"]]
    torch.testing.assert_close(torch.stack([draw.flatten()[:4] for draw in draws]), case.inputs["noise_head"])
    return draws


def diffusion_decode(case: Case) -> dict[str, Tensor]:
    decoder, latent, draws = load_diffusion(case), case.inputs["latent"], drawn_noise(case)
    tiling = tiling_of(case) if "frames" in case.args else None
    chunks = list(decoder.decode_tiled(latent, tiling, DecodeConditioning(noise=given_noise(draws))))
    video = torch.cat(chunks, dim=2)
    cells = decoder.cells(pad_edges(latent, decoder.config)[0])
    results = {
        "out.video": video,
        "out.shape": torch.tensor(video.shape),
        "out.chunk_lengths": torch.tensor([chunk.shape[2] for chunk in chunks]),
        "out.row_mean": video.mean(dim=-1),
        "out.video_sub": video[:, :, :, 1::3, 2::3],
        "mid.stage4_input": cells.clone(),
        "mid.context_mean": decoder.context(cells)[:, : draws[0].shape[2]].mean(dim=-1),
    }
    return {name: value for name, value in results.items() if name in case.tensors}


def diffusion_config(decoder: dict[str, object]) -> DiffusionDecoderConfig:
    return DiffusionDecoderConfig.from_vae({"_class_name": "CausalDiffusionVAE", "decoder": decoder})


def recommended_tiles(case: Case) -> dict[str, Tensor]:
    config, args = diffusion_config(case.args["decoder"]), case.args
    rows = []
    for height, width, frames, gib in case.inputs["h_w_f_freegib"].tolist():
        memory = (args["model_bytes"], args["memory_coefficient"], args["safety_bytes"], args["element_size"])
        try:
            tiling = recommended_tiling(config, (frames, height, width), MemoryBudget(int(gib * 2**30), *memory))
        except ConfigError:
            rows.append([-1] * 6)
        else:
            rows.append([*tiling.frames, *tiling.height, *tiling.width])
    return {"out.tiles": torch.tensor(rows)}


def tiling_geometry(case: Case) -> dict[str, Tensor]:
    results = {}
    for index, decoder in enumerate(case.args["decoders"]):
        config = diffusion_config(decoder)
        fourth, fifth = config.halos
        values = {
            "halo4": fourth,
            "halo5": fifth,
            "min_latent": config.min_latent,
            "min_tile_stage4": config.min_tile,
            "pixel_scale": config.cell_factors,
            "overlap_frames_pixels": config.overlap,
        }
        results |= {f"out.{name}{index}": torch.tensor(value) for name, value in values.items()}
    return results


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
    ("video_vae.tiling", "trapezoidal_mask_1d / rectangular_mask_1d"): masks,
    ("video_vae.tiling", "split one axis"): intervals,
    ("video_vae.tiling", "map a latent interval to pixels"): spans,
    ("video_vae.tiling", "chunk count and long-side tile sizes"): tiling_tables,
    ("video_vae.decoder", "tiled decode"): decode_tiles,
    ("video_vae.encoder", "tiled encode"): encode_tiles,
    ("video_vae.diffusion", "neighbourhood attention"): neighbourhoods,
    ("video_vae.diffusion", "absolute 3-axis rotary embedding"): rotary,
    ("video_vae.diffusion", "blocks alone"): diffusion_blocks,
    ("video_vae.diffusion", "stage-5 step, W-chunked approximation"): column_slabs,
    ("video_vae.diffusion", "decode"): diffusion_decode,
    ("video_vae.diffusion", "recommended decode tiling"): recommended_tiles,
    ("video_vae.diffusion", "tiling geometry of a config"): tiling_geometry,
}
