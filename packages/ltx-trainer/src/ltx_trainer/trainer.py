"""`LtxvTrainer`: a configuration becomes a run of the training loop over the transformer."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import closing, suppress
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from ltx_core.errors import ConfigError
from ltx_core.fingerprint import fingerprint
from ltx_core.model.common.memory import peak_bytes
from ltx_core.model.transformer.audio_adapter import add_audio
from ltx_core.model.transformer.model import LTXModel
from ltx_core.parallel.mesh import TrainingMesh
from ltx_core.precision import Precision, resolve_mixed
from ltx_core.textfiles import path_of
from ltx_trainer.comparison import Clip, agreement
from ltx_trainer.config import TrainerConfig
from ltx_trainer.config_file import write_config
from ltx_trainer.datasets import BatchOrder, UnreadableClipError, collate, read_batches
from ltx_trainer.distillation import DistillObjective, DistillSettings
from ltx_trainer.held_out import held_out_losses
from ltx_trainer.hub import push_to_hub
from ltx_trainer.loop import CHECKPOINT_FOLDER, LoopSettings, StepReport, launched_device, train
from ltx_trainer.lora import LoraSettings, add_lora, load_lora, rate_factors, reference_metadata
from ltx_trainer.memory import BlockSwap, quantize_frozen
from ltx_trainer.model_files import ModelFiles, has_causal_positions, open_trainable, trained_config
from ltx_trainer.models import (
    DTYPES,
    AudioAdapterWriter,
    LoraWriter,
    ModelWriter,
    choose_trainable,
    find_weights,
    load_connectors,
    load_weights,
)
from ltx_trainer.processing.prepare import clips_fingerprint, open_sets
from ltx_trainer.run_log import CsvLog, LiveView, Logs, TensorboardLog, WandbLog, figures_of
from ltx_trainer.sigma_tracker import SigmaLossTracker
from ltx_trainer.state import check_unused, latest_state, state_header
from ltx_trainer.timestep_samplers import make_timestep_sampler
from ltx_trainer.training_strategies.config import DistillationConfig, VideoToVideoConfig
from ltx_trainer.training_strategies.inputs import Batch
from ltx_trainer.training_strategies.strategies import make_strategy
from ltx_trainer.transformer_task import TransformerObjective, TransformerTask, working_dtype
from ltx_trainer.validation_media import Studio
from ltx_trainer.validation_sampler import PreparedSample, ValidationSampler, check_samples, keyframes_of

if TYPE_CHECKING:
    from accelerate import Accelerator

logger = logging.getLogger(__name__)

CONFIG_NAME = "training_config.yaml"


@dataclass(frozen=True)
class TrainingResult:
    """Outcome of a run. ``weights`` is None when it was stopped before anything was written."""

    weights: Path | None
    step: int
    total_time_seconds: float
    steps_per_second: float
    samples_per_second: float
    peak_gpu_memory_gb: float
    global_batch_size: int
    num_processes: int
    stopped: bool = False


class LtxvTrainer:
    """Fine-tunes the transformer as a configuration says.

    ``config`` is a validated `TrainerConfig`, as `read_config` gives it; results go to its ``output_dir``.
    `train` runs to the end; iterate over `steps` to see every step yourself. Files and settings that cannot work are
    refused on construction, as `ConfigError` or `CheckpointError`, before any weight is read.
    """

    def __init__(self, config: TrainerConfig, resume: bool = True, overwrite: bool = False) -> None:
        """``resume`` False refuses an output folder in use; ``overwrite`` starts anew there, old checkpoints go."""
        self.config, self.overwrite = config, overwrite
        self.resume = resume and not overwrite and not config.checkpoints.no_resume
        self.output = Path(config.output_dir)
        if not overwrite:
            check_output(self.output, self.resume)
        self.last_files: list[Path] = []  # samples of the last validation
        self.shown_files = self.last_files
        model = config.model
        self.files = ModelFiles.of(
            model.model_path, model.text_encoder_path, model.video_vae_path, model.audio_vae_path
        )
        self.checkpoint = open_trainable(self.files, model.training_mode)
        if self.validates:
            streams = tuple(self.checkpoint.network_config("transformer").streams)
            check_samples(config.validation, self.files.scale_factors(), streams)
        data, sources = config.data, config.training_strategy.data_sources()
        device = str(self.accelerator.device)
        self.dataset = open_sets(data, self.files, sources, device, self.accelerator.wait_for_everyone)
        trained, self.held_out = self.dataset.held_out(data.held_out_samples, data.held_out_share)
        repeats = [one.repeats for one in data.sets] or [1]
        weights = [one.weight for one in data.sets] or [None]
        self.trained = self.dataset.epoch(trained, repeats, weights)

    # What a run is made of, each part built when it is first needed.

    @cached_property
    def accelerator(self) -> Accelerator:
        from accelerate import Accelerator, DistributedDataParallelKwargs
        from accelerate.state import AcceleratorState

        AcceleratorState._reset_state()  # precision is a run's own, not the process's
        try:
            return Accelerator(
                mixed_precision=self.precision.mixed,
                device_placement=False,
                kwargs_handlers=[DistributedDataParallelKwargs(find_unused_parameters=True)],
            )
        except ValueError as error:
            mode = self.config.acceleration.mixed_precision_mode
            raise ConfigError(f"mixed_precision_mode is {mode}, which does not work here: {error}") from error

    @cached_property
    def mesh(self) -> TrainingMesh:
        """Shares of the processes in a step."""
        asked = self.config.acceleration.mesh
        return TrainingMesh.read(asked, self.accelerator.process_index, self.accelerator.num_processes)

    @cached_property
    def shares(self) -> int:
        """Shares of ``batch_size`` examples in a batch: as many as the run began with, where fewer processes go on."""
        known, now = self._resumed_from, self.mesh.data_size
        count: int = known.get("shares", now)
        if count % now or known.get("batch") != count * self.config.optimization.batch_size:
            return now
        if count > now:
            logger.info("each process computes what %d did, one after the other", count // now)
        return count

    @property
    def validates(self) -> bool:
        return self.config.validation.interval is not None and bool(self.config.validation.samples)

    @cached_property
    def precision(self) -> Precision:
        """The precision of the network; the mode ``auto`` is resolved for the device of this process."""
        found = resolve_mixed(self.config.acceleration.mixed_precision_mode, launched_device())
        logger.info("computing in %s", found.name)
        if found.warning is not None:
            logger.warning(found.warning)
        return found

    @property
    def is_mixed(self) -> bool:
        return self.precision.mixed != "no"

    @cached_property
    def transformer(self) -> LTXModel:
        """The network with what is trained marked, on the device."""
        config, device = self.config, self.accelerator.device
        frozen_dtype = torch.bfloat16 if self.is_mixed else torch.float32
        network = self.checkpoint.build("transformer", frozen_dtype)
        assert isinstance(network, LTXModel)
        if config.acceleration.quantization is not None:
            quantize_frozen(network, config.acceleration.quantization, device if device.type != "cpu" else None)
        network = self._with_trained(network)
        swap = config.acceleration.blocks_to_swap
        if swap and config.model.training_mode != "lora":
            raise ConfigError(f"blocks_to_swap is {swap}; blocks that are trained stay on the device, expected 0")
        network.enable_gradient_checkpointing(config.optimization.enable_gradient_checkpointing or swap > 0)
        self.mesh.share_tokens(network)
        if swap:
            BlockSwap(network, swap, device).place(network)
            return network
        return network.to(device)

    def _with_trained(self, network: LTXModel) -> LTXModel:
        """The network with what is trained marked or added, at the weights that a run starts from."""
        config, mode = self.config, self.config.model.training_mode
        if mode == "lora":
            add_lora(network, lora_settings(config), config.seed)
        elif mode == "audio_adapter":
            network = add_audio(network, trained_config(self.checkpoint, config), config.seed)
        else:
            choose_trainable(network, config.model.trainable_modules)
        if config.model.load_checkpoint is not None:
            path = find_weights(path_of(config.model.load_checkpoint))
            if mode == "lora":
                load_lora(network, path)
            else:  # an adapter is a part of a model
                load_weights(network, *([self.files.model_path] if mode == "audio_adapter" else []), path)
            logger.info("starting from %s", path)
        return network

    @cached_property
    def objective(self) -> TransformerObjective:
        config = self.config
        sampling = config.flow_matching
        sampler = make_timestep_sampler(sampling.timestep_sampling_mode, sampling.timestep_sampling_params)
        dtype = torch.bfloat16 if self.is_mixed else torch.float32
        connectors = None
        if not self.checkpoint.is_ltx_video:
            audio = trained_config(self.checkpoint, config).audio is not None
            connectors = load_connectors(self.checkpoint, dtype, self.accelerator.device, audio)
        dropout, chosen = config.optimization.caption_dropout, config.training_strategy
        distills = isinstance(chosen, DistillationConfig)
        objective = (DistillObjective if distills else TransformerObjective)(
            self.transformer,
            connectors,
            make_strategy(chosen, sampler, self.files.scale_factors(), has_causal_positions(self.checkpoint)),
            caption_dropout=dropout,
            empty_caption=self.dataset.empty_caption() if dropout > 0 or distills else None,
        )
        if isinstance(objective, DistillObjective) and isinstance(chosen, DistillationConfig):
            objective.follow(DistillSettings(chosen.guidance_scale, chosen.substeps, chosen.sigmas))
        return objective

    @cached_property
    def order(self) -> BatchOrder:
        """The order of the batches of all processes together."""
        size = self.config.optimization.batch_size * self.shares
        return BatchOrder.of(self.dataset, size, self.config.seed, self.trained)

    def batches(self, first: int, rank: int, world_size: int) -> Iterator[Batch]:
        """Endless batches from micro-step ``first`` on."""
        workers = self.config.data.num_dataloader_workers
        return read_batches(self.dataset, self.order, first, rank, world_size, workers)

    def held_out_batches(self) -> Iterator[Batch]:
        for index in self.held_out:
            with suppress(UnreadableClipError):
                example = self.dataset[index]
                yield collate([example])

    @cached_property
    def samples(self) -> list[PreparedSample]:
        """This process's share of the validation samples, encoded; all of them where no process makes one alone."""
        if not self.validates:
            return []
        config = self.config.validation
        share = (
            slice(None)
            if self.is_sharded
            else slice(self.accelerator.process_index, None, self.accelerator.num_processes)
        )
        return self.studio.prepare(config.model_copy(update={"samples": config.samples[share]}))

    @property
    def is_sharded(self) -> bool:
        """Whether a process alone cannot run the network."""
        return self.mesh.fsdp > 1 or self.mesh.sp > 1 or bool(getattr(self.accelerator, "is_fsdp2", False))

    @cached_property
    def studio(self) -> Studio:
        return Studio(self.files, self.accelerator.device, torch.bfloat16 if self.is_mixed else torch.float32)

    @cached_property
    def task(self) -> TransformerTask:
        precision = DTYPES[self.config.checkpoints.precision]
        if self.config.model.training_mode == "lora":
            legacy = isinstance(self.config.training_strategy, VideoToVideoConfig)
            objective = self.objective
            write: Any = LoraWriter(
                self.transformer, precision, lambda: reference_metadata(objective.reference_factors, legacy)
            )
        elif self.config.model.training_mode == "audio_adapter":
            write = AudioAdapterWriter(self.config.audio_adapter.section, precision)
        else:
            write = ModelWriter(self.checkpoint, precision)
        return TransformerTask(self.objective, self.batches, write, self.validate)

    def validate(self, step: int, folder: Path) -> Mapping[str, float]:
        """Make and write the samples, measure the held-out loss."""
        figures: dict[str, float] = {}
        if self.held_out:
            figures |= held_out_losses(self.objective, self.held_out_batches, self.config.seed)
        files: list[Path] = []
        if self.samples:
            sampler = ValidationSampler(
                self.config.validation, self.transformer, self.files.scale_factors(), working_dtype(self.transformer)
            )
            made = [sampler.latents(sample) for sample in self.samples]
            if not self.is_sharded or self.accelerator.is_main_process:
                stem = folder / f"step_{step:06d}"
                files, clips = self.studio.write(made, self.samples, stem, *self._numbering())
                figures |= self._agreement(sampler, clips)
        self.last_files = files
        return figures

    def _agreement(self, sampler: ValidationSampler, clips: list[Clip]) -> dict[str, float]:
        """``val/psnr``, ``val/psnr_keyframes`` and ``val/onsets``: means over the samples whose truth is known."""
        found: dict[str, list[float]] = {}
        for sample, clip in zip(self.samples, clips, strict=True):
            if sample.truth is not None:
                given, keyframes = sampler.given_cells(sample), keyframes_of(sample)
                measured = agreement(clip, sample.truth, given, sampler.scale_factors, keyframes)
                for name, value in measured.items():
                    found.setdefault(f"val/{name}", []).append(value)
        return {name: sum(values) / len(values) for name, values in found.items()}

    def _numbering(self) -> tuple[int, int]:
        """(number of this process's first sample, distance to its next)."""
        if self.is_sharded:
            return 1, 1
        return 1 + self.accelerator.process_index, self.accelerator.num_processes

    @property
    def settings(self) -> LoopSettings:
        """The configuration as the loop takes it."""
        config, optimization = self.config, self.config.optimization
        judged = self.validates or (bool(self.held_out) and config.validation.interval is not None)
        return LoopSettings(
            steps=optimization.steps,
            learning_rate=optimization.learning_rate,
            scheduler_type=optimization.scheduler_type,
            scheduler_params=optimization.scheduler_params,
            warmup_steps=optimization.warmup_steps,
            optimizer_type=optimization.optimizer_type,
            optimizer_params=optimization.optimizer_params,
            rate_factors=rate_factors(self.transformer, "transformer."),
            gradient_accumulation_steps=optimization.gradient_accumulation_steps,
            max_grad_norm=optimization.max_grad_norm,
            ema_decay=optimization.ema_decay,
            mixed_precision=self.precision.mixed,
            checkpoint_interval=config.checkpoints.interval,
            keep_last_n=config.checkpoints.keep_last_n,
            validation_interval=config.validation.interval if judged else None,
            validate_first=judged and not config.validation.skip_initial_validation,
            save_state=config.checkpoints.save_training_state,
            offload_optimizer=config.acceleration.offload_optimizer_during_validation,
            resume=self.resume,
            overwrite=self.overwrite,
            seed=config.seed,
            mesh=self.mesh,
            shares=self.shares,
            fingerprint=self.fingerprint(),
        )

    def fingerprint(self) -> dict[str, Any]:
        """Properties that a resumed run must share with the one it continues."""
        config = self.config
        values: dict[str, Any] = {
            "training_mode": config.model.training_mode,
            "optimizer_type": config.optimization.optimizer_type,
            **self._data_fingerprints(),
            "base model": fingerprint(self.files.model_path),
            "seed": config.seed,
            "batch": config.optimization.batch_size * self.shares,
            "gradient_accumulation_steps": config.optimization.gradient_accumulation_steps,
        }
        if config.lora is not None and config.model.training_mode == "lora":
            lora = config.lora
            values |= {f"lora.{key}": value for key, value in lora.model_dump(mode="json").items() if key != "dropout"}
            values["lora.targets"] = ", ".join(values.pop("lora.target_modules"))
        elif config.model.training_mode == "audio_adapter":
            values |= {f"audio_adapter.{key}": str(value) for key, value in config.audio_adapter.section.items()}
        elif config.model.trainable_modules is not None:
            values["trainable_modules"] = ", ".join(config.model.trainable_modules)
        return values

    def _data_fingerprints(self) -> dict[str, str]:
        """Of records as they are, and of clips by what their records are or will be made of."""
        sources, sets = self.config.training_strategy.data_sources(), self.config.data.sets or (None,)
        found: dict[str, list[str]] = {}
        for one, member in zip(sets, self.dataset.members, strict=True):
            if one is None or one.is_prepared:
                found.setdefault("data", []).append(member.fingerprint())
            else:
                print_ = clips_fingerprint(one, self.files, sources, len(member))
                found.setdefault("clips", []).append(print_)
        return {name: "; ".join(prints) for name, prints in found.items()}

    # Running it.

    def steps(self) -> Iterator[StepReport]:
        """Train; yields after every optimizer step. The output folder gets its configuration first."""
        if self.accelerator.is_main_process:
            write_config(self.config, self.output / CONFIG_NAME)
        if self.validates:
            _ = self.samples  # the text encoder and the VAEs are done before the transformer is there
        yield from train(self.task, self.settings, self.output, self.accelerator)

    def train(
        self, live: bool = True, callback: Callable[[int, int, list[Path]], None] | None = None
    ) -> TrainingResult:
        """Train to the end, or until SIGINT or SIGTERM; ``callback(step, total, sample files)`` follows each step."""
        total, device = self.config.optimization.steps, self.accelerator.device
        first = self._resumed_from["step"]
        if first >= total:
            raise ConfigError(f"optimization.steps is {total}, {self.output} is at step {first} already")
        logs, started = self._logs(first), time.monotonic()
        report: StepReport | None = None
        weights: Path | None = None
        main = self.accelerator.is_main_process
        with LiveView(total, lambda: peak_bytes(device), live=live and main, further=self._encoded) as view:
            if not main:
                view.console.quiet = True
            with closing(logs):
                for report in self.steps():
                    self._log(logs, view, report)
                    weights = next((path for path in report.files if "weights" in path.name), weights)
                    if callback is not None:
                        callback(report.step, total, self.last_files)
                result = self._result(report, weights, first, time.monotonic() - started)
                logs.write(result.step, {"stats/steps_per_second": result.steps_per_second})
        if main and weights is not None and not result.stopped and self.config.hub.push_to_hub:
            push_to_hub(self.config, weights, sorted((self.output / "samples").glob(f"step_{result.step:06d}_*")))
        return result

    def _encoded(self) -> str:
        """How many clips are encoded, while some wait."""
        count, waiting = len(self.dataset), self.dataset.num_waiting
        return f"{count - waiting}/{count} encoded" if waiting else ""

    @property
    def _resumed_from(self) -> dict[str, Any]:
        """Fingerprint and step of the state that the run goes on from; for a new run only the step, 0."""
        state = latest_state(self.output / CHECKPOINT_FOLDER) if self.resume else None
        if state is None:
            return {"step": 0}
        step, known = state_header(state)
        return {**known, "step": step}

    def _logs(self, first: int) -> Logs:
        if not self.accelerator.is_main_process:
            return Logs([])
        logs = Logs([CsvLog(self.output, first), TensorboardLog(self.output, first)])
        if self.config.wandb.enabled:
            logs.members.append(WandbLog(self.output, self.config.wandb, self.config.model_dump(mode="json")))
        return logs

    def _log(self, logs: Logs, view: LiveView, report: StepReport) -> None:
        figures = dict(report.metrics)
        if report.losses:
            view.update(report)
            figures |= figures_of(report) | self._losses_by_sigma()
        for path in report.files:
            view.note(f"saved {path}")
        if report.stopped:
            view.note(f"stopped after step {report.step}; run it again to go on")
        if logs.members:
            logs.write(report.step, figures)
            if self.last_files is not self.shown_files:
                logs.show(report.step, self.last_files)
                self.shown_files = self.last_files

    def _losses_by_sigma(self) -> dict[str, float]:
        figures: dict[str, float] = {}
        if self.accelerator.is_main_process:
            for name, (sigmas, losses) in self.objective.sigma_losses().items():
                tracker = SigmaLossTracker(prefix=f"train/loss_{name}")
                tracker.update(sigmas, losses)
                figures |= tracker.metrics()
        return figures

    def _result(self, report: StepReport | None, weights: Path | None, first: int, seconds: float) -> TrainingResult:
        step = first if report is None else report.step
        optimization, processes = self.config.optimization, self.accelerator.num_processes
        batch = optimization.batch_size * optimization.gradient_accumulation_steps * self.shares
        speed = (step - first) / max(seconds, 1e-9)
        device = self.accelerator.device
        return TrainingResult(
            weights=weights,
            step=step,
            total_time_seconds=seconds,
            steps_per_second=speed,
            samples_per_second=speed * batch,
            peak_gpu_memory_gb=peak_bytes(device) / 2**30 if device.type == "cuda" else 0.0,
            global_batch_size=batch,
            num_processes=processes,
            stopped=report is not None and report.stopped,
        )


def lora_settings(config: TrainerConfig) -> LoraSettings:
    """The ``lora`` section as the adapter takes it."""
    lora = config.lora
    assert lora is not None
    groups = lora.as_groups(config.optimization.learning_rate)
    return LoraSettings(lora.rank, lora.alpha, lora.dropout, lora.target_modules, lora.type, lora.factor, groups)


def check_output(folder: Path, resume: bool) -> None:
    """Refuse a folder that holds what a run would bury: files of others, or checkpoints it does not go on from.

    Raises `ConfigError`; `CheckpointError` where there are states to go on from and none can be read.
    """
    checkpoints = folder / CHECKPOINT_FOLDER
    if not resume or latest_state(checkpoints) is None:
        check_unused(checkpoints)
        found = sorted(path.name for path in folder.iterdir()) if folder.is_dir() else []
        if found and CONFIG_NAME not in found:  # with it, a run that was killed before its first checkpoint
            hint = "a new run needs a new or empty output_dir, or --overwrite, which leaves other files alone"
            raise ConfigError(f"{folder} holds {len(found)} files of no run, first {found[0]}; {hint}")
