"""One transformer block: a video stream, an audio stream, and two attentions that join them.

Per stream (audio names start with ``audio_``), width w::

    attn1.*  attn2.*  ff.*         self-attention, text attention, feed-forward
    scale_shift_table [6 or 9, w]  prompt_scale_shift_table [2, w]  (only with cross_attention_adaln)

Joined: ``audio_to_video_attn.*``, ``video_to_audio_attn.*``, ``scale_shift_table_a2v_ca_{video,audio} [5, w]``.

Rows of ``scale_shift_table``: shift, scale, gate of self-attention (0-2), feed-forward (3-5), text attention (6-8).
Rows of the joining tables: scale, shift towards video (0-1), scale, shift towards audio (2-3), gate (4).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import NamedTuple

import torch
from torch import Tensor, nn

from ltx_core.guidance.perturbations import SKIP_SELF_ATTENTION, BlockKeep, Keep, PerturbationType
from ltx_core.model.transformer.attention import Attention, Bypass, KeysValues, keep_or_replace
from ltx_core.model.transformer.config import StreamConfig, TransformerConfig
from ltx_core.model.transformer.layers import FeedForward, Modulation, scale_and_shift
from ltx_core.model.transformer.masks import AttentionBias
from ltx_core.model.transformer.modality import TextMemory
from ltx_core.model.transformer.rope import RotaryTable
from ltx_core.utils import rms_norm

#: Tokens of each stream that is present, ``[B, T, width]``: what one block hands to the next.
Tokens = dict[str, Tensor]

CROSS_GATE = 4  # row of the joining tables


@dataclass(frozen=True)
class CrossInputs:
    """Inputs from one stream to the attentions between the streams."""

    rope: RotaryTable  # time axis only
    scale_shift: Modulation  # 4 rows, by the stream's own timesteps
    gate: Modulation  # 1 row, by the other stream's sigma


@dataclass(frozen=True)
class StreamInputs:
    """Inputs of every block for one stream besides tokens and text. All may have a batch of 1 for every sample."""

    runs: bool  # the stream's tokens are updated
    modulation: Modulation  # 6 or 9 rows
    embedded_timestep: Modulation  # 2 equal rows, for the output head
    rope: RotaryTable
    prompt_modulation: Modulation | None = None  # 2 rows
    self_attention_bias: AttentionBias | None = None  # [B, 1, T, T], or by groups of queries
    cross: CrossInputs | None = None  # only when both streams are present


class TextInputs(NamedTuple):
    """The text that one stream attends to."""

    context: Tensor  # [B, S, width]
    memory: TextMemory | None = None  # keeps projections of ``context``; None: they are made when needed
    bias: Tensor | None = None  # broadcasts against [B, H, T, S]


class StreamLayers(NamedTuple):
    """The layers of one stream."""

    attn1: Attention
    attn2: Attention
    ff: FeedForward
    table: Tensor  # [6 or 9, w]
    prompt_table: Tensor | None  # [2, w]

    def rows(self, inputs: StreamInputs, first: int) -> tuple[Tensor, Tensor, Tensor]:
        """Shift, scale and gate of one branch: three rows from ``first`` on."""
        shift, scale, gate = (inputs.modulation.row(first + offset, self.table) for offset in range(3))
        return shift, scale, gate

    def project_text(self, context: Tensor, modulation: Modulation | None) -> KeysValues:
        """Keys and values of the text ``[B, S, w]``; the same at every step where nothing modulates the text."""
        if self.prompt_table is not None:
            rows = modulation or Modulation(context.new_zeros(1, 2, 1))  # the table alone
            context = scale_and_shift(context, rows.row(1, self.prompt_table), rows.row(0, self.prompt_table))
        return self.attn2.project_context(context)


class CrossLayers(NamedTuple):
    """The attention in which one stream reads the other."""

    target: str
    source: str
    attention: Attention
    target_table: Tensor  # [5, w of the target]
    source_table: Tensor
    first: int  # row of the tables: scale, the shift follows it
    skip: PerturbationType

    def __call__(self, normed: Tokens, to: CrossInputs, by: CrossInputs, kept: Keep) -> tuple[Tensor, Tensor]:
        """Gate and result for the target's tokens, from both streams' normalised ones ``[B, T, w]``."""
        queries = self._modulate(normed[self.target], to, self.target_table)
        context = self._modulate(normed[self.source], by, self.source_table)
        gate = to.gate.row(0, self.target_table[CROSS_GATE:])
        y = self.attention(queries, context, rope=to.rope, key_rope=by.rope)
        return gate * kept if isinstance(kept, Tensor) else gate, y

    def _modulate(self, x: Tensor, cross: CrossInputs, table: Tensor) -> Tensor:
        scale, shift = (cross.scale_shift.row(self.first + offset, table) for offset in range(2))
        return scale_and_shift(x, scale, shift)


class TransformerBlock(nn.Module):
    """Self-attention, text attention, attention between the streams, feed-forward."""

    def __init__(self, config: TransformerConfig) -> None:
        super().__init__()
        self.config = config
        video, audio = config.video, config.audio
        if video:
            self.attn1, self.attn2, self.ff = self._stream(video)
            self.scale_shift_table = modulation_table(config.modulation_rows, video.width)
            self.prompt_scale_shift_table = self._prompt_table(video)
        if audio:
            self.audio_attn1, self.audio_attn2, self.audio_ff = self._stream(audio)
            self.audio_scale_shift_table = modulation_table(config.modulation_rows, audio.width)
            self.audio_prompt_scale_shift_table = self._prompt_table(audio)
        if video and audio:
            self.audio_to_video_attn = self._attention(video.width, audio.width, audio)
            self.video_to_audio_attn = self._attention(audio.width, video.width, audio)
            self.scale_shift_table_a2v_ca_video = modulation_table(5, video.width)
            self.scale_shift_table_a2v_ca_audio = modulation_table(5, audio.width)

    def forward(
        self, tokens: Tokens, inputs: Mapping[str, StreamInputs], texts: Mapping[str, TextInputs], keep: BlockKeep
    ) -> Tokens:
        """The next tokens of every stream; one that does not run, or that this block lacks, keeps its own."""
        own = {name: x for name, x in tokens.items() if name in self.config.streams}
        # 0. Keys and values of the texts, which may be known from an earlier pass or step.
        projected = {name: self.text(name, inputs[name], texts[name]) for name in own if inputs[name].runs}
        return {**tokens, **self.compute(own, inputs, projected, keep)}

    def compute(
        self, tokens: Tokens, inputs: Mapping[str, StreamInputs], texts: Mapping[str, KeysValues], keep: BlockKeep
    ) -> Tokens:
        """All that depends on the tokens; what is compiled where compiling is on."""
        config, x = self.config, dict(tokens)
        eps, layers = config.norm_eps, {name: self.layers(name) for name in tokens}
        running = [name for name in tokens if inputs[name].runs]

        for name in running:
            own, given = layers[name], inputs[name]
            # 1. Self-attention, or what stands for it in perturbed samples.
            shift, scale, gate = own.rows(given, first=0)
            y = scale_and_shift(rms_norm(x[name], eps=eps), scale, shift)
            y = own.attn1(y, rope=given.rope, bias=given.self_attention_bias, bypass=_self_attention_bypass(name, keep))
            x[name] = torch.addcmul(x[name], gate, y)

            # 2. Text attention: modulated and gated with nine rows, plain with six.
            y = rms_norm(x[name], eps=eps) if config.cross_attention_norm else x[name]
            if config.cross_attention_adaln:
                shift, scale, gate = own.rows(given, first=6)
                y = own.attn2(scale_and_shift(y, scale, shift), texts[name], bias=texts[name].bias)
                x[name] = torch.addcmul(x[name], gate, y)
            else:
                x[name] = x[name] + own.attn2(y, texts[name], bias=texts[name].bias)

        # 3. Attention between the streams. Each reads the tokens from before either has written.
        if len(x) == 2 and running:
            normed = {name: rms_norm(each, eps=eps) for name, each in x.items()}
            for way in self.cross_layers():
                kept, to, by = keep.get(way.skip, True), inputs[way.target].cross, inputs[way.source].cross
                if way.target in running and kept is not False and to is not None and by is not None:
                    gate, y = way(normed, to, by, kept)
                    x[way.target] = torch.addcmul(x[way.target], gate, y)

        # 4. Feed-forward.
        for name in running:
            shift, scale, gate = layers[name].rows(inputs[name], first=3)
            y = layers[name].ff(scale_and_shift(rms_norm(x[name], eps=eps), scale, shift))
            x[name] = torch.addcmul(x[name], gate, y)

        # 5. A skipped block gives what it was given.
        if "video" in running:
            kept = keep.get(PerturbationType.SKIP_VIDEO_BLOCK, True)
            x["video"] = keep_or_replace(x["video"], tokens["video"], kept)
        return x

    def text(self, name: str, inputs: StreamInputs, text: TextInputs) -> KeysValues:
        """Keys and values of the text of every sample, from memory where it has them."""
        own, modulation = self.layers(name), inputs.prompt_modulation
        if text.memory is None:
            return replace(own.project_text(text.context, modulation), bias=text.bias)

        def project(sample: int) -> tuple[Tensor, Tensor]:
            one = own.project_text(text.context[sample : sample + 1], modulation and modulation.of_sample(sample))
            assert one.keys is not None
            return one.keys, one.values

        keys, values = text.memory.recall(self, name, project)
        return KeysValues(keys, values, text.bias)

    def layers(self, name: str) -> StreamLayers:
        """The layers of the stream ``"video"`` or ``"audio"``."""
        if name == "video":
            return StreamLayers(self.attn1, self.attn2, self.ff, self.scale_shift_table, self.prompt_scale_shift_table)
        return StreamLayers(
            self.audio_attn1,
            self.audio_attn2,
            self.audio_ff,
            self.audio_scale_shift_table,
            self.audio_prompt_scale_shift_table,
        )

    def cross_layers(self) -> tuple[CrossLayers, CrossLayers]:
        """The attentions between the streams."""
        video, audio = self.scale_shift_table_a2v_ca_video, self.scale_shift_table_a2v_ca_audio
        a2v, v2a = PerturbationType.SKIP_A2V_CROSS_ATTN, PerturbationType.SKIP_V2A_CROSS_ATTN
        return (
            CrossLayers("video", "audio", self.audio_to_video_attn, video, audio, 0, a2v),
            CrossLayers("audio", "video", self.video_to_audio_attn, audio, video, 2, v2a),
        )

    def _stream(self, stream: StreamConfig) -> tuple[Attention, Attention, FeedForward]:
        attn1, attn2 = (self._attention(stream.width, stream.width, stream) for _ in range(2))
        return attn1, attn2, FeedForward(stream.width, stream.ff_bias)

    def _prompt_table(self, stream: StreamConfig) -> nn.Parameter | None:
        return modulation_table(2, stream.width) if self.config.cross_attention_adaln else None

    def _attention(self, query_width: int, context_width: int, layout: StreamConfig) -> Attention:
        gated, eps = self.config.apply_gated_attention, self.config.qk_norm_eps
        return Attention(query_width, context_width, layout.heads, layout.head_dim, gated=gated, eps=eps)


def modulation_table(num_rows: int, width: int) -> nn.Parameter:
    """A learned table of rows, small at first."""
    return nn.Parameter(nn.init.normal_(torch.empty(num_rows, width), std=width**-0.5))


def _self_attention_bypass(name: str, keep: BlockKeep) -> Bypass:
    from_input = keep.get(PerturbationType.PASS_VIDEO_SELF_ATTN_INPUT, True) if name == "video" else True
    return Bypass(keep.get(SKIP_SELF_ATTENTION[name], True), from_input)
