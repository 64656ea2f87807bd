"""One transformer block: a video stream, an audio stream, and two attentions that join them.

Per stream (audio names start with ``audio_``), width w::

    attn1.*  attn2.*  ff.*         self-attention, text attention, feed-forward
    scale_shift_table [6 or 9, w]  prompt_scale_shift_table [2, w]  (only with cross_attention_adaln)

Joined: ``audio_to_video_attn.*``, ``video_to_audio_attn.*``, ``scale_shift_table_a2v_ca_{video,audio} [5, w]``.

Rows of ``scale_shift_table``: shift, scale, gate of self-attention (0-2), feed-forward (3-5), text attention (6-8).
Rows of the joining tables: scale, shift towards video (0-1), scale, shift towards audio (2-3), gate (4).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from ltx_core.guidance.perturbations import PARTS, BlockKeep, Part, PerturbationType
from ltx_core.model.transformer.adaln import Modulation, scale_and_shift
from ltx_core.model.transformer.attention import Attention, Bypass, KeysValues, keep_or_replace
from ltx_core.model.transformer.config import StreamConfig, TransformerConfig
from ltx_core.model.transformer.feed_forward import FeedForward
from ltx_core.model.transformer.masks import AttentionBias
from ltx_core.model.transformer.rope import RotaryTable
from ltx_core.model.transformer.text_memory import TextMemory
from ltx_core.utils import rms_norm

#: Tokens of each stream that is present, ``[B, T, width]``: what one block hands to the next.
Tokens = dict[str, Tensor]

PREFIX = {"video": "", "audio": "audio_"}
SELF_ATTENTION_SKIP = {
    "video": PerturbationType.SKIP_VIDEO_SELF_ATTN,
    "audio": PerturbationType.SKIP_AUDIO_SELF_ATTN,
}


@dataclass(frozen=True)
class Direction:
    """One cross-modal attention: which stream reads which, and its rows in the joining tables."""

    target: str
    source: str
    scale_row: int  # the shift follows it
    skip: PerturbationType

    @property
    def module(self) -> str:
        return f"{self.source}_to_{self.target}_attn"


DIRECTIONS = (
    Direction("video", "audio", 0, PerturbationType.SKIP_A2V_CROSS_ATTN),
    Direction("audio", "video", 2, PerturbationType.SKIP_V2A_CROSS_ATTN),
)
GATE_ROW = 4


@dataclass(frozen=True)
class CrossInputs:
    """What the cross-modal attentions need of one stream."""

    rope: RotaryTable  # time axis only
    scale_shift: Modulation  # 4 rows, by the stream's own timesteps
    gate: Modulation  # 1 row, by the other stream's sigma


@dataclass(frozen=True)
class StreamInputs:
    """What every block needs of one stream beside its tokens. All but text may have a batch of 1 for every sample."""

    runs: bool  # the stream's tokens are updated
    modulation: Modulation  # 6 or 9 rows
    embedded_timestep: Modulation  # 1 row, for the output head
    rope: RotaryTable
    prompt_modulation: Modulation | None = None  # 2 rows
    self_attention_bias: AttentionBias | None = None  # [B, 1, T, T], or by groups of queries
    cross: CrossInputs | None = None  # only when both streams are present
    context: Tensor | None = None  # [B, S, width]; None: no text attention is asked for
    context_bias: Tensor | None = None  # broadcasts against [B, H, T, S]
    text_memory: TextMemory | None = None  # keeps projections of ``context``; None: they are made when needed


class TransformerBlock(nn.Module):
    """Self-attention, text attention, cross-modal attention, feed-forward."""

    def __init__(self, config: TransformerConfig) -> None:
        super().__init__()
        self.config = config
        for name, stream in config.streams.items():
            self._add_stream(name, stream)
        if config.video and config.audio:
            self._add_cross(config.video, config.audio)

    def forward(
        self, tokens: Tokens, inputs: dict[str, StreamInputs], keep: BlockKeep, parts: Sequence[Part] = PARTS
    ) -> Tokens:
        """The next tokens of every stream, after some consecutive parts or all. A stream that does not run stays."""
        reads_text = Part.TEXT_ATTENTION in parts
        texts = {name: self.text(name, inputs[name]) for name in tokens if reads_text and inputs[name].runs}
        if parts == PARTS:
            return self.compute(tokens, inputs, texts, keep)
        return self.compute_parts(tokens, inputs, texts, keep, parts)

    def compute(
        self, tokens: Tokens, inputs: dict[str, StreamInputs], texts: dict[str, KeysValues], keep: BlockKeep
    ) -> Tokens:
        """All parts, with the text of running streams already projected; what is compiled where compiling is on."""
        after = self.compute_parts(tokens, inputs, texts, keep, PARTS)
        if "video" in tokens and inputs["video"].runs:
            kept = keep.get(PerturbationType.SKIP_VIDEO_BLOCK, True)
            after["video"] = keep_or_replace(after["video"], tokens["video"], kept)
        return after

    def compute_parts(
        self,
        tokens: Tokens,
        inputs: dict[str, StreamInputs],
        texts: dict[str, KeysValues],
        keep: BlockKeep,
        parts: Sequence[Part],
    ) -> Tokens:
        """Consecutive parts of a block that no sample skips as a whole."""
        tokens = dict(tokens)
        running = [name for name in tokens if inputs[name].runs]
        for name in running:
            if Part.SELF_ATTENTION in parts:
                tokens[name] = self.attend_to_itself(name, tokens[name], inputs[name], keep)
            if Part.TEXT_ATTENTION in parts:
                tokens[name] = self.attend_to_text(name, tokens[name], texts[name], inputs[name])
        if Part.CROSS_ATTENTION in parts:
            if len(tokens) == 2 and running:
                tokens = self.attend_to_each_other(tokens, inputs, keep)
            for name in running:
                tokens[name] = self.feed_forward(name, tokens[name], inputs[name])
        return tokens

    def attend_to_itself(self, name: str, x: Tensor, inputs: StreamInputs, keep: BlockKeep) -> Tensor:
        """Self-attention over ``x`` ``[B, T, width]`` added to it."""
        shift, scale, gate = self._rows(name, inputs, first=0)
        bypass = Bypass(
            keep.get(SELF_ATTENTION_SKIP[name], True),
            keep.get(PerturbationType.PASS_VIDEO_SELF_ATTN_INPUT, True) if name == "video" else True,
        )
        y = scale_and_shift(rms_norm(x, eps=self.config.norm_eps), scale, shift)
        y = self._part(name, "attn1")(y, rope=inputs.rope, bias=inputs.self_attention_bias, bypass=bypass)
        return torch.addcmul(x, gate, y)

    def attend_to_text(self, name: str, x: Tensor, text: KeysValues, inputs: StreamInputs) -> Tensor:
        """Text attention added to ``x``: modulated and gated with nine rows, plain with six."""
        y = rms_norm(x, eps=self.config.norm_eps) if self.config.cross_attention_norm else x
        gate = None
        if self.config.cross_attention_adaln:
            shift, scale, gate = self._rows(name, inputs, first=6)
            y = scale_and_shift(y, scale, shift)
        y = self._part(name, "attn2")(y, text, bias=inputs.context_bias)
        return x + y if gate is None else torch.addcmul(x, gate, y)

    def text(self, name: str, inputs: StreamInputs) -> KeysValues:
        """Keys and values of the text of every sample, from memory where it has them."""
        context = inputs.context
        assert context is not None
        if inputs.text_memory is None:
            return self.project_context(name, context, inputs.prompt_modulation)

        def project(sample: int) -> tuple[Tensor, Tensor]:
            modulation = inputs.prompt_modulation and inputs.prompt_modulation.of_sample(sample)
            text = self.project_context(name, context[sample : sample + 1], modulation)
            assert text.keys is not None
            return text.keys, text.values

        return KeysValues(*inputs.text_memory.recall(self, name, project))

    def project_context(self, name: str, context: Tensor, prompt_modulation: Modulation | None) -> KeysValues:
        """Keys and values of the text ``[B, S, width]``; the same at every step when nothing modulates the prompt."""
        if self.config.cross_attention_adaln:
            table = self._part(name, "prompt_scale_shift_table")
            rows = prompt_modulation or Modulation(context.new_zeros(1, 2, 1))  # the table alone
            context = scale_and_shift(context, rows.row(1, table), rows.row(0, table))
        return self._part(name, "attn2").project_context(context)

    def attend_to_each_other(self, tokens: Tokens, inputs: dict[str, StreamInputs], keep: BlockKeep) -> Tokens:
        """Both cross-modal attentions. Each reads the tokens from before either has written."""
        normed = {name: rms_norm(x, eps=self.config.norm_eps) for name, x in tokens.items()}
        result = dict(tokens)
        for way in DIRECTIONS:
            kept = keep.get(way.skip, True)
            target, source = inputs[way.target].cross, inputs[way.source].cross
            if not inputs[way.target].runs or kept is False or target is None or source is None:
                continue
            queries = self._cross_modulated(way.target, normed, target, way.scale_row)
            context = self._cross_modulated(way.source, normed, source, way.scale_row)
            y = getattr(self, way.module)(queries, context, rope=target.rope, key_rope=source.rope)
            gate = target.gate.row(0, self._cross_table(way.target)[GATE_ROW:])
            if isinstance(kept, Tensor):
                gate = gate * kept
            result[way.target] = torch.addcmul(result[way.target], gate, y)
        return result

    def feed_forward(self, name: str, x: Tensor, inputs: StreamInputs) -> Tensor:
        """The feed-forward network added to ``x``."""
        shift, scale, gate = self._rows(name, inputs, first=3)
        y = scale_and_shift(rms_norm(x, eps=self.config.norm_eps), scale, shift)
        return torch.addcmul(x, gate, self._part(name, "ff")(y))

    def _rows(self, name: str, inputs: StreamInputs, first: int) -> tuple[Tensor, Tensor, Tensor]:
        """Shift, scale and gate of one branch."""
        table = self._part(name, "scale_shift_table")
        shift, scale, gate = (inputs.modulation.row(first + offset, table) for offset in range(3))
        return shift, scale, gate

    def _cross_modulated(self, name: str, normed: Tokens, cross: CrossInputs, scale_row: int) -> Tensor:
        table = self._cross_table(name)
        scale, shift = (cross.scale_shift.row(scale_row + offset, table) for offset in range(2))
        return scale_and_shift(normed[name], scale, shift)

    def _part(self, name: str, part: str) -> Any:
        return getattr(self, PREFIX[name] + part)

    def _cross_table(self, name: str) -> nn.Parameter:
        return getattr(self, f"scale_shift_table_a2v_ca_{name}")

    def _add_stream(self, name: str, stream: StreamConfig) -> None:
        config, width = self.config, stream.width
        parts: dict[str, nn.Module | nn.Parameter] = {
            "attn1": self._attention(width, width, stream),
            "attn2": self._attention(width, width, stream),
            "ff": FeedForward(width, stream.ff_bias),
            "scale_shift_table": modulation_table(config.modulation_rows, width),
        }
        if config.cross_attention_adaln:
            parts["prompt_scale_shift_table"] = modulation_table(2, width)
        for part, value in parts.items():
            setattr(self, PREFIX[name] + part, value)

    def _add_cross(self, video: StreamConfig, audio: StreamConfig) -> None:
        self.audio_to_video_attn = self._attention(video.width, audio.width, audio)
        self.video_to_audio_attn = self._attention(audio.width, video.width, audio)
        self.scale_shift_table_a2v_ca_video = modulation_table(5, video.width)
        self.scale_shift_table_a2v_ca_audio = modulation_table(5, audio.width)

    def _attention(self, query_width: int, context_width: int, layout: StreamConfig) -> Attention:
        config = self.config
        return Attention(
            query_width,
            context_width,
            layout.heads,
            layout.head_dim,
            gated=config.apply_gated_attention,
            eps=config.qk_norm_eps,
        )


def modulation_table(num_rows: int, width: int) -> nn.Parameter:
    """A learned table of rows, small at first."""
    return nn.Parameter(torch.randn(num_rows, width) / width**0.5)
