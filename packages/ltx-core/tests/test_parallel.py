"""Several processes give what one gives: tokens, heads and guidance passes shared out in uneven parts.

Run by itself, as each of the processes is, this file computes the cases and saves what the first process has.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from ltx_core.components.guiders import MultiModalGuider, MultiModalGuiderParams
from ltx_core.errors import ConfigError, LtxError
from ltx_core.loader.backend import FrameDecoder
from ltx_core.model.transformer.config import AUDIO_VIDEO_CONSTANTS, LTX2_CONSTANTS, TransformerConfig
from ltx_core.model.transformer.model import LTXModel, X0Model
from ltx_core.model.video_vae.config import VideoVaeConfig
from ltx_core.model.video_vae.video_vae import DecodeConditioning, VideoDecoder
from ltx_core.parallel.launch import launch
from ltx_core.parallel.mesh import Devices, MeshShape, PaperDevices, PaperRanks, check_mesh, stage_mesh
from ltx_core.parallel.ranks import Ranks, shares
from ltx_core.parallel.sequence import SharedTokens, share_tokens
from ltx_core.parallel.strips import StripDecoder, Strips
from ltx_core.sampling.denoisers import GuidedDenoiser
from ltx_core.sampling.loop import denoise
from ltx_core.sampling.samplers import EulerSampler
from ltx_core.types import LatentState

LTX2: dict[str, Any] = {
    **LTX2_CONSTANTS,
    **AUDIO_VIDEO_CONSTANTS,
    "_class_name": "AVTransformer3DModel",
    "num_layers": 3,
    "num_attention_heads": 5,
    "attention_head_dim": 16,
    "cross_attention_dim": 80,
    "in_channels": 6,
    "out_channels": 6,
    "audio_num_attention_heads": 5,
    "audio_attention_head_dim": 8,
    "audio_cross_attention_dim": 40,
    "audio_in_channels": 5,
    "audio_out_channels": 5,
    "frequencies_precision": "float64",
    "av_ca_timestep_scale_multiplier": 1000.0,
    "caption_channels": 14,
}
SECTIONS: dict[str, dict[str, Any]] = {
    "19b": LTX2,
    "2.3": {
        **{name: value for name, value in LTX2.items() if name != "caption_channels"},
        "caption_proj_before_connector": True,
        "cross_attention_adaln": True,
        "apply_gated_attention": True,
    },
    "ltxv": {
        "_class_name": "Transformer3DModel",
        "num_layers": 3,
        "num_attention_heads": 5,
        "attention_head_dim": 16,
        "cross_attention_dim": 80,
        "caption_channels": 14,
        "in_channels": 6,
        "out_channels": 6,
    },
}
DECODERS: dict[str, dict[str, Any]] = {
    "reflecting": {
        "decoder_blocks": [["res_x", 1], ["compress_all", {"residual": True, "multiplier": 2}], ["res_x", 1]],
        "timestep_conditioning": False,
    },
    "causal, attending": {
        "decoder_blocks": [["attn", {}], ["compress_all", {"multiplier": 2}], ["compress_space", {}]],
        "causal_decoder": True,
        "spatial_padding_mode": "replicate",
        "timestep_conditioning": False,
    },
    "noisy": {
        "decoder_blocks": [["res_x", {"num_layers": 1, "inject_noise": True}], ["compress_time", {}]],
        "spatial_padding_mode": "zeros",
        "timestep_conditioning": True,
    },
}
TOKENS = {"video": 13, "audio": 7}
MESHES = {2: ("sp=2", "cfg=2"), 4: ("sp=4", "sp=2,cfg=2", "cfg=4")}


def random_model(name: str) -> LTXModel:
    torch.manual_seed(0)
    model = LTXModel(TransformerConfig.from_metadata({"transformer": SECTIONS[name]})).eval()
    for key, parameter in model.named_parameters():
        if "norm" not in key:
            nn.init.normal_(parameter, std=0.15)
    return model.requires_grad_(False)


def states(model: LTXModel, masked: bool) -> dict[str, LatentState]:
    """Noisy streams; two tokens are clean, and with ``masked`` some see others less."""
    generator, found = torch.Generator().manual_seed(3), {}
    for name, stream in model.config.streams.items():
        tokens = TOKENS[name]
        latent = torch.randn(1, tokens, stream.in_channels, generator=generator)
        starts = 4 * torch.rand(1, len(stream.max_pos), tokens, generator=generator)
        mask = torch.ones(1, tokens, 1)
        strengths = None
        if name == "video":
            mask[:, :2] = 0
            strengths = torch.rand(1, tokens, tokens, generator=generator).round(decimals=1) if masked else None
        found[name] = LatentState(
            latent, mask, torch.stack((starts, starts + 0.1), -1), latent.clone(), attention_mask=strengths
        )
    return found


def sampled(name: str, guided: bool, masked: bool, devices: Devices | None) -> list[Tensor]:
    """The latents after two steps."""
    model = random_model(name)
    generator = torch.Generator().manual_seed(5)
    texts = [
        {
            key: torch.randn(1, 5, model.config.caption_channels or stream.width, generator=generator)
            for key, stream in model.config.streams.items()
        }
        for _ in range(2)
    ]
    modality_scale = 2.0 if len(model.config.streams) > 1 else 1.0
    params = MultiModalGuiderParams(3.0, 1.0, [1], 0.0, modality_scale) if guided else MultiModalGuiderParams()
    guiders = {key: MultiModalGuider(params, texts[1][key]) for key in model.config.streams} if guided else {}
    passes = 4 if guided and modality_scale > 1 else 3 if guided else 1
    transformer: Any = X0Model(model)
    if devices is not None:
        transformer = devices.spread(transformer, passes)
    steps = denoise(
        transformer,
        GuidedDenoiser(texts[0], guiders),
        states(model, masked),
        torch.tensor([1.0, 0.6, 0.0]),
        EulerSampler(),
    )
    last = list(steps)[-1]
    return [state.latent for state in last.states.values()]


def random_decoder(name: str) -> VideoDecoder:
    torch.manual_seed(1)
    config = VideoVaeConfig.from_metadata(
        {"vae": {"latent_channels": 6, "decoder_base_channels": 4, **DECODERS[name]}}, family="ltx2"
    )
    network = VideoDecoder(config).requires_grad_(False).eval()
    for parameter in network.parameters():
        if parameter.ndim > 1:
            nn.init.normal_(parameter, std=0.1)
    return network


def decoded(name: str, devices: Devices | None) -> Tensor:
    """The frames of a latent of seven rows; the noise is one generator's."""
    latent = torch.randn(1, 6, 5, 7, 3, generator=torch.Generator().manual_seed(2))
    decoder: Any = FrameDecoder(random_decoder(name))
    if devices is not None:
        decoder = devices.decoder(decoder, latent)
        assert isinstance(decoder, StripDecoder)
    noise = DecodeConditioning(noise=torch.Generator().manual_seed(4))
    return torch.cat(list(decoder.decode_frames(latent, noise)))


CASES = [(name, guided, masked) for name in SECTIONS for guided, masked in ((False, False), (True, True))]


def main(folder: Path) -> None:
    found: dict[str, Tensor] = {}
    devices = Devices.begin()
    assert devices is not None
    for mesh in MESHES[devices.size]:
        devices.asked = mesh
        for name, guided, masked in CASES:
            before = devices.sent
            for number, latent in enumerate(sampled(name, guided, masked, devices)):
                found[f"{mesh} {name} {guided} {masked} {number}"] = latent.contiguous()
            found[f"{mesh} {name} {guided} {masked} sent"] = torch.tensor([devices.sent - before])
    for name in DECODERS:
        found[name] = decoded(name, devices)
    if devices.rank == 0:
        save_file(found, folder / "found.safetensors")


@pytest.mark.parametrize("count", [2, pytest.param(4, marks=pytest.mark.slow)])
def test_processes_give_what_one_gives(count: int, tmp_path: Path) -> None:
    assert launch([sys.executable, __file__, str(tmp_path)], count) == 0
    found = load_file(tmp_path / "found.safetensors")
    for name in DECODERS:
        torch.testing.assert_close(found[name], decoded(name, None), rtol=1e-5, atol=1e-6)
    for name, guided, masked in CASES:
        for number, alone in enumerate(sampled(name, guided, masked, None)):
            for mesh in MESHES[count]:
                together = found[f"{mesh} {name} {guided} {masked} {number}"]
                torch.testing.assert_close(together, alone, rtol=1e-5, atol=1e-5 * float(alone.abs().max()))
        for mesh in MESHES[count]:
            sampled(name, guided, masked, paper := PaperDevices(0, count, mesh))
            assert found[f"{mesh} {name} {guided} {masked} sent"].item() == paper.sent > 0


def test_a_decode_that_is_left_leaves_the_decoder_whole() -> None:
    network = random_decoder("reflecting")
    before = [type(module) for module in network.modules()]
    frames = StripDecoder(network, Strips(PaperRanks(None, 0, 2))).decode_frames(torch.zeros(1, 6, 5, 7, 3))
    next(frames)
    assert [type(module) for module in network.modules()] != before
    frames.close()
    assert [type(module) for module in network.modules()] == before


def test_shares_differ_by_one_at_most() -> None:
    assert shares(13, 4) == [4, 3, 3, 3] and shares(3, 4) == [1, 1, 1, 0]


def test_sound_alone_shares_no_tokens() -> None:
    config = random_model("19b").config.with_streams("audio")
    share_tokens(LTXModel(config), SharedTokens(Ranks(None, 0, 2)))


def test_meshes_are_read_and_chosen() -> None:
    assert [stage_mesh(None, size, 4, heads=32) for size in (4, 16, 64)] == [
        MeshShape(1, 4),
        MeshShape(1, 16),
        MeshShape(2, 32),
    ]
    assert MeshShape.usual(16, 4, most=8, heads=32) == MeshShape(2, 8)
    assert stage_mesh("fsdp=2", 8, 1, heads=4) == MeshShape(2, 4) and stage_mesh(None, 3, 4, heads=1) == MeshShape(3, 1)
    assert stage_mesh("cfg=2", 4, 1, heads=4) == MeshShape(2, 2) and check_mesh("fsdp=2,sp=4", 4) == 2
    for wrong in ("tp=2", "sp=3", "sp=x", "sp=2,cfg=4", "fsdp=3", "sp=2,sp=4"):
        with pytest.raises(ConfigError, match="mesh is"):
            check_mesh(wrong, 4)


@pytest.mark.parametrize(
    ("ending", "says"),
    [
        ("sys.exit('no room here')", "device 1 ended with exit code 1: no room here"),
        ("os.kill(os.getpid(), 9)", "device 1 ended by signal 9"),
    ],
)
def test_one_that_fails_ends_the_others(ending: str, says: str) -> None:
    program = f"import os, sys, time; time.sleep(60) if os.environ['RANK'] == '0' else {ending}"
    with pytest.raises(LtxError, match=says):
        launch([sys.executable, "-c", program], 2)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
