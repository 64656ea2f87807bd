"""One session owns the weights: what the files say, which networks are resident, which texts were encoded.

Policies: ``resident`` keeps what was loaded, so that a second generation reads no byte of weights; ``sequential`` keeps
one large network at a time, the next one's loading frees the last; ``streamed`` also keeps the transformer's blocks in
host memory, or in the file where that is too small, and passes two at a time to the device; the language model's layers
too, from their file, which ``sequential`` also does where that model alone does not fit. ``auto`` chooses from free
memory and file sizes, and says so in one line.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from ltx_core.errors import ConfigError
from ltx_core.model.transformer.config import STREAMS
from ltx_core.precision import DtypeName, Precision
from ltx_pipelines.planning.plan import BackendName, Lora, ModelFiles
from ltx_pipelines.request import Policy
from ltx_pipelines.running.model_facts import ModelFacts
from ltx_pipelines.running.placement import (
    choose_policy,
    choose_precision,
    choose_spread,
    default_backend,
    default_device,
    weight_bytes,
)

if TYPE_CHECKING:
    import torch
    from torch import Tensor

    from ltx_core.networks import (
        AdaptedTransformer,
        Backend,
        BuildSettings,
        LatentUpsampler,
        TextEncoder,
        Transformer,
    )
    from ltx_core.parallel.mesh import Devices
    from ltx_pipelines.running.texts import Texts

IN_FLOAT32 = " in float32"
# Networks that never are in memory together unless all stay; the others are small.
LARGE = (
    *("text_encoder", "transformer", "video_encoder", "video_decoder", "video_decoder" + IN_FLOAT32),
    *("spatial_upsampler", "temporal_upsampler"),
)


class ModelLedger(ModelFacts):
    """The networks of one model, shared by every generation of a session.

    ``files`` are those of the model. ``dtype`` is what networks compute in ("auto": what ``device`` computes fast),
    ``device`` where (None: the best there is), ``policy`` which weights stay between stages ("resident", "sequential",
    "streamed", or "auto" by free memory). ``backend`` is what builds and runs them ("torch" or "mlx"; None is MLX on
    Apple silicon where it is installed), ``quantization`` that of the transformer, ``embedding_cache`` a folder that
    keeps encoded prompts. ``compile_blocks`` lets torch compile the transformer's blocks. Device and precision are
    chosen, and torch imported, when they are first asked for.
    """

    def __init__(
        self,
        files: ModelFiles,
        dtype: torch.dtype | DtypeName = "auto",
        device: torch.device | str | None = None,
        policy: Policy = "auto",
        quantization: str | None = None,
        embedding_cache: Path | None = None,
        compile_blocks: bool = False,
        backend: BackendName | None = None,
    ) -> None:
        super().__init__(files)
        self._asked: dict[str, Any] = {"dtype": dtype, "device": device, "policy": policy, "quantization": quantization}
        self._asked |= {"embedding_cache": embedding_cache, "compile_blocks": compile_blocks, "backend": backend}
        self.backend: BackendName = backend or default_backend()
        self.quantization = quantization
        self._dtype, self._device, self._policy = dtype, device, policy
        self.compile_blocks, self._embedding_cache = compile_blocks, embedding_cache
        self.devices: Devices | None = None  # that share each clip
        self._networks: dict[str, Any] = {}
        self._checked: set[str] = set()  # components whose headers fit
        self._transformer: AdaptedTransformer | None = None
        self._coming: Future[AdaptedTransformer] | None = None

    @cached_property
    def device(self) -> torch.device:
        """The device that networks compute on."""
        import torch

        from ltx_core.model.common.memory import own_pages

        device = torch.device(self._device or default_device(self.backend))
        if device.type == "cpu":
            own_pages()
        return device

    @cached_property
    def precision(self) -> Precision:
        """The type that networks compute in, and the one their matrices are kept in."""
        precision = self._builder.precision(self._dtype, self.device)
        if self._dtype != "auto" or self.backend != "torch":
            return precision
        return choose_precision(precision, self.files, self._policy, self.quantization, self.free_bytes())

    @cached_property
    def policy(self) -> Policy:
        """The policy that decides which networks stay in memory."""
        if self._policy != "auto":
            return self._policy
        return choose_policy(self.held_bytes(), self.free_bytes(), self.device)

    @property
    def spread_over(self) -> int:
        """Devices that hold the weights of large networks together: as a mesh says, else as few as they fit on."""
        if (devices := self.devices) is None:
            return 1
        if devices.spread_over is None and self._policy == "auto" and self.device.type != "cpu":
            devices.spread_over = devices.agree(choose_spread(self.weight_bytes(), self.free_bytes(), devices.size))
        return devices.spread_over or 1

    def gathered_bytes(self) -> int:
        """Bytes of the transformer that this device sends to others that hold it with it, in a pass through it."""
        return round(self.transformer_bytes() * self.share_of_blocks * (self.spread_over - 1) / self.spread_over)

    def held_bytes(self) -> dict[str, int]:
        """Bytes of each slot's weights that this device holds."""
        over = {"checkpoint": self.spread_over, "text_encoder": self.spread_over}
        return {slot: size // over.get(slot, 1) for slot, size in self.weight_bytes().items()}

    @cached_property
    def streams_texts(self) -> bool:
        """Whether the language model's layers are streamed."""
        language_model = self.held_bytes().get("text_encoder", 0)
        return self.policy == "streamed" or (self.policy == "sequential" and 1.1 * language_model > self.free_bytes())

    @cached_property
    def texts(self) -> Texts:
        """The prompts that were encoded."""
        from ltx_pipelines.running.texts import Texts

        files = [path for path in (self.files.text_encoder, self.files.checkpoint) if path]
        return Texts(self.text_encoder, self.precision, self.device, self._embedding_cache, files)

    def knows(self, prompts: Sequence[str]) -> bool:
        """Whether the contexts of all prompts are kept."""
        may_know = "texts" in vars(self) or self._embedding_cache is not None
        return may_know and self.texts.know(prompts)

    @cached_property
    def _builder(self) -> Backend:
        from ltx_core.networks import find_backend

        return find_backend(self.backend)

    @cached_property
    def _unplaced(self) -> BuildSettings:
        """The settings before it is known which networks stay."""
        from ltx_core.networks import BuildSettings

        return BuildSettings(self.precision, self.device, self.quantization, self.compile_blocks)

    @cached_property
    def _settings(self) -> BuildSettings:
        shards = self.devices.shards if self.devices is not None and self.spread_over > 1 else None
        return replace(self._unplaced, streamed=self.policy == "streamed", shards=shards)

    def move(self, **changes: Any) -> ModelLedger:
        """The same model with other settings, this one emptied."""
        self.release()
        ledger = ModelLedger(self.files, **{**self._asked, **changes})
        ledger.lora_precision = self.lora_precision
        return ledger

    @property
    def dtype(self) -> torch.dtype:
        """The type that networks compute in."""
        return self.precision.dtype

    def weight_bytes(self) -> dict[str, int]:
        """Bytes that the weights of each slot of ``files`` take in memory."""
        sizes = weight_bytes(self.files, self.precision, self.quantization)
        if self.backend == "mlx" and self.quantization is not None:  # of a file that may hold plain weights
            plain = self._builder.transformer_bytes(
                self.checkpoint, STREAMS, replace(self._unplaced, quantization=None)
            )
            whole = weight_bytes(self.files, self.precision)["checkpoint"]
            sizes["checkpoint"] = whole - plain + self.transformer_bytes()
        return sizes

    def transformer_bytes(self, streams: Sequence[str] = STREAMS) -> int:
        """Bytes that all weights of the transformer take in memory, quantised as asked."""
        return self._builder.transformer_bytes(self.checkpoint, streams, self._unplaced)

    def free_bytes(self) -> int:
        """Bytes that networks may still take."""
        return self._builder.free_bytes(self.device)

    def check(self, *components: str) -> None:
        """Raise ``CheckpointError`` where the files do not fill these components; reads headers, each once."""
        for component in sorted(set(components) - self._checked):
            if component == "text_encoder":
                self._builder.check_text_encoder(self.text_encoder_path(), self.source("embeddings"))
            else:
                self._builder.check(component, self.source(component))
            self._checked.add(component)

    def network(self, component: str, in_float32: bool = False) -> Any:
        """A component other than the transformer, behind its protocol in `ltx_core.networks`; loaded on first use."""
        checkpoint, settings, name = self.source(component), self._settings, component
        if in_float32 and self.precision.name != "float32":
            settings, name = replace(settings, precision=Precision("float32")), component + IN_FLOAT32
        return self._keep(name, lambda: self._builder.network(component, checkpoint, settings))

    def latent_upsampler(self, kind: Literal["spatial", "temporal"] = "spatial") -> LatentUpsampler:
        """The network that doubles the size or the frame rate. Raises ``ConfigError`` where no file of it is given."""
        slot = f"{kind}_upsampler"
        if not (path := getattr(self.files, slot)):
            raise ConfigError(f"{slot} is not given, expected the file of a latent upsampler")
        build = self._builder.network
        upsampler: LatentUpsampler = self._keep(
            slot, lambda: build("latent_upsampler", self.open(path), self._settings)
        )
        return upsampler

    def text_encoder(self) -> TextEncoder:
        """Tokenizer, language model, projections and connectors: prompts in, contexts out."""
        path, checkpoint = self.text_encoder_path(), self.source("embeddings")
        settings = replace(self._settings, streamed=self.streams_texts)
        encoder: TextEncoder = self._keep(
            "text_encoder", lambda: self._builder.text_encoder(path, checkpoint, settings)
        )
        return encoder

    def transformer(self, loras: Sequence[Lora] = (), streams: Sequence[str] = ("video", "audio")) -> Transformer:
        """The transformer with exactly these adapters; switching sets touches only the layers they change.

        For one stream alone only its own weights are read.
        """
        coming, self._coming = self._coming, None
        if self._transformer is None or not self._transformer.serves(streams):
            self._make_room("transformer")
            loaded = coming.result() if coming is not None else None
            if loaded is None or not loaded.serves(streams):
                loaded = self._builder.transformer(self.checkpoint, streams, self._settings)
            self._transformer = loaded
        self._transformer.switch([self.lora(lora) for lora in loras])
        return self._transformer.network

    def expect_transformer(self, streams: Sequence[str] = ("video", "audio")) -> None:
        """Begin to load the transformer beside other work, where networks stay; ``transformer`` waits for it."""
        if self.policy == "resident" and self._transformer is None and self._coming is None:
            checkpoint = self.checkpoint  # headers are read before the thread shares them
            loader = ThreadPoolExecutor(max_workers=1, thread_name_prefix="transformer-loader")
            self._coming = loader.submit(self._builder.transformer, checkpoint, streams, self._settings)
            loader.shutdown(wait=False)

    def latent_statistics(self) -> tuple[Tensor, Tensor]:
        """Mean and deviation of the video VAE's latents, per channel, without building the VAE."""
        return self._keep("latent_statistics", self._read_statistics)

    def release(self, *names: str) -> None:
        """Drop networks (all when none is named) and give their memory back."""
        for name in names or (*self._networks, "transformer"):
            self._networks.pop(name, None)
            if name == "transformer" and self._transformer is not None:
                self._transformer.close()
                self._transformer = None
        self._builder.release_memory(self.device)

    def resident(self) -> tuple[str, ...]:
        """The networks in memory."""
        return (*self._networks, *(["transformer"] if self._transformer is not None else []))

    def _keep(self, name: str, build: Callable[[], Any]) -> Any:
        if name not in self._networks:
            self._make_room(name)
            self._networks[name] = build()
        return self._networks[name]

    def _make_room(self, name: str) -> None:
        """Before a large network is loaded: all others go unless they may stay, an unfit transformer in any case."""
        if self.policy != "resident" and name in LARGE:
            self.release(*LARGE)
        elif name == "transformer":
            self.release(name)

    def _read_statistics(self) -> tuple[Tensor, Tensor]:
        weights = self.source("video_decoder").weights("video_decoder", device=self.device)
        values = weights.load_layer("per_channel_statistics")
        return values["mean-of-means"], values["std-of-means"]
