"""The diffusion video decoder: neighbourhood attention, padding, sampling, tiles, loading."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import save_file
from torch import Tensor

from ltx_core.errors import CheckpointError, ConfigError
from ltx_core.loader.checkpoint import Checkpoint
from ltx_core.model.common.tiling import TileCountConfig
from ltx_core.model.video_vae.config import VideoVaeConfig
from ltx_core.model.video_vae.diffusion import attention, blocks
from ltx_core.model.video_vae.diffusion.attention import axis_widths, neighbourhood_attention, rotate
from ltx_core.model.video_vae.diffusion.config import DiffusionDecoderConfig
from ltx_core.model.video_vae.diffusion.decoder import DiffusionVideoDecoder, pad_edges
from ltx_core.model.video_vae.diffusion.tiling import (
    MemoryBudget,
    cells_of,
    recommended_tiling,
    tile_plan,
    whole_decode_work,
)
from ltx_core.model.video_vae.frames import decode_video, make_video_decoder
from ltx_core.model.video_vae.tiling import TileSizeConfig
from ltx_core.model.video_vae.video_vae import DecodeConditioning, VideoDecoder

DECODER: dict[str, Any] = {
    "in_channels": 4,
    "out_channels": 3,
    "head_dim": 8,
    "stage_channels": [16, 16, 8, 8, 8],
    "stage_depths": [1, 1, 1, 1, 2],
    "stage_kernels": [[3, 3, 3]] * 5,
    "upsamples": [[[1, 2, 2], 1], [[2, 1, 1], 2], [[2, 2, 2], 1], [[2, 2, 2], 1]],
    "stage5_kernel": [3, 3, 3],
    "t_emb_dim": 8,
    "timestep_scale_multiplier": 1000.0,
    "default_num_inference_steps": 1,
}
PUBLISHED: dict[str, Any] = {
    "in_channels": 128,
    "stage_channels": [2048, 1024, 512, 512, 256],
    "stage_depths": [4, 6, 4, 2, 8],
    "stage_kernels": [[3, 7, 7], [3, 7, 7], [3, 5, 5], [3, 5, 5], [11, 11, 11]],
    "upsamples": [[[1, 2, 2], 2], [[2, 1, 1], 2], [[2, 2, 2], 1], [[2, 2, 2], 2]],
    "stage5_kernel": [11, 11, 11],
    "default_num_inference_steps": 1,
}


def vae(prediction: str = "x0", **changes: Any) -> dict[str, Any]:
    encoder = {"out_channels": 4, "blocks": [["res_x", 1]], "patch_size": 4}
    decoder = {**DECODER, **changes}
    return {
        "_class_name": "CausalDiffusionVAE",
        "model_output_type": prediction,
        "encoder": encoder,
        "decoder": decoder,
    }


def make_decoder(prediction: str = "x0", **changes: Any) -> DiffusionVideoDecoder:
    torch.manual_seed(0)
    decoder = make_video_decoder(VideoVaeConfig.from_metadata({"vae": vae(prediction, **changes)}))
    assert isinstance(decoder, DiffusionVideoDecoder)
    return decoder.eval().requires_grad_(False)


def seeded() -> DecodeConditioning:
    return DecodeConditioning(noise=torch.Generator().manual_seed(1))


def published() -> DiffusionDecoderConfig:
    return DiffusionDecoderConfig.from_vae({"decoder": PUBLISHED, "model_output_type": "x0"})


# Attention --------------------------------------------------------------------------------------------------------


def attended_by_hand(q: Tensor, k: Tensor, v: Tensor, kernel: tuple[int, int, int], scale: float) -> Tensor:
    """One query at a time, by the definition."""
    out = torch.empty_like(q)
    for place in torch.cartesian_prod(*(torch.arange(n) for n in q.shape[1:4])).tolist():
        window = [
            slice(begin, begin + size)
            for i, size, n in zip(place, kernel, k.shape[1:4], strict=True)
            for begin in [min(max(i - size // 2, 0), n - size)]
        ]
        keys, values = (x[(slice(None), *window)].flatten(1, 3) for x in (k, v))  # [B, K, heads, d]
        query = q[(slice(None), *place)]
        weights = (scale * torch.einsum("bhd,bkhd->bhk", query, keys)).softmax(dim=-1)
        out[(slice(None), *place)] = torch.einsum("bhk,bkhd->bhd", weights, values)
    return out


@pytest.mark.parametrize(
    ("sides", "kernel"),
    [((3, 9, 14), (3, 3, 3)), ((5, 4, 11), (1, 4, 2)), ((4, 5, 6), (4, 5, 6)), ((2, 13, 1), (2, 5, 1))],
)
def test_attention_follows_the_definition(sides: tuple[int, int, int], kernel: tuple[int, int, int]) -> None:
    q, k, v = torch.randn(3, 2, *sides, 2, 4, generator=torch.Generator().manual_seed(0))
    got = neighbourhood_attention(q, k, v, kernel, 0.7)
    torch.testing.assert_close(got, attended_by_hand(q, k, v, kernel, 0.7), rtol=1e-5, atol=1e-6)


@settings(deadline=None, max_examples=10)
@given(st.data())
def test_a_box_of_queries_sees_what_it_sees_in_the_whole(data: st.DataObject) -> None:
    sides = [data.draw(st.integers(1, 12)) for _ in range(3)]
    kernel = tuple(data.draw(st.integers(1, min(n, 5))) for n in sides)
    first = tuple(data.draw(st.integers(0, n - 1)) for n in sides)
    box = tuple(slice(a, data.draw(st.integers(a + 1, n))) for a, n in zip(first, sides, strict=True))
    q, k, v = torch.randn(3, 1, *sides, 1, 4, generator=torch.Generator().manual_seed(0))
    whole = attended_by_hand(q, k, v, (kernel[0], kernel[1], kernel[2]), 1.0)
    part = neighbourhood_attention(q[(slice(None), *box)], k, v, kernel, first=first)
    torch.testing.assert_close(part, whole[(slice(None), *box)], rtol=1e-4, atol=1e-5)


def test_small_gathers_change_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    q, k, v = torch.randn(3, 1, 13, 14, 15, 1, 4, generator=torch.Generator().manual_seed(0))
    at_once = neighbourhood_attention(q, k, v, (3, 5, 3))
    monkeypatch.setattr(attention, "GATHERED_BYTES", 1)
    torch.testing.assert_close(neighbourhood_attention(q, k, v, (3, 5, 3)), at_once)


def test_attention_refuses_what_has_no_neighbourhood() -> None:
    x = torch.zeros(1, 2, 4, 4, 1, 4)
    with pytest.raises(ConfigError, match="frames is 2 locations, expected at least the kernel's 3"):
        neighbourhood_attention(x, x, x, (3, 3, 3))
    with pytest.raises(ConfigError, match="width: queries 1 to 5 lie outside the 4"):
        neighbourhood_attention(x, x, x, (1, 3, 3), first=(0, 0, 1))


def test_rotation_keeps_lengths_and_sees_differences_only() -> None:
    assert [axis_widths(width) for width in (16, 64, 8)] == [(4, 6, 6), (16, 24, 24), (0, 4, 4)]
    with pytest.raises(ConfigError, match="head_dim is 7"):
        axis_widths(7)
    q, k = torch.randn(2, 1, 1, 1, 1, 1, 64, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(rotate(q, (5, 2, 9)).norm(), q.norm())
    near = (rotate(q, (1, 2, 3)) * rotate(k, (2, 0, 7))).sum()
    far = (rotate(q, (11, 7, 53)) * rotate(k, (12, 5, 57))).sum()
    torch.testing.assert_close(near, far, rtol=1e-4, atol=1e-4)
    assert not torch.allclose(near, (q * k).sum())


# Decoding ---------------------------------------------------------------------------------------------------------


def test_slabs_gradients_and_the_whole_agree(monkeypatch: pytest.MonkeyPatch) -> None:
    decoder, latent = make_decoder(), torch.randn(2, 4, 3, 3, 4)
    with_gradients = decoder(latent, seeded())
    with torch.no_grad():
        torch.testing.assert_close(decoder(latent, seeded()), with_gradients)
        monkeypatch.setattr(blocks, "SLAB_ELEMENTS", 1)
        kept = latent.clone()
        torch.testing.assert_close(decoder(latent, seeded()), with_gradients, rtol=1e-4, atol=1e-5)
    assert torch.equal(latent, kept)


def test_it_can_be_trained() -> None:
    decoder = make_decoder().requires_grad_(True)
    decoder(torch.randn(1, 4, 3, 3, 3), seeded()).square().mean().backward()
    idle = {name for name, parameter in decoder.named_parameters() if parameter.grad is None}
    assert not idle


@pytest.mark.parametrize("sides", [(1, 1, 1), (1, 4, 2), (2, 3, 3), (4, 3, 5)])
def test_small_latents_are_padded_and_cropped(sides: tuple[int, int, int]) -> None:
    decoder, latent = make_decoder(), torch.randn(1, 4, *sides)
    with torch.no_grad():
        video = decoder(latent, seeded())
    assert video.shape == (1, 3, 8 * sides[0] - 7, 32 * sides[1], 32 * sides[2])
    z, crop = pad_edges(latent, decoder.config)
    assert all(got >= least for got, least in zip(z.shape[2:], decoder.config.min_latent, strict=True))
    top, left = crop.height.start // 32, crop.width.start // 32
    assert torch.equal(z[:, :, : sides[0], top : top + sides[1], left : left + sides[2]], latent)


def test_batches_are_independent() -> None:
    decoder, latent = make_decoder("x0", default_num_inference_steps=2), torch.randn(2, 4, 3, 3, 3)
    conditioning = DecodeConditioning(noise=lambda shape: torch.ones(shape))
    with torch.no_grad():
        both = decoder(latent, conditioning)
        torch.testing.assert_close(decoder(latent[1:], conditioning), both[1:], rtol=1e-4, atol=1e-5)


def test_steps_follow_the_prediction() -> None:
    calls: list[float] = []

    def record(decoder: DiffusionVideoDecoder, value: float) -> Tensor:
        def step(x_t: Tensor, context: Tensor, t: Tensor) -> Tensor:
            calls.append(t.item())
            return torch.full_like(x_t, value)

        decoder.step = step  # type: ignore[method-assign]
        return decoder.denoise(torch.ones(1, 3, 1, 4, 4), torch.empty(0))

    sampled = record(make_decoder("x0", default_num_inference_steps=4), 0.25)
    assert calls == [1.0, 0.75, 0.5, 0.25] and bool((sampled == 0.25).all())
    moved = record(make_decoder("v", default_num_inference_steps=2), 0.5)
    torch.testing.assert_close(moved, torch.full_like(moved, 0.5))  # 1 - 0.5 * (1 - 0)


def test_copied_edges_change_the_borders_only() -> None:
    decoder = make_decoder(stage_depths=[1, 1, 1, 1, 1])
    latent = torch.randn(1, 4, 3, 3, 6)
    with torch.no_grad():
        moved = decoder(latent, seeded())
        decoder.copy_edges()
        copied = decoder(latent, seeded())
    torch.testing.assert_close(copied[..., 4:-4], moved[..., 4:-4], rtol=1e-4, atol=1e-5)
    assert not torch.allclose(copied[..., :4], moved[..., :4])


# Tiles ------------------------------------------------------------------------------------------------------------


def draws(decoder: DiffusionVideoDecoder, latent: Tensor, tiling: Any) -> list[tuple[int, ...]]:
    shapes: list[tuple[int, ...]] = []

    def noise(shape: tuple[int, ...]) -> Tensor:
        shapes.append(shape)
        return torch.zeros(shape)

    list(decoder.decode_tiled(latent, tiling, DecodeConditioning(noise=noise)))
    return shapes


TILES = TileSizeConfig((16, 8), (64, 32), (64, 32))


def test_one_tile_is_the_whole() -> None:
    decoder, latent = make_decoder(), torch.randn(1, 4, 3, 3, 3)
    with torch.no_grad():
        whole = decoder(latent, seeded())
    for tiling in (None, TileCountConfig(), TileSizeConfig((0, 0), (320, 32), (0, 0))):
        (only,) = decoder.decode_tiled(latent, tiling, seeded())
        assert torch.equal(only, whole)


def test_tiles_in_bfloat16() -> None:
    decoder, latent = make_decoder("v"), torch.randn(1, 4, 3, 3, 3)
    exact = torch.cat(list(decoder.decode_tiled(latent, TILES, seeded())), dim=2)
    rounded = torch.cat(list(decoder.bfloat16().decode_tiled(latent, TILES, seeded())), dim=2)
    assert rounded.dtype == torch.float32
    assert (rounded - exact).abs().mean() < 0.03 * exact.abs().mean()


def test_tiles_draw_their_own_noise_or_share_a_canvas() -> None:
    latent = torch.randn(1, 4, 3, 3, 3)
    plan = tile_plan(make_decoder().config, (3, 3, 3), TILES)
    own = [(1, 3, *(span.pixels.length for span in tile)) for tile in plan.tiles]
    assert draws(make_decoder(), latent, TILES) == own and len(own) == 8
    assert draws(make_decoder("v"), latent, TILES) == [(1, 3, 17, 96, 96)]


@pytest.mark.parametrize("tiling", [TILES, TileCountConfig((2, 4), (2, 4), (2, 5))])
def test_tiles_agree_with_the_whole_where_nothing_looks_around(tiling: Any) -> None:
    """With windows of one location the decoder is pointwise, so tiles must join without a seam."""
    kernels = {"stage_kernels": [[3, 3, 3], [3, 3, 3], [3, 3, 3], [1, 1, 1]], "stage5_kernel": [1, 1, 1]}
    decoder, latent = make_decoder("v", **kernels), torch.randn(1, 4, 3, 3, 3)
    with torch.no_grad():
        whole = decoder(latent, seeded())
    chunks = list(decoder.decode_tiled(latent, tiling, seeded()))
    assert len(chunks) == 2
    torch.testing.assert_close(torch.cat(chunks, dim=2), whole, rtol=1e-4, atol=1e-5)


def test_wide_overlaps_hide_the_seams() -> None:
    """A tile's inside equals the whole decode once it is further from the border than the blocks reach."""
    decoder, latent = make_decoder("v"), torch.randn(1, 4, 3, 3, 8)
    with torch.no_grad():
        whole = decoder(latent, seeded())
    tiled = torch.cat(list(decoder.decode_tiled(latent, TileSizeConfig((0, 0), (0, 0), (128, 32)), seeded())), dim=2)
    torch.testing.assert_close(tiled[..., :80], whole[..., :80], rtol=1e-3, atol=1e-4)
    assert not torch.allclose(tiled, whole, atol=1e-3)


@pytest.mark.parametrize(
    ("tiling", "message"),
    [
        (TileSizeConfig((16, 8), (64, 16), (64, 32)), "height overlap is 16, expected at least 32"),
        (TileSizeConfig((17, 8), (64, 32), (64, 32)), "frames tiles are 17"),
        (TileCountConfig((1, 0), (9, 2), (1, 0)), "height is cut into tiles of 3 cells, expected at least 4"),
    ],
)
def test_tiles_it_cannot_work_with_are_refused(tiling: Any, message: str) -> None:
    config = DiffusionDecoderConfig.from_vae(vae(stage5_kernel=[3, 3, 3], stage_kernels=[[3, 3, 3]] * 3 + [[3, 4, 3]]))
    with pytest.raises(ConfigError, match=message):
        tile_plan(config, (3, 3, 3), tiling)


def test_the_published_geometry() -> None:
    config = published()
    assert config.scale_factors == (8, 32, 32) and config.cell_factors == (2, 8, 8)
    assert (config.min_latent, config.min_tile, config.overlap) == ((3, 7, 7), (6, 6, 6), (40, 160))
    assert cells_of(config, (16, 16, 24)) == (61, 64, 96)
    flops, size = whole_decode_work(config, (16, 16, 24))
    assert flops / 2e12 == pytest.approx(52.7, rel=0.01) and size / 2**30 == pytest.approx(7.1, rel=0.01)


def test_recommended_tiles_are_valid_and_shrink_with_memory() -> None:
    config, areas = published(), []
    for gib in (80, 32, 16):
        tiling = recommended_tiling(config, (121, 1088, 1920), MemoryBudget(gib * 2**30, 834_000_000))
        areas.append(tiling.frames[0] * tiling.height[0] * tiling.width[0])
        plan = tile_plan(config, (16, 34, 60), tiling)
        assert plan.frames[-1].pixels.end == 121 and plan.width[-1].pixels.end == 1920
    assert areas == sorted(areas, reverse=True) and areas[0] > areas[-1]
    with pytest.raises(ConfigError, match="no tiles of the diffusion decoder fit 4"):
        recommended_tiling(config, (121, 1088, 1920), MemoryBudget(4 * 2**30, 834_000_000))


def test_frames_come_in_tiles_that_fit(monkeypatch: pytest.MonkeyPatch) -> None:
    decoder, latent = make_decoder(), torch.randn(2, 4, 3, 3, 3)
    frames = torch.cat(list(decode_video(decoder, latent, conditioning=seeded())))
    assert frames.shape == (17, 96, 96, 3) and frames.min() >= 0 and frames.max() <= 1
    with torch.no_grad():
        whole = decoder(latent[:1], seeded())
    torch.testing.assert_close(frames, (whole[0].permute(1, 2, 3, 0) / 2 + 0.5).clamp(0, 1))
    monkeypatch.setattr("ltx_core.model.video_vae.frames.free_bytes", lambda device: 0)
    with pytest.raises(ConfigError, match="no tiles"):
        list(decode_video(decoder, latent))


# Configs and files ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"stage_depths": [1, 1]}, "5 widths, 2 depths"),
        ({"head_dim": 12}, "stage 1 has 16 channels, expected a multiple of head_dim 12"),
        ({"upsamples": [[[1, 2, 2], 1]]}, "1 upsamples"),
        ({"upsamples": [[[1, 2, 2], 2], *DECODER["upsamples"][1:]]}, "upsample 1 gives 8 channels, stage 2 takes 16"),
        ({"upsamples": [[[4, 2, 2], 1], *DECODER["upsamples"][1:]]}, "upsample 1 has stride"),
        ({"stage5_kernel": [3, 0, 3]}, "stage 5 has kernel"),
        ({"stage5_kernel": [3, 3]}, "three axes"),
        ({"default_num_inference_steps": 0}, "default_num_inference_steps is 0"),
    ],
)
def test_contradictory_configs_are_refused(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        DiffusionDecoderConfig.from_vae(vae(**changes))


def test_absent_keys_and_variants() -> None:
    config = DiffusionDecoderConfig.from_vae({})
    assert [stage.width for stage in config.stages] == [1024, 512, 256, 256, 128]
    assert (config.denoising.kernel, config.steps, config.prediction, config.timestep_scale) == ((3, 7, 7), 2, "v", 1.0)
    assert DiffusionDecoderConfig.from_vae(vae(stage5_channels=24)).denoising.width == 24
    with pytest.raises(ConfigError, match="'eps'"):
        DiffusionDecoderConfig.from_vae(vae("eps"))
    flat = VideoVaeConfig.from_metadata({"vae": {"decoder_blocks": [["res_x", 1]], "timestep_conditioning": False}})
    with torch.device("meta"):
        assert isinstance(make_video_decoder(flat), VideoDecoder)


@pytest.fixture
def files(tmp_path: Path) -> Iterator[tuple[DiffusionVideoDecoder, Path, Path]]:
    """A decoder, its file, and a file with gates and parts that are not used."""
    decoder = make_decoder()
    statistics = "per_channel_statistics."
    tensors = {
        (name if name.startswith(statistics) else f"decoder.{name}"): tensor
        for name, tensor in decoder.state_dict().items()
    }
    metadata = {"config": json.dumps({"vae": vae()}), "model_version": "2.5.0"}
    plain, gated = tmp_path / "plain.safetensors", tmp_path / "gated.safetensors"
    save_file({**tensors, "decoder.type_emb": torch.zeros(4)}, plain, metadata)
    extra = {f"decoder.diff_blocks.1.{gate}": torch.full((8,), 0.5) for gate in ("gate_msa", "gate_mlp", "gate_ctx")}
    extra["decoder.coarse_head.weight"] = torch.zeros(2)
    save_file({**tensors, **extra}, gated, metadata)
    yield decoder, plain, gated


def test_absurd_depths_are_refused_before_anything_is_built(tmp_path: Path) -> None:
    config = {"vae": vae(stage_depths=[1, 1, 1, 1, 10**9])}
    path = tmp_path / "deep.safetensors"
    save_file({"decoder.conv_in.weight": torch.zeros(16, 4)}, path, {"config": json.dumps(config)})
    with pytest.raises(CheckpointError, match="stage_depths is 1000000000, the file has 1 tensors"):
        Checkpoint.open(path).build("video_decoder")


def test_files_build_the_decoder_they_hold(files: tuple[DiffusionVideoDecoder, Path, Path]) -> None:
    decoder, plain, _ = files
    checkpoint, latent = Checkpoint.open(plain), torch.randn(1, 4, 3, 3, 3)
    built = checkpoint.build("video_decoder")
    with torch.no_grad():
        assert torch.equal(built(latent, seeded()), decoder(latent, seeded()))


def test_gates_are_multiplied_into_their_layers(files: tuple[DiffusionVideoDecoder, Path, Path]) -> None:
    decoder, _, gated = files
    built = Checkpoint.open(gated).build("video_decoder").state_dict()
    halved = ("attn.proj.weight", "attn.proj.bias", "mlp.w_down.weight", "context_proj.weight", "context_proj.bias")
    for name, tensor in decoder.state_dict().items():
        factor = 0.5 if name in {f"diff_blocks.1.{layer}" for layer in halved} else 1.0
        assert torch.equal(built[name], tensor * factor), name
