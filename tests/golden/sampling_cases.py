"""Golden denoiser and sampler cases, run on the small analytic model that stands for the transformer in them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from ltx_core.components import diffusion_steps
from ltx_core.components.guiders import MultiModalGuider, MultiModalGuiderFactory, MultiModalGuiderParams
from ltx_core.components.noisers import normalized_noise, plain_noise
from ltx_core.guidance.perturbations import BatchedPerturbationConfig, PerturbationType
from ltx_core.model.transformer.modality import Modality
from ltx_core.sampling.denoisers import DenoiseCall, Denoiser, GuidedDenoiser, Results, Transformer
from ltx_core.sampling.loop import denoise
from ltx_core.sampling.modality import States
from ltx_core.sampling.res2s import Res2sSampler
from ltx_core.sampling.samplers import EulerSampler, GradientEstimatingSampler, Sampler, StochasticSampler
from ltx_core.types import LatentState
from tests.golden.case import Case

STREAMS = ("video", "audio")
OTHER = {"video": "audio", "audio": "video"}
STOCHASTIC_LOOPS = (
    "euler_ancestral_denoising_loop",
    "euler_cfg_pp_denoising_loop",
    "res2s_audio_video_denoising_loop",
)
LOOPS = ("euler_denoising_loop", "gradient_estimating_euler_denoising_loop", *STOCHASTIC_LOOPS)
SELF_ATTENTION = {"video": PerturbationType.SKIP_VIDEO_SELF_ATTN, "audio": PerturbationType.SKIP_AUDIO_SELF_ATTN}
CROSS_ATTENTION = {"video": PerturbationType.SKIP_A2V_CROSS_ATTN, "audio": PerturbationType.SKIP_V2A_CROSS_ATTN}
RESULT_FIELDS = ("denoised", "cond", "uncond", "ptb", "mod")
NOISES = {"plain": plain_noise, "normalized": normalized_noise}


@dataclass
class AnalyticModel:
    """The x0 model of the cases: a small fixed function of everything a transformer is given."""

    weights: Mapping[str, Mapping[str, Tensor]]
    num_blocks: int
    given: list[tuple[dict[str, Modality], BatchedPerturbationConfig | None]] = field(default_factory=list)

    def __call__(
        self,
        video: Modality | None = None,
        audio: Modality | None = None,
        perturbations: BatchedPerturbationConfig | None = None,
    ) -> tuple[Tensor | None, Tensor | None]:
        streams = {name: m for name, m in zip(STREAMS, (video, audio), strict=True) if m is not None}
        self.given.append((streams, perturbations))
        x0 = {name: self.denoised(name, streams, perturbations) for name in streams}
        return x0.get("video"), x0.get("audio")

    def denoised(
        self, name: str, streams: Mapping[str, Modality], perturbations: BatchedPerturbationConfig | None
    ) -> Tensor:
        w, modality = self.weights[name], streams[name]
        x, t = modality.latent.float(), modality.timesteps.float()
        assert modality.sigma is not None
        sigma = modality.sigma.float()[:, None, None]
        middle = modality.positions[:, 0].mean(dim=-1, keepdim=True)  # [B, N, 1]
        keep_self, keep_cross = (self.keep(kinds[name], perturbations) for kinds in (SELF_ATTENTION, CROSS_ATTENTION))
        v = x @ w["A"] + w["b"] + t * w["w"] + sigma * w["z"]
        v = v + modality.context.float().mean(dim=1, keepdim=True) @ w["P"] + middle * w["r"]
        v = v + keep_self * (x.mean(dim=1, keepdim=True) @ w["S"])
        if (other := streams.get(OTHER[name])) is not None:
            v = v + keep_cross * (other.latent.float().mean(dim=1, keepdim=True) @ w["X"])
        return (x - t * v.to(modality.latent.dtype).float()).to(modality.latent.dtype)

    def keep(self, kind: PerturbationType, perturbations: BatchedPerturbationConfig | None) -> Tensor | float:
        if perturbations is None:
            return 1.0
        return perturbations.masks(self.num_blocks)[kind].float().mean(dim=0)[:, None, None]


@dataclass
class Recorder:
    """A denoiser that keeps what it was given and what it said."""

    denoiser: Denoiser
    calls: list[tuple[States, DenoiseCall, Results]] = field(default_factory=list)

    def __call__(self, transformer: Transformer, states: States, call: DenoiseCall) -> Results:
        results = self.denoiser(transformer, states, call)
        self.calls.append((states, call, results))
        return results


def make_model(case: Case) -> AnalyticModel:
    weights = {name: case.group(f"in.model.{name}.") for name in STREAMS}
    return AnalyticModel(weights, case.args["num_blocks"])


def make_states(case: Case) -> dict[str, LatentState]:
    states = {}
    for name in STREAMS:
        if tensors := case.group(f"in.{name}."):
            states[name] = LatentState(**tensors, frozen=case.args.get(f"{name}_frozen", False))
    return states


def make_denoiser(case: Case) -> GuidedDenoiser:
    settings = case.args["denoiser"]
    contexts = {name: case.inputs[f"context.{name}"] for name in STREAMS if f"context.{name}" in case.inputs}
    negatives = {name: case.inputs.get(f"context.{name}_neg") for name in STREAMS}
    force = settings.get("force_uncond_pass", False)
    if settings["type"] == "simple":
        return GuidedDenoiser(contexts)
    guiders: dict[str, MultiModalGuider | MultiModalGuiderFactory] = {}
    for name in STREAMS:
        if settings["type"] == "guided":
            if (params := settings.get(f"{name}_params")) is not None:
                guiders[name] = MultiModalGuider(MultiModalGuiderParams(**params), negatives[name])
        elif (bins := settings.get(f"{name}_bins") or settings.get("video_bins")) is not None:
            by_sigma = {float(bound): MultiModalGuiderParams(**params) for bound, params in bins.items()}
            guiders[name] = MultiModalGuiderFactory.from_dict(by_sigma, negatives[name])
    return GuidedDenoiser(contexts, guiders, force)


def make_sampler(case: Case) -> Sampler:
    args: dict[str, Any] = dict(case.args["loop"])
    if case.header["operation"] in STOCHASTIC_LOOPS:  # which keep their states in bfloat16 unless told otherwise
        args["model_dtype"] = getattr(torch, args.get("model_dtype") or "bfloat16")
    if "noise" in case.args:
        args["noise"] = NOISES[case.args["noise"]]
    stepper = getattr(diffusion_steps, case.args["stepper"])(**case.args.get("stepper_args", {}))
    match case.header["operation"]:
        case "euler_denoising_loop":
            return EulerSampler()
        case "gradient_estimating_euler_denoising_loop":
            return GradientEstimatingSampler(gamma=args.get("ge_gamma", 2.0))
        case "res2s_audio_video_denoising_loop":
            return Res2sSampler(**args)
        case _:
            return StochasticSampler(stepper, **args)


def result_tensors(prefix: str, results: Results) -> dict[str, Tensor]:
    return {
        f"{prefix}.{name}.{part}": value
        for name, result in results.items()
        for part in RESULT_FIELDS
        if (value := getattr(result, part)) is not None
    }


def whole_run(case: Case) -> dict[str, Tensor]:
    recorder = Recorder(make_denoiser(case))
    model = make_model(case)
    states: States = make_states(case)
    for step in denoise(model, recorder, states, case.inputs["sigmas"], make_sampler(case)):
        states = step.states
    results = {f"out.{name}.latent": state.latent for name, state in states.items()}
    for i, (given, _, said) in enumerate(recorder.calls):
        results |= {f"mid.call{i}.{name}.latent": state.latent for name, state in given.items()}
        results |= result_tensors(f"mid.call{i}", said)
    assert [float(call.sigma) for _, call, _ in recorder.calls] == approximately(case.args["call_sigmas"])
    return {name: value for name, value in results.items() if name in case.tensors}


def approximately(values: list[float]) -> Any:
    import pytest

    return pytest.approx(values, rel=1e-6)


def one_call(case: Case) -> dict[str, Tensor]:
    model = make_model(case)
    call = DenoiseCall.at(case.inputs["sigmas"], case.args["step_index"])
    said = make_denoiser(case)(model, make_states(case), call)
    streams, perturbations = model.given[0]
    batch = next(iter(streams.values())).batch_size
    config = perturbations or BatchedPerturbationConfig.empty(batch)
    results = result_tensors("out", said) | {"out.batched.keep": config.masks(model.num_blocks).float()}
    for name, modality in streams.items():
        for prefix in (f"out.{name}", f"out.batched.{name}", f"mid.batched.{name}"):
            named = {part: getattr(modality, part) for part in ("sigma", "timesteps", "context", "latent")}
            results |= {f"{prefix}.{part}": value for part, value in named.items()}
    return {name: value for name, value in results.items() if name in case.tensors}
