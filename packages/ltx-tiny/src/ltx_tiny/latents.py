"""Whole clips of the world as latents, computed once and kept in shards: what the transformer learns from.

A shard is a safetensors file with ``video_128`` ``[n, 128, 7, 4, 4]``, ``video_256`` ``[n, 128, 7, 8, 8]`` and
``audio`` ``[n, 8, 50, 16]`` in bfloat16, normalised, and the scenes as JSON in its metadata. Shard k is a function of
the seed, k and the two VAEs; shards that are there are not made again.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from ltx_core.errors import ConfigError
from ltx_core.loader.safetensors_file import SafetensorsFile
from ltx_core.model.audio_vae.audio_vae import encode_audio
from ltx_core.text_encoders.gemma.tokenizer import GemmaTokenizer
from ltx_core.types import Audio
from ltx_tiny.examples import FPS, FRAMES, as_tensor, spoken
from ltx_tiny.world.picture import draw
from ltx_tiny.world.scene import Scene, sample_scene
from ltx_tiny.world.sound import SAMPLE_RATE, play
from ltx_trainer.scratch.data import Stage
from ltx_trainer.state import save_tensors

SIDES = (128, 256)
PART_SEEDS = {"train": 0, "held_out": 1}
LONG_PROMPT_EVERY = 4  # positions, in a stage with long prompts
LARGE_EVERY = 4  # positions, in a stage of both sides


@dataclass(frozen=True)
class Encoders:
    """The networks that make latents, on one device."""

    video: nn.Module
    audio: nn.Module

    @torch.no_grad()
    def encode(self, scene: Scene, frames: int = FRAMES) -> dict[str, Tensor]:
        """All latents of one scene, without a batch axis."""
        device = next(self.video.parameters()).device
        latents = {}
        with torch.autocast(device.type, torch.bfloat16):
            for side in SIDES:
                pixels = as_tensor(draw(scene, frames, side, side, FPS)).to(device).float() / 127.5 - 1
                latents[f"video_{side}"] = self.video(pixels[None])[0]
        wave = torch.from_numpy(play(scene, frames / FPS)).to(device)
        latents["audio"] = encode_audio(Audio(wave, SAMPLE_RATE), self.audio)[0]  # type: ignore[arg-type]
        return {name: latent.to("cpu", torch.bfloat16) for name, latent in latents.items()}


def scene_of(seed: int, part: str, number: int) -> Scene:
    """Scene ``number`` of a data set."""
    return sample_scene(np.random.default_rng((seed, PART_SEEDS[part], number)), part)


def shard_path(folder: Path, part: str, number: int) -> Path:
    return folder / f"{part}_{number:04d}.safetensors"


def make_shard(path: Path, scenes: Sequence[Scene], encoders: Encoders, frames: int = FRAMES) -> None:
    """Encode scenes into one file, unless it is there."""
    if path.exists():
        return
    clips = [encoders.encode(scene, frames) for scene in scenes]
    stacked = {name: torch.stack([clip[name] for clip in clips]) for name in clips[0]}
    save_tensors(path, stacked, {"scenes": json.dumps([scene.to_json() for scene in scenes])})


@dataclass(frozen=True)
class LatentClips:
    """The shards of a folder. Tensors are views of the files."""

    paths: tuple[Path, ...]

    @classmethod
    def open(cls, folder: Path, part: str) -> LatentClips:
        """All shards of a part. Raises `ConfigError` when there is none."""
        paths = tuple(sorted(folder.glob(f"{part}_*.safetensors")))
        if not paths:
            raise ConfigError(f"{folder} holds no latents of part {part!r}, expected stage latents to be run first")
        return cls(paths)

    @cached_property
    def clips(self) -> list[tuple[Mapping[str, Tensor], int, Scene]]:
        """(tensors of the shard, row, scene) of every clip."""
        found: list[tuple[Mapping[str, Tensor], int, Scene]] = []
        for path in self.paths:
            file = SafetensorsFile(path)
            tensors = {name: file.read(name) for name in file.tensors}
            scenes = [Scene.from_json(values) for values in json.loads(file.metadata["scenes"])]
            found += [(tensors, row, scene) for row, scene in enumerate(scenes)]
        return found

    def __len__(self) -> int:
        return len(self.clips)

    def __getitem__(self, index: int) -> tuple[dict[str, Tensor], Scene]:
        tensors, row, scene = self.clips[index]
        return {name: tensor[row] for name, tensor in tensors.items()}, scene


@dataclass(frozen=True)
class LatentExamples:
    """Latents with a caption in new words each time: ``video``, ``audio``, ``fps``, ``input_ids``, ``attention_mask``.

    Also the empty prompt as ``empty_ids`` and ``empty_mask``. A stage without a side mixes both sides by position.
    """

    seed: int
    clips: LatentClips
    tokenizer: GemmaTokenizer
    caption_dropout: float = 0.1
    leave_out: float = 0.3

    def __call__(self, position: int, slot: int, stage: Stage) -> dict[str, Tensor]:
        rng = np.random.default_rng((self.seed, position, slot))
        latents, scene = self.clips[int(rng.integers(len(self.clips)))]
        side = stage.side or SIDES[position % LARGE_EVERY == 0]
        tokens = stage.tokens if position % LONG_PROMPT_EVERY == 0 else min(stage.tokens, 128)
        batch = self.tokenizer([spoken(scene, rng, self.caption_dropout, self.leave_out), ""], tokens)
        return {
            "video": latents[f"video_{side}"],
            "audio": latents["audio"],
            "fps": torch.tensor(FPS),
            "input_ids": batch.input_ids[0],
            "attention_mask": batch.attention_mask[0],
            "empty_ids": batch.input_ids[1],
            "empty_mask": batch.attention_mask[1],
        }


@dataclass(frozen=True)
class LatentPairs:
    """The same clip small and large, for the upsampler."""

    seed: int
    clips: LatentClips

    def __call__(self, position: int, slot: int, stage: Stage) -> dict[str, Tensor]:
        rng = np.random.default_rng((self.seed, position, slot))
        latents, _ = self.clips[int(rng.integers(len(self.clips)))]
        return {"small": latents["video_128"], "large": latents["video_256"]}


def make_latents(
    folder: Path,
    seed: int,
    counts: Mapping[str, int],
    encoders: Encoders,
    shard_size: int,
    frames: int,
    say: Callable[[str], None],
) -> None:
    """Make all shards of both parts that are not there yet."""
    folder.mkdir(parents=True, exist_ok=True)
    for part, count in counts.items():
        shards = -(-count // shard_size)
        for number in range(shards):
            path = shard_path(folder, part, number)
            numbers = range(number * shard_size, min((number + 1) * shard_size, count))
            if not path.exists():
                make_shard(path, [scene_of(seed, part, n) for n in numbers], encoders, frames)
                say(f"latents {part} {number + 1}/{shards}")
