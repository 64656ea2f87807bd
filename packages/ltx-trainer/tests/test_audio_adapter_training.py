"""An audio adapter for LTX-Video: what learns, that it learns, what is written, and the way there from clips."""

from __future__ import annotations

import json
import math
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from tests.golden.case import REPOSITORY, TINY_CHECKPOINT
from tests.tiny_text_encoders import write_t5
from tests.tiny_training import CHANNELS, FRAMES, SIDE, STEPS, TOKENS, make_config, write_clip, write_model
from typer.testing import CliRunner

from ltx_core.errors import CheckpointError, ConfigError
from ltx_core.loader.checkpoint import Checkpoint
from ltx_core.model.transformer.config import TransformerConfig, is_adapter_tensor
from ltx_core.model.transformer.model import LTXModel
from ltx_core.types import Audio
from ltx_media.writer import write_video
from ltx_trainer.datasets import collate
from ltx_trainer.draws import step_draws
from ltx_trainer.memory_plan import plan_memory
from ltx_trainer.run_log import LOG_NAME, read_csv_log
from ltx_trainer.train_cli import app
from ltx_trainer.trainer import LtxvTrainer

LTX_VIDEO = REPOSITORY / "tests/golden/data/pipelines/tiny-checkpoint-ltxv/ltxv-tiny.safetensors"
CONFIG: dict[str, Any] = {
    "transformer": {
        "_class_name": "Transformer3DModel",
        "num_layers": 2,
        "num_attention_heads": 2,
        "attention_head_dim": 8,
        "cross_attention_dim": 16,
        "in_channels": CHANNELS,
        "out_channels": CHANNELS,
        "caption_channels": 12,
        "causal_temporal_positioning": True,
    }
}
ADAPTER = {"training_mode": "audio_adapter"}


@pytest.fixture
def files(tmp_path: Path) -> tuple[Path, Path]:
    """A random LTX-Video model, and clips of noise with captions of T5."""
    torch.manual_seed(0)
    model = LTXModel(TransformerConfig.from_metadata(CONFIG))
    tensors = {f"model.diffusion_model.{name}": tensor for name, tensor in model.state_dict().items()}
    save_file(tensors, tmp_path / "ltxv.safetensors", {"config": json.dumps(CONFIG)})
    generator = torch.Generator().manual_seed(7)
    for number in range(4):
        caption = {"prompt_embeds": torch.randn(TOKENS, 12, generator=generator)}
        caption["prompt_attention_mask"] = torch.tensor([0] * 3 + [1] * (TOKENS - 3))
        video = torch.randn(CHANNELS, FRAMES, SIDE, SIDE, generator=generator)
        audio = torch.randn(8, STEPS, 16, generator=generator)
        write_clip(tmp_path / "data", f"clip_{number}", caption, video, audio)
    return tmp_path / "ltxv.safetensors", tmp_path / "data"


def trainer_of(files: tuple[Path, Path], output: Path, **changes: Any) -> LtxvTrainer:
    given = {"model": ADAPTER, "lora": None, "audio_adapter": {"head_dim": 8, "blocks": [1]}}
    model = ADAPTER | changes.pop("model", {})
    return LtxvTrainer(make_config(*files, output, **{**given, "model": model, **changes}))


def batch_of(trainer: LtxvTrainer) -> Any:
    return collate([trainer.dataset[0], trainer.dataset[1]])


def test_the_adapter_alone_learns(files: tuple[Path, Path], tmp_path: Path) -> None:
    trainer = trainer_of(files, tmp_path / "out")
    trainer.objective(batch_of(trainer), step_draws("cpu", 0, 0))["loss"].backward()
    for name, parameter in trainer.transformer.named_parameters():
        assert parameter.requires_grad == is_adapter_tensor(name)
        assert (parameter.grad is not None) == is_adapter_tensor(name), name


def test_padding_of_a_caption_is_not_read(files: tuple[Path, Path], tmp_path: Path) -> None:
    trainer = trainer_of(files, tmp_path / "out")
    losses = []
    for value in (0.0, 100.0):
        batch = batch_of(trainer)
        batch["conditions"]["prompt_embeds"][:, :3] = value
        losses.append(trainer.objective(batch, step_draws("cpu", 0, 0))["loss"].item())
    assert losses[0] == losses[1]


def test_forty_steps_lower_the_loss_and_leave_an_adapter(files: tuple[Path, Path], tmp_path: Path) -> None:
    optimization = {"steps": 40, "learning_rate": 1e-2, "batch_size": 4}
    strategy = {
        "name": "flexible",
        "video": {"is_generated": True, "latents_dir": "latents", "loss_weight": 0.5},
        "audio": {"is_generated": True, "latents_dir": "audio_latents"},
    }
    trainer = trainer_of(files, tmp_path / "out", optimization=optimization, training_strategy=strategy)
    draws = step_draws("cpu", 0, 0)
    before = {name: loss.item() for name, loss in trainer.objective(batch_of(trainer), draws).items()}
    assert before["loss"] == pytest.approx(0.5 * before["loss_video"] + before["loss_audio"], rel=1e-5)
    result = trainer.train(live=False)
    after = trainer.objective(batch_of(trainer), step_draws("cpu", 0, 0))
    assert float(after["loss_audio"]) < 0.8 * before["loss_audio"]
    assert float(after["loss_video"]) <= before["loss_video"]

    path = tmp_path / "out" / "checkpoints" / "audio_adapter_weights_step_00040.safetensors"
    assert result.weights == path and all(name.startswith("audio_adapter.") for name in load_file(path))
    joint = Checkpoint.open((files[0], path)).build("transformer", torch.float32)
    want = trainer.transformer.state_dict()
    assert all(torch.equal(tensor, want[name]) for name, tensor in joint.state_dict().items())
    again = trainer_of(files, tmp_path / "again", model={"load_checkpoint": str(tmp_path / "out")})
    assert all(torch.equal(tensor, want[name]) for name, tensor in again.transformer.state_dict().items())


def test_the_plan_counts_the_adapter(files: tuple[Path, Path], tmp_path: Path) -> None:
    trainer = trainer_of(files, tmp_path / "out")
    plan = plan_memory(trainer.config)
    assert plan.trained == sum(p.numel() for p in trainer.transformer.parameters() if p.requires_grad)
    held = {item.name: item.device for item in plan.items}
    assert held["transformer"] == sum(p.nbytes for p in trainer.transformer.parameters())


def test_what_does_not_go_together_is_refused(files: tuple[Path, Path], tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="or training_mode audio_adapter"):
        LtxvTrainer(make_config(*files, tmp_path / "out"))
    with pytest.raises(CheckpointError, match="is no LTX-Video model"):
        trainer_of((write_model(tmp_path / "ltx2.safetensors"), files[1]), tmp_path / "out")
    silent = {"name": "flexible", "video": {"is_generated": True, "latents_dir": "latents"}}
    with pytest.raises(ConfigError, match="audio_adapter learns sound"):
        trainer_of(files, tmp_path / "out", training_strategy=silent)
    with pytest.raises(ConfigError, match="quantization is int8-quanto"):
        trainer_of(files, tmp_path / "out", acceleration={"quantization": "int8-quanto"})
    with pytest.raises(ConfigError, match=r"validation\.samples are for LTX-2 models"):
        trainer_of(files, tmp_path / "out", validation={"interval": 1, "samples": [{"prompt": "a boat"}]})
    with pytest.raises(ConfigError, match="blocks_to_swap is 1"):
        _ = trainer_of(files, tmp_path / "out", acceleration={"blocks_to_swap": 1}).transformer


def test_from_clips_to_an_adapter(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The configuration that `ltx train --init audio-adapter` writes, with the text encoder it finds."""
    monkeypatch.chdir(tmp_path)
    Path("model").mkdir()
    shutil.copy(LTX_VIDEO, "model/ltxv.safetensors")
    write_t5(Path("model/t5"), width=24)
    for number in range(3):
        wave = torch.sin(torch.arange(16000) / 16000 * 2 * math.pi * 300 * (number + 1))[None]
        frames = torch.full((25, 64, 64, 3), 60 * number, dtype=torch.uint8)
        write_video(f"{number}.mp4", frames, 24.0, Audio(wave, 16000))
    Path("clips.csv").write_text("caption,video\n" + "".join(f"a boat,{number}.mp4\n" for number in range(3)))

    def run(line: str) -> str:
        result = CliRunner().invoke(app, line.split())
        assert result.exit_code == 0, result.output
        return result.output

    run("--init audio-adapter --data clips.csv --model model")
    changes = {
        "model.audio_vae_path": TINY_CHECKPOINT / "ltx-2-tiny.safetensors",
        "optimization.steps": 2,
        "data.num_dataloader_workers": 0,
        "data.held_out_share": 0.5,
        "validation.interval": 2,
        "acceleration.mixed_precision_mode": "no",
    }
    settings = " ".join(f"--set {name}={value}" for name, value in changes.items())
    assert "trained parameters" in run(f"audio-adapter.yaml --plan {settings}")
    run(f"audio-adapter.yaml --disable-progress-bars {settings}")
    figures = {name for _, name, _ in read_csv_log(Path("outputs/audio-adapter") / LOG_NAME)}
    assert "val/loss_audio_sigma_0.5" in figures and "val/loss_video_sigma_0.5" in figures
    assert Path("outputs/audio-adapter/checkpoints/audio_adapter_weights_step_00002.safetensors").is_file()
