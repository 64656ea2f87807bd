"""The one training loop: everything here that learns, from a LoRA to a vocoder, is a `Task` run by `train`.

The loop is an iterator that yields a report after every optimizer step; progress display, tests and early stopping
need no hooks. What happens in step k is a function of the weights, the settings and k alone: data order and random
draws are derived from (seed, step), the learning rate from the step. So a run that was killed and resumed from its
last state goes on bit for bit (one process, CPU, float32), and N processes see the batch one process would see.
"""

from __future__ import annotations

import logging
import math
import signal
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING, Any, Protocol, cast

import torch
from torch import Tensor, nn
from torch.distributed.tensor import DTensor
from torch.nn.parallel import DistributedDataParallel

from ltx_core.errors import ConfigError
from ltx_core.parallel.mesh import TrainingMesh
from ltx_core.precision import resolve_mixed
from ltx_trainer.draws import Draws, GeneratorDraws, derived_seed
from ltx_trainer.muon import Muon
from ltx_trainer.schedules import learning_rate_schedule
from ltx_trainer.state import (
    TrainingState,
    check_unused,
    checkpoint_files,
    latest_state,
    load_state,
    local,
    placed_like,
    retain,
    rng_state,
    save_state,
    set_rng_state,
)

if TYPE_CHECKING:
    from accelerate import Accelerator

logger = logging.getLogger(__name__)

CHECKPOINT_FOLDER = "checkpoints"


class Task(Protocol):
    """A training task. `module(batch, draws)` gives named losses; the one called ``loss`` is minimised."""

    @property
    def module(self) -> nn.Module: ...

    def batches(self, first_micro_step: int, rank: int, world_size: int) -> Iterator[Any]:
        """Endless batches from micro-step ``first_micro_step`` on; a function of the position, not of history."""
        ...

    def validate(self, step: int, folder: Path) -> Mapping[str, float]:
        """Write samples under ``folder`` and return figures to log."""
        ...

    def export(self, folder: Path, step: int, weights: Mapping[str, Tensor]) -> list[Path]:
        """Write ``weights`` (EMA where it is kept) in the format users load, and return the files."""
        ...


@dataclass(frozen=True)
class LoopSettings:
    """Length, rate and intervals of a run. Steps count optimizer steps; ``steps`` is the absolute total."""

    steps: int
    learning_rate: float = 1e-4
    scheduler_type: str = "constant"
    scheduler_params: Mapping[str, Any] = field(default_factory=dict)
    warmup_steps: int = 0
    optimizer_type: str = "adamw"
    optimizer_params: Mapping[str, Any] = field(default_factory=dict)
    rate_factors: Mapping[str, float] = field(default_factory=dict)  # parameter -> times the learning rate
    gradient_accumulation_steps: int = 1
    max_grad_norm: float = 1.0  # <= 0: no clipping
    ema_decay: float | None = None
    mixed_precision: str = "no"  # auto, bf16, fp16 or no; an accelerator that is given has its own
    compile: bool = False  # the module's forward, once for every form of its batches
    checkpoint_interval: int | None = None
    keep_last_n: int = 1
    validation_interval: int | None = None
    validate_first: bool = False
    save_state: str = "full"  # full | minimal | off
    offload_optimizer: bool = False  # keep the optimizer's moments on the CPU during validation
    resume: bool = True
    overwrite: bool = False  # start anew where another run has left checkpoints, which go
    seed: int = 42
    mesh: TrainingMesh | None = None  # None: every process sees examples of its own
    shares: int | None = None  # of a batch, each as large as ``Task.batches`` gives; None: one for each process
    fingerprint: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class StepReport:
    """Report of one optimizer step. ``step`` counts finished steps, losses are means over the step's whole batch."""

    step: int
    losses: Mapping[str, float]
    learning_rate: float
    grad_norm: float
    seconds: float
    data_seconds: float
    metrics: Mapping[str, float] = field(default_factory=dict)
    files: tuple[Path, ...] = ()
    stopped: bool = False

    @property
    def non_finite(self) -> str | None:
        """The first figure of the step that is no finite number."""
        figures = {**self.losses, "gradient norm": self.grad_norm}
        return next((f"{name} is {value}" for name, value in figures.items() if not math.isfinite(value)), None)


class SharedDraws(GeneratorDraws):
    """Draws for a whole batch, of which one of its shares keeps its rows. Scalars are those of all."""

    def __init__(self, generator: torch.Generator, share: int, shares: int) -> None:
        super().__init__(generator)
        self.share, self.shares = share, shares

    def _rows(self, shape: tuple[int, ...]) -> tuple[tuple[int, ...], slice]:
        if not shape or self.shares == 1:
            return shape, slice(None)
        return (shape[0] * self.shares, *shape[1:]), slice(self.share * shape[0], (self.share + 1) * shape[0])

    def randn(self, shape: Any, dtype: torch.dtype = torch.float32) -> Tensor:
        whole, rows = self._rows(tuple(shape))
        drawn = super().randn(whole, dtype)
        return drawn[rows] if whole else drawn

    def rand(self, shape: Any) -> Tensor:
        whole, rows = self._rows(tuple(shape))
        drawn = super().rand(whole)
        return drawn[rows] if whole else drawn


def make_optimizer(module: nn.Module, settings: LoopSettings) -> torch.optim.Optimizer:
    """AdamW with the library's defaults, its 8-bit form, or Muon.

    Raises `ConfigError` for the 8-bit form when it is not installed, and for Muon over sharded parameters.
    """
    options = dict(settings.optimizer_params)
    parameters = rate_groups(module, settings.rate_factors)
    if settings.optimizer_type == "muon":
        if settings.rate_factors:
            raise ConfigError("optimizer_type is 'muon', which has rates of its own: leave learning_rate out of groups")
        if any(isinstance(parameter, DTensor) for parameter in module.parameters()):
            raise ConfigError("optimizer_type is 'muon', which needs whole matrices, and the parameters are sharded")
        return Muon(module, settings.learning_rate, **options)
    if settings.optimizer_type == "adamw":
        return torch.optim.AdamW(parameters, lr=settings.learning_rate, **options)
    if settings.optimizer_type == "adamw8bit":
        try:
            from bitsandbytes.optim import AdamW8bit
        except ImportError as error:
            raise ConfigError("optimizer_type is 'adamw8bit', which needs `pip install bitsandbytes`") from error
        return AdamW8bit(parameters, lr=settings.learning_rate, **options)
    raise ConfigError(f"optimizer_type is {settings.optimizer_type!r}, expected adamw, adamw8bit or muon")


def rate_groups(module: nn.Module, factors: Mapping[str, float]) -> list[dict[str, Any]]:
    """Trainable parameters by what their learning rate is multiplied by."""
    groups: dict[float, list[nn.Parameter]] = {}
    for name, parameter in module.named_parameters():
        if parameter.requires_grad:
            groups.setdefault(factors.get(name.removeprefix("module."), 1.0), []).append(parameter)
    return [{"params": members, "factor": factor} for factor, members in groups.items()]


def prepare(module: nn.Module, accelerator: Accelerator, mesh: TrainingMesh) -> nn.Module:
    """The module as this launch needs it: as it is, replicated, or sharded where the mesh or the launcher says so.

    Frozen tensors are the same files in every process, so replication leaves them alone.
    """
    if mesh.fsdp > 1:
        shard(module, mesh=mesh.device_mesh(accelerator.device.type))
        return module
    if getattr(accelerator, "is_fsdp2", False):
        shard(module, **launched_options(accelerator))
        return module
    frozen = [name for name, parameter in module.named_parameters() if not parameter.requires_grad]
    DistributedDataParallel._set_params_and_buffers_to_ignore_for_model(module, frozen)
    return cast(nn.Module, accelerator.prepare_model(module))


def launched_options(accelerator: Accelerator) -> dict[str, Any]:
    """Sharding options that the launcher asks for."""
    from torch.distributed.fsdp import MixedPrecisionPolicy

    plugin = accelerator.state.fsdp_plugin
    options: dict[str, Any] = {
        "reshard_after_forward": plugin.reshard_after_forward,
        "mp_policy": plugin.mixed_precision_policy or MixedPrecisionPolicy(),
    }
    if plugin.cpu_offload:
        options["offload_policy"] = plugin.cpu_offload
    return options


def shard(module: nn.Module, **options: Any) -> None:
    """Shard networks that say which of their parts stay whole (``NO_SPLIT_MODULES``), or the module itself."""
    from torch.distributed.fsdp import fully_shard

    networks = [network for network in module.modules() if hasattr(network, "NO_SPLIT_MODULES")] or [module]
    for network in networks:
        whole = getattr(network, "NO_SPLIT_MODULES", ())
        for part in network.modules():
            if type(part).__name__ in whole:
                fully_shard(part, **options)
        fully_shard(network, **options)


def whole(tensor: Tensor) -> Tensor:
    """A tensor with all of its shards; every process takes part."""
    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor


def move_state(optimizer: torch.optim.Optimizer, device: torch.device | str) -> None:
    """Move the optimizer's moments."""
    for slots in optimizer.state.values():
        for name, value in slots.items():
            if isinstance(value, Tensor) and value.ndim and not isinstance(value, DTensor):
                slots[name] = value.to(device)


@contextmanager
def stop_requests() -> Iterator[threading.Event]:
    """An event that SIGINT and SIGTERM set, so that the step in progress ends and a state is written."""
    requested = threading.Event()
    if threading.current_thread() is not threading.main_thread():
        yield requested
        return

    def request(number: int, frame: FrameType | None) -> None:
        if requested.is_set():  # a second signal does not wait
            raise KeyboardInterrupt
        requested.set()

    before = {number: signal.signal(number, request) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield requested
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


class _Run:
    """The moving parts of one call of `train`."""

    def __init__(self, task: Task, settings: LoopSettings, folder: Path, accelerator: Accelerator) -> None:
        self.task, self.settings, self.folder, self.accelerator = task, settings, folder, accelerator
        parameters = [p for p in task.module.parameters() if p.requires_grad]
        if not parameters:
            raise ConfigError("nothing to train: no parameter requires a gradient")
        self.schedule = learning_rate_schedule(
            settings.scheduler_type,
            settings.learning_rate,
            settings.steps,
            settings.scheduler_params,
            settings.warmup_steps,
        )
        if settings.compile:
            task.module.compile(dynamic=False)
        rank, size = accelerator.process_index, accelerator.num_processes
        self.mesh = settings.mesh or TrainingMesh(rank, size)
        self.module = prepare(task.module, accelerator, self.mesh)
        self.trained = [parameter for parameter in self.module.parameters() if parameter.requires_grad]
        self.optimizer = make_optimizer(self.module, settings)
        self.step = 0
        self.ema: dict[str, Tensor] = {}
        self.start(folder / CHECKPOINT_FOLDER)
        if settings.ema_decay is not None and not self.ema:
            self.ema = {name: tensor.clone() for name, tensor in self.trainable().items()}

    @property
    def is_replicated(self) -> bool:
        """Whether every process holds the whole module, and gradients are averaged after the backward pass."""
        return isinstance(self.module, DistributedDataParallel)

    @property
    def shares(self) -> int:
        """Number of shares of a batch, each computed at once."""
        return self.settings.shares or self.mesh.data_size

    @property
    def own_shares(self) -> range:
        """The shares that this process computes, one after the other: several where fewer processes go on."""
        count = self.shares // self.mesh.data_size
        return range(self.mesh.data_rank * count, (self.mesh.data_rank + 1) * count)

    def parameters(self) -> dict[str, nn.Parameter]:
        """Trainable parameters by name (sharded ones stay sharded)."""
        inner = self.accelerator.unwrap_model(self.module)
        return {name: p for name, p in inner.named_parameters() if p.requires_grad}

    def trainable(self) -> dict[str, Tensor]:
        """The values of trainable parameters, live."""
        return {name: parameter.detach() for name, parameter in self.parameters().items()}

    def start(self, folder: Path) -> None:
        """Go on from the newest state, or begin where no other run has been; says which."""
        if self.settings.overwrite:
            if self.accelerator.is_main_process:
                for path in checkpoint_files(folder):
                    path.unlink()
            self.accelerator.wait_for_everyone()
        found = latest_state(folder) if self.settings.resume else None
        if found is None:
            check_unused(folder)
            logger.info("a new run in %s", self.folder)
            return
        state = load_state(found)
        self.restore(state)
        without = "" if state.optimizer else ", without the optimizer's moments, which it does not hold"
        logger.info("resuming from %s%s", found, without)

    def restore(self, state: TrainingState) -> None:
        known, now = state.fingerprint, self.settings.fingerprint
        differing = [
            f"{key} was {known[key]} and is now {now[key]}" for key in now if known.get(key, now[key]) != now[key]
        ]
        if differing:
            raise ConfigError(
                f"cannot resume {self.folder}: {'; '.join(differing)}. Choose another output_dir, or start anew with "
                "--overwrite; model.load_checkpoint starts from its weights"
            )
        if silent := [key for key in now if key not in known]:
            logger.warning("the state does not say what its %s was: it is not compared", ", ".join(silent))
        trained = self.trainable().keys()
        if missing := [name for name in trained if name not in state.model]:
            raise ConfigError(
                f"cannot resume {self.folder}: its state has no tensor {missing[0]!r} "
                f"({len(missing)} of {len(trained)} trainable ones are missing); choose another output_dir"
            )
        self.step = state.step
        parameters = self.parameters()
        for name, parameter in parameters.items():
            parameter.detach().copy_(placed_like(state.model[name], parameter))
        for name, slots in state.optimizer.items():
            shape = parameters[name].shape
            self.optimizer.state[parameters[name]] = {
                slot: placed_like(tensor, parameters[name])
                if tensor.shape == shape and slot != "step"
                else tensor.clone()
                for slot, tensor in slots.items()
            }
        self.ema = {name: placed_like(tensor, parameters[name].detach()) for name, tensor in state.ema.items()}
        set_rng_state(state.rng)

    def collect(self) -> TrainingState:
        """The whole state, live; of what is sharded this process's parts."""
        optimizer: dict[str, dict[str, Tensor]] = {}
        if self.settings.save_state == "full":
            slots = {name: self.optimizer.state.get(parameter) for name, parameter in self.parameters().items()}
            optimizer = {
                name: {slot: torch.as_tensor(value) for slot, value in own.items()}
                for name, own in slots.items()
                if own
            }
        known = {**self.settings.fingerprint, "shares": self.shares}
        return TrainingState(self.step, self.trainable(), optimizer, self.ema, rng_state(), known)

    def save(self) -> tuple[Path, ...]:
        state = self.collect()
        kept = {**state.model, **state.ema}
        wrong = next((name for name, tensor in kept.items() if not local(tensor).isfinite().all()), None)
        if self.any_process(wrong is not None):
            raise self.divergence(f"{wrong or 'a weight'} is no longer finite")
        folder, main, files = self.folder / CHECKPOINT_FOLDER, self.accelerator.is_main_process, list[Path]()
        weights: dict[str, Tensor] = {}
        for name, tensor in (state.ema or state.model).items():
            gathered = whole(tensor)
            if main:
                weights[name] = gathered.cpu()
        if main:
            files += self.task.export(folder, self.step, weights)
        if self.settings.save_state != "off":
            files.append(save_state(folder, state))
        if main:
            retain(folder, self.settings.keep_last_n, self.step)
        self.accelerator.wait_for_everyone()
        return tuple(files) if main else ()

    def was_skipped(self, report: StepReport) -> bool:
        """Whether a step of float16 changed nothing, because its gradients overflowed while its scale is found."""
        scaler = self.accelerator.scaler
        return scaler is not None and all(map(math.isfinite, report.losses.values())) and scaler.get_scale() >= 1

    def divergence(self, what: str) -> ConfigError:
        """The error that ends a run before anything that is no number gets into a checkpoint."""
        kept = checkpoint_files(self.folder / CHECKPOINT_FOLDER)
        last = f"the last good checkpoint is {kept[0]}" if kept else "there is no checkpoint yet"
        return ConfigError(f"stopped at step {self.step}: {what}; {last}. Try a lower learning_rate or max_grad_norm")

    def draws(self, micro_step: int, share: int) -> Draws:
        """The random numbers of a share in one micro-step; also seeds the global generators (dropout)."""
        seed = derived_seed(self.settings.seed, micro_step)
        torch.manual_seed(derived_seed(seed, share))
        generator = torch.Generator(self.accelerator.device).manual_seed(seed)
        return SharedDraws(generator, share, self.shares)

    def batches(self) -> dict[int, Iterator[Any]]:
        """The batches of every own share from the step that comes next."""
        first = self.step * self.settings.gradient_accumulation_steps
        return {share: self.task.batches(first, share, self.shares) for share in self.own_shares}

    def optimizer_step(self, batches: Mapping[int, Iterator[Any]]) -> StepReport:
        started, waited = time.perf_counter(), 0.0
        rate = self.schedule(self.step)
        for group in self.optimizer.param_groups:
            group["lr"] = rate * group.get("factor", 1.0)
        totals: dict[str, Tensor] = {}
        before: list[Tensor | None] = []
        for share, source in batches.items():
            waited += self.accumulate(share, source, len(batches), totals)
            self.add_gradients(before)
            before = [parameter.grad for parameter in self.trained]
            if share != self.own_shares[-1]:
                self.optimizer.zero_grad(set_to_none=True)
        norm = self.update_weights()
        self.optimizer.zero_grad(set_to_none=True)
        self.step += 1
        self.update_ema()
        names = sorted(totals)
        means = self.accelerator.reduce(torch.stack([totals[name] for name in names]), "mean").tolist()
        seconds = time.perf_counter() - started
        norm = float(whole(norm)) if isinstance(norm, Tensor) else float(norm or 0.0)
        return StepReport(self.step, dict(zip(names, means, strict=True)), rate, norm, seconds, waited)

    def accumulate(self, share: int, source: Iterator[Any], shares: int, totals: dict[str, Tensor]) -> float:
        """Add the gradients and losses of a share, one of ``shares`` of this process; the seconds waited for data."""
        count, waited = self.settings.gradient_accumulation_steps, 0.0
        for micro in range(count):
            asked = time.perf_counter()
            batch = next(source)
            waited += time.perf_counter() - asked
            last = micro == count - 1
            with nullcontext() if last or not self.is_replicated else self.accelerator.no_sync(self.module):
                with self.accelerator.autocast():
                    losses = self.module(batch, self.draws(self.step * count + micro, share))
                self.accelerator.backward(losses["loss"] / count / shares)
            for name, value in losses.items():
                totals[name] = totals.get(name, 0.0) + value.detach().float() / (count * shares)
        return waited

    def add_gradients(self, before: Sequence[Tensor | None]) -> None:
        """Add those of the shares before: sums of whole shares, as several processes add them, bit for bit."""
        for parameter, gradient in zip(self.trained, before, strict=False):
            if gradient is not None:
                parameter.grad = gradient if parameter.grad is None else parameter.grad.add_(gradient)

    def any_process(self, found: bool) -> bool:
        """Whether any process has ``found`` a reason to stop: all stop at once, for saving takes all of them."""
        if self.accelerator.num_processes == 1:
            return found
        return bool(self.accelerator.reduce(torch.tensor(float(found), device=self.accelerator.device), "sum") > 0)

    def update_weights(self) -> Any:
        """Clip, step the optimizer; returns the norm before clipping. The scale of float16 losses is undone."""
        limit, scaler = self.settings.max_grad_norm, self.accelerator.scaler
        if scaler is not None:
            scaler.unscale_(self.optimizer)
        norm = self.accelerator.clip_grad_norm_(self.trained, limit if limit > 0 else float("inf"))
        if scaler is None:
            self.optimizer.step()
        else:
            scaler.step(self.optimizer)
            scaler.update()
        return norm

    def update_ema(self) -> None:
        decay = self.settings.ema_decay
        if decay is None:
            return
        decay = min(decay, (1 + self.step) / (10 + self.step))
        live = self.trainable()
        names = list(self.ema)
        torch._foreach_lerp_([self.ema[name] for name in names], [live[name] for name in names], 1 - decay)

    def validate(self) -> Mapping[str, float]:
        """Figures and samples of the weights users get: the averaged ones where an average is kept."""
        live = self.trainable()
        kept = {name: tensor.clone() for name, tensor in live.items()} if self.ema else {}
        for name, tensor in self.ema.items():
            live[name].copy_(tensor)
        self.task.module.eval()
        if self.settings.offload_optimizer:
            move_state(self.optimizer, "cpu")
        try:
            with torch.no_grad(), self.accelerator.autocast():
                return self.task.validate(self.step, self.folder / "samples")
        finally:
            self.task.module.train()
            if self.settings.offload_optimizer:
                move_state(self.optimizer, self.accelerator.device)
            for name, tensor in kept.items():
                live[name].copy_(tensor)


def launched_device() -> torch.device:
    """The device `accelerate` gives this process."""
    from accelerate import PartialState
    from accelerate.utils import parse_flag_from_env

    return PartialState(cpu=parse_flag_from_env("ACCELERATE_USE_CPU")).device


def train(
    task: Task, settings: LoopSettings, folder: Path, accelerator: Accelerator | None = None
) -> Iterator[StepReport]:
    """Train ``task`` from its newest state in ``folder`` (or from the start) to ``settings.steps``.

    Yields a `StepReport` per optimizer step. States and weights are written every ``checkpoint_interval`` steps, at
    the end, and when SIGINT or SIGTERM asks to stop (then the last report has ``stopped`` set). A step whose loss or
    gradients are not finite is the last: it is reported, and nothing is written. Raises `ConfigError` then, for
    settings that cannot work or are not those of the state, `CheckpointError` when one cannot be read or written.
    """
    from accelerate import Accelerator

    torch.manual_seed(settings.seed)
    if accelerator is None:
        precision = resolve_mixed(settings.mixed_precision, launched_device())
        accelerator = Accelerator(mixed_precision=precision.mixed)
    run = _Run(task, settings, folder, accelerator)
    batches = run.batches()
    run.module.train()
    with stop_requests() as stop:
        if settings.validate_first and run.step == 0:
            yield StepReport(0, {}, 0.0, 0.0, 0.0, 0.0, run.validate())
        while run.step < settings.steps:
            report = run.optimizer_step(batches)
            if (wrong := report.non_finite) and not run.was_skipped(report):
                yield report
                raise run.divergence(wrong)
            stopping = run.any_process(stop.is_set())  # asked once: a later signal is for the next step
            last = run.step == settings.steps or stopping
            due = {
                "validation": settings.validation_interval and run.step % settings.validation_interval == 0,
                "checkpoint": settings.checkpoint_interval and run.step % settings.checkpoint_interval == 0,
            }
            metrics = run.validate() if due["validation"] and not stopping else {}
            files = run.save() if due["checkpoint"] or last else ()
            yield StepReport(**{**vars(report), "metrics": metrics, "files": files, "stopped": stopping})
            if stopping:
                return
