"""Video with sound from text and pictures, on LTX-Video 0.9.x and an audio adapter."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Self

from ltx_core.errors import ConfigError
from ltx_pipelines.ltx_video.pipeline import LTXVideoPipeline, LTXVideoRequest
from ltx_pipelines.planning.plan import Plan, StagePlan, StreamPlan
from ltx_pipelines.request import clip


@dataclass(frozen=True)
class LTXAudioVideoRequest(LTXVideoRequest):
    """A request that may ask for sound."""

    generate_audio: bool = clip(False, "Make sound too, with an audio adapter.")


class LTXAudioVideoPipeline(LTXVideoPipeline):
    """As `LTXVideoPipeline`, and with sound where ``generate_audio`` is asked for.

    The first pass makes picture and sound together; a second one enlarges the picture and keeps the sound.
    """

    uses = LTXVideoPipeline.uses | {"audio_adapter"}

    @classmethod
    def command(cls) -> str:
        return "ltxav"

    def enable_audio_generation(self, enabled: bool = True) -> Self:
        """Make sound where a request says nothing, this pipeline itself.

        Raises `ConfigError` where the adapter or the audio VAE is missing.
        """
        if enabled:
            self.check_sound()
        self.preset = {**self.preset, "generate_audio": enabled}
        return self

    def check_sound(self) -> None:
        """Refuse a model that cannot make sound."""
        ledger = self.ledger
        if ledger.files.audio_adapter is None:
            raise ConfigError(f"{ledger.files.checkpoint} has no sound, expected an audio adapter (--audio-adapter)")
        if ledger.backend == "mlx":
            raise ConfigError("backend is mlx, which has no audio adapters, expected torch")
        if missing := [name for name in ("audio_decoder", "vocoder") if not ledger.holds(name)]:
            raise ConfigError(
                f"the model has no {' and no '.join(missing)}, expected those of LTX-2 (--audio-vae-path)"
            )

    def make_plan(self, request: LTXAudioVideoRequest) -> Plan:  # type: ignore[override]
        if request.generate_audio:
            self.check_sound()
            if request.input_media_path is not None:
                raise ConfigError("input_media_path begins below full noise, where sound cannot begin; leave one out")
        plan = super().make_plan(request)
        if not request.generate_audio:
            return plan
        stages = [with_sound(stage, kept=number > 0) for number, stage in enumerate(plan.stages)]
        return plan.with_(stages=tuple(stages))


def with_sound(stage: StagePlan, kept: bool) -> StagePlan:
    """A pass with sound beside the picture: made there, or kept from the pass before."""
    sound = StreamPlan(start="previous" if kept else "noise", frozen=kept)
    return replace(stage, streams={**stage.streams, "audio": sound})
