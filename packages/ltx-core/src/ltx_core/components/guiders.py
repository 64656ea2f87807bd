"""Guiders: combine a conditional x0 prediction with weaker ones into a better one.

A single guider gives the ``delta`` to add to the conditional prediction. ``MultiModalGuider`` is what the LTX-2
pipelines use: up to four predictions of one stream in one formula.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Literal, TypeVar

from ltx_core.errors import ConfigError

if TYPE_CHECKING:
    from torch import Tensor


GuiderName = Literal["cfg", "cfg_star", "apg"]
Value = TypeVar("Value")
PROJECTION_EPSILON = 1e-8


class Guider(ABC):
    """Two predictions in, a better one out."""

    scale: float

    @abstractmethod
    def delta(self, cond: Tensor, uncond: Tensor, /) -> Tensor:
        """The difference to add to the conditional prediction; of its shape."""

    def enabled(self) -> bool:
        """Whether the scale changes anything."""
        return self.scale != 1

    def guide(self, cond: Tensor, uncond: Tensor) -> Tensor:
        """The guided prediction, from the conditional one and a weaker one of the same shape."""
        return cond + self.delta(cond, uncond)


@dataclass(frozen=True)
class CFGGuider(Guider):
    """Classifier-free guidance: away from the unconditional prediction; ``scale`` 1 is off."""

    scale: float

    def delta(self, cond: Tensor, uncond: Tensor) -> Tensor:
        return (self.scale - 1) * (cond - uncond)


@dataclass(frozen=True)
class CFGStarRescalingGuider(Guider):
    """CFG* : classifier-free guidance against the unconditional prediction scaled to fit the conditional one."""

    scale: float

    def delta(self, cond: Tensor, uncond: Tensor) -> Tensor:
        return (self.scale - 1) * (cond - projection_coefficient(cond, uncond) * uncond)


@dataclass(frozen=True)
class STGGuider(Guider):
    """Spatio-temporal guidance: away from a prediction made with self-attention skipped in some blocks.

    ``scale`` 0 is off.
    """

    scale: float

    def delta(self, pos_denoised: Tensor, perturbed_denoised: Tensor) -> Tensor:
        return self.scale * (pos_denoised - perturbed_denoised)

    def enabled(self) -> bool:
        return self.scale != 0


@dataclass(frozen=True)
class LtxAPGGuider(Guider):
    """Adaptive projected guidance: the part of the guidance along the prediction is scaled by ``eta``, 1 leaving it.

    ``scale`` is that of classifier-free guidance, 1 being off. ``norm_threshold`` caps the guidance's norm over the
    last three axes (of ``[B, N, D]``: the last two); 0 is no cap.
    """

    scale: float
    eta: float = 1.0
    norm_threshold: float = 0.0

    def delta(self, cond: Tensor, uncond: Tensor) -> Tensor:
        return (self.scale - 1) * projected_guidance(cond - uncond, cond, self.eta, self.norm_threshold)


@dataclass(frozen=True)
class LegacyStatefulAPGGuider(Guider):
    """Projected guidance with momentum: the guidance of earlier calls goes on in ``kept``, of one run."""

    scale: float
    eta: float
    norm_threshold: float = 5.0
    momentum: float = 0.0
    kept: dict[str, Tensor] = field(default_factory=dict, repr=False, compare=False)

    def delta(self, cond: Tensor, uncond: Tensor) -> Tensor:
        guidance = cond - uncond
        if self.momentum != 0:
            before = self.kept.get("guidance")
            guidance = guidance if before is None else self.momentum * before + guidance
            self.kept["guidance"] = guidance
        return self.scale * projected_guidance(guidance, cond, self.eta, self.norm_threshold)

    def enabled(self) -> bool:
        return self.scale != 0


def projected_guidance(guidance: Tensor, cond: Tensor, eta: float, norm_threshold: float) -> Tensor:
    """Cap the norm of ``guidance``, then scale its part along ``cond`` by ``eta``."""
    from torch.linalg import vector_norm

    if norm_threshold > 0:
        axes = tuple(range(-min(3, guidance.ndim - 1), 0))
        norm = vector_norm(guidance, dim=axes, keepdim=True)
        guidance = guidance * (norm_threshold / norm).clamp(max=1)
    parallel = projection_coefficient(guidance, cond) * cond
    return eta * parallel + (guidance - parallel)


def projection_coefficient(a: Tensor, onto: Tensor) -> Tensor:
    """``<a, onto> / |onto|^2`` per batch item, shaped ``[B, 1, ...]``."""
    dot, square = (a * onto).flatten(1).sum(1), (onto * onto).flatten(1).sum(1)
    return (dot / (square + PROJECTION_EPSILON)).view(-1, *[1] * (a.ndim - 1))


@dataclass(frozen=True)
class MultiModalGuiderParams:
    """Guidance of one stream. The defaults guide nothing.

    ``cfg_scale`` leads away from the prediction with the negative prompt, ``modality_scale`` from the one that ignores
    the other stream; 1 is off. ``stg_scale`` leads away from the prediction with self-attention skipped in
    ``stg_blocks``, numbers of blocks from 0 or None for all; 0 is off. ``rescale_scale`` is the share, 0 to 1, of the
    conditional prediction's standard deviation that the result is given back; 0 is off. After each guided step
    ``skip_step`` steps reuse its result.

    ``guider`` says how the prediction with the negative prompt is used: ``"cfg"`` plain, ``"cfg_star"`` scaled to fit,
    ``"apg"`` projected. With the last, ``apg_eta`` is the share of the guidance along the prediction that is kept,
    ``apg_norm_threshold`` the largest norm of the guidance (0: no limit), ``apg_momentum`` the share of the last step's
    guidance that goes on (0: none).
    """

    cfg_scale: float = 1.0
    stg_scale: float = 0.0
    stg_blocks: Sequence[int] | None = ()
    rescale_scale: float = 0.0
    modality_scale: float = 1.0
    skip_step: int = 0
    guider: GuiderName = "cfg"
    apg_eta: float = 1.0
    apg_norm_threshold: float = 0.0
    apg_momentum: float = 0.0

    def __post_init__(self) -> None:
        if self.stg_blocks is not None:
            object.__setattr__(self, "stg_blocks", tuple(self.stg_blocks))  # lists and tuples compare equal


@dataclass(frozen=True)
class MultiModalGuider:
    """The guidance of one stream: which predictions it needs and how they are combined.

    ``params`` are its scales, by default guiding nothing. ``negative_context`` ``[B, S, c]`` is the negative prompt's
    text features, which a ``cfg_scale`` other than 1 needs.
    """

    params: MultiModalGuiderParams = MultiModalGuiderParams()
    negative_context: Tensor | None = None

    def do_unconditional_generation(self) -> bool:
        return not math.isclose(self.params.cfg_scale, 1.0)

    def do_perturbed_generation(self) -> bool:
        return not math.isclose(self.params.stg_scale, 0.0)

    def do_isolated_modality_generation(self) -> bool:
        return not math.isclose(self.params.modality_scale, 1.0)

    def should_skip_step(self, step: int) -> bool:
        """Whether the last result is reused at this step; never at step 0."""
        return self.params.skip_step != 0 and step % (self.params.skip_step + 1) != 0

    def calculate(
        self,
        cond: Tensor,
        uncond: Tensor | None = None,
        perturbed: Tensor | None = None,
        isolated: Tensor | None = None,
        kept: dict[str, Tensor] | None = None,
    ) -> Tensor:
        """The guided x0 prediction, computed in float32, in the dtype of ``cond``; None: not needed.

        Standard deviations go over the whole tensor: all samples, all tokens. ``kept`` carries what momentum needs
        from one step to the next.
        """
        p, x = self.params, cond.float()
        pred = x
        for guider, weaker in (
            (self._away_from_negative({} if kept is None else kept), uncond),
            (STGGuider(p.stg_scale), perturbed),
            (CFGGuider(p.modality_scale), isolated),
        ):
            if weaker is not None and guider.enabled():
                pred = pred + guider.delta(x, weaker.float())
        if p.rescale_scale != 0:
            pred = pred * (p.rescale_scale * (x.std() / pred.std()) + (1 - p.rescale_scale))
        return pred.to(cond.dtype)

    def _away_from_negative(self, kept: dict[str, Tensor]) -> Guider:
        p = self.params
        if p.guider == "cfg_star":
            return CFGStarRescalingGuider(p.cfg_scale)
        if p.guider == "apg" and p.apg_momentum:
            return LegacyStatefulAPGGuider(p.cfg_scale - 1, p.apg_eta, p.apg_norm_threshold, p.apg_momentum, kept)
        if p.guider == "apg":
            return LtxAPGGuider(p.cfg_scale, p.apg_eta, p.apg_norm_threshold)
        return CFGGuider(p.cfg_scale)

    def build_from_sigma(self, sigma: float) -> MultiModalGuider:
        """The guider at a noise level: itself."""
        return self


def at_sigma(values: Mapping[float, Value], sigma: float) -> Value:
    """The value of the smallest bound that is not below ``sigma``; above all bounds that of the largest."""
    return values[min((bound for bound in values if bound >= sigma), default=max(values))]


@dataclass(frozen=True)
class MultiModalGuiderFactory:
    """Guidance that depends on the noise level: bins ``(next lower bound, bound]``, keyed by their upper bounds."""

    params_by_sigma: Mapping[float, MultiModalGuiderParams]
    negative_context: Tensor | None = None

    def __post_init__(self) -> None:
        if not self.params_by_sigma:
            raise ConfigError("params_by_sigma is empty, expected at least one upper bound")

    @classmethod
    def constant(
        cls, params: MultiModalGuiderParams, negative_context: Tensor | None = None
    ) -> MultiModalGuiderFactory:
        return cls({math.inf: params}, negative_context)

    @classmethod
    def from_dict(
        cls, params_by_sigma: Mapping[float, MultiModalGuiderParams], negative_context: Tensor | None = None
    ) -> MultiModalGuiderFactory:
        return cls({float(bound): params for bound, params in params_by_sigma.items()}, negative_context)

    def params(self, sigma: float) -> MultiModalGuiderParams:
        """Those of the smallest bound that is not below ``sigma``; above all bounds those of the largest."""
        return at_sigma(self.params_by_sigma, sigma)

    def build_from_sigma(self, sigma: float) -> MultiModalGuider:
        """The guider at a noise level."""
        return MultiModalGuider(self.params(sigma), self.negative_context)


def create_multimodal_guider_factory(
    params: MultiModalGuiderParams | MultiModalGuiderFactory, negative_context: Tensor | None = None
) -> MultiModalGuiderFactory:
    """A factory from parameters; a factory stays as it is unless another negative context is given."""
    if isinstance(params, MultiModalGuiderParams):
        return MultiModalGuiderFactory.constant(params, negative_context)
    if negative_context is None or negative_context is params.negative_context:
        return params
    return replace(params, negative_context=negative_context)


@dataclass(frozen=True)
class VelocityGuidance:
    """Velocities that one step of LTX-Video combines: the positive one, a negative (scale above 1) and a perturbed.

    ``skip_strategy`` is one of ``SKIP_STRATEGIES`` in `ltx_core.guidance.perturbations`.
    """

    cfg_scale: float = 1.0
    stg_scale: float = 0.0
    rescale_scale: float = 1.0  # share of the positive velocity's spread that is restored, with STG alone
    stg_blocks: tuple[int, ...] = ()
    cfg_star: bool = False  # scale the negative velocity to fit the positive one
    skip_strategy: str = "attention_values"

    @property
    def uses_negative(self) -> bool:
        return self.cfg_scale > 1

    @property
    def uses_perturbed(self) -> bool:
        return self.stg_scale > 0

    @property
    def predictions(self) -> int:
        """Passes of the transformer."""
        return 1 + self.uses_negative + self.uses_perturbed

    def combine(self, positive: Tensor, negative: Tensor | None = None, perturbed: Tensor | None = None) -> Tensor:
        """One velocity ``[1, N, C]``, float32; ``negative`` and ``perturbed`` are given where they are used."""
        guided = positive = positive.float()
        if self.uses_negative and negative is not None:
            weak = negative.float()
            if self.cfg_star:
                weak = weak * ((positive * weak).sum() / (weak.square().sum() + PROJECTION_EPSILON))
            guided = weak + self.cfg_scale * (positive - weak)
        if self.uses_perturbed and perturbed is not None:
            guided = guided + self.stg_scale * (positive - perturbed.float())
            if self.rescale_scale != 1:
                ratio = positive.std() / guided.std()
                guided = guided * (self.rescale_scale * ratio + 1 - self.rescale_scale)
        return guided


# One list of defects for every program --------------------------------------------------------------------------------


DEFAULT_NEGATIVE_PROMPT = (
    "on-screen text, subtitles, captions, watermark, logo, blurred box, fade from black, fade to black, cut speech, "
    "out of focus, motion smear, overexposed, underexposed, washed out colours, low contrast, harsh contrast, grain, "
    "noise, compression blocks, flicker, banding, jagged edges, extra fingers, missing limbs, distorted hands, "
    "deformed face, asymmetric eyes, crooked teeth, warped proportions, wrong perspective, flat depth, "
    "unnatural depth of field, inconsistent lighting, misplaced shadows, plastic skin, computer-generated look, "
    "cartoon look, changing identity, drifting gaze, unfocused eyes, lips out of sync, muted sound, robotic voice, "
    "echoing voice, crackling sound, sound out of sync, added dialogue, repeated words, stuttering motion, "
    "frozen frames, abrupt jumps, badly framed subject, tilted horizon, heavy colour grading"
)
