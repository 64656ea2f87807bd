"""One x0 prediction per stream: which passes of the transformer guidance needs, and how their results combine.

A pass is data: the text of each stream and what is perturbed. All passes of a step go through the transformer as one
batch, pass-major: pass 0 of every sample, pass 1 of every sample, ...
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Protocol

import torch
from torch import Tensor

from ltx_core.components.guiders import MultiModalGuider, MultiModalGuiderFactory
from ltx_core.errors import ConfigError
from ltx_core.guidance.perturbations import (
    SKIP_SELF_ATTENTION,
    BatchedPerturbationConfig,
    Perturbation,
    PerturbationConfig,
    PerturbationType,
)
from ltx_core.model.transformer.masks import StrengthGroups
from ltx_core.model.transformer.modality import Modality, TextMemory, TimestepGroups
from ltx_core.sampling.modality import States, modality_from_latent_state, sigma_for

#: ``(video=Modality | None, audio=Modality | None, perturbations=...) -> (video x0 | None, audio x0 | None)``.
Transformer = Callable[..., tuple[Tensor | None, Tensor | None]]

ISOLATED = PerturbationConfig(
    (Perturbation(PerturbationType.SKIP_A2V_CROSS_ATTN), Perturbation(PerturbationType.SKIP_V2A_CROSS_ATTN))
)
UNPERTURBED = PerturbationConfig()
UNGUIDED = MultiModalGuider()


@dataclass(frozen=True)
class DenoisedLatentResult:
    """The x0 prediction ``[B, N, D]`` of one stream, and those of the single passes that were made."""

    denoised: Tensor
    uncond: Tensor | None = None  # with the negative prompt
    cond: Tensor | None = None
    ptb: Tensor | None = None  # with self-attention skipped
    mod: Tensor | None = None  # without the other stream
    velocity: Tensor | None = None  # float32, where guidance combines velocities


Results = Mapping[str, DenoisedLatentResult]


@dataclass
class RunMemory:
    """State of one run along a schedule from step to step."""

    mask_groups: dict[str, TimestepGroups] = field(default_factory=dict)  # of each stream's denoise mask
    strength_groups: dict[str, StrengthGroups] = field(default_factory=dict)  # of its attention mask
    texts: dict[str, RunTexts] = field(default_factory=dict)  # by stream
    perturbations: dict[Any, BatchedPerturbationConfig] = field(default_factory=dict)  # by set of passes
    last: Results = field(default_factory=dict)  # of the call before
    momentum: dict[str, dict[str, Tensor]] = field(default_factory=dict)  # of each stream's guidance

    @classmethod
    def of(cls, states: States) -> RunMemory:
        """The memory of a run that begins with ``states``, whose masks stay as they are."""
        masks = {name: state.attention_mask for name, state in states.items()}
        return cls(
            {name: TimestepGroups.of(state.denoise_mask, state.release) for name, state in states.items()},
            {name: StrengthGroups.of(mask) for name, mask in masks.items() if mask is not None},
        )


@dataclass(frozen=True)
class DenoiseCall:
    """Position of a run on its schedule."""

    sigma: Tensor  # 0-d on the CPU; the noise level of the states
    step_index: int  # chooses skipped steps, and guidance by ``schedule[step_index]``
    schedule: Tensor  # [steps + 1] on the CPU
    memory: RunMemory = field(default_factory=RunMemory)

    @classmethod
    def at(cls, sigmas: Tensor, step_index: int) -> DenoiseCall:
        """A single call outside a loop."""
        schedule = sigmas.cpu()
        return cls(schedule[step_index], step_index, schedule)


class Denoiser(Protocol):
    """Predicts x0 of every stream given."""

    def __call__(self, transformer: Transformer, states: States, call: DenoiseCall) -> Results: ...


class Predictor:
    """Calls a denoiser along a schedule and remembers what it said last."""

    def __init__(self, transformer: Transformer, denoiser: Denoiser, states: States, schedule: Tensor) -> None:
        self.transformer, self.denoiser, self.schedule = transformer, denoiser, schedule
        self.memory = RunMemory.of(states)

    def __call__(self, states: States, step_index: int, sigma: Tensor | None = None) -> Results:
        """x0 of every stream at ``schedule[step_index]``, or at another ``sigma`` with that step's guidance."""
        sigma = self.schedule[step_index] if sigma is None else sigma
        call = DenoiseCall(sigma, step_index, self.schedule, self.memory)
        self.memory.last = self.denoiser(self.transformer, states, call)
        return self.memory.last


@dataclass(frozen=True)
class GuidancePass:
    """One pass of the transformer; ``name`` is the field of ``DenoisedLatentResult`` its result goes to."""

    name: str
    contexts: Mapping[str, Tensor]  # per stream [B, S, c]
    perturbations: PerturbationConfig = UNPERTURBED
    masks: Mapping[str, Tensor] = field(default_factory=dict)  # [B, S] of contexts that are padded


@dataclass(frozen=True)
class GuidedDenoiser:
    """Predicts with the guidance of each stream; a stream without a guider is not guided.

    ``contexts`` ``[B, S, c]`` and ``guiders`` are per stream. ``force_uncond_pass`` asks for ``uncond`` even at CFG
    scale 1, as CFG++ sampling needs it. ``keep_text`` keeps what the transformer made of the texts, where it stays the
    same at every step; off, it takes less memory and more time. A call raises ``ConfigError`` when CFG is on for a
    stream without a negative context.
    """

    contexts: Mapping[str, Tensor]
    guiders: Mapping[str, MultiModalGuider | MultiModalGuiderFactory] = field(default_factory=dict)
    force_uncond_pass: bool = False
    keep_text: bool = True

    def __call__(self, transformer: Transformer, states: States, call: DenoiseCall) -> Results:
        memory = call.memory
        active, passes = self.needs(tuple(states), call)
        results = {name: DenoisedLatentResult(memory.last[name].denoised) for name in states if name not in active}
        if not active:
            return results
        modalities = {
            name: modality_from_latent_state(
                state,
                self.contexts[name],
                sigma_for(state, call.sigma),
                enabled=name in active,
                mask_groups=memory.mask_groups.get(name),
                strength_groups=memory.strength_groups.get(name),
            )
            for name, state in states.items()
        }
        predictions = run_passes(transformer, modalities, passes, memory, self.keep_text)
        for name, guider in active.items():
            made = {pass_name: prediction[name] for pass_name, prediction in predictions.items()}
            kept = memory.momentum.setdefault(name, {})
            guided = guider.calculate(made["cond"], made.get("uncond"), made.get("ptb"), made.get("mod"), kept)
            results[name] = DenoisedLatentResult(guided, **made)
        return {name: results[name] for name in states}

    def needs(
        self, streams: Sequence[str], call: DenoiseCall
    ) -> tuple[dict[str, MultiModalGuider], list[GuidancePass]]:
        """The guiders of the streams that are predicted anew, where others keep the last result, and their passes."""
        level, step = float(call.schedule[call.step_index]), call.step_index
        guiders = {name: self.guiders.get(name, UNGUIDED).build_from_sigma(level) for name in streams}
        resting = {name for name in streams if name in call.memory.last and guiders[name].should_skip_step(step)}
        active = {name: guider for name, guider in guiders.items() if name not in resting}
        return active, self.passes(active, streams)

    def passes(self, guiders: Mapping[str, MultiModalGuider], streams: Sequence[str]) -> list[GuidancePass]:
        """The passes that any of ``guiders`` needs; ``streams`` are those the transformer is given."""
        positive = {name: self.contexts[name] for name in streams}
        passes = [GuidancePass("cond", positive)]
        if self.force_uncond_pass or any(guider.do_unconditional_generation() for guider in guiders.values()):
            passes.append(GuidancePass("uncond", {**positive, **_negative_contexts(guiders)}))
        weakened = {name: guider for name, guider in guiders.items() if guider.do_perturbed_generation()}
        if weakened:
            passes.append(GuidancePass("ptb", positive, _self_attention_skipped(weakened)))
        if len(streams) > 1 and any(guider.do_isolated_modality_generation() for guider in guiders.values()):
            passes.append(GuidancePass("mod", positive, ISOLATED))
        return passes


def run_passes(
    transformer: Transformer,
    modalities: Mapping[str, Modality],
    passes: Sequence[GuidancePass],
    memory: RunMemory,
    keep_text: bool,
) -> dict[str, dict[str, Tensor]]:
    """Predictions of the transformer, by pass and stream; with ``keep_text`` it keeps what it made of the texts."""
    batched = {}
    for name, modality in modalities.items():
        context, kept = memory.texts.setdefault(name, RunTexts()).of([each.contexts[name] for each in passes])
        masks = [each.masks[name] for each in passes if name in each.masks]
        batched[name] = replace(
            modality.select(tuple(range(modality.batch_size)) * len(passes)),
            context=context,
            context_mask=torch.cat(masks) if masks else None,
            text_memory=kept if keep_text else None,
        )
    size = next(iter(modalities.values())).batch_size
    predicted = transformer(
        video=batched.get("video"),
        audio=batched.get("audio"),
        perturbations=batch_perturbations(passes, tuple(modalities), size, memory.perturbations),
    )
    chunks: dict[str, dict[str, Tensor]] = {each.name: {} for each in passes}
    for name, prediction in zip(("video", "audio"), predicted, strict=True):
        if prediction is not None and name in modalities:
            for each, chunk in zip(passes, prediction.split(size), strict=True):
                chunks[each.name][name] = chunk
    return chunks


def batch_perturbations(
    passes: Sequence[GuidancePass], streams: tuple[str, ...], size: int, made: dict[Any, BatchedPerturbationConfig]
) -> BatchedPerturbationConfig | None:
    """One entry per sample; ``made`` keeps them by set of passes, for their masks then stay on the device.

    Passes with the same texts have the same inputs, all others differ in text alone.
    """
    if len(passes) == 1:
        return None
    configs = tuple(each.perturbations for each in passes)
    texts = [tuple(id(each.contexts[name]) for name in streams) for each in passes]
    first = tuple(texts.index(text) for text in texts)
    if (key := (configs, first, size)) not in made:
        batch = [config for config in configs for _ in range(size)]
        same_as = [number * size + sample for number in first for sample in range(size)]
        same_but_text_as = list(range(size)) * len(passes)
        made[key] = BatchedPerturbationConfig(batch, same_as=same_as, same_but_text_as=same_but_text_as)
    return made[key]


@dataclass
class RunTexts:
    """The texts one stream is given in a run: each set of passes is batched once, each text projected once."""

    seen: list[Tensor] = field(default_factory=list)  # [B, S, c] each
    batches: dict[tuple[int, ...], Tensor] = field(default_factory=dict)
    kept: dict[Any, tuple[Tensor, ...]] = field(default_factory=dict)

    def of(self, contexts: Sequence[Tensor]) -> tuple[Tensor, TextMemory]:
        """The texts of all passes ``[passes * B, S, c]``, and the memory of what the transformer makes of them."""
        numbers = tuple(self._number(context) for context in contexts)
        if numbers not in self.batches:
            self.batches[numbers] = contexts[0] if len(contexts) == 1 else torch.cat(list(contexts))
        size = contexts[0].shape[0]
        labels = tuple(number * size + sample for number in numbers for sample in range(size))
        return self.batches[numbers], TextMemory(labels, self.kept)

    def _number(self, context: Tensor) -> int:
        for number, known in enumerate(self.seen):
            if known is context:
                return number
        self.seen.append(context)
        return len(self.seen) - 1


def _negative_contexts(guiders: Mapping[str, MultiModalGuider]) -> dict[str, Tensor]:
    for name, guider in guiders.items():
        if guider.do_unconditional_generation() and guider.negative_context is None:
            raise ConfigError(f"{name} has cfg_scale {guider.params.cfg_scale} and no negative context, expected one")
    return {name: guider.negative_context for name, guider in guiders.items() if guider.negative_context is not None}


def _self_attention_skipped(guiders: Mapping[str, MultiModalGuider]) -> PerturbationConfig:
    blocks = {name: guider.params.stg_blocks for name, guider in guiders.items()}
    return PerturbationConfig(
        tuple(
            Perturbation(SKIP_SELF_ATTENTION[name], None if indices is None else tuple(indices))
            for name, indices in blocks.items()
        )
    )
