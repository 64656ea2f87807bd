"""What the goldens do not show of MLX networks: streams join to the whole, shapes are refused, imports stay light."""

from __future__ import annotations

import subprocess
import sys

import pytest
import torch

mx = pytest.importorskip("mlx.core", reason="mlx is not installed: `pip install mlx`, on Linux mlx-cpu too")

from ltx_core.errors import CheckpointError, ConfigError  # noqa: E402
from ltx_core.guidance.perturbations import (  # noqa: E402
    BatchedPerturbationConfig,
    Perturbation,
    PerturbationConfig,
    PerturbationType,
)
from ltx_core.model.transformer.config import StreamConfig, TransformerConfig  # noqa: E402
from ltx_core.model.transformer.modality import Modality  # noqa: E402
from ltx_core.model.video_vae import ops  # noqa: E402
from ltx_core.model.video_vae.config import BlockConfig, VideoVaeConfig  # noqa: E402
from ltx_mlx.arrays import flat_parameters, to_mlx, to_torch  # noqa: E402
from ltx_mlx.layers import Conv, ConvTranspose1d  # noqa: E402
from ltx_mlx.transformer import LTXModel  # noqa: E402
from ltx_mlx.video_vae import VideoDecoder, VideoEncoder, from_haar_patches, haar_patches  # noqa: E402
from ltx_mlx.weights import fill, published_kinds  # noqa: E402

pytestmark = pytest.mark.backend("mlx")


@pytest.fixture(autouse=True)
def _seed() -> None:
    torch.manual_seed(0)


def randomised(network, seed: int = 0):
    """Small random numbers in every parameter."""
    mx.random.seed(seed)
    arrays = flat_parameters(network)
    network.load_weights([(name, 0.3 * mx.random.normal(array.shape)) for name, array in arrays.items()])
    return network


def vae_config(**changes) -> VideoVaeConfig:
    decoder = (BlockConfig("res_x", 1), BlockConfig("compress_all", residual=True, multiplier=2))
    encoder = (BlockConfig("res_x", 1), BlockConfig("compress_all_res", multiplier=2), BlockConfig("compress_time"))
    sizes = {"latent_channels": 8, "encoder_base_channels": 8, "decoder_base_channels": 8, "patch_size": 2}
    return VideoVaeConfig(encoder_blocks=encoder, decoder_blocks=decoder, **{**sizes, **changes})


@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize("frames", [1, 2, 7])
def test_a_streamed_decode_joins_to_the_whole(causal: bool, frames: int) -> None:
    decoder, latent = randomised(VideoDecoder(vae_config(causal_decoder=causal))), torch.randn(2, 8, frames, 3, 4)
    whole, chunks = decoder(latent), list(decoder.decode_streaming(latent, chunk=1))
    assert frames == 1 or len(chunks) > 1
    torch.testing.assert_close(torch.cat(chunks, dim=2), whole, rtol=1e-4, atol=1e-4)
    shown = torch.cat(list(decoder.decode_frames(latent)))
    torch.testing.assert_close(shown, ((whole[0] + 1) / 2).clamp(0, 1).permute(1, 2, 3, 0), rtol=1e-4, atol=1e-4)


def test_a_picture_too_large_for_memory_is_decoded_in_tiles(monkeypatch: pytest.MonkeyPatch) -> None:
    decoder, latent = randomised(VideoDecoder(vae_config())), torch.randn(1, 8, 2, 24, 24)
    whole = torch.cat(list(decoder.decode_frames(latent)))
    assert decoder.decode_parts(latent, 2**40) == 1
    few = 4 * decoder.decode_parts(latent, 2**20)
    monkeypatch.setattr("ltx_mlx.video_vae.free_bytes", lambda: 2**20 // few)
    assert decoder.decode_parts(latent, 2**20 // few) > few / 2
    tiled = torch.cat(list(decoder.decode_frames(latent)))
    torch.testing.assert_close(tiled, whole, rtol=1e-4, atol=1e-4)  # tiles are decoded with all that they see
    assert torch.equal(tiled, torch.cat(list(decoder.decode_frames(latent, most=256))))


def test_a_streamed_encode_joins_to_the_whole() -> None:
    encoder, video = randomised(VideoEncoder(vae_config())), torch.rand(1, 3, 13, 8, 8) * 2 - 1
    streamed = encoder.encode_streaming(video.split([1, 5, 7], dim=2))
    torch.testing.assert_close(streamed, encoder(video), rtol=1e-4, atol=1e-4)


def test_a_haar_stem_is_torchs_and_inverse() -> None:
    video = torch.randn(1, 3, 2, 8, 12)
    packed = haar_patches(to_mlx(video.permute(0, 2, 3, 4, 1)), 4)
    torch.testing.assert_close(to_torch(packed).permute(0, 4, 1, 2, 3), ops.haar_patches(video, 4))
    torch.testing.assert_close(to_torch(from_haar_patches(packed, 4)).permute(0, 4, 1, 2, 3), video)
    encoder, clip = randomised(VideoEncoder(vae_config(stem="haar"))), torch.rand(1, 3, 5, 8, 8)
    plain = VideoEncoder(vae_config())
    plain.update(encoder.parameters())
    assert float((encoder(clip) - plain(clip)).abs().max()) > 1e-3


def test_a_transposed_convolution_is_torchs() -> None:
    for kernel, stride in ((16, 6), (15, 5), (8, 2), (4, 2), (3, 5)):
        padding = max((kernel - stride) // 2, 0)
        reference = torch.nn.ConvTranspose1d(3, 4, kernel, stride, padding)
        layer = fill(ConvTranspose1d(3, 4, kernel, stride, padding), reference.state_dict().items())
        x = torch.randn(2, 3, 7)
        got = to_torch(layer(to_mlx(x.transpose(1, 2)))).transpose(1, 2)
        torch.testing.assert_close(got, reference(x), rtol=1e-4, atol=1e-4)


def transformer(**changes) -> LTXModel:
    video, audio = StreamConfig(2, 8, 4, 4, (20, 64, 64)), StreamConfig(2, 4, 3, 3, (20,))
    return randomised(LTXModel(TransformerConfig(3, video, audio, None, cross_attention_adaln=True, **changes)))


def modalities(batch: int) -> dict[str, Modality]:
    bounds = torch.rand(1, 3, 6, 2).sort().values
    return {
        "video": Modality(
            latent=torch.randn(1, 6, 4).expand(batch, -1, -1),
            timesteps=torch.full((batch,), 0.7),
            positions=bounds.expand(batch, -1, -1, -1),
            context=torch.randn(batch, 5, 16),
        ),
        "audio": Modality(
            latent=torch.randn(1, 4, 3).expand(batch, -1, -1),
            timesteps=torch.full((batch,), 0.7),
            positions=torch.rand(1, 1, 4, 2).expand(batch, -1, -1, -1),
            context=torch.randn(batch, 5, 8),
        ),
    }


@pytest.mark.parametrize("max_batch_size", [None, 1, 2])
@pytest.mark.parametrize("prompt", [False, True])
def test_shared_guidance_passes_are_passes_one_by_one(max_batch_size: int | None, prompt: bool) -> None:
    model = transformer(use_prompt_adaln_single=prompt)
    skip = PerturbationConfig([Perturbation(PerturbationType.SKIP_VIDEO_SELF_ATTN, [1])])
    apart = PerturbationConfig([Perturbation(kind) for kind in list(PerturbationType)[2:4]])
    configs = [PerturbationConfig(), PerturbationConfig(), skip, apart]
    given = modalities(4)
    for modality in given.values():
        modality.context[2:] = modality.context[:1]  # both weakened passes read the positive text
    same = {"same_as": [0, 1, 0, 0], "same_but_text_as": [0, 0, 0, 0]}
    shared = model(**given, perturbations=BatchedPerturbationConfig(configs, **same), max_batch_size=max_batch_size)
    for sample, config in enumerate(configs):
        alone = {name: modality.batch_slice(sample, sample + 1) for name, modality in given.items()}
        for got, want in zip(shared, model(**alone, perturbations=BatchedPerturbationConfig([config])), strict=True):
            torch.testing.assert_close(got[sample : sample + 1], want, rtol=1e-4, atol=1e-4)


def test_a_transformer_answers_in_its_inputs_dtype() -> None:
    given = modalities(1)
    model = transformer()
    model.load_weights([(name, array.astype(mx.bfloat16)) for name, array in flat_parameters(model).items()])
    velocity, _ = model(**given)
    assert velocity.dtype == torch.float32


def test_what_a_transformer_cannot_take_is_refused() -> None:
    model, given = transformer(), modalities(1)
    with pytest.raises(ConfigError, match="neither video nor audio"):
        model()
    with pytest.raises(ConfigError, match="max_batch_size is 0"):
        model(**given, max_batch_size=0)
    with pytest.raises(ConfigError, match="perturbations are for 2 samples, expected 1"):
        model(**given, perturbations=BatchedPerturbationConfig.empty(2))


def test_misfits_are_listed() -> None:
    tensors = {"weight": torch.zeros(4, 3, 5), "extra": torch.zeros(1)}
    with pytest.raises(CheckpointError, match=r"1 missing: bias; 1 unexpected: extra; 1 misshapen: weight"):
        fill(Conv(3, 4, (7,)), tensors.items())
    assert published_kinds(Conv(3, 4, (7,)))["weight"].shape == (4, 3, 7)


def test_importing_the_backend_imports_no_network_of_torch() -> None:
    code = "import ltx_mlx.backend, sys; print(*sorted(name for name in sys.modules if name.startswith('ltx_core')))"
    loaded = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.split()
    networks = {
        "ltx_core.model.transformer.model",
        "ltx_core.model.transformer.block",
        "ltx_core.model.video_vae.video_vae",
        "ltx_core.model.video_vae.blocks",
        "ltx_core.model.video_vae.diffusion.decoder",
        "ltx_core.model.audio_vae.audio_vae",
        "ltx_core.model.audio_vae.vocoder",
        "ltx_core.model.upsampler.model",
        "ltx_core.model.duration_head.model",
        "ltx_core.text_encoders.gemma.backbone",
        "ltx_core.text_encoders.gemma.embeddings",
        "ltx_core.text_encoders.t5",
        "transformers",
    }
    assert "ltx_core.networks" in loaded and not networks & set(loaded)
