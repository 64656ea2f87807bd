"""Two stems of a video VAE trained alike on clips of the toy world: a patch as its pixels, or as Haar wavelets."""

from __future__ import annotations

import statistics
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from benchmarks.common import Options, Table
from benchmarks.models import tiny_config
from ltx_tiny.examples import VideoExamples, held_out_clips
from ltx_trainer.loop import LoopSettings, train
from ltx_trainer.pretrain.data import Curriculum, Examples, Stage
from ltx_trainer.pretrain.video_vae import VideoVaeTask

STEMS = ("space_to_depth", "haar")
SEEDS = (1, 2, 3)
STEPS, BATCH, FRAMES, SIDE = 200, 4, 9, 64
CLIPS = 16  # of triples of the world that are in no training clip
LATENT_CHANNELS = 32


def run(options: Options) -> list[Table]:
    """Everything but the stem is the same: parameters and how they begin, clips, noise, steps."""
    steps, seeds = (2, SEEDS[:1]) if options.quick else (STEPS, SEEDS)
    title = f"Stems after {steps} steps of {BATCH} clips of {FRAMES} x {SIDE} x {SIDE}: dB on {CLIPS} held-out clips"
    table = Table(title, ("stem", "parameters", *(f"seed {seed}" for seed in seeds), "mean", "loss, last tenth"))
    for stem in STEMS:
        made = [train_stem(stem, seed, steps) for seed in seeds]
        ratios, losses = [[one[name] for one in made] for name in ("psnr", "loss")]
        figures = [*(f"{ratio:.2f}" for ratio in ratios), f"{statistics.mean(ratios):.2f}"]
        table.rows.append([stem, f"{made[0]['parameters']:.0f}", *figures, f"{statistics.mean(losses):.4f}"])
    return [table]


def train_stem(stem: str, seed: int, steps: int) -> Mapping[str, float]:
    """Figures of a VAE like the bundled one, but without a taught code, after so many steps."""
    torch.manual_seed(seed)
    examples = Examples(VideoExamples(seed), Curriculum((Stage(steps, BATCH, FRAMES, SIDE),)))
    task = VideoVaeTask(config_of(stem), examples, [held_out_clips(CLIPS, FRAMES, SIDE)["video"]])
    settings = LoopSettings(steps, learning_rate=2e-3, warmup_steps=steps // 10, save_state="off", seed=seed)
    with tempfile.TemporaryDirectory() as folder:
        reports = list(train(task, settings, Path(folder)))
        with torch.no_grad():
            figures = task.validate(steps, Path(folder))
    last = [report.losses["loss"] for report in reports[-max(steps // 10, 1) :]]
    parameters = sum(one.numel() for one in task.module.parameters())
    return {"psnr": figures[f"psnr_{SIDE}"], "loss": statistics.mean(last), "parameters": float(parameters)}


def config_of(stem: str) -> dict[str, Any]:
    return {"vae": {**tiny_config()["vae"], "stem": stem, "latent_channels": LATENT_CHANNELS}}
