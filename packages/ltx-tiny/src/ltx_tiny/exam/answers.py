"""The exam taken by a model: clips from the pipelines, examined, with a table, records and contact sheets.

Needs ltx-pipelines, which brings the engine.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import torch

from ltx_core.errors import ConfigError
from ltx_tiny.exam.exam import Answer, Audio, Generate, Video, ceiling, questions, take
from ltx_tiny.exam.report import summarise, table, write_json
from ltx_tiny.exam.sheet import write_sheet

SIZE = {"height": 256, "width": 256, "num_frames": 49, "frame_rate": 25.0}
ON_SHEET = 16  # clips


def distilled(model: str) -> Any:
    """Two stages with the distilled adapter."""
    from ltx_pipelines.distilled import DistilledPipeline
    from ltx_pipelines.utils.model_files import find_model

    return DistilledPipeline.from_pretrained(model, loras=find_model(model).distilled_loras)


def guided(model: str) -> Any:
    """One guided stage at full size."""
    from ltx_pipelines.ti2vid_one_stage import TI2VidOneStagePipeline

    return TI2VidOneStagePipeline.from_pretrained(model)


PATHS: dict[str, Callable[[str], Any]] = {"distilled": distilled, "guided": guided}


def generator(pipeline: Any) -> Generate:
    """What the exam calls: ``(prompt, seed) -> (video, audio)`` at the world's size, sound at the exam's rate."""
    from ltx_core.model.audio_vae.waveform import resample
    from ltx_tiny.exam.hearing import RATE

    def generate(prompt: str, seed: int) -> tuple[Video, Audio]:
        made = pipeline(prompt=prompt, seed=seed, **SIZE)
        chunks = [(chunk.float().clamp(0, 1) * 255).round().to(torch.uint8).cpu() for chunk in made.video]
        sound = resample(made.audio.waveform.float().cpu(), made.audio.sampling_rate, RATE)
        return torch.cat(chunks).numpy(), sound.numpy().astype(np.float32)

    return generate


def hold(model: str, paths: Sequence[str], count: int, out: Path) -> str:
    """Run the exam, write ``exam.md``, ``exam.json`` and a sheet per path to ``out``, and return the table.

    Raises `ConfigError` for a path there is not.
    """
    if unknown := [name for name in paths if name not in PATHS]:
        raise ConfigError(f"path is {unknown[0]!r}, expected one of {', '.join(PATHS)}")
    asked = questions(count)
    answers: dict[str, list[Answer]] = {"renderer": list(ceiling(asked))}
    for name in paths:
        answers[name] = list(take(generator(PATHS[name](model)), asked))
    out.mkdir(parents=True, exist_ok=True)
    summaries = {name: summarise([answer.result for answer in given]) for name, given in answers.items()}
    for name, given in answers.items():
        write_sheet(out / f"{name}.png", [answer.clip for answer in islice(given, ON_SHEET)], across=2)
    write_json(out / "exam.json", summaries, {name: [a.to_json() for a in given] for name, given in answers.items()})
    text = table(summaries)
    (out / "exam.md").write_text(text + "\n", encoding="utf-8")
    return text
