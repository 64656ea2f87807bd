"""The video VAE: whole, streamed and tiled passes agree, names and errors are as documented, training works."""

from __future__ import annotations

import itertools

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.multiprocessing.reductions import StorageWeakRef
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from ltx_core.errors import ConfigError
from ltx_core.model.common.tiling import (
    Interval,
    TileCountConfig,
    causal,
    rectangular_mask_1d,
    split_by_count,
    split_by_size,
    trapezoidal_mask_1d,
)
from ltx_core.model.video_vae.config import VideoVaeConfig, detect_family
from ltx_core.model.video_vae.conv_cache import ConvCache
from ltx_core.model.video_vae.frames import decode_video, to_frames
from ltx_core.model.video_vae.layers import CausalConv3d
from ltx_core.model.video_vae.ops import (
    PerChannelStatistics,
    depth_to_space,
    from_haar_patches,
    haar_matrix,
    haar_patches,
    patchify,
    space_to_depth,
    unpatchify,
    use_channels_last,
)
from ltx_core.model.video_vae.tiling import TilePlan, TileSizeConfig, announced_chunks, tiled_decode, tiled_encode
from ltx_core.model.video_vae.video_vae import DecodeConditioning, LatentDistribution, VideoDecoder, VideoEncoder

# Small networks of every published layout, and of the parts no published layout has.
LTX23 = {
    "encoder_blocks": [
        ["res_x", {"num_layers": 2}],
        ["compress_space_res", {"multiplier": 2}],
        ["compress_time_res", {"multiplier": 2}],
        ["res_x", {"num_layers": 1}],
        ["compress_all_res", {"multiplier": 2}],
        ["compress_all_res", {"multiplier": 1}],
    ],
    "decoder_blocks": [
        ["res_x", {"num_layers": 2}],
        ["compress_space", {"multiplier": 2}],
        ["compress_time", {"multiplier": 2}],
        ["res_x", {"num_layers": 1}],
        ["compress_all", {"multiplier": 1}],
        ["compress_all", {"multiplier": 2}],
        ["res_x", 1],
    ],
    "spatial_padding_mode": "zeros",
    "timestep_conditioning": False,
}
LTX2 = {  # no padding key: the decoder reflects
    "encoder_blocks": [["res_x", 1], ["compress_all_res", {"multiplier": 2}], ["compress_all_res", {"multiplier": 2}]],
    "decoder_blocks": [
        ["res_x", {"num_layers": 2}],
        ["compress_all", {"residual": True, "multiplier": 2}],
        ["res_x", {"num_layers": 1}],
        ["compress_all", {"residual": True, "multiplier": 2}],
        ["res_x", {"num_layers": 1}],
    ],
    "timestep_conditioning": False,
}
CAUSAL = {
    "decoder_blocks": [["res_x", 1], ["compress_all", {"multiplier": 2}], ["attn", {}], ["compress_time", {}]],
    "encoder_blocks": [["attn", {}], ["compress_time_res", {"multiplier": 2}], ["compress_all_res", {"multiplier": 2}]],
    "causal_decoder": True,
    "spatial_padding_mode": "replicate",
    "timestep_conditioning": False,
}
LTXV_090 = {"blocks": [["res_x", 1], ["compress_all", 1], ["res_x_y", 1], ["res_x", 1], ["compress_all", 1]]}
LTXV_091 = {
    "encoder_blocks": [["compress_time", {}], ["compress_space", {}], ["res_x_y", {}], ["compress_all_x_y", {}]],
    "decoder_blocks": [
        ["res_x", {"num_layers": 1, "inject_noise": True}],
        ["compress_all", {"residual": True, "multiplier": 2}],
        ["res_x", {"num_layers": 2, "inject_noise": True}],
        ["compress_all", {"residual": True, "multiplier": 2}],
    ],
    "timestep_conditioning": True,
}
HAAR = LTX2 | {"stem": "haar", "patch_size": 4}
LAYOUTS = {"haar": HAAR, "ltx23": LTX23, "ltx2": LTX2, "causal": CAUSAL, "ltxv_090": LTXV_090, "ltxv_091": LTXV_091}


def make_config(**vae: object) -> VideoVaeConfig:
    widths = {"latent_channels": 8, "encoder_base_channels": 8, "decoder_base_channels": 4, "patch_size": 2}
    common = {"norm_layer": "pixel_norm", "latent_log_var": "uniform"}
    return VideoVaeConfig.from_metadata({"vae": {**widths, **common, **vae}})


def make_networks(layout: str, **changes: object) -> tuple[VideoEncoder, VideoDecoder]:
    torch.manual_seed(0)
    config = make_config(**LAYOUTS[layout], **changes)
    return VideoEncoder(config).eval(), VideoDecoder(config).eval()


def seeded() -> DecodeConditioning:
    return DecodeConditioning(timestep=0.1, noise=torch.Generator().manual_seed(1))


@pytest.mark.parametrize("frames", [1, 2, 3, 9])
@pytest.mark.parametrize("layout", LAYOUTS)
@torch.no_grad()
def test_streamed_decode_is_the_whole_decode(layout: str, frames: int) -> None:
    """In float64, where the order in which a processor's kernels sum does not show."""
    _, decoder = make_networks(layout)
    decoder, latent = decoder.double(), torch.randn(2, 8, frames, 2, 3, dtype=torch.float64)
    whole = decoder(latent, seeded())
    assert whole.shape[2] == 1 + (frames - 1) * decoder.scale_factors.time
    for chunk in (1, 2, 4, 16):
        chunks = list(decoder.decode_streaming(latent, seeded(), chunk))
        assert all(piece.shape[2] > 0 for piece in chunks)
        torch.testing.assert_close(torch.cat(chunks, dim=2), whole, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("frames", [1, 2, 5, 9, 14, 17])
@pytest.mark.parametrize("layout", LAYOUTS)
@torch.no_grad()
@pytest.mark.filterwarnings("ignore:video has")
def test_streamed_encode_is_the_whole_encode(layout: str, frames: int) -> None:
    encoder, _ = make_networks(layout)
    video = torch.randn(2, 3, frames, 32, 48)
    whole = encoder(video)
    assert whole.shape[2] == 1 + (frames - 1) // encoder.scale_factors.time
    for chunk in (1, 3, 8, 32):
        streamed = encoder.encode_streaming(iter(video.split(chunk, dim=2)))
        torch.testing.assert_close(streamed, whole, rtol=1e-5, atol=1e-5)


class PeakBytes(TorchDispatchMode):
    """Counts the bytes of all tensors that operations inside made and that are still alive."""

    def __init__(self) -> None:
        super().__init__()
        self.peak = 0
        self._alive: dict[int, tuple[StorageWeakRef, int]] = {}

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        result = func(*args, **(kwargs or {}))
        for tensor in tree_leaves(result):
            if isinstance(tensor, Tensor):
                storage = tensor.untyped_storage()
                self._alive[storage._cdata] = (StorageWeakRef(storage), storage.nbytes())
        self._alive = {key: entry for key, entry in self._alive.items() if not entry[0].expired()}
        self.peak = max(self.peak, sum(size for _, size in self._alive.values()))
        return result


@pytest.mark.parametrize("layout", ["ltx23", "ltx2", "causal"])
def test_streaming_memory_does_not_grow_with_the_duration(layout: str) -> None:
    encoder, decoder = make_networks(layout)
    short, long, longer = (1 + (frames - 1) // decoder.scale_factors.time for frames in (25, 121, 241))

    def decode_peak(frames: int) -> int:
        latent = torch.randn(1, 8, frames, 3, 3)
        with PeakBytes() as count:
            for _ in decoder.decode_streaming(latent, chunk=1):
                pass
        return count.peak - latent.nbytes  # the input, of which pieces are views

    def encode_peak(frames: int) -> int:
        with PeakBytes() as count:
            latent = encoder.encode_streaming(torch.randn(1, 3, 4, 32, 32) for _ in range(frames // 4))
        return count.peak - 3 * latent.nbytes

    assert decode_peak(long) <= 1.05 * decode_peak(short)
    assert decode_peak(longer) <= 1.05 * decode_peak(short)
    assert encode_peak(121) <= 1.1 * encode_peak(25)
    latent = torch.randn(1, 8, long, 3, 3)
    with PeakBytes() as whole, torch.no_grad():
        decoder(latent)
    assert decode_peak(long) < whole.peak / 2


@pytest.mark.parametrize("padding", ["zeros", "reflect", "replicate"])
@pytest.mark.parametrize("stride", [(1, 1, 1), (2, 1, 1), (1, 2, 2)])
@torch.no_grad()
def test_small_clips_take_no_slow_convolution(padding: str, stride: tuple[int, int, int]) -> None:
    class Names(TorchDispatchMode):
        def __torch_dispatch__(self, func, types, args=(), kwargs=None):
            seen.add(func.name())
            return func(*args, **(kwargs or {}))

    seen: set[str] = set()
    conv, x = CausalConv3d(4, 6, padding, stride), torch.randn(1, 4, 5, 6, 7)
    with Names():
        y = conv(x, ConvCache())
    with torch.enable_grad():
        plain = conv(x, ConvCache())
    torch.testing.assert_close(y, plain, rtol=1e-5, atol=1e-6)
    if torch.backends.mkldnn.is_available():
        assert "aten::mkldnn_convolution" in seen and "aten::slow_conv3d_forward" not in seen


def test_a_norm_over_time_does_not_stream() -> None:
    wide = {"latent_channels": 32, "decoder_base_channels": 32, "norm_layer": "group_norm", "latent_log_var": "none"}
    config = make_config(**{**LTX23, **wide, "decoder_blocks": [["res_x", 1]], "encoder_blocks": [["res_x", 1]]})
    encoder, decoder = VideoEncoder(config), VideoDecoder(config)
    assert not decoder.can_stream
    with pytest.raises(ConfigError, match="group norm"):
        next(decoder.decode_streaming(torch.randn(1, 32, 2, 2, 2)))
    with pytest.raises(ConfigError, match="group norm"):
        encoder.encode_streaming([torch.randn(1, 3, 2, 4, 4)])
    (frames,) = decode_video(decoder, torch.randn(1, 32, 2, 2, 2))
    assert frames.shape == (2, 4, 4, 3)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_gradients_reach_every_parameter_and_match_inference(layout: str) -> None:
    encoder, decoder = (network.double() for network in make_networks(layout))
    distribution = encoder.moments(torch.randn(1, 3, 9, 32, 32, dtype=torch.float64))
    normalized = encoder.per_channel_statistics.normalize(distribution.mean)
    video = decoder(normalized, seeded())
    with torch.no_grad():
        torch.testing.assert_close(decoder(normalized, seeded()), video)
    (video.square().mean() + distribution.logvar.mean()).backward()
    fixed = {"timestep_scale_multiplier"} if layout != "ltxv_091" else set()
    for name, parameter in [*encoder.named_parameters(), *decoder.named_parameters()]:
        assert name in fixed or (parameter.grad is not None and parameter.grad.isfinite().all()), name


def relative_error(got: Tensor, want: Tensor) -> float:
    return ((got - want).norm() / want.norm()).item()


@torch.no_grad()
def test_bfloat16_channels_last_follows_float32() -> None:
    encoder, decoder = make_networks("ltx23")
    video = torch.randn(1, 3, 9, 32, 32).clamp(-1, 1)
    latent = encoder(video)
    frames = decoder(latent)
    use_channels_last(encoder.to(torch.bfloat16))
    use_channels_last(decoder.to(torch.bfloat16))
    half = encoder(video.contiguous(memory_format=torch.channels_last_3d))
    assert half.dtype == torch.bfloat16
    assert relative_error(half.float(), latent) < 0.02
    again = decoder(latent.contiguous(memory_format=torch.channels_last_3d))
    assert again.dtype == torch.float32
    assert relative_error(again, frames) < 0.05
    streamed = torch.cat(list(decoder.decode_streaming(latent)), dim=2)
    assert relative_error(streamed, frames) < 0.05


@pytest.mark.parametrize("causal_clip", [True, False])
def test_padding_in_time_keeps_channels_last(causal_clip: bool) -> None:
    conv, cache = torch.nn.Identity(), ConvCache(causal=causal_clip, last=False)
    x = torch.randn(2, 4, 5, 3, 3).contiguous(memory_format=torch.channels_last_3d)
    for last in (False, False, True):
        cache.last = last
        assert cache.conv_window(conv, x, 1).is_contiguous(memory_format=torch.channels_last_3d)


@torch.no_grad()
def test_surplus_frames_are_cut_with_a_warning() -> None:
    encoder, _ = make_networks("ltx23")
    video = torch.randn(1, 3, 13, 32, 32)
    with pytest.warns(UserWarning, match="last 4"):
        latent = encoder(video)
    torch.testing.assert_close(latent, encoder(video[:, :, :9]))


@torch.no_grad()
def test_sides_that_do_not_divide_are_refused() -> None:
    encoder, _ = make_networks("ltx23")
    with pytest.raises(ConfigError, match="height is 33"):
        encoder(torch.randn(1, 3, 9, 33, 32))


@pytest.mark.parametrize(
    "kind, channels, has_variance", [("uniform", 9, True), ("per_channel", 16, True), ("none", 8, False)]
)
@torch.no_grad()
def test_log_variance_layouts(kind: str, channels: int, has_variance: bool) -> None:
    encoder = VideoEncoder(make_config(**{**LTX2, "latent_log_var": kind}))
    assert encoder.conv_out.conv.out_channels == channels
    distribution = encoder.moments(torch.randn(1, 3, 5, 8, 8))
    assert distribution.mean.shape[1] == 8
    assert (distribution.logvar is not None) == has_variance
    assert distribution.sample(torch.Generator().manual_seed(0)).equal(distribution.mean) != has_variance


def test_constant_log_variance_is_the_configs() -> None:
    encoder = VideoEncoder(make_config(**{**LTX2, "latent_log_var": "constant", "latent_log_var_value": -2.0}))
    distribution = encoder.moments(torch.randn(1, 3, 1, 8, 8))
    assert distribution.logvar.unique().item() == -2.0


def test_samples_hold_the_log_variance_to_its_range() -> None:
    mean = torch.zeros(1, 2, 1, 1, 1)
    spread = LatentDistribution(mean, torch.full_like(mean, 1000.0)).sample(torch.ones_like(mean))
    torch.testing.assert_close(spread, torch.full_like(mean, 10.0).exp())


@torch.no_grad()
def test_noise_is_mixed_once_and_can_be_turned_off() -> None:
    _, decoder = make_networks("ltxv_091")
    latent = torch.randn(1, 8, 2, 2, 2)
    shapes: list[tuple[int, ...]] = []

    def ones(shape: tuple[int, ...]) -> Tensor:
        shapes.append(shape)
        return torch.ones(shape)

    mixed = decoder(latent, DecodeConditioning(0.05, 0.25, ones))
    # the latent first, then two [H, W] draws per resnet in order of execution
    assert shapes == [(1, 8, 2, 2, 2), (4, 4), (4, 4), (4, 4), (4, 4), (8, 8), (8, 8)]
    torch.testing.assert_close(decoder(0.25 + 0.75 * latent, DecodeConditioning(0.05, 0.0, ones)), mixed)
    default = decoder(latent, DecodeConditioning(None, 0.25, ones))
    torch.testing.assert_close(default, mixed)


@torch.no_grad()
def test_decoded_frames_are_rgb_of_the_first_item() -> None:
    _, decoder = make_networks("ltx23")
    latent = torch.randn(2, 8, 3, 2, 2)
    frames = torch.cat(list(decode_video(decoder, latent)))
    assert frames.shape == (17, 32, 32, 3)
    assert 0 <= frames.min() < frames.max() <= 1
    expected = ((decoder(latent)[0] + 1) / 2).clamp(0, 1).permute(1, 2, 3, 0)
    torch.testing.assert_close(frames, expected, rtol=1e-5, atol=1e-5)
    video = torch.tensor([-2.0, 0.0, 3.0]).view(1, 3, 1, 1, 1)
    assert to_frames(video).flatten().tolist() == [0.0, 0.5, 1.0]


def test_a_meta_build_takes_the_tensors_of_a_file() -> None:
    for layout in LAYOUTS:
        for network in make_networks(layout):
            with torch.device("meta"):
                empty = type(network)(network.config)
            empty.load_state_dict(network.state_dict(), assign=True, strict=True)
            assert not any(tensor.is_meta for tensor in empty.state_dict().values())


def test_tensor_names() -> None:
    _, decoder = make_networks("ltxv_091")
    names = set(decoder.state_dict())
    embedder = {f"linear_{i}.{kind}" for i in (1, 2) for kind in ("weight", "bias")}
    assert names == {
        *(f"{conv}.conv.{kind}" for conv in ("conv_in", "conv_out") for kind in ("weight", "bias")),
        *(f"up_blocks.{i}.conv.conv.{kind}" for i in (0, 2) for kind in ("weight", "bias")),
        *(f"up_blocks.{i}.time_embedder.timestep_embedder.{name}" for i in (1, 3) for name in embedder),
        *(f"last_time_embedder.timestep_embedder.{name}" for name in embedder),
        *(
            f"up_blocks.{i}.res_blocks.{j}.{name}"
            for i, j in ((1, 0), (1, 1), (3, 0))
            for name in (
                *(f"conv{k}.conv.{kind}" for k in (1, 2) for kind in ("weight", "bias")),
                *("scale_shift_table", "per_channel_scale1", "per_channel_scale2"),
            )
        ),
        *("timestep_scale_multiplier", "last_scale_shift_table"),
        *(f"per_channel_statistics.{name}" for name in ("mean-of-means", "std-of-means", "channel", "mean-of-stds")),
        "per_channel_statistics.mean-of-stds_over_std-of-means",
    }
    assert decoder.state_dict()["per_channel_statistics.std-of-means"].shape == (8,)


def test_families_fill_absent_keys_differently() -> None:
    ltx2 = VideoVaeConfig.from_metadata({"vae": {}})
    assert (ltx2.family, ltx2.decoder_padding, ltx2.timestep_conditioning) == ("ltx2", "reflect", True)
    ltxv = VideoVaeConfig.from_metadata({"vae": {}}, family="ltxv")
    assert (ltxv.decoder_padding, ltxv.timestep_conditioning, ltxv.patch_size) == ("zeros", False, 1)
    assert detect_family({"transformer": {"_class_name": "Transformer3DModel"}, "vae": {}}) == "ltxv"
    assert detect_family({"transformer": {"_class_name": "AVTransformer3DModel"}, "vae": {"blocks": []}}) == "ltx2"
    assert detect_family({"vae": {"timestep_conditioning": True}}) == "ltxv"
    assert detect_family({"vae": {"blocks": []}}) == "ltxv"


def test_the_nested_layout_gives_an_encoder_only() -> None:
    encoder = {"out_channels": 16, "blocks": [["res_x", 1], ["compress_all_res", {"multiplier": 2}]], "patch_size": 4}
    config = VideoVaeConfig.from_metadata({"vae": {"_class_name": "CausalDiffusionVAE", "encoder": encoder}})
    network = VideoEncoder(config)
    assert network.scale_factors == (2, 8, 8)
    assert network.conv_in.conv.out_channels == 16
    with pytest.raises(ConfigError, match="diffusion decoder"):
        VideoDecoder(config)


@pytest.mark.parametrize(
    "vae, message",
    [
        ({"encoder_blocks": [["swirl", {}]]}, "swirl"),
        ({"decoder_blocks": [["compress_all_res", {}]]}, "compress_all_res"),
        ({"encoder_blocks": [["res_x", {}]]}, "num_layers"),
        ({"norm_layer": "batch_norm"}, "batch_norm"),
        ({"spatial_padding_mode": "mirror"}, "mirror"),
        ({"latent_log_var": "some"}, "some"),
        ({"dims": 2}, "dims"),
        ({"stem": "dct"}, "stem is 'dct', expected one of space_to_depth, haar"),
        ({"stem": "haar", "patch_size": 3}, "power of two for a haar stem"),
        ({"_class_name": "CausalDiffusionVAE"}, "encoder"),
    ],
)
def test_bad_configs_are_refused(vae: dict, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        VideoVaeConfig.from_metadata({"vae": vae})


def test_a_config_without_a_vae_is_refused() -> None:
    with pytest.raises(ConfigError, match="vae"):
        VideoVaeConfig.from_metadata({"transformer": {}})


def test_patchify_puts_the_width_offset_before_the_height_offset() -> None:
    image = torch.arange(16.0).view(1, 1, 4, 4)
    assert patchify(image, 4).flatten().tolist() == image.transpose(2, 3).flatten().tolist()
    video = torch.randn(2, 3, 4, 8, 12)
    assert unpatchify(patchify(video, 4, 2), 4, 2).equal(video)


@pytest.mark.parametrize("size", [1, 2, 4, 8])
def test_haar_patches_are_orthonormal_and_inverse(size: int) -> None:
    matrix = haar_matrix(size)
    assert float((matrix @ matrix.T - torch.eye(size)).abs().max()) < 1e-6
    video = torch.randn(2, 3, 2, 8, 16, generator=torch.Generator().manual_seed(0))
    packed = haar_patches(video, size)
    assert packed.shape == patchify(video, size).shape
    assert float((from_haar_patches(packed, size) - video).abs().max()) < 1e-6
    torch.testing.assert_close(packed.square().sum(), video.square().sum(), rtol=1e-5, atol=0)


def test_haar_channels_are_the_mean_then_finer_and_finer_differences() -> None:
    flat = torch.full((1, 1, 1, 4, 4), 0.5)
    assert haar_patches(flat, 4).flatten().tolist() == pytest.approx([2.0, *[0.0] * 15], abs=1e-6)
    stripes = torch.tensor([1.0, -1.0, 1.0, -1.0]).expand(1, 1, 1, 4, 4)  # along W
    found = haar_patches(stripes, 4).view(4, 4)
    assert found.abs().amax(dim=1).tolist() == pytest.approx([0, 0, 2 * 2**0.5, 2 * 2**0.5], abs=1e-6)


@pytest.mark.parametrize("stride", [(2, 1, 1), (1, 2, 2), (2, 2, 2)])
def test_depth_moves_are_inverse_and_equal_in_both_memory_formats(stride: tuple[int, int, int]) -> None:
    x = torch.randn(2, 3, 4, 6, 8)
    deep = space_to_depth(x, stride)
    assert depth_to_space(deep, stride).equal(x)
    last = space_to_depth(x.contiguous(memory_format=torch.channels_last_3d), stride)
    assert last.equal(deep)
    assert last.is_contiguous(memory_format=torch.channels_last_3d)
    assert depth_to_space(last, stride).equal(x)


def test_statistics_are_inverse() -> None:
    statistics = PerChannelStatistics(3)
    statistics.load_state_dict({"mean-of-means": torch.tensor([1.0, 2, 3]), "std-of-means": torch.tensor([2.0, 4, 8])})
    x = torch.randn(2, 3, 1, 2, 2)
    assert statistics.normalize(torch.full_like(x, 3.0))[0, :, 0, 0, 0].tolist() == [1.0, 0.25, 0.0]
    torch.testing.assert_close(statistics.un_normalize(statistics.normalize(x)), x)


@given(st.integers(1, 90), st.integers(2, 30), st.integers(0, 12))
@settings(max_examples=60, deadline=None)
def test_splits_cover_an_axis_and_complementary_ramps_sum_to_one(dim: int, size: int, overlap: int) -> None:
    if overlap >= size:
        return
    for parts in (split_by_size(dim, size, overlap), causal(split_by_size(dim, size, overlap))):
        assert parts[0].start == 0 and parts[-1].end == dim
        assert parts[0].left_ramp == parts[-1].right_ramp == 0
        for one, two in itertools.pairwise(parts):
            assert one.end - two.start == two.left_ramp
            assert one.length <= size + 1
    if all(part.left_ramp + part.right_ramp <= part.length for part in parts):
        total = torch.zeros(dim)
        for part in parts:
            total[part.start : part.end] += trapezoidal_mask_1d(part.length, part.left_ramp, part.right_ramp, True)
        torch.testing.assert_close(total, torch.ones(dim))


@given(st.integers(1, 90), st.integers(1, 8), st.integers(0, 6))
@settings(max_examples=60, deadline=None)
def test_counted_splits_have_nearly_equal_lengths(dim: int, count: int, overlap: int) -> None:
    if count > 1 and (count > dim or overlap > dim - count):
        with pytest.raises(ConfigError):
            split_by_count(dim, count, overlap)
        return
    parts = split_by_count(dim, count, overlap)
    assert len(parts) == count and parts[0].start == 0 and parts[-1].end == dim
    assert max(p.length for p in parts) - min(p.length for p in parts) <= 1
    assert all(one.end - two.start == overlap for one, two in itertools.pairwise(parts))


def test_a_short_last_tile_grows_to_the_left() -> None:
    assert split_by_size(23, 8, 2, min_tile_size=6)[-2:] == [Interval(12, 20, 2, 3), Interval(17, 23, 3, 0)]
    assert split_by_size(5, 4, 1, min_tile_size=6) == [Interval(0, 5)]
    with pytest.raises(ConfigError, match="at least 6"):
        split_by_size(20, 5, 1, min_tile_size=6)
    with pytest.raises(ConfigError, match="overlap"):
        split_by_size(20, 5, 5)


def test_masks() -> None:
    assert trapezoidal_mask_1d(5, 1, 3).tolist() == [0.5, 1.0, 0.75, 0.5, 0.25]
    assert trapezoidal_mask_1d(4, 2, 0, True).tolist() == [0.0, 0.5, 1.0, 1.0]
    assert rectangular_mask_1d(5, 1, 2).tolist() == [0, 1, 1, 0, 0]


@torch.no_grad()
def test_one_tile_is_the_whole_decode() -> None:
    encoder, decoder = make_networks("ltx23")
    latent = torch.randn(1, 8, 3, 2, 2)
    for tiling in (None, TileCountConfig(), TileSizeConfig((0, 0), (0, 0), (0, 0)), TileSizeConfig()):
        (video,) = tiled_decode(decoder, latent, tiling)
        assert video.equal(decoder(latent))
    video = torch.randn(1, 3, 9, 64, 64)
    whole = encoder(video)
    assert tiled_encode(encoder, video, TilePlan.of(whole.shape[2:], None, encoder.scale_factors)).equal(whole)


class Pointwise(VideoDecoder):
    """A decoder that only repeats cells, so that tiles must give exactly the whole."""

    def forward(self, latent: Tensor, conditioning: DecodeConditioning | None = None) -> Tensor:
        time, height, width = self.scale_factors
        big = latent[:, :3].repeat_interleave(height, 3).repeat_interleave(width, 4)
        return torch.cat([big[:, :, :1], big[:, :, 1:].repeat_interleave(time, 2)], dim=2)


@pytest.mark.parametrize(
    "tiling",
    [
        TileSizeConfig((32, 16), (64, 32), (96, 32)),
        TileSizeConfig((0, 0), (96, 64), (96, 64)),  # ramps meet: weights are divided out
        TileSizeConfig((24, 8), (0, 0), (0, 0)),
        TileCountConfig((3, 1), (2, 1), (1, 0)),
    ],
)
def test_tiles_of_a_pointwise_network_blend_to_the_whole(tiling: TileSizeConfig | TileCountConfig) -> None:
    decoder = Pointwise(make_config(**LTX23, patch_size=4))
    assert decoder.scale_factors == (8, 32, 32)
    latent = torch.randn(1, 8, 9, 5, 6)
    chunks = list(tiled_decode(decoder, latent, tiling))
    torch.testing.assert_close(torch.cat(chunks, dim=2), decoder(latent))
    starts = [span.pixels.start for span in TilePlan.of((9, 5, 6), tiling, decoder.scale_factors).frames]
    assert [chunk.shape[2] for chunk in chunks] == [b - a for a, b in zip(starts, [*starts[1:], 65], strict=True)]


@torch.no_grad()
def test_tiled_encode_keeps_the_size_and_most_values() -> None:
    encoder, _ = make_networks("ltx2")
    video = torch.randn(1, 3, 13, 16, 32)
    whole = encoder(video)
    plan = TilePlan.of(whole.shape[2:], TileCountConfig((2, 1), (1, 0), (1, 0)), encoder.scale_factors)
    tiled = tiled_encode(encoder, video, plan)
    assert tiled.shape == whole.shape
    torch.testing.assert_close(tiled[:, :, :2], whole[:, :, :2])  # before the seam a causal encoder sees the same


def test_tile_sizes_are_checked() -> None:
    _, decoder = make_networks("ltx23", patch_size=4)
    latent = torch.randn(1, 8, 9, 4, 4)
    for bad in (TileSizeConfig((80, 20)), TileSizeConfig((8, 0)), TileSizeConfig((16, 16)), TileSizeConfig((0, 8))):
        with pytest.raises(ConfigError, match="frames tiles"):
            next(tiled_decode(decoder, latent, bad))


def test_announced_chunks_and_coupled_sides() -> None:
    assert [announced_chunks(frames, TileSizeConfig()) for frames in (1, 9, 81, 121)] == [0, 1, 2, 3]
    assert announced_chunks(121, None) == 1
    assert announced_chunks(121, TileCountConfig((4, 1))) == 4
    config = TileSizeConfig.for_long_side(1088, 1920)
    assert (config.height, config.width) == ((448, 64), (768, 64))
