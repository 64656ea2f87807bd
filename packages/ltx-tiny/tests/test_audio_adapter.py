"""An audio adapter learns to be in step: a small LTX-Video model of bouncing bodies, frozen, given their knocks.

The picture is that of a scene the adapter never saw, given whole and clean, so that what is measured is the adapter and
not what the small model can draw. Against it stand the same network with the gates towards the picture closed, and the
sounds it made for other scenes: knocks as good as its own that know nothing of this picture.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

from ltx_core.components.guiders import VelocityGuidance
from ltx_core.components.patchifiers import AudioPatchifier
from ltx_core.guidance.perturbations import BatchedPerturbationConfig
from ltx_core.loader.checkpoint import Checkpoint
from ltx_core.model.audio_vae.audio_vae import decode_audio, encode_audio
from ltx_core.model.transformer.config import TransformerConfig
from ltx_core.model.transformer.model import LTXModel
from ltx_core.networks import Contexts
from ltx_core.sampling.denoisers import ISOLATED
from ltx_core.sampling.loop import denoise
from ltx_core.sampling.velocity import TokenLevelSampler, VelocityDenoiser
from ltx_core.types import Audio, AudioLatentShape, LatentState, SpatioTemporalScaleFactors
from ltx_tiny.bundle import WEIGHTS
from ltx_tiny.eval.detectors import find_lags
from ltx_tiny.eval.hearing import listen
from ltx_tiny.eval.report import Spread
from ltx_tiny.examples import FPS, FRAMES
from ltx_tiny.latents import video_latent
from ltx_tiny.world.motion import events
from ltx_tiny.world.scene import Scene, sample_scene
from ltx_tiny.world.sound import SAMPLE_RATE, play
from ltx_trainer.config_file import parse_config
from ltx_trainer.draws import step_draws
from ltx_trainer.muon import Muon
from ltx_trainer.precomputed import write_record
from ltx_trainer.timestep_samplers import UniformTimestepSampler
from ltx_trainer.trainer import LtxvTrainer
from ltx_trainer.training_strategies.config import FlexibleConfig
from ltx_trainer.training_strategies.inputs import audio_tokens, video_tokens
from ltx_trainer.training_strategies.strategies import make_strategy
from ltx_trainer.transformer_task import TransformerObjective

SIDE, SECONDS = 64, FRAMES / FPS
SCENES, HELD_OUT = 600, 24
SECTION: dict[str, Any] = {
    "_class_name": "Transformer3DModel",
    "num_layers": 3,
    "num_attention_heads": 4,
    "attention_head_dim": 32,
    "cross_attention_dim": 128,
    "in_channels": 128,
    "out_channels": 128,
    "caption_channels": 8,
    "causal_temporal_positioning": True,
    "positional_embedding_max_pos": [4, 512, 512],
}
CONFIG = {"transformer": SECTION, "vae": {"_class_name": "CausalVideoAutoencoder", "latent_channels": 128}}
TRAINING: dict[str, Any] = {
    "training_strategy": {
        "name": "flexible",
        "video": {"is_generated": False, "latents_dir": "latents"},
        "audio": {"is_generated": True, "latents_dir": "audio_latents"},
    },
    "audio_adapter": {"head_dim": 16},
    "optimization": {
        "steps": 500,
        "batch_size": 16,
        "learning_rate": 1e-2,
        "optimizer_type": "muon",
        "scheduler_type": "cosine",
        "warmup_steps": 40,
    },
    "flow_matching": {"timestep_sampling_mode": "uniform"},
    "acceleration": {"mixed_precision_mode": "no"},
    "checkpoints": {"precision": "float32", "save_training_state": "off"},
    "validation": {"interval": None},
}


def bouncing(count: int, part: str, seed: int) -> list[Scene]:
    """Scenes whose bodies bounce."""
    drawn = (sample_scene(np.random.default_rng((seed, number)), part) for number in range(100 * count))
    found = [scene for _, scene in zip(range(count), (s for s in drawn if s.body.motion == "bounces"), strict=False)]
    assert len(found) == count
    return found


def sound_latents(scenes: Sequence[Scene], tiny: Checkpoint) -> Tensor:
    """``[n, 8, T, 16]``, normalised."""
    encoder: Any = tiny.build("audio_encoder", torch.float32)
    waves = torch.stack([torch.from_numpy(play(scene, SECONDS)) for scene in scenes])
    with torch.no_grad():
        made = [encode_audio(Audio(part, SAMPLE_RATE), encoder) for part in waves.split(32)]
    return torch.cat(made)[:, :, : AudioLatentShape.from_duration(1, SECONDS).frames]


def write_data(root: Path, scenes: Sequence[Scene], sounds: Tensor) -> None:
    """Records of the scenes, all with one caption."""
    caption = {"prompt_embeds": torch.ones(1, 8), "prompt_attention_mask": torch.ones(1, dtype=torch.long)}
    for number, (scene, sound) in enumerate(zip(scenes, sounds, strict=True)):
        video = video_latent(scene, FRAMES, SIDE)
        sizes = dict(zip(("num_frames", "height", "width"), video.shape[1:], strict=True))
        steps = {"num_time_steps": sound.shape[1], "frequency_bins": sound.shape[2]}
        records = {
            "conditions": caption,
            "latents": {"latents": video, **sizes, "fps": FPS},
            "audio_latents": {"latents": sound, **steps, "duration": SECONDS, "present": 1},
        }
        for directory, record in records.items():
            write_record(root / directory / f"{number:04}.safetensors", record)


def write_video_model(path: Path, videos: Tensor, steps: int = 300) -> None:
    """A small LTX-Video model of these latents."""
    torch.manual_seed(0)
    model = LTXModel(TransformerConfig.from_metadata(CONFIG))
    model.set_attention_backend("math")
    strategy = FlexibleConfig.model_validate(
        {"name": "flexible", "video": {"is_generated": True, "latents_dir": "latents"}}
    )
    sampling = make_strategy(strategy, UniformTimestepSampler(), SpatioTemporalScaleFactors.default())
    objective, optimizer = TransformerObjective(model, None, sampling), Muon(model, lr=1e-2)
    for step in range(steps):
        chosen = torch.randint(len(videos), (16,), generator=torch.Generator().manual_seed(step))
        caption = {"prompt_embeds": torch.ones(16, 1, 8), "prompt_attention_mask": torch.ones(16, 1).long()}
        batch = {"video_latents": {"latents": videos[chosen], "fps": torch.full((16,), FPS)}, "conditions": caption}
        optimizer.zero_grad()
        objective(batch, step_draws("cpu", 0, step))["loss"].backward()
        optimizer.step()
    tensors = {f"model.diffusion_model.{name}": tensor for name, tensor in model.state_dict().items()}
    save_file(tensors, path, {"config": json.dumps(CONFIG)})


@torch.no_grad()
def sounds_for(scenes: Sequence[Scene], network: Any, tiny: Checkpoint, closed: bool = False) -> list[Any]:
    """The onsets heard in the sound made for each scene; with closed gates it does not see the picture."""
    decoders: Any = [tiny.build(name, torch.float32) for name in ("audio_decoder", "vocoder")]
    found, shape = [], AudioLatentShape.from_duration(1, SECONDS)
    denoiser = VelocityDenoiser(Contexts(torch.ones(1, 1, 8)), None, [VelocityGuidance()] * 20)
    apart = BatchedPerturbationConfig([ISOLATED]) if closed else None
    for number, scene in enumerate(scenes):
        noise = torch.randn(*shape, generator=torch.Generator().manual_seed(number))
        source = {"latents": video_latent(scene, FRAMES, SIDE)[None], "fps": torch.tensor([FPS])}
        picture, sound = video_tokens(source, SpatioTemporalScaleFactors.default()), audio_tokens({"latents": noise})
        held, free = torch.zeros(1, picture.clean.shape[1], 1), torch.ones(1, sound.clean.shape[1], 1)
        states = {
            "video": LatentState(picture.clean, held, picture.positions, picture.clean, frozen=True),
            "audio": LatentState(sound.clean, free, sound.positions, sound.clean),
        }

        def run(video: Any, audio: Any, perturbations: Any) -> Any:
            return network(video, audio, apart)

        *_, last = denoise(run, denoiser, states, torch.linspace(1, 0, 21), TokenLevelSampler(lambda use, like: like))
        latent = AudioPatchifier().unpatchify(last.states["audio"].latent, shape)
        heard = decode_audio(latent, *decoders)
        found.append(listen(heard.waveform.numpy(), heard.sampling_rate).onsets)
    return found


def lag_of(scenes: Sequence[Scene], onsets: Sequence[Any]) -> Spread:
    """From every impact that is seen to the nearest knock, and from every knock to the nearest impact."""
    lags: list[float] = []
    for scene, heard in zip(scenes, onsets, strict=True):
        seen = events(scene.body, 0.0, SECONDS)
        lags += [*find_lags(seen, heard, SECONDS), *find_lags(heard, seen, SECONDS)]
    return Spread.of_lags(lags)


@pytest.mark.slow
def test_the_adapter_brings_sound_into_step_with_the_picture(tmp_path: Path) -> None:
    tiny = Checkpoint.open(WEIGHTS / "ltx-tiny.safetensors")
    scenes = bouncing(SCENES, "train", seed=1)
    write_data(tmp_path / "data", scenes, sound_latents(scenes, tiny))
    model = tmp_path / "ltxv.safetensors"
    write_video_model(model, torch.stack([video_latent(scene, FRAMES, SIDE) for scene in scenes]))
    run = {
        "model": {"model_path": str(model), "training_mode": "audio_adapter"},
        "data": {"preprocessed_data_root": str(tmp_path / "data"), "num_dataloader_workers": 0},
        "output_dir": str(tmp_path / "out"),
    }
    trainer = LtxvTrainer(parse_config({**TRAINING, **run}))
    trainer.transformer.set_attention_backend("math")
    adapter = trainer.train(live=False).weights
    assert adapter is not None

    network, unseen = Checkpoint.open((model, adapter)).build("transformer"), bouncing(HELD_OUT, "held_out", seed=2)
    own = sounds_for(unseen, network, tiny)
    with_it = lag_of(unseen, own)
    without = lag_of(unseen, sounds_for(unseen, network, tiny, closed=True))
    of_others = lag_of(unseen, [*own[1:], *own[:1]])
    print(f"median lag, ms: {with_it}; gates closed {without}; sounds of other scenes {of_others}")
    assert with_it.count > 2 * HELD_OUT
    assert with_it.median <= 0.5 * min(without.median, of_others.median)
