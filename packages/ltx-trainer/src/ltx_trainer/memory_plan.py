"""Memory that a run will take, computed from file headers before anything is loaded, without torch."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, replace
from math import prod
from pathlib import Path

from ltx_core.loader.checkpoint import Checkpoint
from ltx_core.loader.safetensors_file import SafetensorsFile
from ltx_core.model.transformer.config import TransformerConfig, is_adapter_tensor
from ltx_core.textfiles import parse_json
from ltx_core.types import AudioLatentShape, SpatioTemporalScaleFactors, VideoPixelShape
from ltx_trainer.config import LoraConfig, TrainerConfig
from ltx_trainer.data_config import PRECOMPUTED, DataSetConfig
from ltx_trainer.machine import Machine, this_machine
from ltx_trainer.model_files import ModelFiles, open_trainable, trained_config
from ltx_trainer.processing.buckets import parse_buckets
from ltx_trainer.targets import adapted_linears, chosen_parameters, factorize, linears, sensitive
from ltx_trainer.training_strategies.config import StrategyConfig, keyframe_images

GIB = 2**30
LOOKED_AT = 64  # examples whose size is read to find the longest
TEXT_TOKENS = 1024  # of a padded caption, where no record says otherwise
ADAM_BYTES = {"adamw": 8, "adamw8bit": 2, "muon": 4}  # per trained value
BLOCKS = "transformer_blocks."
ENCODED = {"video": {"latents", "reference_latents"}, "audio": {"audio_latents"}}  # directories that an encoder fills
ENCODING = 52  # values alive at once per pixel of a clip while it is encoded, counted on the encoders of LTX-2 and 2.3
Shapes = Mapping[str, tuple[int, ...]]


@dataclass(frozen=True)
class Kept:
    """Values that autograd keeps of one block, per token and unit of width: counted on a block with both streams."""

    video: float
    audio: float
    text: float  # per token of the caption and unit of both widths


KEPT = {"lora": Kept(27.1, 31.2, 4.1), "full": Kept(43.8, 48.6, 5.0), "audio_adapter": Kept(27.1, 48.6, 5.0)}
FEED_FORWARD = {"net.0.proj": 1.0, "net.2": 4.0}  # more where an adapter sits on these: their inputs


@dataclass(frozen=True)
class MemoryItem:
    """One thing that is held: bytes on the device and in host memory."""

    name: str
    device: int
    host: int = 0
    note: str = ""


@dataclass(frozen=True)
class MemoryPlan:
    """Everything a step holds. Activations are an estimate, the rest is counted."""

    items: tuple[MemoryItem, ...]
    trained: int  # parameters
    tokens: int  # of the longest batch
    shared: int = 0  # bytes of gradients that come as activations go

    @property
    def device(self) -> int:
        return sum(item.device for item in self.items) - self.shared

    @property
    def host(self) -> int:
        return sum(item.host for item in self.items)

    def lines(self) -> list[str]:
        """The plan as a table."""
        note = "gradients come as activations go" if self.shared else ""
        rows = [*self.items, MemoryItem("together", self.device, self.host, note)]
        lines = [f"{'':24} {'device':>12} {'host':>12}"]
        lines += [f"{row.name:24} {amount(row.device):>12} {amount(row.host):>12}  {row.note}".rstrip() for row in rows]
        return [*lines, f"{self.trained:,} trained parameters, {self.tokens:,} tokens in the longest batch"]


def amount(count: int) -> str:
    """Bytes as text."""
    if not count:
        return "-"
    return f"{count / GIB:.2f} GiB" if count >= GIB / 10 else f"{count / 2**20:.2f} MiB"


@dataclass(frozen=True)
class MemoryModel:
    """Facts from the headers of a model and its data; `plan` costs a configuration of them."""

    config: TransformerConfig
    shapes: Shapes  # of the transformer's parameters
    connector_values: int
    tokens: Mapping[str, int]  # of the longest example, by modality, references too
    examples: int  # at least so many
    text_tokens: int  # of a padded caption
    machine: Machine
    encoding: int = 0  # bytes of the encoders and what they compute, where clips are encoded

    @classmethod
    def of(cls, config: TrainerConfig, machine: Machine | None = None) -> MemoryModel:
        """Read the headers that ``config`` names; raises what the run itself would raise for wrong files."""
        model = config.model
        files = ModelFiles.of(model.model_path, model.text_encoder_path, model.video_vae_path, model.audio_vae_path)
        checkpoint = open_trainable(files, model.training_mode)
        shapes = {name: tuple(source.info.shape) for name, source in checkpoint.sources("transformer").items()}
        network = trained_config(checkpoint, config)
        if model.training_mode == "audio_adapter":
            shapes |= adapter_shapes(network)
        tokens, examples = data_size(config, files.scale_factors())
        return cls(
            network,
            shapes,
            connector_values(checkpoint),
            tokens,
            examples,
            text_length(config),
            machine := machine or this_machine(),
            encoding_bytes(config, files, machine),
        )

    @property
    def num_blocks(self) -> int:
        return self.config.num_layers

    def plan(self, config: TrainerConfig) -> MemoryPlan:
        """Every item that a run of ``config`` holds."""
        mode = config.acceleration.mixed_precision_mode
        mixed = (self.machine.mixed if mode == "auto" else mode or "no") != "no"
        itemsize, is_lora = 2 if mixed else 4, config.model.training_mode == "lora"
        trained = trained_parameters(self.shapes, config)
        tokens = {name: count * config.optimization.batch_size for name, count in self.tokens.items()}
        items = [
            self._weights(config, itemsize),
            MemoryItem("connectors", self.connector_values * itemsize),
            MemoryItem("trained weights", trained * 4, note="float32") if is_lora else None,
            MemoryItem("gradients", trained * 4, note="float32"),
            MemoryItem("optimizer", trained * ADAM_BYTES[config.optimization.optimizer_type]),
            MemoryItem("average (EMA)", trained * 4) if config.optimization.ema_decay is not None else None,
            MemoryItem("activations", self._activations(config, tokens, itemsize), note="estimated"),
            MemoryItem("encoders", self.encoding, note="while clips wait") if self.encodes_beside(config) else None,
        ]
        spread = {"connectors": 1, "encoders": 1, "activations": config.acceleration.shared_by("sp")}
        weights = config.acceleration.shared_by("fsdp")
        found = {
            item.name: replace(item, device=item.device // spread.get(item.name, weights))
            for item in items
            if item is not None
        }
        kept = config.optimization.gradient_accumulation_steps > 1  # gradients outlive the backward pass
        shared = 0 if kept else min(found["gradients"].device, found["activations"].device)
        return MemoryPlan(tuple(found.values()), trained, sum(tokens.values()), shared)

    def encodes_beside(self, config: TrainerConfig) -> bool:
        """Whether clips may be encoded while the transformer is there."""
        return self.encoding > 0 and config.data.encode == "lazily"

    def _weights(self, config: TrainerConfig, itemsize: int) -> MemoryItem:
        """The transformer: on the device, and the blocks that wait in host memory."""
        acceleration, full = config.acceleration, config.model.training_mode == "full"
        trained = set(trained_names(self.shapes, config))
        per_block, rest = [0] * self.num_blocks, 0
        for name, shape in self.shapes.items():
            size = prod(shape) * (4 if name in trained else itemsize)
            inside = name.startswith(BLOCKS)
            if inside and acceleration.quantization and is_quantized(name, shape):
                size = prod(shape) + 4 * shape[0]
            if inside:
                per_block[int(name.split(".")[1])] += size
            else:
                rest += size
        swapped = acceleration.blocks_to_swap
        resident = sum(per_block[: len(per_block) - swapped]) + (max(per_block) if swapped else 0)
        waiting = sum(per_block[len(per_block) - swapped :]) if swapped else 0
        note = acceleration.quantization or ("float32" if itemsize == 4 or full else "bfloat16")
        return MemoryItem("transformer", resident + rest, waiting, note)

    def _activations(self, config: TrainerConfig, tokens: Mapping[str, int], itemsize: int) -> int:
        """Tensors kept for the backward pass: all activations, or with recomputation block inputs and one block's."""
        mode, batch = config.model.training_mode, config.optimization.batch_size
        kept, widths = KEPT[mode], {name: stream.width for name, stream in self.config.streams.items()}
        more = 0.0
        if mode == "lora" and config.lora is not None:
            ends = [target for target in config.lora.target_modules if "ff" in target]
            more = sum(extra for end, extra in FEED_FORWARD.items() if any(target.endswith(end) for target in ends))
        present = {name: width for name, width in widths.items() if tokens[name]}
        inputs = sum(tokens[name] * width for name, width in present.items())
        block = sum(tokens[name] * width * (getattr(kept, name) + more) for name, width in present.items())
        block += batch * self.text_tokens * sum(present.values()) * kept.text
        recomputes = config.optimization.enable_gradient_checkpointing or config.acceleration.blocks_to_swap > 0
        values = inputs * self.num_blocks + block if recomputes else block * self.num_blocks
        return round(values * itemsize)


def plan_memory(config: TrainerConfig) -> MemoryPlan:
    """The bytes that a run of ``config`` holds on this machine, item by item. Reads headers only.

    Raises what the run itself would raise for wrong files: `ConfigError` or `CheckpointError`.
    """
    return MemoryModel.of(config).plan(config)


def is_quantized(name: str, shape: tuple[int, ...]) -> bool:
    """Whether quantisation stores a parameter of a block in 8 bits."""
    return name.endswith(".weight") and len(shape) == 2 and not sensitive(name)


def trained_parameters(shapes: Shapes, config: TrainerConfig) -> int:
    """Number of trained values."""
    if config.model.training_mode == "lora" and config.lora is not None:
        lora = config.lora
        chosen = adapted_linears(
            linears(shapes), lora.target_modules, lora.as_groups(config.optimization.learning_rate)
        )
        return sum(
            adapter_values(lora, (group and group.rank) or lora.rank, shapes[f"{name}.weight"])
            for name, group in chosen.items()
        )
    return sum(prod(shapes[name]) for name in trained_names(shapes, config))


def trained_names(shapes: Shapes, config: TrainerConfig) -> list[str]:
    """The transformer's parameters that are trained, beside which a LoRA has its own."""
    mode = config.model.training_mode
    if mode == "audio_adapter":
        return list(filter(is_adapter_tensor, shapes))
    return chosen_parameters(shapes, config.model.trainable_modules) if mode == "full" else []


def adapter_shapes(config: TransformerConfig) -> dict[str, tuple[int, ...]]:
    """The shapes of a new audio stream; needs torch."""
    from ltx_core.model.common.meter import without_data
    from ltx_core.model.transformer.model import LTXModel

    with without_data():
        state = LTXModel(config).state_dict()
    return {name: tuple(tensor.shape) for name, tensor in state.items() if is_adapter_tensor(name)}


def adapter_values(lora: LoraConfig, rank: int, shape: tuple[int, ...]) -> int:
    """Values that are learned for one linear ``[out, in]``."""
    outputs, inputs = shape
    if lora.type == "lokr":
        (o1, o2), (i1, i2) = factorize(outputs, lora.factor), factorize(inputs, lora.factor)
        return o1 * i1 + (o2 * i2 if rank >= min(o2, i2) else rank * (o2 + i2))
    return rank * (outputs + inputs) + (outputs if lora.type == "dora" else 0)


def connector_values(checkpoint: Checkpoint) -> int:
    """Values of the text connectors without their projection."""
    if "embeddings" not in checkpoint.components:
        return 0
    sources = checkpoint.sources("embeddings").items()
    return sum(prod(source.info.shape) for name, source in sources if "_connector." in name)


def encoding_bytes(config: TrainerConfig, files: ModelFiles, machine: Machine) -> int:
    """Bytes that the encoders of clips hold beside a run, and compute with for the largest clip at most."""
    names = [
        f"{name}_encoder" for name in ("video", "audio") if ENCODED[name] & set(config.training_strategy.data_sources())
    ]
    if not config.data.unprepared or not names:
        return 0
    itemsize = {"video_encoder": 4 if machine.mixed == "no" else 2, "audio_encoder": 4}
    values = {
        name: sum(prod(source.info.shape) for source in files.checkpoint_of(name).sources(name).values())
        for name in names
    }
    buckets = [
        bucket for one in config.data.unprepared for bucket in parse_buckets(one.resolution, files.scale_factors())
    ]
    pixels = max(prod(bucket) for bucket in buckets) if "video_encoder" in names else 0
    return sum(values[name] * itemsize[name] for name in names) + pixels * ENCODING * itemsize["video_encoder"]


def data_size(config: TrainerConfig, factors: SpatioTemporalScaleFactors) -> tuple[dict[str, int], int]:
    """Tokens of the longest example by modality, and how many examples there are at least."""
    longest: dict[str, int] = {"video": 0, "audio": 0}
    sources, examples = pictures_read(config.training_strategy), 0
    unprepared = {one.root: one for one in config.data.unprepared}
    for root in config.data.roots:
        one = unprepared.get(root)
        if one is not None:
            count, found = one.expected_count(), [expected_tokens(one, sources, factors)]
        else:
            count, found = record_tokens(root, sources)
        examples += count
        longest = {name: max(longest[name], *(counts[name] for counts in found), 0) for name in longest}
    return longest, examples


def pictures_read(strategy: StrategyConfig) -> dict[str, int | None]:
    """Directories that a strategy reads; of each how many pictures it takes from a record, None: the whole latent."""
    pictures = Counter(one.latents_dir for one in keyframe_images(strategy))
    return {name: pictures.get(name) for name in strategy.data_sources()}


def expected_tokens(
    one: DataSetConfig, sources: Mapping[str, int | None], factors: SpatioTemporalScaleFactors
) -> dict[str, int]:
    """Tokens of the longest clip that a set will give, from its resolution."""
    counts = {"video": 0, "audio": 0}
    for bucket in parse_buckets(one.resolution, factors):
        picture = bucket.height // factors.height * (bucket.width // factors.width)
        video = factors.latent_frames(bucket.frames) * picture
        shape = VideoPixelShape(1, bucket.frames, bucket.height, bucket.width, one.fps or 24.0)
        audio = AudioLatentShape.from_video_pixel_shape(shape).frames
        own = {"latents": ("video", video), "audio_latents": ("audio", audio)}
        own["reference_latents"] = ("video", video // one.reference_downscale_factor**2)
        own["reference_audio_latents"] = ("audio", audio)
        found = {"video": 0, "audio": 0}
        for name, pictures in sources.items():
            modality, count = own.get(name, ("video", 0))
            found[modality] += count if pictures is None else pictures * picture
        counts = {name: max(counts[name], found[name]) for name in counts}
    return counts


def text_length(config: TrainerConfig) -> int:
    """Tokens that captions are padded to, from a record where there is one."""
    for root in config.data.roots:
        for folder in (root / PRECOMPUTED / "conditions", root / "conditions"):
            path = next(folder.rglob("[!.]*.safetensors"), None)
            if path is not None:
                values = SafetensorsFile(path, verify=False).metadata.get("values", "{}")
                return int(parse_json(values, str(path)).get("padded_length", TEXT_TOKENS))
    return TEXT_TOKENS


def record_tokens(root: Path, sources: Mapping[str, int | None]) -> tuple[int, list[dict[str, int]]]:
    """Number of records of a prepared set, and the tokens of some of its examples."""
    root = root / PRECOMPUTED if (root / PRECOMPUTED).is_dir() else root
    latents = [name for name in sources if "latent" in name]
    files = sorted(path for path in (root / latents[0]).rglob("*.*") if path.name[0] != ".")
    found = []
    for path in files[:: max(len(files) // LOOKED_AT, 1)]:
        counts = {"video": 0, "audio": 0}
        for name in latents:
            shape, pictures = latent_shape(root / name / path.relative_to(root / latents[0])), sources[name]
            if len(shape) == 3:
                counts["audio"] += shape[1]
            else:
                counts["video"] += prod(shape[-3:]) if pictures is None else pictures * prod(shape[-2:])
        found.append(counts)
    return len(files), found


def latent_shape(path: Path) -> tuple[int, ...]:
    """The shape of a record's latent, 0 tokens where there is no such record."""
    if path.suffix == ".safetensors" and path.is_file():
        tensors = SafetensorsFile(path, verify=False).tensors
        return tuple(tensors["latents"].shape) if "latents" in tensors else (0, 0, 0)
    if not path.is_file():
        return 0, 0, 0
    from ltx_trainer.precomputed import read_record  # pickled records need torch

    record = read_record(path)
    return tuple(getattr(record.get("latents"), "shape", (0, 0, 0)))
