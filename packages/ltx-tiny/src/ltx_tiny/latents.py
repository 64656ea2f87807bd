"""Latents that the transformer learns from: scenes as the code that is their video latent, and those of their sounds.

The video latent of a scene is computed from the scene, at any size, whenever it is asked for. Sounds are encoded once
and kept in shards: a safetensors file with ``audio`` ``[n, 8, 50, 16]`` in bfloat16, normalised, and the scenes as JSON
in its metadata. Shard k is a function of the seed, k and the audio VAE; shards that are there are not made again.
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
from ltx_core.text_encoders.gemma.tokenizer import GemmaTokenizer
from ltx_core.textfiles import parse_json
from ltx_core.types import Audio, AudioLatentShape
from ltx_tiny.examples import FPS, FRAMES, spoken
from ltx_tiny.world.code import CHANNELS, scene_code
from ltx_tiny.world.drawing import drawable
from ltx_tiny.world.scene import SECONDS, Scene, sample_scene
from ltx_tiny.world.sound import SAMPLE_RATE, play
from ltx_trainer.pretrain.data import Stage, leave_stopping_to_the_parent

SIDES = (128, 256)
LATENT_CHANNELS = 128
PART_SEEDS = {"train": 0, "held_out": 1, "long": 2}
LONG = 2  # times as long as other clips are those of part "long", and so are their motions


def video_latent(scene: Scene, frames: int, side: int, first: int = 0, drawing: bool = False) -> Tensor:
    """The latent of a square clip of a scene, float32 ``[128, f, h, w]``: its code, and nothing in the rest.

    ``first`` is the frame of the scene that the clip begins with.
    """
    code = torch.from_numpy(scene_code(scene, frames, side, side, FPS, first / FPS, drawing=drawing))
    return torch.cat([code, code.new_zeros(LATENT_CHANNELS - len(CHANNELS), *code.shape[1:])])


class Sounds(Dataset[Tensor]):
    """The waveforms ``[2, S]`` of scenes, each with its length in frames, for worker processes."""

    def __init__(self, scenes: Sequence[tuple[Scene, int]]) -> None:
        self.scenes = scenes

    def __len__(self) -> int:
        return len(self.scenes)

    def __getitem__(self, number: int) -> Tensor:
        scene, frames = self.scenes[number]
        return torch.from_numpy(play(scene, frames / FPS))


def scene_of(seed: int, part: str, number: int) -> Scene:
    """Scene ``number`` of a data set."""
    rng = np.random.default_rng((seed, PART_SEEDS[part], number))
    return sample_scene(rng, "train", LONG * SECONDS) if part == "long" else sample_scene(rng, part)


def length_of(part: str, frames: int) -> int:
    """Frames of the clips of a part, where others have ``frames``."""
    return LONG * (frames - 1) + 1 if part == "long" else frames


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
    def clips(self) -> list[tuple[Tensor, Scene]]:
        """The sound latent and the scene of every clip."""
        found: list[tuple[Tensor, Scene]] = []
        for path in self.paths:
            file = SafetensorsFile(path)
            scenes = [Scene.from_json(values) for values in parse_json(file.metadata["scenes"], f"{path}: scenes")]
            found += zip(file.read("audio"), scenes, strict=True)
        return found


@dataclass(frozen=True)
class LatentExamples:
    """Latents with a caption in new words each time: ``video``, ``audio``, ``fps``, ``input_ids``, ``attention_mask``.

    Also the empty prompt as ``empty_ids`` and ``empty_mask``, and a later picture of the clip encoded alone, as
    ``keyframe`` with its ``keyframe_number``. A stage of few frames has the beginnings of clips; one that says
    ``tokens`` has its prompts padded to so many. With ``drawings`` every clip has that of its drawing too, as
    ``reference``.
    """

    seed: int
    clips: LatentClips
    long_clips: LatentClips  # for stages of more frames than others have
    tokenizer: GemmaTokenizer
    caption_dropout: float = 0.1
    leave_out: float = 0.3
    drawings: bool = False

    def __call__(self, position: int, slot: int, stage: Stage) -> dict[str, Tensor]:
        rng = np.random.default_rng((self.seed, position, slot))
        clips = (self.long_clips if stage.frames > FRAMES else self.clips).clips
        audio, scene = clips[int(rng.integers(len(clips)))]
        reference: dict[str, Tensor] = {}
        if self.drawings:
            scene = drawable(scene)
            reference = {"reference": video_latent(scene, stage.frames, stage.side, drawing=True)}
        texts = [spoken(scene, rng, self.caption_dropout, self.leave_out), ""]
        batch = self.tokenizer(texts, stage.tokens or None)
        number = keyframe_number(rng, stage.frames)
        return {
            **reference,
            "keyframe": video_latent(scene, 1, stage.side, number),
            "keyframe_number": torch.tensor(number),
            "video": video_latent(scene, stage.frames, stage.side),
            "audio": beginning(audio, stage.frames),
            "fps": torch.tensor(FPS),
            "input_ids": batch.input_ids[0],
            "attention_mask": batch.attention_mask[0],
            "empty_ids": batch.input_ids[1],
            "empty_mask": batch.attention_mask[1],
        }


def keyframe_number(rng: np.random.Generator, frames: int) -> int:
    """A frame after the first; the last one every other time."""
    return frames - 1 if rng.random() < 0.5 else int(rng.integers(1, frames))


def beginning(audio: Tensor, frames: int) -> Tensor:
    """Sound latents ``[C, L, M]`` of the first so many pixel frames; the VAE looks back only.

    As much sound as is generated with so many frames, which is a latent less than the audio VAE makes of a whole clip:
    a transformer that always met the last one leans on it.
    """
    return audio[:, : AudioLatentShape.from_duration(1, frames / FPS).frames]


@dataclass(frozen=True)
class LatentPairs:
    """The same clip small and large, for the upsampler."""

    seed: int
    part: str = "train"

    def __call__(self, position: int, slot: int, stage: Stage) -> dict[str, Tensor]:
        scene = sample_scene(np.random.default_rng((self.seed, position, slot)), self.part)
        small, large = (video_latent(scene, stage.frames, side) for side in SIDES)
        return {"small": small, "large": large}


@dataclass(frozen=True)
class LatentsPlan:
    """Work of the latents stage: clips per part and per shard, frames per clip, and its helpers."""

    seed: int
    counts: Mapping[str, int]
    shard_size: int
    frames: int = FRAMES
    workers: int = 0

    def shards(self, folder: Path) -> list[tuple[Path, list[tuple[Scene, int]]]]:
        """Every shard that is not there yet, with its scenes and their lengths in frames."""
        missing: list[tuple[Path, list[tuple[Scene, int]]]] = []
        for part, count in self.counts.items():
            for first in range(0, count, self.shard_size):
                path = shard_path(folder, part, first // self.shard_size)
                numbers = range(first, min(first + self.shard_size, count))
                if not path.exists():
                    length = length_of(part, self.frames)
                    missing.append((path, [(scene_of(self.seed, part, number), length) for number in numbers]))
        return missing


@torch.no_grad()
def make_latents(folder: Path, plan: LatentsPlan, encoder: nn.Module) -> Iterator[Path]:
    """Make all shards that are not there yet, giving each when it is written."""
    shards = plan.shards(folder)
    sounds = Sounds([scene for _, held in shards for scene in held])
    waves = iter(DataLoader(sounds, None, num_workers=plan.workers, worker_init_fn=leave_stopping_to_the_parent))
    device = next(encoder.parameters()).device
    for path, held in shards:
        audio = Audio(torch.stack(list(islice(waves, len(held)))).to(device), SAMPLE_RATE)
        latents = encode_audio(audio, encoder)  # type: ignore[arg-type]
        scenes = json.dumps([scene.to_json() for scene, _ in held])
        save_tensors(path, {"audio": latents.to("cpu", torch.bfloat16)}, {"scenes": scenes})
        yield path
