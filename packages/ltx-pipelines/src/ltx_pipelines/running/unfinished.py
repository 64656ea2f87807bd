"""A long clip on its way to its file: what is done lies in a folder beside it, so that a killed run goes on there.

::

    clip.mp4.unfinished/
        plan.json           what is made, by which the same command knows it
        00000.mp4, ...      the pictures of each window
        sound.f32           the sound so far, samples of all channels in turn
        state.safetensors   what the rest follows from; written last, it says how many windows are whole
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Iterable
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from ltx_core.errors import ConfigError
from ltx_core.loader.safetensors_file import SafetensorsFile
from ltx_media.files import check_length, replacing
from ltx_media.writer import VideoEncoding, join_pieces, write_piece
from ltx_pipelines.planning.plan import Plan
from ltx_pipelines.running.long import LongState
from ltx_pipelines.running.recipe import with_fingerprints
from ltx_pipelines.running.stages import WindowMedia

STATE, PLAN, SOUND = "state.safetensors", "plan.json", "sound.f32"
SAMPLE = 4  # bytes


class Unfinished:
    """The folder of one clip. Raises `ConfigError` where another clip is unfinished under the same name."""

    def __init__(self, path: Path, plan: Plan, encoding: VideoEncoding, anew: bool = False) -> None:
        self.path, self.plan, self.encoding = path, plan, encoding
        self.folder = path.with_name(path.name + ".unfinished")
        self.state, self._sound = LongState(), (0, 0)  # channels, rate
        check_length(self.folder)
        wanted = json.dumps({"plan": with_fingerprints(plan).to_json(), "crf": encoding.crf})
        kept = self.folder / PLAN
        if kept.is_file() and kept.read_text(encoding="utf-8") != wanted:
            if not anew:
                raise ConfigError(
                    f"{self.folder} holds another unfinished clip; finish that with its own command, delete the "
                    "folder, or replace it with --overwrite"
                )
            shutil.rmtree(self.folder)
        if (self.folder / STATE).is_file():
            self._load()
        elif not kept.is_file():
            self.folder.mkdir(parents=True, exist_ok=True)
            with replacing(kept) as temporary:
                temporary.write_text(wanted, encoding="utf-8")

    def write(self, number: int, media: WindowMedia, watch: Callable[[Iterable[Tensor]], Iterable[Tensor]]) -> None:
        """Write what a window adds; it counts once its state is written."""
        if media.frames.count:
            write_piece(self._piece(number), watch(media.frames), self.plan.shape.fps, self.encoding)
        if media.sound is not None:
            samples = media.sound.waveform.clamp(-1, 1).T.contiguous().numpy()  # [S, channels]
            self._sound = samples.shape[1], media.sound.sampling_rate
            place = self.folder / SOUND
            with place.open("r+b" if place.exists() else "wb") as file:
                file.truncate(self.state.samples * samples.shape[1] * SAMPLE)
                file.seek(0, 2)
                file.write(samples.astype("<f4").tobytes())

    def commit(self, state: LongState) -> None:
        """Count a window: from here on a killed run goes on."""
        facts = dict(zip(("channels", "rate"), self._sound, strict=True))
        numbers = {"done": state.done, "samples": state.samples, **facts}
        tensors = {name: tensor.cpu() for name, tensor in state.tensors().items()}
        with replacing(self.folder / STATE) as temporary:
            save_file(tensors, temporary, metadata={name: str(value) for name, value in numbers.items()})
        self.state = state

    def finish(self, metadata: dict[str, str]) -> None:
        """Join everything to the file, and remove the folder."""
        pieces = [piece for number in range(self.state.done) if (piece := self._piece(number)).exists()]
        channels, rate = self._sound
        sound = None
        if channels:
            samples = np.memmap(self.folder / SOUND, "<f4", "c").reshape(-1, channels)
            sound = torch.from_numpy(samples).T, rate
        join_pieces(self.path, pieces, self.plan.shape.fps, sound, self.encoding, metadata)
        shutil.rmtree(self.folder, ignore_errors=True)

    def close(self) -> None:
        """Remove the folder where nothing in it is whole."""
        if not self.state.done:
            shutil.rmtree(self.folder, ignore_errors=True)

    def _piece(self, number: int) -> Path:
        return self.folder / f"{number:05}.mp4"

    def _load(self) -> None:
        path = self.folder / STATE
        numbers = {name: int(value) for name, value in SafetensorsFile(path).metadata.items()}
        tensors = {name: tensor.clone() for name, tensor in load_file(path).items()}
        self.state = LongState(numbers["done"], numbers["samples"], **tensors)
        self._sound = numbers["channels"], numbers["rate"]
