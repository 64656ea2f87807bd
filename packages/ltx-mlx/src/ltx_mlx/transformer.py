"""The denoiser in MLX: the same tensor tree, formulas and shared guidance passes as ``ltx_core.model.transformer``.

::

    latent [B, T, C] --patchify_proj--> tokens [B, T, w] --blocks--> LayerNorm, scale, shift, proj_out --> velocity
    timesteps --adaln_single--> rows per distinct noise level [R, k, w]
    positions --> rotary tables;  text [B, S, c] --caption_projection (19B, LTX-Video)--> [B, S, w]

``LTXModel`` takes ``Modality`` values of torch tensors and returns torch tensors; inside all is MLX. Rotary tables come
from the shared torch formula: angles reach 15708 rad, where the order of float32 operations shows, and Apple's GPUs
have no float64. Tensor names are listed in ``ltx_core.model.transformer``.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, ClassVar

import mlx.core as mx
import mlx.nn as nn
import torch
from torch import Tensor

from ltx_core.errors import ConfigError
from ltx_core.guidance.perturbations import SKIP_SELF_ATTENTION, BatchedPerturbationConfig, PerturbationType, Segment
from ltx_core.model.transformer.config import STREAMS, StreamConfig, TransformerConfig
from ltx_core.model.transformer.masks import AttentionBias, context_bias
from ltx_core.model.transformer.modality import Modality, TimestepGroups, check_modalities, check_perturbations
from ltx_core.model.transformer.passage import sub_batches
from ltx_core.model.transformer.rope import RotaryEmbedding, cross_rope, self_rope, token_points
from ltx_core.optimizations import optimizations
from ltx_mlx.arrays import DTYPES, TORCH_DTYPES, to_mlx, to_torch
from ltx_mlx.layers import SINUSOID_WIDTH, RMSNorm, attention, gelu, rms_norm, silu, sinusoid

Tokens = dict[str, mx.array]  # [B, T, width] of each stream that is present
Keep = mx.array | bool  # True: all samples keep the operation; False: none; an array [B, 1, 1]: 1 keep, 0 perturbed
Keeps = Mapping[PerturbationType, Keep]

#: Additive and dense ``[B, 1, T, T]``, or neighbouring queries, the keys they see and their bias, group by group.
Mask = mx.array | tuple[tuple[slice, slice, mx.array | None], ...] | None

BLOCKS_PER_EVALUATION = 4  # Metal ends command buffers that run for seconds, and a graph holds what it computes with
PREFIX = {"video": "", "audio": "audio_"}
OTHER = {"video": "audio", "audio": "video"}
SKIP_CROSS = {"video": PerturbationType.SKIP_A2V_CROSS_ATTN, "audio": PerturbationType.SKIP_V2A_CROSS_ATTN}
SCALE_ROW = {"video": 0, "audio": 2}  # of the attention into a stream, in the joining tables; the shift follows it
GATE_ROW = 4
GATE_ADALN = {"video": "av_ca_a2v_gate_adaln_single", "audio": "av_ca_v2a_gate_adaln_single"}


@dataclass(frozen=True)
class Rope:
    """Cosines and sines of every token: split ``[B, T, H, head_dim / 2]`` or interleaved ``[B, T, dim]``."""

    cos: mx.array
    sin: mx.array

    @classmethod
    def of(cls, embedding: RotaryEmbedding, points: Tensor, dtype: torch.dtype) -> Rope:
        table = embedding.table(points.cpu(), dtype)
        cos, sin = (part.transpose(1, 2) if part.ndim == 4 else part for part in (table.cos, table.sin))
        return cls(to_mlx(cos), to_mlx(sin))

    def rotate(self, x: mx.array) -> mx.array:
        """Rotate ``[B, T, dim]`` in its own dtype."""
        if self.cos.ndim == 4:
            heads = x.reshape(*x.shape[:2], self.cos.shape[2], 2, -1)
            first, second = heads[..., 0, :], heads[..., 1, :]
            halves = [first * self.cos - second * self.sin, second * self.cos + first * self.sin]
            return mx.stack(halves, axis=-2).reshape(x.shape)
        pairs = x.reshape(*x.shape[:2], -1, 2)
        turned = mx.stack([-pairs[..., 1], pairs[..., 0]], axis=-1).reshape(x.shape)
        return x * self.cos + turned * self.sin


@dataclass(frozen=True)
class Modulation:
    """k rows for each of R noise levels, and the level of every token; without ``index`` level b serves sample b."""

    rows: mx.array  # [R, k, width]
    index: mx.array | None = None  # [B, T]

    def row(self, number: int, table: mx.array | None = None) -> mx.array:
        """Row ``number`` for every token, ``[B, 1 or T, width]``, with the same row of a block's table added."""
        values = self.rows[:, number]
        if table is not None:
            values = table[number].astype(values.dtype) + values
        return values[:, None] if self.index is None else values[self.index]


@dataclass(frozen=True)
class CrossInputs:
    """Inputs from one stream to the cross-modal attentions."""

    rope: Rope  # time axis only
    scale_shift: Modulation  # 4 rows, by the stream's own timesteps
    gate: Modulation  # 1 row, by the other stream's sigma


@dataclass(frozen=True)
class StreamInputs:
    """Inputs of every block for one stream besides its tokens."""

    runs: bool
    modulation: Modulation  # 6 or 9 rows
    embedded: Modulation  # 2 equal rows, for the output head
    rope: Rope
    prompt: Modulation | None = None  # 2 rows
    self_mask: Mask = None
    cross: CrossInputs | None = None
    context: mx.array | None = None  # [B, S, width]
    context_mask: mx.array | None = None  # broadcasts against [B, H, T, S]
    text_labels: tuple[int, ...] = ()  # samples with equal labels have equal texts
    text_memory: dict[Any, Any] | None = None  # projections of the text that serve every step; None: of a block's own


class Attention(nn.Module):
    """Self-attention, text attention or cross-modal attention, by what it is given."""

    def __init__(
        self, query_width: int, context_width: int, heads: int, head_dim: int, gated: bool, eps: float
    ) -> None:
        super().__init__()
        inner = heads * head_dim
        self.heads = heads
        self.to_q = nn.Linear(query_width, inner)
        self.to_k = nn.Linear(context_width, inner)
        self.to_v = nn.Linear(context_width, inner)
        self.q_norm = RMSNorm(inner, eps)  # over all heads together
        self.k_norm = RMSNorm(inner, eps)
        if gated:
            self.to_gate_logits = nn.Linear(query_width, heads)
        self.to_out = [nn.Linear(inner, query_width)]

    def keys_values(self, context: mx.array, rope: Rope | None = None) -> tuple[mx.array, mx.array]:
        """Keys, normalised and rotated, and values ``[B, Tk, inner]`` of ``context`` ``[B, Tk, context_width]``."""
        keys = self.k_norm(self.to_k(context))
        return keys if rope is None else rope.rotate(keys), self.to_v(context)

    def __call__(
        self,
        x: mx.array,
        known: tuple[mx.array, mx.array] | None = None,
        rope: Rope | None = None,
        mask: Mask = None,
        keep: Keep = True,
        keep_from_input: Keep = True,
    ) -> mx.array:
        """Queries of ``x`` ``[B, Tq, query_width]``; ``known`` are keys and values, None: those of ``x``.

        Samples that ``keep`` drops pass their values on instead, those of ``keep_from_input`` their input.
        """
        keys, values = self.keys_values(x, rope) if known is None else known
        if keep is False or keep_from_input is False:
            out = values
        else:
            queries = self.q_norm(self.to_q(x))
            out = self._attend(queries if rope is None else rope.rotate(queries), keys, values, mask)
        out = keep_or_replace(keep_or_replace(out, values, keep), x, keep_from_input)
        if "to_gate_logits" in self:  # a zero logit changes nothing
            gates = 2 * mx.sigmoid(self.to_gate_logits(x))
            out = (out.reshape(*out.shape[:2], self.heads, -1) * gates[..., None]).reshape(out.shape)
        return self.to_out[0](out)

    def _attend(self, q: mx.array, k: mx.array, v: mx.array, mask: Mask) -> mx.array:
        if not isinstance(mask, tuple):
            return attention(q, k, v, self.heads, mask)
        groups = [attention(q[:, own], k[:, seen], v[:, seen], self.heads, bias) for own, seen, bias in mask]
        return mx.concatenate(groups, axis=1)


def keep_or_replace(result: mx.array, replacement: mx.array, keep: Keep) -> mx.array:
    """``result`` for kept samples, ``replacement`` for the others."""
    if isinstance(keep, bool):
        return result if keep else replacement
    return result * keep + replacement * (1 - keep)


class GeluProjection(nn.Module):
    """A linear layer followed by GELU."""

    def __init__(self, in_features: int, out_features: int, bias: bool) -> None:
        super().__init__()
        self.proj = nn.Linear(in_features, out_features, bias=bias)

    def __call__(self, x: mx.array) -> mx.array:
        return gelu(self.proj(x))


class FeedForward(nn.Module):
    """``net.2(gelu(net.0.proj(x)))``, four times as wide inside."""

    def __init__(self, width: int, bias: bool = True) -> None:
        super().__init__()
        self.net = [GeluProjection(width, 4 * width, bias), nn.Identity(), nn.Linear(4 * width, width, bias=bias)]

    def __call__(self, x: mx.array) -> mx.array:
        return self.net[2](self.net[0](x))


class TextProjection(nn.Module):
    """Text features ``[B, S, c]`` to a stream's width."""

    def __init__(self, in_features: int, width: int) -> None:
        super().__init__()
        self.linear_1 = nn.Linear(in_features, width)
        self.linear_2 = nn.Linear(width, width)

    def __call__(self, text: mx.array) -> mx.array:
        return self.linear_2(gelu(self.linear_1(text)))


class AdaLayerNormSingle(nn.Module):
    """The rows of one noise level, shared by all blocks: scaled timesteps ``[R]`` to ``[R, k, w]`` and ``[R, w]``."""

    def __init__(self, width: int, num_rows: int) -> None:
        super().__init__()
        self.emb = {"timestep_embedder": TimestepEmbedder(width)}
        self.linear = nn.Linear(width, num_rows * width)

    def __call__(self, timesteps: mx.array, dtype: mx.Dtype) -> tuple[mx.array, mx.array]:
        embedded = self.emb["timestep_embedder"](sinusoid(timesteps).astype(dtype))
        rows = self.linear(silu(embedded))
        return rows.reshape(rows.shape[0], -1, embedded.shape[-1]), embedded


class TimestepEmbedder(nn.Module):
    """``linear_2(silu(linear_1(sinusoid)))``."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.linear_1 = nn.Linear(SINUSOID_WIDTH, width)
        self.linear_2 = nn.Linear(width, width)

    def __call__(self, sinusoids: mx.array) -> mx.array:
        return self.linear_2(silu(self.linear_1(sinusoids)))


def scale_and_shift(x: mx.array, scale: mx.array, shift: mx.array) -> mx.array:
    return x * (1 + scale) + shift


class TransformerBlock(nn.Module):
    """Self-attention, text attention, cross-modal attention, feed-forward."""

    def __init__(self, config: TransformerConfig) -> None:
        super().__init__()
        self.config = config
        for name, stream in config.streams.items():
            self._add_stream(name, stream)
        if config.video and config.audio:
            video, audio = config.video, config.audio
            self.audio_to_video_attn = self._attention(video.width, audio.width, audio)
            self.video_to_audio_attn = self._attention(audio.width, video.width, audio)
            self.scale_shift_table_a2v_ca_video = mx.zeros((5, video.width))
            self.scale_shift_table_a2v_ca_audio = mx.zeros((5, audio.width))

    def __call__(
        self,
        tokens: Tokens,
        inputs: Mapping[str, StreamInputs],
        keeps: Keeps,
        texts: Mapping[str, TextCache],
    ) -> Tokens:
        """The next tokens of every stream. A stream that does not run stays."""
        before, tokens = tokens, dict(tokens)
        running = [name for name in tokens if inputs[name].runs]
        for name in running:
            tokens[name] = self.self_attention(name, tokens[name], inputs[name], keeps)
            tokens[name] = self.text_attention(name, tokens[name], inputs[name], texts[name])
        if len(tokens) == 2 and running:
            tokens = self.cross_attention(tokens, inputs, keeps)
        for name in running:
            tokens[name] = self.feed_forward(name, tokens[name], inputs[name])
        if "video" in running:
            kept = keeps.get(PerturbationType.SKIP_VIDEO_BLOCK, True)
            tokens["video"] = keep_or_replace(tokens["video"], before["video"], kept)
        return tokens

    def self_attention(self, name: str, x: mx.array, inputs: StreamInputs, keeps: Keeps) -> mx.array:
        shift, scale, gate = self._rows(name, inputs, first=0)
        keep = keeps.get(SKIP_SELF_ATTENTION[name], True)
        from_input = keeps.get(PerturbationType.PASS_VIDEO_SELF_ATTN_INPUT, True) if name == "video" else True
        y = scale_and_shift(rms_norm(x, self.config.norm_eps), scale, shift)
        return x + gate * self.part(name, "attn1")(y, None, inputs.rope, inputs.self_mask, keep, from_input)

    def text_attention(self, name: str, x: mx.array, inputs: StreamInputs, texts: TextCache) -> mx.array:
        """Modulated and gated with nine rows, plain with six."""
        known = texts.of(inputs.text_labels, lambda row: self.text(name, inputs, row))
        y, gate = rms_norm(x, self.config.norm_eps) if self.config.cross_attention_norm else x, None
        if self.config.cross_attention_adaln:
            shift, scale, gate = self._rows(name, inputs, first=6)
            y = scale_and_shift(y, scale, shift)
        y = self.part(name, "attn2")(y, known, mask=inputs.context_mask)
        return x + y if gate is None else x + gate * y

    def text(self, name: str, inputs: StreamInputs, row: int) -> tuple[mx.array, mx.array]:
        """Keys and values of the text of sample ``row``, ``[1, S, inner]`` each."""
        assert inputs.context is not None
        context = inputs.context[row : row + 1]
        if self.config.cross_attention_adaln:
            table = self.part(name, "prompt_scale_shift_table").astype(context.dtype)[None]
            if inputs.prompt is not None:
                rows = inputs.prompt.rows
                table = table + (rows if rows.shape[0] == 1 else rows[row : row + 1])
            context = scale_and_shift(context, table[:, 1:], table[:, :1])
        return self.part(name, "attn2").keys_values(context)

    def cross_attention(self, tokens: Tokens, inputs: Mapping[str, StreamInputs], keeps: Keeps) -> Tokens:
        """Both directions. Each reads the tokens from before either has written."""
        normed = {name: rms_norm(x, self.config.norm_eps) for name, x in tokens.items()}
        result = dict(tokens)
        for name in STREAMS:
            kept, other = keeps.get(SKIP_CROSS[name], True), OTHER[name]
            target, source = inputs[name].cross, inputs[other].cross
            if not inputs[name].runs or kept is False or target is None or source is None:
                continue
            queries = self._joining(name, normed[name], target, SCALE_ROW[name])
            context = self._joining(other, normed[other], source, SCALE_ROW[name])
            module = self[f"{other}_to_{name}_attn"]
            y = module(queries, module.keys_values(context, source.rope), target.rope)
            gate = target.gate.row(0, self._joining_table(name)[GATE_ROW:])
            result[name] = result[name] + (gate if isinstance(kept, bool) else gate * kept) * y
        return result

    def feed_forward(self, name: str, x: mx.array, inputs: StreamInputs) -> mx.array:
        shift, scale, gate = self._rows(name, inputs, first=3)
        return x + gate * self.part(name, "ff")(scale_and_shift(rms_norm(x, self.config.norm_eps), scale, shift))

    def part(self, name: str, part: str) -> Any:
        return self[PREFIX[name] + part]

    def _rows(self, name: str, inputs: StreamInputs, first: int) -> tuple[mx.array, mx.array, mx.array]:
        """Shift, scale and gate of one branch."""
        table = self.part(name, "scale_shift_table")
        shift, scale, gate = (inputs.modulation.row(first + offset, table) for offset in range(3))
        return shift, scale, gate

    def _joining(self, name: str, normed: mx.array, cross: CrossInputs, first: int) -> mx.array:
        scale, shift = (cross.scale_shift.row(first + offset, self._joining_table(name)) for offset in range(2))
        return scale_and_shift(normed, scale, shift)

    def _joining_table(self, name: str) -> mx.array:
        return self[f"scale_shift_table_a2v_ca_{name}"]

    def _add_stream(self, name: str, stream: StreamConfig) -> None:
        width, prefix = stream.width, PREFIX[name]
        self[f"{prefix}attn1"] = self._attention(width, width, stream)
        self[f"{prefix}attn2"] = self._attention(width, width, stream)
        self[f"{prefix}ff"] = FeedForward(width, stream.ff_bias)
        self[f"{prefix}scale_shift_table"] = mx.zeros((self.config.modulation_rows, width))
        if self.config.cross_attention_adaln:
            self[f"{prefix}prompt_scale_shift_table"] = mx.zeros((2, width))

    def _attention(self, query_width: int, context_width: int, layout: StreamConfig) -> Attention:
        gated, eps = self.config.apply_gated_attention, self.config.qk_norm_eps
        return Attention(query_width, context_width, layout.heads, layout.head_dim, gated, eps)


@dataclass(frozen=True)
class TextCache:
    """Keys and values of the texts one module reads, made once per text."""

    owner: tuple[int, str]  # index of the block, stream
    kept: dict[Any, Any]

    def of(
        self, labels: tuple[int, ...], make: Callable[[int], tuple[mx.array, mx.array]]
    ) -> tuple[mx.array, mx.array]:
        """Results of ``make(sample)`` for each sample ``[1, ...]``, joined; samples with equal labels share one."""
        for sample, label in enumerate(labels):
            if (self.owner, label) not in self.kept:
                self.kept[self.owner, label] = make(sample)
        found = [self.kept[self.owner, label] for label in labels]
        if len(found) == 1:
            return found[0]
        keys, values = (mx.concatenate(list(parts)) for parts in zip(*found, strict=True))
        return keys, values


class LTXModel(nn.Module):
    """The transformer of LTX-2 and LTX-Video, with the streams its config has."""

    #: The list that holds the blocks, the bulk of the weights.
    BLOCK_LIST: ClassVar[str] = "transformer_blocks"

    def __init__(self, config: TransformerConfig) -> None:
        super().__init__()
        self.config = config
        for name, stream in config.streams.items():
            self._add_stream(name, stream)
        if config.video and config.use_keyframes_abs_pos_embedding:
            self.keyframes_abs_pos_embedding = mx.zeros((1, config.video.width))
        if len(config.streams) == 2:
            for name, stream in config.streams.items():
                self[f"av_ca_{name}_scale_shift_adaln_single"] = AdaLayerNormSingle(stream.width, 4)
                self[GATE_ADALN[name]] = AdaLayerNormSingle(stream.width, 1)
        self.transformer_blocks: Sequence[TransformerBlock] = [
            TransformerBlock(config) for _ in range(config.num_layers)
        ]
        self._ropes: dict[tuple[str, torch.dtype], tuple[Tensor, Rope]] = {}

    def __call__(
        self,
        video: Modality | None = None,
        audio: Modality | None = None,
        perturbations: BatchedPerturbationConfig | None = None,
        max_batch_size: int | None = None,
    ) -> tuple[Tensor | None, Tensor | None]:
        """Velocities ``[B, T, C]`` of video and audio; see ``ltx_core.networks.Transformer``."""
        modalities = {
            name: self._cast(modality) for name, modality in check_modalities(self.config, video, audio).items()
        }
        size = next(iter(modalities.values())).batch_size
        if max_batch_size is not None and max_batch_size < 1:
            raise ConfigError(f"max_batch_size is {max_batch_size}, expected at least 1")
        perturbations = check_perturbations(perturbations, size)
        velocities = Passes(self, modalities, perturbations, max_batch_size or size).velocities()
        video_velocity, audio_velocity = (
            None if given is None else to_torch(velocities[name], given.latent)
            for name, given in zip(STREAMS, (video, audio), strict=True)
        )
        return video_velocity, audio_velocity

    @property
    def dtype(self) -> torch.dtype:
        """The type that the network computes in."""
        return TORCH_DTYPES[self.part(next(iter(self.config.streams)), "patchify_proj").weight.dtype]

    def _cast(self, modality: Modality) -> Modality:
        return replace(modality, latent=modality.latent.to(self.dtype), context=modality.context.to(self.dtype))

    @property
    def num_blocks(self) -> int:
        return len(self.transformer_blocks)

    def embed(self, name: str, modality: Modality) -> mx.array:
        """The tokens the first block receives, ``[B, T, width]``."""
        x = self.part(name, "patchify_proj")(to_mlx(modality.latent))
        if name == "video" and self.config.use_keyframes_abs_pos_embedding and modality.keyframes_mask is not None:
            x = x + to_mlx(modality.keyframes_mask > 0) * self.keyframes_abs_pos_embedding.astype(x.dtype)
        return x

    def prepare(self, modalities: Mapping[str, Modality], labels: tuple[int, ...]) -> dict[str, StreamInputs]:
        """Everything the blocks need beside the tokens; samples with equal labels have equal texts."""
        inputs = {}
        for name, modality in modalities.items():
            mask = context_bias(modality.context_mask, modality.latent.dtype, self.config.context_mask_penalty)
            memory = modality.text_memory if self.config.has_static_text and optimizations().kept_text else None
            inputs[name] = replace(
                self._stream_inputs(name, modalities),
                context=self._context(name, modality),
                context_mask=None if mask is None else to_mlx(mask),
                text_labels=labels if memory is None else memory.labels,
                text_memory=None if memory is None else memory.kept,
            )
        return inputs

    def head(self, name: str, x: mx.array, embedded: Modulation) -> mx.array:
        """Velocity ``[B, T, C]`` of the last block's tokens."""
        table = self.part(name, "scale_shift_table")
        shift, scale = (embedded.row(number, table) for number in (0, 1))
        y = mx.fast.layer_norm(x, None, None, self.config.out_norm_eps)
        return self.part(name, "proj_out")(scale_and_shift(y, scale, shift))

    def part(self, name: str, part: str) -> Any:
        return self[PREFIX[name] + part]

    def _stream_inputs(self, name: str, modalities: Mapping[str, Modality]) -> StreamInputs:
        modality, config = modalities[name], self.config
        dtype, multiplier = DTYPES[modality.latent.dtype], config.timestep_scale_multiplier
        levels = modality.grouped_timesteps()
        index = None if levels.index is None else to_mlx(levels.index)
        rows, embedded = self.part(name, "adaln_single")(to_mlx(levels.values * multiplier), dtype)
        prompt = None
        if config.use_prompt_adaln_single:
            prompt_adaln = self.part(name, "prompt_adaln_single")
            prompt = Modulation(prompt_adaln(to_mlx(modality.noise_level * multiplier), dtype)[0])
        points = token_points(modality.positions, config.use_middle_indices_grid)
        return StreamInputs(
            runs=modality.enabled,
            modulation=Modulation(rows, index),
            embedded=Modulation(mx.repeat(embedded[:, None], 2, axis=1), index),
            rope=self._rope(name, self_rope(config, name), points, modality.latent.dtype),
            prompt=prompt,
            self_mask=_mask(modality.attention_bias()),
            cross=self._cross_inputs(name, modalities, levels, index) if len(modalities) == 2 else None,
        )

    def _cross_inputs(
        self, name: str, modalities: Mapping[str, Modality], levels: TimestepGroups, index: mx.array | None
    ) -> CrossInputs:
        """Scale and shift go by the stream's own timesteps, the gate by the other stream's sigma."""
        modality, other, config = modalities[name], modalities[OTHER[name]], self.config
        dtype, multiplier = DTYPES[modality.latent.dtype], config.timestep_scale_multiplier
        scale_shift, _ = self[f"av_ca_{name}_scale_shift_adaln_single"](to_mlx(levels.values * multiplier), dtype)
        gate_multiplier = config.av_ca_timestep_scale_multiplier / multiplier
        gate, _ = self[GATE_ADALN[name]](to_mlx(other.noise_level * multiplier * gate_multiplier), dtype)
        points = token_points(modality.positions[:, :1], use_middle=True)
        rope = self._rope(f"{name} cross", cross_rope(config, name), points, modality.latent.dtype)
        return CrossInputs(rope, Modulation(scale_shift, index), Modulation(gate))

    def _rope(self, use: str, embedding: RotaryEmbedding, points: Tensor, dtype: torch.dtype) -> Rope:
        """The table of these points, kept while they stay the same from step to step."""
        known = self._ropes.get((use, dtype))
        if known is None or not torch.equal(known[0], points):
            known = points.clone(), Rope.of(embedding, points, dtype)
            self._ropes[use, dtype] = known
        return known[1]

    def _context(self, name: str, modality: Modality) -> mx.array:
        context = to_mlx(modality.context)
        return context if self.config.caption_channels is None else self.part(name, "caption_projection")(context)

    def _add_stream(self, name: str, stream: StreamConfig) -> None:
        config, width, prefix = self.config, stream.width, PREFIX[name]
        self[f"{prefix}patchify_proj"] = nn.Linear(stream.in_channels, width)
        self[f"{prefix}adaln_single"] = AdaLayerNormSingle(width, config.modulation_rows)
        self[f"{prefix}scale_shift_table"] = mx.zeros((2, width))
        self[f"{prefix}proj_out"] = nn.Linear(width, stream.out_channels)
        if config.caption_channels is not None:
            self[f"{prefix}caption_projection"] = TextProjection(config.caption_channels, width)
        if config.use_prompt_adaln_single:
            self[f"{prefix}prompt_adaln_single"] = AdaLayerNormSingle(width, 2)


def _mask(bias: AttentionBias | None) -> Mask:
    if isinstance(bias, tuple):
        return tuple((g.queries, g.keys, None if g.bias is None else to_mlx(g.bias)) for g in bias)
    return None if bias is None else to_mlx(bias)


@dataclass
class Group:
    """Rows that go through the blocks together."""

    tokens: Tokens
    inputs: dict[str, StreamInputs]
    keeps: Sequence[Keeps]


class Passes:
    """One forward of a model over a batch of guidance passes, what several passes have in common only once.

    As in ``ltx_core.model.transformer.model``: a row stands for all samples that have not differed so far.
    """

    def __init__(
        self,
        model: LTXModel,
        modalities: dict[str, Modality],
        perturbations: BatchedPerturbationConfig,
        max_batch_size: int,
    ) -> None:
        self.model, self.modalities, self.perturbations = model, modalities, perturbations
        self.max_batch_size = max_batch_size
        self._inputs: dict[tuple[int, ...], dict[str, StreamInputs]] = {}

    def velocities(self) -> dict[str, mx.array]:
        """The velocity of every stream, ``[B, T, C]``."""
        rows: list[Tokens] = []
        row_of: tuple[int, ...] = ()
        groups: list[Group] = []
        for segment in self.perturbations.segments(self.model.num_blocks):
            groups = []
            for samples in sub_batches(segment.samples, self.max_batch_size):
                tokens = join([rows[row_of[s]] for s in samples]) if rows else self._embed(samples)
                groups.append(Group(tokens, self._prepare(samples), self._keeps(samples)))
            self._run(groups, segment)
            rows, row_of = [row for group in groups for row in split(group.tokens)], segment.row_of
        heads = [row for group in groups for row in split(self._apply_heads(group))]
        return join([heads[row] for row in row_of])

    def _run(self, groups: list[Group], segment: Segment) -> None:
        for count, index in enumerate(range(segment.first, segment.last), 1):
            block = self.model.transformer_blocks[index]
            own: dict[str, dict[Any, Any]] = {name: {} for name in self.modalities}
            for group in groups:
                texts = {
                    name: TextCache((index, name), own[name] if each.text_memory is None else each.text_memory)
                    for name, each in group.inputs.items()
                }
                group.tokens = block(group.tokens, group.inputs, group.keeps[index], texts)
            if count % BLOCKS_PER_EVALUATION == 0:
                mx.eval([group.tokens for group in groups])
        mx.eval([group.tokens for group in groups])

    def _apply_heads(self, group: Group) -> Tokens:
        return {name: self.model.head(name, x, group.inputs[name].embedded) for name, x in group.tokens.items()}

    def _embed(self, samples: tuple[int, ...]) -> Tokens:
        return {name: self.model.embed(name, modality) for name, modality in self._select(samples).items()}

    def _prepare(self, samples: tuple[int, ...]) -> dict[str, StreamInputs]:
        """The inputs of these samples; once for samples whose inputs are equal."""
        labels = tuple(self.perturbations.same_as[sample] for sample in samples)
        if labels not in self._inputs:
            self._inputs[labels] = self.model.prepare(self._select(samples), labels)
        return self._inputs[labels]

    def _select(self, samples: tuple[int, ...]) -> dict[str, Modality]:
        return {name: modality.select(samples) for name, modality in self.modalities.items()}

    def _keeps(self, samples: tuple[int, ...]) -> Sequence[Keeps]:
        latent = next(iter(self.modalities.values())).latent
        keeps = self.perturbations.select(samples).block_keeps(self.model.num_blocks, latent.device, latent.dtype)
        return [{kind: to_mlx(k) if isinstance(k, Tensor) else k for kind, k in each.items()} for each in keeps]


def join(rows: Sequence[Tokens]) -> Tokens:
    if len(rows) == 1:
        return rows[0]
    return {name: mx.concatenate([row[name] for row in rows]) for name in rows[0]}


def split(tokens: Tokens) -> Iterator[Tokens]:
    """One by one."""
    for row in range(next(iter(tokens.values())).shape[0]):
        yield {name: x[row : row + 1] for name, x in tokens.items()}
