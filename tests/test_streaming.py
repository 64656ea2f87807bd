"""Streamed video VAE passes equal whole ones for every block list of the golden cases that allows it.

Their memory does not grow with the duration, for those and for the published decoders.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from contextlib import nullcontext
from pathlib import Path

import pytest
import torch

from ltx_core.errors import CheckpointError
from ltx_core.loader import Checkpoint
from ltx_core.model.common.meter import Meter
from ltx_core.model.video_vae.config import VideoVaeConfig
from ltx_core.model.video_vae.video_vae import VideoDecoder, VideoEncoder
from tests.golden.case import Case, find_cases, golden_root


def cases(part: str) -> list[Case]:
    """Cases of whole encoders or decoders, one per weights file."""
    found: dict[str, Case] = {}
    for case in find_cases(golden_root()):
        if case.area == "video_vae" and case.weights_path.is_file() and "diffusion" not in case.key[0]:
            try:
                held = Checkpoint.open(case.weights_path).components
            except CheckpointError:
                continue  # weights of single blocks
            if part in held:
                found.setdefault(case.weights_path.name, case)
    return list(found.values())


def parameters(part: str) -> Callable[..., object]:
    return pytest.mark.parametrize("case", [pytest.param(case, id=case.name) for case in cases(part)])


def same(streamed: torch.Tensor, whole: torch.Tensor) -> bool:
    """Equal up to rounding: the error against the size of the whole, in units of the dtype's rounding."""
    limit = 1e-5 if whole.dtype == torch.float32 else 1e-12
    return streamed.shape == whole.shape and float((streamed - whole).norm() / whole.norm()) <= limit


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@parameters("video_decoder")
@torch.no_grad()
def test_decode(case: Case, dtype: torch.dtype) -> None:
    checkpoint = Checkpoint.open(case.weights_path)
    config = checkpoint.network_config("video_decoder")
    if config.timestep_conditioning or any(block.inject_noise for block in config.decoder_blocks):
        pytest.skip("draws noise of its own; the unit tests inject it")
    decoder = checkpoint.build("video_decoder", dtype)
    assert isinstance(decoder, VideoDecoder)
    if not decoder.can_stream:
        pytest.skip("a norm over time")
    generator = torch.Generator().manual_seed(0)
    latent = torch.randn(1, config.latent_channels, 5, 3, 3, generator=generator, dtype=dtype)
    whole = decoder(latent)
    for chunk in (1, 2, 5):
        assert same(torch.cat(list(decoder.decode_streaming(latent, chunk=chunk)), dim=2), whole)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@parameters("video_encoder")
@torch.no_grad()
def test_encode(case: Case, dtype: torch.dtype) -> None:
    encoder = Checkpoint.open(case.weights_path).build("video_encoder", dtype)
    assert isinstance(encoder, VideoEncoder)
    if not encoder.can_stream:
        pytest.skip("a norm over time")
    time, height, width = encoder.scale_factors
    shape = (1, 3, 4 * time + 1, 2 * height, 2 * width)
    video = torch.rand(shape, generator=torch.Generator().manual_seed(0), dtype=dtype) * 2 - 1
    whole = encoder(video)
    for chunk in (1, 3, 4 * time):
        assert same(encoder.encode_streaming(video.split(chunk, dim=2)), whole)


MANIFESTS = Path(__file__).parent / "manifests"
PUBLISHED = ("ltx-2-19b", "ltx-2.3-22b")


def configs() -> Iterator[tuple[str, str, VideoVaeConfig]]:
    """Name, device and config of every decoder; the published ones are too large to compute here."""
    for case in cases("video_decoder"):
        yield case.name, "cpu", Checkpoint.open(case.weights_path).network_config("video_decoder")
    for name in PUBLISHED:
        manifest = json.loads((MANIFESTS / name / "video_vae.json").read_text(encoding="utf-8"))
        yield name, "meta", VideoVaeConfig.from_metadata(manifest["config"])


@pytest.mark.parametrize(
    ("device", "config"), [pytest.param(device, config, id=name) for name, device, config in configs()]
)
@torch.no_grad()
def test_memory_does_not_grow_with_the_duration(device: str, config: VideoVaeConfig) -> None:
    with torch.device(device):
        decoder = VideoDecoder(config)
    if not decoder.can_stream:
        pytest.skip("a norm over time")

    def peak(frames: int) -> int:
        latents = -(-(frames - 1) // decoder.scale_factors.time) + 1
        latent = torch.zeros(1, config.latent_channels, latents, 3, 3, device=device)
        held = (*decoder.parameters(), *decoder.buffers(), latent)
        live = Meter({tensor.untyped_storage()._cdata for tensor in held})
        with live, torch.device("meta") if device == "meta" else nullcontext():
            for _ in decoder.decode_streaming(latent):
                pass
        mixed = 3 * latent.nbytes if config.timestep_conditioning else 0  # noise, its share, and the latent's
        return live.peak - mixed

    assert peak(121) <= 1.05 * peak(25)


def test_there_are_networks() -> None:
    assert len(cases("video_decoder")) >= 3 and len(cases("video_encoder")) >= 3
