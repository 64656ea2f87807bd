"""The configuration of a training run: a YAML file as one validated, frozen value.

Unknown keys are errors at every level. Numbers may be written as text (YAML reads ``1e-4`` as a string).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import product
from typing import Annotated, Any, Literal

from pydantic import (
    AfterValidator,
    BeforeValidator,
    Field,
    NonNegativeInt,
    PositiveFloat,
    PositiveInt,
    field_validator,
    model_validator,
)

from ltx_core.errors import nearest_hint
from ltx_core.textfiles import path_of
from ltx_trainer.data_config import PRECOMPUTED, DataConfig
from ltx_trainer.schedules import schedule_parameters
from ltx_trainer.targets import LoraGroup
from ltx_trainer.training_strategies.config import (
    DistillationConfig,
    FlexibleConfig,
    Probability,
    StrategyConfig,
    Strict,
    TextToVideoConfig,
    VideoToVideoConfig,
    keyframe_images,
)
from ltx_trainer.validation_config import SampleReference, ValidationConfig

#: Further arguments that optimizers and samplers of noise levels take; schedules say theirs themselves.
OPTIMIZER_PARAMETERS = {
    "adamw": (
        "betas",
        "eps",
        "weight_decay",
        "amsgrad",
        "maximize",
        "foreach",
        "capturable",
        "differentiable",
        "fused",
    ),
    "adamw8bit": ("betas", "eps", "weight_decay", "min_8bit_size", "percentile_clipping", "block_wise", "is_paged"),
    "muon": ("momentum", "betas", "other_rate", "eps"),
}
SAMPLER_PARAMETERS = {
    "uniform": ("min_value", "max_value"),
    "shifted_logit_normal": ("std", "eps", "uniform_prob"),
}


def _numbers(params: dict[str, Any]) -> dict[str, Any]:
    """Free-form parameters whose values are numbers, perhaps written as text."""
    return {name: _number(value) for name, value in params.items()}


def _number(value: Any) -> Any:
    try:
        return float(value) if isinstance(value, str) else value
    except ValueError:
        return value


def _existing_file(path: str | None) -> str | None:
    if path is not None and not path_of(path).is_file():
        raise ValueError(f"{path} is no file")
    return path


def _check_parameters(kind: str, params: Mapping[str, Any], known: Sequence[str]) -> None:
    """Refuse parameters that ``kind`` does not take."""
    for name in params:
        if name not in known:
            expected = ", ".join(known) if known else "none"
            raise ValueError(f"{kind} takes no {name!r}, expected {expected}{nearest_hint(name, known)}")


def _word(word: str) -> BeforeValidator:
    """A validator that gives back the word that was written, where YAML has read it as false."""
    return BeforeValidator(lambda value: word if value is False else value)


Params = Annotated[dict[str, Any], AfterValidator(_numbers)]
ExistingFile = Annotated[str | None, AfterValidator(_existing_file)]


class ModelConfig(Strict):
    """The model to train, and the files of its weights."""

    model_path: str
    """A unified checkpoint, or the transformer of a split pack."""
    text_encoder_path: str | None = None
    """A Gemma directory, or the packed text encoder of a split pack."""
    video_vae_path: ExistingFile = None
    """Required with a split pack; otherwise the model file's own."""
    audio_vae_path: ExistingFile = None
    """Required with a split pack once sound is encoded or decoded."""
    training_mode: Literal["lora", "full", "audio_adapter"] = "lora"
    """An adapter, the transformer's own weights, or what gives an LTX-Video model sound."""
    trainable_modules: tuple[str, ...] | None = None
    """In full mode, train only modules with these names (or name endings); null for all."""
    load_checkpoint: str | None = None
    """Weights to start from: a .safetensors file, or a directory whose newest step is taken."""

    @field_validator("model_path")
    @classmethod
    def _local(cls, path: str) -> str:
        if path.startswith(("http://", "https://")):
            raise ValueError(f"{path} is a URL, expected the path of a downloaded checkpoint")
        if not path_of(path).exists():
            raise ValueError(f"{path} does not exist")
        return path


class LoraGroupConfig(Strict):
    """Some of the adapter's modules, with a rank, strength or learning rate of their own."""

    target_modules: tuple[str, ...] | None = None
    """Which, by name as in lora.target_modules; null: those of the whole adapter."""
    modality: Literal["video", "audio"] | None = None
    """Only those that write to the video's or the audio's stream."""
    rank: int | None = Field(default=None, ge=2)
    alpha: int | None = Field(default=None, ge=1)
    learning_rate: PositiveFloat | None = None


class LoraConfig(Strict):
    """The adapter."""

    type: Literal["lora", "rslora", "dora", "lokr"] = "lora"
    """lora; rslora keeps its strength at large ranks; dora learns lengths apart; lokr is a small Kronecker product."""
    rank: int = Field(default=64, ge=2)
    alpha: int = Field(default=64, ge=1)
    """The adapter's strength is alpha / rank (rslora: alpha / sqrt(rank)); it is folded into the saved file."""
    dropout: float = Field(default=0.0, ge=0.0, le=1.0)
    target_modules: tuple[str, ...] = ("to_k", "to_q", "to_v", "to_out.0")
    """Modules with these names, or whose names end with "." and one of these."""
    factor: int = Field(default=8, ge=2)
    """Of lokr: rows and columns of its first factor at most; larger learns more."""
    groups: tuple[LoraGroupConfig, ...] = ()
    """Modules that differ from the rest, or come in addition; the first group that means a module decides."""

    def as_groups(self, learning_rate: float) -> tuple[LoraGroup, ...]:
        """The groups, with rates next to the run's ``learning_rate``."""
        return tuple(
            LoraGroup(
                group.target_modules,
                group.modality,
                group.rank,
                group.alpha,
                1.0 if group.learning_rate is None else group.learning_rate / learning_rate,
            )
            for group in self.groups
        )


class AudioAdapterConfig(Strict):
    """The audio stream of an LTX-Video model."""

    head_dim: int = Field(default=32, ge=2, multiple_of=2)
    """Channels of a head of sound; there are as many heads as the video has."""
    blocks: tuple[NonNegativeInt, ...] | None = None
    """Blocks with sound; null: all."""

    @property
    def section(self) -> dict[str, Any]:
        """The section of the adapter's file."""
        return {"attention_head_dim": self.head_dim, "blocks": self.blocks}


class OptimizationConfig(Strict):
    """The optimizer and its schedule. Steps are optimizer steps."""

    learning_rate: PositiveFloat = 5e-4
    steps: PositiveInt = 3000
    """In total, over all resumed runs."""
    batch_size: PositiveInt = 2
    """Per process. auto: as many as fit, up to 4."""
    gradient_accumulation_steps: PositiveInt = 1
    max_grad_norm: float = 1.0
    """0 or less disables clipping."""
    optimizer_type: Literal["adamw", "adamw8bit", "muon"] = "adamw"
    """muon is for networks that learn from nothing; its learning rates are about five times AdamW's."""
    optimizer_params: Params = Field(default_factory=dict)
    """Further arguments of the optimizer, such as weight_decay."""
    scheduler_type: Literal["constant", "linear", "cosine", "cosine_with_restarts", "polynomial", "step"] = "linear"
    scheduler_params: Params = Field(default_factory=dict)
    """Parameters of the schedule, by name."""
    warmup_steps: NonNegativeInt = 0
    """Steps over which the learning rate rises from 0."""
    ema_decay: float | None = Field(default=None, ge=0.0, lt=1.0)
    """Keep an exponential average of the weights, validate it and save it; null for none."""
    caption_dropout: Probability = 0.0
    """Probability that an example is trained on the empty caption."""
    enable_gradient_checkpointing: bool = False
    """Recompute each block's activations instead of keeping them. auto: where they would not fit."""

    @model_validator(mode="after")
    def _known_parameters(self) -> OptimizationConfig:
        _check_parameters(self.optimizer_type, self.optimizer_params, OPTIMIZER_PARAMETERS[self.optimizer_type])
        _check_parameters(self.scheduler_type, self.scheduler_params, schedule_parameters(self.scheduler_type))
        return self


class AccelerationConfig(Strict):
    """Speed and memory."""

    mixed_precision_mode: Annotated[Literal["auto", "no", "fp16", "bf16"] | None, _word("no")] = "bf16"
    """auto: what the device computes fast."""
    quantization: Literal["int8-quanto", "int4-quanto", "int2-quanto", "fp8-quanto", "fp8uz-quanto"] | None = None
    """How the frozen base is stored; LoRA only. auto: int8-quanto where the base would not fit."""
    load_text_encoder_in_8bit: bool = False
    offload_optimizer_during_validation: bool = False
    blocks_to_swap: NonNegativeInt = 0
    """Transformer blocks kept on the CPU and moved in when they are needed. auto: as many as must be."""
    mesh: str | None = Field(default=None, pattern=r"^(fsdp|sp)=[1-9]\d*(,(fsdp|sp)=[1-9]\d*)?$")
    """fsdp=4,sp=2: weights spread over 4 processes of a run (with more, copies: HSDP), tokens over 2; null: neither."""

    def shared_by(self, name: Literal["fsdp", "sp"]) -> int:
        """Number of processes that share weights (``fsdp``) or tokens (``sp``)."""
        parts = dict(part.split("=") for part in self.mesh.split(",")) if self.mesh else {}
        return int(parts.get(name, 1))


class CheckpointsConfig(Strict):
    """Contents and times of checkpoints."""

    interval: PositiveInt | None = None
    """Optimizer steps between saves; null saves at the end only."""
    keep_last_n: int = Field(default=1, ge=-1)
    """-1 and 0 keep all."""
    precision: Literal["bfloat16", "float32"] = "bfloat16"
    """Of saved weights."""
    no_resume: bool = False
    """Start at step 0 even where a training state is found."""
    save_training_state: Annotated[Literal["full", "minimal", "off"], _word("off")] = "minimal"
    """full: resume exactly; minimal: without the optimizer's moments; off: weights only."""


class HubConfig(Strict):
    """Upload of the result."""

    push_to_hub: bool = False
    hub_model_id: str | None = None

    @model_validator(mode="after")
    def _check_name(self) -> HubConfig:
        if self.push_to_hub and not self.hub_model_id:
            raise ValueError("push_to_hub is true, expected a hub_model_id")
        return self


class WandbConfig(Strict):
    """Logging to Weights & Biases, beside the CSV and tensorboard files that are always written."""

    enabled: bool = False
    project: str = "ltxv-trainer"
    entity: str | None = None
    tags: tuple[str, ...] = ()
    log_validation_videos: bool = True


class FlowMatchingConfig(Strict):
    """Drawing of noise levels."""

    timestep_sampling_mode: Literal["uniform", "shifted_logit_normal"] = "shifted_logit_normal"
    timestep_sampling_params: Params = Field(default_factory=dict)
    """uniform: min_value, max_value; shifted_logit_normal: std, eps, uniform_prob."""

    @model_validator(mode="after")
    def _known_parameters(self) -> FlowMatchingConfig:
        mode = self.timestep_sampling_mode
        _check_parameters(mode, self.timestep_sampling_params, SAMPLER_PARAMETERS[mode])
        return self


class TrainerConfig(Strict):
    """A whole training run.

    ``model`` and ``data`` are required: the files of the weights, and the data sets to learn from. ``lora`` is the
    adapter, required when the training mode is lora; ``audio_adapter`` the sound added to an LTX-Video model.
    ``training_strategy`` says what is given and what is learned (text_to_video by default), ``flow_matching`` how noise
    levels are drawn. ``optimization`` holds optimizer, schedule and steps, ``acceleration`` precision and memory,
    ``validation`` the samples made on the way, ``checkpoints`` when and how weights are saved, ``hub`` the upload and
    ``wandb`` the logging to Weights & Biases; all have defaults. ``seed`` (42) decides what
    the run draws; ``output_dir`` (``outputs``) is the folder of its results, made absolute.

    Raises pydantic's ``ValidationError`` for unknown keys, values out of range and sections that do not agree;
    `read_config` and `parse_config` turn it into `InvalidConfig`.
    """

    model: ModelConfig
    lora: LoraConfig | None = None
    """Required when training_mode is lora."""
    audio_adapter: AudioAdapterConfig = Field(default_factory=AudioAdapterConfig)
    """Of training_mode audio_adapter."""
    training_strategy: StrategyConfig = Field(default_factory=TextToVideoConfig)
    optimization: OptimizationConfig = Field(default_factory=OptimizationConfig)
    acceleration: AccelerationConfig = Field(default_factory=AccelerationConfig)
    data: DataConfig
    validation: ValidationConfig = Field(default_factory=ValidationConfig)
    checkpoints: CheckpointsConfig = Field(default_factory=CheckpointsConfig)
    hub: HubConfig = Field(default_factory=HubConfig)
    flow_matching: FlowMatchingConfig = Field(default_factory=FlowMatchingConfig)
    wandb: WandbConfig = Field(default_factory=WandbConfig)
    seed: int = 42
    output_dir: str = "outputs"

    @field_validator("output_dir")
    @classmethod
    def _make_absolute(cls, path: str) -> str:
        return str(path_of(path).absolute())

    @model_validator(mode="after")
    def _agrees(self) -> TrainerConfig:
        if self.model.training_mode == "lora" and self.lora is None:
            raise ValueError("training_mode is lora, expected a lora section")
        mode = self.model.training_mode
        if mode != "lora" and self.acceleration.quantization:
            raise ValueError(
                f"quantization is {self.acceleration.quantization}, which is for LoRA; training_mode is {mode}"
            )
        if mode != "full" and self.model.trainable_modules is not None:
            raise ValueError("trainable_modules is for training_mode full; a LoRA has lora.target_modules")
        if mode != "lora" and isinstance(self.training_strategy, DistillationConfig):
            raise ValueError(
                f"distillation trains a LoRA: the model without it is the teacher; training_mode is {mode}"
            )
        if mode == "audio_adapter":
            self._check_audio_adapter()
        if isinstance(self.training_strategy, VideoToVideoConfig):
            self._check_video_to_video()
        mesh, shared_by = self.acceleration.mesh, self.acceleration.shared_by
        if shared_by("sp") > 1 and self.lora is not None and self.lora.dropout:
            raise ValueError(f"lora.dropout is {self.lora.dropout}, which processes that share tokens cannot have")
        if shared_by("fsdp") > 1 and self.acceleration.blocks_to_swap:
            raise ValueError(f"mesh is {mesh}: weights that are spread over processes are not swapped too")
        self._check_keyframes()
        self._check_directories()
        return self

    def _check_audio_adapter(self) -> None:
        strategy = self.training_strategy
        if not isinstance(strategy, FlexibleConfig) or strategy.audio is None or not strategy.audio.is_generated:
            raise ValueError(
                "audio_adapter learns sound, expected a flexible strategy with audio: {is_generated: true}"
            )
        if self.validation.interval is not None and self.validation.samples:
            raise ValueError("validation.samples are for LTX-2 models; audio_adapter measures data.held_out_share")

    def _check_video_to_video(self) -> None:
        if self.model.training_mode != "lora":
            raise ValueError(f"video_to_video trains a LoRA, training_mode is {self.model.training_mode}")
        given = any(isinstance(c, SampleReference) for sample in self.validation.samples for c in sample.conditions)
        if self.validation.interval is not None and not given:
            raise ValueError("video_to_video is validated with a reference, expected one in validation.samples")

    def _check_keyframes(self) -> None:
        for one, condition in product(self.data.unprepared, keyframe_images(self.training_strategy)):
            known = one.keyframes if condition.frame != "any" else one.keyframes and ("any",)
            if condition.frame not in known:
                raise ValueError(
                    f"keyframe_image gives frame {condition.frame}, of {one.path} the keyframes "
                    f"{list(one.keyframes)} are encoded: name it in data.sets"
                )

    def _check_directories(self) -> None:
        made = {one.root for one in self.data.unprepared}
        for root in self.data.roots:
            if root in made:
                continue
            for name in self.training_strategy.data_sources():
                if (root / name).is_dir():
                    continue
                inner = root / PRECOMPUTED
                if (inner / name).is_dir():
                    raise ValueError(f"{root} holds no {name}/ but {inner} does: name that directory")
                raise ValueError(f"{root} holds no {name}/, which training_strategy reads")
