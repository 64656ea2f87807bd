"""Windows of a long clip on networks that know the answer: the real engine, and nothing to blame but its arithmetic."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from fractions import Fraction
from typing import Any

import pytest
import torch
from torch import Tensor

from ltx_core.components.windows import WindowPlan, plan_windows
from ltx_core.conditioning.tools import latent_tools
from ltx_core.model.transformer.modality import Modality
from ltx_core.networks import Contexts
from ltx_core.types import SpatioTemporalScaleFactors, VideoPixelShape
from ltx_pipelines.long import window_of
from ltx_pipelines.planning.plan import LongClip, ModelFiles, Plan, Scene, StagePlan, StreamPlan
from ltx_pipelines.running import engine, stages

HOP, RATE = 160, 16000
WRONG = 1e3  # what nobody may deliver


class Texts:
    def know(self, prompts: list[str]) -> bool:
        return True

    def contexts(self, prompts: list[str]) -> list[Contexts]:
        return [Contexts(torch.zeros(1, 1, 4), torch.zeros(1, 1, 4)) for _ in prompts]


class OracleLedger:
    """A model of ``channels`` whose clip is known; its codec reads a first latent frame as one pixel frame."""

    scale_factors, latent_channels = SpatioTemporalScaleFactors(8, 32, 32), 4
    device, dtype, policy, devices = torch.device("cpu"), torch.float32, "resident", None

    def __init__(self, video: Tensor, audio: Tensor | None = None) -> None:
        self.video, self.audio, self.texts = video, audio, Texts()
        self.decoded_at: list[int] = []  # latent frames given to the decoder at once
        self.pictures: list[int] = []  # pixel frames that windows began with

    def transformer(self, loras: tuple[Any, ...], streams: tuple[str, ...]) -> None:
        """There is none: the run knows the clip."""

    def network(self, name: str) -> Any:
        return {"audio_decoder": mel_of, "vocoder": SoundOf()}[name]


class OracleRun(stages.Run):
    """Predicts what the clip holds where each token lies."""

    def model(self, stage: StagePlan, network: Any) -> Any:
        window, ledger = stage.window, self.ledger
        assert window is not None

        def predict(video: Modality, audio: Modality | None = None, perturbations: Any = None) -> tuple[Any, ...]:
            zero = window.first / stage.shape.fps
            ends = (video.positions[0, 0, :, 1].double() + zero) * stage.shape.fps
            places = torch.stack(((ends.round() - 1) / 8, *(video.positions[0, 1:, :, 0] / 32)))
            frame, row, column = places.long().clamp(min=0)
            x0 = ledger.video[:, :, frame, row, column].transpose(1, 2)
            if audio is None:
                return x0, None
            token = ((audio.positions[0, 0, :, 1].double() + zero - 0.01) / 0.04).round().long()
            return x0, ledger.audio[:, :, token].transpose(1, 2).flatten(2)

        return predict

    def frames(self, latent: Tensor) -> Iterator[Tensor]:
        """Frames that say which one they are, as long as the first channel counts latent frames."""
        self.ledger.decoded_at.append(latent.shape[2])
        for number, frame in enumerate(latent[0, 0, :, 0, 0]):
            last = 8 * frame
            shown = torch.arange(-7, 1) + last if number else last[None]
            yield shown.float().view(-1, 1, 1, 1).expand(-1, 4, 4, 3)

    def deliver(self, chunk: Tensor) -> Tensor:
        return chunk

    def encode_frame(self, frame: Tensor, stage: StagePlan) -> Tensor:
        self.ledger.pictures.append(round(float(frame[0, 0, 0])))
        return torch.full((1, 4, 1, stage.shape.height // 32, stage.shape.width // 32), WRONG)


def mel_of(latent: Tensor) -> Tensor:
    """Mel frames that say which one they are, as long as the first channel counts tokens."""
    tokens = latent[0, 0, :, 0]
    found = [torch.arange(-3, 1) + 4 * token if n else 4 * token[None] for n, token in enumerate(tokens)]
    return torch.cat(found).view(1, 1, -1, 1).expand(1, 2, -1, 64)


class SoundOf:
    """Samples that say which one they are."""

    output_sampling_rate = RATE

    def __call__(self, mel: Tensor) -> Tensor:
        return (mel[..., 0, None] * HOP + torch.arange(HOP)).flatten(2) / 2**20


def oracle_plan(
    windows: WindowPlan, size: tuple[int, int], sigmas: tuple[float, ...], sound: bool, **long: Any
) -> Plan:
    """The plan of a clip of ``size`` in latent cells."""
    shape = VideoPixelShape(1, windows.frames, size[0] * 32, size[1] * 32, float(windows.fps))
    streams = {name: StreamPlan() for name in ("video", "audio")[: 1 + sound]}
    parts = tuple(window_of(windows, number, sound) for number in range(len(windows.windows)))
    asked = shape._replace(frames=windows.requested_frames)
    stage = StagePlan(shape, sigmas, streams, windows=parts, delivered=None if asked == shape else asked)
    scenes = long.pop("scenes", (Scene("a clip"),))
    return Plan("Oracle", ModelFiles("none"), "a clip", 3, (stage,), long=LongClip(scenes, **long))


def stitched(plan: Plan, ledger: OracleLedger, monkeypatch: pytest.MonkeyPatch) -> dict[str, Tensor]:
    """The joined latents that the engine makes of a plan."""
    monkeypatch.setattr(stages, "Run", OracleRun)
    monkeypatch.setattr(stages, "latent_tools", tools_like(ledger))
    *_, last = engine.generate(plan, ledger, decode=False)  # type: ignore[arg-type]
    assert last.generation is not None
    return dict(last.generation.latents)


def tools_like(ledger: OracleLedger) -> Any:
    """`latent_tools` for sound of the ledger's own width."""

    def made(*given: Any) -> dict[str, Any]:
        tools: dict[str, Any] = latent_tools(*given)
        if ledger.audio is not None and "audio" in tools:
            shape = tools["audio"].target_shape._replace(channels=ledger.audio.shape[1], mel_bins=ledger.audio.shape[3])
            tools["audio"] = replace(tools["audio"], target_shape=shape)
        return tools

    return made


def windows_of(args: dict[str, Any]) -> WindowPlan:
    """The windows a case asks for."""
    names = ("fps", "seconds", "window_seconds", "overlap_seconds")
    return plan_windows(*(Fraction(args[name]) for name in names))
