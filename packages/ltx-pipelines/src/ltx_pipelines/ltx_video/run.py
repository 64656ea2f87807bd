"""Stages of LTX-Video: the start of their tokens, their denoiser, and the decoding of frames.

    grid latent [1, C, F, h, w]  ->  tokens [1, N, C], starts [1, 3, N], denoise mask [1, N, 1]

N counts the tokens of conditions that stand outside the grid, in order, then the grid by frame, row and column.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import torch
from torch import Tensor

from ltx_core.components.patchifiers import VideoLatentPatchifier
from ltx_core.components.windows import FRAMES_PER_LATENT
from ltx_core.conditioning.tools import LatentTools, VideoLatentTools, latent_tools
from ltx_core.model.upsampler.model import tone_map_latent
from ltx_core.model.video_vae.video_vae import DecodeConditioning
from ltx_core.networks import Contexts, Transformer, VideoEncoder
from ltx_core.sampling.stage import StreamStart
from ltx_core.sampling.velocity import TokenLevelSampler, VelocityDenoiser
from ltx_core.types import LatentState, VideoLatentShape
from ltx_pipelines.ltx_video.media import crop, load_condition, load_source, resize_video, wanted_media
from ltx_pipelines.planning.layout import PaddedSize
from ltx_pipelines.planning.plan import ImageCondition, Plan, StagePlan, StreamPlan
from ltx_pipelines.running.decoding import cut_frames, video_decoder
from ltx_pipelines.running.finite import Watch, finite_frames
from ltx_pipelines.running.preview import fitting
from ltx_pipelines.running.stage_inputs import Continuation, StageInputs, StageRun
from ltx_pipelines.utils.model_ledger import ModelLedger

LEADING_LATENTS = 2  # of a clip shown later than frame 0: these stand outside the grid, the others in it
SHARED_USES = frozenset({"initial", "condition", "renoise"})
SOUND = "sound"


@dataclass(frozen=True)
class LTXVideoTools(VideoLatentTools):
    """Tools of a grid whose other tokens stand before it. Tokens are placed by where they start, ``[1, 3, N]``."""

    def starts(self, shape: VideoLatentShape, first_frame: int = 0, device: torch.device | None = None) -> Tensor:
        """Seconds, row and column of every token of a latent shown from ``first_frame`` on; float32."""
        starts = self.pixel_coords(shape, self.causal_fix, device)[..., 0].to(torch.float32)
        starts[:, 0] += first_frame
        return starts * torch.tensor([1.0 / self.fps, 1.0, 1.0], device=starts.device)[:, None]

    def clear_conditioning(self, state: LatentState) -> LatentState:
        n = self.token_count
        return replace(
            state,
            latent=state.latent[:, -n:],
            clean_latent=state.clean_latent[:, -n:],
            positions=state.positions[:, :, -n:],
            denoise_mask=torch.ones_like(state.denoise_mask[:, -n:]),
        )


class SeededNoise:
    """The Gaussian numbers of a run, by a seed.

    Draws are made in a fixed order: the initial noise as tokens ``[1, F*H*W, C]``; one ``[1, C, f, h, w]`` per soft
    condition; per step ``[1, N, C]`` where hard conditions are noised again, then ``[1, N, C]`` where sampling is
    stochastic; a second stage does all that once more; last the decoder's. Posterior draws are made where pixels are
    encoded: a source clip's before the initial noise, conditions' after it and before their own noise.

    Initial, condition and renoise draws come from one CPU generator with this seed, so that they do not depend on the
    device; the other uses have a generator of their own and leave that sequence as it is. So has sound, which is drawn
    in the first stage alone: no later stage goes on from there.
    """

    def __init__(self, seed: int) -> None:
        self._shared = torch.Generator().manual_seed(seed)
        self._own = torch.Generator().manual_seed(seed + 1)
        self._sound = torch.Generator().manual_seed(seed + 2)

    def draw(self, use: str, shape: tuple[int, ...], like: Tensor) -> Tensor:
        """Standard normal numbers in the dtype and on the device of ``like``.

        ``use`` is one of initial, condition, renoise, stochastic, posterior, decoder and sound.
        """
        generator = self._shared if use in SHARED_USES else self._sound if use == SOUND else self._own
        return torch.randn(shape, generator=generator, dtype=like.dtype).to(like.device)

    def get_state(self) -> Tensor:
        """Positions of the picture's sequences, to go on from with ``set_state``."""
        return torch.stack((self._shared.get_state(), self._own.get_state()))

    def set_state(self, state: Tensor) -> None:
        for generator, own in zip((self._shared, self._own), state, strict=True):
            generator.set_state(own.cpu().clone())  # torch reads a view from the start of its storage


class LTXVideoRun:
    """State that the stages of an LTX-Video plan share. Pixels are encoded as samples of the VAE's posterior."""

    def __init__(self, plan: Plan, ledger: ModelLedger, contexts: tuple[Contexts, Contexts | None]) -> None:
        assert plan.ltx_video is not None
        self.plan, self.ledger, self.contexts, self.settings = plan, ledger, contexts, plan.ltx_video
        self.noise = SeededNoise(plan.seed)
        self.watch = Watch()
        self.size = PaddedSize.of(plan.ltx_video.asked, ledger.scale_factors)

    def begin(self, stage: StagePlan, inputs: StageInputs) -> StageRun:
        """Noise over what the stage starts from, with the conditions placed."""
        video, sampler = self.tools(stage), stage.sampler.params
        sampling = TokenLevelSampler(self._draw, bool(sampler.get("stochastic")), sampler.get("renoise", 0.0))
        denoiser = VelocityDenoiser(*self.contexts, stage.velocity_guidance, self.ledger.policy != "streamed")
        tools: dict[str, LatentTools[Any]] = {"video": video}
        states = {"video": self.start(stage, video, inputs)}
        if "audio" in stage.streams:
            tools |= latent_tools(stage.shape, ("audio",), self.ledger.scale_factors)
            states["audio"] = self.start_sound(stage.streams["audio"], tools["audio"], inputs)
        return StageRun(tools, states, denoiser, sampling)

    def model(self, stage: StagePlan, network: Transformer) -> Transformer:
        """The transformer, which predicts velocities."""
        return network

    def tools(self, stage: StagePlan) -> LTXVideoTools:
        ledger = self.ledger
        grid = VideoLatentShape.from_pixel_shape(stage.shape, ledger.latent_channels, ledger.scale_factors)
        causal = bool(ledger.config["transformer"].get("causal_temporal_positioning", False))
        return LTXVideoTools(VideoLatentPatchifier(1), grid, stage.shape.fps, ledger.scale_factors, causal)

    @torch.no_grad()
    def start(self, stage: StagePlan, tools: LTXVideoTools, inputs: StageInputs) -> LatentState:
        """The tokens a stage begins with."""
        stream, grid, like = stage.streams["video"], tools.target_shape, self._like
        source = inputs.latents.get("video")
        if stream.start == "source":
            wanted = wanted_media(self.size, background=self.plan.background)
            source = self.encode(load_source(self.plan.sources["video"].path, self.size, wanted), stage)
        latent = tools.patchifier.unpatchify(
            self.noise.draw("initial", (1, grid.token_count, grid.channels), like), grid
        )
        if source is not None:
            level = stage.sigmas[0]
            latent = level * latent + (1 - level) * source.to(like)
        strengths = latent.new_zeros(grid.mask_shape, dtype=torch.float32)
        front: list[tuple[Tensor, Tensor, Tensor]] = []
        for condition in stream.conditions:
            assert isinstance(condition, ImageCondition)
            outside = self._place(condition, stage, latent, strengths)
            if outside is not None:
                front.append(self._soft_tokens(outside, condition, tools))
        self._continue(inputs.start, latent, strengths)
        if inputs.start.anchor is not None:
            before = ImageCondition("", -FRAMES_PER_LATENT * inputs.start.anchor.shape[2])
            front.append(self._soft_tokens(inputs.start.anchor, before, tools))
        starts = tools.starts(grid, device=latent.device)
        parts = [*front, (tools.patchifier.patchify(latent), starts, strengths.flatten(1))]
        tokens, positions, weights = zip(*parts, strict=True)
        joined = torch.cat(tokens, 1)
        return LatentState(joined, 1 - torch.cat(weights, 1)[..., None], torch.cat(positions, 2), joined)

    def start_sound(self, stream: StreamPlan, tools: LatentTools[Any], inputs: StageInputs) -> LatentState:
        """The sound a stage begins with: noise, or that of the stage before, which it keeps."""
        like = self._like
        if stream.start == "previous":
            latent = inputs.latents["audio"]
        else:
            latent = self.noise.draw(SOUND, tuple(tools.target_shape), like)
        state = StreamStart(tools, latent).condition(like.device, like.dtype)
        if not stream.frozen:
            return state
        return replace(state, denoise_mask=torch.zeros_like(state.denoise_mask), frozen=True)

    def _continue(self, start: Continuation, latent: Tensor, strengths: Tensor) -> None:
        """Blend what a window goes on from into its first latent frames."""
        for number, strength in enumerate(start.strengths.get("video", ())):
            frame = slice(number, number + 1)
            known = start.latents["video"][:, :, frame].to(latent)
            latent[:, :, frame] = torch.lerp(latent[:, :, frame], known, strength)
            strengths[:, :, frame] = strength

    def _place(self, condition: ImageCondition, stage: StagePlan, latent: Tensor, strengths: Tensor) -> Tensor | None:
        """Blend what of a condition lies in the grid into ``latent``; returns the latents that stand outside."""
        factors, start, strength = self.ledger.scale_factors, condition.frame_idx, condition.strength
        wanted = wanted_media(self.size, start, self.plan.background)
        encoded = self.encode(load_condition(condition.path, self.size, wanted, factors), stage)
        leading = LEADING_LATENTS if start else 0
        inside, first = encoded[:, :, leading:], start // factors.time + leading
        if inside.shape[2]:
            window = slice(first, first + inside.shape[2])
            latent[:, :, window] = torch.lerp(latent[:, :, window], inside, strength)
            strengths[:, :, window] = strength
        return encoded[:, :, :leading] if leading else None

    def _soft_tokens(
        self, latent: Tensor, condition: ImageCondition, tools: LTXVideoTools
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Tokens, places and strengths of latents outside the grid, mixed with noise by their strength."""
        noise = self.noise.draw("condition", tuple(latent.shape), latent)
        tokens = tools.patchifier.patchify(torch.lerp(noise, latent, condition.strength))
        strengths = torch.full(tokens.shape[:2], condition.strength, dtype=torch.float32, device=tokens.device)
        return tokens, tools.starts(VideoLatentShape(*latent.shape), condition.frame_idx, latent.device), strengths

    def encode(self, pixels: Tensor, stage: StagePlan) -> Tensor:
        """Pixels ``[1, 3, f, H, W]`` in [-1, 1], resized to the stage, as a normalised latent."""
        encoder: VideoEncoder = self.ledger.network("video_encoder")
        pixels = resize_video(pixels.float(), stage.shape.height, stage.shape.width).to(self._like)
        return encoder.sample(pixels, partial(self.noise.draw, "posterior", like=self._like)).to(self._like)

    def decode(self, latent: Tensor) -> Iterator[Tensor]:
        """Chunks ``[f, H, W, 3]`` in [0, 1] of the frames and the size that are delivered."""
        return cut_frames(map(self.deliver, self.frames(latent)), self.settings.asked)

    def frames(self, latent: Tensor) -> Iterator[Tensor]:
        """Chunks of all frames of a latent ``[f, H, W, 3]`` in [0, 1], whole."""
        decoder = video_decoder(latent, self.ledger)
        settings = self.settings
        timestep, share = settings.decode_timestep, settings.decode_noise_scale
        if self.ledger.source("video_decoder").network_config("video_decoder").timestep_conditioning:
            share = timestep if share is None else share
            if share > 0:
                latent = (1 - share) * latent + share * self._draw("decoder", latent)
        latent = tone_map_latent(latent, settings.tone_map)
        noise = partial(self.noise.draw, "decoder", like=latent)
        conditioning = DecodeConditioning(timestep, noise_scale=0.0, noise=noise)
        chunks = finite_frames(decoder.decode_frames(latent, conditioning))
        yield from fitting(latent, chunks, self.ledger)

    def deliver(self, chunk: Tensor) -> Tensor:
        """Frames resized to the padded size and cut back to the one that is asked for."""
        if self.plan.stages[-1].delivered is None:
            return chunk
        video = resize_video(chunk.permute(3, 0, 1, 2)[None], self.size.padded.height, self.size.padded.width)
        return crop(video[0].permute(1, 2, 3, 0), self.size)

    def encode_frame(self, frame: Tensor, stage: StagePlan) -> Tensor:
        """A whole frame ``[H, W, 3]`` in [0, 1] as a latent of its own ``[1, C, 1, h, w]``."""
        return self.encode(frame.permute(2, 0, 1)[None, :, None] * 2 - 1, stage)

    def encode_image(self, image: ImageCondition, stage: StagePlan) -> Tensor:
        """A still as a latent of its own."""
        wanted = wanted_media(self.size, self.size.padded.frames - 1, self.plan.background)
        return self.encode(load_condition(image.path, self.size, wanted, self.ledger.scale_factors), stage)

    def _draw(self, use: str, like: Tensor) -> Tensor:
        return self.noise.draw(use, tuple(like.shape), like)

    @property
    def _like(self) -> Tensor:
        return torch.empty(0, device=self.ledger.device, dtype=self.ledger.dtype)
