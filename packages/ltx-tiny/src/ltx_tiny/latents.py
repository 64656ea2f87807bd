"""Whole clips of the world as latents, computed once and kept in shards: what the transformer learns from.

A shard is a safetensors file with ``video_128`` ``[n, 128, 7, 4, 4]`` and ``audio`` ``[n, 8, 50, 16]`` in bfloat16,
normalised, in some shards also ``video_256`` ``[n, 128, 7, 8, 8]``, which takes four times as long to make, and the
scenes as JSON in its metadata. Shard k is a function of the seed, k and the two VAEs; shards that are there are not
made again.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import islice
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset

from ltx_core.errors import ConfigError
from ltx_core.loader.safetensors_file import SafetensorsFile, save_tensors
from ltx_core.model.audio_vae.audio_vae import encode_audio
from ltx_core.precision import resolve
from ltx_core.text_encoders.gemma.tokenizer import GemmaTokenizer
from ltx_core.types import Audio, AudioLatentShape, SpatioTemporalScaleFactors
from ltx_tiny.examples import FPS, FRAMES, as_tensor, spoken
from ltx_tiny.world.picture import draw
from ltx_tiny.world.scene import Scene, sample_scene
from ltx_tiny.world.sound import SAMPLE_RATE, play
from ltx_trainer.pretrain.data import Stage, leave_stopping_to_the_parent, stack

SIDES = (128, 256)
PART_SEEDS = {"train": 0, "held_out": 1}
FRAMES_PER_LATENT = SpatioTemporalScaleFactors.default().time


@dataclass(frozen=True)
class Encoders:
    """The networks that make latents, on one device."""

    video: nn.Module
    audio: nn.Module

    @torch.no_grad()
    def encode(self, clip: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """All latents of one rendered clip, without a batch axis."""
        device = next(self.video.parameters()).device
        latents, dtype = {}, resolve("auto", device).dtype
        with torch.autocast(device.type, dtype, enabled=dtype is not torch.float32):
            for name in (name for name in clip if name.startswith("video_")):
                latents[name] = self.video(clip[name].to(device).float()[None] / 127.5 - 1)[0]
        sound = Audio(clip["waveform"].to(device), SAMPLE_RATE)
        latents["audio"] = encode_audio(sound, self.audio)[0]  # type: ignore[arg-type]
        return {name: latent.to("cpu", torch.bfloat16) for name, latent in latents.items()}


class RenderedScenes(Dataset[dict[str, Tensor]]):
    """Scenes as ``video_<side>`` uint8 ``[3, F, side, side]`` and ``waveform`` ``[2, S]``, for worker processes."""

    def __init__(self, scenes: Sequence[tuple[Scene, Sequence[int]]], frames: int) -> None:
        self.scenes, self.frames = scenes, frames

    def __len__(self) -> int:
        return len(self.scenes)

    def __getitem__(self, number: int) -> dict[str, Tensor]:
        scene, sides = self.scenes[number]
        videos = {f"video_{side}": as_tensor(draw(scene, self.frames, side, side, FPS)) for side in sides}
        return {**videos, "waveform": torch.from_numpy(play(scene, self.frames / FPS))}


def scene_of(seed: int, part: str, number: int) -> Scene:
    """Scene ``number`` of a data set."""
    return sample_scene(np.random.default_rng((seed, PART_SEEDS[part], number)), part)


def shard_path(folder: Path, part: str, number: int) -> Path:
    return folder / f"{part}_{number:04d}.safetensors"


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

    @cached_property
    def large(self) -> list[int]:
        """The clips that are there at the large side too."""
        return [index for index, (tensors, _, _) in enumerate(self.clips) if f"video_{max(SIDES)}" in tensors]

    def draw(self, rng: np.random.Generator, side: int) -> tuple[dict[str, Tensor], Scene]:
        """A clip by chance, of those with that side."""
        found = self.large[int(rng.integers(len(self.large)))] if side == max(SIDES) else rng.integers(len(self.clips))
        tensors, row, scene = self.clips[int(found)]
        return {name: tensor[row] for name, tensor in tensors.items()}, scene


@dataclass(frozen=True)
class LatentExamples:
    """Latents with a caption in new words each time: ``video``, ``audio``, ``fps``, ``input_ids``, ``attention_mask``.

    Also the empty prompt as ``empty_ids`` and ``empty_mask``. A stage of few frames has the beginnings of clips.
    """

    seed: int
    clips: LatentClips
    tokenizer: GemmaTokenizer
    caption_dropout: float = 0.1
    leave_out: float = 0.3

    def __call__(self, position: int, slot: int, stage: Stage) -> dict[str, Tensor]:
        rng = np.random.default_rng((self.seed, position, slot))
        latents, scene = self.clips.draw(rng, stage.side)
        batch = self.tokenizer([spoken(scene, rng, self.caption_dropout, self.leave_out), ""])
        video, audio = beginning(latents[f"video_{stage.side}"], latents["audio"], stage.frames)
        return {
            "video": video,
            "audio": audio,
            "fps": torch.tensor(FPS),
            "input_ids": batch.input_ids[0],
            "attention_mask": batch.attention_mask[0],
            "empty_ids": batch.input_ids[1],
            "empty_mask": batch.attention_mask[1],
        }


def beginning(video: Tensor, audio: Tensor, frames: int) -> tuple[Tensor, Tensor]:
    """Latents ``[C, F, H, W]`` and ``[C, L, M]`` of the first so many pixel frames; both VAEs look back only.

    As much sound as is generated with so many frames, which is a latent less than the audio VAE makes of a whole clip:
    a transformer that always met the last one leans on it.
    """
    sound = AudioLatentShape.from_duration(1, frames / FPS).frames
    return video[:, : 1 + (frames - 1) // FRAMES_PER_LATENT], audio[:, :sound]


@dataclass(frozen=True)
class LatentPairs:
    """The same clip small and large, for the upsampler."""

    seed: int
    clips: LatentClips

    def __call__(self, position: int, slot: int, stage: Stage) -> dict[str, Tensor]:
        rng = np.random.default_rng((self.seed, position, slot))
        latents, _ = self.clips.draw(rng, max(SIDES))
        return {"small": latents["video_128"], "large": latents["video_256"]}


@dataclass(frozen=True)
class LatentsPlan:
    """What the latents stage makes: clips per part and per shard, frames per clip, and its helpers.

    Every ``large_every``-th shard has the large side too.
    """

    seed: int
    counts: Mapping[str, int]
    shard_size: int
    frames: int = FRAMES
    large_every: int = 1
    workers: int = 0

    def shards(self, folder: Path) -> list[tuple[Path, list[tuple[Scene, Sequence[int]]]]]:
        """Every shard that is not there yet, with its scenes and their sides."""
        missing: list[tuple[Path, list[tuple[Scene, Sequence[int]]]]] = []
        for part, count in self.counts.items():
            for first in range(0, count, self.shard_size):
                path = shard_path(folder, part, first // self.shard_size)
                numbers = range(first, min(first + self.shard_size, count))
                sides: Sequence[int] = SIDES if (first // self.shard_size) % self.large_every == 0 else SIDES[:1]
                if not path.exists():
                    missing.append((path, [(scene_of(self.seed, part, number), sides) for number in numbers]))
        return missing


def make_latents(folder: Path, plan: LatentsPlan, encoders: Encoders) -> Iterator[Path]:
    """Make all shards that are not there yet, giving each when it is written."""
    shards = plan.shards(folder)
    scenes = [scene for _, held in shards for scene in held]
    rendered = RenderedScenes(scenes, plan.frames)
    clips = iter(DataLoader(rendered, None, num_workers=plan.workers, worker_init_fn=leave_stopping_to_the_parent))
    for path, held in shards:
        stacked = stack([encoders.encode(clip) for clip in islice(clips, len(held))])
        save_tensors(path, stacked, {"scenes": json.dumps([scene.to_json() for scene, _ in held])})
        yield path
