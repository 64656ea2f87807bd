"""The denoiser: noisy tokens, noise levels, positions and text in, a velocity per token out.

::

    latent [B, T, C] --patchify_proj--> tokens [B, T, w] --blocks--> LayerNorm, scale, shift, proj_out --> velocity
    timesteps --adaln_single--> modulation rows per distinct noise level
    positions --> rotary tables;  text [B, S, c] --caption_projection (19B, LTX-Video)--> [B, S, w]

Tensors outside ``transformer_blocks.<i>`` (audio names start with ``audio_``; ``<adaln>`` as in ``layers.py``)::

    patchify_proj [w, C]   proj_out [C, w]   scale_shift_table [2, w]   caption_projection.linear_{1,2}
    adaln_single.<adaln>, 6 or 9 rows        prompt_adaln_single.<adaln>, 2 rows
    keyframes_abs_pos_embedding [1, w]       (video only)
    av_ca_{video,audio}_scale_shift_adaln_single.<adaln>, 4 rows   av_ca_{a2v,v2a}_gate_adaln_single.<adaln>, 1 row

Samples of equal inputs, as guidance passes with one text are, go through the blocks as one row until a perturbation
tells them apart::

    sample 0  text, unperturbed          0 --- 1 --- ... --- 27 --- 28 --- ... --- 47
    sample 1  negative text              0 --- 1 --- ... --- 27 --- 28 --- ... --- 47
    sample 2  as 0, modalities apart     0 --- 1 --- ... --- 27 --- 28 --- ... --- 47
    sample 3  as 0, perturbed at 28                             \\--- 28 --- ... --- 47

Blocks are the outer loop and groups of rows the inner one: streamed weights are copied once for all rows, and text is
projected once for all that read it. Rows computed one by one are bit-equal to samples computed alone.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from functools import cache
from typing import Any, ClassVar, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from ltx_core.errors import ConfigError
from ltx_core.guidance.perturbations import BatchedPerturbationConfig, Segment
from ltx_core.model.transformer.attention import AUTO, Attention, find_backend
from ltx_core.model.transformer.block import (
    CrossInputs,
    StreamInputs,
    TextInputs,
    Tokens,
    TransformerBlock,
    modulation_table,
)
from ltx_core.model.transformer.config import SENSITIVE, StreamConfig, TransformerConfig
from ltx_core.model.transformer.layers import AdaLayerNormSingle, Modulation, TextProjection, scale_and_shift
from ltx_core.model.transformer.masks import context_bias
from ltx_core.model.transformer.modality import (
    Modality,
    TextMemory,
    TimestepGroups,
    check_modalities,
    check_perturbations,
)
from ltx_core.model.transformer.passage import Group, Passage, join, select, split, sub_batches
from ltx_core.model.transformer.rope import cross_rope, self_rope, token_points
from ltx_core.optimizations import optimizations
from ltx_core.utils import to_denoised


class OuterLayers(NamedTuple):
    """Layers before and after the blocks for one stream."""

    patchify_proj: nn.Linear
    adaln_single: AdaLayerNormSingle
    prompt_adaln_single: AdaLayerNormSingle | None
    caption_projection: TextProjection | None
    scale_shift_table: Tensor  # [2, w]
    proj_out: nn.Linear


class LTXModel(nn.Module):
    """The transformer of LTX-2 and LTX-Video, with the streams its ``config`` has.

    `TransformerConfig.from_metadata` reads the config from a checkpoint; `Checkpoint.build` makes the network and
    fills in its weights.
    """

    #: The module list that holds the blocks, the bulk of the weights.
    BLOCK_LIST: ClassVar[str] = "transformer_blocks"
    #: Classes whose modules stay whole when the model is sharded.
    NO_SPLIT_MODULES: ClassVar[tuple[str, ...]] = ("TransformerBlock",)
    #: Parameters whose names contain one of these keep their precision when the rest is quantised.
    SENSITIVE: ClassVar[tuple[str, ...]] = SENSITIVE

    def __init__(self, config: TransformerConfig) -> None:
        super().__init__()
        self.config = config
        self.gradient_checkpointing = False
        video, audio = config.video, config.audio
        if video:
            self.patchify_proj = nn.Linear(video.in_channels, video.width)
            self.adaln_single = AdaLayerNormSingle(video.width, config.modulation_rows)
            self.scale_shift_table = modulation_table(2, video.width)
            self.proj_out = nn.Linear(video.width, video.out_channels)
            self.caption_projection, self.prompt_adaln_single = self._text_layers(video)
            if config.use_keyframes_abs_pos_embedding:
                self.keyframes_abs_pos_embedding = nn.Parameter(torch.zeros(1, video.width))
        if audio:
            self.audio_patchify_proj = nn.Linear(audio.in_channels, audio.width)
            self.audio_adaln_single = AdaLayerNormSingle(audio.width, config.modulation_rows)
            self.audio_scale_shift_table = modulation_table(2, audio.width)
            self.audio_proj_out = nn.Linear(audio.width, audio.out_channels)
            self.audio_caption_projection, self.audio_prompt_adaln_single = self._text_layers(audio)
        if video and audio:
            self.av_ca_video_scale_shift_adaln_single = AdaLayerNormSingle(video.width, 4)
            self.av_ca_a2v_gate_adaln_single = AdaLayerNormSingle(video.width, 1)
            self.av_ca_audio_scale_shift_adaln_single = AdaLayerNormSingle(audio.width, 4)
            self.av_ca_v2a_gate_adaln_single = AdaLayerNormSingle(audio.width, 1)
        self.transformer_blocks = nn.ModuleList(
            [TransformerBlock(config.of_block(i)) for i in range(config.num_layers)]
        )

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
        passage = self.enter(video, audio, perturbations, max_batch_size)
        self.advance(passage, self.num_blocks)
        return self.leave(passage)

    def enter(
        self,
        video: Modality | None,
        audio: Modality | None,
        perturbations: BatchedPerturbationConfig | None,
        max_batch_size: int | None,
    ) -> Passage:
        """Samples before the first block. Raises as ``forward``."""
        modalities = check_modalities(self.config, video, audio)
        size = next(iter(modalities.values())).latent.shape[0]
        perturbations = check_perturbations(perturbations, size)
        if max_batch_size is not None and max_batch_size < 1:
            raise ConfigError(f"max_batch_size is {max_batch_size}, expected at least 1")
        modalities = self._with_text_memory(modalities, perturbations)
        return Passage(
            modalities,
            perturbations,
            perturbations.segments(self.num_blocks),
            max_batch_size or size,
            cache(lambda samples: self.prepare(select(modalities, samples))),
            cache(lambda samples: self.texts(select(modalities, samples))),
        )

    def advance(self, passage: Passage, last: int) -> None:
        """Take samples through the blocks below ``last``."""
        for segment in passage.segments:
            blocks = range(max(segment.first, passage.done), min(segment.last, last))
            if blocks and segment is not passage.segment:
                self.gather(passage, segment)
            for index in blocks:
                for group in passage.groups:
                    group.tokens = self.run_block(index, group)
                self._forget_texts(passage.modalities)
                passage.done = index + 1

    def gather(self, passage: Passage, segment: Segment) -> None:
        """One row for all samples that do not differ in ``segment``, embedded or from the segment before."""
        perturbations, rows, before = passage.perturbations, passage.rows, passage.segment
        latent = next(iter(passage.modalities.values())).latent
        passage.groups = [
            Group(
                samples,
                join([rows[before.row_of[sample]] for sample in samples])
                if before
                else self.embed(select(passage.modalities, samples)),
                passage.inputs(perturbations.alike_but_text(samples)),
                passage.texts(perturbations.alike(samples)),
                perturbations.select(samples).block_keeps(self.num_blocks, latent.device, latent.dtype),
            )
            for samples in sub_batches(segment.samples, passage.batch)
        ]
        passage.segment = segment

    def leave(self, passage: Passage) -> tuple[Tensor | None, Tensor | None]:
        """The output heads, and each sample's velocity from its row."""
        assert passage.segment is not None
        rows = [row for group in passage.groups for row in split(self.heads(group.tokens, group.inputs))]
        velocities = join([rows[row] for row in passage.segment.row_of])
        return velocities.get("video"), velocities.get("audio")

    def embed(self, modalities: Mapping[str, Modality]) -> Tokens:
        """The tokens the first block receives, ``[B, T, width]``."""
        tokens = {name: self.layers(name).patchify_proj(modality.latent) for name, modality in modalities.items()}
        if "video" in tokens and self.config.use_keyframes_abs_pos_embedding:
            x, mask = tokens["video"], modalities["video"].keyframes_mask
            if mask is not None:
                tokens["video"] = x + (mask > 0) * self.keyframes_abs_pos_embedding.to(x.dtype)
        return tokens

    def prepare(self, modalities: Mapping[str, Modality]) -> dict[str, StreamInputs]:
        """Inputs of the blocks besides tokens and texts: noise levels, positions, attention strengths."""
        config = self.config
        inputs = {}
        for name, modality in modalities.items():
            own, dtype, levels = self.layers(name), modality.latent.dtype, modality.grouped_timesteps()
            rows, embedded = own.adaln_single(levels.values * config.timestep_scale_multiplier, dtype)
            prompt = None
            if own.prompt_adaln_single is not None:
                prompt_rows, _ = own.prompt_adaln_single(modality.noise_level * config.timestep_scale_multiplier, dtype)
                prompt = Modulation(prompt_rows)
            points = token_points(modality.positions, config.use_middle_indices_grid)
            inputs[name] = StreamInputs(
                runs=modality.enabled,
                modulation=Modulation(rows, levels.index),
                embedded_timestep=Modulation(embedded[:, None].expand(-1, 2, -1), levels.index),
                rope=self_rope(config, name).table(points, dtype),
                prompt_modulation=prompt,
                self_attention_bias=modality.attention_bias(),
                cross=self._cross_inputs(name, modalities, levels) if len(modalities) == 2 else None,
            )
        return inputs

    def _cross_inputs(self, name: str, modalities: Mapping[str, Modality], levels: TimestepGroups) -> CrossInputs:
        """Scale and shift go by the stream's own timesteps, the gate by the other stream's sigma."""
        modality, config = modalities[name], self.config
        other = "audio" if name == "video" else "video"
        scale_shift, gate = self.av_ca_audio_scale_shift_adaln_single, self.av_ca_v2a_gate_adaln_single
        if name == "video":
            scale_shift, gate = self.av_ca_video_scale_shift_adaln_single, self.av_ca_a2v_gate_adaln_single
        dtype, multiplier = modality.latent.dtype, config.timestep_scale_multiplier
        gate_multiplier = config.av_ca_timestep_scale_multiplier / multiplier
        scale_shift_rows, _ = scale_shift(levels.values * multiplier, dtype)
        gate_rows, _ = gate(modalities[other].noise_level * multiplier * gate_multiplier, dtype)
        points = token_points(modality.positions[:, :1], config.use_middle_indices_grid)
        return CrossInputs(
            rope=cross_rope(config, name).table(points, dtype),
            scale_shift=Modulation(scale_shift_rows, levels.index),
            gate=Modulation(gate_rows),
        )

    def texts(self, modalities: Mapping[str, Modality]) -> dict[str, TextInputs]:
        """The texts as the blocks read them."""
        return {
            name: TextInputs(
                self._context(name, each),
                each.text_memory,
                context_bias(each.context_mask, each.latent.dtype, self.config.context_mask_penalty),
            )
            for name, each in modalities.items()
        }

    def _context(self, name: str, modality: Modality) -> Tensor:
        """Text features as wide as the stream ``[B, S, width]``, from memory where it has them."""
        context, memory, project = modality.context, modality.text_memory, self.layers(name).caption_projection
        if project is None:
            return context
        if memory is None:
            return project(context)
        return memory.recall(self, name, lambda sample: (project(context[sample : sample + 1]),))[0]

    def run_block(self, index: int, group: Group) -> Tokens:
        """The tokens of a group after one block."""
        block = self.transformer_blocks[index]
        arguments = (group.tokens, group.inputs, group.texts, group.keeps[index])
        if self.gradient_checkpointing and self.training:
            return checkpoint(block, *arguments, use_reentrant=False)
        return block(*arguments)

    def heads(self, tokens: Tokens, inputs: Mapping[str, StreamInputs]) -> Tokens:
        """Velocities ``[B, T, C]`` of the last block's tokens."""
        return {name: self.head(name, x, inputs[name].embedded_timestep) for name, x in tokens.items()}

    def head(self, name: str, x: Tensor, embedded_timestep: Modulation) -> Tensor:
        """Velocity ``[B, T, C]`` of one stream's tokens ``[B, T, width]``."""
        own = self.layers(name)
        shift, scale = (embedded_timestep.row(number, own.scale_shift_table) for number in (0, 1))
        y = F.layer_norm(x, (x.shape[-1],), eps=self.config.out_norm_eps)
        return own.proj_out(scale_and_shift(y, scale, shift))

    def layers(self, name: str) -> OuterLayers:
        """The layers before and after the blocks for the stream ``"video"`` or ``"audio"``."""
        if name == "video":
            return OuterLayers(
                self.patchify_proj,
                self.adaln_single,
                self.prompt_adaln_single,
                self.caption_projection,
                self.scale_shift_table,
                self.proj_out,
            )
        return OuterLayers(
            self.audio_patchify_proj,
            self.audio_adaln_single,
            self.audio_prompt_adaln_single,
            self.audio_caption_projection,
            self.audio_scale_shift_table,
            self.audio_proj_out,
        )

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

    def _with_text_memory(
        self, modalities: Mapping[str, Modality], perturbations: BatchedPerturbationConfig
    ) -> dict[str, Modality]:
        """With a memory of each text: the caller's where text is the same at every step, else one for this forward."""

        def memory(given: TextMemory | None) -> TextMemory | None:
            if not optimizations().kept_text or torch.is_grad_enabled():
                return None
            if self.config.has_static_text and given is not None:
                return given
            labels = perturbations.same_as
            return TextMemory(labels) if len(set(labels)) < len(labels) else None

        return {
            name: replace(modality, text_memory=memory(modality.text_memory)) for name, modality in modalities.items()
        }

    def _forget_texts(self, modalities: Mapping[str, Modality]) -> None:
        """Text that serves this forward alone is not needed after its block."""
        for modality in modalities.values():
            if modality.text_memory is not None and not self.config.has_static_text:
                modality.text_memory.kept.clear()

    def _text_layers(self, stream: StreamConfig) -> tuple[TextProjection | None, AdaLayerNormSingle | None]:
        config = self.config
        return (
            None if config.caption_channels is None else TextProjection(config.caption_channels, stream.width),
            AdaLayerNormSingle(stream.width, 2) if config.use_prompt_adaln_single else None,
        )


class X0Model(nn.Module):
    """A velocity model that answers with denoised latents.

    ``velocity_model`` is an `LTXModel`, or whatever is called as its ``forward`` is. Its blocks are given at most
    ``max_batch_size`` samples at a time; None: all.
    """

    def __init__(
        self, velocity_model: Callable[..., tuple[Tensor | None, Tensor | None]], max_batch_size: int | None = None
    ) -> None:
        super().__init__()
        self.velocity_model: Any = velocity_model
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
