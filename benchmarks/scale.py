"""One clip on many cards, on paper: seconds a step, what is sent and held, from counted operations and bytes.

Nothing overlaps here, and a card attains half of its peak. What it sends is what `ltx_core.parallel` sends to the byte.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from benchmarks.common import Options, Table
from benchmarks.gpu import flops_of
from benchmarks.models import MANIFESTS, Size, published
from ltx_core.model.transformer.config import TransformerConfig
from ltx_core.parallel.cost import bytes_sent
from ltx_core.parallel.mesh import MeshShape
from ltx_core.types import AudioLatentShape, VideoLatentShape, VideoPixelShape

PASSES = 4  # of a guided step: text, negative text, perturbed, modalities apart
ATTAINED = 0.5  # of the peak of dense bfloat16 products
BYTES = 2  # of a number
CLIPS = ((512, 768, 121), (1088, 1920, 121), (2176, 3840, 257))
COUNTS = (1, 2, 4, 8, 16, 64)
MODEL = "ltx-2.3-22b"


@dataclass(frozen=True)
class Card:
    """A kind of card, and the link to the others of its machine."""

    name: str
    flops: float  # dense bfloat16, a second
    link: float  # bytes a second, one way
    memory: float  # bytes


CARDS = (
    Card("H100", 989e12, 450e9, 80e9),
    Card("H200", 989e12, 450e9, 141e9),
    Card("A100", 312e12, 300e9, 80e9),
    Card("4090", 165e12, 25e9, 24e9),
    Card("L4", 121e12, 25e9, 24e9),
)


def run(options: Options) -> list[Table]:
    section = published(MODEL)
    return [table(section, *clip) for clip in (CLIPS[:1] if options.quick else CLIPS)]


def table(section: dict[str, object], height: int, width: int, frames: int) -> Table:
    """Every card and number of them, for one clip."""
    shape = VideoPixelShape(1, frames, height, width, 24.0)
    latent, sound = VideoLatentShape.from_pixel_shape(shape), AudioLatentShape.from_video_pixel_shape(shape)
    size = Size(MODEL, section, latent.frames * latent.height * latent.width, sound.frames)
    config, flops = TransformerConfig.from_metadata({"transformer": section}), flops_of(section, size)
    columns = ("card", "cards", "mesh", "s / step", "of ideal", "GB sent / step", "GB held")
    rows = [row(card, count, config, size, flops) for card in CARDS for count in COUNTS if fits(count, config)]
    return Table(f"{MODEL}, guided, {width} x {height}, {frames} frames, {size.video_tokens} tokens", columns, rows)


def fits(count: int, config: TransformerConfig) -> bool:
    return MeshShape.usual(count, PASSES).sp <= config.streams["video"].heads


def row(card: Card, count: int, config: TransformerConfig, size: Size, flops: float) -> list[str]:
    """One line: ``flops`` are those of one pass."""
    mesh = MeshShape.usual(count, PASSES)
    passes = math.ceil(PASSES / mesh.cfg)
    computing = passes * flops / mesh.sp / (card.flops * ATTAINED)
    channels = config.streams["video"].out_channels
    sent = passes * bytes_sent(config, size.video_tokens, mesh.sp, BYTES) if mesh.sp > 1 else 0
    sent += passes * size.video_tokens * channels * BYTES * (mesh.cfg - 1)
    seconds, ideal = computing + sent / card.link, PASSES * flops / count / (card.flops * ATTAINED)
    held = weights() + 8 * size.video_tokens / mesh.sp * config.streams["video"].width * BYTES
    note = "" if held < card.memory else " (streamed)"
    return [
        card.name,
        str(count),
        f"cfg={mesh.cfg},sp={mesh.sp}",
        f"{seconds:.3g}",
        f"{ideal / seconds:.0%}",
        f"{sent / 1e9:.3g}",
        f"{held / 1e9:.0f}{note}",
    ]


def weights() -> float:
    """Bytes of the transformer."""
    import json

    tensors = json.loads((MANIFESTS / MODEL / "transformer.json").read_text())["tensors"]
    shapes = [one["shape"] if isinstance(one, dict) else one for one in tensors.values()]
    return BYTES * sum(math.prod(shape) for shape in shapes)
