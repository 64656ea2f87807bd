"""Sound for LTX-Video: what an adapter adds, that it changes nothing at first, and its file."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from types import MappingProxyType
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from tests.tiny_transformers import LTX_VIDEO, random_model
from torch import Tensor

from ltx_core.errors import CheckpointError, ConfigError
from ltx_core.guidance.perturbations import (
    BatchedPerturbationConfig,
    Perturbation,
    PerturbationConfig,
    PerturbationType,
)
from ltx_core.loader.checkpoint import Checkpoint
from ltx_core.loader.streaming import build_streaming
from ltx_core.model.transformer.audio_adapter import add_audio
from ltx_core.model.transformer.config import TransformerConfig, is_adapter_tensor
from ltx_core.model.transformer.modality import Modality
from ltx_core.model.transformer.model import LTXModel

ADAPTER: dict[str, Any] = {"attention_head_dim": 6, "in_channels": 5, "out_channels": 5, "blocks": [0, 2]}
SKIPPED = PerturbationConfig((Perturbation(PerturbationType.SKIP_VIDEO_BLOCK, (1,)),))


def config_of(section: Mapping[str, Any] = MappingProxyType({}), **adapter: Any) -> TransformerConfig:
    sections = {"transformer": LTX_VIDEO | dict(section), "audio_adapter": ADAPTER | adapter}
    return TransformerConfig.from_metadata(sections)


def video_model(section: Mapping[str, Any] = MappingProxyType({})) -> LTXModel:
    return random_model(LTX_VIDEO | dict(section))


def inputs(seed: int = 1) -> tuple[Modality, Modality]:
    generator = torch.Generator().manual_seed(seed)

    def modality(axes: int, tokens: int, channels: int) -> Modality:
        levels = torch.rand(2, tokens, generator=generator)
        return Modality(
            latent=torch.randn(2, tokens, channels, generator=generator),
            timesteps=levels,
            positions=4 * torch.rand(2, axes, tokens, generator=generator),
            context=torch.randn(2, 5, 14, generator=generator),
        )

    return modality(3, 12, 6), modality(1, 7, 5)


def opened_gates(model: LTXModel) -> LTXModel:
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "scale_shift_table_a2v" in name:
                parameter[4] = 0.5
    return model


def test_a_fresh_adapter_leaves_the_picture_as_it_is_bit_for_bit() -> None:
    plain, (video, audio) = video_model(), inputs()
    perturbed = BatchedPerturbationConfig([PerturbationConfig(), SKIPPED])
    joint = add_audio(plain, config_of()).eval()
    want, _ = plain(video, perturbations=perturbed)
    got, sound = joint(video, audio, perturbed)
    assert torch.equal(got, want)
    assert sound.shape == audio.latent.shape and sound.std() > 0.01
    assert torch.equal(joint(video)[0], plain(video)[0])  # without any sound
    changed, _ = opened_gates(joint)(video, audio, perturbed)
    assert (changed - want).abs().max() > 1e-3


def test_sound_stands_in_the_blocks_that_are_named() -> None:
    joint = add_audio(video_model(), config_of())
    has_sound = [any(is_adapter_tensor(name) for name in block.state_dict()) for block in joint.transformer_blocks]
    assert has_sound == [True, False, True]
    everywhere = add_audio(video_model(), config_of(blocks=None))
    assert all(block.config.audio is not None for block in everywhere.transformer_blocks)
    with pytest.raises(ConfigError, match="audio blocks are \\[3\\], expected some of 0 to 2"):
        config_of(blocks=[3])


def test_the_sound_reads_the_picture_once_the_gate_is_open() -> None:
    joint, (video, audio), (other, _) = add_audio(video_model(), config_of()).eval(), inputs(), inputs(seed=2)
    other = replace(other, timesteps=video.timesteps)
    assert torch.equal(joint(video, audio)[1], joint(other, audio)[1])
    opened_gates(joint)
    assert not torch.allclose(joint(video, audio)[1], joint(other, audio)[1], atol=1e-4)


def test_positions_between_picture_and_sound_are_relative_seconds() -> None:
    """Both moved in time by the same seconds: nothing changes; the sound alone: it does."""
    slow = {"positional_embedding_theta": 30.0}  # at 10000 the angles have three digits behind the point in float32
    joint, (video, audio) = opened_gates(add_audio(video_model(slow), config_of(slow)).eval()), inputs()

    def later(one: Modality, seconds: float) -> Modality:
        moved = one.positions.clone()
        moved[:, 0] += seconds
        return replace(one, positions=moved)

    both = joint(later(video, 0.5), later(audio, 0.5))
    for got, want in zip(both, joint(video, audio), strict=True):
        torch.testing.assert_close(got, want, rtol=1e-4, atol=1e-5)
    assert not torch.allclose(joint(video, later(audio, 0.5))[1], joint(video, audio)[1], atol=1e-2)


def test_gradients_reach_the_adapter_alone() -> None:
    joint, (video, audio) = add_audio(video_model(), config_of()), inputs()
    trained = {name: p for name, p in joint.named_parameters() if is_adapter_tensor(name)}
    opened_gates(joint)
    made, sound = joint(video, audio)
    (made.square().mean() + sound.square().mean()).backward()
    assert all(p.grad is None for name, p in joint.named_parameters() if name not in trained)
    assert all(p.grad is not None for p in trained.values())
    assert joint.transformer_blocks[0].audio_to_video_attn.to_v.weight.grad.abs().max() > 0


class TestFile:
    @pytest.fixture
    def files(self, tmp_path: Path) -> tuple[Path, Path]:
        """A model, and an adapter with open gates."""
        joint = opened_gates(add_audio(video_model(), config_of()))
        model, adapter = tmp_path / "ltxv.safetensors", tmp_path / "sound.safetensors"
        parts: dict[bool, dict[str, Tensor]] = {True: {}, False: {}}
        for name, tensor in joint.state_dict().items():
            prefix = "audio_adapter." if is_adapter_tensor(name) else "model.diffusion_model."
            parts[is_adapter_tensor(name)][prefix + name] = tensor.clone()
        save_file(parts[False], model, {"config": json.dumps({"transformer": LTX_VIDEO})})
        save_file(parts[True], adapter, {"config": json.dumps({"audio_adapter": ADAPTER})})
        return model, adapter

    def test_both_files_are_one_transformer(self, files: tuple[Path, Path]) -> None:
        checkpoint, (video, audio) = Checkpoint.open(files), inputs()
        want = opened_gates(add_audio(video_model(), config_of()).eval())(video, audio)
        got = checkpoint.build("transformer")(video, audio)
        assert all(map(torch.equal, got, want))
        streamed = build_streaming(checkpoint, torch.float32, hold="file")
        assert all(map(torch.equal, streamed(video, audio), want))
        streamed.close()

    def test_the_model_alone_is_still_there(self, files: tuple[Path, Path]) -> None:
        video, _ = inputs()
        want = video_model()(video)[0]
        for checkpoint, name in (
            (Checkpoint.open(files), "video_transformer"),
            (Checkpoint.open(files[0]), "transformer"),
        ):
            network = checkpoint.build(name)
            assert not any(map(is_adapter_tensor, network.state_dict()))
            assert torch.equal(network(video)[0], want)

    def test_an_adapter_of_another_model_is_refused(self, files: tuple[Path, Path], tmp_path: Path) -> None:
        wide = add_audio(video_model(), config_of(attention_head_dim=8))
        other = tmp_path / "other.safetensors"
        tensors = {f"audio_adapter.{n}": t.clone() for n, t in wide.state_dict().items() if is_adapter_tensor(n)}
        save_file(tensors, other, {"config": json.dumps({"audio_adapter": ADAPTER})})
        assert Checkpoint.open(other).components == ("audio_adapter",)
        with pytest.raises(CheckpointError, match="misshapen"):
            Checkpoint.open((files[0], other)).build("transformer")
