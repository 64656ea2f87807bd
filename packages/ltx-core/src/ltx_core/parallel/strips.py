"""A decode on several processes: each has some rows of the picture and a row more of its neighbours' where needed.

::

    latent [1, C, f, h, w]  ->  rows [1, C, f, r, w] of this process
    a convolution:    a row of each neighbour  -- exchanged -->  [.., r + 2, ..]  convolution, own rows kept
    attention:        rows  -- gathered -->  [.., h, ..]  attention, own rows kept
    frames [1, 3, F, 32 r, W]  -- gathered -->  [1, 3, F, H, W]

All else works on cells one by one. What is streamed in time stays so; results are those of one process.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from ltx_core.model.video_vae.blocks import AttentionBlock
from ltx_core.model.video_vae.conv_cache import ConvCache, NoiseSource
from ltx_core.model.video_vae.frames import to_frames
from ltx_core.model.video_vae.layers import CausalConv3d
from ltx_core.model.video_vae.video_vae import DecodeConditioning, VideoDecoder
from ltx_core.parallel.ranks import Shares

ROWS = 3  # the axis of rows in [B, C, T, H, W]


@dataclass
class Strips(Shares):
    """Rows of the processes of a group, in latent cells; deeper layers have a multiple of them."""

    def row_counts(self, rows: int) -> list[int]:
        """Numbers of rows of all processes, where this one has ``rows``."""
        factor = rows // self.counts[self.ranks.rank]
        return [factor * count for count in self.counts]

    def own(self, whole: Tensor, dim: int) -> Tensor:
        """This process's rows of something that has all of them along ``dim``."""
        rank, factor = self.ranks.rank, whole.shape[dim] // sum(self.counts)
        return whole.narrow(dim, factor * sum(self.counts[:rank]), factor * self.counts[rank])

    def gather(self, x: Tensor) -> Tensor:
        """The rows of all processes."""
        return self.ranks.gather(x, self.row_counts(x.shape[ROWS]), ROWS)

    @property
    def above(self) -> int:
        """Rows that come from the neighbour above."""
        return int(self.ranks.rank > 0)

    def with_neighbours(self, x: Tensor) -> Tensor:
        """The rows between one more of each neighbour."""
        rank, size, rows = self.ranks.rank, self.ranks.size, x.shape[ROWS]
        if not x.shape[2]:  # no frames
            return x.new_empty(*x.shape[:ROWS], self.above + rows + int(rank < size - 1), x.shape[-1])
        nothing = x.narrow(ROWS, 0, 0)
        edges = {rank - 1: x.narrow(ROWS, 0, 1), rank + 1: x.narrow(ROWS, rows - 1, 1)}
        parts = [edges.get(other, nothing) for other in range(size)]
        received = self.ranks.exchange(parts, [tuple(part.shape) for part in parts])
        return torch.cat([*received[:rank], x, *received[rank + 1 :]], ROWS)

    def noise(self, source: torch.Generator | NoiseSource, dtype: torch.dtype) -> NoiseSource:
        """This process's rows of what one process would draw, which all draw whole."""

        def draw(shape: tuple[int, ...]) -> Tensor:
            whole = (*shape[:-2], sum(self.row_counts(shape[-2])), shape[-1])
            if callable(source):
                return self.own(source(whole), -2)
            return self.own(torch.randn(whole, generator=source, dtype=dtype, device=source.device), -2)

        return draw


class StripConv3d(CausalConv3d):
    """A convolution of rows between others'."""

    strips: Strips

    def forward(self, x: Tensor, cache: ConvCache) -> Tensor:
        rows = x.shape[ROWS]
        return super().forward(self.strips.with_neighbours(x), cache).narrow(ROWS, self.strips.above, rows)


class StripAttentionBlock(AttentionBlock):
    """Attention of a whole picture's rows."""

    strips: Strips

    def forward(self, x: Tensor, cache: ConvCache) -> Tensor:
        return self.strips.own(super().forward(self.strips.gather(x), cache), ROWS) if x.shape[2] else x


STRIPPED: dict[type, type] = {CausalConv3d: StripConv3d, AttentionBlock: StripAttentionBlock}
WHOLE = {strip: kind for kind, strip in STRIPPED.items()}


@dataclass(frozen=True)
class StripDecoder:
    """A streaming video decoder whose processes decode some rows each; all get all frames."""

    network: VideoDecoder
    strips: Strips

    @torch.no_grad()
    def decode_frames(
        self, latent: Tensor, conditioning: DecodeConditioning | None = None, most: int | None = None
    ) -> Iterator[Tensor]:
        """Chunks ``[f, H, W, 3]`` in [0, 1]; every process has to read all of them.

        ``most`` is for one process: here each has its share of the rows at once.
        """
        own = latent[:1, :, :, self.strips.share_out(latent.shape[ROWS])]
        if conditioning is not None and conditioning.noise is not None:
            dtype = self.network.conv_in.conv.weight.dtype
            conditioning = replace(conditioning, noise=self.strips.noise(conditioning.noise, dtype))
        strip(self.network, self.strips)
        try:
            for frames in self.network.decode_streaming(own, conditioning):
                yield to_frames(self.strips.gather(frames))
        finally:
            strip(self.network, None)


def can_strip(network: VideoDecoder) -> bool:
    """Whether a decoder streams, and looks no further than to neighbouring rows."""
    return network.can_stream and network.config.decoder_padding != "circular"


def strip(network: VideoDecoder, strips: Strips | None) -> None:
    """Let a decoder have some rows, or all again."""
    kinds = WHOLE if strips is None else STRIPPED
    for module in network.modules():
        if kind := kinds.get(type(module)):
            module.__class__ = kind
            module.strips = strips  # type: ignore[assignment]
