"""One session owns the weights: every network by (file, dtype, quantisation, adapters), loaded when first asked for.

Policies: ``resident`` keeps what was loaded, so that a second generation reads no byte of weights; ``sequential`` keeps
one large network at a time, the next one's loading frees the last; ``streamed`` also keeps the transformer's blocks in
host memory, or in the file where that is too small, and passes two at a time to the device. ``auto`` chooses from free
memory and file sizes, and says so in one line.
"""

from __future__ import annotations

import gc
import hashlib
import logging
import math
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, cast

import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from ltx_core.errors import ConfigError
from ltx_core.loader.checkpoint import Checkpoint
from ltx_core.loader.layouts import Source, open_file
from ltx_core.loader.lora import Lora as LoraWeights
from ltx_core.loader.metadata import Version, VersionDefaults, version_defaults
from ltx_core.loader.safetensors_file import save_tensors
from ltx_core.loader.streaming import StreamingModel, build_streaming
from ltx_core.loader.weights import ComponentWeights
from ltx_core.model.common.memory import free_bytes
from ltx_core.model.duration_head.model import DurationHead, predict_num_frames
from ltx_core.model.transformer.model import LTXModel
from ltx_core.precision import WIDENED, DtypeName, Precision, resolve
from ltx_core.types import SpatioTemporalScaleFactors
from ltx_pipelines.planning.plan import Lora, ModelFiles
from ltx_pipelines.planning.prompt_world import PromptWorld
from ltx_pipelines.request import read_default_request

if TYPE_CHECKING:
    from ltx_core.text_encoders.gemma.encoder import AVGemmaTextEncoderModel

logger = logging.getLogger(__name__)

Policy = Literal["auto", "resident", "sequential", "streamed"]

# Component of a checkpoint -> slot of `ModelFiles` it is read from; all fall back to the checkpoint itself.
SLOTS = {
    "transformer": "checkpoint",
    "embeddings": "checkpoint",
    "video_encoder": "video_vae",
    "video_decoder": "video_vae",
    "audio_encoder": "audio_vae",
    "audio_decoder": "audio_vae",
    "vocoder": "audio_vae",
    "duration_head": "duration_head",
}
MEANING: dict[Policy, str] = {
    "resident": "all networks stay",
    "sequential": "large networks one at a time",
    "streamed": "large networks one at a time, two blocks of the transformer",
}
# Networks that never are in memory together under `sequential`; the others are small.
LARGE = ("text_encoder", "transformer", "video_encoder", "video_decoder", "latent_upsampler")


@dataclass(frozen=True)
class Contexts:
    """What the transformer reads of one prompt. Masks are absorbed: registers stand where padding was."""

    video: Tensor  # [1, S, c]
    audio: Tensor  # [1, S, c]


@dataclass(frozen=True)
class HeldSource(Source):
    """A tensor that was read once and stays in memory, because adapters change it in place."""

    held: Tensor | None = None

    def read(self) -> Tensor:
        assert self.held is not None
        return self.held


class ModelLedger:
    """The networks of one model, shared by every generation of a session."""

    def __init__(
        self,
        files: ModelFiles,
        dtype: torch.dtype | DtypeName = "auto",
        device: torch.device | str | None = None,
        policy: Policy = "auto",
        quantization: str | None = None,
        embedding_cache: Path | None = None,
        compile_blocks: bool = False,
    ) -> None:
        self.files = files
        self.compile_blocks = compile_blocks
        self.device = torch.device(device or default_device())
        self.quantization = quantization
        self.precision = resolve(dtype, self.device)
        if dtype == "auto":
            self.precision = self._fitting(self.precision, policy)
        self.embedding_cache = embedding_cache
        self._contexts: dict[str, Contexts] = {}
        self.policy = self._choose_policy() if policy == "auto" else policy
        self._networks: dict[str, Any] = {}
        self._checkpoints: dict[str, Checkpoint] = {}
        self._loras: dict[Lora, LoraWeights] = {}
        self._transformer: _AdaptedTransformer | _StreamedTransformer | None = None
        self._coming: Future[_AdaptedTransformer] | None = None
        self._statistics: tuple[Tensor, Tensor] | None = None

    # What the files say -------------------------------------------------------------------------------------------

    @property
    def checkpoint(self) -> Checkpoint:
        """The transformer's file."""
        return self.open(self.files.checkpoint)

    @property
    def config(self) -> Mapping[str, Any]:
        return self.checkpoint.config

    @property
    def version(self) -> Version:
        return self.checkpoint.version

    @property
    def defaults(self) -> VersionDefaults:
        """Sampling defaults of this model generation; the image CRF follows the file that holds the video VAE."""
        version = self.open(self.slot("video_vae")).version
        return replace(version_defaults(self.version), image_crf=version_defaults(version).image_crf)

    @cached_property
    def default_request(self) -> Mapping[str, Any]:
        """What the model asks to be asked, from the metadata of its checkpoint; empty where it says nothing."""
        return read_default_request(self.checkpoint.metadata.get("default_request", "{}"), self.checkpoint.where)

    @cached_property
    def prompt_world(self) -> PromptWorld | None:
        """Which prompts the model knows, from the metadata of its checkpoint; None where it does not say."""
        text = self.checkpoint.metadata.get("prompt_world")
        return None if text is None else PromptWorld.read(text, self.checkpoint.where)

    @cached_property
    def scale_factors(self) -> SpatioTemporalScaleFactors:
        return SpatioTemporalScaleFactors.from_model_config(self.open(self.slot("video_vae")).config)

    @cached_property
    def latent_channels(self) -> int:
        """Channels of a video latent."""
        return self.open(self.slot("video_vae")).network_config("video_decoder").latent_channels

    @cached_property
    def text_tokens(self) -> int:
        """Tokens that prompts are padded to."""
        from ltx_core.text_encoders.gemma.assets import GemmaAssets
        from ltx_core.text_encoders.gemma.tokenizer import MAX_LENGTH, prompt_length

        if self.files.text_encoder is None:
            return MAX_LENGTH
        return prompt_length(GemmaAssets.open(self.files.text_encoder).side_car("tokenizer_config.json"))

    @property
    def dtype(self) -> torch.dtype:
        """What networks compute in."""
        return self.precision.dtype

    @property
    def bytes_read(self) -> int:
        """Weight bytes read from disk so far."""
        return sum(c.bytes_read for c in self._checkpoints.values())

    def slot(self, name: str) -> str:
        """The file of a slot, the checkpoint where it names none."""
        return getattr(self.files, name) or self.files.checkpoint

    def open(self, path: str) -> Checkpoint:
        """The checkpoint at ``path``, its headers read once."""
        if path not in self._checkpoints:
            self._checkpoints[path] = Checkpoint.open(path)
        return self._checkpoints[path]

    def holds(self, component: str) -> bool:
        """Whether the files can give a component, without reading it."""
        return component in self.open(self.slot(SLOTS[component])).components

    # Networks -----------------------------------------------------------------------------------------------------

    def network(self, component: str) -> nn.Module:
        """A component other than the transformer, loaded on first use."""
        path = self.slot(SLOTS[component])
        dtype = torch.float32 if component == "vocoder" else self.precision
        return self._kept(component, component, lambda: self.open(path).build(component, dtype, self.device))

    def latent_upsampler(self, kind: Literal["spatial", "temporal"] = "spatial") -> nn.Module:
        path = getattr(self.files, f"{kind}_upsampler")
        if not path:
            raise ConfigError(f"{kind}_upsampler is not given, expected the file of a latent upsampler")
        build = lambda: self.open(path).build("latent_upsampler", self.precision, self.device)  # noqa: E731
        return self._kept(f"{kind}_upsampler", "latent_upsampler", build)

    def transformer(self, loras: Sequence[Lora] = (), streams: Sequence[str] = ("video", "audio")) -> nn.Module:
        """The transformer with exactly these adapters; switching sets touches only the layers they change.

        For one stream alone only its own weights are read.
        """
        if self._transformer is None or not self._transformer.serves(streams):
            self.release("transformer")
            self._make_room("transformer")
            coming, self._coming = self._coming, None
            loaded = coming.result() if coming is not None else None
            if self.policy == "streamed":
                self._transformer = _StreamedTransformer(self)
            elif loaded is not None and loaded.serves(streams):
                self._transformer = loaded
            else:
                self._transformer = _AdaptedTransformer(self, streams)
        self._transformer.switch([self.lora(lora) for lora in loras])
        self._networks["transformer"] = self._transformer.network
        return self._transformer.network

    def expect_transformer(self, streams: Sequence[str] = ("video", "audio")) -> None:
        """Begin to load the transformer beside other work, where networks stay; ``transformer`` waits for it."""
        if self.policy == "resident" and self._transformer is None and self._coming is None:
            self.checkpoint  # noqa: B018 - headers are read before the thread shares them
            loader = ThreadPoolExecutor(max_workers=1, thread_name_prefix="transformer-loader")
            self._coming = loader.submit(_AdaptedTransformer, self, streams)
            loader.shutdown(wait=False)

    def latent_statistics(self) -> tuple[Tensor, Tensor]:
        """Mean and deviation of the video VAE's latents, per channel, without building the VAE."""
        if self._statistics is None:
            weights = self.open(self.slot("video_vae")).weights("video_decoder", device=self.device)
            values = weights.load_layer("per_channel_statistics")
            self._statistics = values["mean-of-means"], values["std-of-means"]
        return self._statistics

    def lora(self, lora: Lora) -> LoraWeights:
        """An adapter, read once."""
        if lora not in self._loras:
            self._loras[lora] = LoraWeights.open(lora.path, lora.strength)
        return self._loras[lora]

    def text_encoder(self) -> AVGemmaTextEncoderModel:
        """Tokenizer, language model, projections and connectors: prompts in, contexts out."""
        from ltx_core.text_encoders.gemma.encoder import load_text_encoder

        if self.files.text_encoder is None:
            raise ConfigError("text_encoder is not given, expected a Gemma folder or a packed text-encoder file")
        gemma = self.files.text_encoder
        return self._kept(
            "text_encoder",
            "text_encoder",
            lambda: load_text_encoder(gemma, self.checkpoint, self.precision, self.device),
        )

    # What the networks say ----------------------------------------------------------------------------------------

    def knows(self, prompts: Sequence[str]) -> bool:
        """Whether the contexts of all prompts are cached."""
        return all(self._cached_contexts(prompt) is not None for prompt in prompts)

    def contexts(self, prompts: Sequence[str]) -> list[Contexts]:
        """Text contexts of each prompt; prompts not seen before go through the language model in one batch."""
        new = [prompt for prompt in dict.fromkeys(prompts) if self._cached_contexts(prompt) is None]
        if new:
            output = self.text_encoder()(new, self.dtype)
            for row, prompt in enumerate(new):
                video, audio = (part[row : row + 1] for part in (output.video_context, output.audio_context))
                self.remember(prompt, Contexts(video, audio))
        return [found for prompt in prompts if (found := self._cached_contexts(prompt)) is not None]

    def predict_frames(self, prompt: str, fps: float, min_seconds: float, max_seconds: float) -> int:
        """The valid frame count nearest to the length the duration head gives a prompt."""
        if not self.holds("duration_head"):
            raise ConfigError("num_frames is automatic, but the model has no duration head; give a number of frames")
        contexts = self.contexts([prompt])[0]
        head = cast(DurationHead, self.network("duration_head"))
        return predict_num_frames(head, contexts.video, contexts.audio, fps, (min_seconds, max_seconds))

    def _cached_contexts(self, prompt: str) -> Contexts | None:
        if prompt not in self._contexts and (path := self._cache_file(prompt)) is not None and path.is_file():
            tensors = load_file(path, device=str(self.device))
            self._contexts[prompt] = Contexts(tensors["video"], tensors["audio"])
        return self._contexts.get(prompt)

    def remember(self, prompt: str, contexts: Contexts) -> None:
        """Use these contexts for ``prompt`` from now on; on disk too where a cache folder is given."""
        self._contexts[prompt] = contexts
        if (path := self._cache_file(prompt)) is not None:
            save_tensors(path, {"video": contexts.video.cpu(), "audio": contexts.audio.cpu()})

    def _cache_file(self, prompt: str) -> Path | None:
        """Where a prompt's contexts lie on disk: named by everything they depend on."""
        if self.embedding_cache is None:
            return None
        files = [self.files.text_encoder or "", self.files.checkpoint]
        stats = [(path, Path(path).stat()) for path in files if path]
        stamps = [(path, stat.st_mtime_ns, stat.st_size) for path, stat in stats]
        digest = hashlib.sha256(repr((prompt, self.precision.name, stamps)).encode()).hexdigest()
        return self.embedding_cache / f"{digest[:32]}.safetensors"

    def _kept(self, name: str, kind: str, build: Callable[[], Any]) -> Any:
        if name not in self._networks:
            self._make_room(kind)
            self._networks[name] = build()
        return self._networks[name]

    def _make_room(self, kind: str) -> None:
        if self.policy != "resident" and kind in LARGE:
            self.release(*LARGE)

    def release(self, *names: str) -> None:
        """Drop networks (all when none is named) and give their memory back."""
        for name in names or tuple(self._networks):
            self._networks.pop(name, None)
            if name == "transformer" and self._transformer is not None:
                self._transformer.close()
                self._transformer = None
        gc.collect()
        if self.device.type == "cuda":
            torch.cuda.empty_cache()

    def _fitting(self, precision: Precision, policy: Policy) -> Precision:
        """float32 where its weights fit, else matrices kept in bfloat16 and widened as they are read."""
        sizes, free = self.weight_bytes(precision), free_bytes(self.device)
        together = sum(sizes.values()) if policy == "resident" else max(sizes.values(), default=0)
        if precision.dtype is not torch.float32 or 1.1 * together < free:
            return precision
        logger.info("%.1f GB of float32 weights, %.1f GB free: matrices stay in bfloat16", together / 1e9, free / 1e9)
        return resolve(WIDENED, self.device)

    def _choose_policy(self) -> Policy:
        """Resident when all weights and half as much again fit, streamed when the transformer's file alone does not."""
        sizes, free = self.weight_bytes(), free_bytes(self.device)
        needed = sum(sizes.values())
        chosen: Policy = "sequential"
        if 1.5 * needed < free:
            chosen = "resident"
        elif 1.1 * sizes.get("checkpoint", 0) > free:
            chosen = "streamed"
        logger.info(
            "%.1f GB of weights, %.1f GB free on %s: %s, %s",
            *(needed / 1e9, free / 1e9, self.device, chosen, MEANING[chosen]),
        )
        return chosen

    def weight_bytes(self, precision: Precision | None = None) -> dict[str, int]:
        """Bytes that the weights of each slot take in memory; a quantised transformer at most what it takes on disk."""
        found = precision or self.precision
        itemsize, sizes = (found.stored or found.dtype).itemsize, {}
        for slot, path in self.files.paths():
            files = [file for file in weight_files(Path(path)) if file.is_file()]
            infos = [info for file in files for info in open_file(file, None).tensors.values()]
            sizes[slot] = sum(math.prod(i.shape) * (itemsize if i.dtype.is_floating_point else 1) for i in infos)
            if slot == "checkpoint" and self.quantization is not None:
                sizes[slot] = min(sizes[slot], sum(file.stat().st_size for file in files))
        return sizes


def weight_files(path: Path) -> list[Path]:
    """A file, or the safetensors files of a folder."""
    return sorted(path.glob("*.safetensors")) if path.is_dir() else [path]


class _AdaptedTransformer:
    """The transformer and the adapters now fused into it. Base values of adapted layers stay in host memory."""

    def __init__(self, ledger: ModelLedger, streams: Sequence[str]) -> None:
        held = ledger.checkpoint.config["transformer"]
        joint = len(streams) == 2 or "audio_num_attention_heads" not in held
        self.component = "transformer" if joint else f"{streams[0]}_transformer"
        how = (self.component, ledger.precision, ledger.device)
        self.network = ledger.checkpoint.build(*how, quantization=ledger.quantization)
        if ledger.compile_blocks:
            cast(LTXModel, self.network).compile_blocks()
        self.weights: ComponentWeights = ledger.checkpoint.weights(*how, quantization=ledger.quantization)
        self.loras: tuple[LoraWeights, ...] = ()

    def serves(self, streams: Sequence[str]) -> bool:
        return self.component in ("transformer", f"{streams[0]}_transformer") and (
            len(streams) == 1 or self.component == "transformer"
        )

    def close(self) -> None:
        """Nothing to end: dropping the network frees it."""

    def switch(self, loras: Sequence[LoraWeights]) -> None:
        wanted = tuple(lora for lora in loras if lora.strength != 0)
        if [(lora.path, lora.strength) for lora in wanted] == [(lora.path, lora.strength) for lora in self.loras]:
            return
        wanted = self.weights.fit_loras(wanted)
        self._hold(self.weights.changed_by(wanted))
        self.weights.swap_loras(self.network, self.loras, wanted)
        self.loras = wanted

    def _hold(self, paths: set[str]) -> None:
        """Read the base values of these layers once and keep them, so that later switches read nothing."""
        held = {}
        for path in paths:
            for leaf in self.weights.layers[path]:
                key = f"{path}.{leaf}" if path else leaf
                source = self.weights.sources[key]
                if not isinstance(source, HeldSource):
                    held[key] = HeldSource(source.file, source.key, source.read())
        self.weights = replace(self.weights, sources={**self.weights.sources, **held})


class _StreamedTransformer:
    """The transformer with two blocks on the device at a time; other adapters mean new blocks."""

    def __init__(self, ledger: ModelLedger) -> None:
        self.ledger = ledger
        self.loras: tuple[LoraWeights, ...] | None = None
        self.model: StreamingModel | None = None

    @property
    def network(self) -> nn.Module:
        assert self.model is not None
        return self.model.network

    def serves(self, streams: Sequence[str]) -> bool:
        return True

    def switch(self, loras: Sequence[LoraWeights]) -> None:
        wanted = tuple(lora for lora in loras if lora.strength != 0)
        if wanted == self.loras:
            return
        self.close()
        ledger, hold = self.ledger, self._hold()
        how = (ledger.precision, ledger.device, wanted, ledger.quantization, hold)
        self.model, self.loras = build_streaming(ledger.checkpoint, *how), wanted
        if ledger.compile_blocks:
            cast(LTXModel, self.model.network).compile_blocks()

    def close(self) -> None:
        """Free the slots and end the reader."""
        if self.model is not None:
            self.model.close()
            self.model = None

    def _files(self) -> list[Path]:
        parts = self.ledger.checkpoint.parts_of("transformer")
        return [Path(file.path) for part in parts for file in part.files]

    def _hold(self) -> Literal["host", "file"]:
        """Host memory beside an accelerator with room in it, else the file."""
        size = sum(path.stat().st_size for path in self._files())
        free = free_bytes(torch.device("cpu"))
        if self.ledger.device.type == "cpu" or 1.2 * size > free:
            logger.info("blocks are read from the file in every pass: %.1f GB, %.1f GB free", size / 1e9, free / 1e9)
            return "file"
        return "host"


def default_device() -> str:
    if torch.cuda.is_available():
        return "cuda"
    return "mps" if torch.backends.mps.is_available() else "cpu"
