"""Numbers that left the range of their type: found by one sum a step, and told with where they began."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field, fields

import torch
from torch import Tensor

from ltx_core.errors import NonFiniteError
from ltx_core.loader.adapters import LoraLayer
from ltx_core.sampling.modality import States
from ltx_core.types import Audio
from ltx_pipelines.planning.plan import Plan, StagePlan
from ltx_pipelines.utils.model_ledger import ModelLedger

ADVICE = "try --dtype float32, or less guidance"


@dataclass
class Watch:
    """The sums of what each step of a run left, which stay on the device until the run has no more steps."""

    sums: list[tuple[str, StagePlan, Tensor]] = field(default_factory=list)

    def see(self, states: States, stage: StagePlan, when: str) -> None:
        """Remember a state of every stream."""
        for name, state in states.items():
            self.sums.append((f"the {name} latent {when}", stage, state.latent.sum(dtype=torch.float32)))

    def check(self, plan: Plan, ledger: ModelLedger) -> None:
        """Raise `NonFiniteError` that names the first state with a number that is none, and an adapter that has one."""
        totals = torch.stack([total for _, _, total in self.sums]).isfinite().tolist() if self.sums else []
        if all(totals):
            return
        what, stage, _ = self.sums[totals.index(False)]
        for path, layer in broken_layers(stage, ledger):
            raise NonFiniteError(f"{what} holds NaN or infinity, as {layer} of the adapter {path} does")
        raise NonFiniteError(f"{what} holds NaN or infinity in {plan.dtype}; {ADVICE}")


def broken_layers(stage: StagePlan, ledger: ModelLedger) -> Iterator[tuple[str, str]]:
    """File and layer of the adapters of a stage that hold a number that is none."""
    for lora in stage.loras:
        for name, layer in ledger.lora(lora).layers.items():
            if not all(bool(part.isfinite().all()) for part in parts_of(layer)):
                yield lora.path, name


def parts_of(layer: LoraLayer) -> Iterator[Tensor]:
    """The tensors of an adapter's layer."""
    ahead = [getattr(layer, one.name) for one in fields(layer)]
    while ahead:
        value = ahead.pop()
        if isinstance(value, Tensor):
            yield value
        elif isinstance(value, tuple):
            ahead += value


def finite_frames(chunks: Iterable[Tensor]) -> Iterator[Tensor]:
    """Chunks of frames, each checked before it goes on. Raises `NonFiniteError`."""
    first = 0
    for chunk in chunks:
        if not bool(chunk.sum(dtype=torch.float32).isfinite()):
            bad = int((~chunk.flatten(1).isfinite().all(1)).nonzero()[0]) if chunk.ndim == 4 else 0
            raise NonFiniteError(f"frame {first + bad} was decoded to NaN or infinity; try --dtype float32")
        yield chunk
        first += len(chunk)


def finite_sound(audio: Audio) -> Audio:
    """The sound, checked. Raises `NonFiniteError`."""
    if not bool(audio.waveform.sum(dtype=torch.float32).isfinite()):
        raise NonFiniteError("the sound was decoded to NaN or infinity; try --dtype float32")
    return audio
