"""Facts about a model, from the headers of its files alone: what they hold, and what it asks for and understands."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass, fields, replace
from functools import cached_property
from hashlib import blake2b
from pathlib import Path
from typing import Any

from ltx_core.errors import ConfigError, nearest_hint
from ltx_core.loader.checkpoint import Checkpoint
from ltx_core.loader.lora import Lora as LoraWeights
from ltx_core.loader.metadata import Version, VersionDefaults, version_defaults
from ltx_core.textfiles import parse_json
from ltx_core.types import SpatioTemporalScaleFactors
from ltx_pipelines.planning.plan import Lora, ModelFiles
from ltx_pipelines.planning.schema import Option, options_of
from ltx_pipelines.request import STREAMS, Request, guidance_options

BLOCKS = "transformer_blocks"
# Component of a checkpoint -> slot of `ModelFiles` it is read from; all fall back to the checkpoint itself.
SLOTS = {
    "embeddings": "checkpoint",
    "video_encoder": "video_vae",
    "video_decoder": "video_vae",
    "audio_encoder": "audio_vae",
    "audio_decoder": "audio_vae",
    "vocoder": "audio_vae",
    "duration_head": "duration_head",
}


class ModelFacts:
    """The files of one model; each is opened once."""

    lora_precision = "float32"  # what adapters are added to weights in, or "bfloat16"

    def __init__(self, files: ModelFiles) -> None:
        self.files = files
        self._checkpoints: dict[tuple[str, ...], Checkpoint] = {}
        self._loras: dict[Lora, LoraWeights] = {}

    def open(self, *paths: str) -> Checkpoint:
        """The checkpoint of these files."""
        if paths not in self._checkpoints:
            self._checkpoints[paths] = Checkpoint.open(paths)
        return self._checkpoints[paths]

    def source(self, component: str) -> Checkpoint:
        """The checkpoint a component is read from."""
        if component == "transformer":
            return self.checkpoint
        if component == "embeddings" and self.files.text_projection:
            return self.open(self.files.checkpoint, self.files.text_projection)
        return self.open(getattr(self.files, SLOTS[component]) or self.files.checkpoint)

    def holds(self, component: str) -> bool:
        """Whether the files can give a component."""
        if component == "text_encoder":
            return self.files.text_encoder is not None
        if component == "embeddings":
            path = self.files.text_encoder  # a packed one has projections of its own
            packed = path is not None and Path(path).is_file()
            return self.source(component).has_text_projection or (packed and self.open(str(path)).has_text_projection)
        return component in self.source(component).components

    def lora(self, lora: Lora) -> LoraWeights:
        """An adapter; its tensors stay in the file until they are used."""
        if lora not in self._loras:
            opened = LoraWeights.open(lora.path, lora.strength)
            self._loras[lora] = replace(opened, in_bfloat16=self.lora_precision == "bfloat16")
        return self._loras[lora]

    @property
    def bytes_read(self) -> int:
        """Weight bytes read from disk so far."""
        return sum(checkpoint.bytes_read for checkpoint in self._checkpoints.values())

    @property
    def checkpoint(self) -> Checkpoint:
        """The transformer's file, with what gives it an audio stream."""
        files = (self.files.checkpoint, self.files.audio_adapter)
        return self.open(*(path for path in files if path is not None))

    @property
    def config(self) -> Mapping[str, Any]:
        return self.checkpoint.config

    @property
    def version(self) -> Version:
        return self.checkpoint.version

    @property
    def is_ltx_video(self) -> bool:
        """Whether this is an LTX-Video 0.9.x model."""
        return self.checkpoint.is_ltx_video

    @property
    def defaults(self) -> VersionDefaults:
        """Sampling defaults of this model version; the image CRF follows the file that holds the video VAE."""
        image_crf = version_defaults(self.source("video_decoder").version).image_crf
        return replace(version_defaults(self.version), image_crf=image_crf)

    @cached_property
    def default_request(self) -> Mapping[str, Any]:
        """Request fields the checkpoint's metadata gives a default for."""
        return read_default_request(self.checkpoint.metadata.get("default_request", "{}"), self.checkpoint.where)

    @cached_property
    def prompt_world(self) -> PromptWorld | None:
        """The prompts the model knows, from the metadata of its checkpoint; None where it does not say."""
        text = self.checkpoint.metadata.get("prompt_world")
        return None if text is None else PromptWorld.read(text, self.checkpoint.where)

    @cached_property
    def scale_factors(self) -> SpatioTemporalScaleFactors:
        return SpatioTemporalScaleFactors.from_model_config(self.source("video_decoder").config)

    @cached_property
    def latent_channels(self) -> int:
        """Channels of a video latent."""
        return self.source("video_decoder").network_config("video_decoder").latent_channels

    @cached_property
    def decoder_digest(self) -> str:
        """Of the video decoder's vectors, statistics of the latents among them: tells its latents from others."""
        import torch

        digest = blake2b(digest_size=16)
        for name, source in sorted(self.source("video_decoder").sources("video_decoder").items()):
            if len(source.info.shape) == 1:
                digest.update(name.encode() + source.read().view(torch.uint8).numpy().tobytes())
        return digest.hexdigest()

    @cached_property
    def share_of_blocks(self) -> float:
        """Share of the transformer's values that lie in blocks."""
        sizes = {name: math.prod(source.info.shape) for name, source in self.checkpoint.sources("transformer").items()}
        return sum(size for name, size in sizes.items() if name.startswith(f"{BLOCKS}.")) / sum(sizes.values())

    @cached_property
    def text_tokens(self) -> int:
        """Tokens that prompts are padded to."""
        if self.is_ltx_video:
            from ltx_core.text_encoders.t5 import MAX_TOKENS

            return MAX_TOKENS
        from ltx_core.text_encoders.gemma.assets import GemmaAssets
        from ltx_core.text_encoders.gemma.tokenizer import MAX_LENGTH, prompt_length

        if self.files.text_encoder is None:
            return MAX_LENGTH
        return prompt_length(GemmaAssets.open(self.files.text_encoder).side_car("tokenizer_config.json"))

    def count_tokens(self, prompt: str) -> int:
        """The tokens of a prompt before it is cut to `text_tokens`."""
        path = self.text_encoder_path()
        if self.is_ltx_video:
            from ltx_core.text_encoders.t5 import open_t5

            return len(open_t5(path)[1](prompt.strip()).input_ids)
        from ltx_core.text_encoders.gemma.assets import GemmaAssets
        from ltx_core.text_encoders.gemma.encoder import load_tokenizer

        return load_tokenizer(GemmaAssets.open(path)).count(prompt)

    def text_encoder_path(self) -> str:
        """The folder or file of the language model. Raises ``ConfigError`` when none is given."""
        if self.files.text_encoder is None:
            kind = "a T5 folder" if self.is_ltx_video else "a Gemma folder or a packed text-encoder file"
            raise ConfigError(f"text_encoder is not given, expected {kind} (--gemma-root)")
        return self.files.text_encoder


@dataclass(frozen=True)
class PromptWorld:
    """Prompts that a model understands, where that is not everything: ``prompt_world`` in its checkpoint's metadata.

    ::

        {"words": ["a", "ball", "red", ...], "one_of": ["ball", ...], "says": "this model knows only ...",
         "examples": ["a red ball bounces", ...]}

    A prompt is inside when it uses no other words, all in lower case, and at least one of ``one_of``. ``says`` is told
    to whoever asks for more, ``examples`` are prompts to try.
    """

    words: frozenset[str]
    one_of: frozenset[str]
    says: str
    examples: tuple[str, ...] = ()

    @classmethod
    def read(cls, text: str, where: str) -> PromptWorld:
        """Raises `ConfigError` that names the file ``where`` it stands."""
        try:
            given = parse_json(text, where)
            lists = {name: given[name] for name in ("words", "one_of", "examples")}
            world = cls(frozenset(lists["words"]), frozenset(lists["one_of"]), given["says"], tuple(lists["examples"]))
        except (ValueError, TypeError, KeyError) as error:
            names = ", ".join(field.name for field in fields(cls))
            raise ConfigError(f"{where}: prompt_world cannot be read, expected an object with {names}") from error
        if not all(isinstance(text, str) for text in (*world.words, *world.one_of, world.says, *world.examples)):
            raise ConfigError(f"{where}: prompt_world holds something that is no text")
        return world

    def holds(self, prompt: str) -> bool:
        """Whether the model knows what a prompt speaks of."""
        words = set(re.findall(r"[^\W_]+", prompt.lower()))
        return words <= self.words and not self.one_of.isdisjoint(words)


# What a model asks for itself ---------------------------------------------------------------------------------------

WISHES = (
    *("height", "width", "num_frames", "frame_rate", "num_inference_steps", "max_batch_size", "sigmas"),
    "negative_prompt",
)


def read_default_request(text: str, where: str) -> dict[str, Any]:
    """The request a model prefers, a JSON object under ``default_request`` in the metadata of its checkpoint.

    ::

        {"height": 256, "width": 256, "num_frames": 49, "frame_rate": 25.0, "num_inference_steps": 16,
         "video_guider_params": {"cfg_scale": 3.0, "stg_scale": 0.0}, "audio_guider_params": {"cfg_scale": 3.0}}

    A value stands where a request leaves it out, each one of the guider parameters alone. Returns the values by the
    names of `Request`. Raises `ConfigError` that names the file ``where`` it stands, and the field.
    """
    place = f"{where}: default_request"
    asked = parse_json(text, place)
    if not isinstance(asked, dict):
        raise ConfigError(f"{place} is {type(asked).__name__}, expected an object")
    wanted: dict[str, Any] = {}
    for stream in STREAMS:
        name = f"{stream}_guider_params"
        params = asked.pop(name, {})
        if not isinstance(params, dict):
            raise ConfigError(f"{place}: {name} is {params!r}, expected an object")
        own = {key.removeprefix(f"{stream}_"): one for key, one in guidance_options(stream).items()}
        wanted |= {f"{stream}_{key}": one for key, one in _wishes(own, params, f"{place}, {name}").items()}
    known = {name: one for name, one in options_of(Request).items() if name in WISHES}
    return _wishes(known, asked, place) | wanted


def _wishes(known: Mapping[str, Option], asked: Mapping[str, Any], place: str) -> dict[str, Any]:
    for name in asked:
        if name not in known:
            hint = nearest_hint(name, known) or f"; expected one of {', '.join(known)}"
            raise ConfigError(f"{place}: no field is called {name}{hint}")
    return {name: known[name].read(value, f"{place}: ") for name, value in asked.items()}
