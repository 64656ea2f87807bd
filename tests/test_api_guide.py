"""Every program of the API guide runs as printed, on small random networks.

The guide's sections "Core Concepts" to "Audio-Video Generation" are one long session: later blocks use names that
earlier ones made. From outside come the networks, the prompt, device and dtype, and the tensors the guide only names
(`video_latent`, `encoded_image`, `reference_video` and the like). The first block prints the fields of `Modality`
instead of using it; its fields are checked against ours.
"""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from ltx_core.model.transformer.config import TransformerConfig
from ltx_core.model.transformer.modality import Modality
from ltx_core.model.transformer.model import LTXModel
from tests.tiny_checkpoints import TRANSFORMER

GUIDE = Path(__file__).parent / "documents" / "ltx-core-api-guide.md"
FIRST, LAST = "## Core Concepts", "## Common Pitfalls"
CONTEXT_WIDTH = 16


def blocks() -> list[str]:
    """The Python blocks of the sections, in order."""
    text = GUIDE.read_text()
    section = text[text.index(FIRST, text.index(FIRST) + 1) if text.count(FIRST) > 1 else text.index(FIRST) :]
    section = section[: section.index(LAST)]
    return re.findall(r"```python\n(.*?)```", section, flags=re.DOTALL)


def small_transformer() -> LTXModel:
    """One block on 128 latent channels, with the caption projection inside."""
    sizes = {"num_layers": 1, "caption_channels": CONTEXT_WIDTH, "caption_proj_before_connector": False}
    channels = dict.fromkeys(("in_channels", "out_channels", "audio_in_channels", "audio_out_channels"), 128)
    torch.manual_seed(0)
    return LTXModel(TransformerConfig.from_metadata({"transformer": {**TRANSFORMER, **sizes, **channels}})).eval()


def text_encoder(prompt: str) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Stands for a prompt encoder: (video_context, audio_context, mask)."""
    generator = torch.Generator().manual_seed(len(prompt))
    video, audio = (torch.randn(1, 6, CONTEXT_WIDTH, generator=generator) for _ in range(2))
    return video, audio, torch.ones(1, 6, dtype=torch.int64)


class Recorder(nn.Module):
    """Stands for a VAE half: gives a tensor of the documented shape and remembers what it was given."""

    def __init__(self, shape: tuple[int, ...]) -> None:
        super().__init__()
        self.shape, self.given = shape, []

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        self.given.append(tuple(x.shape))
        return torch.randn(self.shape)


@dataclass
class Session:
    """The namespace the guide's blocks share."""

    names: dict[str, Any]

    def run(self, block: str) -> None:
        exec(compile(block, str(GUIDE), "exec"), self.names)


@pytest.fixture(scope="module")
def session() -> Iterator[Session]:
    with torch.no_grad():
        disabled = Modality(
            latent=torch.zeros(1, 1, 128),
            timesteps=torch.zeros(1, 1),
            positions=torch.zeros(1, 1, 1, 2),
            context=torch.zeros(1, 6, CONTEXT_WIDTH),
            enabled=False,
        )
        names: dict[str, Any] = {
            "torch": torch,
            "dataclass": dataclass,
            "Modality": Modality,
            "model": small_transformer(),
            "text_encoder": text_encoder,
            "vae_encoder": Recorder((1, 128, 7, 16, 24)),
            "vae_decoder": Recorder((1, 3, 49, 512, 768)),
            "audio_decoder": Recorder((1, 2, 197, 64)),
            "vocoder": Recorder((1, 2, 47280)),
            "prompt": "a bell rings twice",
            "device": torch.device("cpu"),
            "dtype": torch.float32,
            "video_latent": torch.randn(1, 128, 7, 16, 24),
            "audio_latent": torch.randn(1, 8, 50, 16),
            "encoded_image": torch.randn(1, 128, 1, 16, 24),
            "image": torch.zeros(1, 3, 1, 512, 768),
            "reference_video": torch.zeros(1, 3, 49, 512, 768),
            "disabled_audio": disabled,
        }
        yield Session(names)


def test_the_printed_modality_has_our_fields() -> None:
    printed = next(node for node in ast.walk(ast.parse(blocks()[0])) if isinstance(node, ast.ClassDef))
    names = {node.target.id for node in printed.body if isinstance(node, ast.AnnAssign)}  # type: ignore[union-attr]
    assert names and names <= {field.name for field in fields(Modality)}


@pytest.mark.parametrize("number", range(1, len(blocks())))
def test_block_runs(session: Session, number: int, monkeypatch: pytest.MonkeyPatch) -> None:
    names = session.names
    if "video" not in names:  # the STG and forward-pass blocks come before the guide makes its modalities
        names |= first_modalities(names)
    short_schedule(monkeypatch)
    with torch.no_grad():
        session.run(blocks()[number])


def first_modalities(names: dict[str, Any]) -> dict[str, Any]:
    """`video` and `audio` on few tokens, also under the names the forward-pass block uses."""
    context = torch.randn(1, 6, CONTEXT_WIDTH)
    video = Modality(
        latent=torch.randn(1, 4, 128),
        timesteps=torch.full((1, 4), 0.5),
        positions=torch.rand(1, 3, 4, 2).sort().values,
        context=context,
    )
    audio = replace(video, positions=torch.rand(1, 1, 4, 2).sort().values)
    return {"video": video, "audio": audio, "video_modality": video, "audio_modality": audio}


def short_schedule(monkeypatch: pytest.MonkeyPatch) -> None:
    """The guide's 30 steps over thousands of tokens, in two."""
    from ltx_core.components.schedulers import LTX2Scheduler

    execute = LTX2Scheduler.execute
    monkeypatch.setattr(LTX2Scheduler, "execute", lambda self, steps, **kwargs: execute(self, min(steps, 2), **kwargs))


def test_results_have_the_documented_shapes(session: Session) -> None:
    names = session.names
    assert names["final_target"].shape == (1, 7 * 16 * 24, 128)
    assert names["vae_decoder"].given[-1] == (1, 128, 7, 16, 24)
    assert names["audio_decoder"].given[-1] == (1, 8, 50, 16)
    assert torch.isfinite(names["video"].latent).all() and torch.isfinite(names["audio"].latent).all()
