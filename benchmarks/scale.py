"""One clip on many cards, on paper: seconds a step, what is sent and held, from counted operations and bytes.

Nothing overlaps here, and a card attains half of its peak. What the first card computes, holds and sends is counted by
running the transformer, with `ltx_core.parallel` around it, on the meta device.
"""

from __future__ import annotations

import json
import math
from dataclasses import dataclass
from functools import cache

import torch

from benchmarks.common import Options, Table
from benchmarks.models import MANIFESTS, TEXT_TOKENS, published
from ltx_core.components.guiders import MultiModalGuider, MultiModalGuiderParams
from ltx_core.model.common.meter import Work
from ltx_core.model.transformer.config import TransformerConfig
from ltx_core.parallel.mesh import Devices, MeshShape
from ltx_core.sampling.denoisers import DenoiseCall, GuidedDenoiser
from ltx_core.types import AudioLatentShape, VideoLatentShape, VideoPixelShape
from ltx_pipelines.planning.work import Call, CallCounter
from ltx_pipelines.running.placement import choose_spread

PASSES = 4  # of a guided step: text, negative text, perturbed, modalities apart
PERTURBED = 28  # block of the perturbed pass
ATTAINED = 0.5  # of the peak of dense bfloat16 products
CLIPS = ((512, 768, 121), (1088, 1920, 121), (2176, 3840, 257))
COUNTS = (1, 2, 4, 8, 16, 64)
MODEL = "ltx-2.3-22b"
BYTES = 2  # of a number
NATIVE, BLOCKS = "model.diffusion_model.", "transformer_blocks."
SLOTS = 2  # blocks that are gathered at once


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
    tokens = {
        "video": VideoLatentShape.from_pixel_shape(shape).token_count,
        "audio": AudioLatentShape.from_video_pixel_shape(shape).token_count,
    }
    config = TransformerConfig.from_metadata({"transformer": section})
    columns = ("card", "cards", "mesh", "s / step", "of ideal", "GB sent / step", "GB held")
    shares = {count: share_of_one(config, tokens, count) for count in COUNTS}
    rows = [row(card, mesh_of(config, count), work, shares[1]) for card in CARDS for count, work in shares.items()]
    return Table(f"{MODEL}, guided, {width} x {height}, {frames} frames, {tokens['video']} tokens", columns, rows)


def mesh_of(config: TransformerConfig, count: int) -> MeshShape:
    """The mesh of cards of one machine, or of machines linked as well, in a step."""
    return Devices(0, count).shape(config, PASSES)


def share_of_one(config: TransformerConfig, tokens: dict[str, int], count: int) -> Work:
    """Work of the first of ``count`` cards in a step."""
    devices = Devices(0, count) if count > 1 else None
    counter = CallCounter(config, tokens, TEXT_TOKENS, torch.bfloat16, devices=devices, passes=PASSES)
    texts = counter.contexts()
    contexts, against = ({"video": text.video, "audio": text.audio} for text in (texts, counter.contexts()))
    params = MultiModalGuiderParams(3.0, 1.0, [PERTURBED], 0.0, 3.0)
    guiders = {name: MultiModalGuider(params, text) for name, text in against.items()}
    denoiser = GuidedDenoiser(contexts, guiders)
    active, passes = denoiser.needs(tuple(contexts), DenoiseCall.at(torch.tensor([1.0, 0.0]), 0))
    assert len(passes) == PASSES
    work, later = counter.works(Call(tuple(passes), tuple(active)))
    return Work(later, work.activations, work.sent)


def row(card: Card, mesh: MeshShape, work: Work, alone: Work) -> list[str]:
    """One line: weights are spread over as many cards as they need, streamed where there are too few."""
    count = mesh.cfg * mesh.sp
    inside, outside = weights()
    room = card.memory - work.activations
    spread = choose_spread({"checkpoint": int(inside + outside)}, int(room), count)
    held = outside + (inside if spread == 1 else inside / spread + SLOTS * inside / blocks())
    sent = work.sent + inside * (spread - 1) / spread
    seconds = work.flops / (card.flops * ATTAINED) + sent / card.link
    ideal = alone.flops / count / (card.flops * ATTAINED)
    note = " (streamed)" if held > room else f" (fsdp={spread})" if spread > 1 else ""
    return [
        card.name,
        str(count),
        str(mesh),
        f"{seconds:.3g}",
        f"{ideal / seconds:.0%}",
        f"{sent / 1e9:.3g}",
        f"{(held + work.activations) / 1e9:.0f}{note}",
    ]


def weights() -> tuple[float, float]:
    """Bytes of the transformer's blocks, and of the rest."""
    inside = sum(size for name, size in sizes().items() if name.startswith(BLOCKS))
    return inside, sum(sizes().values()) - inside


def blocks() -> int:
    return len({name.split(".")[1] for name in sizes() if name.startswith(BLOCKS)})


@cache
def sizes() -> dict[str, int]:
    """Bytes of the transformer's tensors."""
    tensors = json.loads((MANIFESTS / MODEL / "transformer.json").read_text())["tensors"]
    return {name.removeprefix(NATIVE): BYTES * math.prod(one["shape"]) for name, one in tensors.items()}
