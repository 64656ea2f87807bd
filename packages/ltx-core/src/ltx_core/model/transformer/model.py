"""The denoiser: noisy tokens, noise levels, positions and text in, a velocity per token out.

::

    latent [B, T, C] --patchify_proj--> tokens [B, T, w] --blocks--> LayerNorm, scale, shift, proj_out --> velocity
    timesteps --adaln_single--> modulation rows per distinct noise level
    positions --> rotary tables;  text [B, S, c] --caption_projection (19B, LTX-Video)--> [B, S, w]

Tensors outside ``transformer_blocks.<i>`` (audio names start with ``audio_``; ``<adaln>`` as in ``adaln.py``)::

    patchify_proj [w, C]   proj_out [C, w]   scale_shift_table [2, w]   caption_projection.linear_{1,2}
    adaln_single.<adaln>, 6 or 9 rows        prompt_adaln_single.<adaln>, 2 rows
    keyframes_abs_pos_embedding [1, w]       (video only)
    av_ca_{video,audio}_scale_shift_adaln_single.<adaln>, 4 rows   av_ca_{a2v,v2a}_gate_adaln_single.<adaln>, 1 row
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from ltx_core.errors import ConfigError
from ltx_core.guidance.perturbations import PARTS, BatchedPerturbationConfig, BlockKeep, Part
from ltx_core.model.transformer.adaln import AdaLayerNormSingle, Modulation, scale_and_shift
from ltx_core.model.transformer.attention import AUTO, Attention, find_backend
from ltx_core.model.transformer.block import (
    PREFIX,
    CrossInputs,
    StreamInputs,
    Tokens,
    TransformerBlock,
    modulation_table,
)
from ltx_core.model.transformer.config import STREAMS, StreamConfig, TransformerConfig
from ltx_core.model.transformer.feed_forward import TextProjection
from ltx_core.model.transformer.masks import context_bias
from ltx_core.model.transformer.modality import Modality, TimestepGroups
from ltx_core.model.transformer.passes import Passes
from ltx_core.model.transformer.rope import token_points
from ltx_core.savings import savings
from ltx_core.utils import to_denoised

GATE_ADALN = {"video": "av_ca_a2v_gate_adaln_single", "audio": "av_ca_v2a_gate_adaln_single"}


class LTXModel(nn.Module):
    """The transformer of LTX-2 and LTX-Video, with the streams its config has."""

    #: The module list that holds the blocks, the bulk of the weights.
    BLOCK_LIST: ClassVar[str] = "transformer_blocks"
    #: Classes whose modules stay whole when the model is sharded.
    NO_SPLIT_MODULES: ClassVar[tuple[str, ...]] = ("TransformerBlock",)
    #: Parameters whose names contain one of these keep their precision when the rest is quantised.
    SENSITIVE: ClassVar[tuple[str, ...]] = (
        "patchify_proj",
        "proj_out",
        "adaln",
        "caption_projection",
        "scale_shift_table",
        "keyframes_abs_pos_embedding",
        "to_gate_logits",
        "q_norm",
        "k_norm",
    )

    def __init__(self, config: TransformerConfig) -> None:
        super().__init__()
        self.config = config
        self.gradient_checkpointing = False
        for name, stream in config.streams.items():
            self._add_stream(name, stream)
        if config.video and config.use_keyframes_abs_pos_embedding:
            self.keyframes_abs_pos_embedding = nn.Parameter(torch.zeros(1, config.video.width))
        if len(config.streams) == 2:
            for name, stream in config.streams.items():
                setattr(self, f"av_ca_{name}_scale_shift_adaln_single", AdaLayerNormSingle(stream.width, 4))
                setattr(self, GATE_ADALN[name], AdaLayerNormSingle(stream.width, 1))
        self.transformer_blocks = nn.ModuleList([TransformerBlock(config) for _ in range(config.num_layers)])

    def forward(
        self,
        video: Modality | None = None,
        audio: Modality | None = None,
        perturbations: BatchedPerturbationConfig | None = None,
        max_batch_size: int | None = None,
    ) -> tuple[Tensor | None, Tensor | None]:
        """Velocities ``[B, T, C]`` of video and audio; None for a stream that is not given.

        Samples that ``perturbations`` calls the same are computed once for as long as they agree. Blocks are given at
        most ``max_batch_size`` samples at a time; None: all.

        Raises ``ConfigError`` for a stream the model lacks, for no stream at all, and for shapes that do not fit.
        """
        modalities = self.check(video, audio)
        batch_size = next(iter(modalities.values())).batch_size
        if max_batch_size is not None and max_batch_size < 1:
            raise ConfigError(f"max_batch_size is {max_batch_size}, expected at least 1")
        if perturbations is None:
            perturbations = BatchedPerturbationConfig.empty(batch_size)
        elif len(perturbations) != batch_size:
            raise ConfigError(f"perturbations are for {len(perturbations)} samples, expected {batch_size}")
        elif not savings().shared_prefix:
            perturbations = BatchedPerturbationConfig(perturbations.configs)
        velocities = Passes(self, modalities, perturbations, max_batch_size).velocities()
        return velocities.get("video"), velocities.get("audio")

    @property
    def num_blocks(self) -> int:
        return len(self.transformer_blocks)

    def enable_gradient_checkpointing(self, enabled: bool = True) -> None:
        """In training mode, keep only block inputs for the backward pass and compute each block again."""
        self.gradient_checkpointing = enabled

    def set_attention_backend(self, name: str) -> None:
        """Use one of ``attention.BACKENDS``, or ``auto``, in every attention."""
        if name != AUTO:
            find_backend(name)
        for module in self.modules():
            if isinstance(module, Attention):
                module.backend = name

    def compile_blocks(self, **options: Any) -> None:
        """Compile what a block computes, once for all blocks and token counts; ``options`` as ``torch.compile``."""
        options = {"dynamic": True, **options}
        for block in self.transformer_blocks:
            block.compute = torch.compile(TransformerBlock.compute.__get__(block), **options)  # type: ignore[assignment]

    def check(self, video: Modality | None, audio: Modality | None) -> dict[str, Modality]:
        """The streams that are given, video first."""
        given = {name: modality for name, modality in zip(STREAMS, (video, audio), strict=True) if modality is not None}
        if not given:
            raise ConfigError("neither video nor audio is given, expected at least one stream")
        for name, modality in given.items():
            if name not in self.config.streams:
                raise ConfigError(f"{name} is given to a model without it, expected {', '.join(self.config.streams)}")
            stream = self.config.streams[name]
            width = stream.width if self.config.caption_channels is None else self.config.caption_channels
            modality.check(name, stream.in_channels, width, len(stream.max_pos))
        if len({modality.batch_size for modality in given.values()}) > 1:
            sizes = ", ".join(f"{name} {modality.batch_size}" for name, modality in given.items())
            raise ConfigError(f"batch sizes are {sizes}, expected equal ones")
        return given

    def embed(self, name: str, modality: Modality) -> Tensor:
        """The tokens the first block receives, ``[B, T, width]``."""
        x = self._part(name, "patchify_proj")(modality.latent)
        if name == "video" and self.config.use_keyframes_abs_pos_embedding and modality.keyframes_mask is not None:
            x = x + (modality.keyframes_mask > 0) * self.keyframes_abs_pos_embedding.to(x.dtype)
        return x

    def prepare(self, modalities: dict[str, Modality]) -> dict[str, StreamInputs]:
        """Everything the blocks need beside the tokens."""
        return self.with_text(self.prepare_without_text(modalities), modalities)

    def prepare_without_text(self, modalities: dict[str, Modality]) -> dict[str, StreamInputs]:
        """What ``prepare`` gives that does not depend on text: noise levels, positions, attention strengths."""
        return {name: self._stream_inputs(name, modalities) for name in modalities}

    def with_text(self, inputs: dict[str, StreamInputs], modalities: dict[str, Modality]) -> dict[str, StreamInputs]:
        """``inputs`` with the texts of ``modalities``."""
        penalty = self.config.context_mask_penalty
        return {
            name: replace(
                inputs[name],
                context=self._context(name, modality),
                context_bias=context_bias(modality.context_mask, modality.latent.dtype, penalty),
                text_memory=modality.text_memory,
            )
            for name, modality in modalities.items()
        }

    def run_blocks(
        self,
        tokens: Tokens,
        inputs: dict[str, StreamInputs],
        keeps: Sequence[BlockKeep],
        first: int = 0,
        last: int | None = None,
    ) -> Tokens:
        """Run blocks ``first`` to ``last`` (exclusive, None: all that follow)."""
        for index in range(first, self.num_blocks if last is None else last):
            tokens = self.run_block(index, tokens, inputs, keeps[index])
        return tokens

    def run_block(
        self,
        index: int,
        tokens: Tokens,
        inputs: dict[str, StreamInputs],
        keep: BlockKeep,
        parts: Sequence[Part] = PARTS,
    ) -> Tokens:
        """Run one block, or some consecutive parts of it."""
        block = self.transformer_blocks[index]
        if self.gradient_checkpointing and self.training:
            return checkpoint(block, tokens, inputs, keep, parts, use_reentrant=False)
        return block(tokens, inputs, keep, parts)

    def block_keeps(
        self, modalities: dict[str, Modality], perturbations: BatchedPerturbationConfig | None
    ) -> Sequence[BlockKeep]:
        """What each block keeps for each sample; everything without perturbations."""
        if perturbations is None:
            return [{}] * self.num_blocks
        latent = next(iter(modalities.values())).latent
        if len(perturbations) != latent.shape[0]:
            raise ConfigError(f"perturbations are for {len(perturbations)} samples, expected {latent.shape[0]}")
        return perturbations.block_keeps(self.num_blocks, latent.device, latent.dtype)

    def project_context(self, name: str, context: Tensor) -> Tensor:
        """Text features as the blocks read them, ``[B, S, width]``."""
        return context if self.config.caption_channels is None else self._part(name, "caption_projection")(context)

    def head(self, name: str, x: Tensor, embedded_timestep: Modulation) -> Tensor:
        """Velocity ``[B, T, C]`` of the last block's tokens."""
        table = self._part(name, "scale_shift_table")
        shift, scale = (embedded_timestep.row(number, table) for number in (0, 1))
        y = F.layer_norm(x, (x.shape[-1],), eps=self.config.out_norm_eps)
        return self._part(name, "proj_out")(scale_and_shift(y, scale, shift))

    def _stream_inputs(self, name: str, modalities: dict[str, Modality]) -> StreamInputs:
        modality, config = modalities[name], self.config
        dtype, multiplier = modality.latent.dtype, config.timestep_scale_multiplier
        levels = modality.grouped_timesteps()
        rows, embedded = self._part(name, "adaln_single")(levels.values * multiplier, dtype)
        prompt = None
        if config.use_prompt_adaln_single:
            prompt_rows, _ = self._part(name, "prompt_adaln_single")(modality.noise_level * multiplier, dtype)
            prompt = Modulation(prompt_rows)
        points = token_points(modality.positions, config.use_middle_indices_grid)
        return StreamInputs(
            runs=modality.enabled,
            modulation=Modulation(rows, levels.index),
            embedded_timestep=Modulation(embedded[:, None].expand(-1, 2, -1), levels.index),
            rope=config.self_rope(name).table(points, dtype),
            prompt_modulation=prompt,
            self_attention_bias=modality.attention_bias(),
            cross=self._cross_inputs(name, modalities, levels) if len(modalities) == 2 else None,
        )

    def _context(self, name: str, modality: Modality) -> Tensor:
        """The projected text of every sample, from memory where it has it."""
        context, memory = modality.context, modality.text_memory
        if memory is None or self.config.caption_channels is None:
            return self.project_context(name, context)
        return memory.recall(self, name, lambda row: (self.project_context(name, context[row : row + 1]),))[0]

    def _cross_inputs(self, name: str, modalities: dict[str, Modality], levels: TimestepGroups) -> CrossInputs:
        """Scale and shift go by the stream's own timesteps, the gate by the other stream's sigma."""
        modality, config = modalities[name], self.config
        other = next(value for key, value in modalities.items() if key != name)
        dtype, multiplier = modality.latent.dtype, config.timestep_scale_multiplier
        gate_multiplier = config.av_ca_timestep_scale_multiplier / multiplier
        scale_shift_adaln = getattr(self, f"av_ca_{name}_scale_shift_adaln_single")
        gate_adaln = getattr(self, GATE_ADALN[name])
        scale_shift, _ = scale_shift_adaln(levels.values * multiplier, dtype)
        gate, _ = gate_adaln(other.noise_level * multiplier * gate_multiplier, dtype)
        return CrossInputs(
            rope=config.cross_rope(name).table(token_points(modality.positions[:, :1], use_middle=True), dtype),
            scale_shift=Modulation(scale_shift, levels.index),
            gate=Modulation(gate),
        )

    def _part(self, name: str, part: str) -> Any:
        return getattr(self, PREFIX[name] + part)

    def _add_stream(self, name: str, stream: StreamConfig) -> None:
        config, width = self.config, stream.width
        parts: dict[str, nn.Module | nn.Parameter] = {
            "patchify_proj": nn.Linear(stream.in_channels, width),
            "adaln_single": AdaLayerNormSingle(width, config.modulation_rows),
            "scale_shift_table": modulation_table(2, width),
            "proj_out": nn.Linear(width, stream.out_channels),
        }
        if config.caption_channels is not None:
            parts["caption_projection"] = TextProjection(config.caption_channels, width)
        if config.use_prompt_adaln_single:
            parts["prompt_adaln_single"] = AdaLayerNormSingle(width, 2)
        for part, value in parts.items():
            setattr(self, PREFIX[name] + part, value)


class X0Model(nn.Module):
    """A velocity model that answers with denoised latents. Blocks are given ``max_batch_size`` samples at a time."""

    def __init__(self, velocity_model: LTXModel, max_batch_size: int | None = None) -> None:
        super().__init__()
        self.velocity_model = velocity_model
        self.max_batch_size = max_batch_size

    def forward(
        self,
        video: Modality | None = None,
        audio: Modality | None = None,
        perturbations: BatchedPerturbationConfig | None = None,
    ) -> tuple[Tensor | None, Tensor | None]:
        """Denoised latents ``[B, T, C]`` of video and audio; None for a stream that is not given."""
        velocities = self.velocity_model(video, audio, perturbations, self.max_batch_size)
        video_x0, audio_x0 = (
            None
            if modality is None or velocity is None
            else to_denoised(modality.latent, velocity, modality.per_token_timesteps)
            for modality, velocity in zip((video, audio), velocities, strict=True)
        )
        return video_x0, audio_x0

    @property
    def config(self) -> TransformerConfig:
        return self.velocity_model.config

    @property
    def num_blocks(self) -> int:
        return self.velocity_model.num_blocks
